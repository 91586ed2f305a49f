"""The two phases of a compression: sizes are chosen, then layers fitted one after the other."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import PyTree

from lowrank_theory._engine.choices import Choices, Origin, allocated, check_saves
from lowrank_theory._engine.fits import AbstractFit, Fitter, Made, storage_of_rank, stored_dtype
from lowrank_theory._engine.replace import replace
from lowrank_theory._engine.targets import AbstractBudget, AbstractTarget, LayerError
from lowrank_theory.approximations import Storage


@dataclasses.dataclass(frozen=True)
class Phases:
    """What both need: the `target`, the network, what fits its layers, what each takes `dense`, and
    what is called after each layer. They add to the remarks of the fitter why a layer stays dense.
    """

    target: AbstractTarget
    function: Callable[[Any, Any], Any]
    parameters: PyTree
    fitter: Fitter
    dense: Mapping[str, Storage]
    step: Callable[[str], None]

    def chosen(
        self, blocks: Sequence[Sequence[str]], *, make: bool
    ) -> tuple[dict[str, Origin], dict[str, Made], dict[str, float]]:
        """The size of each layer that does not stay dense; if asked for, the layers of these sizes;
        and what is known of the best ones under a budget.
        """
        taken: dict[str, Origin] = {}
        choices: dict[str, Choices] = {}
        limits = {path: self._limit(path) for block in blocks for path in block}
        for block in blocks:
            for path, matrices, fits in self.fitter.fits(block, limits):
                found = self._choices(path, fits)
                if isinstance(self.target, AbstractBudget):
                    if why := found.nothing_saves():
                        self.fitter.remarks[path] = why
                elif isinstance(size := found.chosen(self.target, matrices), str):
                    self.fitter.remarks[path] = size
                else:
                    taken[path] = size
                choices[path] = found if make else found.forgotten()
                self.step(path)
        known: dict[str, float] = {}
        if isinstance(self.target, AbstractBudget):
            survey = self.fitter.survey
            costs = {path: self.target.cost(self.dense[path], survey[path].rows) for path in survey}
            every = {path: choices.get(path) or Choices.none(costs[path]) for path in survey}
            taken, known = allocated(every, self.target.share, self.fitter.remarks)
        made = {}
        if make:
            made = {path: choices[path].fits[m].at(size) for path, (m, size) in taken.items()}
        return taken, made, known

    def in_sequence(
        self, blocks: Sequence[Sequence[str]], taken: Mapping[str, Origin]
    ) -> dict[str, Made]:
        """The layers of these sizes, each fitted to what it sees in the network compressed so far.
        For a `LayerError` the sizes are found anew. Raises `ValueError` where a budget is lost.
        """
        made: dict[str, Made] = {}
        for block in blocks:
            asked = [path for path in block if path in taken]
            for path, found in self._after(made, asked, taken):
                if isinstance(found, Made):
                    made[path] = found
                    continue
                self.fitter.remarks[path] = f"in sequence, {found}"
                if isinstance(self.target, AbstractBudget):
                    raise ValueError(
                        f"The budget cannot be kept: of {path}, in sequence, {found}. Leave it out "
                        "by `select`, or `sequential` out."
                    )
            for path in block:
                self.step(path)
        return made

    def approximations(self, made: Mapping[str, Made]) -> dict[str, Any]:
        """What stands for each leaf."""
        return {
            leaf: each.approximation
            for path, each in made.items()
            for leaf in (path, *self.fitter.tied.get(path, ()))
        }

    def _after(
        self, made: Mapping[str, Made], asked: Sequence[str], taken: Mapping[str, Origin]
    ) -> list[tuple[str, Made | str]]:
        """These layers behind those that are made, or why one cannot be had."""
        so_far = None
        if made:
            so_far = replace(self.function, self.parameters, self.approximations(made))
        found: list[tuple[str, Made | str]] = []
        if isinstance(self.target, LayerError):
            limits = {path: self._limit(path) for path in asked}
            for path, matrices, fits in self.fitter.fits(asked, limits, so_far):
                size = self._choices(path, fits).chosen(self.target, matrices)
                found.append((path, size if isinstance(size, str) else fits[size[0]].at(size[1])))
            return found
        limits = {path: taken[path][1] + 1 for path in asked}
        only = {path: taken[path][0] for path in asked}
        for path, _, (fit,) in self.fitter.fits(asked, limits, so_far, only):
            _, size = taken[path]
            found.append((path, fit.at(size) if fit.has(size) else fit.lacks(size)))
        return found

    def _choices(self, path: str, fits: Sequence[AbstractFit]) -> Choices:
        check_saves(self.target, fits, self.dense[path])
        rows = self.fitter.survey[path].rows
        return Choices.of(fits, lambda each: self.target.cost(each, rows), self.dense[path])

    def _limit(self, path: str) -> int:
        """How many ranks cost less than the layer does."""
        site, dtype = self.fitter.survey[path], stored_dtype(self.fitter.leaves[path])
        most = self.target.cost(self.dense[path], site.rows)
        shifted, ranks = self.fitter.looks, range(1, min(site.view.matrix_shape[-2:]) + 1)
        costs = (storage_of_rank(site.view, rank, dtype, shifted) for rank in ranks)
        return sum(self.target.cost(each, site.rows) < most for each in costs)
