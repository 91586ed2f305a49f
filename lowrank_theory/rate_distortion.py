r"""The least error that so many bits allow, whatever the code.

For weights $W$ of i.i.d. $N(0, s^2)$ entries, and the eigenvalues $\lambda_i$ of $X^\top X$, any
code of $B$ bits has

$$\mathbb E\lVert X(W - \hat W)\rVert_F^2 \ge K\sum_i\min(\theta, \lambda_is^2), \qquad
B = \frac K2\sum_i\log_2^+\frac{\lambda_is^2}\theta,$$

with $K$ outputs: *reverse water-filling*. No code is better, for any sizes, and some are nearly as
good for many outputs (Shannon 1959). For the outputs of a layer as they stand, take the eigenvalues
of their covariance, and the bits of a row. Proof: paper_notes/rate_distortion.md.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from lowrank_theory._numerics import check_array, check_count, check_positive, in_float64
from lowrank_theory._scale import times_power, unit


def distortion_floor(
    eigenvalues: ArrayLike, bits: Any, *, outputs: Any = 1, weight_scale: Any = 1.0
) -> Float[Array, ""]:
    r"""$K\sum_i\min(\theta, \lambda_is^2)$ for `eigenvalues` $\lambda$ (inputs,), in any order,
    `bits` $B$ for all weights together, $K$ = `outputs` and $s$ = `weight_scale`. In the units of
    the squared outputs: times $2^k$ where the eigenvalues are.

    With a number $K_i$ of `outputs` for each eigenvalue (inputs,) it is the floor of layers
    together, which share the bits: $\sum_iK_i\min(\theta, \lambda_is^2)$ for $B =
    \frac12\sum_iK_i\log_2^+(\lambda_is^2/\theta)$. Where layers have scales of their own, or errors
    count relative to outputs, the eigenvalues are of these.

    It falls from $Ks^2\sum_i\lambda_i$ without bits, convex, and as $4^{-B/NK}$ once there are
    many. Negative eigenvalues, which rounding makes of zeros, count as zeros. Works under `jit`,
    `vmap` and `grad`.

    Raises `ValueError` for eigenvalues that are not finite numbers, for negative bits, fewer than
    one output, and a weight scale that is not positive.
    """
    eigenvalues = check_array("eigenvalues", eigenvalues, "inputs")
    counts = np.asarray(outputs)
    if counts.shape == eigenvalues.shape and np.issubdtype(counts.dtype, np.integer):
        if counts.size and counts.min() < 1:
            raise ValueError(f"`outputs` must be integers >= 1; got one of {counts.min()}.")
    else:
        counts = np.full(eigenvalues.shape, check_count("outputs", outputs, 1))
    if not isinstance(bits, Tracer):
        bits = np.float64(check_positive("bits", bits, zero=True))
    if not isinstance(weight_scale, Tracer):
        weight_scale = np.float64(check_positive("weight_scale", weight_scale))
    return _floor(eigenvalues, bits, weight_scale, counts.astype(np.float64))


@functools.partial(in_float64, like=0)
def _floor(
    eigenvalues: Float[Array, " inputs"],
    bits: Float[Array, ""],
    weight_scale: Float[Array, ""],
    outputs: Float[Array, " inputs"],
) -> Float[Array, ""]:
    """Of the largest eigenvalues so many get bits that the level lies below the last of them."""
    scaled, power = unit(eigenvalues)
    order = jnp.argsort(-jnp.maximum(scaled, 0))
    values, outputs = jnp.maximum(scaled, 0)[order], outputs[order]
    there = values > 0
    logarithms = jnp.log2(jnp.where(there, values, 1))
    levels = (jnp.cumsum(outputs * logarithms) - 2 * bits) / jnp.cumsum(outputs)
    used = jnp.sum(there & (levels <= logarithms))
    level = levels[jnp.maximum(used - 1, 0)]
    filled = jnp.where(jnp.arange(values.size) < used, 2.0**level, values)
    return times_power(jnp.sum(outputs * filled), power) * weight_scale**2
