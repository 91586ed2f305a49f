"""Parameters made smaller to a level between 0 and 1, while a network is trained and while it runs.

At level 1 all is kept. The level may be a traced number, so one compiled program serves all of
them: what is removed is set to zero.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from lowrank_theory._engine.replace import leaves_by_path, with_leaves
from lowrank_theory._numerics import AnyArray, Number, check_fraction, settle
from lowrank_theory.approximations import Affine, LowRank

Level = float | Float[Array, ""] | Float[Array, " paths"]


class AbstractCompressor(eqx.Module):
    """Makes the leaves at its `paths` smaller (each as `jax.tree_util.keystr` writes it)."""

    paths: eqx.AbstractVar[tuple[str, ...]]

    @abc.abstractmethod
    def size(self, level: Level) -> Any:
        """What a level is in the compressor's own unit."""

    @abc.abstractmethod
    def compressed(self, leaf: Any, level: Level) -> Any:
        """A leaf at a level."""

    def __call__(self, parameters: PyTree, level: Level) -> PyTree:
        """The parameters at a level, or at one for each path. Raises `ValueError` for paths that
        there are not.
        """
        leaves = leaves_by_path(parameters)
        missing = [path for path in self.paths if path not in leaves]
        if missing:
            raise ValueError(
                f"`paths` has {', '.join(missing)}, which is no leaf of `parameters`: "
                f"{', '.join(leaves)}."
            )
        levels = jnp.broadcast_to(jnp.asarray(level), (len(self.paths),))
        pairs = zip(self.paths, levels, strict=True)
        return with_leaves(parameters, {p: self.compressed(leaves[p], each) for p, each in pairs})


class KeepAll(AbstractCompressor):
    """Nothing is compressed: the baseline."""

    paths: tuple[str, ...] = ()

    def size(self, level: Level) -> Any:
        return level

    def compressed(self, leaf: Any, level: Level) -> Any:
        return leaf


class Pruned(AbstractCompressor):
    r"""Of $n$ entries of a leaf exactly $\lfloor(1-k)n\rfloor$, those of least magnitude, are zero:
    the level is the share $k$ that is kept. No gradient passes where an entry is zero.
    """

    paths: tuple[str, ...]

    def size(self, level: Level) -> Any:
        """The share that is kept."""
        return level

    def compressed(self, leaf: Any, level: Level) -> Any:
        flat = jnp.abs(leaf).reshape(-1)
        order = jnp.argsort(jnp.argsort(jax.lax.stop_gradient(flat)))
        removed = jnp.floor((1 - level) * flat.size).astype(order.dtype)
        return leaf * (order >= removed).reshape(leaf.shape)


class Rounded(AbstractCompressor):
    r"""Each leaf takes $2^b$ values on a grid from its least to its largest entry, in which zero is
    one: 2 bits and `more` times the level, 8 bits at level 1. Gradients pass as if nothing were
    rounded.
    """

    paths: tuple[str, ...]
    more: int = 6

    def size(self, level: Level) -> Any:
        """Bits."""
        return jnp.round(2 + self.more * jnp.asarray(level))

    def compressed(self, leaf: Any, level: Level) -> Any:
        leaf = jnp.asarray(leaf)
        return rounded(leaf, self.size(level), leaf.min(), leaf.max())


class Narrowed(AbstractCompressor):
    r"""Of $C$ channels, the last axis of each leaf, the first $\max(1, \operatorname{round}(wC))$
    are kept: the width $w$ goes from `least` at level 0 to 1. Where kernels, scales and shifts of a
    layer are narrowed together, and each channel is normalised by itself, it is the network with
    fewer channels.
    """

    paths: tuple[str, ...]
    least: float = 0.25

    def __check_init__(self) -> None:
        settle(self, "least", check_fraction)

    def size(self, level: Level) -> Any:
        """The width."""
        return self.least + (1 - self.least) * level

    def compressed(self, leaf: Any, level: Level) -> Any:
        return leaf * _first(leaf.shape[-1], self.size(level))


class Truncated(AbstractCompressor):
    r"""Of factors of rank $R$ the first $\max(1, \operatorname{round}(\rho R))$ are kept: the level
    is the share $\rho$. The leaves are `LowRank`, or `Affine` with one, as `compress` makes them.
    """

    paths: tuple[str, ...]

    def size(self, level: Level) -> Any:
        """The share of the rank."""
        return level

    def compressed(self, leaf: Any, level: Level) -> Any:
        factors = leaf.factors if isinstance(leaf, Affine) else leaf
        if not isinstance(factors, LowRank):
            raise ValueError(
                f"`Truncated` is for factors, such as a `LowRank`; got a {type(leaf).__name__}. "
                "Put factors in the place of the weight by `networks.replace`."
            )
        smaller = LowRank(factors.left * _first(factors.rank, level), factors.right)
        return Affine(smaller, leaf.shift) if isinstance(leaf, Affine) else smaller


def rounded(
    values: Float[AnyArray, "..."], bits: Number, least: Number, largest: Number
) -> Float[Array, "..."]:
    """Each value at the nearest of $2^b$ on a grid from the least to the largest, widened to hold
    zero, which is one of them; what lies beyond is at its end. Gradients pass as if nothing were
    rounded.

    Raises `ValueError` for less than one bit, and where the least is larger than the largest;
    traced ones are taken as they are.
    """
    known = not any(isinstance(each, Tracer) for each in (bits, least, largest))
    if known and (float(bits) < 1 or float(least) > float(largest)):
        raise ValueError(
            "`bits` must be one or more, and `least` no larger than `largest`; got "
            f"{bits}, {least} and {largest}."
        )
    fixed, least, largest = jax.lax.stop_gradient((values, least, largest))
    least, largest = jnp.minimum(least, 0), jnp.maximum(largest, 0)
    half = 2 ** (bits - 1)
    step = (largest - least) / (2 * half - 1)
    step = jnp.where(step > 0, step, 1)
    zero = jnp.clip(jnp.round(-half - least / step), -half, half - 1)
    codes = jnp.clip(jnp.round(fixed / step) + zero, -half, half - 1)
    return jnp.asarray(values) + ((codes - zero) * step - fixed)


def _first(count: int, share: Level) -> Float[Array, " count"]:
    """Ones for a share of so many, at least one, then zeros."""
    kept = jnp.maximum(jnp.round(jnp.asarray(share) * count), 1)
    return (jnp.arange(count) < kept).astype(jnp.float32)
