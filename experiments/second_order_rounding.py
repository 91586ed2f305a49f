"""What rounding in turn costs beside rounding to nearest, and what no order of the inputs can save.

Left, the more inputs are correlated, the more is gained by letting inputs to come make up for
errors; costs follow the sum of prices, as they should. Right, of three orders the one that takes
the largest inputs first is best, and the floor for all orders lies below.

python experiments/second_order_rounding.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.plotting import LIMIT, SERIES, panels
from lowrank_theory.theorems._stepped import SteppedLayer, SteppedSetting
from lowrank_theory.theorems.second_order_rounding import prices, second_order_rounding

SEED = 41
SAMPLES, INPUTS, OUTPUTS = 256, 64, 16
CORRELATED = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
DECAYS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)


def _costs(layer: SteppedLayer) -> Any:
    """Costs and bounds over that of rounding to nearest in the mean."""
    worst, order = second_order_rounding.worst, second_order_rounding.any_order
    moments, rounded = layer.moments(), worst.estimate(layer)
    nearest = worst.broken_estimate(layer)
    total = jnp.trace(moments)
    unit = OUTPUTS * jnp.asarray(layer.step) ** 2 / 12 * total
    return {
        "nearest": worst.loss(layer, nearest) / unit,
        "in_turn": worst.loss(layer, rounded) / unit,
        "prices": jnp.sum(prices(moments)) / total,
        "floor": order.formula(layer, jnp.zeros(INPUTS)) / total,
    }


def _orders(layer: SteppedLayer) -> Any:
    """The sum of prices in three orders, and the floor, over the trace."""
    moments = layer.moments()
    total, largest = jnp.trace(moments), jnp.argsort(-jnp.diagonal(moments))
    floor = second_order_rounding.any_order.formula(layer, jnp.zeros(INPUTS))
    mixed = np.random.default_rng(SEED).permutation(INPUTS)
    orders = {"largest_first": largest, "smallest_first": largest[::-1], "any": largest[mixed]}
    found = {
        name: jnp.sum(prices(moments[order][:, order])) / total for name, order in orders.items()
    }
    return found | {"floor": floor / total}


def _measured(trial: Any, trials: int, seed: int, **options: Any) -> dict[str, Any]:
    key = jax.random.fold_in(jax.random.key(SEED), seed)
    setting = SteppedSetting(SAMPLES, INPUTS, OUTPUTS, reach=16.0, **options)
    found = sample(trial, setting, trials=trials, key=key)
    return {name: interval(values) for name, values in found.items()}


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 3 if quick else 30
    by_correlation = [
        {"correlated": c, **_measured(_costs, trials, place, decay=0.0, correlated=c)}
        for place, c in enumerate(CORRELATED[: 2 if quick else None])
    ]
    by_decay = [
        {"decay": d, **_measured(_orders, trials, 100 + place, decay=d, correlated=1.0)}
        for place, d in enumerate(DECAYS[: 2 if quick else None])
    ]
    sizes = {"samples": SAMPLES, "inputs": INPUTS, "outputs": OUTPUTS, "trials": trials}
    return {**sizes, "by_correlation": by_correlation, "by_decay": by_decay}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.8, height=4.0)
    rows = numbers["by_correlation"]
    correlated = column(rows, "correlated")
    for style, name, label in (
        (SERIES[1], "nearest", "rounded to nearest"),
        (SERIES[0], "in_turn", "rounded in turn"),
    ):
        mean = column(rows, name, "mean")
        left.plot(correlated, mean, **style, markersize=5, label=label)
    known = {**SERIES[0], "marker": "", "linestyle": ":", "label": "sum of prices"}
    left.plot(correlated, column(rows, "prices", "mean"), **known)
    left.plot(correlated, column(rows, "floor", "mean"), **LIMIT, label="floor for all orders")
    left.set_xlabel("correlation of inputs $c$ (no unit)")
    left.set_ylabel(r"cost / $\frac{1}{12}K\Delta^2\mathrm{tr}\,H$ (no unit)")
    rows = numbers["by_decay"]
    decay = column(rows, "decay")
    for style, name, label in (
        (SERIES[2], "smallest_first", "smallest first"),
        (SERIES[1], "any", "in any order"),
        (SERIES[0], "largest_first", "largest first"),
    ):
        mean = column(rows, name, "mean")
        right.plot(decay, mean, **style, markersize=5, label=label)
    right.plot(decay, column(rows, "floor", "mean"), **LIMIT, label="floor for all orders")
    right.set_xlabel("decay of inputs $d$ (no unit)")
    right.set_ylabel(r"$\sum_k d_k\,/\,\mathrm{tr}\,H$ (no unit)")
    for panel in (left, right):
        panel.set_yscale("log")
        panel.legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
