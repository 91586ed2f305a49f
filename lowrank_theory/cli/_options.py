"""What the commands share: their options, their exit codes, where work is done and written."""

import argparse
import contextlib
import dataclasses
import enum
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NoReturn

from lowrank_theory._files import check_writable, is_leftover, make_folder
from lowrank_theory._numerics import check_fraction
from lowrank_theory._user_files import in_file, run_file
from lowrank_theory.models import catalogue
from lowrank_theory.theorems import CONTENTS, STATEMENTS, AbstractStatement, AbstractTheorem
from lowrank_theory.verification.attack import Finding
from lowrank_theory.verification.executors import Here, cluster, processes
from lowrank_theory.verification.monte_carlo import Verdict
from lowrank_theory.verification.sampling import theorems_of

Refuse = Callable[[str], NoReturn]

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


def check_there(case: catalogue.Case, refuse: Refuse) -> None:
    """Refuse a network that cannot be read here."""
    reason = case.missing()
    if reason is not None:
        refuse(
            f"argument NETWORK: {case.name} cannot be read: {reason.splitlines()[0].rstrip('.')}; "
            "`lowrank-theory transfer --list` says what to get and where to put it"
        )


def add_common(command: argparse.ArgumentParser, run: Callable[..., int], also: str = "") -> None:
    command.set_defaults(run=run, refuse=command.error)
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=(),
        type=known,
        help=f"these theorems or statements, such as planted_rank or planted_rank.gaussian {also}",
    )
    which.add_argument(
        "--theorem",
        nargs="+",
        metavar="FILE[:NAME]",
        default=(),
        type=users,
        help="theorems of your own, of that name or all that such a file as mine.py holds, in the "
        f"place of these {also}",
    )
    command.add_argument("--seed", type=seed, default=0, metavar="N", help="default: 0")
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=count, default=1, metavar="N", help="processes (default: 1)"
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


def known(name: str) -> str:
    theorems = [theorem.name for theorem in CONTENTS]
    if name not in STATEMENTS and name not in theorems:
        raise argparse.ArgumentTypeError(
            f"there is no theorem or statement {name!r}; there are {', '.join(theorems)}, and the "
            f"statements {', '.join(STATEMENTS)}"
        )
    return name


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on; got {text!r}")
    return int(text)


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^32 - 1; got {text!r}")
    return int(text)


def case(name: str) -> catalogue.Case:
    try:
        return catalogue.find(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def share(text: str) -> float:
    try:
        return check_fraction("share", float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a share strictly between 0 and 1; got {text!r}"
        ) from None


@dataclasses.dataclass(frozen=True)
class Users:
    """The theorems of a user's file, and the words that name them."""

    words: str
    theorems: tuple[AbstractTheorem, ...]

    def __str__(self) -> str:
        return self.words


def users(text: str) -> Users:
    file, name = in_file(text) or (Path(text), "")
    try:
        there = theorems_of(run_file(file))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not there or (name and name not in there):
        holds = f"it holds {', '.join(there)}" if there else "it holds none"
        what = f"no theorem {name!r}" if name else "no theorem"
        raise argparse.ArgumentTypeError(f"{file} holds {what}: {holds}")
    chosen = (there[name],) if name else tuple(there.values())
    names = [name for theorem in chosen for name in theorem.statements]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise argparse.ArgumentTypeError(f"{file} states {', '.join(sorted(twice))} twice")
    return Users(text, chosen)


def selected(options: argparse.Namespace) -> dict[str, AbstractStatement]:
    """The statements that the options name, all by default."""
    if options.theorem:
        theorems = [theorem for file in options.theorem for theorem in file.theorems]
        return {name: found for each in theorems for name, found in each.statements.items()}
    only = options.only
    return {
        name: statement
        for name, statement in STATEMENTS.items()
        if not only or name in only or name.split(".")[0] in only
    }


def prepare(options: argparse.Namespace, files: Sequence[str], refuse: Refuse) -> None:
    """Refuse, before the long work, what could not be written after it."""
    out = options.out
    if out.exists() and not out.is_dir():
        refuse(f"argument --out: {out} is a file; name a folder")
    with refusing(refuse):
        check_json(options.json)
        if out.is_dir() and not (out / "report.json").is_file():
            # What an earlier run has left that was killed is its own.
            others = [f for f in out.iterdir() if f.name != POINTS and not is_leftover(f)]
            if others:
                refuse(
                    f"argument --out: {out} is not empty and holds no report.json of an earlier "
                    "run; name another folder, or empty it"
                )
        check_folder(out, files)
        check_folder(out / POINTS, ())


@contextlib.contextmanager
def refusing(refuse: Refuse) -> Iterator[None]:
    """Refuse a place that cannot be written, in one line."""
    try:
        yield
    except OSError as error:
        refuse(f"cannot write {error.filename}: {error.strerror}")


def check_json(file: Path | None) -> None:
    if file is not None:
        if not file.exists():
            make_folder(file.parent)
        check_writable(file)


def check_folder(folder: Path, files: Sequence[str]) -> None:
    make_folder(folder)
    for name in files:
        check_writable(folder / name)


@contextlib.contextmanager
def workplace(options: argparse.Namespace, refuse: Refuse) -> Iterator[Executor]:
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
