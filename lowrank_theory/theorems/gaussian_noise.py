r"""Singular values of Gaussian noise, as far as a layer can express it.

**Model.** $E$ has i.i.d. $N(0,\sigma^2)$ entries and $P$ projects on the $q$-dimensional column
space of $\tilde X$, which does not depend on $E$; there are $K$ outputs. $PE$ has the singular
values of a $q\times K$ Gaussian matrix: only $q$ enters, not the number of samples. $L$ and $S$ are
the longer and the shorter of the two sides.

**Claims** (proved in paper_notes/gaussian_noise.md by the comparison of Slepian and Gordon, kept
exponential as in Stojnic 2026), with $\ell = \ln(1/\delta)$ and, for $w > 0$,
$\tau(w) = \min\{(\tfrac{9w}{32}\ell^2)^{1/3}, \sqrt{2\ell}\}$:

- `largest` (probability $1-\delta$): $\lVert PE\rVert \le \sigma(\sqrt q + \sqrt K +
  \tau(q^{-1/2} + K^{-1/2}))$. In large matrices this is the exact rate of decay of the
  Tracy-Widom law; the classical form (Davidson and Szarek 2001, Theorem II.13) has $\sqrt{2\ell}$.
- `smallest` (probability $1-\delta$), $L > S$: $s_S(PE) \ge \sigma(\sqrt{L-\tfrac12} - \sqrt S -
  \tau(S^{-1/2} - (L-\tfrac12)^{-1/2}))$, and at least the classical $\sigma(\sqrt L - \sqrt S -
  \sqrt{2\ell})$.
- `expected_largest`, `expected_smallest`: $\mathbb E\lVert PE\rVert \le \sigma(\sqrt q + \sqrt K)$,
  $\mathbb Es_S(PE) \ge \sigma(\sqrt L - \sqrt S)$.
- `leading`: $\mathbb E\lVert(PE)_{(r)}\rVert_F^2 \le \sigma^2\sum_{i\le r}\bigl((\sqrt L +
  \sqrt{S-i+1})^2 - \tfrac12\bigr)$; at $r = 1$, $\mathbb E\lVert PE\rVert^2 \le \sigma^2((\sqrt q +
  \sqrt K)^2 - \tfrac12)$.
- `inverse`, $L > S + 1$: $\mathbb E\lVert(PE)^+\rVert_F^2 = \dfrac{S}{\sigma^2(L-S-1)}$.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import Number
from lowrank_theory.generators import activations
from lowrank_theory.problems import Problem, Setting, Truth
from lowrank_theory.theorems._quantities import (
    attainable_noise,
    deviation,
    frobenius,
    gaussian_noise_hypotheses,
    resolved_rank,
    singular_values,
    squared,
)
from lowrank_theory.theorems._regimes import FULL_RANK, SINGULAR, WELL_POSED
from lowrank_theory.theorems._theorem import (
    EQUALITY_IN_EXPECTATION,
    LOWER_IN_EXPECTATION,
    LOWER_WITH_PROBABILITY,
    UPPER_IN_EXPECTATION,
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)


def edge_fluctuation(width: Number, failure_probability: Number) -> Float[Array, ""]:
    r"""$\tau(w) = \min\{(\tfrac{9w}{32}\ln^2\tfrac1\delta)^{1/3}, \sqrt{2\ln\tfrac1\delta}\}$: how
    far an extreme singular value of a standard Gaussian matrix strays beyond its edge with
    probability $\delta$ at most.

    The `width` $w$ is $q^{-1/2} + K^{-1/2}$ at the upper edge $\sqrt q + \sqrt K$ of a $q\times K$
    matrix.
    """
    gaussian = deviation(failure_probability)
    # With the other form t: ln(1/δ) = t²/2, so 9w/32 times its square is 9wt⁴/128.
    return jnp.minimum(jnp.cbrt(9 * width / 128 * gaussian**4), gaussian)


def upper_edge(rows: Number, columns: Number, failure_probability: Number) -> Float[Array, ""]:
    r"""$\sqrt q + \sqrt K + \tau(q^{-1/2} + K^{-1/2})$, above the norm of a $q\times K$ matrix of
    i.i.d. $N(0,1)$ entries with probability $1-\delta$; call it inside `float64`.
    """
    long, short = jnp.sqrt(rows), jnp.sqrt(columns)
    return long + short + edge_fluctuation(1 / long + 1 / short, failure_probability)


def lower_edge(longer: Number, shorter: Number, failure_probability: Number) -> Float[Array, ""]:
    r"""The larger of $\sqrt{L-\tfrac12} - \sqrt S - \tau(S^{-1/2} - (L-\tfrac12)^{-1/2})$ and
    $\sqrt L - \sqrt S - \sqrt{2\ln\tfrac1\delta}$, below the least singular value of an $L\times S$
    matrix of i.i.d. $N(0,1)$ entries with probability $1-\delta$; negative where $L \le S$, and
    where it says nothing. Call it inside `float64`.
    """
    long, short = jnp.sqrt(longer), jnp.sqrt(shorter)
    less = jnp.sqrt(longer - 0.5)
    fluctuation = edge_fluctuation(jnp.maximum(1 / short - 1 / less, 0), failure_probability)
    return jnp.maximum(less - fluctuation, long - deviation(failure_probability)) - short


def leading_squares(longer: Number, shorter: Number, rank: int) -> Float[Array, " rank"]:
    r"""$(\sqrt L + \sqrt{S-i+1})^2 - \tfrac12$ for $i \le r$, zero beyond $S$: the sum of the first
    $j$ is above the mean of the sum of the $j$ largest squared singular values, for every $j$; call
    it inside `float64`.
    """
    left = shorter - jnp.arange(rank)
    squares = (jnp.sqrt(longer) + jnp.sqrt(jnp.maximum(left, 0))) ** 2 - 0.5
    return jnp.where(left > 0, squares, 0)


def leading_edge(
    rows: Number, columns: Number, rank: int, failure_probability: Number
) -> Float[Array, ""]:
    r"""The smaller of $\sqrt r\,(\sqrt q + \sqrt K + \tau)$ and $(\min(\ell_r, qK))^{1/2} +
    \sqrt{2\ln\tfrac1\delta}$, $\ell_r$ the sum of `leading_squares`: above the root sum of squares
    of the $r$ largest singular values of a $q\times K$ matrix of i.i.d. $N(0,1)$ entries with
    probability $1-\delta$; call it inside `float64`.
    """
    q, outputs = (jnp.asarray(side, float) for side in (rows, columns))
    longer, shorter = jnp.maximum(q, outputs), jnp.minimum(q, outputs)
    energy = jnp.minimum(jnp.sum(leading_squares(longer, shorter, rank)), q * outputs)
    flat = jnp.sqrt(jnp.minimum(rank, shorter)) * upper_edge(q, outputs, failure_probability)
    return jnp.minimum(flat, jnp.sqrt(energy) + deviation(failure_probability))


def gaussian_edge(problem: Problem, failure_probability: Number) -> Float[Array, ""]:
    r"""$\sigma(\sqrt q + \sqrt K + \tau)$, above $\lVert PE\rVert$ with probability $1-\delta$ for
    i.i.d. Gaussian noise.
    """
    q, outputs = resolved_rank(problem), problem.observed.shape[1]
    return _scale(problem) * upper_edge(q, outputs, failure_probability)


class NoiseValues(eqx.Module):
    """Singular values of a noise matrix in decreasing order, continued by zeros, and the longer and
    the shorter side of the matrix.
    """

    values: Float[Array, " count"]
    longer: Float[Array, ""]
    shorter: Float[Array, ""]

    @property
    def least(self) -> Float[Array, ""]:
        """The least of as many singular values as the shorter side has."""
        return jnp.take(self.values, self.shorter.astype(int) - 1)


def _attainable(problem: Problem) -> NoiseValues:
    values, q = attainable_noise(problem)
    outputs = jnp.asarray(float(problem.observed.shape[1]))
    return NoiseValues(values, jnp.maximum(q, outputs), jnp.minimum(q, outputs))


def _unprojected(problem: Problem) -> NoiseValues:
    sides = sorted(problem.truth.noise.shape)
    values = singular_values(jnp.asarray(problem.truth.noise))
    return NoiseValues(values, jnp.asarray(float(sides[1])), jnp.asarray(float(sides[0])))


def _scale(problem: Problem) -> Float[Array, ""]:
    return jnp.asarray(problem.truth.noise_scale)


_UNEQUAL = {
    "tall": WELL_POSED["tall"],
    "wide": WELL_POSED["wide"],
    "few directions": Setting(
        samples=120, inputs=10, outputs=40, rank=3, activations=activations.RankDeficient(5)
    ),
}
_REGIMES = {
    **_UNEQUAL,
    "ill-conditioned activations": WELL_POSED["ill-conditioned activations"],
    **SINGULAR,
    **FULL_RANK,
}
_NOT_SQUARE = {**_UNEQUAL, **SINGULAR}
_RANKS = {**_REGIMES, "rank one": WELL_POSED["rank one"]}


class AbstractSpectrumOfNoise(AbstractStatement):
    """A claim on the singular values of $PE$, in the units of the outputs or a power of them."""

    needs = Truth
    control = WELL_POSED["tall"]

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """i.i.d. Gaussian noise that does not depend on the activations."""
        return gaussian_noise_hypotheses(instance.truth)

    def estimate(self, instance: Problem) -> NoiseValues:
        """The singular values of $PE$."""
        return _attainable(instance)


class AbstractAboveNoise(AbstractSpectrumOfNoise):
    """An upper bound, broken by noise that was not projected."""

    def broken_estimate(self, instance: Problem) -> NoiseValues:
        """The singular values of $E$, as if all samples counted."""
        return _unprojected(instance)


class AbstractBelowNoise(AbstractSpectrumOfNoise):
    """A lower bound on the least singular value, broken by noise that is too small."""

    regimes = _NOT_SQUARE

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """i.i.d. Gaussian noise, and activations that are not zero."""
        return (*gaussian_noise_hypotheses(instance.truth), _expressible(instance))

    def broken_estimate(self, instance: Problem) -> NoiseValues:
        """The singular values of half the noise."""
        spectrum = _attainable(instance)
        return NoiseValues(spectrum.values / 2, spectrum.longer, spectrum.shorter)

    def loss(self, instance: Problem, estimate: NoiseValues) -> Float[Array, ""]:
        """$s_S(PE)$."""
        return estimate.least

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert E\rVert_F$."""
        return frobenius(instance.truth.noise)


_EDGE = Refuted(1.0, "large matrices: the norm over √q + √K tends to one")
_LOWER_EDGE = Refuted(1.0, "large matrices: the least value over √L − √S tends to one")


class Largest(AbstractAboveNoise):
    r"""$\lVert PE\rVert \le \sigma(\sqrt q + \sqrt K + \tau)$ with probability $1-\delta$, where
    $\tau^3 = \frac{9}{32}(q^{-1/2} + K^{-1/2})\ln^2\frac1\delta$, or $\tau^2 = 2\ln\frac1\delta$ if
    that is less.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _REGIMES
    refuted_below = _EDGE

    def formula(self, instance: Problem, estimate: NoiseValues) -> Float[Array, ""]:
        r"""$\sigma(\sqrt q + \sqrt K + \tau)$."""
        edge = upper_edge(estimate.longer, estimate.shorter, self.failure_probability)
        return _scale(instance) * edge

    def loss(self, instance: Problem, estimate: NoiseValues) -> Float[Array, ""]:
        r"""$\lVert PE\rVert$."""
        return estimate.values[0]

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert E\rVert_F$."""
        return frobenius(instance.truth.noise)


class ExpectedLargest(AbstractAboveNoise):
    r"""$\mathbb E\lVert PE\rVert \le \sigma(\sqrt q + \sqrt K)$."""

    kind = UPPER_IN_EXPECTATION
    regimes = _REGIMES
    refuted_below = _EDGE

    def formula(self, instance: Problem, estimate: NoiseValues) -> Float[Array, ""]:
        r"""$\sigma(\sqrt q + \sqrt K)$."""
        return _scale(instance) * (jnp.sqrt(estimate.longer) + jnp.sqrt(estimate.shorter))

    def loss(self, instance: Problem, estimate: NoiseValues) -> Float[Array, ""]:
        r"""$\lVert PE\rVert$."""
        return estimate.values[0]

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert E\rVert_F$."""
        return frobenius(instance.truth.noise)


class Leading(AbstractAboveNoise):
    r"""$\mathbb E\lVert(PE)_{(r)}\rVert_F^2 \le \sigma^2\sum_{i\le r}((\sqrt L +
    \sqrt{S-i+1})^2 - \frac12)$, $(PE)_{(r)}$ being the $r$ largest singular values. Squared.
    """

    kind = UPPER_IN_EXPECTATION
    regimes = _RANKS
    refuted_below = Refuted(1.0, "large matrices: the largest values all tend to √q + √K")

    def formula(self, instance: Problem, estimate: NoiseValues) -> Float[Array, ""]:
        r"""$\sigma^2\sum_{i\le r}((\sqrt L + \sqrt{S-i+1})^2 - \frac12)$."""
        energy = jnp.sum(leading_squares(estimate.longer, estimate.shorter, instance.rank))
        return _scale(instance) ** 2 * energy

    def loss(self, instance: Problem, estimate: NoiseValues) -> Float[Array, ""]:
        r"""$\lVert(PE)_{(r)}\rVert_F^2$."""
        return jnp.sum(estimate.values[: instance.rank] ** 2)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert E\rVert_F^2$."""
        return squared(frobenius(instance.truth.noise))


class Smallest(AbstractBelowNoise):
    r"""$s_S(PE) \ge \sigma(\sqrt{L-\frac12} - \sqrt S - \tau)$ with probability $1-\delta$, where
    $\tau^3 = \frac{9}{32}(S^{-1/2} - (L-\frac12)^{-1/2})\ln^2\frac1\delta$, and at least
    $\sigma(\sqrt L - \sqrt S - \sqrt{2\ln\frac1\delta})$.
    """

    kind = LOWER_WITH_PROBABILITY
    refuted_below = _LOWER_EDGE

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """i.i.d. Gaussian noise, and unequal sides that are not zero."""
        noise = gaussian_noise_hypotheses(instance.truth)
        return (*noise, _expressible(instance), _longer_by(instance, 1))

    def formula(self, instance: Problem, estimate: NoiseValues) -> Float[Array, ""]:
        """The larger of the two."""
        edge = lower_edge(estimate.longer, estimate.shorter, self.failure_probability)
        return _scale(instance) * edge


class ExpectedSmallest(AbstractBelowNoise):
    r"""$\mathbb Es_S(PE) \ge \sigma(\sqrt L - \sqrt S)$."""

    kind = LOWER_IN_EXPECTATION
    refuted_below = _LOWER_EDGE

    def formula(self, instance: Problem, estimate: NoiseValues) -> Float[Array, ""]:
        r"""$\sigma(\sqrt L - \sqrt S)$."""
        return _scale(instance) * (jnp.sqrt(estimate.longer) - jnp.sqrt(estimate.shorter))


class Inverse(AbstractAboveNoise):
    r"""$\mathbb E\lVert(PE)^+\rVert_F^2 = \frac{S}{\sigma^2(L-S-1)}$, the trace of an inverse
    Wishart matrix. In the inverse squared units of the outputs.
    """

    kind = EQUALITY_IN_EXPECTATION
    regimes = _UNEQUAL

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """i.i.d. Gaussian noise, and sides, not zero, that differ by two or more."""
        noise = gaussian_noise_hypotheses(instance.truth)
        return (*noise, _expressible(instance), _longer_by(instance, 2))

    def formula(self, instance: Problem, estimate: NoiseValues) -> Float[Array, ""]:
        r"""$S/(\sigma^2(L-S-1))$."""
        freedom = estimate.longer - estimate.shorter - 1
        return estimate.shorter / (_scale(instance) ** 2 * freedom)

    def loss(self, instance: Problem, estimate: NoiseValues) -> Float[Array, ""]:
        r"""$\lVert(PE)^+\rVert_F^2$."""
        counted = jnp.arange(estimate.values.size) < estimate.shorter
        return jnp.sum(jnp.where(counted, estimate.values, jnp.inf) ** -2.0)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert(PE)^+\rVert_F^2$ times the condition number of $PE$; infinite where it is."""
        spectrum = _attainable(instance)
        least = jnp.where(spectrum.least > 0, spectrum.least, 1)
        size = self.loss(instance, spectrum) * spectrum.values[0] / least
        return jnp.where(spectrum.least > 0, size, jnp.inf)


def _expressible(problem: Problem) -> Hypothesis:
    _, q = attainable_noise(problem)
    return Hypothesis("the activations are not all zero", q - 1)


def _longer_by(problem: Problem, difference: int) -> Hypothesis:
    spectrum = _attainable(problem)
    name = f"one side of the noise is longer than the other by at least {difference}"
    return Hypothesis(name, spectrum.longer - spectrum.shorter - difference)


class GaussianNoise(AbstractTheorem):
    r"""Of Gaussian noise only the part that a layer can express counts, and its norm hardly exceeds
    $\sqrt q + \sqrt K$: by the rate of the Tracy-Widom law, at every size.
    """

    largest: Largest = Largest()
    smallest: Smallest = Smallest()
    expected_largest: ExpectedLargest = ExpectedLargest()
    expected_smallest: ExpectedSmallest = ExpectedSmallest()
    leading: Leading = Leading()
    inverse: Inverse = Inverse()


gaussian_noise = GaussianNoise()
