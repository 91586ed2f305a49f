"""Random numbers in float64, from a JAX key or from a NumPy generator.

JAX draws float64 numbers from 64-bit words, which a program compiled with the x64 flag off cannot
lower. These few functions need 32-bit words only, but for the last three, so that a setting can be
drawn inside any user's `jit`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lowrank_theory._arrays import Drawn, Key, namespace
from lowrank_theory._numerics import AnyArray


def split(key: Key, count: int = 2) -> Any:
    """Independent keys of the same kind."""
    if isinstance(key, np.random.Generator):
        return key.spawn(count)
    return jax.random.split(key, count)


def uniform(key: Key, shape: tuple[int, ...]) -> Float[Drawn, "..."]:
    """Uniform on the open unit interval, with 52 random bits; call it inside `float64`."""
    if isinstance(key, np.random.Generator):
        return (key.integers(0, 2**52, shape) + 0.5) / 2**52
    words = jax.random.bits(key, (2, *shape), "uint32").astype(jnp.float64)
    leading, trailing = (
        words[0],
        jnp.floor(words[1] / 2**12),
    )  # 32 + 20 bits, and half a unit to stay inside
    return (leading + (trailing + 0.5) / 2**20) / 2**32


def normal(key: Key, shape: tuple[int, ...]) -> Float[Drawn, "..."]:
    """Standard normal; from a JAX key by inversion."""
    if isinstance(key, np.random.Generator):
        return key.standard_normal(shape)
    return math.sqrt(2) * jax.lax.erf_inv(2 * uniform(key, shape) - 1)


def signs(key: Key, shape: tuple[int, ...]) -> Float[Drawn, "..."]:
    """One and minus one, equally likely."""
    return namespace(key).where(uniform(key, shape) < 0.5, -1.0, 1.0)


def laplace(key: Key, shape: tuple[int, ...]) -> Float[Drawn, "..."]:
    """Double exponential of unit variance, by inversion."""
    xp, centred = namespace(key), uniform(key, shape) - 0.5
    return -xp.sign(centred) * xp.log1p(-2 * xp.abs(centred)) / math.sqrt(2)


def student_t(key: Key, degrees: float, shape: tuple[int, ...]) -> Float[Drawn, "..."]:
    """Student's t, by the polar method (Bailey 1994)."""
    xp = namespace(key)
    radius_key, angle_key = split(key)
    radius = xp.sqrt(degrees * xp.expm1(-2 / degrees * xp.log(uniform(radius_key, shape))))
    return radius * xp.cos(2 * math.pi * uniform(angle_key, shape))


def permutation(key: Key, array: AnyArray, *, axis: int = 0) -> AnyArray:
    """The array, its slices along the axis in random order."""
    if isinstance(key, np.random.Generator):
        return key.permutation(array, axis=axis)
    return jax.random.permutation(key, jnp.asarray(array), axis=axis)


def integers(key: Key, shape: tuple[int, ...], count: int) -> Int[Drawn, "..."]:
    """Integers from 0 on, below a count, equally likely."""
    if isinstance(key, np.random.Generator):
        return key.integers(0, count, shape)
    return jax.random.randint(key, shape, 0, count)


def chi(key: Key, degrees: Float[Drawn, "..."]) -> Float[Drawn, "..."]:
    """The lengths of standard normal vectors in so many dimensions."""
    if isinstance(key, np.random.Generator):
        return np.sqrt(2 * key.standard_gamma(degrees / 2))
    return jnp.sqrt(2 * jax.random.gamma(key, degrees / 2, dtype=float))


def normal_by_jax(key: Key, shape: tuple[int, ...]) -> Float[Drawn, "..."]:
    """Standard normal; from a JAX key other numbers than those of `normal`."""
    if isinstance(key, np.random.Generator):
        return key.standard_normal(shape)
    return jax.random.normal(key, shape, float)
