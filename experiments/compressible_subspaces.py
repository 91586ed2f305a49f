"""One network trained for every level: digits, by sparsity, bits, width and rank.

    python experiments/compressible_subspaces.py [--quick]

The network of `digits_cnn` with group normalisation in the place of batch normalisation (instance
normalisation for width). The line and the point (Nunez et al. 2021), their baselines, and rank as
the level. Left, accuracy against the share of entries that is kept; right, the three levels on one
axis, numbers kept in the compressed convolutions. Two seeds of sixty epochs; thirty with batch
normalisation; one seed of thirty for width, bits and rank. Every run is kept in `out/subspaces` and
goes on from there. A seed is another start and another order; bands go from the lower to the higher
one.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree
from matplotlib.figure import Figure

from _save import run
from _transfer_note import Row, Tables, filled, table
from lowrank_theory._files import write_atomically
from lowrank_theory.approximations import LowRank
from lowrank_theory.data_constrained import (
    AbstractCompressor,
    AbstractSchedule,
    Fixed,
    KeepAll,
    Narrowed,
    Pruned,
    Rounded,
    Sampled,
    Sandwich,
    Subspace,
    Trained,
    Truncated,
    train,
)
from lowrank_theory.models import digits_cnn
from lowrank_theory.networks import Bytes, compress, digits_data, observe, replace
from lowrank_theory.plotting import LIMIT, SERIES, panels
from train_digits_cnn import initial_parameters

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "out" / "subspaces"
NOTE = ROOT / "paper_notes" / "after_deployment.md"
SEED, SEEDS, BATCH = 0, 2, 100
LONG, SHORT = 60, 30  # epochs
RATE, DECAY, GROUPS = 0.05, 5e-4, 8
STEPS = 12  # of an epoch
WARM_UP, SHORT_WARM_UP = (int(0.8 * epochs * STEPS) for epochs in (LONG, SHORT))
LEVELS = (0.025, 0.05, 0.1, 0.2, 0.5, 1.0)
BITS = (1 / 6, 2 / 6, 3 / 6, 1.0)
WIDTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
RANKS = tuple(rank / 32 for rank in (1, 2, 3, 4, 6, 10, 16, 26))
EPSILON = 1e-5
KERNELS = tuple(f"['{name}']['kernel']" for name in ("conv2", "conv3", "conv4"))
CHANNELS = tuple(
    f"['{name}']['{part}']" for name in digits_cnn.CHANNELS for part in ("kernel", "scale", "shift")
)
EXPECTED = {
    "line": (0.884, 0.889, 0.951, 0.974, 0.989, 0.991),
    "point": (0.157, 0.297, 0.607, 0.946, 0.988, 0.991),
    "point, schedule of the line": (0.641, 0.494, 0.678, 0.930, 0.980, 0.992),
    "trained for 0.025": (0.933, 0.894, 0.939, 0.962, 0.972, 0.973),
    "trained for 0.1": (0.159, 0.520, 0.985, 0.978, 0.984, 0.983),
    "dense": (0.122, 0.155, 0.432, 0.743, 0.978, 0.992),
    "point, batch normalisation": (0.098, 0.131, 0.147, 0.250, 0.944, 0.915),
}

Normalise = Callable[[str, Array, PyTree], Array]
DIGITS = digits_data()


def grouped(groups: int | None) -> Normalise:
    """Normalisation over the places and the channels of a group, or of one channel."""

    def normalise(name: str, products: Array, layer: PyTree) -> Array:
        shape = products.shape
        split = products.reshape(*shape[:3], groups or shape[3], -1)
        mean = split.mean((1, 2, 4), keepdims=True)
        variance = jnp.square(split - mean).mean((1, 2, 4), keepdims=True)
        normal = ((split - mean) / jnp.sqrt(variance + EPSILON)).reshape(shape)
        return normal * layer["scale"] + layer["shift"]

    return normalise


def of_batch(name: str, products: Array, layer: PyTree) -> Array:
    """Over the batch, as batch normalisation is trained."""
    mean = products.mean((0, 1, 2))
    variance = jnp.square(products - mean).mean((0, 1, 2))
    return (products - mean) / jnp.sqrt(variance + EPSILON) * layer["scale"] + layer["shift"]


def logits(parameters: PyTree, images: Array, normalise: Normalise) -> Array:
    return digits_cnn.logits(
        parameters, images, lambda name, products: normalise(name, products, parameters[name])
    )


def batches(key: PRNGKeyArray) -> Iterator[tuple[Array, Array]]:
    order = np.asarray(jax.random.permutation(key, len(DIGITS.training_images)))
    for rows in order.reshape(-1, BATCH):
        yield DIGITS.training_images[rows], DIGITS.training_labels[rows]


def cross_entropy(outputs: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def accuracy(function: Callable[..., Array], parameters: PyTree) -> float:
    found = function(parameters, DIGITS.held_out_images).argmax(axis=1)
    return float((found == DIGITS.held_out_labels).mean())


BY_GROUPS = grouped(GROUPS)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to train: a line in which leaves (nowhere: a point), how it is compressed, at which
    levels it is trained and measured, and what normalises.
    """

    compressor: AbstractCompressor
    schedule: AbstractSchedule
    line: Callable[[str], bool] | None = None
    normalise: Normalise = BY_GROUPS
    measured: tuple[float, ...] = LEVELS
    shown: AbstractCompressor | None = None
    factors: bool = False
    epochs: int = LONG
    seeds: int = SEEDS


PRUNED = Pruned(KERNELS)
EVERYWHERE = lambda path: True  # noqa: E731
KINDS: dict[str, Kind] = {
    "line": Kind(PRUNED, Sampled(warm_up=WARM_UP), EVERYWHERE),
    "point": Kind(PRUNED, Sampled(ends=0.0, warm_up=WARM_UP, gradual=False)),
    "point, schedule of the line": Kind(PRUNED, Sampled(warm_up=WARM_UP)),
    "trained for 0.025": Kind(PRUNED, Fixed(0.025, WARM_UP)),
    "trained for 0.1": Kind(PRUNED, Fixed(0.1, WARM_UP)),
    "dense": Kind(KeepAll(), Fixed(1.0), shown=PRUNED),
    "point, batch normalisation": Kind(
        PRUNED, Sampled(warm_up=SHORT_WARM_UP), normalise=of_batch, epochs=SHORT
    ),
    "width, line": Kind(
        Narrowed(CHANNELS), Sandwich(), lambda p: "scale" in p or "shift" in p, grouped(None),
        WIDTHS, epochs=SHORT, seeds=1,
    ),
    "width, point": Kind(
        Narrowed(CHANNELS), Sandwich(), None, grouped(None), WIDTHS, epochs=SHORT, seeds=1
    ),
    "bits, line": Kind(
        Rounded(KERNELS), Sampled(values=6), EVERYWHERE, measured=BITS, epochs=SHORT, seeds=1
    ),
    "bits, point": Kind(
        Rounded(KERNELS), Sampled(values=6), measured=BITS, epochs=SHORT, seeds=1
    ),
    "bits, each its own": Kind(
        Rounded(KERNELS), Sampled(values=6, apart=True), measured=BITS, epochs=SHORT, seeds=1
    ),
    "rank, point": Kind(
        Truncated(KERNELS), Sampled(lowest=1 / 32, warm_up=SHORT_WARM_UP), factors=True,
        measured=RANKS, epochs=SHORT, seeds=1,
    ),
    "rank, line": Kind(
        Truncated(KERNELS), Sampled(lowest=1 / 32, warm_up=SHORT_WARM_UP), EVERYWHERE, factors=True,
        measured=RANKS, epochs=SHORT, seeds=1,
    ),
}  # fmt: skip


def with_factors(function: Any, parameters: PyTree) -> tuple[Any, PyTree]:
    """Factors of full rank in the place of the kernels."""
    views = observe(function, parameters, [DIGITS.training_images[:2]]).views
    leaves = {path: parameters[path.split("'")[1]]["kernel"] for path in KERNELS}
    factors = {}
    for path, kernel in leaves.items():
        left, values, right = np.linalg.svd(views[path].matrix(np.asarray(kernel)), False)
        root = np.sqrt(values)[..., None, :]
        factors[path] = LowRank(left * root, np.swapaxes(root, -1, -2) * right)
    return replace(function, parameters, factors)


def trained(kind: Kind, seed: int, *, quick: bool) -> tuple[Any, Trained]:
    """A run, and the function of its parameters."""
    epochs = 1 if quick else kind.epochs
    keys = jax.random.split(jax.random.fold_in(jax.random.key(SEED), seed), 3)
    ends = [initial_parameters(key=key) for key in keys[:2]]
    function: Any = lambda p, images: logits(p, images, kind.normalise)  # noqa: E731
    if kind.factors:
        made = [with_factors(function, each) for each in ends]
        function, ends = made[0][0], [parameters for _, parameters in made]
    end, start = ends
    subspace = Subspace.point(end)
    if kind.line is not None:
        subspace = Subspace.line(start, end, kind.line)

    def loss(parameters: PyTree, batch: PyTree) -> Array:
        return cross_entropy(function(parameters, batch[0]), batch[1])

    rate = optax.cosine_decay_schedule(RATE, epochs * STEPS)
    optimiser = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(rate, momentum=0.9))
    found = train(
        subspace, loss, kind.compressor, batches, schedule=kind.schedule, optimiser=optimiser,
        epochs=epochs, key=keys[2], folder=FOLDER,
    )  # fmt: skip
    return function, found


def with_shared_statistics(kind: Kind, found: Trained) -> Callable[..., Array]:
    """The network whose batch normalisation has one mean and one variance of each channel: the
    averages over levels as in training.
    """
    keys = jax.random.split(jax.random.key(SEED), 16)
    kept: dict[str, list[tuple[Array, Array]]] = {}

    def watched(name: str, products: Array, layer: PyTree) -> Array:
        mean = products.mean((0, 1, 2))
        kept.setdefault(name, []).append((mean, jnp.square(products - mean).mean((0, 1, 2))))
        return of_batch(name, products, layer)

    for key in keys:
        (alpha,), (level,) = kind.schedule.draw(WARM_UP, len(KERNELS), key=key)
        logits(found.at(float(alpha), level), DIGITS.training_images[:600], watched)
    shared = {
        name: [jnp.stack(each).mean(0) for each in zip(*pairs, strict=True)]
        for name, pairs in kept.items()
    }

    def normalise(name: str, products: Array, layer: PyTree) -> Array:
        mean, variance = shared[name]
        return (products - mean) / jnp.sqrt(variance + EPSILON) * layer["scale"] + layer["shift"]

    return lambda parameters, images: logits(parameters, images, normalise)


def numbers_kept(kind: Kind, level: float) -> float | None:
    """The share of the numbers of the three convolutions; `None` where bits are the level."""
    if isinstance(kind.compressor, Rounded):
        return None
    inputs_and_outputs = ((16, 32), (32, 32), (32, 32))
    dense = sum(9 * i * o for i, o in inputs_and_outputs)
    if isinstance(kind.compressor, Narrowed):
        width = kind.compressor.size(level)
        return sum(9 * round(width * i) * round(width * o) for i, o in inputs_and_outputs) / dense
    if isinstance(kind.compressor, Truncated):
        rank = max(1, round(32 * level))
        return sum(rank * (9 * i + o) for i, o in inputs_and_outputs) / dense
    return level


def of_kind(name: str, *, quick: bool) -> dict[str, Any]:
    kind, found = KINDS[name], []
    for seed in range(1 if quick else kind.seeds):
        function, run_of = trained(kind, seed, quick=quick)
        if kind.normalise is of_batch:
            function = with_shared_statistics(kind, run_of)

        @eqx.filter_jit
        def at(pair: Any, images: Array, run_of: Trained = run_of, function: Any = function) -> Any:
            subspace, level = pair
            if kind.shown is not None:
                return function(kind.shown(subspace.at(1.0), level), images)
            return function(run_of.compressor(subspace.at(level), level), images)

        levels = [jnp.asarray(level) for level in kind.measured]
        found.append(
            {
                "accuracies": [accuracy(at, (run_of.subspace, each)) for each in levels],
                "squared_cosine": float(run_of.subspace.squared_cosine),
                "numbers": sum(
                    leaf.size for leaf in jax.tree.leaves(run_of.subspace) if leaf is not None
                ),
            }
        )
        print(name, seed, found[-1], flush=True)
    accuracies = np.array([each["accuracies"] for each in found])
    return {
        "levels": list(kind.measured),
        "numbers_kept": [numbers_kept(kind, level) for level in kind.measured],
        "mean": accuracies.mean(0).tolist(),
        "low": accuracies.min(0).tolist(),
        "high": accuracies.max(0).tolist(),
        "squared_cosine": float(np.mean([each["squared_cosine"] for each in found])),
        "numbers": found[0]["numbers"],
    }


def without_training(*, quick: bool) -> dict[str, Any]:
    """The dense networks, compressed by ranks once and cut: `Compressed.at`."""
    shares, found, kind = (0.06, 0.1, 0.15, 0.2, 0.35, 0.5), [], KINDS["dense"]
    for seed in range(1 if quick else kind.seeds):
        function, run_of = trained(kind, seed, quick=quick)
        largest = compress(
            function, run_of.at(1.0), np.array_split(DIGITS.training_images, 4),
            Bytes(shares[-1]), select=KERNELS.__contains__, every_size=True,
        )  # fmt: skip
        cuts = [largest.at(share) for share in shares]
        found.append([accuracy(jax.jit(cut.function), cut.parameters) for cut in cuts])
    accuracies = np.array(found)
    return {
        "levels": list(shares),
        "numbers_kept": list(shares),
        "mean": accuracies.mean(0).tolist(),
        "low": accuracies.min(0).tolist(),
        "high": accuracies.max(0).tolist(),
    }


def measure(*, quick: bool) -> dict[str, Any]:
    names = ("line", "dense", "bits, line", "rank, point") if quick else KINDS
    found = {name: of_kind(name, quick=quick) for name in names}
    found["rank, without training"] = without_training(quick=quick)
    return {
        "seeds": {name: KINDS[name].seeds for name in names},
        "epochs": {name: KINDS[name].epochs for name in names},
        "rate": RATE,
        "held_out_images": len(DIGITS.held_out_labels),
        "kinds": found,
    }


def draw(numbers: dict[str, Any]) -> Figure:
    kinds = numbers["kinds"]
    figure, (left, right) = panels(2, columns=2, width=5.2, height=4.0)
    sparse = [name for name in EXPECTED if name in kinds]
    for name, style in zip(sparse, SERIES, strict=False):
        _curve(left, kinds[name], name, style)
    left.set_xlabel("entries kept (%)")
    left.set_title("sparsity")
    both = ("line", "width, line", "width, point", "rank, line", "rank, point",
            "rank, without training", "dense")  # fmt: skip
    labels = {"line": "sparsity, line", "dense": "sparsity, without training"}
    for name, style in zip((n for n in both if n in kinds), SERIES, strict=False):
        _curve(right, kinds[name], labels.get(name, name), style)
    right.set_xlabel("numbers kept in three convolutions (%)")
    right.set_title("three levels")
    for panel in (left, right):
        panel.set_xscale("log")
        ticks = [2.5, 5, 10, 20, 50, 100]
        panel.set_xticks(ticks, [f"{each:g}" for each in ticks])
        panel.set_xticks([], minor=True)
        panel.set_ylabel("held-out accuracy (%)")
        panel.axhline(10, **LIMIT)
        panel.legend(fontsize=7)
    return figure


def _curve(panel: Any, row: dict[str, Any], label: str, style: Any) -> None:
    shares = 100 * np.array(row["numbers_kept"], float)
    panel.plot(shares, 100 * np.array(row["mean"]), **style, markersize=4, label=label)
    low, high = (100 * np.array(row[part]) for part in ("low", "high"))
    panel.fill_between(shares, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _sparsity(numbers: Row) -> str:
    kinds = numbers["kinds"]
    rows = [
        [name, *(f"{100 * a:.1f} ({100 * b:.1f})" for a, b in zip(kinds[name]["mean"], wanted,
                                                                  strict=True))]
        for name, wanted in EXPECTED.items()
        if name in kinds
    ]  # fmt: skip
    return table(["entries kept", *(f"{100 * level:g} %" for level in LEVELS)], rows)


def _others(numbers: Row) -> str:
    kinds = numbers["kinds"]

    def cells(name: str) -> str:
        row = kinds[name]
        sizes = [
            f"{round(2 + 6 * level)} bits" if kept is None else f"{100 * kept:.1f} %"
            for level, kept in zip(row["levels"], row["numbers_kept"], strict=True)
        ]
        pairs = zip(sizes, row["mean"], strict=True)
        return ", ".join(f"{size}: {100 * mean:.1f}" for size, mean in pairs)

    return table(
        ["", "size: accuracy"], [[name, cells(name)] for name in kinds if name not in EXPECTED]
    )


TABLES: Tables = {
    "sparsity": ("compressible_subspaces", _sparsity),
    "others": ("compressible_subspaces", _others),
}


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
    if "--quick" not in sys.argv:
        text = filled(NOTE.read_text(), NOTE.parents[1] / "figures", TABLES)
        write_atomically(NOTE, text.encode())
