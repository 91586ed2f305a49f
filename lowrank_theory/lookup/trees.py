r"""Trees that give a row its code by one comparison for each level.

All nodes of a level compare the same input, each with a threshold of its own, so that a code of
four levels costs four comparisons, whatever the number of inputs (Blalock and Guttag 2021). A tree
grows level by level, greedily. The candidates for the input of a level are those of the subspace
whose squares about the means of the buckets are largest; for each the threshold of every bucket is
the one that leaves least squares in its two parts, and the candidate that leaves least in all is
taken.

What is left is counted in all inputs of the subspace, as published, or, for trees that know the
weights, in the outputs that the subspace contributes, $A_cB_c$; an input is then a candidate by its
squares times those of its weights. The last is an extension of the published method.

A threshold lies between two distinct values, as it will be stored, and rows are told apart by the
stored threshold while the tree grows: so the rows of the calibration find at run time the codes
that they had here. A bucket that no threshold can split keeps all its rows on one side.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int


class Trees(NamedTuple):
    """Trees as `Table` has them, and the codes of the rows from which they grew."""

    splits: Int[np.ndarray, "codebooks levels"]
    thresholds: Float[np.ndarray, "codebooks nodes"]
    codes: Int[np.ndarray, "samples codebooks"]


def grown(
    rows: Float[np.ndarray, "samples inputs"],
    parts: Sequence[Int[np.ndarray, " _inputs"]],
    *,
    counts: Float[np.ndarray, " samples"] | None = None,
    weights: Float[np.ndarray, "inputs outputs"] | None = None,
    levels: int = 4,
    candidates: int = 4,
    dtype: Any = np.float32,
) -> Trees:
    """A tree for each subspace, given by the places of its inputs; with `weights`, one that looks
    at what becomes of the outputs. `counts` are how often the rows came, `dtype` that of the
    thresholds. Splits are `uint16`, or `int32` where there are more inputs.
    """
    counts = np.ones(len(rows)) if counts is None else counts
    scaled = unit(rows)
    roots = [np.eye(len(part)) for part in parts]
    if weights is not None:
        seen = unit(weights)
        roots = [_root(seen[part]) for part in parts]
    trees = [
        _grown(rows, scaled, part, root, counts, (levels, candidates), dtype)
        for part, root in zip(parts, roots, strict=True)
    ]
    splits, thresholds, codes = (np.stack(each) for each in zip(*trees, strict=True))
    places = np.uint16 if rows.shape[1] <= 2**16 else np.int32
    return Trees(splits.astype(places), thresholds, codes.T)


def unit(array: np.ndarray) -> np.ndarray:
    """Divided by a power of two, so that squares stay within float64."""
    return np.ldexp(array, -np.frexp(np.abs(array).max(initial=0))[1])


def _root(weights: Float[np.ndarray, "inputs outputs"]) -> Float[np.ndarray, "inputs rank"]:
    r"""$R$ with $RR^\top = BB^\top$, with no more columns than are needed."""
    inputs, outputs = weights.shape
    return weights if outputs <= inputs else np.linalg.qr(weights.T)[1].T


def _grown(
    rows: np.ndarray,
    scaled: np.ndarray,
    part: np.ndarray,
    root: np.ndarray,
    counts: np.ndarray,
    sizes: tuple[int, int],
    dtype: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    levels, candidates = sizes
    inside = scaled[:, part]
    looked_at, importance = inside @ root, np.sum(root**2, axis=1)
    code = np.zeros(len(rows), np.int64)
    splits, thresholds = np.zeros(levels, np.int64), []
    for level in range(levels):
        buckets = [np.flatnonzero(code == number) for number in range(2**level)]
        scores = importance * sum(_squares(inside[b], counts[b]) for b in buckets)
        best = -1.0
        cuts: list[Any] = []
        for place in np.argsort(-scores, kind="stable")[:candidates]:
            tried = [_cut(rows[b, part[place]], looked_at[b], counts[b], dtype) for b in buckets]
            gain = sum(gained for gained, _ in tried)
            if gain > best:
                best, splits[level], cuts = gain, part[place], [cut for _, cut in tried]
        limits = np.array(cuts, dtype)
        code = 2 * code + (rows[:, splits[level]] >= limits.astype(np.float64)[code])
        thresholds.append(limits)
    return splits, np.concatenate(thresholds), code


def _squares(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of each column about its mean."""
    mean = counts @ rows / max(counts.sum(), 1)
    return counts @ (rows - mean) ** 2


def _cut(
    values: Float[np.ndarray, " samples"],
    looked_at: Float[np.ndarray, "samples columns"],
    counts: Float[np.ndarray, " samples"],
    dtype: Any,
) -> tuple[float, Any]:
    """What the best threshold takes off the squares, and the threshold, as it is stored."""
    if not len(values):
        return 0.0, 0.0
    order = np.argsort(values, kind="stable")
    low, high = values[order[:-1]], values[order[1:]]
    weights = counts[order]
    limits = _stored(low / 2 + high / 2, dtype)
    limits = np.where(limits > low, limits, _stored(high, dtype))  # where half way falls on `low`
    splits = np.flatnonzero((low < limits) & (limits <= high))
    if not len(splits):
        return 0.0, _stored(values[order[:1]], dtype)[0]
    centred = weights[:, None] * (looked_at[order] - weights @ looked_at[order] / weights.sum())
    left = np.cumsum(weights)[splits]
    sums = np.cumsum(centred, axis=0)[splits]
    # the means of both parts about that of all, whose weighted sum is zero
    gains = np.sum(sums**2, axis=1) * (1 / left + 1 / (weights.sum() - left))
    best = int(np.argmax(gains))
    return float(gains[best]), limits[splits[best]]


def _stored(values: np.ndarray, dtype: Any) -> np.ndarray:
    """As numbers of the dtype, all finite, in float64."""
    most = float(jnp.finfo(dtype).max)
    return np.clip(values, -most, most).astype(dtype).astype(np.float64)
