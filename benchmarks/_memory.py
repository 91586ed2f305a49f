"""Calibrate many rows in a process of its own: `python _memory.py ROWS INPUTS` prints the seconds
and the peak resident bytes.
"""

import re
import sys
import time
from pathlib import Path

import jax
import numpy as np

from lowrank_theory.calibration import Calibration, calibrate

BATCH = 1_000


def peak() -> int:
    """The most bytes that this process has had in memory."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def main(rows: int, inputs: int) -> None:
    random = np.random.default_rng(0)
    batches = (random.standard_normal((BATCH, inputs), np.float32) for _ in range(rows // BATCH))
    start = time.perf_counter()
    jax.block_until_ready(calibrate(batches, Calibration.empty(inputs)))
    print(time.perf_counter() - start, peak())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
