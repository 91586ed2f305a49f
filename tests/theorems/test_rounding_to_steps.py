"""Rounding to one step against all signs and exact means, and rotations against exact ones."""

import itertools
import math
from typing import Any

import jax
import numpy as np
import pytest

from lowrank_theory.theorems._rotated import RotatedSetting, RotatedWeights
from lowrank_theory.theorems._stepped import SteppedLayer, SteppedSetting
from lowrank_theory.theorems.rounding import rounding
from lowrank_theory.verification.attack import replay
from statements import by_name, drawn, sides
from tolerance import approx

STATEMENTS = by_name(rounding)


@pytest.mark.parametrize("seed", range(3))
def test_values_against_numpy(seed):
    layer = drawn(SteppedSetting(6, 4, 3, decay=0.5), seed)
    rows, weights, step, dither = (
        np.asarray(x) for x in (layer.activations, layer.weights, layer.step, layer.dither)
    )
    nearest = float(np.linalg.norm(rows @ (weights - step * np.rint(weights / step))))
    signs = itertools.product((-1, 1), repeat=4)
    most = max(float(np.linalg.norm(rows @ np.array(s))) for s in signs)
    worst = step / 2 * math.sqrt(3) * most
    assert sides(STATEMENTS["one_step"], layer) == approx((nearest, worst), scale=10)
    norm = step / 2 * math.sqrt(12) * np.linalg.norm(rows, 2)
    assert sides(STATEMENTS["one_step_norm"], layer) == approx((nearest, norm), scale=10)
    assert np.linalg.norm(rows) <= most and worst <= norm
    energies = np.sum(rows**2, axis=0)[:, None]
    moved = step * (dither - 0.5)
    error = weights - (step * np.rint((weights + moved) / step) - moved)
    found = sides(STATEMENTS["subtractive_dither"], layer)
    expected = np.sum((rows @ error) ** 2), 3 * step**2 / 12 * np.sum(rows**2)
    assert found == approx(tuple(map(float, expected)), scale=10)
    place = weights / step % 1
    up = dither >= 1 - place
    error = weights - step * (np.floor(weights / step) + up)
    expected = np.sum((rows @ error) ** 2), step**2 * np.sum(energies * place * (1 - place))
    found = sides(STATEMENTS["stochastic"], layer)
    assert found == approx(tuple(map(float, expected)), scale=10)


@pytest.mark.parametrize("name", ["subtractive_dither", "stochastic"])
@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.9])
def test_means_over_all_dithers(name, place):
    """A thousand equal weights, and dithers that are spread evenly in place of random ones."""
    count = 1000
    dither = (np.arange(count) + 0.5)[None] / count
    layer = SteppedLayer(
        np.full((1, count), 3 + place), np.full((2, 1), 2.0), 1.0, dither=dither, uniform=True
    )
    realised, bound = sides(STATEMENTS[name], layer)
    assert realised == pytest.approx(bound, rel=1e-5, abs=1e-9)


def test_weights_half_way_are_the_worst():
    layer = SteppedLayer(np.full((4, 3), 1.5 - 1e-9), np.full((6, 4), 2.0), 1.0)
    for name in ("one_step", "one_step_norm"):
        realised, bound = sides(STATEMENTS[name], layer)
        assert realised == pytest.approx(bound, rel=1e-8)


def test_what_cannot_be_said():
    far = SteppedLayer(np.full((4, 3), 200.0), np.full((6, 4), 2.0), 1.0)
    assert sides(STATEMENTS["one_step"], far)[1] == math.inf
    assert sides(STATEMENTS["stochastic"], far)[1] == math.inf
    with pytest.raises(ValueError, match="`inputs` must be an integer from 1 to 14; got 15"):
        STATEMENTS["one_step"].bound(SteppedLayer(np.ones((15, 1)), np.ones((1, 15)), 1.0))


def test_a_rotation_against_all_signs():
    """The bound at δ holds for all but a share δ of the 256 signs of eight inputs."""
    weights = np.random.default_rng(0).standard_normal((8, 1)) * np.r_[3.0, np.ones(7)][:, None]
    turned = np.array([[1.0]])
    for _ in range(3):
        turned = np.block([[turned, turned], [turned, -turned]]) / math.sqrt(2)
    found, rotated, signs = [], turned, ()
    for signs in itertools.product((-1.0, 1.0), repeat=8):
        rotated = turned @ (np.array(signs)[:, None] * weights)
        found.append(np.max(np.abs(rotated)) / np.linalg.norm(weights))
    instance = RotatedWeights(weights, np.array(signs), independent=True)
    for delta in (0.5, 0.05):
        realised, bound = sides(STATEMENTS["rotation"], instance, failure_probability=delta)
        assert realised == approx(found[-1])
        assert bound == approx(math.sqrt(2 * math.log(16 / delta) / 8))
        assert np.mean(np.array(found) > bound) <= delta
    realised, bound = sides(STATEMENTS["rotated"], instance)
    step = np.max(np.abs(rotated)) / 7
    lost = float(np.sum((rotated - step * np.rint(rotated / step)) ** 2))
    share = 7 / 8 * math.log(16 / 0.05) / (2 * 49)
    assert (realised, bound) == approx((lost, share * float(np.sum(weights**2))), scale=1)


def test_signs_are_trusted_and_inputs_a_power_of_two():
    instance = RotatedWeights(np.ones((8, 1)), np.ones(8))
    assert sides(STATEMENTS["rotation"], instance)[1] == math.inf
    assert bool(drawn(RotatedSetting(8, 1)).independent)
    with pytest.raises(ValueError, match="`weights` must have a power of two of inputs"):
        RotatedWeights(np.ones((6, 1)), np.ones(6))
    with pytest.raises(ValueError, match="one of `signs` for each"):
        RotatedWeights(np.ones((4, 1)), np.ones(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_step", "one_step_norm"])
def test_the_adversary_plays_inside_the_hypotheses(name):
    statement: Any = STATEMENTS[name]
    with jax.enable_x64(True):
        free = jax.tree.map(np.asarray, statement.adversary.start(key=jax.random.key(1)))
    assert 0 < replay(statement, free) <= 1
