"""Hold the rates that statements predict against slopes fitted to samples."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from scipy import stats

from lowrank_theory._numerics import check_count, check_key
from lowrank_theory._progress import Progress
from lowrank_theory.theorems import AbstractStatement, Rate
from lowrank_theory.verification.sampling import measure, name_of, request

WITHIN = 0.05  # how far a slope, with its interval, may be from the predicted exponent
CONFIDENCE = 0.99


@dataclasses.dataclass(frozen=True)
class Slope:
    """A log-log slope with its confidence interval, and the exponent that theory predicts."""

    slope: float
    low: float
    high: float
    predicted: float | None

    @property
    def agrees(self) -> bool:
        """Whether the whole interval lies within 0.05 of the prediction, if there is one."""
        if self.predicted is None:
            return True
        return max(self.high - self.predicted, self.predicted - self.low) <= WITHIN


@dataclasses.dataclass(frozen=True)
class Fit:
    """One rate of a statement: the means over the trials at each value, and their slopes."""

    name: str
    quantity: str
    values: tuple[float, ...]
    realised_means: tuple[float, ...]
    bound_means: tuple[float, ...]
    realised: Slope
    bound: Slope

    @property
    def agrees(self) -> bool:
        """Whether both slopes agree with theory."""
        return self.realised.agrees and self.bound.agrees

    def row(self) -> dict[str, Any]:
        """The row of the command's table."""
        return {**dataclasses.asdict(self), "agrees": self.agrees}


def scale(
    statement: AbstractStatement,
    *,
    key: PRNGKeyArray,
    trials: int = 1_024,
    progress: Progress | None = None,
) -> tuple[Fit, ...]:
    r"""Fit the slopes of a statement along each of its `rates`.

    At each value of the quantity, `trials` instances are drawn. The slope is that of least squares
    through the logarithms of the means; its interval comes from their standard errors (99 %,
    normal). Trials outside the hypotheses are left out. `progress(name, done, total)` is called
    after each value. Raises `ValueError` for a statement without rates, and for fewer than two
    trials.
    """
    if not isinstance(statement, AbstractStatement):
        raise ValueError(
            "`statement` must be one such as `theorems.planted_rank.expectation`; "
            f"got {statement!r}."
        )
    name = name_of(statement)
    if not statement.rates:
        raise ValueError(f"{name} states no rates. Give a statement that does.")
    trials, key = check_count("trials", trials, 2), check_key("key", key)
    fits, done = [], 0
    total = sum(len(rate.settings) for rate in statement.rates)
    for number, rate in enumerate(statement.rates):
        columns = []
        for index, setting in enumerate(rate.settings.values()):
            here = jax.random.fold_in(jax.random.fold_in(key, number), index)
            drawn = measure(request(statement, _traced(setting), trials, here))
            columns.append((drawn.realised, drawn.bound))
            done += 1
            if progress:
                progress(name, done, total)
        fits.append(_fit(name, rate, columns))
    return tuple(fits)


def _traced(setting: Any) -> Any:
    """The floats of a setting as arrays, so that another value of one compiles nothing anew."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, float) else leaf, setting)


def _fit(name: str, rate: Rate, columns: list[tuple[np.ndarray, np.ndarray]]) -> Fit:
    values = np.array(list(rate.settings), float)
    realised, bound = zip(*columns, strict=True)
    return Fit(
        name,
        rate.quantity,
        tuple(values.tolist()),
        tuple(float(np.mean(column)) for column in realised),
        tuple(float(np.mean(column)) for column in bound),
        _slope(values, realised, rate.realised),
        _slope(values, bound, rate.bound),
    )


def _slope(values: np.ndarray, columns: tuple[np.ndarray, ...], predicted: float | None) -> Slope:
    """Least squares through log means; NaN where a mean is not positive or a column is empty."""
    across = np.log(values) - np.mean(np.log(values))
    weights = across / np.sum(across**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.array([np.mean(column) if column.size else math.nan for column in columns])
        errors = np.array([_standard_error(column) for column in columns]) / means
        slope = float(np.sum(weights * np.log(means)))
    half = float(stats.norm.isf((1 - CONFIDENCE) / 2)) * float(np.linalg.norm(weights * errors))
    return Slope(slope, slope - half, slope + half, predicted)


def _standard_error(column: np.ndarray) -> float:
    return float(np.std(column, ddof=1)) / math.sqrt(column.size) if column.size > 1 else math.nan
