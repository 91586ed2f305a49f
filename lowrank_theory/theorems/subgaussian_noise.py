r"""The norm of noise with independent sub-Gaussian entries, as far as a layer can express it.

**Model.** Independent entries with $\mathbb Ee^{\lambda E_{ij}} \le e^{\lambda^2\sigma^2/2}$ for
all real $\lambda$; $P$ projects on the $q$-dimensional column space of $\tilde X$, which does not
depend on $E$; there are $K$ outputs; $t = \sqrt{2\ln(1/\delta)}$.

**Claims** (probability $1-\delta$; proved in paper_notes/subgaussian_noise.md):

- `pac_bayes`: $\lVert PE\rVert^2 \le \sigma^2\min_{0<a,b<1}(ab)^{-2}\bigl(q\ln\tfrac1{1-a^2} +
  K\ln\tfrac1{1-b^2} + t^2\bigr)$, by averages over clouds of directions (as in Catoni and Giulini
  2017). At $a^2 = b^2 = 0.9$ the norm is at most $\sigma(1.687\sqrt{q+K} + 1.112\,t)$.
- `net`: $\lVert PE\rVert^2 \le \sigma^2\min_{0<\epsilon,\eta\le1}\dfrac{2q\ln(1+2/\epsilon) +
  2K\ln(1+2/\eta) + t^2}{(1-\epsilon^2/2)^2(1-\eta^2/2)^2}$, by a union bound over nets whose convex
  hulls hold balls of radius $1-\epsilon^2/2$. At $\epsilon = \eta = 0.3214$ the norm is at most
  $\sigma(2.212\sqrt{q+K} + 1.112\,t)$.

Gaussian noise has $\sqrt q + \sqrt K$ in front (`gaussian_noise`), between $\sqrt{q+K}$ and
$1.415\sqrt{q+K}$: in large matrices clouds lose a factor of at most 1.11, nets of 1.56 to
2.05.
"""

import abc

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import AnyArray, Number
from lowrank_theory.generators import noise
from lowrank_theory.problems import Problem, Setting, Truth
from lowrank_theory.theorems._quantities import (
    deviation,
    frobenius,
    resolved_rank,
    resolved_space,
    singular_values,
    sub_gaussian_noise_hypotheses,
)
from lowrank_theory.theorems._regimes import SUB_GAUSSIAN, WELL_POSED
from lowrank_theory.theorems._theorem import (
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)


def squared_cloud_bound(q: Number, outputs: int, failure_probability: Number) -> Float[Array, ""]:
    r"""$\min_{a,b}(ab)^{-2}\bigl(q\ln\frac1{1-a^2} + K\ln\frac1{1-b^2} + t^2\bigr)$, above $\lVert
    PE\rVert^2/\sigma^2$ with probability $1-\delta$; call it inside `float64`.

    Every pair $a, b$ gives a valid bound, so a grid does.
    """
    divergence = jnp.geomspace(1e-2, 14.0, 128)  # ln 1/(1-a^2)
    shrinkage = -jnp.expm1(-divergence)  # a^2
    budget = q * divergence[:, None] + outputs * divergence + deviation(failure_probability) ** 2
    return jnp.min(budget / (shrinkage[:, None] * shrinkage))


def squared_net_bound(q: Number, outputs: int, failure_probability: Number) -> Float[Array, ""]:
    r"""$\min_{\epsilon,\eta}\dfrac{2q\ln(1+2/\epsilon) + 2K\ln(1+2/\eta) + t^2}{(1-\epsilon^2/2)^2
    (1-\eta^2/2)^2}$, above $\lVert PE\rVert^2/\sigma^2$ with probability $1-\delta$; call it inside
    `float64`.

    Every pair $\epsilon, \eta$ gives a valid bound, so a grid does.
    """
    spacing = jnp.geomspace(1e-2, 1.0, 128)
    points = 2 * jnp.log1p(2 / spacing)
    shrinkage = (1 - spacing**2 / 2) ** 2
    budget = q * points[:, None] + outputs * points + deviation(failure_probability) ** 2
    return jnp.min(budget / (shrinkage[:, None] * shrinkage))


_REGIMES = {**SUB_GAUSSIAN, "tall": WELL_POSED["tall"], "wide": WELL_POSED["wide"]}


class AbstractNormOfNoise(AbstractStatement):
    r"""$\lVert PE\rVert \le \sigma b$ with probability $1-\delta$, in the units of the outputs."""

    kind = UPPER_WITH_PROBABILITY
    needs = Truth
    regimes = _REGIMES
    control = Setting(samples=400, inputs=4, outputs=4, rank=1, noise=noise.Rademacher(1.0))

    @abc.abstractmethod
    def squared_bound(self, q: Float[Array, ""], outputs: int) -> Float[Array, ""]:
        """$b^2$."""

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """Independent sub-Gaussian entries that do not depend on the activations."""
        return sub_gaussian_noise_hypotheses(instance.truth)

    def estimate(self, instance: Problem) -> Float[Array, "width outputs"]:
        """$PE$, in coordinates of the column space."""
        return resolved_space(instance).coordinates(instance.truth.noise)

    def broken_estimate(self, instance: Problem) -> Float[AnyArray, "samples outputs"]:
        """$E$, as if all samples counted."""
        return instance.truth.noise

    def formula(self, instance: Problem, estimate: Array) -> Float[Array, ""]:
        r"""$\sigma b$."""
        q = resolved_rank(instance)
        square = self.squared_bound(q, instance.observed.shape[1])
        return jnp.asarray(instance.truth.noise_scale) * jnp.sqrt(square)

    def loss(
        self, instance: Problem, estimate: Float[AnyArray, "rows outputs"]
    ) -> Float[Array, ""]:
        r"""$\lVert PE\rVert$."""
        return singular_values(jnp.asarray(estimate))[0]

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert E\rVert_F$."""
        return frobenius(instance.truth.noise)


class PacBayes(AbstractNormOfNoise):
    r"""$\lVert PE\rVert^2 \le \sigma^2\min_{a,b}(ab)^{-2}(q\ln\frac1{1-a^2} + K\ln\frac1{1-b^2} +
    2\ln\frac1\delta)$ with probability $1-\delta$ for independent sub-Gaussian entries.
    """

    refuted_below = Refuted(0.997, "one output and many rows of signs: the norm is √q")

    def squared_bound(self, q: Float[Array, ""], outputs: int) -> Float[Array, ""]:
        r"""$\min_{a,b}(ab)^{-2}\bigl(q\ln\frac1{1-a^2} + K\ln\frac1{1-b^2} + t^2\bigr)$."""
        return squared_cloud_bound(q, outputs, self.failure_probability)


class Net(AbstractNormOfNoise):
    r"""$\lVert PE\rVert^2 \le \sigma^2\min_{\epsilon,\eta}\frac{2q\ln(1+2/\epsilon) +
    2K\ln(1+2/\eta) + 2\ln(1/\delta)}{(1-\epsilon^2/2)^2(1-\eta^2/2)^2}$ with probability $1-\delta$
    for independent sub-Gaussian entries.
    """

    refuted_below = Refuted(0.639, "large Gaussian noise with q = K: the norm is 2√q")

    def squared_bound(self, q: Float[Array, ""], outputs: int) -> Float[Array, ""]:
        r"""$\min_{\epsilon,\eta}\dfrac{2q\ln(1+2/\epsilon) + 2K\ln(1+2/\eta) +
        t^2}{(1-\epsilon^2/2)^2(1-\eta^2/2)^2}$.
        """
        return squared_net_bound(q, outputs, self.failure_probability)


class SubgaussianNoise(AbstractTheorem):
    r"""Noise with independent sub-Gaussian entries has a norm of at most $1.57\sqrt{q+K}$ or so, by
    averages over clouds of directions; nets give $2.21$.
    """

    pac_bayes: PacBayes = PacBayes()
    net: Net = Net()


subgaussian_noise = SubgaussianNoise()
