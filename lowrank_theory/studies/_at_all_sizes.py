"""The layers of a network at all sizes of a method, after one pass over the data for all methods.

`compress` fits anew for each budget. Here all budgets are served by the same fits, and what is made
dense again runs in one compiled function, so that only forward passes are left to be paid for.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from lowrank_theory._engine.allocation import Options, allocate
from lowrank_theory._engine.competition import Candidates
from lowrank_theory._engine.fits import AbstractFit, FittedLayer, fitted, storage_of_rank
from lowrank_theory._engine.observation import Observation
from lowrank_theory._engine.observer import Observer
from lowrank_theory._engine.replace import replace
from lowrank_theory._engine.weights import Weight, tied_leaves, weights_of
from lowrank_theory.approximations import (
    AbstractApproximation,
    AbstractMatrix,
    Affine,
    Sparse,
    Storage,
)
from lowrank_theory.calibration import AbstractCalibration
from lowrank_theory.calibration.measured import Rows, measured_error, measured_on_rows
from lowrank_theory.models.catalogue import Function, Loaded
from lowrank_theory.recovery import AbstractLadder, dense_float64

SIZES = 8  # of a method with ranks, of which rows are kept


class Layers:
    """The weights of a network that can be replaced, and what they see, found when it is asked for:
    in the calibration, with a sample of rows for the methods that need one, and held out.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        tied = tied_leaves(loaded.parameters, loaded.select or (lambda _: True))
        self._observer = Observer(loaded.function, loaded.parameters, loaded.select, tied)
        survey = self._observer.survey(loaded.calibration[0])
        every = weights_of(loaded.parameters, survey, tied)
        self.weights = {path: each for path, each in every.items() if path not in survey.remarks}
        self._candidates = Candidates(loaded.function, loaded.parameters, self.weights)

    @functools.cached_property
    def training(self) -> Observation:
        """What they see in the calibration."""
        return self._observer.observe(self.loaded.calibration, only=self.weights, rows=True)

    @functools.cached_property
    def held_out(self) -> Observation:
        """What they see in the held-out batches."""
        return self._observer.observe(self.loaded.held_out, only=self.weights, rows=True)

    def at_all_sizes(self, method: AbstractLadder) -> dict[str, "Sized"]:
        """Each layer at all sizes of the method."""
        found = {}
        for path, weight in self.weights.items():
            seen = self.training.slices(path) if method.needs else None
            matrices = weight.observed(seen)
            fit = fitted(weight, matrices, method, _largest_rank(weight, bool(method.needs)))
            found[path] = Sized(weight, fit, self.held_out.slices(path))
        return found

    def network(self, made: Mapping[str, FittedLayer]) -> tuple[Function, PyTree]:
        """The network with these layers, made dense again but for tables, which have no matrix."""
        return self._candidates.network(made)

    def packed(self, made: Mapping[str, FittedLayer]) -> tuple[Function, PyTree]:
        """The network with these layers as they are stored."""
        leaves = {}
        for path, each in made.items():
            leaves |= dict.fromkeys((path, *self.weights[path].tied), each.approximation)
        return replace(self.loaded.function, self.loaded.parameters, leaves)


@dataclasses.dataclass(frozen=True)
class Errors:
    """Relative, of the weights (`None` where there is no matrix) and of the held-out outputs."""

    weights: float | None
    outputs: float


@dataclasses.dataclass(frozen=True)
class Shares:
    """Of a dense layer: bits of the values alone, bits of all that is written down, and bytes."""

    values: float
    ideal: float
    real: float

    @staticmethod
    def of(made: Sequence[AbstractApproximation | None], dense: Sequence[Storage]) -> "Shares":
        """Of layers, `None` those left dense, that took so much."""
        bits, held = (sum(getattr(d, n) for d in dense) for n in ("ideal_bits", "bytes"))
        takes = [d if m is None else m.storage for m, d in zip(made, dense, strict=True)]
        places = sum(_bits_of_places(each) for each in made if each is not None)
        ideal = sum(each.ideal_bits for each in takes)
        return Shares((ideal - places) / bits, ideal / bits, sum(t.bytes for t in takes) / held)


@dataclasses.dataclass
class Sized:
    """A layer at all sizes of a method."""

    weight: Weight
    fit: AbstractFit
    held_out: tuple[AbstractCalibration, ...]

    def __post_init__(self) -> None:
        self._errors: dict[int, Errors] = {}

    @property
    def sizes(self) -> list[int]:
        """Those that can be had."""
        return [size for size, each in enumerate(self.fit.storages) if each is not None]

    @property
    def some_sizes(self) -> list[int]:
        """At most `SIZES` of them, in a geometric sequence."""
        if len(self.sizes) <= SIZES:
            return self.sizes
        places = np.unique(np.geomspace(1, len(self.sizes), SIZES).round().astype(int))
        return [self.sizes[place - 1] for place in places]

    def errors(self, size: int) -> Errors:
        """Of one size, computed once."""
        if size not in self._errors:
            self._errors[size] = self._measured(self.fit.at(size).approximation)
        return self._errors[size]

    def shares(self, size: int) -> Shares:
        """Of one size."""
        return Shares.of([self.fit.at(size).approximation], [self.weight.dense])

    @functools.cached_property
    def options(self) -> tuple[Options, list[int]]:
        """What it may become, by bits, and the size of each option."""
        storages = self.fit.storages
        found = [(size, storage) for size, storage in enumerate(storages) if storage is not None]
        costs = [storage.ideal_bits for _, storage in found]
        losses = np.asarray(self.fit.losses, np.float64)[[size for size, _ in found]]
        options, kept = Options.of(costs, losses, self.weight.dense.ideal_bits)
        return options, [found[place][0] for place in kept]

    def _measured(self, made: AbstractApproximation) -> Errors:
        matrix, shift = _matrix(made), _shift(made)
        weights = _slices(self.weight.view.matrix(np.asarray(self.weight.leaf)), 2)
        shifts = None if shift is None else _slices(np.asarray(shift), 1)
        if isinstance(matrix, AbstractMatrix):
            dense = _slices(dense_float64(matrix), 2)
            found = measured_error(weights, dense, shifts, self.held_out)
            alone = measured_error(weights, dense, None, [None] * len(dense))
            return Errors(float(np.sqrt(alone.squares[0])), float(np.sqrt(found.squares[0])))
        axes = np.ndim(self.weight.view.matrix(np.asarray(self.weight.leaf))) - 2
        tables = jax.tree.map(lambda leaf: _slices(np.asarray(leaf), np.ndim(leaf) - axes), matrix)
        rows = [Rows.of(seen) for seen in self.held_out]
        outputs = [each.original @ w for each, w in zip(rows, weights, strict=True)]
        found = []
        for number, each in enumerate(rows):
            table = jax.tree.map(lambda leaf, k=number: leaf[k], tables)
            moved = 0.0 if shifts is None else shifts[number]
            found.append(np.asarray(table.apply(each.layer), np.float64) + moved)
        squares = measured_on_rows(outputs, found, rows).squares
        return Errors(None, float(np.sqrt(squares[0])))


def chosen(layers: Mapping[str, Sized], share: float) -> dict[str, int]:
    """The sizes of the layers that do not stay dense, of those that so many bits allow the ones
    that lose least in sum. Raises `ValueError` for a budget that cannot be met.
    """
    options = [each.options[0] for each in layers.values()]
    budget = share * sum(each.dense for each in options)
    found = zip(layers.items(), allocate(options, budget).chosen, strict=True)
    return {path: each.options[1][place] for (path, each), place in found if place is not None}


def _largest_rank(weight: Weight, shifted: bool) -> int:
    """How many ranks take fewer bits than the layer does."""
    view = weight.view
    ranks = range(1, min(view.matrix_shape[-2:]) + 1)
    storages = (storage_of_rank(view, rank, weight.dtype, shifted) for rank in ranks)
    return sum(each.ideal_bits < weight.dense.ideal_bits for each in storages)


def _matrix(made: AbstractApproximation) -> AbstractApproximation:
    return made.approximation if isinstance(made, Affine) else made


def _shift(made: AbstractApproximation) -> Any:
    return made.shift if isinstance(made, Affine) else None


def _slices(array: np.ndarray, axes: int) -> np.ndarray:
    """With one axis for the stack, before so many of a slice."""
    return np.asarray(array).reshape(-1, *array.shape[np.ndim(array) - axes :])


def _bits_of_places(made: AbstractApproximation) -> int:
    parts = jax.tree.leaves(made, is_leaf=lambda part: isinstance(part, Sparse))
    return sum(part.pattern.ideal_bits for part in parts if isinstance(part, Sparse))
