r"""Data-driven recovery by a random sketch of the outputs, for layers too large to decompose.

Subspace iteration on $M = A^\top A$, with $A = XW$ the outputs (centred, for an affine layer): $Q$
is an orthonormal basis of $M^{q+1}\Omega$, $\Omega$ Gaussian with $\ell = r + p$ columns, and the
layer is $Z = WV_rV_r^\top$ with $V_r$ the best r directions within $Q$, so that

$$\lVert A - XZ\rVert_F^2 = \lVert A\rVert_F^2 - \sum_{i\le r}s_i(AQ)^2, \qquad
  \sum_{i>r}s_i(AQ)^2 \le \min_{\operatorname{rank}Z\le r}\lVert A - XZ\rVert_F^2 .$$

The first says what the error is, the second how far below it the optimum can be, whatever the
sketch. What a Gaussian sketch reaches on average, and nearly always, is `randomized_range` among
the theorems (Halko, Martinsson and Tropp 2011; paper_notes/randomized_range.md).
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Integer

from lowrank_theory._numerics import (
    check_count,
    in_float64,
    matmul,
    rounding_allowance,
    safe_sqrt,
)
from lowrank_theory.calibration import Calibration
from lowrank_theory.generators._random import normal
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._low_rank import LowRank
from lowrank_theory.recovery._recover import AbstractMethod, Certificate, Recovery, is_finite
from lowrank_theory.recovery._subspaces import leading_eigenvectors, leading_right_vectors
from lowrank_theory.recovery.activation_weighted import check_calibrated


def _words(key: Any) -> tuple[int, ...]:
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
    r"""The layer that `ActivationWeighted` finds, from a random sketch of `rank + oversampling`
    directions and `power_iterations` products with the outputs and their transpose.

    The result is a function of the `key`. Its squared error exceeds the optimum, on average over
    keys, by at most $\tfrac1{p-1}\sum_{i\le r<j}s_j^2(s_j/s_i)^{4q+2}$, with $s_i$ the singular
    values of the outputs, $p$ the oversampling and $q$ the power iterations.

    The certificate is what this sketch shows: `optimal_error` is the error of the layer returned,
    the least within the sketch, and `excess_bound` its distance from $(\sum_{i>r}s_i(AQ)^2)^{1/2}$,
    which no layer of rank r goes below. That is certain and often far from sharp: a result that is
    within 0.1 % of the optimum need not be certified to be.

    Raises `ValueError` if `oversampling` is not an integer >= 2 or `power_iterations` not one >= 0,
    or if `key` is not one key at hand: its words are kept, so that a method compares and hashes.
    """

    oversampling: int = 10
    power_iterations: int = 2
    key: tuple[int, ...] = eqx.field(converter=_words, kw_only=True)

    def __check_init__(self) -> None:
        check_count("oversampling", self.oversampling, 2)
        check_count("power_iterations", self.power_iterations, 0)

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Sketch what the layer does. Raises `ValueError` without weights, without activations or a
        calibration, or where the compressed layer sees or should give something else.
        """
        if observed.weights is None:
            raise ValueError(
                "`Randomized` sketches the outputs of the trained layer: give "
                "`Observed(weights=..., activations=...)`."
            )
        seen = observed.activations
        if seen is None:
            seen = check_calibrated("Randomized", observed)
        compressed = isinstance(seen, Calibration) and seen.compressed is not None
        if compressed or not (observed.compressed_activations is observed.outputs is None):
            raise ValueError(
                "`Randomized` is for layers that see what they always saw, and keep their own "
                "outputs: use `ActivationWeighted` with `compressed_activations` or `outputs`."
            )
        fitted = randomized(
            observed.weights,
            seen,
            np.array(self.key, np.uint32),
            observed.bias,
            rank=rank,
            oversampling=self.oversampling,
            power_iterations=self.power_iterations,
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
    oversampling: int = 10,
    power_iterations: int = 2,
) -> tuple[LowRank, Float[Array, " outputs"] | None, Certificate]:
    r"""The pure function beneath `Randomized`: factors, new bias, certificate.

    `seen` is the activations or their calibration; `key_data` is `jax.random.key_data(key)`. Works
    under `jit` and `vmap`, over keys too. From a calibration, $M = W^\top GW$ is never formed.
    Results have the dtype of the weights.
    """
    affine, columns = bias is not None, weights.shape[1]
    width = min(rank + oversampling, columns)
    sketch = normal(jax.random.wrap_key_data(key_data), (columns, width))

    def found(apply: Callable[[Array], Array]) -> Array:
        basis = sketch
        for _ in range(power_iterations + 1):
            basis = jnp.linalg.qr(apply(basis))[0]
        return basis

    if isinstance(seen, Calibration):
        gram, mean, samples = seen.gram(centred=affine), jnp.asarray(seen.mean), seen.count
        energy, target = jnp.trace(gram), jnp.sum(weights * matmul(gram, weights))
        basis = found(lambda basis: matmul(weights.T, matmul(gram, matmul(weights, basis))))
        inside = matmul(weights, basis)
        within, energies = leading_eigenvectors(matmul(inside.T, gram, inside), rank)
        vectors = matmul(basis, within)
        error = jnp.maximum(target - jnp.sum(energies[:rank]), 0)
    else:
        mean, samples = jnp.mean(seen, axis=0), seen.shape[0]
        activations = seen - mean if affine else seen
        outputs = matmul(activations, weights)
        energy, target = jnp.sum(activations**2), jnp.sum(outputs**2)
        basis = found(lambda basis: matmul(outputs.T, matmul(outputs, basis)))
        within, energies = leading_right_vectors(matmul(outputs, basis), rank)
        vectors = matmul(basis, within)
        error = jnp.sum((outputs - matmul(outputs, vectors, vectors.T)) ** 2)
    factors = LowRank(matmul(weights, vectors), vectors.T)

    # The outputs are rounded on this scale, even where a mean is taken out; moments on its square.
    taken_out = samples * jnp.sum(mean**2) if affine else 0.0
    scale = safe_sqrt(jnp.sum(weights**2) * (energy + taken_out))
    rounding = 2 * rounding_allowance(scale, *weights.shape)
    most = max(rank, width - rank)  # of the energies are added up, each with its own rounding
    squared_rounding = most * rounding * scale if isinstance(seen, Calibration) else 0.0
    least = jnp.clip(jnp.sum(energies[rank:]) - squared_rounding, 0, error)
    certificate = Certificate(
        optimal_error=safe_sqrt(error),
        excess_bound=safe_sqrt(error + squared_rounding) - safe_sqrt(least) + rounding,
        target_norm=safe_sqrt(target),
        finite=is_finite(factors.left, factors.right),
    )
    if bias is None:
        return factors, None, certificate
    new_bias = bias + matmul(mean, weights) - matmul(mean, factors.left, factors.right)
    return factors, new_bias, certificate
