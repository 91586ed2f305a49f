"""Scaling by powers of two, which is exact: statistics are computed at magnitudes of about one.

So nothing depends on the scale of the rows but whether the results themselves fit into float64.
What does not fit is NaN (or infinite) in a program, and refused where values are at hand.
"""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Int

from lowrank_theory import _scale
from lowrank_theory._numerics import AnyArray
from lowrank_theory._scale import times_power

Tree = TypeVar("Tree")

STATISTICS_WITH_BATCH = "The statistics with `activations`"

_LEAST = -1100
_FULL_DIGITS = 2.0**-969  # above, what is lost below float64 is within its precision


def exponent_above(*arrays: AnyArray | None) -> Int[Array, ""]:
    """The power of two just above the largest magnitude; the least one if all are zero."""
    tops = [jnp.max(jnp.abs(array)).astype(float) for array in arrays if array is not None]
    largest = functools.reduce(lax.max, tops)
    known = (largest > 0) & (largest < jnp.inf)
    return jnp.where(known, _scale.exponent(largest) + 1, _LEAST)


def root_exponent_above(*squares: AnyArray | None) -> Int[Array, ""]:
    """The same of the square roots."""
    power = exponent_above(*squares)
    return jnp.where(power == _LEAST, _LEAST, (power + 1) >> 1)


def times_squared_power(array: AnyArray, power: Int[Array, ""]) -> Array:
    """`array * 4**power`; NaN where digits of the largest square are lost below float64."""
    result = times_power(times_power(array, power), power)
    lost = jnp.any(jnp.asarray(array) != 0) & (jnp.max(jnp.abs(result)) < _FULL_DIGITS)
    return jnp.where(lost, jnp.nan, result)


def all_finite(statistics: Any) -> bool:
    """Whether all numbers at hand in this process are; waits for them."""
    parts: list[Any] = []
    for leaf in jax.tree.leaves(statistics):
        held = leaf.addressable_shards if isinstance(leaf, Array) else None
        parts.extend([leaf] if held is None else [shard.data for shard in held])
    return all(np.isfinite(np.asarray(part)).all() for part in parts)


def check_range(what: str, statistics: Tree) -> Tree:
    """The same statistics, computed, or a `ValueError` where they do not fit into float64.

    As it waits for the values, arrays that were lent to the computation are free again.
    """
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(statistics))
    if not traced and not all_finite(jax.block_until_ready(statistics)):
        raise ValueError(_out_of_range(what))
    return statistics


def _out_of_range(what: str) -> str:
    """What to do about statistics that do not fit."""
    return (
        f"{what} do not fit into float64: rows, or squares of rows, leave the range from "
        f"{_FULL_DIGITS:.0e} to {np.finfo(float).max:.0e}. Divide all rows by one power of two, "
        "and multiply results by it; `TriangularCalibration` keeps no squares."
    )
