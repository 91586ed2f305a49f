"""Second moments of rows, of which no row is kept. All is NumPy, in float64."""

import dataclasses

import numpy as np
from jaxtyping import Float

from lowrank_theory.calibration import Calibration


@dataclasses.dataclass(frozen=True)
class Moments:
    r"""How many rows, their mean, and $\sum_t(x_t-\bar x)(x_t-\bar x)^\top$."""

    count: float
    mean: Float[np.ndarray, " size"]
    scatter: Float[np.ndarray, "size size"]

    @staticmethod
    def of(seen: Calibration) -> "Moments":
        """Those of a calibration."""
        return Moments(float(seen.count), np.asarray(seen.mean), np.asarray(seen.scatter))

    def through(self, matrix: Float[np.ndarray, "size outputs"]) -> "Moments":
        """Of the rows times the matrix."""
        scatter = matrix.T @ self.scatter @ matrix
        return Moments(self.count, self.mean @ matrix, (scatter + scatter.T) / 2)

    def about(self, centre: Float[np.ndarray, " size"] | float) -> Float[np.ndarray, "size size"]:
        r"""$\sum_t(x_t-c)(x_t-c)^\top$."""
        shift = self.mean - centre
        return self.scatter + self.count * np.outer(shift, shift)


def descending_eigenvalues(matrix: Float[np.ndarray, "size size"]) -> Float[np.ndarray, " size"]:
    """Largest first."""
    return np.linalg.eigvalsh(matrix)[::-1]


def tails(values: Float[np.ndarray, " count"]) -> Float[np.ndarray, " ends"]:
    """The sums of all, of all but the first, ..., of none."""
    return np.append(np.cumsum(values[::-1])[::-1], 0.0)
