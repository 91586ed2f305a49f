"""The coherence of a tangent space against NumPy, and the matrices at which it is attained."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from lowrank_theory.theorems.low_rank_plus_sparse import (
    TangentMatrix,
    TangentSetting,
    low_rank_plus_sparse,
)
from lowrank_theory.verification.attack import replay
from statements import by_name, drawn, sides
from tolerance import approx

STATEMENTS = by_name(low_rank_plus_sparse)
NOWHERE = np.zeros((5, 4), bool)


def tangent(left: Any, right: Any, matrix: np.ndarray, places: np.ndarray = NOWHERE):
    """The projection of a matrix on the tangent space, as an instance."""
    basis, other = np.linalg.qr(left)[0], np.linalg.qr(right)[0]
    across = basis.T @ matrix
    down = (matrix - basis @ across) @ other
    return TangentMatrix(left, right.T, across, down, places)


def angles(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of all rows to the ranges."""
    sines = (np.linalg.norm(np.linalg.qr(each)[0], axis=1) for each in (left, right))
    first, second = (np.arcsin(np.minimum(each, 1)) for each in sines)
    return first, second


@pytest.mark.parametrize("seed", range(4))
def test_values_against_numpy(seed):
    random = np.random.default_rng(seed)
    left, right, matrix = (random.standard_normal(s) for s in ((5, 2), (4, 2), (5, 4)))
    places = random.random((5, 4)) < 0.3
    instance = tangent(left, right, matrix, places)
    projections = [each @ np.linalg.pinv(each) for each in (left, right)]
    rest = (np.eye(5) - projections[0]) @ matrix @ (np.eye(4) - projections[1])
    expected = matrix - rest
    first, second = angles(left, right)
    coherence = float(np.max(np.sin(np.minimum(first[:, None] + second, math.pi / 2))))
    norm = float(np.linalg.norm(expected, 2))
    most = float(np.max(np.abs(expected)))
    assert sides(STATEMENTS["largest_entry"], instance) == approx((most, coherence * norm), 10)
    inside = np.where(places, expected, 0)
    crowd = math.sqrt(places.sum(axis=1).max() * places.sum(axis=0).max())
    values = float(np.linalg.norm(inside, 2)), crowd * float(np.max(np.abs(inside)))
    assert sides(STATEMENTS["few_entries"], instance) == approx(values, 10)
    left_over = max(1 - coherence * crowd, 0) * norm
    values = float(np.linalg.norm(expected - inside, 2)), left_over
    assert sides(STATEMENTS["apart"], instance) == approx(values, 10)


@pytest.mark.parametrize("seed", range(4))
def test_no_smaller_coherence_will_do(seed):
    """The matrix of the note, at the row and column of largest angles."""
    random = np.random.default_rng(seed)
    left, right = random.standard_normal((5, 1)), random.standard_normal((4, 1))
    left, right = left + 2 * np.sign(left), right + 2 * np.sign(right)  # no large angles
    first, second = angles(left, right)
    i, j = int(np.argmax(first)), int(np.argmax(second))
    assert first[i] + second[j] < math.pi / 2
    along = [each[:, 0] / np.linalg.norm(each) for each in (left, right)]
    across = []
    for unit, place in zip(along, (i, j), strict=True):
        rest = np.eye(len(unit))[place] - unit[place] * unit
        across.append(rest / np.linalg.norm(rest))
    signs = np.sign(along[0][i]), np.sign(along[1][j])
    matrix = signs[0] * np.outer(along[0], across[1]) + signs[1] * np.outer(across[0], along[1])
    realised, bound = sides(STATEMENTS["largest_entry"], tangent(left, right, matrix))
    assert realised == approx(bound, 10) == approx(math.sin(first[i] + second[j]), 10)


def test_a_matrix_that_is_low_rank_and_sparse_is_not_apart_from_itself():
    unit = np.eye(5, 4)[:, :1], np.eye(4)[:, :1]
    matrix = unit[0] @ unit[1].T
    instance = tangent(*unit, matrix, matrix > 0)
    assert sides(STATEMENTS["apart"], instance) == approx((0, 0), scale=1)
    assert sides(STATEMENTS["largest_entry"], instance) == approx((1, 1))


def test_blocks_of_equal_entries_hold_as_much_as_places_can():
    left, right = np.ones((5, 1)), np.ones((4, 1))
    places = NOWHERE.copy()
    places[:3, :2] = True
    realised, bound = sides(STATEMENTS["few_entries"], tangent(left, right, left @ right.T, places))
    assert realised == approx(bound, 10) == approx(math.sqrt(6), 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEMENTS)
def test_the_adversary_plays_inside_the_hypotheses(name):
    statement: Any = STATEMENTS[name]
    with jax.enable_x64(True):
        free = jax.tree.map(np.asarray, statement.adversary.start(key=jax.random.key(1)))
    assert 0 <= replay(statement, free) <= 1


def test_settings_and_refusals():
    found = drawn(TangentSetting(6, 1, flat=True, crowd=2))
    assert np.all(np.sum(np.asarray(found.places), axis=0) == 2)
    np.testing.assert_array_equal(np.abs(np.asarray(found.left)), 1)
    with pytest.raises(ValueError, match=r"`across` must be \(1, 4\); got \(2, 4\)"):
        TangentMatrix(np.ones((5, 1)), np.ones((1, 4)), np.ones((2, 4)), np.ones((5, 1)), NOWHERE)
