r"""Recovery behind a ReLU: noise before it.

**Model.** $Y = \rho(\tilde XM + \sigma G)$ with $\rho = \mathrm{relu}$, $G_{ij}$ i.i.d. $N(0, 1)$
and independent of $\tilde X$ and $M$, $F^* = \tilde XM$ of rank $r$, $|F^*_{ij}| \le \alpha$; $P$
projects on the columns of $\tilde X$, of dimension $q$, and there are $K$ outputs. With the
censored likelihood (Tobin 1958)

$$ f(F) = \sum_{Y_{ij} > 0} \tfrac12 (Y_{ij} - F_{ij})^2
        - \sum_{Y_{ij} = 0} \sigma^2 \ln\Phi(-F_{ij}/\sigma) $$

let $S = -\nabla f(F^*)$ be the score, and $\kappa = h'(-\alpha/\sigma)$ its least curvature on the
box, $h(x) = \varphi(x)/\Phi(-x)$. $\alpha$ = `box` times $\sigma$ throughout.

**Claims** (not squared; proved in paper_notes/relu_noise_before.md; $t = \sqrt{2\ln(1/\delta)}$,
and $\tau \le t$ is that of `gaussian_noise.largest`):

- `curvature` (sure): $\langle\nabla f(F) - \nabla f(F^*), F - F^*\rangle \ge \kappa\lVert F -
  F^*\rVert_F^2$ on the box.
- `score_expectation`: $\mathbb E\lVert PS\rVert \le \sigma(\sqrt q + \sqrt K)$, and `score`
  (probability $1-\delta$): $\lVert PS\rVert \le \sigma(\sqrt q + \sqrt K + \tau)$.
- `likely` (sure): every $\hat F$ of rank $r$ in the box, with $e = \max(0, f(\hat F) - f(F^*))$,
  has $\lVert\hat F - F^*\rVert_F \le \bigl(b + \sqrt{b^2 + 2\kappa e}\bigr)/\kappa$, $b =
  \lVert(PS)_{(2r)}\rVert_F$: at most $2b/\kappa$ for one at least as likely as the truth.
- `likely_gaussian` (probability $1-\delta$): the same with $b$ the smaller of $\sqrt{2r}\,\sigma
  (\sqrt q + \sqrt K + \tau)$ and $\sigma(\sqrt{\min(\ell_{2r}, qK)} + t)$, $\ell_j$ the sum of
  `gaussian_noise.leading`; squared, at most $8r\sigma^2(\sqrt q + \sqrt K + \tau)^2/\kappa^2$.
- `convex` (sure): $\hat F$ minimising $f(F) + \lambda\lVert F\rVert_*$ over the box up to a duality
  gap $g$, $\lambda \ge \lVert PS\rVert$, has $\lVert\hat F - F^*\rVert_F \le \bigl(b + \sqrt{b^2 +
  4\kappa g}\bigr)/(2\kappa)$, $b = \sqrt r(\lVert PS\rVert + \lambda)$: that is $b/\kappa$ for
  $g = 0$.
- `convex_gaussian` (probability $1-\delta$): the same with $\lambda = \sigma(\sqrt q + \sqrt K +
  \tau)$ and $b = 2\sqrt r\,\lambda$; squared, $4r\lambda^2/\kappa^2$.

`curvature`, `likely` and `convex` are attained in the limit of one censored output at the lower
edge of the box whose score another output, seen through a weak input, cancels.
"""

import abc
import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank_theory._numerics import AnyArray
from lowrank_theory.problems import Problem, Truth
from lowrank_theory.recovery import ConvexFit, censored_likelihood
from lowrank_theory.theorems._censored import (
    BOX,
    CANDIDATES,
    LONG,
    REGIMES,
    SURE_REGIMES,
    AnyCandidate,
    Candidate,
    CandidateSetting,
    OptimalCandidate,
    attainable_score,
    candidate_in_box,
    candidate_rank,
    error,
    excess_loss,
    imputed,
    least_curvature,
    local_fit,
    loss_gradient,
    noise_scale,
    rectified,
    rectified_gaussian,
    score,
    total_norm,
    truth_in_box,
)
from lowrank_theory.theorems._quantities import (
    column_rank,
    frobenius,
    singular_values,
    target_rank_hypothesis,
)
from lowrank_theory.theorems._theorem import (
    LOWER,
    UPPER,
    UPPER_IN_EXPECTATION,
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)
from lowrank_theory.theorems.gaussian_noise import leading_edge, upper_edge

_TOLERANCE = 1e-11  # of the convex fit


def _likely_bound(b: Array, excess: Array, curvature: Array) -> Array:
    r"""The larger root of $\tfrac12\kappa x^2 = bx + e$."""
    return (b + jnp.sqrt(b**2 + 2 * curvature * excess)) / curvature


def _convex_bound(b: Array, gap: AnyArray, curvature: Array) -> Array:
    r"""The larger root of $\kappa x^2 = bx + g$."""
    return (b + jnp.sqrt(b**2 + 4 * curvature * gap)) / (2 * curvature)


def _sides(problem: Problem) -> tuple[Array, int]:
    """$q$ and $K$."""
    return column_rank(problem.truth.layer_inputs), problem.observed.shape[1]


class Curvature(AbstractStatement):
    r"""$\langle\nabla f(F) - \nabla f(F^*), F - F^*\rangle \ge \kappa\lVert F - F^*\rVert_F^2$ for
    all points of the box $|F_{ij}| \le \alpha$. Squared.
    """

    box: float = BOX
    kind = LOWER
    needs = Candidate
    regimes = CANDIDATES
    control = CANDIDATES["likeliest"]
    adversary = AnyCandidate()
    sharp = True

    def hypotheses(self, instance: Candidate) -> tuple[Hypothesis, ...]:
        """Both points lie in the box."""
        return (truth_in_box(instance.problem, self.box), candidate_in_box(instance, self.box))

    def estimate(self, instance: Candidate) -> Array:
        """The candidate's pre-activations."""
        return instance.preactivations

    def broken_estimate(self, instance: Candidate) -> Array:
        """A quarter of the way from the truth to the candidate."""
        clean = instance.problem.truth.clean_outputs
        return clean + (instance.preactivations - clean) / 4

    def formula(self, instance: Candidate, estimate: Array) -> Float[Array, ""]:
        r"""$\kappa\lVert F - F^*\rVert_F^2$."""
        change = estimate - instance.problem.truth.clean_outputs
        return least_curvature(self.box) * jnp.sum(change**2)

    def loss(self, instance: Candidate, estimate: Array) -> Float[Array, ""]:
        r"""$\langle\nabla f(F) - \nabla f(F^*), F - F^*\rangle$."""
        problem = instance.problem
        rise = loss_gradient(problem, estimate) + score(problem)
        return jnp.sum(rise * (estimate - problem.truth.clean_outputs))

    def magnitude(self, instance: Candidate) -> Float[Array, ""]:
        r"""$(\lVert Y\rVert_F + \sigma\sqrt{mK})^2$."""
        return total_norm(instance.problem) ** 2


class AbstractScore(AbstractStatement):
    r"""A bound on $\lVert PS\rVert$, in the units of the outputs."""

    needs = Truth
    regimes = REGIMES
    control = LONG

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """The model, and Gaussian noise; no bound on the signal."""
        return rectified_gaussian(instance)

    def estimate(self, instance: Problem) -> Array:
        """$U^TS$, which has the singular values of $PS$."""
        return attainable_score(instance)

    def broken_estimate(self, instance: Problem) -> Array:
        """$S$ without its projection."""
        return score(instance)

    def loss(self, instance: Problem, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert PS\rVert$."""
        return singular_values(estimate)[0]

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F + \sigma\sqrt{mK}$."""
        return total_norm(instance)


_NOT_CENSORED = Refuted(1.0, "nothing is censored: the score is Gaussian noise")


class ScoreExpectation(AbstractScore):
    r"""$\mathbb E\lVert PS\rVert \le \sigma(\sqrt q + \sqrt K)$: the score is no larger than the
    noise.
    """

    kind = UPPER_IN_EXPECTATION
    refuted_below = _NOT_CENSORED

    def formula(self, instance: Problem, estimate: Array) -> Float[Array, ""]:
        r"""$\sigma(\sqrt q + \sqrt K)$."""
        q, outputs = _sides(instance)
        return noise_scale(instance) * (jnp.sqrt(q) + math.sqrt(outputs))


class Score(AbstractScore):
    r"""$\lVert PS\rVert \le \sigma(\sqrt q + \sqrt K + \tau)$ with probability $1-\delta$."""

    kind = UPPER_WITH_PROBABILITY
    refuted_below = _NOT_CENSORED

    def formula(self, instance: Problem, estimate: Array) -> Float[Array, ""]:
        r"""$\sigma(\sqrt q + \sqrt K + \tau)$."""
        return noise_scale(instance) * upper_edge(*_sides(instance), self.failure_probability)


class Likely(AbstractStatement):
    r"""$\lVert\hat F - F^*\rVert_F \le \tfrac2\kappa\lVert(PS)_{(2r)}\rVert_F$ for every $\hat F$
    of rank $r$ in the box that is at least as likely as the truth, and $(b + \sqrt{b^2 +
    2\kappa e})/\kappa$ for one whose loss is $e$ above. In the units of the outputs.
    """

    box: float = BOX
    kind = UPPER
    needs = Candidate
    regimes = CANDIDATES
    control = CandidateSetting(LONG, np.asarray(1.0))
    adversary = AnyCandidate()
    sharp = True

    def hypotheses(self, instance: Candidate) -> tuple[Hypothesis, ...]:
        """Truth and candidate have rank r and lie in the box."""
        return (
            target_rank_hypothesis(instance.problem),
            truth_in_box(instance.problem, self.box),
            candidate_rank(instance),
            candidate_in_box(instance, self.box),
        )

    def estimate(self, instance: Candidate) -> AnyArray:
        """The candidate."""
        return instance.weights

    def broken_estimate(self, instance: Candidate) -> Array:
        """Least squares that takes what is censored for thirty noise scales below zero."""
        return imputed(instance.problem)

    def formula(self, instance: Candidate, estimate: Array) -> Float[Array, ""]:
        r"""$(b + \sqrt{b^2 + 2\kappa e})/\kappa$ with $b = \lVert(PS)_{(2r)}\rVert_F$."""
        problem = instance.problem
        values = singular_values(attainable_score(problem))
        b = frobenius(values[: 2 * problem.rank])
        return _likely_bound(b, excess_loss(problem, estimate), least_curvature(self.box))

    def loss(self, instance: Candidate, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert\hat F - F^*\rVert_F$."""
        return error(instance.problem, estimate)

    def magnitude(self, instance: Candidate) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F + \sigma\sqrt{mK}$."""
        return total_norm(instance.problem)


class AbstractRecovery(AbstractStatement):
    r"""A bound on $\lVert\hat F - F^*\rVert_F$ for weights found from the outputs, in their
    units.
    """

    box: eqx.AbstractVar[float]
    needs = Truth
    control = LONG

    def broken_estimate(self, instance: Problem) -> Array:
        """Least squares that takes what is censored for thirty noise scales below zero."""
        return imputed(instance)

    def loss(self, instance: Problem, estimate: ConvexFit | Array) -> Float[Array, ""]:
        r"""$\lVert\hat F - F^*\rVert_F$."""
        weights = estimate.weights if isinstance(estimate, ConvexFit) else estimate
        return error(instance, weights)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F + \sigma\sqrt{mK}$."""
        return total_norm(instance)

    def _low_rank_in_box(self, problem: Problem) -> tuple[Hypothesis, ...]:
        return (
            target_rank_hypothesis(problem),
            truth_in_box(problem, self.box),
            rectified(problem),
        )


class LikelyGaussian(AbstractRecovery):
    r"""$\lVert\hat F - F^*\rVert_F \le \tfrac2\kappa b$ with probability $1-\delta$, for all such
    $\hat F$ at once, where $b = \sigma\min\bigl(\sqrt{2r}(\sqrt q + \sqrt K + \tau),
    \sqrt{\min(\ell_{2r}, qK)} + t\bigr)$. In the units of the outputs.
    """

    box: float = BOX
    kind = UPPER_WITH_PROBABILITY
    regimes = REGIMES

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """The model, Gaussian noise, and a truth of rank r in the box."""
        return (*rectified_gaussian(instance), *self._low_rank_in_box(instance))

    def estimate(self, instance: Problem) -> Array:
        """The likeliest weights that a local search finds."""
        return local_fit(instance, self.box)

    def formula(self, instance: Problem, estimate: Array) -> Float[Array, ""]:
        r"""$(b + \sqrt{b^2 + 2\kappa e})/\kappa$, $b$ by `leading_edge`."""
        edge = leading_edge(*_sides(instance), 2 * instance.rank, self.failure_probability)
        b, excess = noise_scale(instance) * edge, excess_loss(instance, estimate)
        return _likely_bound(b, excess, least_curvature(self.box))


class AbstractConvex(AbstractRecovery):
    r"""$\lVert\hat F - F^*\rVert_F \le (b + \sqrt{b^2 + 4\kappa g})/(2\kappa)$ for the minimiser of
    $f(F) + \lambda\lVert F\rVert_*$ over the box, up to a gap $g$. In the units of the outputs.
    """

    @abc.abstractmethod
    def penalty(self, problem: Problem) -> Float[Array, ""]:
        r"""The penalty $\lambda$."""

    def estimate(self, instance: Problem) -> ConvexFit:
        """The penalised censored likelihood over the box."""
        scale = noise_scale(instance)
        return censored_likelihood(
            instance.truth.layer_inputs,
            instance.observed.target_outputs,
            noise_scale=scale,
            bound=self.box * scale,
            penalty=self.penalty(instance),
            tolerance=_TOLERANCE,
        )


class Convex(AbstractConvex):
    r"""$\lVert\hat F - F^*\rVert_F \le \sqrt r\,(\lVert PS\rVert + \lambda)/\kappa$ for the
    penalised fit with $\lambda = $ `inflation` $\cdot\,\lVert PS\rVert$, up to its duality gap. In
    the units of the outputs.
    """

    box: float = BOX
    inflation: float = 1.0
    kind = UPPER
    regimes = SURE_REGIMES
    adversary = OptimalCandidate()
    sharp = True

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """A truth of rank r in the box, rectified outputs, a penalty that is at least the score."""
        name = "the penalty is at least the score"
        return (*self._low_rank_in_box(instance), Hypothesis(name, self.inflation - 1.0))

    def penalty(self, problem: Problem) -> Float[Array, ""]:
        r"""$\lambda$, in proportion to $\lVert PS\rVert$."""
        return self.inflation * singular_values(attainable_score(problem))[0]

    def formula(self, instance: Problem, estimate: ConvexFit) -> Float[Array, ""]:
        r"""$(b + \sqrt{b^2 + 4\kappa g})/(2\kappa)$ with $b = \sqrt r(\lVert PS\rVert +
        \lambda)$.
        """
        norm = singular_values(attainable_score(instance))[0]
        b = math.sqrt(instance.rank) * (1 + self.inflation) * norm
        return _convex_bound(b, estimate.duality_gap, least_curvature(self.box))


class ConvexGaussian(AbstractConvex):
    r"""$\lVert\hat F - F^*\rVert_F \le 2\sqrt r\,\lambda/\kappa$ with probability $1-\delta$ for
    the penalised fit with $\lambda = \sigma(\sqrt q + \sqrt K + \tau)$, up to its duality gap. In
    the units of the outputs.
    """

    box: float = BOX
    kind = UPPER_WITH_PROBABILITY
    regimes = REGIMES

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """The model, Gaussian noise, and a truth of rank r in the box."""
        return (*rectified_gaussian(instance), *self._low_rank_in_box(instance))

    def penalty(self, problem: Problem) -> Float[Array, ""]:
        r"""$\sigma(\sqrt q + \sqrt K + \tau)$."""
        return noise_scale(problem) * upper_edge(*_sides(problem), self.failure_probability)

    def formula(self, instance: Problem, estimate: ConvexFit) -> Float[Array, ""]:
        r"""$(b + \sqrt{b^2 + 4\kappa g})/(2\kappa)$ with $b = 2\sqrt r\,\lambda$."""
        b = 2 * math.sqrt(instance.rank) * self.penalty(instance)
        return _convex_bound(b, estimate.duality_gap, least_curvature(self.box))


class ReluNoiseBefore(AbstractTheorem):
    """Where the noise has passed the ReLU too, the censored likelihood recovers the pre-activations
    at the fast rate, without logarithms, over its least curvature on a box.
    """

    convex_gaussian: ConvexGaussian = ConvexGaussian()
    convex: Convex = Convex()
    likely_gaussian: LikelyGaussian = LikelyGaussian()
    likely: Likely = Likely()
    score: Score = Score()
    score_expectation: ScoreExpectation = ScoreExpectation()
    curvature: Curvature = Curvature()


relu_noise_before = ReluNoiseBefore()
