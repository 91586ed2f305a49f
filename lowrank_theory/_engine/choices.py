"""What a layer may become: the sizes of all methods, at what cost and loss, and which is taken."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lowrank_theory._engine.allocation import Options, allocate, allocate_up_to
from lowrank_theory._engine.fits import AbstractFit, ListedFit, NestedFit
from lowrank_theory._engine.targets import AbstractBudget, AbstractTarget, LayerError, RankRule
from lowrank_theory.approximations import Storage
from lowrank_theory.problems import Observed

Origin = tuple[int, int]  # the number of a method, and of one of its sizes


class Size(NamedTuple):
    """A size of a layer: of which method and number, what it takes, costs and loses, and what it
    surely loses at most.
    """

    origin: Origin
    storage: Storage
    cost: int
    loss: float
    upper_loss: float


@dataclasses.dataclass(frozen=True)
class Choices:
    """All `sizes` of a layer, what it costs `dense`, and the fits that they are of."""

    sizes: tuple[Size, ...]
    dense: int
    fits: Sequence[AbstractFit]

    @staticmethod
    def of(
        fits: Sequence[AbstractFit], price: Callable[[Storage], int], dense: Storage
    ) -> "Choices":
        """Of all sizes of all fits whose numbers are finite."""
        found = []
        for number, fit in enumerate(fits):
            losses = fit.losses, fit.upper_losses
            for size, (storage, *pair) in enumerate(zip(fit.storages, *losses, strict=True)):
                if storage is not None:
                    found.append(Size((number, size), storage, price(storage), *map(float, pair)))
        return Choices(tuple(found), price(dense), fits)

    @staticmethod
    def none(cost: int) -> "Choices":
        """Of a layer that stays dense."""
        return Choices((), cost, ())

    @functools.cached_property
    def _pruned(self) -> tuple[Options, list[Size]]:
        costs, losses = [each.cost for each in self.sizes], [each.loss for each in self.sizes]
        options, kept = Options.of(costs, losses, self.dense)
        return options, [self.sizes[k] for k in kept]

    @property
    def options(self) -> Options:
        """What it may become: of equal costs, what loses least."""
        return self._pruned[0]

    @property
    def origins(self) -> list[Origin]:
        """Where each option is from."""
        return [each.origin for each in self._pruned[1]]

    def of_kind(self, number: int) -> "Choices":
        """Of one method alone."""
        sizes = tuple(each for each in self.sizes if each.origin[0] == number)
        return dataclasses.replace(self, sizes=sizes)

    def size(self, origin: Origin) -> Size:
        """The one from there."""
        return next(each for each in self.sizes if each.origin == origin)

    def rival(self, origin: Origin) -> Size | None:
        """What loses least of all other methods, at no more than the cost of this size."""
        cost = self.size(origin).cost
        others = [e for e in self.sizes if e.origin[0] != origin[0] and e.cost <= cost]
        return min(others, key=lambda each: each.loss, default=None)

    def without_fits(self) -> "Choices":
        """Without the numbers of the approximations."""
        return dataclasses.replace(self, fits=())

    def chosen(self, target: AbstractTarget, matrices: Sequence[Observed]) -> Origin | str:
        """The size that a target for each layer by itself asks for, or why there is none."""
        if isinstance(target, LayerError):
            for each in self._pruned[1][: self.options.cheaper]:
                if each.upper_loss <= target.relative**2:
                    return each.origin
            return "; ".join(fit.why_inaccurate(target.relative) for fit in self.fits)
        assert isinstance(target, RankRule)
        size = target.rank(matrices) - 1
        return self.of_size((0, size)) or self.fits[0].why_not(size)

    def of_size(self, origin: Origin) -> Origin | None:
        """The same, where it can be had and saves something."""
        there = origin in self.origins[: self.options.cheaper]
        return origin if there else None

    def nothing_saves(self) -> str:
        """Why a budget leaves the layer dense, where all sizes do."""
        if self.options.cheaper:
            return ""
        nested = [fit for fit in self.fits if isinstance(fit, NestedFit)]
        if any(fit.limit and not fit.largest for fit in nested):
            return nested[0].why_not(0)
        if nested:
            return "no rank saves anything"
        lacking = [fit.why_not(0) for fit in self.fits if not fit.storages]
        return "; ".join(lacking) if len(lacking) == len(self.fits) else "no size saves anything"


@dataclasses.dataclass(frozen=True)
class Won:
    """How a layer got its size: its `loss`, and of all sizes of other kinds that cost no more the
    one that loses least, the `rival` kind and the `rival_loss`; `None` where there is none.
    """

    loss: float
    rival: str | None
    rival_loss: float | None

    @staticmethod
    def of(choices: Choices, origin: Origin, kinds: Sequence[str]) -> "Won":
        """The size of this origin against the others."""
        other = choices.rival(origin)
        loss = choices.size(origin).loss
        return Won(loss, other and kinds[other.origin[0]], other and other.loss)


def check_saves(target: AbstractTarget, fits: Sequence[AbstractFit], dense: Storage) -> None:
    """Refuse a budget that counts what a method never saves, though it saves bytes."""
    for fit in fits:
        storages = [each for each in fit.storages if each is not None]
        if not (isinstance(target, AbstractBudget) and isinstance(fit, ListedFit) and storages):
            continue
        cheapest = min(target.cost(each, 1) for each in storages)
        if cheapest >= target.cost(dense, 1) and min(s.bytes for s in storages) < dense.bytes:
            name, kind = type(fit.method).__name__, type(target).__name__
            raise ValueError(
                f"`{kind}` counts {target.counts}, of which `{name}` saves none: it saves bits. "
                "Give the budget as `Bytes` or `IdealBits`."
            )


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes that a budget allows and that lose least in sum: those `taken` by the layers that
    do not stay dense, what they `cost` and `lose`, and the `lower_bound` of `Allocation`.
    """

    taken: Mapping[str, Origin]
    cost: int
    loss: float
    lower_bound: float


def planned(choices: Mapping[str, Choices], share: float, *, every_size: bool = False) -> Plan:
    """The best sizes at a share of what the layers cost dense; for `every_size` none of them stays
    dense that some size makes cheaper. Raises `ValueError` as `allocate` does.
    """
    budget = share * sum(each.dense for each in choices.values())
    options = [each.options for each in choices.values()]
    least = sum(each.cost(0 if each.cheaper else None) for each in options)
    if every_size and budget >= least:
        last = [each.cheaper - 1 if each.cheaper else None for each in options]
        found = allocate_up_to(options, last, budget)
    else:
        found = allocate(options, budget)
    named = zip(choices, found.chosen, strict=True)
    taken = {path: choices[path].origins[k] for path, k in named if k is not None}
    return Plan(taken, found.cost, found.loss, found.lower_bound)


def stays(error: ValueError, remarks: Mapping[str, str]) -> ValueError:
    """The error of a budget that cannot be met, with the layers that stay dense."""
    stay = "".join(f" {path} stays as it is: {why}." for path, why in remarks.items())
    return ValueError(f"{error}{stay}")
