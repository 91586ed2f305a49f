"""Draw reports: every function returns a matplotlib `Figure`, and neither saves nor shows it.

One style throughout: the colours of Okabe and Ito, which colour-blind readers tell apart, each with
a marker and a line of its own, so that a figure can be read in grey. Nothing here touches
matplotlib's global state.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from lowrank_theory.verification import Report, StatementReport

BLACK, GREY = "#000000", "#7f7f7f"
SERIES: tuple[Mapping[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": (0, (1, 1))},
    {"color": "#E69F00", "marker": "v", "linestyle": (0, (5, 1))},
    {"color": "#56B4E9", "marker": "P", "linestyle": (0, (3, 1, 1, 1, 1, 1))},
)
"""Colour, marker and line of the first, second, ... series of a panel."""

LIMIT: Mapping[str, Any] = {"color": BLACK, "linestyle": "-", "linewidth": 1.0, "marker": ""}
"""The line of a bound, or of anything else that theory draws rather than data."""

_NEGLIGIBLE = 1e-6
_COLUMNS = 4
_BINS = 60


def panels(
    count: int, *, columns: int = 3, width: float = 4.2, height: float = 3.4
) -> tuple[Figure, list[Axes]]:
    """An empty figure of `count` panels, each `width` by `height` inches."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    for panel in axes[:count]:
        panel.grid(color="#e5e5e5", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=9)
    return figure, axes[:count]


def legend_above(figure: Figure, panel: Axes, columns: int = 4) -> None:
    """One legend for the whole figure, above its panels."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9
    )


def layer_errors(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The output error of each layer against rank: small multiples, logarithmic axes.

    A row has the keys `network`, `layer`, `rank`, and the relative errors `data_agnostic_error`,
    `data_driven_error`, `optimal_error` and `price_bound`, `None` where one does not apply. What is
    zero up to rounding is not drawn. Raises `ValueError` without rows.
    """
    lines = {
        "data_agnostic_error": ("weights truncated", SERIES[1]),
        "data_driven_error": ("fitted to activations", SERIES[0]),
        "optimal_error": ("optimum", SERIES[2]),
        "price_bound": ("bound for truncated weights", LIMIT),
    }
    figure, groups = _per_layer(rows)
    for panel, group in groups:
        for name, (label, style) in lines.items():
            _line(panel, group, name, label, style, above=_NEGLIGIBLE)
        panel.set_yscale("log")
        panel.set_ylabel("error / norm of the outputs")
    legend_above(figure, groups[0][0])
    return figure


def layer_accuracy(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The accuracy of a network against the rank of one of its layers: small multiples.

    A row has the keys `network`, `layer`, `rank`, and the fractions `accuracy`,
    `accuracy_data_agnostic` and `accuracy_dense`, `None` where one does not apply. Raises
    `ValueError` without rows.
    """
    lines = {
        "accuracy_dense": ("uncompressed", LIMIT),
        "accuracy": ("fitted to activations", SERIES[0]),
        "accuracy_data_agnostic": ("weights truncated", SERIES[1]),
    }
    figure, groups = _per_layer(rows)
    for panel, group in groups:
        for name, (label, style) in lines.items():
            _line(panel, group, name, label, style, scale=100.0)
        panel.set_ylabel("held-out accuracy (%)")
    legend_above(figure, groups[0][0])
    return figure


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
    edges = np.exp(step * indices) * (1 + _NEGLIGIBLE)
    for row, (statement, ratios) in enumerate(zip(statements, shown, strict=True)):
        _distribution(panel, float(-row), statement, ratios, edges)
    panel.axvline(1, **LIMIT, label="violated to the right")
    panel.set_xscale("log")
    panel.set_xlim(edges[0], edges[-1])
    _plain_ticks(panel)
    panel.set_ylim(0.3 - len(statements), 0.95)
    panel.set_yticks([-row for row in range(len(statements))], [s.name for s in statements])
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


def _per_layer(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[Figure, list[tuple[Axes, list[Mapping[str, Any]]]]]:
    if not rows:
        raise ValueError("`rows` is empty. Give at least one row of a layer at a rank.")
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((str(row["network"]), str(row["layer"])), []).append(row)
    figure, axes = panels(len(groups), columns=_COLUMNS, width=3.2, height=2.8)
    for panel, ((network, layer), group) in zip(axes, groups.items(), strict=True):
        group.sort(key=lambda row: row["rank"])
        shape = group[0].get("shape")
        size = f"  ({shape[0]} × {shape[1]})" if shape else ""
        panel.set_title(f"{network}, {layer}{size}", fontsize=10)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("rank")
    return figure, list(zip(axes, groups.values(), strict=True))


def _line(
    panel: Axes,
    group: Iterable[Mapping[str, Any]],
    name: str,
    label: str,
    style: Mapping[str, Any],
    *,
    scale: float = 1.0,
    above: float = -math.inf,
) -> None:
    points = [(row["rank"], scale * row[name]) for row in group if row.get(name) is not None]
    points = [(rank, value) for rank, value in points if value > above]
    ranks, values = zip(*points, strict=True) if points else ((), ())
    panel.plot(ranks, values, **{"markersize": 4, **style}, label=label)


def _plain_ticks(panel: Axes) -> None:
    low, high = panel.get_xlim()
    subs = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
    panel.xaxis.set_major_locator(LogLocator(10, subs=subs))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
