r"""Recovery of a planted layer from Gaussian noise whose outputs, or samples, are not equally loud.

**Model.** $Y = \tilde XM + E$ with $\operatorname{rank}(\tilde XM) \le r$ and $E_{ij} =
a_ic_jg_{ij}$ for i.i.d. $g_{ij} \sim N(0, 1)$; the scales $a_i, c_j \ge 0$ are known, $c$ in
decreasing order and $A = \operatorname{diag}(a)$. Scales and $\tilde X$ do not depend on the
$g_{ij}$: scales that are measured are those of other rows. The estimator is the data-driven one,
$\hat M = \tilde X^+[PY]_r$, $P$ projects on the columns of $\tilde X$, $q$ is its rank; $d =
\min(q, K)$ and $k = \min(r, d-r)$.

**Claims** (proved in paper_notes/unequal_noise.md). With $\mu_i = \lVert PA\rVert(c_i^2 +
c_{i+1}^2 + \dots)^{1/2} + \lVert PA\rVert_Fc_i$, $L = \lVert PA\rVert c_1$, and $\ell_j$ the
smaller of $\lVert PA\rVert_F^2\lVert c\rVert^2$ and of the sum of $\mu_i^2 + \lVert PA\rVert^2
c_i^2$ over $i \le \min(j, d)$:

- `expectation`: $\mathbb E\lVert\tilde X(\hat M - M)\rVert_F^2 \le 4\ell_k + \ell_r$.
- `gaussian` (probability $1-\delta$), $t = \sqrt{2\ln(1/\delta)}$: $\lVert\tilde X(\hat M -
  M)\rVert_F$ is at most $\sqrt{4k+r}\,(\mu_1 + tL)$ and $\sqrt{4\ell_k + \ell_r} + \gamma tL$,
  $\gamma = \sqrt5$, or 1 where $k = 0$.

For samples of one scale, $a_i = 1$, $\lVert PA\rVert = 1$ and $\lVert PA\rVert_F = \sqrt q$. A loud
output counts once: $\mu_i$ is without the $i - 1$ loudest. Bounds for one scale (`planted_rank`)
know only the largest.
"""

import dataclasses
import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Key, namespace, of_either_key
from lowrank_theory._numerics import AnyArray, Number, check_same, safe_divide
from lowrank_theory.generators import noise, spectra, targets
from lowrank_theory.problems import Problem, Setting, not_stated
from lowrank_theory.recovery import ActivationWeighted, LowRank, recover
from lowrank_theory.theorems._quantities import (
    deviation,
    frobenius,
    independent_noise_hypothesis,
    law_hypothesis,
    least_squares,
    no_bias_hypothesis,
    output_error,
    planted_hypothesis,
    resolved_signal,
    resolved_space,
    singular_values,
    squared,
    squared_error_magnitude,
    target_rank_hypothesis,
)
from lowrank_theory.theorems._regimes import BASE, FULL_RANK, MISMATCHED, SINGULAR
from lowrank_theory.theorems._theorem import (
    UPPER_IN_EXPECTATION,
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)
from lowrank_theory.theorems.planted_rank import squared_count
from lowrank_theory.theorems.truncation_stability import hidden_rank


class UnequalProblem(eqx.Module):
    r"""A problem and the scales of its noise: `row_scales` $a$ (samples,), `column_scales` $c$
    (outputs,). `gaussian` says whether $E_{ij}/(a_ic_j)$ are i.i.d. $N(0, 1)$, and the truth of the
    problem whether noise and layer are independent, which no number shows.

    Raises `ValueError` for scales that do not fit.
    """

    problem: Problem
    row_scales: Float[AnyArray, " samples"]
    column_scales: Float[AnyArray, " outputs"]
    gaussian: Bool[AnyArray, ""] = eqx.field(default_factory=not_stated)

    def __check_init__(self) -> None:
        samples, outputs = self.problem.truth.noise.shape
        check_same("row_scales", self.row_scales.shape[0], "noise", samples, "samples")
        check_same("column_scales", self.column_scales.shape[0], "noise", outputs, "outputs")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.problem.sizes


class UnequalSetting(eqx.Module):
    """A setting whose noise has these scales, in the place of its own law."""

    setting: Setting
    row_scales: Float[AnyArray, " samples"]
    column_scales: Float[AnyArray, " outputs"]

    def __init__(
        self,
        setting: Setting,
        *,
        row_scales: ArrayLike | float = 1.0,
        column_scales: ArrayLike | float = 1.0,
    ) -> None:
        self.setting = dataclasses.replace(setting, noise=noise.Gaussian(1.0))
        samples, outputs = setting.samples, setting.outputs
        self.row_scales = _scales("row_scales", row_scales, samples)
        self.column_scales = _scales("column_scales", column_scales, outputs)

    @of_either_key
    def draw(self, *, key: Key) -> UnequalProblem:
        """A random instance, in float64."""
        xp, parts = namespace(key), self.setting.draw_parts(key=key)
        rows, columns = (xp.asarray(each) for each in (self.row_scales, self.column_scales))
        truth = dataclasses.replace(
            parts.truth,
            noise=parts.truth.noise * rows[:, None] * columns,
            noise_scale=xp.asarray(xp.max(rows) * xp.max(columns)),
            gaussian_noise=xp.asarray(False),
        )
        problem = dataclasses.replace(parts, truth=truth).instance()
        return UnequalProblem(problem, rows, columns, xp.asarray(True))


def _scales(name: str, given: ArrayLike | float, count: int) -> Float[np.ndarray, " count"]:
    scales = np.broadcast_to(np.asarray(given, float), (count,))
    if not np.all(scales >= 0):
        raise ValueError(f"`{name}` are standard deviations: none may be negative.")
    return scales


class Loudness(eqx.Module):
    r"""What the bounds need to know of the noise that a layer can express: `norm` $\lVert
    PA\rVert$ and `size` $\lVert PA\rVert_F$ of the samples, `column_scales` $c$, and $q$.

    Of samples of one scale $a$ these are $a$ and $a\sqrt q$. Call it inside `float64`.
    """

    norm: Number
    size: Number
    column_scales: Float[AnyArray, " outputs"]
    q: Number

    def expected(self, rank: int) -> Float[Array, ""]:
        r"""$\sqrt{4\ell_k + \ell_r}$."""
        loudest, means = self._means()
        _, scales = self._sorted()
        energy = (self.size * frobenius(scales)) ** 2

        def leading(count: Number) -> Array:
            places = jnp.arange(means.size)
            kept = places < jnp.minimum(count, jnp.minimum(self.q, means.size))
            return jnp.minimum(jnp.sum((means**2 + (self.norm * scales) ** 2) * kept), energy)

        return loudest * jnp.sqrt(4 * leading(self._hidden(rank)) + leading(rank))

    def likely(self, rank: int, failure_probability: Number) -> Float[Array, ""]:
        r"""The smaller of $\sqrt{4k+r}\,(\mu_1 + tL)$ and `expected` $+\,\gamma tL$."""
        loudest, means = self._means()
        moved = deviation(failure_probability) * self.norm * loudest
        count = squared_count(self.q, means.size, rank)
        edge = jnp.sqrt(count) * (loudest * means[0] + moved)
        slope = jnp.where(self._hidden(rank) > 0, math.sqrt(5), 1.0)
        return jnp.minimum(edge, self.expected(rank) + slope * moved)

    def _sorted(self) -> tuple[Float[Array, ""], Float[Array, " outputs"]]:
        """$c_1$, and all over it."""
        scales: Array = jnp.sort(jnp.asarray(self.column_scales, float))[::-1]
        return scales[0], jnp.asarray(safe_divide(scales, scales[0]))

    def _means(self) -> tuple[Float[Array, ""], Float[Array, " outputs"]]:
        r"""$c_1$, and the $\mu_i$ over it."""
        loudest, scales = self._sorted()
        rest = jnp.sqrt(jnp.cumsum(scales[::-1] ** 2)[::-1])
        return loudest, jnp.asarray(self.norm * rest + self.size * scales)

    def _hidden(self, rank: int) -> Float[Array, ""]:
        """$k$."""
        return hidden_rank(rank, jnp.minimum(jnp.asarray(self.q), self.column_scales.shape[0]))


_FADING = np.geomspace(1, 0.03, BASE["outputs"])
_ROWS = np.geomspace(1, 0.1, BASE["samples"])
_LOUD = np.where(np.arange(BASE["outputs"]) == 0, 10.0, 1.0)
_REGIMES = {
    "equal scales": UnequalSetting(Setting(**BASE)),
    "unequal outputs": UnequalSetting(Setting(**BASE), column_scales=_FADING),
    "both unequal": UnequalSetting(Setting(**BASE), row_scales=_ROWS, column_scales=_FADING),
    "one loud output": UnequalSetting(Setting(**BASE), column_scales=_LOUD),
    "near the detection threshold": UnequalSetting(
        Setting(
            **BASE,
            target=targets.ExactOutputRank(
                spectra.Given((1.3, 1.1, 0.9)), scale=1.2 * (24 * 20) ** 0.25
            ),
        ),
        column_scales=_FADING,
    ),
    "fewer samples than inputs": UnequalSetting(
        SINGULAR["fewer samples than inputs"], column_scales=_FADING
    ),
    "compressed activations": UnequalSetting(
        MISMATCHED["compressed activations"], column_scales=_FADING
    ),
    "full rank": UnequalSetting(FULL_RANK["full rank"], column_scales=np.geomspace(1, 0.1, 16)),
}
# At full rank the mean is the bound, and no sample could tell it from one above.
_TRUNCATED = {name: each for name, each in _REGIMES.items() if name != "full rank"}
_FULL_RANK = Refuted(1.0, "full rank: nothing is cut, and the mean of the noise is the bound")
_NOT_TRUNCATED = UnequalSetting(Setting(samples=64, inputs=64, outputs=64, rank=1))


class AbstractUnequal(AbstractStatement):
    r"""A bound on $\lVert\tilde X(\hat M - M)\rVert_F^2$, in the squared units of the outputs."""

    needs = UnequalProblem
    control = _NOT_TRUNCATED

    def hypotheses(self, instance: UnequalProblem) -> tuple[Hypothesis, ...]:
        """Planted rank, Gaussian noise of these scales that knows nothing of the layer."""
        problem = instance.problem
        scales = jnp.asarray(instance.row_scales)[:, None] * jnp.asarray(instance.column_scales)
        silent = jnp.all((scales > 0) | (jnp.asarray(problem.truth.noise) == 0))
        return (
            planted_hypothesis(problem),
            target_rank_hypothesis(problem),
            no_bias_hypothesis(problem),
            Hypothesis("no scale is negative", jnp.min(scales)),
            Hypothesis("there is no noise where its scale is zero", jnp.where(silent, 1.0, -1.0)),
            law_hypothesis(
                "the noise over its scales is i.i.d. Gaussian", jnp.asarray(instance.gaussian)
            ),
            independent_noise_hypothesis(problem.truth),
        )

    def estimate(self, instance: UnequalProblem) -> LowRank:
        """The data-driven recovery."""
        problem = instance.problem
        return recover(problem.observed, problem.rank, ActivationWeighted()).factors

    def broken_estimate(self, instance: UnequalProblem) -> Array:
        """Least squares that forgets to truncate."""
        return least_squares(instance.problem)

    def loss(self, instance: UnequalProblem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\tilde X(\hat M - M)\rVert_F^2$."""
        return output_error(estimate, instance.problem.truth) ** 2

    def magnitude(self, instance: UnequalProblem) -> Float[Array, ""]:
        """Of the square of outputs formed from factors, in their precision."""
        return squared_error_magnitude(instance.problem)


def loudness(instance: UnequalProblem) -> Loudness:
    r"""Of the noise that $\tilde X$ can express; call it inside `float64`."""
    space = resolved_space(instance.problem)
    values = singular_values(space.basis * jnp.asarray(instance.row_scales)[:, None])
    return Loudness(values[0], frobenius(values), instance.column_scales, space.dimension)


def _and_missed(problem: Problem, size: Float[Array, ""]) -> Float[Array, ""]:
    """The square, and what is not resolved."""
    _, missed = resolved_signal(problem)
    return squared(size) + missed**2


class Gaussian(AbstractUnequal):
    r"""$\lVert\tilde X(\hat M - M)\rVert_F^2 \le \min\bigl((4k+r)(\mu_1 + tL)^2, (\sqrt{4\ell_k +
    \ell_r} + \gamma tL)^2\bigr)$ with probability $1-\delta$ for Gaussian noise of scales $a_ic_j$.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _REGIMES
    refuted_below = _FULL_RANK

    def formula(self, instance: UnequalProblem, estimate: LowRank) -> Float[Array, ""]:
        """The smaller of both, and what is not resolved."""
        rank = instance.problem.rank
        likely = loudness(instance).likely(rank, self.failure_probability)
        return _and_missed(instance.problem, likely)


class Expectation(AbstractUnequal):
    r"""$\mathbb E\lVert\tilde X(\hat M - M)\rVert_F^2 \le 4\ell_k + \ell_r$ for Gaussian noise of
    scales $a_ic_j$.
    """

    kind = UPPER_IN_EXPECTATION
    regimes = _TRUNCATED
    refuted_below = _FULL_RANK

    def formula(self, instance: UnequalProblem, estimate: LowRank) -> Float[Array, ""]:
        r"""$4\ell_k + \ell_r$, and what is not resolved."""
        expected = loudness(instance).expected(instance.problem.rank)
        return _and_missed(instance.problem, expected)


class UnequalNoise(AbstractTheorem):
    """Noise that is louder in some outputs or samples costs a planted layer what is loud and no
    more: a loud output counts once.
    """

    gaussian: Gaussian = Gaussian()
    expectation: Expectation = Expectation()


unequal_noise = UnequalNoise()
