"""What theory knows of smaller constants, computed anew from the limit or the instance that shows
it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from lowrank_theory import Setting
from lowrank_theory.generators import noise, targets
from lowrank_theory.perturbations import Perturbation
from lowrank_theory.recovery import ActivationWeighted, recover
from lowrank_theory.recovery.shrinkage import hard_threshold_constant
from lowrank_theory.theorems import STATEMENTS, Direction
from lowrank_theory.theorems._byte_tables import ByteSetting, TableSetting
from lowrank_theory.theorems._coded_rows import uniform_deviation
from lowrank_theory.theorems._sketches import inverse_moment, mean_inverse_norm
from lowrank_theory.theorems._spiked import observed_strength, truncation_loss
from lowrank_theory.theorems.calibration_excess import likely_excess
from lowrank_theory.theorems.gaussian_noise import leading_squares, lower_edge, upper_edge
from lowrank_theory.theorems.held_out_certificate import HeldOut
from lowrank_theory.theorems.heteroskedastic_noise import ScaledNoise
from lowrank_theory.theorems.minimax_floor import bayes_floor
from lowrank_theory.theorems.orientation import OrientationSetting
from lowrank_theory.theorems.planted_rank import gaussian_worst_square, mean_worst_square
from lowrank_theory.theorems.rate_distortion import CodedWeights
from lowrank_theory.theorems.second_moment import (
    gaussian_deviation,
    gaussian_shortfall,
    relative_deviation,
    relative_shortfall,
)
from lowrank_theory.theorems.strong_signal import likely_error
from lowrank_theory.theorems.subgaussian_noise import squared_cloud_bound, squared_net_bound
from lowrank_theory.theorems.unequal_noise import Loudness
from statements import drawn, in_float64, sides

DELTA = 0.05
HUGE = 1e14
EDGE = 2 * math.sqrt(HUGE)  # the norm of a large square Gaussian matrix
T = math.sqrt(2 * math.log(2 / DELTA))
WEAK = Setting(samples=20, inputs=8, outputs=6, rank=2, target=targets.ExactRank(scale=1e-3))
STRONG = dataclasses.replace(WEAK, target=targets.ExactRank(scale=1e3), noise=noise.Gaussian(0.1))


def ratio(name: str, instance: Any) -> float:
    """Of what is realised and the bound, inverted for lower bounds."""
    statement = STATEMENTS[name]
    realised, bound = sides(statement, instance)
    lower = statement.kind.direction is Direction.LOWER
    return bound / realised if lower else realised / bound


def at(function: Any, *arguments: Any) -> float:
    """The function at floats and at the δ of the statements."""
    return in_float64(function, *arguments, DELTA)


def own_error() -> float:
    problem = drawn(Setting(samples=20, inputs=8, outputs=6, rank=2))
    recovery = recover(problem.observed, 2, ActivationWeighted())
    inputs, outputs = (
        np.asarray(each) for each in (problem.truth.layer_inputs, problem.observed.target_outputs)
    )
    factors = recovery.factors
    lost = np.linalg.norm(outputs - inputs @ np.asarray(factors.left) @ np.asarray(factors.right))
    return float(STATEMENTS["best_possible.optimality"].bound(problem).value) / float(lost)


def one_noise(name: str) -> float:
    """One row of equal scales: its norm is nearly the root of their number."""
    with jax.enable_x64(True):
        row, yes = jnp.ones((1, 10**6)), jnp.asarray(True)
        instance = ScaledNoise(row, row, jnp.ones((1, 1)), yes, yes)
        return 1e3 / float(STATEMENTS[f"heteroskedastic_noise.{name}"].formula(instance, row))


def white_rows(name: str) -> float:
    """A million inputs and four times as many rows: the norm of the deviation is 5/4."""
    statement: Any = STATEMENTS[f"second_moment.{name}"]
    with jax.enable_x64(True):
        return 1.25 / float(statement.relative(jnp.ones(10**6), 4 * 10**6))


def leverage(sign: int) -> float:
    """All rows alike, a million of them: the deviation d of the bound, by its equation."""
    level = math.log(1 / DELTA) / 1e6
    d = optimize.brentq(lambda d: (1 + sign * d) * math.log1p(sign * d) - sign * d - level, 0, 0.5)
    return 1 / (1 + d) if sign > 0 else 1 - d  # pyright: ignore[reportOperatorIssue]


def turned() -> float:
    signal, against = np.diag([2.0, 0.0]), np.diag([-1.0 - 1e-9, 1.0])
    return ratio("strong_signal.tangent", Perturbation(signal, against, 1))


def at_the_hard_threshold(beta: float) -> float:
    """The loss of a component that is just not kept, over that of the worst case."""
    seen = in_float64(hard_threshold_constant, beta)

    def beyond(x: float) -> float:
        return in_float64(lambda: observed_strength(jnp.array([x]), beta)[0]) - seen

    x = float(optimize.brentq(beyond, beta**0.25, 10))  # pyright: ignore[reportArgumentType]
    return x**2 / ((1 + beta + math.sqrt(1 + 14 * beta + beta**2)) / 2)


def shrunk(x: float, beta: float) -> float:
    short = (x**4 - beta) / (x**4 + beta * x**2)
    long = (x**4 - beta) / (x**4 + x**2)
    return x**2 * (1 - short * long) / (1 + beta)


def one_above(outputs: int) -> Any:
    return jnp.ones(outputs).at[0].set(1 + 1e-3)


def leading_constant() -> float:
    """Over half of d tan(½ arcsin(d/gap)), which is what the bound says at rank one."""
    with jax.enable_x64(True):
        values, samples = one_above(10**6), HUGE**2
        a = float(gaussian_deviation(values, jnp.asarray(samples), DELTA))
        spread = 2 * float(values[0]) * (2 * a + a**2)
        bound = spread * math.tan(math.asin(spread / 1e-3) / 2) / 2
        return (10**6 - 1) * 1.001 / 1e-3 / samples / bound


def ridged() -> float:
    """The least part of the objective that the rows show, which is what the bound divides by."""
    with jax.enable_x64(True):
        a = float(gaussian_shortfall(jnp.ones(8), jnp.asarray(HUGE), DELTA))
    return 1 - 0.9 * (1 - (1 - a) ** 2)


def likely_leading_constant() -> float:
    with jax.enable_x64(True):
        values = jnp.ones(10**6).at[0].set(2.0)
        bound, _ = likely_excess(values, 1, HUGE**2, DELTA)
        return (10**6 - 1) * 2 / HUGE**2 / float(bound)


def many_units(name: str) -> float:
    losses = np.tile([0.85, 0.95], 50_000)
    stated = HeldOut.stated(losses, range_bound=1.0)
    held_out = dataclasses.replace(stated, mean=np.asarray(0.9))
    return ratio(f"held_out_certificate.{name}", held_out)


def zeros(name: str) -> float:
    """The share of heads at which samples of zeros are as likely as δ, over the bound of zeros."""
    stated = HeldOut.stated(np.zeros(100), range_bound=1.0)
    held_out = dataclasses.replace(stated, mean=np.asarray(1 - DELTA ** (1 / 100)))
    return ratio(f"held_out_certificate.{name}", held_out)


def all_equal() -> float:
    stated = HeldOut.stated(np.full(9, 0.3), moment_ratio=1.0)
    instance = dataclasses.replace(stated, mean=np.asarray(0.3))
    return ratio("held_out_certificate.moment_ratio", instance)


def floor_of_the_strong() -> float:
    """Over the noise in the tangent space."""
    return float(bayes_floor(1, 10**14, 10**14, 1.0, HUGE**3, 1e3)) / (2 * HUGE - 1)


def full_rank() -> float:
    return HUGE / at(gaussian_worst_square, HUGE, 1.0, 1)


def unequal_at_full_rank(size: Callable[[Loudness], Any]) -> float:
    """The mean of the squared noise over the square of a bound, of 1e12 samples."""
    scales = np.geomspace(1, 0.1, 16)
    loud = Loudness(1.0, 1e6, scales, 1e12)
    return 1e12 * float(np.sum(scales**2)) / in_float64(lambda: size(loud) ** 2)


# A tail of equal values, much longer than the sketch of p columns.
P, POWERS = 10**4, 10**5
SHARE = 3 / DELTA

REFUTATIONS: dict[str, Callable[[], float]] = {
    "best_possible.optimality": own_error,
    "gaussian_noise.largest": lambda: EDGE / at(upper_edge, HUGE, HUGE),
    "gaussian_noise.smallest": lambda: at(lower_edge, 4 * HUGE, HUGE) / math.sqrt(HUGE),
    # Of a vector, whose norm has a mean above the root of q - 1/2.
    "gaussian_noise.expected_largest": lambda: math.sqrt(HUGE - 0.5) / (math.sqrt(HUGE) + 1),
    "gaussian_noise.expected_smallest": lambda: (math.sqrt(HUGE) - 1) / math.sqrt(HUGE),
    "gaussian_noise.leading": lambda: (
        4 * EDGE**2 / in_float64(lambda: jnp.sum(leading_squares(HUGE, HUGE, 4)))
    ),
    "subgaussian_noise.pac_bayes": lambda: math.sqrt(HUGE / at(squared_cloud_bound, HUGE, 1)),
    "subgaussian_noise.net": lambda: EDGE / math.sqrt(at(squared_net_bound, HUGE, 10**14)),
    "heteroskedastic_noise.separable": lambda: one_noise("separable"),
    "heteroskedastic_noise.expected_separable": lambda: one_noise("expected_separable"),
    "heteroskedastic_noise.norm": lambda: one_noise("norm"),
    "heteroskedastic_noise.expected_norm": lambda: one_noise("expected_norm"),
    "white_residual.expected": lambda: (
        EDGE**2 / in_float64(lambda: leading_squares(HUGE, HUGE, 1)[0])
    ),
    "white_residual.gaussian": lambda: EDGE**2 / at(upper_edge, HUGE, HUGE) ** 2,
    "white_residual.edge": lambda: EDGE**2 / HUGE**2 / (HUGE**-0.5 + HUGE**-0.5) ** 2,
    "second_moment.relative": lambda: 0.5 / at(relative_deviation, HUGE, 4 * HUGE),
    "second_moment.absolute": lambda: (
        1.25 / ((1 + at(relative_deviation, HUGE, 4 * HUGE)) ** 2 - 1)
    ),
    "second_moment.dimension_free": lambda: white_rows("dimension_free"),
    "second_moment.expectation": lambda: white_rows("expectation"),
    "second_moment.leverage_above": lambda: leverage(1),
    "second_moment.leverage_below": lambda: leverage(-1),
    "planted_rank.gaussian": full_rank,
    "planted_rank.expectation": lambda: 24 * 20 / in_float64(mean_worst_square, 24.0, 20.0, 20),
    "planted_rank.sub_gaussian": lambda: HUGE / at(squared_cloud_bound, HUGE, 1),
    "unequal_noise.gaussian": lambda: unequal_at_full_rank(lambda each: each.likely(16, DELTA)),
    "unequal_noise.expectation": lambda: unequal_at_full_rank(lambda each: each.expected(16)),
    "look_up.bytes": lambda: ratio(
        "look_up.bytes", drawn(TableSetting(100, 1, 16, 6, half_way=True))
    ),
    "look_up.average_worst": lambda: ratio(
        "look_up.average_worst", drawn(ByteSetting(1, 4, counted=True))
    ),
    "look_up.rows_to_come": lambda: (
        1 / (1 + in_float64(uniform_deviation, 1.0, 1.0, 1.0, 4, 2, HUGE**3, DELTA))
    ),
    # At δ/2, which in the limit is all the same, and of many rows to spare.
    "planted_rank.unknown_scale": lambda: full_rank() * (1 - T * math.sqrt(2 / HUGE)),
    "strong_signal.tangent": turned,
    "strong_signal.gaussian": lambda: (
        (2 * HUGE - 1) / at(likely_error, HUGE, HUGE, 1, 1.0, HUGE**3) ** 2
    ),
    "approximate_rank.gaussian": lambda: ratio("approximate_rank.gaussian", drawn(WEAK)),
    "rank_penalty.gaussian": lambda: ratio("rank_penalty.gaussian", drawn(WEAK)),
    "rank_penalty.selected_rank": lambda: ratio("rank_penalty.selected_rank", drawn(STRONG)),
    "rank_penalty.detected_rank": lambda: ratio("rank_penalty.detected_rank", drawn(STRONG)),
    "minimax_floor.truncation": floor_of_the_strong,
    "minimax_floor.shrinkage": floor_of_the_strong,
    # Of the target zero, over the prior of strength and spread 1e-3.
    "minimax_floor.soft_threshold": lambda: float(
        bayes_floor(10**4, 10**4, 10**4, 1.0, 1e-3, 1e-3) / (1e-6 * (10**8 + 10**4))
    ),
    "spiked_limit.truncation_worst_case": lambda: (
        in_float64(lambda: truncation_loss(jnp.array([0.25**0.25 + 1e-9]), 0.25)[0]) / 2.75
    ),
    "spiked_limit.hard_threshold_worst_case": lambda: at_the_hard_threshold(0.3),
    "spiked_limit.frobenius_worst_case": lambda: shrunk(1e3, 0.3),
    "relu_noise_before.score_expectation": lambda: math.sqrt(HUGE - 0.5) / (math.sqrt(HUGE) + 1),
    "relu_noise_before.score": lambda: EDGE / at(upper_edge, HUGE, HUGE),
    # A share that is one reference above δ is below its quantile more often than δ.
    "orientation.p_value": lambda: DELTA * 1e6 / (DELTA * 1e6 + 1),
    "gain_of_data.expected_optimum": lambda: ratio(
        "gain_of_data.expected_optimum",
        drawn(OrientationSetting(np.ones(6), np.array([4.0, 3, 2, 1]), rank=2, count=2)),
    ),
    "calibration_size.relative": lambda: (
        ((1 - at(relative_shortfall, 8, HUGE)) / (1 + T / math.sqrt(HUGE))) ** 2
    ),
    "calibration_size.gaussian": leading_constant,
    "calibration_size.ridge_gaussian": ridged,
    "calibration_excess.gaussian": likely_leading_constant,
    "held_out_certificate.hoeffding": lambda: many_units("hoeffding"),
    "held_out_certificate.empirical_bernstein": lambda: many_units("empirical_bernstein"),
    "held_out_certificate.betting": lambda: many_units("betting"),
    "held_out_certificate.order_free": lambda: zeros("order_free"),
    "held_out_certificate.clopper_pearson": lambda: zeros("clopper_pearson"),
    "held_out_certificate.moment_ratio": all_equal,
    "rate_distortion.floor": lambda: ratio(
        "rate_distortion.floor", CodedWeights(np.ones((1, 9)), np.eye(1), 0, gaussian=True)
    ),
    "rate_distortion.low_rank": lambda: 1 - 4 / HUGE,  # over all that there is
    # The matrix of ones, and one place in each row and column.
    "low_rank_plus_sparse.apart": lambda: (1 - 2 * HUGE**-0.5) / (1 + 1 / HUGE),
    "randomized_range.frobenius": lambda: (1 - P / HUGE) / (1 + 1 / (P - 2)),
    "randomized_range.truncated": lambda: 1 / (1 + 1 / (P - 1)),
    "randomized_range.frobenius_tail": lambda: 1 / (1 + inverse_moment(P) * SHARE ** (2 / P)),
    "randomized_range.spectral": lambda: (
        (2 + mean_inverse_norm(1, 2) * math.sqrt(HUGE)) ** (-1 / POWERS)
    ),
    "randomized_range.spectral_tail": lambda: (
        (SHARE**3 * math.sqrt(HUGE)) ** (-1 / POWERS)  # more than its constants at p = 2
    ),
}


def test_every_statement_says_what_theory_knows_of_smaller_constants():
    """All but a few are attained, or have an instance or a limit below."""
    stated = {name for name, each in STATEMENTS.items() if each.refuted_below is not None}
    assert stated == set(REFUTATIONS)
    unknown = {name for name, each in STATEMENTS.items() if each.refutation is None}
    assert unknown == {
        "relu_noise_after.gaussian",
        "relu_noise_before.likely_gaussian",
        "relu_noise_before.convex_gaussian",
        "randomized_range.a_posteriori",
        "rounding.rotation",
        "rounding.rotated",
    }


@pytest.mark.thinned(6)
@pytest.mark.parametrize("name", REFUTATIONS)
def test_no_smaller_constant_is_true(name):
    stated = STATEMENTS[name].refuted_below
    assert stated is not None
    assert stated.factor - 0.01 <= REFUTATIONS[name]() <= stated.factor + 1e-3
    assert 0 < stated.factor <= 1


def test_what_is_attained_has_the_constant_one():
    for name, each in STATEMENTS.items():
        if each.sharp or each.kind.direction is Direction.EQUALITY:
            assert each.refuted_below is None, name
            assert each.refutation is not None
            assert each.refutation.factor == 1


def test_below_half_of_full_rank_the_planted_bound_is_four_times_the_limit_of_truncation():
    worst = 5 * HUGE  # q + K + 3 sqrt(qK)
    assert worst / in_float64(mean_worst_square, HUGE, HUGE, 1) == pytest.approx(0.25)
    assert worst / at(gaussian_worst_square, HUGE, HUGE, 1) == pytest.approx(0.25, rel=1e-3)
