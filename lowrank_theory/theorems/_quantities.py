"""The quantities in which the theorems speak, each computed once and independently of the
estimators.
"""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lowrank_theory._numerics import (
    AnyArray,
    check_number,
    matmul,
    relative_rank_cutoff,
    rounding_allowance,
    safe_divide,
    safe_sqrt,
)
from lowrank_theory.perturbations import Perturbation
from lowrank_theory.problems import Layer, Problem, Truth
from lowrank_theory.theorems._theorem import Hypothesis, Standing


class ColumnSpace(eqx.Module):
    r"""The column space of $\tilde X$: orthonormal `basis` (padded with zero columns), and its
    dimension q.
    """

    basis: Float[Array, "samples width"]
    dimension: Float[Array, ""]

    def coordinates(
        self, matrix: Float[AnyArray, "samples outputs"]
    ) -> Float[Array, "width outputs"]:
        """$U^TA$, which has the singular values of $PA$ (and zeros)."""
        return matmul(self.basis.T, matrix)


def column_space(layer_inputs: Float[AnyArray, "samples inputs"]) -> ColumnSpace:
    """The column space, by one rank cut-off."""
    left, values, _ = jnp.linalg.svd(layer_inputs, full_matrices=False)
    kept = _kept(values, layer_inputs.shape)
    return ColumnSpace(left * kept, jnp.sum(kept).astype(float))


def column_rank(layer_inputs: Float[AnyArray, "samples inputs"]) -> Float[Array, ""]:
    """q, by the same cut-off: in half the time, where no basis is needed."""
    values = singular_values(jnp.asarray(layer_inputs))
    return jnp.sum(_kept(values, layer_inputs.shape)).astype(float)


def _kept(values: Float[Array, " count"], shape: tuple[int, ...]) -> Bool[Array, " count"]:
    """The singular values that are not rounding."""
    return values > relative_rank_cutoff(shape) * values[0]


def singular_values(matrix: Float[Array, "rows columns"]) -> Float[Array, " count"]:
    """Singular values in decreasing order."""
    return jnp.linalg.svd(matrix, compute_uv=False)


def tail_norm(values: Float[Array, " count"], rank: int) -> Float[Array, ""]:
    """The Frobenius norm of all but the `rank` largest singular values."""
    return jnp.linalg.norm(values[rank:])


def schatten_norm(values: Float[Array, " count"], exponent: float) -> Float[Array, ""]:
    r"""$(\sum_is_i^p)^{1/p}$ of non-negative values, the largest of them for $p = \infty$."""
    largest = jnp.max(values, initial=0.0)
    if math.isinf(exponent):
        return largest
    return largest * jnp.sum(safe_divide(values, largest) ** exponent) ** (1 / exponent)


def check_exponent(name: str, value: Any) -> float:
    """The exponent of a norm."""
    exponent = check_number(value)
    if not exponent >= 1:
        raise ValueError(f"`{name}` must be at least 1 (infinity is allowed); got {value!r}.")
    return exponent


def total_norm(instance: Perturbation) -> Float[Array, ""]:
    r"""$\lVert A\rVert_F + \lVert Z\rVert_F$, with which rounding in $A + Z$ scales."""
    return jnp.linalg.norm(instance.matrix) + jnp.linalg.norm(instance.noise)


def attainable_noise(problem: Problem) -> tuple[Float[Array, " count"], Float[Array, ""]]:
    """The singular values of $PE$, and q."""
    space = column_space(problem.truth.layer_inputs)
    return singular_values(space.coordinates(problem.truth.noise)), space.dimension


def target_rank_hypothesis(problem: Problem) -> Hypothesis:
    r"""rank$(\tilde XM) \le r$, up to rounding: the relative size of the (r+1)-th singular value
    against the cut-off.
    """
    truth = problem.truth
    values = singular_values(truth.clean_outputs)
    rest = values[problem.rank] if values.size > problem.rank else jnp.zeros(())
    scale = jnp.linalg.norm(truth.layer_inputs) * jnp.linalg.norm(truth.target_weights)
    allowed = rounding_allowance(scale, *truth.layer_inputs.shape)
    return Hypothesis("the target outputs have rank at most r", safe_divide(allowed - rest, scale))


def model_hypothesis(
    name: str, problem: Problem, signal: Float[Array, "samples outputs"]
) -> Hypothesis:
    """Outputs = signal + noise, up to rounding."""
    truth, outputs = problem.truth, problem.observed.target_outputs
    scale = jnp.linalg.norm(outputs) + jnp.linalg.norm(truth.noise)
    allowed = rounding_allowance(scale, *truth.layer_inputs.shape)
    mismatch = jnp.linalg.norm(outputs - signal - truth.noise)
    return Hypothesis(name, safe_divide(allowed - mismatch, scale))


def planted_hypothesis(problem: Problem) -> Hypothesis:
    r"""$Y = \tilde XM + E$: not so behind a ReLU."""
    name = "the outputs are clean outputs plus noise"
    return model_hypothesis(name, problem, problem.truth.clean_outputs)


def law_hypothesis(name: str, known: Bool[AnyArray, ""]) -> Hypothesis:
    """A hypothesis on a law: known of synthetic layers by construction, a matter of trust on real
    ones.
    """
    return Hypothesis(name, jnp.where(known, 1.0, -1.0), Standing.TRUSTED)


def gaussian_noise_hypothesis(truth: Truth) -> Hypothesis:
    """Independent Gaussian entries of one variance."""
    return law_hypothesis("the noise is i.i.d. Gaussian", truth.gaussian_noise)


def sub_gaussian_noise_hypothesis(truth: Truth) -> Hypothesis:
    """Independent entries with a finite sub-Gaussian constant."""
    name = "the noise entries are independent and sub-Gaussian"
    return law_hypothesis(name, jnp.isfinite(truth.noise_scale))


def no_bias_hypothesis(instance: Problem | Layer) -> Hypothesis:
    """No bias, with which the recovery would solve another problem, the centred one."""
    return Hypothesis("the layer has no bias", 0.0 if instance.observed.bias is None else -1.0)


def gaussian_edge(problem: Problem, failure_probability: float) -> Float[Array, ""]:
    r"""$\sigma(\sqrt q + \sqrt K + t)$, above $\lVert PE\rVert$ with probability $1-\delta$ for
    i.i.d. Gaussian noise.
    """
    q = column_rank(problem.truth.layer_inputs)
    edge = jnp.sqrt(q) + math.sqrt(problem.observed.shape[1]) + deviation(failure_probability)
    return jnp.asarray(problem.truth.noise_scale) * edge


def largest_rank(problem: Problem) -> Float[Array, ""]:
    r"""$d = \min(q, K)$, above which no outputs of the layer have their rank."""
    return jnp.minimum(
        column_space(problem.truth.layer_inputs).dimension, problem.observed.shape[1]
    )


def output_norm(problem: Problem) -> Float[Array, ""]:
    r"""$\lVert Y\rVert_F$."""
    return jnp.linalg.norm(problem.observed.target_outputs)


def least_squares(problem: Problem) -> Float[Array, "inputs outputs"]:
    r"""$\tilde X^+Y$: neither truncated nor thresholded, it fits the noise too."""
    return matmul(jnp.linalg.pinv(problem.truth.layer_inputs), problem.observed.target_outputs)


def deviation(failure_probability: float, sides: int = 1) -> Float[Array, ""]:
    r"""The $t$ with `sides` $\cdot e^{-t^2/2}$ = `failure_probability`."""
    return jnp.sqrt(2 * jnp.log(sides / jnp.asarray(failure_probability)))


def largest_turn(ratio: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""Sine and tangent of $\tfrac12\arcsin x$ for the `ratio` $x < 1$; one for $x \ge 1$.

    A symmetric perturbation whose eigenvalues spread over $x$ times the gap at the rank turns a
    leading eigenspace by no larger angle (Davis and Kahan 1970; proved in
    paper_notes/ridge_limit.md).
    """
    inside = jnp.minimum(ratio, 1.0)
    cosine = safe_sqrt(1 - inside**2)
    within = ratio < 1
    sine = jnp.where(within, inside / jnp.sqrt(2 * (1 + cosine)), 1.0)
    return sine, jnp.where(within, inside / (1 + cosine), 1.0)
