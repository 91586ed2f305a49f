"""Two factors that stand wherever the dense matrix stood."""

import numbers
from typing import Any

import jax.numpy as jnp
import numpy as np
import quax
from jax import lax
from jax.core import ShapedArray
from jaxtyping import Array, Float

from lowrank_theory._numerics import AnyArray, ours
from lowrank_theory.approximations._approximation import (
    DENSE,
    AbstractMatrix,
    Storage,
    as_stored,
    check_floats,
    readable,
    seen_by_jax,
)


class LowRank(AbstractMatrix):
    r"""The matrix $A = L R$, kept as its factors $L$ (inputs, rank) and $R$ (rank, outputs).

    `activations @ factors` is $(X L) R$, `factors @ columns` is $L (R Y)$, and
    `quax.quaxify(model)` runs a JAX model with factors in the place of a weight matrix; none of
    these forms $A$. `equinox.nn.Linear` keeps its weight as (outputs, inputs): give it `factors.T`.

    Inside `quaxify`, contractions, transposes and casts between float dtypes act on the factors,
    also under `jit`, `vmap`, `scan` and `checkpoint`; whatever else needs the entries of $A$ calls
    `materialise`. Differentiate outside: `jax.grad` of the quaxified function with respect to the
    factors is a `LowRank` of the two gradients.

    Arrays at hand multiply in the precision in which they are stored, NumPy's float64 included;
    under a JAX transformation the x64 flag decides, as it does for any array. Leading axes, shared
    by both factors, make a stack of matrices, as `jax.vmap` returns it.

    Multiples by a number and sums of two are `LowRank` again, the sum of the sum of both ranks.
    `numpy.asarray(factors)` is refused: the matrix is formed where `materialise` is called.
    """

    left: Float[Array | np.ndarray, "*stack inputs rank"]
    right: Float[Array | np.ndarray, "*stack rank outputs"]

    def __init__(self, left: Any, right: Any):
        """Raises `ValueError` unless both are float arrays that multiply; the rank may be zero."""
        for name, factor in (("left", left), ("right", right)):
            check_floats(name, factor)
        multiply = left.ndim >= 2 and (*left.shape[:-2], left.shape[-1]) == right.shape[:-1]
        if not multiply or left.dtype != right.dtype:
            raise ValueError(
                "`left` and `right` must be (inputs, rank) and (rank, outputs) of one dtype; got "
                f"{left.shape} of {left.dtype} and {right.shape} of {right.dtype}. "
                "Transpose or cast one of them."
            )
        self.left, self.right = ours(left), ours(right)

    def aval(self) -> ShapedArray:
        """The (inputs, outputs) array that JAX sees."""
        return seen_by_jax((*self.left.shape[:-1], self.right.shape[-1]), self.left)

    def chains(self) -> tuple[tuple[AnyArray, ...], ...]:
        """One of two."""
        return ((self.left, self.right),)

    def transpose(self) -> "LowRank":
        """$R^T L^T$, (outputs, inputs); also `factors.T`."""
        return LowRank(self.right.swapaxes(-1, -2), self.left.swapaxes(-1, -2))

    @property
    def dtype(self) -> np.dtype:
        """The dtype in which the factors are stored."""
        return self.left.dtype

    @property
    def rank(self) -> int:
        """The width of the factors; the matrix itself may have a smaller rank."""
        return self.left.shape[-1]

    @property
    def storage(self) -> Storage:
        """`rank * (inputs + outputs)` numbers, and as many multiplications of each row."""
        size = self.left.size + self.right.size
        return Storage.of(self.left, self.right, multiply_adds=size)

    @property
    def parameter_count(self) -> int:
        """How many numbers are stored: `rank * (inputs + outputs)`."""
        return self.storage.numbers

    @property
    def storage_bytes(self) -> int:
        """How many bytes these numbers take."""
        return self.storage.bytes

    def __mul__(self, number: Any) -> "LowRank":
        """The multiple by a number, in the dtype of the factors."""
        if not _is_number(number):
            return NotImplemented
        with as_stored(self, number):
            return LowRank(self.left * jnp.asarray(number, self.dtype), self.right)

    __rmul__ = __mul__

    def __truediv__(self, number: Any) -> "LowRank":
        """The matrix over a number."""
        if not _is_number(number):
            return NotImplemented
        with as_stored(self, number):
            return LowRank(self.left / jnp.asarray(number, self.dtype), self.right)

    def __neg__(self) -> "LowRank":
        return LowRank(-self.left, self.right)

    def __add__(self, other: Any) -> "LowRank":
        """The sum, of the rank of both together; nothing is truncated."""
        if not isinstance(other, LowRank):
            return self._not_added(other)
        if self.shape != other.shape or self.dtype != other.dtype:
            raise ValueError(
                f"Only matrices of one shape and dtype are added; got {self.shape} of {self.dtype} "
                f"and {other.shape} of {other.dtype}."
            )
        with as_stored(self, other):
            (left, right), (more, others) = readable(
                [(each.left, each.right) for each in (self, other)]
            )
            return LowRank(
                jnp.concatenate([left, more], axis=-1), jnp.concatenate([right, others], axis=-2)
            )

    def __sub__(self, other: Any) -> "LowRank":
        """The difference, of the rank of both together."""
        return self + -other if isinstance(other, LowRank) else self._not_added(other)

    def _not_added(self, other: Any) -> Any:
        if isinstance(other, Array | np.ndarray) and other.ndim:
            raise TypeError(f"A `LowRank` and an array are not added: {DENSE}")
        return NotImplemented

    __radd__ = __rsub__ = _not_added


def _is_number(value: Any) -> bool:
    if isinstance(value, Array | np.ndarray | np.generic):
        real = (jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer))
        return value.ndim == 0 and any(real)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


_dot_general: Any = quax.quaxify(lax.dot_general)


@quax.register(lax.dot_general_p)
def _(lhs: LowRank, rhs: LowRank, *, dimension_numbers: Any, **options: Any) -> Any:
    """A product of two has the rank of the first."""
    (lhs_axes, rhs_axes), batch = dimension_numbers
    if len(lhs_axes) != 1 or lhs.ndim != 2 or rhs.ndim != 2 or batch != ((), ()):
        return _dot_general(lhs.materialise(), rhs, dimension_numbers, **options)
    first = lhs if lhs_axes == (1,) else lhs.T
    right = _dot_general(first.right, rhs, (((1,), rhs_axes), batch), **options)
    return LowRank(first.left.astype(right.dtype), right)
