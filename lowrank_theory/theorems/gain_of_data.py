r"""Why data help: what the best layer for the data loses, and what truncated weights lose more.

**Model.** A layer $W$ (N x K) sees activations $X$ (m x N); $\tilde X = X$. The best layer of rank
r loses $\mathrm{opt}^2 = \min_{\operatorname{rank}Z\le r}\lVert X(W-Z)\rVert_F^2 = \sum_{j>r}l_j$
with $l_j = s_j(XW)^2$; truncated weights lose $\mathrm{da}^2 = \lVert X(W-[W]_r)\rVert_F^2$.
Further $\operatorname{tail}_i(A)^2 = \sum_{k>i}s_k(A)^2$, $d = \min(N, K)$, and zeros continue all
$s_j$ and $l_j$.

**Claims** (squared; proved in paper_notes/gain_of_data.md):

- `split` (sure): $\mathrm{opt}^2 \le \min_{i+j=r}\lVert(X-[X]_i)(W-[W]_j)\rVert_F^2$. Ranks may be
  spent on the inputs or on the weights: $j = r$ is truncation, $i = r$ compresses the inputs.
  Attained for every split, for $i = r$ by every $W$ with orthonormal rows.
- `excess_below`, `excess_above` (sure): with $\theta_1 \ge \theta_2 \ge \dots$ the principal angles
  between the leading right singular spaces of $W$ and of $XW$ and $k = \min(r, d-r)$,
  $$\sum_{t\le k}(l_{r+1-t}-l_{r+t})\sin^2\theta_t \le \mathrm{da}^2 - \mathrm{opt}^2 \le
  \sum_{t\le k}(l_t - l_{d+1-t})\sin^2\theta_t.$$
  Both are attained for all $l$ and all angles.
- `spectra` (sure): $\mathrm{opt}^2 \le \min_{i+j=r}\sum_{k\le d-r}s_{i+k}(X)^2s_{j+k}(W)^2$,
  whatever the orientation; attained for every split.
- `expected_optimum` (in expectation): if the left singular vectors of $W$ are Haar and do not
  depend on $X$, $\mathbb E\,\mathrm{opt}^2 \le \min_{i+j=r}\operatorname{tail}_i(X)^2
  \operatorname{tail}_j(W)^2/N$, while $\mathbb E\,\mathrm{da}^2 = \lVert X\rVert_F^2
  \operatorname{tail}_r(W)^2/N$.
- `law`, `law_without_data` (limits): if moreover $N\to\infty$, the spectra of $X^\top X$ and
  $WW^\top$ tend to $\mu$ and $\nu$, and $r/N\to\rho$, then $\mathrm{opt}^2/\lVert XW\rVert_F^2$
  tends to the share of the sum of $\mu\boxtimes\nu$ that its smallest $1-\rho$ hold
  (`free_product.tail_shares`), and $\mathrm{da}^2/\lVert XW\rVert_F^2$ to
  $\operatorname{tail}_r(W)^2/\lVert W\rVert_F^2$.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._numerics import matmul, safe_divide
from lowrank_theory._random import normal
from lowrank_theory._subspaces import leading_right_vectors
from lowrank_theory.free_product import tail_shares
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.problems import Layer, Observed, Problem, Setting
from lowrank_theory.theorems._quantities import (
    frobenius,
    rows_and_weights,
    same_activations_hypothesis,
    singular_values,
    squared,
    tail_norm,
)
from lowrank_theory.theorems._regimes import (
    BASE,
    FULL_RANK,
    POWER_LAW,
    SINGULAR,
    UNUSUAL_ACTIVATIONS,
    WELL_POSED,
)
from lowrank_theory.theorems._splits import (
    aligned_losses,
    best_splits,
    excess_sides,
    least_of_splits,
    narrowed,
    tails,
)
from lowrank_theory.theorems._splits import excess_bounds as excess_bounds
from lowrank_theory.theorems._splits import expected_gains as expected_gains
from lowrank_theory.theorems._splits import spectral_bounds as spectral_bounds
from lowrank_theory.theorems._splits import split_bounds as split_bounds
from lowrank_theory.theorems._theorem import (
    ASYMPTOTIC_EQUALITY,
    LOWER,
    UPPER,
    UPPER_IN_EXPECTATION,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)
from lowrank_theory.theorems.orientation import (
    Orientations,
    OrientationSetting,
    chance_hypothesis,
)

# --- sure statements -----------------------------------------------------------------------------

_REGIMES = {
    **WELL_POSED,
    **SINGULAR,
    **FULL_RANK,
    **UNUSUAL_ACTIVATIONS,
    **POWER_LAW,
    "ties": Setting(
        **BASE,
        activations=activations.FixedSpectrum(spectra.Flat()),
        target=targets.ApproximateRank(spectra.Flat()),
        noise=noise.Gaussian(0.0),
    ),
}
_COMPRESSIBLE = Setting(  # of activations beside whose low rank that of the weights is nothing
    samples=60,
    inputs=24,
    outputs=20,
    rank=6,
    activations=activations.LowRankPlusNoise(5, 1e4),
    target=targets.ApproximateRank(spectra.PowerLaw(0.5)),
    noise=noise.Gaussian(0.0),
)


class FreeLayer(AbstractAdversary):
    """Every entry of $X$ and of $W$ is free."""

    size: int = 3
    rank: int = 2

    def start(self, *, key: PRNGKeyArray) -> Float[Array, "2 size size"]:
        """Two Gaussian matrices."""
        return normal(key, (2, self.size, self.size))

    def play(self, free: Float[Array, "2 size size"]) -> tuple[Layer, None]:
        """The layer."""
        return Layer(Observed(activations=free[0], weights=free[1]), self.rank), None


class AbstractSure(AbstractStatement):
    """A statement on every layer that sees what it always saw. Squared; in the units of the
    outputs.
    """

    needs = Observed
    regimes = _REGIMES
    control = _COMPRESSIBLE
    sharp = True

    def hypotheses(self, instance: Problem | Layer) -> tuple[Hypothesis, ...]:
        """The same activations; none on the layer."""
        return (same_activations_hypothesis(instance),)

    def loss(self, instance: Problem | Layer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert XW(I - VV^\top)\rVert_F^2$, for the right singular vectors $V$ that are kept."""
        return _lost(instance, estimate)

    def magnitude(self, instance: Problem | Layer) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F^2\lVert W\rVert_F^2$."""
        seen, weights = rows_and_weights(instance)
        return squared(frobenius(seen) * frobenius(weights))


def _outputs(instance: Problem | Layer) -> Float[Array, "samples side"]:
    """$XW$, narrowed."""
    seen, weights = rows_and_weights(instance)
    return matmul(seen, narrowed(weights))


def _lost(instance: Problem | Layer, kept: Float[Array, "side rank"]) -> Float[Array, ""]:
    outputs = _outputs(instance)
    return squared(frobenius(outputs - matmul(outputs, kept, kept.T)))


def _kept_by_data(instance: Problem | Layer) -> Float[Array, "side rank"]:
    """The leading right singular vectors of $XW$."""
    return leading_right_vectors(_outputs(instance), instance.rank)[0]


def _kept_by_weights(instance: Problem | Layer) -> Float[Array, "side rank"]:
    """The leading right singular vectors of $W$."""
    _, weights = rows_and_weights(instance)
    return leading_right_vectors(narrowed(weights), instance.rank)[0]


def _at(losses: Float[Array, " ranks"], rank: int) -> Float[Array, ""]:
    """Zero beyond the ranks that there are."""
    return losses[rank] if rank < losses.size else jnp.zeros(())


class AbstractOptimum(AbstractSure):
    r"""A bound on $\mathrm{opt}^2$."""

    kind = UPPER
    adversary = FreeLayer()

    def estimate(self, instance: Problem | Layer) -> Float[Array, "side rank"]:
        """What the best layer for the data keeps: the leading right singular vectors of $XW$."""
        return _kept_by_data(instance)

    def broken_estimate(self, instance: Problem | Layer) -> Float[Array, "side rank"]:
        """Those of $W$, as if there were no data."""
        return _kept_by_weights(instance)


class Split(AbstractOptimum):
    r"""$\mathrm{opt}^2 \le \min_{i+j=r}\lVert(X-[X]_i)(W-[W]_j)\rVert_F^2$. Squared; in the units
    of the outputs.
    """

    def formula(self, instance: Problem | Layer, estimate: Any) -> Float[Array, ""]:
        """The loss of the best split."""
        seen, weights = rows_and_weights(instance)
        _, values, directions = jnp.linalg.svd(seen, full_matrices=False)
        losses = best_splits(values**2, directions, weights)
        return _at(losses, instance.rank)


class Spectra(AbstractOptimum):
    r"""$\mathrm{opt}^2 \le \min_{i+j=r}\sum_{k\le d-r}s_{i+k}(X)^2s_{j+k}(W)^2$. Squared; in
    the units of the outputs.
    """

    def formula(self, instance: Problem | Layer, estimate: Any) -> Float[Array, ""]:
        """The least over the splits."""
        inputs, values = map(singular_values, rows_and_weights(instance))
        losses = least_of_splits(aligned_losses(inputs**2, values**2))
        return _at(losses, instance.rank)


class Turned(AbstractAdversary):
    """Any spectrum of the outputs, and any weights, in the right singular vectors of the outputs.

    The weights have known components; the activations are those that make the outputs diagonal.
    """

    outputs: int = 4
    rank: int = 2

    def start(self, *, key: PRNGKeyArray) -> dict[str, Array]:
        """Steps between the values of the outputs and of the weights, and a rotation."""
        keys = jax.random.split(key, 3)
        return {
            "outputs": normal(keys[0], (self.outputs,)),
            "weights": normal(keys[1], (self.outputs,)),
            "rotation": normal(keys[2], (self.outputs, self.outputs)),
        }

    def play(self, free: dict[str, Array]) -> tuple[Layer, Array]:
        """The layer, and the components that truncated weights keep."""
        seen, values = (
            jnp.exp(jnp.cumsum(free[name] ** 2 + _APART)[::-1]) for name in ("outputs", "weights")
        )
        rotation, _ = jnp.linalg.qr(free["rotation"])
        weights = values[:, None] * rotation.T
        layer = Layer(
            Observed(activations=seen[:, None] * rotation / values, weights=weights), self.rank
        )
        return layer, rotation[:, : self.rank]


_APART = 1e-5  # a tie is approached, so that the statement decides as the adversary does


class AbstractExcess(AbstractSure):
    r"""A bound on $\mathrm{da}^2 - \mathrm{opt}^2$ from the angles between the two spaces."""

    adversary = Turned()

    @abc.abstractmethod
    def side(self, below: Array, above: Array) -> Array:
        """The bound, of the two."""

    def estimate(self, instance: Problem | Layer) -> Float[Array, "side rank"]:
        """What truncated weights keep: the leading right singular vectors of $W$."""
        return _kept_by_weights(instance)

    def formula(self, instance: Problem | Layer, estimate: Array) -> Float[Array, ""]:
        r"""The sum over the angles."""
        leading, squares = leading_right_vectors(_outputs(instance), instance.rank)
        turned = estimate - matmul(leading, leading.T, estimate)
        sides = excess_sides(squares, singular_values(turned) ** 2, instance.rank)
        return self.side(*sides)

    def loss(self, instance: Problem | Layer, estimate: Array) -> Float[Array, ""]:
        r"""$\mathrm{da}^2 - \mathrm{opt}^2$."""
        best = tail_norm(singular_values(_outputs(instance)), instance.rank)
        return _lost(instance, estimate) - squared(best)


class ExcessBelow(AbstractExcess):
    r"""$\mathrm{da}^2 - \mathrm{opt}^2 \ge \sum_{t\le k}(l_{r+1-t}-l_{r+t})\sin^2\theta_t$.
    Squared; in the units of the outputs.
    """

    kind = LOWER

    def side(self, below: Array, above: Array) -> Array:
        """The lower one."""
        return below

    def broken_estimate(self, instance: Problem | Layer) -> Float[Array, "side rank"]:
        """What the best layer for the data keeps, without any excess."""
        return _kept_by_data(instance)


class ExcessAbove(AbstractExcess):
    r"""$\mathrm{da}^2 - \mathrm{opt}^2 \le \sum_{t\le k}(l_t-l_{d+1-t})\sin^2\theta_t$. Squared; in
    the units of the outputs.
    """

    kind = UPPER

    def side(self, below: Array, above: Array) -> Array:
        """The upper one."""
        return above

    def broken_estimate(self, instance: Problem | Layer) -> Float[Array, "side rank"]:
        """The weakest right singular vectors of $XW$."""
        outputs = _outputs(instance)
        return leading_right_vectors(outputs, outputs.shape[1])[0][:, -instance.rank :]


# --- random orientation --------------------------------------------------------------------------

_INDEX = np.arange(1.0, 31)


def _setting(input_values: Any, values: Any) -> OrientationSetting:
    return OrientationSetting(input_values + 0.0, values[:20] + 0.0, rank=5, count=16)


_LIMITS = {
    "power laws": _setting(_INDEX**-0.5, _INDEX**-0.3),
    "inputs decay faster": _setting(_INDEX**-1.0, _INDEX**-0.2),
    "inputs of low rank": _setting(_INDEX <= 12, _INDEX**0.0),
    "two projections": _setting(_INDEX <= 15, _INDEX <= 15),
}
_ORIENTATIONS = {
    **_LIMITS,
    "weights decay faster": _setting(_INDEX**-0.2, _INDEX**-1.0),
    "low rank plus noise": _setting(np.where(_INDEX <= 8, 1, 0.1), _INDEX**-0.5),
}


class _Losses(eqx.Module):
    r"""Squared errors of several orientations, and their $\lVert XW\rVert_F^2$."""

    lost: Float[Array, " count"]
    whole: Float[Array, " count"]

    @property
    def shares(self) -> Float[Array, " count"]:
        """Of the outputs."""
        return safe_divide(self.lost, self.whole)


def _with_data(instance: Orientations) -> _Losses:
    r"""$\mathrm{opt}^2$."""
    return _lost_by(instance, lambda outputs: singular_values(outputs) ** 2)


def _without_data(instance: Orientations) -> _Losses:
    r"""$\mathrm{da}^2$: in these coordinates the right singular vectors of $W$ are unit vectors."""
    return _lost_by(instance, lambda outputs: jnp.sum(outputs**2, axis=0))


def _lost_by(instance: Orientations, parts: Callable[[Array], Array]) -> _Losses:
    inputs, values = (jnp.asarray(each, float) for each in _values(instance))

    def one(basis: Array) -> tuple[Array, Array]:
        outputs = inputs[:, None] * basis * values
        return jnp.sum(parts(outputs)[instance.rank :]), jnp.sum(outputs**2)

    return _Losses(*jax.lax.map(one, jnp.asarray(instance.bases, float)))


def _values(instance: Orientations) -> tuple[Any, Any]:
    return instance.input_values, instance.values


class AbstractChance(AbstractStatement):
    """A statement on weights in uniformly random directions."""

    needs = Orientations
    regimes = _ORIENTATIONS
    control = _LIMITS["power laws"]

    def hypotheses(self, instance: Orientations) -> tuple[Hypothesis, ...]:
        """Random directions."""
        return (chance_hypothesis(instance),)

    def estimate(self, instance: Orientations) -> _Losses:
        r"""$\mathrm{opt}^2$ for each orientation."""
        return _with_data(instance)

    def broken_estimate(self, instance: Orientations) -> _Losses:
        r"""$\mathrm{da}^2$, as if there were no data."""
        return _without_data(instance)


class ExpectedOptimum(AbstractChance):
    r"""$\mathbb E\,\mathrm{opt}^2 \le \min_{i+j=r}\operatorname{tail}_i(X)^2
    \operatorname{tail}_j(W)^2/N$. Squared; in the units of the outputs.
    """

    kind = UPPER_IN_EXPECTATION
    refuted_below = Refuted(1.0, "white activations: the tail of the weights is the optimum")

    def formula(self, instance: Orientations, estimate: _Losses) -> Float[Array, ""]:
        """The least over the splits."""
        inputs, values = (tails(jnp.asarray(each, float) ** 2) for each in _values(instance))
        size = instance.bases.shape[1]
        return least_of_splits(jnp.outer(inputs, values))[instance.rank] / size

    def loss(self, instance: Orientations, estimate: _Losses) -> Float[Array, ""]:
        """The mean over the orientations of the instance."""
        return jnp.mean(estimate.lost)

    def magnitude(self, instance: Orientations) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F^2\lVert W\rVert_F^2$."""
        return squared(frobenius(instance.input_values) * frobenius(instance.values))


class AbstractLimit(AbstractChance):
    r"""A limit of the share of $\lVert XW\rVert_F^2$ that a layer loses. Without units."""

    kind = ASYMPTOTIC_EQUALITY
    regimes = _LIMITS
    growth = (1, 2, 4)
    trials_per_mean = 0.05

    def loss(self, instance: Orientations, estimate: _Losses) -> Float[Array, ""]:
        """The mean share, over the orientations of the instance."""
        return jnp.mean(estimate.shares)

    def magnitude(self, instance: Orientations) -> Float[Array, ""]:
        """One."""
        return jnp.ones(())


class Law(AbstractLimit):
    r"""$\mathrm{opt}^2/\lVert XW\rVert_F^2$ tends to the share of the smallest $1-\rho$ of
    $\mu\boxtimes\nu$. Without units.
    """

    def formula(self, instance: Orientations, estimate: _Losses) -> Float[Array, ""]:
        """The share for these spectra."""
        inputs, values = (jnp.asarray(each, float) ** 2 for each in _values(instance))
        padded = jnp.pad(values, (0, inputs.size - values.size))
        return tail_shares(inputs, padded, [instance.rank])[0]


class LawWithoutData(AbstractLimit):
    r"""$\mathrm{da}^2/\lVert XW\rVert_F^2$ tends to $\operatorname{tail}_r(W)^2/\lVert
    W\rVert_F^2$. Without units.
    """

    def estimate(self, instance: Orientations) -> _Losses:
        r"""$\mathrm{da}^2$ for each orientation."""
        return _without_data(instance)

    def broken_estimate(self, instance: Orientations) -> _Losses:
        r"""$\mathrm{opt}^2$."""
        return _with_data(instance)

    def formula(self, instance: Orientations, estimate: _Losses) -> Float[Array, ""]:
        r"""$\operatorname{tail}_r(W)^2/\lVert W\rVert_F^2$."""
        rest = tails(jnp.asarray(instance.values, float) ** 2)
        return safe_divide(rest[instance.rank], rest[0])


class GainOfData(AbstractTheorem):
    """Data help where the inputs are of low rank: ranks may be spent on them or on the weights, and
    two spectra say how much that gains, surely, on average and in the limit.
    """

    split: Split = Split()
    excess_below: ExcessBelow = ExcessBelow()
    excess_above: ExcessAbove = ExcessAbove()
    spectra: Spectra = Spectra()
    expected_optimum: ExpectedOptimum = ExpectedOptimum()
    law: Law = Law()
    law_without_data: LawWithoutData = LawWithoutData()


gain_of_data = GainOfData()
