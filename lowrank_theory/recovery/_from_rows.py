r"""The best low-rank layer from rows."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank_theory._numerics import in_float64, matmul
from lowrank_theory._scale import unit
from lowrank_theory.approximations import LowRank
from lowrank_theory.recovery._least_squares import RowProblem, column_norms, least_squares
from lowrank_theory.recovery._recover import Certificate, Means
from lowrank_theory.recovery._returned import Affine, Returned, returned, returned_at_every_rank


def problem_of_rows(
    weights: Array | None,
    activations: Array,
    compressed_activations: Array | None,
    outputs: Array | None,
    bias: Array | None,
) -> RowProblem:
    """The problem of these rows. A bias is in no product: it cannot be lost beside one."""
    activations, seen_power = unit(activations)
    layer_inputs, inputs_power, solution = activations, seen_power, None
    if compressed_activations is not None:
        layer_inputs, inputs_power = unit(compressed_activations)
    if outputs is None:
        assert weights is not None  # `Observed` has one or the other
        weights, power = unit(weights)
        outputs, power = matmul(activations, weights), power + seen_power
        outputs_scale = jnp.linalg.norm(activations) * jnp.linalg.norm(weights)
        solution = weights if compressed_activations is None else None
    else:
        outputs, power = unit(outputs)
        outputs_scale = jnp.linalg.norm(outputs)
        bias = None if bias is None else jnp.zeros_like(bias)
    norms, affine = column_norms(layer_inputs), None
    if bias is not None:
        samples = jnp.asarray(float(layer_inputs.shape[0]))
        affine = Affine(bias, jnp.mean(outputs, axis=0), jnp.mean(layer_inputs, axis=0), samples)
        layer_inputs, outputs = layer_inputs - affine.input_mean, outputs - affine.output_mean
    left_power = power - inputs_power
    return RowProblem(
        layer_inputs, outputs, solution, norms, outputs_scale, power, left_power, affine
    )


@in_float64
def activation_weighted(
    weights: Float[Array, "inputs outputs"] | None,
    activations: Float[Array, "samples inputs"],
    compressed_activations: Float[Array, "samples inputs"] | None = None,
    outputs: Float[Array, "samples outputs"] | None = None,
    bias: Float[Array, " outputs"] | None = None,
    *,
    rank: int,
    resolution: float = float(np.finfo(np.float64).eps),
    dtype: Any = None,
) -> Returned:
    r"""The pure function beneath `ActivationWeighted`, from rows: factors, new bias, certificate.

    Works under `jit`, `vmap` and `grad`. The product of the factors is differentiable where
    $s_r(PY) > s_{r+1}(PY)$ and, if $\tilde X \ne X$, where the rank of $\tilde X$ is locally
    constant. `resolution` is the machine epsilon with which the activations were stored; it sets
    the one rank cut-off of the pseudo-inverse. Factors and bias have the common dtype of the
    inputs, or the `dtype` asked for.
    """
    problem = problem_of_rows(weights, activations, compressed_activations, outputs, bias)
    return returned(least_squares(problem, resolution).of_rank(rank), dtype)


@in_float64
def every_rank_from_rows(
    weights: Array | None,
    activations: Array,
    compressed_activations: Array | None,
    outputs: Array | None,
    bias: Array | None,
    *,
    resolution: float,
    dtype: Any = None,
) -> tuple[LowRank, Means | None, Certificate]:
    """The same at all ranks."""
    problem = problem_of_rows(weights, activations, compressed_activations, outputs, bias)
    return returned_at_every_rank(least_squares(problem, resolution).of_every_rank(), dtype)
