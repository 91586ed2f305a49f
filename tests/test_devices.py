"""Several devices and several processes, each of them started here with a time limit."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from one_of_several import KINDS, rows
from oracle import norm

HERE = Path(__file__).parent
LIMIT = 240


def started(devices: int, *command: object) -> subprocess.Popen[str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def several(processes: int, devices: int, *arguments: object) -> list[subprocess.Popen[str]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    program = HERE / "one_of_several.py"
    return [
        started(devices, program, port, processes, number, *arguments)
        for number in range(processes)
    ]


def finished(*processes: subprocess.Popen[str]) -> list[str]:
    try:
        outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


@pytest.mark.slow
def test_eight_devices_of_one_process() -> None:
    inner = ("-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "eight_devices.py")
    finished(started(8, *inner))


def check_one_calibration(folder: Path, processes: int, devices: int) -> None:
    all_rows = np.concatenate([batch for process in range(processes) for batch in rows(process)])
    for name, start in KINDS.items():
        files = [folder / f"{name}_{p}_{d}.npz" for p in range(processes) for d in range(devices)]
        assert len({file.read_bytes() for file in files}) == 1
        with np.load(files[0]) as found:
            for leaf, right in zip(
                found.values(), jax.tree.leaves(start.update(all_rows)), strict=True
            ):
                assert norm(leaf - np.asarray(right)) <= 1e-12 * norm(np.asarray(right))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_with_their_own_rows_get_one_calibration(processes, tmp_path: Path) -> None:
    finished(*several(processes, 1, tmp_path))
    check_one_calibration(tmp_path, processes, 1)


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_go_on_from_what_was_saved(tmp_path: Path) -> None:
    first, killed = several(2, 2, tmp_path, 1)
    try:
        assert killed.wait(LIMIT) == -signal.SIGKILL
        deadline = time.monotonic() + LIMIT
        while not (tmp_path / "second_moments.safetensors").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        for process in (first, killed):
            process.kill()  # the first waits for one that is gone
            process.communicate()
    for output in finished(*several(2, 2, tmp_path)):
        assert "second_moments goes on after 1\n" in output
    check_one_calibration(tmp_path, 2, 2)
