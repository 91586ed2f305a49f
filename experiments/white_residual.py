"""What a low-rank correction captures of white and of quantisation residuals.

Left, residuals with iid entries follow the limit at every rank, and those of rounding Gaussian
weights nearly; only residuals far from white give more. Right, at fixed rank the share falls with
the width of the layer, at less than twice the share of parameters added.

python experiments/white_residual.py [--quick]
"""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import column, run, sample
from lowrank_theory.generators import noise
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.theorems.white_residual import (
    Residual,
    ResidualSetting,
    edge_share,
    share_limit,
    white_residual,
)

SEED = 14
ROWS, COLUMNS = 160, 96
RANKS = (1, 2, 4, 8, 16, 32, 48, 64, 80, 96)
LAWS = {
    "gaussian": noise.Gaussian(1.0),
    "rademacher": noise.Rademacher(1.0),
    "quantised": noise.QuantiserResidual(3),
    "unequal": noise.Heteroskedastic(1.0),
}
SIZES = (64, 256, 1024, 4096, 16384)
FIXED_RANK = 64


def _shares(residual: Residual) -> Any:
    """The share that each rank captures."""
    statement = white_residual.any_residual
    squares = statement.estimate(residual).values ** 2
    return squares.cumsum() / squares.sum()


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 5 if quick else 50
    shares = {}
    for index, (name, law) in enumerate(LAWS.items()):
        setting = ResidualSetting(ROWS, COLUMNS, 1, law)
        key = jax.random.fold_in(jax.random.key(SEED), index)
        shares[name] = np.mean(sample(_shares, setting, trials=trials, key=key), axis=0)
    by_rank = [
        {
            "rank": rank,
            **{name: float(share[rank - 1]) for name, share in shares.items()},
            "limit": share_limit(ROWS, COLUMNS, rank),
            "edge": edge_share(ROWS, COLUMNS, rank),
        }
        for rank in RANKS
    ]
    by_size = [
        {
            "size": size,
            "limit": share_limit(size, size, FIXED_RANK),
            "edge": edge_share(size, size, FIXED_RANK),
            "parameters": FIXED_RANK * 2 / size,
        }
        for size in SIZES
    ]
    parameters = {"rows": ROWS, "columns": COLUMNS, "trials": trials, "fixed_rank": FIXED_RANK}
    return {**parameters, "by_rank": by_rank, "by_size": by_size}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.8, height=4.0)
    rows = numbers["by_rank"]
    rank = column(rows, "rank")
    for name, label, style in (
        ("unequal", "rows of unequal scale", SERIES[3]),
        ("quantised", "3-bit rounding of Gaussian weights", SERIES[1]),
        ("rademacher", "random signs", SERIES[2]),
        ("gaussian", "Gaussian", SERIES[0]),
    ):
        left.plot(rank, 100 * column(rows, name), **{**style, "linestyle": ""}, label=label)
    left.plot(rank, 100 * column(rows, "limit"), **LIMIT, label="limit of white residuals")
    below = column(rows, "edge") <= 1.0
    dashed = {**LIMIT, "linestyle": "--"}
    left.plot(rank[below], 100 * column(rows, "edge")[below], **dashed, label="r (1/√L + 1/√S)²")
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    left.xaxis.set_major_formatter("{x:g}")
    left.yaxis.set_major_formatter("{x:g}")
    left.set_xlabel("rank of the correction")
    left.set_ylabel("captured share of the energy (%)")
    left.set_title(f"{numbers['rows']} × {numbers['columns']}", fontsize=10)

    rows = numbers["by_size"]
    size = column(rows, "size")
    right.plot(size, 100 * column(rows, "limit"), **LIMIT)
    below = column(rows, "edge") <= 1.0
    right.plot(size[below], 100 * column(rows, "edge")[below], **dashed)
    style = SERIES[5]
    right.plot(size, 100 * column(rows, "parameters"), **style)
    left.plot([], [], **style, label="share of parameters added")
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(size)
    right.xaxis.set_major_formatter("{x:g}")
    right.yaxis.set_major_formatter("{x:g}")
    right.set_xlabel("width of a square layer")
    right.set_ylabel("share (%)")
    right.set_title(f"rank {numbers['fixed_rank']}", fontsize=10)
    legend_above(figure, left, 3)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
