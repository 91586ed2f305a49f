"""Stacks of small layers beyond float64: true errors, true optima, and how far either may be off.

Numbers are the processor's 80-bit floats or, with `decimals`, of eighty decimal digits; a
projection on columns that the former can hardly tell apart is always repeated with the latter. Each
result says by how much its own rounding may have moved it (`doubt`, in the units of the outputs).

Arrays hold stored numbers, exact in float64; the first axis counts the layers.
"""

import dataclasses
import decimal
from typing import Any, TypeVar

import numpy as np

Array = np.ndarray
Stacks = TypeVar("Stacks", bound=Any)

UNIT = float(np.finfo(np.longdouble).eps) / 2
_CONTEXT = decimal.Context(prec=80, Emax=10**6, Emin=-(10**6))
_DEPENDENT = decimal.Decimal("1e-55")  # the distance of a unit column from the span of others
_SWEEPS = 40
_SHARP = 1e-13  # of the outputs: a projection that may be worse than this is repeated


def check_extended() -> None:
    if np.finfo(np.longdouble).nmant < 63:
        raise SystemExit("This needs NumPy's `longdouble` to have a mantissa of 64 bits or more.")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a stack of layers sees and should give: Y = XW + b, unless `outputs` are given.

    With a `penalty` mu, also sqrt(mu) W for the rows sqrt(mu) I. `affine` has a bias that is free;
    a `bias` without it stays what it is. Without activations, the weights themselves are wanted.
    """

    weights: Array
    activations: Array | None = None
    compressed: Array | None = None
    outputs: Array | None = None
    bias: Array | None = None
    penalty: Array | None = None
    affine: bool = False


@dataclasses.dataclass(frozen=True)
class Error:
    """Of each layer, and by how much rounding may have moved it."""

    value: Array
    doubt: Array


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The least error at the rank, the norm of what is approximated, and the doubt of both."""

    value: Array
    target: Array
    doubt: Array


def error(
    seen: Seen, left: Array, right: Array, bias: Array | None, *, decimals: bool = False
) -> Error:
    """The error of these factors and this bias; infinite where one of them is not finite."""
    shift = np.zeros((len(left), right.shape[-1])) if bias is None else bias
    given = left, right, shift[:, None]
    finite = np.all([np.isfinite(each).all(axis=(1, 2)) for each in given], axis=0)
    numbers = _numbers(decimals)
    left, right, shift = (numbers(np.where(finite[:, None, None], each, 0)) for each in given)
    with decimal.localcontext(_CONTEXT):
        rows = _rows(seen, decimals)
        shift = rows.counts * shift
        change = rows.outputs - rows.inputs @ left @ right - shift
        sizes = np.abs(rows.inputs) @ np.abs(left) @ np.abs(right)
        value = np.where(finite, _extended(norm(change)), np.inf)
        return Error(value, _rounding(decimals, rows.sizes, sizes, np.abs(shift)))


def optimum(seen: Seen, rank: int, *, decimals: bool = False, resolution: float = 0.0) -> Optimum:
    """Of all layers or, with a resolution, of those that use only directions of the inputs that
    numbers stored with this machine epsilon can tell from none.
    """
    with decimal.localcontext(_CONTEXT):
        rows = _rows(seen, decimals)
        doubt = _rounding(decimals, rows.sizes)
        inputs, outputs = _approximated(seen, rows)
        target, missing = norm(outputs), 0 * norm(outputs)
        if seen.compressed is not None or seen.outputs is not None:
            if resolution:
                inputs = _resolved(inputs, resolution)
            precise = decimals or bool(resolution)
            outputs, missing, more = _projected(seen, rows, inputs, outputs, decimals, precise)
            doubt = doubt + more
        tail = singular_values(outputs)[:, rank:]
        value = np.sqrt(missing**2 + np.sum(tail**2, axis=1))
        return Optimum(_extended(value), _extended(target), doubt)


def norm(matrices: Array) -> Array:
    return np.sqrt(np.sum(np.square(matrices), axis=(-2, -1)))


def _numbers(decimals: bool) -> Any:
    """The arithmetic: float64 numbers, exactly, as those to compute with."""
    if decimals:
        return np.vectorize(lambda number: decimal.Decimal(float(number)), otypes=[object])
    return lambda array: np.asarray(np.asarray(array, np.float64), np.longdouble)


def _extended(numbers: Array) -> Array:
    if numbers.dtype != object:
        return numbers
    return np.array([np.longdouble(str(each)) for each in numbers.ravel()]).reshape(numbers.shape)


def _rounding(decimals: bool, *terms: Array) -> Array:
    """What rounding does to a short chain of products and one decomposition of such magnitude."""
    if decimals:
        return np.zeros(len(terms[0]), np.longdouble)
    return 64 * UNIT * np.sum([norm(term) for term in terms], axis=0)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What the new layer sees, what it should give, in which rows its bias counts, and the
    magnitudes of what the outputs are a sum of.
    """

    inputs: Array
    outputs: Array
    counts: Array
    sizes: Array


def _rows(seen: Seen, decimals: bool) -> _Rows:
    numbers = _numbers(decimals)
    weights = numbers(seen.weights)
    size = weights.shape[1]
    identity = numbers(np.broadcast_to(np.eye(size), (len(weights), size, size)))
    if seen.activations is None:
        return _Rows(identity, weights, numbers(np.zeros((size, 1))), np.abs(weights))
    inputs = numbers(seen.activations)
    if seen.outputs is None:
        outputs, sizes = inputs @ weights, np.abs(inputs) @ np.abs(weights)
        if seen.bias is not None:
            bias = numbers(seen.bias)[:, None]
            outputs, sizes = outputs + bias, sizes + np.abs(bias)
    else:
        outputs = numbers(seen.outputs)
        sizes = np.abs(outputs)
    inputs = inputs if seen.compressed is None else numbers(seen.compressed)
    counts = numbers(np.ones((inputs.shape[1], 1)))
    if seen.penalty is not None:
        root = np.sqrt(numbers(seen.penalty))[:, None, None]
        inputs = np.concatenate([inputs, root * identity], axis=1)
        outputs = np.concatenate([outputs, root * weights], axis=1)
        sizes = np.concatenate([sizes, root * np.abs(weights)], axis=1)
        counts = np.concatenate([counts, numbers(np.zeros((size, 1)))])
    return _Rows(inputs, outputs, counts, sizes)


def _approximated(seen: Seen, rows: _Rows) -> tuple[Array, Array]:
    """Inputs and outputs without what the bias does."""
    if seen.affine:

        def centred(array: Array) -> Array:
            mean = np.sum(rows.counts * array, axis=1, keepdims=True) / np.sum(rows.counts)
            return array - rows.counts * mean

        return centred(rows.inputs), centred(rows.outputs)
    if seen.bias is None:
        return rows.inputs, rows.outputs
    kept = _numbers(rows.outputs.dtype == object)(seen.bias)
    return rows.inputs, rows.outputs - rows.counts * kept[:, None]


def _resolved(inputs: Array, resolution: float) -> Array:
    """The inputs along their right singular vectors that stand out, columns made alike in size by
    powers of two; zero in the place of the others.
    """
    largest = np.max(np.abs(np.asarray(inputs, np.float64)), axis=1, keepdims=True)
    powers = np.where(largest > 0, 2.0 ** -np.frexp(np.where(largest > 0, largest, 1))[1], 1.0)
    inputs = inputs * _numbers(inputs.dtype == object)(powers)
    _, values, right = np.linalg.svd(np.asarray(inputs, np.float64), full_matrices=False)
    cutoff = 8 * resolution * np.sqrt(min(inputs.shape[1:])) * values[:, :1]
    kept = np.where((values > cutoff)[:, None], right.swapaxes(1, 2), 0)
    return inputs @ _numbers(inputs.dtype == object)(kept)


def _projected(
    seen: Seen, rows: _Rows, inputs: Array, outputs: Array, decimals: bool, precise: bool
) -> tuple[Array, Array, Array]:
    """Coordinates of the outputs in an orthonormal basis of the columns of the inputs, the norm of
    the rest, and the doubt of both.
    """
    lengths = np.sqrt(np.sum(inputs**2, axis=1, keepdims=True))
    unit = _quotient(inputs, lengths)
    rank = min(rows.inputs.shape[1] - seen.affine, unit.shape[2])  # of the centred rows, at most
    basis = 0 * unit
    # Resolved inputs are all but orthogonal: what is left of one that is not new is rounding.
    dependent = _DEPENDENT if decimals else 1e-3 if precise else 0
    for column in range(rank):  # the one that is furthest from the span so far
        left = unit - basis @ (basis.swapaxes(1, 2) @ unit)
        furthest = np.argmax(np.sum(left**2, axis=1), axis=1)[:, None, None]
        left = np.take_along_axis(left, furthest, axis=2)
        left = left - basis @ (basis.swapaxes(1, 2) @ left)
        length = norm(left)[:, None, None]
        length = np.where(length > dependent, length, 0 * length)
        basis[:, :, column : column + 1] = _quotient(left, length)
    coordinates = basis.swapaxes(1, 2) @ outputs
    missing = norm(outputs - basis @ coordinates)
    if precise:
        return coordinates, missing, np.zeros(len(unit), np.longdouble)
    before = np.sqrt(np.sum(rows.inputs**2, axis=1, keepdims=True))
    lost = np.max(_quotient(before, lengths), axis=(1, 2))  # to the centring
    values = np.linalg.svd(np.asarray(unit, np.float64), compute_uv=False)
    doubt = 64 * UNIT * unit.shape[2] * lost / np.maximum(values[:, rank - 1], 1e-30)
    for lane in np.flatnonzero(~(doubt <= _SHARP)):
        one = part(seen, np.array([lane]))
        again = _rows(one, True)
        found = _projected(one, again, *_approximated(one, again), True, True)
        coordinates[lane], missing[lane] = (_extended(each)[0] for each in found[:2])
        doubt[lane] = 0
    return coordinates, missing, doubt * norm(outputs)


def _quotient(array: Array, by: Array) -> Array:
    """Zero where the divisor is."""
    return np.where(by > 0, array / np.where(by > 0, by, by + 1), 0 * array)


def part(stacks: Stacks, lanes: Array) -> Stacks:
    """Some of the layers of any such record."""
    fields = {field.name: getattr(stacks, field.name) for field in dataclasses.fields(stacks)}
    arrays = {name: value[lanes] for name, value in fields.items() if isinstance(value, Array)}
    return dataclasses.replace(stacks, **arrays)


def singular_values(matrices: Array) -> Array:
    """Of a stack, largest first, by one-sided Jacobi rotations in the precision of the matrices.

    Each sweep meets all pairs of columns, as many disjoint ones at a time as there are.
    """
    unit = decimal.Decimal("1e-70") if matrices.dtype == object else np.longdouble(UNIT)
    if matrices.shape[1] < matrices.shape[2]:
        matrices = matrices.swapaxes(1, 2)
    columns = np.ascontiguousarray(np.moveaxis(matrices, 0, 2).swapaxes(0, 1))
    count = columns.shape[0]
    if count % 2:
        columns = np.concatenate([columns, 0 * columns[:1]])
    size = len(columns)
    order = np.arange(size)
    least = 64 * unit * np.sqrt(np.sum(columns**2, axis=(0, 1)))  # a shorter column is rounding
    worst = 1.0
    for _ in range(_SWEEPS):
        if worst <= 64 * float(unit):
            break
        worst = 0.0
        for _ in range(size - 1):
            first, second = order[: size // 2], order[: size // 2 - 1 : -1]
            worst = max(worst, _rotate(columns, first, second, least))
            order = np.concatenate([order[:1], order[-1:], order[1:-1]])
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
    longer = np.minimum(a, b) > least**2
    cosine = np.where(longer, np.abs(_quotient(c, np.sqrt(a) * np.sqrt(b))), 0 * c)
    turned = c != 0
    ratio = (b - a) / np.where(turned, 2 * c, 1 + 0 * c)
    with np.errstate(over="ignore"):
        tangent = np.where(ratio < 0, -1, 1) / (np.abs(ratio) + np.sqrt(1 + ratio**2))
    tangent = np.where(turned, tangent, 0 * c)
    cos = 1 / np.sqrt(1 + tangent**2)
    cos, sin = cos[:, None], (cos * tangent)[:, None]
    columns[first], columns[second] = cos * x - sin * y, sin * x + cos * y
    return float(np.max(cosine))
