r"""Codes and scales in turn, each the best for all others: clipping learned from what a layer sees.

With $\hat W_{ij} = t_is_g(c_{ij} - z_g)$ the loss is $\operatorname{tr}(E^\top HE)$, $E = W - \hat
W$. Each step minimises it over one of its variables, exactly:

- *a code*: with all others as they are, the loss is $H_{ii}(e_{ij} - e^*_{ij})^2$ and what no code
  changes, $e^*_{ij} = e_{ij} - (HE)_{ij}/H_{ii}$; so it becomes the level nearest to $w_{ij} -
  e^*_{ij}$;
- *a scale*: where $D = \partial\hat W/\partial s_g$, it grows by $\langle D, HE\rangle/\langle D,
  HD\rangle$; and so does a zero, where grids have some.

So no step raises the loss, and there is no rate of learning to choose. (Zhang, Yang, Wang, Qi, Xin,
Li and Yin 2024, COMQ, arXiv 2403.07134; of codes alone, Behdin, Acharya, Gupta, Song, Zhu, Keerthi
and Mazumder 2023, QuantEase, arXiv 2309.01885.) It ends in a minimum over each variable alone, not
over all, and where it starts matters: by `GPTQ`, or by the levels themselves where these lose less.

Where $H$ is diagonal codes stay the nearest ones, and scales alone are learned.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from lowrank_theory._numerics import check_count, in_float64, keep, matmul, safe_divide, settle
from lowrank_theory._scale import at_scale_one, times_power, unit
from lowrank_theory.approximations import Quantised
from lowrank_theory.approximations.quantised import spread
from lowrank_theory.quantisation._grids import Grid, middle
from lowrank_theory.quantisation._quantiser import AbstractQuantiser, check_quantiser
from lowrank_theory.quantisation.gptq import gptq
from lowrank_theory.quantisation.round_to_nearest import RoundToNearest
from lowrank_theory.recovery import Need, WeightedTarget

BLOCK = 64  # inputs between two products with all errors


class CoordinateDescent(AbstractQuantiser):
    """Codes and scales for what the layer sees, from the levels of another quantiser, `levels`.

    So many `sweeps` over all codes and scales. On the calibration it loses no more than the levels
    do, and no more than `GPTQ` does on them.
    """

    levels: AbstractQuantiser = RoundToNearest()
    sweeps: int = 10

    def __check_init__(self) -> None:
        keep(self, "levels", check_quantiser("levels", self.levels))
        settle(self, "sweeps", check_count, 1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Those of the levels."""
        return self.levels.sizes

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments."""
        return self.levels.needs | {Need.MOMENTS}

    def quantise(self, weights: Any, problem: WeightedTarget | None, bits: int) -> Quantised:
        """The levels of these weights, and both fitted to the moments of the problem."""
        assert problem is not None
        levels = self.levels.quantise(weights, problem, bits)
        return coordinate_descent(weights, problem.gram, levels, sweeps=self.sweeps)


def coordinate_descent(
    weights: ArrayLike, gram: ArrayLike, levels: Quantised, *, sweeps: int = 10
) -> Quantised:
    r"""The pure function beneath `CoordinateDescent`: `levels` with other codes, scales and zeros,
    for $H$ = `gram`, of any scale. Input scales stay.

    Where each output has grids of its own (`axis=0`) no output loses more than with the levels or
    by `gptq`; else the whole does not. Scales are rounded to their dtype before a last sweep over
    codes. Works under `jit` and `vmap`; codes have no derivative. Raises `ValueError` for what
    `gptq` refuses.
    """
    sweeps = check_count("sweeps", sweeps, 1)
    eliminated = gptq(weights, gram, levels)
    codes, scales, zeros = _descended(
        weights,
        gram,
        (levels.unpacked(), eliminated.unpacked()),
        levels.scales,
        levels.zeros,
        levels.input_scales,
        np.float64(levels.bits),
        sweeps=sweeps,
        group=levels.group,
        axis=levels.axis,
        dtype=levels.dtype,
    )
    kept = scales, zeros, levels.input_scales
    return Quantised.of(codes, *kept, bits=levels.bits, group=levels.group, axis=levels.axis)


@functools.partial(in_float64, like=0)
def _descended(
    weights: Array,
    gram: Array,
    starts: tuple[Array, Array],
    scales: Array,
    zeros: Array | None,
    input_scales: Array | None,
    bits: Array,
    *,
    sweeps: int,
    group: int | None,
    axis: int | None,
    dtype: Any = None,
) -> tuple[Array, Array, Array | None]:
    matrix, power = unit(weights)
    layer = _Layer(
        matrix,
        _seen(gram),
        jnp.ones((len(matrix), 1)) if input_scales is None else input_scales[:, None],
        bits,
        group,
        axis,
        zeros is None,
    )
    scale = at_scale_one(scales, power)
    zero = jnp.broadcast_to(middle(bits), scale.shape) if zeros is None else zeros
    nearest, eliminated = (_Levels(scale, zero, codes.astype(float)) for codes in starts)
    start = layer.better(eliminated, nearest)

    def sweep(_: Any, levels: _Levels) -> _Levels:
        return layer.with_best_scales(layer.with_best_codes(levels))

    found = jax.lax.fori_loop(0, sweeps, sweep, start)
    kept = times_power(found.scale, power).astype(dtype), found.zero.astype(dtype)
    stored = _Levels(at_scale_one(kept[0], power), kept[1].astype(float), found.code)
    best = layer.better(layer.with_best_codes(stored), start)
    return (
        best.code.astype(jnp.uint8),
        times_power(best.scale, power),
        None if zeros is None else best.zero,
    )


class _Levels(eqx.Module):
    """Of each group the scale and the zero, and of each entry the code."""

    scale: Float[Array, "rows columns"]
    zero: Float[Array, "rows columns"]
    code: Float[Array, "inputs outputs"]


class _Block(NamedTuple):
    """Successive inputs: their errors $E$, and what of $H$ they meet."""

    errors: Float[Array, "block outputs"]
    slopes: Float[Array, "block outputs"]  # HE
    gram: Float[Array, "block block"]

    def less(self, change: Float[Array, "block outputs"]) -> "_Block":
        """After the errors have changed by so much."""
        slopes = self.slopes - matmul(self.gram, change)
        return _Block(self.errors - change, slopes, self.gram)


class _Layer(eqx.Module):
    """What is approximated, at scale one, and by what."""

    matrix: Float[Array, "inputs outputs"]
    gram: Float[Array, "inputs inputs"]
    input_scales: Float[Array, "inputs 1"]
    bits: Array
    group: int | None = eqx.field(static=True)
    axis: int | None = eqx.field(static=True)
    symmetric: bool = eqx.field(static=True)

    def grid(self, levels: _Levels) -> Grid:
        """That of each entry."""
        scale, zero = (self._spread(each) for each in (levels.scale, levels.zero))
        scale = jnp.broadcast_to(self.input_scales * scale, self.matrix.shape)
        return Grid(scale, -scale * zero)

    def errors(self, levels: _Levels) -> Float[Array, "inputs outputs"]:
        """What the levels miss."""
        return self.matrix - self.grid(levels).levels(levels.code)

    def better(self, one: _Levels, other: _Levels) -> _Levels:
        """The one where it loses less: of each output, where each has grids of its own."""

        def lost(levels: _Levels) -> Array:
            errors = self.errors(levels)
            each = jnp.sum(errors * matmul(self.gram, errors), axis=0, keepdims=True)
            return each if self.axis == 0 else jnp.sum(each, keepdims=True)

        taken = lost(one) < lost(other)
        return jax.tree.map(lambda new, old: jnp.where(taken, new, old), one, other)

    def with_best_codes(self, levels: _Levels) -> _Levels:
        """Each in turn the best for all others."""

        def step(block: _Block, rows: Any) -> tuple[Array, Array]:
            entries, grid, codes = rows

            def one_input(k: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
                errors, codes = found
                slope = block.slopes[k] + matmul(block.gram[k], errors - block.errors)
                wanted = errors[k] - safe_divide(slope, block.gram[k, k])
                level = jax.tree.map(lambda each: each[k], grid)
                code = level.codes(entries[k] - wanted, self.bits)
                error = entries[k] - level.levels(code)
                better = jnp.abs(error - wanted) < jnp.abs(errors[k] - wanted)
                return (
                    errors.at[k].set(jnp.where(better, error, errors[k])),
                    codes.at[k].set(jnp.where(better, code, codes[k])),
                )

            return jax.lax.fori_loop(0, len(entries), one_input, (block.errors, codes))

        rows = self.matrix, self.grid(levels), levels.code
        found = self._in_turn(min(BLOCK, len(self.gram)), step, levels, rows)
        code = found.reshape(-1, self.matrix.shape[1])[: len(self.gram)]
        return _Levels(levels.scale, levels.zero, code)

    def with_best_scales(self, levels: _Levels) -> _Levels:
        """Each in turn the best for all others, and for the codes; then each zero."""

        def along(block: _Block, direction: Array) -> tuple[_Block, Array]:
            slope = self._pooled(direction * block.slopes)
            curvature = self._pooled(direction * matmul(block.gram, direction))
            step = safe_divide(slope, curvature)
            wide = self._spread(step) if self.axis == 1 else step
            return block.less(direction * wide), step

        def step(block: _Block, rows: Any) -> tuple[Array, Any]:
            about, level = rows
            block, more = along(block, about)
            if self.symmetric:
                return block.errors, (more[0], jnp.zeros_like(more[0]))
            block, offset = along(block, level)
            return block.errors, (more[0], offset[0])

        about = self.input_scales * (levels.code - self._spread(levels.zero))
        rows = about, self.grid(levels).scale
        size = 1 if self.axis == 1 else self.group or len(self.gram)
        more, offset = self._in_turn(size, step, levels, rows)
        scale = levels.scale + more
        zero = levels.zero - safe_divide(offset * levels.scale, scale)
        return _Levels(scale, zero, levels.code)

    def _in_turn(self, size: int, step: Callable[..., Any], levels: _Levels, rows: Any) -> Any:
        """What each block of so many inputs returns beside its errors, after steps of those before
        it.
        """
        inputs = len(self.gram)
        blocks = -(-inputs // size)
        more = 0, blocks * size - inputs

        def padded(array: Array) -> Array:
            return jnp.pad(array, (more, (0, 0)))

        gram = jnp.pad(self.gram, (more, more))
        rows = jax.tree.map(padded, rows)

        def one_block(errors: Array, number: Array) -> tuple[Array, Any]:
            def here(array: Array, axis: int = 0) -> Array:
                return jax.lax.dynamic_slice_in_dim(array, number * size, size, axis)

            across = here(gram)
            block = _Block(here(errors), matmul(across, errors), here(across, 1))
            mine, found = step(block, jax.tree.map(here, rows))
            return jax.lax.dynamic_update_slice_in_dim(errors, mine, number * size, 0), found

        return jax.lax.scan(one_block, padded(self.errors(levels)), jnp.arange(blocks))[1]

    def _pooled(self, block: Array) -> Array:
        """Sums over the entries that share a scale."""
        if self.axis != 1:
            return jnp.sum(block, axis=self.axis, keepdims=True)
        columns = self.group or block.shape[1]
        full = jnp.pad(block, ((0, 0), (0, -block.shape[1] % columns)))
        return full.reshape(len(block), -1, columns).sum(axis=-1)

    def _spread(self, groups: Array) -> Array:
        """A number of each group, for its entries."""
        return spread(groups, self.matrix.shape, self.group, self.axis)


def _seen(gram: Array) -> Array:
    """The gram at scale one, without inputs that float64 cannot tell from such as nothing
    excites.
    """
    gram, _ = unit(gram)
    diagonal = jnp.diagonal(gram)
    alive = diagonal > len(gram) * jnp.finfo(float).eps * jnp.max(diagonal)
    return jnp.where(alive[:, None] & alive, gram, 0)
