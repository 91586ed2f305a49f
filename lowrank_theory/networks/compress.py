r"""A network compressed: one target for all layers, ranks that meet it, factors that run.

Each selected weight $W$, of which `survey` finds where it multiplies, is a layer $X \mapsto XW$; a
leaf that holds several matrices (the slices of a loop, the groups of a convolution) is one layer
with one rank for all. Its loss at a rank is the squared error of its outputs over their squared
norm, summed over the rows of the batches and over the matrices,

$$\ell(r) = \frac{\sum\lVert XW - (\tilde XZ_r + \mathbf 1s^\top)\rVert_F^2}{\sum\lVert
XW\rVert_F^2}:$$

the outputs with their mean, but before a bias is added. The shift $s$ keeps the mean of the outputs
what it was. For a method that does not look at the data the loss is $\lVert W -
Z_r\rVert_F^2/\lVert W\rVert_F^2$, and nothing is shifted.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from lowrank_theory._numerics import check_count
from lowrank_theory.calibration import Calibration
from lowrank_theory.networks._passes import blocks_of
from lowrank_theory.networks._targets import (
    AbstractBudget,
    AbstractRankTarget,
    AbstractTarget,
)
from lowrank_theory.networks._targets import Bytes as Bytes
from lowrank_theory.networks._targets import LayerError as LayerError
from lowrank_theory.networks._targets import MultiplyAdds as MultiplyAdds
from lowrank_theory.networks._targets import Parameters as Parameters
from lowrank_theory.networks._targets import RankRule as RankRule
from lowrank_theory.networks._views import MatrixView
from lowrank_theory.networks.allocation import LossCurve, allocate
from lowrank_theory.networks.observe import Listener, Site, Survey
from lowrank_theory.networks.replace import AffineLowRank, leaves_by_path, replace
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import (
    AbstractNestedMethod,
    ActivationWeighted,
    EveryRank,
    LowRank,
    TruncatedSVD,
    every_rank,
)

# --- what comes out ------------------------------------------------------------------------------

DATA_DRIVEN = ActivationWeighted()


@dataclasses.dataclass(frozen=True)
class CompressedLayer:
    r"""What became of a layer.

    - `rank`, or `None` where it stays dense, and then `remark` says why;
    - `relative_error`: $\sqrt{\ell(r)}$ on the calibration batches, zero where it stays dense. In
      sequence it is the error with all layers before compressed;
    - `certified`: whether rounding surely cost no more than 0.1 % of the best error. Otherwise
      second moments do not resolve this layer;
    - `multiply_adds` for one batch like the first; `dense_...`: what it was before.
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

    - `layers`: the selected weights by path, in the order of execution, those left dense too. All
      counts are of these;
    - `provenance`: how it was made, ready for JSON: `target`, `method`, `sequential`, `passes`, and
      the sum of all relative `squared_errors`. Under a budget also what was `planned`, that sum
      with each layer on its own, and a `lower_bound` on it for all ranks within the budget.
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
        """How many they took."""
        return self._bytes(lambda layer: layer.dense_parameters)

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
        counts = {
            "parameters": (self.parameter_count, self.dense_parameter_count),
            "bytes": (self.storage_bytes, self.dense_storage_bytes),
            "multiply-adds": (self.multiply_adds, self.dense_multiply_adds),
        }
        shares = (f"{n / dense:.1%} of {dense:,} {what}" for what, (n, dense) in counts.items())
        return "\n".join([", ".join(shares), *(f"  {line}" for line in lines)])


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

    Where factors would not save anything a layer stays dense, and says so. In memory are the
    statistics of a block of layers, as many as half of what is free holds, with one pass over the
    data for each block; and all layers at full rank until the ranks are chosen. With `sequential`,
    a second phase takes one pass for each input that weights see, or at most `passes`: then several
    layers at once are fitted to what they see in the network as it was before them.
    `progress(path, done, total)` is called after each layer of a phase.

    Raises `ValueError` for what `observe` refuses, for batches that can be gone through only once,
    a budget that cannot be met, and statistics that do not fit into memory.
    """
    _check(target, method, sequential, passes)
    listener = Listener(function, parameters, select)
    survey = listener.survey(_first(batches))
    leaves = leaves_by_path(parameters)
    remarks = {path: f"it cannot be replaced: {why[0]}" for path, why in survey.remarks.items()}
    job = _Job(listener, survey, leaves, batches, method, remarks)
    free = [path for path in survey if path not in remarks]
    blocks = blocks_of(survey, free, moments=1) if job.looks else [free]
    later = blocks_of(survey, free, moments=3, passes=passes or len(free)) if sequential else []
    steps = itertools.count(1)

    def step(path: str) -> None:
        if progress is not None:
            progress(path, next(steps), (1 + sequential) * len(free))

    curves = {path: _curve(target, survey[path], leaves[path], job.looks) for path in survey}
    wanted: dict[str, int] = {}
    fits: dict[str, _Fit] = {}
    for block in blocks:
        for path, matrices, fit in job.fits(block):
            curves[path] = dataclasses.replace(curves[path], losses=fit.losses)
            if isinstance(target, AbstractRankTarget):
                wanted[path] = max(1, target.rank(fit.losses, matrices))
            if not sequential:
                fits[path] = fit
            step(path)
    ranks, bound = _ranks(target, curves, wanted, remarks)

    made = {path: fit.at(ranks[path]) for path, fit in fits.items() if path in ranks}
    for block in later:
        asked = [path for path in block if path in ranks]
        factors = {path: each.factors for path, each in made.items()}
        so_far = replace(function, parameters, factors) if factors else None
        made |= {path: fit.at(ranks[path]) for path, _, fit in job.fits(asked, so_far)}
        for path in block:
            step(path)

    layers = {path: _layer(survey[path], made.get(path), remarks.get(path, "")) for path in survey}
    provenance = {
        "target": str(target),
        "method": str(method),
        "sequential": sequential,
        "passes": passes,
        "squared_errors": sum(layer.relative_error**2 for layer in layers.values()),
        **bound,
    }
    if not made:
        return Compressed(function, parameters, layers, provenance)
    factors = {path: each.factors for path, each in made.items()}
    return Compressed(*replace(function, parameters, factors), layers, provenance)


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


# --- one layer -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Made:
    factors: LowRank | AffineLowRank
    rank: int
    relative_error: float
    certified: bool


@dataclasses.dataclass(frozen=True)
class _Fit:
    """A layer at all ranks: a sweep for each matrix, and the losses of all together."""

    view: MatrixView
    sweeps: list[EveryRank]
    losses: Float[np.ndarray, " ranks"]

    def at(self, rank: int) -> _Made:
        """Of this rank."""
        stack = self.view.matrix_shape[:-2]
        found = [sweep.at(rank) for sweep in self.sweeps]

        def stacked(arrays: list[Any]) -> np.ndarray:
            return np.stack(arrays).reshape(*stack, *arrays[0].shape)

        factors = LowRank(
            stacked([each.factors.left for each in found]),
            stacked([each.factors.right for each in found]),
        )
        if self.sweeps[0].input_mean is not None:
            factors = AffineLowRank(factors, stacked([each.bias for each in found]))
        certified = all(bool(each.certificate.certified) for each in found)
        return _Made(factors, rank, math.sqrt(self.losses[rank]), certified)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What fits layers to the data. It adds to `remarks` why some cannot be fitted."""

    listener: Listener
    survey: Survey
    leaves: Mapping[str, Any]
    batches: Iterable[PyTree]
    method: AbstractNestedMethod
    remarks: dict[str, str]

    @property
    def looks(self) -> bool:
        """Whether the method looks at the data."""
        return not isinstance(self.method, TruncatedSVD)

    def fits(
        self, block: list[str], compressed: tuple[Callable[..., Any], PyTree] | None = None
    ) -> Iterator[tuple[str, list[Observed], _Fit]]:
        """Some layers at all ranks, after one pass over the data. With a network compressed so far,
        they are fitted to what they see in it.
        """
        seen = None
        if self.looks and block:
            other = Listener(*compressed, block.__contains__) if compressed else None
            seen = self.listener.observe(self.batches, only=block, compressed=other)
        for path in block:
            if seen is not None and path not in seen:
                self.remarks[path] = "; ".join(seen.not_followed[path])
                continue
            view = self.survey[path].view
            slices = seen.slices(path) if seen is not None else itertools.repeat(None)
            matrices = _matrices(path, view, self.leaves[path], slices)
            sweeps = [every_rank(observed, self.method) for observed in matrices]
            yield path, matrices, _Fit(view, sweeps, _losses(path, sweeps, matrices))


def _matrices(
    path: str, view: MatrixView, leaf: Any, slices: Iterable[Calibration | None]
) -> list[Observed]:
    dtype = np.float64 if leaf.dtype == np.float64 else np.float32
    inputs, outputs = view.matrix_shape[-2:]
    weights = view.matrix(np.asarray(leaf)).astype(dtype).reshape(-1, inputs, outputs)
    bias = np.zeros(outputs, dtype)  # so that the layer is affine: its mean output shall not move
    try:
        return [
            Observed(weights=each, bias=bias, calibration=seen)
            for each, seen in zip(weights, slices, strict=False)
        ]
    except ValueError as error:
        raise ValueError(f"`parameters{path}`: {error}") from error


def _losses(
    path: str, sweeps: list[EveryRank], matrices: list[Observed]
) -> Float[np.ndarray, " ranks"]:
    """The relative squared errors at each rank, of all matrices together."""
    errors, norm = np.zeros(1), 0.0
    for sweep, observed in zip(sweeps, matrices, strict=True):
        errors = errors + np.asarray(sweep.errors, np.float64) ** 2
        norm += float(sweep.certificates.target_norm[0]) ** 2
        if sweep.input_mean is not None and observed.calibration is not None:
            mean = np.asarray(sweep.bias, np.float64)  # that of the outputs
            norm += float(observed.calibration.count) * float(mean @ mean)
    if not np.all(np.isfinite(errors)):
        raise ValueError(
            f"What {path} multiplies is too large to be squared, or a decomposition failed. Scale "
            "the batches, or leave it out by `select`."
        )
    return np.minimum.accumulate(errors / norm if norm > 0 else 0 * errors)


def _layer(site: Site, made: _Made | None, remark: str) -> CompressedLayer:
    rank, parameters, multiply_adds = None, site.parameters, site.multiply_adds
    if made is not None:
        rank = made.rank
        parameters = sum(leaf.size for leaf in jax.tree.leaves(made.factors))
        multiply_adds = site.rows * _per_rank(site) * rank
    return CompressedLayer(
        site.view,
        rank,
        remark,
        made.relative_error if made else 0.0,
        made.certified if made else True,
        parameters,
        site.parameters,
        multiply_adds,
        site.multiply_adds,
    )


# --- ranks ---------------------------------------------------------------------------------------


def _per_rank(site: Site) -> int:
    """How many numbers each rank takes in the factors of all matrices of a layer."""
    *stack, inputs, outputs = site.view.matrix_shape
    return math.prod(stack) * (inputs + outputs)


def _curve(target: AbstractTarget, site: Site, leaf: Any, shifted: bool) -> LossCurve:
    """The costs of a layer, whose losses are not known yet: it can only stay dense."""
    itemsize = jax.dtypes.canonicalize_dtype(leaf.dtype).itemsize
    price, shift = target.prices(site, itemsize)
    *stack, _, outputs = site.view.matrix_shape
    fixed = shift * math.prod(stack) * outputs if shifted else 0
    return LossCurve(np.zeros(1), price * _per_rank(site), fixed, price * site.parameters)


def _ranks(
    target: AbstractTarget,
    curves: dict[str, LossCurve],
    wanted: dict[str, int],
    remarks: dict[str, str],
) -> tuple[dict[str, int], dict[str, float]]:
    """The ranks of the layers that do not stay dense, and what is known of the best ones. It adds
    to `remarks` why a layer stays dense.
    """
    ranks: dict[str, int] = {}
    bound: dict[str, float] = {}
    if isinstance(target, AbstractBudget):
        budget = target.share * sum(curve.dense for curve in curves.values())
        allocation = allocate(list(curves.values()), budget)
        chosen = zip(curves, allocation.ranks, strict=True)
        ranks = {path: rank for path, rank in chosen if rank is not None}
        bound = {"planned": allocation.loss, "lower_bound": allocation.lower_bound}
    for path, curve in curves.items():
        rank = wanted.get(path)
        if rank is not None and rank <= curve.paying():
            ranks[path] = rank
        if path not in ranks:
            reason = "the budget is better spent on it as it is"
            if rank is not None:
                reason = f"rank {rank} would save nothing"
            elif not curve.paying():
                reason = "no rank saves anything"
            remarks.setdefault(path, reason)
    return ranks, bound
