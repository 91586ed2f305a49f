"""A triangular factor of the rows in place of their second moments."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank_theory._float64_range import check_range, exponent_above, times_squared_power
from lowrank_theory._numerics import AnyArray, check_count, in_float64, symmetric_product
from lowrank_theory._scale import times_power
from lowrank_theory.calibration._moments import (
    AbstractCalibration,
    Calibration,
    CompressedMoments,
    centred_rows,
    in_float64_once,
    mean_magnitude,
    merge_weights,
    merged_magnitudes,
    scaled_magnitudes,
)
from lowrank_theory.calibration._row_sample import RowSample, merged, with_rows


class TriangularCalibration(AbstractCalibration):
    r"""A float64 triangular factor of the rows: nothing is squared, so that no digits are lost.

    The state is the count, the means, and the upper-triangular factor $R$, of non-negative
    diagonal, of the *centred* rows of $[\tilde X\;X]$ (of $X$ where no compressed activations
    come): $R^\top R$ is their scatter, $R$ is to them what a recovery needs of them. A batch is
    absorbed by an orthogonal decomposition of $R$, a row for the shift of the means and the
    centred batch, stacked (TSQR: Demmel, Grigori, Hoemmen and Langou 2012).

    It costs about twice as much as second moments, if batches have four times as many rows as $R$
    has columns, as `calibrate` sees to; smaller batches cost more.
    """

    count: Float[AnyArray, ""]
    mean: Float[AnyArray, " inputs"]
    compressed_mean: Float[AnyArray, " inputs"] | None
    triangle: Float[AnyArray, "columns columns"]
    sample: RowSample | None = None
    sizes: Float[AnyArray, " inputs"] | None = None

    @staticmethod
    def empty(
        inputs: int, *, compressed: bool = False, rows: bool = False
    ) -> "TriangularCalibration":
        """Nothing seen yet; `compressed` says whether batches will come with compressed
        activations, and `rows` whether 4,096 rows are kept, a sample of all.
        """
        inputs = check_count("inputs", inputs, 1)
        mean, columns = np.zeros(inputs), 2 * inputs if compressed else inputs
        triangle = np.zeros((columns, columns))
        other = mean if compressed else None
        sample = RowSample.empty(inputs if rows else None, compressed=compressed)
        return TriangularCalibration(np.zeros(()), mean, other, triangle, sample, mean)

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
        return self.compressed_mean is not None

    @property
    def layer_input_mean(self) -> Float[AnyArray, " inputs"]:
        r"""The mean of $\tilde X$, which is $X$ where no compressed activations came."""
        return self.mean if self.compressed_mean is None else self.compressed_mean

    @property
    def block(self) -> int:
        """As many rows as keep the work on $R$ itself to a fifth."""
        return 4 * self.triangle.shape[0]

    def moments(self) -> Calibration:
        """The second moments, squared at last; `ValueError` where they do not fit into float64."""
        squared = check_range("The second moments", _squared(self))
        return dataclasses.replace(squared, sample=self.sample, sizes=self.sizes)

    def rows(self) -> tuple[Float[Array, "rows inputs"] | None, Float[Array, "rows inputs"]]:
        r"""Few rows that have the products of all rows of $\tilde X$ (`None` where there are none)
        and of $X$. The first holds the means, times the root of the count; without it, they have
        the products of all rows less their means.
        """
        return check_range("Rows of these statistics", _rows(self))

    def absorb(self, activations: AnyArray, compressed: AnyArray | None) -> "TriangularCalibration":
        """One more batch."""
        seen = _absorbed(self, activations, compressed)
        return dataclasses.replace(seen, sample=with_rows(self.sample, activations, compressed))

    def join(self, other: "TriangularCalibration") -> "TriangularCalibration":
        """Both together."""
        together = _joined(self, other)
        return dataclasses.replace(together, sample=merged(self.sample, other.sample))


def _means(seen: TriangularCalibration) -> Array:
    return _side_by_side(seen.compressed_mean, seen.mean)


def _side_by_side(compressed: AnyArray | None, rows: AnyArray) -> Array:
    r"""$[\tilde X\;X]$."""
    if compressed is None:
        return jnp.asarray(rows)
    return jnp.concatenate([compressed, rows], axis=-1)


@in_float64_once
def _absorbed(
    seen: TriangularCalibration, activations: Array, compressed: Array | None
) -> TriangularCalibration:
    power = jnp.maximum(exponent_above(activations, compressed), _exponent(seen))
    count, means, rows = centred_rows(_side_by_side(compressed, activations), power)
    sizes = mean_magnitude(activations if compressed is None else compressed, power)
    return _scaled(_combined(_scaled(seen, -power), count, means, rows, sizes), power)


def _exponent(seen: TriangularCalibration) -> Array:
    return exponent_above(seen.mean, seen.compressed_mean, seen.triangle)


def _scaled(seen: TriangularCalibration, power: Array) -> TriangularCalibration:
    """Those of the rows times `2**power`."""
    compressed_mean = None
    if seen.compressed_mean is not None:
        compressed_mean = times_power(seen.compressed_mean, power)
    mean, triangle = times_power(seen.mean, power), times_power(seen.triangle, power)
    sizes = scaled_magnitudes(seen.sizes, power)
    return TriangularCalibration(seen.count, mean, compressed_mean, triangle, sizes=sizes)


def _combined(
    seen: TriangularCalibration, added: Array, means: Array, rows: Array, sizes: Array | None
) -> TriangularCalibration:
    """With `added` more samples of these means and mean sizes, whose scatter about the means is
    that of `rows`.
    """
    count, share, weight = merge_weights(seen.count, added)
    shift = means - _means(seen)
    between = jnp.sqrt(weight) * shift[None]
    triangle = jnp.linalg.qr(jnp.concatenate([seen.triangle, between, rows]), mode="r")
    triangle = jnp.where(jnp.diagonal(triangle) < 0, -1.0, 1.0)[:, None] * triangle
    means, inputs = _means(seen) + share * shift, seen.mean.shape[0]
    compressed_mean = None if seen.compressed_mean is None else means[:inputs]
    sizes = merged_magnitudes(seen.sizes, sizes, share)
    return TriangularCalibration(count, means[-inputs:], compressed_mean, triangle, sizes=sizes)


@in_float64
def _joined(one: TriangularCalibration, other: TriangularCalibration) -> TriangularCalibration:
    power = jnp.maximum(_exponent(one), _exponent(other))
    one, other = _scaled(one, -power), _scaled(other, -power)
    sizes = None if other.sizes is None else jnp.asarray(other.sizes)
    added = jnp.asarray(other.count), _means(other), jnp.asarray(other.triangle), sizes
    return _scaled(_combined(one, *added), power)


@in_float64
def _squared(seen: TriangularCalibration) -> Calibration:
    power, inputs = exponent_above(seen.triangle), seen.mean.shape[0]
    triangle = times_power(seen.triangle, -power)
    scatter = times_squared_power(symmetric_product(triangle, triangle), power)
    moments = None
    if seen.compressed_mean is not None:
        cross_scatter, compressed_scatter = scatter[:inputs, inputs:], scatter[:inputs, :inputs]
        moments = CompressedMoments(seen.compressed_mean, cross_scatter, compressed_scatter)
    return Calibration(seen.count, seen.mean, scatter[-inputs:, -inputs:], moments)


@in_float64
def _rows(seen: TriangularCalibration) -> tuple[Array | None, Array]:
    inputs = seen.mean.shape[0]
    rows = jnp.concatenate([jnp.sqrt(seen.count) * _means(seen)[None], seen.triangle])
    return (None if seen.compressed_mean is None else rows[:, :inputs]), rows[:, -inputs:]
