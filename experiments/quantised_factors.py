"""What rounding the factors of a layer costs, and how much balancing them saves.

Left, factors rounded to steps that differ: measured means lie on the formula, and the balanced
factors of the same layer cost what no others undercut. Right, bits against rank at equal bytes: the
slower singular values decay, the more directions of few bits are best.

python experiments/quantised_factors.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.approximations import LowRank
from lowrank_theory.mixtures._low_rank_parts import rounded_factors
from lowrank_theory.plotting import BLACK, LIMIT, SERIES, panels
from lowrank_theory.theorems.quantised_factors import (
    FactoredLayer,
    FactoredSetting,
    quantised_factors,
)

SEED = 53
SHAPE = (128, 64, 64, 8)
RATIOS = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
SIZE, DECAYS = 96, (0.5, 1.0)
BITS = (2, 3, 4, 5, 6, 8)
NUMBERS = 8 * 24  # bits of each input and each output in the factors


def _costs(layer: FactoredLayer) -> Any:
    """Over the least cost."""
    cost = quantised_factors.cost
    found = cost.estimate(layer)
    least = layer.least()
    formula = cost.formula(layer, found)
    return {"realised": cost.loss(layer, found) / least, "expected": formula / least}


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 3 if quick else 50
    by_ratio = []
    for place, ratio in enumerate(RATIOS[:2] if quick else RATIOS):
        # The steps of one factor in units of its entries, against that of the other.
        setting = FactoredSetting(*SHAPE, first=8 * ratio**0.5, second=8 / ratio**0.5)
        key = jax.random.fold_in(jax.random.key(SEED), place)
        found = sample(_costs, setting, trials=trials, key=key)
        by_ratio.append({"ratio": ratio} | {n: interval(v) for n, v in found.items()})
    by_bits = []
    for bits in BITS[:2] if quick else BITS:
        row: dict[str, Any] = {"bits": bits, "rank": NUMBERS // bits}
        for decay in DECAYS:
            row[f"decay_{decay:g}"] = interval(_at_bits(bits, decay, seeds=2 if quick else 5))
        by_bits.append(row)
    return {"shape": SHAPE, "trials": trials, "by_ratio": by_ratio, "by_bits": by_bits}


def _at_bits(bits: int, decay: float, seeds: int) -> np.ndarray:
    """The share of the weights that factors of so many bits lose, as many as there are bytes for;
    singular values decay.
    """
    found = []
    for seed in range(seeds):
        random = np.random.default_rng([SEED, bits, seed])
        left, right = (np.linalg.qr(random.standard_normal((SIZE, SIZE)))[0] for _ in range(2))
        values = np.arange(1.0, SIZE + 1) ** -decay
        weights, rank = left * values @ right, min(NUMBERS // bits, SIZE)
        factors = LowRank(jnp.asarray(left[:, :rank] * values[:rank]), jnp.asarray(right[:rank]))
        made = rounded_factors(factors, weights, None, bits, np.float32).materialise()
        found.append(np.sum((weights - np.asarray(made, float)) ** 2) / np.sum(weights**2))
    return np.array(found)


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.8, height=4.0)
    rows = numbers["by_ratio"]
    ratio = column(rows, "ratio")
    left.plot(ratio, column(rows, "expected", "mean"), **SERIES[0], label="formula")
    realised: dict[str, Any] = {"color": BLACK, "marker": "x", "linestyle": ""}
    left.plot(ratio, column(rows, "realised", "mean"), **realised, label="measured")
    left.axhline(1, **LIMIT, label="balanced factors")
    left.set_xscale("log", base=2)
    left.set_yscale("log", base=2)
    left.xaxis.set_major_formatter("{x:g}")
    left.yaxis.set_major_formatter("{x:g}")
    left.set_xlabel("step of the second factor, over that of the first (no unit)")
    left.set_ylabel("cost / least cost (no unit)")
    left.legend(frameon=False, fontsize=9)
    rows = numbers["by_bits"]
    for style, decay in zip(SERIES, DECAYS, strict=False):
        mean = column(rows, f"decay_{decay:g}", "mean")
        label = f"singular values $i^{{-{decay:g}}}$"
        right.plot(column(rows, "bits"), mean, **style, markersize=5, label=label)
    right.set_yscale("log")
    right.set_xlabel("bits of a number of a factor, at equal bytes")
    right.set_ylabel("lost share of the weights (no unit)")
    right.legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
