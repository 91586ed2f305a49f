"""Integers of few bits, packed one after the other into bytes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, UInt8

from lowrank_theory._numerics import AnyArray


def packed_size(count: int, bits: int) -> int:
    """The bytes that so many integers take."""
    return -(-count * bits // 8)


def pack(codes: Integer[AnyArray, "*stack count"], bits: int) -> UInt8[AnyArray, "*stack bytes"]:
    """Codes from 0 to $2^b - 1$, the lowest bit first; the last byte is filled with zeros."""
    library = jnp if isinstance(codes, Array) else np
    places = (codes[..., None] >> np.arange(bits, dtype=codes.dtype)) & 1
    flat = places.astype(np.uint8).reshape(*codes.shape[:-1], -1)
    return library.packbits(flat, axis=-1, bitorder="little")


def unpack(
    packed: UInt8[AnyArray, "*stack bytes"], count: int, bits: int
) -> UInt8[AnyArray, "*stack count"]:
    """The codes again."""
    if bits == 8:
        return packed
    library: Any = jnp if isinstance(packed, Array) else np
    places = library.unpackbits(packed, axis=-1, count=count * bits, bitorder="little")
    places = places.reshape(*packed.shape[:-1], count, bits)
    weights = 2 ** np.arange(bits, dtype=np.uint8)
    return library.sum(places * weights, axis=-1, dtype=np.uint8)


def bits_for(count: int) -> int:
    """How many bits tell so many values apart; at least one."""
    return max(1, (count - 1).bit_length())
