"""Low rank and sparse together: planted sums, and the best of each beside the other."""

import math

import numpy as np
import pytest

from lowrank_theory.mixtures import low_rank_and_sparse
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import ActivationWeighted, every_rank
from tolerance import assert_close

RANDOM = np.random.default_rng(0)


def lost(weights, gram, made) -> float:
    rest = weights - np.asarray(made)
    return math.sqrt(max(0.0, float(np.sum(rest * (gram @ rest)))))


def test_a_planted_sum_is_found():
    left, right = RANDOM.standard_normal((30, 2)), RANDOM.standard_normal((2, 24))
    weights = left @ right
    spikes = RANDOM.choice(weights.size, 12, replace=False)
    weights.ravel()[spikes] += 10 * RANDOM.choice([-1, 1], 12)
    found = low_rank_and_sparse(weights, np.eye(30), 2, 12, steps=60)
    assert lost(weights, np.eye(30), found.materialise()) < 1e-3 * np.linalg.norm(weights)
    places = np.flatnonzero(np.asarray(found.parts[1].materialise()))
    assert set(places) == set(spikes)
    alone = np.linalg.svd(weights, compute_uv=False)[2:]
    assert np.linalg.norm(alone) > 0.1 * np.linalg.norm(weights)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_low_rank_part_is_the_best_beside_its_entries_and_steps_never_hurt(steps):
    rows = RANDOM.standard_normal((50, 10)) * np.linspace(1, 0.05, 10)
    weights = RANDOM.standard_t(3, (10, 8))
    gram = rows.T @ rows
    found = low_rank_and_sparse(weights, gram, 2, 9, steps=steps)
    low_rank, sparse = found.parts
    assert np.count_nonzero(np.asarray(sparse.materialise())) == 9
    rest = weights - np.asarray(sparse.materialise())
    best, plain = (
        every_rank(Observed(weights=each, activations=rows), ActivationWeighted()).errors[2]
        for each in (rest, weights)
    )
    error = lost(weights, gram, found.materialise())
    assert error == pytest.approx(float(best), rel=1e-6)
    fewer = low_rank_and_sparse(weights, gram, 2, 9, steps=max(1, steps // 2))
    assert error <= lost(weights, gram, fewer.materialise()) * (1 + 1e-9)
    assert error < float(plain)
    assert low_rank.shape == weights.shape


def test_where_inputs_are_uncorrelated_each_part_is_the_best_beside_the_other():
    """OATS, in its own words: the truncation of the scaled rest, and its largest scaled entries."""
    norms = RANDOM.gamma(2, size=20)
    weights = RANDOM.standard_t(3, (20, 12))
    found = low_rank_and_sparse(weights, np.diag(norms**2), 2, 4, per_output=True, steps=80)
    low_rank, sparse = (norms[:, None] * np.asarray(part.materialise()) for part in found.parts)
    scaled = norms[:, None] * weights
    left, values, right = np.linalg.svd(scaled - sparse)
    assert_close(low_rank, (left[:, :2] * values[:2]) @ right[:2], condition=100, scale=10)
    rest = np.abs(scaled - low_rank)
    stays = sparse != 0
    np.testing.assert_array_equal(stays.sum(axis=0), 4)
    for j in range(12):
        assert rest[stays[:, j], j].min() >= rest[~stays[:, j], j].max() * (1 - 1e-3)
