r"""One layer compressed alone to a sweep of ranks.

Every method projects the outputs, $Z = WV_rV_r^\top$, and one orthonormal $V$ serves all ranks. So,
with $c = 0$ for a linear map and $c$ the mean calibration input for an affine one,

$$\lVert Y - \hat Y\rVert_F^2 = \sum_{j>r} v_j^\top W^\top\Bigl(\sum_t(x_t - c)(x_t - c)^\top\Bigr)
Wv_j,$$

a sum of squares, in which nothing cancels.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lowrank_theory._numerics import float64, relative_rank_cutoff
from lowrank_theory.excitation import paired_losses
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import ActivationWeighted, every_rank
from lowrank_theory.studies import FAILURE_PROBABILITY
from lowrank_theory.studies._moments import Moments, descending_eigenvalues, tails
from lowrank_theory.studies._observed_layer import ObservedLayer, resolved_dimension
from lowrank_theory.studies.layer_rows import LayerAtRank, half_rank, ranks_up_to
from lowrank_theory.theorems.calibration_size import first_order_excess, sufficient_samples

EXCESS = 0.01  # over the least squared error, for which calibration sizes are told

Values = Float[np.ndarray, " ranks"]


def at_ranks(network: str, layer: ObservedLayer, count: int) -> Iterator[LayerAtRank]:
    """The layer at about `count` ranks."""
    inputs, outputs = layer.weights.shape
    fitted = every_rank(
        Observed(weights=layer.weights, bias=np.zeros(outputs), calibration=layer.training),
        ActivationWeighted(),
    )
    certified = np.asarray(fitted.certificates.certified)
    errors = Errors.of(layer, layer.frame.T @ np.asarray(fitted.factors.right).T)
    ranks = _sweep(inputs, outputs, count)
    recoveries, sizes = layer.stated.recoveries(ranks), _calibration_sizes(layer, ranks)
    for rank, recovery, (needed, sufficient) in zip(ranks, recoveries, sizes, strict=True):
        yield LayerAtRank(
            network=network,
            layer=layer.name,
            shape=(inputs, outputs),
            samples=layer.samples,
            rank=rank,
            data_agnostic_error=errors.relative(errors.data_agnostic, rank),
            data_agnostic_new_bias_error=errors.relative(errors.data_agnostic_new_bias, rank),
            diagonal_error=errors.relative(errors.diagonal, rank),
            data_driven_error=errors.relative(errors.data_driven, rank),
            optimal_error=errors.relative(errors.optimal, rank),
            price_bound=errors.relative(errors.price_bound, rank),
            recovery_error=recovery.error,
            recovery_bound=recovery.bound,
            projected_bound=recovery.projected_bound,
            samples_needed=needed,
            samples_sufficient=sufficient,
            certified=bool(certified[rank]),
        )


def _sweep(inputs: int, outputs: int, count: int) -> list[int]:
    """A geometric sweep from one to the largest rank that saves storage, and half the full one."""
    largest = max(1, math.ceil(inputs * outputs / (inputs + outputs)) - 1)
    half = half_rank(inputs, outputs)
    return ranks_up_to(max(largest, half), count, half)


@dataclasses.dataclass(frozen=True)
class Errors:
    r"""The squared errors on held-out rows at each rank from zero to full, the square of the bound
    on the first of them, and `total`, $\lVert Y\rVert_F^2$.
    """

    total: float
    data_agnostic: Values
    data_agnostic_new_bias: Values
    diagonal: Values
    data_driven: Values
    optimal: Values
    price_bound: Values

    @staticmethod
    def of(layer: ObservedLayer, driven: Float[np.ndarray, "side side"]) -> "Errors":
        """`driven` are the directions of the data-driven fit, strongest first."""
        _, values, agnostic = np.linalg.svd(layer.core, full_matrices=False)
        scale = np.sqrt(np.diagonal(Moments.of(layer.training).about(0.0)))
        diagonal = np.linalg.svd(scale[:, None] * layer.core, full_matrices=False)[2]
        plain, shifted = layer.outputs.about(0.0), layer.outputs.about(layer.output_mean)
        most = paired_losses(np.sqrt(layer.eigenvalues), values, np.arange(values.size + 1))
        return Errors(
            total=float(np.trace(plain)),
            data_agnostic=_left_over(plain, agnostic.T),
            data_agnostic_new_bias=_left_over(shifted, agnostic.T),
            diagonal=_left_over(plain, diagonal.T),
            data_driven=_left_over(shifted, driven),
            optimal=tails(descending_eigenvalues(layer.outputs.scatter)),
            price_bound=np.asarray(most),
        )

    def relative(self, squares: Values, rank: int) -> float | None:
        """The root of one of them over the norm of the outputs."""
        return math.sqrt(max(squares[rank], 0) / self.total) if self.total > 0 else None


def _left_over(
    moments: Float[np.ndarray, "side side"], directions: Float[np.ndarray, "side count"]
) -> Values:
    r"""$\sum_{j>r}v_j^\top Mv_j$ for each r from zero on."""
    return tails(np.sum(directions * (moments @ directions), axis=0))


def _calibration_sizes(
    layer: ObservedLayer, ranks: Sequence[int]
) -> Iterator[tuple[int | None, int | None]]:
    """Rows at which the squared loss exceeds the least by 1 %, given the spectrum of the outputs,
    for weights that do not depend on the rows: to first order, and at most that with probability
    0.95. `None` where the least is rounding, or no gap is at the rank.
    """
    values = layer.output_eigenvalues
    with float64():
        dimension = float(resolved_dimension(values))
        found = _excesses(jnp.asarray(values), jnp.asarray(ranks), dimension)
        excesses, sufficient = (np.asarray(each) for each in found)
    for rank, excess, enough in zip(ranks, excesses, sufficient, strict=True):
        least = float(np.sum(values[rank:]))
        if least <= layer.rounding:
            yield None, None
            continue
        gap = values[rank - 1] - values[rank]
        resolved = gap > relative_rank_cutoff((values.size,)) * values[0]
        yield math.ceil(excess / (EXCESS * least)) if resolved else None, int(enough)


@jax.jit
def _excesses(
    values: Float[Array, " side"], ranks: Int[Array, " ranks"], dimension: Float[Array, ""]
) -> tuple[Float[Array, " ranks"], Float[Array, " ranks"]]:
    def at(rank: Int[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        enough = sufficient_samples(values, rank, dimension, EXCESS, FAILURE_PROBABILITY)
        return first_order_excess(values, rank), enough

    return jax.lax.map(at, ranks)
