"""Every statement under one table of laws, then the values that theory gives exactly."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from laws import comes_back, scales
from lowrank_theory import theorems
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.problems import Layer, Observed, Problem, ReluThenNoise, Setting, Truth
from lowrank_theory.theorems import CONTENTS, Certainty, Direction, Hypothesis
from lowrank_theory.theorems.approximate_rank import Oracle, SchattenBall
from lowrank_theory.theorems.best_possible import Optimality, best_error
from lowrank_theory.theorems.calibration_size import (
    CalibrationSetting,
    FreshRows,
    first_order_excess,
)
from lowrank_theory.theorems.minimax_floor import risk_floor
from lowrank_theory.theorems.price_of_ignoring_data import price_bound
from lowrank_theory.theorems.spiked_limit import asymptotic_error, detection_threshold
from lowrank_theory.theorems.subgaussian_noise import squared_cloud_bound
from statements import drawn, sides, stated
from tolerance import approx

pytestmark = pytest.mark.thinned(9)

# These theorems share laws and settings; the others have test files of their own.
SHARED = {
    "best_possible",
    "planted_rank",
    "approximate_rank",
    "rank_penalty",
    "relu_noise_after",
    "price_of_ignoring_data",
    "calibration_size",
}
STATEMENTS = {
    name: statement
    for theorem in CONTENTS
    for name, statement in theorem.statements.items()
    if theorem.name in SHARED
}
NOT_SQUARED = {
    "best_possible.truncated_svd",
    "best_possible.activation_weighted",
    "best_possible.optimality",
    "planted_rank.any_noise",
    "planted_rank.weights",
    "approximate_rank.golden_ratio",
    "price_of_ignoring_data.condition_number",
    "price_of_ignoring_data.weight_tail",
    "price_of_ignoring_data.channel_scaling",
    "price_of_ignoring_data.covariance_weighting",
    "price_of_ignoring_data.stale_calibration",
}
every_statement = pytest.mark.parametrize("name", STATEMENTS)
COUNTS = {"rank_penalty.selected_rank", "rank_penalty.detected_rank"}

# Few shapes, so that compilations are shared.
LINEAR = Setting(samples=20, inputs=8, outputs=6, rank=2)
RECTIFIED = dataclasses.replace(LINEAR, link=ReluThenNoise())
ROWS = FreshRows(samples=60, inputs=8, outputs=6, rank=2)
WISHART = CalibrationSetting(np.asarray(100), 6, 2, spectra.PowerLaw(1.0))
LAPLACE, FULL_RANK = noise.Laplace(0.1), targets.ApproximateRank()


def fitting(name: str) -> Any:
    """A setting whose instances satisfy the hypotheses of the statement."""
    special = {"calibration_size.leading_constant": WISHART}
    special |= dict.fromkeys(
        (f"calibration_size.{each}" for each in ("relative", "gaussian", "ridge_gaussian")), ROWS
    )
    if name == "calibration_size.gap":
        return next(iter(STATEMENTS[name].regimes.values()))
    return special.get(name, RECTIFIED if name.startswith("relu") else LINEAR)


def scaled(problem: Problem, factor: float) -> Problem:
    """The same problem with its outputs in other units."""

    def changed(part: Any, *names: str) -> Any:
        values = {name: getattr(part, name) for name in names}
        changes = {
            k: np.asarray(factor * np.asarray(v)) for k, v in values.items() if v is not None
        }
        return dataclasses.replace(part, **changes)

    observed = changed(problem.observed, "weights", "outputs")
    truth = changed(problem.truth, "target_weights", "noise", "noise_scale")
    return Problem(observed, truth, problem.rank)


def diagonal(*values: float) -> np.ndarray:
    return np.diag(np.array(values, float))


# --- laws ----------------------------------------------------------------------------------------


def test_contents_names_each_theorem_after_its_file():
    names = [theorem.name for theorem in CONTENTS]
    assert names == list(dict.fromkeys(names))
    assert all(getattr(theorems, name).name == name for name in names)
    assert set(names) >= SHARED


@every_statement
def test_statement_holds_on_an_instance_of_its_hypotheses(name):
    statement, problem = STATEMENTS[name], drawn(fitting(name))
    bound = statement.bound(problem)
    assert bool(bound.holds)
    assert float(bound.require()) == float(bound.value)
    assert all(math.isfinite(float(h.margin)) for h in bound.hypotheses)
    realised, value = sides(statement, problem)
    with jax.enable_x64(True):
        allowance = 1e-12 * float(statement.magnitude(problem))
    if statement.kind.certainty is Certainty.ASYMPTOTIC:
        assert value > 0
        return
    if statement.kind.direction is not Direction.LOWER:
        assert realised <= value + allowance
    if statement.kind.direction is not Direction.UPPER:
        assert realised >= value - allowance


@every_statement
def test_both_sides_scale_with_the_units_of_the_outputs(name):
    problem = drawn(fitting(name))
    scales(
        lambda unit: sides(STATEMENTS[name], scaled(problem, unit)),
        0 if name in COUNTS else 1 if name in NOT_SQUARED else 2,
        condition=1e3 if name.startswith("calibration_size") else 1,  # a small excess
    )


def test_rounding_of_a_rectified_layer_without_signal_is_that_of_its_outputs():
    outputs = np.random.default_rng(0).standard_normal((6, 3))
    observed = Observed(activations=np.eye(6), outputs=outputs)
    problem = Problem.stated(observed, np.zeros((6, 3)), 1)
    for name, statement in STATEMENTS.items():
        if name.startswith("relu_noise_after"):
            with jax.enable_x64(True):
                assert float(statement.magnitude(problem)) == approx(np.sum(outputs**2))


VIOLATIONS: dict[tuple[str, str], Any] = {
    ("planted_rank.gaussian", "i.i.d. Gaussian"): dataclasses.replace(LINEAR, noise=LAPLACE),
    ("planted_rank.gaussian", "rank at most r"): dataclasses.replace(LINEAR, target=FULL_RANK),
    ("planted_rank.gaussian", "clean outputs plus noise"): RECTIFIED,
    ("planted_rank.expectation", "i.i.d. Gaussian"): dataclasses.replace(LINEAR, noise=LAPLACE),
    ("planted_rank.sub_gaussian", "sub-Gaussian"): dataclasses.replace(LINEAR, noise=LAPLACE),
    ("planted_rank.any_noise", "rank at most r"): dataclasses.replace(LINEAR, target=FULL_RANK),
    ("planted_rank.any_noise", "clean outputs plus noise"): RECTIFIED,
    ("planted_rank.unknown_scale", "i.i.d. Gaussian"): dataclasses.replace(LINEAR, noise=LAPLACE),
    ("planted_rank.unknown_scale", "enough rows"): dataclasses.replace(LINEAR, samples=8),
    ("planted_rank.weights", "full column rank"): dataclasses.replace(
        LINEAR, activations=activations.RankDeficient(4)
    ),
    ("approximate_rank.oracle", "clean outputs plus noise"): RECTIFIED,
    ("approximate_rank.nuclear_ball", "clean outputs plus noise"): RECTIFIED,
    ("approximate_rank.exact_radius", "rank at most r"): dataclasses.replace(
        LINEAR, target=FULL_RANK
    ),
    ("approximate_rank.truncation", "clean outputs plus noise"): RECTIFIED,
    ("approximate_rank.golden_ratio", "clean outputs plus noise"): RECTIFIED,
    ("approximate_rank.gaussian", "i.i.d. Gaussian"): dataclasses.replace(LINEAR, noise=LAPLACE),
    ("approximate_rank.schatten_ball", "clean outputs plus noise"): RECTIFIED,
    ("relu_noise_after.any_noise", "rectified clean outputs"): LINEAR,
    ("relu_noise_after.gaussian", "rectified clean outputs"): LINEAR,
    ("relu_noise_after.gaussian", "i.i.d. Gaussian"): dataclasses.replace(RECTIFIED, noise=LAPLACE),
    ("price_of_ignoring_data.condition_number", "full column rank"): dataclasses.replace(
        LINEAR, activations=activations.RankDeficient(4)
    ),
    ("price_of_ignoring_data.weight_tail", "same activations"): dataclasses.replace(
        LINEAR, mismatch=activations.Perturbed(0.3)
    ),
    ("calibration_size.relative", "Gaussian rows"): dataclasses.replace(
        ROWS, activations=activations.ReluOutputs(4)
    ),
    ("calibration_size.relative", "enough samples"): dataclasses.replace(ROWS, samples=8),
    ("calibration_size.leading_constant", "gap at the rank"): dataclasses.replace(
        WISHART, spectrum=spectra.Flat()
    ),
}


@pytest.mark.parametrize(("name", "hypothesis"), VIOLATIONS)
def test_outside_its_hypotheses_a_bound_is_infinite_and_require_says_why(name, hypothesis):
    bound = STATEMENTS[name].bound(drawn(VIOLATIONS[name, hypothesis]))
    failing = [h.name for h in bound.hypotheses if not bool(h.holds)]
    assert len(failing) == 1
    assert hypothesis in failing[0]
    assert float(bound.value) == math.inf
    with pytest.raises(RuntimeError, match=f"{failing[0]}' does not hold"):
        jax.block_until_ready(bound.require())


@pytest.mark.parametrize("name", [name for name in STATEMENTS if "rank." in name])
def test_corrupt_truth_gives_an_infinite_bound_and_never_nan(name):
    problem = drawn(LINEAR)
    truth = dataclasses.replace(problem.truth, noise=np.full((20, 6), np.nan))
    assert float(STATEMENTS[name].bound(Problem(problem.observed, truth, 2)).value) == math.inf


def test_lower_bound_promises_minus_infinity_outside_its_hypotheses():
    class Never(Optimality):
        def hypotheses(self, instance: Any) -> tuple[Hypothesis, ...]:
            return (Hypothesis("never", math.nan),)

    assert float(Never().bound(drawn(LINEAR)).value) == -math.inf


def test_threshold_below_the_noise_is_outside_the_oracle_inequality():
    bound = Oracle(inflation=0.9).bound(drawn(LINEAR))
    assert float(bound.value) == math.inf


def test_planted_rank_speaks_of_layers_without_bias():
    observed = Observed(activations=np.eye(3), outputs=np.eye(3), bias=np.ones(3))
    bound = theorems.planted_rank.any_noise.bound(Problem.stated(observed, np.zeros((3, 3)), 1))
    assert [h.name for h in bound.hypotheses if not h.holds] == ["the layer has no bias"]


@every_statement
def test_statement_about_the_truth_refuses_a_layer(name):
    statement, layer = STATEMENTS[name], Layer(drawn(LINEAR).observed, 2)
    if statement.needs is Truth:
        with pytest.raises(ValueError, match=r"needs the truth.*Problem\.stated"):
            statement.bound(layer)
        with pytest.raises(ValueError, match="needs the truth"):
            statement.realised(layer)
    else:
        assert sides(statement, layer) == sides(statement, drawn(LINEAR))


@every_statement
def test_arguments_of_the_wrong_kind_are_refused(name):
    statement = STATEMENTS[name]
    with pytest.raises(ValueError, match="`Problem` or a `Layer`; got ndarray"):
        statement.bound(np.eye(3))
    for wrong in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="`failure_probability` must lie strictly between"):
            statement.bound(drawn(LINEAR), failure_probability=wrong)


@pytest.mark.parametrize("name", [name for name in STATEMENTS if "price" in name])
def test_price_needs_weights_and_activations(name):
    with pytest.raises(ValueError, match=r"give `Observed\(weights=..., activations=...\)`"):
        STATEMENTS[name].bound(drawn(RECTIFIED))


def test_calibration_size_needs_a_second_moment_and_weights():
    observed = Observed(weights=np.eye(3), activations=np.eye(3))
    with pytest.raises(ValueError, match="needs the true second moment"):
        theorems.calibration_size.relative.bound(Problem.stated(observed, np.eye(3), 1))
    with pytest.raises(ValueError, match="trained weights"):
        theorems.calibration_size.relative.bound(drawn(RECTIFIED))


@pytest.mark.parametrize("name", theorems.STATEMENTS)
def test_the_failure_probability_is_a_field_that_others_than_probable_statements_ignore(
    name, monkeypatch
):
    statement = theorems.STATEMENTS[name]
    instance = drawn(next(iter(statement.regimes.values())))
    kind, traces = type(statement), []
    formula = kind.formula
    monkeypatch.setattr(kind, "formula", lambda *given: traces.append(given) or formula(*given))
    bounds = [float(statement.bound(instance, failure_probability=d).value) for d in (0.3, 0.05)]
    assert statement.failure_probability == 0.05 and math.isfinite(bounds[1])
    assert float(statement.bound(instance).value) == bounds[1]
    assert float(statement.at(0.3).bound(instance).value) == bounds[0]
    assert len(traces) <= 1  # one compiled program for all
    if statement.kind.certainty is not Certainty.PROBABILITY:
        assert bounds[0] == bounds[1]
    elif statement.kind.direction is Direction.UPPER:
        assert bounds[0] < bounds[1]
    else:
        assert bounds[0] > bounds[1]
    comes_back(statement)
    comes_back(statement.at(0.3))
    assert statement.at(0.3) != statement == statement.at(0.3).at(0.05) == statement.at(None)


def test_kinds_in_words():
    kinds = {str(statement.kind) for statement in STATEMENTS.values()}
    assert kinds == {
        "sure equality",
        "sure upper bound",
        "sure lower bound",
        "upper bound with probability 1-δ",
        "upper bound in expectation",
        "asymptotic equality",
    }


# --- values by hand ------------------------------------------------------------------------------


def test_best_error_by_hand():
    observed = Observed(activations=diagonal(1, 1, 0), outputs=diagonal(3, 1, 2))
    assert float(best_error(observed, 1)) ** 2 == approx(5)
    layer = Layer(observed, 1)
    assert float(theorems.best_possible.activation_weighted.realised(layer)) ** 2 == (approx(5))


def test_any_noise_attains_the_square_root_of_five():
    problem = stated([2, 0], [-1 - 1e-9, 1])
    realised, bound = sides(theorems.planted_rank.any_noise, problem)
    assert realised == approx(math.sqrt(5))
    assert bound == pytest.approx(math.sqrt(5), rel=1e-8)


def test_any_noise_holds_for_a_stated_truth_of_a_real_layer():
    random = np.random.default_rng(0)
    rows = random.standard_normal((30, 8)) ** 3 + 1
    weights = random.standard_normal((8, 6))
    left, values, right = np.linalg.svd(weights)
    target = left[:, :2] * values[:2] @ right[:2]
    problem = Problem.stated(Observed(weights=weights, activations=rows), target, 2)
    statement = theorems.planted_rank.any_noise
    realised, bound = sides(statement, problem)
    assert 0 < realised <= bound < math.inf
    # A law of the noise is nothing that can be stated.
    assert float(theorems.planted_rank.gaussian.bound(problem).value) == math.inf
    # The bound, in NumPy: the noise is X (W - M), all of it attainable.
    noise_values = np.linalg.svd(rows @ (weights - target), compute_uv=False)
    assert bound == approx(math.sqrt(5) * np.linalg.norm(noise_values[:2]))


def test_oracle_is_attained_for_every_spectrum():
    realised, bound = sides(Oracle(inflation=1.2), stated([9, 3, 1], [-1, -1, -1], 3))
    assert realised == approx(10.68)
    assert bound == approx(10.68)


def test_oracle_attains_four_for_each_rank():
    realised, bound = sides(Oracle(), stated([2, 0], [-1, -1]))
    assert realised == approx(4.0)
    assert bound == approx(4.0)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.9])
def test_schatten_ball_is_attained(exponent):
    realised, bound = sides(SchattenBall(exponent), stated([2, 2, 2], [-1, -1, -1], 3))
    assert realised == approx(12)
    assert bound == approx(12)


@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_schatten_ball_needs_an_exponent_below_two(exponent):
    with pytest.raises(ValueError, match="`exponent` must lie strictly between 0 and 2"):
        SchattenBall(exponent)


def test_relu_bound_is_attained():
    problem = stated([1, 0], [-1, 1])
    realised, bound = sides(theorems.relu_noise_after.any_noise, problem)
    assert realised == approx(2)
    assert realised <= bound == approx(2)


def test_price_approaches_the_condition_number():
    observed = Observed(weights=diagonal(1.0001, 1), activations=diagonal(0.01, 1))
    layer = Layer(observed, 1)
    price = theorems.price_of_ignoring_data
    relative, absolute = (sides(s, layer) for s in (price.condition_number, price.weight_tail))
    optimum = float(best_error(observed, 1))
    assert relative[0] / optimum == pytest.approx(99.99)
    assert relative[1] / optimum == approx(100)
    assert absolute == approx((1, 1))
    assert float(price_bound(observed, 1)) == approx(1)


def test_price_bound_is_that_of_the_weights_where_activations_have_no_rank():
    observed = Observed(weights=diagonal(2, 1), activations=diagonal(0, 1))
    layer = Layer(observed, 1)
    assert float(theorems.price_of_ignoring_data.condition_number.bound(layer).value) == math.inf
    assert float(price_bound(observed, 1)) == approx(1)


@pytest.mark.parametrize("seed", range(3))
def test_weight_tail_is_never_above_condition_number(seed):
    problem = drawn(LINEAR, seed)
    price = theorems.price_of_ignoring_data
    tail, kappa = (
        float(s.bound(problem).value) for s in (price.weight_tail, price.condition_number)
    )
    assert tail <= kappa
    assert float(price_bound(problem.observed, 2)) == tail


def sub_gaussian_norm(q: int, outputs: int, failure_probability: float) -> float:
    with jax.enable_x64(True):
        return float(squared_cloud_bound(float(q), outputs, failure_probability))


@pytest.mark.parametrize(("q", "outputs"), [(1, 1), (60, 90), (2, 500), (500, 2), (1000, 1000)])
@pytest.mark.parametrize("failure_probability", [0.5, 0.01, 1e-6])
def test_sub_gaussian_norm_is_the_best_of_its_family(q, outputs, failure_probability):
    t = math.sqrt(2 * math.log(1 / failure_probability))

    def at(clouds: Any) -> float:
        a, b = 1 - np.exp(-np.exp(clouds))  # a^2 and b^2
        return -(q * math.log1p(-a) + outputs * math.log1p(-b) - t**2) / (a * b)

    value = sub_gaussian_norm(q, outputs, failure_probability)
    best = optimize.minimize(at, [0.0, 0.0], method="Nelder-Mead").fun
    assert best * (1 - 1e-6) <= value <= 1.005 * best
    assert math.sqrt(value) <= 1.687 * math.sqrt(q + outputs) + 1.112 * t
    # Equal clouds, a^2 = b^2 = 0.9, in the terms of theory: s = t^2/2.
    assert math.sqrt(math.log(10)) / 0.9 == pytest.approx(1.687, abs=1e-3)
    assert math.sqrt(2) / 0.9 == pytest.approx(1.572, abs=1e-3)


def test_sub_gaussian_norm_by_the_note():
    assert math.sqrt(sub_gaussian_norm(60, 90, 0.01)) <= 19.64
    gaussian = math.sqrt(60) + math.sqrt(90) + math.sqrt(2 * math.log(100))
    assert gaussian == pytest.approx(20.27, abs=0.01)


def test_minimax_floor_counts_the_dimensions_of_a_low_rank_matrix():
    assert risk_floor(rank=3, q=10, outputs=7, noise_scale=2.0) == 4 * (10 * 3 + 3 * 7 - 9)


@pytest.mark.parametrize(("q", "outputs"), [(400, 400), (400, 100), (100, 400)])
def test_asymptotic_error_peaks_at_the_detection_threshold(q, outputs):
    scale, longer = 0.7, max(q, outputs)
    beta = min(q, outputs) / longer
    threshold = detection_threshold(q, outputs, scale)

    def at(strength: float) -> float:
        value = float(asymptotic_error(np.array([strength * threshold]), q, outputs, scale))
        return value / (scale**2 * longer)

    worst = 1 + beta + 3 * math.sqrt(beta)
    assert at(1 - 1e-9) == pytest.approx(worst, rel=1e-6)
    assert at(1 + 1e-9) == pytest.approx(worst, rel=1e-6)
    assert all(at(s) < worst for s in (0.1, 0.9, 1.1, 3.0))
    assert at(1e-6) == approx((1 + math.sqrt(beta)) ** 2, condition=100)  # noise taken for signal
    assert at(1e6) == approx(1 + beta, condition=1e3)  # the dimension of the tangent space
    # Components add up, and the Gaussian bound is four to five times the worst of them.
    two = float(asymptotic_error(np.array([1.0, 2.0]) * threshold, q, outputs, scale))
    assert two == approx(scale**2 * longer * (at(1.0) + at(2.0)))
    assert 4 <= 5 * (1 + math.sqrt(beta)) ** 2 / worst <= 5


def test_asymptotic_error_is_that_of_large_layers():
    strengths = np.array([2.0, 1.3]) * detection_threshold(200, 100, 1.0)
    expected = float(asymptotic_error(strengths, 200, 100, 1.0))
    random = np.random.default_rng(0)
    errors = []
    for _ in range(20):
        left, _ = np.linalg.qr(random.standard_normal((200, 2)))
        right, _ = np.linalg.qr(random.standard_normal((100, 2)))
        clean = left * strengths @ right.T
        u, s, v = np.linalg.svd(clean + random.standard_normal((200, 100)), full_matrices=False)
        errors.append(np.sum((u[:, :2] * s[:2] @ v[:2] - clean) ** 2))
    assert np.mean(errors) == pytest.approx(expected, rel=0.05)


def test_first_order_excess_against_its_sum():
    values, rank = (5.0, 3.0, 2.0, 0.5, 0.0), 2
    expected = sum(a * b / (a - b) for a, b in itertools.product(values[:rank], values[rank:]))
    with jax.enable_x64(True):
        assert float(first_order_excess(jnp.array(values), rank)) == approx(expected)
        assert float(first_order_excess(jnp.array([2.0, 1.0]), 1)) == 2


def test_relative_bound_by_hand():
    """K = 2, eigenvalues 2 and 1, m = 400, t = 2: e = 0.1165, and l_{r+1} = L*."""
    problem = drawn(CalibrationSetting(np.asarray(400), 2, 1, spectra.Given((1.0, 0.5**0.5))))
    bound = theorems.calibration_size.relative.bound(problem, failure_probability=2 * math.exp(-2))
    optimum = 0.5
    width = 0.5**0.5 - 399.5**-0.5
    least = (399.5**0.5 - 2**0.5 - (9 / 8 * width) ** (1 / 3)) / 20  # 1 - e
    energy = 1 + 2 * (2 / 400) ** 0.5 + 4 / 400
    assert float(bound.value) / optimum == approx(energy / least**2)
