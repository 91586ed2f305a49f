r"""Recovery behind a ReLU: noise after it.

**Model.** $Y = \rho(\tilde XM) + E$ with $\rho = \mathrm{relu}$, $F^* = \tilde XM$ of nuclear norm
$R$, $P$ the projector on the columns of $\tilde X$. The estimator minimises the matching loss
$\sum\tfrac12\rho(F_{ij})^2 - Y_{ij}F_{ij}$ over $F = \tilde XZ$ with $\lVert F\rVert_* \le R$, by a
first-order method that stops at a duality gap $g$.

**Claims** (squared errors of the *activations*; proved in paper_notes/relu_noise_after.md):

- `any_noise` (sure): $\lVert\rho(\hat F) - \rho(F^*)\rVert_F^2 \le 2R\lVert PE\rVert + g$.
- `gaussian` (probability $1-\delta$), $E_{ij}$ i.i.d. $N(0,\sigma^2)$: $\le 2R\sigma(\sqrt q +
  \sqrt K + \tau) + g$, by `gaussian_noise.largest`.

A slow rate (the first power of the noise), without logarithms. Only $\rho(F^*)$ is identifiable:
where both $F^*$ and $\hat F$ are negative the data say nothing.
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._numerics import matmul
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.problems import Observed, Problem, ReluThenNoise, Setting, Truth
from lowrank_theory.recovery import Convergence, ConvexFit, nuclear_norm_relu
from lowrank_theory.theorems._quantities import (
    column_rank,
    column_space,
    frobenius,
    gaussian_noise_hypotheses,
    least_squares,
    model_hypothesis,
    singular_values,
    squared,
)
from lowrank_theory.theorems._theorem import (
    UPPER,
    UPPER_WITH_PROBABILITY,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)
from lowrank_theory.theorems.gaussian_noise import upper_edge

_BASE: dict[str, Any] = {
    "samples": 40,
    "inputs": 16,
    "outputs": 12,
    "rank": 2,
    "link": ReluThenNoise(),
}
_REGIMES = {
    "square": Setting(samples=24, inputs=12, outputs=12, rank=2, link=ReluThenNoise()),
    "tall": Setting(samples=60, inputs=8, outputs=20, rank=2, link=ReluThenNoise()),
    "rank one": Setting(samples=40, inputs=16, outputs=12, rank=1, link=ReluThenNoise()),
    "fewer samples than inputs": Setting(
        samples=12, inputs=20, outputs=12, rank=2, link=ReluThenNoise()
    ),
    "rank-deficient activations": Setting(**_BASE, activations=activations.RankDeficient(6)),
    "approximately low rank": Setting(
        **_BASE, target=targets.ApproximateRank(spectra.PowerLaw(1.0))
    ),
    "strong noise": Setting(**_BASE, noise=noise.Gaussian(1.0)),
}
_OTHER_NOISES = {
    "Student t": Setting(**_BASE, noise=noise.StudentT(0.3)),
    "unequal columns": Setting(**_BASE, noise=noise.Heteroskedastic(0.5, by_column=True)),
    "quantised weights": Setting(**_BASE, noise=noise.QuantiserResidual(3)),
}
_TOLERANCE = 1e-5  # of the gap: the error itself is known to its root
_ANY_NOISE = {**_REGIMES, **_OTHER_NOISES}
_CONTROL = Setting(
    samples=48,
    inputs=48,
    outputs=48,
    rank=1,
    link=ReluThenNoise(),
    noise=noise.Gaussian(1.0),
    target=targets.ExactRank(scale=0.05),
)


def _rectified_hypothesis(problem: Problem) -> Hypothesis:
    return model_hypothesis(
        "the outputs are rectified clean outputs plus noise",
        problem,
        jax.nn.relu(problem.truth.clean_outputs),
    )


class FittedBall(AbstractAdversary):
    r"""Outputs for which a given point is a minimiser: two points $F^*, \hat F$ of nuclear norm
    one, and $Y = \rho(\hat F) + \mu UV^\top$ with $UV^\top$ a subgradient of the nuclear norm at
    $\hat F = U\operatorname{diag}(s)V^\top$ and $\mu > 0$ its multiplier.
    """

    def start(self, *, key: PRNGKeyArray) -> Any:
        """Directions and singular values of both points, and the multiplier."""
        keys = jax.random.split(key, 7)
        shapes = (*[(2,)] * 4, (2,), (2,), ())
        return tuple(jax.random.normal(k, s, float) for k, s in zip(keys, shapes, strict=True))

    def play(self, free: Any) -> tuple[Any, Any]:
        """The layer, seen through the identity, and its fit without a gap."""
        left, right, other_left, other_right, values, other_values, multiplier = free
        u, v = (_rotation(basis) for basis in (left, right))
        fitted = matmul(u * jax.nn.softmax(values), v.T)
        u_, v_ = (_rotation(basis) for basis in (other_left, other_right))
        clean = matmul(u_ * jax.nn.softmax(other_values), v_.T)
        outputs = jax.nn.relu(fitted) + jnp.exp(multiplier) * matmul(u, v.T)
        inputs = jnp.eye(2)
        unknown = jnp.asarray(False)
        truth = Truth(
            clean, outputs - jax.nn.relu(clean), inputs, jnp.asarray(jnp.inf), unknown, unknown
        )
        zero = jnp.zeros(())  # objective and steps are of no use to the statement
        fit = ConvexFit(fitted, fitted, zero, jnp.int32(0), Convergence.exact())
        return Problem(Observed(activations=inputs, outputs=outputs), truth, 1), fit


def _rotation(free: Float[Array, "2"]) -> Float[Array, "2 2"]:
    """The rotation that takes the first axis to the direction of the vector."""
    cosine, sine = free / jnp.linalg.norm(free)
    return jnp.stack([jnp.stack([cosine, -sine]), jnp.stack([sine, cosine])])


class AbstractSlowRate(AbstractStatement):
    r"""$\lVert\rho(\hat F) - \rho(F^*)\rVert_F^2 \le 2R\,b + g$, with $b$ = `noise_norm` above
    $\lVert PE\rVert$. Squared.
    """

    needs = Truth
    control = _CONTROL

    @abc.abstractmethod
    def noise_norm(self, problem: Problem) -> Float[Array, ""]:
        r"""The bound $b$ on $\lVert PE\rVert$."""

    def estimate(self, instance: Problem) -> ConvexFit:
        """The matching-loss minimiser over the nuclear ball of the truth's own radius."""
        radius = jnp.sum(singular_values(instance.truth.clean_outputs))
        return nuclear_norm_relu(
            instance.truth.layer_inputs,
            instance.observed.target_outputs,
            radius,
            tolerance=_TOLERANCE,
        )

    def broken_estimate(self, instance: Problem) -> Array:
        """Least squares that forgets the constraint: it fits the noise."""
        return least_squares(instance)

    def formula(self, instance: Problem, estimate: ConvexFit) -> Float[Array, ""]:
        r"""$2R\,b + g$."""
        radius = jnp.sum(singular_values(instance.truth.clean_outputs))
        return 2 * radius * self.noise_norm(instance) + estimate.duality_gap

    def loss(self, instance: Problem, estimate: ConvexFit | Array) -> Float[Array, ""]:
        r"""$\lVert\rho(\hat F) - \rho(F^*)\rVert_F^2$."""
        weights = estimate.weights if isinstance(estimate, ConvexFit) else estimate
        fitted = jax.nn.relu(matmul(instance.truth.layer_inputs, weights))
        return jnp.sum((fitted - jax.nn.relu(instance.truth.clean_outputs)) ** 2)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert F^*\rVert_F^2 + \lVert Y\rVert_F^2$."""
        clean, outputs = instance.truth.clean_outputs, instance.observed.target_outputs
        return squared(frobenius(clean)) + squared(frobenius(outputs))


class AnyNoise(AbstractSlowRate):
    r"""$\lVert\rho(\hat F) - \rho(F^*)\rVert_F^2 \le 2R\lVert PE\rVert + g$, whatever the noise."""

    kind = UPPER
    regimes = _ANY_NOISE
    adversary = FittedBall()
    sharp = True

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """The model."""
        return (_rectified_hypothesis(instance),)

    def noise_norm(self, problem: Problem) -> Float[Array, ""]:
        r"""$\lVert PE\rVert$."""
        space = column_space(problem.truth.layer_inputs)
        return singular_values(space.coordinates(problem.truth.noise))[0]


class Gaussian(AbstractSlowRate):
    r"""$\lVert\rho(\hat F) - \rho(F^*)\rVert_F^2 \le 2R\sigma(\sqrt q + \sqrt K + \tau) + g$
    with probability $1-\delta$.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = _REGIMES

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """The model, and i.i.d. Gaussian noise."""
        return (_rectified_hypothesis(instance), *gaussian_noise_hypotheses(instance.truth))

    def noise_norm(self, problem: Problem) -> Float[Array, ""]:
        r"""$\sigma(\sqrt q + \sqrt K + \tau)$."""
        q, outputs = column_rank(problem.truth.layer_inputs), problem.observed.shape[1]
        edge = upper_edge(q, outputs, self.failure_probability)
        return jnp.asarray(problem.truth.noise_scale) * edge


class ReluNoiseAfter(AbstractTheorem):
    """Behind a ReLU the matching loss over a nuclear-norm ball still recovers the activations, at a
    slow rate.
    """

    gaussian: Gaussian = Gaussian()
    any_noise: AnyNoise = AnyNoise()


relu_noise_after = ReluNoiseAfter()
