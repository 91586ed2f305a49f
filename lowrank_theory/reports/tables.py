"""What the command prints: tables that fit the terminal."""

import os
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowrank_theory._rows import AbstractRow
from lowrank_theory.models.catalogue import CASES
from lowrank_theory.reports._page import number, percent, shown
from lowrank_theory.reports.verification import Record
from lowrank_theory.studies.compare_rows import NetworkAtBudget
from lowrank_theory.studies.layer_rows import LayerAtRank
from lowrank_theory.studies.transfer_rows import DenseMetric, NetworkAtSize
from lowrank_theory.verification.attack import SMALLER, Witness
from lowrank_theory.verification.monte_carlo import Report, Verdict
from lowrank_theory.verification.scaling import Fit


def make_console() -> Console:
    """The terminal, or where there is none, lines of 128 characters."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, markup=False, emoji=False, width=128)
    return console


def show(record: Record, console: Console) -> None:
    """Verdicts, and the layers of networks."""
    console.print(_verdicts(record.report))
    for sentence in record.skipped:
        console.print(sentence)
    if record.layers:
        console.print(_layers(record.layers))
        if record.finding:
            console.print(record.finding, style="bold")
        for study in record.studies:
            for finding in study.summary():
                console.print(f"{finding.network}: {finding.sentence}")


def witnesses(found: list[Witness]) -> Table:
    """What the attacks found."""
    table = _table("statement", "sharp", ">best ratio", ">seconds", "bound times 0.95", "finding")
    for witness in found:
        table.add_row(
            witness.name,
            "yes" if witness.sharp else "–",
            f"{witness.ratio:.4f}",
            f"{witness.seconds:.1f}",
            "broken" if witness.ratio > SMALLER else "not broken",
            witness.finding.value,
        )
    return table


def rates(fits: list[Fit]) -> Table:
    """Fitted slopes beside their exponents."""
    table = _table(
        "statement", "in", ">from – to", ">error: slope", ">theory",
        ">bound: slope", ">theory", "agrees",
    )  # fmt: skip
    for fit in fits:
        table.add_row(
            fit.name,
            fit.quantity,
            f"{fit.values[0]:g} – {fit.values[-1]:g}",
            _whole(f"{fit.realised.slope:.3f} ± {fit.realised.high - fit.realised.slope:.3f}"),
            _exponent(fit.realised.predicted),
            f"{fit.bound.slope:.3f}",
            _exponent(fit.bound.predicted),
            "yes" if fit.agrees else Text("no", "bold red"),
        )
    return table


def cases(missing: Mapping[str, str | None]) -> Table:
    """The networks of the catalogue, and which cannot be studied."""
    table = _table("network", "what it is", "data")
    for name, reason in missing.items():
        there = Text("there", "green") if reason is None else Text("missing", "yellow")
        table.add_row(name, CASES[name].title, there)
    return table


def compressed_networks(rows: Sequence[NetworkAtSize], metric: DenseMetric) -> Table:
    """A trained network at each size, by each method. The report has more columns."""
    table = _table(
        "method", ">bytes", ">output error", ">certified", f">{metric.name}", ">95 % of the change"
    )
    table.add_row("dense", "100 %", "0", "–", number(metric.value, 4), "–")
    budget = None
    for row in rows:
        if row.budget != budget:
            budget = row.budget
            table.add_section()
        table.add_row(
            row.method,
            _whole(f"{100 * row.share:.0f} %"),
            number(row.error_held_out, 2),
            number(row.certificate, 2),
            number(row.metric, 4),
            _whole(f"{number(row.low, 2)} to {number(row.high, 2)}"),
        )
    return table


def beside_dense(exact: float, rows: Sequence[AbstractRow]) -> Table:
    """Rows that each have an accuracy, below that of the dense network."""
    columns = rows[0].columns()
    table = _table(*(f"{'>' * column.number}{column.heading}" for column in columns))
    dense = {columns[0].name: "dense", "accuracy": number(exact, 4)}
    table.add_row(*(dense.get(column.name, "–") for column in columns))
    for row in rows:
        cells = (getattr(row, column.name) for column in columns)
        table.add_row(*(cell if isinstance(cell, str) else number(cell, 4) for cell in cells))
    return table


def compared_methods(rows: Sequence[NetworkAtBudget], metric: DenseMetric) -> Table:
    """A trained network at each budget, by each method."""
    table = _table(
        "method", ">bits", ">bytes", ">weights", ">layers", ">outputs", f">{metric.name}",
        ">95 % of the change",
    )  # fmt: skip
    table.add_row("dense", "100 %", "100 %", "0", "0", "0", number(metric.value, 4), "–")
    budget = None
    for row in sorted(rows, key=lambda row: row.budget):
        if row.budget != budget:
            budget = row.budget
            table.add_section()
        shares = (_whole(f"{100 * share:.1f} %") for share in (row.ideal, row.real))
        errors = (number(e, 2) for e in (row.weight_error, row.layer_error, row.output_error))
        change = _whole(f"{number(row.low, 2)} to {number(row.high, 2)}")
        table.add_row(row.method, *shares, *errors, number(row.metric, 4), change)
    return table


def _exponent(predicted: float | None) -> str:
    return "–" if predicted is None else f"{predicted:g}"


def _verdicts(report: Report) -> Table:
    table = _table(
        "statement", "kind", ">applicable / trials", ">violations / allowed",
        ">median, largest ratio", ">critical constant", ">by theory", ">controls caught", "verdict",
    )  # fmt: skip
    styles = {Verdict.CONSISTENT: "green", Verdict.REFUTED: "bold red"}
    theorem = None
    for statement, row in zip(report.statements, report.summary(), strict=True):
        heading, _, name = statement.name.partition(".")
        if heading != theorem:
            theorem = heading
            table.add_section()
            table.add_row(heading, style="bold")
        violations = shown(row.violations)
        caught = sum(control.caught for control in statement.controls)
        table.add_row(
            f"  {name}",
            row.kind,
            _whole(f"{row.applicable:,} / {row.trials:,}"),
            _whole(f"{violations} / {percent(row.allowed)}"),
            _whole(f"{number(row.ratio_median)}, {number(row.ratio_max)}"),
            number(row.critical_constant),
            number(row.refuted_below),
            f"{caught} of {len(statement.controls)}",
            Text(row.verdict, styles.get(statement.verdict, "yellow")),
        )
    return table


def _layers(rows: Sequence[LayerAtRank]) -> Table:
    """Each layer at up to three ranks: small, middle and large."""
    columns = [each for each in LayerAtRank.columns() if each.brief and each.number]
    table = _table("network, layer", *(f">{each.heading}" for each in columns))
    layers: dict[tuple[str, str], list[LayerAtRank]] = {}
    for row in rows:
        layers.setdefault((row.network, row.layer), []).append(row)
    for (network, layer), group in layers.items():
        table.add_section()
        chosen = sorted({len(group) * quarter // 4 for quarter in (1, 2, 3)})
        for row in (group[index] for index in chosen):
            numbers = (shown(getattr(row, each.name)) for each in columns)
            table.add_row(f"{network}, {layer}", *numbers)
    return table


def _whole(text: str) -> str:
    """The same text, in which no line is broken."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _table(*columns: str) -> Table:
    """A table with these headings; a leading `>` aligns a column to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        heading = column.removeprefix(">")
        # Where a terminal is narrow, what does not fit is folded, never cut off.
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    table.columns[0].no_wrap = True
    table.columns[-1].no_wrap = True
    return table
