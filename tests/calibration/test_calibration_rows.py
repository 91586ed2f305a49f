"""The sample of rows that a calibration keeps: one for a set of rows, however they came."""

import collections
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from lowrank_theory.calibration import (
    Calibration,
    RowSample,
    TriangularCalibration,
    calibrate,
    load_calibration,
)
from lowrank_theory.calibration._row_sample import SIZE
from tolerance import assert_close

RANDOM = np.random.default_rng(0)
INPUTS = 5
MANY = RANDOM.standard_normal((3 * SIZE, INPUTS)).astype(np.float32)
MANY[::7] = MANY[:40].repeat(44, axis=0)[: len(MANY[::7])]
MANY[5:900:5] = 0
ROWS = MANY[:40]


def kept(rows) -> tuple[list[float], list[int]]:
    """The largest hashes of the rows, and how often each comes, counted one by one."""
    counts = collections.Counter(RowSample.hashes_of(rows).tolist())
    del counts[0.0]
    largest = sorted(counts, reverse=True)[:SIZE]
    return largest, [counts[number] for number in largest]


def assert_of(sample: RowSample | None, rows) -> None:
    assert sample is not None
    for found, wanted in zip((sample.hashes, sample.counts), kept(rows), strict=True):
        assert np.asarray(found).dtype == np.float64
        assert np.asarray(found).tolist() == wanted + [0.0] * (SIZE - len(wanted))


def test_it_is_that_of_all_rows_in_any_order_and_cut():
    assert len(kept(MANY)[0]) == SIZE < len(np.unique(MANY, axis=0))
    assert max(kept(MANY)[1]) > 20
    empty = Calibration.empty(INPUTS)
    assert_of(empty.update(MANY).sample, MANY)
    shuffled = RANDOM.permutation(MANY)
    parts = [empty.update(part) for part in np.split(shuffled, 4)]
    left, right = parts[0].merge(parts[3]), parts[2].merge(parts[1])
    assert_of(left.merge(right).sample, MANY)
    assert_of(right.merge(left).sample, MANY)
    assert_of(right.merge(empty).sample, np.concatenate(np.split(shuffled, 4)[1:3]))
    assert_of(calibrate(np.array_split(shuffled, [1, 30, 5000, 11_000]), empty).sample, MANY)


def test_every_kind_keeps_it_under_transformations_and_with_compressed_rows():
    other = ROWS + 1
    seen = TriangularCalibration.empty(INPUTS, compressed=True).update(ROWS, other)
    assert_of(seen.sample, ROWS)
    assert_of(seen.moments().sample, ROWS)
    mapped = jax.jit(jax.vmap(lambda rows: Calibration.empty(INPUTS).update(rows).sample))(
        ROWS.reshape(4, 10, INPUTS)
    )
    for number, rows in enumerate(ROWS.reshape(4, 10, INPUTS)):
        assert_of(jax.tree.map(lambda leaf, i=number: leaf[i], mapped), rows)


@pytest.mark.parametrize("scale", [2.0**-1000, 1.0, 2.0**1000])
def test_neither_dtype_nor_layout_changes_a_hash(scale):
    coarse = jnp.asarray(ROWS, jnp.bfloat16)
    short = [coarse, coarse.astype(jnp.float32), np.asarray(coarse).astype(float)]
    fine = np.random.default_rng(1).standard_normal((40, INPUTS))
    for same in (
        short,
        [ROWS, np.asfortranarray(ROWS), jnp.asarray(ROWS), ROWS.astype(float)],
        [fine, fine.astype(np.float32)],
        [scale * fine, scale * fine.astype(np.float32).astype(float)],
        [np.array([[1.0, -0.0, 2.0]]), np.array([[1.0, 0.0, 2.0]])],
    ):
        first, *others = (RowSample.hashes_of(rows).tolist() for rows in same)
        assert others == [first] * len(others)
    assert set(RowSample.hashes_of(np.zeros((2, INPUTS)))) == {0.0}
    assert len(set(RowSample.hashes_of(scale * fine))) == 40


def test_rows_that_differ_have_other_hashes():
    bits = (np.arange(2**16)[:, None] >> np.arange(16) & 1).astype(np.float32)
    for rows in (bits, 2 * bits - 1):
        hashes = np.unique(RowSample.hashes_of(rows))
        assert len(hashes) == 2**16
        below = np.searchsorted(hashes, np.arange(1, 8) * 2.0**48) / 2**16
        assert np.abs(below - np.arange(1, 8) / 8).max() < 0.01  # as of uniform numbers
    row = ROWS[1].astype(float)
    again = [row, row[::-1], -row, row * [1, -1, 1, -1, 1], row * (1 + 2.0**-23), np.abs(row)]
    assert len(set(RowSample.hashes_of(np.array(again)))) == len(again)


def test_what_float32_has_rounded_is_not_taken_for_hashes():
    sample = Calibration.empty(INPUTS).update(ROWS).sample
    assert sample is not None and sample.intact
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), sample)
    assert not rounded.intact
    assert not jax.tree.map(lambda leaf: leaf.astype(float), rounded).intact


def test_a_file_from_before_there_were_samples_and_sizes(tmp_path):
    Calibration.empty(INPUTS).update(ROWS).save(tmp_path / "new")
    with safe_open(tmp_path / "new", framework="numpy") as file:
        header = json.loads(file.metadata()["calibration"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["sha256"], header["rows"]
    older = {name: arrays[name] for name in arrays if not name.startswith(("sample.", "sizes"))}
    assert set(older) == {"count", "mean", "scatter"}
    save_file(older, tmp_path / "old", {"calibration": json.dumps(header)})
    new = load_calibration(tmp_path / "new")
    with pytest.warns(UserWarning, match="without a digest"):
        old = load_calibration(tmp_path / "old")
    assert_of(new.rows_seen, ROWS)
    np.testing.assert_array_equal(old.gram(), new.gram())
    for unknown in (old, old.update(ROWS), old.merge(new), new.merge(old)):
        assert unknown.rows_seen is unknown.absolute_mean is None


# --- rows that are kept, and mean sizes -----------------------------------------------------------


def rows_of(seen) -> RowSample:
    sample = seen.rows_seen
    assert sample is not None and sample.rows is not None
    return sample


@pytest.mark.parametrize("kind", [Calibration, TriangularCalibration])
def test_rows_that_are_kept_are_those_of_the_hashes(kind, tmp_path):
    """However they are cut into batches and merged; those that came with them stay beside them."""
    rows = MANY  # more than are kept
    others = rows / 2 + 1
    empty = kind.empty(INPUTS, compressed=True, rows=True)
    half = len(rows) // 2
    whole = empty.update(rows, others)
    one, other = (
        empty.update(rows[part], others[part]) for part in (slice(half), slice(half, None))
    )
    backwards = empty.update(rows[::-1], others[::-1])
    whole.save(tmp_path / "kept")
    for seen in (whole, one.merge(other), backwards, load_calibration(tmp_path / "kept")):
        sample = rows_of(seen)
        hashes = np.asarray(sample.hashes)
        kept = np.asarray(sample.rows)[hashes > 0]
        np.testing.assert_array_equal(RowSample.hashes_of(kept), hashes[hashes > 0])
        beside = kept.astype(np.float32) / 2 + 1
        np.testing.assert_array_equal(np.asarray(sample.compressed)[hashes > 0], beside)
        assert not np.asarray(sample.rows)[hashes == 0].any()
        np.testing.assert_array_equal(hashes, np.asarray(rows_of(whole).hashes))
    plain = kind.empty(INPUTS, compressed=True).update(rows, others)
    assert plain.rows_seen is not None and plain.rows_seen.rows is None
    np.testing.assert_array_equal(plain.rows_seen.counts, rows_of(whole).counts)


@pytest.mark.parametrize("power", [-300, 0, 300])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [Calibration, TriangularCalibration])
def test_mean_sizes_are_those_of_what_the_layer_sees(kind, compressed, power):
    rows = np.ldexp(ROWS.astype(float), power)
    seen = rows / 2 + np.ldexp(1.0, power) if compressed else rows
    empty, half = kind.empty(INPUTS, compressed=compressed), len(rows) // 2

    def updated(start, part):
        return start.update(rows[part], seen[part] if compressed else None)

    first, last = slice(half), slice(half, None)
    one, other = (updated(empty, part) for part in (first, last))
    for found in (one.merge(other), updated(one, last), one.merge(other).moments()):
        assert_close(found.absolute_mean, np.abs(seen).mean(axis=0))
