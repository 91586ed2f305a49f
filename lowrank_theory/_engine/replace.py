"""The same JAX function running on approximations of its weights."""

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Inexact, PyTree

from lowrank_theory._engine.follow import (
    AbstractWeight,
    Contraction,
    Scope,
    is_array,
    plain,
    run,
    trace,
)
from lowrank_theory._engine.views import Layout, Pieces, in_leaf_order, size_of
from lowrank_theory.approximations import AbstractApproximation, AbstractMatrix, Affine


def replace(
    function: Callable[..., Any],
    parameters: PyTree,
    factors: Mapping[str, Any],
) -> tuple[Callable[..., Any], PyTree]:
    r"""The function and the parameters of a network in which approximations stand for some weights.

    ```
    compressed, smaller = replace(function, parameters, {"['w']": LowRank(left, right)})
    compressed(smaller, batch)
    ```

    The paths are those of `observe`, each with what stands for its matrix: a `LowRank` or any other
    of `lowrank_theory.approximations`, (inputs, outputs), stacked where the view of the leaf is; or
    an `Affine`, whose shift is added to each product. `smaller` is `parameters` with these in place
    of the leaves, and in their dtypes: a tree of arrays to be saved or trained, in which the same
    approximation at several paths stays the same.

    `compressed(smaller, *arguments)` traces the function and runs it with $(X L) R$ for each
    product $X W$, and for a convolution with one that has `rank` filters per group, then one of
    window one: two factors are never multiplied. What is rounded or scattered is made dense at each
    product, and stored small; a table takes the rows of each product, or the patches of a
    convolution. It is a function like any other for `jax.jit` (without which it is traced at each
    call), `jax.vmap` and `jax.grad`; with codes in it use `equinox.filter_grad`.

    A function with its own derivative (`custom_jvp`, `custom_vjp`) that takes a replaced weight is
    differentiated through its body instead.

    What is returned can be given again, to replace more.

    Raises `ValueError` for a path that no leaf has, and approximations that do not fit; the call
    does for a leaf of which more is asked than products, and for a shift or a table of one that is
    also multiplied transposed.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(parameters)
    shapes: list[jax.ShapeDtypeStruct | None] = []
    replaced: list[Any] = []
    missing = dict(factors)
    placed: dict[tuple[int, Any], Any] = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        factor = missing.pop(name, None)
        if factor is None:
            replaced.append(leaf)
            shapes.append(None)
        else:
            fitting = _fitting(name, factor, leaf)
            replaced.append(placed.setdefault((id(factor), fitting.dtype), fitting))
            shapes.append(jax.ShapeDtypeStruct(leaf.shape, replaced[-1].dtype))
    if missing:
        known = ", ".join(jax.tree_util.keystr(path) for path, _ in leaves)
        raise ValueError(
            f"`factors` has {', '.join(missing)}, which is no leaf of `parameters`: {known}."
        )
    names = [jax.tree_util.keystr(path) for path, _ in leaves]

    def compressed(parameters: PyTree, /, *arguments: Any) -> Any:
        try:
            given = tree.flatten_up_to(parameters)
        except ValueError as error:
            raise ValueError(
                f"`parameters` must be like those that `replace` returned: {error}"
            ) from error
        dense = [
            leaf if shape is None else shape for leaf, shape in zip(given, shapes, strict=True)
        ]
        program, rebuilt = trace(function, jax.tree.unflatten(tree, dense), *arguments)
        inputs = [
            Approximated.start(name, shape.shape, leaf) if shape is not None else leaf
            for name, leaf, shape in zip(names, given, shapes, strict=True)
            if shape is not None or is_array(leaf)
        ]
        arrays = [leaf for leaf in jax.tree.leaves(arguments) if is_array(leaf)]
        scope = Scope({}, {})
        results = run(program, [*inputs, *arrays], scope)
        return rebuilt(plain(results, "the function returns it", scope))

    return compressed, jax.tree.unflatten(tree, replaced)


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by `jax.tree_util.keystr`; what stands for a matrix is one leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda leaf: isinstance(leaf, AbstractApproximation)
    )
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def with_leaves(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """The tree with these leaves at their paths; what stands for a matrix is one leaf."""

    def at(path: Any, leaf: Any) -> Any:
        return leaves.get(jax.tree_util.keystr(path), leaf)

    return jax.tree_util.tree_map_with_path(
        at, tree, is_leaf=lambda leaf: isinstance(leaf, AbstractApproximation)
    )


def _fitting(name: str, given: Any, leaf: Any) -> AbstractApproximation:
    if not isinstance(given, AbstractApproximation):
        raise ValueError(
            f"`factors[{name!r}]` must be an approximation such as a `LowRank`; got "
            f"{type(given).__name__}."
        )
    if not (is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)):
        raise ValueError(f"The leaf {name} is {type(leaf).__name__}, not an array of floats.")
    if math.prod(given.shape) != leaf.size:
        raise ValueError(
            f"`factors[{name!r}]` is {given.shape}, of {math.prod(given.shape)} entries, but the "
            f"leaf is {leaf.shape}, of {leaf.size}. Give it as the matrix of `observe`'s view of "
            "the leaf."
        )
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    cast = given.map_floats(lambda array: jnp.asarray(array, dtype))
    return jax.tree.map(jnp.asarray, cast)


class Approximated(AbstractWeight):
    """A weight kept as an approximation. How its leaf is a matrix is settled by its first product.

    `shift` is kept apart: (*stack, outputs), or `None`.
    """

    layout: Layout = eqx.field(static=True)
    given: AbstractApproximation
    shift: Inexact[Array | np.ndarray, "*stack outputs"] | None

    @staticmethod
    def start(name: str, shape: tuple[int, ...], given: AbstractApproximation) -> "Approximated":
        """The leaf itself."""
        layout = Layout.start(name, shape)
        if isinstance(given, Affine):
            return Approximated(layout, given.approximation, given.shift)
        return Approximated(layout, given, None)

    def moved(self, move: Callable[..., Any], layout: Layout) -> "Approximated":
        return Approximated(layout, self.given, self.shift)

    def mapped(self, function: Callable[..., Any]) -> "Approximated":
        shift = None if self.shift is None else function(self.shift)
        return Approximated(self.layout, self.given.map_floats(function), shift)

    def stacked(self, length: int) -> "Approximated":
        if not self.layout.axes[0]:  # a leaf with one slice is no stack
            return jax.tree.map(lambda array: array[None], self)
        if len(self.given.shape) < 3 or self.given.shape[0] != length:
            self._refuse(f"a stack of {length} matrices, for the loop that slices it")
        return self

    def slice(self, depth: int) -> "Approximated":
        return Approximated(self.layout.slice(depth), self.given, self.shift)

    def entries(self, reason: str, scope: Scope) -> Any:
        raise ValueError(
            f"{self.layout.path} cannot be replaced by factors: {reason}. Leave it dense."
        )

    def contracted(self, other: Any, contraction: Contraction, scope: Scope) -> Any:
        summed, batch = contraction.summed, contraction.batch
        free = [k for k in range(len(self.layout.axes)) if k not in (*summed, *batch)]
        given, shift = self._oriented(summed, batch, free, scope)
        if isinstance(given, AbstractMatrix):
            terms = [self._product(chain, other, contraction, free) for chain in given.chains()]
            result = functools.reduce(operator.add, terms)
        else:
            result = self._looked_up(given, other, contraction, free)
        if shift is not None:
            rows = range(len(batch), result.ndim - len(free))
            result += jnp.expand_dims(shift, tuple(rows)).astype(result.dtype)
        if contraction.weight_first:
            result = jnp.moveaxis(result, range(-len(free), 0), _after(batch, free))
        return result

    def _product(self, chain: Any, other: Any, contraction: Contraction, free: Any) -> Array:
        """(*batch, *rows, *free), by one factor or by two, one after the other."""
        summed, batch = contraction.summed, contraction.batch
        options = {**contraction.options, "out_sharding": None}
        axes, places = self.layout.axes, tuple(range(len(batch)))
        first = (
            (contraction.other_summed, _after(batch, summed)),
            (contraction.other_batch, places),
        )
        if len(chain) == 1:
            weight = _arranged(chain[0], axes, batch, summed, free, whole=True)
            return lax.dot_general(other, weight, first, **contraction.options)
        near, far = self._sides(chain, batch, summed, free)
        partial = lax.dot_general(other, near, first, **options)
        second = (((partial.ndim - 1,), (len(batch),)), (places, places))
        return lax.dot_general(partial, far.astype(partial.dtype), second, **contraction.options)

    def _looked_up(
        self, given: AbstractApproximation, other: Any, contraction: Contraction, free: Any
    ) -> Array:
        """(*batch, *rows, *free), by a map of rows: (*stack, rows, inputs) in, outputs out."""
        axes, batch, summed = self.layout.axes, contraction.batch, contraction.summed
        taken = (*contraction.other_batch, *contraction.other_summed)
        rows = [k for k in range(other.ndim) if k not in taken]
        moved = other.transpose(*contraction.other_batch, *contraction.other_summed, *rows)
        sizes = [other.shape[k] for k in rows]
        *stack, inputs, _ = given.shape
        split = _stored(moved, axes, batch, summed).reshape(*stack, inputs, math.prod(sizes))
        outputs = given.apply(split.swapaxes(-1, -2)).swapaxes(-1, -2)
        arranged = _arranged(outputs.reshape(*stack, -1, math.prod(sizes)), axes, batch, free)
        found = jnp.moveaxis(arranged, -1, len(batch))
        shape = found.shape[: len(batch)], found.shape[len(batch) + 1 :]
        return found.reshape(*shape[0], *sizes, *shape[1]).astype(other.dtype)

    def added(self, other: Any, scope: Scope) -> None:
        return None

    def convolved(self, other: Any, options: dict[str, Any], scope: Scope) -> Any:
        window = range(3, len(self.layout.axes))
        given, shift = self._oriented((2, *window), (0,), (1,), scope)
        if isinstance(given, AbstractMatrix):
            terms = [self._convolution(chain, other, options) for chain in given.chains()]
            result = functools.reduce(operator.add, terms)
        else:
            result = self._patches_looked_up(given, other, options)
        if shift is not None:
            _, features, *_ = options["dimension_numbers"].out_spec
            spread = [-1 if axis == features else 1 for axis in range(result.ndim)]
            result += shift.reshape(spread).astype(result.dtype)
        return result

    def _convolution(self, chain: Any, other: Any, options: dict[str, Any]) -> Array:
        """By one kernel, or by one of `rank` filters for each group and one of window one."""
        axes, window = self.layout.axes, len(self.layout.axes) - 3
        summed = tuple(range(2, 3 + window))
        if len(chain) == 1:
            kernel = jnp.moveaxis(_arranged(chain[0], axes, (0,), summed, (1,), whole=True), -1, 1)
            kernel = kernel.reshape(-1, *kernel.shape[2:])
            return lax.conv_general_dilated_p.bind(other, kernel, **options)
        near, far = self._sides(chain, (0,), summed, (1,))
        groups, rank, outputs = far.shape
        # near is (groups, inputs, *window, rank): the filters of a group, side by side
        filters = jnp.moveaxis(near, -1, 1).reshape(groups * rank, *near.shape[1:-1])
        partial = lax.conv_general_dilated_p.bind(other, filters, **options)
        mixing = far.swapaxes(1, 2).reshape(groups * outputs, rank, *[1] * window)
        numbers = options["dimension_numbers"]
        return lax.conv_general_dilated_p.bind(
            partial,
            mixing.astype(partial.dtype),
            **{
                **options,
                "dimension_numbers": numbers._replace(lhs_spec=numbers.out_spec),
                "window_strides": (1,) * window,
                "padding": ((0, 0),) * window,
                "lhs_dilation": (1,) * window,
            },
        )

    def _patches_looked_up(
        self, given: AbstractApproximation, other: Any, options: dict[str, Any]
    ) -> Array:
        """By a map of rows: the patches that the window meets."""
        axes, numbers = self.layout.axes, options["dimension_numbers"]
        groups, _, channels, *window = (size_of(pieces) for pieces in axes)
        kept = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
        patches = lax.conv_general_dilated_patches(
            other,
            window,
            **{name: options[name] for name in kept},
            dimension_numbers=numbers,
            precision=lax.Precision.HIGHEST,  # of a product with ones and zeros
            preferred_element_type=options["preferred_element_type"],
        )
        images, features, *places = numbers.out_spec
        moved = patches.transpose(features, images, *places)
        rows = moved.reshape(groups, channels, *window, *moved.shape[1:])
        summed = tuple(range(2, len(axes)))
        contraction = Contraction(summed, (0,), tuple(range(1, len(axes) - 1)), (0,), False, {})
        found = self._looked_up(given, rows, contraction, (1,))  # (groups, images, *places, free)
        found = jnp.moveaxis(found, 0, -2)
        found = found.reshape(*found.shape[:-2], -1)
        order = [0] * found.ndim
        for here, there in enumerate((images, *places, features)):
            order[there] = here
        return found.transpose(*order)

    def _oriented(
        self, summed: Any, batch: Any, free: Any, scope: Scope
    ) -> tuple[AbstractApproximation, Array | None]:
        """The approximation as this product meets it, from its summed to its free axes, and its
        shift, (*batch, *free).
        """
        view = self.layout.view(summed, batch)
        first = scope.views.setdefault(self.layout.path, view)
        forward = (first.inputs, first.outputs) == (view.inputs, view.outputs)
        backward = (first.outputs, first.inputs) == (view.inputs, view.outputs)
        if first.stack != view.stack or not (forward or backward):
            self.entries("it is multiplied along different axes at different places", scope)
        if self.shift is not None and not forward:
            raise ValueError(
                f"{self.layout.path} is also multiplied transposed, where a shift of its outputs "
                "has no place. Replace it without a shift."
            )
        given: Any = self.given
        if not forward:
            if not isinstance(given, AbstractMatrix):
                self.entries("it is also multiplied transposed, and no table is a matrix", scope)
            given = given.T
        *stack, inputs, outputs = given.shape
        axes = self.layout.axes
        sizes = [size_of(p for k in which for p in axes[k]) for which in (batch, summed, free)]
        if [math.prod(stack), inputs, outputs] != sizes:
            self._refuse(f"{first.matrix_shape}, as it is multiplied")
        shift = self.shift
        if shift is not None:
            shift = _arranged(shift[..., None], axes, batch, free)[..., 0]
        return given, shift

    def _sides(self, chain: Any, batch: Any, summed: Any, free: Any) -> tuple[Array, Array]:
        """The factor that a product meets first, (*batch, *summed, rank), and the other, (*batch,
        rank, *free).
        """
        left, right = chain
        near = _arranged(left, self.layout.axes, batch, summed)
        far = _arranged(right.swapaxes(-1, -2), self.layout.axes, batch, free)
        return near, jnp.moveaxis(far, -1, len(batch))

    def _refuse(self, wanted: str) -> None:
        raise ValueError(
            f"What stands for {self.layout.path} must be {wanted}, (inputs, outputs) last; it is "
            f"{self.given.shape}."
        )


def _after(batch: Any, axes: Any) -> tuple[int, ...]:
    """The places of these axes where the batch axes stand first."""
    return tuple(range(len(batch), len(batch) + len(axes)))


def _arranged(array: Any, axes: tuple[Pieces, ...], *sides: Any, whole: bool = False) -> Array:
    """An array by sides of the weight as they are stored, in order and each flat, by its axes as
    they stand: (*stack, side, rank) becomes (*batch, *side, rank), and, `whole`, there is no rank.
    """
    stored = [in_leaf_order(p for k in side for p in axes[k]) for side in sides]
    pieces = [piece for side in stored for piece in side]
    rest = () if whole else array.shape[-1:]
    order = [pieces.index(piece) for side in sides for k in side for piece in axes[k]]
    split = array.reshape(*[piece.size for piece in pieces], *rest)
    moved = split.transpose(*order, *range(len(pieces), split.ndim))
    return moved.reshape(*[size_of(axes[k]) for side in sides for k in side], *rest)


def _stored(array: Any, axes: tuple[Pieces, ...], *sides: Any) -> Any:
    """The other way: (*batch, *side, ...) as it would be stored, the pieces apart."""
    pieces = [piece for side in sides for k in side for piece in axes[k]]
    stored = [p for side in sides for p in in_leaf_order(q for k in side for q in axes[k])]
    count = sum(len(side) for side in sides)
    split = array.reshape(*[piece.size for piece in pieces], *array.shape[count:])
    order = [pieces.index(piece) for piece in stored]
    return split.transpose(*order, *range(len(pieces), split.ndim))
