"""Gaussian noise of unequal scales: an oracle in NumPy, exact cases, and what is refused."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from laws import scales
from lowrank_theory.theorems.heteroskedastic_noise import (
    ScaledNoiseSetting,
    expected_norm_bounds,
    heteroskedastic_noise,
    norm_parameters,
    separable_scales,
)
from oracle import upper_edge
from statements import by_name, drawn, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

STATEMENTS = by_name(heteroskedastic_noise)
ROWS, COLUMNS = np.array([3.0, 1.0, 0.5, 0.0, 2.0]), np.array([0.2, 1.0, 0.7])
SETTING = ScaledNoiseSetting(np.outer(ROWS, COLUMNS), 2)
ANY = ScaledNoiseSetting(np.abs(np.random.default_rng(0).standard_normal((5, 3))), 2)
T = math.sqrt(2 * math.log(20))


def bounds(scales: np.ndarray) -> tuple[float, float, float]:
    with jax.enable_x64(True):
        found = expected_norm_bounds(np.asarray(scales, float))
        return float(found.covering), float(found.khintchine), float(found.moments)


def beta(b: np.ndarray) -> tuple[float, float, float]:
    """The three bounds from their definitions."""
    m, k = b.shape
    row, column = math.sqrt(max((b**2).sum(1))), math.sqrt(max((b**2).sum(0)))
    star = b.max()
    covering = min(
        star * math.sqrt(k) + math.sqrt((b.max(1) ** 2).sum()),
        star * math.sqrt(m) + math.sqrt((b.max(0) ** 2).sum()),
    )
    moments = min(
        min(m, k) ** (1 / (2 * p))
        * (math.sqrt(column**2 + (2 * p - 1) * star**2) + math.sqrt(row**2 + (2 * p - 1) * star**2))
        for p in range(1, 65)
    )
    return covering, max(row, column) * math.sqrt(2 * math.log(m + k)), moments


def test_a_draw_is_scaled_noise_and_an_orthonormal_basis():
    instance = drawn(SETTING)
    basis, standard = np.asarray(instance.basis), np.asarray(instance.standard)
    assert_close(basis.T @ basis, np.eye(2), scale=1)
    np.testing.assert_array_equal(np.asarray(instance.scales), np.outer(ROWS, COLUMNS))
    with jax.enable_x64(True):
        assert_close(instance.noise, np.outer(ROWS, COLUMNS) * standard)
    assert instance.sizes == (5, 3)
    many = np.stack([np.asarray(drawn(SETTING, seed).standard) for seed in range(40)])
    assert np.std(many) == pytest.approx(1, abs=0.15)


def test_separable_against_numpy():
    instance = drawn(SETTING)
    basis = np.asarray(instance.basis)
    residual = np.outer(ROWS, COLUMNS) * np.asarray(instance.standard)
    s = np.linalg.svd(basis.T @ np.diag(ROWS), compute_uv=False)
    mean = s[0] * np.linalg.norm(COLUMNS) + np.linalg.norm(s) * 1.0
    realised = np.linalg.norm(basis.T @ residual, 2)
    least = (realised, min(mean + T * s[0], s[0] * upper_edge(2, 3, 0.05)))
    assert sides(heteroskedastic_noise.expected_separable, instance) == approx((realised, mean))
    assert sides(heteroskedastic_noise.separable, instance) == approx(least)


def test_any_scales_against_numpy():
    instance = drawn(ANY)
    b = np.asarray(instance.scales)
    realised = np.linalg.norm(b * np.asarray(instance.standard), 2)
    least = min(beta(b))
    edge = (realised, min(least + T * b.max(), b.max() * upper_edge(5, 3, 0.05)))
    assert sides(heteroskedastic_noise.expected_norm, instance) == approx((realised, least))
    assert sides(heteroskedastic_noise.norm, instance) == approx(edge)


def test_equal_scales_have_the_edge_of_equal_noise():
    """Of rows and columns that are loud: silent ones change nothing."""
    loud, silent = np.ones(4), np.zeros(2)
    for columns in (loud, np.concatenate([loud, silent])):
        instance = drawn(ScaledNoiseSetting(3 * np.outer(np.ones(6), columns), 2))
        bound = sides(heteroskedastic_noise.separable, instance)[1]
        assert bound == pytest.approx(3 * upper_edge(2, 4, 0.05))
        bound = sides(heteroskedastic_noise.norm, instance)[1]
        assert bound == pytest.approx(3 * upper_edge(6, 4, 0.05))


@pytest.mark.parametrize(
    "scales",
    [
        np.ones((5, 3)),
        np.eye(5, 3),
        np.outer(ROWS, COLUMNS),
        np.outer(COLUMNS, ROWS),
        np.ones((400, 300)),
        np.arange(15.0).reshape(5, 3) ** 3,
    ],
)
def test_expected_norm_bounds_by_their_definitions(scales):
    assert bounds(scales) == approx(beta(scales))


def test_each_bound_is_the_least_somewhere():
    assert np.argmin(bounds(np.ones((30, 30)))) == 0
    assert np.argmin(bounds(np.eye(30))) == 1
    band = abs(np.subtract.outer(np.arange(900), np.arange(900))) < 200
    assert np.argmin(bounds(band.astype(float))) == 2


def test_norm_parameters_by_hand():
    with jax.enable_x64(True):
        found = norm_parameters(np.array([[3.0, 4.0], [0.0, 1.0]]))
    assert [float(x) for x in found] == approx([5, math.sqrt(17), 4])


def test_splitting_the_scales_between_rows_and_columns_is_free():
    """All but the product is convention: s_R + s_C without a projector."""
    instance = dataclasses.replace(drawn(SETTING), basis=np.eye(5))
    with jax.enable_x64(True):
        found = separable_scales(instance)
        row, column, entry = norm_parameters(np.outer(ROWS, COLUMNS))
        assert float(found.mean) == approx(float(row + column))
        assert float(found.norm) == approx(float(entry))


@pytest.mark.parametrize("name", STATEMENTS)
def test_both_sides_scale_with_the_scales(name):
    instance = drawn(SETTING)

    def at(unit):
        scaled = dataclasses.replace(instance, scales=unit * np.outer(ROWS, COLUMNS))
        return sides(STATEMENTS[name], scaled)

    scales(at)


def test_broken_estimates_are_too_large():
    instance = drawn(SETTING)
    residual = np.outer(ROWS, COLUMNS) * np.asarray(instance.standard)
    with jax.enable_x64(True):
        for name, statement in STATEMENTS.items():
            wrong = float(statement.loss(instance, statement.broken_estimate(instance)))
            projected = name.endswith("separable")
            other = residual if projected else 3.0 * np.asarray(instance.standard)
            assert wrong == approx(np.linalg.norm(other, 2))
            assert float(statement.magnitude(instance)) == approx(np.linalg.norm(residual))


def test_no_bound_outside_the_hypotheses():
    not_separable = drawn(ANY)
    other_law = dataclasses.replace(drawn(SETTING), gaussian=np.asarray(False))
    for name, statement in STATEMENTS.items():
        assert float(statement.bound(other_law).value) == math.inf
        with pytest.raises(Exception, match="independent and Gaussian' does not hold"):
            statement.bound(other_law).require()
        bound = statement.bound(not_separable)
        assert math.isinf(float(bound.value)) == name.endswith("separable")
        if name.endswith("separable"):
            with pytest.raises(Exception, match="scales have rank one' does not hold"):
                bound.require()


def test_silence_is_separable():
    instance = drawn(ScaledNoiseSetting(np.zeros((5, 3)), 2))
    assert sides(heteroskedastic_noise.separable, instance) == (0, 0)
    assert sides(heteroskedastic_noise.norm, instance) == (0, 0)


@pytest.mark.parametrize(
    ("scales", "directions", "message"),
    [
        (-np.ones((3, 2)), 1, "none may be negative"),
        (np.ones(3), 1, "`scales` must have shape"),
        (np.ones((3, 2)), 4, "`directions` must be an integer from 1 to 3"),
        (np.ones((3, 2)), 0, "`directions` must be an integer from 1 to 3"),
    ],
)
def test_bad_settings(scales, directions, message):
    with pytest.raises(ValueError, match=message):
        ScaledNoiseSetting(scales, directions)


def test_other_instances_are_refused():
    with pytest.raises(ValueError, match="must be a `ScaledNoise`; got ndarray"):
        heteroskedastic_noise.norm.bound(np.eye(3))
