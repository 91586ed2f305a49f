"""The floor of all codes against bisection, its limits, units and derivatives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laws import vmap_is_a_loop
from lowrank_theory.rate_distortion import distortion_floor
from tolerance import approx

pytestmark = pytest.mark.thinned(3)

SPECTRA = {
    "flat": np.ones(5),
    "power law": 1 / np.arange(1.0, 6) ** 2,
    "ties and zeros": np.array([0.0, 2.0, 2.0, 0.0, 1e-12]),
    "far apart": 10.0 ** -np.arange(0.0, 50, 10),
    "one": np.array([3.0, 0, 0, 0, 0]),
}
spectra = st.sampled_from(sorted(SPECTRA)).map(SPECTRA.__getitem__)


def oracle(eigenvalues: np.ndarray, bits: float) -> float:
    """The level by bisection of its logarithm."""
    positive = eigenvalues[eigenvalues > 0]
    low, high = -2000.0, math.log2(positive.max())
    for _ in range(200):
        middle = (low + high) / 2
        spent = sum(max(math.log2(each) - middle, 0) for each in positive) / 2
        low, high = (middle, high) if spent > bits else (low, middle)
    return float(sum(min(2.0**high, each) for each in positive))


@given(spectra, st.sampled_from([0.0, 1e-6, 0.3, 1.0, 2.0, 7.0, 60.0, 400.0]))
def test_it_is_the_level_of_reverse_water_filling(eigenvalues, bits):
    found = float(distortion_floor(eigenvalues, bits))
    assert found == approx(oracle(eigenvalues, bits), condition=1 + bits)
    order = np.random.default_rng(0).permutation(len(eigenvalues))
    assert float(distortion_floor(eigenvalues[order], bits)) == found
    many = float(distortion_floor(eigenvalues, 3 * bits, outputs=3, weight_scale=2.0))
    assert many == approx(12 * found, condition=1 + bits)


@given(st.sampled_from([0.0, 0.3, 7.0, 60.0]), st.randoms(use_true_random=False))
def test_layers_together_are_one_of_their_repeated_eigenvalues(bits, random):
    eigenvalues = np.concatenate(list(SPECTRA.values()))
    outputs = np.array([random.randint(1, 4) for _ in eigenvalues])
    together = float(distortion_floor(eigenvalues, bits, outputs=outputs))
    assert together == approx(oracle(np.repeat(eigenvalues, outputs), bits), condition=1 + bits)


def test_by_hand():
    assert float(distortion_floor([4.0, 1.0], 1.0)) == approx(2)  # the level is one
    assert float(distortion_floor([4.0, 1.0], 0.5)) == approx(3)
    assert float(distortion_floor([4.0, 1.0], 3.0)) == approx(0.5)  # two bits and one
    assert float(distortion_floor(np.ones(10), 20.0)) == approx(10 / 16)
    assert float(distortion_floor(np.zeros(3), 1.0)) == 0


@pytest.mark.parametrize("eigenvalues", SPECTRA.values(), ids=SPECTRA)
def test_limits(eigenvalues):
    total = float(np.sum(eigenvalues))
    assert float(distortion_floor(eigenvalues, 0)) == approx(total)
    assert float(distortion_floor(eigenvalues, 1e-12)) == pytest.approx(total, rel=1e-9)
    positive = eigenvalues[eigenvalues > 0]
    mean = math.exp(np.mean(np.log(positive)))
    bits = 200.0
    expected = len(positive) * mean * 4 ** (-bits / len(positive))
    assert float(distortion_floor(eigenvalues, bits)) == approx(expected, condition=300)
    assert float(distortion_floor(eigenvalues, 1e9)) == 0


@given(spectra, st.integers(-300, 300))
def test_units(eigenvalues, power):
    found = float(distortion_floor(np.ldexp(eigenvalues, power), 2.5))
    expected = math.ldexp(float(distortion_floor(eigenvalues, 2.5)), power)
    assert found == expected


def test_programs_stacks_and_derivatives():
    eigenvalues = SPECTRA["power law"]
    bits = np.array([0.5, 3.0, 9.0])
    vmap_is_a_loop(lambda b: distortion_floor(eigenvalues, b), bits)
    with jax.enable_x64(True):
        slope = jax.grad(lambda b: distortion_floor(jnp.asarray(eigenvalues), b))(3.0)
        step = 1e-6
        above, below = (float(distortion_floor(eigenvalues, 3 + s)) for s in (step, -step))
    assert float(slope) == pytest.approx((above - below) / (2 * step), rel=1e-6)
    assert distortion_floor(eigenvalues.astype(np.float32), 1.0).dtype == np.float32


def test_rounding_below_zero_counts_as_zero():
    assert float(distortion_floor(np.array([1.0, -1e-17]), 1.0)) == approx(0.25)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.eye(2), 1.0), {}, r"`eigenvalues` must have shape \(inputs\); got shape \(2, 2\)"),
        (([1.0, np.nan], 1.0), {}, "`eigenvalues` has 1 non-finite"),
        (([1.0], -1.0), {}, "`bits` must be a non-negative finite number; got -1.0"),
        (([1.0], 1.0), {"outputs": 0}, "`outputs` must be an integer >= 1; got 0"),
        (([1.0], 1.0), {"weight_scale": 0.0}, "`weight_scale` must be a positive finite number"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        distortion_floor(*arguments, **options)
