"""Extreme singular values of Gaussian noise: laws, exact cases, and an oracle in NumPy."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats

import oracle
from laws import map_is_a_loop, scales, turns
from lowrank_theory.generators import activations, noise
from lowrank_theory.problems import Layer, Observed, Problem, Setting, Truth
from lowrank_theory.theorems.gaussian_noise import (
    edge_fluctuation,
    gaussian_noise,
    leading_edge,
    leading_squares,
    lower_edge,
    upper_edge,
)
from statements import by_name, drawn, in_float64, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

STATEMENTS = by_name(gaussian_noise)
BELOW = ("smallest", "expected_smallest")
SETTING = Setting(samples=20, inputs=9, outputs=4, rank=2, noise=noise.Gaussian(0.7))
DELTA = 0.05


def problem(rows: np.ndarray, residual: np.ndarray, scale: float, rank: int = 2) -> Problem:
    """Known noise of a known scale; the target is zero."""
    observed = Observed(activations=rows, outputs=residual)
    target = np.zeros((rows.shape[1], residual.shape[1]))
    yes = np.asarray(True)
    truth = Truth(target, residual, rows, np.asarray(scale), yes, yes, independent_noise=yes)
    return Problem(observed, truth, rank)


def random_problem(seed: int, q: int, outputs: int, scale: float = 0.7, rank: int = 2) -> Problem:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((15, q)) @ random.standard_normal((q, max(q, rank)))
    return problem(rows, scale * random.standard_normal((15, outputs)), scale, rank)


@pytest.mark.parametrize(("q", "outputs"), [(7, 3), (3, 7)])
def test_every_statement_against_its_formula_in_numpy(q, outputs):
    instance, scale = random_problem(q, q, outputs), 0.7
    left, values, _ = np.linalg.svd(np.asarray(instance.truth.layer_inputs))
    projected = left[:, : np.sum(values > 1e-9)].T @ np.asarray(instance.truth.noise)
    assert projected.shape == (q, outputs)
    s = np.linalg.svd(projected, compute_uv=False)
    long, short = math.sqrt(6.5), math.sqrt(3)
    tau = oracle.edge_fluctuation(1 / short - 1 / long, DELTA)
    above = math.sqrt(7) + math.sqrt(3)
    expected = {
        "largest": (s[0], scale * oracle.upper_edge(7, 3, DELTA)),
        "smallest": (s[2], scale * (long - short - tau)),
        "expected_largest": (s[0], scale * above),
        "expected_smallest": (s[2], scale * (math.sqrt(7) - math.sqrt(3))),
        "leading": (
            s[0] ** 2 + s[1] ** 2,
            scale**2 * (above**2 + (math.sqrt(7) + math.sqrt(2)) ** 2 - 1),
        ),
        "inverse": (np.sum(s**-2.0), 3 / (scale**2 * (7 - 3 - 1))),
    }
    for name, pair in expected.items():
        assert_close(sides(STATEMENTS[name], instance), pair)


@pytest.mark.parametrize("name", ["largest", "smallest", "leading", "inverse"])
def test_both_sides_scale_with_the_units_of_the_noise(name):
    truth = random_problem(1, 7, 3).truth
    rows, residual = np.asarray(truth.layer_inputs), np.asarray(truth.noise)
    scales(
        lambda unit: sides(STATEMENTS[name], problem(rows, unit * residual, unit * 0.7)),
        {"leading": 2, "inverse": -2}.get(name, 1),
    )


@pytest.mark.parametrize("name", ["largest", "smallest", "leading", "inverse"])
def test_rotations_of_samples_inputs_and_outputs_change_nothing(name):
    truth = random_problem(2, 6, 3).truth
    turns(
        lambda rows, residual: sides(STATEMENTS[name], problem(rows, residual, 0.7)),
        "si,so->",
        *map(np.asarray, (truth.layer_inputs, truth.noise)),
    )


@pytest.mark.slow
def test_only_the_rank_of_the_activations_enters():
    deficient = dataclasses.replace(SETTING, activations=activations.RankDeficient(3))
    with jax.enable_x64(True):
        seen = gaussian_noise.largest.estimate(drawn(deficient))
        least = float(seen.least)
    assert (float(seen.longer), float(seen.shorter)) == (4, 3)
    assert least > 1e-3 > np.asarray(seen.values)[3]
    many = dataclasses.replace(SETTING, samples=60).draw(key=jax.random.key(0))
    few = drawn(SETTING)
    assert sides(gaussian_noise.largest, many)[1] == approx(sides(gaussian_noise.largest, few)[1])


@pytest.mark.slow
def test_unprojected_noise_is_larger_and_half_of_it_smaller():
    instance = drawn(SETTING, 1)
    for name, statement in STATEMENTS.items():
        with jax.enable_x64(True):
            wrong = float(statement.loss(instance, statement.broken_estimate(instance)))
        realised = float(statement.realised(instance))
        if name in BELOW:
            assert wrong == approx(realised / 2)
        else:
            s = np.linalg.svd(np.asarray(instance.truth.noise), compute_uv=False)
            expected = {"leading": np.sum(s[:2] ** 2), "inverse": np.sum(s**-2.0)}
            assert wrong == approx(expected.get(name, s[0]))


def test_edge_fluctuation_by_hand():
    assert in_float64(edge_fluctuation, 0.5, math.exp(-2)) == approx((9 / 16) ** (1 / 3))
    # For tiny probabilities Gaussian concentration is the better one.
    assert in_float64(edge_fluctuation, 2.0, math.exp(-100)) == approx(math.sqrt(200))
    assert in_float64(edge_fluctuation, 0.0, 0.5) == 0


def test_edges_by_hand():
    # q = 16, K = 4, δ = 1/e: the widths are 3/4, and 1/2 - 15.5^(-1/2).
    delta = math.exp(-1)
    assert in_float64(upper_edge, 16.0, 4, delta) == approx(6 + (27 / 128) ** (1 / 3))
    width = 0.5 - 15.5**-0.5
    expected = math.sqrt(15.5) - 2 - (9 * width / 32) ** (1 / 3)
    assert in_float64(lower_edge, 16.0, 4.0, delta) == approx(expected)
    assert in_float64(upper_edge, 16.0, 4, 0.1) < in_float64(upper_edge, 16.0, 4, 0.01)
    assert in_float64(lower_edge, 16.0, 4.0, 0.1) > in_float64(lower_edge, 16.0, 4.0, 0.01)


def test_leading_squares_by_hand():
    with jax.enable_x64(True):
        squares = np.asarray(leading_squares(9.0, 4.0, 4))
        beyond = np.asarray(leading_squares(9.0, 1.0, 3))
    by_hand = [25, (3 + math.sqrt(3)) ** 2, (3 + math.sqrt(2)) ** 2, 16]
    assert squares == approx(np.array(by_hand) - 0.5)
    assert beyond == approx([15.5, 0, 0])  # beyond the shorter side there is nothing


def test_leading_edge_is_the_smaller_of_two_bounds():
    """Never above that of the norm, times the root of how many are counted; all of them are no more
    than the whole matrix.
    """
    for delta, rows, columns in itertools.product((0.5, 0.05, 1e-9), (9, 40), (4, 24)):
        edge, t = oracle.upper_edge(rows, columns, delta), math.sqrt(2 * math.log(1 / delta))
        longer, shorter = max(rows, columns), min(rows, columns)
        for rank in (1, 3, shorter, shorter + 5):
            found = in_float64(leading_edge, float(rows), columns, rank, delta)
            squares = [
                (math.sqrt(longer) + math.sqrt(shorter - i)) ** 2 - 0.5
                for i in range(min(rank, shorter))
            ]
            mean = math.sqrt(min(sum(squares), rows * columns))
            assert found == pytest.approx(min(math.sqrt(len(squares)) * edge, mean + t))


@pytest.mark.parametrize("q", [1, 2, 5, 30, 1000])
@pytest.mark.parametrize("delta", [0.9, 0.5, 0.05, 1e-6, 1e-30])
def test_one_output_has_the_chi_law(q, delta):
    """The exact probabilities of a vector's norm are within the claims."""
    assert stats.chi.sf(in_float64(upper_edge, float(q), 1, delta), q) <= delta
    if q > 1:
        assert stats.chi.cdf(in_float64(lower_edge, float(q), 1.0, delta), q) <= delta
    assert float(np.asarray(stats.chi.mean(q))) <= math.sqrt(q) + 1
    with jax.enable_x64(True):
        assert q <= float(leading_squares(float(q), 1.0, 1)[0])


def test_fluctuations_are_those_of_tracy_and_widom():
    """The right tail of the limit law decays like exp(-2 x^{3/2} / 3), x = 2 t / width^{1/3}."""
    for width in (0.01, 1.0):
        delta = 1e-3
        t = in_float64(edge_fluctuation, width, delta)
        assert (2 / 3) * (2 * t / width ** (1 / 3)) ** 1.5 == approx(math.log(1 / delta))


VIOLATIONS = {
    "other noise": dataclasses.replace(SETTING, noise=noise.Laplace(0.7)),
    "square": Setting(samples=20, inputs=4, outputs=4, rank=2),
    "nearly square": Setting(samples=20, inputs=5, outputs=4, rank=2),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_bound_outside_the_hypotheses(name):
    statement = STATEMENTS[name]
    outside = {"smallest": ("square",), "inverse": ("square", "nearly square")}.get(name, ())
    for label, setting in VIOLATIONS.items():
        bound = statement.bound(drawn(setting))
        if label == "other noise" or label in outside:
            assert float(bound.value) == (-math.inf if name in BELOW else math.inf)
            with pytest.raises(Exception, match="does not hold, so there is no bound"):
                bound.require()
        else:
            assert math.isfinite(float(bound.require()))


def test_a_layer_has_no_noise_to_speak_of():
    layer = Layer(Observed(weights=np.eye(3), activations=np.eye(3)), 1)
    with pytest.raises(ValueError, match="needs the truth"):
        gaussian_noise.largest.bound(layer)


def test_one_trial_after_another_is_each_by_itself():
    statement = gaussian_noise.smallest

    def both(key: Any) -> Any:
        instance = SETTING.draw(key=key)
        estimate = statement.estimate(instance)
        formula = statement.formula(instance, estimate)
        return statement.loss(instance, estimate), formula

    with jax.enable_x64(True):
        map_is_a_loop(both, jax.random.split(jax.random.key(0), 3))
