"""What may be asked of a compression."""

import abc
from collections.abc import Callable, Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Array, Int

from lowrank_theory._numerics import check_fraction, settle
from lowrank_theory.approximations import Storage
from lowrank_theory.problems import Observed


class AbstractTarget(eqx.Module):
    """What is asked of a compression."""

    @abc.abstractmethod
    def cost(self, storage: Storage, rows: int) -> int:
        """What a layer costs that takes this storage, where each matrix meets so many rows of a
        batch.
        """


class AbstractBudget(AbstractTarget):
    """At most this share of what the followed weights among the selected cost dense, spent where it
    is needed most.
    """

    share: eqx.AbstractVar[float]

    @property
    @abc.abstractmethod
    def counts(self) -> str:
        """What it counts, in a word."""


class Parameters(AbstractBudget):
    """At most this share of the numbers."""

    share: float

    def __check_init__(self) -> None:
        settle(self, "share", check_fraction)

    @property
    def counts(self) -> str:
        """These."""
        return "numbers"

    def cost(self, storage: Storage, rows: int) -> int:
        """The numbers."""
        return storage.numbers


class Bytes(AbstractBudget):
    """At most this share of the bytes, in the dtypes in which the weights are stored."""

    share: float

    def __check_init__(self) -> None:
        settle(self, "share", check_fraction)

    @property
    def counts(self) -> str:
        """These."""
        return "bytes"

    def cost(self, storage: Storage, rows: int) -> int:
        """Of the arrays, packed as they are."""
        return storage.bytes


class IdealBits(AbstractBudget):
    """At most this share of the bits, where each entry is written down in as many as it needs."""

    share: float

    def __check_init__(self) -> None:
        settle(self, "share", check_fraction)

    @property
    def counts(self) -> str:
        """These."""
        return "bits"

    def cost(self, storage: Storage, rows: int) -> int:
        """Without padding."""
        return storage.ideal_bits


class MultiplyAdds(AbstractBudget):
    """At most this share of the multiplications, of batches like the first. A shift takes none."""

    share: float

    def __check_init__(self) -> None:
        settle(self, "share", check_fraction)

    @property
    def counts(self) -> str:
        """These."""
        return "multiplications"

    def cost(self, storage: Storage, rows: int) -> int:
        """Of all rows, of which a batch may have none."""
        return max(1, rows) * storage.multiply_adds


class AbstractLayerTarget(AbstractTarget):
    """A size for each layer by itself. It stays dense where that size would not save bytes."""

    def cost(self, storage: Storage, rows: int) -> int:
        """The bytes."""
        return storage.bytes


class LayerError(AbstractLayerTarget):
    r"""The size of the fewest bytes at which the relative error of the outputs, $\sqrt\ell$, is
    surely at most `relative`: of the layer that is returned, its numbers rounded to their dtype. In
    sequence that is the error with all layers before compressed.
    """

    relative: float

    def __check_init__(self) -> None:
        settle(self, "relative", check_fraction)


class RankRule(AbstractLayerTarget):
    """The rank that a rule of `rank_choice` finds, as in `RankRule(lambda observed:
    screenot(observed, at_most=20))`; the largest of those of a stack.

    The rule gets the weights and, for a method that looks at the data, rows that have the moments
    of the activations, without their mean where a shift keeps it.
    """

    rule: Callable[[Observed], int | Int[Array, ""]]

    def rank(self, matrices: Sequence[Observed]) -> int:
        """The largest that the rule finds."""
        return max(1, *(int(self.rule(_with_rows(observed))) for observed in matrices))


def _with_rows(observed: Observed) -> Observed:
    if observed.calibration is None:
        return Observed(weights=observed.weights)
    eigenvalues, vectors = np.linalg.eigh(
        np.asarray(observed.calibration.gram(centred=observed.bias is not None))
    )
    rows = np.sqrt(np.maximum(eigenvalues, 0))[:, None] * vectors.T
    # Squares hold half the digits: as float32, directions of no more than rounding do not count.
    return Observed(weights=observed.weights, activations=rows.astype(np.float32))
