"""A projection of the layer as its truth: exact cases, laws, and both bounds against slow NumPy."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from laws import same, scales, turns
from lowrank_theory.problems import Layer, Observed, Problem
from lowrank_theory.theorems import planted_rank
from lowrank_theory.theorems.projected_truth import (
    Blocks,
    Projected,
    ProjectedSetting,
    projected_truth,
)
from lowrank_theory.verification import Verdict, verify
from lowrank_theory.verification.attack import attack
from statements import by_name, sides
from tolerance import approx

pytestmark = pytest.mark.thinned(3)

STATEMENTS = by_name(projected_truth)
every_statement = pytest.mark.parametrize("name", STATEMENTS)
SETTING = ProjectedSetting(16, 6, 2, np.arange(1.0, 9) ** -0.5, 0.6 ** np.arange(6), blur=0.05)
KEY = jax.random.key(0)


def stated(rows: Any, weights: Any, basis: Any, rank: int) -> Projected:
    observed = Observed(activations=np.asarray(rows, float), weights=np.asarray(weights, float))
    return Projected(Layer(observed, rank), np.asarray(basis, float))


def seen_alone(outputs: Any, basis: Any, rank: int) -> Projected:
    """Outputs of a layer whose weights are the identity."""
    outputs = np.asarray(outputs, float)
    return stated(outputs, np.eye(outputs.shape[1]), basis, rank)


def basis_of(seed: int, size: int, blur: float = 1e9) -> np.ndarray:
    random = np.random.default_rng(seed).standard_normal((size, size))
    return np.linalg.qr(np.eye(size) + blur * random)[0]


def diagonal(size: int, decay: float) -> np.ndarray:
    return np.diag(np.arange(1.0, size + 1) ** -decay)


def by_hand(outputs: np.ndarray, basis: np.ndarray, rank: int) -> tuple[float, float, float]:
    """Error and both bounds, from the second moments and a solver of linear programs."""
    moments = outputs.T @ outputs
    _, vectors = np.linalg.eigh(moments)
    kept, rest = basis[:, :rank], basis[:, rank:]
    fit = vectors[:, ::-1][:, :rank]
    turned = fit @ fit.T - kept @ kept.T
    error = math.sqrt(np.trace(turned @ moments @ turned))
    a, left = np.linalg.eigh(kept.T @ moments @ kept)
    b, right = np.linalg.eigh(rest.T @ moments @ rest)
    count = min(rank, rest.shape[1])
    leading = np.sort(b)[::-1][:count]
    no_gap = math.sqrt(2 * np.sum(leading))
    if a.min() <= b.max():
        return error, no_gap, math.inf
    beside = left.T @ kept.T @ moments @ rest @ right
    excess = np.sum(beside**2 / (a[:, None] - b))
    # The most that the pairs can add: how the y are filled is found by the solver.
    room = (a.min() - leading)[None]
    found = optimize.linprog(-leading, A_ub=room, b_ub=[2 * excess], bounds=[(0, 1)] * count)
    return error, no_gap, math.sqrt(excess - found.fun)


@pytest.mark.parametrize("seed", range(6))
def test_both_bounds_against_numpy(seed):
    random = np.random.default_rng(seed)
    rank, size = int(random.integers(1, 5)), 5
    outputs = random.standard_normal((9, size)) @ diagonal(size, 2.0)
    basis = basis_of(seed, size, blur=(0.02, 0.1, 0.5)[seed % 3])
    error, no_gap, gap = by_hand(outputs, basis, rank)
    instance = seen_alone(outputs, basis, rank)
    assert sides(STATEMENTS["no_gap"], instance) == pytest.approx((error, no_gap), rel=1e-7)
    assert sides(STATEMENTS["gap"], instance) == pytest.approx((error, gap), rel=1e-7)
    assert error <= min(no_gap, gap)


@pytest.mark.parametrize("seed", range(40))
def test_no_pair_of_outputs_and_projector_exceeds_a_bound(seed):
    """In NumPy alone: spectra from flat to steep, turns from small to any."""
    random = np.random.default_rng(seed)
    for _ in range(50):
        size = int(random.integers(2, 8))
        rank = int(random.integers(1, size))
        spread = random.choice([0.01, 0.1, 1.0, 3.0])
        values = np.sort(np.exp(spread * random.standard_normal(size)))[::-1]
        blur = 10.0 ** random.uniform(-4, 1)
        basis = np.linalg.qr(np.eye(size) + blur * random.standard_normal((size, size)))[0]
        outputs, kept = np.diag(values), basis[:, :rank]
        turned = np.diag(np.arange(size) < rank) - kept @ kept.T
        error = np.linalg.norm(outputs @ turned)
        blocks = Blocks.of_outputs(outputs, basis, rank)
        gap, no_gap = float(blocks.with_gap()), float(blocks.without_gap())
        assert error <= no_gap * (1 + 1e-12) + 1e-14 * values[0]
        assert error <= gap * (1 + 1e-9) + 1e-12 * values[0]
        if math.isfinite(gap):
            a, b = blocks.kept[:, None] ** 2, blocks.dropped**2
            excess = np.sum(a * b * blocks.cosines**2 / (a - b))
            simple = (a[-1, 0] + b[0]) / (a[-1, 0] - b[0]) * excess
            assert gap**2 <= simple * (1 + 1e-9)
            assert gap**2 <= (excess + no_gap**2 / 2) * (1 + 1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_square_root_of_two_is_attained_at_every_rank(rank):
    """Tied outputs, of which the truth keeps the others."""
    values = np.r_[np.full(rank, 1 + 1e-9), np.ones(rank)]
    basis = np.roll(np.eye(2 * rank), rank, axis=1)
    realised, bound = sides(STATEMENTS["no_gap"], seen_alone(np.diag(values), basis, rank))
    assert realised == pytest.approx(bound, rel=1e-8) == pytest.approx(math.sqrt(2 * rank))


@pytest.mark.parametrize(("weak", "ratio"), [(0.3, 1.9), (0.1, 2.19), (0.01, 2.235)])
def test_an_oblique_projector_costs_the_whole_square_root_of_five(weak, ratio):
    """The note's family: through a weak output, its rank-one truth is any."""
    outputs = np.diag([1 + 1e-6, 1.0, weak**2])
    oblique = np.outer([0.0, 2.0, 1 / weak], [0.0, 1.0, -weak])
    np.testing.assert_allclose(oblique @ oblique, oblique)
    error = outputs @ (np.diag([1.0, 0.0, 0.0]) - oblique)
    noise = outputs - outputs @ oblique
    found = np.linalg.norm(error) / np.linalg.norm(noise, 2)
    assert ratio <= found <= math.sqrt(5)


@pytest.mark.parametrize("turn", [1e-2, 1e-3])
def test_first_order_is_attained(turn):
    angle = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    realised, bound = sides(STATEMENTS["gap"], seen_alone(np.diag([2.0, 1.0]), angle, 1))
    assert realised == pytest.approx(math.sqrt(5) * math.sin(turn))
    assert 1 - 4 * turn**2 <= realised / bound <= 1


def test_first_order_is_no_bound():
    outputs = np.diag([2.1036, 1.9505, 1.9471, 0.7717])
    rows = [[-0.9189, -0.2868], [0.2729, -0.9202], [0.1513, -0.2458], [-0.2412, -0.1029]]
    basis, _ = np.linalg.qr(np.array(rows), mode="complete")
    blocks = Blocks.of_outputs(outputs, basis, 2)
    a, b = blocks.kept[:, None] ** 2, blocks.dropped**2
    first_order = np.sum((a + b) * a * b * blocks.cosines**2 / (a - b) ** 2)
    error, _, gap = by_hand(outputs, basis, 2)
    assert error <= gap
    assert error / math.sqrt(first_order) > 1.25


def test_never_above_the_bound_for_any_truth():
    instance = SETTING.draw(key=KEY)
    with jax.enable_x64(True):
        problem = Problem.stated(instance.observed, np.asarray(instance.truth), 2)
    realised, any_truth = sides(planted_rank.any_noise, problem)
    mine, bound = sides(STATEMENTS["no_gap"], instance)
    assert mine == pytest.approx(realised)
    assert bound == pytest.approx(math.sqrt(2 / 5) * any_truth)


@every_statement
def test_units_and_bases(name):
    instance = SETTING.draw(key=KEY)
    observed, basis = instance.observed, np.asarray(instance.basis)
    rows, weights = np.asarray(observed.activations), np.asarray(observed.weights)

    def both(rows, weights, basis):
        return sides(STATEMENTS[name], stated(rows, weights, basis, 2))

    expected = both(rows, weights, basis)
    assert 0 < expected[0] <= expected[1]
    scales(lambda unit: both(unit * rows, weights, basis), condition=10)
    scales(lambda unit: both(rows, unit * weights, basis), condition=10)
    same(both(2.0**300 * rows, 2.0**-300 * weights, basis), expected)
    turns(both, "si,io,o-->", rows, weights, basis, condition=10)
    # Only the two ranges count.
    mixed = np.concatenate([basis[:, :2] @ basis_of(4, 2), basis[:, 2:] @ basis_of(5, 4)], axis=1)
    assert both(rows, weights, mixed) == approx(expected, condition=10)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_grams_say_what_rows_say(rank):
    outputs = np.random.default_rng(1).standard_normal((20, 6)) @ diagonal(6, 1.0)
    basis = basis_of(2, 6, blur=0.05)
    rows = Blocks.of_outputs(outputs, basis, rank)
    moments = Blocks.of_moments(outputs.T @ outputs, basis, rank)
    np.testing.assert_allclose(moments.kept, rows.kept)
    np.testing.assert_allclose(moments.dropped, rows.dropped)
    assert float(moments.without_gap()) == pytest.approx(float(rows.without_gap()))
    assert float(moments.with_gap()) == pytest.approx(float(rows.with_gap()))
    with jax.enable_x64(True):
        compiled = jax.jit(
            lambda b: Blocks.of_moments(b.T @ b, jnp.asarray(basis), rank).with_gap()
        )
        assert float(compiled(outputs)) == pytest.approx(float(moments.with_gap()))


def test_without_a_gap_there_is_no_bound_with_one():
    basis = np.roll(np.eye(4), 2, axis=1)  # keeps the weaker half
    bound = STATEMENTS["gap"].bound(seen_alone(diagonal(4, 1.0), basis, 2))
    failing = [h.name for h in bound.hypotheses if not bool(h.holds)]
    assert failing == ["the outputs kept are stronger than those dropped"]
    assert float(bound.value) == math.inf
    blocks = Blocks.of_outputs(diagonal(4, 1.0), basis, 2)
    assert float(blocks.with_gap()) == math.inf
    assert float(blocks.without_gap()) == pytest.approx(math.sqrt(2 * (1 + 1 / 4)))


@every_statement
def test_other_questions_are_outside(name):
    instance = SETTING.draw(key=KEY)
    rows, weights = np.asarray(instance.observed.activations), np.asarray(instance.observed.weights)
    given = {"activations": rows, "weights": weights}
    others = {
        "the layer has no bias": {"bias": np.ones(6)},
        "the layer sees and gives what it always did": {"compressed_activations": rows},
    }
    for hypothesis, more in others.items():
        layer = Layer(Observed(**given, **more), 2)
        bound = STATEMENTS[name].bound(Projected(layer, instance.basis))
        assert [h.name for h in bound.hypotheses if not bool(h.holds)] == [hypothesis]
        assert float(bound.value) == math.inf
    skewed = dataclasses.replace(instance, basis=np.asarray(instance.basis) * [1, 1.01, 1, 1, 1, 1])
    bound = STATEMENTS[name].bound(skewed)
    assert [h.name for h in bound.hypotheses if not bool(h.holds)] == ["the basis is orthonormal"]
    with pytest.raises(ValueError, match="`basis` has 5 outputs, but `weights` has 6"):
        Projected(instance.layer, np.eye(5))


@every_statement
def test_attack_reaches_the_bound(name):
    witness = attack(STATEMENTS[name], key=KEY, restarts=2, steps=400)
    assert STATEMENTS[name].sharp
    assert 0.99 <= witness.ratio <= 1


@pytest.mark.slow
@every_statement
def test_verification_is_consistent(name):
    report = verify(STATEMENTS[name], trials=800, key=KEY, settings={"blurred": SETTING})
    assert report.verdict is Verdict.CONSISTENT
