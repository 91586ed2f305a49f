r"""The best low-rank layer from second moments."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from lowrank_theory._numerics import (
    AnyArray,
    after,
    cast,
    float64,
    in_float64,
    matmul,
    promote,
    relative_rank_cutoff,
    rounding_allowance,
    safe_sqrt,
    symmetric_product,
)
from lowrank_theory._scale import SMALLEST, at_scale_one, exponent, times_power, unit
from lowrank_theory._subspaces import (
    all_eigenvectors,
    lapack_leading_eigenvectors,
    leading_eigenvectors,
    leading_sums,
)
from lowrank_theory.approximations import LowRank
from lowrank_theory.calibration import Calibration, CompressedMoments
from lowrank_theory.recovery._recover import Certificate, Means
from lowrank_theory.recovery._returned import (
    AbstractSensitivity,
    Affine,
    Fit,
    Perturbation,
    Returned,
    is_rounded,
    returned,
    returned_at_every_rank,
)

PARTIAL_FROM = 512  # the smaller side from which a quarter of the eigenvectors costs less than all


class MomentSensitivity(AbstractSensitivity):
    r"""By $\tilde X^\top\tilde X$ and the least-squares layer."""

    gram: Float[Array, "inputs inputs"]
    solution: Float[Array, "inputs outputs"]

    def perturbation(self, change: Float[Array, "inputs rank"]) -> Perturbation:
        r"""By this $\mathrm dL$."""
        moved = matmul(self.gram, change)
        return Perturbation(matmul(self.solution.T, moved), matmul(change.T, moved))


class Eigenproblem(eqx.Module):
    r"""Of whose eigenvectors the best layers are made, and how, at scale one.

    - `matrix`: $C^\top\tilde X^\top\tilde XC$ for the `core` $C$ of the least-squares layer $B$,
      which is $C$ itself or, without a square on its longer side, $CF^\top$ with an orthonormal
      `frame` $F$;
    - `target_square`: the squared norm of the outputs, and `inputs_norm`: the norm of the inputs;
    - `square_scale`: that on which rounding acts on squared errors, and `rounding`: what it does to
      the means;
    - `resolved`: whether no direction of $\tilde X$ was dropped.
    """

    matrix: Float[Array, "size size"]
    core: Float[Array, "inputs size"]
    frame: Float[Array, "outputs size"] | None
    target_square: Float[Array, ""]
    inputs_norm: Float[Array, ""]
    square_scale: Float[Array, ""]
    rounding: Float[Array, ""]
    resolved: Bool[Array, ""]
    power: Int[Array, ""]
    left_power: Int[Array, ""]
    affine: Affine | None
    sensitivity: MomentSensitivity | None

    def of_rank(self, rank: int) -> Fit:
        """The best layer of this rank."""
        vectors, eigenvalues = leading_eigenvectors(self.matrix, rank)
        return self.truncated(vectors, eigenvalues, jnp.asarray(rank))

    def of_every_rank(self) -> Fit:
        """The best layers of all ranks."""
        vectors, eigenvalues = all_eigenvectors(self.matrix)
        return self.truncated(vectors, eigenvalues, jnp.arange(len(vectors) + 1))

    def truncated(
        self,
        vectors: Float[AnyArray, "size width"],
        eigenvalues: Float[AnyArray, " count"],
        ranks: Int[Array, "*ranks"],
    ) -> Fit:
        """The layers of these ranks, of all eigenvectors or the leading ones."""
        right = vectors if self.frame is None else matmul(self.frame, vectors)
        left, width = matmul(self.core, vectors), vectors.shape[1]
        allowance = rounding_allowance(self.square_scale, left.shape[0], right.shape[0])
        attainable = jnp.trace(self.matrix)
        kept = leading_sums(eigenvalues, ranks)
        optimum = jnp.maximum(self.target_square - kept, 0)
        exchanged = jnp.minimum(ranks, len(vectors) - ranks)
        exchanged = jnp.maximum(1, exchanged)  # at least the products are rounded
        doubt = (ranks + 1) * allowance  # of the optimum: the trace, and r eigenvalues
        lower = jnp.where(self.resolved, self.target_square, attainable) - kept - doubt
        lower = jnp.maximum(lower, 0)
        upper = jnp.where(self.resolved, lower, optimum + doubt) + 2 * exchanged * allowance
        return Fit(
            left=left,
            right=jnp.asarray(right).T,
            eigenvalues=jnp.asarray(eigenvalues)[:width],
            optimum=optimum,
            lower=lower,
            upper=upper,
            rounding=self.rounding,
            target_norm=safe_sqrt(jnp.maximum(self.target_square, 0)),
            inputs_norm=self.inputs_norm,
            power=self.power,
            left_power=self.left_power,
            affine=self.affine,
            sensitivity=self.sensitivity,
        )


def scatter_power(scatter: AnyArray, mean: AnyArray) -> Int[Array, ""]:
    """The power of two of the rows that have this scatter and this mean."""
    return exponent(safe_sqrt(jnp.diagonal(jnp.asarray(scatter))), mean)


def eigenproblem(weights: Array, calibration: Calibration, bias: Array | None) -> Eigenproblem:
    """The problem of these moments, centred where there is a bias."""
    centred, moments = bias is not None, calibration.compressed
    weights, weights_power = unit(weights)
    seen_power = inputs_power = scatter_power(calibration.scatter, calibration.mean)
    if moments is not None:
        inputs_power = scatter_power(moments.scatter, moments.mean)
    power = weights_power + seen_power
    calibration = calibration_at_scale_one(calibration, seen_power, inputs_power)
    gram = jnp.asarray(calibration.gram(centred=centred))
    compressed_gram = jnp.asarray(calibration.compressed_gram(centred=centred))

    weights_square, samples = jnp.sum(weights**2), jnp.asarray(calibration.count)
    square_scale = weights_square * jnp.trace(gram)
    rounding = jnp.asarray(0.0)
    affine = None
    if bias is not None:
        mean_square = samples * jnp.sum(calibration.mean**2)
        square_scale = square_scale + weights_square * safe_sqrt(jnp.trace(gram) * mean_square)
        rounding = rounding_allowance(safe_sqrt(weights_square * mean_square), *weights.shape)
        input_mean = jnp.asarray(calibration.layer_input_mean)
        affine = Affine(bias, matmul(calibration.mean, weights), input_mean, samples)
    # Products below the normal numbers were lost from the sums, one for each sample at most.
    lost = samples * weights.shape[0] * times_power(SMALLEST, -2 * seen_power)
    lost = jnp.where(jnp.trace(gram) > 0, lost, 0)
    square_scale = square_scale + weights_square * lost / np.finfo(np.float64).eps
    solution, resolved, target_square = weights, jnp.asarray(True), None
    if calibration.compressed is not None:
        # One product for both: of one that only a sum uses, XLA makes a slow loop.
        both = jnp.concatenate([gram, calibration.cross_gram(centred=centred)])
        half, crossed = jnp.split(matmul(both, weights), 2)
        target_square = jnp.sum(weights * half)
        compressed_gram = after(weights, compressed_gram)
        cutoff = relative_rank_cutoff(gram.shape) * gram.shape[0]
        inverse = jnp.linalg.pinv(compressed_gram, rtol=cutoff, hermitian=True)
        solution = matmul(inverse, crossed)
        square_scale = square_scale * jnp.linalg.norm(inverse) * jnp.trace(compressed_gram)
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
        target_square=jnp.trace(matrix) if target_square is None else target_square,
        inputs_norm=safe_sqrt(jnp.trace(compressed_gram)),
        square_scale=square_scale,
        rounding=rounding,
        resolved=resolved,
        power=power,
        left_power=power - inputs_power,
        affine=affine,
        sensitivity=MomentSensitivity(compressed_gram, solution),
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


@functools.partial(in_float64, like=0)
def activation_weighted_from_moments(
    weights: Float[Array, "inputs outputs"],
    calibration: Calibration,
    bias: Float[Array, " outputs"] | None = None,
    *,
    rank: int,
    dtype: Any = None,
) -> Returned:
    r"""The pure function beneath `ActivationWeighted`, from second moments: factors, new bias,
    certificate.

    Eigenvectors of $B^\top\tilde X^\top\tilde XB$ on the smaller side of $B$. A symmetric
    perturbation $\Delta$ of that n x n matrix costs at most $2\min(r, n-r)\lVert\Delta\rVert$ in
    squared error (paper_notes/numerical_route.md), and rounding perturbs it on the scale of $\lVert
    W\rVert^2\lVert X\rVert^2$, not of its own norm: the certificate compares the two with the
    least that the optimum can be, which is computed with the same rounding.
    Directions of $\tilde X$ too weak for the Gram may hold as much of the outputs as is left: where
    some were dropped, the certificate counts on that. Factors and bias have the dtype of the
    weights, or the `dtype` asked for.
    """
    return returned(eigenproblem(weights, calibration, bias).of_rank(rank), dtype)


@functools.partial(in_float64, like=0)
def every_rank_from_moments(
    weights: Array, calibration: Calibration, bias: Array | None, *, dtype: Any = None
) -> tuple[LowRank, Means | None, Certificate]:
    """The same at all ranks."""
    fit = eigenproblem(weights, calibration, bias).of_every_rank()
    return returned_at_every_rank(fit, dtype)


def by_leading_eigenvectors(
    weights: AnyArray, calibration: Calibration, bias: AnyArray | None, *, rank: int
) -> Returned:
    """`activation_weighted_from_moments`, but where fewer eigenvectors pay, in two programs with
    the leading ones between them: within a program, JAX finds all.
    """
    arrays = weights, calibration, bias
    size = min(weights.shape)
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arrays))
    if traced or jax.default_backend() != "cpu" or size < PARTIAL_FROM or 4 * rank > size:
        return activation_weighted_from_moments(weights, calibration, bias, rank=rank)
    with float64():
        dtype = np.dtype(weights.dtype)
        problem = _compiled_eigenproblem(*arrays)
        if not is_rounded(dtype):
            problem = dataclasses.replace(problem, sensitivity=None)  # and its memory is free
        vectors, eigenvalues = lapack_leading_eigenvectors(problem.matrix, rank)
        return cast(_compiled_return(problem, vectors, eigenvalues, rank, dtype=dtype), dtype)


@jax.jit
def _compiled_eigenproblem(*arrays: Any) -> Eigenproblem:
    return eigenproblem(*promote(arrays))


@functools.partial(jax.jit, static_argnames=("dtype",))
def _compiled_return(
    problem: Eigenproblem, vectors: Array, eigenvalues: Array, rank: Any, *, dtype: np.dtype
) -> Returned:
    return returned(problem.truncated(vectors, eigenvalues, jnp.asarray(rank)), dtype)
