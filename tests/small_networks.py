"""Two networks that are compressed in tests: a perceptron, and one layer of every form."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank_theory.networks import Compressed
from routes import normal


@dataclasses.dataclass
class Network:
    function: Callable[[Any, Any], Any]
    parameters: Any
    batches: list[Any]


def rows(seed, *shape):
    """Activations of decaying spectrum about a mean."""
    width = shape[-1]
    directions = normal(seed, width, width) / 1.5 ** np.arange(width)[:, None]
    return (0.5 + normal(seed + 1, *shape) @ directions).astype(np.float32)


def perceptron(p, x):
    for layer in p[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ p[-1]["w"] + p[-1]["b"]


def mlp():
    widths = (12, 16, 14, 9)
    pairs = itertools.pairwise(widths)
    parameters = [
        {"w": normal(k, n, m) / np.sqrt(n), "b": normal(9 + k, m)} for k, (n, m) in enumerate(pairs)
    ]
    return Network(perceptron, parameters, [rows(20, 70, 12), rows(22, 50, 12)])


def products():
    """One layer each: a matrix, two that share their input, a stack, a grouped convolution, and one
    in half precision. The outputs are the products themselves.
    """

    def function(p, x):
        return {
            "plain": x["flat"] @ p["plain"],
            "twin": jnp.einsum("sn,kn->sk", x["flat"], p["twin"]),
            "stack": lax.map(lambda pair: pair[0] @ pair[1], (x["stack"], p["stack"])),
            "kernel": lax.conv_general_dilated(
                x["images"], p["kernel"], (1, 1), "SAME", feature_group_count=2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            ),
            "half": x["flat"].astype(jnp.bfloat16) @ p["half"],
        }  # fmt: skip

    parameters = {
        "plain": normal(0, 12, 10),
        "twin": normal(1, 9, 12),
        "stack": normal(2, 3, 8, 11),
        "kernel": normal(3, 3, 3, 4, 16),
        "half": jnp.asarray(normal(4, 12, 10), jnp.bfloat16),
    }

    def batch(seed):
        return {
            "flat": rows(seed, 40, 12),
            "stack": rows(seed, 3, 30, 8),
            "images": rows(seed, 5, 6, 6, 8),
        }

    return Network(function, parameters, [batch(30), batch(40)])


NETWORKS = {"mlp": mlp, "products": products}


def run(network, compressed: Compressed | None = None):
    """The outputs for all batches, one after the other, in float64."""
    function, parameters = network.function, network.parameters
    if compressed is not None:
        function, parameters = compressed.function, compressed.parameters
    with jax.default_matmul_precision("highest"):
        results = [jax.jit(function)(parameters, batch) for batch in network.batches]
    return jax.tree.map(lambda *parts: np.concatenate([np.float64(p) for p in parts]), *results)


def stored(compressed: Compressed) -> dict[str, list[Any]]:
    """The arrays that stand for each layer."""
    found: dict[str, list[Any]] = {path: [] for path in compressed.layers}
    for path, leaf in jax.tree_util.tree_leaves_with_path(compressed.parameters):
        for layer, arrays in found.items():
            if jax.tree_util.keystr(path).startswith(layer):
                arrays.append(leaf)
    return found
