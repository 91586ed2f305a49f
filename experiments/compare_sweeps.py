"""Layers in which one statistic is changed and the others are not: what it does to each method.

Layers are 192 x 192, the second moments of the inputs are given exactly, methods are at an eighth
of the bits, and each point is a mean over three seeds: weights of Student's law, weights of falling
singular values, inputs of few directions, and six large inputs.

    python experiments/compare_sweeps.py [--quick]
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import run
from compare_statistics import METHODS, SHARE
from lowrank_theory.calibration import Calibration
from lowrank_theory.calibration.measured import measured_error
from lowrank_theory.networks import kurtosis, outlier_ratio, participation_ratio, stable_rank
from lowrank_theory.plotting import SERIES, legend_above, panels
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractNestedMethod, dense_float64, recover
from lowrank_theory.studies.compare import LADDERS

SEED = 0
SLACK = 1.1  # of the bits, for scales
SIDE, SEEDS = 192, 3

Matrix = np.ndarray
Layer = tuple[Matrix, Matrix]  # weights, and the second moments of the inputs


def _normal(random: np.random.Generator) -> Matrix:
    return random.standard_normal((SIDE, SIDE))


def _moments(random: np.random.Generator, eigenvalues: Matrix) -> Matrix:
    turn = np.linalg.qr(_normal(random))[0]
    return (turn * eigenvalues) @ turn.T


def heavy_tails(freedom: float, random: np.random.Generator) -> Layer:
    weights = random.standard_t(freedom, (SIDE, SIDE)) if np.isfinite(freedom) else _normal(random)
    return weights, np.eye(SIDE)


def falling_values(power: float, random: np.random.Generator) -> Layer:
    left, right = (np.linalg.qr(_normal(random))[0] for _ in range(2))
    values = np.arange(1.0, SIDE + 1) ** -power
    return np.sqrt(SIDE) * (left * values) @ right.T, np.eye(SIDE)


def few_directions(power: float, random: np.random.Generator) -> Layer:
    return _normal(random), _moments(random, np.arange(1.0, SIDE + 1) ** -power)


def large_inputs(size: float, random: np.random.Generator) -> Layer:
    scales = np.ones(SIDE)
    scales[random.choice(SIDE, 6, replace=False)] = size
    return _normal(random), np.diag(scales**2)


def _kurtosis(layer: Layer) -> float:
    return kurtosis(layer[0])


def _stable_rank(layer: Layer) -> float:
    return stable_rank(layer[0]) / SIDE


def _participation(layer: Layer) -> float:
    return participation_ratio(layer[1]) / SIDE


def _outliers(layer: Layer) -> float:
    return outlier_ratio(np.diagonal(layer[1]))


Make = Callable[[float, np.random.Generator], Layer]
SWEEPS: dict[str, tuple[Make, tuple[float, ...], Callable[[Layer], float]]] = {
    "kurtosis": (heavy_tails, (np.inf, 10, 6, 4, 3), _kurtosis),
    "stable rank": (falling_values, (0, 0.25, 0.5, 0.75, 1), _stable_rank),
    "participation ratio": (few_directions, (0, 0.5, 1, 1.5, 2), _participation),
    "outliers": (large_inputs, (1, 3, 6, 12, 20), _outliers),
}


def output_error(method: str, layer: Layer) -> float:
    """Of the method at an eighth of the bits."""
    weights, moments = layer
    with jax.enable_x64(True):
        calibration = Calibration(np.asarray(1.0), np.zeros(SIDE), moments)
        observed = Observed(weights=weights.astype(np.float32), calibration=calibration)
        ladder = LADDERS[method]
        if isinstance(ladder, AbstractNestedMethod):
            rank = int(SHARE * SIDE / 2)
            made = recover(observed, rank=rank, method=ladder).approximation
        else:
            sweep, most = ladder.sweep(observed), SLACK * SHARE * 32 * SIDE**2
            bits = [each.ideal_bits if each.ideal_bits <= most else 0 for each in sweep.storages]
            made = sweep.at(int(np.argmax(bits))).approximation
        exact = np.asarray(observed.weights, np.float64)[None]
        dense = dense_float64(made)[None]  # pyright: ignore[reportArgumentType]
        return float(np.sqrt(measured_error(exact, dense, None, [calibration]).squares[0]))


def swept(name: str, seeds: int, methods: Sequence[str]) -> list[dict[str, Any]]:
    make, values, statistic = SWEEPS[name]
    points = []
    for value in values:
        layers = [make(value, np.random.default_rng((SEED, seed))) for seed in range(seeds)]
        errors = {
            method: float(np.mean([output_error(method, layer) for layer in layers]))
            for method in methods
        }
        found = float(np.mean([statistic(layer) for layer in layers]))
        points.append({"statistic": found, "errors": errors})
    return points


def measure(*, quick: bool) -> dict[str, Any]:
    methods = METHODS[:3] if quick else METHODS
    seeds = 1 if quick else SEEDS
    return {"share": SHARE, "sweeps": {name: swept(name, seeds, methods) for name in SWEEPS}}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = panels(4, columns=2, width=4.6, height=3.4)
    for panel, (name, points) in zip(axes, numbers["sweeps"].items(), strict=True):
        for method, style in zip(points[0]["errors"], SERIES, strict=False):
            line = [(point["statistic"], point["errors"][method]) for point in points]
            panel.plot(*zip(*line, strict=True), **style, markersize=4, label=method)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(name)
        panel.set_ylabel("error of the outputs, relative")
    legend_above(figure, axes[0])
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
