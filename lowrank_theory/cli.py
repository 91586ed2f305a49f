"""The command `lowrank-theory`: check the theorems by sampling, by attack, and by their rates."""

import argparse
import dataclasses
import enum
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import jax
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lowrank_theory import networks
from lowrank_theory._files import plain, to_json, write_atomically
from lowrank_theory.networks import layer_study
from lowrank_theory.networks.layer_study import LayerStudy
from lowrank_theory.theorems import CONTENTS, AbstractStatement, Certainty
from lowrank_theory.verification import report as reports
from lowrank_theory.verification.attack import SMALLER, Finding, attack
from lowrank_theory.verification.monte_carlo import (
    BATCH,
    Report,
    StatementReport,
    Verdict,
    steps,
    verify,
)
from lowrank_theory.verification.report import number, percent
from lowrank_theory.verification.scaling import scale

EXIT_CODES: dict[enum.Enum, int] = {
    Verdict.CONSISTENT: 0,
    Verdict.REFUTED: 1,
    Verdict.INCONCLUSIVE: 3,
    Finding.REACHED: 0,
    Finding.BELOW: 0,
    Finding.BROKEN: 1,
    Finding.NOT_REACHED: 3,
}
BAD_USAGE = 2
INTERRUPTED = 130

FAILURE_PROBABILITY = 0.05
CONFIDENCE = 0.99

STATEMENTS = {
    name: statement for theorem in CONTENTS for name, statement in theorem.statements.items()
}
NETWORKS: dict[str, tuple[Callable, Callable]] = {
    "digits": (networks.digits_network, networks.digits_data),
    "MNIST": (networks.mnist_network, networks.mnist_data),
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """At least so many trials of a statement, and of each of its regimes."""

    trials: int
    per_regime: int

    def of(self, statement: AbstractStatement) -> int:
        """The trials of a statement, in whole batches: what is computed anyway is counted."""
        regimes = len(statement.regimes)
        each = max(self.per_regime, math.ceil(self.trials / regimes))
        if not _is_asymptotic(statement):  # there a trial is a batch already
            each = BATCH * math.ceil(each / BATCH)
        return each * regimes


PRESETS = {"quick": Preset(1_000, 100), "full": Preset(10_000, 1_000)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process.

    Returns the exit code: 0 if every statement is consistent, 1 if any is refuted, 3 if any is
    inconclusive, 2 for bad usage, 130 if interrupted.
    """
    try:
        options = _parser().parse_args(argv)
        return options.run(options, options.refuse)
    except SystemExit as exit_:  # how argparse ends, having said why
        return exit_.code if isinstance(exit_.code, int) else BAD_USAGE
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted. No file was left half written.")
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lowrank-theory", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "verify",
        help="check theorems on random layers, and hold them against trained networks",
        description="Check theorems on random layers, and hold them against trained networks.",
        epilog="Exit code: 0 if every statement is consistent, 1 if any is refuted, 3 if any is "
        "inconclusive, 2 for bad usage, 130 if interrupted. The network on MNIST is studied where "
        "the environment variable LOWRANK_DATA names a folder that holds it.",
    )
    check.add_argument(
        "--preset",
        choices=PRESETS,
        default="quick",
        help="trials of a statement: quick, 1,000 and 100 of each regime (the default); "
        "full, ten times as many",
    )
    _add_common(check, _verify, "and no networks")
    check.add_argument(
        "--out",
        type=Path,
        default=Path("out/verify"),
        metavar="DIR",
        help="folder of report.html, report.json and figures (default: out/verify). An earlier "
        "report there is overwritten file by file; a folder with anything else is refused",
    )
    climb = commands.add_parser(
        "attack",
        help="search for the instances on which sure statements are nearest to failing",
        description="Search by gradient for the instances on which sure statements are nearest to "
        "failing. A bound that is sharp is reached; one that is wrong is broken.",
        epilog="Exit code: 0 if no bound is broken and every sharp one is reached to 1 %%, 1 if "
        "any is broken, 3 if a sharp one is not reached, 2 for bad usage, 130 if interrupted.",
    )
    _add_common(climb, _attack)
    climb.add_argument(
        "--out", type=Path, metavar="DIR", help="write the worst instance of each statement here"
    )
    fit = commands.add_parser(
        "scale",
        help="fit the rates of statements in samples, rank, size and noise",
        description="Fit log-log slopes of errors and bounds in samples, rank, size and noise, and "
        "hold them against the exponents that theory predicts.",
        epilog="Exit code: 0 if every slope is within 0.05 of its exponent, 1 if any is not, 2 for "
        "bad usage, 130 if interrupted.",
    )
    _add_common(fit, _scale)
    return parser


def _add_common(command: argparse.ArgumentParser, run: Callable[..., int], also: str = "") -> None:
    command.set_defaults(run=run, refuse=command.error)
    command.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=(),
        type=_known,
        help=f"these theorems or statements, such as planted_rank or planted_rank.gaussian {also}",
    )
    command.add_argument("--seed", type=_seed, default=0, metavar="N", help="default: 0")
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="write the rows of the tables here as well"
    )


def _known(name: str) -> str:
    theorems = [theorem.name for theorem in CONTENTS]
    if name not in STATEMENTS and name not in theorems:
        raise argparse.ArgumentTypeError(
            f"there is no theorem or statement {name!r}; there are {', '.join(theorems)}, and the "
            f"statements {', '.join(STATEMENTS)}"
        )
    return name


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^32 - 1; got {text!r}")
    return int(text)


def _verify(options: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> int:
    _prepare(options, refuse)
    console = _console()
    chosen = _chosen(options.only)
    start = time.monotonic()
    sizes = {name: steps(s, len(s.regimes)) for name, s in chosen.items()}
    progress = _Progress(console, sizes | ({} if options.only else dict.fromkeys(NETWORKS, 3)))
    with progress.bar:
        report = _check(chosen, PRESETS[options.preset], options.seed, progress)
        studies, skipped = (), ("Networks were left out: the run was restricted by --only.",)
        if not options.only:
            studies, skipped = _study(options.seed, progress)
    record = reports.Record(
        report=report,
        studies=studies,
        skipped=skipped,
        preset=options.preset,
        only=tuple(options.only),
        seed=options.seed,
        failure_probability=FAILURE_PROBABILITY,
        confidence=CONFIDENCE,
        seconds=time.monotonic() - start,
    )
    try:
        reports.write(record, options.out)
        if options.json:
            write_atomically(options.json, to_json(record.summary()))
    except OSError as error:
        refuse(f"cannot write the report: {error}")
    _show(record, console)
    console.print(f"Report: {options.out / 'report.html'}", soft_wrap=True)
    return EXIT_CODES[report.verdict]


def _chosen(only: Sequence[str]) -> dict[str, AbstractStatement]:
    return {
        name: statement
        for name, statement in STATEMENTS.items()
        if not only or name in only or name.split(".")[0] in only
    }


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, markup=False, width=128)
    return console


def _attack(options: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> int:
    chosen = {n: s for n, s in _chosen(options.only).items() if s.adversary is not None}
    if not chosen:
        refuse("argument --only: none of these can be attacked; only sure statements can")
    _writable(options.json, refuse)
    if options.out is not None:
        try:
            _make_writable(options.out)
        except OSError as error:
            refuse(f"argument --out: cannot write to {options.out}: {error.strerror}")
    console, found = _console(), []
    progress = _Progress(console, dict.fromkeys(chosen, 1))
    with progress.bar:
        for name, statement in chosen.items():
            progress.begin(name)
            witness = attack(statement, key=jax.random.key(options.seed), progress=progress.update)
            found.append(witness)
            if options.out is not None:
                witness.save(options.out / f"{name}.json")
            progress.finish(f"ratio {witness.ratio:.4f}")
    rows = [witness.row() for witness in found]
    if options.json:
        write_atomically(options.json, to_json(plain(rows)))
    table = _table("statement", "sharp", ">best ratio", ">seconds", "bound times 0.95", "finding")
    for w in found:
        table.add_row(
            w.name,
            "yes" if w.sharp else "–",
            f"{w.ratio:.4f}",
            f"{w.seconds:.1f}",
            "broken" if w.ratio > SMALLER else "not broken",
            w.finding.value,
        )
    console.print(table)
    codes = {EXIT_CODES[witness.finding] for witness in found}
    return 1 if 1 in codes else max(codes)


def _scale(options: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> int:
    chosen = {name: s for name, s in _chosen(options.only).items() if s.rates}
    if not chosen:
        refuse("argument --only: none of these states a rate")
    _writable(options.json, refuse)
    console, fits = _console(), []
    progress = _Progress(
        console, {n: sum(len(r.settings) for r in s.rates) for n, s in chosen.items()}
    )
    with progress.bar:
        for name, statement in chosen.items():
            progress.begin(name)
            found = scale(statement, key=jax.random.key(options.seed), progress=progress.update)
            fits.extend(found)
            progress.finish(f"{sum(fit.agrees for fit in found)} of {len(found)} rates agree")
    if options.json:
        write_atomically(options.json, to_json(plain([fit.row() for fit in fits])))
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
    console.print(table)
    return 0 if all(fit.agrees for fit in fits) else 1


def _exponent(predicted: float | None) -> str:
    return "–" if predicted is None else f"{predicted:g}"


def _prepare(options: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> None:
    """Refuse, before the long work, what could not be written after it."""
    out = options.out
    if out.exists() and not out.is_dir():
        refuse(f"argument --out: {out} is a file; name a folder")
    _writable(options.json, refuse)
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / "report.json").is_file():
            refuse(
                f"argument --out: {out} is not empty and holds no report.json of an earlier run; "
                "name another folder, or empty it"
            )
        _make_writable(out)
    except OSError as error:
        refuse(f"argument --out: cannot write to {out}: {error.strerror}")


def _writable(file: Path | None, refuse: Callable[[str], NoReturn]) -> None:
    if file is None:
        return
    if file.is_dir():
        refuse(f"argument --json: {file} is a folder; name a file")
    try:
        _make_writable(file.parent)
    except OSError as error:
        refuse(f"argument --json: cannot write {file}: {error.strerror}")


def _make_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _check(
    statements: dict[str, AbstractStatement], preset: Preset, seed: int, progress: "_Progress"
) -> Report:
    found: list[StatementReport] = []
    for name, statement in statements.items():
        progress.begin(name)
        (result,) = verify(
            statement,
            trials=preset.of(statement),
            key=jax.random.key(seed),
            failure_probability=FAILURE_PROBABILITY,
            confidence=CONFIDENCE,
            progress=progress.update,
        ).statements
        found.append(result)
        progress.finish(f"{result.verdict.value}, {result.trials:,} trials")
    return Report(tuple(found))


def _study(seed: int, progress: "_Progress") -> tuple[tuple[LayerStudy, ...], tuple[str, ...]]:
    studies, skipped = [], []
    for name, (network, data) in NETWORKS.items():
        progress.begin(name)
        try:
            loaded = network(), data()
        except (FileNotFoundError, ValueError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            skipped.append(f"{name} was skipped: {reason}.")
            progress.finish(f"skipped: {reason}")
            continue
        studies.append(
            layer_study.study(name, *loaded, key=jax.random.key(seed), progress=progress.update)
        )
        progress.finish(f"{len(studies[-1].rows)} layers and ranks")
    return tuple(studies), tuple(skipped)


class _Progress:
    """One bar over everything in a terminal; elsewhere, one line for each thing that is done."""

    def __init__(self, console: Console, sizes: dict[str, int]) -> None:
        self._console = console
        self._steps = sizes
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self.bar.add_task("", total=sum(self._steps.values()))
        self._before = 0.0
        self._name = ""
        self._start = 0.0

    def begin(self, name: str) -> None:
        self._name, self._start = name, time.monotonic()
        self.bar.update(self._task, description=name, completed=self._before)

    def update(self, name: str, done: int, total: int) -> None:
        share = self._steps[self._name] * done / total
        self.bar.update(self._task, completed=self._before + share)

    def finish(self, result: str) -> None:
        self._before += self._steps[self._name]
        if not self._console.is_terminal:
            seconds = time.monotonic() - self._start
            self._console.print(f"{self._name}: {result}, {seconds:.1f} s", soft_wrap=True)


def _is_asymptotic(statement: AbstractStatement) -> bool:
    return statement.kind.certainty is Certainty.ASYMPTOTIC


def _show(record: reports.Record, console: Console) -> None:
    console.print(_verdicts(record.report))
    for sentence in record.skipped:
        console.print(sentence)
    if record.layers:
        console.print(_layers(record.layers))
        if record.finding:
            console.print(record.finding, style="bold")
        for study in record.studies:
            for finding in study.summary():
                console.print(f"{finding['network']}: {finding['sentence']}")


def _verdicts(report: Report) -> Table:
    table = _table(
        "statement", "kind", ">applicable / trials", ">violations / allowed",
        ">median, largest ratio", ">critical constant", ">controls caught", "verdict",
    )  # fmt: skip
    styles = {Verdict.CONSISTENT: "green", Verdict.REFUTED: "bold red"}
    theorem = None
    for statement, row in zip(report.statements, report.rows(), strict=True):
        heading, _, name = statement.name.partition(".")
        if heading != theorem:
            theorem = heading
            table.add_section()
            table.add_row(heading, style="bold")
        violations = "–" if row["violations"] is None else f"{row['violations']:,}"
        caught = sum(control.caught for control in statement.controls)
        table.add_row(
            f"  {name}",
            row["kind"],
            _whole(f"{row['applicable']:,} / {row['trials']:,}"),
            _whole(f"{violations} / {percent(row['allowed'])}"),
            _whole(f"{number(row['ratio_median'])}, {number(row['ratio_max'])}"),
            number(row["critical_constant"]),
            f"{caught} of {len(statement.controls)}",
            Text(row["verdict"], styles.get(statement.verdict, "yellow")),
        )
    return table


def _layers(rows: list[dict]) -> Table:
    """Each layer at up to three ranks: small, middle and large."""
    table = _table(
        "network, layer", ">shape", ">rank", ">agnostic error", ">driven error",
        ">optimum", ">price bound", ">accuracy, dense", ">agnostic", ">driven",
    )  # fmt: skip
    layers: dict[tuple, list[dict]] = {}
    for row in rows:
        layers.setdefault((row["network"], row["layer"]), []).append(row)
    for (network, layer), group in layers.items():
        table.add_section()
        chosen = sorted({len(group) * quarter // 4 for quarter in (1, 2, 3)})
        for row in (group[index] for index in chosen):
            errors = ("data_agnostic_error", "data_driven_error", "optimal_error", "price_bound")
            accuracies = ("accuracy_dense", "accuracy_data_agnostic", "accuracy")
            table.add_row(
                f"{network}, {layer}",
                " × ".join(map(str, row["shape"])),
                str(row["rank"]),
                *(number(row[name]) for name in errors),
                *(percent(row[name]) for name in accuracies),
            )
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
