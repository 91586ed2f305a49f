"""Convex fits: how far they came, and what their duality gap says of low-rank factors."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lowrank_theory._numerics import AnyArray, InFloat64, in_float64, matmul
from lowrank_theory._scale import norm, times_power, unit
from lowrank_theory._subspaces import leading_right_vectors
from lowrank_theory.approximations import LowRank
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._recover import AbstractMethod, DualityGap, Recovery, is_finite
from lowrank_theory.recovery._returned import stored


class Convergence(InFloat64):
    r"""How far a convex fit $F = \tilde XZ$ came.

    - `gap`: the objective exceeds its minimum by at most this much, and `allowed_gap`: by how much
      it may, to be `closed`;
    - `output_slope`, `weight_slope`: changing the outputs by $D$ and the weights by $D'$ adds at
      most output slope $\lVert D\rVert_F + \tfrac12\lVert D\rVert_F^2 +$ weight slope $\lVert
      D'\rVert_F$;
    - `output_margin`, `weight_margin`: how much these may change, so that the feasible set is left
      by no more than the tolerance.
    """

    gap: Float[Array, ""]
    allowed_gap: Float[Array, ""]
    closed: Bool[Array, ""]
    output_slope: Float[Array, ""]
    weight_slope: Float[Array, ""]
    output_margin: Float[Array, ""]
    weight_margin: Float[Array, ""]

    @staticmethod
    def exact() -> "Convergence":
        """That of a minimiser. Call it inside `float64`."""
        zero, infinity = jnp.zeros(()), jnp.asarray(jnp.inf)
        return Convergence(zero, zero, jnp.asarray(True), zero, zero, infinity, infinity)

    def after(self, output_change: Array, weight_change: Array) -> "Convergence":
        """What is left of it after outputs and weights have changed by so much."""
        added = (self.output_slope + output_change / 2) * output_change
        added = added + self.weight_slope * weight_change
        gap = jnp.maximum(self.gap, 0) + added  # its own rounding may leave it below zero
        feasible = (output_change <= self.output_margin) & (weight_change <= self.weight_margin)
        closed = self.closed & feasible & jnp.isfinite(gap) & (gap <= self.allowed_gap)
        return dataclasses.replace(self, gap=gap, closed=closed)


class ConvexFit(InFloat64):
    r"""The fit of a convex method, of any rank, and how far from the minimum it can be.

    - `weights` $Z$, and the `preactivations` $F = \tilde XZ$ of the layer. Where the problem is one
      in $F$, $Z = \tilde X^+F$ is the smallest of the matrices that give it;
    - `objective`: that of the problem, which exceeds its minimum by at most `duality_gap`;
    - `steps`: how many were taken;
    - `convergence`: the gap, and how much of it is allowed.

    Numbers are float64, and about the unknown of the problem, $F$ or $Z$, as it is stored: in the
    dtype of the data. The $F$ of a stored $Z$ is float64.
    """

    weights: Float[Array, "inputs outputs"]
    preactivations: Float[Array, "samples outputs"]
    objective: Float[Array, ""]
    steps: Int[Array, ""]
    convergence: Convergence

    @property
    def duality_gap(self) -> Float[AnyArray, ""]:
        """The objective exceeds its minimum by at most this."""
        return self.convergence.gap

    @property
    def converged(self) -> Bool[AnyArray, ""]:
        """Whether the gap is within the tolerance that was asked for."""
        return self.convergence.closed


def leading_part(method: AbstractMethod, observed: Observed, fit: ConvexFit, rank: int) -> Recovery:
    """The `rank` leading components of the outputs of a convex fit."""
    factors, certificate = _leading(
        fit.weights,
        fit.preactivations,
        observed.layer_inputs,
        fit.convergence,
        rank=rank,
        dtype=observed.dtype,
    )
    return Recovery(factors, None, certificate, method)


@in_float64
def _leading(
    weights: Array,
    preactivations: Array,
    layer_inputs: Array,
    convergence: Convergence,
    *,
    rank: int,
    dtype: np.dtype,
) -> tuple[LowRank, DualityGap]:
    weights, power = unit(weights)
    preactivations, outputs_power = unit(preactivations)
    layer_inputs, inputs_power = unit(layer_inputs)
    vectors, _ = leading_right_vectors(preactivations, rank)
    left, right = matmul(weights, vectors), vectors.T
    rounded = stored(left, right, power, dtype)
    found = left + rounded.left_change, right + rounded.right_change
    leading = matmul(preactivations, vectors, right)
    product_power = power + inputs_power - outputs_power
    outputs = times_power(matmul(layer_inputs, *found), product_power)
    output_change = times_power(norm(outputs - leading), outputs_power)
    weight_change = times_power(norm(matmul(*found) - matmul(left, right)), power)
    convergence = convergence.after(output_change, weight_change)
    finite = is_finite(rounded.factors.left, rounded.factors.right, convergence.gap)
    return rounded.factors, DualityGap(convergence.gap, convergence.closed, finite)
