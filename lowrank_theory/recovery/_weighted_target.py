"""The least-squares problem of a layer, for methods that find no low rank."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import AnyArray, in_float64, matmul, safe_sqrt
from lowrank_theory._scale import at_scale_one, exponent, times_power, unit
from lowrank_theory.approximations import LowRank
from lowrank_theory.calibration import AbstractCalibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._activation_weighted import ActivationWeighted
from lowrank_theory.recovery._every_rank import every_rank
from lowrank_theory.recovery._ladder import AbstractLadder, as_calibration, trained_weights


class WeightedTarget(NamedTuple):
    r"""$\lVert Y - \tilde XZ\rVert_F^2$ is $\operatorname{tr}((B - Z)^\top H(B - Z))$ and what no Z
    changes.

    - `target` $B$: the least-squares layer of the outputs on $\tilde X$, in the dtype of the
      weights; the weights, where the layer sees what it always saw;
    - `gram` $H = \tilde X^\top\tilde X$, centred where there is a bias, which is free then;
    - `seen`: the calibration.
    """

    target: Float[AnyArray, "inputs outputs"]
    gram: Float[AnyArray, "inputs inputs"]
    seen: AbstractCalibration

    @staticmethod
    def of(ladder: AbstractLadder, observed: Observed) -> "WeightedTarget":
        """Raises `ValueError` without weights, or where nothing was seen."""
        weights: Any = trained_weights(ladder, observed)
        seen = as_calibration(observed)
        if seen is None:
            raise ValueError(
                f"`{type(ladder).__name__}` needs what the layer sees: give "
                "`Observed(activations=...)` or `Observed(calibration=...)`."
            )
        if seen.has_compressed:
            weights = every_rank(observed, ActivationWeighted()).factors.materialise()
        return WeightedTarget(
            weights, seen.compressed_gram(centred=observed.bias is not None), seen
        )

    def low_rank(self, rest: Any, rank: int) -> LowRank:
        r"""The best matrix of this rank in the place of another, such as what an approximation
        leaves of the target: $\min_Z\operatorname{tr}((A - Z)^\top H(A - Z))$ is attained at
        $AV_rV_r^\top$, $V_r$ the leading right singular vectors of $H^{1/2}A$. In the dtype of
        the matrix; on the host, and not under `jit`.
        """
        left, right = _factors(rest, self.gram)
        return LowRank(left[:, :rank], right[:rank])


@functools.partial(in_float64, like=0)
def _factors(rest: Array, gram: Array) -> tuple[Array, Array]:
    """Those of full rank, the leading ones first."""
    power = exponent(rest)
    near = at_scale_one(rest, power)
    _, _, right = jnp.linalg.svd(matmul(gram_root(gram), near), full_matrices=False)
    return times_power(matmul(near, right.T), power), right


def gram_root(gram: Float[Array, "inputs inputs"]) -> Float[Array, "inputs inputs"]:
    r"""Some $T$ with $T^\top T = H$, at scale one. Call it inside `float64`."""
    values, vectors = jnp.linalg.eigh(unit(gram)[0])
    return safe_sqrt(jnp.maximum(values, 0))[:, None] * vectors.T
