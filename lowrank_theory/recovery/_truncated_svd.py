"""Data-agnostic recovery: the truncated singular value decomposition of the weights."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import AnyArray, in_float64, rounding_allowance, safe_sqrt
from lowrank_theory._scale import unit
from lowrank_theory.approximations import LowRank
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._every_rank import AbstractNestedMethod, EveryRank
from lowrank_theory.recovery._ladder import Need
from lowrank_theory.recovery._least_squares import LeastSquares, RowSensitivity
from lowrank_theory.recovery._recover import Certificate, Recovery
from lowrank_theory.recovery._returned import returned, returned_at_every_rank


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
        factors, certificates = _at_every_rank(_weights(observed))
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
    factors, _, certificate = returned(_problem(weights).of_rank(rank), dtype)
    return factors, certificate


@in_float64
def _at_every_rank(weights: Array, *, dtype: Any = None) -> tuple[LowRank, Certificate]:
    factors, _, certificates = returned_at_every_rank(_problem(weights).of_every_rank(), dtype)
    return factors, certificates


def _problem(weights: Array) -> LeastSquares:
    """That of a layer whose inputs are the identity."""
    weights, power = unit(weights)
    norm, nothing = safe_sqrt(jnp.sum(weights**2)), jnp.asarray(0.0)
    return LeastSquares(
        solution=weights,
        attainable=weights,
        unattainable=nothing,
        dropped=nothing,
        rounding=rounding_allowance(norm, *weights.shape),
        target_norm=norm,
        inputs_norm=jnp.asarray(1.0),
        power=power,
        left_power=power,
        affine=None,
        sensitivity=RowSensitivity(None, weights),
    )
