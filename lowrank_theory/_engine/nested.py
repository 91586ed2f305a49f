r"""One compressed network, every smaller size.

The first r of the columns and rows of nested factors $LR$ are the factors of rank r
(`recovery.every_rank`). So a network that holds the largest holds all smaller ones, and what has to
be kept beside is small: what each rank costs and loses, and the means $\bar xW$ and $\bar xL$, of
which the shift that keeps the mean output is made at every rank,

$$s_r = \bar xW - \sum_{j\le r}(\bar xL)_j\,R_j.$$

The ranks of a smaller share are allocated exactly (`allocation`) among those that are kept. Layer i
is kept at rank $k_i$ and cost $c_i(k_i)$. It can be had at ranks up to this one, and not dense; so
it is one that costs $c_i(k_i)$ as it is, and at rank r loses $\ell_i(r) - \ell_i(k_i)$ more. A
layer that is kept dense stays so.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer

from lowrank_theory._engine.allocation import Options, allocate_up_to
from lowrank_theory._numerics import check_fraction, float64
from lowrank_theory.approximations import Affine, LowRank


@dataclasses.dataclass(frozen=True, eq=False)
class Means:
    r"""The mean outputs $\bar xW$ of each matrix of a layer, and the means $\bar xL$ behind its
    left factor: zeros where no shift keeps a mean. In float64.
    """

    outputs: Float[np.ndarray, "slices outputs"]
    behind: Float[np.ndarray, "slices rank"]

    def shifts(
        self, right: Float[np.ndarray, "slices rank outputs"]
    ) -> Float[np.ndarray, "slices ranks outputs"]:
        """Those of each rank from 0, with the right factor as it is stored."""
        with np.errstate(all="ignore"):
            steps = self.behind[..., None] * np.asarray(right, np.float64)
            start = np.zeros_like(self.outputs)[:, None]
            passed = np.cumsum(np.concatenate([start, steps], axis=1), axis=1)
            return self.outputs[:, None] - passed

    def cut(self, rank: int) -> "Means":
        """Behind the factor of a smaller rank."""
        return Means(self.outputs, self.behind[:, :rank])


@dataclasses.dataclass(frozen=True, eq=False)
class Ranks:
    """A layer at each rank from 1 to the one that is kept: its relative squared errors, `losses`,
    and whether they are `certified` (`CompressedLayer`); and the `means` of the shifts, if any.
    """

    losses: Float[np.ndarray, " rank"]
    certified: Bool[np.ndarray, " rank"]
    means: Means | None

    def cut(self, rank: int) -> "Ranks":
        """Up to a smaller rank."""
        means = self.means and self.means.cut(rank)
        return Ranks(self.losses[:rank], self.certified[:rank], means)


@dataclasses.dataclass(frozen=True, eq=False)
class NestedLayer:
    """What a layer costs dense, and what its ranks cost, in increasing order; the `ranks`, `None`
    where it stays dense; and the other leaves that are the same array.
    """

    dense: int
    costs: Integer[np.ndarray, " rank"]
    ranks: Ranks | None
    tied: tuple[str, ...]

    def __post_init__(self) -> None:
        losses = np.zeros(0) if self.ranks is None else self.ranks.losses
        if self.costs.shape != losses.shape:
            raise ValueError(f"{len(self.costs)} costs for {len(losses)} losses")

    @property
    def rank(self) -> int | None:
        """The one that is kept; `None` for a dense layer."""
        return len(self.costs) or None

    @property
    def least(self) -> int:
        """What it costs at rank 1, or dense."""
        return int(self.costs[0]) if self.rank else self.dense

    @property
    def options(self) -> Options:
        """The ranks up to the one that is kept."""
        losses = np.zeros(0) if self.ranks is None else self.ranks.losses
        return Options(self.costs, losses, self.dense)

    def cut(self, rank: int) -> "NestedLayer":
        """Kept at a smaller rank."""
        assert self.ranks is not None
        return dataclasses.replace(self, costs=self.costs[:rank], ranks=self.ranks.cut(rank))


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The rank of each layer that is not dense; what all lose in sum, and what no other ranks
    within the share lose less than.
    """

    ranks: Mapping[str, int]
    loss: float
    lower_bound: float


@dataclasses.dataclass(frozen=True, eq=False)
class Nested:
    """What a network compressed to a share by a nested method may become: the name of its `budget`,
    the `share`, and the layers by path.
    """

    budget: str
    share: float
    layers: Mapping[str, NestedLayer]

    def at(self, share: float) -> Ranked:
        """The best ranks at a share of what the layers cost dense. Raises `ValueError` for a share
        above the one that is kept, or below what rank 1 costs.
        """
        share = check_fraction("share", share)
        if share > self.share:
            raise ValueError(
                f"`share` is {share:g}, and the network is kept at {self.share:g}: compress it "
                "to the largest share that will be asked for."
            )
        layers = self.layers.values()
        dense = sum(each.dense for each in layers)
        least = sum(each.least for each in layers)
        if share * dense < least:
            stay = [path for path, each in self.layers.items() if not each.rank]
            also = f", and {', '.join(stay)} dense" if stay else ""
            raise ValueError(
                f"`share` is {share:g}, which cannot be met: kept are factors, at least of rank "
                f"1{also}, a share of {np.ceil(1e4 * least / dense) / 1e4:g}. Compressed with "
                "`every_size`, no layer stays dense of which a rank saves anything."
            )
        last = [each.rank and each.rank - 1 for each in layers]
        found = allocate_up_to([each.options for each in layers], last, share * dense)
        chosen = zip(self.layers, found.chosen, strict=True)
        ranks = {path: option + 1 for path, option in chosen if option is not None}
        return Ranked(ranks, found.loss, found.lower_bound)

    def cut(self, share: float, ranks: Mapping[str, int]) -> "Nested":
        """Kept at these ranks."""
        layers = {p: each.cut(ranks[p]) if p in ranks else each for p, each in self.layers.items()}
        return Nested(self.budget, share, layers)


def sliced(given: Any, rank: int, means: Means | None) -> Any:
    """The layer of this rank: leading slices of factors, in NumPy as JAX would compile each size
    anew, and the shift of that rank.
    """
    factors = given.factors if isinstance(given, Affine) else given
    with float64():
        left, right = np.asarray(factors.left), np.asarray(factors.right)
        left, right = left[..., :rank], right[..., :rank, :]
        smaller = LowRank(jnp.asarray(left), jnp.asarray(right))
        if means is None:
            return smaller
        shifts = means.shifts(right.reshape(-1, *right.shape[-2:]))[:, -1]
        shape = (*right.shape[:-2], right.shape[-1])
        with np.errstate(all="ignore"):
            return Affine(smaller, jnp.asarray(shifts.astype(right.dtype).reshape(shape)))


# --- in a file -----------------------------------------------------------------------------------

Arrays = dict[str, np.ndarray]
_ARRAYS = ("costs", "losses", "certified", "outputs", "behind")


def packed(nested: Nested) -> tuple[dict[str, Any], Arrays]:
    """A description for JSON, and arrays by name."""
    arrays: Arrays = {}
    for path, layer in nested.layers.items():
        if (ranks := layer.ranks) is None:
            continue
        found = {"costs": layer.costs, "losses": ranks.losses, "certified": ranks.certified}
        if ranks.means is not None:
            found |= {"outputs": ranks.means.outputs, "behind": ranks.means.behind}
        arrays |= {_name(path, each): np.ascontiguousarray(a) for each, a in found.items()}
    layers = {path: {"dense": e.dense, "tied": e.tied} for path, e in nested.layers.items()}
    return {"budget": nested.budget, "share": nested.share, "layers": layers}, arrays


def unpacked(what: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Nested:
    """What was packed. Raises an error of lookup, type or value for anything else."""
    layers = {}
    for path, each in what["layers"].items():
        kept = {name: arrays[full] for name in _ARRAYS if (full := _name(path, name)) in arrays}
        ranks, costs = None, kept.get("costs", np.zeros(0, np.int64))
        if "costs" in kept:
            means = Means(kept["outputs"], kept["behind"]) if "behind" in kept else None
            ranks = Ranks(kept["losses"], kept["certified"], means)
        layers[path] = NestedLayer(int(each["dense"]), costs, ranks, tuple(each["tied"]))
    return Nested(what["budget"], check_fraction("share", what["share"]), layers)


def _name(path: str, each: str) -> str:
    """Beside the arrays of a leaf, of which none is so called."""
    return f"{path} at every rank: {each}"
