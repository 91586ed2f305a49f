r"""The norm of Gaussian noise whose entries have unequal scales.

**Model.** $E_{ij} = b_{ij}g_{ij}$ with i.i.d. $g_{ij} \sim N(0,1)$ and known scales $b_{ij} \ge 0$,
$m$ rows and $K$ columns; $P$ is any fixed projector; $t = \sqrt{2\ln(1/\delta)}$. Further $s_R^2 =
\max_i\sum_jb_{ij}^2$, $s_C^2 = \max_j\sum_ib_{ij}^2$, $s_* = \max b_{ij}$.

**Claims** (proved in paper_notes/heteroskedastic_noise.md):

- `expected_separable`, scales $b_{ij} = a_ic_j$ with $A = \operatorname{diag}(a)$:
  $\mathbb E\lVert PE\rVert \le \lVert PA\rVert\,\lVert c\rVert + \lVert PA\rVert_F\max_jc_j$
  (Chevet 1978, Gordon 1985). Without $P$ this is $s_R + s_C$. No logarithm, and the projector
  counts.
- `separable` (probability $1-\delta$): the same plus $t\,\lVert PA\rVert\max_jc_j$; or, if that is
  less, the edge of `gaussian_noise.largest` for entries that all have the scale $\lVert
  PA\rVert\max_jc_j$.
- `expected_norm`, any scales: $\mathbb E\lVert E\rVert \le \beta$, the least of the
  *covering* bounds $s_*\sqrt K + (\sum_i\max_jb_{ij}^2)^{1/2}$ and $s_*\sqrt m +
  (\sum_j\max_ib_{ij}^2)^{1/2}$, of *Khintchine's* $\max(s_R, s_C)\sqrt{2\ln(m+K)}$, and of the
  *moment* bounds $\min(m,K)^{1/2p}\bigl(\sqrt{s_C^2 + (2p-1)s_*^2} + \sqrt{s_R^2 +
  (2p-1)s_*^2}\bigr)$ over $p = 1, 2, \dots$
- `norm` (probability $1-\delta$), any scales: $\lVert E\rVert \le \beta + t\,s_*$; or the edge for
  entries that all have the scale $s_*$.

The moment bounds are in the manner of Bandeira and van Handel (2016). For $0 < \epsilon \le 1$ they
give $(1+\epsilon)\bigl(s_R + s_C + 2s_*\sqrt{1 + \ln\min(m,K)/\ln(1+\epsilon)}\bigr)$.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Key, after, matmul, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    check_array,
    check_count,
    rounding_allowance,
    safe_divide,
)
from lowrank_theory._random import normal, split
from lowrank_theory.generators.activations import haar
from lowrank_theory.problems import not_stated
from lowrank_theory.theorems._quantities import (
    deviation,
    frobenius,
    law_hypothesis,
    singular_values,
)
from lowrank_theory.theorems._theorem import (
    UPPER_IN_EXPECTATION,
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)
from lowrank_theory.theorems.gaussian_noise import upper_edge

LARGEST_MOMENT = 64


class ScaledNoise(eqx.Module):
    r"""Noise with its scales: `standard` entries $g_{ij}$, `scales` $b_{ij}$, and an orthonormal
    `basis` (samples, q) of the range of the projector.

    `gaussian` says whether the $g_{ij}$ are i.i.d. $N(0, 1)$, and `independent` whether they know
    nothing of scales and basis, which no number shows.
    """

    standard: Float[AnyArray, "samples outputs"]
    scales: Float[AnyArray, "samples outputs"]
    basis: Float[AnyArray, "samples q"]
    gaussian: Bool[AnyArray, ""]
    independent: Bool[AnyArray, ""] = eqx.field(default_factory=not_stated)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.standard.shape

    @property
    def noise(self) -> Float[Array, "samples outputs"]:
        """$E$."""
        return jnp.asarray(self.scales) * self.standard


class ScaledNoiseSetting(eqx.Module):
    """Gaussian noise of the given `scales`, and a random projector of rank `directions`.

    Raises `ValueError` for scales that are negative or no matrix, and for more directions than
    rows.
    """

    scales: Float[AnyArray, "samples outputs"]
    directions: int

    def __init__(self, scales: ArrayLike, directions: int) -> None:
        self.scales = check_array("scales", scales, "samples", "outputs")
        if np.min(np.asarray(self.scales)) < 0:
            raise ValueError("`scales` are standard deviations: none may be negative.")
        self.directions = check_count("directions", directions, 1, self.scales.shape[0])

    @of_either_key
    def draw(self, *, key: Key) -> ScaledNoise:
        """Noise and projector, independent of each other, in float64."""
        xp, (noise_key, basis_key) = namespace(key), split(key)
        scales, true = xp.asarray(self.scales, float), xp.asarray(True)
        standard = normal(noise_key, scales.shape)
        basis = haar(scales.shape[0], self.directions, key=after(standard, basis_key))
        return ScaledNoise(standard, scales, basis, true, true)


def norm_parameters(
    scales: Float[AnyArray, "samples outputs"],
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """$s_R$, $s_C$ and $s_*$: the largest norm of a row and of a column, and the largest scale."""
    rows = jax.vmap(frobenius)(jnp.asarray(scales))
    columns = jax.vmap(frobenius)(jnp.asarray(scales).T)
    return jnp.max(rows), jnp.max(columns), jnp.max(scales)


class ExpectedNormBounds(eqx.Module):
    r"""Bounds on $\mathbb E\lVert E\rVert$: `covering` scales by those of rows or of columns,
    `khintchine`'s inequality for matrices, and `moments`, the best of `LARGEST_MOMENT`.
    """

    covering: Float[Array, ""]
    khintchine: Float[Array, ""]
    moments: Float[Array, ""]

    @property
    def least(self) -> Float[Array, ""]:
        r"""$\beta$."""
        return jnp.minimum(jnp.minimum(self.covering, self.khintchine), self.moments)


def expected_norm_bounds(scales: Float[AnyArray, "samples outputs"]) -> ExpectedNormBounds:
    r"""The bounds of which $\beta$ is the least; call it inside `float64`."""
    samples, outputs = scales.shape
    row, column, entry = norm_parameters(scales)
    by_row = entry * math.sqrt(outputs) + frobenius(jnp.max(scales, axis=1))
    by_column = entry * math.sqrt(samples) + frobenius(jnp.max(scales, axis=0))
    khintchine = jnp.maximum(row, column) * math.sqrt(2 * math.log(samples + outputs))
    p = jnp.arange(1.0, LARGEST_MOMENT + 1)
    room = jnp.sqrt(2 * p - 1) * entry
    sides = jnp.hypot(column, room) + jnp.hypot(row, room)
    moments = jnp.min(float(min(samples, outputs)) ** (1 / (2 * p)) * sides)
    return ExpectedNormBounds(jnp.minimum(by_row, by_column), khintchine, moments)


class SeparableScales(eqx.Module):
    """The two lengths of a rank-one profile of scales seen through a projector: `norm`, that of
    Gaussian concentration, and `mean`, the bound on the expected norm.
    """

    norm: Float[Array, ""]
    mean: Float[Array, ""]


def separable_scales(instance: ScaledNoise) -> SeparableScales:
    r"""$\lVert PA\rVert\max c$, and $\lVert PA\rVert\,\lVert c\rVert + \lVert PA\rVert_F\max c$."""
    left, values, right = jnp.linalg.svd(jnp.asarray(instance.scales), full_matrices=False)
    row_scales, column_scales = jnp.abs(left[:, 0]), values[0] * jnp.abs(right[0])
    projected = singular_values(jnp.asarray(instance.basis).T * after(values, row_scales))
    widest = jnp.max(column_scales)
    mean = projected[0] * frobenius(column_scales) + frobenius(projected) * widest
    return SeparableScales(projected[0] * widest, mean)


def _rank_one(scales: Float[AnyArray, "samples outputs"]) -> Hypothesis:
    values = singular_values(jnp.asarray(scales))
    rest = frobenius(values[1:])
    allowed = rounding_allowance(values[0], *scales.shape)
    return Hypothesis("the scales have rank one", safe_divide(allowed - rest, values[0]))


def _sides(instance: ScaledNoise) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How many rows and columns hold noise."""
    loud = jnp.asarray(instance.scales) > 0
    rows, columns = (jnp.sum(jnp.any(loud, axis=axis)).astype(float) for axis in (1, 0))
    return rows, columns


def _gaussian(instance: ScaledNoise) -> tuple[Hypothesis, ...]:
    """The law of the entries, which know nothing of what scales and projects them."""
    least, largest = jnp.min(instance.scales), jnp.max(jnp.abs(instance.scales))
    unknowing = "the entries do not depend on scales and projector"
    return (
        law_hypothesis("the entries are independent and Gaussian", jnp.asarray(instance.gaussian)),
        law_hypothesis(unknowing, jnp.asarray(instance.independent)),
        Hypothesis("no scale is negative", safe_divide(least, largest)),
    )


SAMPLES, OUTPUTS, DIRECTIONS = 60, 12, 4


def _setting(
    row_scales: np.ndarray | float, column_scales: np.ndarray | float
) -> ScaledNoiseSetting:
    rows = np.broadcast_to(np.asarray(row_scales, float), (SAMPLES,))
    columns = np.broadcast_to(np.asarray(column_scales, float), (OUTPUTS,))
    return ScaledNoiseSetting(np.outer(rows, columns), DIRECTIONS)


def _any(scales: np.ndarray) -> ScaledNoiseSetting:
    return ScaledNoiseSetting(scales.astype(float), DIRECTIONS)


_ROWS, _COLUMNS = np.arange(SAMPLES)[:, None], np.arange(OUTPUTS)[None, :]
_SEPARABLE = {
    "equal scales": _setting(1.0, 1.0),
    "unequal outputs": _setting(1.0, np.geomspace(1, 0.1, OUTPUTS)),
    "unequal samples": _setting(np.geomspace(1, 0.1, SAMPLES), 1.0),
    "both unequal": _setting(np.geomspace(1, 0.01, SAMPLES), np.geomspace(1, 0.01, OUTPUTS)),
    "one loud sample": _setting(np.where(np.arange(SAMPLES) == 0, 10.0, 1.0), 1.0),
    "one output": _setting(1.0, np.where(np.arange(OUTPUTS) == 0, 1.0, 0.0)),
}
_DIAGONAL = _any(_ROWS == _COLUMNS)
_PROFILES = {
    "equal scales": _SEPARABLE["equal scales"],
    "diagonal": _DIAGONAL,
    "band": _any(abs(_ROWS - 5 * _COLUMNS) < 8),
    "blocks": _any(_ROWS // 10 == _COLUMNS // 2),
    "one entry": _any((_ROWS == 0) & (_COLUMNS == 0)),
    "one loud entry": _any(0.1 + 9.9 * ((_ROWS == 0) & (_COLUMNS == 0))),
    "both unequal": _SEPARABLE["both unequal"],
}


class AbstractSeparable(AbstractStatement):
    r"""A bound on $\lVert PE\rVert$ for $b_{ij} = a_ic_j$, in the units of the outputs."""

    needs = ScaledNoise
    regimes = _SEPARABLE
    control = _SEPARABLE["equal scales"]

    def hypotheses(self, instance: ScaledNoise) -> tuple[Hypothesis, ...]:
        """Independent Gaussian entries, and a profile of rank one."""
        return (*_gaussian(instance), _rank_one(instance.scales))

    def estimate(self, instance: ScaledNoise) -> Float[Array, "q outputs"]:
        """$PE$, in coordinates of the range of $P$."""
        return matmul(jnp.asarray(instance.basis).T, instance.noise)

    def broken_estimate(self, instance: ScaledNoise) -> Float[Array, "samples outputs"]:
        """$E$, as if the projector did not count."""
        return instance.noise

    def loss(self, instance: ScaledNoise, estimate: Float[Array, "rows outputs"]) -> Array:
        r"""$\lVert PE\rVert$."""
        return singular_values(estimate)[0]

    def magnitude(self, instance: ScaledNoise) -> Float[Array, ""]:
        r"""$\lVert E\rVert_F$."""
        return frobenius(instance.noise)


_EQUAL_SCALES = Refuted(1.0, "equal scales: the norm of large Gaussian matrices")


class ExpectedSeparable(AbstractSeparable):
    r"""$\mathbb E\lVert PE\rVert \le \lVert PA\rVert\,\lVert c\rVert + \lVert PA\rVert_F\max_jc_j$
    for scales $a_ic_j$, with $A$ the diagonal matrix of the $a_i$.
    """

    kind = UPPER_IN_EXPECTATION
    refuted_below = _EQUAL_SCALES

    def formula(self, instance: ScaledNoise, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert PA\rVert\,\lVert c\rVert + \lVert PA\rVert_F\max_jc_j$."""
        return separable_scales(instance).mean


class Separable(AbstractSeparable):
    r"""$\lVert PE\rVert \le \lVert PA\rVert\,\lVert c\rVert + (\lVert PA\rVert_F + t\,\lVert
    PA\rVert)\max_jc_j$, and $\le \lVert PA\rVert(\sqrt q + \sqrt K + \tau)\max_jc_j$, with
    probability $1-\delta$ for scales $a_ic_j$.
    """

    kind = UPPER_WITH_PROBABILITY
    refuted_below = _EQUAL_SCALES

    def formula(self, instance: ScaledNoise, estimate: Array) -> Float[Array, ""]:
        """The smaller of the two; outputs without noise do not count."""
        scales, q = separable_scales(instance), instance.basis.shape[1]
        equal = upper_edge(q, _sides(instance)[1], self.failure_probability)
        uneven = scales.mean + deviation(self.failure_probability) * scales.norm
        return jnp.minimum(uneven, scales.norm * equal)


class AbstractAnyScales(AbstractStatement):
    r"""A bound on $\lVert E\rVert$ for any scales, in the units of the outputs."""

    needs = ScaledNoise
    regimes = _PROFILES
    control = _DIAGONAL

    def hypotheses(self, instance: ScaledNoise) -> tuple[Hypothesis, ...]:
        """Independent Gaussian entries."""
        return _gaussian(instance)

    def estimate(self, instance: ScaledNoise) -> Float[Array, "samples outputs"]:
        """$E$."""
        return instance.noise

    def broken_estimate(self, instance: ScaledNoise) -> Float[Array, "samples outputs"]:
        """Noise all of whose entries have the largest scale."""
        return jnp.max(instance.scales) * jnp.asarray(instance.standard)

    def loss(self, instance: ScaledNoise, estimate: Float[Array, "samples outputs"]) -> Array:
        r"""$\lVert E\rVert$."""
        return singular_values(estimate)[0]

    def magnitude(self, instance: ScaledNoise) -> Float[Array, ""]:
        r"""$\lVert E\rVert_F$."""
        return frobenius(instance.noise)


class ExpectedNorm(AbstractAnyScales):
    r"""$\mathbb E\lVert E\rVert \le \beta$ for any scales; for example $\beta \le \max(s_R,
    s_C)\sqrt{2\ln(m+K)}$ and $\beta \le s_*\sqrt m + (\sum_j\max_ib_{ij}^2)^{1/2}$.
    """

    kind = UPPER_IN_EXPECTATION
    refuted_below = _EQUAL_SCALES

    def formula(self, instance: ScaledNoise, estimate: Array) -> Float[Array, ""]:
        r"""$\beta$."""
        return expected_norm_bounds(instance.scales).least


class Norm(AbstractAnyScales):
    r"""$\lVert E\rVert \le \min\bigl(\beta + t\,s_*, s_*(\sqrt m + \sqrt K + \tau)\bigr)$ with
    probability $1-\delta$ for any scales, $\beta$ being the bound on $\mathbb E\lVert E\rVert$.
    """

    kind = UPPER_WITH_PROBABILITY
    refuted_below = _EQUAL_SCALES

    def formula(self, instance: ScaledNoise, estimate: Array) -> Float[Array, ""]:
        """The smaller of the two; rows and columns without noise do not count."""
        largest, mean = jnp.max(instance.scales), expected_norm_bounds(instance.scales).least
        equal = upper_edge(*_sides(instance), self.failure_probability)
        return jnp.minimum(mean + deviation(self.failure_probability) * largest, largest * equal)


class HeteroskedasticNoise(AbstractTheorem):
    """Gaussian noise of unequal scales has a norm of about its largest row plus its largest column
    of scales.
    """

    separable: Separable = Separable()
    expected_separable: ExpectedSeparable = ExpectedSeparable()
    norm: Norm = Norm()
    expected_norm: ExpectedNorm = ExpectedNorm()


heteroskedastic_noise = HeteroskedasticNoise()
