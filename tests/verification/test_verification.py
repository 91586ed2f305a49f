"""`verify` tells true statements from false ones, and says when it cannot."""

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import lowrank_theory as lrt
from lowrank_theory import Setting, Verdict, _compilation, theorems, verify
from lowrank_theory.generators import noise, spectra, targets
from lowrank_theory.theorems import (
    CONTENTS,
    STATEMENTS,
    Certainty,
    Direction,
    Kind,
    best_possible,
    planted_rank,
)
from lowrank_theory.theorems.approximate_rank import Oracle
from lowrank_theory.theorems.best_possible import ActivationWeightedIsBest, Optimality
from lowrank_theory.theorems.calibration_size import CalibrationSetting, LeadingConstant
from lowrank_theory.theorems.planted_rank import AnyNoise, Expectation, Gaussian
from lowrank_theory.verification import RegimeReport, Sample, monte_carlo, sampling
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(6)

ROW = {
    "name",
    "kind",
    "trials",
    "applicable",
    "violations",
    "allowed",
    "verdict",
    "critical_constant",
    "refuted_below",
    "refuted_by",
    "ratio_median",
    "ratio_max",
}
SMALL = Setting(samples=20, inputs=8, outputs=6, rank=2)
WORST = Setting(
    samples=20,
    inputs=8,
    outputs=6,
    rank=2,
    target=targets.ExactOutputRank(scale=2.0),
    noise=noise.Opposing(1.0, rank=2),
)
NOISELESS = dataclasses.replace(SMALL, noise=noise.Gaussian(0.0))
SPIKES = CalibrationSetting(np.asarray(400), 8, 3, spectra.Spiked(3, 2.0))


def key(seed: int = 0) -> Any:
    return jax.random.key(seed)


def one(statement: Any, setting: Any, trials: int = 100, seed: int = 0, **options: Any) -> Any:
    """The report of one statement on one setting."""
    report = verify(statement, trials=trials, key=key(seed), settings={"only": setting}, **options)
    return report.statements[0]


def regime(statement: Any, setting: Any, trials: int = 100, seed: int = 0) -> RegimeReport:
    """The verdict on one setting, without the controls."""
    judgement = monte_carlo._Judge(statement, confidence=0.99)
    drawn = judgement.sample(setting, trials, key(seed), broken=False)
    return judgement.regime("only", drawn)


# --- true statements -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [next(iter(theorem.statements)) for theorem in CONTENTS])
def test_true_statement_is_consistent_and_its_controls_are_caught(name):
    statement = STATEMENTS[name]
    first = dict(list(statement.regimes.items())[:1])
    trials = max(100, math.ceil(150 / statement.trials_per_mean))
    report = verify(statement, trials=trials, key=key(), settings=first)
    (result,) = report.statements
    assert result.name == name
    assert [control.caught for control in result.controls] == [True, True]
    assert result.verdict is report.verdict is Verdict.CONSISTENT
    (row,) = json.loads(json.dumps(report.rows(), allow_nan=False))
    assert set(row) == ROW
    assert row["verdict"] == "consistent"
    assert row["applicable"] == row["trials"] == result.trials
    assert 0 < row["critical_constant"] <= 1.0 + monte_carlo.KNOWN_TO
    counted = statement.kind.certainty in (Certainty.SURE, Certainty.PROBABILITY)
    assert (row["violations"], row["allowed"]) == (
        (0, 0.0 if statement.kind.certainty is Certainty.SURE else 0.05)
        if counted
        else (None, None)
    )


@pytest.mark.slow
def test_theorem_is_verified_statement_by_statement():
    seen: list[tuple[str, int, int]] = []
    report = verify(
        best_possible,
        trials=20,
        key=key(),
        settings={"small": SMALL, "noiseless": NOISELESS},
        progress=lambda *call: seen.append(call),
    )
    names = list(best_possible.statements)
    assert [statement.name for statement in report.statements] == names
    assert [[r.name for r in s.regimes] for s in report.statements] == [["small", "noiseless"]] * 3
    assert seen == [(name, done, 4) for name in names for done in (1, 2, 3, 4)]
    assert [statement.trials for statement in report.statements] == [20] * 3


# --- false statements ----------------------------------------------------------------------------


class TooSmall(AnyNoise):
    """The worst case has a ratio of 0.9992, and this bound is 1 % smaller than the proved one."""

    def formula(self, instance: Any, estimate: Any) -> Any:
        return 0.99 * super().formula(instance, estimate)


class ForgottenRank(Gaussian):
    def formula(self, instance: Any, estimate: Any) -> Any:
        return super().formula(instance, estimate) / (50 * instance.rank)


class SmallMean(Expectation):
    def formula(self, instance: Any, estimate: Any) -> Any:
        return super().formula(instance, estimate) / 50


class TooLarge(Optimality):
    def formula(self, instance: Any, estimate: Any) -> Any:
        return 1.01 * super().formula(instance, estimate)


class WrongNorm(ActivationWeightedIsBest):
    """Off by one part in a million: equalities are checked to rounding."""

    def formula(self, instance: Any, estimate: Any) -> Any:
        return (1 + 1e-6) * super().formula(instance, estimate)


class TenPercentMore(LeadingConstant):
    def formula(self, instance: Any, estimate: Any) -> Any:
        return 1.1 * super().formula(instance, estimate)


class TenPercentLess(LeadingConstant):
    def formula(self, instance: Any, estimate: Any) -> Any:
        return 0.9 * super().formula(instance, estimate)


class NotANumber(AnyNoise):
    def formula(self, instance: Any, estimate: Any) -> Any:
        return jnp.nan * super().formula(instance, estimate)


class MeanIsNotANumber(Expectation):
    def loss(self, instance: Any, estimate: Any) -> Any:
        return jnp.nan * super().loss(instance, estimate)


FALSE = {
    "sure": (TooSmall(), WORST, 50),
    "with probability": (ForgottenRank(), SMALL, 100),
    "in expectation": (SmallMean(), SMALL, 100),
    "lower bound": (TooLarge(), SMALL, 50),
    "equality": (WrongNorm(), SMALL, 50),
    "limit too large": (TenPercentMore(), SPIKES, 25),
    "limit too small": (TenPercentLess(), SPIKES, 25),
    "bound is NaN": (NotANumber(), SMALL, 50),
    "realised is NaN": (MeanIsNotANumber(), SMALL, 50),
}


def _slow_if(slow: bool, case: str) -> Any:
    return pytest.param(case, marks=pytest.mark.slow) if slow else case


@pytest.mark.parametrize("case", [_slow_if(case == "limit too small", case) for case in FALSE])
def test_false_statement_is_refuted(case):
    statement, setting, trials = FALSE[case]
    result = one(statement, setting, trials)
    assert result.verdict is Verdict.REFUTED
    json.dumps(result.row(), allow_nan=False)


@pytest.mark.parametrize(
    ("statement", "setting"), [(planted_rank.any_noise, WORST), (planted_rank.gaussian, SMALL)]
)
def test_critical_constant_of_one_key_is_refuted_on_another(statement, setting):
    critical = regime(statement, setting, 200).critical_constant

    class Shrunk(type(statement)):
        factor: float = 1.0

        def formula(self, instance: Any, estimate: Any) -> Any:
            whole = super().formula(instance, estimate)
            return self.factor * critical * whole

    assert regime(Shrunk(0.9), setting, 200, seed=1).verdict is Verdict.REFUTED
    assert regime(Shrunk(1.1), setting, 200, seed=1).verdict is Verdict.CONSISTENT


def test_broken_recovery_is_refuted(monkeypatch):
    """The data-driven recovery loses a tenth of its factors, and every statement about it sees."""
    fit = lrt.ActivationWeighted.fit

    def lossy(self: Any, observed: Any, rank: int) -> Any:
        recovery = fit(self, observed, rank)
        factors = lrt.LowRank(0.9 * recovery.factors.left, recovery.factors.right)
        return dataclasses.replace(recovery, approximation=factors)

    monkeypatch.setattr(lrt.ActivationWeighted, "fit", lossy)
    # A shape of its own: nothing compiled with the sound recovery is used.
    setting = dataclasses.replace(SMALL, samples=22)
    for statement in (best_possible.activation_weighted, planted_rank.any_noise):
        assert regime(statement, setting, 20).verdict is Verdict.REFUTED


# --- what cannot be told -------------------------------------------------------------------------


@pytest.mark.slow
def test_no_applicable_trial_is_inconclusive():
    result = one(planted_rank.gaussian, dataclasses.replace(SMALL, noise=noise.Laplace(0.1)))
    assert result.verdict is result.regimes[0].verdict is Verdict.INCONCLUSIVE
    assert (result.trials, result.applicable) == (100, 0)
    row = json.loads(json.dumps(result.row(), allow_nan=False))
    assert row["critical_constant"] is row["ratio_median"] is row["ratio_max"] is None


def test_too_few_trials_to_refute_are_inconclusive():
    assert regime(planted_rank.gaussian, SMALL, 1).verdict is Verdict.INCONCLUSIVE
    assert regime(planted_rank.gaussian, SMALL, 2).verdict is Verdict.CONSISTENT
    assert regime(planted_rank.expectation, SMALL, 1).verdict is Verdict.INCONCLUSIVE
    assert regime(planted_rank.any_noise, SMALL, 1).verdict is Verdict.CONSISTENT


@pytest.mark.slow
def test_one_inapplicable_regime_leaves_a_statement_inconclusive():
    settings = {"laplace": dataclasses.replace(SMALL, noise=noise.Laplace(0.1)), "gaussian": SMALL}
    report = verify(planted_rank.gaussian, trials=100, key=key(), settings=settings)
    (result,) = report.statements
    assert [r.verdict for r in result.regimes] == [Verdict.INCONCLUSIVE, Verdict.CONSISTENT]
    assert report.verdict is Verdict.INCONCLUSIVE
    assert math.isfinite(result.critical_constant)


@pytest.mark.slow
def test_statement_that_no_data_could_shrink_is_inconclusive():
    """Without noise both sides of the bound are zero: the statement holds, and says nothing."""
    result = one(planted_rank.any_noise, NOISELESS, 20)
    assert result.regimes[0].verdict is Verdict.CONSISTENT
    assert result.critical_constant < 1e-3
    assert result.verdict is Verdict.INCONCLUSIVE
    assert [control.caught for control in result.controls] == [False, True]


# --- statistics ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_result_does_not_depend_on_the_batching(monkeypatch):
    first = regime(planted_rank.any_noise, SMALL, 150).sample
    again = regime(planted_rank.any_noise, SMALL, 150).sample
    monkeypatch.setattr(sampling, "BATCH", 7)
    small = regime(planted_rank.any_noise, SMALL, 150).sample
    fewer = regime(planted_rank.any_noise, SMALL, 10).sample
    np.testing.assert_array_equal(first.realised, again.realised)
    assert_close(small.realised, first.realised)
    assert_close(fewer.realised, first.realised[:10])
    other = regime(planted_rank.any_noise, SMALL, 10, seed=1).sample
    assert not np.isclose(other.realised, fewer.realised).any()


def test_what_compiles_sooner_is_known_to_this_compiler():
    assert all(_compilation._is_option(*option) for option in _compilation._SOONER.items())
    assert not _compilation._is_option("xla_no_such_option", 1)


def judge(rate: float, confidence: float = 0.99, regimes: int = 1) -> Any:
    statement = planted_rank.gaussian.at(rate) if rate else planted_rank.any_noise
    return monte_carlo._Judge(statement, confidence, regimes)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("regimes", [1, 12])
@pytest.mark.parametrize("number", [1, 2, 5, 30, 84, 1000])
def test_violations_that_refute_are_those_above_the_clopper_pearson_limit(rate, regimes, number):
    least = judge(rate, regimes=regimes)._least_count(number)
    level = 0.01 / regimes  # Bonferroni
    counts = np.arange(1, number + 1)
    lower = stats.beta.ppf(level, counts, number - counts + 1)
    refuting = counts[lower >= rate * (1 - 1e-12)]
    assert least == (refuting[0] if refuting.size else number + 1)
    assert stats.binom.sf(least - 1, number, rate) <= level * (1 + 1e-12)


def test_one_violation_refutes_a_sure_statement():
    assert [judge(0.0)._least_count(n) for n in (1, 10, 10_000)] == [1, 1, 1]


def sample(direction: Direction, realised: Any, bound: Any, allowance: float = 0.0) -> Sample:
    realised, bound = np.array(realised, float), np.array(bound, float)
    return Sample(direction, realised.size, realised, bound, np.full(realised.size, allowance))


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("direction", "realised", "bound", "ratio", "violated", "factor"),
    [
        (Direction.UPPER, 1.0, 2.0, 0.45, False, 0.45),
        (Direction.UPPER, 2.05, 2.0, 0.975, False, 0.975),  # within rounding
        (Direction.UPPER, 4.1, 2.0, 2.0, True, 2.0),
        (Direction.UPPER, 0.05, 0.0, 0.0, False, 0.0),  # rounding noise over nothing
        (Direction.UPPER, 0.2, 0.0, INF, True, INF),
        (Direction.UPPER, NAN, 1.0, INF, True, INF),
        (Direction.UPPER, INF, 1.0, INF, True, INF),
        (Direction.UPPER, 1.0, NAN, INF, True, INF),
        (Direction.LOWER, 2.0, 1.1, 0.5, False, 0.5),
        (Direction.LOWER, 1.0, 1.05, 0.95, False, 0.95),
        (Direction.LOWER, 1.0, 2.1, 2.0, True, 2.0),
        (Direction.LOWER, 0.0, 0.05, 0.0, False, 0.0),
        (Direction.LOWER, NAN, 1.0, INF, True, INF),
        (Direction.EQUALITY, 1.0, 1.05, 1.0, False, 0.9 / 1.05),
        (Direction.EQUALITY, 1.0, 2.0, 0.55, True, 0.45),
        (Direction.EQUALITY, 2.0, 1.0, 1.9, True, 1.9),
        (Direction.EQUALITY, 0.05, 0.0, 1.0, False, 0.0),
        (Direction.EQUALITY, 1e-3, 2e-3, 1.0, False, 0.0),  # both are rounding noise
        (Direction.EQUALITY, NAN, 1.0, INF, True, INF),
    ],
)
def test_ratio_grants_rounding_to_the_statement(
    direction, realised, bound, ratio, violated, factor
):
    drawn = sample(direction, [realised], [bound], allowance=0.1)
    assert_close(drawn.ratio, [ratio])
    assert_close(drawn.refuting_factor, [factor])
    assert drawn.violated.tolist() == [violated]


def test_critical_constant_is_the_factor_below_which_the_sample_refutes():
    ratios = np.linspace(0.1, 0.6, 200)
    drawn = sample(Direction.UPPER, ratios, np.ones(200))
    for judgement in (judge(0.0), judge(0.05), judge(0.05, regimes=9)):
        critical = judgement.regime("", drawn).critical_constant
        assert judgement.refutes(drawn, critical * (1 - 1e-9))
        assert not judgement.refutes(drawn, critical * (1 + 1e-9))
    assert judge(0.0).regime("", drawn).critical_constant == 0.6


@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_reproducible_factor_is_refuted_by_fresh_samples(rate):
    random = np.random.default_rng(0)
    judgement = judge(rate, regimes=10)
    caught = 0
    for _ in range(200):
        seen, fresh = random.beta(2, 5, (2, 200))
        factor = judgement.reproducible_factor(sample(Direction.UPPER, seen, np.ones(200)), 200)
        caught += judgement.refutes(sample(Direction.UPPER, fresh, np.ones(200)), factor)
    assert caught >= 194


def test_true_probability_statement_is_rarely_refuted():
    """A violation rate exactly as allowed, the hardest true case, at the stated confidence."""
    random = np.random.default_rng(0)
    judgement = judge(0.05, confidence=0.9)
    refuted = 0
    for _ in range(1000):
        ratios = np.where(random.uniform(size=200) < 0.05, 1.5, 0.5)
        refuted += judgement.refutes(sample(Direction.UPPER, ratios, np.ones(200)), 1.0)
    assert refuted <= stats.binom.ppf(0.9999, 1000, 0.1)


def limit(*means: float, spread: float = 0.01, count: int = 1000) -> Verdict:
    wave = spread * np.sin(np.arange(count))
    judgement = monte_carlo._Judge(theorems.calibration_size.leading_constant, 0.99)
    sizes = [sample(Direction.EQUALITY, mean + wave, np.ones(count)) for mean in means]
    return judgement.limit("", sizes).verdict


def test_limit_must_be_approached_and_reached():
    assert limit(1.3, 1.1, 1.01) is Verdict.CONSISTENT
    assert limit(0.7, 0.9, 0.99) is Verdict.CONSISTENT
    assert limit(1.001, 1.001, 1.001) is Verdict.CONSISTENT
    assert limit(1.3, 1.1, 1.05) is Verdict.REFUTED  # ends too far away
    assert limit(0.7, 0.9, 0.95) is Verdict.REFUTED
    assert limit(1.0, 1.0, 1.02) is Verdict.REFUTED  # moves away
    assert limit(1.05, 1.2, 1.01) is Verdict.REFUTED
    assert limit(1.3, 1.1, 1.01, spread=5.0) is Verdict.INCONCLUSIVE
    assert limit(1.3, 1.1, 1.01, count=1) is Verdict.INCONCLUSIVE
    assert limit(1.3, 1.1, NAN) is Verdict.REFUTED


@pytest.mark.parametrize(
    ("mean", "spread", "verdict"),
    [
        (1.0, 1.0, Verdict.INCONCLUSIVE),
        (1.0, 0.01, Verdict.CONSISTENT),  # attained in the mean, which is known to 3 %
        (0.1, 1.0, Verdict.CONSISTENT),
        (1.1, 0.01, Verdict.REFUTED),
    ],
)
def test_a_mean_is_at_its_bound_once_it_is_known(mean, spread, verdict):
    judgement = monte_carlo._Judge(planted_rank.expectation, 0.99)
    around = sample(Direction.UPPER, mean + spread * np.sin(np.arange(50)), np.ones(50))
    assert judgement.regime("", around).verdict is verdict


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "`trials` must be an integer >= 1"),
        ({"failure_probability": 1.0}, "`failure_probability` must lie strictly between 0 and 1"),
        ({"confidence": 0.0}, "`confidence` must lie strictly between 0 and 1"),
        ({"settings": {}}, "`settings` is empty"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message):
    arguments: dict[str, Any] = {"trials": 1, "key": key()} | changes
    with pytest.raises(ValueError, match=message):
        verify(planted_rank, **arguments)


def test_theorem_must_be_one():
    with pytest.raises((ValueError, TypeError), match="theorem"):
        verify("planted_rank", trials=1, key=key())  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_statement_of_ones_own_is_reported_by_its_class():
    assert one(Oracle(inflation=2.0), SMALL, 20).name == "Oracle"


def test_kind_of_a_report():
    assert str(Kind(Direction.LOWER, Certainty.EXPECTATION)) == "lower bound in expectation"


def test_the_mean_of_a_lower_bound_is_of_the_realised_quantity():
    """Half of 0.5 and half of 1.5 is one on average, and so is a lower bound of one; the mean of
    the inverses, 4/3, would refute it.
    """
    judgement = monte_carlo._Judge(theorems.minimax_floor.truncation, confidence=0.99)
    realised, ones = np.tile([0.5, 1.5], 500), np.ones(1000)
    fair = Sample(Direction.LOWER, 1000, realised, ones, 0 * ones)
    assert judgement._mean(fair)[0] == approx(1)
    assert not judgement.refutes(fair, 1.0)
    assert judgement.refutes(dataclasses.replace(fair, realised=0.9 * realised), 1.0)
    assert judgement.regime("only", dataclasses.replace(fair, realised=1.1 * realised)).verdict is (
        Verdict.CONSISTENT
    )
