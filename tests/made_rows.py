"""Rows of studies that no study has found."""

from typing import Any

from lowrank_theory.studies.layer_rows import LayerAtRank
from lowrank_theory.studies.transfer_rows import NetworkAtSize


def layer_at_rank(**said: Any) -> LayerAtRank:
    errors: dict[str, Any] = {
        "data_agnostic_error": 0.5, "diagonal_error": 0.4, "data_driven_error": 0.3,
        "optimal_error": 0.2, "price_bound": 0.6, "recovery_error": 0.3, "recovery_bound": 0.4,
        "projected_bound": 0.35,
    }  # fmt: skip
    place: dict[str, Any] = {"network": "net", "layer": "a layer", "shape": (2, 2), "rank": 1}
    return LayerAtRank(**(place | errors | said))


def network_at_size(**said: Any) -> NetworkAtSize:
    row: dict[str, Any] = {
        "budget": 0.5, "method": "data-driven", "parameters": 10, "dense_parameters": 20,
        "bytes": 50, "dense_bytes": 100, "multiply_adds": 48, "dense_multiply_adds": 100,
        "left_dense": 0, "output_loss": 0.1, "quantiles": (0.0, 0.1, 0.2), "certificate": 0.25,
        "error_calibration": 0.1, "error_held_out": 0.125, "metric": 0.95, "difference": -0.0125,
        "low": -0.02, "high": 0.0,
    }  # fmt: skip
    return NetworkAtSize(**(row | said))
