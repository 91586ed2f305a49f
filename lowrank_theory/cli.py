"""The command `lowrank-theory`: check the theorems by sampling, by attack, and by their rates, and
study trained networks under them.
"""

import argparse
import contextlib
import dataclasses
import enum
import functools
import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console

from lowrank_theory import _printing as printing
from lowrank_theory import _progress as showing
from lowrank_theory import networks
from lowrank_theory._files import (
    check_writable,
    is_leftover,
    make_folder,
    plain,
    to_json,
    write_atomically,
)
from lowrank_theory._numerics import check_fraction
from lowrank_theory.networks import Perceptron, catalogue, layer_study, transfer_report
from lowrank_theory.networks.layer_study import LayerStudy
from lowrank_theory.networks.transfer import transfer
from lowrank_theory.networks.ways import OTHERS
from lowrank_theory.theorems import CONTENTS, AbstractStatement, Certainty
from lowrank_theory.verification import report as reports
from lowrank_theory.verification.attack import Finding, Witness, attack
from lowrank_theory.verification.monte_carlo import Plan, Report, Verdict
from lowrank_theory.verification.sampling import batch_size, reference
from lowrank_theory.verification.scaling import Fit, scale
from lowrank_theory.verification.sweep import (
    Here,
    LostWorkerError,
    Store,
    cluster,
    lost_workers,
    processes,
    sweep,
)

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
CANNOT_WRITE = 4
FAILED = 5
INTERRUPTED = 130
OTHER_CODES = (
    f"{BAD_USAGE} for bad usage, {CANNOT_WRITE} if a file could not be read or written, as on a "
    f"full disk, {FAILED} if the command itself failed, {INTERRUPTED} if interrupted"
)
POINTS = "points"  # the folder of what is finished, within that of the report
BATCH = 4_000  # images of a trained network that are seen at once

FAILURE_PROBABILITY = 0.05
CONFIDENCE = 0.99
BUDGETS = (0.25, 0.5, 0.75)

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
        if statement.kind.certainty is not Certainty.ASYMPTOTIC:  # there a trial is many already
            batch = batch_size(statement, each)
            each = batch * math.ceil(each / batch)
        return each * regimes


PRESETS = {"quick": Preset(1_000, 100), "full": Preset(10_000, 1_000)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process.

    Returns the exit code: 0 if every statement is consistent, 1 if any is refuted, 3 if any is
    inconclusive, 2 for bad usage, 4 if a file could not be read or written, 5 if the command itself
    failed, 130 if interrupted or a worker was lost. Only what was found is ever 0, 1 or 3.
    """
    try:
        options = _parser().parse_args(argv)
        return options.run(options, options.refuse)
    except SystemExit as exit_:  # how argparse ends, having said why, or where nobody reads
        return exit_.code if exit_.code in (0, BAD_USAGE) else CANNOT_WRITE
    except OSError as error:
        with contextlib.suppress(OSError):
            console = Console(stderr=True, markup=False)
            console.print(f"lowrank-theory: error: {error}", soft_wrap=True)
        return CANNOT_WRITE
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted. No file was left half written.")
        return INTERRUPTED
    except LostWorkerError as error:
        Console(stderr=True).print(str(error), soft_wrap=True)
        return INTERRUPTED
    except Exception:  # noqa: BLE001  # a fault of the command is no refutation, which is code 1
        traceback.print_exc()
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lowrank-theory", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "verify",
        help="check theorems on random layers, and hold them against trained networks",
        description="Check theorems on random layers, and hold them against trained networks.",
        epilog="Exit code: 0 if every statement is consistent, 1 if any is refuted, 3 if any is "
        f"inconclusive, {OTHER_CODES}. The network on MNIST is studied where the environment "
        "variable LOWRANK_DATA names a folder that holds it.",
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
        "report there is overwritten file by file; a folder with anything else is refused. What is "
        "finished is kept in DIR/points: after an interruption, the same command goes on from it",
    )
    climb = commands.add_parser(
        "attack",
        help="search for the instances on which sure statements are nearest to failing",
        description="Search by gradient for the instances on which sure statements are nearest to "
        "failing. A bound that is sharp is reached; one that is wrong is broken.",
        epilog="Exit code: 0 if no bound is broken and every sharp one is reached to 1 %%, 1 if "
        f"any is broken, 3 if a sharp one is not reached, {OTHER_CODES}.",
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
        epilog="Exit code: 0 if every slope is within 0.05 of its exponent, 1 if any is not, "
        f"{OTHER_CODES}.",
    )
    _add_common(fit, _scale)
    study = commands.add_parser(
        "transfer",
        help="study a trained network: its layers under the theorems, and the network compressed",
        description="Study a trained network: each layer under the theorems, and the network "
        "compressed to shares of its weights, certified and timed.",
        epilog=f"Exit code: 0 if the report was written, {OTHER_CODES}. Where the data of the "
        "network are not there, that is bad usage.",
    )
    study.set_defaults(run=_transfer, refuse=study.error)
    which = study.add_mutually_exclusive_group(required=True)
    which.add_argument("network", nargs="?", type=_case, metavar="NETWORK", help="see --list")
    which.add_argument(
        "--list",
        action="store_true",
        help="say which networks there are, whether their data are there, and else what to get",
    )
    study.add_argument(
        "--budget",
        nargs="+",
        type=_share,
        default=BUDGETS,
        metavar="SHARE",
        help="shares of the weights' bytes to compress to (default: 0.25 0.5 0.75); "
        "certificates and times are of the one nearest to 0.5",
    )
    others = [way.name for way in OTHERS]
    study.add_argument(
        "--ways",
        nargs="+",
        choices=others,
        default=(),
        metavar="WAY",
        help="more ways to compress the network, of: " + ", ".join(map(repr, others)),
    )
    study.add_argument("--seed", type=_seed, default=0, metavar="N", help="default: 0")
    study.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of report.html, report.json and figures (default: out/transfer/NETWORK), "
        "otherwise as for verify",
    )
    study.add_argument(
        "--json", type=Path, metavar="FILE", help="write what report.json holds here as well"
    )
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
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=_count, default=1, metavar="N", help="processes (default: 1)"
    )
    where.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="run on the workers of this Dask scheduler, such as tcp://10.0.0.1:8786 "
        "(needs the extra `cluster`)",
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


def _share(text: str) -> float:
    try:
        return check_fraction("share", float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a share strictly between 0 and 1; got {text!r}"
        ) from None


def _case(name: str) -> catalogue.Case:
    try:
        return catalogue.find(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _verify(options: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> int:
    _prepare(options, reports.FILES, refuse)
    console = printing.make_console()
    start = time.monotonic()
    plans = [_plan(name, found, options) for name, found in _chosen(options.only).items()]
    store = Store(options.out / POINTS)
    with _executor(options, refuse) as executor, showing.points(plans, store, console) as step:
        names = () if options.only else NETWORKS
        studying = [executor.submit(_study, name) for name in names]
        report = Report(tuple(sweep(plans, executor=executor, store=store, progress=step)))
        with lost_workers():
            found = [future.result() for future in studying]
    skipped = tuple(result for result in found if isinstance(result, str))
    if options.only:
        skipped = ("Networks were left out: the run was restricted by --only.",)
    record = reports.Record(
        report=report,
        studies=tuple(result for result in found if isinstance(result, LayerStudy)),
        skipped=skipped,
        preset=options.preset,
        only=tuple(options.only),
        seed=options.seed,
        failure_probability=FAILURE_PROBABILITY,
        confidence=CONFIDENCE,
        seconds=time.monotonic() - start,
    )
    reports.write(record, options.out)
    if options.json:
        write_atomically(options.json, to_json(record.summary()))
    store.prune()
    printing.show(record, console)
    if store.found:
        points = sum(plan.points() for plan in plans)
        console.print(f"{store.found:,} of {points:,} points had been computed before.")
    console.print(f"Report: {options.out / 'report.html'}", soft_wrap=True)
    return EXIT_CODES[report.verdict]


def _plan(name: str, statement: AbstractStatement, options: argparse.Namespace) -> Plan:
    return Plan(
        name=name,
        statement=reference(statement),
        trials=PRESETS[options.preset].of(statement),
        key=jax.random.key(options.seed),
        failure_probability=FAILURE_PROBABILITY,
        confidence=CONFIDENCE,
    )


def _chosen(only: Sequence[str]) -> dict[str, AbstractStatement]:
    return {
        name: statement
        for name, statement in STATEMENTS.items()
        if not only or name in only or name.split(".")[0] in only
    }


def _attack(options: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> int:
    chosen = {n: s for n, s in _chosen(options.only).items() if s.adversary is not None}
    if not chosen:
        refuse("argument --only: none of these can be attacked; only sure statements can")
    with _refusing(refuse):
        _check_json(options.json)
        if options.out is not None:
            _check_folder(options.out, [f"{name}.json" for name in chosen])
    console = printing.make_console()
    jobs = {name: functools.partial(_climb, name, options.seed) for name in chosen}
    found: dict[str, Witness] = {}
    with _executor(options, refuse) as executor:
        for name, witness in showing.jobs(jobs, executor, console):
            found[name] = witness
            if options.out is not None:
                witness.save(options.out / f"{name}.json")
    witnesses = [found[name] for name in jobs]
    if options.json:
        write_atomically(options.json, to_json(plain([witness.row() for witness in witnesses])))
    console.print(printing.witnesses(witnesses))
    codes = {EXIT_CODES[witness.finding] for witness in witnesses}
    return 1 if 1 in codes else max(codes)


def _scale(options: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> int:
    chosen = {name: s for name, s in _chosen(options.only).items() if s.rates}
    if not chosen:
        refuse("argument --only: none of these states a rate")
    with _refusing(refuse):
        _check_json(options.json)
    console = printing.make_console()
    jobs = {name: functools.partial(_fit, name, options.seed) for name in chosen}
    with _executor(options, refuse) as executor:
        found = dict(showing.jobs(jobs, executor, console))
    fits: list[Fit] = [fit for name in jobs for fit in found[name]]
    if options.json:
        write_atomically(options.json, to_json(plain([fit.row() for fit in fits])))
    console.print(printing.rates(fits))
    return 0 if all(fit.agrees for fit in fits) else 1


def _transfer(options: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> int:
    console = printing.make_console()
    if options.list:
        missing = {case.name: case.missing() for case in catalogue.CASES.values()}
        console.print(printing.cases(missing))
        for name, reason in missing.items():
            if reason is not None:
                console.print(f"{name}: {reason}\n", soft_wrap=True)
        return 0
    case: catalogue.Case = options.network
    reason = case.missing()
    if reason is not None:
        refuse(
            f"argument NETWORK: {case.name} cannot be read: {reason.splitlines()[0].rstrip('.')}; "
            "`lowrank-theory transfer --list` says what to get and where to put it"
        )
    options.out = options.out or Path("out/transfer") / case.name
    _prepare(options, transfer_report.FILES, refuse)
    try:
        with showing.steps(console) as step:
            found = transfer(
                case,
                budgets=options.budget,
                ways=options.ways,
                seed=options.seed,
                folder=options.out / POINTS,
                progress=step,
            )
    except ValueError as error:  # such as a budget that cannot be met
        refuse(str(error))
    content = transfer_report.record(found)
    transfer_report.write(found, options.out)
    if options.json:
        write_atomically(options.json, to_json(content))
    console.print(printing.compressed_networks(content["networks"], content["metric"]))
    for sentence in transfer_report.sentences(content):
        console.print(sentence)
    console.print(f"Report: {options.out / 'report.html'}", soft_wrap=True)
    return 0


def _prepare(
    options: argparse.Namespace, files: Sequence[str], refuse: Callable[[str], NoReturn]
) -> None:
    """Refuse, before the long work, what could not be written after it."""
    out = options.out
    if out.exists() and not out.is_dir():
        refuse(f"argument --out: {out} is a file; name a folder")
    with _refusing(refuse):
        _check_json(options.json)
        if out.is_dir() and not (out / "report.json").is_file():
            # What an earlier run has left that was killed is its own.
            others = [f for f in out.iterdir() if f.name != POINTS and not is_leftover(f)]
            if others:
                refuse(
                    f"argument --out: {out} is not empty and holds no report.json of an earlier "
                    "run; name another folder, or empty it"
                )
        _check_folder(out, files)
        _check_folder(out / POINTS, ())


@contextlib.contextmanager
def _refusing(refuse: Callable[[str], NoReturn]) -> Iterator[None]:
    """Refuse a place that cannot be written, in one line."""
    try:
        yield
    except OSError as error:
        refuse(f"cannot write {error.filename}: {error.strerror}")


def _check_json(file: Path | None) -> None:
    if file is not None:
        if not file.exists():
            make_folder(file.parent)
        check_writable(file)


def _check_folder(folder: Path, files: Sequence[str]) -> None:
    make_folder(folder)
    for name in files:
        check_writable(folder / name)


# What a worker does: everything that it needs comes by name.


def _study(name: str) -> LayerStudy | str:
    """The study of a network, or why it was skipped."""
    read_network, read_data = NETWORKS[name]
    try:
        network, data = read_network(), read_data()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        return f"{name} was skipped: {reason}."
    batches = _batches(data.training_images), _batches(data.held_out_images)
    return layer_study.study(name, Perceptron.__call__, network, *batches)


def _batches(images: ArrayLike) -> list[np.ndarray]:
    """At least two batches, each of images from everywhere."""
    rows = np.asarray(images)
    count = max(2, math.ceil(len(rows) / BATCH))
    return [rows[start::count] for start in range(count)]


def _climb(name: str, seed: int) -> Witness:
    return attack(STATEMENTS[name], key=jax.random.key(seed))


def _fit(name: str, seed: int) -> tuple[Fit, ...]:
    return scale(STATEMENTS[name], key=jax.random.key(seed))


# Where it runs.


@contextlib.contextmanager
def _executor(options: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> Iterator[Executor]:
    """Where the options want the work to be done."""
    with contextlib.ExitStack() as stack:
        if options.scheduler is not None:
            try:
                executor = stack.enter_context(cluster(options.scheduler))
            except ValueError as error:
                refuse(f"argument --scheduler: {error}")
        elif options.workers > 1:
            executor = stack.enter_context(processes(options.workers))
        else:
            executor = Here()
        yield executor
