"""The price of a rank: values by hand, the note's corollaries, and hypotheses."""

import itertools
import math
from typing import Any

import jax
import numpy as np
import pytest

from laws import scales
from lowrank_theory.generators import noise, targets
from lowrank_theory.problems import Observed, Problem, ReluThenNoise, Setting
from lowrank_theory.theorems.rank_penalty import (
    DetectedRank,
    ExactRank,
    Gaussian,
    Oracle,
    SelectedRank,
    rank_penalty,
)
from lowrank_theory.verification.attack import replay
from oracle import upper_edge
from statements import by_name, drawn, sides, stated
from tolerance import approx

pytestmark = pytest.mark.thinned(5)

LINEAR = Setting(samples=20, inputs=8, outputs=6, rank=2)
STATEMENTS = by_name(rank_penalty)


def worst_case(clean: Any, threshold: float, level: float) -> float:
    """The formula, in plain loops."""
    count = len(clean)
    best = 0.0
    for kept in range(count + 1):
        if (
            sum(s > threshold + level for s in clean)
            <= kept
            <= sum(s > threshold - level for s in clean)
        ):
            missed = 0.0
            for i in range(count - kept):
                shifted = clean[i + kept] if i + kept < count else 0.0
                missed += min(clean[i], shifted + 2 * level, threshold + level) ** 2
            best = max(best, kept * level**2 + missed)
    return best


@pytest.mark.slow
def test_nothing_above_the_threshold_costs_everything():
    """Threshold 2, noise 1: what is seen of 2.999 is 1.999."""
    problem = stated([2.999, 2.999, 0], [-1, -1, 1], rank=2)
    for statement in (Oracle(price=4.0), ExactRank(price=4.0)):
        realised, bound = sides(statement, problem)
        assert realised == approx(2 * 2.999**2)
        assert bound == pytest.approx(18, rel=1e-3)
    assert sides(SelectedRank(price=4.0), problem) == (0.0, 2.0)
    assert sides(DetectedRank(price=4.0), problem) == (0.0, 0.0)


@pytest.mark.slow
def test_small_components_beside_large_ones_attain_the_oracle():
    """Of four about the threshold less the noise, the noise lifts two; it sinks two above."""
    problem = stated([2.999, 2.999, 1.001, 1.001, 0.999, 0.999], [-1, -1, 1, 1, -1, -1], rank=6)
    realised, bound = sides(Oracle(price=4.0), problem)
    assert realised == pytest.approx(2 * 9 + 2 * 1 + 2 * 1, rel=2e-3)
    assert realised <= bound == pytest.approx(22, rel=2e-3)
    assert sides(SelectedRank(price=4.0), problem) == (2.0, 4.0)


@pytest.mark.slow
def test_swapped_components_cost_five():
    """At lambda = nu the noise hides two and shows two that are not there."""
    problem = stated([2, 2, 0, 0], [-1, -1, 1, 1], rank=2)
    level = 1 - 1e-9
    realised, bound = sides(ExactRank(price=1.0), stated([2, 2, 0, 0], [-1, -1, 0.5, 0.5], 2))
    assert realised == approx(8)
    assert bound == approx(10)
    realised, bound = sides(Oracle(price=level), problem)
    assert bound == pytest.approx(10, rel=1e-8)


def test_five_is_approached_at_the_least_price():
    """What is kept, as its value is barely above the noise, is almost orthogonal to the target."""
    small = 0.01
    direction = np.array([small, math.sqrt(1 - small**2)])
    target = (2 - 3 * small) * np.kron(np.outer(direction, direction), np.eye(2))
    outputs = np.diag(np.repeat([1 + small**3 / 2, 1 - small], 2))
    problem = Problem.stated(Observed(activations=np.eye(4), outputs=outputs), target, 2)
    realised, bound = sides(ExactRank(price=1.0), problem)
    assert bound == pytest.approx(10, rel=1e-5)
    assert 0.97 * bound < realised <= bound


def test_no_rank_is_above_that_of_the_activations():
    """Where noise alone is above the threshold, zero components may be selected: but only d."""
    activations = np.diag([1.0, 1.0, 0.0, 0.0])
    problem = Problem.stated(
        Observed(activations=activations, outputs=np.eye(4)), np.zeros((4, 4)), 2
    )
    assert sides(SelectedRank(price=0.25), problem) == (2.0, 2.0)
    assert sides(Oracle(price=0.25), problem) == approx((2.0, 2.0))


@pytest.mark.slow
def test_strong_components_are_detected():
    problem = stated([10, 8, 0], [0.5, -0.5, 0.5], rank=2)
    assert sides(DetectedRank(), problem) == (2.0, 2.0)
    assert sides(SelectedRank(), problem) == (2.0, 2.0)
    realised, bound = sides(Oracle(), problem)
    assert realised == approx(0.5)
    # j = 2 only: 2 nu^2, and one more from s_1 that may hide behind s_3 + 2 nu = 1
    assert bound == approx(0.5 + 1)


@pytest.mark.parametrize("price", [0.3, 3.0])
@pytest.mark.parametrize("scale", [0.05, 0.5, 1.0])
def test_the_oracle_is_its_formula(price, scale):
    setting = Setting(
        samples=20,
        inputs=8,
        outputs=6,
        rank=2,
        target=targets.ApproximateRank(),
        noise=noise.Gaussian(scale),
    )
    problem = drawn(setting, 1)
    rows, target, error = (
        np.asarray(part)
        for part in (
            problem.truth.layer_inputs,
            problem.truth.target_weights,
            problem.truth.noise,
        )
    )
    clean = np.linalg.svd(rows @ target, compute_uv=False)
    level = float(np.linalg.norm(np.linalg.qr(rows)[0].T @ error, 2))
    realised, bound = sides(Oracle(price), problem)
    assert bound == approx(worst_case(clean, math.sqrt(price) * level, level))
    assert realised <= bound
    left, values, right = np.linalg.svd(rows @ np.linalg.pinv(rows) @ (rows @ target + error))
    kept = values > math.sqrt(price) * level
    fit = left[:, : len(values)] * (values * kept) @ right
    assert realised == approx(np.sum((fit - rows @ target) ** 2), condition=10)
    most, least = SelectedRank(price), DetectedRank(price)
    assert sides(most, problem)[0] == sides(least, problem)[0] == kept.sum()
    assert sides(most, problem)[1] == np.sum(clean > (math.sqrt(price) - 1) * level)
    assert sides(least, problem)[1] == np.sum(clean > (math.sqrt(price) + 1) * level)


@pytest.mark.parametrize("theta", [0.2, 1.0, 2.0, 10.0])
def test_the_oracle_is_below_its_corollaries(theta):
    """The simple form, and that of the literature, over spectra of up to three values."""
    level, threshold, constant = 1.0, math.sqrt(1 + theta), 1 + 2 / theta
    for clean in itertools.product(np.linspace(0, 2 * threshold + 2, 9), repeat=3):
        spectrum = sorted(clean, reverse=True)
        sharp = worst_case([*spectrum, 0.0, 0.0], threshold, level)
        simple = sum(min(s, threshold + level) ** 2 + (s > threshold - level) for s in spectrum)
        known = sum(min(constant**2 * s**2, 2 * constant * (1 + theta)) for s in spectrum)
        assert sharp <= simple * (1 + 1e-12)
        assert simple <= known * (1 + 1e-12)


@pytest.mark.parametrize("price", [1.0, 1.4, 3.0])
def test_the_exact_rank_bound_is_above_the_oracle(price):
    threshold = math.sqrt(price)
    for clean in itertools.product(np.linspace(0, 5, 11), repeat=2):
        spectrum = [*sorted(clean, reverse=True), 0.0, 0.0, 0.0]
        value = 2 * max((threshold + 1) ** 2, 5)
        assert worst_case(spectrum, threshold, 1.0) <= value * (1 + 1e-12)


@pytest.mark.parametrize("failure_probability", [0.3, 0.01])
def test_gaussian_is_the_oracle_of_the_largest_noise(failure_probability):
    problem = drawn(LINEAR)
    edge = 0.1 * upper_edge(8, 6, failure_probability)
    rows, target = (
        np.asarray(part) for part in (problem.truth.layer_inputs, problem.truth.target_weights)
    )
    clean = np.linalg.svd(rows @ target, compute_uv=False)
    bound = Gaussian(2.0).bound(problem, failure_probability=failure_probability)
    assert float(bound.value) == approx(worst_case(clean, math.sqrt(2) * edge, edge))


@pytest.mark.parametrize("name", STATEMENTS)
def test_units_do_not_matter(name):
    target, error = np.array([5.0, 2, 1]), np.array([-1, 0.5, 1])
    scales(
        lambda unit: sides(STATEMENTS[name], stated(unit * target, unit * error, rank=3)),
        0 if "rank" in name and name != "exact_rank" else 2,
    )


@pytest.mark.parametrize(
    ("name", "hypothesis", "setting"),
    [
        ("oracle", "clean outputs plus noise", {"link": ReluThenNoise()}),
        ("selected_rank", "clean outputs plus noise", {"link": ReluThenNoise()}),
        ("detected_rank", "clean outputs plus noise", {"link": ReluThenNoise()}),
        ("exact_rank", "rank at most r", {"target": targets.ApproximateRank()}),
        ("gaussian", "i.i.d. Gaussian", {"noise": noise.Laplace(0.1)}),
    ],
)
def test_outside_its_hypotheses_there_is_no_bound(name, hypothesis, setting):
    problem = Setting(20, 8, 6, 2, **setting).draw(key=jax.random.key(0))
    bound = STATEMENTS[name].bound(problem)
    assert float(bound.value) == (-math.inf if name == "detected_rank" else math.inf)
    with pytest.raises(RuntimeError, match=f"{hypothesis}.* does not hold"):
        jax.block_until_ready(bound.require())


@pytest.mark.slow
def test_a_price_below_that_of_the_noise_bounds_no_exact_rank():
    bound = ExactRank(price=0.9).bound(drawn(LINEAR))
    assert float(bound.value) == math.inf
    assert math.isfinite(float(Oracle(0.9).bound(drawn(LINEAR)).value))


@pytest.mark.parametrize("statement", [Oracle, ExactRank, Gaussian, SelectedRank, DetectedRank])
def test_a_price_is_positive(statement):
    with pytest.raises(ValueError, match="`price` must be a positive finite number"):
        statement(price=0.0)


def test_the_exact_rank_bound_is_reached_by_its_adversary():
    """A target just below the threshold plus the noise, opposed by the noise."""
    free = (np.array([[math.sqrt(3) + 1 - 1e-6], [0.0]]), np.ones((1, 1)), np.array([[-1.0], [0]]))
    assert replay(rank_penalty.exact_rank, free) == pytest.approx(1, abs=1e-5)
