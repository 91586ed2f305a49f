"""Entries that stay: the largest, in the fewer bytes."""

import math

import numpy as np
import pytest
import scipy.stats

from lowrank_theory.approximations import Bitmap, CompressedRows, Sparse
from lowrank_theory.sparsification import largest_entries
from tolerance import approx

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("per_output", [False, True])
def test_what_is_lost_are_the_smallest_entries(per_output):
    weights = RANDOM.standard_normal((11, 7))
    found = np.asarray(largest_entries(weights, 4, per_output=per_output).materialise())
    squares = np.sort((weights**2), axis=0) if per_output else np.sort((weights**2).ravel())
    lost = squares[:-4].sum()
    assert np.sum((weights - found) ** 2) == approx(lost)
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


@pytest.mark.parametrize("kept", [0.5, 1 / 4, 1 / 8, 1 / 16])
def test_gaussian_and_laplace_weights_lose_what_theory_says(kept):
    """1 - 2(t phi(t) + Q(t)) with t = Q^-1(k/2); of Laplace weights, .163 .345 .524 from a quarter
    on, 1 - k(1 + t + t^2 / 2) with t = -log k.
    """
    weights = RANDOM.standard_normal((400, 500))
    threshold = scipy.stats.norm.isf(kept / 2)
    gaussian = 1 - 2 * (threshold * scipy.stats.norm.pdf(threshold) + kept / 2)
    threshold = -math.log(kept)
    laplace = 1 - kept * (1 + threshold + threshold**2 / 2)
    for drawn, wanted in ((weights, gaussian), (RANDOM.laplace(size=weights.shape), laplace)):
        found = np.asarray(largest_entries(drawn, round(kept * drawn.size)).materialise())
        lost = np.sum((drawn - found) ** 2) / np.sum(drawn**2)
        assert lost == pytest.approx(wanted, abs=4 * math.sqrt(20 / drawn.size))


def test_all_entries_are_the_matrix():
    weights = RANDOM.standard_normal((6, 5))
    np.testing.assert_array_equal(np.asarray(largest_entries(weights, 30).materialise()), weights)
