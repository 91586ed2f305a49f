"""Matrices of few levels: packed codes, and scales of groups of them."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jaxtyping import Array, Float, Integer, UInt8

from lowrank_theory._numerics import AnyArray, check_count, check_group, ours, settle
from lowrank_theory.approximations._approximation import (
    AbstractMatrix,
    Storage,
    as_stored,
    check_floats,
    seen_by_jax,
    size_in_bytes,
)
from lowrank_theory.approximations._combined import Transposed
from lowrank_theory.approximations._packing import pack, packed_size, unpack

Floats = Float[Array | np.ndarray, "..."]


class Quantised(AbstractMatrix):
    r"""The matrix $A_{ij} = t_i\,s_{gj}\,(c_{ij} - z_{gj})$, kept as codes $c$ of `bits` bits.

    - `codes`: packed into bytes, those of a matrix row by row (`Quantised.of` packs them);
    - `scales` $s$ and `zeros` $z$: one for each group of `group` successive inputs and each output,
      (groups, outputs), with `axis=1` for each input and each group of outputs, (inputs, groups),
      or with `axis=None` for the whole matrix, (1, 1). The last group may be smaller; without a
      `group` there is one. Zeros are floats; without any the codes are symmetric, $z = 2^{b-1}$,
      and $\tfrac12$ for one bit, which is a sign then;
    - `input_scales` $t$, (inputs,), where some inputs were scaled before rounding;
    - `order`, (inputs,): row i of the matrix is row `order[i]` of the codes, where rows were sorted
      before they were grouped.

    Leading axes make a stack. At each product the matrix is made dense. Scales, zeros and input
    scales can be trained; codes have no derivative (`equinox.filter_grad`), and stay in casts.
    """

    codes: UInt8[Array | np.ndarray, "*stack bytes"]
    scales: Floats
    zeros: Floats | None
    input_scales: Floats | None
    order: Integer[Array | np.ndarray, "*stack inputs"] | None
    bits: int = eqx.field(static=True)
    inputs: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    group: int | None = eqx.field(static=True)
    axis: int | None = eqx.field(static=True)

    def __init__(
        self,
        codes: Any,
        scales: Any,
        zeros: Any = None,
        input_scales: Any = None,
        order: Any = None,
        *,
        bits: int,
        inputs: int,
        outputs: int,
        group: int | None = None,
        axis: int | None = 0,
    ):
        """Raises `ValueError` for arrays that do not fit together, and for bits beyond 1 to 8."""
        self.bits, self.inputs, self.outputs = bits, inputs, outputs
        self.group, self.axis = check_group(group, axis)
        settle(self, "bits", check_count, 1, 8)
        settle(self, "inputs", check_count, 1)
        settle(self, "outputs", check_count, 1)
        size = packed_size(self.inputs * self.outputs, self.bits)
        kind, shape = getattr(codes, "dtype", None), getattr(codes, "shape", ())
        if kind != np.uint8 or shape[-1:] != (size,):
            raise ValueError(
                f"`codes` must be {size} bytes (uint8) for each matrix; got {shape} of {kind}. "
                "`Quantised.of` packs codes."
            )
        stack = codes.shape[:-1]
        check_floats("scales", scales)
        for name, array, sides in (
            ("scales", scales, self._grid()),
            ("zeros", zeros, self._grid()),
            ("input_scales", input_scales, (self.inputs,)),
            ("order", order, (self.inputs,)),
        ):
            if array is None:
                continue
            if getattr(array, "shape", None) != (*stack, *sides):
                got = getattr(array, "shape", type(array).__name__)
                raise ValueError(f"`{name}` must be {(*stack, *sides)}; got {got}.")
            if name != "order" and array.dtype != scales.dtype:
                raise ValueError(f"`{name}` must be of {scales.dtype}; got {array.dtype}.")
        if order is not None and not jnp.issubdtype(order.dtype, jnp.integer):
            raise ValueError(f"`order` must be integers; got {order.dtype}.")
        if (
            isinstance(order, np.ndarray)
            and (np.sort(order, axis=-1) != np.arange(self.inputs)).any()
        ):
            raise ValueError(f"`order` must name each of {self.inputs} inputs once.")
        self.codes, self.scales = ours(codes), ours(scales)
        self.zeros, self.input_scales, self.order = (
            None if array is None else ours(array) for array in (zeros, input_scales, order)
        )

    @staticmethod
    def of(
        codes: Any,
        scales: Any,
        zeros: Any = None,
        input_scales: Any = None,
        order: Any = None,
        *,
        bits: int,
        group: int | None = None,
        axis: int | None = 0,
    ) -> "Quantised":
        """From one code for each entry, an integer from 0 to $2^b - 1$."""
        bits = check_count("bits", bits, 1, 8)
        traced = isinstance(codes, Tracer)
        codes = codes if traced else np.asarray(codes)
        if codes.ndim < 2 or not jnp.issubdtype(codes.dtype, jnp.integer):
            raise ValueError(f"`codes` must be integers (inputs, outputs); got {codes.shape}.")
        if not traced and codes.size and not 0 <= codes.min() <= codes.max() < 2**bits:
            raise ValueError(
                f"`codes` of {bits} bits are 0 to {2**bits - 1}; got {codes.min()} to "
                f"{codes.max()}. Clip them."
            )
        *stack, inputs, outputs = codes.shape
        return Quantised(
            pack(codes.reshape(*stack, inputs * outputs), bits),
            scales,
            zeros,
            input_scales,
            order,
            bits=bits,
            inputs=inputs,
            outputs=outputs,
            group=group,
            axis=axis,
        )

    def aval(self) -> ShapedArray:
        """The array that JAX sees."""
        return seen_by_jax((*self.codes.shape[:-1], self.inputs, self.outputs), self.scales)

    def unpacked(self) -> UInt8[AnyArray, "*stack inputs outputs"]:
        """The codes, one for each entry, in the order of the groups."""
        codes = unpack(self.codes, self.inputs * self.outputs, self.bits)
        return codes.reshape(self.shape)

    def chains(self) -> tuple[tuple[AnyArray, ...], ...]:
        """The dense matrix."""
        with as_stored(self):
            shape = self.inputs, self.outputs
            zeros: Any = 0.5 if self.bits == 1 else 2.0 ** (self.bits - 1)
            if self.zeros is not None:
                zeros = spread(self.zeros, shape, self.group, self.axis)
            scales = spread(self.scales, shape, self.group, self.axis)
            matrix = (jnp.asarray(self.unpacked()).astype(scales.dtype) - zeros) * scales
            if self.order is not None:
                matrix = jnp.take_along_axis(matrix, jnp.asarray(self.order)[..., None], axis=-2)
            if self.input_scales is not None:
                matrix = matrix * jnp.asarray(self.input_scales)[..., None]
        return ((matrix,),)

    def transpose(self) -> Transposed:
        """The same codes, read the other way."""
        return Transposed(self)

    @property
    def dtype(self) -> np.dtype:
        """That of the scales."""
        return self.scales.dtype

    @property
    def storage(self) -> Storage:
        """Codes, scales and all else that is kept; a multiplication for each entry."""
        entries = math.prod(self.shape)
        floats = [a for a in (self.scales, self.zeros, self.input_scales) if a is not None]
        places = [] if self.order is None else [self.order]
        beside = Storage.of(*floats, *places)
        codes = Storage(entries, entries * self.bits, size_in_bytes(self.codes), entries)
        return codes + Storage(sum(a.size for a in floats), beside.ideal_bits, beside.bytes)

    def _grid(self) -> tuple[int, int]:
        """The shape of the scales of one matrix."""
        if self.axis is None:
            return 1, 1
        sides = [self.inputs, self.outputs]
        sides[self.axis] = 1 if self.group is None else -(-sides[self.axis] // self.group)
        return sides[0], sides[1]


def spread(
    grid: Any, shape: tuple[int, ...], group: int | None, axis: int | None
) -> Float[Array, "*stack inputs outputs"]:
    """A number of each group, for each of its entries: of this shape, or such as broadcasts to
    it.
    """
    grid = jnp.asarray(grid)
    if group is None or axis is None:
        return grid
    inputs, outputs = shape
    return jnp.repeat(grid, group, axis=axis - 2)[..., :inputs, :outputs]
