"""What equalised channels and kept means do for weights that are rounded without data.

Left, two layers of 64 channels whose sizes differ, each on one grid of 4 bits for the whole matrix:
the more channels differ, the more is lost, unless they are equalised; a grid for each output of
either layer helps half way. Dotted, the worst case before and after. Right, behind rectified normal
channels, shifting the outputs by what rounding moves them on average takes away the more, the
further the channels lie above zero; the line is 1 + m₁²/v, where all channels have this mean.

python experiments/equalisation.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.plotting import BLACK, SERIES, panels
from lowrank_theory.quantisation import round_to_nearest
from lowrank_theory.theorems._joined import JoinedLayers, JoinedSetting
from lowrank_theory.theorems._normal_channels import NormalChannels, NormalSetting
from lowrank_theory.theorems.equalisation import equalisation

SEED = 61
SAMPLES, SIZE, BITS = 128, 64, 4
SPREADS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
RATIOS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0)


def _lost(layers: JoinedLayers, rounded: Any) -> Any:
    """The largest error of an output, and the squared one over all outputs."""
    exact = layers.outputs((layers.first, layers.second))
    error = layers.outputs(rounded) - exact
    share = jnp.sum(error**2) / jnp.sum(exact**2)
    return {"largest": jnp.max(jnp.abs(error)) / jnp.max(jnp.abs(exact)), "share": share}


def _joined(layers: JoinedLayers) -> Any:
    """One grid, a grid for each output, and one grid for equalised channels."""
    bounded = equalisation.outputs
    exact = jnp.max(jnp.abs(layers.outputs((layers.first, layers.second))))

    def one_grid(factors: Any) -> Any:
        scaled = JoinedLayers(
            layers.first, layers.second, layers.activations, factors, bits=layers.bits
        )
        rounded = scaled.rounded()
        return {**_lost(scaled, rounded), "bound": bounded.formula(scaled, rounded) / exact}

    columns = [
        round_to_nearest(each, BITS, clipped=False).materialise()
        for each in (layers.first, layers.second)
    ]
    return {
        "one_grid": one_grid(jnp.ones(SIZE)),
        "each_output": _lost(layers, columns),
        "equalised": one_grid(layers.equalising()),
    }


def _shifted(channels: NormalChannels) -> Any:
    """The movement of the outputs without a shift, and with that of the statistics."""
    kept = equalisation.kept_mean
    weights = channels.change
    grid = round_to_nearest(weights, BITS, clipped=False, axis=None)
    change = jnp.asarray(grid.materialise()) - weights
    instance = NormalChannels(
        channels.samples, channels.means, channels.deviations, change, channels.shift
    )
    found = kept.loss(instance, kept.estimate(instance))
    return {"ratio": kept.loss(instance, kept.broken_estimate(instance)) / found}


def _gain(ratio: float) -> float:
    """1 + m₁²/v at a mean of so many deviations."""
    with jax.enable_x64(True):
        one, zeros = np.ones(1), np.zeros((1, 1))
        channels = NormalChannels(zeros, ratio * one, one, zeros, np.zeros(1))
        first, variance = (float(each[0]) for each in channels.moments())
    return 1 + first**2 / variance


def _measured(trial: Any, setting: Any, trials: int, seed: int) -> dict[str, Any]:
    key = jax.random.fold_in(jax.random.key(SEED), seed)
    found = sample(trial, setting, trials=trials, key=key)
    return jax.tree.map(interval, found)


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 3 if quick else 40
    by_spread, by_ratio = [], []
    for place, spread in enumerate(SPREADS[: 2 if quick else None]):
        setting = JoinedSetting(SAMPLES, SIZE, SIZE, SIZE, bits=BITS, spread=spread)
        by_spread.append({"spread": spread, **_measured(_joined, setting, trials, place)})
    for place, ratio in enumerate(RATIOS[: 2 if quick else None]):
        setting = NormalSetting(16 * SAMPLES, SIZE, SIZE, ratio=ratio)
        found = _measured(_shifted, setting, trials, 100 + place)
        by_ratio.append({"ratio": ratio, "of_one_ratio": _gain(ratio), "gain": found["ratio"]})
    sizes = {"samples": SAMPLES, "size": SIZE, "bits": BITS, "trials": trials}
    return {**sizes, "by_spread": by_spread, "by_ratio": by_ratio}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.8, height=4.0)
    rows = numbers["by_spread"]
    spread = column(rows, "spread")
    for style, name, label in (
        (SERIES[0], "one_grid", "as they are"),
        (SERIES[1], "each_output", "as they are, a grid for each output"),
        (SERIES[2], "equalised", "equalised"),
    ):
        plain: dict[str, Any] = {**style, "markersize": 5}
        left.plot(spread, column(rows, name, "largest", "mean"), **plain, label=label)
        if name != "each_output":
            bound = {**plain, "linestyle": ":", "marker": ""}
            left.plot(spread, column(rows, name, "bound", "mean"), **bound)
    left.plot([], [], color=BLACK, linestyle=":", label="worst case")
    left.set_yscale("log")
    left.set_xlabel("spread of the channels, in powers of e (no unit)")
    left.set_ylabel("largest error / largest output (no unit)")
    left.legend(frameon=False, fontsize=9)
    rows = numbers["by_ratio"]
    ratio = column(rows, "ratio")
    right.plot(ratio, column(rows, "of_one_ratio"), color=BLACK, linewidth=1)
    points = {**SERIES[0], "linestyle": "", "markersize": 5}
    right.plot(ratio, column(rows, "gain", "mean"), **points)
    right.set_yscale("log")
    right.set_xlabel("mean of the channels, in deviations (no unit)")
    right.set_ylabel("squared error without a shift / with it (no unit)")
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
