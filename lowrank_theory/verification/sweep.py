"""Run verifications on anything that runs functions: this process, others, or a cluster.

A verification asks for samples, in steps; a sample is measured in points, each a pure function of
its description. So it does not matter where a point is measured, in which order, or when: the
results are the same to the last bit on computers of one kind, where BLAS has as many threads.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import itertools
import math
import multiprocessing
import os
import pickle
import platform
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

import lowrank_theory
from lowrank_theory._numerics import check_count
from lowrank_theory._store import COLUMNS, Results
from lowrank_theory.verification.sampling import Point, Sample, by_name, join, measure, name_of

TASKS = 16  # a sweep comes in at least so many, as far as it has points,
LARGEST = 16_384  # and none of them has more trials
APART = 16  # plans that begin one after another stand so far apart
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "equinox")

Progress = Callable[[str, int, int], None]


class LostWorkerError(RuntimeError):
    """A worker ended before its work did."""


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
    store: "Store | None" = None,
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


def _rescue(pending: Iterable[Future], store: "Store") -> None:
    """Keep what is finished, though the sweep has failed."""
    for future in pending:
        if future.done() and not future.cancelled() and future.exception() is None:
            for point, sample in future.result():
                store.save(point, sample)


def each(jobs: Mapping[str, Callable[[], Any]], executor: Executor) -> Iterator[tuple[str, Any]]:
    """What each of the jobs returns, as they end. Raises `LostWorkerError` as `sweep` does."""
    if isinstance(executor, Here):
        yield from ((name, job()) for name, job in jobs.items())
        return
    names = {executor.submit(job): name for name, job in jobs.items()}
    try:
        with lost_workers():
            for future in concurrent.futures.as_completed(names):
                yield names[future], future.result()
    finally:
        for future in names:
            future.cancel()


@contextlib.contextmanager
def lost_workers() -> Iterator[None]:
    """Tell a lost worker by `LostWorkerError`, whatever runs the workers."""
    losses = [concurrent.futures.BrokenExecutor, concurrent.futures.CancelledError]
    if distributed := sys.modules.get("distributed"):
        losses.append(distributed.KilledWorker)
    try:
        yield
    except tuple(losses) as error:
        raise LostWorkerError(
            f"A worker ended before its work did ({type(error).__name__}). Finished points are "
            "kept where there is a folder for them: the same again goes on from there."
        ) from error


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


# --- what is kept ---------------------------------------------------------------------------------


class Store:
    """A folder of finished points, each in a file named by the hash of its description, of the
    sources of this package, and of the versions of what it computes with.

    So what other sources have found is never taken for an answer, nor is what another point has, or
    a file that is damaged. Raises `OSError` where the folder cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self._results = Results(folder, "point", COLUMNS)

    @property
    def found(self) -> int:
        """How many points were taken from their files."""
        return self._results.found

    def file(self, point: Point) -> Path:
        """Where a point is kept. Raises `ValueError` for one that cannot be described."""
        return self._results.file(_identity(point))

    def load(self, point: Point) -> Sample | None:
        """What was found for a point; `None`, with a warning, where its file is corrupt."""
        trials = point.stop - point.start

        def fits(columns: Mapping[str, np.ndarray]) -> bool:
            shapes = {columns[name].shape for name in _COLUMNS}
            floats = all(columns[name].dtype == np.float64 for name in _COLUMNS)
            return floats and len(shapes) == 1 and shapes <= {(n,) for n in range(trials + 1)}

        columns = self._results.load(_identity(point), fits)
        if columns is None:
            return None
        direction = by_name(point.statement).kind.direction
        return Sample(direction, trials, *(columns[name] for name in _COLUMNS))

    def save(self, point: Point, sample: Sample) -> None:
        """Write the file of a point in one step, with the point in words."""
        columns = {name: getattr(sample, name) for name in _COLUMNS}
        words = {
            "statement": name_of(by_name(point.statement)),
            "label": point.label,
            "setting": repr(point.setting)[:_WORDS],
            "number": point.number,
            "key": jax.random.key_data(point.key),
            "failure_probability": point.failure_probability,
            "broken": point.broken,
            "trials": [point.start, point.stop],
            "sources": fingerprint(),
        }
        self._results.save(_identity(point), columns, **words)

    def prune(self) -> None:
        """Remove what this run neither found nor wrote: points of other sources or settings."""
        self._results.prune()


_COLUMNS = ("realised", "bound", "allowance")
_WORDS = 2_000  # characters of a setting


def _identity(point: Point) -> str:
    try:
        described = pickle.dumps((fingerprint(), _own_sources(point), point), protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError, OSError) as error:
        raise ValueError(
            "A point can be kept in a folder only if its statement and setting are classes of "
            f"a module with a file: {error}. Define them in one, or leave out the folder."
        ) from None
    return hashlib.sha256(described).hexdigest()


@functools.cache
def fingerprint() -> str:
    """A hash of the sources of this package, and of the versions of what it computes with."""
    root = Path(lowrank_theory.__file__).parent
    digest = hashlib.sha256(platform.machine().encode())
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    for package in PACKAGES:
        digest.update(f"{package} {importlib.metadata.version(package)}".encode())
    return digest.hexdigest()


def _own_sources(point: Point) -> list[bytes]:
    """The modules of a statement and a setting that are not of this package."""
    package = lowrank_theory.__name__ + "."
    classes = [type(thing) for thing in (by_name(point.statement), point.setting)]
    return [
        Path(inspect.getfile(kind)).read_bytes()
        for kind in classes
        if not kind.__module__.startswith(package)
    ]


# --- where it runs --------------------------------------------------------------------------------


class Here(Executor):
    """Runs a function in this process, as soon as it is submitted."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """The function is called at once; what it raises is raised here."""
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextlib.contextmanager
def processes(workers: int) -> Iterator[Executor]:
    """Processes of this computer, each with one thread for BLAS.

    They are spawned, since a process that has computed with JAX cannot be forked: a script that
    uses them begins its own work under `if __name__ == "__main__":`. They end with this process,
    however it ends.
    """
    others = multiprocessing.active_children()
    pool = concurrent.futures.ProcessPoolExecutor(
        check_count("workers", workers, 1), multiprocessing.get_context("spawn"), _prepare
    )
    with _environment(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"):
        for _ in range(workers):
            pool.submit(os.getpid)  # starts one each, since none is idle yet
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - set(others):
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    """An interruption is the parent's affair; its end is the worker's."""
    fingerprint()  # of the sources as they were when the worker began
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def cluster(address: str, *, seconds: float = 10) -> Iterator[Executor]:
    """The workers of a Dask scheduler, such as `tcp://10.0.0.1:8786`.

    Raises `ValueError` where `distributed` is not installed (the extra `cluster`), or no scheduler
    answers within so many seconds.
    """
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ValueError(
            f"A scheduler needs the extra `cluster` ({error}): install `lowrank_theory[cluster]`."
        ) from None
    try:
        client = Client(address, timeout=seconds, set_as_default=False)
    except (OSError, ValueError, AssertionError) as error:  # asserts that its thread has begun
        raise ValueError(f"No scheduler answers at {address!r}: {error}.") from None
    with client, client.get_executor(pure=False) as executor:
        yield executor
