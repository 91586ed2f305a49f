"""The error of soft thresholding, against the threshold and against the noise.

Soft thresholding stays below the oracle and Schatten bounds from the threshold on at which they are
proved, and at every noise level; random noise is kinder than the worst case.

python experiments/approximate_rank.py [--quick]
"""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.generators import noise, spectra, targets
from lowrank_theory.plotting import GREY, SERIES, legend_above, panels
from lowrank_theory.problems import Problem, Setting
from lowrank_theory.theorems import approximate_rank
from lowrank_theory.theorems.approximate_rank import Oracle, SchattenBall

SEED = 3
SAMPLES, INPUTS, OUTPUTS = 60, 24, 20
DECAY, EXPONENT, NOISE = 1.0, 1.0, 0.3
THRESHOLDS = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0)
NOISES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
FAILURE_PROBABILITY = 0.05


def _at(problem: Problem, inflation: Any) -> Any:
    """Squared error, oracle bound and Schatten bound at a multiple of the noise."""
    oracle, ball = Oracle(inflation), SchattenBall(EXPONENT)
    estimate = oracle.estimate(problem)
    schatten = ball.formula(problem, estimate)
    return (
        oracle.loss(problem, estimate),
        oracle.formula(problem, estimate),
        schatten * inflation ** (2 - EXPONENT),
    )


def _relative(problem: Problem) -> Any:
    """Relative squared errors and bounds at every threshold, and at the Gaussian one."""
    signal = (problem.truth.clean_outputs**2).sum()
    curve = jax.lax.map(lambda inflation: _at(problem, inflation), np.asarray(THRESHOLDS))
    gaussian = approximate_rank.gaussian.at(FAILURE_PROBABILITY)
    estimate = gaussian.estimate(problem)
    bound = gaussian.formula(problem, estimate)
    return jax.tree.map(lambda x: x / signal, (curve, (gaussian.loss(problem, estimate), bound)))


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 10 if quick else 200
    target = targets.ApproximateRank(spectra.PowerLaw(DECAY))
    by_threshold: list[dict[str, Any]] = []
    by_noise = []
    for index, scale in enumerate((NOISE, *NOISES)):
        law = noise.Gaussian(scale)
        setting = Setting(SAMPLES, INPUTS, OUTPUTS, OUTPUTS, target=target, noise=law)
        key = jax.random.fold_in(jax.random.key(SEED), index)
        curve, gaussian = sample(_relative, setting, trials=trials, key=key)
        if index == 0:
            by_threshold = [
                {"threshold": ratio, **_row(*(part[:, i] for part in curve))}
                for i, ratio in enumerate(THRESHOLDS)
            ]
        else:
            at_noise = THRESHOLDS.index(1.0)
            row = _row(*(part[:, at_noise] for part in curve))
            row["gaussian_error"] = interval(gaussian[0])
            row["gaussian_bound"] = float(np.mean(gaussian[1]))
            by_noise.append({"noise": scale, **row})
    parameters = {"samples": SAMPLES, "inputs": INPUTS, "outputs": OUTPUTS, "decay": DECAY}
    parameters |= {"exponent": EXPONENT, "noise": NOISE, "trials": trials}
    parameters["failure_probability"] = FAILURE_PROBABILITY
    return {**parameters, "by_threshold": by_threshold, "by_noise": by_noise}


def _row(error: np.ndarray, oracle: np.ndarray, schatten: np.ndarray) -> dict[str, Any]:
    return {
        "error": interval(error),
        "oracle_bound": float(np.mean(oracle)),
        "schatten_bound": float(np.mean(schatten)),
        "largest_ratio": float(np.max(error / oracle)),
    }


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.6, height=4.0)
    rows = numbers["by_threshold"]
    threshold = column(rows, "threshold")
    proved = threshold >= 1
    left.plot(threshold, column(rows, "error", "mean"), **SERIES[0], label="error, threshold τ")
    for name, style, label in (
        ("oracle_bound", SERIES[1], "oracle bound"),
        ("schatten_bound", SERIES[2], f"Schatten bound, a = {numbers['exponent']:g}"),
    ):
        left.plot(threshold[proved], column(rows, name)[proved], **style, label=label)
    left.axvspan(threshold[0] / 1.2, 1, color=GREY, alpha=0.12, linewidth=0)
    left.text(0.03, 0.93, "no bound below ν", transform=left.transAxes, fontsize=9, color="#444444")
    left.set_xlim(threshold[0] / 1.2, threshold[-1] * 1.2)
    left.set_xlabel("threshold τ / norm of the noise ν (no unit)")
    left.set_title(f"noise {numbers['noise']:g}", fontsize=10)

    rows = numbers["by_noise"]
    scale = column(rows, "noise")
    right.plot(scale, column(rows, "error", "mean"), **SERIES[0])
    right.plot(scale, column(rows, "oracle_bound"), **SERIES[1])
    right.plot(scale, column(rows, "schatten_bound"), **SERIES[2])
    right.plot(scale, column(rows, "gaussian_error", "mean"), **SERIES[3])
    right.plot(scale, column(rows, "gaussian_bound"), **SERIES[4])
    left.plot([], [], **SERIES[3], label="error, threshold from σ")
    left.plot([], [], **SERIES[4], label="Gaussian bound (95 %)")
    right.set_xlabel("standard deviation of the noise / r.m.s. output")
    right.set_title("threshold τ = ν, or from σ", fontsize=10)
    for panel in (left, right):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_ylabel("squared error / squared norm of the signal")
    legend_above(figure, left, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
