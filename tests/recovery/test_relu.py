"""The nuclear-norm fit of the matching loss, against oracles, exact cases and its laws."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory.recovery.relu import nuclear_norm_relu
from oracle import norm, nuclear, operator_norm
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)


def relu(matrix):
    return np.maximum(matrix, 0)


def objective(preactivations, outputs):
    return np.sum(relu(preactivations) ** 2 / 2 - outputs * preactivations)


def projector(activations):
    return activations @ np.linalg.pinv(activations, rcond=1e-10)


def duality_gap(activations, outputs, radius, preactivations):
    gradient = projector(activations) @ (relu(preactivations) - outputs)
    return np.sum(gradient * preactivations) + radius * operator_norm(gradient)


def solve(*arguments, **options):
    """The fit as NumPy arrays: outside its functions JAX would compute with float64 in float32."""
    return jax.tree.map(np.asarray, nuclear_norm_relu(*arguments, **options))


def instance(samples, inputs, outputs, rank, *, noise=0.3, radius=1.0, dependent=0, seed=0):
    """Activations, outputs, the radius (in units of that of the truth) and true pre-activations."""
    random = np.random.default_rng(seed)
    activations = random.standard_normal((samples, inputs))
    if dependent:
        activations[:, -dependent:] = activations[:, :dependent] * np.arange(1, dependent + 1)
    weights = random.standard_normal((inputs, rank)) @ random.standard_normal((rank, outputs))
    truth = activations @ weights / np.sqrt(inputs * rank)
    observed = relu(truth) + noise * random.standard_normal(truth.shape)
    return activations, observed, radius * nuclear(truth), truth


REGIMES: dict[str, dict[str, Any]] = {
    "tall": {"samples": 12, "inputs": 5, "outputs": 4, "rank": 2},
    "fewer samples than inputs": {"samples": 5, "inputs": 9, "outputs": 4, "rank": 2},
    "wide weights": {"samples": 9, "inputs": 3, "outputs": 7, "rank": 1},
    "square": {"samples": 6, "inputs": 6, "outputs": 6, "rank": 6},
    "dependent inputs": {"samples": 10, "inputs": 6, "outputs": 4, "rank": 2, "dependent": 2},
    "one output": {"samples": 8, "inputs": 4, "outputs": 1, "rank": 1},
    "one input": {"samples": 8, "inputs": 1, "outputs": 4, "rank": 1},
    "one sample": {"samples": 1, "inputs": 4, "outputs": 3, "rank": 1},
    "no noise": {"samples": 10, "inputs": 5, "outputs": 4, "rank": 2, "noise": 0.0},
    "mostly noise": {"samples": 10, "inputs": 5, "outputs": 4, "rank": 1, "noise": 10.0},
    "small radius": {"samples": 10, "inputs": 5, "outputs": 4, "rank": 2, "radius": 0.1},
    "large radius": {"samples": 10, "inputs": 5, "outputs": 4, "rank": 2, "radius": 3.0},
}
regimes = pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES.keys())


def oracle(activations, outputs, radius, steps=20_000):
    """Plain projected gradient among the pre-activations; the threshold is found by bisection."""
    columns = projector(activations)
    point = np.zeros_like(outputs)
    for _ in range(steps):
        moved = columns @ (point - relu(point) + outputs)
        left, values, right = np.linalg.svd(moved, full_matrices=False)
        low, high = 0.0, values[0]
        if values.sum() > radius:
            while high - low > 1e-15 * values[0]:
                middle = (low + high) / 2
                above = np.maximum(values - middle, 0).sum() > radius
                low, high = (middle, high) if above else (low, middle)
        previous, point = point, (left * np.maximum(values - low, 0)) @ right
        if norm(point - previous) <= 1e-13 * norm(point):
            break
    return point


@regimes
def test_agrees_with_plain_projected_gradient(regime):
    activations, outputs, radius, _ = instance(**regime)
    fit = solve(activations, outputs, radius, tolerance=1e-10, max_steps=20_000)
    best = oracle(activations, outputs, radius)
    scale = radius * operator_norm(projector(activations) @ outputs)
    assert fit.converged
    assert abs(fit.objective - objective(best, outputs)) <= 1e-8 * scale
    distance = norm(relu(fit.preactivations) - relu(best))  # the only part that is unique
    assert distance**2 <= fit.duality_gap + 1e-8 * scale


@regimes
def test_frank_wolfe_brackets_the_minimum(regime):
    """Steps to the best rank-one corner: another algorithm, and a lower bound of its own."""
    activations, outputs, radius, _ = instance(**regime)
    columns = projector(activations)
    point, lower = np.zeros_like(outputs), -np.inf
    for step in range(500):
        gradient = columns @ (relu(point) - outputs)
        left, _, right = np.linalg.svd(gradient, full_matrices=False)
        corner = -radius * np.outer(left[:, 0], right[0])
        lower = max(lower, objective(point, outputs) + np.sum(gradient * (corner - point)))
        point = point + 2 / (step + 2) * (corner - point)
    fit = solve(activations, outputs, radius)
    slack = 1e-12 * radius * norm(outputs)
    assert lower - slack <= fit.objective
    assert fit.objective - fit.duality_gap <= objective(point, outputs) + slack


@regimes
@pytest.mark.parametrize("max_steps", [1, 3, 2000])
def test_point_is_feasible_and_its_gap_is_the_gap(regime, max_steps):
    activations, outputs, radius, _ = instance(**regime)
    fit = solve(activations, outputs, radius, max_steps=max_steps)
    point, weights = np.asarray(fit.preactivations), np.asarray(fit.weights)
    scale = radius * operator_norm(projector(activations) @ outputs)
    gap = duality_gap(activations, outputs, radius, point)
    assert nuclear(point) <= radius * (1 + 1e-12)
    assert fit.duality_gap == approx(gap, scale=scale)
    assert fit.objective == approx(objective(point, outputs))
    assert bool(fit.converged) == (gap <= 1e-4 * scale)
    assert fit.converged or fit.steps == max_steps
    assert_close(activations @ weights, point, scale=norm(point))
    smallest = np.linalg.pinv(activations, rcond=1e-10) @ point
    assert_close(weights, smallest, scale=norm(smallest))


@regimes
def test_optimality_conditions(regime):
    """Where the ball binds, the gradient is -lambda (U V^T + W), ||W|| <= 1; else zero."""
    activations, outputs, radius, _ = instance(**regime)
    fit = solve(activations, outputs, radius, tolerance=1e-12, max_steps=20_000)
    point = np.asarray(fit.preactivations)
    gradient = projector(activations) @ (relu(point) - outputs)
    size = operator_norm(outputs)
    if nuclear(point) < radius * (1 - 1e-9):
        assert norm(gradient) <= 1e-5 * size
        return
    left, values, right = np.linalg.svd(point, full_matrices=False)
    rank = int(np.count_nonzero(values > 1e-6 * values[0]))
    multiplier = operator_norm(gradient)
    inside = left[:, :rank].T @ gradient @ right[:rank].T
    np.testing.assert_allclose(inside, -multiplier * np.eye(rank), atol=1e-5 * size)
    across = gradient @ right[:rank].T + multiplier * left[:, :rank]
    np.testing.assert_allclose(across, 0, atol=1e-5 * size)


@regimes
@pytest.mark.parametrize("max_steps", [1, 5, 2000])
def test_guarantee_holds_for_every_feasible_point_even_before_convergence(regime, max_steps):
    activations, outputs, radius, truth = instance(**regime)
    fit = solve(activations, outputs, radius, max_steps=max_steps)
    point = np.asarray(fit.preactivations)
    random = np.random.default_rng(1)
    others = [activations @ random.standard_normal(fit.weights.shape) for _ in range(20)]
    for direction in [np.zeros_like(truth), truth, -truth, *others]:
        other = direction * min(1, radius / max(nuclear(direction), 1e-300))
        noise = outputs - relu(other)
        error = np.sum((relu(point) - relu(other)) ** 2)
        bound = np.sum(noise * (point - other)) + fit.duality_gap
        assert error <= bound + 1e-12 * norm(outputs) * (radius + norm(outputs))


# --- exact cases ----------------------------------------------------------------------------------


def test_interpolates_non_negative_outputs_when_nothing_binds():
    random = np.random.default_rng(0)
    activations = random.standard_normal((6, 9))
    outputs = relu(random.standard_normal((6, 4)))
    radius = 1.5 * nuclear(outputs)
    fit = solve(activations, outputs, radius, tolerance=1e-13)
    assert fit.converged
    assert_close(relu(fit.preactivations), outputs, scale=norm(outputs))
    assert fit.objective == approx(-np.sum(outputs**2) / 2)


def test_small_radius_gives_the_leading_direction_of_the_projected_outputs():
    activations, outputs, _, _ = instance(**REGIMES["tall"])
    left, values, right = np.linalg.svd(projector(activations) @ outputs)
    radius = 1e-6 * values[0]
    fit = solve(activations, outputs, radius, tolerance=1e-8)
    leading = radius * np.outer(left[:, 0], right[0])
    np.testing.assert_allclose(fit.preactivations, leading, atol=1e-5 * radius)


def test_one_entry_is_solved_by_hand():
    """Minimise relu(z)^2 / 2 - y z over |z| <= R: z = min(y, R) for y >= 0, else -R."""
    for y, radius, z in [(2.0, 5.0, 2.0), (2.0, 0.5, 0.5), (-2.0, 0.5, -0.5)]:
        fit = solve(np.ones((1, 1)), np.full((1, 1), y), radius, tolerance=1e-14)
        assert fit.converged
        assert fit.preactivations.item() == approx(z)
        assert fit.objective == approx(max(z, 0) ** 2 / 2 - y * z)


@pytest.mark.parametrize("radius", [0.0, 3.0])
@pytest.mark.parametrize("zero", ["activations", "outputs", "both"])
def test_zero_arrays(zero, radius):
    activations, outputs, _, _ = instance(**REGIMES["tall"])
    activations = activations * (zero == "outputs")
    outputs = outputs * (zero == "activations")
    fit = solve(activations, outputs, radius)
    assert fit.converged
    assert fit.duality_gap == fit.objective == 0
    assert not np.any(fit.weights)
    assert not np.any(fit.preactivations)


def test_zero_radius_gives_zero():
    activations, outputs, _, _ = instance(**REGIMES["tall"])
    fit = solve(activations, outputs, 0.0)
    assert fit.converged
    assert fit.duality_gap == 0
    assert not np.any(fit.weights)


# --- laws -----------------------------------------------------------------------------------------


@regimes
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_scale_equivariance(regime, factor):
    activations, outputs, radius, _ = instance(**regime)
    fit = solve(activations, outputs, radius)
    louder = solve(activations, factor * outputs, factor * radius)
    other_units = solve(factor * activations, outputs, radius)
    scale = radius * operator_norm(outputs)
    for scaled, on_weights, on_point, on_value in [
        (louder, factor, factor, factor**2),
        (other_units, 1 / factor, 1.0, 1.0),
    ]:
        assert scaled.converged
        assert scaled.steps == fit.steps
        assert_close(scaled.weights / on_weights, fit.weights, scale=norm(fit.weights))
        assert_close(
            scaled.preactivations / on_point, fit.preactivations, scale=norm(fit.preactivations)
        )
        assert scaled.objective / on_value == approx(fit.objective)
        assert scaled.duality_gap / on_value == approx(fit.duality_gap, scale=scale)


@regimes
def test_only_the_column_space_and_no_order_matters(regime):
    activations, outputs, radius, _ = instance(**regime)
    samples, inputs = activations.shape
    random = np.random.default_rng(1)
    turn, _ = np.linalg.qr(random.standard_normal((inputs, inputs)))
    mixing = turn * random.uniform(1, 2, inputs)
    rows, columns = random.permutation(samples), random.permutation(outputs.shape[1])
    fit = solve(activations, outputs, radius)
    mixed = solve(activations @ mixing, outputs, radius)
    reordered = solve(activations[rows], outputs[rows][:, columns], radius)
    assert_close(mixed.preactivations, fit.preactivations, scale=norm(outputs))
    there = np.asarray(fit.preactivations)[rows][:, columns]
    assert_close(reordered.preactivations, there, scale=norm(outputs))
    assert mixed.steps == reordered.steps == fit.steps


def test_smaller_tolerance_takes_more_steps_to_a_smaller_gap():
    arrays = instance(40, 20, 15, 3)[:3]
    fits = [solve(*arrays, tolerance=t) for t in (1e-2, 1e-4, 1e-8)]
    assert fits[0].steps < fits[1].steps < fits[2].steps < 200
    assert fits[0].duality_gap > fits[1].duality_gap > fits[2].duality_gap > 0


@pytest.mark.parametrize("seed", range(3))
def test_momentum_and_restarts_earn_their_place(seed):
    """Without momentum these take at least 780 steps, without restarts at least 600."""
    fit = solve(*instance(40, 20, 15, 3, radius=3.0, seed=seed)[:3], tolerance=1e-8)
    assert fit.converged
    assert fit.steps < 300


def test_tolerance_is_relative_to_the_gap_of_the_origin():
    """That is the radius times the operator norm of the projected outputs."""
    activations, outputs, radius = instance(12, 5, 4, 2)[:3]
    stopped = solve(activations, outputs, radius, tolerance=1e-14, max_steps=5)
    origin = radius * np.linalg.norm(projector(activations) @ outputs, 2)
    tolerance = float(stopped.duality_gap) / origin
    for factor, enough in ((1.01, True), (0.99, False)):
        fit = solve(activations, outputs, radius, tolerance=factor * tolerance, max_steps=5)
        assert bool(fit.converged) == enough


def test_too_few_steps_are_reported_and_not_hidden():
    activations, outputs, radius, _ = instance(40, 20, 15, 3)
    fit = solve(activations, outputs, radius, max_steps=2)
    scale = radius * operator_norm(projector(activations) @ outputs)
    assert not fit.converged
    assert fit.steps == 2
    assert fit.duality_gap > 1e-4 * scale


# --- dtypes and transformations -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_results_have_the_dtype_of_the_data(dtype):
    activations, outputs, radius, _ = instance(**REGIMES["tall"])
    with jax.enable_x64(True):
        rounded = jnp.asarray(activations, dtype), jnp.asarray(outputs, dtype)
    fit = solve(*rounded, float(radius))
    assert fit.converged == (dtype != "bfloat16")  # in which the point is not stored so well
    assert fit.weights.dtype == fit.preactivations.dtype == dtype
    assert fit.objective.dtype == fit.duality_gap.dtype == np.float64  # about these arrays
    exact = solve(*(np.asarray(a, np.float64) for a in rounded), radius)
    precision = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(  # computed in float64, rounded once
        np.asarray(fit.preactivations, np.float64), exact.preactivations, rtol=precision, atol=1e-12
    )
    mixed = solve(rounded[0], outputs, radius)
    assert mixed.weights.dtype == np.float64


def test_dependence_that_float32_cannot_resolve_is_dependence():
    activations, outputs, radius, _ = instance(**REGIMES["dependent inputs"])
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    stored = (activations @ turn).astype(np.float32)
    fit = solve(stored, outputs.astype(np.float32), radius)
    exact = solve(activations @ turn, outputs, radius)
    assert_close(fit.weights, exact.weights, scale=norm(exact.weights), side=6)


def batch(lanes):
    singles = [instance(10, 5, 4, 2, radius=0.5 + lane % 3, seed=lane)[:3] for lane in range(lanes)]
    return tuple(np.stack(values) for values in zip(*singles, strict=True))


@pytest.mark.parametrize("mapped", ["jit", "vmap", "jit vmap", "map"])
def test_transformed_equals_loop(mapped):
    arrays = batch(6)
    with jax.enable_x64(True):
        arrays = tuple(jnp.asarray(a) for a in arrays)
        singles = [tuple(a[lane] for a in arrays) for lane in range(6)]
    if mapped == "jit":
        fits = [jax.jit(nuclear_norm_relu)(*single) for single in singles]
    else:
        batched = {
            "vmap": jax.vmap(nuclear_norm_relu),
            "jit vmap": jax.jit(jax.vmap(nuclear_norm_relu)),
            "map": lambda *a: jax.lax.map(lambda b: nuclear_norm_relu(*b), a),
        }[mapped](*arrays)
        with jax.enable_x64(True):
            fits = [jax.tree.map(lambda leaf, at=lane: leaf[at], batched) for lane in range(6)]
    for single, fit in zip(singles, fits, strict=True):
        alone = solve(*single)
        assert fit.weights.dtype == np.float64
        assert fit.converged
        assert fit.steps == alone.steps
        assert_close(fit.weights, alone.weights, scale=norm(alone.weights))
        assert_close(fit.duality_gap, alone.duality_gap, scale=norm(single[1]) ** 2)


@pytest.mark.slow
def test_a_thousand_lanes_do_not_deadlock():
    program = """
import jax, numpy as np
from lowrank_theory.recovery.relu import nuclear_norm_relu
random = np.random.default_rng(0)
x, y = random.standard_normal((1000, 40, 20)), random.standard_normal((1000, 40, 15))
with jax.enable_x64(True):
    fit = jax.jit(jax.vmap(nuclear_norm_relu))(x, y, np.full(1000, 20.0))
assert fit.converged.all(), fit.steps
"""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", program], env=environment, timeout=120, check=True)


@pytest.mark.parametrize("x64", [False, True])
def test_reverse_mode_is_refused(x64):
    activations, outputs, radius, _ = instance(**REGIMES["tall"])
    with jax.enable_x64(x64), pytest.raises(ValueError, match="Reverse-mode differentiation"):
        jax.grad(lambda y: nuclear_norm_relu(activations, y, radius).objective)(outputs)


# --- at the door ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activations": np.ones(3)}, r"`activations` must have shape \(samples, inputs\)"),
        ({"outputs": np.ones((4, 2), int)}, "`outputs` must be floating point"),
        ({"outputs": np.ones((3, 2))}, "`outputs` has 3 samples"),
        ({"outputs": np.full((4, 2), np.nan)}, "`outputs` has 8 non-finite entries"),
        ({"radius": -1.0}, "`radius` must be a non-negative finite number"),
        ({"radius": np.inf}, "`radius` must be a non-negative finite number"),
        ({"radius": np.ones(2)}, r"`radius` must be one number; got shape \(2,\)"),
        ({"tolerance": 0.0}, "`tolerance` must be a positive finite number"),
        ({"max_steps": 0}, "`max_steps` must be an integer >= 1"),
    ],
)
def test_refusals(changes, message):
    sound = {"activations": np.ones((4, 3)), "outputs": np.ones((4, 2)), "radius": 1.0}
    with pytest.raises(ValueError, match=message):
        solve(**(sound | changes))


@pytest.mark.parametrize(
    ("which", "bad"),
    [
        ("activations", np.nan),
        ("activations", np.inf),  # on which LAPACK's SVD would hang
        ("outputs", np.nan),
        ("outputs", np.inf),
        ("radius", np.nan),
        ("radius", np.inf),
        ("radius", -1.0),
    ],
)
def test_traced_values_that_make_no_sense_give_nan(which, bad):
    activations, outputs, radius, _ = instance(**REGIMES["tall"])
    if which == "radius":
        radius = bad
    else:
        {"activations": activations, "outputs": outputs}[which][0, 0] = bad
    fit = jax.tree.map(np.asarray, jax.jit(nuclear_norm_relu)(activations, outputs, radius))
    assert not fit.converged
    assert np.all(np.isnan(fit.weights))
    assert np.isnan(fit.duality_gap)
