"""Recovery behind a ReLU with noise before it: laws, values by hand, and where it is attained."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.problems import NoiseThenRelu, Observed, Problem, Setting
from lowrank_theory.recovery import ConvexFit
from lowrank_theory.theorems.relu_noise_before import (
    Candidate,
    CandidateSetting,
    Convex,
    Curvature,
    _convex_bound,
    relu_noise_before,
)
from lowrank_theory.verification.attack import replay
from oracle import censored_loss, mills, upper_edge
from statements import by_name, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

STATEMENTS = by_name(relu_noise_before)
ABOUT_CANDIDATES = ("likely", "curvature")
SETTING = Setting(
    samples=20,
    inputs=8,
    outputs=6,
    rank=2,
    link=NoiseThenRelu(),
    noise=noise.Gaussian(1.0),
    target=targets.BoundedOutputs(1.5),
)
every_statement = pytest.mark.parametrize("name", STATEMENTS)


def drawn(name: str, setting: Setting = SETTING, factor: float = 1.0) -> Any:
    law = CandidateSetting(setting, np.asarray(factor)) if name in ABOUT_CANDIDATES else setting
    return law.draw(key=jax.random.key(0))


def parts(problem: Problem) -> tuple[Any, ...]:
    """In NumPy: inputs, outputs, clean outputs, noise scale, projected score."""
    inputs = np.asarray(problem.truth.layer_inputs, float)
    outputs = np.asarray(problem.observed.target_outputs, float)
    clean = inputs @ np.asarray(problem.truth.target_weights, float)
    scale = float(problem.truth.noise_scale)
    score = np.where(outputs > 0, outputs - clean, -scale * mills(clean / scale))
    return inputs, outputs, clean, scale, inputs @ np.linalg.pinv(inputs) @ score


CURVATURE = mills(-1.5) * (mills(-1.5) + 1.5)
EDGE = upper_edge(8, 6, 0.05)


@every_statement
def test_statement_holds_on_an_instance_of_its_hypotheses(name):
    statement, instance = STATEMENTS[name], drawn(name)
    bound = statement.bound(instance)
    assert bool(bound.holds)
    assert float(bound.require()) == float(bound.value)
    realised, value = sides(statement, instance)
    assert 0 < value < math.inf
    assert (realised >= value) if name == "curvature" else (realised <= 1.2 * value)


@every_statement
@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_both_sides_scale_with_the_units_of_the_outputs(name, factor):
    statement, instance = STATEMENTS[name], drawn(name)

    def scaled(part: Any, *names: str) -> Any:
        changes = {n: np.asarray(factor * np.asarray(getattr(part, n), float)) for n in names}
        return dataclasses.replace(part, **changes)

    problem = instance.problem if name in ABOUT_CANDIDATES else instance
    observed = scaled(problem.observed, "outputs")
    truth = scaled(problem.truth, "target_weights", "noise", "noise_scale")
    other = Problem(observed, truth, problem.rank)
    if name in ABOUT_CANDIDATES:
        other = Candidate(other, factor * np.asarray(instance.weights))
    degree = 2 if name == "curvature" else 1
    expected = factor**degree * np.array(sides(statement, instance))
    assert_close(sides(statement, other), expected)


@every_statement
def test_values_against_numpy(name):
    statement, instance = STATEMENTS[name], drawn(name, factor=-1.0)
    problem = instance.problem if name in ABOUT_CANDIDATES else instance
    inputs, outputs, clean, scale, score = parts(problem)
    assert scale == 1
    values = np.linalg.svd(score, compute_uv=False)
    with jax.enable_x64(True):
        estimate = statement.estimate(instance)
        gap = float(estimate.duality_gap) if isinstance(estimate, ConvexFit) else 0.0
        estimate = jax.tree.map(np.asarray, estimate)

    def likely(b: float, point: Any) -> float:
        excess = max(0.0, censored_loss(point, outputs, 1.0) - censored_loss(clean, outputs, 1.0))
        return (b + math.sqrt(b**2 + 2 * CURVATURE * excess)) / CURVATURE

    if name.startswith("score"):
        edge = EDGE if name == "score" else math.sqrt(8) + math.sqrt(6)
        expected = (values[0], edge)
    elif name == "curvature":
        point = inputs @ np.asarray(instance.weights)
        change = point - clean
        slopes = [np.where(outputs > 0, z - outputs, mills(z)) for z in (point, clean)]
        expected = (np.sum((slopes[0] - slopes[1]) * change), CURVATURE * np.sum(change**2))
    elif name == "likely":
        point = inputs @ np.asarray(instance.weights)
        assert censored_loss(point, outputs, 1.0) > censored_loss(clean, outputs, 1.0)
        b = float(np.linalg.norm(values[:4]))
        expected = (np.linalg.norm(point - clean), likely(b, point))
    elif name == "likely_gaussian":
        point = inputs @ estimate
        # Four of six singular values are together less than the whole score.
        b = math.sqrt(48) + math.sqrt(2 * math.log(20))
        assert b < 2 * EDGE
        expected = (np.linalg.norm(point - clean), likely(b, point))
    else:
        b = math.sqrt(2) * 2 * (values[0] if name == "convex" else EDGE)
        root = math.sqrt(b**2 + 4 * CURVATURE * gap)
        error = np.linalg.norm(estimate.preactivations - clean)
        expected = (error, (b + root) / (2 * CURVATURE))
        assert gap < 1e-6
    assert_close(sides(statement, instance), np.array(expected))


def test_convex_penalty_is_what_the_statement_says():
    problem = drawn("convex")
    values = np.linalg.svd(parts(problem)[-1], compute_uv=False)
    with jax.enable_x64(True):
        assert float(Convex(inflation=2.0).penalty(problem)) == approx(2 * values[0])
        gaussian = relu_noise_before.convex_gaussian.penalty(problem)
        assert float(gaussian) == approx(EDGE)
    twice, once = (float(Convex(inflation=i).bound(problem).value) for i in (2.0, 1.0))
    assert twice / once == approx(1.5, condition=1e3)
    assert float(Convex(inflation=0.9).bound(problem).value) == math.inf


UNIFORM = dataclasses.replace(SETTING, noise=noise.Uniform(1.0))
LOUD = dataclasses.replace(SETTING, target=targets.BoundedOutputs(1.6))


@pytest.mark.parametrize(
    ("name", "hypothesis", "setting"),
    [
        ("score", "i.i.d. Gaussian", UNIFORM),
        ("convex_gaussian", "i.i.d. Gaussian", UNIFORM),
        ("convex", "clean outputs are at most alpha", LOUD),
        ("convex_gaussian", "clean outputs are at most alpha", LOUD),
        ("likely_gaussian", "clean outputs are at most alpha", LOUD),
        ("likely", "clean outputs are at most alpha", LOUD),
        ("curvature", "clean outputs are at most alpha", LOUD),
    ],
)
def test_outside_its_hypotheses_a_bound_is_infinite(name, hypothesis, setting):
    bound = STATEMENTS[name].bound(drawn(name, setting))
    failing = [h.name for h in bound.hypotheses if not bool(h.holds)]
    assert len(failing) == 1
    assert hypothesis in failing[0]
    outside = -math.inf if name == "curvature" else math.inf
    assert float(bound.value) == outside
    with pytest.raises(RuntimeError, match="does not hold"):
        jax.block_until_ready(bound.require())


def test_outputs_that_are_not_rectified_are_outside():
    problem = drawn("score")
    truth = dataclasses.replace(problem.truth, noise=np.asarray(problem.truth.noise) + 0.1)
    bound = relu_noise_before.score.bound(Problem(problem.observed, truth, 2))
    failing = [h.name for h in bound.hypotheses if not bool(h.holds)]
    assert failing == ["the outputs are rectified noisy outputs"]


def test_rank_and_box_of_truth_and_candidate_are_checked():
    candidate = drawn("likely")
    problem = candidate.problem
    lower = Problem(problem.observed, problem.truth, 1)
    failing = [
        h.name
        for h in relu_noise_before.likely.bound(Candidate(lower, candidate.weights)).hypotheses
        if not bool(h.holds)
    ]
    assert failing == [
        "the target outputs have rank at most r",
        "the candidate has rank at most r",
    ]
    far = Candidate(problem, 2 * np.asarray(candidate.weights))
    for name, outside in (("likely", math.inf), ("curvature", -math.inf)):
        bound = STATEMENTS[name].bound(far)
        failing = [h.name for h in bound.hypotheses if not bool(h.holds)]
        assert failing == ["the outputs of the candidate are at most alpha"]
        assert float(bound.value) == outside


@pytest.mark.slow
def test_a_stated_truth_without_a_noise_scale_gives_no_bound():
    random = np.random.default_rng(0)
    observed = Observed(activations=np.eye(4), outputs=np.abs(random.standard_normal((4, 3))))
    problem = Problem.stated(observed, np.zeros((4, 3)), 1)
    for name in ("convex", "convex_gaussian", "likely_gaussian"):
        assert float(STATEMENTS[name].bound(problem).value) == math.inf


def test_candidate_statements_refuse_a_problem():
    with pytest.raises(ValueError, match="`instance` must be a `Candidate`; got Problem"):
        relu_noise_before.likely.bound(drawn("score"))


def test_broken_curvature_is_that_of_a_quarter_of_the_way():
    candidate = drawn("curvature")
    statement = relu_noise_before.curvature
    with jax.enable_x64(True):
        whole, part = (
            np.asarray(estimate(candidate))
            for estimate in (statement.estimate, statement.broken_estimate)
        )
    clean = np.asarray(candidate.problem.truth.clean_outputs)
    assert_close(part, (3 * clean + whole) / 4)


@pytest.mark.parametrize("gap", [0.0, 3.0])
def test_an_unfinished_fit_costs_the_larger_root(gap):
    b, curvature = np.asarray(2.0), np.asarray(0.7)
    with jax.enable_x64(True):
        root = float(_convex_bound(jnp.asarray(b), jnp.asarray(gap), jnp.asarray(curvature)))
    assert 0.7 * root**2 == approx(2 * root + gap)


def test_wider_box_less_curvature():
    candidate = drawn("curvature")
    for box, curvature in ((1.5, 0.227), (2.0, 0.1135), (3.0, 0.0133)):
        bound = Curvature(box=box).bound(candidate)
        inputs, _, clean, _, _ = parts(candidate.problem)
        distance = np.sum((inputs @ np.asarray(candidate.weights) - clean) ** 2)
        assert float(bound.value) / distance == pytest.approx(curvature, abs=5e-4)


def test_score_has_mean_zero_and_is_the_conditional_mean_of_the_noise():
    random = np.random.default_rng(0)
    for z in (-1.5, 0.0, 2.0):
        noise_ = random.standard_normal(400_000)
        seen = z + noise_ > 0
        score = np.where(seen, noise_, -mills(z))
        assert abs(score.mean()) < 5 / math.sqrt(noise_.size)
        assert noise_[~seen].mean() == pytest.approx(-mills(z), abs=0.02)
        # Its variance is the Fisher information of the entry.
        information = special.ndtr(z) - z * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        information += mills(z) ** 2 * special.ndtr(-z)
        assert np.var(score) == pytest.approx(information, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_adversary_of_the_convex_fit_knows_its_estimate(seed):
    statement = STATEMENTS["convex"]
    adversary = statement.adversary
    with jax.enable_x64(True):
        problem, fit = adversary.play(adversary.start(key=jax.random.key(seed)))
        assert isinstance(fit, ConvexFit)
        solved = statement.estimate(problem)
        found = np.asarray(solved.preactivations)  # of an iteration that stops
        assert found == pytest.approx(np.asarray(fit.preactivations), rel=1e-8, abs=1e-10)
        assert bool(statement.bound(problem).holds)
    outputs = np.asarray(problem.observed.target_outputs)
    shown = np.asarray(problem.truth.clean_outputs) + np.asarray(problem.truth.noise)
    assert_close(np.maximum(shown, 0), outputs)
    assert (outputs[:2] == 0).all()
    assert (outputs[2:] > 0).all()


WITNESSES = {
    # Near the lower edge, little movement, and a faint second block.
    "convex": tuple(np.array(x) for x in (-4.0, 8.0, -2.5)),
    "likely": (
        np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]),
        np.array([[1.0, 1.0], [0.0, 0.0]]),
        np.array([[-1.0, -1.0], [-1.0, -1.0]]),
        np.array([8.0, 7.0]),
        np.zeros((2, 2)),
        np.array(-2.0),
    ),
}


def test_convex_and_curvature_are_attained():
    assert 0.99 <= replay(relu_noise_before.convex, WITNESSES["convex"]) <= 1
    assert 0.99 <= replay(relu_noise_before.curvature, WITNESSES["likely"]) <= 1


@pytest.mark.parametrize("name", ABOUT_CANDIDATES)
def test_adversary_of_candidates_stays_inside(name):
    statement = STATEMENTS[name]
    for seed in range(3):
        with jax.enable_x64(True):
            free = statement.adversary.start(key=jax.random.key(seed))
            candidate, estimate = statement.adversary.play(free)
            assert estimate is None
            assert bool(statement.bound(candidate).holds)
            assert 0 <= replay(statement, free) <= 1


def test_bounded_outputs_are_bounded_and_of_their_rank():
    rows = np.random.default_rng(0).standard_normal((20, 8))
    for law in (targets.BoundedOutputs(0.7), targets.BoundedOutputs(0.7, spectra.PowerLaw(2.0))):
        with jax.enable_x64(True):
            weights = np.asarray(law.draw(jnp.asarray(rows), 6, 2, key=jax.random.key(0)))
        assert np.abs(rows @ weights).max() == approx(0.7, side=1)
        values = np.linalg.svd(weights, compute_uv=False)
        assert values[2] < 1e-14
        assert values[1] / values[0] == approx(1 if law.spectrum == spectra.Flat() else 0.25)
    with pytest.raises(ValueError, match="`bound` must be a positive finite number"):
        targets.BoundedOutputs(0.0)
    setting = dataclasses.replace(SETTING, activations=activations.RankDeficient(3))
    problem = setting.draw(key=jax.random.key(0))
    assert np.abs(parts(problem)[2]).max() == approx(1.5)
