"""Layers fitted at all ranks, as they will be stored."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from lowrank_theory.approximations import Affine, LowRank
from lowrank_theory.calibration import Calibration
from lowrank_theory.networks._measured import Measured, measured_errors
from lowrank_theory.networks._tied import Tied
from lowrank_theory.networks._views import MatrixView
from lowrank_theory.networks.observe import Listener, Survey
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import (
    AbstractNestedMethod,
    EveryRank,
    TruncatedSVD,
    every_rank,
)
from lowrank_theory.recovery._recover import NEGLIGIBLE


@dataclasses.dataclass(frozen=True)
class Made:
    """What stands for a layer, and how far it is from it."""

    factors: LowRank | Affine
    rank: int
    relative_error: float
    certified: bool


@dataclasses.dataclass(frozen=True)
class Fit:
    """A layer at the ranks from 0 to the `largest` that saves anything and is finite.

    - `left`, `right`, and `shifts`, one for each rank: the factors of all slices, in the dtype in
      which they will be stored;
    - `measured`: the errors of these numbers;
    - `exact`, at all ranks, and `least`, as far as it is surely known: the relative squared errors
      of the best layers, whose numbers are not rounded.
    """

    view: MatrixView
    left: Float[np.ndarray, "slices inputs rank"]
    right: Float[np.ndarray, "slices rank outputs"]
    shifts: Float[np.ndarray, "slices ranks outputs"] | None
    measured: Measured
    exact: Float[np.ndarray, " all_ranks"]
    least: Float[np.ndarray, " all_ranks"]
    tolerance: float

    @property
    def largest(self) -> int:
        """The rank of the factors."""
        return self.left.shape[-1]

    @property
    def surely(self) -> Float[np.ndarray, " all_ranks"]:
        """What is surely not lost more, at each rank; beyond the largest, where nothing is stored,
        with as much for rounding.
        """
        upper, exact = self.measured.upper**2, self.exact
        rounding = max(0.0, upper[-1] - exact[self.largest])
        return np.concatenate([upper, exact[self.largest + 1 :] + rounding])

    def at(self, rank: int) -> Made:
        """Of this rank, up to the largest."""
        stack = self.view.matrix_shape[:-2]

        def stacked(array: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(array.reshape(*stack, *array.shape[1:]))

        factors = LowRank(stacked(self.left[..., :rank]), stacked(self.right[:, :rank]))
        if self.shifts is not None:
            factors = Affine(factors, stacked(self.shifts[:, rank]))
        least = np.sqrt(self.least[rank])
        allowed = max((1 + self.tolerance) * least, least + NEGLIGIBLE)
        certified = self.measured.norm > 0 and self.measured.upper[rank] <= allowed
        return Made(factors, rank, float(np.sqrt(self.measured.squares[rank])), bool(certified))


@dataclasses.dataclass(frozen=True)
class Fitter:
    """What fits layers to the data. It adds to `remarks` why some cannot be fitted."""

    listener: Listener
    survey: Survey
    tied: Tied
    leaves: Mapping[str, Any]
    batches: Iterable[PyTree]
    method: AbstractNestedMethod
    remarks: dict[str, str]

    @property
    def looks(self) -> bool:
        """Whether the method looks at the data."""
        return not isinstance(self.method, TruncatedSVD)

    def affine(self, path: str) -> bool:
        """Whether a shift keeps the mean output. Real and imaginary parts have a mean each, which
        one real shift cannot keep: where they are rows, it is zero.
        """
        return self.looks and not self.survey[path].complex_inputs

    def fits(
        self,
        largest: Mapping[str, int],
        compressed: tuple[Callable[..., Any], PyTree] | None = None,
    ) -> Iterator[tuple[str, list[Observed], Fit]]:
        """Some layers at the ranks up to a largest one, after one pass over the data. With a
        network compressed so far, they are fitted to what they see in it.
        """
        seen = None
        if self.looks and largest:
            select = largest.__contains__
            other = Listener(*compressed, select, self.tied) if compressed else None
            seen = self.listener.observe(self.batches, only=largest, compressed=other)
        for path, limit in largest.items():
            if seen is not None and path not in seen:
                self.remarks[path] = "; ".join(seen.not_followed[path])
                continue
            slices = list(seen.slices(path)) if seen is not None else itertools.repeat(None)
            matrices = self._matrices(path, slices)
            yield path, matrices, self._fit(path, matrices, limit)

    def _matrices(self, path: str, slices: Iterable[Calibration | None]) -> list[Observed]:
        leaf, view = self.leaves[path], self.survey[path].view
        dtype = np.float64 if leaf.dtype == np.float64 else np.float32
        inputs, outputs = view.matrix_shape[-2:]
        weights = view.matrix(np.asarray(leaf)).astype(dtype).reshape(-1, inputs, outputs)
        # With a bias the layer is affine, and its mean output does not move.
        bias = np.zeros(outputs, dtype) if self.affine(path) else None
        try:
            return [
                Observed(weights=each, bias=bias, calibration=seen)
                for each, seen in zip(weights, slices, strict=False)
            ]
        except ValueError as error:
            raise ValueError(f"`parameters{path}`: {error}") from error

    def _fit(self, path: str, matrices: list[Observed], limit: int) -> Fit:
        dtype = stored_dtype(self.leaves[path])
        sweeps = [every_rank(observed, self.method) for observed in matrices]
        weights = np.stack([np.asarray(observed.weights) for observed in matrices])
        seen = [observed.calibration for observed in matrices]
        left, right = (
            np.stack([np.asarray(side, np.float64) for side in sides])
            for sides in zip(*(_leading(sweep, limit) for sweep in sweeps), strict=True)
        )
        left, right = balanced(left, right, dtype)
        shifts = None
        if self.looks:
            parts = zip(weights, left, right, seen, strict=True)
            shifts = self.affine(path) * np.stack([_shifts(*each) for each in parts])
            shifts = rounded(shifts, dtype)
            shifts[:, 0] = 0  # the mean output itself, which may be too large
        largest = _finite(left, right, shifts)
        left, right = left[..., :largest], right[:, :largest]
        shifts = None if shifts is None else shifts[:, : largest + 1]
        measured = measured_errors(weights, left, right, shifts, seen)
        exact, least = _unrounded(path, sweeps, measured.norm)
        tolerance = sweeps[0].certificates.tolerance
        return Fit(self.survey[path].view, left, right, shifts, measured, exact, least, tolerance)


def stored_dtype(leaf: Any) -> np.dtype:
    """The dtype of what replaces a leaf: its own, as far as JAX has it."""
    return np.dtype(jax.dtypes.canonicalize_dtype(leaf.dtype))


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


def _shifts(weights: np.ndarray, left: np.ndarray, right: np.ndarray, seen: Any) -> np.ndarray:
    """Those that keep the mean output, for each rank of the factors as they are stored."""
    weights, left, right = (np.asarray(each, np.float64) for each in (weights, left, right))
    with np.errstate(all="ignore"):
        mean = np.asarray(seen.mean, np.float64) @ weights
        steps = (np.asarray(seen.layer_input_mean, np.float64) @ left)[:, None] * right
        return mean - np.cumsum(np.vstack([np.zeros_like(mean), steps]), axis=0)


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
