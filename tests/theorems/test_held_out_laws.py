"""Laws of held-out losses: that they are what they say."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from scipy import stats

from lowrank_theory import Setting
from lowrank_theory.theorems.held_out_certificate import (
    LayerLossLaw,
    LossLaw,
    held_out_certificate,
)
from tolerance import approx


def test_law_of_losses_is_what_it_says():
    law = LossLaw(np.array([0.0, 0.5, 2.0]), np.array([2.0, 1.0, 1.0]), 3.0, 4000)
    drawn = law.draw(key=jax.random.key(0))
    assert drawn.sizes == (4000,)
    losses, mean = np.asarray(drawn.losses), float(np.asarray(drawn.mean))
    assert mean == 0.625
    assert float(np.asarray(drawn.moment_ratio)) == pytest.approx((0.25 / 4 + 1) / 0.625**2)
    assert float(np.asarray(drawn.range_bound)) == 3.0
    counts = [int(np.sum(losses == x)) for x in (0.0, 0.5, 2.0)]
    assert stats.chisquare(counts, [2000, 1000, 1000]).pvalue > 1e-3


def test_law_without_losses_has_a_moment_ratio():
    drawn = LossLaw(np.array([0.0]), np.array([1.0]), 1.0, 2).draw(key=jax.random.key(0))
    assert float(np.asarray(drawn.moment_ratio)) == 1.0


def test_losses_of_a_compressed_layer_are_those_of_its_recovery_on_fresh_rows():
    layer = held_out_certificate.betting.regimes["compressed layer"]
    key = jax.random.key(0)
    drawn = dataclasses.replace(layer, units=20_000).draw(key=key)
    losses = np.asarray(drawn.losses)
    mean, largest = float(np.asarray(drawn.mean)), float(np.asarray(drawn.range_bound))
    problem = layer.setting.draw(key=jax.random.split(key)[0])
    rows, outputs = (
        np.asarray(x) for x in (problem.observed.activations, problem.observed.outputs)
    )
    left, values, right = np.linalg.svd(rows @ np.linalg.pinv(rows) @ outputs)
    rank = problem.rank
    fitted = np.linalg.pinv(rows) @ (left[:, :rank] * values[:rank]) @ right[:rank]
    difference = np.asarray(problem.observed.weights) - fitted
    expected = np.trace(difference.T @ np.asarray(problem.truth.second_moment) @ difference)
    assert mean == approx(expected)
    assert abs(losses.mean() - mean) < 4 * losses.std() / math.sqrt(losses.size)
    assert losses.max() <= largest
    assert np.mean(losses**2) / losses.mean() ** 2 < float(np.asarray(drawn.moment_ratio)) == 3.0


def test_range_of_a_compressed_layer_is_that_of_a_corner_of_the_cube():
    """One output: the largest loss is that of one corner, at most the bound; N inputs share it."""
    setting = Setting(samples=20, inputs=1, outputs=2, rank=1)
    drawn = LayerLossLaw(setting, 2000).draw(key=jax.random.key(0))
    largest, mean = float(np.asarray(drawn.range_bound)), float(np.asarray(drawn.mean))
    assert largest == pytest.approx(3 * mean)
    assert 0.95 * largest <= np.asarray(drawn.losses).max() <= largest


def test_settings_need_two_units():
    one = np.ones(1)
    with pytest.raises(ValueError, match="`units` must be an integer >= 2"):
        LossLaw(one, one, 1.0, 1)
    with pytest.raises(ValueError, match="`units` must be an integer >= 2"):
        LayerLossLaw(Setting(samples=20, inputs=8, outputs=6, rank=2), 1)
