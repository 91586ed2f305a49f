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
- `clopper_pearson`, i.i.d. with $Z_i \in \{0, B\}$: the exact limit, for comparison.

Without a range, but with $\mathbb EZ_i^2 \le \kappa\mu^2$ ($\kappa = 3$ for squared output errors
on Gaussian rows):

- `moment_ratio`: $\mu \le \bar Z/a$, where $a < 1$ solves $n\,\mathrm{kl}(a/\kappa, 1/\kappa) = L$.

`certificate` is the third and `moment_certificate` the last, for losses of one's own.
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc, xlogy
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    AnyArray,
    after,
    check_array,
    check_count,
    check_positive,
    float64,
    matmul,
    settle,
)
from lowrank_theory.generators import activations, noise, spectra
from lowrank_theory.generators._random import uniform
from lowrank_theory.problems import Setting
from lowrank_theory.recovery import ActivationWeighted, recover
from lowrank_theory.theorems._quantities import law_hypothesis
from lowrank_theory.theorems._theorem import (
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Bound,
    Hypothesis,
    Standing,
)

LARGEST_STAKE = 0.9  # the share of the capital that one loss at the range can cost
_HALVINGS = 52


class HeldOut(eqx.Module):
    r"""Losses of held-out units, and what is known of their law.

    - `losses` $Z_i$ (units,), and `range_bound` $B$, infinite where there is none;
    - `moment_ratio` $\kappa$ with $\mathbb EZ^2 \le \kappa(\mathbb EZ)^2$, infinite where there is
      none;
    - `independent`: whether the units are independent draws of one law that the compression has not
      seen;
    - `mean` $\mu$, which only the maker of a synthetic law knows: no certificate uses it.
    """

    losses: Float[AnyArray, " units"]
    range_bound: Float[AnyArray, ""]
    moment_ratio: Float[AnyArray, ""]
    independent: Bool[AnyArray, ""]
    mean: Float[AnyArray, ""]

    @staticmethod
    def stated(
        losses: ArrayLike, *, range_bound: float = math.inf, moment_ratio: float = math.inf
    ) -> "HeldOut":
        """Losses of one's own, stated to be independent and of the given range or moment ratio.

        Raises `ValueError` for fewer than two losses, for NaN, infinite or negative ones, and for a
        range that is not positive or a ratio below one, which no law has.
        """
        array = np.asarray(check_array("losses", losses, "units"), float)
        if array.size < 2:
            raise ValueError("`losses` must have at least two units; got 1. Hold out more.")
        if array.min() < 0:
            raise ValueError(
                f"`losses` must not be negative; got {array.min():.3g}. Give squared errors."
            )
        if range_bound != math.inf:
            range_bound = check_positive("range_bound", range_bound)
        if moment_ratio != math.inf:
            moment_ratio = check_positive("moment_ratio", moment_ratio)
        if moment_ratio < 1:
            raise ValueError(
                f"`moment_ratio` must be at least 1, as of every law; got {moment_ratio!r}."
            )
        known = np.asarray(True)
        numbers = (np.asarray(x, float) for x in (range_bound, moment_ratio, math.nan))
        range_array, ratio_array, mean = numbers
        return HeldOut(array, range_array, ratio_array, known, mean)

    @property
    def sizes(self) -> tuple[int, ...]:
        """(units,)."""
        return self.losses.shape


def certificate(losses: ArrayLike, range_bound: float, failure_probability: float) -> Bound:
    r"""The betting certificate: with probability $1-\delta$ the mean loss is at most its value.

    To call it is to state that the units are independent draws of one law, unseen by the
    compression, in an order that was fixed before their losses were known, and that no loss of that
    law exceeds `range_bound` $B$. A loss above $B$ contradicts it: the value is then infinite, and
    `.require()` raises. The value is never above $B$; near it, the certificate says nothing.

    Raises `ValueError` for fewer than two losses, for NaN, infinite or negative ones, for a range
    that is not positive, or for $\delta$ outside (0, 1).
    """
    held_out = HeldOut.stated(losses, range_bound=check_positive("range_bound", range_bound))
    return held_out_certificate.betting.bound(held_out, failure_probability=failure_probability)


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


class LossLaw(eqx.Module):
    """Independent losses with finitely many values, of which everything is known.

    `probabilities` (atoms,) are normalised; `range_bound` is the largest of the `values` (atoms,)
    or more. Raises `ValueError` for fewer than two units.
    """

    values: Float[np.ndarray, " atoms"] = eqx.field(converter=np.asarray)
    probabilities: Float[np.ndarray, " atoms"] = eqx.field(converter=np.asarray)
    range_bound: Float[np.ndarray, ""] = eqx.field(converter=np.asarray)
    units: int

    def __check_init__(self) -> None:
        settle(self, "units", check_count, 2)

    def draw(self, *, key: PRNGKeyArray) -> HeldOut:
        """The losses of `units` draws."""
        with float64():
            return _draw_law(self, key)


@eqx.filter_jit
def _draw_law(law: LossLaw, key: PRNGKeyArray) -> HeldOut:
    values = jnp.asarray(law.values, float)
    shares = law.probabilities / jnp.sum(law.probabilities)
    below = jnp.cumsum(shares)[:-1]
    losses = values[jnp.searchsorted(below, uniform(key, (law.units,)), side="right")]
    mean, square = jnp.sum(shares * values), jnp.sum(shares * values**2)
    ratio = jnp.where(mean > 0, square / jnp.where(mean > 0, mean, 1) ** 2, 1.0)
    # A constant has ratio one, below which rounding must not take it.
    return HeldOut(
        losses,
        jnp.asarray(law.range_bound, float),
        jnp.maximum(ratio, 1.0),
        jnp.asarray(True),
        mean,
    )


class CompressedLayer(eqx.Module):
    r"""The squared output errors of a compressed layer on `units` fresh rows.

    The layer is drawn from `setting`, with a law of its activations that has a second moment $C$,
    and recovered from its own rows alone. Fresh rows are $x = C^{1/2}u$ with independent $u_j$
    uniform on $[-\sqrt3, \sqrt3]$: bounded, with the same second moment. So with $A =
    C^{1/2}(W - \hat M)$ of N rows, $Z = \lVert A^\top u\rVert^2$ has mean $\lVert A\rVert_F^2$,
    range $3N\lVert A\rVert^2$ and moment ratio at most 3. Raises `ValueError` for fewer than two
    units.
    """

    setting: Setting
    units: int

    def __check_init__(self) -> None:
        settle(self, "units", check_count, 2)

    def draw(self, *, key: PRNGKeyArray) -> HeldOut:
        """A layer, its recovery, and its losses on fresh rows."""
        with float64():
            return _draw_layer(self, key)


@eqx.filter_jit
def _draw_layer(layer: CompressedLayer, key: PRNGKeyArray) -> HeldOut:
    problem_key, row_key = jax.random.split(key)
    problem = layer.setting.draw(key=problem_key)
    recovered = recover(problem.observed, problem.rank, ActivationWeighted()).factors
    weights, second_moment = problem.observed.weights, problem.truth.second_moment
    assert weights is not None
    assert second_moment is not None
    difference = weights - matmul(recovered.left, recovered.right)
    values, vectors = jnp.linalg.eigh(after(difference, second_moment))
    half = jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T
    residual = matmul(vectors, half, difference)
    inputs = residual.shape[0]
    rows = math.sqrt(3) * (2 * uniform(row_key, (layer.units, inputs)) - 1)
    largest = jnp.linalg.norm(residual, 2)
    return HeldOut(
        jnp.sum(matmul(rows, residual) ** 2, axis=1),
        3 * inputs * largest**2,
        jnp.asarray(3.0),
        jnp.asarray(True),
        jnp.sum(residual**2),
    )


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


def stakes(shares: Float[Array, " units"], failure_probability: float) -> Float[Array, " units"]:
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


def _log(numerator: int, failure_probability: float) -> Array:
    return jnp.log(numerator / jnp.asarray(failure_probability))


_UNITS = 100


def _law(
    values: tuple[float, ...], probabilities: tuple[float, ...], units: int = _UNITS
) -> LossLaw:
    """A law of range one on eight atoms: one shape for all."""
    padding = (0.0,) * (8 - len(values))
    return LossLaw(np.array(values + padding), np.array(probabilities + padding), 1.0, units)


def _two_point(probability: float) -> LossLaw:
    return _law((0.0, 1.0), (1 - probability, probability))


_LAYER = Setting(
    samples=40,
    inputs=12,
    outputs=8,
    rank=3,
    activations=activations.GaussianRows(spectra.PowerLaw(0.5)),
    noise=noise.Gaussian(0.3),
)
_UNIFORM = _law(tuple(np.linspace(0, 1, 8)), (1.0,) * 8)
_MILD = {
    "compressed layer": CompressedLayer(_LAYER, _UNITS),
    "uniform": _UNIFORM,
    "geometric": _law(tuple(2.0 ** -np.arange(8)), tuple(1.5 ** np.arange(8))),
    "rare large losses": _law((0.01, 1.0), (0.999, 0.001)),
    "all equal": _law((0.3,), (1.0,)),
    "zero": _law((0.0,), (1.0,)),
    "fair coin at the range": _two_point(0.5),
}
# Above 1 - 0.05^(1/100) = 0.02951 a sample of zeros makes the exact limit fail, at a rate just
# below 0.05.
_RARE = {
    "rare events at the range": _two_point(0.0296),
    "rarer than the units can show": _law((0.0, 0.001, 1.0), (0.5, 0.499, 0.001)),
    "two units": _law((0.1, 1.0), (0.8, 0.2), units=2),
}
_ALL = {**_MILD, **_RARE}
_SPREAD = {**_MILD, "biased coin at the range": _two_point(0.2)}
_COINS = {
    "rare": _two_point(0.0296),
    "common": _two_point(0.2),
    "fair": _two_point(0.5),
    "usual": _two_point(0.97),
    "never": _two_point(0.0),
    "always": _two_point(1.0),
}


class AbstractCertificate(AbstractStatement):
    r"""$\mu \le$ a function of the losses, with probability $1-\delta$. In the units of a loss."""

    kind = UPPER_WITH_PROBABILITY
    needs = HeldOut

    @abc.abstractmethod
    def law(self, held_out: HeldOut) -> tuple[Hypothesis, ...]:
        """What is assumed of the law of one loss."""

    @abc.abstractmethod
    def limit(
        self, held_out: HeldOut, losses: Float[Array, " units"], failure_probability: float
    ) -> Float[Array, ""]:
        """The certificate."""

    def hypotheses(self, instance: HeldOut, failure_probability: float) -> tuple[Hypothesis, ...]:
        """Independence, and the law of one loss."""
        name = "the held-out units are independent draws of one law"
        return (law_hypothesis(name, instance.independent), *self.law(instance))

    def estimate(self, instance: HeldOut, failure_probability: float) -> Array:
        """The mean, which is what a certificate is about."""
        return jnp.asarray(instance.mean, float)

    def broken_estimate(self, instance: HeldOut, failure_probability: float) -> Array:
        """The largest loss, of which nothing is certified."""
        return jnp.max(jnp.asarray(instance.losses, float))

    def formula(
        self, instance: HeldOut, estimate: Array, failure_probability: float
    ) -> Float[Array, ""]:
        """The certificate."""
        losses = jnp.asarray(instance.losses, float)
        return self.limit(instance, losses, failure_probability)

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


class Hoeffding(AbstractBounded):
    r"""$\mu \le \bar Z + B\sqrt{\ln(1/\delta)/(2n)}$ with probability $1-\delta$."""

    regimes = _ALL
    control = _UNIFORM

    def limit(
        self, held_out: HeldOut, losses: Float[Array, " units"], failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\bar Z + B\sqrt{L/(2n)}$."""
        deviation = jnp.sqrt(_log(1, failure_probability) / (2 * losses.size))
        return jnp.mean(losses) + held_out.range_bound * deviation


class EmpiricalBernstein(AbstractBounded):
    r"""$\mu \le \bar Z + \sqrt{\tfrac{2L}n}\bigl(\sqrt{\hat V + \tfrac{B^2L}{4k}} +
    \sqrt{\tfrac{B^2L}{4k}}\bigr) + \tfrac{BL}{3n}$ with $L = \ln(2/\delta)$ and $k = \lfloor
    n/2\rfloor$.
    """

    regimes = _ALL
    control = _UNIFORM

    def limit(
        self, held_out: HeldOut, losses: Float[Array, " units"], failure_probability: float
    ) -> Float[Array, ""]:
        r"""Bernstein's bound at the upper limit of the standard deviation."""
        count, largest = losses.size, held_out.range_bound
        level = _log(2, failure_probability)
        unseen = largest**2 * level / (4 * (count // 2))
        spread = jnp.sqrt(jnp.var(losses, ddof=1) + unseen) + jnp.sqrt(unseen)
        slack = jnp.sqrt(2 * level / count) * spread + largest * level / (3 * count)
        return jnp.mean(losses) + slack


class Betting(AbstractBounded):
    r"""$\mu \le \inf\{m : \max_i K_i(m) \ge 1/\delta\}$, $K_i(m) = \prod_{j\le i}\bigl(1 - \theta_j
    + \theta_j\tfrac{B-Z_j}{B-m}\bigr)$.
    """

    regimes = _ALL
    control = _UNIFORM

    def limit(
        self, held_out: HeldOut, losses: Float[Array, " units"], failure_probability: float
    ) -> Float[Array, ""]:
        r"""The first $m$ at which the capital reaches $1/\delta$, by bisection, from above."""
        shares = losses / held_out.range_bound
        stake = stakes(shares, failure_probability)
        goal = _log(1, failure_probability)

        def rich(mean: Array) -> Array:
            capital = jnp.cumsum(jnp.log1p(stake * (mean - shares) / (1 - mean)))
            return jnp.max(capital) >= goal

        return jnp.asarray(held_out.range_bound) * _root(rich, jnp.ones(()))[1]


class ClopperPearson(AbstractBounded):
    r"""$\mu \le Bp$ with $\mathbb P(\mathrm{Bin}(n, p) \le S) = \delta$, for losses of 0 or $B$, of
    which $S$ are $B$.
    """

    regimes = _COINS
    control = _COINS["common"]

    def law(self, held_out: HeldOut) -> tuple[Hypothesis, ...]:
        """Each loss is zero or the range bound."""
        losses, largest = jnp.asarray(held_out.losses, float), held_out.range_bound
        margin = -jnp.max(jnp.minimum(jnp.abs(losses), jnp.abs(largest - losses)))
        name = "every loss is zero or the range bound"
        return (_range_hypothesis(held_out), Hypothesis(name, margin, Standing.REFUTABLE))

    def limit(
        self, held_out: HeldOut, losses: Float[Array, " units"], failure_probability: float
    ) -> Float[Array, ""]:
        r"""The upper Clopper-Pearson limit, by bisection of the binomial law."""
        failures = jnp.sum(losses == held_out.range_bound).astype(float)
        rest = losses.size - failures

        def unlikely(probability: Array) -> Array:
            tail = betainc(jnp.maximum(rest, 1), failures + 1, 1 - probability)
            return (rest > 0) & (tail <= jnp.asarray(failure_probability))

        return jnp.asarray(held_out.range_bound) * _root(unlikely, jnp.ones(()))[1]


class MomentRatio(AbstractCertificate):
    r"""$\mu \le \bar Z/a$, $n\,\mathrm{kl}(a/\kappa, 1/\kappa) = \ln(1/\delta)$, for losses with
    $\mathbb EZ^2 \le \kappa\mu^2$ and no range.
    """

    regimes = _SPREAD
    control = _UNIFORM

    def law(self, held_out: HeldOut) -> tuple[Hypothesis, ...]:
        """A known ratio of moments, and losses that are not negative."""
        ratio = jnp.asarray(held_out.moment_ratio, float)
        name = "the second moment of a loss is at most the moment ratio times its squared mean"
        margin = jnp.where(jnp.isfinite(ratio), ratio - 1, -1.0)
        return (Hypothesis(name, margin, Standing.TRUSTED), _not_negative(held_out))

    def limit(
        self, held_out: HeldOut, losses: Float[Array, " units"], failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\bar Z/a$, infinite where no $a > 0$ solves the equation."""
        rate = 1 / jnp.asarray(held_out.moment_ratio, float)
        level = _log(1, failure_probability) / losses.size

        def near(share: Array) -> Array:
            hit, miss = share * rate, 1 - share * rate
            return xlogy(hit, share) + xlogy(miss, miss / (1 - rate)) <= level

        share = _root(near, jnp.ones(()))[0]
        return jnp.where(-jnp.log1p(-rate) <= level, jnp.inf, jnp.mean(losses) / share)

    def magnitude(self, instance: HeldOut) -> Float[Array, ""]:
        r"""$\bar Z + \mu$."""
        return jnp.mean(jnp.asarray(instance.losses, float)) + instance.mean


class HeldOutCertificate(AbstractTheorem):
    """Upper limits of a mean loss, from held-out losses alone."""

    hoeffding: Hoeffding = Hoeffding()
    empirical_bernstein: EmpiricalBernstein = EmpiricalBernstein()
    betting: Betting = Betting()
    clopper_pearson: ClopperPearson = ClopperPearson()
    moment_ratio: MomentRatio = MomentRatio()


held_out_certificate = HeldOutCertificate()
