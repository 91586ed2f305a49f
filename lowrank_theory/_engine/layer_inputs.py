"""Weights whose inputs are recorded, and the rows of these inputs."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lowrank_theory._engine.follow import AbstractWeight, Contraction, Scope
from lowrank_theory._engine.views import Convolution, Layout, MatrixView, in_leaf_order


class Geometry(NamedTuple):
    """How the rows stand in the input of a weight: split the axes, and sort them into these three.

    Patches are cut out first, where there is a convolution: (batch, features, *window, *places).
    """

    split: tuple[int, ...]
    stack: tuple[int, ...]
    rows: tuple[int, ...]
    inputs: tuple[int, ...]
    loops: tuple[int, ...]
    convolution: Convolution | None = None
    lhs_spec: tuple[int, ...] = ()


class LayerInput(eqx.Module):
    """What multiplies some weights in one product: `values`, where the branch is `taken`.

    Both have a leading axis for each loop around the product; `weights` are the paths, one for each
    use.
    """

    values: Array
    taken: Array
    geometry: Geometry = eqx.field(static=True)
    weights: tuple[str, ...] = eqx.field(static=True)


class RecordedWeight(AbstractWeight):
    """A weight whose inputs are recorded."""

    layout: Layout = eqx.field(static=True)
    dense: Any

    def moved(self, move: Callable[..., Any], layout: Layout) -> "RecordedWeight":
        return RecordedWeight(layout, move(self.dense))

    def mapped(self, function: Callable[..., Any]) -> "RecordedWeight":
        return RecordedWeight(self.layout, function(self.dense))

    def stacked(self, length: int) -> "RecordedWeight":
        return self

    def slice(self, depth: int) -> "RecordedWeight":
        return RecordedWeight(self.layout.slice(depth), self.dense)

    def entries(self, reason: str, scope: Scope) -> Any:
        scope.remark(self.layout.path, reason)
        return self.dense

    def contracted(self, other: Any, contraction: Contraction, scope: Scope) -> Any:
        def axes(of_weight: tuple[int, ...], of_other: tuple[int, ...]) -> dict[int, Any]:
            pieces = (self.layout.axes[axis] for axis in of_weight)
            return dict(zip(of_other, pieces, strict=True))

        view = self.layout.view(contraction.summed, contraction.batch)
        geometry = _geometry(
            jnp.shape(other),
            axes(contraction.batch, contraction.other_batch),
            axes(contraction.summed, contraction.other_summed),
            self.layout.loops,
        )
        self._record(other, geometry, view, scope)
        return contraction.of(self.dense, other)

    def added(self, other: Any, scope: Scope) -> None:
        return None

    def convolved(self, other: Any, options: dict[str, Any], scope: Scope) -> Any:
        groups, outputs, inputs, *window = self.dense.shape
        numbers = options["dimension_numbers"]
        convolution = Convolution(
            tuple(window),
            tuple(options["window_strides"]),
            tuple(tuple(pair) for pair in options["padding"]),
            tuple(options["lhs_dilation"]),
            tuple(options["rhs_dilation"]),
            groups,
        )
        summed = tuple(range(2, 2 + 1 + len(window)))
        view = self.layout.view(summed, (0,), convolution)
        places = [0] * len(window)  # their number is known once the patches are cut
        shape = (jnp.shape(other)[numbers.lhs_spec[0]], groups, inputs, *window, *places)
        geometry = _geometry(
            shape,
            {1: self.layout.axes[0]},
            {axis: self.layout.axes[axis] for axis in summed},
            self.layout.loops,
        )
        geometry = geometry._replace(convolution=convolution, lhs_spec=tuple(numbers.lhs_spec))
        self._record(other, geometry, view, scope)
        kernel = self.dense.reshape(groups * outputs, inputs, *window)
        return lax.conv_general_dilated_p.bind(other, kernel, **options)

    def _record(self, other: Any, geometry: Geometry, view: MatrixView, scope: Scope) -> None:
        path = self.layout.path
        if scope.uncounted:
            return scope.remark(path, scope.uncounted)
        first = scope.views.setdefault(path, view)
        if (first.stack, first.inputs) != (view.stack, view.inputs):
            return scope.remark(path, "it also multiplies along other axes, which is not counted")
        key = (scope.number(other), geometry)
        recorded = scope.layer_inputs.get(key) or LayerInput(
            jnp.asarray(other), jnp.asarray(True), geometry, ()
        )
        weights = (*recorded.weights, path)
        scope.layer_inputs[key] = dataclasses.replace(recorded, weights=weights)
        return None


def _geometry(
    shape: tuple[int, ...], stack: dict[int, Any], inputs: dict[int, Any], loops: tuple[int, ...]
) -> Geometry:
    """Where the pieces of the weight, by the axes that they meet, stand after these axes are split
    into them.
    """
    split: list[int] = []
    place: dict[Any, int] = {}
    rows = []
    for axis, size in enumerate(shape):
        if axis not in stack and axis not in inputs:
            rows.append(len(split))
            split.append(size)
        for piece in stack.get(axis, inputs.get(axis, ())):
            place[piece] = len(split)
            split.append(piece.size)
    stacked, summed = (
        tuple(place[piece] for piece in in_leaf_order(itertools.chain(*pieces.values())))
        for pieces in (stack, inputs)
    )
    return Geometry(tuple(split), stacked, tuple(rows), summed, loops)


@functools.partial(jax.jit, static_argnames="geometry")
def input_rows(values: Array, taken: Array, geometry: Geometry) -> tuple[list[Array], Array]:
    """The rows of each slice, (samples, inputs), and which of them count, (slices, samples).

    A real weight acts on real and imaginary parts alike: of complex values, both are rows.
    """
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        parts = [input_rows(part, taken, geometry) for part in (values.real, values.imag)]
        (real, counts), (imaginary, others) = parts
        rows = [jnp.concatenate(pair) for pair in zip(real, imaginary, strict=True)]
        return rows, jnp.concatenate([counts, others], axis=1)
    loops, split = taken.shape, geometry.split
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(float)
    if geometry.convolution is not None:
        flat = values.reshape(-1, *values.shape[len(loops) :])
        patches = jax.vmap(functools.partial(_patches, geometry=geometry))(flat)
        dimensions = len(geometry.convolution.window)
        split = (*split[: len(split) - dimensions], *patches.shape[-dimensions:])
        values = patches
    values = values.reshape(*loops, *split)
    summed = [1 if axis in geometry.inputs else size for axis, size in enumerate(split)]
    counts = jnp.broadcast_to(taken.reshape(*loops, *[1] * len(split)), (*loops, *summed))
    other_loops = [depth for depth in range(len(loops)) if depth not in geometry.loops]
    stack, rows, inputs = (
        [len(loops) + axis for axis in axes]
        for axes in (geometry.stack, geometry.rows, geometry.inputs)
    )
    order = [*geometry.loops, *stack, *other_loops, *rows, *inputs]
    slices = math.prod([loops[d] for d in geometry.loops] + [split[k] for k in geometry.stack])
    width = math.prod(split[axis] for axis in geometry.inputs)
    arranged = values.transpose(order).reshape(slices, -1, width)
    return list(arranged), counts.transpose(order).reshape(slices, -1)


def _patches(values: Array, geometry: Geometry) -> Array:
    """(batch, features, *window, *places)."""
    convolution = geometry.convolution
    assert convolution is not None
    values = values.transpose(geometry.lhs_spec)
    patches = lax.conv_general_dilated_patches(
        values,
        convolution.window,
        convolution.strides,
        convolution.padding,
        convolution.input_dilation,
        convolution.dilation,
        precision=lax.Precision.HIGHEST,
    )
    batch, features = values.shape[:2]
    return patches.reshape(batch, features, *convolution.window, *patches.shape[2:])
