"""Run verifications on anything that runs functions: this process, others, or a cluster.

A verification asks for samples, in steps; a sample is measured in points, each a pure function of
its description. So it does not matter where a point is measured, in which order, or when: the
results are the same to the last bit on computers of one kind, where BLAS has as many threads.
"""

import concurrent.futures
import functools
import itertools
import math
import platform
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Protocol, runtime_checkable

from lowrank_theory._fingerprint import PACKAGES, fingerprint
from lowrank_theory._progress import Progress
from lowrank_theory.verification.executors import Here, lost_workers
from lowrank_theory.verification.point_store import PointStore
from lowrank_theory.verification.sampling import Point, Sample, join, measure

TASKS = 16  # a sweep comes in at least so many, as far as it has points,
LARGEST = 16_384  # and none of them has more trials
APART = 16  # plans that begin one after another stand so far apart


@runtime_checkable
class AbstractPlan(Protocol):
    """What a sweep carries out; it is sent to a worker.

    - `steps`: asks for whole samples, is sent them, and ends in a result;
    - `points`: how many points that takes.
    """

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

    To compile is dearer than to measure, so a plan is one task for one worker, which keeps what it
    has compiled. Only where there are few plans, or many trials, is each step spread over several.
    Neighbours draw alike: begun at once, they would be compiled twice, by two workers that share
    what is compiled.
    `progress(name, done, total)` is called after each point of a plan. Raises `LostWorkerError`
    where a worker ends before its work does; what was finished by then is in the `store`.
    """
    executor = executor or Here()
    fewest = LARGEST if isinstance(executor, Here) else math.ceil(TASKS / max(len(plans), 1))
    courses = [_Course(plan) for plan in plans]
    pending: dict[Future, _Course] = {}

    def take(course: _Course, point: Point, sample: Sample) -> None:
        course.samples[point.name] = sample
        if progress:
            progress(course.plan.name, len(course.samples), course.points)

    def submit(course: _Course) -> None:
        """The tasks of the next step; those of the one after where all of it is known."""
        absent: list[Point] = []
        while not absent and (missing := course.missing()):
            for point in missing:
                sample = store.load(point) if store else None
                if sample is None:
                    absent.append(point)
                else:
                    take(course, point, sample)
        if not absent:
            return
        trials = sum(point.stop - point.start for point in absent)
        pieces = max(fewest, math.ceil(trials / LARGEST))
        if pieces == 1:
            tasks = [functools.partial(_complete, course.plan, course.samples)]
        else:
            tasks = [functools.partial(_measure_each, s) for s in _shares(absent, pieces)]
        course.tasks = len(tasks)
        for task in tasks:
            future = executor.submit(task, fingerprint())
            pending[future] = course
            if future.done():  # as in this process
                collect(future)

    def collect(future: Future) -> None:
        course = pending.pop(future)
        for point, sample in future.result():
            if store:
                store.save(point, sample)
            take(course, point, sample)
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
    return [course.result for course in courses]


class _Course:
    """A plan that is being carried out: the samples that it has so far, and how many tasks are to
    bring more.
    """

    def __init__(self, plan: AbstractPlan) -> None:
        self.plan = plan
        self.samples: dict[tuple[str, int], Sample] = {}
        self.tasks = 0
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


def _shares(points: Sequence[Point], pieces: int) -> list[list[Point]]:
    """At most so many runs of neighbours, of about as many trials each."""
    ends = list(itertools.accumulate(point.stop - point.start for point in points))
    share = [
        math.floor(pieces * (end - (point.stop - point.start) / 2) / ends[-1])
        for end, point in zip(ends, points, strict=True)
    ]
    runs = itertools.groupby(zip(share, points, strict=True), key=lambda pair: pair[0])
    return [[point for _, point in run] for _, run in runs]


def _rescue(pending: Iterable[Future], store: PointStore) -> None:
    """Keep what is finished, though the sweep has failed."""
    for future in pending:
        if future.done() and not future.cancelled() and future.exception() is None:
            for point, sample in future.result():
                store.save(point, sample)


# --- what a worker does ---------------------------------------------------------------------------


def _complete(
    plan: AbstractPlan, samples: dict[tuple[str, int], Sample], sources: str
) -> list[tuple[Point, Sample]]:
    """Carry out a plan from what is known of it: the points that were missing."""
    course, measured = _Course(plan), []
    course.samples |= samples
    while missing := course.missing():
        for pair in _measure_each(missing, sources):
            course.samples[pair[0].name] = pair[1]
            measured.append(pair)
    return measured


def _measure_each(points: Sequence[Point], sources: str) -> list[tuple[Point, Sample]]:
    if sources != fingerprint():
        raise RuntimeError(
            f"The worker on {platform.node()} has other sources or versions of {PACKAGES} than the "
            "process that asks it. Install the same on all computers."
        )
    return [(point, measure(point)) for point in points]
