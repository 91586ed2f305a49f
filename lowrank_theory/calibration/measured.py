r"""What a layer loses as it is stored: in float64, from second moments.

A layer $X\mapsto XW$ becomes $\tilde X\mapsto\tilde XLR + \mathbf 1s^\top$. With $D = W - LR$ and
$\Delta = X - \tilde X$, and with moments about the means, what it loses is

$$\operatorname{tr}\bigl(D^\top\tilde SD + 2D^\top C_\Delta W + W^\top S_\Delta W\bigr)
  + m\lVert\bar xW - \bar{\tilde x}LR - s\rVert^2,\qquad
  \tilde S = \tilde X^\top\tilde X,\ C_\Delta = \tilde X^\top\Delta,\ S_\Delta =
  \Delta^\top\Delta.$$

The first r columns of $L$ and rows of $R$ are the layer of rank r. There $D_r = D + L_{>r}R_{>r}$:
what is left out is added to the loss of the largest rank, so that no digits cancel. Where rows are
known that have these moments, those of a triangular factor, no square of an input is formed. All is
scaled by powers of two before it is squared.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lowrank_theory._numerics import rounding_allowance
from lowrank_theory.calibration import AbstractCalibration, TriangularCalibration


class Measured(NamedTuple):
    r"""What the layers of the ranks 0, 1, ... lose.

    - `squares`: the squared error of the outputs over their squared norm;
    - `upper`: the relative error, not squared, with all that rounding in float64 may hide;
    - `norm`: that of the outputs, $\lVert XW\rVert_F$.
    """

    squares: Float[np.ndarray, " ranks"]
    upper: Float[np.ndarray, " ranks"]
    norm: float


def measured_errors(
    weights: Float[np.ndarray, "slices inputs outputs"],
    left: Float[np.ndarray, "slices inputs rank"],
    right: Float[np.ndarray, "slices rank outputs"],
    shifts: Float[np.ndarray, "slices ranks outputs"] | None,
    seen: Sequence[AbstractCalibration | None],
) -> Measured:
    """The errors of the leading parts of these factors, of all slices together.

    The numbers, of any dtype, are taken as they are stored; `shifts` has one shift for each rank
    from 0. Where nothing was seen, the error is that of the weights themselves.
    """
    factors = [_Replacement(*each) for each in zip(left, right, strict=True)]
    return _measured(weights, factors, shifts, seen)


def measured_error(
    weights: Float[np.ndarray, "slices inputs outputs"],
    matrices: Float[np.ndarray, "slices inputs outputs"],
    shifts: Float[np.ndarray, "slices outputs"] | None,
    seen: Sequence[AbstractCalibration | None],
) -> Measured:
    """The same of one matrix in the place of each, which need not be of low rank: arrays of one
    number.
    """
    fixed = [_Replacement(np.zeros((len(a), 0)), np.zeros((0, a.shape[1])), a) for a in matrices]
    return _measured(weights, fixed, None if shifts is None else shifts[:, None], seen)


class Rows(NamedTuple):
    r"""Rows of $X$ and $\tilde X$, how often each of them came, and whether these are all."""

    original: Float[np.ndarray, "samples inputs"]
    layer: Float[np.ndarray, "samples inputs"]
    counts: Float[np.ndarray, " samples"]
    complete: bool = True

    @staticmethod
    def of(seen: AbstractCalibration) -> "Rows":
        """The sample that a calibration keeps. Raises `ValueError` where it keeps none."""
        sample = seen.rows_seen
        if sample is None or sample.rows is None:
            raise ValueError(
                "`calibration` keeps no rows, which this needs: start it by "
                "`Calibration.empty(inputs, rows=True)`."
            )
        there = np.asarray(sample.counts) > 0
        original, counts = np.asarray(sample.rows)[there], np.asarray(sample.counts)[there]
        layer = original if sample.compressed is None else np.asarray(sample.compressed)[there]
        return Rows(original, layer, counts, float(np.sum(counts)) == float(seen.count))

    def mean(self, outputs: np.ndarray) -> np.ndarray:
        """That of what the rows gave."""
        return self.counts @ outputs / max(float(np.sum(self.counts)), 1.0)


def measured_on_rows(
    outputs: Sequence[Float[np.ndarray, "samples outputs"]],
    made: Sequence[Float[np.ndarray, "samples outputs"]],
    rows: Sequence[Rows],
) -> Measured:
    """The same of any map, slice by slice: what these rows gave, and give now. Of a sample nothing
    is sure.
    """
    power = _exponent(*outputs, *made)
    totals = np.zeros(2)
    for wanted, found, each in zip(outputs, made, rows, strict=True):
        for place, difference in enumerate((wanted - found, wanted)):
            totals[place] += float(each.counts @ np.sum(_scaled(difference, -power) ** 2, axis=1))
    error, norm = totals[0], float(np.sqrt(totals[1]))
    allowance = rounding_allowance(1.0, *outputs[0].shape)
    share = error / totals[1] if norm > 0 else error
    upper = np.sqrt(share) + allowance if all(each.complete for each in rows) else np.inf
    return Measured(np.array([share]), np.array([upper]), float(np.ldexp(norm, power)))


class _Replacement(NamedTuple):
    """What stands for a matrix: factors, of which the leading parts are judged, and a part that is
    always there.
    """

    left: np.ndarray
    right: np.ndarray
    fixed: np.ndarray | None = None

    def scaled(self, power: int, right_power: int) -> "_Replacement":
        fixed = None if self.fixed is None else _scaled(self.fixed, -power)
        left, right = _scaled(self.left, right_power - power), _scaled(self.right, -right_power)
        return _Replacement(left, right, fixed)

    def magnitudes(self) -> np.ndarray:
        product = np.abs(self.left) @ np.abs(self.right)
        return product if self.fixed is None else np.abs(self.fixed) + product

    def matrix(self) -> np.ndarray:
        product = self.left @ self.right
        return product if self.fixed is None else self.fixed + product


def _measured(
    weights: np.ndarray,
    replacements: Sequence[_Replacement],
    shifts: np.ndarray | None,
    seen: Sequence[AbstractCalibration | None],
) -> Measured:
    moments = [_Moments.of(each, weights.shape[1]) for each in seen]
    weights_power = _exponent(weights)
    right_power = _exponent(*(each.right for each in replacements))
    size = _exponent(*(each.size for each in moments))
    parts = []
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for number, each in enumerate(moments):
            shift = np.zeros(1)
            if shifts is not None:
                shift = _scaled(shifts[number], -weights_power - size)
            parts.append(
                _of_one_slice(
                    _scaled(weights[number], -weights_power),
                    replacements[number].scaled(weights_power, right_power),
                    shift,
                    each.scaled(-size),
                )
            )
        squares, cancellation, rounding, outputs = (
            np.sum(each, axis=0) for each in zip(*parts, strict=True)
        )
        upper = np.sqrt(squares + cancellation) + np.sqrt(rounding)
        norm = np.sqrt(outputs)
        if norm > 0:
            squares, upper = squares / outputs, upper / norm
        return Measured(squares, upper, float(np.ldexp(norm, weights_power + size)))


class _Moments(NamedTuple):
    r"""$\tilde S$ (`None`: the identity); $\tilde X^\top X$ and $X^\top X$ where these are others;
    in the place of all these `rows` that have them, of $\tilde X$ and $X$; $\sqrt m\bar x$ and
    $\sqrt m\bar{\tilde x}$; $\sqrt m$; and roots of the largest of all these.
    """

    layer: np.ndarray | None
    others: tuple[np.ndarray, np.ndarray] | None
    rows: tuple[np.ndarray, np.ndarray] | None
    mean: np.ndarray
    layer_mean: np.ndarray
    root: float
    size: np.ndarray

    @staticmethod
    def of(seen: AbstractCalibration | None, inputs: int) -> "_Moments":
        if seen is None:
            zeros = np.zeros(inputs)
            return _Moments(None, None, None, zeros, zeros, 0.0, np.zeros(1))
        root = float(np.sqrt(float(seen.count)))
        means = [root * np.asarray(x, np.float64) for x in (seen.mean, seen.layer_input_mean)]
        if isinstance(seen, TriangularCalibration):
            layer, original = (x if x is None else np.asarray(x)[1:] for x in seen.rows())
            assert original is not None
            rows = original if layer is None else layer, original
            size = np.concatenate(
                [np.max(np.abs(x), axis=0) for x in (*rows, means[:1], means[1:])]
            )
            return _Moments(None, None, rows, means[0], means[1], root, size)
        layer, others = np.asarray(seen.compressed_gram(centred=True), np.float64), None
        squares = [np.diagonal(layer)]
        if seen.has_compressed:
            cross, original = (
                np.asarray(each(centred=True), np.float64) for each in (seen.cross_gram, seen.gram)
            )
            others = cross, original
            squares.append(np.diagonal(original))
        size = np.concatenate([*(np.sqrt(np.abs(each)) for each in squares), *means])
        return _Moments(layer, others, None, means[0], means[1], root, size)

    def scaled(self, power: int) -> "_Moments":
        def squares(array: np.ndarray) -> np.ndarray:
            return np.ldexp(array, 2 * power)

        def sizes(array: np.ndarray) -> np.ndarray:
            return np.ldexp(array, power)

        return self._replace(
            layer=None if self.layer is None else squares(self.layer),
            others=None if self.others is None else tuple(map(squares, self.others)),
            rows=None if self.rows is None else tuple(map(sizes, self.rows)),
            mean=sizes(self.mean),
            layer_mean=sizes(self.layer_mean),
        )

    def times(self, matrix: np.ndarray) -> np.ndarray:
        if self.rows is not None:
            return self.rows[0].T @ (self.rows[0] @ matrix)
        return matrix if self.layer is None else self.layer @ matrix

    def error(self, weights: np.ndarray, difference: np.ndarray) -> "_Error":
        r"""Of $E = \tilde XD + \Delta W$, without the means."""
        if self.rows is not None:
            layer, original = self.rows
            error = layer @ difference
            if layer is not original:
                error = error + (original - layer) @ weights
            outputs, total = float(np.sum((original @ weights) ** 2)), float(np.sum(layer**2))
            return _Error(float(np.sum(error**2)), layer.T @ error, 0.0, outputs, total)
        gradient, energy = self.times(difference), float(np.sum(weights**2))
        total = float(len(weights) if self.layer is None else np.trace(self.layer))
        square = float(np.vdot(difference, gradient))
        if self.layer is None or self.others is None:
            outputs = float(np.vdot(weights, self.times(weights)))
            return _Error(square, gradient, 0.0, outputs, total)
        cross, original = self.others
        crossed = (cross - self.layer) @ weights
        between = (original - cross - cross.T + self.layer) @ weights
        square += 2 * float(np.vdot(difference, crossed)) + float(np.vdot(weights, between))
        unresolved = energy * (total + float(np.trace(original)))
        outputs = float(np.vdot(weights, original @ weights))
        return _Error(square, gradient + crossed, unresolved, outputs, total)

    def rounding_square(self, weights: np.ndarray, made: np.ndarray, total: float) -> float:
        r"""The square of what $E$ and the means are rounded on the scale of: norms of moments and
        weights, or entry by entry where rows are known, so that an input of no weight adds nothing.
        """
        if self.rows is None:
            means = float(np.sum(self.mean**2 + self.layer_mean**2))
            return float(np.sum(weights**2)) * (total + means)
        layer, original, sizes = *map(np.abs, self.rows), np.abs(weights)
        formed = layer @ (sizes + made) + (original + layer) @ sizes
        means = np.abs(self.mean) @ sizes + np.abs(self.layer_mean) @ made
        return float(np.sum(formed**2) + np.sum(means**2))


class _Error(NamedTuple):
    r"""$\lVert E\rVert_F^2$, $\tilde X^\top E$ (half the gradient), on what scale differences
    of moments are rounded, $\lVert XW\rVert_F^2$ and $\lVert\tilde X\rVert_F^2$.
    """

    square: float
    gradient: np.ndarray
    unresolved: float
    outputs: float
    total: float


def _of_one_slice(
    weights: np.ndarray, made: _Replacement, shifts: np.ndarray, seen: _Moments
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """The squared errors at each rank and what rounding may hide of them, the square of what it may
    move any error by, and the squared norm of the outputs.
    """
    allowance = rounding_allowance(1.0, *weights.shape)
    left, right = made.left, made.right
    difference = weights - made.matrix()
    error, weighed = seen.error(weights, difference), seen.times(left)
    pairs = (left.T @ weighed) * (right @ right.T)
    steps = 2 * np.sum(left * (error.gradient @ right.T), axis=0) + np.diagonal(pairs)
    squares = error.square + _tail_sums(steps + 2 * np.sum(np.triu(pairs, 1), axis=1))
    if seen.rows is None:
        spread = _tail_sums(np.sum(left**2, axis=0) * np.sum(right**2, axis=1))
        cancellation = 2 * error.total * (np.sum(difference**2) + spread) + error.unresolved
    else:  # nothing is squared: a share of the error itself, and of the components left out
        cancellation = error.square + len(right) * _tail_sums(np.diagonal(pairs))

    mean, steps_of_mean = seen.mean @ weights, (seen.layer_mean @ left)[:, None] * right
    first = np.zeros_like(mean) if made.fixed is None else seen.layer_mean @ made.fixed
    made_means = np.cumsum(np.vstack([first, steps_of_mean]), axis=0)
    squares = np.maximum(squares, 0) + np.sum((mean - made_means - seen.root * shifts) ** 2, axis=1)
    return (
        squares,
        allowance * cancellation,
        allowance**2 * seen.rounding_square(weights, made.magnitudes(), error.total),
        error.outputs + float(np.sum(mean**2)),
    )


def _tail_sums(steps: np.ndarray) -> np.ndarray:
    """The sums from each on, and of none."""
    return np.append(np.cumsum(steps[::-1])[::-1], 0.0)


def _exponent(*arrays: np.ndarray) -> int:
    """The power of two above all entries."""
    largest = max(float(np.max(np.abs(np.asarray(each, np.float64)), initial=0)) for each in arrays)
    return int(np.frexp(largest)[1]) if np.isfinite(largest) else 0


def _scaled(array: np.ndarray, power: int) -> np.ndarray:
    return np.ldexp(np.asarray(array, np.float64), power)
