"""Entries that stay: the largest, in the fewer bytes."""

import numpy as np
import pytest

from lowrank_theory.approximations import Bitmap, CompressedRows, Sparse
from lowrank_theory.sparsification import largest_entries

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("per_output", [False, True])
def test_what_is_lost_are_the_smallest_entries(per_output):
    weights = RANDOM.standard_normal((11, 7))
    found = np.asarray(largest_entries(weights, 4, per_output=per_output).materialise())
    squares = np.sort((weights**2), axis=0) if per_output else np.sort((weights**2).ravel())
    lost = squares[:-4].sum()
    assert np.sum((weights - found) ** 2) == pytest.approx(lost, rel=1e-12)
    assert np.count_nonzero(found) == (4 * 7 if per_output else 4)


def test_of_equal_entries_the_first_stay():
    found = np.asarray(largest_entries(np.array([[1.0, -1], [1, 1]]), 3).materialise())
    np.testing.assert_array_equal(found, [[1, -1], [1, 0]])


def test_places_are_kept_in_fewer_bytes():
    """A bit for each entry, or two bytes for each that stays and four for each row."""
    weights = RANDOM.standard_normal((20, 1000))
    few, many = (largest_entries(weights, kept) for kept in (200, 5000))
    assert isinstance(few.pattern, CompressedRows) and isinstance(many.pattern, Bitmap)
    for found in (few, many):
        mask = np.asarray(found.materialise()) != 0
        other = [Sparse.of(weights, mask, kind).storage.bytes for kind in (Bitmap, CompressedRows)]
        assert found.storage.bytes == min(other)
