"""Hostile inputs by the thousand, held against an oracle: `make fuzz`.

    python tests/fuzzing/fuzz.py --seed 0                  # 10,000 inputs; goes on where it was cut
    python tests/fuzzing/fuzz.py --seed 0 --only 1234      # one of them, with what was found
    python tests/fuzzing/fuzz.py --seed 0 --kind networks  # those of some kinds

Every input is a function of (seed, index) alone. It ends as *right*, *honest*, *refused* or
*defect* (`fuzz_draws` defines them); a hang and a crash of the process are defects too, and the run
goes on with a fresh process. Each result is a line of out/fuzz/seed-N.jsonl, which a later run
takes up. The exit code is 0 if there is no defect.

A kind of input is a function in `fuzz_kinds`, `fuzz_arrays` or `fuzz_doors`, under `@kind`; a
method is a line of `fuzz_kinds.METHODS`. A new program takes about a second to compile, so that
shapes come from a short list.
"""

import argparse
import collections
import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

# Before JAX: one thread for each process, and programs that compile fast, for they run few times.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)

LIMIT = 120.0  # seconds for one input, its compilation included
STILLBORN = 5
BEGINNING = 60.0  # seconds that a process has, besides, to begin
LIFE = 1_000  # inputs of a process: Linux gives it some 65,000 memory maps, a program takes fifteen
OUT = Path("out") / "fuzz"


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of an input; `why` for all that is neither right nor honest."""

    index: int
    kind: str
    verdict: str
    why: str
    seconds: float


def kind_of(seed: int, index: int) -> tuple[Any, Any]:
    """The kind of an input, and the generator that draws the rest of it."""
    import fuzz_arrays  # noqa: F401  (each adds its kinds)
    import fuzz_doors  # noqa: F401
    import fuzz_draws
    import fuzz_kinds  # noqa: F401

    return fuzz_draws.kind_of(seed, index)


def examine(seed: int, index: int) -> Result:
    """Draw the input, give it to the library, and judge."""
    from fuzz_draws import judged

    kind, rng = kind_of(seed, index)
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verdict, why = judged(kind, rng)
    return Result(index, kind.name, str(verdict), why, round(time.monotonic() - start, 3))


def kinds_of(seed: int, indices: Iterable[int]) -> dict[int, str]:
    """The kinds of some inputs, without trying them."""
    return {index: kind_of(seed, index)[0].name for index in indices}


# --- processes ------------------------------------------------------------------------------------


Examine = Callable[[int, int], Result]


def _work(connection: Any, seed: int, examine: Examine) -> None:
    """Answer each index with a result, until the process is ended."""
    while True:
        connection.send(examine(seed, connection.recv()))


class _Worker:
    """A process that is given one input at a time."""

    def __init__(self, seed: int, examine: Examine) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, seed, examine), daemon=True)
        self.process.start()
        theirs.close()
        self.seed, self.left, self.index = seed, LIFE, -1
        self.lost_at_once = False

    def give(self, index: int) -> None:
        begins = self.left == LIFE
        self.index, self.left = index, self.left - 1
        self.since = time.monotonic() + (BEGINNING if begins else 0.0)
        self.connection.send(index)

    def answer(self, limit: float) -> Result | None:
        """The result, once there is one; a defect if the process has died or takes too long."""
        seconds = max(0.0, time.monotonic() - self.since)
        if self.connection.poll():
            try:
                return self.connection.recv()
            except (EOFError, ConnectionError):
                self.process.join(10)
                why = f"the process died with exit code {self.process.exitcode}"
        elif seconds > limit:
            why = f"no end within {limit:.0f} s"
        else:
            return None
        self.lost_at_once = self.left == LIFE - 1
        self.left = 0
        kind, _ = kind_of(self.seed, self.index)
        return Result(self.index, kind.name, "defect", why, round(seconds, 3))

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def run(
    seed: int,
    indices: Iterable[int],
    workers: int,
    limit: float = LIMIT,
    examine: Examine = examine,
) -> Iterator[Result]:
    """The results as they come. A process that hangs, dies or has lived its life is replaced.

    Raises `RuntimeError` where one after the other is lost at its first input: then it is not the
    inputs.
    """
    waiting, stillborn = collections.deque(indices), 0
    busy: list[_Worker] = []
    try:
        while busy or waiting:
            while waiting and len(busy) < workers:
                busy.append(_Worker(seed, examine))
                busy[-1].give(waiting.popleft())
            multiprocessing.connection.wait([worker.connection for worker in busy], timeout=1.0)
            for worker in list(busy):
                result = worker.answer(limit)
                if result is None:
                    continue
                stillborn = stillborn + 1 if worker.lost_at_once else 0
                if stillborn == STILLBORN:
                    raise RuntimeError(f"No process can work: {result.why}.")
                yield result
                if worker.left and waiting:
                    worker.give(waiting.popleft())
                else:
                    busy.remove(worker)
                    worker.end()
    finally:
        for worker in busy:
            worker.end()


# --- the report -----------------------------------------------------------------------------------


def read(path: Path) -> dict[int, Result]:
    """The results of an earlier run; a line that was cut off is tried again."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            result = Result(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[result.index] = result
    return found


def report(results: Iterable[Result], seed: int) -> None:
    """A table by kind, and each defect with the command that repeats it."""
    from rich import box
    from rich.table import Table

    from lowrank_theory.reports.tables import make_console

    console, results = make_console(), list(results)
    columns = ("right", "honest", "refused", "defect")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("kind", "tried", *columns, "seconds"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for name in [*sorted({result.kind for result in results}), "all"]:
        chosen = [result for result in results if name in (result.kind, "all")]
        counts = collections.Counter(result.verdict for result in chosen)
        seconds = sum(result.seconds for result in chosen)
        if name == "all":
            table.add_section()
        table.add_row(
            name, f"{len(chosen):,}", *(f"{counts[each]:,}" for each in columns), f"{seconds:.0f}"
        )
    for result in results:
        if result.verdict == "defect":
            console.print(f"{result.kind}: {result.why.splitlines()[0]}", soft_wrap=True)
            console.print(f"  python tests/fuzzing/fuzz.py --seed {seed} --only {result.index}")
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Hostile inputs, held against an oracle.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000, help="how many inputs (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="how many processes (%(default)s)")
    parser.add_argument("--only", type=int, nargs="+", help="these inputs, in this process")
    parser.add_argument("--kind", nargs="+", help="inputs of kinds whose names hold one of these")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of results (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget the results of earlier runs")
    asked = parser.parse_args(arguments)
    if asked.only:
        results = [examine(asked.seed, index) for index in asked.only]
        for result in results:
            print(f"{result.index} {result.kind}: {result.verdict} {result.why}")
        return int(any(result.verdict == "defect" for result in results))

    from lowrank_theory.cli._progress import steps
    from lowrank_theory.reports.tables import make_console

    path = asked.out / f"seed-{asked.seed}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if asked.fresh:
        path.unlink(missing_ok=True)
    indices = list(range(asked.count))
    if asked.kind:
        names = kinds_of(asked.seed, indices)
        indices = [i for i in indices if any(part in names[i] for part in asked.kind)]
    done = read(path)
    waiting = [index for index in indices if index not in done]
    found = {index: done[index] for index in indices if index in done}
    console = make_console()
    if found:
        console.print(f"{len(found):,} of {len(indices):,} results are in {path} (--fresh: anew)")
    with path.open("a") as file, steps(console) as progress:
        for number, result in enumerate(run(asked.seed, waiting, asked.workers), 1):
            found[result.index] = result
            file.write("\n" * (number == 1 and bool(done)) + json.dumps(vars(result)) + "\n")
            file.flush()
            if console.is_terminal or number % 250 == 0 or number == len(waiting):
                progress("inputs", number, len(waiting))
    report((found[index] for index in sorted(found)), asked.seed)
    return int(any(result.verdict == "defect" for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
