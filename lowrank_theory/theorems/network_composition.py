r"""From the errors of layers to the error of a network.

**Model.** A network of $L$ layers, $X_0$ its inputs, $X_i = \rho(X_{i-1}W_i)$ with $\rho$ the ReLU
for $i \lt L$ and $X_L = X_{L-1}W_L$; its compression $\tilde X_0 = X_0$, $\tilde X_i =
\rho(\tilde X_{i-1}M_i)$, $\tilde X_L = \tilde X_{L-1}M_L$. $P_i$ projects on the columns of
$\tilde X_{i-1}$. (Biases: append a constant column.)

**Claims** (proved in paper_notes/network_composition.md), with $\pi_i = \prod_{j \gt i}\lVert
W_j\rVert$, for any compressed weights in the first two:

- `telescoping` (sure): $\lVert X_L - \tilde X_L\rVert_F \le \sum_i\pi_i\lVert\tilde X_{i-1}(W_i -
  M_i)\rVert_F$: each layer is charged for not being the original one.
- `residuals` (sure): $\lVert X_L - \tilde X_L\rVert_F^2 \le \sum_i\pi_i^2\lVert P_iX_{i-1}W_i -
  \tilde X_{i-1}M_i\rVert_F^2$: each layer is charged for what it could have repaired, and charges
  add in squares. A layer fitted to its original outputs leaves $\operatorname{tail}_r(P_iX_{i-1}
  W_i)$ there, the least that rank $r$ can.
- `last_layer` (sure equality): with the last layer so fitted, $\lVert X_L - \tilde X_L\rVert_F^2 =
  \lVert(I-P_L)X_{L-1}W_L\rVert_F^2 + \operatorname{tail}_r(P_LX_{L-1}W_L)^2$.

The first two are attained: by positive scalar layers, and where the error of a layer is orthogonal
to what the next one sees.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Key, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    after,
    check_array,
    check_rank,
    check_same,
    float64,
    matmul,
)
from lowrank_theory._random import normal, split
from lowrank_theory.problems import AbstractParts, Observed
from lowrank_theory.recovery import ActivationWeighted, LowRank, recover, truncated_svd
from lowrank_theory.theorems._quantities import (
    column_space,
    frobenius,
    singular_values,
    squared,
    tail_norm,
)
from lowrank_theory.theorems._theorem import (
    EQUALITY,
    UPPER,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)

Weights = tuple[Float[AnyArray, "_inputs _outputs"], ...]


class Network(eqx.Module):
    r"""A network, a compression of it, and what both are given.

    - `weights` $W_1, \dots, W_L$, each (inputs, outputs), with a ReLU between each two;
    - `compressed` $M_1, \dots, M_L$ of the same shapes, of any rank;
    - `inputs` $X_0$ (samples, inputs);
    - `rank` $r$, that of a fitted last layer.

    Raises `ValueError` for layers that do not fit one another, integer dtypes, empty or non-finite
    arrays, or a rank that the last layer cannot have.
    """

    weights: Weights
    compressed: Weights
    inputs: Float[AnyArray, "samples _inputs"]
    rank: int = eqx.field(static=True)

    def __init__(
        self,
        weights: tuple[ArrayLike, ...],
        compressed: tuple[ArrayLike, ...],
        inputs: ArrayLike,
        rank: int,
    ) -> None:
        if not weights or len(weights) != len(compressed):
            raise ValueError(
                "`weights` and `compressed` must hold one matrix per layer, and at least one; got "
                f"{len(weights)} and {len(compressed)}."
            )
        self.inputs = check_array("inputs", inputs, "samples", "inputs")
        self.weights = tuple(
            check_array(f"weights[{i}]", w, "inputs", "outputs") for i, w in enumerate(weights)
        )
        self.compressed = tuple(
            check_array(f"compressed[{i}]", m, "inputs", "outputs")
            for i, m in enumerate(compressed)
        )
        width = self.inputs.shape[1]
        for i, (w, m) in enumerate(zip(self.weights, self.compressed, strict=True)):
            check_same(f"weights[{i}]", w.shape[0], "the layer before", width, "inputs")
            for axis, name in enumerate(("inputs", "outputs")):
                got, wanted = m.shape[axis], w.shape[axis]
                check_same(f"compressed[{i}]", got, f"weights[{i}]", wanted, name)
            width = w.shape[1]
        self.rank = check_rank(rank, *self.weights[-1].shape)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return (*self.inputs.shape, *(w.shape[1] for w in self.weights))

    def seen(self, weights: Weights) -> tuple[Float[Array, "samples _inputs"], ...]:
        r"""What each layer sees with these weights, $(X_0, \dots, X_{L-1})$."""
        activations = [jnp.asarray(self.inputs, float)]
        for layer in weights[:-1]:
            activations.append(jax.nn.relu(matmul(activations[-1], layer)))
        return tuple(activations)


def compressed_by_layers(
    weights: Weights, inputs: Float[AnyArray, "samples _inputs"], rank: int
) -> tuple[Float[Array, "_inputs _outputs"], ...]:
    r"""Weights of rank at most `rank`, layer after layer: $M_i$ is fitted to the original outputs
    $X_{i-1}W_i$ from what the compressed network sees, $\tilde X_{i-1}$.

    Call it inside `float64`. Raises `ValueError` as `recover` does.
    """
    compressed = []
    original = replaced = jnp.asarray(inputs)
    for layer in weights:
        observed = Observed(weights=layer, activations=original, compressed_activations=replaced)
        kept = min(rank, *layer.shape)
        fitted = recover(observed, kept, ActivationWeighted()).factors.materialise()
        compressed.append(jnp.asarray(fitted))
        original = jax.nn.relu(matmul(original, layer))
        replaced = jax.nn.relu(matmul(replaced, fitted))
    return tuple(compressed)


class Random(eqx.Module):
    r"""A random network and a perturbation of it: $M_i = W_i + \text{damage}\cdot G_i$.

    Gaussian weights of variance `gain`$^2$ over the inputs, Gaussian inputs.
    """

    samples: int = 20
    widths: tuple[int, ...] = (8, 10, 9, 6)
    rank: int = 3
    gain: float | np.ndarray = 1.4
    damage: float | np.ndarray = 0.3

    @of_either_key
    def draw(self, *, key: Key) -> Network:
        """A random instance, in float64."""
        weights, inputs, key = self.original(key)
        noise = [
            self.damage * self.gain / len(w) ** 0.5 * normal(k, w.shape)
            for k, w in zip(split(key, len(weights)), weights, strict=True)
        ]
        compressed = tuple(w + n for w, n in zip(weights, noise, strict=True))
        return Network(weights, compressed, inputs, self.rank)

    def original(self, key: Key) -> tuple[Weights, AnyArray, Key]:
        """Weights and inputs, and a key for what else is random; call it inside
        `float64`.
        """
        key, inputs_key, *keys = split(key, len(self.widths) + 1)
        shapes = zip(self.widths[:-1], self.widths[1:], strict=True)
        weights = tuple(
            self.gain / shape[0] ** 0.5 * normal(k, shape)
            for k, shape in zip(keys, shapes, strict=True)
        )
        return weights, normal(inputs_key, (self.samples, self.widths[0])), key


class Fitted(eqx.Module):
    """A random network, compressed layer after layer from what the compressed network sees."""

    random: Random

    @of_either_key
    def draw(self, *, key: Key) -> Network:
        """A random instance, in float64; JAX compresses it in any case."""
        return self.draw_parts(key=key).instance()

    def draw_parts(self, *, key: Key) -> "FittedParts":
        """What is random of it; call it inside `float64`."""
        weights, inputs, _ = self.random.original(key)
        return FittedParts(weights, inputs, self.random.rank)


class FittedParts(AbstractParts):
    """A network before it is compressed."""

    weights: Weights
    inputs: Float[AnyArray, "samples _inputs"]
    rank: int = eqx.field(static=True)

    def instance(self) -> Network:
        """The network, compressed layer after layer."""
        with float64():
            compressed = compressed_by_layers(self.weights, self.inputs, self.rank)
            return Network(self.weights, compressed, self.inputs, self.rank)


_REGIMES = {
    "slightly damaged": Random(gain=np.asarray(1.4), damage=np.asarray(0.01)),
    "damaged": Random(gain=np.asarray(1.4), damage=np.asarray(0.3)),
    "unrelated": Random(gain=np.asarray(1.4), damage=np.asarray(3.0)),
    "contracting": Random(gain=np.asarray(0.1), damage=np.asarray(0.3)),
    "expanding": Random(gain=np.asarray(10.0), damage=np.asarray(0.3)),
    "fitted": Fitted(Random(gain=np.asarray(1.4))),
    "fewer samples than inputs": Random(samples=5, gain=np.asarray(1.4), damage=np.asarray(0.3)),
}
_CONTROL = Random(damage=np.asarray(0.01), gain=np.asarray(1.4))


class AnyNetwork(AbstractAdversary):
    """A network of three layers on four samples, and any other of its shape."""

    def start(self, *, key: PRNGKeyArray) -> Any:
        """Inputs, weights, compressed weights."""
        shapes = ((4, 3), (3, 2), (2, 2), (2, 2), (3, 2), (2, 2), (2, 2))
        keys = jax.random.split(key, len(shapes))
        return tuple(jax.random.normal(k, s, float) for k, s in zip(keys, shapes, strict=True))

    def play(self, free: Any) -> tuple[Any, Any]:
        """The free quantities themselves."""
        inputs, *matrices = free
        return Network(tuple(matrices[:3]), tuple(matrices[3:]), inputs, 1), None


def _amplification(weights: Weights) -> list[Array]:
    r"""$\pi_i = \prod_{j \gt i}\lVert W_j\rVert$ for every layer."""
    factors = [jnp.ones(())]
    for layer in weights[:0:-1]:
        # One decomposition after the other.
        value = singular_values(after(factors[-1], jnp.asarray(layer)))[0]
        factors.append(factors[-1] * value)
    return factors[::-1]


def _magnitude(network: Network) -> Float[Array, ""]:
    r"""$\lVert X_0\rVert_F(\prod\lVert W_i\rVert_F + \prod\lVert M_i\rVert_F)$."""
    size = frobenius(network.inputs)
    products = [
        jnp.prod(jnp.stack([frobenius(w) for w in weights]))
        for weights in (network.weights, network.compressed)
    ]
    return size * (products[0] + products[1])


class AbstractAnyCompression(AbstractStatement):
    """A bound on the error of a network whose layers have been replaced by any others."""

    needs = Network
    regimes = _REGIMES
    control = _CONTROL
    adversary = AnyNetwork()
    sharp = True

    def hypotheses(self, instance: Network) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def estimate(self, instance: Network) -> Weights:
        """The compressed weights at hand."""
        return instance.compressed

    def broken_estimate(self, instance: Network) -> Weights:
        """The compressed weights with the last layer's sign lost."""
        *others, last = instance.compressed
        return (*others, -last)


class Telescoping(AbstractAnyCompression):
    r"""$\lVert X_L - \tilde X_L\rVert_F \le \sum_i\pi_i\lVert\tilde X_{i-1}(W_i - M_i)\rVert_F$,
    $\pi_i = \prod_{j \gt i}\lVert W_j\rVert$. Not squared; in the units of the outputs.
    """

    kind = UPPER

    def formula(self, instance: Network, estimate: Weights) -> Float[Array, ""]:
        r"""$\sum_i\pi_i\lVert\tilde X_{i-1}(W_i - M_i)\rVert_F$."""
        layers = zip(
            _amplification(instance.weights),
            instance.seen(estimate),
            instance.weights,
            estimate,
            strict=True,
        )
        return sum(
            (factor * frobenius(matmul(x, w - m)) for factor, x, w, m in layers),
            jnp.zeros(()),
        )

    def loss(self, instance: Network, estimate: Weights) -> Float[Array, ""]:
        r"""$\lVert X_L - \tilde X_L\rVert_F$."""
        return network_error(instance, estimate)

    def magnitude(self, instance: Network) -> Float[Array, ""]:
        r"""$\lVert X_0\rVert_F(\prod\lVert W_i\rVert_F + \prod\lVert M_i\rVert_F)$."""
        return _magnitude(instance)


class Residuals(AbstractAnyCompression):
    r"""$\lVert X_L - \tilde X_L\rVert_F^2 \le \sum_i\pi_i^2\lVert P_iX_{i-1}W_i - \tilde
    X_{i-1}M_i\rVert_F^2$ with $\pi_i = \prod_{j \gt i}\lVert W_j\rVert$. Squared.
    """

    kind = UPPER

    def formula(self, instance: Network, estimate: Weights) -> Float[Array, ""]:
        r"""$\sum_i\pi_i^2\lVert P_iX_{i-1}W_i - \tilde X_{i-1}M_i\rVert_F^2$."""
        layers = zip(
            _amplification(instance.weights),
            instance.seen(instance.weights),
            instance.seen(estimate),
            instance.weights,
            estimate,
            strict=True,
        )
        total = jnp.zeros(())
        for factor, original, replaced, w, m in layers:
            space = column_space(after(total + factor, replaced))
            residual = matmul(original, w) - matmul(replaced, m)
            total = total + factor**2 * jnp.sum(space.coordinates(residual) ** 2)
        return total

    def loss(self, instance: Network, estimate: Weights) -> Float[Array, ""]:
        r"""$\lVert X_L - \tilde X_L\rVert_F^2$."""
        return network_error(instance, estimate) ** 2

    def magnitude(self, instance: Network) -> Float[Array, ""]:
        r"""$\lVert X_0\rVert_F^2(\prod\lVert W_i\rVert_F + \prod\lVert M_i\rVert_F)^2$."""
        return squared(_magnitude(instance))


class LastLayer(AbstractStatement):
    r"""$\lVert X_L - \tilde X_L\rVert_F^2 = \lVert(I-P_L)X_{L-1}W_L\rVert_F^2 + \sum_{i>r}
    s_i(P_LX_{L-1}W_L)^2$ with the last layer fitted to its original outputs. Squared.
    """

    kind = EQUALITY
    needs = Network
    regimes = _REGIMES
    control = _CONTROL

    def hypotheses(self, instance: Network) -> tuple[Hypothesis, ...]:
        """None: the layers before the last may be any."""
        return ()

    def _last(self, network: Network) -> tuple[Array, Array, AnyArray]:
        original, replaced = network.seen(network.weights)[-1], network.seen(network.compressed)[-1]
        return original, replaced, network.weights[-1]

    def estimate(self, instance: Network) -> LowRank:
        """The last layer, fitted to its original outputs from what the compressed network sees."""
        original, replaced, layer = self._last(instance)
        observed = Observed(weights=layer, activations=original, compressed_activations=replaced)
        return recover(observed, instance.rank, ActivationWeighted()).factors

    def broken_estimate(self, instance: Network) -> LowRank:
        """The last layer's weights, truncated without looking at data."""
        return truncated_svd(instance.weights[-1], rank=instance.rank)[0]

    def formula(self, instance: Network, estimate: LowRank) -> Float[Array, ""]:
        r"""$\lVert(I-P_L)X_{L-1}W_L\rVert_F^2 + \sum_{i>r}s_i(P_LX_{L-1}W_L)^2$."""
        original, replaced, layer = self._last(instance)
        target, space = matmul(original, layer), column_space(replaced)
        inside = space.coordinates(target)
        outside = target - matmul(space.basis, inside)
        return jnp.sum(outside**2) + tail_norm(singular_values(inside), instance.rank) ** 2

    def loss(self, instance: Network, estimate: LowRank) -> Float[Array, ""]:
        r"""$\lVert X_L - \tilde X_L\rVert_F^2$."""
        last = jnp.asarray(estimate.materialise())
        return network_error(instance, (*instance.compressed[:-1], last)) ** 2

    def magnitude(self, instance: Network) -> Float[Array, ""]:
        r"""$\lVert X_0\rVert_F^2(\prod\lVert W_i\rVert_F + \prod\lVert M_i\rVert_F)^2$."""
        return squared(_magnitude(instance))


def network_error(network: Network, compressed: Weights) -> Float[Array, ""]:
    r"""$\lVert X_L - \tilde X_L\rVert_F$ with these compressed weights; call it inside
    `float64`.
    """
    outputs = [
        matmul(network.seen(weights)[-1], weights[-1]) for weights in (network.weights, compressed)
    ]
    return frobenius(outputs[0] - outputs[1])


class NetworkComposition(AbstractTheorem):
    """The errors of layers add up through operator norms, in squares where what a layer cannot
    repair is told apart, and a fitted last layer tells the network's error exactly.
    """

    telescoping: Telescoping = Telescoping()
    residuals: Residuals = Residuals()
    last_layer: LastLayer = LastLayer()


network_composition = NetworkComposition()
