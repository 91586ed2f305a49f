"""The levels of groups of entries: where they lie, and which is nearest."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import safe_divide
from lowrank_theory._scale import at_scale_one, times_power

FRACTIONS = 57  # of the scale that reaches the largest entry, of which the best is looked for
REFINED = 4  # times


class Grid(eqx.Module):
    """The level of code c is `scale * c + offset`, for each group or each entry of a matrix."""

    scale: Float[Array, "..."]
    offset: Float[Array, "..."]

    def codes(self, entries: Array, bits: Array) -> Array:
        """The nearest level of each entry."""
        places = safe_divide(entries - self.offset, self.scale)
        return jnp.clip(jnp.round(places), 0, 2.0**bits - 1)

    def levels(self, codes: Array) -> Array:
        """What the codes stand for."""
        return self.scale * codes + self.offset


class Groups(eqx.Module):
    """The entries of the groups of a matrix, and how much the square of an error of each counts:
    nothing where the last groups are padded.
    """

    entries: Float[Array, "groups size others"]
    counts: Float[Array, "groups size others"]

    @staticmethod
    def of(matrix: Array, importance: Array, group: int | None, axis: int | None) -> "Groups":
        """Of `group` successive entries along an axis, or of all of them; without an axis, of the
        whole matrix. The importance is that of inputs, (inputs,).
        """
        counts = jnp.broadcast_to(importance[:, None], matrix.shape)
        lines, counts = _lines(matrix, axis), _lines(counts, axis)
        length, others = lines.shape
        size = length if group is None else group
        groups = -(-length // size)
        padding = ((0, groups * size - length), (0, 0))
        return Groups(
            *(jnp.pad(each, padding).reshape(groups, size, others) for each in (lines, counts))
        )

    def sum(self, array: Array) -> Float[Array, "groups 1 others"]:
        """In each group, as entries count."""
        return jnp.sum(self.counts * array, axis=1, keepdims=True)

    def mean(self, array: Array) -> Float[Array, "groups 1 others"]:
        """The same of means; zero where no entry counts."""
        return safe_divide(self.sum(array), self.sum(jnp.ones_like(array)))

    def lost(self, grid: Grid, bits: Array) -> Float[Array, "groups 1 others"]:
        """The squared error of each group."""
        return self.sum((self.entries - grid.levels(grid.codes(self.entries, bits))) ** 2)

    def reaching_all(self, bits: Array, symmetric: bool) -> Grid:
        """The grids that reach the largest entries, zero a level, and so within half a step; of one
        bit, those of the mean of their sizes.
        """
        if symmetric:
            sizes = jnp.abs(self.entries)
            levels = jnp.maximum(2.0 ** (bits - 1) - 1, 1)
            largest = jnp.max(sizes, axis=1, keepdims=True)
            scale = jnp.where(bits == 1, 2 * self.mean(sizes), largest / levels)
            return Grid(scale, -scale * middle(bits))
        least, most = (
            extreme(extreme_of(self.entries, axis=1, keepdims=True), 0)
            for extreme, extreme_of in ((jnp.minimum, jnp.min), (jnp.maximum, jnp.max))
        )
        scale = (most - least) / (2.0**bits - 1)
        return Grid(scale, scale * jnp.round(safe_divide(least, scale)))

    def least_squares(self, reaching: Grid, bits: Array, symmetric: bool) -> Grid:
        """The best of fractions of these grids, and then in turn the best for its codes, and the
        codes the best for it.
        """

        def better(best: tuple[Grid, Array], grid: Grid) -> tuple[Grid, Array]:
            return better_of(best, (grid, self.lost(grid, bits)))

        def shrunk(step: Array, best: tuple[Grid, Array]) -> tuple[Grid, Array]:
            share = 2.0 ** (-step / 8)
            return better(best, Grid(share * reaching.scale, share * reaching.offset))

        def refitted(_: Array, best: tuple[Grid, Array]) -> tuple[Grid, Array]:
            return better(best, self._fitted(best[0], bits, symmetric))

        best = reaching, self.lost(reaching, bits)
        best = jax.lax.fori_loop(1, FRACTIONS, shrunk, best)
        return jax.lax.fori_loop(0, REFINED, refitted, best)[0]

    def _fitted(self, grid: Grid, bits: Array, symmetric: bool) -> Grid:
        """The grids of least squared error for the codes of these; of one code, that of the same
        scale.
        """
        entries, codes = self.entries, grid.codes(self.entries, bits)
        if symmetric:
            about = codes - middle(bits)
            scale = _ratio(self.sum(about * entries), self.sum(about**2), grid.scale)
            return Grid(scale, -scale * middle(bits))
        mean_code, mean = self.mean(codes), self.mean(entries)
        about = codes - mean_code
        scale = _ratio(self.sum(about * (entries - mean)), self.sum(about**2), grid.scale)
        return Grid(scale, mean - scale * mean_code)


def middle(bits: Array) -> Array:
    """Where zero is, in a symmetric grid."""
    return jnp.where(bits == 1, 0.5, 2.0 ** (bits - 1))


def better_of(best: tuple[Grid, Array], other: tuple[Grid, Array]) -> tuple[Grid, Array]:
    """Of two grids for each group the one that loses less, and what it loses."""
    taken = other[1] < best[1]
    grid = jax.tree.map(lambda new, old: jnp.where(taken, new, old), other[0], best[0])
    return grid, jnp.minimum(other[1], best[1])


def nearest(
    groups: Groups,
    grid: Grid,
    bits: Array,
    power: Array,
    shape: tuple[int, ...],
    *,
    axis: int | None,
    symmetric: bool,
    dtype: Any,
) -> tuple[Array, Array, Array | None]:
    r"""Codes of a matrix of this shape, scales and zeros, as `Quantised` keeps them. The scales,
    times $2^p$, and zeros are rounded to their dtype first, and the codes found for these.
    """
    scales = times_power(grid.scale, power).astype(dtype)
    zeros = None if symmetric else safe_divide(-grid.offset, grid.scale).astype(dtype)
    scale = at_scale_one(scales, power)
    zero = middle(bits) if zeros is None else zeros.astype(float)
    codes = Grid(scale, -scale * zero).codes(groups.entries, bits).astype(jnp.uint8)
    length = shape[0] * shape[1] if axis is None else shape[axis]
    lines = codes.reshape(-1, codes.shape[-1])[:length]
    return (
        lines.reshape(shape) if axis is None else _matrix(lines, axis),
        _matrix(scales[:, 0], axis),
        None if zeros is None else _matrix(zeros[:, 0], axis),
    )


def _lines(matrix: Array, axis: int | None) -> Array:
    return matrix.reshape(-1, 1) if axis is None else _matrix(matrix, axis)


def _matrix(lines: Array, axis: int | None) -> Array:
    return lines.T if axis == 1 else lines


def _ratio(numerator: Array, denominator: Array, otherwise: Array) -> Array:
    return jnp.where(denominator > 0, safe_divide(numerator, denominator), otherwise)
