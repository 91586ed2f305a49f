r"""Rounding to the nearest of $2^b$ levels, on a grid of its own for each group of entries.

With scale $s$ and zero $z$ the levels are $s(c - z)$, $0 \le c \lt 2^b$. Symmetric grids have
$z = 2^{b-1}$ and, for $b \ge 2$, $L = 2^{b-1} - 1$ positive levels; one bit has the levels $\pm
s/2$. A grid that reaches the largest entry (*absmax*, $s = \max|w|/L$) loses little of it and much
of all others. With `clipped`, the scale is that of the least squared error among fractions of this
one, $2^{-k/8}$ for $k = 0, \dots, 56$, and then in turn the best for its codes, and the codes the
best for it. Below five bits this decides.

Bounds: `theorems.rounding`.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    check_array,
    check_count,
    in_float64,
    safe_divide,
    settle,
    settle_each,
)
from lowrank_theory._scale import at_scale_one, exponent, times_power
from lowrank_theory.approximations import Quantised
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, Need, Sweep, trained_weights

FRACTIONS = 57  # of the scale that reaches the largest entry, of which the best is looked for
REFINED = 4  # times


class RoundToNearest(AbstractLadder):
    """Rounding to nearest, at several numbers of `bits`. It looks at the weights alone.

    One grid for each `group` of successive inputs and each output (without a group, for each
    output) or, with `axis=1`, for each input and each group of outputs. `symmetric` grids keep no
    zeros; `clipped` ones do not reach the largest entry where that loses less.
    """

    bits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    group: int | None = None
    axis: int = 0
    symmetric: bool = True
    clipped: bool = True

    def __check_init__(self) -> None:
        settle_each(self, "bits", check_count, 1, 8)
        settle(self, "axis", check_count, 0, 1)
        if self.group is not None:
            settle(self, "group", check_count, 1)

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing but weights."""
        return frozenset()

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each number of bits. Raises `ValueError` without weights."""
        weights = trained_weights(self, observed)
        more = "" if self.group is None else f", groups of {self.group}"
        more += "" if self.symmetric else ", with zeros"
        sizes = [
            (f"{bits} bit{'s' * (bits > 1)}{more}", self._rounded(weights, bits))
            for bits in self.bits
        ]
        return Sweep.of(self, observed, sizes)

    def _rounded(self, weights: Any, bits: int) -> Quantised:
        return round_to_nearest(
            weights,
            bits,
            group=self.group,
            axis=self.axis,
            symmetric=self.symmetric,
            clipped=self.clipped,
        )


def round_to_nearest(
    weights: ArrayLike,
    bits: int,
    *,
    group: int | None = None,
    axis: int = 0,
    symmetric: bool = True,
    clipped: bool = True,
) -> Quantised:
    r"""The pure function beneath `RoundToNearest`: packed codes, and scales in the dtype of the
    weights. Codes are found for the scales as they are rounded to it.

    Works under `jit` and `vmap`; codes have no derivative. Multiplying the weights by $2^k$
    multiplies scales. Raises `ValueError` for weights that are no finite matrix of floats, and for
    bits, an axis or a group that there are not.
    """
    weights = check_array("weights", weights, "inputs", "outputs")
    bits = check_count("bits", bits, 1, 8)
    group = None if group is None else check_count("group", group, 1)
    axis = check_count("axis", axis, 0, 1)
    codes, scales, zeros = _rounded(
        weights,
        np.float64(bits),
        group=group,
        axis=axis,
        symmetric=bool(symmetric),
        clipped=bool(clipped),
    )
    return Quantised.of(codes, scales, zeros, bits=bits, group=group, axis=axis)


class _Grid(eqx.Module):
    """Scales and offsets of groups: the level of code c is `scale * c + offset`."""

    scale: Float[Array, "groups 1 others"]
    offset: Float[Array, "groups 1 others"]

    def codes(self, entries: Array, bits: Array) -> Array:
        """The nearest level of each entry."""
        places = safe_divide(entries - self.offset, self.scale)
        return jnp.clip(jnp.round(places), 0, 2.0**bits - 1)

    def lost(self, entries: Array, there: Array, bits: Array) -> Array:
        """The squared error of each group."""
        levels = self.scale * self.codes(entries, bits) + self.offset
        return jnp.sum(jnp.where(there, entries - levels, 0) ** 2, axis=1, keepdims=True)


@functools.partial(in_float64, like=0)
def _rounded(
    weights: Array,
    bits: Array,
    *,
    group: int | None,
    axis: int,
    symmetric: bool,
    clipped: bool,
    dtype: Any = None,
) -> tuple[Array, Array, Array | None]:
    """Codes, scales and zeros: one program for all numbers of bits."""
    power = exponent(weights)
    matrix = at_scale_one(weights, power)
    lines = matrix if axis == 0 else matrix.T
    inputs, others = lines.shape
    size = inputs if group is None else group
    groups = -(-inputs // size)
    padding = ((0, groups * size - inputs), (0, 0))
    entries, there = (
        jnp.pad(each, padding).reshape(groups, size, others)
        for each in (lines, jnp.ones(lines.shape, bool))
    )
    grid = _reaching_all(entries, there, bits, symmetric)
    if clipped:
        grid = _least_squares(grid, entries, there, bits, symmetric)

    scales = times_power(grid.scale, power).astype(dtype)
    zeros = None if symmetric else safe_divide(-grid.offset, grid.scale).astype(dtype)
    scale = at_scale_one(scales, power)
    middle: Any = _middle(bits) if zeros is None else zeros.astype(float)
    codes = _Grid(scale, -scale * middle).codes(entries, bits)
    codes = codes.reshape(groups * size, others)[:inputs].astype(jnp.uint8)

    def turned(array: Array) -> Array:
        return array if axis == 0 else array.T

    return turned(codes), turned(scales[:, 0]), None if zeros is None else turned(zeros[:, 0])


def _middle(bits: Array) -> Array:
    """Where zero is, in a symmetric grid."""
    return jnp.where(bits == 1, 0.5, 2.0 ** (bits - 1))


def _reaching_all(entries: Array, there: Array, bits: Array, symmetric: bool) -> _Grid:
    """The grids that reach the largest entries; of one bit, twice the mean of their sizes."""
    if symmetric:
        sizes = jnp.abs(entries)
        mean = jnp.sum(sizes, axis=1, keepdims=True) / jnp.sum(there, axis=1, keepdims=True)
        levels = jnp.maximum(2.0 ** (bits - 1) - 1, 1)
        largest = jnp.max(sizes, axis=1, keepdims=True)
        scale = jnp.where(bits == 1, 2 * mean, largest / levels)
        return _Grid(scale, -scale * _middle(bits))
    low, high = (jnp.minimum, jnp.maximum)
    least = low(jnp.min(entries, axis=1, keepdims=True), 0)
    most = high(jnp.max(entries, axis=1, keepdims=True), 0)
    return _Grid((most - least) / (2.0**bits - 1), least)


def _least_squares(
    reaching: _Grid, entries: Array, there: Array, bits: Array, symmetric: bool
) -> _Grid:
    def better(best: tuple[_Grid, Array], grid: _Grid) -> tuple[_Grid, Array]:
        lost = grid.lost(entries, there, bits)
        taken = lost < best[1]
        kept = jax.tree.map(lambda new, old: jnp.where(taken, new, old), grid, best[0])
        return kept, jnp.minimum(lost, best[1])

    def shrunk(step: Any, best: tuple[_Grid, Array]) -> tuple[_Grid, Array]:
        share = 2.0 ** (-step / 8)
        return better(best, _Grid(share * reaching.scale, share * reaching.offset))

    def refitted(_: Any, best: tuple[_Grid, Array]) -> tuple[_Grid, Array]:
        codes = jnp.where(there, best[0].codes(entries, bits), 0)
        return better(best, _fitted(best[0], codes, entries, there, bits, symmetric))

    best = reaching, reaching.lost(entries, there, bits)
    best = jax.lax.fori_loop(1, FRACTIONS, shrunk, best)
    return jax.lax.fori_loop(0, REFINED, refitted, best)[0]


def _fitted(
    grid: _Grid, codes: Array, entries: Array, there: Array, bits: Array, symmetric: bool
) -> _Grid:
    """The grids of least squared error for these codes; of one code, that of the same scale."""

    def total(array: Array) -> Array:
        return jnp.sum(jnp.where(there, array, 0), axis=1, keepdims=True)

    if symmetric:
        about = codes - _middle(bits)
        scale = _ratio(total(about * entries), total(about**2), grid.scale)
        return _Grid(scale, -scale * _middle(bits))
    count = total(jnp.ones_like(entries))
    means = total(codes) / count, total(entries) / count
    about = codes - means[0]
    scale = _ratio(total(about * (entries - means[1])), total(about**2), grid.scale)
    return _Grid(scale, means[1] - scale * means[0])


def _ratio(numerator: Array, denominator: Array, otherwise: Array) -> Array:
    return jnp.where(denominator > 0, safe_divide(numerator, denominator), otherwise)
