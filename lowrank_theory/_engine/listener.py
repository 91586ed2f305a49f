"""A network compiled to return what its weights meet."""

import collections
import functools
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from lowrank_theory._engine.encounters import Encounter, Watched, rows_met
from lowrank_theory._engine.follow import Scope, is_array, plain, run, trace
from lowrank_theory._engine.observation import Observation, Site, Survey
from lowrank_theory._engine.views import MatrixView, Trail
from lowrank_theory.calibration import AbstractCalibration, Calibration

Users = tuple[tuple[str, int], ...]  # the paths of some weights, and which use of each it is


def _by_use(met: Iterable[tuple[Users, Any]]) -> Iterator[tuple[tuple[str, int], Any]]:
    return ((use, slices) for users, slices in met for use in users)


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

        def encounters(arrays: list[Any], batch: PyTree) -> list[Encounter]:
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
            return list(scope.encounters.values())

        self.encounters = jax.jit(encounters)

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
        encounters = jax.eval_shape(self.encounters, list(self.arrays.values()), batch)
        for number, encounter in enumerate(encounters):
            cut = functools.partial(rows_met, geometry=encounter.geometry)
            slices, _ = jax.eval_shape(cut, encounter.values, encounter.taken)
            for path in encounter.users:
                rows[path] += len(slices[0])
                groups.setdefault(path, number)
            if jnp.issubdtype(encounter.values.dtype, jnp.complexfloating):
                complex_inputs.update(encounter.users)
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
        met: dict[Users, list[AbstractCalibration]] = {}
        number = -1
        for number, batch in enumerate(batches):
            name = f"batches[{number}]"
            try:
                self._add(met, batch, name, paths, compressed, rows)
            except ValueError:
                check_no_nan(name, batch)  # which says it better
                raise
        if number < 0:
            raise ValueError("`batches` is empty: give at least one batch.")
        return self._observation(met, paths)

    def _add(
        self,
        met: dict[Users, list[AbstractCalibration]],
        batch: PyTree,
        name: str,
        paths: list[str],
        compressed: "Listener | None",
        keep: bool,
    ) -> None:
        """What the weights meet in one more batch."""
        beside = dict(_by_use(compressed.rows_met_in(batch, name, paths))) if compressed else {}
        for users, slices in self.rows_met_in(batch, name, paths):
            if users not in met:
                inputs = slices[0].shape[-1]
                empty = self.kind.empty(inputs, compressed=bool(compressed), rows=keep)
                met[users] = [empty] * len(slices)
            pairs: list[Any] = [None] * len(slices)
            if compressed:
                pairs = _beside(beside, users)
            met[users] = [
                _updated(seen, rows, pair, name, users)
                for seen, rows, pair in zip(met[users], slices, pairs, strict=True)
            ]

    def rows_met_in(
        self, batch: PyTree, name: str, only: Collection[str]
    ) -> Iterator[tuple[Users, list[Array]]]:
        """The rows that each set of weights, `only` of these, met in a batch, slice by slice."""
        uses: collections.Counter[str] = collections.Counter()
        for encounter in self.encounters(list(self.arrays.values()), batch):
            users = []
            for path in encounter.users:
                if path in only:
                    users.append((path, uses[path]))
                uses[path] += 1
            if not users:
                continue
            slices, counts = rows_met(encounter.values, encounter.taken, encounter.geometry)
            counted = np.asarray(counts)
            if not counted.all():
                slices = [rows[mask] for rows, mask in zip(slices, counted, strict=True)]
            yield tuple(users), slices

    def _observation(
        self, met: dict[Users, list[AbstractCalibration]], paths: list[str]
    ) -> Observation:
        by_path: dict[str, list[list[AbstractCalibration]]] = {}
        for (path, _), slices in _by_use(met.items()):
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
