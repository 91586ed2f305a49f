"""How far noise moves singular values, by its alignment with the signal.

Left, noise on the singular vectors of the signal moves the first value by its whole norm, and
beyond the rank the values are those of the noise; right, the more the noise is aligned with the
signal, the nearer Weyl's and Mirsky's inequalities come to equalities.

python experiments/singular_values.py [--quick]
"""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.perturbations import Perturbation, PerturbationSetting
from lowrank_theory.plotting import GREY, SERIES, legend_above, panels
from lowrank_theory.theorems import _quantities
from lowrank_theory.theorems.singular_values import singular_values

SEED = 11
SIZE, RANK = 24, 4
SIGNAL, NOISE = (4.0, 3.0, 2.0, 1.5), 1.0
ALIGNMENTS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
FORMS = ("weyl", "mirsky", "mirsky_nuclear")


def _moved(perturbation: Perturbation) -> Any:
    """The singular values of A + Z, and realised / bound in each norm."""
    ratios = {}
    for form in FORMS:
        statement = getattr(singular_values, form)
        estimate = statement.estimate(perturbation)
        ratios[form] = statement.loss(perturbation, estimate) / statement.formula(
            perturbation, estimate
        )
    return _quantities.singular_values(perturbation.perturbed), ratios


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 5 if quick else 400
    signal = np.zeros(SIZE)
    signal[:RANK] = SIGNAL
    noise = NOISE * np.linspace(1, 0, SIZE)
    spectra: dict[str, Any] = {}
    rows = []
    for index, alignment in enumerate(ALIGNMENTS):
        setting = PerturbationSetting(
            SIZE, SIZE, RANK, signal=signal, noise=noise, alignment=alignment
        )
        key = jax.random.fold_in(jax.random.key(SEED), index)
        values, ratios = sample(_moved, setting, trials=trials, key=key)
        if alignment in (0.0, 1.0):
            spectra["independent" if alignment == 0 else "aligned"] = values.mean(0).tolist()
        row: dict[str, Any] = {"alignment": alignment}
        for form in FORMS:
            row[form] = {**interval(ratios[form]), "largest": float(ratios[form].max())}
        rows.append(row)
    parameters = {"size": SIZE, "rank": RANK, "noise": NOISE, "trials": trials}
    return {**parameters, "signal": signal.tolist(), "values": spectra, "by_alignment": rows}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.6, height=3.9)
    signal = np.array(numbers["signal"])
    index = np.arange(1, len(signal) + 1)
    edge = numbers["noise"]
    low = np.maximum(signal - edge, 0)
    left.fill_between(index, low, signal + edge, color=GREY, alpha=0.2, linewidth=0)
    left.text(9, 1.12, "within ‖Z‖ of the signal", fontsize=9, color="#444444")
    left.plot(index, signal, color="#000000", drawstyle="steps-mid", linewidth=1.0)
    left.text(1.6, 4.5, "line: signal alone", fontsize=9, color="#444444")
    for name, style in zip(("independent", "aligned"), SERIES[3:5], strict=True):
        values = numbers["values"][name]
        points = {**style, "linestyle": ""}
        left.plot(index, values, **points, markersize=4, label=f"{name} noise")
    left.set_xlabel("index of the singular value")
    left.set_ylabel("singular value of A + Z")
    left.legend(frameon=False, fontsize=9, loc="upper right")

    rows = numbers["by_alignment"]
    alignment = column(rows, "alignment")
    names = ("largest difference (Weyl)", "root of squares (Mirsky)", "sum (Mirsky)")
    for form, style, label in zip(FORMS, SERIES, names, strict=False):
        right.plot(alignment, column(rows, form, "mean"), **style, markersize=4, label=label)
    right.axhline(1, color="#000000", linewidth=1.0)
    right.set_ylim(0, 1.05)
    right.set_xlabel("alignment of the noise with the signal (no unit)")
    right.set_ylabel("mean of realised / bound (no unit)")
    legend_above(figure, right, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
