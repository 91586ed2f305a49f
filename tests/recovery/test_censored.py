"""The censored likelihood: its special functions, the convex fit and the local search."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

import oracle
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import CensoredLikelihood, censored_likelihood, recover
from lowrank_theory.recovery.censored import (
    censored_gradient,
    censored_loss,
    censored_low_rank,
    hazard,
    hazard_slope,
    negative_log_survival,
)
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)


def in_numpy(function, *arguments, **options):
    """The result in float64, as NumPy."""
    with jax.enable_x64(True):
        arrays = [jnp.asarray(a, float) for a in arguments]
        return jax.tree.map(np.asarray, function(*arrays, **options))


def solve(*arguments, **options) -> Any:
    return jax.tree.map(np.asarray, censored_likelihood(*arguments, **options))


def gradient(point, outputs, scale):
    return np.where(outputs > 0, point - outputs, scale * oracle.mills(point / scale))


def instance(
    samples=8, inputs=4, outputs=3, rank=2, *, scale=0.7, bound=1.5, seed=0
) -> tuple[Any, Any, dict[str, Any], Any]:
    """Activations, outputs, options, true pre-activations; the bound is in units of the noise."""
    random = np.random.default_rng(seed)
    activations = random.standard_normal((samples, inputs))
    weights = random.standard_normal((inputs, rank)) @ random.standard_normal((rank, outputs))
    clean = activations @ weights
    clean *= bound * scale / np.abs(clean).max()
    observed = np.maximum(clean + scale * random.standard_normal(clean.shape), 0)
    return activations, observed, {"noise_scale": scale, "bound": bound * scale}, clean


PENALTIES = (0.0, 0.3, 1.0)

# --- special functions ----------------------------------------------------------------------------


def test_hazard_and_its_relatives_from_far_below_to_far_above():
    x = np.linspace(-30, 30, 4001)
    expected = oracle.mills(x)
    np.testing.assert_allclose(in_numpy(hazard, x), expected, rtol=2e-13)
    np.testing.assert_allclose(
        in_numpy(negative_log_survival, x), -special.log_ndtr(-x), rtol=1e-12
    )
    low = x < 4  # above, SciPy's difference cancels
    slope = in_numpy(hazard_slope, x)
    np.testing.assert_allclose(slope[low], (expected * (expected - x))[low], rtol=1e-12)
    high = x > 12  # the asymptotic series of Mills' ratio
    series = 1 - x[high] ** -2.0 + 6 * x[high] ** -4.0 - 50 * x[high] ** -6.0
    np.testing.assert_allclose(slope[high], series, atol=518 / 12**8)
    assert (np.diff(slope) > 0).all()
    assert (slope > 0).all()
    assert (slope < 1).all()


def test_branches_meet():
    for at in (0.0, 5.0):
        x = at + np.array([-1e-9, 1e-9])
        for function in (hazard, hazard_slope, negative_log_survival):
            values = in_numpy(function, x)
            assert values[1] == pytest.approx(values[0], rel=1e-8)


def test_derivatives_are_each_other():
    x = np.concatenate([np.linspace(-20, 20, 41), [-1e-3, 4.999, 5.001, 28.0]])
    with jax.enable_x64(True):
        first = jax.vmap(jax.grad(negative_log_survival))(jnp.asarray(x))
        second = jax.vmap(jax.grad(hazard))(jnp.asarray(x))
    assert_close(first, in_numpy(hazard, x), condition=10)
    assert_close(second, in_numpy(hazard_slope, x), condition=10)


@pytest.mark.parametrize(
    ("bound", "curvature"), [(0.5, 0.514), (1, 0.370), (1.5, 0.227), (2, 0.1135), (3, 0.0133)]
)
def test_curvature_table(bound, curvature):
    assert in_numpy(hazard_slope, -bound) == pytest.approx(curvature, abs=5e-4)


def test_values_by_hand():
    assert in_numpy(hazard, 0.0) == pytest.approx(math.sqrt(2 / math.pi), rel=1e-15)
    assert in_numpy(hazard_slope, 0.0) == pytest.approx(2 / math.pi, rel=1e-15)
    assert in_numpy(negative_log_survival, 0.0) == pytest.approx(math.log(2), rel=1e-15)


def test_loss_and_gradient_against_scipy():
    _, outputs, options, clean = instance()
    scale = options["noise_scale"]
    assert in_numpy(censored_loss, clean, outputs, scale) == approx(
        oracle.censored_loss(clean, outputs, scale)
    )
    assert_close(
        in_numpy(censored_gradient, clean, outputs, scale), gradient(clean, outputs, scale)
    )
    assert (outputs == 0).any()
    assert (outputs > 0).any()


# --- the convex fit -------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", PENALTIES)
def test_agrees_with_proximal_gradient_where_the_box_is_wide(penalty):
    activations, outputs, options, _ = instance()
    scale = options["noise_scale"]
    columns = activations @ np.linalg.pinv(activations)
    point = np.zeros_like(outputs)
    for _ in range(3000):
        moved = columns @ (point - gradient(point, outputs, scale))
        left, values, right = np.linalg.svd(moved, full_matrices=False)
        point = (left * np.maximum(values - penalty, 0)) @ right
    assert np.abs(point).max() < 20
    fit = solve(
        activations, outputs, noise_scale=scale, bound=20.0, penalty=penalty, tolerance=1e-12
    )
    assert fit.converged
    np.testing.assert_allclose(fit.preactivations, point, atol=2e-5)
    best = oracle.censored_loss(point, outputs, scale) + penalty * oracle.nuclear(point)
    assert fit.objective == approx(best)


def test_agrees_with_a_general_solver_where_the_box_binds():
    activations, outputs, options, _ = instance(6, 2, 2, 1)
    scale, bound = options["noise_scale"], options["bound"]

    def objective(free):
        return oracle.censored_loss(activations @ free.reshape(2, 2), outputs, scale)

    def slope(free):
        return (activations.T @ gradient(activations @ free.reshape(2, 2), outputs, scale)).ravel()

    box = optimize.LinearConstraint(np.kron(activations, np.eye(2)), -bound, bound)
    best = optimize.minimize(objective, np.zeros(4), jac=slope, method="SLSQP", constraints=[box])
    fit = solve(activations, outputs, **options, penalty=0.0, tolerance=1e-10)
    assert np.abs(fit.preactivations).max() == approx(bound)
    assert fit.objective == pytest.approx(best.fun, rel=1e-6)
    np.testing.assert_allclose(fit.weights.ravel(), best.x, atol=1e-3)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("max_steps", [1, 4, 2000])
def test_guarantee_holds_for_every_feasible_point_even_before_convergence(penalty, max_steps):
    activations, outputs, options, clean = instance()
    scale, bound = options["noise_scale"], options["bound"]
    fit = solve(activations, outputs, **options, penalty=penalty, max_steps=max_steps)
    point = fit.preactivations
    assert np.abs(point).max() <= bound * (1 + 1e-12)
    assert_close(activations @ fit.weights, point, scale=oracle.norm(point))
    value = oracle.censored_loss(point, outputs, scale) + penalty * oracle.nuclear(point)
    assert fit.objective == approx(value)
    slope = gradient(point, outputs, scale)
    allowed = 1e-6 * bound * np.abs(gradient(np.zeros_like(outputs), outputs, scale)).sum()
    assert bool(fit.converged) == (fit.duality_gap <= allowed)
    assert fit.converged == (max_steps == 2000)
    random = np.random.default_rng(1)
    others = [activations @ random.standard_normal(fit.weights.shape) for _ in range(50)]
    for direction in [np.zeros_like(clean), clean, -clean, *others]:
        other = direction * (bound / max(np.abs(direction).max(), 1e-300))
        rise = np.sum(slope * (point - other)) + penalty * (
            oracle.nuclear(point) - oracle.nuclear(other)
        )
        assert rise <= fit.duality_gap + 1e-12
        assert value - fit.duality_gap <= (
            oracle.censored_loss(other, outputs, scale) + penalty * oracle.nuclear(other) + 1e-12
        )


@pytest.mark.parametrize(
    ("output", "penalty", "expected"),
    [
        (2.0, 0.0, 1.5),  # the box binds
        (1.0, 0.0, 1.0),
        (1.0, 0.3, 0.7),  # soft-thresholded
        (0.2, 0.3, 0.0),
        (0.0, 0.0, -1.5),  # censored: the lower the likelier
        (0.0, 0.9, 0.0),  # the penalty exceeds h(0) = 0.798
    ],
)
def test_one_entry_by_hand(output, penalty, expected):
    fit = solve(
        np.ones((1, 1)),
        np.full((1, 1), output),
        noise_scale=1.0,
        bound=1.5,
        penalty=penalty,
        tolerance=1e-12,
    )
    assert fit.converged
    assert fit.preactivations.item() == approx(expected)


def test_large_penalty_gives_zero_without_a_gap():
    activations, outputs, options, _ = instance()
    fit = solve(activations, outputs, **options, penalty=100.0)
    assert fit.steps == 1
    assert not fit.weights.any()
    assert fit.duality_gap == approx(0, scale=1)


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_scale_equivariance(factor):
    activations, outputs, options, _ = instance()
    fit = solve(activations, outputs, **options, penalty=0.3)
    louder = solve(
        activations,
        factor * outputs,
        **{name: factor * value for name, value in options.items()},
        penalty=factor * 0.3,
    )
    other_units = solve(factor * activations, outputs, **options, penalty=0.3)
    for scaled, on_weights, on_point, on_value in [
        (louder, factor, factor, factor**2),
        (other_units, 1 / factor, 1.0, 1.0),
    ]:
        assert scaled.steps == fit.steps
        assert_close(scaled.weights / on_weights, fit.weights)
        assert_close(scaled.preactivations / on_point, fit.preactivations)
        assert scaled.objective / on_value == approx(fit.objective)
        assert scaled.duality_gap / on_value == approx(fit.duality_gap)


def test_only_the_column_space_and_no_order_matters():
    activations, outputs, options, _ = instance()
    random = np.random.default_rng(1)
    mixing = np.linalg.qr(random.standard_normal((4, 4)))[0] * random.uniform(1, 2, 4)
    rows, columns = random.permutation(8), random.permutation(3)
    fit = solve(activations, outputs, **options, penalty=0.3)
    mixed = solve(activations @ mixing, outputs, **options, penalty=0.3)
    again = solve(activations[rows], outputs[rows][:, columns], **options, penalty=0.3)
    assert_close(mixed.preactivations, fit.preactivations, scale=oracle.norm(fit.preactivations))
    assert_close(
        again.preactivations,
        fit.preactivations[rows][:, columns],
        scale=oracle.norm(fit.preactivations),
    )


@pytest.mark.parametrize("mapped", ["jit", "vmap"])
def test_transformed_equals_loop(mapped):
    singles = [instance(seed=seed)[:2] for seed in range(3)]

    def fitted(x, y):
        return censored_likelihood(x, y, noise_scale=0.7, bound=1.05, penalty=0.3)

    with jax.enable_x64(True):
        if mapped == "vmap":
            batch = jax.vmap(fitted)(*(jnp.stack(part) for part in zip(*singles, strict=True)))
            fits = [jax.tree.map(lambda leaf, at=i: np.asarray(leaf[at]), batch) for i in range(3)]
        else:
            fits = [jax.tree.map(np.asarray, jax.jit(fitted)(*single)) for single in singles]
    for single, fit in zip(singles, fits, strict=True):
        alone = jax.tree.map(np.asarray, fitted(*single))
        assert fit.steps == alone.steps
        assert_close(fit.weights, alone.weights)


def test_dependent_inputs_and_float32():
    activations, outputs, options, _ = instance()
    doubled = np.concatenate([activations, activations], axis=1)
    fit = solve(activations, outputs, **options, penalty=0.3)
    dependent = solve(doubled, outputs, **options, penalty=0.3)
    assert_close(
        dependent.preactivations, fit.preactivations, scale=oracle.norm(fit.preactivations)
    )
    assert_close(dependent.weights[:4], fit.weights / 2)
    stored = solve(
        activations.astype(np.float32), outputs.astype(np.float32), **options, penalty=0.3
    )
    assert stored.weights.dtype == np.float32
    assert_close(stored.weights, fit.weights, scale=oracle.norm(fit.weights), side=4)


def test_recover_keeps_the_leading_components():
    activations, outputs, options, _ = instance()
    observed = Observed(activations=activations, outputs=outputs)
    fit = solve(activations, outputs, **options, penalty=0.3)
    for rank in (1, 3):
        method = CensoredLikelihood(**options, penalty=0.3)
        recovery: Any = recover(observed, rank, method).require()
        left, values, right = np.linalg.svd(fit.preactivations, full_matrices=False)
        expected = left[:, :rank] * values[:rank] @ right[:rank]
        product = np.asarray(recovery.factors.left) @ np.asarray(recovery.factors.right)
        assert_close(activations @ product, expected, scale=oracle.norm(expected))
        assert float(recovery.certificate.gap) == approx(
            float(fit.duality_gap), scale=float(fit.objective)
        )
    short = recover(observed, 1, CensoredLikelihood(**options, penalty=0.3, max_steps=1))
    assert not short.certificate.certified
    with pytest.raises(RuntimeError, match="not certified"):
        jax.block_until_ready(short.require().factors.left)


def test_method_refuses_what_it_cannot_fit():
    method = CensoredLikelihood(1.0, 1.5, 0.3)
    with pytest.raises(ValueError, match="fits outputs seen after a ReLU"):
        recover(Observed(weights=np.eye(3), activations=np.eye(3)), 1, method)
    observed = Observed(activations=np.eye(3), outputs=np.eye(3), bias=np.ones(3))
    with pytest.raises(ValueError, match="no affine version"):
        recover(observed, 1, method)
    wrong: tuple[dict[str, Any], ...] = (
        {"noise_scale": 0.0, "bound": 1.0, "penalty": 1.0},
        {"noise_scale": 1.0, "bound": 0.0, "penalty": 1.0},
        {"noise_scale": 1.0, "bound": 1.0, "penalty": -1.0},
        {"noise_scale": 1.0, "bound": 1.0, "penalty": 1.0, "tolerance": 0.0},
        {"noise_scale": 1.0, "bound": 1.0, "penalty": 1.0, "max_steps": 0},
    )
    for options in wrong:
        with pytest.raises(ValueError, match="must be"):
            CensoredLikelihood(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activations": np.ones(3)}, r"`activations` must have shape \(samples, inputs\)"),
        ({"outputs": np.ones((3, 2))}, "`outputs` has 3 samples"),
        ({"outputs": -np.ones((4, 2))}, "`outputs` has negative entries"),
        ({"noise_scale": 0.0}, "`noise_scale` must be a positive finite number"),
        ({"bound": np.inf}, "`bound` must be a positive finite number"),
        ({"bound": np.ones(2)}, r"`bound` must be one number; got shape \(2,\)"),
        ({"penalty": -1.0}, "`penalty` must be a non-negative finite number"),
        ({"tolerance": 0.0}, "`tolerance` must be a positive finite number"),
        ({"max_steps": 0}, "`max_steps` must be an integer >= 1"),
    ],
)
def test_refusals(changes, message):
    sound = {"activations": np.ones((4, 3)), "outputs": np.ones((4, 2))}
    sound |= {"noise_scale": 1.0, "bound": 1.0, "penalty": 1.0}
    arguments = sound | changes
    with pytest.raises(ValueError, match=message):
        solve(arguments.pop("activations"), arguments.pop("outputs"), **arguments)


@pytest.mark.parametrize(
    "bad", [{"noise_scale": 0.0}, {"bound": -1.0}, {"penalty": np.nan}, {"noise_scale": np.inf}]
)
def test_traced_values_that_make_no_sense_give_nan(bad):
    activations, outputs, options, _ = instance()
    numbers = {k: np.asarray(v) for k, v in (options | {"penalty": 0.3} | bad).items()}

    def fitted(numbers):
        return censored_likelihood(activations, outputs, **numbers)

    fit = jax.tree.map(np.asarray, jax.jit(fitted)(numbers))
    assert not fit.converged
    assert np.isnan(fit.weights).all()


# --- the local search -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_local_search_is_feasible_and_likelier_than_the_truth(seed):
    activations, outputs, options, clean = instance(20, 6, 5, 2, seed=seed)
    weights = np.asarray(censored_low_rank(activations, outputs, **options, rank=2))
    point = activations @ weights
    values = np.linalg.svd(point, compute_uv=False)
    assert values[2] <= 1e-12 * values[0]
    assert np.abs(point).max() <= options["bound"] * (1 + 1e-12)
    scale = options["noise_scale"]
    assert oracle.censored_loss(point, outputs, scale) < oracle.censored_loss(clean, outputs, scale)


def test_local_search_of_full_rank_is_the_convex_fit_without_penalty():
    activations, outputs, options, _ = instance()
    weights = np.asarray(censored_low_rank(activations, outputs, **options, rank=3, steps=300))
    fit = solve(activations, outputs, **options, penalty=0.0, tolerance=1e-9)
    value = oracle.censored_loss(activations @ weights, outputs, options["noise_scale"])
    assert value == pytest.approx(float(fit.objective), abs=1e-5)


def test_local_search_checks_its_arguments():
    activations, outputs, options, _ = instance()
    with pytest.raises(ValueError, match="`rank` must be an integer from 1 to 3"):
        censored_low_rank(activations, outputs, **options, rank=4)
    with pytest.raises(ValueError, match="`steps` must be an integer >= 1"):
        censored_low_rank(activations, outputs, **options, rank=1, steps=0)
