"""One approximation of every kind, drawn at random: what laws are asked of.

Numbers are small integers, halves and powers of two in float32, which therefore holds products of
a few of them without rounding.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lowrank_theory.approximations._approximation import AbstractApproximation
from lowrank_theory.approximations._combined import Product, Sum, Transposed
from lowrank_theory.approximations.affine import Affine
from lowrank_theory.approximations.dense import Dense
from lowrank_theory.approximations.low_rank import LowRank
from lowrank_theory.approximations.quantised import Quantised
from lowrank_theory.approximations.sparse import Bitmap, CompressedRows, Sparse, WholeRows
from lowrank_theory.approximations.table import RoundedTable, Table

Maker = Callable[[np.random.Generator, tuple[int, ...], int, int], AbstractApproximation]


def _numbers(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(-4, 5, shape).astype(np.float32)


def _powers(random: np.random.Generator, *shape: int) -> np.ndarray:
    return np.exp2(random.integers(-2, 2, shape)).astype(np.float32)


def _low_rank(random: Any, stack: Any, inputs: int, outputs: int, rank: int = 2) -> LowRank:
    return LowRank(_numbers(random, *stack, inputs, rank), _numbers(random, *stack, rank, outputs))


def _quantised(
    bits: int, *, group: int | None = None, axis: int | None = 0, full: bool = False
) -> Maker:
    """Symmetric codes or, in full, with everything that may be kept beside them."""

    def make(random: Any, stack: Any, inputs: int, outputs: int) -> Quantised:
        codes = random.integers(0, 2**bits, (*stack, inputs, outputs))
        grid = [1, 1] if axis is None else [inputs, outputs]
        if axis is not None:
            grid[axis] = 1 if group is None else -(-grid[axis] // group)
        more: dict[str, Any] = {}
        if full:
            order = np.argsort(random.random((*stack, inputs)), axis=-1).astype(np.int32)
            more = {
                "zeros": _numbers(random, *stack, *grid),
                "input_scales": _powers(random, *stack, inputs),
                "order": order,
            }
        scales = _powers(random, *stack, *grid)
        return Quantised.of(codes, scales, **more, bits=bits, group=group, axis=axis)

    return make


def _sparse(kind: Any = Bitmap, share: float = 0.3) -> Callable[..., Sparse]:
    def make(random: Any, stack: Any, inputs: int, outputs: int) -> Sparse:
        mask = random.random((*stack, inputs, outputs)) < share
        matrix = _numbers(random, *stack, inputs, outputs)
        return Sparse.of(matrix, mask, kind)

    return make


def _n_of_m(random: Any, stack: Any, inputs: int, outputs: int) -> Sparse:
    group = next(m for m in (4, 3, 2, 1) if inputs % m == 0)
    kept = max(1, group // 2)
    return Sparse.n_of_m(_numbers(random, *stack, inputs, outputs), kept, group)


def _whole_rows(random: Any, stack: Any, inputs: int, outputs: int) -> Sparse:
    mask = np.broadcast_to(random.random((*stack, inputs, 1)) < 0.5, (*stack, inputs, outputs))
    return Sparse.of(_numbers(random, *mask.shape), mask, WholeRows)


def _rounded_entries(random: Any, stack: Any, inputs: int, outputs: int) -> Sparse:
    sparse = _sparse()(random, stack, inputs, outputs)
    codes = random.integers(0, 16, (*sparse.values.shape, 1))
    scales = _powers(random, *stack, -(-codes.shape[-2] // 5), 1)
    return Sparse(Quantised.of(codes, scales, bits=4, group=5), sparse.pattern)


def _table(random: Any, stack: Any, inputs: int, outputs: int) -> Table:
    codebooks, levels = 3, 2
    return Table(
        random.integers(0, inputs, (*stack, codebooks, levels)).astype(np.int32),
        _numbers(random, *stack, codebooks, 2**levels - 1) + np.float32(0.5),
        _numbers(random, *stack, codebooks, 2**levels, outputs),
        inputs=inputs,
    )


def _rounded_table(random: Any, stack: Any, inputs: int, outputs: int) -> RoundedTable:
    table = _table(random, stack, inputs, outputs)
    return RoundedTable(
        table.splits,
        table.thresholds,
        random.integers(0, 256, table.entries.shape).astype(np.uint8),
        2.0 ** random.integers(-8, -4, (*stack, outputs)).astype(np.float32),
        _numbers(random, *stack, outputs),
        inputs=inputs,
    )


APPROXIMATIONS: Mapping[str, Maker] = {
    "low rank": _low_rank,
    "dense": lambda random, stack, *sides: Dense(_numbers(random, *stack, *sides)),
    **{f"{bits} bits": _quantised(bits) for bits in range(1, 9)},
    "3 bits, groups of inputs": _quantised(3, group=4),
    "4 bits, groups of outputs": _quantised(4, group=3, axis=1),
    "3 bits, one grid": _quantised(3, axis=None),
    "5 bits, all beside": _quantised(5, group=2, full=True),
    "bitmap": _sparse(),
    "compressed rows": _sparse(CompressedRows),
    "nothing kept": _sparse(CompressedRows, 0.0),
    "n of m": _n_of_m,
    "whole rows": _whole_rows,
    "rounded entries": _rounded_entries,
    "low rank and sparse": lambda *given: Sum((_low_rank(*given), _sparse()(*given))),
    "rounded and low rank": lambda *given: Sum((_quantised(2)(*given), _low_rank(*given))),
    "rounded factors": lambda random, stack, inputs, outputs: Product(
        _quantised(4)(random, stack, inputs, 2), _quantised(4)(random, stack, 2, outputs)
    ),
    "transposed": lambda random, stack, inputs, outputs: Transposed(
        Dense(_numbers(random, *stack, outputs, inputs))
    ),
    "low rank with a shift": lambda random, stack, inputs, outputs: Affine(
        _low_rank(random, stack, inputs, outputs), _numbers(random, *stack, outputs)
    ),
    "table": _table,
    "table of bytes": _rounded_table,
    "table with a shift": lambda random, stack, inputs, outputs: Affine(
        _table(random, stack, inputs, outputs), _numbers(random, *stack, outputs)
    ),
}
"""How to draw one of each kind, by its name."""
