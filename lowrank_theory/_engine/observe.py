"""What each weight of a JAX function multiplies: where, and as calibrations."""

import collections
import dataclasses
import functools
import math
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from lowrank_theory._engine.follow import Scope, is_array, plain, run, trace
from lowrank_theory._engine.listen import Tap, Watched, rows_met
from lowrank_theory._engine.views import MatrixView, Trail
from lowrank_theory.calibration import AbstractCalibration, Calibration


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a weight multiplies.

    - `view`: how the leaf is a matrix, or a stack of them;
    - `rows`: how many rows each matrix meets in one batch, over all its uses;
    - `group`: a number that weights which see the same input have in common. It grows in the order
      of execution;
    - `complex_inputs`: whether what it meets is complex at some place. Real and imaginary parts are
      rows of their own there.
    """

    view: MatrixView
    rows: int
    group: int
    complex_inputs: bool = False

    @property
    def parameters(self) -> int:
        """How many numbers the leaf holds."""
        return math.prod(self.view.shape)

    @property
    def multiply_adds(self) -> int:
        """What its products cost for one batch: rows times inputs times outputs, of each matrix."""
        return self.rows * self.parameters


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Survey(Mapping[str, Site]):
    """Where each weight multiplies, by its path and in the order of execution.

    - `remarks`: uses of a weight besides those products;
    - `not_followed`: why each other leaf is no weight.
    """

    sites: Mapping[str, Site]
    remarks: Mapping[str, tuple[str, ...]]
    not_followed: Mapping[str, tuple[str, ...]]

    def __getitem__(self, path: str) -> Site:
        if path not in self.sites:
            raise _not_followed(path, self.not_followed)
        return self.sites[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __repr__(self) -> str:
        lines = [f"{len(self)} weights followed"]
        for path, site in self.items():
            size = " x ".join(map(str, site.view.matrix_shape))
            parts = " (real and imaginary parts)" if site.complex_inputs else ""
            lines.append(f"  {path}: {size}, {site.rows:,} rows{parts}, input {site.group}")
            lines.extend(f"    {remark}" for remark in self.remarks.get(path, ()))
        return "\n".join([*lines, *by_reason(self.not_followed)])


def _not_followed(path: str, reasons: Mapping[str, tuple[str, ...]]) -> KeyError:
    why = "; ".join(reasons.get(path, ("there is no such leaf",)))
    return KeyError(f"{path} was not followed: {why}.")


def by_reason(not_followed: Mapping[str, tuple[str, ...]]) -> list[str]:
    """How many leaves there are, and which share which reasons."""
    by_reason: dict[tuple[str, ...], list[str]] = {}
    for path, reasons in not_followed.items():
        by_reason.setdefault(reasons, []).append(path)
    listed = (f"  {', '.join(paths)}: {'; '.join(why)}" for why, paths in by_reason.items())
    return [f"{len(not_followed)} not followed", *listed]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Observation(Mapping[str, AbstractCalibration | tuple[AbstractCalibration, ...]]):
    """The calibration of each weight that was followed into a product, by its path.

    A path is `jax.tree_util.keystr` of the leaf. A stack of matrices (the slices of a loop, the
    groups of a convolution) has a tuple of calibrations, in the order of `views[path].stack`.
    Weights that see the same input hold the same object.

    - `views`: how each leaf is a matrix.
    - `remarks`: what else is to be known of a weight that was followed: that it is used more than
      once, and uses which its calibration does not count.
    - `not_followed`: why each other leaf has no calibration.
    """

    calibrations: Mapping[str, AbstractCalibration | tuple[AbstractCalibration, ...]]
    views: Mapping[str, MatrixView]
    remarks: Mapping[str, tuple[str, ...]]
    not_followed: Mapping[str, tuple[str, ...]]

    def __getitem__(self, path: str) -> AbstractCalibration | tuple[AbstractCalibration, ...]:
        if path not in self.calibrations:
            raise _not_followed(path, self.not_followed)
        return self.calibrations[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.calibrations)

    def __len__(self) -> int:
        return len(self.calibrations)

    def slices(self, path: str) -> tuple[AbstractCalibration, ...]:
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
        return "\n".join([*lines, *by_reason(self.not_followed)])


def observe(
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    batches: Iterable[PyTree],
    *,
    select: Callable[[str], bool] | None = None,
    compressed: tuple[Callable[[Any, Any], Any], PyTree] | None = None,
    calibration: type[AbstractCalibration] = Calibration,
) -> Observation:
    r"""Stream the statistics of what multiplies each weight of `function(parameters, batch)`: its
    second moments, unless another kind of `calibration` is asked for (`TriangularCalibration`).

    The function is any that JAX can trace, of any library; it is traced and compiled once for each
    shape of a batch, and is not changed. A leaf of the parameters is a weight where it enters
    `jax.lax.dot_general` or `jax.lax.conv_general_dilated`, also through transposes, reshapes,
    casts, `jit`, `vmap`, `scan`, `cond`, `checkpoint`, `custom_jvp` and `custom_vjp`. The axes that
    the product sums over are its inputs; each index of the other axes of what it meets is a row.

    Of a convolution the rows are the patches, one calibration per group. A weight that a loop
    slices has one per slice; one that is used more than once counts the rows of all its uses. A
    branch of `cond` counts when it is taken. Where a weight meets complex numbers, their real and
    their imaginary parts are rows; complex weights are not followed. In memory are the inputs of
    the selected weights for one batch, and the patches of one convolution: `select`, a predicate of
    the path, keeps large networks to some layers at a time.

    With `compressed`, the function and the parameters of a compressed network as `replace` returns
    them, each calibration also has the moments of what the same weight meets there, $\tilde X$
    beside $X$. The weights observed must still be dense in it: select those.

    Raises `ValueError` for a function that cannot be traced on a batch, parameters of which none
    enters a product, no batch at all, and numbers that are not finite in a batch or on the way.
    """
    listener = Listener(function, parameters, select, kind=calibration)
    other = compressed and Listener(*compressed, listener.selected.__contains__)
    observation = listener.observe(batches, compressed=other)
    if not observation:
        raise nothing_followed(observation.not_followed)
    return observation


def survey(
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    batch: PyTree,
    *,
    select: Callable[[str], bool] | None = None,
) -> Survey:
    """Find where each weight of `function(parameters, batch)` multiplies, without computing.

    The function is traced as by `observe`, and what is said of its arrays follows from their shapes
    alone: leaves of the parameters and of the batch may be `jax.ShapeDtypeStruct`. A branch of
    `cond` counts as if it were taken.

    Raises `ValueError` for a function that cannot be traced on the batch, and parameters of which
    none enters a product.
    """
    return Listener(function, parameters, select).survey(batch)


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
    seen: AbstractCalibration, rows: Array, compressed: Array | None, name: str, users: Users
) -> AbstractCalibration:
    try:
        return seen.update(rows, compressed) if len(rows) else seen
    except ValueError as error:
        paths = ", ".join(path for path, _ in users)
        raise ValueError(f"In `{name}`, what {paths} multiplies: {error}") from error


class Listener:
    """A function compiled, once for all passes over the data, to return what its weights meet."""

    def __init__(
        self,
        function: Callable[[Any, Any], Any],
        parameters: PyTree,
        select: Callable[[str], bool] | None,
        tied: Mapping[str, Collection[str]] = types.MappingProxyType({}),
        kind: type[AbstractCalibration] = Calibration,
    ) -> None:
        """Where leaves are `tied`, the uses of the others count as those of the first. Statistics
        are calibrations of this `kind`.
        """
        self.kind = kind
        leaves, tree = jax.tree_util.tree_flatten_with_path(parameters)
        named = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
        self.arrays = {path: leaf for path, leaf in named if is_array(leaf)}
        known_as = {other: path for path, others in tied.items() for other in others}
        selected = (path for path in self.arrays if select is None or select(path))
        self.selected = [path for path in selected if path not in known_as]
        self.ledger: dict[str, list[str]] = {
            path: [reason] for path, leaf in self.arrays.items() if (reason := _no_weight(leaf))
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
            known = ((known_as.get(path, path), leaf) for path, leaf in given.items())
            inputs = [
                Watched(Trail.start(path, leaf.shape), leaf) if path in watched else leaf
                for path, leaf in known
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

    def survey(self, batch: PyTree) -> Survey:
        """Where the weights multiply, from shapes alone."""
        rows: collections.Counter[str] = collections.Counter()
        groups: dict[str, int] = {}
        complex_inputs: set[str] = set()
        taps = jax.eval_shape(self.taps, list(self.arrays.values()), batch)
        for number, tap in enumerate(taps):
            cut = functools.partial(rows_met, geometry=tap.geometry)
            slices, _ = jax.eval_shape(cut, tap.values, tap.taken)
            for path in tap.users:
                rows[path] += len(slices[0])
                groups.setdefault(path, number)
            if jnp.issubdtype(tap.values.dtype, jnp.complexfloating):
                complex_inputs.update(tap.users)
        sites = {
            path: Site(self.views[path], rows[path], groups[path], path in complex_inputs)
            for path in groups
        }
        reasons = {path: tuple(self.ledger.get(path, ())) for path in self.selected}
        not_followed = {
            path: why or ("it is not used",) for path, why in reasons.items() if path not in sites
        }
        if not sites:
            raise nothing_followed(not_followed)
        return Survey(sites, {path: reasons[path] for path in sites if reasons[path]}, not_followed)

    def observe(
        self,
        batches: Iterable[PyTree],
        *,
        only: Collection[str] | None = None,
        compressed: "Listener | None" = None,
        rows: bool = False,
    ) -> Observation:
        """What the weights meet in all batches, or `only` some of the selected ones; with a sample
        of the `rows` themselves.
        """
        paths = [path for path in self.selected if only is None or path in only]
        heard: dict[Users, list[AbstractCalibration]] = {}
        number = -1
        for number, batch in enumerate(batches):
            name = f"batches[{number}]"
            try:
                self._add(heard, batch, name, paths, compressed, rows)
            except ValueError:
                check_no_nan(name, batch)  # which says it better
                raise
        if number < 0:
            raise ValueError("`batches` is empty: give at least one batch.")
        return self._observation(heard, paths)

    def _add(
        self,
        heard: dict[Users, list[AbstractCalibration]],
        batch: PyTree,
        name: str,
        paths: list[str],
        compressed: "Listener | None",
        keep: bool,
    ) -> None:
        """What the weights meet in one more batch."""
        beside = dict(_by_use(compressed.hear(batch, name, paths))) if compressed else {}
        for users, slices in self.hear(batch, name, paths):
            if users not in heard:
                inputs = slices[0].shape[-1]
                empty = self.kind.empty(inputs, compressed=bool(compressed), rows=keep)
                heard[users] = [empty] * len(slices)
            pairs: list[Any] = [None] * len(slices)
            if compressed:
                pairs = _beside(beside, users)
            heard[users] = [
                _updated(seen, rows, pair, name, users)
                for seen, rows, pair in zip(heard[users], slices, pairs, strict=True)
            ]

    def hear(
        self, batch: PyTree, name: str, only: Collection[str]
    ) -> Iterator[tuple[Users, list[Array]]]:
        """The rows that each set of weights, `only` of these, met in a batch, slice by slice."""
        uses: collections.Counter[str] = collections.Counter()
        for tap in self.taps(list(self.arrays.values()), batch):
            users = []
            for path in tap.users:
                if path in only:
                    users.append((path, uses[path]))
                uses[path] += 1
            if not users:
                continue
            slices, counts = rows_met(tap.values, tap.taken, tap.geometry)
            counted = np.asarray(counts)
            if not counted.all():
                slices = [rows[mask] for rows, mask in zip(slices, counted, strict=True)]
            yield tuple(users), slices

    def _observation(
        self, heard: dict[Users, list[AbstractCalibration]], paths: list[str]
    ) -> Observation:
        by_path: dict[str, list[list[AbstractCalibration]]] = {}
        for (path, _), slices in _by_use(heard.items()):
            by_path.setdefault(path, []).append(slices)
        calibrations, remarks, not_followed = {}, {}, {}
        for path in paths:
            uses = by_path.get(path, [])
            reasons = tuple(self.ledger.get(path, ()))
            merged = uses[0] if len(uses) == 1 else list(map(_merged, zip(*uses, strict=True)))
            if not uses:
                not_followed[path] = reasons or ("it is not used",)
            elif not all(int(calibration.count) for calibration in merged):
                why = "no batch took the branch that multiplies by it, or had rows for it"
                not_followed[path] = (*reasons, why)
            else:
                stacked = bool(self.views[path].stack)
                calibrations[path] = tuple(merged) if stacked else merged[0]
                if len(uses) > 1:
                    reasons = (f"used {len(uses)} times, all of them counted", *reasons)
                if reasons:
                    remarks[path] = reasons
        views = {path: self.views[path] for path in calibrations}
        return Observation(calibrations, views, remarks, not_followed)


def check_no_nan(name: str, batch: PyTree) -> None:
    """A batch without NaN, or a `ValueError`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        if jnp.issubdtype(array.dtype, jnp.inexact) and np.any(np.isnan(np.asarray(array))):
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise ValueError(f"`{where}` has entries that are NaN. Remove or repair them.")


def _no_weight(leaf: Any) -> str:
    """Why this array can be no weight; empty where it can."""
    described = f"it is {leaf.dtype}{list(leaf.shape)}, "
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return described + "and complex weights are not followed"
    if leaf.ndim == 0 or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return described + "not floating point with an axis"
    return described + "without any entries" if leaf.size == 0 else ""


def nothing_followed(not_followed: Mapping[str, tuple[str, ...]]) -> ValueError:
    """The error where there is nothing to observe or to compress."""
    return ValueError(
        "No leaf of `parameters` was followed into a matrix product or a convolution: "
        + "; ".join(f"{path}: {', '.join(why)}" for path, why in not_followed.items())
    )


def _merged(calibrations: Iterable[AbstractCalibration]) -> AbstractCalibration:
    return functools.reduce(AbstractCalibration.merge, calibrations)
