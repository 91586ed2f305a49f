r"""A network compressed: one target for all layers, ranks that meet it, factors that run.

Each selected weight $W$, of which `survey` finds where it multiplies, is a layer $X \mapsto XW$; a
leaf that holds several matrices (the slices of a loop, the groups of a convolution) is one layer
with one rank for all. Its loss at a rank is the squared error of its outputs over their squared
norm, summed over the rows of the batches and over the matrices,

$$\ell(r) = \frac{\sum\lVert XW - (\tilde XZ_r + \mathbf 1s^\top)\rVert_F^2}{\sum\lVert
XW\rVert_F^2}:$$

the outputs with their mean, but before a bias is added. The shift $s$ keeps the mean of the outputs
what it was; where activations are complex, it is zero. For a method that does not look at the data
the loss is $\lVert W - Z_r\rVert_F^2/\lVert W\rVert_F^2$, and nothing is shifted. $W$ is the weight
as it is stored, and $Z_r$ and $s$ are as they are returned: the factors are balanced and rounded to
its dtype before the loss is computed, in float64.

In a first phase the losses at all ranks are found and the ranks chosen; a budget is spent so that
the sum of the losses is least (`allocation`). The second phase makes the factors. On its own, a
layer is fitted to what it sees in the original network, $\tilde X = X$. In sequence, layer after
layer in the order of execution, it is fitted from what it sees in the network compressed so far to
what it gave in the original one (paper_notes/network_composition.md). The matrices of a stack are
fitted together: what they see is compressed as far as the layers before the stack are.
"""

import dataclasses
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from lowrank_theory._numerics import check_count
from lowrank_theory.approximations import Storage
from lowrank_theory.networks._fits import Fit, Fitter, Made, stored_dtype
from lowrank_theory.networks._follow import is_array
from lowrank_theory.networks._passes import blocks_of
from lowrank_theory.networks._targets import (
    AbstractBudget,
    AbstractRankTarget,
    AbstractTarget,
)
from lowrank_theory.networks._targets import Bytes as Bytes
from lowrank_theory.networks._targets import IdealBits as IdealBits
from lowrank_theory.networks._targets import LayerError as LayerError
from lowrank_theory.networks._targets import MultiplyAdds as MultiplyAdds
from lowrank_theory.networks._targets import Parameters as Parameters
from lowrank_theory.networks._targets import RankRule as RankRule
from lowrank_theory.networks._tied import Tied, settled, tied_leaves
from lowrank_theory.networks._views import MatrixView
from lowrank_theory.networks.allocation import Options, allocate
from lowrank_theory.networks.observe import Listener, Site, by_reason, nothing_followed
from lowrank_theory.networks.replace import leaves_by_path, replace
from lowrank_theory.recovery import AbstractNestedMethod, ActivationWeighted, TruncatedSVD

# --- what comes out ------------------------------------------------------------------------------

DATA_DRIVEN = ActivationWeighted()


@dataclasses.dataclass(frozen=True)
class CompressedLayer:
    r"""What became of a layer.

    - `rank`, or `None` where it stays dense, and then `remark` says why;
    - `relative_error`: $\sqrt{\ell(r)}$ on the calibration batches, of the factors and the shift as
      they are returned; zero where it stays dense. In sequence it is the error with all layers
      before compressed;
    - `certified`: whether all rounding, that of these numbers too, surely cost no more than 0.1 %
      of the best error, or $10^{-10}$ of the outputs. Otherwise second moments do not resolve this
      layer, or its dtype is too coarse for so small an error;
    - `multiply_adds` for one batch like the first; `dense_...`: what it was before.

    Of several leaves that are one array, all counts are with the first.
    """

    view: MatrixView
    rank: int | None
    remark: str
    relative_error: float
    certified: bool
    parameters: int
    dense_parameters: int
    multiply_adds: int
    dense_multiply_adds: int


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Compressed:
    """A compressed network: `compressed.function(compressed.parameters, batch)`.

    - `layers`: the selected weights by path, in the order of execution, those left dense too. The
      counts are of these, but for those of other leaves;
    - `provenance`: how it was made, ready for JSON: `target`, `method`, `sequential`, `passes`, the
      sum of all relative `squared_errors`, and why selected leaves were `not_followed`. Under a
      budget also what was `planned`, that sum with each layer on its own, and a `lower_bound` on it
      for all ranks within the budget.

    `print` shows all of this, and what is kept as a share of the weights followed and of all.
    """

    function: Callable[..., Any]
    parameters: PyTree
    layers: Mapping[str, CompressedLayer]
    provenance: Mapping[str, Any]

    @property
    def parameter_count(self) -> int:
        """How many numbers the layers hold, shifts included."""
        return sum(layer.parameters for layer in self.layers.values())

    @property
    def dense_parameter_count(self) -> int:
        """How many they held."""
        return sum(layer.dense_parameters for layer in self.layers.values())

    @property
    def storage_bytes(self) -> int:
        """How many bytes the numbers take."""
        return self._bytes(lambda layer: layer.parameters)

    @property
    def dense_storage_bytes(self) -> int:
        """How many they took, in the same dtypes."""
        return self._bytes(lambda layer: layer.dense_parameters)

    @property
    def other_parameter_count(self) -> int:
        """How many numbers there are besides, in leaves that are no layers."""
        return sum(leaf.size for leaf in self._others())

    @property
    def other_storage_bytes(self) -> int:
        """How many bytes these take."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in self._others())

    @property
    def not_followed(self) -> Mapping[str, str]:
        """Why each other selected leaf is no layer, by its path. They stay as they are."""
        return self.provenance.get("not_followed", {})

    @property
    def multiply_adds(self) -> int:
        """How many multiplications the layers take for one batch."""
        return sum(layer.multiply_adds for layer in self.layers.values())

    @property
    def dense_multiply_adds(self) -> int:
        """How many they took."""
        return sum(layer.dense_multiply_adds for layer in self.layers.values())

    def _bytes(self, count: Callable[[CompressedLayer], int]) -> int:
        stored = leaves_by_path(self.parameters)
        return sum(
            count(layer) * stored[path].dtype.itemsize for path, layer in self.layers.items()
        )

    def _others(self) -> Iterable[Any]:
        """The arrays that are no layers, each once."""
        stored = leaves_by_path(self.parameters).items()
        return {id(x): x for path, x in stored if path not in self.layers and is_array(x)}.values()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the compressed network to a safetensors file, all or nothing. `load_compressed`
        reads it.
        """
        from lowrank_theory.networks._compressed_file import write

        write(self, path)

    def __repr__(self) -> str:
        rows = [
            (
                path,
                " x ".join(map(str, layer.view.matrix_shape)),
                "dense" if layer.rank is None else f"rank {layer.rank}",
                layer.remark
                if layer.rank is None
                else f"error {layer.relative_error:.2%}"
                + ("" if layer.certified else ", not certified")
                + (f"; {layer.remark}" if layer.remark else ""),
            )
            for path, layer in self.layers.items()
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        numbers, size = self.other_parameter_count, self.other_storage_bytes
        counts = {
            "parameters": (self.parameter_count, self.dense_parameter_count, numbers),
            "bytes": (self.storage_bytes, self.dense_storage_bytes, size),
        }
        shares = [
            f"{kept / dense:.1%} of {dense:,} {what} in the weights followed, "
            f"{(kept + other) / (dense + other):.1%} of all {dense + other:,}"
            for what, (kept, dense, other) in counts.items()
        ]
        kept, dense = self.multiply_adds, self.dense_multiply_adds
        shares.append(f"{kept / max(dense, 1):.1%} of {dense:,} multiply-adds of these weights")
        reasons = {path: (why,) for path, why in self.not_followed.items()}
        others = by_reason(reasons) if reasons else []
        return "\n".join([*shares, *(f"  {line}" for line in lines), *others])


# --- compressing ---------------------------------------------------------------------------------


def compress(
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    batches: Iterable[PyTree],
    target: AbstractTarget,
    *,
    method: AbstractNestedMethod = DATA_DRIVEN,
    sequential: bool = False,
    select: Callable[[str], bool] | None = None,
    passes: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Compressed:
    """Compress the weights of `function(parameters, batch)`.

    ```python
    compressed = compress(function, parameters, batches, Parameters(0.5))
    outputs = jax.jit(compressed.function)(compressed.parameters, batch)
    ```

    The target is a budget (`Parameters`, `Bytes`, `MultiplyAdds`), `LayerError` or `RankRule`. What
    is a weight and what it sees is found as by `observe`; `select`, a predicate of the path, says
    which weights may be compressed, and their cost is what a share is a share of. The method is
    `ActivationWeighted()` or, without a look at the data, `TruncatedSVD()`. `batches` is gone
    through again and again: a list, or anything else that begins anew.

    Where factors would not save anything a layer stays dense, and says so; so it does where they
    are not finite in the dtype of the weight, and where that is too coarse for a `LayerError`. All
    selected leaves that are no weights are listed with the reason. One array at several leaves is
    one weight: it is replaced at all of them, by the same factors, or at none.

    In memory are the statistics of a block of layers, as many as half of what is free holds, with
    one pass over the data for each block; and all layers, at the largest rank that saves anything,
    until the ranks are chosen. With `sequential`, a second phase takes one pass for each input that
    weights see, or at most `passes`: then several layers at once are fitted to what they see in the
    network as it was before them. That can cost most of what the sequence gains: a ResNet-32 with
    one pass for each input kept 88.4 % accuracy, and 81.7 % with 8. A warning says where it is so.
    `progress(path, done, total)` is called after each layer of a phase.

    Raises `ValueError` for what `observe` refuses, for batches that can be gone through only once,
    a budget that cannot be met, naming the weights that cannot be replaced, and statistics that do
    not fit into memory.
    """
    _check(target, method, sequential, passes)
    chosen = select or (lambda _: True)
    tied = tied_leaves(parameters, chosen)
    listener = Listener(function, parameters, select, tied)
    survey = settled(listener.survey(_first(batches)), tied, chosen)
    if not survey:
        raise nothing_followed(survey.not_followed)
    leaves = leaves_by_path(parameters)
    remarks = {path: f"it cannot be replaced: {why[0]}" for path, why in survey.remarks.items()}
    fitter = Fitter(listener, survey, tied, leaves, batches, method, remarks)
    free = [path for path in survey if path not in remarks]
    blocks = blocks_of(survey, free, moments=1) if fitter.looks else [free]
    later = blocks_of(survey, free, moments=3, passes=passes or len(free)) if sequential else []
    _warn_of_few(passes, len({survey[path].group for path in free}))
    steps = itertools.count(1)

    def step(path: str) -> None:
        if progress is not None:
            progress(path, next(steps), (1 + sequential) * len(free))

    costs = {path: _costs(target, survey[path], leaves[path], fitter.looks) for path in survey}
    most = {path: each.cheaper for path, each in costs.items()}
    wanted: dict[str, int] = {}
    fits: dict[str, Fit] = {}
    for block in blocks:
        for path, matrices, fit in fitter.fits({path: most[path] for path in block}):
            costs[path] = _known(costs[path], fit)
            rank = min(1, most[path])
            if isinstance(target, AbstractRankTarget):
                wanted[path] = rank = max(1, target.rank(fit.surely, matrices))
            if rank > fit.largest:
                remarks[path] = _missed(rank, most[path], fit)
            if not sequential:
                fits[path] = fit
            step(path)
    ranks, bound = _ranks(target, costs, wanted, remarks)

    made = {path: fit.at(ranks[path]) for path, fit in fits.items() if path in ranks}
    for block in later:
        asked = {path: ranks[path] for path in block if path in ranks}
        if isinstance(target, LayerError):
            asked = {path: most[path] for path in asked}
        so_far = replace(function, parameters, _factors(made, tied)) if made else None
        for path, matrices, fit in fitter.fits(asked, so_far):
            rank = ranks[path]
            if isinstance(target, LayerError):
                rank = max(1, target.rank(fit.surely, matrices))
            if rank <= fit.largest:
                made[path] = fit.at(rank)
                continue
            remarks[path] = f"in sequence, {_missed(rank, most[path], fit)}"
            if isinstance(target, AbstractBudget):
                raise ValueError(
                    f"The budget cannot be kept: of {path}, {remarks[path]}. Leave it out by "
                    "`select`, or `sequential` out."
                )
        for path in block:
            step(path)

    layers: dict[str, CompressedLayer] = {}
    for path in survey:
        layers[path] = one = _layer(survey[path], made.get(path), remarks.get(path, ""))
        for other in tied.get(path, ()):
            layers[other] = _counted_with(one, path)
    provenance = {
        "target": str(target),
        "method": str(method),
        "sequential": sequential,
        "passes": passes,
        "squared_errors": sum(each.relative_error**2 for each in made.values()),
        "not_followed": {path: "; ".join(why) for path, why in survey.not_followed.items()},
        **bound,
    }
    if not made:
        return Compressed(function, parameters, layers, provenance)
    return Compressed(*replace(function, parameters, _factors(made, tied)), layers, provenance)


def _check(target: Any, method: Any, sequential: bool, passes: int | None) -> None:
    if not isinstance(target, AbstractTarget):
        raise ValueError(
            "`target` must be a budget such as `Parameters(0.5)`, or `LayerError` or `RankRule`; "
            f"got {target!r}."
        )
    if not isinstance(method, AbstractNestedMethod):
        raise ValueError(
            "`method` must be one whose ranks are nested, `ActivationWeighted()` or "
            f"`TruncatedSVD()`; got {method!r}."
        )
    if sequential and isinstance(method, TruncatedSVD):
        raise ValueError("`TruncatedSVD` does not look at the data: leave `sequential` out.")
    if passes is not None:
        passes = check_count("passes", passes, 1)
        if not sequential:
            raise ValueError("`passes` is for `sequential=True`; otherwise memory decides.")


def _warn_of_few(passes: int | None, inputs: int) -> None:
    if passes is not None and passes < inputs:
        warnings.warn(
            f"`passes` is {passes}, and the weights see {inputs} inputs: those fitted in one pass "
            "do not see each other compressed, which can cost most of what a sequence gains. Leave "
            f"`passes` out, or allow {inputs}.",
            stacklevel=3,
        )


def _first(batches: Iterable[PyTree]) -> PyTree:
    try:
        begun = iter(batches)
    except TypeError:
        begun = batches
    if begun is batches:
        raise ValueError(
            "`batches` must be a list, or anything else that can be gone through more than once; "
            f"got {type(batches).__name__}."
        )
    for batch in begun:
        return batch
    raise ValueError("`batches` is empty: give at least one batch.")


# --- layers -----------------------------------------------------------------------------------


def _layer(site: Site, made: Made | None, remark: str) -> CompressedLayer:
    if made is None:
        counts = site.parameters, site.parameters, site.multiply_adds, site.multiply_adds
        return CompressedLayer(site.view, None, remark, 0.0, True, *counts)
    return CompressedLayer(
        site.view,
        made.rank,
        remark,
        made.relative_error,
        made.certified,
        sum(leaf.size for leaf in jax.tree.leaves(made.factors)),
        site.parameters,
        site.rows * _per_rank(site) * made.rank,
        site.multiply_adds,
    )


def _counted_with(layer: CompressedLayer, path: str) -> CompressedLayer:
    """Of another leaf that is the same array."""
    nothing = dict.fromkeys(
        ("parameters", "dense_parameters", "multiply_adds", "dense_multiply_adds"), 0
    )
    return dataclasses.replace(layer, remark=f"tied, one array with {path}", **nothing)


def _factors(made: Mapping[str, Made], tied: Tied) -> dict[str, Any]:
    """What stands for each leaf."""
    return {
        leaf: each.factors for path, each in made.items() for leaf in (path, *tied.get(path, ()))
    }


# --- ranks ---------------------------------------------------------------------------------------


def _per_rank(site: Site) -> int:
    """How many numbers each rank takes in the factors of all matrices of a layer."""
    *stack, inputs, outputs = site.view.matrix_shape
    return math.prod(stack) * (inputs + outputs)


def _full(site: Site) -> int:
    """The rank that no matrix of a layer exceeds."""
    return min(site.view.matrix_shape[-2:])


def _costs(target: AbstractTarget, site: Site, leaf: Any, shifted: bool) -> Options:
    """What the ranks from one on cost; what they lose is not known yet."""
    itemsize = stored_dtype(leaf).itemsize

    def cost(numbers: int, shift: int = 0) -> int:
        storage = Storage.of_floats(numbers, itemsize, multiply_adds=numbers)
        return target.cost(storage + Storage.of_floats(shift, itemsize), site.rows)

    *stack, _, outputs = site.view.matrix_shape
    fixed, each = math.prod(stack) * outputs if shifted else 0, _per_rank(site)
    costs = [cost(rank * each, fixed) for rank in range(1, _full(site) + 1)]
    return Options(np.array(costs), np.zeros(len(costs)), cost(site.parameters))


def _known(costs: Options, fit: Fit) -> Options:
    """The options whose losses are known: the ranks that were fitted."""
    losses = fit.measured.squares[1:]
    return Options(costs.costs[: len(losses)], losses, costs.dense)


def _missed(rank: int, most: int, fit: Fit) -> str:
    """Why a layer cannot have this rank, `most` being the largest that saves anything."""
    dtype = fit.left.dtype
    if rank <= most:
        return f"its factors are not finite in {dtype}"
    reason, error = f"rank {rank} would save nothing", float(fit.measured.squares[-1])
    if error > 1.01 * float(fit.exact[fit.largest]):
        reason += f"; rounded to {dtype}, rank {fit.largest} errs by {math.sqrt(error):.2%}"
    return reason


def _ranks(
    target: AbstractTarget,
    costs: dict[str, Options],
    wanted: dict[str, int],
    remarks: dict[str, str],
) -> tuple[dict[str, int], dict[str, float]]:
    """The ranks of the layers that do not stay dense, and what is known of the best ones. It adds
    to `remarks` why a layer stays dense.
    """
    if not isinstance(target, AbstractBudget):
        return {path: rank for path, rank in wanted.items() if path not in remarks}, {}
    for path, options in costs.items():
        if path in remarks:  # it was not fitted
            costs[path] = Options(options.costs[:0], options.losses[:0], options.dense)
        elif not options.cheaper:
            remarks[path] = "no rank saves anything"
    budget = target.share * sum(options.dense for options in costs.values())
    try:
        allocation = allocate(list(costs.values()), budget)
    except ValueError as error:
        stay = "".join(f" {path} stays as it is: {why}." for path, why in remarks.items())
        raise ValueError(f"{error}{stay}") from None
    chosen = zip(costs, allocation.chosen, strict=True)
    ranks = {path: option + 1 for path, option in chosen if option is not None}
    for path in costs.keys() - ranks:
        remarks.setdefault(path, "the budget is better spent on it as it is")
    return ranks, {"planned": allocation.loss, "lower_bound": allocation.lower_bound}
