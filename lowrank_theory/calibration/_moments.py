"""What every calibration answers, and the default one: second moments."""

import abc
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from lowrank_theory._float64_range import (
    STATISTICS_WITH_BATCH,
    check_range,
    exponent_above,
    root_exponent_above,
    times_squared_power,
)
from lowrank_theory._numerics import (
    AnyArray,
    check_array,
    check_count,
    check_same,
    float64,
    in_float64,
    matmul,
    symmetric_product,
    together,
)
from lowrank_theory._scale import times_power
from lowrank_theory.calibration._file import write
from lowrank_theory.calibration._row_sample import RowSample, merged, with_rows

State = TypeVar("State", bound="AbstractCalibration")
Batch = tuple[AnyArray, AnyArray | None]


class AbstractCalibration(eqx.Module):
    r"""Streamed statistics of activations $X$ and, optionally, compressed activations $\tilde X$.

    Start with `empty(inputs)` of the kind wanted, then `calibration = calibration.update(batch)`
    for each batch, or let `calibrate` do it. Memory does not grow with the number of samples, and
    `merge` combines what several machines saw, in any order up to rounding.
    """

    count: eqx.AbstractVar[Float[AnyArray, ""]]
    mean: eqx.AbstractVar[Float[AnyArray, " inputs"]]

    @staticmethod
    @abc.abstractmethod
    def empty(
        inputs: int, *, compressed: bool = False, rows: bool = False
    ) -> "AbstractCalibration":
        """Nothing seen yet; `compressed` says whether batches will come with compressed
        activations, and `rows` whether those of the sample are kept.
        """

    @property
    @abc.abstractmethod
    def rows_seen(self) -> RowSample | None:
        """A sample of the rows of $X$ by their hashes, by which `certify` finds those that are
        given again as held-out ones, and these rows themselves if they are kept. It is unknown,
        `None`, unless all were seen by updates from an empty calibration.
        """

    @property
    @abc.abstractmethod
    def absolute_mean(self) -> Float[AnyArray, " inputs"] | None:
        r"""The mean of the sizes $|\tilde x_j|$ of what the layer sees. It is unknown, `None`, as
        the sample is.
        """

    @property
    @abc.abstractmethod
    def has_compressed(self) -> bool:
        """Whether batches come with compressed activations."""

    @property
    @abc.abstractmethod
    def layer_input_mean(self) -> Float[AnyArray, " inputs"]:
        r"""The mean of $\tilde X$, which is $X$ where no compressed activations came."""

    @property
    @abc.abstractmethod
    def block(self) -> int:
        """How many rows are worth waiting for: fewer at once cost more than their share."""

    @abc.abstractmethod
    def moments(self) -> "Calibration":
        """The second moments."""

    @abc.abstractmethod
    def absorb(self: State, activations: AnyArray, compressed: AnyArray | None) -> State:
        """What `update` does with a batch that it has checked."""

    @abc.abstractmethod
    def join(self: State, other: Any) -> State:
        """What `merge` does with statistics that it has checked."""

    @property
    def inputs(self) -> int:
        """The number of inputs of the layer."""
        return self.mean.shape[0]

    # Not `Self`, which beartype, the checker of types in the tests, does not know in a method.
    def update(  # noqa: PYI019
        self: State, activations: ArrayLike, compressed_activations: ArrayLike | None = None
    ) -> State:
        """The statistics after one more batch of shape (samples, inputs).

        The batch has been read when this returns: its memory may be filled again, or donated.

        Raises `ValueError` for a wrong shape, non-finite entries or an integer dtype, and where the
        statistics would not fit into float64; the statistics so far are untouched.
        """
        batch = check_batch(self, activations, compressed_activations)
        return check_range(STATISTICS_WITH_BATCH, self.absorb(*batch))

    def merge(self: State, other: State) -> State:  # noqa: PYI019
        """The statistics of both sets of samples together.

        Raises `ValueError` for another kind or size, and where they would not fit into float64.
        """
        check_alike("other", other, "self", self)
        return check_range("The statistics with those of `other`", self.join(other))

    def gram(self, *, centred: bool = False) -> Float[AnyArray, "inputs inputs"]:
        r"""$X^\top X$, or its centred version, if that fits into float64."""
        seen = self.moments()
        return _moment(seen.scatter, seen.count, seen.mean, seen.mean, centred)

    def compressed_gram(self, *, centred: bool = False) -> Float[AnyArray, "inputs inputs"]:
        r"""$\tilde X^\top\tilde X$, or its centred version, if that fits into float64."""
        seen = self.moments()
        scatter = seen.scatter if seen.compressed is None else seen.compressed.scatter
        mean = seen.layer_input_mean
        return _moment(scatter, seen.count, mean, mean, centred)

    def cross_gram(self, *, centred: bool = False) -> Float[AnyArray, "inputs inputs"]:
        r"""$\tilde X^\top X$, or its centred version, if that fits into float64."""
        seen = self.moments()
        scatter = seen.scatter if seen.compressed is None else seen.compressed.cross_scatter
        return _moment(scatter, seen.count, seen.layer_input_mean, seen.mean, centred)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics to a safetensors file, all or nothing. `load_calibration` reads it,
        and `merge` combines the files of several machines.
        """
        write(self, Path(path), batches=0)


def check_batch(
    seen: AbstractCalibration, activations: ArrayLike, compressed: ArrayLike | None = None
) -> Batch:
    """A batch that the calibration can absorb, or a `ValueError`."""
    batch = check_array("activations", activations, "samples", "inputs", lent=True)
    check_same("activations", batch.shape[1], "calibration", seen.inputs, "inputs")
    if (compressed is not None) != seen.has_compressed:
        raise ValueError(
            "`compressed_activations` must come with every batch or with none: this "
            f"calibration was started with `compressed={seen.has_compressed}`."
        )
    if compressed is None:
        return batch, None
    other = check_array("compressed_activations", compressed, "samples", "inputs", lent=True)
    check_same("compressed_activations", other.shape[1], "activations", batch.shape[1], "inputs")
    check_same("compressed_activations", other.shape[0], "activations", batch.shape[0], "samples")
    return batch, other


def check_alike(
    name: str, other: AbstractCalibration, whose: str, one: AbstractCalibration
) -> None:
    """Two calibrations must be of one kind and size."""
    if type(other) is not type(one):
        raise ValueError(
            f"`{name}` is a `{type(other).__name__}`, but `{whose}` is a `{type(one).__name__}`. "
            "They must be of one kind; `moments()` of either is a `Calibration`."
        )
    check_same(name, other.inputs, whose, one.inputs, "inputs")
    if other.has_compressed != one.has_compressed:
        raise ValueError(
            f"`{name}` must hold compressed activations exactly if `{whose}` does, which was "
            f"started with `compressed={one.has_compressed}`."
        )


class CompressedMoments(eqx.Module):
    r"""What involves compressed activations: their mean, and $\tilde X^\top X$ and
    $\tilde X^\top\tilde X$, both centred.
    """

    mean: Float[AnyArray, " inputs"]
    cross_scatter: Float[AnyArray, "inputs inputs"]
    scatter: Float[AnyArray, "inputs inputs"]


class Calibration(AbstractCalibration):
    r"""Float64 second moments.

    The state is the count, the means and the *centred* scatter matrices $S = \sum_t (x_t - \bar
    x)(x_t - \bar x)^\top$, merged batch by batch (Chan, Golub and LeVeque 1983). Both the plain
    Gram $X^\top X = S + m\,\bar x\bar x^\top$ (layers without a bias) and the centred one (affine
    layers) follow without cancellation, even where a large mean dominates.

    Squares hold half the digits: outputs $10^{-7}$ times smaller than activations and weights allow
    are lost. The certificate of a recovery says where that matters; for such layers there is
    `TriangularCalibration`.
    """

    count: Float[AnyArray, ""]
    mean: Float[AnyArray, " inputs"]
    scatter: Float[AnyArray, "inputs inputs"]
    compressed: CompressedMoments | None = None
    sample: RowSample | None = None
    sizes: Float[AnyArray, " inputs"] | None = None

    @staticmethod
    def empty(inputs: int, *, compressed: bool = False, rows: bool = False) -> "Calibration":
        """Nothing seen yet; `compressed` says whether batches will come with compressed
        activations, and `rows` whether 4,096 rows are kept, a sample of all.
        """
        inputs = check_count("inputs", inputs, 1)
        vector, matrix = np.zeros(inputs), np.zeros((inputs, inputs))
        moments = CompressedMoments(vector, matrix, matrix) if compressed else None
        sample = RowSample.empty(inputs if rows else None, compressed=compressed)
        return Calibration(np.zeros(()), vector, matrix, moments, sample, vector)

    @property
    def rows_seen(self) -> RowSample | None:
        """A sample of the rows of $X$, where it is known."""
        return self.sample

    @property
    def absolute_mean(self) -> Float[AnyArray, " inputs"] | None:
        """The mean of the sizes of what the layer sees, where it is known."""
        return self.sizes

    @property
    def has_compressed(self) -> bool:
        """Whether batches come with compressed activations."""
        return self.compressed is not None

    @property
    def layer_input_mean(self) -> Float[AnyArray, " inputs"]:
        r"""The mean of $\tilde X$, which is $X$ where no compressed activations came."""
        return self.mean if self.compressed is None else self.compressed.mean

    @property
    def block(self) -> int:
        """As many rows as hide the cost of adding their product to the sum."""
        return 4096

    def moments(self) -> "Calibration":
        """These."""
        return self

    def absorb(self, activations: AnyArray, compressed: AnyArray | None) -> "Calibration":
        """One more batch."""
        seen = _absorbed(self, activations, compressed)
        return dataclasses.replace(seen, sample=with_rows(self.sample, activations, compressed))

    def join(self, other: "Calibration") -> "Calibration":
        """Both together."""
        together = _joined(self, other)
        return dataclasses.replace(together, sample=merged(self.sample, other.sample))


def _moment(
    scatter: AnyArray, count: AnyArray, left: AnyArray, right: AnyArray, centred: bool
) -> AnyArray:
    if centred:
        return scatter
    return check_range("The second moments", _uncentred(scatter, count, left, right))


@in_float64
def _uncentred(scatter: Array, count: Array, left: Array, right: Array) -> Array:
    power = jnp.maximum(exponent_above(left, right), root_exponent_above(scatter))
    left, right = times_power(left, -power), times_power(right, -power)
    return times_squared_power(
        times_squared_power(scatter, -power) + count * jnp.outer(left, right), power
    )


def in_float64_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`in_float64` that, where values are at hand, reads a batch once: within the program, it is
    promoted on the way, and not in passes of its own.
    """
    traced, program = in_float64(function), jax.jit(function)

    def at_the_border(*arrays: Any) -> Any:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arrays)):
            return traced(*arrays)
        with float64():
            return program(*together(arrays))

    return at_the_border


def centred_rows(rows: AnyArray, power: Array) -> tuple[Array, Array, Array]:
    """The number of rows, their mean, and the rows without it, both divided by `2**power`."""
    near = times_power(jnp.asarray(rows, float), -power)
    mean = jnp.mean(near, axis=0)
    return jnp.asarray(rows.shape[0], float), mean, near - mean


def mean_magnitude(rows: AnyArray, power: Array) -> Array:
    """The mean size of each entry, divided by `2**power`."""
    return jnp.mean(jnp.abs(times_power(jnp.asarray(rows, float), -power)), axis=0)


def scaled_magnitudes(sizes: AnyArray | None, power: Array) -> Array | None:
    """Those of rows times `2**power`, unknown where they are."""
    return None if sizes is None else times_power(sizes, power)


def merged_magnitudes(one: AnyArray | None, other: AnyArray | None, share: Array) -> Array | None:
    """The mean sizes of both, the second a `share` of all; unknown where one is."""
    if one is None or other is None:
        return None
    return jnp.asarray(one) + share * jnp.asarray(other - one)


def merge_weights(count: AnyArray, added: AnyArray) -> tuple[Array, Array, Array]:
    """The count of both, the share of what is added, and the weight of the shift of the mean."""
    count, added = jnp.asarray(count), jnp.asarray(added)
    share = added / jnp.maximum(count + added, 1)
    return count + added, share, count * share


@in_float64_once
def _absorbed(seen: Calibration, activations: Array, compressed: Array | None) -> Calibration:
    power = jnp.maximum(exponent_above(activations, compressed), _exponent(seen))
    count, mean, centred = centred_rows(activations, power)
    sizes = mean_magnitude(activations if compressed is None else compressed, power)
    moments = None
    if compressed is not None:
        _, compressed_mean, centred_compressed = centred_rows(compressed, power)
        moments = CompressedMoments(
            compressed_mean,
            matmul(centred_compressed.T, centred),
            symmetric_product(centred_compressed, centred_compressed),
        )
    scatter = symmetric_product(centred, centred)
    added = Calibration(count, mean, scatter, moments, sizes=sizes)
    return _scaled(_combined(_scaled(seen, -power), added), power)


@in_float64
def _joined(one: Calibration, other: Calibration) -> Calibration:
    power = jnp.maximum(_exponent(one), _exponent(other))
    return _scaled(_combined(_scaled(one, -power), _scaled(other, -power)), power)


def _exponent(seen: Calibration) -> Array:
    """That of the rows, roughly."""
    more = seen.compressed
    means, squares = [seen.mean], [seen.scatter]
    if more is not None:
        means, squares = [*means, more.mean], [*squares, more.scatter]
    return jnp.maximum(exponent_above(*means), root_exponent_above(*squares))


def _scaled(seen: Calibration, power: Array) -> Calibration:
    """Those of the rows times `2**power`."""
    more = seen.compressed
    if more is not None:
        more = CompressedMoments(
            times_power(more.mean, power),
            times_squared_power(more.cross_scatter, power),
            times_squared_power(more.scatter, power),
        )
    mean, scatter = times_power(seen.mean, power), times_squared_power(seen.scatter, power)
    sizes = scaled_magnitudes(seen.sizes, power)
    return Calibration(seen.count, mean, scatter, more, sizes=sizes)


def _combined(one: Calibration, other: Calibration) -> Calibration:
    count, share, weight = merge_weights(one.count, other.count)
    shift = jnp.asarray(other.mean - one.mean)
    mean = one.mean + share * shift
    scatter = one.scatter + other.scatter + weight * jnp.outer(shift, shift)
    sizes = merged_magnitudes(one.sizes, other.sizes, share)
    if one.compressed is None or other.compressed is None:
        return Calibration(count, mean, scatter, sizes=sizes)
    a, b = one.compressed, other.compressed
    moved = jnp.asarray(b.mean - a.mean)
    moments = CompressedMoments(
        a.mean + share * moved,
        a.cross_scatter + b.cross_scatter + weight * jnp.outer(moved, shift),
        a.scatter + b.scatter + weight * jnp.outer(moved, moved),
    )
    return Calibration(count, mean, scatter, moments, sizes=sizes)
