"""What the experiments on trained networks share: one study, as much of it as figures need."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from _save import run
from lowrank_theory import plotting
from lowrank_theory._files import plain
from lowrank_theory._rows import typed
from lowrank_theory.models import catalogue
from lowrank_theory.models.catalogue import Sizes
from lowrank_theory.networks import transfer
from lowrank_theory.studies.layer_rows import LayerAtRank, ResidualSpectrum
from lowrank_theory.studies.transfer import BUDGETS
from lowrank_theory.studies.transfer_rows import DenseMetric, HalfSize, NetworkAtSize
from lowrank_theory.studies.ways import Way
from lowrank_theory.theorems import Standing

SKIPPED = 77  # the exit code where data are missing, as test suites have it
DIGITS = 5  # of the numbers that are kept
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
            budgets=(0.5,) if quick else BUDGETS,
            ways=[way.name for way in ways],
            seed=seed,
            sizes=QUICK if quick else None,
            progress=lambda name, done, total: print(f"{name}: {done} of {total}", flush=True),
        )
        layers = found.layers
        kept = [column.name for column in LayerAtRank.columns() if column.brief]
        failing = [
            row
            for row in layers.hypotheses
            if not row.holds and row.standing is not Standing.TRUSTED  # refuted by the data
        ]
        return rounded(
            found.everything()
            | {
                "rows": {name: [getattr(row, name) for row in layers.rows] for name in kept},
                "layers": [
                    {
                        "network": layer.network,
                        "layer": layer.layer,
                        "samples": layer.samples,
                        "effective_samples": layer.effective_samples,
                        "residual": layer.residual,
                    }
                    for layer in layers.layers
                ],
                "failing": failing,
            }
        )

    return measure


def rounded(content: Any) -> Any:
    """The same in what JSON has, to few digits."""
    value = plain(content)
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list) else value


# --- what a file of numbers holds -----------------------------------------------------------------


def layer_rows(numbers: dict[str, Any]) -> list[LayerAtRank]:
    columns = numbers["rows"]
    return [
        typed(LayerAtRank, dict(zip(columns, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    ]


def networks(numbers: dict[str, Any]) -> list[NetworkAtSize]:
    return [typed(NetworkAtSize, row) for row in numbers["networks"]]


def residuals(numbers: dict[str, Any]) -> list[ResidualSpectrum]:
    found = [layer["residual"] for layer in numbers["layers"]]
    return [typed(ResidualSpectrum, each) for each in found if each is not None]


def draw(numbers: dict[str, Any]) -> Figure:
    return plotting.transfer(
        networks=networks(numbers),
        metric=typed(DenseMetric, numbers["metric"]),
        rows=layer_rows(numbers),
        residuals=residuals(numbers),
        composition=typed(HalfSize, numbers["half"]).composition,
    )
