"""The theorems by part, in the order of a paper: the one list of them.

A theorem is added by its name here; `make indices` then writes the lists of names elsewhere.
"""

PARTS: dict[str, tuple[str, ...]] = {
    "Approximation and perturbation": (
        "best_possible",
        "singular_values",
        "singular_subspaces",
        "truncation_stability",
    ),
    "Noise": (
        "gaussian_noise",
        "subgaussian_noise",
        "heteroskedastic_noise",
        "white_residual",
        "second_moment",
    ),
    "Recovery": (
        "planted_rank",
        "unequal_noise",
        "projected_truth",
        "strong_signal",
        "approximate_rank",
        "rank_penalty",
        "minimax_floor",
        "spiked_limit",
        "relu_noise_after",
        "relu_noise_before",
    ),
    "Why data helps": ("orientation", "gain_of_data"),
    "Data": (
        "price_of_ignoring_data",
        "calibration_size",
        "calibration_excess",
        "ridge_limit",
        "held_out_certificate",
    ),
    "Networks and numerics": (
        "network_composition",
        "numerical_route",
        "randomized_range",
    ),
    "Other compressions": (
        "rounding",
        "equalisation",
        "second_order_rounding",
        "pruning",
        "quantised_factors",
        "low_rank_plus_sparse",
        "rate_distortion",
        "look_up",
    ),
}
