"""The half-quadratic zeros, against a slow loop in NumPy."""

import jax
import numpy as np
import pytest

from lowrank_theory.quantisation import HalfQuadratic, half_quadratic, round_to_nearest
from tolerance import assert_close

RANDOM = np.random.default_rng(0)
W = RANDOM.standard_t(3, (40, 6))


def objective(made, power: float) -> float:
    return float(np.sum(np.abs(W - np.asarray(made.materialise())) ** power))


def by_hand(group: np.ndarray, bits: int, power: float) -> np.ndarray:
    """One group, in the units of its steps."""
    least, most = min(group.min(), 0), max(group.max(), 0)
    scale, top = (most - least) / (2**bits - 1), 2**bits - 1
    zero = -np.round(least / scale)
    best, lowest = None, np.inf
    for number in range(21):
        codes = np.clip(np.round(group / scale + zero), 0, top)
        missed = group / scale - (codes - zero)
        if (now := np.sum(np.abs(missed) ** power)) < lowest:
            best, lowest = (codes - zero) * scale, now
        size = np.maximum(np.abs(missed), 1e-300)
        wanted = np.sign(missed) * np.maximum(size - size ** (power - 1) / (10 * 1.01**number), 0)
        zero = np.mean(codes - (group / scale - wanted))
    assert best is not None
    return best


@pytest.mark.parametrize(("bits", "group", "power"), [(2, 8, 0.7), (3, None, 0.7), (4, 7, 0.5)])
def test_zeros_are_those_of_the_slow_loop(bits, group, power):
    found = half_quadratic(W, bits, group=group, power=power)
    size = group or len(W)
    wanted = np.empty_like(W)
    for start in range(0, len(W), size):
        for output in range(W.shape[1]):
            part = slice(start, start + size), output
            wanted[part] = by_hand(W[part], bits, power)
    assert_close(np.asarray(found.materialise()), wanted, scale=1.0)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_group_is_worse_by_its_own_measure(bits):
    """Than on the grids with zeros that are not clipped; nor, on these weights, by squares."""
    found = half_quadratic(W, bits, group=8)
    plain = round_to_nearest(W, bits, group=8, symmetric=False, clipped=False)
    assert_close(found.scales, plain.scales)
    assert objective(found, 0.7) < objective(plain, 0.7)
    assert objective(found, 2) < objective(plain, 2)


def test_programs_stacks_and_powers_of_two():
    def layer(weights):
        return half_quadratic(weights, 3, group=5)

    one = layer(W)
    for power in (-300, 200):
        scaled = layer(np.ldexp(W, power))
        np.testing.assert_array_equal(scaled.codes, one.codes)
        np.testing.assert_array_equal(scaled.zeros, one.zeros)
    stack = RANDOM.standard_normal((2, *W.shape)).astype(np.float32)
    mapped = jax.vmap(layer)(stack)
    for k, weights in enumerate(stack):
        for found in (layer(weights), jax.jit(layer)(weights)):
            np.testing.assert_array_equal(mapped.codes[k], found.codes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HalfQuadratic((0,)), "`bits` must be an integer from 1 to 8; got 0"),
        (lambda: HalfQuadratic(power=1.0), "`power` must lie strictly between 0 and 1"),
        (lambda: HalfQuadratic(axis=None), "`group` is 64, but with `axis=None` all entries"),
        (lambda: half_quadratic(W * np.inf, 3), "`weights` has 240 non-finite"),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
