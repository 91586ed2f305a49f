"""The style of all figures, and what their panels share."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLACK, GREY = "#000000", "#7f7f7f"
SERIES: tuple[Mapping[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": (0, (1, 1))},
    {"color": "#E69F00", "marker": "v", "linestyle": (0, (5, 1))},
    {"color": "#56B4E9", "marker": "P", "linestyle": (0, (3, 1, 1, 1, 1, 1))},
    {"color": "#4d4d4d", "marker": "X", "linestyle": (0, (4, 2))},
    {"color": "#8c564b", "marker": "*", "linestyle": (0, (1, 2))},
)
"""Colour, marker and line of the first, second, ... series of a panel."""

LIMIT: Mapping[str, Any] = {"color": BLACK, "linestyle": "-", "linewidth": 1.0, "marker": ""}
"""The line of a bound, or of anything else that theory draws rather than data."""

NEGLIGIBLE = 1e-6
COLUMNS = 4
PANELS = 12
_MARKED = 20  # points of a line

Some = TypeVar("Some")


def series(place: int) -> Mapping[str, Any]:
    """The style of the series at this place; beyond the last, colours come again with other markers
    and lines.
    """
    count = len(SERIES)
    other = SERIES[(place + place // count) % count]
    return {**other, "color": SERIES[place % count]["color"]}


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


def line(
    panel: Axes,
    points: Iterable[tuple[Any, Any]],
    label: str | None,
    style: Mapping[str, Any],
    *,
    above: float = -math.inf,
) -> None:
    """A line through the points that exist and lie above a value, some of them marked."""
    drawn = [(x, y) for x, y in points if y is not None and y > above]
    xs, ys = zip(*drawn, strict=True) if drawn else ((), ())
    every = 1 + len(drawn) // _MARKED
    panel.plot(xs, ys, **{"markersize": 4, "markevery": every, **style}, label=label)


def diagonal(panel: Axes) -> None:
    """The line on which bounds are attained, and logarithmic axes."""
    panel.set_xscale("log")
    panel.set_yscale("log")
    low, high = panel.get_xlim()
    panel.plot([low, high], [low, high], **LIMIT, label="attained")


def evenly_spread(found: Sequence[Some], count: int) -> list[Some]:
    """At most so many of them."""
    chosen = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    return [found[index] for index in chosen]


def depths(found: Sequence[Any]) -> list[Any]:
    """From dark to light, a colour for each."""
    return list(mpl.colormaps["viridis"](np.linspace(0, 0.9, len(found))))
