"""Entries by their size and that of their input, against loops and against every other choice."""

import itertools

import numpy as np
import pytest

from lowrank_theory.problems import Observed
from lowrank_theory.sparsification import Wanda, largest_entries, wanda, wanda_n_of_m
from tolerance import assert_close

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.standard_t(3, (12, 5))
NORMS = RANDOM.gamma(1, size=12)


def dense(found) -> np.ndarray:
    return np.asarray(found.materialise(), float)


def test_it_is_magnitude_of_the_scaled_weights_output_by_output():
    scaled = largest_entries(WEIGHTS * NORMS[:, None], 4, per_output=True)
    found = dense(wanda(WEIGHTS, NORMS, 4))
    np.testing.assert_array_equal(found, np.where(dense(scaled) != 0, WEIGHTS, 0))


def test_of_a_group_those_of_largest_score_stay():
    found = dense(wanda_n_of_m(WEIGHTS, NORMS, 2, 4))
    for j, start in itertools.product(range(5), range(0, 12, 4)):
        scores = {i: abs(WEIGHTS[i, j]) * NORMS[i] for i in range(start, start + 4)}
        stay = sorted(scores, key=lambda i: -scores[i])[:2]
        for i in range(start, start + 4):
            assert found[i, j] == (WEIGHTS[i, j] if i in stay else 0)


def test_no_other_choice_is_better_where_inputs_are_uncorrelated():
    column = WEIGHTS[:7, :1]
    found = dense(wanda(column, NORMS[:7], 3))
    lost = np.sum((NORMS[:7, None] * (column - found)) ** 2)
    others = [
        np.sum((np.delete(column[:, 0] * NORMS[:7], stay)) ** 2)
        for stay in itertools.combinations(range(7), 3)
    ]
    assert_close(lost, min(others))


def test_with_a_bias_a_constant_input_goes_first():
    rows = np.hstack([100 * np.ones((20, 1)), RANDOM.standard_normal((20, 3))])
    weights = np.ones((4, 1))
    for bias, stays in ((None, True), (np.zeros(1), False)):
        observed = Observed(weights=weights, activations=rows, bias=bias)
        made = Wanda((0.75,), ()).sweep(observed).at(0)
        assert bool(dense(made.approximation)[0, 0]) == stays


def test_equal_scores_go_by_their_place():
    found = dense(wanda(np.ones((4, 1)), np.zeros(4), 2))
    np.testing.assert_array_equal(found[:, 0], [1, 1, 0, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Wanda((1.5,)), "`shares` must lie strictly between 0 and 1; got 1.5"),
        (lambda: Wanda((), ()), "`shares` and `patterns` are empty"),
        (lambda: Wanda((), ((2, 2),)), "`patterns` must be an integer from 1 to 1; got 2"),
        (lambda: wanda(WEIGHTS, NORMS[1:], 2), "`norms` has 11 inputs, but `weights` has 12"),
        (lambda: wanda(WEIGHTS, NORMS, 13), "`kept` must be an integer from 1 to 12"),
        (lambda: wanda(WEIGHTS * np.nan, NORMS, 1), "`weights` has 60 non-finite entries"),
        (lambda: wanda_n_of_m(WEIGHTS, NORMS, 2, 5), "a multiple of 5 inputs"),
        (lambda: Wanda().sweep(Observed(weights=WEIGHTS)), "`Wanda` needs what the layer sees"),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
