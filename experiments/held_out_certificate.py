"""How wide the certificates of a mean loss are, against the number of held-out units.

How far above the mean loss the certificates are, against the number of held-out units, for four
laws of losses. Above the dotted line a certificate says no more than the range did; the exact limit
exists for losses of 0 or 1 only, and where a line is missing there is no finite certificate. Of
those that know no more than the range, all but betting are the same for every order of the units.

python experiments/held_out_certificate.py [--quick]
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from _save import column, run, sample
from lowrank_theory import Setting
from lowrank_theory.generators import activations, noise, spectra
from lowrank_theory.plotting import GREY, LIMIT, SERIES, legend_above, panels
from lowrank_theory.theorems.held_out_certificate import (
    HeldOut,
    LayerLossLaw,
    LossLaw,
    held_out_certificate,
    stakes,
)

SEED = 19
FAILURE_PROBABILITY = 0.05
UNITS = (10, 30, 100, 300, 1000, 3000)
LAYER = Setting(
    samples=100,
    inputs=24,
    outputs=20,
    rank=3,
    activations=activations.GaussianRows(spectra.PowerLaw(0.5)),
    noise=noise.Gaussian(0.3),
)
SETTINGS = {
    "compressed layer": lambda units: LayerLossLaw(LAYER, units),
    "uniform losses": lambda units: LossLaw(np.linspace(0, 1, 8), np.ones(8), 1.0, units),
    "one loss in a thousand is large": lambda units: LossLaw(
        np.array([0.01, 1.0]), np.array([0.999, 0.001]), 1.0, units
    ),
    "losses of 0 or 1, one in fifty": lambda units: LossLaw(
        np.array([0.0, 1.0]), np.array([0.98, 0.02]), 1.0, units
    ),
}
ORDERS, RANDOM_ORDERS = 30, "betting_in_random_orders"
BINARY = "losses of 0 or 1, one in fifty"
LINES = {
    "hoeffding": "Hoeffding",
    "empirical_bernstein": "empirical Bernstein",
    "betting": "betting",
    "order_free": "a mixture of bets, free of order",
    "moment_ratio": "moment ratio (no range)",
    "clopper_pearson": "exact, for 0 or 1",
}


def _certificates(held_out: HeldOut) -> Any:
    """The mean, the range, every certificate, and that of random orders."""
    values = {
        name: getattr(held_out_certificate, name)
        .bound(held_out, failure_probability=FAILURE_PROBABILITY)
        .value
        for name in LINES
    }
    return held_out.mean, held_out.range_bound, {**values, RANDOM_ORDERS: _random_orders(held_out)}


def _random_orders(held_out: HeldOut) -> Array:
    """For comparison: the final capital of `betting`, averaged over random orders of the units;
    here a few orders for all samples, which of independent losses have the law of random ones.
    """
    largest, goal = jnp.asarray(held_out.range_bound), -math.log(FAILURE_PROBABILITY)
    keys = jax.random.split(jax.random.key(SEED), ORDERS)
    shares = jnp.asarray(held_out.losses) / largest
    shares = jax.vmap(lambda key: jax.random.permutation(key, shares))(keys)
    stake = jax.vmap(lambda order: stakes(order, FAILURE_PROBABILITY))(shares)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        mean = sum(ends) / 2
        capital = jnp.sum(jnp.log1p(stake * (mean - shares) / (1 - mean)), axis=1)
        rich = logsumexp(capital) - math.log(ORDERS) >= goal
        return jnp.where(rich, ends[0], mean), jnp.where(rich, mean, ends[1])

    return largest * jax.lax.fori_loop(0, 30, halve, (jnp.zeros(()), jnp.ones(())))[1]


def _finite(number: Any) -> float | None:
    return float(number) if np.isfinite(number) else None


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 20 if quick else 200
    results = []
    for number, (name, setting) in enumerate(SETTINGS.items()):
        points = []
        for index, units in enumerate(UNITS[:3] if quick else UNITS):
            key = jax.random.fold_in(jax.random.key(SEED), 100 * number + index)
            mean, largest, values = sample(_certificates, setting(units), trials=trials, key=key)
            certificates = {
                line: {
                    "over_mean_median": _finite(np.median(value / mean)),
                    "over_range_median": _finite(np.median(value / largest)),
                    "vacuous": float(np.mean(value >= largest)),
                    "below_the_mean": int(np.sum(value < mean * (1 - 1e-12))),
                }
                for line, value in values.items()
                if line != "clopper_pearson" or name == BINARY
            }
            points.append(
                {
                    "units": units,
                    "range_over_mean": float(np.median(largest / mean)),
                    "certificates": certificates,
                }
            )
        results.append({"losses": name, "points": points})
    return {"failure_probability": FAILURE_PROBABILITY, "trials": trials, "results": results}


def draw(numbers: dict[str, Any]) -> Figure:
    results = numbers["results"]
    figure, axes = panels(len(results), columns=4, width=3.3, height=3.6)
    for panel, result in zip(axes, results, strict=True):
        points = result["points"]
        units = column(points, "units")
        for style, (line, label) in zip(SERIES, LINES.items(), strict=False):
            if line in points[0]["certificates"]:
                ratio = column(points, "certificates", line, "over_mean_median")
                panel.plot(units, ratio, **style, markersize=4, label=label)
        ranges = column(points, "range_over_mean")
        panel.plot(units, ranges, color=GREY, linestyle=":", label="the range: no information")
        panel.plot(units, np.ones_like(units), **LIMIT, label="the mean")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_title(result["losses"], fontsize=10)
        panel.set_xlabel("held-out units")
    axes[0].set_ylabel("certificate / mean loss (median)")
    legend_above(figure, axes[-1], 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
