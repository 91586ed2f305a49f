"""Tables in files for others: there and back, and read in plain NumPy."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lowrank_theory.approximations import RoundedTable, Table
from lowrank_theory.lookup import LookUp, export_table, import_table, in_bytes, look_up
from tolerance import assert_close

RANDOM = np.random.default_rng(2)
ROWS = RANDOM.standard_normal((200, 10))
WEIGHTS = RANDOM.standard_normal((10, 4))


def made(dtype: Any, rounded: bool) -> Any:
    method = LookUp(levels=3, rounded=rounded)
    return look_up(ROWS.astype(dtype), WEIGHTS.astype(dtype), 3, method=method)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rounded", [False, True])
def test_a_table_comes_back(tmp_path: Path, dtype: Any, rounded: bool):
    table = made(dtype, rounded)
    export_table(tmp_path / "table.npz", table)
    again = import_table(tmp_path / "table.npz")
    assert type(again) is type(table) and again.inputs == table.inputs
    if dtype is ml_dtypes.bfloat16:
        table = table.map_floats(lambda leaf: np.asarray(leaf, np.float32))
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(table), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    rows = ROWS.astype(table.dtype)
    np.testing.assert_array_equal(again.apply(rows), table.apply(rows))


def test_of_jax_arrays_and_one_step_for_all(tmp_path: Path):
    table = in_bytes(made(np.float32, False), per_output=False)
    export_table(tmp_path / "table.npz", jax.tree.map(jnp.asarray, table))
    again = import_table(tmp_path / "table.npz")
    assert isinstance(again, RoundedTable) and again.step.shape == (1,)
    np.testing.assert_array_equal(again.apply(ROWS), table.apply(ROWS))


@pytest.mark.parametrize("rounded", [False, True])
def test_the_file_is_read_without_this_library(tmp_path: Path, rounded: bool):
    table = made(np.float32, rounded)
    export_table(tmp_path / "table.npz", table)

    file = np.load(tmp_path / "table.npz", allow_pickle=False)
    splits, thresholds, entries = (file[name] for name in ("splits", "thresholds", "entries"))
    codebooks, levels = splits.shape
    outputs = np.zeros((len(ROWS), entries.shape[2]), np.int32 if rounded else np.float32)
    for k, row in enumerate(ROWS.astype(np.float32)):
        for c in range(codebooks):
            code = 0
            for level in range(levels):
                right = row[splits[c, level]] >= thresholds[c, 2**level - 1 + code]
                code = 2 * code + int(right)
            outputs[k] += entries[c, code]
    if rounded:
        outputs = file["shift"] + file["step"] * outputs

    assert file["layout"] == 1 and file["inputs"] == 10
    assert_close(outputs, np.asarray(table.apply(ROWS.astype(np.float32))), scale=10)


def test_the_members_are_as_the_layout_says(tmp_path: Path):
    export_table(tmp_path / "table.npz", made(np.float32, True))
    with np.load(tmp_path / "table.npz") as file:
        kinds = {name: (file[name].dtype.str, file[name].shape) for name in file.files}
    assert kinds == {
        "layout": ("<i8", ()),
        "inputs": ("<i8", ()),
        "splits": ("<u2", (3, 3)),
        "thresholds": ("<f4", (3, 7)),
        "entries": ("|u1", (3, 8, 4)),
        "step": ("<f4", (4,)),
        "shift": ("<f4", (4,)),
    }
    wide = Table(np.zeros((1, 1), np.int64), np.ones((1, 1)), np.ones((1, 2, 1)), inputs=2**17)
    export_table(tmp_path / "table.npz", wide)
    with np.load(tmp_path / "table.npz") as file:
        assert file["splits"].dtype.str == "<i4"


def test_says_what_is_no_table(tmp_path: Path):
    path = tmp_path / "file.npz"
    stack = jax.tree.map(lambda leaf: np.asarray(leaf)[None], made(np.float32, True))
    with pytest.raises(ValueError, match="not a stack"):
        export_table(path, stack)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"file\.npz"):
        import_table(path)
    np.savez(path, layout=2, inputs=3, splits=np.zeros((1, 1)))
    with pytest.raises(ValueError, match=r"layout 2 with \['splits'\]"):
        import_table(path)
    np.savez(path, splits=np.zeros((1, 1)))
    with pytest.raises(ValueError, match="no table that `export_table` has written"):
        import_table(path)
    with pytest.raises(FileNotFoundError):
        import_table(tmp_path / "missing.npz")
