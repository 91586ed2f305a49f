"""The least-squares problem of a layer, for methods that find no low rank."""

from typing import Any, NamedTuple

from jaxtyping import Float

from lowrank_theory._numerics import AnyArray
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
