r"""Rounding input after input, each rounded so as to make up for those before.

The levels are those of another quantiser, and stay; the codes are chosen again. With $\tilde H = H
+ \lambda I$ and $R$ as in `_second_order`, input k is rounded to the levels nearest to $w_k +
\sum_{j<k}(R_{jk}/R_{kk})e_j$, where $e_j$ are the errors so far: the best for what came before,
whatever comes after. What is left over, $\delta_k$, costs $\sum_kR_{kk}^2\lVert\delta_k\rVert^2$
in all. (Frantar, Ashkboos, Hoefler and Alistarh 2023, arXiv 2210.17323; without an inverse, as
LDLQ, Chee, Cai, Kuleshov and De Sa 2023, arXiv 2307.13304.)

Where $H$ is diagonal nothing can be made up for, and the codes are the nearest ones.

The paper refits the scales of a group when the first of its inputs is reached. In the order of the
second moments its groups are then of inputs far apart, and this order must be kept. Here levels
stay, and no order is kept.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    check_array,
    check_positive,
    check_same,
    in_float64,
    keep,
    matmul,
    settle,
)
from lowrank_theory._scale import at_scale_one, unit
from lowrank_theory._second_order import elimination
from lowrank_theory.approximations import Quantised
from lowrank_theory.approximations.quantised import spread
from lowrank_theory.quantisation._grids import Grid, middle
from lowrank_theory.quantisation._quantiser import AbstractQuantiser, check_quantiser
from lowrank_theory.quantisation.round_to_nearest import RoundToNearest
from lowrank_theory.recovery import Need, WeightedTarget

BLOCK = 64  # inputs between two products with all errors so far


class GPTQ(AbstractQuantiser):
    r"""The levels of another quantiser, `levels`, and codes for what the layer sees.

    The most important inputs come first, `ordered` by their second moments, or all in the order in
    which they are. `damping` is $\lambda$ over the mean of the diagonal of $H$.
    """

    levels: AbstractQuantiser = RoundToNearest()
    ordered: bool = True
    damping: float = 0.01

    def __check_init__(self) -> None:
        keep(self, "levels", check_quantiser("levels", self.levels))
        settle(self, "damping", check_positive, zero=True)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Those of the levels."""
        return self.levels.sizes

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments."""
        return self.levels.needs | {Need.MOMENTS}

    def quantise(self, weights: Any, problem: WeightedTarget | None, bits: int) -> Quantised:
        """The levels of these weights, and codes for the moments of the problem."""
        assert problem is not None
        levels = self.levels.quantise(weights, problem, bits)
        return gptq(weights, problem.gram, levels, ordered=self.ordered, damping=self.damping)


def gptq(
    weights: ArrayLike,
    gram: ArrayLike,
    levels: Quantised,
    *,
    ordered: bool = True,
    damping: float = 0.01,
) -> Quantised:
    r"""The pure function beneath `GPTQ`: `levels` with other codes, for $H$ = `gram`, of any scale.

    One program serves all numbers of bits and groupings. Works under `jit` and `vmap`; codes have
    no derivative. Raises `ValueError` for what are no finite matrices of floats that fit, for
    levels whose inputs were sorted, and for a negative damping.
    """
    weights = check_array("weights", weights, "inputs", "outputs")
    gram = check_array("gram", gram, "inputs", "inputs")
    if gram.shape != (weights.shape[0],) * 2:
        raise ValueError(f"`gram` must be {(weights.shape[0],) * 2}; got {gram.shape}.")
    damping = check_positive("damping", damping, zero=True)
    for axis, name in enumerate(("inputs", "outputs")):
        check_same("levels", levels.shape[axis], "weights", weights.shape[axis], name)
    if levels.order is not None:
        raise ValueError("`levels` must be in the order of the inputs; got some with an `order`.")
    codes = _swept(
        weights,
        gram,
        levels.scales,
        levels.zeros,
        levels.input_scales,
        np.float64(levels.bits),
        np.float64(damping),
        group=levels.group,
        axis=levels.axis,
        ordered=bool(ordered),
    )
    kept = levels.scales, levels.zeros, levels.input_scales
    return Quantised.of(codes, *kept, bits=levels.bits, group=levels.group, axis=levels.axis)


@functools.partial(in_float64, like=0)
def _swept(
    weights: Array,
    gram: Array,
    scales: Array,
    zeros: Array | None,
    input_scales: Array | None,
    bits: Array,
    damping: Array,
    *,
    group: int | None,
    axis: int | None,
    ordered: bool,
) -> UInt8[Array, "inputs outputs"]:
    matrix, power = unit(weights)
    gram, _ = unit(gram)
    inputs, outputs = shape = matrix.shape
    scale = spread(at_scale_one(scales, power), shape, group, axis)
    if input_scales is not None:
        scale = scale * input_scales[:, None]
    zero = middle(bits) if zeros is None else spread(zeros, shape, group, axis)
    grid = Grid(*(jnp.broadcast_to(each, shape) for each in (scale, -scale * zero)))

    order = jnp.arange(inputs)
    if ordered:
        order = jnp.argsort(-jnp.diagonal(gram), stable=True)
    _, feedback = elimination(gram[order][:, order], damping)
    size = min(BLOCK, inputs)
    blocks = -(-inputs // size)
    more = blocks * size - inputs
    feedback = jnp.pad(feedback, (0, more))
    matrix, grid = jax.tree.map(
        lambda each: jnp.pad(each[order], ((0, more), (0, 0))), (matrix, grid)
    )

    def one_block(errors: Array, number: Array) -> tuple[Array, Array]:
        def here(array: Array, axis: int = 0) -> Array:
            return jax.lax.dynamic_slice_in_dim(array, number * size, size, axis)

        rows, levels = jax.tree.map(here, (matrix, grid))
        feeding = here(feedback, 1)
        wanted, within = rows + matmul(feeding.T, errors), here(feeding)

        def one_input(k: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
            mine, codes = found
            level = jax.tree.map(lambda each: each[k], levels)
            code = level.codes(wanted[k] + matmul(within[:, k], mine), bits)
            return mine.at[k].set(rows[k] - level.levels(code)), codes.at[k].set(code)

        nothing = jnp.zeros_like(rows)
        mine, codes = jax.lax.fori_loop(0, size, one_input, (nothing, nothing))
        return jax.lax.dynamic_update_slice_in_dim(errors, mine, number * size, 0), codes

    _, codes = jax.lax.scan(one_block, jnp.zeros_like(matrix), jnp.arange(blocks))
    codes = codes.reshape(-1, outputs)[:inputs].astype(jnp.uint8)
    return jnp.zeros_like(codes).at[order].set(codes)
