r"""In which order inputs are cut into subspaces.

A codebook knows a row by a few comparisons within its subspace, so inputs that tell of each other
belong together. An order is folded into the places that a tree compares and costs nothing when the
table is used.
"""

import abc

import equinox as eqx
import numpy as np
import scipy.cluster.hierarchy
import scipy.optimize
from jaxtyping import Float, Int

from lowrank_theory._numerics import check_count, settle
from lowrank_theory.lookup.entries import bucket_means, summed_entries
from lowrank_theory.lookup.product_quantisation import Centres
from lowrank_theory.lookup.trees import grown, unit

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


class Rotated(AbstractOrder):
    r"""The permutation nearest to a rotation for product quantisation. The rotation $R$ is that of
    optimised product quantisation (Ge, He, Ke and Sun 2013) for a few `codebooks` of 16 centres:
    so many `steps` of nearest centres, means and the orthogonal Procrustes problem, from $R = I$
    and the codes of trees, on centred rows. The input i comes at the place j that it is given by
    the permutation with the largest $\sum R_{ij}$ (McCarter and Dronen 2022, who have two
    codebooks and 100 steps).
    """

    codebooks: int = 2
    steps: int = 20

    def __check_init__(self) -> None:
        settle(self, "codebooks", check_count, 1)
        settle(self, "steps", check_count, 0)

    def of(
        self, rows: Float[np.ndarray, "samples inputs"], counts: Float[np.ndarray, " samples"]
    ) -> Order:
        """The inputs in the order of the coordinates that they are most alike."""
        inputs, places = scipy.optimize.linear_sum_assignment(-self.rotation(rows, counts))
        return inputs[np.argsort(places)]

    def rotation(
        self, rows: Float[np.ndarray, "samples inputs"], counts: Float[np.ndarray, " samples"]
    ) -> Float[np.ndarray, "inputs places"]:
        """$R$, orthogonal; the rotated rows are $XR$."""
        inputs = rows.shape[1]
        rotation = np.eye(inputs)
        if inputs < 2 or not len(rows):
            return rotation
        scaled = unit(rows)
        scaled = scaled - counts @ scaled / counts.sum()
        parts = subspaces(np.arange(inputs), min(self.codebooks, inputs))
        codes = grown(scaled, parts, counts=counts, dtype=np.float64).codes
        for _ in range(self.steps):
            turned = scaled @ rotation
            means = bucket_means(codes, turned, parts, 16, counts)
            centres = [mean[:, part] for mean, part in zip(means, parts, strict=True)]
            codes = Centres(parts, centres).codes(turned)
            weighted = counts[:, None] * summed_entries(codes, means)
            left, _, right = np.linalg.svd(scaled.T @ weighted)
            rotation = left @ right
        return rotation


def subspaces(order: Order, codebooks: int) -> list[Int[np.ndarray, " _inputs"]]:
    """So many successive parts, whose sizes differ by one at most, the larger ones first."""
    return np.array_split(order, codebooks)
