"""What two spectra say of every rank, `tail_shares`: on one core, in a new process.

python benchmarks/law.py [INPUTS]

prints the seconds of one call as JSON; `run.py` measures the same.
"""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from _measure import REPETITIONS, Case, Row, row, wait
from lowrank_theory.free_product import tail_shares

SEED = 0
DECAYS = 0.5, 0.3  # of the singular values of the activations and of the weights
WANTED = 2.0  # seconds of one call at 4096 inputs
LARGEST = 4096


def one(inputs: int) -> dict[str, Any]:
    """Seconds of the first call, and of the later ones on the wall and of the processor."""
    index = np.arange(1.0, inputs + 1)
    spectra = [index ** (-2 * decay) for decay in DECAYS]
    call = functools.partial(tail_shares, *spectra, np.arange(inputs + 1))
    walls, processor = [], []
    for _ in range(1 + REPETITIONS):
        began, spent = time.perf_counter(), time.process_time()
        wait(call())
        walls.append(time.perf_counter() - began)
        processor.append(time.process_time() - spent)
    return {
        "first_s": walls[0],
        "wall_s": float(np.median(walls[1:])),
        "processor_s": float(np.median(processor[1:])),
    }


def _measure(inputs: int) -> list[Row]:
    printed = subprocess.run(
        [sys.executable, str(Path(__file__)), str(inputs)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    times = json.loads(printed.splitlines()[-1])
    wanted = WANTED if inputs == LARGEST else None
    return [
        row(
            ours=f"tail_shares, {inputs} inputs",
            ours_s=times["wall_s"],
            seed=SEED,
            inputs=inputs,
            processor_s=times["processor_s"],
            first_s=times["first_s"],
            wanted_s=wanted,
        )
    ]


def cases(*, quick: bool) -> list[Case]:
    return [
        Case(f"law, {inputs} inputs", 15, functools.partial(_measure, inputs))
        for inputs in ((64,) if quick else (256, 1024, LARGEST))
    ]


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(json.dumps(one(int(sys.argv[1]) if sys.argv[1:] else LARGEST)))
