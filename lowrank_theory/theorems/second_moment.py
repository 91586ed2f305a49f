r"""How well m rows show the second moment of the activations.

**Model.** Rows $x_1, \dots, x_m$ i.i.d. with $\mathbb Exx^\top = C$ of rank $k$, $\hat C = X^\top
X/m$. The *effective rank* is $\rho = \operatorname{tr}C/\lVert C\rVert \le k$, and $\hat C_w$ is
$\hat C$ in the coordinates in which $C$ is the identity.

**Claims** (proved in paper_notes/second_moment.md; $t = \sqrt{2\ln(2/\delta)}$).

For Gaussian rows:

- `relative` (probability $1-\delta$): the roots of the eigenvalues of $\hat C_w$ are within $e =
  (\sqrt k + \tau)/\sqrt m$ of one, so $(1-e)^2C \preceq \hat C \preceq (1+e)^2C$ where $e < 1$;
  $\tau \le t$ is that of `gaussian_noise.largest` for an $m\times k$ matrix at $\delta/2$.
- `absolute` (probability $1-\delta$): $\lVert\hat C - C\rVert \le \lVert C\rVert(2e + e^2)$.
- `dimension_free` (probability $1-\delta$): $\lVert\hat C - C\rVert \le \lVert C\rVert(2a + a^2)$
  with $a = (\sqrt\rho + t + \tfrac1{2\sqrt\pi})/\sqrt m$. No dimension enters, and the leading
  constants are those of the limit (Koltchinskii and Lounici 2017 give the order, Han 2022 the
  constants).
- `expectation`: $\mathbb E\lVert\hat C - C\rVert \le \lVert C\rVert(2a + b^2 + \tfrac1m)$ with $a =
  (\sqrt\rho + 1.33)/\sqrt m$ and $b = (\sqrt\rho + \tfrac1{2\sqrt\pi})/\sqrt m$.

For rows of bounded leverage, $x^\top C^+x \le R$ (always $R \ge k$; Tropp 2015, Theorem 5.1.1):

- `leverage_above` (probability $1-\delta$): the eigenvalues of $\hat C_w$ are at most $1 + d$,
  where $(1+d)\ln(1+d) - d = \tfrac Rm\ln\tfrac k\delta$.
- `leverage_below` (probability $1-\delta$): they are at least $1 - d$, where $(1-d)\ln(1-d) + d =
  \tfrac Rm\ln\tfrac k\delta$; zero where that is above one.
"""

import abc
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lowrank_theory._arrays import Drawn, Key, matmul, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    Number,
    check_count,
    relative_rank_cutoff,
    rounding_allowance,
    safe_divide,
    settle,
)
from lowrank_theory._random import normal, split, uniform
from lowrank_theory.generators.activations import haar
from lowrank_theory.theorems._quantities import (
    deviation,
    frobenius,
    law_hypothesis,
    squared,
)
from lowrank_theory.theorems._theorem import (
    LOWER_WITH_PROBABILITY,
    UPPER_IN_EXPECTATION,
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
    Standing,
)
from lowrank_theory.theorems.gaussian_noise import lower_edge, upper_edge

# What the length of a Gaussian vector in m dimensions strays above and below the root of m, on
# average and at most.
_ABOVE, _BELOW = 0.5 / math.sqrt(math.pi), 0.3688


class Rows(eqx.Module):
    r"""Rows and their law: the true `second_moment` $C$, whether it is Gaussian, and a bound
    `leverage` on $x^\top C^+x$, infinite where there is none.
    """

    rows: Float[AnyArray, "samples inputs"]
    second_moment: Float[AnyArray, "inputs inputs"]
    gaussian: Bool[AnyArray, ""]
    leverage: Float[AnyArray, ""]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.rows.shape


class GaussianRows(eqx.Module):
    """Independent Gaussian rows; their second moment has the squared `scales` (inputs,) as
    eigenvalues, in a uniform basis.
    """

    samples: int
    scales: Float[AnyArray, " inputs"] = eqx.field(converter=np.asarray)

    def __check_init__(self) -> None:
        settle(self, "samples", check_count, 1)

    @of_either_key
    def draw(self, *, key: Key) -> Rows:
        """Rows and their law, in float64."""
        xp, (basis_key, row_key) = namespace(key), split(key)
        inputs = self.scales.size
        root = self.scales[:, None] * haar(inputs, inputs, key=basis_key).T
        rows = matmul(normal(row_key, (self.samples, inputs)), root)
        return Rows(rows, matmul(root.T, root), xp.asarray(True), xp.asarray(xp.inf))


class ResampledRows(eqx.Module):
    r"""Rows drawn with replacement from a `population` $A$ (count, inputs), all equally likely: so
    $C = A^\top A/n$, and the leverage is the largest one in the population.
    """

    samples: int
    population: Float[AnyArray, "count inputs"] = eqx.field(converter=np.asarray)

    def __check_init__(self) -> None:
        settle(self, "samples", check_count, 1)

    @of_either_key
    def draw(self, *, key: Key) -> Rows:
        """Rows and their law, in float64."""
        xp = namespace(key)
        population = xp.asarray(self.population, float)
        count = population.shape[0]
        second_moment = matmul(population.T, population) / count
        chosen = xp.floor(count * uniform(key, (self.samples,))).astype(int)
        white, _ = _whitened(population, second_moment)
        leverage = xp.asarray(xp.max(xp.sum(white**2, axis=1)))
        return Rows(population[chosen], second_moment, xp.asarray(False), leverage)


def relative_deviation(
    rank: Number, samples: Number, failure_probability: Number
) -> Float[Array, ""]:
    r"""$e = (\sqrt k + \tau)/\sqrt m$: with probability $1-\delta$ all singular values of an
    $m\times k$ matrix of i.i.d. $N(0, 1)$ entries are within $e\sqrt m$ of $\sqrt m$; call it
    inside `float64`.
    """
    return upper_edge(samples, rank, failure_probability / 2) / jnp.sqrt(samples) - 1


def relative_shortfall(
    rank: Number, samples: Number, failure_probability: Number
) -> Float[Array, ""]:
    r"""$e$: with probability $1-\delta$ no singular value of such a matrix is below $(1-e)\sqrt m$;
    call it inside `float64`.
    """
    return 1 - lower_edge(samples, rank, failure_probability) / jnp.sqrt(samples)


def gaussian_deviation(
    eigenvalues: Float[Array, " inputs"], samples: Array, failure_probability: Number
) -> Float[Array, ""]:
    r"""$a = \min(\sqrt k + \tau, \sqrt\rho + t + \tfrac1{2\sqrt\pi})/\sqrt m$ for the `eigenvalues`
    of $C$: for Gaussian rows, and with probability $1-\delta$, $\lVert\hat C - C\rVert \le \lVert
    C\rVert(2a + a^2)$.
    """
    dimension = relative_deviation(_rank(eigenvalues), samples, failure_probability)
    return jnp.minimum(dimension, _free_deviation(eigenvalues, samples, failure_probability))


def gaussian_shortfall(
    eigenvalues: Float[Array, " inputs"], samples: Array, failure_probability: Number
) -> Float[Array, ""]:
    r"""The smaller $a$ of `relative_shortfall` and of $(\sqrt\rho + t + 0.3688)/\sqrt m$, $t =
    \sqrt{2\ln(1/\delta)}$, for the `eigenvalues` of $C$: for Gaussian rows, and with probability
    $1-\delta$ for all $u$ at once, $\lVert Xu\rVert/\sqrt m \ge \lVert C^{1/2}u\rVert - a\,\lVert
    C\rVert^{1/2}\lVert u\rVert$.
    """
    free = jnp.sqrt(_effective_rank(eigenvalues)) + deviation(failure_probability) + _BELOW
    dimension = relative_shortfall(_rank(eigenvalues), samples, failure_probability)
    return jnp.minimum(dimension, free / jnp.sqrt(samples))


def _free_deviation(
    eigenvalues: Array, samples: Number, failure_probability: Number
) -> Float[Array, ""]:
    r"""$(\sqrt\rho + t + \tfrac1{2\sqrt\pi})/\sqrt m$."""
    slack = deviation(failure_probability, sides=2) + _ABOVE
    return (jnp.sqrt(_effective_rank(eigenvalues)) + slack) / jnp.sqrt(samples)


def _rank(eigenvalues: Array) -> Array:
    largest = jnp.max(eigenvalues)
    cutoff = relative_rank_cutoff((eigenvalues.size,)) * largest
    return jnp.sum(eigenvalues > cutoff).astype(float)


def _effective_rank(eigenvalues: Array) -> Array:
    return safe_divide(jnp.sum(eigenvalues), jnp.max(eigenvalues))


def _whitened(rows: Drawn, second_moment: Drawn) -> tuple[Drawn, Drawn]:
    """The rows in coordinates in which the second moment is a projector, and its diagonal."""
    xp = namespace(rows, second_moment)
    values, vectors = xp.linalg.eigh(second_moment)
    kept = values > relative_rank_cutoff(second_moment.shape) * values[-1]
    scales = xp.where(kept, 1 / xp.sqrt(xp.where(kept, values, 1)), 0)
    return matmul(rows, vectors) * scales, kept


def _smallest_at_least(increasing: Callable[[Array], Array], level: Array, high: Array) -> Array:
    """The argument in (0, high] from which on the function is at least the level, from above."""

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        enough = increasing(middle) >= level
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    return jax.lax.fori_loop(0, 60, halve, (jnp.zeros_like(high), high))[1]


_SCALES = {
    "isotropic": np.ones(10),
    "slow decay": np.arange(1, 11) ** -0.5,
    "power law": 1 / np.arange(1, 11),
    "steep": 1 / np.arange(1, 11) ** 3,
    "rank-deficient": np.arange(10) < 4,
    "one massive direction": np.where(np.arange(10) < 1, 100.0, 1.0),
}
_GAUSSIAN = {name: GaussianRows(60, np.asarray(s, float)) for name, s in _SCALES.items()} | {
    "fewer samples than inputs": GaussianRows(5, 1 / np.arange(1, 11))
}
_POPULATION = np.random.default_rng(0).standard_normal((64, 8))
_OUTLYING = np.where(np.arange(64)[:, None] < 1, 20.0, 1.0)
_BOUNDED = {
    "single coordinates": ResampledRows(400, np.tile(np.eye(8), (8, 1))),
    "signs": ResampledRows(400, np.sign(_POPULATION)),
    "a Gaussian cloud": ResampledRows(400, _POPULATION),
    "one outlying row": ResampledRows(400, _OUTLYING * _POPULATION),
    "badly scaled inputs": ResampledRows(400, _POPULATION * 10.0 ** -np.arange(8)),
    "rank-deficient": ResampledRows(400, _POPULATION * (np.arange(8) < 3)),
}


class AbstractSecondMoment(AbstractStatement):
    r"""A bound on how far $\hat C$ is from $C$. The estimate is $\hat C$ itself."""

    needs = Rows

    def estimate(self, instance: Rows) -> Array:
        r"""$\hat C = X^\top X/m$."""
        rows = jnp.asarray(instance.rows, float)
        return matmul(rows.T, rows) / rows.shape[0]


def _in_range(instance: Rows) -> Hypothesis:
    """That the rows lie where their second moment does."""
    rows, second_moment = jnp.asarray(instance.rows), jnp.asarray(instance.second_moment)
    values, vectors = jnp.linalg.eigh(second_moment)
    kept = values > relative_rank_cutoff(second_moment.shape) * values[-1]
    outside = frobenius(matmul(rows, vectors) * ~kept)
    size = frobenius(rows)
    # A cut-off on the second moment is one on the squares of the rows.
    allowed = jnp.sqrt(rounding_allowance(1.0, *instance.sizes)) * size
    name = "the rows lie in the range of their second moment"
    return Hypothesis(name, safe_divide(allowed - outside, size))


class AbstractGaussian(AbstractSecondMoment):
    """A bound for Gaussian rows."""

    regimes = _GAUSSIAN
    control = _GAUSSIAN["isotropic"]

    def hypotheses(self, instance: Rows) -> tuple[Hypothesis, ...]:
        """Gaussian rows, which lie where their second moment does."""
        law = law_hypothesis("the rows are independent and Gaussian", instance.gaussian)
        return (law, _in_range(instance))

    def broken_estimate(self, instance: Rows) -> Array:
        r"""$4\hat C$: every row counts four times."""
        return 4 * self.estimate(instance)


def _relative_eigenvalues(instance: Rows, estimate: Array) -> Array:
    r"""The eigenvalues of $\hat C_w$, and ones for the directions that $C$ lacks."""
    second_moment = jnp.asarray(instance.second_moment, float)
    half, kept = _whitened(estimate, second_moment)
    whole, _ = _whitened(half.T, second_moment)
    return jnp.linalg.eigvalsh(whole + jnp.diag(1.0 - kept))


_WHITE_ROWS = Refuted(
    1.0,
    "white rows, as many inputs as rows or fewer, in the limit of Marchenko and Pastur",
)
_MANY_ROWS = Refuted(1.0, "many rows: both sides tend to one")


class Relative(AbstractGaussian):
    r"""$\lvert s_i - 1\rvert \le (\sqrt k + \tau)/\sqrt m$ for the singular values $s_i$ of
    $XC^{-1/2}/\sqrt m$. Not squared; without unit.
    """

    kind = UPPER_WITH_PROBABILITY
    refuted_below = _WHITE_ROWS

    def formula(self, instance: Rows, estimate: Array) -> Float[Array, ""]:
        r"""$(\sqrt k + \tau)/\sqrt m$."""
        rank = _rank(jnp.linalg.eigvalsh(instance.second_moment))
        return relative_deviation(rank, instance.rows.shape[0], self.failure_probability)

    def loss(self, instance: Rows, estimate: Array) -> Float[Array, ""]:
        r"""$\max_i\lvert s_i - 1\rvert$."""
        values = jnp.maximum(_relative_eigenvalues(instance, estimate), 0)
        return jnp.max(jnp.abs(jnp.sqrt(values) - 1))

    def magnitude(self, instance: Rows) -> Float[Array, ""]:
        """One; roots of rounded zeros are the roots of the rounding."""
        return jnp.ones(())


class AbstractNorm(AbstractGaussian):
    r"""A bound on $\lVert\hat C - C\rVert$. In the squared units of the activations."""

    @abc.abstractmethod
    def relative(self, eigenvalues: Array, samples: int) -> Array:
        r"""The bound over $\lVert C\rVert$."""

    def formula(self, instance: Rows, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert C\rVert$ times a function of the eigenvalues of $C$ and the number of rows."""
        eigenvalues = jnp.maximum(jnp.linalg.eigvalsh(instance.second_moment), 0)
        samples = instance.rows.shape[0]
        return eigenvalues[-1] * self.relative(eigenvalues, samples)

    def loss(self, instance: Rows, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert\hat C - C\rVert$."""
        return jnp.max(jnp.abs(jnp.linalg.eigvalsh(estimate - instance.second_moment)))

    def magnitude(self, instance: Rows) -> Float[Array, ""]:
        r"""$\operatorname{tr}\hat C + \operatorname{tr}C$."""
        seen = squared(frobenius(instance.rows)) / instance.rows.shape[0]
        return seen + jnp.trace(instance.second_moment)


class Absolute(AbstractNorm):
    r"""$\lVert\hat C - C\rVert \le \lVert C\rVert(2e + e^2)$, $e = (\sqrt k + \tau)/\sqrt m$."""

    kind = UPPER_WITH_PROBABILITY
    refuted_below = _WHITE_ROWS

    def relative(self, eigenvalues: Array, samples: int) -> Array:
        r"""$2e + e^2$."""
        e = relative_deviation(_rank(eigenvalues), samples, self.failure_probability)
        return 2 * e + e**2


class DimensionFree(AbstractNorm):
    r"""$\lVert\hat C - C\rVert \le \lVert C\rVert(2a + a^2)$, $a = (\sqrt\rho + t +
    \tfrac1{2\sqrt\pi})/\sqrt m$.
    """

    kind = UPPER_WITH_PROBABILITY
    refuted_below = _WHITE_ROWS

    def relative(self, eigenvalues: Array, samples: int) -> Array:
        r"""$2a + a^2$."""
        a = _free_deviation(eigenvalues, samples, self.failure_probability)
        return 2 * a + a**2


class Expectation(AbstractNorm):
    r"""$\mathbb E\lVert\hat C - C\rVert \le \lVert C\rVert(2a + b^2 + \tfrac1m)$, $a = (\sqrt\rho +
    1.33)/\sqrt m$, $b = (\sqrt\rho + \tfrac1{2\sqrt\pi})/\sqrt m$.
    """

    kind = UPPER_IN_EXPECTATION
    refuted_below = _WHITE_ROWS

    def relative(self, eigenvalues: Array, samples: int) -> Array:
        r"""$2a + b^2 + 1/m$."""
        root = jnp.sqrt(_effective_rank(eigenvalues))
        linear, square = root + 1.33, (root + _ABOVE) ** 2 + 1
        return 2 * linear / jnp.sqrt(samples) + square / samples


class AbstractLeverage(AbstractSecondMoment):
    r"""A bound on the eigenvalues of $\hat C_w$ for rows of bounded leverage. Without unit."""

    regimes = _BOUNDED
    control = _BOUNDED["a Gaussian cloud"]

    def hypotheses(self, instance: Rows) -> tuple[Hypothesis, ...]:
        """Independent rows of bounded leverage: a larger one, or a bound below its mean $k$, would
        contradict it.
        """
        second_moment = jnp.asarray(instance.second_moment, float)
        white, kept = _whitened(jnp.asarray(instance.rows, float), second_moment)
        values = jnp.linalg.eigvalsh(second_moment)
        weakest = jnp.min(jnp.where(kept, values, jnp.inf))
        seen = jnp.maximum(jnp.max(jnp.sum(white**2, axis=1)), jnp.sum(kept))
        # Whitening rounds on the scale of the condition number.
        allowed = rounding_allowance(1 + safe_divide(values[-1], weakest), *instance.sizes)
        margin = (1 + allowed) * jnp.asarray(instance.leverage) - seen
        name = "no leverage exceeds its bound"
        refutable = Hypothesis(name, jnp.minimum(margin, 1.0), Standing.REFUTABLE)
        finite = jnp.isfinite(jnp.asarray(instance.leverage))
        law = law_hypothesis("the rows are independent and of bounded leverage", finite)
        return (law, _in_range(instance), refutable)

    def level(self, instance: Rows) -> Array:
        r"""$\tfrac Rm\ln\tfrac k\delta$."""
        rank = _rank(jnp.linalg.eigvalsh(instance.second_moment))
        finite = jnp.where(jnp.isfinite(instance.leverage), instance.leverage, 1.0)
        choices = jnp.log(jnp.maximum(rank, 1) / self.failure_probability)
        return jnp.where(rank > 0, finite / instance.rows.shape[0] * choices, 0.0)

    def magnitude(self, instance: Rows) -> Float[Array, ""]:
        """The leverage: what a row may weigh."""
        return jnp.where(jnp.isfinite(instance.leverage), instance.leverage, 1.0)


class LeverageAbove(AbstractLeverage):
    r"""$\lambda_{\max}(\hat C_w) \le 1 + d$ where $(1+d)\ln(1+d) - d = \tfrac Rm\ln\tfrac
    k\delta$.
    """

    kind = UPPER_WITH_PROBABILITY
    refuted_below = _MANY_ROWS

    def broken_estimate(self, instance: Rows) -> Array:
        r"""$4\hat C$: every row counts four times."""
        return 4 * self.estimate(instance)

    def formula(self, instance: Rows, estimate: Array) -> Float[Array, ""]:
        """One more than the root $d$, which Bernstein's inequality bounds from above."""
        level = self.level(instance)
        high = level / 3 + jnp.sqrt(level**2 / 9 + 2 * level)
        return 1 + _smallest_at_least(lambda d: (1 + d) * jnp.log1p(d) - d, level, high)

    def loss(self, instance: Rows, estimate: Array) -> Float[Array, ""]:
        r"""The largest eigenvalue of $\hat C_w$."""
        return _relative_eigenvalues(instance, estimate)[-1]


class LeverageBelow(AbstractLeverage):
    r"""$\lambda_{\min}(\hat C_w) \ge 1 - d$ where $(1-d)\ln(1-d) + d = \tfrac Rm\ln\tfrac
    k\delta$.
    """

    kind = LOWER_WITH_PROBABILITY
    refuted_below = _MANY_ROWS

    def broken_estimate(self, instance: Rows) -> Array:
        r"""$\tfrac14\hat C$: one row in four counts."""
        return self.estimate(instance) / 4

    def formula(self, instance: Rows, estimate: Array) -> Float[Array, ""]:
        """One less the root $d$, and zero where there is none."""
        level = self.level(instance)

        def exponent(d: Array) -> Array:
            return jax.scipy.special.xlog1py(1 - d, -d) + d

        return 1 - _smallest_at_least(exponent, level, jnp.ones_like(level))

    def loss(self, instance: Rows, estimate: Array) -> Float[Array, ""]:
        r"""The least eigenvalue of $\hat C_w$."""
        return _relative_eigenvalues(instance, estimate)[0]


class SecondMoment(AbstractTheorem):
    r"""$m$ rows show the second moment of the activations up to about $2\sqrt{\rho/m}$ of its norm,
    $\rho$ its effective rank, and up to $2\sqrt{k/m}$ in every direction.
    """

    relative: Relative = Relative()
    absolute: Absolute = Absolute()
    dimension_free: DimensionFree = DimensionFree()
    expectation: Expectation = Expectation()
    leverage_above: LeverageAbove = LeverageAbove()
    leverage_below: LeverageBelow = LeverageBelow()


second_moment = SecondMoment()
