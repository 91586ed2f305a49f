"""One file for every size: networks compressed once, and cut to twelve shares of their bytes.

    python experiments/every_size.py [--quick]

Each network is compressed to half of its bytes with `every_size`, saved, loaded, and cut to each
share by slices of its factors, `Compressed.at`; beside it stands what compressing anew gives, where
layers may stay dense (AlexNet: at three shares). Intervals are exact ones of a proportion (Clopper
and Pearson), for these held-out images: 597 digits, 1,000 of CIFAR-10. Accuracy rises with the size
within its interval where no larger size is below a smaller one by more than both intervals.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from _save import CONFIDENCE, column, run
from _transfer_note import Row, Tables, filled, table
from lowrank_theory._files import write_atomically
from lowrank_theory.networks import (
    Bytes,
    Compressed,
    alexnet_network,
    cifar10_data,
    compress,
    digits_data,
    digits_network,
    load_compressed,
)
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels

NOTE = Path(__file__).resolve().parents[1] / "paper_notes" / "after_deployment.md"
SEED = 0  # nothing is drawn
LARGEST = 0.5
SHARES = (0.5, 0.4, 0.3, 0.25, 0.2, 0.16, 0.13, 0.1, 0.08, 0.06, 0.05, 0.04)
ANEW = {"digits": SHARES, "alexnet": (0.25, 0.1, 0.05)}
CALIBRATION, HELD_OUT = 500, 1_000  # images of CIFAR-10


def digits() -> tuple[Any, ...]:
    split = digits_data()
    batches = np.array_split(split.training_images, 4)
    held_out = split.held_out_images, split.held_out_labels
    return (lambda network, images: network(images)), digits_network(), batches, held_out


def alexnet() -> tuple[Any, ...]:
    network, parameters = alexnet_network()
    data = cifar10_data(CALIBRATION)
    batches = np.array_split(data.training_images, 10)
    held_out = data.held_out_images[:HELD_OUT], data.held_out_labels[:HELD_OUT]
    return network.apply, parameters, batches, held_out


NETWORKS = {"digits": digits, "alexnet": alexnet}


def accuracy(function: Any, parameters: Any, held_out: tuple[Any, Any]) -> dict[str, float]:
    """The share that is right, and its exact interval."""
    images, labels = held_out
    right = int(np.sum(np.argmax(jax.jit(function)(parameters, images), axis=1) == labels))
    found = stats.binomtest(right, len(labels)).proportion_ci(CONFIDENCE)
    return {"mean": right / len(labels), "low": found.low, "high": found.high}


def measure(*, quick: bool) -> dict[str, Any]:
    names = ["digits"] if quick else list(NETWORKS)
    return {
        "largest": LARGEST,
        "calibration_images": CALIBRATION,
        "networks": {name: of_network(ANEW[name], *NETWORKS[name]()) for name in names},
    }


def of_network(
    again: tuple[float, ...], function: Any, parameters: Any, batches: Any, held_out: Any
) -> dict[str, Any]:
    def compressed(share: float, **options: Any) -> Compressed:
        return compress(function, parameters, batches, Bytes(share), **options)

    largest = compressed(LARGEST, every_size=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.safetensors"
        largest.save(file)
        size = file.stat().st_size
        kept = load_compressed(file, function, parameters)
    rows = []
    for share in SHARES:
        start = time.process_time()
        try:
            cut = kept.at(share)
        except ValueError:  # less than rank 1 everywhere
            continue
        seconds = time.process_time() - start
        row = {
            "share": share,
            "ranks": [layer.rank for layer in cut.layers.values()],
            "loss": cut.provenance["planned"],
            "accuracy": accuracy(cut.function, cut.parameters, held_out),
            "milliseconds": round(1e3 * seconds, 1),
            "anew": None,
        }
        if share in again:
            anew = compressed(share)
            row["anew"] = {
                "ranks": [layer.rank for layer in anew.layers.values()],
                "loss": anew.provenance["planned"],
                "accuracy": accuracy(anew.function, anew.parameters, held_out),
            }
        rows.append(row)
        print(row, flush=True)
    dense = largest.dense_storage_bytes + largest.other_storage_bytes
    return {
        "dense": accuracy(function, parameters, held_out),
        "held_out_images": len(held_out[1]),
        "dense_bytes": dense,
        "largest_bytes": largest.storage_bytes + largest.other_storage_bytes,
        "file_bytes": size,
        "rises": rises([row["accuracy"] for row in rows]),
        "rows": rows,
    }


def rises(accuracies: list[dict[str, float]]) -> bool:
    """From large to small, no larger size is surely worse than a smaller one."""
    return all(
        larger["high"] >= smaller["low"]
        for k, larger in enumerate(accuracies)
        for smaller in accuracies[k + 1 :]
    )


def draw(numbers: dict[str, Any]) -> Figure:
    networks = numbers["networks"]
    figure, drawn = panels(len(networks), columns=2, width=4.8, height=3.6)
    for panel, (name, found) in zip(drawn, networks.items(), strict=True):
        shares = 100 * column(found["rows"], "share")
        panel.axhline(100 * found["dense"]["mean"], **LIMIT, label="uncompressed")
        low, mean, high = (
            100 * column(found["rows"], "accuracy", part) for part in ("low", "mean", "high")
        )
        panel.plot(shares, mean, **SERIES[0], markersize=4, label="cut from one file")
        panel.fill_between(shares, low, high, color=SERIES[0]["color"], alpha=0.15, linewidth=0)
        anew = [row for row in found["rows"] if row["anew"] is not None]
        style: dict[str, Any] = {**SERIES[1], "linestyle": "", "fillstyle": "none"}
        means = 100 * column(anew, "anew", "accuracy", "mean")
        panel.plot(100 * column(anew, "share"), means, **style, label="compressed anew")
        panel.set_xscale("log")
        ticks = [4, 6, 10, 20, 30, 50]
        panel.set_xticks(ticks, [str(each) for each in ticks])
        panel.set_xticks([], minor=True)
        panel.set_xlabel("bytes of the weights (% of dense)")
        panel.set_ylabel("held-out accuracy (%)")
        panel.set_title(f"{name}, {found['held_out_images']} images")
    legend_above(figure, drawn[0], 3)
    return figure


def _sizes(numbers: Row) -> str:
    networks = numbers["networks"]

    def cells(row: Row) -> list[str]:
        cut = row["accuracy"]
        interval = f"{100 * cut['mean']:.1f} ({100 * cut['low']:.1f}–{100 * cut['high']:.1f})"
        anew = row["anew"]
        return [interval, "" if anew is None else f"{100 * anew['accuracy']['mean']:.1f}"]

    shares = [row["share"] for row in next(iter(networks.values()))["rows"]]
    of_each = [{row["share"]: cells(row) for row in each["rows"]} for each in networks.values()]
    missing = ["", ""]
    rows = [
        [f"{100 * share:.0f} %", *(cell for each in of_each for cell in each.get(share, missing))]
        for share in shares
    ]
    whole = [f"{100 * found['dense']['mean']:.1f}" for found in networks.values()]
    dense = ["dense", *(cell for each in whole for cell in (each, ""))]
    header = ["bytes", *(f"{name}, {how}" for name in networks for how in ("cut", "anew"))]
    return table(header, [dense, *rows])


def _files(numbers: Row) -> str:
    rows = [
        [
            name,
            f"{found['dense_bytes']:,}",
            f"{found['largest_bytes']:,}",
            f"{found['file_bytes']:,}",
            f"{len(found['rows'])}",
            f"{max(row['milliseconds'] for row in found['rows']):.0f}",
        ]
        for name, found in numbers["networks"].items()
    ]
    header = ["", "dense, bytes", "largest, bytes", "file, bytes", "sizes", "slowest cut, ms"]
    return table(header, rows)


TABLES: Tables = {"sizes": ("every_size", _sizes), "files": ("every_size", _files)}


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
    if "--quick" not in sys.argv:
        text = filled(NOTE.read_text(), NOTE.parents[1] / "figures", TABLES)
        write_atomically(NOTE, text.encode())
