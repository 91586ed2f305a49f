"""What orientation does to truncation: the sharp limits, the exact moments, and the functions that
tell all ranks of a real layer from its Gram.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats

from laws import same, scales, turns
from lowrank_theory.excitation import Excitation
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.problems import Layer, Observed, Setting
from lowrank_theory.theorems.orientation import (
    Orientations,
    OrientationSetting,
    orientation,
)
from lowrank_theory.theorems.price_of_ignoring_data import price_of_ignoring_data
from lowrank_theory.verification import Verdict, verify
from lowrank_theory.verification.attack import attack
from statements import by_name, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(3)

SAMPLES, INPUTS, OUTPUTS = 9, 6, 4
STATEMENTS = by_name(orientation)
SURE = ("directions", "upper", "lower")
MOMENTS = ("average", "spread")
RANKS = np.arange(OUTPUTS + 1)
KEY = jax.random.key(0)


def parts(seed: int = 0, samples: int = SAMPLES) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((samples, INPUTS)) * np.arange(1, INPUTS + 1)
    return rows, random.standard_normal((INPUTS, OUTPUTS))


def layer(rows: np.ndarray, weights: np.ndarray, rank: int = 2) -> Layer:
    return Layer(Observed(weights=weights, activations=rows), rank)


def excitation(rows: np.ndarray, weights: np.ndarray) -> Excitation:
    return Excitation.of(rows.T @ rows, weights)


def truncated(weights: np.ndarray, rank: int) -> np.ndarray:
    left, values, right = np.linalg.svd(weights, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def squares(matrix: np.ndarray, size: int) -> np.ndarray:
    """Squared singular values, padded with zeros."""
    values = np.linalg.svd(matrix, compute_uv=False) ** 2
    return np.pad(values, (0, size - values.size))


# --- the limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [SAMPLES, 4])
@pytest.mark.parametrize("rank", [1, 2, OUTPUTS])
def test_both_sides_against_numpy(rank, samples):
    rows, weights = parts(1, samples)
    lost = np.linalg.norm(rows @ (weights - truncated(weights, rank)))
    inputs, values = squares(rows, INPUTS), squares(weights, OUTPUTS)
    dropped = OUTPUTS - rank
    most, least = (float(each[:dropped] @ values[rank:]) for each in (inputs, inputs[::-1]))
    wanted = {"directions": lost, "upper": math.sqrt(most), "lower": math.sqrt(least)}
    for name in SURE:
        expected = approx((lost, wanted[name]), condition=10, scale=1)
        assert sides(STATEMENTS[name], layer(rows, weights, rank)) == expected
    seen = excitation(rows, weights)
    found = [each([rank])[0] for each in (seen.loss, seen.most, seen.least)]
    assert_close(found, np.array([lost**2, most, least]), condition=10, scale=1)


@pytest.mark.parametrize("name", ["upper", "lower"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_each_limit_is_attained_for_all_spectra(name, rank):
    """The dropped directions are those of the inputs, in order, from either end."""
    rows, _ = parts(2)
    _, _, directions = np.linalg.svd(rows)
    ends = directions if name == "upper" else directions[::-1]
    left = np.roll(ends, rank, axis=0)[:OUTPUTS]
    weights = left.T * [3.0, 2.0, 1.5, 0.5]
    realised, bound = sides(STATEMENTS[name], layer(rows, weights, rank))
    assert realised == approx(bound)


@pytest.mark.parametrize("seed", range(6))
def test_order_of_the_limits(seed):
    """Least, mean and most (Chebyshev's sum inequality), and the weight tail above all."""
    random = np.random.default_rng(seed)
    rows, weights = parts(seed, samples=int(random.integers(2, 12)))
    seen = excitation(rows * 10.0 ** random.integers(-3, 3, INPUTS), weights)
    least, loss, most = (np.asarray(each(RANKS)) for each in (seen.least, seen.loss, seen.most))
    mean, slack = np.asarray(seen.expected(RANKS)), 1 + 1e-12
    tails = np.array([np.sum(np.asarray(seen.values)[r:] ** 2) for r in RANKS])
    assert np.all(least <= mean * slack)
    assert np.all(mean <= most * slack)
    assert np.all(least <= loss * slack + 1e-12 * loss[0])
    assert np.all(loss <= most * slack)
    assert np.all(most <= slack * np.asarray(seen.input_values)[0] ** 2 * tails)
    assert np.all(np.asarray(seen.optimum(RANKS)) <= loss * slack)


def test_the_upper_limit_is_never_above_the_weight_tail():
    for seed in range(3):
        instance = layer(*parts(seed))
        tail = price_of_ignoring_data.weight_tail.bound(instance).value
        assert sides(STATEMENTS["upper"], instance)[1] <= float(tail)


def test_isotropic_inputs_leave_nothing_to_orientation():
    rows, weights = np.linalg.qr(parts()[0])[0], parts()[1]
    realised, most = sides(STATEMENTS["upper"], layer(rows, weights))
    assert realised == pytest.approx(most)
    assert sides(STATEMENTS["lower"], layer(rows, weights))[1] == pytest.approx(most)
    seen = excitation(rows, weights)
    assert_close(seen.deviation(RANKS), 0, scale=1)
    p = seen.p_values(RANKS, references=19, key=KEY)
    assert np.all(np.asarray(p.above) == 1)
    assert np.all(np.asarray(p.below) == 1)


@pytest.mark.parametrize("name", SURE)
def test_units_and_bases(name):
    rows, weights = parts(3)

    def both(rows, weights):
        return sides(STATEMENTS[name], layer(rows, weights))

    scales(lambda unit: both(unit * rows, weights))
    scales(lambda unit: both(rows, unit * weights))
    same(both(2.0**-300 * rows, 2.0**300 * weights), both(rows, weights))
    turns(both, "si,io->", rows, weights, condition=10)


def test_directions_agree_where_singular_values_tie():
    """Any choice among equal values will do, as long as both sides make the same."""
    rows, _ = parts(4)
    weights = np.linalg.qr(np.random.default_rng(5).standard_normal((INPUTS, OUTPUTS)))[0]
    realised, bound = sides(STATEMENTS["directions"], layer(rows, weights))
    assert realised == approx(bound)


@pytest.mark.parametrize("name", ["upper", "lower"])
def test_attack_reaches_the_limit(name):
    witness = attack(STATEMENTS[name], key=KEY, restarts=2, steps=300)
    assert STATEMENTS[name].sharp
    assert 0.99 <= witness.ratio <= 1


@pytest.mark.parametrize("name", SURE)
def test_compressed_activations_are_another_question(name):
    rows, weights = parts()
    observed = Observed(weights=weights, activations=rows, compressed_activations=rows)
    bound = STATEMENTS[name].bound(Layer(observed, 2))
    failing = [h.name for h in bound.hypotheses if not bool(h.holds)]
    assert failing == ["the compressed layer sees the same activations"]
    assert math.isinf(float(bound.value))


# --- chance --------------------------------------------------------------------------------------


def test_moments_against_an_independent_sample():
    """Rotations of SciPy, weights and rows as matrices."""
    rows, weights = parts(6)
    seen = excitation(rows, weights)
    rotations = stats.ortho_group.rvs(INPUTS, size=4_000, random_state=0)
    left, values, _ = np.linalg.svd(weights, full_matrices=False)
    lengths = np.sum((rows @ (rotations @ left)) ** 2, axis=1) * values**2
    for rank in (0, 2, 3):
        losses = np.sum(lengths[:, rank:], axis=1)
        mean, deviation = float(seen.expected([rank])[0]), float(seen.deviation([rank])[0])
        assert abs(np.mean(losses) - mean) <= 4 * deviation / math.sqrt(len(losses))
        assert np.std(losses) == pytest.approx(deviation, rel=0.06)


@pytest.mark.parametrize("inputs", [2, 5])
def test_spread_of_one_direction_by_hand(inputs):
    """Of $u_1^2$ for a uniform direction: $3/(N(N+2)) - 1/N^2$, times squares."""
    gram, weights = np.diag(np.eye(inputs)[0]), 3 * np.eye(inputs)[:, :1]
    seen = Excitation.of(gram, weights)
    variance = 81 * (3 / (inputs * (inputs + 2)) - 1 / inputs**2)
    assert float(seen.deviation([0])[0]) == pytest.approx(math.sqrt(variance))
    assert float(seen.expected([0])[0]) == pytest.approx(9 / inputs) == float(seen.scale)


def test_p_values_of_the_extremes():
    rows, _ = parts(7)
    _, _, directions = np.linalg.svd(rows)
    for ends, tail in ((directions, "above"), (directions[::-1], "below")):
        weights = ends[:OUTPUTS].T * [4.0, 3.0, 2.0, 1.0]
        p = excitation(rows, weights).p_values([0], references=99, key=KEY)
        other = {"above": "below", "below": "above"}[tail]
        assert float(getattr(p, tail)[0]) == 0.01
        assert float(getattr(p, other)[0]) == 1


def test_p_values_of_chance_are_uniform():
    """Gaussian weights lie towards the data in every way alike."""
    found, gram = [], np.diag([9.0, 4.0, 1.0, 1.0])
    for seed in range(200):
        weights = np.random.default_rng(seed).standard_normal((4, 2))
        p = Excitation.of(gram, weights).p_values([1], references=19, key=jax.random.key(seed))
        found.append((float(p.above[0]), float(p.below[0])))
    above, below = np.transpose(found)
    for tail in (above, below):
        assert set(np.round(20 * tail).astype(int)) <= set(range(1, 21))
        assert stats.chisquare(np.bincount(np.round(20 * tail).astype(int))[1:]).pvalue > 1e-3
    np.testing.assert_allclose(above + below, 1 + 1 / 20)


@pytest.mark.parametrize("name", [*MOMENTS, "p_value"])
def test_what_nobody_said_is_not_taken_to_hold(name):
    drawn = OrientationSetting(np.arange(4.0, 0, -1), np.ones(2), 1, 20).draw(key=KEY)
    assert bool(STATEMENTS[name].bound(drawn).holds)
    unsaid = dataclasses.replace(drawn, independent=np.asarray(False))
    bound = STATEMENTS[name].bound(unsaid)
    assert not bool(bound.holds)
    assert math.isinf(float(bound.value))


def test_statements_of_chance_speak_of_the_layers_that_they_stand_for():
    rows, weights = parts(8)
    left, values, _ = np.linalg.svd(weights, full_matrices=False)
    _, inputs, right = np.linalg.svd(rows)
    instance = Orientations(inputs, values, (right @ left)[None], 2, np.asarray(True))
    seen = excitation(rows, weights)
    assert sides(STATEMENTS["average"], instance) == pytest.approx(
        (float(seen.loss([2])[0]), float(seen.expected([2])[0]))
    )
    distance = float(seen.loss([2])[0]) - float(seen.expected([2])[0])
    assert sides(STATEMENTS["spread"], instance) == pytest.approx(
        (distance**2, float(seen.deviation([2])[0]) ** 2)
    )


# --- the door ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2.0**-200, 2.0**200])
def test_p_values_have_no_unit(factor):
    rows, weights = parts(9)
    plain = excitation(rows, weights).p_values(RANKS, references=49, key=KEY)
    for gram, applied in ((factor * rows.T @ rows, weights), (rows.T @ rows, factor * weights)):
        other = Excitation.of(gram, applied).p_values(RANKS, references=49, key=KEY)
        np.testing.assert_array_equal(other.above, plain.above)


def test_float32_layers_are_told_in_float64():
    rows, weights = (each.astype(np.float32) for each in parts())
    seen = Excitation.of(rows.T.astype(float) @ rows, weights)
    wide = excitation(*(each.astype(float) for each in (rows, weights)))
    assert_close(seen.loss(RANKS), wide.loss(RANKS))
    assert Excitation.of(rows.T @ rows, weights).loss(RANKS).dtype == np.float64


def test_bad_input_is_refused():
    gram, weights = np.eye(3), np.ones((3, 2))
    with pytest.raises(ValueError, match="`gram` has 2 inputs, but `weights` has 3"):
        Excitation.of(np.eye(2), weights)
    with pytest.raises(ValueError, match=r"`gram` must have shape \(inputs, inputs\)"):
        Excitation.of(np.ones(3), weights)
    seen = Excitation.of(gram, weights)
    for ranks in ([], 1, [0.5], [[1]], [[1], [1, 2]], [-1], [3]):
        with pytest.raises(ValueError, match="`ranks` must be a sequence of integers from 0 to 2"):
            seen.loss(ranks)
    with pytest.raises(ValueError, match="`references` must be an integer >= 1"):
        seen.p_values([1], references=0, key=KEY)
    with pytest.raises(ValueError, match="`values` must be no more than the inputs; got 3 for 2"):
        OrientationSetting(np.ones(2), np.ones(3), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEMENTS)
def test_verification_is_consistent(name):
    settings: dict[str, Any] = {
        "one direction": OrientationSetting(np.r_[5.0, np.ones(4)], np.r_[2.0, 1.0], 1)
    }
    if name in SURE:
        flat = targets.ApproximateRank(spectra.Flat())
        massive = activations.MassiveDirections(1, 10.0)
        settings = {
            "massive": Setting(30, 6, 5, 2, activations=massive, noise=noise.Gaussian(0.0)),
            "ties": Setting(30, 6, 5, 2, target=flat, noise=noise.Gaussian(0.0)),
        }
    report = verify(STATEMENTS[name], trials=800, key=KEY, settings=settings)
    assert report.verdict is Verdict.CONSISTENT
