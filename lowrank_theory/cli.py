"""The command `lowrank-theory`: check the theorems by sampling, by attack, and by their rates."""

import argparse
import dataclasses
import enum
import functools
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NoReturn

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
from lowrank_theory.verification.attack import SMALLER, Finding, Witness, attack
from lowrank_theory.verification.monte_carlo import (
    BATCH,
    Report,
    StatementReport,
    Verdict,
    verify,
)
from lowrank_theory.verification.report import number, percent
from lowrank_theory.verification.scaling import Fit, scale

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
        "--workers", type=_count, default=1, metavar="N", help="processes (default: 1)"
    )
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


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on; got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^32 - 1; got {text!r}")
    return int(text)


def _verify(options: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> int:
    _prepare(options, refuse)
    console = _console()
    chosen = _chosen(options.only)
    start = time.monotonic()
    jobs = {name: functools.partial(_check, name, options.preset, options.seed) for name in chosen}
    if not options.only:
        jobs |= {name: functools.partial(_study, name, options.seed) for name in NETWORKS}
    results = _each(jobs, options.workers, console)
    report = Report(tuple(r for r in results if isinstance(r, StatementReport)))
    skipped = [result for result in results if isinstance(result, str)]
    if options.only:
        skipped = ["Networks were left out: the run was restricted by --only."]
    record = reports.Record(
        report=report,
        studies=tuple(result for result in results if isinstance(result, LayerStudy)),
        skipped=tuple(skipped),
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
    console = _console()
    jobs = {name: functools.partial(_climb, name, options.seed, options.out) for name in chosen}
    found: list[Witness] = _each(jobs, options.workers, console)
    if options.json:
        write_atomically(options.json, to_json(plain([witness.row() for witness in found])))
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
    console = _console()
    jobs = {name: functools.partial(_fit, name, options.seed) for name in chosen}
    fits: list[Fit] = [fit for fits in _each(jobs, options.workers, console) for fit in fits]
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


# What a worker process does: everything that it needs comes by name.


def _check(name: str, preset: str, seed: int) -> StatementReport:
    statement = STATEMENTS[name]
    (found,) = verify(
        statement,
        trials=PRESETS[preset].of(statement),
        key=jax.random.key(seed),
        failure_probability=FAILURE_PROBABILITY,
        confidence=CONFIDENCE,
    ).statements
    return found


def _study(name: str, seed: int) -> LayerStudy | str:
    """The study of a network, or why it was skipped."""
    network, data = NETWORKS[name]
    try:
        loaded = network(), data()
    except (FileNotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        return f"{name} was skipped: {reason}."
    return layer_study.study(name, *loaded, key=jax.random.key(seed))


def _climb(name: str, seed: int, folder: Path | None) -> Witness:
    witness = attack(STATEMENTS[name], key=jax.random.key(seed))
    if folder is not None:
        witness.save(folder / f"{name}.json")
    return witness


def _fit(name: str, seed: int) -> tuple[Fit, ...]:
    return scale(STATEMENTS[name], key=jax.random.key(seed))


def _timed(job: Callable[[], Any]) -> tuple[Any, float]:
    start = time.monotonic()
    return job(), time.monotonic() - start


def _each(jobs: Mapping[str, Callable[[], Any]], workers: int, console: Console) -> list[Any]:
    """What the jobs return, in their order. A bar in a terminal, or else a line for each, says what
    is done.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    found: dict[str, Any] = {}
    with bar:
        task = bar.add_task("", total=len(jobs))
        for name, (result, seconds) in _run(jobs, workers):
            found[name] = result
            bar.update(task, advance=1, description=name)
            if not console.is_terminal:
                console.print(f"{name}: {_in_words(result)}, {seconds:.1f} s", soft_wrap=True)
    return [found[name] for name in jobs]


def _run(
    jobs: Mapping[str, Callable[[], Any]], workers: int
) -> Iterator[tuple[str, tuple[Any, float]]]:
    if workers == 1:
        yield from ((name, _timed(job)) for name, job in jobs.items())
        return
    # Spawned, since a process that has computed with JAX cannot be forked.
    with futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        names = {pool.submit(_timed, job): name for name, job in jobs.items()}
        try:
            for future in futures.as_completed(names):
                yield names[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_words(result: Any) -> str:
    match result:
        case StatementReport():
            return f"{result.verdict.value}, {result.trials:,} trials"
        case LayerStudy():
            return f"{len(result.rows)} layers and ranks"
        case Witness():
            return f"ratio {result.ratio:.4f}"
        case tuple():
            return f"{sum(fit.agrees for fit in result)} of {len(result)} rates agree"
    return result


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
