"""Draw reports: every function returns a matplotlib `Figure`, and neither saves nor shows it.

One style throughout: the colours of Okabe and Ito, which colour-blind readers tell apart, each with
a marker and a line of its own, so that a figure can be read in grey. Nothing here touches
matplotlib's global state.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lowrank_theory._names import drawable, short
from lowrank_theory.studies.layer_study import half_rank
from lowrank_theory.studies.ways import WAYS
from lowrank_theory.verification import Report, StatementReport

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

Row = Mapping[str, Any]

_NEGLIGIBLE = 1e-6
_COLUMNS = 4
_PANELS = 12
_BINS = 60
_MANY = 60  # points, which take less room as a picture
_MARKED = 20  # points of a line


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


def layer_errors(rows: Sequence[Row]) -> Figure:
    """The output error of each layer against rank: small multiples, logarithmic axes. Of more than
    twelve layers eleven are drawn, evenly spread, and one panel has all of them at half rank.

    Rows are those of `LayerStudy`, of one network or several. What is zero up to rounding is not
    drawn. Raises `ValueError` without rows.
    """
    lines = {**_ERRORS, "price_bound": ("bound for truncated weights", LIMIT)}
    groups = _by_layer(rows)
    many = len(groups) > _PANELS
    drawn = _some(list(groups), _PANELS - many)
    figure, axes = panels(len(drawn) + many, columns=_COLUMNS, width=3.2, height=2.8)
    for panel, layer in zip(axes, drawn, strict=False):
        group = sorted(groups[layer], key=lambda row: row["rank"])
        for name, (label, style) in lines.items():
            points = [(row["rank"], row.get(name)) for row in group]
            _line(panel, points, label, style, above=_NEGLIGIBLE)
        inputs, outputs = group[0]["shape"]
        panel.set_title(f"{_title(layer)}\n{inputs} × {outputs}", fontsize=9)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("rank")
    if many:
        _errors_in_order(axes[-1], rows, lines)
        axes[-1].set_title(f"all {len(groups)} layers", fontsize=9)
    for panel in axes:
        panel.set_yscale("log")
        panel.set_ylabel("error / norm of the outputs")
    legend_above(figure, axes[0], len(lines))
    return figure


def layer_spectra(layers: Sequence[Row]) -> Figure:
    """How the energy of activations and of pre-activations is spread over directions: a line for
    each layer, from the first (dark) to the last (light).

    `layers` are those of a `LayerStudy`. Raises `ValueError` without any.
    """
    if not layers:
        raise ValueError("`layers` is empty. Give at least one.")
    figure, axes = panels(2)
    names = {"activations": "activations", "preactivations": "pre-activations"}
    colors = _depths(layers)
    for panel, (name, label) in zip(axes, names.items(), strict=True):
        for layer, color in zip(layers, colors, strict=True):
            points = zip(layer[name]["index"], layer[name]["share"], strict=True)
            style = {"color": color, "marker": "", "linewidth": 1.0}
            _line(panel, points, None, style, above=_NEGLIGIBLE**2)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(label, fontsize=10)
        panel.set_xlabel("number of the eigenvalue")
        panel.set_ylabel("eigenvalue / sum")
    return figure


def residual_spectra(layers: Sequence[Row]) -> Figure:
    """What one half of the calibration leaves of the other's fit, beside white noise: singular
    values of up to twelve layers, evenly spread, and the law of Marchenko and Pastur.

    `layers` are those of a `LayerStudy`. Raises `ValueError` where none has a residual.
    """
    found = [layer for layer in layers if layer["residual"] is not None]
    drawn = _some(found, _PANELS)
    if not drawn:
        raise ValueError("`layers` has no residual. Give at least one layer that has.")
    figure, axes = panels(len(drawn), columns=_COLUMNS, width=3.2, height=2.8)
    for panel, layer in zip(axes, drawn, strict=True):
        residual = layer["residual"]
        for name, label, style in (
            ("singular_value", "residual at half rank", {**SERIES[0], "markersize": 3}),
            ("marchenko_pastur", "white noise", LIMIT),
        ):
            points = zip(residual["position"], residual[name], strict=True)
            _line(panel, points, label, style, above=_NEGLIGIBLE)
        panel.set_yscale("log")
        name = _title((str(layer["network"]), str(layer["layer"])))
        panel.set_title(f"{name}\n{residual['edge_ratio']:.3g} × the edge", fontsize=9)
        panel.set_xlabel("place among all, from the largest")
        panel.set_ylabel("singular value / root mean square")
    legend_above(figure, axes[0])
    return figure


def bound_scatter(rows: Sequence[Row]) -> Figure:
    """Bounds against what they bound, at every layer and rank; on the line a bound is attained.

    Rows are those of `LayerStudy`, of one network or several, which have a colour each. Raises
    `ValueError` without rows.
    """
    networks: dict[str, list[Row]] = {}
    for row in _some_rows(rows):
        networks.setdefault(row["network"], []).append(row)
    figure, axes = panels(len(_BOUNDS), width=4.6, height=4.2)
    for panel, (error, bound, label) in zip(axes, _BOUNDS, strict=True):
        for number, (network, group) in enumerate(networks.items()):
            _points(panel, group, error, bound, drawable(network), SERIES[number % len(SERIES)])
        _diagonal(panel)
        panel.set_title(label, fontsize=10)
        panel.set_xlabel("error / norm of the outputs")
        panel.set_ylabel("bound / norm of the outputs")
    legend_above(figure, axes[0])
    return figure


def calibration_sizes(rows: Sequence[Row], layers: Sequence[Row]) -> Figure:
    """How many rows each layer of a network was calibrated on, at half rank beside how many it
    takes.

    Rows and layers are those of one `LayerStudy`. Raises `ValueError` without any.
    """
    halves = _at_half_rank(_some_rows(rows))
    figure, (panel,) = panels(1, width=7.5)
    for points, label, style in (
        ([row["samples"] for row in halves], "rows", LIMIT),
        ([each["effective_samples"] for each in layers], "as independent Gaussian", SERIES[1]),
        ([row["samples_needed"] for row in halves], "for 1 % excess, to first order", SERIES[0]),
        ([row["samples_sufficient"] for row in halves], "with probability 0.95", SERIES[2]),
    ):
        _line(panel, enumerate(points, start=1), label, style)
    panel.set_yscale("log")
    panel.set_xlabel("layer")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylabel("calibration rows")
    legend_above(figure, panel, 2)
    return figure


def transfer(record: Row) -> Figure:
    """One compressed network in six panels: output error and metric against size, errors of single
    layers, bounds, residual spectra, and the errors of layers beside that of the network.

    `record` is a `Transfer` as `everything()` gives it.
    """
    figure, axes = panels(6, width=4.4, height=3.4)
    networks, rows = record["networks"], _some_rows(record["layers"]["rows"])
    _network_errors(axes[0], networks)
    _metric(axes[1], networks, record["metric"])
    _errors_in_order(axes[2], rows, _ERRORS)
    axes[2].set_yscale("log")
    axes[2].set_ylabel("error / norm of the outputs")
    axes[2].set_title("single layers, held-out data", fontsize=10)
    for (error, bound, label), style in zip(_BOUNDS, SERIES, strict=False):
        _points(axes[3], rows, error, bound, label, style)
    _diagonal(axes[3])
    axes[3].set_xlabel("error / norm of the outputs")
    axes[3].set_ylabel("bound")
    axes[3].set_title("bounds, every layer and rank", fontsize=10)
    _all_residuals(axes[4], record["layers"]["layers"])
    _composed(axes[5], record["half"]["composition"])
    for panel in axes[1:]:  # the first has the lines of the second
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=7, framealpha=0.7, edgecolor="none")
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


# --- layers and networks --------------------------------------------------------------------------

_ERRORS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "data_agnostic_error": ("weights truncated", SERIES[1]),
    "diagonal_error": ("inputs scaled, truncated", SERIES[3]),
    "data_driven_error": ("fitted to activations", SERIES[0]),
    "optimal_error": ("optimum", SERIES[2]),
}
_WAYS = {name: SERIES[place] for place, name in enumerate(WAYS)}
_BOUNDS = (
    ("data_agnostic_error", "price_bound", "price of ignoring data"),
    ("recovery_error", "recovery_bound", "recovery from the other half"),
)


def _some_rows(rows: Sequence[Row]) -> Sequence[Row]:
    if not rows:
        raise ValueError("`rows` is empty. Give at least one row of a layer at a rank.")
    return rows


def _by_layer(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows, or layers, by network and layer."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in _some_rows(rows):
        groups.setdefault((str(row["network"]), str(row["layer"])), []).append(row)
    return groups


def _some(layers: list[Any], count: int) -> list[Any]:
    """At most so many of them, evenly spread."""
    chosen = np.linspace(0, len(layers) - 1, min(count, len(layers))).round().astype(int)
    return [layers[index] for index in chosen]


def _title(layer: tuple[str, str]) -> str:
    network, path = layer
    return drawable(f"{network}, {short(path)}")


def _at_half_rank(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["rank"] == half_rank(*row["shape"])]


def _depths(layers: Sequence[Row]) -> list[Any]:
    """From dark to light, a colour for each."""
    return list(mpl.colormaps["viridis"](np.linspace(0, 0.9, len(layers))))


def _line(
    panel: Axes,
    points: Iterable[tuple[Any, Any]],
    label: str | None,
    style: Mapping[str, Any],
    *,
    above: float = -math.inf,
) -> None:
    drawn = [(x, y) for x, y in points if y is not None and y > above]
    xs, ys = zip(*drawn, strict=True) if drawn else ((), ())
    every = 1 + len(drawn) // _MARKED
    panel.plot(xs, ys, **{"markersize": 4, "markevery": every, **style}, label=label)


def _errors_in_order(
    panel: Axes, rows: Sequence[Row], lines: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> None:
    """The errors of all layers at half rank, in the order of the rows."""
    halves = _at_half_rank(rows)
    for name, (label, style) in lines.items():
        points = enumerate((row[name] for row in halves), start=1)
        _line(panel, points, label, {**style, "markersize": 3}, above=_NEGLIGIBLE)
    panel.set_xlabel("layer, at half of full rank")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _points(
    panel: Axes, rows: Sequence[Row], error: str, bound: str, label: str, style: Mapping[str, Any]
) -> None:
    drawn = [(row[error], row[bound]) for row in rows if row[error] is not None]
    drawn = [(x, y) for x, y in drawn if x > _NEGLIGIBLE]
    xs, ys = zip(*drawn, strict=True) if drawn else ((), ())
    kind = {**style, "linestyle": "", "markersize": 3, "rasterized": len(drawn) > _MANY}
    panel.plot(xs, ys, **kind, alpha=0.6, label=label)


def _diagonal(panel: Axes) -> None:
    """The line on which bounds are attained, and logarithmic axes."""
    panel.set_xscale("log")
    panel.set_yscale("log")
    low, high = panel.get_xlim()
    panel.plot([low, high], [low, high], **LIMIT, label="attained")


def _network_errors(panel: Axes, networks: Sequence[Row]) -> None:
    for method, group in _by_method(networks).items():
        points = [(_size(row), row["error_held_out"]) for row in group]
        _line(panel, points, drawable(method), _WAYS.get(method, SERIES[3]))
    panel.set_yscale("log")
    panel.set_xlabel("bytes / dense (%)")
    panel.set_ylabel("error / norm of the outputs")
    panel.set_title("the network, held-out data", fontsize=10)


def _metric(panel: Axes, networks: Sequence[Row], metric: Row) -> None:
    dense = metric["value"]
    for method, group in _by_method(networks).items():
        sizes, values = [_size(row) for row in group], [row["metric"] for row in group]
        style = _WAYS.get(method, SERIES[3])
        _line(panel, zip(sizes, values, strict=True), drawable(method), style)
        ends = [dense + row["low"] for row in group], [dense + row["high"] for row in group]
        panel.vlines(sizes, *ends, color=style["color"], linewidth=0.8)
    panel.axhline(dense, **LIMIT, label="dense")
    panel.set_xlabel("bytes / dense (%)")
    name = drawable(metric["name"])
    panel.set_ylabel(name)
    better = "larger" if metric["larger_is_better"] else "smaller"
    panel.set_title(f"{name}, {better} is better", fontsize=10)


def _by_method(networks: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in networks:
        groups.setdefault(row["method"], []).append(row)
    return {method: sorted(group, key=_size) for method, group in groups.items()}


def _size(row: Row) -> float:
    return 100 * row["bytes"] / row["dense_bytes"]


def _all_residuals(panel: Axes, layers: Sequence[Row]) -> None:
    residuals = [layer["residual"] for layer in layers if layer["residual"] is not None]
    for number, (residual, color) in enumerate(zip(residuals, _depths(residuals), strict=True)):
        for name, label, style in (
            ("singular_value", "residuals, first (dark) to last layer", {"color": color}),
            ("marchenko_pastur", "white noise", {"color": GREY, "linestyle": ":"}),
        ):
            points = zip(residual["position"], residual[name], strict=True)
            thin = {**style, "linewidth": 0.8, "rasterized": len(residuals) > _COLUMNS}
            _line(panel, points, None if number else label, thin, above=_NEGLIGIBLE)
    panel.set_yscale("log")
    panel.set_xlabel("place among all, from the largest")
    panel.set_ylabel("singular value / root mean square")
    panel.set_title("residuals of single layers at half rank", fontsize=10)


def _composed(panel: Axes, composition: Row) -> None:
    alone = composition["alone"]
    _line(panel, enumerate(alone, start=1), "one layer replaced", SERIES[0], above=_NEGLIGIBLE)
    for name, label, style in (
        ("measured", "all replaced", LIMIT),
        ("root_of_squares", "root of the sum of squares", {**SERIES[1], "marker": ""}),
        ("sum", "sum", {**SERIES[2], "marker": ""}),
    ):
        panel.axhline(composition[name], **style, label=label)
    panel.set_yscale("log")
    panel.set_xlabel("layer")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylabel("error of the network's outputs")
    panel.set_title("from layers to the network", fontsize=10)


def _plain_ticks(panel: Axes) -> None:
    low, high = panel.get_xlim()
    subs = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
    panel.xaxis.set_major_locator(LogLocator(10, subs=subs))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
