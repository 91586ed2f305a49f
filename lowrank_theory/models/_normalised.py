"""Layers whose batch normalisation is kept apart, as a network was trained with it."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import AnyArray

EPSILON = 1e-5  # added to the variances

Norm = Mapping[str, AnyArray]


def normalised(norm: Norm, products: Array) -> Float[Array, "..."]:
    """`scale` (products - `mean`) / sqrt(`variance` + 1e-5) + `shift`, for each channel, the last
    axis.
    """
    deviation = jnp.sqrt(jnp.asarray(norm["variance"]) + EPSILON)
    return (products - norm["mean"]) * (norm["scale"] / deviation) + norm["shift"]
