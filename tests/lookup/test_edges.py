"""Whole tables on what real layers hold: dead and constant inputs, ties, few rows, short floats."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lowrank_theory.approximations import Table
from lowrank_theory.lookup import (
    Correlated,
    LookUp,
    Rectified,
    Rotated,
    export_table,
    import_table,
    look_up,
)
from tolerance import assert_close

pytestmark = pytest.mark.thinned(3)

INPUTS, OUTPUTS = 8, 3
DTYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16}
DTYPES["bfloat16"] = ml_dtypes.bfloat16
METHODS = {
    "ours": LookUp(),
    "clustered": LookUp(order=Correlated()),
    "rotated": LookUp(order=Rotated(steps=2)),
    "published": LookUp(weighted=False, rounded=False),
    "rectified": LookUp(rounded=False, through=Rectified((0.1,) * OUTPUTS)),
}


def hard(samples: int) -> np.ndarray:
    """A constant input, a dead ReLU, a rectified one, few values, both zeros, two that agree."""
    random = np.random.default_rng(samples)
    rows = random.standard_normal((samples, INPUTS))
    rows[:, 0], rows[:, 1] = 0.75, 0.0
    rows[:, 2] = np.maximum(rows[:, 2], 0)
    rows[:, 3] = random.integers(-1, 2, samples)
    rows[:, 4] = random.choice([0.0, -0.0], samples)
    rows[:, 5] = rows[:, 6]
    return rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_tables_of_hard_rows_are_finite_and_err_less_than_nothing(tmp_path, name: str, dtype: str):
    """Of 100 rows, fewer than 16 for each of 8 codebooks; one codebook for each input."""
    rows = hard(100).astype(DTYPES[dtype])
    weights = np.random.default_rng(1).standard_normal((INPUTS, OUTPUTS)).astype(DTYPES[dtype])
    outputs = rows.astype(float) @ weights.astype(float)
    away = np.linalg.norm(outputs - outputs.mean(axis=0))
    for codebooks in (1, 8):
        table = look_up(rows, weights, codebooks, method=METHODS[name])
        assert table.dtype == DTYPES[dtype]
        found = np.asarray(table.apply(rows), float)
        assert np.isfinite(found).all()
        if name != "rectified":
            assert np.linalg.norm(found - outputs) < (0.9 if codebooks == 1 else 0.5) * away
        export_table(tmp_path / "table.npz", table)
        again = import_table(tmp_path / "table.npz")
        np.testing.assert_array_equal(again.codes(rows), table.codes(rows))


def test_one_row_one_input_and_nothing_but_constants_are_exact():
    weights = np.array([[2.0, -1.0, 0.5]])
    for rows in (np.array([[3.0]]), np.full((20, 1), -7.0), np.zeros((5, 1))):
        one = np.repeat(rows[:1], 4, axis=0)
        for rounded in (False, True):
            table = look_up(rows, weights, 1, method=LookUp(rounded=rounded))
            assert_close(table.apply(one), one @ weights, scale=1)


def test_codes_that_no_row_has_found_have_entries_when_one_comes():
    """Rows of two values grow two leaves; a third value finds one of these, or what is above."""
    rows = np.array([[0.0], [0.0], [4.0]])
    table: Any = look_up(rows, np.eye(1), 1, method=LookUp(rounded=False, ridge=0.0))
    assert isinstance(table, Table)
    assert np.isfinite(np.asarray(table.entries)).all()
    assert np.ptp(np.asarray(table.entries)) == pytest.approx(4)
    found = np.asarray(table.apply(np.array([[-9.0], [1.9], [2.0], [9.0]])))[:, 0]
    np.testing.assert_allclose(found, [0, 0, 4, 4], atol=1e-12)
