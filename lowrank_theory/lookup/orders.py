r"""In which order inputs are cut into subspaces.

A codebook knows a row by a few comparisons within its subspace, so inputs that tell of each other
belong together. An order is folded into the places that a tree compares and costs nothing when the
table is used.
"""

import abc

import equinox as eqx
import numpy as np
import scipy.cluster.hierarchy
from jaxtyping import Float, Int

Order = Int[np.ndarray, " inputs"]


class AbstractOrder(eqx.Module):
    """A permutation of the inputs, whose successive parts are the subspaces."""

    @abc.abstractmethod
    def of(
        self, rows: Float[np.ndarray, "samples inputs"], counts: Float[np.ndarray, " samples"]
    ) -> Order:
        """The inputs in order, for these rows, each of which came so often."""


class AsTheyCome(AbstractOrder):
    """Inputs stay in their order."""

    def of(
        self, rows: Float[np.ndarray, "samples inputs"], counts: Float[np.ndarray, " samples"]
    ) -> Order:
        """All inputs, as they come."""
        return np.arange(rows.shape[1])


class Correlated(AbstractOrder):
    r"""The leaves of a hierarchical clustering of the inputs (average linkage), at distance $1 -
    r^2$, $r$ the correlation of two inputs (McCarter and Dronen 2022); not `squared`, $1 - r$, as
    their code has it, for which opposite inputs are the farthest.

    A constant input has no correlation: $r = 0$.
    """

    squared: bool = True

    def of(
        self, rows: Float[np.ndarray, "samples inputs"], counts: Float[np.ndarray, " samples"]
    ) -> Order:
        """Similar inputs side by side."""
        inputs = rows.shape[1]
        if inputs < 2 or not len(rows):
            return np.arange(inputs)
        _, powers = np.frexp(np.abs(rows).max(axis=0))
        scaled = np.ldexp(rows, -powers)
        centred = np.sqrt(counts)[:, None] * (scaled - counts @ scaled / counts.sum())
        norms = np.sqrt(np.sum(centred**2, axis=0))
        centred = centred / np.where(norms > 0, norms, 1)
        r = np.clip(centred.T @ centred, -1, 1)
        places = np.triu_indices(inputs, 1)
        distances = 1 - (r**2 if self.squared else r)[places]
        merged = scipy.cluster.hierarchy.linkage(distances, method="average")
        return np.asarray(scipy.cluster.hierarchy.leaves_list(merged), np.int64)


def subspaces(order: Order, codebooks: int) -> list[Int[np.ndarray, " _inputs"]]:
    """So many successive parts, whose sizes differ by one at most, the larger ones first."""
    return np.array_split(order, codebooks)
