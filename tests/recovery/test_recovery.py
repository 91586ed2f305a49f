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
from lowrank_theory import Calibration, Observed, strategies
from lowrank_theory.recovery import (
    NuclearNormBall,
    OptimalShrinkage,
    RankPenalised,
    SingularValueThreshold,
    activation_weighted,
    activation_weighted_from_moments,
    singular_value_threshold,
    truncated_svd,
)
from oracle import Question, norm, objective, product, pseudo_inverse, relative_gap, solve, svd
from regimes import METHODS, REGIMES, Case, Method, orthonormal
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(6)

NEGLIGIBLE = 1e-10  # of the outputs; what a method in float64 promises
CASE = REGIMES["more inputs than outputs"].draw()

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

SINGLE = CASE.cast(np.float32)


def dense(method: Method, case: Case) -> Any:
    recovery = lrt.recover(method.observe(case), rank=2, method=method.make(1.0, 1.0))
    return recovery.factors.materialise(), recovery.bias


@methods
def test_jit_and_vmap_agree_with_the_plain_call(method):
    plain, _ = dense(method, SINGLE)
    jitted, _ = jax.jit(lambda case: dense(method, Case(*case)))(_leaves(SINGLE))
    tolerance = 4 * float(np.finfo(np.float32).eps) * norm(np.asarray(plain))
    np.testing.assert_allclose(jitted, plain, atol=tolerance)
    lanes = [REGIMES["more inputs than outputs"].draw(seed).cast(np.float32) for seed in range(3)]
    stacked = [jnp.stack(arrays) for arrays in zip(*map(_leaves, lanes), strict=True)]
    mapped, _ = jax.jit(jax.vmap(lambda case: dense(method, Case(*case))))(stacked)
    for one, lane in zip(mapped, lanes, strict=True):
        np.testing.assert_allclose(one, dense(method, lane)[0], atol=tolerance)


def _leaves(case: Case) -> list[np.ndarray]:
    return [getattr(case, field.name) for field in dataclasses.fields(case)]


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


# --- the guard of second moments ------------------------------------------------------------------


def _hard_layers(count: int, largest: float = 9.0):
    """Dominant spread directions, weights nearly orthogonal to them, exactly low rank."""
    random = np.random.default_rng(7)
    for index in range(count):
        kind, rank = index % 5, 2
        ratio = 10 ** random.uniform(0, largest)
        massive = random.integers(1, 3)
        values = np.where(np.arange(8) < massive, ratio, np.geomspace(1, 0.1, 8))
        frame = orthonormal(random, 8, 8)
        activations = (random.standard_normal((12, 8)) * values) @ frame.T
        weights = random.standard_normal((8, 6))
        away = 10 ** random.uniform(-10, 0)
        dominant = frame[:, :massive]
        if kind in (1, 3):  # nearly orthogonal to the dominant directions
            weights -= (1 - away) * dominant @ (dominant.T @ weights)
        if kind in (2, 3):  # of the rank asked for, or nearly
            left, sizes, right = np.linalg.svd(weights, full_matrices=False)
            tail = 10 ** random.uniform(-12, 0) if index % 2 else 0.0
            weights = (left * np.where(np.arange(6) < rank, sizes, tail * sizes)) @ right
        if kind == 4:  # the dominant part is what a mean does
            activations = random.standard_normal((12, 8)) + ratio * random.standard_normal(8)
        yield kind, ratio, activations, weights


def _true_errors(question_: Question, weights, rank: int) -> tuple[float, float]:
    """The error and the optimum, with the outputs formed in extended precision."""
    values = svd(attainable_outputs(question_))[1]
    outside = norm(question_.outputs - attainable_outputs(question_))
    optimum = np.hypot(outside, np.sqrt(np.sum(values[rank:] ** 2)))
    return objective(question_, weights), float(optimum)


def attainable_outputs(asked: Question):
    left, values, _ = svd(asked.inputs)
    basis = left[:, values > 1e-13 * values[0]]
    return product(basis, product(basis.T, asked.outputs))


@pytest.mark.parametrize("mismatch", [False, True])
def test_moments_are_certified_only_where_they_are_accurate(mismatch):
    random = np.random.default_rng(11)
    bad = certified = benign = 0
    for _, ratio, activations, weights in _hard_layers(300, 5.0 if mismatch else 9.0):
        outputs = product(activations, weights)
        inputs = activations
        calibration = Calibration.empty(8, compressed=mismatch)
        if mismatch:
            inputs = activations + 10 ** random.uniform(-9, 0) * random.standard_normal((12, 8))
            calibration = calibration.update(activations, inputs)
        else:
            calibration = calibration.update(activations)
        factors, _, certificate = activation_weighted_from_moments(weights, calibration, rank=2)
        found = product(np.asarray(factors.left), np.asarray(factors.right))
        if mismatch:
            error, optimum = _true_errors(Question(inputs, outputs), found, 2)
        else:  # without projecting: the outputs are attainable as they are
            values = svd(outputs)[1]
            error, optimum = norm(outputs - product(inputs, found)), norm(values[2:])
        size = norm(outputs)
        is_bad = error > optimum + max(1e-3 * optimum, NEGLIGIBLE * size) + 1e-14 * size
        is_certified = bool(certificate.certified)
        assert not (is_bad and is_certified), (ratio, error, optimum, size)
        bad, certified = bad + is_bad, certified + is_certified
        benign += ratio < 30 and optimum > 1e-3 * size and not mismatch and not is_certified
    assert bad >= 20  # else nothing was tested
    assert certified >= 50
    assert benign == 0


@pytest.mark.slow
@pytest.mark.parametrize("from_rows", [False, True], ids=["moments", "rows"])
def test_affine_recoveries_are_certified_only_where_they_are_accurate(from_rows):
    """A large mean leaves rounding of its own size, which must not be certified away."""
    random = np.random.default_rng(12)
    bad = certified = 0
    for index, (kind, _, activations, full) in enumerate(_hard_layers(1500)):
        if kind != 4:
            continue
        left, values, right = np.linalg.svd(full, full_matrices=False)
        graded = np.array([1e-6, 1e-7, 1e-8, 1e-9])
        tail = graded if index < 400 else 10 ** random.uniform(-5, 0) * np.ones(4)
        weights = (left * values * np.concatenate([np.ones(2), tail])) @ right
        bias = np.zeros(6)
        if from_rows:
            answer = activation_weighted(weights, activations, None, None, bias, rank=2)
        else:
            calibration = Calibration.empty(8)
            for batch in np.split(activations, 3):
                calibration = calibration.update(batch)
            answer = activation_weighted_from_moments(weights, calibration, bias, rank=2)
        factors, new_bias, certificate = answer
        found = product(np.asarray(factors.left), np.asarray(factors.right))
        outputs = product(activations, weights)
        error = norm(outputs - product(activations, found) - np.asarray(new_bias))
        target = outputs - outputs.mean(axis=0)
        optimum, size = norm(svd(target)[1][2:]), norm(target)
        is_bad = error > optimum + max(1e-3 * optimum, NEGLIGIBLE * size) + 1e-14 * size
        assert not (is_bad and bool(certificate.certified)), (error, optimum, size)
        bad, certified = bad + is_bad, certified + bool(certificate.certified)
    assert bad >= 4  # else nothing was tested
    assert certified >= 10


def test_moments_do_not_certify_what_a_dropped_direction_may_hide():
    """A direction of the inputs that the Gram cannot see, and which carries the outputs."""
    random = np.random.default_rng(5)
    left, right = orthonormal(random, 12, 8), orthonormal(random, 8, 8)
    for size in (1e-5, 1e-7, 1e-9):
        inputs = (left * np.array([1, 1, 1, 1, 1, 1, 1, size])) @ right.T
        frame = orthonormal(random, 6, 6)
        activations = left @ right.T
        weights = right[:, 5:8] * np.array([1e-3, 1e-2, 1]) @ frame[:, :3].T
        calibration = Calibration.empty(8, compressed=True).update(activations, inputs)
        factors, _, certificate = activation_weighted_from_moments(weights, calibration, rank=2)
        found = product(np.asarray(factors.left), np.asarray(factors.right))
        error, optimum = _true_errors(Question(inputs, activations @ weights), found, 2)
        assert not certificate.certified or error <= 1.001 * optimum + 1e-10


# --- derivatives ----------------------------------------------------------------------------------


def _sum_of_product(result, direction):
    """A smooth function of the recovered layer."""
    factors = result[0]
    value = jnp.sum((factors.left @ factors.right) * direction)
    if len(result) == 3 and result[1] is not None:
        value = value + jnp.sum(jnp.sin(result[1]))
    return value


def _calibration(activations, compressed=None) -> Calibration:
    empty = Calibration.empty(8, compressed=compressed is not None)
    return (
        empty.update(activations) if compressed is None else empty.update(activations, compressed)
    )


DIRECTION = np.random.default_rng(4).standard_normal((8, 6)).astype(np.float32)
DIFFERENTIABLE: dict[str, Any] = {
    "truncated svd": lambda W, X, T, Y, b: truncated_svd(W, rank=2),
    "weighted": lambda W, X, T, Y, b: activation_weighted(W, X, rank=2),
    "mismatch": lambda W, X, T, Y, b: activation_weighted(W, X, T, rank=2),
    "affine": lambda W, X, T, Y, b: activation_weighted(W, X, T, None, b, rank=2),
    "outputs": lambda W, X, T, Y, b: activation_weighted(None, X, T, Y, rank=2),
    "moments": lambda W, X, T, Y, b: activation_weighted_from_moments(W, _calibration(X), rank=2),
    "moments: affine, mismatch": lambda W, X, T, Y, b: activation_weighted_from_moments(
        W, _calibration(X, T), b, rank=2
    ),
    "threshold": lambda W, X, T, Y, b: singular_value_threshold(T, Y, 1.5, rank=2),
}


@pytest.mark.parametrize("recovered", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE.keys())
def test_derivatives_against_finite_differences(recovered):
    def loss(arguments):
        return _sum_of_product(recovered(*arguments), DIRECTION)

    leaves = _leaves(SINGLE)  # stored in float32, so that both modes see the same layer
    random = np.random.default_rng(6)
    with jax.enable_x64(True):
        point = [jnp.asarray(leaf, jnp.float64) for leaf in leaves]
        value = jax.jit(jax.value_and_grad(loss))
        _, exact = value(point)
        for _ in range(3):
            change = [jnp.asarray(random.standard_normal(leaf.shape)) for leaf in leaves]
            step = 1e-5
            above, below = (
                value([p + sign * step * c for p, c in zip(point, change, strict=True)])[0]
                for sign in (1, -1)
            )
            slope = sum(jnp.sum(g * c) for g, c in zip(exact, change, strict=True))
            size = sum(norm(np.asarray(g)) for g in exact)
            assert float((above - below) / (2 * step)) == pytest.approx(
                float(slope), abs=1e-6 * size
            )
    single = jax.jit(jax.grad(loss))([jnp.asarray(leaf) for leaf in leaves])
    for found, wanted in zip(single, exact, strict=True):
        assert found.dtype == np.float32
        size = max(norm(np.asarray(wanted)), 1e-3)
        assert norm(np.asarray(found, np.float64) - np.asarray(wanted)) <= 1e-5 * size


@pytest.mark.parametrize(
    ("values", "finite"),
    [((3, 3, 1, 1, 1, 0.5), True), ((3, 3, 0, 0, 0, 0), True), ((3, 2, 2, 1, 0.5, 0.1), False)],
    ids=["ties on either side of the cut", "exact rank", "tie at the cut"],
)
@pytest.mark.parametrize("name", ["truncated svd", "weighted", "mismatch", "moments"])
def test_derivatives_at_ties(name, values, finite):
    """They exist at ties inside either group, and not at a tie of the cut."""
    if name == "moments" and not finite:
        pytest.skip("rounding in the Gram breaks the tie")
    signs = np.diag(np.array(values, np.float32))  # ties that rounding does not break
    weights = np.concatenate([signs, np.zeros((2, 6), np.float32)])
    activations = np.eye(20, 8, dtype=np.float32)

    def loss(weights):
        arguments = weights, activations, activations, activations @ weights, weights[0]
        return _sum_of_product(DIFFERENTIABLE[name](*arguments), DIRECTION)

    gradient = np.asarray(jax.jit(jax.grad(loss))(weights))
    assert np.isfinite(gradient).all() == finite


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
