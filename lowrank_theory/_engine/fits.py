"""Layers fitted at all sizes of a ladder, as they will be stored."""

import abc
import dataclasses
import functools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from lowrank_theory._engine.nested import Means, Ranks
from lowrank_theory._engine.views import MatrixView
from lowrank_theory._engine.weights import Weight
from lowrank_theory.approximations import (
    AbstractApproximation,
    AbstractMatrix,
    Affine,
    LowRank,
    Storage,
)
from lowrank_theory.calibration import AbstractCalibration
from lowrank_theory.calibration.measured import (
    Measured,
    measured_error,
    measured_errors,
    measured_on_rows,
)
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import (
    NEAR_OPTIMAL,
    NEGLIGIBLE,
    AbstractLadder,
    AbstractNestedMethod,
    EveryRank,
    Need,
    dense_float64,
    every_rank,
    outputs_of_both,
    rows_of,
)

Seen = AbstractCalibration | None


@dataclasses.dataclass(frozen=True)
class FittedLayer:
    """What stands for a layer, and how far it is from it; where ranks are nested, all up to it."""

    approximation: AbstractApproximation
    method: str
    size: str
    rank: int | None
    relative_error: float
    certified: bool
    ranks: Ranks | None = None


class AbstractFit(abc.ABC):
    """A layer at the sizes of one ladder, as they will be stored."""

    @property
    @abc.abstractmethod
    def storages(self) -> Sequence[Storage | None]:
        """What each size takes, shifts included; `None` where it cannot be had."""

    @property
    @abc.abstractmethod
    def losses(self) -> Float[np.ndarray, " sizes"]:
        """The relative squared error of each size."""

    @property
    @abc.abstractmethod
    def upper_losses(self) -> Float[np.ndarray, " sizes"]:
        """What that is at most, rounding included."""

    @abc.abstractmethod
    def at(self, size: int) -> FittedLayer:
        """The layer of this size."""

    def has(self, size: int) -> bool:
        """Whether it can be had."""
        return size < len(self.storages) and self.storages[size] is not None

    @abc.abstractmethod
    def why_not(self, size: int) -> str:
        """Why it cannot be had, or would save nothing."""

    @abc.abstractmethod
    def why_inaccurate(self, relative: float) -> str:
        """Why no size has at most this relative error."""


@dataclasses.dataclass(frozen=True)
class NestedFit(AbstractFit):
    """A layer at the ranks from 1 to the `largest` up to a `limit` that is finite.

    - `left`, `right`, and `shifts`, one for each rank from 0: the factors of all slices, in the
      dtype in which they will be stored; `means`, of which the shifts are made;
    - `measured`: the errors of these numbers, from rank 0 on;
    - `exact`, at all ranks, and `least`, as far as it is surely known: the relative squared errors
      of the best layers, whose numbers are not rounded. Where the method has another aim than
      these errors, there are none.
    """

    method: AbstractNestedMethod
    view: MatrixView
    limit: int
    left: Float[np.ndarray, "slices inputs rank"]
    right: Float[np.ndarray, "slices rank outputs"]
    shifts: Float[np.ndarray, "slices ranks outputs"] | None
    means: Means | None
    measured: Measured
    exact: Float[np.ndarray, " all_ranks"]
    least: Float[np.ndarray, " all_ranks"] | None
    tolerance: float

    @property
    def largest(self) -> int:
        """The rank of the factors."""
        return self.left.shape[-1]

    @property
    def storages(self) -> list[Storage]:
        """Of each rank from 1 on."""
        ranks = range(1, self.largest + 1)
        return [
            storage_of_rank(self.view, r, self.left.dtype, self.shifts is not None) for r in ranks
        ]

    @property
    def losses(self) -> Float[np.ndarray, " ranks"]:
        """Those of the ranks from 1 on."""
        return self.measured.squares[1:]

    @property
    def upper_losses(self) -> Float[np.ndarray, " ranks"]:
        """At most, rounding included."""
        return self.measured.upper[1:] ** 2

    def at(self, size: int) -> FittedLayer:
        """Of rank `size` + 1."""
        rank = size + 1
        factors: Any = LowRank(
            _stacked(self.view, self.left[..., :rank]), _stacked(self.view, self.right[:, :rank])
        )
        if self.shifts is not None:
            factors = Affine(factors, _stacked(self.view, self.shifts[:, rank]))
        ranks = self._ranks.cut(rank)
        error, certified = float(np.sqrt(ranks.losses[size])), bool(ranks.certified[size])
        name = _name(self.method)
        return FittedLayer(factors, name, f"rank {rank}", rank, error, certified, ranks)

    @functools.cached_property
    def _ranks(self) -> Ranks:
        """All of them."""
        squares = self.measured.squares if self.least is None else self.least
        least = np.sqrt(squares[1 : self.largest + 1])
        certified = _certified(self.measured.upper[1:], least, self.tolerance)
        return Ranks(self.losses, certified & (self.measured.norm > 0), self.means)

    def why_not(self, size: int) -> str:
        """The rank would save nothing, or is not finite."""
        rank = size + 1
        if rank <= self.limit:
            return f"its factors are not finite in {self.left.dtype}"
        reason, error = f"rank {rank} would save nothing", float(self.measured.squares[-1])
        if error > 1.01 * float(self.exact[self.largest]):
            dtype, share = self.left.dtype, f"{np.sqrt(error):.2%}"
            reason += f"; rounded to {dtype}, rank {self.largest} errs by {share}"
        return reason

    def why_inaccurate(self, relative: float) -> str:
        """The least rank of all that would have this error, which cannot be had; beyond the
        largest, where nothing is stored, with as much for rounding as there.
        """
        upper = self.measured.upper**2
        rounding = max(0.0, float(upper[-1] - self.exact[self.largest]))
        losses = np.concatenate([upper, self.exact[self.largest + 1 :] + rounding])
        accurate = losses <= relative**2
        rank = int(np.argmax(accurate)) if accurate.any() else len(losses) - 1
        return self.why_not(max(rank, 1) - 1)


@dataclasses.dataclass(frozen=True)
class ListedFit(AbstractFit):
    """A layer at sizes that are each kept."""

    method: AbstractLadder
    names: tuple[str, ...]
    approximations: tuple[AbstractApproximation, ...]
    measured: tuple[Measured, ...]

    @property
    def storages(self) -> list[Storage | None]:
        """Of each size that is finite."""
        return [
            each.storage if np.isfinite(loss) else None
            for each, loss in zip(self.approximations, self.losses, strict=True)
        ]

    @property
    def losses(self) -> Float[np.ndarray, " sizes"]:
        """As measured."""
        return np.array([float(each.squares[0]) for each in self.measured])

    @property
    def upper_losses(self) -> Float[np.ndarray, " sizes"]:
        """At most, rounding included."""
        return np.array([float(each.upper[0]) ** 2 for each in self.measured])

    def at(self, size: int) -> FittedLayer:
        """Of this size."""
        error, upper = (float(np.sqrt(each[size])) for each in (self.losses, self.upper_losses))
        certified = bool(_certified(upper, error, NEAR_OPTIMAL)) and self.measured[size].norm > 0
        made, name = self.approximations[size], self.names[size]
        return FittedLayer(made, _name(self.method), name, None, error, certified)

    def why_not(self, size: int) -> str:
        """There is none, or it is not finite."""
        if not self.names:
            return f"`{_name(self.method)}` has no size for this shape"
        return f"with {self.names[size]} its numbers are not finite"

    def why_inaccurate(self, relative: float) -> str:
        """The least error, and of which size."""
        if not self.names:
            return self.why_not(0)
        best = int(np.nanargmin(np.where(np.isfinite(self.losses), self.losses, np.inf)))
        return f"with {self.names[best]} it errs by {np.sqrt(self.losses[best]):.2%}"


def _certified(upper: Any, least: Any, tolerance: float) -> Any:
    return upper <= np.maximum((1 + tolerance) * least, least + NEGLIGIBLE)


def _name(method: AbstractLadder) -> str:
    return type(method).__name__


def _stacked(view: MatrixView, array: np.ndarray) -> np.ndarray:
    """Slices in the place of the stack that they are."""
    return np.ascontiguousarray(array.reshape(*view.matrix_shape[:-2], *array.shape[1:]))


def fitted(
    weight: Weight,
    matrices: list[Observed],
    method: AbstractLadder,
    limit: int,
    judged: list[Observed] | None = None,
) -> AbstractFit:
    """A layer at all sizes of a method, ranks up to a limit; `matrices` are those of the weight,
    with a calibration where errors are those of the outputs. They are measured on the same, or on
    what is `judged`: the matrices with another calibration, which no fit sees.
    """
    if isinstance(method, AbstractNestedMethod):
        return _nested(weight, matrices, method, limit, judged)
    return _listed(weight, matrices, method, judged)


def _nested(
    weight: Weight,
    matrices: list[Observed],
    method: AbstractNestedMethod,
    limit: int,
    judged: list[Observed] | None,
) -> NestedFit:
    dtype = weight.dtype
    sweeps = [every_rank(observed, method) for observed in matrices]
    weights, seen = _given(matrices)
    left, right = (
        np.stack([np.asarray(side, np.float64) for side in sides])
        for sides in zip(*(_leading(sweep, limit) for sweep in sweeps), strict=True)
    )
    left, right = balanced(left, right, dtype)
    shifts = means = None
    if method.needs:
        means = _means(weights, left, seen, kept=_is_affine(matrices))
        shifts = rounded(means.shifts(right), dtype)
        shifts[:, 0] = 0  # the mean output itself, which may be too large
    largest = _finite(left, right, shifts)
    left, right = left[..., :largest], right[:, :largest]
    shifts = None if shifts is None else shifts[:, : largest + 1]
    means = means and means.cut(largest)
    measured = measured_errors(weights, left, right, shifts, _given(judged or matrices)[1])
    tolerance = sweeps[0].certificates.tolerance
    exact, least = _unrounded(weight.path, sweeps, measured.norm)
    if judged or (seen[0] is not None and not method.needs):
        # It aims at others, or at the weights, and these are errors of the outputs.
        exact, least = np.zeros_like(exact), None
    return NestedFit(
        method, weight.view, limit, left, right, shifts, means, measured, exact, least, tolerance
    )


def _listed(
    weight: Weight,
    matrices: list[Observed],
    method: AbstractLadder,
    judged: list[Observed] | None,
) -> ListedFit:
    dtype, view = weight.dtype, weight.view
    sweeps = [method.sweep(observed) for observed in matrices]
    names, kept, measured = [], [], []
    for size in range(len(sweeps[0].storages)):
        slices = [
            sweep.at(size).approximation.map_floats(lambda array: rounded(np.asarray(array), dtype))
            for sweep in sweeps
        ]
        judge = _of_matrices if isinstance(slices[0], AbstractMatrix) else _of_maps
        shift, found = judge(matrices, slices, dtype, judged, shifted=bool(method.needs))
        made = jax.tree.map(lambda *arrays: _stacked(view, np.stack(arrays)), *slices)
        if shift is not None:
            made = Affine(made, _stacked(view, shift))
        names.append(sweeps[0].name(size))
        kept.append(made)
        measured.append(found)
    return ListedFit(method, tuple(names), tuple(kept), tuple(measured))


def _is_affine(matrices: list[Observed]) -> bool:
    return matrices[0].bias is not None


Judged = tuple[Float[np.ndarray, "slices outputs"] | None, Measured]


def _of_matrices(
    matrices: list[Observed],
    slices: Sequence[Any],
    dtype: np.dtype,
    judged: list[Observed] | None,
    *,
    shifted: bool,
) -> Judged:
    """The shifts that keep the mean output, where there are any, and the error with them."""
    weights, seen = _given(matrices)
    dense, shift = np.stack([dense_float64(each) for each in slices]), None
    if shifted:
        parts = zip(weights, dense, seen, strict=True)
        shift = rounded(_is_affine(matrices) * np.stack([_shift(*each) for each in parts]), dtype)
    return shift, measured_error(weights, dense, shift, _given(judged or matrices)[1])


def _of_maps(
    matrices: list[Observed],
    slices: Sequence[Any],
    dtype: np.dtype,
    judged: list[Observed] | None,
    *,
    shifted: bool,
) -> Judged:
    """The same, on rows."""
    shift = None
    rows = [rows_of(observed) for observed in matrices]
    pairs = [outputs_of_both(*each) for each in zip(matrices, slices, strict=True)]
    if shifted:
        moved = [r.mean(y - made) for r, (y, made) in zip(rows, pairs, strict=True)]
        shift = rounded(_is_affine(matrices) * np.stack(moved), dtype)
    if judged:
        rows = [rows_of(observed) for observed in judged]
        pairs = [outputs_of_both(*each) for each in zip(judged, slices, strict=True)]
    given = np.zeros(len(pairs)) if shift is None else np.asarray(shift, np.float64)
    made = [found + moved for (_, found), moved in zip(pairs, given, strict=True)]
    return shift, measured_on_rows([y for y, _ in pairs], made, rows)


def needs_of(methods: Iterable[AbstractLadder]) -> frozenset[Need]:
    """What some methods need together."""
    return frozenset().union(*(method.needs for method in methods))


def kinds_of(methods: Sequence[AbstractLadder]) -> tuple[str, ...]:
    """A name for each of some methods: that of its class, with its settings where others have the
    same.
    """
    names = [_name(method) for method in methods]
    return tuple(
        name if names.count(name) == 1 else " ".join(str(method).split())
        for name, method in zip(names, methods, strict=True)
    )


def errors_are_of_outputs(methods: Collection[AbstractLadder]) -> bool:
    """Whether the data are looked at: where a method does, and where several are compared."""
    return len(methods) > 1 or bool(needs_of(methods))


def storage_of_rank(view: MatrixView, rank: int, dtype: np.dtype, shifted: bool) -> Storage:
    """Of factors of all matrices of a layer, and a shift if there is one."""
    *stack, inputs, outputs = view.matrix_shape
    slices = int(np.prod(stack, dtype=int))
    numbers = rank * slices * (inputs + outputs)
    factors = Storage.of_floats(numbers, dtype.itemsize, multiply_adds=numbers)
    return factors + Storage.of_floats(shifted * slices * outputs, dtype.itemsize)


def _given(matrices: list[Observed]) -> tuple[np.ndarray, list[Seen]]:
    weights = np.stack([np.asarray(observed.weights) for observed in matrices])
    return weights, [observed.calibration for observed in matrices]


def balanced(left: np.ndarray, right: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The factors in this dtype, each column of the left as large as its row of the right: so that
    neither leaves the range of a narrow one. Powers of two change nothing else.
    """
    powers = [np.frexp(np.max(np.abs(x), axis=k))[1] for x, k in ((left, -2), (right, -1))]
    power = (powers[1] - powers[0]) // 2
    scaled = np.ldexp(left, power[..., None, :]), np.ldexp(right, -power[..., None])
    return rounded(scaled[0], dtype), rounded(scaled[1], dtype)


def rounded(array: np.ndarray, dtype: Any) -> np.ndarray:
    """The numbers in this dtype, not finite where they leave its range."""
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def _leading(sweep: EveryRank, rank: int) -> tuple[np.ndarray, np.ndarray]:
    factors = sweep.factors
    return np.asarray(factors.left)[:, :rank], np.asarray(factors.right)[:rank]


def _means(weights: np.ndarray, left: np.ndarray, seen: Sequence[Any], *, kept: bool) -> Means:
    """Those to be kept, with the factors as they are stored; zeros where they are not `kept`."""
    parts = [
        [np.asarray(each, np.float64) for each in (calibration.mean, calibration.layer_input_mean)]
        for calibration in seen
    ]
    weights, left = (np.asarray(each, np.float64) for each in (weights, left))
    with np.errstate(all="ignore"):
        outputs = [before @ each for (before, _), each in zip(parts, weights, strict=True)]
        behind = [after @ each for (_, after), each in zip(parts, left, strict=True)]
        return Means(kept * np.stack(outputs), kept * np.stack(behind))


def _shift(weights: np.ndarray, matrix: np.ndarray, seen: Any) -> np.ndarray:
    """The one that keeps the mean output."""
    before, after = (np.asarray(x, np.float64) for x in (seen.mean, seen.layer_input_mean))
    with np.errstate(all="ignore"):
        return before @ weights.astype(np.float64) - after @ matrix


def _finite(left: np.ndarray, right: np.ndarray, shifts: np.ndarray | None) -> int:
    """The largest rank up to which all numbers are finite."""

    def finite(array: np.ndarray, *axes: int) -> np.ndarray:
        return np.all(np.isfinite(np.asarray(array, np.float64)), axis=axes)

    fine = finite(left, 0, 1) & finite(right, 0, 2)
    if shifts is not None:
        fine &= finite(shifts, 0, 2)[1:]
    return len(fine) if fine.all() else int(np.argmin(fine))


def _unrounded(
    path: str, sweeps: list[EveryRank], norm: float
) -> tuple[Float[np.ndarray, " ranks"], Float[np.ndarray, " ranks"]]:
    """The relative squared errors of the best layers at each rank, all slices together: as
    computed, and what they surely are at least.
    """
    exact, least = np.zeros(1), np.zeros(1)
    for sweep in sweeps:
        error, excess = (
            np.asarray(each, np.float64)
            for each in (sweep.certificates.optimal_error, sweep.certificates.excess_bound)
        )
        if not (np.all(np.isfinite(error)) and np.isfinite(norm)):
            raise ValueError(
                f"What {path} multiplies is too large to be squared, or a decomposition failed. "
                "Scale the batches, or leave it out by `select`."
            )
        scale = norm if norm > 0 else 1.0
        exact = exact + (error / scale) ** 2
        least = least + (np.maximum(error - excess, 0) / scale) ** 2
    return np.minimum.accumulate(exact), least
