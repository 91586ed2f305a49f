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

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from lowrank_theory._numerics import (
    after,
    in_float64,
    matmul,
    relative_rank_cutoff,
    resolution,
    rounding_allowance,
    safe_sqrt,
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
    leading_right_vectors,
)

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
            activation_weighted_from_moments,
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
    centred = bias is not None
    gram = calibration.gram(centred=centred)
    compressed_gram = calibration.compressed_gram(centred=centred)
    cross_gram = calibration.cross_gram(centred=centred)

    total = jnp.sum(weights * matmul(gram, weights))
    magnitude = jnp.sum(weights**2) * jnp.trace(gram)
    shifted = jnp.asarray(0.0)  # what rounding does to the means
    if bias is not None:
        energy = calibration.count * jnp.sum(calibration.mean**2)
        magnitude = magnitude + jnp.sum(weights**2) * safe_sqrt(jnp.trace(gram) * energy)
        shifted = rounding_allowance(safe_sqrt(jnp.sum(weights**2) * energy), *weights.shape)
    solution, resolved = weights, jnp.asarray(True)
    if calibration.compressed is not None:
        compressed_gram = after(weights, compressed_gram)
        cutoff = relative_rank_cutoff(gram.shape) * gram.shape[0]
        inverse = jnp.linalg.pinv(compressed_gram, rtol=cutoff, hermitian=True)
        solution = matmul(inverse, cross_gram, weights)
        magnitude = magnitude * jnp.linalg.norm(inverse) * jnp.trace(compressed_gram)
        active = jnp.count_nonzero(jnp.diagonal(compressed_gram))  # a dead input hides nothing
        resolved = jnp.sum(inverse * compressed_gram) > active - 0.5  # the trace of a projector

    inputs, outputs = weights.shape
    if outputs > inputs:  # B = core @ frame.T: solve the smaller problem, and turn it by the frame
        frame, triangle = jnp.linalg.qr(solution.T)
        core = triangle.T
    else:
        frame, core = jnp.eye(outputs), solution
    matrix = matmul(core.T, compressed_gram, core)
    vectors, energies = (
        all_eigenvectors(matrix) if rank is None else leading_eigenvectors(matrix, rank)
    )
    vectors = matmul(frame, vectors)
    factors = LowRank(matmul(solution, vectors), vectors.T)
    allowance = rounding_allowance(magnitude, *weights.shape)

    def certify(rank: int | Array) -> Certificate:
        left_out = beyond(energies, rank)
        optimum = jnp.maximum(total - within(energies, rank), 0)
        pairs = jnp.maximum(1, jnp.minimum(rank, energies.size - rank))  # at least the products
        doubt = (rank + 1) * allowance  # of the optimum: the trace, and r eigenvalues
        least = jnp.maximum(jnp.where(resolved, optimum, left_out) - doubt, 0)
        most = jnp.where(resolved, least, optimum + doubt) + 2 * pairs * allowance
        return Certificate(
            optimal_error=safe_sqrt(optimum),
            excess_bound=safe_sqrt(most) - safe_sqrt(least) + shifted,
            target_norm=safe_sqrt(jnp.maximum(total, 0)),
            finite=is_finite(factors.left, factors.right),
        )

    certificate = certified_at(rank, certify, factors.rank)
    return factors, certificate, _means(weights, calibration, bias)
