r"""Recovery of an approximately low-rank layer by the convex estimator.

**Model.** $Y = \tilde XM + E$ with any target; $F^* = \tilde XM$ has singular values $s_i$, $\nu =
\lVert PE\rVert$. The estimator soft-thresholds the singular values of $PY$ at $\tau$: $\hat F =
\arg\min\tfrac12\lVert Y-\tilde XZ\rVert_F^2 + \tau\lVert\tilde XZ\rVert_*$.

**Claims** (squared errors; proved in paper_notes/approximate_rank.md by the subgradient argument of
Koltchinskii, Lounici and Tsybakov 2011, with the constant 4 in place of their $(1+\sqrt2)^2 =
5.83$):

- `oracle` (sure), $\tau \ge \nu$: $\lVert\hat F - F^*\rVert_F^2 \le \inf_F\{\lVert F-F^*\rVert_F^2
  + (\tau+\nu)^2\operatorname{rank}F\} = \sum_i\min(s_i^2, (\tau+\nu)^2)$.
- `gaussian` (probability $1-\delta$), $E_{ij}$ i.i.d. $N(0,\sigma^2)$ and $\tau = \sigma(\sqrt
  q+\sqrt K+t)$, $t = \sqrt{2\ln(1/\delta)}$: $\le \sum_i\min(s_i^2, 4\tau^2)$.
- `schatten_ball` (sure), $\tau \ge \nu$, $0 < a < 2$: $\le 2^{2-a}R_a\tau^{2-a}$ with $R_a =
  \sum_is_i^a$.

All are attained: with $\tau = \nu$, every $s_i = 2\tau$ on the diagonal and noise $-\nu$ there,
$\hat F = 0$.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import matmul
from lowrank_theory.error_measures import output_error
from lowrank_theory.generators import noise, spectra, targets
from lowrank_theory.problems import Problem, Setting, Truth
from lowrank_theory.recovery import LowRank, singular_value_threshold
from lowrank_theory.theorems._quantities import (
    attainable_noise,
    column_space,
    deviation,
    law_hypothesis,
    planted_hypothesis,
    singular_values,
)
from lowrank_theory.theorems._regimes import (
    BASE,
    HEAVY_TAILS,
    NOT_TRUNCATED,
    POWER_LAW,
    QUANTISED,
    SINGULAR,
    WELL_POSED,
    WORST_NOISE,
)
from lowrank_theory.theorems._theorem import (
    UPPER,
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)

_REGIMES = {
    "square": WELL_POSED["square"],
    "tall": WELL_POSED["tall"],
    "wide": WELL_POSED["wide"],
    "ill-conditioned activations": WELL_POSED["ill-conditioned activations"],
    **SINGULAR,
    **POWER_LAW,
    "exponential decay": Setting(**BASE, target=targets.ApproximateRank(spectra.Exponential(0.3))),
    "Schatten ball": Setting(**BASE, target=targets.SchattenBall(0.5, 50.0)),
    "strong noise": Setting(**BASE, target=targets.ApproximateRank(), noise=noise.Gaussian(1.0)),
}
_SURE_REGIMES = {**_REGIMES, **HEAVY_TAILS, **QUANTISED, **WORST_NOISE}


def _threshold_outputs(problem: Problem, threshold: Float[Array, ""]) -> LowRank:
    factors, _ = singular_value_threshold(
        problem.truth.layer_inputs,
        problem.observed.target_outputs,
        threshold,
        rank=min(problem.observed.shape),
    )
    return factors


def _operator_norm_of_noise(problem: Problem) -> Float[Array, ""]:
    values, _ = attainable_noise(problem)
    return values[0]


def _gaussian_edge(problem: Problem, failure_probability: float) -> Float[Array, ""]:
    r"""$\sigma(\sqrt q + \sqrt K + t)$."""
    q = column_space(problem.truth.layer_inputs).dimension
    edge = jnp.sqrt(q) + math.sqrt(problem.observed.shape[1]) + deviation(failure_probability)
    return problem.truth.noise_scale * edge


def _without_threshold(problem: Problem) -> Array:
    return matmul(jnp.linalg.pinv(problem.truth.layer_inputs), problem.observed.target_outputs)


def _squared_loss(problem: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
    return output_error(estimate, problem.truth) ** 2


def _squared_scale(problem: Problem) -> Float[Array, ""]:
    return jnp.linalg.norm(problem.observed.target_outputs) ** 2


def _capped_energy(problem: Problem, cap: Float[Array, ""]) -> Float[Array, ""]:
    r"""$\sum_i\min(s_i(F^*)^2, \text{cap}^2)$, the infimum over all $F$ of $\lVert F-F^*\rVert_F^2
    + \text{cap}^2\operatorname{rank}F$.
    """
    values = singular_values(problem.truth.clean_outputs)
    return jnp.sum(jnp.minimum(values, cap) ** 2)


class Oracle(AbstractStatement):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le \sum_i\min(s_i^2, (\tau+\nu)^2)$ for $\tau = $ `inflation`
    $\cdot\,\nu$. Squared.
    """

    inflation: float = 1.0
    kind = UPPER
    needs = Truth
    regimes = _SURE_REGIMES
    control = NOT_TRUNCATED

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """The threshold is at least the noise."""
        return (
            planted_hypothesis(instance),
            Hypothesis("the threshold is at least the noise", self.inflation - 1.0),
        )

    def estimate(self, instance: Problem, failure_probability: float) -> LowRank:
        r"""Singular values of $PY$, soft-thresholded at $\tau$."""
        return _threshold_outputs(instance, self.inflation * _operator_norm_of_noise(instance))

    def broken_estimate(self, instance: Problem, failure_probability: float) -> Array:
        """Least squares that forgets the threshold."""
        return _without_threshold(instance)

    def formula(
        self, instance: Problem, estimate: LowRank, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\sum_i\min(s_i^2, (\tau+\nu)^2)$."""
        return _capped_energy(instance, (1 + self.inflation) * _operator_norm_of_noise(instance))

    def loss(self, instance: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\hat F - F^*\rVert_F^2$."""
        return _squared_loss(instance, estimate)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F^2$."""
        return _squared_scale(instance)


class Gaussian(AbstractStatement):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le \sum_i\min(s_i^2, 4\tau^2)$ with $\tau = \sigma(\sqrt q +
    \sqrt K + t)$. Squared.
    """

    kind = UPPER_WITH_PROBABILITY
    needs = Truth
    regimes = _REGIMES
    control = NOT_TRUNCATED

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """i.i.d. Gaussian noise."""
        return (
            planted_hypothesis(instance),
            law_hypothesis("the noise is i.i.d. Gaussian", instance.truth.gaussian_noise),
        )

    def estimate(self, instance: Problem, failure_probability: float) -> LowRank:
        r"""Singular values of $PY$, soft-thresholded at $\sigma(\sqrt q + \sqrt K + t)$."""
        return _threshold_outputs(instance, _gaussian_edge(instance, failure_probability))

    def broken_estimate(self, instance: Problem, failure_probability: float) -> Array:
        """Least squares that forgets the threshold."""
        return _without_threshold(instance)

    def formula(
        self, instance: Problem, estimate: LowRank, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\sum_i\min(s_i^2, 4\tau^2)$."""
        return _capped_energy(instance, 2 * _gaussian_edge(instance, failure_probability))

    def loss(self, instance: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\hat F - F^*\rVert_F^2$."""
        return _squared_loss(instance, estimate)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F^2$."""
        return _squared_scale(instance)


class SchattenBall(AbstractStatement):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le 2^{2-a}R_a\tau^{2-a}$ with $R_a = \sum_is_i(F^*)^a$, $a$ =
    `exponent`, $\tau = \nu$. Squared.
    """

    exponent: float = 1.0
    kind = UPPER
    needs = Truth
    regimes = _SURE_REGIMES
    control = NOT_TRUNCATED

    def __check_init__(self) -> None:
        targets.SchattenBall(self.exponent)

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """None beyond the model: the threshold is the noise itself."""
        return (planted_hypothesis(instance),)

    def estimate(self, instance: Problem, failure_probability: float) -> LowRank:
        r"""Singular values of $PY$, soft-thresholded at $\nu$."""
        return _threshold_outputs(instance, _operator_norm_of_noise(instance))

    def broken_estimate(self, instance: Problem, failure_probability: float) -> Array:
        """Least squares that forgets the threshold."""
        return _without_threshold(instance)

    def formula(
        self, instance: Problem, estimate: LowRank, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$2^{2-a}R_a\tau^{2-a}$."""
        values = singular_values(instance.truth.clean_outputs)
        radius = jnp.sum(values**self.exponent)
        return radius * (2 * _operator_norm_of_noise(instance)) ** (2 - self.exponent)

    def loss(self, instance: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\hat F - F^*\rVert_F^2$."""
        return _squared_loss(instance, estimate)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F^2$."""
        return _squared_scale(instance)


class ApproximateRank(AbstractTheorem):
    """Recovery of an approximately low-rank layer by singular value soft-thresholding."""

    oracle: Oracle = Oracle()
    gaussian: Gaussian = Gaussian()
    schatten_ball: SchattenBall = SchattenBall()


approximate_rank = ApproximateRank()
