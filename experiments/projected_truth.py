"""How near the fit to some rows is to the fit to others, against bounds that know that both are
projections of one layer.

Left: random layers, the same number of rows for both fits. The bound with a gap falls as the error
does, those without one do not. Right: the second layer of the trained network on digits, between
the two halves of its training rows, by rank; where there is no gap there is no such bound.

python experiments/projected_truth.py [--quick]
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _save import column, run
from lowrank_theory.networks import digits_data, digits_network
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.theorems.projected_truth import Blocks

SEED = 22
INPUTS, OUTPUTS, RANK = 40, 30, 5
ROWS = (30, 100, 300, 1_000, 3_000, 10_000, 30_000)
INPUT_DECAY, DECAY = 0.5, 1.0


def _against(outputs: np.ndarray, truth: np.ndarray, rank: int) -> dict[str, float | None]:
    """Error and bounds relative to the outputs; `truth` is the basis of the other fit."""
    total = float(np.linalg.norm(outputs))
    _, _, fit = np.linalg.svd(outputs, full_matrices=False)
    kept = truth[:, :rank]
    turned = fit[:rank].T @ fit[:rank] - kept @ kept.T
    blocks = Blocks.of_outputs(outputs, truth, rank)
    noise = np.cumsum(blocks.dropped**2)
    longest, count = min(rank, noise.size), min(rank, noise.size, outputs.shape[1] - rank)
    gap = float(blocks.with_gap())
    simple = first_order = None
    if np.isfinite(gap):
        a, b = blocks.kept[:, None] ** 2, blocks.dropped**2
        squares = a * b * blocks.cosines**2 / (a - b)
        factors = (a + b) / (a - b)
        simple = float(np.sqrt(factors[-1, 0] * np.sum(squares)))
        first_order = float(np.sqrt(np.sum(factors * squares)))
    numbers = {
        "error": float(np.linalg.norm(outputs @ turned)),
        "any_truth": float(np.sqrt(4 * noise[count - 1] + noise[longest - 1])),
        "no_gap": float(blocks.without_gap()),
        "gap": gap if np.isfinite(gap) else None,
        "simple": simple,
        "first_order": first_order,
    }
    return {name: None if each is None else each / total for name, each in numbers.items()}


def _basis(outputs: np.ndarray) -> np.ndarray:
    """Right singular vectors, strongest first."""
    return np.linalg.svd(outputs, full_matrices=outputs.shape[0] < outputs.shape[1])[2].T


def _random(rows: int, trials: int) -> dict[str, Any]:
    found = []
    for trial in range(trials):
        random = np.random.default_rng([SEED, rows, trial])
        weights = np.linalg.qr(random.standard_normal((INPUTS, OUTPUTS)))[0]
        weights = weights * np.arange(1.0, OUTPUTS + 1) ** -DECAY
        scales = np.arange(1.0, INPUTS + 1) ** -INPUT_DECAY
        turn = np.linalg.qr(random.standard_normal((INPUTS, INPUTS)))[0]
        truth, outputs = (
            (random.standard_normal((rows, INPUTS)) * scales) @ turn @ weights for _ in range(2)
        )
        found.append(_against(outputs, _basis(truth), RANK))
    bounded = [each for each in found if each["gap"] is not None]
    many = len(bounded) > trials / 2
    row: dict[str, Any] = {"rows": rows, "with_gap": len(bounded) / trials}
    for name in found[0]:
        some = name in ("gap", "simple", "first_order")
        values = column(bounded if some else found, name)
        row[name] = float(np.median(values)) if many or values.size == trials else None
    ratios = [each["error"] / each["gap"] for each in bounded]
    row["largest_ratio"] = max([*ratios, *(each["error"] / each["no_gap"] for each in found)])
    shares = [each["error"] / each["first_order"] for each in bounded]
    row["largest_share_of_first_order"] = max(shares, default=None)
    for name in ("gap", "simple"):  # the ratio that one in twenty is below
        ratios = [each["error"] / each[name] for each in bounded]
        row[f"twentieth_of_{name}"] = float(np.quantile(ratios, 0.05)) if many else None
    return row


def _digits() -> list[dict[str, Any]]:
    network, layers = digits_network(), []
    seen = network.layer_inputs(digits_data().training_images)
    for rows, weights in zip(seen, network.weights, strict=True):
        outputs = np.asarray(rows, float) @ np.asarray(weights, float)
        halves = outputs[::2], outputs[1::2]
        truth = _basis(halves[0])
        full = min(weights.shape)
        ranks = (
            range(1, full) if full < 40 else np.unique(np.geomspace(1, full - 1, 40).astype(int))
        )
        points = [{"rank": int(r), **_against(halves[1], truth, int(r))} for r in ranks]
        layers.append({"layer": f"{weights.shape[0]} × {weights.shape[1]}", "points": points})
    return layers


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 5 if quick else 100
    return {
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "rank": RANK,
        "input_decay": INPUT_DECAY,
        "decay": DECAY,
        "trials": trials,
        "random": [_random(rows, trials) for rows in ROWS],
        "digits": _digits(),
    }


LINES = (
    ("any_truth", "any truth: √5", {**LIMIT, "linestyle": ":"}),
    ("no_gap", "a projected truth: √2", LIMIT),
    ("gap", "with a gap", SERIES[1]),
    ("first_order", "first order (no bound)", {**SERIES[2], "marker": ""}),
    ("error", "error", SERIES[0]),
)


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.8, height=4.0)
    points = numbers["digits"][1]["points"]
    for name, label, style in LINES:
        left.plot(column(numbers["random"], "rows"), column(numbers["random"], name), **style)
        drawn = {**style, "markersize": 4} if style["marker"] else style
        right.plot(column(points, "rank"), column(points, name), **drawn, label=label)
    left.set_xlabel("rows of each fit")
    left.set_title(f"random layers, rank {numbers['rank']} of {numbers['outputs']}", fontsize=10)
    right.set_xlabel("rank")
    right.set_title(f"network on digits, {numbers['digits'][1]['layer']}", fontsize=10)
    for panel in (left, right):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_ylabel("distance of the two fits / norm of the outputs")
    legend_above(figure, right, 5)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
