"""How far a low-rank matrix is from sparse ones, and what principal component pursuit finds.

Left, the coherence of the tangent space falls as the matrix grows, for factors of signs as
$2N^{-1/2}$, and the usual bound on it is hardly above; a spike keeps it near one. Right, parts of
rank one and of so many entries in each row and column: left of the line nothing can be exchanged,
and the pursuit finds both parts far beyond.

python experiments/low_rank_plus_sparse.py [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from _save import column, interval, run, sample
from lowrank_theory.mixtures.principal_component_pursuit import principal_component_pursuit
from lowrank_theory.plotting import BLACK, LIMIT, SERIES, panels
from lowrank_theory.theorems.low_rank_plus_sparse import TangentMatrix, TangentSetting

SEED = 59
SIZES = (8, 16, 32, 64, 128, 256)
KINDS: dict[str, dict[str, Any]] = {
    "flat": {"flat": True},
    "gaussian": {"flat": False},
    "spike": {"flat": False, "first": 20.0},
}
SIZE, CROWDS, STEPS, FOUND = 64, (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32), 300, 1e-3


def _coherence(drawn: TangentMatrix) -> Any:
    """And twice the larger sine."""
    sines = (jnp.max(jnp.linalg.norm(basis, axis=1)) for basis in drawn.bases())
    return {"coherence": drawn.coherence(), "twice": 2 * jnp.maximum(*sines)}


def _lost(crowd: int, seed: int) -> float:
    """The error of the low-rank part that is found, over its norm."""
    random = np.random.default_rng([SEED, crowd, seed])
    left, right = (np.sign(random.standard_normal((SIZE, 1))) for _ in range(2))
    low_rank = left @ right.T
    rows, columns = random.permutation(SIZE), random.permutation(SIZE)
    places = (columns[None, :] - rows[:, None]) % SIZE < crowd
    sparse = places * random.choice([-1.0, 1.0], places.shape)
    found, _ = principal_component_pursuit(low_rank + sparse, steps=STEPS)
    return float(np.linalg.norm(found - low_rank) / np.linalg.norm(low_rank))


def measure(*, quick: bool) -> dict[str, Any]:
    trials, seeds = (3, 2) if quick else (30, 5)
    by_size = []
    for place, size in enumerate(SIZES[:2] if quick else SIZES):
        row: dict[str, Any] = {"size": size}
        for index, (name, options) in enumerate(KINDS.items()):
            key = jax.random.fold_in(jax.random.key(SEED), 10 * place + index)
            found = sample(_coherence, TangentSetting(size, 1, **options), trials=trials, key=key)
            row[name] = {n: interval(v) for n, v in found.items()}
        by_size.append(row)
    flat = 2 * SIZE**-0.5 * (1 - 1 / SIZE) ** 0.5  # the sine of twice the angle of all rows
    by_crowd = []
    for crowd in CROWDS[:2] if quick else CROWDS:
        lost = np.array([_lost(crowd, seed) for seed in range(seeds)])
        found = float(np.mean(lost < FOUND))
        by_crowd.append({"crowd": crowd, "lost": interval(lost), "found": found})
    return {"size": SIZE, "coherence": flat, "by_size": by_size, "by_crowd": by_crowd}


def draw(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(2, width=4.8, height=4.0)
    rows = numbers["by_size"]
    size = column(rows, "size")
    for style, name, label in (
        (SERIES[2], "spike", "Gaussian, one entry × 20"),
        (SERIES[1], "gaussian", "Gaussian"),
        (SERIES[0], "flat", "signs"),
    ):
        mean = column(rows, name, "coherence", "mean")
        left.plot(size, mean, **style, markersize=5, label=label)
        twice = {**style, "marker": "", "linestyle": ":"}
        left.plot(size, column(rows, name, "twice", "mean"), **twice)
    left.plot([], [], color=BLACK, linestyle=":", label="twice the larger sine")
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    left.xaxis.set_major_formatter("{x:g}")
    left.set_xlabel("rows and columns")
    left.set_ylabel(r"coherence $\xi$ (no unit)")
    left.legend(frameon=False, fontsize=9)
    rows = numbers["by_crowd"]
    crowd = column(rows, "crowd")
    right.plot(crowd, column(rows, "lost", "mean"), **SERIES[0], markersize=5, label="pursuit")
    right.axvline(1 / numbers["coherence"], **LIMIT, label=r"$\xi\sqrt{pq} = 1$")
    right.set_yscale("log")
    right.set_xlabel(f"entries in each row and column, of {numbers['size']}")
    right.set_ylabel("error of the low-rank part, over its norm (no unit)")
    right.legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
