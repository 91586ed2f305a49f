"""Look-up tables on synthetic rows, beside low rank of as many bytes and as many operations.

Rows of 128 inputs, of rank 16 beside noise, and 32 outputs; errors are of rows to come. Left, the
published method with bucket means, with entries fitted together, and ours, beside the nearest of 16
centres and what no code of as many bits could do. Middle, in bytes two factors in float32 are as
good as tables and then better, and factors in bytes are far better; a vertical line is the dense
layer. Right, in operations tables, which add, are ahead of factors, which multiply, until these
reach the rank of the rows.

python experiments/look_up.py [--quick]
"""

import sys
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import lowrank_theory as lrt
from _look_up_note import write_tables
from _look_up_trends import trends
from _save import column, interval, run
from lowrank_theory.approximations import Storage
from lowrank_theory.lookup import (
    AsTheyCome,
    Correlated,
    LookUp,
    bucket_means,
    grown,
    k_means,
    look_up,
    ridge_entries,
    summed_entries,
)
from lowrank_theory.lookup.orders import subspaces
from lowrank_theory.plotting import BLACK, LIMIT, SERIES, panels
from lowrank_theory.quantisation import round_to_nearest
from lowrank_theory.rate_distortion import distortion_floor
from lowrank_theory.recovery import ActivationWeighted

SEED = 31
INPUTS, OUTPUTS, SAMPLES, SEEDS = 128, 32, 4000, 4
CODEBOOKS = (1, 2, 4, 8, 16, 32, 64)
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24)
ROWS = {"low_rank": (16, 0.1), "full_rank": (INPUTS, 0.0)}
METHODS = {
    "published": LookUp(order=AsTheyCome(), weighted=False),
    "ours": LookUp(order=Correlated()),
}


def _drawn(random: np.random.Generator, rank: int, noise: float, samples: int) -> tuple[Any, ...]:
    mixing = random.standard_normal((rank, INPUTS)) / np.sqrt(rank)
    rows = random.standard_normal((2 * samples, rank)) @ mixing
    rows = rows + noise * random.standard_normal(rows.shape)
    weights = random.standard_normal((INPUTS, OUTPUTS)) / np.sqrt(INPUTS)
    covariance = weights.T @ (mixing.T @ mixing + noise**2 * np.eye(INPUTS)) @ weights
    single = [each.astype(np.float32) for each in (*np.split(rows, 2), weights)]
    return *single, np.linalg.eigvalsh(covariance)[::-1]


def _floor(eigenvalues: np.ndarray, bits: float) -> float:
    """The share that no code of so many bits for each row can be without."""
    return float(distortion_floor(eigenvalues, bits)) / float(eigenvalues.sum())


def _operations(storage: Storage) -> int:
    return storage.multiply_adds + storage.additions + storage.comparisons


def _tables(rows: Any, new: Any, weights: Any, share: Any, key: Any) -> list[dict[str, Any]]:
    found, wide = [], rows.astype(float)
    for codebooks in CODEBOOKS:
        row: dict[str, Any] = {"codebooks": codebooks}
        made = {n: look_up(rows, weights, codebooks, method=m) for n, m in METHODS.items()}
        row |= {name: share(np.asarray(table.apply(new))) for name, table in made.items()}
        takes = made["ours"].storage
        row |= {"bytes": takes.bytes, "operations": _operations(takes)}
        parts = subspaces(np.arange(INPUTS), codebooks)
        trees = grown(wide, parts)
        means = bucket_means(trees.codes, wide, parts, 16) @ weights
        # of the rows that were seen, which flatters them
        seen = wide @ weights
        total = np.sum((seen - seen.mean(axis=0)) ** 2)
        row["means"] = float(np.sum((seen - summed_entries(trees.codes, means)) ** 2) / total)
        centres = k_means(rows, parts, steps=8, key=key)
        codes = centres.codes(wide)
        means = bucket_means(codes, wide, parts, 16) @ weights
        row["centres"] = share(summed_entries(centres.codes(new), means))
        fitted = ridge_entries(codes, seen, means)
        row["centres_fitted"] = share(summed_entries(centres.codes(new), fitted))
        found.append(row)
    return found


def _factors(rows: Any, new: Any, weights: Any, share: Any) -> list[dict[str, Any]]:
    """The best layer of each rank, in float32 and in bytes."""
    found = []
    layer = lrt.Observed(weights=weights, activations=rows)
    for rank in RANKS:
        factors = lrt.recover(layer, rank=rank, method=ActivationWeighted()).factors
        rounded = [
            np.asarray(round_to_nearest(np.asarray(side), 8, axis=axis).materialise())
            for side, axis in ((factors.left, 0), (factors.right, 1))
        ]
        row = {"rank": rank, "operations": _operations(factors.storage)}
        row |= {"bytes": factors.storage.bytes, "bytes_rounded": rank * (INPUTS + OUTPUTS + 8)}
        row |= {"error": share(new @ np.asarray(factors.materialise()))}
        found.append(row | {"rounded": share(new @ rounded[0] @ rounded[1])})
    return found


def _gathered(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Errors over the seeds, with intervals; whatever is the same in all as it is."""
    gathered = []
    for rows in zip(*runs, strict=True):
        row = {}
        for name, value in rows[0].items():
            values = np.array([each[name] for each in rows])
            row[name] = interval(values) if isinstance(value, float) else value
        gathered.append(row)
    return gathered


def measure(*, quick: bool) -> dict[str, Any]:
    samples, seeds = (400, 2) if quick else (SAMPLES, SEEDS)
    found: dict[str, Any] = {}
    for place, (name, (rank, noise)) in enumerate(ROWS.items()):
        tables, factors = [], []
        for seed in range(seeds):
            random = np.random.default_rng([SEED, place, seed])
            rows, new, weights, eigenvalues = _drawn(random, rank, noise, samples)
            outputs = new.astype(float) @ weights
            total = np.sum((outputs - outputs.mean(axis=0)) ** 2)

            def share(made: np.ndarray, outputs: Any = outputs, total: Any = total) -> float:
                return float(np.sum((outputs - made) ** 2) / total)

            key = jax.random.fold_in(jax.random.key(SEED), 100 * place + seed)
            of_seed = _tables(rows, new, weights, share, key)
            for row in of_seed:
                row["floor"] = _floor(eigenvalues, 4.0 * row["codebooks"])
            tables.append(of_seed)
            factors.append(_factors(rows, new, weights, share))
        found[name] = {"tables": _gathered(tables), "factors": _gathered(factors)}
    sizes = {"inputs": INPUTS, "outputs": OUTPUTS, "samples": samples, "seeds": seeds}
    return {**sizes, **found, "trends": trends(SEED, quick=quick)}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, middle, right) = panels(3, width=4.2, height=4.0)
    tables, factors = (numbers["low_rank"][name] for name in ("tables", "factors"))
    codebooks = column(tables, "codebooks")
    for style, (name, label) in zip(
        SERIES,
        (
            ("ours", "tables, ours"),
            ("published", "tables, published"),
            ("means", "bucket means"),
            ("centres", "nearest centres"),
            ("centres_fitted", "nearest centres, fitted"),
        ),
        strict=False,
    ):
        left.plot(codebooks, column(tables, name, "mean"), **style, markersize=5, label=label)
    left.plot(codebooks, column(tables, "floor", "mean"), **LIMIT, label="no code of 4C bits")
    left.set_xlabel("codebooks of 16 codes")
    for panel, what, label in ((middle, "bytes", "bytes"), (right, "operations", "operations")):
        for style, name in zip(SERIES, ("ours", "published"), strict=False):
            panel.plot(column(tables, what), column(tables, name, "mean"), **style, markersize=5)
        exact: dict[str, Any] = {"color": BLACK, "marker": "s", "markersize": 4}
        error = column(factors, "error", "mean")
        panel.plot(column(factors, what), error, **exact, label="two factors, float32")
        panel.set_xlabel(label + (" for each row" if what == "operations" else ""))
    rounded: dict[str, Any] = {"color": BLACK, "marker": "o", "linestyle": ":", "markersize": 4}
    middle.plot(
        column(factors, "bytes_rounded"),
        column(factors, "rounded", "mean"),
        **rounded,
        label="two factors, bytes",
    )
    middle.axvline(4 * numbers["inputs"] * numbers["outputs"], color=BLACK, linewidth=0.8)
    right.axvline(numbers["inputs"] * numbers["outputs"], color=BLACK, linewidth=0.8)
    for panel in (left, middle, right):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_ylim(1e-2, 1.1)
    left.set_ylabel("squared error (share of the outputs)")
    (lines, names), (more, others) = (each.get_legend_handles_labels() for each in (left, middle))
    place: dict[str, Any] = {"loc": "outside upper center", "ncols": 4}
    figure.legend([*lines, *more], [*names, *others], **place, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
    if "--quick" not in sys.argv:
        write_tables()
