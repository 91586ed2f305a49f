"""Check theorems on random layers, and hold them against trained networks."""

import argparse
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax

from lowrank_theory._files import to_json, write_atomically
from lowrank_theory.cli import _progress as showing
from lowrank_theory.cli._options import (
    EXIT_CODES,
    OTHER_CODES,
    POINTS,
    Refuse,
    add_common,
    prepare,
    selected,
    workplace,
)
from lowrank_theory.models import catalogue
from lowrank_theory.reports import tables
from lowrank_theory.reports import verification as report_page
from lowrank_theory.studies import layer_study
from lowrank_theory.studies.layer_study import LayerStudy
from lowrank_theory.theorems import CONTENTS, AbstractStatement, AbstractTheorem, Certainty
from lowrank_theory.verification.executors import lost_workers
from lowrank_theory.verification.monte_carlo import Plan, Report
from lowrank_theory.verification.point_store import PointStore
from lowrank_theory.verification.sampling import batch_size, reference
from lowrank_theory.verification.sweep import sweep

FAILURE_PROBABILITY = 0.05
CONFIDENCE = 0.99

NETWORKS = ("digits", "mnist")  # of the catalogue, with all their images
SIZES = catalogue.Sizes(calibration=60_000, held_out=10_000, units=2, items=2, batch=600)


@dataclasses.dataclass(frozen=True)
class Preset:
    """At least so many trials of a statement, and of each of its regimes."""

    trials: int
    per_regime: int

    def of(self, statement: AbstractStatement) -> int:
        """The trials of a statement, in whole batches: what is computed anyway is counted."""
        regimes = len(statement.regimes)
        each = max(self.per_regime, math.ceil(self.trials / regimes))
        if statement.kind.certainty is not Certainty.ASYMPTOTIC:  # there a trial is many already
            batch = batch_size(statement, each)
            each = batch * math.ceil(each / batch)
        return each * regimes


PRESETS = {"quick": Preset(1_000, 100), "full": Preset(10_000, 1_000)}


def add(commands: Any) -> None:
    """The options of the command."""
    command = commands.add_parser(
        "verify",
        help="check theorems on random layers, and hold them against trained networks",
        description="Check theorems on random layers, and hold them against trained networks.",
        epilog="Exit code: 0 if every statement is consistent, 1 if any is refuted, 3 if any is "
        f"inconclusive, {OTHER_CODES}. The network on MNIST is studied where the environment "
        "variable LOWRANK_DATA names a folder that holds it.",
    )
    command.add_argument(
        "--preset",
        choices=PRESETS,
        default="quick",
        help="trials of a statement: quick, 1,000 and 100 of each regime (the default); "
        "full, ten times as many",
    )
    add_common(command, run, "and no networks")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("out/verify"),
        metavar="DIR",
        help="folder of report.html, report.json and figures (default: out/verify). An earlier "
        "report there is overwritten file by file; a folder with anything else is refused. What is "
        "finished is kept in DIR/points: after an interruption, the same command goes on from it",
    )


def run(options: argparse.Namespace, refuse: Refuse) -> int:
    """Verify, study, and write the report."""
    prepare(options, report_page.FILES, refuse)
    console = tables.make_console()
    start = time.monotonic()
    plans = [_plan(name, found, options) for name, found in selected(options).items()]
    store = PointStore(options.out / POINTS)
    with workplace(options, refuse) as executor, showing.points(plans, store, console) as step:
        names = () if options.only or options.theorem else NETWORKS
        studying = [executor.submit(_study, name) for name in names]
        report = Report(tuple(sweep(plans, executor=executor, store=store, progress=step)))
        with lost_workers():
            found = [future.result() for future in studying]
    skipped = tuple(result for result in found if isinstance(result, str))
    if options.only or options.theorem:
        skipped = ("Networks were left out: the run was restricted to some theorems.",)
    record = report_page.Record(
        report=report,
        studies=tuple(result for result in found if isinstance(result, LayerStudy)),
        skipped=skipped,
        preset=options.preset,
        only=tuple(options.only),
        users=tuple(map(str, options.theorem)),
        theorems=_theorems(options),
        seed=options.seed,
        failure_probability=FAILURE_PROBABILITY,
        confidence=CONFIDENCE,
        seconds=time.monotonic() - start,
    )
    report_page.write(record, options.out)
    if options.json:
        write_atomically(options.json, to_json(record.summary()))
    store.prune()
    tables.show(record, console)
    if store.found:
        points = sum(plan.points() for plan in plans)
        console.print(f"{store.found:,} of {points:,} points had been computed before.")
    console.print(f"Report: {options.out / 'report.html'}", soft_wrap=True)
    return EXIT_CODES[report.verdict]


def _theorems(options: argparse.Namespace) -> tuple[AbstractTheorem, ...]:
    return tuple(each for file in options.theorem for each in file.theorems) or CONTENTS


def _plan(name: str, statement: AbstractStatement, options: argparse.Namespace) -> Plan:
    return Plan(
        name=name,
        statement=reference(statement),
        trials=PRESETS[options.preset].of(statement),
        key=jax.random.key(options.seed),
        failure_probability=FAILURE_PROBABILITY,
        confidence=CONFIDENCE,
    )


# What a worker does: everything that it needs comes by name.


def _study(name: str) -> LayerStudy | str:
    """The study of a network, or why it was skipped."""
    try:
        loaded = catalogue.find(name).load(SIZES)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        return f"{name} was skipped: {reason}."
    return layer_study.study(
        name,
        loaded.function,
        loaded.parameters,
        loaded.calibration,
        loaded.held_out,
        select=loaded.select,
        gains=False,  # which its page does not show
    )
