"""A network compiled to return what multiplies its weights."""

import collections
import functools
import itertools
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from lowrank_theory._engine.drawn import DrawnBatch, NormalisedShift, check_drawn
from lowrank_theory._engine.follow import Scope, is_array, plain, run, trace
from lowrank_theory._engine.layer_inputs import LayerInput, RecordedWeight, input_rows
from lowrank_theory._engine.observation import Observation, Site, Survey
from lowrank_theory._engine.views import Layout, MatrixView
from lowrank_theory._engine.weights import Tied, replaceable
from lowrank_theory.calibration import AbstractCalibration, Calibration

Uses = tuple[tuple[str, int], ...]  # the paths of some weights, and which use of each it is
Network = tuple[Callable[[Any, Any], Any], PyTree]  # a function and its parameters


class Observer:
    """A function compiled, once for all passes over the data, to return what multiplies its
    weights.
    """

    def __init__(
        self,
        function: Callable[[Any, Any], Any],
        parameters: PyTree,
        select: Callable[[str], bool] | None,
        tied: Tied = types.MappingProxyType({}),
    ) -> None:
        """Where leaves are `tied`, the uses of the others count as those of the first."""
        self.select, self.tied = select or (lambda _: True), tied
        leaves, tree = jax.tree_util.tree_flatten_with_path(parameters)
        named = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
        self.arrays = {path: leaf for path, leaf in named if is_array(leaf)}
        known_as = {other: path for path, others in tied.items() for other in others}
        selected = filter(self.select, self.arrays)
        self.selected = [path for path in selected if path not in known_as]
        self.remarks: dict[str, list[str]] = {
            path: [reason] for path, leaf in self.arrays.items() if (reason := _no_weight(leaf))
        }
        recorded = [path for path in self.selected if path not in self.remarks]
        if not recorded:
            raise ValueError(
                "`parameters` has no floating-point array with an axis"
                + ("." if select is None else " whose path `select` accepts.")
                + f" Its leaves are: {', '.join(path for path, _ in named) or 'none'}."
            )
        self.views: dict[str, MatrixView] = {}
        self.shapes = ""

        def layer_inputs(arrays: list[Any], batch: PyTree) -> list[LayerInput]:
            given = dict(zip(self.arrays, arrays, strict=True))
            filled = jax.tree.unflatten(tree, [given.get(path, leaf) for path, leaf in named])
            drawn: dict[str, NormalisedShift] = {}
            if isinstance(batch, DrawnBatch):
                drawn, batch = batch.shifts(given), batch.inputs
            program = self._traced(function, filled, batch)
            known = ((known_as.get(path, path), leaf) for path, leaf in given.items())
            inputs = [
                RecordedWeight(Layout.start(path, leaf.shape), leaf) if path in recorded else leaf
                for path, leaf in known
            ]
            inputs = [drawn.get(p, leaf) for p, leaf in zip(self.arrays, inputs, strict=True)]
            scope = Scope(self.remarks, self.views)
            results = run(program, [*inputs, *jax.tree.leaves(batch)], scope)
            plain(results, "the function returns it", scope)
            check_drawn(drawn, self.remarks)
            return list(scope.layer_inputs.values())

        self.layer_inputs = jax.jit(layer_inputs)

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
        """Where the weights multiply, from shapes alone. Of tied leaves those are left out that
        cannot be replaced together.

        Raises `ValueError` where none is left.
        """
        rows: collections.Counter[str] = collections.Counter()
        groups: dict[str, int] = {}
        complex_inputs: set[str] = set()
        layer_inputs = jax.eval_shape(self.layer_inputs, list(self.arrays.values()), batch)
        for number, layer_input in enumerate(layer_inputs):
            cut = functools.partial(input_rows, geometry=layer_input.geometry)
            slices, _ = jax.eval_shape(cut, layer_input.values, layer_input.taken)
            for path in layer_input.weights:
                rows[path] += len(slices[0])
                groups.setdefault(path, number)
            if jnp.issubdtype(layer_input.values.dtype, jnp.complexfloating):
                complex_inputs.update(layer_input.weights)
        sites = {
            path: Site(self.views[path], rows[path], groups[path], path in complex_inputs)
            for path in groups
        }
        reasons = {path: tuple(self.remarks.get(path, ())) for path in self.selected}
        not_followed = {
            path: why or ("it is not used",) for path, why in reasons.items() if path not in sites
        }
        remarks = {path: reasons[path] for path in sites if reasons[path]}
        found = replaceable(Survey(sites, remarks, not_followed), self.tied, self.select)
        if not found:
            raise nothing_followed(found.not_followed)
        return found

    def observe(
        self,
        batches: Iterable[PyTree],
        *,
        only: Collection[str] | None = None,
        compressed: Network | None = None,
        kind: type[AbstractCalibration] = Calibration,
        rows: bool = False,
        part: slice = slice(None),
    ) -> Observation:
        """Calibrations of this `kind` of what multiplies the weights in all batches, or in a `part`
        of them, or `only` some of the selected ones; beside what multiplies them in a network
        `compressed` so far; with a sample of the `rows` themselves.
        """
        paths = [path for path in self.selected if only is None or path in only]
        other = compressed and Observer(*compressed, paths.__contains__, self.tied)
        seen: dict[Uses, list[AbstractCalibration]] = {}
        number = -1
        for number, batch in itertools.islice(enumerate(batches), part.start, part.stop):
            name = f"batches[{number}]"
            if other and isinstance(batch, DrawnBatch):
                raise ValueError(
                    "What a compressed network would see of drawn batches is not known: observe "
                    "without `compressed`, compress without `sequential`."
                )
            try:
                for uses, slices, beside in self._beside(other, batch, paths):
                    if uses not in seen:
                        inputs = slices[0].shape[-1]
                        empty = kind.empty(inputs, compressed=bool(compressed), rows=rows)
                        seen[uses] = [empty] * len(slices)
                    triples = zip(seen[uses], slices, beside, strict=True)
                    seen[uses] = [_updated(*each, name, uses) for each in triples]
            except ValueError:
                check_no_nan(name, batch)  # which says it better
                raise
        if number < 0:
            raise ValueError("`batches` is empty: give at least one batch.")
        return self._observation(seen, paths)

    def _beside(
        self, other: "Observer | None", batch: PyTree, paths: list[str]
    ) -> Iterator[tuple[Uses, list[Array], Sequence[Array | None]]]:
        """The input rows of a batch, slice by slice, and those of the same uses in the other."""
        there = dict(_by_use(other.input_rows_of(batch, paths))) if other else {}
        for uses, slices in self.input_rows_of(batch, paths):
            if other is None:
                yield uses, slices, [None] * len(slices)
                continue
            missing = [path for path, number in uses if (path, number) not in there]
            if missing:
                raise ValueError(
                    f"`compressed` does not multiply by {', '.join(missing)} as `function` does. "
                    "`select` the weights that are dense in both."
                )
            yield uses, slices, there[uses[0]]

    def input_rows_of(
        self, batch: PyTree, paths: Collection[str]
    ) -> Iterator[tuple[Uses, list[Array]]]:
        """The rows that multiply these weights in a batch, slice by slice; once for all weights
        that share them.
        """
        count: collections.Counter[str] = collections.Counter()
        for layer_input in self.layer_inputs(list(self.arrays.values()), batch):
            uses = []
            for path in layer_input.weights:
                if path in paths:
                    uses.append((path, count[path]))
                count[path] += 1
            if not uses:
                continue
            slices, counts = input_rows(layer_input.values, layer_input.taken, layer_input.geometry)
            counted = np.asarray(counts)
            if not counted.all():
                slices = [rows[mask] for rows, mask in zip(slices, counted, strict=True)]
            yield tuple(uses), slices

    def _observation(
        self, seen: dict[Uses, list[AbstractCalibration]], paths: list[str]
    ) -> Observation:
        by_path: dict[str, list[list[AbstractCalibration]]] = {}
        for (path, _), slices in _by_use(seen.items()):
            by_path.setdefault(path, []).append(slices)
        calibrations, remarks, not_followed = {}, {}, {}
        for path in paths:
            uses = by_path.get(path, [])
            reasons = tuple(self.remarks.get(path, ()))
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


def _by_use(rows: Iterable[tuple[Uses, Any]]) -> Iterator[tuple[tuple[str, int], Any]]:
    return ((use, slices) for uses, slices in rows for use in uses)


def _updated(
    seen: AbstractCalibration, rows: Array, beside: Array | None, name: str, uses: Uses
) -> AbstractCalibration:
    try:
        return seen.update(rows, beside) if len(rows) else seen
    except ValueError as error:
        paths = ", ".join(path for path, _ in uses)
        raise ValueError(f"In `{name}`, what {paths} multiplies: {error}") from error


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
