"""What removed weights cost, against NumPy, by hand and by exact sums."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from lowrank_theory.sparsification.masks import largest, largest_traced
from lowrank_theory.theorems._pruned import (
    CoinSetting,
    PrunedSet,
    Sampled,
    SetSetting,
    Thinned,
    ThinnedSetting,
)
from lowrank_theory.theorems.pruning import gaussian_share, pruning
from lowrank_theory.verification.attack import replay
from statements import by_name, drawn, sides
from tolerance import approx

pytestmark = pytest.mark.thinned(4)

STATEMENTS = by_name(pruning)
SHAPE = (4, 3)


# --- sets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_set_against_least_squares(seed):
    pruned = drawn(SetSetting(9, 5, 2, 2, decay=1.0, correlated=2.0), seed)
    rows, moved = np.asarray(pruned.activations), np.asarray(pruned.moved)
    ridge = math.sqrt(0.01 * np.sum(rows**2) / 5)
    stacked = np.concatenate([rows, ridge * np.eye(5)])
    pushed = stacked[:, :2] @ moved
    answers = np.linalg.lstsq(stacked[:, 2:], -pushed)[0]
    cost = float(np.sum((pushed + stacked[:, 2:] @ answers) ** 2))
    assert sides(STATEMENTS["refitted"], pruned) == approx((cost, cost), condition=1e3)
    without = float(np.sum(pushed**2))
    assert sides(STATEMENTS["as_they_are"], pruned) == approx((cost, without), condition=1e3)
    assert cost < without


# --- the largest ----------------------------------------------------------------------------------


def power_tail(values: np.ndarray, kept: int, p: float) -> tuple[float, float]:
    """The tail of sizes, and its bound."""
    sizes = np.sort(np.abs(values))[::-1]
    constant = ((p / 2) ** (p / 2) * (1 - p / 2) ** (1 - p / 2)) ** (1 / p)
    bound = constant * np.sum(sizes**p) ** (1 / p) * kept ** (0.5 - 1 / p)
    return float(np.linalg.norm(sizes[kept:])), float(bound)


entries = st.lists(st.integers(-6, 6), min_size=12, max_size=12)


@given(entries, st.sampled_from([0.5, 1.0, 1.5]))
def test_tails_against_numpy(numbers, exponent):
    weights = np.array(numbers, float).reshape(SHAPE)
    instance = Thinned(weights, 2, exponent=np.asarray(exponent))
    values = np.linalg.svd(weights, compute_uv=False)
    for name, sizes in (("entries", weights.ravel()), ("singular_values", values)):
        expected = power_tail(sizes, 2, exponent)
        # small singular values have large derivatives in the power p
        assert sides(STATEMENTS[name], instance) == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert expected[0] <= expected[1] * (1 + 1e-12)


@given(entries)
def test_patterns_against_numpy(numbers):
    weights = np.array(numbers, float).reshape(SHAPE)
    lost = float(np.sum(np.sort(weights**2, axis=0)[:2]))
    found = sides(STATEMENTS["pattern"], Thinned(weights, 2))
    assert found == approx((lost, 0.5 * float(np.sum(weights**2))), scale=500)


def test_equal_entries_attain_the_constants():
    """For k = 3 of them: 2k / (2 - p) is four, six and twelve."""
    for exponent, count in ((0.5, 4), (1.0, 6), (1.5, 12)):
        weights = np.zeros(12)
        weights[:count] = 2
        instance = Thinned(weights.reshape(SHAPE), 3, exponent=np.asarray(exponent))
        realised, bound = sides(STATEMENTS["entries"], instance)
        assert realised == approx(2 * math.sqrt(count - 3)) == approx(bound)


@given(entries, st.integers(1, 3))
def test_the_largest_of_a_program_are_those_of_numpy(numbers, kept):
    """Ties included."""
    scores = np.abs(np.array(numbers, float).reshape(SHAPE))
    found = largest_traced(jnp.asarray(scores), kept)
    np.testing.assert_array_equal(found, largest(scores, kept))


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (1, 4), (1, 2)])
def test_the_share_of_gaussian_weights(kept, group):
    def integrand(x: float) -> float:
        above = 2 * stats.norm.sf(x)
        return float(2 * x**2 * stats.norm.pdf(x) * stats.binom.sf(kept - 1, group - 1, above))

    expected = integrate.quad(integrand, 0, 12)[0]
    with jax.enable_x64(True):
        assert float(gaussian_share(kept, group)) == pytest.approx(expected, rel=1e-6)
    if (kept, group) == (2, 4):
        assert expected == pytest.approx(0.1324, abs=5e-5)
        median = stats.norm.ppf(0.75)
        free = integrate.quad(lambda x: 2 * x**2 * stats.norm.pdf(x), 0, median)[0]
        assert free == pytest.approx(0.0713, abs=5e-5)
        assert expected / free == pytest.approx(1.86, abs=0.01)


# --- coins ----------------------------------------------------------------------------------------


def test_the_variance_is_that_of_all_coins():
    """All 64 outcomes of six coins, each with its probability."""
    random = np.random.default_rng(0)
    weights, rows = random.standard_normal((3, 2)), random.standard_normal((5, 3))
    chances = random.uniform(0.2, 1, (3, 2))
    mean, total, lost = 0.0, 0.0, 0.0
    coins = np.ones((3, 2))
    for outcome in itertools.product((0, 1), repeat=6):
        kept = np.array(outcome).reshape(3, 2)
        chance = float(np.prod(np.where(kept, chances, 1 - chances)))
        coins = np.where(kept, 0.0, 1.0)
        lost = float(np.sum((rows @ (weights - kept * weights / chances)) ** 2))
        mean, total = mean + chance * lost, total + chance
    sampled = Sampled(weights, rows, chances, coins, independent=True)
    assert total == approx(1)
    realised, bound = sides(STATEMENTS["unbiased"], sampled)
    assert (realised, bound) == approx((lost, mean), condition=10)
    costs = np.abs(weights) * np.linalg.norm(rows, axis=0)[:, None]
    least = np.sum(costs) ** 2 / np.sum(chances) - np.sum(costs**2)
    assert sides(STATEMENTS["least_variance"], sampled) == approx((mean, float(least)), scale=50)
    by_cost = 0.9 * costs / np.max(costs)
    realised, bound = sides(STATEMENTS["least_variance"], Sampled(weights, rows, by_cost, coins))
    assert realised == approx(bound, condition=10)


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, s in STATEMENTS.items() if s.adversary])
def test_the_adversary_plays_inside_the_hypotheses(name):
    statement: Any = STATEMENTS[name]
    with jax.enable_x64(True):
        free = jax.tree.map(np.asarray, statement.adversary.start(key=jax.random.key(1)))
    assert 0 < replay(statement, free) <= 1


def test_what_is_trusted_is_not_assumed():
    weights = np.arange(1.0, 13).reshape(SHAPE)
    found = sides(STATEMENTS["gaussian_pattern"], Thinned(weights, 2, scale=np.asarray(1.0)))
    assert found[1] == math.inf
    coins = Sampled(np.ones((3, 2)), np.ones((5, 3)), np.full((3, 2), 0.5), np.zeros((3, 2)))
    assert sides(STATEMENTS["unbiased"], coins)[1] == math.inf
    assert sides(STATEMENTS["pattern"], Thinned(weights, 4))[1] == math.inf
    assert sides(STATEMENTS["entries"], Thinned(weights, 2, exponent=np.asarray(2.0)))[1] == (
        math.inf
    )


def test_settings_draw_what_they_say():
    equal = drawn(ThinnedSetting(4, 3, 2, equal=3))
    assert np.sum(np.asarray(equal.weights)) == 3 and not bool(equal.gaussian)
    spectral = drawn(ThinnedSetting(4, 3, 2, equal=2, spectral=True))
    np.testing.assert_array_equal(np.asarray(spectral.weights), np.eye(4, 3) * [1, 1, 0])
    coins = drawn(CoinSetting(5, 3, 2))
    chances = np.asarray(coins.probabilities)
    assert chances.min() > 0 and chances.max() <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrunedSet(np.eye(3), np.eye(3)), "`moved` must leave an input of 3; got 3"),
        (lambda: SetSetting(5, 3, 2, 3), "`removed` must be an integer from 1 to 2 .so that an"),
        (lambda: SetSetting(0, 3, 2, 1), "`samples` must be an integer >= 1; got 0"),
        (lambda: ThinnedSetting(3, 2, 7), "`kept` must be an integer from 1 to 6; got 7"),
        (lambda: CoinSetting(5, 3, 0), "`outputs` must be an integer >= 1; got 0"),
        (lambda: Thinned(np.eye(3), 10), "`kept` must be an integer from 1 to 9; got 10"),
        (
            lambda: Sampled(np.eye(3), np.eye(3), np.zeros((3, 3)), np.eye(3)),
            "`probabilities` must be above 0 and at most 1; got 0 to 0",
        ),
        (
            lambda: Sampled(np.eye(3), np.eye(3), np.ones((3, 3)), np.eye(2)),
            r"`coins` must be \(3, 3\); got \(2, 2\)",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
