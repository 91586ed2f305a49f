"""Random numbers in float64 from 32-bit words.

JAX draws float64 numbers from 64-bit words, which a program compiled with the x64 flag off cannot
lower. These few functions need 32-bit words only, so that a setting can be drawn inside any user's
`jit`.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def uniform(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Uniform on the open unit interval, with 53 random bits; call it inside `float64`."""
    words = jax.random.bits(key, (2, *shape), "uint32").astype(jnp.float64)
    leading, trailing = (
        words[0],
        jnp.floor(words[1] / 2**12),
    )  # 32 + 20 bits, and half a unit to stay inside
    return (leading + (trailing + 0.5) / 2**20) / 2**32


def normal(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Standard normal, by inversion."""
    return math.sqrt(2) * jax.lax.erf_inv(2 * uniform(key, shape) - 1)


def laplace(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Double exponential of unit variance, by inversion."""
    centred = uniform(key, shape) - 0.5
    return -jnp.sign(centred) * jnp.log1p(-2 * jnp.abs(centred)) / math.sqrt(2)


def student_t(key: PRNGKeyArray, degrees: float, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Student's t, by the polar method (Bailey 1994)."""
    radius_key, angle_key = jax.random.split(key)
    radius = jnp.sqrt(degrees * jnp.expm1(-2 / degrees * jnp.log(uniform(radius_key, shape))))
    return radius * jnp.cos(2 * math.pi * uniform(angle_key, shape))
