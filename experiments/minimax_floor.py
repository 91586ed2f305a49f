"""The mean error of estimators over the least favourable prior, and the floor beneath them all.

The mean error of estimators over the prior that proves the floor, against its strength (left) and
its spread (right). The posterior mean lies on the floor of the prior where the strength is large,
and that floor rises to the one of the worst case.

python experiments/minimax_floor.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory._numerics import matmul
from lowrank_theory.plotting import BLACK, GREY, SERIES, legend_above, panels
from lowrank_theory.theorems import minimax_floor
from lowrank_theory.theorems._quantities import column_space
from lowrank_theory.theorems.minimax_floor import (
    LeastFavourable,
    PriorDraw,
    bayes_floor,
    risk_floor,
)

SEED = 15
SAMPLES, INPUTS, OUTPUTS, RANK = 60, 24, 20, 3
SPREAD = 10.0
STRENGTHS = (30.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 3000.0)
STRONG = 1e4
SPREADS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


def _posterior_mean(drawn: PriorDraw) -> Any:
    """Squared error of the posterior mean for infinite strength: in the tangent space of the centre
    the outputs are shrunk towards it, and the rest is dropped.
    """
    problem, strength = drawn.problem, drawn.strength
    basis = column_space(problem.truth.layer_inputs).basis
    seen, clean = (
        matmul(basis.T, part)
        for part in (problem.observed.target_outputs, problem.truth.clean_outputs)
    )
    near = jnp.arange(seen.shape[0]) < RANK
    tangent = near[:, None] | (jnp.arange(OUTPUTS) < RANK)
    centre = jnp.zeros_like(seen).at[jnp.arange(RANK), jnp.arange(RANK)].set(strength)
    share = drawn.spread**2 / (drawn.spread**2 + problem.truth.noise_scale**2)
    estimate = centre + jnp.where(tangent, share * (seen - centre), 0)
    return jnp.sum((estimate - clean) ** 2)


def _errors(drawn: PriorDraw) -> Any:
    """Squared errors of all estimators."""
    errors = {
        name.split(".")[1]: statement.loss(drawn, statement.estimate(drawn))
        for name, statement in minimax_floor.statements.items()
    }
    return errors | {"posterior_mean": _posterior_mean(drawn)}


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 20 if quick else 200
    unit = risk_floor(RANK, INPUTS, OUTPUTS, 1.0)
    rows = []
    settings = [(strength, SPREAD) for strength in STRENGTHS]
    settings += [(STRONG, spread) for spread in SPREADS]
    for index, (strength, spread) in enumerate(settings):
        setting = LeastFavourable(SAMPLES, INPUTS, OUTPUTS, RANK, strength, spread, 1.0)
        key = jax.random.fold_in(jax.random.key(SEED), index)
        errors = sample(_errors, setting, trials=trials, key=key)
        floor = bayes_floor(RANK, INPUTS, OUTPUTS, 1.0, strength, spread)
        row = {"strength": strength, "spread": spread, "floor": floor / unit}
        rows.append(row | {name: interval(error / unit) for name, error in errors.items()})
    parameters = {"samples": SAMPLES, "inputs": INPUTS, "outputs": OUTPUTS, "rank": RANK}
    parameters |= {"spread": SPREAD, "strength": STRONG, "trials": trials}
    count = len(STRENGTHS)
    return {**parameters, "by_strength": rows[:count], "by_spread": rows[count:]}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.6, height=4.0)
    names = {
        "soft_threshold": "soft threshold",
        "truncation": "truncation",
        "shrinkage": "optimal shrinkage",
        "posterior_mean": "posterior mean for t = ∞",
    }
    for panel, rows, over in (
        (left, numbers["by_strength"], "strength"),
        (right, numbers["by_spread"], "spread"),
    ):
        place = column(rows, over)
        for style, (name, label) in zip(SERIES, names.items(), strict=False):
            mean = column(rows, name, "mean")
            errors = [mean - column(rows, name, "low"), column(rows, name, "high") - mean]
            panel.errorbar(place, mean, errors, **style, capsize=2, label=label)
        panel.plot(
            place, column(rows, "floor"), color=BLACK, linewidth=2, label="floor, this prior"
        )
        panel.axhline(1, color=GREY, linewidth=1, linestyle=":", label="floor, worst case")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_ylabel(r"mean squared error / $\sigma^2 r(q+K-r)$")
    left.set_xlabel("strength t of the centre / noise σ (no unit)")
    left.set_title(f"spread {numbers['spread']:g} σ", fontsize=10)
    right.set_xlabel("spread ρ of the prior / noise σ (no unit)")
    right.set_title(f"strength {numbers['strength']:g} σ", fontsize=10)
    legend_above(figure, left, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
