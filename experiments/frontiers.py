"""Error and metric against bytes, for every kind of approximation and their mixture.

For each network `figures/frontier_<network>.json` and `.svg`: what its layers lose beside the floor
of Gaussian weights, the error of its outputs, and its metric, at five budgets; and at a quarter and
an eighth of the bytes the mixture, and what `compress` returns, against each kind alone, in pairs
on held-out batches. Few data are taken; AG News, with fewer kinds, takes twenty minutes of a
processor, ResNet-56 ten.

python experiments/frontiers.py [NETWORK ...] [--quick] [--draw]

Without names, those networks are studied that have no file yet: a run that was interrupted goes on.
"""

import argparse
import functools
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from _save import numbers_of, save
from _transfer import SKIPPED, rounded
from _transfer_note import Row, table
from lowrank_theory import plotting
from lowrank_theory._files import plain, write_atomically
from lowrank_theory._rows import typed
from lowrank_theory.mixtures import LowRankAndQuantised, LowRankAndSparse, PrunedAndRounded
from lowrank_theory.models import catalogue
from lowrank_theory.networks import Frontier, Sizes, frontier
from lowrank_theory.quantisation import GPTQ, RoundToNearest
from lowrank_theory.recovery import AbstractLadder, ActivationWeighted
from lowrank_theory.reports._page import number
from lowrank_theory.sparsification import SparseGPT, Structured

NOTE = Path(__file__).resolve().parents[1] / "paper_notes" / "methods.md"
SEED = 0
BUDGETS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 1 / 2)
COMPARED = (1 / 8, 1 / 4)
UNITS = 10  # in a held-out batch, of which there are a tenth as many
METHODS = (
    ActivationWeighted(),
    RoundToNearest(),
    GPTQ(),
    SparseGPT(),
    Structured(),
    LowRankAndSparse(),
    LowRankAndQuantised(),
    PrunedAndRounded(),
)
LEAST_WORK = (*METHODS[:4], LowRankAndQuantised(steps=1), METHODS[-1])
SIZES = {
    "digits": Sizes(calibration=1_200, held_out=590, units=2, items=597, batch=200),
    "mnist": Sizes(calibration=2_000, held_out=400, units=2, items=2_000, batch=250),
    "char_lstm": Sizes(calibration=200, held_out=200, units=2, items=20, batch=25),
    "alexnet": Sizes(calibration=300, held_out=200, units=2, items=200, batch=50),
    "resnet20": Sizes(calibration=200, held_out=200, units=2, items=200, batch=25),
    "resnet56": Sizes(calibration=200, held_out=200, units=2, items=200, batch=25),
    "ag_news": Sizes(calibration=200, held_out=200, units=2, items=300, batch=20),
}
QUICK = Sizes(calibration=40, held_out=20, units=2, items=20, batch=20)


def measure(name: str, *, quick: bool) -> dict[str, Any]:
    """All that is kept of a network."""
    start, case = time.process_time(), catalogue.find(name)
    sizes = QUICK if quick else SIZES[name]
    loaded = case.load(sizes)
    small = Sizes(sizes.calibration, sizes.held_out, 2, 2, batch=UNITS)
    found = frontier(
        loaded.function,
        loaded.parameters,
        loaded.calibration,
        method=METHODS[1:3] if quick else methods_of(name),
        held_out=case.load(small).held_out,
        budgets=COMPARED if quick else BUDGETS,
        metric=loaded.metric,
        select=loaded.select,
        progress=lambda path, done, total: print(f"{name}: {done} of {total}", flush=True),
    )
    content = plain(found)
    for point in content["points"]:
        point["losses"] = []
    comparisons = [plain(row) for budget in COMPARED for row in found.compared(budget)]
    return rounded(
        {
            "network": name,
            "title": case.title,
            "unit": f"{UNITS} × {case.unit}",
            "sizes": plain(sizes),
            "cpu_seconds": time.process_time() - start,
            "comparisons": comparisons,
            **content,
        }
    )


def methods_of(name: str) -> tuple[AbstractLadder, ...]:
    """Of the largest network without those that take longest."""
    return LEAST_WORK if name == "ag_news" else METHODS


def draw(numbers: dict[str, Any]) -> Figure:
    return plotting.frontier(typed(Frontier, {name: numbers[name] for name in KEPT}))


KEPT = ("kinds", "paths", "metric", "points", "floor", "unmet")


def filled(note: str, folder: Path) -> str:
    """The note with its table, of all networks that have a file."""
    rows = []
    for name in SIZES:
        file = folder / f"frontier_{name}.json"
        if file.is_file():
            rows += [_row(json.loads(file.read_text()), budget) for budget in COMPARED]
    text = table(HEADER, rows)
    place = r"(<!-- table: frontiers -->\n).*?(<!-- end -->)"
    return re.sub(place, lambda found: f"{found[1]}\n{text}\n\n{found[2]}", note, flags=re.DOTALL)


HEADER = (
    "network",
    "bytes",
    "output error, mixture",
    "best kind alone",
    "its output error",
    "difference of mean losses (99 %)",
    "returned",
    "gap to the bound",
)


def _row(numbers: Row, budget: float) -> list[str]:
    points = {p["kind"]: p for p in numbers["points"] if p["budget"] == budget}
    pairs = [
        row
        for row in numbers["comparisons"]
        if row["budget"] == budget and row["first"] == "mixture"
    ]
    best = max(pairs, key=lambda row: row["difference"])
    mixture, other = points["mixture"], points[best["other"]]
    change = f"{number(best['difference'])} ({number(best['low'])} to {number(best['high'])})"
    returned = next(kind for kind, point in points.items() if point["returned"])
    return [
        numbers["network"],
        f"1/{1 / budget:g}",
        number(mixture["output_error"]),
        best["other"],
        number(other["output_error"]),
        "the same network" if best["equal"] else change,
        best["other"] if best["equal"] and returned == "mixture" else returned,
        number(mixture["planned"] - mixture["lower_bound"]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure and draw frontiers of networks.")
    parser.add_argument("networks", nargs="*", choices=[*SIZES, []], help="all without a file")
    parser.add_argument("--quick", action="store_true", help="few data; writes to out/figures")
    parser.add_argument("--draw", action="store_true", help="draw again what was measured before")
    options = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    folder = root / "out" / "figures" if options.quick else root / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"frontier_{name}.json" for name in options.networks or SIZES}
    code = 0
    for name, file in files.items():
        if options.draw and not file.is_file():
            continue
        if not options.draw:
            if file.is_file() and not options.networks:
                continue
            if (missing := catalogue.available(name)) is not None:
                print(f"{name} cannot be studied: {missing}", file=sys.stderr)
                code = SKIPPED
                continue
            numbers = numbers_of(functools.partial(measure, name), SEED, options.quick)
            text = json.dumps(numbers, indent=1, allow_nan=False)
            write_atomically(file, f"{text}\n".encode())
        save(draw(json.loads(file.read_text())), file.with_suffix(".svg"))
        print(f"wrote {file.with_suffix('')}.json and .svg")
    if not options.quick:
        text = filled(NOTE.read_text(), folder)
        write_atomically(NOTE, text.encode())
    return code


if __name__ == "__main__":
    sys.exit(main())
