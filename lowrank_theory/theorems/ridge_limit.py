r"""What a ridge costs, and that the recovery converges as it is taken away.

**Model.** $Z_\mu$ minimises $\lVert X(W - Z)\rVert_F^2 + \mu\lVert W - Z\rVert_F^2$ over rank r:
$Z_\mu = WP_\mu$, with $P_\mu$ the projector on the r leading eigenvectors of $W^\top(X^\top X + \mu
I)W$. Let $\gamma = s_r(XW)^2 - s_{r+1}(XW)^2$, $d = \lVert W\rVert^2 - s_{\min}(W)^2$ with
$s_{\min}$ the last of the $\min(N, K)$ singular values, $x = \mu d/\gamma$ and $r_0 = \min(r,
K-r)$.

**Claims** (all sure and attained; proved in paper_notes/ridge_limit.md):

- `weights`: $\lVert Z_\mu - Z_0\rVert \le \lVert W\rVert\sin(\tfrac12\arcsin x)$ for $x < 1$, and
  $\le \lVert W\rVert$ always. In particular $\le \mu\lVert W\rVert^3/\gamma$.
- `data_loss`: $\lVert X(W - Z_\mu)\rVert_F^2 - \lVert X(W - Z_0)\rVert_F^2 \le \tfrac12r_0\,\mu
  d\tan(\tfrac12\arcsin x)$ for $x < 1$, and $\le r_0\,\mu d$ always: of second order in $\mu$.
- `trade`: the same excess is at most $\mu(\lVert W - Z_0\rVert_F^2 - \lVert W - Z_\mu\rVert_F^2)$.

That the limit exists, with an error of order $\mu$, is due to Parkina and Rakhuba (2025); constants
and proofs are this project's own.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._arrays import Drawn, Key, after, matmul, namespace, of_either_key
from lowrank_theory._numerics import AnyArray, check_rank, keep, safe_divide
from lowrank_theory._random import normal, split
from lowrank_theory.generators.activations import haar
from lowrank_theory.problems import Layer, Observed
from lowrank_theory.recovery import LowRank, activation_weighted, ridge, truncated_svd
from lowrank_theory.theorems._quantities import (
    frobenius,
    largest_turn,
    no_bias_hypothesis,
    singular_values,
    squared,
)
from lowrank_theory.theorems._theorem import (
    UPPER,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)


class RidgedLayer(eqx.Module):
    r"""A layer with trained weights and activations, the rank asked for, and the penalty $\mu$."""

    layer: Layer
    penalty: Float[AnyArray, ""]

    @property
    def observed(self) -> Observed:
        """The layer."""
        return self.layer.observed

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.layer.sizes


class RidgedSetting(eqx.Module):
    r"""A random layer whose penalty is stated in proportion to its gap, $\mu =$ `strength`
    $\cdot\,\gamma/\lVert W\rVert^2$.

    $X$ has independent Gaussian columns of the given `scales` (inputs,); $W$ has the given singular
    `values`, of length min(inputs, outputs), and uniform bases.
    """

    samples: int
    outputs: int
    rank: int
    scales: Float[AnyArray, " inputs"] = eqx.field(converter=np.asarray)
    values: Float[AnyArray, " count"] = eqx.field(converter=np.asarray)
    strength: Float[AnyArray, ""] = eqx.field(converter=np.asarray)

    def __check_init__(self) -> None:
        keep(self, "rank", check_rank(self.rank, self.scales.size, self.outputs))

    @of_either_key
    def draw(self, *, key: Key) -> RidgedLayer:
        """A random layer with its penalty, in float64."""
        row_key, left_key, right_key = split(key, 3)
        inputs, count = self.scales.size, self.values.size
        activations = normal(row_key, (self.samples, inputs)) * self.scales
        left = haar(inputs, count, key=left_key)
        right = haar(self.outputs, count, key=after(left, right_key))
        weights = matmul(left * self.values, right.T)
        return ridged(activations, weights, self.rank, self.strength)


def ridged(activations: Drawn, weights: Drawn, rank: int, strength: Any) -> RidgedLayer:
    r"""The layer with the penalty $\mu =$ `strength` $\cdot\,\gamma/\lVert W\rVert^2$."""
    layer = Layer(Observed(weights=weights, activations=activations), rank)
    gap, xp = _gap(_padded_values(activations, weights), rank), namespace(activations, weights)
    penalty = strength * gap / xp.linalg.svd(weights, compute_uv=False)[0] ** 2
    return RidgedLayer(layer, xp.asarray(penalty))


def _setting(strength: float, scales: Any = 1.0, values: Any = None) -> RidgedSetting:
    values = np.linspace(2, 1, 6) if values is None else values
    return RidgedSetting(16, 6, 2, scales * np.ones(8), np.asarray(values, float), strength)


_DECAY = 1 / np.arange(1, 9)
_REGIMES = {
    "weak ridge": _setting(1e-3),
    "half the gap": _setting(0.5),
    "almost the gap": _setting(0.95, values=0.3 ** np.arange(6)),
    "beyond the gap": _setting(5.0),
    "ill-conditioned activations": _setting(0.5, _DECAY**4, 1 / np.arange(1, 7)),
    "rank-deficient activations": _setting(0.5, np.arange(8) < 4, 0.5 ** np.arange(6)),
    "equal singular values": _setting(0.5, _DECAY, np.ones(6)),
    "fewer samples than inputs": RidgedSetting(5, 8, 2, _DECAY[:6], np.linspace(2, 0.2, 6), 0.7),
}


def _weights(layer: Layer) -> Array:
    if layer.observed.weights is None:
        raise ValueError("This statement is about trained weights: give `Observed(weights=...)`.")
    return jnp.asarray(layer.observed.weights, float)


def _activations(layer: Layer) -> Array:
    if layer.observed.activations is None:
        raise ValueError("This statement needs rows: give `Observed(activations=...)`.")
    return jnp.asarray(layer.observed.activations, float)


def _output_values(layer: Layer) -> Array:
    """The singular values of $XW$, one for each output and a zero."""
    return _padded_values(_activations(layer), _weights(layer))


def _padded_values(activations: Drawn, weights: Drawn) -> Drawn:
    xp = namespace(activations, weights)
    values = xp.linalg.svd(matmul(activations, weights), compute_uv=False)
    return xp.pad(values, (0, weights.shape[1] - values.size + 1))


def _gap(values: Drawn, rank: int) -> Any:
    r"""$\gamma = s_r(XW)^2 - s_{r+1}(XW)^2$."""
    return values[rank - 1] ** 2 - values[rank] ** 2


def _spread(instance: RidgedLayer) -> Array:
    r"""$\mu d$, over which the eigenvalues of $\mu W^\top W$ spread where it is not zero."""
    values = singular_values(_weights(instance.layer))
    return jnp.asarray(instance.penalty) * (values[0] ** 2 - values[-1] ** 2)


def _ratio(instance: RidgedLayer) -> Array:
    """$x$, infinite without a gap."""
    gap = _gap(_output_values(instance.layer), instance.layer.rank)
    return jnp.where(gap > 0, safe_divide(_spread(instance), gap), jnp.inf)


class _Pair(eqx.Module):
    """The recovery with the ridge, and the one without."""

    ridged: LowRank
    plain: LowRank

    def excess(self, layer: Layer) -> Array:
        r"""$\lVert X(W - Z_\mu)\rVert_F^2 - \lVert X(W - Z_0)\rVert_F^2$."""
        seen = _activations(layer)
        return _loss(layer, seen, self.ridged) - _loss(layer, seen, self.plain)


def _loss(layer: Layer, seen: Array, factors: LowRank) -> Array:
    difference = _weights(layer) - matmul(factors.left, factors.right)
    return jnp.sum(matmul(seen, difference) ** 2)


class AbstractRidgeLimit(AbstractStatement):
    r"""A statement on $Z_\mu$ and $Z_0$ of a layer that sees what it always saw."""

    needs = RidgedLayer
    regimes = _REGIMES
    control = _REGIMES["weak ridge"]
    sharp = True

    def hypotheses(self, instance: RidgedLayer) -> tuple[Hypothesis, ...]:
        """No bias, no other activations and no other outputs; a penalty and no reward."""
        observed = instance.observed
        plain = observed.compressed_activations is observed.outputs is None
        name = "the layer sees and gives what it always did"
        return (
            no_bias_hypothesis(instance.layer),
            Hypothesis(name, 0.0 if plain else -1.0),
            Hypothesis("the penalty is not negative", jnp.asarray(instance.penalty)),
        )

    def estimate(self, instance: RidgedLayer) -> _Pair:
        r"""$Z_\mu$ and $Z_0$."""
        layer = instance.layer
        weights, seen = _weights(layer), _activations(layer)
        plain, _, _ = activation_weighted(weights, seen, rank=layer.rank)
        pulled, _, _ = ridge(weights, after(plain.left, seen), instance.penalty, rank=layer.rank)
        return _Pair(pulled, plain)

    def broken_estimate(self, instance: RidgedLayer) -> _Pair:
        r"""Truncated weights in place of $Z_\mu$: the limit of an infinite ridge."""
        layer = instance.layer
        plain, _, _ = activation_weighted(_weights(layer), _activations(layer), rank=layer.rank)
        truncated, _ = truncated_svd(after(plain.left, _weights(layer)), rank=layer.rank)
        return _Pair(truncated, plain)


class _Balanced(AbstractAdversary):
    """A free layer of two inputs and outputs, and a ridge below its gap."""

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array, Array]:
        """Activations, weights, and the logit of $x$ up to its factor below one."""
        keys = jax.random.split(key, 3)
        return (
            normal(keys[0], (2, 2)),
            normal(keys[1], (2, 2)),
            normal(keys[2], ()),
        )

    def play(self, free: tuple[Array, Array, Array]) -> tuple[RidgedLayer, None]:
        """The layer with this penalty; its estimates have derivatives, as both gaps are open."""
        activations, weights, logit = free
        return ridged(activations, weights, 1, jax.nn.sigmoid(logit)), None


class _JustPastTheGap(AbstractAdversary):
    """Two components, of which the ridge prefers the other one, by a little."""

    def start(self, *, key: PRNGKeyArray) -> Float[Array, " 4"]:
        """Logarithms of energies, weights and how far the ridge is past the change."""
        return normal(key, (4,))

    def play(self, free: Float[Array, " 4"]) -> tuple[RidgedLayer, _Pair]:
        r"""The diagonal layer; $Z_0$ keeps its first component, $Z_\mu$ the second."""
        energy, gap, more, past = jnp.exp(free)
        weights = jnp.stack([jnp.ones(()), jnp.sqrt(1 + more)])
        activations = jnp.sqrt(jnp.stack([energy + gap, energy])) / weights
        strength = gap * (1 + 1e-3 + past) / more
        layer = Layer(
            Observed(weights=jnp.diag(weights), activations=jnp.diag(activations)), rank=1
        )
        first, second = jnp.eye(2)[:, :1], jnp.eye(2)[:, 1:]
        return RidgedLayer(layer, strength), _Pair(
            LowRank(weights[1] * second, second.T), LowRank(first, first.T)
        )


class Weights(AbstractRidgeLimit):
    r"""$\lVert Z_\mu - Z_0\rVert \le \lVert W\rVert\sin(\tfrac12\arcsin x)$ for $x = \mu d/\gamma <
    1$. Operator norms, not squared; in the units of the weights.
    """

    kind = UPPER
    adversary = _Balanced()

    def formula(self, instance: RidgedLayer, estimate: _Pair) -> Float[Array, ""]:
        r"""$\lVert W\rVert\sin(\tfrac12\arcsin x)$, and $\lVert W\rVert$ for $x \ge 1$."""
        sine, _ = largest_turn(_ratio(instance))
        return singular_values(_weights(instance.layer))[0] * sine

    def loss(self, instance: RidgedLayer, estimate: _Pair) -> Float[Array, ""]:
        r"""$\lVert Z_\mu - Z_0\rVert$."""
        one, other = (matmul(z.left, z.right) for z in (estimate.ridged, estimate.plain))
        return singular_values(one - other)[0]

    def magnitude(self, instance: RidgedLayer) -> Float[Array, ""]:
        r"""$\lVert W\rVert_F$ times the condition number of the eigenspace."""
        return frobenius(_weights(instance.layer)) * _condition(instance.layer)


class AbstractExcess(AbstractRidgeLimit):
    r"""A bound on $\lVert X(W - Z_\mu)\rVert_F^2 - \lVert X(W - Z_0)\rVert_F^2$. Squared; in the
    units of the outputs.
    """

    def loss(self, instance: RidgedLayer, estimate: _Pair) -> Float[Array, ""]:
        """The excess."""
        return estimate.excess(instance.layer)

    def magnitude(self, instance: RidgedLayer) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F^2\lVert W\rVert_F^2$, and the penalty of what rounding turns."""
        weights, seen = _weights(instance.layer), _activations(instance.layer)
        turned = instance.penalty * _condition(instance.layer)
        return squared(frobenius(weights)) * (squared(frobenius(seen)) + turned)


class DataLoss(AbstractExcess):
    r"""$\lVert X(W - Z_\mu)\rVert_F^2 \le \lVert X(W - Z_0)\rVert_F^2 + \tfrac12r_0\,\mu
    d\tan(\tfrac12\arcsin x)$ for $x = \mu d/\gamma < 1$.
    """

    kind = UPPER
    adversary = _Balanced()

    def formula(self, instance: RidgedLayer, estimate: _Pair) -> Float[Array, ""]:
        r"""$\tfrac12r_0\,\mu d\tan(\tfrac12\arcsin x)$, and $r_0\,\mu d$ for $x \ge 1$."""
        ratio = _ratio(instance)
        _, tangent = largest_turn(ratio)
        rank, outputs = instance.layer.rank, instance.observed.shape[1]
        turned = min(rank, outputs - rank) * _spread(instance)
        return turned * jnp.where(ratio < 1, tangent / 2, 1.0)


class Trade(AbstractExcess):
    r"""$\lVert X(W - Z_\mu)\rVert_F^2 \le \lVert X(W - Z_0)\rVert_F^2 + \mu(\lVert W -
    Z_0\rVert_F^2 - \lVert W - Z_\mu\rVert_F^2)$.
    """

    kind = UPPER
    adversary = _JustPastTheGap()

    def formula(self, instance: RidgedLayer, estimate: _Pair) -> Float[Array, ""]:
        r"""$\mu(\lVert W - Z_0\rVert_F^2 - \lVert W - Z_\mu\rVert_F^2)$, which is not
        negative.
        """
        layer = instance.layer
        identity = jnp.eye(layer.observed.shape[0])
        plain, pulled = (_loss(layer, identity, z) for z in (estimate.plain, estimate.ridged))
        return jnp.asarray(instance.penalty) * jnp.maximum(plain - pulled, 0)


def _condition(layer: Layer) -> Array:
    r"""By how much the leading right singular vectors of $XW$ turn, relative to rounding:
    $\lVert X\rVert_F\lVert W\rVert_F/(s_r - s_{r+1})$, at least one. Without a gap no claim
    depends on them.
    """
    values = _output_values(layer)
    gap = values[layer.rank - 1] - values[layer.rank]
    formed = frobenius(_activations(layer)) * frobenius(_weights(layer))
    return jnp.maximum(safe_divide(formed, gap), 1.0)


class RidgeLimit(AbstractTheorem):
    """As a ridge is taken away the recovery converges, at a rate set by the gap of the outputs, and
    what the data pay is of second order.
    """

    weights: Weights = Weights()
    data_loss: DataLoss = DataLoss()
    trade: Trade = Trade()


ridge_limit = RidgeLimit()
