"""The two bounds on the norm of sub-Gaussian noise: constants, optimality of grids, an oracle."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from laws import scales
from lowrank_theory.generators import noise
from lowrank_theory.problems import Setting
from lowrank_theory.theorems.planted_rank import planted_rank
from lowrank_theory.theorems.subgaussian_noise import (
    squared_cloud_bound,
    squared_net_bound,
    subgaussian_noise,
)
from statements import by_name, drawn, in_float64, sides
from tolerance import approx

pytestmark = pytest.mark.thinned(4)

STATEMENTS = by_name(subgaussian_noise)
SETTING = Setting(samples=20, inputs=7, outputs=4, rank=2, noise=noise.Rademacher(0.7))
SIZES = [(1, 1), (60, 90), (2, 500), (500, 2), (1000, 1000)]


def at_spacings(q: int, outputs: int, t: float, spacings: Any) -> float:
    e, h = spacings
    points = 2 * q * math.log1p(2 / e) + 2 * outputs * math.log1p(2 / h) + t**2
    return points / ((1 - e**2 / 2) * (1 - h**2 / 2)) ** 2


@pytest.mark.parametrize(("q", "outputs"), SIZES)
@pytest.mark.parametrize("delta", [0.5, 0.01, 1e-6])
def test_net_bound_is_the_best_of_its_family(q, outputs, delta):
    t = math.sqrt(2 * math.log(1 / delta))
    value = in_float64(squared_net_bound, float(q), outputs, delta)

    def at(spacings: Any) -> float:
        return at_spacings(q, outputs, t, 1 / (1 + np.exp(spacings)))

    best = optimize.minimize(at, [0.5, 0.5], method="Nelder-Mead").fun
    assert best * (1 - 1e-6) <= value <= 1.005 * best
    # One spacing for both, as in the docstring.
    assert value <= at_spacings(q, outputs, t, (0.3214, 0.3214)) * 1.001
    assert math.sqrt(value) <= 2.212 * math.sqrt(q + outputs) + 1.112 * t
    assert in_float64(squared_cloud_bound, float(q), outputs, delta) <= value


def test_constants_of_one_spacing():
    shrinkage = (1 - 0.3214**2 / 2) ** 2
    assert math.sqrt(2 * math.log(1 + 2 / 0.3214)) / shrinkage == pytest.approx(2.212, abs=1e-3)
    assert 1 / shrinkage == pytest.approx(1.112, abs=1e-3)


def test_bounds_fall_with_the_failure_probability_allowed():
    for bound in (squared_cloud_bound, squared_net_bound):
        values = [in_float64(bound, 9.0, 4, delta) for delta in (1e-6, 0.01, 0.5)]
        assert values == sorted(values, reverse=True)


def test_planted_rank_speaks_of_the_same_clouds():
    with jax.enable_x64(True):
        value = planted_rank.sub_gaussian.worst_square(jnp.asarray(9.0), 4, 2)
    assert float(value) == 10 * in_float64(squared_cloud_bound, 9.0, 4, 0.05)


@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_against_numpy(name):
    statement, problem = STATEMENTS[name], drawn(SETTING)
    left, _, _ = np.linalg.svd(np.asarray(problem.truth.layer_inputs), full_matrices=False)
    residual = np.asarray(problem.truth.noise)
    realised = float(statement.realised(problem))
    assert realised == approx(np.linalg.norm(left.T @ residual, 2))
    square = squared_cloud_bound if name.endswith("pac_bayes") else squared_net_bound
    bound = statement.bound(problem, failure_probability=0.01)
    assert float(bound.require()) == approx(0.7 * math.sqrt(in_float64(square, 7.0, 4, 0.01)))
    with jax.enable_x64(True):
        wrong = statement.broken_estimate(problem)
        assert float(statement.loss(problem, wrong)) == approx(np.linalg.norm(residual, 2))
        assert float(statement.magnitude(problem)) == approx(np.linalg.norm(residual))


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_bound_without_a_sub_gaussian_constant(name):
    heavy = dataclasses.replace(SETTING, noise=noise.Laplace(0.7)).draw(key=jax.random.key(0))
    bound = STATEMENTS[name].bound(heavy)
    assert float(bound.value) == math.inf
    with pytest.raises(Exception, match="independent and sub-Gaussian' does not hold"):
        bound.require()


@pytest.mark.parametrize("name", STATEMENTS)
def test_both_sides_scale_with_the_units_of_the_noise(name):
    problem = drawn(SETTING)

    def at(unit):
        truth = dataclasses.replace(
            problem.truth,
            noise=unit * np.asarray(problem.truth.noise),
            noise_scale=np.asarray(unit * 0.7),
        )
        return sides(STATEMENTS[name], dataclasses.replace(problem, truth=truth))

    scales(at)
