"""What quantisers have in common: a number of bits is a size."""

import abc
from typing import Any

from lowrank_theory._numerics import check_count, check_group, keep, settle_each
from lowrank_theory.approximations import Quantised
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, Sweep, WeightedTarget, trained_weights


class AbstractQuantiser(AbstractLadder):
    """A ladder whose sizes are numbers of bits."""

    @property
    @abc.abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """The numbers of bits."""

    @abc.abstractmethod
    def quantise(self, weights: Any, problem: WeightedTarget | None, bits: int) -> Quantised:
        """A matrix, not always that of the problem, whose moments say what an error costs. Where
        the quantiser needs no data there may be no problem. In the dtype of the matrix.
        """

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each number of bits. Raises `ValueError` without weights, or where what it
        needs was not seen.
        """
        weights: Any = trained_weights(self, observed)
        problem = WeightedTarget.of(self, observed) if self.needs else None
        target = weights if problem is None else problem.target
        sizes = [self.quantise(target, problem, bits) for bits in self.sizes]
        return Sweep.of(self, observed, [(size_of(each), each) for each in sizes])


def size_of(quantised: Quantised) -> str:
    """Such as `4 bits, groups of 64, with zeros`."""
    name = f"{quantised.bits} bit{'s' * (quantised.bits > 1)}"
    name += "" if quantised.group is None else f", groups of {quantised.group}"
    name += "" if quantised.axis is not None else ", one grid"
    return name + ("" if quantised.zeros is None else ", with zeros")


def settle_grids(quantiser: Any) -> None:
    """The `bits`, `group` and `axis` of a quantiser as they are kept, or a `ValueError`."""
    settle_each(quantiser, "bits", check_count, 1, 8)
    group, axis = check_group(quantiser.group, quantiser.axis)
    keep(quantiser, "group", group)
    keep(quantiser, "axis", axis)


def check_quantiser(name: str, value: Any) -> AbstractQuantiser:
    """A quantiser, or a `ValueError`."""
    if not isinstance(value, AbstractQuantiser):
        raise ValueError(
            f"`{name}` must be a quantiser such as `RoundToNearest((3, 4))`; got {value!r}."
        )
    return value
