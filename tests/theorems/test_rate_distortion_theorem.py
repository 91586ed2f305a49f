"""What bits must lose, against codes that are known."""

import math

import numpy as np
import pytest

from lowrank_theory.theorems.rate_distortion import (
    STEPS,
    Allocation,
    AllocationSetting,
    CodedWeights,
    CodedWeightsSetting,
    rate_distortion,
)
from statements import by_name, drawn, sides
from tolerance import approx

STATEMENTS = by_name(rate_distortion)


def test_reverse_water_filling_attains_the_allocation():
    variances = np.array([8.0, 4.0, 1.0, 0.25])
    filled = Allocation(variances, np.array([1.5, 1.0, 0.0, 0.0]))  # the level is one
    assert sides(STATEMENTS["allocation"], filled) == approx((3.25, 3.25))
    realised, bound = sides(STATEMENTS["allocation"], Allocation(variances, np.full(4, 0.625)))
    assert realised == approx(13.25 * 4**-0.625)
    assert realised > bound == approx(3.25)


def test_the_floor_of_one_weight_is_that_of_its_bits():
    """One bit keeps 2/π of a normal number, where the floor allows three quarters."""
    random = np.random.default_rng(0).standard_normal((1, 4096))
    layer = CodedWeights(random, np.ones((1, 1)), 1, gaussian=True)
    realised, bound = sides(STATEMENTS["floor"], layer)
    assert bound == approx(4096 / 4)
    assert realised == pytest.approx(4096 * (1 - 2 / math.pi), rel=0.05)


def test_no_step_is_better_than_those_of_max():
    random = np.random.default_rng(1).standard_normal(20_000)
    for bits, step in enumerate(STEPS, start=1):
        middle = 2.0 ** (bits - 1) - 0.5

        def lost(each: float, middle: float = middle) -> float:
            codes = np.clip(np.rint(random / each + middle), 0, 2 * middle)
            return float(np.mean((random - each * (codes - middle)) ** 2))

        assert lost(step) < min(lost(1.1 * step), lost(step / 1.1))


def test_both_sides_of_low_rank_and_of_the_floor():
    layer = drawn(CodedWeightsSetting(5, 6, 6, 2, rank=2, scale=3.0))
    values = np.linalg.svd(np.asarray(layer.weights), compute_uv=False)
    expected = float(np.sum(values[2:] ** 2)), 9.0 * (36 - 2 * 2 * 12)
    assert sides(STATEMENTS["low_rank"], layer) == approx(expected, scale=300)
    assert bool(STATEMENTS["floor"].bound(layer).holds)
    unsaid = CodedWeights(layer.weights, layer.activations, 2)
    assert sides(STATEMENTS["floor"], unsaid)[1] == -math.inf


def test_settings_and_refusals():
    allocation = drawn(AllocationSetting(3, mean=0.0))
    assert np.all(np.asarray(allocation.bits) == 0)
    with pytest.raises(ValueError, match="`bits` has 2 components, but `variances` has 3"):
        Allocation(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="`bits` must not be negative; got -1"):
        Allocation(np.ones(1), -np.ones(1))
    with pytest.raises(ValueError, match="`rank` must be an integer from 1 to 2; got 3"):
        CodedWeights(np.eye(2), np.eye(2), 2, rank=3)
    with pytest.raises(ValueError, match=r"`rank` must be an integer from 1 to 4 .*; got 5"):
        CodedWeightsSetting(5, 6, 4, 2, rank=5)
    with pytest.raises(ValueError, match="`bits` must be an integer from 0 to 8; got 9"):
        CodedWeightsSetting(5, 6, 4, 9)
    with pytest.raises(ValueError, match="`components` must be an integer >= 1; got 0"):
        AllocationSetting(0)
