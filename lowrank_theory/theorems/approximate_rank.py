r"""Recovery of an approximately low-rank layer by the convex estimator.

**Model.** $Y = \tilde XM + E$ with any target; $F^* = \tilde XM$ has singular values $s_i$, $\nu =
\lVert PE\rVert$. The estimator soft-thresholds the singular values of $PY$ at $\tau$: $\hat F =
\operatorname{arg}\min\tfrac12\lVert Y-\tilde XZ\rVert_F^2 + \tau\lVert\tilde XZ\rVert_*$.

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

import abc

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory.error_measures import output_error
from lowrank_theory.generators import noise, spectra, targets
from lowrank_theory.problems import Problem, Setting, Truth
from lowrank_theory.recovery import LowRank, singular_value_threshold
from lowrank_theory.theorems._quantities import (
    attainable_noise,
    gaussian_edge,
    gaussian_noise_hypothesis,
    least_squares,
    output_norm,
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


def _operator_norm_of_noise(problem: Problem) -> Float[Array, ""]:
    values, _ = attainable_noise(problem)
    return values[0]


def _capped_energy(problem: Problem, cap: Float[Array, ""]) -> Float[Array, ""]:
    r"""$\sum_i\min(s_i(F^*)^2, \text{cap}^2)$, the infimum over all $F$ of $\lVert F-F^*\rVert_F^2
    + \text{cap}^2\operatorname{rank}F$.
    """
    values = singular_values(problem.truth.clean_outputs)
    return jnp.sum(jnp.minimum(values, cap) ** 2)


class AbstractThresholded(AbstractStatement):
    r"""A bound on $\lVert\hat F - F^*\rVert_F^2$ for the estimator thresholded at `threshold`.
    Squared.
    """

    needs = Truth
    control = NOT_TRUNCATED

    @abc.abstractmethod
    def threshold(self, problem: Problem, failure_probability: float) -> Float[Array, ""]:
        r"""The threshold $\tau$."""

    def estimate(self, instance: Problem, failure_probability: float) -> LowRank:
        r"""Singular values of $PY$, soft-thresholded at $\tau$."""
        factors, _ = singular_value_threshold(
            instance.truth.layer_inputs,
            instance.observed.target_outputs,
            self.threshold(instance, failure_probability),
            rank=min(instance.observed.shape),
        )
        return factors

    def broken_estimate(self, instance: Problem, failure_probability: float) -> Array:
        """Least squares that forgets the threshold."""
        return least_squares(instance)

    def loss(self, instance: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\hat F - F^*\rVert_F^2$."""
        return output_error(estimate, instance.truth) ** 2

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F^2$."""
        return output_norm(instance) ** 2


class Oracle(AbstractThresholded):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le \sum_i\min(s_i^2, (\tau+\nu)^2)$ for $\tau = $ `inflation`
    $\cdot\,\nu$.
    """

    inflation: float = 1.0
    kind = UPPER
    regimes = _SURE_REGIMES

    def hypotheses(self, instance: Problem, failure_probability: float) -> tuple[Hypothesis, ...]:
        """The threshold is at least the noise."""
        return (
            planted_hypothesis(instance),
            Hypothesis("the threshold is at least the noise", self.inflation - 1.0),
        )

    def threshold(self, problem: Problem, failure_probability: float) -> Float[Array, ""]:
        r"""$\tau$, in proportion to $\nu$."""
        return self.inflation * _operator_norm_of_noise(problem)

    def formula(
        self, instance: Problem, estimate: LowRank, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\sum_i\min(s_i^2, (\tau+\nu)^2)$."""
        return _capped_energy(instance, (1 + self.inflation) * _operator_norm_of_noise(instance))


class Gaussian(AbstractThresholded):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le \sum_i\min(s_i^2, 4\tau^2)$ with $\tau = \sigma(\sqrt q +
    \sqrt K + t)$.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _REGIMES

    def hypotheses(self, instance: Problem, failure_probability: float) -> tuple[Hypothesis, ...]:
        """i.i.d. Gaussian noise."""
        return (planted_hypothesis(instance), gaussian_noise_hypothesis(instance.truth))

    def threshold(self, problem: Problem, failure_probability: float) -> Float[Array, ""]:
        r"""$\sigma(\sqrt q + \sqrt K + t)$."""
        return gaussian_edge(problem, failure_probability)

    def formula(
        self, instance: Problem, estimate: LowRank, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\sum_i\min(s_i^2, 4\tau^2)$."""
        return _capped_energy(instance, 2 * gaussian_edge(instance, failure_probability))


class SchattenBall(AbstractThresholded):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le 2^{2-a}R_a\tau^{2-a}$ with $R_a = \sum_is_i(F^*)^a$, $a$ =
    `exponent` in (0, 2), $\tau = \nu$.
    """

    exponent: float = 1.0
    kind = UPPER
    regimes = _SURE_REGIMES

    def __check_init__(self) -> None:
        targets.SchattenBall(self.exponent)  # raises on an exponent outside (0, 2)

    def hypotheses(self, instance: Problem, failure_probability: float) -> tuple[Hypothesis, ...]:
        """None beyond the model: the threshold is the noise itself."""
        return (planted_hypothesis(instance),)

    def threshold(self, problem: Problem, failure_probability: float) -> Float[Array, ""]:
        r"""$\nu$."""
        return _operator_norm_of_noise(problem)

    def formula(
        self, instance: Problem, estimate: LowRank, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$2^{2-a}R_a\tau^{2-a}$."""
        values = singular_values(instance.truth.clean_outputs)
        radius = jnp.sum(values**self.exponent)
        return radius * (2 * _operator_norm_of_noise(instance)) ** (2 - self.exponent)


class ApproximateRank(AbstractTheorem):
    """Recovery of an approximately low-rank layer by singular value soft-thresholding."""

    oracle: Oracle = Oracle()
    gaussian: Gaussian = Gaussian()
    schatten_ball: SchattenBall = SchattenBall()


approximate_rank = ApproximateRank()
