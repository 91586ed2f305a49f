"""The tables of `paper_notes/compare.md`, from the numbers of the figures.

python experiments/_compare_note.py
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from _compare import kept
from _transfer_note import Row, table
from lowrank_theory._files import write_atomically
from lowrank_theory.models.catalogue import CASES
from lowrank_theory.reports._page import number
from lowrank_theory.studies.compare import FAMILIES, FAMILY, Comparison
from lowrank_theory.studies.compare_rows import NetworkAtBudget
from lowrank_theory.studies.proxies import ERRORS

ROOT = Path(__file__).resolve().parents[1]
NOTE = ROOT / "paper_notes" / "compare.md"
AGAINST = (
    ("sparse", "data-agnostic"),
    ("sparse gpt", "data-driven"),
    ("sparse", "rounded"),
    ("sparse gpt", "gptq"),
    ("pruned and rounded", "rounded"),
)
SHOWN_PAIRS = 3


def networks() -> dict[str, Comparison]:
    """Those that were compared, in the order of the catalogue."""
    files = {name: ROOT / "figures" / f"compare_{name}.json" for name in CASES}
    return {name: kept(_read(file)) for name, file in files.items() if file.is_file()}


def _read(file: Path) -> Row:
    return json.loads(file.read_text())


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None else f" ({number(low, 2)} to {number(high, 2)})"


def metrics() -> str:
    """The metric of each network at each budget, by each method."""
    methods = list(FAMILY)
    rows = []
    for name, found in networks().items():
        at = {(row.budget, row.method): row for row in found.networks}
        rows.append([f"{name}, dense", number(found.metric.value, 4), *[""] * (len(methods) - 1)])
        for budget in found.budgets:
            cells = [number(at[budget, m].metric, 3) if (budget, m) in at else "–" for m in methods]
            rows.append([f"{name}, {_share(budget)}", *cells])
    return table(["network, bits", *methods], rows)


def against() -> str:
    """By how much one method's metric is better than that of another at equal bits."""
    rows = []
    for name, found in networks().items():
        sign = 1 if found.metric.larger_is_better else -1
        at = {(row.budget, row.method): row for row in found.networks}
        for budget in found.budgets:
            cells = []
            for one, other in AGAINST:
                first, second = at.get((budget, one)), at.get((budget, other))
                if first is None or second is None:
                    cells.append("–")
                else:
                    gain, half = _gain(first, second, sign)
                    cells.append(f"{gain:+.3f} ± {half:.3f}")
            if set(cells) != {"–"}:
                rows.append([f"{name}, {_share(budget)}", *cells])
    return table(["network, bits", *(f"{one} − {other}" for one, other in AGAINST)], rows)


def _gain(one: NetworkAtBudget, other: NetworkAtBudget, sign: int) -> tuple[float, float]:
    """With half an interval as if both changes were independent: pairs would make it narrower."""
    half = math.hypot(*((row.high - row.low) / 2 for row in (one, other)))
    return sign * (one.metric - other.metric), half


def findings() -> str:
    """At how many networks and budgets the first method is clearly better, or worse."""
    rows = []
    for one, other in AGAINST:
        cells = []
        for found in networks().values():
            sign = 1 if found.metric.larger_is_better else -1
            at = {(row.budget, row.method): row for row in found.networks}
            gains = [
                _gain(at[budget, one], at[budget, other], sign)
                for budget in found.budgets
                if (budget, one) in at and (budget, other) in at
            ]
            better = sum(gain > half for gain, half in gains)
            worse = sum(gain < -half for gain, half in gains)
            cells.append(f"{better} / {worse} / {len(gains) - better - worse}" if gains else "–")
        rows.append([f"{one} against {other}", *cells])
    return table(["better / worse / not resolved", *networks()], rows)


def layers() -> str:
    """Medians over the layers at an eighth of the bits, beside Gaussian weights."""
    rows = []
    methods = sum((FAMILIES[name] for name in ("low rank", "few bits", "few entries")), ())
    for name, found in networks().items():
        weights, inputs = [], []
        for method in methods:
            pairs = list(_at_an_eighth(found, method))
            weights.append(_median(w**2 for w, _ in pairs))
            inputs.append(_median(o / w for w, o in pairs))
        rows += [[f"{name}, weights, squared", *weights], ["outputs / weights", *inputs]]
    return table(["medians over layers", *methods], rows)


def _at_an_eighth(found: Comparison, method: str) -> Iterable[tuple[float, float]]:
    for layer in dict.fromkeys(row.layer for row in found.layers):
        sizes = [row for row in found.layers if (row.layer, row.method) == (layer, method)]
        there = [row for row in sizes if row.ideal <= 1.1 / 8 and row.weight_error]
        if there:
            row = max(there, key=lambda row: row.ideal)
            yield float(row.weight_error or 0), row.output_error


def _median(values: Iterable[float]) -> str:
    found = list(values)
    return number(float(np.median(found))) if found else "–"


def proxies() -> str:
    """How errors order what networks lose."""
    rows = []
    for name, found in networks().items():
        for error in ERRORS:
            each = {row.family: row for row in found.proxies if row.error == error}
            cells = []
            for family in (*FAMILIES, None):
                row = each.get(family)
                shown = (
                    "–" if row is None or row.correlation is None else number(row.correlation, 2)
                )
                cells.append(shown if row is None else shown + _between(row.low, row.high))
            whole = each[None]
            counts = f"{whole.inverted} of {whole.pairs}, {whole.clearly} clearly"
            rows.append([f"{name}, {error.replace('_', ' ')}", *cells, counts])
    return table(["network, error", *FAMILIES, "all", "inverted pairs"], rows)


def pairs() -> str:
    """The inverted pairs that differ most."""
    rows = []
    for name, found in networks().items():
        for error in ("weight_error", "output_error"):
            those = [row for row in found.inverted if row.error == error][:SHOWN_PAIRS]
            for row in those:
                nearer = [f"{row.nearer}, {_share(row.nearer_budget)}"]
                nearer += [number(row.nearer_error), number(row.nearer_metric)]
                better = [f"{row.better}, {_share(row.better_budget)}"]
                better += [number(row.better_error), number(row.better_metric)]
                rows.append([name, error.replace("_", " "), *nearer, *better])
    header = ["network", "error", "nearer", "its error", "its metric"]
    return table([*header, "better", "its error", "its metric"], rows)


def storage() -> str:
    """What bits become in bytes and time, at a quarter of the bits."""
    rows = []
    for name, found in networks().items():
        values = {(row.method, row.budget): row.values for row in found.networks}
        for row in found.times:
            shares = values[row.method, row.budget], row.ideal, row.real
            times = (f"{1 / each.speedup:.2f}" for each in row.times)
            rows.append([name, row.method, *map(_share, shares), *times])
    header = ["network", "method", "values", "ideal bits", "bytes"]
    return table([*header, "time / dense, batch of 1", "of the largest batch"], rows)


def classifier() -> str:
    """The classifier beside the probe."""
    found = _read(ROOT / "figures" / "train_ag_news.json")

    def shown(row: Row) -> str:
        return f"{100 * row['mean']:.2f} % ({100 * row['low']:.2f} to {100 * row['high']:.2f})"

    return table(
        [f"{found['test_texts']:,} test texts", "mean and 99 % interval"],
        [
            ["classifier, as stored", shown(found["accuracy"])],
            ["ridge probe on the embeddings before", shown(found["probe_accuracy"])],
            ["difference, paired", shown(found["difference"])],
            [
                "processor time of the training",
                f"{found['training_processor_seconds']:,.0f} s for {found['steps']} steps",
            ],
        ],
    )


def regressions() -> str:
    """Coefficients, in decades for a standard deviation."""
    found = _read(ROOT / "figures" / "compare_statistics.json")["regressions"]
    rows = []
    for method, parts in found.items():
        for name, part in parts.items():
            cells = [
                f"{row['name'].replace('_', ' ')} {number(row['value'], 2)}"
                f"{_between(row['low'], row['high'])}"
                for row in part["coefficients"]
            ]
            rows.append([method, name, str(part["rows"]), number(part["explained"], 2), *cells])
    return table(["method", "explained", "layers", "R²", "1", "2", "3"], rows)


def sweeps() -> str:
    """Errors of the outputs at each point of each sweep."""
    found = _read(ROOT / "figures" / "compare_sweeps.json")["sweeps"]
    methods = list(next(iter(found.values()))[0]["errors"])
    rows = [
        [f"{name} {number(point['statistic'])}"]
        + [number(point["errors"][method]) for method in methods]
        for name, points in found.items()
        for point in points
    ]
    return table(["layer", *methods], rows)


def few_dimensions() -> str:
    """Inputs in 32 of 256 dimensions."""
    found = _read(ROOT / "figures" / "compare_statistics.json")["few_dimensions"]
    rows = [
        [row["method"], number(row["weight_error"]), number(row["output_error"], 2)]
        for row in found
    ]
    return table(["method", "error of the weights", "error of the outputs"], rows)


def shapes() -> str:
    """Layers of the shapes of DistilBERT and AlexNet, at an eighth of the bits."""
    found = _read(ROOT / "figures" / "compare_shapes.json")["rows"]
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in found:
        if row["share"] == 1 / 8:
            key = row["layer"], row["spectrum"], row["inputs"]
            cell = f"{number(row['weight_error'])} / {number(row['output_error'])}"
            rows.setdefault(key, {})[row["method"]] = cell
    methods = list(dict.fromkeys(row["method"] for row in found))
    return table(
        ["layer", "spectrum", "inputs", *methods],
        [[*key, *(cells.get(m, "–") for m in methods)] for key, cells in rows.items()],
    )


def shape_times() -> str:
    """Bytes and times of whole layers, at an eighth of the bits."""
    found = _read(ROOT / "figures" / "compare_shapes.json")["times"]
    rows = []
    for row in found:
        shares = _share(row["ideal"]), _share(row["bytes"])
        times = f"{1e3 * row['dense_seconds']:.2f} ms", f"{row['time']:.2f}"
        rows.append([row["layer"], row["method"], str(row["batch"]), *shares, *times])
    header = ["layer", "method", "batch", "ideal bits", "bytes", "dense", "time / dense"]
    return table(header, rows)


TABLES: dict[str, Callable[[], Any]] = {
    each.__name__: each
    for each in (
        classifier, findings, metrics, against, layers, regressions, sweeps, proxies, pairs,
        few_dimensions, storage, shapes, shape_times,
    )
}  # fmt: skip


def filled(note: str) -> str:
    """The note with each table whose numbers are there made anew, between `<!-- table: name -->`
    and `<!-- end -->`.
    """
    for name, made in TABLES.items():
        place = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        try:
            text = made()
        except FileNotFoundError:
            continue
        note = re.sub(place, lambda m, t=text: f"{m[1]}\n{t}\n\n{m[2]}", note, flags=re.DOTALL)
    return note


if __name__ == "__main__":
    write_atomically(NOTE, filled(NOTE.read_text()).encode())
