"""Rounded factors against exact means, and the factors of least cost against any others."""

import itertools
import math
from typing import Any

import jax
import numpy as np
import pytest

from lowrank_theory.theorems._stepped import SteppedLayer
from lowrank_theory.theorems.quantised_factors import (
    FactoredLayer,
    FactoredSetting,
    quantised_factors,
)
from lowrank_theory.verification.attack import replay
from statements import by_name, drawn, sides
from tolerance import approx

STATEMENTS = by_name(quantised_factors)


def arrays(layer: FactoredLayer) -> tuple[np.ndarray, ...]:
    first, second = layer.first, layer.second
    return tuple(map(np.asarray, (first.activations, first.weights, second.weights)))


def cost(layer: FactoredLayer, left: np.ndarray, right: np.ndarray) -> float:
    a, b = (float(each.step) ** 2 / 12 for each in (layer.first, layer.second))
    rows, outputs = np.asarray(layer.first.activations), right.shape[1]
    found = a * np.sum(rows**2) * np.sum(right**2) + b * outputs * np.sum((rows @ left) ** 2)
    return float(found + a * b * right.size * np.sum(rows**2))


@pytest.mark.parametrize("seed", range(3))
def test_values_against_numpy(seed):
    layer = drawn(FactoredSetting(7, 5, 4, 2, first=3.0), seed)
    rows, left, right = arrays(layer)
    expected = cost(layer, left, right)
    rounded = []
    for each in (layer.first, layer.second):
        step, moved = float(each.step), float(each.step) * (np.asarray(each.dither) - 0.5)
        rounded.append(step * np.rint((np.asarray(each.weights) + moved) / step) - moved)
    lost = float(np.sum((rows @ (rounded[0] @ rounded[1] - left @ right)) ** 2))
    assert sides(STATEMENTS["cost"], layer) == approx((lost, expected), scale=100)
    a, b = (float(each.step) ** 2 / 12 for each in (layer.first, layer.second))
    nuclear = np.sum(np.linalg.svd(rows @ left @ right, compute_uv=False))
    least = 2 * math.sqrt(a * b * 4) * np.linalg.norm(rows) * nuclear
    least = float(least + a * b * 8 * np.sum(rows**2))
    assert sides(STATEMENTS["any_factors"], layer) == approx((expected, least), condition=10)
    assert sides(STATEMENTS["balanced"], layer) == approx((least, least), condition=1e3)
    random = np.random.default_rng(seed)
    for _ in range(20):  # any matrix between the factors
        between = random.standard_normal((2, 2))
        assert cost(layer, left @ between, np.linalg.inv(between) @ right) >= least


def test_the_mean_over_errors_of_both_signs():
    """Errors of one size and any sign have the variances of the formula; all 16 of four entries."""
    rows, left, right = np.array([[2.0]]), np.array([[1.0, -3.0]]), np.array([[2.0], [0.5]])
    a, b, found = 0.3**2, 0.2**2, []
    for signs in itertools.product((-1, 1), repeat=4):
        moved = left + 0.3 * np.array(signs[:2]), right + 0.2 * np.array(signs[2:])[:, None]
        found.append(np.sum((rows @ (moved[0] @ moved[1] - left @ right)) ** 2))
    first = SteppedLayer(left, rows, math.sqrt(12 * a), uniform=True)
    second = SteppedLayer(right, rows @ left, math.sqrt(12 * b), uniform=True)
    _, expected = sides(STATEMENTS["cost"], FactoredLayer(first, second))
    assert expected == approx(float(np.mean(found)))


@pytest.mark.slow
def test_the_adversary_plays_inside_the_hypotheses():
    statement: Any = STATEMENTS["any_factors"]
    with jax.enable_x64(True):
        free = jax.tree.map(np.asarray, statement.adversary.start(key=jax.random.key(1)))
    assert 0 < replay(statement, free) <= 1


def test_refusals():
    layer = SteppedLayer(np.eye(2), np.eye(2), 1.0)
    with pytest.raises(ValueError, match="an input for each output of `first`, 2; got 3"):
        FactoredLayer(layer, SteppedLayer(np.eye(3), np.eye(3), 1.0))
