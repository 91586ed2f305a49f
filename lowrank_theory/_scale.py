r"""Powers of two: a computation at scale one, whatever the units of its inputs.

Squares leave float64 where a number leaves $10^{\pm154}$. So what squares is scaled first, by
$2^{-e}$ with $2^e$ the size of the largest entry, and its results are scaled back. Both are exact
while the results are normal numbers.

XLA takes subnormal numbers for zeros on a CPU. Their bits are read as integers here, so that an
array of them is as good as any other on entry. Call these functions inside `float64`.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

Function = TypeVar("Function", bound=Callable[..., Any])

SMALLEST = float(np.finfo(np.float64).tiny)  # what is below may be taken for zero

_BIAS, _DIGITS, _SPECIAL = 1023, 52, 2047  # of the exponent of a float64, and its digits
_MAGNITUDE = (1 << 63) - 1
_EXPONENT = _SPECIAL << _DIGITS


def _traced_once(function: Function) -> Function:
    """Compiled, and traced once for each shape, however many programs it is a part of."""
    return cast(Function, jax.jit(function))


@_traced_once
def widened(array: Any) -> Float[Array, "..."]:
    """The same numbers in float64, subnormal ones included."""
    array = jnp.asarray(array)
    wide = array.astype(jnp.float64)
    if array.dtype == jnp.bfloat16:
        array = lax.bitcast_convert_type(_bits(array).astype(jnp.uint32) << 16, jnp.float32)
    if array.dtype != jnp.float32:
        return wide
    bits = _bits(array)
    digits = (bits & 0x7FFFFF).astype(jnp.float64) * 2.0**-149
    exact = jnp.where(bits >> 31 == 1, -digits, digits)
    return wide + jnp.where((bits & 0x7F800000) == 0, exact - lax.stop_gradient(wide), 0)


@_traced_once
def exponent(*arrays: Any) -> Int[Array, ""]:
    """The largest e such that some entry is at least $2^e$ in size; 0 where all are zero, or one is
    not finite.
    """
    tops = [jnp.max(_bits(widened(array)) & _MAGNITUDE, initial=0) for array in arrays]
    top = functools.reduce(lax.max, tops)
    field = top >> _DIGITS
    below = _bits(top.astype(jnp.float64)) >> _DIGITS  # of the digits of a subnormal number
    field = lax.select(field == 0, below - (_BIAS + _DIGITS - 1), field)
    known = (top != 0) & (field != _SPECIAL)
    return lax.select(known, field - _BIAS, jnp.zeros_like(field)).astype(jnp.int32)


@_traced_once
def times_power(array: Any, power: Int[Array, "..."] | int) -> Float[Array, "..."]:
    """$2^p$ times an array, exactly where that is a normal number; zero below these."""
    first, second = _factors(power)
    return jnp.asarray(array) * first * second


@_traced_once
def at_scale_one(array: Any, power: Int[Array, ""] | int) -> Float[Array, "..."]:
    """$2^{-p}$ times an array on entry, whose subnormal numbers count."""
    array, power = widened(array), jnp.asarray(power, jnp.int32)
    bits, zero = _bits(array), jnp.zeros(array.shape)
    digits = jnp.where(bits & _EXPONENT == 0, bits & ((1 << _DIGITS) - 1), 0)
    signed = lax.select(bits < 0, -digits, digits).astype(jnp.float64)
    normal = array - lax.stop_gradient(lax.select(digits == 0, zero, array))
    first, second = _factors(-power)
    below, _ = _factors(-(_BIAS + _DIGITS - 1) - power)  # at most, and else of no account
    return normal * first * second + signed * below


def _factors(power: Any) -> tuple[Array, Array]:
    """Two numbers whose product is $2^p$, or beyond all numbers."""
    power = jnp.asarray(power, jnp.int32)
    least, most = np.int32(1 - _BIAS), np.int32(_BIAS)
    first = lax.clamp(least, power, most)
    second = lax.clamp(least, power - first, most)
    return _power(first), _power(second)


def _power(power: Array) -> Array:
    """$2^p$ from its bits."""
    field = (power + np.int32(_BIAS)).astype(jnp.int64)
    return lax.bitcast_convert_type(field << np.int64(_DIGITS), jnp.float64)


@_traced_once
def unit(array: Any) -> tuple[Float[Array, "..."], Int[Array, ""]]:
    """The array with entries below two in size, the largest at least one, and the power of two by
    which it was divided.
    """
    power = exponent(array)
    return at_scale_one(array, power), power


@_traced_once
def equilibrated(
    matrix: Any,
) -> tuple[Float[Array, "rows columns"], Int[Array, " columns"]]:
    """The matrix with each column divided by its own power of two, so that its entries are below
    two in size, and these powers: a rank cut-off then looks at directions, not at units.
    """
    matrix = jnp.asarray(matrix, float)
    powers = jax.vmap(exponent, in_axes=1)(matrix)
    return times_power(matrix, -powers), powers


@_traced_once
def norm(array: Any) -> Float[Array, ""]:
    """The Frobenius norm, of numbers whose squares may leave float64."""
    scaled, power = unit(array)
    square = jnp.sum(scaled**2)
    zero = square == 0
    return times_power(jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square))), power)


def _bits(array: Array) -> Array:
    kinds = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.int64}
    return lax.bitcast_convert_type(lax.stop_gradient(array), kinds[array.dtype.itemsize])
