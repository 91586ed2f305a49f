"""Two bounds on the norm of sub-Gaussian noise against the norms of several laws.

Random signs and uniform noise behave like Gaussian noise; clouds of directions come near to that,
above all for elongated matrices, and nets stay a factor of 1.6 to 2 away.

python experiments/subgaussian_noise.py [--quick]
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, run
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.theorems.subgaussian_noise import squared_cloud_bound, squared_net_bound

SEED = 12
SIZE = 16  # rows of the square matrices on the left are multiples of it
FACTORS = (1, 2, 4, 8, 16)
RATIOS = (1, 2, 4, 8, 16, 32)
SHORT = 8
FAILURE_PROBABILITY = 0.05
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
LAWS: dict[str, Draw] = {  # of unit variance, which is their sub-Gaussian constant
    "rademacher": lambda random, shape: random.choice([-1.0, 1.0], shape),
    "uniform": lambda random, shape: random.uniform(-(3**0.5), 3**0.5, shape),
    "gaussian": lambda random, shape: random.standard_normal(shape),
}


def _row(rows: int, columns: int, trials: int, random: np.random.Generator) -> dict[str, float]:
    """Bounds, and norms that few draws of each law exceed, over the square root of q + K."""
    with jax.enable_x64(True):
        values = {
            "clouds": math.sqrt(
                float(squared_cloud_bound(float(rows), columns, FAILURE_PROBABILITY))
            ),
            "nets": math.sqrt(float(squared_net_bound(float(rows), columns, FAILURE_PROBABILITY))),
        }
    for name, law in LAWS.items():
        norms = np.linalg.norm(law(random, (trials, rows, columns)), 2, axis=(1, 2))
        values[name] = float(np.quantile(norms, 1 - FAILURE_PROBABILITY))
    values["gaussian_edge"] = math.sqrt(rows) + math.sqrt(columns)
    unit = math.sqrt(rows + columns)
    return {"q": rows, "outputs": columns, **{k: v / unit for k, v in values.items()}}


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 20 if quick else 100
    random = np.random.default_rng(SEED)
    squares = [_row(f * SIZE, f * SIZE, trials, random) for f in FACTORS]
    longer = [_row(f * SHORT, SHORT, trials, random) for f in RATIOS]
    parameters = {"trials": trials, "failure_probability": FAILURE_PROBABILITY}
    return {**parameters, "squares": squares, "longer": longer}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = panels(2, width=4.8, height=4.0)
    for panel, name in zip(axes, ("squares", "longer"), strict=True):
        rows = numbers[name]
        q = column(rows, "q")
        for series, label, style in (
            ("nets", "bound by nets", SERIES[1]),
            ("clouds", "bound by clouds", SERIES[0]),
            ("rademacher", "random signs, 95 % quantile", SERIES[2]),
            ("uniform", "uniform, 95 % quantile", SERIES[3]),
            ("gaussian", "Gaussian, 95 % quantile", SERIES[4]),
        ):
            panel.plot(q, column(rows, series), **style, label=label)
        panel.plot(q, column(rows, "gaussian_edge"), **LIMIT, label="√q + √K")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("dimensions q of the activations")
        panel.set_ylabel("‖PE‖ / (σ √(q + K))")
        panel.set_ylim(0.8, None)
    axes[0].set_title("as many outputs as dimensions", fontsize=10)
    axes[1].set_title(f"{numbers['longer'][0]['outputs']} outputs", fontsize=10)
    legend_above(figure, axes[0], 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
