"""What a layer can express of its outputs, for methods that act on its singular values."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lowrank_theory._numerics import (
    after,
    matmul,
    relative_rank_cutoff,
    resolution,
    rounding_allowance,
    safe_sqrt,
)
from lowrank_theory._scale import equilibrated, times_power, unit
from lowrank_theory._subspaces import pseudo_inverse
from lowrank_theory.approximations import LowRank
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._checks import check_no_bias
from lowrank_theory.recovery._recover import (
    NEAR_OPTIMAL,
    AbstractMethod,
    Certificate,
    Recovery,
    is_finite,
)
from lowrank_theory.recovery._returned import output_change, scaled_certificate, stored


class Attainable(eqx.Module):
    r"""$\tilde X$, its `condition` and its `rank` (of columns alike in size), the least-squares
    `solution` $\tilde X^+Y$, the `fitted` outputs $PY$, and $Y$, at scale one: outputs are $2^p$,
    and weights $2^q$ times these. `weak` is a basis of columns that were too weak to be used.
    """

    layer_inputs: Float[Array, "samples inputs"]
    condition: Float[Array, ""]
    rank: Float[Array, ""]
    solution: Float[Array, "inputs outputs"]
    fitted: Float[Array, "samples outputs"]
    outputs: Float[Array, "samples outputs"]
    power: Int[Array, ""]
    left_power: Int[Array, ""]
    weak: Float[Array, "samples count"]

    def returned(
        self,
        right: Float[Array, "outputs rank"],
        vectors: Float[Array, "outputs rank"],
        discarded: Float[Array, ""],
        dtype: np.dtype,
    ) -> tuple[LowRank, Certificate]:
        r"""$BHV_r$ and $V_r^\top$ with $HV_r$ = `right`, in this dtype, and the certificate of
        factors whose outputs miss the fitted ones by this `discarded` square.
        """
        left = matmul(self.solution, right)
        rounded = stored(left, vectors.T, self.left_power, dtype)
        change = output_change(self.layer_inputs, left, vectors.T, rounded)
        inputs, outputs = self.layer_inputs, self.outputs
        norm = safe_sqrt(jnp.sum(outputs**2))
        scale = self.condition * norm
        allowance = rounding_allowance(scale, *inputs.shape, outputs.shape[1])
        error = jnp.sum((outputs - self.fitted) ** 2) + discarded
        lower = jnp.maximum(error - jnp.sum(matmul(self.weak.T, outputs) ** 2), 0)
        rounding = 2 * allowance + safe_sqrt(jnp.sum(change**2))
        certificate = scaled_certificate(
            safe_sqrt(error),
            safe_sqrt(error) - safe_sqrt(lower) + rounding,
            norm,
            is_finite(rounded.factors.left, rounded.factors.right, inputs),
            self.power,
            NEAR_OPTIMAL,
        )
        return rounded.factors, certificate


def fit_outputs(
    method: AbstractMethod,
    observed: Observed,
    rank: int,
    solve: Callable[..., tuple[LowRank, Certificate]],
    *parameters: float | None,
) -> Recovery:
    """The recovery by a function of what the layer sees, of the outputs to be fitted, and of the
    parameters of the method. Raises `ValueError` without activations, or with a bias.
    """
    check_no_bias(method, observed)
    factors, certificate = solve(
        observed.layer_inputs,
        observed.exact_outputs,
        *parameters,
        rank=rank,
        resolution=resolution(observed.layer_inputs),
        dtype=observed.dtype,
    )
    return Recovery(factors, None, certificate, method)


def attainable(
    layer_inputs: Float[Array, "samples inputs"],
    outputs: Float[Array, "samples outputs"],
    resolution: float,
) -> Attainable:
    """By the pseudo-inverse, with the rank cut-off of this resolution."""
    layer_inputs, inputs_power = unit(layer_inputs)
    outputs, power = unit(outputs)
    layer_inputs = after(outputs, layer_inputs)
    cutoff = relative_rank_cutoff(layer_inputs.shape, resolution)
    scaled_inputs, powers = equilibrated(layer_inputs)
    inverse, weak = pseudo_inverse(scaled_inputs, cutoff)
    solution = matmul(inverse, outputs)
    return Attainable(
        layer_inputs,
        jnp.linalg.norm(scaled_inputs) * jnp.linalg.norm(inverse),
        jnp.round(jnp.sum(jax.lax.stop_gradient(inverse.T * scaled_inputs))),  # the trace of P
        times_power(solution, -powers[:, None]),
        matmul(scaled_inputs, solution),
        outputs,
        power,
        power - inputs_power,
        weak,
    )
