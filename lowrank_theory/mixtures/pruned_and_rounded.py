r"""The entries that a pruning method leaves, rounded to few bits.

At equal bits few exact entries lose to more rounded ones: of Gaussian weights in two bits each, the
places included, the largest 3 % in float32 lose 80 % of the squares, the largest 22 % in four bits
with a scale for each 64 of them 32 % (`paper_notes/methods.md`).
"""

import math
from typing import Any

import jax
import numpy as np

from lowrank_theory._numerics import check_count, settle
from lowrank_theory.approximations import Quantised, Sparse
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import round_to_nearest
from lowrank_theory.recovery import AbstractLadder, Need, Sweep
from lowrank_theory.sparsification import Magnitude


class PrunedAndRounded(AbstractLadder):
    """The sizes of a `pruning` ladder, with the entries that stay rounded to so many `bits`.

    There is one scale for each `group` of entries in the order in which they are kept, by clipped
    and symmetric rounding to nearest (`quantisation.RoundToNearest`). Sparse parts of sums are
    rounded, other parts stay as they are.
    """

    pruning: AbstractLadder = Magnitude()
    bits: int = 4
    group: int = 64

    def __check_init__(self) -> None:
        if not isinstance(self.pruning, AbstractLadder):
            raise ValueError(
                f"`pruning` must be a ladder such as `Magnitude()`; got {self.pruning!r}."
            )
        settle(self, "bits", check_count, 2, 8)
        settle(self, "group", check_count, 1)

    @property
    def needs(self) -> frozenset[Need]:
        """What pruning needs."""
        return self.pruning.needs

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each of pruning. Raises `ValueError` where that does, and where it leaves no
        sparse matrix.
        """
        pruned, sizes = self.pruning.sweep(observed), []
        for size in range(len(pruned.storages)):
            found = pruned.at(size).approximation
            parts = jax.tree.leaves(found, is_leaf=_is_sparse)
            if not any(map(_is_sparse, parts)):
                raise ValueError(
                    "`pruning` must give sparse matrices, whose entries can be rounded; "
                    f"`{type(self.pruning).__name__}` gave a `{type(found).__name__}`."
                )
            rounded = jax.tree.map(self._rounded, found, is_leaf=_is_sparse)
            sizes.append((f"{pruned.name(size)}, {self.bits} bits", rounded))
        return Sweep.of(self, observed, sizes)

    def _rounded(self, part: Any) -> Any:
        return rounded_entries(part, self.bits, self.group) if _is_sparse(part) else part


def rounded_entries(sparse: Sparse, bits: int, group: int = 64) -> Sparse:
    """The pure function beneath `PrunedAndRounded`: one sparse matrix, whose values are a
    `Quantised` of one column.

    On the host, and so not under `jit`. Raises `ValueError` for bits outside 2 to 8, a group below
    1, and a stack.
    """
    bits, group = check_count("bits", bits, 2, 8), check_count("group", group, 1)
    if sparse.ndim != 2:
        raise ValueError(f"`sparse` must be one matrix, not a stack {sparse.shape}.")
    values = np.asarray(sparse.values)
    count, groups = values.size, -(-values.size // group)
    # A power of four of groups, so that matrices of many sizes share a program. Zeros are at a
    # level, and so change no grid of two bits or more.
    room = np.zeros((4 ** math.ceil(math.log(groups, 4)) * group, 1), values.dtype)
    room[:count, 0] = values
    found = round_to_nearest(room, bits, group=group)
    codes, scales = np.asarray(found.unpacked())[:count], np.asarray(found.scales)[:groups]
    return Sparse(Quantised.of(codes, scales, bits=bits, group=group), sparse.pattern)


def _is_sparse(part: Any) -> bool:
    return isinstance(part, Sparse)
