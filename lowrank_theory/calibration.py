"""Calibration: what a layer saw, as sufficient statistics of constant size."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from lowrank_theory._numerics import check_array, check_count, check_same, in_float64, matmul


class Calibration(eqx.Module):
    r"""Streamed float64 second moments of activations $X$ and, optionally, compressed activations
    $\tilde X$.

    The state is the count, the means and the *centred* scatter matrices $S = \sum_t (x_t - \bar
    x)(x_t - \bar x)^\top$, merged batch by batch (Chan, Golub and LeVeque 1983). Both the plain
    Gram $X^\top X = S + m\,\bar x\bar x^\top$ (layers without a bias) and the centred one (affine
    layers) follow without cancellation, even where a large mean dominates.

    Start with `Calibration.empty(inputs)`, then `calibration = calibration.update(batch)` for each
    batch. Memory does not grow with the number of samples, and `merge` combines what several
    machines saw, in any order up to rounding.
    """

    count: Float[Array, ""]
    mean: Float[Array, " inputs"]
    scatter: Float[Array, "inputs inputs"]
    compressed_mean: Float[Array, " inputs"] | None = None
    cross_scatter: Float[Array, "inputs inputs"] | None = None
    compressed_scatter: Float[Array, "inputs inputs"] | None = None

    @staticmethod
    def empty(inputs: int, *, compressed: bool = False) -> "Calibration":
        """Nothing seen yet; `compressed` says whether batches will come with compressed
        activations.
        """
        inputs = check_count("inputs", inputs, 1)
        return _empty(inputs=inputs, compressed=compressed)

    def update(
        self, activations: ArrayLike, compressed_activations: ArrayLike | None = None
    ) -> "Calibration":
        """The statistics after one more batch of shape (samples, inputs).

        Raises `ValueError` for a wrong shape, non-finite entries or an integer dtype; the
        statistics so far are untouched.
        """
        batch = check_array("activations", activations, "samples", "inputs")
        check_same("activations", batch.shape[1], "calibration", self.inputs, "inputs")
        if (compressed_activations is not None) != (self.compressed_scatter is not None):
            raise ValueError(
                "`compressed_activations` must come with every batch or with none: this calibration was started with "
                f"`compressed={self.compressed_scatter is not None}`."
            )
        if compressed_activations is None:
            return _updated(self, batch, None)
        compressed = check_array(
            "compressed_activations", compressed_activations, "samples", "inputs"
        )
        check_same(
            "compressed_activations", compressed.shape[1], "activations", batch.shape[1], "inputs"
        )
        check_same(
            "compressed_activations", compressed.shape[0], "activations", batch.shape[0], "samples"
        )
        return _updated(self, batch, compressed)

    def merge(self, other: "Calibration") -> "Calibration":
        """The statistics of both sets of samples together."""
        check_same("other", other.inputs, "self", self.inputs, "inputs")
        if (self.compressed_scatter is None) != (other.compressed_scatter is None):
            raise ValueError(
                "`other` must hold compressed activations exactly if this calibration does."
            )
        return _merge(self, other)

    @property
    def inputs(self) -> int:
        """The number of inputs of the layer."""
        return self.mean.shape[0]

    def gram(self, *, centred: bool = False) -> Float[Array, "inputs inputs"]:
        r"""$X^\top X$, or its centred version."""
        return self.scatter if centred else _gram(self.scatter, self.count, self.mean, self.mean)

    def compressed_gram(self, *, centred: bool = False) -> Float[Array, "inputs inputs"]:
        r"""$\tilde X^\top\tilde X$, or its centred version."""
        if self.compressed_scatter is None or self.compressed_mean is None:
            return self.gram(centred=centred)
        mean = self.compressed_mean
        return (
            self.compressed_scatter
            if centred
            else _gram(self.compressed_scatter, self.count, mean, mean)
        )

    def cross_gram(self, *, centred: bool = False) -> Float[Array, "inputs inputs"]:
        r"""$\tilde X^\top X$, or its centred version."""
        if self.cross_scatter is None or self.compressed_mean is None:
            return self.gram(centred=centred)
        return (
            self.cross_scatter
            if centred
            else _gram(self.cross_scatter, self.count, self.compressed_mean, self.mean)
        )


def _empty(*, inputs: int, compressed: bool) -> Calibration:
    vector, matrix = np.zeros(inputs), np.zeros((inputs, inputs))
    if not compressed:
        return Calibration(np.zeros(()), vector, matrix)
    return Calibration(np.zeros(()), vector, matrix, vector, matrix, matrix)


@in_float64
def _gram(scatter: Array, count: Array, left: Array, right: Array) -> Array:
    return scatter + count * jnp.outer(left, right)


@in_float64
def _updated(seen: Calibration, activations: Array, compressed: Array | None) -> Calibration:
    count = jnp.asarray(activations.shape[0], float)
    mean = jnp.mean(activations, axis=0)
    centred = activations - mean
    batch = (count, mean, matmul(centred.T, centred))
    if compressed is None:
        return _combine(seen, Calibration(*batch))
    compressed_mean = jnp.mean(compressed, axis=0)
    centred_compressed = compressed - compressed_mean
    cross_scatter = matmul(centred_compressed.T, centred)
    compressed_scatter = matmul(centred_compressed.T, centred_compressed)
    return _combine(seen, Calibration(*batch, compressed_mean, cross_scatter, compressed_scatter))


def _combine(one: Calibration, other: Calibration) -> Calibration:
    count = one.count + other.count
    share = other.count / jnp.maximum(count, 1)
    shift = other.mean - one.mean
    weight = one.count * share
    merged = (
        count,
        one.mean + share * shift,
        one.scatter + other.scatter + weight * jnp.outer(shift, shift),
    )
    if one.compressed_mean is None or other.compressed_mean is None:
        return Calibration(*merged)
    compressed_shift = other.compressed_mean - one.compressed_mean
    return Calibration(
        *merged,
        one.compressed_mean + share * compressed_shift,
        one.cross_scatter + other.cross_scatter + weight * jnp.outer(compressed_shift, shift),
        one.compressed_scatter
        + other.compressed_scatter
        + weight * jnp.outer(compressed_shift, compressed_shift),
    )


_merge = in_float64(_combine)
