r"""Data-driven recovery: the best rank-r layer for the activations that it really sees.

$$\min_{\operatorname{rank} Z\le r} \lVert Y - \tilde XZ\rVert_F^2
  = \lVert(I-P)Y\rVert_F^2 + \sum_{i>r}s_i(PY)^2,
  \qquad Z = \tilde X^+[PY]_r = BV_rV_r^\top,$$

with $P$ the projector on the columns of $\tilde X$, $B = \tilde X^+Y$ the least-squares layer and
$V_r$ the leading right singular vectors of $PY$ (reduced-rank regression: Anderson 1951; Izenman
1975; proved in paper_notes/best_possible.md). Where the layer sees what it always saw, $\tilde X =
X$ and $Y = XW$, then $B = W$ solves the least-squares problem and no inverse is needed at all: it
works for rank-deficient activations and for fewer samples than inputs.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from lowrank_theory._numerics import (
    AnyArray,
    after,
    cast,
    float64,
    in_float64,
    matmul,
    promote,
    relative_rank_cutoff,
    resolution,
    rounding_allowance,
    safe_sqrt,
    symmetric_product,
)
from lowrank_theory.calibration import AbstractCalibration, Calibration, TriangularCalibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._every_rank import (
    AbstractNestedMethod,
    EveryRank,
    beyond,
    certified_at,
    within,
)
from lowrank_theory.recovery._low_rank import LowRank
from lowrank_theory.recovery._recover import Certificate, Recovery, is_finite
from lowrank_theory.recovery._subspaces import (
    all_eigenvectors,
    all_right_vectors,
    leading_eigenvectors,
    leading_eigenvectors_at_hand,
    leading_right_vectors,
)

PARTIAL_FROM = 512  # the smaller side from which a quarter of the eigenvectors costs less than all

Fitted = tuple[LowRank, Certificate, tuple[Array, Array] | None]  # and mean output and input


class ActivationWeighted(AbstractNestedMethod):
    r"""The minimiser of $\lVert Y - \tilde XZ\rVert_F^2$ over matrices $Z$ of rank r.

    With a `bias`, activations and outputs are centred and the new bias is exact: the best rank-r
    *affine* map. Where few samples leave directions open, `Ridge` decides them.

    Where the rows or a `TriangularCalibration` are at hand, orthogonal decompositions are used,
    accurate to rounding. A `Calibration` is used through its float64 Gram, whose certificate says
    whether the squared condition number did harm.
    """

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Fit the layer to what it sees. Raises `ValueError` where nothing says what that is."""
        factors, bias, certificate = _fit(
            observed,
            activation_weighted,
            activation_weighted_from_triangle,
            _from_moments_at_hand,
            rank=rank,
        )
        return Recovery(factors, bias, certificate, self)

    def fit_every_rank(self, observed: Observed) -> EveryRank:
        """The same at all ranks."""
        factors, certificates, means = _fit(
            observed,
            _fitted_to_rows,
            _fitted_to_triangle,
            _fitted_to_moments,
            rank=None,
        )
        bias, input_mean = (None, None) if means is None else means
        return EveryRank(factors, certificates, bias, input_mean, self)


def _fit(
    observed: Observed, from_rows: Any, from_triangle: Any, from_moments: Any, *, rank: int | None
) -> Any:
    """By the route for what was observed."""
    if observed.activations is not None:
        return from_rows(
            observed.weights,
            observed.activations,
            observed.compressed_activations,
            observed.outputs,
            observed.bias,
            rank=rank,
            resolution=resolution(observed.activations, observed.compressed_activations),
        )
    seen = check_seen("ActivationWeighted", observed)
    route = from_triangle if isinstance(seen, TriangularCalibration) else from_moments
    return route(observed.weights, seen, observed.bias, rank=rank)


def check_calibrated(method: str, observed: Observed) -> Calibration:
    """The second moments of what a layer without rows at hand has seen, or a `ValueError` where
    that is nothing.
    """
    return check_seen(method, observed).moments()


def check_seen(method: str, observed: Observed) -> AbstractCalibration:
    """What a layer without rows at hand has seen, or a `ValueError` where that is nothing."""
    seen = observed.calibration
    if seen is None:
        raise ValueError(
            f"`{method}` needs what the layer sees: give `Observed(activations=...)` "
            "or `Observed(calibration=...)`."
        )
    if not isinstance(seen.count, Tracer) and float(seen.count) == 0:
        raise ValueError("`calibration` has seen no samples yet: call `update` first.")
    return seen


def check_unchanged(method: str, observed: Observed) -> AnyArray | AbstractCalibration:
    """What a layer sees that sees what it always saw and keeps its own outputs, or a `ValueError`
    for another layer.
    """
    seen = observed.activations
    if seen is None:
        seen = check_seen(method, observed)
    compressed = isinstance(seen, AbstractCalibration) and seen.has_compressed
    if compressed or not (observed.compressed_activations is observed.outputs is None):
        raise ValueError(
            f"`{method}` is for layers that see what they always saw, and keep their own "
            "outputs: use `ActivationWeighted` with `compressed_activations` or `outputs`."
        )
    return seen


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
) -> tuple[LowRank, Float[Array, " outputs"] | None, Certificate]:
    r"""The pure function beneath `ActivationWeighted`, from rows: factors, new bias, certificate.

    Works under `jit`, `vmap` and `grad`. The product of the factors is differentiable where
    $s_r(PY) > s_{r+1}(PY)$ and, if $\tilde X \ne X$, where the rank of $\tilde X$ is locally
    constant. `resolution` is the machine epsilon with which the activations were stored; it sets
    the one rank cut-off of the pseudo-inverse.
    """
    return _with_new_bias(
        _fitted_to_rows(
            weights,
            activations,
            compressed_activations,
            outputs,
            bias,
            rank=rank,
            resolution=resolution,
        )
    )


@in_float64
def _fitted_to_rows(
    weights: Array | None,
    activations: Array,
    compressed_activations: Array | None,
    outputs: Array | None,
    bias: Array | None,
    *,
    rank: int | None,
    resolution: float,
) -> Fitted:
    needs_inverse = compressed_activations is not None or outputs is not None
    layer_inputs = activations if compressed_activations is None else compressed_activations
    if outputs is None:
        assert weights is not None  # `Observed` has one or the other
        outputs = matmul(activations, weights)
        outputs = outputs if bias is None else outputs + bias
        formed = jnp.linalg.norm(activations) * jnp.linalg.norm(weights)
    else:
        formed = jnp.linalg.norm(outputs)
    size = jnp.linalg.norm(layer_inputs)  # rounding scales with it even where a mean is taken out
    input_mean, output_mean = jnp.mean(layer_inputs, axis=0), jnp.mean(outputs, axis=0)
    if bias is not None:
        layer_inputs, outputs = layer_inputs - input_mean, outputs - output_mean

    solution = None if needs_inverse else weights
    factors, certificate = _from_rows(
        solution, layer_inputs, outputs, size, formed, rank=rank, resolution=resolution
    )
    return factors, certificate, None if bias is None else (output_mean, input_mean)


@functools.partial(in_float64, like=0)
def activation_weighted_from_triangle(
    weights: Float[Array, "inputs outputs"],
    calibration: TriangularCalibration,
    bias: Float[Array, " outputs"] | None = None,
    *,
    rank: int,
) -> tuple[LowRank, Float[Array, " outputs"] | None, Certificate]:
    r"""The pure function beneath `ActivationWeighted`, from a triangular factor: factors, new bias,
    certificate.

    The factor stands for the rows, so the route is theirs. How precisely these were stored is not
    known, and all directions of $\tilde X$ that they tell apart in float64 count. Results have the
    dtype of the weights.
    """
    return _with_new_bias(_fitted_to_triangle(weights, calibration, bias, rank=rank))


@functools.partial(in_float64, like=0)
def _fitted_to_triangle(
    weights: Array, calibration: TriangularCalibration, bias: Array | None, *, rank: int | None
) -> Fitted:
    compressed, rows = calibration.rows()
    layer_inputs, outputs = rows if compressed is None else compressed, matmul(rows, weights)
    # Rounding adds up over the blocks, of which there are no more than samples.
    rounds = jnp.sqrt(jnp.maximum(calibration.count / rows.shape[0], 1))
    size = rounds * jnp.linalg.norm(layer_inputs)
    formed = rounds * jnp.linalg.norm(rows) * jnp.linalg.norm(weights)
    if bias is not None:
        layer_inputs, outputs = layer_inputs[1:], outputs[1:]
    solution = weights if compressed is None else None
    factors, certificate = _from_rows(solution, layer_inputs, outputs, size, formed, rank=rank)
    return factors, certificate, _means(weights, calibration, bias)


def _from_rows(
    solution: Array | None,
    layer_inputs: Array,
    outputs: Array,
    size: Array,
    formed: Array,
    *,
    rank: int | None,
    resolution: float = float(np.finfo(np.float64).eps),
) -> tuple[LowRank, Certificate]:
    """The best layer from rows, given the least-squares solution where it is known, and the scales
    on which rounding acts on the inputs and the outputs. Without a `rank`: of all ranks.
    """
    attainable = outputs
    if solution is None:
        layer_inputs = after(outputs, layer_inputs)  # whose decomposition may make the outputs
        cutoff = relative_rank_cutoff(layer_inputs.shape, resolution)
        inverse = jnp.linalg.pinv(layer_inputs, rtol=cutoff)
        solution = matmul(inverse, outputs)
        # Once more for what is left: then only that is rounded on the scale of the inverse.
        left = outputs - matmul(layer_inputs, solution)
        solution = solution + matmul(inverse, left)
        attainable = matmul(layer_inputs, solution)
        amplified = jnp.linalg.norm(inverse) * safe_sqrt(jnp.sum(left**2))
        formed = formed + size * (jnp.linalg.norm(solution) + amplified)
    if rank is None:
        vectors, energies = all_right_vectors(attainable)
        vectors = vectors[:, : min(solution.shape)]
    else:
        vectors, energies = leading_right_vectors(attainable, rank)
    factors = LowRank(matmul(solution, vectors), vectors.T)
    unattainable = jnp.sum((outputs - attainable) ** 2)

    def certify(rank: int | Array) -> Certificate:
        return Certificate(
            optimal_error=safe_sqrt(unattainable + beyond(energies, rank)),
            excess_bound=2 * rounding_allowance(formed, *layer_inputs.shape, outputs.shape[1]),
            target_norm=jnp.linalg.norm(outputs),
            finite=is_finite(factors.left, factors.right),
        )

    return factors, certified_at(rank, certify, factors.rank)


def _means(
    weights: Array, calibration: AbstractCalibration, bias: Array | None
) -> tuple[Array, Array] | None:
    """Of the outputs and of the inputs of an affine layer."""
    if bias is None:
        return None
    return matmul(calibration.mean, weights) + bias, jnp.asarray(calibration.layer_input_mean)


def _with_new_bias(
    fitted: Fitted,
) -> tuple[LowRank, Float[Array, " outputs"] | None, Certificate]:
    """With the bias that keeps the mean output what it was."""
    factors, certificate, means = fitted
    if means is None:
        return factors, None, certificate
    output_mean, input_mean = means
    return factors, output_mean - matmul(input_mean, factors.left, factors.right), certificate


@functools.partial(in_float64, like=0)
def activation_weighted_from_moments(
    weights: Float[Array, "inputs outputs"],
    calibration: Calibration,
    bias: Float[Array, " outputs"] | None = None,
    *,
    rank: int,
) -> tuple[LowRank, Float[Array, " outputs"] | None, Certificate]:
    r"""The pure function beneath `ActivationWeighted`, from second moments: factors, new bias,
    certificate.

    Eigenvectors of $B^\top\tilde X^\top\tilde XB$ on the smaller side of $B$. A symmetric
    perturbation $\Delta$ of that n x n matrix costs at most $2\min(r, n-r)\lVert\Delta\rVert$ in
    squared error (paper_notes/numerical_route.md), and rounding perturbs it on the scale of $\lVert
    W\rVert^2\lVert X\rVert^2$, not of its own norm: the certificate compares the two with the
    least that the optimum can be, which is computed with the same rounding.
    Directions of $\tilde X$ too weak for the Gram may hold as much of the outputs as is left: where
    some were dropped, the certificate counts on that. Results have the dtype of the weights.
    """
    return _with_new_bias(_fitted_to_moments(weights, calibration, bias, rank=rank))


@functools.partial(in_float64, like=0)
def _fitted_to_moments(
    weights: Array, calibration: Calibration, bias: Array | None, *, rank: int | None
) -> Fitted:
    asked = _eigenproblem(weights, calibration, bias)
    if rank is None:
        return _solved(asked, *all_eigenvectors(asked.matrix), rank=rank)
    return _solved(asked, *leading_eigenvectors(asked.matrix, rank), rank=rank)


def _from_moments_at_hand(
    weights: AnyArray, calibration: Calibration, bias: AnyArray | None, *, rank: int
) -> tuple[LowRank, Float[Array, " outputs"] | None, Certificate]:
    """`activation_weighted_from_moments`, but where fewer eigenvectors pay, in two programs with
    the leading ones between them: within a program, JAX finds all.
    """
    arrays = weights, calibration, bias
    size = min(weights.shape)
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arrays))
    if traced or jax.default_backend() != "cpu" or size < PARTIAL_FROM or 4 * rank > size:
        return activation_weighted_from_moments(weights, calibration, bias, rank=rank)
    with float64():
        asked = _eigenproblem_at_hand(*arrays)
        leading = leading_eigenvectors_at_hand(asked.matrix, rank)
        return cast(_solved_at_hand(asked, *leading, rank=rank), weights.dtype)


class _Eigenproblem(eqx.Module):
    r"""What the eigenvectors are asked of, and what turns them into a layer.

    - `matrix`: $C^\top\tilde X^\top\tilde XC$ for the `core` $C$ of the least-squares layer $B$,
      which is $C$ itself or, without a square on its longer side, $CF^\top$ with an orthonormal
      `frame` $F$;
    - `total`: the squared norm of the outputs;
    - `magnitude`: the scale on which rounding acts on squared errors, and `shifted`: what it does
      to the means;
    - `resolved`: whether no direction of $\tilde X$ was dropped.
    """

    matrix: Float[Array, "size size"]
    core: Float[Array, "inputs size"]
    frame: Float[Array, "outputs size"] | None
    total: Float[Array, ""]
    magnitude: Float[Array, ""]
    shifted: Float[Array, ""]
    resolved: Bool[Array, ""]
    means: tuple[Float[Array, " outputs"], Float[Array, " inputs"]] | None


def _eigenproblem(weights: Array, calibration: Calibration, bias: Array | None) -> _Eigenproblem:
    centred = bias is not None
    gram = jnp.asarray(calibration.gram(centred=centred))
    compressed_gram = jnp.asarray(calibration.compressed_gram(centred=centred))

    energy = jnp.sum(weights**2)
    magnitude = energy * jnp.trace(gram)
    shifted = jnp.asarray(0.0)
    if bias is not None:
        mean_energy = calibration.count * jnp.sum(calibration.mean**2)
        magnitude = magnitude + energy * safe_sqrt(jnp.trace(gram) * mean_energy)
        shifted = rounding_allowance(safe_sqrt(energy * mean_energy), *weights.shape)
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
    return _Eigenproblem(
        matrix=matrix,
        core=core,
        frame=frame,
        total=jnp.trace(matrix) if total is None else total,
        magnitude=magnitude,
        shifted=shifted,
        resolved=resolved,
        means=_means(weights, calibration, bias),
    )


def _solved(asked: _Eigenproblem, vectors: Array, energies: Array, *, rank: int | None) -> Fitted:
    """The layer of these eigenvectors, all of them or the leading ones."""
    right = vectors if asked.frame is None else matmul(asked.frame, vectors)
    factors = LowRank(matmul(asked.core, vectors), right.T)
    allowance = rounding_allowance(asked.magnitude, *factors.shape)
    attainable = jnp.trace(asked.matrix)

    def certify(rank: int | Array) -> Certificate:
        kept = within(energies, rank)
        optimum = jnp.maximum(asked.total - kept, 0)
        pairs = jnp.maximum(1, jnp.minimum(rank, len(vectors) - rank))  # at least the products
        doubt = (rank + 1) * allowance  # of the optimum: the trace, and r eigenvalues
        least = jnp.where(asked.resolved, asked.total, attainable) - kept - doubt
        least = jnp.maximum(least, 0)
        most = jnp.where(asked.resolved, least, optimum + doubt) + 2 * pairs * allowance
        return Certificate(
            optimal_error=safe_sqrt(optimum),
            excess_bound=safe_sqrt(most) - safe_sqrt(least) + asked.shifted,
            target_norm=safe_sqrt(jnp.maximum(asked.total, 0)),
            finite=is_finite(factors.left, factors.right),
        )

    return factors, certified_at(rank, certify, factors.rank), asked.means


@jax.jit
def _eigenproblem_at_hand(*arrays: Any) -> _Eigenproblem:
    return _eigenproblem(*promote(arrays))


@functools.partial(jax.jit, static_argnames="rank")
def _solved_at_hand(
    asked: _Eigenproblem, vectors: Array, energies: Array, *, rank: int
) -> tuple[LowRank, Float[Array, " outputs"] | None, Certificate]:
    return _with_new_bias(_solved(asked, vectors, energies, rank=rank))
