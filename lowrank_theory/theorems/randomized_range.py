r"""How well a random sketch finds the range of a matrix.

**Model.** A fixed matrix $A$ with singular values $s_1 \ge s_2 \ge \dots$, a sketch $\Omega$ with
$\ell = r + p$ columns, and $q \ge 0$ power iterations. $Q$ is an orthonormal basis of the columns
of $(AA^\top)^qA\Omega$; $A$ is approximated by $QQ^\top A$, of rank $\ell$, or by $Q[Q^\top A]_r$,
of rank r. In the singular vectors of $A$, $\Omega$ has r leading rows $\Omega_1$ and others
$\Omega_2$; $\Sigma_1, \Sigma_2$ hold the r leading singular values and the others. Write
$\mathrm{tail}_r^2 = \sum_{j>r}s_j^2$.

**Claims** (proved in paper_notes/randomized_range.md; after Halko, Martinsson and Tropp 2011,
Theorems 10.5 to 10.8, and Tropp and Webber 2023). Sure, for every sketch:

- `structural`: $\lVert A - Q[Q^\top A]_r\rVert_F^2 \le \mathrm{tail}_r^2 +
  \lVert\Sigma_2^{2q+1}\Omega_2\Omega_1^+\Sigma_1^{-2q}\rVert_F^2$.
- `truncation`: $\lVert A - Q[Q^\top A]_r\rVert_F^2 \le \mathrm{tail}_r^2 + \lVert A -
  QQ^\top A\rVert_F^2$.
- `truncation_spectral`: $\lVert A - Q[Q^\top A]_r\rVert^2 \le s_{r+1}^2 + \lVert A -
  QQ^\top A\rVert^2$.

For a Gaussian sketch, with $p \ge 2$:

- `frobenius`: $\mathbb E\lVert A - QQ^\top A\rVert_F^2 \le \min_{k\le\ell-2}
  \bigl(\mathrm{tail}_k^2 + \tfrac1{\ell-k-1}\sum_{i\le k<j}s_j^2(s_j/s_i)^{4q}\bigr)$; for q = 0
  that is $\min_k\bigl(1 + \tfrac{k}{\ell-k-1}\bigr)\mathrm{tail}_k^2$.
- `truncated`: $\mathbb E\lVert A - Q[Q^\top A]_r\rVert_F^2 \le \mathrm{tail}_r^2 +
  \tfrac1{p-1}\sum_{i\le r<j}s_j^2(s_j/s_i)^{4q}$: nothing is lost by truncating, and each power
  iteration multiplies the excess by ratios to the fourth power.
- `spectral`: $(\mathbb E\lVert A - QQ^\top A\rVert)^{2q+1} \le \bigl(1 +
  \sqrt{\tfrac{r}{p-1}}\bigr)s_{r+1}^{2q+1} + c\,\bigl(\sum_{j>r}s_j^{4q+2}\bigr)^{1/2}$, with $c$
  = `mean_inverse_norm(r, p)`, below $e\sqrt{r+p}/p$ and below $\sqrt{r/(p-1)}$.
- `frobenius_tail` and `spectral_tail`, probability $1-\delta$, for any $p \ge 0$: the same two with
  the deviations of $\lVert\Omega_1^+\rVert$ and of $\Omega_2$ added, each with its share
  $\delta/2$; or, for $p \ge 2$ and if that is less, that of $\lVert\Omega_1^+\rVert_F$ too, each
  with its share $\delta/3$.

Afterwards, for any subspace $Q$ of the row space that does not depend on the Gaussian probes, and
$M = A^\top A$:

- `a_posteriori`, probability $1-\delta$ over the probes: $\sum_{i\le r}\lambda_i(M) -
  \operatorname{tr}V^\top MV$, the excess squared error of the best directions V within $Q$, is at
  most what `recovery._a_posteriori` computes from products with $M$.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank_theory._a_posteriori import Ritz, leading_sum_bound, outside_norm_bound, ritz
from lowrank_theory._numerics import matmul, relative_rank_cutoff, rounding_allowance, safe_divide
from lowrank_theory.theorems._quantities import (
    frobenius,
    law_hypothesis,
    singular_values,
    squared,
)
from lowrank_theory.theorems._sketches import (
    OVERSAMPLING,
    RANK,
    SIZE,
    Probed,
    ProbeSetting,
    SketchAdversary,
    Sketched,
    SketchSetting,
    mean_inverse_norm,
    outside,
    outside_truncated,
    parts,
    powers,
    range_basis,
    sketch_tails,
)
from lowrank_theory.theorems._theorem import (
    UPPER,
    UPPER_IN_EXPECTATION,
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)

_INDEX = np.arange(1.0, SIZE + 1)


def _setting(values: np.ndarray, power_iterations: int = 0) -> SketchSetting:
    return SketchSetting(values, RANK, OVERSAMPLING, power_iterations)


_SLOW, _STEEP = _INDEX**-0.5, np.exp(-0.5 * (_INDEX - 1))
_REGIMES = {
    "slow power law": _setting(_SLOW),
    "power law": _setting(1 / _INDEX),
    "exponential decay": _setting(_STEEP),
    "ties": _setting(np.ones(SIZE)),
    "strong signal in noise": _setting(np.where(_INDEX <= RANK, 1e3, 1.0)),
    "gap beyond the rank": _setting(np.where(_INDEX <= RANK + 1, 1.0, 0.01)),
    "exactly low rank": _setting(np.where(_INDEX <= RANK, 1.0, 0.0)),
    "slow power law, one power iteration": _setting(_SLOW, 1),
    "exponential decay, two power iterations": _setting(_STEEP, 2),
    "ties, two power iterations": _setting(np.ones(SIZE), 2),
}
_TAIL_REGIMES = {**_REGIMES, "no oversampling": SketchSetting(1 / _INDEX, RANK, 0)}


class AbstractSketchStatement(AbstractStatement):
    r"""A statement about the range found from a sketch, and what is left outside it."""

    needs = Sketched
    regimes = _REGIMES
    control = _setting(10.0 ** -(_INDEX - 1))

    def estimate(self, instance: Sketched) -> Array:
        """The range found from the sketch."""
        return range_basis(instance)

    def broken_estimate(self, instance: Sketched) -> Array:
        """The range found from the first column of the sketch alone."""
        narrow = matmul(instance.matrix, jnp.asarray(instance.sketch, float)[:, :1])
        return safe_divide(narrow, jnp.linalg.norm(narrow))


class AbstractSquared(AbstractSketchStatement):
    """A statement about a squared norm."""

    def magnitude(self, instance: Sketched) -> Float[Array, ""]:
        r"""$\lVert A\rVert_F^2$."""
        return squared(frobenius(instance.matrix))


class AbstractTruncated(AbstractSquared):
    r"""A statement about $\lVert A - Q[Q^\top A]_r\rVert_F^2$."""

    def loss(self, instance: Sketched, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert A - Q[Q^\top A]_r\rVert_F^2$."""
        return jnp.sum(outside_truncated(instance, estimate) ** 2)


class AbstractForEveryRange(AbstractSketchStatement):
    """A statement without hypotheses."""

    def hypotheses(self, instance: Sketched) -> tuple[Hypothesis, ...]:
        """None."""
        return ()


class AbstractGaussian(AbstractSketchStatement):
    """A statement about a Gaussian sketch, wide enough."""

    def hypotheses(self, instance: Sketched) -> tuple[Hypothesis, ...]:
        """A Gaussian sketch, wide enough."""
        return (*_gaussian(instance), _oversampled(instance))


class AbstractSpectral(AbstractSketchStatement):
    r"""A statement about $\lVert A - QQ^\top A\rVert$, the operator norm."""

    def loss(self, instance: Sketched, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert A - QQ^\top A\rVert$."""
        return singular_values(outside(instance, estimate))[0]

    def magnitude(self, instance: Sketched) -> Float[Array, ""]:
        r"""$\lVert A\rVert_F$."""
        return frobenius(instance.matrix)


def _gaussian(instance: Sketched) -> tuple[Hypothesis, ...]:
    return (
        law_hypothesis("the sketch is i.i.d. Gaussian", instance.gaussian),
        law_hypothesis("the sketch does not depend on the matrix", instance.independent),
    )


def _oversampled(instance: Sketched) -> Hypothesis:
    name = "the sketch has at least two columns more than the rank"
    return Hypothesis(name, float(instance.oversampling - 2))


def _of_rank(instance: Sketched) -> Hypothesis:
    values = instance.values
    last = safe_divide(values[instance.rank - 1], values[0])
    needed = jnp.asarray(instance.power_iterations) > 0
    name = "with power iterations, the matrix has at least the rank asked for"
    return Hypothesis(name, jnp.where(needed & (last == 0), -1.0, last))


def _tail(values: Array, rank: int) -> Array:
    return jnp.sum(values[rank:] ** 2)


class Structural(AbstractTruncated):
    r"""$\lVert A - Q[Q^\top A]_r\rVert_F^2 \le \sum_{j>r}s_j^2 +
    \lVert\Sigma_2^{2q+1}\Omega_2\Omega_1^+\Sigma_1^{-2q}\rVert_F^2$, for every sketch. Squared.
    """

    kind = UPPER
    adversary = SketchAdversary(size=3, rank=1, oversampling=0)
    sharp = True

    def hypotheses(self, instance: Sketched) -> tuple[Hypothesis, ...]:
        r"""$\Omega_1$ of full rank; with power iterations, $A$ of rank at least r."""
        values = singular_values(parts(instance)[0])
        smallest = safe_divide(values[-1], values[0])
        margin = smallest - relative_rank_cutoff(instance.sketch.shape)
        name = "the sketch meets every leading singular vector"
        return (Hypothesis(name, margin), _of_rank(instance))

    def formula(self, instance: Sketched, estimate: Array) -> Float[Array, ""]:
        r"""$\sum_{j>r}s_j^2 + \lVert\Sigma_2^{2q+1}\Omega_2\Omega_1^+\Sigma_1^{-2q}\rVert_F^2$."""
        first, second = parts(instance)
        leading, others = powers(instance)
        basis, triangle = jnp.linalg.qr(first.T)
        inverse = jax.scipy.linalg.solve_triangular(triangle, basis.T).T
        missed = matmul(others[:, None] * second[: others.size], inverse * leading)
        return _tail(instance.values, instance.rank) + jnp.sum(missed**2)


class Truncation(AbstractTruncated, AbstractForEveryRange):
    r"""$\lVert A - Q[Q^\top A]_r\rVert_F^2 \le \sum_{j>r}s_j^2 + \lVert A - QQ^\top
    A\rVert_F^2$, for every range. Squared.
    """

    kind = UPPER
    adversary = SketchAdversary(size=3, rank=1, oversampling=1)
    sharp = True

    def formula(self, instance: Sketched, estimate: Array) -> Float[Array, ""]:
        r"""$\sum_{j>r}s_j^2 + \lVert A - QQ^\top A\rVert_F^2$."""
        return _tail(instance.values, instance.rank) + jnp.sum(outside(instance, estimate) ** 2)


class TruncationSpectral(AbstractSquared, AbstractForEveryRange):
    r"""$\lVert A - Q[Q^\top A]_r\rVert^2 \le s_{r+1}^2 + \lVert A - QQ^\top A\rVert^2$, for every
    range. Squared.
    """

    kind = UPPER
    adversary = SketchAdversary(size=4, rank=1, oversampling=1)
    sharp = True

    def formula(self, instance: Sketched, estimate: Array) -> Float[Array, ""]:
        r"""$s_{r+1}^2 + \lVert A - QQ^\top A\rVert^2$."""
        first_missed = jnp.max(instance.values[instance.rank :], initial=0.0)
        return first_missed**2 + singular_values(outside(instance, estimate))[0] ** 2

    def loss(self, instance: Sketched, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert A - Q[Q^\top A]_r\rVert^2$."""
        return singular_values(outside_truncated(instance, estimate))[0] ** 2


def _expected(instance: Sketched, kept: int) -> Array:
    r"""$\mathrm{tail}_k^2 + \frac1{\ell-k-1}\sum_{i\le k<j}s_j^2(s_j/s_i)^{4q}$."""
    values = instance.values
    dropped = values[kept:]
    ratios = safe_divide(dropped[:, None], values[:kept])
    fourth = ratios ** (4.0 * jnp.asarray(instance.power_iterations))
    excess = jnp.sum(dropped[:, None] ** 2 * fourth)
    return _tail(values, kept) + excess / (instance.sketch.shape[1] - kept - 1)


_MUCH_OVERSAMPLING = Refuted(1.0, "much oversampling of a long tail: both sides tend to it")
_MANY_POWERS = Refuted(
    1.0,
    "many power iterations on equal values: both sides tend to the next of them",
)


class Frobenius(AbstractSquared, AbstractGaussian):
    r"""$\mathbb E\lVert A - QQ^\top A\rVert_F^2 \le \min_{k\le\ell-2}\bigl(\mathrm{tail}_k^2 +
    \tfrac1{\ell-k-1}\sum_{i\le k<j}s_j^2(s_j/s_i)^{4q}\bigr)$. Squared.
    """

    kind = UPPER_IN_EXPECTATION
    refuted_below = _MUCH_OVERSAMPLING

    def formula(self, instance: Sketched, estimate: Array) -> Float[Array, ""]:
        """The smallest over what may be kept; infinite for a sketch of one column."""
        most = min(instance.sketch.shape[1] - 2, instance.values.size)
        expected = [_expected(instance, kept) for kept in range(most + 1)]
        return jnp.min(jnp.array(expected), initial=jnp.inf)

    def loss(self, instance: Sketched, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert A - QQ^\top A\rVert_F^2$."""
        return jnp.sum(outside(instance, estimate) ** 2)


class Truncated(AbstractTruncated, AbstractGaussian):
    r"""$\mathbb E\lVert A - Q[Q^\top A]_r\rVert_F^2 \le \sum_{j>r}s_j^2 +
    \tfrac1{p-1}\sum_{i\le r<j}s_j^2(s_j/s_i)^{4q}$. Squared.
    """

    kind = UPPER_IN_EXPECTATION
    refuted_below = _MUCH_OVERSAMPLING

    def formula(self, instance: Sketched, estimate: Array) -> Float[Array, ""]:
        r"""$\sum_{j>r}s_j^2 + \tfrac1{p-1}\sum_{i\le r<j}s_j^2(s_j/s_i)^{4q}$."""
        return _expected(instance, instance.rank)


def _root(instance: Sketched, factor: Array | float, spread: Array | float) -> Array:
    r"""$\bigl(a\,s_{r+1}^{2q+1} + b\,(\sum_{j>r}s_j^{4q+2})^{1/2}\bigr)^{1/(2q+1)}$."""
    dropped = instance.values[instance.rank :]
    unit = jnp.max(dropped, initial=0.0)
    power = 2.0 * jnp.asarray(instance.power_iterations) + 1
    total = jnp.linalg.norm(safe_divide(dropped, unit) ** power)
    return unit * (factor + spread * total) ** (1 / power)


class Spectral(AbstractSpectral, AbstractGaussian):
    r"""$\mathbb E\lVert A - QQ^\top A\rVert \le \Bigl(\bigl(1 +
    \sqrt{\tfrac r{p-1}}\bigr)s_{r+1}^{2q+1} + c\,\bigl(\sum_{j>r}s_j^{4q+2}\bigr)^{1/2}
    \Bigr)^{1/(2q+1)}$. The operator norm, not squared.
    """

    kind = UPPER_IN_EXPECTATION
    refuted_below = _MANY_POWERS

    def formula(self, instance: Sketched, estimate: Array) -> Float[Array, ""]:
        """The bound, by `mean_inverse_norm`."""
        rank, p = instance.rank, max(instance.oversampling, 2)
        return _root(instance, 1 + math.sqrt(rank / (p - 1)), mean_inverse_norm(rank, p))


class FrobeniusTail(AbstractTruncated):
    r"""$\lVert A - Q[Q^\top A]_r\rVert_F^2 \le \sum_{j>r}s_j^2 + \bigl(w\,
    \lVert\Sigma_1^{-2q}\rVert_F\lVert\Sigma_2^{2q+1}\rVert_F + u\,t'\,C\,s_r^{-2q}s_{r+1}^{2q+1}
    \bigr)^2$ with probability $1-\delta$, where $w = t'C$ and $t'^{p+1} = e^{u^2/2} = 2/\delta$, or
    $w = t\sqrt{\mu_p}$ and $t^p = t'^{p+1} = e^{u^2/2} = 3/\delta$ for $p \ge 2$. Squared.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _TAIL_REGIMES
    refuted_below = _MUCH_OVERSAMPLING

    def hypotheses(self, instance: Sketched) -> tuple[Hypothesis, ...]:
        """A Gaussian sketch; with power iterations, $A$ of rank at least r."""
        return (*_gaussian(instance), _of_rank(instance))

    def formula(self, instance: Sketched, estimate: Array) -> Float[Array, ""]:
        """The smaller of the bounds, by `sketch_tails`."""
        leading, others = powers(instance)
        whole = jnp.linalg.norm(leading) * jnp.linalg.norm(others)
        first = jnp.max(others, initial=0.0)
        rank, p = instance.rank, instance.oversampling
        missed = [
            tails.whole * whole + tails.largest * tails.moved * first
            for tails in sketch_tails(rank, p, self.failure_probability)
        ]
        return _tail(instance.values, rank) + jnp.min(jnp.stack(missed)) ** 2


class SpectralTail(AbstractSpectral):
    r"""$\lVert A - QQ^\top A\rVert \le \Bigl(\bigl(1 + w\sqrt r + u\,t'\,C\bigr)s_{r+1}^{2q+1} +
    t'\,C\,\bigl(\sum_{j>r}s_j^{4q+2}\bigr)^{1/2}\Bigr)^{1/(2q+1)}$ with probability $1-\delta$,
    with the same choices of $w, t', u$. The operator norm, not squared.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _TAIL_REGIMES
    refuted_below = _MANY_POWERS

    def hypotheses(self, instance: Sketched) -> tuple[Hypothesis, ...]:
        """A Gaussian sketch."""
        return _gaussian(instance)

    def formula(self, instance: Sketched, estimate: Array) -> Float[Array, ""]:
        """The smaller of the bounds, by `sketch_tails`."""
        rank, p = instance.rank, instance.oversampling
        bounds = [
            _root(
                instance,
                1 + tails.whole * math.sqrt(rank) + tails.moved * tails.largest,
                tails.largest,
            )
            for tails in sketch_tails(rank, p, self.failure_probability)
        ]
        return jnp.min(jnp.stack(bounds))


def _probed(
    values: np.ndarray, missed: int = 0, power_iterations: int = 1, **more: int
) -> ProbeSetting:
    return ProbeSetting(
        values, RANK, RANK + 2, power_iterations=power_iterations, missed=missed, **more
    )


_CLUSTER = np.where(_INDEX < RANK, 3.0, np.where(_INDEX < RANK + 4, 1.0, 0.3))
_PROBED_REGIMES = {
    "slow power law": _probed(_SLOW),
    "power law": _probed(1 / _INDEX),
    "exponential decay": _probed(_STEEP),
    "ties": _probed(np.ones(SIZE)),
    "cluster across the rank": _probed(_CLUSTER),
    "staircase": _probed(2.0 ** -((_INDEX - 1) // 3)),
    "exactly low rank": _probed(np.where(_INDEX <= RANK, 1.0, 0.0)),
    "tail of zeros": _probed(np.where(_INDEX <= RANK + 4, 1 / _INDEX, 0.0)),
    "converged": _probed(_STEEP, power_iterations=6),
    "first direction missed": _probed(1 / _INDEX, missed=1),
    "first direction missed, far above": _probed(
        np.where(_INDEX <= 1, 1e3, 1.0), missed=1, degree=8
    ),
    "leading directions missed, ties below": _probed(
        np.where(_INDEX <= RANK, 1.01, 1.0), missed=RANK
    ),
    "many probes, sharp filter": _probed(_SLOW, missed=1, probes=12, degree=10),
}


class APosteriori(AbstractStatement):
    r"""$\sum_{i\le r}\lambda_i(M) - \operatorname{tr}V^\top MV \le \sum_{i\le r}
    \lambda_i\begin{pmatrix}H + R^\top R/\varepsilon & 0\\ 0 & (\theta+\varepsilon)I\end{pmatrix} -
    \sum_{i\le r}\lambda_i(H)$ with probability $1-\delta$ over the probes, for every subspace that
    does not depend on them. Squared.
    """

    kind = UPPER_WITH_PROBABILITY
    needs = Probed
    regimes = _PROBED_REGIMES
    control = _probed(_STEEP, power_iterations=6, probes=12, degree=10)

    def hypotheses(self, instance: Probed) -> tuple[Hypothesis, ...]:
        """Gaussian probes that know nothing of the subspace."""
        name = "the probes are i.i.d. Gaussian and independent of the subspace"
        return (law_hypothesis(name, instance.independent),)

    def estimate(self, instance: Probed) -> Ritz:
        """The Ritz vectors of the subspace, and their residuals."""
        basis = jnp.linalg.qr(jnp.asarray(instance.directions, float))[0]
        return ritz(_moments(instance), basis)[0]

    def broken_estimate(self, instance: Probed) -> Ritz:
        """The same, with the least of the Ritz vectors in the place of the best."""
        found = self.estimate(instance)
        return Ritz(found.vectors[:, ::-1], found.values, found.residuals)

    def formula(self, instance: Probed, estimate: Ritz) -> Float[Array, ""]:
        """The bound, by `outside_norm_bound` and `leading_sum_bound`; not negative."""
        allowance = rounding_allowance(self.magnitude(instance), *instance.sizes)
        probes = jnp.asarray(instance.probes, float)
        outside = outside_norm_bound(
            _moments(instance),
            estimate.vectors,
            probes,
            jnp.maximum(estimate.values[-1], allowance),
            jnp.maximum(jnp.asarray(instance.degree), 1),
            self.failure_probability,
        )
        rank = instance.rank
        least = jnp.sum(estimate.values[:rank])
        return jnp.maximum(leading_sum_bound(estimate, outside, rank) - least, 0)

    def loss(self, instance: Probed, estimate: Ritz) -> Float[Array, ""]:
        r"""$\sum_{i\le r}\lambda_i(M) - \operatorname{tr}V^\top MV$."""
        matrix = jnp.asarray(instance.matrix, float)
        captured = matmul(matrix, estimate.vectors[:, : instance.rank])
        return jnp.sum(singular_values(matrix)[: instance.rank] ** 2) - jnp.sum(captured**2)

    def magnitude(self, instance: Probed) -> Float[Array, ""]:
        r"""$\lVert A\rVert_F^2$."""
        return squared(frobenius(instance.matrix))


def _moments(instance: Probed) -> Callable[[Array], Array]:
    matrix = jnp.asarray(instance.matrix, float)
    return lambda columns: matmul(matrix.T, matmul(matrix, columns))


class RandomizedRange(AbstractTheorem):
    """How near a Gaussian sketch comes to the best low-rank approximation: surely, on average (each
    power iteration multiplies the excess by ratios of singular values to the fourth power), and
    nearly always; and afterwards, what fresh probes prove of any subspace.
    """

    structural: Structural = Structural()
    truncation: Truncation = Truncation()
    truncation_spectral: TruncationSpectral = TruncationSpectral()
    frobenius: Frobenius = Frobenius()
    truncated: Truncated = Truncated()
    spectral: Spectral = Spectral()
    frobenius_tail: FrobeniusTail = FrobeniusTail()
    spectral_tail: SpectralTail = SpectralTail()
    a_posteriori: APosteriori = APosteriori()


randomized_range = RandomizedRange()
