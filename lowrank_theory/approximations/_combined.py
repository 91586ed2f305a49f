"""Matrices made of others: sums, products, transposes."""

import functools
import operator
from typing import Any

import numpy as np
from jax.core import ShapedArray

from lowrank_theory._numerics import AnyArray
from lowrank_theory.approximations._approximation import AbstractMatrix, Storage


class Sum(AbstractMatrix):
    """The sum of matrices: low rank + sparse, rounded + low rank. Each row meets all parts."""

    parts: tuple[AbstractMatrix, ...]

    def __init__(self, parts: Any):
        """Raises `ValueError` unless there are parts, of one shape and one dtype."""
        parts = tuple(parts)
        if not parts or not all(isinstance(part, AbstractMatrix) for part in parts):
            raise ValueError(f"`parts` must be approximations that are matrices; got {parts!r}.")
        kinds = {(part.shape, np.dtype(part.dtype)) for part in parts}
        if len(kinds) > 1:
            raise ValueError(
                f"`parts` must be of one shape and dtype; got {sorted(kinds, key=str)}."
            )
        self.parts = parts

    def aval(self) -> ShapedArray:
        """The array that JAX sees."""
        return self.parts[0].aval()

    def chains(self) -> tuple[tuple[AnyArray, ...], ...]:
        """Those of all parts."""
        return tuple(chain for part in self.parts for chain in part.chains())

    def transpose(self) -> "Sum":
        """The sum of the transposes."""
        return Sum(part.transpose() for part in self.parts)

    @property
    def dtype(self) -> np.dtype:
        """That of the parts."""
        return self.parts[0].dtype

    @property
    def storage(self) -> Storage:
        """Of the parts, and the additions that put their outputs together."""
        *stack, _, outputs = self.shape
        between = (len(self.parts) - 1) * outputs * int(np.prod(stack, dtype=int))
        each = (part.storage for part in self.parts)
        return functools.reduce(operator.add, each, Storage(additions=between))


class Product(AbstractMatrix):
    """The product of two matrices that may be anything: factors that are rounded, or sparse."""

    left: AbstractMatrix
    right: AbstractMatrix

    def __init__(self, left: Any, right: Any):
        """Raises `ValueError` unless they multiply and have one dtype."""
        for name, factor in (("left", left), ("right", right)):
            if not isinstance(factor, AbstractMatrix):
                raise ValueError(
                    f"`{name}` must be an approximation that is a matrix; got "
                    f"{type(factor).__name__}. `Dense` makes one of an array."
                )
        multiply = (*left.shape[:-2], left.shape[-1]) == right.shape[:-1]
        if not multiply or left.dtype != right.dtype:
            raise ValueError(
                "`left` and `right` must be (inputs, rank) and (rank, outputs) of one dtype; got "
                f"{left.shape} of {left.dtype} and {right.shape} of {right.dtype}."
            )
        self.left, self.right = left, right

    def aval(self) -> ShapedArray:
        """The array that JAX sees."""
        *stack, inputs, _ = self.left.shape
        return ShapedArray((*stack, inputs, self.right.shape[-1]), self.left.aval().dtype)

    def chains(self) -> tuple[tuple[AnyArray, ...], ...]:
        """The two factors, each made dense."""
        return ((self.left.materialise(), self.right.materialise()),)

    def transpose(self) -> "Product":
        """The transposes in the other order."""
        return Product(self.right.transpose(), self.left.transpose())

    @property
    def dtype(self) -> np.dtype:
        """That of the factors."""
        return self.left.dtype

    @property
    def storage(self) -> Storage:
        """Of both."""
        return self.left.storage + self.right.storage


class Transposed(AbstractMatrix):
    """The transpose of a matrix that is kept as it is."""

    matrix: AbstractMatrix

    def aval(self) -> ShapedArray:
        """The array that JAX sees."""
        *stack, inputs, outputs = self.matrix.shape
        return ShapedArray((*stack, outputs, inputs), self.matrix.aval().dtype)

    def chains(self) -> tuple[tuple[AnyArray, ...], ...]:
        """The transposes in the other order."""
        return tuple(
            tuple(factor.swapaxes(-1, -2) for factor in reversed(chain))
            for chain in self.matrix.chains()
        )

    def transpose(self) -> AbstractMatrix:
        """The matrix."""
        return self.matrix

    @property
    def dtype(self) -> np.dtype:
        """That of the matrix."""
        return self.matrix.dtype

    @property
    def storage(self) -> Storage:
        """That of the matrix."""
        return self.matrix.storage
