r"""Powers of two: a computation at scale one, whatever the units of its inputs.

Squares leave float64 where a number leaves $10^{\pm154}$. So what squares is scaled first, by
$2^{-e}$ with $2^e$ the size of the largest entry, and its results are scaled back. Both are exact
while the results are normal numbers.

XLA takes subnormal numbers for zeros on a CPU. Their bits are read as integers here, so that an
array of them is as good as any other on entry. Call these functions inside `float64`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

SMALLEST = float(np.finfo(np.float64).tiny)  # what is below may be taken for zero

_BIAS, _DIGITS, _SPECIAL = 1023, 52, 2047  # of the exponent of a float64, and its digits
_MAGNITUDE = (1 << 63) - 1
_EXPONENT = _SPECIAL << _DIGITS


def widened(array: Any) -> Float[Array, "..."]:
    """The same numbers in float64, subnormal ones included."""
    array = jnp.asarray(array)
    wide = array.astype(jnp.float64)
    if array.dtype == jnp.bfloat16:
        array = jax.lax.bitcast_convert_type(_bits(array).astype(jnp.uint32) << 16, jnp.float32)
    if array.dtype != jnp.float32:
        return wide
    bits = _bits(array)
    digits = (bits & 0x7FFFFF).astype(jnp.float64) * 2.0**-149
    exact = jnp.where(bits >> 31 == 1, -digits, digits)
    return wide + jnp.where((bits & 0x7F800000) == 0, exact - jax.lax.stop_gradient(wide), 0)


def exponent(*arrays: Any) -> Int[Array, ""]:
    """The largest e such that some entry is at least $2^e$ in size; 0 where all are zero, or one is
    not finite.
    """
    tops = [jnp.max(_bits(jnp.asarray(array)) & _MAGNITUDE, initial=0) for array in arrays]
    top = functools.reduce(jnp.maximum, tops)
    below = _bits(top.astype(jnp.float64)) >> _DIGITS  # of the digits of a subnormal number
    field = jnp.where(top >> _DIGITS == 0, below - (_BIAS + _DIGITS - 1), top >> _DIGITS)
    return jnp.where((top == 0) | (field == _SPECIAL), 0, (field - _BIAS).astype(jnp.int32))


def times_power(array: Any, power: Int[Array, "..."] | int) -> Float[Array, "..."]:
    """$2^p$ times an array, exactly where that is a normal number; zero below these."""
    first, second = _factors(power)
    return jnp.asarray(array) * first * second


def at_scale_one(array: Any, power: Int[Array, ""] | int) -> Float[Array, "..."]:
    """$2^{-p}$ times an array on entry, whose subnormal numbers count."""
    array, power = jnp.asarray(array, float), jnp.asarray(power, jnp.int32)
    bits = _bits(array)
    digits = jnp.where(bits & _EXPONENT == 0, bits & ((1 << _DIGITS) - 1), 0)
    signed = jnp.where(bits < 0, -digits, digits).astype(jnp.float64)
    normal = array - jax.lax.stop_gradient(jnp.where(digits == 0, 0, array))
    first, second = _factors(-power)
    below, _ = _factors(-(_BIAS + _DIGITS - 1) - power)  # at most, and else of no account
    return normal * first * second + signed * below


def _factors(power: Any) -> tuple[Array, Array]:
    """Two numbers whose product is $2^p$, or beyond all numbers."""
    power = jnp.asarray(power, jnp.int32)
    first = jnp.clip(power, 1 - _BIAS, _BIAS)
    second = jnp.clip(power - first, 1 - _BIAS, _BIAS)
    made = ((each + _BIAS).astype(jnp.int64) << _DIGITS for each in (first, second))
    first, second = (jax.lax.bitcast_convert_type(bits, jnp.float64) for bits in made)
    return first, second


def unit(array: Any) -> tuple[Float[Array, "..."], Int[Array, ""]]:
    """The array with entries below two in size, the largest at least one, and the power of two by
    which it was divided.
    """
    power = exponent(array)
    return at_scale_one(array, power), power


def equilibrated(
    matrix: Any,
) -> tuple[Float[Array, "rows columns"], Int[Array, " columns"]]:
    """The matrix with each column divided by its own power of two, so that its entries are below
    two in size, and these powers: a rank cut-off then looks at directions, not at units.
    """
    matrix = jnp.asarray(matrix, float)
    powers = jax.vmap(exponent, in_axes=1)(matrix)
    return times_power(matrix, -powers), powers


def norm(array: Any) -> Float[Array, ""]:
    """The Frobenius norm, of numbers whose squares may leave float64."""
    scaled, power = unit(array)
    square = jnp.sum(scaled**2)
    zero = square == 0
    return times_power(jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square))), power)


def _bits(array: Array) -> Array:
    kinds = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.int64}
    return jax.lax.bitcast_convert_type(jax.lax.stop_gradient(array), kinds[array.dtype.itemsize])
