"""How fast calibration accumulates, beside a matrix product of as many operations and the same
dtype; and how much memory it takes.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from _measure import REPETITIONS, Call, Case, Row, interleaved, paired, row, wait
from lowrank_theory.calibration import Calibration, TriangularCalibration, calibrate

SEED = 0
TARGET = 0.75
ROWS = 16_384
BATCH = 4  # rows for each input
FEW, MANY = 10_000, 1_000_000
FLAT = 1 / 1.05


def _batches(rows: int, inputs: int) -> list[jax.Array]:
    """Batches of float32 activations on the device."""
    random = np.random.default_rng(SEED)
    height = min(rows, BATCH * inputs)
    return [
        jnp.asarray(random.standard_normal((height, inputs), np.float32))
        for _ in range(rows // height)
    ]


def _product(rows: int, inputs: int) -> Call:
    """As many multiplications as the full products of all rows take, as float64 products of square
    matrices.
    """
    multiply = jax.jit(functools.partial(jnp.matmul, precision="highest"))
    with jax.enable_x64(True):
        square = jnp.asarray(_batches(inputs, inputs)[0], float)

    def call() -> list[jax.Array]:
        with jax.enable_x64(True):
            return [multiply(square, square) for _ in range(rows // inputs)]

    return call


def _rate(start: Any, rows: int, inputs: int, repetitions: int, target: float | None) -> list[Row]:
    batches, name = _batches(rows, inputs), type(start).__name__
    calls: dict[str, Call] = {
        name: lambda: calibrate(batches, start),
        "product": _product(rows, inputs),
    }
    for call in calls.values():
        wait(call())
    seconds = interleaved(calls, repetitions)
    return [
        row(
            ours=name,
            peer="matrix product, float64",
            **paired(seconds[name], seconds["product"]),
            inputs=inputs,
            rows=rows,
            target=target,
            seed=SEED,
        )
    ]


# By default glibc keeps pieces of what is freed, however little is in use: both are measured.
ALLOCATORS = {"": {}, ", freed memory given back": {"MALLOC_MMAP_THRESHOLD_": str(2**18)}}


def _peak(rows: int, inputs: int, allocator: dict[str, str]) -> dict[str, float]:
    """Seconds and peak resident bytes of a process that calibrates so many rows."""
    script = Path(__file__).with_name("_memory.py")
    command = [sys.executable, str(script), str(rows), str(inputs)]
    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | allocator
    ).stdout
    seconds, peak = printed.split()
    return {"seconds": float(seconds), "bytes": float(peak)}


def _memory(few: int, many: int, inputs: int) -> list[Row]:
    rows = []
    for how, allocator in ALLOCATORS.items():
        pairs = [(_peak(many, inputs, allocator), _peak(few, inputs, allocator)) for _ in range(2)]
        large, small = pairs[-1]
        rows.append(
            row(
                ours=f"peak memory, {many:,} rows{how}",
                ours_s=large["seconds"],
                peer=f"peak memory, {few:,} rows{how}",
                peer_s=small["seconds"],
                ratio=[b["bytes"] / a["bytes"] for a, b in pairs],
                ours_bytes=large["bytes"],
                peer_bytes=small["bytes"],
                target=FLAT,
                seed=SEED,
            )
        )
    return rows


def cases(*, quick: bool) -> list[Case]:
    sizes, rows = ((64,), 512) if quick else ((1024, 2048, 4096), ROWS)
    few, many, wide = (1_000, 10_000, 64) if quick else (FEW, MANY, 512)
    repetitions = 2 if quick else REPETITIONS
    rates = [
        Case(
            f"accumulate, {kind.__name__}, {inputs} inputs",
            cost * (inputs / 4096) ** 2,
            functools.partial(_rate, kind.empty(inputs), rows, inputs, repetitions, target),
        )
        for kind, cost, target in (
            (Calibration, 90, TARGET),
            (TriangularCalibration, 200, None),
        )
        for inputs in sizes
        if kind is Calibration or inputs < 4096
    ]
    memory = Case(f"memory, {wide} inputs", 80, functools.partial(_memory, few, many, wide))
    return [*rates, memory]
