r"""What losses on held-out units certify about their mean.

**Model.** $Z_1, \dots, Z_n \ge 0$ are the losses of n independent units (rows, sequences, images:
whatever is drawn independently) that took no part in the compression, each with mean $\mu$; a loss
is, for instance, the squared output error of a unit. The certificate is computed from them and is
above $\mu$ with probability $1-\delta$: it is the bound that is random here, and the quantity
bounded that is fixed. $\bar Z$ is their mean, $\hat V$ their variance with denominator $n-1$, $k =
\lfloor n/2\rfloor$.

**Claims** (proved in paper_notes/held_out_certificate.md). Where $0 \le Z_i \le B$:

- `hoeffding`: $\mu \le \bar Z + B\sqrt{L/(2n)}$, $L = \ln(1/\delta)$ (Hoeffding 1963, Theorem 1).
- `empirical_bernstein`, i.i.d.: with $L = \ln(2/\delta)$, $\mu \le \bar Z +
  \sqrt{\tfrac{2L}n}\Bigl(\sqrt{\hat V + \tfrac{B^2L}{4k}} + \sqrt{\tfrac{B^2L}{4k}}\Bigr) +
  \tfrac{BL}{3n}$, which is at most $\bar Z + \sqrt{2\hat VL/n} + 7BL/(3(n-1))$, the bound of Maurer
  and Pontil (2009, Theorem 4).
- `betting`: $\mu \le \inf\{m : \max_i K_i(m) \ge 1/\delta\}$ with the capital $K_i(m) =
  \prod_{j\le i}\bigl(1 - \theta_j + \theta_j\tfrac{B-Z_j}{B-m}\bigr)$, whose stakes $\theta_j \in
  [0, 1)$ depend on earlier losses only (after Waudby-Smith and Ramdas 2024).
- `order_free`: the same with one capital, which does not depend on the order of the losses, in the
  place of $\max_i K_i(m)$: $K(m) = \tfrac13\Pi(3) + \tfrac23\Pi(1)$, $\Pi(a) =
  \prod_{i\le n}\bigl(1 - \theta + \theta\tfrac{B-Z_i}{B-m}\bigr)$ with the stake $\theta =
  \min\bigl(1, a\sqrt{2L(B-m)/(nm)}\bigr)$, which suits losses whose standard deviation is $1/a$ of
  a coin's.
- `clopper_pearson`, i.i.d. with $Z_i \in \{0, B\}$: the exact limit, for comparison.

Without a range, but with $\mathbb EZ_i^2 \le \kappa\mu^2$ ($\kappa = 3$ for squared output errors
on Gaussian rows):

- `moment_ratio`: $\mu \le \bar Z/a$, where $a < 1$ solves $n\,\mathrm{kl}(a/\kappa, 1/\kappa) = L$.

`certificate` is `order_free` and `moment_certificate` the last, for losses of one's own.
"""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc, logsumexp, xlogy
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from lowrank_theory._numerics import Number, check_positive
from lowrank_theory.theorems._held_out import (
    BOUNDED,
    COINS,
    OF_KNOWN_RATIO,
    UNIFORM,
    HeldOut,
)
from lowrank_theory.theorems._held_out import LayerLossLaw as LayerLossLaw
from lowrank_theory.theorems._held_out import LossLaw as LossLaw
from lowrank_theory.theorems._quantities import law_hypothesis
from lowrank_theory.theorems._theorem import (
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Bound,
    Hypothesis,
    Refuted,
    Standing,
)

LARGEST_STAKE = 0.9  # the share of the capital that one loss at the range can cost
# For losses of a third of a coin's standard deviation, and of a coin's: boldness, and share.
BETS = ((3.0, 1 / 3), (1.0, 2 / 3))
_HALVINGS = 52


def certificate(losses: ArrayLike, range_bound: float, failure_probability: float) -> Bound:
    r"""The certificate `order_free`: with probability $1-\delta$ the mean loss is at most it.

    To call it is to state that the units are independent draws of one law, unseen by the
    compression, and that no loss of that law exceeds `range_bound` $B$. A loss above $B$
    contradicts it: the value is then infinite, and `.require()` raises. The value is never above
    $B$; near it, the certificate says nothing.

    Raises `ValueError` for fewer than two losses, for NaN, infinite or negative ones, for a range
    that is not positive, or for $\delta$ outside (0, 1).
    """
    held_out = HeldOut.stated(losses, range_bound=check_positive("range_bound", range_bound))
    return held_out_certificate.order_free.bound(held_out, failure_probability=failure_probability)


def moment_certificate(losses: ArrayLike, moment_ratio: float, failure_probability: float) -> Bound:
    r"""The certificate that knows no range, but $\mathbb EZ^2 \le \kappa(\mathbb EZ)^2$ with
    $\kappa$ = `moment_ratio`.

    For $Z = \lVert D^\top x\rVert^2$, $\kappa$ is the largest ratio of $\mathbb E\langle x,
    a\rangle^4$ to $(\mathbb E\langle x, a\rangle^2)^2$ over directions: 3 for centred Gaussian
    rows. Infinite where $n\ln\frac{\kappa}{\kappa-1} \le \ln\frac1\delta$. Raises as `certificate`
    does, and for a ratio below one.
    """
    ratio = check_positive("moment_ratio", moment_ratio)
    held_out = HeldOut.stated(losses, moment_ratio=ratio)
    statement = held_out_certificate.moment_ratio
    return statement.bound(held_out, failure_probability=failure_probability)


def _root(above: Callable[[Array], Array], high: Array) -> tuple[Array, Array]:
    """An interval that contains the point of [0, high] from which on `above` holds; its right end
    is `high` if it nowhere does.
    """

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = ends
        middle = (left + right) / 2
        found = above(middle)
        return jnp.where(found, left, middle), jnp.where(found, middle, right)

    return jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(high), high))


def stakes(shares: Float[Array, " units"], failure_probability: Number) -> Float[Array, " units"]:
    r"""The stakes $\theta_i$ on losses given in shares $z_i = Z_i/B$ of the range; each depends on
    earlier losses only.

    $\theta_i = \min\bigl(0.9, (1-\hat\mu_{i-1})\sqrt{2L/(n\hat s^2_{i-1})}\bigr)$ with $L =
    \ln(1/\delta)$, $\hat\mu_i = (\tfrac12 + \sum_{j\le i}z_j)/(i+1)$ and $\hat s_i^2 = (\tfrac14 +
    \sum_{j\le i}(z_j-\hat\mu_j)^2)/(i+1)$.
    """
    count = shares.size
    seen = jnp.arange(1, count + 1) + 1.0
    means = (0.5 + jnp.cumsum(shares)) / seen
    variances = (0.25 + jnp.cumsum((shares - means) ** 2)) / seen
    mean = jnp.concatenate([jnp.array([0.5]), means[:-1]])
    variance = jnp.concatenate([jnp.array([0.25]), variances[:-1]])
    wanted = jnp.sqrt(2 * _log(1, failure_probability) / (count * variance))
    return jnp.minimum(LARGEST_STAKE, (1 - mean) * wanted)


def order_free_capital(
    shares: Float[Array, " units"], mean: Number, failure_probability: Number
) -> Float[Array, ""]:
    r"""$\ln K(m)$ of `order_free` at the mean $m \in (0, 1)$, for losses given in shares of the
    range. It increases with $m$, and falls with every loss.
    """
    level = _log(1, failure_probability)
    boldness, share = map(jnp.array, zip(*BETS, strict=True))
    wanted = boldness * jnp.sqrt(2 * level * (1 - mean) / (shares.size * mean))
    stake = jnp.minimum(1.0, wanted)[:, None]
    gains = jnp.log(1 - stake + stake * ((1 - shares) / (1 - mean)))  # never of less than zero
    return logsumexp(jnp.sum(gains, axis=1), b=share)


def _log(numerator: int, failure_probability: Number) -> Array:
    return jnp.log(numerator / jnp.asarray(failure_probability))


class AbstractCertificate(AbstractStatement):
    r"""$\mu \le$ a function of the losses, with probability $1-\delta$. In the units of a loss."""

    kind = UPPER_WITH_PROBABILITY
    needs = HeldOut

    @abc.abstractmethod
    def law(self, held_out: HeldOut) -> tuple[Hypothesis, ...]:
        """What is assumed of the law of one loss."""

    @abc.abstractmethod
    def limit(self, held_out: HeldOut, losses: Float[Array, " units"]) -> Float[Array, ""]:
        """The certificate."""

    def hypotheses(self, instance: HeldOut) -> tuple[Hypothesis, ...]:
        """Independence, and the law of one loss."""
        name = "the held-out units are independent draws of one law"
        return (law_hypothesis(name, instance.independent), *self.law(instance))

    def estimate(self, instance: HeldOut) -> Array:
        """The mean, which is what a certificate is about."""
        return jnp.asarray(instance.mean, float)

    def broken_estimate(self, instance: HeldOut) -> Array:
        """The largest loss, of which nothing is certified."""
        return jnp.max(jnp.asarray(instance.losses, float))

    def formula(self, instance: HeldOut, estimate: Array) -> Float[Array, ""]:
        """The certificate."""
        losses = jnp.asarray(instance.losses, float)
        return self.limit(instance, losses)

    def loss(self, instance: HeldOut, estimate: Array) -> Float[Array, ""]:
        r"""$\mu$."""
        return estimate


class AbstractBounded(AbstractCertificate):
    r"""A certificate of losses in $[0, B]$."""

    def law(self, held_out: HeldOut) -> tuple[Hypothesis, ...]:
        """Losses from zero to the range bound: a larger one would contradict it."""
        return (_range_hypothesis(held_out),)

    def magnitude(self, instance: HeldOut) -> Float[Array, ""]:
        r"""$B$."""
        return jnp.asarray(instance.range_bound, float)


def _range_hypothesis(held_out: HeldOut) -> Hypothesis:
    losses, largest = jnp.asarray(held_out.losses, float), jnp.asarray(held_out.range_bound, float)
    inside = jnp.minimum(jnp.min(losses), largest - jnp.max(losses))
    name = "no loss exceeds the range bound"
    margin = jnp.where(jnp.isfinite(largest), inside / largest, -1.0)
    return Hypothesis(name, margin, Standing.REFUTABLE)


def _not_negative(held_out: HeldOut) -> Hypothesis:
    losses = jnp.asarray(held_out.losses, float)
    least, largest = jnp.min(losses), jnp.max(jnp.abs(losses))
    margin = jnp.where(largest > 0, least / jnp.where(largest > 0, largest, 1), 0.0)
    return Hypothesis("no loss is negative", margin, Standing.REFUTABLE)


_MANY_UNITS = Refuted(1.0, "many units: both sides tend to the mean")
_ZEROS = Refuted(1.0, "rare coins: a sample of zeros, which no certificate can bound by less")


class Hoeffding(AbstractBounded):
    r"""$\mu \le \bar Z + B\sqrt{\ln(1/\delta)/(2n)}$ with probability $1-\delta$."""

    regimes = BOUNDED
    control = UNIFORM
    refuted_below = _MANY_UNITS

    def limit(self, held_out: HeldOut, losses: Float[Array, " units"]) -> Float[Array, ""]:
        r"""$\bar Z + B\sqrt{L/(2n)}$."""
        deviation = jnp.sqrt(_log(1, self.failure_probability) / (2 * losses.size))
        return jnp.mean(losses) + held_out.range_bound * deviation


class EmpiricalBernstein(AbstractBounded):
    r"""$\mu \le \bar Z + \sqrt{\tfrac{2L}n}\bigl(\sqrt{\hat V + \tfrac{B^2L}{4k}} +
    \sqrt{\tfrac{B^2L}{4k}}\bigr) + \tfrac{BL}{3n}$ with $L = \ln(2/\delta)$ and $k = \lfloor
    n/2\rfloor$.
    """

    regimes = BOUNDED
    control = UNIFORM
    refuted_below = _MANY_UNITS

    def limit(self, held_out: HeldOut, losses: Float[Array, " units"]) -> Float[Array, ""]:
        r"""Bernstein's bound at the upper limit of the standard deviation."""
        count, largest = losses.size, held_out.range_bound
        level = _log(2, self.failure_probability)
        unseen = largest**2 * level / (4 * (count // 2))
        spread = jnp.sqrt(jnp.var(losses, ddof=1) + unseen) + jnp.sqrt(unseen)
        slack = jnp.sqrt(2 * level / count) * spread + largest * level / (3 * count)
        return jnp.mean(losses) + slack


class Betting(AbstractBounded):
    r"""$\mu \le \inf\{m : \max_i K_i(m) \ge 1/\delta\}$, $K_i(m) = \prod_{j\le i}\bigl(1 - \theta_j
    + \theta_j\tfrac{B-Z_j}{B-m}\bigr)$.
    """

    regimes = BOUNDED
    control = UNIFORM
    refuted_below = _MANY_UNITS

    def limit(self, held_out: HeldOut, losses: Float[Array, " units"]) -> Float[Array, ""]:
        r"""The first $m$ at which the capital reaches $1/\delta$, by bisection, from above."""
        shares = losses / held_out.range_bound
        stake = stakes(shares, self.failure_probability)
        goal = _log(1, self.failure_probability)

        def rich(mean: Array) -> Array:
            capital = jnp.cumsum(jnp.log1p(stake * (mean - shares) / (1 - mean)))
            return jnp.max(capital) >= goal

        return jnp.asarray(held_out.range_bound) * _root(rich, jnp.ones(()))[1]


class OrderFree(AbstractBounded):
    r"""$\mu \le \inf\{m : K(m) \ge 1/\delta\}$, $K(m) = \tfrac13\Pi(3) + \tfrac23\Pi(1)$, $\Pi(a) =
    \prod_{i\le n}\bigl(1 - \theta + \theta\tfrac{B-Z_i}{B-m}\bigr)$ with the stake $\theta =
    \min\bigl(1, a\sqrt{2L(B-m)/(nm)}\bigr)$.
    """

    regimes = BOUNDED
    control = UNIFORM
    refuted_below = _ZEROS

    def limit(self, held_out: HeldOut, losses: Float[Array, " units"]) -> Float[Array, ""]:
        r"""The first $m$ at which the capital reaches $1/\delta$, by bisection, from above."""
        # Sorted, so that not even the rounding of a sum depends on the order.
        shares = jnp.sort(losses) / held_out.range_bound
        goal = _log(1, self.failure_probability)

        def rich(mean: Array) -> Array:
            return order_free_capital(shares, mean, self.failure_probability) >= goal

        return jnp.asarray(held_out.range_bound) * _root(rich, jnp.ones(()))[1]


class ClopperPearson(AbstractBounded):
    r"""$\mu \le Bp$ with $\mathbb P(\mathrm{Bin}(n, p) \le S) = \delta$, for losses of 0 or $B$, of
    which $S$ are $B$.
    """

    regimes = COINS
    control = COINS["common"]
    refuted_below = _ZEROS

    def law(self, held_out: HeldOut) -> tuple[Hypothesis, ...]:
        """Each loss is zero or the range bound."""
        losses, largest = jnp.asarray(held_out.losses, float), held_out.range_bound
        margin = -jnp.max(jnp.minimum(jnp.abs(losses), jnp.abs(largest - losses)))
        name = "every loss is zero or the range bound"
        return (_range_hypothesis(held_out), Hypothesis(name, margin, Standing.REFUTABLE))

    def limit(self, held_out: HeldOut, losses: Float[Array, " units"]) -> Float[Array, ""]:
        r"""The upper Clopper-Pearson limit, by bisection of the binomial law."""
        failures = jnp.sum(losses == held_out.range_bound).astype(float)
        rest = losses.size - failures

        def unlikely(probability: Array) -> Array:
            tail = betainc(jnp.maximum(rest, 1), failures + 1, 1 - probability)
            return (rest > 0) & (tail <= jnp.asarray(self.failure_probability))

        return jnp.asarray(held_out.range_bound) * _root(unlikely, jnp.ones(()))[1]


class MomentRatio(AbstractCertificate):
    r"""$\mu \le \bar Z/a$, $n\,\mathrm{kl}(a/\kappa, 1/\kappa) = \ln(1/\delta)$, for losses with
    $\mathbb EZ^2 \le \kappa\mu^2$ and no range.
    """

    regimes = OF_KNOWN_RATIO
    control = UNIFORM
    refuted_below = Refuted(1.0, "losses that are all equal")

    def law(self, held_out: HeldOut) -> tuple[Hypothesis, ...]:
        """A known ratio of moments, and losses that are not negative."""
        ratio = jnp.asarray(held_out.moment_ratio, float)
        name = "the second moment of a loss is at most the moment ratio times its squared mean"
        margin = jnp.where(jnp.isfinite(ratio), ratio - 1, -1.0)
        return (Hypothesis(name, margin, Standing.TRUSTED), _not_negative(held_out))

    def limit(self, held_out: HeldOut, losses: Float[Array, " units"]) -> Float[Array, ""]:
        r"""$\bar Z/a$, infinite where no $a > 0$ solves the equation."""
        rate = 1 / jnp.asarray(held_out.moment_ratio, float)
        level = _log(1, self.failure_probability) / losses.size

        def near(share: Array) -> Array:
            hit, miss = share * rate, 1 - share * rate
            return xlogy(hit, share) + xlogy(miss, miss / (1 - rate)) <= level

        share = _root(near, jnp.ones(()))[0]
        return jnp.where(-jnp.log1p(-rate) <= level, jnp.inf, jnp.mean(losses) / share)

    def magnitude(self, instance: HeldOut) -> Float[Array, ""]:
        r"""$\bar Z + \mu$."""
        return jnp.mean(jnp.asarray(instance.losses, float)) + instance.mean


class HeldOutCertificate(AbstractTheorem):
    """Losses on held-out units bound their own mean: by their range, their spread, a bet against
    them, or the ratio of their moments.
    """

    hoeffding: Hoeffding = Hoeffding()
    empirical_bernstein: EmpiricalBernstein = EmpiricalBernstein()
    betting: Betting = Betting()
    order_free: OrderFree = OrderFree()
    clopper_pearson: ClopperPearson = ClopperPearson()
    moment_ratio: MomentRatio = MomentRatio()


held_out_certificate = HeldOutCertificate()
