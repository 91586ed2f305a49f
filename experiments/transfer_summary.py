"""What the studies of trained networks say together, for `paper_notes/transfer.md`.

It reads `figures/transfer_<network>.json` of the networks that have been studied, and sets the
tables of the note, that of `transfer_calibration.py` among them.

python experiments/transfer_summary.py [--quick]
"""

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from _save import column, run
from _transfer_note import AGNOSTIC, DRIVEN, SAME, SEQUENTIAL, Row, at, filled
from lowrank_theory._files import write_atomically
from lowrank_theory.models.catalogue import CASES
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.studies.layer_rows import half_rank
from lowrank_theory.studies.ways import OTHERS

SEED = 0  # that of the studies; nothing is drawn here
STANDARD = (AGNOSTIC, SAME, DRIVEN, SEQUENTIAL)
ROOT = Path(__file__).resolve().parents[1]
NOTE = ROOT / "paper_notes" / "transfer.md"
PLOTTED = ("data_agnostic_error", "price_bound", "recovery_error", "recovery_bound")
RESOLVED = 1e-6  # a relative error below which there may be but rounding
TOLERANCE = 1e-4  # the studies keep five digits


# --- what is said of one network ------------------------------------------------------------------


def spread(values: Iterable[float | None]) -> Row | None:
    """The least, the middle and the largest of those that exist."""
    found = np.array([value for value in values if value is not None], float)
    if not found.size:
        return None
    return {"least": found.min(), "median": float(np.median(found)), "largest": found.max()}


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """`None` where there is nothing to be compared; what is rounding counts as `RESOLVED`."""
    if numerator is None or denominator is None or max(numerator, denominator) <= RESOLVED:
        return None
    return max(numerator, RESOLVED) / max(denominator, RESOLVED)


def ratios(rows: Sequence[Row], numerator: str, denominator: str) -> list[float | None]:
    return [ratio(row[numerator], row[denominator]) for row in rows]


def compared(rows: Sequence[Row], better: str, worse: str) -> Row:
    """How many times smaller one error is than another, and where it is not smaller."""
    found = ratios(rows, worse, better)
    return {
        "pairs": sum(each is not None for each in found),
        "gain": spread(found),
        "gain_at_half_rank": spread(ratios(_halves(rows), worse, better)),
        "exceptions": [
            {"layer": row["layer"], "rank": row["rank"], "times": each}
            for row, each in zip(rows, ratios(rows, better, worse), strict=True)
            if each is not None and each > 1 + TOLERANCE
        ],
    }


def bounded(rows: Sequence[Row], error: str, bound: str) -> Row:
    """How many times the error its bound is, and how often the bound says nothing."""
    found = ratios(rows, bound, error)
    return {
        "looseness": spread(found),
        "looseness_at_half_rank": spread(ratios(_halves(rows), bound, error)),
        "pairs": sum(each is not None for each in found),
        "violated": sum(each is not None and each < 1 - TOLERANCE for each in found),
        "above_the_outputs": sum(row[bound] is not None and row[bound] >= 1 for row in rows),
    }


def _halves(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["rank"] == half_rank(*row["shape"])]


def failing(study: Row) -> list[Row]:
    """Each hypothesis that fails somewhere: in how many layers, and how far beyond the allowed."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in study["failing"]:
        found.setdefault((row["statement"], row["name"]), []).append(row)
    return [
        {
            "statement": statement,
            "name": name,
            "layers": len(group),
            "of": len(study["layers"]),
            "times_allowed": spread(ratio(row["statistic"], row["allowed"]) for row in group),
        }
        for (statement, name), group in found.items()
    ]


def sizes(study: Row, methods: Collection[str]) -> list[Row]:
    """The network at each size, by these methods, with its metric relative to that of the dense
    one.
    """
    dense = abs(study["metric"]["value"])
    sign = 1 if study["metric"]["larger_is_better"] else -1
    return [
        {
            "budget": row["budget"],
            "method": row["method"],
            "share": row["bytes"] / row["dense_bytes"],
            "multiply_adds": row["multiply_adds"] / row["dense_multiply_adds"],
            "error_held_out": row["error_held_out"],
            "error_calibration": row["error_calibration"],
            "output_loss": row["output_loss"],
            "certificate": row["certificate"],
            "metric": row["metric"],
            "difference": row["difference"],
            "low": row["low"],
            "high": row["high"],
            "relative_change": sign * row["difference"] / dense,
        }
        for row in study["networks"]
        if row["method"] in methods
    ]


def sequential(rows: Sequence[Row]) -> list[Row]:
    """The network's error, fitted one layer after the other, over that of layers fitted alone."""
    alone, one_by_one = at(rows, DRIVEN), at(rows, SEQUENTIAL)
    return [
        {
            "budget": budget,
            "calibration": one_by_one[budget]["error_calibration"] / row["error_calibration"],
            "held_out": one_by_one[budget]["error_held_out"] / row["error_held_out"],
        }
        for budget, row in alone.items()
    ]


def following(rows: list[Row]) -> Row:
    """How the metric follows the output error, over all sizes and methods: Spearman's correlation
    of the error with what the metric loses; the largest error at which no loss is measurable, the
    interval of the change reaching zero; the smallest at which one is.
    """
    error, change = column(rows, "error_held_out"), column(rows, "relative_change")
    ends = np.stack([column(rows, "low"), column(rows, "high")])
    open_ended = (ends[0] <= 0) & (ends[1] >= 0)
    constant = min(np.ptp(error), np.ptp(change)) == 0
    correlation: Any = None if constant else stats.spearmanr(error, -change)
    return {
        "correlation": None if constant else float(correlation.statistic),
        "largest_without_loss": max(error[open_ended], default=None),
        "smallest_with_loss": min(error[~open_ended & (change < 0)], default=None),
        "gains": int(np.sum(~open_ended & (change > 0))),
    }


def summary(study: Row) -> Row:
    """What is quoted of one network."""
    columns = study["rows"]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    residuals = [each["residual"] for each in study["layers"] if each["residual"]]
    certified = [row for row in study["half"]["certificates"] if row["certificate"] is not None]
    return {
        "title": study["title"],
        "metric": study["metric"],
        "layers": len(study["layers"]),
        "driven_and_agnostic": compared(rows, "data_driven_error", "data_agnostic_error"),
        "driven_and_diagonal": compared(rows, "data_driven_error", "diagonal_error"),
        "driven_over_optimum": spread(ratios(rows, "data_driven_error", "optimal_error")),
        "price": bounded(rows, "data_agnostic_error", "price_bound"),
        "recovery": bounded(rows, "recovery_error", "recovery_bound"),
        "edge_ratio": spread(each["edge_ratio"] for each in residuals),
        "distance": spread(each["distance"] for each in residuals),
        "effective_share": spread(
            each["effective_samples"] and each["effective_samples"] / each["samples"]
            for each in study["layers"]
        ),
        "failing": failing(study),
        "sizes": sizes(study, STANDARD),
        "others": sizes(study, [way.name for way in OTHERS]),
        "sequential": sequential(study["networks"]),
        "following": following(sizes(study, STANDARD)),
        "certificates": {
            "layers": spread(row["certificate"] for row in certified),
            "over_loss": spread(ratio(row["certificate"], row["loss"]) for row in certified),
            "vacuous": sum(row["certificate"] >= 1 for row in certified),
            "of": len(certified),
        },
        "composition": composed(study["half"]["composition"]),
        "times": study["half"]["times"],
        "plotted": {name: [row[name] for row in rows] for name in PLOTTED},
    }


def composed(found: Row) -> Row:
    """What the errors of layers predict of the network's, each over the measured one."""
    predictions = (
        "sum",
        "root_of_squares",
        "telescoping",
        "telescoping_bound",
        "residuals_bound",
    )
    return {
        "measured": found["measured"],
        **{name: ratio(found.get(name), found["measured"]) for name in predictions},
    }


def measure(*, quick: bool) -> Row:
    folder = ROOT / "out" / "figures" if quick else ROOT / "figures"
    files = {name: folder / f"transfer_{name}.json" for name in CASES}
    there = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
    if not there:
        sys.exit(f"{folder} has no transfer_<network>.json: run experiments/transfer_digits.py")
    missing = [name for name in CASES if name not in there]
    if missing:
        print(f"not studied yet: {', '.join(missing)}")
    networks = {name: summary(study) for name, study in there.items()}
    return {"missing": missing, "networks": networks}


# --- figure ---------------------------------------------------------------------------------------


def draw(numbers: Row) -> Figure:
    figure, axes = panels(6, width=4.2, height=3.6)
    for style, (name, found) in zip(SERIES, numbers["networks"].items(), strict=False):
        driven, agnostic, after = (
            list(at(found["sizes"], method).values()) for method in (DRIVEN, AGNOSTIC, SEQUENTIAL)
        )
        for index, value in enumerate(("error_held_out", "relative_change")):
            scale = 100 if value == "relative_change" else 1
            _by_share(axes[index], driven, scale, value, {**style, "linestyle": "-"}, name)
            hollow = {**style, "linestyle": ":", "markerfacecolor": "none"}
            _by_share(axes[index], agnostic, scale, value, hollow, None)
        shares = 100 * column(after, "share")
        both = found["sequential"]
        axes[2].plot(shares, column(both, "held_out"), **{**style, "linestyle": "-"}, label=name)
        hollow = {**style, "linestyle": ":", "markerfacecolor": "none"}
        axes[2].plot(shares, column(both, "calibration"), **hollow)
        for panel, (error, bound) in zip(axes[3:5], (PLOTTED[:2], PLOTTED[2:]), strict=True):
            _scatter(panel, found["plotted"][error], found["plotted"][bound], style)
        for rows, inside in ((driven, style["color"]), (agnostic, "none")):
            kind = {**style, "linestyle": "", "markerfacecolor": inside}
            lost = -100 * column(rows, "relative_change")
            axes[5].plot(column(rows, "error_held_out"), lost, **kind)
    _finish(axes)
    legend_above(figure, axes[0], 7)
    return figure


def _by_share(
    panel: Axes, rows: Sequence[Row], scale: float, value: str, style: Row, label: str | None
) -> None:
    values = scale * column(list(rows), value)
    panel.plot(100 * column(list(rows), "share"), values, **style, markersize=5, label=label)


def _scatter(panel: Axes, error: Sequence[Any], bound: Sequence[Any], style: Any) -> None:
    pairs = zip(error, bound, strict=True)
    drawn = [(x, y) for x, y in pairs if x is not None and y is not None and x > RESOLVED]
    kind = {**style, "linestyle": "", "markersize": 2.5, "alpha": 0.6, "rasterized": True}
    panel.plot(*np.array(drawn, float).reshape(-1, 2).T, **kind)


def _finish(axes: Sequence[Axes]) -> None:
    words = (
        ("bytes / dense (%)", "output error / outputs", "filled: fitted; hollow: truncated"),
        ("bytes / dense (%)", "change of the metric (%)", "filled: fitted; hollow: truncated"),
        (
            "bytes / dense (%)",
            "output error, sequential / alone",
            "filled: held out; hollow: calibration",
        ),
        ("error / outputs", "bound", "price of ignoring the data"),
        ("error / outputs", "bound", "recovery from the other half"),
        ("output error / outputs", "loss of the metric (%)", "metric and output error"),
    )
    for panel, (x, y, title) in zip(axes, words, strict=True):
        panel.set_xlabel(x)
        panel.set_ylabel(y)
        panel.set_title(title, fontsize=10)
    for index in (0, 3, 4):
        axes[index].set_yscale("log")
    for index in (3, 4, 5):
        axes[index].set_xscale("log")
    axes[1].set_yscale("symlog", linthresh=1)
    axes[5].set_yscale("symlog", linthresh=0.1)
    axes[1].axhline(0, **LIMIT)
    axes[2].axhline(1, **LIMIT)
    axes[5].axhline(0, **LIMIT)
    for panel in axes[3:5]:
        low, high = panel.get_xlim()
        panel.plot([low, high], [low, high], **LIMIT)


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
    if "--quick" not in sys.argv:
        write_atomically(NOTE, filled(NOTE.read_text(), ROOT / "figures").encode())
        print(f"filled the tables of {NOTE}")
