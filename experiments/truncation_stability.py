"""The constant of truncation in every Schatten norm, reached by attack; and which bound is better.

Left, the attack meets the proved constant in every Schatten norm; right, the golden ratio gives the
better bound where the values of the noise decay.

python experiments/truncation_stability.py [--quick]
"""

import math
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.perturbations import Perturbation, PerturbationSetting
from lowrank_theory.plotting import LIMIT, SERIES, panels
from lowrank_theory.theorems.truncation_stability import Schatten, truncation_stability
from lowrank_theory.verification import attack

SEED = 13
EXPONENTS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, math.inf)
INFINITY = 8  # where the axis has it
SIZE, RANK, STRENGTH = 24, 4, 0.3
DECAYS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


def _constant(exponent: float) -> float:
    return 2 * (1 + 2**-exponent) ** (1 / exponent)


def _both(perturbation: Perturbation) -> Any:
    """The error and two bounds on it."""
    flat, golden = truncation_stability.frobenius, truncation_stability.golden_ratio
    estimate = flat.estimate(perturbation)
    return {
        "error": flat.loss(perturbation, estimate),
        "flat": flat.formula(perturbation, estimate),
        "golden": golden.formula(perturbation, estimate),
    }


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 5 if quick else 300
    attacked = []
    for exponent in EXPONENTS[3:4] if quick else EXPONENTS:
        witness = attack(
            Schatten(exponent),
            key=jax.random.key(SEED),
            restarts=3 if quick else 16,
            steps=40 if quick else 500,
        )
        reached = witness.ratio * _constant(exponent)
        finite = exponent if math.isfinite(exponent) else None
        attacked.append({"exponent": finite, "ratio": witness.ratio, "reached": reached})
    signal = np.zeros(SIZE)
    signal[:RANK] = 1
    by_decay = []
    for index, decay in enumerate(DECAYS):
        noise = STRENGTH * np.exp(-decay * np.arange(SIZE))
        row: dict[str, Any] = {"decay": decay}
        setting = PerturbationSetting(SIZE, SIZE, RANK, signal=signal, noise=noise)
        key = jax.random.fold_in(jax.random.key(SEED), index)
        found = sample(_both, setting, trials=trials, key=key)
        norm = float(np.linalg.norm(noise))
        row["error"] = interval(found["error"] / norm)
        row |= {name: float(found[name].mean()) / norm for name in ("flat", "golden")}
        by_decay.append(row)
    parameters = {"size": SIZE, "rank": RANK, "strength": STRENGTH, "trials": trials}
    return {**parameters, "attacked": attacked, "by_decay": by_decay}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.6, height=3.8)
    grid = np.geomspace(1, 5, 200)
    left.plot(grid, (1 + 2**grid) ** (1 / grid), **LIMIT, label="proved: $(1 + 2^p)^{1/p}$")
    style = {**SERIES[1], "marker": ""}
    left.plot([2, INFINITY], [math.sqrt(5)] * 2, **style, label="by orthogonality alone: √5")
    rows = numbers["attacked"]
    exponent, reached = column(rows, "exponent"), column(rows, "reached")
    style = {**SERIES[0], "linestyle": ""}
    exponent = np.where(np.isnan(exponent), INFINITY, exponent)
    left.plot(exponent, reached, **style, label="reached by attack")
    left.plot([5, INFINITY], [_constant(5), 2], color="#7f7f7f", linewidth=0.8, linestyle=":")
    left.set_xscale("log")
    left.set_xticks([1, 2, 4, INFINITY], ["1", "2", "4", "∞"])
    left.minorticks_off()
    left.set_xlabel("exponent p of the Schatten norm")
    left.set_ylabel("error / norm of the r largest of Z (no unit)")
    left.legend(frameon=False, fontsize=9)

    rows = numbers["by_decay"]
    decay = column(rows, "decay")
    right.plot(decay, column(rows, "flat"), **SERIES[2], markersize=4, label="√5 ‖Z of rank r‖")
    right.plot(
        decay, column(rows, "golden"), **SERIES[4], markersize=4, label="1.618 ‖Z of rank 2r‖"
    )
    right.plot(decay, column(rows, "error", "mean"), **SERIES[0], markersize=4, label="error")
    right.set_ylim(0, None)
    right.set_xlabel("decay rate of the noise spectrum (per index)")
    right.set_ylabel("Frobenius norm / that of the noise (no unit)")
    right.set_title("independent noise", fontsize=10)
    right.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
