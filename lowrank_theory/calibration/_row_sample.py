r"""Which rows a calibration has seen: a sample of them, by their hashes.

Every row has a hash that depends on its values to 24 bits alone, so that it is the same in whatever
dtype of at least float32's precision the row is given, and in whatever batch. The `SIZE` largest
hashes are kept, each with the number of times that its row came. A row of zeros has none.

The hash of $x$ is $\sum_j a_j w(x_j) \bmod 2^{64}$, scrambled, where $w$ is the pattern of the bits
of $x_j$ and the $a_j$ are fixed odd numbers: multilinear hashing (Carter and Wegman 1979). It costs
one multiplication for each entry; sums of integers do not depend on their order.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt64

from lowrank_theory._numerics import AnyArray, float64

SIZE = 4096
_BITS = 51  # of a hash: with the 13 bits of an index up to 2 * SIZE it fills a word
_IN_CACHE = 2**14  # entries of rows that are hashed at once


class RowSample(eqx.Module):
    r"""Of the distinct rows that came, those with the largest hashes, and how often each came.

    What is kept depends on the set of rows alone: not on their order, nor on how they were cut
    into batches or spread over devices. `merge` of two samples is the sample of all rows.

    - `hashes`: odd integers below $2^{51}$, decreasing; zeros where there were fewer rows.
    - `counts`: how often each of these rows came.
    - `rows`: these rows, where they are kept, and `compressed`: those that came with them.
    """

    # Floats hold these integers exactly, and pass wherever the statistics do. Being odd, they show
    # whether something on the way has rounded them.
    SIZE: ClassVar[int] = SIZE
    hashes: Float[AnyArray, " size"]
    counts: Float[AnyArray, " size"]
    rows: Float[AnyArray, "size inputs"] | None = None
    compressed: Float[AnyArray, "size inputs"] | None = None

    @staticmethod
    def empty(inputs: int | None = None, *, compressed: bool = False) -> "RowSample":
        """Of no rows; with a number of `inputs`, they will be kept."""
        nothing = None if inputs is None else np.zeros((SIZE, inputs))
        return RowSample(np.zeros(SIZE), np.zeros(SIZE), nothing, nothing if compressed else None)

    @staticmethod
    def hashes_of(rows: AnyArray) -> Float[np.ndarray, " samples"]:
        """The hash of each row at hand, zero for a row of zeros."""
        with float64():
            return np.asarray(_hashes(rows)).ravel()[: len(rows)].astype(float)

    @staticmethod
    def of_all(rows: AnyArray) -> "RowSample":
        """Of the rows at hand, all of them and not only `SIZE`."""
        hashes, counts = np.unique(RowSample.hashes_of(rows), return_counts=True)
        some = hashes > 0
        hashes, counts = (np.append(part[some][::-1], 0) for part in (hashes, counts))
        return RowSample(hashes, counts.astype(float))

    def update(self, rows: AnyArray, compressed: AnyArray | None = None) -> "RowSample":
        """With more rows, and those that come with them."""
        with float64():
            return _with_rows(self, rows, compressed)

    def merge(self, other: "RowSample") -> "RowSample":
        """Of the rows of both."""
        with float64():
            return _merged(self, other)

    @property
    def intact(self) -> bool:
        """Whether these are hashes still: a program in float32 rounds what passes through it."""
        hashes = np.asarray(self.hashes)
        return hashes.dtype == np.float64 and bool(np.all(hashes[hashes > 0] % 2 == 1))

    @property
    def least(self) -> float:
        """All rows whose hash is at least this are in the sample."""
        return max(float(np.min(np.asarray(self.hashes))), 1.0)


def with_rows(
    sample: RowSample | None, rows: AnyArray, compressed: AnyArray | None = None
) -> RowSample | None:
    """The sample with more rows, unknown where it was."""
    return None if sample is None else sample.update(rows, compressed)


def merged(one: RowSample | None, other: RowSample | None) -> RowSample | None:
    """The sample of all rows, unknown where that of some is."""
    return None if one is None or other is None else one.merge(other)


def keeps_rows(sample: RowSample | None) -> bool:
    """Whether the rows themselves are kept."""
    return sample is not None and sample.rows is not None


@jax.jit
def _hashes(rows: Array) -> UInt64[Array, "chunks chunk"]:
    """The hash of each row, in chunks of `SIZE`, the last one filled with zeros."""
    samples, inputs = rows.shape
    factors = _scrambled(jnp.arange(1, inputs + 1, dtype=jnp.uint64)) | 1

    def hashed(row: Array) -> Array:
        return jnp.sum(_words(row) * factors)

    sums = lax.map(hashed, rows, batch_size=max(1, _IN_CACHE // inputs))
    hashes = jnp.where(sums == 0, 0, _scrambled(sums) >> (64 - _BITS) | 1)
    return jnp.pad(hashes, (0, -samples % SIZE)).reshape(-1, SIZE)


def _words(row: Array) -> Array:
    """The bits of float64 numbers rounded to the precision of float32; of zero, zero."""
    numbers = jnp.asarray(row, float)
    bits = lax.bitcast_convert_type(jnp.where(numbers == 0, 0.0, numbers), jnp.uint64)
    half = np.uint64(2**28 - 1)  # a half of the last bit that stays, less one: ties go to even
    words = (bits + half + (bits >> 29 & 1)) >> 29
    return words ^ bits >> 63  # the sign, the highest bit, would be lost in a product with an even


def _scrambled(numbers: Array) -> Array:
    """A one-to-one map of 64-bit integers that spreads them, and keeps zero (Steele, Lea and Flood
    2014).
    """
    numbers = (numbers ^ numbers >> 30) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> 27) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> 31


@jax.jit
def _with_rows(sample: RowSample, rows: Array, compressed: Array | None) -> RowSample:
    """Chunk by chunk; of one without any row that belongs to the sample, nothing is looked at."""
    more = (
        None if sample.rows is None else _in_chunks(rows),
        None if sample.compressed is None else _in_chunks(compressed),
    )

    def absorbed(sample: RowSample, hashes: Array, more: Any) -> RowSample:
        return _kept(sample, RowSample(hashes.astype(float), (hashes > 0).astype(float), *more))

    def chunk_by_chunk(sample: RowSample, chunk: Any) -> tuple[RowSample, None]:
        news = jnp.any(chunk[0] >= jnp.maximum(_integers(sample)[-1], 1))
        return lax.cond(news, absorbed, lambda same, *_: same, sample, *chunk), None

    start = jax.tree.map(jnp.asarray, sample)
    return lax.scan(chunk_by_chunk, start, (_hashes(rows), more))[0]


def _in_chunks(rows: Any) -> Float[Array, "chunks chunk inputs"]:
    wide = jnp.asarray(rows, float)
    padded = jnp.pad(wide, ((0, -wide.shape[0] % SIZE), (0, 0)))
    return padded.reshape(-1, SIZE, wide.shape[1])


@jax.jit
def _merged(one: RowSample, other: RowSample) -> RowSample:
    return _kept(one, other)


def _integers(sample: RowSample) -> Array:
    return jnp.asarray(sample.hashes).astype(jnp.uint64)


def _kept(sample: RowSample, others: RowSample) -> RowSample:
    """With more hashes and their counts: equal ones are added up, and the largest kept."""
    hashes = jnp.concatenate([_integers(sample), _integers(others)])
    counts = jnp.concatenate([jnp.asarray(sample.counts), jnp.asarray(others.counts)])
    # Sorting words of 64 bits alone is six times faster than sorting pairs, hence the packing.
    places = jnp.arange(2 * SIZE, dtype=jnp.uint64)
    words = ~jnp.sort(~(hashes << (64 - _BITS) | places))
    order = (words & (2 * SIZE - 1)).astype(jnp.int32)
    hashes, counts = words >> (64 - _BITS), counts[order]
    new = jnp.concatenate([jnp.ones(1, bool), hashes[1:] != hashes[:-1]])
    number = jnp.cumsum(new) - 1
    dtype = sample.hashes.dtype
    nothing = jnp.zeros(SIZE, dtype)

    def rows(mine: AnyArray | None, theirs: AnyArray | None) -> Array | None:
        if mine is None or theirs is None:
            return None
        both = jnp.concatenate([jnp.asarray(mine), jnp.asarray(theirs)])
        return jnp.zeros_like(mine).at[number].set(both[order], mode="drop")

    return RowSample(
        nothing.at[number].set(hashes.astype(dtype), mode="drop"),
        nothing.at[number].add(counts.astype(dtype), mode="drop"),
        rows(sample.rows, others.rows),
        rows(sample.compressed, others.compressed),
    )
