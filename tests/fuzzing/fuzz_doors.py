"""Kinds of hostile input at the other doors: certificates of losses, numbers and keys, factors as
matrices, allocations, whole networks.
"""

import decimal
import fractions
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import fuzz_oracle as oracle
import lowrank_theory as lrt
from fuzz_arrays import ARRAYS
from fuzz_draws import (
    DTYPES,
    HONEST,
    RIGHT,
    Generator,
    Verdict,
    documented,
    dtype_of,
    kind,
    matrix,
    orthogonal,
    pick,
    scale_of,
    stored,
)
from fuzz_oracle import Lie, exact
from lowrank_theory import generators, rank_choice, recovery
from lowrank_theory.approximations import Affine
from lowrank_theory.certification import unit_losses
from lowrank_theory.networks import (
    Bytes,
    LayerError,
    MultiplyAdds,
    Parameters,
    RankRule,
)

# --- certificates of losses -----------------------------------------------------------------------

NUMBERS: dict[str, Any] = {  # that somebody gives where a number is wanted
    "zero": 0,
    "one": 1,
    "half": 0.5,
    "negative": -1,
    "nan": float("nan"),
    "inf": float("inf"),
    "1e400": 10**400,
    "tiny": 5e-324,
    "huge": 1.7e308,
    "text": "0.5",
    "word": "half",
    "none": None,
    "bool": True,
    "float32": np.float32(0.25),
    "float16": np.float16(0.25),
    "longdouble": np.longdouble("0.25"),
    "int64": np.int64(3),
    "array": np.array(0.25),
    "array of one": np.array([0.25]),
    "array of two": np.array([0.25, 0.5]),
    "jax": jnp.asarray(0.25),
    "jax int": jnp.asarray(3),
    "decimal": decimal.Decimal("0.25"),
    "signalling": decimal.Decimal("sNaN"),
    "fraction": fractions.Fraction(1, 4),
    "complex": 0.5 + 0j,
    "list": [0.5],
    "dict": {},
    "float": 3.0,
    "three": 3,
    "big": 2**63,
}


@kind("certify_losses", 6)
def certified_losses(rng: Generator) -> Verdict:
    count = int(pick(rng, (1, 2, 14, 40)))
    losses = pick(
        rng,
        (
            rng.random(count),
            rng.random(count) ** 20,
            (rng.random(count) < 0.1).astype(float),
            np.zeros(count),
            np.ones(count),
            np.full(count, 5e-324),
            rng.random(count) - 1e-3,
            rng.random(count) * 1.01,
            np.where(rng.random(count) < 0.1, np.nan, 0.5),
        ),
    )
    delta: Any = 0.05 if rng.random() < 0.6 else NUMBERS[pick(rng, NUMBERS)]
    if rng.random() < 0.2:
        losses = ARRAYS[pick(rng, ARRAYS)](losses[:, None])
    found = lrt.certify_losses(losses, delta)
    values = np.asarray(exact(losses).ravel(), float)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise Lie(f"accepted losses outside [0, 1]: {values}")
    true = oracle.order_free_bound(values, float(delta))
    oracle.check_close("bound", found.bound, np.longdouble(true), 1e-9)
    oracle.check_close("mean", found.mean, np.longdouble(values.mean()), 1e-12)
    oracle.check_close("largest", found.largest, np.longdouble(values.max()), 1e-12)
    return HONEST if found.vacuous else RIGHT


@kind("certify", 6)
def certified_layer(rng: Generator) -> Verdict:
    """The losses of a compressed layer on held-out units, at any scale."""
    dtype = dtype_of(rng)
    scales = scale_of(rng, dtype), scale_of(rng, dtype)
    units = pick(rng, ((9, 6), (14, 6), (5, 4, 6)))
    held_out = matrix(rng, int(np.prod(units[:-1])), 6)[0].reshape(units)
    held_out = stored(rng, held_out, dtype, scales[0])
    weights = np.asarray(stored(rng, matrix(rng, 6, 5)[0], dtype, scales[1]))
    observed = lrt.Observed(weights=weights)
    found = lrt.recover(observed, 2, lrt.TruncatedSVD())
    certificate = lrt.certify(observed, found, held_out=held_out, failure_probability=0.05)
    x = exact(held_out)
    z = exact(found.factors.left) @ exact(found.factors.right)
    losses = oracle.unit_losses(x @ exact(weights), x @ z)
    # Losses of units whose outputs cancel depend on rounding in float64.
    sizes = oracle.norm(x) * oracle.norm(weights)
    norms = np.sqrt(np.sum((x @ exact(weights)).reshape(len(x), -1) ** 2, axis=1))
    unsure = np.mean((norms > 0) & (norms < 1e-9 * sizes)) + 1e-5
    for name, true in (("mean", losses.mean()), ("largest", losses.max())):
        slack = unsure if name == "mean" else (1 if unsure > 1e-4 else 1e-5)
        oracle.check_close(name, getattr(certificate, name), true, slack)
    return HONEST if certificate.vacuous else RIGHT


@kind("unit_losses", 4)
def losses_of_units(rng: Generator) -> Verdict:
    dtype = dtype_of(rng)
    by = scale_of(rng, dtype)
    outputs = matrix(rng, 14, 6)[0]
    replaced = outputs + 10.0 ** rng.uniform(-9, 1) * rng.standard_normal(outputs.shape)
    outputs, replaced = (stored(rng, each, dtype, by) for each in (outputs, replaced))
    got = unit_losses(outputs, replaced)
    true = oracle.unit_losses(outputs, replaced)
    if not np.all(np.abs(exact(got) - true) <= 1e-9):
        raise Lie(f"losses are off by {float(np.max(np.abs(exact(got) - true))):.3g}")
    return RIGHT


# --- numbers and keys -----------------------------------------------------------------------------

OBSERVED = lrt.Observed(weights=np.arange(30.0).reshape(6, 5) % 7, activations=np.eye(6) + 1)

NUMBER_ENTRIES: dict[str, Callable[[Any], Any]] = {
    "samples": lambda n: lrt.Setting(samples=n, inputs=6, outputs=5, rank=2),
    "inputs": lambda n: lrt.Setting(samples=9, inputs=n, outputs=5, rank=1),
    "outputs": lambda n: lrt.Setting(samples=9, inputs=6, outputs=n, rank=1),
    "rank": lambda n: lrt.Setting(samples=9, inputs=6, outputs=5, rank=n),
    "noise": lambda n: lrt.Setting(9, 6, 5, 2, noise=lrt.Gaussian(n)).draw(key=jax.random.key(0)),
    "student": lambda n: generators.noise.StudentT(n, 3.0),
    "correlation": lambda n: generators.noise.Correlated(1.0, n),
    "decay": generators.spectra.PowerLaw,
    "given": lambda n: generators.spectra.Given((1.0, n)),
    "recover rank": lambda n: lrt.recover(OBSERVED, n, lrt.ActivationWeighted()),
    "at rank": lambda n: lrt.every_rank(OBSERVED, lrt.ActivationWeighted()).at(n),
    "ridge": lambda n: lrt.recover(OBSERVED, 2, lrt.Ridge(n)),
    "threshold": lambda n: lrt.recover(OBSERVED, 2, lrt.SingularValueThreshold(n)),
    "rank penalty": lambda n: lrt.recover(OBSERVED, 2, recovery.RankPenalised(n)),
    "radius": lambda n: lrt.recover(OBSERVED, 5, recovery.NuclearNormBall(n)),
    "noise scale": lambda n: lrt.recover(OBSERVED, 2, recovery.OptimalShrinkage(noise_scale=n)),
    "excess": lambda n: lrt.Randomized(excess=n, key=jax.random.key(0)),
    "max_steps": lambda n: lrt.Randomized(max_steps=n, key=jax.random.key(0)),
    "energy": lambda n: rank_choice.energy(OBSERVED, n),
    "hard_threshold": lambda n: rank_choice.hard_threshold(OBSERVED, n),
    "screenot": lambda n: rank_choice.screenot(OBSERVED, n),
    "empty": lambda n: lrt.Calibration.empty(n).update(np.ones((2, 3))),
    "save_every": lambda n: lrt.calibrate([np.eye(3)], lrt.Calibration.empty(3), save_every=n),
    "failure_probability": lambda n: lrt.certify_losses([0.1, 0.2, 0.3], n),
    "share": lrt.networks.Parameters,
    "relative": lrt.networks.LayerError,
    "budget": lambda n: lrt.networks.allocate(
        [lrt.networks.Options.of_ranks(np.array([1.0, 0.5, 0.0]), 2, 0, 5)] * 2, n
    ),
    "per_rank": lambda n: lrt.networks.Options.of_ranks(np.array([1.0, 0.5]), n, 0, 5),
}  # fmt: skip
ALWAYS_REFUSED = {"negative", "nan", "inf", "word", "dict", "signalling", "array of two"}


@kind("hostile numbers", 10)
def hostile_numbers(rng: Generator) -> Verdict:
    """Every number at every option: used as it was checked, or refused."""
    name, entry = pick(rng, NUMBERS), pick(rng, NUMBER_ENTRIES)
    found = NUMBER_ENTRIES[entry](NUMBERS[name])
    if name in ALWAYS_REFUSED:
        raise Lie(f"accepted {name} as {entry}")
    for leaf in jax.tree.leaves(found):
        if isinstance(leaf, np.ndarray | jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
            if isinstance(found, lrt.Recovery) and not bool(found.certificate.certified):
                return HONEST
            if np.isnan(np.asarray(leaf)).any():
                raise Lie(f"{entry} = {name} gives NaN")
    return RIGHT


KEYS: dict[str, Callable[[], Any]] = {
    "key": lambda: jax.random.key(3),
    "rbg key": lambda: jax.random.key(3, impl="rbg"),
    "old key": lambda: jax.random.PRNGKey(3),
    "int": lambda: 3,
    "none": lambda: None,
    "keys": lambda: jax.random.split(jax.random.key(3), 2),
    "no keys": lambda: jax.random.split(jax.random.key(3), 0),
    "array": lambda: np.array([0, 3], np.uint32),
    "floats": lambda: np.zeros(2),
    "word": lambda: "key",
    "numpy": lambda: np.random.default_rng(0),
}
KEY_ENTRIES: dict[str, Callable[[Any], Any]] = {
    "draw": lambda key: lrt.Setting(9, 6, 5, 2).draw(key=key),
    "Randomized": lambda key: lrt.recover(OBSERVED, 2, lrt.Randomized(key=key)),
}


@kind("keys", 3)
def keys(rng: Generator) -> Verdict:
    name, entry = pick(rng, KEYS), pick(rng, KEY_ENTRIES)
    key = KEYS[name]()
    with documented(name == "key"):
        KEY_ENTRIES[entry](key)
    if (name, entry) == ("numpy", "draw"):  # documented: drawn with NumPy
        return RIGHT
    if name in ("none", "keys", "no keys", "floats", "word", "numpy"):
        raise Lie(f"accepted {name} as a key of {entry}")
    return RIGHT


# --- factors as matrices --------------------------------------------------------------------------

Pair = tuple[
    Callable[..., Any], Callable[..., Any]
]  # of factors, other factors, rows; and of dense
OPERATIONS: dict[str, Pair] = {
    "asarray": (lambda f, *_: np.asarray(f), lambda a, *_: a),
    "np.array": (lambda f, *_: np.array(f, float), lambda a, *_: a),
    "jnp.asarray": (lambda f, *_: jnp.asarray(f), lambda a, *_: a),
    "materialise": (lambda f, *_: f.materialise(), lambda a, *_: a),
    "rows @ f": (lambda f, _, x: x @ f, lambda a, _, x: x @ a),
    "f @ columns": (lambda f, _, x: f @ x[:5].T[:5], lambda a, _, x: a @ x[:5].T[:5]),
    "vector @ f": (lambda f, _, x: x[0] @ f, lambda a, _, x: x[0] @ a),
    "f.T": (lambda f, *_: f.T.materialise(), lambda a, *_: a.T),
    "2 * f": (lambda f, *_: 2 * f, lambda a, *_: 2 * a),
    "f * 0.5": (lambda f, *_: f * 0.5, lambda a, *_: a * 0.5),
    "np.float64 * f": (lambda f, *_: np.float64(2) * f, lambda a, *_: 2 * a),
    "f / 2": (lambda f, *_: f / 2, lambda a, *_: a / 2),
    "-f": (lambda f, *_: -f, lambda a, *_: -a),
    "f + g": (lambda f, g, _: f + g, lambda a, b, _: a + b),
    "f - g": (lambda f, g, _: f - g, lambda a, b, _: a - b),
    "f + dense": (lambda f, g, _: f + g.materialise(), lambda a, b, _: a + b),
    "dense - f": (lambda f, g, _: g.materialise() - f, lambda a, b, _: b - a),
    "f * g": (lambda f, g, _: f * g, lambda a, b, _: a * b),
    "f ** 2": (lambda f, *_: f**2, lambda a, *_: a**2),
    "f @ g.T": (lambda f, g, _: f @ g.T, lambda a, b, _: a @ b.T),
    "f[0]": (lambda f, *_: f[0], lambda a, *_: a[0]),
    "np.sum": (lambda f, *_: np.sum(f), lambda a, *_: a.sum()),
    "norm": (lambda f, *_: np.linalg.norm(f), lambda a, *_: oracle.norm(a)),
    "rows of factors": (lambda f, *_: np.stack(list(f)), lambda a, *_: a),
}
NECESSARY = {"materialise", "rows @ f", "f @ columns", "vector @ f", "f.T", "f @ g.T"}


@kind("factors as matrices", 5)
def factors_as_matrices(rng: Generator) -> Verdict:
    """A `LowRank` acts as its matrix, or says that it does not."""
    dtype = pick(rng, (np.float64, np.float32, ml_dtypes.bfloat16, np.float16))
    draw = [rng.standard_normal(shape) for shape in ((6, 2), (2, 5), (6, 3), (3, 5), (14, 6))]
    pieces = [np.asarray(stored(rng, each, dtype)) for each in draw]
    f, g = lrt.LowRank(*pieces[:2]), lrt.LowRank(*pieces[2:4])
    name = pick(rng, OPERATIONS)
    of_factors, of_dense = OPERATIONS[name]
    dense = [exact(each.left) @ exact(each.right) for each in (f, g)]
    try:
        got = of_factors(f, g, pieces[4])
    except TypeError as error:  # as Python itself says that there is no such thing
        words = "`", "unsupported operand", "not subscriptable", "not iterable"
        said = any(each in str(error) for each in words)
        if name not in NECESSARY and said:
            return Verdict.REFUSED
        raise
    if isinstance(got, lrt.LowRank):
        got = got.materialise()
    true = exact(of_dense(*dense, exact(pieces[4])))
    got = exact(got)
    eps = max(float(ml_dtypes.finfo(dtype).eps), 2.0**-52)
    if got.shape != true.shape or not np.max(np.abs(got - true)) <= 64 * eps * (
        1 + np.max(np.abs(true))
    ):
        raise Lie(f"{name} gives something else")
    return RIGHT


# --- allocations ----------------------------------------------------------------------------------


@kind("allocate", 5)
def allocated(rng: Generator) -> Verdict:
    """Within the budget, no better than the best, and no worse where that is claimed."""
    curves = []
    for _ in range(int(rng.integers(1, 5))):
        ranks = int(rng.integers(1, 6))
        losses = np.sort(rng.random(ranks + 1))[::-1] * 10.0 ** rng.integers(-300, 300)
        if rng.random() < 0.2:
            bad = (0 * losses, losses * np.nan, losses[::-1], -losses, losses[:0], losses + np.inf)
            losses = pick(rng, bad)
        cost = int(pick(rng, (1, 3, 1000, 10**15)))
        fixed = int(rng.integers(0, 2)) * cost
        make = lrt.networks.Options.of_ranks
        curves.append(make(losses, cost, fixed, ranks * cost + fixed))
    dense = sum(curve.dense for curve in curves)
    budget = float(rng.uniform(0, 1.05)) * dense
    found = lrt.networks.allocate(curves, budget)
    options = [
        [(curve.dense, 0.0)]
        + [
            (int(cost), float(loss))
            for cost, loss in zip(curve.costs, curve.losses, strict=True)
            if cost < curve.dense
        ]
        for curve in curves
    ]
    best = oracle.best_loss(options, budget)
    if found.cost > budget:
        raise Lie(f"costs {found.cost} of {budget}")
    paid = sum(c.cost(k) for c, k in zip(curves, found.chosen, strict=True))
    lost = sum(
        0.0 if k is None else float(c.losses[k]) for c, k in zip(curves, found.chosen, strict=True)
    )
    if paid != found.cost or abs(lost - found.loss) > 1e-9 * lost:
        raise Lie("cost or loss is not that of the options")
    if found.lower_bound > best * (1 + 1e-9):
        raise Lie(f"the lower bound {found.lower_bound:g} is above the best, {best:g}")
    if found.lower_bound >= found.loss and found.loss > best * (1 + 1e-9):
        raise Lie(f"claims the best, {found.loss:g}, and {best:g} is better")
    return RIGHT


# --- networks -------------------------------------------------------------------------------------

HIDDEN = 12


def perceptron(p: Any, x: Any) -> Any:
    hidden = jnp.tanh(x @ p["a"].astype(x.dtype))
    return hidden @ p["b"].astype(x.dtype)


def tied_twice(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["a"].astype(x.dtype)) @ p["a"].astype(x.dtype).T


def with_unused(p: Any, x: Any) -> Any:
    return x @ p["a"].astype(x.dtype)


NETWORKS = {"perceptron": perceptron, "tied": tied_twice, "unused": with_unused}


def target_of(rng: Generator) -> Any:
    budget = pick(rng, (Parameters, Bytes, MultiplyAdds))
    return pick(
        rng,
        (
            budget(float(pick(rng, (0.3, 0.5, 0.8)))),
            LayerError(float(pick(rng, (0.002, 0.1, 0.5)))),
            RankRule(lambda observed: rank_choice.energy(observed, 0.9)),
        ),
        (3, 2, 1),
    )


@kind("networks", 3)
def networks(rng: Generator) -> Verdict:
    """What `compress` says of a tiny network is so."""
    name = pick(rng, NETWORKS)
    function, target = NETWORKS[name], target_of(rng)
    dtype = pick(rng, list(DTYPES), (1, 5, 2, 2, 0.7, 0.7))
    rows, scale = matrix(rng, 40, 16)[0], 10.0 ** rng.integers(-3, 4)
    batch = np.asarray(rows / max(1.0, np.max(np.abs(rows)) / 1e4), np.float32)
    parameters = {"a": jnp.asarray(stored(rng, matrix(rng, 16, HIDDEN)[0] * scale / 10, dtype))}
    if name == "perceptron":
        second = orthogonal(rng, HIDDEN, 10) * 10.0 ** rng.integers(-3, 3)
        parameters["b"] = jnp.asarray(stored(rng, second, dtype))
    elif name == "unused":
        parameters["b"] = jnp.asarray(stored(rng, np.zeros((HIDDEN, 10)), dtype))
        if rng.random() < 0.5:
            parameters["c"] = jnp.zeros((0, 4))
    method = pick(rng, (lrt.ActivationWeighted(), lrt.TruncatedSVD()), (3, 1))
    found = lrt.networks.compress(function, parameters, [batch], target, method=method)
    return check_network(found, target, name, parameters, batch, method)


def check_network(
    found: Any, target: Any, name: str, parameters: Any, batch: np.ndarray, method: Any
) -> Verdict:
    seen = {"['a']": exact(batch)}
    if name == "perceptron":
        hidden = jnp.tanh(jnp.asarray(batch) @ parameters["a"].astype(jnp.float32))
        seen["['b']"] = exact(hidden)
    certified, numbers = True, 0
    for path, layer in found.layers.items():
        leaf = found.parameters[path[2:-2]]
        numbers += sum(each.size for each in jax.tree.leaves(leaf))
        if layer.rank is None or path not in seen or name == "tied":
            continue
        w = exact(parameters[path[2:-2]])
        factors: Any = leaf
        shift = np.zeros(w.shape[1])
        if isinstance(leaf, Affine):
            factors, shift = leaf.approximation, leaf.shift
        z = exact(factors.left) @ exact(factors.right)
        x, off = seen[path], exact(shift)
        if isinstance(method, lrt.TruncatedSVD):
            x = np.eye(len(w), dtype=np.longdouble)
        certified &= bool(layer.certified)
        error = oracle.norm(x @ w - (x @ z + off)) / max(oracle.norm(x @ w), np.longdouble(1e-4000))
        stated = layer.relative_error
        if np.isnan(stated) or (not np.isfinite(error) and layer.certified):
            raise Lie(f"{path}: states {stated}, certified {layer.certified}, truly {float(error)}")
        if np.isfinite(error) and error > 1.02 * stated + 2e-6:
            raise Lie(f"{path}: states {stated:.4g}, and the error is {float(error):.4g}")
        if isinstance(target, LayerError) and error > 1.02 * target.relative + 2e-6:
            raise Lie(f"{path}: asked for {target.relative}, and the error is {float(error):.4g}")
    if numbers != found.parameter_count:
        raise Lie(f"counts {found.parameter_count} numbers, and holds {numbers}")
    share = target.share if isinstance(target, Parameters) else 1.0
    if found.parameter_count > share * found.dense_parameter_count:
        raise Lie("the budget is not met")
    outputs = np.asarray(found.function(found.parameters, batch))
    if certified and not np.isfinite(outputs).all():
        raise Lie("certified, and its outputs are not finite")
    return RIGHT if certified else HONEST
