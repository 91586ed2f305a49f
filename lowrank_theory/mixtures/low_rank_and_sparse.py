r"""Low rank and a few entries besides, by alternation.

$$\min_{\operatorname{rank}L\le r,\ \lVert S\rVert_0\le k} \lVert\tilde X(B - L - S)\rVert_F,$$

where $B$ is the least-squares layer of the outputs on $\tilde X$ ($W$, where the layer sees what it
always saw). Of the rest $B - S$ the best $L$ is known: it is the data-driven recovery. Of the rest
$B - L$ those entries are kept whose $d_i|B_{ij} - L_{ij}|$ is largest, $d_i$ the norm of input $i$:
the best $S$ where inputs are uncorrelated, and a rule of thumb elsewhere (Zhang and Papyan 2025).
Of all steps the best is returned, by its error.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    check_array,
    check_count,
    check_fraction,
    in_float64,
    matmul,
    safe_sqrt,
    settle,
    settle_each,
)
from lowrank_theory._scale import at_scale_one, exponent, times_power, unit
from lowrank_theory.approximations import LowRank, Sum
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import (
    AbstractLadder,
    Need,
    Sweep,
    WeightedTarget,
    gram_root,
)
from lowrank_theory.sparsification.masks import largest_traced, of_mask


class LowRankAndSparse(AbstractLadder):
    """Low rank plus sparse at several `shares` of the numbers. Of these, `low_rank_share` are in
    the factors, and the others are single entries, whose places come besides: the largest of all
    or, `per_output`, as many of each output.

    `diagonal`, only the norms of inputs are looked at, not how inputs go together. OATS (Zhang and
    Papyan 2025) is `LowRankAndSparse(low_rank_share=0.25, steps=80, diagonal=True,
    per_output=True)`: its low-rank part is then the truncation of the rest times these norms, and
    both parts are the best beside the other, so that the last step is the best one.
    """

    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    low_rank_share: float = 0.3
    steps: int = 20
    diagonal: bool = False
    per_output: bool = False

    def __check_init__(self) -> None:
        settle_each(self, "shares", check_fraction)
        settle(self, "low_rank_share", check_fraction)
        settle(self, "steps", check_count, 1)

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments."""
        return frozenset({Need.MOMENTS})

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each share. Raises `ValueError` without weights, or where nothing was
        seen.
        """
        target, gram, _ = WeightedTarget.of(self, observed)
        if self.diagonal:
            gram = np.diag(np.diagonal(gram))
        sizes = []
        for share in self.shares:
            rank, kept = split(share, self.low_rank_share, *target.shape)
            each = max(1, round(kept / target.shape[1])) if self.per_output else kept
            found = low_rank_and_sparse(
                target, gram, rank, each, per_output=self.per_output, steps=self.steps
            )
            sizes.append((f"rank {rank} and {kept:,} entries", found))
        return Sweep.of(self, observed, sizes)


def split(share: float, low_rank_share: float, inputs: int, outputs: int) -> tuple[int, int]:
    """The rank whose factors have `low_rank_share` of so many numbers, a `share` of the entries of
    a matrix, and how many single entries the others are; at least one of each.
    """
    numbers = share * inputs * outputs
    rank = int(low_rank_share * numbers / (inputs + outputs))
    return min(max(1, rank), inputs, outputs), max(1, round((1 - low_rank_share) * numbers))


def low_rank_and_sparse(
    weights: ArrayLike,
    gram: ArrayLike,
    rank: int,
    kept: int,
    *,
    per_output: bool = False,
    steps: int = 20,
) -> Sum:
    r"""The pure function beneath `LowRankAndSparse`, from $B$ and $\tilde X^\top\tilde X$: a
    `LowRank`, and a `Sparse` of so many entries of the matrix or of each output, in the dtype of
    the weights.

    One program serves all ranks and numbers of entries; their patterns are made on the host, so
    that it does not run under `jit`. Raises `ValueError` for what are no finite matrices of floats
    that fit, and for a rank or a number of entries that there are not.
    """
    weights = check_array("weights", weights, "inputs", "outputs")
    gram = check_array("gram", gram, "inputs", "inputs")
    if gram.shape != (weights.shape[0],) * 2:
        raise ValueError(f"`gram` must be {(weights.shape[0],) * 2}; got {gram.shape}.")
    rank = check_count("rank", rank, 1, min(weights.shape))
    kept = check_count("kept", kept, 1, weights.shape[0] if per_output else weights.size)
    counts = (np.int32(each) for each in (rank, kept, check_count("steps", steps, 1)))
    found = _alternated(weights, gram, *counts, per_output=bool(per_output))
    left, right, sparse, mask = map(np.asarray, found)
    return Sum((LowRank(left[:, :rank], right[:rank]), of_mask(sparse, mask)))


@functools.partial(in_float64, like=0)
def _alternated(
    weights: Array,
    gram: Array,
    rank: Int[Array, ""],
    kept: Int[Array, ""],
    steps: Int[Array, ""],
    *,
    per_output: bool,
) -> tuple[Array, Array, Array, Array]:
    """Factors of full rank, of which the leading ones are meant; entries, and where they are."""
    power = exponent(weights)
    target = at_scale_one(weights, power)
    root = gram_root(gram)
    sizes = safe_sqrt(jnp.maximum(jnp.diagonal(unit(gram)[0]), 0))[:, None]
    leading = jnp.arange(min(weights.shape)) < rank

    def low_rank(sparse: Array) -> tuple[Array, Array, Array]:
        """The best factors beside these entries, and the squared error of both."""
        rest = target - sparse
        _, found, right = jnp.linalg.svd(matmul(root, rest), full_matrices=False)
        return matmul(rest, right.T), right, jnp.sum(jnp.where(leading, 0, found) ** 2)

    def step(_: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        factors, right, best, best_mask, least = state
        rest = target - matmul(factors * leading, right)
        scores = sizes * jnp.abs(rest)
        scores = scores if per_output else scores.reshape(-1, 1)
        mask = largest_traced(scores, kept).reshape(rest.shape)
        sparse = jnp.where(mask, rest, 0)
        factors, right, error = low_rank(sparse)
        better = error < least
        return (
            factors,
            right,
            jnp.where(better, sparse, best),
            jnp.where(better, mask, best_mask),
            jnp.minimum(error, least),
        )

    nothing = jnp.zeros_like(target)
    factors, right, _ = low_rank(nothing)
    start = factors, right, nothing, nothing > 0, jnp.asarray(jnp.inf)
    _, _, sparse, mask, _ = jax.lax.fori_loop(0, steps, step, start)
    factors, right, _ = low_rank(sparse)
    return times_power(factors, power), right, times_power(sparse, power), mask
