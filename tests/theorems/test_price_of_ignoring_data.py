"""Truncation in the wrong metric: factors against an oracle, where they are attained, and laws."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from laws import scales, turns
from lowrank_theory.generators import activations, noise, targets
from lowrank_theory.problems import Layer, Observed, Setting
from lowrank_theory.recovery import ActivationWeighted, TruncatedSVD, recover
from lowrank_theory.theorems.price_of_ignoring_data import (
    distortion,
    price_bound,
    price_of_ignoring_data,
)
from lowrank_theory.verification import Verdict, attack, verify
from oracle import tail, truncated
from statements import by_name, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(5)

STATEMENTS = by_name(price_of_ignoring_data)
METRICS = [name for name in STATEMENTS if name != "weight_tail"]
every_statement = pytest.mark.parametrize("name", STATEMENTS)
every_metric = pytest.mark.parametrize("name", METRICS)
SAMPLES, INPUTS, OUTPUTS, RANK = 20, 5, 4, 2


def rows_and_weights(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((SAMPLES, INPUTS)) * [3.0, 2.0, 1.0, 0.5, 0.2]
    return rows, random.standard_normal((INPUTS, OUTPUTS))


def layer(seed: int = 0, rank: int = RANK) -> Layer:
    rows, weights = rows_and_weights(seed)
    return Layer(Observed(weights=weights, activations=rows), rank)


def metric_of(name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A square root of the metric, and the rows on which it is judged."""
    if name == "channel_scaling":
        return np.diag(np.sqrt(np.sum(rows**2, axis=0))), rows
    if name == "covariance_weighting":
        return rows.T @ rows, rows
    if name == "stale_calibration":
        half = len(rows) // 2
        return np.real(scipy.linalg.sqrtm(rows[:half].T @ rows[:half])), rows[half:]
    return np.eye(rows.shape[1]), rows


@every_statement
@pytest.mark.parametrize("seed", range(3))
def test_both_sides_against_numpy(name, seed):
    """With square roots and inverses, of which the library uses neither."""
    rows, weights = rows_and_weights(seed)
    metric, judged = metric_of(name, rows)
    inverse = np.linalg.inv(metric)
    realised = np.linalg.norm(judged @ (weights - inverse @ truncated(metric @ weights, RANK)))
    if name == "weight_tail":
        bound = np.linalg.norm(rows, 2) * tail(weights, RANK)
    else:
        bound = np.linalg.cond(judged @ inverse) * tail(judged @ weights, RANK)
    assert sides(STATEMENTS[name], layer(seed)) == approx((realised, bound))
    assert realised <= bound


@every_statement
def test_units_of_activations_and_weights(name):
    rows, weights = rows_and_weights()

    def told(seen, applied):
        layer = Layer(Observed(weights=applied, activations=seen), RANK)
        with jax.enable_x64(True):
            magnitude = float(STATEMENTS[name].magnitude(layer))
        return *sides(STATEMENTS[name], layer), magnitude

    scales(lambda unit: told(unit * rows, weights))
    scales(lambda unit: told(rows, unit * weights))
    size = np.linalg.norm(rows) * np.linalg.norm(weights)
    assert told(rows, weights)[-1] == approx(size)


@every_statement
def test_rotating_outputs_changes_nothing(name):
    rows, weights = rows_and_weights(1)
    turns(
        lambda weights: sides(
            STATEMENTS[name], Layer(Observed(weights=weights, activations=rows), RANK)
        ),
        "-o->",
        weights,
    )


@every_metric
def test_orthonormal_activations_cost_nothing(name):
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((SAMPLES // 2, INPUTS)))[0]
    rows = np.concatenate([basis[:, :INPUTS]] * 2)
    _, weights = rows_and_weights()
    realised, bound = sides(
        STATEMENTS[name], Layer(Observed(weights=weights, activations=rows), RANK)
    )
    assert realised == approx(bound)


def test_channel_norms_undo_channel_scales():
    """Orthogonal channels of any scales: scaling is all that there is to know of them."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((SAMPLES, INPUTS)))[0]
    rows = basis[:, :INPUTS] * [1e3, 10.0, 1.0, 0.1, 1e-3]
    _, weights = rows_and_weights()
    instance = Layer(Observed(weights=weights, activations=rows), RANK)
    realised, bound = sides(price_of_ignoring_data.channel_scaling, instance)
    assert realised == approx(bound) == approx(tail(rows @ weights, RANK))
    with jax.enable_x64(True):
        seen = jnp.asarray(rows)
        assert float(distortion(seen, jnp.eye(INPUTS))) == approx(1e6)
        assert float(distortion(seen, seen.T @ seen)) == approx(1e6)
        assert float(distortion(seen, seen)) == approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_column_norms_are_near_the_best_diagonal(seed):
    random = np.random.default_rng(seed)
    rows = random.standard_normal((SAMPLES, INPUTS)) @ random.standard_normal((INPUTS, INPUTS))
    with jax.enable_x64(True):
        norms = jnp.diag(jnp.linalg.norm(jnp.asarray(rows), axis=0))
        ours = float(distortion(jnp.asarray(rows), norms))
    for _ in range(50):
        other = np.exp(random.standard_normal(INPUTS))
        assert ours <= math.sqrt(INPUTS) * np.linalg.cond(rows * other)


def test_metric_of_the_data_itself_is_the_data_driven_layer():
    half = SAMPLES // 2
    rows, weights = rows_and_weights()
    rows = np.concatenate([rows[:half], rows[:half]])
    realised, bound = sides(
        price_of_ignoring_data.stale_calibration,
        Layer(Observed(weights=weights, activations=rows), RANK),
    )
    seen = Observed(weights=weights, activations=rows[half:])
    certificate: Any = recover(seen, RANK, ActivationWeighted()).certificate
    assert realised == approx(float(certificate.optimal_error)) == approx(bound)


def test_weights_alone_are_the_library_s_truncated_svd():
    instance = layer()
    expected = recover(instance.observed, RANK, TruncatedSVD()).factors.materialise()
    with jax.enable_x64(True):
        for name in ("condition_number", "weight_tail"):
            got = STATEMENTS[name].estimate(instance)
            assert_close(got.left @ got.right, expected)


@every_metric
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_factor_is_attained_in_the_limit_at_every_rank(name, rank):
    """The note's weights: in the metric, nearly tied where the data differ most."""
    rows, _ = rows_and_weights(3)
    metric, judged = metric_of(name, rows)
    inverse, eta = np.linalg.inv(metric), 1e-4
    _, values, directions = np.linalg.svd(judged @ inverse, full_matrices=False)
    kappa = values[0] / values[-1]
    seen = np.zeros((INPUTS, OUTPUTS))
    seen[:, 0], seen[:, 1] = directions[0], (1 + eta) * directions[-1]
    for index in range(1, rank):
        seen[:, index + 1] = (1 + eta) * kappa * directions[index]
    weights = inverse @ seen
    instance = Layer(Observed(weights=weights, activations=rows), rank)
    realised, bound = sides(STATEMENTS[name], instance)
    assert 0.999 * bound <= realised <= bound
    assert realised == approx(kappa / (1 + eta) * tail(judged @ weights, rank))
    assert kappa > 1.5


@every_statement
def test_attack_reaches_the_bound(name):
    witness = attack(STATEMENTS[name], key=jax.random.key(0), restarts=2, steps=300)
    assert STATEMENTS[name].sharp
    assert 0.99 <= witness.ratio <= 1


@every_metric
def test_outside_its_hypotheses_the_bound_is_infinite(name):
    rows, weights = rows_and_weights()
    dead = rows.copy()
    dead[:, 2] = 0
    few = rows[: INPUTS - 1]
    for seen in (dead, few):
        bound = STATEMENTS[name].bound(Layer(Observed(weights=weights, activations=seen), RANK))
        assert float(bound.value) == math.inf
        failing = {h.name for h in bound.hypotheses if not bool(h.holds)}
        assert "the activations have full column rank" in failing
        assert failing <= {
            "the activations have full column rank",
            "the metric has full column rank",
        }
        with pytest.raises(RuntimeError, match="full column rank' does not hold"):
            jax.block_until_ready(bound.require())


@every_statement
def test_compressed_activations_are_another_question(name):
    rows, weights = rows_and_weights()
    observed = Observed(weights=weights, activations=rows, compressed_activations=rows)
    bound = STATEMENTS[name].bound(Layer(observed, RANK))
    failing = [h.name for h in bound.hypotheses if not bool(h.holds)]
    assert failing == ["the compressed layer sees the same activations"]
    assert float(bound.value) == math.inf


def test_stale_calibration_needs_enough_samples_in_both_halves():
    rows, weights = rows_and_weights()
    observed = Observed(weights=weights, activations=rows[: 2 * INPUTS - 1])
    bound = price_of_ignoring_data.stale_calibration.bound(Layer(observed, RANK))
    failing = [h.name for h in bound.hypotheses if not bool(h.holds)]
    assert failing == ["the metric has full column rank"]


def test_price_bound_is_the_smaller_of_its_two():
    observed = layer().observed
    two = [sides(STATEMENTS[name], layer())[1] for name in ("condition_number", "weight_tail")]
    assert float(price_bound(observed, RANK)) == min(two) == two[1]
    assert list(STATEMENTS)[:2] == ["condition_number", "weight_tail"]


@every_statement
def test_needs_weights_and_activations(name):
    with pytest.raises(ValueError, match=r"give `Observed\(weights=..., activations=...\)`"):
        STATEMENTS[name].bound(Layer(Observed(weights=np.eye(3)), 1))


@pytest.mark.slow
@every_metric
def test_verification_is_consistent(name):
    setting = Setting(
        30, 6, 5, 2, activations=activations.MassiveDirections(1, 10.0), noise=noise.Gaussian(0.0)
    )
    settings = {"massive": dataclasses.replace(setting, target=targets.ApproximateRank())}
    report = verify(STATEMENTS[name], trials=400, key=jax.random.key(0), settings=settings)
    assert report.verdict is Verdict.CONSISTENT
