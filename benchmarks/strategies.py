"""What a property test costs: 100 examples of each published strategy, asserting each bound that
applies to them, in a new process on one core, with nothing compiled before.

python benchmarks/strategies.py [WORD]

prints a table of the statements whose names begin with the word; `run.py` measures the same.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np

from _measure import Case, Row, row
from lowrank_theory import strategies
from lowrank_theory.problems import Layer, Observed, Truth
from lowrank_theory.theorems import STATEMENTS, AbstractStatement, Certainty, Direction

EXAMPLES = 100
WANTED = 20.0  # seconds
RANK = 2  # asked of layers of which no truth is known
FAILURE = 1e-6
SEED = 0
Strategy = Any
STRATEGIES: Mapping[str, tuple[Callable[[], Strategy], Callable[[Any], Any]]] = {
    "problems()": (strategies.problems, lambda problem: problem),
    "problems(AFTER_RELU)": (
        lambda: strategies.problems(strategies.AFTER_RELU),
        lambda problem: problem,
    ),
    "observed_layers()": (strategies.observed_layers, lambda observed: Layer(observed, RANK)),
}


def holds(statement: AbstractStatement, instance: Any) -> bool:
    """Whether the instance agrees with the statement, as far as a single one can tell."""
    value = float(statement.bound(instance, failure_probability=FAILURE).value)
    realised = float(statement.realised(instance, failure_probability=FAILURE))
    if statement.kind.certainty in (Certainty.EXPECTATION, Certainty.ASYMPTOTIC) or np.isinf(value):
        return not np.isnan(value)
    size = float(np.linalg.norm(instance.observed.outputs))
    room = 1e-9 * (size + size**2 + abs(value))
    above, below = realised > value + room, realised < value - room
    return not {
        Direction.UPPER: above,
        Direction.LOWER: below,
        Direction.EQUALITY: above or below,
    }[statement.kind.direction]


def property_test(strategy: str, name: str) -> int:
    """Run it, and count the examples: none where the statement refuses what the strategy draws."""
    make, instance_of = STRATEGIES[strategy]
    seen: list[bool] = []

    @hypothesis.settings(deadline=None, max_examples=EXAMPLES, database=None)
    @hypothesis.given(make())
    def test(drawn: Any) -> None:
        seen.append(holds(STATEMENTS[name], instance_of(drawn)))
        assert seen[-1]

    try:
        test()
    except ValueError:
        return 0
    return len(seen)


def cold(strategy: str, name: str) -> dict[str, float]:
    """Wall-clock and processor seconds of a new process, imports included."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    began = time.perf_counter()
    printed = subprocess.run(
        [sys.executable, str(Path(__file__)), "--one", strategy, name],
        check=True,
        capture_output=True,
        text=True,
        env=environment | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    ).stdout
    return {"wall_s": time.perf_counter() - began, **json.loads(printed.splitlines()[-1])}


def _measure(strategy: str, names: Sequence[str]) -> Iterator[Row]:
    for name in names:
        times = cold(strategy, name)
        if times["examples"]:
            yield row(
                ours=f"{strategy}, {name}",
                ours_s=times["wall_s"],
                seed=SEED,
                strategy=strategy,
                statement=name,
                processor_s=times["processor_s"],
                examples=times["examples"],
                wanted_s=WANTED,
            )


def candidates(strategy: str, begins: str = "") -> list[str]:
    """The statements about layers that the strategy may answer."""
    kinds = (Observed,) if strategy == "observed_layers()" else (Observed, Truth)
    return [n for n, s in STATEMENTS.items() if s.needs in kinds and n.startswith(begins)]


def cases(*, quick: bool) -> list[Case]:
    return [
        Case(
            f"property test, {strategy}",
            10 * len(names),
            lambda strategy=strategy, names=names: list(_measure(strategy, names)),
        )
        for strategy in (["problems()"] if quick else STRATEGIES)
        for names in [["gaussian_noise.largest"] if quick else candidates(strategy)]
    ]


def main() -> None:
    """Print the table, or measure one test in this process."""
    if sys.argv[1:2] == ["--one"]:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        examples = property_test(*sys.argv[2:])
        print(json.dumps({"processor_s": time.process_time(), "examples": examples}))
        return
    begins = sys.argv[1] if len(sys.argv) > 1 else ""
    print(f"{'strategy':22} {'statement':42} {'seconds':>8} {'of processor':>13} {'examples':>9}")
    for strategy in STRATEGIES:
        for one in _measure(strategy, candidates(strategy, begins)):
            figures = f"{one['ours_s']:8.1f} {one['processor_s']:13.1f} {one['examples']:9}"
            print(f"{strategy:22} {one['statement']:42} {figures}", flush=True)


if __name__ == "__main__":
    main()
