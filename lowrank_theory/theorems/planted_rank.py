r"""Recovery of a planted low-rank layer from noisy outputs.

**Model.** $Y = \tilde XM + E$ with $\operatorname{rank}(\tilde XM) \le r$; $P$ projects on the
columns of $\tilde X$ (m x N), $q = \operatorname{rank}\tilde X$, and there are $K$ outputs. The
estimator is the data-driven one, $\hat M = \tilde X^+[PY]_r$. Such a planted model of a trained
layer, in three tiers of weakening assumptions, is due to Zhang and Saab (arXiv 2502.02766); the
statements below are this project's own, proved in paper_notes/planted_rank.md.

**Claims.** With $\zeta_j$ the root sum of squares of the $j$ largest singular values of $PE$, $d =
\min(q, K)$, $k = \min(r, d-r)$ and $t = \sqrt{2\ln(1/\delta)}$:

- `any_noise` (sure): $\lVert\tilde X(\hat M - M)\rVert_F \le \sqrt{4\zeta_k^2 + \zeta_r^2} \le
  \sqrt5\,\zeta_r$, for every $E$. Attained for every $r$, as $F = \operatorname{diag}(2, 0)$, $E =
  \operatorname{diag}(-1, 1)$ (`truncation_stability`).
- `gaussian` (probability $1-\delta$), $E_{ij}$ i.i.d. $N(0, \sigma^2)$: $\lVert\tilde X(\hat M -
  M)\rVert_F$ is at most $\sigma\sqrt{4k+r}\,e$ and $\sigma(\sqrt{4\ell_k + \min(\ell_r, qK)} +
  ct)$, with $e$ the edge of `gaussian_noise.largest`, $\ell_j$ the sum of `gaussian_noise.leading`
  and $c = \sqrt5$, or 1 where $k = 0$. Never above $\sigma\sqrt{5r}(\sqrt q + \sqrt K + t)$.
- `expectation`, the same noise: $\mathbb E\lVert\tilde X(\hat M - M)\rVert_F^2 \le
  \sigma^2(4\ell_k + \min(\ell_r, qK)) \le 5r\sigma^2((\sqrt q + \sqrt K)^2 + 1)$.
- `sub_gaussian` (probability $1-\delta$), independent entries with $\mathbb Ee^{\lambda E_{ij}} \le
  e^{\lambda^2\sigma^2/2}$: $\lVert\tilde X(\hat M - M)\rVert_F^2 \le
  (4k+r)\sigma^2\min_{0<a,b<1}(ab)^{-2}\bigl(q\ln\tfrac1{1-a^2} + K\ln\tfrac1{1-b^2} + t^2\bigr)$
  (`subgaussian_noise.pac_bayes`); at $a^2 = b^2 = 0.9$ this is at most
  $(4k+r)\sigma^2(1.687\sqrt{q+K} + 1.112\,t)^2$.
- `unknown_scale` (probability $1-\delta$), Gaussian noise of unknown $\sigma$, $m > q$:
  `gaussian` at $\delta/2$ with $s^2/(1 - t\sqrt{2/n})$ in the place of $\sigma^2$, where $s^2 =
  \lVert(I-P)Y\rVert_F^2/n$, $n = (m-q)K > 2t^2$ and $t = \sqrt{2\ln(2/\delta)}$.
- `weights` (sure), $\tilde X$ of full column rank: $\lVert\hat M - M\rVert_F \le \sqrt{4\zeta_k^2 +
  \zeta_r^2}/s_N(\tilde X)$. Likewise for the others. Attained.

Only $q$, not the number of samples, enters. No estimator has worst-case risk below $r\sigma^2(q + K
- r)$ (`minimax_floor`), and for Gaussian noise in high dimensions the error of this one is known
exactly (`spiked_limit`): for small $r$ the bounds are at most four to five times too large.
"""

import abc
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lowrank_theory._numerics import AnyArray, Number, matmul, relative_rank_cutoff, safe_divide
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.problems import Problem, Setting, Truth
from lowrank_theory.recovery import ActivationWeighted, LowRank, recover
from lowrank_theory.theorems._adversaries import TargetAndSpectrum
from lowrank_theory.theorems._quantities import (
    EPS,
    attainable_noise,
    coarseness,
    column_space,
    deviation,
    error_magnitude,
    frobenius,
    full_column_rank_hypothesis,
    gaussian_noise_hypotheses,
    least_squares,
    no_bias_hypothesis,
    output_error,
    planted_hypothesis,
    resolved_rank,
    resolved_signal,
    rounded_outputs,
    singular_values,
    squared_error_magnitude,
    stored_resolution,
    sub_gaussian_noise_hypotheses,
    target_rank_hypothesis,
    weight_error,
)
from lowrank_theory.theorems._quantities import INDEPENDENT_NOISE as INDEPENDENT_NOISE
from lowrank_theory.theorems._regimes import (
    BASE,
    FULL_RANK,
    MISMATCHED,
    NOT_TRUNCATED,
    QUANTISED,
    SINGULAR,
    SUB_GAUSSIAN,
    UNUSUAL_ACTIVATIONS,
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
    Rate,
    Refuted,
)
from lowrank_theory.theorems.gaussian_noise import leading_squares, upper_edge
from lowrank_theory.theorems.subgaussian_noise import squared_cloud_bound
from lowrank_theory.theorems.truncation_stability import hidden_rank


def _planted(problem: Problem) -> tuple[Hypothesis, ...]:
    return (
        planted_hypothesis(problem),
        target_rank_hypothesis(problem),
        no_bias_hypothesis(problem),
    )


_GAUSSIAN = {
    "wide": WELL_POSED["wide"],
    "rank one": WELL_POSED["rank one"],
    "ill-conditioned activations": WELL_POSED["ill-conditioned activations"],
    "fewer samples than inputs": SINGULAR["fewer samples than inputs"],
    **MISMATCHED,
    **FULL_RANK,
    "near the detection threshold": Setting(
        **BASE,
        noise=noise.Gaussian(1.0),
        target=targets.ExactOutputRank(
            spectra.Given((1.3, 1.1, 0.9)), scale=1.2 * (24 * 20) ** 0.25
        ),
    ),
    "pure noise": Setting(**BASE, target=targets.ExactRank(scale=1e-6)),
}
_SUB_GAUSSIAN = {**SUB_GAUSSIAN, "wide": WELL_POSED["wide"], **MISMATCHED}
_ANY = {
    name: _GAUSSIAN[name]
    for name in ("wide", "fewer samples than inputs", "full rank", "near the detection threshold")
} | {
    "sparse outliers": Setting(**BASE, noise=noise.SparseOutliers(0.1)),
    "Laplace noise": Setting(**BASE, noise=noise.Laplace(0.5)),
    "correlated noise": Setting(**BASE, noise=noise.Correlated(0.5)),
    **QUANTISED,
    **WORST_NOISE,
}


def _strong(samples: int, side: int, rank: int, strength: float, noise_scale: float) -> Setting:
    """A layer far above the noise, with `side` inputs and outputs."""
    target = targets.ExactOutputRank(scale=strength)
    return Setting(samples, side, side, rank, target=target, noise=noise.Gaussian(noise_scale))


_RATES = (
    Rate("samples", {m: _strong(m, 24, 2, 1e4, 1.0) for m in (24, 48, 96, 192)}, 0.0, 0.0),
    Rate("q + K", {2 * n: _strong(n, n, 1, 1e4, 1.0) for n in (16, 32, 64, 128)}, 1.0, 1.0),
    Rate("rank", {r: _strong(64, 64, r, 1e4, 1.0) for r in (1, 2, 3, 4)}, 1.0, 1.0),
    Rate("noise scale", {s: _strong(48, 24, 2, 1e4, s) for s in (0.1, 0.3, 1.0, 3.0)}, 2.0, 2.0),
    Rate("signal strength", {s: _strong(48, 24, 2, s, 1.0) for s in (1e3, 1e4, 1e5)}, 0.0, 0.0),
)


_SPARE_ROWS = {
    "planted rank": Setting(**BASE),
    "rank one": WELL_POSED["rank one"],
    "tall": WELL_POSED["tall"],
    "near the detection threshold": _GAUSSIAN["near the detection threshold"],
    "pure noise": _GAUSSIAN["pure noise"],
    "rank-deficient activations": SINGULAR["rank-deficient activations"],
    "one row to spare": Setting(samples=25, inputs=24, outputs=20, rank=3),
    **MISMATCHED,
}
_FULL_COLUMN_RANK = {
    "planted rank": Setting(**BASE),
    "rank one": WELL_POSED["rank one"],
    "ill-conditioned activations": WELL_POSED["ill-conditioned activations"],
    "outputs of a ReLU layer": UNUSUAL_ACTIVATIONS["outputs of a ReLU layer"],
    "pure noise": _GAUSSIAN["pure noise"],
    "correlated noise": _ANY["correlated noise"],
    **FULL_RANK,
    **WORST_NOISE,
}


class AbstractDataDriven(AbstractStatement):
    r"""A bound on the error of $\hat M = \tilde X^+[PY]_r$."""

    needs = Truth

    def estimate(self, instance: Problem) -> LowRank:
        """The data-driven recovery."""
        return recover(instance.observed, instance.rank, ActivationWeighted()).factors

    def broken_estimate(self, instance: Problem) -> Array:
        """Least squares that forgets to truncate."""
        return least_squares(instance)


def worst_error(
    noise_values: Float[AnyArray, " count"], rank: Int[AnyArray, ""] | int, shorter: Number
) -> Float[Array, ""]:
    r"""$\sqrt{4\zeta_k^2 + \zeta_r^2}$, from the decreasing singular values of $PE$ and $d$, the
    `shorter` side; call it inside `float64`.
    """
    values = jnp.asarray(noise_values)
    place = jnp.arange(values.size)
    hidden = jnp.where(place < jnp.minimum(rank, shorter - rank), math.sqrt(5), 1.0)
    return frobenius(jnp.where(place < rank, hidden * values, 0.0))


def _worst_error(problem: Problem) -> Float[Array, ""]:
    values, q = attainable_noise(problem)
    return worst_error(values, problem.rank, jnp.minimum(q, problem.observed.shape[1]))


class AnyNoise(AbstractDataDriven):
    r"""$\lVert\tilde X(\hat M - M)\rVert_F \le \sqrt{4\zeta_k^2 + \zeta_r^2}$, whatever the noise.
    Not squared; in the units of the outputs.
    """

    kind = UPPER
    regimes = _ANY
    control = NOT_TRUNCATED
    adversary = TargetAndSpectrum(rows=3, columns=4, rank=1, target_rank=1)
    sharp = True

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """Planted rank only."""
        return _planted(instance)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$\sqrt{4\zeta_k^2 + \zeta_r^2}$, and what is not resolved."""
        _, missed = resolved_signal(instance)
        return jnp.hypot(_worst_error(instance), missed)

    def loss(self, instance: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\tilde X(\hat M - M)\rVert_F$."""
        return output_error(estimate, instance.truth)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        """Of outputs formed from factors, in the precision in which these are returned."""
        return error_magnitude(instance)


class AbstractSquaredLoss(AbstractDataDriven):
    r"""A bound on $\lVert\tilde X(\hat M - M)\rVert_F^2$, in the squared units of the outputs."""

    def loss(self, instance: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\tilde X(\hat M - M)\rVert_F^2$."""
        return output_error(estimate, instance.truth) ** 2

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        """Of the square of outputs formed from factors, in their precision."""
        return squared_error_magnitude(instance)


class AbstractKnownScale(AbstractSquaredLoss):
    r"""$\lVert\tilde X(\hat M - M)\rVert_F^2 \le \sigma^2b$, with $b$ a bound on $(4\zeta_k^2 +
    \zeta_r^2)/\sigma^2$ for a law of the noise.
    """

    @abc.abstractmethod
    def law(self, truth: Truth) -> tuple[Hypothesis, ...]:
        """The law of the noise, and that it knows nothing of the layer."""

    @abc.abstractmethod
    def worst_square(self, q: Array, outputs: int, rank: int) -> Array:
        r"""The bound $b$ on $(4\zeta_k^2 + \zeta_r^2)/\sigma^2$."""

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """Planted rank and the law of the noise."""
        return (*_planted(instance), *self.law(instance.truth))

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$\sigma^2b(q, K, r, \delta)$, and what is not resolved."""
        _, missed = resolved_signal(instance)
        variance = jnp.asarray(instance.truth.noise_scale) ** 2
        q, outputs = resolved_rank(instance), instance.observed.shape[1]
        return variance * self.worst_square(q, outputs, instance.rank) + missed**2


def squared_count(q: Number, outputs: Number, rank: int) -> Float[Array, ""]:
    r"""$4k + \min(r, d)$, $d = \min(q, K)$ and $k = \min(r, d-r)$: the largest $\lVert[A+Z]_r -
    A\rVert_F^2$ for $\lVert Z\rVert \le 1$ and $A$ of rank $r$, $q\times K$ both; call it inside
    `float64`.
    """
    shorter = jnp.minimum(q, outputs)
    return 4 * hidden_rank(rank, shorter) + jnp.minimum(rank, shorter)


def mean_worst_square(q: Number, outputs: Number, rank: int) -> Float[Array, ""]:
    r"""$4\ell_k + \min(\ell_r, qK)$, above $\mathbb E(4\zeta_k^2 + \zeta_r^2)$ for $\sigma = 1$;
    call it inside `float64`.
    """
    longer, shorter = jnp.maximum(q, outputs), jnp.minimum(q, outputs)
    squares = leading_squares(longer, shorter, rank)
    hiding = jnp.arange(rank) < shorter - rank
    return 4 * jnp.sum(jnp.where(hiding, squares, 0)) + jnp.minimum(jnp.sum(squares), q * outputs)


def gaussian_worst_square(
    q: Number, outputs: Number, rank: int, failure_probability: Number
) -> Float[Array, ""]:
    r"""The smaller of $(4k+r)e^2$ and $(\sqrt{4\ell_k + \min(\ell_r, qK)} + ct)^2$, above
    $4\zeta_k^2 + \zeta_r^2$ with probability $1-\delta$ for $\sigma = 1$; call it inside `float64`.
    """
    flat = squared_count(q, outputs, rank) * upper_edge(q, outputs, failure_probability) ** 2
    lipschitz = jnp.where(jnp.minimum(q, outputs) > rank, math.sqrt(5), 1.0)
    mean = jnp.sqrt(mean_worst_square(q, outputs, rank))
    return jnp.minimum(flat, (mean + lipschitz * deviation(failure_probability)) ** 2)


_FULL_RANK = Refuted(
    1.0,
    "full rank: nothing is cut and the noise is the error; a quarter at r ≤ d/2, by "
    "`spiked_limit.truncation_worst_case` at q = K",
)


class Gaussian(AbstractKnownScale):
    r"""$\lVert\tilde X(\hat M - M)\rVert_F^2 \le \sigma^2\min\bigl((4k+r)e^2, (\sqrt{4\ell_k +
    \min(\ell_r, qK)} + ct)^2\bigr)$ with probability $1-\delta$ for i.i.d. Gaussian noise.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _GAUSSIAN
    control = NOT_TRUNCATED
    refuted_below = _FULL_RANK

    def law(self, truth: Truth) -> tuple[Hypothesis, ...]:
        """i.i.d. Gaussian."""
        return gaussian_noise_hypotheses(truth)

    def worst_square(self, q: Array, outputs: int, rank: int) -> Array:
        """`gaussian_worst_square`."""
        return gaussian_worst_square(q, outputs, rank, self.failure_probability)


class Expectation(AbstractKnownScale):
    r"""$\mathbb E\lVert\tilde X(\hat M - M)\rVert_F^2 \le \sigma^2(4\ell_k + \min(\ell_r, qK))$ for
    i.i.d. Gaussian noise.
    """

    kind = UPPER_IN_EXPECTATION
    regimes = _GAUSSIAN
    control = NOT_TRUNCATED
    rates = _RATES
    refuted_below = _FULL_RANK

    def law(self, truth: Truth) -> tuple[Hypothesis, ...]:
        """i.i.d. Gaussian."""
        return gaussian_noise_hypotheses(truth)

    def worst_square(self, q: Array, outputs: int, rank: int) -> Array:
        """`mean_worst_square`."""
        return mean_worst_square(q, outputs, rank)


class SubGaussian(AbstractKnownScale):
    r"""$\lVert\tilde X(\hat M - M)\rVert_F^2 \le (4k+r)\,\beta^2$ with probability $1-\delta$ for
    independent sub-Gaussian entries, of whose $\lVert PE\rVert$ `subgaussian_noise.pac_bayes` is
    the bound $\beta$.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _SUB_GAUSSIAN
    control = Setting(samples=64, inputs=64, outputs=64, rank=1, noise=noise.Rademacher(1.0))
    refuted_below = Refuted(
        0.995,
        "one output and many rows of signs: nothing is cut, and the noise is the error",
    )

    def law(self, truth: Truth) -> tuple[Hypothesis, ...]:
        """Independent entries with a finite sub-Gaussian constant."""
        return sub_gaussian_noise_hypotheses(truth)

    def worst_square(self, q: Array, outputs: int, rank: int) -> Array:
        r"""$(4k+r)\min_{a,b}(ab)^{-2}\bigl(q\ln\frac1{1-a^2} + K\ln\frac1{1-b^2} + t^2\bigr)$."""
        cloud = squared_cloud_bound(q, outputs, self.failure_probability)
        return squared_count(q, outputs, rank) * cloud


def residual_variance(
    layer_inputs: Float[AnyArray, "samples inputs"],
    outputs: Float[AnyArray, "samples outputs"],
    resolution: float = EPS,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""$s^2 = \lVert(I-P)Y\rVert_F^2/n$ and its degrees of freedom $n = (m-q)K$; call it inside
    `float64`.

    What the layer cannot express is noise alone: $\mathbb Es^2 = \sigma^2$ for uncorrelated entries
    of variance $\sigma^2$. Zero where $m = q$.
    """
    space = column_space(layer_inputs, resolution)
    left_over = jnp.asarray(outputs) - matmul(space.basis, space.coordinates(outputs))
    freedom = (outputs.shape[0] - space.dimension) * outputs.shape[1]
    return safe_divide(jnp.sum(left_over**2), freedom), freedom


class UnknownScale(AbstractSquaredLoss):
    r"""$\lVert\tilde X(\hat M - M)\rVert_F^2 \le s^2b/(1 - t\sqrt{2/n})$ with probability
    $1-\delta$ for i.i.d. Gaussian noise; $s^2$ is `residual_variance`, $b$ is
    `gaussian_worst_square` at $\delta/2$, $t = \sqrt{2\ln(2/\delta)}$.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _SPARE_ROWS
    control = Setting(samples=96, inputs=48, outputs=48, rank=1, noise=noise.Gaussian(1.0))
    refuted_below = _FULL_RANK

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """Planted rank, Gaussian noise, and enough rows to tell how strong it is."""
        _, freedom = _residual_variance(instance)
        spare = freedom / (2 * deviation(self.failure_probability, sides=2) ** 2) - 1
        return (
            *_planted(instance),
            *gaussian_noise_hypotheses(instance.truth),
            Hypothesis("there are enough rows beyond the rank of the activations", spare),
        )

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$s^2b/(1 - t\sqrt{2/n})$, and what is not resolved."""
        _, missed = resolved_signal(instance)
        q, outputs = resolved_rank(instance), instance.observed.shape[1]
        half = self.failure_probability / 2
        variance, freedom = _residual_variance(instance)
        most = variance / (1 - deviation(half) * jnp.sqrt(2 / freedom))
        return most * gaussian_worst_square(q, outputs, instance.rank, half) + missed**2


def _residual_variance(problem: Problem) -> tuple[Float[Array, ""], Float[Array, ""]]:
    outputs = jnp.asarray(problem.observed.target_outputs, float)
    resolution = stored_resolution(problem.observed)
    return residual_variance(problem.truth.layer_inputs, outputs, resolution)


class Weights(AbstractDataDriven):
    r"""$\lVert\hat M - M\rVert_F \le \sqrt{4\zeta_k^2 + \zeta_r^2}/s_N(\tilde X)$, whatever the
    noise, for activations of full column rank. Not squared; in the units of the weights.
    """

    kind = UPPER
    regimes = _FULL_COLUMN_RANK
    control = Setting(
        samples=64,
        inputs=64,
        outputs=64,
        rank=1,
        activations=activations.FixedSpectrum(),
        noise=noise.Gaussian(1.0),
    )
    adversary = TargetAndSpectrum(rows=3, columns=4, rank=1, target_rank=1)
    sharp = True

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """Planted rank, and full column rank."""
        layer_inputs = instance.truth.layer_inputs
        least, largest = _extreme_values(layer_inputs)
        cutoff = relative_rank_cutoff(layer_inputs.shape, stored_resolution(instance.observed))
        ratio = safe_divide(least, largest)
        full = full_column_rank_hypothesis("the activations have", ratio, cutoff)
        return (*_planted(instance), full)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$\sqrt{4\zeta_k^2 + \zeta_r^2}/s_N(\tilde X)$."""
        least, _ = _extreme_values(instance.truth.layer_inputs)
        return _worst_error(instance) / least

    def loss(self, instance: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\hat M - M\rVert_F$."""
        return weight_error(estimate, instance.truth)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\kappa(\tilde X)/s_N(\tilde X)$ times that of the outputs: rounding in the inverse."""
        least, largest = _extreme_values(instance.truth.layer_inputs)
        worse = safe_divide(largest, least) / jnp.where(least > 0, least, 1)
        return coarseness(instance.observed) * rounded_outputs(instance) * worse


def _extreme_values(
    layer_inputs: Float[AnyArray, "samples inputs"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """$s_N$, zero where there are fewer rows than columns, and $s_1$."""
    values = singular_values(jnp.asarray(layer_inputs))
    samples, inputs = layer_inputs.shape
    return values[-1] if samples >= inputs else jnp.zeros(()), values[0]


class PlantedRank(AbstractTheorem):
    r"""If the outputs come from a layer of rank $r$ plus noise, the fit finds that layer up to
    $\sqrt{5r}$ times the size of the noise, known or not.
    """

    gaussian: Gaussian = Gaussian()
    expectation: Expectation = Expectation()
    sub_gaussian: SubGaussian = SubGaussian()
    any_noise: AnyNoise = AnyNoise()
    unknown_scale: UnknownScale = UnknownScale()
    weights: Weights = Weights()


planted_rank = PlantedRank()
