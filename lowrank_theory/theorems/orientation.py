r"""How the weights lie towards the data decides what truncating them loses.

**Model.** $W = \sum_is_iu_iv_i^\top$ (N x K) sees activations $X$ (m x N), $\lambda_j = s_j(X)^2$.
The layer is truncated as it is, $[W]_r = \sum_{i\le r}s_iu_iv_i^\top$, and judged by its outputs;
$S = \operatorname{diag}(0, \dots, 0, s_{r+1}^2, s_{r+2}^2, \dots)$ and $G = X^\top X$ are N x N.

**Claims** (proved in paper_notes/orientation.md). Sure, not squared:

- `directions`: $\lVert X(W-[W]_r)\rVert_F = \bigl(\sum_{i>r}s_i^2\lVert Xu_i\rVert^2\bigr)^{1/2}$.
- `upper`: at most $\bigl(\sum_ks_k(X)^2s_{r+k}(W)^2\bigr)^{1/2}$, $k = 1, \dots, \min(N, K) - r$,
  whatever the orientation. Never above `price_of_ignoring_data.weight_tail`.
- `lower`: at least $\bigl(\sum_ks_{N+1-k}(X)^2s_{r+k}(W)^2\bigr)^{1/2}$.

Both limits are attained for every $X$ and all singular values of $W$: where the truncated
$u_{r+1}, u_{r+2}, \dots$ are, in this order, the first or the last right singular vectors of $X$.

For $u_i$ in uniformly random directions (Haar), independent of $X$ and of the $s_i$:

- `average`: $\mathbb E\lVert X(W-[W]_r)\rVert_F^2 = \lVert X\rVert_F^2\sum_{i>r}s_i^2/N$.
- `spread`: its variance is $\frac{2}{(N-1)(N+2)}\bigl(\operatorname{tr}G^2 - \tfrac1N
  (\operatorname{tr}G)^2\bigr)\bigl(\operatorname{tr}S^2 - \tfrac1N(\operatorname{tr}S)^2\bigr)$.
- `p_value` (probability $1-\delta$): the share of the loss and of those of fresh random
  orientations that are no smaller than it is at least $\delta$.

So random orientation, which weights at their initialisation have, is a hypothesis that a trained
layer can refute: `excitation.Excitation` says by how much.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lowrank_theory._arrays import Key, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    check_count,
    check_rank,
    keep,
    matmul,
    rounding_allowance,
    settle,
)
from lowrank_theory.excitation import lengths_in, losses, moments, pairs, ranked
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.generators.activations import haar_stack
from lowrank_theory.problems import Layer, Observed, Problem, Setting, not_stated
from lowrank_theory.recovery import LowRank
from lowrank_theory.theorems._quantities import (
    frobenius,
    law_hypothesis,
    rows_and_weights,
    same_activations_hypothesis,
    singular_values,
    squared,
)
from lowrank_theory.theorems._regimes import (
    BASE,
    FULL_RANK,
    ISOTROPIC,
    SINGULAR,
    UNUSUAL_ACTIVATIONS,
    WELL_POSED,
)
from lowrank_theory.theorems._theorem import (
    EQUALITY,
    EQUALITY_IN_EXPECTATION,
    LOWER,
    LOWER_WITH_PROBABILITY,
    UPPER,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)
from lowrank_theory.theorems.price_of_ignoring_data import MetricAdversary, no_metric


class Orientations(eqx.Module):
    r"""Singular values of inputs and of weights, and several orientations between them.

    - `input_values` $s_j(X)$ (N,) and `values` $s_i(W)$ (n,), $n = \min(N, K)$, both decreasing;
    - `bases` (count, N, n): for each orientation the $u_i$, in coordinates in which $X$ is
      diagonal. The first is that of a layer, the others are those with which it is compared;
    - `independent` says whether all are uniformly distributed (Haar) and know nothing of the values
      or of each other, which no number shows.
    """

    input_values: Float[AnyArray, " inputs"]
    values: Float[AnyArray, " directions"]
    bases: Float[AnyArray, "count inputs directions"]
    rank: int = eqx.field(static=True)
    independent: Bool[AnyArray, ""] = eqx.field(default_factory=not_stated)

    def __check_init__(self) -> None:
        keep(self, "rank", check_rank(self.rank, *self.bases.shape[-2:]))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.bases.shape[-2:]


class OrientationSetting(eqx.Module):
    """Singular values of inputs and of weights, and `count` random orientations between them.

    Raises `ValueError` for more weights than inputs, and for a rank or a count that there is not.
    """

    input_values: Float[AnyArray, " inputs"] = eqx.field(converter=np.asarray)
    values: Float[AnyArray, " directions"] = eqx.field(converter=np.asarray)
    rank: int
    count: int = 240

    def __check_init__(self) -> None:
        keep(self, "rank", check_rank(self.rank, self.input_values.size, self.values.size))
        settle(self, "count", check_count, 2)
        if self.values.size > self.input_values.size:
            raise ValueError(
                f"`values` must be no more than the inputs; got {self.values.size} for "
                f"{self.input_values.size}."
            )

    def enlarged(self, factor: int) -> "OrientationSetting":
        """Every value `factor` times, at as many times the rank: the same two spectra."""
        inputs, values = (np.repeat(v, factor) for v in (self.input_values, self.values))
        return OrientationSetting(inputs, values, factor * self.rank, self.count)

    @of_either_key
    def draw(self, *, key: Key) -> Orientations:
        """Random orientations, in float64."""
        xp = namespace(key)
        inputs, values = (xp.asarray(each, float) for each in (self.input_values, self.values))
        bases = haar_stack(self.count, inputs.size, values.size, key=key)
        return Orientations(inputs, values, bases, self.rank, xp.asarray(True))


def _setting(input_values: Any, values: Any, rank: int = 2) -> OrientationSetting:
    return OrientationSetting(np.asarray(input_values, float), np.asarray(values, float), rank)


_J, _I = np.arange(1.0, 7), np.arange(1.0, 5)
_ORIENTATIONS = {
    "power laws": _setting(_J**-0.5, 1 / _I),
    "low-rank inputs": _setting(_J <= 3, 0.8**_I),
    "one massive direction": _setting(np.where(_J == 1, 10, 1), 0.7**_I),
    "ties": _setting(_J <= 2, np.ones(4)),
    "as many outputs as inputs": _setting(0.7**_J, _J**-0.3, 3),
    "rank one": _setting(0.7**_J, _I**-0.3, 1),
}
_LAYERS = {
    "rank one": WELL_POSED["rank one"],
    "ill-conditioned activations": WELL_POSED["ill-conditioned activations"],
    **UNUSUAL_ACTIVATIONS,
    **SINGULAR,
    "equal singular values": Setting(
        **BASE, target=targets.ApproximateRank(spectra.Flat()), noise=noise.Gaussian(0.0)
    ),
    "nothing is lost": FULL_RANK["full rank"],
    "opposed to the data": Setting(
        samples=60,
        inputs=20,
        outputs=20,
        rank=3,
        activations=activations.FixedSpectrum(spectra.PowerLaw(0.5)),
        target=targets.OpposedToTheData(),
        noise=noise.Gaussian(0.0),
    ),
}


class AbstractTruncated(AbstractStatement):
    r"""A statement on $\lVert X(W-[W]_r)\rVert_F$, for every layer. Not squared; in the units of
    the outputs.
    """

    needs = Observed
    regimes = _LAYERS
    control = ISOTROPIC

    def hypotheses(self, instance: Problem | Layer) -> tuple[Hypothesis, ...]:
        """The same activations; none on the layer."""
        return (same_activations_hypothesis(instance),)

    def estimate(self, instance: Problem | Layer) -> LowRank:
        """$[W]_r$."""
        return _kept(instance, slice(instance.rank))

    def loss(self, instance: Problem | Layer, estimate: LowRank) -> Float[Array, ""]:
        r"""$\lVert X(W-[W]_r)\rVert_F$."""
        rows, weights = rows_and_weights(instance)
        return frobenius(matmul(rows, weights - matmul(estimate.left, estimate.right)))

    def magnitude(self, instance: Problem | Layer) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F\lVert W\rVert_F$."""
        rows, weights = rows_and_weights(instance)
        return frobenius(rows) * frobenius(weights)


def _decomposed(instance: Problem | Layer) -> tuple[Array, Array, Array]:
    """$u_i$ (columns), $s_i$ and $v_i$ (rows)."""
    _, weights = rows_and_weights(instance)
    left, values, right = jnp.linalg.svd(weights, full_matrices=False)
    return left, values, right


def _kept(instance: Problem | Layer, places: slice) -> LowRank:
    """Some of the components of the weights."""
    left, values, right = _decomposed(instance)
    return LowRank(left[:, places] * values[places], right[places])


def _spectra(instance: Problem | Layer) -> tuple[Array, Array]:
    """$s_j(X)$, one for each input, and $s_i(W)$."""
    rows, weights = rows_and_weights(instance)
    values = singular_values(rows)
    return jnp.pad(values, (0, rows.shape[1] - values.size)), singular_values(weights)


class Directions(AbstractTruncated):
    r"""$\lVert X(W-[W]_r)\rVert_F = \bigl(\sum_{i>r}s_i^2\lVert Xu_i\rVert^2\bigr)^{1/2}$."""

    kind = EQUALITY

    def broken_estimate(self, instance: Problem | Layer) -> LowRank:
        """The weakest components of the weights in the place of the strongest."""
        return _kept(instance, slice(-instance.rank, None))

    def formula(self, instance: Problem | Layer, estimate: LowRank) -> Float[Array, ""]:
        r"""$\bigl(\sum_{i>r}s_i^2\lVert Xu_i\rVert^2\bigr)^{1/2}$."""
        left, values, _ = _decomposed(instance)  # where values tie, those of the estimate
        seen = matmul(rows_and_weights(instance)[0], left)
        return frobenius((seen * values)[:, instance.rank :])


class Upper(AbstractTruncated):
    r"""$\lVert X(W-[W]_r)\rVert_F \le \bigl(\sum_ks_k(X)^2s_{r+k}(W)^2\bigr)^{1/2}$."""

    kind = UPPER
    adversary = MetricAdversary(no_metric, inputs=3)
    sharp = True

    def broken_estimate(self, instance: Problem | Layer) -> LowRank:
        """The weakest components of the weights in the place of the strongest."""
        return _kept(instance, slice(-instance.rank, None))

    def formula(self, instance: Problem | Layer, estimate: LowRank) -> Float[Array, ""]:
        r"""$\bigl(\sum_ks_k(X)^2s_{r+k}(W)^2\bigr)^{1/2}$."""
        inputs, values = _spectra(instance)
        return frobenius(pairs(inputs, values, jnp.array([instance.rank])))


class Lower(AbstractTruncated):
    r"""$\lVert X(W-[W]_r)\rVert_F \ge \bigl(\sum_ks_{N+1-k}(X)^2s_{r+k}(W)^2\bigr)^{1/2}$."""

    kind = LOWER
    adversary = MetricAdversary(no_metric, inputs=3)
    sharp = True

    def broken_estimate(self, instance: Problem | Layer) -> LowRank:
        """The weights themselves, of which nothing is lost."""
        return _kept(instance, slice(None))

    def formula(self, instance: Problem | Layer, estimate: LowRank) -> Float[Array, ""]:
        r"""$\bigl(\sum_ks_{N+1-k}(X)^2s_{r+k}(W)^2\bigr)^{1/2}$."""
        inputs, values = _spectra(instance)
        return frobenius(pairs(inputs[::-1], values, jnp.array([instance.rank])))


class AbstractChance(AbstractStatement):
    """A statement on weights in uniformly random directions."""

    needs = Orientations
    regimes = _ORIENTATIONS
    control = _ORIENTATIONS["power laws"]

    def hypotheses(self, instance: Orientations) -> tuple[Hypothesis, ...]:
        """Random directions."""
        return (chance_hypothesis(instance),)


def chance_hypothesis(instance: Orientations) -> Hypothesis:
    """That the orientations are chance."""
    name = "the directions of the weights are random, and do not depend on the activations"
    return law_hypothesis(name, jnp.asarray(instance.independent))


class AbstractMoment(AbstractChance):
    """A mean over random orientations, in squared units of the outputs or the square of these."""

    kind = EQUALITY_IN_EXPECTATION

    def estimate(self, instance: Orientations) -> Float[Array, " count"]:
        r"""$\lVert X(W-[W]_r)\rVert_F^2$ for each orientation."""
        return _losses(instance, jnp.array([instance.rank]))[:, 0]

    def broken_estimate(self, instance: Orientations) -> Float[Array, " count"]:
        r"""$\lVert X[W]_r\rVert_F^2$: what is kept, in the place of what is lost."""
        whole, lost = _losses(instance, jnp.array([0, instance.rank])).T
        return whole - lost


def _losses(instance: Orientations, ranks: Array) -> Float[Array, "count ranks"]:
    values = jnp.asarray(instance.values)
    lengths = jax.vmap(lengths_in, (0, None))(instance.bases, instance.input_values)
    return jax.vmap(losses, (None, 0, None))(values, lengths, ranks)


def _moments(instance: Orientations) -> tuple[Float[Array, ""], Float[Array, ""]]:
    inputs, values = (jnp.asarray(each) for each in (instance.input_values, instance.values))
    mean, deviation = moments(inputs, values, jnp.array([instance.rank]))
    return mean[0], deviation[0]


class Average(AbstractMoment):
    r"""$\mathbb E\lVert X(W-[W]_r)\rVert_F^2 = \lVert X\rVert_F^2\sum_{i>r}s_i(W)^2/N$."""

    def formula(self, instance: Orientations, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F^2\sum_{i>r}s_i^2/N$."""
        return _moments(instance)[0]

    def loss(self, instance: Orientations, estimate: Array) -> Float[Array, ""]:
        """The mean over the orientations of the instance."""
        return jnp.mean(estimate)

    def magnitude(self, instance: Orientations) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F^2\lVert W\rVert_F^2$."""
        return squared(frobenius(instance.input_values) * frobenius(instance.values))


class Spread(AbstractMoment):
    r"""$\operatorname{Var}\lVert X(W-[W]_r)\rVert_F^2 = \frac{2}{(N-1)(N+2)}
    \bigl(\operatorname{tr}G^2 - \tfrac1N(\operatorname{tr}G)^2\bigr)\bigl(\operatorname{tr}S^2 -
    \tfrac1N(\operatorname{tr}S)^2\bigr)$.
    """

    def formula(self, instance: Orientations, estimate: Array) -> Float[Array, ""]:
        """The variance."""
        return _moments(instance)[1] ** 2

    def loss(self, instance: Orientations, estimate: Array) -> Float[Array, ""]:
        """The mean squared distance from the mean, over the orientations of the instance."""
        return jnp.mean((estimate - _moments(instance)[0]) ** 2)

    def magnitude(self, instance: Orientations) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F^4\lVert W\rVert_F^4$."""
        return squared(squared(frobenius(instance.input_values) * frobenius(instance.values)))


class PValue(AbstractChance):
    r"""With probability $1-\delta$, the share of the loss and of those of fresh random orientations
    that are no smaller than it is at least $\delta$. No unit.
    """

    kind = LOWER_WITH_PROBABILITY
    refuted_below = Refuted(
        1.0,
        "many references: the rank among them is uniform",
    )

    def estimate(self, instance: Orientations) -> Float[Array, ""]:
        """The share."""
        above, _ = _p_values(instance, jnp.array([instance.rank]))
        return above[0]

    def broken_estimate(self, instance: Orientations) -> Float[Array, ""]:
        """The least share of all ranks and both tails."""
        ranks = jnp.arange(instance.values.shape[0])
        return jnp.min(jnp.stack(_p_values(instance, ranks)))

    def formula(self, instance: Orientations, estimate: Array) -> Float[Array, ""]:
        r"""$\delta$."""
        return jnp.asarray(self.failure_probability)

    def loss(self, instance: Orientations, estimate: Array) -> Float[Array, ""]:
        """The share."""
        return estimate

    def magnitude(self, instance: Orientations) -> Float[Array, ""]:
        """One."""
        return jnp.ones(())


def _p_values(instance: Orientations, ranks: Array) -> tuple[Array, Array]:
    first, *_ = found = _losses(instance, ranks)
    size = squared(frobenius(instance.input_values) * frobenius(instance.values))
    return ranked(first, found[1:], rounding_allowance(size, *instance.sizes))


class Orientation(AbstractTheorem):
    """What truncated weights lose depends on how they lie towards the data: between two sharp
    limits that the spectra set, and with a known mean and variance where orientation is chance.
    """

    directions: Directions = Directions()
    upper: Upper = Upper()
    lower: Lower = Lower()
    average: Average = Average()
    spread: Spread = Spread()
    p_value: PValue = PValue()


orientation = Orientation()
