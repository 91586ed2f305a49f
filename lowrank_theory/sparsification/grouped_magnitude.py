"""Of each group of inputs of an output, the largest entries: n of m."""

from typing import Any

from lowrank_theory._numerics import check_count, settle_each
from lowrank_theory.approximations import Sparse
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, Need, Sweep, trained_weights


class GroupedMagnitude(AbstractLadder):
    """Of each m successive inputs of an output the n largest entries stay, for several `patterns`
    (n, m). It looks at the weights alone; the function beneath is `Sparse.n_of_m`.

    A pattern whose m does not divide the inputs is no size of the layer.
    """

    patterns: tuple[tuple[int, int], ...] = ((1, 8), (1, 4), (2, 4), (4, 8), (3, 4))

    def __check_init__(self) -> None:
        settle_each(self, "patterns", _pattern)

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing but weights."""
        return frozenset()

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each pattern that divides the inputs. Raises `ValueError` without
        weights.
        """
        weights = trained_weights(self, observed)
        sizes = [
            (f"{kept} of {group}", Sparse.n_of_m(weights, kept, group))
            for kept, group in self.patterns
            if observed.shape[0] % group == 0
        ]
        return Sweep.of(self, observed, sizes)


def _pattern(name: str, pattern: Any) -> tuple[int, int]:
    if not (isinstance(pattern, tuple | list) and len(pattern) == 2):
        raise ValueError(f"`{name}` must be pairs such as (2, 4); got {pattern!r}.")
    group = check_count(name, pattern[1], 2, 256)
    return check_count(name, pattern[0], 1, group - 1), group
