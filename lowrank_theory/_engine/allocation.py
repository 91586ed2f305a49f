r"""The sizes of many layers under one budget.

Layer $i$ loses $\ell_i(k)$ and costs $c_i(k)$ with its option k; left dense, it loses nothing and
costs $d_i$. Options may be ranks, numbers of bits, or both. Of each layer one is taken,

$$\min\ \sum_i\ell_i \quad\text{subject to}\quad \sum_ic_i \le B,$$

a multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004, chapter 11). Going step by
step, by gain or by gain per cost, can miss the best: where one step costs 3 and gains 10, and two
others cost 2 and gain 6 each, a budget of 4 is for the two.

**Lower bound.** For each price $\lambda\ge0$ the minimum is at least $\sum_i\min_k(\ell_i +
\lambda c_i) - \lambda B$. The best price is found by replacing the options of each layer by their
lower convex hull: all steps of all hulls are taken in the order of their gain per cost until the
budget is used up, the last of them in part. What this relaxation loses is the bound (Sinha and
Zoltners 1979).

Here allocations are built up layer by layer. With each choice for the first layers goes the bound
on what it comes to. A choice that costs no less and loses no less than another is given up, and so
are all but the `FOLLOWED` of lowest bound. The result is proved to be the best unless one of these
had a bound below it, and then that bound is stated.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer

from lowrank_theory._numerics import check_count, check_positive, settle

FOLLOWED = 1_000


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """What a layer may become: strictly increasing `costs`, the `losses` at each, and what it costs
    `dense`, as it is, without any loss.

    Raises `ValueError` for losses that are negative or not finite, costs that are not positive
    integers in increasing order, and arrays of different lengths.
    """

    costs: np.ndarray
    losses: Float[np.ndarray, " options"]
    dense: int

    def __post_init__(self) -> None:
        losses = np.asarray(self.losses, np.float64)
        if losses.ndim != 1 or not np.all(np.isfinite(losses) & (losses >= 0)):
            raise ValueError(
                f"`losses` must be finite non-negative numbers, one for each option; got "
                f"{self.losses!r}."
            )
        costs = np.asarray(self.costs)
        whole = np.issubdtype(costs.dtype, np.integer) or costs.size == 0
        if costs.shape != losses.shape or not whole or np.any(np.diff(costs, prepend=0) <= 0):
            raise ValueError(
                "`costs` must be positive integers in increasing order, one for each option; got "
                f"{self.costs!r} for {losses.size} losses."
            )
        object.__setattr__(self, "losses", losses)
        object.__setattr__(self, "costs", costs.astype(np.int64))
        settle(self, "dense", check_count, 1)

    @staticmethod
    def of_ranks(
        losses: Float[np.ndarray, " ranks"], per_rank: int, fixed: int, dense: int
    ) -> "Options":
        """Of the losses at the ranks 0, 1, ..., where a rank costs `rank * per_rank + fixed`.
        Option k is rank k + 1: rank 0, through which nothing passes, is none. Raises `ValueError`
        for losses of which there are none, or which increase.
        """
        per_rank = check_count("per_rank", per_rank, 1)
        fixed = check_count("fixed", fixed, 0)
        losses = np.asarray(losses, np.float64)
        if losses.ndim != 1 or not losses.size or not np.all(np.isfinite(losses) & (losses >= 0)):
            raise ValueError(
                "`losses` must be finite non-negative numbers, one for each rank from 0; got "
                f"{losses!r}."
            )
        if np.any(np.diff(losses) > 0):
            raise ValueError("`losses` must not increase with the rank.")
        return Options(np.arange(1, len(losses)) * per_rank + fixed, losses[1:], dense)

    @staticmethod
    def of(
        costs: Sequence[int], losses: Sequence[float] | np.ndarray, dense: int
    ) -> tuple["Options", Integer[np.ndarray, " options"]]:
        """In any order, as of several kinds one after the other, and the place of each option among
        them. Of equal costs the one that loses least is kept.
        """
        found = np.lexsort((np.asarray(losses), np.asarray(costs)))
        prices = np.asarray(costs, np.int64)[found]
        kept = found[np.diff(prices, prepend=0) > 0]
        values = np.asarray(losses, np.float64)[kept]
        return Options(np.asarray(costs, np.int64)[kept], values, dense), kept

    def cost(self, option: int | None) -> int:
        """What this option costs, or the dense layer."""
        return self.dense if option is None else int(self.costs[option])

    @property
    def cheaper(self) -> int:
        """How many options cost less than the dense layer."""
        return int(np.searchsorted(self.costs, self.dense))

    def up_to(self, last: int) -> "Options":
        """With this option in the place of the dense layer: those before it, by what they lose
        more.
        """
        more = np.maximum(self.losses[:last] - self.losses[last], 0)
        return Options(self.costs[:last], more, int(self.costs[last]))

    def points(self) -> tuple[list[int | None], Float[np.ndarray, "options 2"]]:
        """The options, from cheap to dear, and the cost and the loss of each. One that costs no
        less and loses no less than another is left out.
        """
        chosen: list[int | None] = [*range(self.cheaper), None]
        losses = np.append(self.losses[: self.cheaper], 0.0)
        best = np.minimum.accumulate(losses)
        kept = np.flatnonzero(np.concatenate([[True], losses[1:] < best[:-1]]))
        points = [(self.cost(chosen[k]), losses[k]) for k in kept]
        return [chosen[k] for k in kept], np.array(points, np.float64)


@dataclasses.dataclass(frozen=True)
class Allocation:
    """The option of each layer (`None`: left dense), what they cost and lose together, and a bound:
    no allocation within the budget loses less than `lower_bound`.
    """

    chosen: tuple[int | None, ...]
    cost: int
    loss: float
    lower_bound: float


def allocate(layers: Sequence[Options], budget: float) -> Allocation:
    """The options that lose least in sum within the budget.

    Raises `ValueError` where the budget cannot be met, or where nothing has to be compressed for
    it.
    """
    budget = check_positive("budget", budget)
    options = [layer.points() for layer in layers]
    cheapest = sum(int(points[0, 0]) for _, points in options)
    dense = sum(layer.dense for layer in layers)
    if budget >= dense:
        raise ValueError(
            f"`budget` is {budget:,.0f}, and the dense layers cost only {dense:,}: keep them."
        )
    if budget < cheapest:
        raise ValueError(
            f"`budget` is {budget:,.0f} of the {dense:,} that the dense layers cost. It cannot be "
            f"met: with the cheapest option, wherever one pays, they cost {cheapest:,}, a share of "
            f"{math.ceil(1e4 * cheapest / dense) / 1e4:g}."
        )
    relaxed = _relaxed([points for _, points in options])
    partial, steps, given_up = np.zeros((1, 2)), [], math.inf
    for (_, points), rest in zip(options, relaxed[1:], strict=True):
        candidates = (partial[:, None] + points).reshape(-1, 2)
        left = budget - candidates[:, 0]
        bounds = candidates[:, 1] + np.interp(left, *rest.T)
        kept = np.flatnonzero(left >= rest[0, 0])
        kept = kept[_undominated(candidates[kept])]
        if len(kept) > FOLLOWED:
            kept = kept[np.argsort(bounds[kept], kind="stable")]
            given_up = min(given_up, float(bounds[kept[FOLLOWED]]))
            kept = kept[:FOLLOWED]
        partial = candidates[kept]
        steps.append(np.divmod(kept, len(points)))
    last, chosen = int(np.argmin(partial[:, 1])), []
    loss = float(partial[last, 1])
    for (names, _), (before, taken) in zip(options[::-1], steps[::-1], strict=True):
        chosen.append(names[taken[last]])
        last = before[last]
    chosen.reverse()
    cost = sum(layer.cost(option) for layer, option in zip(layers, chosen, strict=True))
    return Allocation(tuple(chosen), cost, loss, min(loss, given_up))


def allocate_up_to(
    layers: Sequence[Options], last: Sequence[int | None], budget: float
) -> Allocation:
    """The best of the options up to the `last` of each layer, which then cannot stay dense; of
    `None` it can, and have any. A budget that is enough for all the last ones is met by these.

    Raises `ValueError` where the budget cannot be met.
    """
    pairs = list(zip(layers, last, strict=True))
    limited = [layer if k is None else layer.up_to(k) for layer, k in pairs]
    lost = sum(float(layer.losses[k]) for layer, k in pairs if k is not None)
    most = sum(layer.dense for layer in limited)
    if budget >= most:
        return Allocation(tuple(last), most, lost, lost)
    found = allocate(limited, budget)
    chosen = tuple(k if own is None else own for own, k in zip(found.chosen, last, strict=True))
    return Allocation(chosen, found.cost, lost + found.loss, lost + found.lower_bound)


def _undominated(points: Float[np.ndarray, "points 2"]) -> np.ndarray:
    """Which points lose less than all that cost no more."""
    order = np.lexsort(points.T[::-1])
    losses = points[order, 1]
    best = np.minimum.accumulate(losses)
    return order[np.concatenate([[True], losses[1:] < best[:-1]])]


def _relaxed(options: list[np.ndarray]) -> list[Float[np.ndarray, "knots 2"]]:
    """What the layers from the first on, the second on, ... lose least at each cost, by the convex
    hulls of their options: the corners of a piecewise linear function. The last is of no layer.
    """
    start, steps = np.zeros(2), np.zeros((0, 2))
    found = [start[None]]
    for points in reversed(options):
        hull = _hull(points)
        steps = np.concatenate([steps, np.diff(hull, axis=0)])
        steps = steps[np.argsort(steps[:, 1] / steps[:, 0], kind="stable")]
        start = start + hull[0]
        found.append(start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)]))
    return found[::-1]


def _hull(points: Float[np.ndarray, "options 2"]) -> Float[np.ndarray, "corners 2"]:
    """The lower convex hull of points from left to right."""
    hull: list[np.ndarray] = []
    for point in points:
        while len(hull) > 1 and _rises(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return np.array(hull)


def _rises(first: np.ndarray, middle: np.ndarray, last: np.ndarray) -> bool:
    """Is the middle point on or above the line of the other two?"""
    (run, fall), (next_run, next_fall) = middle - first, last - middle
    return bool(fall * next_run >= next_fall * run)
