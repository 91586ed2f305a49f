"""Few bits and low rank of what they miss, against closed forms in NumPy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from lowrank_theory import strategies
from lowrank_theory.approximations import LowRank, Product, Quantised
from lowrank_theory.mixtures import (
    LowRankAndQuantised,
    QuantisedFactors,
    low_rank_and_quantised,
)
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import GPTQ, RoundToNearest, round_to_nearest
from lowrank_theory.recovery import (
    AbstractMethod,
    ActivationWeighted,
    DiagonalQERA,
    Need,
    TruncatedSVD,
)
from tolerance import assert_close

INPUTS, OUTPUTS, RANK = 16, 10, 3
SHARE = 1.01 * RANK * (INPUTS + OUTPUTS) / (INPUTS * OUTPUTS)
RANDOM = np.random.default_rng(0)
W = RANDOM.standard_t(4, (INPUTS, OUTPUTS))
ROWS = RANDOM.standard_normal((80, INPUTS)) @ (
    RANDOM.standard_normal((INPUTS, INPUTS)) / np.arange(1, INPUTS + 1)
)
GRAM = ROWS.T @ ROWS
SEEN = Observed(weights=W, activations=ROWS)
LEVELS = RoundToNearest((2,))


def made(ladder: Any, observed: Observed = SEEN) -> Any:
    return ladder.sweep(observed).at(0).approximation


def dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.materialise())


def truncated(matrix: np.ndarray, rank: int = RANK) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def lost(matrix: Any) -> float:
    return float(np.linalg.norm(ROWS @ (W - dense(matrix))))


def weighed(root: np.ndarray, rest: np.ndarray) -> np.ndarray:
    return np.linalg.solve(root, truncated(root @ rest))


def half(gram: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(gram)
    return (vectors * np.sqrt(values)) @ vectors.T


FORMULAS = {
    "LoRC": (TruncatedSVD(), np.eye(INPUTS)),
    "LQER": (DiagonalQERA(), np.diag(np.sqrt(np.diag(GRAM)))),
    "QERA": (ActivationWeighted(), half(GRAM)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_one_step_is_the_published_formula(name):
    method, root = FORMULAS[name]
    found = made(LowRankAndQuantised(LEVELS, (SHARE,), method, None, 1))
    rest = W - dense(round_to_nearest(W, 2))
    levels, low_rank = found.parts
    np.testing.assert_array_equal(levels.codes, round_to_nearest(W, 2).codes)
    assert_close(dense(low_rank), weighed(root, rest), condition=np.linalg.cond(root) ** 2, scale=1)
    assert low_rank.rank == RANK


def test_what_is_left_is_the_tail_of_the_rest():
    found = made(LowRankAndQuantised(LEVELS, (SHARE,), ActivationWeighted(), None, 1))
    values = np.linalg.svd(ROWS @ (W - dense(found.parts[0])), compute_uv=False)
    assert_close(lost(found), np.linalg.norm(values[RANK:]), condition=100)


@pytest.mark.slow
@pytest.mark.parametrize("factor_bits", [None, 4])
@pytest.mark.parametrize("quantiser", [LEVELS, GPTQ(LEVELS)], ids=["nearest", "gptq"])
def test_more_steps_never_hurt(quantiser, factor_bits):
    errors = [
        lost(made(LowRankAndQuantised(quantiser, (SHARE,), factor_bits=factor_bits, steps=steps)))
        for steps in (1, 2, 4, 8)
    ]
    assert all(np.diff(errors) <= 1e-9 * errors[0])
    assert errors[-1] < 0.95 * errors[0]
    assert errors[0] < lost(made(quantiser))


def test_a_step_that_hurts_is_not_returned():
    """A quantiser that gets worse: two bits at first, and then one."""
    bits = iter((2, 1, 1))
    factors = LowRank(np.zeros((INPUTS, 1)), np.zeros((1, OUTPUTS)))
    found = low_rank_and_quantised(
        W, GRAM, lambda rest: round_to_nearest(rest, next(bits)), lambda _: factors, steps=3
    )
    np.testing.assert_array_equal(dense(found), dense(round_to_nearest(W, 2)))


def test_singular_moments_need_no_inverse():
    rows = ROWS[:5] * (np.arange(INPUTS) != 3)
    for seen in (
        Observed(weights=W, activations=rows),
        Observed(weights=W, activations=0 * rows),
        Observed(weights=W, activations=rows, bias=np.ones(OUTPUTS)),
        Observed(weights=0 * W, activations=rows),
    ):
        for bits in (None, 3):
            ladder = LowRankAndQuantised(GPTQ(LEVELS), (SHARE,), factor_bits=bits, steps=3)
            sweep = ladder.sweep(seen)
            assert np.isfinite(dense(sweep.at(0).approximation)).all()
            assert float(sweep.squared_errors[0]) <= float(sweep.squared_norm) + 1e-12
    few = LowRankAndQuantised(LEVELS, (0.99,), factor_bits=None, steps=1)
    rest = made(few, Observed(weights=W, activations=rows))
    assert_close(rows @ dense(rest), rows @ W, scale=10, condition=1e7)


def test_rounded_factors_are_rounded_and_paid_for():
    for name in (4, 8):
        found = made(LowRankAndQuantised(LEVELS, (SHARE,), factor_bits=name, steps=1))
        _, product = found.parts
        assert isinstance(product, Product)
        for factor, entries in ((product.left, INPUTS), (product.right, OUTPUTS)):
            assert isinstance(factor, Quantised) and factor.bits == name
            assert factor.storage.ideal_bits == RANK * entries * name + 64 * RANK
        assert found.storage.bytes == sum(part.storage.bytes for part in found.parts)
    plain = made(LowRankAndQuantised(LEVELS, (SHARE,), factor_bits=None, steps=1))
    assert lost(found) == pytest.approx(lost(plain), rel=0.02)
    assert isinstance(plain.parts[1], LowRank)


def test_the_second_factor_makes_up_for_the_first():
    found = made(QuantisedFactors((3,), (SHARE,)))
    left, right = dense(found.left), dense(found.right)
    best = np.linalg.lstsq(ROWS @ left, ROWS @ W)[0]
    # One scale for each direction: no level is farther than half of it, but where it is clipped.
    scales = np.asarray(found.right.scales)
    inside = np.abs(best) < 3.5 * scales
    assert np.all(np.abs(best - right)[inside] <= (scales / 2 * np.ones_like(best))[inside] * 1.001)
    assert inside.mean() > 0.8


@pytest.mark.slow
def test_factors_of_eight_bits_lose_what_low_rank_loses():
    sweep = QuantisedFactors((8,), (SHARE,)).sweep(SEEN)
    values = np.linalg.svd(ROWS @ W, compute_uv=False)
    assert np.sqrt(sweep.squared_errors[0]) == pytest.approx(
        np.linalg.norm(values[RANK:]), rel=0.01
    )
    assert sweep.name(0) == "rank 3, factors of 8 bits"
    names = [QuantisedFactors((1, 4), (0.1, 0.11, 0.9)).sweep(SEEN).name(k) for k in range(4)]
    assert names[0] == "rank 1, factors of 1 bit" and len(set(names)) == 4


@pytest.mark.slow
@given(strategies.observed_layers())
def test_in_every_regime_low_rank_besides_and_more_steps_never_hurt(observed):
    seen = Observed(
        weights=observed.weights,
        activations=observed.activations,
        compressed_activations=observed.compressed_activations,
    )
    levels = GPTQ(LEVELS)
    errors = [
        float(ladder.sweep(seen).squared_errors[0])
        for ladder in (
            levels,
            *(LowRankAndQuantised(levels, (0.3,), factor_bits=None, steps=k) for k in (1, 3)),
        )
    ]
    assert np.all(np.isfinite(errors))
    assert all(np.diff(errors) <= 1e-9 * max(errors) + 1e-300)


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("of_rows", "of_weights"), [(300, -300), (-9, 0), (0, 200)])
@pytest.mark.parametrize(
    "ladder",
    [LowRankAndQuantised(GPTQ(LEVELS), (SHARE,), factor_bits=4, steps=3), QuantisedFactors((4,))],
    ids=["with levels", "alone"],
)
def test_powers_of_two_are_exact(ladder, of_rows, of_weights):
    scaled = Observed(weights=np.ldexp(W, of_weights), activations=np.ldexp(ROWS, of_rows))
    one, other = dense(made(ladder)), dense(made(ladder, scaled))
    np.testing.assert_array_equal(np.ldexp(other, -of_weights), one)


def test_needs_are_those_of_the_parts():
    methods: list[tuple[Any, AbstractMethod, set[Need]]] = [
        (LEVELS, TruncatedSVD(), set()),
        (LEVELS, DiagonalQERA(), {Need.MOMENTS}),
        (GPTQ(LEVELS), TruncatedSVD(), {Need.MOMENTS}),
        (LEVELS, ActivationWeighted(), {Need.MOMENTS}),
    ]
    for quantiser, method, needs in methods:
        assert LowRankAndQuantised(quantiser, low_rank=method).needs == needs
    alone = LowRankAndQuantised(LEVELS, (SHARE,), TruncatedSVD(), None, 1)
    found = made(alone, Observed(weights=W))
    values = np.linalg.svd(W - dense(found.parts[0]), compute_uv=False)
    assert_close(np.linalg.norm(W - dense(found)), np.linalg.norm(values[RANK:]), condition=10)
    assert QuantisedFactors(low_rank=TruncatedSVD()).needs == frozenset()


def test_the_least_squares_layer_is_what_is_approximated():
    inside = ROWS + RANDOM.standard_normal(ROWS.shape) / 4
    layer = np.linalg.lstsq(inside, ROWS @ W)[0]
    ladder = LowRankAndQuantised(LEVELS, (SHARE,), ActivationWeighted(), None, 2)
    found = made(ladder, Observed(weights=W, activations=ROWS, compressed_activations=inside))
    wanted = made(ladder, Observed(weights=layer, activations=inside))
    assert_close(dense(found), dense(wanted), scale=1, condition=np.linalg.cond(inside) ** 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankAndQuantised(shares=(1.5,)), "`shares` must lie strictly between 0 and 1"),
        (lambda: LowRankAndQuantised(factor_bits=9), "`factor_bits` must be an integer from 1 to"),
        (lambda: LowRankAndQuantised(steps=0), "`steps` must be an integer >= 1; got 0"),
        (lambda: QuantisedFactors(bits=()), "`bits` is empty"),
        (
            lambda: LowRankAndQuantised().sweep(Observed(weights=W)),
            "`LowRankAndQuantised` needs what the layer sees: give",
        ),
        (
            lambda: low_rank_and_quantised(W, ROWS, lambda w: round_to_nearest(w, 2), lambda w: w),
            r"`gram` must be \(16, 16\)",
        ),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
