r"""Low rank of which each factor has few bits: what competes with rounding at equal bytes."""

from typing import Any

import numpy as np

from lowrank_theory._numerics import check_count, check_positive, keep, settle_each
from lowrank_theory.mixtures._low_rank_parts import (
    check_method,
    low_rank_part,
    needs_of,
    ranks_of,
    rounded_factors,
)
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import (
    AbstractLadder,
    AbstractMethod,
    ActivationWeighted,
    Need,
    Sweep,
    WeightedTarget,
    trained_weights,
)


class QuantisedFactors(AbstractLadder):
    r"""Low rank by a method of recovery, and each factor of few `bits`, one size for each and each
    of `shares`: how many numbers are in the factors, over those of the matrix (more than one where
    the full rank has more; no rank is above it).

    Each direction has a scale in either factor. The first factor is rounded, $\hat L$, and the
    second is the best beside it, $(\hat L^\top H\hat L)^+\hat L^\top HB$, rounded in turn.
    """

    bits: tuple[int, ...] = (4, 8)
    shares: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    low_rank: AbstractMethod = ActivationWeighted()

    def __check_init__(self) -> None:
        settle_each(self, "bits", check_count, 1, 8)
        settle_each(self, "shares", check_positive)
        keep(self, "low_rank", check_method("low_rank", self.low_rank))

    @property
    def needs(self) -> frozenset[Need]:
        """Those of the method."""
        return needs_of(self.low_rank)

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each number of bits and each share. Raises `ValueError` without weights, or
        where what the method needs was not seen.
        """
        weights: Any = trained_weights(self, observed)
        problem = WeightedTarget.of(self, observed) if self.needs else None
        target = weights if problem is None else problem.target
        exact = np.asarray(target, np.float64)
        gram = None if problem is None else np.asarray(problem.gram, np.float64)
        sizes = []
        for rank in ranks_of(self.shares, observed.shape):
            factors = low_rank_part(exact, problem, rank, self.low_rank)
            for bits in self.bits:
                found = rounded_factors(factors, exact, gram, bits, weights.dtype)
                sizes.append((f"rank {rank}, factors of {bits} bit{'s' * (bits > 1)}", found))
        return Sweep.of(self, observed, sizes)
