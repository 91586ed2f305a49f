"""Unknown noise levels and errors of weights, by hand and against plain formulas."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from lowrank_theory.generators import noise
from lowrank_theory.problems import Observed, Problem, Setting
from lowrank_theory.theorems import planted_rank
from lowrank_theory.theorems.gaussian_noise import upper_edge
from lowrank_theory.theorems.planted_rank import (
    gaussian_worst_square,
    mean_worst_square,
    residual_variance,
    squared_count,
)
from lowrank_theory.verification.attack import replay
from statements import drawn
from tolerance import approx

pytestmark = pytest.mark.thinned(4)

LINEAR = Setting(samples=20, inputs=8, outputs=6, rank=2)


def test_the_residual_variance_is_that_of_the_rows_to_spare():
    random = np.random.default_rng(0)
    rows, outputs = random.standard_normal((9, 4)), random.standard_normal((9, 3))
    rows[:, 3] = rows[:, 0]
    with jax.enable_x64(True):
        variance, freedom = residual_variance(rows, outputs)
    rest = outputs - rows @ np.linalg.pinv(rows, rcond=1e-10) @ outputs
    assert float(freedom) == (9 - 3) * 3
    assert float(variance) == approx(np.sum(rest**2) / 18)


def test_the_residual_variance_is_unbiased():
    with jax.enable_x64(True):
        setting = dataclasses.replace(LINEAR, noise=noise.Gaussian(0.5))
        variances = [
            float(residual_variance(p.observed.layer_inputs, p.observed.target_outputs)[0])
            for p in (drawn(setting, seed) for seed in range(100))
        ]
    deviation = 0.25 * math.sqrt(2 / 72) / 10
    assert abs(np.mean(variances) - 0.25) <= 4 * deviation


def test_no_rows_to_spare_leave_the_variance_unknown():
    with jax.enable_x64(True):
        variance, freedom = residual_variance(np.eye(3), np.ones((3, 2)))
    assert float(variance) == float(freedom) == 0
    problem = dataclasses.replace(LINEAR, samples=8).draw(key=jax.random.key(0))
    assert float(planted_rank.unknown_scale.bound(problem).value) == math.inf


@pytest.mark.parametrize("failure_probability", [0.3, 0.05])
def test_unknown_scale_is_its_formula(failure_probability):
    problem = drawn(LINEAR)
    rows, outputs = (
        np.asarray(x) for x in (problem.observed.layer_inputs, problem.observed.target_outputs)
    )
    rest = outputs - rows @ np.linalg.pinv(rows) @ outputs
    freedom = (20 - 8) * 6
    t = math.sqrt(2 * math.log(2 / failure_probability))
    variance = np.sum(rest**2) / freedom / (1 - t * math.sqrt(2 / freedom))
    with jax.enable_x64(True):
        edge = float(upper_edge(8.0, 6.0, failure_probability / 2))
    first, second = ((math.sqrt(8) + math.sqrt(6 - i)) ** 2 - 0.5 for i in range(2))
    by_mean = math.sqrt(5 * (first + second)) + math.sqrt(5) * t
    expected = variance * min(10 * edge**2, by_mean**2)
    bound = planted_rank.unknown_scale.bound(problem, failure_probability=failure_probability)
    assert float(bound.value) == approx(expected)
    # It is never told the noise level.
    lied = dataclasses.replace(problem.truth, noise_scale=np.asarray(1e9))
    told = planted_rank.unknown_scale.bound(
        Problem(problem.observed, lied, 2), failure_probability=failure_probability
    )
    assert float(told.value) == float(bound.value)


def test_the_weights_are_found_up_to_the_least_singular_value():
    """Activations diag(1, 1/2), the worst noise in the outputs, and the weak direction misread."""
    rows, target = np.diag([0.5, 1.0]), np.diag([4.0, 0.0])
    outputs = np.diag([1 - 1e-9, 1.0])
    problem = Problem.stated(Observed(activations=rows, outputs=outputs), target, 1)
    statement = planted_rank.weights
    assert float(statement.realised(problem)) == approx(math.sqrt(16 + 1))
    assert float(statement.bound(problem).value) == pytest.approx(math.sqrt(5) / 0.5)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_stronger_activations_tell_more_of_the_weights(factor):
    problem = drawn(LINEAR)
    observed, truth = problem.observed, problem.truth
    scaled = Problem.stated(
        Observed(
            activations=factor * np.asarray(observed.activations),
            outputs=np.asarray(observed.outputs),
        ),
        np.asarray(truth.target_weights) / factor,
        2,
    )
    for side in ("realised", "bound"):
        once, twice = (getattr(planted_rank.weights, side)(p) for p in (problem, scaled))
        once, twice = (float(getattr(x, "value", x)) for x in (once, twice))
        assert twice == approx(once / factor)


@pytest.mark.parametrize(("q", "outputs"), [(24, 20), (7, 30), (50, 50)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("delta", [0.3, 0.01])
def test_the_bounds_for_gaussian_noise_are_never_above_five_times_the_edge(
    q, outputs, share, delta
):
    rank = max(1, round(share * min(q, outputs)))
    t = math.sqrt(2 * math.log(1 / delta))
    edge = math.sqrt(q) + math.sqrt(outputs)
    with jax.enable_x64(True):
        sides = float(q), float(outputs)
        count = float(squared_count(*sides, rank))
        mean = float(mean_worst_square(*sides, rank))
        likely = float(gaussian_worst_square(*sides, rank, delta))
    hidden = min(rank, min(q, outputs) - rank)
    assert count == 4 * hidden + rank
    assert mean <= 5 * rank * (edge**2 + 1)
    assert mean <= count * (edge**2 + 1)
    assert likely <= 5 * rank * (edge + t) ** 2
    assert likely >= mean


def test_what_cuts_nothing_errs_by_its_noise():
    """At full rank the error is the noise: no part of the signal is hidden."""
    setting = Setting(samples=40, inputs=24, outputs=20, rank=20, noise=noise.Gaussian(1.0))
    problem = setting.draw(key=jax.random.key(0))
    statement = planted_rank.any_noise
    assert float(statement.realised(problem)) == approx(float(statement.bound(problem).value))
    assert float(planted_rank.expectation.bound(problem).value) == approx(24 * 20)
    t = math.sqrt(2 * math.log(20))
    likely = (math.sqrt(480) + t) ** 2
    assert float(planted_rank.gaussian.bound(problem).value) == approx(likely)


@pytest.mark.parametrize("name", ["any_noise", "weights"])
def test_the_adversary_reaches_the_square_root_of_five(name):
    left, right = np.array([[0.0], [2.0], [0.0]]), np.array([[0.0, 1.0, 0.0, 0.0]])
    roots = np.array([0.0, 1.0, 0.0])  # outputs diag(1, 1, 0): the first is false
    assert replay(getattr(planted_rank, name), (left, right, roots)) == pytest.approx(1, abs=1e-4)
