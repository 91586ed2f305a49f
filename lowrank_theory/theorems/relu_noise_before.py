r"""Recovery behind a ReLU: noise before it.

**Model.** $Y = \rho(\tilde XM + \sigma G)$ with $\rho = \mathrm{relu}$, $G_{ij}$ i.i.d. $N(0,
1)$, $F^* = \tilde XM$ of rank $r$, $|F^*_{ij}| \le \alpha$; $P$ projects on the columns of $\tilde
X$, of dimension $q$, and there are $K$ outputs. With the censored likelihood (Tobin 1958)

$$ f(F) = \sum_{Y_{ij} > 0} \tfrac12 (Y_{ij} - F_{ij})^2
        - \sum_{Y_{ij} = 0} \sigma^2 \ln\Phi(-F_{ij}/\sigma) $$

let $S = -\nabla f(F^*)$ be the score, and $\kappa = h'(-\alpha/\sigma)$ its least curvature on the
box, $h(x) = \varphi(x)/\Phi(-x)$. $\alpha$ = `box` times $\sigma$ throughout.

**Claims** (not squared; proved in paper_notes/relu_noise_before.md; $t = \sqrt{2\ln(1/\delta)}$):

- `curvature` (sure): $\langle\nabla f(F) - \nabla f(F^*), F - F^*\rangle \ge \kappa\lVert F -
  F^*\rVert_F^2$ on the box.
- `score_expectation`: $\mathbb E\lVert PS\rVert \le \sigma(\sqrt q + \sqrt K)$, and `score`
  (probability $1-\delta$): $\lVert PS\rVert \le \sigma(\sqrt q + \sqrt K + t)$.
- `likely` (sure): every $\hat F$ of rank $r$ in the box, with $e = \max(0, f(\hat F) - f(F^*))$,
  has $\lVert\hat F - F^*\rVert_F \le \bigl(b + \sqrt{b^2 + 2\kappa e}\bigr)/\kappa$, $b =
  \lVert(PS)_{(2r)}\rVert_F$: at most $2b/\kappa$ for one at least as likely as the truth.
- `likely_gaussian` (probability $1-\delta$): the same with $b = \sqrt{2r}\,\sigma(\sqrt q + \sqrt K
  + t)$; squared, $8r\sigma^2(\sqrt q + \sqrt K + t)^2/\kappa^2$.
- `convex` (sure): $\hat F$ minimising $f(F) + \lambda\lVert F\rVert_*$ over the box up to a duality
  gap $g$, $\lambda \ge \lVert PS\rVert$, has $\lVert\hat F - F^*\rVert_F \le \bigl(b + \sqrt{b^2 +
  4\kappa g}\bigr)/(2\kappa)$, $b = \sqrt r(\lVert PS\rVert + \lambda)$: that is $b/\kappa$ for
  $g = 0$.
- `convex_gaussian` (probability $1-\delta$): the same with $\lambda = \sigma(\sqrt q + \sqrt K +
  t)$ and $b = 2\sqrt r\,\lambda$; squared, $4r\lambda^2/\kappa^2$.

`curvature`, `likely` and `convex` are attained in the limit of one censored output at the lower
edge of the box whose score another output, seen through a weak input, cancels.
"""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._numerics import AnyArray, matmul, rounding_allowance, safe_divide
from lowrank_theory.generators import activations, noise, targets
from lowrank_theory.problems import NoiseThenRelu, Observed, Problem, Setting, Truth
from lowrank_theory.recovery.censored import (
    CensoredFit,
    censored_gradient,
    censored_likelihood,
    censored_loss,
    censored_low_rank,
    hazard,
    hazard_slope,
)
from lowrank_theory.theorems._quantities import (
    column_space,
    gaussian_edge,
    gaussian_noise_hypothesis,
    model_hypothesis,
    singular_values,
    target_rank_hypothesis,
)
from lowrank_theory.theorems._theorem import (
    LOWER,
    UPPER,
    UPPER_IN_EXPECTATION,
    UPPER_WITH_PROBABILITY,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)

BOX = 1.5  # the bound on the signal, in units of the noise
_TOLERANCE, _STEPS = 1e-11, 10  # of the convex fit, of the local search
_SHRINKAGE = 5e-3  # at least, in the attack: much above the tolerance


class Candidate(eqx.Module):
    r"""A layer seen through a ReLU after the noise, and any `weights` $Z$ that may explain it."""

    problem: Problem
    weights: Float[AnyArray, "inputs outputs"]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.problem.sizes

    @property
    def preactivations(self) -> Float[Array, "samples outputs"]:
        r"""$\tilde XZ$."""
        return matmul(self.problem.truth.layer_inputs, self.weights)


class CandidateSetting(eqx.Module):
    """A random layer, and the likeliest weights that a local search finds, times `factor`.

    With a factor from -1 to 1 they stay in the box, and are less likely.
    """

    setting: Setting
    factor: float | np.ndarray = 1.0

    def draw(self, *, key: PRNGKeyArray) -> Candidate:
        """A random instance, in float64."""
        problem = self.setting.draw(key=key)
        with jax.enable_x64(True):
            return Candidate(problem, self.factor * _local_fit(problem, BOX))


def _local_fit(problem: Problem, box: float) -> Float[Array, "inputs outputs"]:
    scale = jnp.asarray(problem.truth.noise_scale)
    return censored_low_rank(
        problem.truth.layer_inputs,
        problem.observed.target_outputs,
        noise_scale=scale,
        bound=box * scale,
        rank=problem.rank,
        steps=_STEPS,
    )


def _setting(bound: float = BOX, **changes: Any) -> Setting:
    base: dict[str, Any] = {
        "samples": 30,
        "inputs": 12,
        "outputs": 10,
        "rank": 2,
        "link": NoiseThenRelu(),
        "noise": noise.Gaussian(1.0),
        "target": targets.BoundedOutputs(bound),
    }
    return Setting(**(base | changes))


_REGIMES = {
    "at the bound": _setting(),
    "weak signal": _setting(0.01),
    "small noise": _setting(1e-3 * BOX, noise=noise.Gaussian(1e-3)),
    "rank-deficient activations": _setting(activations=activations.RankDeficient(5)),
    "outputs of a ReLU layer": _setting(activations=activations.ReluOutputs()),
    "fewer samples than inputs": _setting(samples=10, inputs=16),
}
_SURE = {
    **_REGIMES,
    "sparse outliers": _setting(noise=noise.SparseOutliers(0.1, magnitude=10.0)),
}
_CANDIDATES = {
    "likeliest": CandidateSetting(_setting(), np.asarray(1.0)),
    "halved": CandidateSetting(_setting(), np.asarray(0.5)),
    "zero": CandidateSetting(_setting(), np.asarray(0.0)),
    "opposed to the fit": CandidateSetting(_setting(), np.asarray(-1.0)),
    "small noise": CandidateSetting(_REGIMES["small noise"], np.asarray(1.0)),
    "rank-deficient activations": CandidateSetting(
        _REGIMES["rank-deficient activations"], np.asarray(1.0)
    ),
}
_LONG = _setting(samples=200, inputs=4, outputs=4, rank=1)


def _noise_scale(problem: Problem) -> Array:
    return jnp.asarray(problem.truth.noise_scale)


def _gradient(problem: Problem, point: Array) -> Array:
    return censored_gradient(point, problem.observed.target_outputs, _noise_scale(problem))


def _score(problem: Problem) -> Array:
    return -_gradient(problem, problem.truth.clean_outputs)


def _attainable_score(problem: Problem) -> Float[Array, " count"]:
    """The singular values of $PS$."""
    space = column_space(problem.truth.layer_inputs)
    return singular_values(space.coordinates(_score(problem)))


def _least_curvature(box: float) -> Float[Array, ""]:
    r"""$\kappa = h'(-\alpha/\sigma)$."""
    return hazard_slope(-jnp.asarray(box, float))


def _box_hypothesis(name: str, problem: Problem, weights: AnyArray, box: float) -> Hypothesis:
    """All outputs of the weights are in the box, up to rounding."""
    inputs = problem.truth.layer_inputs
    bound = box * _noise_scale(problem)
    scale = jnp.linalg.norm(inputs) * jnp.linalg.norm(weights)
    allowed = bound + rounding_allowance(scale, *inputs.shape)
    return Hypothesis(name, (allowed - jnp.max(jnp.abs(matmul(inputs, weights)))) / bound)


def _truth_in_box(problem: Problem, box: float) -> Hypothesis:
    name = "the clean outputs are at most alpha"
    return _box_hypothesis(name, problem, problem.truth.target_weights, box)


def _candidate_in_box(candidate: Candidate, box: float) -> Hypothesis:
    name = "the outputs of the candidate are at most alpha"
    return _box_hypothesis(name, candidate.problem, candidate.weights, box)


def _candidate_rank(candidate: Candidate) -> Hypothesis:
    inputs, rank = candidate.problem.truth.layer_inputs, candidate.problem.rank
    values = singular_values(candidate.preactivations)
    rest = values[rank] if values.size > rank else jnp.zeros(())
    scale = jnp.linalg.norm(inputs) * jnp.linalg.norm(candidate.weights)
    allowed = rounding_allowance(scale, *inputs.shape)
    return Hypothesis("the candidate has rank at most r", safe_divide(allowed - rest, scale))


def _model(problem: Problem) -> tuple[Hypothesis, ...]:
    truth = problem.truth
    signal = jax.nn.relu(truth.clean_outputs + truth.noise) - truth.noise
    name = "the outputs are rectified noisy outputs"
    return (model_hypothesis(name, problem, signal), gaussian_noise_hypothesis(truth))


def _error(problem: Problem, weights: Array) -> Float[Array, ""]:
    inputs = problem.truth.layer_inputs
    return jnp.linalg.norm(matmul(inputs, weights) - problem.truth.clean_outputs)


def _excess_loss(problem: Problem, weights: Array) -> Float[Array, ""]:
    """By how much the weights are less likely than the truth, or zero."""
    outputs, scale = problem.observed.target_outputs, _noise_scale(problem)
    fitted = matmul(problem.truth.layer_inputs, weights)
    loss, least = (censored_loss(p, outputs, scale) for p in (fitted, problem.truth.clean_outputs))
    return jnp.maximum(loss - least, 0)


def _likely_bound(b: Array, excess: Array, curvature: Array) -> Array:
    r"""The larger root of $\tfrac12\kappa x^2 = bx + e$."""
    return (b + jnp.sqrt(b**2 + 2 * curvature * excess)) / curvature


def _convex_bound(b: Array, gap: Array, curvature: Array) -> Array:
    r"""The larger root of $\kappa x^2 = bx + g$."""
    return (b + jnp.sqrt(b**2 + 4 * curvature * gap)) / (2 * curvature)


def _magnitude(problem: Problem) -> Float[Array, ""]:
    r"""$\lVert Y\rVert_F + \sigma\sqrt{mK}$: outputs, and the noise behind what is censored."""
    outputs = problem.observed.target_outputs
    return jnp.linalg.norm(outputs) + _noise_scale(problem) * math.sqrt(outputs.size)


def _imputed(problem: Problem) -> Array:
    """Least squares that takes what is censored for thirty noise scales below zero."""
    outputs = problem.observed.target_outputs
    guessed = jnp.where(outputs > 0, outputs, -30 * _noise_scale(problem))
    return matmul(jnp.linalg.pinv(problem.truth.layer_inputs), guessed)


# --- adversaries: one block of outputs is censored, the other, seen through weak inputs, is not ---


def _stated(inputs: Array, target: Array, below: Array, above: Array, rank: int) -> Problem:
    """A layer with unit noise whose first outputs are censored and whose others are `above`."""
    clean = matmul(inputs, target)
    outputs = jnp.concatenate([jnp.zeros_like(below), above])
    hidden = -clean[: len(below)] - 1
    seen = above - clean[len(below) :]
    truth = Truth(
        target,
        jnp.concatenate([hidden, seen]),
        inputs,
        noise_scale=jnp.ones(()),
        gaussian_noise=jnp.asarray(False),
        gaussian_rows=jnp.asarray(False),
    )
    return Problem(Observed(activations=inputs, outputs=outputs), truth, rank)


class AnyCandidate(AbstractAdversary):
    """Two points of rank one in the box; two rows are censored, two weaker ones are not."""

    box: float = BOX

    def start(self, *, key: PRNGKeyArray) -> Any:
        """Inputs, factors of both points, their sizes, the outputs that are seen."""
        keys = jax.random.split(key, 6)
        shapes = ((4, 2), (2, 2), (2, 2), (2,), (2, 2), ())
        return tuple(jax.random.normal(k, s, float) for k, s in zip(keys, shapes, strict=True))

    def play(self, free: Any) -> tuple[Any, Any]:
        """Both points are scaled into the box."""
        rows, left, right, sizes, above, weakness = free
        faint = jax.nn.sigmoid(4 * weakness)
        inputs = jnp.concatenate([rows[:2], faint * rows[2:]])
        weights = []
        for column in range(2):
            matrix = jnp.outer(left[:, column], right[:, column])
            largest = jnp.max(jnp.abs(matmul(inputs, matrix)))
            weights.append(matrix * (self.box * jax.nn.sigmoid(sizes[column]) / largest))
        problem = _stated(inputs, weights[0], above, jnp.exp(above), 1)
        return Candidate(problem, weights[1]), None


class OptimalCandidate(AbstractAdversary):
    r"""$\tilde X = (I; \epsilon I)$, $M = z^*I$, and the outputs that are seen chosen so that
    $\hat zI$ is the minimiser for $\lambda = \lVert PS\rVert$.

    With $c = \sqrt{1+\epsilon^2}$ and $A = (h(\hat z) - h(z^*) + \epsilon^2(\hat z - z^*))/c$ the
    score is $Q^TS = A - Q^T\nabla f(\hat F) = A + \lambda\operatorname{sign}\hat z$. As $\hat z$
    lies between zero and $z^*$ the two terms have opposite signs, and $\lambda = |A|/2$. What is
    seen is positive where $h(\hat z) + h(z^*) \gt \epsilon^2(|\hat z| + |z^*|)$, as it is for
    $\epsilon^2 \lt h(-\alpha)/\alpha$.
    """

    box: float = BOX

    def start(self, *, key: PRNGKeyArray) -> Any:
        """Target, shrinkage, weakness of the second block."""
        return tuple(jax.random.normal(key, (3,), float))

    def play(self, free: Any) -> tuple[Any, Any]:
        """The layer, and its fit without a gap."""
        place, shrinkage, weakness = free
        faint = jax.nn.sigmoid(weakness) * jnp.sqrt(hazard(-jnp.asarray(self.box)) / self.box)
        target = self.box * jnp.tanh(place)
        fitted = target * (1 - _SHRINKAGE) * jax.nn.sigmoid(shrinkage)
        change = hazard(fitted) - hazard(target) + faint**2 * (fitted - target)
        identity = jnp.eye(2)
        inputs = jnp.concatenate([identity, faint * identity])
        pull = hazard(fitted * identity) + jnp.abs(change) / 2 * jnp.sign(fitted) * identity
        above = faint * fitted * identity + pull / faint
        problem = _stated(inputs, target * identity, above, above, 2)
        weights, zero = fitted * identity, jnp.zeros(())
        # The objective and the steps are of no use to the statement.
        fit = CensoredFit(
            weights, matmul(inputs, weights), zero, zero, jnp.int32(0), jnp.asarray(True)
        )
        return problem, fit


# --- statements ---


class Curvature(AbstractStatement):
    r"""$\langle\nabla f(F) - \nabla f(F^*), F - F^*\rangle \ge \kappa\lVert F - F^*\rVert_F^2$ for
    all points of the box $|F_{ij}| \le \alpha$. Squared.
    """

    box: float = BOX
    kind = LOWER
    needs = Candidate
    regimes = _CANDIDATES
    control = CandidateSetting(_setting(), np.asarray(1.0))
    adversary = AnyCandidate()
    sharp = True

    def hypotheses(self, instance: Candidate, failure_probability: float) -> tuple[Hypothesis, ...]:
        """Both points lie in the box."""
        return (_truth_in_box(instance.problem, self.box), _candidate_in_box(instance, self.box))

    def estimate(self, instance: Candidate, failure_probability: float) -> Array:
        """The candidate's pre-activations."""
        return instance.preactivations

    def broken_estimate(self, instance: Candidate, failure_probability: float) -> Array:
        """A quarter of the way from the truth to the candidate."""
        clean = instance.problem.truth.clean_outputs
        return clean + (instance.preactivations - clean) / 4

    def formula(
        self, instance: Candidate, estimate: Array, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\kappa\lVert F - F^*\rVert_F^2$."""
        change = estimate - instance.problem.truth.clean_outputs
        return _least_curvature(self.box) * jnp.sum(change**2)

    def loss(self, instance: Candidate, estimate: Array) -> Float[Array, ""]:
        r"""$\langle\nabla f(F) - \nabla f(F^*), F - F^*\rangle$."""
        problem = instance.problem
        rise = _gradient(problem, estimate) + _score(problem)
        return jnp.sum(rise * (estimate - problem.truth.clean_outputs))

    def magnitude(self, instance: Candidate) -> Float[Array, ""]:
        r"""$(\lVert Y\rVert_F + \sigma\sqrt{mK})^2$."""
        return _magnitude(instance.problem) ** 2


class AbstractScore(AbstractStatement):
    r"""A bound on $\lVert PS\rVert$, in the units of the outputs."""

    needs = Truth
    regimes = _REGIMES
    control = _LONG

    def hypotheses(self, instance: Problem, failure_probability: float) -> tuple[Hypothesis, ...]:
        """The model, and Gaussian noise; no bound on the signal."""
        return _model(instance)

    def estimate(self, instance: Problem, failure_probability: float) -> Array:
        """$U^TS$, which has the singular values of $PS$."""
        return column_space(instance.truth.layer_inputs).coordinates(_score(instance))

    def broken_estimate(self, instance: Problem, failure_probability: float) -> Array:
        """$S$ without its projection."""
        return _score(instance)

    def loss(self, instance: Problem, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert PS\rVert$."""
        return singular_values(estimate)[0]

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F + \sigma\sqrt{mK}$."""
        return _magnitude(instance)


class ScoreExpectation(AbstractScore):
    r"""$\mathbb E\lVert PS\rVert \le \sigma(\sqrt q + \sqrt K)$: the score is no larger than the
    noise.
    """

    kind = UPPER_IN_EXPECTATION

    def formula(
        self, instance: Problem, estimate: Array, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\sigma(\sqrt q + \sqrt K)$."""
        q = column_space(instance.truth.layer_inputs).dimension
        return _noise_scale(instance) * (jnp.sqrt(q) + math.sqrt(instance.observed.shape[1]))


class Score(AbstractScore):
    r"""$\lVert PS\rVert \le \sigma(\sqrt q + \sqrt K + t)$ with probability $1-\delta$."""

    kind = UPPER_WITH_PROBABILITY

    def formula(
        self, instance: Problem, estimate: Array, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\sigma(\sqrt q + \sqrt K + t)$."""
        return gaussian_edge(instance, failure_probability)


class Likely(AbstractStatement):
    r"""$\lVert\hat F - F^*\rVert_F \le \tfrac2\kappa\lVert(PS)_{(2r)}\rVert_F$ for every $\hat F$
    of rank $r$ in the box that is at least as likely as the truth, and $(b + \sqrt{b^2 +
    2\kappa e})/\kappa$ for one whose loss is $e$ above. In the units of the outputs.
    """

    box: float = BOX
    kind = UPPER
    needs = Candidate
    regimes = _CANDIDATES
    control = CandidateSetting(_LONG, np.asarray(1.0))
    adversary = AnyCandidate()
    sharp = True

    def hypotheses(self, instance: Candidate, failure_probability: float) -> tuple[Hypothesis, ...]:
        """Truth and candidate have rank r and lie in the box."""
        return (
            target_rank_hypothesis(instance.problem),
            _truth_in_box(instance.problem, self.box),
            _candidate_rank(instance),
            _candidate_in_box(instance, self.box),
        )

    def estimate(self, instance: Candidate, failure_probability: float) -> AnyArray:
        """The candidate."""
        return instance.weights

    def broken_estimate(self, instance: Candidate, failure_probability: float) -> Array:
        """Least squares that takes what is censored for thirty noise scales below zero."""
        return _imputed(instance.problem)

    def formula(
        self, instance: Candidate, estimate: Array, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$(b + \sqrt{b^2 + 2\kappa e})/\kappa$ with $b = \lVert(PS)_{(2r)}\rVert_F$."""
        problem = instance.problem
        b = jnp.linalg.norm(_attainable_score(problem)[: 2 * problem.rank])
        return _likely_bound(b, _excess_loss(problem, estimate), _least_curvature(self.box))

    def loss(self, instance: Candidate, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert\hat F - F^*\rVert_F$."""
        return _error(instance.problem, estimate)

    def magnitude(self, instance: Candidate) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F + \sigma\sqrt{mK}$."""
        return _magnitude(instance.problem)


class LikelyGaussian(AbstractStatement):
    r"""$\lVert\hat F - F^*\rVert_F \le \tfrac2\kappa\sqrt{2r}\,\sigma(\sqrt q + \sqrt K + t)$ with
    probability $1-\delta$, for all such $\hat F$ at once. In the units of the outputs.
    """

    box: float = BOX
    kind = UPPER_WITH_PROBABILITY
    needs = Truth
    regimes = _REGIMES
    control = _LONG

    def hypotheses(self, instance: Problem, failure_probability: float) -> tuple[Hypothesis, ...]:
        """The model, Gaussian noise, and a truth of rank r in the box."""
        return (
            *_model(instance),
            target_rank_hypothesis(instance),
            _truth_in_box(instance, self.box),
        )

    def estimate(self, instance: Problem, failure_probability: float) -> Array:
        """The likeliest weights that a local search finds."""
        return _local_fit(instance, self.box)

    def broken_estimate(self, instance: Problem, failure_probability: float) -> Array:
        """Least squares that takes what is censored for thirty noise scales below zero."""
        return _imputed(instance)

    def formula(
        self, instance: Problem, estimate: Array, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$(b + \sqrt{b^2 + 2\kappa e})/\kappa$ with $b = \sqrt{2r}\,\sigma(\sqrt q + \sqrt K +
        t)$.
        """
        b = math.sqrt(2 * instance.rank) * gaussian_edge(instance, failure_probability)
        return _likely_bound(b, _excess_loss(instance, estimate), _least_curvature(self.box))

    def loss(self, instance: Problem, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert\hat F - F^*\rVert_F$."""
        return _error(instance, estimate)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F + \sigma\sqrt{mK}$."""
        return _magnitude(instance)


class AbstractConvex(AbstractStatement):
    r"""$\lVert\hat F - F^*\rVert_F \le (b + \sqrt{b^2 + 4\kappa g})/(2\kappa)$ for the minimiser of
    $f(F) + \lambda\lVert F\rVert_*$ over the box, up to a gap $g$. In the units of the outputs.
    """

    box: eqx.AbstractVar[float]
    needs = Truth
    control = _LONG

    @abc.abstractmethod
    def penalty(self, problem: Problem, failure_probability: float) -> Float[Array, ""]:
        r"""The penalty $\lambda$."""

    def estimate(self, instance: Problem, failure_probability: float) -> CensoredFit:
        """The penalised censored likelihood over the box."""
        scale = _noise_scale(instance)
        return censored_likelihood(
            instance.truth.layer_inputs,
            instance.observed.target_outputs,
            noise_scale=scale,
            bound=self.box * scale,
            penalty=self.penalty(instance, failure_probability),
            tolerance=_TOLERANCE,
        )

    def broken_estimate(self, instance: Problem, failure_probability: float) -> Array:
        """Least squares that takes what is censored for thirty noise scales below zero."""
        return _imputed(instance)

    def loss(self, instance: Problem, estimate: CensoredFit | Array) -> Float[Array, ""]:
        r"""$\lVert\hat F - F^*\rVert_F$."""
        weights = estimate.weights if isinstance(estimate, CensoredFit) else estimate
        return _error(instance, weights)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F + \sigma\sqrt{mK}$."""
        return _magnitude(instance)


class Convex(AbstractConvex):
    r"""$\lVert\hat F - F^*\rVert_F \le \sqrt r\,(\lVert PS\rVert + \lambda)/\kappa$ for the
    penalised fit with $\lambda = $ `inflation` $\cdot\,\lVert PS\rVert$, up to its duality gap. In
    the units of the outputs.
    """

    box: float = BOX
    inflation: float = 1.0
    kind = UPPER
    regimes = _SURE
    adversary = OptimalCandidate()
    sharp = True

    def hypotheses(self, instance: Problem, failure_probability: float) -> tuple[Hypothesis, ...]:
        """A truth of rank r in the box, and a penalty that is at least the score."""
        return (
            target_rank_hypothesis(instance),
            _truth_in_box(instance, self.box),
            Hypothesis("the penalty is at least the score", self.inflation - 1.0),
        )

    def penalty(self, problem: Problem, failure_probability: float) -> Float[Array, ""]:
        r"""$\lambda$, in proportion to $\lVert PS\rVert$."""
        return self.inflation * _attainable_score(problem)[0]

    def formula(
        self, instance: Problem, estimate: CensoredFit, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$(b + \sqrt{b^2 + 4\kappa g})/(2\kappa)$ with $b = \sqrt r(\lVert PS\rVert +
        \lambda)$.
        """
        score = _attainable_score(instance)[0]
        b = math.sqrt(instance.rank) * (1 + self.inflation) * score
        return _convex_bound(b, estimate.duality_gap, _least_curvature(self.box))


class ConvexGaussian(AbstractConvex):
    r"""$\lVert\hat F - F^*\rVert_F \le 2\sqrt r\,\lambda/\kappa$ with probability $1-\delta$ for
    the penalised fit with $\lambda = \sigma(\sqrt q + \sqrt K + t)$, up to its duality gap. In the
    units of the outputs.
    """

    box: float = BOX
    kind = UPPER_WITH_PROBABILITY
    regimes = _REGIMES

    def hypotheses(self, instance: Problem, failure_probability: float) -> tuple[Hypothesis, ...]:
        """The model, Gaussian noise, and a truth of rank r in the box."""
        return (
            *_model(instance),
            target_rank_hypothesis(instance),
            _truth_in_box(instance, self.box),
        )

    def penalty(self, problem: Problem, failure_probability: float) -> Float[Array, ""]:
        r"""$\sigma(\sqrt q + \sqrt K + t)$."""
        return gaussian_edge(problem, failure_probability)

    def formula(
        self, instance: Problem, estimate: CensoredFit, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$(b + \sqrt{b^2 + 4\kappa g})/(2\kappa)$ with $b = 2\sqrt r\,\lambda$."""
        b = 2 * math.sqrt(instance.rank) * gaussian_edge(instance, failure_probability)
        return _convex_bound(b, estimate.duality_gap, _least_curvature(self.box))


class ReluNoiseBefore(AbstractTheorem):
    """Recovery behind a ReLU with noise before it, by the censored likelihood."""

    convex_gaussian: ConvexGaussian = ConvexGaussian()
    convex: Convex = Convex()
    likely_gaussian: LikelyGaussian = LikelyGaussian()
    likely: Likely = Likely()
    score: Score = Score()
    score_expectation: ScoreExpectation = ScoreExpectation()
    curvature: Curvature = Curvature()


relu_noise_before = ReluNoiseBefore()
