r"""What a layer loses as it is stored: in float64, from second moments.

A layer $X\mapsto XW$ becomes $\tilde X\mapsto\tilde XLR + \mathbf 1s^\top$. With $D = W - LR$ and
$\Delta = X - \tilde X$, and with moments about the means, what it loses is

$$\operatorname{tr}\bigl(D^\top\tilde SD + 2D^\top C_\Delta W + W^\top S_\Delta W\bigr)
  + m\lVert\bar xW - \bar{\tilde x}LR - s\rVert^2,\qquad
  \tilde S = \tilde X^\top\tilde X,\ C_\Delta = \tilde X^\top\Delta,\ S_\Delta =
  \Delta^\top\Delta.$$

The first r columns of $L$ and rows of $R$ are the layer of rank r. There $D_r = D + L_{>r}R_{>r}$:
what is left out is added to the loss of the largest rank, so that no digits cancel. All is scaled
by powers of two before it is squared.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lowrank_theory._numerics import rounding_allowance
from lowrank_theory.calibration import AbstractCalibration


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
    moments = [_Moments.of(each, weights.shape[1]) for each in seen]
    unit, turned = _exponent(weights), _exponent(right)
    size = _exponent(*(each.size for each in moments))
    parts = []
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for number, each in enumerate(moments):
            shift = np.zeros(1)
            if shifts is not None:
                shift = _scaled(shifts[number], -unit - size)
            parts.append(
                _slice(
                    _scaled(weights[number], -unit),
                    _scaled(left[number], turned - unit),
                    _scaled(right[number], -turned),
                    shift,
                    each.scaled(-size),
                )
            )
        squares, hidden, moved, outputs = (
            np.sum(each, axis=0) for each in zip(*parts, strict=True)
        )
        upper = np.sqrt(squares + hidden) + np.sqrt(moved)
        norm = np.sqrt(outputs)
        if norm > 0:
            squares, upper = squares / outputs, upper / norm
        return Measured(squares, upper, float(np.ldexp(norm, unit + size)))


class _Moments(NamedTuple):
    r"""$\tilde S$ (`None`: the identity); $\tilde X^\top X$ and $X^\top X$ where these are others;
    $\sqrt m\bar x$ and $\sqrt m\bar{\tilde x}$; $\sqrt m$; and roots of the largest of all these.
    """

    layer: np.ndarray | None
    others: tuple[np.ndarray, np.ndarray] | None
    mean: np.ndarray
    layer_mean: np.ndarray
    root: float
    size: np.ndarray

    @staticmethod
    def of(seen: AbstractCalibration | None, inputs: int) -> "_Moments":
        if seen is None:
            return _Moments(None, None, np.zeros(inputs), np.zeros(inputs), 0.0, np.zeros(1))
        root = float(np.sqrt(float(seen.count)))
        layer, others = np.asarray(seen.compressed_gram(centred=True), np.float64), None
        means = [root * np.asarray(x, np.float64) for x in (seen.mean, seen.layer_input_mean)]
        energies = [np.diagonal(layer)]
        if seen.has_compressed:
            cross, original = (
                np.asarray(each(centred=True), np.float64) for each in (seen.cross_gram, seen.gram)
            )
            others = cross, original
            energies.append(np.diagonal(original))
        size = np.concatenate([*(np.sqrt(np.abs(each)) for each in energies), *means])
        return _Moments(layer, others, means[0], means[1], root, size)

    def scaled(self, power: int) -> "_Moments":
        layer, others = self.layer, self.others
        return self._replace(
            layer=None if layer is None else np.ldexp(layer, 2 * power),
            others=None if others is None else tuple(np.ldexp(each, 2 * power) for each in others),
            mean=np.ldexp(self.mean, power),
            layer_mean=np.ldexp(self.layer_mean, power),
        )

    def times(self, matrix: np.ndarray) -> np.ndarray:
        return matrix if self.layer is None else self.layer @ matrix


def _slice(
    weights: np.ndarray, left: np.ndarray, right: np.ndarray, shifts: np.ndarray, seen: _Moments
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """The squared errors at each rank and what rounding may hide of them, the square of what it may
    move any error by, and the squared norm of the outputs.
    """
    allowance = rounding_allowance(1.0, *weights.shape)
    energy = float(np.sum(weights**2))
    lost = weights - left @ right
    met, weighed = seen.times(lost), seen.times(left)
    total = len(weights) if seen.layer is None else float(np.trace(seen.layer))
    square, unresolved = np.vdot(lost, met), 0.0
    if seen.layer is None or seen.others is None:
        outputs = np.vdot(weights, met + weighed @ right)
    else:
        cross, original = seen.others
        crossed = (cross - seen.layer) @ weights
        between = (original - cross - cross.T + seen.layer) @ weights
        square += 2 * np.vdot(lost, crossed) + np.vdot(weights, between)
        met = met + crossed
        outputs = np.vdot(weights, original @ weights)
        unresolved = energy * (total + float(np.trace(original)))
    pairs = (left.T @ weighed) * (right @ right.T)
    steps = 2 * np.sum(left * (met @ right.T), axis=0) + np.diagonal(pairs)
    squares = square + _beyond(steps + 2 * np.sum(np.triu(pairs, 1), axis=1))
    spread = np.sum(lost**2) + _beyond(np.sum(left**2, axis=0) * np.sum(right**2, axis=1))

    mean, through = seen.mean @ weights, (seen.layer_mean @ left)[:, None] * right
    kept = np.cumsum(np.vstack([np.zeros_like(mean), through]), axis=0)
    squares = np.maximum(squares, 0) + np.sum((mean - kept - seen.root * shifts) ** 2, axis=1)
    return (
        squares,
        allowance * (2 * total * spread + unresolved),
        allowance**2 * energy * (total + float(np.sum(seen.mean**2 + seen.layer_mean**2))),
        float(outputs + np.sum(mean**2)),
    )


def _beyond(steps: np.ndarray) -> np.ndarray:
    """The sums from each on, and of none."""
    return np.append(np.cumsum(steps[::-1])[::-1], 0.0)


def _exponent(*arrays: np.ndarray) -> int:
    """The power of two above all entries."""
    largest = max(float(np.max(np.abs(np.asarray(each, np.float64)), initial=0)) for each in arrays)
    return int(np.frexp(largest)[1]) if np.isfinite(largest) else 0


def _scaled(array: np.ndarray, power: int) -> np.ndarray:
    return np.ldexp(np.asarray(array, np.float64), power)
