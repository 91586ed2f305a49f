r"""What truncating the weights in a wrong metric costs, beside truncating for the data.

**Model.** A layer $W$ sees activations $X$ (m x N). Let $T$ be a *metric*, a matrix with N columns
of full column rank; the estimator is the best of rank r in it, the minimiser $W_T = WV_rV_r^\top$
of $\lVert T(W - Z)\rVert_F$ ($V_r$ the leading right singular vectors of $TW$; $W_T =
T^{-1}[TW]_r$ for square $T$). It is judged by what the layer sees, $\lVert X(W - W_T)\rVert_F$;
the optimum is $\mathrm{opt} = \min_{\operatorname{rank}Z\le r}\lVert X(W-Z)\rVert_F =
\bigl(\sum_{i>r}s_i(XW)^2\bigr)^{1/2}$.

**Claims** (sure; not squared; proved in paper_notes/price_of_ignoring_data.md). If $X$ too has full
column rank, $\lVert X(W - W_T)\rVert_F \le \kappa(XT^+)\,\mathrm{opt}$, where
$\kappa(XT^+) = \max_v\frac{\lVert Xv\rVert}{\lVert Tv\rVert} \big/
\min_v\frac{\lVert Xv\rVert}{\lVert Tv\rVert}$:

- `condition_number`, $T = I$, the weights alone: $\kappa(X)$.
- `channel_scaling`, $T = D$ diagonal, the norms of the columns of $X$ (the idea of ASVD, LQER and
  the approximate form of QERA): $\kappa(XD^{-1})$, within $\sqrt N$ of the best diagonal.
- `covariance_weighting`, $T = X^\top X$, not its root (CorDA): $\kappa(X)$ again.
- `stale_calibration`, $T = X_0$ the first half of the samples, judged on the second half $X_1$:
  $\kappa(X_1X_0^+)$.

Beside them, for the weights alone and every $X$:

- `weight_tail`: $\lVert X(W-[W]_r)\rVert_F \le \lVert X\rVert\,\bigl(
  \sum_{i>r}s_i(W)^2\bigr)^{1/2}$.

They need nothing but the layer itself, so they hold, and can be evaluated, on every real layer. The
factor $\kappa(XT^+)$ cannot be improved for any pair $X, T$ and any rank: it is attained in the
limit by weights strong where $X$ is weak (`OpposedToTheData`, for $T = I$). `weight_tail` is never
above `condition_number`; the latter says, before any weights are seen, how far from the optimum
truncation can be.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._numerics import float64, matmul, relative_rank_cutoff, safe_divide
from lowrank_theory._random import normal
from lowrank_theory._subspaces import leading_right_vectors
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.problems import Layer, Observed, Problem, Setting
from lowrank_theory.recovery import LowRank
from lowrank_theory.theorems._quantities import (
    frobenius,
    rows_and_weights,
    same_activations_hypothesis,
    singular_values,
    tail_norm,
)
from lowrank_theory.theorems._quantities import (
    full_column_rank_hypothesis as full_column_rank_hypothesis,
)
from lowrank_theory.theorems._regimes import (
    ISOTROPIC,
    POWER_LAW,
    SINGULAR,
    UNUSUAL_ACTIVATIONS,
    WELL_POSED,
)
from lowrank_theory.theorems._theorem import (
    UPPER,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)

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
_OF_ONE_SHAPE = {
    name: _REGIMES[name]
    for name in (
        "ill-conditioned activations",
        "low-rank activations plus noise",
        "outputs of a ReLU layer",
        "massive directions",
        "power law",
    )
}


def price_bound(observed: Observed, rank: int) -> Float[Array, ""]:
    r"""The smaller of the two bounds on $\lVert X(W-[W]_r)\rVert_F$.

    In exact arithmetic that is always `weight_tail`, the only one for rank-deficient $X$.
    """
    layer, price = Layer(observed, rank), price_of_ignoring_data
    bounds = (s.bound(layer).value for s in (price.condition_number, price.weight_tail))
    with float64():
        return jnp.minimum(*bounds)


def _full_column_rank(name: str, matrix: Array) -> Hypothesis:
    rows, columns = matrix.shape
    values = singular_values(matrix)
    ratio = safe_divide(values[-1], values[0]) if rows >= columns else -1.0
    return full_column_rank_hypothesis(name, ratio, relative_rank_cutoff(matrix.shape))


def no_metric(rows: Array) -> tuple[Array, Array]:
    """The weights as they are, judged on these rows."""
    return jnp.eye(rows.shape[1]), rows


def _channel_norms(rows: Array) -> tuple[Array, Array]:
    return jnp.diag(jnp.linalg.norm(rows, axis=0)), rows


def _second_moment(rows: Array) -> tuple[Array, Array]:
    return matmul(rows.T, rows), rows


def _first_half(rows: Array) -> tuple[Array, Array]:
    half = rows.shape[0] // 2
    return rows[:half], rows[half:]


def _known_components(metric: Array, free: dict[str, Array], rank: int) -> tuple[Array, LowRank]:
    r"""Weights $W$ with $TW = US$, $S$ diagonal and decreasing, and their truncation.

    Rotating the outputs loses nothing, so these are all weights, up to ties: the leading components
    in the metric are the first outputs.
    """
    triangle = jnp.linalg.qr(metric, mode="r")
    directions, _ = jnp.linalg.qr(free["directions"])
    values = jnp.exp(jnp.cumsum(free["steps"] ** 2 + _APART)[::-1])
    weights = jax.scipy.linalg.solve_triangular(triangle, directions * values)
    return weights, LowRank(weights[:, :rank], jnp.eye(values.size)[:rank])


_APART = 1e-5  # a tie is approached, so that the estimator decides as the adversary does


class MetricAdversary(AbstractAdversary):
    """Any activations, and any weights whose leading components in the metric are known."""

    metric: Callable[[Array], tuple[Array, Array]] = eqx.field(static=True)
    samples: int = 6
    inputs: int = 2
    rank: int = 1

    def start(self, *, key: PRNGKeyArray) -> dict[str, Array]:
        """Activations, directions in the metric, and steps between the singular values."""
        keys = jax.random.split(key, 3)
        return {
            "activations": normal(keys[0], (self.samples, self.inputs)),
            "directions": normal(keys[1], (self.inputs, self.inputs)),
            "steps": normal(keys[2], (self.inputs,)),
        }

    def play(self, free: dict[str, Array]) -> tuple[Layer, LowRank]:
        """The layer, and its truncation in the metric."""
        rows = free["activations"]
        weights, truncated = _known_components(self.metric(rows)[0], free, self.rank)
        return Layer(Observed(weights=weights, activations=rows), self.rank), truncated


class AbstractPrice(AbstractStatement):
    r"""A bound on $\lVert X(W - W_T)\rVert_F$, the error of weights truncated in a metric. In the
    units of the outputs.
    """

    kind = UPPER
    needs = Observed
    control = ISOTROPIC

    @abc.abstractmethod
    def metric(
        self, activations: Float[Array, "samples inputs"]
    ) -> tuple[Float[Array, "rows inputs"], Float[Array, "judged inputs"]]:
        """The metric $T$, and the activations $X$ on which the truncation is judged."""

    def estimate(self, instance: Problem | Layer) -> LowRank:
        """The weights truncated in the metric."""
        activations, weights = rows_and_weights(instance)
        metric, _ = self.metric(activations)
        vectors, _ = leading_right_vectors(matmul(metric, weights), instance.rank)
        return LowRank(matmul(weights, vectors), vectors.T)

    def broken_estimate(self, instance: Problem | Layer) -> LowRank:
        """A truncation that keeps the smallest components of the weights."""
        _, weights = rows_and_weights(instance)
        _, _, right = jnp.linalg.svd(weights, full_matrices=True)
        weakest = right[-instance.rank :]
        return LowRank(matmul(weights, weakest.T), weakest)

    def loss(self, instance: Problem | Layer, estimate: LowRank) -> Float[Array, ""]:
        r"""$\lVert X(W - W_T)\rVert_F$."""
        activations, weights = rows_and_weights(instance)
        _, judged = self.metric(activations)
        return frobenius(matmul(judged, weights - matmul(estimate.left, estimate.right)))

    def magnitude(self, instance: Problem | Layer) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F\lVert W\rVert_F$."""
        activations, weights = rows_and_weights(instance)
        return frobenius(activations) * frobenius(weights)


class AbstractCondition(AbstractPrice):
    r"""$\lVert X(W - W_T)\rVert_F \le \kappa(XT^+)\,\bigl(\sum_{i>r}s_i(XW)^2\bigr)^{1/2}$."""

    sharp = True

    def hypotheses(self, instance: Problem | Layer) -> tuple[Hypothesis, ...]:
        """Full column rank of activations and metric: the relative smallest singular value against
        the cut-off.
        """
        activations, _ = rows_and_weights(instance)
        metric, judged = self.metric(activations)
        return (
            same_activations_hypothesis(instance),
            _full_column_rank("the activations have", judged),
            _full_column_rank("the metric has", metric),
        )

    def formula(self, instance: Problem | Layer, estimate: LowRank) -> Float[Array, ""]:
        r"""$\kappa(XT^+)\,\bigl(\sum_{i>r}s_i(XW)^2\bigr)^{1/2}$."""
        activations, weights = rows_and_weights(instance)
        metric, judged = self.metric(activations)
        optimum = tail_norm(singular_values(matmul(judged, weights)), instance.rank)
        return distortion(judged, metric) * optimum


def distortion(
    activations: Float[Array, "samples inputs"], metric: Float[Array, "rows inputs"]
) -> Float[Array, ""]:
    r"""$\kappa(XT^+)$: how far ratios of lengths seen by $X$ and by $T$ differ; infinite where one
    of them has no full column rank.
    """
    rows, columns = metric.shape
    if min(rows, activations.shape[0]) < columns:
        return jnp.asarray(jnp.inf)
    triangle = jnp.linalg.qr(metric, mode="r")
    regular = _full_column_rank("", metric).holds
    triangle = jnp.where(regular, triangle, jnp.eye(columns))
    seen = jax.scipy.linalg.solve_triangular(triangle, activations.T, trans=1).T
    values = singular_values(seen)
    return jnp.where(regular & (values[-1] > 0), safe_divide(values[0], values[-1]), jnp.inf)


class ConditionNumber(AbstractCondition):
    r"""$\lVert X(W-[W]_r)\rVert_F \le \kappa(X)\min_{\operatorname{rank}Z\le r}\lVert
    X(W-Z)\rVert_F$. In the units of the outputs.
    """

    regimes = _REGIMES
    adversary = MetricAdversary(no_metric)

    def metric(
        self, activations: Float[Array, "samples inputs"]
    ) -> tuple[Float[Array, "rows inputs"], Float[Array, "judged inputs"]]:
        """None: the weights as they are."""
        return no_metric(activations)


class ChannelScaling(AbstractCondition):
    r"""$\lVert X(W-D^{-1}[DW]_r)\rVert_F \le \kappa(XD^{-1})\min_{\operatorname{rank}Z\le
    r}\lVert X(W-Z)\rVert_F$, with $D$ the norms of the columns of $X$. In the units of the outputs.
    """

    regimes = _OF_ONE_SHAPE
    adversary = MetricAdversary(_channel_norms)

    def metric(
        self, activations: Float[Array, "samples inputs"]
    ) -> tuple[Float[Array, "rows inputs"], Float[Array, "judged inputs"]]:
        """The norms of the columns, on a diagonal."""
        return _channel_norms(activations)


class CovarianceWeighting(AbstractCondition):
    r"""$\lVert X(W-G^{-1}[GW]_r)\rVert_F \le \kappa(X)\min_{\operatorname{rank}Z\le r}\lVert
    X(W-Z)\rVert_F$, with $G = X^\top X$. In the units of the outputs.
    """

    regimes = _OF_ONE_SHAPE
    adversary = MetricAdversary(_second_moment)

    def metric(
        self, activations: Float[Array, "samples inputs"]
    ) -> tuple[Float[Array, "rows inputs"], Float[Array, "judged inputs"]]:
        """The Gram itself, in place of its root."""
        return _second_moment(activations)


class StaleCalibration(AbstractCondition):
    r"""$\lVert X_1(W-W_0)\rVert_F \le \kappa(X_1X_0^+)\min_{\operatorname{rank}Z\le r}\lVert
    X_1(W-Z)\rVert_F$, with $W_0$ the data-driven layer for other samples $X_0$. In the units of the
    outputs.
    """

    regimes = _OF_ONE_SHAPE
    adversary = MetricAdversary(_first_half)

    def metric(
        self, activations: Float[Array, "samples inputs"]
    ) -> tuple[Float[Array, "rows inputs"], Float[Array, "judged inputs"]]:
        """The first half of the samples, judged on the second."""
        return _first_half(activations)


class WeightTail(AbstractPrice):
    r"""$\lVert X(W-[W]_r)\rVert_F \le \lVert X\rVert\,\bigl(\sum_{i>r}s_i(W)^2\bigr)^{1/2}$. In the
    units of the outputs.
    """

    regimes = _WITH_SINGULAR
    adversary = MetricAdversary(no_metric)
    sharp = True

    def metric(
        self, activations: Float[Array, "samples inputs"]
    ) -> tuple[Float[Array, "rows inputs"], Float[Array, "judged inputs"]]:
        """None: the weights as they are."""
        return no_metric(activations)

    def hypotheses(self, instance: Problem | Layer) -> tuple[Hypothesis, ...]:
        """The same activations; none on the layer."""
        return (same_activations_hypothesis(instance),)

    def formula(self, instance: Problem | Layer, estimate: LowRank) -> Float[Array, ""]:
        r"""$\lVert X\rVert\,\bigl(\sum_{i>r}s_i(W)^2\bigr)^{1/2}$."""
        activations, weights = rows_and_weights(instance)
        return singular_values(activations)[0] * tail_norm(singular_values(weights), instance.rank)


class PriceOfIgnoringData(AbstractTheorem):
    """What truncating the weights as they are, or in a cheap, wrong or old metric, costs beside the
    data-driven optimum: at most the condition number between the two metrics, which is attained.
    """

    condition_number: ConditionNumber = ConditionNumber()
    weight_tail: WeightTail = WeightTail()
    channel_scaling: ChannelScaling = ChannelScaling()
    covariance_weighting: CovarianceWeighting = CovarianceWeighting()
    stale_calibration: StaleCalibration = StaleCalibration()


price_of_ignoring_data = PriceOfIgnoringData()
