"""The floor: its chart, its constant, its limits, and estimators above it."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory.theorems.minimax_floor import (
    LeastFavourable,
    PriorDraw,
    bayes_floor,
    minimax_floor,
    risk_floor,
    strong_low_rank,
)
from lowrank_theory.verification import verify
from statements import by_name
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

SMALL = LeastFavourable(9, 5, 4, 2, strength=50.0, spread=2.0, noise_scale=0.5)
STATEMENTS = by_name(minimax_floor)


def test_the_floor_counts_the_dimensions_of_a_low_rank_matrix():
    assert risk_floor(rank=3, q=10, outputs=7, noise_scale=2.0) == 4 * (10 * 3 + 3 * 7 - 9)


def test_the_floor_of_the_prior_tends_to_that_of_the_worst_case():
    limit = risk_floor(3, 10, 7, 2.0)
    assert bayes_floor(3, 10, 7, 2.0, strength=1e12, spread=1e6) == approx(limit, condition=1e4)
    strong = bayes_floor(3, 10, 7, 2.0, strength=1e9, spread=2.0)
    assert strong == approx(limit / 2)  # the prior knows as much as the sample
    assert bayes_floor(3, 10, 7, 2.0, strength=10.0, spread=2.0) < strong


def test_the_chart_by_hand():
    with jax.enable_x64(True):
        core, right, left = (jnp.array(m) for m in ([[1.0]], [[2.0, 4.0]], [[6.0]]))
        matrix = strong_low_rank(core, right, left, 2.0)
    assert_close(matrix, [[3, 3, 6], [9, 9, 18]])


@pytest.mark.parametrize(("rank", "q", "outputs"), [(1, 3, 2), (2, 4, 3), (2, 2, 3), (2, 3, 2)])
def test_the_floor_is_that_of_the_derivative(rank, q, outputs):
    """d^2 over the mean squared norm of the Jacobian and the information of the prior; exactly, by
    averaging over signs, which have the moments that enter.
    """
    strength, spread, noise_scale = 3.0, 0.8, 0.4
    shapes = [(rank, rank), (rank, outputs - rank), (q - rank, rank)]
    sizes = [math.prod(shape) for shape in shapes]

    def chart(flat: Any) -> Any:
        parts = jnp.split(flat, np.cumsum(sizes)[:-1])
        blocks = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        core, right, left = blocks
        return strong_low_rank(core, right, left, strength)

    with jax.enable_x64(True):
        signs = np.random.default_rng(0).standard_normal((4000, sum(sizes)))
        signs = np.concatenate([signs, -signs]) / np.sqrt(np.mean(signs**2, axis=0))
        jacobian = jax.jit(jax.vmap(lambda x: jnp.sum(jax.jacfwd(chart)(x) ** 2)))
        change = float(np.mean(jacobian(spread * signs)))
        ranks = np.linalg.matrix_rank(np.asarray(chart(spread * signs[0])))
        # The blocks of which the estimate is read off have unit divergence on average.
        derivative = jax.jit(jax.vmap(jax.jacfwd(chart)))(spread * signs)
    assert ranks == rank
    mean = np.asarray(derivative).mean(axis=0)
    read = np.concatenate(
        [mean[:rank, :rank].ravel(), mean[:rank, rank:].ravel(), mean[rank:, :rank].ravel()]
    ).reshape(sum(sizes), sum(sizes))
    assert np.trace(read) == approx(sum(sizes))
    assert sum(sizes) == rank * (q + outputs - rank)
    expected = sum(sizes) ** 2 / (change / noise_scale**2 + sum(sizes) / spread**2)
    floor = bayes_floor(rank, q, outputs, noise_scale, strength, spread)
    assert floor == pytest.approx(expected, rel=5e-3)


def test_a_draw_is_what_it_says():
    drawn = SMALL.draw(key=jax.random.key(0))
    assert isinstance(drawn, PriorDraw)
    assert drawn.sizes == drawn.problem.sizes
    truth, outputs = drawn.problem.truth, np.asarray(drawn.problem.observed.target_outputs)
    clean = np.asarray(truth.layer_inputs) @ np.asarray(truth.target_weights)
    assert_close(outputs - clean, truth.noise, scale=float(np.max(np.abs(outputs))))
    assert np.linalg.matrix_rank(clean, tol=1e-9) == 2
    values = np.linalg.svd(clean, compute_uv=False)[:2]
    assert np.all(np.abs(values - 50) < 20)
    assert (float(drawn.strength), float(drawn.spread)) == (50.0, 2.0)
    assert float(truth.noise_scale) == 0.5
    many = np.stack([SMALL.draw(key=jax.random.key(k)).problem.truth.noise for k in range(30)])
    assert np.std(many) == pytest.approx(0.5, rel=0.1)


def test_the_coordinates_have_the_law_of_the_prior():
    left_corner, others = [], []
    for seed in range(200):
        truth = SMALL.draw(key=jax.random.key(seed)).problem.truth
        left, _, _ = np.linalg.svd(np.asarray(truth.layer_inputs), full_matrices=False)
        outputs = np.asarray(truth.layer_inputs) @ np.asarray(truth.target_weights)
        size = np.abs(left.T @ outputs)
        left_corner.append(size[:2, :2])
        others.append(np.r_[size[:2, 2:].ravel(), size[2:, :2].ravel()])
    # Signs of singular vectors are arbitrary, sizes are not.
    assert np.mean(np.diagonal(left_corner, axis1=1, axis2=2)) == pytest.approx(50, rel=0.02)
    assert np.sqrt(np.mean(np.square(others))) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_floor_scales_and_is_below_the_mean_error(name):
    statement = STATEMENTS[name]
    drawn = SMALL.draw(key=jax.random.key(0))
    floor = float(statement.bound(drawn).value)
    assert floor == approx(bayes_floor(2, 5, 4, 0.5, 50.0, 2.0))
    scaled = dataclasses.replace(
        SMALL,
        **{part: 1e-6 * getattr(SMALL, part) for part in ("strength", "spread", "noise_scale")},
    ).draw(key=jax.random.key(0))
    assert float(statement.bound(scaled).value) == approx(1e-12 * floor)
    assert float(statement.realised(scaled)) == approx(1e-12 * float(statement.realised(drawn)))
    errors = [float(statement.realised(SMALL.draw(key=jax.random.key(k)))) for k in range(60)]
    assert np.mean(errors) > 0.9 * floor


def test_estimators_are_those_they_are_called():
    drawn = SMALL.draw(key=jax.random.key(3))
    truth, outputs = drawn.problem.truth, np.asarray(drawn.problem.observed.target_outputs)
    rows = np.asarray(truth.layer_inputs)
    clean = rows @ np.asarray(truth.target_weights)
    left, values, right = np.linalg.svd(rows @ np.linalg.pinv(rows) @ outputs)
    left, edge = left[:, :4], 0.5 * (math.sqrt(5) + math.sqrt(4))
    fits = {
        "truncation": left[:, :2] * values[:2] @ right[:2],
        "soft_threshold": left * np.maximum(values - edge, 0) @ right,
    }
    for name, fit in fits.items():
        error = float(STATEMENTS[name].realised(drawn))
        assert error == approx(np.sum((fit - clean) ** 2), condition=10)


@pytest.mark.slow
def test_an_estimator_that_has_seen_the_truth_is_caught():
    setting = {"strong": SMALL}
    report = verify(minimax_floor.truncation, trials=300, key=jax.random.key(0), settings=setting)
    assert report.statements[0].controls[-1].caught


def test_bad_input_is_named():
    numbers = (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="`samples` must be an integer >= 1"):
        LeastFavourable(0, 5, 4, 2, *numbers)
    with pytest.raises(ValueError, match="`rank` must be an integer from 1 to 3"):
        LeastFavourable(3, 5, 4, 4, *numbers)
    with pytest.raises(ValueError, match="`spread` must be a positive finite number"):
        LeastFavourable(3, 5, 4, 3, 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="`instance` must be a `PriorDraw`"):
        minimax_floor.truncation.bound(SMALL.draw(key=jax.random.key(0)).problem)
