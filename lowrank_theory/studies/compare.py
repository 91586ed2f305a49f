r"""Methods compared on one trained network, under four perspectives (Li 2025).

A method is a map $f_c$ from a matrix to what stands for it at the compression rate $c$.

1. *Error against compression*: each layer alone, at all sizes of each method.
2. *What shapes the error*: statistics of the weights and of the inputs of each layer.
3. *Error as a proxy*: the whole network at several budgets, and how errors order what it loses.
4. *Ideal against real*: bits of values, bits with places and scales, bytes as stored, and time.

A budget is a share of the bits of the dense weights, each entry in as many as it needs, the places
of sparse entries and all scales included. It is spent on the layers so that the sum of their losses
is least: of the outputs on the calibration where a method looks at the data, else of the weights.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_theory._files import make_folder, plain
from lowrank_theory._numerics import check_count
from lowrank_theory._progress import Progress
from lowrank_theory._rows import typed
from lowrank_theory.calibration import AbstractCalibration
from lowrank_theory.lookup import LookUp
from lowrank_theory.mixtures import PrunedAndRounded
from lowrank_theory.models.catalogue import Case, Sizes
from lowrank_theory.recovery import AbstractLadder
from lowrank_theory.sparsification import Magnitude, SparseGPT, Wanda
from lowrank_theory.studies import statistics
from lowrank_theory.studies._at_all_sizes import Layers, Shares, Sized, chosen
from lowrank_theory.studies._observed_layer import label
from lowrank_theory.studies._scrutiny import times
from lowrank_theory.studies._sizes import (
    check_budgets,
    dense_metric,
    paired_interval,
    relative_error,
)
from lowrank_theory.studies.compare_rows import (
    InvertedPair,
    LayerAtSize,
    LayerStatistics,
    NetworkAtBudget,
    Proxy,
    TimeOfMethod,
)
from lowrank_theory.studies.pieces import Pieces, digest, machine
from lowrank_theory.studies.proxies import ERRORS, inverted, proxies
from lowrank_theory.studies.transfer_rows import DenseMetric, Machine, UnmetBudget
from lowrank_theory.studies.ways import (
    AGNOSTIC,
    DRIVEN,
    FEW_BITS,
    LOOK_UP,
    PRUNED_AND_ROUNDED,
    ROUNDED,
    SPARSE,
    SPARSE_GPT,
    SWEPT,
    WANDA,
    WAYS,
)

BUDGETS = (1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 1 / 2)  # shares of the weights' bits
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "low rank": (AGNOSTIC.name, DRIVEN.name),
    "few bits": (ROUNDED.name, SWEPT.name),
    "few entries": (SPARSE.name, WANDA.name, SPARSE_GPT.name),
    "mixtures": (PRUNED_AND_ROUNDED.name, FEW_BITS.name),
    "tables": (LOOK_UP.name,),
}
# Shares of entries that take, with a bit for each place, at most the shares of the bits above.
_KEPT = (0.03, 0.06, 0.09, 0.15, 0.21, 0.46)
LADDERS: Mapping[str, AbstractLadder] = {
    name: WAYS[name].method for name in sum(FAMILIES.values(), ())
} | {
    SPARSE.name: Magnitude(_KEPT),
    WANDA.name: Wanda(_KEPT, ()),
    SPARSE_GPT.name: SparseGPT(_KEPT, ()),
    PRUNED_AND_ROUNDED.name: PrunedAndRounded(Magnitude((0.03, 0.1, 0.2, 0.35, 0.55, 0.8))),
    LOOK_UP.name: LookUp((1, 2, 4, 8, 16, 32)),
}
FAMILY = {method: family for family, methods in FAMILIES.items() for method in methods}
PAIRS = 20  # inverted ones that are listed
SECONDS = 0.5  # for which each time is measured


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the comparison of methods on one network found; what the columns of its rows mean is
    said in `compare_rows`.

    - `network`, `title`, `unit`, `about`, `sizes`, `seed`: what was studied, from the catalogue,
      or else from the file that `source` names;
    - `metric`: of the dense network;
    - `statistics`: of each layer and its inputs;
    - `layers`: each layer at all sizes of each method;
    - `networks`: a row for each method and budget, `unmet` the budgets that a method cannot meet;
    - `times`: of each method at the budget nearest to a quarter, and of look-up tables there;
    - `proxies` and `inverted`: how errors order what the networks lose, and the pairs of networks
      that they clearly put in the wrong order, at most `PAIRS` for each error;
    - `machine` and `seconds`.
    """

    network: str
    source: str | None
    title: str
    unit: str
    about: str
    sizes: Sizes
    seed: int
    budgets: tuple[float, ...]
    metric: DenseMetric
    statistics: tuple[LayerStatistics, ...]
    layers: tuple[LayerAtSize, ...]
    networks: tuple[NetworkAtBudget, ...]
    unmet: tuple[UnmetBudget, ...]
    times: tuple[TimeOfMethod, ...]
    proxies: tuple[Proxy, ...]
    inverted: tuple[InvertedPair, ...]
    machine: Machine
    seconds: float

    def everything(self) -> dict[str, Any]:
        """All of it in what JSON has; a number that is not finite is `None`."""
        return plain(self)


def compare(
    case: Case,
    *,
    budgets: Sequence[float] = BUDGETS,
    families: Sequence[str] = tuple(FAMILIES),
    seed: int,
    sizes: Sizes | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare the methods of these `families` on one network of the catalogue.

    `seed` is that of the bootstrap. In `folder`, what each method found is kept: the same call goes
    on from there. `progress(name, done, total)` is called after every piece.

    Raises `ValueError` for budgets that are not shares between 0 and 1, and unknown families,
    `OSError` where the folder cannot be written, and what `case.load` and `observe` raise.
    """
    shares = check_budgets(budgets)
    methods = [method for family in dict.fromkeys(families) for method in _methods(family)]
    if not methods:
        raise ValueError(f"`families` is empty: give some of {', '.join(FAMILIES)}.")
    sizes = sizes or case.sizes
    seed = check_count("seed", seed, 0)
    if folder is not None:
        make_folder(folder)  # or refuse, before anything is read
    loaded = case.load(sizes)
    layers = Layers(loaded)
    setting = [case.name, dataclasses.asdict(sizes), shares, seed, digest(loaded)]
    pieces = Pieces(folder, setting)
    jobs = {"layers": functools.partial(_described, layers)}
    jobs |= {
        method: functools.partial(_compared, layers, method, shares, seed) for method in methods
    }
    found: dict[str, dict[str, Any]] = {}
    for done, (name, job) in enumerate(jobs.items(), start=1):
        found[name] = pieces.get(f"compare, {name}", job)
        if progress is not None:
            progress(f"{case.name}: {name}", done, len(jobs))
    pieces.prune()
    described = typed(_Described, found["layers"]["found"])
    compared = [typed(_Compared, found[method]["found"]) for method in methods]
    networks = [row for each in compared for row in each.networks]
    return Comparison(
        network=case.name,
        source=case.source,
        title=case.title,
        unit=case.unit,
        about=case.about,
        sizes=sizes,
        seed=seed,
        budgets=shares,
        metric=described.metric,
        statistics=described.statistics,
        layers=tuple(row for each in compared for row in each.layers),
        networks=tuple(networks),
        unmet=tuple(row for each in compared for row in each.unmet),
        times=tuple(each.time for each in compared if each.time is not None),
        proxies=tuple(proxies(networks, FAMILY, described.metric, seed)),
        inverted=tuple(
            row for error in ERRORS for row in inverted(networks, error, described.metric)[:PAIRS]
        ),
        machine=machine(),
        seconds=sum(piece["seconds"] for piece in found.values()),
    )


def _methods(family: str) -> tuple[str, ...]:
    if family not in FAMILIES:
        raise ValueError(f"`families` must be of {', '.join(FAMILIES)}; got {family!r}.")
    return FAMILIES[family]


# --- the pieces of the work -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Described:
    """The dense network and its layers."""

    metric: DenseMetric
    statistics: tuple[LayerStatistics, ...]


@dataclasses.dataclass(frozen=True)
class _Compared:
    """What one method found."""

    layers: tuple[LayerAtSize, ...]
    networks: tuple[NetworkAtBudget, ...]
    unmet: tuple[UnmetBudget, ...]
    time: TimeOfMethod | None


def _described(layers: Layers) -> _Described:
    loaded = layers.loaded
    dense = loaded.metric.scores(loaded.function, loaded.parameters)
    rows = []
    for path, weight in layers.weights.items():
        inputs, outputs = weight.view.matrix_shape[-2:]
        matrices = weight.view.matrix(np.asarray(weight.leaf, np.float64))
        seen = layers.training.slices(path)
        for number, matrix in enumerate(matrices.reshape(-1, inputs, outputs)):
            name = label(path, number if weight.view.stack else None)
            rows.append(_statistics(name, matrix, seen[number]))
    return _Described(dense_metric(loaded.metric, dense), tuple(rows))


def _statistics(name: str, weights: np.ndarray, seen: AbstractCalibration) -> LayerStatistics:
    gram, centred = (np.asarray(seen.gram(centred=each)) for each in (False, True))
    total = float(np.trace(gram))
    return LayerStatistics(
        layer=name,
        shape=(weights.shape[0], weights.shape[1]),
        rows=int(seen.count),
        kurtosis=statistics.kurtosis(weights),
        stable_rank=statistics.stable_rank(weights) / min(weights.shape),
        outlier_weights=statistics.outlier_ratio(np.sum(weights**2, axis=1)),
        participation_ratio=statistics.participation_ratio(gram) / len(gram),
        centred_participation_ratio=statistics.participation_ratio(centred) / len(gram),
        outlier_inputs=statistics.outlier_ratio(np.diagonal(gram)),
        mean_share=1 - float(np.trace(centred)) / total if total > 0 else None,
    )


def _compared(layers: Layers, method: str, shares: Sequence[float], seed: int) -> _Compared:
    sized = layers.at_all_sizes(LADDERS[method])
    rows = [
        _layer_row(path, method, each, size)
        for path, each in sized.items()
        for size in each.some_sizes
    ]
    loaded = layers.loaded
    dense = loaded.metric.scores(loaded.function, loaded.parameters)
    timed = min(shares, key=lambda share: abs(share - 0.25))
    networks: list[NetworkAtBudget] = []
    unmet: list[UnmetBudget] = []
    time = None
    for share in shares:
        try:
            taken = chosen(sized, share)
        except ValueError as error:
            if "cannot be met" not in str(error):
                raise
            unmet.append(UnmetBudget(budget=share, method=method, why=str(error)))
            continue
        networks.append(_network_row(layers, sized, taken, method, share, dense, seed))
        if share == timed:
            time = _time_row(layers, sized, taken, networks[-1])
    return _Compared(tuple(rows), tuple(networks), tuple(unmet), time)


def _layer_row(path: str, method: str, layer: Sized, size: int) -> LayerAtSize:
    errors, shares = layer.errors(size), layer.shares(size)
    return LayerAtSize(
        layer=path,
        method=method,
        size=layer.fit.at(size).size,
        weight_error=errors.weights,
        output_error=errors.outputs,
        **dataclasses.asdict(shares),
    )


def _network_row(
    layers: Layers,
    sized: Mapping[str, Sized],
    taken: Mapping[str, int],
    method: str,
    share: float,
    dense: np.ndarray,
    seed: int,
) -> NetworkAtBudget:
    loaded = layers.loaded
    made = {path: sized[path].fit.at(size) for path, size in taken.items()}
    network = layers.network(made)
    errors = [sized[path].errors(size) for path, size in taken.items()]
    weights = [each.weights for each in errors]
    scores, value = loaded.metric.scores(*network), loaded.metric.value
    low, high = paired_interval(value, dense, scores, seed)
    approximations = [made[path].approximation if path in made else None for path in sized]
    shares = Shares.of(approximations, [each.weight.dense for each in sized.values()])
    return NetworkAtBudget(
        budget=share,
        method=method,
        left_dense=len(sized) - len(taken),
        weight_error=(
            None if None in weights else _root_mean_square(filter(None, weights), len(sized))
        ),
        layer_error=_root_mean_square((each.outputs for each in errors), len(sized)),
        output_error=relative_error(loaded, network, loaded.held_out),
        metric=float(value(scores)),
        difference=float(value(scores) - value(dense)),
        low=low,
        high=high,
        **dataclasses.asdict(shares),
    )


def _root_mean_square(errors: Any, count: int) -> float:
    return float(np.sqrt(sum(error**2 for error in errors) / count))


def _time_row(
    layers: Layers, sized: Mapping[str, Sized], taken: Mapping[str, int], row: NetworkAtBudget
) -> TimeOfMethod:
    made = {path: sized[path].fit.at(size) for path, size in taken.items()}
    return TimeOfMethod(
        budget=row.budget,
        method=row.method,
        ideal=row.ideal,
        real=row.real,
        times=tuple(times(layers.loaded, layers.packed(made), seconds=SECONDS)),
    )
