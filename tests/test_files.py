"""A file is written whole, where it belongs, as it was; or it is refused, before the work."""

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from lowrank_theory import _files, cli
from lowrank_theory.calibration import Calibration, calibrate
from lowrank_theory.models.catalogue import CASES
from lowrank_theory.networks import Compressed, transfer
from lowrank_theory.verification import point_store

STATEMENT = "best_possible.truncated_svd"


# --- what is written ------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    _files.write_atomically(path, b"old")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    _files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_what_is_not_finite_is_null():
    content = {"a": [np.inf, -np.inf, np.nan, 1.5], "b": np.float64("nan"), "c": np.int64(3)}
    written = json.loads(_files.to_json(_files.plain(content | {"d": None, "e": True, "f": "x"})))
    assert written == {
        "a": [None, None, None, 1.5], "b": None, "c": 3, "d": None, "e": True, "f": "x",
    }  # fmt: skip


# --- what stays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False], ids=["to a file", "to nothing yet"])
def test_links_stay_and_what_they_lead_to_is_written(exists, tmp_path):
    (tmp_path / "disk").mkdir()
    target, link, other = tmp_path / "disk" / "file", tmp_path / "link", tmp_path / "other"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to("disk/file")
    other.symlink_to(link)
    _files.write_atomically(other, b"new")
    assert link.is_symlink() and other.is_symlink()
    assert target.read_bytes() == b"new" and not target.is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk", "file", "link", "other"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o666, 0o755, 0o222])
def test_the_mode_of_a_file_stays(mode, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    file.chmod(mode)
    _files.write_atomically(file, b"new")
    assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_that_the_process_gives_and_its_mask_is_left_alone(
    mask, tmp_path, monkeypatch
):
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)
            _files.write_atomically(tmp_path / "file", b"new")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o555])
def test_a_read_only_file_stays(mode, tmp_path):
    file, seen = tmp_path / "file", Calibration.empty(2)
    seen.save(file)
    content = file.read_bytes()
    file.chmod(mode)
    for attempt in (
        lambda: _files.check_writable(file),
        lambda: _files.write_atomically(file, b"new"),
        lambda: seen.save(file),
        lambda: calibrate(untouched(), seen, file=file),
    ):
        with pytest.raises(PermissionError, match="read-only: make it writable, or name another"):
            attempt()
    assert file.read_bytes() == content
    assert stat.S_IMODE(file.stat().st_mode) == mode and list(tmp_path.iterdir()) == [file]


def test_other_names_of_a_file_keep_what_they_have_and_it_is_said(tmp_path):
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"old")
    other.hardlink_to(file)
    with pytest.warns(UserWarning, match="has other names .*: they keep the old content"):
        _files.write_atomically(file, b"new")
    assert file.read_bytes() == b"new" and other.read_bytes() == b"old"


def test_a_pipe_is_written_into(tmp_path):
    pipe, content, read = tmp_path / "pipe", os.urandom(300_000), []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    _files.check_writable(pipe)
    _files.write_atomically(pipe, content)
    if not stat.S_ISFIFO(pipe.stat().st_mode):
        os.close(os.open(pipe, os.O_RDWR))
        pytest.fail("the pipe was replaced")
    reader.join()
    assert read == [content] and list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "a\nb", "ü\udcff"])
def test_any_name_that_a_file_can_have(name, tmp_path):
    for content in (b"old", b"new"):
        _files.write_atomically(tmp_path / name, content)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"new"


# --- what is left behind --------------------------------------------------------------------------


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync",
        lambda d: (done.append("folder" if stat.S_ISDIR(os.fstat(d).st_mode) else "file"), sync(d)),
    )  # fmt: skip
    monkeypatch.setattr(Path, "replace", lambda a, b: (done.append("name"), replace(a, b)))
    _files.write_atomically(tmp_path / "file", b"new")
    assert done == ["file", "name", "folder"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO])
def test_a_full_disk_leaves_the_old_file_alone_and_is_told_with_its_name(
    code, tmp_path, monkeypatch
):
    def full(_):
        raise OSError(code, os.strerror(code))

    file = tmp_path / "file"
    file.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=str(file)) as raised:
        _files.write_atomically(file, b"new")
    assert raised.value.errno == code
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    file = tmp_path / "report.json"
    program = f"""
import os, pathlib, signal
from lowrank_theory import _files
pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
_files.write_atomically(pathlib.Path({str(file)!r}), b"half")
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert _files.is_leftover(left) and not _files.is_leftover(file)
    with left.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _files.write_atomically(file, b"new")
        _files.remove_leftovers(tmp_path)
        assert set(tmp_path.iterdir()) == {file, left}
    _files.write_atomically(file, b"newer")
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == b"newer"


# --- what is refused beforehand -------------------------------------------------------------------


def untouched():
    raise AssertionError("the work began")
    yield


def under_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "x"


def a_loop(folder: Path) -> Path:
    (folder / "x").symlink_to(folder / "x")
    return folder / "x"


PLACES = {
    "under a file": under_a_file,
    "where nobody writes": lambda _: Path("/proc/self/x"),
    "a loop of links": a_loop,
}
FOR_FILES = {
    "no folder": lambda folder: folder / "nowhere" / "x",
    "a folder": lambda folder: folder,
}


@pytest.mark.parametrize("place", [*PLACES, *FOR_FILES])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(place, tmp_path):
    path = (PLACES | FOR_FILES)[place](tmp_path)
    before = sorted(tmp_path.rglob("*"))
    network = Compressed(lambda p, x: x, {"a": np.eye(2)}, {}, {})
    for attempt in (
        lambda: _files.check_writable(path),
        lambda: _files.write_atomically(path, b""),
        lambda: calibrate(untouched(), Calibration.empty(2), file=path),
        lambda: Calibration.empty(2).save(path),
        lambda: network.save(path),
    ):
        with pytest.raises(OSError, match=r"x|folder"):
            attempt()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    place, tmp_path, monkeypatch, capsys
):
    def never(*_, **__):
        raise AssertionError("the work began")

    path = PLACES[place](tmp_path)
    for attempt in (
        lambda: point_store.PointStore(path),
        lambda: transfer(CASES["digits"], seed=0, folder=path),
    ):
        with pytest.raises(OSError, match="x"):
            attempt()
    for command, work in (
        ("verify", "sweep"),
        *((each, each) for each in ("transfer", "attack", "scale")),
    ):
        monkeypatch.setattr(getattr(cli, command), work, never)
    good = tmp_path / "good"
    for command in (
        ["verify", "--only", STATEMENT, "--out", path],
        ["verify", "--only", STATEMENT, "--out", good, "--json", path],
        ["transfer", "digits", "--out", path],
        ["transfer", "digits", "--out", good, "--json", path],
        ["attack", "--only", "planted_rank.any_noise", "--out", path],
        ["attack", "--only", "planted_rank.any_noise", "--json", path],
        ["scale", "--only", "planted_rank", "--json", path],
    ):
        assert cli.main([str(word) for word in command]) == cli.BAD_USAGE
        assert "cannot write" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["report.json", "report.html", "tightness.svg", "points"])
def test_a_report_that_cannot_be_replaced_is_refused_before_the_work(name, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.verify, "sweep", None)
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / name).touch()
    (tmp_path / name).chmod(0o444)
    assert cli.main(["verify", "--only", STATEMENT, "--out", str(tmp_path)]) == cli.BAD_USAGE
