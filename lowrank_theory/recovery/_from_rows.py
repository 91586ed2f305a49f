r"""The best low-rank layer from rows, or from a triangular factor that stands for them."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lowrank_theory._numerics import (
    after,
    matmul,
    relative_rank_cutoff,
    rounding_allowance,
    safe_sqrt,
)
from lowrank_theory._scale import at_scale_one, equilibrated, exponent, times_power, unit
from lowrank_theory._subspaces import all_right_vectors, leading_right_vectors, pseudo_inverse
from lowrank_theory.calibration import TriangularCalibration
from lowrank_theory.recovery._every_rank import at_ranks, beyond
from lowrank_theory.recovery._returned import Affine, Fit, Response


class Rows(eqx.Module):
    r"""A problem from rows, at scale one: $\tilde X$ and $Y$ (centred, for an affine layer), and
    the least-squares layer where it is known.

    `sizes` (the norms of the columns) and `formed` are those on which rounding acts on the inputs
    and on the outputs, even where a mean was taken out; outputs are $2^p$ and weights $2^q$ times
    those at scale one.
    """

    layer_inputs: Float[Array, "samples inputs"]
    outputs: Float[Array, "samples outputs"]
    solution: Float[Array, "inputs outputs"] | None
    sizes: Float[Array, " inputs"]
    formed: Float[Array, ""]
    power: Int[Array, ""]
    left_power: Int[Array, ""]
    affine: Affine | None


def problem_of_rows(
    weights: Array | None,
    activations: Array,
    compressed_activations: Array | None,
    outputs: Array | None,
    bias: Array | None,
) -> Rows:
    """The problem of these rows. A bias is in no product: it cannot be lost beside one."""
    activations, seen_power = unit(activations)
    layer_inputs, inputs_power, solution = activations, seen_power, None
    if compressed_activations is not None:
        layer_inputs, inputs_power = unit(compressed_activations)
    if outputs is None:
        assert weights is not None  # `Observed` has one or the other
        weights, power = unit(weights)
        outputs, power = matmul(activations, weights), power + seen_power
        formed = jnp.linalg.norm(activations) * jnp.linalg.norm(weights)
        solution = weights if compressed_activations is None else None
    else:
        outputs, power = unit(outputs)
        formed, bias = jnp.linalg.norm(outputs), None if bias is None else jnp.zeros_like(bias)
    sizes, affine = _column_norms(layer_inputs), None
    if bias is not None:
        samples = jnp.asarray(float(layer_inputs.shape[0]))
        affine = Affine(bias, jnp.mean(outputs, axis=0), jnp.mean(layer_inputs, axis=0), samples)
        layer_inputs, outputs = layer_inputs - affine.input_mean, outputs - affine.output_mean
    return Rows(layer_inputs, outputs, solution, sizes, formed, power, power - inputs_power, affine)


def _column_norms(matrix: Array) -> Array:
    return safe_sqrt(jnp.sum(matrix**2, axis=0))


def problem_of_triangle(
    weights: Array, calibration: TriangularCalibration, bias: Array | None
) -> Rows:
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
    sizes = rounds * _column_norms(layer_inputs)
    formed = rounds * jnp.linalg.norm(rows) * jnp.linalg.norm(weights)
    power, affine = weights_power + seen_power, None
    if bias is not None:
        layer_inputs, outputs = layer_inputs[1:], outputs[1:]
        affine = Affine(bias, matmul(means, weights), input_mean, samples)
    solution = weights if compressed is None else None
    return Rows(layer_inputs, outputs, solution, sizes, formed, power, power - inputs_power, affine)


def triangle_power(calibration: TriangularCalibration) -> Int[Array, ""]:
    """The power of two by which its rows are divided."""
    return exponent(calibration.triangle, calibration.mean)


class Seen(eqx.Module):
    r"""How the layer answers to small changes of its left factor: by $\tilde X$ (the identity where
    it is none) and the attainable outputs $F$.
    """

    inputs: Float[Array, "samples inputs"] | None
    outputs: Float[Array, "samples outputs"]

    def response(self, change: Float[Array, "inputs rank"]) -> Response:
        """What it answers."""
        moved = change if self.inputs is None else matmul(self.inputs, change)
        return Response(matmul(self.outputs.T, moved), matmul(moved.T, moved))


def fitted_to_rows(
    rows: Rows, *, rank: int | None, resolution: float = float(np.finfo(np.float64).eps)
) -> tuple[Fit, Seen]:
    """The best layer from rows. Without a `rank`: of all ranks."""
    layer_inputs, outputs, solution = rows.layer_inputs, rows.outputs, rows.solution
    attainable, formed, left_out = outputs, rows.formed, jnp.asarray(0.0)
    if solution is None:
        layer_inputs = after(outputs, layer_inputs)  # whose decomposition may make the outputs
        cutoff = relative_rank_cutoff(layer_inputs.shape, resolution)
        alike, powers = equilibrated(layer_inputs)
        inverse, others = pseudo_inverse(alike, cutoff)
        # Weak directions that the layer does without might have served the best one.
        left_out = jnp.sum(matmul(others.T, outputs) ** 2)
        solution = matmul(inverse, outputs)
        # Once more for what is left: then only that is rounded on the scale of the inverse.
        left = outputs - matmul(alike, solution)
        solution = solution + matmul(inverse, left)
        attainable = matmul(alike, solution)
        amplified = jnp.linalg.norm(inverse) * safe_sqrt(jnp.sum(left**2))
        size = jnp.linalg.norm(times_power(rows.sizes, -powers))
        formed = formed + size * (jnp.linalg.norm(solution) + amplified)
        solution = times_power(solution, -powers[:, None])
    if rank is None:
        vectors, energies = all_right_vectors(attainable)
        vectors = vectors[:, : min(solution.shape)]
    else:
        vectors, energies = leading_right_vectors(attainable, rank)
    unattainable = jnp.sum((outputs - attainable) ** 2)
    optimum = at_ranks(rank, lambda rank: unattainable + beyond(energies, rank), vectors.shape[1])
    fit = Fit(
        left=matmul(solution, vectors),
        right=vectors.T,
        energies=energies[: vectors.shape[1]],
        optimum=optimum,
        least=jnp.maximum(optimum - left_out, 0),
        most=optimum,
        slack=2 * rounding_allowance(formed, *layer_inputs.shape, outputs.shape[1]),
        target=safe_sqrt(jnp.sum(outputs**2)),
        size=jnp.linalg.norm(rows.sizes),
        power=rows.power,
        left_power=rows.left_power,
    )
    return fit, Seen(layer_inputs, attainable)
