"""The two phases of a compression: sizes are chosen, then layers fitted one after the other."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

from lowrank_theory._engine.choices import Choices, Origin, Plan, check_saves, planned, stays
from lowrank_theory._engine.fits import (
    AbstractFit,
    FittedLayer,
    errors_are_of_outputs,
    fitted,
    kinds_of,
    needs_of,
    storage_of_rank,
)
from lowrank_theory._engine.observation import Observation
from lowrank_theory._engine.targets import AbstractBudget, AbstractTarget, LayerError
from lowrank_theory._engine.weights import Weight
from lowrank_theory.approximations import AbstractApproximation
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder

Approximations = Mapping[str, AbstractApproximation]
_DENSE: Mapping[str, FittedLayer] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Phases:
    """What both need.

    - the `target`, the `methods`, and the `weights` by path;
    - `observe(paths, approximations, part)`: what these see in one pass over a part of the batches,
      in the original network and, if there are any approximations, beside it in the one in which
      they stand;
    - `remarks`: why a layer stays dense, to which they add;
    - `step(path)` is called after each layer.
    """

    target: AbstractTarget
    methods: tuple[AbstractLadder, ...]
    weights: Mapping[str, Weight]
    observe: Callable[[Collection[str], Approximations, slice], Observation]
    remarks: dict[str, str]
    step: Callable[[str], None]

    def chosen(
        self, blocks: Sequence[Sequence[str]], *, make: bool, every_size: bool = False
    ) -> tuple[Mapping[str, Origin], dict[str, FittedLayer], dict[str, float]]:
        """The size of each layer that does not stay dense; if asked for, the layers of these sizes;
        and what is known of the best ones under a budget, by which for `every_size` no layer stays
        dense that some size makes cheaper.
        """
        taken: Mapping[str, Origin] = {}
        choices: dict[str, Choices] = {}
        known: dict[str, float] = {}
        if isinstance(self.target, AbstractBudget):
            choices = self.choices(blocks, keep=make)
            plan = self.planned(choices, self.target.share, every_size=every_size)
            taken, known = plan.taken, {"planned": plan.loss, "lower_bound": plan.lower_bound}
        else:
            taken = {}
            for path, matrices, found in self._each(blocks):
                size = found.chosen(self.target, matrices)
                if isinstance(size, str):
                    self.remarks[path] = size
                else:
                    taken[path] = size
                choices[path] = found if make else found.without_fits()
                self.step(path)
        made = {}
        if make:
            made = self.at({path: each.fits for path, each in choices.items()}, taken)
        return taken, made, known

    def at(
        self, fits: Mapping[str, Sequence[AbstractFit]], taken: Mapping[str, Origin]
    ) -> dict[str, FittedLayer]:
        """The layers of these sizes. Raises `ValueError` where a fit has not the size."""
        made = {}
        for path, (method, size) in taken.items():
            fit = fits[path][method]
            if not fit.has(size):
                raise ValueError(f"Of {path}, {fit.why_not(size)}. Leave it out by `select`.")
            made[path] = self._at(fit, method, size)
        return made

    def choices(
        self,
        blocks: Sequence[Sequence[str]],
        *,
        keep: bool,
        half: int | None = None,
        watch: Callable[[str, list[Observed]], None] | None = None,
    ) -> dict[str, Choices]:
        """What each weight may become, for a budget; with the layers of all sizes, if these are to
        be kept. With the number of batches in the first `half` the layers are fitted to these, and
        their losses are those on the others. `watch(path, matrices)` is shown what these saw.
        """
        choices: dict[str, Choices] = {}
        for path, matrices, found in self._each(blocks, half):
            if watch is not None:
                watch(path, matrices)
            if why := found.nothing_saves():
                self.remarks[path] = why
            choices[path] = found if keep else found.without_fits()
            self.step(path)
        return {path: choices.get(path) or self._none(path) for path in self.weights}

    def planned(
        self, choices: Mapping[str, Choices], share: float, *, every_size: bool = False
    ) -> Plan:
        """The sizes at this share of what the layers cost dense. It adds to the remarks why a layer
        stays dense.
        """
        try:
            plan = planned(choices, share, every_size=every_size)
        except ValueError as error:
            raise stays(error, self.remarks) from None
        self.leave_dense(plan)
        return plan

    def leave_dense(self, plan: Plan) -> None:
        """Remark what a plan leaves dense."""
        for path in self.weights.keys() - plan.taken.keys():
            self.remarks.setdefault(path, "the budget is better spent on it as it is")

    def made(
        self, blocks: Sequence[Sequence[str]], taken: Mapping[str, Origin], *, sequential: bool
    ) -> dict[str, FittedLayer]:
        """The layers of these sizes, fitted to all batches: in sequence, each to what it sees in
        the network compressed so far. For a `LayerError` the sizes are found anew. Raises
        `ValueError` where a budget is lost.
        """
        made: dict[str, FittedLayer] = {}
        how = "in sequence" if sequential else "fitted to all batches"
        for block in blocks:
            asked = [path for path in block if path in taken]
            for path, found in self._after(made if sequential else _DENSE, asked, taken):
                if isinstance(found, FittedLayer):
                    made[path] = found
                    continue
                self.remarks[path] = f"{how}, {found}"
                if isinstance(self.target, AbstractBudget):
                    raise ValueError(
                        f"The budget cannot be kept: of {path}, {how}, {found}. Leave it out by "
                        "`select`" + (", or `sequential` out." if sequential else ".")
                    )
            for path in block:
                self.step(path)
        return made

    def every_fit(self, blocks: Sequence[Sequence[str]]) -> dict[str, list[AbstractFit]]:
        """The layers at all sizes of all methods, fitted to all batches."""
        made = {}
        for block in blocks:
            limits = {path: self._limit(path) for path in block}
            for path, _, fits in self._fits(block, limits):
                made[path] = fits
                self.step(path)
        return made

    def approximations(self, made: Mapping[str, FittedLayer]) -> Approximations:
        """What stands for each leaf."""
        return {
            leaf: each.approximation
            for path, each in made.items()
            for leaf in (path, *self.weights[path].tied)
        }

    def _after(
        self, made: Mapping[str, FittedLayer], asked: Sequence[str], taken: Mapping[str, Origin]
    ) -> list[tuple[str, FittedLayer | str]]:
        """These layers behind those that are made, or why one cannot be had."""
        found: list[tuple[str, FittedLayer | str]] = []
        if isinstance(self.target, LayerError):
            limits = {path: self._limit(path) for path in asked}
            for path, matrices, fits in self._fits(asked, limits, made):
                size = self._choices(path, fits).chosen(self.target, matrices)
                found.append(
                    (path, size if isinstance(size, str) else self._at(fits[size[0]], *size))
                )
            return found
        limits = {path: taken[path][1] + 1 for path in asked}
        only = {path: taken[path][0] for path in asked}
        for path, _, (fit,) in self._fits(asked, limits, made, only):
            method, size = taken[path]
            there = fit.has(size)
            found.append((path, self._at(fit, method, size) if there else fit.why_not(size)))
        return found

    def _each(
        self, blocks: Sequence[Sequence[str]], half: int | None = None
    ) -> Iterator[tuple[str, list[Observed], Choices]]:
        """The layers, with what they saw where they are judged, and what they may become."""
        limits = {path: self._limit(path) for block in blocks for path in block}
        for block in blocks:
            for path, matrices, fits in self._fits(block, limits, half=half):
                yield path, matrices, self._choices(path, fits)

    def _fits(
        self,
        paths: Sequence[str],
        limits: Mapping[str, int],
        made: Mapping[str, FittedLayer] = _DENSE,
        only: Mapping[str, int] | None = None,
        half: int | None = None,
    ) -> Iterator[tuple[str, list[Observed], list[AbstractFit]]]:
        """Some layers at all sizes, ranks up to a limit, after one pass over the data: by each
        method, or `only` that of this number. With others made, they are fitted to what they see
        behind these; with a `half`, to the first batches, and judged on the others.
        """
        parts = [slice(None)] if half is None else [slice(half), slice(half, None)]
        behind, looks = self.approximations(made), errors_are_of_outputs(self.methods) and paths
        seen = [self.observe(paths, behind, part) for part in parts if looks]
        for path in paths:
            lacking = [each.not_followed[path] for each in seen if path not in each]
            if lacking:
                where = "" if half is None else "in one half of the batches, "
                self.remarks[path] = where + "; ".join(lacking[0])
                continue
            weight = self.weights[path]
            matrices = weight.observed(seen[0].slices(path) if seen else None)
            judged = None if half is None else weight.observed(seen[1].slices(path))
            methods = self.methods if only is None else self.methods[only[path] :][:1]
            fits = [fitted(weight, matrices, m, limits[path], judged) for m in methods]
            yield path, judged or matrices, fits

    def _at(self, fit: AbstractFit, method: int, size: int) -> FittedLayer:
        """The layer of this size, under the name of its kind."""
        return dataclasses.replace(fit.at(size), method=kinds_of(self.methods)[method])

    def _choices(self, path: str, fits: Sequence[AbstractFit]) -> Choices:
        weight = self.weights[path]
        check_saves(self.target, fits, weight.dense)
        rows = weight.site.rows
        return Choices.of(fits, lambda each: self.target.cost(each, rows), weight.dense)

    def _none(self, path: str) -> Choices:
        weight = self.weights[path]
        return Choices.none(self.target.cost(weight.dense, weight.site.rows))

    def _limit(self, path: str) -> int:
        """How many ranks cost less than the layer does."""
        weight = self.weights[path]
        rows, view = weight.site.rows, weight.view
        most = self.target.cost(weight.dense, rows)
        ranks = range(1, min(view.matrix_shape[-2:]) + 1)
        shifted = bool(needs_of(self.methods))
        storages = (storage_of_rank(view, rank, weight.dtype, shifted) for rank in ranks)
        return sum(self.target.cost(each, rows) < most for each in storages)
