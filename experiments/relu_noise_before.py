"""Recovery behind a censoring ReLU: errors and bounds against signal, and the score against noise.

Left, errors fall with the signal, while the bounds, which divide by the least curvature of the
censored likelihood, rise steeply once pre-activations lie far below zero, and say nothing yet at
this size; right, the score is a fifth smaller than the bound on its mean.

python experiments/relu_noise_before.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.generators import noise, targets
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.problems import NoiseThenRelu, Problem, Setting
from lowrank_theory.recovery import singular_value_threshold
from lowrank_theory.theorems.relu_noise_before import (
    ConvexGaussian,
    LikelyGaussian,
    Score,
    ScoreExpectation,
)

SEED = 18
SAMPLES, INPUTS, OUTPUTS, RANK = 120, 10, 10, 1
BOXES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
FAILURE_PROBABILITY = 0.05


def _measured(problem: Problem, box: Any) -> Any:
    """Errors of three estimators, two bounds, and norm and expected bound of the score."""
    convex = ConvexGaussian(box=box).at(FAILURE_PROBABILITY)
    likely = LikelyGaussian(box=box).at(FAILURE_PROBABILITY)
    fit = convex.estimate(problem)
    local = likely.estimate(problem)
    uncensored, _ = singular_value_threshold(
        problem.truth.layer_inputs,
        problem.truth.clean_outputs + problem.truth.noise,
        convex.penalty(problem),
        rank=OUTPUTS,
    )
    score, expected = Score(), ScoreExpectation()
    realised = score.loss(problem, score.estimate(problem))
    size = jnp.linalg.norm(problem.truth.clean_outputs)
    return (
        convex.loss(problem, fit) / size,
        likely.loss(problem, local) / size,
        convex.loss(problem, uncensored.left @ uncensored.right) / size,
        convex.formula(problem, fit) / size,
        likely.formula(problem, local) / size,
        realised / expected.formula(problem, realised),
        jnp.mean(problem.observed.target_outputs == 0),
    )


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 4 if quick else 60
    rows = []
    for index, box in enumerate(BOXES[:2] if quick else BOXES):
        setting = Setting(
            SAMPLES,
            INPUTS,
            OUTPUTS,
            RANK,
            target=targets.BoundedOutputs(box),
            noise=noise.Gaussian(1.0),
            link=NoiseThenRelu(),
        )
        key = jax.random.fold_in(jax.random.key(SEED), index)
        values = sample(
            lambda problem, box=box: _measured(problem, box), setting, trials=trials, key=key
        )
        names = ("convex", "likely", "uncensored", "convex_bound", "likely_bound", "score")
        row: dict[str, Any] = {"box": box, "censored": float(np.mean(values[-1]))}
        row |= {name: interval(v) for name, v in zip(names, values[:-1], strict=True)}
        row["largest_ratio"] = float(np.max(values[0] / values[3]))
        rows.append(row)
    parameters = {"samples": SAMPLES, "inputs": INPUTS, "outputs": OUTPUTS, "rank": RANK}
    parameters |= {"failure_probability": FAILURE_PROBABILITY, "trials": trials}
    return {**parameters, "rows": rows}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.6, height=4.2)
    rows = numbers["rows"]
    box = column(rows, "box")
    lines = (
        ("likely_bound", {**LIMIT, "linestyle": "--"}, "bound, rank known (95 %)"),
        ("convex_bound", LIMIT, "bound, convex (95 %)"),
        ("likely", SERIES[1], "local search, rank known"),
        ("convex", SERIES[0], "convex, censored"),
        ("uncensored", SERIES[2], "thresholding, nothing censored"),
    )
    for name, style, label in lines:
        left.plot(box, column(rows, name, "mean"), **style, label=label)
    left.set_yscale("log")
    left.set_ylabel("error of the pre-activations / their norm")
    mean = column(rows, "score", "mean")
    errors = [mean - column(rows, "score", "low"), column(rows, "score", "high") - mean]
    right.errorbar(box, mean, errors, **SERIES[3], capsize=2, label="norm of the score")
    right.axhline(1, **LIMIT)
    right.set_ylim(0, 1.1)
    right.set_ylabel("norm of the score / bound on its mean")
    for panel in (left, right):
        panel.set_xlabel("largest pre-activation / standard deviation of the noise")
    left.plot([], [], **SERIES[3], label="norm of the score")
    legend_above(figure, left, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
