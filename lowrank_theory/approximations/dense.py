"""The matrix itself."""

from typing import Any

import numpy as np
from jax.core import ShapedArray
from jaxtyping import Array, Float

from lowrank_theory._numerics import AnyArray, ours
from lowrank_theory.approximations._approximation import (
    AbstractMatrix,
    Storage,
    check_floats,
    seen_by_jax,
)


class Dense(AbstractMatrix):
    """A matrix that is kept as it is: a part of a `Sum` or a factor of a `Product`."""

    matrix: Float[Array | np.ndarray, "*stack inputs outputs"]

    def __init__(self, matrix: Any):
        """Raises `ValueError` unless it is an array of floats with two axes or more."""
        check_floats("matrix", matrix, "inputs", "outputs")
        self.matrix = ours(matrix)

    def aval(self) -> ShapedArray:
        """The array that JAX sees."""
        return seen_by_jax(self.matrix.shape, self.matrix)

    def chains(self) -> tuple[tuple[AnyArray, ...], ...]:
        """The matrix."""
        return ((self.matrix,),)

    def transpose(self) -> "Dense":
        """The transpose."""
        return Dense(self.matrix.swapaxes(-1, -2))

    @property
    def dtype(self) -> np.dtype:
        """That of the matrix."""
        return self.matrix.dtype

    @property
    def storage(self) -> Storage:
        """Every number, and as many multiplications."""
        return Storage.of(self.matrix, multiply_adds=self.matrix.size)
