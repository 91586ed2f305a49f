"""Verify a theorem by sampling: many random instances, honest statistics, and controls that must
fail.
"""

import dataclasses
import enum
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from scipy import stats

from lowrank_theory._numerics import check_count, check_fraction, rounding_allowance
from lowrank_theory.theorems import (
    AbstractStatement,
    AbstractTheorem,
    Certainty,
    Direction,
)
from lowrank_theory.theorems._theorem import assess

ASYMPTOTIC_TOLERANCE = 0.03
GROWTH = (1, 4, 16)
TRIALS_PER_MEAN = 64
BATCH = 128
POWER = 0.99

Progress = Callable[[str, int, int], None]


class Verdict(enum.Enum):
    """What the data say of a statement."""

    CONSISTENT = "consistent"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"


@dataclasses.dataclass(frozen=True)
class Sample:
    """Trials of one statement on one setting, as NumPy arrays of equal length.

    `ratio` is oriented so that a violation has a ratio above one: realised / bound, inverted for
    lower bounds. Only applicable trials, those whose hypotheses hold, are kept; `trials` counts
    all.
    """

    trials: int
    realised: np.ndarray
    bound: np.ndarray
    ratio: np.ndarray
    violated: np.ndarray

    @property
    def applicable(self) -> int:
        """How many trials satisfied the hypotheses."""
        return len(self.ratio)


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
    - `verdict`: refuted if any regime is; consistent if all are and every control was caught.
    """

    name: str
    kind: str
    failure_probability: float | None
    regimes: tuple[RegimeReport, ...]
    controls: tuple[Control, ...]

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
        return max((regime.critical_constant for regime in self.regimes), default=math.nan)

    @property
    def ratios(self) -> np.ndarray:
        """The ratios of all applicable trials."""
        return np.concatenate([regime.sample.ratio for regime in self.regimes])

    def row(self) -> dict[str, Any]:
        """The row of `report.json`; what does not apply or is not finite is `None`."""
        ratios = self.ratios
        return {
            "name": self.name,
            "kind": self.kind,
            "trials": self.trials,
            "applicable": self.applicable,
            "violations": self.violations if self.failure_probability is not None else None,
            "allowed": self.failure_probability,
            "verdict": self.verdict.value,
            "critical_constant": _finite(self.critical_constant),
            "ratio_median": _finite(np.median(ratios)) if ratios.size else None,
            "ratio_max": _finite(ratios.max()) if ratios.size else None,
        }


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

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `report.json`."""
        return [statement.row() for statement in self.statements]


def verify(
    theorem: AbstractTheorem | AbstractStatement,
    *,
    trials: int,
    key: PRNGKeyArray,
    settings: Mapping[str, Any] | None = None,
    failure_probability: float = 0.05,
    confidence: float = 0.99,
    progress: Progress | None = None,
) -> Report:
    """Check a theorem, or one statement of it, on random instances.

    `trials` per statement are spread evenly over its own regimes, or over the named `settings` if
    given; a statement about a limit runs more, at growing sizes. Each statement is then put to two
    negative controls of its own. The result is a function of the arguments alone, whatever the
    batching. Verdicts hold at the given `confidence`, corrected for the number of regimes:

    - sure: no violation beyond the rounding allowance;
    - with probability 1-δ (δ = `failure_probability`): the exact (Clopper-Pearson) interval of the
      violation rate reaches δ or below;
    - in expectation: the confidence limit of the mean does not exceed the bound;
    - asymptotic: the mean error at the largest of three sizes is at most 3 %, and not above that at
      the smallest.

    No applicable trial, or too few for any outcome to refute the statement, is *inconclusive*.
    `progress(name, done, total)` is called after every batch. Raises `ValueError` for arguments out
    of range.
    """
    if isinstance(theorem, AbstractTheorem):
        statements = theorem.statements
    elif isinstance(theorem, AbstractStatement):
        statements = {_name_of(theorem): theorem}
    else:
        raise ValueError(
            "`theorem` must be a theorem such as `theorems.planted_rank` or one of its statements; got "
            f"{theorem!r}."
        )
    check_count("trials", trials, 1)
    check_fraction("failure_probability", failure_probability)
    check_fraction("confidence", confidence)
    if settings is not None and not settings:
        raise ValueError("`settings` is empty. Leave it out to use the theorem's own regimes.")
    reports = []
    for name, statement in statements.items():
        judge = _Judge(statement, failure_probability, confidence)
        report = functools.partial(progress, name) if progress else None
        reports.append(_verify_statement(name, judge, trials, key, settings, report))
    return Report(tuple(reports))


def _name_of(statement: AbstractStatement) -> str:
    from lowrank_theory.theorems import CONTENTS

    for theorem in CONTENTS:
        for name, candidate in theorem.statements.items():
            if candidate is statement:
                return name
    return type(statement).__name__


def _verify_statement(
    name: str,
    judge: "_Judge",
    trials: int,
    key: PRNGKeyArray,
    settings: Mapping[str, Any] | None,
    progress: Callable[[int, int], None] | None,
) -> StatementReport:
    statement = judge.statement
    regimes = statement.regimes if settings is None else settings
    per_regime = math.ceil(trials / len(regimes))
    judge = dataclasses.replace(judge, regimes=len(regimes))
    asymptotic = statement.kind.certainty is Certainty.ASYMPTOTIC
    count = per_regime * TRIALS_PER_MEAN if asymptotic else per_regime
    total = len(regimes) * (len(GROWTH) if asymptotic else 1) + 2
    done = 0

    def run(label: str, setting: Any, number: int, *, broken: bool = False) -> Sample:
        nonlocal done
        sample = judge.sample(setting, number, _fold(key, label), broken=broken)
        done += 1
        if progress:
            progress(min(done, total), total)
        return sample

    reports = []
    for label, setting in regimes.items():
        if asymptotic:
            sizes = [  # the smaller sizes only have to show that the error shrinks
                run(
                    f"{label} x{growth}",
                    _grown(setting, growth),
                    count // (1 if growth == GROWTH[-1] else 4),
                )
                for growth in GROWTH
            ]
            reports.append(judge.limit(label, sizes))
        else:
            reports.append(judge.regime(label, run(label, setting, count)))

    tightest = max(reports, key=lambda report: _or_minus(report.critical_constant))
    setting = _grown(regimes[tightest.name], GROWTH[-1] if asymptotic else 1)
    number = count if asymptotic else max(per_regime, 200)
    shrunk = judge.reproducible_factor(tightest, number)
    fresh = run(f"control of {tightest.name}", setting, number)
    largest = _grown(statement.control, GROWTH[-1] if asymptotic else 1)
    broken = run("broken estimator", largest, number, broken=True)
    controls = (
        Control(
            f"bound times {shrunk:.3g} on fresh instances of '{tightest.name}'",
            judge.refutes(fresh, shrunk),
        ),
        Control("broken estimator", judge.refutes(broken, 1.0)),
    )
    return StatementReport(name, str(statement.kind), judge.allowed_rate, tuple(reports), controls)


@dataclasses.dataclass(frozen=True)
class _Judge:
    """One statement with its statistics; `regimes` is the number of simultaneous tests."""

    statement: AbstractStatement
    failure_probability: float
    confidence: float
    regimes: int = 1

    @property
    def level(self) -> float:
        """The probability of a false refutation allowed to one regime."""
        return (1 - self.confidence) / self.regimes

    @property
    def allowed_rate(self) -> float | None:
        """The violation rate that the statement allows, if it is a statement about violations."""
        certainty = self.statement.kind.certainty
        rates = {Certainty.SURE: 0.0, Certainty.PROBABILITY: self.failure_probability}
        return rates.get(certainty)

    def sample(self, setting: Any, number: int, key: PRNGKeyArray, *, broken: bool) -> Sample:
        """`number` trials, each from its own key; batches have one size, so that one compilation
        serves all.
        """
        with jax.enable_x64(True):
            parts = []
            for start in range(0, number, BATCH):
                keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(
                    jnp.arange(start, start + BATCH, dtype=jnp.uint32)
                )
                judged = _judge(
                    self.statement, _draw(setting, keys), self.failure_probability, broken
                )
                parts.append([np.asarray(part) for part in judged])
        holds, realised, bound, allowance = (
            np.concatenate(column)[:number] for column in zip(*parts, strict=True)
        )
        return self._orient(number, holds, realised, bound, allowance)

    def _orient(
        self,
        number: int,
        holds: np.ndarray,
        realised: np.ndarray,
        bound: np.ndarray,
        allowance: np.ndarray,
    ) -> Sample:
        applicable = holds & np.isfinite(bound)
        realised, bound = realised[applicable], bound[applicable]
        allowance = allowance[applicable]
        direction = self.statement.kind.direction
        small, large = (bound, realised) if direction is Direction.LOWER else (realised, bound)
        ratio = (small + allowance) / np.where(large + allowance > 0, large + allowance, 1)
        if direction is Direction.EQUALITY:
            violated = np.abs(small - large) > allowance
        else:
            violated = small > large + allowance
        broken = ~np.isfinite(
            realised
        )  # a realised quantity that is not a number is no evidence of a bound
        return Sample(number, realised, bound, np.where(broken, np.inf, ratio), violated | broken)

    # -- sure statements, and statements with probability 1-δ: counting violations ------------------------------

    def _least_count(self, number: int) -> int:
        """The fewest violations among `number` trials that refute the statement; above `number` if
        none do.
        """
        if not self.allowed_rate:
            return 1
        counts = np.arange(1, number + 1)
        lower = stats.beta.ppf(self.level, counts, number - counts + 1)
        refuting = counts[lower > self.allowed_rate]
        return int(refuting[0]) if refuting.size else number + 1

    def _counts(self, sample: Sample, factor: float) -> int:
        if factor == 1.0:
            return int(sample.violated.sum())
        if self.statement.kind.direction is Direction.EQUALITY:
            return int((np.abs(sample.ratio - factor) > abs(1 - factor) / 2).sum())
        return int((sample.ratio > factor).sum())

    # -- means -----------------------------------------------------------------------------------------------

    def _mean(self, sample: Sample) -> tuple[float, float]:
        """Mean ratio and the half-width of its interval."""
        count = sample.applicable
        if count < 2:
            return math.nan, math.inf
        spread = float(np.std(sample.ratio, ddof=1)) / math.sqrt(count)
        return float(np.mean(sample.ratio)), spread * float(
            stats.t.ppf(1 - self.level / 2, count - 1)
        )

    # -- judgements ------------------------------------------------------------------------------------------

    def refutes(self, sample: Sample, factor: float) -> bool:
        """Whether the sample refutes the statement with its bound multiplied by `factor`."""
        if sample.applicable == 0:
            return False
        if self.allowed_rate is not None:
            return self._counts(sample, factor) >= self._least_count(sample.applicable)
        mean, half = self._mean(sample)
        if self.statement.kind.certainty is Certainty.ASYMPTOTIC:
            return abs(mean / factor - 1) - half / factor > ASYMPTOTIC_TOLERANCE
        return mean - half > factor

    def regime(self, name: str, sample: Sample) -> RegimeReport:
        """The verdict on one regime of a statement that is not asymptotic."""
        if self.refutes(sample, 1.0):
            verdict = Verdict.REFUTED
        elif sample.applicable == 0:
            verdict = Verdict.INCONCLUSIVE
        elif self.allowed_rate is not None:
            can_refute = self._least_count(sample.applicable) <= sample.applicable
            verdict = Verdict.CONSISTENT if can_refute else Verdict.INCONCLUSIVE
        else:
            mean, half = self._mean(sample)
            verdict = Verdict.CONSISTENT if mean + half <= 1 else Verdict.INCONCLUSIVE
        return RegimeReport(name, sample, verdict, self._critical(sample))

    def limit(self, name: str, sizes: list[Sample]) -> RegimeReport:
        """The verdict on one regime of an asymptotic statement: the error must end small, and not
        grow.
        """
        if min(sample.applicable for sample in sizes) < 2:
            return RegimeReport(name, sizes[0], Verdict.INCONCLUSIVE, math.nan, tuple(sizes[1:]))
        means, halves = zip(*(self._mean(sample) for sample in sizes), strict=True)
        first, last = abs(means[0] - 1), abs(means[-1] - 1)
        if self.refutes(sizes[-1], 1.0) or last - halves[-1] > first + halves[0]:
            verdict = Verdict.REFUTED
        elif last + halves[-1] <= ASYMPTOTIC_TOLERANCE:
            verdict = Verdict.CONSISTENT
        else:
            verdict = Verdict.INCONCLUSIVE
        critical = (means[-1] - halves[-1]) / (1 + ASYMPTOTIC_TOLERANCE)
        return RegimeReport(name, sizes[-1], verdict, critical, tuple(sizes[:-1]))

    def _critical(self, sample: Sample) -> float:
        if sample.applicable == 0:
            return math.nan
        if self.allowed_rate is not None:
            count = self._least_count(sample.applicable)
            descending = np.sort(sample.ratio)[::-1]
            return float(descending[count - 1]) if count <= descending.size else math.nan
        mean, half = self._mean(sample)
        return mean - half

    def reproducible_factor(self, report: RegimeReport, number: int) -> float:
        """A factor that this sample shows to be so small that `number` fresh trials refute it, with
        99 % power.
        """
        sample = report.sample
        if sample.applicable == 0:
            return math.nan
        if self.statement.kind.direction is Direction.EQUALITY:
            return 1 - 2 * ASYMPTOTIC_TOLERANCE - 0.05
        if self.allowed_rate is None:
            mean, half = self._mean(sample)
            return mean - 3 * half * max(1.0, math.sqrt(sample.applicable / number))
        needed = self._least_count(number)
        rates = np.linspace(0, 1, 2001)[1:]
        powerful = rates[stats.binom.sf(needed - 1, number, rates) >= POWER]
        if not powerful.size:
            return math.nan
        counts = np.arange(1, sample.applicable + 1)
        lower = stats.beta.ppf(1 - POWER, counts, sample.applicable - counts + 1)
        enough = counts[lower >= powerful[0]]
        if not enough.size:
            return math.nan
        # Just below the ratio itself, which would not exceed itself; by a relative step that rounding does not fill.
        return float(np.sort(sample.ratio)[::-1][enough[0] - 1]) * (1 - 1e-3)


# Drawing is compiled apart from judging, so that settings of one shape share the latter. Both are mostly calls of decompositions,
# which a compiler cannot improve: it is asked to be quick rather than thorough. Trials run one after another (`lax.map`), since
# batched decompositions can wait for each other's threads for ever.
_QUICK = {"xla_backend_optimization_level": 0}


@functools.partial(eqx.filter_jit, compiler_options=_QUICK)
def _draw(setting: Any, keys: Array) -> Any:
    """Keys -> instances."""
    return jax.lax.map(lambda key: setting.draw(key=key), keys)


@functools.partial(eqx.filter_jit, compiler_options=_QUICK)
def _judge(
    statement: AbstractStatement, instances: Any, failure_probability: float, broken: bool
) -> tuple[Array, Array, Array, Array]:
    """Instances -> (hypotheses hold, realised, bound, rounding allowance)."""

    def one(instance: Any) -> tuple[Array, Array, Array, Array]:
        bound, realised = assess(statement, instance, failure_probability)
        if broken:
            wrong = statement.broken_estimate(instance, failure_probability)
            realised = statement.loss(instance, wrong)
        magnitude = statement.magnitude(instance)
        allowance = rounding_allowance(magnitude, *instance.observed.shape)
        return bound.holds, realised, bound.value, allowance

    return jax.lax.map(one, instances)


def _grown(setting: Any, factor: int) -> Any:
    return (
        setting if factor == 1 else dataclasses.replace(setting, samples=factor * setting.samples)
    )


def _fold(key: PRNGKeyArray, label: str) -> PRNGKeyArray:
    return jax.random.fold_in(key, zlib.crc32(label.encode()))


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _or_minus(number: float) -> float:
    return -math.inf if math.isnan(number) else number
