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

import abc
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


class Affine(eqx.Module):
    """The bias to be replaced, and the mean output without it and the mean input, at scale one."""

    bias: Float[Array, " outputs"] | float
    output_mean: Float[Array, " outputs"]
    input_mean: Float[Array, " inputs"]
    samples: Float[Array, ""]


class Perturbation(eqx.Module):
    r"""What $\mathrm dL$ does to the squared error: `cross` $F^\top\tilde X\,\mathrm dL$ and
    `quadratic` $\mathrm dL^\top\tilde X^\top\tilde X\,\mathrm dL$. Where $V$ is not made of
    singular vectors of $F$, also `image` $F^\top\tilde XL$.
    """

    cross: Float[Array, "outputs rank"]
    quadratic: Float[Array, "rank rank"]
    image: Float[Array, "outputs rank"] | None = None


class AbstractSensitivity(eqx.Module):
    r"""What of $\tilde X$ and $F$ says how small changes of the left factor act."""

    @abc.abstractmethod
    def perturbation(self, change: Float[Array, "inputs rank"]) -> Perturbation:
        r"""By this $\mathrm dL$."""


class Fit(eqx.Module):
    r"""A layer found in float64, at scale one, of one rank or (`optimum`, `lower`, `upper`) of all
    ranks from 0 on.

    - `left` $L$ (inputs, k), `right` $R$ (k, outputs), `eigenvalues` $\lVert\tilde XL_i\rVert^2$;
    - `optimum`, `lower`, `upper`: squared errors, that of the best layer as computed, the least
      that it can truly be, and the most that the error of this layer can be;
    - `rounding`: what rounding may add to the difference of the roots of the last two;
    - `target_norm`, `inputs_norm`: of what is approximated, and of the inputs;
    - `power`: outputs are $2^p$ times those at scale one; `left_power`: so are the left factors;
    - `affine`: the bias that is to be replaced, if there is one;
    - `sensitivity`: what small changes of the factors do to the outputs. It is not needed where
      factors are returned as they were found, in float64.
    """

    left: Float[Array, "inputs rank"]
    right: Float[Array, "rank outputs"]
    eigenvalues: Float[Array, " rank"]
    optimum: Float[Array, "*ranks"]
    lower: Float[Array, "*ranks"]
    upper: Float[Array, "*ranks"]
    rounding: Float[Array, ""]
    target_norm: Float[Array, ""]
    inputs_norm: Float[Array, ""]
    power: Int[Array, ""]
    left_power: Int[Array, ""]
    affine: Affine | None
    sensitivity: AbstractSensitivity | None


class Rounded(eqx.Module):
    r"""Factors as they are returned, and $\mathrm dL$, $\mathrm dR$ at scale one."""

    factors: LowRank
    left_change: Float[Array, "inputs rank"]
    right_change: Float[Array, "rank outputs"]


def output_change(
    layer_inputs: Float[Array, "samples inputs"],
    left: Float[Array, "inputs rank"],
    right: Float[Array, "rank outputs"],
    rounded: Rounded,
) -> Float[Array, "samples outputs"]:
    r"""$\tilde XD$: how rounding changed the outputs."""
    found = right + rounded.right_change
    by_left = matmul(layer_inputs, rounded.left_change, found)
    return by_left + matmul(layer_inputs, left, rounded.right_change)


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


def added_by_rounding(
    fit: Fit, rounded: Rounded, sensitivity: AbstractSensitivity
) -> Float[Array, " ranks"]:
    """What the squared errors of the leading 0, 1, ... components gain, in units of scale one."""
    by_left = sensitivity.perturbation(rounded.left_change)
    change, vectors = rounded.right_change, fit.right.T
    found = fit.right + change
    image = by_left.cross if by_left.image is None else by_left.image + by_left.cross
    blocks = (
        by_left.quadratic * matmul(found, found.T)
        + 2 * matmul(by_left.cross.T, vectors) * matmul(found, change.T)
        + 2 * matmul(image.T, vectors) * matmul(change, vectors)
    )
    diagonal = fit.eigenvalues * jnp.sum(change**2, axis=1) - 2 * jnp.sum(change * image.T, axis=1)
    leading = jnp.diagonal(jnp.cumsum(jnp.cumsum(blocks, axis=0), axis=1)) + jnp.cumsum(diagonal)
    return jnp.concatenate([jnp.zeros(1), leading])


def new_bias(
    fit: Fit, rounded: Rounded, affine: Affine, dtype: np.dtype
) -> tuple[Float[Array, " outputs"], Float[Array, ""]]:
    r"""$b + \bar y - \tilde x^\top\hat Z$ in this dtype, which keeps the mean output what it was,
    and the squared error, at scale one, that rounding it makes.
    """
    weights = fit.left + rounded.left_change, fit.right + rounded.right_change
    shift = affine.output_mean - matmul(affine.input_mean, *weights)
    returned = (affine.bias + times_power(shift, fit.power)).astype(dtype)
    returned = jax.lax.optimization_barrier(returned)
    missed = at_scale_one(widened(returned) - affine.bias, fit.power) - shift
    return returned, affine.samples * jnp.sum(missed**2)


def certificate_of(
    fit: Fit,
    rounded: Rounded,
    *returned: Array,
    missed: Float[Array, ""] | float = 0.0,
    tolerance: float = NEAR_OPTIMAL,
) -> Certificate:
    """The certificate of the factors as they are returned. `missed` is what their squared error
    gains besides, and `returned` is what else must be finite.
    """
    gained = missed
    in_full = not is_rounded(rounded.factors.dtype)
    if not in_full:
        assert fit.sensitivity is not None
        added = jnp.maximum(added_by_rounding(fit, rounded, fit.sensitivity), 0)
        gained = gained + (added if fit.optimum.ndim else added[-1])
    excess = safe_sqrt(fit.upper + gained) - safe_sqrt(fit.lower) + fit.rounding
    if in_full:  # only what lies below the normal numbers is lost
        lost = norm(rounded.left_change) + norm(fit.left) * norm(rounded.right_change)
        excess = excess + fit.inputs_norm * lost
    return scaled_certificate(
        safe_sqrt(fit.optimum),
        excess,
        fit.target_norm,
        is_finite(rounded.factors.left, rounded.factors.right, fit.inputs_norm, *returned),
        fit.power,
        tolerance,
    )


def scaled_certificate(
    optimum: Array, excess: Array, target: Array, finite: Array, power: Array, tolerance: float
) -> Certificate:
    """A certificate whose numbers are $2^p$ times these, the excess rounded up.

    It is `finite` where what is approximated is, too: on an accelerator decompositions can make
    finite numbers of NaN.
    """
    finite = finite & jnp.isfinite(target)
    stack = jnp.broadcast_arrays(optimum, excess, target)
    optimum, scaled, target = times_power(jnp.stack(stack), power)
    return Certificate(
        optimal_error=optimum,
        excess_bound=jnp.where((excess > 0) & (scaled < SMALLEST), SMALLEST, scaled),
        target_norm=target,
        finite=jnp.broadcast_to(finite, scaled.shape),
        tolerance=tolerance,
    )


def returned(fit: Fit, dtype: np.dtype, tolerance: float = NEAR_OPTIMAL) -> Returned:
    """The layer in the dtype in which it is returned, and what is known of that."""
    rounded = stored(fit.left, fit.right, fit.left_power, dtype)
    if fit.affine is None:
        return rounded.factors, None, certificate_of(fit, rounded, tolerance=tolerance)
    bias, missed = new_bias(fit, rounded, fit.affine, dtype)
    certificate = certificate_of(fit, rounded, bias, missed=missed, tolerance=tolerance)
    return rounded.factors, bias, certificate


def returned_at_every_rank(fit: Fit, dtype: np.dtype) -> tuple[LowRank, Means | None, Certificate]:
    """The layers of all ranks, whose biases are still to come."""
    rounded = stored(fit.left, fit.right, fit.left_power, dtype)
    means, affine = None, fit.affine
    if affine is not None:
        output = affine.bias + times_power(affine.output_mean, fit.power)
        inputs = times_power(affine.input_mean, fit.power - fit.left_power)
        means = Means(output, inputs, affine.samples)
    return rounded.factors, means, certificate_of(fit, rounded)
