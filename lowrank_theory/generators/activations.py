r"""Laws of activations: the rows that a layer sees.

Every law has unit mean power, $\mathbb E\lVert x\rVert^2 = N$ for $N$ inputs, so that noise scales
mean the same everywhere, and returns with its draw the *true* second moment $C = \mathbb E[x
x^\top]$.
"""

import abc
import math
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Float

from lowrank_theory._arrays import Drawn, Key, after, matmul, namespace
from lowrank_theory._described import Described
from lowrank_theory._numerics import (
    AnyArray,
    check_count,
    check_number,
    check_positive,
    keep,
    settle,
)
from lowrank_theory._random import normal, permutation, split
from lowrank_theory.generators.spectra import AbstractSpectrum, Flat, Spiked

if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


def haar(rows: int, columns: int, *, key: Key) -> Float[Drawn, "rows columns"]:
    """`columns <= rows` orthonormal columns, uniformly distributed (Haar)."""
    return orthonormal(normal(key, (rows, columns)))


def haar_stack(
    count: int, rows: int, columns: int, *, key: Key
) -> Float[Drawn, "count rows columns"]:
    """So many of them, independent."""
    if isinstance(key, np.random.Generator):
        return orthonormal(normal(key, (count, rows, columns)))
    return jax.lax.map(lambda each: haar(rows, columns, key=each), split(key, count))


def orthonormal(
    columns: Float[Drawn, "*stack rows columns"],
) -> Float[Drawn, "*stack rows columns"]:
    """The columns, each without its part along those before it, and of length one."""
    xp = namespace(columns)
    q, r = xp.linalg.qr(columns)
    return q * xp.where(xp.diagonal(r, 0, -2, -1) < 0, -1.0, 1.0)[..., None, :]


class AbstractActivations(Described):
    """A law of the rows of an activation matrix; `gaussian_rows` says whether they are i.i.d. $N(0,
    C)$.
    """

    gaussian_rows: AbstractClassVar[bool]

    @abc.abstractmethod
    def draw(
        self, samples: int, inputs: int, *, key: Key
    ) -> tuple[Float[AnyArray, "samples inputs"], Float[AnyArray, "inputs inputs"]]:
        """Activations, and the true second moment of one row."""


def _gaussian_rows(
    samples: int,
    basis: Float[AnyArray, "inputs directions"],
    scales: Float[AnyArray, " directions"],
    *,
    key: Key,
) -> tuple[Float[AnyArray, "samples inputs"], Float[AnyArray, "inputs inputs"]]:
    """Rows N(0, C) with C = basis diag(scales^2) basis^T, rescaled to unit mean power."""
    xp = namespace(key)
    scales = scales * xp.sqrt(basis.shape[0] / xp.sum(scales**2))
    root = basis * scales
    standard = normal(key, (samples, scales.size))
    return matmul(standard, root.T), matmul(root, root.T)


class Isotropic(AbstractActivations):
    """Independent standard normal entries: $C = I$."""

    gaussian_rows = True

    def draw(
        self, samples: int, inputs: int, *, key: Key
    ) -> tuple[Float[AnyArray, "samples inputs"], Float[AnyArray, "inputs inputs"]]:
        """Standard normal entries."""
        return normal(key, (samples, inputs)), namespace(key).eye(inputs)


class GaussianRows(AbstractActivations):
    """Independent rows $N(0, C)$; the eigenvalues of $C$ follow the squared spectrum, its
    eigenvectors are uniform.
    """

    gaussian_rows = True

    spectrum: AbstractSpectrum = Flat()

    def draw(
        self, samples: int, inputs: int, *, key: Key
    ) -> tuple[Float[AnyArray, "samples inputs"], Float[AnyArray, "inputs inputs"]]:
        """Gaussian rows in a uniform basis."""
        basis_key, row_key = split(key)
        basis = haar(inputs, inputs, key=basis_key)
        return _gaussian_rows(samples, basis, self.spectrum.values(inputs), key=row_key)


class FixedSpectrum(AbstractActivations):
    r"""The *sample* has exactly the prescribed singular values: $X = U\,\mathrm{diag}(s)\,V^\top$,
    uniform $U, V$.

    A fixed design: its "true" second moment is the sample's own, $X^\top X/m$.
    """

    gaussian_rows = False

    spectrum: AbstractSpectrum = Flat()

    def draw(
        self, samples: int, inputs: int, *, key: Key
    ) -> tuple[Float[AnyArray, "samples inputs"], Float[AnyArray, "inputs inputs"]]:
        """Activations with exactly these singular values, up to the common factor of unit mean
        power.
        """
        left_key, right_key = split(key)
        xp, count = namespace(key), min(samples, inputs)
        values = self.spectrum.values(count)
        values = values * xp.sqrt(samples * inputs / xp.sum(values**2))
        left = haar(samples, count, key=left_key)
        right = haar(inputs, count, key=after(left, right_key))
        second_moment = matmul(right * (values**2 / samples), right.T)
        return matmul(left * values, right.T), second_moment


class LowRankPlusNoise(AbstractActivations):
    r"""A low-dimensional signal in white noise, the situation that this project is about.

    $x = B z + \epsilon$, with `signal_rank` orthonormal directions $B$ and $\mathbb E\lVert
    Bz\rVert^2 / \mathbb E\lVert\epsilon\rVert^2 =$ `signal_to_noise` (a ratio of powers).
    """

    gaussian_rows = True

    signal_rank: int
    signal_to_noise: float = 10.0

    def __check_init__(self) -> None:
        settle(self, "signal_rank", check_count, 1)
        settle(self, "signal_to_noise", check_positive)

    def draw(
        self, samples: int, inputs: int, *, key: Key
    ) -> tuple[Float[AnyArray, "samples inputs"], Float[AnyArray, "inputs inputs"]]:
        """Gaussian signal in a uniform subspace plus white Gaussian noise."""
        check_count("signal_rank", self.signal_rank, 1, inputs)
        basis_key, signal_key, noise_key = split(key, 3)
        basis = haar(inputs, self.signal_rank, key=basis_key)
        signal_power = inputs * self.signal_to_noise / (1 + self.signal_to_noise)
        noise_power = inputs / (1 + self.signal_to_noise)
        root = basis * math.sqrt(signal_power / self.signal_rank)
        signal = matmul(normal(signal_key, (samples, self.signal_rank)), root.T)
        noise = normal(noise_key, (samples, inputs))
        noise_variance = noise_power / inputs
        activations = signal + math.sqrt(noise_variance) * noise
        noise_moment = noise_variance * namespace(key).eye(inputs)
        return activations, matmul(root, root.T) + noise_moment


class MassiveDirections(AbstractActivations):
    """A few directions `ratio` times larger than the rest, spread over all inputs or aligned with
    single ones.

    Spread directions are the hard case of numerical calibration; aligned ones are what residual
    streams of transformers show.
    """

    gaussian_rows = True

    count: int = 1
    ratio: float = 100.0
    aligned: bool = False

    def __check_init__(self) -> None:
        settle(self, "count", check_count, 1)
        settle(self, "ratio", check_positive)

    def draw(
        self, samples: int, inputs: int, *, key: Key
    ) -> tuple[Float[AnyArray, "samples inputs"], Float[AnyArray, "inputs inputs"]]:
        """Gaussian rows with massive directions."""
        check_count("count", self.count, 1, inputs)
        basis_key, row_key = split(key)
        if self.aligned:
            basis = permutation(basis_key, namespace(key).eye(inputs), axis=1)
        else:
            basis = haar(inputs, inputs, key=basis_key)
        scales = Spiked(self.count, self.ratio).values(inputs)
        return _gaussian_rows(samples, basis, scales, key=row_key)


class ReluOutputs(AbstractActivations):
    r"""Outputs of a random ReLU layer of `width` Gaussian inputs: non-negative, sparse, with a
    mean.

    $x = \sqrt2\,\mathrm{relu}(A^\top z)$, $z \sim N(0, I)$, with the columns $a_i$ of $A$ uniform
    of unit length. With $\cos\theta_{ij} = a_i^\top a_j$, $C_{ij} = \tfrac1\pi(\sin\theta_{ij} +
    (\pi - \theta_{ij})\cos\theta_{ij})$ (Cho and Saul 2009, arc-cosine kernel of order one).
    """

    gaussian_rows = False

    width: int = 32

    def __check_init__(self) -> None:
        settle(self, "width", check_count, 1)

    def draw(
        self, samples: int, inputs: int, *, key: Key
    ) -> tuple[Float[AnyArray, "samples inputs"], Float[AnyArray, "inputs inputs"]]:
        """Rectified Gaussians."""
        xp = namespace(key)
        layer_key, row_key = split(key)
        columns = normal(layer_key, (self.width, inputs))
        columns = columns / xp.linalg.norm(columns, axis=0)
        hidden = normal(row_key, (samples, self.width))
        activations = math.sqrt(2) * xp.maximum(matmul(hidden, columns), 0)
        cosine = xp.clip(matmul(columns.T, columns), -1, 1)
        angle = xp.arccos(cosine)
        second_moment = (xp.sin(angle) + (math.pi - angle) * cosine) / math.pi
        return activations, second_moment


class SerialCorrelation(AbstractActivations):
    r"""Rows that depend on their predecessors, like tokens of a text: a stationary AR(1) sequence.

    $x_t = \rho\,x_{t-1} + \sqrt{1-\rho^2}\,z_t$ with $z_t \sim N(0, C)$; each row alone is $N(0,
    C)$, with eigenvalues along the squared spectrum.
    """

    gaussian_rows = False

    correlation: float = 0.9
    spectrum: AbstractSpectrum = Flat()

    def __check_init__(self) -> None:
        number = check_number(self.correlation)
        if not -1 < number < 1:
            raise ValueError(
                f"`correlation` must lie strictly between -1 and 1; got {self.correlation!r}."
            )
        keep(self, "correlation", number)

    def draw(
        self, samples: int, inputs: int, *, key: Key
    ) -> tuple[Float[AnyArray, "samples inputs"], Float[AnyArray, "inputs inputs"]]:
        """A stationary sequence of Gaussian rows."""
        fresh, second_moment = GaussianRows(self.spectrum).draw(samples, inputs, key=key)
        xp, innovation = namespace(key), math.sqrt(1 - self.correlation**2)
        rows = xp.concatenate([fresh[:1], innovation * fresh[1:]])
        # The sum over all lags k of rho^k times the rows of k steps before, by doubling.
        lag, weight = 1, self.correlation
        while lag < samples:
            before = xp.concatenate([xp.zeros_like(rows[:lag]), rows[:-lag]])
            rows = rows + weight * before
            lag, weight = 2 * lag, weight**2
        return rows, second_moment


class RankDeficient(AbstractActivations):
    """Gaussian rows in a uniform subspace of `rank` dimensions: the second moment is singular."""

    gaussian_rows = True

    rank: int

    def __check_init__(self) -> None:
        settle(self, "rank", check_count, 1)

    def draw(
        self, samples: int, inputs: int, *, key: Key
    ) -> tuple[Float[AnyArray, "samples inputs"], Float[AnyArray, "inputs inputs"]]:
        """Gaussian rows of exact rank `min(rank, samples)`."""
        check_count("rank", self.rank, 1, inputs)
        basis_key, row_key = split(key)
        basis = haar(inputs, self.rank, key=basis_key)
        return _gaussian_rows(samples, basis, namespace(key).ones(self.rank), key=row_key)


class AbstractMismatch(Described):
    """How the inputs of a layer inside the compressed network differ from those of the original."""

    @abc.abstractmethod
    def draw(
        self, activations: Float[AnyArray, "samples inputs"], *, key: Key
    ) -> Float[AnyArray, "samples inputs"]:
        """The compressed activations."""


class Identical(AbstractMismatch):
    r"""The layers before this one are not compressed: $\tilde X = X$."""

    def draw(
        self, activations: Float[AnyArray, "samples inputs"], *, key: Key
    ) -> Float[AnyArray, "samples inputs"]:
        """The activations themselves."""
        return activations


class Perturbed(AbstractMismatch):
    r"""$\lVert\tilde X - X\rVert_F =$ `relative` $\cdot\lVert X\rVert_F$ exactly, in a uniformly
    random direction.
    """

    relative: float = 0.1

    def __check_init__(self) -> None:
        settle(self, "relative", check_positive)

    def draw(
        self, activations: Float[AnyArray, "samples inputs"], *, key: Key
    ) -> Float[AnyArray, "samples inputs"]:
        """The activations plus a white perturbation of exactly this relative size."""
        direction = normal(key, activations.shape)
        xp = namespace(key)
        size = self.relative * xp.linalg.norm(activations) / xp.linalg.norm(direction)
        return activations + size * direction
