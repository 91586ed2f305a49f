"""Scaling by powers of two, which is exact: statistics are computed at magnitudes of about one.

So nothing depends on the scale of the rows but whether the results themselves fit into float64.
What does not fit is NaN (or infinite) in a program, and refused where values are at hand.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from lowrank_theory._numerics import AnyArray

Tree = TypeVar("Tree")

_LEAST = -1100
_FULL_DIGITS = 2.0**-969  # above, what is lost below float64 is within its precision


def exponent(*arrays: AnyArray | None) -> Int[Array, ""]:
    """The power of two just above the largest magnitude; the least one if all are zero."""
    given = [array for array in arrays if array is not None]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(array)).astype(float) for array in given]))
    exists = jnp.isfinite(largest) & (largest > 0)
    return jnp.where(exists, jnp.frexp(largest)[1], _LEAST)


def root_exponent(*squares: AnyArray | None) -> Int[Array, ""]:
    """The same of the square roots."""
    power = exponent(*squares)
    return jnp.where(power == _LEAST, _LEAST, -(-power // 2))


def scaled(array: AnyArray, power: Int[Array, ""]) -> Array:
    """`array * 2**power`: in two steps, as the power itself may not fit."""
    half = power // 2
    return jnp.asarray(array) * _power_of_two(half) * _power_of_two(power - half)


def squares_scaled(array: AnyArray, power: Int[Array, ""]) -> Array:
    """`array * 4**power`; NaN where digits of the largest square are lost below float64."""
    result = scaled(scaled(array, power), power)
    lost = jnp.any(jnp.asarray(array) != 0) & (jnp.max(jnp.abs(result)) < _FULL_DIGITS)
    return jnp.where(lost, jnp.nan, result)


def _power_of_two(power: Int[Array, ""]) -> Float[Array, ""]:
    """Exactly, for an exponent from -1022 to 1023."""
    return lax.bitcast_convert_type((power.astype(jnp.int64) + 1023) << 52, jnp.float64)


def finite(statistics: Any) -> bool:
    """Whether all numbers at hand in this process are; waits for them."""
    parts: list[Any] = []
    for leaf in jax.tree.leaves(statistics):
        held = leaf.addressable_shards if isinstance(leaf, Array) else None
        parts.extend([leaf] if held is None else [shard.data for shard in held])
    return all(np.isfinite(np.asarray(part)).all() for part in parts)


def fits(what: str, statistics: Tree) -> Tree:
    """The same statistics, computed, or a `ValueError` where they do not fit into float64.

    As it waits for the values, arrays that were lent to the computation are free again.
    """
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(statistics))
    if not traced and not finite(jax.block_until_ready(statistics)):
        raise ValueError(too_large_or_small(what))
    return statistics


def too_large_or_small(what: str) -> str:
    """What to do about statistics that do not fit."""
    return (
        f"{what} do not fit into float64: rows, or squares of rows, leave the range from "
        f"{_FULL_DIGITS:.0e} to {np.finfo(float).max:.0e}. Divide all rows by one power of two, "
        "and multiply results by it; `TriangularCalibration` keeps no squares."
    )
