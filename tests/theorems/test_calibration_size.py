"""Calibration size: the sure bounds in the realised deviation, and the ridge, against NumPy."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest

from laws import scales, turns
from lowrank_theory.calibration import Calibration
from lowrank_theory.generators import activations, spectra, targets
from lowrank_theory.problems import Observed, Problem, Truth
from lowrank_theory.theorems.calibration_size import (
    FreshRows,
    Ridge,
    RidgeGaussian,
    calibration_size,
)
from lowrank_theory.verification import verify
from lowrank_theory.verification.attack import attack
from statements import by_name, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

STATEMENTS = by_name(calibration_size)
NEW = ("no_gap", "gap", "gaussian", "ridge", "ridge_gaussian")
SURE = ("no_gap", "gap", "ridge")
SETTING = FreshRows(
    samples=40,
    inputs=5,
    outputs=4,
    rank=1,
    activations=activations.GaussianRows(spectra.PowerLaw(1.0)),
    target=targets.ApproximateRank(),
)
SIDES = 2 * math.exp(-2)  # the failure probability at which t = 2
new_statements = pytest.mark.parametrize("name", NEW)


def stated(weights: Any, second_moment: Any, sample: Any, rank: int, count: float = 50) -> Problem:
    """A layer of which the true and the sample's second moments are given."""
    weights, second_moment, sample = (
        np.asarray(x, float) for x in (weights, second_moment, sample)
    )
    inputs = len(sample)
    seen = Calibration(np.asarray(float(count)), np.zeros(inputs), count * sample)
    nothing, true = np.zeros((1, inputs)), np.asarray(True)
    truth = Truth(
        weights,
        np.zeros((1, weights.shape[1])),
        nothing,
        np.asarray(0.0),
        true,
        true,
        second_moment,
        independent_weights=true,
    )
    return Problem(Observed(weights=weights, calibration=seen), truth, rank)


def random_problem(size: float = 0.05, rank: int = 1, seed: int = 0, count: float = 50) -> Problem:
    random = np.random.default_rng(seed)
    weights = random.standard_normal((5, 4)) @ np.diag([3.0, 1.5, 1.0, 0.5])
    root = random.standard_normal((7, 5))
    other = root + size * random.standard_normal((7, 5))
    return stated(weights, root.T @ root, other.T @ other, rank, count)


def arrays(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Weights, true and sample second moment, and the number of rows."""
    seen = problem.observed.calibration
    assert seen is not None
    assert problem.truth.second_moment is not None
    count = float(np.asarray(seen.count))
    true = np.asarray(problem.truth.second_moment)
    return np.asarray(problem.observed.weights), true, np.asarray(seen.gram()) / count, count


def descending(matrix: np.ndarray) -> np.ndarray:
    return np.sort(np.linalg.eigvalsh(matrix))[::-1]


def recovered(weights: np.ndarray, moment: np.ndarray, rank: int) -> np.ndarray:
    _, vectors = np.linalg.eigh(weights.T @ moment @ weights)
    top = vectors[:, ::-1][:, :rank]
    return weights @ top @ top.T


def loss(weights: np.ndarray, moment: np.ndarray, found: np.ndarray) -> float:
    return float(np.trace((weights - found).T @ moment @ (weights - found)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("size", [0.02, 0.05, 1.0])
def test_deviation_bounds_against_numpy(rank, size):
    problem = random_problem(size, rank)
    weights, true, sample, _ = arrays(problem)
    eigenvalues = descending(weights.T @ true @ weights)
    deviation = descending(weights.T @ (sample - true) @ weights)
    excess = loss(weights, true, recovered(weights, sample, rank)) - eigenvalues[rank:].sum()
    exchanged = min(rank, 4 - rank)
    most = deviation[:exchanged].sum() - deviation[4 - exchanged :].sum()
    assert sides(calibration_size.no_gap, problem) == approx((excess, most), condition=1e4)
    gap, spread = eigenvalues[rank - 1] - eigenvalues[rank], deviation[0] - deviation[-1]
    bound = most * math.tan(math.asin(spread / gap) / 2) / 2 if spread < gap else math.inf
    assert sides(calibration_size.gap, problem)[1] == approx(bound)
    assert excess <= min(bound, most)
    assert most <= 2 * exchanged * abs(deviation).max() * (1 + 1e-12)


def test_leading_constant_by_hand():
    """Eigenvalues 4, 1, 1/4: the first changes places with the others."""
    problem = stated(np.diag([2.0, 1.0, 0.5]), np.eye(3), np.eye(3), 1, count=1e5)
    expected = (4 * 1 / (4 - 1) + 4 * 0.25 / (4 - 0.25)) / 1e5
    assert sides(calibration_size.leading_constant, problem)[1] == approx(expected)


@pytest.mark.parametrize("count", [50.0, 1e7])
def test_gaussian_bound_by_hand(count):
    """Eigenvalues 4, 1, 0: dimension two, effective rank 5/4, a gap of three."""
    weights, sample = np.diag([2.0, 1.0, 0.0]), np.eye(3)
    problem = stated(weights, np.eye(3), sample, 1, count)
    fluctuation = (9 * (2**-0.5 + count**-0.5) / 8) ** (1 / 3)
    a = min(math.sqrt(2) + fluctuation, math.sqrt(1.25) + 2 + 0.5 / math.sqrt(math.pi))
    a /= math.sqrt(count)
    spread = 8 * (2 * a + a**2)
    expected = spread if spread >= 3 else spread * math.tan(math.asin(spread / 3) / 2) / 2
    found = sides(calibration_size.gaussian, problem, failure_probability=SIDES)
    assert found == approx((0, expected))


@pytest.mark.parametrize("name", ["ridge", "ridge_gaussian"])
def test_rounding_under_a_ridge_is_that_of_all_that_is_penalised(name):
    problem = random_problem()
    statement: Any = STATEMENTS[name]
    weights = np.asarray(problem.observed.weights)
    with jax.enable_x64(True):
        total = np.asarray(statement.total(problem))
        magnitude = float(statement.magnitude(problem))
    assert magnitude == approx(np.trace(weights.T @ total @ weights))


@pytest.mark.parametrize("strength", [0.01, 0.1, 1.0])
def test_ridge_against_numpy(strength):
    problem = random_problem(0.3, 2)
    weights, true, sample, count = arrays(problem)
    mu = strength * np.trace(true) / 5
    total, seen = true + mu * np.eye(5), sample + mu * np.eye(5)
    realised = loss(weights, total, recovered(weights, seen, 2))
    ratios = np.sort(np.linalg.eigvals(np.linalg.solve(total, seen)).real)
    least = descending(weights.T @ total @ weights)[2:].sum()
    statement = Ridge(strength)
    assert float(statement.realised(problem)) == approx(realised)
    bound = float(statement.bound(problem).value)
    assert bound == approx(ratios[-1] / ratios[0] * least)
    assert least <= realised <= bound
    # The corollary: with the norm of the deviation, and any competitor of the rank.
    e = max(ratios[-1] - 1, 1 - ratios[0])
    competitor = recovered(weights, true, 2)
    weaker = (1 + e) / (1 - e) * loss(weights, total, competitor) if e < 1 else math.inf
    assert loss(weights, true, recovered(weights, seen, 2)) <= bound <= weaker

    gaussian = RidgeGaussian(strength)
    assert float(gaussian.realised(problem)) == approx(realised)
    best = weights - recovered(weights, total, 2)
    values, vectors = np.linalg.eigh(true)
    residual = (vectors * np.sqrt(values)) @ vectors.T @ best
    lost = np.linalg.svd(residual, compute_uv=False) ** 2
    shown = lost.sum() + 2 * math.sqrt(2 * np.sum(lost**2) / count) + 4 * lost[0] / count
    share = values[-1] / (values[-1] + mu)
    dimension = np.sum(values / (values + mu))
    less = math.sqrt(count - 0.5)
    fluctuation = (9 * (5**-0.5 - 1 / less) / 8) ** (1 / 3)
    epsilon = min(
        math.sqrt(dimension) + math.sqrt(share) * 2.3688,
        math.sqrt(share) * (math.sqrt(count) - less + math.sqrt(5) + fluctuation),
    ) / math.sqrt(count)
    expected = (shown + mu * np.sum(best**2)) / (
        1 - share + max(math.sqrt(share) - epsilon, 0) ** 2
    )
    bound = gaussian.bound(problem, failure_probability=SIDES)
    assert float(bound.value) == approx(expected)


@pytest.mark.parametrize("delta", [0.9, 0.05, 1e-9])
def test_no_bound_is_above_the_classical_one(delta):
    """With the deviations of Davidson and Szarek, 3/4, and the Gaussian concentration of a norm in
    the place of the sharper ones.
    """
    for count in (50.0, 2000.0):
        problem = random_problem(0.3, 2, count=count)
        weights, true, _, _ = arrays(problem)
        t, root = math.sqrt(2 * math.log(2 / delta)), math.sqrt(count)
        eigenvalues = descending(weights.T @ true @ weights)
        numerator = math.sqrt(eigenvalues[2:].sum()) + t * math.sqrt(eigenvalues[2]) / root
        bound = sides(calibration_size.relative, problem, failure_probability=delta)[1]
        if 2 + t < root:
            assert bound <= (numerator / (1 - (2 + t) / root)) ** 2

        statement = RidgeGaussian()
        values, vectors = np.linalg.eigh(true)
        mu = statement.strength * values.mean()
        total = true + mu * np.eye(5)
        best = weights - recovered(weights, total, 2)
        residual = (vectors * np.sqrt(values)) @ vectors.T @ best
        lost = np.linalg.norm(residual) + t * np.linalg.norm(residual, 2) / root
        share, dimension = values[-1] / (values[-1] + mu), np.sum(values / (values + mu))
        epsilon = min(
            math.sqrt(dimension) + math.sqrt(share) * (t + 0.75),
            math.sqrt(share) * (math.sqrt(5) + t),
        )
        least = 1 - share + max(math.sqrt(share) - epsilon / root, 0) ** 2
        bound = float(statement.bound(problem, failure_probability=delta).value)
        assert bound <= (1 + 1e-9) * (lost**2 + mu * np.sum(best**2)) / least


@new_statements
def test_rows_and_their_moments_say_the_same(name):
    drawn = SETTING.draw(key=jax.random.key(0))
    rows = drawn.observed.activations
    assert rows is not None
    seen = Calibration.empty(5).update(rows)
    observed = Observed(weights=drawn.observed.weights, calibration=seen)
    moments = Problem(observed, drawn.truth, 1)
    assert_close(sides(STATEMENTS[name], moments), sides(STATEMENTS[name], drawn), condition=10)


@new_statements
def test_both_sides_scale_with_the_units(name):
    weights, true, sample, count = arrays(random_problem())

    def both(weights, true, sample):
        return sides(STATEMENTS[name], stated(weights, true, sample, 1, count))

    scales(lambda unit: both(unit * weights, true, sample), 2, condition=1e3)
    scales(lambda unit: both(weights, unit**2 * true, unit**2 * sample), 2, condition=1e3)


@new_statements
def test_both_sides_do_not_depend_on_the_basis(name):
    *moments, count = arrays(random_problem())
    turns(
        lambda w, true, sample: sides(STATEMENTS[name], stated(w, true, sample, 1, count)),
        "io,ii,ii->",
        *moments,
        condition=1e4,
    )


def test_components_that_change_places_attain_the_bound():
    problem = stated(np.eye(2), np.diag([2.0, 0.0]), np.diag([1.0, 1.0 + 1e-6]), 1)
    assert sides(calibration_size.no_gap, problem) == pytest.approx((2, 2), rel=1e-5)
    assert sides(calibration_size.gap, problem)[1] == math.inf


def test_ridge_by_hand():
    """Eigenvalues 1.5 and 0.5 of C + mu, and both 0.75 as seen: three times the optimum."""
    mu = 0.1 * 0.8 / 1.1  # of which ten times is the mean of what remains
    true = np.diag([1.5, 0.5]) - mu * np.eye(2)
    strength = mu / np.trace(true) * 2
    sample = np.diag([0.75, 0.75 + 1e-6]) - mu * np.eye(2)
    statement, problem = Ridge(strength), stated(np.eye(2), true, sample, 1)
    assert float(statement.realised(problem)) == approx(1.5)
    assert float(statement.bound(problem).value) == pytest.approx(1.5, rel=1e-5)


@pytest.mark.slow
def test_at_full_rank_nothing_is_lost():
    problem = random_problem(0.3, 4)
    for name in ("no_gap", "gaussian", "ridge"):
        assert sides(STATEMENTS[name], problem) == approx((0, 0), scale=1)


@pytest.mark.parametrize("name", ["no_gap", "ridge"])
def test_what_a_compressed_network_sees_plays_no_part(name):
    rows = np.random.default_rng(1).standard_normal((2, 9, 5))
    problem = random_problem()
    weights = problem.observed.weights
    one, other = (
        Problem(Observed(weights=weights, calibration=seen), problem.truth, 1)
        for seen in (
            Calibration.empty(5).update(rows[0]),
            Calibration.empty(5, compressed=True).update(*rows),
        )
    )
    assert sides(STATEMENTS[name], other) == approx(sides(STATEMENTS[name], one))


def test_hypotheses():
    problem = random_problem(10.0)
    bound = calibration_size.gap.bound(problem)
    assert [h.name for h in bound.hypotheses if not h.holds] == [
        "the gap exceeds the spread of the deviation"
    ]
    with pytest.raises(RuntimeError, match="does not hold"):
        jax.block_until_ready(bound.require())
    tie = stated(np.eye(2), np.eye(2), np.eye(2), 1)
    assert sides(calibration_size.gap, tie)[1] == math.inf
    assert sides(calibration_size.no_gap, tie) == approx((0, 0))
    other = dataclasses.replace(problem.truth, gaussian_rows=np.asarray(False))
    for name in ("gaussian", "ridge_gaussian"):
        bound = STATEMENTS[name].bound(Problem(problem.observed, other, 1))
        assert [h.name for h in bound.hypotheses if not h.holds] == [
            "the activations are independent Gaussian rows"
        ]
        assert float(bound.value) == math.inf
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="`strength` must be a positive finite number"):
            Ridge(wrong)


@pytest.mark.parametrize("name", SURE)
def test_the_attack_reaches_the_bound(name):
    witness = attack(STATEMENTS[name], key=jax.random.key(0), restarts=4, steps=400)
    assert 0.99 <= witness.ratio <= 1


@pytest.mark.parametrize("name", ["no_gap", "gap", "gaussian"])
def test_sampling_agrees_and_catches_what_is_wrong(name):
    statement = STATEMENTS[name]
    regimes = {"many rows": statement.regimes["many rows"]}
    report = verify(statement, trials=100, key=jax.random.key(0), settings=regimes)
    assert report.verdict.value == "consistent"
