"""What benchmarks share: rows, paired repetitions, the machine, and a record that resumes."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lowrank_theory._files import plain, to_json, write_atomically

ROOT = Path(__file__).resolve().parents[1]
REPETITIONS = 5
OVERHEAD = 5.0  # seconds of a case that its size does not explain
PAUSE = 0.2  # so that the threads of one library have stopped spinning before another is timed
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "scikit-learn", "torch")
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS")

Call = Callable[[], Any]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """A measurement: its name, what it takes on two cores in seconds, and how to take it."""

    name: str
    seconds: float
    measure: Callable[[], list[Row]]


def row(
    *,
    ours: str | None = None,
    ours_s: float | None = None,
    peer: str | None = None,
    peer_s: float | None = None,
    ratio: Sequence[float] = (),
    ours_error: float | None = None,
    peer_error: float | None = None,
    seed: int,
    **more: Any,
) -> Row:
    """A row of `results.json`.

    Times are medians; `ratio` is the median, and `spread` the least and the largest, of the peer's
    time over ours in each repetition: above one, ours is faster. Errors are output errors over the
    optimum, both in float64.
    """
    return {
        "ours": ours,
        "ours_s": ours_s,
        "peer": peer,
        "peer_s": peer_s,
        "ratio": float(np.median(ratio)) if len(ratio) else None,
        "spread": [min(ratio), max(ratio)] if len(ratio) else None,
        "repetitions": len(ratio) or None,
        "ours_error": ours_error,
        "peer_error": peer_error,
        "seed": seed,
        **more,
    }


def wait(result: Any) -> Any:
    """The same result, once the device has computed it."""
    return jax.block_until_ready(result)


def timed(call: Call) -> float:
    """Wall-clock seconds of one call, its result computed."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    wait(call())
    return time.perf_counter() - start


def interleaved(calls: Mapping[str, Call], repetitions: int = REPETITIONS) -> dict[str, np.ndarray]:
    """Seconds of every call in every repetition, one after another in turning order.

    Every call must have run before: compilation is excluded.
    """
    names, seconds = list(calls), {name: np.zeros(repetitions) for name in calls}
    for repetition in range(repetitions):
        start = repetition % len(names)
        for name in names[start:] + names[:start]:
            seconds[name][repetition] = timed(calls[name])
    return seconds


def paired(ours: np.ndarray, peer: np.ndarray) -> dict[str, Any]:
    """The entries of a row about time."""
    times = {"ours_s": float(np.median(ours)), "peer_s": float(np.median(peer))}
    return {**times, "ratio": (peer / ours).tolist()}


def machine() -> dict[str, Any]:
    """What the figures were taken on, and with which versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "device": jax.devices()[0].device_kind,
        "threads": {name: os.environ[name] for name in THREADS if name in os.environ},
        "versions": {
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in PACKAGES if p in installed},
        },
    }


def code() -> str:
    """A fingerprint of the library and of the benchmarks."""
    files = [*(ROOT / "lowrank_theory").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def run(cases: Sequence[Case], file: Path, *, only: str, quick: bool, fresh: bool) -> None:
    """Measure the cases whose name begins with `only`, and write the file after each of them.

    What the file already holds of a case, measured by the same code on the same machine, is kept;
    so is, without `fresh`, what it holds of the cases that are not asked for.
    """
    made = {"quick": quick, "code": code(), **plain(machine())}
    rows: dict[str, list[Row]] = {case.name: [] for case in cases}
    asked = [case for case in cases if case.name.startswith(only)]
    for one in json.loads(file.read_text()) if file.exists() else []:
        if one["case"] in rows:
            rows[one["case"]].append(one)
    for case in asked:
        if fresh or any(one["made"] != made for one in rows[case.name]):
            rows[case.name] = []
    waiting = [case for case in asked if not rows[case.name]]
    print(f"{len(asked) - len(waiting)} of {len(asked)} cases are measured already", flush=True)
    spent = expected = 0.0
    for index, case in enumerate(waiting):
        left = sum(OVERHEAD + later.seconds for later in waiting[index:])
        left *= spent / expected if expected else 1
        place = f"[{index + 1}/{len(waiting)}]"
        print(f"{place} {case.name}; about {_minutes(left)} to go", flush=True)
        start = time.perf_counter()
        rows[case.name] = [{"case": case.name, **plain(r), "made": made} for r in case.measure()]
        spent += time.perf_counter() - start
        expected += OVERHEAD + case.seconds
        for one in rows[case.name]:
            print("      " + summary(one), flush=True)
        write_atomically(file, to_json([one for case in cases for one in rows[case.name]]))
        jax.clear_caches()  # a process has room for some thousand compiled programs


def summary(one: Row) -> str:
    """A row in a line of text."""
    parts = [one["ours"] or "", f"{one['ours_s']:.3g} s" if one["ours_s"] else ""]
    if one["peer"]:
        parts.append(f"against {one['peer']}")
        parts.append(f"{one['peer_s']:.3g} s" if one["peer_s"] else "")
    if one["ratio"]:
        low, high = one["spread"]
        parts.append(f"ratio {one['ratio']:.2f} ({low:.2f} to {high:.2f})")
    named = {"ours error": one["ours_error"], "peer error": one["peer_error"]}
    parts += [f"{name} {error:.6f}" for name, error in named.items() if error is not None]
    return "  ".join(part for part in parts if part)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
