"""How energy is spread over directions: of what layers see and give, and of what a fit leaves."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowrank_theory.plotting._layers import title
from lowrank_theory.plotting._style import (
    COLUMNS,
    GREY,
    LIMIT,
    NEGLIGIBLE,
    PANELS,
    SERIES,
    depths,
    evenly_spread,
    legend_above,
    line,
    panels,
)
from lowrank_theory.studies.layer_rows import LayerData, ResidualSpectrum


def layer_spectra(layers: Sequence[LayerData]) -> Figure:
    """How the energy of activations and of pre-activations is spread over directions: a line for
    each layer, from the first (dark) to the last (light).

    `layers` are those of a `LayerStudy`. Raises `ValueError` without any.
    """
    if not layers:
        raise ValueError("`layers` is empty. Give at least one.")
    figure, axes = panels(2)
    colors = depths(layers)
    for panel, label, spectra in (
        (axes[0], "activations", [layer.activations for layer in layers]),
        (axes[1], "pre-activations", [layer.preactivations for layer in layers]),
    ):
        for spectrum, color in zip(spectra, colors, strict=True):
            points = zip(spectrum.index, spectrum.share, strict=True)
            style = {"color": color, "marker": "", "linewidth": 1.0}
            line(panel, points, None, style, above=NEGLIGIBLE**2)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(label, fontsize=10)
        panel.set_xlabel("number of the eigenvalue")
        panel.set_ylabel("eigenvalue / sum")
    return figure


def residual_spectra(layers: Sequence[LayerData]) -> Figure:
    """What one half of the calibration leaves of the other's fit, beside white noise: singular
    values of up to twelve layers, evenly spread, and the law of Marchenko and Pastur.

    `layers` are those of a `LayerStudy`. Raises `ValueError` where none has a residual.
    """
    found = [(layer, layer.residual) for layer in layers if layer.residual is not None]
    drawn = evenly_spread(found, PANELS)
    if not drawn:
        raise ValueError("`layers` has no residual. Give at least one layer that has.")
    figure, axes = panels(len(drawn), columns=COLUMNS, width=3.2, height=2.8)
    for panel, (layer, residual) in zip(axes, drawn, strict=True):
        for values, label, style in (
            (residual.singular_value, "residual at half rank", {**SERIES[0], "markersize": 3}),
            (residual.marchenko_pastur, "white noise", LIMIT),
        ):
            points = zip(residual.position, values, strict=True)
            line(panel, points, label, style, above=NEGLIGIBLE)
        name = title(layer.network, layer.layer)
        panel.set_title(f"{name}\n{residual.edge_ratio:.3g} × the edge", fontsize=9)
        _label_residuals(panel)
    legend_above(figure, axes[0])
    return figure


def all_residuals(panel: Axes, residuals: Sequence[ResidualSpectrum]) -> None:
    """Those of all layers in one panel."""
    for number, (residual, color) in enumerate(zip(residuals, depths(residuals), strict=True)):
        for values, label, style in (
            (
                residual.singular_value,
                "residuals, first (dark) to last layer",
                {"color": color},
            ),
            (residual.marchenko_pastur, "white noise", {"color": GREY, "linestyle": ":"}),
        ):
            points = zip(residual.position, values, strict=True)
            thin = {**style, "linewidth": 0.8, "rasterized": len(residuals) > COLUMNS}
            line(panel, points, None if number else label, thin, above=NEGLIGIBLE)
    _label_residuals(panel)
    panel.set_title("residuals of single layers at half rank", fontsize=10)


def _label_residuals(panel: Axes) -> None:
    panel.set_yscale("log")
    panel.set_xlabel("place among all, from the largest")
    panel.set_ylabel("singular value / root mean square")
