"""Kinds of hostile layers: every method by every route, all ranks, rules, errors, scales.

A method is one line of `METHODS`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fuzz_oracle as oracle
import lowrank_theory as lrt
from fuzz_draws import (
    HONEST,
    RIGHT,
    ROUTES,
    Drawn,
    Generator,
    Verdict,
    documented,
    draw_layer,
    kind,
    pick,
    rank_cutoff,
    stored,
)
from fuzz_oracle import Layer, Lie, exact
from lowrank_theory import rank_choice, recovery

Judge = Callable[[Generator, Drawn, Any, lrt.Recovery], Verdict]


def arrays_of(found: lrt.Recovery) -> list[Any]:
    bias = [] if found.bias is None else [found.bias]
    return [found.factors.left, found.factors.right, *bias]


def finite_number(value: Any, otherwise: float = 1.0) -> float:
    """A magnitude of the layer as an option that a method takes."""
    number = float(value)
    return number if np.isfinite(number) and number > 0 else otherwise


def kept_promises(found: lrt.Recovery, layer: Layer, optimum: Any) -> Verdict:
    """Of a certificate about |Y - XZ| and this optimum."""
    left, right, *bias = arrays_of(found)
    finite = all(np.isfinite(exact(each)).all() for each in (left, right, *bias))
    certified = oracle.check_promises(
        found.certificate,
        [left, right, *bias],
        error=layer.error(left, right, *bias) if finite else np.longdouble(0),
        optimum=optimum,
        norm=layer.norm,
        noise=layer.noise(left, right) if finite else np.longdouble(0),
    )
    return RIGHT if certified else HONEST


# --- methods --------------------------------------------------------------------------------------


def best_of_rank(_: Generator, drawn: Drawn, __: Any, found: lrt.Recovery) -> Verdict:
    layer = drawn.truth()
    return kept_promises(found, layer, layer.optimum(drawn.rank))


def best_with_ridge(_: Generator, drawn: Drawn, method: Any, found: lrt.Recovery) -> Verdict:
    layer = drawn.truth(penalty=method.penalty)
    return kept_promises(found, layer, layer.optimum(drawn.rank))


def best_of_weights(_: Generator, drawn: Drawn, __: Any, found: lrt.Recovery) -> Verdict:
    inputs = drawn.weights.shape[0]
    layer = Layer.of(drawn.weights, np.eye(inputs))
    if found.bias is not None and not np.array_equal(exact(found.bias), exact(drawn.bias)):
        raise Lie("the bias that is kept as it is has changed")
    return kept_promises(dataclasses.replace(found, bias=None), layer, layer.optimum(drawn.rank))


def measured(_: Generator, drawn: Drawn, __: Any, found: lrt.Recovery) -> Verdict:
    layer = dataclasses.replace(drawn, bias=None).truth()
    return kept_promises(dataclasses.replace(found, bias=None), layer, layer.optimum(drawn.rank))


def multiplied(multipliers: Callable[[Drawn, Layer, Any], np.ndarray | None]) -> Judge:
    """Of a method that multiplies singular values; `None` where rounding decides by how much."""

    def judge(_: Generator, drawn: Drawn, method: Any, found: lrt.Recovery) -> Verdict:
        layer = drawn.truth(projected=True)
        expected = multipliers(drawn, layer, method)
        if expected is None:
            return RIGHT
        return kept_promises(found, layer, oracle.residual(layer, expected, drawn.rank))

    return judge


def hard(drawn: Drawn, layer: Layer, method: Any) -> np.ndarray | None:
    squares, price = layer.values**2, np.longdouble(method.penalty)
    if np.any(np.abs(squares - price) <= 1e-6 * price):
        return None
    return (squares > price).astype(np.longdouble)


def in_ball(drawn: Drawn, layer: Layer, method: Any) -> np.ndarray:
    values = layer.values
    return oracle.soft(values, oracle.ball_threshold(values, method.radius))


def shrunk(drawn: Drawn, layer: Layer, method: Any) -> np.ndarray | None:
    q, columns = layer.basis.shape[1], layer.outputs.shape[1]
    longer, shorter = max(q, columns), max(1, min(q, columns))
    unit = np.longdouble(method.noise_scale) * np.sqrt(np.longdouble(longer))
    edge = unit * (1 + np.sqrt(np.longdouble(shorter / longer)))
    if np.any(np.abs(layer.values - edge) <= 1e-6 * edge):
        return None
    return oracle.frobenius_shrinkage(layer.values, unit, shorter / longer)


class OutsideError(Exception):
    """Rounding has moved what is returned out of what is feasible."""


def closed_gap(objective: Callable[[Any, Layer, np.ndarray], tuple[Any, list[Any]]]) -> Judge:
    """Of an iterative convex method at full rank: its objective exceeds that of no feasible point
    by more than its gap.
    """

    def judge(_: Generator, drawn: Drawn, method: Any, found: lrt.Recovery) -> Verdict:
        left, right = (exact(each) for each in arrays_of(found))
        finite = bool(np.isfinite(left).all() and np.isfinite(right).all())
        if bool(found.certificate.finite) and not finite:
            raise Lie("`finite` is true, and returned numbers are not")
        certified = bool(found.certificate.certified)
        assert isinstance(found.certificate, recovery.DualityGap)
        gap = np.longdouble(float(found.certificate.gap))
        if certified and not (finite and np.isfinite(gap)):
            raise Lie("certified, and returned or stated numbers are not finite")
        if not finite or not np.isfinite(gap) or drawn.rank < drawn.full:
            return HONEST
        layer = drawn.truth(projected=True)
        try:
            reached, others = objective(method, layer, left @ right)
        except OutsideError as outside:
            if certified:
                raise Lie(f"certified, and {outside}") from None
            return HONEST
        scale = np.longdouble(oracle.norm(layer.outputs)) ** 2
        for other in others:
            below = np.finfo(np.float64).tiny  # where a gap is no normal number
            if reached - other > gap * 1.001 + 1e-9 * scale + below:
                raise Lie(
                    f"the objective {float(reached):.6g} exceeds that of a feasible point, "
                    f"{float(other):.6g}, by more than the gap {float(gap):.3g}; "
                    f"certified {certified}"
                )
        return RIGHT if certified else HONEST

    return judge


def least_squares(layer: Layer, z: np.ndarray) -> Any:
    return oracle.norm(layer.outputs - layer.inputs @ z) ** 2 / 2


def nuclear(matrix: np.ndarray) -> Any:
    return np.sum(oracle.svd(matrix)[1])


def in_float64(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(layer.inputs, float), np.asarray(layer.outputs, float)


def priced_weights(method: Any, layer: Layer, z: np.ndarray) -> tuple[Any, list[Any]]:
    other = exact(oracle.nuclear_fit(*in_float64(layer), penalty=method.penalty))
    price = np.longdouble(method.penalty)
    reached, *others = (
        least_squares(layer, each) + price * nuclear(each) for each in (z, other, 0 * other)
    )
    return reached, others


def weights_in_ball(method: Any, layer: Layer, z: np.ndarray) -> tuple[Any, list[Any]]:
    if nuclear(z) > method.radius * (1 + 1e-5) + 1e-300:
        raise OutsideError(f"outside the ball: {float(nuclear(z)):.6g} > {method.radius:.6g}")
    other = exact(oracle.nuclear_fit(*in_float64(layer), radius=method.radius))
    reached, *others = (least_squares(layer, each) for each in (z, other, 0 * other))
    return reached, others


def matched(method: Any, layer: Layer, z: np.ndarray) -> tuple[Any, list[Any]]:
    fitted, outputs = layer.inputs @ z, layer.outputs
    left, values, right = oracle.svd(layer.basis @ (layer.basis.T @ outputs))
    shrunk = (left * (values * oracle.soft(values, oracle.ball_threshold(
        values, method.radius)))) @ right  # fmt: skip
    others = [oracle.matching_loss(share * shrunk, outputs) for share in (0, 0.25, 0.5, 1)]
    return oracle.matching_loss(fitted, outputs), others


def censored(method: Any, layer: Layer, z: np.ndarray) -> tuple[Any, list[Any]]:
    def objective(fitted: np.ndarray) -> Any:
        price = np.longdouble(method.penalty) * nuclear(fitted)
        return oracle.censored_loss(fitted, layer.outputs, method.noise_scale) + price

    fitted = layer.inputs @ z
    if np.max(np.abs(fitted)) > method.bound * (1 + 1e-5):
        raise Lie("outside the box")
    guess = layer.basis @ (layer.basis.T @ layer.outputs)
    largest = max(np.max(np.abs(guess)), np.longdouble(1e-4000))
    guess = guess * min(np.longdouble(1), method.bound / largest)
    return objective(fitted), [objective(share * guess) for share in (0, 0.25, 0.5, 1)]


@dataclasses.dataclass(frozen=True)
class Method:
    """How to make one, from the generator and the norms of the inputs and the outputs; by which
    routes it works; how it is judged; how often it is tried.
    """

    make: Callable[[Generator, float, float], Any]
    routes: set[str]
    judge: Judge
    share: float = 1.0
    full_rank: bool = False


ALL = set(ROUTES)
UNCHANGED = {name for name in ROUTES if "outputs" not in name and "compressed" not in name}
ROWS = {name for name in ROUTES if "calibration" not in name and "triangular" not in name}
PLAIN_ROWS = {name for name in ROWS if "bias" not in name}
WITH_OUTPUTS = {name for name in PLAIN_ROWS if "outputs" in name}


def power(rng: Generator) -> float:
    return float(10.0 ** rng.uniform(-4, 1))


METHODS: dict[str, Method] = {
    "ActivationWeighted": Method(lambda *_: lrt.ActivationWeighted(), ALL, best_of_rank, 12),
    "TruncatedSVD": Method(lambda *_: lrt.TruncatedSVD(), ALL, best_of_weights, 3),
    "Ridge": Method(
        lambda rng, x, _: lrt.Ridge(pick(rng, (0.0, finite_number(x * x) * power(rng)), (1, 4))),
        ALL,
        best_with_ridge,
        4,
    ),
    "Randomized": Method(
        lambda rng, *_: lrt.Randomized(
            excess=pick(rng, (0.01, 0.5)), key=jax.random.key(int(rng.integers(9)))
        ),
        UNCHANGED,
        best_of_rank,
        3,
    ),
    **{
        name: Method(lambda *_, name=name: getattr(recovery, name)(), routes, measured)
        for name, routes in {
            "ASVD": UNCHANGED & ROWS,
            "DiagonalQERA": UNCHANGED,
            "CorDA": UNCHANGED,
            "DRONE": UNCHANGED,
            "SVDLLM": UNCHANGED,
            "QERA": UNCHANGED,
            "COALA": {name for name in UNCHANGED if "calibration" not in name},
            "ESPACE": UNCHANGED,
        }.items()
    },
    "SingularValueThreshold": Method(
        lambda rng, _, y: lrt.SingularValueThreshold(finite_number(y) * power(rng)),
        PLAIN_ROWS,
        multiplied(lambda _, layer, method: oracle.soft(layer.values, method.threshold)),
    ),
    "RankPenalised": Method(
        lambda rng, _, y: recovery.RankPenalised(finite_number(y * y) * power(rng)),
        PLAIN_ROWS,
        multiplied(hard),
    ),
    "OptimalShrinkage": Method(
        lambda rng, _, y: recovery.OptimalShrinkage(
            noise_scale=finite_number(y) * 0.1 * power(rng)
        ),
        PLAIN_ROWS,
        multiplied(shrunk),
    ),
    "NuclearNormBall": Method(
        lambda rng, _, y: recovery.NuclearNormBall(finite_number(y) * power(rng)),
        PLAIN_ROWS,
        multiplied(in_ball),
    ),
    "WeightNuclearNormPenalty": Method(
        lambda rng, x, y: recovery.WeightNuclearNormPenalty(finite_number(x * y) * power(rng)),
        PLAIN_ROWS,
        closed_gap(priced_weights),
        full_rank=True,
    ),
    "WeightNuclearNormBall": Method(
        lambda rng, x, y: recovery.WeightNuclearNormBall(finite_number(y / x) * power(rng)),
        PLAIN_ROWS,
        closed_gap(weights_in_ball),
        full_rank=True,
    ),
    "NuclearNormRelu": Method(
        lambda rng, _, y: lrt.NuclearNormRelu(finite_number(y) * power(rng)),
        WITH_OUTPUTS,
        closed_gap(matched),
        full_rank=True,
    ),
    "CensoredLikelihood": Method(
        lambda rng, _, y: recovery.CensoredLikelihood(
            noise_scale=finite_number(y) * 0.1,
            bound=finite_number(y),
            penalty=finite_number(y) * power(rng),
        ),
        WITH_OUTPUTS,
        closed_gap(censored),
        full_rank=True,
    ),
}


def norms(drawn: Drawn) -> tuple[Any, Any]:
    """Of the inputs and of the outputs."""
    seen = drawn.activations if drawn.compressed is None else drawn.compressed
    outputs = drawn.outputs
    if outputs is None:
        outputs = exact(drawn.activations) @ exact(drawn.weights)
    return oracle.norm(seen), oracle.norm(outputs)


def try_method(name: str) -> Callable[[Generator], Verdict]:
    asked = METHODS[name]

    def try_one(rng: Generator) -> Verdict:
        foreign = rng.random() < 0.03  # by a route that the method has to refuse
        drawn = draw_layer(rng, sorted(ALL if foreign else asked.routes))
        if name == "CensoredLikelihood" and drawn.outputs is not None:
            drawn.outputs = drawn.outputs * (drawn.outputs > 0)  # seen after the ReLU
        if asked.full_rank and rng.random() < 0.7:
            drawn.rank = drawn.full
        method = asked.make(rng, *norms(drawn))
        legal = drawn.route in asked.routes
        with documented(drawn.ordinary and legal):
            found = lrt.recover(drawn.observed(), drawn.rank, method)
        if not legal:
            raise Lie(f"`{name}` went by the route {drawn.route!r}, which it must refuse")
        return asked.judge(rng, drawn, method, found)

    return try_one


for _name, _method in METHODS.items():
    kind(f"recover {_name}", 2 * _method.share)(try_method(_name))


# --- all ranks, rules, errors ---------------------------------------------------------------------


@kind("every_rank", 5)
def every_rank(rng: Generator) -> Verdict:
    method = pick(rng, (lrt.ActivationWeighted(), lrt.TruncatedSVD()), (3, 1))
    drawn = draw_layer(rng)
    with documented(drawn.ordinary):
        sweep = lrt.every_rank(drawn.observed(), method)
    judge = best_of_rank if isinstance(method, lrt.ActivationWeighted) else best_of_weights
    verdicts = []
    for rank in range(1, drawn.full + 1):
        drawn.rank = rank
        verdicts.append(judge(rng, drawn, method, sweep.at(rank)))
    errors = exact(sweep.errors)
    if np.isfinite(errors).all() and np.any(np.diff(errors) > 1e-6 * errors[0]):
        raise Lie(f"errors increase with the rank: {errors}")
    return RIGHT if all(each is RIGHT for each in verdicts) else HONEST


@kind("scaled by powers of two", 5)
def scaled(rng: Generator) -> Verdict:
    """The same layer at another scale has the same factors, certificate and errors."""
    drawn = draw_layer(rng, sorted(ALL), small=0)
    if drawn.outputs is not None:
        drawn.outputs, drawn.route = None, drawn.route.replace("outputs", "rows")
    drawn.bias, drawn.route = None, drawn.route.replace(" bias", "")
    plain = {}
    for part in ("weights", "activations", "compressed"):
        array = getattr(drawn, part)
        if array is not None:
            array = np.asarray(array).astype(float)
            size = np.max(np.abs(array), initial=0)
            plain[part] = array / (2.0 ** np.round(np.log2(size)) if size > 0 else 1.0)
    reach = 480 if drawn.streamed else 900  # squares of streamed rows stay within float64
    shift, power = (int(each) for each in rng.integers(-reach // 2, reach // 2, 2))
    moved = {
        name: np.ldexp(array, power if name == "weights" else shift)
        for name, array in plain.items()
    }
    method = pick(rng, (lrt.ActivationWeighted(), lrt.TruncatedSVD(), lrt.Ridge(0.0)))
    found = []
    for each in (plain, moved):
        layer = dataclasses.replace(drawn, **each)
        with documented():
            found.append(lrt.recover(layer.observed(), drawn.rank, method))
    one, other = found
    if bool(one.certificate.certified) != bool(other.certificate.certified):
        raise Lie(
            f"certified {bool(one.certificate.certified)} at scale one, "
            f"{bool(other.certificate.certified)} at 2^{shift} of inputs and 2^{power} of weights"
        )
    by = 0 if isinstance(method, lrt.TruncatedSVD) else shift
    for name in ("optimal_error", "excess_bound", "target_norm"):
        a, b = (np.longdouble(float(getattr(each.certificate, name))) for each in found)
        b = np.ldexp(b, -by - power)
        if not abs(a - b) <= 1e-6 * abs(a) + 1e-13 * np.longdouble(one.certificate.target_norm):
            raise Lie(f"`{name}` is {float(a):.6g} at scale one, and {float(b):.6g} scaled back")
    return RIGHT if bool(one.certificate.certified) else HONEST


@kind("rank_choice", 5)
def rules(rng: Generator) -> Verdict:
    drawn = draw_layer(rng, sorted(PLAIN_ROWS | {"rows bias"}))
    if rng.random() < 0.3:
        observed, layer = lrt.Observed(weights=drawn.weights), None
        values = oracle.svd(drawn.weights)[1]
        slack = rank_cutoff(drawn.full, drawn.weights)
    else:
        observed, layer = drawn.observed(), drawn.truth(projected=True)
        values = layer.values
        parts = (drawn.weights, drawn.activations, drawn.compressed, drawn.outputs)
        slack = 4 * rank_cutoff(max(drawn.weights.shape), *parts)
    rule = pick(rng, ("energy", "hard_threshold", "screenot"))
    if rule == "energy":
        fraction = float(pick(rng, (0.5, 0.9, 0.99, 1 - 1e-9, 1e-9)))
        rank = rank_choice.energy(observed, fraction)
        expected = oracle.energy_ranks(values, fraction, slack)
        if rank not in expected:
            raise Lie(f"energy {fraction:g}: rank {rank}, and truly {sorted(expected)}")
        return RIGHT
    if rule == "screenot":
        rank = rank_choice.screenot(observed, 1)
        if not 0 <= rank <= drawn.full:
            raise Lie(f"screenot: rank {rank}")
        return RIGHT
    noise = finite_number(values[0]) * 0.1 * power(rng)
    rank = rank_choice.hard_threshold(observed, noise)
    q = layer.basis.shape[1] if layer is not None else drawn.weights.shape[0]
    columns = drawn.weights.shape[1]
    longer, aspect = max(q, columns), max(1, min(q, columns)) / max(q, columns)
    root = (aspect**2 + 14 * aspect + 1) ** 0.5
    constant = (2 * (aspect + 1) + 8 * aspect / (aspect + 1 + root)) ** 0.5
    cut = constant * np.longdouble(noise) * longer**0.5
    unsure = (1e-6 + slack) * max(values[0], cut)
    if not np.sum(values > cut + unsure) <= rank <= np.sum(values > cut - unsure):
        raise Lie(f"hard_threshold: rank {rank}, and truly {int(np.sum(values > cut))}")
    return RIGHT


@kind("errors", 4)
def errors(rng: Generator) -> Verdict:
    """`fitting_error` and its relative twin, of factors that are given."""
    drawn = draw_layer(rng, sorted(ROWS))
    inputs, outputs = drawn.weights.shape
    dtype = drawn.weights.dtype
    left = stored(rng, rng.standard_normal((inputs, 2)), dtype)
    right = np.asarray(drawn.weights)[:2] if inputs > 1 else np.zeros((2, outputs), dtype)
    factors = lrt.LowRank(np.asarray(left), right)
    observed = drawn.observed()
    with documented(drawn.ordinary):
        error = lrt.fitting_error(factors, observed)
        relative = lrt.relative_fitting_error(factors, observed)
    layer = drawn.truth()
    true = layer.error(factors.left, factors.right)
    norm = oracle.norm(layer.outputs)
    slack = 1e-2 * true + 1e-6 * norm
    if np.isnan(float(error)) or np.isnan(float(relative)):
        raise Lie("an error is NaN")
    if not np.isposinf(float(error)) or true < jnp.finfo(error.dtype).max:
        oracle.check_close("fitting_error", error, true, slack)
    if norm > 0:
        oracle.check_close("relative_fitting_error", relative, true / norm, slack / norm)
    return RIGHT
