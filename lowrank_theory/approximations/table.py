"""Look-up tables: rows are compared with thresholds, and the outputs are sums of entries."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Integer, Num, UInt8

from lowrank_theory._numerics import AnyArray, check_count, check_positive, ours, settle
from lowrank_theory.approximations._approximation import (
    AbstractApproximation,
    Storage,
    as_stored,
    check_floats,
    check_places,
    size_in_bytes,
)
from lowrank_theory.approximations._packing import bits_for

UNKNOWN = -1  # the code of a row in which a number that is compared is NaN


class AbstractTable(AbstractApproximation):
    """Trees, each with a row of entries for each of its codes."""

    splits: eqx.AbstractVar[Integer[Array | np.ndarray, "*stack codebooks levels"]]
    thresholds: eqx.AbstractVar[Float[Array | np.ndarray, "*stack codebooks nodes"]]
    entries: eqx.AbstractVar[Num[Array | np.ndarray, "*stack codebooks codes outputs"]]
    inputs: eqx.AbstractVar[int]

    def codes(
        self, rows: Float[AnyArray, "*stack samples inputs"]
    ) -> Int[Array, "*stack samples codebooks"]:
        """The code that each row finds in each codebook, and -1 for what NaN finds."""
        return _codes(self.splits, self.thresholds, rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(*stack, inputs, outputs)."""
        return (*self.splits.shape[:-2], self.inputs, self.entries.shape[-1])


class Table(AbstractTable):
    r"""The map $x \mapsto \sum_c T_{c,k_c(x)}$, where each codebook finds its code by a tree.

    Codebook c has a balanced binary tree of D levels: at level d the input `splits[c, d]` is
    compared with the threshold of the node, and goes right where it is no smaller. Nodes are
    numbered from the root, level by level; `entries` are (codebooks, $2^D$, outputs). This is no
    matrix: there is no `materialise` and no transpose; `apply` has no derivative with respect to
    rows and thresholds, `straight_through` has.

    A row in which a number that is compared is NaN gets NaN in all outputs.
    """

    splits: Integer[Array | np.ndarray, "*stack codebooks levels"]
    thresholds: Float[Array | np.ndarray, "*stack codebooks nodes"]
    entries: Float[Array | np.ndarray, "*stack codebooks codes outputs"]
    inputs: int = eqx.field(static=True)

    def __init__(self, splits: Any, thresholds: Any, entries: Any, *, inputs: int):
        """Raises `ValueError` for arrays that do not fit together."""
        self.inputs = inputs
        settle(self, "inputs", check_count, 1)
        check_floats("entries", entries, "codebooks", "codes", "outputs")
        _check_trees(splits, thresholds, entries, self.inputs)
        if thresholds.dtype != entries.dtype:
            raise ValueError(f"`thresholds` must be of {entries.dtype}; got {thresholds.dtype}.")
        self.splits, self.thresholds, self.entries = map(ours, (splits, thresholds, entries))

    def apply(
        self, rows: Float[AnyArray, "*stack samples inputs"]
    ) -> Float[AnyArray, "*stack samples outputs"]:
        """The sum of the entries that the rows find."""
        with as_stored(rows, self):
            codes = self.codes(rows)
            total = _over_stack(_summed, self.splits.ndim - 2)(codes, jnp.asarray(self.entries))
            return _where_known(codes, total)

    def straight_through(
        self, rows: Float[AnyArray, "*stack samples inputs"], *, temperature: Any
    ) -> Float[AnyArray, "*stack samples outputs"]:
        r"""What `apply` gives, exactly, with derivatives for training (Bengio, Léonard and
        Courville 2013). With respect to the entries they are those of the table: $G^\top$ times
        those of the outputs, where $G$ are the indicators of the codes. With respect to thresholds
        and rows they are those of the *soft* table, where a row goes right at a node with threshold
        $v$ by the share $\sigma((x_j - v)/\tau)$, $\sigma$ the logistic function, the share of a
        code is the product along its path, and outputs are sums of entries by their shares. The
        `temperature` $\tau \gt 0$ is in the unit of the inputs; as it falls, the soft table
        becomes the table, but where an input equals a threshold. Which inputs are compared stays.

        Differentiate by `equinox.filter_grad`, which leaves integers alone, and round what is
        trained by `lookup.in_bytes`. Raises `ValueError` for a temperature that is not positive; a
        traced one is not checked.
        """
        if not isinstance(temperature, Tracer):
            temperature = check_positive("temperature", temperature)
        with as_stored(rows, self):
            entries = lax.stop_gradient(ours(self.entries))
            softened = _over_stack(partial(_softened, temperature), self.splits.ndim - 2)
            arrays = map(jnp.asarray, (self.splits, self.thresholds, entries, ours(rows)))
            soft = softened(*arrays)
            return self.apply(rows) + (soft - lax.stop_gradient(soft))

    @property
    def dtype(self) -> np.dtype:
        """That of the entries."""
        return self.entries.dtype

    @property
    def storage(self) -> Storage:
        """The entries and the trees; for each row an addition for each codebook and output, and a
        comparison for each level.
        """
        return _trees_stored(self) + Storage.of(self.entries)


class RoundedTable(AbstractTable):
    r"""A `Table` with entries in one byte each: $x \mapsto s + \Delta\sum_c T_{c,k_c(x)}$.

    `entries` are integers (codebooks, codes, outputs), which are summed without rounding; `step`
    $\Delta$, (outputs,) or (1,), and `shift` $s$, (outputs,), are floats. Trees are those of
    `Table`, NaN is met in the same way.
    """

    splits: Integer[Array | np.ndarray, "*stack codebooks levels"]
    thresholds: Float[Array | np.ndarray, "*stack codebooks nodes"]
    entries: UInt8[Array | np.ndarray, "*stack codebooks codes outputs"]
    step: Float[Array | np.ndarray, "*stack steps"]
    shift: Float[Array | np.ndarray, "*stack outputs"]
    inputs: int = eqx.field(static=True)

    def __init__(
        self, splits: Any, thresholds: Any, entries: Any, step: Any, shift: Any, *, inputs: int
    ):
        """Raises `ValueError` for arrays that do not fit together."""
        self.inputs = inputs
        settle(self, "inputs", check_count, 1)
        if getattr(entries, "dtype", None) != np.uint8 or entries.ndim < 3:
            raise ValueError("`entries` must be bytes (codebooks, codes, outputs), of dtype uint8.")
        _check_trees(splits, thresholds, entries, self.inputs)
        check_floats("step", step, "outputs")
        check_floats("shift", shift, "outputs")
        *stack, _, _, outputs = entries.shape
        if step.shape not in ((*stack, 1), (*stack, outputs)) or shift.shape != (*stack, outputs):
            raise ValueError(
                f"`step` must be {(*stack, outputs)} or {(*stack, 1)} and `shift` "
                f"{(*stack, outputs)}; got {step.shape} and {shift.shape}."
            )
        kinds = {thresholds.dtype, step.dtype, shift.dtype}
        if len(kinds) > 1:
            raise ValueError("`thresholds`, `step` and `shift` must be of one dtype.")
        arrays = splits, thresholds, entries, step, shift
        names = "splits", "thresholds", "entries", "step", "shift"
        for name, array in zip(names, arrays, strict=True):
            setattr(self, name, ours(array))

    def apply(
        self, rows: Float[AnyArray, "*stack samples inputs"]
    ) -> Float[AnyArray, "*stack samples outputs"]:
        """The sum of the entries that the rows find, as it is scaled and shifted."""
        with as_stored(rows, self):
            codes = self.codes(rows)
            sums = _over_stack(_summed, self.splits.ndim - 2)(codes, jnp.asarray(self.entries))
            wide = jnp.promote_types(self.dtype, jnp.float32)  # of 16 bits, none holds the sums
            total = sums.astype(wide) * jnp.asarray(self.step, wide)[..., None, :]
            total = total + jnp.asarray(self.shift, wide)[..., None, :]
            return _where_known(codes, total.astype(self.dtype))

    @property
    def dtype(self) -> np.dtype:
        """That of the thresholds, the steps and the shift."""
        return self.shift.dtype

    @property
    def storage(self) -> Storage:
        """A byte for each entry, the trees, the steps and the shift; for each row an addition of
        integers for each codebook and output, a multiply-add for each output, and a comparison for
        each level.
        """
        scaled = Storage.of(self.step, self.shift, multiply_adds=self.shift.size)
        return _trees_stored(self) + Storage.of(self.entries) + scaled


def _check_trees(splits: Any, thresholds: Any, entries: Any, inputs: int) -> None:
    check_floats("thresholds", thresholds, "codebooks", "nodes")
    kind = getattr(splits, "dtype", np.dtype(float))
    if not jnp.issubdtype(kind, jnp.integer) or splits.ndim < 2:
        raise ValueError("`splits` must be integers (codebooks, levels).")
    *codebooks, levels = splits.shape
    shapes = (*codebooks, 2**levels - 1), (*codebooks, 2**levels)
    if thresholds.shape != shapes[0] or entries.shape[:-1] != shapes[1]:
        raise ValueError(
            f"`thresholds` must be {shapes[0]} and `entries` {shapes[1]} and outputs, for "
            f"{levels} levels; got {thresholds.shape} and {entries.shape}."
        )
    check_places("splits", splits, inputs)


def _trees_stored(table: AbstractTable) -> Storage:
    """What is compared, and what is added."""
    thresholds, splits = table.thresholds, table.splits
    codebooks = splits.size // splits.shape[-1]
    return Storage.of(thresholds) + Storage(
        ideal_bits=splits.size * bits_for(table.inputs),
        bytes=size_in_bytes(splits),
        additions=codebooks * table.entries.shape[-1],
        comparisons=splits.size,
    )


def _over_stack(function: Callable[..., Array], depth: int) -> Callable[..., Array]:
    for _ in range(depth):
        function = jax.vmap(function)
    return function


def _codes(splits: Any, thresholds: Any, rows: Any) -> Int[Array, "*stack samples codebooks"]:
    with as_stored(rows, splits, thresholds):
        arrays = map(jnp.asarray, (splits, thresholds, ours(rows)))
        return _over_stack(_walked, splits.ndim - 2)(*arrays)


def _walked(
    splits: Integer[Array, "codebooks levels"],
    thresholds: Float[Array, "codebooks nodes"],
    rows: Float[Array, "samples inputs"],
) -> Int[Array, "samples codebooks"]:
    codebooks, levels = splits.shape
    dtype = jnp.promote_types(rows.dtype, thresholds.dtype)
    compared = rows[:, splits].astype(dtype)
    unknown = jnp.any(jnp.isnan(compared), axis=-1)
    numbers, limits = _in_order(compared), _in_order(thresholds.astype(dtype))
    which = jnp.arange(codebooks)
    code = jnp.zeros((rows.shape[0], codebooks), jnp.int32)
    for level in range(levels):
        limit = limits[which, 2**level - 1 + code]
        code = 2 * code + (numbers[:, :, level] >= limit)
    return jnp.where(unknown, UNKNOWN, code)


def _in_order(floats: Array) -> Array:
    """Integers in the order of the floats, for XLA compares subnormal numbers as zeros on a CPU.
    Both zeros are one.
    """
    kind = jnp.dtype(f"int{8 * floats.dtype.itemsize}")
    bits = lax.bitcast_convert_type(lax.stop_gradient(floats), kind)
    return jnp.where(bits < 0, -(bits & jnp.iinfo(kind).max), bits)


def _summed(
    codes: Int[Array, "samples codebooks"], entries: Array
) -> Float[Array, "samples outputs"] | Int[Array, "samples outputs"]:
    """The entries of these codes, codebook after codebook; bytes as integers of 32 bits."""
    dtype = entries.dtype if jnp.issubdtype(entries.dtype, jnp.floating) else jnp.int32

    def more(total: Array, codebook: Any) -> tuple[Array, None]:
        code, table = codebook
        return total + table[code].astype(dtype), None

    nothing = jnp.zeros((codes.shape[0], entries.shape[-1]), dtype)
    return lax.scan(more, nothing, (codes.T, entries))[0]


def _softened(
    temperature: Any,
    splits: Integer[Array, "codebooks levels"],
    thresholds: Float[Array, "codebooks nodes"],
    entries: Float[Array, "codebooks codes outputs"],
    rows: Float[Array, "samples inputs"],
) -> Float[Array, "samples outputs"]:
    codebooks, levels = splits.shape
    shares = jnp.ones((rows.shape[0], codebooks, 1), rows.dtype)
    for level in range(levels):
        limits = thresholds[:, 2**level - 1 : 2 ** (level + 1) - 1]
        right = jax.nn.sigmoid((rows[:, splits[:, level], None] - limits) / temperature)
        both = jnp.stack([shares * (1 - right), shares * right], axis=-1)
        shares = both.reshape(*both.shape[:-2], -1)
    return jnp.einsum("rck,cko->ro", shares, entries)


def _where_known(codes: Array, outputs: Array) -> Array:
    return jnp.where(jnp.any(codes < 0, axis=-1, keepdims=True), jnp.nan, outputs)
