"""Certificates without held-out units: a choice among few compressions, by the length of its code.

The digits network, compressed to sixteen sizes by the images that it was trained on; 300 images
that it was not trained on choose among these, which takes four bits. What they certify of all sizes
by the length of the code, by inequalities that look at their mean alone and by betting at a
sixteenth of the failure probability; what half of them certify of one size, if the other half has
chosen; and the mean loss of 297 more images.

python experiments/code_certificate.py [--quick]
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lowrank_theory as lrt
from _save import column, run
from lowrank_theory.models.digits import digits_data, digits_network
from lowrank_theory.models.perceptron import Perceptron
from lowrank_theory.plotting import BLACK, LIMIT, SERIES, panels

SEED = 61
SHARES = tuple(float(share) for share in np.linspace(0.05, 0.8, 16).round(2))
UNITS, DELTA = 300, 0.05


def _apply(network: Perceptron, images: Any) -> Any:
    return network(images)


def measure(*, quick: bool) -> dict[str, Any]:
    network, data = digits_network(), digits_data()
    order = np.random.default_rng(SEED).permutation(len(data.held_out_images))
    images = [np.asarray(data.held_out_images[k])[None] for k in order]
    batches = [data.training_images[:400], data.training_images[400:800]]
    rows = []
    for share in SHARES[::8] if quick else SHARES:
        budget = lrt.networks.Bytes(share)
        made = lrt.networks.compress(_apply, network, batches, budget)
        losses = np.asarray(lrt.networks.output_errors(_apply, network, made, images))
        chosen, others = losses[:UNITS], losses[UNITS:]
        code = lrt.certify_code(chosen, np.log2(len(SHARES)), DELTA, prefix_free=True)
        half = lrt.certify_losses(chosen[UNITS // 2 :], DELTA)
        betting = lrt.certify_losses(chosen, DELTA / len(SHARES))
        row = {
            "share": share,
            "betting": betting.bound,
            "mean": code.mean,
            "others": float(others.mean()),
        }
        rows.append(row | {"code": code.bound, "hoeffding": code.hoeffding, "half": half.bound})
    return {"units": UNITS, "failure_probability": DELTA, "rows": rows}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (panel,) = panels(1, width=5.6, height=4.0)
    rows = numbers["rows"]
    share = column(rows, "share")
    for style, name, label in (
        (SERIES[2], "hoeffding", "all choose and certify, Hoeffding"),
        (SERIES[0], "code", "all choose and certify"),
        (SERIES[3], "betting", "all choose and certify, betting"),
        (SERIES[1], "half", "half certify"),
    ):
        panel.plot(share, column(rows, name), **style, markersize=5, label=label)
    panel.plot(share, column(rows, "mean"), **LIMIT, label="mean of those that choose")
    other: dict[str, Any] = {"color": BLACK, "marker": "x", "linestyle": ""}
    panel.plot(share, column(rows, "others"), **other, label="mean of other units")
    panel.set_yscale("log")
    panel.set_xlabel("share of the bytes")
    panel.set_ylabel("mean loss of a unit (no unit)")
    panel.legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
