"""Rounding in turn against least squares in NumPy, and where its bounds are attained."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from lowrank_theory.theorems._stepped import SteppedLayer, SteppedSetting
from lowrank_theory.theorems.second_order_rounding import second_order_rounding
from lowrank_theory.verification.attack import replay
from statements import by_name, drawn, sides
from tolerance import approx, assert_close

STATEMENTS = by_name(second_order_rounding)
SETTING = SteppedSetting(7, 4, 3, decay=1.0, correlated=2.0)


def oracle(layer: SteppedLayer, dither: bool) -> dict[str, tuple[float, float]]:
    """Each input in turn, by least squares over all inputs to come, on stacked rows."""
    rows, weights, step = (np.asarray(x) for x in (layer.activations, layer.weights, layer.step))
    inputs, outputs = weights.shape
    ridge = math.sqrt(float(layer.damping) * np.sum(rows**2) / inputs)
    stacked = np.concatenate([rows, ridge * np.eye(inputs)])
    moved = step * (np.asarray(layer.dither) - 0.5) if dither else 0 * weights
    errors, prices, paid = np.zeros_like(weights), np.zeros(inputs), 0.0
    rounded = np.zeros_like(weights)
    for k in range(inputs):
        so_far = stacked[:, :k] @ errors[:k]
        best = -np.linalg.lstsq(stacked[:, k:], so_far)[0][0]
        wanted = weights[k] - best
        others = np.linalg.lstsq(stacked[:, k + 1 :], stacked[:, k])[0]
        prices[k] = np.sum((stacked[:, k] - stacked[:, k + 1 :] @ others) ** 2)
        rounded[k] = step * np.rint((wanted + moved[k]) / step) - moved[k]
        errors[k] = weights[k] - rounded[k]
        paid += prices[k] * np.sum((wanted - rounded[k]) ** 2)
    cost = float(np.sum((stacked @ errors) ** 2))
    cell, total = outputs * step**2, float(np.sum(prices))
    if dither:
        return {"dither": (cost, cell * total / 12)}
    return {
        "cost": (cost, float(paid)),
        "worst": (cost, cell * total / 4),
        "moments": (cost, cell * float(np.sum(stacked**2)) / 4),
        "any_order": (total, inputs * float(np.prod(prices)) ** (1 / inputs)),
    }


@pytest.mark.parametrize("seed", range(3))
def test_values_against_least_squares(seed):
    layer = drawn(SETTING, seed)
    expected = oracle(layer, dither=False) | oracle(layer, dither=True)
    assert set(expected) == set(STATEMENTS)
    for name, values in expected.items():
        assert sides(STATEMENTS[name], layer) == approx(values, condition=1e4), name


def half_way(rows: np.ndarray) -> SteppedLayer:
    """The weights of which each is half way between two levels when its turn comes."""
    places = np.array([[1.5, -0.5, 0.5], [2.5, 3.5, 1.5], [-1.5, 0.5, 4.5], [0.5, 0.5, 0.5]]) - 1e-9
    moments = rows.T @ rows
    moments += 0.01 * np.trace(moments) / 4 * np.eye(4)
    triangle = np.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1]
    errors = np.linalg.solve((triangle / np.diagonal(triangle)).T, places - np.rint(places))
    return SteppedLayer(np.rint(places) + errors, rows, 1.0)


def test_half_way_between_levels_is_the_worst_for_all_moments():
    rows = np.random.default_rng(0).standard_normal((7, 4)) * [3.0, 1.0, 0.3, 0.3]
    realised, bound = sides(STATEMENTS["worst"], half_way(rows))
    assert realised == pytest.approx(bound, rel=1e-7)
    assert bound < 0.9 * sides(STATEMENTS["moments"], half_way(rows))[1]
    uncorrelated = half_way(np.eye(7)[:, :4] * [3.0, 2.0, 1.0, 1.0])
    realised, bound = sides(STATEMENTS["moments"], uncorrelated)
    assert realised == pytest.approx(bound, rel=1e-7)


def test_prices_of_triangles_of_ones_are_equal():
    """However correlated the inputs are, no order is needed: the floor is attained."""
    triangle = np.triu(np.random.default_rng(1).standard_normal((4, 4)), 1) + np.eye(4)
    rows = np.concatenate([triangle.T, np.zeros((3, 4))])
    layer = SteppedLayer(np.ones((4, 3)), rows, 1.0, damping=1e-12)
    assert sides(STATEMENTS["any_order"], layer) == pytest.approx((4, 4), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["worst", "moments", "any_order"])
def test_the_adversary_plays_inside_the_hypotheses(name):
    statement: Any = STATEMENTS[name]
    with jax.enable_x64(True):
        free = jax.tree.map(np.asarray, statement.adversary.start(key=jax.random.key(1)))
    assert 0 < replay(statement, free) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEMENTS)
def test_both_sides_scale_with_both_units(name):
    layer = drawn(SETTING)
    expected = np.array(sides(STATEMENTS[name], layer))
    for rows, weights in ((2.0**20, 1.0), (2.0**-40, 1.0), (1.0, 2.0**30)):
        other = SteppedLayer(
            weights * np.asarray(layer.weights),
            rows * np.asarray(layer.activations),
            weights * np.asarray(layer.step),
            dither=layer.dither,
            uniform=True,
        )
        degree = rows**2 * (1 if name == "any_order" else weights**2)
        assert_close(np.array(sides(STATEMENTS[name], other)) / degree, expected)


def test_nothing_is_said_where_the_grid_ends_or_of_another_dither():
    layer = SteppedLayer(np.full((4, 3), 200.0), np.eye(7)[:, :4], 1.0)
    for name in ("worst", "moments", "dither"):
        assert sides(STATEMENTS[name], layer)[1] == math.inf
    (grid,) = STATEMENTS["worst"].bound(layer).hypotheses
    assert grid.name == "no weight to be rounded leaves the grid" and not grid.holds
    assert [h.holds for h in STATEMENTS["dither"].bound(layer).hypotheses] == [False, False]
    assert sides(STATEMENTS["cost"], layer)[1] < math.inf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activations": np.ones((5, 2))}, "`activations` has 2 inputs, but `weights` has 3"),
        ({"dither": np.zeros((3, 2))}, r"`dither` must be \(3, 3\); got \(3, 2\)"),
        ({"dither": np.full((3, 3), 2.0)}, "`dither` must be from 0 to 1; got 2 to 2"),
        ({"step": 0.0}, "`step` must be"),
        ({"damping": -1.0}, "`damping` must be"),
    ],
)
def test_refusals(changes, message):
    sound: dict[str, Any] = {"weights": np.eye(3), "activations": np.eye(3), "step": 1.0}
    with pytest.raises(ValueError, match=message):
        SteppedLayer(**(sound | changes))
