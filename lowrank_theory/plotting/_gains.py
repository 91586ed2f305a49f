"""What data gain at the layers of networks, beside what says so."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lowrank_theory._names import drawable
from lowrank_theory.plotting._style import SERIES, diagonal, legend_above, panels
from lowrank_theory.studies.layer_rows import LayerGain

_SAID = (
    (lambda row: row.explained, "explained by two spectra"),
    (lambda row: row.certified, "certified by splits and angles"),
)


def gains(rows: Sequence[LayerGain]) -> Figure:
    """The measured gain of data at each layer against the one that two spectra explain, and the one
    that is certified, at a quarter of full rank; filled where the mean input is subtracted.

    Rows are those of `LayerStudy.gains`, of one network or several, which have a colour each. The
    first lies around the line where orientation is chance; the second never above it. Raises
    `ValueError` without rows.
    """
    if not rows:
        raise ValueError("`rows` is empty. Give at least one row of a layer at a rank.")
    networks: dict[str, list[LayerGain]] = {}
    for row in rows:
        if row.is_at_quarter_rank and row.gain is not None:
            networks.setdefault(row.network, []).append(row)
    figure, axes = panels(len(_SAID), width=4.6, height=4.2)
    for panel, (said, label) in zip(axes, _SAID, strict=True):
        for number, (network, group) in enumerate(networks.items()):
            style = {**SERIES[number % len(SERIES)], "linestyle": "", "markersize": 4}
            for centred, inside in ((True, style["color"]), (False, "none")):
                points = [
                    (row.gain, said(row))
                    for row in group
                    if row.centred == centred and said(row) is not None
                ]
                name = drawable(network) if centred else None
                drawn = np.array(points, float).reshape(-1, 2).T
                panel.plot(*drawn, **style, markerfacecolor=inside, alpha=0.7, label=name)
        panel.set_xscale("log")
        panel.set_yscale("log")
        diagonal(panel)
        panel.set_title(label, fontsize=10)
        panel.set_xlabel("measured gain (squared errors, no unit)")
        panel.set_ylabel("gain (no unit)")
    legend_above(figure, axes[0])
    return figure
