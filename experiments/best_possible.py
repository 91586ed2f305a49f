"""The best error of every rank, what misses it, and what rounding adds to it.

Left, no layer of the same rank beats the formula, and the data-driven one meets it; right, with
ill-conditioned activations the Gram matrix loses this optimum to rounding, and its certificate says
so (hollow marks) before it happens.

python experiments/best_possible.py [--quick]
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, run, sample
from lowrank_theory.calibration import Calibration
from lowrank_theory.error_measures import fitting_error
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.plotting import LIMIT, SERIES, panels
from lowrank_theory.problems import Observed, Problem, Setting
from lowrank_theory.recovery import ActivationWeighted, TruncatedSVD, recover
from lowrank_theory.theorems import best_possible
from lowrank_theory.theorems.best_possible import best_error

SEED = 0
SAMPLES, INPUTS, OUTPUTS = 60, 24, 20
RANKS = (1, 2, 4, 8, 12, 16, 19)
ROUNDING_SIZE, ROUNDING_RANK = 24, 20
CONDITION_NUMBERS = tuple(10.0**power for power in range(13))


def _errors(problem: Problem) -> Any:
    """Relative errors: truncated weights, data-driven, alternating least squares, the formula."""
    observed, rank = problem.observed, problem.rank
    competitor = best_possible.optimality.estimate(problem)
    errors = (
        fitting_error(recover(observed, rank, TruncatedSVD()), observed),
        fitting_error(recover(observed, rank, ActivationWeighted()), observed),
        fitting_error(competitor, observed),
        best_error(observed, rank),
    )
    return tuple(error / jnp.linalg.norm(observed.target_outputs) for error in errors)


def _by_rank(trials: int) -> list[dict[str, Any]]:
    rows = []
    law = activations.GaussianRows(spectra.PowerLaw(1.0))
    for rank in RANKS:
        setting = Setting(
            SAMPLES,
            INPUTS,
            OUTPUTS,
            rank,
            activations=law,
            target=targets.ApproximateRank(spectra.PowerLaw(0.5)),
            noise=noise.Gaussian(0.0),
        )
        names = ("data_agnostic", "data_driven", "competitor", "formula")
        errors = sample(_errors, setting, trials=trials, key=jax.random.key(SEED))
        means = {n: float(np.mean(e)) for n, e in zip(names, errors, strict=True)}
        gap = float(np.max(np.abs(errors[1] - errors[3])))
        rows.append({"rank": rank, **means, "largest_gap_to_formula": gap})
    return rows


def _rounding(kappa: float, key: Any) -> dict[str, Any]:
    size, rank = ROUNDING_SIZE, ROUNDING_RANK
    rate = math.log(kappa) / (size - 1)
    setting = Setting(
        SAMPLES,
        size,
        size,
        rank,
        activations=activations.FixedSpectrum(spectra.Exponential(rate)),
        target=targets.ApproximateRank(spectra.Flat()),
        noise=noise.Gaussian(0.0),
    )
    with jax.enable_x64(True):
        drawn = setting.draw(key=key)
        weights, rows = drawn.truth.target_weights, drawn.truth.layer_inputs
        observed = Observed(weights=weights, activations=rows)
        optimum = float(best_error(observed, rank))
        calibration = Calibration.empty(size).update(rows)
        seen = {
            "rows": observed,
            "gram": Observed(weights=weights, calibration=calibration),
        }
        result: dict[str, Any] = {"condition_number": kappa}
        for name, known in seen.items():
            recovery = recover(known, rank, ActivationWeighted())
            error = float(fitting_error(recovery, observed))
            result[name] = {
                "excess": abs(error / optimum - 1),
                "certified": bool(recovery.certificate.certified),
            }
    return result


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 5 if quick else 100
    key = jax.random.key(SEED + 1)
    rounding = [_rounding(kappa, key) for kappa in CONDITION_NUMBERS]
    parameters = {"samples": SAMPLES, "inputs": INPUTS, "outputs": OUTPUTS, "trials": trials}
    parameters |= {"rounding_size": ROUNDING_SIZE, "rounding_rank": ROUNDING_RANK}
    return {**parameters, "by_rank": _by_rank(trials), "rounding": rounding}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=5.0, height=4.2)
    rows = numbers["by_rank"]
    rank = column(rows, "rank")
    left.plot(rank, column(rows, "data_agnostic"), **SERIES[1], label="weights truncated")
    left.plot(
        rank, column(rows, "competitor"), **SERIES[2], label="alternating least squares, 5 sweeps"
    )
    left.plot(
        rank, column(rows, "data_driven"), **{**SERIES[0], "linestyle": ""}, label="data-driven"
    )
    left.plot(rank, column(rows, "formula"), **LIMIT, label="best possible: formula")
    left.set_yscale("log")
    left.set_xticks(rank)
    left.xaxis.set_major_formatter("{x:g}")
    left.set_xlabel("rank")
    left.set_ylabel("output error / norm of the outputs")
    left.legend(frameon=False, fontsize=9, loc="lower left")

    rows = numbers["rounding"]
    kappa = column(rows, "condition_number")
    for name, style, label in (("rows", SERIES[0], "rows"), ("gram", SERIES[1], "Gram matrix")):
        excess = np.maximum(column(rows, name, "excess"), 1e-17)
        certified = column(rows, name, "certified") > 0
        right.plot(kappa, excess, color=style["color"], linestyle=style["linestyle"])
        for kind, chosen, face in (
            ("certified", certified, style["color"]),
            ("guard tripped", ~certified, "white"),
        ):
            right.plot(
                kappa[chosen],
                excess[chosen],
                color=style["color"],
                marker=style["marker"],
                linestyle="",
                markerfacecolor=face,
                label=f"{label}, {kind}" if chosen.any() else None,
            )
    right.axhline(1e-3, color="#7f7f7f", linewidth=0.8, linestyle=":", label="what is certified")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("condition number of the activations (no unit)")
    right.set_ylabel("|error / best possible error − 1|")
    right.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
