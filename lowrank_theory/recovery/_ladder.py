"""A ladder: a method whose approximations come in sizes, and what it makes of one layer."""

import abc
import enum
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from lowrank_theory._numerics import AnyArray, is_float
from lowrank_theory.approximations import AbstractApproximation, AbstractMatrix, Storage
from lowrank_theory.calibration import AbstractCalibration, TriangularCalibration
from lowrank_theory.calibration.measured import Rows, measured_error, measured_on_rows
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._recover import MeasuredError, Recovery


class Need(enum.Enum):
    """What a ladder must know of what the layer sees. Weights alone are no need.

    Every calibration holds second moments and absolute means. It keeps a sample of rows where one
    of the ladders needs `ROWS`; in sequence, each beside its row in the compressed network.
    """

    MOMENTS = "second moments"
    ABSOLUTE_MEANS = "absolute means"
    ROWS = "rows"


class AbstractSweep(eqx.Module):
    """What a ladder makes of one layer: sizes 0, 1, ..."""

    @property
    @abc.abstractmethod
    def squared_errors(self) -> Float[AnyArray, "*stack sizes"]:
        """Those of the outputs, or of the weights where the ladder needs nothing else."""

    @property
    @abc.abstractmethod
    def squared_norm(self) -> Float[AnyArray, "*stack"]:
        """That of what is approximated."""

    @property
    @abc.abstractmethod
    def storages(self) -> tuple[Storage, ...]:
        """What each size takes."""

    @abc.abstractmethod
    def name(self, size: int) -> str:
        """The size in words, such as `rank 8`."""

    @abc.abstractmethod
    def at(self, size: int, /) -> Recovery:
        """The recovery of this size."""


class AbstractLadder(eqx.Module):
    """A method with sizes: ranks, numbers of bits, numbers of entries that stay.

    `networks.compress` takes one or several. To add one, return a `Sweep` of a few sizes, eight at
    most unless the user asks for more.
    """

    @property
    @abc.abstractmethod
    def needs(self) -> frozenset[Need]:
        """Nothing, or what must have been observed."""

    @abc.abstractmethod
    def sweep(self, observed: Observed) -> AbstractSweep:
        """The layer at all sizes. Raises `ValueError` where what it needs was not observed."""


class Sweep(AbstractSweep):
    """The sizes of a ladder, one recovery each; errors are as measured, of what is returned."""

    recoveries: tuple[Recovery, ...]
    names: tuple[str, ...] = eqx.field(static=True)

    @staticmethod
    def of(
        ladder: AbstractLadder,
        observed: Observed,
        sizes: Sequence[tuple[str, AbstractApproximation]],
    ) -> "Sweep":
        """Each size by its name, judged by the error of what is returned: of the outputs on the
        calibration where there is one, and else of the weights; of what is no matrix, on rows. A
        ladder that needs data keeps the mean output by a new bias.
        """
        names = tuple(name for name, _ in sizes)
        return Sweep(tuple(_measured(ladder, observed, matrix) for _, matrix in sizes), names)

    @property
    def squared_errors(self) -> Float[np.ndarray, " sizes"]:
        """As measured."""
        return np.array([float(each.error) ** 2 for each in self._known()])

    @property
    def squared_norm(self) -> Float[np.ndarray, ""]:
        """Of the outputs, or of the weights."""
        return np.asarray(max((float(each.target_norm) ** 2 for each in self._known()), default=0))

    @property
    def storages(self) -> tuple[Storage, ...]:
        """Of the approximations; not of the bias."""
        return tuple(each.approximation.storage for each in self.recoveries)

    def name(self, size: int) -> str:
        """Its own word for it."""
        return self.names[size]

    def at(self, size: int, /) -> Recovery:
        """The recovery of this size."""
        return self.recoveries[size]

    def _known(self) -> list[MeasuredError]:
        known = (recovery.certificate for recovery in self.recoveries)
        return [each for each in known if isinstance(each, MeasuredError)]


def trained_weights(ladder: AbstractLadder, observed: Observed) -> Any:
    """The weights, or a `ValueError` where only outputs were observed."""
    if observed.weights is None:
        raise ValueError(
            f"`{type(ladder).__name__}` approximates weights: give `Observed(weights=...)`."
        )
    return observed.weights


def as_calibration(observed: Observed) -> AbstractCalibration | None:
    """The calibration, or rows in the form of one; `None` where nothing was seen."""
    if observed.activations is None:
        return observed.calibration
    compressed = observed.compressed_activations
    empty = TriangularCalibration.empty(observed.shape[0], compressed=compressed is not None)
    return empty.update(observed.activations, compressed)


def rows_of(observed: Observed) -> Rows:
    """The rows at hand, or those that the calibration keeps. Raises `ValueError` without any."""
    if observed.activations is not None:
        original, layer = (
            np.asarray(x, np.float64) for x in (observed.activations, observed.layer_inputs)
        )
        return Rows(original, layer, np.ones(len(original)))
    if observed.calibration is None:
        raise ValueError(
            "This needs rows that the layer sees: give `Observed(activations=...)`, or a "
            "calibration that keeps some."
        )
    return Rows.of(observed.calibration)


def _measured(
    ladder: AbstractLadder, observed: Observed, approximation: AbstractApproximation
) -> Recovery:
    keeps_mean = observed.bias is not None and bool(ladder.needs)
    bias = observed.bias
    if isinstance(approximation, AbstractMatrix):
        weights, seen = np.asarray(observed.weights, np.float64), as_calibration(observed)
        dense, shift = dense_float64(approximation), None
        if keeps_mean and seen is not None:
            before, after = (np.asarray(x, np.float64) for x in (seen.mean, seen.layer_input_mean))
            mean_change = before @ weights - after @ dense
            bias, shift = _new_bias(observed.bias, mean_change, approximation.dtype)
        shifts = None if shift is None else shift[None]
        measured = measured_error(weights[None], dense[None], shifts, [seen])
    else:
        rows, (outputs, approximated) = rows_of(observed), outputs_of_both(observed, approximation)
        if keeps_mean:
            mean_change = rows.mean(outputs) - rows.mean(approximated)
            bias, shift = _new_bias(observed.bias, mean_change, approximation.dtype)
            approximated = approximated + shift
        measured = measured_on_rows([outputs], [approximated], [rows])
    unit = measured.norm if measured.norm > 0 else 1.0
    numbers = [leaf for leaf in jax.tree.leaves((approximation, bias)) if is_float(leaf)]
    error = float(np.sqrt(measured.squares[0]))
    certificate = MeasuredError(
        error=np.asarray(error * unit),
        rounding=np.asarray((float(measured.upper[0]) - error) * unit),
        target_norm=np.asarray(measured.norm),
        finite=np.asarray(all(np.isfinite(np.asarray(x, np.float64)).all() for x in numbers)),
    )
    return Recovery(approximation, bias, certificate, ladder)


def _new_bias(bias: Any, mean_change: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The bias that makes up for a change of the mean output, and its own change, as stored."""
    before = np.asarray(bias, np.float64)
    rounded = (before + mean_change).astype(dtype)
    return rounded, rounded.astype(np.float64) - before


def outputs_of_both(
    observed: Observed, approximation: AbstractApproximation
) -> tuple[np.ndarray, np.ndarray]:
    """What the layer makes of its rows, and what stands for it, in float64."""
    rows = rows_of(observed)
    wide = approximation.map_floats(lambda leaf: np.asarray(leaf).astype(np.float64))
    return rows.original @ np.asarray(observed.weights, np.float64), np.asarray(
        wide.apply(rows.layer)
    )


def dense_float64(matrix: AbstractMatrix) -> np.ndarray:
    """The dense matrix of these numbers, in float64."""
    wide: Callable[[Any], Any] = lambda leaf: np.asarray(leaf).astype(np.float64)  # noqa: E731
    return np.asarray(matrix.map_floats(wide).materialise())
