"""Least squares on standardised predictors, with a bootstrap over the rows."""

import numpy as np
import pytest

from lowrank_theory.studies.regression import regression
from tolerance import approx

ROWS = 40
DRAW = np.random.default_rng(0)
FIRST, SECOND = DRAW.standard_normal((2, ROWS))
NOISE = 0.1 * DRAW.standard_normal(ROWS)


def test_a_plane_is_found_exactly():
    found = regression({"first": FIRST, "second": SECOND}, 3 + 2 * FIRST - SECOND, seed=0)
    values = [each.value for each in found.coefficients]
    assert values == approx([2 * np.std(FIRST), -np.std(SECOND)], condition=1e3)
    assert found.explained == approx(1) and found.rows == ROWS
    for each in found.coefficients:
        assert each.low == approx(each.value, condition=1e3)


def test_units_do_not_count():
    response = FIRST - SECOND + NOISE
    one = regression({"first": FIRST, "second": SECOND}, response, seed=1)
    other = regression({"first": 7 - 1e3 * FIRST, "second": SECOND}, response, seed=1)
    assert one.coefficients[0].value == approx(-other.coefficients[0].value, condition=1e6)
    assert one.coefficients[0].high == approx(-other.coefficients[0].low, condition=1e6)
    assert one.coefficients[1].value == approx(other.coefficients[1].value, condition=1e6)
    assert one.explained == approx(other.explained, condition=1e6)


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say():
    inside = 0
    for seed in range(25):
        draw = np.random.default_rng(seed)
        first = draw.standard_normal(ROWS)
        response = 0.5 * first + draw.standard_normal(ROWS)
        (each,) = regression({"first": first}, response, seed=seed).coefficients
        inside += each.low <= 0.5 * np.std(first) <= each.high
    assert inside >= 20  # a percentile interval of 40 rows is somewhat too short


@pytest.mark.parametrize(
    ("predictors", "message"),
    [
        ({}, "`predictors` is empty"),
        ({"a": np.ones(ROWS)}, r"`predictors\['a'\]` is constant"),
        ({"a": FIRST[:-1]}, r"`predictors\['a'\]` has 39 rows, but `response` has 40"),
        ({"a": np.full(ROWS, np.nan)}, r"`predictors\['a'\]`"),
        ({str(k): DRAW.standard_normal(ROWS) for k in range(38)}, "at least 41 rows; got 40"),
    ],
)
def test_bad_input(predictors, message):
    with pytest.raises(ValueError, match=message):
        regression(predictors, FIRST, seed=0)
