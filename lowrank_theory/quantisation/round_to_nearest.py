r"""Rounding to the nearest of $2^b$ levels, on a grid of its own for each group of entries.

With scale $s$ and zero $z$ the levels are $s(c - z)$, $0 \le c \lt 2^b$. Symmetric grids have
$z = 2^{b-1}$ and, for $b \ge 2$, $L = 2^{b-1} - 1$ positive levels; one bit has the levels $\pm
s/2$. Others reach from the least entry to the largest, each taken with zero, which is a level at
first: $s = (\max w - \min w)/(2^b - 1)$. A grid that reaches the largest entry (*absmax*, $s =
\max|w|/L$) loses little of it and much of all others. With `clipped`, the scale is that of the
least squared error among fractions of this one, $2^{-k/8}$ for $k = 0, \dots, 56$, and then in turn
the best for its codes, and the codes the best for it. Below five bits this decides.

Bounds: `theorems.rounding`.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    check_array,
    check_count,
    check_group,
    check_same,
    in_float64,
)
from lowrank_theory._scale import unit
from lowrank_theory.approximations import Quantised
from lowrank_theory.quantisation._grids import Groups, nearest
from lowrank_theory.quantisation._quantiser import AbstractQuantiser, settle_grids
from lowrank_theory.recovery import Need, WeightedTarget


class RoundToNearest(AbstractQuantiser):
    """Rounding to nearest, at several numbers of `bits`. It looks at the weights alone, unless
    grids are `weighted`: then the second moment of an input says how much an error of it counts.

    One grid for each `group` of successive inputs and each output (without a group, for each
    output), with `axis=1` for each input and each group of outputs, and with `axis=None` one for
    the whole matrix. `symmetric` grids keep no zeros; `clipped` ones do not reach the largest entry
    where that loses less.
    """

    bits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    group: int | None = None
    axis: int | None = 0
    symmetric: bool = True
    clipped: bool = True
    weighted: bool = False

    def __check_init__(self) -> None:
        settle_grids(self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of bits."""
        return self.bits

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing but weights, or second moments."""
        return frozenset({Need.MOMENTS} if self.weighted else ())

    def quantise(self, weights: Any, problem: WeightedTarget | None, bits: int) -> Quantised:
        """The nearest levels."""
        importance = None
        if self.weighted:
            assert problem is not None
            importance = np.diagonal(np.asarray(problem.gram))
        return round_to_nearest(
            weights,
            bits,
            importance=importance,
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
    axis: int | None = 0,
    symmetric: bool = True,
    clipped: bool = True,
    importance: ArrayLike | None = None,
) -> Quantised:
    r"""The pure function beneath `RoundToNearest`: packed codes, and scales in the dtype of the
    weights. Codes are found for the scales as they are rounded to it. `importance` (inputs,) says
    how much a squared error of an input counts where scales are chosen; all count alike without.

    Works under `jit` and `vmap`; codes have no derivative. Multiplying the weights by $2^k$
    multiplies scales. Raises `ValueError` for weights that are no finite matrix of floats, and for
    bits, an axis or a group that there are not.
    """
    weights = check_array("weights", weights, "inputs", "outputs")
    bits = check_count("bits", bits, 1, 8)
    group, axis = check_group(group, axis)
    if importance is None:
        importance = np.ones(weights.shape[0])
    importance = check_array("importance", importance, "inputs")
    check_same("importance", len(importance), "weights", weights.shape[0], "inputs")
    codes, scales, zeros = _rounded(
        weights,
        importance,
        np.float64(bits),
        group=group,
        axis=axis,
        symmetric=bool(symmetric),
        clipped=bool(clipped),
    )
    return Quantised.of(codes, scales, zeros, bits=bits, group=group, axis=axis)


@functools.partial(in_float64, like=0)
def _rounded(
    weights: Array,
    importance: Array,
    bits: Array,
    *,
    group: int | None,
    axis: int | None,
    symmetric: bool,
    clipped: bool,
    dtype: Any = None,
) -> tuple[Array, Array, Array | None]:
    """Codes, scales and zeros: one program for all numbers of bits."""
    matrix, power = unit(weights)
    groups = Groups.of(matrix, jnp.maximum(unit(importance)[0], 0), group, axis)
    grid = groups.reaching_all(bits, symmetric)
    if clipped:
        grid = groups.least_squares(grid, bits, symmetric)
    return nearest(
        groups, grid, bits, power, matrix.shape, axis=axis, symmetric=symmetric, dtype=dtype
    )
