"""Run verifications on anything that runs functions: this process, others, or a cluster.

A verification asks for samples, in steps; a sample is measured in points, each a pure function of
its description. So it does not matter where a point is measured, in which order, or when: the
results are the same to the last bit on computers of one kind, where BLAS has as many threads.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import math
import platform
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Protocol, runtime_checkable

from lowrank_theory._fingerprint import PACKAGES, fingerprint
from lowrank_theory._progress import Progress
from lowrank_theory.verification.executors import Here, lost_workers
from lowrank_theory.verification.point_store import PointStore
from lowrank_theory.verification.sampling import Point, Sample, Together, join

TASKS = 16  # a sweep comes in at least so many, as far as it has points,
LARGEST = 16_384  # and none of them has more trials
APART = 16  # families that begin one after another stand so far apart


@runtime_checkable
class AbstractPlan(Protocol):
    """What a sweep carries out; it is sent to a worker.

    - `family`: plans of one family draw alike, and are carried out together;
    - `steps`: asks for whole samples, is sent them, and ends in a result;
    - `points`: how many points that takes.
    """

    @property
    def family(self) -> str: ...

    @property
    def name(self) -> str:
        """What progress is reported under."""
        ...

    def steps(self) -> Generator[list[Point], list[Sample], Any]: ...

    def points(self) -> int: ...


def sweep(
    plans: Sequence[AbstractPlan],
    *,
    executor: Executor | None = None,
    store: PointStore | None = None,
    progress: Progress | None = None,
) -> list[Any]:
    """The results of the plans, in their order; in this process where there is no `executor`.

    To compile is dearer than to measure, so a family of plans is one task for one worker, which
    keeps what it has compiled. Only where there are few families, or many trials, is each step
    spread over several. Neighbours draw alike: begun at once, they would be compiled twice, by two
    workers that share what is compiled.
    `progress(name, done, total)` is called after each point of a plan. Raises `LostWorkerError`
    where a worker ends before its work does; what was finished by then is in the `store`.
    """
    executor = executor or Here()
    here = isinstance(executor, Here)
    courses = _courses(plans)
    fewest = 1 if here else math.ceil(TASKS / max(len(courses), 1))
    pending: dict[Future, _Course] = {}

    def take(run: _Run, point: Point, sample: Sample) -> None:
        run.samples[point.name] = sample
        if progress:
            progress(run.plan.name, len(run.samples), run.points)

    def absent(run: _Run) -> list[Point]:
        """What of the next step is to be measured; of the one after, where all of it is known."""
        found: list[Point] = []
        while not found and (missing := run.missing()):
            for point in missing:
                sample = store.load(point) if store else None
                if sample is None:
                    found.append(point)
                else:
                    take(run, point, sample)
        return found

    def submit(course: _Course) -> None:
        """The tasks of the next step."""
        asked = [(number, p) for number, run in enumerate(course.runs) for p in absent(run)]
        if not asked:
            return
        pieces = 1 if here else max(fewest, math.ceil(_trials(asked) / LARGEST))
        if pieces == 1:
            tasks = [functools.partial(_complete, course.state())]
        else:
            tasks = [functools.partial(_measure_each, share) for share in _shares(asked, pieces)]
        course.tasks = len(tasks)
        for task in tasks:
            future = executor.submit(task if here else functools.partial(_all, task), fingerprint())
            pending[future] = course
            if future.done():  # as in this process
                collect(future)

    def collect(future: Future) -> None:
        course = pending.pop(future)
        for number, point, sample in future.result():
            if store:
                store.save(point, sample)
            take(course.runs[number], point, sample)
        course.tasks -= 1
        if course.tasks == 0:
            submit(course)

    try:
        with lost_workers():
            for start in range(APART):
                for course in courses[start::APART]:
                    submit(course)
            while pending:
                for future in concurrent.futures.wait(pending, return_when="FIRST_COMPLETED").done:
                    collect(future)
    finally:
        for future in pending:
            future.cancel()
        if store:
            _rescue(pending, store)
    results = {id(run.plan): run.result for course in courses for run in course.runs}
    return [results[id(plan)] for plan in plans]


class _Run:
    """A plan that is being carried out, and the samples that it has so far."""

    def __init__(
        self, plan: AbstractPlan, samples: Mapping[tuple[str, int], Sample] | None = None
    ) -> None:
        self.plan = plan
        self.samples = dict(samples or {})
        self.result: Any = None
        self._steps = plan.steps()
        self._asked = next(self._steps)

    @functools.cached_property
    def points(self) -> int:
        """How many points the plan takes."""
        return self.plan.points()

    def missing(self) -> list[Point]:
        """The points to be measured next; none once there is a result."""
        while self._asked:
            blocks = [point.blocks() for point in self._asked]
            missing = [p for point in blocks for p in point if p.name not in self.samples]
            if missing:
                return missing
            try:
                self._asked = self._steps.send(
                    [join([self.samples[p.name] for p in point]) for point in blocks]
                )
            except StopIteration as end:
                self._asked, self.result = [], end.value
        return []


@dataclasses.dataclass
class _Course:
    """The plans of a family, and how many tasks are to bring more of their samples."""

    runs: list[_Run]
    tasks: int = 0

    def state(self) -> "list[tuple[AbstractPlan, dict[tuple[str, int], Sample]]]":
        """The plans, with what is known of each."""
        return [(run.plan, run.samples) for run in self.runs]


def _courses(plans: Sequence[AbstractPlan]) -> list[_Course]:
    """One for each family, in the order of their first plans."""
    families: dict[str, list[_Run]] = {}
    for plan in plans:
        families.setdefault(plan.family, []).append(_Run(plan))
    return [_Course(runs) for runs in families.values()]


Asked = tuple[int, Point]  # by the plan of that number in its family


def _trials(asked: Sequence[Asked]) -> int:
    return sum(point.stop - point.start for _, point in asked)


def _shares(asked: Sequence[Asked], pieces: int) -> list[list[Asked]]:
    """At most so many shares, of about as many trials each; points of one name draw alike, and
    stay together.
    """
    named: dict[tuple[str, int], list[Asked]] = {}
    for each in asked:
        named.setdefault(each[1].name, []).append(each)
    groups = list(named.values())
    ends = list(itertools.accumulate(map(_trials, groups)))
    share = [
        math.floor(pieces * (end - _trials(group) / 2) / ends[-1])
        for end, group in zip(ends, groups, strict=True)
    ]
    runs = itertools.groupby(zip(share, groups, strict=True), key=lambda pair: pair[0])
    return [[each for _, group in run for each in group] for _, run in runs]


def _rescue(pending: Iterable[Future], store: PointStore) -> None:
    """Keep what is finished, though the sweep has failed."""
    for future in pending:
        if future.done() and not future.cancelled() and future.exception() is None:
            for _, point, sample in future.result():
                store.save(point, sample)


# --- what a worker does ---------------------------------------------------------------------------


def _complete(
    plans: Sequence[tuple[AbstractPlan, Mapping[tuple[str, int], Sample]]], sources: str
) -> Iterator[tuple[int, Point, Sample]]:
    """Carry out plans from what is known of each: the points that were missing."""
    _check(sources)
    runs, together = [_Run(plan, samples) for plan, samples in plans], Together()
    while asked := [(number, p) for number, run in enumerate(runs) for p in run.missing()]:
        for number, point, sample in _measured(asked, together):
            runs[number].samples[point.name] = sample
            yield number, point, sample


def _measure_each(asked: Sequence[Asked], sources: str) -> Iterator[tuple[int, Point, Sample]]:
    _check(sources)
    yield from _measured(asked, Together())


def _measured(asked: Sequence[Asked], together: Together) -> Iterator[tuple[int, Point, Sample]]:
    numbers = {id(point): number for number, point in asked}
    for point, sample in together.measure([point for _, point in asked]):
        yield numbers[id(point)], point, sample


def _all(task: Callable[[str], Iterator[Any]], sources: str) -> list[Any]:
    """What a task finds, whole: it comes from another process."""
    return list(task(sources))


def _check(sources: str) -> None:
    if sources != fingerprint():
        raise RuntimeError(
            f"The worker on {platform.node()} has other sources or versions of {PACKAGES} than the "
            "process that asks it. Install the same on all computers."
        )
