"""Profiles of singular values: decreasing, the largest equal to one."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lowrank_theory._described import Described
from lowrank_theory._numerics import AnyArray, check_count, check_positive, keep, settle


class AbstractSpectrum(Described):
    """A decreasing profile of singular values."""

    @abc.abstractmethod
    def values(self, count: int) -> Float[AnyArray, " count"]:
        """The `count` leading values; the first is one."""


class Flat(AbstractSpectrum):
    """All values equal: $s_j = 1$. Every singular subspace is a tie."""

    def values(self, count: int) -> Float[AnyArray, " count"]:
        """All one."""
        return np.ones(count)


def _library(number: float) -> Any:
    """NumPy, but for a number that is an array of JAX, where one program serves all its values."""
    return jnp if isinstance(number, jax.Array) else np


class PowerLaw(AbstractSpectrum):
    r"""$s_j = j^{-\text{decay}}$."""

    decay: float = 1.0

    def __check_init__(self) -> None:
        settle(self, "decay", check_positive, zero=True)

    def values(self, count: int) -> Float[AnyArray, " count"]:
        """Powers of the index."""
        return _library(self.decay).arange(1, count + 1, dtype=float) ** -self.decay


class Exponential(AbstractSpectrum):
    r"""$s_j = e^{-\text{rate}\,(j-1)}$."""

    rate: float = 0.1

    def __check_init__(self) -> None:
        settle(self, "rate", check_positive, zero=True)

    def values(self, count: int) -> Float[AnyArray, " count"]:
        """A geometric sequence."""
        xp = _library(self.rate)
        return xp.exp(-self.rate * xp.arange(count, dtype=float))


class Spiked(AbstractSpectrum):
    """`spikes` values equal to one above a flat bulk at `1 / ratio`."""

    spikes: int = 1
    ratio: float = 10.0

    def __check_init__(self) -> None:
        settle(self, "spikes", check_count, 1)
        if not settle(self, "ratio", check_positive) >= 1:
            raise ValueError(f"`ratio` must be at least 1; got {self.ratio!r}.")

    def values(self, count: int) -> Float[AnyArray, " count"]:
        r"""$1, \dots, 1, 1/\rho, \dots, 1/\rho$."""
        return _library(self.ratio).where(np.arange(count) < self.spikes, 1.0, 1 / self.ratio)


class Given(AbstractSpectrum):
    """The values themselves, in any scale and order; those not given are zero."""

    given: tuple[float, ...]

    def __check_init__(self) -> None:
        if not self.given:
            raise ValueError("`given` is empty. Give at least one singular value.")
        given = tuple(check_positive("given", value, zero=True) for value in self.given)
        check_positive("given", max(given))
        keep(self, "given", given)

    def values(self, count: int) -> Float[AnyArray, " count"]:
        """The given values, largest first, divided by the largest and padded with zeros."""
        largest = max(self.given)
        ordered = [value / largest for value in sorted(self.given, reverse=True)][:count]
        return np.array(ordered + [0.0] * (count - len(ordered)))
