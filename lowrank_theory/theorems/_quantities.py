"""The quantities in which the theorems speak, each computed once and independently of the
estimators.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lowrank_theory._numerics import (
    AnyArray,
    Number,
    Tree,
    cast,
    check_number,
    float_dtype,
    matmul,
    relative_rank_cutoff,
    resolution,
    rounding_allowance,
    safe_divide,
    safe_sqrt,
)
from lowrank_theory._scale import equilibrated
from lowrank_theory.perturbations import Perturbation
from lowrank_theory.problems import Layer, Observed, Problem, Truth
from lowrank_theory.recovery import LowRank
from lowrank_theory.theorems._theorem import Hypothesis, Standing

INDEPENDENT_NOISE = "the noise does not depend on the inputs and the target"
EPS = float(jnp.finfo(jnp.float64).eps)
_LEAST = 2.0**-480  # of a size whose square keeps its digits


class ColumnSpace(eqx.Module):
    r"""The column space of $\tilde X$, as far as its entries resolve it: `vectors` are its left
    singular vectors, of which those that are `kept` span the space, and `values` its singular
    values.

    The columns are scaled alike, by powers of two. A direction is kept where its singular value
    then exceeds the one rank cut-off of the project, for the machine epsilon with which $\tilde X$
    was stored. $P$ projects on these; $q$ is their number.
    """

    vectors: Float[Array, "samples width"]
    values: Float[Array, " width"]
    kept: Bool[Array, " width"]

    @property
    def basis(self) -> Float[Array, "samples width"]:
        """Orthonormal columns, padded with zero columns."""
        return self.vectors * self.kept

    @property
    def dimension(self) -> Float[Array, ""]:
        """$q$."""
        return jnp.sum(self.kept).astype(float)

    def coordinates(
        self, matrix: Float[AnyArray, "samples outputs"]
    ) -> Float[Array, "width outputs"]:
        """$U^TA$, which has the singular values of $PA$ (and zeros)."""
        return matmul(self.basis.T, matrix)

    def missed(self, matrix: Float[AnyArray, "samples outputs"]) -> Float[Array, ""]:
        r"""$\lVert(I-P)A\rVert_F$ of a matrix whose columns are combinations of those of $\tilde
        X$: exactly zero where all directions are kept.
        """
        return frobenius(matmul((self.vectors * ~self.kept).T, matrix))

    def fitted(self, matrix: Float[AnyArray, "samples outputs"]) -> Float[Array, ""]:
        r"""$\lVert\tilde X^+A\rVert_F$, the size of the least-squares layer for the outputs $A$,
        where the columns of $\tilde X$ are scaled alike.
        """
        return frobenius(safe_divide(self.coordinates(matrix), self.values[:, None]))


def column_space(
    layer_inputs: Float[AnyArray, "samples inputs"], resolution: float = EPS
) -> ColumnSpace:
    """The column space of inputs that were stored with this machine epsilon."""
    rows, _ = equilibrated(layer_inputs)
    vectors, values, _ = jnp.linalg.svd(rows, full_matrices=False)
    return ColumnSpace(vectors, values, _kept(values, rows.shape, resolution))


def column_rank(
    layer_inputs: Float[AnyArray, "samples inputs"], resolution: float = EPS
) -> Float[Array, ""]:
    """q, by the same cut-off: in half the time, where no basis is needed."""
    values = singular_values(equilibrated(layer_inputs)[0])
    return jnp.sum(_kept(values, layer_inputs.shape, resolution)).astype(float)


def _kept(
    values: Float[Array, " count"], shape: tuple[int, ...], resolution: float
) -> Bool[Array, " count"]:
    """The singular values that are not rounding."""
    return values > relative_rank_cutoff(shape, resolution) * values[0]


def stored_resolution(observed: Observed) -> float:
    r"""The machine epsilon by which the recovery of this layer cuts the rank of $\tilde X$."""
    return resolution(observed.layer_inputs)


def resolved_space(problem: Problem) -> ColumnSpace:
    r"""The columns of $\tilde X$ that the recovery resolves."""
    return column_space(problem.truth.layer_inputs, stored_resolution(problem.observed))


def resolved_rank(problem: Problem) -> Float[Array, ""]:
    """$q$ of the same."""
    return column_rank(problem.truth.layer_inputs, stored_resolution(problem.observed))


def in_double(tree: Tree) -> Tree:
    """The same numbers in float64."""
    return cast(tree, jnp.float64)


def coarseness(*arrays: Any) -> float:
    r"""What rounding in float64 has to be multiplied by, so that it covers that of factors returned
    in the common float dtype of these arrays, with machine epsilon $\epsilon$.

    It moves $\tilde XLR$ by at most $\tfrac\epsilon2\lVert\tilde X\rVert(\lVert L\rVert_F\lVert
    R\rVert + \lVert L\rVert\lVert R\rVert_F)$, no more than $\epsilon\sqrt r\lVert\tilde X\rVert
    \lVert LR\rVert$ if one factor is orthonormal or both are balanced: a thirty-second part of the
    `rounding_allowance` of that epsilon.
    """
    return max(1.0, float(jnp.finfo(float_dtype(*arrays)).eps) / (32 * EPS))


def frobenius(matrix: AnyArray) -> Float[Array, ""]:
    r"""$\lVert A\rVert_F$ wherever it is a float64: squares of the entries need not be.

    The entries are divided by the largest. Powers of two pass through exactly.
    """
    array = jnp.asarray(matrix, float)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(array), initial=0.0))
    unit = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0)
    return unit * safe_sqrt(jnp.sum((array / unit) ** 2))


def squared(size: Float[Array, ""]) -> Float[Array, ""]:
    """The square of a size; NaN where it is no float64, or not to full precision."""
    lost = (size > 0) & ((size < _LEAST) | (size > 1 / _LEAST))
    return jnp.where(lost, jnp.nan, size**2)


def singular_values(matrix: Float[AnyArray, "rows columns"]) -> Float[Array, " count"]:
    """Singular values in decreasing order."""
    return jnp.linalg.svd(jnp.asarray(matrix, float), compute_uv=False)


def tail_norm(values: Float[Array, " count"], rank: int) -> Float[Array, ""]:
    """The Frobenius norm of all but the `rank` largest singular values."""
    return frobenius(values[rank:])


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
    return frobenius(instance.matrix) + frobenius(instance.noise)


def attainable_noise(problem: Problem) -> tuple[Float[Array, " count"], Float[Array, ""]]:
    """The singular values of $PE$, and q."""
    space = resolved_space(problem)
    return singular_values(space.coordinates(problem.truth.noise)), space.dimension


def resolved_signal(problem: Problem) -> tuple[Float[Array, " count"], Float[Array, ""]]:
    r"""The singular values of $PF^*$, and $\lVert(I-P)F^*\rVert_F$: what the clean outputs $F^* =
    \tilde XM$ hold in directions that the recovery does not resolve, and which it loses.
    """
    space, clean = resolved_space(problem), problem.truth.clean_outputs
    return singular_values(space.coordinates(clean)), space.missed(clean)


def forming(inputs: AnyArray, weights: AnyArray) -> Float[Array, ""]:
    r"""$\bigl\lVert\,|X|\,|A|\,\bigr\rVert_F$, on the scale of which $XA$ is rounded: an input that
    $A$ ignores adds nothing, however large it is.
    """
    rows, columns = (jnp.abs(jnp.asarray(part, float)) for part in (inputs, weights))
    return frobenius(matmul(rows, columns))


def rank_hypothesis(name: str, problem: Problem, weights: AnyArray) -> Hypothesis:
    r"""$\operatorname{rank}(\tilde XA) \le r$, up to the rounding of the product: the singular
    values after the r-th against those of what was rounded.
    """
    inputs = problem.truth.layer_inputs
    rest = tail_norm(singular_values(matmul(inputs, weights)), problem.rank)
    scale = coarseness(problem.observed) * forming(inputs, weights)
    allowed = rounding_allowance(scale, *inputs.shape)
    return Hypothesis(name, safe_divide(allowed - rest, scale))


def target_rank_hypothesis(problem: Problem) -> Hypothesis:
    r"""rank$(\tilde XM) \le r$, up to rounding."""
    name = "the target outputs have rank at most r"
    return rank_hypothesis(name, problem, problem.truth.target_weights)


def model_hypothesis(
    name: str, problem: Problem, signal: Float[Array, "samples outputs"]
) -> Hypothesis:
    """Outputs = signal + noise, up to rounding."""
    truth, outputs = problem.truth, jnp.asarray(problem.observed.target_outputs, float)
    formed = forming(truth.layer_inputs, truth.target_weights)
    scale = frobenius(outputs) + frobenius(truth.noise) + formed
    scale = coarseness(problem.observed) * scale
    allowed = rounding_allowance(scale, *truth.layer_inputs.shape)
    mismatch = frobenius(outputs - signal - truth.noise)
    return Hypothesis(name, safe_divide(allowed - mismatch, scale))


def planted_hypothesis(problem: Problem) -> Hypothesis:
    r"""$Y = \tilde XM + E$: not so behind a ReLU."""
    name = "the outputs are clean outputs plus noise"
    return model_hypothesis(name, problem, problem.truth.clean_outputs)


def as_floats(value: Any) -> Any:
    """A number of a setting, or some, as an array: another one compiles nothing anew."""
    return np.asarray(value, float)


def as_known(value: Any) -> Any:
    """What is known of a law, at hand or in a program."""
    return value if isinstance(value, jax.Array) else np.asarray(value)


def law_hypothesis(name: str, known: Bool[AnyArray, ""]) -> Hypothesis:
    """A hypothesis on a law: known of synthetic layers by construction, a matter of trust on real
    ones.
    """
    return Hypothesis(name, jnp.where(known, 1.0, -1.0), Standing.TRUSTED)


def gaussian_noise_hypotheses(truth: Truth) -> tuple[Hypothesis, ...]:
    """Independent Gaussian entries of one variance, which know nothing of the layer."""
    law = law_hypothesis("the noise is i.i.d. Gaussian", truth.gaussian_noise)
    return (law, independent_noise_hypothesis(truth))


def sub_gaussian_noise_hypotheses(truth: Truth) -> tuple[Hypothesis, ...]:
    """Independent entries with a finite sub-Gaussian constant, which know nothing of the layer."""
    name = "the noise entries are independent and sub-Gaussian"
    law = law_hypothesis(name, jnp.isfinite(truth.noise_scale))
    return (law, independent_noise_hypothesis(truth))


def independent_noise_hypothesis(truth: Truth) -> Hypothesis:
    r"""$E$ does not depend on $\tilde X$ and $M$. Noise that holds $(X - \tilde X)W$ does."""
    return law_hypothesis(INDEPENDENT_NOISE, truth.independent_noise)


def rows_and_weights(
    instance: Problem | Layer,
) -> tuple[Float[Array, "samples inputs"], Float[Array, "inputs outputs"]]:
    """$X$ and $W$ in float64. Raises `ValueError` where one of them is not at hand."""
    observed = instance.observed
    if observed.weights is None or observed.activations is None:
        raise ValueError(
            "This statement compares weights with what they see: give `Observed(weights=..., "
            "activations=...)`."
        )
    return jnp.asarray(observed.activations, float), jnp.asarray(observed.weights, float)


def same_activations_hypothesis(instance: Problem | Layer) -> Hypothesis:
    r"""$\tilde X = X$."""
    same = instance.observed.compressed_activations is None
    return Hypothesis("the compressed layer sees the same activations", 0.0 if same else -1.0)


def full_column_rank_hypothesis(
    name: str, ratio: Float[AnyArray, ""] | float, cutoff: float
) -> Hypothesis:
    """`ratio` is that of the smallest singular value to the largest, zero where there are fewer
    rows than columns.
    """
    return Hypothesis(f"{name} full column rank", jnp.asarray(ratio - cutoff))


def no_bias_hypothesis(instance: Problem | Layer) -> Hypothesis:
    """No bias, with which the recovery would solve another problem, the centred one."""
    return Hypothesis("the layer has no bias", 0.0 if instance.observed.bias is None else -1.0)


def largest_rank(problem: Problem) -> Float[Array, ""]:
    r"""$d = \min(q, K)$, above which no outputs of the layer have their rank."""
    return jnp.minimum(resolved_space(problem).dimension, problem.observed.shape[1])


def output_norm(problem: Problem) -> Float[Array, ""]:
    r"""$\lVert Y\rVert_F$."""
    return frobenius(problem.observed.target_outputs)


def rounded_outputs(problem: Problem) -> Float[Array, ""]:
    r"""$\lVert Y\rVert_F + 4\bigl\lVert\,|\tilde X|\,|M|\,\bigr\rVert_F + \lVert\tilde X\rVert_F
    \lVert\tilde X^+Y\rVert_F$ (the last of columns that are alike in size), on the scale of which
    the outputs of a recovery are rounded: they are formed from factors as large as those of the
    least-squares layer. Four times what rounding may add to the rank of the target, of which a
    bound makes $1 + \sqrt5$ times as much.
    """
    truth, outputs = problem.truth, problem.observed.target_outputs
    alike, _ = equilibrated(truth.layer_inputs)
    inverted = frobenius(alike) * resolved_space(problem).fitted(outputs)
    return output_norm(problem) + 4 * forming(truth.layer_inputs, truth.target_weights) + inverted


def output_error(estimate: LowRank | Array, truth: Truth) -> Float[Array, ""]:
    r"""$\lVert\tilde X(\hat M - M)\rVert_F$, wherever it is a float64."""
    fitted = matmul(truth.layer_inputs, *_factors(estimate))
    return frobenius(fitted - jnp.asarray(truth.clean_outputs))


def weight_error(estimate: LowRank | Array, truth: Truth) -> Float[Array, ""]:
    r"""$\lVert\hat M - M\rVert_F$, wherever it is a float64."""
    return frobenius(matmul(*_factors(estimate)) - jnp.asarray(truth.target_weights))


def _factors(estimate: LowRank | Array) -> tuple[Any, ...]:
    """In float64."""
    found = in_double(estimate)
    return (found.left, found.right) if isinstance(found, LowRank) else (found,)


def error_magnitude(problem: Problem) -> Float[Array, ""]:
    r"""What rounding in $\lVert\tilde X(\hat M - M)\rVert_F$ scales with."""
    return coarseness(problem.observed) * rounded_outputs(problem)


def squared_error_magnitude(problem: Problem) -> Float[Array, ""]:
    """The same for the square of the error."""
    return coarseness(problem.observed) * squared(rounded_outputs(problem))


def least_squares(problem: Problem) -> Float[Array, "inputs outputs"]:
    r"""$\tilde X^+Y$: neither truncated nor thresholded, it fits the noise too."""
    return matmul(jnp.linalg.pinv(problem.truth.layer_inputs), problem.observed.target_outputs)


def deviation(failure_probability: Number, sides: int = 1) -> Float[Array, ""]:
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
    small = ratio < 1
    sine = jnp.where(small, inside / jnp.sqrt(2 * (1 + cosine)), 1.0)
    return sine, jnp.where(small, inside / (1 + cosine), 1.0)
