"""What statements rest on: what is stated of independence, what stored rows resolve, and laws over
all statements on layers at the edge.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hostile import YES, Numbers, _problem, hostile, instances
from lowrank_theory.generators import noise, spectra, targets
from lowrank_theory.problems import Layer, Observed, Problem, Setting, Truth
from lowrank_theory.theorems import (
    STATEMENTS,
    Certainty,
    Direction,
    Standing,
    best_possible,
    planted_rank,
    randomized_range,
)
from lowrank_theory.theorems._censored import Candidate, candidate_in_box, candidate_rank
from lowrank_theory.theorems._quantities import frobenius, squared, target_rank_hypothesis
from lowrank_theory.theorems._sketches import Sketched
from lowrank_theory.theorems.calibration_size import CalibrationSetting, FreshRows
from lowrank_theory.theorems.held_out_certificate import HeldOut
from lowrank_theory.theorems.heteroskedastic_noise import ScaledNoise
from lowrank_theory.theorems.minimax_floor import bayes_floor, risk_floor
from lowrank_theory.theorems.second_moment import Rows
from statements import rounding_of, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

RANDOM = [n for n, s in STATEMENTS.items() if s.kind.certainty is not Certainty.SURE]
NOT_SAID = np.asarray(False)


def failing(name: str, instance: Any) -> list[str]:
    with jax.enable_x64(True), np.errstate(all="ignore"):
        hypotheses = STATEMENTS[name].hypotheses(instance)
        return [each.name for each in hypotheses if not bool(each.holds)]


# --- independence is stated ----------------------------------------------------------------------


def with_nothing_said(instance: Any) -> Any:
    """The same numbers, and nothing said of what depends on what."""
    if isinstance(instance, Problem):
        truth = dataclasses.replace(
            instance.truth, independent_noise=NOT_SAID, independent_weights=NOT_SAID
        )
        return Problem(instance.observed, truth, instance.rank)
    if hasattr(instance, "problem"):
        return dataclasses.replace(instance, problem=with_nothing_said(instance.problem))
    if hasattr(instance, "first"):
        layers = {name: with_nothing_said(getattr(instance, name)) for name in ("first", "second")}
        return dataclasses.replace(instance, **layers)
    said = next(law for law in ("independent", "gaussian", "uniform") if hasattr(instance, law))
    return dataclasses.replace(instance, **{said: NOT_SAID})


INSTANCES: dict[str, Any] = {}
for _kind, _instance in instances(Numbers(m=60)):
    INSTANCES.setdefault(_kind, _instance)
INSTANCES["Truth"] = INSTANCES["Problem"]
# Of these, one law says all: nothing but the residual, or the rows and their own law, enters.
ONE_LAW = {"Residual", "Rows", "ByteRows"}


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_random_rests_on_independence_that_is_stated(name):
    kind = STATEMENTS[name].needs.__name__
    instance = INSTANCES[kind]
    said, unsaid = failing(name, instance), failing(name, with_nothing_said(instance))
    new = set(unsaid) - set(said)
    assert new or kind in ONE_LAW
    if kind not in ONE_LAW:
        assert all("depend" in each for each in new)
    with jax.enable_x64(True):
        standing = {h.name: h.standing for h in STATEMENTS[name].hypotheses(instance)}
    assert {standing[each] for each in new} <= {Standing.TRUSTED}


def test_who_says_nothing_states_nothing():
    truth = Truth(np.eye(2), np.eye(2), np.eye(2), np.asarray(1.0), YES, YES)
    assert not truth.independent_noise
    assert not truth.independent_weights
    assert not Sketched(np.eye(3), np.eye(3)[:, :2], 0, True, 1).independent
    stated = Problem.stated(Observed(activations=np.eye(2), outputs=np.eye(2)), np.eye(2), 1)
    assert not stated.truth.independent_noise


LAWS = {
    each: each(0.5)
    for each in (
        noise.Gaussian,
        noise.Rademacher,
        noise.Uniform,
        noise.Laplace,
        noise.StudentT,
        noise.Heteroskedastic,
        noise.Correlated,
        noise.SparseOutliers,
    )
} | {noise.QuantiserResidual: noise.QuantiserResidual(3), noise.Opposing: noise.Opposing(1.0, 1)}


@pytest.mark.parametrize("law", LAWS.values(), ids=lambda law: type(law).__name__)
def test_noise_is_independent_if_another_layer_would_have_met_the_same(law):
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        one, other = (
            np.asarray(
                law.draw(
                    random.standard_normal((6, 4)),
                    random.standard_normal((4, 3)),
                    key=jax.random.key(0),
                )
            )
            for _ in range(2)
        )
    assert law.independent == np.array_equal(one, other)


def test_weights_fitted_to_the_rows_depend_on_them():
    """Behind $W = X^+Y$ nothing about fresh rows holds; behind weights drawn apart, all does."""
    shape: dict[str, Any] = {"samples": 40, "inputs": 4, "outputs": 3, "rank": 1}
    fitted = Setting(**shape, target=targets.ApproximateRank(), noise=noise.Gaussian(0.0))
    fresh = FreshRows(**shape)
    wishart = CalibrationSetting(np.asarray(40), 4, 1, spectra.PowerLaw(1.0))
    names = [f"calibration_size.{each}" for each in ("relative", "gaussian", "ridge_gaussian")]
    said = "the weights do not depend on the calibration rows"
    with jax.enable_x64(True):
        drawn = [s.draw(key=jax.random.key(0)) for s in (fitted, fresh, wishart)]
    for name in names:
        missing = [said in failing(name, problem) for problem in drawn]
        assert missing == [True, False, False]


# --- what stored rows resolve --------------------------------------------------------------------


def stored(decay: float, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose singular values decay, as they are stored, and weights."""
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.standard_normal((n, 12)))[0] for n in (30, 12))
    rows = 1e3 * (left * np.arange(1.0, 13) ** -decay) @ right.T
    return rows.astype(dtype), random.standard_normal((12, 8))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sure_bound_speaks_of_what_the_recovery_resolves(dtype):
    """Singular values down to 1e-7 of the largest: in float32 the last are cut, and what the target
    has there is lost. The bound says so, and no more.
    """
    rows, target = stored(6.5, dtype)
    target[:, 2:] = 0
    exact = rows.astype(float)
    weak = 1e-6 * np.random.default_rng(1).standard_normal((30, 8))
    observed = Observed(activations=rows, outputs=exact @ target + weak)
    problem = Problem.stated(observed, target, 2)
    statement = planted_rank.any_noise
    (realised, bound), allowance = sides(statement, problem), rounding_of(statement, problem)
    left, values, _ = np.linalg.svd(alike(exact), full_matrices=False)
    cut = values <= 8 * np.finfo(dtype).eps * math.sqrt(12) * values[0]
    assert cut.any() == (dtype is np.float32)
    lost = np.linalg.norm(left[:, cut].T @ exact @ target)
    leading = np.linalg.svd(left[:, ~cut].T @ weak, compute_uv=False)[:2]
    wanted = math.hypot(math.sqrt(5) * np.linalg.norm(leading), lost)
    assert bound == approx(wanted, scale=float(np.linalg.norm(exact @ target)))
    assert lost - allowance <= realised <= bound + allowance
    assert allowance < 0.1 * bound


def alike(rows: np.ndarray) -> np.ndarray:
    """Each column over its power of two: the rank is cut where no unit matters."""
    return np.ldexp(rows, 1 - np.frexp(np.max(np.abs(rows), axis=0))[1])


@pytest.mark.parametrize("given", ["outputs", "weights"])
def test_the_best_error_of_float32_rows(given):
    rows, weights = stored(6.5, np.float32)
    weights = weights.astype(np.float32)
    outputs = rows.astype(float) @ weights if given == "outputs" else None
    layer = Layer(Observed(weights=weights, activations=rows, outputs=outputs), 6)
    statement = best_possible.activation_weighted
    (realised, value), allowance = sides(statement, layer), rounding_of(statement, layer)
    assert abs(realised - value) <= allowance
    exact = rows.astype(float)
    left, values, _ = np.linalg.svd(alike(exact), full_matrices=False)
    kept = left[:, values > 8 * np.finfo(np.float32).eps * math.sqrt(12) * values[0]]
    inside = exact @ weights.astype(float)
    if given == "outputs":
        inside = kept @ (kept.T @ inside)
    tail = np.linalg.svd(inside, compute_uv=False)[6:]
    lost = np.linalg.norm(exact @ weights.astype(float) - inside)
    assert value == approx(math.hypot(lost, np.linalg.norm(tail)), condition=1e3)


# --- one scale for ranks -------------------------------------------------------------------------


def planted(rows: np.ndarray, target: np.ndarray, rank: int) -> Problem:
    return Problem.stated(Observed(activations=rows, outputs=rows @ target), target, rank)


def rank_margin(problem: Problem) -> float:
    with jax.enable_x64(True):
        return float(target_rank_hypothesis(problem).margin)


@pytest.mark.parametrize("size", [1.0, 1e6, 1e12, 2.0**300])
def test_an_input_that_the_target_ignores_has_no_say_in_its_rank(size):
    target = np.diag([0.0, 1.0, 1e-4])
    assert rank_margin(planted(np.diag([size, 1.0, 1.0]), target, 1)) < -1e-5
    assert rank_margin(planted(np.diag([size, 1.0, 1.0]), np.diag([0.0, 1.0, 0.0]), 1)) > 0
    problem = planted(np.diag([size, 1.0, 1.0]), np.diag([0.0, 1.0, 0.0]), 1)
    candidate = Candidate(problem, target)
    with jax.enable_x64(True):
        assert not candidate_rank(candidate).holds
        wide = Candidate(problem, 1.001 * np.diag([0.0, 1.0, 0.0]))
        inside = Candidate(problem, np.diag([0.0, 1.0, 0.0]))
        one = dataclasses.replace(problem.truth, noise_scale=np.asarray(1.0))
        wide, inside = (
            dataclasses.replace(each, problem=Problem(problem.observed, one, 1))
            for each in (wide, inside)
        )
        assert candidate_in_box(inside, 1.0).holds
        assert not candidate_in_box(wide, 1.0).holds


@pytest.mark.parametrize("condition", [1e2, 1e4, 3e6])
def test_ill_conditioned_rows_raise_no_false_alarm(condition):
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.standard_normal((n, 4)))[0] for n in (40, 4))
    rows = (left * [1, 1, 1, 1 / condition]) @ right.T
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    problem = planted(rows, np.outer(vectors[3] / values[3], [1.0, 0, 0, 0, 0]), 1)
    statement = planted_rank.any_noise
    (realised, bound), allowance = sides(statement, problem), rounding_of(statement, problem)
    assert realised <= bound + allowance
    assert rank_margin(problem) > 0


# --- conditions at the edge ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smallest", "expected_smallest", "inverse"])
def test_dead_activations_have_no_smallest_noise(name):
    dead = _problem(hostile()["zero activations"])
    assert "the activations are not all zero" in failing(f"gaussian_noise.{name}", dead)


def test_a_floor_for_a_rank_that_outputs_cannot_have_is_that_of_the_rank_that_they_can():
    for rank, q, outputs in ((2, 1, 5), (9, 4, 3), (3, 0, 5)):
        assert risk_floor(rank, q, outputs, 2.0) == 4.0 * q * outputs  # that of least squares
    with pytest.raises(ValueError, match="`rank` must be an integer from 1 to 2"):
        bayes_floor(3, 2, 5, 1.0, 1.0, 1.0)
    prior = next(i for k, i in instances(hostile()["zero activations"]) if k == "PriorDraw")
    assert "the activations have at least the rank of the prior" in failing(
        "minimax_floor.truncation", prior
    )


def test_one_row_is_no_metric_of_one_input():
    layer = Layer(Observed(weights=np.array([[2.0, 3.0]]), activations=np.array([[1.5]])), 1)
    assert "the metric has full column rank" in failing(
        "price_of_ignoring_data.stale_calibration", layer
    )


@pytest.mark.parametrize("name", ["leverage_above", "leverage_below"])
def test_leverage_where_there_is_nothing_to_weigh_and_where_rows_refute_it(name):
    statement = STATEMENTS[f"second_moment.{name}"]
    with jax.enable_x64(True):
        nothing = Rows(np.zeros((5, 3)), np.zeros((3, 3)), YES, np.asarray(1.0))
        assert float(statement.formula(nothing, jnp.zeros(()))) == 1
    rows = np.random.default_rng(0).standard_normal((50, 3))
    largest = np.max(np.sum(rows**2, axis=1))
    for leverage, refuted in ((0.5, True), (2.9, True), (0.99 * largest, True), (largest, False)):
        instance = Rows(rows, np.eye(3), NOT_SAID, np.asarray(leverage))
        assert ("no leverage exceeds its bound" in failing(f"second_moment.{name}", instance)) == (
            refuted
        )


@pytest.mark.parametrize("apart", [1e-2, 1e-7, 1e-10])
def test_structural_bound_of_nearly_dependent_sketches(apart):
    random, values = np.random.default_rng(0), np.array([3.0, 2.0, 1.0, 0.5, 0.25])
    sketch = random.standard_normal((5, 3))
    sketch[1] = sketch[0] + apart * random.standard_normal(3)
    instance = Sketched(np.diag(values), sketch, 0, False, 2)
    with jax.enable_x64(True):
        bound = float(randomized_range.structural.formula(instance, jnp.zeros(())))
    missed = (values[2:, None] * sketch[2:]) @ np.linalg.pinv(sketch[:2], rcond=1e-15)
    expected = np.sum(values[2:] ** 2) + np.sum(missed**2)
    assert bound == approx(expected, condition=max(1.0, 1 / apart))


def test_numbers_that_refute_what_is_stated():
    random = np.random.default_rng(0)
    standard, basis = random.standard_normal((6, 4)), np.eye(6)[:, :2]
    for name in ("norm", "expected_norm", "separable", "expected_separable"):
        for sign in (1, -1):
            scaled = ScaledNoise(standard, sign * np.ones((6, 4)), basis, YES, YES)
            wrong = ["no scale is negative"] if sign < 0 else []
            assert failing(f"heteroskedastic_noise.{name}", scaled) == wrong
    for losses in ([0.5, -0.1], [-1.0, -2.0]):
        held_out = HeldOut(
            np.array(losses), np.asarray(math.inf), np.asarray(3.0), YES, np.asarray(0.2)
        )
        assert failing("held_out_certificate.moment_ratio", held_out) == ["no loss is negative"]


# --- any scale -----------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [-1000, -600, 0, 600, 1020])
def test_norms_leave_float64_only_where_they_must(power):
    matrix = np.random.default_rng(0).standard_normal((4, 3))
    with jax.enable_x64(True):
        found = float(frobenius(np.ldexp(matrix, power)))
        assert found == math.ldexp(float(frobenius(matrix)), power)
        square = float(squared(jnp.asarray(found)))
        assert math.isnan(square) if power else square == found**2
        assert float(frobenius(np.zeros((2, 2)))) == float(squared(jnp.zeros(()))) == 0
        slope = jax.grad(frobenius)(jnp.asarray(matrix))
    assert_close(np.asarray(slope), matrix / np.linalg.norm(matrix))


# --- laws over all statements --------------------------------------------------------------------


def judged(name: str, instance: Any, *, far: bool) -> str | None:
    """What is wrong with the statement on this instance, if anything is. Of numbers that are `far`
    from one it may say nothing.
    """
    statement = STATEMENTS[name]
    direction = statement.kind.direction
    bound = statement.bound(instance)
    outside = -math.inf if direction is Direction.LOWER else math.inf
    value = float(bound.value)
    if not bool(bound.holds):
        return None if value == outside else f"{value} outside its hypotheses"
    if far and value == outside:  # squares leave float64
        return None
    (realised, value), allowance = sides(statement, instance), rounding_of(statement, instance)
    if math.isnan(value) or math.isnan(realised) or math.isnan(allowance):
        return f"not a number: {realised}, {value}, {allowance}"
    if direction is Direction.UPPER and value < 0:
        return f"a negative bound: {value}"
    gap = realised - value
    gap = {Direction.UPPER: gap, Direction.LOWER: -gap, Direction.EQUALITY: abs(gap)}[direction]
    if statement.kind.certainty is Certainty.SURE and gap > allowance:
        return f"{realised} against {value}, beyond {allowance}"
    return None


def answers(name: str, instance: Any) -> bool:
    """Whether the statement is about such an instance."""
    needs = STATEMENTS[name].needs
    if needs in (Truth, Observed):
        return isinstance(instance, Problem) or (needs is Observed and isinstance(instance, Layer))
    return isinstance(instance, needs)


def laws(theorem: str, where: str) -> list[str]:
    wrong = []
    for kind, instance in instances(hostile()[where]):
        for name in STATEMENTS:
            if not name.startswith(f"{theorem}.") or not answers(name, instance):
                continue
            try:
                found = judged(name, instance, far="times 2^" in where)
            except ValueError as error:  # what the statement needs is not there, and it says so
                words = ("this statement", "must", "give `")
                said = any(word in str(error).lower() for word in words)
                found = None if said else str(error)
            if found is not None:
                wrong.append(f"{name} on {kind}, {where}: {found}")
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("theorem", dict.fromkeys(name.split(".")[0] for name in STATEMENTS))
def test_no_statement_is_false_or_nothing_at_the_edge(theorem):
    """Layers of one shape share their programs: all of a theorem in one test."""
    with np.errstate(all="ignore"):  # numbers whose squares leave float64
        assert [wrong for where in hostile() for wrong in laws(theorem, where)] == []
