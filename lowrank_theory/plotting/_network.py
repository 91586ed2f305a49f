"""A compressed network in one figure."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lowrank_theory._names import drawable
from lowrank_theory.plotting._layers import BOUNDS, ERRORS, errors_in_order, scatter, some
from lowrank_theory.plotting._spectra import all_residuals
from lowrank_theory.plotting._style import LIMIT, NEGLIGIBLE, SERIES, diagonal, line, panels, series
from lowrank_theory.studies.layer_rows import LayerAtRank, ResidualSpectrum
from lowrank_theory.studies.transfer_rows import Composition, DenseMetric, NetworkAtSize
from lowrank_theory.studies.ways import WAYS

_STYLES = {name: series(place) for place, name in enumerate(WAYS)}


def transfer(
    *,
    networks: Sequence[NetworkAtSize],
    metric: DenseMetric,
    rows: Sequence[LayerAtRank],
    residuals: Sequence[ResidualSpectrum],
    composition: Composition,
) -> Figure:
    """One compressed network in six panels: output error and metric against size, errors of single
    layers, bounds, residual spectra, and the errors of layers beside that of the network.

    All are of one `Transfer`. Raises `ValueError` without rows.
    """
    figure, axes = panels(6, width=4.4, height=3.4)
    _network_errors(axes[0], networks)
    _metric(axes[1], networks, metric)
    errors_in_order(axes[2], some(rows), ERRORS)
    axes[2].set_yscale("log")
    axes[2].set_ylabel("error / norm of the outputs")
    axes[2].set_title("single layers, held-out data", fontsize=10)
    for bounded, style in zip(BOUNDS, SERIES, strict=False):
        scatter(axes[3], rows, bounded, bounded.label, style)
    diagonal(axes[3])
    axes[3].set_xlabel("error / norm of the outputs")
    axes[3].set_ylabel("bound")
    axes[3].set_title("bounds, every layer and rank", fontsize=10)
    all_residuals(axes[4], residuals)
    _composed(axes[5], composition)
    for panel in axes[1:]:  # the first has the lines of the second
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=7, framealpha=0.7, edgecolor="none")
    return figure


def _network_errors(panel: Axes, networks: Sequence[NetworkAtSize]) -> None:
    for method, group in _by_method(networks).items():
        points = [(100 * row.share, row.error_held_out) for row in group]
        line(panel, points, drawable(method), _STYLES.get(method, SERIES[3]))
    panel.set_yscale("log")
    panel.set_xlabel("bytes / dense (%)")
    panel.set_ylabel("error / norm of the outputs")
    panel.set_title("the network, held-out data", fontsize=10)


def _metric(panel: Axes, networks: Sequence[NetworkAtSize], metric: DenseMetric) -> None:
    for method, group in _by_method(networks).items():
        style = _STYLES.get(method, SERIES[3])
        sizes = [100 * row.share for row in group]
        values = [row.metric for row in group]
        line(panel, zip(sizes, values, strict=True), drawable(method), style)
        low = [metric.value + row.low for row in group]
        high = [metric.value + row.high for row in group]
        panel.vlines(sizes, low, high, color=style["color"], linewidth=0.8)
    panel.axhline(metric.value, **LIMIT, label="dense")
    panel.set_xlabel("bytes / dense (%)")
    name = drawable(metric.name)
    panel.set_ylabel(name)
    better = "larger" if metric.larger_is_better else "smaller"
    panel.set_title(f"{name}, {better} is better", fontsize=10)


def _by_method(networks: Sequence[NetworkAtSize]) -> dict[str, list[NetworkAtSize]]:
    groups: dict[str, list[NetworkAtSize]] = {}
    for row in networks:
        groups.setdefault(row.method, []).append(row)
    return {method: sorted(group, key=lambda row: row.share) for method, group in groups.items()}


def _composed(panel: Axes, composition: Composition) -> None:
    alone = enumerate(composition.alone, start=1)
    line(panel, alone, "one layer replaced", SERIES[0], above=NEGLIGIBLE)
    for value, label, style in (
        (composition.measured, "all replaced", LIMIT),
        (composition.root_of_squares, "root of the sum of squares", {**SERIES[1], "marker": ""}),
        (composition.sum, "sum", {**SERIES[2], "marker": ""}),
    ):
        panel.axhline(value, **style, label=label)
    panel.set_yscale("log")
    panel.set_xlabel("layer")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylabel("error of the network's outputs")
    panel.set_title("from layers to the network", fontsize=10)
