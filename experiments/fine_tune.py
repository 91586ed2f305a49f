"""What fine-tuning gives back to the digits network, compressed to a quarter and to a tenth.

    python experiments/fine_tune.py [--quick]

The network is compressed once for each share and method, calibrated on all training images; its
factors and shifts, and what stayed dense, are then trained on the labels. The optimiser is the one
that trained the network, at the same rate: nothing was chosen by looking at held-out images. A seed
is the order of the batches, so intervals are over these, for one network and the same 597 images.
"""

from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _save import column, interval, run
from lowrank_theory.networks import (
    Compressed,
    Dataset,
    Parameters,
    Perceptron,
    compress,
    digits_data,
    digits_network,
)
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.recovery import ActivationWeighted, TruncatedSVD

SEED = 11
SHARES = (0.25, 0.1)
BATCH = 100
LEARNING_RATE = 1e-3
METHODS = {"data_driven": ActivationWeighted(), "data_agnostic": TruncatedSVD()}
LABELS = {"data_driven": "fitted to activations", "data_agnostic": "weights truncated"}


def logits(network: Perceptron, images: Array) -> Array:
    return network(images)


def losses(outputs: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)


def held_out(outputs: Array, split: Dataset) -> dict[str, Array]:
    labels = split.held_out_labels
    right = outputs.argmax(axis=1) == labels
    return {"cross_entropy": losses(outputs, labels).mean(), "accuracy": right.mean()}


def fine_tuned(
    compressed: Compressed, split: Dataset, *, epochs: int, keys: Array
) -> dict[str, np.ndarray]:
    """What is measured before the first epoch and after each, (seeds, 1 + epochs)."""
    optimiser = optax.adam(LEARNING_RATE)

    def loss(parameters: Any, chosen: Array) -> Array:
        outputs = compressed.function(parameters, split.training_images[chosen])
        return losses(outputs, split.training_labels[chosen]).mean()

    def step(carry: tuple, chosen: Array) -> tuple:
        parameters, state = carry
        updates, state = optimiser.update(jax.grad(loss)(parameters, chosen), state)
        return (optax.apply_updates(parameters, updates), state), None

    def epoch(carry: tuple, key: Array) -> tuple:
        before = held_out(compressed.function(carry[0], split.held_out_images), split)
        order = jax.random.permutation(key, len(split.training_images))
        return jax.lax.scan(step, carry, order.reshape(-1, BATCH))[0], before

    def one_seed(key: Array) -> dict[str, Array]:
        start = (compressed.parameters, optimiser.init(compressed.parameters))
        # One epoch more, for what is measured after the last.
        return jax.lax.scan(epoch, start, jax.random.split(key, epochs + 1))[1]

    measured = jax.jit(lambda keys: jax.lax.map(one_seed, keys))(keys)
    return jax.tree.map(lambda each: np.asarray(each, np.float64), measured)


def measure(*, quick: bool) -> dict[str, Any]:
    seeds, epochs = (3, 5) if quick else (10, 30)
    network, split = digits_network(), digits_data()
    keys = jax.random.split(jax.random.key(SEED), seeds)
    dense = {k: float(v) for k, v in held_out(network(split.held_out_images), split).items()}
    rows = []
    for share in SHARES:
        for name, method in METHODS.items():
            batches = [split.training_images]
            compressed = compress(logits, network, batches, Parameters(share), method=method)
            curves = fine_tuned(compressed, split, epochs=epochs, keys=keys)
            rows.append(
                {
                    "share": share,
                    "method": name,
                    "parameters": compressed.parameter_count,
                    "ranks": [layer.rank for layer in compressed.layers.values()],
                    "compressed": {each: float(curves[each][0, 0]) for each in dense},
                    "fine_tuned": {each: interval(curves[each][:, -1]) for each in dense},
                    "epochs": {
                        each: [interval(values) for values in curves[each].T] for each in dense
                    },
                }
            )
    return {
        "seeds": seeds,
        "epochs": epochs,
        "steps": epochs * (len(split.training_images) // BATCH),
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "training_images": len(split.training_images),
        "held_out_images": len(split.held_out_images),
        "dense_parameters": sum(weights.size for weights in network.weights),
        "dense": dense,
        "rows": rows,
    }


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = panels(2 * len(SHARES), columns=2, width=4.8, height=3.2)
    for left, right, share in zip(axes[::2], axes[1::2], SHARES, strict=True):
        rows = [row for row in numbers["rows"] if row["share"] == share]
        for panel in (left, right):
            panel.set_title(f"{share:.0%} of the parameters", fontsize=10)
            panel.set_xlabel("epochs of fine-tuning")
        _curves(left, rows, "cross_entropy", numbers["dense"], 1.0)
        left.set_ylabel("held-out cross-entropy (nats)")
        left.set_yscale("log")
        _curves(right, rows, "accuracy", numbers["dense"], 100.0)
        right.set_ylabel("held-out accuracy (%)")
    legend_above(figure, axes[0], 3)
    return figure


def _curves(
    panel: Axes, rows: list[dict[str, Any]], each: str, dense: dict[str, float], scale: float
) -> None:
    panel.axhline(scale * dense[each], **LIMIT, label="uncompressed")
    for row, style in zip(rows, SERIES, strict=False):
        curve = row["epochs"][each]
        low, mean, high = (scale * column(curve, part) for part in ("low", "mean", "high"))
        epochs = np.arange(len(curve))
        panel.plot(epochs, mean, **style, markersize=4, label=LABELS[row["method"]])
        panel.fill_between(epochs, low, high, color=style["color"], alpha=0.2, linewidth=0)


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
