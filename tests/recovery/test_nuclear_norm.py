"""Nuclear-norm fits against plain iterations in NumPy, exact cases, and their laws."""

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laws import scales, vmap_is_a_loop
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import (
    Certificate,
    NuclearNormBall,
    SingularValueThreshold,
    WeightNuclearNormBall,
    WeightNuclearNormPenalty,
    nuclear_norm_ball,
    recover,
    weight_nuclear_norm_ball,
    weight_nuclear_norm_penalty,
)
from lowrank_theory.recovery.nuclear_norm import ball_threshold
from oracle import norm, nuclear
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

SHAPE = (7, 4, 3)  # few shapes, so that compilations are shared
TIGHT: dict[str, Any] = {"tolerance": 1e-11, "max_steps": 20_000}


def instance(seed: int = 0, *, dependent: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    samples, inputs, outputs = SHAPE
    rows = random.standard_normal((samples, inputs)) * np.array([2.0, 1.0, 0.8, 0.6])
    if dependent:
        rows[:, -1] = 2 * rows[:, 0]
    return rows, random.standard_normal((samples, outputs))


def project(matrix: np.ndarray, radius: float) -> np.ndarray:
    """On the nuclear-norm ball: components leave the simplex one by one, smallest first."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    if values.sum() <= radius:
        return matrix
    kept = len(values)
    while (by := (values[:kept].sum() - radius) / kept) > values[kept - 1]:
        kept -= 1
    return left * np.maximum(values - by, 0) @ right


def threshold(matrix: np.ndarray, by: float) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left * np.maximum(values - by, 0) @ right


def iterate(rows: np.ndarray, outputs: np.ndarray, proximal: Any) -> np.ndarray:
    """Plain proximal gradient on the weights; `proximal(matrix, step)`."""
    step = 1 / np.linalg.norm(rows, 2) ** 2
    weights = np.zeros((rows.shape[1], outputs.shape[1]))
    for _ in range(4_000):
        weights = proximal(weights + step * rows.T @ (outputs - rows @ weights), step)
    return weights


def half_square(matrix: np.ndarray) -> float:
    return float(np.sum(matrix**2) / 2)


# --- on the outputs -------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.0, 0.7, 2.0, 1e3])
@pytest.mark.parametrize("dependent", [False, True])
def test_ball_is_the_projection_of_what_the_layer_can_express(radius, dependent):
    rows, outputs = instance(dependent=dependent)
    observed = Observed(activations=rows, outputs=outputs)
    recovery = recover(observed, 3, NuclearNormBall(radius)).require()
    assert isinstance(recovery.certificate, Certificate)
    attainable = rows @ np.linalg.pinv(rows, rcond=1e-10) @ outputs
    expected = project(attainable, radius)
    assert_close(rows @ recovery.factors, expected, scale=norm(outputs))
    residual = np.linalg.norm(outputs - expected)
    assert_close(recovery.certificate.optimal_error, residual)


def test_ball_threshold_by_hand():
    with jax.enable_x64(True):
        values = jnp.array([5.0, 3.0, 1.0])
        assert float(ball_threshold(values, 4.0)) == 2.0  # 3 + 1 + 0
        assert float(ball_threshold(values, 6.0)) == approx(1.0)
        assert float(ball_threshold(values, 9.0)) == 0.0
        assert float(ball_threshold(values, 100.0)) == 0.0
        assert float(ball_threshold(values, 0.0)) == 5.0


def test_ball_keeps_the_leading_components_of_a_lower_rank():
    rows, outputs = instance()
    observed = Observed(activations=rows, outputs=outputs)
    everything = rows @ recover(observed, 3, NuclearNormBall(2.0)).factors
    one = recover(observed, 1, NuclearNormBall(2.0)).factors
    left, values, right = np.linalg.svd(everything, full_matrices=False)
    assert_close(rows @ one, left[:, :1] * values[:1] @ right[:1])


def test_ball_scales():
    rows, outputs = instance()

    def at(unit):
        layer = Observed(activations=rows, outputs=unit * outputs)
        return rows @ recover(layer, 3, NuclearNormBall(unit)).factors

    scales(at, scale=1)


def test_ball_is_the_threshold_that_it_finds():
    rows, outputs = instance()
    observed = Observed(activations=rows, outputs=outputs)
    values = np.linalg.svd(rows @ np.linalg.pinv(rows) @ outputs, compute_uv=False)
    lowered = (values.sum() - 2.0) / 3
    assert lowered < values[-1]
    by_radius = rows @ recover(observed, 3, NuclearNormBall(2.0)).factors
    by_threshold = rows @ recover(observed, 3, SingularValueThreshold(float(lowered))).factors
    assert_close(by_radius, by_threshold)


def test_ball_has_the_derivative_of_differences():
    rows, outputs = instance()
    direction = np.random.default_rng(5).standard_normal(outputs.shape)

    def fitted(size: Any) -> Any:
        factors, _ = nuclear_norm_ball(rows, outputs + size * direction, 1.5, rank=3)
        return jnp.sum(jnp.asarray(rows) @ (factors.left @ factors.right) * direction)

    with jax.enable_x64(True):
        slope = float(jax.grad(fitted)(0.0))
        difference = float(fitted(1e-5) - fitted(-1e-5)) / 2e-5
    assert slope == pytest.approx(difference, rel=1e-6)


# --- on the weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("penalty", [0.05, 1.0, 4.0])
def test_penalised_weights_are_those_of_plain_iterations(penalty, dependent):
    rows, outputs = instance(1, dependent=dependent)
    fit = weight_nuclear_norm_penalty(rows, outputs, penalty, **TIGHT)
    expected = iterate(rows, outputs, lambda matrix, step: threshold(matrix, step * penalty))
    minimum = half_square(outputs - rows @ expected) + penalty * nuclear(expected)
    weights = np.asarray(fit.weights)
    objective = half_square(outputs - rows @ weights) + penalty * nuclear(weights)
    assert bool(fit.converged)
    assert_close(fit.objective, objective)
    assert objective == pytest.approx(minimum, rel=1e-8)  # that of a stopped iteration
    np.testing.assert_allclose(weights, expected, atol=1e-4)


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("radius", [0.1, 0.5, 100.0])
def test_constrained_weights_are_those_of_plain_iterations(radius, dependent):
    rows, outputs = instance(2, dependent=dependent)
    fit = weight_nuclear_norm_ball(rows, outputs, radius, **TIGHT)
    expected = iterate(rows, outputs, lambda matrix, _: project(matrix, radius))
    weights = np.asarray(fit.weights)
    assert bool(fit.converged)
    assert nuclear(weights) <= radius * (1 + 1e-12)
    objective = half_square(outputs - rows @ weights)
    assert_close(fit.objective, objective)
    assert_close(objective, half_square(outputs - rows @ expected), condition=1e3)
    np.testing.assert_allclose(weights, expected, atol=1e-4)


def accelerated(rows: np.ndarray, outputs: np.ndarray, proximal: Any, steps: int) -> np.ndarray:
    """Proximal gradient with momentum that restarts, on the outputs in an orthonormal basis."""
    basis, values, right = np.linalg.svd(rows, full_matrices=False)
    values, scale = (values / values[0])[:, None], values[0]
    previous = ahead = np.zeros((len(values), outputs.shape[1]))
    momentum = 1.0
    for _ in range(steps):
        point = proximal(ahead + values * (basis.T @ outputs - values * ahead))
        uphill = np.sum((ahead - point) * (point - previous)) > 0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        weight = 0 if uphill else (momentum - 1) / following
        momentum = 1.0 if uphill else following
        ahead, previous = point + weight * (point - previous), point
    return right.T @ previous / scale


@pytest.mark.parametrize("steps", [3, 12])
def test_iterations_are_accelerated(steps):
    rows, outputs = instance(3)
    largest = float(np.linalg.norm(rows, 2))
    fit = weight_nuclear_norm_ball(rows, outputs, 0.6, tolerance=1e-14, max_steps=steps)
    expected = accelerated(rows, outputs, lambda point: project(point, 0.6 * largest), steps)
    assert_close(fit.weights, expected, scale=norm(expected))


def test_functions_and_methods_stop_alike_unless_told():
    for function, method in (
        (weight_nuclear_norm_penalty, WeightNuclearNormPenalty(1.0)),
        (weight_nuclear_norm_ball, WeightNuclearNormBall(1.0)),
    ):
        parameters = inspect.signature(function).parameters
        for name in ("tolerance", "max_steps"):
            assert parameters[name].default == getattr(method, name)


@pytest.mark.parametrize("steps", [1, 3, 10, 40])
def test_the_gap_bounds_the_distance_to_the_minimum(steps):
    rows, outputs = instance(3)
    for solve, number in ((weight_nuclear_norm_penalty, 0.3), (weight_nuclear_norm_ball, 0.6)):
        best = solve(rows, outputs, number, **TIGHT)
        fit = solve(rows, outputs, number, tolerance=1e-12, max_steps=steps)
        assert int(fit.steps) == steps
        assert not bool(fit.converged)
        assert float(fit.objective - best.objective) <= float(fit.duality_gap)
        assert float(best.duality_gap) < float(fit.duality_gap)


def test_the_gaps_are_those_of_their_formulas():
    rows, outputs = instance(3)
    fit = weight_nuclear_norm_ball(rows, outputs, 0.6, tolerance=1e-12, max_steps=4)
    weights = np.asarray(fit.weights)
    slope = rows.T @ (rows @ weights - outputs)
    gap = np.sum(slope * weights) + 0.6 * np.linalg.norm(slope, 2)
    assert_close(fit.duality_gap, gap)

    fit = weight_nuclear_norm_penalty(rows, outputs, 0.3, tolerance=1e-12, max_steps=4)
    weights = np.asarray(fit.weights)
    projector = rows @ np.linalg.pinv(rows)
    residual = projector @ outputs - rows @ weights
    scale = min(1, 0.3 / np.linalg.norm(rows.T @ residual, 2))
    primal = half_square(residual) + 0.3 * nuclear(weights)
    dual = half_square(projector @ outputs) - half_square(projector @ outputs - scale * residual)
    assert_close(fit.duality_gap, primal - dual)


@pytest.mark.parametrize("weak", [1e-15, 1e-17])
def test_the_gap_counts_what_float64_does_not_resolve(weak):
    """Outputs that only a column without weight beside the other can give."""
    rows, outputs = np.diag([1.0, weak]), np.array([[0.0], [1.0]])
    enough = 2 / weak  # weights that would fit all
    fits = [
        weight_nuclear_norm_ball(rows, outputs, enough),
        weight_nuclear_norm_penalty(rows, outputs, 0.1 * weak),
    ]
    for fit, least in zip(fits, (0.0, 0.1 - 0.1**2 / 2), strict=True):
        assert float(fit.objective) - float(fit.duality_gap) <= least * (1 + 1e-12)


def test_a_price_above_the_gradient_at_zero_buys_nothing():
    rows, outputs = instance()
    price = float(np.linalg.norm(rows.T @ outputs, 2))
    fit = weight_nuclear_norm_penalty(rows, outputs, 1.001 * price)
    assert int(fit.steps) == 0
    assert not np.any(np.asarray(fit.weights))
    assert bool(fit.converged)
    assert np.any(np.asarray(weight_nuclear_norm_penalty(rows, outputs, 0.99 * price).weights))
    nothing = weight_nuclear_norm_ball(rows, outputs, 0.0)
    assert not np.any(np.asarray(nothing.weights))
    assert_close(nothing.objective, half_square(outputs))


def test_orthonormal_activations_have_the_closed_form():
    random = np.random.default_rng(4)
    rows, _ = np.linalg.qr(random.standard_normal(SHAPE[:2]))
    outputs = random.standard_normal((SHAPE[0], SHAPE[2]))
    fit = weight_nuclear_norm_penalty(rows, outputs, 0.5)
    assert_close(fit.weights, threshold(rows.T @ outputs, 0.5), scale=norm(outputs))
    fit = weight_nuclear_norm_ball(rows, outputs, 1.0)
    assert_close(fit.weights, project(rows.T @ outputs, 1.0))


@pytest.mark.parametrize("solve", [weight_nuclear_norm_penalty, weight_nuclear_norm_ball])
def test_weights_scale(solve):
    rows, outputs = instance()

    def at(unit):
        fit = solve(rows, unit * outputs, unit, **TIGHT)
        return {"weights": fit.weights, "objective": fit.objective}

    scales(at, {"weights": 1, "objective": 2}, condition=10)
    if solve is weight_nuclear_norm_penalty:
        scales(lambda unit: solve(unit * rows, outputs, unit, **TIGHT).weights, -1)


def test_a_batch_is_a_loop():
    layers = zip(*(instance(seed) for seed in (6, 7)), strict=True)
    stacks = [np.stack(part).astype("float32") for part in layers]
    vmap_is_a_loop(lambda x, y: weight_nuclear_norm_penalty(x, y, 0.3).weights, *stacks, side=4)
    vmap_is_a_loop(lambda x, y: weight_nuclear_norm_ball(x, y, 0.6).weights, *stacks, side=4)


@pytest.mark.parametrize("method", [WeightNuclearNormPenalty(0.5), WeightNuclearNormBall(0.6)])
def test_methods_keep_the_leading_components_of_the_outputs(method):
    rows, outputs = instance()
    observed = Observed(activations=rows, outputs=outputs)
    everything = rows @ recover(observed, 3, method).require().factors
    two = rows @ recover(observed, 2, method).factors
    left, values, right = np.linalg.svd(everything, full_matrices=False)
    assert_close(two, left[:, :2] * values[:2] @ right[:2], scale=values[0])
    solve: Any = {
        WeightNuclearNormPenalty: weight_nuclear_norm_penalty,
        WeightNuclearNormBall: weight_nuclear_norm_ball,
    }[type(method)]
    number = 0.5 if solve is weight_nuclear_norm_penalty else 0.6
    fit = solve(rows, outputs, number)
    assert_close(everything, rows @ np.asarray(fit.weights))


def test_an_iteration_that_stops_early_is_not_certified():
    rows, outputs = instance()
    observed = Observed(activations=rows, outputs=outputs)
    recovery = recover(observed, 3, WeightNuclearNormPenalty(0.1, max_steps=1))
    assert not bool(recovery.certificate.certified)
    with pytest.raises(RuntimeError, match="not certified"):
        jax.block_until_ready(recovery.require().factors.left)


def test_what_is_not_finite_does_not_converge():
    rows, outputs = instance()
    outputs[0, 0] = np.nan
    for solve in (weight_nuclear_norm_penalty, weight_nuclear_norm_ball):
        assert not bool(solve(rows, outputs, 1.0).converged)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (NuclearNormBall, "radius"),
        (WeightNuclearNormBall, "radius"),
        (WeightNuclearNormPenalty, "penalty"),
    ],
)
def test_bad_numbers_are_named(method, name):
    with pytest.raises(ValueError, match=f"`{name}` must be a non-negative finite number"):
        method(-1.0)
    rows, outputs = instance()
    biased = Observed(activations=rows, outputs=outputs, bias=np.zeros(3))
    with pytest.raises(ValueError, match=f"`{method.__name__}` has no affine version"):
        recover(biased, 1, method(1.0))
    if method is not NuclearNormBall:
        with pytest.raises(ValueError, match="`tolerance` must be a positive"):
            method(1.0, tolerance=0.0)
        with pytest.raises(ValueError, match="`max_steps` must be an integer >= 1"):
            method(1.0, max_steps=0)
