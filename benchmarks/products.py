"""How long a product with each kind of approximation takes, with the dense matrix beside.

python benchmarks/products.py [SIDE]

prints a table: bytes over those of the dense matrix, and its time over ours (above one, ours is
faster) with batches of 1, 32 and 512 rows, as medians over repetitions in turn. Whatever is no
product of factors is made dense at each product: it saves memory, not time.
"""

import functools
import sys
from typing import Any

import jax
import numpy as np

from _measure import interleaved
from lowrank_theory.approximations import (
    AbstractApproximation,
    CompressedRows,
    Dense,
    LowRank,
    Product,
    Sparse,
    Sum,
    Table,
)
from lowrank_theory.lookup import in_bytes
from lowrank_theory.mixtures import rounded_entries
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import round_to_nearest
from lowrank_theory.sparsification import Structured, largest_entries

SIDE = 1024
BATCHES = 1, 32, 512
SEED = 0


def kinds(side: int) -> dict[str, AbstractApproximation]:
    """One of each, of the same weights; values are of no account."""
    random = np.random.default_rng(SEED)
    weights = random.standard_normal((side, side)).astype(np.float32)
    rank = side // 8
    low_rank = LowRank(weights[:, :rank], weights[:rank])
    few = np.abs(weights) > 1.96  # 5 %
    sparse = largest_entries(weights, side * side // 4)
    whole = Structured((0.5,), data_driven=False).sweep(Observed(weights=weights)).at(0)
    codebooks = side // 8
    look_up = Table(
        random.integers(0, side, (codebooks, 4)).astype(np.uint16),
        random.standard_normal((codebooks, 15)).astype(np.float32),
        random.standard_normal((codebooks, 16, side)).astype(np.float32),
        inputs=side,
    )
    return {
        "dense": Dense(weights),
        f"low rank, {rank}": low_rank,
        f"low rank, {rank}, factors in 8 bits": Product(
            round_to_nearest(low_rank.left, 8), round_to_nearest(low_rank.right, 8)
        ),
        "4 bits, groups of 64": round_to_nearest(weights, 4, group=64),
        "8 bits": round_to_nearest(weights, 8),
        "bitmap, a quarter kept": sparse,
        "compressed rows, 5 % kept": Sparse.of(weights, few, CompressedRows),
        "2 of 4": Sparse.n_of_m(weights, 2, 4),
        "half of the inputs": whole.approximation,
        "bitmap, a quarter in 4 bits": rounded_entries(sparse, 4),
        "low rank and 5 % entries": Sum((low_rank, Sparse.of(weights, few, CompressedRows))),
        f"tables, {codebooks} codebooks": look_up,
        f"tables, {codebooks} codebooks, in bytes": in_bytes(look_up),
    }


@jax.jit
def product(matrix: AbstractApproximation, rows: jax.Array) -> Any:
    """The outputs."""
    return matrix.apply(rows)


def table(side: int) -> str:
    """In Markdown."""
    drawn = kinds(side).items()
    made = {name: jax.tree.map(jax.numpy.asarray, matrix) for name, matrix in drawn}
    random = np.random.default_rng(SEED)
    times = {}
    for batch in BATCHES:
        rows = jax.numpy.asarray(random.standard_normal((batch, side)), np.float32)
        calls = {name: functools.partial(product, matrix, rows) for name, matrix in made.items()}
        for call in calls.values():
            jax.block_until_ready(call())
        times[batch] = interleaved(calls)
    lines = [
        f"| {side} x {side}, float32 | bytes | " + " | ".join(f"{b} rows" for b in BATCHES) + " |",
        "|---" * (2 + len(BATCHES)) + "|",
    ]
    dense = made["dense"].storage.bytes
    for name, matrix in made.items():
        ratios = (np.median(t["dense"] / t[name]) for t in times.values())
        cells = [f"{matrix.storage.bytes / dense:.3f}", *(f"{ratio:.2g}" for ratio in ratios)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(int(sys.argv[1]) if sys.argv[1:] else SIDE))
