"""What the repository may weigh."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    """Of the tracked files, by their paths."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout, and git does not say which files there are")
    paths = [path for path in listed.stdout.decode().split("\0") if path]
    return {path: (ROOT / path).stat().st_size for path in paths if (ROOT / path).is_file()}


def test_all_files_together_stay_small(sizes):
    assert sum(sizes.values()) <= 25e6


def test_no_file_is_large(sizes):
    assert {path: size for path, size in sizes.items() if size > 2e6} == {}


def test_no_merge_is_left_half_done(sizes):
    marks = (b"<" * 7 + b" ", b">" * 7 + b" ")
    for path in sizes:
        lines = (ROOT / path).read_bytes().splitlines()
        assert not [line for line in lines if line.startswith(marks)], path


def test_no_drawing_is_large(sizes):
    drawings = {path: size for path, size in sizes.items() if path.endswith(".svg")}
    assert {path: size for path, size in drawings.items() if size > 250e3} == {}
    assert drawings


def test_trained_weights_are_small(sizes):
    """All but those of the AlexNet, which are 1.7 MB."""
    files = [path for path in sizes if "/data/" in path and path.endswith(".npz")]
    assert files
    for path in files:
        if "alexnet" not in path:
            with np.load(ROOT / path) as arrays:
                weights = [arrays[name].nbytes for name in arrays if arrays[name].dtype.kind == "f"]
            assert 0 < sum(weights) <= 300e3, path


def test_files_of_tests_have_names_of_their_own():
    """By which pytest imports them, whatever their folders."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert [name for name in names if names.count(name) > 1] == []


def test_no_file_of_tests_is_long():
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert {str(path): length for path, length in lengths.items() if length > 500} == {}
