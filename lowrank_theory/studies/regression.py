r"""Which statistics of layers go with an error: ordinary least squares on standardised predictors.

$y = \beta_0 + \sum_j\beta_jz_j + \varepsilon$, where $z_j$ is a statistic less its mean over the
rows, in its standard deviations: $\beta_j$ is by how much $y$ grows, the other statistics staying
as they are, where the j-th one is a standard deviation larger. Intervals are those of a bootstrap
over the rows, whose law need not be normal; they say nothing of other networks.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from lowrank_theory._numerics import check_array, check_count, check_same
from lowrank_theory._rows import AbstractRow, column

RESAMPLES = 999
CONFIDENCE = 0.95


class Coefficient(AbstractRow):
    r"""One $\beta_j$."""

    name: str = column("statistic", "the predictor")
    value: float = column("coefficient", "per standard deviation of the predictor")
    low: float = column("from", "the lower end of a bootstrap interval over the rows (95 %)")
    high: float = column("to", "its upper end")


@dataclasses.dataclass(frozen=True)
class Regression:
    """Its `coefficients`, how many `rows` it is of, and the share $R^2$ of the squared response
    about its mean that they `explained`.
    """

    coefficients: tuple[Coefficient, ...]
    rows: int
    explained: float


def regression(
    predictors: Mapping[str, ArrayLike], response: ArrayLike, *, seed: int
) -> Regression:
    """The response (rows,) on predictors of as many rows.

    Raises `ValueError` for no predictor, one that is constant, arrays that are not finite or not of
    one length, and fewer than two rows more than there are coefficients.
    """
    wanted = np.asarray(check_array("response", response, "rows"), np.float64)
    if not predictors:
        raise ValueError("`predictors` is empty: give at least one.")
    columns = []
    for name, values in predictors.items():
        given = np.asarray(check_array(f"predictors[{name!r}]", values, "rows"), np.float64)
        check_same(f"predictors[{name!r}]", len(given), "response", len(wanted), "rows")
        if np.ptp(given) == 0:
            raise ValueError(f"`predictors[{name!r}]` is constant: leave it out.")
        columns.append((given - np.mean(given)) / np.std(given))
    least = len(columns) + 3
    if len(wanted) < least:
        raise ValueError(f"`response` must have at least {least} rows; got {len(wanted)}.")
    seed = check_count("seed", seed, 0)
    design = np.stack([np.ones(len(wanted)), *columns], axis=1)
    fitted = _solved(design, wanted)
    left = wanted - design @ fitted
    draw = np.random.default_rng(seed)
    drawn = np.array(
        [
            _solved(design[rows], wanted[rows])
            for rows in draw.integers(0, len(wanted), (RESAMPLES, len(wanted)))
        ]
    )
    ends = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    about = wanted - np.mean(wanted)
    total = float(about @ about)
    return Regression(
        coefficients=tuple(
            Coefficient(name=name, value=float(value), low=float(low), high=float(high))
            for name, value, low, high in zip(predictors, fitted[1:], *ends[:, 1:], strict=True)
        ),
        rows=len(wanted),
        explained=1 - float(left @ left) / total if total > 0 else 1.0,
    )


def _solved(design: np.ndarray, response: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(design, response, rcond=None)[0]
