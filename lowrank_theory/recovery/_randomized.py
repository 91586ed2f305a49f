r"""Data-driven recovery by a random sketch of the outputs, certified, for layers too large to
decompose.

Subspace iteration on $M = A^\top A$, with $A = XW$ the outputs (centred, for an affine layer): the
layer is $Z = WV_rV_r^\top$ with $V_r$ the best r directions within a subspace $Q$, and

$$\lVert A - XZ\rVert_F^2 - \min_{\operatorname{rank} Z'\le r}\lVert A - XZ'\rVert_F^2
  = \sum_{i\le r}\lambda_i(M) - \operatorname{tr}V_r^\top MV_r .$$

After every step that may have been enough, fresh Gaussian probes bound this excess from above
(`_a_posteriori`; proved in paper_notes/randomized_range.md), until it is what was asked for.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Integer

from lowrank_theory._a_posteriori import (
    Ritz,
    leading_sum_bound,
    leading_sum_estimate,
    outside_norm_bound,
    ritz,
)
from lowrank_theory._numerics import (
    check_count,
    check_fraction,
    check_positive,
    in_float64,
    matmul,
    rounding_allowance,
    safe_divide,
    safe_sqrt,
    settle,
)
from lowrank_theory._random import normal
from lowrank_theory._scale import SMALLEST, times_power, unit
from lowrank_theory.calibration import AbstractCalibration, Calibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._checks import check_original
from lowrank_theory.recovery._from_moments import (
    MomentSensitivity,
    calibration_at_scale_one,
    scatter_power,
)
from lowrank_theory.recovery._least_squares import RowSensitivity
from lowrank_theory.recovery._recover import AbstractMethod, Certificate, Recovery, is_finite
from lowrank_theory.recovery._returned import (
    AbstractSensitivity,
    Affine,
    Fit,
    Perturbation,
    Returned,
    returned,
)

_PROBES = 16
_FIRST_DEGREE = 6  # of the filter of the first check; each later check has a sharper one
# Zeros of the Chebyshev polynomial of degree 2 on [0, 1]: shifts of the steps in float32.
_SHIFTS = (0.5 + 0.125**0.5, 0.5 - 0.125**0.5)


def _key_words(key: Any) -> tuple[int, ...]:
    """The words of a key, which compare and hash."""
    if isinstance(key, Tracer):
        raise ValueError(
            "`key` must be a key at hand, not a traced one. Inside a JAX transformation, call the "
            "function `randomized`."
        )
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"`key` must be a key such as `jax.random.key(0)`; got {key!r}.")
    if key.shape != ():
        raise ValueError(f"`key` must be one key; got shape {key.shape}. Index or split it.")
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


class Randomized(AbstractMethod):
    r"""A layer whose squared error is within the factor 1 + `excess` of the optimum.

    It is proved to be, with probability at least 1 - `failure_probability` over the probes that
    judge it, where the certificate says `certified`; nothing is assumed about the layer. Steps are
    taken until then, at most `max_steps` of them in float64. The result is a function of the `key`.

    With that probability the optimum is at least the `optimal_error` of the certificate, which the
    error of the layer returned exceeds by at most `excess_bound`.

    Raises `ValueError` if `excess` is not positive, if `failure_probability` does not lie between 0
    and 1, if `max_steps` is not an integer >= 1, or if `key` is not one key at hand: its words are
    kept, so that a method compares and hashes.
    """

    excess: float = 0.01
    failure_probability: float = 1e-6
    max_steps: int = 30
    key: tuple[int, ...] = eqx.field(converter=_key_words, kw_only=True)

    def __check_init__(self) -> None:
        settle(self, "excess", check_positive)
        settle(self, "failure_probability", check_fraction)
        settle(self, "max_steps", check_count, 1)

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Sketch what the layer does. Raises `ValueError` without weights, without activations or a
        calibration, or where the compressed layer sees or should give something else.
        """
        if observed.weights is None:
            raise ValueError(
                "`Randomized` sketches the outputs of the trained layer: give "
                "`Observed(weights=..., activations=...)`."
            )
        seen = check_original("Randomized", observed)
        fitted = randomized(
            observed.weights,
            seen.moments() if isinstance(seen, AbstractCalibration) else seen,
            np.array(self.key, np.uint32),
            observed.bias,
            rank=rank,
            excess=self.excess,
            failure_probability=self.failure_probability,
            max_steps=self.max_steps,
        )
        factors, bias, certificate = fitted
        return Recovery(factors, bias, certificate, self)


@functools.partial(in_float64, like=0)
def randomized(
    weights: Float[Array, "inputs outputs"],
    seen: Float[Array, "samples inputs"] | Calibration,
    key_data: Integer[Array, " words"],
    bias: Float[Array, " outputs"] | None = None,
    *,
    rank: int,
    excess: float = 0.01,
    failure_probability: float = 1e-6,
    max_steps: int = 30,
    dtype: Any = None,
) -> Returned:
    r"""The pure function beneath `Randomized`: factors, new bias, certificate.

    `seen` is the activations or their calibration; `key_data` is `jax.random.key_data(key)`. Works
    under `jit` and `vmap`, over keys too; a batch takes the steps of its slowest member. Not
    differentiable in reverse mode. Factors and bias have the dtype of the weights, or the `dtype`
    asked for.
    """
    weights, power = unit(weights)
    if isinstance(seen, Calibration):
        seen_power = scatter_power(seen.scatter, seen.mean)
        seen = calibration_at_scale_one(seen, seen_power, seen_power)
        gram = jnp.asarray(seen.gram(centred=bias is not None))
        mean, samples = jnp.asarray(seen.mean), jnp.asarray(seen.count)
        moment, inputs_square = _Moment(weights, gram), jnp.trace(gram)
        target_square = _weighted_sum_of_squares(gram, weights)
        underflow = samples * weights.shape[0] * times_power(SMALLEST, -2 * seen_power)
        sensitivity: AbstractSensitivity = MomentSensitivity(gram, weights)
    else:
        seen, seen_power = unit(seen)
        mean, samples = jnp.mean(seen, axis=0), jnp.asarray(float(seen.shape[0]))
        activations = seen if bias is None else seen - mean
        outputs = matmul(activations, weights)
        moment, inputs_square = _Moment(outputs, None), jnp.sum(activations**2)
        target_square, underflow = jnp.sum(outputs**2), jnp.zeros(())
        sensitivity = RowSensitivity(activations, outputs)
    # The outputs are rounded on this scale, even where a mean is taken out; moments on its square.
    if bias is not None:
        inputs_square = inputs_square + samples * jnp.sum(mean**2)
    scale = safe_sqrt(jnp.sum(weights**2) * inputs_square)
    rounding = rounding_allowance(scale, *weights.shape)
    square_rounding = rounding * scale + jnp.sum(weights**2) * underflow

    tolerance = (1 + excess) ** 0.5 - 1

    def bounds(captured: Array, missed: Array) -> tuple[Array, Array]:
        """The least that the squared optimum can be where directions capture so much and miss at
        most so much, and the most that their squared error can be.
        """
        doubt = (2 * rank + 1) * square_rounding  # the trace, r eigenvalues on either side
        error = jnp.maximum(target_square - captured, 0)
        return jnp.maximum(error - missed - doubt, 0), error + doubt

    def certificate(captured: Array, missed: Array) -> Certificate:
        lower, upper = bounds(captured, missed)
        return Certificate(
            optimal_error=safe_sqrt(lower),
            excess_bound=safe_sqrt(upper) - safe_sqrt(lower) + 2 * rounding,
            target_norm=safe_sqrt(target_square),
            finite=is_finite(captured, missed),
            tolerance=tolerance,
        )

    vectors, captured, missed = _iterate(
        moment,
        _key(key_data),
        rounding * scale,
        certificate,
        rank=rank,
        failure_probability=failure_probability,
        max_steps=max_steps,
    )
    image = moment.applied(vectors)
    lower, upper = bounds(captured, missed)
    fit = Fit(
        left=matmul(weights, vectors),
        right=vectors.T,
        eigenvalues=jnp.sum(vectors * image, axis=0),
        optimum=lower,
        lower=lower,
        upper=upper,
        rounding=2 * rounding,
        target_norm=safe_sqrt(target_square),
        inputs_norm=safe_sqrt(inputs_square),
        power=power + seen_power,
        left_power=power,
        affine=None if bias is None else Affine(bias, matmul(mean, weights), mean, samples),
        sensitivity=_WithImage(sensitivity, image),
    )
    return returned(fit, dtype, tolerance)


class _WithImage(AbstractSensitivity):
    """The sensitivity with the image of directions that are not singular vectors."""

    sensitivity: AbstractSensitivity
    image: Float[Array, "outputs rank"]

    def perturbation(self, change: Float[Array, "inputs rank"]) -> Perturbation:
        r"""By this $\mathrm dL$."""
        return dataclasses.replace(self.sensitivity.perturbation(change), image=self.image)


def _iterate(
    moment: "_Moment",
    key: Array,
    rounding: Array,
    certificate: Callable[[Array, Array], Certificate],
    *,
    rank: int,
    failure_probability: float,
    max_steps: int,
) -> tuple[Array, Array, Array]:
    r"""The leading directions of the moment $M$, what they capture, and at most how much they miss.

    The i-th check has the share $\delta/(i(i+1))$ of the failure probability, fresh probes, and a
    filter of degree proportional to i. It is left out where it could not succeed.
    """
    size = moment.size
    width = min(rank + max(rank // 2, 10), size)
    sketch_key, probes_key = jax.random.split(key)
    apply = moment.applied

    def check(found: Ritz, checks: Array) -> Array:
        number = checks + 1.0
        outside = outside_norm_bound(
            apply,
            found.vectors,
            normal(jax.random.fold_in(probes_key, checks), (size, _PROBES)),
            jnp.maximum(_middle_value(found.values, rank), rounding),
            _FIRST_DEGREE * (checks + 1),
            failure_probability / (number * (number + 1)),
        )
        return leading_sum_bound(found, outside, rank)

    def unfinished(state: Any) -> Array:
        step, *_, captured, missed = state
        enough = certificate(captured, missed).certified | (missed <= rounding)
        return (step < max_steps) & ~enough & jnp.isfinite(captured)

    def advance(state: Any) -> Any:
        step, checks, directions, *_ = state
        found, following = ritz(apply, jnp.linalg.qr(directions)[0])
        captured = jnp.sum(found.values[:rank])
        least = leading_sum_estimate(found, jnp.maximum(_middle_value(found.values, rank), 0), rank)
        promising = certificate(captured, least - captured).certified | (step == max_steps - 1)
        bound = jax.lax.cond(promising, check, lambda *_: jnp.inf, found, checks)
        missed = jnp.maximum(bound - captured, 0)
        vectors = found.vectors[:, :rank]
        return step + 1, checks + promising, following, vectors, captured, missed

    start = _sketched(moment, sketch_key, rank, width)
    zero, nothing = jnp.zeros((), jnp.int32), jnp.zeros(())
    state = (zero, zero, start, jnp.zeros((size, rank)), nothing, jnp.inf + nothing)
    *_, vectors, captured, missed = jax.lax.while_loop(unfinished, advance, state)
    return vectors, captured, missed


class _Moment(eqx.Module):
    r"""$M = B^\top SB$, known by its products; the Gram $S$ is the identity where it is none."""

    factor: Float[Array, "rows size"]
    gram: Float[Array, "rows rows"] | None

    @property
    def size(self) -> int:
        """The number of columns of $M$."""
        return self.factor.shape[1]

    def applied(self, columns: Float[Array, "size count"]) -> Float[Array, "size count"]:
        """$MV$."""
        seen = matmul(self.factor, columns)
        seen = seen if self.gram is None else matmul(self.gram, seen)
        return matmul(self.factor.T, seen)


def _middle_value(values: Float[Array, " width"], rank: int) -> Float[Array, ""]:
    """The value half-way between the rank and the last: most of what a subspace misses is below."""
    width = values.size
    return values[min((rank + width) // 2, width - 1)]


def _key(words: Integer[Array, " words"]) -> Array:
    """A key of JAX's default kind, made of the words of a key of any kind."""
    key = jax.random.wrap_key_data(words[:2], impl="threefry2x32")
    for place in range(2, words.size):
        key = jax.random.fold_in(key, words[place])
    return key


def _weighted_sum_of_squares(gram: Array, weights: Array) -> Array:
    r"""$\operatorname{tr}W^\top GW = \langle G, WW^\top\rangle$, from the blocks on and above the
    diagonal: ten of sixteen.
    """
    inputs = weights.shape[0]
    width = max(256, -(-inputs // 4))
    total = jnp.zeros(())
    for i in range(0, inputs, width):
        block = slice(i, i + width)
        products = gram[block, i:] * matmul(weights[block], weights[i:].T)
        total += 2 * jnp.sum(products) - jnp.sum(products[:, :width])
    return total


def _sketched(moment: _Moment, key: Array, rank: int, width: int) -> Array:
    r"""Directions after three steps in float32: whatever rounding does to them, they are judged by
    what they capture.

    The first step is one with $M$. It tells a $c \le \lambda_{r+1}$; the two others are the
    factors of the Chebyshev polynomial of $[0, c]$, which enlarges what is above c only.
    """

    def single(matrix: Array) -> Array:
        return safe_divide(matrix, jnp.max(jnp.abs(matrix))).astype(jnp.float32)

    def orthonormal(columns: Array) -> Array:
        return jnp.linalg.qr(columns)[0]

    apply = jax.tree.map(single, moment).applied
    basis = orthonormal(apply(normal(key, (moment.size, width)).astype(jnp.float32)))
    image = apply(basis)
    cut = _middle_value(jnp.linalg.eigvalsh(matmul(basis.T, image))[::-1], rank)
    first, second = _SHIFTS
    basis = orthonormal(image - first * cut * basis)
    basis = orthonormal(apply(basis) - second * cut * basis)
    return basis.astype(moment.factor.dtype)
