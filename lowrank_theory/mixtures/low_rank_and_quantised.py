r"""Few bits, and low rank of what they miss.

$$\min_{Q,\ \operatorname{rank}L\le r}\lVert\tilde X(B - Q - L)\rVert_F,$$

where $B$ is the least-squares layer of the outputs on $\tilde X$ ($W$, where the layer sees what it
always saw) and $Q$ has few levels. Of the rest $B - Q$ a method of recovery gives $L$; of the rest
$B - L$ a quantiser gives $Q$. In turn, as often as `steps` says, and of all pairs the best is
returned, by its error. Published methods are choices of these:

- one step, `TruncatedSVD()` of the rest: LoRC (Yao, Wu, Li, Youn and He 2023, arXiv
  2303.08302);
- one step, `DiagonalQERA()`: the inputs weighted by their sizes, as in LQER (Zhang, Cheng,
  Constantinides and Zhao 2024, arXiv 2402.02446);
- one step, `ActivationWeighted()`: exact, as in QERA (Zhang, Wong, Xiao, Constantinides and Zhao
  2025, arXiv 2410.06040), here without an inverse: second moments may be singular;
- several steps, `GPTQ` and factors of few bits: like CALDERA (Saha, Sagan, Srivastava, Goldsmith
  and Pilanci 2024, arXiv 2405.18886), without its incoherence and its lattices.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    check_array,
    check_count,
    check_fraction,
    keep,
    settle,
    settle_each,
)
from lowrank_theory.approximations import AbstractMatrix, LowRank, Quantised, Sum
from lowrank_theory.mixtures._low_rank_parts import (
    at_scale_of,
    check_method,
    low_rank_part,
    needs_of,
    ranks_of,
    rounded_factors,
)
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import (
    GPTQ,
    AbstractQuantiser,
    RoundToNearest,
    check_quantiser,
    size_of,
)
from lowrank_theory.recovery import (
    AbstractLadder,
    AbstractMethod,
    ActivationWeighted,
    Need,
    Sweep,
    WeightedTarget,
    dense_float64,
    trained_weights,
)


class LowRankAndQuantised(AbstractLadder):
    """Few bits by a `quantiser`, and beside them the rest at low rank, by a method of recovery: at
    each number of bits, and with several `shares` of the numbers in the factors.

    The factors have `factor_bits` bits, or stay in the dtype of the layer.
    """

    quantiser: AbstractQuantiser = GPTQ(RoundToNearest((2, 3, 4)))
    shares: tuple[float, ...] = (0.05, 0.1)
    low_rank: AbstractMethod = ActivationWeighted()
    factor_bits: int | None = 8
    steps: int = 10

    def __check_init__(self) -> None:
        keep(self, "quantiser", check_quantiser("quantiser", self.quantiser))
        keep(self, "low_rank", check_method("low_rank", self.low_rank))
        settle_each(self, "shares", check_fraction)
        settle(self, "steps", check_count, 1)
        if self.factor_bits is not None:
            settle(self, "factor_bits", check_count, 1, 8)

    @property
    def needs(self) -> frozenset[Need]:
        """Those of both."""
        return self.quantiser.needs | needs_of(self.low_rank)

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each number of bits and each share. Raises `ValueError` without weights, or
        where what it needs was not seen.
        """
        weights: Any = trained_weights(self, observed)
        problem = WeightedTarget.of(self, observed) if self.needs else None
        target = weights if problem is None else problem.target
        sizes = []
        for bits in self.quantiser.sizes:
            for rank in ranks_of(self.shares, observed.shape):
                found = low_rank_and_quantised(
                    target,
                    None if problem is None else problem.gram,
                    lambda rest, bits=bits: self.quantiser.quantise(rest, problem, bits),
                    lambda rest, rank=rank: low_rank_part(rest, problem, rank, self.low_rank),
                    factor_bits=self.factor_bits,
                    steps=self.steps,
                )
                levels, _ = found.parts
                assert isinstance(levels, Quantised)
                sizes.append((f"{size_of(levels)} and rank {rank}", found))
        return Sweep.of(self, observed, sizes)


def low_rank_and_quantised(
    target: ArrayLike,
    gram: ArrayLike | None,
    quantise: Callable[[Any], Quantised],
    low_rank: Callable[[Any], LowRank],
    *,
    factor_bits: int | None = None,
    steps: int = 1,
) -> Sum:
    r"""The function beneath `LowRankAndQuantised`, from $B$ and $H = \tilde X^\top\tilde X$ (the
    identity without): the levels, and factors or the product of two of few bits, in the dtype of
    the target.

    `quantise` gets the rest in that dtype, `low_rank` in float64. On the host, and so not under
    `jit`. Raises `ValueError` for what are no finite matrices of floats that fit, and for numbers
    of bits or steps that there are not.
    """
    target = np.asarray(check_array("target", target, "inputs", "outputs"))
    exact, dtype = target.astype(np.float64), target.dtype
    if gram is not None:
        gram = np.asarray(check_array("gram", gram, "inputs", "inputs"), np.float64)
        if gram.shape != (len(target),) * 2:
            raise ValueError(f"`gram` must be {(len(target),) * 2}; got {gram.shape}.")
        gram = at_scale_of(gram, gram)
    factor_bits = None if factor_bits is None else check_count("factor_bits", factor_bits, 1, 8)

    def rest_of(*parts: AbstractMatrix) -> Float[np.ndarray, "inputs outputs"]:
        return exact - sum(dense_float64(part) for part in parts)

    best, least, found = None, np.inf, None
    for _ in range(check_count("steps", steps, 1)):
        levels = quantise(target if found is None else rest_of(found).astype(dtype))
        rest = rest_of(levels)
        found = low_rank(rest)
        if factor_bits is None:
            found = found.map_floats(lambda array: np.asarray(array).astype(dtype))
        else:
            found = rounded_factors(found, rest, gram, factor_bits, dtype)
        missed = at_scale_of(exact, rest_of(levels, found))
        error = float(np.vdot(missed, missed if gram is None else gram @ missed))
        if best is None or error < least:
            best, least = Sum((levels, found)), error
    assert best is not None
    return best
