"""What is believed later is what was written: every bit of it, and of this and nothing else."""

import dataclasses
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save

from lowrank_theory import _store, theorems
from lowrank_theory.calibration import Calibration, TriangularCalibration, load_calibration
from lowrank_theory.problems import Setting
from lowrank_theory.studies.pieces import Pieces
from lowrank_theory.verification.point_store import PointStore
from lowrank_theory.verification.sampling import Point, Sample, request

ROWS = np.random.default_rng(0).standard_normal((9, 3))
KINDS = (Calibration, TriangularCalibration)


# --- calibrations: refused ------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_of_a_calibration_is_loaded(kind, compressed, tmp_path):
    file = tmp_path / "file"
    kind.empty(3, compressed=compressed).update(*[ROWS] * (1 + compressed)).save(file)
    content = file.read_bytes()
    # Header, padding, digest and numbers, and here and there of the long sample of rows.
    for place in (*range(0, min(len(content), 4000), 7), *range(4000, len(content), 997)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"alibrate again|has version .* Update"):
            load_calibration(file)
    for length in (*range(0, len(content), len(content) // 50), len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is truncated or no safetensors file"):
            load_calibration(file)


@pytest.mark.parametrize("kind", KINDS)
def test_what_would_be_refused_is_not_written(kind, tmp_path):
    seen = kind.empty(3).update(ROWS)
    seen.save(tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"`mean` of the calibration .* not finite"):
            dataclasses.replace(seen, mean=np.full(3, wrong)).save(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content


def bare(arrays: dict[str, np.ndarray], text: str) -> bytes:
    return save(arrays, {"calibration": text})


def described(text: str, inputs: int) -> bytes:
    return bare({"mean": np.zeros(inputs), "count": np.asarray(3.0)}, text)


_ENTRIES = (
    '{"format": "lowrank_theory.calibration", "version": 1, "kind": "Calibration", "inputs": %s,'
    ' "compressed": false, "count": %s, "batches": %s}'
)
ABSURD = {
    "deep": bare({}, "[" * 100_000),
    "deep header": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "a header of a petabyte": (2**50).to_bytes(8, "little") + b"{}",
    "a header of all": (2**64 - 1).to_bytes(8, "little") + b"{}",
    "no offsets": (11).to_bytes(8, "little") + b'{"a": "bc"}',
    "a null": (4).to_bytes(8, "little") + b"null",
    "a matrix that is not there": described(_ENTRIES % (200_000, "3.0", 1), 200_000),
    "infinitely many batches": described(_ENTRIES % (3, "3.0", "1e999"), 3),
    "half a batch": described(_ENTRIES % (3, "3.0", "0.5"), 3),
    "no number": described(_ENTRIES % (3, '"3"', "[]"), 3),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_headers_are_refused(name, tmp_path):
    (tmp_path / "file").write_bytes(ABSURD[name])
    with pytest.raises(ValueError, match=r"The file .* alibrate again|calibrate again"):
        load_calibration(tmp_path / "file")


# --- points and pieces: computed anew -------------------------------------------------------------

STATEMENT = theorems.best_possible.truncated_svd
POINT = request(STATEMENT, Setting(samples=6, inputs=3, outputs=2, rank=1), 4, jax.random.key(0))


def sample_of(seed: int) -> Sample:
    columns = np.random.default_rng(seed).uniform(size=(3, 3))
    return Sample(STATEMENT.kind.direction, 4, *columns)


def point(folder: Path, which: int, make: Callable[[], Sample] | None) -> Any:
    """What is kept of one of two points; `make` where that is nothing."""
    store = PointStore(folder)
    one = Point(**{**vars(POINT), "label": f"sample {which}"})
    found = store.load(one)
    if found is None and make is not None:
        found = make()
        store.save(one, found)
    names = ("realised", "bound", "allowance")
    return found and [getattr(found, name).tolist() for name in names]


def piece(folder: Path, which: int, make: Callable[[], Sample] | None) -> Any:
    def made() -> Any:
        if make is None:
            raise LookupError
        return make().realised

    try:
        return Pieces(folder, ["network", which]).get("layers", made)["found"]
    except LookupError:
        return None


RESULTS = {"point": point, "piece": piece}
each_result = pytest.mark.parametrize("kept", RESULTS.values(), ids=RESULTS)


@each_result
def test_a_result_that_is_kept_is_not_made_again(kept, tmp_path):
    first, second = (kept(tmp_path, k, lambda k=k: sample_of(k)) for k in range(2))
    assert first != second and len(list(tmp_path.iterdir())) == 2
    assert [kept(tmp_path, k, None) for k in range(2)] == [first, second]


@each_result
def test_no_flipped_bit_and_no_cut_of_a_result_is_believed(kept, tmp_path):
    kept(tmp_path, 0, lambda: sample_of(0))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for place in range(0, len(content), 23):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        for bad in (damaged, content[:place]):
            file.write_bytes(bad)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                assert kept(tmp_path, 0, None) is None
            assert "is corrupt" in str(said[0].message)
            assert "computed anew" in str(said[0].message)


def swapped(file: Path, other: Path) -> None:
    shutil.copy(other, file)


def unsealed(file: Path, _: Path) -> None:
    """As they were written before."""
    if file.suffix == ".json":
        file.write_text('{"found": [1.0, 2.0, 3.0], "seconds": 1.0}')
    else:
        np.savez(file, realised=np.ones(3), bound=np.ones(3), allowance=np.ones(3))


FOREIGN: dict[str, Callable[[Path, Path], Any]] = {
    "another result": swapped,
    "no digest": unsealed,
    "text": lambda file, _: file.write_text("mine"),
    "null": lambda file, _: file.write_text("null"),
    "deep": lambda file, _: file.write_text("[" * 100_000),
    "a sealed list": lambda file, _: file.write_bytes(
        _store.seal(b'["lowrank_theory.piece", {"sha256": "' + b"0" * 64 + b'"}]')
    ),
    "a sealed file of another kind": lambda file, _: Calibration.empty(2).save(file),
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
@each_result
def test_what_is_something_else_is_computed_anew_and_it_is_said(kept, foreign, tmp_path):
    right = kept(tmp_path, 0, lambda: sample_of(0))
    (file,) = tmp_path.iterdir()
    kept(tmp_path, 1, lambda: sample_of(1))
    (other,) = set(tmp_path.iterdir()) - {file}
    foreign(file, other)
    with pytest.warns(UserWarning, match=rf"{file.name} is corrupt .*: computed anew"):
        assert kept(tmp_path, 0, lambda: sample_of(0)) == right
    assert kept(tmp_path, 0, None) == right


def test_a_point_says_in_its_file_what_it_is(tmp_path):
    point(tmp_path, 1, lambda: sample_of(1))
    (file,) = tmp_path.iterdir()
    for words in (b'"lowrank_theory.point"', b"best_possible.truncated_svd", b"sample 1", b"rank"):
        assert words in file.read_bytes()
    with np.load(file) as columns:  # any reader of NumPy's files finds the numbers
        assert set(columns) == {"realised", "bound", "allowance"}


def test_a_result_that_is_of_other_numbers_is_not_believed(tmp_path):
    wrong = {"one more": np.ones(5), "two axes": np.ones((3, 1)), "integers": np.ones(3, int)}
    for number, columns in enumerate(wrong.values()):
        odd = Sample(STATEMENT.kind.direction, 4, columns, columns, columns)
        point(tmp_path, number, lambda odd=odd: odd)
        with pytest.warns(UserWarning, match="are of another shape or kind"):
            assert point(tmp_path, number, None) is None
