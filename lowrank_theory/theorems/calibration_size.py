r"""How many calibration rows a layer needs.

**Model.** Rows $x_i \sim N(0, C)$, i.i.d., $i = 1..m$; weights $W$ that do not depend on them; no
planted rank. (Trained weights depend on their training rows: calibrate on others.) The data-driven
estimator is judged on new rows: with $\Sigma = W^\top CW$, $k = \operatorname{rank}\Sigma$ and
eigenvalues $l_1 \ge l_2 \ge \dots$, its population loss $L(\hat M) = \mathbb E\lVert x^\top(W -
\hat M)\rVert^2$ is the reconstruction risk of an empirical principal component analysis of the
outputs; the optimum is $L^* = \sum_{j>r}l_j$.

**Claims** (squared losses; proved in paper_notes/calibration_size.md):

- `relative` (probability $1-\delta$): with $t = \sqrt{2\ln(2/\delta)}$ and $(1-e)\sqrt m > 0$ the
  edge of `gaussian_noise.smallest` for an $m\times k$ matrix at $\delta/2$, where $e \le (\sqrt k +
  t)/\sqrt m$, $L(\hat M) \le \dfrac{L^* + t(2\sum_{k>r}l_k^2/m)^{1/2} + t^2l_{r+1}/m}{(1-e)^2}
  \le \Bigl(\dfrac{1 + t/\sqrt m}{1-e}\Bigr)^2L^*$.
- `leading_constant` (asymptotic): $m\,(\mathbb E L(\hat M) - L^*) \to \sum_{j\le
  r<k}\dfrac{l_jl_k}{l_j-l_k}$ if $l_r > l_{r+1}$.

Of the realised deviation $D = \hat\Sigma - \Sigma$ of the second moment of the outputs, with
eigenvalues $d_1 \ge \dots \ge d_K$, $r_0 = \min(r, K-r)$ and $\kappa = \sum_{i\le r_0}(d_i -
d_{K+1-i}) \le 2r_0\lVert D\rVert$, for any rows whatsoever:

- `no_gap` (sure): $L(\hat M) - L^* \le \kappa$. Attained.
- `gap` (sure): with $x = (d_1 - d_K)/(l_r - l_{r+1}) < 1$, $L(\hat M) - L^* \le
  \tfrac12\kappa\tan(\tfrac12\arcsin x)$. Attained.
- `gaussian` (probability $1-\delta$): both, with $d_1 - d_K$ and $\kappa/r_0$ replaced by
  $2l_1(2a+a^2)$, $a$ the deviation of `second_moment`.

With a ridge, $\hat M$ the minimiser of $\hat Q(Z) = \operatorname{tr}\,(W-Z)^\top(\hat C+\mu
I)(W-Z)$, and $Q$ the same with $C$:

- `ridge` (sure): $Q(\hat M) \le \dfrac{1+e_+}{1-e_-}\min_{\operatorname{rank}Z\le r}Q(Z)$, where
  $-e_-$ and $e_+$ are the extreme eigenvalues of $(C+\mu)^{-1/2}(\hat C-C)(C+\mu)^{-1/2}$.
  Attained.
- `ridge_gaussian` (probability $1-\delta$): with $Z^*$ the minimiser of $Q$, $\theta =
  l_1(C)/(l_1(C)+\mu)$ and $\epsilon = \bigl(\sqrt{\operatorname{tr}C(C+\mu)^{-1}} +
  \sqrt\theta(t+0.3688)\bigr)/\sqrt m$, or $\sqrt\theta e$ with the $e$ of `relative` for $k =
  \operatorname{rank}C$ if that is smaller, $Q(\hat M) \le \dfrac{a + \mu\lVert
  W-Z^*\rVert_F^2}{1-\theta + (\sqrt\theta-\epsilon)_+^2}$, where $a$ is the numerator of `relative`
  for the eigenvalues of $(W-Z^*)^\top C(W-Z^*)$: no dimension enters, and it holds for any number
  of rows.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._numerics import (
    check_positive,
    matmul,
    safe_divide,
    settle,
)
from lowrank_theory._random import normal
from lowrank_theory.calibration import Calibration
from lowrank_theory.problems import Observed, Problem, Truth
from lowrank_theory.recovery import (
    ActivationWeighted,
    LowRank,
    recover,
    ridge,
    ridge_from_moments,
)
from lowrank_theory.theorems._calibration import (
    DEVIATING,
    GAPPED,
    RESOLVED,
    RIDGED,
    ROWS,
    SAMPLES,
    eigengap,
    largest_exchange,
    likely_energy,
    likely_loss,
    output_deviation,
    output_dimension,
    output_spectrum,
    population_loss,
    rows_only,
    sample_count,
    sample_second_moment,
    trained_weights,
    true_second_moment,
    weakest_outputs,
)
from lowrank_theory.theorems._calibration import CalibrationSetting as CalibrationSetting
from lowrank_theory.theorems._calibration import FreshRows as FreshRows
from lowrank_theory.theorems._calibration import (
    enough_samples_hypothesis as enough_samples_hypothesis,
)
from lowrank_theory.theorems._calibration import first_order_excess as first_order_excess
from lowrank_theory.theorems._calibration import gap_hypothesis as gap_hypothesis
from lowrank_theory.theorems._calibration import sufficient_samples as sufficient_samples
from lowrank_theory.theorems._quantities import (
    coarseness,
    largest_turn,
    law_hypothesis,
)
from lowrank_theory.theorems._theorem import (
    ASYMPTOTIC_EQUALITY,
    UPPER,
    UPPER_WITH_PROBABILITY,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Rate,
    Refuted,
)
from lowrank_theory.theorems.second_moment import (
    gaussian_deviation,
    gaussian_shortfall,
)

INDEPENDENT_WEIGHTS = "the weights do not depend on the calibration rows"


_MANY_ROWS = Refuted(1.0, "many rows: both sides tend to the optimum")


class Relative(AbstractStatement):
    r"""$L(\hat M) \le \bigl(L^* + t(2\sum_{k>r}l_k^2/m)^{1/2} + t^2l_{r+1}/m\bigr)/(1-e)^2$ with
    $(1-e)\sqrt m > 0$ below the least singular value of a Gaussian $m\times k$ matrix. Squared.
    """

    kind = UPPER_WITH_PROBABILITY
    needs = Truth
    regimes = ROWS
    control = ROWS["massive directions"]
    refuted_below = _MANY_ROWS

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        r"""Gaussian rows that the weights do not know, and enough of them."""
        dimension, samples = output_dimension(instance), sample_count(instance)
        enough = enough_samples_hypothesis(dimension, samples, self.failure_probability)
        return (*gaussian_rows_hypotheses(instance), enough)

    def estimate(self, instance: Problem) -> LowRank:
        """The data-driven recovery from m rows."""
        return recover(rows_only(instance), instance.rank, ActivationWeighted()).factors

    def broken_estimate(self, instance: Problem) -> LowRank:
        """The weakest output directions in place of the strongest."""
        return weakest_outputs(instance)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        """`likely_loss`, infinite at $e = 1$."""
        return likely_loss(
            output_spectrum(instance),
            instance.rank,
            output_dimension(instance),
            sample_count(instance),
            self.failure_probability,
        )

    def loss(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        """The population loss."""
        return population_loss(instance, estimate)

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        """The loss of the zero layer."""
        return coarseness(instance.observed) * jnp.sum(output_spectrum(instance))


class LeadingConstant(AbstractStatement):
    r"""$\mathbb E L(\hat M) - L^* \sim \frac1m\sum_{j\le r<k}\frac{l_jl_k}{l_j-l_k}$. Squared;
    checked at growing m.
    """

    kind = ASYMPTOTIC_EQUALITY
    needs = Truth
    regimes = GAPPED
    control = GAPPED["three spikes"]
    rates = (
        Rate(
            "samples", {m: GAPPED["three spikes"].enlarged(m // 400) for m in SAMPLES}, -1.0, -1.0
        ),
    )

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """Gaussian rows and an eigengap at the rank."""
        gap = gap_hypothesis(output_spectrum(instance), instance.rank)
        return (*gaussian_rows_hypotheses(instance), gap)

    def estimate(self, instance: Problem) -> LowRank:
        """The data-driven recovery from m rows."""
        return recover(rows_only(instance), instance.rank, ActivationWeighted()).factors

    def broken_estimate(self, instance: Problem) -> LowRank:
        """The recovery from half the rows: the deviation of the second moment, times the root of
        two.
        """
        seen, count = instance.observed.calibration, sample_count(instance)
        assert seen is not None
        expected = count * true_second_moment(instance)
        worse = expected + jnp.sqrt(2.0) * (seen.gram() - expected)
        halved = Calibration(count, jnp.zeros_like(seen.mean), worse)
        observed = Observed(weights=instance.observed.weights, calibration=halved)
        return recover(observed, instance.rank, ActivationWeighted()).factors

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$\frac1m\sum_{j\le r<k}\frac{l_jl_k}{l_j-l_k}$."""
        return first_order_excess(output_spectrum(instance), instance.rank) / sample_count(instance)

    def loss(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$L(\hat M) - L^*$."""
        optimum = jnp.sum(output_spectrum(instance)[instance.rank :])
        return population_loss(instance, estimate) - optimum

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        """The loss of the zero layer."""
        return coarseness(instance.observed) * jnp.sum(output_spectrum(instance))


class KnownOptimum(AbstractAdversary):
    """Any true second moment of two outputs, and a sample of which the leading direction is given.

    `strength` is that of the ridge.
    """

    strength: float = 0.0

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array]:
        """A root of the true second moment; angle and logarithms of the sample's eigenvalues."""
        keys = jax.random.split(key)
        return normal(keys[0], (2, 2)), normal(keys[1], (3,))

    def play(self, free: tuple[Array, Array]) -> tuple[Problem, LowRank]:
        """The layer with weights I, and its recovery."""
        root, (angle, low, gap) = free[0], free[1]
        leading = jnp.stack([jnp.cos(angle), jnp.sin(angle)])[:, None]
        # The floor of the gap is what keeps the estimate from being a matter of rounding.
        sample = jnp.exp(low) * jnp.eye(2)
        sample = sample + (jnp.exp(gap) + 1e-4) * matmul(leading, leading.T)
        zeros = jnp.zeros((1, 2))
        true = jnp.asarray(True)
        truth = Truth(jnp.eye(2), zeros, zeros, jnp.zeros(()), true, true, matmul(root, root.T))
        calibration = Calibration(jnp.ones(()), jnp.zeros(2), sample)
        observed = Observed(weights=jnp.eye(2), calibration=calibration)
        return Problem(observed, truth, 1), LowRank(leading, leading.T)


class AbstractExcess(AbstractStatement):
    r"""A bound on $L(\hat M) - L^*$. Squared."""

    needs = Truth

    def estimate(self, instance: Problem) -> LowRank:
        """The data-driven recovery from m rows."""
        return recover(rows_only(instance), instance.rank, ActivationWeighted()).factors

    def broken_estimate(self, instance: Problem) -> LowRank:
        """The weakest output directions in place of the strongest."""
        return weakest_outputs(instance)

    def loss(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$L(\hat M) - L^*$."""
        optimum = jnp.sum(output_spectrum(instance)[instance.rank :])
        return population_loss(instance, estimate) - optimum

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        """The losses of the zero layer, on new rows and on those seen."""
        losses = jnp.sum(output_spectrum(instance)) + jnp.sum(jnp.abs(output_deviation(instance)))
        return coarseness(instance.observed) * losses


class NoGap(AbstractExcess):
    r"""$L(\hat M) - L^* \le \kappa = \sum_{i\le r_0}(d_i - d_{K+1-i})$, whatever the rows and the
    spectrum. Squared.
    """

    kind = UPPER
    regimes = DEVIATING
    control = DEVIATING["many rows"]
    adversary = KnownOptimum()
    sharp = True

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """None: it holds for every pair of second moments."""
        return ()

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$\kappa$."""
        return largest_exchange(output_deviation(instance), instance.rank)


class Gap(AbstractExcess):
    r"""$L(\hat M) - L^* \le \tfrac12\kappa\tan(\tfrac12\arcsin x)$ with $x = (d_1 - d_K)/(l_r -
    l_{r+1}) < 1$, whatever the rows. Squared.
    """

    kind = UPPER
    regimes = RESOLVED
    control = RESOLVED["many rows"]
    adversary = KnownOptimum()
    sharp = True

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """The gap exceeds the spread of the deviation."""
        values, largest = output_deviation(instance), output_spectrum(instance)[0]
        margin = safe_divide(eigengap(instance) - (values[0] - values[-1]), largest)
        above = jnp.where(margin == 0, -1.0, margin)
        return (Hypothesis("the gap exceeds the spread of the deviation", above),)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$\tfrac12\kappa\tan(\tfrac12\arcsin x)$."""
        values = output_deviation(instance)
        _, tangent = largest_turn(safe_divide(values[0] - values[-1], eigengap(instance)))
        return largest_exchange(values, instance.rank) * tangent / 2


class Gaussian(AbstractExcess):
    r"""$L(\hat M) - L^* \le \tfrac12r_0d\tan(\tfrac12\arcsin x)$ with $d = 2l_1(2a+a^2)$ where $x =
    d/(l_r-l_{r+1}) < 1$, of order $1/m$, and $\le r_0d$ always, for Gaussian rows. Squared.
    """

    kind = UPPER_WITH_PROBABILITY
    regimes = DEVIATING
    control = DEVIATING["many rows"]
    refuted_below = Refuted(
        0.25,
        "`leading_constant` for many outputs, of which one is just above all others",
    )

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """Gaussian rows that the weights do not know."""
        return gaussian_rows_hypotheses(instance)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$r_0d$, and less where the gap exceeds $d$."""
        eigenvalues, gap = output_spectrum(instance), eigengap(instance)
        a = gaussian_deviation(eigenvalues, sample_count(instance), self.failure_probability)
        spread = 2 * eigenvalues[0] * (2 * a + a**2)
        _, tangent = largest_turn(jnp.where(gap > 0, safe_divide(spread, gap), jnp.inf))
        exchanged = min(instance.rank, eigenvalues.size - instance.rank)
        return exchanged * spread * jnp.where(spread < gap, tangent / 2, 1.0)


class AbstractRidged(AbstractStatement):
    r"""A bound on $Q(\hat M)$, for the ridge $\mu =$ `strength` $\cdot\operatorname{tr}C/N$.
    Squared.
    """

    needs = Truth
    regimes = RIDGED
    control = RIDGED["massive directions"]

    strength: float = 0.1

    def __check_init__(self) -> None:
        settle(self, "strength", check_positive)

    def penalty(self, problem: Problem) -> Float[Array, ""]:
        r"""$\mu$."""
        return self.strength * jnp.mean(jnp.diagonal(true_second_moment(problem)))

    def ridge_hypothesis(self, problem: Problem) -> Hypothesis:
        r"""$\mu > 0$: the inputs are not all zero."""
        margin = jnp.where(self.penalty(problem) > 0, 1.0, -1.0)
        return Hypothesis("the penalty is positive", margin)

    def total(self, problem: Problem) -> Float[Array, "inputs inputs"]:
        r"""$C + \mu I$."""
        second_moment = true_second_moment(problem)
        return second_moment + self.penalty(problem) * jnp.eye(second_moment.shape[0])

    def estimate(self, instance: Problem) -> LowRank:
        """The recovery with the ridge from m rows."""
        weights, observed = trained_weights(instance), rows_only(instance)
        penalty = sample_count(instance) * self.penalty(instance)
        if observed.activations is None:
            seen = observed.calibration
            assert seen is not None
            return ridge_from_moments(weights, seen, penalty, rank=instance.rank)[0]
        rows = jnp.asarray(observed.activations, float)
        return ridge(weights, rows, penalty, rank=instance.rank)[0]

    def broken_estimate(self, instance: Problem) -> LowRank:
        """The weakest output directions in place of the strongest."""
        return weakest_outputs(instance)

    def loss(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$Q(\hat M) = L(\hat M) + \mu\lVert W - \hat M\rVert_F^2$."""
        difference = trained_weights(instance) - matmul(estimate.left, estimate.right)
        return jnp.sum(difference * matmul(self.total(instance), difference))

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        """The loss of the zero layer."""
        weights = trained_weights(instance)
        return jnp.sum(weights * matmul(self.total(instance), weights))


class Ridge(AbstractRidged):
    r"""$Q(\hat M) \le \dfrac{1+e_+}{1-e_-}\min_{\operatorname{rank}Z\le r}Q(Z)$, whatever the rows.
    Squared.
    """

    kind = UPPER
    adversary = KnownOptimum()
    sharp = True

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """A ridge: with one, $e_- < 1$ for all rows."""
        return (self.ridge_hypothesis(instance),)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""The extreme eigenvalues of $(C+\mu)^{-1/2}(\hat C+\mu)(C+\mu)^{-1/2}$, and $\sum_{k>r}$
        of those of $W^\top(C+\mu)W$.
        """
        total, weights = self.total(instance), trained_weights(instance)
        seen = total + sample_second_moment(instance) - true_second_moment(instance)
        root = jnp.linalg.cholesky(total)
        half = jax.scipy.linalg.solve_triangular(root, seen, lower=True)
        whole = jax.scipy.linalg.solve_triangular(root, half.T, lower=True)
        ratios = jnp.linalg.eigvalsh(whole)
        eigenvalues = jnp.linalg.eigvalsh(matmul(weights.T, total, weights))
        least = jnp.sum(jnp.maximum(eigenvalues[: eigenvalues.size - instance.rank], 0))
        return ratios[-1] / ratios[0] * least


class RidgeGaussian(AbstractRidged):
    r"""$Q(\hat M) \le \bigl(\lVert R\rVert_F^2 + t\sqrt{2/m}\,\lVert R^\top R\rVert_F + t^2\lVert
    R\rVert^2/m + \mu\lVert W-Z^*\rVert_F^2\bigr)/(1-\theta+(\sqrt\theta-\epsilon)_+^2)$, $R =
    C^{1/2}(W-Z^*)$. Squared.
    """

    kind = UPPER_WITH_PROBABILITY
    refuted_below = _MANY_ROWS

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """A ridge, and Gaussian rows that the weights do not know."""
        return (self.ridge_hypothesis(instance), *gaussian_rows_hypotheses(instance))

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""What $Z^*$ loses on the rows, over the least part of $Q$ that they show."""
        samples, penalty = sample_count(instance), self.penalty(instance)
        second_moment, weights = true_second_moment(instance), trained_weights(instance)
        half = self.failure_probability / 2

        _, vectors = jnp.linalg.eigh(matmul(weights.T, self.total(instance), weights))
        left = matmul(weights, vectors[:, : vectors.shape[1] - instance.rank])  # W - Z*
        lost = jnp.maximum(jnp.linalg.eigvalsh(matmul(left.T, second_moment, left)), 0)
        shown = likely_energy(lost, samples, half) + penalty * jnp.sum(left**2)

        shares = jnp.maximum(jnp.linalg.eigvalsh(second_moment)[::-1], 0)
        shares = shares / (shares + penalty)
        a = gaussian_shortfall(shares, samples, half)
        least = 1 - shares[0] * (1 - jnp.maximum(1 - a, 0) ** 2)
        return shown / least


def gaussian_rows_hypotheses(problem: Problem) -> tuple[Hypothesis, ...]:
    """Independent rows, of which the weights know nothing."""
    truth = problem.truth
    return (
        law_hypothesis("the activations are independent Gaussian rows", truth.gaussian_rows),
        law_hypothesis(INDEPENDENT_WEIGHTS, truth.independent_weights),
    )


class CalibrationSize(AbstractTheorem):
    """Compressing from $m$ rows is principal component analysis of the outputs; its excess error
    falls as $1/m$, with a known constant, and a ridge makes it depend on the effective dimension
    only.
    """

    relative: Relative = Relative()
    leading_constant: LeadingConstant = LeadingConstant()
    no_gap: NoGap = NoGap()
    gap: Gap = Gap()
    gaussian: Gaussian = Gaussian()
    ridge: Ridge = Ridge()
    ridge_gaussian: RidgeGaussian = RidgeGaussian()


calibration_size = CalibrationSize()
