"""The same JAX function running on factors."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact, PyTree

from lowrank_theory.networks._follow import (
    AbstractWeight,
    Contraction,
    Scope,
    is_array,
    plain,
    run,
    trace,
)
from lowrank_theory.networks._views import Pieces, Trail, in_leaf_order, size_of
from lowrank_theory.recovery._low_rank import LowRank


class AffineLowRank(eqx.Module):
    r"""The map $x \mapsto (xL)R + s$: the `factors` of a matrix, and a `shift` of its products.

    It stands for a weight in `replace`, where the layer has a bias and where it has none. With $s =
    \bar x(W - LR)$ the mean error over rows of mean $\bar x$ is zero. The shift is (outputs,), with
    the leading axes of the factors where these are a stack, and in their dtype.
    """

    factors: LowRank
    shift: Float[Array | np.ndarray, "*stack outputs"]

    def __init__(self, factors: Any, shift: Any):
        """Raises `ValueError` unless the shift has the shape and the dtype of the products."""
        if not isinstance(factors, LowRank):
            raise ValueError(f"`factors` must be a `LowRank`; got {type(factors).__name__}.")
        wanted = (*factors.shape[:-2], factors.shape[-1])
        array = isinstance(shift, Array | np.ndarray)
        if not array or (shift.shape, shift.dtype) != (wanted, factors.dtype):
            got = f"{shift.shape} of {shift.dtype}" if array else type(shift).__name__
            raise ValueError(
                f"`shift` must be an array {wanted} of {factors.dtype}, one number for each output "
                f"of the factors; got {got}."
            )
        self.factors = factors
        self.shift = shift

    @property
    def dtype(self) -> np.dtype:
        """The dtype in which factors and shift are stored."""
        return self.factors.dtype

    @property
    def rank(self) -> int:
        """The width of the factors."""
        return self.factors.rank

    @property
    def parameter_count(self) -> int:
        """How many numbers are stored: `rank * (inputs + outputs) + outputs`, of one matrix."""
        return self.factors.parameter_count + self.shift.size

    @property
    def storage_bytes(self) -> int:
        """How many bytes these numbers take."""
        return self.parameter_count * self.dtype.itemsize


def replace(
    function: Callable[..., Any],
    parameters: PyTree,
    factors: Mapping[str, Any],
) -> tuple[Callable[..., Any], PyTree]:
    r"""The function and the parameters of a network in which factors stand for some weights.

    ```
    compressed, smaller = replace(function, parameters, {"['w']": LowRank(left, right)})
    compressed(smaller, batch)
    ```

    The paths are those of `observe`, each with a `LowRank` of (inputs, outputs), stacked where the
    view of the leaf is, or an `AffineLowRank`, whose shift is added to each product. `smaller` is
    `parameters` with these in place of the leaves, and in their dtypes: a tree of arrays to be
    saved or trained, in which the same factors at several paths stay the same.
    `compressed(smaller, *arguments)` traces the function and runs it with $(X L) R$ for each
    product $X W$, and for a convolution with one that has `rank` filters per group, then one of
    window one. The matrix $L R$ is never formed. It is a function like any other for `jax.jit`
    (without which it is traced at each call), `jax.vmap` and `jax.grad`.

    A function with its own derivative (`custom_jvp`, `custom_vjp`) that takes a replaced weight is
    differentiated through its body instead.

    What is returned can be given again, to replace more.

    Raises `ValueError` for a path that no leaf has, and factors that do not fit; the call does for
    a leaf of which more is asked than products, and for a shift of one that is also multiplied
    transposed.
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
            Factored.start(name, shape.shape, leaf) if shape is not None else leaf
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
        tree, is_leaf=lambda leaf: isinstance(leaf, LowRank | AffineLowRank)
    )
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _fitting(name: str, given: Any, leaf: Any) -> LowRank | AffineLowRank:
    if not isinstance(given, LowRank | AffineLowRank):
        raise ValueError(
            f"`factors[{name!r}]` must be a `LowRank` or an `AffineLowRank`; got "
            f"{type(given).__name__}."
        )
    if not (is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)):
        raise ValueError(f"The leaf {name} is {type(leaf).__name__}, not an array of floats.")
    factors = given.factors if isinstance(given, AffineLowRank) else given
    if factors.size != leaf.size:
        raise ValueError(
            f"`factors[{name!r}]` is {factors.shape}, of {factors.size} entries, but the leaf is "
            f"{leaf.shape}, of {leaf.size}. Give it as the matrix of `observe`'s view of the leaf."
        )
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    return jax.tree.map(lambda side: jnp.asarray(side, dtype), given)


class Factored(AbstractWeight):
    """A weight kept as factors. How its leaf is a matrix is settled by its first product."""

    trail: Trail = eqx.field(static=True)
    factors: LowRank
    shift: Inexact[Array | np.ndarray, "*stack outputs"] | None

    @staticmethod
    def start(name: str, shape: tuple[int, ...], given: LowRank | AffineLowRank) -> "Factored":
        """The leaf itself."""
        trail = Trail.start(name, shape)
        if isinstance(given, AffineLowRank):
            return Factored(trail, given.factors, given.shift)
        return Factored(trail, given, None)

    def moved(self, move: Callable[..., Any], trail: Trail) -> "Factored":
        return Factored(trail, self.factors, self.shift)

    def mapped(self, function: Callable[..., Any]) -> "Factored":
        return Factored(self.trail, *jax.tree.map(function, (self.factors, self.shift)))

    def stacked(self, length: int) -> "Factored":
        if not self.trail.axes[0]:  # a leaf with one slice is no stack
            return self.mapped(lambda side: side[None])
        if self.factors.ndim < 3 or self.factors.shape[0] != length:
            self._refuse(f"a stack of {length} matrices, for the loop that slices it")
        return self

    def slice(self, depth: int) -> "Factored":
        return Factored(self.trail.slice(depth), self.factors, self.shift)

    def entries(self, reason: str, scope: Scope) -> Any:
        raise ValueError(
            f"{self.trail.path} cannot be replaced by factors: {reason}. Leave it dense."
        )

    def contracted(self, other: Any, contraction: Contraction, scope: Scope) -> Any:
        summed, batch, options = contraction.summed, contraction.batch, contraction.options
        free = [k for k in range(len(self.trail.axes)) if k not in (*summed, *batch)]
        near, far, shift = self._parts(summed, batch, free, scope)
        # near is (batch, summed, rank), far is (batch, rank, free), shift is (batch, free)
        places = tuple(range(len(batch)))
        first = (
            (contraction.other_summed, _after(batch, summed)),
            (contraction.other_batch, places),
        )
        partial = lax.dot_general(other, near, first, **{**options, "out_sharding": None})
        second = (((partial.ndim - 1,), (len(batch),)), (places, places))
        result = lax.dot_general(partial, far.astype(partial.dtype), second, **options)
        if shift is not None:
            rows = range(len(batch), result.ndim - len(free))
            result += jnp.expand_dims(shift, tuple(rows)).astype(result.dtype)
        if contraction.weight_first:
            result = jnp.moveaxis(result, range(-len(free), 0), _after(batch, free))
        return result

    def convolved(self, other: Any, options: dict[str, Any], scope: Scope) -> Any:
        window = len(self.trail.axes) - 3
        near, far, shift = self._parts(range(2, 3 + window), (0,), (1,), scope)
        groups, rank, outputs = far.shape
        # near is (groups, inputs, *window, rank): the filters of a group, side by side
        filters = jnp.moveaxis(near, -1, 1).reshape(groups * rank, *near.shape[1:-1])
        partial = lax.conv_general_dilated_p.bind(other, filters, **options)
        mixing = far.swapaxes(1, 2).reshape(groups * outputs, rank, *[1] * window)
        numbers = options["dimension_numbers"]
        result = lax.conv_general_dilated_p.bind(
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
        if shift is not None:
            _, features, *_ = numbers.out_spec
            spread = [-1 if axis == features else 1 for axis in range(result.ndim)]
            result += shift.reshape(spread).astype(result.dtype)
        return result

    def _parts(
        self, summed: Any, batch: Any, free: Any, scope: Scope
    ) -> tuple[Array, Array, Array | None]:
        """The factor that the product meets first, (*batch, *summed, rank), the other,
        (*batch, rank, *free), and the shift, (*batch, *free).
        """
        view = self.trail.view(summed, batch)
        first = scope.views.setdefault(self.trail.path, view)
        forward = (first.inputs, first.outputs) == (view.inputs, view.outputs)
        backward = (first.outputs, first.inputs) == (view.inputs, view.outputs)
        if first.stack != view.stack or not (forward or backward):
            self.entries("it is multiplied along different axes at different places", scope)
        if self.shift is not None and not forward:
            raise ValueError(
                f"{self.trail.path} is also multiplied transposed, where a shift of its outputs "
                "has no place. Replace it by a `LowRank`, without a shift."
            )
        sides = [self.factors.left, self.factors.right.swapaxes(-1, -2)]
        one, other = sides if forward else sides[::-1]
        *stack, inputs, _ = one.shape
        outputs = other.shape[-2]
        axes = self.trail.axes
        sizes = [size_of(p for k in which for p in axes[k]) for which in (batch, summed, free)]
        if [math.prod(stack), inputs, outputs] != sizes:
            self._refuse(f"{first.matrix_shape}, as it is multiplied")
        near = _arranged(one, axes, batch, summed)
        far = _arranged(other, axes, batch, free)
        shift = self.shift
        if shift is not None:
            shift = _arranged(shift[..., None], axes, batch, free)[..., 0]
        return near, jnp.moveaxis(far, -1, len(batch)), shift

    def _refuse(self, wanted: str) -> None:
        raise ValueError(
            f"The factors of {self.trail.path} must be {wanted}, (inputs, outputs) last; they are "
            f"{self.factors.shape}."
        )


def _after(batch: Any, axes: Any) -> tuple[int, ...]:
    """The places of these axes where the batch axes stand first."""
    return tuple(range(len(batch), len(batch) + len(axes)))


def _arranged(factor: Any, axes: tuple[Pieces, ...], batch: Any, side: Any) -> Array:
    """A factor (*stack, side, rank) by the weight's axes as they stand: (*batch, *side, rank)."""
    stored = [in_leaf_order(p for k in which for p in axes[k]) for which in (batch, side)]
    pieces = [*stored[0], *stored[1]]
    order = [pieces.index(piece) for k in (*batch, *side) for piece in axes[k]]
    split = factor.reshape(*[piece.size for piece in pieces], factor.shape[-1])
    moved = split.transpose(*order, len(pieces))
    return moved.reshape(*[size_of(axes[k]) for k in (*batch, *side)], factor.shape[-1])
