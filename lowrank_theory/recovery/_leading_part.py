"""Low-rank factors of a convex fit, and what its duality gap says of them."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lowrank_theory._numerics import AnyArray, InFloat64, float_dtype, in_float64, matmul, safe_sqrt
from lowrank_theory._scale import times_power, unit
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._low_rank import LowRank
from lowrank_theory.recovery._recover import AbstractMethod, DualityGap, Recovery, is_finite
from lowrank_theory.recovery._returned import moved_outputs, stored
from lowrank_theory.recovery._subspaces import leading_right_vectors


class Reached(InFloat64):
    r"""How far a convex fit $F = \tilde XZ$ came.

    - `gap`: the objective exceeds its minimum by at most this much, and `allowed`: by how much it
      may, to be `closed`;
    - `slope`, `weight_slope`: moving the outputs by $D$ and the weights by $D'$ adds at most
      slope $\lVert D\rVert_F + \tfrac12\lVert D\rVert_F^2 +$ weight slope $\lVert D'\rVert_F$;
    - `room`, `weight_room`: how far these may move, so that the ball is left by no more than the
      tolerance.
    """

    gap: Float[AnyArray, ""]
    allowed: Float[AnyArray, ""]
    closed: Bool[AnyArray, ""]
    slope: Float[AnyArray, ""]
    weight_slope: Float[AnyArray, ""]
    room: Float[AnyArray, ""]
    weight_room: Float[AnyArray, ""]


def leading_part(
    method: AbstractMethod,
    observed: Observed,
    weights: Float[AnyArray, "inputs outputs"],
    preactivations: Float[AnyArray, "samples outputs"],
    reached: Reached,
    rank: int,
) -> Recovery:
    """The `rank` leading components of a convex fit, whose dense `weights` give these
    `preactivations`.
    """
    inputs = observed.layer_inputs
    dtype = float_dtype(inputs, observed.weights, observed.outputs)
    factors, certificate = _leading(
        weights, preactivations, inputs, reached, rank=rank, dtype=dtype
    )
    return Recovery(factors, None, certificate, method)


@in_float64
def _leading(
    weights: Array,
    preactivations: Array,
    layer_inputs: Array,
    reached: Reached,
    *,
    rank: int,
    dtype: np.dtype,
) -> tuple[LowRank, DualityGap]:
    weights, power = unit(weights)
    preactivations, _ = unit(preactivations)
    layer_inputs, inputs_power = unit(layer_inputs)
    vectors, _ = leading_right_vectors(preactivations, rank)
    left, right = matmul(weights, vectors), vectors.T
    rounded = stored(left, right, power, dtype)
    moved = safe_sqrt(jnp.sum(moved_outputs(layer_inputs, left, right, rounded) ** 2))
    moved = times_power(moved, power + inputs_power)
    identity = jnp.eye(left.shape[0])
    changed = times_power(
        safe_sqrt(jnp.sum(moved_outputs(identity, left, right, rounded) ** 2)), power
    )
    gap = reached.gap + (reached.slope + moved / 2) * moved + reached.weight_slope * changed
    finite = is_finite(rounded.factors.left, rounded.factors.right) & jnp.isfinite(gap)
    inside = (moved <= reached.room) & (changed <= reached.weight_room)
    closed = reached.closed & inside & (gap <= reached.allowed)
    return rounded.factors, DualityGap(gap, closed, finite)
