r"""What another method leaves of a layer, at low rank besides.

Of a layer $A$ that a method has found the rest $B - A$ is known, and the best matrix of rank r in
its place: $\min_{\operatorname{rank}L\le r}\lVert\tilde X(B - A - L)\rVert_F$ is its data-driven
recovery. Of rounded weights it is the compensation of QERA (Zhang et al. 2025), one step of
`LowRankAndQuantised` with factors that are not rounded; of entries n of m
that were rounded, SLiM (Mozaffari et al. 2025), whose $L$ is the best for uncorrelated inputs
alone, and whose entries are rounded before they are chosen.
"""

import numpy as np

from lowrank_theory._numerics import check_fraction, settle
from lowrank_theory.approximations import AbstractMatrix, LowRank, Sum
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, Need, Sweep, WeightedTarget, dense_float64


class LowRankBesides(AbstractLadder):
    """The sizes of a `method`, each with the best matrix besides whose rank is a `rank_share` of
    the smaller side, at least one.
    """

    method: AbstractLadder
    rank_share: float = 0.1

    def __check_init__(self) -> None:
        if not isinstance(self.method, AbstractLadder):
            raise ValueError(f"`method` must be a ladder such as `Wanda()`; got {self.method!r}.")
        settle(self, "rank_share", check_fraction)

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments, and what the method needs."""
        return self.method.needs | {Need.MOMENTS}

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each of the method. Raises `ValueError` where that does, where nothing was
        seen, and where it gives what is no matrix.
        """
        problem, found = WeightedTarget.of(self, observed), self.method.sweep(observed)
        target = np.asarray(problem.target)
        rank, sizes = max(1, round(self.rank_share * min(target.shape))), []
        for size in range(len(found.storages)):
            matrix = found.at(size).approximation
            if not isinstance(matrix, AbstractMatrix):
                raise ValueError(
                    "`method` must give matrices, of which the rest is known; "
                    f"`{type(self.method).__name__}` gave a `{type(matrix).__name__}`."
                )
            rest = target.astype(np.float64) - dense_float64(matrix)
            factors = problem.low_rank(rest, rank)
            left, right = (
                np.asarray(x).astype(target.dtype) for x in (factors.left, factors.right)
            )
            low_rank = LowRank(left, right)
            sizes.append((f"{found.name(size)}, and rank {rank}", Sum((matrix, low_rank))))
        return Sweep.of(self, observed, sizes)
