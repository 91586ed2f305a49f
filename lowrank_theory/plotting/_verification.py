"""What a verification found."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from lowrank_theory._names import drawable
from lowrank_theory.plotting._style import GREY, LIMIT, NEGLIGIBLE, SERIES, legend_above, panels
from lowrank_theory.verification import Report, StatementReport

_BINS = 60


def tightness(report: Report) -> Figure:
    """How near the realised quantities come to their bounds: one row per statement.

    Each row shows the distribution of realised / bound (inverted for lower bounds) over all
    applicable trials on a logarithmic axis; right of the line at 1 the bound is violated. The
    triangle marks the critical constant, the factor below which the same data would refute the
    statement. Raises `ValueError` without statements.
    """
    statements = report.statements
    if not statements:
        raise ValueError("`report` has no statements. Give the report of a theorem.")
    figure, (panel,) = panels(1, width=7.5, height=0.9 + 0.5 * len(statements))
    shown = [_positive(statement) for statement in statements]
    everything = np.concatenate([*shown, [0.5, 1.0]])
    low, high = max(np.min(everything), 1e-4) / 1.3, np.max(everything) * 1.3
    step = math.log(high / low) / _BINS
    indices = np.arange(math.floor(math.log(low) / step), math.ceil(math.log(high) / step) + 1)
    # No bin lies on both sides of 1, where rounding puts what attains its bound.
    edges = np.exp(step * indices) * (1 + NEGLIGIBLE)
    for row, (statement, ratios) in enumerate(zip(statements, shown, strict=True)):
        _distribution(panel, float(-row), statement, ratios, edges)
    panel.axvline(1, **LIMIT, label="violated to the right")
    panel.set_xscale("log")
    panel.set_xlim(edges[0], edges[-1])
    _plain_ticks(panel)
    panel.set_ylim(0.3 - len(statements), 0.95)
    panel.set_yticks(
        [-row for row in range(len(statements))], [drawable(s.name) for s in statements]
    )
    panel.set_xlabel("realised / bound (inverted for lower bounds; no unit)")
    legend_above(figure, panel, 3)
    return figure


def _positive(statement: StatementReport) -> np.ndarray:
    ratios = statement.ratios if statement.regimes else np.zeros(0)
    return ratios[np.isfinite(ratios) & (ratios > 0)]


def _distribution(
    panel: Axes, base: float, statement: StatementReport, ratios: np.ndarray, edges: np.ndarray
) -> None:
    first = base == 0
    if ratios.size:
        counts, _ = np.histogram(np.clip(ratios, edges[0], edges[-1]), edges)
        heights = 0.8 * counts / counts.max()
        color = SERIES[0]["color"]
        panel.stairs(base + heights, edges, baseline=base, fill=True, color=color, alpha=0.3)
        panel.stairs(
            base + heights, edges, baseline=base, color=color, label="trials" if first else None
        )
    else:
        panel.text(edges[0] * 1.1, base + 0.1, "no applicable trial", color=GREY, fontsize=9)
    if math.isfinite(statement.critical_constant) and statement.critical_constant > 0:
        panel.plot(
            statement.critical_constant,
            base,
            linestyle="",
            marker="^",
            markersize=8,
            color=SERIES[1]["color"],
            clip_on=False,
            zorder=3,
            label="critical constant" if first else None,
        )


def _plain_ticks(panel: Axes) -> None:
    low, high = panel.get_xlim()
    subs = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
    panel.xaxis.set_major_locator(LogLocator(10, subs=subs))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
