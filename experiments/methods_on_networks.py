"""Every way to compress a network, on ResNet-20 and AlexNet, at half of the bytes.

Few images are taken (200 to calibrate, 100 for losses, 200 for accuracies), so that all ways of the
table `studies.ways` take half an hour for each network: what is shown is that each goes from
`compress` to a page, and which way loses how much.

python experiments/methods_on_networks.py [--quick]
"""

import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from _save import run
from _transfer import SKIPPED, rounded
from _transfer_note import Row, Tables, filled, table
from lowrank_theory._files import plain, write_atomically
from lowrank_theory.models import catalogue
from lowrank_theory.networks import Sizes, transfer
from lowrank_theory.plotting import LIMIT, SERIES, panels
from lowrank_theory.studies.ways import OTHERS

NOTE = Path(__file__).resolve().parents[1] / "paper_notes" / "methods.md"
NETWORKS, SEED, SHARE = ("resnet20", "alexnet"), 0, 0.5
SIZES = Sizes(calibration=200, held_out=50, units=100, items=200, batch=50, passes=2)


def measure(*, quick: bool) -> dict[str, Any]:
    found = {}
    for name in NETWORKS[:1] if quick else NETWORKS:
        study = transfer(
            catalogue.find(name),
            budgets=(SHARE,),
            ways=[way.name for way in OTHERS[: 2 if quick else None]],
            seed=SEED,
            sizes=SIZES,
            progress=lambda name, done, total: print(f"{name}: {done} of {total}", flush=True),
        )
        found[name] = summary(plain(study.everything()))
    return {"networks": found}


def summary(study: dict[str, Any]) -> dict[str, Any]:
    """The rows of a study that are shown: a way, its bytes, its loss, and its metric."""
    rows = [
        {
            "method": row["method"],
            "bytes": row["bytes"] / row["dense_bytes"],
            "loss": row["output_loss"],
            "certificate": row["certificate"],
            "accuracy": row["metric"],
        }
        for row in study["networks"]
    ]
    return rounded({"exact": study["metric"]["value"], "rows": rows})


def draw(numbers: dict[str, Any]) -> Figure:
    networks = numbers["networks"]
    figure, drawn = panels(len(networks), width=4.6, height=4.6)
    for panel, (name, found) in zip(drawn, networks.items(), strict=True):
        rows = sorted(found["rows"], key=lambda row: row["loss"])
        losses = [max(row["loss"], 1e-6) for row in rows]
        style: dict[str, Any] = {**SERIES[0], "linestyle": ""}
        panel.plot(losses, range(len(rows)), **style)
        panel.set_yticks(range(len(rows)), [row["method"] for row in rows], fontsize=7)
        panel.axvline(1.0, **LIMIT)
        panel.set_xscale("log")
        panel.set_xlabel("squared error of the outputs, relative")
        panel.set_title(f"{name}, half of the bytes")
    return figure


def _networks(numbers: Row) -> str:
    names = list(numbers["networks"])
    of_each = [{row["method"]: row for row in numbers["networks"][n]["rows"]} for n in names]

    def shown(row: Row | None) -> str:
        return "" if row is None else f"{row['loss']:.2g} ({row['accuracy']:.3g})"

    methods = dict.fromkeys(method for rows in of_each for method in rows)
    cells = [[method, *(shown(rows.get(method)) for rows in of_each)] for method in methods]
    exact = [f"0 ({numbers['networks'][name]['exact']:.3g})" for name in names]
    return table(["half of the bytes", *names], [["exact", *exact], *cells])


TABLES: Tables = {"networks": ("methods_on_networks", _networks)}


if __name__ == "__main__":
    missing = [catalogue.available(name) for name in NETWORKS]
    if any(missing) and "--draw" not in sys.argv:
        print(next(filter(None, missing)), file=sys.stderr)
        sys.exit(SKIPPED)
    run(__file__, measure, draw, seed=SEED)
    if "--quick" not in sys.argv:
        text = filled(NOTE.read_text(), NOTE.parents[1] / "figures", TABLES)
        write_atomically(NOTE, text.encode())
