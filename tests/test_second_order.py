"""The elimination of inputs in turn, against inverses in NumPy."""

import jax
import numpy as np
import pytest

from lowrank_theory._numerics import in_float64
from lowrank_theory._second_order import elimination
from tolerance import assert_close

INPUTS = 7
RANDOM = np.random.default_rng(0)
ROWS = RANDOM.standard_normal((20, INPUTS)) / 1.5 ** np.arange(INPUTS)
GRAMS = {
    "well conditioned": ROWS.T @ ROWS,
    "fewer rows than inputs": ROWS[:3].T @ ROWS[:3],
    "a dead input": (ROWS * (np.arange(INPUTS) != 2)).T @ (ROWS * (np.arange(INPUTS) != 2)),
    "constant columns": np.ones((INPUTS, INPUTS)),
    "zero": np.zeros((INPUTS, INPUTS)),
}
eliminated = in_float64(elimination)


@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("gram", GRAMS)
def test_prices_and_feedback_are_those_of_the_optimal_brain_surgeon(gram, damping):
    matrix = GRAMS[gram]
    prices, feedback = map(np.asarray, eliminated(matrix, np.float64(damping)))
    assert np.all(prices > 0) and np.isfinite(feedback).all()
    assert not np.tril(feedback).any()
    mean = np.trace(matrix) / INPUTS or 1.0
    least = 4 * INPUTS**2 * np.finfo(float).eps
    damped = matrix / mean + max(damping, least) * np.eye(INPUTS)
    condition = np.linalg.cond(damped)
    unit = feedback + np.eye(INPUTS)
    assert_close((unit * prices) @ unit.T, damped, scale=INPUTS)
    for k in range(INPUTS if condition < 1e8 else 0):
        inverse = np.linalg.inv(damped[k:, k:])
        assert_close(1 / prices[k], inverse[0, 0], condition=condition)
        # The surgeon: an error of input k is best beside those along the inverse's column.
        moved = inverse[1:, 0] / inverse[0, 0]
        error = np.concatenate([[1.0], moved])
        left = unit[k:, k:].T @ error
        assert_close(left[0], 1.0)
        assert_close(left[1:], np.zeros(INPUTS - k - 1), scale=1.0, condition=condition)


def test_units_do_not_matter_and_stacks_are_as_single_ones():
    once = eliminated(GRAMS["well conditioned"], np.float64(0.01))
    for power in (-600, 40, 600):
        again = eliminated(np.ldexp(GRAMS["well conditioned"], power), np.float64(0.01))
        for one, other in zip(once, again, strict=True):
            np.testing.assert_array_equal(one, other)
    stack = np.stack(list(GRAMS.values()))
    mapped = jax.vmap(lambda gram: eliminated(gram, np.float64(0.01)))(stack)
    for k, gram in enumerate(stack):
        for one, other in zip(eliminated(gram, np.float64(0.01)), mapped, strict=True):
            assert_close(other[k], np.asarray(one), scale=1.0)
