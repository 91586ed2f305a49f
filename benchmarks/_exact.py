"""Stacks of small layers beyond float64: true errors, true optima, and how far either may be off.

Products, projections and singular values are computed in the processor's 80-bit floats. Only a
projection on columns that they cannot tell apart is repeated with eighty decimal digits. Each
result says by how much its own rounding may have moved it (`doubt`, in the units of the outputs).

Arrays hold stored numbers, exact in float64; the first axis counts the layers.
"""

import dataclasses
import decimal
import math
from typing import Any

import numpy as np

Array = np.ndarray

UNIT = float(np.finfo(np.longdouble).eps) / 2
_DIGITS = decimal.Context(prec=80, Emax=10**6, Emin=-(10**6))
_DEPENDENT = decimal.Decimal("1e-55")  # what is left of a column that the others span
_SWEEPS = 40
_SHARP = 1e-13  # of the outputs: a projection that may be worse than this is repeated in decimals


def check_extended() -> None:
    if np.finfo(np.longdouble).nmant < 63:
        raise SystemExit("This needs NumPy's `longdouble` to have a mantissa of 64 bits or more.")


def extended(array: Any) -> Array:
    return np.asarray(np.asarray(array, np.float64), np.longdouble)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a stack of layers sees and should give: Y = XW + b, unless `outputs` are given.

    With a `penalty` mu, also sqrt(mu) W for the rows sqrt(mu) I. `affine` has a bias that is free;
    a `bias` that is not stays what it is. Without activations: weights in the place of outputs.
    """

    weights: Array
    activations: Array | None = None
    compressed: Array | None = None
    outputs: Array | None = None
    bias: Array | None = None
    penalty: Array | None = None
    affine: bool = False


@dataclasses.dataclass(frozen=True)
class Value:
    """A number for each layer, and by how much rounding may have moved it."""

    value: Array
    doubt: Array


def norm(matrices: Array) -> Array:
    return np.sqrt(np.sum(np.square(matrices), axis=(-2, -1)))


def _rounding(*terms: Array) -> Array:
    """What rounding does to a short chain of products and one decomposition of such magnitude."""
    return 64 * UNIT * sum(norm(term) for term in terms)


def _identity(seen: Seen) -> Array:
    size = seen.weights.shape[1]
    return np.broadcast_to(np.eye(size, dtype=np.longdouble), (len(seen.weights), size, size))


def _rows(seen: Seen) -> tuple[Array, Array, Array, Array]:
    """What the new layer sees, what it should give, where its bias counts, and the magnitudes of
    what the outputs are a sum of.
    """
    weights = extended(seen.weights)
    if seen.activations is None:
        rows = _identity(seen)
        return rows, weights, np.zeros((weights.shape[1], 1)), np.abs(weights)
    inputs = extended(seen.activations)
    if seen.outputs is None:
        outputs, size = inputs @ weights, np.abs(inputs) @ np.abs(weights)
        if seen.bias is not None:
            outputs = outputs + extended(seen.bias)[:, None]
            size = size + np.abs(extended(seen.bias))[:, None]
    else:
        outputs = extended(seen.outputs)
        size = np.abs(outputs)
    inputs = inputs if seen.compressed is None else extended(seen.compressed)
    counts = np.ones((inputs.shape[1], 1))
    if seen.penalty is not None:
        root = np.sqrt(extended(seen.penalty))[:, None, None]
        inputs = np.concatenate([inputs, root * _identity(seen)], axis=1)
        outputs = np.concatenate([outputs, root * weights], axis=1)
        size = np.concatenate([size, root * np.abs(weights)], axis=1)
        counts = np.concatenate([counts, np.zeros((weights.shape[1], 1))])
    return inputs, outputs, counts, size


def error(seen: Seen, left: Array, right: Array, bias: Array | None) -> Value:
    """The error of these factors and this bias; infinite where one of them is not finite."""
    inputs, outputs, counts, size = _rows(seen)
    factors = [np.asarray(factor, np.float64) for factor in (left, right)]
    shift = np.zeros((len(inputs), right.shape[-1])) if bias is None else np.asarray(bias, float)
    numbers = [factor.reshape(len(inputs), -1) for factor in (*factors, shift)]
    finite = np.all([np.isfinite(each).all(axis=1) for each in numbers], axis=0)
    first, second, shift = (
        extended(np.where(finite.reshape(-1, *[1] * (each.ndim - 1)), each, 0))
        for each in (*factors, shift)
    )
    shift = counts * shift[:, None]
    change = outputs - inputs @ first @ second - shift
    sizes = np.abs(inputs) @ np.abs(first) @ np.abs(second)
    value = np.where(finite, norm(change), np.inf)
    return Value(value, _rounding(size, sizes, np.abs(shift)))


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The least error at the rank, the norm of what is approximated, and the doubt of both."""

    value: Array
    target: Array
    doubt: Array


def optimum(seen: Seen, rank: int) -> Optimum:
    inputs, outputs, counts, size = _rows(seen)
    doubt = _rounding(size)
    if seen.affine:
        inputs, outputs = (_centred(each, counts) for each in (inputs, outputs))
    elif seen.bias is not None:  # which the layer keeps
        outputs = outputs - counts * extended(seen.bias)[:, None]
    target = norm(outputs)
    missing = np.zeros(len(outputs), np.longdouble)
    if seen.compressed is not None or seen.outputs is not None:
        outputs, missing, more = _projected(seen, inputs, outputs)
        doubt = doubt + more
    tail = singular_values(outputs)[:, rank:]
    return Optimum(np.sqrt(missing**2 + np.sum(tail**2, axis=1)), target, doubt)


def _centred(rows: Array, counts: Array) -> Array:
    mean = np.sum(counts * rows, axis=1, keepdims=True) / np.sum(counts)
    return rows - counts * mean


def _projected(seen: Seen, inputs: Array, outputs: Array) -> tuple[Array, Array, Array]:
    """Coordinates of the outputs in an orthonormal basis of the columns of the inputs, the norm of
    the rest, and the doubt of both.
    """
    lengths = np.sqrt(np.sum(inputs**2, axis=1, keepdims=True))
    unit = np.where(lengths > 0, inputs / np.where(lengths > 0, lengths, 1), 0)
    before = extended(seen.activations if seen.compressed is None else seen.compressed)
    before = np.sqrt(np.sum(before**2, axis=1, keepdims=True))
    lost = np.max(before / np.where(lengths > 0, lengths, 1), axis=(1, 2))  # to the centring
    values = np.linalg.svd(np.asarray(unit, np.float64), compute_uv=False)
    smallest = np.maximum(values[:, min(unit.shape[1:]) - 1 - seen.affine * _short(unit)], 1e-30)
    doubt = 64 * UNIT * unit.shape[2] * lost / smallest
    basis = np.zeros_like(unit)
    for column in range(unit.shape[2]):
        left = unit[:, :, column : column + 1]
        for _ in range(2):
            left = left - basis @ (basis.swapaxes(1, 2) @ left)
        length = norm(left)[:, None, None]
        basis[:, :, column : column + 1] = np.where(
            length > 0, left / np.where(length > 0, length, 1), 0
        )
    coordinates = basis.swapaxes(1, 2) @ outputs
    missing = norm(outputs - basis @ coordinates)
    doubt = doubt * norm(outputs)
    for lane in np.flatnonzero(~(doubt <= _SHARP * norm(outputs))):
        coordinates[lane], missing[lane] = in_decimals(seen, int(lane))
        doubt[lane] = 0
    return coordinates, missing, doubt


def _short(unit: Array) -> int:
    """Centred rows are dependent: where these are the shorter side, one singular value is zero."""
    return int(unit.shape[1] <= unit.shape[2])


def _decimals(array: Array) -> Array:
    return np.vectorize(lambda number: decimal.Decimal(float(number)), otypes=[object])(array)


def in_decimals(seen: Seen, lane: int) -> tuple[Array, Array]:
    """The same for one layer, by orthogonalisation with eighty digits; a column within 1e-55 of the
    span of those before it is dependent.
    """
    with decimal.localcontext(_DIGITS):
        assert seen.activations is not None
        stored = _decimals(seen.activations[lane])
        if seen.outputs is None:
            outputs = stored @ _decimals(seen.weights[lane])
            outputs = outputs if seen.bias is None else outputs + _decimals(seen.bias[lane])
        else:
            outputs = _decimals(seen.outputs[lane])
        inputs = stored if seen.compressed is None else _decimals(seen.compressed[lane])
        if seen.affine:
            inputs, outputs = (
                each - each.sum(axis=0) / decimal.Decimal(len(each)) for each in (inputs, outputs)
            )
        elif seen.bias is not None:
            outputs = outputs - _decimals(seen.bias[lane])
        coordinates = np.zeros((inputs.shape[1], outputs.shape[1]), np.longdouble)
        basis: list[Array] = []
        for index, column in enumerate(inputs.T):
            left = column
            for _ in range(2):
                for other in basis:
                    left = left - other * (other @ left)
            length = (left @ left).sqrt()
            if length <= _DEPENDENT * (column @ column).sqrt():
                continue
            basis.append(left / length)
            row = basis[-1] @ outputs
            outputs = outputs - np.outer(basis[-1], row)
            coordinates[index] = _extended(row)
        return coordinates, _extended(np.array([(outputs**2).sum().sqrt()]))[0]


def _extended(numbers: Array) -> Array:
    return np.array([np.longdouble(str(number)) for number in numbers])


def singular_values(matrices: Array) -> Array:
    """Of a stack, largest first, by one-sided Jacobi rotations in the precision of the matrices.

    Each sweep meets all pairs of columns, as many disjoint ones at a time as there are.
    """
    if matrices.shape[1] < matrices.shape[2]:
        matrices = matrices.swapaxes(1, 2)
    columns = np.ascontiguousarray(np.moveaxis(matrices, 0, 2).swapaxes(0, 1))
    count = columns.shape[0]
    if count % 2:
        columns = np.concatenate([columns, np.zeros_like(columns[:1])])
    size = len(columns)
    order = np.arange(size)
    least = 64 * UNIT * np.sqrt(np.sum(columns**2, axis=(0, 1)))  # a shorter column is rounding
    for _ in range(_SWEEPS):
        worst = 0.0
        for _ in range(size - 1):
            first, second = order[: size // 2], order[: size // 2 - 1 : -1]
            worst = max(worst, _rotate(columns, first, second, least))
            order = np.concatenate([order[:1], order[-1:], order[1:-1]])
        if worst <= 8 * UNIT * math.sqrt(columns.shape[1]):
            break
    else:
        raise RuntimeError(f"Rotations did not converge: {worst:.1e} is left.")
    values = np.sort(np.sqrt(np.sum(columns**2, axis=1)), axis=0)[::-1]
    return values[:count].T


def _rotate(columns: Array, first: Array, second: Array, least: Array) -> float:
    """Make pairs of columns orthogonal in place; the largest cosine that was between two, if both
    have at least this length.
    """
    x, y = columns[first], columns[second]
    a, b, c = np.sum(x * x, axis=1), np.sum(y * y, axis=1), np.sum(x * y, axis=1)
    long = np.minimum(a, b) > least**2
    cosine = np.abs(np.where(long, c / np.where(long, np.sqrt(a) * np.sqrt(b), 1), 0))
    turn = (cosine > UNIT) | (~long & (c != 0))
    ratio = (b - a) / np.where(turn, 2 * c, 1)
    tangent = np.where(ratio < 0, -1, 1) / (np.abs(ratio) + np.sqrt(1 + ratio**2))
    tangent = np.where(turn, tangent, 0)
    cos = 1 / np.sqrt(1 + tangent**2)
    cos, sin = cos[:, None], (cos * tangent)[:, None]
    columns[first], columns[second] = cos * x - sin * y, sin * x + cos * y
    return float(np.max(cosine))
