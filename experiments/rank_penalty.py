"""The error and the rank of penalised recovery, against the price of a rank and against the noise.

The error of rank-penalised recovery and its bound, with the bound as the literature has it, against
the price of a rank (left, with the ranks that are selected) and against the noise (right). Layers
whose spectrum decays like a power.

python experiments/rank_penalty.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.error_measures import output_error
from lowrank_theory.generators import noise, spectra, targets
from lowrank_theory.plotting import GREY, SERIES, legend_above, panels
from lowrank_theory.problems import Problem, Setting
from lowrank_theory.recovery import rank_penalised
from lowrank_theory.theorems._quantities import attainable_noise, singular_values
from lowrank_theory.theorems.rank_penalty import worst_case

SEED = 11
SAMPLES, INPUTS, OUTPUTS = 60, 24, 20
DECAY, NOISE, PRICE = 1.0, 0.3, 3.0
PRICES = (0.05, 0.1, 0.2, 0.35, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
NOISES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


def _at(problem: Problem, price: Any) -> Any:
    """Squared error, its bound, the known form of the bound, and the selected rank."""
    values, _ = attainable_noise(problem)
    level = values[0]
    threshold = jnp.sqrt(price) * level
    factors, _ = rank_penalised(
        problem.truth.layer_inputs, problem.observed.target_outputs, threshold**2, rank=OUTPUTS
    )
    clean = singular_values(problem.truth.clean_outputs)
    constant = 1 + 2 / jnp.maximum(price - 1, 1e-9)  # for prices above one
    known = jnp.sum(jnp.minimum((constant * clean) ** 2, 2 * constant * threshold**2))
    return (
        output_error(factors, problem.truth) ** 2,
        worst_case(problem, threshold, level),
        known,
        jnp.sum(jnp.any(factors.right != 0, axis=1)).astype(float),
    )


def _relative(problem: Problem) -> Any:
    """Relative squared errors and bounds, and ranks, at every price."""
    signal = (problem.truth.clean_outputs**2).sum()
    *squares, rank = jax.lax.map(lambda price: _at(problem, price), np.asarray(PRICES))
    return (*(square / signal for square in squares), rank)


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 10 if quick else 200
    target = targets.ApproximateRank(spectra.PowerLaw(DECAY))
    rows = []
    for index, scale in enumerate((NOISE, *NOISES)):
        law = noise.Gaussian(scale)
        setting = Setting(SAMPLES, INPUTS, OUTPUTS, OUTPUTS, target=target, noise=law)
        key = jax.random.fold_in(jax.random.key(SEED), index)
        curves = sample(_relative, setting, trials=trials, key=key)
        prices = range(len(PRICES)) if index == 0 else [PRICES.index(PRICE)]
        rows.append([_row(PRICES[i], scale, *(part[:, i] for part in curves)) for i in prices])
    parameters = {"samples": SAMPLES, "inputs": INPUTS, "outputs": OUTPUTS, "decay": DECAY}
    parameters |= {"noise": NOISE, "price": PRICE, "trials": trials}
    by_noise = [row for (row,) in rows[1:]]
    return {**parameters, "by_price": rows[0], "by_noise": by_noise}


def _row(price: float, scale: float, error: Any, bound: Any, known: Any, rank: Any) -> Any:
    return {
        "price": price,
        "noise": scale,
        "error": interval(error),
        "bound": float(np.mean(bound)),
        "known_bound": float(np.mean(known)) if price > 1 else None,
        "rank": float(np.mean(rank)),
        "largest_ratio": float(np.max(error / bound)),
    }


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.6, height=4.0)
    rows = numbers["by_price"]
    price = column(rows, "price")
    left.plot(price, column(rows, "error", "mean"), **SERIES[0], label="error")
    left.plot(price, column(rows, "bound"), **SERIES[1], label="bound: oracle")
    left.plot(price, column(rows, "known_bound"), **SERIES[2], label="bound as in the literature")
    left.axvline(1, color=GREY, linewidth=1, linestyle=":")
    for x, rank in list(zip(price, column(rows, "rank"), strict=True))[::2]:
        left.annotate(
            f"{rank:.2g}",
            (x, 0.03),
            xycoords=left.get_xaxis_transform(),
            ha="center",
            fontsize=8,
            color="#444444",
        )
    left.text(
        0.02, 0.09, "mean rank selected:", transform=left.transAxes, fontsize=8, color="#444444"
    )
    left.set_xlabel("price of a rank / squared norm of the noise (no unit)")
    left.set_title(f"noise {numbers['noise']:g}", fontsize=10)
    rows = numbers["by_noise"]
    scale = column(rows, "noise")
    right.plot(scale, column(rows, "error", "mean"), **SERIES[0])
    right.plot(scale, column(rows, "bound"), **SERIES[1])
    right.plot(scale, column(rows, "known_bound"), **SERIES[2])
    right.set_xlabel("standard deviation of the noise / r.m.s. output")
    right.set_title(f"price {numbers['price']:g}", fontsize=10)
    for panel in (left, right):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_ylabel("squared error / squared norm of the signal")
    left.set_ylim(1e-2, 10)
    legend_above(figure, left, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
