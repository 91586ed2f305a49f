"""Laws of every recovery method, asked of each in one table.

A method is entered once, in `METHODS`, and answers to all of them.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank_theory as lrt
from lowrank_theory import recovery as recoveries
from lowrank_theory.recovery import AbstractMethod, Certificate, published
from oracle import Question, attainable, norm, objective, product, solve, svd
from regimes import Case, Regime, orthonormal
from tolerance import approx

Array = np.ndarray
Seen = dict[str, Any]

SAMPLES, INPUTS, OUTPUTS, RANK = 12, 8, 6, 2
REGIME = Regime(shape=(SAMPLES, INPUTS, OUTPUTS))
CASE = REGIME.draw()
ROUNDING = 1e-11  # of the layer, in float64; iterations, too, take the same steps

# --- the table ------------------------------------------------------------------------------------


def of_weights(case: Case) -> Seen:
    return {"weights": case.weights}


def of_rows(case: Case) -> Seen:
    return {"weights": case.weights, "activations": case.activations}


def of_an_affine_layer(case: Case) -> Seen:
    return {**of_rows(case), "bias": case.bias}


def of_outputs(case: Case) -> Seen:
    return {"activations": case.compressed, "outputs": case.outputs}


def of_rectified_outputs(case: Case) -> Seen:
    return {"activations": case.compressed, "outputs": np.maximum(case.outputs, 0)}


def outputs_asked_for(seen: Seen) -> Question:
    outputs = seen.get("outputs")
    if outputs is None:
        outputs = np.asarray(product(seen["activations"], seen["weights"]), np.float64)
    return Question(seen["activations"], outputs + seen.get("bias", 0), affine="bias" in seen)


def weights_asked_for(seen: Seen) -> Question:
    return Question(np.eye(INPUTS), seen["weights"])


def both_asked_for(seen: Seen) -> Question:
    return dataclasses.replace(outputs_asked_for(seen), weights=seen["weights"], penalty=RIDGE)


def lowered_into_the_ball(values: Array, _: int) -> Array:
    """Alike until their sum is the radius, by bisection."""
    low, high = 0.0, values[0]
    for _ in range(60 * (values.sum() > RADIUS)):
        middle = (low + high) / 2
        above = np.maximum(values - middle, 0).sum() > RADIUS
        low, high = (middle, high) if above else (low, middle)
    return np.maximum(values - low, 0)


def without_noise(values: Array, rank: int) -> Array:
    """Frobenius rule of Gavish and Donoho (2017)."""
    longer, shorter = max(rank, OUTPUTS), min(rank, OUTPUTS)
    y, beta = values / (NOISE * longer**0.5), shorter / longer
    square = np.maximum((y**2 - beta - 1) ** 2 - 4 * beta, 0)
    kept = np.where(y > 1 + beta**0.5, np.sqrt(square) / np.where(y > 0, y, 1), 0)
    return kept * NOISE * longer**0.5


@dataclasses.dataclass(frozen=True)
class Method:
    """A method by its `make`, given the units of activations and of weights, and what it `sees`.

    Its certificate is about the error of what it `asks` for, of which it `keeps` these singular
    values at most, given the rank of the inputs. What it `breaks` are laws, with the reason.
    """

    make: Callable[[float, float], AbstractMethod]
    sees: Callable[[Case], Seen] = of_rows
    asks: Callable[[Seen], Question] = outputs_asked_for
    keeps: Callable[[Array, int], Array] = lambda values, _: values
    breaks: Mapping[str, str] = dataclasses.field(default_factory=dict)


RIDGE, THRESHOLD, PRICE, NOISE, RADIUS = 0.5, 1.5, 30.0, 0.5, 9.0
ONE_INPUT = {"turned inputs": "it weighs each input by itself"}
RELU = {"turned outputs": "a ReLU acts on each output by itself"}
NOTHING = {"nothing": "no output at all tells of negative ones before the ReLU"}

METHODS = {
    "TruncatedSVD": Method(lambda x, w: recoveries.TruncatedSVD(), of_weights, weights_asked_for),
    "ActivationWeighted": Method(lambda x, w: recoveries.ActivationWeighted()),
    "ActivationWeighted, affine": Method(
        lambda x, w: recoveries.ActivationWeighted(), of_an_affine_layer
    ),
    "Randomized": Method(lambda x, w: recoveries.Randomized(key=jax.random.key(7))),
    "Ridge": Method(lambda x, w: recoveries.Ridge(RIDGE * x * x), asks=both_asked_for),
    "SingularValueThreshold": Method(
        lambda x, w: recoveries.SingularValueThreshold(THRESHOLD * x * w),
        of_outputs,
        keeps=lambda values, _: np.maximum(values - THRESHOLD, 0),
    ),
    "RankPenalised": Method(
        lambda x, w: recoveries.RankPenalised(PRICE * (x * w) ** 2),
        of_outputs,
        keeps=lambda values, _: np.where(values**2 > PRICE, values, 0),
    ),
    "OptimalShrinkage": Method(
        lambda x, w: recoveries.OptimalShrinkage(noise_scale=NOISE * x * w),
        of_outputs,
        keeps=without_noise,
    ),
    "NuclearNormBall": Method(
        lambda x, w: recoveries.NuclearNormBall(RADIUS * x * w),
        of_outputs,
        keeps=lowered_into_the_ball,
    ),
    "WeightNuclearNormBall": Method(
        lambda x, w: recoveries.WeightNuclearNormBall(3.0 * w, tolerance=1e-4), of_outputs
    ),
    "WeightNuclearNormPenalty": Method(
        lambda x, w: recoveries.WeightNuclearNormPenalty(2.0 * x * x * w, tolerance=1e-4),
        of_outputs,
    ),
    "NuclearNormRelu": Method(
        lambda x, w: recoveries.NuclearNormRelu(RADIUS * x * w), of_rectified_outputs, breaks=RELU
    ),
    "CensoredLikelihood": Method(
        lambda x, w: recoveries.CensoredLikelihood(
            NOISE * x * w, 9.0 * x * w, 0.5 * x * w, tolerance=1e-4
        ),
        of_rectified_outputs,
        breaks={**RELU, **NOTHING},
    ),
    "ASVD": Method(lambda x, w: recoveries.ASVD(floor=1e-6 * x**0.5), breaks=ONE_INPUT),
    "COALA": Method(lambda x, w: recoveries.COALA()),
    "CorDA": Method(lambda x, w: recoveries.CorDA()),
    "DRONE": Method(lambda x, w: recoveries.DRONE()),
    "DiagonalQERA": Method(lambda x, w: recoveries.DiagonalQERA(), breaks=ONE_INPUT),
    "ESPACE": Method(lambda x, w: recoveries.ESPACE()),
    "QERA": Method(lambda x, w: recoveries.QERA()),
    "SVDLLM": Method(lambda x, w: recoveries.SVDLLM(shift=1e-6 * x * x)),
}

methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def test_every_method_is_entered():
    final = {
        name
        for name, kind in vars(recoveries).items()
        if inspect.isclass(kind) and issubclass(kind, AbstractMethod)
        if not inspect.isabstract(kind)
    }
    assert {name.partition(",")[0] for name in METHODS} == final
    for name, method in METHODS.items():
        assert type(method.make(1.0, 1.0)).__name__ == name.partition(",")[0]


# --- units and turns ------------------------------------------------------------------------------


def fit(method: Method, case: Case, x: float = 1.0, w: float = 1.0, rank: int = RANK) -> Any:
    return lrt.recover(lrt.Observed(**method.sees(case)), rank, method.make(x, w))


def dense(recovery: Any) -> Array:
    left, right = recovery.factors.left, recovery.factors.right
    return np.asarray(product(np.asarray(left), np.asarray(right)), np.float64)


def changed(change: Callable[[Array], Array], *names: str) -> Case:
    return CASE.map(**dict.fromkeys(names, change))


def scaled(x: float, w: float) -> Case:
    return CASE.map(
        activations=lambda each: x * each,
        compressed=lambda each: x * each,
        weights=lambda each: w * each,
        outputs=lambda each: x * w * each,
        bias=lambda each: x * w * each,
    )


# Of activations and weights: the squares of either and of their product are numbers.
POWERS = [(20, 0), (0, -20), (-20, 20)]
POWERS += [(300, 0), (-300, 0), (0, 300), (0, -300), (300, -300), (-300, 300)]


@methods
@pytest.mark.thinned(3)
def test_units_do_not_matter(method):
    one = fit(method, CASE)
    size = norm(dense(one))
    for a, b in POWERS:
        x, w = 2.0**a, 2.0**b
        far = fit(method, scaled(x, w), x, w)
        np.testing.assert_allclose(dense(far) / w, dense(one), rtol=0, atol=ROUNDING * size)
        if one.bias is not None:
            np.testing.assert_allclose(np.asarray(far.bias) / (x * w), one.bias, rtol=ROUNDING)
        assert bool(far.certificate.certified) == bool(one.certificate.certified)
        unit = w if method.sees is of_weights else x * w
        for name, power in (("optimal_error", 1), ("target_norm", 1), ("gap", 2)):
            number = getattr(one.certificate, name, None)
            if number is not None:
                told = float(getattr(far.certificate, name)) / unit**power
                assert told == approx(float(number))


def turned_inputs(turn: Array) -> Case:
    turned = changed(lambda each: each @ turn, "activations", "compressed")
    return turned.map(weights=lambda each: turn.T @ each)


def turned_outputs(turn: Array) -> Case:
    return changed(lambda each: each @ turn, "weights", "outputs", "bias")


@methods
def test_the_layer_turns_with_its_inputs_and_with_its_outputs(method):
    """Where each of them counts by itself, only their order does not matter."""
    random = np.random.default_rng(1)
    z = dense(fit(method, CASE))
    for side, width in (("inputs", INPUTS), ("outputs", OUTPUTS)):
        order = np.eye(width)[random.permutation(width)]
        for name, turn in (("order of", order), ("turned", orthonormal(random, width, width))):
            case = turned_inputs(turn) if side == "inputs" else turned_outputs(turn)
            wanted = turn.T @ z if side == "inputs" else z @ turn
            distance = norm(dense(fit(method, case)) - wanted) / norm(z)
            broken = f"{name} {side}" in method.breaks
            assert distance > 1e-3 if broken else distance <= ROUNDING


@methods
def test_the_order_of_the_samples_does_not_matter(method):
    order = np.random.default_rng(2).permutation(SAMPLES)
    z = dense(fit(method, CASE))
    found = fit(method, changed(lambda each: each[order], "activations", "compressed", "outputs"))
    assert norm(dense(found) - z) <= ROUNDING * norm(z)


# --- what comes back ------------------------------------------------------------------------------


@methods
@pytest.mark.thinned(5)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "rank", [RANK, *(pytest.param(rank, marks=pytest.mark.slow) for rank in (1, OUTPUTS))]
)
def test_shape_rank_and_dtype(method, rank, dtype):
    found = fit(method, CASE.cast(dtype), rank=rank)
    assert found.approximation.shape == (INPUTS, OUTPUTS)
    assert found.approximation.dtype == dtype
    assert (found.factors.left.dtype, found.factors.right.dtype) == (dtype, dtype)
    assert 1 <= np.linalg.matrix_rank(dense(found)) <= rank
    assert (found.bias is not None) == ("bias" in method.sees(CASE))
    assert found.bias is None or (found.bias.shape, found.bias.dtype) == ((OUTPUTS,), dtype)


@methods
def test_nothing_comes_of_nothing(method):
    found = fit(method, changed(np.zeros_like, "weights", "outputs", "bias"))
    assert bool(found.certificate.certified)
    assert dense(found).any() == ("nothing" in method.breaks)
    assert found.bias is None or not np.any(found.bias)


def errors(
    method: Method, case: Case, recovery: Any, rank: int = RANK
) -> tuple[float, float, float]:
    """Of what came back and of the best there is, by the oracle; and the size of what was asked."""
    asked = method.asks(method.sees(case.cast(np.float64)))
    bias = None if recovery.bias is None else np.asarray(recovery.bias, np.float64)
    if asked.affine or asked.penalty:
        best = objective(asked, *solve(asked, rank))
    else:
        left, values, right = svd(attainable(asked.inputs, asked.outputs))
        kept = method.keeps(values, int(np.linalg.matrix_rank(asked.inputs)))[:rank]
        fitted = product(left[:, :rank] * kept, right[:rank])
        best = norm(asked.outputs - fitted)
    return objective(asked, dense(recovery), bias), best, norm(asked.outputs)


def judged(method: Method, case: Case) -> tuple[bool, bool]:
    """Whether it is certified, and whether it is as good as that says. Its promises hold."""
    recovery = fit(method, case)
    certificate = recovery.certificate
    certified = bool(certificate.certified)
    assert bool(certificate.finite)
    assert np.isfinite(dense(recovery)).all()
    if not isinstance(certificate, Certificate):
        assert 0 <= float(certificate.gap) < np.inf
        return certified, True
    error, best, size = errors(method, case, recovery)
    excess = float(certificate.excess_bound)
    assert abs(float(certificate.optimal_error) - best) <= 1e-7 * size
    assert error - best <= excess
    assert excess <= max(error - best, 0) + 1e-5 * size  # not much more than there is
    good = error - best <= max(certificate.tolerance * best, 1e-10 * size)
    assert good or not certified
    return certified, good


CASES = {
    "float64": CASE,
    "float32": CASE.cast(np.float32),
    "dead input": changed(
        lambda each: each * (np.arange(INPUTS) != 3), "activations", "compressed"
    ),
}


@methods
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_the_certificate_says_of_the_numbers_returned_is_true(method, case):
    certified, good = judged(method, case)
    assert certified == good


@methods
@pytest.mark.thinned(4)
def test_what_it_says_after_one_sample_is_true(method):
    judged(method, changed(lambda each: each[:1], "activations", "compressed", "outputs"))


CONVEX = (
    recoveries.WeightNuclearNormBall,
    recoveries.WeightNuclearNormPenalty,
    recoveries.NuclearNormRelu,
    recoveries.CensoredLikelihood,
)  # which know a duality gap and no optimum


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, id=name)
        for name, method in METHODS.items()
        if not isinstance(method.make(1.0, 1.0), CONVEX)
    ],
)
@pytest.mark.thinned(4)
def test_the_optimal_error_is_the_least_error_of_any_layer_of_the_rank(method):
    """It is the oracle's; what comes back has it if the method minimises the error, and never less;
    and a larger rank has no larger one.
    """
    recipe = isinstance(method.make(1.0, 1.0), published.AbstractRecipe)
    below = np.inf
    for rank in (1, RANK, OUTPUTS):
        recovery = fit(method, CASE, rank=rank)
        certificate = recovery.certificate
        error, best, size = errors(method, CASE, recovery, rank)
        stated, excess = float(certificate.optimal_error), float(certificate.excess_bound)
        rounding = ROUNDING * size
        assert abs(stated - best) <= min(excess, rounding)
        assert stated <= min(error, below) + rounding
        assert recipe or error <= stated + rounding
        below = stated


# --- transformations and bad numbers --------------------------------------------------------------

LAYERS = [REGIME.draw(seed).cast(np.float32) for seed in (0, 1)]


def spoilt(seen: Seen, name: str, bad: float) -> Seen:
    array = seen[name].copy()
    array.flat[array.size // 2] = bad
    return {**seen, name: array}


@methods
def test_what_is_not_finite_is_refused_by_name(method):
    seen = method.sees(CASE)
    for name in seen:
        for bad in (np.nan, np.inf):
            with pytest.raises(ValueError, match=f"`{name}` has 1 non-finite"):
                lrt.recover(lrt.Observed(**spoilt(seen, name, bad)), RANK, method.make(1.0, 1.0))


def same(found: Any, alone: Any, eps: float) -> None:
    wanted = dense(alone)
    assert found.factors.dtype == alone.factors.dtype
    np.testing.assert_allclose(dense(found), wanted, rtol=0, atol=eps * norm(wanted))
    assert bool(found.certificate.certified) == bool(alone.certificate.certified)
    assert (found.bias is None) == (alone.bias is None)
    if found.bias is not None:
        np.testing.assert_allclose(found.bias, alone.bias, rtol=eps)


def recovering(method: Method) -> Callable[[Seen], Any]:
    made = method.make(1.0, 1.0)
    return lambda seen: lrt.recover(lrt.Observed(**seen), RANK, made)


@methods
@pytest.mark.thinned(4)
def test_a_stack_is_a_loop_and_what_is_not_finite_stays_in_its_lane(method):
    recovered, layers = recovering(method), [method.sees(layer) for layer in LAYERS]
    program = jax.jit(jax.vmap(recovered))

    def beside(seen: Seen) -> Any:
        """Before the second layer."""
        return program({name: np.stack([seen[name], layers[1][name]]) for name in seen})

    stack = beside(layers[0])
    for lane, seen in enumerate(layers):
        with jax.enable_x64(True):
            one = jax.tree.map(lambda each, lane=lane: each[lane], stack)
        same(one, recovered(seen), 4 * float(np.finfo(np.float32).eps))
    other = bool(np.asarray(stack.certificate.certified)[1])
    for name in layers[0]:
        for bad in (np.nan, np.inf):
            certificate = beside(spoilt(layers[0], name, bad)).certificate
            assert np.asarray(certificate.finite).tolist() == [False, True]
            assert np.asarray(certificate.certified).tolist() == [False, other]


@pytest.fixture
def finite_decompositions(monkeypatch) -> Iterator[None]:
    """Those of an accelerator can make finite numbers of NaN."""
    for name in ("svd", "eigh", "qr", "cholesky", "eigvalsh"):
        plain = getattr(jnp.linalg, name)

        def finite(matrix: Any, *args: Any, plain: Any = plain, **options: Any) -> Any:
            return plain(jnp.where(jnp.isfinite(matrix), matrix, 0), *args, **options)

        monkeypatch.setattr(jnp.linalg, name, finite)
    jax.clear_caches()
    yield
    jax.clear_caches()


@methods
@pytest.mark.thinned(7)
def test_what_decompositions_make_of_nan_is_not_taken_for_finite(method, finite_decompositions):
    recovered, layer = recovering(method), method.sees(LAYERS[0])
    program = jax.jit(recovered)
    for name in layer:
        certificate = program(spoilt(layer, name, np.nan)).certificate
        assert not certificate.finite, name


@methods
@pytest.mark.thinned(5)
def test_a_program_is_the_plain_call(method):
    """In float64, which JAX keeps if it is told to."""
    recovered, seen = recovering(method), method.sees(CASE)
    with jax.enable_x64(True):
        found = jax.jit(recovered)(seen)
    same(found, recovered(seen), ROUNDING)
