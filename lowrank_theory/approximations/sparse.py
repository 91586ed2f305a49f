"""Matrices of few entries: values, and a pattern that says where they stand."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jaxtyping import Array, Bool, Float, Integer, UInt, UInt8

from lowrank_theory._numerics import AnyArray, check_count, ours
from lowrank_theory.approximations._approximation import (
    AbstractMatrix,
    Storage,
    as_stored,
    check_floats,
    check_places,
    seen_by_jax,
    size_in_bytes,
)
from lowrank_theory.approximations._combined import Transposed
from lowrank_theory.approximations._packing import bits_for, pack, unpack


class AbstractPattern(eqx.Module):
    """Where the entries stand that are kept, of every matrix of a stack."""

    inputs: eqx.AbstractVar[int]
    outputs: eqx.AbstractVar[int]

    @property
    @abc.abstractmethod
    def stack(self) -> tuple[int, ...]:
        """The leading axes."""

    @property
    @abc.abstractmethod
    def ideal_bits(self) -> int:
        """In how many bits the pattern is written down, without padding."""

    @property
    @abc.abstractmethod
    def width(self) -> int | None:
        """How many values a matrix keeps, if the pattern fixes it."""

    @abc.abstractmethod
    def scattered(self, values: Float[Array, " kept"]) -> Float[Array, "inputs outputs"]:
        """The dense matrix of these values, for a pattern of one matrix."""


class Bitmap(AbstractPattern):
    """One bit for each entry, row by row; values in the same order."""

    bits: UInt8[Array | np.ndarray, "*stack bytes"]
    inputs: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)

    @staticmethod
    def of(mask: Bool[np.ndarray, "*stack inputs outputs"]) -> "Bitmap":
        """Of the entries where the mask is true."""
        *stack, inputs, outputs = mask.shape
        packed = pack(mask.astype(np.uint8).reshape(*stack, inputs * outputs), 1)
        return Bitmap(bits=packed, inputs=inputs, outputs=outputs)

    @property
    def stack(self) -> tuple[int, ...]:
        """The leading axes."""
        return self.bits.shape[:-1]

    @property
    def ideal_bits(self) -> int:
        """One for each entry."""
        return math.prod(self.stack) * self.inputs * self.outputs

    @property
    def width(self) -> int | None:
        """Any number."""
        return None

    def scattered(self, values: Float[Array, " kept"]) -> Float[Array, "inputs outputs"]:
        """Each entry is the value of its rank among the bits, counted in rows and then in columns,
        which takes a quarter of the time of one long count.
        """
        mask = unpack(self.bits, self.inputs * self.outputs, 1).reshape(self.inputs, self.outputs)
        within = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
        before = jnp.cumsum(within[:, -1]) - within[:, -1]
        place = before[:, None] + within - 1
        return jnp.where(mask == 1, values.at[place].get(mode="clip"), 0)


class CompressedRows(AbstractPattern):
    """For each value its column, and where the values of each row start (CSR)."""

    columns: UInt[Array | np.ndarray, "*stack kept"]
    starts: Integer[Array | np.ndarray, "*stack starts"]
    inputs: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        """Raises `ValueError` for columns beyond the outputs, and rows that start out of order."""
        check_places("columns", self.columns, self.outputs)
        kept = self.columns.shape[-1]
        if self.starts.shape[-1] != self.inputs + 1:
            raise ValueError(f"`starts` must be {self.inputs + 1}; got {self.starts.shape[-1]}.")
        check_places("starts", self.starts, kept + 1)
        if isinstance(self.starts, np.ndarray) and (np.diff(self.starts, axis=-1) < 0).any():
            raise ValueError("`starts` must not fall from one row to the next.")

    @staticmethod
    def of(mask: Bool[np.ndarray, "*stack inputs outputs"]) -> "CompressedRows":
        """Of the entries where the mask is true; shorter matrices of a stack are padded."""
        *stack, inputs, outputs = mask.shape
        flat = mask.reshape(-1, inputs, outputs)
        starts = np.zeros((len(flat), inputs + 1), np.int32)
        np.cumsum(flat.sum(axis=2), axis=1, out=starts[:, 1:])
        kept = max(1, int(starts[:, -1].max(initial=0)))
        columns = np.zeros((len(flat), kept), np.min_scalar_type(outputs - 1))
        for row, each in zip(columns, flat, strict=True):
            found = np.nonzero(each)[1]
            row[: len(found)] = found
        return CompressedRows(
            columns=columns.reshape(*stack, kept),
            starts=starts.reshape(*stack, inputs + 1),
            inputs=inputs,
            outputs=outputs,
        )

    @property
    def stack(self) -> tuple[int, ...]:
        """The leading axes."""
        return self.columns.shape[:-1]

    @property
    def ideal_bits(self) -> int:
        """The columns in as many bits as tell them apart, and the starts as they are kept."""
        return self.columns.size * bits_for(self.outputs) + 8 * size_in_bytes(self.starts)

    @property
    def width(self) -> int | None:
        """One for each column that is written down."""
        return self.columns.shape[-1]

    def scattered(self, values: Float[Array, " kept"]) -> Float[Array, "inputs outputs"]:
        """Each value goes to its row and column; what pads is beyond the last row."""
        starts = jnp.asarray(self.starts)
        place = jnp.arange(values.size, dtype=starts.dtype)
        row = jnp.searchsorted(starts, place, side="right") - 1
        dense = jnp.zeros((self.inputs, self.outputs), values.dtype)
        return dense.at[row, jnp.asarray(self.columns)].set(values, mode="drop")


class NOfM(AbstractPattern):
    """Of each `group` successive inputs of an output, `kept` values: the places of these among
    them, in packed codes. Values go by groups of inputs, then by outputs, then by places.
    """

    places: UInt8[Array | np.ndarray, "*stack bytes"]
    inputs: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    kept: int = eqx.field(static=True)
    group: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        """Raises `ValueError` for places beyond the group."""
        if isinstance(self.places, np.ndarray):
            check_places("places", np.asarray(self._unpacked()), self.group)

    @staticmethod
    def of(places: Integer[np.ndarray, "*stack groups outputs kept"], group: int) -> "NOfM":
        """At these places, from 0 to `group` - 1, in each group of inputs."""
        *stack, groups, outputs, kept = places.shape
        packed = pack(places.reshape(*stack, -1), bits_for(group))
        inputs = groups * group
        return NOfM(places=packed, inputs=inputs, outputs=outputs, kept=kept, group=group)

    @property
    def stack(self) -> tuple[int, ...]:
        """The leading axes."""
        return self.places.shape[:-1]

    @property
    def ideal_bits(self) -> int:
        """A place for each value."""
        return math.prod(self.stack) * self._count * bits_for(self.group)

    @property
    def width(self) -> int | None:
        """The same for all matrices."""
        return self._count

    @property
    def _count(self) -> int:
        return self.inputs // self.group * self.outputs * self.kept

    def _unpacked(self) -> UInt8[AnyArray, "*stack kept"]:
        return unpack(self.places, self._count, bits_for(self.group))

    def scattered(self, values: Float[Array, " kept"]) -> Float[Array, "inputs outputs"]:
        """In each group, each value goes to its place."""
        shape = self.inputs // self.group, self.outputs, self.kept
        places = self._unpacked().reshape(shape)
        chosen = places[..., None] == jnp.arange(self.group, dtype=jnp.uint8)
        groups = jnp.sum(jnp.where(chosen, values.reshape(shape)[..., None], 0), axis=2)
        return groups.swapaxes(1, 2).reshape(self.inputs, self.outputs)


class WholeRows(AbstractPattern):
    """One bit for each row: some are kept whole, and their values stand row by row."""

    bits: UInt8[Array | np.ndarray, "*stack bytes"]
    inputs: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)

    @staticmethod
    def of(mask: Bool[np.ndarray, "*stack inputs outputs"]) -> "WholeRows":
        """Of the rows where the mask is true. Raises `ValueError` where only a part of one is."""
        stays = np.asarray(mask.any(axis=-1))
        if not np.array_equal(stays, mask.all(axis=-1)):
            raise ValueError("`mask` must keep each row whole, or leave it out: use a `Bitmap`.")
        packed = pack(np.asarray(stays, np.uint8), 1)
        return WholeRows(bits=packed, inputs=mask.shape[-2], outputs=mask.shape[-1])

    @property
    def stack(self) -> tuple[int, ...]:
        """The leading axes."""
        return self.bits.shape[:-1]

    @property
    def ideal_bits(self) -> int:
        """One for each row."""
        return math.prod(self.stack) * self.inputs

    @property
    def width(self) -> int | None:
        """Any number."""
        return None

    def scattered(self, values: Float[Array, " kept"]) -> Float[Array, "inputs outputs"]:
        """Each row has the values of its rank among the bits."""
        mask = unpack(self.bits, self.inputs, 1)[:, None]
        row = jnp.cumsum(mask, axis=0, dtype=jnp.int32) - 1
        place = row * self.outputs + jnp.arange(self.outputs, dtype=jnp.int32)
        return jnp.where(mask == 1, values.at[place].get(mode="clip"), 0)


class Sparse(AbstractMatrix):
    """The `values` where a pattern (`Bitmap`, `CompressedRows`, `NOfM`, `WholeRows`) says, zero
    elsewhere. Values are floats or a matrix of one column that stands for them, such as a
    `Quantised`.

    Of a stack, each matrix keeps as many values as the one with the most; what pads is charged. At
    each product the matrix is made dense.
    """

    values: Float[Array | np.ndarray, "*stack kept"] | AbstractMatrix
    pattern: AbstractPattern

    def __init__(self, values: Any, pattern: AbstractPattern):
        """Raises `ValueError` unless the values are floats or a matrix of one column, as many as
        the pattern has places.
        """
        if not isinstance(pattern, AbstractPattern):
            raise ValueError(
                "`pattern` must be a `Bitmap`, `CompressedRows`, `NOfM` or `WholeRows`; got "
                f"{type(pattern).__name__}."
            )
        shape = pattern.stack
        if isinstance(values, AbstractMatrix):
            shape = (*shape, values.shape[-2] if pattern.width is None else pattern.width, 1)
        else:
            check_floats("values", values, "kept")
            shape = (*shape, values.shape[-1] if pattern.width is None else pattern.width)
        if values.shape != shape:
            raise ValueError(f"`values` must be {shape}; got {values.shape}.")
        self.values, self.pattern = jax.tree.map(ours, (values, pattern))

    @staticmethod
    def of(
        matrix: Any,
        mask: Any,
        kind: Any = Bitmap,
    ) -> "Sparse":
        """The entries of a matrix where a mask is true, in a pattern that has an `of` for masks:
        `Bitmap`, `CompressedRows` or `WholeRows`.
        """
        matrix, mask = np.asarray(matrix), np.asarray(mask, bool)
        if matrix.shape != mask.shape:
            raise ValueError(f"`mask` must be {matrix.shape}; got {mask.shape}.")
        *stack, inputs, outputs = matrix.shape
        entries = matrix.reshape(-1, inputs * outputs)
        chosen = mask.reshape(entries.shape)
        kept = max(1, int(chosen.sum(axis=1).max(initial=0)))
        values = np.zeros((len(entries), kept), matrix.dtype)
        for row, each, where in zip(values, entries, chosen, strict=True):
            found = each[where]
            row[: len(found)] = found
        return Sparse(values.reshape(*stack, kept), kind.of(mask))

    @staticmethod
    def n_of_m(
        matrix: Float[AnyArray, "*stack inputs outputs"],
        kept: int,
        group: int,
        scores: Any = None,
    ) -> "Sparse":
        """Of each `group` successive inputs of an output, the `kept` entries of largest score; the
        first of those that are equal. Without `scores`, (*stack, inputs, outputs), an entry's is
        its size.
        """
        group = check_count("group", group, 1, 256)
        kept = check_count("kept", kept, 1, group)
        matrix = np.asarray(matrix)
        scores = np.abs(matrix) if scores is None else np.asarray(scores)
        if scores.shape != matrix.shape:
            raise ValueError(f"`scores` must be {matrix.shape}; got {scores.shape}.")
        *stack, inputs, outputs = matrix.shape
        if inputs % group:
            raise ValueError(
                f"`matrix` must have a multiple of {group} inputs, for {kept} of {group}; got "
                f"{inputs}."
            )

        def grouped(array: np.ndarray) -> np.ndarray:
            return array.reshape(*stack, inputs // group, group, outputs).swapaxes(-1, -2)

        order = np.argsort(-grouped(scores).astype(np.float64), axis=-1, kind="stable")
        places = np.sort(order[..., :kept], axis=-1)
        values = np.take_along_axis(grouped(matrix), places, axis=-1)
        return Sparse(values.reshape(*stack, -1), NOfM.of(places, group))

    def aval(self) -> ShapedArray:
        """The array that JAX sees."""
        shape = (*self.pattern.stack, self.pattern.inputs, self.pattern.outputs)
        if isinstance(self.values, AbstractMatrix):
            return ShapedArray(shape, self.values.aval().dtype)
        return seen_by_jax(shape, self.values)

    def chains(self) -> tuple[tuple[AnyArray, ...], ...]:
        """The dense matrix."""
        with as_stored(self):
            scattered = lambda values, pattern: pattern.scattered(values)  # noqa: E731
            for _ in self.pattern.stack:
                scattered = jax.vmap(scattered)
            if isinstance(self.values, AbstractMatrix):
                values = self.values.materialise()[..., 0]
            else:
                values = jnp.asarray(self.values)
            return ((scattered(values, self.pattern),),)

    def transpose(self) -> Transposed:
        """The same values, read the other way."""
        return Transposed(self)

    @property
    def dtype(self) -> np.dtype:
        """That of the values."""
        return self.values.dtype

    @property
    def storage(self) -> Storage:
        """The values, each a multiplication, and the bits of the pattern."""
        held = sum(size_in_bytes(leaf) for leaf in jax.tree.leaves(self.pattern))
        if isinstance(self.values, AbstractMatrix):
            values = self.values.storage
        else:
            values = Storage.of(self.values, multiply_adds=self.values.size)
        return values + Storage(ideal_bits=self.pattern.ideal_bits, bytes=held)
