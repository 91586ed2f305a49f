"""What a method needs to have been observed, or a `ValueError` that says what to give."""

from jax.core import Tracer

from lowrank_theory._numerics import AnyArray
from lowrank_theory.calibration import AbstractCalibration, Calibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._recover import AbstractMethod


def check_no_bias(method: AbstractMethod, observed: Observed) -> None:
    """Refuse an affine layer, for a method that has no affine version."""
    if observed.bias is not None:
        raise ValueError(f"`{type(method).__name__}` has no affine version: leave `bias` out.")


def check_rectified(method: AbstractMethod, observed: Observed) -> AnyArray:
    """Outputs that were seen after a ReLU, of a layer without a bias."""
    if observed.outputs is None:
        raise ValueError(
            f"`{type(method).__name__}` fits outputs seen after a ReLU: give "
            "`Observed(activations=..., outputs=...)`."
        )
    check_no_bias(method, observed)
    return observed.outputs


def check_moments(method: str, observed: Observed) -> Calibration:
    """The second moments of what a layer without rows at hand has seen, or a `ValueError` where
    that is nothing.
    """
    return check_calibration(method, observed).moments()


def check_calibration(method: str, observed: Observed) -> AbstractCalibration:
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


def check_original(method: str, observed: Observed) -> AnyArray | AbstractCalibration:
    """What a layer sees that sees what it always saw and keeps its own outputs, or a `ValueError`
    for another layer.
    """
    seen = observed.activations
    if seen is None:
        seen = check_calibration(method, observed)
    compressed = isinstance(seen, AbstractCalibration) and seen.has_compressed
    if compressed or not (observed.compressed_activations is observed.outputs is None):
        raise ValueError(
            f"`{method}` is for layers that see what they always saw, and keep their own "
            "outputs: use `ActivationWeighted` with `compressed_activations` or `outputs`."
        )
    return seen
