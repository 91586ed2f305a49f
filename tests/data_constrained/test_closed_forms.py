"""Moments in closed form are those of integrals and of samples, at every scale."""

import numpy as np
import pytest
from scipy import integrate, stats

from lowrank_theory.data_constrained import (
    ChannelStatistics,
    added,
    averaged,
    largest_rectified,
    rectified,
)

RATIOS = np.array([-8.0, -3.0, -1.0, -1e-3, 0.0, 0.5, 2.0, 6.0, 30.0, 1e4])


def channels(mean, deviation) -> ChannelStatistics:
    return ChannelStatistics(np.asarray(mean, float), np.asarray(deviation, float))


def integrated(ratio: float, places: int = 1) -> tuple[float, float]:
    """The mean and the deviation of max(z_1, ..., z_P, 0), integrated about a number near them."""
    near = max(ratio, 0.0)

    def moment(power: int) -> float:
        def density(z: float) -> float:
            below = stats.norm.cdf(z - ratio) ** (places - 1)
            return float(places * below * stats.norm.pdf(z - ratio) * (z - near) ** power)

        start, end = max(0.0, ratio - 12), max(0.0, ratio) + 12
        precision = 1e-30 if ratio < 0 else 1e-13
        found = integrate.quad(density, start, end, epsabs=precision, epsrel=1e-11, limit=500)
        return found[0] + float(stats.norm.cdf(-ratio)) ** places * (-near) ** power

    first, second = moment(1), moment(2)
    return near + first, float(np.sqrt(second - first**2))


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_rectifier_is_integrated(ratio):
    found = rectified(channels([ratio], [1.0]))
    mean, deviation = integrated(ratio)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(found.deviation, deviation, rtol=1e-8)


@pytest.mark.parametrize("places", [1, 4, 9])
def test_a_maximum_is_integrated(places):
    ratios = RATIOS[(RATIOS >= -3) & (RATIOS <= 30)]
    found = largest_rectified(channels(ratios, np.ones_like(ratios)), places)
    for number, ratio in enumerate(ratios):
        mean, deviation = integrated(ratio, places)
        assert found.mean[number] == pytest.approx(mean, rel=1e-9)
        assert found.deviation[number] == pytest.approx(deviation, rel=1e-7)


def test_of_one_place_the_largest_is_the_rectified():
    given = channels(RATIOS, np.ones_like(RATIOS))
    one, other = rectified(given), largest_rectified(given, 1)
    np.testing.assert_allclose(other.mean, one.mean, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(other.deviation, one.deviation, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_is_kept(scale):
    mean, deviation = np.array([-2.0, 0.1, 3.0, 0.5]), np.array([1.0, 0.7, 1.5, 0.0])
    functions = (
        rectified,
        lambda c: added(c, c),
        lambda c: averaged(c, 5),
        lambda c: largest_rectified(c, 4),
    )
    for function in functions:
        one = function(channels(mean, deviation))
        other = function(channels(scale * mean, scale * deviation))
        np.testing.assert_allclose(other.mean, scale * one.mean, rtol=1e-12)
        np.testing.assert_allclose(other.deviation, scale * one.deviation, rtol=1e-12)


def test_limits():
    constant = channels([-2.0, 0.0, 3.0], [0.0, 0.0, 0.0])
    for found in (rectified(constant), largest_rectified(constant, 9)):
        np.testing.assert_array_equal(found.mean, [0, 0, 3])
        np.testing.assert_array_equal(found.deviation, [0, 0, 0])
    above = rectified(channels([1e6], [1.0]))  # nothing is cut off
    np.testing.assert_allclose([above.mean[0], above.deviation[0]], [1e6, 1.0], rtol=1e-12)
    centred = rectified(channels([0.0], [1.0]))
    assert centred.mean[0] == pytest.approx(1 / np.sqrt(2 * np.pi), rel=1e-14)
    assert centred.deviation[0] ** 2 == pytest.approx(0.5 - 0.5 / np.pi, rel=1e-13)
    assert (rectified(channels([-60.0], [1.0])).mean >= 0).all()


def test_sums_and_means_are_those_of_samples():
    random, size = np.random.default_rng(0), 200_000
    one, other = channels([1.0, -2.0], [0.5, 1.0]), channels([0.2, 0.3], [2.0, 0.1])
    draws = [np.maximum(random.normal(c.mean, c.deviation, (4, size, 2)), 0) for c in (one, other)]
    cases = (
        (added(rectified(one), rectified(other)), draws[0][0] + draws[1][0]),
        (averaged(rectified(one), 4), draws[0].mean(axis=0)),
        (largest_rectified(one, 4), draws[0].max(axis=0)),
    )
    for found, sampled in cases:
        error = found.deviation / np.sqrt(size)
        assert (np.abs(sampled.mean(axis=0) - found.mean) < 5 * error).all()
        np.testing.assert_allclose(sampled.std(axis=0), found.deviation, rtol=0.02)


@pytest.mark.parametrize(
    ("mean", "deviation", "reason"),
    [
        ([0.0, 1.0], [1.0], "must have one shape"),
        ([0.0], [-1.0], "`deviation` must not be negative; got -1"),
        ([np.nan], [1.0], "`mean` has"),
        ([0.0], [np.inf], "`deviation` has"),
    ],
)
def test_no_statistics(mean, deviation, reason):
    with pytest.raises(ValueError, match=reason):
        channels(mean, deviation)


def test_no_channels_and_no_places():
    with pytest.raises(ValueError, match="`channels` is empty"):
        added()
    for function in (averaged, largest_rectified):
        with pytest.raises(ValueError, match="`places` must be"):
            function(channels([0.0], [1.0]), 0)
