"""What the experiments on trained networks share: one study, as much of it as figures need."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from _save import run
from lowrank_theory import plotting
from lowrank_theory.models import catalogue
from lowrank_theory.models.catalogue import Sizes
from lowrank_theory.networks import transfer
from lowrank_theory.studies.ways import Way

SKIPPED = 77  # the exit code where data are missing, as test suites have it
DIGITS = 5  # of the numbers that are kept
KEPT = (  # of each layer at each rank
    "network", "layer", "rank", "shape", "data_agnostic_error", "diagonal_error",
    "data_driven_error", "optimal_error", "price_bound", "recovery_error", "recovery_bound",
)  # fmt: skip
SEEN = ("network", "layer", "samples", "effective_samples", "residual")
QUICK = Sizes(calibration=40, held_out=20, units=20, items=20, batch=20, passes=2)


def study(script: str, *, seed: int, ways: Sequence[Way] = ()) -> None:
    """Study the network that the script is named after, and compare more ways to compress it; write
    its numbers and its figure.
    """
    name = Path(script).stem.removeprefix("transfer_")
    missing = catalogue.available(name)
    if missing is not None and "--draw" not in sys.argv:
        print(f"{name} cannot be studied: {missing}", file=sys.stderr)
        sys.exit(SKIPPED)
    run(script, measured(name, seed, ways), draw, seed=seed)


def measured(name: str, seed: int, ways: Sequence[Way]) -> Callable[..., dict[str, Any]]:
    def measure(*, quick: bool) -> dict[str, Any]:
        found = transfer(
            catalogue.find(name),
            budgets=(0.5,) if quick else (0.25, 0.5, 0.75),
            ways=[way.name for way in ways],
            seed=seed,
            sizes=QUICK if quick else None,
            progress=lambda name, done, total: print(f"{name}: {done} of {total}", flush=True),
        ).everything()
        layers = found.pop("layers")
        columns = {key: [row[key] for row in layers["rows"]] for key in KEPT}
        seen = [{key: layer[key] for key in SEEN} for layer in layers["layers"]]
        failing = [
            row
            for row in layers["hypotheses"]
            if row["holds"] is False and row["standing"] != "trusted"  # refuted by the data
        ]
        return rounded(found | {"rows": columns, "layers": seen, "failing": failing})

    return measure


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list) else value


def draw(numbers: dict[str, Any]) -> Figure:
    columns = numbers["rows"]
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    return plotting.transfer(numbers | {"layers": {"rows": rows, "layers": numbers["layers"]}})
