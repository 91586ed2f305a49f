"""How often certificates of compressed networks fail, and how near they come to the mean loss.

Networks whose data are not at hand (see README, Real data) are left out.

python experiments/certificate_coverage.py [--quick]
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy import stats

from _save import CONFIDENCE, run
from lowrank_theory.models.catalogue import CASES
from lowrank_theory.networks import Parameters, compress, output_errors, unit_errors
from lowrank_theory.plotting import GREY, LIMIT, SERIES, legend_above, panels
from lowrank_theory.theorems.held_out_certificate import (
    AbstractBounded,
    HeldOut,
    held_out_certificate,
)

SEED = 23
SHARES = (0.5, 0.25)
HELD_OUT = {"digits": 597, "mnist": 2_000, "resnet20": 1_000}
OUTPUT = "output"
UNITS = (25, 50, 100, 200, 400)
FEW = 50
FAILURE_PROBABILITIES = (0.01, 0.02, 0.05, 0.1, 0.2)
USUAL = 0.05
ROWS = 10
ARTIFICIAL = {
    "one unit in fifty loses everything": np.repeat([0.01, 1.0], [196, 4]),
    "every other unit loses nearly everything": np.repeat([0.1, 0.9], 100),
}

Losses = Float[np.ndarray, "draws units"]
Limit = Callable[[Losses, float], Float[np.ndarray, " draws"]]


def certificates(losses: Losses, failure_probability: float) -> Float[np.ndarray, " draws"]:
    """The bounds of `certify_losses`, of each row."""
    return limits_by(held_out_certificate.order_free, losses, failure_probability)


def limits_by(statement: AbstractBounded, losses: Losses, failure_probability: float) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(_limits(statement.at(failure_probability), losses))


@jax.jit
def _limits(statement: AbstractBounded, losses: Array) -> Array:
    def limit(row: Array) -> Array:
        unknown, stated = jnp.asarray(jnp.nan), jnp.asarray(True)
        held_out = HeldOut(row, jnp.ones(()), jnp.asarray(jnp.inf), stated, unknown)
        return statement.limit(held_out, row)

    return jax.vmap(limit)(losses)


def sorted_certificates(losses: Losses, failure_probability: float) -> np.ndarray:
    """A control: `betting`, in an order that is chosen by the losses."""
    return limits_by(held_out_certificate.betting, np.sort(losses, axis=1), failure_probability)


def normal_limits(losses: Losses, failure_probability: float) -> np.ndarray:
    """A control: the mean and so many standard errors, as if it were normal."""
    errors = losses.std(axis=1, ddof=1) / losses.shape[1] ** 0.5
    return losses.mean(axis=1) + stats.norm.ppf(1 - failure_probability) * errors


def repeated_certificates(losses: Losses, failure_probability: float) -> np.ndarray:
    """A control: ten rows of one unit, here all alike, are taken for ten units."""
    units = losses.shape[1] // ROWS
    return certificates(np.repeat(losses[:, :units], ROWS, axis=1), failure_probability)


LIMITS: dict[str, Limit] = {
    "certificate": certificates,
    "repeated": repeated_certificates,
    "sorted": sorted_certificates,
    "normal": normal_limits,
}


def interval(failures: int, draws: int) -> dict[str, float]:
    """The share of failures, with its exact interval."""
    found = stats.binomtest(failures, draws).proportion_ci(CONFIDENCE, "exact")
    return {"rate": failures / draws, "low": float(found.low), "high": float(found.high)}


def populations(*, quick: bool) -> Iterator[tuple[dict[str, Any], Float[np.ndarray, " units"]]]:
    """Artificial laws of losses; the losses of all held-out units, whole network and each layer."""
    for name, losses in ARTIFICIAL.items():
        yield {"network": None, "layer": name, "share": None}, losses
    for name, units in HELD_OUT.items():
        case = CASES[name]
        if (quick and name != "digits") or case.missing():
            continue
        network = case.load(dataclasses.replace(case.sizes, units=units))
        function, parameters = network.function, network.parameters
        for share in SHARES:
            small = compress(
                function,
                parameters,
                network.calibration,
                Parameters(share),
                select=network.select,
            )
            whole = output_errors(function, parameters, small, network.units)
            layers = unit_errors(function, parameters, small, network.units)
            for layer, losses in {OUTPUT: whole, **layers}.items():
                yield {"network": name, "layer": layer, "share": share}, losses


def studied(
    losses: np.ndarray, units: int, failure_probability: float, draws: int, seed: list[int]
) -> dict[str, Any]:
    """How many certificates, and controls, of units drawn from these are below the mean.

    - with replacement: the mean of the law is then that of all losses, and every hypothesis of the
      certificate is true;
    - `split`: without replacement, against the mean of the units that were not drawn. That differs
      from draw to draw, and is not quite what is promised. `None` where none is left.
    """
    generator = np.random.default_rng(seed)
    drawn = losses[generator.integers(losses.size, size=(draws, units))]
    limits = {name: limit(drawn, failure_probability) for name, limit in LIMITS.items()}
    split = None
    if units < losses.size:
        shuffled = generator.permuted(np.tile(losses, (draws, 1)), axis=1)
        bounds = certificates(shuffled[:, :units], failure_probability)
        split = int(np.sum(bounds < shuffled[:, units:].mean(axis=1)))
    return {
        **{name: int(np.sum(limit < losses.mean())) for name, limit in limits.items()},
        "split": split,
        "bound_median": float(np.median(limits["certificate"])),
        "vacuous": int(np.sum(limits["certificate"] >= 1)),
    }


def transposed(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def measure(*, quick: bool) -> dict[str, Any]:
    draws, counts = (200, UNITS[:2]) if quick else (1_000, UNITS)
    results = []
    for number, (whose, losses) in enumerate(populations(quick=quick)):
        by_units = [studied(losses, units, USUAL, draws, [SEED, number, units]) for units in counts]
        by_probability = [
            studied(losses, FEW, probability, draws, [SEED, number, 0, index])
            for index, probability in enumerate(FAILURE_PROBABILITIES)
        ]
        results.append(
            {
                **whose,
                "held_out": losses.size,
                "mean": float(losses.mean()),
                "largest": float(losses.max()),
                "by_units": transposed(by_units),
                "by_probability": transposed(by_probability),
            }
        )
    return {
        "draws": draws,
        "units": counts,
        "failure_probability": USUAL,
        "few": FEW,
        "failure_probabilities": FAILURE_PROBABILITIES,
        "most_failures": [interval(int(count), draws) for count in most(results, "certificate")],
        "results": results,
    }


def most(results: list[dict[str, Any]], name: str) -> np.ndarray:
    """The failures at each probability, where there are most of them."""
    return np.max([result["by_probability"][name] for result in results], axis=0)


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (failing, width) = panels(2, width=6.2, height=4.4)
    results = numbers["results"]
    real = [result for result in results if result["network"] is not None]
    promised = np.array(numbers["failure_probabilities"])
    lines = {
        "certificate, independent units": most(results, "certificate"),
        "certificate, against the units not drawn": most(real, "split"),
        "control: bets on units sorted by their losses": most(results, "sorted"),
        "control: rows of a unit counted as units": most(results, "repeated"),
        "control: normal interval": most(results, "normal"),
        "normal interval, real networks only": most(real, "normal"),
    }
    for style, (label, failures) in zip(SERIES, lines.items(), strict=False):
        failing.plot(promised, failures / numbers["draws"], **style, markersize=5, label=label)
    failing.plot(promised, promised, **LIMIT, label="what is promised")
    failing.set_xticks(promised[[0, 2, 3, 4]])
    failing.set_xlabel("failure probability δ")
    failing.set_ylabel(f"share of failures, worst case, {numbers['few']} units")

    units = np.array(numbers["units"])
    for result in real:
        if result["layer"] != OUTPUT:
            bounds = result["by_units"]["bound_median"]
            width.plot(units, bounds, color=GREY, linewidth=0.6, zorder=1)
    whole = [result for result in real if result["layer"] == OUTPUT]
    for style, result in zip(SERIES, whole, strict=False):
        label = f"{result['network']}, {result['share']:.0%}:\nmean {result['mean']:.2g}"
        width.plot(units, result["by_units"]["bound_median"], **style, markersize=5, label=label)
    width.plot([], [], color=GREY, linewidth=0.6, label="a layer alone")
    least = 1 - numbers["failure_probability"] ** (1 / units)
    width.plot(units, least, **LIMIT, label="1 − δ^(1/n): where\nnothing is lost")
    width.set_xscale("log")
    width.set_yscale("log")
    width.set_xticks(units, [f"{count}" for count in units])
    width.set_xticks([], minor=True)
    width.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    width.yaxis.set_major_formatter("{x:g}")
    width.yaxis.set_minor_formatter(NullFormatter())
    width.set_xlabel("held-out units")
    width.set_ylabel(f"certificate (median, δ = {numbers['failure_probability']:g})")
    width.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    legend_above(figure, failing, 2)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
