"""The error of a random sketch, against what was proved: by oversampling, and by power iterations.

python experiments/randomized_range.py [--quick]
"""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.plotting import SERIES, legend_above, panels
from lowrank_theory.theorems.randomized_range import Sketched, SketchSetting, randomized_range

SEED = 13
SIZE, RANK, DECAY = 64, 6, 0.5
OVERSAMPLING = (2, 3, 4, 6, 8, 12, 16)
POWER_ITERATIONS = (0, 1, 2, 3, 4, 6)
CHOSEN = 6
FAILURE_PROBABILITY = 0.01
NAMES = ("truncated", "frobenius", "frobenius_tail", "spectral", "spectral_tail")


def _sides(instance: Sketched) -> Any:
    """Loss and bound of each statement; the singular values."""
    statements = [getattr(randomized_range, name) for name in NAMES]
    basis = statements[0].estimate(instance, FAILURE_PROBABILITY)
    losses = [statement.loss(instance, basis) for statement in statements]
    bounds = [s.formula(instance, basis, FAILURE_PROBABILITY) for s in statements]
    return losses, bounds, instance.values


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 20 if quick else 400
    values = np.arange(1.0, SIZE + 1) ** -DECAY
    sweeps: dict[str, list[dict[str, Any]]] = {"by_oversampling": [], "by_power_iterations": []}
    points = [("by_oversampling", p, 0) for p in OVERSAMPLING]
    points += [("by_power_iterations", CHOSEN, q) for q in POWER_ITERATIONS]
    for index, (sweep, p, q) in enumerate(points):
        setting = SketchSetting(values, RANK, p, q)
        key = jax.random.fold_in(jax.random.key(SEED), index)
        losses, bounds, drawn = sample(_sides, setting, trials=trials, key=key)
        tail, next_value = float(np.sum(drawn[0, RANK:] ** 2)), float(drawn[0, RANK])
        row: dict[str, Any] = {"oversampling": p, "power_iterations": q}
        for name, loss, bound in zip(NAMES, losses, bounds, strict=True):
            unit = next_value if name.startswith("spectral") else tail
            row[name] = interval(loss / unit)
            row[f"{name}_high"] = float(np.quantile(loss / unit, 1 - FAILURE_PROBABILITY))
            row[f"{name}_bound"] = float(bound[0] / unit)
        sweeps[sweep].append(row)
    parameters = {"size": SIZE, "rank": RANK, "decay": DECAY, "trials": trials}
    return {**parameters, "failure_probability": FAILURE_PROBABILITY, **sweeps}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = panels(2, width=4.6, height=4.2)
    for panel, sweep, across, label in (
        (axes[0], "by_oversampling", "oversampling", "columns of the sketch beyond the rank"),
        (axes[1], "by_power_iterations", "power_iterations", "power iterations"),
    ):
        rows = numbers[sweep]
        x = column(rows, across)
        for path, style, name in (
            (("frobenius_tail_bound",), SERIES[4], "99 % bound"),
            (("frobenius_tail_high",), SERIES[3], "error, 99 % quantile"),
            (("truncated_bound",), SERIES[1], "bound of the mean"),
            (("truncated", "mean"), SERIES[0], "mean error, rank r"),
            (("frobenius", "mean"), SERIES[2], "mean error, whole sketch"),
        ):
            panel.plot(x, column(rows, *path), **style, label=name)
        panel.set_yscale("log")
        panel.set_xlabel(label)
        panel.set_ylabel("squared error / optimum of rank r")
    axes[0].set_title("no power iteration", fontsize=10)
    axes[1].set_title(f"{CHOSEN} columns beyond the rank", fontsize=10)
    legend_above(figure, axes[0], 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
