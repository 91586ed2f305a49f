"""Error against bytes for every kind of approximation, in one column that a phone shows."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowrank_theory._engine.competition import MIXTURE
from lowrank_theory._names import drawable
from lowrank_theory.plotting._style import BLACK, GREY, SERIES, panels
from lowrank_theory.studies.frontier import FloorPoint, Frontier, FrontierPoint

_NAMED = 4  # kinds with a colour and a label
_TYPE = 13  # points
_APART = 0.1  # of the height of a panel, from label to label
_FLOOR = "floor for\nGaussian weights"

Label = tuple[float, str, str]  # where it would stand, what it says, its colour


def frontier(found: Frontier) -> Figure:
    """What the layers lose beside the floor, the error of the outputs, and the metric, each against
    bytes.

    The mixture is black. In colour are the four kinds that are nearest to the best at each budget;
    the others are grey. Raises `ValueError` without points.
    """
    if not found.points:
        raise ValueError("`found` has no points to draw.")
    metric = found.metric
    figure, axes = panels(2 + (metric is not None), columns=1, width=5.2, height=3.2)
    styles = _styles(found)
    _lines(axes[0], found, styles, lambda point: point.planned, floor=found.floor)
    axes[0].set_ylabel("sum of layers' losses", fontsize=_TYPE)
    _lines(axes[1], found, styles, lambda point: point.output_error)
    axes[1].set_ylabel("error of the outputs", fontsize=_TYPE)
    if metric is not None:
        dense = metric.value
        _lines(axes[2], found, styles, lambda point: point.metric, logarithmic=False, dense=dense)
        axes[2].set_ylabel(drawable(metric.name), fontsize=_TYPE)
    taken = [point.share for point in found.points]
    for panel in axes:
        panel.set_xscale("log")
        shares = sorted({point.budget for point in found.points})
        ticks = [share for share in shares if np.log2(share) % 1 == 0] or shares
        panel.set_xticks(ticks, [f"1/{1 / t:g}" if t < 1 else "1" for t in ticks])
        panel.set_xticks([], minor=True)
        panel.set_xlim(0.85 * min(taken), 1.08 * max(taken))
        panel.tick_params(labelsize=_TYPE)
    axes[-1].set_xlabel("bytes / dense bytes", fontsize=_TYPE)
    return figure


def _styles(found: Frontier) -> dict[str, dict[str, Any]]:
    """Of the mixture, and of the kinds whose errors are nearest to the best alone, in the mean over
    the logarithms at all budgets that a kind meets.
    """
    best: dict[float, float] = {}
    for point in found.points:
        if point.kind != MIXTURE and _drawn(point.output_error, True):
            best[point.budget] = min(best.get(point.budget, np.inf), point.output_error)
    behind = {
        kind: np.mean([np.log(p.output_error / best[p.budget]) for p in points])
        for kind in found.kinds
        if (points := [p for p in found.of(kind) if _drawn(p.output_error, True)])
    }
    named = sorted(behind, key=lambda kind: behind[kind])[:_NAMED]
    styles = {kind: dict(style) for kind, style in zip(named, SERIES, strict=False)}
    return styles | {MIXTURE: {"color": BLACK, "marker": "o", "linestyle": "-", "linewidth": 2.2}}


def _lines(
    panel: Axes,
    found: Frontier,
    styles: dict[str, Any],
    value: Callable[[FrontierPoint], Any],
    *,
    floor: Sequence[FloorPoint] = (),
    logarithmic: bool = True,
    dense: float | None = None,
) -> None:
    labels: list[Label] = []
    shown: list[float] = []
    for kind in (*(k for k in found.kinds if k not in styles), *styles):
        points = [p for p in found.of(kind) if _drawn(value(p), logarithmic)]
        if not points:
            continue
        style = styles.get(kind, {"color": "#c8c8c8", "linestyle": "-", "linewidth": 1})
        xs, ys = [point.share for point in points], [value(point) for point in points]
        panel.plot(xs, ys, **{"markersize": 4.5, **style})
        shown += ys
        if kind in styles:
            labels.append((ys[-1], drawable(kind), style["color"]))
    low, high = _limits([*shown, *([] if dense is None else [dense])], logarithmic)
    if logarithmic:
        panel.set_yscale("log")
    panel.set_ylim(low, high)
    others = len(found.kinds) + 1 - len(styles)
    if others:
        text = f"grey: {others} other kind{'s' * (others > 1)}"
        panel.set_title(text, fontsize=_TYPE - 2, color=GREY, loc="right")
    least = min(point.share for point in found.points)
    drawn = [(p.share, p.loss) for p in floor if p.share > 0.85 * least]
    below = [(share, loss) for share, loss in drawn if low < loss < high]
    if below:
        panel.plot(*zip(*below, strict=True), color=GREY, linestyle=":", linewidth=2)
        corner = {"transform": panel.transAxes, "ha": "left", "va": "bottom"}  # nothing is below it
        panel.text(0.03, 0.04, _FLOOR, color=GREY, fontsize=_TYPE - 2, **corner)
    if dense is not None:
        panel.axhline(dense, color=GREY, linestyle=":", linewidth=2)
        labels.append((dense, "dense", GREY))
    _label(panel, labels, logarithmic)


def _drawn(value: float | None, logarithmic: bool) -> bool:
    return value is not None and np.isfinite(value) and (value > 0 or not logarithmic)


def _limits(shown: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    low, high = min(shown), max(shown)
    if logarithmic:
        return low / 2, high * 1.5
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def _label(panel: Axes, labels: Iterable[Label], logarithmic: bool) -> None:
    """Each line named at its right end, labels pushed apart."""
    low, high = panel.get_ylim()
    scale = np.log if logarithmic else float
    places = sorted(
        (float((scale(y) - scale(low)) / (scale(high) - scale(low))), text, color)
        for y, text, color in labels
    )
    heights = [place for place, _, _ in places]
    for k in range(1, len(heights)):
        heights[k] = max(heights[k], heights[k - 1] + _APART)
    excess = max(0.0, heights[-1] - 1.0) if heights else 0.0
    for height, (_, text, color) in zip(heights, places, strict=True):
        panel.annotate(
            text,
            (1.02, height - excess),
            xycoords="axes fraction",
            color=color,
            fontsize=_TYPE - 1,
            va="center",
            annotation_clip=False,
        )
