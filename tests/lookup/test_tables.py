"""Tables as they are run: against a walk in Python on hostile rows, exact sums, bytes."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_theory.approximations import RoundedTable, Storage, Table
from lowrank_theory.lookup import averaged_sums, grown, in_bytes, look_up
from lowrank_theory.lookup.orders import subspaces
from tolerance import approx, assert_close, rounding

pytestmark = pytest.mark.thinned(3)

INPUTS, OUTPUTS, CODEBOOKS, LEVELS = 9, 5, 3, 4
DTYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16}
DTYPES["bfloat16"] = ml_dtypes.bfloat16


def hostile(seed: int, count: int, dtype: Any) -> np.ndarray:
    """A constant column, dead and rectified ones, few values, both zeros, subnormal and huge
    numbers, infinities: all as this dtype holds them.
    """
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count, INPUTS))
    rows[:, 0] = 0.7
    rows[:, 1] = 0.0
    rows[:, 2] = np.maximum(rows[:, 2], 0)
    rows[:, 3] = random.integers(-1, 2, count)
    rows[:, 4] = random.choice([0.0, -0.0, 1.0, -1.0], count)
    rows[:, 5] *= 2.0 ** random.integers(-8, 8, count)
    least, most = (float(getattr(jnp.finfo(dtype), name)) for name in ("tiny", "max"))
    rows[:, 6] = random.choice([least, -least, least / 2, -least / 2, 0.0], count)
    rows[:, 7] = random.choice([most, -most, 1.0], count)
    return rows.astype(dtype)


def walked(splits: np.ndarray, thresholds: np.ndarray, row: np.ndarray) -> list[int]:
    """Codebook after codebook, in Python's floats."""
    codes = []
    for which, limits in zip(splits, thresholds, strict=True):
        node = 0
        for place in which:
            node = 2 * node + 1 + int(float(row[place]) >= float(limits[node]))
        codes.append(node - len(limits))
    return codes


@pytest.mark.parametrize("name", DTYPES)
def test_codes_are_those_of_a_walk_in_python(name):
    """3,000 rows of each dtype, a third of which grew the trees, and rows of thresholds."""
    dtype = DTYPES[name]
    rows = hostile(0, 3000, dtype)
    wide = np.clip(rows.astype(float), -1e150, 1e150)
    trees = grown(wide[:1000], subspaces(np.arange(INPUTS), CODEBOOKS), dtype=dtype)
    entries = np.zeros((CODEBOOKS, 16, 1), dtype)
    table = Table(trees.splits, trees.thresholds, entries, inputs=INPUTS)
    met = np.repeat(trees.thresholds.reshape(-1, 1), INPUTS, axis=1).astype(dtype)
    extreme = np.full((2, INPUTS), np.inf, dtype) * np.array([[1], [-1]], dtype)
    rows = np.concatenate([rows, met, extreme])
    wanted = [walked(trees.splits, trees.thresholds, row) for row in rows]
    found = np.asarray(table.codes(rows))
    np.testing.assert_array_equal(found, wanted)
    assert found.min() >= 0 and found.max() < 16
    if name != "float64":  # which needs the flag under a transformation
        np.testing.assert_array_equal(jax.jit(lambda table, x: table.codes(x))(table, rows), wanted)
    np.testing.assert_array_equal(table.codes(rows[:1000]), trees.codes)


@pytest.mark.parametrize("name", DTYPES)
def test_subnormal_numbers_are_compared_as_they_are(name):
    """Each of a few with each, both zeros included; XLA would take them for zeros on a CPU."""
    dtype = DTYPES[name]
    least = float(jnp.finfo(dtype).tiny)
    values = np.array([-least, -least / 2, -0.0, 0.0, least / 4, least / 2, least]).astype(dtype)
    splits, limits = np.zeros((len(values), 1), np.uint8), values[:, None]
    table = Table(splits, limits, np.zeros((len(values), 2, 1), dtype), inputs=1)
    wanted = [[float(value) >= float(limit) for limit in values] for value in values]
    np.testing.assert_array_equal(table.codes(values[:, None]), np.array(wanted, int))


def small(stack: tuple[int, ...] = (), seed: int = 0, codebooks: int = CODEBOOKS) -> Table:
    random = np.random.default_rng(seed)
    shape = *stack, codebooks
    return Table(
        random.integers(0, INPUTS, (*shape, LEVELS)).astype(np.uint16),
        random.standard_normal((*shape, 15)).astype(np.float32),
        random.standard_normal((*shape, 16, OUTPUTS)).astype(np.float32),
        inputs=INPUTS,
    )


ROWS = np.random.default_rng(1).standard_normal((40, INPUTS)).astype(np.float32)


def kinds() -> list[Any]:
    table = small()
    return [table, in_bytes(table), in_bytes(table, per_output=False)]


@pytest.mark.parametrize("table", kinds(), ids=["floats", "bytes", "bytes, one step"])
def test_what_is_not_known_is_said(table):
    """NaN where it is compared, and nothing where it is not."""
    looked_at = sorted(set(table.splits.ravel().tolist()))
    rows = ROWS.copy()
    rows[0, looked_at[0]] = np.nan
    unused = [k for k in range(INPUTS) if k not in looked_at]
    rows[1, unused] = np.nan
    codes, outputs = np.asarray(table.codes(rows)), np.asarray(table.apply(rows))
    assert -1 in codes[0] and codes[1:].min() >= 0
    assert np.isnan(outputs[0]).all() and not np.isnan(outputs[1:]).any()
    np.testing.assert_array_equal(outputs[1:], np.asarray(table.apply(ROWS))[1:])


def indicators(table: Any, rows: np.ndarray) -> np.ndarray:
    codes = np.asarray(table.codes(rows))
    return (codes[:, :, None] == np.arange(16)).reshape(len(rows), -1).astype(float)


def test_outputs_are_the_indicators_times_the_entries():
    table = small()
    flat = np.asarray(table.entries, float).reshape(-1, OUTPUTS)
    assert_close(table.apply(ROWS), indicators(table, ROWS) @ flat, scale=1)
    rounded = in_bytes(table)
    sums = indicators(rounded, ROWS) @ np.asarray(rounded.entries, float).reshape(-1, OUTPUTS)
    wanted = sums * np.asarray(rounded.step, float) + np.asarray(rounded.shift, float)
    assert_close(rounded.apply(ROWS), wanted, scale=1)
    ones = RoundedTable(
        table.splits,
        table.thresholds,
        rounded.entries,
        np.ones(1, np.float32),
        np.zeros(OUTPUTS, np.float32),
        inputs=INPUTS,
    )
    np.testing.assert_array_equal(ones.apply(ROWS), sums)  # whole numbers, without rounding


@pytest.mark.parametrize("which", range(3))
def test_transformations_change_nothing(which):
    table = jax.tree.map(jnp.asarray, kinds()[which])
    once = table.apply(ROWS)

    @jax.jit
    def several(table, rows):
        alone = jax.vmap(lambda row: table.apply(row[None])[0])(rows)
        _, scanned = jax.lax.scan(lambda _, row: (None, table.apply(row[None])[0]), None, rows)
        return table.apply(rows), alone, scanned

    for other in several(table, ROWS):
        np.testing.assert_array_equal(other, once)


def test_the_slope_in_the_entries_is_exact():
    table = jax.tree.map(jnp.asarray, small())
    given = np.random.default_rng(2).standard_normal((len(ROWS), OUTPUTS)).astype(np.float32)
    slope = eqx.filter_grad(lambda table: jnp.sum(table.apply(ROWS) * given))(table)
    wanted = indicators(table, ROWS).T @ given
    assert_close(slope.entries.reshape(-1, OUTPUTS), wanted, scale=4)
    assert not np.asarray(slope.thresholds).any()


@pytest.mark.slow
@given(
    codebooks=st.sampled_from([1, 20]),
    power=st.sampled_from([-60, 0, 60]),
    seed=st.integers(0, 100),
    per_output=st.booleans(),
    power_of_two=st.booleans(),
)
def test_bytes_err_by_half_a_step_for_each_codebook(
    codebooks, power, seed, per_output, power_of_two
):
    table = small(seed=seed, codebooks=codebooks)
    entries = np.asarray(table.entries) * np.logspace(0, 2, OUTPUTS, dtype=np.float32)
    entries[..., 1] = 0.75  # a constant output
    table = Table(table.splits, table.thresholds, np.ldexp(entries, power), inputs=INPUTS)
    options: dict[str, Any] = {"per_output": per_output, "power_of_two": power_of_two}
    rounded = in_bytes(table, **options)
    step = np.asarray(rounded.step, float)
    ranges = np.ptp(entries.astype(float), axis=1)
    widest = ranges.max(axis=0) if per_output else np.ptp(entries.astype(float), axis=(1, 2)).max()
    linear = np.ldexp(widest, power) / 255
    assert np.all(step >= linear * (1 - rounding())) and np.all(step <= 2 * linear * (1 + 1e-6))
    if power_of_two:
        np.testing.assert_array_equal(np.frexp(step[step > 0])[0], 0.5)
    exact = table.map_floats(lambda leaf: np.asarray(leaf, float)).apply(ROWS.astype(float))
    found = rounded.map_floats(lambda leaf: np.asarray(leaf, float)).apply(ROWS.astype(float))
    size = np.ldexp(100.0 * codebooks, power)
    allowed = codebooks * step / 2 * (1 + 1e-6) + rounding(size, dtype=np.float32)
    assert np.all(np.abs(np.asarray(found) - np.asarray(exact)) <= allowed)
    if per_output:
        assert_close(np.asarray(found)[:, 1], np.full(40, 0.75 * codebooks * 2.0**power))


def test_a_constant_table_is_exact():
    table = small()
    constant = Table(
        table.splits, table.thresholds, np.full_like(table.entries, 0.25), inputs=INPUTS
    )
    for per_output in (True, False):
        found = in_bytes(constant, per_output=per_output)
        np.testing.assert_array_equal(found.apply(ROWS), np.full((40, OUTPUTS), 0.75))


# --- averages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("codebooks", [1, 2, 4, 8, 16, 64])
def test_averages_add_what_is_said(codebooks):
    """C log2(U) / 4 in the mean, no less than nothing and no more than U log2(U) / 2 a block."""
    entries = np.random.default_rng(3).integers(0, 256, (40_000, codebooks))
    excess = averaged_sums(entries, unbiased=False) - entries.sum(axis=1)
    block = min(16, codebooks)
    depth = int(np.log2(block))
    assert excess.min() >= 0 and excess.max() <= codebooks * depth / 2
    error = excess.std() / np.sqrt(len(excess))
    assert excess.mean() == pytest.approx(codebooks * depth / 4, abs=4 * error + 1e-12)
    unbiased = averaged_sums(entries) - entries.sum(axis=1)
    np.testing.assert_array_equal(excess - unbiased, codebooks * depth // 4)
    if codebooks == 2:
        assert set(excess.tolist()) == {0, 1}


@pytest.mark.parametrize("codebooks", [3, 12, 24])
def test_averages_need_powers_of_two(codebooks):
    with pytest.raises(ValueError, match=f"multiple of 16 codebooks.*got {codebooks}"):
        averaged_sums(np.zeros((1, codebooks), np.uint8))


# --- what it takes --------------------------------------------------------------------------------


def test_the_ledger_counts_four_comparisons_and_sixteen_bytes():
    table = small(codebooks=7)
    trees = 7 * 15 * 4, 7 * 4 * 2
    assert table.storage == Storage(
        numbers=7 * 16 * OUTPUTS + 7 * 15,
        ideal_bits=32 * (7 * 16 * OUTPUTS + 7 * 15) + 7 * 4 * 4,  # four bits tell nine inputs apart
        bytes=7 * 16 * OUTPUTS * 4 + sum(trees),
        additions=7 * OUTPUTS,
        comparisons=4 * 7,
    )
    rounded = in_bytes(table).storage
    assert rounded.bytes == 7 * 16 * OUTPUTS + sum(trees) + 2 * 4 * OUTPUTS
    assert (rounded.comparisons, rounded.multiply_adds) == (28, OUTPUTS)


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "outputs"), [(512, 100), (64, 256)])
def test_bytes_are_saved_below_a_quarter_of_the_inputs(inputs, outputs):
    """C < D / 4, but for trees and steps; and no more than 4C inputs are looked at."""
    random = np.random.default_rng(4)
    rows, weights = random.standard_normal((64, inputs)), random.standard_normal((inputs, outputs))
    dense = 4 * inputs * outputs
    for codebooks, saves in ((inputs // 4 - inputs // 16, True), (inputs // 4, False)):
        table = look_up(rows.astype(np.float32), weights.astype(np.float32), codebooks)
        assert (table.storage.bytes < dense) == saves
        assert len(set(table.splits.ravel().tolist())) <= 4 * codebooks == table.splits.size
        assert table.entries.nbytes == 16 * codebooks * outputs


MISFITS: list[tuple[Any, str]] = [
    (lambda t: t | {"entries": t["entries"].astype(np.int32)}, "`entries` must be bytes"),
    (lambda t: t | {"entries": t["entries"][:, :8]}, "`thresholds` must be"),
    (lambda t: t | {"splits": t["splits"].astype(float)}, "`splits` must be integers"),
    (lambda t: t | {"step": np.ones(2, np.float32)}, r"`step` must be \(5,\) or \(1,\)"),
    (lambda t: t | {"shift": np.ones(1, np.float32)}, r"`shift` \(5,\); got \(5,\) and \(1,\)"),
    (lambda t: t | {"step": np.ones(5)}, "must be of one dtype"),
    (lambda t: t | {"inputs": 0}, "`inputs` must be an integer >= 1"),
]


@pytest.mark.parametrize(("change", "message"), MISFITS, ids=[m for _, m in MISFITS])
def test_says_what_does_not_fit(change, message):
    given = in_bytes(small())
    names = "splits", "thresholds", "entries", "step", "shift", "inputs"
    with pytest.raises(ValueError, match=message):
        RoundedTable(**change({name: getattr(given, name) for name in names}))


def test_stacks_are_tables_one_by_one():
    table = small((2,))
    rows = np.stack([ROWS, -ROWS])
    for kind in (table, in_bytes(table)):
        found = kind.apply(rows)
        for k in range(2):
            one = jax.tree.map(lambda leaf, k=k: leaf[k], kind)
            assert np.asarray(found)[k] == approx(np.asarray(one.apply(rows[k])))
    for k in range(2):
        alone = in_bytes(jax.tree.map(lambda leaf, k=k: leaf[k], table))
        np.testing.assert_array_equal(alone.entries, np.asarray(in_bytes(table).entries)[k])
