"""What the command shows while it works: bars in a terminal, or else lines with the time."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from lowrank_theory.verification.attack import Witness
from lowrank_theory.verification.executors import each
from lowrank_theory.verification.monte_carlo import Plan
from lowrank_theory.verification.point_store import PointStore
from lowrank_theory.verification.scaling import Fit


def _bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def points(
    plans: Sequence[Plan], store: PointStore, console: Console
) -> Iterator[Callable[[str, int, int], None]]:
    """Counts points: a bar in a terminal, or else a line for each statement, with the time left.
    What is wrong with the points of an earlier run is said too.
    """
    total = sum(plan.points() for plan in plans)
    start, done = time.monotonic(), 0

    def progress(name: str, done_here: int, all_here: int) -> None:
        nonlocal done
        done += 1
        bar.update(task, advance=1, description=name)
        if done_here == all_here and not console.is_terminal:
            seconds = time.monotonic() - start
            left = (total - done) * seconds / max(done - store.found, 1)
            console.print(
                f"{name}: {done:,} of {total:,} points after {seconds:.0f} s, {left:.0f} s left",
                soft_wrap=True,
            )

    with _bar(console) as bar, _told(console):
        task = bar.add_task("", total=total)
        yield progress


@contextlib.contextmanager
def _told(console: Console) -> Iterator[None]:
    """What is wrong with the files of an earlier run is said in a line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=".*is corrupt", category=UserWarning)
        warnings.showwarning = lambda message, *_: console.print(str(message), soft_wrap=True)
        yield


@contextlib.contextmanager
def steps(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Counts the steps of one job: a bar in a terminal, or else a line for each. What is wrong with
    the pieces of an earlier run is said too.
    """
    start = time.monotonic()

    def progress(name: str, done: int, total: int) -> None:
        bar.update(task, completed=done, total=total, description=name)
        if not console.is_terminal:
            seconds = time.monotonic() - start
            console.print(f"{name}: {done} of {total} after {seconds:.0f} s", soft_wrap=True)

    with _bar(console) as bar, _told(console):
        task = bar.add_task("", total=None)
        yield progress


def jobs(
    calls: Mapping[str, Callable[[], Any]], executor: Executor, console: Console
) -> Iterator[tuple[str, Any]]:
    """What the jobs return, as they end. A bar in a terminal, or else a line for each, says so."""
    start = time.monotonic()
    with _bar(console) as bar:
        task = bar.add_task("", total=len(calls))
        for name, result in each(calls, executor):
            bar.update(task, advance=1, description=name)
            if not console.is_terminal:
                seconds = time.monotonic() - start
                console.print(f"{name}: {_in_words(result)}, after {seconds:.0f} s", soft_wrap=True)
            yield name, result


def _in_words(result: Witness | tuple[Fit, ...]) -> str:
    if isinstance(result, Witness):
        return f"ratio {result.ratio:.4f}"
    return f"{sum(fit.agrees for fit in result)} of {len(result)} rates agree"
