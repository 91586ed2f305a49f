r"""How many rows a layer of a trained network takes to be fitted to them.

The rows that a layer meets in the training data are a population here, of which all is known. The
affine data-driven fit is made to rows drawn from it, and its squared error on the whole population
held against that of the best fit. Rows are drawn in three ways, each of which breaks one hypothesis
of `calibration_size` more than the one before:

- `Gaussian`: independent Gaussian rows with the mean and the covariance of the population;
- `single`: independent rows of the population itself;
- `whole`: all rows of independent units (images, windows, sentences), as they come.

Let $y$ be an output in the eigenbasis of the covariance, less its mean, and $l_k$ the eigenvalues.
For independent units, of which one has $T$ rows, the excess after $m$ rows is to first order

$$ \frac{1}{m\,\mathbb E T}\Bigl(\sum_{j\le r<k}\frac{\mathbb E(\sum_t y_{tj}y_{tk})^2}{l_j-l_k} +
\sum_{k>r}\mathbb E\bigl(\sum_t y_{tk}\bigr)^2\Bigr), $$

the second term for the mean, which is fitted too. For $T = 1$ and Gaussian rows the first sum is
that of `calibration_size.leading_constant`, and the second is the least error itself.

Networks whose data are not at hand (see README, Real data) are left out.

python experiments/transfer_calibration.py [--quick]
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from scipy import stats

from _save import column, interval, run
from lowrank_theory._engine.observer import Observer
from lowrank_theory.models.catalogue import CASES
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.theorems.calibration_size import first_order_excess

SEED = 24
UNITS = {  # whose rows are the population
    "digits": 1_200,
    "mnist": 4_000,
    "resnet20": 500,
    "alexnet": 400,
    "char_lstm": 200,
    "minilm": 1_000,
}
SAMPLED = {
    "digits": [".weights[1]"],
    "mnist": [".weights[0]"],
    "resnet20": ["['stages'][0][0]['first']['kernel']", "['stages'][2][1]['first']['kernel']"],
    "alexnet": ["['conv3']['kernel']"],
    "char_lstm": ["['layers'][1]['kernel']"],
    "minilm": ["['layers'][3]['up']['kernel']"],
}
OTHERS = {  # of which first-order values are told
    "digits": [".weights[0]", ".weights[2]"],
    "mnist": [".weights[1]"],
    "resnet20": ["['stages'][1][1]['first']['kernel']", "['stages'][2][2]['second']['kernel']"],
    "alexnet": ["['conv2']['kernel']", "['conv5']['kernel']", "['affine2']['kernel']"],
    "char_lstm": ["['layers'][0]['kernel']", "['head']['kernel']"],
    "minilm": [
        "['layers'][0]['query']['kernel']",
        "['layers'][2]['output']['kernel']",
        "['layers'][5]['down']['kernel']",
    ],
}
EXCESS = 0.01
SIZES = 7
LABELS = {
    "Gaussian": "Gaussian rows",
    "single": "real rows, one by one",
    "whole": "real rows, whole units",
}


@dataclasses.dataclass(frozen=True)
class Population:
    """All outputs of a layer, less their mean and in the eigenbasis of their covariance.

    `values` are the eigenvalues, largest first; `lengths` says how many of the rows, which stand
    unit by unit, each unit has.
    """

    outputs: Float[np.ndarray, "rows side"]
    values: Float[np.ndarray, " side"]
    lengths: Int[np.ndarray, " units"]

    @staticmethod
    def of(units: list[Float[np.ndarray, "_rows side"]]) -> "Population":
        outputs = np.concatenate(units)
        outputs = outputs - outputs.mean(axis=0)
        values, vectors = np.linalg.eigh(outputs.T @ outputs / len(outputs))
        return Population(
            outputs @ vectors[:, ::-1],
            np.maximum(values[::-1], 0),
            np.array([len(unit) for unit in units]),
        )

    @property
    def row_by_row(self) -> "Population":
        """The same rows, each a unit."""
        return dataclasses.replace(self, lengths=np.ones(len(self.outputs), int))

    def drawn(
        self, count: int, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, " side"], Float[np.ndarray, "side side"]]:
        """The mean and the covariance of so many units, drawn with replacement."""
        times = generator.multinomial(count, np.full(len(self.lengths), 1 / len(self.lengths)))
        weights = np.repeat(times, self.lengths)
        rows, weights = self.outputs[weights > 0], weights[weights > 0]
        mean = weights @ rows / weights.sum()
        return mean, (rows.T * weights) @ rows / weights.sum() - np.outer(mean, mean)

    def gaussian(
        self, rows: int, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, " side"], Float[np.ndarray, "side side"]]:
        """The mean and the covariance of so many Gaussian rows like these."""
        scale = np.sqrt(self.values)
        scatter = stats.wishart.rvs(rows - 1, np.eye(scale.size), random_state=generator)
        mean = scale * generator.standard_normal(scale.size) / math.sqrt(rows)
        return mean, scale[:, None] * np.asarray(scatter) * scale / rows

    def excess(self, mean: np.ndarray, covariance: np.ndarray, rank: int) -> float:
        """The squared error of the affine fit to such rows over the least one, less one."""
        dropped = np.linalg.eigh(covariance)[1][:, : self.values.size - rank]
        lost = np.sum(self.values @ dropped**2) + np.sum((mean @ dropped) ** 2)
        return float(lost / np.sum(self.values[rank:]) - 1)

    def constant(self, rank: int) -> float:
        """The first-order excess, in units of the least error, times the number of rows."""
        products, sums = 0.0, 0.0
        for unit in np.split(self.outputs, np.cumsum(self.lengths)[:-1]):
            products = products + (unit[:, :rank].T @ unit[:, rank:]) ** 2
            sums = sums + unit[:, rank:].sum(axis=0) ** 2
        turned = np.sum(products / (self.values[:rank, None] - self.values[rank:]))
        return float((turned + np.sum(sums)) / np.sum(self.values[rank:]) / len(self.outputs))

    def gaussian_constant(self, rank: int) -> float:
        """The same of independent Gaussian rows, by the theorem."""
        with jax.enable_x64(True):
            turned = float(first_order_excess(jnp.asarray(self.values), rank))
        return turned / float(np.sum(self.values[rank:])) + 1


def populations(network: str) -> dict[str, tuple[Population, tuple[int, int]]]:
    """The outputs of each layer that is looked at, in the coordinates of its smaller side, and its
    shape.
    """
    paths = [*SAMPLED[network], *OTHERS[network]]
    case = CASES[network]
    loaded = case.load(dataclasses.replace(case.sizes, calibration=UNITS[network]))
    observer = Observer(loaded.function, loaded.parameters, paths.__contains__)
    leaves = jax.tree_util.tree_leaves_with_path(loaded.parameters)
    by_path = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    weights = {
        path: np.asarray(site.view.matrix(np.asarray(by_path[path], float)))
        for path, site in observer.survey(loaded.calibration[0]).items()
    }
    cores = {
        path: each if each.shape[0] >= each.shape[1] else np.linalg.qr(each.T)[1].T
        for path, each in weights.items()
    }
    outputs: dict[str, list[np.ndarray]] = {path: [] for path in paths}
    for batch in loaded.calibration:
        for number in range(len(jax.tree.leaves(batch)[0])):
            unit = jax.tree.map(lambda leaf, k=number: leaf[k : k + 1], batch)
            for uses, (rows,) in observer.input_rows_of(unit, paths):
                for path, _ in uses:
                    outputs[path].append(np.asarray(rows, float) @ cores[path])
    return {path: (Population.of(outputs[path]), weights[path].shape) for path in paths}


def half_size(inputs: int, outputs: int) -> int:
    """The rank whose factors have half the parameters of the layer."""
    return max(1, inputs * outputs // (2 * (inputs + outputs)))


Draw = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def rows_for(points: list[dict[str, Any]], excess: float) -> float | None:
    """Where the mean excess falls to this, by a straight line in logarithms."""
    rows, mean = np.log(column(points, "rows")), np.log(column(points, "excess", "mean"))
    below = np.flatnonzero(mean <= math.log(excess))
    if not below.size or below[0] == 0:
        return None
    ends = slice(below[0] - 1, below[0] + 1)
    return math.exp(np.interp(-math.log(excess), -mean[ends], rows[ends]))


def first_order(whole: Population, rank: int) -> dict[str, float]:
    """The constant of rows drawn in each way; units of one row are no way of their own."""
    constants = {
        "Gaussian": whole.gaussian_constant(rank),
        "single": whole.row_by_row.constant(rank),
    }
    if len(whole.lengths) < len(whole.outputs):
        constants["whole"] = whole.constant(rank)
    return constants


def described(path: str, whole: Population, shape: tuple[int, int]) -> dict[str, Any]:
    """A layer, and what it would take to first order."""
    rank, values = half_size(*shape), whole.values
    return {
        "layer": path,
        "shape": list(shape),
        "rank": rank,
        "units": len(whole.lengths),
        "rows": len(whole.outputs),
        "least_error": float(np.sum(values[rank:]) / np.sum(values)),
        "gap": float((values[rank - 1] - values[rank]) / values[rank - 1]),
        "constants": first_order(whole, rank),
    }


def sampled(whole: Population, found: dict[str, Any], trials: int, seed: list[int]) -> Any:
    """The excess at several sizes, for rows drawn in each way."""
    draws: dict[str, Draw] = {
        "Gaussian": whole.gaussian,
        "single": whole.row_by_row.drawn,
        "whole": whole.drawn,
    }
    side, constants = whole.values.size, found["constants"]
    most = 2 * max(constants.values()) / EXCESS
    ways = []
    for number, (way, constant) in enumerate(constants.items()):
        per = float(whole.lengths.mean()) if way == "whole" else 1.0
        sizes = np.geomspace(max(2, 2 * side / per), most / per, SIZES).round().astype(int)
        points = []
        for size in sizes.tolist():
            generator = np.random.default_rng([SEED, *seed, number, size])
            excess = [
                whole.excess(*draws[way](size, generator), found["rank"]) for _ in range(trials)
            ]
            points.append({"rows": size * per, "excess": interval(np.array(excess))})
        ways.append(
            {
                "way": way,
                "constant": constant,
                "rows_first_order": constant / EXCESS,
                "rows_measured": rows_for(points, EXCESS),
                "points": points,
            }
        )
    return ways


def studied(network: str, trials: int, seed: int) -> list[dict[str, Any]]:
    """The layers of one network."""
    print(network, flush=True)
    results = []
    for number, (path, (whole, shape)) in enumerate(populations(network).items()):
        found = {"network": network, "unit": CASES[network].unit, **described(path, whole, shape)}
        if path in SAMPLED[network]:
            found["ways"] = sampled(whole, found, trials, [seed, number])
        results.append(found)
    return results


def measure(*, quick: bool) -> dict[str, Any]:
    trials = 4 if quick else 20
    wanted = ["digits"] if quick else list(UNITS)
    missing = [name for name in wanted if CASES[name].missing()]
    results = [
        found
        for number, name in enumerate(wanted)
        if name not in missing
        for found in studied(name, trials, number)
    ]
    return {"trials": trials, "excess": EXCESS, "missing": missing, "results": results}


def draw(numbers: dict[str, Any]) -> Figure:
    results = [found for found in numbers["results"] if "ways" in found]
    figure, axes = panels(len(results), width=4.0, height=3.4)
    for panel, result in zip(axes, results, strict=True):
        for style, way in zip(SERIES, result["ways"], strict=False):
            points = way["points"]
            rows, mean = column(points, "rows"), column(points, "excess", "mean")
            low, high = column(points, "excess", "low"), column(points, "excess", "high")
            kind = {"color": style["color"], "marker": style["marker"], "linestyle": ""}
            panel.errorbar(
                rows,
                mean,
                [mean - np.maximum(low, mean / 10), high - mean],
                **kind,
                markersize=4,
                capsize=2,
                label=LABELS[way["way"]],
            )
            line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1.2}
            panel.plot(rows, way["constant"] / rows, **line)
        panel.axhline(numbers["excess"], **LIMIT, label="excess of 1 %; other lines: first order")
        panel.set_xscale("log")
        panel.set_yscale("log")
        inputs, outputs = result["shape"]
        panel.set_title(
            f"{result['network']}, {inputs} × {outputs} at rank {result['rank']}", fontsize=10
        )
        panel.set_xlabel("calibration rows")
        panel.set_ylabel("excess / least error (squared)")
    everything = max(zip(axes, results, strict=True), key=lambda pair: len(pair[1]["ways"]))
    legend_above(figure, everything[0], 4)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
