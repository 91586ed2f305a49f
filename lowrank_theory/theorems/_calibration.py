"""Layers of which only the calibration is drawn, and the quantities of calibration theory."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lowrank_theory._arrays import Key, after, matmul, namespace, of_either_key
from lowrank_theory._numerics import (
    Number,
    check_count,
    check_rank,
    relative_rank_cutoff,
    safe_divide,
)
from lowrank_theory._random import chi, normal, split
from lowrank_theory.calibration import Calibration
from lowrank_theory.generators import activations, spectra, targets
from lowrank_theory.generators.activations import AbstractActivations, Isotropic, haar
from lowrank_theory.generators.targets import AbstractTarget, ApproximateRank
from lowrank_theory.problems import Observed, Problem, Truth
from lowrank_theory.recovery import LowRank
from lowrank_theory.theorems._quantities import deviation
from lowrank_theory.theorems._theorem import Hypothesis
from lowrank_theory.theorems.second_moment import relative_shortfall


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

    def enlarged(self, factor: int) -> "CalibrationSetting":
        """The same layer with `factor` times as many samples."""
        return dataclasses.replace(self, samples=factor * self.samples)

    @of_either_key
    def draw(self, *, key: Key) -> Problem:
        """A layer and the second moments of `samples` rows of it."""
        left_key, right_key, normal_key, chi_key, mean_key = split(key, 5)
        xp, size = namespace(key), self.inputs
        left = haar(size, size, key=left_key)
        right = haar(size, size, key=after(left, right_key))
        weights = matmul(left * self.spectrum.values(size), right.T)
        diagonal = chi(chi_key, self.samples - 1.0 - xp.arange(size))
        triangle = xp.tril(normal(normal_key, (size, size)), -1) + xp.diag(diagonal)
        mean = normal(mean_key, (size,)) / xp.sqrt(self.samples)
        calibration = Calibration(
            xp.asarray(self.samples, float), mean, matmul(triangle, triangle.T)
        )
        nothing, true = xp.zeros((1, size)), xp.asarray(True)
        truth = Truth(weights, nothing, nothing, xp.zeros(()), true, true, xp.eye(size), true, true)
        return Problem(Observed(weights=weights, calibration=calibration), truth, self.rank)


class FreshRows(eqx.Module):
    """A layer whose weights were drawn apart from the rows that calibrate it, as statements about
    the size of a calibration ask.

    The weights follow the law `target`, which meets the identity in the place of the rows.
    """

    samples: int
    inputs: int
    outputs: int
    rank: int
    activations: AbstractActivations = Isotropic()
    target: AbstractTarget = ApproximateRank()

    def __check_init__(self) -> None:
        for name in ("samples", "inputs", "outputs"):
            check_count(name, getattr(self, name), 1)
        check_rank(self.rank, self.inputs, self.outputs)

    @of_either_key
    def draw(self, *, key: Key) -> Problem:
        """A layer and its rows, in float64."""
        xp, (row_key, weight_key) = namespace(key), split(key)
        rows, second_moment = self.activations.draw(self.samples, self.inputs, key=row_key)
        weights = self.target.draw(
            xp.eye(self.inputs), self.outputs, self.rank, key=after(rows, weight_key)
        )
        true = xp.asarray(True)
        truth = Truth(
            weights,
            xp.zeros((self.samples, self.outputs)),
            rows,
            noise_scale=xp.zeros(()),
            gaussian_noise=true,
            gaussian_rows=xp.asarray(self.activations.gaussian_rows),
            second_moment=second_moment,
            independent_noise=true,
            independent_weights=true,
        )
        return Problem(Observed(weights=weights, activations=rows), truth, self.rank)


def population_loss(problem: Problem, factors: LowRank) -> Float[Array, ""]:
    r"""$\mathbb E\lVert x^\top(W - Z)\rVert^2 = \operatorname{tr}\,(W-Z)^\top C(W-Z)$, on rows that
    were not seen.
    """
    difference = trained_weights(problem) - matmul(factors.left, factors.right)
    return jnp.sum(difference * matmul(true_second_moment(problem), difference))


def output_spectrum(problem: Problem) -> Float[Array, " outputs"]:
    r"""The eigenvalues of $\Sigma = W^\top CW$, largest first."""
    weights = trained_weights(problem)
    covariance = matmul(weights.T, true_second_moment(problem), weights)
    return jnp.maximum(jnp.linalg.eigvalsh(covariance)[::-1], 0)


def first_order_excess(
    eigenvalues: Float[Array, " outputs"], rank: Int[Array, ""] | int
) -> Float[Array, ""]:
    r"""$\sum_{j\le r<k}\dfrac{l_jl_k}{l_j-l_k}$: divided by $m$, the leading term of the excess
    loss; meaningful where $l_r > l_{r+1}$.
    """
    is_kept = jnp.arange(eigenvalues.size) < rank
    kept, dropped = jnp.where(is_kept, eigenvalues, 0)[:, None], jnp.where(is_kept, 0, eigenvalues)
    return jnp.sum(safe_divide(kept, kept - dropped) * dropped)


def likely_loss(
    eigenvalues: Float[Array, " outputs"],
    rank: Int[Array, ""] | int,
    dimension: Number,
    samples: Number,
    failure_probability: Number,
) -> Float[Array, ""]:
    r"""$\bigl(L^* + t(2\sum_{k>r}l_k^2/m)^{1/2} + t^2l_{r+1}/m\bigr)/(1-e)^2$, infinite at $e = 1$;
    call it inside `float64`. `dimension` is $k$.
    """
    dropped = jnp.where(jnp.arange(eigenvalues.size) < rank, 0, eigenvalues)
    energy = likely_energy(dropped, samples, failure_probability / 2)
    least = likely_least_value(dimension, samples, failure_probability)
    return jnp.where(least == 0, jnp.inf, safe_divide(energy, least**2))


def likely_energy(
    eigenvalues: Float[Array, " outputs"], samples: Number, failure_probability: Number
) -> Float[Array, ""]:
    r"""$\sum_kl_k + t(2\sum_kl_k^2/m)^{1/2} + t^2\max l_k/m$, $t^2 = 2\ln(1/\delta)$: with
    probability $1-\delta$ above the mean squared length of $m$ Gaussian rows (Laurent and Massart
    2000, Lemma 1). Call it inside `float64`.
    """
    slack = deviation(failure_probability) / jnp.sqrt(samples)
    spread = math.sqrt(2) * jnp.linalg.norm(eigenvalues) * slack
    return jnp.sum(eigenvalues) + spread + jnp.max(eigenvalues, initial=0.0) * slack**2


def likely_least_value(
    dimension: Number, samples: Number, failure_probability: Number
) -> Float[Array, ""]:
    r"""$1 - e$ of the same."""
    return 1 - relative_shortfall(dimension, samples, failure_probability / 2)


def sufficient_samples(
    eigenvalues: Float[Array, " outputs"],
    rank: Int[Array, ""] | int,
    dimension: Number,
    excess: float,
    failure_probability: Number,
) -> Float[Array, ""]:
    r"""The fewest rows for which `likely_loss` is at most $(1 + \mathrm{excess})L^*$, by bisection
    up to $2^{52}$; call it inside `float64`. Meaningful where $L^* > 0$.
    """
    allowed = (1 + excess) * jnp.sum(jnp.where(jnp.arange(eigenvalues.size) < rank, 0, eigenvalues))

    def halved(_: Array | int, between: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = between
        middle = jnp.floor((low + high) / 2)
        loss = likely_loss(eigenvalues, rank, dimension, middle, failure_probability)
        least = likely_least_value(dimension, middle, failure_probability)
        enough = (least > 0) & (loss <= allowed)
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    # As many rows as dimensions are never enough.
    ends = jnp.asarray(dimension, float), jnp.asarray(2.0**52)
    return jax.lax.fori_loop(0, 52, halved, ends)[1]


def enough_samples_hypothesis(
    dimension: Number, samples: Number, failure_probability: Number
) -> Hypothesis:
    """Rows enough for the Gram of the outputs to be seen in all its dimensions."""
    name = "there are enough samples for the dimension of the outputs"
    return Hypothesis(name, likely_least_value(dimension, samples, failure_probability))


def gap_hypothesis(eigenvalues: Float[Array, " outputs"], rank: int) -> Hypothesis:
    """$l_r > l_{r+1}$, as far as rounding tells."""
    gap = safe_divide(_gap(eigenvalues, rank), eigenvalues[0])
    margin = gap - relative_rank_cutoff((eigenvalues.size,))
    return Hypothesis("the output covariance has a gap at the rank", margin)


def _gap(eigenvalues: Float[Array, " outputs"], rank: int) -> Float[Array, ""]:
    """With zeros after the last eigenvalue."""
    padded = jnp.append(eigenvalues, 0.0)
    return padded[rank - 1] - padded[rank]


def true_second_moment(problem: Problem) -> Float[Array, "inputs inputs"]:
    """$C$, or a `ValueError` for a real layer."""
    second_moment = problem.truth.second_moment
    if second_moment is None:
        raise ValueError(
            "This statement needs the true second moment, which a real layer does not have."
        )
    return jnp.asarray(second_moment, float)


def sample_count(problem: Problem) -> Float[Array, ""]:
    """$m$."""
    observed = problem.observed
    if observed.activations is not None:
        return jnp.asarray(observed.activations.shape[0], float)
    assert observed.calibration is not None
    return jnp.asarray(observed.calibration.count, float)


def output_dimension(problem: Problem) -> Float[Array, ""]:
    r"""$k$, the rank of $\Sigma$."""
    eigenvalues = output_spectrum(problem)
    cutoff = relative_rank_cutoff((eigenvalues.size,)) * eigenvalues[0]
    return jnp.sum(eigenvalues > cutoff).astype(float)


def trained_weights(problem: Problem) -> Float[Array, "inputs outputs"]:
    """$W$, or a `ValueError` where only outputs are known."""
    if problem.observed.weights is None:
        raise ValueError("This statement is about trained weights: give `Observed(weights=...)`.")
    return jnp.asarray(problem.observed.weights, float)


def rows_only(problem: Problem) -> Observed:
    """The layer as it is: it computes its own target, from what it always saw, without a bias."""
    observed, seen = problem.observed, problem.observed.calibration
    if seen is not None:
        seen = dataclasses.replace(seen.moments(), compressed=None)
    return Observed(weights=observed.weights, activations=observed.activations, calibration=seen)


def weakest_outputs(problem: Problem) -> LowRank:
    """The weakest output directions in place of the strongest: a wrong estimator."""
    weights = trained_weights(problem)
    covariance = matmul(weights.T, true_second_moment(problem), weights)
    _, vectors = jnp.linalg.eigh(covariance)
    weakest = vectors[:, : problem.rank]
    return LowRank(matmul(weights, weakest), weakest.T)


def sample_second_moment(problem: Problem) -> Float[Array, "inputs inputs"]:
    r"""$\hat C$, of the rows or of the calibration."""
    observed = problem.observed
    if observed.activations is None:
        assert observed.calibration is not None
        return jnp.asarray(observed.calibration.gram()) / sample_count(problem)
    rows = jnp.asarray(observed.activations, float)
    return matmul(rows.T, rows) / rows.shape[0]


def output_deviation(problem: Problem) -> Float[Array, " outputs"]:
    r"""The eigenvalues of $D = \hat\Sigma - \Sigma$, largest first."""
    weights = trained_weights(problem)
    difference = sample_second_moment(problem) - true_second_moment(problem)
    return jnp.linalg.eigvalsh(matmul(weights.T, difference, weights))[::-1]


def largest_exchange(values: Float[Array, " count"], rank: int) -> Float[Array, ""]:
    r"""$\kappa$: the most that $\operatorname{tr}\,(\Pi - \Pi')D$ can be for projectors of the
    rank.
    """
    exchanged = min(rank, values.size - rank)
    return jnp.sum(values[:exchanged]) - jnp.sum(values[values.size - exchanged :])


def eigengap(problem: Problem) -> Float[Array, ""]:
    r"""$l_r - l_{r+1}$, with zeros after the last eigenvalue."""
    return _gap(output_spectrum(problem), problem.rank)


_BASE: dict[str, Any] = {
    "samples": 200,
    "inputs": 16,
    "outputs": 12,
    "rank": 3,
}
ROWS = {
    "isotropic": FreshRows(**_BASE),
    "many samples": FreshRows(**{**_BASE, "samples": 800}),
    "barely enough samples": FreshRows(**{**_BASE, "samples": 60}),
    "flat spectrum": FreshRows(**_BASE, target=targets.ApproximateRank(spectra.Flat())),
    "coloured activations": FreshRows(
        **_BASE, activations=activations.GaussianRows(spectra.PowerLaw(1.0))
    ),
    "low-rank activations plus noise": FreshRows(
        **_BASE, activations=activations.LowRankPlusNoise(4)
    ),
    "rank-deficient activations": FreshRows(**_BASE, activations=activations.RankDeficient(6)),
    "massive directions": FreshRows(**_BASE, activations=activations.MassiveDirections(1, 100.0)),
}
GAPPED = {
    "one spike": CalibrationSetting(400, 8, 1, spectra.Spiked(1, 2.0)),
    "three spikes": CalibrationSetting(400, 8, 3, spectra.Spiked(3, 2.0)),
    "power law": CalibrationSetting(400, 8, 2, spectra.PowerLaw(1.0)),
    "slow power law": CalibrationSetting(1600, 8, 2, spectra.PowerLaw(0.5)),
    "exponential decay": CalibrationSetting(400, 8, 3, spectra.Exponential(0.4)),
    "small gap": CalibrationSetting(
        3200, 8, 2, spectra.Given((1.5, 1.4, 1.2, 1.0, 0.9, 0.5, 0.4, 0.2))
    ),
}


SAMPLES = (800, 1600, 3200, 6400)


def _wishart(samples: int, decay: float) -> CalibrationSetting:
    # A NumPy number is an array to the compiler: one compilation serves all.
    return CalibrationSetting(samples, 8, 2, spectra.PowerLaw(np.float64(decay)))


DEVIATING = {
    "many rows": _wishart(100_000, 1.0),
    "enough rows": _wishart(2_000, 1.0),
    "few rows": _wishart(30, 1.0),
    "barely as many rows as outputs": _wishart(9, 0.5),
    "steep spectrum": _wishart(50, 3.0),
    "no gap": _wishart(200, 0.0),
}
RESOLVED = {
    "many rows": DEVIATING["many rows"],
    "enough rows": DEVIATING["enough rows"],
    "steep spectrum, many rows": _wishart(5_000, 3.0),
    "slow decay": _wishart(20_000, 0.5),
}
RIDGED = {
    "isotropic": ROWS["isotropic"],
    "coloured activations": ROWS["coloured activations"],
    "rank-deficient activations": ROWS["rank-deficient activations"],
    "massive directions": ROWS["massive directions"],
    "fewer samples than inputs": FreshRows(**{**_BASE, "samples": 8}),
}
