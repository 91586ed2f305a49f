"""Recovery behind a ReLU: the error against the noise, beside least squares and the slow rate.

Behind a ReLU the error of the matching loss over a nuclear-norm ball falls with the noise, faster
than the slow rate of its bound; least squares, which knows no rectifier, errs without any noise.

python experiments/relu_noise_after.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.generators import noise
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.problems import Problem, ReluThenNoise, Setting
from lowrank_theory.theorems import relu_noise_after

SEED = 4
SAMPLES, INPUTS, OUTPUTS, RANK = 40, 16, 12, 2
NOISES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FAILURE_PROBABILITY = 0.05


def _errors(problem: Problem) -> Any:
    """Squared errors of the estimator and of least squares, and the bounds, over the signal's."""
    gaussian = relu_noise_after.gaussian.at(FAILURE_PROBABILITY)
    sure = relu_noise_after.any_noise
    estimate = gaussian.estimate(problem)
    least_squares = gaussian.broken_estimate(problem)
    signal = jnp.sum(jax.nn.relu(problem.truth.clean_outputs) ** 2)
    values = (
        gaussian.loss(problem, estimate),
        gaussian.loss(problem, least_squares),
        gaussian.formula(problem, estimate),
        sure.formula(problem, estimate),
    )
    return tuple(value / signal for value in values)


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 4 if quick else 60
    rows = []
    for index, scale in enumerate(NOISES):
        law = noise.Gaussian(scale)
        setting = Setting(SAMPLES, INPUTS, OUTPUTS, RANK, noise=law, link=ReluThenNoise())
        key = jax.random.fold_in(jax.random.key(SEED), index)
        error, least_squares, gaussian, sure = sample(_errors, setting, trials=trials, key=key)
        rows.append(
            {
                "noise": scale,
                "error": interval(error),
                "least_squares": interval(least_squares),
                "gaussian_bound": float(np.mean(gaussian)),
                "any_noise_bound": float(np.mean(sure)),
                "largest_ratio": float(np.max(error / sure)),
            }
        )
    parameters = {"samples": SAMPLES, "inputs": INPUTS, "outputs": OUTPUTS, "rank": RANK}
    parameters |= {"failure_probability": FAILURE_PROBABILITY, "trials": trials}
    return {**parameters, "rows": rows}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (panel,) = panels(1, width=6.5, height=4.4)
    rows = numbers["rows"]
    scale = column(rows, "noise")
    panel.plot(scale, column(rows, "gaussian_bound"), **LIMIT, label="bound, Gaussian (95 %)")
    panel.plot(scale, column(rows, "any_noise_bound"), **SERIES[2], label="bound, any noise")
    for name, style, label in (
        ("least_squares", SERIES[1], "least squares"),
        ("error", SERIES[0], "matching loss, nuclear ball"),
    ):
        mean = column(rows, name, "mean")
        errors = [mean - column(rows, name, "low"), column(rows, name, "high") - mean]
        panel.errorbar(scale, mean, errors, **style, markersize=5, capsize=2, label=label)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("standard deviation of the noise / r.m.s. pre-activation")
    panel.set_ylabel("squared error of the activations / their squared norm")
    legend_above(figure, panel, 2)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
