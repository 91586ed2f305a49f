"""What experiments share: sampling, means with intervals, and writing numbers and figures."""

import argparse
import functools
import io
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import matplotlib
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from lowrank_theory._files import write_atomically
from lowrank_theory.studies._paired import paired

CONFIDENCE = 0.99
_DOTS = 72  # per inch, of parts of a figure that are pictures

# Trials run one after another, so that batched decompositions cannot wait for each other. They are
# mostly calls of decompositions, so the compiler is asked to be quick rather than thorough.
_QUICK = {"xla_backend_optimization_level": 0}


def _trials(trial: Callable[[Any], Any], setting: Any, keys: Array) -> Any:
    return jax.lax.map(lambda key: trial(setting.draw(key=key)), keys)


_mapped = eqx.filter_jit(_trials, compiler_options=_QUICK)  # pyright: ignore[reportCallIssue]


def sample(trial: Callable[[Any], Any], setting: Any, *, trials: int, key: Array) -> Any:
    """`trial(problem)` of random instances; each entry as a NumPy array over the trials.

    The floats of the setting become arrays, so that another value of one compiles nothing anew.
    """
    with jax.enable_x64(True):
        keys = jax.random.split(key, trials)
        setting = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, float) else x, setting)
        return jax.tree.map(np.asarray, _mapped(trial, setting, keys))


def interval(values: np.ndarray) -> dict[str, float]:
    """The mean and its 99 % confidence interval (Student)."""
    low, high = paired(values, CONFIDENCE)
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def column(rows: list[dict[str, Any]], *path: str) -> np.ndarray:
    """One number of every row, as an array; what is missing is NaN."""
    values = [functools.reduce(lambda value, name: value[name], path, row) for row in rows]
    return np.array([np.nan if value is None else value for value in values], float)


def numbers_of(measure: Callable[..., dict[str, Any]], seed: int, quick: bool) -> dict[str, Any]:
    """What was measured, and how."""
    return {
        "seed": seed,
        "quick": quick,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "equinox": eqx.__version__,
            "numpy": np.__version__,
            "matplotlib": matplotlib.__version__,
        },
        **measure(quick=quick),
    }


def run(
    script: str, measure: Callable[..., dict[str, Any]], draw: Callable[..., Figure], *, seed: int
) -> None:
    """Write `figures/<script>.json` and `.svg`; a quick run writes to `out/figures`."""
    parser = argparse.ArgumentParser(description=f"Measure and draw {Path(script).stem}.")
    parser.add_argument("--quick", action="store_true", help="few trials; writes to out/figures")
    parser.add_argument("--draw", action="store_true", help="draw again what was measured before")
    options = parser.parse_args()
    quick = options.quick

    root = Path(script).resolve().parents[1]
    folder = root / "out" / "figures" if quick else root / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(script).stem
    if options.draw:
        text = (folder / f"{name}.json").read_text()
    else:
        text = json.dumps(numbers_of(measure, seed, quick), indent=1, allow_nan=False)
        write_atomically(folder / f"{name}.json", f"{text}\n".encode())
    save(draw(json.loads(text)), folder / f"{name}.svg")
    print(f"wrote {folder / name}.json and .svg")


def save(figure: Figure, file: Path) -> None:
    """Write a figure: the same numbers give the same file, byte for byte."""
    with matplotlib.rc_context({"svg.hashsalt": file.stem}):
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", dpi=_DOTS, metadata={"Date": None})
    write_atomically(file, picture.getvalue())
