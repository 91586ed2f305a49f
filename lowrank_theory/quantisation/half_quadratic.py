r"""Zeros of grids that make errors sparse rather than small: half-quadratic, without data.

Over the zeros, $\min\sum_{ij}\lvert W_{ij} - Q_{ij}\rvert^p$ with $p < 1$, where most errors may be
tiny and few are large. Scales stay those of the grid that reaches the largest and the least entry
of its group. With errors $d = (W - Q)/s$ in units of a step, each of 20 rounds takes $e =
\operatorname{sign}(d)\max(\lvert d\rvert - \lvert d\rvert^{p-1}/\beta, 0)$ for what an error should
be, and the zero for which the others vanish on average; $\beta$ is 10 at first and grows by 1 % in
each (Badri and Shaji 2023, HQQ; their $\beta$ is in units of the weights, so that it depends on
these). Of all rounds, the first included, each group keeps the one of least $\sum\lvert W -
Q\rvert^p$: no group is worse, by this measure, than without.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    check_array,
    check_count,
    check_fraction,
    check_group,
    in_float64,
    safe_divide,
    settle,
)
from lowrank_theory._scale import unit
from lowrank_theory.approximations import Quantised
from lowrank_theory.quantisation._grids import Grid, Groups, better_of, nearest
from lowrank_theory.quantisation._quantiser import AbstractQuantiser, settle_grids
from lowrank_theory.recovery import Need, WeightedTarget

ROUNDS = 20
FIRST, GROWTH = 10.0, 1.01  # of beta


class HalfQuadratic(AbstractQuantiser):
    """Rounding on grids with zeros, chosen for sparse errors, at several numbers of `bits`. It
    looks at the weights alone.

    `group` and `axis` are those of `RoundToNearest`; `power` is p.
    """

    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    group: int | None = 64
    axis: int | None = 0
    power: float = 0.7

    def __check_init__(self) -> None:
        settle(self, "power", check_fraction)
        settle_grids(self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of bits."""
        return self.bits

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing but weights."""
        return frozenset()

    def quantise(self, weights: Any, problem: WeightedTarget | None, bits: int) -> Quantised:
        """The nearest levels of the best zeros."""
        return half_quadratic(weights, bits, group=self.group, axis=self.axis, power=self.power)


def half_quadratic(
    weights: ArrayLike,
    bits: int,
    *,
    group: int | None = 64,
    axis: int | None = 0,
    power: float = 0.7,
) -> Quantised:
    r"""The pure function beneath `HalfQuadratic`: packed codes, and scales and zeros in the dtype
    of the weights.

    Works under `jit` and `vmap`; codes have no derivative. Multiplying the weights by $2^k$
    multiplies scales. Raises `ValueError` for weights that are no finite matrix of floats, for
    bits, an axis or a group that there are not, and for a power that is not between 0 and 1.
    """
    weights = check_array("weights", weights, "inputs", "outputs")
    bits = check_count("bits", bits, 1, 8)
    group, axis = check_group(group, axis)
    power = check_fraction("power", power)
    arrays = _split(weights, np.float64(bits), np.float64(power), group=group, axis=axis)
    return Quantised.of(*arrays, bits=bits, group=group, axis=axis)


@functools.partial(in_float64, like=0)
def _split(
    weights: Array,
    bits: Array,
    power: Array,
    *,
    group: int | None,
    axis: int | None,
    dtype: Any = None,
) -> tuple[Array, Array, Array | None]:
    matrix, exponent = unit(weights)
    groups = Groups.of(matrix, jnp.ones(len(matrix)), group, axis)
    first = groups.reaching_all(bits, symmetric=False)

    def objective(grid: Grid) -> Array:
        missed = groups.entries - grid.levels(grid.codes(groups.entries, bits))
        return groups.sum(jnp.where(missed == 0, 0, jnp.abs(missed) ** power))

    def round_of(number: Array, state: tuple[Array, tuple[Grid, Array]]) -> Any:
        offset, best = state
        grid = Grid(first.scale, offset)
        levels = grid.levels(grid.codes(groups.entries, bits))
        steps = safe_divide(groups.entries - levels, first.scale)
        size = jnp.abs(steps)
        shrunk = size - safe_divide(size**power, size) / (FIRST * GROWTH**number)
        wanted = jnp.sign(steps) * jnp.maximum(shrunk, 0) * first.scale
        offset = offset + groups.mean(groups.entries - levels - wanted)
        grid = Grid(first.scale, offset)
        return offset, better_of(best, (grid, objective(grid)))

    start = first.offset, (first, objective(first))
    _, (grid, _) = jax.lax.fori_loop(0, ROUNDS, round_of, start)
    return nearest(
        groups, grid, bits, exponent, matrix.shape, axis=axis, symmetric=False, dtype=dtype
    )
