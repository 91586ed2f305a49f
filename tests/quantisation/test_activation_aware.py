"""Inputs scaled by their mean sizes before they are rounded."""

import dataclasses

import numpy as np
import pytest

from lowrank_theory.calibration import Calibration
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import (
    GPTQ,
    ActivationAware,
    RoundToNearest,
    activation_aware,
    round_to_nearest,
)
from lowrank_theory.quantisation.activation_aware import input_scales
from tolerance import assert_close

RANDOM = np.random.default_rng(0)
INPUTS = 24
W = RANDOM.standard_t(5, (INPUTS, 10))
ROWS = RANDOM.standard_normal((200, INPUTS)) * np.where(np.arange(INPUTS) % 11 == 3, 30, 1)
SEEN = Observed(weights=W, activations=ROWS)
GRAM, MEANS = ROWS.T @ ROWS, np.abs(ROWS).mean(axis=0)


def dense(made) -> np.ndarray:
    return np.asarray(made.materialise())


def lost(made) -> float:
    return float(np.linalg.norm(ROWS @ (W - dense(made))))


def test_the_exponent_of_least_output_error_is_taken():
    exponents = (0.2, 0.5, 0.8)
    tried = []
    for exponent in (0.0, *exponents):
        scales = MEANS**exponent
        scales /= np.sqrt(scales.max() * scales.min())
        rounded = dense(round_to_nearest(scales[:, None] * W, 3, group=6)) / scales[:, None]
        tried.append(np.linalg.norm(ROWS @ (W - rounded)))
    found = ActivationAware(RoundToNearest((3,), group=6), exponents).sweep(SEEN)
    assert_close(np.sqrt(found.squared_errors), [min(tried)], condition=100)
    assert tried.index(min(tried)) > 0


@pytest.mark.parametrize("inside", [RoundToNearest((2,)), GPTQ(RoundToNearest((2,), group=6))])
def test_the_error_is_never_above_that_without(inside):
    for observed in (SEEN, Observed(weights=W, activations=ROWS[:5] + 3, bias=np.ones(10))):
        scaled, plain = (
            ladder.sweep(observed).squared_errors for ladder in (ActivationAware(inside), inside)
        )
        assert scaled[0] <= plain[0] * (1 + 1e-9)


def test_what_is_quantised_gives_the_same_outputs():
    """Weights are scaled one way, and second moments the other."""
    energies = []

    def quantise(weights, gram):
        energies.append(np.vdot(weights, gram @ weights))
        return round_to_nearest(weights, 3)

    activation_aware(W, GRAM, MEANS, quantise, exponents=(0.3, 0.9))
    assert_close(energies, [energies[0]] * 3)


def test_without_rounding_nothing_changes():
    """Eight bits and scales far apart: what is stored is the matrix."""
    found = activation_aware(W, GRAM, MEANS, lambda w, _: round_to_nearest(w, 8), exponents=(0.9,))
    assert lost(found) < 0.01 * np.linalg.norm(ROWS @ W)


def test_input_scales_are_paid_for():
    found, plain = (
        ladder.sweep(SEEN).storages[0]
        for ladder in (ActivationAware(RoundToNearest((3,))), RoundToNearest((3,)))
    )
    assert found.bytes == plain.bytes + 8 * INPUTS
    assert found.numbers == plain.numbers + INPUTS


def test_units_leave_the_scales_and_dead_inputs_are_not_scaled():
    means = np.concatenate([MEANS, [0.0]])
    once = input_scales(means, 0.5)
    np.testing.assert_array_equal(once, input_scales(np.ldexp(means, -300), 0.5))
    assert once[-1] == 1
    assert_close(once[:-1].max() * once[:-1].min(), 1.0)
    np.testing.assert_array_equal(input_scales(0 * means, 0.5), np.ones_like(means))


def test_a_calibration_that_knows_no_mean_sizes_is_refused():
    seen = dataclasses.replace(Calibration.empty(INPUTS).update(ROWS), sizes=None)
    with pytest.raises(ValueError, match=r"mean sizes of inputs, .* make one by `Calibration.emp"):
        ActivationAware().sweep(Observed(weights=W, calibration=seen))
    with pytest.raises(ValueError, match="`ActivationAware` needs what the layer sees"):
        ActivationAware().sweep(Observed(weights=W))
    with pytest.raises(ValueError, match="`means` has 23 inputs, but `weights` has 24"):
        activation_aware(W, GRAM, MEANS[1:], lambda w, _: round_to_nearest(w, 8))


def test_weighted_grids_lose_less_of_the_outputs_of_uncorrelated_inputs():
    """The best of the fractions is by what it costs the outputs, where no inputs are correlated."""
    gram = np.diag(np.diag(GRAM))
    weighted, plain = (
        round_to_nearest(W, 3, importance=importance) for importance in (np.diag(GRAM), None)
    )
    costs = [np.vdot(W - dense(x), gram @ (W - dense(x))) for x in (weighted, plain)]
    assert costs[0] < 0.9 * costs[1]
    top = np.abs(W).max(axis=0) / 3
    for share in 2.0 ** (-np.arange(57) / 8):
        made = share * top * np.clip(np.round(W / (share * top)), -4, 3)
        each = np.diag(GRAM) @ (W - made) ** 2
        assert np.all(np.diag(GRAM) @ (W - dense(weighted)) ** 2 <= each * (1 + 1e-9))
    ladder = RoundToNearest((3,), weighted=True).sweep(SEEN)
    assert_close(ladder.squared_errors, [lost(weighted) ** 2], condition=10)
    equal = round_to_nearest(W, 3, importance=np.full(INPUTS, 5.0))
    np.testing.assert_array_equal(equal.codes, round_to_nearest(W, 3).codes)
