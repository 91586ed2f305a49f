"""What a layer can express of its outputs, for methods that act on its singular values."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import (
    after,
    matmul,
    relative_rank_cutoff,
    rounding_allowance,
    safe_sqrt,
)
from lowrank_theory.recovery._low_rank import LowRank
from lowrank_theory.recovery._recover import Certificate, is_finite


class Attainable(eqx.Module):
    r"""$\tilde X$, $\tilde X^+$, the least squares `solution` $\tilde X^+Y$, the `fitted` outputs
    $PY$, and $Y$.
    """

    layer_inputs: Float[Array, "samples inputs"]
    inverse: Float[Array, "inputs samples"]
    solution: Float[Array, "inputs outputs"]
    fitted: Float[Array, "samples outputs"]
    outputs: Float[Array, "samples outputs"]

    def certificate(self, factors: LowRank, left_out: Float[Array, ""]) -> Certificate:
        """The certificate of factors that leave out this energy of the fitted outputs."""
        inputs, outputs = self.layer_inputs, self.outputs
        norm = jnp.linalg.norm(outputs)
        scale = jnp.linalg.norm(inputs) * jnp.linalg.norm(self.inverse) * norm
        return Certificate(
            optimal_error=safe_sqrt(jnp.sum((outputs - self.fitted) ** 2) + left_out),
            excess_bound=2 * rounding_allowance(scale, *inputs.shape, outputs.shape[1]),
            target_norm=norm,
            finite=is_finite(factors.left, factors.right),
        )


def attainable(
    layer_inputs: Float[Array, "samples inputs"],
    outputs: Float[Array, "samples outputs"],
    resolution: float,
) -> Attainable:
    """By the pseudo-inverse, with the rank cut-off of this resolution."""
    layer_inputs = after(outputs, layer_inputs)
    cutoff = relative_rank_cutoff(layer_inputs.shape, resolution)
    inverse = jnp.linalg.pinv(layer_inputs, rtol=cutoff)
    solution = matmul(inverse, outputs)
    return Attainable(layer_inputs, inverse, solution, matmul(layer_inputs, solution), outputs)
