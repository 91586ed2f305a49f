"""Recovery by a random sketch: against the exact one, and against what its certificate says."""

from typing import Any

import jax
import numpy as np
import pytest
import scipy.linalg

from lowrank_theory import ActivationWeighted, Calibration, Observed, recover
from lowrank_theory.recovery import Randomized, randomized

SAMPLES, INPUTS, OUTPUTS, RANK = 40, 12, 10, 3
KEY = jax.random.key(0)
METHOD = Randomized(oversampling=2, power_iterations=1, key=KEY)
ROUTES = ("rows", "moments")
every_route = pytest.mark.parametrize("route", ROUTES)


def layer(seed: int = 0, decay: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    activations = random.standard_normal((SAMPLES, INPUTS)) * np.arange(1, INPUTS + 1) ** -decay
    return activations, random.standard_normal((INPUTS, OUTPUTS))


def observed(route: str, rows: np.ndarray, weights: np.ndarray, **more: Any) -> Observed:
    if route == "rows":
        return Observed(weights=weights, activations=rows, **more)
    calibration = Calibration.empty(rows.shape[1]).update(rows)
    return Observed(weights=weights, calibration=calibration, **more)


def fit(
    route: str, rows: np.ndarray, weights: np.ndarray, method: Any = METHOD, **more: Any
) -> Any:
    return recover(observed(route, rows, weights, **more), RANK, method)


def dense(recovery: Any) -> np.ndarray:
    return np.asarray(recovery.factors.left) @ np.asarray(recovery.factors.right)


def error(rows: np.ndarray, weights: np.ndarray, recovery: Any) -> float:
    return float(np.linalg.norm(rows @ (weights - dense(recovery))))


def tail(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(scipy.linalg.svdvals(matrix)[RANK:]))


def number(value: Any) -> float:
    return float(np.asarray(value))


@every_route
def test_certificate_says_what_the_error_is_and_how_far_the_optimum_can_be(route):
    for seed in range(5):
        rows, weights = layer(seed)
        recovery = fit(route, rows, weights)
        certificate = recovery.certificate
        realised, optimum = error(rows, weights, recovery), tail(rows @ weights)
        assert recovery.factors.rank == RANK
        assert number(certificate.optimal_error) == pytest.approx(realised, rel=1e-10)
        assert number(certificate.target_norm) == pytest.approx(np.linalg.norm(rows @ weights))
        assert optimum <= realised * (1 + 1e-12)
        assert realised - optimum <= number(certificate.excess_bound)
        assert bool(certificate.finite)


@every_route
def test_excess_is_bounded_by_what_the_sketch_left_out(route):
    """The excess bound, from its definition, in NumPy: the range found holds the rows of Z."""
    rows, weights = layer(1)
    outputs = rows @ weights
    with jax.enable_x64(True):
        from lowrank_theory.generators._random import normal

        sketch = np.asarray(normal(KEY, (OUTPUTS, RANK + 2)))
    moment = outputs.T @ outputs
    basis = scipy.linalg.orth(moment @ moment @ sketch)
    assert basis.shape == (OUTPUTS, RANK + 2)
    _, values, right = np.linalg.svd(outputs @ basis)
    vectors = basis @ right[:RANK].T
    best = weights @ vectors @ vectors.T
    recovery = fit(route, rows, weights)
    np.testing.assert_allclose(dense(recovery), best, atol=1e-8 * float(np.linalg.norm(best)))
    expected = np.linalg.norm(outputs - rows @ best) - np.linalg.norm(values[RANK:])
    excess = number(recovery.certificate.excess_bound)
    assert excess == pytest.approx(expected, rel=1e-6)
    assert expected < excess
    assert not bool(recovery.certificate.certified)


@every_route
def test_a_full_sketch_is_the_exact_recovery_and_is_certified(route):
    rows, weights = layer()
    wide = Randomized(oversampling=OUTPUTS, power_iterations=0, key=KEY)
    for bias in (None, np.linspace(-1, 1, OUTPUTS)):
        recovery = fit(route, rows + (bias is not None), weights, wide, bias=bias)
        exact = fit(route, rows + (bias is not None), weights, ActivationWeighted(), bias=bias)
        np.testing.assert_allclose(dense(recovery), dense(exact), atol=1e-10)
        assert bool(recovery.certificate.certified)
        expected = number(exact.certificate.optimal_error)
        assert number(recovery.require().certificate.optimal_error) == pytest.approx(expected)
        if bias is not None:
            np.testing.assert_allclose(recovery.bias, exact.bias, atol=1e-10)


@every_route
def test_affine_layer_gets_its_best_bias(route):
    rows, weights = layer(2)
    rows, bias = rows + 3.0, np.linspace(-1, 1, OUTPUTS)
    recovery = fit(route, rows, weights, bias=bias)
    residual = rows @ weights + bias - rows @ dense(recovery) - np.asarray(recovery.bias)
    np.testing.assert_allclose(residual.mean(axis=0), 0, atol=1e-12)
    centred = rows - rows.mean(axis=0)
    optimal = number(recovery.certificate.optimal_error)
    assert optimal == pytest.approx(np.linalg.norm(residual), rel=1e-9)
    assert tail(centred @ weights) <= optimal <= 1.05 * tail(centred @ weights)


def test_power_iterations_and_oversampling_bring_the_optimum_nearer():
    rows, weights = layer(3, decay=0.3)
    optimum = tail(rows @ weights)

    def excess(oversampling: int, power_iterations: int) -> float:
        methods = (
            Randomized(oversampling, power_iterations, key=key) for key in jax.random.split(KEY, 10)
        )
        return float(
            np.mean([error(rows, weights, fit("rows", rows, weights, m)) for m in methods])
        )

    plain, wider, powered = excess(2, 0), excess(5, 0), excess(2, 3)
    assert optimum < powered < plain
    assert optimum < wider < plain


def test_mean_excess_is_within_the_theorem():
    rows, weights = layer(4, decay=0.3)
    values = np.asarray(scipy.linalg.svdvals(rows @ weights))
    p, q = 4, 0
    kept, dropped = values[:RANK], values[RANK:, None]
    allowed = np.sum(dropped**2 * (dropped / kept) ** (4 * q + 2)) / (p - 1)
    words = jax.vmap(jax.random.key_data)(jax.random.split(KEY, 200))
    single, weights32 = rows.astype(np.float32), weights.astype(np.float32)
    fitted = jax.vmap(
        lambda word: randomized(
            weights32, single, word, rank=RANK, oversampling=p, power_iterations=q
        )
    )(words)
    errors = np.asarray(fitted[2].optimal_error, float) ** 2
    mean = float(np.mean(errors)) - tail(rows @ weights) ** 2
    assert 0.02 * allowed < mean < allowed


@every_route
@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_units_do_not_matter(route, factor):
    rows, weights = layer()
    plain, scaled = fit(route, rows, weights), fit(route, factor * rows, weights)
    np.testing.assert_allclose(dense(scaled), dense(plain), atol=1e-12)
    for name in ("optimal_error", "excess_bound", "target_norm"):
        got = number(getattr(scaled.certificate, name))
        assert got == pytest.approx(factor * number(getattr(plain.certificate, name)), rel=1e-9)


def test_rotating_samples_changes_nothing():
    rows, weights = layer()
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((SAMPLES, SAMPLES)))[0]
    turned = fit("rows", rotation @ rows, weights)
    np.testing.assert_allclose(dense(turned), dense(fit("rows", rows, weights)), atol=1e-10)


def test_the_key_decides_and_nothing_else():
    rows, weights = layer()
    same = Randomized(oversampling=2, power_iterations=1, key=jax.random.key(0))
    other = Randomized(oversampling=2, power_iterations=1, key=jax.random.key(1))
    assert same == METHOD and hash(same) == hash(METHOD)
    assert other != METHOD
    np.testing.assert_array_equal(
        dense(fit("rows", rows, weights, same)), dense(fit("rows", rows, weights))
    )
    assert not np.allclose(
        dense(fit("rows", rows, weights, other)), dense(fit("rows", rows, weights))
    )


@every_route
def test_jit_is_eager_and_dtypes_are_kept(route):
    rows, weights = layer()
    rows, weights = rows.astype(np.float32), weights.astype(np.float32)
    seen = observed(route, rows, weights)
    eager = recover(seen, RANK, METHOD)
    traced = jax.jit(lambda given: recover(given, RANK, METHOD))(seen)
    assert eager.factors.dtype == np.float32
    np.testing.assert_allclose(dense(traced), dense(eager), atol=1e-5)
    assert traced.method == METHOD


def test_vmap_over_keys_is_a_loop():
    rows, weights = (part.astype(np.float32) for part in layer())
    words = jax.vmap(jax.random.key_data)(jax.random.split(KEY, 3))
    together = jax.vmap(lambda word: randomized(weights, rows, word, rank=RANK))(words)
    for index, word in enumerate(words):
        alone = randomized(weights, rows, word, rank=RANK)
        product = alone[0].left @ alone[0].right
        np.testing.assert_allclose(
            together[0].left[index] @ together[0].right[index], product, atol=1e-4
        )


@every_route
def test_exactly_low_rank_and_zero_layers(route):
    rows, weights = layer()
    low = weights[:, :RANK] @ np.random.default_rng(2).standard_normal((RANK, OUTPUTS))
    recovery = fit(route, rows, low)
    assert error(rows, low, recovery) <= 1e-12 * np.linalg.norm(rows @ low)
    assert number(recovery.certificate.optimal_error) <= 1e-6 * np.linalg.norm(rows @ low)
    nothing = fit(route, rows, np.zeros_like(weights))
    assert not dense(nothing).any()
    assert bool(nothing.certificate.certified)


def test_non_finite_input_is_data_under_jit():
    rows, weights = (part.astype(np.float32) for part in layer())
    rows[0, 0] = np.inf
    words = jax.random.key_data(KEY)
    certificate = jax.jit(lambda x: randomized(weights, x, words, rank=RANK)[2])(rows)
    assert not bool(certificate.finite)
    assert not bool(certificate.certified)


WRONG = {
    "oversampling": (
        lambda: Randomized(1, key=KEY),
        "`oversampling` must be an integer >= 2; got 1",
    ),
    "power": (lambda: Randomized(2, -1, key=KEY), "`power_iterations` must be an integer >= 0"),
    "no key": (lambda: Randomized(key=0), r"`key` must be a key such as .*; got 0"),  # pyright: ignore[reportArgumentType]
    "keys": (lambda: Randomized(key=jax.random.split(KEY)), r"must be one key; got shape \(2,\)"),
    "traced": (
        lambda: jax.jit(lambda key: Randomized(key=key).oversampling)(KEY),
        "`key` must be a key at hand",
    ),
    "weights": (
        lambda: recover(Observed(activations=np.eye(3), outputs=np.eye(3)), 1, METHOD),
        "`Randomized` sketches the outputs of the trained layer",
    ),
    "rows": (
        lambda: recover(Observed(weights=np.eye(3)), 1, METHOD),
        "`Randomized` needs what the layer sees",
    ),
    "mismatch": (
        lambda: recover(
            Observed(weights=np.eye(3), activations=np.eye(3), compressed_activations=np.eye(3)),
            1,
            METHOD,
        ),
        "layers that see what they always saw",
    ),
    "outputs": (
        lambda: recover(
            Observed(weights=np.eye(3), activations=np.eye(3), outputs=np.eye(3)), 1, METHOD
        ),
        "layers that see what they always saw",
    ),
    "compressed calibration": (
        lambda: recover(
            Observed(
                weights=np.eye(3),
                calibration=Calibration.empty(3, compressed=True).update(np.eye(3), np.eye(3)),
            ),
            1,
            METHOD,
        ),
        "layers that see what they always saw",
    ),
    "nothing seen": (
        lambda: recover(Observed(weights=np.eye(3), calibration=Calibration.empty(3)), 1, METHOD),
        "`calibration` has seen no samples yet",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
