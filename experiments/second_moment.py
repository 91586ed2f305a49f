"""How far the second moment of a sample is from the true one, against the number of rows.

Left and middle, the norm of the deviation for Gaussian rows follows the effective rank, not the
number of inputs; right, rows of bounded leverage keep every direction within Chernoff's bounds.

python experiments/second_moment.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.plotting import BLACK, SERIES, legend_above, panels
from lowrank_theory.theorems import second_moment
from lowrank_theory.theorems.second_moment import GaussianRows, ResampledRows, Rows

SEED = 8
INPUTS = 24
FAILURE_PROBABILITY = 0.05
ROWS = tuple(2**power for power in range(3, 13))
SPECTRA = {
    "all directions alike": np.ones(INPUTS),
    "power law, decay 1": 1 / np.arange(1, INPUTS + 1),
}
COORDINATES = np.eye(8)


def _norms(rows: Rows) -> Any:
    """The deviation over the norm of C, its leading term, and the three bounds."""
    values = jnp.linalg.eigvalsh(rows.second_moment)
    effective = jnp.sum(values) / values[-1] / rows.rows.shape[0]
    three = (second_moment.dimension_free, second_moment.absolute, second_moment.expectation)
    statements = [statement.at(FAILURE_PROBABILITY) for statement in three]
    estimate = statements[0].estimate(rows)
    bounds = [s.formula(rows, estimate) / values[-1] for s in statements]
    leading = 2 * jnp.sqrt(effective) + effective
    return statements[0].loss(rows, estimate) / values[-1], leading, *bounds


def _extremes(rows: Rows) -> Any:
    """The extreme relative eigenvalues, and their bounds."""
    both = (second_moment.leverage_below, second_moment.leverage_above)
    pairs = [statement.at(FAILURE_PROBABILITY) for statement in both]
    estimate = pairs[0].estimate(rows)
    return [part for s in pairs for part in (s.loss(rows, estimate), s.formula(rows, estimate))]


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 20 if quick else 300
    sizes = ROWS[2:6] if quick else ROWS
    gaussian = []
    for number, (name, scales) in enumerate(SPECTRA.items()):
        points = []
        for index, rows in enumerate(sizes):
            key = jax.random.fold_in(jax.random.key(SEED), 100 * number + index)
            parts = sample(_norms, GaussianRows(rows, scales), trials=trials, key=key)
            deviation, leading, free, absolute, expectation = parts
            points.append(
                {
                    "rows": rows,
                    "deviation": interval(deviation),
                    "quantile_95": float(np.quantile(deviation, 0.95)),
                    "leading_term": float(np.mean(leading)),
                    "dimension_free": float(np.mean(free)),
                    "absolute": float(np.mean(absolute)),
                    "expectation": float(np.mean(expectation)),
                }
            )
        gaussian.append({"spectrum": name, "points": points})
    bounded = []
    for index, rows in enumerate(sizes):
        key = jax.random.fold_in(jax.random.key(SEED), 1000 + index)
        setting = ResampledRows(rows, COORDINATES)
        least, below, largest, above = sample(_extremes, setting, trials=trials, key=key)
        bounded.append(
            {
                "rows": rows,
                "least": interval(least),
                "least_quantile_5": float(np.quantile(least, 0.05)),
                "below": float(np.mean(below)),
                "largest": interval(largest),
                "largest_quantile_95": float(np.quantile(largest, 0.95)),
                "above": float(np.mean(above)),
            }
        )
    parameters = {"inputs": INPUTS, "failure_probability": FAILURE_PROBABILITY, "trials": trials}
    return {**parameters, "gaussian": gaussian, "coordinates": len(COORDINATES), "bounded": bounded}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = panels(3, width=3.9, height=4.0)
    for panel, result in zip(axes, numbers["gaussian"], strict=False):
        points = result["points"]
        rows = column(points, "rows")
        for name, style, label in (
            ("absolute", SERIES[1], "bound by the dimension (95 %)"),
            ("dimension_free", SERIES[2], "dimension-free bound (95 %)"),
            ("expectation", SERIES[3], "dimension-free bound of the mean"),
        ):
            panel.plot(rows, column(points, name), **style, markersize=4, label=label)
        panel.plot(rows, column(points, "leading_term"), color=BLACK, label="its leading term")
        panel.plot(rows, column(points, "deviation", "mean"), **SERIES[0], label="sampled mean")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(f"Gaussian rows, {result['spectrum']}", fontsize=10)
        panel.set_xlabel("number of rows")
    axes[0].set_ylabel("deviation / largest eigenvalue")

    panel, points = axes[2], numbers["bounded"]
    rows = column(points, "rows")
    lines = (("largest", "largest_quantile_95", "above"), ("least", "least_quantile_5", "below"))
    for name, quantile, bound in lines:
        panel.plot(rows, column(points, name, "mean"), **SERIES[0], markersize=4)
        panel.plot(rows, column(points, quantile), **SERIES[4], markersize=4)
        panel.plot(rows, column(points, bound), **SERIES[5], markersize=4)
    axes[0].plot([], [], **SERIES[4], label="95 % of samples are inside")
    axes[0].plot([], [], **SERIES[5], label="leverage bounds (95 % each)")
    panel.axhline(1, color=BLACK, linewidth=0.8)
    panel.set_xscale("log")
    panel.set_ylim(-0.1, 5)
    panel.set_xlabel("number of rows")
    panel.set_ylabel("extreme relative eigenvalues")
    panel.set_title(f"rows are one of {numbers['coordinates']} coordinates", fontsize=10)
    legend_above(figure, axes[0], 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
