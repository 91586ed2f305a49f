"""What the comparisons of methods on trained networks share: one study, and what is kept of it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from _save import run
from _transfer import QUICK, SKIPPED, rounded
from lowrank_theory import plotting
from lowrank_theory._rows import typed
from lowrank_theory.models import catalogue
from lowrank_theory.networks import Sizes, compare
from lowrank_theory.studies.compare import BUDGETS, FAMILIES, Comparison
from lowrank_theory.studies.compare_rows import LayerAtSize

COLUMNS = [each.name for each in LayerAtSize.columns()]
POINTS = Path(__file__).resolve().parents[1] / "out" / "compare"


def study(
    script: str,
    *,
    seed: int,
    families: Sequence[str] = tuple(FAMILIES),
    sizes: Sizes | None = None,
) -> None:
    """Compare methods on the network that the script is named after; write the numbers and the
    figure. What each method found is kept in out/compare: started again, it goes on there.
    """
    name = Path(script).stem.removeprefix("compare_")
    missing = catalogue.available(name)
    if missing is not None and "--draw" not in sys.argv:
        print(f"{name} cannot be studied: {missing}", file=sys.stderr)
        sys.exit(SKIPPED)
    run(script, measured(name, seed, families, sizes), draw, seed=seed)


def measured(
    name: str, seed: int, families: Sequence[str], sizes: Sizes | None
) -> Callable[..., dict[str, Any]]:
    def measure(*, quick: bool) -> dict[str, Any]:
        found = compare(
            catalogue.find(name),
            budgets=(0.125, 0.25) if quick else BUDGETS,
            families=families[:2] if quick else families,
            seed=seed,
            sizes=QUICK if quick else sizes,
            folder=None if quick else POINTS / name,
            progress=lambda name, done, total: print(f"{name}: {done} of {total}", flush=True),
        )
        rows = {each: [getattr(row, each) for row in found.layers] for each in COLUMNS}
        return rounded(found.everything() | {"layers": rows})

    return measure


def kept(numbers: dict[str, Any]) -> Comparison:
    """What is read again: the rows of layers stand there in columns."""
    columns = numbers["layers"]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    fields = set(Comparison.__dataclass_fields__)
    everything = {name: value for name, value in numbers.items() if name in fields}
    return typed(Comparison, everything | {"layers": rows})


def draw(numbers: dict[str, Any]) -> Figure:
    found = kept(numbers)
    return plotting.compare(
        statistics=found.statistics,
        layers=found.layers,
        networks=found.networks,
        metric=found.metric,
        times=found.times,
    )
