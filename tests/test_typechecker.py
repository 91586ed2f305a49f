"""What the tests check of every function: functions of one signature share what checks them, and
others do not.
"""

from typing import Any

import numpy as np
import pytest
from jaxtyping import Float, Int, TypeCheckError, jaxtyped

import typechecker

ROWS = np.ones((3, 2))


def of_floats(axis: int = 1) -> Any:
    @jaxtyped(typechecker=typechecker.checked)
    def sums(
        matrix: Float[np.ndarray, "rows columns"],
        weights: Float[np.ndarray, " columns"] | None = None,
    ) -> Float[np.ndarray, " rows"]:
        return np.sum(matrix if weights is None else matrix * weights, axis=axis)

    return sums


def of_integers() -> Any:
    @jaxtyped(typechecker=typechecker.checked)
    def sums(
        matrix: Int[np.ndarray, "rows columns"],
        weights: Int[np.ndarray, " columns"] | None = None,
    ) -> Int[np.ndarray, " rows"]:
        return np.sum(matrix if weights is None else matrix * weights, axis=1)

    return sums


def test_each_function_is_checked_by_what_checks_the_first():
    of_floats()
    known = len(typechecker._checked)
    for _ in range(3):
        sums = of_floats()
        np.testing.assert_array_equal(sums(ROWS, np.ones(2)), [2, 2, 2])
        with pytest.raises(TypeCheckError, match="weights"):
            sums(ROWS, np.ones(3))
        with pytest.raises(TypeCheckError, match="return value"):
            of_floats(axis=0)(ROWS)
    assert len(typechecker._checked) - known <= 2  # those that name the argument


def test_what_has_another_signature_is_checked_by_another():
    of_floats()
    with pytest.raises(TypeCheckError, match="matrix"):
        of_integers()(ROWS)
    with pytest.raises(TypeCheckError, match="matrix"):
        of_floats()(ROWS.astype(int))
