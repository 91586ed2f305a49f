"""How far a ridge moves the recovery, and what the data pay, against its strength.

The layer moves in proportion to the ridge and the data lose its square; the worst layers of two
inputs lie on the bounds, and random layers well below.

python experiments/ridge_limit.py [--quick]
"""

import math
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory._numerics import after, matmul
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.problems import Layer, Observed
from lowrank_theory.theorems import ridge_limit
from lowrank_theory.theorems._quantities import singular_values
from lowrank_theory.theorems.ridge_limit import RidgedLayer, RidgedSetting

SEED = 9
SAMPLES, INPUTS, OUTPUTS, RANK = 24, 12, 10, 3
STRENGTHS = (0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 1.05, 1.5, 3.0, 10.0)
SMALLEST = 0.1  # singular value of the weights, of which the largest is one


def _measured(instance: RidgedLayer) -> Any:
    """Realised quantity and bound of each statement, in units of |W| and of the gap."""
    both = []
    for statement in ridge_limit.statements.values():
        estimate = statement.estimate(instance)
        bound = statement.formula(instance, estimate)
        both.append((statement.loss(instance, estimate), bound))
    activations, weights = instance.observed.activations, instance.observed.weights
    assert activations is not None
    assert weights is not None
    outputs = matmul(activations, weights)
    values = singular_values(after(both[-1][0], outputs))
    gap = values[RANK - 1] ** 2 - values[RANK] ** 2
    units = (1.0, gap, gap)
    return [(loss / unit, bound / unit) for (loss, bound), unit in zip(both, units, strict=True)]


def _worst(ratio: float) -> RidgedLayer:
    """The layer of two inputs that turns most at this x: the ridge acts at 45 degrees to the
    result.
    """
    angle = math.asin(ratio) / 2 + math.pi / 4
    strong = np.array([math.cos(angle), math.sin(angle)])
    weak = np.array([-strong[1], strong[0]])
    weights = np.outer(strong, strong) + SMALLEST * np.outer(weak, weak)
    activations = np.diag(np.sqrt([1.5, 0.5])) @ np.linalg.inv(weights)
    layer = Layer(Observed(weights=weights, activations=activations), 1)
    return RidgedLayer(layer, np.asarray(ratio / (1 - SMALLEST**2)))


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 20 if quick else 1_000
    values = np.linspace(1, SMALLEST, OUTPUTS)
    points = []
    for index, strength in enumerate(STRENGTHS):
        setting = RidgedSetting(SAMPLES, OUTPUTS, RANK, np.ones(INPUTS), values, strength)
        key = jax.random.fold_in(jax.random.key(SEED), index)
        parts = sample(_measured, setting, trials=trials, key=key)
        (moved, limit), (excess, data_loss), (_, trade) = parts
        ratio = strength * (1 - SMALLEST**2)
        row: dict[str, Any] = {
            "ratio": ratio,
            "moved": interval(moved),
            "moved_largest": float(np.max(moved)),
            "moved_bound": float(np.mean(limit)),
            "excess": interval(excess),
            "excess_bound": float(np.mean(data_loss)),
            "trade": interval(trade),
            "worst_moved": None,
            "worst_excess": None,
        }
        if ratio < 1:
            worst = _worst(ratio)
            row["worst_moved"] = float(ridge_limit.weights.realised(worst))
            row["worst_excess"] = float(ridge_limit.data_loss.realised(worst))
        points.append(row)
    parameters = {"samples": SAMPLES, "inputs": INPUTS, "outputs": OUTPUTS, "rank": RANK}
    return {**parameters, "smallest": SMALLEST, "trials": trials, "points": points}


def draw(numbers: dict[str, Any]) -> Figure:
    points, rank = numbers["points"], numbers["rank"]
    figure, (left, right) = panels(2, width=4.6, height=4.0)
    ratio = column(points, "ratio")
    fine = np.geomspace(ratio[0], ratio[-1], 2_000)
    inside = np.minimum(fine, 1)
    sine, tangent = np.sin(np.arcsin(inside) / 2), np.tan(np.arcsin(inside) / 2)
    left.plot(fine, np.where(fine < 1, sine, 1), **LIMIT, label="bound")
    linear = {"color": SERIES[1]["color"], "linestyle": "--"}
    left.plot(inside, inside, **linear, label="bound, linear form")
    left.plot(
        ratio, column(points, "worst_moved"), **{**SERIES[3], "linestyle": ""}, label="worst layer"
    )
    left.plot(ratio, column(points, "moved", "mean"), **SERIES[0], label="random layers, mean")
    left.plot(ratio, column(points, "moved_largest"), **SERIES[2], label="random layers, largest")
    left.set_ylabel("change of the layer / norm of the weights")
    right.plot(fine, np.where(fine < 1, fine * tangent / 2, fine), **LIMIT)
    right.plot(ratio, column(points, "worst_excess"), **{**SERIES[3], "linestyle": ""})
    right.plot(ratio, column(points, "excess", "mean") / rank, **SERIES[0])
    right.plot(ratio, column(points, "trade", "mean") / rank, **SERIES[4])
    left.plot([], [], **SERIES[4], label="trade bound, mean")
    right.set_ylabel("squared excess on the data / (rank × gap)")
    for panel in (left, right):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("strength of the ridge x (the gap is at 1, no unit)")
    legend_above(figure, left, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
