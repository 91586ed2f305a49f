"""Noise that is not equally loud: exact cases, laws, and the bounds against plain formulas."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import numpy as np
import pytest

from laws import scales
from lowrank_theory.generators import noise
from lowrank_theory.problems import Setting
from lowrank_theory.theorems import planted_rank
from lowrank_theory.theorems.heteroskedastic_noise import ScaledNoise, heteroskedastic_noise
from lowrank_theory.theorems.planted_rank import mean_worst_square
from lowrank_theory.theorems.unequal_noise import (
    Loudness,
    UnequalProblem,
    UnequalSetting,
    unequal_noise,
)
from lowrank_theory.verification import Verdict, verify
from statements import by_name, drawn, in_float64, sides

pytestmark = pytest.mark.thinned(2)

STATEMENTS = by_name(unequal_noise)
every_statement = pytest.mark.parametrize("name", STATEMENTS)
SHAPE = Setting(samples=20, inputs=8, outputs=6, rank=2)
ROWS, COLUMNS = np.geomspace(1, 0.2, 20), np.geomspace(1, 0.1, 6)
SETTING = UnequalSetting(SHAPE, row_scales=ROWS, column_scales=COLUMNS)
DELTA = 0.05


def by_hand(norm: float, size: float, scales: np.ndarray, q: int, rank: int) -> tuple[float, float]:
    """Both bounds, not squared, from the formulas of the note."""
    c = np.sort(scales)[::-1]
    d = min(q, c.size)
    k = max(min(rank, d - rank), 0)
    means = [norm * np.linalg.norm(c[i:]) + size * c[i] for i in range(c.size)]
    squares = [means[i] ** 2 + (norm * c[i]) ** 2 if i < d else 0 for i in range(c.size)]
    energy = size**2 * np.sum(c**2)
    total = 4 * min(sum(squares[:k]), energy) + min(sum(squares[:rank]), energy)
    t, steep = math.sqrt(2 * math.log(1 / DELTA)), math.sqrt(5) if k else 1.0
    first = math.sqrt(4 * k + min(rank, d)) * (means[0] + t * norm * c[0])
    return math.sqrt(total), min(first, math.sqrt(total) + steep * t * norm * c[0])


@pytest.mark.parametrize("rank", [1, 2, 4, 6])
@pytest.mark.parametrize("q", [3, 6, 40])
def test_loudness_against_the_note(rank, q):
    scales = np.array([0.3, 2.0, 0.0, 1.0, 1.0, 0.1])
    loudness = Loudness(1.5, 4.0, scales, float(q))
    expected, likely = by_hand(1.5, 4.0, scales, q, rank)
    assert in_float64(loudness.expected, rank) == pytest.approx(expected)
    assert in_float64(loudness.likely, rank, DELTA) == pytest.approx(likely)


def test_both_sides_against_numpy():
    instance = drawn(SETTING)
    problem = instance.problem
    rows = np.asarray(problem.truth.layer_inputs)
    left, _, _ = np.linalg.svd(rows, full_matrices=False)
    values = np.linalg.svd(left.T * ROWS, compute_uv=False)
    u, s, v = np.linalg.svd(left.T @ np.asarray(problem.observed.outputs), full_matrices=False)
    clean = rows @ np.asarray(problem.truth.target_weights)
    error = np.sum((left @ (u[:, :2] * s[:2]) @ v[:2] - clean) ** 2)
    expected, likely = by_hand(values[0], float(np.linalg.norm(values)), COLUMNS, 8, 2)
    assert sides(STATEMENTS["expectation"], instance) == pytest.approx((error, expected**2))
    found = sides(STATEMENTS["gaussian"], instance, failure_probability=DELTA)
    assert found == pytest.approx((error, likely**2))


def test_rank_one_is_five_times_the_square_of_the_separable_norm():
    setting = UnequalSetting(
        dataclasses.replace(SHAPE, rank=1), row_scales=ROWS, column_scales=COLUMNS
    )
    instance = drawn(setting)
    problem = instance.problem
    left, _, _ = np.linalg.svd(np.asarray(problem.truth.layer_inputs), full_matrices=False)
    scaled = ScaledNoise(
        np.ones((20, 6)), np.outer(ROWS, COLUMNS), left, np.asarray(True), np.asarray(True)
    )
    edge = float(heteroskedastic_noise.separable.bound(scaled).value)
    _, bound = sides(STATEMENTS["gaussian"], instance)
    assert bound <= 5 * edge**2 * (1 + 1e-12)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_scales_are_nearly_those_of_equal_noise(rank):
    loudness = Loudness(1.0, math.sqrt(60), np.ones(60), 60.0)
    equal = in_float64(mean_worst_square, 60.0, 60.0, rank)
    assert in_float64(loudness.expected, rank) ** 2 == pytest.approx(equal, rel=0.02)


def test_a_loud_output_counts_once():
    """However loud it is, a higher rank pays for the others only."""
    for loud in (10.0, 1e3, 1e6):
        scales = np.r_[loud, np.ones(29)]
        ranks = [in_float64(Loudness(1.0, 5.0, scales, 25.0).expected, r) ** 2 for r in (1, 2, 3)]
        quiet = in_float64(Loudness(1.0, 5.0, np.ones(29), 25.0).expected, 1) ** 2
        for fewer, more in itertools.pairwise(ranks):
            assert more - fewer <= quiet * (1 + 1e-6)


def test_never_above_the_bound_for_the_loudest_scale():
    """That of `heteroskedastic_noise.separable` in `planted_rank.any_noise`."""
    random = np.random.default_rng(0)
    for _ in range(4):
        scales = np.exp(random.standard_normal(6))
        loud = Loudness(1.0, 3.0, np.full(6, scales.max()), 9.0)
        for rank in (1, 3, 6):
            for bound in ("expected", "likely"):
                more = () if bound == "expected" else (DELTA,)
                value = in_float64(getattr(Loudness(1.0, 3.0, scales, 9.0), bound), rank, *more)
                assert value <= in_float64(getattr(loud, bound), rank, *more) * (1 + 1e-12)


@pytest.mark.slow
def test_at_full_rank_the_mean_is_exact():
    setting = UnequalSetting(
        dataclasses.replace(SHAPE, rank=6), row_scales=ROWS, column_scales=COLUMNS
    )
    ratios = []
    for seed in range(200):
        realised, bound = sides(STATEMENTS["expectation"], drawn(setting, seed))
        ratios.append(realised / bound)
    assert np.mean(ratios) == pytest.approx(1, abs=float(4 * np.std(ratios) / math.sqrt(200)))


@every_statement
def test_units(name):
    instance = drawn(SETTING)
    truth, observed = instance.problem.truth, instance.problem.observed

    def at(unit):
        def scaled(part: Any, *names: str) -> Any:
            arrays = {each: unit * np.asarray(getattr(part, each)) for each in names}
            return dataclasses.replace(part, **arrays)

        problem = dataclasses.replace(
            instance.problem,
            truth=scaled(truth, "target_weights", "noise"),
            observed=scaled(observed, "weights", "outputs"),
        )
        louder = dataclasses.replace(scaled(instance, "column_scales"), problem=problem)
        return sides(STATEMENTS[name], louder)

    scales(at, 2)


@every_statement
def test_hypotheses(name):
    instance = drawn(SETTING)
    assert bool(STATEMENTS[name].bound(instance).holds)
    truth = dataclasses.replace(instance.problem.truth, independent_noise=np.asarray(False))
    wrong = {
        "the noise over its scales is i.i.d. Gaussian": {"gaussian": np.asarray(False)},
        "no scale is negative": {"row_scales": ROWS - 0.3},
        "there is no noise where its scale is zero": {"column_scales": COLUMNS * (COLUMNS < 1)},
        "the noise does not depend on the layer": {
            "problem": dataclasses.replace(instance.problem, truth=truth)
        },
    }
    for hypothesis, change in wrong.items():
        bound = STATEMENTS[name].bound(dataclasses.replace(instance, **change))
        failing = [h.name for h in bound.hypotheses if not bool(h.holds)]
        if "negative" in hypothesis:  # which stands for no noise either
            failing = failing[:1]
        assert len(failing) == 1
        assert failing[0] == hypothesis or "depend" in failing[0]
        assert float(bound.value) == math.inf


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="`column_scales` are standard deviations"):
        UnequalSetting(SHAPE, column_scales=-COLUMNS)
    problem = drawn(SETTING).problem
    with pytest.raises(ValueError, match="`row_scales` has 19 samples, but `noise` has 20"):
        UnequalProblem(problem, ROWS[1:], COLUMNS)


def test_better_than_one_scale_where_scales_are_unequal():
    instance = drawn(SETTING)
    law = dataclasses.replace(instance.problem.truth, noise_scale=np.asarray(1.0))
    problem = dataclasses.replace(instance.problem, truth=law)
    _, one_scale = sides(planted_rank.sub_gaussian, problem)
    _, all_scales = sides(STATEMENTS["gaussian"], instance)
    assert all_scales < one_scale / 2
    assert not noise.Heteroskedastic(1.0).sub_gaussian_scale > 1


@pytest.mark.slow
@every_statement
def test_verification_is_consistent(name):
    report = verify(
        STATEMENTS[name], trials=600, key=jax.random.key(0), settings={"both unequal": SETTING}
    )
    assert report.verdict is Verdict.CONSISTENT
