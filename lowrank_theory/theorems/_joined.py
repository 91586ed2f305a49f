"""What `equalisation` speaks of: two layers and the channels between them, and how they are drawn
and chosen.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Key, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    check_array,
    check_count,
    check_same,
    matmul,
    settle,
)
from lowrank_theory._random import normal, split
from lowrank_theory.generators import noise
from lowrank_theory.quantisation import Grid
from lowrank_theory.theorems._quantities import as_floats
from lowrank_theory.theorems._stepped import independent_weights
from lowrank_theory.theorems._theorem import AbstractAdversary, Hypothesis

Layers = tuple[Float[AnyArray, "inputs channels"], Float[AnyArray, "channels outputs"]]


class JoinedLayers(eqx.Module):
    r"""Two layers joined by rectified channels, $\max(XA, 0)B$, and factors of the channels.

    - `first` $A$ (inputs, channels), `second` $B$ (channels, outputs), `activations` $X$ (samples,
      inputs);
    - `factors` $t$ (channels,), positive; one for each without any;
    - `bits` $b$ of the grid of either layer, from 1 to 8.

    Raises `ValueError` for arrays that do not fit, integer dtypes, empty or non-finite arrays, for
    factors that are not positive, and for bits that there are not.
    """

    first: Float[AnyArray, "inputs channels"]
    second: Float[AnyArray, "channels outputs"]
    activations: Float[AnyArray, "samples inputs"]
    factors: Float[AnyArray, " channels"]
    bits: Float[AnyArray, ""] | int

    def __init__(
        self,
        first: ArrayLike,
        second: ArrayLike,
        activations: ArrayLike,
        factors: ArrayLike | None = None,
        *,
        bits: Any = 4,
    ) -> None:
        self.first = check_array("first", first, "inputs", "channels")
        self.second = check_array("second", second, "channels", "outputs")
        self.activations = check_array("activations", activations, "samples", "inputs")
        inputs, channels = self.first.shape
        check_same("activations", self.activations.shape[1], "first", inputs, "inputs")
        check_same("second", self.second.shape[0], "first", channels, "channels")
        factors = np.ones(channels) if factors is None else factors
        self.factors = check_array("factors", factors, "channels")
        check_same("factors", self.factors.shape[0], "first", channels, "channels")
        if not isinstance(self.factors, Tracer):
            least = float(np.min(np.asarray(self.factors)))
            if least <= 0:
                raise ValueError(f"`factors` must be positive; got {least:.3g}.")
        self.bits = bits
        if not isinstance(bits, jax.Array | np.ndarray):
            settle(self, "bits", check_count, 1, 8)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return (*self.activations.shape, *self.second.shape)

    def ranges(self) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
        r"""$p_i = \max|A_{:i}|$ and $q_i = \max|B_{i:}|$."""
        first, second = (jnp.abs(jnp.asarray(each, float)) for each in (self.first, self.second))
        return jnp.max(first, axis=0), jnp.max(second, axis=1)

    def scaled_ranges(
        self, factors: AnyArray
    ) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
        r"""$p_it_i$ and $q_i/t_i$."""
        first, second = self.ranges()
        factors = jnp.asarray(factors, float)
        return first * factors, second / factors

    def equalising(self) -> Float[Array, " channels"]:
        r"""$t_i = \sqrt{q_i/p_i}$; one where either is zero."""
        first, second = self.ranges()
        live = (first > 0) & (second > 0)
        return jnp.where(live, jnp.sqrt(jnp.where(live, second, 1) / jnp.where(live, first, 1)), 1)

    def scaled(self) -> Layers:
        r"""$A\operatorname{diag}t$ and $\operatorname{diag}(t)^{-1}B$."""
        factors = jnp.asarray(self.factors, float)
        first, second = (jnp.asarray(each, float) for each in (self.first, self.second))
        return first * factors, second / factors[:, None]

    def outputs(self, layers: Layers) -> Float[Array, "samples outputs"]:
        r"""$\max(XA, 0)B$ of two such layers."""
        channels = matmul(jnp.asarray(self.activations, float), layers[0])
        return matmul(jnp.maximum(channels, 0), layers[1])

    def levels(self) -> Float[Array, ""]:
        """$L$, the levels above zero; one for a single bit."""
        return jnp.maximum(2 ** (jnp.asarray(self.bits, float) - 1) - 1, 1)

    def rounded(self) -> Layers:
        """Both scaled layers, each on a symmetric grid that reaches its largest weight."""

        def nearest(weights: AnyArray) -> Array:
            bits = jnp.asarray(self.bits, float)
            step = jnp.max(jnp.abs(weights)) / self.levels()
            grid = Grid(step, -step * 2 ** (bits - 1))
            return grid.levels(grid.codes(jnp.asarray(weights), bits))

        first, second = self.scaled()
        return nearest(first), nearest(second)

    def seen(self) -> Float[Array, ""]:
        r"""$\lVert X\rVert_\infty$, the largest sum of sizes of a row."""
        return jnp.max(jnp.sum(jnp.abs(jnp.asarray(self.activations, float)), axis=1))

    def two_bits(self) -> Hypothesis:
        """A grid with zero and more."""
        margin = jnp.asarray(self.bits, float) - 2
        return Hypothesis("the grids have two bits or more", margin)

    def live(self) -> Hypothesis:
        """No channel is cut off on either side."""
        first, second = self.ranges()
        least = jnp.minimum(jnp.min(first), jnp.min(second))
        return Hypothesis(
            "every channel has weights on both sides", jnp.where(least > 0, least, -1.0)
        )


class JoinedSetting(eqx.Module):
    r"""Gaussian rows, and independent weights of a law whose channels differ in size: each by a
    factor $e^{sg}$ on either side, $s$ the `spread`, $g$ Gaussian.

    The factors are $t_i = (q_i/p_i)^{a/2}e^{hg}$, $a$ `equalised`, one for equalised channels and
    zero for channels as they are, and $h$ how far they are `moved` from there.
    """

    samples: int
    inputs: int
    channels: int
    outputs: int
    bits: int | np.ndarray = eqx.field(default=4, converter=as_floats)
    law: noise.AbstractNoise = noise.Gaussian(1.0)
    spread: float | np.ndarray = eqx.field(default=1.0, converter=as_floats)
    equalised: float | np.ndarray = eqx.field(default=1.0, converter=as_floats)
    moved: float | np.ndarray = eqx.field(default=0.0, converter=as_floats)

    def __check_init__(self) -> None:
        for name in ("samples", "inputs", "channels", "outputs"):
            settle(self, name, check_count, 1)

    @of_either_key
    def draw(self, *, key: Key) -> JoinedLayers:
        """Random layers, in float64."""
        xp, (row_key, first_key, second_key, size_key, factor_key) = namespace(key), split(key, 5)
        sizes = xp.exp(self.spread * normal(size_key, (2, self.channels)))
        first = sizes[0] * independent_weights(self.law, first_key, (self.inputs, self.channels))
        second = independent_weights(self.law, second_key, (self.channels, self.outputs))
        second = sizes[1][:, None] * second
        ratio = xp.max(xp.abs(second), axis=1) / xp.max(xp.abs(first), axis=0)
        away = xp.exp(self.moved * normal(factor_key, (self.channels,)))
        rows = normal(row_key, (self.samples, self.inputs))
        factors = ratio ** (self.equalised / 2) * away
        return JoinedLayers(first, second, rows, factors, bits=xp.asarray(self.bits))


_SHAPE: dict[str, Any] = {"samples": 6, "inputs": 8, "channels": 12, "outputs": 5}
JOINED = {
    "equalised": JoinedSetting(**_SHAPE),
    "as they are": JoinedSetting(**_SHAPE, equalised=0.0),
    "other factors": JoinedSetting(**_SHAPE, moved=0.5),
    "two bits": JoinedSetting(**_SHAPE, bits=2),
    "eight bits, Student t": JoinedSetting(**_SHAPE, bits=8, law=noise.StudentT(1.0)),
    "channels of one size": JoinedSetting(**_SHAPE, law=noise.Rademacher(1.0), spread=0.0),
}


class FreeFactors(AbstractAdversary):
    """Any weights of three channels, and any factors."""

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array, Array]:
        """Both layers, and logarithms of the factors."""
        first_key, second_key, factor_key = jax.random.split(key, 3)
        first, second = normal(first_key, (2, 3)), normal(second_key, (3, 2))
        return first, second, normal(factor_key, (3,))

    def play(self, free: tuple[Array, Array, Array]) -> tuple[JoinedLayers, None]:
        """The layers."""
        first, second, factors = free
        return JoinedLayers(first, second, jnp.eye(2), jnp.exp(factors)), None


class KnownLevels(AbstractAdversary):
    r"""Rounding has no derivative, so the levels of all weights are known, one for each channel of
    either layer, and how far below them they are, less than half a step, is free; so are the steps
    and what the layer sees.

    The largest weights are of one channel: that of the first layer at an input, and that of the
    second at an output, where nothing is seen of them. They set the steps, and the other weights of
    this channel are rounded to them. Levels and rows above zero, and weights that are rounded up,
    without loss: so the bound is proved, and errors add up.
    """

    bits: int = 3

    def start(self, *, key: PRNGKeyArray) -> dict[str, Array]:
        """Levels of both layers and what is below them, and logarithms of steps and of a row."""
        keys = jax.random.split(key, 6)
        return {
            "first_levels": normal(keys[0], (3,)),
            "second_levels": normal(keys[1], (3,)),
            "first": normal(keys[2], (2, 3)),
            "second": normal(keys[3], (3, 1)),
            "steps": normal(keys[4], (2,)),
            "row": normal(keys[5], (1, 2)),
        }

    def play(self, free: dict[str, Array]) -> tuple[JoinedLayers, Layers]:
        """The layers, and what they are rounded to."""
        most = 2.0 ** (self.bits - 1) - 1
        steps = jnp.exp(free["steps"])

        def placed(name: str, step: Array, axis: int) -> tuple[Array, Array]:
            levels = 1 + jnp.round(jnp.abs(jax.lax.stop_gradient(free[f"{name}_levels"])))
            levels = jnp.minimum(levels, most).at[0].set(most)
            levels = jnp.broadcast_to(jnp.expand_dims(levels, axis), free[name].shape)
            below = (1 + jnp.tanh(free[name])) / 4
            return step * (levels - below), step * levels

        first, first_levels = placed("first", steps[0], 0)
        second, second_levels = placed("second", steps[1], 1)
        unseen = steps[0] * most * jnp.eye(1, 3), steps[1] * most * jnp.eye(3, 1)
        layers = JoinedLayers(
            jnp.concatenate([unseen[0], first]),
            jnp.concatenate([unseen[1], second], axis=1),
            jnp.concatenate([jnp.zeros((1, 1)), jnp.exp(free["row"])], axis=1),
            bits=jnp.asarray(float(self.bits)),
        )
        return layers, (
            jnp.concatenate([unseen[0], first_levels]),
            jnp.concatenate([unseen[1], second_levels], axis=1),
        )
