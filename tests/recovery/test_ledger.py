"""The ledger: what a layer takes is known from its sizes, and is what its arrays hold."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from ladders import LADDERS
from lowrank_theory.approximations import (
    AbstractMatrix,
    Bitmap,
    CompressedRows,
    LowRank,
    NOfM,
    Product,
    Quantised,
    Sparse,
    Sum,
    Transposed,
    WholeRows,
)
from lowrank_theory.problems import Observed

SHAPES = [(12, 8), (13, 7), (1, 1), (1, 9), (9, 1), (40, 3), (4, 300)]


def packed(count: int, bits: int) -> int:
    return math.ceil(count * bits / 8)


def predicted(given: Any) -> tuple[int, int]:
    """Bytes and ideal bits from sides, ranks, bits and counts alone."""
    *_, inputs, outputs = given.shape
    entries, itemsize = inputs * outputs, np.dtype(given.dtype).itemsize
    if isinstance(given, LowRank):
        numbers = given.rank * (inputs + outputs)
        return itemsize * numbers, 8 * itemsize * numbers
    if isinstance(given, Sum | Product):
        parts = given.parts if isinstance(given, Sum) else (given.left, given.right)
        each = [predicted(part) for part in parts]
        return sum(held for held, _ in each), sum(ideal for _, ideal in each)
    if isinstance(given, Transposed):
        return predicted(given.matrix)
    if isinstance(given, Quantised):
        sides = [inputs, outputs]
        if given.axis is None:
            sides = [1, 1]
        else:
            sides[given.axis] = math.ceil(sides[given.axis] / (given.group or sides[given.axis]))
        floats = math.prod(sides) * (1 if given.zeros is None else 2)
        floats += 0 if given.input_scales is None else inputs
        assert given.order is None
        held = packed(entries, given.bits) + itemsize * floats
        return held, given.bits * entries + 8 * itemsize * floats
    assert isinstance(given, Sparse)
    pattern = given.pattern
    if isinstance(given.values, Quantised):
        count, (held, ideal) = given.values.shape[-2], predicted(given.values)
    else:
        count = given.values.shape[-1]
        held, ideal = itemsize * count, 8 * itemsize * count
    if isinstance(pattern, Bitmap):
        return held + packed(entries, 1), ideal + entries
    if isinstance(pattern, WholeRows):
        assert count % outputs == 0
        return held + packed(inputs, 1), ideal + inputs
    if isinstance(pattern, NOfM):
        assert count == entries // pattern.group * pattern.kept
        bits = max(1, math.ceil(math.log2(pattern.group)))
        return held + packed(count, bits), ideal + bits * count
    assert isinstance(pattern, CompressedRows)
    width = next(width for width in (1, 2, 4) if outputs <= 256**width)
    bits = max(1, math.ceil(math.log2(outputs)))
    starts = 4 * (inputs + 1)
    return held + width * count + starts, ideal + bits * count + 8 * starts


@pytest.mark.thinned(31)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LADDERS)
def test_what_is_predicted_is_what_is_held(name, shape):
    random = np.random.default_rng(0)
    dtype = (np.float32, np.float16)[SHAPES.index(shape) % 2]
    weights = random.standard_normal(shape).astype(dtype)
    rows = random.standard_normal((20, shape[0])).astype(dtype)
    sweep = LADDERS[name].sweep(Observed(weights=weights, activations=rows))
    for size, storage in enumerate(sweep.storages):
        made = sweep.at(size).approximation
        held = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(made))
        if isinstance(made, AbstractMatrix):
            assert (storage.bytes, storage.ideal_bits) == predicted(made)
        assert storage.bytes == held
        assert made.dtype == dtype


def test_places_cost_what_the_table_says():
    """A bitmap costs a bit for each entry; columns of a byte cost less below one in eight; 2 of 4
    costs 1 bit for each entry.
    """
    weights = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    entries = weights.size
    for share in (0.05, 0.1, 0.2, 0.5):
        mask = np.abs(weights) >= np.quantile(np.abs(weights), 1 - share)
        kept = int(mask.sum())
        bitmap, rows = (Sparse.of(weights, mask, kind) for kind in (Bitmap, CompressedRows))
        assert bitmap.storage.ideal_bits == 32 * kept + entries
        assert rows.storage.ideal_bits == (32 + 8) * kept + 32 * 257
        starts = 32 * 257 / entries  # bits for each entry
        assert (bitmap.storage.bytes < rows.storage.bytes) == (kept / entries > (1 - starts) / 8)
    assert Sparse.n_of_m(weights, 2, 4).storage.ideal_bits == 32 * entries // 2 + entries
