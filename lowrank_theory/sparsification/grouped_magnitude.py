"""Of each group of inputs of an output, the largest entries: n of m."""

from lowrank_theory._numerics import settle_each
from lowrank_theory.approximations import Sparse
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, Need, Sweep, trained_weights
from lowrank_theory.sparsification.masks import check_pattern


class GroupedMagnitude(AbstractLadder):
    """Of each m successive inputs of an output the n largest entries stay, for several `patterns`
    (n, m). It looks at the weights alone; the function beneath is `Sparse.n_of_m`.

    A pattern whose m does not divide the inputs is no size of the layer.
    """

    patterns: tuple[tuple[int, int], ...] = ((1, 8), (1, 4), (2, 4), (4, 8), (3, 4))

    def __check_init__(self) -> None:
        settle_each(self, "patterns", check_pattern)

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
