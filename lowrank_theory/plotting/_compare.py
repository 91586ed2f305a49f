"""Methods compared on one network, in one figure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from lowrank_theory._names import drawable
from lowrank_theory.plotting._style import (
    LIMIT,
    NEGLIGIBLE,
    diagonal,
    evenly_spread,
    legend_above,
    line,
    panels,
    series,
)
from lowrank_theory.studies.compare import FAMILY
from lowrank_theory.studies.compare_rows import (
    LayerAtSize,
    LayerStatistics,
    NetworkAtBudget,
    TimeOfMethod,
)
from lowrank_theory.studies.gaussian_losses import pruned_loss, rounded_loss, truncated_loss
from lowrank_theory.studies.transfer_rows import DenseMetric

_STYLES = {method: series(place) for place, method in enumerate(FAMILY)}
_LAYERS = 2  # of which points are drawn
_BITS = 32  # of a dense weight


def compare(
    *,
    statistics: Sequence[LayerStatistics],
    layers: Sequence[LayerAtSize],
    networks: Sequence[NetworkAtBudget],
    metric: DenseMetric,
    times: Sequence[TimeOfMethod],
) -> Figure:
    """One network in six panels: error of the weights of single layers against bits, beside what
    Gaussian weights lose; errors of their outputs against those of their weights; the metric
    against bits, and against two errors; and bytes and time of each method.

    All are of one `Comparison`. Raises `ValueError` without rows.
    """
    figure, axes = panels(6, width=4.4, height=3.4)
    drawn = set(evenly_spread(list(dict.fromkeys(row.layer for row in layers)), _LAYERS))
    some = [row for row in layers if row.layer in drawn]
    _weight_errors(axes[0], some, statistics[0].shape)
    _both_errors(axes[1], some)
    _against_bits(axes[2], networks, metric)
    _against_error(axes[3], networks, metric, "weight_error", "error of the weights / their norm")
    _against_error(axes[4], networks, metric, "output_error", "error of the outputs / their norm")
    _times(axes[5], times)
    legend_above(figure, axes[2], columns=6)
    return figure


def _weight_errors(panel: Axes, rows: Sequence[LayerAtSize], shape: tuple[int, int]) -> None:
    for method, group in _by_method(rows).items():
        found = [(row.ideal, row.weight_error) for row in group if row.weight_error is not None]
        points = [(ideal, error**2) for ideal, error in found if error**2 > NEGLIGIBLE]
        _points(panel, points, _STYLES[method])
    inputs, outputs = shape
    ranks = np.unique(np.geomspace(1, min(shape) - 1, 40).astype(int))
    per_rank = (inputs + outputs) / (inputs * outputs)
    kept = np.geomspace(0.01, 0.9, 40)
    bits = range(1, 9)
    for name, points in {
        "few bits": [(b / _BITS, rounded_loss(b)) for b in bits],
        "few entries": [(k + 1 / _BITS, pruned_loss(k)) for k in kept],
        "low rank": [(r * per_rank, truncated_loss(inputs, outputs, r)) for r in ranks.tolist()],
    }.items():
        inside = [(share, loss) for share, loss in points if share <= 1 and loss > NEGLIGIBLE]
        panel.plot(*zip(*inside, strict=True), **LIMIT)
        share, loss = inside[len(inside) // 2]
        panel.annotate(name, (share, loss), fontsize=7, xytext=(2, 3), textcoords="offset points")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("bits / dense")
    panel.set_ylabel("squared error of the weights, relative")
    panel.set_title("single layers; lines: Gaussian weights", fontsize=10)


def _both_errors(panel: Axes, rows: Sequence[LayerAtSize]) -> None:
    for method, group in _by_method(rows).items():
        points = [
            (row.weight_error, row.output_error)
            for row in group
            if row.weight_error is not None and min(row.weight_error, row.output_error) > 1e-3
        ]
        _points(panel, points, _STYLES[method])
    diagonal(panel)
    panel.set_xlabel("error of the weights / their norm")
    panel.set_ylabel("error of the outputs / their norm")
    panel.set_title("single layers; line: white inputs", fontsize=10)


def _against_bits(panel: Axes, rows: Sequence[NetworkAtBudget], metric: DenseMetric) -> None:
    for method, group in _by_method(rows).items():
        line(panel, [(row.ideal, row.metric) for row in group], drawable(method), _STYLES[method])
    panel.axhline(metric.value, **LIMIT, label="dense")
    panel.set_xscale("log", base=2)
    panel.set_xlabel("bits / dense")
    panel.set_ylabel(drawable(metric.name))
    panel.set_title("the network", fontsize=10)


def _against_error(
    panel: Axes, rows: Sequence[NetworkAtBudget], metric: DenseMetric, error: str, label: str
) -> None:
    for method, group in _by_method(rows).items():
        points = [(getattr(row, error), row.metric) for row in group]
        _points(panel, [(x, y) for x, y in points if x is not None], _STYLES[method], size=5)
    panel.axhline(metric.value, **LIMIT)
    panel.set_xscale("log")
    panel.set_xlabel(label)
    panel.set_ylabel(drawable(metric.name))
    panel.set_title("the network, every method and budget", fontsize=10)


def _times(panel: Axes, rows: Sequence[TimeOfMethod]) -> None:
    for row in rows:
        largest = row.times[-1]
        _points(panel, [(row.real, 1 / largest.speedup)], _STYLES[row.method], size=6)
    panel.axhline(1.0, **LIMIT)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("bytes / dense")
    panel.set_ylabel("time of a call / dense")
    batch = rows[0].times[-1].batch if rows else 0
    panel.set_title(f"as stored, batches of {batch}", fontsize=10)


def _points(
    panel: Axes, points: Iterable[tuple[Any, Any]], style: Mapping[str, Any], size: int = 3
) -> None:
    found = list(points)
    if found:
        panel.plot(*zip(*found, strict=True), **{**style, "linestyle": ""}, markersize=size)


def _by_method(rows: Sequence[Any]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row.method, []).append(row)
    return groups
