"""What a finite calibration costs, over the number of rows: sampled, bounded, and to first order.

The bound falls to a small multiple of the leading term once the rows resolve the gap; the bound of
`calibration_size`, which needs no gap, is far above it there.

python experiments/calibration_excess.py [--quick]
"""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, run, sample
from lowrank_theory.generators import spectra
from lowrank_theory.plotting import LIMIT, SERIES, panels
from lowrank_theory.problems import Problem
from lowrank_theory.theorems import calibration_excess, calibration_size
from lowrank_theory.theorems.calibration_size import CalibrationSetting
from lowrank_theory.verification import attack

SEED = 11
DELTA = 0.05
LAYERS = {
    "power law $i^{-2}$, K = 40, r = 2": (40, 2, spectra.PowerLaw(1.0)),
    "three spikes, K = 40, r = 3": (40, 3, spectra.Spiked(3, 8.0)),
}
ROWS = (50, 100, 200, 500, 1000, 2000, 5000, 20000, 100000)


def _sides(problem: Problem) -> dict[str, Any]:
    new, sure = calibration_excess.gaussian, calibration_excess.any_rows
    estimate = new.estimate(problem)
    return {
        "excess": new.loss(problem, estimate),
        "sure": sure.bound(problem).value,
        "gaussian": new.bound(problem, failure_probability=DELTA).value,
        "without_gap": calibration_size.gaussian.bound(problem, failure_probability=DELTA).value,
        "leading": calibration_size.leading_constant.formula(problem, estimate),
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if values.size else None


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 20 if quick else 400
    results = []
    for number, (name, (outputs, rank, spectrum)) in enumerate(LAYERS.items()):
        points = []
        for index, rows in enumerate(ROWS[::4] if quick else ROWS):
            setting = CalibrationSetting(rows, outputs, rank, spectrum)
            key = jax.random.fold_in(jax.random.key(SEED), 100 * number + index)
            found = sample(_sides, setting, trials=trials, key=key)
            ratio = found["excess"] / found["sure"]
            points.append(
                {
                    "rows": rows,
                    "quantile": float(np.quantile(found["excess"], 1 - DELTA)),
                    "leading": float(found["leading"][0]),
                    "gaussian": _finite(found["gaussian"][0]),
                    "without_gap": _finite(found["without_gap"][0]),
                    "in_order": float(np.mean(np.isfinite(found["sure"]))),
                    "sure_ratio": _median(ratio[np.isfinite(found["sure"])]),
                }
            )
        results.append({"layer": name, "points": points})
    witness = attack(
        calibration_excess.any_rows,
        key=jax.random.key(SEED),
        restarts=3 if quick else 16,
        steps=40 if quick else 500,
    )
    return {"failure_probability": DELTA, "attacked": witness.ratio, "results": results}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, both = panels(2, width=4.6, height=4.0)
    for panel, result in zip(both, numbers["results"], strict=True):
        points = result["points"]
        rows = column(points, "rows")
        names = ("without_gap", "gaussian", "quantile")
        labels = ("bound without a gap", "bound", "sampled 95 % quantile")
        for style, name, label in zip(SERIES, names, labels, strict=False):
            panel.plot(rows, column(points, name), **style, markersize=4, label=label)
        panel.plot(rows, column(points, "leading"), **LIMIT, label="leading term of the mean")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(result["layer"], fontsize=10)
        panel.set_xlabel("calibration rows")
        panel.set_ylabel("excess loss (units of the squared outputs)")
    both[0].legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
