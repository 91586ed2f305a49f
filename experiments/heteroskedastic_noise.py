"""The norm of noise with unequal scales against its bounds, from equal scales to one entry.

Left, loud and quiet outputs: the covering bound follows the norm, and with a projector the
separable one does; right, noise in a band: from sparse to full, Khintchine, moments and covering
take turns as the least bound.

python experiments/heteroskedastic_noise.py [--quick]
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.plotting import SERIES, legend_above, panels
from lowrank_theory.theorems.heteroskedastic_noise import (
    ScaledNoise,
    ScaledNoiseSetting,
    expected_norm_bounds,
    heteroskedastic_noise,
)

SEED = 13
SAMPLES, OUTPUTS, DIRECTIONS = 128, 96, 8
SPREADS = (1.0, 2.0, 5.0, 10.0, 30.0, 100.0, 1000.0)
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)


def _by_output(spread: float) -> np.ndarray:
    return np.outer(np.ones(SAMPLES), np.geomspace(1, 1 / spread, OUTPUTS))


def _band(width: int) -> np.ndarray:
    distance = np.subtract.outer(np.arange(SAMPLES), np.arange(OUTPUTS))
    return (np.abs(distance) < width).astype(float)


def _norms(instance: ScaledNoise) -> Any:
    """Realised norm, without and with the projector."""
    return tuple(
        statement.loss(instance, statement.estimate(instance))
        for statement in (heteroskedastic_noise.norm, heteroskedastic_noise.separable)
    )


def _row(scales: np.ndarray, trials: int, key: Any) -> dict[str, Any]:
    setting = ScaledNoiseSetting(scales, DIRECTIONS)
    whole, projected = sample(_norms, setting, trials=trials, key=key)
    with jax.enable_x64(True):
        bounds = expected_norm_bounds(scales)
        separable = heteroskedastic_noise.expected_separable.bound(setting.draw(key=key))
        names = ("covering", "khintchine", "moments")
        found: dict[str, Any] = {name: float(getattr(bounds, name)) for name in names}
        found["separable"] = float(separable.value) if separable.holds else None
    return {"norm": interval(whole), "projected_norm": interval(projected), **found}


def _rows(
    values: tuple[Any, ...], scales: Callable[[Any], np.ndarray], trials: int, seed: int
) -> list[dict[str, Any]]:
    key = jax.random.key(seed)
    return [
        {"value": value, **_row(scales(value), trials, jax.random.fold_in(key, index))}
        for index, value in enumerate(values)
    ]


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 10 if quick else 100
    parameters = {"samples": SAMPLES, "outputs": OUTPUTS, "directions": DIRECTIONS}
    return {
        **parameters,
        "trials": trials,
        "by_output": _rows(SPREADS, _by_output, trials, SEED),
        "band": _rows(WIDTHS, _band, trials, SEED + 1),
    }


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.8, height=4.0)
    for panel, rows in ((left, numbers["by_output"]), (right, numbers["band"])):
        value = column(rows, "value")
        for name, label, style in (
            ("khintchine", "bound by Khintchine's inequality", SERIES[1]),
            ("moments", "bound by moments", SERIES[2]),
            ("covering", "bound by covering", SERIES[3]),
        ):
            panel.plot(value, column(rows, name), **style, label=label)
        panel.plot(value, column(rows, "norm", "mean"), **SERIES[0], label="mean norm")
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
        panel.set_ylabel("norm / largest scale (no unit)")
    rows = numbers["by_output"]
    value = column(rows, "value")
    style = {**SERIES[5], "markerfacecolor": "white"}
    left.plot(value, column(rows, "projected_norm", "mean"), **style, label="projected, mean norm")
    left.plot(value, column(rows, "separable"), **SERIES[4], label="projected, separable bound")
    left.set_xscale("log")
    left.xaxis.set_major_formatter("{x:g}")
    left.set_xlabel("largest / smallest scale of an output")
    left.set_title("outputs of unequal scale", fontsize=10)
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    right.set_xlabel("half-width of the band of noisy entries")
    right.set_title("noise in a band", fontsize=10)
    legend_above(figure, left, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
