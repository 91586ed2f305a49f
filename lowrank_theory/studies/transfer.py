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
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lowrank_theory._files import make_folder, plain
from lowrank_theory._fingerprint import fingerprint
from lowrank_theory._numerics import check_count, check_fraction
from lowrank_theory._store import ENTRIES, Results
from lowrank_theory.models.catalogue import Case, Loaded, Sizes
from lowrank_theory.studies import layer_study
from lowrank_theory.studies._scrutiny import scrutinised
from lowrank_theory.studies._sizes import CONFIDENCE as CONFIDENCE
from lowrank_theory.studies._sizes import FAILURE_PROBABILITY as FAILURE_PROBABILITY
from lowrank_theory.studies._sizes import by_each_way, by_way, compared
from lowrank_theory.studies.layer_study import LayerStudy
from lowrank_theory.studies.ways import DRIVEN, OTHERS, WAYS, Way

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Transfer:
    r"""What the study of one network found. Everything is ready for JSON.

    - `network`, `title`, `unit`, `about`, `sizes`, `seed`: what was studied, from the catalogue,
      or else from the file that `source` names;
    - `metric`: its `name`, whether `larger_is_better`, its `value` for the dense network, how
      many items are `scored`;
    - `layers`: each layer under the theorems;
    - `networks`: a row for each budget (share of the weights' bytes) and `method`, the way, with
      `parameters`, `bytes` and `multiply_adds`, each also as `dense_...` of the selected weights;
      `left_dense`, how many layers are not factored; `output_loss`, the mean over held-out units of
      $\min(1, \lVert Y - \hat Y\rVert_F^2/\lVert Y\rVert_F^2)$, its `quantiles` (0.1, 0.5, 0.9) and
      its `certificate`, which is above the mean of new units with probability 0.95;
      `error_calibration` and `error_held_out`, $\lVert Y - \hat Y\rVert_F/\lVert Y\rVert_F$ over
      whole batches; `metric`, its `difference` from the dense network's, and the ends `low` and
      `high` of a paired bootstrap interval for it (95 %). One more method than the three,
      `data-agnostic, same ranks`, truncates each layer at the rank that `data-driven` has there;
    - `unmet`: for each budget that a way cannot meet, `budget`, `method` and `why`;
    - `half`: at the budget nearest to one half, `certificates` of the layers, `composition` of
      their errors, and `times`;
    - `machine` and `seconds`.
    """

    network: str
    source: str | None
    title: str
    unit: str
    about: str
    sizes: Row
    seed: int
    budgets: tuple[float, ...]
    metric: Row
    layers: LayerStudy
    networks: tuple[Row, ...]
    unmet: tuple[Row, ...]
    half: Row
    machine: Row
    seconds: float

    def everything(self) -> Row:
        """All of it in what JSON has; a number that is not finite is `None`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain(fields | {"layers": dataclasses.asdict(self.layers)})


def transfer(
    case: Case,
    *,
    budgets: Sequence[float] = (0.25, 0.5, 0.75),
    ways: Sequence[str] = (),
    seed: int,
    sizes: Sizes | None = None,
    folder: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Transfer:
    """Study one network of the catalogue.

    `ways` names more ways to compress it, of `ways.OTHERS`, besides the three of every study.
    `seed` is that of the bootstrap; nothing else is random. In `folder`, each finished piece is
    kept: the same call goes on from there. `progress(name, done, total)` is called after every
    piece.

    Raises `ValueError` for budgets that are not shares between 0 and 1, and unknown ways, `OSError`
    where the folder cannot be written, and what `case.load` and `compress` raise.
    """
    shares = tuple(sorted({check_fraction("budgets", share) for share in budgets}))
    if not shares:
        raise ValueError("`budgets` is empty: give at least one share, such as 0.5.")
    more = [_way(name) for name in dict.fromkeys(ways)]
    sizes = sizes or case.sizes
    seed = check_count("seed", seed, 0)
    if folder is not None:
        make_folder(folder)  # or refuse, before anything is read
    loaded = case.load(sizes)
    pieces = _Pieces(folder, [case.name, dataclasses.asdict(sizes), seed, _digest(loaded)])
    half = min(shares, key=lambda share: abs(share - 0.5))
    jobs: dict[str, Callable[[], Any]] = {
        "layers": functools.partial(_layers, case.name, loaded),
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
    found: dict[str, Row] = {}
    for done, (name, job) in enumerate(jobs.items(), start=1):
        found[name] = pieces.get(name + (" as half" if name == f"budget {half}" else ""), job)
        if progress is not None:
            progress(f"{case.name}: {name}", done, len(jobs))
    pieces.prune()
    compressed = [found[f"budget {share}"]["found"] for share in shares]
    others = [found[f"budget {k}, {way.name}"]["found"] for k in shares for way in more]
    rows = [row for each in compressed for row in each["rows"]]
    rows += [row for row in others if "why" not in row]
    return Transfer(
        network=case.name,
        source=case.source,
        title=case.title,
        unit=case.unit,
        about=case.about,
        sizes=dataclasses.asdict(sizes),
        seed=seed,
        budgets=shares,
        metric=compressed[0]["metric"],
        layers=_study_of(found["layers"]["found"]),
        networks=tuple(sorted(rows, key=lambda row: row["budget"])),
        unmet=tuple(row for row in others if "why" in row),
        half=found[f"budget {half}"]["found"]["half"],
        machine=machine(),
        seconds=sum(piece["seconds"] for piece in found.values()),
    )


def machine() -> Row:
    """Where times were measured."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def _digest(loaded: Loaded) -> str:
    """The hash of a network and of the units that it is given: files of the same name may hold
    others.
    """
    digest = hashlib.sha256()
    given = (loaded.parameters, loaded.calibration, loaded.held_out, loaded.units)
    for path, leaf in jax.tree_util.tree_leaves_with_path(given):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class _Pieces:
    """What is finished, each piece in a file named by the hash of what it is, of the sources of
    this package, and of the versions of what it computes with; nowhere without a folder.
    """

    def __init__(self, folder: Path | None, setting: Any) -> None:
        self.setting = setting
        self._results = None if folder is None else Results(folder, "piece", ENTRIES)

    def get(self, name: str, make: Callable[[], Any]) -> Row:
        """`{"found": ..., "seconds": ...}`, what `make` returns and what it took."""
        words = {"piece": name, "of": plain(self.setting), "sources": fingerprint()}
        identity = hashlib.sha256(json.dumps(words).encode()).hexdigest()
        kept = self._results and self._results.load(identity, {"found", "seconds"}.issubset)
        if kept is not None:
            return {entry: kept[entry] for entry in ("found", "seconds")}
        start = time.monotonic()
        piece = plain({"found": make(), "seconds": time.monotonic() - start})
        if self._results is not None:
            self._results.save(identity, piece, **words)
        return piece

    def prune(self) -> None:
        """Remove what this run neither found nor wrote: pieces of other sources or settings."""
        if self._results is not None:
            self._results.prune()


# --- the layers -----------------------------------------------------------------------------------


def _layers(name: str, loaded: Loaded) -> Row:
    study = layer_study.study(
        name,
        loaded.function,
        loaded.parameters,
        loaded.calibration,
        loaded.held_out,
        select=loaded.select,
    )
    return dataclasses.asdict(study)


def _study_of(fields: Row) -> LayerStudy:
    reasons = {path: tuple(why) for path, why in fields["not_followed"].items()}
    rows = {name: tuple(fields[name]) for name in ("rows", "layers", "hypotheses")}
    return LayerStudy(**rows, not_followed=reasons)


def _at_budget(
    loaded: Loaded, budget: float, seed: int, passes: int | None, *, also_half: bool
) -> Row:
    dense = loaded.metric.scores(loaded.function, loaded.parameters)
    networks, seconds = by_each_way(loaded, budget, passes)
    rows = [
        {
            "budget": budget,
            "method": name,
            **compared(loaded, compressed, dense, seed),
            "seconds": seconds.get(name),
        }
        for name, compressed in networks.items()
    ]
    metric = {
        "name": loaded.metric.name,
        "larger_is_better": loaded.metric.larger_is_better,
        "value": loaded.metric.value(dense),
        "scored": len(dense),
    }
    half = None
    if also_half:
        half = {"budget": budget, **scrutinised(loaded, networks[DRIVEN.name])}
    return {"metric": metric, "rows": rows, "half": half}


def _by_way(loaded: Loaded, budget: float, seed: int, way: Way) -> Row:
    here: Row = {"budget": budget, "method": way.name}
    start = time.monotonic()
    try:
        compressed = by_way(way, loaded, budget, None)
    except ValueError as error:
        if "cannot be met" not in str(error):
            raise
        return here | {"why": str(error)}
    seconds = time.monotonic() - start
    dense = loaded.metric.scores(loaded.function, loaded.parameters)
    return here | compared(loaded, compressed, dense, seed) | {"seconds": seconds}


def _way(name: str) -> Way:
    names = [way.name for way in OTHERS]
    if name not in names:
        raise ValueError(f"`ways` must be of {', '.join(names)}; got {name!r}.")
    return WAYS[name]
