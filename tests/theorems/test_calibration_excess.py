"""The first-order excess of a finite calibration, against NumPy, by hand and under its laws."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laws import scales
from lowrank_theory.generators import spectra
from lowrank_theory.theorems import calibration_excess
from lowrank_theory.theorems.calibration_excess import (
    first_order_loss,
    likely_excess,
    order_share,
)
from lowrank_theory.theorems.calibration_size import CalibrationSetting, calibration_size
from lowrank_theory.theorems.gaussian_noise import lower_edge, upper_edge

pytestmark = pytest.mark.thinned(2)

VALUES = np.array([4.0, 2.5, 1.0, 0.5, 0.1])


def deviations(seed, scale, size=5):
    matrix = scale * np.random.default_rng(seed).standard_normal((size, size))
    return (matrix + matrix.T) / 2


def share(values, deviation, rank):
    with jax.enable_x64(True):
        return float(order_share(jnp.asarray(values), jnp.asarray(deviation), rank))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_share_is_the_least_that_orders_the_blocks(seed, rank):
    deviation = deviations(seed, 0.4)
    first, second = deviation[:rank, :rank], deviation[rank:, rank:]

    def margin(x):
        kept, dropped = np.diag(x * VALUES[:rank]), np.diag(x * VALUES[rank:])
        return np.linalg.eigvalsh(kept + first)[0] - np.linalg.eigvalsh(dropped + second)[-1]

    found = share(VALUES, deviation, rank)
    if margin(1.0) <= 0:
        assert found == 1
    elif margin(0.0) >= 0:
        assert found == 0
    else:
        assert margin(found) >= 0 > margin(found - 1e-9)
        spread = np.linalg.eigvalsh(second)[-1] - np.linalg.eigvalsh(first)[0]
        assert found <= spread / (VALUES[rank - 1] - VALUES[rank]) + 1e-12


def test_the_share_has_the_derivative_of_the_eigenvalues_that_meet():
    """Two outputs: $x = (D_{22} - D_{11})/(l_1 - l_2)$."""
    with jax.enable_x64(True):

        def of(numbers):
            return order_share(jnp.array([3.0, 1.0]), jnp.diag(numbers), 1)

        value, slope = jax.value_and_grad(of)(jnp.array([-0.2, 0.3]))
    assert float(value) == pytest.approx(0.25)
    assert np.asarray(slope) == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize("seed", range(8))
def test_any_rows_holds_for_any_deviation(seed):
    rank, deviation = 2, deviations(seed, 0.2)
    _, vectors = np.linalg.eigh(np.diag(VALUES) + deviation)
    kept = vectors[:, -rank:]
    excess = np.sum(VALUES[:rank]) - np.trace(kept.T @ np.diag(VALUES) @ kept)
    gaps = VALUES[:rank, None] - VALUES[rank:]
    expected = np.sum(deviation[:rank, rank:] ** 2 / gaps)
    with jax.enable_x64(True):
        first = float(first_order_loss(jnp.asarray(VALUES), jnp.asarray(deviation), rank))
    assert first == pytest.approx(expected)
    x = share(VALUES, deviation, rank)
    assert x < 1
    assert excess <= first / (1 - x) ** 2


def test_it_is_exact_to_first_order():
    deviation = np.array([[-0.3, 1e-4], [1e-4, 0.2]])
    _, vectors = np.linalg.eigh(np.diag([3.0, 1.0]) + deviation)
    excess = 2 * (1 - vectors[0, -1] ** 2)
    x = share([3.0, 1.0], deviation, 1)
    assert x == pytest.approx(0.25)
    assert excess == pytest.approx(1e-8 / 2 / (1 - x) ** 2, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("delta", [0.3, 0.01])
def test_likely_excess_is_its_formula(rank, delta):
    samples, values = 5000, np.array([8.0, 6.0, 4.0, 0.5, 0.2, 0.0])
    with jax.enable_x64(True):
        found, eta = likely_excess(jnp.asarray(values), rank, float(samples), delta)
        largest = float(upper_edge(float(samples), rank, delta / 4))
        least = float(lower_edge(float(samples), rank, delta / 4))
        beyond = float(upper_edge(float(samples), 5 - rank, delta / 4))
    kept, dropped = values[rank - 1], values[rank]
    expected_eta = (1 - least**2 / samples) * kept + (beyond**2 / samples - 1) * dropped
    expected_eta /= kept - dropped
    pairs = [(a, b) for a in values[:rank] for b in values[rank:]]
    weights = np.array([a * b / (samples * (a - b)) for a, b in pairs])
    tau = math.log(4 / delta)
    total = weights.sum() + 2 * math.sqrt(tau * np.sum(weights**2)) + 2 * tau * weights.max()
    assert float(eta) == pytest.approx(expected_eta)
    expected = largest**2 / samples / (1 - expected_eta) ** 2 * total
    assert float(found) == pytest.approx(expected)


def test_few_rows_say_nothing_and_many_say_more_than_without_a_gap():
    for samples, finite in ((30, False), (100_000, True)):
        setting = CalibrationSetting(samples, 8, 2, spectra.PowerLaw(1.0))
        problem = setting.draw(key=jax.random.key(0))
        bound = float(calibration_excess.gaussian.bound(problem).value)
        assert math.isfinite(bound) == finite
        if finite:
            assert bound < 0.01 * float(calibration_size.gaussian.bound(problem).value)


def test_the_units_of_the_outputs_come_squared():
    scales(lambda unit: share(unit * VALUES, unit * deviations(0, 0.4), 2), 0)


def test_what_is_kept_whole_loses_nothing():
    setting = CalibrationSetting(60, 8, 8, spectra.PowerLaw(1.0))
    problem = setting.draw(key=jax.random.key(0))
    assert float(calibration_excess.any_rows.bound(problem).value) == 0
