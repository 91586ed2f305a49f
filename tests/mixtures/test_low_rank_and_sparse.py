"""Low rank and sparse together: planted sums, and the best of each beside the other."""

import math

import numpy as np
import pytest

from lowrank_theory.mixtures import LowRankAndSparse, low_rank_and_sparse
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import ActivationWeighted, every_rank
from lowrank_theory.sparsification import largest_entries
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


def shared(weights, share: float = 0.25) -> list[float]:
    """The relative errors of OATS with white inputs, at shares 0, 1/4, 1/2 and 1 of the numbers in
    the low-rank part.
    """
    side = len(weights)
    none = np.asarray(largest_entries(weights, round(share * side), per_output=True).materialise())
    values = np.linalg.svd(weights, compute_uv=False)[int(share * side / 2) :]
    observed = Observed(weights=weights, activations=np.eye(side))
    mixed = [
        LowRankAndSparse((share,), part, 40, diagonal=True, per_output=True).sweep(observed)
        for part in (0.25, 0.5)
    ]
    between = [float(np.sqrt(each.squared_errors[0])) for each in mixed]
    errors = [np.linalg.norm(weights - none), *between, np.linalg.norm(values)]
    return [float(error / np.linalg.norm(weights)) for error in errors]


def test_a_mixture_is_best_where_weights_are_one():
    """Rank 8, 5 % entries and noise at side 256: .128 .067 .052 .227 were published; without a
    structure a mixture does not win.
    """
    random = np.random.default_rng(1)
    side = 96
    weights = random.standard_normal((side, 3)) @ random.standard_normal((3, side))
    spikes = random.random(weights.shape) < 0.05
    weights = weights + np.where(spikes, 5 * random.standard_normal(spikes.shape), 0)
    weights += 0.1 * random.standard_normal(weights.shape)
    none, quarter, half, only = shared(weights)
    assert max(quarter, half) < min(none, only) / 2
    none, quarter, half, only = shared(random.standard_normal((side, side)))
    assert none < quarter < half < only
