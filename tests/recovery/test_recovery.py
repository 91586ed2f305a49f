"""Every method: against the oracle in every regime, and the laws that all of them obey."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import lowrank_theory as lrt
from laws import jit_is_eager, vmap_is_a_loop
from lowrank_theory import Observed, strategies
from lowrank_theory.recovery import (
    NuclearNormBall,
    OptimalShrinkage,
    RankPenalised,
    SingularValueThreshold,
)
from oracle import Question, norm, objective, product, pseudo_inverse, relative_gap, solve, svd
from regimes import CASE, METHODS, NEGLIGIBLE, REGIMES, SINGLE, Case, Method, orthonormal
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(6)

methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
regimes = pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES.keys())


def fit(
    method: Method, case: Case, rank: int = 2, *, unit: float = 1.0, inputs: float = 1.0
) -> Any:
    """Dense weights, bias and the recovery, as NumPy arrays."""
    recovery = lrt.recover(method.observe(case), rank=rank, method=method.make(unit, inputs))
    bias = None if recovery.bias is None else np.asarray(recovery.bias)
    return np.asarray(recovery.factors.materialise()), bias, recovery


def question(method: Method, case: Case, unit: float = 1.0) -> Question:
    return method.question(case, unit)


def excess(asked: Question, weights, bias, rank: int) -> float:
    """How much worse than the oracle, in units of the outputs."""
    found, best = objective(asked, weights, bias), objective(asked, *solve(asked, rank))
    size = norm(asked.outputs)
    return (found - best) / (size**2 if asked.threshold is not None else size)


def distance(asked: Question, one, other, bias=0.0) -> float:
    """Between two answers, whose biases differ by `bias`, in units of the outputs."""
    return norm(product(asked.inputs, one - other) + bias) / norm(asked.outputs)


def condition(asked: Question) -> float:
    values = svd(asked.inputs)[1]
    return values[0] / values[values > 1e-12 * values[0]][-1]


# --- against the oracle ---------------------------------------------------------------------------


@methods
@regimes
def test_agrees_with_the_oracle(method, regime):
    case, rank = regime.draw(), regime.rank
    asked = question(method, case)
    weights, bias, recovery = fit(method, case, rank)
    certificate = recovery.certificate
    assert weights.dtype == np.float64
    assert bool(certificate.finite)
    if method.from_rows:
        assert bool(certificate.certified)
    if not certificate.certified:
        return
    assert excess(asked, weights, bias, rank) <= NEGLIGIBLE
    accurate = condition(asked) <= (2e4 if method.from_rows else 2e2)
    if accurate and relative_gap(asked, rank) >= 1e-3:
        best, best_bias = solve(asked, rank)
        shift = 0.0 if bias is None else bias - best_bias
        assert distance(asked, weights, best, shift) <= NEGLIGIBLE


@methods
@regimes
def test_certificate_states_the_optimal_error_and_the_norm(method, regime):
    case, rank = regime.draw(), regime.rank
    asked = question(method, case)
    _, _, recovery = fit(method, case, rank)
    if not recovery.certificate.certified:
        return
    weights, bias = solve(asked, rank)
    residual = asked.outputs - product(asked.inputs, weights)
    best = (norm(residual if bias is None else residual - bias) ** 2) + (
        asked.penalty * norm(asked.weights - weights) ** 2 if asked.penalty else 0
    )
    target = asked.outputs - asked.outputs.mean(axis=0) if asked.affine else asked.outputs
    size = norm(target) ** 2 + (asked.penalty * norm(asked.weights) ** 2 if asked.penalty else 0)
    squared = 1.0 if method.from_rows else 1e3  # moments hold squares
    assert float(recovery.certificate.target_norm) == approx(size**0.5, squared)
    rows = 1e-10 if method.from_rows else 1e-3
    assert float(recovery.certificate.optimal_error) == pytest.approx(
        best**0.5, rel=rows, abs=1e-10 * size**0.5
    )


def test_moments_certify_benign_layers():
    """A guard that is never satisfied would be right, and useless."""
    names = ("more inputs than outputs", "more outputs than inputs", "white activations")
    for name in names:
        for key, method in METHODS.items():
            if not method.from_rows:
                regime = REGIMES[name]
                _, _, recovery = fit(method, regime.draw(), regime.rank)
                assert bool(recovery.certificate.certified), (name, key)


@settings(max_examples=20)
@given(strategies.observed_layers())
def test_random_layers(observed):
    """The fitting error of a drawn layer is the oracle's, and no method beats it."""
    inputs, outputs = np.asarray(observed.layer_inputs), np.asarray(observed.outputs)
    asked = Question(inputs, outputs)
    recovery = lrt.recover(observed, rank=2, method=lrt.ActivationWeighted())
    error = float(np.asarray(lrt.fitting_error(recovery, observed)))
    best = objective(asked, *solve(asked, 2))
    assert error == pytest.approx(best, abs=NEGLIGIBLE * norm(outputs))
    agnostic = lrt.recover(observed, rank=2, method=lrt.TruncatedSVD())
    assert float(np.asarray(lrt.fitting_error(agnostic, observed))) >= best - 1e-12 * norm(outputs)


# --- laws -----------------------------------------------------------------------------------------


def close(asked: Question, one, other, tolerance: float = 1e-11) -> None:
    assert distance(asked, one, other) <= tolerance


@methods
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_scale_of_the_weights(method, factor):
    weights, bias, _ = fit(method, CASE)
    scaled = CASE.map(**dict.fromkeys(("weights", "outputs", "bias"), lambda a: a * factor))
    scaled_weights, scaled_bias, _ = fit(method, scaled, unit=factor)
    close(question(method, CASE), scaled_weights / factor, weights)
    if bias is not None:
        assert_close(scaled_bias / factor, bias)


@methods
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_scale_of_the_activations(method, factor):
    """With the weights kept, so that outputs scale too; their given values are scaled along."""
    weights, bias, _ = fit(method, CASE)
    names = ("activations", "compressed", "outputs", "bias")
    scaled = CASE.map(**dict.fromkeys(names, lambda a: a * factor))
    scaled_weights, scaled_bias, _ = fit(method, scaled, unit=factor, inputs=factor)
    close(question(method, CASE), scaled_weights, weights)
    if bias is not None:
        assert_close(scaled_bias / factor, bias)


@methods
def test_rotation_of_the_inputs(method):
    turn = orthonormal(np.random.default_rng(1), 8, 8)
    rotated = CASE.map(
        weights=lambda a: turn.T @ a, activations=lambda a: a @ turn, compressed=lambda a: a @ turn
    )
    weights, bias, _ = fit(method, CASE)
    rotated_weights, rotated_bias, _ = fit(method, rotated)
    close(question(method, CASE), turn @ rotated_weights, weights)
    if bias is not None:
        assert_close(rotated_bias, bias, scale=norm(bias))


@methods
def test_rotation_of_the_outputs(method):
    turn = orthonormal(np.random.default_rng(2), 6, 6)
    rotated = CASE.map(**dict.fromkeys(("weights", "outputs", "bias"), lambda a: a @ turn))
    weights, bias, _ = fit(method, CASE)
    rotated_weights, rotated_bias, _ = fit(method, rotated)
    close(question(method, CASE), rotated_weights @ turn.T, weights)
    if bias is not None:
        assert_close(rotated_bias @ turn.T, bias, scale=norm(bias))


@methods
def test_rotation_of_the_samples(method):
    """Where there is a mean to subtract, of the rotations only permutations keep the problem."""
    random = np.random.default_rng(3)
    affine = question(method, CASE).affine
    turn = np.eye(20)[random.permutation(20)] if affine else orthonormal(random, 20, 20)
    names = ("activations", "compressed", "outputs")
    rotated = CASE.map(**dict.fromkeys(names, lambda a: turn @ a))
    weights, bias, _ = fit(method, CASE)
    rotated_weights, rotated_bias, _ = fit(method, rotated)
    close(question(method, CASE), rotated_weights, weights)
    if bias is not None:
        assert_close(rotated_bias, bias, scale=norm(bias))


@pytest.mark.parametrize("name", ["weighted", "moments: weighted"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_white_activations_give_the_plain_svd(name, scale):
    case = REGIMES["white activations"].draw().map(activations=lambda a: scale * a)
    weighted, _, _ = fit(METHODS[name], case)
    plain, _, _ = fit(METHODS["truncated svd"], case)
    assert norm(weighted - plain) <= 1e-12 * norm(plain)


@methods
def test_more_rank_never_hurts(method):
    asked = question(method, CASE)
    errors = [objective(asked, *fit(method, CASE, rank)[:2]) for rank in (1, 2, 6)]
    slack = 1e-12 * norm(asked.outputs)
    assert errors[0] + slack >= errors[1]
    assert errors[1] + slack >= errors[2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "method",
    [
        SingularValueThreshold(1.0),
        NuclearNormBall(10.0),
        RankPenalised(1.0),
        OptimalShrinkage(noise_scale=0.1),
        lrt.ActivationWeighted(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_what_is_approximated_is_not_rounded_to_the_dtype_of_the_layer(method, dtype):
    """The product of narrow numbers, in float64."""
    case = REGIMES["more inputs than outputs"].draw(0)
    x, w = (np.asarray(jnp.asarray(a, dtype)) for a in (case.activations, case.weights))
    found = lrt.recover(lrt.Observed(weights=w, activations=x), 3, method)
    wanted = norm(x.astype(np.float64) @ w.astype(np.float64))
    assert found.factors.dtype == dtype
    certificate: Any = found.certificate
    assert float(certificate.target_norm) == approx(wanted)


@pytest.mark.parametrize(
    "name", ["truncated svd", "weighted", "affine", "moments: weighted", "moments: affine"]
)
def test_weights_of_the_rank_come_back(name):
    case = REGIMES["exact rank"].draw()
    weights, bias, recovery = fit(METHODS[name], case)
    tolerance = 1e-12 if METHODS[name].from_rows else 1e-7
    assert norm(weights - case.weights) <= tolerance * norm(case.weights)
    again, _, _ = fit(METHODS[name], dataclasses.replace(case, weights=weights))
    assert norm(weights - again) <= tolerance * norm(case.weights)
    if bias is not None:
        assert norm(bias - case.bias) <= 10 * tolerance * norm(case.bias)
    assert recovery.factors.rank == 2


@methods
def test_the_affine_residual_has_no_mean(method):
    """The new bias is exact also where the mean is a million times the spread."""
    if not question(method, CASE).affine:
        pytest.skip("not affine")
    shifted = CASE.map(activations=lambda a: a + 1e6, compressed=lambda a: a + 1e6)
    asked = question(method, shifted)
    weights, bias, _ = fit(method, shifted)
    residual = asked.outputs - product(asked.inputs, weights) - bias
    assert norm(residual.mean(axis=0)) <= 1e-14 * norm(asked.inputs) * norm(weights)
    if not asked.penalty:
        base = question(method, CASE)
        close(Question(base.inputs, base.outputs), weights, fit(method, CASE)[0], 1e-8)


# --- transformations and dtypes -------------------------------------------------------------------


def dense(method: Method, case: Case) -> Any:
    recovery = lrt.recover(method.observe(case), rank=2, method=method.make(1.0, 1.0))
    return recovery.factors.materialise(), recovery.bias


@methods
def test_jit_and_vmap_agree_with_the_plain_call(method):
    def weights(*arrays: Any) -> Any:
        return dense(method, Case(*arrays))[0]

    jit_is_eager(weights, *SINGLE.arrays(), condition=1 / 8, scale=1, side=1)
    lanes = [REGIMES["more inputs than outputs"].draw(seed).cast(np.float32) for seed in range(3)]
    stacks = [np.stack(arrays) for arrays in zip(*map(Case.arrays, lanes), strict=True)]
    vmap_is_a_loop(weights, *stacks, condition=1 / 8, scale=1, side=1)


@methods
def test_the_x64_flag_changes_nothing(method):
    off, off_bias, _ = fit(method, CASE)
    with jax.enable_x64(True):
        on, on_bias, _ = fit(method, CASE)
    assert on.dtype == off.dtype == np.float64
    assert_close(on, off)
    if off_bias is not None:
        assert_close(on_bias, off_bias)


@methods
def test_dtypes_are_kept_and_float32_is_computed_in_float64(method):
    recovery = lrt.recover(method.observe(SINGLE), rank=2, method=method.make(1.0, 1.0))
    assert recovery.factors.dtype == np.float32
    assert recovery.bias is None or recovery.bias.dtype == np.float32
    exact, _, _ = fit(method, SINGLE.cast(np.float64))
    found = np.asarray(recovery.factors.materialise())
    asked = question(method, SINGLE.cast(np.float64))
    assert distance(asked, found, exact) <= 4 * np.finfo(np.float32).eps


def test_low_precision_floats_are_accepted():
    for dtype in (jnp.bfloat16, jnp.float16):
        observed = Observed(
            weights=jnp.asarray(SINGLE.weights, dtype),
            activations=jnp.asarray(SINGLE.activations, dtype),
        )
        recovery = lrt.recover(observed, rank=2, method=lrt.ActivationWeighted())
        assert recovery.factors.dtype == dtype
        assert bool(recovery.certificate.finite)


@methods
def test_integers_are_refused(method):
    with pytest.raises(ValueError, match="must be floating point; got dtype int"):
        method.observe(CASE.cast(np.int32))


def test_no_warning_escapes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recovery = lrt.recover(
            Observed(weights=CASE.weights, activations=CASE.activations),
            rank=2,
            method=lrt.ActivationWeighted(),
        )
        assert bool(recovery.require().certificate.certified)


def test_the_oracle_answers_a_question_with_a_known_answer():
    """Its own control: full rank is least squares, and white inputs the plain SVD."""
    random = np.random.default_rng(8)
    inputs, outputs = random.standard_normal((20, 8)), random.standard_normal((20, 6))
    weights, _ = solve(Question(inputs, outputs), 6)
    assert_close(weights, np.linalg.lstsq(inputs, outputs, rcond=None)[0], scale=1)
    assert_close(pseudo_inverse(inputs), np.linalg.pinv(inputs), scale=1)
    affine, bias = solve(Question(inputs, outputs, affine=True), 6)
    assert bias is not None
    extended = np.concatenate([inputs, np.ones((20, 1))], axis=1)
    wanted = np.linalg.lstsq(extended, outputs, rcond=None)[0]
    assert_close(np.concatenate([affine, bias[None]]), wanted, scale=1)
