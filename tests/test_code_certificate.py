"""The certificate by the length of a code: its equation, what files cost, and that it covers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

import lowrank_theory as lrt
from tolerance import approx

pytestmark = pytest.mark.thinned(3)


def entropy(q: float, p: float) -> float:
    first = q * math.log(q / p) if q else 0.0
    return first + ((1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0.0)


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=2, max_size=30),
    st.sampled_from([0.0, 3.0, 20.0, 400.0]),
    st.sampled_from([0.5, 0.05, 1e-9]),
)
def test_both_bounds_solve_their_equations(losses, bits, delta):
    found = lrt.certify_code(losses, bits, delta, prefix_free=True)
    mean, level = float(np.mean(losses)), (bits * math.log(2) + math.log(1 / delta)) / len(losses)
    assert found.hoeffding == approx(mean + math.sqrt(level / 2))
    assert mean <= found.bound <= min(found.hoeffding, 1)
    if mean < 1 and entropy(mean, 1 - 1e-12) > level:
        root = optimize.brentq(lambda p: entropy(mean, p) - level, mean or 1e-18, 1 - 1e-12)
        assert found.bound == pytest.approx(root, rel=1e-9)  # pyright: ignore[reportArgumentType]
    assert found.bound == lrt.certify_code(losses[::-1], bits, delta, prefix_free=True).bound


def test_without_loss_by_hand():
    found = lrt.certify_code(np.zeros(100), 10, 0.05, prefix_free=True)
    assert found.bound == approx(1 - (0.05 / 1024) ** 0.01)
    assert found.bits == 10 and found.units == 100 and found.largest == 0
    file = lrt.certify_code(np.zeros(100), 10, 0.05)
    assert file.bits == approx(10 + 2 * math.log2(10) + 2)
    assert file.bound > found.bound


def test_files_with_their_length_are_free_of_prefixes():
    """Kraft's sum over all files; the length of one is at least that of Elias's code."""
    lengths = np.array([lrt.certify_code(np.zeros(2), b, 0.5).bits for b in range(300)])
    assert np.sum(2.0 ** (np.arange(300) - lengths)) < 1
    elias = np.array([2 * math.floor(math.log2(b)) + 1 for b in range(1, 300)])
    assert np.all(lengths[1:] - np.arange(1, 300) >= elias)


def test_it_covers_what_was_chosen_by_the_same_units():
    """The best of 64 coins, all alike: a certificate that does not count the choice fails."""
    random, mean, units, delta = np.random.default_rng(0), 0.3, 50, 0.1
    covered = naive = 0
    for _ in range(200):
        coins = (random.random((64, units)) < mean).astype(float)
        best = coins[np.argmin(coins.mean(axis=1))]
        covered += lrt.certify_code(best, 6, delta, prefix_free=True).bound >= mean
        naive += lrt.certify_code(best, 0, delta, prefix_free=True).bound >= mean
    assert covered >= 200 * (1 - delta)
    assert naive < 100


def test_it_says_where_it_is_vacuous():
    found = lrt.certify_code(np.full(100, 0.01), 10_000, 0.05)
    assert found.vacuous and found.bound == 1
    with pytest.raises(RuntimeError, match=r"vacuous: 10,029 bits were chosen by 100 units"):
        found.require()
    useful = lrt.certify_code(np.full(1000, 0.01), 100, 0.05)
    assert useful.require() is useful
    assert "if the 1,000 calibration units" in str(useful) and "115.3 bits" in str(useful)
    assert not lrt.certify_code(np.zeros(1000), 2800, 0.05, prefix_free=True).vacuous
    assert lrt.certify_code(np.zeros(1000), 2900, 0.05, prefix_free=True).vacuous


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1], 1, 0.05), "`losses` must be two or more, from 0 to 1; got 1 from 0.1 to 0.1"),
        (([0.1, 1.5], 1, 0.05), "`losses` must be two or more, from 0 to 1; got 2 from 0.1 to 1.5"),
        (([0.1, np.nan], 1, 0.05), "`losses` has 1 non-finite"),
        (([0.1, 0.2], -1, 0.05), "`bits` must be a non-negative finite number; got -1"),
        (([0.1, 0.2], 1, 1.0), "`failure_probability` must lie strictly between 0 and 1"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        lrt.certify_code(*arguments)


def test_the_figures_of_the_note():
    """Ranks of ten layers, of 32 each, are 50 bits."""
    losses = np.repeat([0.0, 1.0], [9_900, 100])
    assert lrt.certify_code(losses, 50, 0.05, prefix_free=True).bound == pytest.approx(
        0.0212, abs=5e-5
    )
    assert lrt.certify_losses(losses, 0.05).bound == pytest.approx(0.0128, abs=5e-5)
