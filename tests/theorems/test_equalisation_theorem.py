"""Equalised channels and kept means, against NumPy, by hand and by what the code does."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_theory.data_constrained import ChannelStatistics, equalising_factors, rectified
from lowrank_theory.quantisation import round_to_nearest
from lowrank_theory.theorems._joined import JoinedLayers, JoinedSetting
from lowrank_theory.theorems._normal_channels import NormalChannels, NormalSetting
from lowrank_theory.theorems.equalisation import equalisation
from lowrank_theory.verification.attack import replay
from statements import by_name, drawn, in_float64, sides
from tolerance import approx, assert_close

STATEMENTS = by_name(equalisation)
ROOT = Path(__file__).parents[2]


def joined(seed: int, *, bits: int = 4, powers: bool = False) -> JoinedLayers:
    """Layers of few channels, and factors."""
    random = np.random.default_rng(seed)
    factors = np.exp(random.standard_normal(5))
    factors = 2.0 ** np.rint(np.log2(factors)) if powers else factors
    first, second = random.standard_normal((3, 5)), random.standard_normal((5, 2))
    return JoinedLayers(first, second, random.standard_normal((4, 3)), factors, bits=bits)


def numbers(layers: JoinedLayers) -> tuple[np.ndarray, ...]:
    parts = layers.first, layers.second, layers.activations, layers.factors
    return tuple(np.asarray(part, float) for part in parts)


# --- channels between two layers ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_both_layers_rounded_against_numpy(seed):
    bits = 2 + seed
    layers = joined(seed, bits=bits)
    first, second, rows, factors = numbers(layers)
    levels = 2 ** (bits - 1) - 1
    p, q = np.abs(first).max(axis=0) * factors, np.abs(second).max(axis=1) / factors
    ranges = float(p.max()), float(q.max())

    def rounded(weights: np.ndarray) -> np.ndarray:
        step = np.abs(weights).max() / levels
        return step * np.rint(weights / step)

    exact = np.maximum(rows @ first, 0) @ second
    found = np.maximum(rows @ rounded(first * factors), 0) @ rounded(second / factors[:, None])
    each = [
        ranges[0] * min(b + ranges[1] / (2 * levels), ranges[1])
        + ranges[1] * min(a + ranges[0] / (2 * levels), ranges[0])
        - ranges[0] * ranges[1] / (2 * levels)
        for a, b in zip(p, q, strict=True)
    ]
    seen = np.abs(rows).sum(axis=1).max()
    bound = float(seen * sum(each) / (2 * levels))
    realised = float(np.abs(found - exact).max())
    assert sides(STATEMENTS["outputs"], layers) == approx((realised, bound), scale=30)
    assert realised <= bound
    worst = float(ranges[0] * q.sum() + ranges[1] * p.sum())
    worst += 5 * ranges[0] * ranges[1] / (2 * levels)
    assert bound <= seen * worst / (2 * levels)
    roots = np.sqrt(p * q)
    least = float(2 * roots.max() * roots.sum() + 5 * roots.max() ** 2 / (2 * levels))
    assert sides(STATEMENTS["best_factors"], layers) == approx((worst, least), scale=30)
    assert sides(STATEMENTS["equalised"], layers) == approx((least, least), scale=30)
    products = ranges[0] * ranges[1], float((p * q).max())
    assert sides(STATEMENTS["ranges"], layers) == approx(products, scale=30)


@pytest.mark.parametrize("seed", range(3))
def test_factors_change_nothing_and_powers_of_two_no_bit(seed):
    first, second, rows, _ = numbers(joined(seed))
    exact = np.maximum(rows @ first, 0) @ second
    for powers in (False, True):
        layers = joined(seed, powers=powers)
        with jax.enable_x64(True):
            scaled = np.asarray(layers.outputs(layers.scaled()))
            same = np.asarray(layers.outputs((layers.first, layers.second)))
        assert_close(scaled, exact, scale=float(np.abs(exact).max()))
        assert not powers or np.array_equal(scaled, same)
        norm = float(np.linalg.norm(exact))
        assert sides(STATEMENTS["same_function"], layers) == approx((norm, norm), scale=10)


def test_the_statements_speak_of_what_the_code_does():
    """Equalising factors, and grids for whole matrices."""
    layers = joined(1)
    with jax.enable_x64(True):
        first, second = (np.asarray(each) for each in layers.ranges())
        found = np.asarray(layers.equalising())
        scaled, rounded = layers.scaled(), layers.rounded()
        for weights, levels in zip(scaled, rounded, strict=True):
            code = round_to_nearest(weights, 4, axis=None, clipped=False)
            assert_close(np.asarray(levels), np.asarray(code.materialise()))
    assert_close(found, equalising_factors(first, second))


def test_a_channel_that_is_cut_off_is_outside_the_equality():
    layers = JoinedLayers([[1.0, 0.0]], [[1.0], [9.0]], [[1.0]])
    assert sides(STATEMENTS["equalised"], layers)[1] == math.inf
    assert sides(STATEMENTS["ranges"], layers) == (9, 1)
    one_bit = JoinedLayers([[1.0, 2.0]], [[1.0], [9.0]], [[1.0]], bits=1)
    for name in ("outputs", "equalised"):
        assert sides(STATEMENTS[name], one_bit)[1] == math.inf
    assert sides(STATEMENTS["best_factors"], one_bit)[1] == -math.inf


def test_weights_half_way_attain_the_worst_case():
    """Three levels above zero; the largest weights are where nothing is seen of them."""
    layers = JoinedLayers([[3.0, 0.0], [2.5, 0.5]], [[3.0, 2.5], [0.0, 0.5]], [[0.0, 1.0]], bits=3)
    first, second = (np.asarray(each) for each in (layers.first, layers.second))
    up = np.floor(first + 0.5), np.floor(second + 0.5)
    with jax.enable_x64(True):
        realised = float(STATEMENTS["outputs"].loss(layers, up))
    assert realised == 3 * 3 - 2.5**2 + 1 - 0.5**2
    assert sides(STATEMENTS["outputs"], layers)[1] == approx(realised)


@given(st.lists(st.floats(-2, 2), min_size=5, max_size=5))
def test_no_factors_are_better_than_those_that_equalise(moved):
    first, second, rows, _ = numbers(joined(0))
    p, q = np.abs(first).max(axis=0), np.abs(second).max(axis=1)
    factors = np.sqrt(q / p) * np.exp(moved)
    layers = JoinedLayers(first, second, rows, factors)
    realised, bound = sides(STATEMENTS["best_factors"], layers)
    assert realised >= bound * (1 - 1e-12)
    if np.ptp(moved) > 1e-3:
        assert realised > bound


# --- normal channels ------------------------------------------------------------------------------


def channels(seed: int) -> NormalChannels:
    return drawn(NormalSetting(30, 4, 3, ratio=0.5), seed)


@pytest.mark.parametrize("seed", range(3))
def test_moments_against_numpy_and_against_the_closed_forms_of_the_code(seed):
    instance = channels(seed)
    mean, deviation, samples, change, shift = (
        np.asarray(x, float)
        for x in (
            instance.means,
            instance.deviations,
            instance.samples,
            instance.change,
            instance.shift,
        )
    )
    known = rectified(ChannelStatistics(mean, deviation))
    first, variance = np.asarray(known.mean), np.asarray(known.deviation) ** 2
    rows = np.maximum(samples, 0)
    wanted = {
        "rectified_mean": (rows.mean(axis=0).sum(), first.sum()),
        "rectified_variance": (rows.var(axis=0, ddof=1).sum(), variance.sum()),
        "any_shift": (np.mean(np.sum((rows @ change + shift) ** 2, axis=1)),) * 2,
        "kept_mean": (
            np.mean(np.sum(((rows - first) @ change) ** 2, axis=1)),
            np.sum(variance * np.sum(change**2, axis=1)),
        ),
    }
    for name, pair in wanted.items():
        found = sides(STATEMENTS[name], instance)
        assert found == approx(tuple(map(float, pair)), condition=100)


def test_every_other_shift_adds_its_square():
    """In the model: by exact moments of the channels, no samples."""
    instance, random = channels(0), np.random.default_rng(0)
    with jax.enable_x64(True):
        first, variance = (np.asarray(each) for each in instance.moments())
        best = STATEMENTS["kept_mean"].estimate(instance)
        least = in_float64(STATEMENTS["kept_mean"].formula, instance, best)
    best = np.asarray(best)
    change = np.asarray(instance.change)
    for shift in (best, np.zeros(3), random.standard_normal(3)):
        covariance = change.T @ (variance[:, None] * change)
        expected = np.trace(covariance) + np.sum((first @ change + shift) ** 2)
        assert expected == approx(least + np.sum((shift - best) ** 2), scale=100)


# --- the figure and the note ----------------------------------------------------------------------


def test_the_note_says_what_was_measured():
    made = json.loads((ROOT / "figures" / "equalisation.json").read_text())
    note = " ".join((ROOT / "paper_notes" / "equalisation.md").read_text().split())

    def mean(row: dict[str, Any], name: str, what: str = "largest") -> float:
        return row[name][what]["mean"]

    alike, unequal, more = (
        next(row for row in made["by_spread"] if row["spread"] == spread) for spread in (0, 1, 2)
    )
    for row, figures, bounds in ((unequal, "{:.2f}", "{:.0f}"), (more, "{:.2f}", "{:.2g}")):
        found = [mean(row, name) for name in ("one_grid", "equalised")]
        worst = [mean(row, name, "bound") for name in ("one_grid", "equalised")]
        assert "from " + " to ".join(map(figures.format, found)) in note
        assert "from " + " to ".join(f"{float(bounds.format(each)):g}" for each in worst) in note
        assert all(x < bound for x, bound in zip(found, worst, strict=True))
    assert f"gives {mean(unequal, 'each_output'):.2f}" in note
    found = [f"{mean(alike, name):.2f}" for name in ("one_grid", "equalised", "each_output")]
    assert f"{found[0]} and {found[1]}" in note and f"is better, {found[2]}" in note
    gains = {row["ratio"]: row["of_one_ratio"] for row in made["by_ratio"]}
    assert f"{gains[0]:.2f} for centred channels" in note
    assert f"{gains[1]:.1f} for $\\zeta = 1$, {gains[2]:.1f} for $\\zeta = 2$" in note
    for row in made["by_ratio"]:
        assert row["gain"]["high"] > row["of_one_ratio"]


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, s in STATEMENTS.items() if s.adversary])
def test_the_adversary_plays_inside_the_hypotheses(name):
    statement: Any = STATEMENTS[name]
    with jax.enable_x64(True):
        free = jax.tree.map(np.asarray, statement.adversary.start(key=jax.random.key(1)))
    assert 0 < replay(statement, free) <= 1


def test_what_is_trusted_is_not_assumed():
    one = np.ones(1)
    said = NormalChannels([[1.0]], one, one, [[1.0]], one, independent=True)
    stated = NormalChannels([[1.0], [2.0]], one, one, [[1.0]], one)
    for name in ("rectified_mean", "rectified_variance", "kept_mean"):
        assert sides(STATEMENTS[name], stated)[1] == math.inf
    assert sides(STATEMENTS["rectified_variance"], said)[1] == math.inf  # of one sample
    assert math.isfinite(sides(STATEMENTS["kept_mean"], said)[1])
    assert sides(STATEMENTS["any_shift"], stated) == approx((6.5, 6.5))


def test_settings_draw_what_they_say():
    equal = drawn(JoinedSetting(2, 3, 4, 2, bits=3))
    with jax.enable_x64(True):
        first, second = equal.scaled_ranges(equal.factors)
    assert_close(np.asarray(first), np.asarray(second))
    assert float(equal.bits) == 3
    plain = drawn(JoinedSetting(2, 3, 4, 2, equalised=0.0))
    assert_close(np.asarray(plain.factors), np.ones(4))
    assert float(np.min(np.asarray(channels(0).deviations))) > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JoinedLayers(np.eye(2), np.eye(3), np.eye(2)), "`second` has 3 channels"),
        (lambda: JoinedLayers(np.eye(2), np.eye(2), np.eye(3)), "`activations` has 3 inputs"),
        (
            lambda: JoinedLayers(np.eye(2), np.eye(2), np.eye(2), np.array([1.0, 0.0])),
            "`factors` must be positive; got 0",
        ),
        (lambda: JoinedLayers(np.eye(2), np.eye(2), np.eye(2), bits=9), "`bits` must be an int"),
        (lambda: JoinedSetting(1, 2, 0, 2), "`channels` must be an integer >= 1; got 0"),
        (lambda: NormalSetting(1, 2, 2), "`samples` must be an integer >= 2; got 1"),
        (
            lambda: NormalChannels(np.eye(2), np.ones(2), np.zeros(2), np.eye(2), np.ones(2)),
            "`deviations` must be positive; got 0",
        ),
        (
            lambda: NormalChannels(np.eye(2), np.ones(3), np.ones(2), np.eye(2), np.ones(2)),
            "`means` has 3 channels",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
