r"""How many calibration rows a layer needs.

**Model.** Rows $x_i \sim N(0, C)$, i.i.d., $i = 1..m$; weights $W$; no planted rank. The
data-driven estimator is judged on new rows: with $\Sigma = W^\top CW$, $k =
\operatorname{rank}\Sigma$ and eigenvalues $l_1 \ge l_2 \ge \dots$, its population loss $L(\hat M) =
\mathbb E\lVert x^\top(W - \hat M)\rVert^2$ is the reconstruction risk of an empirical principal
component analysis of the outputs; the optimum is $L^* = \sum_{j>r}l_j$.

**Claims** (squared losses; proved in paper_notes/calibration_size.md):

- `relative` (probability $1-\delta$): with $t = \sqrt{2\ln(2/\delta)}$ and $e = \sqrt{k/m} +
  t/\sqrt m < 1$, $L(\hat M) \le \Bigl(\dfrac{1 + t\sqrt{l_{r+1}/(mL^*)}}{1-e}\Bigr)^2L^*$.
- `leading_constant` (asymptotic): $m\,(\mathbb E L(\hat M) - L^*) \to \sum_{j\le
  r<k}\dfrac{l_jl_k}{l_j-l_k}$ if $l_r > l_{r+1}$.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lowrank_theory._numerics import after, matmul, relative_rank_cutoff, safe_divide
from lowrank_theory.calibration import Calibration
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.generators._random import normal
from lowrank_theory.problems import Observed, Problem, Setting, Truth
from lowrank_theory.recovery import ActivationWeighted, LowRank, recover
from lowrank_theory.theorems._quantities import deviation, law_hypothesis
from lowrank_theory.theorems._theorem import (
    ASYMPTOTIC_EQUALITY,
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)


class CalibrationSetting(eqx.Module):
    r"""A layer whose *calibration* is drawn, without its rows: the scatter of m Gaussian rows is a
    Wishart matrix.

    The output covariance $\Sigma$ has exactly the squared `spectrum` as eigenvalues ($C = I$, $W$
    square). Drawing costs the same for every number of `samples` (Bartlett's decomposition), so
    that limits can be approached.
    """

    samples: Int[np.ndarray, ""] = eqx.field(
        converter=np.asarray
    )  # an array: one compilation serves all
    inputs: int
    rank: int
    spectrum: spectra.AbstractSpectrum

    def grown(self, factor: int) -> "CalibrationSetting":
        """The same layer with `factor` times as many samples."""
        return dataclasses.replace(self, samples=factor * self.samples)

    def draw(self, *, key: PRNGKeyArray) -> Problem:
        """A layer and the second moments of `samples` rows of it."""
        with jax.enable_x64(True):
            return _draw(self, key)


@eqx.filter_jit
def _draw(setting: CalibrationSetting, key: PRNGKeyArray) -> Problem:
    left_key, right_key, normal_key, chi_key, mean_key = jax.random.split(key, 5)
    size = setting.inputs
    left = activations.haar(size, size, key=left_key)
    right = activations.haar(size, size, key=after(left, right_key))
    weights = matmul(left * setting.spectrum.values(size), right.T)
    degrees = setting.samples - 1.0 - jnp.arange(size)
    diagonal = jnp.sqrt(2 * jax.random.gamma(chi_key, degrees / 2, dtype=float))
    triangle = jnp.tril(normal(normal_key, (size, size)), -1) + jnp.diag(diagonal)
    mean = normal(mean_key, (size,)) / jnp.sqrt(setting.samples)
    calibration = Calibration(
        jnp.asarray(setting.samples, float), mean, matmul(triangle, triangle.T)
    )
    nothing = jnp.zeros((1, size))
    true = jnp.asarray(True)
    truth = Truth(weights, nothing, nothing, jnp.zeros(()), true, true, jnp.eye(size))
    return Problem(Observed(weights=weights, calibration=calibration), truth, setting.rank)


_BASE: dict[str, Any] = {
    "samples": 200,
    "inputs": 16,
    "outputs": 12,
    "rank": 3,
    "noise": noise.Gaussian(0.0),
    "target": targets.ApproximateRank(),
}
_ROWS = {
    "isotropic": Setting(**_BASE),
    "many samples": Setting(**{**_BASE, "samples": 800}),
    "barely enough samples": Setting(**{**_BASE, "samples": 60}),
    "flat spectrum": Setting(**{**_BASE, "target": targets.ApproximateRank(spectra.Flat())}),
    "coloured activations": Setting(
        **_BASE, activations=activations.GaussianRows(spectra.PowerLaw(1.0))
    ),
    "low-rank activations plus noise": Setting(
        **_BASE, activations=activations.LowRankPlusNoise(4)
    ),
    "rank-deficient activations": Setting(**_BASE, activations=activations.RankDeficient(6)),
    "massive directions": Setting(**_BASE, activations=activations.MassiveDirections(1, 100.0)),
}
_GAPPED = {
    "one spike": CalibrationSetting(400, 8, 1, spectra.Spiked(1, 2.0)),
    "three spikes": CalibrationSetting(400, 8, 3, spectra.Spiked(3, 2.0)),
    "power law": CalibrationSetting(400, 8, 2, spectra.PowerLaw(1.0)),
    "slow power law": CalibrationSetting(1600, 8, 2, spectra.PowerLaw(0.5)),
    "exponential decay": CalibrationSetting(400, 8, 3, spectra.Exponential(0.4)),
    "small gap": CalibrationSetting(
        3200, 8, 2, spectra.Given((1.5, 1.4, 1.2, 1.0, 0.9, 0.5, 0.4, 0.2))
    ),
}


def population_loss(problem: Problem, factors: LowRank) -> Float[Array, ""]:
    r"""$\mathbb E\lVert x^\top(W - Z)\rVert^2 = \operatorname{tr}\,(W-Z)^\top C(W-Z)$, on rows that
    were not seen.
    """
    difference = _weights(problem) - matmul(factors.left, factors.right)
    return jnp.sum(difference * matmul(_true_second_moment(problem), difference))


def output_spectrum(problem: Problem) -> Float[Array, " outputs"]:
    r"""The eigenvalues of $\Sigma = W^\top CW$, largest first."""
    weights = _weights(problem)
    covariance = matmul(weights.T, _true_second_moment(problem), weights)
    return jnp.maximum(jnp.linalg.eigvalsh(covariance)[::-1], 0)


def first_order_excess(eigenvalues: Float[Array, " outputs"], rank: int) -> Float[Array, ""]:
    r"""$\sum_{j\le r<k}\dfrac{l_jl_k}{l_j-l_k}$: divided by $m$, the leading term of the excess
    loss; meaningful where $l_r > l_{r+1}$.
    """
    kept, dropped = eigenvalues[:rank, None], eigenvalues[None, rank:]
    return jnp.sum(safe_divide(kept * dropped, kept - dropped))


def _true_second_moment(problem: Problem) -> Array:
    second_moment = problem.truth.second_moment
    if second_moment is None:
        raise ValueError(
            "This statement needs the true second moment, which a real layer does not have."
        )
    return jnp.asarray(second_moment, float)


def _samples(problem: Problem) -> Array:
    observed = problem.observed
    if observed.activations is not None:
        return jnp.asarray(observed.activations.shape[0], float)
    assert observed.calibration is not None
    return jnp.asarray(observed.calibration.count, float)


def _relative_deviation(problem: Problem, failure_probability: float) -> Array:
    r"""$e = \sqrt{k/m} + t/\sqrt m$."""
    eigenvalues = output_spectrum(problem)
    cutoff = relative_rank_cutoff((eigenvalues.size,)) * eigenvalues[0]
    dimensions = jnp.sum(eigenvalues > cutoff)
    slack = deviation(failure_probability, sides=2)
    return (jnp.sqrt(dimensions) + slack) / jnp.sqrt(_samples(problem))


def _weights(problem: Problem) -> Array:
    if problem.observed.weights is None:
        raise ValueError("This statement is about trained weights: give `Observed(weights=...)`.")
    return jnp.asarray(problem.observed.weights, float)


def _rows_only(problem: Problem) -> Observed:
    """The layer without the given outputs: what it computes itself is the target here."""
    observed = problem.observed
    return Observed(
        weights=observed.weights,
        activations=observed.activations,
        calibration=observed.calibration,
    )


def _weakest_outputs(problem: Problem) -> LowRank:
    weights = _weights(problem)
    covariance = matmul(weights.T, _true_second_moment(problem), weights)
    _, vectors = jnp.linalg.eigh(covariance)
    weakest = vectors[:, : problem.rank]
    return LowRank(matmul(weights, weakest), weakest.T)


class Relative(AbstractStatement):
    r"""$L(\hat M) \le \bigl(\sqrt{L^*} + t\sqrt{l_{r+1}/m}\bigr)^2/(1-e)^2$ with $e = \sqrt{k/m} +
    t/\sqrt m < 1$. Squared.
    """

    kind = UPPER_WITH_PROBABILITY
    needs = Truth
    regimes = _ROWS
    control = _ROWS["massive directions"]

    def hypotheses(self, instance: Problem, failure_probability: float) -> tuple[Hypothesis, ...]:
        r"""Gaussian rows, and enough of them."""
        shortfall = 1 - _relative_deviation(instance, failure_probability)
        name = "there are enough samples for the dimension of the outputs"
        return (_gaussian_rows(instance), Hypothesis(name, shortfall))

    def estimate(self, instance: Problem, failure_probability: float) -> LowRank:
        """The data-driven recovery from m rows."""
        return recover(_rows_only(instance), instance.rank, ActivationWeighted()).factors

    def broken_estimate(self, instance: Problem, failure_probability: float) -> LowRank:
        """The weakest output directions in place of the strongest."""
        return _weakest_outputs(instance)

    def formula(
        self, instance: Problem, estimate: LowRank, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\bigl(\sqrt{L^*} + t\sqrt{l_{r+1}/m}\bigr)^2/(1-e)^2$, infinite at $e = 1$."""
        dropped = output_spectrum(instance)[instance.rank :]
        slack = deviation(failure_probability, sides=2) / jnp.sqrt(_samples(instance))
        numerator = jnp.sqrt(jnp.sum(dropped)) + slack * jnp.sqrt(jnp.max(dropped, initial=0.0))
        shortfall = 1 - _relative_deviation(instance, failure_probability)
        return jnp.where(shortfall == 0, jnp.inf, safe_divide(numerator, shortfall) ** 2)

    def loss(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        """The population loss."""
        return population_loss(instance, estimate)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        """The loss of the zero layer."""
        return jnp.sum(output_spectrum(instance))


class LeadingConstant(AbstractStatement):
    r"""$\mathbb E L(\hat M) - L^* \sim \frac1m\sum_{j\le r<k}\frac{l_jl_k}{l_j-l_k}$. Squared;
    checked at growing m.
    """

    kind = ASYMPTOTIC_EQUALITY
    needs = Truth
    regimes = _GAPPED
    control = _GAPPED["three spikes"]

    def hypotheses(self, instance: Problem, failure_probability: float) -> tuple[Hypothesis, ...]:
        """Gaussian rows and an eigengap at the rank."""
        eigenvalues = output_spectrum(instance)
        around = eigenvalues[instance.rank - 1 : instance.rank + 1]
        gap = safe_divide(around[0] - around[-1], eigenvalues[0])
        margin = gap - relative_rank_cutoff((eigenvalues.size,))
        name = "the output covariance has a gap at the rank"
        return (_gaussian_rows(instance), Hypothesis(name, margin))

    def estimate(self, instance: Problem, failure_probability: float) -> LowRank:
        """The data-driven recovery from m rows."""
        return recover(_rows_only(instance), instance.rank, ActivationWeighted()).factors

    def broken_estimate(self, instance: Problem, failure_probability: float) -> LowRank:
        """The recovery from half the rows: the deviation of the second moment, times the root of
        two.
        """
        seen, count = instance.observed.calibration, _samples(instance)
        assert seen is not None
        expected = count * _true_second_moment(instance)
        worse = expected + jnp.sqrt(2.0) * (seen.gram() - expected)
        halved = Calibration(count, jnp.zeros_like(seen.mean), worse)
        observed = Observed(weights=instance.observed.weights, calibration=halved)
        return recover(observed, instance.rank, ActivationWeighted()).factors

    def formula(
        self, instance: Problem, estimate: LowRank, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\frac1m\sum_{j\le r<k}\frac{l_jl_k}{l_j-l_k}$."""
        return first_order_excess(output_spectrum(instance), instance.rank) / _samples(instance)

    def loss(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$L(\hat M) - L^*$."""
        optimum = jnp.sum(output_spectrum(instance)[instance.rank :])
        return population_loss(instance, estimate) - optimum

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        """The loss of the zero layer."""
        return jnp.sum(output_spectrum(instance))


def _gaussian_rows(problem: Problem) -> Hypothesis:
    name = "the activations are independent Gaussian rows"
    return law_hypothesis(name, problem.truth.gaussian_rows)


class CalibrationSize(AbstractTheorem):
    """How the loss on new rows approaches the optimum as calibration rows are added."""

    relative: Relative = Relative()
    leading_constant: LeadingConstant = LeadingConstant()


calibration_size = CalibrationSize()
