"""What truncated weights lose at each rank, between the limits that two spectra set, for random and
for trained orientations.

Left: two power laws. Random orientations (their mean, and all but the outermost hundredths) stay
far from the limits, which turned layers attain. Right: the three layers of the trained network on
digits, centred inputs, over what chance makes of them. Their outputs (rank 0) are larger than by
chance. What truncation drops of the first two is smaller, of the last one several times larger.

python experiments/orientation.py [--quick]
"""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, run
from lowrank_theory.excitation import Excitation
from lowrank_theory.generators.activations import haar
from lowrank_theory.networks import digits_data, digits_network
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels

SEED = 21
INPUTS, OUTPUTS = 60, 40
INPUT_DECAY, DECAY = 0.7, 0.5
QUARTER = 4  # full rank over this is the rank that the note tells of


def _turned(basis: np.ndarray) -> Excitation:
    """A layer of the two power laws whose left singular vectors are the columns of the basis."""
    inputs = np.arange(1.0, INPUTS + 1) ** -INPUT_DECAY
    return Excitation.of(np.diag(inputs**2), basis * np.arange(1.0, OUTPUTS + 1) ** -DECAY)


def _synthetic(trials: int) -> list[dict[str, Any]]:
    identity, ranks = np.eye(INPUTS), np.arange(OUTPUTS + 1)
    keys = jax.random.split(jax.random.key(SEED), trials)
    with jax.enable_x64(True):
        bases = [np.asarray(haar(INPUTS, OUTPUTS, key=key)) for key in keys]
    drawn = np.array([np.asarray(_turned(basis).loss(ranks)) for basis in bases])
    layer, rows = _turned(bases[0]), []
    scale = float(layer.scale)
    for rank in range(1, OUTPUTS):
        # The dropped directions are the strongest or the weakest of the inputs, in this order.
        order = np.roll(np.arange(INPUTS), rank)
        worst, best = identity[:, order], identity[:, ::-1][:, order]
        one = [rank]
        rows.append(
            {
                "rank": rank,
                "least": float(layer.least(one)[0]) / scale,
                "most": float(layer.most(one)[0]) / scale,
                "attained_least": float(_turned(best[:, :OUTPUTS]).loss(one)[0]) / scale,
                "attained_most": float(_turned(worst[:, :OUTPUTS]).loss(one)[0]) / scale,
                "expected": float(layer.expected(one)[0]) / scale,
                "deviation": float(layer.deviation(one)[0]) / scale,
                "random_mean": float(np.mean(drawn[:, rank])) / scale,
                "random_deviation": float(np.std(drawn[:, rank], ddof=1)) / scale,
                "random_low": float(np.quantile(drawn[:, rank], 0.01)) / scale,
                "random_high": float(np.quantile(drawn[:, rank], 0.99)) / scale,
                "weight_tail": float(_weight_tail(layer, rank)) / scale,
            }
        )
    return rows


def _weight_tail(layer: Excitation, rank: int) -> float:
    largest = np.asarray(layer.input_values)[0]
    return float(largest**2 * np.sum(np.asarray(layer.values)[rank:] ** 2))


def _trained(references: int) -> list[dict[str, Any]]:
    network, layers = digits_network(), []
    seen = network.layer_inputs(digits_data().training_images)
    for index, arrays in enumerate(zip(seen, network.weights, strict=True)):
        rows, weights = (np.asarray(each, float) for each in arrays)
        for centred in (True, False):
            moved = rows - rows.mean(axis=0) if centred else rows
            layer = Excitation.of(moved.T @ moved, weights)
            ranks = np.arange(min(weights.shape))
            key = jax.random.fold_in(jax.random.key(SEED), index)
            p = layer.p_values(ranks, references=references, key=key)
            numbers = {
                name: np.asarray(getattr(layer, name)(ranks)) / float(layer.scale)
                for name in ("loss", "optimum", "least", "most", "expected", "deviation")
            }
            numbers |= {"above": np.asarray(p.above), "below": np.asarray(p.below)}
            numbers["weight_tail"] = np.array([_weight_tail(layer, r) for r in ranks]) / float(
                layer.scale
            )
            layers.append(
                {
                    "layer": f"{weights.shape[0]} × {weights.shape[1]}",
                    "centred": centred,
                    "quarter": min(weights.shape) // QUARTER,
                    "ranks": ranks.tolist(),
                    **{name: values.tolist() for name, values in numbers.items()},
                }
            )
    return layers


def measure(*, quick: bool) -> dict[str, Any]:
    trials, references = (20, 99) if quick else (1_000, 9_999)
    return {
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "input_decay": INPUT_DECAY,
        "decay": DECAY,
        "trials": trials,
        "references": references,
        "rows": _synthetic(trials),
        "digits": _trained(references),
    }


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=5.0, height=4.2)
    rows = numbers["rows"]
    rank = column(rows, "rank")
    left.plot(rank, column(rows, "weight_tail"), **{**LIMIT, "linestyle": ":"}, label="weight tail")
    left.plot(rank, column(rows, "most"), **LIMIT, label="limits for these spectra")
    left.plot(rank, column(rows, "least"), **LIMIT)
    left.plot(rank, column(rows, "expected"), **{**LIMIT, "linestyle": "--"}, label="mean (exact)")
    for name, style in (("attained_most", SERIES[1]), ("attained_least", SERIES[2])):
        label = f"turned to lose {name.removeprefix('attained_')}"
        left.plot(rank, column(rows, name), **{**style, "linestyle": ""}, markevery=3, label=label)
    left.plot(
        rank,
        column(rows, "random_mean"),
        **{**SERIES[0], "linestyle": ""},
        markevery=3,
        label="random orientations",
    )
    low, high = column(rows, "random_low"), column(rows, "random_high")
    left.fill_between(rank, low, high, color=SERIES[0]["color"], alpha=0.3, linewidth=0)
    left.set_ylabel("squared error / mean squared outputs")
    left.set_title("two power laws", fontsize=10)
    centred = [layer for layer in numbers["digits"] if layer["centred"]]
    for layer, style in zip(centred, SERIES[3:], strict=False):
        full = len(layer["ranks"])
        share, chance = np.asarray(layer["ranks"]) / full, np.asarray(layer["expected"])
        plain = {"color": style["color"], "linewidth": 0.8}
        every = max(1, full // 12)
        right.plot(
            share,
            np.asarray(layer["loss"]) / chance,
            **style,
            markevery=every,
            label=f"trained, {layer['layer']}",
        )
        for name in ("least", "most"):
            right.plot(share, np.maximum(layer[name], 1e-9) / chance, **plain)
        spread = 2 * np.asarray(layer["deviation"]) / chance
        low = np.maximum(1 - spread, 1e-3)
        right.fill_between(share, low, 1 + spread, color=style["color"], alpha=0.15, lw=0)
    right.axhline(1, **{**LIMIT, "linestyle": "--"})
    right.set_ylim(0.08, 40)
    right.set_ylabel("squared error / its mean over orientations")
    right.set_title("network on digits; thin: limits, bands: two deviations", fontsize=10)
    left.set_xlabel("rank")
    right.set_xlabel("rank / full rank")
    for panel in (left, right):
        panel.set_yscale("log")
    handles, labels = right.get_legend_handles_labels()
    right.legend(handles, labels, frameon=False, fontsize=9)
    legend_above(figure, left, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
