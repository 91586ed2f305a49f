"""A compressed network, and what became of each of its layers."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from lowrank_theory._engine.choices import Won
from lowrank_theory._engine.compressed_file import read, write
from lowrank_theory._engine.fits import FittedLayer, storage_of_rank
from lowrank_theory._engine.follow import is_array
from lowrank_theory._engine.nested import Nested, NestedLayer, Ranks, sliced
from lowrank_theory._engine.observation import by_reason
from lowrank_theory._engine.replace import leaves_by_path, replace, with_leaves
from lowrank_theory._engine.targets import AbstractBudget, AbstractTarget
from lowrank_theory._engine.views import MatrixView
from lowrank_theory._engine.weights import Weight
from lowrank_theory.approximations import AbstractApproximation, Affine


@dataclasses.dataclass(frozen=True)
class CompressedLayer:
    r"""What became of a layer.

    - `size` in words, such as `rank 8` or `4 bits`, by which `method`; both `None` where it stays
      dense, and then `remark` says why. `rank` is the number where the size is one;
    - `relative_error`: $\sqrt\ell$ on the calibration batches, of all numbers as they are returned;
      zero where it stays dense. In sequence it is the error with all layers before compressed;
    - `certified`: whether all rounding, that of these numbers too, surely cost no more than 0.1 %
      of the best error of that rank, or $10^{-10}$ of the outputs. Otherwise second moments do not
      resolve this layer, or its dtype is too coarse for so small an error. Of a method whose best
      error is not known: whether `relative_error` is surely right to as much;
    - `parameters`, `bytes` and `multiply_adds`, these for one batch like the first; `dense_...`:
      what it was before;
    - `loss`: where several methods competed under a budget, what this size of this method loses,
      fitted to the first half of the batches, on the second: a relative squared error. Of all sizes
      of the other methods that cost no more, the `rival` method has the one that loses least,
      `rival_loss`. Each is `None` where there is none.

    Of several leaves that are one array, all counts are with the first.
    """

    view: MatrixView
    size: str | None
    method: str | None
    rank: int | None
    remark: str
    relative_error: float
    certified: bool
    parameters: int
    dense_parameters: int
    bytes: int
    dense_bytes: int
    multiply_adds: int
    dense_multiply_adds: int
    loss: float | None = None
    rival: str | None = None
    rival_loss: float | None = None

    @staticmethod
    def of(
        weight: Weight, made: FittedLayer | None, remark: str, won: Won | None
    ) -> "CompressedLayer":
        """A layer that is made, or stays dense."""
        takes = weight.dense if made is None else made.approximation.storage
        return CompressedLayer(
            view=weight.view,
            size=made and made.size,
            method=made and made.method,
            rank=made and made.rank,
            remark=remark,
            relative_error=0.0 if made is None else made.relative_error,
            certified=made is None or made.certified,
            parameters=takes.numbers,
            dense_parameters=weight.dense.numbers,
            bytes=takes.bytes,
            dense_bytes=weight.dense.bytes,
            multiply_adds=weight.site.rows * takes.multiply_adds,
            dense_multiply_adds=weight.site.multiply_adds,
            **({} if won is None else dataclasses.asdict(won)),
        )

    @property
    def margin(self) -> float | None:
        """By how much its method won: the loss of the rival less its own. In a mixture it is never
        negative; in a network of one method, which as a whole lost less, it can be.
        """
        if self.loss is None or self.rival_loss is None:
            return None
        return self.rival_loss - self.loss

    def at_rank(self, made: AbstractApproximation, ranks: Ranks) -> "CompressedLayer":
        """Cut to the last of these ranks, as what was made."""
        assert self.rank is not None
        rank = len(ranks.losses)
        return dataclasses.replace(
            self,
            size=f"rank {rank}",
            rank=rank,
            relative_error=float(np.sqrt(ranks.losses[-1])),
            certified=bool(ranks.certified[-1]),
            parameters=made.storage.numbers,
            bytes=made.storage.bytes,
            multiply_adds=self.multiply_adds * rank // self.rank,
        )

    def counted_with(self, path: str) -> "CompressedLayer":
        """Of another leaf that is the array at this path."""
        counts = ("parameters", "bytes", "multiply_adds")
        nothing = dict.fromkeys([*counts, *(f"dense_{each}" for each in counts)], 0)
        return dataclasses.replace(self, remark=f"tied, one array with {path}", **nothing)


def layers_of(
    weights: Mapping[str, Weight],
    made: Mapping[str, FittedLayer],
    remarks: Mapping[str, str],
    won: Mapping[str, Won],
) -> dict[str, CompressedLayer]:
    """What became of each weight, in the order of execution, and of the leaves tied to it."""
    layers: dict[str, CompressedLayer] = {}
    for path, weight in weights.items():
        given = made.get(path), remarks.get(path, ""), won.get(path)
        layers[path] = CompressedLayer.of(weight, *given)
        layers |= {other: layers[path].counted_with(path) for other in weight.tied}
    return layers


def nested_of(
    target: AbstractTarget, weights: Mapping[str, Weight], made: Mapping[str, FittedLayer]
) -> Nested | None:
    """What smaller networks the layers hold: `None` where the target is no budget, or a layer is
    not cut from nested ones.
    """
    if not isinstance(target, AbstractBudget) or any(e.ranks is None for e in made.values()):
        return None
    layers = {}
    for path, weight in weights.items():
        rows, each, costs = weight.site.rows, made.get(path), []
        if each is not None and each.rank is not None:
            shifted = isinstance(each.approximation, Affine)
            ranks = range(1, each.rank + 1)
            taken = (storage_of_rank(weight.view, r, weight.dtype, shifted) for r in ranks)
            costs = [target.cost(storage, rows) for storage in taken]
        dense = target.cost(weight.dense, rows)
        prices = np.array(costs, np.int64)
        layers[path] = NestedLayer(dense, prices, each and each.ranks, weight.tied)
    return Nested(type(target).__name__, target.share, layers)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """The mixture of all kinds under a budget, or one kind alone.

    - `planned`: the sum of the losses of its layers, each on its own;
    - `output_loss`: the relative squared error of the network's outputs;
    - `unmet`: why it does not meet the budget; then both are `None`.

    Both are of layers fitted to the first half of the batches, on the second half.
    """

    planned: float | None
    output_loss: float | None
    unmet: str | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Compressed:
    """A compressed network: `compressed.function(compressed.parameters, batch)`.

    - `layers`: the selected weights by path, in the order of execution, those left dense too. The
      counts are of these, but for those of other leaves;
    - `provenance`: how it was made, ready for JSON: `target`, `method`, `sequential`, `passes`, the
      sum of all relative `squared_errors`, and why selected leaves were `not_followed`. Under a
      budget also what was `planned`, that sum with each layer on its own, and a `lower_bound` on it
      for all sizes within the budget. Of several methods both are of losses on the second half of
      the batches; which was `returned`, a method or the mixture, and the `candidates`;
    - `nested`: where `at` makes smaller networks of this one, what they cost and lose.

    `print` shows all of this, and what is kept as a share of the weights followed and of all.
    """

    function: Callable[..., Any]
    parameters: PyTree
    layers: Mapping[str, CompressedLayer]
    provenance: Mapping[str, Any]
    nested: Nested | None = None

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
        """How many bytes the arrays take that stand for them, packed as they are."""
        return sum(layer.bytes for layer in self.layers.values())

    @property
    def dense_storage_bytes(self) -> int:
        """How many they took."""
        return sum(layer.dense_bytes for layer in self.layers.values())

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
    def candidates(self) -> Mapping[str, Candidate]:
        """Of several methods under a budget: the mixture of all, and each alone, by name."""
        found = self.provenance.get("candidates", {})
        return {name: Candidate(**entries) for name, entries in found.items()}

    @property
    def gap(self) -> float:
        """Under a budget: what was planned, less the bound that nothing within it goes below."""
        planned, bound = (self.provenance.get(name, 0.0) for name in ("planned", "lower_bound"))
        return planned - bound

    @property
    def multiply_adds(self) -> int:
        """How many multiplications the layers take for one batch."""
        return sum(layer.multiply_adds for layer in self.layers.values())

    @property
    def dense_multiply_adds(self) -> int:
        """How many they took."""
        return sum(layer.dense_multiply_adds for layer in self.layers.values())

    def at(self, share: float) -> "Compressed":
        r"""The network at a smaller share of the same budget, by slices of its factors.

        ```python
        largest = compress(function, parameters, batches, Bytes(0.5))
        largest.save(file)  # and anywhere, at any time:
        small = load_compressed(file, function, parameters).at(0.2)
        ```

        Nothing is fitted: no data, no decomposition. The ranks are those of least loss in sum
        within the share, among those up to the ranks that this network has; what is dense in it
        stays dense. They are the ranks, and the network is bit for bit the network, of `compress`
        at that share, wherever that has no larger rank and leaves the same layers dense: which it
        does if both are made with `every_size`. (A sequence is fitted once, at the largest ranks:
        there they are not.) The function is the
        same, and under `jax.jit` compiles once for each choice of ranks.

        For networks compressed to a budget by one method whose ranks are nested,
        `ActivationWeighted` or `TruncatedSVD`. Raises `ValueError` for any other, for a share
        above the one it was compressed to, and one that cannot be met.
        """
        if self.nested is None:
            raise ValueError(
                "`at` slices factors whose ranks are nested, and the network was made by "
                f"{self.provenance.get('method', 'hand')} for "
                f"{self.provenance.get('target', 'no target')}. Compress to a budget, such as "
                "`Bytes(0.5)`, by `ActivationWeighted()` or `TruncatedSVD()` alone."
            )
        found = self.nested.at(share)
        nested = self.nested.cut(share, found.ranks)
        layers, leaves = dict(self.layers), leaves_by_path(self.parameters)
        cut: dict[str, Any] = {}
        for path, rank in found.ranks.items():
            ranks, others = nested.layers[path].ranks, nested.layers[path].tied
            assert ranks is not None
            made = sliced(leaves[path], rank, ranks.means)
            layers[path] = layers[path].at_rank(made, ranks)
            layers |= {other: layers[path].counted_with(path) for other in others}
            cut |= dict.fromkeys((path, *others), made)
        provenance = {
            **self.provenance,
            "target": f"{nested.budget}(share={nested.share})",
            "cut_from": self.provenance.get("cut_from", self.provenance["target"]),
            "squared_errors": sum(layer.relative_error**2 for layer in layers.values()),
            "planned": found.loss,
            "lower_bound": found.lower_bound,
        }
        parameters = with_leaves(self.parameters, cut)
        return Compressed(self.function, parameters, layers, provenance, nested)

    def _others(self) -> Iterable[Any]:
        """The arrays that are no layers, each once."""
        stored = leaves_by_path(self.parameters).items()
        return {id(x): x for path, x in stored if path not in self.layers and is_array(x)}.values()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the compressed network to a safetensors file, all or nothing. `load_compressed`
        reads it.
        """
        write(self.parameters, self.layers, self.provenance, self.nested, path)

    def __repr__(self) -> str:
        rows = [
            (
                path,
                " x ".join(map(str, layer.view.matrix_shape)),
                f"{layer.size}{_of_kind(layer)}" if layer.size else "dense",
                layer.remark
                if layer.size is None
                else f"error {layer.relative_error:.2%}"
                + ("" if layer.certified else ", not certified")
                + _by_how_much(layer)
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
        shares += self._competed()
        reasons = {path: (why,) for path, why in self.not_followed.items()}
        others = by_reason(reasons) if reasons else []
        return "\n".join([*shares, *(f"  {line}" for line in lines), *others])

    def _competed(self) -> list[str]:
        """What is said of the candidates."""
        found = self.candidates
        losses = [f"{n} {c.output_loss:.3g}" for n, c in found.items() if c.output_loss is not None]
        unmet = [name for name, each in found.items() if each.unmet is not None]
        lines = []
        if found:
            lost = "; ".join(losses)
            lines.append(f"{self.provenance['returned']}, by the loss of the outputs: {lost}")
            lines += [f"not within the budget: {', '.join(unmet)}"] if unmet else []
        return lines


def _of_kind(layer: CompressedLayer) -> str:
    """The name of the method, where there are several."""
    return "" if layer.loss is None else f", {layer.method}"


def _by_how_much(layer: CompressedLayer) -> str:
    if layer.loss is None or layer.rival_loss is None:
        return ""
    return f", loss {layer.loss:.3g} against {layer.rival_loss:.3g} by {layer.rival}"


def load_compressed(
    path: str | os.PathLike[str], function: Callable[..., Any], parameters: PyTree
) -> Compressed:
    """The compressed network that `Compressed.save` wrote; it gives the same outputs, bit for bit.

    `function` and `parameters` are those of the dense network. Of its arrays only the shapes and
    dtypes matter, so `jax.eval_shape` of what initialises them will do; leaves that are no arrays
    (numbers, functions) are taken as they are given.

    Raises `FileNotFoundError` if there is no file, and `ValueError` if it is truncated or damaged,
    holds something else, was written by a newer version of this library, or is of a network with
    other leaves.
    """
    filled, entries, given, provenance, nested = read(Path(path), parameters)
    run, smaller = replace(function, filled, given)
    layers = {name: CompressedLayer(**entry) for name, entry in entries.items()}
    return Compressed(run, smaller, layers, provenance, nested)
