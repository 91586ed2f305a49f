"""Inputs that hang and crash, for the processes of the fuzzer: they import this and not JAX."""

import os
import time

import fuzz


def examine(_: int, index: int) -> fuzz.Result:
    """Stands for `fuzz.examine`."""
    if index == 1:
        time.sleep(60)
    if index == 2:
        os._exit(3)
    return fuzz.Result(index, "tame", "right", "", 0.0)


def die(_: int, index: int) -> fuzz.Result:
    os._exit(index)
