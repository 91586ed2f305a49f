"""One network trained for every level, on photographs: CIFAR-10 by sparsity, width and rank.

    python experiments/subspaces_cifar10.py [--quick]

Six convolutions with group normalisation (instance normalisation for width), trained on 20,000
images, mirrored at random, in ten epochs of stochastic gradient descent. All but the dense one
are trained with one schedule, that of the line (Nunez et al. 2021): half of the steps at an end,
levels that come down over 80 % of the steps. So only what is compressed differs. Beside them the
dense network, pruned when it is tested and cut by ranks, `Compressed.at`. Sizes are the numbers
that are kept in the five inner convolutions: of entries, of factors, or of the channels of inputs
and outputs that are left. Each is measured at the levels whose sizes are nearest to six. Intervals
are exact ones of a proportion (Clopper and Pearson), for 1,000 test images and this one run. Every
run is kept after each epoch, in `out/subspaces_cifar10`, and goes on from there.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, PRNGKeyArray, PyTree
from matplotlib.figure import Figure
from scipy import stats

from _save import CONFIDENCE, column, run
from _transfer_note import Row, Tables, filled, table
from lowrank_theory._files import write_atomically
from lowrank_theory.data_constrained import (
    AbstractCompressor,
    AbstractSchedule,
    Fixed,
    KeepAll,
    Narrowed,
    Pruned,
    Sampled,
    Subspace,
    Trained,
    Truncated,
    train,
)
from lowrank_theory.networks import Bytes, cifar10_data, compress
from lowrank_theory.plotting import LIMIT, SERIES, panels
from lowrank_theory.studies.subspaces import everywhere, grouped, with_factors

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "out" / "subspaces_cifar10"
NOTE = ROOT / "paper_notes" / "after_deployment.md"
SEED = 0
CHANNELS = {"conv1": 24, "conv2": 24, "conv3": 48, "conv4": 48, "conv5": 96, "conv6": 96}
STRIDED = ("conv1", "conv3", "conv5")  # take every second place
CLASSES, GROUPS = 10, 8
MEAN, DEVIATION = 120.7, 64.2  # of the pixels of all training images
TRAINING, HELD_OUT, CALIBRATION, BATCH, EPOCHS = 20_000, 1_000, 500, 125, 10
RATE, DECAY = 0.05, 5e-4
SIZES = (0.025, 0.05, 0.1, 0.2, 0.5, 1.0)
NEAR = 0.05  # how far a size may be from one of them, as a share of it
KERNELS = tuple(f"['{name}']['kernel']" for name in CHANNELS if name != "conv1")
OUTPUTS = tuple(
    f"['{name}']['{part}']" for name in CHANNELS for part in ("kernel", "scale", "shift")
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is trained."""

    training: int = TRAINING
    epochs: int = EPOCHS

    @property
    def steps(self) -> int:
        return self.epochs * self.training // BATCH


QUICK = Plan(2 * BATCH, 1)


# --- the network ----------------------------------------------------------------------------------


def initial_parameters(*, key: PRNGKeyArray) -> dict[str, Any]:
    """He's initialisation: weights of variance 2 / inputs, shifts zero, scales one."""
    parameters, inputs = {}, 3
    for number, (name, outputs) in enumerate(CHANNELS.items()):
        kernel = jax.random.normal(jax.random.fold_in(key, number), (3, 3, inputs, outputs))
        kernel *= (2 / (9 * inputs)) ** 0.5
        parameters[name] = {
            "kernel": kernel, "scale": jnp.ones(outputs), "shift": jnp.zeros(outputs)
        }  # fmt: skip
        inputs = outputs
    head = jax.random.normal(jax.random.fold_in(key, len(CHANNELS)), (inputs, CLASSES))
    return parameters | {"head": {"kernel": head / inputs**0.5, "bias": jnp.zeros(CLASSES)}}


def logits(parameters: PyTree, images: Array, groups: int | None = GROUPS) -> Array:
    """The network with group normalisation, or with instance normalisation."""
    x, normalise = (jnp.asarray(images, jnp.float32) - MEAN) / DEVIATION, grouped(groups)
    for name in CHANNELS:
        layer, strides = parameters[name], (2, 2) if name in STRIDED else (1, 1)
        x = lax.conv_general_dilated(
            x,
            layer["kernel"],
            strides,
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(normalise(name, x, layer))
    return x.mean((1, 2)) @ parameters["head"]["kernel"] + parameters["head"]["bias"]


# --- how it is trained ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to train: how the network is compressed, down to which level, and a line in which
    leaves (nowhere: a point).
    """

    compressor: AbstractCompressor
    lowest: float = 1 / 40
    line: Callable[[str], bool] | None = None
    groups: int | None = GROUPS

    def schedule(self, plan: Plan) -> AbstractSchedule:
        """That of the line, for all that is compressed."""
        if isinstance(self.compressor, KeepAll):
            return Fixed(1.0)
        return Sampled(lowest=self.lowest, warm_up=int(0.8 * plan.steps))


PRUNED = Pruned(KERNELS)
KINDS: dict[str, Kind] = {
    "dense": Kind(KeepAll()),
    "sparsity, line": Kind(PRUNED, line=everywhere),
    "rank, point": Kind(Truncated(KERNELS), 1 / 24),
    "sparsity, point": Kind(PRUNED),
    "width, point": Kind(Narrowed(OUTPUTS, 1 / 8), groups=None),
}


def trained(name: str, plan: Plan) -> tuple[Any, Trained]:
    """A run, and the function of its parameters."""
    kind, data = KINDS[name], cifar10_data(plan.training)
    keys = jax.random.split(jax.random.key(SEED), 3)
    ends = [initial_parameters(key=key) for key in keys[:2]]
    function: Any = functools.partial(logits, groups=kind.groups)
    if isinstance(kind.compressor, Truncated):
        zeros = jnp.zeros((2, 32, 32, 3), jnp.uint8)
        made = [with_factors(function, each, zeros, KERNELS) for each in ends]
        function, ends = made[0][0], [parameters for _, parameters in made]
    end, start = ends
    subspace = Subspace.line(start, end, kind.line) if kind.line else Subspace.point(end)

    def loss(parameters: PyTree, batch: PyTree) -> Array:
        found = optax.softmax_cross_entropy_with_integer_labels(
            function(parameters, batch[0]), batch[1]
        )
        return found.mean()

    def batches(key: PRNGKeyArray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order, mirrored = jax.random.split(key)
        rows = np.asarray(jax.random.permutation(order, plan.training)).reshape(-1, BATCH)
        turned = np.asarray(jax.random.bernoulli(mirrored, shape=rows.shape))
        for chosen, turn in zip(rows, turned, strict=True):
            images = data.training_images[chosen]
            yield (
                np.where(turn[:, None, None, None], images[:, :, ::-1], images),
                (data.training_labels[chosen]),
            )

    rate = optax.cosine_decay_schedule(RATE, plan.steps)
    optimiser = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(rate, momentum=0.9))
    found = train(
        subspace, loss, kind.compressor, batches, schedule=kind.schedule(plan),
        optimiser=optimiser, epochs=plan.epochs, key=keys[2], folder=FOLDER,
        progress=lambda what, done, total: print(name, what, done, "of", total, flush=True),
    )  # fmt: skip
    return function, found


def accuracy(function: Any, parameters: PyTree) -> dict[str, float]:
    """The share of test images that is right, and its exact interval."""
    data = cifar10_data(1)
    images, labels = data.held_out_images[:HELD_OUT], data.held_out_labels[:HELD_OUT]
    right = int(np.sum(np.argmax(function(parameters, images), axis=1) == labels))
    found = stats.binomtest(right, len(labels)).proportion_ci(CONFIDENCE)
    return {"mean": right / len(labels), "low": found.low, "high": found.high}


# --- what is measured -----------------------------------------------------------------------------


def size_of(compressor: AbstractCompressor, level: float) -> float:
    """The share of the numbers of the five inner convolutions that is kept."""
    if isinstance(compressor, Pruned):
        return level

    def kept(channels: int) -> int:
        return max(1, round(float(np.float32(compressor.size(level)) * channels)))

    channels, found, dense = list(CHANNELS.values()), 0, 0
    for inputs, outputs in itertools.pairwise(channels):
        dense += 9 * inputs * outputs
        if isinstance(compressor, Narrowed):
            found += 9 * kept(inputs) * kept(outputs)
        else:
            found += kept(outputs) * (9 * inputs + outputs)
    return found / dense


def level_for(kind: Kind, size: float) -> float:
    """The one whose size is nearest."""
    if isinstance(kind.compressor, Pruned):
        return size
    levels = np.linspace(kind.lowest, 1, 200)
    return min(levels, key=lambda level: abs(size_of(kind.compressor, level) - size))


def at_sizes(kind: Kind, function: Any, found: Subspace) -> list[dict[str, Any]]:
    """The accuracy at each size that the network comes near to."""
    compressor = kind.compressor

    @eqx.filter_jit
    def at(pair: tuple[Subspace, Array], images: Array) -> Array:
        subspace, level = pair
        return function(compressor(subspace.at(level), level), images)

    rows = []
    for wanted in SIZES:
        level = level_for(kind, wanted)
        size = size_of(compressor, level)
        if abs(size - wanted) <= NEAR * wanted:
            share = accuracy(at, (found, jnp.asarray(level)))
            rows.append({"near": wanted, "size": size, "level": float(level), "accuracy": share})
    return rows


def of_kind(name: str, plan: Plan) -> dict[str, Any]:
    kind = KINDS[name]
    function, found = trained(name, plan)
    shown = dataclasses.replace(kind, compressor=PRUNED) if name == "dense" else kind
    result = {
        "squared_cosine": float(found.subspace.squared_cosine),
        "numbers": sum(leaf.size for leaf in jax.tree.leaves(found.subspace)),
        "last_loss": float(found.losses[-50:].mean()),
        "rows": at_sizes(shown, function, found.subspace),
    }
    print(name, result, flush=True)
    return result


def without_training(plan: Plan) -> dict[str, Any]:
    """The dense network, compressed by ranks once and cut: `Compressed.at`."""
    function, found = trained("dense", plan)
    images = cifar10_data(CALIBRATION).training_images
    largest = compress(
        function, found.at(1.0), np.array_split(images, 5), Bytes(SIZES[-2]),
        select=KERNELS.__contains__, every_size=True,
    )  # fmt: skip
    rows = []
    for wanted in SIZES[:-1]:
        try:
            cut = largest.at(wanted)
        except ValueError:  # less than rank 1 everywhere
            continue
        share = accuracy(jax.jit(cut.function), cut.parameters)
        size = cut.storage_bytes / cut.dense_storage_bytes
        rows.append({"near": wanted, "size": size, "level": wanted, "accuracy": share})
    return {"rows": rows}


def measure(*, quick: bool) -> dict[str, Any]:
    plan = QUICK if quick else Plan()
    names = ("dense", "rank, point", "width, point") if quick else KINDS
    kinds = {name: of_kind(name, plan) for name in names}
    kinds["rank, without training"] = without_training(plan)
    return {
        **dataclasses.asdict(plan),
        "batch": BATCH,
        "rate": RATE,
        "held_out_images": HELD_OUT,
        "kinds": kinds,
    }


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (panel,) = panels(1, columns=1, width=6.4, height=4.2)
    for (name, found), style in zip(numbers["kinds"].items(), SERIES, strict=False):
        sizes = 100 * column(found["rows"], "size")
        low, mean, high = (
            100 * column(found["rows"], "accuracy", part) for part in ("low", "mean", "high")
        )
        panel.plot(sizes, mean, **style, markersize=4, label=LABELS.get(name, name))
        panel.fill_between(sizes, low, high, color=style["color"], alpha=0.1, linewidth=0)
    panel.set_xscale("log")
    panel.set_xticks([100 * size for size in SIZES], [f"{100 * size:g}" for size in SIZES])
    panel.set_xticks([], minor=True)
    panel.set_xlabel("numbers kept in five convolutions (%)")
    panel.set_ylabel("accuracy on test images (%)")
    panel.axhline(100 / CLASSES, **LIMIT)
    panel.legend(fontsize=7)
    return figure


LABELS = {"dense": "sparsity, without training"}


def _accuracies(numbers: Row) -> str:
    rows = []
    for name, found in numbers["kinds"].items():
        by_size = {row["near"]: row["accuracy"] for row in found["rows"]}
        cells = [
            "{mean:.1f} ({low:.1f}–{high:.1f})".format(
                **{part: 100 * share for part, share in by_size[size].items()}
            )
            if size in by_size
            else ""
            for size in SIZES
        ]
        rows.append([LABELS.get(name, name), *cells])
    return table(["numbers kept", *(f"{100 * size:g} %" for size in SIZES)], rows)


TABLES: Tables = {"cifar10": ("subspaces_cifar10", _accuracies)}


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
    if "--quick" not in sys.argv:
        text = filled(NOTE.read_text(), NOTE.parents[1] / "figures", TABLES)
        write_atomically(NOTE, text.encode())
