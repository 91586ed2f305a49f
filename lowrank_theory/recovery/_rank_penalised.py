r"""Least squares with a price on the rank: hard-thresholded singular values.

$$\hat F = \arg\min_{F=\tilde XZ}\ \lVert Y - F\rVert_F^2 + \mu\operatorname{rank}F
  = \sum_{s_i^2>\mu} s_iu_iv_i^\top, \qquad PY = \sum_i s_iu_iv_i^\top ,$$

with $P$ the projector on the columns of $\tilde X$ (Bunea, She and Wegkamp 2011). The data choose
the rank: a component is kept where it explains more than it costs.
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
from lowrank_theory._subspaces import kept_right_vectors
from lowrank_theory.approximations import LowRank
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._attainable import attainable, fit_outputs
from lowrank_theory.recovery._recover import AbstractMethod, Certificate, Recovery


class RankPenalised(AbstractMethod):
    r"""The minimiser of $\lVert Y-\tilde XZ\rVert_F^2 + \mu\operatorname{rank}(\tilde XZ)$ over
    matrices $Z$ of rank at most r.

    `penalty` $\mu$ is what one rank costs, in the squared units of the outputs: components with
    squared singular value at most $\mu$ are zero. `rank` sets how many the factors can hold, and
    `min(inputs, outputs)` is the estimator of the theory (paper_notes/rank_penalty.md).
    """

    penalty: float

    def __check_init__(self) -> None:
        settle(self, "penalty", check_positive, zero=True)

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Keep what is worth its rank. Raises `ValueError` without activations, or with a bias."""
        return fit_outputs(self, observed, rank, rank_penalised, self.penalty)


@in_float64
def rank_penalised(
    layer_inputs: Float[Array, "samples inputs"],
    outputs: Float[Array, "samples outputs"],
    penalty: Float[Array, ""] | float,
    *,
    rank: int,
    resolution: float = float(np.finfo(np.float64).eps),
    dtype: Any = None,
) -> tuple[LowRank, Certificate]:
    r"""The pure function beneath `RankPenalised`.

    Columns of the left factor beyond the selected rank are zero, and the certificate is about the
    error at that rank. Works under `jit`, `vmap` and `grad`; the
    product of the factors is differentiable where no squared singular value is at the penalty, and
    $s_r > s_{r+1}$ if more than r are above it.
    """
    found = attainable(layer_inputs, outputs, resolution)
    penalty = at_scale_one(penalty, 2 * found.power)
    vectors, eigenvalues = kept_right_vectors(found.fitted, penalty, rank)
    kept = jnp.any(vectors != 0, axis=0)
    discarded = jnp.sum(eigenvalues[rank:]) + jnp.sum(jnp.where(kept, 0, eigenvalues[:rank]))
    return found.returned(vectors, vectors, discarded, dtype)
