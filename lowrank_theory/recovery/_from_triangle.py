r"""The best low-rank layer from a triangular factor, which stands for the rows."""

import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lowrank_theory._numerics import in_float64, matmul
from lowrank_theory._scale import at_scale_one, exponent, unit
from lowrank_theory.approximations import LowRank
from lowrank_theory.calibration import TriangularCalibration
from lowrank_theory.recovery._least_squares import RowProblem, column_norms, least_squares
from lowrank_theory.recovery._recover import Certificate, Means
from lowrank_theory.recovery._returned import Affine, Returned, returned, returned_at_every_rank


def problem_of_triangle(
    weights: Array, calibration: TriangularCalibration, bias: Array | None
) -> RowProblem:
    """The problem of the rows for which a triangular factor stands."""
    weights, weights_power = unit(weights)
    seen_power = triangle_power(calibration)
    means, samples = at_scale_one(calibration.mean, seen_power), jnp.asarray(calibration.count)
    inputs_power, input_mean = seen_power, means
    compressed, rows = calibration.rows()
    rows = at_scale_one(rows, seen_power)
    if compressed is not None:
        inputs_power = exponent(compressed)
        compressed = at_scale_one(compressed, inputs_power)
        input_mean = at_scale_one(calibration.layer_input_mean, inputs_power)
    layer_inputs, outputs = rows if compressed is None else compressed, matmul(rows, weights)
    # Rounding adds up over the blocks, of which there are no more than samples.
    rounds = jnp.sqrt(jnp.maximum(samples / rows.shape[0], 1))
    norms = rounds * column_norms(layer_inputs)
    outputs_scale = rounds * jnp.linalg.norm(rows) * jnp.linalg.norm(weights)
    power, affine = weights_power + seen_power, None
    if bias is not None:
        layer_inputs, outputs = layer_inputs[1:], outputs[1:]
        affine = Affine(bias, matmul(means, weights), input_mean, samples)
    solution = weights if compressed is None else None
    left_power = power - inputs_power
    return RowProblem(
        layer_inputs, outputs, solution, norms, outputs_scale, power, left_power, affine
    )


def triangle_power(calibration: TriangularCalibration) -> Int[Array, ""]:
    """The power of two by which its rows are divided."""
    return exponent(calibration.triangle, calibration.mean)


@functools.partial(in_float64, like=0)
def activation_weighted_from_triangle(
    weights: Float[Array, "inputs outputs"],
    calibration: TriangularCalibration,
    bias: Float[Array, " outputs"] | None = None,
    *,
    rank: int,
    dtype: Any = None,
) -> Returned:
    r"""The pure function beneath `ActivationWeighted`, from a triangular factor: factors, new bias,
    certificate.

    The factor stands for the rows, so the route is theirs. How precisely these were stored is not
    known, and all directions of $\tilde X$ that they tell apart in float64 count. Factors and bias
    have the dtype of the weights, or the `dtype` asked for.
    """
    problem = problem_of_triangle(weights, calibration, bias)
    return returned(least_squares(problem).of_rank(rank), dtype)


@functools.partial(in_float64, like=0)
def every_rank_from_triangle(
    weights: Array, calibration: TriangularCalibration, bias: Array | None, *, dtype: Any = None
) -> tuple[LowRank, Means | None, Certificate]:
    """The same at all ranks."""
    problem = problem_of_triangle(weights, calibration, bias)
    return returned_at_every_rank(least_squares(problem).of_every_rank(), dtype)
