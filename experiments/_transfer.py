"""What the experiments on trained networks share: one study, as much of it as figures need."""

import dataclasses
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
from lowrank_theory.studies.layer_rows import LayerAtRank, LayerHypothesis, ResidualSpectrum
from lowrank_theory.studies.transfer import BUDGETS
from lowrank_theory.studies.transfer_rows import Composition, DenseMetric, NetworkAtSize, Timing
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
        names = [column.name for column in LayerAtRank.columns() if column.brief]
        failing = [
            row
            for row in layers.hypotheses
            if not row.holds and row.standing is not Standing.TRUSTED  # refuted by the data
        ]
        return rounded(
            found.everything()
            | {
                "rows": {name: [getattr(row, name) for row in layers.rows] for name in names},
                "layers": [
                    KeptLayer(
                        network=layer.network,
                        layer=layer.layer,
                        samples=layer.samples,
                        effective_samples=layer.effective_samples,
                        residual=layer.residual,
                    )
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


# --- what the file of numbers holds ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class KeptLayer:
    """What is kept of a layer as a whole."""

    network: str
    layer: str
    samples: int
    effective_samples: float | None
    residual: ResidualSpectrum | None


@dataclasses.dataclass(frozen=True)
class KeptCertificate:
    """What is read again of that of a layer."""

    loss: float | None
    certificate: float | None


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is read again of a study: `failing` are the hypotheses that data refute."""

    title: str
    metric: DenseMetric
    networks: tuple[NetworkAtSize, ...]
    rows: tuple[LayerAtRank, ...]
    layers: tuple[KeptLayer, ...]
    failing: tuple[LayerHypothesis, ...]
    certificates: tuple[KeptCertificate, ...]
    composition: Composition
    times: tuple[Timing, ...]


def kept(numbers: dict[str, Any]) -> Kept:
    """Rows stand there in columns; certificates had fewer entries once."""
    columns, half = numbers["rows"], numbers["half"]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    certificates = [
        {"loss": row["loss"], "certificate": row["certificate"]} for row in half["certificates"]
    ]
    everything = numbers | half | {"rows": rows, "certificates": certificates}
    return typed(Kept, {field.name: everything[field.name] for field in dataclasses.fields(Kept)})


def draw(numbers: dict[str, Any]) -> Figure:
    found = kept(numbers)
    return plotting.transfer(
        networks=found.networks,
        metric=found.metric,
        rows=found.rows,
        residuals=[layer.residual for layer in found.layers if layer.residual is not None],
        composition=found.composition,
    )
