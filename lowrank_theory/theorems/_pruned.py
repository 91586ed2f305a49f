"""What `pruning` speaks of: weights to be removed, and how they are drawn and chosen."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Drawn, Key, namespace, of_either_key
from lowrank_theory._numerics import AnyArray, check_array, check_count, check_same, settle
from lowrank_theory._random import normal, split, uniform
from lowrank_theory.generators import noise
from lowrank_theory.sparsification.masks import largest_traced
from lowrank_theory.theorems._quantities import as_floats, as_known, law_hypothesis
from lowrank_theory.theorems._stepped import correlated_rows, damped_moments, independent_weights
from lowrank_theory.theorems._theorem import AbstractAdversary, Hypothesis

# --- a set of inputs ------------------------------------------------------------------------------


class PrunedSet(eqx.Module):
    r"""The weights of the first inputs are moved by `moved` $D$ (removed, outputs), where the layer
    sees `activations` $X$ (samples, inputs); the removed weights themselves, to prune them.

    `damping` is what is added to the second moments, over the mean of their diagonal. Raises
    `ValueError` for arrays that are no finite matrices, and where no input is left.
    """

    activations: Float[AnyArray, "samples inputs"]
    moved: Float[AnyArray, "removed outputs"]
    damping: Float[AnyArray, ""] | float

    def __init__(self, activations: ArrayLike, moved: ArrayLike, damping: Any = 0.01) -> None:
        self.activations = check_array("activations", activations, "samples", "inputs")
        self.moved = check_array("moved", moved, "removed", "outputs")
        self.damping = damping
        if len(self.moved) >= self.activations.shape[1]:
            raise ValueError(
                f"`moved` must leave an input of {self.activations.shape[1]}; got "
                f"{len(self.moved)} rows."
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return (*self.activations.shape, self.moved.shape[1])

    def moments(self) -> Float[Array, "inputs inputs"]:
        r"""$H = X^\top X + \lambda I$."""
        return damped_moments(self.activations, self.damping)


class SetSetting(eqx.Module):
    """Correlated Gaussian rows, and independent weights of some inputs."""

    samples: int
    inputs: int
    outputs: int
    removed: int
    law: noise.AbstractNoise = noise.Gaussian(1.0)
    decay: float | np.ndarray = eqx.field(default=0.0, converter=as_floats)
    correlated: float | np.ndarray = eqx.field(default=1.0, converter=as_floats)
    damping: float | np.ndarray = eqx.field(default=0.01, converter=as_floats)

    def __check_init__(self) -> None:
        for name in ("samples", "outputs"):
            settle(self, name, check_count, 1)
        settle(self, "inputs", check_count, 2)
        why = " (so that an input is left)"
        settle(self, "removed", check_count, 1, self.inputs - 1, why)

    @of_either_key
    def draw(self, *, key: Key) -> PrunedSet:
        """A random set, in float64."""
        row_key, weight_key = split(key)
        rows = correlated_rows(row_key, (self.samples, self.inputs), self.decay, self.correlated)
        moved = independent_weights(self.law, weight_key, (self.removed, self.outputs))
        return PrunedSet(rows, moved, namespace(key).asarray(self.damping))


_SET: dict[str, Any] = {"samples": 20, "inputs": 10, "outputs": 3, "removed": 4}
SETS = {
    "correlated": SetSetting(**_SET, correlated=3.0),
    "uncorrelated": SetSetting(**_SET, correlated=0.0),
    "inputs that decay, Student t": SetSetting(**_SET, decay=1.5, law=noise.StudentT(1.0)),
    "nearly singular moments": SetSetting(**_SET, decay=6.0),
}


class FreeSet(AbstractAdversary):
    """Any rows of three inputs, of which two move as they like."""

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Rows, and how the weights move."""
        row_key, weight_key = jax.random.split(key)
        return normal(row_key, (4, 3)), normal(weight_key, (2, 2))

    def play(self, free: tuple[Array, Array]) -> tuple[PrunedSet, None]:
        """The set."""
        return PrunedSet(*free), None


# --- the largest ----------------------------------------------------------------------------------


class Thinned(eqx.Module):
    r"""Weights $W$ (inputs, outputs) of which `kept` entries or singular values stay, or so many of
    each `group` of inputs.

    `exponent` is the $p$ of the norm; `scale` $\sigma$, where the weights are independent Gaussian
    numbers of this standard deviation, which `gaussian` says. Raises `ValueError` for weights that
    are no finite matrix, and for numbers that there are not.
    """

    weights: Float[AnyArray, "inputs outputs"]
    kept: int = eqx.field(static=True)
    group: int = eqx.field(static=True)
    exponent: Float[AnyArray, ""] | float
    scale: Float[AnyArray, ""] | float
    gaussian: Bool[AnyArray, ""]

    def __init__(
        self,
        weights: ArrayLike,
        kept: int,
        *,
        group: int = 4,
        exponent: Any = 1.0,
        scale: Any = np.nan,
        gaussian: Any = False,
    ) -> None:
        self.weights = check_array("weights", weights, "inputs", "outputs")
        self.kept, self.group = kept, group
        self.exponent, self.scale, self.gaussian = exponent, scale, as_known(gaussian)
        settle(self, "kept", check_count, 1, self.weights.size)
        settle(self, "group", check_count, 1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.weights.shape

    def exact(self) -> Float[Array, "inputs outputs"]:
        """$W$."""
        return jnp.asarray(self.weights, float)

    def in_groups(self, kept: int) -> Float[Array, "inputs outputs"]:
        """So many of each group of inputs of an output; the last group may be smaller."""
        weights = self.exact()
        more = -len(weights) % self.group
        padded = jnp.pad(weights, ((0, more), (0, 0)))
        lines = padded.reshape(-1, self.group, weights.shape[1]).swapaxes(0, 1)
        mask = largest_traced(jnp.abs(lines).reshape(self.group, -1), kept).reshape(lines.shape)
        thinned = jnp.where(mask, lines, 0).swapaxes(0, 1).reshape(padded.shape)
        return thinned[: len(weights)]

    def some_removed(self) -> Hypothesis:
        """A pattern that removes something."""
        margin = float(self.group - 1 - self.kept)
        return Hypothesis("fewer entries stay than a group has", margin)

    def gaussian_weights(self) -> Hypothesis:
        """A law of the weights."""
        known = jnp.asarray(self.gaussian) & jnp.isfinite(jnp.asarray(self.scale, float))
        return law_hypothesis("the weights are independent Gaussian of known size", known)


class ThinnedSetting(eqx.Module):
    """Independent weights of a law; `equal`, in place of them, ones for the first so many singular
    values (`spectral`) or entries.
    """

    inputs: int
    outputs: int
    kept: int
    law: noise.AbstractNoise = noise.Gaussian(1.0)
    exponent: float | np.ndarray = eqx.field(default=1.0, converter=as_floats)
    equal: int | np.ndarray = eqx.field(default=0, converter=np.asarray)
    spectral: bool | np.ndarray = eqx.field(default=False, converter=np.asarray)

    def __check_init__(self) -> None:
        for name in ("inputs", "outputs"):
            settle(self, name, check_count, 1)
        settle(self, "kept", check_count, 1, self.inputs * self.outputs)

    @of_either_key
    def draw(self, *, key: Key) -> Thinned:
        """Random weights, in float64."""
        xp, shape = namespace(key), (self.inputs, self.outputs)
        weights = independent_weights(self.law, key, shape)
        place = xp.arange(shape[0] * shape[1]).reshape(shape)
        diagonal = xp.eye(*shape) * (xp.arange(shape[0])[:, None] < self.equal)
        ones = xp.where(self.spectral, diagonal, place < self.equal)
        scale = self.law.scale if isinstance(self.law, noise.Gaussian) else None
        return Thinned(
            xp.where(self.equal > 0, ones, weights),
            self.kept,
            exponent=xp.asarray(self.exponent),
            scale=xp.asarray(1.0 if scale is None else scale),
            gaussian=xp.asarray((scale is not None) & (self.equal == 0)),
        )


_THIN: dict[str, Any] = {"inputs": 12, "outputs": 8, "kept": 4}
FREE = {
    "Gaussian": ThinnedSetting(**_THIN),
    "Laplace": ThinnedSetting(**_THIN, law=noise.Laplace(1.0), exponent=0.5),
    "Student t": ThinnedSetting(**_THIN, law=noise.StudentT(1.0), exponent=1.5),
    "equal entries": ThinnedSetting(**_THIN, equal=8),
    "equal singular values": ThinnedSetting(**_THIN, equal=8, spectral=True),
}
_OF_FOUR: dict[str, Any] = {"inputs": 48, "outputs": 24, "kept": 2}
PATTERNS = {
    "Gaussian": ThinnedSetting(**_OF_FOUR),
    "small weights": ThinnedSetting(**_OF_FOUR, law=noise.Gaussian(1e-3)),
    "Student t": ThinnedSetting(**_OF_FOUR, law=noise.StudentT(1.0)),
    "equal entries": ThinnedSetting(**_OF_FOUR, equal=48 * 24),
}
GAUSSIAN_PATTERNS = {name: PATTERNS[name] for name in ("Gaussian", "small weights")}


class FreeWeights(AbstractAdversary):
    """Any weights of four inputs and one output, of which two stay: of all, or of each four."""

    def start(self, *, key: PRNGKeyArray) -> Array:
        """The weights."""
        return normal(key, (4, 1))

    def play(self, free: Array) -> tuple[Thinned, None]:
        """The weights, as they are."""
        return Thinned(free, 2), None


class FreeValues(AbstractAdversary):
    """Any singular values, on a diagonal: what is truncated depends on no more. The largest come
    first, a little apart, so that truncation keeps these and has a derivative.
    """

    def start(self, *, key: PRNGKeyArray) -> Array:
        """The square roots of the steps of the spectrum."""
        return normal(key, (4,))

    def play(self, free: Array) -> tuple[Thinned, Array]:
        """The weights, and their truncation."""
        values = jnp.cumsum(free**2 + 1e-5)[::-1]
        return Thinned(jnp.diag(values), 2), jnp.diag(values * (jnp.arange(4) < 2))


# --- coins ----------------------------------------------------------------------------------------


class Sampled(eqx.Module):
    r"""Weights $W$ (inputs, outputs) seen through $X$ (samples, inputs), each kept where its coin,
    from zero to one, is below its probability $p$ (inputs, outputs).

    `independent`: the coins are independent and uniform, and look at nothing else. Raises
    `ValueError` for arrays that do not fit, and for probabilities outside (0, 1].
    """

    weights: Float[AnyArray, "inputs outputs"]
    activations: Float[AnyArray, "samples inputs"]
    probabilities: Float[AnyArray, "inputs outputs"]
    coins: Float[AnyArray, "inputs outputs"]
    independent: Bool[AnyArray, ""]

    def __init__(
        self,
        weights: ArrayLike,
        activations: ArrayLike,
        probabilities: ArrayLike,
        coins: ArrayLike,
        *,
        independent: Any = False,
    ) -> None:
        self.weights = check_array("weights", weights, "inputs", "outputs")
        self.activations = check_array("activations", activations, "samples", "inputs")
        inputs = self.weights.shape[0]
        check_same("activations", self.activations.shape[1], "weights", inputs, "inputs")
        for name, value in (("probabilities", probabilities), ("coins", coins)):
            array = check_array(name, value, "inputs", "outputs")
            if array.shape != self.weights.shape:
                raise ValueError(f"`{name}` must be {self.weights.shape}; got {array.shape}.")
            setattr(self, name, array)
        if not isinstance(self.probabilities, Tracer):
            values = np.asarray(self.probabilities)
            if values.min() <= 0 or values.max() > 1:
                raise ValueError(
                    "`probabilities` must be above 0 and at most 1; got "
                    f"{values.min():.3g} to {values.max():.3g}."
                )
        self.independent = as_known(independent)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return (*self.activations.shape, self.weights.shape[1])

    def costs(self) -> Float[Array, "inputs outputs"]:
        r"""$c_{ij} = |W_{ij}|\lVert x_i\rVert$."""
        return _costs(jnp.asarray(self.weights, float), jnp.asarray(self.activations, float))

    def kept(self) -> Float[Array, "inputs outputs"]:
        """The weights that are kept, as they are, and zeros."""
        there = jnp.asarray(self.coins, float) < jnp.asarray(self.probabilities, float)
        return jnp.where(there, jnp.asarray(self.weights, float), 0)

    def independent_coins(self) -> Hypothesis:
        """A law of the coins."""
        name = "the coins are independent and uniform, and look at nothing"
        return law_hypothesis(name, self.independent)


def _costs(
    weights: Float[Drawn, "inputs outputs"], rows: Float[Drawn, "samples inputs"]
) -> Float[Drawn, "inputs outputs"]:
    xp = namespace(weights, rows)
    return xp.abs(weights) * xp.linalg.norm(rows, axis=0)[:, None]


class CoinSetting(eqx.Module):
    """Correlated Gaussian rows, independent weights, and probabilities from `least` to one:
    proportional to costs to the power of `by_cost`, zero for uniform ones.
    """

    samples: int
    inputs: int
    outputs: int
    law: noise.AbstractNoise = noise.Gaussian(1.0)
    by_cost: float | np.ndarray = eqx.field(default=1.0, converter=as_floats)
    least: float | np.ndarray = eqx.field(default=0.3, converter=as_floats)
    decay: float | np.ndarray = eqx.field(default=0.0, converter=as_floats)

    def __check_init__(self) -> None:
        for name in ("samples", "inputs", "outputs"):
            settle(self, name, check_count, 1)

    @of_either_key
    def draw(self, *, key: Key) -> Sampled:
        """Random weights and coins, in float64."""
        xp, (row_key, weight_key, coin_key) = namespace(key), split(key, 3)
        shape = self.inputs, self.outputs
        rows = correlated_rows(row_key, (self.samples, self.inputs), self.decay, 1.0)
        weights = independent_weights(self.law, weight_key, shape)
        costs = _costs(weights, rows) ** self.by_cost
        chances = xp.clip(costs / xp.max(costs), self.least, 1) * (1 - self.least / 2)
        coins = uniform(coin_key, shape)
        return Sampled(weights, rows, chances, coins, independent=xp.asarray(True))


_COINS: dict[str, Any] = {"samples": 20, "inputs": 24, "outputs": 32}
COINS = {
    "proportional": CoinSetting(**_COINS),
    "uniform": CoinSetting(**_COINS, by_cost=0.0),
    "inputs that decay, Laplace": CoinSetting(**_COINS, decay=0.5, law=noise.Laplace(1.0)),
    "square roots": CoinSetting(**_COINS, by_cost=0.5, least=0.4),
}


class FreeCoins(AbstractAdversary):
    """Any costs and probabilities of four weights."""

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Weights, and the logits of probabilities."""
        weight_key, logit_key = jax.random.split(key)
        return normal(weight_key, (2, 2)), normal(logit_key, (2, 2))

    def play(self, free: tuple[Array, Array]) -> tuple[Sampled, None]:
        """Weights that the layer sees one by one."""
        weights, logits = free
        chances = jax.nn.sigmoid(logits)
        return Sampled(weights, jnp.eye(2), chances, jnp.full((2, 2), 0.5)), None
