r"""Recovery of an approximately low-rank layer by convex estimators, and by truncation.

**Model.** $Y = \tilde XM + E$ with any target; $F^* = \tilde XM$ has singular values $s_i$, $z_i$
are those of $PE$, $\nu = z_1$, and $d = \min(q, K)$. Three estimators $\hat F$:

- *penalised*: the singular values of $PY$ are lowered by $\tau$; this minimises $\tfrac12\lVert
  Y-\tilde XZ\rVert_F^2 + \tau\lVert\tilde XZ\rVert_*$;
- *constrained*: $PY$ is projected on the ball $\lVert F\rVert_* \le R$;
- *truncated*: $[PY]_r$, the best of rank r.

**Claims** (squared errors but for the last; proved in paper_notes/approximate_rank.md, the first by
the subgradient argument of Koltchinskii, Lounici and Tsybakov 2011, with the constant 4 in place of
their $(1+\sqrt2)^2 = 5.83$):

- `oracle` (sure), $\tau \ge \nu$: $\lVert\hat F - F^*\rVert_F^2 \le \inf_F\{\lVert F-F^*\rVert_F^2
  + (\tau+\nu)^2\operatorname{rank}F\} = \sum_i\min(s_i^2, (\tau+\nu)^2)$.
- `gaussian` (probability $1-\delta$), $E_{ij}$ i.i.d. $N(0,\sigma^2)$ and $\tau$ the bound of
  `gaussian_noise.largest` on $\nu$, at most $\sigma(\sqrt q + \sqrt K + \sqrt{2\ln(1/\delta)})$:
  $\le \sum_i\min(s_i^2, 4\tau^2)$.
- `schatten_ball` (sure), $\tau \ge \nu$, $0 < a < 2$: $\le 2^{2-a}R_a\tau^{2-a}$ with $R_a =
  \sum_is_i^a$.
- `nuclear_ball` (sure), constrained with $R \ge \lVert F^*\rVert_*$: $\le \nu(R + \lVert
  F^*\rVert_*) \le 2R\nu$.
- `exact_radius` (sure), constrained with $R = \lVert F^*\rVert_*$ and $\operatorname{rank}F^* \le
  r$: $\le 4k(1-k/d)\nu^2$ with $k = \min(r, d/2)$; at most $4r\nu^2$.
- `truncation` (sure): $\le \sum_{r<i\le d-r}s_i^2 + (\tau_r + 2\zeta_k)^2 + \zeta_r^2$ with
  $\tau_r^2 = \sum_{r<i\le2r}s_i^2$, $\zeta_j^2 = \sum_{i\le j}z_i^2$ and $k = \min(r, d-r)$,
  zero for $r \ge d$.
- `golden_ratio` (sure; not squared): $\lVert\hat F - F^*\rVert_F \le T_r + \varphi(T_{r,2r} +
  \zeta_{2r})$ for the truncated one, $T_r^2 = \sum_{i>r}s_i^2$, $T_{r,2r}^2 =
  \sum_{r<i\le3r}s_i^2$ and $\varphi = \tfrac{1+\sqrt5}2$.

All but `gaussian` are attained: with $\tau = \nu$, every $s_i = 2\tau$ on the diagonal and noise
$-\nu$ there, $\hat F = 0$; for the others see the note.
"""

import abc
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import safe_divide
from lowrank_theory.generators import noise, spectra, targets
from lowrank_theory.problems import Problem, Setting, Truth
from lowrank_theory.recovery import (
    ActivationWeighted,
    LowRank,
    nuclear_norm_ball,
    recover,
    singular_value_threshold,
)
from lowrank_theory.theorems._adversaries import TargetAndNoise, TargetAndSpectrum
from lowrank_theory.theorems._quantities import (
    attainable_noise,
    error_magnitude,
    frobenius,
    gaussian_noise_hypotheses,
    largest_rank,
    least_squares,
    no_bias_hypothesis,
    output_error,
    planted_hypothesis,
    resolved_signal,
    squared_error_magnitude,
    stored_resolution,
    target_rank_hypothesis,
)
from lowrank_theory.theorems._regimes import (
    BASE,
    FULL_RANK,
    HEAVY_TAILS,
    NOT_TRUNCATED,
    POWER_LAW,
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
    Refuted,
)
from lowrank_theory.theorems.gaussian_noise import gaussian_edge

_REGIMES = {
    "wide": WELL_POSED["wide"],
    "ill-conditioned activations": WELL_POSED["ill-conditioned activations"],
    "fewer samples than inputs": SINGULAR["fewer samples than inputs"],
    **POWER_LAW,
    "exponential decay": Setting(**BASE, target=targets.ApproximateRank(spectra.Exponential(0.3))),
    "Schatten ball": Setting(**BASE, target=targets.SchattenBall(0.5, 50.0)),
    "strong noise": Setting(**BASE, target=targets.ApproximateRank(), noise=noise.Gaussian(1.0)),
}
_SURE_REGIMES = {**_REGIMES, **HEAVY_TAILS, **WORST_NOISE}
_PLANTED_REGIMES = {
    "planted rank": Setting(**BASE),
    "rank one": WELL_POSED["rank one"],
    "strong noise": Setting(**BASE, noise=noise.Gaussian(1.0)),
    "no noise to speak of": Setting(**BASE, noise=noise.Gaussian(1e-6)),
    "fewer samples than inputs": SINGULAR["fewer samples than inputs"],
    **FULL_RANK,
    **WORST_NOISE,
}
_ANY_REGIMES = {
    "planted rank": Setting(**BASE),
    **POWER_LAW,
    "strong noise": _REGIMES["strong noise"],
    "power law, rank one": Setting(**{**BASE, "rank": 1}, target=targets.ApproximateRank()),
    "fewer samples than inputs": SINGULAR["fewer samples than inputs"],
    **FULL_RANK,
    **WORST_NOISE,
}
GOLDEN_RATIO = (1 + math.sqrt(5)) / 2


def _operator_norm_of_noise(problem: Problem) -> Float[Array, ""]:
    values, _ = attainable_noise(problem)
    return values[0]


def _capped_energy(problem: Problem, cap: Float[Array, ""]) -> Float[Array, ""]:
    r"""$\sum_i\min(s_i(F^*)^2, \text{cap}^2)$, the infimum over all $F$ of $\lVert F-F^*\rVert_F^2
    + \text{cap}^2\operatorname{rank}F$, over the $F$ that are resolved.
    """
    values, missed = resolved_signal(problem)
    return jnp.sum(jnp.minimum(values, cap) ** 2) + missed**2


class AbstractShrunk(AbstractStatement):
    r"""A bound on $\lVert\hat F - F^*\rVert_F^2$, where singular values of $PY$ are made smaller.
    Squared.
    """

    needs = Truth
    control = NOT_TRUNCATED

    def broken_estimate(self, instance: Problem) -> Array:
        """Least squares that forgets to shrink."""
        return least_squares(instance)

    def loss(self, instance: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\hat F - F^*\rVert_F^2$."""
        return output_error(estimate, instance.truth) ** 2

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        """Of the square of outputs formed from factors, in their precision."""
        return squared_error_magnitude(instance)


class AbstractThresholded(AbstractShrunk):
    r"""A bound on $\lVert\hat F - F^*\rVert_F^2$ for the estimator thresholded at `threshold`.
    Squared.
    """

    @abc.abstractmethod
    def threshold(self, problem: Problem) -> Float[Array, ""]:
        r"""The threshold $\tau$."""

    def estimate(self, instance: Problem) -> LowRank:
        r"""Singular values of $PY$, soft-thresholded at $\tau$."""
        factors, _ = singular_value_threshold(
            instance.truth.layer_inputs,
            instance.observed.target_outputs,
            self.threshold(instance),
            rank=min(instance.observed.shape),
            resolution=stored_resolution(instance.observed),
        )
        return factors


class Oracle(AbstractThresholded):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le \sum_i\min(s_i^2, (\tau+\nu)^2)$ for $\tau = $ `inflation`
    $\cdot\,\nu$.
    """

    inflation: float = 1.0
    kind = UPPER
    regimes = _SURE_REGIMES
    adversary = TargetAndNoise(rows=3, columns=3, rank=3, target_rank=3)
    sharp = True

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """The threshold is at least the noise."""
        return (
            planted_hypothesis(instance),
            Hypothesis("the threshold is at least the noise", self.inflation - 1.0),
        )

    def threshold(self, problem: Problem) -> Float[Array, ""]:
        r"""$\tau$, in proportion to $\nu$."""
        return self.inflation * _operator_norm_of_noise(problem)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$\sum_i\min(s_i^2, (\tau+\nu)^2)$."""
        return _capped_energy(instance, (1 + self.inflation) * _operator_norm_of_noise(instance))


class Gaussian(AbstractThresholded):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le \sum_i\min(s_i^2, 4\tau^2)$ with the $\tau$ of
    `gaussian_noise.largest`, near $\sigma(\sqrt q + \sqrt K)$.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _REGIMES
    refuted_below = Refuted(
        1.0,
        "signals that the noise hides: nothing is kept, and all of them is the error",
    )

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """i.i.d. Gaussian noise."""
        return (planted_hypothesis(instance), *gaussian_noise_hypotheses(instance.truth))

    def threshold(self, problem: Problem) -> Float[Array, ""]:
        """`gaussian_edge`."""
        return gaussian_edge(problem, self.failure_probability)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$\sum_i\min(s_i^2, 4\tau^2)$."""
        return _capped_energy(instance, 2 * gaussian_edge(instance, self.failure_probability))


class SchattenBall(AbstractThresholded):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le 2^{2-a}R_a\tau^{2-a}$ with $R_a = \sum_is_i(F^*)^a$, $a$ =
    `exponent` in (0, 2), $\tau = \nu$.
    """

    exponent: float = 1.0
    kind = UPPER
    regimes = _SURE_REGIMES
    adversary = TargetAndNoise(rows=3, columns=3, rank=3, target_rank=3)
    sharp = True

    def __check_init__(self) -> None:
        targets.SchattenBall(self.exponent)  # raises on an exponent outside (0, 2)

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """None beyond the model: the threshold is the noise itself."""
        return (planted_hypothesis(instance),)

    def threshold(self, problem: Problem) -> Float[Array, ""]:
        r"""$\nu$."""
        return _operator_norm_of_noise(problem)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$2^{2-a}R_a\tau^{2-a}$."""
        values, missed = resolved_signal(instance)
        twice = 2 * _operator_norm_of_noise(instance)
        # In units of the noise, so that no power leaves float64.
        radius = jnp.sum(safe_divide(values, twice) ** self.exponent)
        return radius * twice**2 + missed**2


class AbstractConstrained(AbstractShrunk):
    r"""A bound on $\lVert\hat F - F^*\rVert_F^2$ for $PY$ projected on the nuclear-norm ball of
    radius $R$ = `radius`. Squared.
    """

    @abc.abstractmethod
    def radius(self, problem: Problem) -> Float[Array, ""]:
        r"""The radius $R$."""

    def estimate(self, instance: Problem) -> LowRank:
        """The nearest matrix of the ball."""
        factors, _ = nuclear_norm_ball(
            instance.truth.layer_inputs,
            instance.observed.target_outputs,
            self.radius(instance),
            rank=min(instance.observed.shape),
            resolution=stored_resolution(instance.observed),
        )
        return factors


def _nuclear_norm(problem: Problem) -> Float[Array, ""]:
    values, _ = resolved_signal(problem)
    return jnp.sum(values)


def _missed(problem: Problem) -> Float[Array, ""]:
    r"""$\lVert(I-P)F^*\rVert_F^2$, which no estimator of this file finds."""
    return resolved_signal(problem)[1] ** 2


class NuclearBall(AbstractConstrained):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le \nu(R + \lVert F^*\rVert_*)$ for $R$ = `slack`
    $\cdot\,\lVert F^*\rVert_*$.
    """

    slack: float = 2.0
    kind = UPPER
    regimes = _ANY_REGIMES
    adversary = TargetAndNoise(rows=3, columns=3, rank=3, target_rank=3)
    sharp = True

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """The target is in the ball."""
        return (
            planted_hypothesis(instance),
            Hypothesis("the target is in the ball", self.slack - 1.0),
        )

    def radius(self, problem: Problem) -> Float[Array, ""]:
        r"""$R$, in proportion to $\lVert F^*\rVert_*$."""
        return self.slack * _nuclear_norm(problem)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$\nu(R + \lVert F^*\rVert_*)$."""
        width = (1 + self.slack) * _nuclear_norm(instance)
        return _operator_norm_of_noise(instance) * width + _missed(instance)


class ExactRadius(AbstractConstrained):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le 4k(1-k/d)\nu^2$ for $R = \lVert F^*\rVert_*$ and a target
    of rank $r$; $k = \min(r, d/2)$.
    """

    kind = UPPER
    regimes = _PLANTED_REGIMES
    adversary = TargetAndNoise(rows=3, columns=4, rank=1, target_rank=1)
    sharp = True

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """Planted rank."""
        return (planted_hypothesis(instance), target_rank_hypothesis(instance))

    def radius(self, problem: Problem) -> Float[Array, ""]:
        r"""$\lVert F^*\rVert_*$."""
        return _nuclear_norm(problem)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$4k(1-k/d)\nu^2$."""
        sides = largest_rank(instance)
        k = jnp.minimum(instance.rank, sides / 2)
        noise = 4 * k * (1 - safe_divide(k, sides)) * _operator_norm_of_noise(instance) ** 2
        return noise + _missed(instance)


def _norm_of(values: Float[Array, " count"], first: int, stop: Array | int) -> Float[Array, ""]:
    """The norm of the values with indices from `first` up to, not including, `stop`."""
    places = jnp.arange(values.size)
    return frobenius(jnp.where((first <= places) & (places < stop), values, 0))


class AbstractTruncated(AbstractStatement):
    r"""A bound on the error of $[PY]_r$ for any target."""

    needs = Truth
    regimes = _ANY_REGIMES
    control = NOT_TRUNCATED

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """None beyond the model."""
        return (planted_hypothesis(instance), no_bias_hypothesis(instance))

    def estimate(self, instance: Problem) -> LowRank:
        """The data-driven recovery."""
        return recover(instance.observed, instance.rank, ActivationWeighted()).factors

    def broken_estimate(self, instance: Problem) -> Array:
        """Least squares that forgets to truncate."""
        return least_squares(instance)


class Truncation(AbstractTruncated):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le \sum_{r<i\le d-r}s_i^2 + (\tau_r + 2\zeta_k)^2 +
    \zeta_r^2$, $k = \min(r, d-r)$. Squared.
    """

    kind = UPPER
    adversary = TargetAndSpectrum(rows=4, columns=5, rank=1, target_rank=4)
    sharp = True

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$\sum_{r<i\le d-r}s_i^2 + (\tau_r + 2\zeta_k)^2 + \zeta_r^2$."""
        clean, missed = resolved_signal(instance)
        noise_values, _ = attainable_noise(instance)
        r, sides = instance.rank, largest_rank(instance)
        middle = _norm_of(clean, r, sides - r)
        swapped = _norm_of(clean, r, 2 * r) + 2 * _norm_of(
            noise_values, 0, jnp.minimum(r, sides - r)
        )
        kept = swapped**2 + _norm_of(noise_values, 0, r) ** 2
        return middle**2 + kept + missed**2

    def loss(self, instance: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\hat F - F^*\rVert_F^2$."""
        return output_error(estimate, instance.truth) ** 2

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        """Of the square of outputs formed from factors, in their precision."""
        return squared_error_magnitude(instance)


class GoldenRatio(AbstractTruncated):
    r"""$\lVert\hat F - F^*\rVert_F \le T_r + \varphi(T_{r,2r} + \zeta_{2r})$. Not squared."""

    kind = UPPER
    adversary = TargetAndSpectrum(rows=3, columns=3, rank=1, target_rank=1)
    sharp = True

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$T_r + \varphi(T_{r,2r} + \zeta_{2r})$."""
        clean, missed = resolved_signal(instance)
        noise_values, _ = attainable_noise(instance)
        r = instance.rank
        moved = _norm_of(clean, r, 3 * r) + _norm_of(noise_values, 0, 2 * r)
        return jnp.hypot(_norm_of(clean, r, clean.size) + GOLDEN_RATIO * moved, missed)

    def loss(self, instance: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\hat F - F^*\rVert_F$."""
        return output_error(estimate, instance.truth)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        """Of outputs formed from factors, in the precision in which these are returned."""
        return error_magnitude(instance)


class ApproximateRank(AbstractTheorem):
    """Soft-thresholded outputs pay, for each singular value, the smaller of itself and twice the
    threshold; a nuclear-norm ball and truncation have sharp bounds of their own.
    """

    oracle: Oracle = Oracle()
    gaussian: Gaussian = Gaussian()
    schatten_ball: SchattenBall = SchattenBall()
    nuclear_ball: NuclearBall = NuclearBall()
    exact_radius: ExactRadius = ExactRadius()
    truncation: Truncation = Truncation()
    golden_ratio: GoldenRatio = GoldenRatio()


approximate_rank = ApproximateRank()
