"""The norm of Gaussian noise against its size, and its tail against two bounds.

Left, the extreme singular values of Gaussian noise follow √q ± √K, whatever the number of samples,
and their bounds follow them; right, the fluctuation of the norm is far below what Gaussian
concentration allows, and near the new bound.

python experiments/gaussian_noise.py [--quick]
"""

import math
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.generators import noise
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.problems import Problem, Setting
from lowrank_theory.theorems.gaussian_noise import gaussian_noise, lower_edge, upper_edge

SEED = 11
OUTPUTS = 20
DIRECTIONS = (1, 2, 5, 10, 15, 20, 25, 30, 40, 60, 100)
TAIL_DIRECTIONS = 40
FAILURE_PROBABILITY = 0.05
PROBABILITIES = (0.9, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 1e-3, 1e-4)


def _setting(q: int) -> Setting:
    # The identity serves as well as any activations: only their rank enters.
    return Setting(samples=q, inputs=q, outputs=OUTPUTS, rank=1, noise=noise.Gaussian(1.0))


def _extremes(problem: Problem) -> Any:
    values = gaussian_noise.largest.estimate(problem)
    return values.values[0], values.least


def measure(*, quick: bool) -> dict[str, Any]:
    trials, tail_trials = (20, 50) if quick else (200, 20_000)
    by_size = []
    for index, q in enumerate(DIRECTIONS):
        key = jax.random.fold_in(jax.random.key(SEED), index)
        largest, smallest = sample(_extremes, _setting(q), trials=trials, key=key)
        row = {"q": q, "largest": interval(largest), "smallest": interval(smallest)}
        row["largest_quantile"] = float(np.quantile(largest, 1 - FAILURE_PROBABILITY))
        row["smallest_quantile"] = float(np.quantile(smallest, FAILURE_PROBABILITY))
        longer, shorter = max(q, OUTPUTS), min(q, OUTPUTS)
        with jax.enable_x64(True):
            row["upper_bound"] = float(upper_edge(q, OUTPUTS, FAILURE_PROBABILITY))
            row["lower_bound"] = (
                max(0.0, float(lower_edge(longer, shorter, FAILURE_PROBABILITY)))
                if longer > shorter
                else 0.0
            )
        by_size.append(row)
    random = np.random.default_rng(SEED)
    shape = (tail_trials, TAIL_DIRECTIONS, OUTPUTS)
    norms = np.linalg.svd(random.standard_normal(shape), compute_uv=False)[:, 0]
    edge = math.sqrt(TAIL_DIRECTIONS) + math.sqrt(OUTPUTS)
    tail = []
    for probability in PROBABILITIES:
        with jax.enable_x64(True):
            bound = float(upper_edge(TAIL_DIRECTIONS, OUTPUTS, probability)) - edge
        enough = probability * tail_trials >= 10
        seen = float(np.quantile(norms, 1 - probability)) - edge if enough else None
        classical = math.sqrt(2 * math.log(1 / probability))
        row = {"probability": probability, "bound": bound, "classical": classical}
        tail.append({**row, "observed": seen})
    parameters = {"outputs": OUTPUTS, "trials": trials, "tail_trials": tail_trials}
    parameters |= {
        "tail_directions": TAIL_DIRECTIONS,
        "failure_probability": FAILURE_PROBABILITY,
        "mean_norm_less_edge": interval(norms - edge),
    }
    return {**parameters, "by_size": by_size, "tail": tail}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.8, height=4.0)
    rows, outputs = numbers["by_size"], numbers["outputs"]
    q = column(rows, "q")
    left.plot(q, column(rows, "largest", "mean"), **SERIES[0], label="largest, mean")
    left.plot(q, column(rows, "upper_bound"), **SERIES[1], label="above 95 % of the largest")
    left.plot(q, column(rows, "smallest", "mean"), **SERIES[2], label="smallest, mean")
    left.plot(q, column(rows, "lower_bound"), **SERIES[3], label="below 95 % of the smallest")
    fine = np.geomspace(q[0], q[-1], 200)
    left.plot(fine, np.sqrt(fine) + math.sqrt(outputs), **LIMIT, label="√q ± √K, bounds on means")
    left.plot(fine, np.abs(np.sqrt(fine) - math.sqrt(outputs)), **LIMIT)
    left.set_xscale("log")
    left.xaxis.set_major_formatter("{x:g}")
    left.set_xlabel("dimensions q of the activations")
    left.set_ylabel("singular value of PE / standard deviation σ")
    left.set_title(f"{outputs} outputs", fontsize=10)

    rows = numbers["tail"]
    probability = column(rows, "probability")
    for name, style, label in (
        ("classical", SERIES[4], "classical bound, √(2 ln 1/δ)"),
        ("bound", SERIES[1], None),
        ("observed", SERIES[5], "observed quantile"),
    ):
        right.plot(probability, column(rows, name), **style, label=label)
        if label:
            left.plot([], [], **style, label=label)
    right.axhline(0, **LIMIT)
    right.set_xscale("log")
    right.invert_xaxis()
    right.set_xlabel("probability δ of more")
    right.set_ylabel("(‖PE‖ / σ) − √q − √K")
    right.set_title(f"q = {numbers['tail_directions']}", fontsize=10)
    legend_above(figure, left, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
