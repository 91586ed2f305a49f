"""Rounding to multiples of one step, seen through a layer: the part of `rounding` that knows what
the layer sees.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._numerics import check_count, matmul
from lowrank_theory._random import normal
from lowrank_theory.generators import noise
from lowrank_theory.theorems._quantities import frobenius, singular_values, squared
from lowrank_theory.theorems._stepped import SteppedLayer, SteppedSetting
from lowrank_theory.theorems._theorem import (
    EQUALITY_IN_EXPECTATION,
    UPPER,
    AbstractAdversary,
    AbstractStatement,
    Hypothesis,
)

MOST_INPUTS = 14  # of which all signs are tried
_SHAPE: dict[str, Any] = {"samples": 12, "inputs": 8, "outputs": 32}
_STEPPED = {
    "Gaussian": SteppedSetting(**_SHAPE),
    "Laplace, few levels": SteppedSetting(**_SHAPE, law=noise.Laplace(1.0), reach=1.5),
    "Student t, inputs that decay": SteppedSetting(**_SHAPE, law=noise.StudentT(1.0), decay=0.5),
}


@functools.cache
def _signs(inputs: int) -> np.ndarray:
    """All signs of so many inputs, the first of which is one."""
    check_count("inputs", inputs, 1, MOST_INPUTS)
    codes = np.arange(2 ** (inputs - 1))[:, None] >> np.arange(inputs - 1) & 1
    return np.concatenate([np.ones((len(codes), 1)), 1.0 - 2.0 * codes], axis=1)


class KnownSteps(AbstractAdversary):
    """Rounding has no derivative, so the places of the weights between levels are free, and their
    codes known; what the layer sees is free too.
    """

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Places in units of the step, and rows."""
        place_key, row_key = jax.random.split(key)
        return normal(place_key, (3, 2)), normal(row_key, (4, 3))

    def play(self, free: tuple[Array, Array]) -> tuple[SteppedLayer, Array]:
        """The layer, and $Q$."""
        places, rows = free
        codes = jax.lax.stop_gradient(jnp.round(places))
        return SteppedLayer(places, rows, jnp.ones(())), codes


class AbstractSteps(AbstractStatement):
    """A statement about multiples of one step, seen through a layer."""

    needs = SteppedLayer
    regimes = _STEPPED
    control = _STEPPED["Gaussian"]

    def hypotheses(self, instance: SteppedLayer) -> tuple[Hypothesis, ...]:
        """Nothing is clipped."""
        return (instance.within(instance.exact()),)

    def estimate(self, instance: SteppedLayer) -> Float[Array, "inputs outputs"]:
        """The nearest multiples."""
        return instance.nearest(instance.exact())

    def broken_estimate(self, instance: SteppedLayer) -> Float[Array, "inputs outputs"]:
        """The multiples four steps away."""
        return self.estimate(instance) + 4 * jnp.asarray(instance.step, float)


class AbstractWorst(AbstractSteps):
    """An upper bound, attained; in the units of the outputs."""

    kind = UPPER
    adversary = KnownSteps()
    sharp = True

    def loss(self, instance: SteppedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert X(W - Q)\rVert_F$."""
        return frobenius(instance.outputs_moved(estimate))

    def magnitude(self, instance: SteppedLayer) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F\lVert W\rVert_F$."""
        return frobenius(instance.activations) * frobenius(instance.weights)


class OneStep(AbstractWorst):
    r"""$\lVert X(W - Q)\rVert_F \le \tfrac\Delta2\sqrt K\max_s\lVert Xs\rVert$, for few inputs: all
    signs are tried.
    """

    def formula(self, instance: SteppedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\tfrac\Delta2\sqrt K\max_s\lVert Xs\rVert$."""
        inputs, outputs = instance.weights.shape
        seen = matmul(instance.rows(), _signs(inputs).T)
        most = jnp.sqrt(jnp.max(jnp.sum(seen**2, axis=0)))
        return jnp.asarray(instance.step, float) / 2 * jnp.sqrt(float(outputs)) * most


class OneStepNorm(AbstractWorst):
    r"""$\lVert X(W - Q)\rVert_F \le \tfrac\Delta2\sqrt{NK}\,\lVert X\rVert$."""

    def formula(self, instance: SteppedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\tfrac\Delta2\sqrt{NK}\,\lVert X\rVert$."""
        size = jnp.sqrt(float(instance.weights.size)) / 2
        return size * jnp.asarray(instance.step, float) * singular_values(instance.rows())[0]


class AbstractRandom(AbstractSteps):
    """A mean over random choices; squared, in the units of squared outputs."""

    kind = EQUALITY_IN_EXPECTATION

    def hypotheses(self, instance: SteppedLayer) -> tuple[Hypothesis, ...]:
        """A uniform dither, and nothing is clipped."""
        return (instance.uniform_dither(), instance.within(instance.exact()))

    def loss(self, instance: SteppedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert X(W - Q)\rVert_F^2$."""
        return squared(frobenius(instance.outputs_moved(estimate)))

    def magnitude(self, instance: SteppedLayer) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F^2\lVert W\rVert_F^2$."""
        return squared(frobenius(instance.activations)) * squared(frobenius(instance.weights))


class SubtractiveDither(AbstractRandom):
    r"""$\mathbb E\lVert X(W - Q)\rVert_F^2 = \tfrac1{12}K\Delta^2\lVert X\rVert_F^2$."""

    def estimate(self, instance: SteppedLayer) -> Float[Array, "inputs outputs"]:
        """The nearest of levels that are moved by the dither."""
        return instance.subtractively()

    def broken_estimate(self, instance: SteppedLayer) -> Float[Array, "inputs outputs"]:
        """By a decoder that knows nothing of the dither."""
        return instance.nearest(instance.exact() + instance.dithered())

    def formula(self, instance: SteppedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\tfrac1{12}K\Delta^2\lVert X\rVert_F^2$."""
        cell = instance.weights.shape[1] * squared(jnp.asarray(instance.step, float))
        return cell / 12 * squared(frobenius(instance.activations))


class Stochastic(AbstractRandom):
    r"""$\mathbb E\lVert X(W - Q)\rVert_F^2 = \Delta^2\sum_{ij}\lVert x_i\rVert^2f_{ij}(1 -
    f_{ij})$.
    """

    def estimate(self, instance: SteppedLayer) -> Float[Array, "inputs outputs"]:
        """Up where the dither is at least what is missing to the level above."""
        return instance.nearest(instance.exact() + instance.dithered())

    def broken_estimate(self, instance: SteppedLayer) -> Float[Array, "inputs outputs"]:
        """To nearest, always."""
        return instance.nearest(instance.exact())

    def formula(self, instance: SteppedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\Delta^2\sum_{ij}\lVert x_i\rVert^2f_{ij}(1 - f_{ij})$."""
        step = jnp.asarray(instance.step, float)
        place = instance.exact() / step
        place = place - jnp.floor(place)
        energies = jnp.sum(instance.rows() ** 2, axis=0)
        return squared(step) * jnp.sum(energies[:, None] * place * (1 - place))
