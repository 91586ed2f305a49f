r"""What is returned, and what may be promised of it.

A layer is found in float64 at scale one, $Z = LR$, and returned as $\hat Z = \hat L\hat R$ in the
dtype of the weights, at their scale. Promises are made of $\hat Z$. With $\mathrm dL = \hat L - L$
and $\mathrm dR = \hat R - R$ rounding adds to the squared error

$$ \lVert Y - \tilde X\hat Z\rVert_F^2 - \lVert Y - \tilde XZ\rVert_F^2
  = \lVert\tilde XD\rVert_F^2 - 2\langle Y - \tilde XZ, \tilde XD\rangle,
  \qquad D = \mathrm dL\,\hat R + L\,\mathrm dR . $$

Where $\tilde XZ = FVV^\top$ with $F$ the attainable outputs and $V = R^\top$ orthonormal, the
second term is $\langle F^\top\tilde X\hat L, (I - VV^\top)\mathrm dR^\top\rangle$: of second order,
and measured as such, without a difference of large numbers (paper_notes/numerical_route.md).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lowrank_theory._numerics import matmul, safe_sqrt
from lowrank_theory._scale import SMALLEST, at_scale_one, exponent, norm, times_power, widened
from lowrank_theory.approximations import LowRank
from lowrank_theory.recovery._recover import NEAR_OPTIMAL, Certificate, Means, is_finite

Returned = tuple[LowRank, Float[Array, " outputs"] | None, Certificate]


class Fit(eqx.Module):
    r"""A layer found in float64, at scale one, of one rank or (`optimum`, `least`, `most`) of every
    rank from 0 on.

    - `left` $L$ (inputs, k), `right` $R$ (k, outputs), `energies` $\lVert\tilde XL_i\rVert^2$;
    - `optimum`, `least`, `most`: squared errors, that of the best layer as computed, the least that
      it can truly be, and the most that the error of this layer can be;
    - `slack`: what rounding may add to the difference of the roots of the last two;
    - `target`, `size`: the norms of what is approximated, and of the inputs;
    - `power`: outputs are $2^p$ times those at scale one; `left_power`: so are the left factors.
    """

    left: Float[Array, "inputs rank"]
    right: Float[Array, "rank outputs"]
    energies: Float[Array, " rank"]
    optimum: Float[Array, "*ranks"]
    least: Float[Array, "*ranks"]
    most: Float[Array, "*ranks"]
    slack: Float[Array, ""]
    target: Float[Array, ""]
    size: Float[Array, ""]
    power: Int[Array, ""]
    left_power: Int[Array, ""]


class Rounded(eqx.Module):
    r"""Factors as they are returned, and $\mathrm dL$, $\mathrm dR$ at scale one."""

    factors: LowRank
    left: Float[Array, "inputs rank"]
    right: Float[Array, "rank outputs"]


class Response(eqx.Module):
    r"""What the layer answers to $\mathrm dL$: `crossed` $F^\top\tilde X\,\mathrm dL$ and `squared`
    $\mathrm dL^\top\tilde X^\top\tilde X\,\mathrm dL$. Where $V$ is not made of singular vectors of
    $F$, also `image` $F^\top\tilde XL$.
    """

    crossed: Float[Array, "outputs rank"]
    squared: Float[Array, "rank rank"]
    image: Float[Array, "outputs rank"] | None = None


def moved_outputs(
    layer_inputs: Float[Array, "samples inputs"],
    left: Float[Array, "inputs rank"],
    right: Float[Array, "rank outputs"],
    rounded: Rounded,
) -> Float[Array, "samples outputs"]:
    r"""$\tilde XD$: how rounding moved the outputs."""
    now = right + rounded.right
    return matmul(layer_inputs, rounded.left, now) + matmul(layer_inputs, left, rounded.right)


class Affine(eqx.Module):
    """The bias to be replaced, and the mean output without it and the mean input, at scale one."""

    bias: Float[Array, " outputs"] | float
    output_mean: Float[Array, " outputs"]
    input_mean: Float[Array, " inputs"]
    samples: Float[Array, ""]


def is_rounded(dtype: np.dtype) -> bool:
    """Whether factors lose digits in this dtype."""
    return bool(jnp.finfo(dtype).eps > np.finfo(np.float64).eps)


def stored(left: Any, right: Any, power: Any, dtype: np.dtype) -> Rounded:
    r"""$2^pLR$ as factors of this dtype.

    In two bytes or less, whose range is narrow, each component gives half of its size to either
    side: $\hat L$ is divided, and $\hat R$ multiplied, by a power of two.
    """
    shared = jnp.zeros(right.shape[0], jnp.int32)
    if dtype.itemsize <= 2:
        sizes = jax.vmap(exponent, in_axes=1)(left) + power - jax.vmap(exponent)(right)
        shared = sizes // 2
    factors = LowRank(
        times_power(left, power - shared).astype(dtype),
        times_power(right, shared[:, None]).astype(dtype),
    )
    factors = jax.lax.optimization_barrier(factors)  # or XLA might cast twice for once
    return Rounded(
        factors,
        times_power(widened(factors.left), shared - power) - left,
        times_power(widened(factors.right), -shared[:, None]) - right,
    )


def added_by_rounding(fit: Fit, rounded: Rounded, response: Response) -> Float[Array, " ranks"]:
    """What the squared errors of the leading 0, 1, ... components gain, in units of scale one."""
    change, vectors = rounded.right, fit.right.T
    now = fit.right + change
    answer = response.crossed if response.image is None else response.image + response.crossed
    blocks = (
        response.squared * matmul(now, now.T)
        + 2 * matmul(response.crossed.T, vectors) * matmul(now, change.T)
        + 2 * matmul(answer.T, vectors) * matmul(change, vectors)
    )
    diagonal = fit.energies * jnp.sum(change**2, axis=1) - 2 * jnp.sum(change * answer.T, axis=1)
    leading = jnp.diagonal(jnp.cumsum(jnp.cumsum(blocks, axis=0), axis=1)) + jnp.cumsum(diagonal)
    return jnp.concatenate([jnp.zeros(1), leading])


def new_bias(
    fit: Fit, rounded: Rounded, affine: Affine, dtype: np.dtype
) -> tuple[Float[Array, " outputs"], Float[Array, ""]]:
    r"""$b + \bar y - \tilde x^\top\hat Z$ in this dtype, which keeps the mean output what it was,
    and the squared error, at scale one, that rounding it makes.
    """
    weights = fit.left + rounded.left, fit.right + rounded.right
    shift = affine.output_mean - matmul(affine.input_mean, *weights)
    returned = (affine.bias + times_power(shift, fit.power)).astype(dtype)
    returned = jax.lax.optimization_barrier(returned)
    missed = at_scale_one(widened(returned) - affine.bias, fit.power) - shift
    return returned, affine.samples * jnp.sum(missed**2)


def certified(
    fit: Fit,
    rounded: Rounded,
    response: Response | None,
    *returned: Array,
    missed: Float[Array, ""] | float = 0.0,
    tolerance: float = NEAR_OPTIMAL,
) -> Certificate:
    """The certificate of the factors as they are returned. `missed` is what their squared error
    gains besides, and `returned` is what else must be finite.
    """
    gained = missed
    if response is not None:
        added = jnp.maximum(added_by_rounding(fit, rounded, response), 0)
        gained = gained + (added if fit.optimum.ndim else added[-1])
    excess = safe_sqrt(fit.most + gained) - safe_sqrt(fit.least) + fit.slack
    if response is None:  # only what lies below the normal numbers is lost
        lost = norm(rounded.left) + norm(fit.left) * norm(rounded.right)
        excess = excess + fit.size * lost
    return scaled_certificate(
        safe_sqrt(fit.optimum),
        excess,
        fit.target,
        is_finite(rounded.factors.left, rounded.factors.right, *returned),
        fit.power,
        tolerance,
    )


def scaled_certificate(
    optimum: Array, excess: Array, target: Array, finite: Array, power: Array, tolerance: float
) -> Certificate:
    """A certificate whose numbers are $2^p$ times these, the excess rounded up."""
    stack = jnp.broadcast_arrays(optimum, excess, target)
    optimum, scaled, target = times_power(jnp.stack(stack), power)
    return Certificate(
        optimal_error=optimum,
        excess_bound=jnp.where((excess > 0) & (scaled < SMALLEST), SMALLEST, scaled),
        target_norm=target,
        finite=jnp.broadcast_to(finite, scaled.shape),
        tolerance=tolerance,
    )


def finished(
    fit: Fit,
    seen: Any,
    affine: Affine | None,
    dtype: np.dtype,
    tolerance: float = NEAR_OPTIMAL,
) -> Returned:
    """The layer in the dtype in which it is returned, and what is known of that. `seen` says how
    the layer answers to changes.
    """
    rounded = stored(fit.left, fit.right, fit.left_power, dtype)
    answered = seen.response(rounded.left) if is_rounded(dtype) else None
    if affine is None:
        return rounded.factors, None, certified(fit, rounded, answered, tolerance=tolerance)
    bias, missed = new_bias(fit, rounded, affine, dtype)
    certificate = certified(fit, rounded, answered, bias, missed=missed, tolerance=tolerance)
    return rounded.factors, bias, certificate


def unfinished(
    fit: Fit, seen: Any, affine: Affine | None, dtype: np.dtype
) -> tuple[LowRank, Means | None, Certificate]:
    """The layers of all ranks, whose biases are still to come."""
    rounded = stored(fit.left, fit.right, fit.left_power, dtype)
    answered = seen.response(rounded.left) if is_rounded(dtype) else None
    means = None
    if affine is not None:
        output = affine.bias + times_power(affine.output_mean, fit.power)
        inputs = times_power(affine.input_mean, fit.power - fit.left_power)
        means = Means(output, inputs, affine.samples)
    return rounded.factors, means, certified(fit, rounded, answered)
