"""Data-agnostic recovery: the truncated singular value decomposition of the weights."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import AnyArray, in_float64, matmul, rounding_allowance, safe_sqrt
from lowrank_theory._scale import unit
from lowrank_theory._subspaces import all_right_vectors, leading_right_vectors
from lowrank_theory.approximations import LowRank
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._every_rank import (
    AbstractNestedMethod,
    EveryRank,
    at_ranks,
    beyond,
)
from lowrank_theory.recovery._from_rows import Seen
from lowrank_theory.recovery._ladder import Need
from lowrank_theory.recovery._recover import Certificate, Recovery
from lowrank_theory.recovery._returned import Fit, finished


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

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing but weights."""
        return frozenset()

    def fit_every_rank(self, observed: Observed) -> EveryRank:
        """All truncations of the weights. Raises `ValueError` if none were observed."""
        factors, certificates = _truncated(_weights(observed), rank=None)
        return EveryRank(factors, certificates, observed.bias, None, None, self)


def _weights(observed: Observed) -> Float[AnyArray, "inputs outputs"]:
    if observed.weights is None:
        raise ValueError("`TruncatedSVD` compresses weights: give `Observed(weights=...)`.")
    return observed.weights


@in_float64
def truncated_svd(
    weights: Float[Array, "inputs outputs"], *, rank: int, dtype: Any = None
) -> tuple[LowRank, Certificate]:
    r"""The pure function beneath `TruncatedSVD`: $W \mapsto (WV_r, V_r^\top)$ and its certificate,
    in the dtype of the weights or the `dtype` asked for.

    Works under `jit`, `vmap` and `grad`. The product of the factors is differentiable where $s_r(W)
    > s_{r+1}(W)$; at a tie the derivative is infinite or NaN.
    """
    return _truncated(weights, rank=rank, dtype=dtype)


@in_float64
def _truncated(
    weights: Array, *, rank: int | None, dtype: Any = None
) -> tuple[LowRank, Certificate]:
    """At one rank or, without any, at all."""
    weights, power = unit(weights)
    if rank is None:
        vectors, energies = all_right_vectors(weights)
        vectors = vectors[:, : min(weights.shape)]
    else:
        vectors, energies = leading_right_vectors(weights, rank)
    norm, width = safe_sqrt(jnp.sum(weights**2)), vectors.shape[1]
    optimum = at_ranks(rank, lambda rank: beyond(energies, rank), width)
    fit = Fit(
        left=matmul(weights, vectors),
        right=vectors.T,
        energies=energies[:width],
        optimum=optimum,
        least=optimum,
        most=optimum,
        slack=rounding_allowance(norm, *weights.shape),
        target=norm,
        size=jnp.asarray(1.0),
        power=power,
        left_power=power,
    )
    factors, _, certificate = finished(fit, Seen(None, weights), None, dtype)
    return factors, certificate
