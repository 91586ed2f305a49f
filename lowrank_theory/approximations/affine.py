"""An approximation with a shift of its outputs."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from lowrank_theory._numerics import AnyArray, ours
from lowrank_theory.approximations._approximation import (
    AbstractApproximation,
    Storage,
    as_stored,
)
from lowrank_theory.approximations.low_rank import LowRank


class Affine(AbstractApproximation):
    r"""The map $x \mapsto xA + s$: an `approximation`, and a `shift` of its outputs.

    It stands for a weight in `replace`, where the layer has a bias and where it has none. With $s =
    \bar x(W - A)$ the mean error over rows of mean $\bar x$ is zero. The shift is (outputs,), with
    the leading axes of the approximation where it is a stack, and in its dtype.
    """

    approximation: AbstractApproximation
    shift: Float[Array | np.ndarray, "*stack outputs"]

    def __init__(self, approximation: Any, shift: Any):
        """Raises `ValueError` unless the shift has the shape and the dtype of the products."""
        matrix = isinstance(approximation, AbstractApproximation)
        if not matrix or isinstance(approximation, Affine):
            raise ValueError(
                "`approximation` must be one without a shift, such as a `LowRank`; got "
                f"{type(approximation).__name__}."
            )
        wanted = (*approximation.shape[:-2], approximation.shape[-1])
        array = isinstance(shift, Array | np.ndarray)
        if not array or (shift.shape, shift.dtype) != (wanted, approximation.dtype):
            got = f"{shift.shape} of {shift.dtype}" if array else type(shift).__name__
            raise ValueError(
                f"`shift` must be an array {wanted} of {approximation.dtype}, one number for each "
                f"output of the approximation; got {got}."
            )
        self.approximation, self.shift = approximation, ours(shift)

    def apply(
        self, rows: Float[AnyArray, "*stack samples inputs"]
    ) -> Float[AnyArray, "*stack samples outputs"]:
        """$XA + s$ in each row."""
        with as_stored(rows, self):
            return self.approximation.apply(rows) + self.shift[..., None, :]

    @property
    def factors(self) -> LowRank:
        """The approximation where it is low rank. Raises `ValueError` for another."""
        if not isinstance(self.approximation, LowRank):
            raise ValueError(
                f"It is a `{type(self.approximation).__name__}`, which has no factors: use "
                "`approximation`."
            )
        return self.approximation

    @property
    def shape(self) -> tuple[int, ...]:
        """(*stack, inputs, outputs)."""
        return self.approximation.shape

    @property
    def dtype(self) -> Any:
        """That of both."""
        return self.approximation.dtype

    @property
    def storage(self) -> Storage:
        """Of the approximation, and a number and an addition for each output."""
        return self.approximation.storage + Storage.of(self.shift, additions=self.shift.size)
