"""Constrained and truncated recovery of any target: worst cases by hand, and plain formulas."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from lowrank_theory.generators import noise, targets
from lowrank_theory.problems import Setting
from lowrank_theory.theorems import approximate_rank
from lowrank_theory.theorems._adversaries import TargetAndNoise, TargetAndSpectrum
from lowrank_theory.theorems.approximate_rank import (
    GOLDEN_RATIO,
    ExactRadius,
    GoldenRatio,
    NuclearBall,
    Truncation,
)
from statements import drawn, sides, stated
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

ANY = Setting(
    samples=20,
    inputs=8,
    outputs=6,
    rank=2,
    target=targets.ApproximateRank(),
    noise=noise.Gaussian(0.5),
)


@pytest.mark.parametrize("slack", [1, 2, 3])
def test_the_nuclear_ball_is_attained(slack):
    """One component hidden, and `slack` false ones of the same size shown."""
    problem = stated([1] + [0] * slack, [-1] + [1] * slack, rank=1)
    assert sides(NuclearBall(slack=float(slack)), problem) == approx((1 + slack,) * 2)


def test_a_ball_that_excludes_the_target_gives_no_bound():
    assert sides(NuclearBall(slack=0.99), stated([1, 0], [-1, 1], rank=1))[1] == math.inf


@pytest.mark.parametrize(("rank", "size"), [(1, 2), (1, 3), (1, 6), (2, 5), (3, 6)])
def test_the_exact_radius_is_attained(rank, size):
    """Noise against the target and for everything else."""
    problem = stated([9] * rank + [0] * (size - rank), [-1] * rank + [1] * (size - rank), rank)
    expected = 4 * rank * (size - rank) / size
    assert sides(ExactRadius(), problem) == approx((expected, expected))


@pytest.mark.parametrize("rank", [3, 4])
def test_beyond_half_of_the_sides_the_exact_radius_costs_all_of_the_noise(rank):
    problem = stated([9] * rank + [0] * (4 - rank), [-1, -1, 1, 1], rank)
    assert sides(ExactRadius(), problem) == approx((4, 4))


@pytest.mark.slow
def test_the_sides_are_those_of_the_smaller_one():
    """Three rows, five columns: d = 3."""
    problem = stated(np.eye(3, 5) * [[9], [0], [0]], np.eye(3, 5) * [[-1], [1], [1]])
    assert sides(ExactRadius(), problem)[1] == approx(8 / 3)
    assert sides(Truncation(), problem)[1] == approx(5)


@pytest.mark.parametrize(
    ("target", "error", "rank", "expected"),
    [
        ([2, 0], [-1.001, 1], 1, 5.0),
        ([4, 2], [-1.001, 1], 1, 17.0),  # (2 + 2)^2 + 1
        ([4, 2, 2, 2], [-1.001, 1, 0, 0], 1, 17.0 + 8),  # two more of the tail
        ([9, 2, 0], [1, -1, 1], 2, 6.0),  # d - r = 1: one can be swapped
        ([3, 2], [1, 1], 2, 2.0),  # nothing can
    ],
)
def test_truncation_is_attained(target, error, rank, expected):
    realised, bound = sides(Truncation(), stated(target, error, rank))
    assert realised == approx(expected)
    assert realised <= bound * (1 + 1e-12)
    assert bound == pytest.approx(expected, rel=3e-3)


def test_the_golden_ratio_is_attained():
    problem = stated([GOLDEN_RATIO - 1e-9, 0], [1 - GOLDEN_RATIO, 1], rank=1)
    realised, bound = sides(GoldenRatio(), problem)
    assert realised == pytest.approx(bound)
    assert bound == approx(GOLDEN_RATIO * math.sqrt(1 + (GOLDEN_RATIO - 1) ** 2))


@pytest.mark.parametrize("seed", range(3))
def test_bounds_are_their_formulas(seed):
    problem = drawn(ANY, seed)
    truth = problem.truth
    rows, target, error = (
        np.asarray(part) for part in (truth.layer_inputs, truth.target_weights, truth.noise)
    )
    s = np.linalg.svd(rows @ target, compute_uv=False)
    z = np.linalg.svd(np.linalg.qr(rows)[0].T @ error, compute_uv=False)
    r, d = 2, 6

    def norm(values: Any) -> float:
        return float(np.linalg.norm(values))

    expected = {
        "nuclear_ball": 3 * z[0] * s.sum(),
        "truncation": norm(s[r : d - r]) ** 2
        + (norm(s[r : 2 * r]) + 2 * norm(z[:r])) ** 2
        + norm(z[:r]) ** 2,
        "golden_ratio": norm(s[r:]) + GOLDEN_RATIO * (norm(s[r : 3 * r]) + norm(z[: 2 * r])),
    }
    for name, value in expected.items():
        realised, bound = sides(getattr(approximate_rank, name), problem)
        assert bound == approx(value)
        assert 0 < realised <= bound
    # The forms with the operator norm and the whole tail are corollaries.
    tail = norm(s[r:])
    weaker = tail**2 + (norm(s[r : 2 * r]) + 2 * math.sqrt(r) * z[0]) ** 2 + r * z[0] ** 2
    assert expected["truncation"] <= weaker <= 3 * tail**2 + 9 * r * z[0] ** 2
    known = (1 + GOLDEN_RATIO) * tail + GOLDEN_RATIO * math.sqrt(2 * r) * z[0]
    assert expected["golden_ratio"] <= known


@pytest.mark.parametrize("adversary", [TargetAndNoise, TargetAndSpectrum])
def test_adversaries_stay_inside_the_hypotheses(adversary):
    with jax.enable_x64(True):
        opponent = adversary(rows=4, columns=3, rank=1, target_rank=2)
        free = opponent.start(key=jax.random.key(0))
        problem, estimate = opponent.play(free)
        target = np.asarray(problem.truth.clean_outputs)
        outputs = np.asarray(problem.observed.target_outputs)
        assert np.linalg.matrix_rank(target, tol=1e-10) == 2
        assert_close(outputs - target, problem.truth.noise)
        if estimate is not None:
            left, values, right = np.linalg.svd(outputs, full_matrices=False)
            best = left[:, :1] * values[:1] @ right[:1]
            assert_close(estimate.left @ estimate.right, best)
            assert values[0] > values[1]
