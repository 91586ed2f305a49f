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

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank_theory._numerics import (
    check_positive,
    in_float64,
    matmul,
    resolution,
    rounding_allowance,
    settle,
)
from lowrank_theory.calibration import Calibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._low_rank import LowRank
from lowrank_theory.recovery._recover import AbstractMethod, Certificate, Recovery
from lowrank_theory.recovery.activation_weighted import (
    activation_weighted,
    activation_weighted_from_moments,
    check_calibrated,
)


class Ridge(AbstractMethod):
    r"""The minimiser of $\lVert Y - \tilde XZ\rVert_F^2 + \mu\lVert W - Z\rVert_F^2$ over matrices
    $Z$ of rank r.

    `penalty` $\mu \ge 0$ is in the units of squared activations, summed over the samples: to be
    compared with $\lVert\tilde X\rVert_F^2/N$, what the data say of an input on average. With a
    `bias`, activations and outputs are centred before, and the penalty does not see the new bias.

    Rows are used where they are at hand, by orthogonal decompositions; a `Calibration` otherwise.
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
            seen = check_calibrated("Ridge", observed)
            fitted = ridge_from_moments(observed.weights, seen, penalty, observed.bias, rank=rank)
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
) -> tuple[LowRank, Float[Array, " outputs"] | None, Certificate]:
    r"""The pure function beneath `Ridge`, from rows: factors, new bias, certificate.

    Works under `jit`, `vmap` and `grad`, also in the penalty. Results have the dtype of the
    weights.
    """
    root = jnp.sqrt(penalty) * jnp.eye(weights.shape[0])
    mismatched = compressed_activations is not None or outputs is not None
    layer_inputs = activations if compressed_activations is None else compressed_activations
    if mismatched and outputs is None:
        outputs = matmul(activations, weights)
        outputs = outputs if bias is None else outputs + bias

    input_mean = output_mean = centring = jnp.asarray(0.0)
    if bias is not None:
        input_mean = jnp.mean(layer_inputs, axis=0)
        output_mean = bias + matmul(input_mean, weights) if outputs is None else outputs.mean(0)
        centring = jnp.linalg.norm(layer_inputs) * jnp.linalg.norm(weights)
    rows = jnp.concatenate([layer_inputs - input_mean, root])
    if outputs is not None:
        centring = centring if bias is None else centring + jnp.linalg.norm(outputs)
        outputs = jnp.concatenate([outputs - output_mean, matmul(root, weights)])
    factors, _, certificate = activation_weighted(
        weights, rows, None, outputs, rank=rank, resolution=resolution
    )
    if bias is None:
        return factors, None, certificate
    lost = 2 * rounding_allowance(centring, *rows.shape, weights.shape[1])
    return (
        factors,
        output_mean - matmul(input_mean, factors.left, factors.right),
        dataclasses.replace(certificate, excess_bound=certificate.excess_bound + lost),
    )


@functools.partial(in_float64, like=0)
def ridge_from_moments(
    weights: Float[Array, "inputs outputs"],
    calibration: Calibration,
    penalty: Float[Array, ""],
    bias: Float[Array, " outputs"] | None = None,
    *,
    rank: int,
) -> tuple[LowRank, Float[Array, " outputs"] | None, Certificate]:
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
    seen = dataclasses.replace(calibration, scatter=calibration.scatter + added, compressed=moments)
    return activation_weighted_from_moments(weights, seen, bias, rank=rank)
