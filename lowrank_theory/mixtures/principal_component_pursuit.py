r"""Low rank and a few entries besides from the weights alone: robust principal components.

$$\min_{L + S = W}\lVert L\rVert_* + \lambda\lVert S\rVert_1,\qquad
\lambda = 1/\sqrt{\max(N, K)},$$

finds both parts exactly where the one is of low rank with spread singular vectors, and the other
has few entries in places without a pattern (Candès, Li, Ma and Wright 2011, theorem 1.1, whose
algorithm 1 this is: alternating directions with the step $\mu = NK/4\lVert W\rVert_1$). Weights of
a network are no such sum; there the low-rank part is truncated, and what it leaves is pruned.
"""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    check_array,
    check_count,
    check_fraction,
    check_positive,
    settle,
    settle_each,
)
from lowrank_theory.approximations import LowRank, Sum
from lowrank_theory.mixtures.low_rank_and_sparse import split
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, Need, Sweep, trained_weights
from lowrank_theory.sparsification.masks import largest, of_mask


class PrincipalComponentPursuit(AbstractLadder):
    """The low-rank part of the weights, truncated, and the largest entries of what that leaves, at
    several `shares` of the numbers: of these, `low_rank_share` are in the factors, and the others
    are single entries, whose places come besides. It looks at the weights alone.
    """

    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    low_rank_share: float = 0.3
    steps: int = 100

    def __check_init__(self) -> None:
        settle_each(self, "shares", check_fraction)
        settle(self, "low_rank_share", check_fraction)
        settle(self, "steps", check_count, 1)

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing but weights."""
        return frozenset()

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each share. Raises `ValueError` without weights."""
        weights = np.asarray(trained_weights(self, observed))
        low_rank, _ = principal_component_pursuit(weights, steps=self.steps)
        left, values, right = np.linalg.svd(low_rank, full_matrices=False)
        sizes = []
        for share in self.shares:
            rank, kept = split(share, self.low_rank_share, *weights.shape)
            factors = LowRank(
                (left[:, :rank] * values[:rank]).astype(weights.dtype),
                right[:rank].astype(weights.dtype),
            )
            rest = (weights - np.asarray(factors.materialise(), np.float64)).astype(weights.dtype)
            sparse = of_mask(rest, largest(np.abs(rest).reshape(-1, 1), kept))
            sizes.append((f"rank {rank} and {kept:,} entries", Sum((factors, sparse))))
        return Sweep.of(self, observed, sizes)


def principal_component_pursuit(
    weights: ArrayLike, *, steps: int = 500, tolerance: float = 1e-7
) -> tuple[Float[np.ndarray, "inputs outputs"], Float[np.ndarray, "inputs outputs"]]:
    r"""The pure function beneath `PrincipalComponentPursuit`: $L$ and $S$ in float64, after so many
    steps, or where $\lVert W - L - S\rVert_F$ is a `tolerance` of $\lVert W\rVert_F$.

    On the host, in NumPy, and so not under `jit`. Raises `ValueError` for weights that are no
    finite matrix of floats.
    """
    given = np.asarray(check_array("weights", weights, "inputs", "outputs"), np.float64)
    steps = check_count("steps", steps, 1)
    tolerance = check_positive("tolerance", tolerance)
    largest_entry = float(np.abs(given).max())
    if largest_entry == 0:
        return given, given
    power = int(np.frexp(largest_entry)[1])
    matrix = np.ldexp(given, -power)
    step = matrix.size / (4 * np.abs(matrix).sum())
    penalty = 1 / np.sqrt(max(matrix.shape))
    low_rank = sparse = dual = np.zeros_like(matrix)
    for _ in range(steps):
        left, values, right = np.linalg.svd(matrix - sparse + dual / step, full_matrices=False)
        low_rank = (left * np.maximum(values - 1 / step, 0)) @ right
        sparse = _shrunk(matrix - low_rank + dual / step, penalty / step)
        rest = matrix - low_rank - sparse
        dual = dual + step * rest
        if np.linalg.norm(rest) <= tolerance * np.linalg.norm(matrix):
            break
    return np.ldexp(low_rank, power), np.ldexp(sparse, power)


def _shrunk(matrix: np.ndarray, threshold: float) -> np.ndarray:
    return np.sign(matrix) * np.maximum(np.abs(matrix) - threshold, 0)
