"""Which entries stay, and how their places are written down."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lowrank_theory._numerics import check_count, check_fraction, keep
from lowrank_theory.approximations import Bitmap, CompressedRows, NOfM, Sparse

Sizes = list[tuple[str, Sparse]]


def largest(
    scores: Float[np.ndarray, "entries columns"], kept: int
) -> Bool[np.ndarray, "entries columns"]:
    """Where the largest of each column are, the first of those that are equal."""
    order = np.argsort(-scores.astype(np.float64), axis=0, kind="stable")[:kept]
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, order, values=True, axis=0)
    return mask


def largest_traced(
    scores: Float[Array, "entries columns"], kept: Int[Array, ""] | int
) -> Bool[Array, "entries columns"]:
    """`largest` in a program of JAX, which may know how many stay only when it runs."""
    order = jnp.argsort(-scores, axis=0, stable=True)
    first = jnp.broadcast_to(jnp.arange(len(order))[:, None] < kept, order.shape)
    return jnp.put_along_axis(first, order, first, axis=0, inplace=False)


def of_mask(weights: np.ndarray, mask: np.ndarray) -> Sparse:
    """The entries at some places, in the pattern of fewer bytes, a bitmap or compressed rows."""
    mask = mask.reshape(weights.shape)
    found = (Sparse.of(weights, mask, kind) for kind in (Bitmap, CompressedRows))
    return min(found, key=lambda each: each.storage.bytes)


def in_words(found: Sparse) -> str:
    """How the places are written down; of compressed rows, in how many bits each column."""
    pattern = found.pattern
    if isinstance(pattern, CompressedRows):
        return f"compressed rows of {8 * pattern.columns.dtype.itemsize} bits"
    return f"{pattern.kept} of {pattern.group}" if isinstance(pattern, NOfM) else "bitmap"


def sizes_of(
    inputs: int,
    shares: tuple[float, ...],
    patterns: tuple[tuple[int, int], ...],
    of_share: Callable[[float], Sparse],
    of_pattern: Callable[[int, int], Sparse],
) -> Sizes:
    """The sizes of a layer: one for each share, and for each pattern that divides its inputs."""
    by_share = ((share, of_share(share)) for share in shares)
    named = [(f"{share:.3g} kept, {in_words(found)}", found) for share, found in by_share]
    fitting = [(kept, group) for kept, group in patterns if inputs % group == 0]
    return named + [(f"{kept} of {group}", of_pattern(kept, group)) for kept, group in fitting]


def settle_sizes(ladder: Any) -> None:
    """Check the fields `shares` and `patterns` of a ladder, of which one may be empty."""
    if not (ladder.shares or ladder.patterns):
        raise ValueError("`shares` and `patterns` are empty: give at least one of either.")
    keep(ladder, "shares", tuple(check_fraction("shares", each) for each in ladder.shares))
    keep(ladder, "patterns", tuple(check_pattern("patterns", each) for each in ladder.patterns))


def check_pattern(name: str, pattern: Any) -> tuple[int, int]:
    """A pair (n, m) with n below m, or a `ValueError`."""
    if not (isinstance(pattern, tuple | list) and len(pattern) == 2):
        raise ValueError(f"`{name}` must be pairs such as (2, 4); got {pattern!r}.")
    group = check_count(name, pattern[1], 2, 256)
    return check_count(name, pattern[0], 1, group - 1), group
