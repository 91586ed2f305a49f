"""Rounding to the nearest level, against formulas and slow loops in NumPy."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_theory.approximations import Quantised
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import RoundToNearest, round_to_nearest
from lowrank_theory.strategies import seeds
from lowrank_theory.theorems.rounding import RoundedLayer, rounding

pytestmark = pytest.mark.thinned(3)

RANDOM = np.random.default_rng(0)
GAUSSIAN = RANDOM.standard_normal((4096, 3))


def levels(found: Quantised) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero of each entry, group by group."""
    inputs, outputs = found.shape
    scales = np.asarray(found.scales, float)
    middle = 0.5 if found.bits == 1 else 2.0 ** (found.bits - 1)
    zeros = np.full_like(scales, middle) if found.zeros is None else np.asarray(found.zeros, float)
    group = found.group or (inputs, outputs)[found.axis or 0]
    rows, columns = np.indices((inputs, outputs))
    where = (rows // group, columns) if found.axis == 0 else (rows, columns // group)
    return scales[where], zeros[where]


GRIDS = [
    {"bits": 1},
    {"bits": 2},
    {"bits": 3, "group": 5},
    {"bits": 4, "group": 7, "axis": 1},
    {"bits": 8, "symmetric": False},
    {"bits": 1, "symmetric": False, "group": 5},
    {"bits": 3, "clipped": False},
    {"bits": 4, "clipped": False, "symmetric": False, "group": 3},
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_each_entry_is_at_the_nearest_level(grid, dtype):
    weights = RANDOM.standard_normal((12, 9)).astype(dtype) ** 3
    found = round_to_nearest(weights, **grid)
    assert found.dtype == dtype
    scale, zero = levels(found)
    made = (np.asarray(found.unpacked(), float) - zero) * scale
    for code in range(2**found.bits):
        other = np.abs((code - zero) * scale - weights)
        assert np.all(np.abs(made - weights) <= other + 1e-12 * np.abs(scale))
    np.testing.assert_allclose(np.asarray(found.materialise(), float), made, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_fraction_of_the_largest_scale_loses_less(bits):
    for column in (GAUSSIAN[:, :1], RANDOM.standard_t(3, (300, 1)), RANDOM.random((50, 1))):
        lost = np.sum((np.asarray(round_to_nearest(column, bits).materialise()) - column) ** 2)
        top = np.abs(column).max() / (2 ** (bits - 1) - 1)
        for share in 2.0 ** (-np.arange(57) / 8):
            codes = np.clip(
                np.round(column / (share * top)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            )
            assert lost <= np.sum((column - share * top * codes) ** 2) * (1 + 1e-9)


def test_one_bit_keeps_signs_and_the_mean_size():
    weights = GAUSSIAN[:100]
    found = np.asarray(round_to_nearest(weights, 1).materialise())
    np.testing.assert_allclose(found, np.sign(weights) * np.abs(weights).mean(axis=0), rtol=1e-6)
    lost = np.sum((weights - found) ** 2, axis=0)
    formula = np.sum(weights**2, axis=0) - np.sum(np.abs(weights), axis=0) ** 2 / len(weights)
    np.testing.assert_allclose(lost, formula, rtol=1e-6)


@pytest.mark.parametrize(
    ("bits", "clipped", "share"),
    [(1, True, 0.363), (2, True, 0.149), (3, True, 0.0406), (4, True, 0.0119), (2, False, 0.826),
     (3, False, 0.135), (4, False, 0.0249)],
)  # fmt: skip
def test_gaussian_weights_lose_what_theory_says(bits, clipped, share):
    """Of the best zero-centred uniform grid; one that reaches the largest of 4096 loses more."""
    found = np.asarray(round_to_nearest(GAUSSIAN, bits, clipped=clipped).materialise())
    lost = np.sum((GAUSSIAN - found) ** 2) / np.sum(GAUSSIAN**2)
    assert lost == pytest.approx(share, rel=0.05 if clipped else 0.25)


@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"clipped": False}], ids=str)
def test_one_grid_for_all_is_that_of_the_entries_in_one_column(options):
    weights = RANDOM.standard_normal((12, 9)).astype(np.float32)
    found = round_to_nearest(weights, 3, axis=None, **options)
    column = round_to_nearest(weights.reshape(-1, 1), 3, **options)
    assert found.scales.shape == (1, 1)
    np.testing.assert_array_equal(found.materialise(), column.materialise().reshape(12, 9))
    assert found.storage == column.storage


def test_one_grid_has_no_groups():
    with pytest.raises(ValueError, match="`group` is 4, but with `axis=None` all entries share"):
        RoundToNearest(group=4, axis=None)


@pytest.mark.parametrize("grid", GRIDS[:5], ids=str)
def test_programs_and_stacks_round_as_single_calls(grid):
    stack = RANDOM.standard_normal((3, 12, 9)).astype(np.float32)
    mapped = jax.vmap(lambda w: round_to_nearest(w, **grid))(stack)
    for k, weights in enumerate(stack):
        one, again = (
            round_to_nearest(weights, **grid),
            jax.jit(lambda w: round_to_nearest(w, **grid))(weights),
        )
        for leaf, other, of_stack in zip(*map(jax.tree.leaves, (one, again, mapped)), strict=True):
            np.testing.assert_array_equal(leaf, other)
            np.testing.assert_array_equal(leaf, of_stack[k])


def test_more_bits_lose_less_and_take_no_more_than_they_say():
    sweep = RoundToNearest(group=8).sweep(Observed(weights=GAUSSIAN[:64]))
    assert np.all(np.diff(sweep.squared_errors) < 0)
    for bits, storage in enumerate(sweep.storages, start=1):
        assert storage.bytes == 64 * 3 * bits // 8 + 8 * 8 * 3
        assert storage.ideal_bits == 64 * 3 * bits + 64 * 8 * 3
    assert [sweep.name(k) for k in (0, 3)] == ["1 bit, groups of 8", "4 bits, groups of 8"]


# --- bounds --------------------------------------------------------------------------------------


@pytest.mark.slow
@given(seeds(), st.sampled_from([2, 5]), st.sampled_from([None, 0, 1]), st.floats(0.5, 8.0))
def test_no_clipped_grid_loses_more_than_the_theorem_allows(seed, bits, axis, tail):
    """`rounding.absmax`, also of one grid for all, which is that of the entries in one column."""
    weights = np.random.default_rng(seed).standard_normal((8, 6))
    weights = np.sign(weights) * np.abs(weights) ** tail
    found = np.asarray(round_to_nearest(weights, bits, axis=axis).materialise(), float)
    layer = RoundedLayer(weights.reshape(-1, 1) if axis is None else weights, bits, axis=axis or 0)
    bound = float(rounding.absmax.bound(layer).value)
    assert np.sum((weights - found) ** 2) <= bound * (1 + 1e-12)
