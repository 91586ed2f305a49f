r"""The convex estimator in closed form: soft-thresholded singular values of the attainable outputs.

$$\hat F = \arg\min_{F=\tilde XZ}\ \tfrac12\lVert Y - F\rVert_F^2 + \tau\lVert F\rVert_*
  = \sum_i (s_i - \tau)_+ u_iv_i^\top, \qquad PY = \sum_i s_iu_iv_i^\top .$$
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank_theory._numerics import (
    after,
    check_positive,
    in_float64,
    matmul,
    relative_rank_cutoff,
    resolution,
    rounding_allowance,
    safe_sqrt,
)
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._low_rank import LowRank
from lowrank_theory.recovery._recover import (
    AbstractMethod,
    Certificate,
    Recovery,
    check_no_bias,
    is_finite,
)
from lowrank_theory.recovery._subspaces import thresholded_right_vectors


class SingularValueThreshold(AbstractMethod):
    r"""Least squares penalised by the nuclear norm of the outputs, $\tfrac12\lVert Y-\tilde
    XZ\rVert_F^2 + \tau\lVert\tilde XZ\rVert_*$.

    `threshold` $\tau$ is in the units of the outputs' singular values. The convex problem has no
    rank constraint: `rank` only sets how many components the factors can hold, and `min(inputs,
    outputs)` is the estimator of the theory (paper_notes/approximate_rank.md). Components below the
    threshold are zero.
    """

    threshold: float

    def __check_init__(self) -> None:
        check_positive("threshold", self.threshold, zero=True)

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Threshold what the layer can express. Raises `ValueError` without activations, or with a
        bias.
        """
        check_no_bias(self, observed)
        factors, certificate = singular_value_threshold(
            observed.layer_inputs,
            observed.target_outputs,
            self.threshold,
            rank=rank,
            resolution=resolution(observed.layer_inputs),
        )
        return Recovery(factors, None, certificate, self)


@in_float64
def singular_value_threshold(
    layer_inputs: Float[Array, "samples inputs"],
    outputs: Float[Array, "samples outputs"],
    threshold: Float[Array, ""] | float,
    *,
    rank: int,
    resolution: float = float(np.finfo(np.float64).eps),
) -> tuple[LowRank, Certificate]:
    r"""The pure function beneath `SingularValueThreshold`.

    Works under `jit`, `vmap` and `grad`. The product of the factors is differentiable where no
    singular value is at the threshold, if those above it are at most `rank`; ties do no harm.
    """
    layer_inputs = after(outputs, layer_inputs)
    inverse = jnp.linalg.pinv(
        layer_inputs, rtol=relative_rank_cutoff(layer_inputs.shape, resolution)
    )
    solution = matmul(inverse, outputs)
    attainable = matmul(layer_inputs, solution)
    shrunk_vectors, vectors, energies = thresholded_right_vectors(attainable, threshold, rank)
    factors = LowRank(matmul(solution, shrunk_vectors), vectors.T)

    scale = jnp.linalg.norm(layer_inputs) * jnp.linalg.norm(inverse) * jnp.linalg.norm(outputs)
    shrunk = jnp.minimum(energies, threshold**2)
    residual = jnp.sum((outputs - attainable) ** 2) + jnp.sum(
        jnp.where(jnp.arange(energies.size) < rank, shrunk, energies)
    )
    certificate = Certificate(
        optimal_error=safe_sqrt(residual),
        excess_bound=2 * rounding_allowance(scale, *layer_inputs.shape, outputs.shape[1]),
        target_norm=jnp.linalg.norm(outputs),
        finite=is_finite(factors.left, factors.right),
    )
    return factors, certificate
