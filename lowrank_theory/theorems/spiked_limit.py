r"""The error of low-rank recovery in large layers, exactly: the spiked model.

**Model.** $PY = F + \sigma G$ in orthonormal coordinates: $q\times K$, $G$ with i.i.d. standard
Gaussian entries, $F$ of fixed rank $r$. With $L = \max(q, K)\to\infty$ and $\min(q, K)/L\to\beta
\in(0, 1]$, the singular values of $F$ are $x_i\sigma\sqrt L$ with fixed $x_1 > \dots > x_r > 0$;
those of $PY$, over $\sigma\sqrt L$, are called $y_i$. (Any $\tilde X$ that does not depend on the
noise leads to this model, with $q = \operatorname{rank}\tilde X$.)

**Claims** (limits, almost sure; Benaych-Georges and Nadakuditi 2012; losses: Gavish and
Donoho 2014, 2017; Leeb 2022; derived from the first two in paper_notes/spiked_limit.md):

- `singular_values`: $y_i\to\sqrt{(x_i+1/x_i)(x_i+\beta/x_i)}$ if $x_i > \beta^{1/4}$, else
  $1+\sqrt\beta$, the edge of the noise;
- `short_alignments`, `long_alignments`: the squared cosines between singular vectors of $PY$ and
  $F$ tend to $c^2 = (x^4-\beta)/(x^4+\beta x^2)$ on the short side, to $\tilde c^2 = (x^4-\beta)/
  (x^4+x^2)$ on the long side, and, `undetected`, to zero where $x\le\beta^{1/4}$;
- `noise_scale`: the median singular value over $\sqrt{\mu_\beta L}$ tends to $\sigma$;
- `truncation`: $[PY]_r$ has squared Frobenius loss $\sigma^2L$ times the sum of
  $1+\beta+3\beta/x^2$ (detected) and $x^2+(1+\sqrt\beta)^2$ (not); `truncation_worst_case`: at
  most $\sigma^2r(q+K+3\sqrt{qK})$;
- `hard_threshold` at $\lambda_*(\beta)$: $1+\beta+3\beta/x^2$ above, $x^2$ below;
  `hard_threshold_worst_case`: at most $\tfrac12\sigma^2r(q+K+\sqrt{q^2+14qK+K^2})$;
- optimal shrinkage, with $s^2 = 1-c^2$ and $\tilde s^2 = 1-\tilde c^2$: `frobenius`
  $\sum x^2(1-c^2\tilde c^2)$, and `frobenius_worst_case` at most $\sigma^2r(q+K)$; `nuclear`
  $\sum x\sqrt{1-(c\tilde c-s\tilde s)_+^2}$; `operator` $\max x\sqrt{1-\min(c,\tilde c)^2}$ if one
  component is detected; the norms in units of $\sigma\sqrt L$. They are optimal among rules that
  put zero at the edge of the noise and below.

The regimes of equalities stay away from the threshold $\beta^{1/4}$ (1.5 times above it or more,
half of it or less; 1.3 times for `hard_threshold`, which drops such components): nearer, the limit
is approached too slowly to be seen at these sizes. The worst cases are bounds and need no distance.
"""

import abc
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import AnyArray, float64
from lowrank_theory.recovery import LowRank, shrinkage
from lowrank_theory.theorems._quantities import (
    frobenius,
    singular_values,
    squared,
)
from lowrank_theory.theorems._spiked import (
    ANY,
    CONTROL,
    DETECTED,
    EVERY_SIDE,
    HARDEST,
    MISSED,
    NEAR_THRESHOLD,
    ONE_LARGEST,
    STRONG,
    THRESHOLDED,
    WIDE_ONLY,
    WORST,
    AbstractLimit,
    SpikedMatrix,
    alignments,
    error,
    observed_strength,
    shrunk,
    squared_cosines,
    truncated,
    truncation_loss,
)
from lowrank_theory.theorems._spiked import SpikedSetting as SpikedSetting
from lowrank_theory.theorems._theorem import (
    ASYMPTOTIC_EQUALITY,
    ASYMPTOTIC_UPPER,
    AbstractTheorem,
    Refuted,
)


def asymptotic_error(
    strengths: Float[AnyArray, " rank"], q: int, outputs: int, noise_scale: float
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
    with float64():
        x = jnp.asarray(strengths, float) / (noise_scale * math.sqrt(longer))
        return noise_scale**2 * longer * jnp.sum(truncation_loss(x, beta))


def detection_threshold(q: int, outputs: int, noise_scale: float) -> float:
    r"""The singular value $\sigma\sqrt L\,\beta^{1/4} = \sigma(qK)^{1/4}$ of $\tilde XM$ below
    which it leaves no trace in the limit.
    """
    return noise_scale * (q * outputs) ** 0.25


class SingularValues(AbstractLimit):
    r"""$\sum_iy_i\to\sum_i\sqrt{(x_i+1/x_i)(x_i+\beta/x_i)}$ over detected components, and
    $1+\sqrt\beta$ for each other one.
    """

    kind = ASYMPTOTIC_EQUALITY
    regimes = ANY
    control = CONTROL

    def estimate(self, instance: SpikedMatrix) -> Array:
        """The largest singular values, as many as there are components."""
        return singular_values(jnp.asarray(instance.observed))[: instance.strengths.size]

    def broken_estimate(self, instance: SpikedMatrix) -> Array:
        """The strengths themselves, as if noise did not inflate them."""
        return instance.unit * instance.strengths

    def formula(self, instance: SpikedMatrix, estimate: Any) -> Float[Array, ""]:
        r"""$\sigma\sqrt L\sum_iy_i$."""
        return instance.unit * jnp.sum(observed_strength(instance.strengths, instance.aspect))

    def loss(self, instance: SpikedMatrix, estimate: Array) -> Float[Array, ""]:
        """The sum of these singular values."""
        return jnp.sum(estimate)

    def magnitude(self, instance: SpikedMatrix) -> Float[Array, ""]:
        r"""$\lVert PY\rVert_F$."""
        return frobenius(instance.observed)


class AbstractAlignment(AbstractLimit):
    """Squared cosines between the leading singular vectors and those of the signal."""

    kind = ASYMPTOTIC_EQUALITY

    def estimate(self, instance: SpikedMatrix) -> tuple[Array, Array]:
        """The squared cosines of each component, on the short and on the long side."""
        return squared_cosines(instance)

    def broken_estimate(self, instance: SpikedMatrix) -> tuple[Array, Array]:
        """The vectors of the signal itself."""
        ones = jnp.ones(instance.strengths.size)
        return ones, ones

    def magnitude(self, instance: SpikedMatrix) -> Float[Array, ""]:
        """The number of components."""
        return jnp.asarray(float(instance.strengths.size))


class ShortAlignments(AbstractAlignment):
    r"""$\sum_i\cos^2\to\sum_ic_i^2$, $c^2 = (x^4-\beta)/(x^4+\beta x^2)$, on the short side."""

    regimes = EVERY_SIDE
    control = CONTROL

    def formula(self, instance: SpikedMatrix, estimate: Any) -> Float[Array, ""]:
        r"""$\sum_ic_i^2$."""
        return jnp.sum(alignments(instance.strengths, instance.aspect)[0])

    def loss(self, instance: SpikedMatrix, estimate: tuple[Array, Array]) -> Float[Array, ""]:
        r"""$\sum_i\cos^2$."""
        return jnp.sum(estimate[0])


class LongAlignments(AbstractAlignment):
    r"""$\sum_i\cos^2\to\sum_i\tilde c_i^2$, $\tilde c^2 = (x^4-\beta)/(x^4+x^2)$, on the long
    side.
    """

    regimes = EVERY_SIDE
    control = CONTROL

    def formula(self, instance: SpikedMatrix, estimate: Any) -> Float[Array, ""]:
        r"""$\sum_i\tilde c_i^2$."""
        return jnp.sum(alignments(instance.strengths, instance.aspect)[1])

    def loss(self, instance: SpikedMatrix, estimate: tuple[Array, Array]) -> Float[Array, ""]:
        r"""$\sum_i\cos^2$."""
        return jnp.sum(estimate[1])


class Undetected(AbstractAlignment):
    r"""$\sum_i(\sin^2 + \widetilde{\sin}^2)\to\sum_i(2-c_i^2-\tilde c_i^2)$ over both sides, which
    is 2 for each $x_i\le\beta^{1/4}$: the singular vectors tell nothing of it.
    """

    regimes = MISSED
    control = CONTROL

    def formula(self, instance: SpikedMatrix, estimate: Any) -> Float[Array, ""]:
        r"""$\sum_i(2-c_i^2-\tilde c_i^2)$."""
        short, long = alignments(instance.strengths, instance.aspect)
        return jnp.sum(2 - short - long)

    def loss(self, instance: SpikedMatrix, estimate: tuple[Array, Array]) -> Float[Array, ""]:
        r"""$\sum_i(\sin^2 + \widetilde{\sin}^2)$."""
        return jnp.sum(2 - estimate[0] - estimate[1])


class NoiseScale(AbstractLimit):
    r"""$\operatorname{med}(y)/\sqrt{\mu_\beta L}\to\sigma$, with $\mu_\beta$ the median of the law
    of Marchenko and Pastur.
    """

    kind = ASYMPTOTIC_EQUALITY
    regimes = ANY
    control = CONTROL

    def estimate(self, instance: SpikedMatrix) -> Array:
        """The median singular value over that of noise of variance one."""
        median = self.broken_estimate(instance)
        return median / jnp.sqrt(shrinkage.marchenko_pastur_median(instance.aspect))

    def broken_estimate(self, instance: SpikedMatrix) -> Array:
        r"""The median over $\sqrt L$, without $\mu_\beta$."""
        values = singular_values(jnp.asarray(instance.observed))
        return jnp.median(values) / math.sqrt(max(instance.sizes))

    def formula(self, instance: SpikedMatrix, estimate: Any) -> Float[Array, ""]:
        r"""$\sigma$."""
        return jnp.asarray(instance.noise_scale)

    def loss(self, instance: SpikedMatrix, estimate: Array) -> Float[Array, ""]:
        """The estimate."""
        return estimate

    def magnitude(self, instance: SpikedMatrix) -> Float[Array, ""]:
        r"""$\lVert PY\rVert_F$."""
        return frobenius(instance.observed)


# --- what an estimator loses ---------------------------------------------------------------------


class AbstractSquaredLoss(AbstractLimit):
    r"""$\lVert\hat F-F\rVert_F^2$ of an estimator, and its limit $\sigma^2L\sum_i\ell(x_i)$."""

    @abc.abstractmethod
    def loss_of_component(self, strengths: Array, aspect: float) -> Array:
        r"""$\ell(x)$ for each of the strengths."""

    def broken_estimate(self, instance: SpikedMatrix) -> LowRank:
        """Truncation at twice the rank of the signal."""
        return truncated(instance, 2 * instance.strengths.size)

    def formula(self, instance: SpikedMatrix, estimate: Any) -> Float[Array, ""]:
        r"""$\sigma^2L\sum_i\ell(x_i)$."""
        losses = self.loss_of_component(jnp.asarray(instance.strengths), instance.aspect)
        return instance.unit**2 * jnp.sum(losses)

    def loss(self, instance: SpikedMatrix, estimate: LowRank) -> Float[Array, ""]:
        r"""$\lVert\hat F-F\rVert_F^2$."""
        return jnp.sum(error(instance, estimate) ** 2)

    def magnitude(self, instance: SpikedMatrix) -> Float[Array, ""]:
        r"""$\lVert PY\rVert_F^2$."""
        return squared(frobenius(instance.observed))


class Truncation(AbstractSquaredLoss):
    r"""$\lVert[PY]_r-F\rVert_F^2/\sigma^2L\to\sum(1+\beta+3\beta/x^2)$ over detected components,
    plus $\sum(x^2+(1+\sqrt\beta)^2)$ over the others.
    """

    kind = ASYMPTOTIC_EQUALITY
    regimes = WIDE_ONLY
    control = CONTROL
    growth = (1, 2, 8)  # the slowest of these limits
    trials_per_mean = 0.08

    def estimate(self, instance: SpikedMatrix) -> LowRank:
        """Truncation at the rank of the signal."""
        return truncated(instance, instance.strengths.size)

    def loss_of_component(self, strengths: Array, aspect: float) -> Array:
        r"""$1+\beta+3\beta/x^2$, or $x^2+(1+\sqrt\beta)^2$."""
        return truncation_loss(strengths, aspect)


class TruncationWorstCase(AbstractSquaredLoss):
    r"""$\lVert[PY]_r-F\rVert_F^2 \le \sigma^2r(q+K+3\sqrt{qK})$ in the limit, for all strengths;
    attained at $x = \beta^{1/4}$.
    """

    kind = ASYMPTOTIC_UPPER
    regimes = WORST
    control = STRONG
    refuted_below = Refuted(1.0, "signals at the detection threshold")

    def estimate(self, instance: SpikedMatrix) -> LowRank:
        """Truncation at the rank of the signal."""
        return truncated(instance, instance.strengths.size)

    def loss_of_component(self, strengths: Array, aspect: float) -> Array:
        r"""$1+\beta+3\sqrt\beta$."""
        return jnp.full_like(strengths, 1 + aspect + 3 * math.sqrt(aspect))


class HardThreshold(AbstractSquaredLoss):
    r"""$\lVert\hat F-F\rVert_F^2/\sigma^2L\to\sum(1+\beta+3\beta/x^2)$ over components with $y(x) >
    \lambda_*(\beta)$, plus $\sum x^2$ over the others, for unknown $\sigma$.
    """

    kind = ASYMPTOTIC_EQUALITY
    regimes = THRESHOLDED
    control = CONTROL

    def estimate(self, instance: SpikedMatrix) -> LowRank:
        r"""Singular values kept above $\lambda_*(\beta)$, in units of their median noise."""
        return shrunk(instance, shrinkage.HardThreshold(), known=False)

    def loss_of_component(self, strengths: Array, aspect: float) -> Array:
        r"""$1+\beta+3\beta/x^2$, or $x^2$."""
        kept = observed_strength(strengths, aspect) > shrinkage.hard_threshold_constant(aspect)
        return jnp.where(kept, truncation_loss(strengths, aspect), strengths**2)


class HardThresholdWorstCase(AbstractSquaredLoss):
    r"""$\lVert\hat F-F\rVert_F^2 \le \tfrac12\sigma^2r(q+K+\sqrt{q^2+14qK+K^2})$ in the limit for
    all strengths, by the hard threshold $\lambda_*(\beta)$; attained where $y(x) = \lambda_*$.
    """

    kind = ASYMPTOTIC_UPPER
    regimes = HARDEST
    control = CONTROL
    refuted_below = Refuted(1.0, "signals that are seen at the threshold")

    def estimate(self, instance: SpikedMatrix) -> LowRank:
        r"""Singular values kept above $\lambda_*(\beta)\sigma\sqrt L$."""
        return shrunk(instance, shrinkage.HardThreshold())

    def loss_of_component(self, strengths: Array, aspect: float) -> Array:
        r"""$\tfrac12(1+\beta+\sqrt{1+14\beta+\beta^2})$."""
        root = math.sqrt(1 + 14 * aspect + aspect**2)
        return jnp.full_like(strengths, (1 + aspect + root) / 2)


class Frobenius(AbstractSquaredLoss):
    r"""$\lVert\hat F-F\rVert_F^2/\sigma^2L\to\sum x^2(1-c^2\tilde c^2)$ for the shrinkage that is
    optimal in Frobenius norm.
    """

    kind = ASYMPTOTIC_EQUALITY
    regimes = DETECTED
    control = CONTROL

    def estimate(self, instance: SpikedMatrix) -> LowRank:
        """The optimal shrinkage."""
        return shrunk(instance, shrinkage.Frobenius())

    def loss_of_component(self, strengths: Array, aspect: float) -> Array:
        r"""$x^2(1-c^2\tilde c^2)$."""
        short, long = alignments(strengths, aspect)
        return strengths**2 * (1 - short * long)


class FrobeniusWorstCase(AbstractSquaredLoss):
    r"""$\lVert\hat F-F\rVert_F^2 \le \sigma^2r(q+K)$ in the limit for all strengths, by the same
    shrinkage; approached by strong signals.
    """

    kind = ASYMPTOTIC_UPPER
    regimes = WORST
    control = CONTROL
    refuted_below = Refuted(1.0, "strong signals")

    def estimate(self, instance: SpikedMatrix) -> LowRank:
        """The optimal shrinkage."""
        return shrunk(instance, shrinkage.Frobenius())

    def loss_of_component(self, strengths: Array, aspect: float) -> Array:
        r"""$1+\beta$."""
        return jnp.full_like(strengths, 1 + aspect)


class AbstractNormLoss(AbstractLimit):
    """Another norm of the error, not squared."""

    kind = ASYMPTOTIC_EQUALITY

    def magnitude(self, instance: SpikedMatrix) -> Float[Array, ""]:
        r"""$\lVert PY\rVert_F$."""
        return frobenius(instance.observed)


class Nuclear(AbstractNormLoss):
    r"""$\lVert\hat F-F\rVert_*/\sigma\sqrt L\to\sum x\sqrt{1-(c\tilde c-s\tilde s)_+^2}$ for the
    shrinkage that is optimal in nuclear norm.
    """

    regimes = DETECTED
    control = CONTROL

    def estimate(self, instance: SpikedMatrix) -> LowRank:
        """The optimal shrinkage."""
        return shrunk(instance, shrinkage.Nuclear())

    def broken_estimate(self, instance: SpikedMatrix) -> LowRank:
        """Truncation, which shrinks nothing."""
        return truncated(instance, instance.strengths.size)

    def formula(self, instance: SpikedMatrix, estimate: Any) -> Float[Array, ""]:
        r"""$\sigma\sqrt L\sum x\sqrt{1-(c\tilde c-s\tilde s)_+^2}$."""
        short, long = alignments(instance.strengths, instance.aspect)
        cosine = jnp.sqrt(short * long) - jnp.sqrt((1 - short) * (1 - long))
        lost = instance.strengths * jnp.sqrt(1 - jnp.maximum(cosine, 0) ** 2)
        return instance.unit * jnp.sum(lost)

    def loss(self, instance: SpikedMatrix, estimate: LowRank) -> Float[Array, ""]:
        r"""$\lVert\hat F-F\rVert_*$."""
        return jnp.sum(singular_values(error(instance, estimate)))


class Operator(AbstractNormLoss):
    r"""$\lVert\hat F-F\rVert/\sigma\sqrt L\to\max x\sqrt{1-\min(c,\tilde c)^2}$ for the shrinkage
    that is optimal in operator norm (Leeb 2022), if one component is detected.
    """

    regimes = ONE_LARGEST
    control = NEAR_THRESHOLD
    asks_detection = True  # else the rule, which jumps there, keeps noise at the edge now and then

    def estimate(self, instance: SpikedMatrix) -> LowRank:
        """The optimal shrinkage."""
        return shrunk(instance, shrinkage.Operator())

    def broken_estimate(self, instance: SpikedMatrix) -> LowRank:
        r"""$\eta = x$, as published in 2017: optimal for square matrices only."""
        return shrunk(instance, _Strength())

    def formula(self, instance: SpikedMatrix, estimate: Any) -> Float[Array, ""]:
        r"""$\sigma\sqrt L\max x\sqrt{1-\min(c,\tilde c)^2}$."""
        smaller = jnp.minimum(*alignments(instance.strengths, instance.aspect))
        return instance.unit * jnp.max(instance.strengths * jnp.sqrt(1 - smaller))

    def loss(self, instance: SpikedMatrix, estimate: LowRank) -> Float[Array, ""]:
        r"""$\lVert\hat F-F\rVert$."""
        return singular_values(error(instance, estimate))[0]


class _Strength(shrinkage.AbstractShrinker):
    """The strength that is seen as y."""

    def shrink(
        self, values: Float[Array, "*count"], aspect: Float[Array, ""]
    ) -> Float[Array, "*count"]:
        return shrinkage.signal_strength(values, aspect)


class SpikedLimit(AbstractTheorem):
    """For iid noise and large layers the loss of truncation, of hard thresholds and of the best
    shrinkage is known exactly, component by component, with a threshold below which nothing is
    seen.
    """

    singular_values: SingularValues = SingularValues()
    short_alignments: ShortAlignments = ShortAlignments()
    long_alignments: LongAlignments = LongAlignments()
    undetected: Undetected = Undetected()
    noise_scale: NoiseScale = NoiseScale()
    truncation: Truncation = Truncation()
    truncation_worst_case: TruncationWorstCase = TruncationWorstCase()
    hard_threshold: HardThreshold = HardThreshold()
    hard_threshold_worst_case: HardThresholdWorstCase = HardThresholdWorstCase()
    frobenius: Frobenius = Frobenius()
    frobenius_worst_case: FrobeniusWorstCase = FrobeniusWorstCase()
    nuclear: Nuclear = Nuclear()
    operator: Operator = Operator()


spiked_limit = SpikedLimit()
