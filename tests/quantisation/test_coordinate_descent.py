"""Coordinate descent on codes and scales, against losses in full and all codes of tiny layers."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest

from lowrank_theory.approximations import Quantised
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import (
    GPTQ,
    ActivationAware,
    CoordinateDescent,
    RoundToNearest,
    coordinate_descent,
    gptq,
    round_to_nearest,
)
from lowrank_theory.recovery import dense_float64
from tolerance import assert_close

INPUTS, OUTPUTS = 7, 3
RANDOM = np.random.default_rng(0)
W = RANDOM.standard_t(4, (INPUTS, OUTPUTS))
ROWS = RANDOM.standard_normal((40, INPUTS)) @ (
    RANDOM.standard_normal((INPUTS, INPUTS)) / np.arange(1, INPUTS + 1)
)
GRAM = ROWS.T @ ROWS

GRIDS = [
    {"bits": 1},
    {"bits": 2},
    {"bits": 3, "group": 3},
    {"bits": 2, "group": 2, "axis": 1, "symmetric": False},
    {"bits": 3, "axis": None},
    {"bits": 2, "symmetric": False},
]
grids = pytest.mark.parametrize("grid", GRIDS, ids=str)


def losses(matrix, weights: Any = W, gram: Any = GRAM) -> np.ndarray:
    errors = weights - np.asarray(matrix, float)
    return np.einsum("io,ij,jo->o", errors, gram, errors)


def by_losses(levels: Quantised, sweeps: int) -> np.ndarray:
    """Each code by all losses, each scale by the parabola through three."""
    scales = np.array(levels.scales)
    zeros = None if levels.zeros is None else np.array(levels.zeros)
    kept = 1.0 if levels.input_scales is None else np.asarray(levels.input_scales)[:, None]
    middle = 0.5 if levels.bits == 1 else 2.0 ** (levels.bits - 1)

    def spread(groups):
        if levels.group is None:
            return groups
        return np.repeat(groups, levels.group, axis=levels.axis)[:INPUTS, :OUTPUTS]

    def matrix(codes):
        zero = middle if zeros is None else spread(zeros)
        return kept * spread(scales) * (codes - zero)

    def total(codes):
        return losses(matrix(codes)).sum()

    def best_codes(codes):
        for i, o in np.ndindex(codes.shape):
            choices = [np.array(codes) for _ in range(2**levels.bits)]
            for code, choice in enumerate(choices):
                choice[i, o] = code
            codes = choices[int(np.argmin([total(choice) for choice in choices]))]
        return codes

    def move_to_vertex(array, place, codes):
        middle, found = array[place], []
        for step in (-1, 0, 1):
            array[place] = middle + step
            found.append(total(codes))
        bent = found[0] - 2 * found[1] + found[2]
        array[place] = middle + (found[0] - found[2]) / (2 * bent)

    starts = [np.asarray(each.unpacked(), float) for each in (levels, gptq(W, GRAM, levels))]
    first, second = map(losses, map(matrix, starts))
    taken = second < first if levels.axis == 0 else np.full(OUTPUTS, second.sum() < first.sum())
    codes = np.where(taken, starts[1], starts[0])
    for _ in range(sweeps):
        codes = best_codes(codes)
        for place in np.ndindex(scales.shape):
            move_to_vertex(scales, place, codes)
            if zeros is not None:
                move_to_vertex(zeros, place, codes)
    return matrix(best_codes(codes))


@grids
def test_each_step_is_the_best_of_all(grid):
    levels = round_to_nearest(W, **grid)
    found = coordinate_descent(W, GRAM, levels, sweeps=2)
    assert_close(np.asarray(found.materialise()), by_losses(levels, 2), condition=1e6)


def test_inputs_that_were_scaled_stay_so():
    sizes = np.exp2(RANDOM.integers(-2, 2, INPUTS)).astype(float)
    plain = round_to_nearest(W / sizes[:, None], 2)
    levels = Quantised.of(plain.unpacked(), plain.scales, None, sizes, bits=2)
    found = coordinate_descent(W, GRAM, levels, sweeps=2)
    np.testing.assert_array_equal(found.input_scales, sizes)
    assert_close(np.asarray(found.materialise()), by_losses(levels, 2), condition=1e6)


@pytest.mark.parametrize("grid", GRIDS[2:], ids=str)
def test_nothing_is_lost_beside_levels_or_gptq(grid):
    """Of each output, where it has grids of its own; in more inputs than one block has."""
    random = np.random.default_rng(1)
    weights = random.standard_t(4, (70, 5)).astype(np.float32)
    rows = random.standard_normal((50, 70)) / np.arange(1, 71)  # fewer than inputs
    gram = rows.T @ rows
    levels = round_to_nearest(weights, **grid, importance=np.diag(gram))
    made = [gptq(weights, gram, levels), levels, coordinate_descent(weights, gram, levels)]
    lost = np.stack([losses(each.materialise(), weights, gram) for each in made])
    if levels.axis != 0:
        lost = lost.sum(axis=1, keepdims=True)
    assert np.all(lost[2] <= lost[:2] * (1 + 1e-4))
    assert np.all(lost[2].sum() < 0.95 * lost[:2].sum(axis=1))


def test_no_layer_is_better_than_the_best_of_all_codes():
    """The best scale of each of the 256 codes of four inputs is known in closed form."""
    codes = np.array(list(itertools.product(range(-2, 2), repeat=4)), float).T
    ratios = []
    for seed in range(30):
        random = np.random.default_rng(seed)
        weights, rows = random.standard_normal((4, 1)), random.standard_normal((9, 4))
        gram = rows.T @ rows
        slopes, curvatures = (weights.T @ gram @ codes)[0], np.sum(codes * (gram @ codes), axis=0)
        gains = np.divide(slopes**2, curvatures, where=curvatures > 0, out=np.zeros(256))
        least = (weights.T @ gram @ weights).item() - gains.max()
        levels = round_to_nearest(weights, 2)
        found = coordinate_descent(weights, gram, levels)
        made = [each.materialise() for each in (found, levels)]
        ratios.append([losses(each, weights, gram)[0] / least for each in made])
    best, nearest = np.array(ratios).T
    assert np.all(best >= 1 - 1e-9)
    assert np.median(best) < 1.2 < 1.4 < np.median(nearest)


@pytest.mark.parametrize("grid", GRIDS[:3], ids=str)
def test_where_inputs_are_uncorrelated_codes_stay_the_nearest(grid):
    """Scales alone are learned, and lose no more than those by the weights."""
    gram = np.diag(RANDOM.random(INPUTS))
    levels = round_to_nearest(W, **grid)
    found = coordinate_descent(W, gram, levels)
    middle = 0.5 if found.bits == 1 else 2.0 ** (found.bits - 1)
    rows = np.arange(INPUTS) // (found.group or INPUTS)
    scale = np.asarray(found.scales)[rows]
    for code in range(2**found.bits):
        other = np.abs(scale * (code - middle) - W)
        assert np.all(np.abs(np.asarray(found.materialise()) - W) <= other * (1 + 1e-9))
    lost = [losses(each.materialise(), gram=gram) for each in (found, levels)]
    assert np.all(lost[0] <= lost[1] * (1 + 1e-9))
    assert lost[0].sum() < lost[1].sum()


def test_inputs_that_nothing_excites_keep_their_codes():
    gram = np.zeros((INPUTS, INPUTS))
    gram[2:, 2:] = GRAM[2:, 2:]
    levels = round_to_nearest(W, 3)
    found = coordinate_descent(W, gram, levels)
    np.testing.assert_array_equal(found.unpacked()[:2], levels.unpacked()[:2])
    nothing = coordinate_descent(W, 0 * gram, levels)
    np.testing.assert_array_equal(nothing.materialise(), levels.materialise())


def test_programs_and_stacks_are_as_single_calls():
    stack = RANDOM.standard_normal((2, INPUTS, OUTPUTS)).astype(np.float32)
    grams = np.stack([GRAM, np.eye(INPUTS)]).astype(np.float32)

    def layer(weights, gram):
        return coordinate_descent(weights, gram, round_to_nearest(weights, 2), sweeps=3)

    mapped = jax.vmap(layer)(stack, grams)
    for k, given in enumerate(zip(stack, grams, strict=True)):
        one, again = layer(*given), jax.jit(layer)(*given)
        for leaf, other, of_stack in zip(*map(jax.tree.leaves, (one, again, mapped)), strict=True):
            np.testing.assert_array_equal(leaf, other)
            np.testing.assert_array_equal(leaf, of_stack[k])


@pytest.mark.parametrize(("of_rows", "of_weights"), [(7, 0), (0, -9), (-300, 300)])
def test_powers_of_two_scale_the_scales(of_rows, of_weights):
    once = coordinate_descent(W, GRAM, round_to_nearest(W, 2))
    weights = np.ldexp(W, of_weights)
    gram = np.ldexp(GRAM, 2 * of_rows)
    again = coordinate_descent(weights, gram, round_to_nearest(weights, 2))
    np.testing.assert_array_equal(once.codes, again.codes)
    np.testing.assert_array_equal(np.ldexp(once.scales, of_weights), again.scales)


def made_by(sweep) -> Quantised:
    made = sweep.at(0).approximation
    assert isinstance(made, Quantised)
    return made


def test_it_is_a_quantiser_beside_others():
    """With a free bias moments are about the mean; input scales come from another quantiser."""
    rows = ROWS + 3
    observed = Observed(weights=W, activations=rows, bias=np.zeros(OUTPUTS))
    method = CoordinateDescent(RoundToNearest((2, 3)), sweeps=4)
    sweep = method.sweep(observed)
    centred = rows - rows.mean(axis=0)
    wanted = coordinate_descent(W, centred.T @ centred, round_to_nearest(W, 2), sweeps=4)
    assert_close(dense_float64(made_by(sweep)), np.asarray(wanted.materialise()))
    for other in (method.levels, GPTQ(method.levels)):
        assert np.all(sweep.squared_errors < other.sweep(observed).squared_errors)
    scaled = CoordinateDescent(ActivationAware(RoundToNearest((2,))))
    assert scaled.sizes == (2,)
    made = made_by(scaled.sweep(Observed(weights=W, activations=rows)))
    assert made.input_scales is not None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CoordinateDescent(sweeps=0), "`sweeps` must be"),
        (lambda: coordinate_descent(W, ROWS, round_to_nearest(W, 3)), r"`gram` must be \(7, 7\)"),
        (lambda: coordinate_descent(W, GRAM, round_to_nearest(W[1:], 3)), "`levels` has 6 inputs"),
        (
            lambda: CoordinateDescent().sweep(Observed(weights=W)),
            "`CoordinateDescent` needs what the layer sees: give",
        ),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
