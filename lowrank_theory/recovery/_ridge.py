r"""Data-driven recovery with a ridge: fit what the layer sees, and stay near the trained weights.

$$\min_{\operatorname{rank} Z\le r} \lVert Y - \tilde XZ\rVert_F^2 + \mu\lVert W - Z\rVert_F^2 .$$

The ridge decides in the directions that few samples leave open. It pulls towards $W$, not towards
zero: unlike in ridge regression nothing is shrunk, and $Z = W$ where the rank allows it and the
layer sees what it always saw. It is the plain problem for a layer that has also seen the rows of
$\sqrt\mu\,I$, in both networks alike: N more rows, or $\mu I$ on every second moment. So it is
solved by the routes of `activation_weighted`; where $\tilde X = X$ and $Y = XW$, $Z_\mu =
WV_rV_r^\top$ with $V_r$ the leading eigenvectors of $W^\top(X^\top X + \mu I)W$ (compare Parkina
and Rakhuba 2025; paper_notes/best_possible.md, and paper_notes/ridge_limit.md for what $\mu$
costs).
"""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank_theory._numerics import check_positive, in_float64, resolution, safe_sqrt, settle
from lowrank_theory._scale import at_scale_one
from lowrank_theory.calibration import Calibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._checks import check_moments
from lowrank_theory.recovery._from_moments import activation_weighted_from_moments
from lowrank_theory.recovery._from_rows import problem_of_rows
from lowrank_theory.recovery._least_squares import least_squares
from lowrank_theory.recovery._recover import AbstractMethod, Recovery
from lowrank_theory.recovery._returned import Returned, returned


class Ridge(AbstractMethod):
    r"""The minimiser of $\lVert Y - \tilde XZ\rVert_F^2 + \mu\lVert W - Z\rVert_F^2$ over matrices
    $Z$ of rank r.

    `penalty` $\mu \ge 0$ is in the units of squared activations, summed over the samples: to be
    compared with $\lVert\tilde X\rVert_F^2/N$, what the data say of an input on average. With a
    `bias`, activations and outputs are centred before, and the penalty does not see the new bias.

    Rows are used where they are given, by orthogonal decompositions; a `Calibration` otherwise.
    Errors in the certificate are square roots of the whole objective.
    """

    penalty: float

    def __check_init__(self) -> None:
        settle(self, "penalty", check_positive, zero=True)

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Fit the layer to what it sees and was. Raises `ValueError` where one is unknown."""
        if observed.weights is None:
            raise ValueError("`Ridge` pulls towards the trained weights: give `weights`.")
        penalty = np.asarray(self.penalty, float)
        if observed.activations is not None:
            fitted = ridge(
                observed.weights,
                observed.activations,
                penalty,
                observed.compressed_activations,
                observed.outputs,
                observed.bias,
                rank=rank,
                resolution=resolution(observed.activations, observed.compressed_activations),
            )
        else:
            moments = check_moments("Ridge", observed)
            fitted = ridge_from_moments(
                observed.weights, moments, penalty, observed.bias, rank=rank
            )
        factors, bias, certificate = fitted
        return Recovery(factors, bias, certificate, self)


@functools.partial(in_float64, like=0)
def ridge(
    weights: Float[Array, "inputs outputs"],
    activations: Float[Array, "samples inputs"],
    penalty: Float[Array, ""],
    compressed_activations: Float[Array, "samples inputs"] | None = None,
    outputs: Float[Array, "samples outputs"] | None = None,
    bias: Float[Array, " outputs"] | None = None,
    *,
    rank: int,
    resolution: float = float(np.finfo(np.float64).eps),
    dtype: Any = None,
) -> Returned:
    r"""The pure function beneath `Ridge`, from rows: factors, new bias, certificate.

    Works under `jit`, `vmap` and `grad`, also in the penalty. Factors and bias have the dtype of
    the weights, or the `dtype` asked for.
    """
    problem = problem_of_rows(weights, activations, compressed_activations, outputs, bias)
    weights = at_scale_one(weights, problem.left_power)
    root = at_scale_one(safe_sqrt(penalty), problem.power - problem.left_power)
    identity = root * jnp.eye(weights.shape[0])
    added = root * math.sqrt(weights.shape[0]) * jnp.linalg.norm(weights)
    penalised = dataclasses.replace(
        problem,
        layer_inputs=jnp.concatenate([problem.layer_inputs, identity]),
        outputs=jnp.concatenate([problem.outputs, root * weights]),
        column_norms=problem.column_norms + root,
        outputs_scale=problem.outputs_scale + added,
    )
    return returned(least_squares(penalised, resolution).of_rank(rank), dtype)


@functools.partial(in_float64, like=0)
def ridge_from_moments(
    weights: Float[Array, "inputs outputs"],
    calibration: Calibration,
    penalty: Float[Array, ""],
    bias: Float[Array, " outputs"] | None = None,
    *,
    rank: int,
    dtype: Any = None,
) -> Returned:
    r"""The pure function beneath `Ridge`, from second moments: the same, with $\mu I$ added to each
    of them.

    Where few samples leave directions open, those have eigenvalue $\mu$, which the float64 moments
    resolve only if it is well above their rounding, $10^{-16}\lVert X\rVert^2$: the certificate
    says so.
    """
    added = penalty * jnp.eye(weights.shape[0])
    moments = calibration.compressed
    if moments is not None:
        moments = dataclasses.replace(
            moments,
            scatter=moments.scatter + added,
            cross_scatter=moments.cross_scatter + added,
        )
    penalised = dataclasses.replace(
        calibration, scatter=calibration.scatter + added, compressed=moments
    )
    return activation_weighted_from_moments(weights, penalised, bias, rank=rank, dtype=dtype)
