"""The tables of `paper_notes/transfer.md`, from the numbers of the figures."""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from _summary import Size, Spread, Summary
from lowrank_theory._rows import typed
from lowrank_theory.reports._page import number
from lowrank_theory.studies import ways
from lowrank_theory.studies.transfer_rows import NetworkAtSize

AGNOSTIC, SAME, DRIVEN, SEQUENTIAL = (
    way.name for way in (ways.AGNOSTIC, ways.SAME_RANKS, ways.DRIVEN, ways.SEQUENTIAL)
)

Row = dict[str, Any]
Tables = dict[str, tuple[str, Callable[[Row], str]]]
AtSize = TypeVar("AtSize", NetworkAtSize, Size)


def at(rows: Sequence[AtSize], method: str) -> dict[float, AtSize]:
    """The rows of one method, by budget."""
    return {row.budget: row for row in rows if row.method == method}


def half(rows: Sequence[AtSize], method: str) -> AtSize:
    """The row of one method nearest to half size."""
    by_budget = at(rows, method)
    return by_budget[min(by_budget, key=lambda share: abs(share - 0.5))]


def filled(note: str, folder: Path, tables: Tables | None = None) -> str:
    """The note with each of its tables, those of `transfer.md` unless others are given, made anew
    from the figures' numbers.

    The place of a table is between `<!-- table: name -->` and `<!-- end -->`.
    """
    for name, (source, made) in (tables or TABLES).items():
        file = folder / f"{source}.json"
        if file.is_file():
            place = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
            text = made(json.loads(file.read_text()))
            note = re.sub(place, lambda m, t=text: f"{m[1]}\n{t}\n\n{m[2]}", note, flags=re.DOTALL)
    return note


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def three(found: Spread | None) -> str:
    if found is None:
        return "none"
    return " / ".join(map(number, (found.least, found.median, found.largest)))


def summaries(numbers: Row) -> dict[str, Summary]:
    return {name: typed(Summary, found) for name, found in numbers["networks"].items()}


def _size_table(numbers: Row) -> str:
    header = ["network", "share", "dense", "truncated", "same ranks", "fitted", "sequential"]
    header += ["95 % interval of the change, fitted"]
    rows = []
    for name, found in summaries(numbers).items():
        by_method = {m: at(found.sizes, m) for m in (AGNOSTIC, SAME, DRIVEN, SEQUENTIAL)}
        for budget, row in by_method[DRIVEN].items():
            values = [number(each[budget].metric, 4) for each in by_method.values()]
            dense = number(found.metric.value, 4)
            interval = f"{number(row.low)} to {number(row.high)}"
            rows.append([name, f"{100 * budget:g} %", dense, *values, interval])
    return table(header, rows)


def _error_table(numbers: Row) -> str:
    header = ["network", "share", "truncated", "same ranks", "fitted", "sequential"]
    header += ["sequential / fitted, held out", "on calibration"]
    rows = []
    for name, found in summaries(numbers).items():
        by_method = {m: at(found.sizes, m) for m in (AGNOSTIC, SAME, DRIVEN, SEQUENTIAL)}
        for pair in found.sequential:
            budget = pair.budget
            values = [number(each[budget].error_held_out) for each in by_method.values()]
            both = [number(pair.held_out), number(pair.calibration)]
            rows.append([name, f"{100 * budget:g} %", *values, *both])
    return table(header, rows)


def _ways_table(numbers: Row) -> str:
    header = ["network", "share", "way", "bytes / dense", "metric", "error, held out"]
    rows = []
    for name, found in summaries(numbers).items():
        compared = [*found.others, *at(found.sizes, DRIVEN).values()] if found.others else []
        for row in sorted(compared, key=lambda row: (row.budget, row.error_held_out)):
            cells = [f"{100 * row.share:.1f} %", number(row.metric, 4)]
            share = f"{100 * row.budget:g} %"
            rows.append([name, share, row.method, *cells, number(row.error_held_out)])
    return table(header, rows)


def _following_table(numbers: Row) -> str:
    header = ["network", "metric", "rank correlation", "largest error without measurable loss"]
    header += ["smallest error with one", "measurable gains"]
    rows = []
    for name, found in summaries(numbers).items():
        each = found.following
        shown = (each.correlation, each.largest_without_loss, each.smallest_with_loss)
        cells = [number(value) for value in shown]
        rows.append([name, found.metric.name, *cells, str(each.gains)])
    return table(header, rows)


def _layer_table(numbers: Row) -> str:
    header = ["network", "layers", "pairs", "truncated / fitted", "exceptions", "largest"]
    header += ["fitted / optimum", "scaled / fitted", "exceptions"]
    rows = []
    for name, found in summaries(numbers).items():
        agnostic, diagonal = found.driven_and_agnostic, found.driven_and_diagonal
        worst = max((each.times for each in agnostic.exceptions), default=None)
        rows.append(
            [
                name,
                str(found.layers),
                str(agnostic.pairs),
                three(agnostic.gain),
                str(len(agnostic.exceptions)),
                number(worst) if worst else "",
                three(found.driven_over_optimum),
                three(diagonal.gain),
                str(len(diagonal.exceptions)),
            ]
        )
    return table(header, rows)


def _bound_table(numbers: Row) -> str:
    header = ["network", "pairs", "price / error", "violated", "price ≥ 1"]
    header += ["any truth / error", "violated", "any truth ≥ 1"]
    header += ["projection / error", "violated", "projection ≥ 1"]
    rows = []
    for name, found in summaries(numbers).items():
        cells = [
            [three(each.looseness), str(each.violated), str(each.above_the_outputs)]
            for each in (found.price, found.recovery, found.projected)
        ]
        rows.append([name, str(found.price.pairs), *itertools.chain(*cells)])
    return table(header, rows)


def _hypothesis_table(numbers: Row) -> str:
    networks = summaries(numbers)
    header = ["hypothesis", "statement", *networks]
    names = {(row.statement, row.name) for found in networks.values() for row in found.failing}
    rows = []
    for statement, name in sorted(names):
        cells = []
        for found in networks.values():
            key = (statement, name)
            rows_here = [r for r in found.failing if (r.statement, r.name) == key]
            cell = f"0 of {found.layers}"
            if rows_here:
                (row,) = rows_here
                times = row.times_allowed
                cell = f"{row.layers} of {row.of}"
                cell += f" ({number(times.median)} ×)" if times else ""
            cells.append(cell)
        rows.append([name, f"`{statement}`", *cells])
    return table(header, rows)


def _residual_table(numbers: Row) -> str:
    header = ["network", "largest value / edge", "distance of the law", "rows that count as one"]
    rows = [
        [
            name,
            three(found.edge_ratio),
            three(found.distance),
            three(
                found.effective_share
                and Spread(
                    1 / found.effective_share.largest,
                    1 / found.effective_share.median,
                    1 / found.effective_share.least,
                )
            ),
        ]
        for name, found in summaries(numbers).items()
    ]
    return table(header, rows)


def _certificate_table(numbers: Row) -> str:
    header = ["network", "loss of the network", "its certificate", "certificates of layers"]
    header += ["certificate / loss of a layer", "vacuous"]
    rows = []
    for name, found in summaries(numbers).items():
        fitted = half(found.sizes, DRIVEN)
        layers = found.certificates
        rows.append(
            [
                name,
                number(fitted.output_loss),
                number(fitted.certificate),
                three(layers.layers),
                three(layers.over_loss),
                f"{layers.vacuous} of {layers.of}",
            ]
        )
    return table(header, rows)


def _composition_table(numbers: Row) -> str:
    header = ["network", "measured", "root of squares", "sum", "telescoping"]
    header += ["`telescoping`", "`residuals`"]
    rows = []
    for name, found in summaries(numbers).items():
        each = found.composition
        shown = (
            each.measured,
            each.root_of_squares,
            each.sum,
            each.telescoping,
            each.telescoping_bound,
            each.residuals_bound,
        )
        rows.append([name, *(number(value) if value else "" for value in shown)])
    return table(header, rows)


def _time_table(numbers: Row) -> str:
    header = ["network", "units at once", "dense (ms)", "factored (ms)", "times faster"]
    header += ["multiply-adds / dense"]
    rows = []
    for name, found in summaries(numbers).items():
        fitted = half(found.sizes, DRIVEN)
        rows += [
            [
                name,
                str(timed.batch),
                number(1e3 * timed.dense),
                number(1e3 * timed.factored),
                number(timed.speedup),
                number(fitted.multiply_adds),
            ]
            for timed in found.times
        ]
    return table(header, rows)


def _calibration_table(numbers: Row) -> str:
    header = ["network", "layer", "rank", "Gaussian rows: first order", "measured"]
    header += ["real rows: first order", "measured", "whole units: first order", "measured"]
    rows = []
    for found in (each for each in numbers["results"] if "ways" in each):
        ways = {way["way"]: way for way in found["ways"]}
        cells = []
        for way in ("Gaussian", "single", "whole"):
            names = ("rows_first_order", "rows_measured")
            cells += [number(ways[way][name]) if way in ways else "" for name in names]
        inputs, outputs = found["shape"]
        rows.append([found["network"], f"{inputs} × {outputs}", str(found["rank"]), *cells])
    return table(header, rows)


def _dependence_table(numbers: Row) -> str:
    header = ["network", "layer", "shape", "rank", "rows in a unit"]
    header += ["Gaussian rows for 1 %", "real / Gaussian", "whole units / real"]
    rows = []
    for found in numbers["results"]:
        constants = found["constants"]
        whole = constants.get("whole")
        inputs, outputs = found["shape"]
        rows.append(
            [
                found["network"],
                f"`{found['layer']}`",
                f"{inputs} × {outputs}",
                str(found["rank"]),
                number(found["rows"] / found["units"], 4),
                number(constants["Gaussian"] / numbers["excess"]),
                number(constants["single"] / constants["Gaussian"]),
                number(whole / constants["single"]) if whole else "",
            ]
        )
    return table(header, rows)


def _coverage_table(numbers: Row) -> str:
    place = numbers["failure_probabilities"].index(numbers["failure_probability"])
    controls = ("repeated", "sorted", "normal")
    header = ["network", "laws", "certificate", "against the others"]
    header += [*(f"control: {name}" for name in controls), "certificate / mean loss"]
    by_network: dict[str, list[Row]] = {}
    for found in numbers["results"]:
        by_network.setdefault(found["network"] or "artificial", []).append(found)
    rows = []
    for name, group in by_network.items():
        shares = []
        for limit in ("certificate", "split", *controls):
            counts = [each["by_probability"][limit][place] for each in group]
            known = [count / numbers["draws"] for count in counts if count is not None]
            shares.append(f"{100 * max(known):.1f} %" if known else "")
        above = [each["by_probability"]["bound_median"][place] / each["mean"] for each in group]
        rows.append(
            [name, str(len(group)), *shares, f"{number(min(above))} to {number(max(above))}"]
        )
    return table(header, rows)


def _gains_table(numbers: Row) -> str:
    header = ["network", "layers", "gain", "centred", "certified", "centred", "alignment, centred"]
    header += ["law within 1.25, centred", "not by chance", "bounds below outputs"]
    rows = []
    everything = {**numbers["networks"], "all": numbers["together"]}
    for name, (plain, centred) in everything.items():
        shares = (plain["bound_below_outputs"], plain["weight_tail_below_outputs"])
        rows.append(
            [
                name,
                str(plain["layers"]),
                *(number(each["gain"][1]) for each in (plain, centred)),
                *(number(each["certified_share"][1]) for each in (plain, centred)),
                number(centred["alignment"][1]),
                _percent(centred["law_within"]),
                f"{centred['not_by_chance']} of {centred['layers']}",
                " / ".join(map(_percent, shares)),
            ]
        )
    return table(header, rows)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


TABLES: Tables = {
    "gains": ("why_data_helps", _gains_table),
    "size": ("transfer_summary", _size_table),
    "errors": ("transfer_summary", _error_table),
    "ways": ("transfer_summary", _ways_table),
    "following": ("transfer_summary", _following_table),
    "layers": ("transfer_summary", _layer_table),
    "bounds": ("transfer_summary", _bound_table),
    "hypotheses": ("transfer_summary", _hypothesis_table),
    "residuals": ("transfer_summary", _residual_table),
    "certificates": ("transfer_summary", _certificate_table),
    "coverage": ("certificate_coverage", _coverage_table),
    "composition": ("transfer_summary", _composition_table),
    "times": ("transfer_summary", _time_table),
    "calibration": ("transfer_calibration", _calibration_table),
    "dependence": ("transfer_calibration", _dependence_table),
}
