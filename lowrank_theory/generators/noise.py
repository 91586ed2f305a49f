r"""Laws of noise $E$: what the observed outputs are beyond the low-rank layer.

`scale` is the standard deviation of an entry (the largest one where entries differ), in the units
of the outputs. `sub_gaussian_scale` is the smallest $\sigma$ known with $\mathbb E\,e^{\lambda
E_{ij}} \le e^{\lambda^2\sigma^2/2}$ for independent entries, and infinite where there is none.
"""

import abc
import math
from typing import ClassVar

from jaxtyping import Float

from lowrank_theory._arrays import Key, matmul, namespace
from lowrank_theory._described import Described
from lowrank_theory._numerics import (
    AnyArray,
    Number,
    check_count,
    check_number,
    check_positive,
    keep,
    settle,
)
from lowrank_theory._random import (
    laplace,
    normal,
    permutation,
    signs,
    split,
    student_t,
    uniform,
)


class AbstractNoise(Described):
    """A law of noise; `scale` is its largest entrywise standard deviation.

    `independent` says that a draw looks at the shapes of activations and target alone; a law that
    does not say so is taken to look at more.
    """

    independent: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def sub_gaussian_scale(self) -> Number:
        """The sub-Gaussian constant of independent entries; infinite if there is none."""

    @abc.abstractmethod
    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        target_weights: Float[AnyArray, "inputs outputs"],
        *,
        key: Key,
    ) -> Float[AnyArray, "samples outputs"]:
        """Noise for the outputs of this layer."""


def _shape(activations: AnyArray, target_weights: AnyArray) -> tuple[int, int]:
    return activations.shape[0], target_weights.shape[1]


class Gaussian(AbstractNoise):
    r"""Independent $N(0, \text{scale}^2)$ entries; `scale` zero is no noise."""

    independent = True

    scale: float

    def __check_init__(self) -> None:
        settle(self, "scale", check_positive, zero=True)

    @property
    def sub_gaussian_scale(self) -> Number:
        """`scale`."""
        return self.scale

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        target_weights: Float[AnyArray, "inputs outputs"],
        *,
        key: Key,
    ) -> Float[AnyArray, "samples outputs"]:
        """Gaussian entries."""
        return self.scale * normal(key, _shape(activations, target_weights))


class Rademacher(AbstractNoise):
    r"""Independent entries $\pm$`scale`."""

    independent = True

    scale: float

    def __check_init__(self) -> None:
        settle(self, "scale", check_positive)

    @property
    def sub_gaussian_scale(self) -> Number:
        r"""`scale`, since $\cosh\lambda \le e^{\lambda^2/2}$."""
        return self.scale

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        target_weights: Float[AnyArray, "inputs outputs"],
        *,
        key: Key,
    ) -> Float[AnyArray, "samples outputs"]:
        """Random signs."""
        return self.scale * signs(key, _shape(activations, target_weights))


class Uniform(AbstractNoise):
    r"""Independent entries uniform on $[-\sqrt3, \sqrt3]\cdot$`scale`."""

    independent = True

    scale: float

    def __check_init__(self) -> None:
        settle(self, "scale", check_positive)

    @property
    def sub_gaussian_scale(self) -> Number:
        r"""`scale`: with half-width $h$, $\sinh(\lambda h)/(\lambda h) \le e^{\lambda^2h^2/6}$ term
        by term, and $h^2/3$ is the variance.
        """
        return self.scale

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        target_weights: Float[AnyArray, "inputs outputs"],
        *,
        key: Key,
    ) -> Float[AnyArray, "samples outputs"]:
        """Uniform entries."""
        half_width = math.sqrt(3) * self.scale
        shape = _shape(activations, target_weights)
        return half_width * (2 * uniform(key, shape) - 1)


class Laplace(AbstractNoise):
    """Independent double-exponential entries: heavier than Gaussian, all moments finite, not
    sub-Gaussian.
    """

    independent = True

    scale: float

    def __check_init__(self) -> None:
        settle(self, "scale", check_positive)

    @property
    def sub_gaussian_scale(self) -> Number:
        """Infinite."""
        return math.inf

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        target_weights: Float[AnyArray, "inputs outputs"],
        *,
        key: Key,
    ) -> Float[AnyArray, "samples outputs"]:
        """Laplace entries."""
        shape = _shape(activations, target_weights)
        return self.scale * laplace(key, shape)


class StudentT(AbstractNoise):
    """Independent Student-t entries of standard deviation `scale`; `degrees` must exceed two."""

    independent = True

    scale: float
    degrees: float = 3.0

    def __check_init__(self) -> None:
        settle(self, "scale", check_positive)
        number = check_number(self.degrees)
        if not number > 2:
            raise ValueError(
                f"`degrees` must exceed 2, else the variance is infinite; got {self.degrees!r}."
            )
        keep(self, "degrees", number)

    @property
    def sub_gaussian_scale(self) -> Number:
        """Infinite."""
        return math.inf

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        target_weights: Float[AnyArray, "inputs outputs"],
        *,
        key: Key,
    ) -> Float[AnyArray, "samples outputs"]:
        """Student-t entries."""
        unit_variance = math.sqrt((self.degrees - 2) / self.degrees)
        shape = _shape(activations, target_weights)
        return self.scale * unit_variance * student_t(key, self.degrees, shape)


class Heteroskedastic(AbstractNoise):
    """Independent Gaussian entries whose standard deviation varies by row, or by column.

    It runs geometrically from `scale` down to `scale / spread`, in random order.
    """

    independent = True

    scale: float
    spread: float = 10.0
    by_column: bool = False

    def __check_init__(self) -> None:
        settle(self, "scale", check_positive)
        settle(self, "spread", check_positive)

    @property
    def sub_gaussian_scale(self) -> Number:
        """The largest standard deviation."""
        return self.scale * max(1.0, 1 / self.spread)

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        target_weights: Float[AnyArray, "inputs outputs"],
        *,
        key: Key,
    ) -> Float[AnyArray, "samples outputs"]:
        """Gaussian entries with varying scale."""
        order_key, noise_key = split(key)
        shape = _shape(activations, target_weights)
        count = shape[1] if self.by_column else shape[0]
        scales = self.scale * namespace(key).geomspace(1.0, 1 / self.spread, count)
        scales = permutation(order_key, scales)
        scales = scales[None, :] if self.by_column else scales[:, None]
        return scales * normal(noise_key, shape)


class Correlated(AbstractNoise):
    """Gaussian entries with covariance `scale**2 * correlation**|i - j|` along each row:
    neighbouring outputs err alike.
    """

    independent = True

    scale: float
    correlation: float = 0.9

    def __check_init__(self) -> None:
        settle(self, "scale", check_positive)
        number = check_number(self.correlation)
        if not -1 < number < 1:
            raise ValueError(
                f"`correlation` must lie strictly between -1 and 1; got {self.correlation!r}."
            )
        keep(self, "correlation", number)

    @property
    def sub_gaussian_scale(self) -> Number:
        """Infinite: the entries are dependent."""
        return math.inf

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        target_weights: Float[AnyArray, "inputs outputs"],
        *,
        key: Key,
    ) -> Float[AnyArray, "samples outputs"]:
        """Correlated Gaussian entries."""
        xp, shape = namespace(key), _shape(activations, target_weights)
        lag = xp.arange(shape[1])[:, None] - xp.arange(shape[1])[None, :]
        innovation = xp.where(xp.arange(shape[1]) == 0, 1.0, math.sqrt(1 - self.correlation**2))
        # The Cholesky factor of an AR(1) covariance, in closed form.
        root = xp.where(lag >= 0, self.correlation ** xp.maximum(lag, 0), 0.0) * innovation
        return self.scale * matmul(normal(key, shape), root.T)


class SparseOutliers(AbstractNoise):
    """Gaussian entries, a random `fraction` of which is `magnitude` times larger."""

    independent = True

    scale: float
    fraction: float = 0.01
    magnitude: float = 30.0

    def __check_init__(self) -> None:
        settle(self, "scale", check_positive)
        settle(self, "magnitude", check_positive)
        number = check_number(self.fraction)
        if not 0 <= number <= 1:
            raise ValueError(f"`fraction` must lie between 0 and 1; got {self.fraction!r}.")
        keep(self, "fraction", number)

    @property
    def sub_gaussian_scale(self) -> Number:
        """The scale of the outliers: a mixture of centred Gaussians is no worse than its widest
        part.
        """
        return self.scale * max(1.0, self.magnitude)

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        target_weights: Float[AnyArray, "inputs outputs"],
        *,
        key: Key,
    ) -> Float[AnyArray, "samples outputs"]:
        """Gaussian entries with outliers."""
        where_key, noise_key = split(key)
        shape = _shape(activations, target_weights)
        outlier = uniform(where_key, shape) < self.fraction
        sizes = namespace(key).where(outlier, self.magnitude, 1.0)
        return self.scale * sizes * normal(noise_key, shape)


class QuantiserResidual(AbstractNoise):
    r"""The layer was stored on a grid: $E = \tilde X(Q(M) - M)$, rounding each weight to the
    nearest of $2^{\text{bits}}-1$ levels.

    The levels are symmetric about zero with the largest weight of each output on the last one. Not
    random: a function of activations and weights, as in a real network.
    """

    bits: int = 4

    def __check_init__(self) -> None:
        settle(self, "bits", check_count, 2, 16)

    @property
    def sub_gaussian_scale(self) -> Number:
        """Infinite: the noise is not random."""
        return math.inf

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        target_weights: Float[AnyArray, "inputs outputs"],
        *,
        key: Key,
    ) -> Float[AnyArray, "samples outputs"]:
        """What rounding the weights does to the outputs."""
        check_count("bits", self.bits, 2, 16)
        xp, levels = namespace(key), 2 ** (self.bits - 1) - 1
        largest = xp.max(xp.abs(target_weights), axis=0, keepdims=True)
        step = xp.where(largest > 0, largest, 1.0) / levels
        return matmul(activations, xp.round(target_weights / step) * step - target_weights)


class Opposing(AbstractNoise):
    r"""The worst noise of its operator norm for a target whose outputs have `rank` equal singular
    values $2\cdot$`scale`.

    $E = -\text{scale}\cdot U_rV_r^\top + (1+\text{excess})\,\text{scale}\cdot U'V'^\top$: it halves
    the target's singular directions and puts slightly larger false ones, `rank` of them, beside
    them in the column space of $\tilde X$. Needs activations and outputs of at least `2 * rank`
    dimensions.
    """

    scale: float
    rank: int
    excess: float = 1e-3

    def __check_init__(self) -> None:
        settle(self, "scale", check_positive)
        settle(self, "rank", check_count, 1)
        settle(self, "excess", check_positive)

    @property
    def sub_gaussian_scale(self) -> Number:
        """Infinite: the noise is not random."""
        return math.inf

    def draw(
        self,
        activations: Float[AnyArray, "samples inputs"],
        target_weights: Float[AnyArray, "inputs outputs"],
        *,
        key: Key,
    ) -> Float[AnyArray, "samples outputs"]:
        """Noise against this target."""
        check_count("rank", self.rank, 1, min(*activations.shape, target_weights.shape[1]) // 2)
        xp = namespace(key)
        basis, _, _ = xp.linalg.svd(activations, full_matrices=False)
        coordinates = matmul(basis.T, activations, target_weights)
        left, _, right = xp.linalg.svd(coordinates, full_matrices=False)
        signs = xp.where(xp.arange(2 * self.rank) < self.rank, -1.0, 1 + self.excess)
        noise = matmul(left[:, : 2 * self.rank] * signs, right[: 2 * self.rank])
        return self.scale * matmul(basis, noise)
