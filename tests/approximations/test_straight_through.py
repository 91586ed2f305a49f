"""Thresholds that are trained: the table forward, a soft table in loops backward."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowrank_theory.approximations import Table
from lowrank_theory.lookup import AsTheyCome, LookUp, in_bytes, look_up
from tolerance import assert_close

RANDOM = np.random.default_rng(5)
ROWS = RANDOM.standard_normal((60, 6)) @ RANDOM.standard_normal((6, 6))
WEIGHTS = RANDOM.standard_normal((6, 3))
METHOD = LookUp(levels=2, order=AsTheyCome(), weighted=False, rounded=False)


def table(dtype: Any = np.float64) -> Table:
    found = look_up(ROWS.astype(dtype), WEIGHTS.astype(dtype), 2, method=METHOD)
    assert isinstance(found, Table)
    return found


def soft(splits: Any, thresholds: Any, entries: Any, rows: Any, temperature: float) -> Any:
    """Code by code, each the product along its path."""
    total = np.zeros((len(rows), entries.shape[-1]))
    for which, limits, of_codes in zip(splits, thresholds, entries, strict=True):
        for code, entry in enumerate(of_codes):
            share, node = np.ones(len(rows)), 0
            for level, place in enumerate(which):
                right = code >> (len(which) - 1 - level) & 1
                distance = (rows[:, place] - limits[node]) * (1 if right else -1)
                share = share / (1 + np.exp(-distance / temperature))
                node = 2 * node + 1 + right
            total += share[:, None] * entry
    return total


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 100.0])
def test_forward_it_is_the_table(dtype, temperature):
    made, rows = table(dtype), ROWS.astype(dtype)
    rows[0] = made.thresholds[0, 0]
    rows[1], rows[2], rows[3] = 0.0, -0.0, np.inf
    rows[4] = np.nan
    wanted = np.asarray(made.apply(rows))
    np.testing.assert_array_equal(made.straight_through(rows, temperature=temperature), wanted)
    traced = jax.jit(lambda table, x, t: table.straight_through(x, temperature=t))
    np.testing.assert_array_equal(traced(made, rows, temperature), wanted)
    assert np.isnan(wanted[4]).all() and np.isfinite(wanted[:4]).all()


def test_slopes_are_those_of_the_table_in_entries_and_of_the_soft_one_elsewhere():
    given = RANDOM.standard_normal((60, 3))
    with jax.enable_x64(True):
        made = jax.tree.map(jnp.asarray, table())

        def value(table: Table, rows: Any) -> Any:
            return jnp.sum(table.straight_through(rows, temperature=0.7) * given)

        of_table, of_rows = eqx.filter_grad(lambda both: value(*both))((made, jnp.asarray(ROWS)))
        plain = eqx.filter_grad(lambda table: jnp.sum(table.apply(ROWS) * given))(made)
    np.testing.assert_array_equal(of_table.entries, plain.entries)
    indicators = (np.asarray(made.codes(ROWS))[:, :, None] == np.arange(4)).reshape(60, -1)
    assert_close(of_table.entries.reshape(8, 3), indicators.T.astype(float) @ given, scale=4)
    arrays: list[Any] = list(map(np.asarray, (made.splits, made.thresholds, made.entries, ROWS)))

    def by_hand(place: int, at: Any, by: float) -> float:
        moved = [each.copy() for each in arrays]
        moved[place][at] += by
        splits, thresholds, entries, rows = moved
        return float(np.sum(soft(splits, thresholds, entries, rows, 0.7) * given))

    step = 1e-5
    for place, slope in ((1, of_table.thresholds), (3, of_rows)):
        for at in np.ndindex(*arrays[place][:2].shape):
            change = (by_hand(place, at, step) - by_hand(place, at, -step)) / (2 * step)
            assert float(slope[at]) == pytest.approx(change, rel=1e-5, abs=1e-6)  # differences


def test_cold_the_soft_table_is_the_table():
    made = table()
    arrays = made.splits, made.thresholds, made.entries
    with np.errstate(over="ignore"):
        assert_close(soft(*arrays, ROWS, 1e-9), made.apply(ROWS), scale=1)


def test_training_finds_a_threshold_and_leaves_the_places():
    """A step at 0.7, and a tree that has it at 0."""
    rows = np.linspace(-2, 2, 201, dtype=np.float32)[:, None]
    wanted = (rows >= 0.7).astype(np.float32)
    arrays = np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32), np.eye(2)[None, :, 1:]
    made = Table(*arrays[:2], arrays[2].astype(np.float32), inputs=1)
    floats, rest = eqx.partition(jax.tree.map(jnp.asarray, made), eqx.is_inexact_array)
    optimiser = optax.sgd(0.1)

    def loss(floats: Any) -> Any:
        found = eqx.combine(floats, rest).straight_through(rows, temperature=0.3)
        return jnp.mean((found - wanted) ** 2)

    @jax.jit
    def step(floats: Any, state: Any) -> Any:
        updates, state = optimiser.update(jax.grad(loss)(floats), state)
        return optax.apply_updates(floats, updates), state

    state = optimiser.init(floats)
    for _ in range(300):
        floats, state = step(floats, state)
    trained = eqx.combine(floats, rest)
    assert float(trained.thresholds[0, 0]) == pytest.approx(0.7, abs=0.1)  # an iteration that stops
    assert loss(floats) < 0.1 * np.mean((np.asarray(made.apply(rows)) - wanted) ** 2)
    np.testing.assert_array_equal(trained.splits, made.splits)
    assert in_bytes(trained).shape == (1, 1)


@pytest.mark.slow
def test_a_stack_is_its_tables_one_by_one():
    made = table(np.float32)
    both = jax.tree.map(lambda a: np.stack([a, a[::-1]]), made)
    rows = np.stack([ROWS, -ROWS]).astype(np.float32)
    found = both.straight_through(rows, temperature=1.0)
    np.testing.assert_array_equal(found, both.apply(rows))


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="`temperature` must be"):
        table().straight_through(ROWS, temperature=0.0)
