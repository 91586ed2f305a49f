"""How tight the bound on a planted layer is, over rank and signal strength.

python experiments/phase_diagram.py [--quick]
"""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import run, sample
from lowrank_theory.generators import noise, spectra, targets
from lowrank_theory.plotting import panels
from lowrank_theory.problems import Problem, Setting
from lowrank_theory.theorems import planted_rank
from lowrank_theory.theorems.spiked_limit import detection_threshold

SEED = 1
Q, OUTPUTS = 64, 64
RANKS = (1, 2, 4, 8, 16, 32)
STRENGTHS = tuple(np.geomspace(0.25, 8, 16).tolist())  # in units of the detection threshold


def _sides(problem: Problem) -> Any:
    statement = planted_rank.expectation
    estimate = statement.estimate(problem)
    return statement.loss(problem, estimate), statement.formula(problem, estimate)


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 5 if quick else 50
    ranks = RANKS[:2] if quick else RANKS
    threshold = detection_threshold(Q, OUTPUTS, 1.0)
    ratios = []
    for number, rank in enumerate(ranks):
        row = []
        for index, strength in enumerate(STRENGTHS):
            target = targets.ExactOutputRank(spectra.Flat(), strength * threshold)
            setting = Setting(Q, Q, OUTPUTS, rank, target=target, noise=noise.Gaussian(1.0))
            key = jax.random.fold_in(jax.random.key(SEED), 100 * number + index)
            realised, bound = sample(_sides, setting, trials=trials, key=key)
            row.append(float(np.mean(realised) / np.mean(bound)))
        ratios.append(row)
    return {
        "q": Q,
        "outputs": OUTPUTS,
        "trials": trials,
        "ranks": list(ranks),
        "strengths": list(STRENGTHS),
        "ratios": ratios,
        "largest_ratio": float(np.max(ratios)),
    }


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (panel,) = panels(1, width=7.5, height=4.2)
    panel.grid(visible=False)
    strengths, ratios = np.array(numbers["strengths"]), np.array(numbers["ratios"])
    step = np.sqrt(strengths[1] / strengths[0])
    edges = np.append(strengths / step, strengths[-1] * step)
    rows = np.arange(len(numbers["ranks"]) + 1)
    mesh = panel.pcolormesh(edges, rows, ratios, cmap="cividis", vmin=0.0)
    panel.axvline(1.0, color="white", linewidth=2.5)
    panel.axvline(1.0, color="black", linewidth=1.2, linestyle="--")
    panel.text(1.04, rows[-1] + 0.08, "detection threshold", fontsize=9, verticalalignment="bottom")
    panel.set_xscale("log")
    panel.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["0.25", "0.5", "1", "2", "4", "8"])
    panel.minorticks_off()
    panel.set_yticks(rows[:-1] + 0.5, [str(rank) for rank in numbers["ranks"]])
    panel.set_xlabel(r"signal strength / $\sigma(qK)^{1/4}$ (no unit)")
    panel.set_ylabel("rank of the layer")
    bar = figure.colorbar(mesh, ax=panel)
    bar.set_label("mean squared error / bound")
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
