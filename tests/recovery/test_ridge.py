"""The recovery with a ridge: against the oracle, its limits, and its relation to the plain one."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_theory as lrt
from lowrank_theory import ActivationWeighted, Calibration, Observed, Ridge, recover
from lowrank_theory.recovery import ridge, ridge_from_moments
from oracle import Question, norm, objective, product, solve
from regimes import REGIMES, Case
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(6)

CASE = REGIMES["more inputs than outputs"].draw()
NAMES = ("more inputs than outputs", "more outputs than inputs", "fewer samples than inputs")
every_kind = pytest.mark.parametrize(
    ("mismatch", "affine", "moments"),
    [(m, a, c) for m in (False, True) for a in (False, True) for c in (False, True)],
)


def observed(case: Case, *, mismatch: bool, affine: bool, moments: bool) -> Observed:
    bias = case.bias if affine else None
    if not moments:
        compressed = case.compressed if mismatch else None
        return Observed(
            weights=case.weights,
            activations=case.activations,
            compressed_activations=compressed,
            bias=bias,
        )
    seen = Calibration.empty(case.activations.shape[1], compressed=mismatch)
    batch = (case.activations, case.compressed) if mismatch else (case.activations,)
    return Observed(weights=case.weights, calibration=seen.update(*batch), bias=bias)


def asked(case: Case, *, mismatch: bool, affine: bool) -> Question:
    outputs = case.activations @ case.weights + (case.bias if affine else 0)
    inputs = case.compressed if mismatch else case.activations
    return Question(inputs, outputs, case.weights, penalty=2.0, affine=affine)


def dense(recovery: Any) -> np.ndarray:
    return np.asarray(recovery.factors.materialise())


def certificate(recovery: Any) -> Any:
    return recovery.certificate


@every_kind
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_oracle(name, mismatch, affine, moments):
    case = REGIMES[name].draw()
    question = asked(case, mismatch=mismatch, affine=affine)
    layer = observed(case, mismatch=mismatch, affine=affine, moments=moments)
    recovery = recover(layer, 2, Ridge(question.penalty))
    weights, bias = solve(question, 2)
    assert norm(dense(recovery) - weights) <= 1e-9 * norm(case.weights)
    if affine:
        assert norm(np.asarray(recovery.bias) - bias) <= 1e-9 * norm(case.bias)
    else:
        assert recovery.bias is None
    stated = certificate(recovery.require())
    best = objective(question, weights, bias)
    assert float(stated.optimal_error) == approx(best)
    assert 0 < float(stated.excess_bound) < 1e-6 * best


@every_kind
def test_without_a_penalty_it_is_the_plain_recovery(mismatch, affine, moments):
    layer = observed(CASE, mismatch=mismatch, affine=affine, moments=moments)
    plain, zero = (recover(layer, 2, method) for method in (ActivationWeighted(), Ridge(0.0)))
    assert norm(dense(zero) - dense(plain)) <= 1e-10 * norm(dense(plain))


def test_a_large_penalty_truncates_the_weights():
    layer = observed(CASE, mismatch=False, affine=False, moments=False)
    truncated = recover(layer, 2, lrt.TruncatedSVD())
    pulled = recover(layer, 2, Ridge(1e12))
    assert norm(dense(pulled) - dense(truncated)) <= 1e-8 * norm(CASE.weights)


@pytest.mark.parametrize("mismatch", [False, True])
def test_full_rank_keeps_what_the_penalty_leaves(mismatch):
    """Nothing is shrunk: with the same activations the trained weights themselves come back."""
    layer = observed(CASE, mismatch=mismatch, affine=False, moments=False)
    recovery = recover(layer, 6, Ridge(2.0))
    mu, inputs = 2.0, CASE.compressed if mismatch else CASE.activations
    moments = inputs.T @ CASE.activations + mu * np.eye(8)
    expected = np.linalg.solve(inputs.T @ inputs + mu * np.eye(8), moments @ CASE.weights)
    assert norm(dense(recovery) - expected) <= 1e-12 * norm(expected)
    if not mismatch:
        assert norm(dense(recovery) - CASE.weights) <= 1e-12 * norm(CASE.weights)


def test_it_decides_where_the_samples_do_not():
    """One sample says nothing of two inputs; the ridge keeps the larger weight there."""
    weights, rows = np.diag([1.0, 3.0, 2.0]), np.array([[1.0, 0.0, 0.0]])
    recovery = recover(Observed(weights=weights, activations=rows), 2, Ridge(1e-6))
    assert_close(dense(recovery), np.diag([1.0, 3.0, 0.0]))


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
@pytest.mark.parametrize("moments", [False, True])
def test_scales_with_the_units_of_activations_and_weights(factor, moments):
    layer = observed(CASE, mismatch=True, affine=True, moments=moments)
    base = recover(layer, 2, Ridge(0.7))
    larger = CASE.map(activations=lambda a: factor * a, compressed=lambda a: factor * a)
    layer = observed(larger, mismatch=True, affine=True, moments=moments)
    found = recover(layer, 2, Ridge(0.7 * factor**2))
    assert norm(dense(found) - dense(base)) <= 1e-10 * norm(dense(base))
    heavier = CASE.map(weights=lambda w: factor * w, bias=lambda b: factor * b)
    layer = observed(heavier, mismatch=True, affine=True, moments=moments)
    found = recover(layer, 2, Ridge(0.7))
    assert norm(dense(found) - factor * dense(base)) <= 1e-10 * factor * norm(dense(base))


def test_the_affine_residual_has_no_mean():
    shifted = CASE.map(activations=lambda a: a + 1e6)
    layer = observed(shifted, mismatch=False, affine=True, moments=False)
    recovery = recover(layer, 2, Ridge(1.0))
    base = recover(observed(CASE, mismatch=False, affine=True, moments=False), 2, Ridge(1.0))
    assert norm(dense(recovery) - dense(base)) <= 1e-8 * norm(dense(base))
    outputs = shifted.activations @ shifted.weights + shifted.bias
    residual = outputs - product(shifted.activations, dense(recovery)) - np.asarray(recovery.bias)
    assert norm(residual.mean(axis=0)) <= 1e-14 * norm(shifted.activations) * norm(CASE.weights)
    # A mean that was taken out has left its rounding behind, and the certificate counts it.
    bounds = [float(certificate(r).excess_bound) for r in (recovery, base)]
    assert bounds[0] > 1e4 * bounds[1]


def test_dtypes_are_those_of_the_weights_and_the_flag_changes_nothing():
    single = CASE.cast(np.float32)
    layer = observed(single, mismatch=False, affine=True, moments=False)
    recovery = recover(layer, 2, Ridge(0.5))
    exact = recover(
        observed(single.cast(np.float64), mismatch=False, affine=True, moments=False),
        2,
        Ridge(0.5),
    )
    assert recovery.factors.dtype == np.float32
    assert recovery.bias is not None
    assert recovery.bias.dtype == np.float32
    assert norm(dense(recovery) - dense(exact)) <= 1e-6 * norm(dense(exact))
    with jax.enable_x64(True):
        on = recover(layer, 2, Ridge(0.5))
    np.testing.assert_array_equal(dense(on), dense(recovery))


@pytest.mark.slow
def test_jit_vmap_and_gradient_in_the_penalty():
    weights, rows = CASE.weights, CASE.activations
    seen = Calibration.empty(8).update(rows)

    def from_rows(penalty: Any) -> Any:
        factors, _, _ = ridge(weights, rows, penalty, rank=2)
        return factors.left @ factors.right

    def from_moments(penalty: Any) -> Any:
        factors, _, _ = ridge_from_moments(weights, seen, penalty, rank=2)
        return factors.left @ factors.right

    penalties = np.array([0.1, 1.0, 10.0])
    with jax.enable_x64(True):
        for function in (from_rows, from_moments):
            lanes = jax.jit(jax.vmap(function))(jnp.asarray(penalties))
            for penalty, lane in zip(penalties, lanes, strict=True):
                layer = Observed(weights=weights, activations=rows)
                alone = dense(recover(layer, 2, Ridge(float(penalty))))
                assert_close(lane, alone, condition=10, scale=norm(alone))
            slope = jax.jacobian(function)(jnp.asarray(1.0))
            step = 1e-5
            difference = (function(1.0 + step) - function(1.0 - step)) / (2 * step)
            np.testing.assert_allclose(slope, difference, atol=1e-8 * norm(weights))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Ridge(-1.0), "`penalty` must be a non-negative finite number; got -1.0"),
        (lambda: Ridge(math.inf), "`penalty` must be a non-negative finite number; got inf"),
        (
            lambda: recover(Observed(activations=np.eye(3), outputs=np.eye(3)), 1, Ridge(1.0)),
            "pulls towards the trained weights: give `weights`",
        ),
        (
            lambda: recover(Observed(weights=np.eye(3)), 1, Ridge(1.0)),
            "`Ridge` needs what the layer sees",
        ),
        (
            lambda: recover(
                Observed(weights=np.eye(3), calibration=Calibration.empty(3)), 1, Ridge(1.0)
            ),
            "has seen no samples yet",
        ),
    ],
)
def test_bad_input_has_one_clear_message(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_options_are_the_fields():
    assert [field.name for field in dataclasses.fields(Ridge)] == ["penalty"]
    assert Ridge(1.0) == Ridge(1.0)
    assert hash(Ridge(1.0)) == hash(Ridge(1.0))
