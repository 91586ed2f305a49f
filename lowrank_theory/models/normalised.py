"""Layers whose batch normalisation is kept apart, as a network was trained with it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lowrank_theory._numerics import AnyArray
from lowrank_theory.data_constrained import BatchNormalisation

EPSILON = 1e-5  # added to the variances
NORM = ("scale", "shift", "mean", "variance")

Norm = Mapping[str, AnyArray]


def normalised(norm: Norm, products: Array) -> Float[Array, "..."]:
    """`scale` (products - `mean`) / sqrt(`variance` + 1e-5) + `shift`, for each channel, the last
    axis.
    """
    deviation = jnp.sqrt(jnp.asarray(norm["variance"]) + EPSILON)
    return (products - norm["mean"]) * (norm["scale"] / deviation) + norm["shift"]


def batch_normalisations(parameters: PyTree) -> tuple[BatchNormalisation, ...]:
    """The normalisations in the parameters of `digits_cnn_network`, and of `resnet_network` where
    they are not folded: layers with a `kernel`, and with `scale`, `shift`, `mean` and `variance` in
    `norm`.

    Raises `ValueError` where there is none.
    """
    paths = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(parameters)
    ]
    end = "['norm']['shift']"
    layers = [path.removesuffix(end) for path in paths if path.endswith(end)]
    if not layers:
        raise ValueError(
            "`parameters` have no `norm` beside a kernel: read `resnet_network(..., folded=False)`,"
            " or name each `BatchNormalisation` of a network of yours."
        )
    return tuple(
        BatchNormalisation(
            **{part: f"{layer}['norm']['{part}']" for part in NORM},
            kernel=f"{layer}['kernel']",
            epsilon=EPSILON,
        )
        for layer in layers
    )
