r"""Recovery of a planted low-rank layer from noisy outputs.

**Model.** $Y = \tilde XM + E$ with $\operatorname{rank}(\tilde XM) \le r$; $P$ projects on the
columns of $\tilde X$ (m x N), $q = \operatorname{rank}\tilde X$, and there are $K$ outputs. The
estimator is the data-driven one, $\hat M = \tilde X^+[PY]_r$. Such a planted model of a trained
layer, in three tiers of weakening assumptions, is due to Zhang and Saab (arXiv 2502.02766); the
statements below are this project's own, proved in paper_notes/planted_rank.md.

**Claims.** With $(PE)_{(r)}$ the $r$ largest singular values of $PE$ and $t =
\sqrt{2\ln(1/\delta)}$:

- `any_noise` (sure): $\lVert\tilde X(\hat M - M)\rVert_F \le \sqrt5\,\lVert(PE)_{(r)}\rVert_F$, for
  every $E$. Attained: $F = \operatorname{diag}(2, 0)$, $E = \operatorname{diag}(-1, 1)$.
- `gaussian` (probability $1-\delta$), $E_{ij}$ i.i.d. $N(0, \sigma^2)$:
  $\lVert\tilde X(\hat M - M)\rVert_F^2 \le 5r\sigma^2(\sqrt q + \sqrt K + t)^2$.
- `expectation`, the same noise: $\mathbb E\lVert\tilde X(\hat M - M)\rVert_F^2 \le
  5r\sigma^2((\sqrt q + \sqrt K)^2 + 1)$.
- `sub_gaussian` (probability $1-\delta$), independent entries with $\mathbb Ee^{\lambda E_{ij}} \le
  e^{\lambda^2\sigma^2/2}$: $\lVert\tilde X(\hat M - M)\rVert_F^2 \le
  5r\sigma^2\min_{0<a,b<1}(ab)^{-2}\bigl(q\ln\tfrac1{1-a^2} + K\ln\tfrac1{1-b^2} + t^2\bigr)$
  (equation 5 of the note); at $a^2 = b^2 = 0.9$ this is at most $5r\sigma^2(1.687\sqrt{q+K} +
  1.112\,t)^2$.

Only $q$, not the number of samples, enters. No estimator has worst-case risk below $r\sigma^2(q + K
- r)$ (`minimax_floor`), and for Gaussian noise in high dimensions the error of this one is known
exactly (`asymptotic_error`): the constant 5 is at most four to five times too large.
"""

import abc
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from lowrank_theory.error_measures import output_error
from lowrank_theory.generators import noise, spectra, targets
from lowrank_theory.problems import Problem, Setting, Truth
from lowrank_theory.recovery import ActivationWeighted, LowRank, recover
from lowrank_theory.theorems._quantities import (
    attainable_noise,
    column_space,
    deviation,
    gaussian_noise_hypothesis,
    law_hypothesis,
    least_squares,
    no_bias_hypothesis,
    output_norm,
    planted_hypothesis,
    target_rank_hypothesis,
)
from lowrank_theory.theorems._regimes import (
    BASE,
    FULL_RANK,
    MISMATCHED,
    NOT_TRUNCATED,
    QUANTISED,
    SINGULAR,
    WELL_POSED,
    WORST_NOISE,
)
from lowrank_theory.theorems._theorem import (
    UPPER,
    UPPER_IN_EXPECTATION,
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)


def minimax_floor(rank: int, q: int, outputs: int, noise_scale: float) -> float:
    r"""No estimator has $\sup_M\mathbb E\lVert\tilde X(\hat M - M)\rVert_F^2$ below $\sigma^2r(q +
    K - r)$ (paper_notes/planted_rank.md).
    """
    return noise_scale**2 * rank * (q + outputs - rank)


def asymptotic_error(
    strengths: Float[ArrayLike, " rank"], q: int, outputs: int, noise_scale: float
) -> Float[Array, ""]:
    r"""The limit of $\lVert\tilde X(\hat M - M)\rVert_F^2$ for Gaussian noise, fixed rank and large
    $q, K$.

    `strengths` are the singular values of $\tilde XM$, distinct in the limit. With $L = \max(q,
    K)$, $\beta = \min(q, K)/L$ and $x = s/(\sigma\sqrt L)$, each contributes $\sigma^2L$ times $1 +
    \beta + 3\beta/x^2$ where $x > \beta^{1/4}$, and $x^2 + (1+\sqrt\beta)^2$ below, where it is not
    detected (Benaych-Georges and Nadakuditi 2012; Gavish and Donoho 2014).
    """
    longer, shorter = max(q, outputs), min(q, outputs)
    beta = shorter / longer
    with jax.enable_x64(True):
        x = jnp.asarray(strengths, float) / (noise_scale * math.sqrt(longer))
        detected = 1 + beta + 3 * beta / jnp.maximum(x, beta**0.25) ** 2
        missed = x**2 + (1 + math.sqrt(beta)) ** 2
        return noise_scale**2 * longer * jnp.sum(jnp.where(x > beta**0.25, detected, missed))


def detection_threshold(q: int, outputs: int, noise_scale: float) -> float:
    r"""The singular value $\sigma\sqrt L\,\beta^{1/4} = \sigma(qK)^{1/4}$ of $\tilde XM$ below
    which it leaves no trace in the limit.
    """
    return noise_scale * (q * outputs) ** 0.25


def _data_driven(problem: Problem) -> LowRank:
    return recover(problem.observed, problem.rank, ActivationWeighted()).factors


def _planted(problem: Problem) -> tuple[Hypothesis, ...]:
    return (
        planted_hypothesis(problem),
        target_rank_hypothesis(problem),
        no_bias_hypothesis(problem),
    )


_GAUSSIAN = {
    **WELL_POSED,
    **SINGULAR,
    **MISMATCHED,
    **FULL_RANK,
    "near the detection threshold": Setting(
        **BASE,
        noise=noise.Gaussian(1.0),
        target=targets.ExactOutputRank(
            spectra.Given((1.3, 1.1, 0.9)), scale=1.2 * detection_threshold(24, 20, 1.0)
        ),
    ),
    "pure noise": Setting(**BASE, target=targets.ExactRank(scale=1e-6)),
}
_SUB_GAUSSIAN = {
    "Rademacher noise": Setting(**BASE, noise=noise.Rademacher(0.5)),
    "uniform noise": Setting(**BASE, noise=noise.Uniform(0.5)),
    "noise unequal by row": Setting(**BASE, noise=noise.Heteroskedastic(0.5)),
    "noise unequal by column": Setting(**BASE, noise=noise.Heteroskedastic(0.5, by_column=True)),
    "sparse outliers": Setting(**BASE, noise=noise.SparseOutliers(0.1)),
    "square": WELL_POSED["square"],
    "tall": WELL_POSED["tall"],
    "wide": WELL_POSED["wide"],
}
_ANY = {
    **_GAUSSIAN,
    **_SUB_GAUSSIAN,
    "Laplace noise": Setting(**BASE, noise=noise.Laplace(0.5)),
    "correlated noise": Setting(**BASE, noise=noise.Correlated(0.5)),
    **QUANTISED,
    **WORST_NOISE,
}


class AnyNoise(AbstractStatement):
    r"""$\lVert\tilde X(\hat M - M)\rVert_F \le \sqrt5\,\lVert(PE)_{(r)}\rVert_F$, whatever the
    noise. Not squared; in the units of the outputs.
    """

    kind = UPPER
    needs = Truth
    regimes = _ANY
    control = NOT_TRUNCATED

    def hypotheses(self, instance: Problem, failure_probability: float) -> tuple[Hypothesis, ...]:
        """Planted rank only."""
        return _planted(instance)

    def estimate(self, instance: Problem, failure_probability: float) -> LowRank:
        """The data-driven recovery."""
        return _data_driven(instance)

    def broken_estimate(self, instance: Problem, failure_probability: float) -> Array:
        """Least squares that forgets to truncate."""
        return least_squares(instance)

    def formula(
        self, instance: Problem, estimate: LowRank, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\sqrt5\,\lVert(PE)_{(r)}\rVert_F$."""
        values, _ = attainable_noise(instance)
        return math.sqrt(5) * jnp.linalg.norm(values[: instance.rank])

    def loss(self, instance: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\tilde X(\hat M - M)\rVert_F$."""
        return output_error(estimate, instance.truth)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F$."""
        return output_norm(instance)


class AbstractSquaredLoss(AbstractStatement):
    r"""$\lVert\tilde X(\hat M - M)\rVert_F^2 \le 5r\,\sigma^2\,b$, with $b$ a bound on
    $\lVert PE\rVert^2/\sigma^2$ for a law of the noise. In the squared units of the outputs.
    """

    needs = Truth

    @abc.abstractmethod
    def law(self, truth: Truth) -> Hypothesis:
        """The law of the noise."""

    @abc.abstractmethod
    def noise_norm(self, q: Array, outputs: int, failure_probability: float) -> Array:
        r"""The bound $b$ on $\lVert PE\rVert^2/\sigma^2$."""

    def hypotheses(self, instance: Problem, failure_probability: float) -> tuple[Hypothesis, ...]:
        """Planted rank and the law of the noise."""
        return (*_planted(instance), self.law(instance.truth))

    def estimate(self, instance: Problem, failure_probability: float) -> LowRank:
        """The data-driven recovery."""
        return _data_driven(instance)

    def broken_estimate(self, instance: Problem, failure_probability: float) -> Array:
        """Least squares that forgets to truncate."""
        return least_squares(instance)

    def formula(
        self, instance: Problem, estimate: LowRank, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$5r\,\sigma^2\,b(q, K, \delta)$."""
        q = column_space(instance.truth.layer_inputs).dimension
        variance = jnp.asarray(instance.truth.noise_scale) ** 2
        edge = self.noise_norm(q, instance.observed.shape[1], failure_probability)
        return 5 * instance.rank * variance * edge

    def loss(self, instance: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\tilde X(\hat M - M)\rVert_F^2$."""
        return output_error(estimate, instance.truth) ** 2

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F^2$."""
        return output_norm(instance) ** 2


class Gaussian(AbstractSquaredLoss):
    r"""$\lVert\tilde X(\hat M - M)\rVert_F^2 \le 5r\sigma^2(\sqrt q + \sqrt K + t)^2$ with
    probability $1-\delta$ for i.i.d. Gaussian noise (Davidson and Szarek 2001, Theorem II.13).
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _GAUSSIAN
    control = NOT_TRUNCATED

    def law(self, truth: Truth) -> Hypothesis:
        """i.i.d. Gaussian."""
        return gaussian_noise_hypothesis(truth)

    def noise_norm(self, q: Array, outputs: int, failure_probability: float) -> Array:
        r"""$(\sqrt q + \sqrt K + t)^2$."""
        return (jnp.sqrt(q) + math.sqrt(outputs) + deviation(failure_probability)) ** 2


class Expectation(AbstractSquaredLoss):
    r"""$\mathbb E\lVert\tilde X(\hat M - M)\rVert_F^2 \le 5r\sigma^2((\sqrt q + \sqrt K)^2 + 1)$
    for i.i.d. Gaussian noise.
    """

    kind = UPPER_IN_EXPECTATION
    regimes = _GAUSSIAN
    control = NOT_TRUNCATED

    def law(self, truth: Truth) -> Hypothesis:
        """i.i.d. Gaussian."""
        return gaussian_noise_hypothesis(truth)

    def noise_norm(self, q: Array, outputs: int, failure_probability: float) -> Array:
        r"""$(\sqrt q + \sqrt K)^2 + 1 \ge \mathbb E\lVert G\rVert^2$, since the variance of
        $\lVert G\rVert$ is at most one.
        """
        return (jnp.sqrt(q) + math.sqrt(outputs)) ** 2 + 1


class SubGaussian(AbstractSquaredLoss):
    r"""$\lVert\tilde X(\hat M - M)\rVert_F^2 \le 5r\,\beta^2$ with probability $1-\delta$ for
    independent sub-Gaussian entries; `noise_norm` is $\beta^2/\sigma^2$.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _SUB_GAUSSIAN
    control = Setting(samples=64, inputs=64, outputs=64, rank=1, noise=noise.Rademacher(1.0))

    def law(self, truth: Truth) -> Hypothesis:
        """Independent entries with a finite sub-Gaussian constant."""
        name = "the noise entries are independent and sub-Gaussian"
        return law_hypothesis(name, jnp.isfinite(truth.noise_scale))

    def noise_norm(self, q: Array, outputs: int, failure_probability: float) -> Array:
        r"""$\min_{a,b}(ab)^{-2}\bigl(q\ln\frac1{1-a^2} + K\ln\frac1{1-b^2} + t^2\bigr)$; every
        $a, b$ give a valid bound, so a grid does.
        """
        divergence = jnp.geomspace(1e-2, 14.0, 128)  # ln 1/(1-a^2)
        shrinkage = -jnp.expm1(-divergence)  # a^2
        budget = (
            q * divergence[:, None] + outputs * divergence + deviation(failure_probability) ** 2
        )
        return jnp.min(budget / (shrinkage[:, None] * shrinkage))


class PlantedRank(AbstractTheorem):
    """Recovery of a planted low-rank layer, in three tiers of noise."""

    gaussian: Gaussian = Gaussian()
    expectation: Expectation = Expectation()
    sub_gaussian: SubGaussian = SubGaussian()
    any_noise: AnyNoise = AnyNoise()


planted_rank = PlantedRank()
