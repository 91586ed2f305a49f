"""What a layer may become: the sizes of all methods, at what cost and loss, and which is taken."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lowrank_theory._engine.allocation import Options, allocate
from lowrank_theory._engine.fits import AbstractFit, ListedFit, NestedFit
from lowrank_theory._engine.targets import AbstractBudget, AbstractTarget, LayerError, RankRule
from lowrank_theory.approximations import Storage
from lowrank_theory.problems import Observed

Origin = tuple[int, int]  # the number of a method, and of one of its sizes


@dataclasses.dataclass(frozen=True)
class Choices:
    """The `options` that a layer has, the most that each may lose, and where each is from."""

    options: Options
    upper_losses: Float[np.ndarray, " options"]
    origins: tuple[Origin, ...]
    fits: Sequence[AbstractFit]

    @staticmethod
    def of(
        fits: Sequence[AbstractFit], price: Callable[[Storage], int], dense: Storage
    ) -> "Choices":
        """Of all sizes of all fits whose numbers are finite."""
        found: list[Origin] = []
        costs: list[int] = []
        losses: list[tuple[float, float]] = []
        for number, fit in enumerate(fits):
            pairs = zip(fit.losses, fit.upper_losses, strict=True)
            for size, (storage, pair) in enumerate(zip(fit.storages, pairs, strict=True)):
                if storage is not None:
                    found.append((number, size))
                    costs.append(price(storage))
                    losses.append(pair)
        both = np.array(losses, np.float64).reshape(-1, 2)
        options, kept = Options.of(costs, both[:, 0], price(dense))
        return Choices(options, both[kept, 1], tuple(found[k] for k in kept), fits)

    @staticmethod
    def none(cost: int) -> "Choices":
        """Of a layer that stays dense."""
        return Choices(Options(np.zeros(0, int), np.zeros(0), cost), np.zeros(0), (), ())

    def without_fits(self) -> "Choices":
        """Without the numbers of the approximations."""
        return dataclasses.replace(self, fits=())

    def chosen(self, target: AbstractTarget, matrices: Sequence[Observed]) -> Origin | str:
        """The size that a target for each layer by itself asks for, or why there is none."""
        if isinstance(target, LayerError):
            accurate = self.upper_losses[: self.options.cheaper] <= target.relative**2
            if accurate.any():
                return self.origins[int(np.argmax(accurate))]
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


def allocated(
    choices: Mapping[str, Choices], share: float, remarks: dict[str, str]
) -> tuple[dict[str, Origin], dict[str, float]]:
    """The sizes of the layers that do not stay dense, of those that a budget allows the ones that
    lose least, and what is known of the best ones. It adds to `remarks` why a layer stays dense.
    """
    budget = share * sum(each.options.dense for each in choices.values())
    try:
        found = allocate([each.options for each in choices.values()], budget)
    except ValueError as error:
        stay = "".join(f" {path} stays as it is: {why}." for path, why in remarks.items())
        raise ValueError(f"{error}{stay}") from None
    chosen = zip(choices, found.chosen, strict=True)
    taken = {path: choices[path].origins[k] for path, k in chosen if k is not None}
    for path in choices.keys() - taken:
        remarks.setdefault(path, "the budget is better spent on it as it is")
    return taken, {"planned": found.loss, "lower_bound": found.lower_bound}
