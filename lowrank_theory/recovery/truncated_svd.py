"""Data-agnostic recovery: the truncated singular value decomposition of the weights."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import AnyArray, in_float64, matmul, rounding_allowance, safe_sqrt
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._every_rank import (
    AbstractNestedMethod,
    EveryRank,
    beyond,
    certified_at,
)
from lowrank_theory.recovery._low_rank import LowRank
from lowrank_theory.recovery._recover import Certificate, Recovery, is_finite
from lowrank_theory.recovery._subspaces import all_right_vectors, leading_right_vectors


class TruncatedSVD(AbstractNestedMethod):
    r"""The best rank-r approximation of the weights themselves, whatever the layer sees.

    $Z = [W]_r = W V_rV_r^\top$, with $V_r$ the leading right singular vectors of $W$: the minimiser
    of $\lVert W - Z\rVert$ over matrices of rank r in every unitarily invariant norm (Eckart and
    Young 1936; Mirsky 1960). A bias is kept as it is.
    """

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Truncate the weights. Raises `ValueError` if none were observed."""
        factors, certificate = truncated_svd(_weights(observed), rank=rank)
        return Recovery(factors, observed.bias, certificate, self)

    def fit_every_rank(self, observed: Observed) -> EveryRank:
        """All truncations of the weights. Raises `ValueError` if none were observed."""
        factors, certificates = _truncated(_weights(observed), rank=None)
        return EveryRank(factors, certificates, observed.bias, None, self)


def _weights(observed: Observed) -> Float[AnyArray, "inputs outputs"]:
    if observed.weights is None:
        raise ValueError("`TruncatedSVD` compresses weights: give `Observed(weights=...)`.")
    return observed.weights


@in_float64
def truncated_svd(
    weights: Float[Array, "inputs outputs"], *, rank: int
) -> tuple[LowRank, Certificate]:
    r"""The pure function beneath `TruncatedSVD`: $W \mapsto (WV_r, V_r^\top)$ and its certificate.

    Works under `jit`, `vmap` and `grad`. The product of the factors is differentiable where $s_r(W)
    > s_{r+1}(W)$; at a tie the derivative is infinite or NaN.
    """
    return _truncated(weights, rank=rank)


@in_float64
def _truncated(weights: Array, *, rank: int | None) -> tuple[LowRank, Certificate]:
    """At one rank or, without any, at all."""
    if rank is None:
        vectors, energies = all_right_vectors(weights)
        vectors = vectors[:, : min(weights.shape)]
    else:
        vectors, energies = leading_right_vectors(weights, rank)
    factors = LowRank(matmul(weights, vectors), vectors.T)
    norm = jnp.linalg.norm(weights)

    def certify(rank: int | Array) -> Certificate:
        return Certificate(
            optimal_error=safe_sqrt(beyond(energies, rank)),
            excess_bound=rounding_allowance(norm, *weights.shape),
            target_norm=norm,
            finite=is_finite(factors.left, factors.right),
        )

    return factors, certified_at(rank, certify, factors.rank)
