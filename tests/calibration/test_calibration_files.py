"""Streams of batches, files, and runs that were killed."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from lowrank_theory.calibration import (
    AbstractCalibration,
    Calibration,
    TriangularCalibration,
    calibrate,
    load_calibration,
)
from tolerance import assert_close

pytestmark = pytest.mark.thinned(3)

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((80, 4)).astype(np.float32)
T = X + RANDOM.standard_normal((80, 4)).astype(np.float32)
KINDS = (Calibration, TriangularCalibration)
each_kind = pytest.mark.parametrize("kind", KINDS)


def same(one: AbstractCalibration, other: AbstractCalibration) -> None:
    """The same bits."""
    assert type(one) is type(other)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(left).dtype == np.float64
        np.testing.assert_array_equal(left, right)


def pairs(count: int = 20) -> list[Any]:
    return list(zip(np.split(X, count), np.split(T, count), strict=True))


# --- streams ---


@each_kind
@given(st.lists(st.integers(1, 79), max_size=20, unique=True))
def test_the_size_of_batches_changes_no_bit(kind, cuts):
    whole = calibrate([(X, T)], kind.empty(4, compressed=True))
    batches = zip(np.split(X, sorted(cuts)), np.split(T, sorted(cuts)), strict=True)
    same(calibrate(batches, kind.empty(4, compressed=True)), whole)


@each_kind
def test_a_stream_is_its_updates(kind):
    found = calibrate([X], kind.empty(4)).moments()
    moments = kind.empty(4).update(X).moments()
    assert_close(found.scatter, moments.scatter, scale=1)
    assert_close(found.mean, moments.mean)
    assert float(np.asarray(found.count)) == 80


@each_kind
def test_on_the_device_or_not_and_mixed(kind):
    batches = np.split(X, 20)
    on_device = [jnp.asarray(batch) for batch in batches]
    mixed = [a if i % 3 else b for i, (a, b) in enumerate(zip(batches, on_device, strict=True))]
    whole = calibrate(batches, kind.empty(4))
    same(calibrate(on_device, kind.empty(4)), whole)
    same(calibrate(mixed, kind.empty(4)), whole)
    precise = [jnp.asarray(batch).astype("bfloat16") for batch in batches]
    same(calibrate(precise, kind.empty(4)), calibrate([np.concatenate(precise)], kind.empty(4)))


@each_kind
def test_an_iterator_may_fill_one_buffer_again_and_again(kind):
    def refilled(rows):
        buffer = np.empty((rows, 4), np.float32)
        for batch in X.reshape(-1, rows, 4):
            buffer[:] = batch
            yield buffer

    for rows in (4, 20, 40):
        same(calibrate(refilled(rows), kind.empty(4)), calibrate([X], kind.empty(4)))


def test_progress_and_a_start_that_has_seen_something():
    told = []
    half = calibrate(pairs()[:8], Calibration.empty(4, compressed=True))
    both = calibrate(pairs()[8:], half, progress=lambda *numbers: told.append(numbers))
    assert told == [(i, 32 + 4 * i) for i in range(1, 13)]
    assert float(np.asarray(both.count)) == 80
    assert float(np.asarray(half.count)) == 32


BAD = {
    "another width": (X[:, :3], "`activations` has 3 inputs, but `calibration` has 4"),
    "NaN": (np.full((2, 4), np.nan), "`activations` has 8 non-finite entries"),
    "integers": (np.ones((2, 4), int), "`activations` must be floating point; got dtype int64"),
    "a vector": (X[0], r"`activations` must have shape \(samples, inputs\); got shape \(4,\)"),
    "no samples": (X[:0], "`activations` is empty"),
    "a pair": ((X, X), "`compressed_activations` must come with every batch or with none"),
}


@pytest.mark.parametrize(("batch", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_batch_is_named_and_what_was_saved_stays(batch, message, tmp_path):
    file = tmp_path / "layer.safetensors"
    with pytest.raises(ValueError, match=f"^Batch 4: {message}"):
        calibrate([X, X, X, batch], Calibration.empty(4), file=file, save_every=2)
    same(load_calibration(file), calibrate([X, X], Calibration.empty(4), save_every=2))


def test_no_batches(tmp_path):
    used = iter([X])
    calibrate(used, Calibration.empty(4))
    with pytest.raises(ValueError, match="`batches` is empty"):
        calibrate(used, Calibration.empty(4), file=tmp_path / "file")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="`save_every` must be an integer >= 1; got 0"):
        calibrate([X], Calibration.empty(4), save_every=0)


# --- files ---


@pytest.mark.parametrize("compressed", [False, True])
@each_kind
def test_what_is_saved_is_loaded(kind, compressed, tmp_path):
    seen = kind.empty(4, compressed=compressed).update(*(X, T)[: 1 + compressed])
    seen.save(tmp_path / "file")
    same(load_calibration(str(tmp_path / "file")), seen)
    kind.empty(4, compressed=compressed).save(tmp_path / "file")  # over the old one
    same(load_calibration(tmp_path / "file"), kind.empty(4, compressed=compressed))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@each_kind
def test_the_files_of_two_hosts_merge(kind, tmp_path):
    for host, batches in enumerate((pairs()[:7], pairs()[7:])):
        calibrate(batches, kind.empty(4, compressed=True), file=tmp_path / str(host))
    parts = [load_calibration(tmp_path / str(host)) for host in range(2)]
    whole = calibrate(pairs(), kind.empty(4, compressed=True))
    together = parts[0].merge(parts[1])
    for name in ("gram", "compressed_gram", "cross_gram"):
        one, other = (np.asarray(getattr(seen, name)()) for seen in (together, whole))
        assert np.abs(one - other).max() <= 1e-13 * np.abs(other).max()


class KilledError(Exception):
    pass


def killed_after(count: int):
    yield from pairs()[:count]
    raise KilledError


@pytest.mark.parametrize("count", [0, 3, 4, 13, 20])
@each_kind
def test_a_run_that_stopped_resumes_and_ends_with_the_same_bits(kind, count, tmp_path):
    file, start = tmp_path / "layer.safetensors", kind.empty(4, compressed=True)
    whole = calibrate(pairs(), start, file=tmp_path / "whole", save_every=4)
    with pytest.raises(KilledError):
        calibrate(killed_after(count), start, file=file, save_every=4)
    if count >= 4:
        kept = load_calibration(file)
        assert float(np.asarray(kept.count)) == 4 * (count // 4 * 4)
    told = []
    tell = lambda *numbers: told.append(numbers)  # noqa: E731
    resumed = calibrate(pairs(), start, file=file, save_every=4, progress=tell)
    assert len(told) == 20 - count // 4 * 4  # what was saved is passed over
    same(resumed, whole)
    same(load_calibration(file), whole)
    before = file.stat().st_mtime_ns
    same(calibrate(pairs(), start, file=file, save_every=4), whole)  # nothing is left to do
    assert file.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_process_loses_only_what_it_had_not_saved(tmp_path):
    file = tmp_path / "layer.safetensors"
    program = f"""
import os, signal
import numpy as np
from lowrank_theory.calibration import Calibration, calibrate
def batches():
    for i in range(10):
        if i == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        yield np.full((2, 3), i, np.float32)
calibrate(batches(), Calibration.empty(3), file={str(file)!r}, save_every=3)
"""
    run = subprocess.run([sys.executable, "-c", program], check=False, timeout=120)
    assert run.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    seen = load_calibration(file)
    assert float(np.asarray(seen.count)) == 12
    np.testing.assert_array_equal(seen.mean, np.full(3, 2.5))


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "layer.safetensors"
    old = calibrate([X], Calibration.empty(4), file=file)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        calibrate([X, X], Calibration.empty(4), file=file)
    same(load_calibration(file), old)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_file_of_another_calibration(tmp_path):
    file = tmp_path / "layer.safetensors"
    calibrate([X, X], Calibration.empty(4), file=file)
    content = file.read_bytes()
    others = (
        (TriangularCalibration.empty(4), "is a `Calibration`, but `start` is a `TriangularCalib"),
        (Calibration.empty(5), "has 4 inputs, but `start` has 5"),
        (Calibration.empty(4, compressed=True), "must hold compressed activations exactly if"),
    )
    for start, message in others:
        with pytest.raises(ValueError, match=message) as raised:
            calibrate([X], start, file=file)
        assert str(file) in str(raised.value)
        assert "Give another file" in str(raised.value)
    with pytest.raises(ValueError, match="has seen 2 batches, but `batches` has only 1"):
        calibrate([X], Calibration.empty(4), file=file)
    assert file.read_bytes() == content


# --- files that are refused ---


def written(**changes: Any) -> bytes:
    """The bytes of a file whose header is changed."""
    header = {
        "format": "lowrank_theory.calibration",
        "version": 1,
        "kind": "Calibration",
        "inputs": 2,
        "compressed": False,
        "count": 3.0,
        "batches": 1,
        **changes,
    }
    arrays = {"count": np.asarray(3.0), "mean": np.zeros(2), "scatter": np.eye(2)}
    arrays.update(changes.get("arrays", {}))
    header.pop("arrays", None)
    return save(arrays, {"calibration": json.dumps(header)})


REFUSED = {
    "empty": (b"", "is truncated or no safetensors file"),
    "cut in the header": (written()[:40], "is truncated or no safetensors file"),
    "cut in the arrays": (written()[:-1], "is truncated or no safetensors file"),
    "grown": (written() + b"0", "is truncated or no safetensors file"),
    "text": (b"not a calibration at all", "is truncated or no safetensors file"),
    "arrays of somebody else": (save({"mean": np.zeros(2)}), "holds something else"),
    "header of somebody else": (save({}, {"calibration": "[1]"}), "holds something else"),
    "no JSON": (save({}, {"calibration": "{"}), "is truncated or no safetensors file"),
    "another format": (written(format="gguf"), "holds something else"),
    "newer": (written(version=2), "has version 2; this library reads version 1. Update"),
    "unknown kind": (written(kind="Sketch"), "is damaged"),
    "wrong kind": (written(kind="TriangularCalibration"), "is damaged"),
    "wrong inputs": (written(inputs=3), "is damaged"),
    "wrong compressed": (written(compressed=True), "is damaged"),
    "wrong count": (written(count=4.0), "is damaged"),
    "negative batches": (written(batches=-1), "is damaged"),
    "no batches": (written(batches=None), "is damaged"),
    "array of another shape": (written(arrays={"scatter": np.eye(3)}), "is damaged"),
    "array of another dtype": (written(arrays={"mean": np.zeros(2, np.float32)}), "is damaged"),
    "one array more": (written(arrays={"more": np.zeros(2)}), "is damaged"),
    "NaN": (written(arrays={"mean": np.full(2, np.nan)}), "is damaged"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_other_files_are_refused(content, message, tmp_path):
    file = tmp_path / "layer.safetensors"
    file.write_bytes(content)
    for attempt in (load_calibration, lambda f: calibrate([X], Calibration.empty(4), file=f)):
        with pytest.raises(ValueError, match=message) as raised:
            attempt(file)
        assert str(file) in str(raised.value)
        assert "alibrate again" in str(raised.value)
    assert file.read_bytes() == content


def test_the_file_that_the_refused_ones_were_made_from(tmp_path):
    (tmp_path / "file").write_bytes(written())
    with pytest.warns(UserWarning, match="written without a digest.*Save it again"):
        seen = load_calibration(tmp_path / "file")
    same(seen, Calibration(np.asarray(3.0), np.zeros(2), np.eye(2)))
    assert set(load(written())) == {"count", "mean", "scatter"}


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no calibration file '.*nowhere'"):
        load_calibration(tmp_path / "nowhere")
