r"""Recovery with a price on the rank: the data choose how many components to keep.

**Model.** $Y = \tilde XM + E$ with any target; $F^* = \tilde XM$ has singular values $s_i$, $\nu =
\lVert PE\rVert$, $d = \min(q, K)$. The estimator keeps the singular values of $PY$ above
$\lambda = \sqrt\mu$ as they are: $\hat F = \operatorname{arg}\min\lVert Y-\tilde XZ\rVert_F^2 +
\mu\operatorname{rank}(\tilde XZ)$ (Bunea, She and Wegkamp 2011).

**Claims** (squared errors; proved in paper_notes/rank_penalty.md):

- `selected_rank`, `detected_rank` (sure): $\operatorname{rank}\hat F$ is at most $\#\{i \le d:
  s_i > \lambda-\nu\}$ and at least $\#\{s_i > \lambda+\nu\}$.
- `oracle` (sure): $\lVert\hat F - F^*\rVert_F^2 \le \max_j\{j\nu^2 + \sum_{i\le d-j}\min(s_i,
  s_{i+j}+2\nu, \lambda+\nu)^2\}$ over the ranks $j$ that these two allow. At most $\sum_i\min(s_i,
  \lambda+\nu)^2 + \nu^2\#\{s_i > \lambda-\nu\}$, and, for $\mu \ge (1+\theta)\nu^2$ and $c =
  1+2/\theta$, at most $\inf_F\{c^2\lVert F-F^*\rVert_F^2 + 2c\mu\operatorname{rank}F\}$, the form
  in which such bounds are known.
- `exact_rank` (sure), $\operatorname{rank}F^* \le r$ and $\lambda \ge \nu$: $\le
  r\max((\lambda+\nu)^2, 5\nu^2)$.
- `gaussian` (probability $1-\delta$), $E_{ij}$ i.i.d. $N(0,\sigma^2)$: `oracle` with $\sigma(\sqrt
  q+\sqrt K+\tau)$, the bound of `gaussian_noise.largest`, in the place of $\nu$, for every
  $\lambda$.

The sure ones are attained: $F^* = \operatorname{diag}(\lambda+\nu, \dots)$ and noise $-\nu$ on it
leave nothing above the threshold.
"""

import abc
import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import check_positive, rounding_allowance, settle
from lowrank_theory.generators import noise, spectra, targets
from lowrank_theory.problems import Problem, Setting, Truth
from lowrank_theory.recovery import LowRank, rank_penalised
from lowrank_theory.theorems._adversaries import TargetAndNoise
from lowrank_theory.theorems._quantities import (
    attainable_noise,
    error_magnitude,
    gaussian_noise_hypotheses,
    largest_rank,
    least_squares,
    output_error,
    output_norm,
    planted_hypothesis,
    resolved_signal,
    squared_error_magnitude,
    stored_resolution,
    target_rank_hypothesis,
)
from lowrank_theory.theorems._regimes import (
    BASE,
    FULL_RANK,
    HEAVY_TAILS,
    NOT_TRUNCATED,
    POWER_LAW,
    SINGULAR,
    WELL_POSED,
    WORST_NOISE,
)
from lowrank_theory.theorems._theorem import (
    LOWER,
    UPPER,
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)
from lowrank_theory.theorems.gaussian_noise import gaussian_edge


def _at_the_threshold(strength: float) -> Setting:
    """Outputs of singular values around `strength`, which is of the order of the noise."""
    spectrum = spectra.Given((1.2, 1.0, 0.8))
    target = targets.ExactOutputRank(spectrum, scale=1.2 * strength)
    return Setting(**BASE, target=target, noise=noise.Gaussian(1.0))


_GAUSSIAN_REGIMES = {
    "planted rank": Setting(**BASE),
    "rank one": WELL_POSED["rank one"],
    **POWER_LAW,
    "power law, strong noise": Setting(
        **BASE, target=targets.ApproximateRank(), noise=noise.Gaussian(1.0)
    ),
    "half found": _at_the_threshold(16.0),
    "fewer samples than inputs": SINGULAR["fewer samples than inputs"],
    **FULL_RANK,
}
_REGIMES = {**_GAUSSIAN_REGIMES, **HEAVY_TAILS, **WORST_NOISE}
_PLANTED_REGIMES = {
    name: _REGIMES[name]
    for name in ("planted rank", "rank one", "half found", "fewer samples than inputs")
} | {**FULL_RANK, **WORST_NOISE}
_STRONG = Setting(**BASE, target=targets.ExactOutputRank(scale=1e3))


def _noise_norm(problem: Problem) -> Float[Array, ""]:
    values, _ = attainable_noise(problem)
    return values[0]


def _may_be_kept(
    problem: Problem, threshold: Float[Array, ""], noise_norm: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The least and the largest rank above the threshold, with room for rounding."""
    values, _ = resolved_signal(problem)
    room = rounding_allowance(error_magnitude(problem), *problem.sizes)
    least = jnp.sum(values > threshold + noise_norm + room)
    most = jnp.minimum(jnp.sum(values > threshold - noise_norm - room), largest_rank(problem))
    return least.astype(float), most


def worst_case(
    problem: Problem, threshold: Float[Array, ""], noise_norm: Float[Array, ""]
) -> Float[Array, ""]:
    r"""$\max_j\{j\nu^2 + \sum_{i\le d-j}\min(s_i, s_{i+j}+2\nu, \lambda+\nu)^2\}$, and what is not
    resolved.
    """
    values, lost = resolved_signal(problem)
    count = values.size
    kept, place = jnp.arange(count + 1)[:, None], jnp.arange(count)[None, :]
    shifted = jnp.concatenate([values, jnp.zeros(count)])[kept + place]
    missed = jnp.minimum(jnp.minimum(values, threshold + noise_norm), shifted + 2 * noise_norm)
    missed = jnp.where(place < largest_rank(problem) - kept, missed, 0)
    totals = kept[:, 0] * noise_norm**2 + jnp.sum(missed**2, axis=1)
    least, most = _may_be_kept(problem, threshold, noise_norm)
    possible = (least <= kept[:, 0]) & (kept[:, 0] <= most)
    return jnp.max(jnp.where(possible, totals, 0)) + lost**2


class AbstractPenalised(AbstractStatement):
    r"""A statement about the singular values of $PY$ above the `threshold` $\lambda$."""

    needs = Truth

    @abc.abstractmethod
    def threshold(self, problem: Problem) -> Float[Array, ""]:
        r"""The threshold $\lambda = \sqrt\mu$."""

    def estimate(self, instance: Problem) -> LowRank:
        r"""Singular values of $PY$, those above $\lambda$."""
        return _kept(instance, self.threshold(instance))


def _kept(problem: Problem, threshold: Float[Array, ""]) -> LowRank:
    factors, _ = rank_penalised(
        problem.truth.layer_inputs,
        problem.observed.target_outputs,
        threshold**2,
        rank=min(problem.observed.shape),
        resolution=stored_resolution(problem.observed),
    )
    return factors


class AbstractRisk(AbstractPenalised):
    r"""A bound on $\lVert\hat F - F^*\rVert_F^2$. Squared."""

    control = NOT_TRUNCATED

    def broken_estimate(self, instance: Problem) -> Array:
        """Least squares, to which rank is free."""
        return least_squares(instance)

    def loss(self, instance: Problem, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\hat F - F^*\rVert_F^2$."""
        return output_error(estimate, instance.truth) ** 2

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        """Of the square of outputs formed from factors, in their precision."""
        return squared_error_magnitude(instance)


class AbstractSelection(AbstractPenalised):
    r"""A bound on $\operatorname{rank}\hat F$, with $\mu$ = `price` $\cdot\,\nu^2$. A number."""

    price: eqx.AbstractVar[float]

    def threshold(self, problem: Problem) -> Float[Array, ""]:
        r"""$\lambda$, in proportion to $\nu$."""
        return math.sqrt(self.price) * _noise_norm(problem)

    def loss(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$\operatorname{rank}\hat F$."""
        return jnp.sum(jnp.any(estimate.right != 0, axis=1)).astype(float)

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """A penalty: what rounding makes of rank is not free, and its square is a float64."""
        threshold = self.threshold(instance)
        room = rounding_allowance(error_magnitude(instance), *instance.sizes)
        penalty = jnp.isfinite(threshold**2) & (threshold**2 > 0)
        margin = jnp.where(penalty & jnp.isfinite(room), threshold - room, -1.0)
        return (
            planted_hypothesis(instance),
            Hypothesis("the penalty exceeds what rounding makes", margin),
        )

    def magnitude(self, instance: Problem) -> Float[Array, ""]:
        """One: it counts."""
        return jnp.ones(())


_STRONG_COMPONENTS = Refuted(1.0, "components far above the threshold: just they are kept")


class SelectedRank(AbstractSelection):
    r"""$\operatorname{rank}\hat F \le \#\{i \le d: s_i > \lambda-\nu\}$, with $\mu$ = `price`
    $\cdot\,\nu^2$.
    """

    price: float = 3.0
    kind = UPPER
    regimes = _REGIMES
    control = NOT_TRUNCATED
    refuted_below = _STRONG_COMPONENTS

    def __check_init__(self) -> None:
        settle(self, "price", check_positive)

    def broken_estimate(self, instance: Problem) -> LowRank:
        """Rank is free."""
        return _kept(instance, jnp.zeros(()))

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$\#\{i \le d: s_i > \lambda-\nu\}$."""
        threshold = self.threshold(instance)
        return _may_be_kept(instance, threshold, _noise_norm(instance))[1]


class DetectedRank(AbstractSelection):
    r"""$\operatorname{rank}\hat F \ge \#\{s_i > \lambda+\nu\}$, with $\mu$ = `price`
    $\cdot\,\nu^2$.
    """

    price: float = 3.0
    kind = LOWER
    regimes = _REGIMES
    control = _STRONG
    refuted_below = _STRONG_COMPONENTS

    def __check_init__(self) -> None:
        settle(self, "price", check_positive)

    def broken_estimate(self, instance: Problem) -> LowRank:
        r"""Rank costs more than all of $Y$."""
        return _kept(instance, output_norm(instance))

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$\#\{s_i > \lambda+\nu\}$."""
        threshold = self.threshold(instance)
        return _may_be_kept(instance, threshold, _noise_norm(instance))[0]


class Oracle(AbstractRisk):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le \max_j\{j\nu^2 + \sum_{i\le d-j}\min(s_i, s_{i+j}+2\nu,
    \lambda+\nu)^2\}$, with $\mu$ = `price` $\cdot\,\nu^2$.
    """

    price: float = 3.0
    kind = UPPER
    regimes = _REGIMES
    adversary = TargetAndNoise(rows=3, columns=3, rank=3, target_rank=3)
    sharp = True

    def __check_init__(self) -> None:
        settle(self, "price", check_positive)

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """None beyond the model."""
        return (planted_hypothesis(instance),)

    def threshold(self, problem: Problem) -> Float[Array, ""]:
        r"""$\lambda$, in proportion to $\nu$."""
        return math.sqrt(self.price) * _noise_norm(problem)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""The worst of the ranks that may be selected."""
        threshold = self.threshold(instance)
        return worst_case(instance, threshold, _noise_norm(instance))


class ExactRank(AbstractRisk):
    r"""$\lVert\hat F - F^*\rVert_F^2 \le r\max((\lambda+\nu)^2, 5\nu^2)$ for a target of rank $r$,
    with $\mu$ = `price` $\cdot\,\nu^2$.
    """

    price: float = 3.0
    kind = UPPER
    regimes = _PLANTED_REGIMES
    adversary = TargetAndNoise(rows=2, columns=1, rank=1, target_rank=1)
    sharp = True

    def __check_init__(self) -> None:
        settle(self, "price", check_positive)

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """Planted rank, and a price that noise alone does not pay."""
        return (
            planted_hypothesis(instance),
            target_rank_hypothesis(instance),
            Hypothesis("the price is at least that of the noise", self.price - 1.0),
        )

    def threshold(self, problem: Problem) -> Float[Array, ""]:
        r"""$\lambda$, in proportion to $\nu$."""
        return math.sqrt(self.price) * _noise_norm(problem)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""$r\max((\lambda+\nu)^2, 5\nu^2)$."""
        factor = max((1 + math.sqrt(self.price)) ** 2, 5.0)
        _, lost = resolved_signal(instance)
        return instance.rank * factor * _noise_norm(instance) ** 2 + lost**2


class Gaussian(AbstractRisk):
    r"""`oracle` with $\sigma(\sqrt q + \sqrt K + \tau)$ in the place of $\nu$, with probability
    $1-\delta$ for i.i.d. Gaussian noise.
    """

    price: float = 3.0
    kind = UPPER_WITH_PROBABILITY
    regimes = _GAUSSIAN_REGIMES
    refuted_below = Refuted(
        1.0,
        "signals that the noise hides: nothing is kept, and all of them is the error",
    )

    def __check_init__(self) -> None:
        settle(self, "price", check_positive)

    def hypotheses(self, instance: Problem) -> tuple[Hypothesis, ...]:
        """i.i.d. Gaussian noise."""
        return (planted_hypothesis(instance), *gaussian_noise_hypotheses(instance.truth))

    def threshold(self, problem: Problem) -> Float[Array, ""]:
        r"""$\lambda$, in proportion to $\sigma(\sqrt q + \sqrt K + \tau)$."""
        return math.sqrt(self.price) * gaussian_edge(problem, self.failure_probability)

    def formula(self, instance: Problem, estimate: LowRank) -> Float[Array, ""]:
        r"""The worst of the ranks that may be selected, for the largest noise."""
        threshold = self.threshold(instance)
        return worst_case(instance, threshold, gaussian_edge(instance, self.failure_probability))


class RankPenalty(AbstractTheorem):
    """With a price on the rank the data choose it, and the error is that of the worst choice that
    the noise allows.
    """

    oracle: Oracle = Oracle()
    exact_rank: ExactRank = ExactRank()
    gaussian: Gaussian = Gaussian()
    selected_rank: SelectedRank = SelectedRank()
    detected_rank: DetectedRank = DetectedRank()


rank_penalty = RankPenalty()
