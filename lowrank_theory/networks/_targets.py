"""What may be asked of a compression."""

import abc
from collections.abc import Callable, Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int

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


class Parameters(AbstractBudget):
    """At most this share of the numbers."""

    share: float

    def __check_init__(self) -> None:
        settle(self, "share", check_fraction)

    def cost(self, storage: Storage, rows: int) -> int:
        """The numbers."""
        return storage.numbers


class Bytes(AbstractBudget):
    """At most this share of the bytes, in the dtypes in which the weights are stored."""

    share: float

    def __check_init__(self) -> None:
        settle(self, "share", check_fraction)

    def cost(self, storage: Storage, rows: int) -> int:
        """Of the arrays, packed as they are."""
        return storage.bytes


class IdealBits(AbstractBudget):
    """At most this share of the bits, where each entry is written down in as many as it needs."""

    share: float

    def __check_init__(self) -> None:
        settle(self, "share", check_fraction)

    def cost(self, storage: Storage, rows: int) -> int:
        """Without padding."""
        return storage.ideal_bits


class MultiplyAdds(AbstractBudget):
    """At most this share of the multiplications, of batches like the first. A shift takes none."""

    share: float

    def __check_init__(self) -> None:
        settle(self, "share", check_fraction)

    def cost(self, storage: Storage, rows: int) -> int:
        """Of all rows, of which a batch may have none."""
        return max(1, rows) * storage.multiply_adds


class AbstractRankTarget(AbstractTarget):
    """A rank for each layer by itself. It stays dense where that rank would not save parameters."""

    def cost(self, storage: Storage, rows: int) -> int:
        """The numbers."""
        return storage.numbers

    @abc.abstractmethod
    def rank(self, losses: Float[np.ndarray, " ranks"], matrices: Sequence[Observed]) -> int:
        """The rank of a layer of these losses, at the ranks 0, 1, ..., with these matrices."""


class LayerError(AbstractRankTarget):
    r"""The smallest rank at which the relative error of the outputs, $\sqrt{\ell(r)}$, is surely at
    most `relative`: of the layer that is returned, its numbers rounded to their dtype. In sequence
    that is the error with all layers before compressed.
    """

    relative: float

    def __check_init__(self) -> None:
        settle(self, "relative", check_fraction)

    def rank(self, losses: Float[np.ndarray, " ranks"], matrices: Sequence[Observed]) -> int:
        """The first that is accurate enough; the losses end within rounding of zero."""
        accurate = losses <= self.relative**2
        return int(np.argmax(accurate)) if accurate.any() else len(losses) - 1


class RankRule(AbstractRankTarget):
    """The rank that a rule of `rank_choice` finds, as in `RankRule(lambda observed:
    screenot(observed, at_most=20))`; the largest of those of a stack.

    The rule gets the weights and, for a method that looks at the data, rows that have the moments
    of the activations, without their mean where a shift keeps it.
    """

    rule: Callable[[Observed], int | Int[Array, ""]]

    def rank(self, losses: Float[np.ndarray, " ranks"], matrices: Sequence[Observed]) -> int:
        """The largest that the rule finds."""
        return max(int(self.rule(_with_rows(observed))) for observed in matrices)


def _with_rows(observed: Observed) -> Observed:
    if observed.calibration is None:
        return Observed(weights=observed.weights)
    energies, vectors = np.linalg.eigh(
        np.asarray(observed.calibration.gram(centred=observed.bias is not None))
    )
    rows = np.sqrt(np.maximum(energies, 0))[:, None] * vectors.T
    # Squares hold half the digits: as float32, directions of no more than rounding do not count.
    return Observed(weights=observed.weights, activations=rows.astype(np.float32))
