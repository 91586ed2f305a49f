"""Calibration: what a layer saw, as sufficient statistics of constant size."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    AnyArray,
    check_array,
    check_count,
    check_same,
    in_float64,
    matmul,
)


class CompressedMoments(eqx.Module):
    r"""What involves compressed activations: their mean, and $\tilde X^\top X$ and
    $\tilde X^\top\tilde X$, both centred.
    """

    mean: Float[AnyArray, " inputs"]
    cross_scatter: Float[AnyArray, "inputs inputs"]
    scatter: Float[AnyArray, "inputs inputs"]


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

    count: Float[AnyArray, ""]
    mean: Float[AnyArray, " inputs"]
    scatter: Float[AnyArray, "inputs inputs"]
    compressed: CompressedMoments | None = None

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
        if (compressed_activations is not None) != (self.compressed is not None):
            raise ValueError(
                "`compressed_activations` must come with every batch or with none: this "
                f"calibration was started with `compressed={self.compressed is not None}`."
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
        if (self.compressed is None) != (other.compressed is None):
            raise ValueError(
                "`other` must hold compressed activations exactly if this calibration does."
            )
        return _merge(self, other)

    @property
    def inputs(self) -> int:
        """The number of inputs of the layer."""
        return self.mean.shape[0]

    @property
    def layer_input_mean(self) -> Float[AnyArray, " inputs"]:
        r"""The mean of $\tilde X$, which is $X$ where no compressed activations came."""
        return self.mean if self.compressed is None else self.compressed.mean

    def gram(self, *, centred: bool = False) -> Float[AnyArray, "inputs inputs"]:
        r"""$X^\top X$, or its centred version."""
        return self._moment(self.scatter, self.mean, self.mean, centred)

    def compressed_gram(self, *, centred: bool = False) -> Float[AnyArray, "inputs inputs"]:
        r"""$\tilde X^\top\tilde X$, or its centred version."""
        scatter = self.scatter if self.compressed is None else self.compressed.scatter
        return self._moment(scatter, self.layer_input_mean, self.layer_input_mean, centred)

    def cross_gram(self, *, centred: bool = False) -> Float[AnyArray, "inputs inputs"]:
        r"""$\tilde X^\top X$, or its centred version."""
        scatter = self.scatter if self.compressed is None else self.compressed.cross_scatter
        return self._moment(scatter, self.layer_input_mean, self.mean, centred)

    def _moment(self, scatter: Any, left: Any, right: Any, centred: bool) -> AnyArray:
        return scatter if centred else _uncentred(scatter, self.count, left, right)


def _empty(*, inputs: int, compressed: bool) -> Calibration:
    vector, matrix = np.zeros(inputs), np.zeros((inputs, inputs))
    moments = CompressedMoments(vector, matrix, matrix) if compressed else None
    return Calibration(np.zeros(()), vector, matrix, moments)


@in_float64
def _uncentred(scatter: Array, count: Array, left: Array, right: Array) -> Array:
    return scatter + count * jnp.outer(left, right)


@in_float64
def _updated(seen: Calibration, activations: Array, compressed: Array | None) -> Calibration:
    count = jnp.asarray(activations.shape[0], float)
    mean = jnp.mean(activations, axis=0)
    centred = activations - mean
    moments = None
    if compressed is not None:
        compressed_mean = jnp.mean(compressed, axis=0)
        centred_compressed = compressed - compressed_mean
        moments = CompressedMoments(
            compressed_mean,
            matmul(centred_compressed.T, centred),
            matmul(centred_compressed.T, centred_compressed),
        )
    return _combine(seen, Calibration(count, mean, matmul(centred.T, centred), moments))


def _combine(one: Calibration, other: Calibration) -> Calibration:
    count = one.count + other.count
    share = other.count / jnp.maximum(count, 1)
    weight = one.count * share
    shift = jnp.asarray(other.mean - one.mean)
    mean = one.mean + share * shift
    scatter = one.scatter + other.scatter + weight * jnp.outer(shift, shift)
    if one.compressed is None or other.compressed is None:
        return Calibration(count, mean, scatter)
    a, b = one.compressed, other.compressed
    moved = jnp.asarray(b.mean - a.mean)
    moments = CompressedMoments(
        a.mean + share * moved,
        a.cross_scatter + b.cross_scatter + weight * jnp.outer(moved, shift),
        a.scatter + b.scatter + weight * jnp.outer(moved, moved),
    )
    return Calibration(count, mean, scatter, moments)


_merge = in_float64(_combine)
