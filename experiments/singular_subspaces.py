"""The angle of the leading singular subspaces against the noise, and what two bounds say of it.

Left, opposing noise of half the gap turns the leading subspace by a right angle, which is what the
bound allows, and independent noise does much less; right, the bound does not grow with the spread
of the singular values, as an older one does.

python experiments/singular_subspaces.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.perturbations import Perturbation, PerturbationSetting
from lowrank_theory.plotting import GREY, LIMIT, SERIES, legend_above, panels
from lowrank_theory.theorems._quantities import singular_values
from lowrank_theory.theorems.singular_subspaces import singular_subspaces

SEED = 12
SIZE, RANK = 16, 2
STRENGTHS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.49, 0.52, 0.6, 0.7, 0.8)
ALIGNMENTS = {"independent": 0.0, "nearly_opposing": 0.98, "opposing": 1.0}
SPREADS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
WEAK = 0.1


def _angles(perturbation: Perturbation) -> Any:
    """Sines, their bounds by the gap, and the bound of Yu, Wang and Samworth."""
    operator, frobenius = singular_subspaces.gap_operator_norm, singular_subspaces.gap
    estimate = operator.estimate(perturbation)
    signal = singular_values(jnp.asarray(perturbation.matrix))
    noise = singular_values(jnp.asarray(perturbation.noise))
    norm = jnp.minimum(np.sqrt(RANK) * noise[0], jnp.linalg.norm(noise))
    gap = signal[RANK - 1] ** 2 - signal[RANK] ** 2
    return {
        "largest_sine": operator.loss(perturbation, estimate),
        "operator_bound": operator.formula(perturbation, estimate),
        "error": frobenius.loss(perturbation, estimate),
        "bound": frobenius.formula(perturbation, estimate),
        "older_bound": 2 * (2 * signal[0] + noise[0]) * norm / gap,
    }


def _setting(largest: float, strength: float, alignment: float) -> PerturbationSetting:
    """Singular values `largest`, 1 and zeros: the gap is one; noise of that norm about the rank."""
    signal, noise = np.zeros(SIZE), strength * np.ones(SIZE)
    signal[:RANK] = largest, 1
    noise[:RANK] *= -1
    return PerturbationSetting(SIZE, SIZE, RANK, signal=signal, noise=noise, alignment=alignment)


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 5 if quick else 200
    by_strength, by_spread = [], []
    for index, strength in enumerate(STRENGTHS):
        row: dict[str, Any] = {"strength": strength}
        for number, (name, alignment) in enumerate(ALIGNMENTS.items()):
            key = jax.random.fold_in(jax.random.key(SEED), 10 * index + number)
            setting = _setting(1.0, strength, alignment)
            found = sample(_angles, setting, trials=trials, key=key)
            row[name] = interval(found["largest_sine"])
            row["bound"] = float(found["operator_bound"].mean())
        by_strength.append(row)
    for index, largest in enumerate(SPREADS):
        key = jax.random.fold_in(jax.random.key(SEED + 1), index)
        found = sample(_angles, _setting(largest, WEAK, 0.0), trials=trials, key=key)
        row = {name: float(found[name].mean()) for name in ("bound", "older_bound")}
        by_spread.append({"largest": largest, "error": interval(found["error"]), **row})
    parameters = {"size": SIZE, "rank": RANK, "weak": WEAK, "trials": trials}
    return {**parameters, "by_strength": by_strength, "by_spread": by_spread}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.6, height=4.0)
    rows = numbers["by_strength"]
    strength = column(rows, "strength")
    left.plot(strength, np.minimum(column(rows, "bound"), 1), **LIMIT, label="bound, 2‖Z‖ / gap")
    labels = ("independent noise", "nearly opposing noise", "opposing noise")
    for name, style, label in zip(ALIGNMENTS, SERIES, labels, strict=False):
        left.plot(strength, column(rows, name, "mean"), **style, markersize=4, label=label)
    left.axvline(0.5, color=GREY, linewidth=0.8)
    left.set_ylim(-0.03, 1.05)
    left.set_xlabel("norm of the noise / gap (no unit)")
    left.set_ylabel("largest sine (no unit)")

    rows = numbers["by_spread"]
    largest = column(rows, "largest")
    right.plot(largest, column(rows, "error", "mean"), **SERIES[0], markersize=4)
    right.plot(largest, column(rows, "bound"), **LIMIT)
    style = SERIES[4]
    right.plot(largest, column(rows, "older_bound"), **style, markersize=4)
    left.plot([], [], **style, markersize=4, label="bound of Yu, Wang & Samworth")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("largest / least singular value of the signal (no unit)")
    right.set_ylabel("Frobenius norm of the sines (no unit)")
    right.set_title(f"independent noise of norm {numbers['weak']:g} gap", fontsize=10)
    legend_above(figure, left, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
