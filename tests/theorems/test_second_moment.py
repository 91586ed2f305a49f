"""Second moments of samples: laws, exact cases, and the inversion of Chernoff's exponents."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special, stats

from laws import scales
from lowrank_theory.theorems.second_moment import (
    GaussianRows,
    ResampledRows,
    Rows,
    gaussian_deviation,
    gaussian_shortfall,
    relative_deviation,
    relative_shortfall,
    second_moment,
)
from lowrank_theory.verification import verify
from oracle import upper_edge
from statements import by_name, in_float64, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(6)

STATEMENTS = by_name(second_moment)
GAUSSIAN = ("relative", "absolute", "dimension_free", "expectation")
BOUNDED = ("leverage_above", "leverage_below")
SCALES = np.array([3.0, 2.0, 1.0, 0.5])
POPULATION = np.random.default_rng(1).standard_normal((12, 4))
SIDES = 2 * math.exp(-2)  # the failure probability at which t = 2
every_statement = pytest.mark.parametrize("name", STATEMENTS)


def drawn(name: str, seed: int = 0) -> Rows:
    key = jax.random.key(seed)
    if name in GAUSSIAN:
        return GaussianRows(60, SCALES).draw(key=key)
    return ResampledRows(60, POPULATION).draw(key=key)


def given(rows: Any, second: Any, *, gaussian: bool = True, leverage: float = math.inf) -> Rows:
    return Rows(
        np.asarray(rows, float),
        np.asarray(second, float),
        np.asarray(gaussian),
        np.asarray(leverage),
    )


def changed(instance: Rows, matrix: np.ndarray) -> Rows:
    """The rows in other coordinates."""
    rows, second = np.asarray(instance.rows), np.asarray(instance.second_moment)
    return Rows(
        rows @ matrix, matrix.T @ second @ matrix, instance.gaussian, np.asarray(instance.leverage)
    )


@every_statement
def test_realised_against_numpy(name):
    instance = drawn(name)
    rows, second = np.asarray(instance.rows), np.asarray(instance.second_moment)
    sample = rows.T @ rows / 60
    relative = np.sort(np.linalg.eigvals(np.linalg.solve(second, sample)).real)
    expected = {
        "relative": np.max(np.abs(np.sqrt(relative) - 1)),
        "leverage_above": relative[-1],
        "leverage_below": relative[0],
    }.get(name, np.linalg.norm(sample - second, 2))
    assert sides(STATEMENTS[name], instance)[0] == approx(expected)


def test_gaussian_bounds_by_hand():
    """M = 100, k = 4, t = 2, and rho = (9 + 4 + 1 + 1/4)/9."""
    instance = GaussianRows(100, SCALES).draw(key=jax.random.key(0))
    root, e = math.sqrt(14.25 / 9), upper_edge(100, 4, SIDES / 2) / 10 - 1
    half = 0.5 / math.sqrt(math.pi)
    a, linear, square = (root + 2 + half) / 10, (root + 1.33) / 10, (root + half) / 10
    for name, bound in (
        ("relative", e),
        ("absolute", 9 * (2 * e + e**2)),
        ("dimension_free", 9 * (2 * a + a**2)),
        ("expectation", 9 * (2 * linear + square**2 + 0.01)),
    ):
        found = sides(STATEMENTS[name], instance, failure_probability=SIDES)[1]
        assert found == approx(bound), name


def test_dimension_counts_only_what_is_there():
    instance = GaussianRows(100, np.array([3.0, 2.0, 0.0, 0.0])).draw(key=jax.random.key(0))
    e = upper_edge(100, 2, SIDES / 2) / 10 - 1
    assert sides(second_moment.relative, instance, failure_probability=SIDES)[1] == approx(e)
    # The directions without rows do not count.
    assert sides(second_moment.relative, instance)[0] < 1


def test_deviation_is_the_better_of_both():
    half = 0.5 / math.sqrt(math.pi)
    flat = in_float64(gaussian_deviation, jnp.ones(9), jnp.asarray(100.0), SIDES)
    assert flat == pytest.approx(upper_edge(100, 9, SIDES / 2) / 10 - 1)
    decaying = jnp.array([1.0] + [1e-4] * 99)
    steep = in_float64(gaussian_deviation, decaying, jnp.asarray(100.0), SIDES)
    assert steep == pytest.approx((math.sqrt(1.0099) + 2 + half) / 10)
    # From below at half the probability: of many directions, and of more of them than rows.
    below = in_float64(gaussian_shortfall, decaying, jnp.asarray(100.0), SIDES / 2)
    assert below == pytest.approx((math.sqrt(1.0099) + 2 + 0.3688) / 10)
    assert in_float64(gaussian_shortfall, jnp.ones(9), jnp.asarray(4.0), 0.1) > 1


def test_lengths_of_gaussian_vectors_stray_no_more_than_the_constants_say():
    """E(|h| - sqrt m)_+ and E(|h| - sqrt m)_- by the incomplete gamma function; beyond nine
    dimensions paper_notes/second_moment.md proves the second.
    """
    dimension = np.array([*range(1, 10), 20, 100, 1000])
    root, mean = np.sqrt(dimension), stats.chi.mean(dimension)
    inside = special.gammainc(dimension / 2, dimension / 2)
    below = root * inside - mean * special.gammainc((dimension + 1) / 2, dimension / 2)
    assert np.all(below < 0.3688)
    assert below[0] == pytest.approx(0.3688, abs=1e-4)
    above = below + mean - root
    assert np.all(above < 0.5 / math.sqrt(math.pi))
    assert above[-1] == pytest.approx(0.5 / math.sqrt(math.pi), rel=0.02)


@pytest.mark.parametrize("delta", [0.9, 0.05, 1e-9, 1e-60])
def test_one_direction_has_the_chi_law(delta):
    """The exact probability that one norm strays that far, from above and from below."""
    for samples in (1, 2, 5, 60):
        one, rows = jnp.ones(1), jnp.asarray(float(samples))
        root = math.sqrt(samples)
        for e in (
            in_float64(relative_deviation, 1.0, samples, delta),
            in_float64(lambda: gaussian_deviation(one, rows, delta)),  # noqa: B023
        ):
            outside = stats.chi.sf(root * (1 + e), samples) + stats.chi.cdf(root * (1 - e), samples)
            assert outside <= delta
        below = root * (1 - in_float64(lambda: gaussian_shortfall(one, rows, delta)))  # noqa: B023
        assert stats.chi.cdf(below, samples) <= delta


def test_no_bound_is_above_the_classical_one():
    """With t in the place of tau, 3/4 in that of both constants, and 2.53 and 0.24 on average."""
    for rank, samples, delta in itertools.product(
        (1, 2, 10, 59, 200), (1, 2, 10, 60, 4000), (1.0, 0.5, 0.05, 1e-9, 1e-60)
    ):
        t, root = math.sqrt(2 * math.log(2 / delta)), math.sqrt(samples)
        e = in_float64(relative_deviation, float(rank), float(samples), delta)
        assert e <= (1 + 1e-12) * (math.sqrt(rank) + t) / root
        # The lower side strays no further than the upper one, so that one number serves both.
        half = in_float64(relative_shortfall, float(rank), float(samples), delta / 2)
        assert half <= (1 + 1e-12) * e
    root = math.sqrt(14.25 / 9)
    for samples in (1, 10, 1000):
        a, b = ((root + slack) / math.sqrt(samples) for slack in (2.75, 2.53))
        classical = {
            "dimension_free": 2 * a + a**2,
            "expectation": 2 * b + b**2 + 0.24 / samples,
        }
        instance = GaussianRows(samples, SCALES).draw(key=jax.random.key(0))
        for name, bound in classical.items():
            found = sides(STATEMENTS[name], instance, failure_probability=SIDES)[1]
            assert found < 9 * bound


@pytest.mark.parametrize("level", [1e-4, 0.1, 0.9, 1.5, 30.0])
def test_leverage_bounds_invert_the_exponents(level):
    """Rows e_1 with k = 1 and R at least one: the level is (R/m) ln(1/delta)."""
    count = max(4, math.ceil(math.log(2) / level))
    leverage = count * level / math.log(2)
    instance = given(np.ones((count, 1)), np.eye(1), gaussian=False, leverage=leverage)
    above = sides(second_moment.leverage_above, instance, failure_probability=0.5)[1]
    below = sides(second_moment.leverage_below, instance, failure_probability=0.5)[1]
    high: Any = optimize.brentq(lambda d: (1 + d) * math.log1p(d) - d - level, 0, 1e3)
    assert above == approx(1 + high, condition=10)
    if level >= 1:
        assert below == 0
    else:
        low: Any = optimize.brentq(
            lambda d: (1 - d) * math.log1p(-d) + d - level, 0, 1 - 1e-12, xtol=1e-14
        )
        assert below == pytest.approx(1 - low)
        # The quadratic forms that textbooks quote are weaker.
        assert below >= 1 - math.sqrt(2 * level)
    assert above <= 1 + level / 3 + math.sqrt(level**2 / 9 + 2 * level)


def test_leverage_counts_dimension_and_rows():
    """The level is (R/m) ln(k/delta): four times the rows divide it by four."""
    for name in BOUNDED:
        bounds = [
            sides(
                STATEMENTS[name],
                given(np.eye(2)[[0, 1] * n], np.eye(2) / 2, gaussian=False, leverage=r),
            )[1]
            for n, r in ((20, 2.0), (80, 8.0))
        ]
        assert bounds[0] == approx(bounds[1])
    instance = given(np.eye(2)[[0, 1] * 20], np.eye(2) / 2, gaussian=False, leverage=2.0)
    d = sides(second_moment.leverage_above, instance, failure_probability=0.1)[1] - 1
    assert (1 + d) * math.log1p(d) - d == approx(2 / 40 * math.log(2 / 0.1))


def test_resampled_rows_know_their_law():
    instance = ResampledRows(500, POPULATION).draw(key=jax.random.key(3))
    second = POPULATION.T @ POPULATION / 12
    assert_close(instance.second_moment, second)
    scores = np.sum(POPULATION @ np.linalg.inv(second) * POPULATION, axis=1)
    assert float(instance.leverage) == approx(scores.max())
    drawn_rows = np.asarray(instance.rows)
    found = [int(np.argmin(np.linalg.norm(POPULATION - row, axis=1))) for row in drawn_rows]
    np.testing.assert_allclose(drawn_rows, POPULATION[found], rtol=1e-15)
    counts = np.bincount(found, minlength=12)
    assert counts.min() > 15
    assert counts.max() < 80


@every_statement
def test_both_sides_scale_with_the_units_of_the_activations(name):
    instance = drawn(name)
    degree = 2 if name in ("absolute", "dimension_free", "expectation") else 0
    scales(lambda unit: sides(STATEMENTS[name], changed(instance, unit * np.eye(4))), degree)


@every_statement
def test_both_sides_do_not_depend_on_the_basis(name):
    instance = drawn(name)
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))
    found = sides(STATEMENTS[name], changed(instance, basis))
    assert_close(found, sides(STATEMENTS[name], instance))


@pytest.mark.parametrize("name", ["relative", *BOUNDED])
def test_relative_forms_do_not_depend_on_any_coordinates(name):
    instance = drawn(name)
    found = sides(STATEMENTS[name], changed(instance, np.triu(np.ones((4, 4)))))
    assert_close(found, sides(STATEMENTS[name], instance), condition=10)


@every_statement
def test_outside_its_hypotheses_a_bound_is_infinite(name):
    rows, second = np.eye(3), np.diag([1.0, 1.0, 0.0])
    law = name in GAUSSIAN
    outside = given(rows, second, gaussian=law, leverage=math.inf if law else 3.0)
    wrong_law = given(rows, np.eye(3), gaussian=not law, leverage=math.inf)
    worst = -math.inf if name == "leverage_below" else math.inf
    for instance, words in (
        (outside, "range of their second moment"),
        (wrong_law, "independent and"),
    ):
        bound = STATEMENTS[name].bound(instance)
        failing = [h.name for h in bound.hypotheses if not bool(h.holds)]
        assert len(failing) == 1
        assert words in failing[0]
        assert float(bound.value) == worst
        with pytest.raises(RuntimeError, match="does not hold"):
            jax.block_until_ready(bound.require())


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`samples` must be an integer >= 1"):
        GaussianRows(0, SCALES)
    with pytest.raises(ValueError, match="`samples` must be an integer >= 1"):
        ResampledRows(0, POPULATION)
    with pytest.raises(ValueError, match="`instance` must be a `Rows`; got ndarray"):
        second_moment.relative.bound(np.eye(3))


@every_statement
def test_sampling_agrees_and_catches_what_is_wrong(name):
    statement = STATEMENTS[name]
    regime = {"control": statement.control}
    report = verify(statement, trials=200, key=jax.random.key(0), settings=regime)
    assert report.verdict.value == "consistent"
