"""Networks for the digits that go on with averages of what they saw while they were trained.

Batch normalisation has one set of statistics for all levels, or one for each of four widths
(slimmable networks: Yu, Yang, Xu, Yang and Huang 2019; Yu and Huang 2019); layers whose inputs are
rounded have their ranges. Network slimming (Liu et al. 2017) cuts the channels with the smallest
scales of a batch normalisation once, by one threshold for all layers. Averages move by a tenth in
each step.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from lowrank_theory.data_constrained import (
    AbstractCompressor,
    AbstractSchedule,
    Fixed,
    KeepAll,
    Moment,
    Narrowed,
    Pruned,
    Rounded,
    Sampled,
    Sandwich,
    Shuffled,
    Subspace,
    Together,
    Trained,
    rounded,
    train,
)
from lowrank_theory.models import digits_cnn
from lowrank_theory.models.normalised import EPSILON
from lowrank_theory.networks import digits_data
from lowrank_theory.studies.subspaces import (
    BATCH,
    BY_GROUPS,
    CHANNELS,
    KERNELS,
    LEVELS,
    descent,
    everywhere,
    numbers_kept,
    warm_up,
)

Network = Callable[[PyTree, Array, Moment, bool], tuple[Array, PyTree]]
"""The logits in training or not, and what the averages move towards."""
WIDTHS = (0.0, 1 / 3, 2 / 3, 1.0)  # a quarter of the channels, a half, three quarters, all
ENTRIES, SLIMMING = LEVELS["sparsity"], 1e-5
DIGITS = digits_data()


class Switched(AbstractCompressor):
    """The first channels, as `Narrowed`; of scales and shifts, which have a row for each of
    `WIDTHS`, those of the nearest.
    """

    paths: tuple[str, ...]

    def size(self, level: Any) -> Any:
        return Narrowed(self.paths).size(level)

    def compressed(self, leaf: Any, level: Any) -> Any:
        row = leaf[_nearest(level)] if leaf.ndim == 2 else leaf
        return Narrowed(self.paths).compressed(row, level)


def _nearest(level: Any) -> Array:
    return jnp.round((len(WIDTHS) - 1) * jnp.asarray(level)).astype(int)


# --- networks -------------------------------------------------------------------------------------


def batch_normalised(
    parameters: PyTree, images: Array, moment: Moment, training: bool
) -> tuple[Array, PyTree]:
    """One set of statistics; a channel that is cut leaves its own as they are."""
    seen = {}

    def normalise(name: str, products: Array) -> Array:
        layer, kept = parameters[name], moment.averages[name]
        mean, variance = kept["mean"], kept["variance"]
        if training:
            mean = products.mean((0, 1, 2))
            variance = jnp.square(products - mean).mean((0, 1, 2))
        there = layer["scale"] != 0
        found = {"mean": mean, "variance": variance}
        seen[name] = {part: jnp.where(there, found[part], kept[part]) for part in kept}
        normal = (products - mean) / jnp.sqrt(variance + EPSILON)
        return normal * layer["scale"] + layer["shift"]

    return digits_cnn.logits(parameters, images, normalise), seen


def one_for_each_width(
    parameters: PyTree, images: Array, moment: Moment, training: bool
) -> tuple[Array, PyTree]:
    """A row of statistics for each of `WIDTHS`."""
    row = _nearest(moment.levels[0])
    of_width = jax.tree.map(lambda rows: rows[row], moment.averages)
    told = Moment(moment.step, moment.levels, of_width)
    found, seen = batch_normalised(parameters, images, told, training)
    return found, jax.tree.map(lambda rows, new: rows.at[row].set(new), moment.averages, seen)


def with_rounded_inputs(first: int) -> Network:
    """The inputs of the inner convolutions, as many bits as their weights, from a step on."""
    following = dict(zip(("conv1", "conv2", "conv3"), range(len(KERNELS)), strict=True))

    def network(
        parameters: PyTree, images: Array, moment: Moment, training: bool
    ) -> tuple[Array, PyTree]:
        seen, bits = {}, Rounded(KERNELS).size(moment.levels)

        def normalise(name: str, products: Array) -> Array:
            outputs = BY_GROUPS(name, products, parameters[name])
            if name not in following:
                return outputs
            outputs = jax.nn.relu(outputs)
            seen[name] = jnp.stack([outputs.min(), outputs.max()])
            smaller = rounded(outputs, bits[following[name]], *moment.averages[name])
            return jnp.where(moment.step >= first, smaller, outputs)

        return digits_cnn.logits(parameters, images, normalise), seen

    return network


def statistics(widths: int | None = None) -> PyTree:
    """Means of zero and variances of one, to start from."""

    def of(count: int, value: float) -> np.ndarray:
        return np.full(count if widths is None else (widths, count), value, np.float32)

    return {
        name: {"mean": of(count, 0.0), "variance": of(count, 1.0)}
        for name, count in digits_cnn.CHANNELS.items()
    }


RANGES = {name: np.zeros(2, np.float32) for name in ("conv1", "conv2", "conv3")}


# --- training -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to train, at which levels it is measured, and a penalty on the scales."""

    compressor: AbstractCompressor
    schedule: Callable[[int], AbstractSchedule]  # of the steps in which levels come down
    network: Callable[[int], Network]
    averages: PyTree
    measured: tuple[float, ...]
    line: Callable[[str], bool] | None = None
    epochs: int = 30
    slimming: float = 0.0


def _normalised(*given: Any, **options: Any) -> Kind:
    options = {"network": lambda _: batch_normalised, "averages": statistics()} | options
    names = ("compressor", "schedule", "measured")
    return Kind(**dict(zip(names, given, strict=True)), **options)


def _of_bits(schedule: Callable[[int], AbstractSchedule], line: Any = None) -> Kind:
    return Kind(Rounded(KERNELS), schedule, with_rounded_inputs, RANGES, LEVELS["bits"], line)


PRUNED, NARROWED = Pruned(KERNELS), Narrowed(CHANNELS)
KINDS: dict[str, Kind] = {
    "line, batch normalisation": _normalised(
        PRUNED, lambda steps: Sampled(warm_up=steps), ENTRIES, line=everywhere, epochs=60
    ),
    "point, batch normalisation": _normalised(
        PRUNED, lambda steps: Sampled(warm_up=steps), ENTRIES, epochs=60
    ),
    "dense, batch normalisation": _normalised(
        KeepAll(), lambda _: Fixed(1.0), ENTRIES, epochs=60
    ),
    "width, slimmable": _normalised(NARROWED, lambda _: Together(WIDTHS), WIDTHS),
    "width, slimmable, a normalisation each": _normalised(
        Switched(CHANNELS), lambda _: Together(WIDTHS), WIDTHS,
        network=lambda _: one_for_each_width, averages=statistics(len(WIDTHS)),
    ),
    "width, universally slimmable": _normalised(
        NARROWED, lambda _: Sandwich(), LEVELS["width"]
    ),
    "width, network slimming": _normalised(
        KeepAll(), lambda _: Fixed(1.0), LEVELS["width"], slimming=SLIMMING
    ),
    "bits and inputs, line": _of_bits(lambda _: Sampled(values=6), everywhere),
    "bits and inputs, point": _of_bits(
        lambda steps: Sampled(values=6, warm_up=steps, gradual=False)
    ),
    "bits and inputs, each its own": _of_bits(
        lambda steps: Sampled(values=6, warm_up=steps, gradual=False, apart=True)
    ),
}  # fmt: skip


def trained(kind: Kind, epochs: int, *, key: Array, folder: Path) -> tuple[Network, Trained]:
    """A run, and the function of its parameters."""
    keys = jax.random.split(key, 3)
    end, start = (digits_cnn.initial_parameters(key=each) for each in keys[:2])
    if isinstance(kind.compressor, Switched):
        end = jax.tree_util.tree_map_with_path(_for_each_width, end)
    subspace = Subspace.line(start, end, kind.line) if kind.line else Subspace.point(end)
    network = kind.network(warm_up(epochs))

    def loss(parameters: PyTree, batch: PyTree, moment: Moment) -> tuple[Array, PyTree]:
        outputs, seen = network(parameters, batch[0], moment, True)
        found = optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()
        scales = [jnp.abs(parameters[name]["scale"]).sum() for name in digits_cnn.CHANNELS]
        return found + kind.slimming * sum(scales), seen

    found = train(
        subspace, loss, kind.compressor, Shuffled((DIGITS.training_images, DIGITS.training_labels),
        BATCH), schedule=kind.schedule(warm_up(epochs)), optimiser=descent(epochs), epochs=epochs,
        averages=kind.averages, key=keys[2], folder=folder,
    )  # fmt: skip
    return network, found


def _for_each_width(path: Any, leaf: Array) -> Array:
    if jax.tree_util.keystr(path) in CHANNELS and leaf.ndim == 1:
        return jnp.tile(leaf, (len(WIDTHS), 1))
    return leaf


# --- what is measured -----------------------------------------------------------------------------


def slimmed(parameters: PyTree, share: float) -> tuple[PyTree, float]:
    """A share of all channels, those of the largest scales, and which share of the numbers of the
    inner convolutions is left.
    """
    scales = {name: np.abs(np.asarray(parameters[name]["scale"])) for name in digits_cnn.CHANNELS}
    ordered = np.sort(np.concatenate(list(scales.values())))[::-1]
    least = ordered[max(round(share * len(ordered)), 1) - 1]
    kept = {name: found >= least for name, found in scales.items()}
    cut = dict(parameters)
    for name, there in kept.items():
        layer = parameters[name]
        cut[name] = layer | {part: layer[part] * there for part in ("scale", "shift")}
    counts = list(kept.values())
    left = sum(int(a.sum()) * int(b.sum()) for a, b in itertools.pairwise(counts))
    return cut, left / sum(len(a) * len(b) for a, b in itertools.pairwise(counts))


def accuracies(kind: Kind, network: Network, found: Trained) -> tuple[list[float], list[Any]]:
    """At each level, and the share of the numbers that is kept."""

    @jax.jit
    def right(parameters: PyTree, level: Array, averages: PyTree) -> Array:
        paths = max(len(kind.compressor.paths), 1)
        moment = Moment(jnp.inf, jnp.broadcast_to(level, (paths,)), averages)
        outputs, _ = network(parameters, DIGITS.held_out_images, moment, False)
        return (outputs.argmax(axis=1) == DIGITS.held_out_labels).mean()

    shares, kept = [], []
    for level in kind.measured:
        if kind.slimming:
            parameters, numbers = slimmed(found.at(1.0), float(NARROWED.size(level)))
        elif isinstance(kind.compressor, KeepAll):
            parameters, numbers = PRUNED(found.at(1.0), level), level
        else:
            parameters = found.at(level)
            narrowed = isinstance(kind.compressor, Switched)
            numbers = numbers_kept(NARROWED if narrowed else kind.compressor, level)
        shares.append(float(right(parameters, jnp.asarray(level), found.averages)))
        kept.append(numbers)
    return shares, kept


def of_kind(name: str, *, seeds: int, quick: bool, key: Array, folder: Path) -> dict[str, Any]:
    """The accuracies of a kind: their mean over the seeds, the lowest and the highest."""
    kind, rows, kept, cosines, numbers = KINDS[name], [], [], [], 0
    for seed in range(seeds):
        epochs = 1 if quick else kind.epochs
        network, found = trained(kind, epochs, key=jax.random.fold_in(key, seed), folder=folder)
        of_seed = accuracies(kind, network, found)
        rows.append(of_seed[0])
        kept.append(of_seed[1])
        cosines.append(float(found.subspace.squared_cosine))
        numbers = sum(leaf.size for leaf in jax.tree.leaves(found.subspace))
        print(name, seed, of_seed, flush=True)
    return {
        "levels": list(kind.measured),
        "numbers_kept": kept[0] if kept[0][0] is None else np.mean(kept, 0).tolist(),
        **over_seeds(rows),
        "squared_cosine": float(np.mean(cosines)),
        "numbers": numbers,
    }


def over_seeds(accuracies: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Their mean at each level, the lowest and the highest."""
    return {
        "mean": np.mean(accuracies, 0).tolist(),
        "low": np.min(accuracies, 0).tolist(),
        "high": np.max(accuracies, 0).tolist(),
    }
