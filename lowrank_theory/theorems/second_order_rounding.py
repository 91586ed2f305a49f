r"""What rounding input after input costs, where the inputs to come make up for each error.

**Model.** $X$ (m, N) is what a layer sees, $W$ (N, K) are its weights, $H = X^\top X + \lambda I$,
$\lambda \gt 0$. `quantisation.gptq` rounds the inputs in turn to multiples of a step $\Delta$,
nothing clipped: $Q_k$ is the multiple nearest to $u_k$, the best for input $k$ beside the errors so
far, whatever comes after. With $E = W - Q$, the cost is $\operatorname{tr}E^\top HE = \lVert
XE\rVert_F^2 + \lambda\lVert E\rVert_F^2$.

**Claims** (proved in paper_notes/second_order_rounding.md), with the prices $d_k =
1/[(H_{\ge k,\ge k})^{-1}]_{kk}$, in the order in which inputs are rounded:

- `cost` (sure, equality): $\operatorname{tr}E^\top HE = \sum_kd_k\lVert u_k - Q_k\rVert^2$,
  whatever the levels (Chee, Cai, Kuleshov and De Sa 2023).
- `worst` (sure): $\operatorname{tr}E^\top HE \le \tfrac14K\Delta^2\sum_kd_k$, attained for every
  $H$ where all $u_k$ lie half way between levels.
- `moments` (sure): $\operatorname{tr}E^\top HE \le \tfrac14K\Delta^2\operatorname{tr}H$, as $d_k
  \le H_{kk}$; attained where inputs are uncorrelated.
- `any_order` (sure): $\sum_kd_k \ge N\det(H)^{1/N}$ in every order of the inputs; attained where
  all prices are equal.
- `dither` (in expectation, equality): $\tfrac1{12}K\Delta^2\sum_kd_k$, where each multiple is moved
  by a uniform dither, which is known to the decoder too.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._numerics import matmul
from lowrank_theory._random import normal
from lowrank_theory._second_order import elimination
from lowrank_theory.generators import noise
from lowrank_theory.quantisation import gptq
from lowrank_theory.theorems._quantities import frobenius, squared
from lowrank_theory.theorems._stepped import SteppedLayer, SteppedSetting
from lowrank_theory.theorems._theorem import (
    EQUALITY,
    EQUALITY_IN_EXPECTATION,
    LOWER,
    UPPER,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)

_SHAPE: dict[str, Any] = {"samples": 24, "inputs": 12, "outputs": 32}
_REGIMES = {
    "Gaussian": SteppedSetting(**_SHAPE),
    "correlated inputs that decay": SteppedSetting(**_SHAPE, decay=1.5, correlated=3.0),
    "uncorrelated inputs": SteppedSetting(**_SHAPE, correlated=0.0),
    "Laplace, few levels": SteppedSetting(**_SHAPE, law=noise.Laplace(1.0), reach=2.0),
    "Student t": SteppedSetting(**_SHAPE, law=noise.StudentT(1.0), decay=0.5),
    "nearly singular moments": SteppedSetting(**_SHAPE, decay=6.0),
}
_CONTROL = _REGIMES["correlated inputs that decay"]


def prices(moments: Float[Array, "inputs inputs"]) -> Float[Array, " inputs"]:
    """$d_k$ of inputs that are rounded in their order."""
    lower = jnp.linalg.cholesky(moments[::-1, ::-1])
    return jnp.diagonal(lower)[::-1] ** 2


def surgery(
    layer: SteppedLayer, rounded: Float[Array, "inputs outputs"]
) -> tuple[Float[Array, "inputs outputs"], Float[Array, " inputs"]]:
    r"""$u_k$ and $d_k$, by the optimal brain surgeon: after each error $H^{-1}$ tells the best
    answer of all inputs to come.
    """

    def step(k: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        weights, inverse, wanted, found = state
        column, price = inverse[:, k], 1 / inverse[k, k]
        error = weights[k] - rounded[k]
        wanted, found = wanted.at[k].set(weights[k]), found.at[k].set(price)
        weights = weights - price * column[:, None] * error
        return weights, inverse - price * column[:, None] * column, wanted, found

    weights, inverse = layer.exact(), jnp.linalg.inv(layer.moments())
    start = weights, inverse, jnp.zeros_like(weights), jnp.zeros(len(weights))
    return jax.lax.fori_loop(0, len(weights), step, start)[2:]


def _rounded(layer: SteppedLayer) -> Float[Array, "inputs outputs"]:
    """$Q$."""
    found = gptq(layer.exact(), layer.moments(), layer.levels(), ordered=False, damping=0.0)
    return jnp.asarray(found.materialise(), float)


def _plain(layer: SteppedLayer) -> SteppedLayer:
    """Without dither."""
    shape = layer.weights.shape
    return SteppedLayer(
        layer.weights,
        layer.activations,
        layer.step,
        dither=jnp.full(shape, 0.5),
        damping=layer.damping,
    )


class KnownPlaces(AbstractAdversary):
    r"""Rounding has no derivative, so the places $u_k$ between the levels are free, and their codes
    are known; the weights are those that lead there, $W = Q + E$ with $E$ from $u - Q$ by
    substitution. What the layer sees is free too: this is every layer of this size.
    """

    samples: int = 4
    inputs: int = 3
    outputs: int = 2

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Places in units of the step, and rows."""
        place_key, row_key = jax.random.split(key)
        shape = self.inputs, self.outputs
        return normal(place_key, shape), normal(row_key, (self.samples, self.inputs))

    def play(self, free: tuple[Array, Array]) -> tuple[SteppedLayer, Array]:
        """The layer, and $Q$."""
        places, rows = free
        codes = jax.lax.stop_gradient(jnp.round(places))
        seen = SteppedLayer(jnp.zeros(places.shape), rows, jnp.ones(()))
        feedback = elimination(seen.moments(), 0.0).feedback
        mixing = jnp.eye(self.inputs) + feedback.T
        errors = jax.scipy.linalg.solve_triangular(mixing, places - codes, lower=True)
        return SteppedLayer(codes + errors, rows, jnp.ones(())), codes


class AnyRows(AbstractAdversary):
    """Any rows of three inputs; weights are of no account."""

    def start(self, *, key: PRNGKeyArray) -> Array:
        """The rows."""
        return normal(key, (4, 3))

    def play(self, free: Array) -> tuple[SteppedLayer, None]:
        """The layer."""
        return SteppedLayer(jnp.ones((3, 1)), free, jnp.ones(())), None


class AbstractSecondOrder(AbstractStatement):
    """A statement about rounding in turn, in squared units of the outputs."""

    needs = SteppedLayer
    regimes = _REGIMES
    control = _CONTROL

    def hypotheses(self, instance: SteppedLayer) -> tuple[Hypothesis, ...]:
        """Nothing is clipped."""
        plain = _plain(instance)
        return (instance.within(surgery(plain, _rounded(plain))[0]),)

    def estimate(self, instance: SteppedLayer) -> Float[Array, "inputs outputs"]:
        """$Q$."""
        return _rounded(_plain(instance))

    def broken_estimate(self, instance: SteppedLayer) -> Float[Array, "inputs outputs"]:
        """The nearest multiples: no input makes up for another."""
        return instance.nearest(instance.exact())

    def loss(self, instance: SteppedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert XE\rVert_F^2 + \lambda\lVert E\rVert_F^2$."""
        error = instance.exact() - estimate
        return jnp.sum(error * matmul(instance.moments(), error))

    def magnitude(self, instance: SteppedLayer) -> Float[Array, ""]:
        r"""$\lVert H\rVert_F\lVert H^{-1}\rVert_F\operatorname{tr}H\,K\Delta(\Delta + \max|W|)$."""
        moments, step = instance.moments(), jnp.asarray(instance.step, float)
        condition = frobenius(moments) * frobenius(jnp.linalg.inv(moments))
        size = step * (step + jnp.max(jnp.abs(instance.exact())))
        return condition * jnp.trace(moments) * instance.weights.shape[1] * size


class Cost(AbstractSecondOrder):
    r"""$\operatorname{tr}E^\top HE = \sum_kd_k\lVert u_k - Q_k\rVert^2$."""

    kind = EQUALITY

    def hypotheses(self, instance: SteppedLayer) -> tuple[Hypothesis, ...]:
        """None: the levels may be any."""
        return ()

    def formula(self, instance: SteppedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\sum_kd_k\lVert u_k - Q_k\rVert^2$."""
        wanted, found = surgery(instance, estimate)
        return jnp.sum(found[:, None] * (wanted - estimate) ** 2)


class Worst(AbstractSecondOrder):
    r"""$\operatorname{tr}E^\top HE \le \tfrac14K\Delta^2\sum_kd_k$."""

    kind = UPPER
    adversary = KnownPlaces()
    sharp = True

    def formula(self, instance: SteppedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\tfrac14K\Delta^2\sum_kd_k$."""
        return _cell(instance) / 4 * jnp.sum(prices(instance.moments()))


class Moments(AbstractSecondOrder):
    r"""$\operatorname{tr}E^\top HE \le \tfrac14K\Delta^2\operatorname{tr}H$."""

    kind = UPPER
    adversary = KnownPlaces()
    sharp = True

    def broken_estimate(self, instance: SteppedLayer) -> Float[Array, "inputs outputs"]:
        """The multiples above."""
        return _rounded(_plain(instance)) + jnp.asarray(instance.step, float)

    def formula(self, instance: SteppedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\tfrac14K\Delta^2\operatorname{tr}H$."""
        return _cell(instance) / 4 * jnp.trace(instance.moments())


class AnyOrder(AbstractSecondOrder):
    r"""$\sum_kd_k \ge N\det(H)^{1/N}$. In units of squared activations."""

    kind = LOWER
    adversary = AnyRows()
    sharp = True
    control = _REGIMES["uncorrelated inputs"]

    def hypotheses(self, instance: SteppedLayer) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def estimate(self, instance: SteppedLayer) -> Float[Array, " inputs"]:
        """$d_k$, as the library finds them."""
        moments = instance.moments()
        return elimination(moments, 0.0).prices * jnp.trace(moments) / len(moments)

    def broken_estimate(self, instance: SteppedLayer) -> Float[Array, " inputs"]:
        r"""$d_k/4$."""
        return self.estimate(instance) / 4

    def formula(self, instance: SteppedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$N\det(H)^{1/N}$."""
        logarithm = jnp.linalg.slogdet(instance.moments())[1]
        return len(estimate) * jnp.exp(logarithm / len(estimate))

    def loss(self, instance: SteppedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\sum_kd_k$."""
        return jnp.sum(estimate)

    def magnitude(self, instance: SteppedLayer) -> Float[Array, ""]:
        r"""$\lVert H\rVert_F\lVert H^{-1}\rVert_F\operatorname{tr}H$."""
        moments = instance.moments()
        condition = frobenius(moments) * frobenius(jnp.linalg.inv(moments))
        return condition * jnp.trace(moments)


class Dither(AbstractSecondOrder):
    r"""$\mathbb E\operatorname{tr}E^\top HE = \tfrac1{12}K\Delta^2\sum_kd_k$."""

    kind = EQUALITY_IN_EXPECTATION

    def hypotheses(self, instance: SteppedLayer) -> tuple[Hypothesis, ...]:
        """A uniform dither, and nothing is clipped."""
        return (
            instance.uniform_dither(),
            instance.within(surgery(instance, _rounded(instance))[0]),
        )

    def estimate(self, instance: SteppedLayer) -> Float[Array, "inputs outputs"]:
        """$Q$, of levels that are moved by the dither."""
        return _rounded(instance)

    def broken_estimate(self, instance: SteppedLayer) -> Float[Array, "inputs outputs"]:
        """The same codes, read by a decoder that knows nothing of the dither."""
        return _rounded(instance) + instance.dithered()

    def formula(self, instance: SteppedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\tfrac1{12}K\Delta^2\sum_kd_k$."""
        return _cell(instance) / 12 * jnp.sum(prices(instance.moments()))


def _cell(layer: SteppedLayer) -> Float[Array, ""]:
    r"""$K\Delta^2$."""
    return layer.weights.shape[1] * squared(jnp.asarray(layer.step, float))


class SecondOrderRounding(AbstractTheorem):
    r"""Rounding in turn, where inputs to come make up for errors, costs exactly the squared
    rounding errors at the prices $d_k$ of the elimination: at most $\tfrac14K\Delta^2\sum_kd_k$, a
    third of it with dither, and $N\det(H)^{1/N} \le \sum_kd_k \le \operatorname{tr}H$.
    """

    cost: Cost = Cost()
    worst: Worst = Worst()
    moments: Moments = Moments()
    any_order: AnyOrder = AnyOrder()
    dither: Dither = Dither()


second_order_rounding = SecondOrderRounding()
