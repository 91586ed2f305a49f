"""Tables in bytes, and averages in the place of sums: the part of `look_up` that rounds."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Integer
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Key, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    check_array,
    check_count,
    check_same,
    safe_divide,
    settle,
)
from lowrank_theory._random import integers, normal, split
from lowrank_theory.theorems._quantities import as_known
from lowrank_theory.theorems._theorem import (
    EQUALITY_IN_EXPECTATION,
    UPPER,
    AbstractStatement,
    Hypothesis,
    Refuted,
    Standing,
)


def check_codes(codes: Any, count: int) -> Any:
    """Integers (samples, codebooks) from 0 on, below a count, or a `ValueError`."""
    kind = getattr(codes, "dtype", np.dtype(float))
    if not jnp.issubdtype(kind, jnp.integer) or codes.ndim != 2 or codes.size == 0:
        raise ValueError("`codes` must be integers (samples, codebooks), at least one.")
    if not isinstance(codes, Tracer):
        least, most = int(np.min(np.asarray(codes))), int(np.max(np.asarray(codes)))
        if least < 0 or most >= count:
            raise ValueError(f"`codes` must be from 0 to {count - 1}; got {least} to {most}.")
    return codes


# --- bytes ----------------------------------------------------------------------------------------


class CodedTable(eqx.Module):
    """Entries $T$ (codebooks, codes, outputs), and the codes (samples, codebooks) of some rows.

    Raises `ValueError` for arrays that do not fit, and codes that there are not.
    """

    entries: Float[AnyArray, "codebooks codes outputs"]
    codes: Integer[AnyArray, "samples codebooks"]

    def __init__(self, entries: ArrayLike, codes: Any) -> None:
        self.entries = check_array("entries", entries, "codebooks", "codes", "outputs")
        self.codes = check_codes(codes, self.entries.shape[1])
        check_same("codes", self.codes.shape[1], "entries", self.entries.shape[0], "codebooks")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.entries.shape

    def sums(self, entries: Array) -> Float[Array, "samples outputs"]:
        """Of the entries that the rows find."""
        return jnp.sum(entries[jnp.arange(entries.shape[0]), jnp.asarray(self.codes)], axis=1)


class TableSetting(eqx.Module):
    """Gaussian entries and random codes; `half_way`, entries that lie half way between two steps,
    but for the least and the largest.
    """

    samples: int
    codebooks: int
    count: int
    outputs: int
    half_way: bool = False

    def __check_init__(self) -> None:
        for name in ("samples", "codebooks", "count", "outputs"):
            settle(self, name, check_count, 1)

    @of_either_key
    def draw(self, *, key: Key) -> CodedTable:
        """A random table, in float64."""
        xp, (entry_key, code_key) = namespace(key), split(key)
        entries = normal(entry_key, (self.codebooks, self.count, self.outputs))
        codes = integers(code_key, (self.samples, self.codebooks), self.count)
        if self.half_way:
            place = np.arange(self.count)[:, None]
            between = xp.clip(xp.floor(30 * entries) + 0.5, -127.5, 126.5)
            entries = xp.where(place == 0, -128.0, xp.where(place == 1, 127.0, between))
        return CodedTable(entries, codes)


_TABLES = {
    "sixteen codes": TableSetting(40, 8, 16, 6),
    "one codebook": TableSetting(40, 1, 4, 6),
    "many codebooks": TableSetting(10, 50, 4, 3),
    "half way": TableSetting(100, 3, 16, 6, half_way=True),
}


class Bytes(AbstractStatement):
    r"""No output of a table in bytes is further than $C\Delta/2$ from that of the table."""

    kind = UPPER
    needs = CodedTable
    regimes = _TABLES
    control = _TABLES["sixteen codes"]
    refuted_below = Refuted(1.0, "entries half way between two steps")

    def hypotheses(self, instance: CodedTable) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def estimate(self, instance: CodedTable) -> Float[Array, "samples outputs"]:
        """The outputs of the table in bytes."""
        entries = jnp.asarray(instance.entries, float)
        least = jnp.min(entries, axis=(1, 2), keepdims=True)
        step = _step(instance)
        codes = jnp.clip(jnp.floor(safe_divide(entries - least, step) + 0.5), 0, 255)
        return instance.sums(least + step * codes)

    def broken_estimate(self, instance: CodedTable) -> Float[Array, "samples outputs"]:
        """Those of a table without its largest bits."""
        return instance.sums(jnp.asarray(instance.entries, float) - 64 * _step(instance))

    def formula(self, instance: CodedTable, estimate: Array) -> Float[Array, ""]:
        r"""$C\Delta/2$."""
        return instance.entries.shape[0] * _step(instance) / 2

    def loss(self, instance: CodedTable, estimate: Array) -> Float[Array, ""]:
        """The largest difference of an output."""
        exact = instance.sums(jnp.asarray(instance.entries, float))
        return jnp.max(jnp.abs(exact - estimate))

    def magnitude(self, instance: CodedTable) -> Float[Array, ""]:
        r"""$C\max|T|$."""
        return instance.entries.shape[0] * jnp.max(jnp.abs(jnp.asarray(instance.entries, float)))


def _step(table: CodedTable) -> Float[Array, ""]:
    r"""$\Delta$, one for all."""
    entries = jnp.asarray(table.entries, float)
    ranges = jnp.max(entries, axis=(1, 2)) - jnp.min(entries, axis=(1, 2))
    return jnp.max(ranges) / 255


# --- averages -------------------------------------------------------------------------------------


class ByteRows(eqx.Module):
    """Bytes (samples, codebooks) to be added, as whole numbers in floating point, and whether they
    were drawn independently and uniformly from 0 to 255.

    Raises `ValueError` unless the number of codebooks is a power of two.
    """

    values: Float[AnyArray, "samples codebooks"]
    uniform: Bool[AnyArray, ""] | bool

    def __init__(self, values: ArrayLike, uniform: Any = False) -> None:
        self.values = check_array("values", values, "samples", "codebooks")
        codebooks = self.values.shape[1]
        if codebooks & (codebooks - 1):
            raise ValueError(f"`values` must be of 1, 2, 4, 8, ... codebooks; got {codebooks}.")
        self.uniform = as_known(uniform)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.values.shape

    def excess(self) -> Float[Array, " samples"]:
        """How far C times the average, rounded up at each level, is above the sum."""
        values = averages = jnp.asarray(self.values, float)
        while averages.shape[1] > 1:
            averages = jnp.ceil((averages[:, ::2] + averages[:, 1::2]) / 2)
        return values.shape[1] * averages[:, 0] - jnp.sum(values, axis=1)


class ByteSetting(eqx.Module):
    """Uniform bytes, or, `counted`, a byte plus the number of ones in the place of each codebook,
    written to base two: those that averages exceed most.
    """

    samples: int
    levels: int
    counted: bool = False

    def __check_init__(self) -> None:
        settle(self, "samples", check_count, 1)
        settle(self, "levels", check_count, 0, 8)

    @of_either_key
    def draw(self, *, key: Key) -> ByteRows:
        """Random bytes, in float64."""
        shape = self.samples, 2**self.levels
        if not self.counted:
            return ByteRows(integers(key, shape, 256).astype(float), uniform=True)
        ones = np.array([place.bit_count() for place in range(shape[1])], float)
        return ByteRows(integers(key, (shape[0], 1), 240).astype(float) + ones)


_UNIFORM = {f"{2**levels} codebooks": ByteSetting(1000, levels) for levels in (1, 2, 4, 6)}

_ANY = {**_UNIFORM, "counted": ByteSetting(5, 4, counted=True)}


class AbstractAverage(AbstractStatement):
    """A statement about averages in the place of sums, in units of a byte."""

    needs = ByteRows

    def estimate(self, instance: ByteRows) -> Float[Array, " samples"]:
        """How far averages are above the sum."""
        return instance.excess()

    def magnitude(self, instance: ByteRows) -> Float[Array, ""]:
        """The largest sum."""
        return jnp.max(jnp.sum(jnp.abs(jnp.asarray(instance.values, float)), axis=1))


def _levels(rows: ByteRows) -> int:
    return rows.values.shape[1].bit_length() - 1


class Average(AbstractAverage):
    """Averages exceed sums of $C = 2^t$ uniform bytes by $Ct/4$ in the mean, $t$ up to 8."""

    kind = EQUALITY_IN_EXPECTATION
    regimes = _UNIFORM
    control = _UNIFORM["16 codebooks"]

    def hypotheses(self, instance: ByteRows) -> tuple[Hypothesis, ...]:
        """The law of the bytes, and as many levels as a byte has bits."""
        known = jnp.where(jnp.asarray(instance.uniform), 1.0, -1.0)
        return (
            Hypothesis("the bytes are independent and uniform", known, Standing.TRUSTED),
            Hypothesis("there are 256 codebooks or fewer", float(8 - _levels(instance))),
        )

    def broken_estimate(self, instance: ByteRows) -> Float[Array, " samples"]:
        """Without rounding."""
        return jnp.zeros(instance.values.shape[0])

    def formula(self, instance: ByteRows, estimate: Array) -> Float[Array, ""]:
        """$Ct/4$."""
        return jnp.asarray(instance.values.shape[1] * _levels(instance) / 4, float)

    def loss(self, instance: ByteRows, estimate: Array) -> Float[Array, ""]:
        """The mean excess."""
        return jnp.mean(estimate)


class AverageWorst(AbstractAverage):
    """Averages of any whole numbers exceed their sum by $Ct/2$ at most, and never fall short."""

    kind = UPPER
    regimes = _ANY
    control = _ANY["counted"]
    refuted_below = Refuted(1.0, "bytes that count the ones of their place")

    def hypotheses(self, instance: ByteRows) -> tuple[Hypothesis, ...]:
        """Whole numbers."""
        values = jnp.asarray(instance.values, float)
        whole = jnp.all(values == jnp.round(values))
        return (Hypothesis("the values are whole numbers", jnp.where(whole, 1.0, -1.0)),)

    def broken_estimate(self, instance: ByteRows) -> Float[Array, " samples"]:
        """One more."""
        return instance.excess() + 1

    def formula(self, instance: ByteRows, estimate: Array) -> Float[Array, ""]:
        """$Ct/2$."""
        return jnp.asarray(instance.values.shape[1] * _levels(instance) / 2, float)

    def loss(self, instance: ByteRows, estimate: Array) -> Float[Array, ""]:
        """The largest excess in size."""
        return jnp.max(jnp.abs(estimate))
