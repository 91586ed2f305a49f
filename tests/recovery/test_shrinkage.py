"""Optimal shrinkage: published constants, optimality by brute force, and an oracle in NumPy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize

from laws import keeps_dtypes, scales, turns, vmap_is_a_loop
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import (
    OptimalShrinkage,
    optimal_shrinkage,
    recover,
    shrink_singular_values,
    shrinkage,
)
from oracle import norm
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(5)

RULES = {
    "frobenius": shrinkage.Frobenius(),
    "nuclear": shrinkage.Nuclear(),
    "operator": shrinkage.Operator(),
    "hard_threshold": shrinkage.HardThreshold(),
}
every_rule = pytest.mark.parametrize("name", RULES)
random = np.random.default_rng(0)
NOISY = 8 * np.outer(random.standard_normal(9), random.standard_normal(6)) / 7 + (
    random.standard_normal((9, 6))
)


def shrunk(rule: Any, values: Any, aspect: float) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(rule.shrink(jnp.asarray(values, float), jnp.asarray(aspect)))


def seen(x: float, aspect: float) -> tuple[float, float, float]:
    """The observed value and the two cosines of a strength above the threshold."""
    y = np.sqrt((x + 1 / x) * (x + aspect / x))
    short = (x**4 - aspect) / (x**4 + aspect * x**2)
    return y, np.sqrt(short), np.sqrt((x**4 - aspect) / (x**4 + x**2))


def error(x: float, eta: float, c: float, d: float) -> np.ndarray:
    """The singular values of the error of one component, in the plane of its vectors."""
    left, right = np.array([c, np.sqrt(1 - c**2)]), np.array([d, np.sqrt(1 - d**2)])
    return np.linalg.svd(np.diag([x, 0]) - eta * np.outer(left, right), compute_uv=False)


def oracle(matrix: np.ndarray, name: str, noise_scale: float | None, q: Any = None):
    """The estimate by definition; noise fills q of the rows."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    q = matrix.shape[0] if q is None else q
    shorter, longer = sorted((q, matrix.shape[1]))
    beta = shorter / longer
    if noise_scale is None:

        def mass(top: float) -> float:
            low, high = (1 - beta**0.5) ** 2, (1 + beta**0.5) ** 2
            density = lambda t: np.sqrt((high - t) * (t - low)) / (2 * np.pi * beta * t)  # noqa: E731
            return integrate.quad(density, low, top, limit=200)[0] - 0.5

        median: Any = optimize.brentq(
            mass, (1 - beta**0.5) ** 2 + 1e-9, (1 + beta**0.5) ** 2, xtol=1e-12
        )
        unit = np.median(s[:shorter]) / np.sqrt(median)
    else:
        unit = noise_scale * np.sqrt(longer)
    kept = []
    for y in s / unit:
        eta = 0.0
        if y > 1 + beta**0.5:
            t = y**2 - beta - 1
            x = np.sqrt((t + np.sqrt(t**2 - 4 * beta)) / 2)
            _, c, d = seen(x, beta)
            sines = np.sqrt((1 - c**2) * (1 - d**2))
            constant = np.sqrt(
                2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1))
            )
            eta = {
                "frobenius": x * c * d,
                "nuclear": x * max(c * d - sines, 0),
                "operator": x * min(c, d) / max(c, d),
                "hard_threshold": y * (y > constant),
            }[name]
        kept.append(eta * unit)
    return u * np.array(kept) @ v


def dense(factors: Any) -> np.ndarray:
    return np.asarray(factors.materialise())


# --- constants -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aspect", "constant", "median", "ratio"),
    [
        (0.1, 1.5816, 0.9666, 1.6088),
        (0.25, 1.7580, 0.9160, 1.8369),
        (0.5, 1.9786, 0.8305, 2.1712),
        (0.75, 2.1561, 0.7429, 2.5014),
        (1.0, 2.3094, 0.6528, 2.8584),
    ],
)
def test_constants_are_those_of_gavish_and_donoho(aspect, constant, median, ratio):
    lam, mu = (
        float(np.asarray(f(aspect)))
        for f in (shrinkage.hard_threshold_constant, shrinkage.marchenko_pastur_median)
    )
    assert lam == pytest.approx(constant, abs=6e-5)
    assert mu == pytest.approx(median, abs=6e-5)
    assert lam / mu**0.5 == pytest.approx(ratio, abs=6e-5)
    # and their approximation, whose error they put at 0.02
    cubic = 0.56 * aspect**3 - 0.95 * aspect**2 + 1.82 * aspect + 1.43
    assert lam / mu**0.5 == pytest.approx(cubic, abs=0.02)


@pytest.mark.parametrize("aspect", [1e-6, 1e-3, 0.3, 0.999, 1.0])
def test_median_halves_the_law_of_marchenko_and_pastur(aspect):
    median = float(np.asarray(shrinkage.marchenko_pastur_median(aspect)))
    root = aspect**0.5
    angle = np.arccos((median - 1 - aspect) / (2 * root))
    mass, _ = integrate.quad(
        lambda a: 2 / np.pi * np.sin(a) ** 2 / (1 + aspect + 2 * root * np.cos(a)), 0, angle
    )
    assert mass == approx(0.5, condition=10)


def test_median_of_the_quarter_circle():
    # the median m of the quarter-circle law, theta - sin theta = pi / 2 at m^2 = 2 + 2 cos theta
    angle: Any = optimize.brentq(lambda a: a - np.sin(a) - np.pi / 2, 1, 3, xtol=1e-15)
    median = float(np.asarray(shrinkage.marchenko_pastur_median(1.0)))
    assert median == approx(2 + 2 * np.cos(angle))


# --- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("aspect", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("x", [1.1, 1.5, 4.0])
def test_rules_minimise_their_losses(aspect, x):
    x = x * aspect**0.25
    y, c, d = seen(x, aspect)
    measures = {"frobenius": np.linalg.norm, "nuclear": np.sum, "operator": np.max}
    for name, measure in measures.items():
        eta = float(shrunk(RULES[name], [y], aspect)[0])
        best = min(measure(error(x, e, c, d)) for e in np.linspace(0, 2 * x, 4001))
        assert measure(error(x, eta, c, d)) <= best * (1 + 1e-9)
        assert measure(error(x, eta, c, d)) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("aspect", [1.0, 0.5, 0.1])
def test_hard_threshold_keeps_what_costs_less_to_keep(aspect):
    for x in aspect**0.25 * np.linspace(1.01, 4, 50):
        y, c, d = seen(x, aspect)
        kept = float(shrunk(RULES["hard_threshold"], [y], aspect)[0])
        assert kept in (0.0, approx(y))
        other = y - kept
        losses = [np.sum(error(x, eta, c, d) ** 2) for eta in (kept, other)]
        assert losses[0] <= losses[1] * (1 + 1e-9)


@pytest.mark.parametrize("aspect", [1.0, 0.3])
def test_rules_by_their_definitions(aspect):
    for x in aspect**0.25 * np.array([1.001, 1.3, 2.0, 30.0]):
        y, c, d = seen(x, aspect)
        sines = np.sqrt((1 - c**2) * (1 - d**2))
        expected = {
            "frobenius": x * c * d,
            "nuclear": x * max(c * d - sines, 0),
            "operator": x * d / c,
        }
        for name, eta in expected.items():
            assert shrunk(RULES[name], [y], aspect)[0] == pytest.approx(eta, rel=1e-7, abs=1e-7)
        with jax.enable_x64(True):
            strength = shrinkage.signal_strength(jnp.asarray([y]), jnp.asarray(aspect))
        assert float(np.asarray(strength)[0]) == approx(x, condition=100)


@every_rule
@pytest.mark.parametrize("aspect", [1.0, 0.3])
def test_noise_is_shrunk_to_zero_and_nothing_grows(name, aspect):
    edge = 1 + aspect**0.5
    values = np.concatenate([np.linspace(0, edge, 7), np.linspace(edge, 50, 200)[1:], [1e9]])
    kept = shrunk(RULES[name], values, aspect)
    assert np.all(kept[:7] == 0)
    assert np.all(kept <= values)
    assert np.all(np.diff(kept) >= -1e-9)
    assert kept[-1] == approx(1e9)


def test_square_matrices_have_the_formula_of_the_abstract():
    values = np.linspace(2.01, 9, 20)
    assert_close(shrunk(RULES["frobenius"], values, 1.0), np.sqrt(values**2 - 4))


# --- matrices and layers -------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("noise_scale", [None, 0.8])
@pytest.mark.parametrize("turn", [np.asarray, np.transpose])
def test_matrix_against_oracle(name, noise_scale, turn):
    matrix = turn(NOISY)
    factors = shrink_singular_values(matrix, noise_scale, shrinker=RULES[name], rank=6)
    expected = oracle(matrix, name, noise_scale)
    assert np.linalg.norm(expected) > 1
    assert_close(dense(factors), expected, condition=100, scale=norm(expected))


@pytest.mark.parametrize(
    ("name", "noise_scale"),
    [("frobenius", None), ("nuclear", 0.8), ("operator", None), ("hard_threshold", 0.8)],
)
def test_layer_against_oracle_where_activations_have_deficient_rank(name, noise_scale):
    inputs = random.standard_normal((40, 4)) @ random.standard_normal((4, 7))
    outputs = 30 * inputs[:, :1] @ random.standard_normal((1, 6)) / np.linalg.norm(inputs[:, 0])
    outputs = outputs + random.standard_normal((40, 6))
    method = OptimalShrinkage(RULES[name], noise_scale)
    observed = Observed(activations=inputs, outputs=outputs)
    recovery: Any = recover(observed, 6, method)
    attainable = inputs @ np.linalg.pinv(inputs, rcond=1e-12) @ outputs
    expected = oracle(attainable, name, noise_scale, q=4)
    assert np.linalg.norm(expected) > 1
    assert_close(inputs @ dense(recovery.factors), expected, scale=norm(expected))
    error = np.linalg.norm(outputs - expected)
    assert float(np.asarray(recovery.certificate.optimal_error)) == approx(error)
    assert bool(recovery.certificate.certified)
    alike = np.ldexp(inputs, 1 - np.frexp(np.max(np.abs(inputs), axis=0))[1])
    norms = (np.linalg.norm(a) for a in (alike, np.linalg.pinv(alike, rcond=1e-12), outputs))
    allowance = 2 * 32 * np.finfo(float).eps * 40**0.5 * np.prod(list(norms))
    assert float(np.asarray(recovery.certificate.excess_bound)) == approx(allowance)
    assert recovery.bias is None
    # One component is kept, so factors of rank one hold it.
    one = recover(observed, 1, method)
    assert_close(inputs @ dense(one.factors), expected, scale=norm(expected))
    assert one.factors.rank == 1


@every_rule
def test_units_rotations_and_transposes(name):
    def estimate(matrix: np.ndarray, scale: float | None = None) -> np.ndarray:
        return dense(shrink_singular_values(matrix, scale, shrinker=RULES[name], rank=6))

    scales(lambda unit: estimate(unit * NOISY))
    scales(lambda unit: estimate(unit * NOISY, unit))
    turns(estimate, "ab->ab", NOISY, scale=1)
    assert_close(estimate(NOISY.T).T, estimate(NOISY))


def test_jit_and_vmap_agree_with_a_loop():
    def estimate(matrix: Any) -> Any:
        return shrink_singular_values(matrix, shrinker=RULES["frobenius"], rank=3)

    keeps_dtypes(estimate, NOISY)
    stack = np.stack([NOISY, 2 * NOISY[::-1], NOISY + 1]).astype(np.float32)
    vmap_is_a_loop(lambda matrix: estimate(matrix).materialise(), stack, side=9)


@every_rule
@pytest.mark.parametrize("noise_scale", [None, 0.0, 1e-9])
def test_without_noise_everything_is_kept(name, noise_scale):
    clean = np.outer(np.arange(1.0, 10), np.arange(1.0, 7))
    factors = shrink_singular_values(clean, noise_scale, shrinker=RULES[name], rank=6)
    assert_close(dense(factors), clean)


def test_zero_is_recovered_as_zero():
    factors = shrink_singular_values(np.zeros((9, 6)), shrinker=RULES["frobenius"], rank=6)
    np.testing.assert_array_equal(dense(factors), 0)


# --- derivatives ---------------------------------------------------------------------------------


def slope(function: Any, at: np.ndarray, along: np.ndarray, step: float = 1e-5) -> float:
    return float(function(at + step * along) - function(at - step * along)) / (2 * step)


@pytest.mark.parametrize("name", ["frobenius", "operator"])
@pytest.mark.parametrize("noise_scale", [None, 0.3])
@pytest.mark.parametrize("values", [(9.0, 5.0, 1.0, 0.8, 0.6), (9.0, 9.0, 1.0, 0.8, 0.8)])
def test_gradient_is_that_of_the_estimate_also_at_ties(name, noise_scale, values):
    local = np.random.default_rng(1)
    left, _ = np.linalg.qr(local.standard_normal((7, 5)))
    right, _ = np.linalg.qr(local.standard_normal((5, 5)))
    matrix = left * np.array(values) @ right.T
    weights, along = local.standard_normal((7, 5)), local.standard_normal((7, 5))

    def score(matrix: Any) -> Any:
        factors = shrink_singular_values(matrix, noise_scale, shrinker=RULES[name], rank=5)
        return jnp.sum(weights * (factors.left @ factors.right))

    with jax.enable_x64(True):
        gradient = np.asarray(jax.jit(jax.grad(score))(jnp.asarray(matrix)))
        tied = len(set(values)) < len(values) and noise_scale is None
        expected = slope(score, matrix, along)
    assert np.all(np.isfinite(gradient))
    # The median is among the ties only if it is one of the tied values, which it is not here.
    assert float(np.sum(gradient * along)) == pytest.approx(expected, rel=1e-4), tied


def test_gradient_where_fewer_components_are_held_than_kept():
    local = np.random.default_rng(3)
    matrix = 5 * local.standard_normal((7, 5))
    weights, along = local.standard_normal((7, 5)), local.standard_normal((7, 5))

    def score(matrix: Any) -> Any:
        factors = shrink_singular_values(matrix, 0.3, shrinker=RULES["operator"], rank=2)
        return jnp.sum(weights * (factors.left @ factors.right))

    with jax.enable_x64(True):
        gradient = np.asarray(jax.jit(jax.grad(score))(jnp.asarray(matrix)))
        expected = slope(score, matrix, along)
    assert float(np.sum(gradient * along)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_gradient_of_a_layer_in_all_its_arguments():
    local = np.random.default_rng(2)
    inputs, weights = local.standard_normal((8, 4)), local.standard_normal((4, 5))
    outputs = inputs @ np.outer(local.standard_normal(4), local.standard_normal(5)) * 5
    outputs = outputs + local.standard_normal((8, 5))

    def score(inputs: Any, outputs: Any, noise_scale: Any) -> Any:
        factors, _ = optimal_shrinkage(
            inputs, outputs, noise_scale, shrinker=RULES["frobenius"], rank=2
        )
        return jnp.sum(weights * (factors.left @ factors.right))

    with jax.enable_x64(True):
        arguments = jnp.asarray(inputs), jnp.asarray(outputs), jnp.asarray(0.7)
        gradients = jax.grad(score, argnums=(0, 1, 2))(*arguments)
        for index, gradient in enumerate(gradients):
            along = local.standard_normal(np.shape(gradient))

            def moved(value: Any, index: int = index) -> Any:
                return score(*(value if i == index else a for i, a in enumerate(arguments)))

            expected = slope(moved, np.asarray(arguments[index]), along)
            assert float(np.sum(np.asarray(gradient) * along)) == pytest.approx(expected, rel=1e-4)


# --- bad input -----------------------------------------------------------------------------------


def test_bad_input_is_refused():
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="`noise_scale` must be a non-negative finite number"):
            OptimalShrinkage(noise_scale=wrong)
    with pytest.raises(ValueError, match="needs `activations`"):
        recover(Observed(weights=NOISY), 2, OptimalShrinkage())
    biased = Observed(weights=NOISY, activations=np.eye(9), bias=np.ones(6))
    with pytest.raises(ValueError, match="no affine version: leave `bias` out"):
        recover(biased, 2, OptimalShrinkage())


def test_corrupt_numbers_are_in_the_certificate():
    inputs = NOISY.copy()
    inputs[0, 0] = np.nan

    def finite(inputs: Any) -> Any:
        _, certificate = optimal_shrinkage(inputs, NOISY, shrinker=RULES["nuclear"], rank=2)
        return certificate.finite

    assert not bool(jax.jit(finite)(inputs))
    assert dataclasses.is_dataclass(OptimalShrinkage())
