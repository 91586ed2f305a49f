r"""What truncating the weights costs, beside truncating for the data.

**Model.** A layer $W$ sees activations $X$; both estimators have rank r. The data-agnostic one,
$[W]_r$, is judged by what the layer sees, $\lVert X(W - [W]_r)\rVert_F$; the optimum is
$\min_{\operatorname{rank}Z\le r}\lVert X(W-Z)\rVert_F = \bigl(\sum_{i>r}s_i(XW)^2\bigr)^{1/2}$.

**Claims** (sure; not squared; proved in paper_notes/price_of_ignoring_data.md):

- `condition_number`: $\lVert X(W-[W]_r)\rVert_F \le
  \kappa(X)\,\bigl(\sum_{i>r}s_i(XW)^2\bigr)^{1/2}$ for $X$ of full column rank. Attained in the
  limit: weights strong where the activations are weak (`OpposedToTheData`).
- `weight_tail`: $\lVert X(W-[W]_r)\rVert_F \le \lVert
  X\rVert\,\bigl(\sum_{i>r}s_i(W)^2\bigr)^{1/2}$ for every $X$.

They need nothing but the layer itself, so they hold, and can be evaluated, on every real layer.
`weight_tail` is never the larger one: $\operatorname{opt} \ge s_N(X)\,(\sum_{i>r}s_i(W)^2)^{1/2}$.
`condition_number` says, before any weights are seen, how far from the optimum truncation can be.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import matmul, relative_rank_cutoff
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.problems import Layer, Observed, Problem, Setting
from lowrank_theory.recovery import LowRank, TruncatedSVD, recover
from lowrank_theory.theorems._quantities import singular_values, tail_norm
from lowrank_theory.theorems._regimes import (
    POWER_LAW,
    SINGULAR,
    UNUSUAL_ACTIVATIONS,
    WELL_POSED,
)
from lowrank_theory.theorems._theorem import UPPER, AbstractStatement, AbstractTheorem, Hypothesis

_REGIMES = {
    **WELL_POSED,
    **UNUSUAL_ACTIVATIONS,
    **POWER_LAW,
    "worst case": Setting(
        samples=60,
        inputs=20,
        outputs=20,
        rank=10,
        activations=activations.FixedSpectrum(spectra.Spiked(10, 100.0)),
        target=targets.OpposedToTheData(1e-3),
        noise=noise.Gaussian(0.0),
    ),
}
_WITH_SINGULAR = {**_REGIMES, **SINGULAR}
_KEEPS_THE_WEAKEST = Setting(
    samples=200,
    inputs=16,
    outputs=16,
    rank=4,
    target=targets.ApproximateRank(spectra.PowerLaw(2.0)),
    noise=noise.Gaussian(0.0),
)


def price_bound(observed: Observed, rank: int) -> Float[Array, ""]:
    r"""The smaller of the two bounds on $\lVert X(W-[W]_r)\rVert_F$.

    In exact arithmetic that is always `weight_tail`, the only one for rank-deficient $X$.
    """
    layer = Layer(observed, rank)
    bounds = (s.bound(layer).value for s in price_of_ignoring_data.statements.values())
    with jax.enable_x64(True):
        return jnp.minimum(*bounds)


def _truncated_weights(instance: Problem | Layer) -> LowRank:
    _, weights = _rows_and_weights(instance)
    return recover(Observed(weights=weights), instance.rank, TruncatedSVD()).factors


def _smallest_components(instance: Problem | Layer) -> LowRank:
    _, weights = _rows_and_weights(instance)
    _, _, right = jnp.linalg.svd(weights, full_matrices=True)
    weakest = right[-instance.rank :]
    return LowRank(matmul(weights, weakest.T), weakest)


def _rows_and_weights(instance: Problem | Layer) -> tuple[Array, Array]:
    observed = instance.observed
    if observed.weights is None or observed.activations is None:
        raise ValueError(
            "This statement compares weights with what they see: give `Observed(weights=..., "
            "activations=...)`."
        )
    return jnp.asarray(observed.activations, float), jnp.asarray(observed.weights, float)


def _same_activations(instance: Problem | Layer) -> Hypothesis:
    same = instance.observed.compressed_activations is None
    return Hypothesis("the compressed layer sees the same activations", 0.0 if same else -1.0)


def _weighted_error(instance: Problem | Layer, estimate: LowRank) -> Float[Array, ""]:
    activations, weights = _rows_and_weights(instance)
    return jnp.linalg.norm(matmul(activations, weights - matmul(estimate.left, estimate.right)))


def _scale(instance: Problem | Layer) -> Float[Array, ""]:
    activations, weights = _rows_and_weights(instance)
    return jnp.linalg.norm(activations) * jnp.linalg.norm(weights)


class ConditionNumber(AbstractStatement):
    r"""$\lVert X(W-[W]_r)\rVert_F \le \kappa(X)\min_{\operatorname{rank}Z\le r}\lVert
    X(W-Z)\rVert_F$. In the units of the outputs.
    """

    kind = UPPER
    needs = Observed
    regimes = _REGIMES
    control = _KEEPS_THE_WEAKEST

    def hypotheses(
        self, instance: Problem | Layer, failure_probability: float
    ) -> tuple[Hypothesis, ...]:
        """Full column rank: the relative smallest singular value against the cut-off."""
        activations, _ = _rows_and_weights(instance)
        samples, inputs = activations.shape
        values = singular_values(activations)
        smallest = values[-1] / jnp.where(values[0] > 0, values[0], 1) if samples >= inputs else 0.0
        margin = smallest - relative_rank_cutoff(activations.shape)
        return (
            _same_activations(instance),
            Hypothesis("the activations have full column rank", jnp.asarray(margin)),
        )

    def estimate(self, instance: Problem | Layer, failure_probability: float) -> LowRank:
        """The truncated singular value decomposition of the weights."""
        return _truncated_weights(instance)

    def broken_estimate(self, instance: Problem | Layer, failure_probability: float) -> LowRank:
        """Truncation that keeps the smallest components."""
        return _smallest_components(instance)

    def formula(
        self, instance: Problem | Layer, estimate: LowRank, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\kappa(X)\,\bigl(\sum_{i>r}s_i(XW)^2\bigr)^{1/2}$."""
        activations, weights = _rows_and_weights(instance)
        values = singular_values(activations)
        optimum = tail_norm(singular_values(matmul(activations, weights)), instance.rank)
        return values[0] / values[-1] * optimum

    def loss(self, instance: Problem | Layer, estimate: LowRank) -> Float[Array, ""]:
        r"""$\lVert X(W-[W]_r)\rVert_F$."""
        return _weighted_error(instance, estimate)

    def magnitude(self, instance: Problem | Layer) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F\lVert W\rVert_F$."""
        return _scale(instance)


class WeightTail(AbstractStatement):
    r"""$\lVert X(W-[W]_r)\rVert_F \le \lVert X\rVert\,\bigl(\sum_{i>r}s_i(W)^2\bigr)^{1/2}$. In the
    units of the outputs.
    """

    kind = UPPER
    needs = Observed
    regimes = _WITH_SINGULAR
    control = _KEEPS_THE_WEAKEST

    def hypotheses(
        self, instance: Problem | Layer, failure_probability: float
    ) -> tuple[Hypothesis, ...]:
        """The same activations; none on the layer."""
        return (_same_activations(instance),)

    def estimate(self, instance: Problem | Layer, failure_probability: float) -> LowRank:
        """The truncated singular value decomposition of the weights."""
        return _truncated_weights(instance)

    def broken_estimate(self, instance: Problem | Layer, failure_probability: float) -> LowRank:
        """Truncation that keeps the smallest components."""
        return _smallest_components(instance)

    def formula(
        self, instance: Problem | Layer, estimate: LowRank, failure_probability: float
    ) -> Float[Array, ""]:
        r"""$\lVert X\rVert\,\bigl(\sum_{i>r}s_i(W)^2\bigr)^{1/2}$."""
        activations, weights = _rows_and_weights(instance)
        return singular_values(activations)[0] * tail_norm(singular_values(weights), instance.rank)

    def loss(self, instance: Problem | Layer, estimate: LowRank) -> Float[Array, ""]:
        r"""$\lVert X(W-[W]_r)\rVert_F$."""
        return _weighted_error(instance, estimate)

    def magnitude(self, instance: Problem | Layer) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F\lVert W\rVert_F$."""
        return _scale(instance)


class PriceOfIgnoringData(AbstractTheorem):
    """How much worse than the data-driven optimum the truncated weights can be."""

    condition_number: ConditionNumber = ConditionNumber()
    weight_tail: WeightTail = WeightTail()


price_of_ignoring_data = PriceOfIgnoringData()
