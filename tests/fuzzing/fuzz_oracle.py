"""What is true of a layer, in extended precision, and whether a promise about it is.

Nothing of the library is used. `numpy.longdouble` reaches from 1e-4932 to 1e4932, so that squares
of whatever float64 holds stay finite, and one-sided Jacobi rotations find singular values to some
18 digits, small ones too.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.special

Array = np.ndarray
Number = Any  # a `numpy.longdouble`, which type checkers do not know as a float

ROUNDING = np.longdouble(1e-17)  # of the oracle itself, for sums over a few dozen entries


class Lie(Exception):  # noqa: N818
    """A promise that the oracle refutes."""


def exact(array: Any) -> Array:
    """Every number of the array, of whatever float dtype, as it is stored."""
    array = np.asarray(array)
    return (array if array.dtype == np.longdouble else array.astype(float)).astype(np.longdouble)


def norm(array: Any) -> Number:
    return np.sqrt(np.sum(exact(array) ** 2))


def svd(matrix: Any) -> tuple[Array, Array, Array]:
    """U, s, V^T, largest first, by one-sided Jacobi rotations."""
    matrix = exact(matrix)
    if matrix.shape[0] < matrix.shape[1]:
        left, values, right = svd(matrix.T)
        return right.T, values, left.T
    columns, turned = matrix.T.copy(), np.eye(matrix.shape[1], dtype=np.longdouble)
    for _ in range(60):
        rotated = False
        for i in range(len(columns)):
            for j in range(i + 1, len(columns)):
                a, b = columns[i] @ columns[i], columns[j] @ columns[j]
                c = columns[i] @ columns[j]
                if c == 0 or abs(c) <= 2e-19 * np.sqrt(a) * np.sqrt(b):
                    continue
                rotated = True
                slope = (b - a) / (2 * c)
                tangent = 1 / (abs(slope) + np.sqrt(1 + slope**2)) * (1 if slope >= 0 else -1)
                cosine = 1 / np.sqrt(1 + tangent**2)
                turn = np.array([[cosine, -cosine * tangent], [cosine * tangent, cosine]])
                columns[[i, j]], turned[[i, j]] = turn @ columns[[i, j]], turn @ turned[[i, j]]
        if not rotated:
            break
    values = np.sqrt(np.sum(columns**2, axis=1))
    order = np.argsort(values)[::-1]
    values, columns = values[order], columns[order]
    return (columns / np.where(values > 0, values, 1)[:, None]).T, values, turned[order]


def alike(rows: Array) -> Array:
    """Each column divided by a power of two, so that its largest entry is between one and two."""
    largest = np.max(np.abs(rows), axis=0)
    _, powers = np.frexp(np.where(largest > 0, largest, 1))
    return np.ldexp(rows, 1 - powers)


@dataclasses.dataclass(frozen=True)
class Layer:
    r"""$\min_Z\lVert Y - \tilde XZ - 1b^\top\rVert_F^2 + \mu\lVert W - Z\rVert_F^2$ over the rank,
    and over b if `affine`.

    Where the layer sees and gives what it always did, Y = XW lies in the range of X. Otherwise
    directions of X~ below `cutoff` do not count (the one documented rank cut-off of stored rows,
    whose columns are made alike in size by powers of two), and neither do those within ten per
    cent of it: there the larger optimum is allowed.
    """

    inputs: Array
    outputs: Array
    weights: Array | None
    penalty: Number
    affine: bool
    values: Array
    unattainable: Number
    basis: Array

    @staticmethod
    def of(
        weights: Any,
        activations: Any,
        compressed: Any = None,
        outputs: Any = None,
        bias: Any = None,
        *,
        penalty: float = 0.0,
        cutoff: float = 0.0,
        centred: bool | None = None,
    ) -> "Layer":
        x = exact(activations)
        seen = x if compressed is None else exact(compressed)
        w = None if weights is None else exact(weights)
        changed = not (compressed is None and outputs is None)
        product = None
        if outputs is None:
            assert w is not None
            product = x @ w
            outputs = product + (0 if bias is None else exact(bias))
        wanted, affine = exact(outputs), bias is not None if centred is None else centred
        rows, target = seen, wanted
        if affine:
            target = wanted if product is None else product  # which may be lost beside the bias
            rows, target = rows - rows.mean(axis=0), target - target.mean(axis=0)
        if penalty:
            assert w is not None
            root = np.sqrt(np.longdouble(penalty))
            rows = np.concatenate([rows, root * np.eye(rows.shape[1], dtype=np.longdouble)])
            target = np.concatenate([target, root * w])
        left, sizes, _ = svd(alike(rows) if changed else rows)
        kept = sizes > 1.1 * cutoff * sizes[0] if changed else sizes > 0
        basis = left[:, kept]
        values, missing = svd(target)[1], np.longdouble(0)
        if changed:
            values = svd(basis.T @ target)[1] if kept.any() else np.zeros(1, np.longdouble)
            missing = norm(target - basis @ (basis.T @ target)) ** 2
        return Layer(seen, wanted, w, np.longdouble(penalty), affine, values, missing, basis)

    @property
    def norm(self) -> Number:
        """The norm of what is approximated."""
        return np.sqrt(np.sum(self.values**2) + self.unattainable)

    def optimum(self, rank: int) -> Number:
        return np.sqrt(self.unattainable + np.sum(self.values[rank:] ** 2))

    def error(self, left: Any, right: Any, bias: Any = None) -> Number:
        """The root of the objective at Z = LR."""
        z = exact(left) @ exact(right)
        squares = norm(self.outputs - self.inputs @ z - (0 if bias is None else exact(bias))) ** 2
        if self.penalty:
            squares += self.penalty * norm(self.weights - z) ** 2
        return np.sqrt(squares)

    def noise(self, left: Any, right: Any) -> Number:
        """How far the oracle itself may be off."""
        size = norm(self.inputs) * norm(left) * norm(right) + norm(self.outputs) + self.norm
        if self.penalty and self.weights is not None:
            size += np.sqrt(self.penalty) * (norm(self.weights) + norm(left) * norm(right))
        return ROUNDING * size


def representable(number: Any) -> bool:
    return bool(number == 0 or 1e-280 < number < 1e280)


def check_close(name: str, got: Any, true: Any, slack: Any) -> None:
    """A stated number must be true, where float64 can hold it."""
    if representable(true) and not abs(np.longdouble(got) - true) <= slack:
        raise Lie(f"`{name}` is {float(got):.6g}, and truly {float(true):.6g}")


def check_promises(
    certificate: Any,
    arrays: list[Any],
    *,
    error: Number,
    optimum: Number,
    norm: Number,
    noise: Number,
) -> bool:
    """Whether the result is certified; a `Lie` where anything it promises is false.

    `optimum` is that of the exact problem.
    """
    finite = all(np.isfinite(exact(array)).all() for array in arrays)
    numbers = [np.asarray(x) for x in (certificate.optimal_error, certificate.excess_bound)]
    stated, bound = (np.longdouble(float(x)) for x in numbers)
    if bool(certificate.finite) and not finite:
        raise Lie("`finite` is true, and returned numbers are not")
    certified = bool(certificate.certified)
    if certified and not (finite and np.isfinite(stated) and np.isfinite(bound)):
        raise Lie("certified, and returned or stated numbers are not finite")
    if not finite:
        return False
    excess = error - optimum
    if not excess <= bound * (1 + 1e-9) + noise and not np.isnan(bound):
        raise Lie(
            f"exceeds the optimum {float(optimum):.4g} by {float(excess):.4g}, and "
            f"`excess_bound` is {float(bound):.4g} (certified {certified}, norm {float(norm):.3g})"
        )
    allowed = max(certificate.tolerance * optimum, 1e-10 * norm)
    if certified:
        if not excess <= 1.001 * allowed + noise:
            raise Lie(
                f"certified, and exceeds the optimum {float(optimum):.4g} by {float(excess):.4g} "
                f"(norm {float(norm):.3g})"
            )
        check_close("optimal_error", stated, optimum, 2 * allowed + 1e-6 * optimum + noise)
        check_close("target_norm", certificate.target_norm, norm, 1e-6 * norm + noise)
    return certified


# --- methods that act on singular values ----------------------------------------------------------


def residual(layer: Layer, multipliers: Array, rank: int) -> Number:
    """What is left where singular value i is multiplied by h_i, zero from `rank` on."""
    kept = np.where(np.arange(len(layer.values)) < rank, multipliers, 0)
    return np.sqrt(layer.unattainable + np.sum(((1 - kept) * layer.values) ** 2))


def soft(values: Array, threshold: Any) -> Array:
    lowered = np.maximum(values - threshold, 0)
    return lowered / np.where(values > 0, values, 1)


def ball_threshold(values: Array, radius: Any) -> Number:
    """How far the values must be lowered for their positive parts to sum to the radius."""
    sums = np.cumsum(values) - np.longdouble(radius)
    return max(np.longdouble(0), np.max(sums / np.arange(1, len(values) + 1)))


def frobenius_shrinkage(values: Array, unit: Any, aspect: float) -> Array:
    """Multipliers of the rule of least squared error for noise of this unit."""
    if unit == 0:
        return np.ones_like(values)
    y = values / unit
    inside = np.maximum((y**2 - aspect - 1) ** 2 - 4 * aspect, 0)
    seen = y > 1 + np.sqrt(np.longdouble(aspect))
    return np.where(seen, np.sqrt(inside) / np.where(y > 0, y, 1) ** 2, 0)


# --- convex problems: the objective at a point that is nearly the best ----------------------------


def nuclear_fit(inputs: Array, outputs: Array, *, penalty: Any = None, radius: Any = None) -> Array:
    """Z of nearly least |Y - XZ|^2/2 + penalty |Z|_*, or within the radius; float64 will do, for
    whatever feasible point it finds is no less than the minimum.
    """
    steps, size = 200, float(np.linalg.norm(inputs, 2))
    z = ahead = np.zeros((inputs.shape[1], outputs.shape[1]))
    if size == 0 or not np.isfinite(size):
        return z
    momentum, inputs, outputs = 1.0, inputs / size, outputs / size
    for _ in range(steps):
        moved = ahead - inputs.T @ (inputs @ ahead - outputs)
        left, values, right = np.linalg.svd(moved, full_matrices=False)
        threshold = ball_threshold(values, radius) if penalty is None else penalty / size / size
        lowered = np.maximum(values - float(threshold), 0)
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        z, before = (left * lowered) @ right, z
        ahead, momentum = z + (momentum - 1) / following * (z - before), following
    return z


def matching_loss(fitted: Array, outputs: Array) -> Number:
    return np.sum(np.maximum(fitted, 0) ** 2 / 2 - outputs * fitted)


def censored_loss(fitted: Array, outputs: Array, scale: float) -> Number:
    hidden = -(scale**2) * scipy.special.log_ndtr(np.asarray(-fitted / scale, float))
    return np.sum(np.where(outputs > 0, (outputs - fitted) ** 2 / 2, hidden))


# --- ranks, losses, allocations -------------------------------------------------------------------


def energy_ranks(values: Array, fraction: float, slack: float) -> set[int]:
    """The ranks that keep the fraction, for any spectrum within `slack` s_1 of this one."""
    total, found = np.sum(values**2), set()
    for moved in (-slack, 0.0, slack):
        before = np.cumsum(values**2) - values**2
        found.add(int(np.sum(before < (fraction + moved) * total)))
    low, high = min(found), max(found)
    # Values that storing may have made count as zero, or not.
    real = int(np.sum(values > slack * values[0]))
    return set(range(min(low, real), high + 1))


def unit_losses(outputs: Any, replaced: Any) -> Array:
    """min(1, |Y - Y'|^2 / |Y|^2) of each unit."""
    y, other = (exact(each).reshape(len(each), -1) for each in (outputs, replaced))
    errors, squares = np.sum((y - other) ** 2, axis=1), np.sum(y**2, axis=1)
    clipped = np.minimum(errors, squares) / np.where(squares > 0, squares, 1)
    return np.where(squares > 0, clipped, errors > 0).astype(np.longdouble)


def order_free_bound(losses: Array, failure_probability: float) -> float:
    """The least mean that a mixture of bets refutes, by the formula of the docstring."""
    log = math.log(1 / failure_probability)

    def refuted(m: float) -> bool:
        capital = []
        for share, boldness in ((1 / 3, 3), (2 / 3, 1)):
            stake = min(1.0, boldness * math.sqrt(2 * log * (1 - m) / (m * len(losses))))
            with np.errstate(divide="ignore"):
                log_capital = np.sum(np.log1p(stake * ((1 - losses) / (1 - m) - 1)))
            capital.append(log_capital + math.log(share))
        return bool(np.logaddexp.reduce(capital) >= log)

    low, high = 0.0, 1.0
    for _ in range(52):
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high


def best_loss(options: list[list[tuple[int, float]]], budget: float) -> float:
    """The least sum of losses within the budget, by trying everything."""
    sums = [(0, 0.0)]
    for choices in options:
        sums = [(c + cost, v + loss) for c, v in sums for cost, loss in choices]
    return min((loss for cost, loss in sums if cost <= budget), default=math.inf)
