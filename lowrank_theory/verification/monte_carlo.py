"""Verify a theorem by sampling: many random instances, honest statistics, and controls that must
fail.
"""

import dataclasses
import enum
import itertools
import math
import zlib
from collections.abc import Generator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from scipy import stats

from lowrank_theory._numerics import check_count, check_fraction, check_key
from lowrank_theory._progress import Progress
from lowrank_theory.theorems import (
    AbstractStatement,
    AbstractTheorem,
    Certainty,
    Direction,
    Refuted,
)
from lowrank_theory.verification.point_store import PointStore
from lowrank_theory.verification.rows import StatementRow
from lowrank_theory.verification.sampling import (
    Point,
    Sample,
    by_name,
    measure,
    name_of,
    reference,
    request,
)
from lowrank_theory.verification.sweep import sweep

KNOWN_TO = 0.03  # to so much a mean ratio of one is known; as near one a limit must end
CONTROL_TRIALS = 200  # at least
POWER = 0.99
_STEP = 1 - 1e-3  # below a ratio, which would not exceed itself; rounding does not fill it


class Verdict(enum.Enum):
    """What the data say of a statement."""

    CONSISTENT = "consistent"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"


@dataclasses.dataclass(frozen=True)
class RegimeReport:
    """One regime of a statement: its sample, its verdict, and the factor below which the sample
    refutes the bound.
    """

    name: str
    sample: Sample
    verdict: Verdict
    critical_constant: float
    larger: tuple[Sample, ...] = ()


@dataclasses.dataclass(frozen=True)
class Control:
    """A claim that is false by construction, and whether the same statistics caught it."""

    name: str
    caught: bool


@dataclasses.dataclass(frozen=True)
class StatementReport:
    """The verification of one statement.

    - `critical_constant`: the factor below which these data would refute the bound (the power of
      the test);
    - `controls`: the bound shrunk to what independent data must refute, and a broken estimator;
    - `refutation`: what theory knows of the critical constant, `None` where it knows nothing;
    - `verdict`: refuted if any regime is; consistent if all are and every control was caught.
    """

    name: str
    kind: str
    failure_probability: float | None
    regimes: tuple[RegimeReport, ...]
    controls: tuple[Control, ...]
    refutation: Refuted | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict over all regimes and controls."""
        verdicts = [regime.verdict for regime in self.regimes]
        if Verdict.REFUTED in verdicts:
            return Verdict.REFUTED
        sound = all(control.caught for control in self.controls)
        everywhere = all(verdict is Verdict.CONSISTENT for verdict in verdicts)
        return Verdict.CONSISTENT if sound and everywhere else Verdict.INCONCLUSIVE

    @property
    def trials(self) -> int:
        """All trials."""
        return sum(regime.sample.trials for regime in self.regimes)

    @property
    def applicable(self) -> int:
        """Trials whose hypotheses hold."""
        return sum(regime.sample.applicable for regime in self.regimes)

    @property
    def violations(self) -> int:
        """Applicable trials on the wrong side of the bound, beyond rounding."""
        return sum(int(regime.sample.violated.sum()) for regime in self.regimes)

    @property
    def critical_constant(self) -> float:
        """The largest critical constant of any regime."""
        constants = [regime.critical_constant for regime in self.regimes]
        return max((c for c in constants if not math.isnan(c)), default=math.nan)

    @property
    def ratios(self) -> np.ndarray:
        """The ratios of all applicable trials."""
        return np.concatenate([regime.sample.ratio for regime in self.regimes])

    def summary(self) -> StatementRow:
        """What was found, in a row of a table."""
        ratios = self.ratios
        return StatementRow(
            name=self.name,
            kind=self.kind,
            trials=self.trials,
            applicable=self.applicable,
            violations=self.violations if self.failure_probability is not None else None,
            allowed=self.failure_probability,
            verdict=self.verdict.value,
            critical_constant=_finite(self.critical_constant),
            refuted_below=self.refutation.factor if self.refutation else None,
            refuted_by=self.refutation.by if self.refutation else None,
            ratio_median=_finite(np.median(ratios)) if ratios.size else None,
            ratio_max=_finite(ratios.max()) if ratios.size else None,
        )

    def row(self) -> dict[str, Any]:
        """The row of `report.json`."""
        return self.summary().row()


@dataclasses.dataclass(frozen=True)
class Report:
    """The verification of one or more statements."""

    statements: tuple[StatementReport, ...]

    @property
    def verdict(self) -> Verdict:
        """Refuted if any statement is, consistent if all are."""
        verdicts = [statement.verdict for statement in self.statements]
        if Verdict.REFUTED in verdicts:
            return Verdict.REFUTED
        consistent = verdicts and all(v is Verdict.CONSISTENT for v in verdicts)
        return Verdict.CONSISTENT if consistent else Verdict.INCONCLUSIVE

    def summary(self) -> list[StatementRow]:
        """A row for each statement."""
        return [statement.summary() for statement in self.statements]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `report.json`."""
        return [statement.row() for statement in self.statements]


def verify(
    theorem: AbstractTheorem | AbstractStatement,
    *,
    trials: int,
    key: PRNGKeyArray,
    settings: Mapping[str, Any] | None = None,
    failure_probability: float | None = None,
    confidence: float = 0.99,
    progress: Progress | None = None,
    executor: Executor | None = None,
    folder: Path | None = None,
) -> Report:
    """Check a theorem, or one statement of it, on random instances.

    `trials` per statement are spread evenly over its own regimes, or over the named `settings` if
    given; a statement about a limit runs its `trials_per_mean` times as many, at growing sizes.
    Each statement is then put to two negative controls of its own. The result is a function of the
    arguments alone, whatever the batching. Verdicts hold at the given `confidence`, corrected for
    the number of regimes:

    - sure: no violation beyond the rounding allowance;
    - with probability 1-δ (δ = `failure_probability`, the statement's own if none is given): the
      exact (Clopper-Pearson) interval of the violation rate reaches δ or below;
    - in expectation: the confidence interval (Student's t) of the mean ratio contains one and is
      known to 3 %; for a bound it may also lie below one;
    - asymptotic: the mean ratio approaches one over three sizes, and is within 3 % at the largest;
      for an upper bound, from above.

    No applicable trial, or too few for any outcome to refute the statement, is *inconclusive*; so
    is a statement of which a control was not caught.

    The trials run in this process, or wherever the `executor` runs functions:
    `executors.processes`, `executors.cluster`, or another. What is finished is kept in the `folder`
    if there is one, and an interrupted verification resumes from it: see `point_store.PointStore`.
    `progress(name, done, total)` is called after each of the `total` points of a statement, which
    are samples, or blocks of large ones.

    Raises `ValueError` for arguments out of range, and `executors.LostWorkerError` where a worker
    ends before its work does.
    """
    if isinstance(theorem, AbstractTheorem):
        statements = theorem.statements
    elif isinstance(theorem, AbstractStatement):
        statements = {name_of(theorem): theorem}
    else:
        raise ValueError(
            "`theorem` must be a theorem such as `theorems.planted_rank` or one of its statements; "
            f"got {theorem!r}."
        )
    trials, key = check_count("trials", trials, 1), check_key("key", key)
    confidence = check_fraction("confidence", confidence)
    if settings is not None and not settings:
        raise ValueError("`settings` is empty. Leave it out to use the theorem's own regimes.")
    plans = []
    for name, found in statements.items():
        probability = float(found.at(failure_probability).failure_probability)
        plan = Plan(name, reference(found), trials, key, settings, probability, confidence)
        plans.append(plan)
    store = None if folder is None else PointStore(folder)
    return Report(tuple(sweep(plans, executor=executor, store=store, progress=progress)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The verification of one statement: which samples it takes, and what they say.

    `statement` is as in `Point`; without `settings` it is verified on its own regimes.
    """

    name: str
    statement: str | AbstractStatement
    trials: int
    key: PRNGKeyArray
    settings: Mapping[str, Any] | None = None
    failure_probability: float = 0.05
    confidence: float = 0.99

    @property
    def family(self) -> str:
        """The theorem: its statements draw alike."""
        return self.name.partition(".")[0]

    def steps(self) -> Generator[list[Point], list[Sample], StatementReport]:
        """Asks for samples, is sent them, and ends in the report."""
        statement = by_name(self.statement).at(self.failure_probability)
        judge = _Judge(statement, self.confidence, len(self._regimes))
        asked = self._samples()
        drawn = iter((yield [point for points in asked.values() for point in points]))
        reports = []
        for label, points in asked.items():
            sizes = list(itertools.islice(drawn, len(points)))
            limit = statement.kind.certainty is Certainty.ASYMPTOTIC
            reports.append(judge.limit(label, sizes) if limit else judge.regime(label, *sizes))
        tightest = max(reports, key=lambda report: _or_minus(report.critical_constant))
        controls = self._controls(tightest.name)
        shrunk = judge.reproducible_factor(tightest.sample, controls[0].number)
        fresh, broken = yield controls
        found = (
            Control(
                f"bound times {shrunk:.3g} on fresh instances of '{tightest.name}'",
                judge.refutes(fresh, shrunk),
            ),
            Control("broken estimator", judge.refutes(broken, 1.0)),
        )
        kind = str(statement.kind)
        return StatementReport(
            self.name, kind, judge.allowed_rate, tuple(reports), found, statement.refutation
        )

    def points(self) -> int:
        """How many points it takes: as many, whichever regime proves the tightest."""
        samples = [point for points in self._samples().values() for point in points]
        controls = self._controls(next(iter(self._regimes)))
        return sum(len(point.blocks()) for point in samples + controls)

    @property
    def _regimes(self) -> Mapping[str, Any]:
        return by_name(self.statement).regimes if self.settings is None else self.settings

    def _samples(self) -> dict[str, list[Point]]:
        """The samples of each regime: one, or for a limit one at each size."""
        statement = by_name(self.statement)
        number = math.ceil(self.trials / len(self._regimes))
        if statement.kind.certainty is not Certainty.ASYMPTOTIC:
            return {
                label: [self._point(label, setting, number)]
                for label, setting in self._regimes.items()
            }
        number = math.ceil(number * statement.trials_per_mean)
        *smaller, largest = statement.growth
        fewer = math.ceil(number / 4)  # they only have to show that the error shrinks
        sizes = dict.fromkeys(smaller, fewer) | {largest: number}
        return {
            label: [
                self._point(f"{label} x{factor}", _enlarged(setting, factor), count)
                for factor, count in sizes.items()
            ]
            for label, setting in self._regimes.items()
        }

    def _controls(self, tightest: str) -> list[Point]:
        """Fresh instances of the tightest regime, and the broken estimate."""
        statement = by_name(self.statement)
        size, number = 1, self._samples()[tightest][-1].number
        if statement.kind.certainty is Certainty.ASYMPTOTIC:
            size = statement.growth[-1]
        else:
            number = max(number, CONTROL_TRIALS)
        fresh, wrong = _enlarged(self._regimes[tightest], size), _enlarged(statement.control, size)
        return [
            self._point(f"control of {tightest}", fresh, number),
            self._point("broken estimator", wrong, number, broken=True),
        ]

    def _point(self, label: str, setting: Any, number: int, *, broken: bool = False) -> Point:
        key = jax.random.fold_in(self.key, zlib.crc32(label.encode()))
        statement = by_name(self.statement)
        return request(
            statement, setting, number, key, self.failure_probability, broken, label=label
        )


@dataclasses.dataclass(frozen=True)
class _Judge:
    """One statement with its statistics; `regimes` is the number of simultaneous tests."""

    statement: AbstractStatement
    confidence: float
    regimes: int = 1

    @property
    def level(self) -> float:
        """The probability of a false refutation allowed to one regime."""
        return (1 - self.confidence) / self.regimes

    @property
    def allowed_rate(self) -> float | None:
        """The violation rate that the statement allows, if it is a statement about violations."""
        probability = float(self.statement.failure_probability)
        rates = {Certainty.SURE: 0.0, Certainty.PROBABILITY: probability}
        return rates.get(self.statement.kind.certainty)

    def sample(self, setting: Any, number: int, key: PRNGKeyArray, *, broken: bool) -> Sample:
        """`number` trials of the statement."""
        return measure(request(self.statement, setting, number, key, broken=broken))

    # -- sure statements, and statements with probability 1-δ: counting violations ----------------

    def _least_count(self, number: int) -> int:
        """The fewest violations of `number` trials that refute the statement; may exceed `number`.

        At the allowed violation rate, so many or more occur with probability at most `level`. It is
        from there on that the lower Clopper-Pearson limit of the rate is not below the allowed one.
        """
        return 1 + int(stats.binom.isf(self.level, number, self.allowed_rate))

    # -- means ------------------------------------------------------------------------------------

    @property
    def _tolerance(self) -> float:
        """How far beyond one a mean ratio may be."""
        asymptotic = self.statement.kind.certainty is Certainty.ASYMPTOTIC
        return KNOWN_TO if asymptotic else 0.0

    def _mean(self, sample: Sample) -> tuple[float, float]:
        """Mean ratio, infinite if any is, and the half-width of its two-sided interval.

        For a lower bound it is realised / bound that is averaged, and then inverted: the mean of
        the inverse would be larger, and no statement speaks of it.
        """
        ratio, count = sample.ratio, sample.applicable
        if count < 2:
            return math.nan, math.inf
        if not np.isfinite(ratio).all():
            return math.inf, 0.0
        if sample.direction is not Direction.LOWER:
            return float(np.mean(ratio)), self._half_width(ratio)
        if not ratio.all():
            return 0.0, 0.0  # a bound of zero, with which every mean is infinite
        mean = float(np.mean(1 / ratio))
        return 1 / mean, self._half_width(1 / ratio) / mean**2

    def _half_width(self, numbers: np.ndarray) -> float:
        error = float(np.std(numbers, ddof=1)) / math.sqrt(numbers.size)
        return error * float(stats.t.isf(self.level / 2, numbers.size - 1))

    # -- judgements -------------------------------------------------------------------------------

    def refutes(self, sample: Sample, factor: float) -> bool:
        """Whether the sample refutes the statement with its bound times `factor`, at most one."""
        if sample.applicable == 0:
            return False
        if self.allowed_rate is not None:
            against = sample.violated if factor == 1 else sample.refuting_factor > factor
            return int(against.sum()) >= self._least_count(sample.applicable)
        mean, half = self._mean(sample)
        above = mean - half > factor * (1 + self._tolerance)
        equality = self.statement.kind.direction is Direction.EQUALITY
        return above or (equality and mean + half < factor * (1 - self._tolerance))

    def _supports(self, sample: Sample) -> bool:
        """Whether a sample that does not refute the statement could have, or is surely within."""
        if self.allowed_rate is not None:
            return 0 < sample.applicable >= self._least_count(sample.applicable)
        mean, half = self._mean(sample)
        below = self.statement.kind.direction is not Direction.EQUALITY and mean + half <= 1
        return below or half <= KNOWN_TO

    def regime(self, name: str, sample: Sample) -> RegimeReport:
        """The verdict on one regime of a statement that is not asymptotic."""
        if self.refutes(sample, 1.0):
            verdict = Verdict.REFUTED
        elif self._supports(sample):
            verdict = Verdict.CONSISTENT
        else:
            verdict = Verdict.INCONCLUSIVE
        return RegimeReport(name, sample, verdict, self._critical(sample))

    def limit(self, name: str, sizes: list[Sample]) -> RegimeReport:
        """The verdict on one regime of a limit: the error must shrink, and end small."""
        *smaller, largest = sizes
        means, halves = np.transpose([self._mean(sample) for sample in sizes])
        excess = means - 1
        equality = self.statement.kind.direction is Direction.EQUALITY
        errors = np.abs(excess) if equality else np.maximum(excess, 0)
        grows = errors[1:] - halves[1:] > errors[:-1] + halves[:-1]
        small = errors[-1] + halves[-1] <= self._tolerance
        if self.refutes(largest, 1.0) or grows.any():
            verdict = Verdict.REFUTED
        elif small and np.isfinite(halves).all():
            verdict = Verdict.CONSISTENT
        else:
            verdict = Verdict.INCONCLUSIVE
        return RegimeReport(name, largest, verdict, self._critical(largest), tuple(smaller))

    def _critical(self, sample: Sample) -> float:
        """The factor below which the sample refutes the bound times it; NaN if there is none."""
        if sample.applicable == 0:
            return math.nan
        if self.allowed_rate is not None:
            return _largest(sample.refuting_factor, self._least_count(sample.applicable))
        mean, half = self._mean(sample)
        return (mean - half) / (1 + self._tolerance)

    def reproducible_factor(self, sample: Sample, number: int) -> float:
        """A factor times which the bound is refuted by `number` fresh trials, as this sample shows.

        It fails to be with probability at most 2 (1 - `POWER`): once for this sample, once for the
        fresh one. NaN if the sample shows no such factor.
        """
        if sample.applicable == 0:
            return math.nan
        number = max(1, number * sample.applicable // sample.trials)
        if self.allowed_rate is None:
            mean, half = self._mean(sample)
            spread = half * max(1.0, math.sqrt(sample.applicable / number))
            return _STEP * (mean - 3 * spread) / (1 + self._tolerance)
        rates = np.linspace(0, 1, 2001)[1:]
        powerful = rates[stats.binom.sf(self._least_count(number) - 1, number, rates) >= POWER]
        counts = np.arange(1, sample.applicable + 1)
        shown = stats.beta.ppf(1 - POWER, counts, sample.applicable - counts + 1)
        enough = counts[shown >= powerful[0]] if powerful.size else powerful
        if not enough.size:
            return math.nan
        return _STEP * _largest(sample.refuting_factor, int(enough[0]))


def _largest(numbers: np.ndarray, rank: int) -> float:
    """The `rank`-th largest of the numbers; NaN if there are fewer."""
    return float(np.sort(numbers)[-rank]) if rank <= numbers.size else math.nan


def _enlarged(setting: Any, factor: int) -> Any:
    return setting.enlarged(factor) if factor > 1 else setting


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _or_minus(number: float) -> float:
    return -math.inf if math.isnan(number) else number
