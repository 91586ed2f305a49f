"""One network trained for every size, beside the dense one that is cut when it is tested.

The network is that of `digits_cnn`, trained on the same images from random weights, with group
normalisation in the place of batch normalisation: no statistics are kept that would be of one size
only. (Instance normalisation where channels are removed.)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from lowrank_theory._engine.compress import compress
from lowrank_theory._engine.observe import observe
from lowrank_theory._engine.replace import leaves_by_path, replace
from lowrank_theory._engine.targets import Bytes
from lowrank_theory._numerics import check_count
from lowrank_theory._progress import Progress
from lowrank_theory._rows import AbstractRow, column
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
    Shuffled,
    Subspace,
    Trained,
    Truncated,
    train,
)
from lowrank_theory.models import digits_cnn
from lowrank_theory.models.digits import digits_data
from lowrank_theory.models.normalised import EPSILON
from lowrank_theory.studies._paired import paired

NETWORKS = ("digits_cnn",)
"""Those of this kind."""
KIND = "that is trained here"
KINDS = ("line", "point")
LEVELS: Mapping[str, tuple[float, ...]] = {
    "sparsity": (0.025, 0.05, 0.1, 0.2, 0.5, 1.0),
    "width": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "bits": (1 / 6, 2 / 6, 3 / 6, 1.0),
    "rank": tuple(rank / 32 for rank in (1, 2, 3, 4, 6, 10, 16, 26)),
}
"""What a network is made smaller by, and where it is measured."""
BATCH, STEPS = 100, 12  # images of a step, steps of an epoch
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
WARM_UP = 0.8  # of the steps
GROUPS = 8
KERNELS = tuple(f"['{name}']['kernel']" for name in ("conv2", "conv3", "conv4"))
INPUTS_AND_OUTPUTS = ((16, 32), (32, 32), (32, 32))
NUMBERS = sum(9 * i * o for i, o in INPUTS_AND_OUTPUTS)
CHANNELS = tuple(
    f"['{name}']['{part}']" for name in digits_cnn.CHANNELS for part in ("kernel", "scale", "shift")
)

Function = Callable[[PyTree, Array], Array]
Normalise = Callable[[str, Array, PyTree], Array]


class SubspaceRow(AbstractRow):
    """The network at one level."""

    size: str = column("size", "what is kept")
    kept: float | None = column(
        "numbers kept", "the share of the numbers of three convolutions; none where bits differ"
    )
    accuracy: float = column("accuracy", "the share of the held-out images that are recognised")
    cut: float = column("dense, cut", "the same of the dense network, cut when it is tested")
    nested: float | None = column(
        "nested", "the same of its low-rank factors, fitted once and cut, where ranks are the level"
    )
    low: float = column("gained from", "of `accuracy` over `cut`, paired (95 %)")
    high: float = column("to", "its upper end")


# --- training -------------------------------------------------------------------------------------


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


BY_GROUPS = grouped(GROUPS)


def logits(parameters: PyTree, images: Array, normalise: Normalise) -> Array:
    """The network whose convolutions are followed by `normalise(name, products, layer)`."""
    return digits_cnn.logits(
        parameters, images, lambda name, products: normalise(name, products, parameters[name])
    )


def everywhere(path: str) -> bool:
    """All leaves."""
    return True


def scales_and_shifts(path: str) -> bool:
    """Those of the normalisations."""
    return "scale" in path or "shift" in path


@dataclasses.dataclass(frozen=True)
class Way:
    """How a subspace is trained: a `line` in which leaves (nowhere: a point), how it is compressed
    at which levels, and what normalises.
    """

    compressor: AbstractCompressor
    schedule: AbstractSchedule
    line: Callable[[str], bool] | None = None
    normalise: Normalise = BY_GROUPS


def warm_up(epochs: int) -> int:
    """The steps in which levels come down."""
    return int(WARM_UP * epochs * STEPS)


def way(level: str, kind: str, epochs: int) -> Way:
    """That of a level of `LEVELS` and one of `KINDS`: for the line as published (Nunez et al.
    2021), of ranks as of entries; and the same for the point.
    """
    steps, line = warm_up(epochs), everywhere if kind == "line" else None
    if level == "sparsity":
        return Way(Pruned(KERNELS), Sampled(warm_up=steps), line)
    if level == "width":
        of_norms = line and scales_and_shifts
        return Way(Narrowed(CHANNELS), Sandwich(), of_norms, grouped(None))
    if level == "bits":
        return Way(Rounded(KERNELS), Sampled(values=6), line)
    return Way(Truncated(KERNELS), Sampled(lowest=1 / 32, warm_up=steps), line)


def fit(
    chosen: Way,
    epochs: int,
    *,
    key: PRNGKeyArray,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Function, Trained]:
    """A subspace of the network for the digits, and the function of its parameters.

    It is trained by `descent`. `folder` and `progress` are those of `train`.
    """
    data, keys = digits_data(), jax.random.split(key, 3)
    end, start = (digits_cnn.initial_parameters(key=each) for each in keys[:2])
    function: Function = lambda p, images: logits(p, images, chosen.normalise)  # noqa: E731
    if isinstance(chosen.compressor, Truncated):
        made = [with_factors(function, each, data.training_images[:2]) for each in (start, end)]
        (function, start), (_, end) = made
    subspace = Subspace.point(end)
    if chosen.line is not None:
        subspace = Subspace.line(start, end, chosen.line)

    def loss(parameters: PyTree, batch: PyTree) -> Array:
        images, labels = batch
        outputs = function(parameters, images)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

    found = train(
        subspace,
        loss,
        chosen.compressor,
        Shuffled((data.training_images, data.training_labels), BATCH),
        schedule=chosen.schedule,
        optimiser=descent(epochs),
        epochs=epochs,
        key=keys[2],
        folder=folder,
        progress=progress,
    )
    return function, found


def descent(epochs: int) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum and weight decay, at a rate that falls to zero."""
    rate = optax.cosine_decay_schedule(RATE, epochs * STEPS)
    return optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(rate, momentum=MOMENTUM))


def with_factors(
    function: Function, parameters: PyTree, batch: Array, paths: Sequence[str] = KERNELS
) -> tuple[Any, PyTree]:
    """Factors of full rank in the place of kernels, the largest singular values first."""
    views, kernels = observe(function, parameters, [batch]).views, leaves_by_path(parameters)
    factors = {}
    for path in paths:
        left, values, right = np.linalg.svd(views[path].matrix(np.asarray(kernels[path])), False)
        root = np.sqrt(values)[..., None, :]
        factors[path] = LowRank(left * root, np.swapaxes(root, -1, -2) * right)
    return replace(function, parameters, factors)


def numbers_kept(compressor: AbstractCompressor, level: float) -> float | None:
    """The share of the numbers of the three convolutions; `None` where bits are the level."""
    if isinstance(compressor, Rounded):
        return None
    if isinstance(compressor, Truncated):
        return ranks_kept(level)
    if not isinstance(compressor, Narrowed):
        return level
    width = float(compressor.size(level))
    return sum(9 * round(width * i) * round(width * o) for i, o in INPUTS_AND_OUTPUTS) / NUMBERS


def ranks_kept(level: float) -> float:
    """The same of a share of the ranks."""
    rank = max(1, round(32 * level))
    return sum(rank * (9 * i + o) for i, o in INPUTS_AND_OUTPUTS) / NUMBERS


# --- the study ------------------------------------------------------------------------------------


def subspaces(
    name: str = "digits_cnn",
    level: str = "sparsity",
    kind: str = "point",
    *,
    epochs: int = 30,
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[float, tuple[SubspaceRow, ...]]:
    """The accuracy of a network of `NETWORKS`, trained as it is, and at each size of a `level` that
    of a line or a point, its `kind`, trained for all of them; on images that were not trained on.

    With a `folder`, both runs are kept there after every epoch, and the same call goes on from
    them. Raises `ValueError` for an unknown name, level or kind, and `OSError` where the folder
    cannot be written.
    """
    if name not in NETWORKS:
        raise ValueError(
            f"`name` must be a network {KIND}, of {', '.join(NETWORKS)}; got {name!r}."
        )
    for argument, value, known in (("level", level, LEVELS), ("kind", kind, KINDS)):
        if value not in known:
            raise ValueError(f"`{argument}` must be one of {', '.join(known)}; got {value!r}.")
    epochs, seed = check_count("epochs", epochs, 1), check_count("seed", seed, 0)
    chosen, key, shares = way(level, kind, epochs), jax.random.key(seed), LEVELS[level]

    def of_both(before: int) -> Progress | None:
        if progress is None:
            return None
        said = progress  # pyright forgets in a function what is known here
        return lambda name, done, total: said(name, before + done, 2 * total)

    as_it_is = Way(KeepAll(), Fixed(1.0), normalise=chosen.normalise)
    function, dense = fit(as_it_is, epochs, key=key, folder=folder, progress=of_both(0))
    parameters = dense.at(1.0)
    exact = _right(jax.jit(function), parameters)
    smaller, found = fit(chosen, epochs, key=key, folder=folder, progress=of_both(epochs))
    trained = _at_levels(smaller, found.subspace, chosen.compressor, shares)
    cut_from, nested = (function, parameters), [None] * len(shares)
    if isinstance(chosen.compressor, Truncated):
        nested = _nested(function, parameters, shares)
        cut_from = with_factors(function, parameters, digits_data().training_images[:2])
    cut = _at_levels(cut_from[0], Subspace.point(cut_from[1]), chosen.compressor, shares)
    rows = []
    for share, mine, theirs, low_rank in zip(shares, trained, cut, nested, strict=True):
        low, high = paired(mine - theirs)
        row = SubspaceRow(
            size=in_words(chosen.compressor, share),
            kept=numbers_kept(chosen.compressor, share),
            accuracy=float(mine.mean()),
            cut=float(theirs.mean()),
            nested=low_rank,
            low=low,
            high=high,
        )
        rows.append(row)
    return float(exact.mean()), tuple(rows)


def _right(function: Any, parameters: PyTree) -> np.ndarray:
    """Which held-out images are recognised."""
    data = digits_data()
    found = function(parameters, data.held_out_images).argmax(axis=1)
    return np.asarray(found == data.held_out_labels, float)


def _at_levels(
    function: Function, found: Subspace, compressor: AbstractCompressor, levels: Sequence[float]
) -> list[np.ndarray]:
    @eqx.filter_jit
    def at(pair: tuple[Subspace, Array], images: Array) -> Array:
        subspace, level = pair
        return function(compressor(subspace.at(level), level), images)

    return [_right(at, (found, jnp.asarray(level))) for level in levels]


def _nested(function: Function, parameters: PyTree, levels: Sequence[float]) -> list[float | None]:
    """The accuracies at as many numbers as ranks have, by factors that are fitted once and cut;
    `None` for fewer than rank 1 takes, with the shifts that keep a mean.
    """
    shares = [ranks_kept(level) for level in levels]
    batches = np.array_split(np.asarray(digits_data().training_images), 4)
    largest = compress(
        function,
        parameters,
        batches,
        Bytes(max(shares)),
        select=KERNELS.__contains__,
        every_size=True,
    )
    assert largest.nested is not None
    layers = largest.nested.layers.values()
    least = sum(each.least for each in layers) / sum(each.dense for each in layers)

    def accuracy(share: float) -> float | None:
        if share < least:
            return None
        cut = largest.at(share)
        return float(_right(jax.jit(cut.function), cut.parameters).mean())

    return [accuracy(share) for share in shares]


def in_words(compressor: AbstractCompressor, level: float) -> str:
    """The size that a level is."""
    size = float(compressor.size(level))
    if isinstance(compressor, Rounded):
        return f"{size:g} bits"
    if isinstance(compressor, Truncated):
        return f"rank {max(1, round(32 * size))} of 32"
    return (
        f"{100 * size:.3g} % of the {'channels' if isinstance(compressor, Narrowed) else 'entries'}"
    )
