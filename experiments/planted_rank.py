"""How near the error of the planted layer comes to its bound, its floor and its exact limit.

The mean error follows its large-size limit closely where the signal is detected. It is largest near
the detection threshold, between the floor that no estimator can beat and the bound.

python experiments/planted_rank.py [--quick]
"""

import math
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.generators import noise, spectra, targets
from lowrank_theory.plotting import GREY, SERIES, legend_above, panels
from lowrank_theory.problems import Problem, Setting
from lowrank_theory.theorems import planted_rank
from lowrank_theory.theorems.minimax_floor import risk_floor
from lowrank_theory.theorems.planted_rank import gaussian_worst_square, mean_worst_square
from lowrank_theory.theorems.spiked_limit import asymptotic_error, detection_threshold

SEED = 1
SHAPES = ((100, 100), (50, 200), (100, 400))  # (q, outputs)
RANK = 3
SPREAD = 0.1  # strengths are strength * exp(-SPREAD * j): distinct in the limit
STRENGTHS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.45, 1.7, 2.0, 3.0, 6.0, 1000.0)
SIDES, RANKS, DELTA = (24, 20), (1, 3, 5, 10, 15, 20), 0.05
DETECTED = 1.3  # from here on the limit is compared with the sample


def _squared_error(problem: Problem) -> Any:
    statement = planted_rank.expectation
    return statement.loss(problem, statement.estimate(problem))


def _strengths(q: int, outputs: int, multiple: float) -> np.ndarray:
    """The singular values of the signal, the smallest `multiple` times the detection threshold."""
    smallest = multiple * detection_threshold(q, outputs, 1.0)
    return smallest * np.exp(SPREAD * np.arange(RANK)[::-1])


def _limit(q: int, outputs: int, multiple: float) -> float:
    with jax.enable_x64(True):
        return float(asymptotic_error(_strengths(q, outputs, multiple), q, outputs, 1.0))


def _bound(q: int, outputs: int) -> float:
    with jax.enable_x64(True):
        return float(mean_worst_square(float(q), float(outputs), RANK))


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 20 if quick else 100
    shapes = SHAPES[:1] if quick else SHAPES
    results = []
    for number, (q, outputs) in enumerate(shapes):
        unit = RANK * (math.sqrt(q) + math.sqrt(outputs)) ** 2
        points = []
        for index, multiple in enumerate(STRENGTHS):
            scale = float(_strengths(q, outputs, multiple)[0])
            target = targets.ExactOutputRank(spectra.Exponential(SPREAD), scale)
            setting = Setting(q, q, outputs, RANK, target=target, noise=noise.Gaussian(1.0))
            key = jax.random.fold_in(jax.random.key(SEED), 100 * number + index)
            errors = sample(_squared_error, setting, trials=trials, key=key)
            limit = _limit(q, outputs, multiple) / unit
            points.append({"multiple": multiple, "error": interval(errors / unit), "limit": limit})
        detected = [p for p in points if p["multiple"] >= DETECTED]
        worst = max(points, key=lambda point: point["error"]["mean"])
        results.append(
            {
                "q": q,
                "outputs": outputs,
                "floor": risk_floor(RANK, q, outputs, 1.0) / unit,
                "bound": _bound(q, outputs) / unit,
                "points": points,
                "curve": [
                    [m, _limit(q, outputs, m) / unit] for m in np.geomspace(0.22, 7, 200).tolist()
                ],
                "largest_deviation_from_limit": max(
                    abs(p["error"]["mean"] / p["limit"] - 1) for p in detected
                ),
                "worst_over_strengths": worst,
            }
        )
    return {
        "rank": RANK,
        "spread": SPREAD,
        "trials": trials,
        "results": results,
        "at_95_percent": [_likely(*SIDES, rank) for rank in RANKS],
    }


def _likely(q: int, outputs: int, rank: int) -> dict[str, Any]:
    """What `gaussian` says, beside five times the edge, and the minimax floor."""
    edge = math.sqrt(q) + math.sqrt(outputs) + math.sqrt(2 * math.log(1 / DELTA))
    with jax.enable_x64(True):
        bound = float(gaussian_worst_square(float(q), float(outputs), rank, DELTA))
    floor = risk_floor(rank, q, outputs, 1.0)
    return {"rank": rank, "bound": bound, "five_edges": 5 * rank * edge**2, "floor": floor}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (panel,) = panels(1, width=7.5, height=4.8)
    for style, result in zip(SERIES, numbers["results"], strict=False):
        label = f"q = {result['q']}, K = {result['outputs']}"
        color = style["color"]
        points = [p for p in result["points"] if p["multiple"] < 100]
        mean = column(points, "error", "mean")
        errors = [mean - column(points, "error", "low"), column(points, "error", "high") - mean]
        panel.errorbar(
            column(points, "multiple"),
            mean,
            errors,
            color=color,
            marker=style["marker"],
            markersize=5,
            linestyle="",
            capsize=2,
            label=f"{label}: sampled mean",
        )
        curve = np.array(result["curve"])
        for side in (curve[:, 0] < 1, curve[:, 0] >= 1):
            # One colour and one line for each shape; the limit may jump where parts are detected.
            panel.plot(
                *curve[side].T,
                color=color,
                linestyle=style["linestyle"],
                linewidth=1.2,
                label=f"{label}: limit" if side[-1] else None,
            )
        panel.axhline(result["floor"], xmax=0.06, color=color, linewidth=2.5)
        panel.axhline(result["floor"], color=color, linewidth=0.8, linestyle=(0, (1, 3)))
        panel.axhline(result["bound"], color=color, linewidth=1.2)
    panel.plot([], [], color=GREY, linewidth=2.5, label="minimax floors (left edge)")
    panel.plot([], [], color=GREY, linewidth=1.2, label="bounds (top)")
    panel.axvline(1, color=GREY, linewidth=1, linestyle=":", label="detection threshold")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(0.22, 7)
    panel.set_ylim(0.35, 6.5)
    panel.set_xticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    panel.set_yticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"])
    panel.minorticks_off()
    panel.set_xlabel("weakest signal / detection threshold (no unit)")
    panel.set_ylabel(r"squared output error / $r\sigma^2(\sqrt{q}+\sqrt{K})^2$")
    legend_above(figure, panel, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
