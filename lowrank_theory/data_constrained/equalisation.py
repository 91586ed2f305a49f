r"""The same function by weights that are easier to compress.

Let channel i leave one weight, $u_i = xA_{:i} + a_i$, pass through an activation with $f(tu) =
tf(u)$ for $t \gt 0$, and enter another weight only, as its input i, $B_{i:}$. Then
$$A_{:i},\ a_i \leftarrow t_iA_{:i},\ t_ia_i,\qquad B_{i:} \leftarrow B_{i:}/t_i$$
changes no output. With $p_i = \max|A_{:i}|$ and $q_i = \max|B_{i:}|$, equalisation (Nagel, van
Baalen, Blankevoort and Welling 2019, arXiv 1906.04721) takes $t_i = \sqrt{q_i/p_i}$, and both
become $\sqrt{p_iq_i}$. No other factors give the two matrices smaller ranges: whatever the $t_i$,
$$\max_ip_it_i\cdot\max_i\frac{q_i}{t_i} \ge \max_ip_iq_i,$$
with equality for these (`theorems.equalisation`). What is known of the channels is scaled with
them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from lowrank_theory._engine.drawn import ChannelStatistics
from lowrank_theory._engine.observe import survey
from lowrank_theory._numerics import AnyArray, check_count, check_positive
from lowrank_theory.data_constrained._leaves import Leaves

Function = Callable[[Any, Any], Any]
SWEEPS = 20
STILL = 2e-7  # the relative change of a factor below which pairs are equalised
_NO_STATISTICS: Mapping[str, ChannelStatistics] = {}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two weights and the channels between them, by the paths of leaves.

    - `first` gives the channels along `first_axis`, and `shift` is added to them, if there is one;
    - `second` takes them along `second_axis`. Where that is longer, as after places and channels
      were made one axis, the channels must be the faster of the two;
    - `second_shift`, if there is one, is added to what `second` gives along its last axis.

    The default axes are those of JAX's kernels, (inputs, outputs) and (*window, inputs, outputs).
    The channels of a depthwise convolution are its last axis.
    """

    first: str
    second: str
    shift: str | None = None
    second_shift: str | None = None
    first_axis: int = -1
    second_axis: int = -2


@dataclasses.dataclass(frozen=True)
class Preconditioned:
    """Other parameters for the same function, and the statistics of their channels."""

    parameters: PyTree
    statistics: Mapping[str, ChannelStatistics]


def find_pairs(
    function: Function, parameters: PyTree, batch: PyTree, shifts: Mapping[str, str | None]
) -> tuple[Pair, ...]:
    """The pairs among weights that follow one another in the order of execution.

    `shifts` has the path of each weight to consider, with that of the leaf that is added to its
    outputs, or `None`. Two weights are a pair where scaling the channels between them leaves the
    outputs of `function(parameters, batch)` as they are; so it is found by trying, with powers of
    two, which round nothing. Channels that nothing in the batch excites are not tried.

    Raises `ValueError` for paths that there are not, and what `survey` refuses.
    """
    leaves, sites = Leaves.of(parameters), survey(function, parameters, batch)
    for path, shift in shifts.items():
        for name in filter(None, (path, shift)):
            leaves[name]  # or it is refused
    order = [path for path in sites if path in shifts]
    unchanged = _unchanged(function, parameters, batch)
    found = []
    for first, second in itertools.pairwise(order):
        for axis in (-2, -1):
            pair = Pair(first, second, shifts[first], shifts[second], second_axis=axis)
            if _mismatch(leaves, pair) is None and unchanged(pair):
                found.append(pair)
                break
    return tuple(found)


def equalise(
    function: Function,
    parameters: PyTree,
    batch: PyTree,
    pairs: Sequence[Pair],
    statistics: Mapping[str, ChannelStatistics] = _NO_STATISTICS,
    *,
    sweeps: int = SWEEPS,
    tolerance: float = STILL,
) -> Preconditioned:
    """Equalise all pairs, again and again where they share weights: at most so many `sweeps`, and
    until no factor differs from one by more than the `tolerance`. Channels of zeros stay.

    Normalisation must have been `folded` before. Raises `ValueError` for pairs whose shapes do not
    fit, and for those that cannot be scaled without changing the outputs on the batch.
    """
    sweeps = check_count("sweeps", sweeps, 1)
    tolerance = check_positive("tolerance", tolerance, zero=True)
    _check_pairs(function, parameters, batch, pairs)
    wide = {path: None for pair in pairs for path in (pair.first, pair.second)}
    leaves = Leaves.of(parameters)
    sizes = {path: np.abs(np.asarray(leaves[path], np.float64)) for path in wide}
    factors = [np.ones(_channels(leaves, pair)) for pair in pairs]
    for _ in range(sweeps):
        largest = 0.0
        for number, pair in enumerate(pairs):
            first = _ranges(sizes[pair.first], pair.first_axis, len(factors[number]))
            second = _ranges(sizes[pair.second], pair.second_axis, len(factors[number]))
            step = equalising_factors(first, second)
            largest = max(largest, float(np.max(np.abs(step - 1))))
            factors[number] = factors[number] * step
            sizes[pair.first] = _scaled(sizes[pair.first], step, pair.first_axis)
            sizes[pair.second] = _scaled(sizes[pair.second], 1 / step, pair.second_axis)
        if largest <= tolerance:
            break
    return rescaled(parameters, pairs, factors, statistics)


def equalising_factors(
    first: Float[np.ndarray, " channels"], second: Float[np.ndarray, " channels"]
) -> Float[np.ndarray, " channels"]:
    r"""$t_i = \sqrt{q_i/p_i}$ for ranges $p$ and $q$, and one where either is zero."""
    live = (first > 0) & (second > 0)
    return np.where(live, np.sqrt(np.where(live, second, 1) / np.where(live, first, 1)), 1.0)


def rescaled(
    parameters: PyTree,
    pairs: Sequence[Pair],
    factors: Sequence[Float[AnyArray, " _channels"]],
    statistics: Mapping[str, ChannelStatistics] = _NO_STATISTICS,
) -> Preconditioned:
    """The channels between each pair times its factors, which must be positive.

    Raises `ValueError` for others, and for pairs whose shapes do not fit.
    """
    leaves, known = Leaves.of(parameters), dict(statistics)
    changed: dict[str, Any] = {}
    for pair, factor in zip(pairs, factors, strict=True):
        why, each = _mismatch(leaves, pair), np.asarray(factor, np.float64)
        if why:
            raise ValueError(why)
        if each.shape != (_channels(leaves, pair),) or not (np.isfinite(each) & (each > 0)).all():
            raise ValueError(
                f"`factors` must have a positive number for each of the {_channels(leaves, pair)} "
                f"channels between {pair.first} and {pair.second}; got {each}."
            )

        def scale(path: str, by: np.ndarray, axis: int) -> None:
            array = changed.get(path, np.asarray(leaves[path], np.float64))
            changed[path] = _scaled(array, by, axis)

        scale(pair.first, each, pair.first_axis)
        scale(pair.second, 1 / each, pair.second_axis)
        if pair.shift is not None:
            scale(pair.shift, each, -1)
            if pair.shift in known:
                before = known[pair.shift]
                known[pair.shift] = ChannelStatistics(
                    np.asarray(before.mean) * each, np.asarray(before.deviation) * each
                )
    return Preconditioned(leaves.replaced(changed), known)


def absorb_high_means(
    parameters: PyTree,
    pairs: Sequence[Pair],
    statistics: Mapping[str, ChannelStatistics],
    *,
    deviations: float = 3.0,
) -> Preconditioned:
    r"""Move what is always there of a rectified channel into the shift of the weight that takes it.

    With $c_i = \max(0, \beta_i - k\gamma_i)$, k `deviations`, the shift and the mean of channel i
    lose $c_i$, and the shift behind the second weight gains $\sum_i c_iB_{i:}$, over all taps of a
    window. Where no channel falls below $c_i$ and no window reaches over a border, no output
    changes; a normal channel falls below with probability $\Phi(-k)$, 0.13 % for three.

    Raises `ValueError` for a pair without both shifts, and one whose channels have no statistics.
    """
    leaves, known = Leaves.of(parameters), dict(statistics)
    deviations = check_positive("deviations", deviations, zero=True)
    changed: dict[str, Any] = {}
    for pair in pairs:
        why = _mismatch(leaves, pair)
        if why:
            raise ValueError(why)
        if pair.shift is None or pair.second_shift is None or pair.shift not in known:
            raise ValueError(
                f"The means between {pair.first} and {pair.second} cannot be absorbed: the pair "
                "needs `shift`, with `statistics` of it, and `second_shift`."
            )
        if pair.second_axis != -2:
            raise ValueError(
                f"The means between {pair.first} and {pair.second} cannot be absorbed: the second "
                "must take channels along the axis before the last."
            )
        before = known[pair.shift]
        mean, deviation = (np.asarray(x, np.float64) for x in (before.mean, before.deviation))
        moved = np.maximum(mean - deviations * deviation, 0)
        second = np.asarray(leaves[pair.second], np.float64)
        taps = second.reshape(-1, len(moved), second.shape[-1]).sum(axis=0)
        for path, step in ((pair.shift, -moved), (pair.second_shift, moved @ taps)):
            changed[path] = changed.get(path, np.asarray(leaves[path], np.float64)) + step
        known[pair.shift] = ChannelStatistics(mean - moved, deviation)
    return Preconditioned(leaves.replaced(changed), known)


def _check_pairs(
    function: Function, parameters: PyTree, batch: PyTree, pairs: Iterable[Pair]
) -> None:
    leaves, pairs = Leaves.of(parameters), list(pairs)
    for pair in pairs:
        if why := _mismatch(leaves, pair):
            raise ValueError(why)
    unchanged = _unchanged(function, parameters, batch)
    for pair in pairs:
        if not unchanged(pair):
            raise ValueError(
                f"The channels between {pair.first} and {pair.second} cannot be scaled: the "
                "outputs change. The activation between them is not positively homogeneous "
                "(rectifiers are, GELU and ReLU6 are not), the channels also go elsewhere, the "
                "`shift` is another one, or a normalisation between them is not folded."
            )


def _unchanged(function: Function, parameters: PyTree, batch: PyTree) -> Callable[[Pair], bool]:
    """Whether the channels of a pair can be scaled: asked of the function, with powers of two."""
    run = jax.jit(function)
    before = jax.tree.leaves(run(parameters, batch))
    leaves = Leaves.of(parameters)

    def unchanged(pair: Pair) -> bool:
        channels = _channels(leaves, pair)
        powers = 2.0 ** np.random.default_rng(0).choice([-2, -1, 1, 2], channels)
        other = rescaled(parameters, [pair], [powers]).parameters
        after = jax.tree.leaves(run(other, batch))
        return all(map(_equal, before, after))

    return unchanged


def _equal(one: Any, other: Any) -> bool:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return bool(np.max(np.abs(one - other), initial=0) <= 1e-5 * np.max(np.abs(one), initial=0))


def _channels(leaves: Leaves, pair: Pair) -> int:
    return np.shape(leaves[pair.first])[pair.first_axis]


def _mismatch(leaves: Leaves, pair: Pair) -> str | None:
    """Why the shapes of a pair do not fit."""
    channels, taken = _channels(leaves, pair), np.shape(leaves[pair.second])
    described = f"{pair.first} gives {channels} channels"
    if len(taken) < -pair.second_axis or taken[pair.second_axis] % channels:
        return f"{described}, but {pair.second} is {taken}: they are no pair along `second_axis`."
    if pair.shift is not None and np.shape(leaves[pair.shift]) != (channels,):
        return f"{described}, but {pair.shift} has shape {np.shape(leaves[pair.shift])}."
    outputs = taken[-1:]
    if pair.second_shift is not None and np.shape(leaves[pair.second_shift]) != outputs:
        return (
            f"{pair.second} gives {outputs[0]} outputs, but {pair.second_shift} has shape "
            f"{np.shape(leaves[pair.second_shift])}."
        )
    return None


def _ranges(sizes: np.ndarray, axis: int, channels: int) -> np.ndarray:
    """The largest size of each channel, the faster part of an axis."""
    return np.moveaxis(sizes, axis, -1).reshape(-1, channels).max(axis=0)


def _scaled(array: np.ndarray, factors: np.ndarray, axis: int) -> np.ndarray:
    moved = np.moveaxis(array, axis, -1)
    repeated = np.tile(factors, moved.shape[-1] // len(factors))
    return np.moveaxis(moved * repeated, -1, axis)
