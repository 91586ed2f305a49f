r"""Recovery behind a ReLU: noise after it.

**Model.** $Y = \rho(\tilde XM) + E$ with $\rho = \mathrm{relu}$, $F^* = \tilde XM$ of nuclear norm
$R$, $P$ the projector on the columns of $\tilde X$. The estimator minimises the matching loss
$\sum\tfrac12\rho(F_{ij})^2 - Y_{ij}F_{ij}$ over $F = \tilde XZ$ with $\lVert F\rVert_* \le R$, by a
first-order method that stops at a duality gap $g$.

**Claims** (squared errors of the *activations*; proved in paper_notes/relu_noise_after.md):

- `any_noise` (sure): $\lVert\rho(\hat F) - \rho(F^*)\rVert_F^2 \le 2R\lVert PE\rVert + g$.
- `gaussian` (probability $1-\delta$), $E_{ij}$ i.i.d. $N(0,\sigma^2)$, $t = \sqrt{2\ln(1/\delta)}$:
  $\le 2R\sigma(\sqrt q+\sqrt K+t) + g$.

A slow rate (the first power of the noise), without logarithms. Only $\rho(F^*)$ is identifiable:
where both $F^*$ and $\hat F$ are negative the data say nothing.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import matmul
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.problems import Problem, ReluThenNoise, Setting, Truth
from lowrank_theory.recovery.relu import NuclearNormFit, nuclear_norm_relu
from lowrank_theory.theorems._quantities import (
    attainable_noise,
    column_space,
    deviation,
    law_hypothesis,
    model_hypothesis,
    singular_values,
)
from lowrank_theory.theorems._theorem import (
    UPPER,
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Kind,
)

_BASE = {"samples": 40, "inputs": 16, "outputs": 12, "rank": 2, "link": ReluThenNoise()}
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
_CONTROL = Setting(
    samples=48,
    inputs=48,
    outputs=48,
    rank=1,
    link=ReluThenNoise(),
    noise=noise.Gaussian(1.0),
    target=targets.ExactRank(scale=0.05),
)


def sure_norm(problem: Problem, failure_probability: float) -> Array:
    r"""$\lVert PE\rVert$."""
    values, _ = attainable_noise(problem)
    return values[0]


def gaussian_norm(problem: Problem, failure_probability: float) -> Array:
    r"""$\sigma(\sqrt q + \sqrt K + t)$."""
    q = column_space(problem.truth.layer_inputs).dimension
    edge = jnp.sqrt(q) + math.sqrt(problem.observed.shape[1]) + deviation(failure_probability)
    return problem.truth.noise_scale * edge


def _rectified_hypothesis(problem: Problem) -> Hypothesis:
    return model_hypothesis(
        "the outputs are rectified clean outputs plus noise",
        problem,
        jax.nn.relu(problem.truth.clean_outputs),
    )


class SlowRate(AbstractStatement):
    r"""$\lVert\rho(\hat F) - \rho(F^*)\rVert_F^2 \le 2R\,b + g$, with $b \ge \lVert PE\rVert$
    surely or with probability. Squared.
    """

    kind: Kind
    regimes: Mapping[str, Setting]
    noise_norm: Callable[[Problem, float], Array]
    gaussian_only: bool
    control = _CONTROL
    needs = Truth

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """The model, and the law of the noise if the statement needs one."""
        model = _rectified_hypothesis(instance)
        if not self.gaussian_only:
            return (model,)
        return (
            model,
            law_hypothesis("the noise is i.i.d. Gaussian", instance.truth.gaussian_noise),
        )

    def estimate(self, instance: Problem, failure_probability: float) -> NuclearNormFit:
        """The matching-loss minimiser over the nuclear ball of the truth's own radius."""
        radius = jnp.sum(singular_values(instance.truth.clean_outputs))
        return nuclear_norm_relu(
            instance.truth.layer_inputs, instance.observed.target_outputs, radius
        )

    def broken_estimate(self, instance: Problem, failure_probability: float) -> Array:
        """Least squares that forgets the constraint: it fits the noise."""
        inverse = jnp.linalg.pinv(instance.truth.layer_inputs)
        return matmul(inverse, instance.observed.target_outputs)

    def formula(
        self, instance: Problem, estimate: NuclearNormFit, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$2R\,b + g$."""
        radius = jnp.sum(singular_values(instance.truth.clean_outputs))
        return 2 * radius * self.noise_norm(instance, failure_probability) + estimate.duality_gap

    def loss(self, instance: Problem, estimate: NuclearNormFit | Array) -> Float[Array, ""]:
        r"""$\lVert\rho(\hat F) - \rho(F^*)\rVert_F^2$."""
        weights = estimate.weights if isinstance(estimate, NuclearNormFit) else estimate
        fitted = jax.nn.relu(matmul(instance.truth.layer_inputs, weights))
        return jnp.sum((fitted - jax.nn.relu(instance.truth.clean_outputs)) ** 2)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        r"""$\lVert F^*\rVert_F^2 + \lVert Y\rVert_F^2$."""
        clean, outputs = instance.truth.clean_outputs, instance.observed.target_outputs
        return jnp.sum(clean**2) + jnp.sum(outputs**2)


class ReluNoiseAfter(AbstractTheorem):
    """Recovery behind a ReLU with noise after it, by a convex matching loss."""

    gaussian: SlowRate = SlowRate(UPPER_WITH_PROBABILITY, _REGIMES, gaussian_norm, True)
    any_noise: SlowRate = SlowRate(UPPER, {**_REGIMES, **_OTHER_NOISES}, sure_norm, False)


relu_noise_after = ReluNoiseAfter()
