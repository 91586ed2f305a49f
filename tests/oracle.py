"""An independent, slow oracle in NumPy and SciPy: every method from its definition.

Nothing of the library is used. Each question is solved by another route than the library's:
LAPACK's `gesvd` rather than `gesdd`, a Cholesky factor rather than added rows, products in extended
precision.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
from numpy.typing import ArrayLike

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Question:
    """Minimise |outputs - inputs Z - bias|^2 + mu |weights - Z|^2 over rank, and bias if affine.

    mu is `penalty`. With a threshold, the nuclear norm of inputs Z is penalised instead.
    """

    inputs: Array
    outputs: Array
    weights: Any = None
    penalty: float = 0.0
    affine: bool = False
    threshold: float | None = None


def product(*matrices: ArrayLike) -> Array:
    """The product, accumulated in extended precision."""
    result = np.asarray(matrices[0], np.longdouble)
    for matrix in matrices[1:]:
        result = result @ np.asarray(matrix, np.longdouble)
    return result


def norm(matrix: ArrayLike) -> float:
    return float(np.sqrt(np.sum(np.asarray(matrix, np.longdouble) ** 2)))


def centred(matrix: Array) -> Array:
    exact = np.asarray(matrix, np.longdouble)
    return np.asarray(exact - exact.mean(axis=0), np.float64)


def svd(matrix: ArrayLike) -> tuple[Array, Array, Array]:
    return scipy.linalg.svd(
        np.asarray(matrix, np.float64), full_matrices=False, lapack_driver="gesvd"
    )


def singular_values(matrix: ArrayLike) -> Array:
    return svd(matrix)[1]


def operator_norm(matrix: ArrayLike) -> float:
    return float(singular_values(matrix)[0])


def nuclear(matrix: ArrayLike) -> float:
    return float(np.sum(singular_values(matrix)))


def tail(matrix: ArrayLike, rank: int) -> float:
    """The norm of what no matrix of this rank captures."""
    return norm(singular_values(matrix)[rank:])


def truncated(matrix: ArrayLike, rank: int) -> Array:
    left, values, right = svd(matrix)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def pseudo_inverse(matrix: Array, cutoff: float = 1e-12) -> Array:
    left, values, right = svd(matrix)
    kept = values > cutoff * max(values[0], np.finfo(float).tiny)
    return (right[kept].T / values[kept]) @ left[:, kept].T


def attainable(inputs: Array, outputs: Array, cutoff: float = 1e-12) -> Array:
    """The projection of the outputs on the columns of the inputs."""
    left, values, _ = svd(inputs)
    basis = left[:, values > cutoff * max(values[0], np.finfo(float).tiny)]
    return np.asarray(product(basis, product(basis.T, outputs)), np.float64)


def solve(question: Question, rank: int) -> tuple[Array, Array | None]:
    """The best weights, and the best bias if affine."""
    inputs, outputs = question.inputs, question.outputs
    if question.affine:
        inputs, outputs = centred(inputs), centred(outputs)
    if question.threshold is not None:
        left, values, right = svd(attainable(inputs, outputs))
        shrunk = np.maximum(values - question.threshold, 0)[:rank]
        weights = pseudo_inverse(inputs) @ ((left[:, :rank] * shrunk) @ right[:rank])
    elif question.penalty:
        root = question.penalty**0.5
        rows = np.concatenate([inputs, root * np.eye(inputs.shape[1])])
        basis, triangle = np.linalg.qr(rows)
        whitened = product(basis.T, np.concatenate([outputs, root * question.weights]))
        weights = scipy.linalg.solve_triangular(
            triangle, truncated(np.asarray(whitened, np.float64), rank)
        )
    else:
        weights = pseudo_inverse(inputs) @ truncated(attainable(inputs, outputs), rank)
    if not question.affine:
        return weights, None
    residual = question.outputs - product(question.inputs, weights)
    return weights, np.asarray(residual.mean(axis=0), np.float64)


def objective(question: Question, weights: Array, bias: Array | None = None) -> float:
    """The square root of the objective; with a threshold, the objective itself."""
    residual = question.outputs - product(question.inputs, weights)
    if bias is not None:
        residual = residual - bias
    if question.threshold is not None:
        price = question.threshold * nuclear(product(question.inputs, weights))
        return norm(residual) ** 2 / 2 + price
    squares = norm(residual) ** 2
    if question.penalty:
        squares += question.penalty * norm(question.weights - weights) ** 2
    return squares**0.5


def mills(x: Any) -> Any:
    """The density of a standard normal over its survival function."""
    return math.sqrt(2 / math.pi) / scipy.special.erfcx(x / math.sqrt(2))


def edge_fluctuation(width: float, failure_probability: float) -> float:
    """How far an extreme singular value of a Gaussian matrix strays beyond its edge."""
    log = math.log(1 / failure_probability)
    return min((9 * width * log**2 / 32) ** (1 / 3), math.sqrt(2 * log))


def upper_edge(rows: int, columns: int, failure_probability: float) -> float:
    """What the norm of a Gaussian matrix exceeds no more often than that."""
    fluctuation = edge_fluctuation(rows**-0.5 + columns**-0.5, failure_probability)
    return math.sqrt(rows) + math.sqrt(columns) + fluctuation


def censored_loss(point: Array, outputs: Array, scale: float) -> float:
    """The negative log-likelihood of rectified outputs, times the variance of the noise."""
    hidden = -(scale**2) * scipy.special.log_ndtr(-point / scale)
    return float(np.sum(np.where(outputs > 0, (outputs - point) ** 2 / 2, hidden)))


def relative_gap(question: Question, rank: int) -> float:
    """(s_r - s_(r+1)) / s_1 of what is truncated; one where nothing is cut."""
    inputs, outputs = question.inputs, question.outputs
    if question.affine:
        inputs, outputs = centred(inputs), centred(outputs)
    if question.penalty:
        root = question.penalty**0.5
        inputs = np.concatenate([inputs, root * np.eye(inputs.shape[1])])
        outputs = np.concatenate([outputs, root * question.weights])
    values = singular_values(attainable(inputs, outputs))
    if rank >= values.size:
        return 1.0
    return float((values[rank - 1] - values[rank]) / max(values[0], np.finfo(float).tiny))
