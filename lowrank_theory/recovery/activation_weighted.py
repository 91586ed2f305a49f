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
from lowrank_theory.calibration import Calibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._low_rank import LowRank
from lowrank_theory.recovery._recover import AbstractMethod, Certificate, Recovery, is_finite
from lowrank_theory.recovery._subspaces import leading_eigenvectors, leading_right_vectors


class ActivationWeighted(AbstractMethod):
    r"""The minimiser of $\lVert Y - \tilde XZ\rVert_F^2$ over matrices $Z$ of rank r.

    With a `bias`, activations and outputs are centred and the new bias is exact: the best rank-r
    *affine* map. Where few samples leave directions open, `Ridge` decides them.

    Where the rows are at hand they are used (orthogonal decompositions of the outputs; accurate to
    rounding). A `Calibration` is used through its float64 Gram, whose certificate says whether the
    squared condition number did harm.
    """

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Fit the layer to what it sees. Raises `ValueError` where nothing says what that is."""
        if observed.activations is not None:
            fitted = activation_weighted(
                observed.weights,
                observed.activations,
                observed.compressed_activations,
                observed.outputs,
                observed.bias,
                rank=rank,
                resolution=resolution(observed.activations, observed.compressed_activations),
            )
        else:
            seen = check_calibrated("ActivationWeighted", observed)
            fitted = activation_weighted_from_moments(
                observed.weights, seen, observed.bias, rank=rank
            )
        factors, bias, certificate = fitted
        return Recovery(factors, bias, certificate, self)


def check_calibrated(method: str, observed: Observed) -> Calibration:
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

    if needs_inverse:
        layer_inputs = after(outputs, layer_inputs)  # whose decomposition may make the outputs
        cutoff = relative_rank_cutoff(layer_inputs.shape, resolution)
        inverse = jnp.linalg.pinv(layer_inputs, rtol=cutoff)
        solution = matmul(inverse, outputs)
        attainable = matmul(layer_inputs, solution)
        formed = formed + size * jnp.linalg.norm(inverse) * jnp.linalg.norm(outputs)
    else:
        assert weights is not None
        solution, attainable = weights, outputs
    vectors, energies = leading_right_vectors(attainable, rank)
    factors = LowRank(matmul(solution, vectors), vectors.T)

    unattainable = jnp.sum((outputs - attainable) ** 2)
    certificate = Certificate(
        optimal_error=safe_sqrt(unattainable + jnp.sum(energies[rank:])),
        excess_bound=2 * rounding_allowance(formed, *layer_inputs.shape, outputs.shape[1]),
        target_norm=jnp.linalg.norm(outputs),
        finite=is_finite(factors.left, factors.right),
    )
    if bias is None:
        return factors, None, certificate
    return (
        factors,
        output_mean - matmul(input_mean, factors.left, factors.right),
        certificate,
    )


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
    vectors, energies = leading_eigenvectors(matmul(core.T, compressed_gram, core), rank)
    vectors = matmul(frame, vectors)
    factors = LowRank(matmul(solution, vectors), vectors.T)

    optimum = jnp.maximum(total - jnp.sum(energies[:rank]), 0)
    pairs = max(1, min(rank, core.shape[1] - rank))  # one for the products, where none can turn
    allowance = rounding_allowance(magnitude, *weights.shape)
    doubt = (rank + 1) * allowance  # of the optimum: the trace, and r eigenvalues
    least = jnp.where(resolved, optimum, jnp.sum(energies[rank:]))
    least = jnp.maximum(least - doubt, 0)
    most = jnp.where(resolved, least, optimum + doubt) + 2 * pairs * allowance
    certificate = Certificate(
        optimal_error=safe_sqrt(optimum),
        excess_bound=safe_sqrt(most) - safe_sqrt(least) + shifted,
        target_norm=safe_sqrt(jnp.maximum(total, 0)),
        finite=is_finite(factors.left, factors.right),
    )
    if bias is None:
        return factors, None, certificate
    output_mean = matmul(calibration.mean, weights) + bias
    return (
        factors,
        output_mean - matmul(calibration.layer_input_mean, factors.left, factors.right),
        certificate,
    )
