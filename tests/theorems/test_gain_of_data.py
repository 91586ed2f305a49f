"""Why data help: definitions in NumPy, where each bound is attained, and the law of two spectra."""

import itertools
import math
from typing import Any

import jax
import numpy as np
import pytest
import scipy.linalg

from laws import scales, turns
from lowrank_theory.free_product import tail_shares
from lowrank_theory.problems import Layer, Observed
from lowrank_theory.theorems.gain_of_data import (
    excess_bounds,
    expected_gains,
    gain_of_data,
    spectral_bounds,
    split_bounds,
)
from lowrank_theory.theorems.orientation import OrientationSetting
from lowrank_theory.verification import Verdict, attack, verify
from statements import by_name
from statements import sides as sides_of
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(5)

STATEMENTS = by_name(gain_of_data)
SURE = ("split", "excess_below", "excess_above", "spectra")
every_sure = pytest.mark.parametrize("name", SURE)
SHAPES = ((12, 6, 4, 2), (12, 4, 7, 2), (4, 6, 5, 3), (12, 5, 5, 1), (12, 5, 4, 4))
every_shape = pytest.mark.parametrize("shape", SHAPES)
SETTING = OrientationSetting(np.arange(1.0, 9) ** -0.5, np.arange(1.0, 6) ** -0.3, 2, count=3)


def drawn(shape: Any = SHAPES[0], seed: int = 0) -> tuple[np.ndarray, np.ndarray, int]:
    samples, inputs, outputs, rank = shape
    random = np.random.default_rng(seed)
    rows = random.standard_normal((samples, inputs)) * np.arange(1.0, inputs + 1) ** -1
    return rows, random.standard_normal((inputs, outputs)), rank


def sides(name: str, rows: Any, weights: Any, rank: int) -> tuple[float, float]:
    """Realised quantity and bound of a sure statement."""
    observed = Observed(activations=np.asarray(rows), weights=np.asarray(weights))
    return sides_of(STATEMENTS[name], Layer(observed, rank))


def values_of(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.svd(matrix, compute_uv=False)


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def padded(values: np.ndarray, size: int) -> np.ndarray:
    return np.pad(values, (0, max(0, size - values.size)))[:size]


def by_hand(rows: np.ndarray, weights: np.ndarray, rank: int) -> dict[str, tuple[float, float]]:
    """Both sides of the sure statements, from their definitions."""
    inputs, outputs = weights.shape
    d = min(inputs, outputs)
    energies = padded(values_of(rows @ weights) ** 2, d)
    best = float(np.sum(energies[rank:]))
    excess = np.linalg.norm(rows @ (weights - truncated(weights, rank))) ** 2 - best
    splits = [
        np.linalg.norm((rows - truncated(rows, i)) @ (weights - truncated(weights, rank - i))) ** 2
        for i in range(rank + 1)
    ]
    x, w = (padded(values_of(each), 3 * d) ** 2 for each in (rows, weights))
    aligned = [np.dot(x[i:][: d - rank], w[rank - i :][: d - rank]) for i in range(rank + 1)]
    spaces = [np.linalg.svd(m)[2][:rank].T for m in (weights, rows @ weights)]
    k = min(rank, d - rank)
    sines = np.sort(np.sin(scipy.linalg.subspace_angles(*spaces)))[::-1][:k] ** 2
    below = sum((energies[rank - 1 - t] - energies[rank + t]) * sines[t] for t in range(k))
    above = sum((energies[t] - energies[d - 1 - t]) * sines[t] for t in range(k))
    return {
        "split": (best, float(min(splits))),
        "spectra": (best, float(min(aligned))),
        "excess_below": (float(excess), float(below)),
        "excess_above": (float(excess), float(above)),
    }


# --- laws ----------------------------------------------------------------------------------------


@every_shape
@pytest.mark.parametrize("seed", range(3))
def test_both_sides_against_numpy(shape, seed):
    rows, weights, rank = drawn(shape, seed)
    wanted = by_hand(rows, weights, rank)
    for name in SURE:
        found = sides(name, rows, weights, rank)
        assert_close(found, wanted[name], condition=10, scale=1)
        smaller, larger = found if name != "excess_below" else found[::-1]
        assert smaller <= larger * (1 + 1e-12) + 1e-12


@every_shape
def test_grams_and_spectra_say_what_rows_say(shape):
    rows, weights, _ = drawn(shape)
    gram, count = rows.T @ rows, min(weights.shape)
    inputs = padded(values_of(rows), len(gram))
    splits = np.asarray(split_bounds(gram, weights))
    aligned = np.asarray(spectral_bounds(inputs, values_of(weights)))
    assert splits.shape == aligned.shape == (count + 1,)
    assert splits[0] == pytest.approx(np.linalg.norm(rows @ weights) ** 2)
    assert splits[-1] == pytest.approx(0) == aligned[-1]
    assert np.all(np.diff(splits) <= 1e-12) and np.all(np.diff(aligned) <= 1e-12)
    below, above = map(np.asarray, excess_bounds(gram, weights, range(count + 1)))
    assert below[0] == above[0] == 0
    for rank in range(1, count + 1):
        wanted = by_hand(rows, weights, rank)
        found = below[rank], above[rank], splits[rank], aligned[rank]
        names = ("excess_below", "excess_above", "split", "spectra")
        assert_close(found, [wanted[n][1] for n in names], condition=1e3, scale=1)


@every_sure
def test_units_and_bases_do_not_matter(name):
    rows, weights, rank = drawn(seed=1)
    scales(lambda unit: sides(name, unit * rows, weights, rank), 2)
    scales(lambda unit: sides(name, rows, unit * weights, rank), 2)
    turns(
        lambda rows, weights: sides(name, rows, weights, rank),
        "si,io->",
        rows,
        weights,
        condition=1e3,
    )


@every_sure
def test_outputs_that_are_always_zero_change_nothing(name):
    """Nor do they where they are more than the inputs."""
    rows, weights, rank = drawn((12, 4, 4, 2))
    more = np.pad(weights, ((0, 0), (0, 5)))
    assert_close(sides(name, rows, more, rank), sides(name, rows, weights, rank), condition=10)


def test_white_inputs_and_white_weights_have_no_gain_beyond_one_decomposition():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 5)))[0]
    rows, weights, rank = drawn((12, 5, 5, 2))
    isometric = np.linalg.qr(weights.T)[0].T
    for seen, applied in ((basis, weights), (rows, isometric)):
        for name in ("split", "spectra"):
            assert sides(name, seen, applied, rank)[0] == pytest.approx(
                sides(name, seen, applied, rank)[1]
            )
    for name in ("excess_below", "excess_above"):
        assert sides(name, basis, weights, rank) == approx((0, 0), scale=1)


# --- where they are attained ---------------------------------------------------------------------


@pytest.mark.parametrize(("i", "j", "rest"), [(1, 0, 2), (0, 2, 1), (1, 1, 3), (3, 2, 2)])
def test_every_split_is_attained_and_needed(i, j, rest):
    rows = np.diag(np.repeat([4, 0.5, 1.0], [i, j, rest]))
    weights = np.diag(np.repeat([0.5, 4, 1.0], [i, j, rest]))
    for name in ("split", "spectra"):
        assert sides(name, rows, weights, i + j) == pytest.approx((rest, rest))
    x, w = (np.sort(np.diag(each))[::-1] for each in (rows, weights))
    for other in set(range(i + j + 1)) - {i}:
        lost = (rows - truncated(rows, other)) @ (weights - truncated(weights, i + j - other))
        assert np.linalg.norm(lost) ** 2 >= rest + 2.9
        assert np.sum(x[other:][:rest] ** 2 * w[i + j - other :][:rest] ** 2) >= rest + 2.9


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_any_spectrum_and_any_angles_attain_both_sides_of_the_excess(rank):
    random, size = np.random.default_rng(rank), 6
    energies = np.sort(random.exponential(size=size))[::-1]
    k = min(rank, size - rank)
    sines = np.sort(random.uniform(size=k))[::-1]
    values = np.sort(random.exponential(size=size))[::-1]
    for name, strong, weak in (
        ("excess_below", range(rank - 1, -1, -1), range(rank, size)),
        ("excess_above", range(rank), range(size - 1, rank - 1, -1)),
    ):
        basis = np.eye(size)
        for a, b, sine in zip(strong, weak, sines, strict=False):
            cosine = math.sqrt(1 - sine**2)
            turn = np.array([[cosine, -sine], [sine, cosine]])
            basis[np.ix_([a, b], [a, b])] = turn
        weights = values[:, None] * basis.T
        rows = np.sqrt(energies)[:, None] * basis / values
        realised, bound = sides(name, rows, weights, rank)
        assert realised == pytest.approx(bound, rel=1e-8)
        assert realised > 0


def test_two_and_a_half_and_three_and_a_half_by_hand():
    angle = math.pi / 4
    for pairs, wanted in ((((1, 2), (0, 3)), (2.5, 2.5)), (((0, 3), (1, 2)), (3.5, 3.5))):
        basis = np.eye(4)
        for (a, b), turned in zip(pairs, (math.pi / 2, angle), strict=True):
            basis[np.ix_([a, b], [a, b])] = [
                [math.cos(turned), -math.sin(turned)],
                [math.sin(turned), math.cos(turned)],
            ]
        values = np.array([4.0, 3, 2, 1])
        rows, weights = np.sqrt(values)[:, None] * basis / values, values[:, None] * basis.T
        name = "excess_below" if wanted[0] < 3 else "excess_above"
        assert sides(name, rows, weights, 2) == pytest.approx(wanted)


def test_opposed_layers_are_the_worst_at_the_last_rank():
    random = np.random.default_rng(0)
    x, w = (np.sort(random.exponential(size=5))[::-1] for _ in range(2))
    realised, bound = sides("spectra", np.diag(x), np.diag(w[::-1]), 4)
    assert realised == pytest.approx(bound)


def test_the_worst_layer_of_two_spectra_may_be_below_the_bound():
    values, random = np.array([2.0, 2, 1]), np.random.default_rng(0)
    assert float(spectral_bounds(values, values)[1]) == 20
    rotations = np.linalg.qr(random.standard_normal((20_000, 3, 3)))[0]
    found = np.linalg.svd(values[:, None] * rotations * values, compute_uv=False) ** 2
    assert 15 < np.max(found[:, 1:].sum(axis=1)) <= 17
    assert sides("spectra", np.diag(values), np.diag(values), 1)[0] == pytest.approx(17)


# --- random orientation --------------------------------------------------------------------------


def test_the_three_tiers():
    inputs, weights = np.arange(1.0, 9) ** -1, np.ones(6)
    gains = np.asarray(expected_gains(inputs, weights))
    tails = np.append(np.cumsum(inputs[::-1] ** 2)[::-1], 0)
    for rank in range(6):
        wanted = max(tails[0] / tails[i] * (6 - rank) / (6 - rank + i) for i in range(rank + 1))
        assert gains[rank] == pytest.approx(wanted)
    assert gains[6] == 1  # at full rank neither loses anything
    assert np.asarray(expected_gains(np.where(np.arange(8) < 3, 1.0, 0.0), weights))[
        :4
    ] == pytest.approx([1, 3 / 2 * 5 / 6, 3 * 4 / 6, math.inf])
    noisy = np.where(np.arange(8) < 3, 1.0, 0.01)
    signal_to_noise = 3 / (5 * 0.01**2)
    assert np.asarray(expected_gains(noisy, weights))[3] == pytest.approx((1 + signal_to_noise) / 2)


def test_the_expected_optimum_is_attained_by_white_weights_and_by_white_inputs():
    values = np.arange(1.0, 6) ** -0.7
    for inputs, weights in ((values, np.ones(5)), (np.ones(5), values)):
        instance = OrientationSetting(inputs, weights, 2, count=2).draw(key=jax.random.key(0))
        wanted = np.sum(values[2:] ** 2)
        found = sides_of(STATEMENTS["expected_optimum"], instance)
        assert found == pytest.approx((wanted, wanted))


def test_weights_alone_lose_the_share_of_their_tail():
    weights = np.asarray(SETTING.values) ** 2
    _, limit = sides_of(STATEMENTS["law_without_data"], SETTING.draw(key=jax.random.key(0)))
    assert limit == pytest.approx(np.sum(weights[2:]) / np.sum(weights))


def test_two_projections_follow_the_arcsine_law():
    halves = np.repeat([1.0, 0.0], [20, 20])
    setting = OrientationSetting(halves, np.ones(20), 6, count=16)
    instance = setting.draw(key=jax.random.key(1))
    kept = 1 - 6 / 20
    limit = kept - math.sin(math.pi * kept) / math.pi
    realised, share = sides_of(STATEMENTS["law"], instance)
    assert share == pytest.approx(limit, rel=1e-5)
    assert realised == pytest.approx(limit, rel=0.05)


def turned(inputs: np.ndarray, weights: np.ndarray, draws: int) -> np.ndarray:
    """The shares that are lost at each rank, of random layers; a row for each."""
    random, size = np.random.default_rng(0), len(inputs)
    shares = []
    for _ in range(draws):
        rotation, triangle = np.linalg.qr(random.standard_normal((size, len(weights))))
        rotation *= np.sign(np.diag(triangle))
        energies = values_of(inputs[:, None] * rotation * weights) ** 2
        shares.append(np.append(np.cumsum(energies[::-1])[::-1], 0) / energies.sum())
    return np.array(shares)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_law_is_inside_of_what_single_layers_show(factor):
    """In the central 99 % of them, at three sizes."""
    inputs, weights = np.arange(1.0, 13) ** -0.5, np.arange(1.0, 9) ** -0.3
    inputs, weights = np.repeat(inputs, factor), np.repeat(weights, factor)
    ranks = factor * np.array([1, 2, 4, 6])
    law = np.asarray(tail_shares(inputs**2, padded(weights, len(inputs)) ** 2, ranks))
    low, high = np.quantile(turned(inputs, weights, 400)[:, ranks], [0.005, 0.995], axis=0)
    assert np.all((low < law) & (law < high))


# --- as statements -------------------------------------------------------------------------------


@every_sure
def test_other_activations_are_outside(name):
    rows, weights, rank = drawn((12, 5, 5, 2))
    observed = Observed(activations=rows, weights=weights, compressed_activations=rows + 1)
    bound = STATEMENTS[name].bound(Layer(observed, rank))
    assert [h.name for h in bound.hypotheses if not h.holds] == [
        "the compressed layer sees the same activations"
    ]
    assert float(bound.value) == (-math.inf if name == "excess_below" else math.inf)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="`gram`"):
        split_bounds(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="`gram`"):
        excess_bounds(np.eye(4), np.ones((3, 2)), [1])
    for ranks in ([3], [-1], [0.5], 1):
        with pytest.raises(ValueError, match="`ranks` must be a sequence of integers from 0 to 2"):
            excess_bounds(np.eye(3), np.ones((3, 2)), ranks)
    with pytest.raises(ValueError, match="`input_values`"):
        spectral_bounds(np.eye(3), np.ones(3))
    with pytest.raises(ValueError, match="`values`"):
        expected_gains(np.ones(3), np.eye(3))


@every_sure
def test_sampling_and_attack_agree_with_the_theorem(name):
    statement = STATEMENTS[name]
    names = ("power law", "fewer samples than inputs")
    regimes = {each: statement.regimes[each] for each in names}
    report = verify(statement, trials=60, key=jax.random.key(0), settings=regimes)
    assert report.verdict is Verdict.CONSISTENT
    witness = attack(statement, key=jax.random.key(0), restarts=4, steps=400)
    assert 0.99 <= witness.ratio <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(STATEMENTS) - set(SURE)))
def test_random_layers_agree_with_averages_and_limits(name):
    report = verify(STATEMENTS[name], trials=1_300, key=jax.random.key(0))
    assert report.verdict is Verdict.CONSISTENT
    assert all(len(regime.larger) in (0, 2) for regime in report.statements[0].regimes)


def test_settings_grow_with_their_spectra():
    enlarged = SETTING.enlarged(3)
    assert (enlarged.input_values.size, enlarged.values.size, enlarged.rank) == (24, 15, 6)
    for one, other in itertools.product((np.min, np.max, np.mean), ("input_values", "values")):
        assert one(getattr(enlarged, other)) == pytest.approx(one(getattr(SETTING, other)))
