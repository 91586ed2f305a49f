"""The two inequalities of the numerical routes: laws, hand cases, and an oracle in NumPy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from laws import scales, turns, vmap_is_a_loop
from lowrank_theory import ActivationWeighted, Calibration, Observed, recover
from lowrank_theory._numerics import rounding_allowance
from lowrank_theory.theorems.numerical_route import Perturbed, RouteSetting, numerical_route
from lowrank_theory.verification import Verdict, attack, verify
from statements import drawn, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

STATEMENTS = {"gram": numerical_route.gram, "triangular": numerical_route.triangular}
every_statement = pytest.mark.parametrize("name", STATEMENTS)
SAMPLES, OUTPUTS, RANK = 7, 5, 2
SETTING = RouteSetting(np.array([5.0, 4.0, 2.0, 1.0, 0.5]), SAMPLES, RANK, strength=0.1)


def oracle(name: str, instance: Perturbed) -> tuple[float, float]:
    outputs = np.asarray(instance.outputs)
    rank, count = instance.rank, outputs.shape[1]
    optimum = float(np.linalg.norm(scipy.linalg.svdvals(outputs)[rank:]))
    if name == "gram":
        change = np.asarray(instance.gram_change)
        _, vectors = np.linalg.eigh(outputs.T @ outputs + change)
        values = scipy.linalg.eigvalsh(change)
        pairs = min(rank, count - rank)
        bound = sum(values[count - 1 - i] - values[i] for i in range(pairs))
        kept = vectors[:, count - rank :]
    else:
        change = np.asarray(instance.outputs_change)
        _, _, right = np.linalg.svd(outputs + change)
        kept = right[:rank].T
        bound = math.sqrt(2) * np.linalg.norm(scipy.linalg.svdvals(change)[: 2 * rank])
    error = float(np.linalg.norm(outputs - outputs @ kept @ kept.T))
    return (error**2 - optimum**2 if name == "gram" else error - optimum), float(bound)


@every_statement
@pytest.mark.parametrize("seed", range(4))
def test_both_sides_against_numpy(name, seed):
    instance = drawn(SETTING, seed)
    assert sides(STATEMENTS[name], instance) == approx(oracle(name, instance))
    realised, bound = sides(STATEMENTS[name], instance)
    assert 0 < realised < bound


@every_statement
def test_units_of_the_outputs(name):
    outputs, of_gram, of_outputs = parts(drawn(SETTING))

    def at(unit):
        scaled = Perturbed(unit * outputs, unit**2 * of_gram, unit * of_outputs, RANK)
        with jax.enable_x64(True):
            magnitude = float(STATEMENTS[name].magnitude(scaled))
        return *sides(STATEMENTS[name], scaled), magnitude

    scales(at, 2 if name == "gram" else 1)


def parts(instance: Perturbed) -> list[np.ndarray]:
    names = ("outputs", "gram_change", "outputs_change")
    return [np.asarray(getattr(instance, name)) for name in names]


@every_statement
def test_rotations_change_nothing(name):
    turns(
        lambda one, gram, other: sides(STATEMENTS[name], Perturbed(one, gram, other, RANK)),
        "so,oo,so->",
        *parts(drawn(SETTING, 1)),
    )


def test_a_multiple_of_the_identity_costs_nothing():
    one = drawn(SETTING)
    shifted = np.asarray(one.gram_change) + 3 * np.eye(OUTPUTS)
    moved = Perturbed(one.outputs, shifted, one.outputs_change, RANK)
    assert sides(numerical_route.gram, moved) == approx(sides(numerical_route.gram, one))
    alone = Perturbed(one.outputs, 3 * np.eye(OUTPUTS), one.outputs_change, RANK)
    assert sides(numerical_route.gram, alone) == approx((0, 0), scale=1)


def test_gram_is_attained_by_hand():
    outputs = np.diag([math.sqrt(1.2), 1.0])
    change = np.diag([-0.1, 0.1 + 1e-9])
    instance = Perturbed(outputs, change, np.zeros((2, 2)), 1)
    assert sides(numerical_route.gram, instance) == pytest.approx((0.2, 0.2))


def test_triangular_is_attained_by_hand():
    outputs, change = np.diag([2.0, 0.0]), np.diag([-1.0, 1.0 + 1e-9])
    instance = Perturbed(outputs, np.zeros((2, 2)), change, 1)
    assert sides(numerical_route.triangular, instance) == pytest.approx((2, 2))


def test_many_pairs_attain_both_in_the_operator_norm():
    rank, pairs = 3, np.eye(3)
    outputs = np.diag([2.0] * 3 + [0.0] * 3)
    change = np.kron(np.diag([-1.0, 1.0 + 1e-9]), pairs)
    instance = Perturbed(outputs, 2 * change, change, rank)
    realised, bound = sides(numerical_route.triangular, instance)
    assert (realised, bound) == pytest.approx((2 * math.sqrt(rank),) * 2)
    assert sides(numerical_route.gram, instance) == pytest.approx((12, 12))


def test_only_the_directions_that_can_turn_count():
    """Rank 4 of 5: one pair; rank 5 of 5: none."""
    random = np.random.default_rng(3)
    outputs = random.standard_normal((SAMPLES, OUTPUTS))
    change = random.standard_normal((OUTPUTS, OUTPUTS))
    change = change + change.T
    values = scipy.linalg.eigvalsh(change)
    for rank, expected in ((4, values[-1] - values[0]), (5, 0.0)):
        instance = Perturbed(outputs, change, np.zeros_like(outputs), rank)
        realised, bound = sides(numerical_route.gram, instance)
        assert bound == approx(expected)
        assert realised <= bound + 1e-12
        assert sides(numerical_route.triangular, instance) == approx((0, 0), scale=1)


def test_asymmetric_perturbation_is_no_gram():
    one = drawn(SETTING)
    change = np.asarray(one.gram_change).copy()
    change[0, 1] += 1e-3
    bound = numerical_route.gram.bound(Perturbed(one.outputs, change, one.outputs_change, RANK))
    assert float(bound.value) == math.inf
    with pytest.raises(RuntimeError, match="the perturbation of the Gram is symmetric' does not"):
        jax.block_until_ready(bound.require())
    assert bool(numerical_route.gram.bound(one).holds)


def test_sources_of_perturbation():
    values = np.array([4.0, 4.0, 1.0, 0.5, 0.25])
    quiet = drawn(RouteSetting(values, SAMPLES, RANK))
    outputs = np.asarray(quiet.outputs)
    assert_close(scipy.linalg.svdvals(outputs), values)
    for change in (quiet.gram_change, quiet.outputs_change):
        assert np.abs(np.asarray(change)).max() <= 1e-13
    coarse = drawn(RouteSetting(values, SAMPLES, RANK, bits=8.0))
    relative = np.abs(np.asarray(coarse.outputs_change) / outputs)
    assert 2.0**-10 < relative.max() <= 2.0**-8
    stored = (outputs + np.asarray(coarse.outputs_change)) / 2.0 ** np.frexp(outputs)[1]
    np.testing.assert_array_equal(stored * 2**8, np.round(stored * 2**8))
    aimed = drawn(RouteSetting(values, SAMPLES, RANK, aim=1.0))
    moved = scipy.linalg.svdvals(outputs + np.asarray(aimed.outputs_change))
    assert_close(moved, [2.5, 2.5, 2.25, 2.25, 0.25])
    gram = outputs.T @ outputs + np.asarray(aimed.gram_change)
    expected = [8.5, 8.5, 8.125, 8.125, 0.0625]
    assert_close(scipy.linalg.eigvalsh(gram)[::-1], expected)
    loud = drawn(RouteSetting(values, 200, RANK, strength=0.5))
    assert np.std(np.asarray(loud.outputs_change)) == pytest.approx(0.5 * 4, rel=0.1)
    noise = np.asarray(loud.gram_change)
    assert_close(noise, noise.T)
    assert 0.4 < np.std(noise[np.triu_indices(OUTPUTS, 1)]) / (0.5 * 16) < 1.8


@every_statement
def test_jit_is_eager_and_vmap_is_a_loop(name):
    statement = STATEMENTS[name]
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(3), 3)
        instances = jax.lax.map(lambda key: SETTING.draw(key=key), keys)
    vmap_is_a_loop(lambda i: (statement.realised(i), statement.bound(i).value), instances)


@every_statement
def test_attack_reaches_the_bound(name):
    witness = attack(STATEMENTS[name], key=jax.random.key(1), restarts=3, steps=300)
    assert 0.99 <= witness.ratio <= 1


@every_statement
def test_verification_is_consistent_and_controls_are_caught(name):
    settings = {k: v for k, v in STATEMENTS[name].regimes.items() if "aimed" in k or "random" in k}
    report = verify(STATEMENTS[name], trials=800, key=jax.random.key(0), settings=settings)
    assert report.verdict is Verdict.CONSISTENT
    assert report.statements[0].critical_constant > 0.99


GOOD: dict[str, Any] = {
    "outputs": np.ones((3, 2)),
    "gram_change": np.eye(2),
    "outputs_change": np.ones((3, 2)),
    "rank": 1,
}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"rank": 3}, "`rank` must be an integer from 1 to 2"),
    "vector": ({"outputs": np.ones(3)}, r"`outputs` must have shape \(samples, outputs\)"),
    "integers": ({"outputs": np.ones((3, 2), int)}, "`outputs` must be floating point"),
    "gram": ({"gram_change": np.ones((3, 3))}, r"`gram_change` must have shape \(2, 2\).*\(3, 3\)"),
    "change": (
        {"outputs_change": np.ones((2, 2))},
        r"`outputs_change` must have shape \(3, 2\).*got \(2, 2\)",
    ),
    "NaN": ({"gram_change": np.full((2, 2), np.nan)}, "`gram_change` has 4 non-finite entries"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_instances_are_refused(name):
    change, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        Perturbed(**{**GOOD, **change})


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="`samples` must be an integer >= 3"):
        RouteSetting(np.ones(3), 2, 1)
    with pytest.raises(ValueError, match="`rank` must be an integer from 1 to 3"):
        RouteSetting(np.ones(3), 4, 4)
    with pytest.raises(ValueError, match="must be a `Perturbed`; got ndarray"):
        numerical_route.gram.bound(np.eye(3))
    assert drawn(SETTING).sizes == (SAMPLES, OUTPUTS)
    assert jnp.ndim(drawn(SETTING).outputs) == 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rank", "left"), [(2, False), (2, True), (3, True)])
def test_certificate_of_moments_is_the_bound_at_the_least_optimum(rank, left, seed):
    """Five outputs, so that two pairs can turn; with an optimum of zero, and with one far off."""
    random = np.random.default_rng(seed)
    rows, weights = random.standard_normal((20, 6)), random.standard_normal((6, 5))
    if not left:
        weights = weights[:, :rank] @ random.standard_normal((rank, 5))
    seen = Observed(weights=weights, calibration=Calibration.empty(6).update(rows))
    certificate: Any = recover(seen, rank, ActivationWeighted()).certificate
    change = rounding_allowance(np.sum(rows**2) * np.sum(weights**2), 6, 5)
    optimum = np.linalg.norm(scipy.linalg.svdvals(rows @ weights)[rank:]) ** 2
    least = max(float(optimum) - (rank + 1) * change, 0.0)
    expected = math.sqrt(least + 2 * 2 * change) - math.sqrt(least)
    assert float(certificate.excess_bound) == pytest.approx(expected, rel=1e-9 if not left else 0.1)
