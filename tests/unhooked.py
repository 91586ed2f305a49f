"""Calls with wrong types, which the type hook of the tests would refuse before the library does."""

import functools
import importlib
import json
import subprocess
import sys
import traceback
from pathlib import Path

MODULES = (
    "test_bad_input",
    "test_door",
    "networks.test_compress",
    "data_constrained.test_distillation",
)


def check(module: str) -> None:
    """That `check_wrong_types` of a module of tests passes where there is no such hook."""
    assert not (why := failures()[module]), why


@functools.cache
def failures() -> dict[str, str]:
    """Of each module what failed, if anything, all in one process without the hook."""
    done = subprocess.run(
        [sys.executable, "-c", "import unhooked; unhooked.main()"],
        cwd=Path(__file__).parent,
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    found = dict.fromkeys(MODULES, "")
    for module in MODULES:
        try:
            importlib.import_module(module).check_wrong_types()
        except BaseException:  # noqa: BLE001 - what pytest raises is none of `Exception`
            found[module] = traceback.format_exc()[-2000:]
    print(json.dumps(found))
