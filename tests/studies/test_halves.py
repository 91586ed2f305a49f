"""How far two halves of the rows differ, against the law of Gaussian ones."""

import numpy as np

from lowrank_theory.studies._halves import deviation_of_halves
from lowrank_theory.studies._moments import Moments


def test_independent_gaussian_rows_are_told_from_others():
    """The rate of false alarms is at most 1 %; rows that come in tens count as a tenth."""
    rng = np.random.default_rng(3)

    def deviation(repeats: int) -> float:
        halves = (np.repeat(rng.normal(size=(200, 6)), repeats, axis=0) for _ in range(2))
        return deviation_of_halves(*(moments(half) for half in halves)) or 0.0

    squares = np.array([deviation(1) for _ in range(400)]) ** 2
    assert abs(np.mean(squares) - 1) < 0.1
    assert np.mean(np.sqrt(squares) > 2.576) <= 0.01
    assert 9 < np.mean([deviation(10) ** 2 for _ in range(100)]) < 11


def moments(rows: np.ndarray) -> Moments:
    centred = rows - rows.mean(axis=0)
    return Moments(float(len(rows)), rows.mean(axis=0), centred.T @ centred)
