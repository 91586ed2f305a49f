"""`README.md` and `benchmarks.svg`, from `results.json` and nothing else."""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lowrank_theory._files import write_atomically
from lowrank_theory.plotting import LIMIT, SERIES, panels

Rows = Sequence[Mapping[str, Any]]
NAME = "benchmarks"

_TOP = """# Benchmarks

`make bench` measures everything below and writes this page, `results.json` and the picture; no
figure is typed by hand. {machine}

Every comparison is one run of one process: ours and the others take turns, each is warm
(compilation is excluded), results are waited for, and all use the same threads and start from the
same numbers in memory. *Ratio* is the median over the repetitions of the other's time over ours
(above one, ours is faster), with the least and the largest. *Error* is the output error over that
of the best layer of the rank, both computed in float64 with NumPy and SciPy alone. The others are
sequences written anew from the published formulas, in NumPy and SciPy and, where it is installed,
in PyTorch.

![Time of the finish, accuracy with outliers, and growth](benchmarks.svg)
"""
_ACCUMULATE = """`calibrate` over batches of float32 rows, four for each input, beside float64
products of square matrices that multiply as often as all products of two columns take: the ratio is
the share of the machine's measured rate. It may exceed one, since half of a Gram mirrors the other.

"""
_FINISH = """Square float32 weights, activations whose scales decay as a power law. What was
accumulated is at hand on both sides: the float64 Gram or, for COALA, the triangular factor.
*Calibrate and finish* starts from the activations, four rows for each input. The randomized finish
certifies an excess of the squared error of at most 1 %, with a failure probability of at most one
in a million.

"""
_ACCURACY = """The largest error over the optimum among {seeds} layers of 256 x 192, rank 48, with
1,024 float32 rows in which four directions, spread over all inputs, are as many times as large as
the bulk as the heading says. ✓: all are certified; otherwise how many are: the error of the others
comes without a promise. *Blind* layers hardly answer to the massive directions. A sketch is asked
for 1 % of the squared error, which is 1.005 here. †: how often the sequence failed.

"""
_VERIFICATION = """`verify` on `planted_rank.gaussian`, layers of 64 x 48 with 128 rows, beside the
loop of `_loop.py`: both draw, recover and bound every instance, those of the two controls too.

"""
_PROPERTY_TESTS = """100 examples of a published strategy, asserting one bound, under the default
settings of hypothesis but for its deadline: a new process on one core, imports included, nothing
compiled before. At most 20 s are wanted.

"""
_LAW = """What two spectra say of every rank where the rotation is random, `tail_shares`: a new
process on one core. The first call compiles; of the others the median, on the wall and of the
processor. At most 2 s are wanted at 4096 inputs.

"""
_GROWTH = """Ours alone: a Gram of as many rows as inputs, and the finish at a sixteenth of the full
rank.

"""


def write(results: Path) -> None:
    """Write the page and the picture beside the results."""
    rows = json.loads(results.read_text())
    write_atomically(results.with_name("README.md"), page(rows).encode())
    with matplotlib.rc_context({"svg.hashsalt": NAME}):  # the same numbers, the same file
        picture = io.BytesIO()
        draw(rows).savefig(picture, format="svg", metadata={"Date": None})
    write_atomically(results.with_name(f"{NAME}.svg"), picture.getvalue())


def page(rows: Rows) -> str:
    """The page."""
    parts = [_TOP.format(machine=_machine(rows))]
    for title, about, table in (
        ("Targets", "", _targets),
        ("Accumulate", _ACCUMULATE, _accumulate),
        ("Finish", _FINISH, _finish),
        ("Accuracy", _ACCURACY.format(seeds=_seeds(rows)), _accuracy),
        ("Verification", _VERIFICATION, _verification),
        ("Property tests", _PROPERTY_TESTS, _property_tests),
        ("Law of two spectra", _LAW, _law),
        ("Growth", _GROWTH, _growth),
    ):
        body = table(rows)
        if body:
            parts.append(f"## {title}\n\n{about}{body}")
    return "\n".join(parts)


def _machine(rows: Rows) -> str:
    """In a sentence for each machine that took figures."""
    sentences = []
    # The fingerprint of the code says nothing to a reader.
    for made in _distinct({**row["made"], "code": None} for row in rows):
        versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
        threads = ", ".join(f"{name}={value}" for name, value in made["threads"].items())
        settings = f" with {threads}" if threads else ""
        on = "" if made["device"] == "cpu" else f", {made['device']}"
        sentences.append(
            f"Taken on {made['cores']} cores of {made['processor']}, {made['memory_gib']} GiB{on}"
            f"{settings}: {versions}" + ("; a quick run." if made["quick"] else ".")
        )
    return " ".join(sentences)


def _seeds(rows: Rows) -> int:
    return max((row["seeds"] for row in _of(rows, "accuracy")), default=0)


def _distinct(items: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for item in items:
        if item not in found:
            found.append(item)
    return found


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(cells) for cells in body]
    return "\n".join(f"| {line} |" for line in lines) + "\n" if len(lines) > 2 else ""


def _of(rows: Rows, *starts: str) -> Rows:
    return [row for row in rows if row["case"].startswith(starts)]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _ratio(row: Mapping[str, Any]) -> str:
    low, high = row["spread"]
    return f"{row['ratio']:.2f} ({low:.2f} \u2013 {high:.2f})"


def _error(value: float | None) -> str:
    """Five digits near one, three beyond."""
    if value is None:
        return ""
    return f"{value:.5f}" if value < 2 else f"{value:.3g}"


def _targets(rows: Rows) -> str:
    return _table(
        ("case", "ours", "beside", "wanted", "ratio", ""),
        (
            (
                row["case"],
                row["ours"],
                row["peer"],
                f"\u2265 {row['target']:.3g}",
                _ratio(row),
                "met" if row["ratio"] >= row["target"] else "missed",
            )
            for row in rows
            if row.get("target")
        ),
    )


def _accumulate(rows: Rows) -> str:
    rates = _table(
        ("ours", "rows", "inputs", "time", "product", "ratio"),
        (
            (
                f"`{row['ours']}`",
                f"{row['rows']:,}",
                str(row["inputs"]),
                _time(row["ours_s"]),
                _time(row["peer_s"]),
                _ratio(row),
            )
            for row in _of(rows, "accumulate")
        ),
    )
    memory = _table(
        ("memory", "bytes", "time", "beside", "bytes", "bytes more"),
        (
            (
                row["ours"],
                f"{row['ours_bytes'] / 2**20:.1f} MiB",
                _time(row["ours_s"]),
                row["peer"],
                f"{row['peer_bytes'] / 2**20:.1f} MiB",
                f"{100 * (1 / row['ratio'] - 1):.1f} %",
            )
            for row in _of(rows, "memory")
        ),
    )
    return "\n".join(table for table in (rates, memory) if table)


def _finish(rows: Rows) -> str:
    return _table(
        ("case", "ours", "time", "error", "beside", "time", "error", "ratio"),
        (
            (
                row["case"].replace("finish, ", "", 1)
                if row["case"].startswith("finish")
                else row["case"],
                row["ours"] + ("" if row["certified"] else " (not certified)"),
                _time(row["ours_s"]),
                _error(row["ours_error"]),
                row["peer"],
                _time(row["peer_s"]),
                _error(row["peer_error"]),
                _ratio(row),
            )
            for row in _of(rows, "finish", "calibrate")
        ),
    )


def _accuracy(rows: Rows) -> str:
    def cell(row: Mapping[str, Any]) -> str:
        if row["ours"]:
            part = f"{row['certified_seeds']}/{row['seeds']}"
            return f"{_error(row['ours_error'])} {chr(0x2713) if row['certified'] else part}"
        failed = f" \u2020{row['failures']}/{row['seeds']}" if row["failures"] else ""
        return f"{_error(row['peer_error'])}{failed}".strip()

    tables = []
    for blind in (False, True):
        found = [row for row in _of(rows, "accuracy") if row["blind"] is blind]
        ratios = _distinct(row["outliers"] for row in found)
        names = _distinct(row["ours"] or row["peer"] for row in found)
        cells = {(row["ours"] or row["peer"], row["outliers"]): cell(row) for row in found}
        head = ("blind layer" if blind else "layer", *(f"{ratio:g}" for ratio in ratios))
        body = ((name, *(cells[name, ratio] for ratio in ratios)) for name in names)
        tables.append(_table(head, body))
    return "\n".join(table for table in tables if table)


def _verification(rows: Rows) -> str:
    return _table(
        ("ours", "instances per second", "beside", "instances per second", "ratio"),
        (
            (
                row["ours"],
                f"{row['ours_per_s']:.0f}",
                row["peer"],
                f"{row['peer_per_s']:.0f}",
                _ratio(row),
            )
            for row in _of(rows, "verification")
        ),
    )


def _property_tests(rows: Rows) -> str:
    return _table(
        ("strategy", "statement", "time", "of the processor", "examples", ""),
        (
            (
                f"`{row['strategy']}`",
                f"`{row['statement']}`",
                _time(row["ours_s"]),
                _time(row["processor_s"]),
                f"{row['examples']}",
                _met(row),
            )
            for row in _of(rows, "property test")
        ),
    )


def _met(row: Mapping[str, Any]) -> str:
    """Whether the time is what was wanted, where anything was."""
    if row["wanted_s"] is None:
        return ""
    return "met" if row["ours_s"] <= row["wanted_s"] else "missed"


def _law(rows: Rows) -> str:
    return _table(
        ("inputs", "first call", "time", "of the processor", ""),
        (
            (
                f"{row['inputs']}",
                _time(row["first_s"]),
                _time(row["ours_s"]),
                _time(row["processor_s"]),
                _met(row),
            )
            for row in _of(rows, "law")
        ),
    )


def _growth(rows: Rows) -> str:
    by_inputs = [row for row in _of(rows, "growth") if "inputs" in row]
    stages = _distinct(row["stage"] for row in by_inputs)
    times = {(row["inputs"], row["stage"]): row["ours_s"] for row in by_inputs}
    sizes = _distinct(row["inputs"] for row in by_inputs)
    first = _table(
        ("inputs", *stages),
        ((str(size), *(_time(times[size, stage]) for stage in stages)) for size in sizes),
    )
    others = [row for row in _of(rows, "growth") if "inputs" not in row]
    second = _table(
        ("case", "ours", "time"), ((r["case"], r["ours"], _time(r["ours_s"])) for r in others)
    )
    return "\n".join(table for table in (first, second) if table)


def draw(rows: Rows) -> Figure:
    """Time of the finish, accuracy, and growth."""
    figure, (finish, accuracy, growth) = panels(3, width=4.6)
    _draw_finish(finish, rows)
    _draw_accuracy(accuracy, rows)
    _draw_growth(growth, rows)
    for panel in (finish, accuracy, growth):
        if panel.get_legend_handles_labels()[0]:
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.legend(frameon=False, fontsize=7.5)
    return figure


def _lines(
    panel: Any, points: Mapping[str, Sequence[tuple[float, float]]], styles: Callable[[int], Any]
) -> None:
    for index, (name, pairs) in enumerate(points.items()):
        panel.plot(*np.transpose(sorted(pairs)), **styles(index), markersize=4, label=name)


def _draw_finish(panel: Any, rows: Rows) -> None:
    points: dict[str, dict[float, float]] = {}
    for row in _of(rows, "finish"):
        if row["decay"] == 1.0:
            ours = row["ours"].partition(",")[0] + f", {row['route']}"
            points.setdefault(ours, {})[row["inputs"]] = row["ours_s"]
            if row["route"] == "exact":
                points.setdefault(row["peer"], {})[row["inputs"]] = row["peer_s"]
    named = {name: list(pairs.items()) for name, pairs in points.items()}
    _lines(panel, named, lambda index: SERIES[index % len(SERIES)])
    panel.set_xlabel("inputs = outputs")
    panel.set_ylabel("seconds of the finish, decay 1")


def _draw_accuracy(panel: Any, rows: Rows) -> None:
    """Hollow where ours is not certified."""
    found = [row for row in _of(rows, "accuracy") if not row["blind"]]
    for index, name in enumerate(_distinct(row["ours"] for row in found if row["ours"])):
        group = [row for row in found if row["ours"] == name]
        excess = [max(row["ours_error"] - 1, 1e-16) for row in group]
        style = SERIES[index]
        panel.plot([row["outliers"] for row in group], excess, **{**style, "marker": ""})
        for row, value in zip(group, excess, strict=True):
            fill = style["color"] if row["certified"] else "white"
            marker = {"color": style["color"], "marker": style["marker"]}
            panel.plot(row["outliers"], value, **marker, markerfacecolor=fill, markersize=5)
        panel.plot([], [], **style, markersize=5, label=name.replace("ActivationWeighted, ", ""))
    for index, name in enumerate(("COALA", "SVD-LLM")):
        group = [row for row in found if row["peer"] == name and row["peer_error"]]
        excess = [max(row["peer_error"] - 1, 1e-16) for row in group]
        style = {**SERIES[4 + index], "alpha": 0.8}
        if group:
            panel.plot([r["outliers"] for r in group], excess, **style, markersize=4, label=name)
    if found:
        panel.axhline(1e-3, **LIMIT, label="0.1 % of the optimum")
    panel.set_xlabel("massive directions / bulk")
    panel.set_ylabel("error / optimum \u2212 1 (hollow: not certified)")


def _draw_growth(panel: Any, rows: Rows) -> None:
    points: dict[str, list[tuple[float, float]]] = {}
    for row in _of(rows, "growth"):
        if "inputs" in row:
            points.setdefault(row["stage"], []).append((row["inputs"], row["ours_s"]))
    _lines(panel, points, lambda index: SERIES[index])
    panel.set_xlabel("inputs = outputs = rows")
    panel.set_ylabel("seconds, ours")
