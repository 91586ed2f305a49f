r"""The convex estimator in closed form: soft-thresholded singular values of the attainable outputs.

$$\hat F = \arg\min_{F=\tilde XZ}\ \tfrac12\lVert Y - F\rVert_F^2 + \tau\lVert F\rVert_*
  = \sum_i (s_i - \tau)_+ u_iv_i^\top, \qquad PY = \sum_i s_iu_iv_i^\top .$$
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank_theory._numerics import (
    check_positive,
    in_float64,
    settle,
)
from lowrank_theory._scale import at_scale_one
from lowrank_theory._subspaces import thresholded_right_vectors
from lowrank_theory.approximations import LowRank
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._attainable import attainable, fit_outputs
from lowrank_theory.recovery._recover import AbstractMethod, Certificate, Recovery


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
        settle(self, "threshold", check_positive, zero=True)

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Threshold what the layer can express. Raises `ValueError` without activations, or with a
        bias.
        """
        return fit_outputs(self, observed, rank, singular_value_threshold, self.threshold)


@in_float64
def singular_value_threshold(
    layer_inputs: Float[Array, "samples inputs"],
    outputs: Float[Array, "samples outputs"],
    threshold: Float[Array, ""] | float,
    *,
    rank: int,
    resolution: float = float(np.finfo(np.float64).eps),
    dtype: Any = None,
) -> tuple[LowRank, Certificate]:
    r"""The pure function beneath `SingularValueThreshold`.

    Works under `jit`, `vmap` and `grad`. The product of the factors is differentiable where no
    singular value is at the threshold, if those above it are at most `rank`; ties do no harm.
    """
    found = attainable(layer_inputs, outputs, resolution)
    threshold = at_scale_one(threshold, found.power)
    shrunk_vectors, vectors, eigenvalues = thresholded_right_vectors(found.fitted, threshold, rank)
    shrunk = jnp.minimum(eigenvalues, threshold**2)
    discarded = jnp.sum(jnp.where(jnp.arange(eigenvalues.size) < rank, shrunk, eigenvalues))
    return found.returned(shrunk_vectors, vectors, discarded, dtype)
