r"""Laws of target weights $M$: the (approximately) low-rank layer beneath the noise.

Left and right singular vectors are uniform unless said otherwise.
"""

import abc
import math

from jaxtyping import Float

from lowrank_theory._arrays import Key, after, matmul, namespace, solve_triangular
from lowrank_theory._described import Described
from lowrank_theory._numerics import AnyArray, Number, check_number, check_positive, keep, settle
from lowrank_theory._random import normal, split
from lowrank_theory.generators.activations import haar
from lowrank_theory.generators.spectra import AbstractSpectrum, Flat, PowerLaw


class AbstractTarget(Described):
    """A law of target weights, given the activations that they will meet."""

    @abc.abstractmethod
    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        outputs: int,
        rank: int,
        *,
        key: Key,
    ) -> Float[AnyArray, "inputs outputs"]:
        """Target weights."""


def _weights_with_spectrum(
    inputs: int,
    outputs: int,
    values: Float[AnyArray, " count"],
    scale: Number,
    *,
    key: Key,
) -> Float[AnyArray, "inputs outputs"]:
    left_key, right_key = split(key)
    values = values * (scale * math.sqrt(outputs) / namespace(key).linalg.norm(values))
    left = haar(inputs, values.size, key=left_key)
    right = haar(outputs, values.size, key=after(left, right_key))
    return matmul(left * values, right.T)


def _with_output_spectrum(
    activations: Float[AnyArray, "samples inputs"],
    outputs: int,
    values: Float[AnyArray, " count"],
    *,
    key: Key,
) -> Float[AnyArray, "inputs outputs"]:
    """M with singular values of `activations @ M` exactly `values`; needs rank(activations) >=
    count.
    """
    left_key, right_key = split(key)
    xp, count = namespace(key), values.size
    directions = normal(left_key, (activations.shape[1], count))
    _, triangle = xp.linalg.qr(matmul(activations, directions))
    # activations @ directions @ triangle^-1 has orthonormal columns.
    coordinates = solve_triangular(triangle, xp.diag(values))
    right = haar(outputs, count, key=after(coordinates, right_key))
    return matmul(directions, coordinates, right.T)


class ExactRank(AbstractTarget):
    """Rank exactly `rank`; singular values of the *weights* along the spectrum.

    `scale` is the root-mean-square entry of the outputs under isotropic activations.
    """

    spectrum: AbstractSpectrum = Flat()
    scale: float = 1.0

    def __check_init__(self) -> None:
        settle(self, "scale", check_positive)

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        outputs: int,
        rank: int,
        *,
        key: Key,
    ) -> Float[AnyArray, "inputs outputs"]:
        """Weights of exact rank."""
        inputs = activations.shape[1]
        return _weights_with_spectrum(
            inputs, outputs, self.spectrum.values(rank), self.scale, key=key
        )


class ApproximateRank(AbstractTarget):
    """Full rank; singular values of the *weights* decay along the spectrum.

    `scale` is the root-mean-square entry of the outputs under isotropic activations.
    """

    spectrum: AbstractSpectrum = PowerLaw(1.0)
    scale: float = 1.0

    def __check_init__(self) -> None:
        settle(self, "scale", check_positive)

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        outputs: int,
        rank: int,
        *,
        key: Key,
    ) -> Float[AnyArray, "inputs outputs"]:
        """Weights of approximately low rank."""
        inputs = activations.shape[1]
        values = self.spectrum.values(min(inputs, outputs))
        return _weights_with_spectrum(inputs, outputs, values, self.scale, key=key)


class ExactOutputRank(AbstractTarget):
    r"""Rank exactly `rank`; the singular values of the *outputs* $\tilde X M$ are `scale` times the
    spectrum, exactly.

    The form in which signal strength enters the theory. Needs activations of rank at least `rank`.
    """

    spectrum: AbstractSpectrum = Flat()
    scale: float = 1.0

    def __check_init__(self) -> None:
        settle(self, "scale", check_positive)

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        outputs: int,
        rank: int,
        *,
        key: Key,
    ) -> Float[AnyArray, "inputs outputs"]:
        """Weights whose outputs have exactly these singular values."""
        values = self.scale * self.spectrum.values(rank)
        return _with_output_spectrum(activations, outputs, values, key=key)


class SchattenBall(AbstractTarget):
    r"""On the boundary of a Schatten ball of the outputs: $\sum_i s_i(\tilde X M)^a = R$ exactly.

    $a$ = `exponent` in (0, 2), $R$ = `radius`; the singular values follow the spectrum over the
    full length $\min(m, N, K)$. Needs activations of full rank.
    """

    exponent: float = 1.0
    radius: float = 100.0
    spectrum: AbstractSpectrum = PowerLaw(1.0)

    def __check_init__(self) -> None:
        number = check_number(self.exponent)
        if not 0 < number < 2:
            raise ValueError(
                f"`exponent` must lie strictly between 0 and 2; got {self.exponent!r}."
            )
        keep(self, "exponent", number)
        settle(self, "radius", check_positive)

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        outputs: int,
        rank: int,
        *,
        key: Key,
    ) -> Float[AnyArray, "inputs outputs"]:
        """Weights whose outputs lie on the boundary of the ball."""
        values = self.spectrum.values(min(*activations.shape, outputs))
        size = (self.radius / namespace(key).sum(values**self.exponent)) ** (1 / self.exponent)
        return _with_output_spectrum(activations, outputs, size * values, key=key)


class BoundedOutputs(AbstractTarget):
    r"""Rank exactly `rank`, and $\max_{ij}|(\tilde XM)_{ij}|$ = `bound` exactly.

    The form in which censored models bound the signal; the singular values of the *weights* follow
    the spectrum.
    """

    bound: float = 1.0
    spectrum: AbstractSpectrum = Flat()

    def __check_init__(self) -> None:
        settle(self, "bound", check_positive)

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        outputs: int,
        rank: int,
        *,
        key: Key,
    ) -> Float[AnyArray, "inputs outputs"]:
        """Weights whose largest output is the bound."""
        xp, inputs = namespace(key), activations.shape[1]
        weights = _weights_with_spectrum(inputs, outputs, self.spectrum.values(rank), 1.0, key=key)
        return weights * (self.bound / xp.max(xp.abs(matmul(activations, weights))))


class OpposedToTheData(AbstractTarget):
    r"""The weights for which ignoring the data costs most: strong where the activations are weak.

    Left singular vectors are the right singular vectors of $\tilde X$ in reversed order; the
    singular values are nearly flat, $1 + \text{tilt}$ for the first `rank` and $1$ for the others,
    so that truncating the weights discards exactly the directions that the data use most. Full rank
    $\min(N, K)$.
    """

    tilt: float = 1e-3

    def __check_init__(self) -> None:
        settle(self, "tilt", check_positive)

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        outputs: int,
        rank: int,
        *,
        key: Key,
    ) -> Float[AnyArray, "inputs outputs"]:
        """Weights aligned against the activations."""
        xp, inputs = namespace(key), activations.shape[1]
        count = min(inputs, outputs)
        _, _, directions = xp.linalg.svd(activations, full_matrices=True)
        weakest_first = directions[::-1][:count].T
        values = xp.where(xp.arange(count) < rank, 1 + self.tilt, 1.0)
        right = haar(outputs, count, key=after(directions, key))
        return matmul(weakest_first * values, right.T)
