"""Certificates from held-out losses: exact coverage, laws, and slow oracles in NumPy and SciPy."""

import dataclasses
import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from laws import scales
from lowrank_theory import Setting, Verdict, verify
from lowrank_theory.theorems import Standing
from lowrank_theory.theorems.held_out_certificate import (
    HeldOut,
    certificate,
    held_out_certificate,
    moment_certificate,
    order_free_capital,
    stakes,
)
from statements import by_name
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(5)

STATEMENTS = by_name(held_out_certificate)
every_statement = pytest.mark.parametrize("name", STATEMENTS)
LOSSES = np.random.default_rng(0).beta(1, 4, 30)
COIN = (LOSSES > 0.2).astype(float)
DELTA = 0.05


def held_out(losses: Any, range_bound: float = 1.0, moment_ratio: float = 3.0) -> HeldOut:
    return HeldOut.stated(losses, range_bound=range_bound, moment_ratio=moment_ratio)


def fitting(name: str) -> np.ndarray:
    return COIN if name == "clopper_pearson" else LOSSES


def value(name: str, instance: HeldOut, failure_probability: float = DELTA) -> float:
    return float(STATEMENTS[name].bound(instance, failure_probability=failure_probability).value)


# --- laws ----------------------------------------------------------------------------------------


@every_statement
def test_verification_is_consistent(name):
    report = verify(STATEMENTS[name], trials=800, key=jax.random.key(0))
    assert report.verdict is Verdict.CONSISTENT


@every_statement
@pytest.mark.parametrize("atoms", [(0.0, 1.0), (0.1, 0.7, 1.0)])
def test_coverage_is_exact_over_all_samples(name, atoms):
    """Every sample of a law on few atoms, with its probability: no sampling error."""
    if name == "clopper_pearson" and len(atoms) == 3:
        pytest.skip("It speaks of two values only.")
    units, values = 10 if len(atoms) == 2 else 6, np.array(atoms)
    choices = np.array(list(itertools.product(range(len(atoms)), repeat=units)))
    with jax.enable_x64(True):
        samples = jnp.asarray(values[choices])
        shares = np.random.default_rng(1).dirichlet([0.6] * len(atoms), 15)
        for probabilities in shares:
            mean, square = probabilities @ values, probabilities @ values**2
            known = jnp.asarray(True)
            one, ratio = jnp.ones(()), jnp.asarray(square / mean**2)
            law = HeldOut(samples[0], one, ratio, known, jnp.asarray(mean))
            limits = np.asarray(_limits(STATEMENTS[name], law, samples))
            weights = np.prod(probabilities[choices], axis=1)
            assert weights.sum() == approx(1)
            assert weights[limits < mean - 1e-12].sum() <= DELTA


@eqx.filter_jit
def _limits(statement: Any, law: HeldOut, samples: jax.Array) -> jax.Array:
    return jax.vmap(lambda losses: statement.limit(law, losses))(samples)


@every_statement
def test_certificate_scales_with_the_units_of_the_losses(name):
    losses = fitting(name)
    scales(lambda unit: value(name, held_out(unit * losses, range_bound=unit)))


@every_statement
def test_order_matters_to_betting_alone(name):
    losses = fitting(name)
    backwards = value(name, held_out(np.sort(losses)[::-1].copy()))
    forwards = value(name, held_out(np.sort(losses)))
    if name == "betting":
        assert backwards != pytest.approx(forwards, rel=1e-3)
    elif name == "order_free":
        assert backwards == forwards == value(name, held_out(losses))
    else:
        assert backwards == approx(forwards)


@every_statement
def test_less_risk_and_fewer_units_cost_more(name):
    losses = fitting(name)
    limits = [value(name, held_out(losses), d) for d in (0.3, 0.05, 0.001)]
    assert losses.mean() < limits[0] < limits[1] < limits[2]
    assert value(name, held_out(np.tile(losses, 4))) < limits[1]


@pytest.mark.parametrize(
    "name", ["hoeffding", "betting", "order_free", "moment_ratio", "clopper_pearson"]
)
def test_larger_losses_never_lower_the_certificate(name):
    losses = fitting(name)
    larger = losses.copy()
    larger[-1] = 1.0  # the last one: no later stake depends on it
    assert value(name, held_out(larger)) >= value(name, held_out(losses))


@every_statement
def test_jit_and_vmap_change_nothing(name):
    statement, losses = STATEMENTS[name], fitting(name)
    law = held_out(losses)
    rolled = np.stack([np.roll(losses, shift) for shift in range(3)])
    with jax.enable_x64(True):
        lanes = _limits(statement, law, jnp.asarray(rolled))
        with jax.disable_jit():
            eager = statement.limit(law, jnp.asarray(losses))
    one_by_one = [value(name, held_out(row)) for row in rolled]
    assert_close(np.asarray(lanes), one_by_one)
    assert float(np.asarray(eager)) == approx(one_by_one[0])


@every_statement
def test_statement_is_about_the_mean_and_breaks_for_the_largest_loss(name):
    statement = STATEMENTS[name]
    instance = statement.control.draw(key=jax.random.key(0))
    assert float(statement.realised(instance)) == float(np.asarray(instance.mean))
    with jax.enable_x64(True):
        wrong = statement.loss(instance, statement.broken_estimate(instance))
        assert float(wrong) == float(np.asarray(instance.losses).max())
        assert 0 < float(statement.magnitude(instance)) <= 2
    assert float(wrong) > value(name, instance)


VIOLATIONS = {
    "independent draws": ("hoeffding", {"independent": np.asarray(False)}),
    "no loss exceeds": ("betting", {"losses": np.array([0.1, 1.0 + 1e-12])}),
    "no loss exceeds the range": ("empirical_bernstein", {"range_bound": np.asarray(np.inf)}),
    "zero or the range bound": ("clopper_pearson", {"losses": np.array([0.0, 0.5, 1.0])}),
    "the moment ratio times": ("moment_ratio", {"moment_ratio": np.asarray(np.inf)}),
    "second moment of a loss": ("moment_ratio", {"moment_ratio": np.asarray(0.9)}),
}


@pytest.mark.parametrize("hypothesis", VIOLATIONS)
def test_outside_its_hypotheses_the_certificate_is_infinite_and_require_says_why(hypothesis):
    name, changes = VIOLATIONS[hypothesis]
    instance = dataclasses.replace(held_out(fitting(name)), **changes)
    bound = STATEMENTS[name].bound(instance)
    failing = [h.name for h in bound.hypotheses if not bool(h.holds)]
    assert len(failing) == 1
    assert hypothesis in failing[0]
    assert float(bound.value) == math.inf
    with pytest.raises(RuntimeError, match=f"{failing[0]}' does not hold"):
        jax.block_until_ready(bound.require())


def test_what_data_can_contradict_is_told_from_what_must_be_trusted():
    standings = {
        name: [h.standing for h in statement.bound(held_out(fitting(name))).hypotheses]
        for name, statement in STATEMENTS.items()
    }
    trusted, refutable = Standing.TRUSTED, Standing.REFUTABLE
    assert standings == {
        "hoeffding": [trusted, refutable],
        "empirical_bernstein": [trusted, refutable],
        "betting": [trusted, refutable],
        "order_free": [trusted, refutable],
        "clopper_pearson": [trusted, refutable, refutable],
        "moment_ratio": [trusted, trusted, refutable],
    }


def test_another_instance_is_refused():
    problem = Setting(samples=20, inputs=8, outputs=6, rank=2).draw(key=jax.random.key(0))
    with pytest.raises(ValueError, match="must be a `HeldOut`; got Problem"):
        held_out_certificate.betting.bound(problem)


# --- values by hand and by oracle ----------------------------------------------------------------


def test_hoeffding_by_hand():
    expected = LOSSES.mean() + 2 * math.sqrt(math.log(20) / 60)
    assert value("hoeffding", held_out(LOSSES, 2.0)) == approx(expected)


@pytest.mark.parametrize("units", [2, 3, 8, 29])
def test_empirical_bernstein_by_hand_and_below_its_published_form(units):
    losses, largest, level = LOSSES[:units], 1.5, math.log(2 / DELTA)
    deviation = math.sqrt(np.sum((losses - losses.mean()) ** 2) / (units - 1))
    pairs = units // 2
    unseen = largest * math.sqrt(level / (4 * pairs))
    upper = math.hypot(deviation, unseen) + unseen
    expected = losses.mean() + math.sqrt(2 * level / units) * upper + largest * level / (3 * units)
    limit = value("empirical_bernstein", held_out(losses, largest))
    assert limit == approx(expected)
    published = (
        losses.mean()
        + deviation * math.sqrt(2 * level / units)
        + 7 * largest * level / (3 * (units - 1))
    )
    assert limit <= published


def bets(shares: np.ndarray, failure_probability: float) -> np.ndarray:
    """The stakes, one after another, from what was seen before."""
    chosen, seen, spread = [], 0.5, 0.25
    for number, share in enumerate(shares, start=1):
        mean, variance = seen / number, spread / number
        wanted = math.sqrt(2 * math.log(1 / failure_probability) / (len(shares) * variance))
        chosen.append(min(0.9, (1 - mean) * wanted))
        seen += share
        spread += (share - seen / (number + 1)) ** 2
    return np.array(chosen)


@pytest.mark.parametrize(
    "losses", [LOSSES, COIN, np.full(9, 0.3), np.zeros(40), np.linspace(0, 1, 500)]
)
def test_betting_by_its_definition(losses):
    largest = 2.5
    shares = losses / largest
    stake = bets(shares, DELTA)

    def excess(mean: float) -> float:
        gains = 1 + stake * ((1 - shares) / (1 - mean) - 1)
        return float(np.max(np.cumsum(np.log(gains)))) + math.log(DELTA)

    expected = largest * float(optimize.brentq(excess, 1e-9, 1 - 1e-9, xtol=1e-14))  # pyright: ignore[reportArgumentType]
    limit = value("betting", held_out(losses, largest))
    assert limit == approx(expected)
    assert limit < largest
    with jax.enable_x64(True):
        assert_close(np.asarray(stakes(jnp.asarray(shares), DELTA)), stake)


def test_stakes_depend_on_earlier_losses_only():
    with jax.enable_x64(True):
        before = np.asarray(stakes(jnp.asarray(LOSSES), DELTA))
        for unit in (0, 7, 29):
            changed = LOSSES.copy()
            changed[unit:] = 1 - changed[unit:]
            after = np.asarray(stakes(jnp.asarray(changed), DELTA))
            np.testing.assert_array_equal(after[: unit + 1], before[: unit + 1])
            assert unit == 29 or (after[unit + 1 :] != before[unit + 1 :]).any()
    assert np.all((before > 0) & (before <= 0.9))


@pytest.mark.parametrize("name", ["betting", "order_free"])
def test_a_bet_certifies_the_range_where_every_loss_is_there(name):
    assert value(name, held_out(np.full(20, 3.0), 3.0)) == 3.0


def test_betting_near_the_exact_limit_of_no_loss():
    """Stakes of one would give the exact 1 - delta^(1/n); stakes of 0.9 cost a ninth more."""
    exact = 1 - DELTA ** (1 / 1000)
    assert exact < value("betting", held_out(np.zeros(1000))) < 1.2 * exact


def capitals(samples: np.ndarray, means: Any, failure_probability: float = DELTA) -> np.ndarray:
    """Of every sample, (samples, units), at its mean or at one mean for all."""
    with jax.enable_x64(True):
        means = jnp.broadcast_to(jnp.asarray(means, float), len(samples))
        return np.exp(np.asarray(_log_capitals(jnp.asarray(samples), means, failure_probability)))


@jax.jit
def _log_capitals(samples: jax.Array, means: jax.Array, failure_probability: Any) -> jax.Array:
    return jax.vmap(order_free_capital, in_axes=(0, 0, None))(samples, means, failure_probability)


@pytest.mark.parametrize("losses", [LOSSES, COIN, np.full(9, 0.3), np.linspace(0, 1, 500)])
def test_order_free_by_its_definition(losses):
    largest, goal = 2.5, math.log(1 / DELTA)
    shares = losses / largest

    def excess(mean: float) -> float:
        timid = (1 - mean) * math.sqrt(2 * goal / losses.size) / math.sqrt(mean * (1 - mean))
        capital = [
            np.prod(1 - stake + stake * (1 - shares) / (1 - mean))
            for stake in (min(1, timid), min(1, 3 * timid))
        ]
        return float(2 * capital[0] + capital[1]) / 3 - 1 / DELTA

    expected = largest * float(optimize.brentq(excess, 1e-9, 0.9, xtol=1e-14))  # pyright: ignore[reportArgumentType]
    assert value("order_free", held_out(losses, largest)) == approx(expected)


def test_order_free_of_zeros_is_the_least_that_any_certificate_can_say():
    for units in (3, 30, 1000):
        exact = 1 - DELTA ** (1 / units)
        assert value("order_free", held_out(np.zeros(units))) == approx(exact)


def test_the_capital_rises_with_the_mean_and_falls_with_every_loss():
    means = np.linspace(0.001, 0.999, 400)
    for losses in (LOSSES, COIN):
        grown = capitals(np.tile(losses, (400, 1)), means)
        assert np.all(np.diff(grown) >= 0)
        raised = np.minimum(losses + 0.1 * np.eye(losses.size), 1)
        assert np.all(capitals(raised, 0.5) <= capitals(np.tile(losses, (30, 1)), 0.5))


def paths() -> tuple[np.ndarray, np.ndarray]:
    """All sequences of 8 losses of mean 0.3 whose law depends on the one before, with their
    probabilities: after a loss above the mean it is 0 or 1, and otherwise 0.2 or 0.5.
    """
    choices = np.array(list(itertools.product((False, True), repeat=8)))
    losses, probabilities = np.zeros(choices.shape), np.ones(len(choices))
    wild = np.ones(len(choices), bool)
    for unit, high in enumerate(choices.T):
        losses[:, unit] = np.where(wild, np.where(high, 1.0, 0.0), np.where(high, 0.5, 0.2))
        chance = np.where(wild, 0.3, 1 / 3)
        probabilities *= np.where(high, chance, 1 - chance)
        wild = losses[:, unit] > 0.3
    return losses, probabilities


@pytest.mark.parametrize("failure_probability", [0.01, 0.05, 0.3])
def test_the_capital_at_the_mean_is_one_on_average_where_the_mean_is_known_in_advance(
    failure_probability,
):
    losses, probabilities = paths()
    assert probabilities.sum() == pytest.approx(1)
    capital = capitals(losses, 0.3, failure_probability)
    assert probabilities @ capital == pytest.approx(1)
    with jax.enable_x64(True):
        statement = held_out_certificate.order_free.at(failure_probability)
        limits = np.asarray(_limits(statement, held_out(losses[0]), jnp.asarray(losses)))
    assert probabilities[limits < 0.3 - 1e-12].sum() <= failure_probability


@pytest.mark.parametrize(("descending", "at_least"), [(True, 18_000), (False, 1e12)])
def test_a_bet_on_losses_in_the_order_of_their_size_wins_though_nothing_is_to_be_won(
    descending, at_least
):
    """200 fair coins: the final capital, which should be one on average, and that of `order_free`,
    which is.
    """
    heads = np.arange(201)
    coins = (np.arange(200) < heads[:, None]).astype(float)
    chances = stats.binom.pmf(heads, 200, 0.5)
    assert chances @ capitals(coins, 0.5) == pytest.approx(1)
    with jax.enable_x64(True):
        ordered = jnp.asarray(coins if descending else coins[:, ::-1])
        stake = jax.vmap(lambda shares: stakes(shares, DELTA))(ordered)
        final = np.exp(np.asarray(jnp.sum(jnp.log1p(stake * (1 - 2 * ordered)), axis=1)))
    assert chances @ final > at_least


@pytest.mark.parametrize("failures", [0, 1, 7, 29, 30])
def test_clopper_pearson_against_scipy(failures):
    losses = np.where(np.arange(30) < failures, 2.0, 0.0)
    exact = stats.beta.ppf(1 - DELTA, failures + 1, 30 - failures) if failures < 30 else 1.0
    assert value("clopper_pearson", held_out(losses, 2.0)) == approx(2 * exact, condition=10)


def test_clopper_pearson_of_no_loss():
    limit = value("clopper_pearson", held_out(np.zeros(50)), 0.01)
    assert limit == approx(1 - 0.01 ** (1 / 50))


@pytest.mark.parametrize("ratio", [1.2, 3.0, 9.0])
def test_moment_ratio_by_its_equation(ratio):
    level = math.log(1 / DELTA) / 30

    def divergence(share: float) -> float:
        hit, rate = share / ratio, 1 / ratio
        return hit * math.log(hit / rate) + (1 - hit) * math.log((1 - hit) / (1 - rate)) - level

    share = float(optimize.brentq(divergence, 1e-12, 1 - 1e-12, xtol=1e-15))  # pyright: ignore[reportArgumentType]
    limit = value("moment_ratio", held_out(LOSSES, moment_ratio=ratio))
    assert limit == approx(LOSSES.mean() / share)
    # The exponential form of the same inequality.
    assert share >= 1 - math.sqrt(2 * ratio * level)


def test_moment_ratio_at_its_ends():
    constant = np.full(5, 0.7)
    assert value("moment_ratio", held_out(constant, moment_ratio=1.0)) == approx(0.7)
    # n ln(k/(k-1)) must exceed ln(1/delta) = 2.9957; with 30 units, k = 10.52.
    assert value("moment_ratio", held_out(LOSSES, moment_ratio=10.5)) < math.inf
    assert value("moment_ratio", held_out(LOSSES, moment_ratio=10.6)) == math.inf
    assert value("moment_ratio", held_out(np.zeros(30))) == 0.0


# --- the door ------------------------------------------------------------------------------------


def test_certificate_is_the_one_that_is_free_of_order():
    bound = certificate(LOSSES, 1.0, DELTA)
    assert float(bound.value) == value("order_free", held_out(LOSSES))
    assert float(bound.require()) == float(bound.value)
    assert float(moment_certificate(LOSSES, 3.0, DELTA).value) == (
        value("moment_ratio", held_out(LOSSES))
    )


def test_float32_losses_are_taken():
    losses = LOSSES.astype(np.float32)
    assert float(certificate(jnp.asarray(losses), 1.0, DELTA).value) == pytest.approx(
        float(certificate(LOSSES, 1.0, DELTA).value), rel=1e-6
    )


def test_loss_above_the_range_contradicts_it():
    bound = certificate([0.1, 0.2, 1.1], 1.0, DELTA)
    assert float(bound.value) == math.inf
    with pytest.raises(RuntimeError, match="no loss exceeds the range bound' does not hold"):
        jax.block_until_ready(bound.require())


@pytest.mark.parametrize(
    ("losses", "range_bound", "failure_probability", "message"),
    [
        ([0.1, math.nan], 1.0, 0.05, "`losses` has 1 non-finite entries"),
        ([0.1, math.inf], 1.0, 0.05, "`losses` has 1 non-finite entries"),
        ([0.1, -0.2], 1.0, 0.05, "`losses` must not be negative; got -0.2"),
        ([0.1], 1.0, 0.05, "`losses` must have at least two units; got 1"),
        (np.zeros((2, 2)), 1.0, 0.05, r"`losses` must have shape \(units\)"),
        ([1, 0], 1.0, 0.05, "`losses` must be floating point"),
        ([0.1, 0.2], 0.0, 0.05, "`range_bound` must be a positive finite number"),
        ([0.1, 0.2], math.inf, 0.05, "`range_bound` must be a positive finite number"),
        ([0.1, 0.2], 1.0, 0.0, "`failure_probability` must lie strictly between"),
        ([0.1, 0.2], 1.0, 1.0, "`failure_probability` must lie strictly between"),
    ],
)
def test_certificate_refuses_what_it_cannot_use(losses, range_bound, failure_probability, message):
    with pytest.raises(ValueError, match=message):
        certificate(losses, range_bound, failure_probability)


@pytest.mark.parametrize(
    ("ratio", "message"),
    [(0.5, "`moment_ratio` must be at least 1"), (math.inf, "positive finite"), (-1.0, "positive")],
)
def test_moment_certificate_refuses_what_no_law_has(ratio, message):
    with pytest.raises(ValueError, match=message):
        moment_certificate([0.1, 0.2], ratio, DELTA)


def test_stated_refuses_a_range_that_is_no_number():
    with pytest.raises(ValueError, match="`range_bound` must be a positive"):
        HeldOut.stated([0.1, 0.2], range_bound=math.nan)
