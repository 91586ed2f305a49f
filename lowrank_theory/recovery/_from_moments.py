r"""The best low-rank layer from second moments."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lowrank_theory._numerics import (
    AnyArray,
    after,
    matmul,
    relative_rank_cutoff,
    rounding_allowance,
    safe_sqrt,
    symmetric_product,
)
from lowrank_theory._scale import SMALLEST, at_scale_one, exponent, times_power, unit
from lowrank_theory.calibration import Calibration, CompressedMoments
from lowrank_theory.recovery._every_rank import at_ranks, within
from lowrank_theory.recovery._returned import Affine, Fit, Response


class SeenMoments(eqx.Module):
    r"""The same by $\tilde X^\top\tilde X$ and the least-squares layer."""

    gram: Float[Array, "inputs inputs"]
    solution: Float[Array, "inputs outputs"]

    def response(self, change: Float[Array, "inputs rank"]) -> Response:
        """What it answers."""
        moved = matmul(self.gram, change)
        return Response(matmul(self.solution.T, moved), matmul(change.T, moved))


class Eigenproblem(eqx.Module):
    r"""What the eigenvectors are asked of, and what turns them into a layer, at scale one.

    - `matrix`: $C^\top\tilde X^\top\tilde XC$ for the `core` $C$ of the least-squares layer $B$,
      which is $C$ itself or, without a square on its longer side, $CF^\top$ with an orthonormal
      `frame` $F$;
    - `total`: the squared norm of the outputs, and `size`: the norm of the inputs;
    - `magnitude`: the scale on which rounding acts on squared errors, and `shifted`: what it does
      to the means;
    - `resolved`: whether no direction of $\tilde X$ was dropped.
    """

    matrix: Float[Array, "size size"]
    core: Float[Array, "inputs size"]
    frame: Float[Array, "outputs size"] | None
    total: Float[Array, ""]
    size: Float[Array, ""]
    magnitude: Float[Array, ""]
    shifted: Float[Array, ""]
    resolved: Bool[Array, ""]
    power: Int[Array, ""]
    left_power: Int[Array, ""]
    affine: Affine | None
    seen: SeenMoments | None


def scatter_power(scatter: AnyArray, mean: AnyArray) -> Int[Array, ""]:
    """The power of two of the rows that have this scatter and this mean."""
    return exponent(safe_sqrt(jnp.diagonal(jnp.asarray(scatter))), mean)


def eigenproblem(weights: Array, calibration: Calibration, bias: Array | None) -> Eigenproblem:
    centred, moments = bias is not None, calibration.compressed
    weights, weights_power = unit(weights)
    seen_power = inputs_power = scatter_power(calibration.scatter, calibration.mean)
    if moments is not None:
        inputs_power = scatter_power(moments.scatter, moments.mean)
    power = weights_power + seen_power
    calibration = calibration_at_scale_one(calibration, seen_power, inputs_power)
    gram = jnp.asarray(calibration.gram(centred=centred))
    compressed_gram = jnp.asarray(calibration.compressed_gram(centred=centred))

    energy, samples = jnp.sum(weights**2), jnp.asarray(calibration.count)
    magnitude = energy * jnp.trace(gram)
    shifted = jnp.asarray(0.0)
    affine = None
    if bias is not None:
        mean_energy = samples * jnp.sum(calibration.mean**2)
        magnitude = magnitude + energy * safe_sqrt(jnp.trace(gram) * mean_energy)
        shifted = rounding_allowance(safe_sqrt(energy * mean_energy), *weights.shape)
        input_mean = jnp.asarray(calibration.layer_input_mean)
        affine = Affine(bias, matmul(calibration.mean, weights), input_mean, samples)
    # Products below the normal numbers were lost from the sums, one for each sample at most.
    lost = samples * weights.shape[0] * times_power(SMALLEST, -2 * seen_power)
    lost = jnp.where(jnp.trace(gram) > 0, lost, 0)
    magnitude = magnitude + energy * lost / np.finfo(np.float64).eps
    solution, resolved, total = weights, jnp.asarray(True), None
    if calibration.compressed is not None:
        # One product for both: of one that only a sum uses, XLA makes a slow loop.
        both = jnp.concatenate([gram, calibration.cross_gram(centred=centred)])
        half, crossed = jnp.split(matmul(both, weights), 2)
        total = jnp.sum(weights * half)
        compressed_gram = after(weights, compressed_gram)
        cutoff = relative_rank_cutoff(gram.shape) * gram.shape[0]
        inverse = jnp.linalg.pinv(compressed_gram, rtol=cutoff, hermitian=True)
        solution = matmul(inverse, crossed)
        magnitude = magnitude * jnp.linalg.norm(inverse) * jnp.trace(compressed_gram)
        active = jnp.count_nonzero(jnp.diagonal(compressed_gram))  # a dead input hides nothing
        resolved = jnp.sum(inverse * compressed_gram) > active - 0.5  # the trace of a projector

    inputs, outputs = weights.shape
    core, frame = solution, None
    if outputs > inputs:  # the smaller problem, to be turned by the frame
        frame, triangle = jnp.linalg.qr(solution.T)
        core = triangle.T
    matrix = symmetric_product(core, matmul(compressed_gram, core))
    return Eigenproblem(
        matrix=matrix,
        core=core,
        frame=frame,
        total=jnp.trace(matrix) if total is None else total,
        size=safe_sqrt(jnp.trace(compressed_gram)),
        magnitude=magnitude,
        shifted=shifted,
        resolved=resolved,
        power=power,
        left_power=power - inputs_power,
        affine=affine,
        seen=SeenMoments(compressed_gram, solution),
    )


def calibration_at_scale_one(
    calibration: Calibration, power: Array, compressed_power: Array
) -> Calibration:
    r"""Of rows divided by $2^p$, and compressed ones by another power of two."""
    moments = calibration.compressed
    if moments is not None:
        moments = CompressedMoments(
            at_scale_one(moments.mean, compressed_power),
            at_scale_one(moments.cross_scatter, power + compressed_power),
            at_scale_one(moments.scatter, 2 * compressed_power),
        )
    return dataclasses.replace(
        calibration,
        mean=at_scale_one(calibration.mean, power),
        scatter=at_scale_one(calibration.scatter, 2 * power),
        compressed=moments,
    )


def solved(asked: Eigenproblem, vectors: Array, energies: Array, *, rank: int | None) -> Fit:
    """The layer of these eigenvectors, all of them or the leading ones."""
    right = vectors if asked.frame is None else matmul(asked.frame, vectors)
    left, width = matmul(asked.core, vectors), vectors.shape[1]
    allowance = rounding_allowance(asked.magnitude, left.shape[0], right.shape[0])
    attainable = jnp.trace(asked.matrix)

    def bounds(rank: int | Array) -> tuple[Array, Array, Array]:
        kept = within(energies, rank)
        optimum = jnp.maximum(asked.total - kept, 0)
        pairs = jnp.maximum(1, jnp.minimum(rank, len(vectors) - rank))  # at least the products
        doubt = (rank + 1) * allowance  # of the optimum: the trace, and r eigenvalues
        least = jnp.where(asked.resolved, asked.total, attainable) - kept - doubt
        least = jnp.maximum(least, 0)
        most = jnp.where(asked.resolved, least, optimum + doubt) + 2 * pairs * allowance
        return optimum, least, most

    optimum, least, most = at_ranks(rank, bounds, width)
    return Fit(
        left=left,
        right=right.T,
        energies=energies[:width],
        optimum=optimum,
        least=least,
        most=most,
        slack=asked.shifted,
        target=safe_sqrt(jnp.maximum(asked.total, 0)),
        size=asked.size,
        power=asked.power,
        left_power=asked.left_power,
    )
