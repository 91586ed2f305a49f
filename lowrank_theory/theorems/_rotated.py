"""Weights that are rotated before they are rounded: the part of `rounding` on random signs."""

import functools
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Key, matmul, namespace, of_either_key
from lowrank_theory._numerics import AnyArray, check_array, check_count, safe_divide, settle
from lowrank_theory._random import signs, split
from lowrank_theory.generators import noise
from lowrank_theory.quantisation import round_to_nearest
from lowrank_theory.theorems._quantities import as_known, frobenius, law_hypothesis, squared
from lowrank_theory.theorems._stepped import independent_weights
from lowrank_theory.theorems._theorem import (
    UPPER_WITH_PROBABILITY,
    AbstractStatement,
    Hypothesis,
)


class RotatedWeights(eqx.Module):
    r"""Weights $W$ (inputs, outputs), `signs` (inputs,) by which they are multiplied before the
    Hadamard matrix, and the `bits` of their codes, from two to eight.

    `independent`: the signs are independent and fair, and look at nothing. Raises `ValueError` for
    arrays that do not fit, and where the number of inputs is no power of two.
    """

    weights: Float[AnyArray, "inputs outputs"]
    signs: Float[AnyArray, " inputs"]
    independent: Bool[AnyArray, ""]
    bits: int = eqx.field(static=True)

    def __init__(
        self, weights: ArrayLike, signs: ArrayLike, bits: int = 4, *, independent: Any = False
    ) -> None:
        self.weights = check_array("weights", weights, "inputs", "outputs")
        self.signs = check_array("signs", signs, "inputs")
        inputs = self.weights.shape[0]
        if inputs & (inputs - 1) or self.signs.shape != (inputs,):
            raise ValueError(
                "`weights` must have a power of two of inputs, one of `signs` for each; got "
                f"{self.weights.shape} and {self.signs.shape}. Pad them with zeros."
            )
        known = as_known(independent)
        self.independent = known
        self.bits = bits
        settle(self, "bits", check_count, 2, 8)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.weights.shape

    def rotated(self) -> Float[Array, "inputs outputs"]:
        """$HDW$."""
        signed = jnp.asarray(self.signs, float)[:, None] * jnp.asarray(self.weights, float)
        return matmul(_hadamard(len(signed)), signed)


@functools.cache
def _hadamard(inputs: int) -> np.ndarray:
    """$H$ with $HH^T = I$."""
    return scipy.linalg.hadamard(inputs) / np.sqrt(inputs)


class RotatedSetting(eqx.Module):
    """Independent weights of a law, the first of each output so many times as large, and random
    signs.
    """

    inputs: int
    outputs: int
    law: noise.AbstractNoise = noise.Gaussian(1.0)
    first: float | np.ndarray = eqx.field(default=1.0, converter=np.asarray)

    @of_either_key
    def draw(self, *, key: Key) -> RotatedWeights:
        """Random weights and signs, in float64."""
        xp, (weight_key, sign_key) = namespace(key), split(key)
        weights = independent_weights(self.law, weight_key, (self.inputs, self.outputs))
        first = xp.where(xp.arange(self.inputs) == 0, self.first, 1.0)
        turned = signs(sign_key, (self.inputs,))
        return RotatedWeights(first[:, None] * weights, turned, independent=xp.asarray(True))


_SHAPE: dict[str, Any] = {"inputs": 64, "outputs": 4}
_ROTATED = {
    "Gaussian": RotatedSetting(**_SHAPE),
    "Student t": RotatedSetting(**_SHAPE, law=noise.StudentT(1.0)),
    "one large entry": RotatedSetting(**_SHAPE, first=1e4),
    "all of one size": RotatedSetting(**_SHAPE, law=noise.Rademacher(1.0)),
}


class AbstractRotation(AbstractStatement):
    """A statement about rotated weights."""

    kind = UPPER_WITH_PROBABILITY
    needs = RotatedWeights
    regimes = _ROTATED
    control = _ROTATED["one large entry"]

    def hypotheses(self, instance: RotatedWeights) -> tuple[Hypothesis, ...]:
        """A law of the signs."""
        name = "the signs are independent and fair, and look at nothing"
        return (law_hypothesis(name, instance.independent),)

    def level(self, instance: RotatedWeights) -> Float[Array, ""]:
        r"""$\ln(2NK/\delta)$."""
        return jnp.log(2 * instance.weights.size / jnp.asarray(self.failure_probability))


class Rotation(AbstractRotation):
    r"""$|HDw|_\infty \le \lVert w\rVert\sqrt{2\ln(2NK/\delta)/N}$. In units of the norm."""

    def estimate(self, instance: RotatedWeights) -> Float[Array, "inputs outputs"]:
        """$HDW$."""
        return instance.rotated()

    def broken_estimate(self, instance: RotatedWeights) -> Float[Array, "inputs outputs"]:
        """$W$ as it is."""
        return jnp.asarray(instance.weights, float)

    def formula(self, instance: RotatedWeights, estimate: Array) -> Float[Array, ""]:
        r"""$\sqrt{2\ln(2NK/\delta)/N}$."""
        return jnp.sqrt(2 * self.level(instance) / len(estimate))

    def loss(self, instance: RotatedWeights, estimate: Array) -> Float[Array, ""]:
        """The largest entry of a column, over its norm."""
        norms = jnp.linalg.norm(jnp.asarray(instance.weights, float), axis=0)
        return jnp.max(safe_divide(jnp.max(jnp.abs(estimate), axis=0), norms))

    def magnitude(self, instance: RotatedWeights) -> Float[Array, ""]:
        """One."""
        return jnp.ones(())


class Rotated(AbstractRotation):
    r"""$\lVert HDW - Q\rVert_F^2 \le (1 - \tfrac1N)\frac{\ln(2NK/\delta)}{2L^2}\lVert
    W\rVert_F^2$.
    """

    def estimate(self, instance: RotatedWeights) -> Float[Array, "inputs outputs"]:
        """$HDW - Q$, the rounding error."""
        weights = instance.rotated()
        return weights - self._nearest(instance, weights)

    def broken_estimate(self, instance: RotatedWeights) -> Float[Array, "inputs outputs"]:
        """That of levels twice as far from each other."""
        weights = instance.rotated()
        return weights - 2 * self._nearest(instance, weights)

    def formula(self, instance: RotatedWeights, estimate: Array) -> Float[Array, ""]:
        r"""$(1 - \tfrac1N)\frac{\ln(2NK/\delta)}{2L^2}\lVert W\rVert_F^2$."""
        levels = 2.0 ** (instance.bits - 1) - 1
        share = (1 - 1 / len(estimate)) * self.level(instance) / (2 * levels**2)
        return share * squared(frobenius(instance.weights))

    def loss(self, instance: RotatedWeights, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert HDW - Q\rVert_F^2$."""
        return squared(frobenius(estimate))

    def magnitude(self, instance: RotatedWeights) -> Float[Array, ""]:
        r"""$\lVert W\rVert_F^2$."""
        return squared(frobenius(instance.weights))

    def _nearest(self, instance: RotatedWeights, weights: Array) -> Array:
        """$Q$, on a grid for each output that reaches its largest weight."""
        codes = round_to_nearest(weights, instance.bits, clipped=False)
        return jnp.asarray(codes.materialise())
