r"""What weights and inputs are like, in numbers that error may depend on. All NumPy, in float64.

Each is invariant: to the scale of what it is of and, but for `kurtosis` and `outlier_ratio`, to
rotations of it.
"""

import numpy as np
from numpy.typing import ArrayLike

from lowrank_theory._numerics import check_array


def kurtosis(weights: ArrayLike) -> float:
    r"""$\overline{(w - \bar w)^4}/\overline{(w - \bar w)^2}^2$ of all entries: one for two values
    equally often, three for a normal law, more where few entries are large.

    NaN where all entries are equal. Raises `ValueError` for what is no finite matrix of floats.
    """
    centred = _matrix("weights", weights)
    centred = centred - np.mean(centred)
    size = np.max(np.abs(centred))
    squares = (centred / size) ** 2 if size > 0 else np.full(1, np.nan)
    return float(np.mean(squares**2) / np.mean(squares) ** 2)


def stable_rank(weights: ArrayLike) -> float:
    r"""$\lVert W\rVert_F^2/\lVert W\rVert^2$, from one to the rank.

    NaN for zeros. Raises `ValueError` for what is no finite matrix of floats.
    """
    values = np.linalg.svd(_matrix("weights", weights), compute_uv=False)
    return float(np.sum((values / values[0]) ** 2)) if values[0] > 0 else float("nan")


def participation_ratio(second_moment: ArrayLike) -> float:
    r"""$(\operatorname{tr}H)^2/\operatorname{tr}H^2$: of how many directions inputs are, from one
    to their number. $H$ is $\mathbb E\,xx^\top$, a covariance, or a Gram, in any unit.

    NaN for zeros. Raises `ValueError` for what is no finite square matrix of floats.
    """
    moments = _matrix("second_moment", second_moment)
    if moments.shape[0] != moments.shape[1]:
        raise ValueError(f"`second_moment` must be square; got shape {moments.shape}.")
    size = np.max(np.abs(moments))
    scaled = moments / size if size > 0 else np.full((1, 1), np.nan)
    return float(np.trace(scaled) ** 2 / np.sum(scaled**2))


def outlier_ratio(squares: ArrayLike) -> float:
    r"""How many times the mean the largest is, of the squared norms of the weights of each input
    $\lVert w_{i\cdot}\rVert^2$, or of the mean squares of the inputs themselves: one where all are
    equal, their number where all but one are zero.

    NaN for zeros. Raises `ValueError` for what is no finite vector of floats, not negative.
    """
    found = np.asarray(check_array("squares", squares, "inputs"), np.float64)
    if np.any(found < 0):
        raise ValueError(f"`squares` must not be negative; the least is {np.min(found)!r}.")
    size = np.max(found)
    return float(size / np.mean(found)) if size > 0 else float("nan")


def _matrix(name: str, given: ArrayLike) -> np.ndarray:
    return np.asarray(check_array(name, given, "rows", "columns"), np.float64)
