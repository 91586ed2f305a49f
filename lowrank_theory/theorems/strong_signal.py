r"""Far above the noise, a truncated decomposition errs by the noise in the tangent space, no more.

**Model.** $\operatorname{rank}A = r$, $B = A + Z$ with any $Z$, and $[B]_r$ the best rank-r
approximation of $B$. $P_TZ = P_UZ + ZP_V - P_UZP_V$ is the part of $Z$ in the tangent space at $A$
of the matrices of rank $r$, $P_U$ and $P_V$ the projectors on the columns and rows of $A$.
$Z_{(j)}$ stands for the $j$ largest singular values of $Z$; $d$ is the smaller side, $k = \min(r,
d-r)$.

**Claims** (proved in paper_notes/strong_signal.md):

- `tangent` (sure): $\lVert[B]_r - A - P_TZ\rVert_F \le \dfrac{2\lVert Z\rVert}{s_r(A)}
  \bigl(\lVert Z_{(2r)}\rVert_F^2 + \lVert Z_{(k)}\rVert_F^2\bigr)^{1/2}$, and $[B]_r = B$ for $r =
  d$. Of the right order; not attained.
- `gaussian` (probability $1-\delta$), $Y = \tilde XM + E$ with $\operatorname{rank}(\tilde XM) =
  r$ and i.i.d. $N(0, \sigma^2)$ noise; $q = \operatorname{rank}\tilde X$, $K$ outputs, $t =
  \sqrt{2\ln(2/\delta)}$ and $e$ the edge of `gaussian_noise.largest` at $\delta/2$: the error
  $\lVert\tilde X(\hat M - M)\rVert_F$ of $\hat M = \tilde X^+[PY]_r$ is at most
  $$\sigma\bigl(\sqrt{r(q+K-r)} + t\bigr) + \frac{2\sigma^2e^2\sqrt{\min(2r, d) +
  k}}{s_r(\tilde XM)}.$$

The first term of `gaussian` is the minimax floor (`minimax_floor`) with constant one: where the
signal is strong, truncation is optimal. Near the detection threshold `planted_rank.gaussian` is
better, and says something for every signal.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import Number, matmul, rounding_allowance, safe_divide
from lowrank_theory._subspaces import leading_right_vectors
from lowrank_theory.generators import noise, spectra, targets
from lowrank_theory.perturbations import Perturbation
from lowrank_theory.problems import Problem, Setting
from lowrank_theory.recovery import LowRank
from lowrank_theory.theorems._quantities import (
    coarseness,
    deviation,
    frobenius,
    gaussian_noise_hypotheses,
    no_bias_hypothesis,
    planted_hypothesis,
    resolved_rank,
    resolved_signal,
    rounded_outputs,
    singular_values,
    target_rank_hypothesis,
    total_norm,
)
from lowrank_theory.theorems._regimes import (
    BASE,
    LOW_RANK_PERTURBED,
    MISMATCHED,
    SINGULAR,
    WELL_POSED,
    perturbed,
)
from lowrank_theory.theorems._theorem import (
    UPPER_WITH_PROBABILITY,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)
from lowrank_theory.theorems.gaussian_noise import upper_edge
from lowrank_theory.theorems.planted_rank import AbstractSquaredLoss
from lowrank_theory.theorems.singular_subspaces import positive_hypothesis
from lowrank_theory.theorems.truncation_stability import (
    AbstractPerturbed,
    KnownTruncation,
    hidden_rank,
    low_rank_hypothesis,
)

_WEAK = [0.1 * 0.7**i for i in range(9)]
_PERTURBED = {name: regime for name, regime in LOW_RANK_PERTURBED.items() if name != "rank one"} | {
    "rank one": perturbed([5], [1] * 9, rank=1),
    "aligned noise": perturbed([3, 2, 1], _WEAK, 1.0),
    "half aligned noise": perturbed([3, 2, 1], _WEAK, 0.5),
}
_STRONG = targets.ExactOutputRank(scale=200.0)
_GAUSSIAN = {
    "wide": Setting(samples=60, inputs=40, outputs=10, rank=3, target=_STRONG),
    "rank one": Setting(**{**BASE, "rank": 1}, target=_STRONG),
    "decaying": Setting(**BASE, target=targets.ExactOutputRank(spectra.Exponential(1.0), 200.0)),
    "weak": WELL_POSED["square"],
    "full rank": Setting(samples=40, inputs=12, outputs=16, rank=12, target=_STRONG),
    "fewer samples than inputs": SINGULAR["fewer samples than inputs"],
    **MISMATCHED,
}


def tangent_part(
    matrix: Float[Array, "rows columns"], noise: Float[Array, "rows columns"], rank: int
) -> Float[Array, "rows columns"]:
    r"""$P_UZ + ZP_V - P_UZP_V$, for the leading singular subspaces of the matrix."""
    left, _ = leading_right_vectors(matrix.T, rank)
    right, _ = leading_right_vectors(matrix, rank)
    outside = noise - matmul(left, left.T, noise)
    return noise - (outside - matmul(outside, right, right.T))


class Tangent(AbstractPerturbed):
    r"""$\lVert[A+Z]_r - A - P_TZ\rVert_F \le (2\lVert Z\rVert/s_r(A))(\lVert Z_{(2r)}\rVert_F^2 +
    \lVert Z_{(k)}\rVert_F^2)^{1/2}$ for $\operatorname{rank}A = r$, and zero for $r = d$.
    """

    regimes = _PERTURBED
    adversary = KnownTruncation()
    refuted_below = Refuted(math.sqrt(2 / 3), "the signal diag(2, 0) with the noise diag(−1, 1)")

    def hypotheses(self, instance: Perturbation) -> tuple[Hypothesis, ...]:
        """The rank is r: no more, and no less, beyond rounding."""
        least = singular_values(jnp.asarray(instance.matrix))[instance.rank - 1]
        name = "the matrix has rank at least r"
        return (low_rank_hypothesis(instance), positive_hypothesis(name, instance, least))

    def formula(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        r"""$2\lVert Z\rVert(\lVert Z_{(2r)}\rVert_F^2 + \lVert Z_{(k)}\rVert_F^2)^{1/2}/s_r(A)$."""
        rank, shorter = instance.rank, min(instance.sizes)
        if rank == shorter:
            return jnp.zeros(())
        noise = singular_values(jnp.asarray(instance.noise))
        least = singular_values(jnp.asarray(instance.matrix))[rank - 1]
        parts = jnp.hypot(
            frobenius(noise[: 2 * rank]), frobenius(noise[: min(rank, shorter - rank)])
        )
        return 2 * safe_divide(noise[0], least) * parts

    def loss(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert[A+Z]_r - A - P_TZ\rVert_F$."""
        matrix = jnp.asarray(instance.matrix)
        first_order = tangent_part(matrix, jnp.asarray(instance.noise), instance.rank)
        return frobenius(estimate - matrix - first_order)

    def magnitude(self, instance: Perturbation) -> Float[Array, ""]:
        r"""$\lVert A\rVert_F + \lVert Z\rVert_F$, and what rounding turns the tangent space by,
        $\lVert A\rVert_F/s_r(A)$, times the noise.
        """
        values = singular_values(jnp.asarray(instance.matrix))
        turned = safe_divide(frobenius(values), values[instance.rank - 1])
        return total_norm(instance) + turned * frobenius(instance.noise)


def likely_error(
    q: Number,
    outputs: Number,
    rank: int,
    noise_scale: Number,
    strength: Number,
    failure_probability: Number,
) -> Float[Array, ""]:
    r"""$\sigma(\sqrt{r(q+K-r)} + t) + 2\sigma^2e^2\sqrt{\min(2r, d) + k}/s$ with $s$ the `strength`
    $s_r(\tilde XM)$, above $\lVert\tilde X(\hat M - M)\rVert_F$ with probability $1-\delta$; call
    it inside `float64`.
    """
    shorter, half = jnp.minimum(q, outputs), failure_probability / 2
    hidden = hidden_rank(rank, shorter)
    count = jnp.where(hidden > 0, jnp.minimum(2 * rank, shorter) + hidden, 0)
    dimension = jnp.maximum(rank * (q + outputs - rank), 0)
    scale = jnp.asarray(noise_scale)
    first = scale * (jnp.sqrt(dimension) + deviation(half))
    edge = scale * upper_edge(q, outputs, half)
    return first + 2 * safe_divide(jnp.sqrt(count) * edge**2, jnp.asarray(strength))


class Gaussian(AbstractSquaredLoss):
    r"""$\lVert\tilde X(\hat M - M)\rVert_F \le \sigma(\sqrt{r(q+K-r)} + t) +
    2\sigma^2e^2\sqrt{\min(2r, d) + k}/s_r(\tilde XM)$ with probability $1-\delta$ for i.i.d.
    Gaussian noise. Squared.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _GAUSSIAN
    control = Setting(
        samples=64, inputs=64, outputs=64, rank=1, target=_STRONG, noise=noise.Gaussian(1.0)
    )
    refuted_below = Refuted(1.0, "strong signals in large layers: the noise in the tangent space")

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """Clean outputs of rank r exactly, and Gaussian noise."""
        scale = coarseness(instance.observed) * rounded_outputs(instance)
        sizes = instance.truth.layer_inputs.shape
        least, _ = _strength(instance)
        margin = safe_divide(least - rounding_allowance(scale, *sizes), scale)
        margin = margin - jnp.where(scale > 0, 0, 1)
        return (
            planted_hypothesis(instance),
            target_rank_hypothesis(instance),
            Hypothesis("the clean outputs have rank at least r", margin),
            no_bias_hypothesis(instance),
            *gaussian_noise_hypotheses(instance.truth),
        )

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        """The square of `likely_error`, and what is not resolved."""
        least, missed = _strength(instance)
        scale = jnp.asarray(instance.truth.noise_scale)
        q, outputs = resolved_rank(instance), instance.observed.shape[1]
        delta = self.failure_probability
        return likely_error(q, outputs, instance.rank, scale, least, delta) ** 2 + missed**2


def _strength(problem: Problem) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""$s_r(P\tilde XM)$, and what is not resolved."""
    values, missed = resolved_signal(problem)
    return values[problem.rank - 1] if problem.rank <= values.size else jnp.zeros(()), missed


class StrongSignal(AbstractTheorem):
    """Far above the noise, truncation errs by the noise in the tangent space alone, as little as
    any estimator can.
    """

    tangent: Tangent = Tangent()
    gaussian: Gaussian = Gaussian()


strong_signal = StrongSignal()
