r"""How much of a white residual a low-rank correction can capture.

**Model.** A residual $R$, for example what quantisation leaves of a layer, with $L$ and $S$ the
longer and the shorter of its sides. A correction of rank $r$ captures at most the share
$\lVert R_{(r)}\rVert_F^2/\lVert R\rVert_F^2$ of its energy, $R_{(r)}$ being the $r$ largest
singular values.

**Claims** (proved in paper_notes/white_residual.md):

- `any_residual` (sure): the share is at most $r\lVert R\rVert^2/\lVert R\rVert_F^2$, the rank over
  the stable rank. Attained where the $r$ largest singular values are equal.
- `expected`, i.i.d. Gaussian entries: the mean share is at most $\tfrac1{LS}\sum_{i\le
  r}\bigl((\sqrt L + \sqrt{S-i+1})^2 - \tfrac12\bigr) \le r(L^{-1/2} + S^{-1/2})^2$ at every size.
- `gaussian` (probability $1-\delta$): the share is at most $\dfrac{b^2}{LS - \frac12}$, with $b$
  the smaller of $\sqrt r(\sqrt L + \sqrt S + \tau)$, $\tau$ that of `gaussian_noise.largest`, and
  $\sqrt{\min(\ell_r, LS)} + \sqrt{2\ln(1/\delta)}$, $\ell_r$ the sum in `expected`.
- `edge` (asymptotic), i.i.d. entries of any law with four moments: the share is at most
  $r(L^{-1/2} + S^{-1/2})^2$.
- `limit` (asymptotic), the same, $r$ in proportion to $L$ and $S$: the share tends to
  $(\theta - \sin\theta\cos\theta)/\pi$, where $\theta$ solves `counted_share`$(\theta, S/L) = r/S$:
  the upper tail of the law of Marchenko and Pastur (1967).

So rank 64 captures on average at most 2.62 % of a Gaussian 5120 x 25600 residual: what quantisation
leaves is no prey for a low-rank correction, unless activations weight it.
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from scipy import optimize

from lowrank_theory._arrays import Key, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    check_count,
    check_rank,
    keep,
    safe_divide,
    settle,
)
from lowrank_theory._random import normal, split
from lowrank_theory.generators import noise
from lowrank_theory.theorems._quantities import law_hypothesis, singular_values
from lowrank_theory.theorems._theorem import (
    ASYMPTOTIC_EQUALITY,
    ASYMPTOTIC_UPPER,
    UPPER,
    UPPER_IN_EXPECTATION,
    UPPER_WITH_PROBABILITY,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)
from lowrank_theory.theorems.gaussian_noise import leading_edge, leading_squares


class Residual(eqx.Module):
    """A residual matrix, the rank of its correction, and what is known of its law: whether entries
    are i.i.d. with a finite fourth moment (`white`), and whether they are Gaussian.
    """

    matrix: Float[AnyArray, "rows columns"]
    rank: int = eqx.field(static=True)
    white: Bool[AnyArray, ""]
    gaussian: Bool[AnyArray, ""]

    def __check_init__(self) -> None:
        keep(self, "rank", check_rank(self.rank, *self.matrix.shape))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.matrix.shape


class ResidualSetting(eqx.Module):
    """A residual of given sizes and law; with `noise.QuantiserResidual`, what rounding leaves of
    Gaussian weights.
    """

    rows: int
    columns: int
    rank: int
    law: noise.AbstractNoise = noise.Gaussian(1.0)

    def __check_init__(self) -> None:
        for name in ("rows", "columns"):
            settle(self, name, check_count, 1)
        keep(self, "rank", check_rank(self.rank, self.rows, self.columns))

    def enlarged(self, factor: int) -> "ResidualSetting":
        """Sides and rank, each `factor` times as large."""
        sizes = {name: factor * getattr(self, name) for name in ("rows", "columns", "rank")}
        return dataclasses.replace(self, **sizes)

    @of_either_key
    def draw(self, *, key: Key) -> Residual:
        """A random residual, in float64."""
        xp, (weights_key, noise_key) = namespace(key), split(key)
        weights = normal(weights_key, (self.rows, self.columns))
        matrix = self.law.draw(xp.eye(self.rows), weights, key=noise_key)
        white, gaussian = (isinstance(self.law, each) for each in (_WHITE, noise.Gaussian))
        return Residual(matrix, self.rank, xp.asarray(white), xp.asarray(gaussian))


_WHITE = (noise.Gaussian, noise.Rademacher, noise.Uniform, noise.Laplace)


def counted_share(angle: float, ratio: float) -> float:
    r"""The share of singular values beyond the angle $\theta$, for sides of `ratio` $\beta = S/L$:
    the mass of the Marchenko-Pastur law above $1 + \beta + 2\sqrt\beta\cos\theta$.

    $\displaystyle\frac{(1+\beta)\theta - 2\sqrt\beta\sin\theta - 2(1-\beta)\arctan
    \bigl(\frac{1-\sqrt\beta}{1+\sqrt\beta}\tan\frac\theta2\bigr)}{2\pi\beta}$.
    """
    root, half = math.sqrt(ratio), angle / 2
    slope = math.atan2((1 - root) * math.sin(half), (1 + root) * math.cos(half))
    mass = (1 + ratio) * angle - 2 * root * math.sin(angle) - 2 * (1 - ratio) * slope
    return mass / (2 * math.pi * ratio)


def share_limit(rows: int, columns: int, rank: int) -> float:
    r"""The limit $(\theta - \sin\theta\cos\theta)/\pi$ of the share of a white residual that rank
    `rank` captures.

    Raises `ValueError` for a rank that the residual cannot have.
    """
    check_rank(rank, rows, columns)
    shorter, longer = sorted((rows, columns))
    if rank == shorter:
        return 1.0

    def excess(angle: float) -> float:
        return counted_share(angle, shorter / longer) - rank / shorter

    angle = float(optimize.brentq(excess, 0.0, math.pi))  # pyright: ignore[reportArgumentType]
    return (angle - math.sin(angle) * math.cos(angle)) / math.pi


def edge_share(rows: int, columns: int, rank: int) -> float:
    r"""$r(L^{-1/2} + S^{-1/2})^2$."""
    return rank * (rows**-0.5 + columns**-0.5) ** 2


class _TwoRanks(eqx.Module):
    """Singular values, and how many of them are counted as captured."""

    values: Float[Array, " count"]
    rank: int = eqx.field(static=True)

    @property
    def squares(self) -> Float[Array, " count"]:
        """Squares, over the largest: those of the values may leave float64."""
        return safe_divide(self.values, self.values[0]) ** 2


class _Matrix(AbstractAdversary):
    """Any 4 x 3 residual, corrected at rank two."""

    def start(self, *, key: PRNGKeyArray) -> Array:
        """The entries."""
        return normal(key, (4, 3))

    def play(self, free: Array) -> tuple[Residual, None]:
        """The residual, and its own singular values."""
        return Residual(free, 2, jnp.asarray(False), jnp.asarray(False)), None


_SHAPE: dict[str, Any] = {"rows": 40, "columns": 24}
_GAUSSIAN = {
    "rank one": ResidualSetting(**_SHAPE, rank=1),
    "rank four": ResidualSetting(**_SHAPE, rank=4),
    "a third of the rank": ResidualSetting(**_SHAPE, rank=8),
    "narrow": ResidualSetting(rows=200, columns=5, rank=1),
}
_ANY = {
    "rank one": _GAUSSIAN["rank one"],
    "rank four": _GAUSSIAN["rank four"],
    "quantised weights": ResidualSetting(**_SHAPE, rank=4, law=noise.QuantiserResidual(3)),
    "correlated outputs": ResidualSetting(**_SHAPE, rank=4, law=noise.Correlated(1.0)),
    "unequal rows": ResidualSetting(**_SHAPE, rank=4, law=noise.Heteroskedastic(1.0)),
    "Student t": ResidualSetting(**_SHAPE, rank=4, law=noise.StudentT(1.0)),
}
_LAWS = {
    "Gaussian": ResidualSetting(**_SHAPE, rank=2),
    "random signs": ResidualSetting(**_SHAPE, rank=2, law=noise.Rademacher(1.0)),
    "uniform": ResidualSetting(**_SHAPE, rank=2, law=noise.Uniform(1.0)),
}


class AbstractShare(AbstractStatement):
    r"""A bound on $\lVert R_{(r)}\rVert_F^2/\lVert R\rVert_F^2$, which has no unit."""

    needs = Residual
    control = _GAUSSIAN["narrow"]

    def estimate(self, instance: Residual) -> _TwoRanks:
        """The singular values, $r$ of which are captured."""
        return _TwoRanks(singular_values(jnp.asarray(instance.matrix)), instance.rank)

    def broken_estimate(self, instance: Residual) -> _TwoRanks:
        """Twice as many are captured."""
        return _TwoRanks(singular_values(jnp.asarray(instance.matrix)), 2 * instance.rank)

    def loss(self, instance: Residual, estimate: _TwoRanks) -> Float[Array, ""]:
        r"""$\lVert R_{(r)}\rVert_F^2/\lVert R\rVert_F^2$."""
        squares = estimate.squares
        return safe_divide(jnp.sum(squares[: estimate.rank]), jnp.sum(squares))

    def magnitude(self, instance: Residual) -> Float[Array, ""]:
        """One."""
        return jnp.ones(())


def _gaussian_hypothesis(instance: Residual) -> Hypothesis:
    return law_hypothesis("the residual is i.i.d. Gaussian", jnp.asarray(instance.gaussian))


def _white_hypothesis(instance: Residual) -> Hypothesis:
    name = "the residual has i.i.d. entries with four moments"
    return law_hypothesis(name, jnp.asarray(instance.white))


class AnyResidual(AbstractShare):
    r"""$\frac{\lVert R_{(r)}\rVert_F^2}{\lVert R\rVert_F^2} \le \frac{r\lVert R\rVert^2}{\lVert
    R\rVert_F^2}$, the rank of the correction over the stable rank.
    """

    kind = UPPER
    regimes = _ANY
    adversary = _Matrix()
    sharp = True

    def hypotheses(self, instance: Residual) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def formula(self, instance: Residual, estimate: _TwoRanks) -> Float[Array, ""]:
        r"""$r\lVert R\rVert^2/\lVert R\rVert_F^2$."""
        squares = estimate.squares
        return instance.rank * safe_divide(squares[0], jnp.sum(squares))


_EDGE_VALUES = Refuted(1.0, "fixed rank and large matrices: its values all tend to the edge")


class Expected(AbstractShare):
    r"""$\mathbb E\frac{\lVert R_{(r)}\rVert_F^2}{\lVert R\rVert_F^2} \le \frac1{LS}\sum_{i\le
    r}((\sqrt L + \sqrt{S-i+1})^2 - \frac12) \le r(L^{-1/2} + S^{-1/2})^2$ for i.i.d. Gaussian
    entries.
    """

    kind = UPPER_IN_EXPECTATION
    regimes = _GAUSSIAN
    refuted_below = _EDGE_VALUES

    def hypotheses(self, instance: Residual) -> tuple[Hypothesis, ...]:
        """i.i.d. Gaussian."""
        return (_gaussian_hypothesis(instance),)

    def formula(self, instance: Residual, estimate: _TwoRanks) -> Float[Array, ""]:
        r"""$\frac1{LS}\sum_{i\le r}((\sqrt L + \sqrt{S-i+1})^2 - \frac12)$."""
        shorter, longer = sorted(instance.matrix.shape)
        return jnp.sum(leading_squares(longer, shorter, instance.rank)) / (longer * shorter)


class Gaussian(AbstractShare):
    r"""$\frac{\lVert R_{(r)}\rVert_F^2}{\lVert R\rVert_F^2} \le \frac{b^2}{LS - 1/2}$ with
    probability $1-\delta$ for i.i.d. Gaussian entries, $b = \min\bigl(\sqrt r(\sqrt L + \sqrt S +
    \tau), \sqrt{\min(\ell_r, LS)} + \sqrt{2\ln(1/\delta)}\bigr)$.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _GAUSSIAN
    refuted_below = _EDGE_VALUES

    def hypotheses(self, instance: Residual) -> tuple[Hypothesis, ...]:
        """i.i.d. Gaussian."""
        return (_gaussian_hypothesis(instance),)

    def formula(self, instance: Residual, estimate: _TwoRanks) -> Float[Array, ""]:
        r"""$b^2/(LS - \frac12)$, $b$ by `leading_edge`."""
        rows, columns = instance.matrix.shape
        edge = leading_edge(rows, columns, instance.rank, self.failure_probability)
        return edge**2 / (rows * columns - 0.5)


class Edge(AbstractShare):
    r"""$\frac{\lVert R_{(r)}\rVert_F^2}{\lVert R\rVert_F^2} \le r(L^{-1/2} + S^{-1/2})^2$ in the
    limit of large matrices with i.i.d. entries of any law with four moments.
    """

    kind = ASYMPTOTIC_UPPER
    regimes = _LAWS
    growth = (1, 2, 4)
    trials_per_mean = 0.125
    refuted_below = _EDGE_VALUES

    def hypotheses(self, instance: Residual) -> tuple[Hypothesis, ...]:
        """i.i.d. entries."""
        return (_white_hypothesis(instance),)

    def formula(self, instance: Residual, estimate: _TwoRanks) -> Float[Array, ""]:
        r"""$r(L^{-1/2} + S^{-1/2})^2$."""
        rows, columns = instance.matrix.shape
        return jnp.asarray(edge_share(rows, columns, instance.rank))


class Limit(AbstractShare):
    r"""$\frac{\lVert R_{(r)}\rVert_F^2}{\lVert R\rVert_F^2} \to \frac{\theta -
    \sin\theta\cos\theta}\pi$ for i.i.d. entries of any law with four moments, $r$ in proportion to
    the sides, where the fraction $r/S$ of the Marchenko-Pastur law is above the angle $\theta$.
    """

    kind = ASYMPTOTIC_EQUALITY
    regimes = _LAWS
    growth = (1, 2, 4)
    trials_per_mean = 0.125

    def hypotheses(self, instance: Residual) -> tuple[Hypothesis, ...]:
        """i.i.d. entries."""
        return (_white_hypothesis(instance),)

    def formula(self, instance: Residual, estimate: _TwoRanks) -> Float[Array, ""]:
        r"""$(\theta - \sin\theta\cos\theta)/\pi$."""
        rows, columns = instance.matrix.shape
        return jnp.asarray(share_limit(rows, columns, instance.rank))


class WhiteResidual(AbstractTheorem):
    """Of a white residual, a low-rank correction captures on average at most twice its share of the
    parameters.
    """

    gaussian: Gaussian = Gaussian()
    expected: Expected = Expected()
    limit: Limit = Limit()
    edge: Edge = Edge()
    any_residual: AnyResidual = AnyResidual()


white_residual = WhiteResidual()
