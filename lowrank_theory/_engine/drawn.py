"""What a network sees where its normalised outputs are drawn instead of computed.

A batch normalisation ends with a sum: its shift is added. What it gives there has, over the data of
the training, the mean and the deviation that the network keeps. So the sum is where samples are
put, and the function itself makes of them what its next layers see.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lowrank_theory._engine.follow import AbstractWeight, Contraction, Scope
from lowrank_theory._engine.views import Layout
from lowrank_theory._numerics import AnyArray, check_array

DRAWN = "what it is added to is drawn from statistics"


class ChannelStatistics(eqx.Module):
    """The mean and the standard deviation of each channel.

    Raises `ValueError` for arrays of two shapes, numbers that are not finite, and a negative
    deviation.
    """

    mean: Float[AnyArray, "..."]
    deviation: Float[AnyArray, "..."]

    def __check_init__(self) -> None:
        mean, deviation = map(np.asarray, (self.mean, self.deviation))
        if mean.shape != deviation.shape:
            raise ValueError(
                f"`mean` and `deviation` must have one shape; got {mean.shape} and "
                f"{deviation.shape}."
            )
        for name, array in (("mean", mean), ("deviation", deviation)):
            check_array(name, array.reshape(-1), "channels")
        if (deviation < 0).any():
            raise ValueError(f"`deviation` must not be negative; got {float(deviation.min())}.")


class DrawnBatch(eqx.Module):
    """Inputs of a function, and the statistics of the outputs that are drawn in it, by the path of
    the leaf that is added there.
    """

    inputs: PyTree
    statistics: Mapping[str, ChannelStatistics]
    key: PRNGKeyArray
    correlated: bool = eqx.field(static=True)

    def shifts(self, leaves: Mapping[str, Any]) -> "dict[str, NormalisedShift]":
        """What stands for these leaves. Raises `ValueError` for a path that no leaf has, and
        statistics of another shape.
        """
        found = {}
        keys = jax.random.split(self.key, len(self.statistics))
        for (path, each), key in zip(self.statistics.items(), keys, strict=True):
            if path not in leaves:
                raise ValueError(
                    f"`statistics` has {path}, which is no array of `parameters`: "
                    f"{', '.join(leaves)}."
                )
            leaf = leaves[path]
            if jnp.shape(each.mean) != jnp.shape(leaf):
                raise ValueError(
                    f"`statistics[{path!r}]` is of {jnp.shape(each.mean)} channels, but the leaf "
                    f"has shape {jnp.shape(leaf)}."
                )
            mean, deviation = (jnp.asarray(x, leaf.dtype) for x in (each.mean, each.deviation))
            layout = Layout.start(path, leaf.shape)
            found[path] = NormalisedShift(layout, leaf, mean, deviation, key, self.correlated)
        return found


def computed(batch: PyTree) -> PyTree:
    """The batch that the function takes, of which nothing is drawn on the way."""
    return batch.inputs if isinstance(batch, DrawnBatch) else batch


class NormalisedShift(AbstractWeight):
    """A shift on its way to the sum that ends a normalisation, with the statistics of this sum.

    There are drawn independent normal numbers or, `correlated`, what the sum is for these inputs,
    with the mean and the deviation of each channel made those of the statistics.
    """

    layout: Layout = eqx.field(static=True)
    dense: Any
    mean: Any
    deviation: Any
    key: Any
    correlated: bool = eqx.field(static=True)

    def moved(self, move: Any, layout: Layout) -> "NormalisedShift":
        dense, mean, deviation = map(move, (self.dense, self.mean, self.deviation))
        return NormalisedShift(layout, dense, mean, deviation, self.key, self.correlated)

    def mapped(self, function: Any) -> "NormalisedShift":
        return self.moved(function, self.layout)

    def stacked(self, length: int) -> "NormalisedShift":
        keys = jax.random.split(self.key, length)
        return NormalisedShift(
            self.layout, self.dense, self.mean, self.deviation, keys, self.correlated
        )

    def slice(self, depth: int) -> "NormalisedShift":
        return self.moved(lambda array: array, self.layout.slice(depth))

    def entries(self, reason: str, scope: Scope) -> Any:
        scope.remark(self.layout.path, reason)
        return self.dense

    def contracted(self, other: Any, contraction: Contraction, scope: Scope) -> Any:
        return contraction.of(self.entries("it is multiplied", scope), other)

    def convolved(self, other: Any, options: dict[str, Any], scope: Scope) -> Any:
        raise ValueError(f"{self.layout.path} is a kernel: name the leaf that is added.")

    def added(self, other: Any, scope: Scope) -> Any:
        total = other + self.dense
        if total.size == self.dense.size:
            return None  # with other parameters, on the way to the sum
        scope.remark(self.layout.path, DRAWN)
        if not self.correlated:
            noise = jax.random.normal(self.key, total.shape, total.dtype)
            return self.mean + self.deviation * noise
        others = tuple(k for k, pieces in enumerate(self.layout.axes) if not pieces)
        return self.mean + self.deviation * _standardised(total, others)


def _standardised(values: Array, axes: tuple[int, ...]) -> Array:
    """Mean zero and deviation one along these axes; zeros where all values are equal."""
    centred = values - values.mean(axes, keepdims=True)
    variance = jnp.square(centred).mean(axes, keepdims=True)
    return jnp.where(variance > 0, centred / jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)


def check_drawn(shifts: Mapping[str, NormalisedShift], remarks: Mapping[str, list[str]]) -> None:
    """Every shift has met its sum, or a `ValueError`."""
    for path in shifts:
        why = remarks.get(path, [])
        if DRAWN not in why:
            raise ValueError(
                f"`statistics` has {path}, whose sum with the outputs of a layer was not found: "
                f"{'; '.join(why) or 'it is not used'}. Name the leaf that is added last in a "
                "batch normalisation, and give at least two samples."
            )
