"""What each weight of a JAX function multiplies, as calibrations."""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from lowrank_theory.calibration import Calibration
from lowrank_theory.networks._follow import (
    AbstractWeight,
    Contraction,
    Scope,
    is_array,
    plain,
    run,
    trace,
)
from lowrank_theory.networks._views import Convolution, MatrixView, Trail, in_leaf_order


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Observation(Mapping[str, Calibration | tuple[Calibration, ...]]):
    """The calibration of each weight that was followed into a product, by its path.

    A path is `jax.tree_util.keystr` of the leaf. A stack of matrices (the slices of a loop, the
    groups of a convolution) has a tuple of calibrations, in the order of `views[path].stack`.
    Weights that see the same input hold the same object.

    - `views`: how each leaf is a matrix.
    - `remarks`: what else is to be known of a weight that was followed: that it is used more than
      once, and uses which its calibration does not count.
    - `not_followed`: why each other leaf has no calibration.
    """

    calibrations: Mapping[str, Calibration | tuple[Calibration, ...]]
    views: Mapping[str, MatrixView]
    remarks: Mapping[str, tuple[str, ...]]
    not_followed: Mapping[str, tuple[str, ...]]

    def __getitem__(self, path: str) -> Calibration | tuple[Calibration, ...]:
        if path not in self.calibrations:
            why = "; ".join(self.not_followed.get(path, ("there is no such leaf",)))
            raise KeyError(f"{path} was not followed: {why}.")
        return self.calibrations[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.calibrations)

    def __len__(self) -> int:
        return len(self.calibrations)

    def slices(self, path: str) -> tuple[Calibration, ...]:
        """The calibrations of a stack, or the one of a matrix."""
        seen = self[path]
        return seen if isinstance(seen, tuple) else (seen,)

    @property
    def shared(self) -> tuple[tuple[str, ...], ...]:
        """The groups of weights that see the same input."""
        groups: dict[Any, list[str]] = {}
        for path in self:
            groups.setdefault(tuple(map(id, self.slices(path))), []).append(path)
        return tuple(tuple(paths) for paths in groups.values() if len(paths) > 1)

    def __repr__(self) -> str:
        lines = [f"{len(self)} weights followed"]
        for path in self:
            view = self.views[path]
            counts = sorted({int(calibration.count) for calibration in self.slices(path)})
            rows = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
            size = " x ".join(map(str, view.matrix_shape))
            lines.append(f"  {path}: {view.shape} as {size}, {rows} rows")
            lines.extend(f"    {remark}" for remark in self.remarks.get(path, ()))
        lines.extend(f"  one input: {', '.join(paths)}" for paths in self.shared)
        lines.append(f"{len(self.not_followed)} not followed")
        by_reason: dict[tuple[str, ...], list[str]] = {}
        for path, reasons in self.not_followed.items():
            by_reason.setdefault(reasons, []).append(path)
        lines.extend(f"  {', '.join(p)}: {'; '.join(r)}" for r, p in by_reason.items())
        return "\n".join(lines)


def observe(
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    batches: Iterable[PyTree],
    *,
    select: Callable[[str], bool] | None = None,
    compressed: tuple[Callable[[Any, Any], Any], PyTree] | None = None,
) -> Observation:
    r"""Stream the second moments of what multiplies each weight of `function(parameters, batch)`.

    The function is any that JAX can trace, of any library; it is traced and compiled once for each
    shape of a batch, and is not changed. A leaf of the parameters is a weight where it enters
    `jax.lax.dot_general` or `jax.lax.conv_general_dilated`, also through transposes, reshapes,
    casts, `jit`, `vmap`, `scan`, `cond`, `checkpoint`, `custom_jvp` and `custom_vjp`. The axes that
    the product sums over are its inputs; each index of the other axes of what it meets is a row.

    Of a convolution the rows are the patches, one calibration per group. A weight that a loop
    slices has one per slice; one that is used more than once counts the rows of all its uses. A
    branch of `cond` counts when it is taken. In memory are the inputs of the selected weights for
    one batch, and the patches of one convolution: `select`, a predicate of the path, keeps large
    networks to some layers at a time.

    With `compressed`, the function and the parameters of a compressed network as `replace` returns
    them, each calibration also has the moments of what the same weight meets there, $\tilde X$
    beside $X$. The weights observed must still be dense in it: select those.

    Raises `ValueError` for a function that cannot be traced on a batch, parameters of which none
    enters a product, no batch at all, and numbers that are not finite in a batch or on the way.
    """
    listener = _Listener(function, parameters, select)
    other = compressed and _Listener(*compressed, listener.selected.__contains__)
    heard: dict[Users, list[Calibration]] = {}
    number = -1
    for number, batch in enumerate(batches):
        name = f"batches[{number}]"
        beside = dict(_by_use(other.hear(batch, name))) if other else {}
        for users, slices in listener.hear(batch, name):
            if users not in heard:
                width = slices[0].shape[-1]
                heard[users] = [Calibration.empty(width, compressed=bool(other))] * len(slices)
            pairs: list[Any] = [None] * len(slices)
            if other:
                pairs = _beside(beside, users)
            heard[users] = [
                _updated(seen, rows, pair, name, users)
                for seen, rows, pair in zip(heard[users], slices, pairs, strict=True)
            ]
    if number < 0:
        raise ValueError("`batches` is empty: give at least one batch.")
    return listener.observation(heard)


Users = tuple[tuple[str, int], ...]  # the paths of some weights, and which use of each it is


def _by_use(heard: Iterable[tuple[Users, Any]]) -> Iterator[tuple[tuple[str, int], Any]]:
    return ((use, slices) for users, slices in heard for use in users)


def _beside(beside: dict[tuple[str, int], list[Array]], users: Users) -> list[Array]:
    missing = [path for path, number in users if (path, number) not in beside]
    if missing:
        raise ValueError(
            f"`compressed` does not multiply by {', '.join(missing)} as `function` does. `select` "
            "the weights that are dense in both."
        )
    return beside[users[0]]


def _updated(
    seen: Calibration, rows: Array, compressed: Array | None, name: str, users: Users
) -> Calibration:
    try:
        return seen.update(rows, compressed) if len(rows) else seen
    except ValueError as error:
        paths = ", ".join(path for path, _ in users)
        raise ValueError(f"In `{name}`, what {paths} multiplies: {error}") from error


class Geometry(NamedTuple):
    """How the rows stand in what a weight meets: split the axes, and sort them into these three.

    Patches are cut out first, where there is a convolution: (batch, features, *window, *places).
    """

    split: tuple[int, ...]
    stack: tuple[int, ...]
    rows: tuple[int, ...]
    inputs: tuple[int, ...]
    loops: tuple[int, ...]
    convolution: Convolution | None = None
    lhs_spec: tuple[int, ...] = ()


class Tap(eqx.Module):
    """What some weights meet in one product: `values`, where the branch is taken.

    Both have a leading axis for each loop around the product; `users` names the weights and counts
    the uses of each.
    """

    values: Array
    taken: Array
    geometry: Geometry = eqx.field(static=True)
    users: tuple[str, ...] = eqx.field(static=True)


class Watched(AbstractWeight):
    """A weight whose products are listened to."""

    trail: Trail = eqx.field(static=True)
    dense: Any

    def moved(self, move: Callable[..., Any], trail: Trail) -> "Watched":
        return Watched(trail, move(self.dense))

    def mapped(self, function: Callable[..., Any]) -> "Watched":
        return Watched(self.trail, function(self.dense))

    def stacked(self, length: int) -> "Watched":
        return self

    def slice(self, depth: int) -> "Watched":
        return Watched(self.trail.slice(depth), self.dense)

    def entries(self, reason: str, scope: Scope) -> Any:
        scope.note(self.trail.path, reason)
        return self.dense

    def contracted(self, other: Any, contraction: Contraction, scope: Scope) -> Any:
        def axes(of_weight: tuple[int, ...], of_other: tuple[int, ...]) -> dict[int, Any]:
            pieces = (self.trail.axes[axis] for axis in of_weight)
            return dict(zip(of_other, pieces, strict=True))

        view = self.trail.view(contraction.summed, contraction.batch)
        geometry = _geometry(
            jnp.shape(other),
            axes(contraction.batch, contraction.other_batch),
            axes(contraction.summed, contraction.other_summed),
            self.trail.loops,
        )
        self._listen(other, geometry, view, scope)
        return contraction.of(self.dense, other)

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
        view = self.trail.view(summed, (0,), convolution)
        places = [0] * len(window)  # their number is known once the patches are cut
        shape = (jnp.shape(other)[numbers.lhs_spec[0]], groups, inputs, *window, *places)
        geometry = _geometry(
            shape,
            {1: self.trail.axes[0]},
            {axis: self.trail.axes[axis] for axis in summed},
            self.trail.loops,
        )
        geometry = geometry._replace(convolution=convolution, lhs_spec=tuple(numbers.lhs_spec))
        self._listen(other, geometry, view, scope)
        kernel = self.dense.reshape(groups * outputs, inputs, *window)
        return lax.conv_general_dilated_p.bind(other, kernel, **options)

    def _listen(self, other: Any, geometry: Geometry, view: MatrixView, scope: Scope) -> None:
        path = self.trail.path
        if scope.deaf:
            return scope.note(path, scope.deaf)
        first = scope.views.setdefault(path, view)
        if (first.stack, first.inputs) != (view.stack, view.inputs):
            return scope.note(path, "it also multiplies along other axes, which is not counted")
        key = (scope.number(other), geometry)
        tap = scope.taps.get(key) or Tap(jnp.asarray(other), jnp.asarray(True), geometry, ())
        scope.taps[key] = dataclasses.replace(tap, users=(*tap.users, path))
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
def _rows(values: Array, taken: Array, geometry: Geometry) -> tuple[list[Array], Array]:
    """The rows of each slice, (samples, inputs), and which of them count, (slices, samples)."""
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


class _Listener:
    """A function compiled to return what its weights meet."""

    def __init__(
        self,
        function: Callable[[Any, Any], Any],
        parameters: PyTree,
        select: Callable[[str], bool] | None,
    ) -> None:
        leaves, tree = jax.tree_util.tree_flatten_with_path(parameters)
        named = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
        self.arrays = {path: leaf for path, leaf in named if is_array(leaf)}
        self.selected = [path for path in self.arrays if select is None or select(path)]
        self.ledger: dict[str, list[str]] = {
            path: [f"it is {leaf.dtype}{list(leaf.shape)}, not floating point with an axis"]
            for path, leaf in self.arrays.items()
            if leaf.ndim == 0 or not jnp.issubdtype(leaf.dtype, jnp.floating)
        }
        watched = [path for path in self.selected if path not in self.ledger]
        if not watched:
            raise ValueError(
                "`parameters` has no floating-point array with an axis"
                + ("." if select is None else " whose path `select` accepts.")
                + f" Its leaves are: {', '.join(path for path, _ in named) or 'none'}."
            )
        self.views: dict[str, MatrixView] = {}
        self.shapes = ""

        def taps(arrays: list[Any], batch: PyTree) -> list[Tap]:
            given = dict(zip(self.arrays, arrays, strict=True))
            filled = jax.tree.unflatten(tree, [given.get(path, leaf) for path, leaf in named])
            program = self._traced(function, filled, batch)
            inputs = [
                Watched(Trail.start(path, leaf.shape), leaf) if path in watched else leaf
                for path, leaf in given.items()
            ]
            scope = Scope(self.ledger, self.views)
            results = run(program, [*inputs, *jax.tree.leaves(batch)], scope)
            plain(results, "the function returns it", scope)
            return list(scope.taps.values())

        self.taps = jax.jit(taps)

    def _traced(self, function: Callable[..., Any], parameters: PyTree, batch: PyTree) -> Any:
        shapes = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(batch))
        try:
            program, _ = trace(function, parameters, batch)
        except Exception as error:
            before = f" (batches before it, of {self.shapes}, could)" if self.shapes else ""
            raise ValueError(
                f"`function(parameters, batch)` cannot be traced by JAX on a batch of {shapes}"
                f"{before}: {type(error).__name__}: {error}"
            ) from error
        self.shapes = shapes
        return program

    def hear(self, batch: PyTree, name: str) -> Iterator[tuple[Users, list[Array]]]:
        """The rows that each set of weights met in a batch, slice by slice."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
            if jnp.issubdtype(array.dtype, jnp.floating) and np.any(np.isnan(np.asarray(array))):
                where = f"{name}{jax.tree_util.keystr(path)}"
                raise ValueError(f"`{where}` has entries that are NaN. Remove or repair them.")
        uses = collections.Counter()
        for tap in self.taps(list(self.arrays.values()), batch):
            users = []
            for path in tap.users:
                users.append((path, uses[path]))
                uses[path] += 1
            slices, counts = _rows(tap.values, tap.taken, tap.geometry)
            counted = np.asarray(counts)
            if not counted.all():
                slices = [rows[mask] for rows, mask in zip(slices, counted, strict=True)]
            yield tuple(users), slices

    def observation(self, heard: dict[Users, list[Calibration]]) -> Observation:
        """What was heard, by weight."""
        by_path: dict[str, list[list[Calibration]]] = {}
        for (path, _), slices in _by_use(heard.items()):
            by_path.setdefault(path, []).append(slices)
        calibrations, remarks, not_followed = {}, {}, {}
        for path in self.selected:
            uses = by_path.get(path, [])
            reasons = tuple(self.ledger.get(path, ()))
            merged = uses[0] if len(uses) == 1 else list(map(_merged, zip(*uses, strict=True)))
            if not uses:
                not_followed[path] = reasons or ("it is not used",)
            elif not all(int(calibration.count) for calibration in merged):
                not_followed[path] = (*reasons, "no batch took the branch that multiplies by it")
            else:
                stacked = bool(self.views[path].stack)
                calibrations[path] = tuple(merged) if stacked else merged[0]
                if len(uses) > 1:
                    reasons = (f"used {len(uses)} times, all of them counted", *reasons)
                if reasons:
                    remarks[path] = reasons
        if not calibrations:
            raise ValueError(
                "No leaf of `parameters` was followed into a matrix product or a convolution: "
                + "; ".join(f"{path}: {', '.join(why)}" for path, why in not_followed.items())
            )
        views = {path: self.views[path] for path in calibrations}
        return Observation(calibrations, views, remarks, not_followed)


def _merged(calibrations: Iterable[Calibration]) -> Calibration:
    return functools.reduce(Calibration.merge, calibrations)
