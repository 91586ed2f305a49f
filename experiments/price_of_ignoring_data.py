"""What truncating the weights costs, as they are and in other metrics, against the condition number
of the activations.

Left: weights opposed to the data cost the whole condition number, random weights a part of it.
Right: the same random weights truncated in other metrics: column norms, the second moment itself,
and the data-driven metric of other samples.

python experiments/price_of_ignoring_data.py [--quick]
"""

import math
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, run, sample
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.problems import Observed, Problem, Setting
from lowrank_theory.theorems import price_of_ignoring_data
from lowrank_theory.theorems.best_possible import best_error

SEED = 5
SAMPLES, SIZE, RANK = 60, 20, 10
CONDITION_NUMBERS = (1.5, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
TILT = 1e-3
METRICS = ("condition_number", "channel_scaling", "covariance_weighting", "stale_calibration")


def _ratios(problem: Problem) -> Any:
    """(Loss, weight-tail bound) / optimum."""
    statement = price_of_ignoring_data.weight_tail
    optimum = best_error(problem.observed, problem.rank)
    estimate = statement.estimate(problem)
    bound = statement.formula(problem, estimate)
    return statement.loss(problem, estimate) / optimum, bound / optimum


def _by_metric(problem: Problem) -> Any:
    """Loss and bound of every metric, over the optimum on what it is judged on."""
    weights = problem.observed.weights
    results = []
    for name in METRICS:
        statement = getattr(price_of_ignoring_data, name)
        _, judged = statement.metric(problem.observed.activations)
        optimum = best_error(Observed(weights=weights, activations=judged), problem.rank)
        estimate = statement.estimate(problem)
        bound = statement.formula(problem, estimate)
        results.append((statement.loss(problem, estimate) / optimum, bound / optimum))
    return results


def _setting(spectrum: spectra.AbstractSpectrum, target: targets.AbstractTarget) -> Setting:
    return Setting(
        SAMPLES,
        SIZE,
        SIZE,
        RANK,
        activations=activations.FixedSpectrum(spectrum),
        target=target,
        noise=noise.Gaussian(0.0),
    )


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 10 if quick else 200
    rows = []
    for index, kappa in enumerate(CONDITION_NUMBERS):
        key = jax.random.fold_in(jax.random.key(SEED), index)
        half = spectra.Spiked(RANK, kappa)
        constructed = _setting(half, targets.OpposedToTheData(TILT))
        attained, _ = sample(_ratios, constructed, trials=5, key=key)
        decay = math.log(kappa) / math.log(SIZE)
        random = _setting(spectra.PowerLaw(decay), targets.ApproximateRank(spectra.PowerLaw(0.5)))
        price, tail = sample(_ratios, random, trials=trials, key=key)
        metrics = sample(_by_metric, random, trials=trials, key=key)
        rows.append(
            {
                "condition_number": kappa,
                "constructed": float(np.min(attained)),
                "random_median": float(np.median(price)),
                "random_low": float(np.quantile(price, 0.05)),
                "random_high": float(np.quantile(price, 0.95)),
                "weight_tail_bound_median": float(np.median(tail)),
                "metrics": {
                    name: {"price": float(np.median(loss)), "bound": float(np.median(bound))}
                    for name, (loss, bound) in zip(METRICS, metrics, strict=True)
                },
            }
        )
    gap = max(1 - row["constructed"] / row["condition_number"] for row in rows)
    parameters = {"samples": SAMPLES, "size": SIZE, "rank": RANK, "tilt": TILT, "trials": trials}
    return {**parameters, "rows": rows, "largest_gap_to_condition_number": gap}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (panel, right) = panels(2, width=5.0, height=4.4)
    rows = numbers["rows"]
    kappa = column(rows, "condition_number")
    panel.plot(kappa, kappa, **LIMIT, label="bound: condition number")
    panel.plot(
        kappa,
        column(rows, "constructed"),
        **{**SERIES[1], "linestyle": ""},
        label="opposed weights",
    )
    panel.plot(
        kappa,
        column(rows, "weight_tail_bound_median"),
        **SERIES[2],
        label="weight-tail bound, random weights (median)",
    )
    panel.plot(kappa, column(rows, "random_median"), **SERIES[0], label="random weights (median)")
    panel.fill_between(
        kappa,
        column(rows, "random_low"),
        column(rows, "random_high"),
        color=SERIES[0]["color"],
        alpha=0.2,
        linewidth=0,
        label="random weights (5 to 95 %)",
    )
    labels = ("weights alone", "channel norms", "second moment", "other samples")
    for name, label, style in zip(METRICS, labels, SERIES, strict=False):
        price, bound = (column(rows, "metrics", name, part) for part in ("price", "bound"))
        right.plot(kappa, price, **style, label=label)
        right.plot(kappa, bound, color=style["color"], linestyle=style["linestyle"], linewidth=0.8)
    right.legend(frameon=False, fontsize=9, title="truncated in the metric of", title_fontsize=9)
    right.set_title("random weights; thin lines: bounds", fontsize=10)
    panel.set_title("truncated as they are", fontsize=10)
    for each in (panel, right):
        each.set_xscale("log")
        each.set_yscale("log")
        each.set_xlabel("condition number of the activations (no unit)")
        each.set_ylabel("error of truncated weights / optimum")
    legend_above(figure, panel, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
