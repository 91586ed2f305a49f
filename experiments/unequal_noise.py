"""How near the error comes to its bounds where outputs are not equally loud.

Left: scales of the outputs that fall geometrically, from equal ones to a range of a thousand; the
loudest stays the same. Right: one output ten times as loud as the others, by rank. A bound that
knows only the loudest scale does not see either.

python experiments/unequal_noise.py [--quick]
"""

import math
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from _save import column, interval, run, sample
from lowrank_theory.generators import targets
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.problems import Setting
from lowrank_theory.theorems import unequal_noise
from lowrank_theory.theorems.planted_rank import mean_worst_square
from lowrank_theory.theorems.unequal_noise import Loudness, UnequalProblem, UnequalSetting

SEED = 23
SIDE, RANK = 60, 3
RANGES = (1.0, 2.0, 5.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
RANKS = (1, 2, 3, 5, 10, 20, 30, 45, 59)
LOUD = 10.0
NEAR = 1.2  # the signal, in units of (qK)^(1/4) times the root mean square of the scales


def _squared_error(instance: UnequalProblem) -> Any:
    statement = unequal_noise.expectation
    return statement.loss(instance, statement.estimate(instance))


def _row(scales: np.ndarray, rank: int, trials: int, key: Any) -> dict[str, Any]:
    """Sampled error and bounds, in units of $q$ times the sum of the squared scales."""
    unit = SIDE * float(np.sum(scales**2))
    near = NEAR * math.sqrt(SIDE) * float(np.sqrt(np.mean(scales**2)))
    setting = Setting(SIDE, SIDE, SIDE, rank, target=targets.ExactOutputRank(scale=near))
    errors = sample(
        _squared_error, UnequalSetting(setting, column_scales=scales), trials=trials, key=key
    )
    with jax.enable_x64(True):
        loudness = Loudness(1.0, math.sqrt(SIDE), scales, float(SIDE))
        bound = float(loudness.expected(rank)) ** 2
        loudest = float(np.max(scales)) ** 2 * float(mean_worst_square(SIDE, SIDE, rank))
    return {
        "error": interval(errors / unit),
        "bound": bound / unit,
        "loudest": loudest / unit,
    }


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 10 if quick else 200
    ranges, ranks = [], []
    for index, width in enumerate(RANGES):
        key = jax.random.fold_in(jax.random.key(SEED), index)
        scales = np.geomspace(1, 1 / width, SIDE)
        ranges.append({"range": width, **_row(scales, RANK, trials, key)})
    loud = np.where(np.arange(SIDE) == 0, LOUD, 1.0)
    for rank in RANKS[:4] if quick else RANKS:
        key = jax.random.fold_in(jax.random.key(SEED), 100 + rank)
        ranks.append({"rank": rank, **_row(loud, rank, trials, key)})
    parameters = {"side": SIDE, "rank": RANK, "loud": LOUD, "near": NEAR, "trials": trials}
    return {**parameters, "ranges": ranges, "ranks": ranks}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.6, height=3.8)
    for panel, name, horizontal in ((left, "ranges", "range"), (right, "ranks", "rank")):
        rows = numbers[name]
        x = column(rows, horizontal)
        one_scale = {**LIMIT, "linestyle": ":"}
        panel.plot(x, column(rows, "loudest"), **one_scale, label="bound, the loudest scale alone")
        panel.plot(x, column(rows, "bound"), **LIMIT, label="bound, all scales")
        panel.plot(x, column(rows, "error", "mean"), **SERIES[0], label="sampled mean")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_ylabel("squared error / mean squared noise")
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("loudest output / quietest output")
    left.set_title(f"fading scales, rank {numbers['rank']} of {numbers['side']}", fontsize=10)
    right.set_xlabel("rank")
    right.set_title(f"one output {numbers['loud']:g} times as loud", fontsize=10)
    legend_above(figure, left, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
