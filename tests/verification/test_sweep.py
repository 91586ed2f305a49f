"""A sweep finds the same wherever it runs, and goes on where it was cut short."""

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lowrank_theory import Setting, theorems, verify
from lowrank_theory.generators import noise
from lowrank_theory.theorems.best_possible import Optimality
from lowrank_theory.verification import Report, executors, point_store, sampling, sweep
from lowrank_theory.verification.monte_carlo import Plan
from lowrank_theory.verification.sampling import Point, Sample, Together, join, measure, request
from tolerance import assert_close

STATEMENT = theorems.best_possible.truncated_svd
SMALL = Setting(samples=12, inputs=6, outputs=5, rank=2)
NOISY = dataclasses.replace(SMALL, noise=noise.Gaussian(1.0))
TRIALS = 400  # two regimes, of two blocks each
KEY = jax.random.key(0)


class OfOnesOwn(Optimality):
    """A statement that is not in the table of contents."""


def run(folder: Path, executor: Executor | None = None, **options: Any) -> Report:
    return verify(
        STATEMENT,
        trials=TRIALS,
        key=jax.random.key(3),
        settings={"quiet": SMALL, "noisy": NOISY},
        executor=executor,
        folder=folder,
        **options,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "BLOCK", 128)
        yield


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("here")
    return run(folder), files(folder)


class LastFirst(Executor):
    """Ends first what was submitted last."""

    def __init__(self) -> None:
        self.delay = 1.0

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        future = Future()
        self.delay *= 0.7
        threading.Timer(self.delay, lambda: future.set_result(fn(*args, **kwargs))).start()
        return future


# --- where it runs --------------------------------------------------------------------------------


def test_points_are_the_blocks_of_a_sample():
    point = request(STATEMENT, SMALL, 300, jax.random.key(0))
    blocks = point.blocks()
    assert [(block.start, block.stop) for block in blocks] == [(0, 128), (128, 256), (256, 300)]
    whole, joined = measure(point), join([measure(block) for block in blocks])
    for name in ("realised", "bound", "allowance"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(joined, name))
    assert joined.trials == whole.trials == 300
    many = dataclasses.replace(point, number=1_000_000, stop=1_000_000).blocks()
    assert len(many) <= sampling.BLOCKS
    assert many[0].stop % sampling.LARGE_BATCH == 0 and many[-1].stop == 1_000_000


def test_the_order_of_completion_does_not_matter(here, tmp_path):
    report, written = here
    seen: list[tuple[str, int, int]] = []
    late = run(tmp_path, LastFirst(), progress=lambda *call: seen.append(call))
    assert late.rows() == report.rows() and files(tmp_path) == written
    assert seen == [("best_possible.truncated_svd", done, 8) for done in range(1, 9)]


def test_processes_find_the_same_and_one_that_is_killed_is_told(here, tmp_path, monkeypatch):
    report, written = here
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)

    def kill(*_: Any) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    with executors.processes(2) as executor:
        assert executor.submit(os.getenv, "OPENBLAS_NUM_THREADS").result() == "1"
        assert "OPENBLAS_NUM_THREADS" not in os.environ
        assert run(tmp_path / "whole", executor).rows() == report.rows()
        assert files(tmp_path / "whole") == written
        with pytest.raises(executors.LostWorkerError, match="the same again goes on from there"):
            run(tmp_path / "half", executor, progress=kill)
    kept = files(tmp_path / "half")
    assert kept and kept.items() < written.items()
    again = point_store.PointStore(tmp_path / "half")
    assert again.found == 0
    assert run(tmp_path / "half").rows() == report.rows()
    assert files(tmp_path / "half") == written


@pytest.mark.slow
def test_a_cluster_finds_the_same(here, tmp_path):
    report, written = here
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
        ) as local,
        executors.cluster(local.scheduler_address) as executor,
    ):
        assert run(tmp_path, executor).rows() == report.rows()
    assert files(tmp_path) == written


@pytest.mark.slow
def test_many_plans_are_a_task_each_and_few_are_split(here, monkeypatch):
    report, _ = here
    submitted: list[Any] = []

    class Counting(Executor):
        def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
            submitted.append(fn)
            return executors.Here().submit(fn, *args, **kwargs)

    name = "best_possible.truncated_svd"
    plan = Plan(name, name, TRIALS, jax.random.key(3), {"quiet": SMALL, "noisy": NOISY})
    assert plan.points() == 8
    for tasks, expected in ((16, 8), (2, 4), (1, 1)):
        monkeypatch.setattr(sweep, "TASKS", tasks)
        submitted.clear()
        (found,) = sweep.sweep([plan], executor=Counting())
        assert len(submitted) == expected and found.row() == report.rows()[0]


@pytest.mark.slow
def test_neighbours_do_not_begin_together(monkeypatch):
    monkeypatch.setattr(sweep, "APART", 2)
    monkeypatch.setattr(sweep, "TASKS", 1)
    begun: list[str] = []

    class Noting(Executor):
        def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
            (task,) = fn.args  # pyright: ignore[reportFunctionMemberAccess]
            ((plan, _),) = task.args[0]
            begun.append(plan.name)
            return executors.Here().submit(fn, *args, **kwargs)

    statement = sampling.reference(STATEMENT)
    plans = [Plan(name, statement, 2, jax.random.key(3), {"quiet": SMALL}) for name in "abc"]
    found = sweep.sweep(plans, executor=Noting())
    assert begun == ["a", "c", "b"]
    assert [report.name for report in found] == ["a", "b", "c"]


def test_shares_are_of_about_as_many_trials():
    points = request(STATEMENT, SMALL, 8_000, jax.random.key(0)).blocks()
    asked = [(0, point) for point in points]
    for pieces in (1, 2, 3, 5, 100):
        shares = sweep._shares(asked, pieces)
        assert [each for share in shares for each in share] == asked
        assert len(shares) == min(pieces, len(points))
        lengths = [len(share) for share in shares]
        assert max(lengths) - min(lengths) <= 1


def test_a_worker_with_other_sources_is_refused():
    with pytest.raises(RuntimeError, match="has other sources or versions"):
        list(sweep._measure_each([], "something else"))


# --- what is kept ---------------------------------------------------------------------------------


def test_what_is_finished_is_not_measured_again(here, tmp_path, monkeypatch):
    report, _ = here
    run(tmp_path)
    monkeypatch.setattr(sweep, "Together", None)
    assert run(tmp_path).rows() == report.rows()


def test_an_interruption_keeps_what_is_finished(here, tmp_path, monkeypatch):
    report, written = here

    class Interrupted(Together):
        def measure(self, points: Sequence[Point]) -> Iterator[tuple[Point, Sample]]:
            yield from itertools.islice(super().measure(points), 3)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "Together", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert len(files(tmp_path)) == 3
    assert run(tmp_path).rows() == report.rows()
    assert files(tmp_path) == written


@pytest.mark.parametrize("damage", [lambda content: content[:-40], lambda _: b"", lambda _: b"x"])
def test_a_corrupt_file_is_told_and_computed_anew(damage, here, tmp_path):
    report, written = here
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    file = tmp_path / sorted(written)[2]
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=rf"{file.name} is corrupt .*: computed anew"):
        again = run(tmp_path)
    assert again.rows() == report.rows()
    assert files(tmp_path) == written


def test_no_damaged_byte_passes_for_another_number(tmp_path):
    store = point_store.PointStore(tmp_path)
    point = request(STATEMENT, SMALL, 3, jax.random.key(0))
    sample = Sample(STATEMENT.kind.direction, 3, *np.arange(9.0).reshape(3, 3))
    store.save(point, sample)
    file = store.file(point)
    content = file.read_bytes()
    for index in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[index] ^= 0x24
        file.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = store.load(point)
        for name in ("realised", "bound", "allowance") if found else ():
            np.testing.assert_array_equal(getattr(found, name), getattr(sample, name))


def test_every_part_of_a_point_names_its_file(tmp_path, monkeypatch):
    store = point_store.PointStore(tmp_path)
    point = request(STATEMENT, SMALL, 3, jax.random.key(0))
    others = [
        dataclasses.replace(point, **{name: value})
        for name, value in {
            "statement": "best_possible.optimality",
            "label": "other",
            "setting": NOISY,
            "number": 4,
            "key": jax.random.key(1),
            "failure_probability": 0.1,
            "broken": True,
            "start": 1,
            "stop": 2,
        }.items()
    ]
    assert len(others) == len(dataclasses.fields(point))
    names = {store.file(one) for one in [point, *others]}
    assert len(names) == 1 + len(others)
    assert store.file(dataclasses.replace(point)) == store.file(point)
    monkeypatch.setattr(point_store, "fingerprint", lambda: "other sources")
    assert not names & {store.file(one) for one in [point, *others]}


def test_what_a_run_did_not_use_is_pruned(tmp_path):
    old, point = point_store.PointStore(tmp_path), request(STATEMENT, SMALL, 3, jax.random.key(0))
    sample = Sample(STATEMENT.kind.direction, 3, *np.zeros((3, 3)))
    for start in range(3):
        old.save(dataclasses.replace(point, start=start), sample)
    (tmp_path / "mine.txt").touch()
    new = point_store.PointStore(tmp_path)
    assert new.load(point) is not None and new.found == 1
    new.prune()
    assert set(files(tmp_path)) == {new.file(point).name, "mine.txt"}


def test_a_statement_of_ones_own_is_kept_by_its_module(tmp_path):
    store = point_store.PointStore(tmp_path)
    point = request(OfOnesOwn(), SMALL, 3, jax.random.key(0))
    assert store.file(point) == store.file(dataclasses.replace(point, statement=OfOnesOwn()))
    assert point_store._own_sources(point) == [Path(__file__).read_bytes()]

    class Local(Optimality):
        pass

    with pytest.raises(ValueError, match=r"classes of a module.*leave out the folder"):
        store.file(request(Local(), SMALL, 3, jax.random.key(0)))


# --- bad usage ------------------------------------------------------------------------------------


def test_a_scheduler_that_does_not_answer_is_refused(monkeypatch):
    pytest.importorskip("distributed")
    for address in ("nonsense://127.0.0.1:1", "tcp://127.0.0.1:1"):
        with (
            pytest.raises(ValueError, match="No scheduler answers at"),
            executors.cluster(address, seconds=0.2),
        ):
            pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ValueError, match=r"needs the extra `cluster`.*lowrank_theory\[cluster\]"),
        executors.cluster("tcp://127.0.0.1:1"),
    ):
        pass


def test_processes_are_at_least_one():
    with (
        pytest.raises(ValueError, match="`workers` must be an integer >= 1"),
        executors.processes(0),
    ):
        pass


def test_a_job_that_fails_is_raised():
    pool = concurrent.futures.ThreadPoolExecutor(1)
    with pool, pytest.raises(ZeroDivisionError):
        dict(executors.each({"fine": int, "wrong": lambda: 1 // 0}, pool))


# --- together -------------------------------------------------------------------------------------


def test_statements_of_a_family_are_drawn_once_and_measured_as_alone(monkeypatch):
    numbers = [(theorems.best_possible.truncated_svd, 40), (theorems.best_possible.optimality, 70)]
    points = [
        request(statement, setting, number, jax.random.key(0), label=name)
        for statement, number in numbers
        for name, setting in {"quiet": SMALL, "noisy": NOISY}.items()
    ]
    alone = [measure(point) for point in points]
    drawn: list[Setting] = []

    def counted(setting: Setting, *, key: Any, draw: Any = Setting.draw_parts) -> Any:
        drawn.append(setting)
        return draw(setting, key=key)

    monkeypatch.setattr(Setting, "draw_parts", counted)
    found = {id(point): sample for point, sample in Together().measure(points)}
    trials = 3 * sampling.BATCH  # whole batches, and one trial that tells the structure
    assert len(drawn) == 2 * (trials + 1)
    for point, expected in zip(points, alone, strict=True):
        for name in ("realised", "bound", "allowance"):
            assert_close(getattr(found[id(point)], name), getattr(expected, name), condition=8)


def test_many_trials_are_drawn_by_a_compiled_program(monkeypatch):
    many = request(STATEMENT, SMALL, 4 * sampling.BATCH, KEY)
    assert many.is_drawn_on_host
    by_numpy = measure(many)
    monkeypatch.setattr(sampling, "COMPILED", 4 * sampling.BATCH)
    monkeypatch.setattr(sampling, "_on_host", None)
    assert not many.is_drawn_on_host
    by_jax = measure(many)
    assert by_jax.applicable == by_numpy.applicable and not by_jax.violated.any()
    means = [sample.realised.mean() for sample in (by_jax, by_numpy)]
    assert abs(means[0] - means[1]) < 5 * by_numpy.realised.std() * (2 / many.number) ** 0.5


class JaxAlone(noise.AbstractNoise):
    """A law that cannot be drawn with NumPy."""

    @property
    def sub_gaussian_scale(self) -> float:
        return 1.0

    def draw(self, activations: Any, target_weights: Any, *, key: Any) -> jax.Array:
        return jax.random.normal(key, (activations.shape[0], target_weights.shape[1]))


def test_a_law_of_ones_own_is_drawn_with_jax():
    found = measure(request(STATEMENT, dataclasses.replace(SMALL, noise=JaxAlone()), 4, KEY))
    assert found.applicable == 4 and not found.violated.any()
