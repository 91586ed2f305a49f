"""Whole inputs and outputs that go: against least squares on rows, and every other choice."""

import itertools
from typing import Any

import numpy as np
import pytest

from lowrank_theory.problems import Observed
from lowrank_theory.sparsification import Structured, fewer_inputs
from tolerance import assert_close

RANDOM = np.random.default_rng(0)
INPUTS, OUTPUTS = 7, 4
ROWS = RANDOM.standard_normal((30, INPUTS)) @ RANDOM.standard_normal((INPUTS, INPUTS))
WEIGHTS = RANDOM.standard_normal((INPUTS, OUTPUTS))
GRAM = ROWS.T @ ROWS


def dense(found) -> np.ndarray:
    return np.asarray(found.materialise(), float)


def best(rows: np.ndarray, stay: Any) -> tuple[np.ndarray, float]:
    """The least-squares layer of these inputs, and its squared error."""
    found = np.zeros((rows.shape[1], OUTPUTS))
    found[list(stay)] = np.linalg.lstsq(rows[:, list(stay)], rows @ WEIGHTS, rcond=None)[0]
    return found, float(np.sum((rows @ (WEIGHTS - found)) ** 2))


@pytest.mark.parametrize("kept", range(1, INPUTS + 1))
def test_what_stays_is_the_least_squares_layer_of_its_inputs(kept):
    found = dense(fewer_inputs(WEIGHTS, GRAM, kept))
    stay = tuple(np.flatnonzero(found.any(axis=1)))
    assert len(stay) == kept
    wanted, _ = best(ROWS, stay)
    assert_close(found, wanted, condition=np.linalg.cond(GRAM), scale=1)


def test_the_first_to_go_is_the_cheapest_and_costs_what_the_inverse_says():
    found = dense(fewer_inputs(WEIGHTS, GRAM, INPUTS - 1))
    gone = int(np.flatnonzero(~found.any(axis=1))[0])
    lost = np.sum((ROWS @ (WEIGHTS - found)) ** 2)
    condition = np.linalg.cond(GRAM)
    inverse = np.diagonal(np.linalg.inv(GRAM))
    assert_close(lost, np.sum(WEIGHTS[gone] ** 2) / inverse[gone], condition=condition)
    every = itertools.combinations(range(INPUTS), INPUTS - 1)
    assert_close(lost, min(best(ROWS, stay)[1] for stay in every), condition=condition)


def test_of_two_equal_inputs_one_goes_for_free_and_leaves_its_weights():
    rows = np.hstack([ROWS, ROWS[:, :1]])
    weights = np.vstack([WEIGHTS, [1.0, -2, 3, 4]])
    found = dense(fewer_inputs(weights, rows.T @ rows, INPUTS))
    assert_close(rows @ found, rows @ weights, condition=np.linalg.cond(GRAM), scale=10)
    assert_close(found[0] + found[-1], weights[0] + weights[-1], np.linalg.cond(GRAM), scale=10)


def test_uncorrelated_inputs_stay_as_they_were():
    norms = RANDOM.gamma(2, size=INPUTS)
    found = dense(fewer_inputs(WEIGHTS, np.diag(norms**2), 3))
    size = norms * np.linalg.norm(WEIGHTS, axis=1)
    stay = np.argsort(-size)[:3]
    np.testing.assert_array_equal(np.flatnonzero(found.any(axis=1)), np.sort(stay))
    np.testing.assert_array_equal(found[stay], WEIGHTS[stay])


@pytest.mark.parametrize("axis", [0, 1])
def test_without_data_norms_of_weights_decide(axis):
    ladder = Structured((0.5,), axis=axis, data_driven=False)
    assert not ladder.needs
    found = dense(ladder.sweep(Observed(weights=WEIGHTS)).at(0).approximation)
    norms = np.asarray(np.linalg.norm(WEIGHTS, axis=1 - axis))
    stay = np.sort(np.argsort(-norms)[: round(norms.size / 2)])
    np.testing.assert_array_equal(np.flatnonzero(found.any(axis=1 - axis)), stay)
    np.testing.assert_array_equal(np.take(found, stay, axis), np.take(WEIGHTS, stay, axis))


def test_outputs_that_hardly_vary_become_their_mean():
    rows = ROWS + np.array([50.0, *np.zeros(INPUTS - 1)])  # input 0 is loud and hardly varies
    weights = WEIGHTS * np.array([1, 1, 1e-3, 1e-3])
    weights[0] = 1
    observed = Observed(weights=weights, activations=rows, bias=np.zeros(OUTPUTS))
    made = Structured((0.5,), axis=1).sweep(observed).at(0)
    found, outputs = dense(made.approximation), rows @ weights
    varies = (outputs - outputs.mean(axis=0)).std(axis=0)
    stay = np.sort(np.argsort(-varies)[:2])
    np.testing.assert_array_equal(np.flatnonzero(found.any(axis=0)), stay)
    gone = np.setdiff1d(range(OUTPUTS), stay)
    assert_close(np.asarray(made.bias)[gone], outputs.mean(axis=0)[gone], condition=100)


@pytest.mark.parametrize("axis", [0, 1])
def test_it_takes_a_smaller_matrix_and_a_bit_for_each_line(axis):
    weights = RANDOM.standard_normal((20, 12)).astype(np.float32)
    ladder = Structured((0.25,), axis=axis, data_driven=False)
    storage = ladder.sweep(Observed(weights=weights)).storages[0]
    count, across = (20, 12) if axis == 0 else (12, 20)
    numbers = count // 4 * across
    assert storage.numbers == storage.multiply_adds == numbers
    assert storage.bytes == 4 * numbers + -(-count // 8)
    assert storage.ideal_bits == 32 * numbers + count


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Structured(()), "`shares` is empty"),
        (lambda: Structured((1.0,)), "`shares` must lie strictly between 0 and 1; got 1.0"),
        (lambda: Structured(axis=2), "`axis` must be an integer from 0 to 1; got 2"),
        (lambda: fewer_inputs(WEIGHTS, GRAM, 8), "`kept` must be an integer from 1 to 7"),
        (lambda: fewer_inputs(WEIGHTS, GRAM[1:], 2), r"`gram` must be \(7, 7\)"),
        (lambda: Structured().sweep(Observed(weights=WEIGHTS)), "`Structured` needs what the"),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
