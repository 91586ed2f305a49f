r"""A layer that is rounded to multiples of one step, of which several theorems speak."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Drawn, Key, matmul, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    Number,
    check_array,
    check_count,
    check_positive,
    check_same,
    settle,
)
from lowrank_theory._random import normal, split, uniform
from lowrank_theory.approximations import Quantised
from lowrank_theory.generators import noise
from lowrank_theory.quantisation import Grid
from lowrank_theory.theorems._quantities import as_floats, as_known, law_hypothesis
from lowrank_theory.theorems._theorem import Hypothesis

BITS = 8
REACH = 2.0 ** (BITS - 1) - 2  # steps from zero, dither and half a step apart


def damped_moments(rows: AnyArray, damping: Number) -> Float[Array, "inputs inputs"]:
    r"""$X^\top X + \lambda I$, $\lambda$ the damping times the mean of the diagonal; one where
    nothing is seen.
    """
    rows = jnp.asarray(rows, float)
    gram = matmul(rows.T, rows)
    mean = jnp.trace(gram) / len(gram)
    return gram + jnp.where(mean > 0, jnp.asarray(damping, float) * mean, 1) * jnp.eye(len(gram))


def correlated_rows(
    key: Key, shape: tuple[int, int], decay: Number, correlated: Number
) -> Float[Drawn, "samples inputs"]:
    r"""Gaussian rows $zA$ with $A_{ij} = i^{-d}(\delta_{ij} + cg_{ij}/\sqrt N)$, where $d$ is the
    decay, $c$ says how far inputs are correlated, and $g$ is Gaussian.
    """
    row_key, mixing_key = split(key)
    xp, inputs = namespace(key), shape[1]
    sizes = xp.arange(1.0, inputs + 1) ** -xp.asarray(decay)
    mixing = xp.eye(inputs) + correlated * normal(mixing_key, (inputs, inputs)) / xp.sqrt(inputs)
    return matmul(normal(row_key, shape), sizes[:, None] * mixing)


def independent_weights(
    law: noise.AbstractNoise, key: Key, shape: tuple[int, int]
) -> Float[Drawn, "inputs outputs"]:
    """Weights whose entries are those of a law of noise."""
    xp = namespace(key)
    return law.draw(xp.eye(shape[0]), xp.zeros(shape), key=key)


class SteppedLayer(eqx.Module):
    r"""Weights, what the layer sees, and the step of a grid that is one for all weights.

    - `weights` $W$ (inputs, outputs), `activations` $X$ (samples, inputs);
    - `step` $\Delta$, in the units of the weights;
    - `dither` $U$ (inputs, outputs), from zero to one; one half for none, and `uniform` where its
      entries were drawn independently and uniformly, whatever the other numbers;
    - `damping`: how much is added to the second moments $X^\top X$, over the mean of their
      diagonal.

    Raises `ValueError` for arrays that do not fit, empty or non-finite arrays, a dither outside 0
    to 1, and for a step or a damping that is not positive.
    """

    weights: Float[AnyArray, "inputs outputs"]
    activations: Float[AnyArray, "samples inputs"]
    step: Float[AnyArray, ""] | float
    dither: Float[AnyArray, "inputs outputs"]
    damping: Float[AnyArray, ""] | float
    uniform: Bool[AnyArray, ""]

    def __init__(
        self,
        weights: ArrayLike,
        activations: ArrayLike,
        step: Any,
        *,
        dither: ArrayLike | None = None,
        damping: Any = 0.01,
        uniform: Any = False,
    ) -> None:
        self.weights = check_array("weights", weights, "inputs", "outputs")
        self.activations = check_array("activations", activations, "samples", "inputs")
        inputs, outputs = self.weights.shape
        check_same("activations", self.activations.shape[1], "weights", inputs, "inputs")
        dither = np.full((inputs, outputs), 0.5) if dither is None else dither
        self.dither = check_array("dither", dither, "inputs", "outputs")
        if self.dither.shape != (inputs, outputs):
            raise ValueError(f"`dither` must be {(inputs, outputs)}; got {self.dither.shape}.")
        if not isinstance(self.dither, Tracer):
            values = np.asarray(self.dither)
            least, most = float(np.min(values)), float(np.max(values))
            if least < 0 or most > 1:
                raise ValueError(f"`dither` must be from 0 to 1; got {least:.3g} to {most:.3g}.")
        self.step, self.damping = step, damping
        self.uniform = as_known(uniform)
        for name, number in (("step", step), ("damping", damping)):
            if not isinstance(number, jax.Array | np.ndarray):
                settle(self, name, check_positive)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return (*self.activations.shape, self.weights.shape[1])

    def rows(self) -> Float[Array, "samples inputs"]:
        """$X$."""
        return jnp.asarray(self.activations, float)

    def exact(self) -> Float[Array, "inputs outputs"]:
        """$W$."""
        return jnp.asarray(self.weights, float)

    def moments(self) -> Float[Array, "inputs inputs"]:
        r"""$H = X^\top X + \lambda I$."""
        return damped_moments(self.rows(), self.damping)

    def outputs_moved(self, estimate: Array) -> Float[Array, "samples outputs"]:
        """$X(W - Q)$."""
        return matmul(self.rows(), self.exact() - estimate)

    def levels(self) -> Quantised:
        r"""The grid of each weight: multiples of the step, moved by the dither."""
        shape = self.weights.shape
        step = jnp.broadcast_to(jnp.asarray(self.step, float), shape)
        zeros = 2.0 ** (BITS - 1) + jnp.asarray(self.dither, float) - 0.5
        codes = np.zeros(shape, np.uint8)
        return Quantised.of(codes, step, zeros, bits=BITS, group=1)

    def nearest(self, entries: Array) -> Float[Array, "inputs outputs"]:
        """The nearest multiples of the step, without dither."""
        step = jnp.asarray(self.step, float)
        grid = Grid(step, -step * 2.0 ** (BITS - 1))
        return grid.levels(grid.codes(entries, jnp.asarray(float(BITS))))

    def dithered(self) -> Float[Array, "inputs outputs"]:
        """How far the dither moves the weights, and the levels."""
        return jnp.asarray(self.step, float) * (jnp.asarray(self.dither, float) - 0.5)

    def subtractively(self) -> Float[Array, "inputs outputs"]:
        """The nearest of levels that are moved by the dither."""
        return self.nearest(self.exact() + self.dithered()) - self.dithered()

    def within(self, reached: Array) -> Hypothesis:
        """Nothing that is rounded leaves the grid."""
        most = jnp.max(jnp.abs(reached)) / jnp.asarray(self.step, float)
        return Hypothesis("no weight to be rounded leaves the grid", REACH - most)

    def uniform_dither(self) -> Hypothesis:
        """A law of the dither."""
        name = "the dither is independent and uniform, and looks at nothing"
        return law_hypothesis(name, self.uniform)


class SteppedSetting(eqx.Module):
    r"""A random layer, rounded to steps of which `reach` make its largest weight.

    Weights are independent, of a `law`; `correlated_rows` are seen.
    """

    samples: int
    inputs: int
    outputs: int
    law: noise.AbstractNoise = noise.Gaussian(1.0)
    decay: float | np.ndarray = eqx.field(default=0.0, converter=as_floats)
    correlated: float | np.ndarray = eqx.field(default=1.0, converter=as_floats)
    reach: float | np.ndarray = eqx.field(default=8.0, converter=as_floats)
    damping: float | np.ndarray = eqx.field(default=0.01, converter=as_floats)

    def __check_init__(self) -> None:
        for name in ("samples", "inputs", "outputs"):
            settle(self, name, check_count, 1)

    @of_either_key
    def draw(self, *, key: Key) -> SteppedLayer:
        """A random layer, in float64."""
        xp, (row_key, weight_key, dither_key) = namespace(key), split(key, 3)
        shape = self.inputs, self.outputs
        weights = independent_weights(self.law, weight_key, shape)
        rows = correlated_rows(row_key, (self.samples, shape[0]), self.decay, self.correlated)
        step = xp.asarray(xp.max(xp.abs(weights)) / self.reach)
        dither, damping = uniform(dither_key, shape), xp.asarray(self.damping)
        return SteppedLayer(
            weights, rows, step, dither=dither, damping=damping, uniform=xp.asarray(True)
        )
