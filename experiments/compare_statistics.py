"""What shapes the error of a method: a regression over the layers of all networks that were
compared, and sweeps in which one statistic is changed and the others are not.

Each layer is one row, with the error of a method at an eighth of the bits, read off between its
sizes on logarithmic axes. The error of the weights is explained by what the weights are like, and
how much smaller that of the outputs is by what the inputs are like; coefficients are in decades per
standard deviation of a logarithm. In the sweeps layers are 192 x 192, the second moments of the
inputs are given exactly, and each point is a mean over three seeds.

    python experiments/compare_statistics.py [--quick]

It reads figures/compare_<network>.json.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _compare import kept
from _save import run
from lowrank_theory._files import plain
from lowrank_theory.calibration import Calibration
from lowrank_theory.calibration.measured import measured_error
from lowrank_theory.models.catalogue import CASES
from lowrank_theory.networks import kurtosis, outlier_ratio, participation_ratio, stable_rank
from lowrank_theory.plotting import SERIES, legend_above, panels
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import RoundToNearest
from lowrank_theory.recovery import AbstractNestedMethod, dense_float64, recover
from lowrank_theory.studies.compare import FAMILIES, LADDERS, Comparison
from lowrank_theory.studies.regression import regression

ROOT = Path(__file__).resolve().parents[1]
SEED = 0
SHARE = 1 / 8
SLACK = 1.1  # of the bits, for scales
SIDE, SEEDS = 192, 3
METHODS = sum((FAMILIES[name] for name in ("low rank", "few bits", "few entries")), ())
OF_WEIGHTS = ("kurtosis", "stable_rank", "outlier_weights")
OF_INPUTS = ("centred_participation_ratio", "mean_share", "outlier_inputs")

Matrix = np.ndarray
Layer = tuple[Matrix, Matrix]  # weights, and the second moments of the inputs


# --- the regression -------------------------------------------------------------------------------


def rows_of(found: Comparison, method: str) -> Iterator[dict[str, float]]:
    """The layers of a network, with the errors of a method at an eighth of the bits."""
    for layer in found.statistics:
        sizes = [row for row in found.layers if row.layer == layer.layer and row.method == method]
        sizes.sort(key=lambda row: row.ideal)
        bits = np.log([row.ideal for row in sizes])
        if not len(bits) or not bits[0] <= np.log(SHARE) <= bits[-1]:
            continue
        errors = [
            np.exp(np.interp(np.log(SHARE), bits, np.log([getattr(row, each) for row in sizes])))
            for each in ("weight_error", "output_error")
        ]
        yield {
            "weight_error": float(errors[0]),
            "output_error": float(errors[1]),
            **{name: getattr(layer, name) for name in (*OF_WEIGHTS, *OF_INPUTS)},
        }


def explained(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Both regressions."""

    def column(name: str) -> Matrix:
        values = np.array([row[name] for row in rows], float)
        return values if name == "mean_share" else np.log10(values)

    weights = column("weight_error")
    of = {"weights": (OF_WEIGHTS, weights), "inputs": (OF_INPUTS, column("output_error") - weights)}
    return {
        name: plain(regression({each: column(each) for each in names}, response, seed=SEED))
        for name, (names, response) in of.items()
    }


# --- the sweeps -----------------------------------------------------------------------------------


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


def few_dimensions() -> list[dict[str, Any]]:
    """Inputs in 32 random directions of 256: the errors of the weights and of the outputs, of the
    layer fitted at rank 32, of truncated singular values, and of four bits.
    """
    random, size, dimension = np.random.default_rng(SEED), 256, 32
    weights = random.standard_normal((size, size))
    inputs = random.standard_normal((1_000, dimension)) @ random.standard_normal((dimension, size))
    observed = Observed(weights=weights, activations=inputs)
    methods = {name: LADDERS[name] for name in FAMILIES["low rank"]}
    made = {
        f"{name}, rank {dimension}": recover(observed, rank=dimension, method=method)
        for name, method in methods.items()
        if isinstance(method, AbstractNestedMethod)
    }
    made["rounded, 4 bits"] = RoundToNearest((4,)).sweep(observed).at(0)
    rows = []
    for name, each in made.items():
        missing = weights - dense_float64(each.approximation)  # pyright: ignore[reportArgumentType]
        rows.append(
            {
                "method": name,
                "weight_error": np.linalg.norm(missing) / np.linalg.norm(weights),
                "output_error": np.linalg.norm(inputs @ missing) / np.linalg.norm(inputs @ weights),
            }
        )
    return plain(rows)


def measure(*, quick: bool) -> dict[str, Any]:
    files = {name: ROOT / "figures" / f"compare_{name}.json" for name in CASES}
    there = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
    if not there:
        sys.exit("figures has no compare_<network>.json: run experiments/compare_digits.py")
    networks = {name: kept(numbers) for name, numbers in there.items()}
    methods = METHODS[:3] if quick else METHODS
    regressions = {}
    for method in methods:
        rows = [row for found in networks.values() for row in rows_of(found, method)]
        if len(rows) > 2 * len(OF_WEIGHTS):
            regressions[method] = explained(rows)
    sweeps = {name: swept(name, 1 if quick else SEEDS, methods) for name in SWEEPS}
    layers = {name: len(found.statistics) for name, found in networks.items()}
    return {
        "share": SHARE,
        "layers": layers,
        "regressions": regressions,
        "sweeps": sweeps,
        "few_dimensions": few_dimensions(),
    }


# --- figure ---------------------------------------------------------------------------------------


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = panels(6, width=4.6, height=3.6)
    for panel, (name, points) in zip(axes[:4], numbers["sweeps"].items(), strict=True):
        for method, style in zip(points[0]["errors"], SERIES, strict=False):
            line = [(point["statistic"], point["errors"][method]) for point in points]
            panel.plot(*zip(*line, strict=True), **style, markersize=4, label=method)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(name)
        panel.set_ylabel("error of the outputs, relative")
    for panel, part in zip(axes[4:], ("weights", "inputs"), strict=True):
        _coefficients(panel, numbers["regressions"], part)
    axes[4].set_title("error of the weights", fontsize=10)
    axes[5].set_title("error of the outputs / of the weights", fontsize=10)
    legend_above(figure, axes[0])
    return figure


def _coefficients(panel: Axes, regressions: dict[str, Any], part: str) -> None:
    names: list[str] = []
    for place, (each, style) in enumerate(zip(regressions.values(), SERIES, strict=False)):
        rows = each[part]["coefficients"]
        names = [row["name"].replace("_", " ") for row in rows]
        heights = np.arange(len(rows)) + 0.09 * (place - 3)
        panel.hlines(
            heights, [row["low"] for row in rows], [row["high"] for row in rows],
            color=style["color"], linewidth=1,
        )  # fmt: skip
        values = [row["value"] for row in rows]
        panel.plot(values, heights, **{**style, "linestyle": ""}, markersize=4)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.axvline(0, color="#7f7f7f", linewidth=0.8)
    panel.set_xlabel("decades per standard deviation, 95 %")
    panel.set_ylabel("statistic of the layer")


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
