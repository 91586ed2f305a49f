r"""Means and deviations after what stands between two layers, for normal channels.

For $z\sim N(\beta,\gamma^2)$, with $\zeta = \beta/\gamma$ and the normal density $\varphi$ and
distribution function $\Phi$,

$$\mathbb E\max(z, 0) = \beta\Phi(\zeta) + \gamma\varphi(\zeta),\qquad
\mathbb E\max(z, 0)^2 = (\beta^2 + \gamma^2)\Phi(\zeta) + \beta\gamma\varphi(\zeta).$$

`theorems.equalisation` states both. All are computed in float64 without cancellation, and are
equivariant: channels times a positive number give results times this number.
"""

import functools
import operator

import numpy as np
from jaxtyping import Float
from scipy import special

from lowrank_theory._engine.drawn import ChannelStatistics
from lowrank_theory._numerics import check_count

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)
_REACH = 10.0  # deviations beyond which a normal number is not met


def rectified(channels: ChannelStatistics) -> ChannelStatistics:
    """The mean and the deviation of max(z, 0), by the formulas of this module."""
    mean, deviation = _pair(channels)
    ratio = _ratio(mean, deviation)
    near = np.abs(ratio)
    # Of -|ratio|: what is cut off, or what is left. Both formulas share the factor exp(-ratio²/2).
    with np.errstate(under="ignore"):
        factor = np.exp(-(near**2) / 2)
        tail, density = special.erfcx(near / np.sqrt(2)) / 2, 1 / np.sqrt(2 * np.pi)
        first = factor * np.maximum(density - near * tail, 0)
        second = factor * np.maximum((1 + near**2) * tail - near * density, 0)
        variance = second - first**2
        # max(z, 0) = z + max(-z, 0), and the covariance of the two is -P(z < 0).
        above = np.maximum(1 - 2 * factor * tail + variance, 0)
    positive = ratio > 0
    return ChannelStatistics(
        np.where(positive, mean, 0) + deviation * first,
        deviation * np.sqrt(np.where(positive, above, variance)),
    )


def added(*channels: ChannelStatistics) -> ChannelStatistics:
    """Those of the sum of independent numbers. Raises `ValueError` without any."""
    if not channels:
        raise ValueError("`channels` is empty: give what is added.")
    means, deviations = zip(*map(_pair, channels), strict=True)
    return ChannelStatistics(
        functools.reduce(operator.add, means), functools.reduce(np.hypot, deviations)
    )


def averaged(channels: ChannelStatistics, places: int) -> ChannelStatistics:
    """Those of the mean over so many independent places: the variance is divided by them."""
    places = check_count("places", places, 1)
    return ChannelStatistics(
        np.asarray(channels.mean), np.asarray(channels.deviation) / np.sqrt(places)
    )


def largest_rectified(channels: ChannelStatistics, places: int) -> ChannelStatistics:
    r"""Those of the largest of so many independent places, rectified: $\max(z_1, \dots, z_P, 0)$.

    With the distribution function $F = \Phi^P$, the moments about a number a below which nothing is
    met are $\int_a^\infty k(t - a)^{k-1}(1 - F(t))\,dt$, k = 1, 2, by Gauss's quadrature.
    """
    places = check_count("places", places, 1)
    mean, deviation = _pair(channels)
    ratio = _ratio(mean, deviation)
    low = np.maximum(ratio - _REACH, 0)
    half = (np.maximum(ratio, 0) + _REACH - low) / 2
    steps = half[..., None] * (1 + _NODES)  # above `low`, in deviations
    above = -np.expm1(places * special.log_ndtr(low[..., None] + steps - ratio[..., None]))
    first, second = (half * ((k * steps ** (k - 1) * above) @ _WEIGHTS) for k in (1, 2))
    start = np.where(ratio > _REACH, mean - _REACH * deviation, 0)
    return ChannelStatistics(
        start + deviation * first, deviation * np.sqrt(np.maximum(second - first**2, 0))
    )


def _pair(channels: ChannelStatistics) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(channels.mean, np.float64), np.asarray(channels.deviation, np.float64)


def _ratio(
    mean: Float[np.ndarray, "..."], deviation: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """The mean in deviations, at most 1e8 of them."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(deviation > 0, mean / np.where(deviation > 0, deviation, 1), 0)
    ratio = np.where((deviation == 0) & (mean != 0), np.where(mean > 0, np.inf, -np.inf), ratio)
    return np.clip(ratio, -1e8, 1e8)
