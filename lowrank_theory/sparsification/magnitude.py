"""The largest entries of the weights, and zeros."""

import numpy as np
from numpy.typing import ArrayLike

from lowrank_theory._numerics import check_array, check_count, check_fraction, settle_each
from lowrank_theory.approximations import Sparse
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, Need, Sweep, trained_weights
from lowrank_theory.sparsification.masks import in_words, largest, of_mask


class Magnitude(AbstractLadder):
    """The entries of largest size stay, at several `shares` of them. It looks at the weights alone.

    `per_output`, each output keeps as many; else they are the largest of the whole matrix.
    """

    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
    per_output: bool = False

    def __check_init__(self) -> None:
        settle_each(self, "shares", check_fraction)

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing but weights."""
        return frozenset()

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each share. Raises `ValueError` without weights."""
        weights = trained_weights(self, observed)
        inputs, outputs = observed.shape
        of = inputs if self.per_output else inputs * outputs
        sizes = []
        for share in self.shares:
            kept = max(1, round(share * of))
            found = largest_entries(weights, kept, per_output=self.per_output)
            sizes.append((f"{share:.3g} kept, {in_words(found)}", found))
        return Sweep.of(self, observed, sizes)


def largest_entries(weights: ArrayLike, kept: int, *, per_output: bool = False) -> Sparse:
    r"""The pure function beneath `Magnitude`: so many entries of largest size, of the matrix or of
    each output, and of those that are equal the first. Their places are kept as a bitmap or as
    compressed rows, whichever takes fewer bytes.

    On the host, in NumPy, and so not under `jit`. Raises `ValueError` for weights that are no
    finite matrix of floats, and for a number of entries that there are not.
    """
    weights = np.asarray(check_array("weights", weights, "inputs", "outputs"))
    inputs, outputs = weights.shape
    kept = check_count("kept", kept, 1, inputs if per_output else inputs * outputs)
    sizes = np.abs(weights)
    return of_mask(weights, largest(sizes if per_output else sizes.reshape(-1, 1), kept))
