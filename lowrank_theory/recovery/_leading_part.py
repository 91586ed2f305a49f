"""Low-rank factors of a convex fit, and what its duality gap says of them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lowrank_theory._numerics import AnyArray, InFloat64, in_float64, matmul
from lowrank_theory._scale import norm, times_power, unit
from lowrank_theory._subspaces import leading_right_vectors
from lowrank_theory.approximations import LowRank
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._recover import AbstractMethod, DualityGap, Recovery, is_finite
from lowrank_theory.recovery._returned import stored


class Convergence(InFloat64):
    r"""How far a convex fit $F = \tilde XZ$ came.

    - `gap`: the objective exceeds its minimum by at most this much, and `allowed`: by how much it
      may, to be `closed`;
    - `slope`, `weight_slope`: moving the outputs by $D$ and the weights by $D'$ adds at most
      slope $\lVert D\rVert_F + \tfrac12\lVert D\rVert_F^2 +$ weight slope $\lVert D'\rVert_F$;
    - `room`, `weight_room`: how far these may move, so that the ball is left by no more than the
      tolerance.
    """

    gap: Float[Array, ""]
    allowed: Float[Array, ""]
    closed: Bool[Array, ""]
    slope: Float[Array, ""]
    weight_slope: Float[Array, ""]
    room: Float[Array, ""]
    weight_room: Float[Array, ""]

    def after(self, moved: Array, changed: Array) -> "Convergence":
        """How far it is after outputs and weights have moved by so much."""
        added = (self.slope + moved / 2) * moved + self.weight_slope * changed
        gap = jnp.maximum(self.gap, 0) + added  # its own rounding may leave it below zero
        inside = (moved <= self.room) & (changed <= self.weight_room) & jnp.isfinite(gap)
        closed = self.closed & inside & (gap <= self.allowed)
        return dataclasses.replace(self, gap=gap, closed=closed)


def leading_part(
    method: AbstractMethod,
    observed: Observed,
    weights: Float[AnyArray, "inputs outputs"],
    preactivations: Float[AnyArray, "samples outputs"],
    reached: Convergence,
    rank: int,
) -> Recovery:
    """The `rank` leading components of a convex fit, whose dense `weights` give these
    `preactivations`.
    """
    factors, certificate = _leading(
        weights,
        preactivations,
        observed.layer_inputs,
        reached,
        rank=rank,
        dtype=observed.dtype,
    )
    return Recovery(factors, None, certificate, method)


@in_float64
def _leading(
    weights: Array,
    preactivations: Array,
    layer_inputs: Array,
    reached: Convergence,
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
    back = power + inputs_power - outputs_power
    moved = times_power(
        norm(times_power(matmul(layer_inputs, *found), back) - leading), outputs_power
    )
    changed = times_power(norm(matmul(*found) - matmul(left, right)), power)
    reached = reached.after(moved, changed)
    finite = is_finite(rounded.factors.left, rounded.factors.right, reached.gap)
    return rounded.factors, DualityGap(reached.gap, reached.closed, finite)
