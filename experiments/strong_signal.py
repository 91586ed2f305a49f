"""Two bounds on the error of a planted layer, over the strength of its signal.

Far above the noise the error is that of the tangent space, the least that any estimator has, and
the bound tends to it; near the detection threshold the bound for every signal is the better one.

python experiments/strong_signal.py [--quick]
"""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, run, sample
from lowrank_theory.generators import noise, targets
from lowrank_theory.plotting import BLACK, SERIES, panels
from lowrank_theory.problems import Problem, Setting
from lowrank_theory.theorems import planted_rank
from lowrank_theory.theorems.gaussian_noise import upper_edge
from lowrank_theory.theorems.minimax_floor import risk_floor
from lowrank_theory.theorems.planted_rank import gaussian_worst_square
from lowrank_theory.theorems.strong_signal import likely_error, strong_signal
from lowrank_theory.verification import attack

SEED = 5
SIDE, RANK, DELTA = 50, 2, 0.05
EDGES = (0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 300.0, 1000.0)


def _squared_error(problem: Problem) -> Any:
    statement = planted_rank.expectation
    return statement.loss(problem, statement.estimate(problem))


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 20 if quick else 400
    side = float(SIDE)
    with jax.enable_x64(True):
        edge = float(upper_edge(side, side, DELTA / 2))
        always = float(gaussian_worst_square(side, side, RANK, DELTA))
    points = []
    for index, multiple in enumerate(EDGES):
        strength = multiple * edge
        target = targets.ExactOutputRank(scale=strength)
        setting = Setting(SIDE, SIDE, SIDE, RANK, target=target, noise=noise.Gaussian(1.0))
        key = jax.random.fold_in(jax.random.key(SEED), index)
        errors = sample(_squared_error, setting, trials=trials, key=key)
        with jax.enable_x64(True):
            strong = float(likely_error(side, side, RANK, 1.0, strength, DELTA)) ** 2
        points.append(
            {
                "edges": multiple,
                "mean": float(np.mean(errors)),
                "quantile": float(np.quantile(errors, 1 - DELTA)),
                "strong": strong,
            }
        )
    witness = attack(
        strong_signal.tangent,
        key=jax.random.key(SEED),
        restarts=3 if quick else 16,
        steps=40 if quick else 1000,
    )
    return {
        "attacked": witness.ratio,
        "side": SIDE,
        "rank": RANK,
        "failure_probability": DELTA,
        "trials": trials,
        "edge": edge,
        "always": always,
        "floor": risk_floor(RANK, SIDE, SIDE, 1.0),
        "points": points,
    }


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (panel,) = panels(1, width=6.4, height=4.4)
    points = numbers["points"]
    edges = column(points, "edges")
    series = ("strong", "quantile", "mean")
    labels = ("bound for strong signals", "sampled 95 % quantile", "sampled mean")
    for style, name, label in zip(SERIES, series, labels, strict=False):
        panel.plot(edges, column(points, name), **style, markersize=4, label=label)
    panel.axhline(numbers["always"], color=BLACK, linewidth=1.2, label="bound for every signal")
    style = {"color": BLACK, "linewidth": 1, "linestyle": ":"}
    panel.axhline(numbers["floor"], **style, label="minimax floor")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(numbers["floor"] / 3, 30 * numbers["always"])
    panel.set_xlabel("weakest signal / edge of the noise (no unit)")
    panel.set_ylabel(r"squared output error / $\sigma^2$ (no unit)")
    panel.legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
