r"""Choose the rank of a layer from what is observed of it.

Each rule reads the singular values $y_1\ge y_2\ge\dots$ of the attainable outputs $PY$ ($q =
\operatorname{rank}\tilde X$ by $K$ in orthonormal coordinates), or of the weights where nothing
else is observed, and is a function of their ratios alone: it does not depend on units.

A rank is an `int`, ready for `recover`, or an integer array where the layer is traced (`jit`,
`vmap`). It may be zero: then the rule has found nothing but noise.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from lowrank_theory._numerics import (
    after,
    check_count,
    check_fraction,
    check_positive,
    in_float64,
    matmul,
    relative_rank_cutoff,
    resolution,
)
from lowrank_theory._scale import at_scale_one, unit
from lowrank_theory._subspaces import column_space
from lowrank_theory.problems import Observed
from lowrank_theory.recovery.shrinkage import hard_threshold_constant, median_noise_unit

_BISECTIONS = 60


def energy(observed: Observed, fraction: float) -> int | Int[Array, ""]:
    r"""The smallest rank whose truncation keeps at least `fraction` of $\lVert PY\rVert_F^2$.

    It asks nothing of the noise, and knows nothing of it: of pure noise it keeps nearly that
    fraction too. Raises `ValueError` unless the fraction is strictly between 0 and 1.
    """
    fraction = check_fraction("fraction", fraction)
    seen = _seen(observed)
    return _as_int(_by_energy(seen, fraction, resolution=_resolution(seen)))


def hard_threshold(observed: Observed, noise_scale: float | None = None) -> int | Int[Array, ""]:
    r"""How many singular values exceed $\lambda_*(\beta)\,\sigma\sqrt L$, with $L = \max(q, K)$ and
    $\beta = \min(q, K)/L$.

    The best place to cut in squared Frobenius error, for i.i.d. noise of standard deviation
    `noise_scale` and large sizes (Gavish and Donoho 2014; paper_notes/spiked_limit.md). Without it,
    $\sigma\sqrt L$ is the median singular value over $\sqrt{\mu_\beta}$.
    """
    if noise_scale is not None:
        noise_scale = check_positive("noise_scale", noise_scale, zero=True)
    seen = _seen(observed)
    return _as_int(_by_hard_threshold(seen, noise_scale, resolution=_resolution(seen)))


def screenot(observed: Observed, at_most: int) -> int | Int[Array, ""]:
    r"""How many singular values exceed the best place to cut for noise that may be correlated along
    rows, columns or both, of unknown law and size (ScreeNOT: Donoho, Gavish and Romanov 2023).

    `at_most` = k is an upper bound on the rank, however loose. The noise is read off all but the k
    largest singular values; in the place of those stand $z_i = y_{k+1} +
    \frac{1-((i-1)/k)^{2/3}}{2^{2/3}-1}(y_{k+1} - y_{2k+1})$, as at the edge of a spectrum whose
    density vanishes like a square root. With $\phi(y) = \operatorname{mean}_iy/(y^2-z_i^2)$ and
    $D = \phi\cdot(\beta\phi + (1-\beta)/y)$, the threshold solves $y\,D'(y)/D(y) = -4$
    (paper_notes/spiked_limit.md).

    Raises `ValueError` unless $2k+1$ singular values exist; where activations have deficient rank,
    absent ones count as zero.
    """
    seen = _seen(observed)
    smaller = min(observed.shape)
    why = f" (so that 2 k + 1 of the {smaller} singular values exist)"
    at_most = check_count("at_most", at_most, 1, (smaller - 1) // 2, why)
    return _as_int(_by_screenot(seen, at_most=at_most, resolution=_resolution(seen)))


def _seen(observed: Observed) -> tuple[Any, ...]:
    """The arrays that a rule reads: what the layer sees, outputs (or the activations and weights
    that make them: centred, where there is a bias), and the bias if there is one.
    """
    if not isinstance(observed, Observed):
        raise ValueError(f"`observed` must be an `Observed`; got {type(observed).__name__}.")
    if observed.activations is not None:
        outputs = observed.outputs
        if outputs is None:
            outputs = observed.activations, observed.weights
        return observed.layer_inputs, outputs, observed.bias
    if observed.calibration is not None:
        raise ValueError(
            "A rank is chosen from rows: give `Observed(activations=...)`, or `weights` alone."
        )
    return None, observed.weights, None


def _resolution(seen: tuple[Any, ...]) -> float:
    return resolution(*jax.tree.leaves(seen))


def _as_int(rank: Int[Array, ""]) -> int | Int[Array, ""]:
    return rank if isinstance(rank, Tracer) else int(rank)


def _spectrum(seen: tuple[Any, ...], resolution: float) -> tuple[Array, Array, Array, Array]:
    """The singular values of the attainable outputs at scale one, the power of two by which they
    were divided, their number min(q, K), and max(q, K).

    Values that storing the arrays may have made are zero.
    """
    layer_inputs, outputs, bias = seen
    if isinstance(outputs, tuple):
        (activations, first), (weights, second) = map(unit, outputs)
        outputs, power = matmul(activations, weights), first + second
    else:
        outputs, power = unit(outputs)
    if layer_inputs is not None:
        layer_inputs, _ = unit(layer_inputs)
    coordinates, q = outputs, jnp.asarray(outputs.shape[0])
    if layer_inputs is not None:
        if bias is not None:
            layer_inputs = layer_inputs - jnp.mean(layer_inputs, axis=0)
            outputs = outputs - jnp.mean(outputs, axis=0)
        space = column_space(after(outputs, layer_inputs), resolution)
        coordinates, q = matmul(space.basis.T, outputs), jnp.sum(space.kept)
    values = jnp.linalg.svd(coordinates, compute_uv=False)
    cutoff = relative_rank_cutoff(coordinates.shape, resolution)
    values = jnp.where(values > cutoff * values[0], values, 0)
    columns = outputs.shape[1]
    q = q.astype(float)
    return values, power, jnp.maximum(jnp.minimum(q, columns), 1), jnp.maximum(q, columns)


@in_float64
def _by_energy(seen: Any, fraction: Any, *, resolution: float) -> Int[Array, ""]:
    values, _, _, _ = _spectrum(seen, resolution)
    squares = values**2
    before = jnp.cumsum(squares) - squares
    return jnp.sum(before < fraction * jnp.sum(squares), dtype=jnp.int32)


@in_float64
def _by_hard_threshold(seen: Any, noise_scale: Any, *, resolution: float) -> Int[Array, ""]:
    values, power, shorter, longer = _spectrum(seen, resolution)
    aspect = shorter / longer
    if noise_scale is None:
        noise_unit = median_noise_unit(values, shorter, aspect)
    else:
        noise_unit = at_scale_one(noise_scale, power) * jnp.sqrt(longer)
    return jnp.sum(values > hard_threshold_constant(aspect) * noise_unit, dtype=jnp.int32)


@in_float64
def _by_screenot(seen: Any, *, at_most: int, resolution: float) -> Int[Array, ""]:
    values, _, shorter, longer = _spectrum(seen, resolution)
    threshold = _correlated_noise_threshold(values, shorter, longer, at_most)
    return jnp.sum(values > threshold, dtype=jnp.int32)


def _correlated_noise_threshold(
    values: Float[Array, " count"], shorter: Array, longer: Array, at_most: int
) -> Float[Array, ""]:
    r"""The root of $y\,D'/D = -4$ above the largest $z_i$.

    $-y\,D'/D$ is the sum of two weighted means of $(y^2+z^2)/(y^2-z^2)$, of which those with
    larger $z$ weigh less as $y$ grows: it falls, and is at most 4 where $y^2\ge3z_1^2$. So
    the root is in $(z_1, \sqrt3z_1]$.
    """
    edge, inner = values[at_most], values[2 * at_most]
    steps = 1 - (np.arange(at_most) / at_most) ** (2 / 3)
    imputed = edge + steps / (2 ** (2 / 3) - 1) * (edge - inner)
    largest = imputed[0]
    squares = (
        jnp.concatenate([imputed, values[at_most:]]) / jnp.where(largest > 0, largest, 1)
    ) ** 2
    counted = jnp.arange(values.size) < shorter
    aspect = shorter / longer

    def too_low(y: Array) -> Array:
        weights = jnp.where(counted, 1 / (y**2 - squares), 0) / shorter  # phi / y is their sum
        slopes = weights * (y**2 + squares) / (y**2 - squares)
        phi, slope = jnp.sum(weights), jnp.sum(slopes)
        other = aspect * phi + (1 - aspect) / y**2
        other_slope = aspect * slope + (1 - aspect) / y**2
        return slope / phi + other_slope / other > 4

    def halved(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        low_side = too_low(middle)
        return jnp.where(low_side, middle, low), jnp.where(low_side, high, middle)

    start = jnp.asarray(1.0), jnp.sqrt(3.0)
    _, high = jax.lax.fori_loop(0, _BISECTIONS, halved, start)
    return high * largest
