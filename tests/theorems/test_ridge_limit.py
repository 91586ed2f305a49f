"""What a ridge costs: laws, exact cases, and the sure bounds against slow NumPy."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest

from laws import scales, turns
from lowrank_theory.problems import Layer, Observed
from lowrank_theory.theorems.ridge_limit import RidgedLayer, RidgedSetting, ridge_limit
from lowrank_theory.verification import verify
from lowrank_theory.verification.attack import attack
from statements import by_name, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

STATEMENTS = by_name(ridge_limit)
every_statement = pytest.mark.parametrize("name", STATEMENTS)
SETTING = RidgedSetting(16, 6, 2, np.ones(8), np.linspace(2, 1, 6), 0.5)
UNITS = {"weights": (1, 0), "data_loss": (2, 2), "trade": (2, 2)}  # of weights, of activations


def drawn(strength: float = 0.5, seed: int = 0) -> RidgedLayer:
    setting = dataclasses.replace(SETTING, strength=np.asarray(strength))
    return setting.draw(key=jax.random.key(seed))


def stated(activations: Any, weights: Any, penalty: float, rank: int) -> RidgedLayer:
    observed = Observed(activations=np.asarray(activations), weights=np.asarray(weights))
    return RidgedLayer(Layer(observed, rank), np.asarray(penalty))


def parts(instance: RidgedLayer) -> tuple[np.ndarray, np.ndarray, float, int]:
    observed, rank = instance.observed, instance.layer.rank
    arrays = (np.asarray(observed.activations), np.asarray(observed.weights))
    return (*arrays, float(np.asarray(instance.penalty)), rank)


def by_hand(instance: RidgedLayer) -> dict[str, tuple[float, float]]:
    """Realised quantities and bounds, in NumPy from their definitions."""
    seen, weights, mu, rank = parts(instance)
    gram = seen.T @ seen

    def recovered(penalty: float) -> np.ndarray:
        moment = weights.T @ (gram + penalty * np.eye(len(gram))) @ weights
        _, vectors = np.linalg.eigh(moment)
        top = vectors[:, ::-1][:, :rank]
        return weights @ top @ top.T

    pulled, plain = recovered(mu), recovered(0.0)
    eigenvalues = np.sort(np.linalg.eigvalsh(weights.T @ gram @ weights))[::-1]
    gap = eigenvalues[rank - 1] - eigenvalues[rank]
    values = np.linalg.svd(weights, compute_uv=False)
    spread = mu * (values[0] ** 2 - values[-1] ** 2)
    angle = math.asin(spread / gap) / 2 if spread < gap else None
    excess = np.sum((seen @ (weights - pulled)) ** 2) - np.sum((seen @ (weights - plain)) ** 2)
    least = min(rank, weights.shape[1] - rank)
    traded = np.sum((weights - plain) ** 2) - np.sum((weights - pulled) ** 2)
    return {
        "weights": (
            float(np.linalg.norm(pulled - plain, 2)),
            values[0] * (1 if angle is None else math.sin(angle)),
        ),
        "data_loss": (
            excess,
            least * spread * (1 if angle is None else math.tan(angle) / 2),
        ),
        "trade": (excess, mu * traded),
    }


@every_statement
@pytest.mark.parametrize("strength", [0.01, 0.5, 0.99, 3.0])
def test_both_sides_are_what_they_say(name, strength):
    instance = drawn(strength)
    found, wanted = sides(STATEMENTS[name], instance), by_hand(instance)[name]
    assert_close(found, wanted, condition=100, scale=1)


@every_statement
def test_both_sides_scale_with_the_units(name):
    seen, weights, mu, rank = parts(drawn())

    def both(seen, weights, mu):
        return sides(STATEMENTS[name], stated(seen, weights, mu, rank))

    of_weights, of_activations = UNITS[name]
    scales(lambda unit: both(seen, unit * weights, mu), of_weights, condition=100)
    scales(lambda unit: both(unit * seen, weights, unit**2 * mu), of_activations, condition=100)


@every_statement
def test_both_sides_do_not_depend_on_the_basis(name):
    seen, weights, mu, rank = parts(drawn())
    turns(
        lambda seen, weights: np.array(sides(STATEMENTS[name], stated(seen, weights, mu, rank))),
        "si,io->",
        seen,
        weights,
        condition=10,
        scale=1,
    )


def test_a_quarter_turn_by_hand():
    """The gap is 4 - 1 = 3, and the ridge spreads over 9 mu - mu = 8 mu; x = 8 mu / 3."""
    weights, seen = np.diag([1.0, 3.0]), np.diag([2.0, 1 / 3])
    before, after = (stated(seen, weights, mu, 1) for mu in (0.374, 0.376))
    angle = math.asin(8 * 0.374 / 3) / 2
    assert sides(ridge_limit.weights, before) == approx((0, 3 * math.sin(angle)))
    assert sides(ridge_limit.weights, after) == approx((3, 3))
    assert sides(ridge_limit.data_loss, before)[0] == approx(0)
    assert sides(ridge_limit.data_loss, after) == approx((3, 8 * 0.376))
    assert sides(ridge_limit.trade, after) == approx((3, 8 * 0.376))


def test_at_a_ratio_of_one_the_trivial_bound_holds():
    """The gap is 4 - 9/16 = 55/16, the spread 8 mu; both are exact in binary."""
    instance = stated(np.diag([2.0, 1 / 4]), np.diag([1.0, 3.0]), 55 / 128, 1)
    assert sides(ridge_limit.data_loss, instance)[1] == approx(55 / 16)


@pytest.mark.parametrize("name", ["data_loss", "trade"])
def test_a_faint_penalty_is_rounded_as_the_outputs_are(name):
    instance = stated(np.diag([2.0, 1 / 4]), np.diag([1.0, 3.0]), 1e-12, 1)
    with jax.enable_x64(True):
        magnitude = float(STATEMENTS[name].magnitude(instance))
    assert magnitude == approx((1 + 9) * (4 + 1 / 16), condition=1e3)


def test_the_older_forms_are_weaker():
    for strength in (0.01, 0.3, 0.9, 1.0, 1.3, 5.0):
        instance = drawn(strength)
        weights = parts(instance)[1]
        norm = np.linalg.norm(weights, 2)
        assert sides(ridge_limit.weights, instance)[1] <= strength * norm * (1 + 1e-9)
        if strength <= 1:
            assert sides(ridge_limit.weights, instance)[1] <= strength * norm / math.sqrt(2) * (
                1 + 1e-9
            )


def test_isometric_weights_are_not_moved():
    instance = stated(np.diag([3.0, 2.0, 1.0]), np.eye(3), 100.0, 2)
    for name in STATEMENTS:
        assert sides(STATEMENTS[name], instance) == approx((0, 0))


def test_nothing_moves_at_full_rank():
    seen, weights, mu, _ = parts(drawn())
    instance = stated(seen, weights, mu, 6)
    assert sides(ridge_limit.weights, instance)[0] == approx(0, scale=1)
    assert sides(ridge_limit.data_loss, instance) == approx((0, 0), scale=1)


def test_without_a_gap_the_bounds_are_the_trivial_ones():
    instance = stated(np.eye(3), np.diag([2.0, 2.0, 1.0]), 0.1, 1)
    assert sides(ridge_limit.weights, instance)[1] == approx(2)
    assert sides(ridge_limit.data_loss, instance)[1] == approx(0.1 * 3)


@every_statement
def test_other_activations_and_biases_are_outside(name):
    seen, weights, mu, rank = parts(drawn())
    given: dict[str, dict[str, Any]] = {
        "always did": {"compressed_activations": seen + 1},
        "has no bias": {"bias": np.ones(6)},
    }
    for words, extra in given.items():
        observed = Observed(activations=seen, weights=weights, **extra)
        bound = STATEMENTS[name].bound(RidgedLayer(Layer(observed, rank), np.asarray(mu)))
        failing = [h.name for h in bound.hypotheses if not bool(h.holds)]
        assert len(failing) == 1
        assert words in failing[0]
        assert float(bound.value) == math.inf
        with pytest.raises(RuntimeError, match="does not hold"):
            jax.block_until_ready(bound.require())


@every_statement
def test_a_reward_in_place_of_a_penalty_is_outside(name):
    bound = STATEMENTS[name].bound(RidgedLayer(drawn().layer, np.asarray(-1e-3)))
    assert [h.name for h in bound.hypotheses if not h.holds] == ["the penalty is not negative"]
    assert float(bound.value) == math.inf


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="`instance` must be a `RidgedLayer`; got Layer"):
        ridge_limit.weights.bound(drawn().layer)
    rows_missing = RidgedLayer(Layer(Observed(weights=np.eye(3)), 1), np.asarray(1.0))
    with pytest.raises(ValueError, match=r"give `Observed\(activations=...\)`"):
        ridge_limit.weights.bound(rows_missing)
    weights_missing = Observed(activations=np.eye(3), outputs=np.eye(3))
    with pytest.raises(ValueError, match=r"give `Observed\(weights=...\)`"):
        ridge_limit.weights.bound(RidgedLayer(Layer(weights_missing, 1), np.asarray(1.0)))
    with pytest.raises(ValueError, match="`rank` must be"):
        dataclasses.replace(SETTING, rank=7)


@every_statement
def test_sampling_and_attack_agree_with_the_theorem(name):
    statement = STATEMENTS[name]
    regimes = {key: statement.regimes[key] for key in ("weak ridge", "beyond the gap")}
    report = verify(statement, trials=60, key=jax.random.key(0), settings=regimes)
    assert report.verdict.value == "consistent"
    witness = attack(statement, key=jax.random.key(0), restarts=4, steps=400)
    assert 0.99 <= witness.ratio <= 1
