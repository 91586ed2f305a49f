r"""One trained network, observed, compressed and certified.

Each layer is studied alone (`layer_study`). Then the network is compressed to a share of its
weights' bytes in three ways, and each time its outputs $\hat Y$ are held against the original $Y$,
unit by unit, and its metric against that of the dense network, item by item:

- `data-agnostic`: truncated weights;
- `data-driven`: every layer fitted to what it sees in the original network;
- `sequential`: one layer after the other fitted to what it sees in the network compressed so far;

and in others of the table `ways`, if asked for.

At half size, layers and network get certificates, the errors of layers are composed and compared
with that of the network, and the time of the compressed network is measured.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from lowrank_theory._files import make_folder, plain
from lowrank_theory._numerics import check_count
from lowrank_theory._progress import Progress
from lowrank_theory._rows import typed
from lowrank_theory.models.catalogue import Case, Loaded, Sizes
from lowrank_theory.studies import layer_study
from lowrank_theory.studies._scrutiny import scrutinised
from lowrank_theory.studies._sizes import CONFIDENCE as CONFIDENCE
from lowrank_theory.studies._sizes import by_each_way, by_way, check_budgets, compared, dense_metric
from lowrank_theory.studies.layer_study import LayerStudy
from lowrank_theory.studies.pieces import Pieces, digest, machine
from lowrank_theory.studies.transfer_rows import (
    DenseMetric,
    HalfSize,
    Machine,
    NetworkAtSize,
    UnmetBudget,
)
from lowrank_theory.studies.ways import DRIVEN, OTHERS, WAYS, Way

BUDGETS = (0.25, 0.5, 0.75)  # shares of the weights' bytes


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What the study of one network found; what the columns of its rows mean is said in
    `transfer_rows` and `layer_rows`.

    - `network`, `title`, `unit`, `about`, `sizes`, `seed`: what was studied, from the catalogue,
      or else from the file that `source` names;
    - `metric`: of the dense network;
    - `layers`: each layer under the theorems;
    - `networks`: a row for each budget and method. One more method than the three, `data-agnostic,
      same ranks`, truncates each layer at the rank that `data-driven` has there;
    - `unmet`: the budgets that a way cannot meet;
    - `half`: the data-driven network at the budget nearest to one half, under scrutiny;
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
    layers: LayerStudy
    networks: tuple[NetworkAtSize, ...]
    unmet: tuple[UnmetBudget, ...]
    half: HalfSize
    machine: Machine
    seconds: float

    def everything(self) -> dict[str, Any]:
        """All of it in what JSON has; a number that is not finite is `None`."""
        return plain(self)


def transfer(
    case: Case,
    *,
    budgets: Sequence[float] = BUDGETS,
    ways: Sequence[str] = (),
    seed: int,
    sizes: Sizes | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Transfer:
    """Study one network of the catalogue.

    `ways` names more ways to compress it, of `ways.OTHERS`, besides the three of every study.
    `seed` is that of the bootstrap, and of the random orientations beside which layers are held.
    In `folder`, each finished piece is kept: the same call goes on from there. `progress(name,
    done, total)` is called after every piece.

    Raises `ValueError` for budgets that are not shares between 0 and 1, and unknown ways, `OSError`
    where the folder cannot be written, and what `case.load` and `compress` raise.
    """
    shares = check_budgets(budgets)
    more = [_way(name) for name in dict.fromkeys(ways)]
    sizes = sizes or case.sizes
    seed = check_count("seed", seed, 0)
    if folder is not None:
        make_folder(folder)  # or refuse, before anything is read
    loaded = case.load(sizes)
    pieces = Pieces(folder, [case.name, dataclasses.asdict(sizes), seed, digest(loaded)])
    half = min(shares, key=lambda share: abs(share - 0.5))
    jobs: dict[str, Callable[[], Any]] = {
        "layers": functools.partial(_layers, case.name, loaded, seed),
        **{
            f"budget {share}": functools.partial(
                _at_budget, loaded, share, seed, sizes.passes, also_half=share == half
            )
            for share in shares
        },
        **{
            f"budget {share}, {way.name}": functools.partial(_by_way, loaded, share, seed, way)
            for share in shares
            for way in more
        },
    }
    found: dict[str, dict[str, Any]] = {}
    for done, (name, job) in enumerate(jobs.items(), start=1):
        found[name] = pieces.get(name + (" as half" if name == f"budget {half}" else ""), job)
        if progress is not None:
            progress(f"{case.name}: {name}", done, len(jobs))
    pieces.prune()
    seconds = sum(piece["seconds"] for piece in found.values())
    layers = typed(LayerStudy, found.pop("layers")["found"])
    compressed = [typed(_AtBudget, piece["found"]) for piece in found.values()]
    return Transfer(
        network=case.name,
        source=case.source,
        title=case.title,
        unit=case.unit,
        about=case.about,
        sizes=sizes,
        seed=seed,
        budgets=shares,
        metric=next(each.metric for each in compressed if each.metric is not None),
        layers=layers,
        networks=tuple(
            sorted((row for each in compressed for row in each.rows), key=lambda row: row.budget)
        ),
        unmet=tuple(row for each in compressed for row in each.unmet),
        half=next(each.half for each in compressed if each.half is not None),
        machine=machine(),
        seconds=seconds,
    )


@dataclasses.dataclass(frozen=True)
class _AtBudget:
    """What one piece of the work has found at a budget."""

    rows: tuple[NetworkAtSize, ...] = ()
    unmet: tuple[UnmetBudget, ...] = ()
    metric: DenseMetric | None = None
    half: HalfSize | None = None


# --- the pieces of the work -----------------------------------------------------------------------


def _layers(name: str, loaded: Loaded, seed: int) -> LayerStudy:
    return layer_study.study(
        name,
        loaded.function,
        loaded.parameters,
        loaded.calibration,
        loaded.held_out,
        select=loaded.select,
        key=jax.random.key(seed),
    )


def _at_budget(
    loaded: Loaded, budget: float, seed: int, passes: int | None, *, also_half: bool
) -> _AtBudget:
    dense = loaded.metric.scores(loaded.function, loaded.parameters)
    networks, seconds = by_each_way(loaded, budget, passes)
    rows = [
        compared(loaded, each, dense, seed, budget=budget, method=name, seconds=seconds.get(name))
        for name, each in networks.items()
    ]
    metric = dense_metric(loaded.metric, dense)
    half = scrutinised(loaded, networks[DRIVEN.name], budget) if also_half else None
    return _AtBudget(rows=tuple(rows), metric=metric, half=half)


def _by_way(loaded: Loaded, budget: float, seed: int, way: Way) -> _AtBudget:
    start = time.monotonic()
    try:
        compressed = by_way(way, loaded, budget, None)
    except ValueError as error:
        if "cannot be met" not in str(error):
            raise
        return _AtBudget(unmet=(UnmetBudget(budget=budget, method=way.name, why=str(error)),))
    seconds = time.monotonic() - start
    dense = loaded.metric.scores(loaded.function, loaded.parameters)
    row = compared(loaded, compressed, dense, seed, budget=budget, method=way.name, seconds=seconds)
    return _AtBudget(rows=(row,))


def _way(name: str) -> Way:
    names = [way.name for way in OTHERS]
    if name not in names:
        raise ValueError(f"`ways` must be of {', '.join(names)}; got {name!r}.")
    return WAYS[name]
