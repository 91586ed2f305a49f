"""What tables lose on rows to come: against NumPy, the size of entries, the steps of the proof."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_theory.theorems._coded_rows import (
    CodedLaw,
    CodedLawSetting,
    FittedCodes,
    uniform_deviation,
)
from lowrank_theory.theorems.look_up import look_up
from statements import drawn, sides
from tolerance import approx, rounding

STATEMENT = look_up.rows_to_come
SMALL = CodedLawSetting(40, 3, codebooks=2, levels=2, rows=60)


def by_hand(law: CodedLaw, delta: float = 0.05) -> tuple[float, float]:
    """Both sides, by loops and least squares."""
    outputs, codings, seen = (np.asarray(each) for each in (law.outputs, law.codings, law.seen))
    ridge, limit, largest = (float(each) for each in (law.ridge, law.limit, law.largest))
    fits = []
    for codes in codings:
        design = np.zeros((len(outputs), codes.shape[1] * law.count))
        for i, c in np.ndindex(*codes.shape):
            design[i, c * law.count + codes[i, c]] = 1
        stacked = np.concatenate([design[seen], math.sqrt(ridge) * np.eye(design.shape[1])])
        padded = np.concatenate([outputs[seen], np.zeros(design.shape[1])])
        entries = np.linalg.lstsq(stacked, padded, rcond=None)[0]
        found = design @ entries
        fits.append((np.sum((outputs - found)[seen] ** 2), found, np.linalg.norm(entries)))
    _, found, size = min(fits, key=lambda fit: fit[0])
    errors = np.minimum(np.abs(outputs - found), limit)
    j = max(0, math.ceil(math.log2(size / largest)))
    m, codebooks = len(seen), codings.shape[2]
    width = 2 * largest * 2**j * math.sqrt(codebooks / m)
    width += limit * math.sqrt(math.log(len(codings) * (j + 1) * (j + 2) / delta) / (2 * m))
    return float(errors.mean()), float(errors[seen].mean() + width)


@given(seed=st.integers(0, 50), ridge=st.sampled_from([1e-3, 1.0, 30.0]))
def test_values_against_numpy(seed, ridge):
    law = drawn(CodedLawSetting(40, 3, ridge=ridge, rows=60), seed)
    assert sides(STATEMENT, law) == approx(by_hand(law), condition=1e4, scale=1)


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_ridge_entries_are_no_larger_than_is_known_beforehand(ridge):
    law = drawn(CodedLawSetting(40, 3, ridge=ridge, rows=60))
    with jax.enable_x64(True):
        size = float(STATEMENT.estimate(law).size)
    most = float(law.largest) * math.sqrt(40) / (2 * math.sqrt(ridge))
    assert size <= most * (1 + rounding())


def test_the_mean_over_signs_is_below_the_root_of_all_codes():
    """The step of the proof that is particular to tables, exactly, over all signs of eight rows."""
    codes = np.random.default_rng(0).integers(0, 3, (8, 2))
    design = (codes[:, :, None] == np.arange(3)).reshape(8, -1).astype(float)
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    mean = np.linalg.norm(signs @ design, axis=1).mean()
    assert mean <= math.sqrt(8 * 2)
    assert mean >= math.sqrt(8 * 2) / 2  # and not far


@pytest.mark.parametrize("power", [-30, 40])
def test_it_is_in_the_units_of_the_outputs(power):
    law = drawn(SMALL)
    once = sides(STATEMENT, law)

    def scaled(leaf: Any) -> Any:
        return np.asarray(np.ldexp(np.asarray(leaf), power))

    other = CodedLaw(
        scaled(law.outputs),
        law.codings,
        law.seen,
        scaled(law.largest),
        scaled(law.limit),
        law.independent,
        law.ridge,
        law.count,
    )
    np.testing.assert_array_equal(np.ldexp(sides(STATEMENT, other), -power), once)


def test_larger_entries_more_encoders_and_fewer_rows_cost_more():
    with jax.enable_x64(True):
        base = float(uniform_deviation(1.0, 1.0, 1.0, 4, 2, 100, 0.05))
        worse = ((3.0, 4, 2, 100), (1.0, 5, 2, 100), (1.0, 4, 3, 100), (1.0, 4, 2, 90))
        for size, codings, codebooks, samples in worse:
            found = uniform_deviation(size, 1.0, 1.0, codings, codebooks, samples, 0.05)
            assert float(found) > base
        assert float(uniform_deviation(0.0, 1.0, 1.0, 4, 2, 100, 0.05)) == base
        assert float(uniform_deviation(0.0, 0.0, 1.0, 4, 2, 100, 0.05)) < base


def test_what_knows_the_rows_by_heart_is_refuted_and_dependence_is_said():
    law = drawn(STATEMENT.control)
    with jax.enable_x64(True):
        broken = STATEMENT.broken_estimate(law)
        assert isinstance(broken, FittedCodes)
        assert STATEMENT.loss(law, broken) > 2 * STATEMENT.formula(law, broken)
    dependent = CodedLaw(
        law.outputs, law.codings, law.seen, law.largest, law.limit, jnp.asarray(False), 1.0, 4
    )
    assert not np.isfinite(float(STATEMENT.bound(dependent).value))
    half = np.asarray(np.asarray(law.largest) / 2)
    small = CodedLaw(law.outputs, law.codings, law.seen, half, law.limit, law.independent, 1.0, 4)
    assert not STATEMENT.bound(small).holds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seen": np.array([60])}, "`codes` must be from 0 to 59"),
        ({"count": 2}, "`codes` must be from 0 to 1"),
        ({"ridge": 0.0}, "`ridge` must be a positive"),
    ],
)
def test_says_what_is_wrong(change, message):
    law = drawn(SMALL)
    names = ("outputs", "codings", "seen", "largest", "limit", "independent", "ridge", "count")
    with pytest.raises(ValueError, match=message):
        CodedLaw(**({name: getattr(law, name) for name in names} | change))
