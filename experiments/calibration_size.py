"""How the loss on new rows falls to the optimum as calibration rows are added.

The excess loss on new rows follows its first-order value from few rows on. The sure bound in the
realised deviation of the second moment falls as fast once the deviation is within the eigengap; the
relative bound needs no gap and falls more slowly.

python experiments/calibration_size.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.generators import spectra
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.problems import Problem
from lowrank_theory.theorems import calibration_size
from lowrank_theory.theorems.calibration_size import CalibrationSetting, output_spectrum

SEED = 6
SIZE, RANK = 16, 3
FAILURE_PROBABILITY = 0.05
SPECTRA = {
    "three spikes, twice the bulk": spectra.Spiked(3, 2.0),
    "power law, decay 1": spectra.PowerLaw(1.0),
    "exponential, rate 0.2": spectra.Exponential(0.2),
}
ROWS = tuple(2**power for power in range(5, 16))


def _excesses(problem: Problem) -> Any:
    """Excess loss, its first-order value and its bounds, each divided by the optimum."""
    first, relative = calibration_size.leading_constant, calibration_size.relative
    gap, no_gap = calibration_size.gap, calibration_size.no_gap
    optimum = jnp.sum(output_spectrum(problem)[RANK:])
    estimate = first.estimate(problem)
    bound = relative.bound(problem, failure_probability=FAILURE_PROBABILITY).value - optimum
    expected = first.formula(problem, estimate)
    without = no_gap.formula(problem, estimate)
    sure = jnp.minimum(gap.bound(problem).value, without)
    values = (first.loss(problem, estimate), expected, bound, sure)
    return tuple(value / optimum for value in values)


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 20 if quick else 400
    results = []
    for number, (name, spectrum) in enumerate(SPECTRA.items()):
        points = []
        for index, rows in enumerate(ROWS):
            setting = CalibrationSetting(rows, SIZE, RANK, spectrum)
            key = jax.random.fold_in(jax.random.key(SEED), 100 * number + index)
            excess, expected, bound, sure = sample(_excesses, setting, trials=trials, key=key)
            points.append(
                {
                    "rows": rows,
                    "excess": interval(excess),
                    "quantile_95": float(np.quantile(excess, 0.95)),
                    "first_order": float(expected[0]),
                    "bound": float(bound[0]) if np.isfinite(bound[0]) else None,
                    "sure_bound": float(np.mean(sure)),
                    "largest_ratio": float(np.max(excess / sure)),
                }
            )
        last = points[-1]
        deviation = abs(last["excess"]["mean"] / last["first_order"] - 1)
        results.append({"spectrum": name, "points": points, "last_deviation": deviation})
    parameters = {"size": SIZE, "rank": RANK, "failure_probability": FAILURE_PROBABILITY}
    return {**parameters, "trials": trials, "results": results}


def draw(numbers: dict[str, Any]) -> Figure:
    results = numbers["results"]
    figure, axes = panels(len(results), width=3.6, height=3.6)
    for panel, result in zip(axes, results, strict=True):
        points = result["points"]
        rows, mean = column(points, "rows"), column(points, "excess", "mean")
        errors = [mean - column(points, "excess", "low"), column(points, "excess", "high") - mean]
        style = {**SERIES[0], "linestyle": ""}
        panel.plot(rows, column(points, "bound"), **LIMIT, label="relative bound (95 %)")
        panel.plot(
            rows,
            column(points, "sure_bound"),
            color=SERIES[3]["color"],
            linestyle=SERIES[3]["linestyle"],
            label="sure bound, mean",
        )
        panel.plot(
            rows,
            column(points, "quantile_95"),
            color=SERIES[2]["color"],
            linestyle=SERIES[2]["linestyle"],
            label="95 % of layers are below",
        )
        panel.plot(
            rows,
            column(points, "first_order"),
            color=SERIES[1]["color"],
            linestyle=SERIES[1]["linestyle"],
            label="first order",
        )
        panel.errorbar(rows, mean, errors, **style, markersize=4, capsize=2, label="sampled mean")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(result["spectrum"], fontsize=10)
        panel.set_xlabel("calibration rows")
    axes[0].set_ylabel("excess loss / optimal loss (squared)")
    legend_above(figure, axes[0], 5)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
