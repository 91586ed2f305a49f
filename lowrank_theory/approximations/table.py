"""A look-up table: rows are compared with thresholds, and the outputs are sums of entries."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from lowrank_theory._numerics import AnyArray, check_count, ours, settle
from lowrank_theory.approximations._approximation import (
    AbstractApproximation,
    Storage,
    as_stored,
    check_floats,
    size_in_bytes,
)


class Table(AbstractApproximation):
    r"""The map $x \mapsto \sum_c T_{c,k_c(x)}$, where each codebook finds its code by a tree.

    Codebook c has a balanced binary tree of D levels: at level d the input `splits[c, d]` is
    compared with the threshold of the node, and goes right where it is no smaller. Nodes are
    numbered from the root, level by level; `entries` are (codebooks, $2^D$, outputs). This is no
    matrix: there is no `materialise`, no transpose and no derivative with respect to the rows.
    """

    splits: Integer[Array | np.ndarray, "*stack codebooks levels"]
    thresholds: Float[Array | np.ndarray, "*stack codebooks nodes"]
    entries: Float[Array | np.ndarray, "*stack codebooks codes outputs"]
    inputs: int = eqx.field(static=True)

    def __init__(self, splits: Any, thresholds: Any, entries: Any, *, inputs: int):
        """Raises `ValueError` for arrays that do not fit together."""
        self.inputs = inputs
        settle(self, "inputs", check_count, 1)
        check_floats("entries", entries, "codebooks", "codes", "outputs")
        check_floats("thresholds", thresholds, "codebooks", "nodes")
        kind = getattr(splits, "dtype", np.dtype(float))
        if not jnp.issubdtype(kind, jnp.integer) or splits.ndim < 2:
            raise ValueError("`splits` must be integers (codebooks, levels).")
        *codebooks, levels = splits.shape
        shapes = (*codebooks, 2**levels - 1), (*codebooks, 2**levels)
        if thresholds.shape != shapes[0] or entries.shape[:-1] != shapes[1]:
            raise ValueError(
                f"`thresholds` must be {shapes[0]} and `entries` {shapes[1]} and outputs, for "
                f"{levels} levels; got {thresholds.shape} and {entries.shape}."
            )
        if thresholds.dtype != entries.dtype:
            raise ValueError(f"`thresholds` must be of {entries.dtype}; got {thresholds.dtype}.")
        self.splits, self.thresholds, self.entries = map(ours, (splits, thresholds, entries))

    def apply(
        self, rows: Float[AnyArray, "*stack samples inputs"]
    ) -> Float[AnyArray, "*stack samples outputs"]:
        """The sum of the entries that the rows find."""
        with as_stored(rows, self):
            look_up = _looked_up
            for _ in self.splits.shape[:-2]:
                look_up = jax.vmap(look_up)
            arrays = (self.splits, self.thresholds, self.entries, ours(rows))
            return look_up(*map(jnp.asarray, arrays))

    @property
    def shape(self) -> tuple[int, ...]:
        """(*stack, inputs, outputs)."""
        return (*self.splits.shape[:-2], self.inputs, self.entries.shape[-1])

    @property
    def dtype(self) -> np.dtype:
        """That of the entries."""
        return self.entries.dtype

    @property
    def storage(self) -> Storage:
        """The entries and the trees; for each row an addition for each codebook and output, and a
        comparison for each level.
        """
        codebooks = self.splits.size // self.splits.shape[-1]
        held = sum(map(size_in_bytes, (self.entries, self.thresholds, self.splits)))
        return Storage(
            self.entries.size + self.thresholds.size,
            8 * held,
            held,
            additions=codebooks * self.entries.shape[-1],
            comparisons=self.splits.size,
        )


def _looked_up(
    splits: Integer[Array, "codebooks levels"],
    thresholds: Float[Array, "codebooks nodes"],
    entries: Float[Array, "codebooks codes outputs"],
    rows: Float[Array, "samples inputs"],
) -> Float[Array, "samples outputs"]:
    codebooks, levels = splits.shape
    which = jnp.arange(codebooks)
    code = jnp.zeros((rows.shape[0], codebooks), jnp.int32)
    for level in range(levels):
        threshold = thresholds[which, 2**level - 1 + code]
        code = 2 * code + (rows[:, splits[:, level]] >= threshold)
    return jnp.sum(entries[which, code], axis=1)
