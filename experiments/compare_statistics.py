"""What shapes the error of a method: a regression over the layers of all compared networks.

Each layer is one row, with the error of a method at an eighth of the bits, read off between its
sizes on logarithmic axes. The error of the weights is explained by what the weights are like, and
how much smaller that of the outputs is by what the inputs are like; coefficients are in decades per
standard deviation of a logarithm. `compare_sweeps.py` changes one statistic at a time.

    python experiments/compare_statistics.py [--quick]

It reads figures/compare_<network>.json.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _compare import kept
from _save import run
from lowrank_theory._files import plain
from lowrank_theory.models.catalogue import CASES
from lowrank_theory.plotting import SERIES, legend_above, panels
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import RoundToNearest
from lowrank_theory.recovery import AbstractNestedMethod, dense_float64, recover
from lowrank_theory.studies.compare import FAMILIES, LADDERS, Comparison
from lowrank_theory.studies.regression import regression

ROOT = Path(__file__).resolve().parents[1]
SEED = 0
SHARE = 1 / 8
METHODS = sum((FAMILIES[name] for name in ("low rank", "few bits", "few entries")), ())
OF_WEIGHTS = ("kurtosis", "stable_rank", "outlier_weights")
OF_INPUTS = ("centred_participation_ratio", "mean_share", "outlier_inputs")

Matrix = np.ndarray


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


# --- inputs of few directions --------------------------------------------------------------------


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
    layers = {name: len(found.statistics) for name, found in networks.items()}
    return {
        "share": SHARE,
        "layers": layers,
        "regressions": regressions,
        "few_dimensions": few_dimensions(),
    }


# --- figure ---------------------------------------------------------------------------------------


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = panels(2, width=5.0, height=4.2)
    for panel, part in zip(axes, ("weights", "inputs"), strict=True):
        _coefficients(panel, numbers["regressions"], part)
    axes[0].set_title("error of the weights", fontsize=10)
    axes[1].set_title("error of the outputs / of the weights", fontsize=10)
    legend_above(figure, axes[0])
    return figure


def _coefficients(panel: Axes, regressions: dict[str, Any], part: str) -> None:
    names: list[str] = []
    styled = zip(regressions.items(), SERIES, strict=False)
    for place, ((method, each), style) in enumerate(styled):
        rows = each[part]["coefficients"]
        names = [row["name"].replace("_", " ") for row in rows]
        heights = np.arange(len(rows)) + 0.09 * (place - 3)
        panel.hlines(
            heights, [row["low"] for row in rows], [row["high"] for row in rows],
            color=style["color"], linewidth=1,
        )  # fmt: skip
        values = [row["value"] for row in rows]
        panel.plot(values, heights, **{**style, "linestyle": ""}, markersize=4, label=method)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.axvline(0, color="#7f7f7f", linewidth=0.8)
    panel.set_xlabel("decades per standard deviation, 95 %")
    panel.set_ylabel("statistic of the layer")


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
