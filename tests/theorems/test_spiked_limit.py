"""The spiked model: identities of its limits, losses by hand, and an oracle in NumPy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laws import scales
from lowrank_theory.theorems import Certainty, Direction
from lowrank_theory.theorems._spiked import _setting as at_threshold
from lowrank_theory.theorems.spiked_limit import (
    SpikedMatrix,
    SpikedSetting,
    alignments,
    asymptotic_error,
    detection_threshold,
    observed_strength,
    spiked_limit,
)
from lowrank_theory.verification import Verdict, verify
from statements import by_name, drawn, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

STATEMENTS = by_name(spiked_limit)
every_statement = pytest.mark.parametrize("name", STATEMENTS)
DEGREE = {
    "singular_values": 1,
    "short_alignments": 0,
    "long_alignments": 0,
    "undetected": 0,
    "noise_scale": 1,
    "nuclear": 1,
    "operator": 1,
}
WIDE = SpikedSetting(12, 27, np.array([2.0, 1.5]), np.asarray(0.7))
BETA = 12 / 27


def stated(observed: Any, strengths: Any, noise_scale: Any) -> SpikedMatrix:
    """A matrix whose noise is stated to be Gaussian and independent of the signal."""
    return SpikedMatrix(observed, strengths, noise_scale, np.asarray(True))


def limits(instance: SpikedMatrix) -> dict[str, float]:
    with jax.enable_x64(True):
        return {name: float(s.formula(instance, None)) for name, s in STATEMENTS.items()}


def cosines(x: float, beta: float) -> tuple[float, float]:
    if x**4 <= beta:
        return 0.0, 0.0
    return (x**4 - beta) / (x**4 + beta * x**2), (x**4 - beta) / (x**4 + x**2)


# --- the limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.01])
def test_identities_between_the_limits(beta):
    x = beta**0.25 * np.array([1.0, 1.01, 1.5, 4.0, 100.0])
    y = np.asarray(observed_strength(x, beta))
    short, long = map(np.asarray, alignments(x, beta))
    assert_close(np.sqrt((1 - short) * (1 - long)), np.sqrt(beta) / x**2, condition=100)
    assert_close(x * y * np.sqrt(short * long), (x**4 - beta) / x**2, scale=1)
    assert_close(y**2, x**2 + 1 + beta + beta / x**2)
    assert np.all(short >= long)
    assert y[0] == approx(1 + np.sqrt(beta))
    expected = np.array([cosines(value, beta) for value in x[1:]]).T
    assert_close([short[1:], long[1:]], expected)


def test_below_the_threshold_only_the_edge_of_the_noise_is_seen():
    x = np.array([0.5, 0.1, 1e-9])
    assert_close(np.asarray(observed_strength(x, 0.25)), 1.5)
    for squared in alignments(x, 0.25):
        np.testing.assert_array_equal(np.asarray(squared), 0)


@pytest.mark.parametrize(("q", "outputs"), [(50, 200), (200, 50), (80, 80)])
def test_worst_cases_are_the_largest_limits(q, outputs):
    strengths = detection_threshold(q, outputs, 1.0) / np.sqrt(max(q, outputs))
    strengths = strengths * np.geomspace(0.01, 1e3, 20_001)
    empty = jnp.zeros((q, outputs), jnp.float32)
    worst = {
        "truncation": q + outputs + 3 * np.sqrt(q * outputs),
        "hard_threshold": (q + outputs + np.sqrt(q**2 + 14 * q * outputs + outputs**2)) / 2,
        "frobenius": q + outputs,
    }
    with jax.enable_x64(True):
        for name, expected in worst.items():

            def losses(x: Any, name: str = name) -> Any:
                instance = stated(empty, x[None], jnp.asarray(1.0))
                return STATEMENTS[name].formula(instance, None)

            largest = np.max(np.asarray(jax.vmap(losses)(jnp.asarray(strengths))))
            assert largest == pytest.approx(expected, rel=2e-3)
            assert largest <= expected * (1 + 1e-9)
            instance = stated(empty, jnp.array([2.0, 1.0]), jnp.asarray(0.5))
            bound = STATEMENTS[f"{name}_worst_case"].bound(instance).value
            assert float(bound) == approx(2 * 0.5**2 * expected)


def test_limits_by_hand():
    """Strengths 2 and 0.5 at beta = 1: c^2 = c~^2 = 15/20 = 3/4, y = 5/2, y* = 4/sqrt(3) < 5/2."""
    instance = stated(np.zeros((4, 4)), np.array([2.0, 0.5]), np.asarray(3.0))
    unit = 6.0
    expected = {
        "singular_values": unit * (2.5 + 2),
        "short_alignments": 0.75,
        "long_alignments": 0.75,
        "undetected": 2 * 0.25 + 2,
        "noise_scale": 3,
        "truncation": unit**2 * (2 + 3 / 4 + 1 / 4 + 4),
        "truncation_worst_case": unit**2 * 10,
        "hard_threshold": unit**2 * (2 + 3 / 4 + 1 / 4),
        "hard_threshold_worst_case": unit**2 * 6,
        "frobenius": unit**2 * (4 * (1 - 9 / 16) + 1 / 4),
        "frobenius_worst_case": unit**2 * 4,
        "nuclear": unit * (2 * np.sqrt(3 / 4) + 1 / 2),
        "operator": unit,
    }
    assert limits(instance) == approx(expected)


def test_limits_of_an_elongated_matrix_by_hand():
    """Strength 1 at beta = 1/4: c^2 = 3/5, c~^2 = 3/8, y^2 = 5/2."""
    instance = stated(np.zeros((16, 4)), np.array([1.0]), np.asarray(0.25))
    cosine = np.sqrt(9 / 40) - np.sqrt(1 / 4)
    assert cosine < 0
    expected = {
        "singular_values": np.sqrt(5 / 2),
        "short_alignments": 3 / 5,
        "long_alignments": 3 / 8,
        "undetected": 2 - 3 / 5 - 3 / 8,
        "noise_scale": 1 / 4,
        "truncation": 2,
        "truncation_worst_case": 11 / 4,
        "hard_threshold": 1,
        "hard_threshold_worst_case": (5 / 4 + np.sqrt(73) / 4) / 2,
        "frobenius": 31 / 40,
        "frobenius_worst_case": 5 / 4,
        "nuclear": 1,
        "operator": np.sqrt(5 / 8),
    }
    assert limits(instance) == approx(expected)


@pytest.mark.parametrize(("q", "outputs"), [(60, 20), (20, 60)])
def test_error_in_the_units_of_a_layer_is_that_of_truncation(q, outputs):
    strengths = detection_threshold(q, outputs, 0.3) * np.array([3.0, 1.2, 0.4])
    unit = 0.3 * np.sqrt(60)
    instance = stated(np.zeros((q, outputs)), strengths / unit, np.asarray(0.3))
    expected = sides(spiked_limit.truncation, instance)[1]
    assert float(asymptotic_error(strengths, q, outputs, 0.3)) == approx(expected)
    assert detection_threshold(q, outputs, 0.3) / unit == approx((1 / 3) ** 0.25)


# --- realised quantities -------------------------------------------------------------------------


def shrink(name: str, y: float, beta: float) -> float:
    if y <= 1 + np.sqrt(beta):
        return 0.0
    t = y**2 - beta - 1
    x = np.sqrt((t + np.sqrt(t**2 - 4 * beta)) / 2)
    short, long = cosines(x, beta)
    sines = np.sqrt((1 - short) * (1 - long))
    return {
        "frobenius": x * np.sqrt(short * long),
        "nuclear": x * max(np.sqrt(short * long) - sines, 0),
        "operator": x * np.sqrt(long / short),
    }[name]


@pytest.mark.parametrize("shape", [(12, 27), (27, 12)])
def test_realised_quantities_against_oracle(shape):
    instance = drawn(SpikedSetting(shape[0], shape[1], np.array([3.0, 1.6]), np.asarray(0.7)))
    observed = np.asarray(instance.observed)
    unit = 0.7 * np.sqrt(27)
    signal = np.zeros(shape)
    signal[0, 0], signal[1, 1] = 3.0 * unit, 1.6 * unit
    assert_close(np.asarray(instance.signal), signal)
    u, s, v = np.linalg.svd(observed, full_matrices=False)
    left, right = np.diagonal(u)[:2] ** 2, np.diagonal(v)[:2] ** 2
    short, long = (left, right) if shape[0] < shape[1] else (right, left)
    truncated = u[:, :2] * s[:2] @ v[:2] - signal
    constant = np.sqrt(2 * (BETA + 1) + 8 * BETA / (BETA + 1 + np.sqrt(BETA**2 + 14 * BETA + 1)))
    kept = u * np.where(s > constant * unit, s, 0) @ v - signal
    errors = {
        name: u * np.array([shrink(name, y, BETA) * unit for y in s / unit]) @ v - signal
        for name in ("frobenius", "nuclear", "operator")
    }
    expected = {
        "singular_values": np.sum(s[:2]),
        "short_alignments": np.sum(short),
        "long_alignments": np.sum(long),
        "undetected": np.sum(2 - short - long),
        "truncation": np.sum(truncated**2),
        "truncation_worst_case": np.sum(truncated**2),
        "hard_threshold_worst_case": np.sum(kept**2),
        "frobenius": np.sum(errors["frobenius"] ** 2),
        "frobenius_worst_case": np.sum(errors["frobenius"] ** 2),
        "nuclear": np.linalg.norm(errors["nuclear"], "nuc"),
        "operator": np.linalg.norm(errors["operator"], 2),
    }
    for name, value in expected.items():
        assert sides(STATEMENTS[name], instance)[0] == approx(value), name
    scale = sides(spiked_limit.noise_scale, instance)[0]
    below = np.linspace(0, np.median(s), 1001)[1:]
    assert np.median(s) / np.sqrt(27) / scale == pytest.approx(0.921, abs=0.01)
    assert below[-1] == np.median(s)
    # the unknown noise scale is used
    kept = u * np.where(s > constant * scale * np.sqrt(27), s, 0) @ v - signal
    assert sides(spiked_limit.hard_threshold, instance)[0] == approx(np.sum(kept**2))


def test_wrong_estimators_are_wrong():
    instance = drawn(WIDE)
    u, s, v = np.linalg.svd(np.asarray(instance.observed), full_matrices=False)
    with jax.enable_x64(True):
        wide = spiked_limit.truncation.broken_estimate(instance)
        rule = spiked_limit.operator.broken_estimate(instance)
        perfect = spiked_limit.short_alignments.broken_estimate(instance)
    assert_close(np.asarray(wide.materialise()), u[:, :4] * s[:4] @ v[:4], condition=100)
    for squared in perfect:
        np.testing.assert_array_equal(np.asarray(squared), 1)
    unit = 0.7 * np.sqrt(27)
    t = (s[0] / unit) ** 2 - BETA - 1
    strength = np.sqrt((t + np.sqrt(t**2 - 4 * BETA)) / 2) * unit
    assert np.linalg.norm(np.asarray(rule.materialise()), 2) == approx(strength)


# --- laws ----------------------------------------------------------------------------------------


@every_statement
def test_both_sides_scale_with_the_units(name):
    statement, instance = STATEMENTS[name], drawn(WIDE)
    observed, strengths = np.asarray(instance.observed), np.asarray(instance.strengths)

    def at(unit):
        scale = np.asarray(unit * float(instance.noise_scale))
        scaled = stated(unit * observed, strengths, scale)
        with jax.enable_x64(True):
            magnitude = float(statement.magnitude(scaled))
        assert magnitude > 0
        return *sides(statement, scaled), magnitude

    scales(at, DEGREE.get(name, 2))


def test_setting_draws_what_it_says():
    enlarged = WIDE.enlarged(3)
    assert (enlarged.rows, enlarged.columns) == (36, 81)
    instance = drawn(SpikedSetting(200, 300, np.array([5.0]), np.asarray(2.0)))
    residual = np.asarray(instance.observed) - np.asarray(instance.signal)
    assert np.std(residual) == pytest.approx(2.0, rel=0.02)
    assert np.asarray(instance.observed).dtype == np.float64
    assert float(instance.unit) == approx(2 * np.sqrt(300))
    assert instance.sizes == (200, 300)
    with jax.enable_x64(True):
        same = jax.jit(lambda key: WIDE.draw(key=key))(jax.random.key(0))
    assert_close(np.asarray(same.observed), np.asarray(drawn(WIDE).observed))


def test_operator_norm_by_hand():
    """Of the two squared cosines, (x^4 - b) / (x^4 + x^2) is the smaller."""
    instance = drawn(SpikedSetting(12, 48, np.array([3.0, 1.5]), np.asarray(0.5)))
    lost = [x * math.sqrt(1 - (x**4 - 0.25) / (x**4 + x**2)) for x in (3.0, 1.5)]
    assert sides(spiked_limit.operator, instance)[1] == approx(0.5 * math.sqrt(48) * max(lost))


def test_strengths_of_regimes_are_multiples_of_the_threshold():
    """That of a 24 x 96 matrix is 4^(-1/4) in its own units."""
    setting = at_threshold((24, 96), 2.0, 0.5, noise_scale=3.0)
    threshold = detection_threshold(24, 96, 1.0) / math.sqrt(96)
    assert_close(np.asarray(setting.strengths), threshold * np.array([2.0, 0.5]))


@pytest.mark.parametrize(("rows", "columns"), [(1, 9), (9, 1), (0, 4)])
def test_setting_must_hold_its_spikes(rows, columns):
    with pytest.raises(
        ValueError, match=r"must be an integer >= 2 \(at least one for each spike\)"
    ):
        SpikedSetting(rows, columns, np.array([2.0, 1.0]))


@pytest.mark.parametrize(
    ("strengths", "noise_scale", "failing"),
    [
        ([2.0, 2.0], 1.0, "the strengths are positive and decrease"),
        ([1.0, 2.0], 1.0, "the strengths are positive and decrease"),
        ([2.0, 0.0], 1.0, "the strengths are positive and decrease"),
        ([2.0, 1.0], 0.0, "there is noise"),
    ],
)
def test_outside_its_hypotheses_there_is_no_limit(strengths, noise_scale, failing):
    instance = stated(np.ones((4, 4)), np.array(strengths), np.asarray(noise_scale))
    bound = spiked_limit.truncation.bound(instance)
    assert [h.name for h in bound.hypotheses if not bool(h.holds)] == [failing]
    assert float(bound.value) == np.inf
    with pytest.raises(RuntimeError, match=failing):
        jax.block_until_ready(bound.require())


@pytest.mark.parametrize(("strongest", "holds"), [(0.7, False), (0.72, True)])
def test_operator_rule_asks_for_a_detected_component(strongest, holds):
    """The threshold is 0.7071 at beta = 1/4; a weaker second component is no matter."""
    instance = stated(np.ones((4, 16)), np.array([strongest, 0.1]), np.asarray(3.0))
    failing = [
        h.name for h in spiked_limit.operator.bound(instance).hypotheses if not bool(h.holds)
    ]
    assert failing == ([] if holds else ["a component is detected"])
    assert all(bool(h.holds) for h in spiked_limit.nuclear.bound(instance).hypotheses)


@every_statement
def test_statement_is_a_limit_of_spiked_matrices(name):
    statement = STATEMENTS[name]
    assert statement.kind.certainty is Certainty.ASYMPTOTIC
    upper = statement.kind.direction is Direction.UPPER
    assert upper == name.endswith("worst_case")
    with pytest.raises(ValueError, match="`instance` must be a `SpikedMatrix`; got ndarray"):
        statement.bound(np.eye(3))
    with jax.enable_x64(True):
        for setting in (*statement.regimes.values(), statement.control):
            empty = stated(
                np.zeros((setting.rows, setting.columns)), setting.strengths, np.asarray(1.0)
            )
            assert all(bool(h.holds) for h in statement.hypotheses(empty))


@pytest.mark.slow
def test_verification_is_consistent_and_tells_false_limits():
    report = verify(spiked_limit.singular_values, trials=300, key=jax.random.key(1))
    assert report.verdict is Verdict.CONSISTENT
    (statement,) = report.statements
    assert [control.caught for control in statement.controls] == [True, True]
