"""Calls with wrong types, which the type hook of the tests would refuse before the library does."""

import subprocess
import sys
from pathlib import Path


def check(module: str) -> None:
    """Call `check_wrong_types` of a module of tests in a process that has no such hook."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}; {module}.check_wrong_types()"],
        cwd=Path(__file__).parent,
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
