"""Small functions of (parameters, batch) that use their weights in every way that can be followed,
and by hand what each weight multiplies.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank_theory.approximations import LowRank
from lowrank_theory.networks import CompressedLayer, MatrixView

SAMPLES, INPUTS, OUTPUTS = 5, 6, 11  # no axis or product of a model is as large as INPUTS * OUTPUTS


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def layer_of(view: MatrixView, rank: int | None, remark: str = "") -> CompressedLayer:
    """Of a network put together by hand; its numbers are of no matter."""
    size = None if rank is None else f"rank {rank}"
    counts = (10, 40, 40, 160, 100, 400)
    return CompressedLayer(view, size, size and "by hand", rank, remark, 0.1, True, *counts)


@dataclasses.dataclass
class Model:
    """`rows(parameters, batch)` are what each weight multiplies: (samples, inputs), or for a stack
    (slices, samples, inputs).
    """

    function: Callable[[Any, Any], Any]
    parameters: Any
    batch: Any
    rows: Callable[[Any, Any], dict[str, np.ndarray]]


# --- one weight (inputs, outputs), one matrix of activations (samples, inputs), many routes ------


@jax.custom_vjp
def with_own_gradient(w, x):
    return x @ w


with_own_gradient.defvjp(
    lambda w, x: (x @ w, (w, x)), lambda kept, g: (kept[1].T @ g, g @ kept[0].T)
)


@jax.custom_jvp
def with_own_derivative(w, x):
    return x @ w


@with_own_derivative.defjvp
def _(primals, tangents):
    (w, x), (dw, dx) = primals, tangents
    return x @ w, dx @ w + x @ dw


def turns(w, x):
    return lax.scan(lambda kept, row: (kept, row @ kept), w, x)[1]


# name: (what the route does with the leaf, the leaf of the matrix)
ROUTES: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any], Any]]] = {
    "matmul": (lambda w, x: x @ w, lambda w: w),
    "stored transposed": (lambda w, x: x @ w.T, lambda w: w.T),
    "from the left": (lambda w, x: w @ x.T, lambda w: w.T),
    "half precision": (lambda w, x: x @ w.astype(jnp.bfloat16).astype(jnp.float32), lambda w: w),
    "flat": (lambda w, x: x @ w.reshape(INPUTS, OUTPUTS), lambda w: w.reshape(-1)),
    "unit axes": (lambda w, x: x @ w[0, :, None, :].squeeze(1), lambda w: w[None]),
    "two input axes": (
        lambda w, x: jnp.einsum("sab,aob->so", x.reshape(SAMPLES, 2, 3), w),
        lambda w: w.reshape(2, 3, OUTPUTS).transpose(0, 2, 1),
    ),
    "input axis in two": (
        lambda w, x: jnp.tensordot(x.reshape(-1, 3, 2), w.reshape(3, 2, -1), 2),
        lambda w: w,
    ),
    "einsum": (lambda w, x: jnp.einsum("oi,si->os", w, x), lambda w: w.T),
    "jit": (jax.jit(lambda w, x: jax.nn.relu(x @ w)), lambda w: w),
    "vmap": (lambda w, x: jax.vmap(lambda row: w @ row)(x), lambda w: w.T),
    "checkpoint": (jax.checkpoint(lambda w, x: jnp.tanh(x @ w)), lambda w: w),
    "own gradient": (with_own_gradient, lambda w: w),
    "own derivative": (with_own_derivative, lambda w: w),
    "loop": (lambda w, x: lax.map(lambda row: row @ w, x), lambda w: w),
    "carried": (turns, lambda w: w),
    "branch": (
        lambda w, x: lax.cond(x[0, 0] > 9, lambda: jnp.zeros((SAMPLES, OUTPUTS)), lambda: x @ w),
        lambda w: w,
    ),
    "slices of one": (
        lambda w, x: lax.scan(lambda carry, w: (carry, x @ w), 0, w)[1],
        lambda w: w[None],
    ),
}


def routes() -> Model:
    weights = normal(0, len(ROUTES), INPUTS, OUTPUTS)
    return Model(
        lambda p, x: {name: route(p[name], x) for name, (route, _) in ROUTES.items()},
        {name: leaf(w) for w, (name, (_, leaf)) in zip(weights, ROUTES.items(), strict=True)},
        normal(1, SAMPLES, INPUTS),
        lambda p, x: {f"['{name}']": x for name in ROUTES},
    )


# --- attention, grouped convolutions, stacked layers ---------------------------------------------


def attention() -> Model:
    def function(p, x):
        q, k, v = (jnp.einsum("btd,dhw->bthw", x, p[name]) for name in "qkv")
        mixed = jnp.einsum(
            "bhts,bshw->bthw", jax.nn.softmax(jnp.einsum("bthw,bshw->bhts", q, k)), v
        )
        return {"mixed": mixed, "out": x + jnp.einsum("bthw,hwd->btd", mixed, p["o"]) + p["bias"]}

    def rows(p, x):
        mixed = function(p, x)["mixed"]
        seen = np.asarray(x).reshape(-1, 6)
        return {"['q']": seen, "['k']": seen, "['v']": seen, "['o']": np.reshape(mixed, (-1, 10))}

    shapes = {"q": (6, 2, 5), "k": (6, 2, 5), "v": (6, 2, 5), "o": (2, 5, 6), "bias": (6,)}
    parameters = {name: normal(k, *shape) for k, (name, shape) in enumerate(shapes.items())}
    return Model(function, parameters, normal(9, 2, 3, 6), rows)


def convolutions() -> Model:
    def function(p, x):
        """(batch, height, width, channels), two groups; then (batch, channels, height), dilated."""
        y = lax.conv_general_dilated(
            x, p["image"], (2, 1), ((1, 0), (0, 2)), feature_group_count=2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        line = jax.nn.relu(y).reshape(2, -1, 10).transpose(0, 2, 1)
        out = lax.conv_general_dilated(line, p["line"], (1,), "VALID", rhs_dilation=(2,))
        return {"line": line, "out": out}

    def patches(x, window, strides, padding, dilation):
        """By hand: (samples, *window, channels) of (batch, *places, channels)."""
        x = np.pad(x, ((0, 0), *padding, (0, 0)))
        reach = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
        starts = [
            range(0, n - r + 1, s) for n, r, s in zip(x.shape[1:-1], reach, strides, strict=True)
        ]
        cut = []
        for image in x:
            for corner in np.ndindex(*map(len, starts)):
                at = [s[c] for s, c in zip(starts, corner, strict=True)]
                slices = (slice(a, a + r, d) for a, r, d in zip(at, reach, dilation, strict=True))
                cut.append(image[tuple(slices)])
        return np.stack(cut)

    def rows(p, x):
        image = patches(x, (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 1))
        groups = [image[..., :2].reshape(len(image), -1), image[..., 2:].reshape(len(image), -1)]
        line = np.moveaxis(np.asarray(function(p, x)["line"]), 1, 2)
        line = patches(line, (3,), (1,), ((0, 0),), (2,))
        line = line.swapaxes(1, 2).reshape(len(line), -1)  # (outputs, inputs, window) as stored
        return {"['image']": np.stack(groups), "['line']": line}

    parameters = {"image": normal(0, 3, 2, 2, 10), "line": normal(1, 7, 10, 3)}
    return Model(function, parameters, normal(2, 2, 4, 3, 4), rows)


def stacked_layers() -> Model:
    """Three layers in a loop, each with two turns through `inner` and two experts side by side,
    which are stored experts first.
    """

    def function(p, x):
        def layer(x, w):
            x, _ = lax.scan(lambda x, _: (jnp.tanh(x @ w["inner"]), x), x, length=2)
            x = jax.vmap(lambda w, k: jnp.tanh(k * x) @ w)(w["experts"], jnp.arange(1.0, 3.0)).sum(
                0
            )
            return x @ w["down"] @ w["up"], None

        layers = {**p["layers"], "experts": p["layers"]["experts"].swapaxes(0, 1)}
        return {"out": lax.scan(layer, x, layers)[0]}

    def rows(p, x):
        seen: dict[str, list[np.ndarray]] = {"inner": [], "experts": [], "down": [], "up": []}
        stored = {**p["layers"], "experts": p["layers"]["experts"].swapaxes(0, 1)}
        for inner, experts, down, up in zip(*(stored[name] for name in seen), strict=True):
            first = np.tanh(x @ inner)
            seen["inner"].append(np.concatenate([x, first]))
            second = np.tanh(first @ inner)
            seen["experts"] += [np.tanh(second), np.tanh(2 * second)]
            x = np.tanh(second) @ experts[0] + np.tanh(2 * second) @ experts[1]
            seen["down"].append(x)
            seen["up"].append(x @ down)
            x = x @ down @ up
        return {f"['layers']['{name}']": np.stack(slices) for name, slices in seen.items()}

    shapes = {"inner": (3, 6, 6), "experts": (2, 3, 6, 6), "down": (3, 6, 5), "up": (3, 5, 6)}
    layers = {name: normal(k, *shape) for k, (name, shape) in enumerate(shapes.items())}
    return Model(function, {"layers": layers}, normal(4, SAMPLES, 6), rows)


MODELS = {
    "routes": routes,
    "attention": attention,
    "convolutions": convolutions,
    "stacked layers": stacked_layers,
}


def factors_of(view: MatrixView, seed: int, rank: int = 2) -> LowRank:
    """Random factors of the matrix, or of each of the stack. They are integers, whose products even
    half precision holds.
    """
    *stack, inputs, outputs = view.matrix_shape
    left, right = normal(seed, *stack, inputs, rank), normal(seed + 1, *stack, rank, outputs)
    return LowRank(np.round(left), np.round(right))
