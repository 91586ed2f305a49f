"""Write what a verification found: a page for a reader, JSON for a program, figures for a paper.

The page needs nothing but its own file: formulas are MathML, figures are inline, and nothing is
fetched. Every file is a function of the `Record` alone, and replaces its predecessor in one step.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx

from lowrank_theory import plotting
from lowrank_theory._files import plain, to_json, write_atomically
from lowrank_theory.reports._page import headings, number, render, svg, versions
from lowrank_theory.studies.layer_rows import LayerAtRank, LayerHypothesis
from lowrank_theory.studies.layer_study import LayerStudy
from lowrank_theory.theorems import AbstractTheorem
from lowrank_theory.verification.monte_carlo import Control, Report, StatementReport, Verdict
from lowrank_theory.verification.rows import RegimeRow, StatementRow

FILES = ("report.json", "report.html", "tightness.svg", "layer_errors.svg")


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run was asked, and what it found; of one from Python, `report` and `theorems` will do.

    `theorems` are those that the statements are of, and `users` names the files of a user's own.
    `skipped` holds one sentence for each network that was not studied. Trials, regimes and
    statements come from `report`, layers from `studies`.
    """

    report: Report
    theorems: tuple[AbstractTheorem, ...]
    studies: tuple[LayerStudy, ...] = ()
    skipped: tuple[str, ...] = ()
    preset: str | None = None
    only: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    seed: int | None = None
    failure_probability: float | None = None
    confidence: float | None = None
    seconds: float | None = None

    @property
    def layers(self) -> list[LayerAtRank]:
        """The rows of all studies."""
        return [row for study in self.studies for row in study.rows]

    @property
    def finding(self) -> str | None:
        """What the studies say together, in one sentence; `None` where no layer can be compared."""
        found = [row for study in self.studies for row in study.summary()]
        gains = [row.gain for row in found if row.gain is not None]
        looseness = [row.looseness for row in found if row.looseness is not None]
        if not gains or not looseness:
            return None
        return (
            "At half of full rank, fitting a layer to its inputs makes the error "
            f"{_range(gains)} times smaller than truncating its weights does; the bound on the "
            f"price of truncating is {_range(looseness)} times what is realised."
        )

    @property
    def details(self) -> "list[Details]":
        """Each statement, regime by regime."""
        regimes: dict[str, Mapping[str, Any]] = {
            name: statement.regimes
            for theorem in self.theorems
            for name, statement in theorem.statements.items()
        }
        return [Details.of(each, regimes.get(each.name, {})) for each in self.report.statements]

    @property
    def versions(self) -> dict[str, str]:
        """The versions on which the numbers depend."""
        return versions()

    @property
    def command(self) -> str | None:
        """The command that repeats the run; `None` where it was no command."""
        if self.preset is None:
            return None
        only = f" --only {' '.join(self.only)}" if self.only else ""
        users = f" --theorem {' '.join(self.users)}" if self.users else ""
        return f"lowrank-theory verify --preset {self.preset} --seed {self.seed}{only}{users}"

    def summary(self) -> dict[str, Any]:
        """`{"theorems": [...], "layers": [...]}`: one row per statement, one per layer and rank."""
        return {"theorems": plain(self.report.rows()), "layers": plain(self.layers)}

    def everything(self) -> dict[str, Any]:
        """The summary, with what is needed to repeat the run."""
        return self.summary() | {
            "command": self.command,
            "preset": self.preset,
            "seed": self.seed,
            "failure_probability": self.failure_probability,
            "confidence": self.confidence,
            "statements": plain(self.details),
            "skipped": list(self.skipped),
            "versions": self.versions,
            "seconds": self.seconds and round(self.seconds, 1),
        }


def write(record: Record, folder: Path) -> None:
    """Write `report.json`, `report.html` and the figures into an existing folder.

    Of a run from Python, `write(Record(report, theorems=(mine,)), folder)`. Everything is rendered
    before the first file is written. Raises `OSError` where that fails.
    """
    figures = {"tightness": svg(plotting.tightness(record.report))}
    if record.layers:
        figures["layer_errors"] = svg(plotting.layer_errors(record.layers))
    page = _page(record, figures)
    write_atomically(folder / "report.json", to_json(record.everything()))
    for name, content in figures.items():
        write_atomically(folder / f"{name}.svg", content)
    write_atomically(folder / "report.html", page.encode(errors="backslashreplace"))


# --- the parts of the page ------------------------------------------------------------------------


def _range(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def _docstring(theorem: AbstractTheorem) -> tuple[str, str]:
    """The first line of the theorem's file, and the rest of its docstring."""
    title, _, body = (sys.modules[type(theorem).__module__].__doc__ or "").partition("\n")
    return title.rstrip("."), body


@dataclasses.dataclass(frozen=True)
class Details:
    """One statement, regime by regime."""

    name: str
    kind: str
    verdict: Verdict
    regimes: tuple[RegimeRow, ...]
    controls: tuple[Control, ...]

    @staticmethod
    def of(statement: StatementReport, settings: Mapping[str, Any]) -> "Details":
        """What the report has on it, and its settings."""
        regimes = tuple(
            RegimeRow(
                name=regime.name,
                setting=_one_line(settings.get(regime.name)),
                trials=regime.sample.trials,
                applicable=regime.sample.applicable,
                violations=int(regime.sample.violated.sum()),
                ratio_max=regime.sample.ratio.max() if regime.sample.applicable else None,
                critical_constant=regime.critical_constant,
                verdict=regime.verdict.value,
            )
            for regime in statement.regimes
        )
        return Details(
            statement.name, statement.kind, statement.verdict, regimes, statement.controls
        )


def _one_line(setting: Any) -> str:
    if setting is None:
        return ""
    text = " ".join(eqx.tree_pformat(setting, short_arrays=False).split())
    return text.replace("( ", "(").replace(" )", ")")


def _page(record: Record, figures: Mapping[str, bytes]) -> str:
    names = {statement.name for statement in record.report.statements}
    theorems = [
        (theorem.name, *_docstring(theorem))
        for theorem in record.theorems
        if names & {*theorem.statements}
    ]
    verdicts = [statement.verdict for statement in record.report.statements]
    return render(
        Path(__file__).with_name("verification.html.jinja"),
        figures,
        record=record,
        counts={verdict.value: verdicts.count(verdict) for verdict in Verdict},
        statements=list(zip(record.report.summary(), record.details, strict=True)),
        of_statement=headings(StatementRow),
        of_regime=headings(RegimeRow),
        statement_columns=StatementRow.columns(),
        theorems=theorems,
        layers=record.layers,
        columns=LayerAtRank.columns(),
        hypothesis_columns=LayerHypothesis.columns(),
    )
