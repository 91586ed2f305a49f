"""The error of a compressed network against rank, and against depth, beside its two bounds.

For networks fitted layer by layer the sum of squares is the smaller bound; both follow the error
over rank, at a distance, and over depth grow with the product of the operator norms, which the
error does not.

python experiments/network_composition.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.models.digits import digits_data, digits_network
from lowrank_theory.plotting import SERIES, legend_above, panels
from lowrank_theory.theorems import network_composition
from lowrank_theory.theorems.network_composition import (
    Fitted,
    Network,
    Random,
    compressed_by_layers,
)

SEED = 17
RANKS = (2, 4, 8, 16, 32, 64)
ROWS = 400
DEPTHS = (1, 2, 3, 4, 6, 8)
WIDTH, SAMPLES, RANK, GAIN = 16, 40, 8, 2**0.5


def _relative(network: Network) -> Any:
    """Error and both bounds, over the norm of the outputs."""
    telescoping, residuals = network_composition.telescoping, network_composition.residuals
    size = jnp.linalg.norm(network.seen(network.weights)[-1] @ network.weights[-1])
    compressed = network.compressed
    return (
        telescoping.loss(network, compressed) / size,
        telescoping.formula(network, compressed) / size,
        jnp.sqrt(residuals.formula(network, compressed)) / size,
    )


def _digits() -> tuple[Any, Any]:
    """The embedded network without biases: each is a row of weights, fed by a constant column."""
    network, data = digits_network(), digits_data()
    weights = []
    for index, (w, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        last = index == len(network.weights) - 1
        layer = np.vstack([np.asarray(w, float), np.asarray(b, float)])
        constant = np.zeros((len(layer), 0 if last else 1))
        constant[-1:] = 1
        weights.append(np.hstack([layer, constant]))
    images = np.asarray(data.training_images[:ROWS], float)
    return tuple(weights), np.hstack([images, np.ones((len(images), 1))])


def measure(*, quick: bool) -> dict[str, Any]:
    weights, inputs = _digits()
    by_rank = []
    for rank in RANKS[:2] if quick else RANKS:
        with jax.enable_x64(True):
            compressed = compressed_by_layers(weights, inputs, rank)
            network = Network(weights, compressed, inputs, min(rank, weights[-1].shape[1]))
            values = [float(value) for value in _relative(network)]
        names = ("error", "telescoping", "residuals")
        by_rank.append({"rank": rank, **dict(zip(names, values, strict=True))})
    by_depth = []
    for depth in DEPTHS[:2] if quick else DEPTHS:
        setting = Fitted(Random(SAMPLES, (WIDTH,) * (depth + 1), RANK, GAIN))
        key = jax.random.fold_in(jax.random.key(SEED), depth)
        error, telescoping, residuals = sample(
            _relative, setting, trials=4 if quick else 50, key=key
        )
        by_depth.append(
            {
                "depth": depth,
                "error": interval(error),
                "telescoping": interval(telescoping),
                "residuals": interval(residuals),
                "largest_ratio": float(np.max(error / residuals)),
            }
        )
    parameters = {"rows": ROWS, "width": WIDTH, "samples": SAMPLES, "rank": RANK, "gain": GAIN}
    return {**parameters, "by_rank": by_rank, "by_depth": by_depth}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.6, height=4.0)
    lines = (
        ("telescoping", SERIES[1], "telescoping sum"),
        ("residuals", SERIES[2], "sum of squared residuals (root)"),
        ("error", SERIES[0], "error of the network"),
    )
    rows = numbers["by_rank"]
    for name, style, label in lines:
        left.plot(column(rows, "rank"), column(rows, name), **style, label=label)
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter("{x:g}")
    left.set_xlabel("rank of every layer")
    left.set_title("digits network, three layers", fontsize=10)
    rows = numbers["by_depth"]
    for name, style, _ in lines:
        mean = column(rows, name, "mean")
        errors = [mean - column(rows, name, "low"), column(rows, name, "high") - mean]
        right.errorbar(column(rows, "depth"), mean, errors, **style, capsize=2)
    right.set_xlabel("number of layers")
    right.set_title(
        f"random networks of width {numbers['width']}, rank {numbers['rank']}", fontsize=10
    )
    for panel in (left, right):
        panel.set_yscale("log")
        panel.set_ylabel("error of the outputs / their norm")
    legend_above(figure, left, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
