"""Low rank and rounding beside what no code of as many bits can do better.

Shares of the squared outputs that are lost, of Gaussian weights. Left, where inputs are white low
rank, of 16 bits for each number, is far above the floor for all codes, and rounding in turn is near
it. Middle and right, inputs decay, as $i^{-1}$ and as $i^{-2}$: low rank comes down, and at one bit
and a half or less it is then ahead of rounding, which gives each input as many; the floor falls
faster than either.

python experiments/rate_distortion.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.plotting import LIMIT, SERIES, panels
from lowrank_theory.rate_distortion import distortion_floor
from lowrank_theory.theorems.rate_distortion import (
    CodedWeights,
    CodedWeightsSetting,
    rate_distortion,
)

SEED = 47
SIZE, SAMPLES = 64, 512
DECAYS = (0.0, 1.0, 2.0)
BITS = (1, 2, 3, 4, 5, 6)
NUMBER = 16  # bits of a number of a factor


def _rounded(layer: CodedWeights) -> Any:
    """The share that rounding in turn loses, and the floor."""
    floor = rate_distortion.floor
    found = floor.estimate(layer)
    total = jnp.sum((layer.rows() @ layer.exact()) ** 2)
    return {
        "lost": floor.loss(layer, found) / total,
        "floor": floor.formula(layer, found) / total,
    }


def _truncated(layer: CodedWeights) -> Any:
    """The least share that each rank loses, and the floor at as many bits."""
    rows, outputs = layer.rows(), layer.rows() @ layer.exact()
    squares = jnp.linalg.svd(outputs, compute_uv=False) ** 2
    eigenvalues = jnp.linalg.eigvalsh(rows.T @ rows)
    ranks = np.arange(1, SIZE // 2 + 1)
    tails = jnp.sum(squares) - jnp.cumsum(squares)[: len(ranks)]
    floors = jax.vmap(lambda bits: distortion_floor(eigenvalues, bits, outputs=SIZE))(
        jnp.asarray(NUMBER * ranks * 2.0 * SIZE)
    )
    return {"lost": tails / jnp.sum(squares), "floor": floors / jnp.sum(squares)}


def measure(*, quick: bool) -> dict[str, Any]:
    trials, results = 2 if quick else 20, []
    for place, decay in enumerate(DECAYS[: 1 if quick else None]):
        correlated = 0.0 if decay == 0 else 1.0
        key = jax.random.fold_in(jax.random.key(SEED), place)

        def setting(bits: int, decay: float = decay, c: float = correlated) -> Any:
            return CodedWeightsSetting(SAMPLES, SIZE, SIZE, bits, decay=decay, correlated=c)

        rounded = []
        for bits in BITS[: 2 if quick else None]:
            found = sample(_rounded, setting(bits), trials=trials, key=key)
            rounded.append({"bits": bits} | {n: interval(v) for n, v in found.items()})
        found = sample(_truncated, setting(1), trials=trials, key=key)
        truncated = [
            {"rank": rank + 1, "bits": NUMBER * 2 * (rank + 1) / SIZE}
            | {n: interval(v[:, rank]) for n, v in found.items()}
            for rank in range(0, SIZE // 2, 1 if not quick else 16)
        ]
        results.append({"decay": decay, "rounded": rounded, "truncated": truncated})
    return {"inputs": SIZE, "outputs": SIZE, "samples": SAMPLES, "results": results}


def draw(numbers: dict[str, Any]) -> Figure:
    results = numbers["results"]
    figure, every = panels(len(results), width=4.2, height=4.0)
    for panel, result in zip(every, results, strict=True):
        rows = result["truncated"]
        bits = column(rows, "bits")
        panel.plot(bits, column(rows, "floor", "mean"), **LIMIT, label="floor for all codes")
        style = {**SERIES[1], "markersize": 4}
        panel.plot(bits, column(rows, "lost", "mean"), **style, label="low rank, 16 bits")
        rows = result["rounded"]
        style = {**SERIES[0], "markersize": 5}
        lost = column(rows, "lost", "mean")
        panel.plot(column(rows, "bits"), lost, **style, label="rounded in turn")
        panel.set_yscale("log")
        panel.set_ylim(1e-6, 1.5)
        panel.set_xlim(0, 8)
        panel.set_xlabel("bits for each weight")
        panel.set_title(f"inputs decay as $i^{{-{result['decay']:g}}}$", fontsize=10)
    every[0].set_title("white inputs", fontsize=10)
    every[0].set_ylabel("lost share of the outputs (no unit)")
    every[0].legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
