"""What removed weights cost: by size, in patterns, at random, and with the others refitted.

Left, removed by size, heavy-tailed weights lose least; patterns n of 4 cost Gaussian ones 1.4 to
3.7 times as much, and the best unbiased choice at random of a half 3.7 times as much. Dotted, what
no weights of their 1-norm can exceed. Right, half of the inputs are removed: the more inputs are
correlated, the more refitting the others saves.

python experiments/pruning.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.generators import noise
from lowrank_theory.plotting import BLACK, SERIES, panels
from lowrank_theory.theorems._pruned import (
    CoinSetting,
    PrunedSet,
    Sampled,
    SetSetting,
    Thinned,
    ThinnedSetting,
)
from lowrank_theory.theorems.pruning import gaussian_share, pruning

SEED = 43
INPUTS, OUTPUTS = 64, 32
LAWS = {
    "gaussian": noise.Gaussian(1.0),
    "laplace": noise.Laplace(1.0),
    "outliers": noise.SparseOutliers(1.0, magnitude=10.0),
}
CORRELATED = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
OF = 4


def _by_size(thinned: Thinned) -> Any:
    """Shares of the energy that are lost, and the bound."""
    energy = jnp.sum(thinned.exact() ** 2)
    entries = pruning.entries
    lost = entries.loss(thinned, entries.estimate(thinned)) ** 2
    bound = entries.formula(thinned, jnp.zeros(())) ** 2
    return {"lost": lost / energy, "bound": bound / energy}


def _in_pattern(thinned: Thinned) -> Any:
    pattern = pruning.pattern
    lost = pattern.loss(thinned, pattern.estimate(thinned))
    return {"lost": lost / jnp.sum(thinned.exact() ** 2)}


def _at_random(sampled: Sampled) -> Any:
    """The least variance of a half of the weights, over that of all outputs."""
    costs = sampled.costs()
    least = jnp.sum(costs) ** 2 / (costs.size / 2) - jnp.sum(costs**2)
    return {"lost": least / jnp.sum(costs**2)}


def _refitted(pruned: PrunedSet) -> Any:
    known, bound = pruning.refitted, pruning.as_they_are
    found = known.estimate(pruned)
    return {"share": known.loss(pruned, found) / bound.formula(pruned, found)}


def _measured(trial: Any, setting: Any, trials: int, seed: int) -> dict[str, Any]:
    key = jax.random.fold_in(jax.random.key(SEED), seed)
    found = sample(trial, setting, trials=trials, key=key)
    return {name: interval(values) for name, values in found.items()}


def measure(*, quick: bool) -> dict[str, Any]:
    trials, kept = (3, (2,)) if quick else (30, (1, 2, 3))
    rows = []
    for each in kept:
        row: dict[str, Any] = {"kept": each / OF}
        for place, (name, law) in enumerate(LAWS.items()):
            seed = 10 * each + place
            whole = ThinnedSetting(INPUTS, OUTPUTS, INPUTS * OUTPUTS * each // OF, law=law)
            row[name] = _measured(_by_size, whole, trials, seed)
            grouped = ThinnedSetting(INPUTS, OUTPUTS, each, law=law)
            row[f"{name}_pattern"] = _measured(_in_pattern, grouped, trials, seed)
        with jax.enable_x64(True):
            row["gaussian_pattern_expected"] = float(gaussian_share(each, OF))
        rows.append(row)
    coins = CoinSetting(4 * INPUTS, INPUTS, OUTPUTS)
    random = _measured(_at_random, coins, trials, 100)
    by_correlation = []
    for place, correlated in enumerate(CORRELATED[: 2 if quick else None]):
        setting = SetSetting(4 * INPUTS, INPUTS, OUTPUTS, INPUTS // 2, correlated=correlated)
        found = _measured(_refitted, setting, trials, 200 + place)
        by_correlation.append({"correlated": correlated, **found})
    sizes = {"inputs": INPUTS, "outputs": OUTPUTS, "trials": trials}
    return {**sizes, "by_size": rows, "half_at_random": random, "by_correlation": by_correlation}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.8, height=4.0)
    rows = numbers["by_size"]
    kept = column(rows, "kept")
    for style, name, label in (
        (SERIES[0], "gaussian", "Gaussian"),
        (SERIES[1], "laplace", "Laplace"),
        (SERIES[2], "outliers", "1 % outliers, × 10"),
    ):
        plain: dict[str, Any] = {**style, "markersize": 5}
        left.plot(kept, column(rows, name, "lost", "mean"), **plain, label=label)
        pattern = {**plain, "linestyle": "--"}
        left.plot(kept, column(rows, f"{name}_pattern", "lost", "mean"), **pattern)
        bound = {**plain, "linestyle": ":", "marker": ""}
        left.plot(kept, column(rows, name, "bound", "mean"), **bound)
    random = numbers["half_at_random"]["lost"]["mean"]
    left.plot([0.5], [random], color=BLACK, marker="x", linestyle="", label="Gaussian, at random")
    for line, label in (("--", "n of 4"), (":", "bound by the 1-norm")):
        left.plot([], [], color=BLACK, linestyle=line, label=label)
    left.set_yscale("log")
    left.set_xlabel("share of the weights that stay (no unit)")
    left.set_ylabel("lost share of the energy (no unit)")
    left.legend(frameon=False, fontsize=9)
    rows = numbers["by_correlation"]
    share = column(rows, "share", "mean")
    right.plot(column(rows, "correlated"), share, **SERIES[0], markersize=5)
    right.set_yscale("log")
    right.set_xlabel("correlation of inputs $c$ (no unit)")
    right.set_ylabel("cost, refitted / as they are (no unit)")
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
