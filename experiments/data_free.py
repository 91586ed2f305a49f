"""Compression without data: calibrations made from batch normalisation beside real ones.

Left, the network of convolutions for digits whose channels were multiplied by random factors:
accuracy at numbers of bits, and at shares of the entries. Third, ResNet-20 at numbers of bits.
Right, each layer of it at three quarters of its parameters: what the best layer for drawn inputs
loses on real ones over the least, and what `price_of_ignoring_data.stale_calibration` says that
this is at most.

    python experiments/data_free.py [--quick]

A run that was stopped goes on from the pieces that it finished.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import _data_free
import _data_free_digits
import _data_free_resnet
import _data_free_scales
from _save import run
from _transfer import SKIPPED, rounded
from _transfer_note import Row, Tables, filled, table
from lowrank_theory._files import write_atomically
from lowrank_theory.models import catalogue
from lowrank_theory.plotting import LIMIT, SERIES, panels
from lowrank_theory.studies.transfer import Pieces

SEED = 0
FOLDER = Path(__file__).resolve().parent
KEPT = FOLDER.parent / "out" / "data_free"
NOTE = FOLDER.parent / "paper_notes" / "constrained.md"

# What a like network gave elsewhere, four trainings: accuracies at 8, 6, 4, 3 and 2 bits.
EXPECTED = {
    "raw, one grid": (0.551, 0.128, 0.103, 0.093, 0.091),
    "raw, a grid for each output": (0.992, 0.945, 0.348, 0.132, 0.114),
    "raw, independent": (0.914, 0.266, 0.097, 0.100, 0.101),
    "equalised": (0.993, 0.992, 0.984, 0.899, 0.176),
    "equalised, independent": (0.993, 0.992, 0.987, 0.966, 0.709),
    "equalised, real, second order": (0.993, 0.994, 0.990, 0.985, 0.932),
}
EXPECTED_PRUNED = {  # at 50 % and 30 % of the entries
    "raw": (0.193, 0.119),
    "equalised": (0.928, 0.504),
    "equalised, independent": (0.969, 0.802),
    "equalised, independent, scored": (0.975, 0.835),
}
# What is drawn.
ROUNDED = (
    "raw, one grid",
    "raw, a grid for each output",
    "equalised",
    "equalised, independent",
    "equalised, independent, scales learned",
    "equalised, independent, all learned",
    "equalised, correlated, all learned",
    "equalised, real, all learned",
)
PRUNED = (
    "raw",
    "as trained",
    "equalised",
    "equalised, independent",
    "equalised, independent, refitted",
    "as trained, correlated, refitted",
    "equalised, correlated, refitted",
    "equalised, real, refitted",
)
RESNET_ROUNDED = (
    "none",
    "independent",
    "independent, scales learned",
    "independent, all learned",
    "correlated, second order",
    "correlated, all learned",
    "real, second order",
    "real, all learned",
)


def measure(*, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, module, measured in (
        ("digits", _data_free_digits, _data_free_digits.measure),
        ("resnet20", _data_free_resnet, _data_free_resnet.measure),
        ("resnet56", _data_free_resnet, _data_free_resnet.measure_deeper),
    ):
        files = (_data_free, _data_free_scales, module)
        source = "".join(Path(str(each.__file__)).read_text() for each in files)
        pieces = Pieces(None if quick else KEPT / name, {"seed": SEED, "source": source})

        def piece(part: str, make: Callable[[], Any], pieces: Pieces = pieces) -> Any:
            print(part, flush=True)
            return pieces.get(part, make)["found"]

        found[name] = measured(piece, quick=quick)
        pieces.prune()
    return rounded(found)


def draw(numbers: dict[str, Any]) -> Figure:
    digits, resnet = numbers["digits"], numbers["resnet20"]
    figure, (bits, entries, residual, layers) = panels(4, columns=2, width=5.2, height=3.6)
    _accuracies(bits, digits["rounded"], ROUNDED, "bits", "digits, rounded")
    shares = "share of the entries kept"
    _accuracies(entries, digits["pruned"], PRUNED, shares, "digits, pruned")
    title = "ResNet-20, a grid for each output"
    _accuracies(residual, resnet["rounded"], RESNET_ROUNDED, "bits", title)
    rows = resnet["layers"]
    for style, kind in zip(SERIES, ("none", "independent", "correlated"), strict=False):
        places = range(1, len(rows) + 1)
        ratios = [row[kind]["realised"] for row in rows]
        layers.plot(places, ratios, **{**style, "markersize": 4}, label=kind)
        bounds = [(k, row[kind]["bound"]) for k, row in zip(places, rows, strict=True)]
        known = [(k, bound) for k, bound in bounds if bound is not None]
        line: dict[str, Any] = {**LIMIT, "color": style["color"], "linewidth": 0.8}
        layers.plot(*zip(*known, strict=True), **line)
    layers.set_yscale("log")
    layers.set_xlabel("layer of ResNet-20")
    layers.xaxis.set_major_locator(MaxNLocator(integer=True))
    layers.set_ylabel("error over the least; lines: bounds")
    layers.legend(fontsize=7, frameon=False)
    return figure


def _accuracies(
    panel: Axes, found: Mapping[str, Any], names: Sequence[str], label: str, title: str
) -> None:
    for style, name in zip(SERIES, names, strict=False):
        rows = found["columns"][name]
        means = [row["accuracy"]["mean"] for row in rows]
        low, high = ([row["accuracy"][end] for row in rows] for end in ("low", "high"))
        panel.plot(found["sizes"], means, **{**style, "markersize": 4}, label=name)
        panel.fill_between(found["sizes"], low, high, color=style["color"], alpha=0.1, linewidth=0)
    panel.set_xlabel(label)
    panel.set_ylabel("accuracy")
    panel.set_title(title, fontsize=10)
    panel.legend(fontsize=6, frameon=False)


# --- the tables of the note -----------------------------------------------------------------------


def _share(value: float) -> str:
    return f"{value:.3f}"


def _accuracy(row: Row) -> str:
    half = (row["accuracy"]["high"] - row["accuracy"]["low"]) / 2
    return f"{_share(row['accuracy']['mean'])} ± {_share(half)}"


def _of_columns(found: Row, expected: Mapping[str, Sequence[float]], sizes: Sequence[Any]) -> str:
    rows = []
    for name, each in found["columns"].items():
        by_size = {row["size"]: row for row in each}
        known = " ".join(_share(value) for value in expected.get(name, ()))
        beside = [known] if expected else []
        rows.append([name, *(_accuracy(by_size[size]) for size in sizes), *beside])
    beside = ["expected"] if expected else []
    return table(["calibration", *map(str, sizes), *beside], rows)


def _digits_rounded(numbers: Row) -> str:
    found = numbers["digits"]["rounded"]
    return _of_columns(found, EXPECTED, found["sizes"])


def _digits_pruned(numbers: Row) -> str:
    return _of_columns(numbers["digits"]["pruned"], EXPECTED_PRUNED, (0.5, 0.3, 0.2, 0.1))


def _digits_allocated(numbers: Row) -> str:
    found = numbers["digits"]["allocated"]
    return _of_columns(found, {}, found["sizes"])


def _removed(numbers: Row) -> str:
    found = numbers["digits"]["removed"]
    return table(
        ["calibration", "entries removed"],
        [[name, f"{100 * share:.0f} %"] for name, share in found.items()],
    )


def _losses(numbers: Row) -> str:
    rows = []
    for name, network in (("digits", numbers["digits"]), ("ResNet-20", numbers["resnet20"])):
        for column, each in network["rounded"]["columns"].items():
            losses = [f"{row['loss']['mean']:.2g}" for row in each]
            rows.append([name, column, *losses])
    return table(["network", "calibration", *map(str, _data_free_resnet.BITS)], rows)


def _gains(numbers: Row) -> str:
    rows = []
    for name, network in (("digits", numbers["digits"]), ("ResNet-20", numbers["resnet20"])):
        rows += [
            [name, gain["learned"], gain["over"], *map(_points, gain["points"])]
            for gain in network["rounded"]["gains"]
        ]
    sizes = map(str, _data_free_resnet.BITS)
    return table(["network", "calibration", "over", *sizes], rows)


def _ways(numbers: Row) -> str:
    rows = []
    for name, each in numbers["resnet20"]["ways"].items():
        lost = [f"{row['mean']:.3f} ({row['largest']:.2f})" for row in each["bits"].values()]
        rows.append([name, *lost, f"{each['seconds']:.1f}"])
    bits = [f"{bits} bits" for bits in _data_free_scales.BITS]
    return table(["scales and codes", *bits, "seconds"], rows)


def _sizes(numbers: Row) -> str:
    rows = []
    for images, found in numbers["resnet20"]["sizes"].items():
        for name, each in found.items():
            bits, ranks = each["rounded"], each["low_rank"]
            rows.append(
                [
                    images,
                    name,
                    _accuracy(bits),
                    f"{bits['loss']['mean']:.2g}",
                    _accuracy(ranks),
                    f"{ranks['loss']['mean']:.2g}",
                    f"{each['seconds']:.0f}",
                    f"{ranks['seconds']:.0f}",
                ]
            )
    header = ["images", "calibration", "2 bits", "output loss", "low rank", "output loss"]
    return table([*header, "seconds to observe", "seconds of low rank"], rows)


def _resnet_rounded(numbers: Row) -> str:
    rows = []
    for name, each in numbers["resnet20"]["rounded"]["columns"].items():
        cells = [f"{_share(row['accuracy']['mean'])} ({_points(row['lost'])})" for row in each]
        rows.append([name, *cells])
    sizes = numbers["resnet20"]["rounded"]["sizes"]
    return table(["calibration", *(f"{size} bits" for size in sizes)], rows)


def _points(found: Row) -> str:
    """An interval of a difference, in points."""
    return f"{100 * found['low']:.1f} to {100 * found['high']:.1f}"


def _resnet_low_rank(numbers: Row) -> str:
    rows = [
        [
            name,
            _share(row["accuracy"]["mean"]),
            _points(row["lost"]),
            _points(row["behind_real"]),
            f"{row['loss']['mean']:.2g}",
            f"{row['seconds']:.0f}",
        ]
        for name, row in numbers["resnet20"]["low_rank"].items()
    ]
    header = ["calibration", "accuracy", "points lost", "points behind real data", "output loss"]
    return table([*header, "seconds"], rows)


def _seconds(numbers: Row) -> str:
    rows = [
        [name, *(f"{numbers[key]['seconds'][kind]:.1f}" for kind in KINDS)]
        for name, key in (("digits, 1,200 images", "digits"), ("ResNet-20, 256 images", "resnet20"))
    ]
    return table(["network", *KINDS], rows)


def _layers(numbers: Row) -> str:
    rows = []
    for row in numbers["resnet20"]["layers"]:
        cells = [f"{row['rank']} of {row['live']} × {row['outputs']}"]
        for kind in ("none", "independent", "correlated"):
            above = row[kind]["bound"]
            bound = "∞" if above is None else f"{above:.3g}"
            cells.append(f"{row[kind]['realised']:.3f} ≤ {bound}")
        rows.append([f"`{row['layer']}`", *cells])
    return table(["layer", "rank", "none", "independent", "correlated"], rows)


def _medians(numbers: Row) -> str:
    rows = []
    for name, key in (("ResNet-20", "resnet20"), ("ResNet-56", "resnet56")):
        found = numbers[key]["layers"]
        for kind in ("none", "independent", "correlated"):
            ratios = [row[kind]["realised"] for row in found]
            bounds = [row[kind]["bound"] for row in found if row[kind]["bound"] is not None]
            held = all(row[kind]["realised"] <= (row[kind]["bound"] or np.inf) for row in found)
            cells = [np.median(ratios), np.max(ratios), np.median(bounds)]
            shown = [f"{cell:.3g}" for cell in cells]
            rows.append([name, kind, *shown, f"{len(bounds)} of {len(found)}", str(held).lower()])
    header = ["network", "calibration", "median", "largest", "median bound", "finite", "all hold"]
    return table(header, rows)


KINDS = ("real", "independent", "correlated")
TABLES: Tables = {
    "digits_rounded": ("data_free", _digits_rounded),
    "digits_pruned": ("data_free", _digits_pruned),
    "digits_allocated": ("data_free", _digits_allocated),
    "removed": ("data_free", _removed),
    "gains": ("data_free", _gains),
    "ways": ("data_free", _ways),
    "sizes": ("data_free", _sizes),
    "resnet_rounded": ("data_free", _resnet_rounded),
    "losses": ("data_free", _losses),
    "resnet_low_rank": ("data_free", _resnet_low_rank),
    "seconds": ("data_free", _seconds),
    "layers": ("data_free", _layers),
    "medians": ("data_free", _medians),
}


if __name__ == "__main__":
    missing = catalogue.available("resnet20")
    if missing and "--draw" not in sys.argv:
        print(missing, file=sys.stderr)
        sys.exit(SKIPPED)
    run(__file__, measure, draw, seed=SEED)
    if "--quick" not in sys.argv:
        text = filled(NOTE.read_text(), NOTE.parents[1] / "figures", TABLES)
        write_atomically(NOTE, text.encode())
