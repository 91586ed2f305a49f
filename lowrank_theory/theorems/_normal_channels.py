"""Normal channels behind a rectifier, and the shift that keeps the mean of what is changed after
them: the part of `equalisation` that knows statistics of batch normalisation, and no data.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float
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
from lowrank_theory.theorems._quantities import (
    as_floats,
    as_known,
    frobenius,
    law_hypothesis,
    squared,
)
from lowrank_theory.theorems._theorem import (
    EQUALITY,
    EQUALITY_IN_EXPECTATION,
    AbstractStatement,
    Hypothesis,
)


class NormalChannels(eqx.Module):
    r"""Samples $z$ (samples, channels) of channels with `means` $\beta$ and `deviations` $\gamma$,
    which are rectified to $x = \max(z, 0)$; a change $E$ (channels, outputs) of the weights behind
    them, and a `shift` $d$ (outputs,) of the outputs.

    `independent`: the samples are independent and normal, with these means and deviations, and do
    not look at the change. Raises `ValueError` for arrays that do not fit, and for deviations that
    are not positive.
    """

    samples: Float[AnyArray, "samples channels"]
    means: Float[AnyArray, " channels"]
    deviations: Float[AnyArray, " channels"]
    change: Float[AnyArray, "channels outputs"]
    shift: Float[AnyArray, " outputs"]
    independent: Bool[AnyArray, ""]

    def __init__(
        self,
        samples: ArrayLike,
        means: ArrayLike,
        deviations: ArrayLike,
        change: ArrayLike,
        shift: ArrayLike,
        *,
        independent: Any = False,
    ) -> None:
        self.samples = check_array("samples", samples, "samples", "channels")
        self.means = check_array("means", means, "channels")
        self.deviations = check_array("deviations", deviations, "channels")
        self.change = check_array("change", change, "channels", "outputs")
        self.shift = check_array("shift", shift, "outputs")
        channels, outputs = self.change.shape
        check_same("samples", self.samples.shape[1], "change", channels, "channels")
        for name in ("means", "deviations"):
            check_same(name, getattr(self, name).shape[0], "change", channels, "channels")
        check_same("shift", self.shift.shape[0], "change", outputs, "outputs")
        if not isinstance(self.deviations, Tracer):
            least = float(np.min(np.asarray(self.deviations)))
            if least <= 0:
                raise ValueError(f"`deviations` must be positive; got {least:.3g}.")
        self.independent = as_known(independent)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return (*self.samples.shape, self.change.shape[1])

    def rectified(self) -> Float[Array, "samples channels"]:
        r"""$x = \max(z, 0)$."""
        return jnp.maximum(jnp.asarray(self.samples, float), 0)

    def moments(self) -> tuple[Float[Array, " channels"], Float[Array, " channels"]]:
        r"""$m_1 = \beta\Phi(\zeta) + \gamma\varphi(\zeta)$ and $v = (\beta^2 + \gamma^2)\Phi(\zeta)
        + \beta\gamma\varphi(\zeta) - m_1^2$, $\zeta = \beta/\gamma$.
        """
        mean, deviation = jnp.asarray(self.means, float), jnp.asarray(self.deviations, float)
        ratio = mean / deviation
        below, density = jax.scipy.special.ndtr(ratio), jax.scipy.stats.norm.pdf(ratio)
        first = ratio * below + density
        second = (1 + ratio**2) * below + ratio * density
        return deviation * first, deviation**2 * jnp.maximum(second - first**2, 0)

    def moved(self, shift: Array) -> Float[Array, "samples outputs"]:
        """How far the outputs move: $xE + d$."""
        return matmul(self.rectified(), jnp.asarray(self.change, float)) + shift

    def law(self) -> Hypothesis:
        """A law of the samples."""
        name = "the samples are independent and normal, with these means and deviations"
        return law_hypothesis(name, self.independent)


class NormalSetting(eqx.Module):
    r"""Channels with deviations $e^{g/2}$ and means `ratio` + g/2 times as large, $g$ Gaussian; a
    Gaussian change, and a Gaussian shift.
    """

    samples: int
    channels: int
    outputs: int
    ratio: float | np.ndarray = eqx.field(default=0.0, converter=as_floats)

    def __check_init__(self) -> None:
        settle(self, "samples", check_count, 2)
        for name in ("channels", "outputs"):
            settle(self, name, check_count, 1)

    @of_either_key
    def draw(self, *, key: Key) -> NormalChannels:
        """Random samples, in float64."""
        xp, (law_key, sample_key, change_key, shift_key) = namespace(key), split(key, 4)
        law = normal(law_key, (2, self.channels)) / 2
        deviations = xp.exp(law[0])
        means = deviations * (self.ratio + law[1])
        return NormalChannels(
            means + deviations * normal(sample_key, (self.samples, self.channels)),
            means,
            deviations,
            normal(change_key, (self.channels, self.outputs)),
            normal(shift_key, (self.outputs,)),
            independent=xp.asarray(True),
        )


_SHAPE: dict[str, Any] = {"samples": 120, "channels": 12, "outputs": 8}
_CHANNELS = {
    "centred": NormalSetting(**_SHAPE),
    "mostly above zero": NormalSetting(**_SHAPE, ratio=2.0),
    "mostly below zero": NormalSetting(**_SHAPE, ratio=-1.0),
}


class AbstractChannels(AbstractStatement):
    """A statement about rectified channels."""

    needs = NormalChannels
    regimes = _CHANNELS
    control = _CHANNELS["centred"]

    def loss(self, instance: NormalChannels, estimate: Array) -> Float[Array, ""]:
        """What is estimated."""
        return estimate


class AbstractMoment(AbstractChannels):
    """A moment of rectified normal channels, summed over these."""

    kind = EQUALITY_IN_EXPECTATION

    def hypotheses(self, instance: NormalChannels) -> tuple[Hypothesis, ...]:
        """A law of the samples."""
        return (instance.law(),)


class RectifiedMean(AbstractMoment):
    r"""$\mathbb E\sum_j\bar x_j = \sum_j\beta_j\Phi(\zeta_j) + \gamma_j\varphi(\zeta_j)$."""

    def estimate(self, instance: NormalChannels) -> Float[Array, ""]:
        r"""$\sum_j\bar x_j$."""
        return jnp.sum(jnp.mean(instance.rectified(), axis=0))

    def broken_estimate(self, instance: NormalChannels) -> Float[Array, ""]:
        """Without the rectifier."""
        return jnp.sum(jnp.mean(jnp.asarray(instance.samples, float), axis=0))

    def formula(self, instance: NormalChannels, estimate: Array) -> Float[Array, ""]:
        r"""$\sum_jm_{1j}$."""
        return jnp.sum(instance.moments()[0])

    def magnitude(self, instance: NormalChannels) -> Float[Array, ""]:
        r"""$\sum_j|\beta_j| + \gamma_j$."""
        sizes = jnp.abs(jnp.asarray(instance.means, float))
        return jnp.sum(sizes + jnp.asarray(instance.deviations, float))


class RectifiedVariance(AbstractMoment):
    r"""$\mathbb E\sum_js_j^2 = \sum_jv_j$ of the unbiased variances $s_j^2$ of $x$."""

    def estimate(self, instance: NormalChannels) -> Float[Array, ""]:
        r"""$\sum_js_j^2$."""
        return _variances(instance.rectified())

    def broken_estimate(self, instance: NormalChannels) -> Float[Array, ""]:
        """Without the rectifier."""
        return _variances(jnp.asarray(instance.samples, float))

    def hypotheses(self, instance: NormalChannels) -> tuple[Hypothesis, ...]:
        """A law of the samples, and two of them."""
        count = float(instance.samples.shape[0] - 2)
        return (instance.law(), Hypothesis("there are two samples or more", count))

    def formula(self, instance: NormalChannels, estimate: Array) -> Float[Array, ""]:
        r"""$\sum_jv_j$."""
        return jnp.sum(instance.moments()[1])

    def magnitude(self, instance: NormalChannels) -> Float[Array, ""]:
        r"""$\sum_j\beta_j^2 + \gamma_j^2$."""
        return jnp.sum(_second(instance))


def _variances(samples: Float[Array, "samples channels"]) -> Float[Array, ""]:
    """Unbiased, summed; of one sample nothing that is used."""
    centred = samples - jnp.mean(samples, axis=0)
    return jnp.sum(centred**2) / max(len(samples) - 1, 1)


def _second(instance: NormalChannels) -> Float[Array, " channels"]:
    r"""$\beta^2 + \gamma^2$."""
    mean, deviation = (jnp.asarray(x, float) for x in (instance.means, instance.deviations))
    return mean**2 + deviation**2


class AbstractShift(AbstractChannels):
    """The mean squared movement of the outputs, in squared units of these."""

    def loss(self, instance: NormalChannels, estimate: Array) -> Float[Array, ""]:
        r"""$\frac1m\lVert XE + \mathbf 1d\rVert_F^2$."""
        return squared(frobenius(instance.moved(estimate))) / len(instance.samples)


class AnyShift(AbstractShift):
    r"""$\frac1m\lVert XE + \mathbf 1d\rVert_F^2 = \frac1m\lVert(X - \mathbf 1\bar x)E\rVert_F^2 +
    \lVert\bar xE + d\rVert^2$ for any rows.
    """

    kind = EQUALITY

    def hypotheses(self, instance: NormalChannels) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def estimate(self, instance: NormalChannels) -> Float[Array, " outputs"]:
        """$d$."""
        return jnp.asarray(instance.shift, float)

    def broken_estimate(self, instance: NormalChannels) -> Float[Array, " outputs"]:
        """$-d$."""
        return -jnp.asarray(instance.shift, float)

    def formula(self, instance: NormalChannels, estimate: Array) -> Float[Array, ""]:
        r"""The variance, and the square of the mean."""
        rows, change = instance.rectified(), jnp.asarray(instance.change, float)
        mean = jnp.mean(rows, axis=0)
        moved = matmul(mean[None], change)[0] + jnp.asarray(instance.shift, float)
        varied = squared(frobenius(matmul(rows - mean, change))) / len(rows)
        return varied + squared(frobenius(moved))

    def magnitude(self, instance: NormalChannels) -> Float[Array, ""]:
        r"""$\frac1m\lVert X\rVert_F^2\lVert E\rVert_F^2 + \lVert d\rVert^2$."""
        rows = squared(frobenius(instance.rectified())) / len(instance.samples)
        return rows * squared(frobenius(instance.change)) + squared(frobenius(instance.shift))


class KeptMean(AbstractShift):
    r"""$\mathbb E\frac1m\lVert XE + \mathbf 1d\rVert_F^2 = \sum_jv_j\lVert E_{j:}\rVert^2$ for the
    shift $d = -m_1E$, in the model of independent normal channels.
    """

    kind = EQUALITY_IN_EXPECTATION

    def hypotheses(self, instance: NormalChannels) -> tuple[Hypothesis, ...]:
        """A law of the samples."""
        return (instance.law(),)

    def estimate(self, instance: NormalChannels) -> Float[Array, " outputs"]:
        """$-m_1E$."""
        return -matmul(instance.moments()[0][None], jnp.asarray(instance.change, float))[0]

    def broken_estimate(self, instance: NormalChannels) -> Float[Array, " outputs"]:
        """No shift."""
        return jnp.zeros(instance.change.shape[1])

    def formula(self, instance: NormalChannels, estimate: Array) -> Float[Array, ""]:
        r"""$\sum_jv_j\lVert E_{j:}\rVert^2$."""
        change = jnp.asarray(instance.change, float)
        return jnp.sum(instance.moments()[1] * jnp.sum(change**2, axis=1))

    def magnitude(self, instance: NormalChannels) -> Float[Array, ""]:
        r"""$\sum_j(\beta_j^2 + \gamma_j^2)\lVert E\rVert_F^2$."""
        return jnp.sum(_second(instance)) * squared(frobenius(instance.change))
