"""Spikes in Gaussian noise: settings, instances, what is seen of them in the limit."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lowrank_theory._arrays import Drawn, Key, namespace, of_either_key
from lowrank_theory._numerics import AnyArray, check_count, float64, matmul, settle
from lowrank_theory._random import normal_by_jax
from lowrank_theory.problems import not_stated
from lowrank_theory.recovery import LowRank, shrinkage, truncated_svd
from lowrank_theory.theorems._quantities import (
    law_hypothesis,
)
from lowrank_theory.theorems._theorem import (
    AbstractStatement,
    Hypothesis,
    Standing,
)


class SpikedMatrix(eqx.Module):
    r"""A matrix of fixed rank in Gaussian noise: `observed` is $F + \sigma G$, and $F$ has the
    singular values $x_i\sigma\sqrt L$ on its diagonal.

    By the rotational invariance of the noise no generality is lost by unit vectors as the singular
    vectors of $F$. `strengths` are the $x_i$. `gaussian` says whether $G$ is i.i.d. $N(0, 1)$
    and knows nothing of $F$, which no number shows.
    """

    observed: Float[AnyArray, "rows columns"]
    strengths: Float[AnyArray, " rank"]
    noise_scale: Float[AnyArray, ""]
    gaussian: Bool[AnyArray, ""] = eqx.field(default_factory=not_stated)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.observed.shape

    @property
    def aspect(self) -> float:
        r"""$\beta$."""
        return min(self.observed.shape) / max(self.observed.shape)

    @property
    def unit(self) -> Float[Array, ""]:
        r"""$\sigma\sqrt L$."""
        with float64():
            return jnp.asarray(self.noise_scale) * math.sqrt(max(self.observed.shape))

    @property
    def signal(self) -> Float[Array, "rows columns"]:
        """$F$."""
        with float64():
            return _diagonal(self.unit * self.strengths, self.observed.shape)


class SpikedSetting(eqx.Module):
    """Spikes of given `strengths`, in decreasing order, in a Gaussian matrix of given sizes.

    Raises `ValueError` if the matrix is too small to hold them.
    """

    rows: int
    columns: int
    strengths: Float[AnyArray, " rank"]
    noise_scale: Float[AnyArray, ""] | float = 1.0

    def __check_init__(self) -> None:
        for name in ("rows", "columns"):
            why = " (at least one for each spike)"
            settle(self, name, check_count, np.size(self.strengths), why=why)

    def enlarged(self, factor: int) -> "SpikedSetting":
        r"""`factor` times as many rows and columns: the same $\beta$ and $x_i$."""
        return SpikedSetting(
            factor * self.rows, factor * self.columns, self.strengths, self.noise_scale
        )

    @of_either_key
    def draw(self, *, key: Key) -> SpikedMatrix:
        """A random instance, in float64."""
        xp, shape = namespace(key), (self.rows, self.columns)
        strengths, scale = (xp.asarray(n, float) for n in (self.strengths, self.noise_scale))
        noise = scale * normal_by_jax(key, shape)
        signal = _diagonal(scale * math.sqrt(max(shape)) * strengths, shape)
        return SpikedMatrix(signal + noise, strengths, scale, xp.asarray(True))


def _diagonal(values: Float[Drawn, " count"], shape: tuple[int, ...]) -> Float[Drawn, "..."]:
    more = [(0, side - values.size) for side in shape]
    return namespace(values).pad(namespace(values).diag(values), more)


def observed_strength(
    strengths: Float[AnyArray, " rank"], aspect: float | Float[Array, ""]
) -> Float[Array, " rank"]:
    r"""The limit $y$ of the singular values that the strengths $x$ lead to, in units of
    $\sigma\sqrt L$.
    """
    with float64():
        beta, least = jnp.asarray(aspect, float), jnp.asarray(aspect, float) ** 0.25
        x = jnp.maximum(jnp.asarray(strengths, float), least)
        return jnp.sqrt((x + 1 / x) * (x + beta / x))


def alignments(
    strengths: Float[AnyArray, " rank"], aspect: float | Float[Array, ""]
) -> tuple[Float[Array, " rank"], Float[Array, " rank"]]:
    r"""The limits $c^2$, $\tilde c^2$ of the squared cosines on the short and on the long side."""
    with float64():
        beta, least = jnp.asarray(aspect, float), jnp.asarray(aspect, float) ** 0.25
        x = jnp.asarray(strengths, float)
        square = jnp.maximum(x, least) ** 2
        excess = jnp.where(x > least, square**2 - beta, 0)
        return excess / (square * (square + beta)), excess / (square * (square + 1))


def truncation_loss(x: Float[Array, " rank"], beta: float) -> Float[Array, " rank"]:
    r"""What truncation loses of a component in the limit, in units of $\sigma^2L$: $1 + \beta +
    3\beta/x^2$ if it is detected, $x^2 + (1+\sqrt\beta)^2$ if not.
    """
    detected = 1 + beta + 3 * beta / jnp.maximum(x, beta**0.25) ** 2
    missed = x**2 + (1 + math.sqrt(beta)) ** 2
    return jnp.where(x > beta**0.25, detected, missed)


def squared_cosines(instance: SpikedMatrix) -> tuple[Array, Array]:
    """On the short and on the long side, of each component."""
    observed = jnp.asarray(instance.observed)
    short = observed if observed.shape[0] <= observed.shape[1] else observed.T
    left, _, right = jnp.linalg.svd(short, full_matrices=False)
    count = instance.strengths.size
    return jnp.diagonal(left)[:count] ** 2, jnp.diagonal(right)[:count] ** 2


def truncated(instance: SpikedMatrix, rank: int) -> LowRank:
    observed = jnp.asarray(instance.observed)
    if observed.shape[0] < observed.shape[1]:  # the cheaper side
        return truncated_svd(observed.T, rank=rank)[0].T
    return truncated_svd(observed, rank=rank)[0]


def shrunk(
    instance: SpikedMatrix, shrinker: shrinkage.AbstractShrinker, *, known: bool = True
) -> LowRank:
    noise_scale = instance.noise_scale if known else None
    rank = min(instance.sizes)
    return shrinkage.shrink_singular_values(
        instance.observed, noise_scale, shrinker=shrinker, rank=rank
    )


def error(instance: SpikedMatrix, estimate: LowRank) -> Array:
    return matmul(estimate.left, estimate.right) - instance.signal


def _setting(shape: tuple[int, int], *strengths: float, noise_scale: float = 1.0) -> SpikedSetting:
    """Strengths in multiples of the detection threshold: arrays, so that one program serves all."""
    threshold = (min(shape) / max(shape)) ** 0.25
    return SpikedSetting(*shape, threshold * np.array(strengths), np.asarray(noise_scale))


_SQUARE, _WIDE, _TALL = (48, 48), (24, 96), (96, 24)
_MIXED = {"two components of three detected": _setting(_WIDE, 3.2, 2.2, 0.3)}
DETECTED = {
    "square": _setting(_SQUARE, 5.0, 3.5, 2.2),
    "wide": _setting(_WIDE, 4.5, 3.0, 1.9, noise_scale=0.1),
}
ANY = {**DETECTED, **_MIXED}
WIDE_ONLY = {"wide": DETECTED["wide"], **_MIXED}
EVERY_SIDE = {
    **WIDE_ONLY,
    "tall": _setting(_TALL, 4.0, 2.6, 1.7, noise_scale=10.0),
}
MISSED = {
    "square": _setting(_SQUARE, 0.5, 0.3, 0.1),
    "wide": _setting(_WIDE, 0.5, 0.3, 0.1),
}
STRONG = _setting(_WIDE, 40.0, 20.0, 10.0)
WORST = {
    "at the threshold": _setting(_SQUARE, 1.1, 1.05, 1.0),
    "just above": _setting(_WIDE, 1.3, 1.2, 1.1),
    "strong": STRONG,
}
THRESHOLDED = {
    "all kept": _setting(_SQUARE, 4.0, 3.0, 2.2),
    "one kept": _setting(_WIDE, 3.0, 1.3, 0.5),
}
HARDEST = {**THRESHOLDED, "at the threshold": _setting(_WIDE, 1.9, 1.84, 1.78)}
CONTROL = _setting(_WIDE, 1.7, 1.5, 1.3)
_ELONGATED = _setting((8, 96), 3.0, 2.0, 0.5)
NEAR_THRESHOLD = _setting((8, 96), 1.6, 0.4, 0.2)
ONE_LARGEST = {  # a maximum over nearly equal losses would approach its limit too slowly
    "wide": _setting(_WIDE, 4.0, 1.5, 0.3, noise_scale=0.1),
    "elongated": _ELONGATED,
}


class AbstractLimit(AbstractStatement):
    """What the statements of this theorem share."""

    needs = SpikedMatrix
    growth = (1, 2, 4)
    trials_per_mean = 0.15
    asks_detection = False

    def hypotheses(self, instance: SpikedMatrix) -> tuple[Hypothesis, ...]:
        """Gaussian noise that knows nothing of the signal, and distinct strengths in decreasing
        order; where asked, the first is detected.
        """
        strengths = jnp.append(jnp.asarray(instance.strengths), 0.0)
        apart = jnp.min(strengths[:-1] - strengths[1:])
        margins = {
            "there is noise": jnp.asarray(instance.noise_scale),
            "the strengths are positive and decrease": apart,
        }
        if self.asks_detection:
            margins["a component is detected"] = strengths[0] - instance.aspect**0.25
        law = "the noise is i.i.d. Gaussian and does not depend on the signal"
        return (
            law_hypothesis(law, instance.gaussian),
            *(
                Hypothesis(name, jnp.where(margin > 0, margin, -1.0), Standing.TRUSTED)
                for name, margin in margins.items()
            ),
        )


# --- what is seen of a component -----------------------------------------------------------------
