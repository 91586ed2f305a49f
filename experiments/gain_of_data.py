"""What data gain at random orientation, and what two spectra say of it.

Left: the squared error of truncated weights over that of the best layer, of random layers and in
the limit, with what is certain of each layer: the gain is at least that over the best split of the
rank, and between the two sides that the angles allow. Right: what the best layer loses where the
inputs are of low rank, nearly so, and so but for noise, beside truncated weights, which lose the
same in each; dashed what it loses at most on average.

python experiments/gain_of_data.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.free_product import tail_shares
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.theorems._quantities import singular_values
from lowrank_theory.theorems._splits import tails
from lowrank_theory.theorems.gain_of_data import excess_bounds, expected_gains, split_bounds
from lowrank_theory.theorems.orientation import Orientations, OrientationSetting

SEED = 17
INPUTS, OUTPUTS = 160, 120
RANKS = (1, 2, 4, 8, 14, 20, 25, 29, 30, 35, 40, 50, 60, 70, 80, 90, 100, 110)
DECAY = 0.5  # of the weights; their singular values are powers of the index
INNER_RANK = 30  # of the inputs
LEAST = 1e-6  # that is drawn; what is zero leaves the panel
TIERS = {
    "of low rank": lambda index: (index <= INNER_RANK) * index**-0.25,
    "nearly of low rank": lambda index: index**-0.75,
    "of low rank but for noise": lambda index: np.where(index <= INNER_RANK, index**-0.25, 0.03),
}


def _spectra(tier: str) -> tuple[np.ndarray, np.ndarray]:
    """The singular values of the activations and of the weights."""
    index = np.arange(1.0, INPUTS + 1)
    return TIERS[tier](index), index[:OUTPUTS] ** -DECAY


def _setting(inputs: np.ndarray, values: np.ndarray) -> OrientationSetting:
    """Of these orientations the first is looked at: no rank is asked for."""
    return OrientationSetting(inputs, values, rank=1, count=2)


def _losses(instance: Orientations) -> tuple[Any, Any, Any]:
    """Squared errors of the optimum and of truncated weights at every rank, and of the outputs."""
    weights = instance.bases[0] * instance.values
    outputs = jnp.asarray(instance.input_values)[:, None] * weights
    best, truncated = singular_values(outputs) ** 2, jnp.sum(outputs**2, axis=0)
    return tails(best), tails(truncated), jnp.sum(outputs**2)


def _certain(instance: Orientations) -> tuple[Any, Any, Any]:
    """The best splits at every rank, and both sides of the excess at some."""
    gram = jnp.diag(jnp.asarray(instance.input_values) ** 2)
    weights = instance.bases[0] * instance.values
    return split_bounds(gram, weights), *excess_bounds(gram, weights, RANKS)


def _all(instance: Orientations) -> Any:
    return _losses(instance), _certain(instance)


def _tier(name: str, trials: int, key: Any) -> dict[str, Any]:
    inputs, weights = _spectra(name)
    losses = sample(_losses, _setting(inputs, weights), trials=trials, key=key)
    optimum, agnostic, whole = losses
    energy = np.sum(inputs**2) * np.sum(weights**2) / INPUTS
    gains = np.asarray(expected_gains(inputs, weights))
    isotropic = np.append(np.cumsum(weights[::-1] ** 2)[::-1], 0) / np.sum(weights**2)
    law = tail_shares(inputs**2, np.pad(weights, (0, INPUTS - OUTPUTS)) ** 2, np.array(RANKS))
    shares = optimum / whole[:, None], agnostic / whole[:, None]
    return {
        "points": [
            {
                "rank": rank,
                "optimum": interval(optimum[:, rank] / energy),
                "optimum_share": interval(shares[0][:, rank]),
                "agnostic_share": interval(shares[1][:, rank]),
                "at_most": float(isotropic[rank] / gains[rank]),
                "law": float(share),
                "isotropic": float(isotropic[rank]),
            }
            for rank, share in zip(RANKS, np.asarray(law), strict=True)
        ]
    }


def _gains(trials: int, key: Any) -> dict[str, Any]:
    inputs, weights = _spectra("nearly of low rank")
    found = sample(_all, _setting(inputs, weights), trials=trials, key=key)
    (optimum, agnostic, _), (split, below, above) = found
    index = np.array(RANKS)
    best = optimum[:, index]
    gain, at_least = agnostic[:, index] / best, agnostic[:, index] / split[:, index]
    low, high = 1 + below / best, 1 + above / best
    law = np.asarray(tail_shares(inputs**2, np.pad(weights, (0, INPUTS - OUTPUTS)) ** 2, index))
    isotropic = np.cumsum(weights[::-1] ** 2)[::-1][index] / np.sum(weights**2)
    return {
        "points": [
            {
                "rank": rank,
                "median": float(np.median(gain[:, k])),
                "low": float(np.quantile(gain[:, k], 0.005)),
                "high": float(np.quantile(gain[:, k], 0.995)),
                "law": float(isotropic[k] / law[k]),
                "split": float(np.median(at_least[:, k])),
                "below": float(np.median(low[:, k])),
                "above": float(np.median(high[:, k])),
            }
            for k, rank in enumerate(RANKS)
        ],
        "violations": int(
            np.sum(gain < at_least * (1 - 1e-9))
            + np.sum(gain < low * (1 - 1e-9))
            + np.sum(gain > high * (1 + 1e-9))
        ),
    }


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 10 if quick else 400
    keys = jax.random.split(jax.random.key(SEED), 1 + len(TIERS))
    tiers = {name: _tier(name, trials, key) for name, key in zip(TIERS, keys[1:], strict=True)}
    gains = _gains(trials, keys[0])
    parameters = {"inputs": INPUTS, "outputs": OUTPUTS, "inner_rank": INNER_RANK, "trials": trials}
    return {**parameters, "gain": gains, "tiers": tiers}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=5.0, height=4.2)
    points = numbers["gain"]["points"]
    ranks = column(points, "rank")
    left.plot(ranks, column(points, "law"), **LIMIT, label="limit")
    left.plot(ranks, column(points, "median"), **{**SERIES[0], "linestyle": ""}, label="median")
    left.fill_between(
        ranks,
        column(points, "low"),
        column(points, "high"),
        color=SERIES[0]["color"],
        alpha=0.25,
        linewidth=0,
        label="99 % of random layers",
    )
    for name, label, style in zip(
        ("split", "below", "above"),
        ("over the best split", "lower side of the angles", "upper side of the angles"),
        SERIES[1:],
        strict=False,
    ):
        left.plot(ranks, column(points, name), **style, label=label)
    left.set_ylabel("truncated weights / optimum, squared errors")
    for (name, tier), style in zip(numbers["tiers"].items(), SERIES, strict=False):
        found = tier["points"]
        most = np.maximum(column(found, "at_most"), LEAST / 100)
        shown = np.maximum(column(found, "optimum_share", "mean"), LEAST / 100)
        right.plot(ranks, shown, **{**style, "linestyle": "-"}, label=f"inputs {name}")
        right.plot(ranks, most, color=style["color"], linestyle="--", linewidth=1)
    first = next(iter(numbers["tiers"].values()))["points"]
    right.plot(ranks, column(first, "isotropic"), **LIMIT, label="truncated weights")
    right.plot(
        [], [], color=LIMIT["color"], linestyle="--", linewidth=1, label="on average at most"
    )
    right.set_ylabel("squared error / outputs")
    right.set_ylim(LEAST, 1)
    right.legend(frameon=False, fontsize=8, loc="lower right")
    for panel in (left, right):
        panel.set_yscale("log")
        panel.set_xlabel(f"rank, of {numbers['outputs']}")
    legend_above(figure, left, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
