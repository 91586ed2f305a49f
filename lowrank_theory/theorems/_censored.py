"""Layers seen through a censoring ReLU: candidates to explain them, settings, quantities, and
what an attacker may choose.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._arrays import Key, namespace, of_either_key
from lowrank_theory._numerics import AnyArray, float64, matmul, rounding_allowance, safe_divide
from lowrank_theory.generators import activations, noise, targets
from lowrank_theory.problems import (
    AbstractParts,
    NoiseThenRelu,
    Observed,
    Parts,
    Problem,
    Setting,
    Truth,
)
from lowrank_theory.recovery import Convergence, ConvexFit
from lowrank_theory.recovery.censored import (
    censored_gradient,
    censored_loss,
    censored_low_rank,
    hazard,
    hazard_slope,
)
from lowrank_theory.theorems._quantities import (
    column_space,
    forming,
    frobenius,
    gaussian_noise_hypotheses,
    model_hypothesis,
    rank_hypothesis,
)
from lowrank_theory.theorems._theorem import AbstractAdversary, Hypothesis

BOX = 1.5  # the bound on the signal, in units of the noise
_STEPS = 10  # of the local search
_SHRINKAGE = 5e-3  # at least, in the attack: much above the tolerance of the fit


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

    With a factor from -1 to 1 they stay in the box, and may be less likely than the truth.
    """

    setting: Setting
    factor: float | np.ndarray = 1.0

    @of_either_key
    def draw(self, *, key: Key) -> Candidate:
        """A random instance, in float64; the search is JAX's in any case."""
        return self.draw_parts(key=key).instance()

    def draw_parts(self, *, key: Key) -> "CandidateParts":
        """What is random of it; call it inside `float64`."""
        return CandidateParts(self.setting.draw_parts(key=key), namespace(key).asarray(self.factor))


class CandidateParts(AbstractParts):
    """A layer, and the factor of the weights that a local search finds for it."""

    problem: Parts
    factor: Float[AnyArray, ""]

    def instance(self) -> Candidate:
        """The layer with these weights."""
        with float64():
            problem = self.problem.instance()
            return Candidate(problem, self.factor * local_fit(problem, BOX))


def local_fit(problem: Problem, box: float) -> Float[Array, "inputs outputs"]:
    """The likeliest weights that a local search finds."""
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


REGIMES = {
    "at the bound": _setting(),
    "weak signal": _setting(0.01),
    "small noise": _setting(1e-3 * BOX, noise=noise.Gaussian(1e-3)),
    "rank-deficient activations": _setting(activations=activations.RankDeficient(5)),
    "outputs of a ReLU layer": _setting(activations=activations.ReluOutputs()),
    "fewer samples than inputs": _setting(samples=10, inputs=16),
}
SURE_REGIMES = {
    **REGIMES,
    "sparse outliers": _setting(noise=noise.SparseOutliers(0.1, magnitude=10.0)),
}
CANDIDATES = {
    "likeliest": CandidateSetting(_setting(), np.asarray(1.0)),
    "halved": CandidateSetting(_setting(), np.asarray(0.5)),
    "zero": CandidateSetting(_setting(), np.asarray(0.0)),
    "opposed to the fit": CandidateSetting(_setting(), np.asarray(-1.0)),
    "small noise": CandidateSetting(REGIMES["small noise"], np.asarray(1.0)),
    "rank-deficient activations": CandidateSetting(
        REGIMES["rank-deficient activations"], np.asarray(1.0)
    ),
}
LONG = _setting(samples=200, inputs=4, outputs=4, rank=1)


def noise_scale(problem: Problem) -> Array:
    return jnp.asarray(problem.truth.noise_scale)


def loss_gradient(problem: Problem, point: Array) -> Array:
    return censored_gradient(point, problem.observed.target_outputs, noise_scale(problem))


def score(problem: Problem) -> Float[Array, "samples outputs"]:
    r"""$S = -\nabla f(F^*)$."""
    return -loss_gradient(problem, problem.truth.clean_outputs)


def attainable_score(problem: Problem) -> Float[Array, "width outputs"]:
    """$U^TS$, which has the singular values of $PS$."""
    return column_space(problem.truth.layer_inputs).coordinates(score(problem))


def least_curvature(box: float) -> Float[Array, ""]:
    r"""$\kappa = h'(-\alpha/\sigma)$."""
    return hazard_slope(-jnp.asarray(box, float))


def _box_hypothesis(name: str, problem: Problem, weights: AnyArray, box: float) -> Hypothesis:
    """All outputs of the weights are in the box, up to rounding."""
    inputs = problem.truth.layer_inputs
    bound = box * noise_scale(problem)
    allowed = bound + rounding_allowance(forming(inputs, weights), *inputs.shape)
    margin = allowed - jnp.max(jnp.abs(matmul(inputs, weights)))
    return Hypothesis(name, jnp.where(bound > 0, safe_divide(margin, bound), -1.0))


def truth_in_box(problem: Problem, box: float) -> Hypothesis:
    name = "the clean outputs are at most alpha"
    return _box_hypothesis(name, problem, problem.truth.target_weights, box)


def candidate_in_box(candidate: Candidate, box: float) -> Hypothesis:
    name = "the outputs of the candidate are at most alpha"
    return _box_hypothesis(name, candidate.problem, candidate.weights, box)


def candidate_rank(candidate: Candidate) -> Hypothesis:
    name = "the candidate has rank at most r"
    return rank_hypothesis(name, candidate.problem, candidate.weights)


def rectified_gaussian(problem: Problem) -> tuple[Hypothesis, ...]:
    """The model, and Gaussian noise that does not depend on the layer."""
    truth = problem.truth
    signal = jax.nn.relu(truth.clean_outputs + truth.noise) - truth.noise
    name = "the outputs are rectified noisy outputs"
    noise = Hypothesis("there is noise", jnp.where(noise_scale(problem) > 0, 1.0, -1.0))
    return (model_hypothesis(name, problem, signal), noise, *gaussian_noise_hypotheses(truth))


def rectified(problem: Problem) -> Hypothesis:
    """No output is negative, as behind every ReLU."""
    outputs = jnp.asarray(problem.observed.target_outputs, float)
    lowest, largest = jnp.min(outputs), jnp.max(jnp.abs(outputs))
    return Hypothesis("no output is negative", safe_divide(lowest, largest))


def error(problem: Problem, weights: Array) -> Float[Array, ""]:
    inputs = problem.truth.layer_inputs
    return frobenius(matmul(inputs, weights) - problem.truth.clean_outputs)


def excess_loss(problem: Problem, weights: Array) -> Float[Array, ""]:
    """By how much the weights are less likely than the truth, or zero."""
    outputs, scale = problem.observed.target_outputs, noise_scale(problem)
    fitted = matmul(problem.truth.layer_inputs, weights)
    loss, least = (censored_loss(p, outputs, scale) for p in (fitted, problem.truth.clean_outputs))
    return jnp.maximum(loss - least, 0)


def total_norm(problem: Problem) -> Float[Array, ""]:
    r"""$\lVert Y\rVert_F + \sigma\sqrt{mK}$: outputs, and the noise behind what is censored."""
    outputs = problem.observed.target_outputs
    return frobenius(outputs) + noise_scale(problem) * math.sqrt(outputs.size)


def imputed(problem: Problem) -> Array:
    """Least squares that takes what is censored for thirty noise scales below zero."""
    outputs = problem.observed.target_outputs
    guessed = jnp.where(outputs > 0, outputs, -30 * noise_scale(problem))
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
        fit = ConvexFit(weights, matmul(inputs, weights), zero, jnp.int32(0), Convergence.exact())
        return problem, fit
