"""What rounding to nearest loses of weights of several laws, and the worst that it can lose.

Left, weights that lie half way between levels lose what the bound allows, to the last digit;
Gaussian weights lose far less, a third of what their largest entries allow. Middle, the larger the
group, the more is lost, and two bits that reach the largest weight are worse than one. Right, one
large weight of an output costs the others their digits; rotated at random they keep them, until it
holds nearly all of the energy.

python experiments/rounding.py [--quick]
"""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.generators import noise
from lowrank_theory.plotting import BLACK, LIMIT, SERIES, panels
from lowrank_theory.quantisation import round_to_nearest
from lowrank_theory.theorems._rotated import RotatedSetting, RotatedWeights
from lowrank_theory.theorems.rounding import RoundedLayer, RoundedSetting, rounding

SEED = 25
GROUP, COLUMNS = 64, 16
BITS = (1, 2, 3, 4, 5, 6, 7, 8)
SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
LARGE = (1, 4, 16, 64, 256)
LAWS = {
    "gaussian": noise.Gaussian(1.0),
    "laplace": noise.Laplace(1.0),
    "outliers": noise.SparseOutliers(1.0, magnitude=10.0),
}


def _shares(layer: RoundedLayer) -> Any:
    """The energy that rounding loses, and the bounds on it, as shares of all."""
    names = ("one_bit", "one_bit_worst") if layer.bits == 1 else ("peak", "absmax")
    known, worst = (getattr(rounding, name) for name in names)
    rounded = worst.estimate(layer)
    energy = (layer.weights**2).sum()
    return {
        "lost": worst.loss(layer, rounded) / energy,
        "known": known.formula(layer, rounded) / energy,
        "worst": worst.formula(layer, rounded) / energy,
    }


def _measured(setting: RoundedSetting, trials: int, seed: int) -> dict[str, Any]:
    key = jax.random.fold_in(jax.random.key(SEED), seed)
    found = sample(_shares, setting, trials=trials, key=key)
    means = {name: float(found[name].mean()) for name in ("known", "worst")}
    return {"lost": interval(found["lost"]), **means}


def _turned(weights: RotatedWeights) -> Any:
    """What rounding loses of all but the first weights, as they are and rotated, and the bound."""
    rest = weights.weights[1:]
    nearest = round_to_nearest(weights.weights, weights.bits, clipped=False).materialise()
    rotated = rounding.rotated
    error = rotated.estimate(weights)
    # The rotation is its own inverse, up to the signs, which change no size.
    back = RotatedWeights(error, np.ones(len(error))).rotated()
    energy = (rest**2).sum()
    total = (weights.weights**2).sum()
    return {
        "plain": ((weights.weights - nearest)[1:] ** 2).sum() / energy,
        "rotated": (back[1:] ** 2).sum() / energy,
        "share": (error**2).sum() / total,
        "bound": rotated.formula(weights, error) / total,
    }


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 5 if quick else 100
    by_bits = []
    for bits in BITS[1:4] if quick else BITS:
        row: dict[str, Any] = {"bits": bits}
        for index, (name, law) in enumerate(LAWS.items()):
            setting = RoundedSetting(1, GROUP, COLUMNS, bits, law=law)
            row[name] = _measured(setting, trials, 10 * bits + index)
        # All but the largest lie half way between two levels; with one bit, all but one are zero.
        first = np.asarray(2.0**bits - 2 if bits > 1 else 1e12)
        setting = RoundedSetting(1, GROUP, 1, bits, law=noise.Rademacher(1.0), first=first)
        row["attained"] = _measured(setting, 2, 10 * bits + 9)["lost"]["mean"]
        by_bits.append(row)
    by_size = []
    for size in SIZES[:3] if quick else SIZES:
        row = {"size": size}
        for bits in (1, 2, 4):
            setting = RoundedSetting(1, size, COLUMNS, bits)
            row[f"bits_{bits}"] = _measured(setting, trials, 100 * size + bits)
        by_size.append(row)
    by_first = []
    for first in LARGE[:2] if quick else LARGE:
        setting = RotatedSetting(GROUP, COLUMNS, first=float(first))
        key = jax.random.fold_in(jax.random.key(SEED), 10**6 + first)
        found = sample(_turned, setting, trials=trials, key=key)
        by_first.append({"first": first} | {name: interval(found[name]) for name in found})
    parameters = {"group": GROUP, "columns": COLUMNS, "trials": trials}
    return {**parameters, "by_bits": by_bits, "by_size": by_size, "by_first": by_first}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right, last) = panels(3, width=4.4, height=4.0)
    rows = numbers["by_bits"]
    bits = column(rows, "bits")
    left.plot(bits, column(rows, "gaussian", "worst"), **LIMIT, label="worst case")
    exactly: dict[str, Any] = {"color": BLACK, "marker": "x", "linestyle": ""}
    left.plot(bits, column(rows, "attained"), **exactly, label="half way between levels")
    for (name, label), style in zip(
        (("outliers", "1 % outliers, × 10"), ("laplace", "Laplace"), ("gaussian", "Gaussian")),
        (SERIES[2], SERIES[1], SERIES[0]),
        strict=True,
    ):
        left.plot(bits, column(rows, name, "lost", "mean"), **style, markersize=5, label=label)
    known = {**SERIES[0], "marker": "", "linestyle": ":", "label": "Gaussian, known largest"}
    several = bits > 1
    left.plot(bits[several], column(rows, "gaussian", "known")[several], **known)
    left.set_yscale("log")
    left.set_xlabel("bits")
    left.set_ylabel("lost share of the energy (no unit)")
    left.set_title(f"groups of {numbers['group']}", fontsize=10)
    left.legend(frameon=False, fontsize=9, loc="lower left")

    rows = numbers["by_size"]
    size = column(rows, "size")
    for bits, style in ((1, SERIES[3]), (2, SERIES[4]), (4, SERIES[0])):
        mean = column(rows, f"bits_{bits}", "lost", "mean")
        label = f"{bits} bit{'s' * (bits > 1)}"
        right.plot(size, mean, **style, markersize=5, label=label)
        worst: dict[str, Any] = {"color": style["color"], "linewidth": 1.0, "linestyle": "-"}
        right.plot(size, column(rows, f"bits_{bits}", "worst"), **worst)
        if bits > 1:
            known = {**worst, "linestyle": ":"}
            right.plot(size, column(rows, f"bits_{bits}", "known"), **known)
    right.plot([], [], color=BLACK, linewidth=1.0, label="worst case")
    right.plot([], [], color=BLACK, linewidth=1.0, linestyle=":", label="known largest")
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_ylim(5e-4, None)
    right.xaxis.set_major_formatter("{x:g}")
    right.set_xlabel("weights in a group")
    right.set_ylabel("lost share of the energy (no unit)")
    right.set_title("Gaussian weights", fontsize=10)
    right.legend(frameon=False, fontsize=9, loc="lower right", ncols=2)

    rows = numbers["by_first"]
    first = column(rows, "first")
    for style, name, label in (
        (SERIES[1], "plain", "others, as they are"),
        (SERIES[0], "rotated", "others, rotated"),
        (SERIES[2], "share", "all, rotated"),
    ):
        last.plot(first, column(rows, name, "mean"), **style, markersize=5, label=label)
    last.plot(first, column(rows, "bound", "mean"), **LIMIT, label="all, rotated: bound")
    last.set_xscale("log", base=2)
    last.set_yscale("log")
    last.xaxis.set_major_formatter("{x:g}")
    last.set_xlabel("size of one weight of each output, over the others")
    last.set_ylabel("lost share of the energy (no unit)")
    last.set_title("4 bits", fontsize=10)
    last.legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
