r"""What rounding to the nearest level loses, on a grid of its own for each group of weights.

**Model.** A group is a vector $w$ of $n$ weights, $q$ what `quantisation.round_to_nearest` makes of
it without clipping, and $W$, $Q$ are the matrices of all groups. With $b \ge 2$ bits there are $L =
2^{b-1} - 1$ levels on either side of zero, at a distance of $\Delta = M/L$, $M = \max|w_i|$
(*absmax*). With one bit the levels are $\pm\lVert w\rVert_1/n$.

**Claims** (sure; proved in paper_notes/rounding.md), with sums over the groups and $a =
(n-1)/(4L^2)$:

- `absmax`: $\lVert W - Q\rVert_F^2 \le \sum\tfrac a{1+a}\lVert w\rVert^2$.
- `peak`: $\lVert W - Q\rVert_F^2 \le \sum\min(aM^2, \lVert w\rVert^2 - M^2)$, of which `absmax` is
  the worst case over $M$.
- `outputs`: $\lVert X(W - Q)\rVert_F \le \lVert X\rVert\bigl(\sum\min(aM^2, \lVert w\rVert^2 -
  M^2)\bigr)^{1/2}$ for any inputs $X$.
- `one_bit`: $\lVert W - Q\rVert_F^2 = \sum(\lVert w\rVert^2 - \lVert w\rVert_1^2/n)$, the least
  that two levels $\pm s$ can lose (Rastegari, Ordonez, Redmon and Farhadi 2016).
- `one_bit_worst`: $\lVert W - Q\rVert_F^2 \le \sum(1 - \tfrac1n)\lVert w\rVert^2$ with one bit.

On a grid of one step $\Delta$ for all weights, nothing clipped:

- `one_step`: $\lVert X(W - Q)\rVert_F \le \tfrac\Delta2\sqrt K\max_s\lVert Xs\rVert$, $s$ signs.
- `one_step_norm`: which is at most $\tfrac\Delta2\sqrt{NK}\,\lVert X\rVert$.
- `subtractive_dither` (in expectation, equality): $\mathbb E\lVert X(W - Q)\rVert_F^2 =
  \tfrac1{12}K\Delta^2\lVert X\rVert_F^2$ where the levels of each weight are moved by a uniform
  dither, which the decoder knows.
- `stochastic` (in expectation, equality): $\Delta^2\sum_{ij}\lVert x_i\rVert^2f_{ij}(1 - f_{ij})$
  where a weight is rounded up with probability $f$, its place between two levels; $x_i$ is column
  $i$ of $X$.

Rotated by $HD$, $H$ a Hadamard matrix with $HH^\top = I$ and $D$ random signs:

- `rotation` (with probability $1 - \delta$): no entry of $HDw$ exceeds $\lVert
  w\rVert\sqrt{2\ln(2NK/\delta)/N}$, for any of $K$ columns $w$.
- `rotated` (with probability $1 - \delta$): rounding $HDW$, one grid for each output, loses at most
  the share $(1 - \tfrac1N)\ln(2NK/\delta)/(2L^2)$.

All sure ones are attained: the first three by $w = (2L, 1, \dots, 1)$, where all but the largest
weight lie half way between two levels, seen through $X = (0, 1, \dots, 1)$; `one_bit_worst` by a
single weight that is not zero; those of one step by weights that all lie half way. Clipped grids
are chosen to lose no more, so that the upper bounds hold for them too.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Key, matmul, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    check_array,
    check_count,
    check_same,
    safe_sqrt,
    settle,
)
from lowrank_theory._random import normal, split
from lowrank_theory._scale import times_power, unit
from lowrank_theory.generators import noise
from lowrank_theory.quantisation import round_to_nearest
from lowrank_theory.theorems._quantities import frobenius, singular_values, squared
from lowrank_theory.theorems._rotated import Rotated, Rotation
from lowrank_theory.theorems._rounded_to_steps import (
    OneStep,
    OneStepNorm,
    Stochastic,
    SubtractiveDither,
)
from lowrank_theory.theorems._stepped import independent_weights
from lowrank_theory.theorems._theorem import (
    EQUALITY,
    UPPER,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)


class RoundedLayer(eqx.Module):
    r"""Weights, the grid to which they are rounded, and what the layer sees.

    - `weights` $W$ (inputs, outputs), `bits` $b$ of a code, from 1 to 8;
    - `group`: how many successive inputs of each output (or, with `axis=1`, outputs of each input)
      share a grid; all of them without one. The last group may be smaller;
    - `activations` $X$ (samples, inputs), which only `outputs` needs.

    Raises `ValueError` for arrays that do not fit, integer dtypes, empty or non-finite arrays, and
    for bits, a group or an axis that there are not.
    """

    weights: Float[AnyArray, "inputs outputs"]
    activations: Float[AnyArray, "samples inputs"] | None
    bits: int = eqx.field(static=True)
    group: int | None = eqx.field(static=True)
    axis: int = eqx.field(static=True)

    def __init__(
        self,
        weights: ArrayLike,
        bits: int,
        *,
        activations: ArrayLike | None = None,
        group: int | None = None,
        axis: int = 0,
    ) -> None:
        self.weights = check_array("weights", weights, "inputs", "outputs")
        self.activations = None
        if activations is not None:
            self.activations = check_array("activations", activations, "samples", "inputs")
            seen, inputs = self.activations.shape[1], self.weights.shape[0]
            check_same("activations", seen, "weights", inputs, "inputs")
        self.bits, self.group, self.axis = bits, group, axis
        _check_grid(self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        rows = () if self.activations is None else self.activations.shape[:1]
        return (*rows, *self.weights.shape)

    @property
    def levels(self) -> int:
        """$L$, the levels above zero; one for a single bit."""
        return max(2 ** (self.bits - 1) - 1, 1)

    def grouped(self, weights: AnyArray) -> Float[Array, "groups size others"]:
        """The entries of the groups of such a matrix, the last ones padded with zeros."""
        lines = jnp.asarray(weights, float)
        lines = lines if self.axis == 0 else lines.T
        length, others = lines.shape
        size = min(self.group or length, length)
        groups = -(-length // size)
        padded = jnp.pad(lines, ((0, groups * size - length), (0, 0)))
        return padded.reshape(groups, size, others)

    def counts(self) -> Float[np.ndarray, "groups 1"]:
        """$n$ of the groups."""
        length = self.weights.shape[self.axis]
        size = min(self.group or length, length)
        starts = np.arange(0, length, size, dtype=float)
        return np.minimum(size, length - starts)[:, None]


def _check_grid(grid: "RoundedLayer | RoundedSetting") -> None:
    settle(grid, "bits", check_count, 1, 8)
    settle(grid, "axis", check_count, 0, 1)
    if grid.group is not None:
        settle(grid, "group", check_count, 1)


class RoundedSetting(eqx.Module):
    """A random layer to be rounded: Gaussian activations, and weights of independent entries.

    - `law` of the entries, which `dyadic` ones cut to powers of two, towards zero;
    - `first`: the first entry of each group is so many times as large.
    """

    samples: int
    inputs: int
    outputs: int
    bits: int
    group: int | None = None
    axis: int = 0
    law: noise.AbstractNoise = noise.Gaussian(1.0)
    first: float | np.ndarray = eqx.field(default=1.0, converter=np.asarray)
    dyadic: bool = False

    def __check_init__(self) -> None:
        for name in ("samples", "inputs", "outputs"):
            settle(self, name, check_count, 1)
        _check_grid(self)

    @of_either_key
    def draw(self, *, key: Key) -> RoundedLayer:
        """A random layer, in float64."""
        xp, (row_key, weight_key) = namespace(key), split(key)
        shape = self.inputs, self.outputs
        weights = independent_weights(self.law, weight_key, shape)
        if self.dyadic:
            digits, powers = xp.frexp(weights)
            weights = xp.sign(digits) * xp.ldexp(0.5, powers)
        place = xp.arange(shape[self.axis]) % (self.group or shape[self.axis])
        sizes = xp.where(place == 0, self.first, 1.0)
        sizes = sizes[:, None] if self.axis == 0 else sizes[None, :]
        activations = normal(row_key, (self.samples, self.inputs))
        grid = {"group": self.group, "axis": self.axis}
        return RoundedLayer(sizes * weights, self.bits, activations=activations, **grid)


_SHAPE: dict[str, Any] = {"samples": 12, "inputs": 24, "outputs": 6, "group": 8}
_SIGNS = noise.Rademacher(1.0)


def _regimes(bits: int) -> dict[str, RoundedSetting]:
    shape: dict[str, Any] = {**_SHAPE, "bits": bits}
    return {
        "Gaussian": RoundedSetting(**shape),
        "Laplace": RoundedSetting(**shape, law=noise.Laplace(1.0)),
        "Student t": RoundedSetting(**shape, law=noise.StudentT(1.0)),
        "powers of two": RoundedSetting(**shape, dyadic=True),
        "all of one size": RoundedSetting(**shape, law=_SIGNS),
        "one large entry": RoundedSetting(**shape, first=1e4),
        "one grid for each output": RoundedSetting(**{**shape, "group": None}),
        "groups of outputs": RoundedSetting(**{**shape, "group": 4}, axis=1),
    }


def _half_way(bits: int) -> RoundedSetting:
    """All but the largest entry of each group lie half way between two levels."""
    return RoundedSetting(**_SHAPE, bits=bits, law=_SIGNS, first=2.0**bits - 2)


_MORE_BITS = _regimes(3) | {
    "half way": _half_way(3),
    "half way, two bits": _half_way(2),
    "two bits": RoundedSetting(**_SHAPE, bits=2),
    "eight bits": RoundedSetting(**_SHAPE, bits=8),
}
_ONE_BIT = _regimes(1)


def _rounded(layer: RoundedLayer) -> Float[Array, "inputs outputs"]:
    """$Q$."""
    codes = round_to_nearest(
        jnp.asarray(layer.weights, float),
        layer.bits,
        group=layer.group,
        axis=layer.axis,
        clipped=False,
    )
    return jnp.asarray(codes.materialise())


def _peaks(layer: RoundedLayer) -> tuple[Array, Array, Array]:
    r"""$M$ and $\lVert w\rVert^2 - M^2$ of each group, of weights divided by $2^p$; and $p$."""
    weights, power = unit(layer.weights)
    sizes = jnp.sort(jnp.abs(layer.grouped(weights)), axis=1)
    return sizes[:, -1], jnp.sum(sizes[:, :-1] ** 2, axis=1), power


def _most(layer: RoundedLayer) -> Float[Array, ""]:
    r"""$\bigl(\sum\min(aM^2, \lVert w\rVert^2 - M^2)\bigr)^{1/2}$."""
    largest, rest, power = _peaks(layer)
    most = jnp.minimum(_a(layer) * largest**2, rest)
    return times_power(safe_sqrt(jnp.sum(most)), power)


def _a(layer: RoundedLayer) -> Float[np.ndarray, "groups 1"]:
    """$(n-1)/(4L^2)$ of the groups."""
    return (layer.counts() - 1) / (4 * layer.levels**2)


def _energies(layer: RoundedLayer) -> Float[Array, "groups others"]:
    r"""$\lVert w\rVert^2$."""
    return jnp.sum(layer.grouped(layer.weights) ** 2, axis=1)


class KnownCodes(AbstractAdversary):
    r"""Rounding has no derivative, so the places of all weights between the levels are free, and
    their codes are known: $w = \Delta(L, u_2, \dots, u_n)$ with $|u_i| \lt L$ becomes $q =
    \Delta(L, [u_2], \dots, [u_n])$, with $[u]$ the nearest integer.

    For one group without loss: nothing depends on signs, or on which of its weights is the largest.
    Here two columns are two groups, whose steps $\Delta$ are free too, as is the one row that the
    layer sees.
    """

    bits: int = 3
    count: int = 4

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array, Array]:
        """Places, logarithms of steps, and activations."""
        place_key, step_key, row_key = jax.random.split(key, 3)
        places = normal(place_key, (self.count - 1, 2)) / 2
        return places, normal(step_key, (2,)), normal(row_key, (1, self.count))

    def play(self, free: tuple[Array, Array, Array]) -> tuple[RoundedLayer, Array]:
        """The layer, and $Q$."""
        places, steps, activations = free
        levels = 2.0 ** (self.bits - 1) - 1
        places = levels * jnp.tanh(places / levels)
        places = jnp.concatenate([jnp.full((1, 2), levels), places])
        codes, steps = jax.lax.stop_gradient(jnp.round(places)), jnp.exp(steps)
        return RoundedLayer(steps * places, self.bits, activations=activations), steps * codes


class KnownSigns(AbstractAdversary):
    r"""Any weights, two groups, to be rounded to one bit: signs have no derivative, so $q =
    \operatorname{sign}(w)\lVert w\rVert_1/n$ is given.
    """

    count: int = 4

    def start(self, *, key: PRNGKeyArray) -> Array:
        """The weights."""
        return normal(key, (self.count, 2))

    def play(self, free: Array) -> tuple[RoundedLayer, Array]:
        """The layer, and $Q$."""
        level = jnp.mean(jnp.abs(free), axis=0)
        return RoundedLayer(free, 1), jnp.where(free > 0, level, -level)


class AbstractRounding(AbstractStatement):
    """A statement about nearest rounding without clipping, squared and in the units of the squared
    weights where it does not say otherwise.
    """

    needs = RoundedLayer

    def estimate(self, instance: RoundedLayer) -> Float[Array, "inputs outputs"]:
        """$Q$."""
        return _rounded(instance)

    def broken_estimate(self, instance: RoundedLayer) -> Float[Array, "inputs outputs"]:
        """$2Q$: the levels twice as far from each other."""
        return 2 * _rounded(instance)


class AbstractManyLevels(AbstractRounding):
    """A bound for two bits or more; attained."""

    kind = UPPER
    regimes = _MORE_BITS
    control = _MORE_BITS["Gaussian"]
    adversary = KnownCodes()
    sharp = True

    def hypotheses(self, instance: RoundedLayer) -> tuple[Hypothesis, ...]:
        """Two bits or more."""
        return (Hypothesis("the grid has two bits or more", float(instance.bits - 2)),)


class Absmax(AbstractManyLevels):
    r"""$\lVert W - Q\rVert_F^2 \le \sum\frac a{1+a}\lVert w\rVert^2$, $a = (n-1)/(4L^2)$."""

    def formula(self, instance: RoundedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\sum\frac a{1+a}\lVert w\rVert^2$."""
        a = _a(instance)
        return jnp.sum(a / (1 + a) * _energies(instance))

    def loss(self, instance: RoundedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert W - Q\rVert_F^2$."""
        return _lost(instance, estimate)

    def magnitude(self, instance: RoundedLayer) -> Float[Array, ""]:
        r"""$\lVert W\rVert_F^2$."""
        return squared(frobenius(instance.weights))


class Peak(AbstractManyLevels):
    r"""$\lVert W - Q\rVert_F^2 \le \sum\min(aM^2, \lVert w\rVert^2 - M^2)$, $a = (n-1)/(4L^2)$."""

    def formula(self, instance: RoundedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\sum\min(aM^2, \lVert w\rVert^2 - M^2)$."""
        return _most(instance) ** 2

    def loss(self, instance: RoundedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert W - Q\rVert_F^2$."""
        return _lost(instance, estimate)

    def magnitude(self, instance: RoundedLayer) -> Float[Array, ""]:
        r"""$\lVert W\rVert_F^2$."""
        return squared(frobenius(instance.weights))


class Outputs(AbstractManyLevels):
    r"""$\lVert X(W - Q)\rVert_F \le \lVert X\rVert\bigl(\sum\min(aM^2, \lVert w\rVert^2 -
    M^2)\bigr)^{1/2}$. Not squared; in the units of the outputs.
    """

    def formula(self, instance: RoundedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert X\rVert\bigl(\sum\min(aM^2, \lVert w\rVert^2 - M^2)\bigr)^{1/2}$."""
        return singular_values(_seen(instance))[0] * _most(instance)

    def loss(self, instance: RoundedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert X(W - Q)\rVert_F$."""
        return frobenius(matmul(_seen(instance), instance.weights - estimate))

    def magnitude(self, instance: RoundedLayer) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F\lVert W\rVert_F$."""
        return frobenius(_seen(instance)) * frobenius(instance.weights)


class AbstractOneBit(AbstractRounding):
    """A statement about signs, and one scale for each group."""

    regimes = _ONE_BIT
    control = _ONE_BIT["Gaussian"]

    def hypotheses(self, instance: RoundedLayer) -> tuple[Hypothesis, ...]:
        """One bit."""
        return (Hypothesis("the grid has one bit", float(1 - instance.bits)),)

    def loss(self, instance: RoundedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert W - Q\rVert_F^2$."""
        return _lost(instance, estimate)

    def magnitude(self, instance: RoundedLayer) -> Float[Array, ""]:
        r"""$\lVert W\rVert_F^2$."""
        return squared(frobenius(instance.weights))


class OneBit(AbstractOneBit):
    r"""$\lVert W - Q\rVert_F^2 = \sum(\lVert w\rVert^2 - \lVert w\rVert_1^2/n)$."""

    kind = EQUALITY

    def formula(self, instance: RoundedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\sum(\lVert w\rVert^2 - \lVert w\rVert_1^2/n)$."""
        sums = jnp.sum(jnp.abs(instance.grouped(instance.weights)), axis=1)
        return jnp.maximum(jnp.sum(_energies(instance) - sums**2 / instance.counts()), 0)


class OneBitWorst(AbstractOneBit):
    r"""$\lVert W - Q\rVert_F^2 \le \sum(1 - \frac1n)\lVert w\rVert^2$."""

    kind = UPPER
    adversary = KnownSigns()
    sharp = True

    def formula(self, instance: RoundedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\sum(1 - \frac1n)\lVert w\rVert^2$."""
        return jnp.sum((1 - 1 / instance.counts()) * _energies(instance))


def _lost(layer: RoundedLayer, estimate: Array) -> Float[Array, ""]:
    r"""$\lVert W - Q\rVert_F^2$."""
    return frobenius(layer.weights - estimate) ** 2


def _seen(layer: RoundedLayer) -> Float[Array, "samples inputs"]:
    if layer.activations is None:
        raise ValueError("This statement needs rows: give `RoundedLayer(..., activations=...)`.")
    return jnp.asarray(layer.activations, float)


class Rounding(AbstractTheorem):
    r"""Rounding to nearest, on a grid that reaches the largest weight of its group, loses at most a
    quarter of a squared step for each other weight, and never more than the share $a/(1+a)$, $a =
    (n-1)/(4L^2)$, of a group of $n$; signs lose $1 - \frac1n$ at most; dither a twelfth of a
    squared step.
    """

    absmax: Absmax = Absmax()
    peak: Peak = Peak()
    outputs: Outputs = Outputs()
    one_bit: OneBit = OneBit()
    one_bit_worst: OneBitWorst = OneBitWorst()
    one_step: OneStep = OneStep()
    one_step_norm: OneStepNorm = OneStepNorm()
    subtractive_dither: SubtractiveDither = SubtractiveDither()
    stochastic: Stochastic = Stochastic()
    rotation: Rotation = Rotation()
    rotated: Rotated = Rotated()


rounding = Rounding()
