"""The two phases of a compression: sizes are chosen, then layers fitted one after the other."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

from lowrank_theory._engine.choices import Choices, Origin, allocated, check_saves
from lowrank_theory._engine.fits import (
    AbstractFit,
    FittedLayer,
    fitted,
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
    - `observe(paths, approximations)`: what these see in one pass over the data, in the original
      network and, if there are any, beside it in the one in which the approximations stand;
    - `remarks`: why a layer stays dense, to which they add;
    - `step(path)` is called after each layer.
    """

    target: AbstractTarget
    methods: tuple[AbstractLadder, ...]
    weights: Mapping[str, Weight]
    observe: Callable[[Collection[str], Approximations], Observation]
    remarks: dict[str, str]
    step: Callable[[str], None]

    def chosen(
        self, blocks: Sequence[Sequence[str]], *, make: bool
    ) -> tuple[dict[str, Origin], dict[str, FittedLayer], dict[str, float]]:
        """The size of each layer that does not stay dense; if asked for, the layers of these sizes;
        and what is known of the best ones under a budget.
        """
        taken: dict[str, Origin] = {}
        choices: dict[str, Choices] = {}
        limits = {path: self._limit(path) for block in blocks for path in block}
        for block in blocks:
            for path, matrices, fits in self._fits(block, limits):
                found = self._choices(path, fits)
                if isinstance(self.target, AbstractBudget):
                    if why := found.nothing_saves():
                        self.remarks[path] = why
                elif isinstance(size := found.chosen(self.target, matrices), str):
                    self.remarks[path] = size
                else:
                    taken[path] = size
                choices[path] = found if make else found.without_fits()
                self.step(path)
        known: dict[str, float] = {}
        if isinstance(self.target, AbstractBudget):
            every = {path: choices.get(path) or self._none(path) for path in self.weights}
            taken, known = allocated(every, self.target.share, self.remarks)
        made = {}
        if make:
            made = {path: choices[path].fits[m].at(size) for path, (m, size) in taken.items()}
        return taken, made, known

    def in_sequence(
        self, blocks: Sequence[Sequence[str]], taken: Mapping[str, Origin]
    ) -> dict[str, FittedLayer]:
        """The layers of these sizes, each fitted to what it sees in the network compressed so far.
        For a `LayerError` the sizes are found anew. Raises `ValueError` where a budget is lost.
        """
        made: dict[str, FittedLayer] = {}
        for block in blocks:
            asked = [path for path in block if path in taken]
            for path, found in self._after(made, asked, taken):
                if isinstance(found, FittedLayer):
                    made[path] = found
                    continue
                self.remarks[path] = f"in sequence, {found}"
                if isinstance(self.target, AbstractBudget):
                    raise ValueError(
                        f"The budget cannot be kept: of {path}, in sequence, {found}. Leave it out "
                        "by `select`, or `sequential` out."
                    )
            for path in block:
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
                found.append((path, size if isinstance(size, str) else fits[size[0]].at(size[1])))
            return found
        limits = {path: taken[path][1] + 1 for path in asked}
        only = {path: taken[path][0] for path in asked}
        for path, _, (fit,) in self._fits(asked, limits, made, only):
            _, size = taken[path]
            found.append((path, fit.at(size) if fit.has(size) else fit.why_not(size)))
        return found

    def _fits(
        self,
        paths: Sequence[str],
        limits: Mapping[str, int],
        made: Mapping[str, FittedLayer] = _DENSE,
        only: Mapping[str, int] | None = None,
    ) -> Iterator[tuple[str, list[Observed], list[AbstractFit]]]:
        """Some layers at all sizes, ranks up to a limit, after one pass over the data: by each
        method, or `only` that of this number. With others made, they are fitted to what they see
        behind these.
        """
        seen = self.observe(paths, self.approximations(made)) if self._looks and paths else None
        for path in paths:
            if seen is not None and path not in seen:
                self.remarks[path] = "; ".join(seen.not_followed[path])
                continue
            matrices = self.weights[path].observed(None if seen is None else seen.slices(path))
            methods = self.methods if only is None else self.methods[only[path] :][:1]
            fits = [fitted(self.weights[path], matrices, m, limits[path]) for m in methods]
            yield path, matrices, fits

    @property
    def _looks(self) -> bool:
        """Whether a method looks at the data: then errors are those of the outputs, for all."""
        return bool(needs_of(self.methods))

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
        storages = (storage_of_rank(view, rank, weight.dtype, self._looks) for rank in ranks)
        return sum(self.target.cost(each, rows) < most for each in storages)
