"""Recovery by a random sketch: against the exact one, and against what its certificate says."""

from typing import Any

import jax
import numpy as np
import pytest

from laws import jit_is_eager, scales
from lowrank_theory import ActivationWeighted, Calibration, Observed, recover
from lowrank_theory.recovery import Randomized, randomized
from oracle import norm, tail
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(2)

SAMPLES, INPUTS, OUTPUTS, RANK = 90, 70, 60, 3
KEY = jax.random.key(0)
METHOD = Randomized(key=KEY)
LOOSE = Randomized(excess=0.5, key=KEY)
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


@every_route
def test_the_result_is_as_near_to_the_optimum_as_was_asked(route):
    for seed in range(5):
        rows, weights = layer(seed)
        for method in (METHOD, LOOSE):
            recovery = fit(route, rows, weights, method)
            certificate = recovery.certificate
            realised, optimum = error(rows, weights, recovery), tail(rows @ weights, RANK)
            assert recovery.factors.rank == RANK
            assert float(certificate.target_norm) == approx(np.linalg.norm(rows @ weights))
            assert optimum <= realised * (1 + 1e-12)
            stated, excess = float(certificate.optimal_error), float(certificate.excess_bound)
            assert stated <= optimum * (1 + 1e-12)
            assert realised <= stated + excess == pytest.approx(realised, rel=1e-9)
            assert bool(certificate.certified)
            assert realised**2 <= (1 + method.excess) * optimum**2


@pytest.mark.slow
@every_route
def test_a_tighter_excess_takes_more_steps_and_too_few_are_not_certified(route):
    rows, weights = layer(1, decay=0.1)  # nearly flat: no sketch finds it at once
    tight = Randomized(excess=1e-5, key=KEY)
    recovery = fit(route, rows, weights, tight)
    loose = fit(route, rows, weights, LOOSE)
    assert error(rows, weights, recovery) <= (1 + 0.5e-5) * tail(rows @ weights, RANK)
    assert float(recovery.certificate.excess_bound) < float(loose.certificate.excess_bound)
    assert bool(recovery.certificate.certified) and bool(loose.certificate.certified)
    stopped = fit(route, rows, weights, Randomized(excess=1e-5, max_steps=1, key=KEY))
    assert not bool(stopped.certificate.certified)
    excess = error(rows, weights, stopped) - tail(rows @ weights, RANK)
    assert 0 < excess <= float(stopped.certificate.excess_bound)
    with pytest.raises(RuntimeError, match="not certified"):
        jax.block_until_ready(stopped.require().factors.left)


@pytest.mark.slow
def test_a_smaller_failure_probability_costs_more():
    rows, weights = layer(2, decay=0.1)  # where the probes decide, not the residuals
    bounds = [
        float(
            fit(
                "rows",
                rows,
                weights,
                Randomized(excess=0.5, failure_probability=delta, max_steps=1, key=KEY),
            ).certificate.excess_bound
        )
        for delta in (0.1, 1e-6, 1e-20)
    ]
    assert bounds == sorted(bounds) and bounds[0] < bounds[-1]


@pytest.mark.slow
@every_route
def test_a_full_sketch_is_the_exact_recovery_and_is_certified(route):
    rows, weights = layer()
    weights = weights[:, :10]  # as wide as a sketch for rank 3 is at least
    wide = Randomized(excess=1e-3, key=KEY)
    for bias in (None, np.linspace(-1, 1, 10)):
        recovery = fit(route, rows + (bias is not None), weights, wide, bias=bias)
        exact = fit(route, rows + (bias is not None), weights, ActivationWeighted(), bias=bias)
        assert_close(dense(recovery), dense(exact), scale=norm(dense(exact)))
        assert bool(recovery.certificate.certified)
        expected = float(exact.certificate.optimal_error)
        bound = float(recovery.require().certificate.optimal_error)  # lower by rounding
        assert bound == pytest.approx(expected, rel=1e-7)
        if bias is not None:
            assert_close(recovery.bias, exact.bias)


@every_route
def test_affine_layer_gets_its_best_bias(route):
    rows, weights = layer(2)
    rows, bias = rows + 3.0, np.linspace(-1, 1, OUTPUTS)
    recovery = fit(route, rows, weights, bias=bias)
    residual = rows @ weights + bias - rows @ dense(recovery) - np.asarray(recovery.bias)
    assert_close(residual.mean(axis=0), 0, scale=norm(residual))
    centred = rows - rows.mean(axis=0)
    realised, optimum = np.linalg.norm(residual), tail(centred @ weights, RANK)
    stated, excess = (
        float(getattr(recovery.certificate, name)) for name in ("optimal_error", "excess_bound")
    )
    assert stated <= optimum <= realised <= 1.005 * optimum
    assert realised <= stated + excess == pytest.approx(realised, rel=1e-7)


@every_route
def test_units_do_not_matter(route):
    rows, weights = layer()

    def at(unit):
        recovery = fit(route, unit * rows, weights)
        names = ("optimal_error", "excess_bound", "target_norm")
        return dense(recovery), [getattr(recovery.certificate, name) for name in names]

    scales(at, (0, 1), condition=1e6, scale=1)  # the first steps are in float32


def test_rotating_samples_changes_nothing():
    rows, weights = layer()
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((SAMPLES, SAMPLES)))[0]
    turned = fit("rows", rotation @ rows, weights)
    # The first steps are in float32, and what they find is not quite the same.
    np.testing.assert_allclose(dense(turned), dense(fit("rows", rows, weights)), atol=1e-4)


def test_the_key_decides_and_nothing_else():
    rows, weights = layer()
    same, other = (Randomized(key=jax.random.key(seed)) for seed in (0, 1))
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
    seen = observed(route, *(part.astype(np.float32) for part in layer()))
    jit_is_eager(lambda given: recover(given, RANK, METHOD).factors.materialise(), seen, side=1)
    assert jax.jit(lambda given: recover(given, RANK, METHOD))(seen).method == METHOD
    assert recover(seen, RANK, METHOD).factors.dtype == np.float32


@pytest.mark.slow
def test_vmap_over_keys_is_a_loop():
    rows, weights = (part.astype(np.float32) for part in layer())
    words = jax.vmap(jax.random.key_data)(jax.random.split(KEY, 3))
    together = jax.vmap(lambda word: randomized(weights, rows, word, rank=RANK))(words)
    for index, word in enumerate(words):
        alone = randomized(weights, rows, word, rank=RANK)
        product = alone[0].left @ alone[0].right
        assert bool(alone[2].certified) and bool(together[2].certified[index])
        assert_close(together[0].left[index] @ together[0].right[index], product)


@every_route
def test_exactly_low_rank_and_zero_layers(route):
    rows, weights = layer()
    low = weights[:, :RANK] @ np.random.default_rng(2).standard_normal((RANK, OUTPUTS))
    recovery = fit(route, rows, low)
    assert error(rows, low, recovery) <= 1e-12 * np.linalg.norm(rows @ low)
    assert float(recovery.certificate.optimal_error) <= 1e-6 * np.linalg.norm(rows @ low)
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
    "excess": (lambda: Randomized(0.0, key=KEY), "`excess` must be a positive finite number"),
    "certain": (
        lambda: Randomized(failure_probability=0.0, key=KEY),
        "`failure_probability` must lie strictly between 0 and 1; got 0.0",
    ),
    "steps": (lambda: Randomized(max_steps=0, key=KEY), "`max_steps` must be an integer >= 1"),
    "no key": (lambda: Randomized(key=0), r"`key` must be a key such as .*; got 0"),  # pyright: ignore[reportArgumentType]
    "keys": (lambda: Randomized(key=jax.random.split(KEY)), r"must be one key; got shape \(2,\)"),
    "traced": (
        lambda: jax.jit(lambda key: Randomized(key=key).excess)(KEY),
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
