"""GPTQ, against the recursion with inverses in NumPy."""

import jax
import numpy as np
import pytest

from lowrank_theory.approximations import Quantised
from lowrank_theory.calibration import Calibration
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import GPTQ, RoundToNearest, gptq, round_to_nearest
from tolerance import assert_close

INPUTS, OUTPUTS = 70, 5  # more than one block of inputs
RANDOM = np.random.default_rng(0)
W = RANDOM.standard_t(4, (INPUTS, OUTPUTS))
ROWS = RANDOM.standard_normal((200, INPUTS)) @ (
    RANDOM.standard_normal((INPUTS, INPUTS)) / np.arange(1, INPUTS + 1)
)
GRAM = ROWS.T @ ROWS

GRIDS = [
    ({"bits": 1}, True),
    ({"bits": 3, "group": 9}, False),
    ({"bits": 4, "group": 3, "axis": 1, "symmetric": False}, True),
    ({"bits": 2, "axis": None, "clipped": False}, False),
]
grids = pytest.mark.parametrize(("grid", "ordered"), GRIDS, ids=str)


def first(method: GPTQ, observed: Observed) -> Quantised:
    made = method.sweep(observed).at(0).approximation
    assert isinstance(made, Quantised)
    return made


def by_inverses(weights, gram, levels: Quantised, order, damping: float) -> np.ndarray:
    """The surgeon's update of all inputs to come, after each input."""
    every_code = [
        np.asarray(
            Quantised.of(
                np.full(levels.shape, code, np.uint8),
                levels.scales,
                levels.zeros,
                bits=levels.bits,
                group=levels.group,
                axis=levels.axis,
            ).materialise()
        )
        for code in range(2**levels.bits)
    ]
    damped = gram + damping * np.trace(gram) / len(gram) * np.eye(len(gram))
    left, made = weights.copy(), np.zeros_like(weights)
    for place, k in enumerate(order):
        inverse = np.linalg.inv(damped[np.ix_(order[place:], order[place:])])
        choices = np.stack([level[k] for level in every_code])
        nearest = np.abs(choices - left[k]).argmin(axis=0)
        made[k] = choices[nearest, np.arange(left.shape[1])]
        left[order[place:]] -= np.outer(inverse[:, 0] / inverse[0, 0], left[k] - made[k])
    return made


@grids
def test_codes_are_those_of_the_optimal_brain_surgeon(grid, ordered):
    levels = round_to_nearest(W, **grid)
    found = gptq(W, GRAM, levels, ordered=ordered)
    order = np.argsort(-np.diag(GRAM), kind="stable") if ordered else np.arange(INPUTS)
    assert_close(np.asarray(found.materialise()), by_inverses(W, GRAM, levels, order, 0.01))
    assert_close(found.scales, levels.scales)
    lost = [np.linalg.norm(ROWS @ (W - np.asarray(each.materialise()))) for each in (found, levels)]
    assert lost[0] < lost[1]


@grids
def test_uncorrelated_inputs_leave_the_nearest_levels(grid, ordered):
    levels = round_to_nearest(W, **grid)
    for gram in (np.diag(RANDOM.random(INPUTS)), np.zeros((INPUTS, INPUTS))):
        found = gptq(W, gram, levels, ordered=ordered)
        np.testing.assert_array_equal(found.codes, levels.codes)


def test_a_mean_counts_only_where_a_bias_is_not_free():
    rows = ROWS + 5
    centred = rows - rows.mean(axis=0)
    method = GPTQ(RoundToNearest((3,)))
    for bias, seen in ((None, rows), (np.zeros(OUTPUTS), centred)):
        found = first(method, Observed(weights=W, activations=rows, bias=bias))
        wanted = gptq(W, seen.T @ seen, round_to_nearest(W, 3))
        np.testing.assert_array_equal(found.codes, wanted.codes)


def test_what_the_compressed_layer_sees_decides():
    seen = ROWS + RANDOM.standard_normal(ROWS.shape) / 5
    method = GPTQ(RoundToNearest((4,)))
    found = first(method, Observed(weights=W, activations=ROWS, compressed_activations=seen))
    layer = np.linalg.lstsq(seen, ROWS @ W, rcond=None)[0]
    wanted = gptq(layer, seen.T @ seen, round_to_nearest(layer, 4))
    assert_close(
        np.asarray(found.materialise()),
        np.asarray(wanted.materialise()),
        condition=np.linalg.cond(seen) ** 2,
    )


def test_programs_and_stacks_are_as_single_calls():
    stack = RANDOM.standard_normal((2, 12, 4)).astype(np.float32)
    grams = np.stack([GRAM[:12, :12], np.eye(12)]).astype(np.float32)

    def layer(weights, gram):
        return gptq(weights, gram, round_to_nearest(weights, 3, group=5))

    mapped = jax.vmap(layer)(stack, grams)
    for k, given in enumerate(zip(stack, grams, strict=True)):
        one, again = layer(*given), jax.jit(layer)(*given)
        np.testing.assert_array_equal(one.codes, again.codes)
        np.testing.assert_array_equal(one.codes, mapped.codes[k])


@pytest.mark.parametrize(("of_rows", "of_weights"), [(7, 0), (0, -9), (-300, 300)])
def test_powers_of_two_leave_the_codes(of_rows, of_weights):
    weights = np.ldexp(W, of_weights)
    once = gptq(W, GRAM, round_to_nearest(W, 3, group=9))
    levels = round_to_nearest(weights, 3, group=9)
    again = gptq(weights, np.ldexp(GRAM, 2 * of_rows), levels)
    np.testing.assert_array_equal(once.codes, again.codes)


def test_inputs_that_were_scaled_are_rounded_as_they_are():
    """Scaling inputs, and the moments the other way, changes nothing but the damping."""
    sizes = np.exp2(RANDOM.integers(-3, 3, INPUTS)).astype(float)
    levels = round_to_nearest(W, 3)
    scaled = Quantised.of(levels.unpacked(), levels.scales, None, sizes, bits=3)
    gram = GRAM + np.eye(INPUTS)
    one = gptq(W, gram, levels, ordered=False, damping=0.0)
    other = gptq(
        sizes[:, None] * W, gram / np.outer(sizes, sizes), scaled, ordered=False, damping=0.0
    )
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(other.input_scales, sizes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GPTQ(damping=-1.0), "`damping` must be a non-negative finite number"),
        (lambda: gptq(W, ROWS, round_to_nearest(W, 3)), r"`gram` must be \(70, 70\)"),
        (lambda: gptq(W, GRAM * np.nan, round_to_nearest(W, 3)), "`gram` has 4900 non-finite"),
        (lambda: gptq(W, GRAM, round_to_nearest(W[1:], 3)), "`levels` has 69 inputs, but `wei"),
        (lambda: GPTQ().sweep(Observed(weights=W)), "`GPTQ` needs what the layer sees: give"),
        (
            lambda: GPTQ().sweep(Observed(activations=ROWS, outputs=ROWS @ W)),
            r"give `Observed\(weights=...\)`",
        ),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_statistics_serve_as_rows_do():
    method = GPTQ(RoundToNearest((3,)))
    rows = Observed(weights=W, activations=ROWS)
    moments = Observed(weights=W, calibration=Calibration.empty(INPUTS).update(ROWS))
    one, other = (method.sweep(seen).squared_errors for seen in (rows, moments))
    assert_close(one, other, condition=1e4)
