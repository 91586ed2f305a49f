"""The errors of single layers, and what bounds them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lowrank_theory._names import drawable, short
from lowrank_theory.plotting._style import (
    COLUMNS,
    LIMIT,
    NEGLIGIBLE,
    PANELS,
    SERIES,
    evenly_spread,
    legend_above,
    line,
    panels,
)
from lowrank_theory.studies.layer_rows import LayerAtRank, LayerData, at_half_rank

_MANY = 60  # points, which take less room as a picture

Value = Callable[[LayerAtRank], float | None]


class Curve(NamedTuple):
    """One number of each row, and how it is drawn."""

    value: Value
    label: str
    style: Mapping[str, Any]


class BoundedError(NamedTuple):
    """An error and its bound."""

    error: Value
    bound: Value
    label: str


ERRORS = (
    Curve(lambda row: row.data_agnostic_error, "weights truncated", SERIES[1]),
    Curve(lambda row: row.diagonal_error, "inputs scaled, truncated", SERIES[3]),
    Curve(lambda row: row.data_driven_error, "fitted to activations", SERIES[0]),
    Curve(lambda row: row.optimal_error, "optimum", SERIES[2]),
)
BOUNDS = (
    BoundedError(
        lambda row: row.data_agnostic_error, lambda row: row.price_bound, "price of ignoring data"
    ),
    BoundedError(
        lambda row: row.recovery_error,
        lambda row: row.projected_bound,
        "recovery from the other half",
    ),
)


def layer_errors(rows: Sequence[LayerAtRank]) -> Figure:
    """The output error of each layer against rank: small multiples, logarithmic axes. Of more than
    twelve layers eleven are drawn, evenly spread, and one panel has all of them at half rank.

    Rows are those of `LayerStudy`, of one network or several. What is zero up to rounding is not
    drawn. Raises `ValueError` without rows.
    """
    curves = (*ERRORS, Curve(lambda row: row.price_bound, "bound for truncated weights", LIMIT))
    groups = _by_layer(rows)
    many = len(groups) > PANELS
    drawn = evenly_spread(list(groups), PANELS - many)
    figure, axes = panels(len(drawn) + many, columns=COLUMNS, width=3.2, height=2.8)
    for panel, layer in zip(axes, drawn, strict=False):
        group = sorted(groups[layer], key=lambda row: row.rank)
        for curve in curves:
            points = [(row.rank, curve.value(row)) for row in group]
            line(panel, points, curve.label, curve.style, above=NEGLIGIBLE)
        inputs, outputs = group[0].shape
        panel.set_title(f"{title(*layer)}\n{inputs} × {outputs}", fontsize=9)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("rank")
    if many:
        errors_in_order(axes[-1], rows, curves)
        axes[-1].set_title(f"all {len(groups)} layers", fontsize=9)
    for panel in axes:
        panel.set_yscale("log")
        panel.set_ylabel("error / norm of the outputs")
    legend_above(figure, axes[0], len(curves))
    return figure


def calibration_sizes(rows: Sequence[LayerAtRank], layers: Sequence[LayerData]) -> Figure:
    """How many rows each layer of a network was calibrated on, at half rank beside how many it
    takes.

    Rows and layers are those of one `LayerStudy`. Raises `ValueError` without any.
    """
    halves = at_half_rank(some(rows))
    figure, (panel,) = panels(1, width=7.5)
    for points, label, style in (
        ([row.samples for row in halves], "rows", LIMIT),
        ([each.effective_samples for each in layers], "as independent Gaussian", SERIES[1]),
        ([row.samples_needed for row in halves], "for 1 % excess, to first order", SERIES[0]),
        ([row.samples_sufficient for row in halves], "with probability 0.95", SERIES[2]),
    ):
        line(panel, enumerate(points, start=1), label, style)
    panel.set_yscale("log")
    panel.set_xlabel("layer")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylabel("calibration rows")
    legend_above(figure, panel, 2)
    return figure


def some(rows: Sequence[LayerAtRank]) -> Sequence[LayerAtRank]:
    """The rows, or a `ValueError` where there are none."""
    if not rows:
        raise ValueError("`rows` is empty. Give at least one row of a layer at a rank.")
    return rows


def title(network: str, layer: str) -> str:
    """The name of a layer above its panel."""
    return drawable(f"{network}, {short(layer)}")


def errors_in_order(panel: Axes, rows: Sequence[LayerAtRank], curves: Sequence[Curve]) -> None:
    """The errors of all layers at half rank, in the order of the rows."""
    halves = at_half_rank(rows)
    for curve in curves:
        points = enumerate(map(curve.value, halves), start=1)
        line(panel, points, curve.label, {**curve.style, "markersize": 3}, above=NEGLIGIBLE)
    panel.set_xlabel("layer, at half of full rank")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def scatter(
    panel: Axes,
    rows: Sequence[LayerAtRank],
    bounded: BoundedError,
    label: str,
    style: Mapping[str, Any],
) -> None:
    """A point for each row."""
    pairs = [(bounded.error(row), bounded.bound(row)) for row in rows]
    drawn = [(x, y) for x, y in pairs if x is not None and x > NEGLIGIBLE]
    xs, ys = zip(*drawn, strict=True) if drawn else ((), ())
    kind = {**style, "linestyle": "", "markersize": 3, "rasterized": len(drawn) > _MANY}
    panel.plot(xs, ys, **kind, alpha=0.6, label=label)


def _by_layer(rows: Sequence[LayerAtRank]) -> dict[tuple[str, str], list[LayerAtRank]]:
    """Rows by network and layer."""
    groups: dict[tuple[str, str], list[LayerAtRank]] = {}
    for row in some(rows):
        groups.setdefault((row.network, row.layer), []).append(row)
    return groups
