"""Every kind of approximation, each registered once: what the laws are asked of.

`make(random, stack, inputs, outputs)` draws one in float32 whose numbers are small integers, halves
and powers of two, so that float32 holds every product of the laws without rounding.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lowrank_theory.approximations import (
    AbstractApproximation,
    Affine,
    CompressedRows,
    Dense,
    LowRank,
    Product,
    Quantised,
    Sparse,
    Sum,
    Table,
    Transposed,
)

Make = Callable[[np.random.Generator, tuple[int, ...], int, int], AbstractApproximation]


def numbers(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(-4, 5, shape).astype(np.float32)


def powers(random: np.random.Generator, *shape: int) -> np.ndarray:
    return np.exp2(random.integers(-2, 2, shape)).astype(np.float32)


def low_rank(random: Any, stack: Any, inputs: int, outputs: int, rank: int = 2) -> LowRank:
    return LowRank(numbers(random, *stack, inputs, rank), numbers(random, *stack, rank, outputs))


def quantised(bits: int, *, group: int | None = None, axis: int = 0, full: bool = False) -> Make:
    """Symmetric codes or, in full, with everything that may be kept beside them."""

    def make(random: Any, stack: Any, inputs: int, outputs: int) -> Quantised:
        codes = random.integers(0, 2**bits, (*stack, inputs, outputs))
        grid = [inputs, outputs]
        grid[axis] = 1 if group is None else -(-grid[axis] // group)
        more: dict[str, Any] = {}
        if full:
            order = np.argsort(random.random((*stack, inputs)), axis=-1).astype(np.int32)
            more = {
                "zeros": numbers(random, *stack, *grid),
                "input_scales": powers(random, *stack, inputs),
                "order": order,
            }
        scales = powers(random, *stack, *grid)
        return Quantised.of(codes, scales, **more, bits=bits, group=group, axis=axis)

    return make


def sparse(kind: Any = None, share: float = 0.3) -> Make:
    def make(random: Any, stack: Any, inputs: int, outputs: int) -> Sparse:
        mask = random.random((*stack, inputs, outputs)) < share
        matrix = numbers(random, *stack, inputs, outputs)
        return Sparse.of(matrix, mask, *([] if kind is None else [kind]))

    return make


def n_of_m(random: Any, stack: Any, inputs: int, outputs: int) -> Sparse:
    group = next(m for m in (4, 3, 2, 1) if inputs % m == 0)
    kept = max(1, group // 2)
    return Sparse.n_of_m(numbers(random, *stack, inputs, outputs), kept, group)


def table(random: Any, stack: Any, inputs: int, outputs: int) -> Table:
    codebooks, levels = 3, 2
    return Table(
        random.integers(0, inputs, (*stack, codebooks, levels)).astype(np.int32),
        numbers(random, *stack, codebooks, 2**levels - 1) + np.float32(0.5),
        numbers(random, *stack, codebooks, 2**levels, outputs),
        inputs=inputs,
    )


KINDS: dict[str, Make] = {
    "low rank": low_rank,
    "dense": lambda random, stack, *sides: Dense(numbers(random, *stack, *sides)),
    **{f"{bits} bits": quantised(bits) for bits in range(1, 9)},
    "3 bits, groups of inputs": quantised(3, group=4),
    "4 bits, groups of outputs": quantised(4, group=3, axis=1),
    "5 bits, all beside": quantised(5, group=2, full=True),
    "bitmap": sparse(),
    "compressed rows": sparse(CompressedRows),
    "nothing kept": sparse(CompressedRows, 0.0),
    "n of m": n_of_m,
    "low rank and sparse": lambda *given: Sum((low_rank(*given), sparse()(*given))),
    "rounded and low rank": lambda *given: Sum((quantised(2)(*given), low_rank(*given))),
    "rounded factors": lambda random, stack, inputs, outputs: Product(
        quantised(4)(random, stack, inputs, 2), quantised(4)(random, stack, 2, outputs)
    ),
    "transposed": lambda random, stack, inputs, outputs: Transposed(
        Dense(numbers(random, *stack, outputs, inputs))
    ),
    "low rank with a shift": lambda random, stack, inputs, outputs: Affine(
        low_rank(random, stack, inputs, outputs), numbers(random, *stack, outputs)
    ),
    "table": table,
    "table with a shift": lambda random, stack, inputs, outputs: Affine(
        table(random, stack, inputs, outputs), numbers(random, *stack, outputs)
    ),
}

MATRICES = [kind for kind in KINDS if "shift" not in kind and "table" not in kind]
