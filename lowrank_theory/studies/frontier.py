r"""Error against bytes, for every kind of approximation and their mixture, beside the floor.

All budgets are spent from one calibration, as `compress` with several methods spends one: every
layer is fitted at every size to the first half of the batches and judged on the second; for each
budget the knapsack picks sizes among all kinds, and among those of each kind alone; the layers of
these sizes, fitted to all batches, are run on held-out data.

**The floor.** For weights of layer $\ell$ of i.i.d. entries $N(0, s_\ell^2)$, $K_\ell$ outputs and
eigenvalues $\lambda_{\ell i}$ of $X_\ell^\top X_\ell$, the relative squared errors of the outputs
are, in the sum over all layers, at least

$$\sum_{\ell,i}K_\ell\min(\theta, v_{\ell i}), \qquad v_{\ell i} =
\frac{\lambda_{\ell i}}{K_\ell\sum_j\lambda_{\ell j}}, \qquad B = \sum_{\ell,i}\frac{K_\ell}2
\log_2^+\frac{v_{\ell i}}\theta,$$

in the mean over weights, for every code of $B$ bits, whatever the bits of each layer: reverse
water-filling over all layers together (`rate_distortion.distortion_floor`). A code may be anything:
tables, shifts, mixtures. Errors and expected squared outputs are of the second half of the batches.
Trained weights are not Gaussian, and what is structured in them can be stored in fewer bits: a
network below the floor shows that.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from lowrank_theory._engine.choices import Choices, Plan
from lowrank_theory._engine.competition import MIXTURE, Squares, half_of, plans_of
from lowrank_theory._engine.compress import checked_methods, prepared
from lowrank_theory._engine.fits import FittedLayer, kinds_of
from lowrank_theory._engine.targets import AbstractBudget, Bytes
from lowrank_theory._engine.weights import Weight
from lowrank_theory._progress import Progress
from lowrank_theory._rows import AbstractRow, column
from lowrank_theory.approximations import Storage
from lowrank_theory.calibration import AbstractCalibration, Calibration
from lowrank_theory.certification import relative_losses
from lowrank_theory.models.catalogue import Metric
from lowrank_theory.problems import Observed
from lowrank_theory.rate_distortion import distortion_floor
from lowrank_theory.recovery import AbstractLadder
from lowrank_theory.studies._paired import paired
from lowrank_theory.studies._sizes import check_budgets, dense_metric
from lowrank_theory.studies.transfer_rows import DenseMetric, UnmetBudget

SHARES = (1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
CONFIDENCE = 0.99


class FrontierPoint(AbstractRow):
    """A network at one budget, of one kind or of all."""

    kind: str = column("kind", "of approximation, or the mixture of all")
    budget: float = column("budget", "the share of the dense cost that was allowed")
    bytes: int = column("bytes", "how many the layers take")
    dense_bytes: int = column("dense bytes", "how many they took")
    ideal_bits: int = column("ideal bits", "of the layers, each entry in as many as it needs")
    planned: float = column(
        "planned", "sum over layers of relative squared errors, on the second half of the batches"
    )
    lower_bound: float = column(
        "bound", "no plan within the budget, of whatever kinds, has a smaller sum"
    )
    choice_loss: float = column(
        "loss in choosing",
        "relative squared error of the network's outputs, fitted to the first half, on the second",
    )
    returned: bool = column("returned", "whether it is the network that `compress` returns")
    output_error: float = column(
        "output error", r"on all held-out batches together", unit=r"$\lVert Y\rVert_F$"
    )
    losses: tuple[float, ...] = column(
        "losses", r"of each held-out batch, $\min(1, \lVert Y-\hat Y\rVert_F^2/\lVert Y\rVert_F^2)$"
    )
    metric: float | None = column("metric", "what the network is for", default=None)
    layers: tuple[str, ...] = column("layers", "kind and size of each, or that it stays dense")

    @property
    def share(self) -> float:
        """Of the dense bytes."""
        return self.bytes / self.dense_bytes


class FloorPoint(AbstractRow):
    """What no code of so many bits goes below."""

    share: float = column("share", "of the bits of the dense layers")
    ideal_bits: float = column("ideal bits", "for all layers together")
    loss: float = column("loss", "the least sum over layers of relative squared errors")


class Comparison(AbstractRow):
    """Two networks at one budget, on the same held-out batches."""

    budget: float = column("budget", "the share of the dense cost that was allowed")
    first: str = column("first", "the mixture, or what `compress` returns")
    other: str = column("other", "a kind alone")
    difference: float = column(
        "difference", "of the mean losses, that of the first less that of the other"
    )
    low: float = column("from", "the lower end of its paired Student interval (99 %)")
    high: float = column("to", "its upper end")
    equal: bool = column("equal", "whether all layers of both have the same kind and size")


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Networks at several budgets; what their columns mean is said in the rows.

    - `kinds`: of approximation, beside the mixture;
    - `paths`: of the layers, in the order of execution;
    - `metric`: of the dense network, if one was given;
    - `points`: a row for each budget and kind that meets it, `unmet` for the others;
    - `floor`: what no code goes below, for Gaussian weights.
    """

    kinds: tuple[str, ...]
    paths: tuple[str, ...]
    metric: DenseMetric | None
    points: tuple[FrontierPoint, ...]
    floor: tuple[FloorPoint, ...]
    unmet: tuple[UnmetBudget, ...]

    def of(self, kind: str) -> tuple[FrontierPoint, ...]:
        """The points of a kind, or of the mixture, from the least budget on."""
        found = [point for point in self.points if point.kind == kind]
        return tuple(sorted(found, key=lambda point: point.budget))

    def compared(self, budget: float) -> tuple[Comparison, ...]:
        """The mixture, and what `compress` returns, against each kind alone, in pairs: the
        interval is that of Student for independent held-out batches. A positive difference is that
        by which the kind alone is better.
        """
        there = [point for point in self.points if point.budget == budget]
        found = []
        for name in (MIXTURE, "returned"):
            chosen = (p for p in there if (p.returned if name == "returned" else p.kind == name))
            first = next(chosen, None)
            others = [point for point in there if point.kind != MIXTURE]
            found += [_comparison(name, first, other) for other in others if first is not None]
        return tuple(found)


def frontier(
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    batches: Iterable[PyTree],
    *,
    method: Sequence[AbstractLadder],
    held_out: Sequence[PyTree],
    budgets: Sequence[float] = SHARES,
    currency: type[AbstractBudget] = Bytes,
    metric: Metric | None = None,
    select: Callable[[str], bool] | None = None,
    calibration: type[AbstractCalibration] = Calibration,
    progress: Progress | None = None,
) -> Frontier:
    """A network at several budgets by each of several methods, and by their mixture.

    ```python
    found = frontier(function, parameters, batches, method=[...], held_out=units)
    figure = lowrank_theory.plotting.frontier(found)
    ```

    `budgets` are shares of what the layers cost in the `currency`, `Bytes`, `IdealBits`,
    `Parameters` or `MultiplyAdds`; `held_out`, batches that no layer has seen, each drawn
    independently where intervals are asked for; `metric`, what the network is for. The other
    arguments are those of `compress`. What stands for a layer is multiplied out before the network
    is run, so that one program serves all: outputs are those of the compressed networks up to
    rounding. In memory are all layers at all sizes, twice.

    Raises `ValueError` for what `compress` refuses, budgets that are not shares between 0 and 1 or
    that nothing meets, a single method, and fewer than two held-out batches.
    """
    methods = checked_methods(method)
    shares = check_budgets(budgets)
    if len(methods) < 2:
        raise ValueError("`method` must hold two methods or more; `compress` takes one.")
    if len(held_out) < 2:
        raise ValueError(f"`held_out` must be two batches or more; got {len(held_out)}.")
    target: Any = currency
    if not (isinstance(currency, type) and issubclass(currency, AbstractBudget)):
        raise ValueError(f"`currency` must be a budget such as `Bytes`; got {currency!r}.")
    given = function, parameters, batches, target(shares[0]), methods
    ready = prepared(*given, select, calibration, progress, phases=2)
    kinds, half, phases = kinds_of(methods), half_of(batches), ready.phases
    floor = _Floor()
    choices = phases.choices(ready.blocks(halves=True), keep=True, half=half, watch=floor.add)
    fits = {path: each.fits for path, each in choices.items()}
    whole = phases.every_fit(ready.blocks(halves=False))
    candidates, points, unmet = ready.candidates, [], []
    for share in shares:
        plans, lacking = plans_of(choices, kinds, share)
        unmet += [UnmetBudget(budget=share, method=kind, why=lacking[kind]) for kind in lacking]
        halved = {n: candidates.network(phases.at(fits, p.taken)) for n, p in plans.items()}
        chosen = candidates.squares(halved, batches, slice(half, None))
        best = _least(plans, chosen)
        made = {name: phases.at(whole, plan.taken) for name, plan in plans.items()}
        networks = {name: candidates.network(each) for name, each in made.items()}
        squares = candidates.squares(networks, held_out)
        for name, plan in plans.items():
            points.append(
                FrontierPoint(
                    kind=name,
                    budget=share,
                    planned=plan.loss,
                    lower_bound=plans[MIXTURE].lower_bound,
                    choice_loss=chosen[name].relative,
                    returned=name == best,
                    output_error=math.sqrt(squares[name].relative),
                    losses=_losses(squares[name]),
                    metric=metric and float(metric.value(metric.scores(*networks[name]))),
                    layers=_sizes(ready.weights, made[name]),
                    **_storage(ready.weights, made[name]),
                )
            )
    if not points:
        raise ValueError(f"No budget can be met: {unmet[-1].why}")
    return Frontier(
        kinds=kinds,
        paths=tuple(ready.weights),
        metric=metric and dense_metric(metric, metric.scores(function, parameters)),
        points=tuple(points),
        floor=floor.points(ready.weights, choices),
        unmet=tuple(unmet),
    )


def _least(plans: dict[str, Plan], chosen: dict[str, Squares]) -> str | None:
    """What `compress` returns, if the mixture meets the budget."""
    return min(plans, key=lambda name: (chosen[name].relative, plans[name].loss), default=None)


def _losses(squares: Squares) -> tuple[float, ...]:
    return tuple(relative_losses(np.sqrt(squares.errors), np.sqrt(squares.norms)).tolist())


def _sizes(weights: Mapping[str, Weight], made: Mapping[str, FittedLayer]) -> tuple[str, ...]:
    given = (made.get(path) for path in weights)
    return tuple("dense" if each is None else f"{each.method}, {each.size}" for each in given)


def _storage(weights: Mapping[str, Weight], made: Mapping[str, FittedLayer]) -> dict[str, int]:
    takes, dense = Storage(), Storage()
    for path, weight in weights.items():
        takes += made[path].approximation.storage if path in made else weight.dense
        dense += weight.dense
    return {
        "bytes": takes.bytes,
        "dense_bytes": dense.bytes,
        "ideal_bits": takes.ideal_bits,
    }


def _comparison(name: str, first: FrontierPoint, other: FrontierPoint) -> Comparison:
    differences = np.subtract(first.losses, other.losses)
    low, high = paired(differences, CONFIDENCE)
    return Comparison(
        budget=first.budget,
        first=name,
        other=other.kind,
        difference=float(np.mean(differences)),
        low=low,
        high=high,
        equal=first.layers == other.layers,
    )


class _Floor:
    """The components of all layers, as shares of the squared outputs, and how often each comes."""

    COUNT = 25  # points

    def __init__(self) -> None:
        self.values: list[np.ndarray] = []
        self.outputs: list[np.ndarray] = []

    def add(self, path: str, matrices: list[Observed]) -> None:
        """A layer, of what it saw."""
        layer, total = [], 0.0
        for observed in matrices:
            assert observed.calibration is not None
            weights = np.asarray(observed.weights, np.float64)
            gram = np.asarray(observed.calibration.gram(), np.float64)
            values = np.maximum(np.linalg.eigvalsh(gram), 0) * np.mean(weights**2)
            total += weights.shape[1] * float(np.sum(values))
            layer.append((values, weights.shape[1]))
        for values, outputs in layer if total > 0 else ():
            self.values.append(values / total)
            self.outputs.append(np.full(len(values), outputs))

    def points(
        self, weights: Mapping[str, Weight], choices: Mapping[str, Choices]
    ) -> tuple[FloorPoint, ...]:
        """At shares of the bits, from a hundredth on."""
        if not self.values:
            return ()
        dense = sum(weights[path].dense.ideal_bits for path in choices)
        values, outputs = np.concatenate(self.values), np.concatenate(self.outputs)
        shares = np.geomspace(0.01, 1, self.COUNT).tolist()
        return tuple(
            FloorPoint(
                share=share,
                ideal_bits=share * dense,
                loss=float(distortion_floor(values, share * dense, outputs=outputs)),
            )
            for share in shares
        )
