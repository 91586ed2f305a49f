"""Robust principal components: what the theorem promises, and what is stopped."""

import numpy as np
import pytest

from lowrank_theory.mixtures import PrincipalComponentPursuit, principal_component_pursuit
from lowrank_theory.problems import Observed


def planted(side: int, rank: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    low_rank = random.standard_normal((side, rank)) @ random.standard_normal((rank, side))
    there = random.random((side, side)) < share
    return low_rank, np.where(there, random.choice([-10.0, 10], there.shape), 0)


LOW_RANK, SPIKES = planted(128, 5, 0.05)


def test_rank_and_places_of_a_planted_sum_are_found():
    """Rank 5 and 5 % spikes of 128 x 128: the published figures are about 26 steps and 1e-7."""
    found, sparse = principal_component_pursuit(LOW_RANK + SPIKES, steps=40)
    values = np.linalg.svd(found, compute_uv=False)
    assert values[5] < 1e-6 * values[0] < values[4]
    np.testing.assert_array_equal(np.abs(sparse) > 1e-3, SPIKES != 0)
    assert np.linalg.norm(found - LOW_RANK) < 1e-6 * np.linalg.norm(LOW_RANK)


@pytest.mark.parametrize("power", [-900, -3, 900])
def test_units_do_not_matter(power):
    weights = (LOW_RANK + SPIKES)[:20, :30]
    once = principal_component_pursuit(weights, steps=7)
    again = principal_component_pursuit(np.ldexp(weights, power), steps=7)
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(other, np.ldexp(one, power))


def test_rows_and_columns_may_be_exchanged():
    weights = (LOW_RANK + SPIKES)[:20, :30]
    once, turned = (principal_component_pursuit(x, steps=20) for x in (weights, weights.T))
    for one, other in zip(once, turned, strict=True):
        np.testing.assert_allclose(other.T, one, rtol=1e-9, atol=1e-9 * np.abs(weights).max())


def test_the_ladder_returns_the_planted_sum_where_its_budget_has_room():
    numbers = 3 * 256 + int((SPIKES[:, :64] != 0).sum())
    low_rank, _ = planted(128, 3, 0)
    weights = low_rank[:, :64] + SPIKES[:, :64]
    share = 1.2 * numbers / weights.size
    made = PrincipalComponentPursuit((share,), 0.6).sweep(Observed(weights=weights))
    assert made.squared_errors[0] < 1e-10 * made.squared_norm


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrincipalComponentPursuit((1.0,)), "`shares` must lie strictly between 0 and 1"),
        (lambda: PrincipalComponentPursuit(steps=0), "`steps` must be an integer >= 1; got 0"),
        (lambda: principal_component_pursuit(SPIKES[0]), "`weights` must have shape"),
        (lambda: principal_component_pursuit(SPIKES, tolerance=0.0), "`tolerance` must be a pos"),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
