"""Data-agnostic recovery: the truncated singular value decomposition of the weights."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import in_float64, matmul, rounding_allowance, safe_sqrt
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._low_rank import LowRank
from lowrank_theory.recovery._recover import AbstractMethod, Certificate, Recovery, is_finite
from lowrank_theory.recovery._subspaces import leading_right_vectors


class TruncatedSVD(AbstractMethod):
    r"""The best rank-r approximation of the weights themselves, whatever the layer sees.

    $Z = [W]_r = W V_rV_r^\top$, with $V_r$ the leading right singular vectors of $W$: the minimiser
    of $\lVert W - Z\rVert$ over matrices of rank r in every unitarily invariant norm (Eckart and
    Young 1936; Mirsky 1960). A bias is kept as it is.
    """

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Truncate the weights. Raises `ValueError` if none were observed."""
        if observed.weights is None:
            raise ValueError("`TruncatedSVD` compresses weights: give `Observed(weights=...)`.")
        factors, certificate = truncated_svd(observed.weights, rank=rank)
        return Recovery(factors, observed.bias, certificate, self)


@in_float64
def truncated_svd(
    weights: Float[Array, "inputs outputs"], *, rank: int
) -> tuple[LowRank, Certificate]:
    r"""The pure function beneath `TruncatedSVD`: $W \mapsto (WV_r, V_r^\top)$ and its certificate.

    Works under `jit`, `vmap` and `grad`. The product of the factors is differentiable where $s_r(W)
    > s_{r+1}(W)$; at a tie the derivative is infinite or NaN.
    """
    vectors, energies = leading_right_vectors(weights, rank)
    factors = LowRank(matmul(weights, vectors), vectors.T)
    norm = jnp.linalg.norm(weights)
    certificate = Certificate(
        optimal_error=safe_sqrt(jnp.sum(energies[rank:])),
        excess_bound=rounding_allowance(norm, *weights.shape),
        target_norm=norm,
        finite=is_finite(factors.left, factors.right),
    )
    return factors, certificate
