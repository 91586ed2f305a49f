"""What each estimator loses of a component, against its limit, around the detection threshold.

Sampled losses at L = 400 follow their limits but for a narrow range about the detection threshold.
Truncation, which must keep something, pays most just there; shrinkage pays least everywhere, and
for the operator norm its rule of 2017 is not the best one unless β = 1.

python experiments/spiked_limit.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.plotting import GREY, SERIES, legend_above, panels
from lowrank_theory.recovery import shrinkage
from lowrank_theory.theorems.spiked_limit import (
    SpikedMatrix,
    SpikedSetting,
    alignments,
    spiked_limit,
)

SEED = 16
LONGER = 400
ASPECTS = (1.0, 0.5, 0.25)
MULTIPLES = (0.3, 0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.6, 2.0, 2.5, 3.2, 4.0)  # of the threshold
FAR = 2.0  # from here on the sample is compared with the limit
CURVE = np.linspace(0.2, 4.2, 201)
LEADING = 3  # components beyond these are noise, which every rule but truncation drops


class RuleOf2017(shrinkage.AbstractShrinker):
    r"""$\eta = x$ for the operator norm, optimal for square matrices."""

    def shrink(
        self, values: Float[Array, "*count"], aspect: Float[Array, ""]
    ) -> Float[Array, "*count"]:
        return shrinkage.signal_strength(values, aspect)


def _losses(instance: SpikedMatrix) -> dict[str, Any]:
    """Every loss in units of noise scale and longer side, from one decomposition."""
    left, values, right = jnp.linalg.svd(instance.observed, full_matrices=False)
    left, y, right = left[:, :LEADING], values[:LEADING] / instance.unit, right[:LEADING]
    first = jnp.arange(LEADING) == 0

    def error(rule: shrinkage.AbstractShrinker | None) -> Array:
        """The singular values of the estimate minus the signal."""
        kept = (
            jnp.where(first, y, 0) if rule is None else rule.shrink(y, jnp.asarray(instance.aspect))
        )
        signal = [jnp.zeros(side).at[0].set(1.0) for side in instance.sizes]
        tall = jnp.linalg.qr(jnp.column_stack([left * kept, -instance.strengths * signal[0]]), "r")
        wide = jnp.linalg.qr(jnp.column_stack([right.T, signal[1]]), "r")
        return jnp.linalg.svd(tall @ wide.T, compute_uv=False)

    return {
        "truncation": jnp.sum(error(None) ** 2),
        "hard_threshold": jnp.sum(error(shrinkage.HardThreshold()) ** 2),
        "frobenius": jnp.sum(error(shrinkage.Frobenius()) ** 2),
        "nuclear": jnp.sum(error(shrinkage.Nuclear())),
        "operator": error(shrinkage.Operator())[0],
        "operator_2017": error(RuleOf2017())[0],
    }


def _limits(x: np.ndarray, aspect: float) -> dict[str, np.ndarray]:
    """The limits of the same losses for each of the strengths."""
    shape = LONGER, round(LONGER * aspect)
    with jax.enable_x64(True):

        def limits(strength: Array) -> dict[str, Array]:
            instance = SpikedMatrix(jnp.zeros(shape), strength[None], jnp.asarray(1.0))
            powers = {"truncation": 2, "hard_threshold": 2, "frobenius": 2}
            return {
                name: getattr(spiked_limit, name).formula(instance, None)
                / instance.unit ** powers.get(name, 1)
                for name in ("truncation", "hard_threshold", "frobenius", "nuclear", "operator")
            }

        found = jax.tree.map(np.asarray, jax.jit(jax.vmap(limits))(jnp.asarray(x)))
        short, long = map(np.asarray, alignments(x, aspect))
    # The larger singular value of x (1, 0)'(1, 0) - x (c, s)'(c~, s~), of which these are the sum
    # of squares and the product.
    squares, product = 2 * (1 - np.sqrt(short * long)), np.sqrt((1 - short) * (1 - long))
    larger = np.sqrt((squares + np.sqrt(np.maximum(squares**2 - 4 * product**2, 0))) / 2)
    return {**found, "operator_2017": np.where(short > 0, x * larger, x)}


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 4 if quick else 40
    aspects = ASPECTS[-1:] if quick else ASPECTS
    results = []
    for number, aspect in enumerate(aspects):
        strengths = aspect**0.25 * np.array(MULTIPLES)
        limits, curves = _limits(strengths, aspect), _limits(aspect**0.25 * CURVE, aspect)
        points = []
        for index, x in enumerate(strengths):
            setting = SpikedSetting(LONGER, round(LONGER * aspect), np.array([x]), np.asarray(1.0))
            key = jax.random.fold_in(jax.random.key(SEED), 100 * number + index)
            losses = sample(_losses, setting, trials=trials, key=key)
            points.append(
                {
                    "multiple": MULTIPLES[index],
                    "strength": float(x),
                    **{name: interval(values) for name, values in losses.items()},
                    "limits": {name: float(values[index]) for name, values in limits.items()},
                }
            )
        far = [p for p in points if p["multiple"] >= FAR]
        results.append(
            {
                "aspect": aspect,
                "points": points,
                "curve": {"multiple": CURVE.tolist(), **{n: c.tolist() for n, c in curves.items()}},
                "largest_deviation_from_limit": {
                    name: max(abs(p[name]["mean"] / p["limits"][name] - 1) for p in far)
                    for name in limits
                },
            }
        )
    return {"longer": LONGER, "trials": trials, "far": FAR, "results": results}


UPPER = {
    "truncation": "truncation",
    "hard_threshold": "optimal hard threshold",
    "frobenius": "optimal shrinkage",
}
LOWER = {
    "nuclear": "nuclear norm, optimal shrinkage",
    "operator": "operator norm, optimal shrinkage",
    "operator_2017": "operator norm, rule of 2017",
}


def draw(numbers: dict[str, Any]) -> Figure:
    results = numbers["results"]
    figure, axes = panels(2 * len(results), columns=len(results), width=3.7, height=3.1)
    for place, result in enumerate(results):
        for row, names in enumerate((UPPER, LOWER)):
            panel = axes[place + row * len(results)]
            for style, (name, label) in zip(SERIES[3 * row :], names.items(), strict=False):
                points = result["points"]
                mean = column(points, name, "mean")
                bars = [mean - column(points, name, "low"), column(points, name, "high") - mean]
                panel.plot(
                    result["curve"]["multiple"],
                    result["curve"][name],
                    color=style["color"],
                    linestyle=style["linestyle"],
                    linewidth=1.3,
                )
                panel.errorbar(
                    column(points, "multiple"),
                    mean,
                    bars,
                    color=style["color"],
                    marker=style["marker"],
                    markersize=4,
                    linestyle="",
                    capsize=2,
                    label=label if axes.index(panel) == 0 else None,
                )
            panel.axvline(1, color=GREY, linewidth=1, linestyle=":")
            panel.set_ylim(bottom=0)
            panel.set_xlabel("strength x / detection threshold (no unit)")
            panel.set_title(f"β = {result['aspect']:g}", fontsize=10)
        axes[place].set_ylabel("squared loss / σ²L")
        axes[place + len(results)].set_ylabel("norm of the error / σ√L")
    axes[0].plot([], [], color=GREY, linestyle=":", label="detection threshold")
    for style, label in zip(SERIES[3:], LOWER.values(), strict=False):
        axes[0].plot([], [], **style, label=label)
    legend_above(figure, axes[0], 4)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
