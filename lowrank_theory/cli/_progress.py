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

from lowrank_theory._progress import Progress
from lowrank_theory.verification.attack import Witness
from lowrank_theory.verification.executors import each
from lowrank_theory.verification.monte_carlo import Plan
from lowrank_theory.verification.point_store import PointStore
from lowrank_theory.verification.scaling import Fit


class _Display:
    """A bar in a terminal, or else lines."""

    def __init__(self, console: Console) -> None:
        self.console, self._start = console, time.monotonic()
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self.bar.add_task("", total=None)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def show(self, name: str, done: int, total: int, line: str | None) -> None:
        """How far the work is; `line` says it where there is no bar."""
        self.bar.update(self._task, completed=done, total=total, description=name)
        if line is not None and not self.console.is_terminal:
            self.console.print(f"{name}: {line}", soft_wrap=True)


@contextlib.contextmanager
def _display(console: Console) -> Iterator[_Display]:
    """What is wrong with the files of an earlier run is said in a line, too."""
    display = _Display(console)
    with display.bar, warnings.catch_warnings():
        warnings.filterwarnings("always", message=".*is corrupt", category=UserWarning)
        warnings.showwarning = lambda message, *_: console.print(str(message), soft_wrap=True)
        yield display


@contextlib.contextmanager
def points(plans: Sequence[Plan], store: PointStore, console: Console) -> Iterator[Progress]:
    """Counts points; a line for each statement, with the time left."""
    total, done = sum(plan.points() for plan in plans), 0
    with _display(console) as display:

        def progress(name: str, done_here: int, all_here: int) -> None:
            nonlocal done
            done += 1
            line, seconds = None, display.seconds
            if done_here == all_here:
                left = (total - done) * seconds / max(done - store.found, 1)
                line = f"{done:,} of {total:,} points after {seconds:.0f} s, {left:.0f} s left"
            display.show(name, done, total, line)

        yield progress


@contextlib.contextmanager
def steps(console: Console) -> Iterator[Progress]:
    """Counts the steps of one job; a line for each."""
    with _display(console) as display:

        def progress(name: str, done: int, total: int) -> None:
            line = f"{done} of {total} after {display.seconds:.0f} s"
            display.show(name, done, total, line)

        yield progress


def jobs(
    calls: Mapping[str, Callable[[], Any]], executor: Executor, console: Console
) -> Iterator[tuple[str, Any]]:
    """What the jobs return, as they end; a line for each."""
    with _display(console) as display:
        for done, (name, result) in enumerate(each(calls, executor), start=1):
            line = f"{_in_words(result)}, after {display.seconds:.0f} s"
            display.show(name, done, len(calls), line)
            yield name, result


def _in_words(result: Witness | tuple[Fit, ...]) -> str:
    if isinstance(result, Witness):
        return f"ratio {result.ratio:.4f}"
    return f"{sum(fit.agrees for fit in result)} of {len(result)} rates agree"
