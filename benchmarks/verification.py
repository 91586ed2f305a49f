"""Trials per second of `verify`, beside the loop that one would write in NumPy."""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
from collections.abc import Iterator

import jax

import lowrank_theory as lrt
from _loop import trials as plain_trials
from _measure import REPETITIONS, THREADS, Call, Case, Row, interleaved, paired, row
from lowrank_theory.theorems import planted_rank
from lowrank_theory.verification import executors
from lowrank_theory.verification.monte_carlo import CONTROL_TRIALS

SEED = 0
TRIALS = 1_000
SETTING = lrt.Setting(samples=128, inputs=64, outputs=48, rank=4)
TARGET = 1.6


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """For processes that start within."""
    names = [name for name in THREADS if name.endswith("_NUM_THREADS")]
    kept = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


def _measure(trials: int, workers: tuple[int, ...], repetitions: int) -> list[Row]:
    """Every instance counts: `verify` draws as many again for each of its two controls, and so does
    the loop.
    """
    statement, controls = planted_rank.gaussian, max(trials, CONTROL_TRIALS)
    names = {count: f"verify, {count} process{'es' if count > 1 else ''}" for count in workers}
    with contextlib.ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")
        loop = stack.enter_context(concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn))
        with _one_thread():
            loop.submit(plain_trials, 1, 1, SEED).result()
        calls: dict[str, Call] = {
            "loop": lambda: loop.submit(plain_trials, trials, controls, SEED).result(),
        }
        for count, name in names.items():
            executor = stack.enter_context(executors.processes(count))
            calls[name] = functools.partial(
                lrt.verify,
                statement,
                trials=trials,
                key=jax.random.key(SEED),
                settings={"64 x 48": SETTING},
                executor=executor,
            )
        for call in calls.values():
            call()
        seconds = interleaved(calls, repetitions)
    drawn = trials + 2 * controls
    rows = []
    for count, name in names.items():
        times = paired(seconds[name], seconds["loop"])
        rows.append(
            row(
                ours=name,
                peer="loop in NumPy, one thread",
                **times,
                instances=drawn,
                ours_per_s=drawn / times["ours_s"],
                peer_per_s=drawn / times["peer_s"],
                workers=count,
                target=TARGET if count == 2 else None,
                seed=SEED,
            )
        )
    return rows


def cases(*, quick: bool) -> list[Case]:
    trials, workers = (32, (1,)) if quick else (TRIALS, (1, 2))
    repetitions = 2 if quick else REPETITIONS
    return [
        Case(
            "verification, planted_rank.gaussian, 64 x 48",
            60,
            functools.partial(_measure, trials, workers, repetitions),
        )
    ]
