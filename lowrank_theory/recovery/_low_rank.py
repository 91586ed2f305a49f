"""Two factors that stand wherever the dense matrix stood."""

import contextlib
import numbers
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import quax
from jax import lax
from jax.core import ShapedArray, Tracer
from jax.extend.core.primitives import remat_p
from jaxtyping import Array, ArrayLike, Float

from lowrank_theory._numerics import ours
from lowrank_theory._settings import all_floats

_DENSE = "`factors.materialise()` is the dense matrix."


class LowRank(quax.ArrayValue):
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

    __array_ufunc__ = None  # or NumPy, on the left of `@`, would not leave the product to us

    def __init__(self, left: Any, right: Any):
        """Raises `ValueError` unless both are float arrays that multiply; the rank may be zero."""
        for name, factor in (("left", left), ("right", right)):
            dtype: Any = getattr(factor, "dtype", type(factor).__name__)
            plain = isinstance(factor, Array | np.ndarray) and not np.ma.isMaskedArray(factor)
            if not (plain and jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= 8):
                raise ValueError(
                    f"`{name}` must be a NumPy or JAX array of floats; got {dtype}. "
                    "Convert it, for example with `numpy.asarray(..., dtype='float32')`."
                )
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
        shape = (*self.left.shape[:-1], self.right.shape[-1])
        return ShapedArray(shape, jax.typeof(self.left).dtype)

    def materialise(self) -> Array | np.ndarray:
        """The dense matrix $L R$, (inputs, outputs)."""
        with _as_stored(self):
            return self.left @ self.right

    @property
    def dtype(self) -> np.dtype:
        """The dtype in which the factors are stored."""
        return self.left.dtype

    @property
    def rank(self) -> int:
        """The width of the factors; the matrix itself may have a smaller rank."""
        return self.left.shape[-1]

    @property
    def parameter_count(self) -> int:
        """How many numbers are stored: `rank * (inputs + outputs)`."""
        return self.left.size + self.right.size

    @property
    def storage_bytes(self) -> int:
        """How many bytes these numbers take."""
        return self.parameter_count * self.dtype.itemsize

    def transpose(self) -> "LowRank":
        """$R^T L^T$, (outputs, inputs); also `factors.T`."""
        return LowRank(self.right.swapaxes(-1, -2), self.left.swapaxes(-1, -2))

    T = property(transpose)

    def __rmatmul__(self, other: Any) -> Any:
        """$(X L) R$: from (..., inputs) to (..., outputs)."""
        with _as_stored(other, self._one()):
            other = ours(other)
            return (other @ self.left) @ self.right

    def __matmul__(self, other: Any) -> Any:
        """$L (R Y)$, from (..., outputs, columns) to (..., inputs, columns); a vector to a vector.

        The product with another `LowRank` is a `LowRank` of the rank of the first.
        """
        with _as_stored(self._one(), other):
            other = other if isinstance(other, LowRank) else ours(other)
            if isinstance(other, LowRank):
                return _matmul(self, other._one())
            return self.left @ (self.right @ other)

    def __mul__(self, number: Any) -> "LowRank":
        """The multiple by a number, in the dtype of the factors."""
        if not _is_number(number):
            return NotImplemented
        with _as_stored(self, number):
            return LowRank(self.left * jnp.asarray(number, self.dtype), self.right)

    __rmul__ = __mul__

    def __truediv__(self, number: Any) -> "LowRank":
        """The matrix over a number."""
        if not _is_number(number):
            return NotImplemented
        with _as_stored(self, number):
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
        with _as_stored(self, other):
            return LowRank(
                jnp.concatenate([self.left, other.left], axis=-1),
                jnp.concatenate([self.right, other.right], axis=-2),
            )

    def __sub__(self, other: Any) -> "LowRank":
        """The difference, of the rank of both together."""
        return self + -other if isinstance(other, LowRank) else self._not_added(other)

    def _not_added(self, other: Any) -> Any:
        if isinstance(other, Array | np.ndarray) and other.ndim:
            raise TypeError(f"A `LowRank` and an array are not added: {_DENSE}")
        return NotImplemented

    __radd__ = __rsub__ = _not_added

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(f"A `LowRank` is no array, and is not made one unasked: {_DENSE}")

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise TypeError(f"`numpy.{function.__name__}` takes arrays, and no `LowRank`: {_DENSE}")

    def _one(self) -> "LowRank":
        if self.ndim != 2:
            raise ValueError(f"`@` takes one matrix, not a stack {self.shape}: use `jax.vmap`.")
        return self


def _as_stored(*arrays: Any) -> contextlib.AbstractContextManager[Any]:
    """Keep float64 at hand; a traced array follows the x64 flag, as its backward pass will."""
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arrays))
    return contextlib.nullcontext() if traced else all_floats()


def _is_number(value: Any) -> bool:
    if isinstance(value, Array | np.ndarray | np.generic):
        real = (jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer))
        return value.ndim == 0 and any(real)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


# --- what JAX's primitives do with a `LowRank` inside `quax.quaxify` ------------------------------

_matmul: Any = quax.quaxify(jnp.matmul)
_dot_general: Any = quax.quaxify(lax.dot_general)


@quax.register(lax.dot_general_p)
def _(lhs: ArrayLike, rhs: LowRank, *, dimension_numbers: Any, **options: Any) -> Any:
    (lhs_axes, axes), (lhs_batch, batch) = dimension_numbers
    if not axes or batch != tuple(range(rhs.ndim - 2)):
        return lax.dot_general(lhs, rhs.materialise(), dimension_numbers, **options)
    # `lhs` meets the factor that has the first contracted axis. The rank then stands last, and in
    # the other factor at that same axis; a second contracted axis is met there as it is.
    near, far = (rhs.left, rhs.right) if axes[0] == rhs.ndim - 2 else (rhs.right, rhs.left)
    numbers = ((lhs_axes[:1], axes[:1]), (lhs_batch, batch))
    partial = lax.dot_general(lhs, near, numbers, **{**options, "out_sharding": None})
    free = [axis for axis in range(jnp.ndim(lhs)) if axis not in (*lhs_batch, lhs_axes[0])]
    second = [len(batch) + free.index(axis) for axis in lhs_axes[1:]]
    numbers = (((partial.ndim - 1, *second), axes), (batch, batch))
    return lax.dot_general(partial, far.astype(partial.dtype), numbers, **options)


@quax.register(lax.dot_general_p)
def _(lhs: LowRank, rhs: ArrayLike, *, dimension_numbers: Any, **options: Any) -> Any:
    (axes, rhs_axes), (batch, rhs_batch) = dimension_numbers
    flipped = ((rhs_axes, axes), (rhs_batch, batch))
    result = _dot_general(rhs, lhs, flipped, **{**options, "out_sharding": None})
    free = lhs.ndim - len(axes) - len(batch)
    return jnp.moveaxis(result, range(-free, 0), range(len(batch), len(batch) + free))


@quax.register(lax.dot_general_p)
def _(lhs: LowRank, rhs: LowRank, *, dimension_numbers: Any, **options: Any) -> Any:
    (lhs_axes, rhs_axes), batch = dimension_numbers
    if len(lhs_axes) != 1 or lhs.ndim != 2 or rhs.ndim != 2 or batch != ((), ()):
        return _dot_general(lhs.materialise(), rhs, dimension_numbers, **options)
    first = lhs if lhs_axes == (1,) else lhs.T
    right = _dot_general(first.right, rhs, (((1,), rhs_axes), batch), **options)
    return LowRank(first.left.astype(right.dtype), right)


@quax.register(lax.transpose_p)
def _(operand: LowRank, *, permutation: tuple[int, ...]) -> Any:
    if permutation == (*range(operand.ndim - 2), operand.ndim - 1, operand.ndim - 2):
        return operand.T
    return lax.transpose(operand.materialise(), permutation)


@quax.register(lax.convert_element_type_p)
def _(operand: LowRank, *, new_dtype: Any, **_: Any) -> Any:
    if jnp.issubdtype(new_dtype, jnp.floating):
        return jax.tree.map(lambda leaf: lax.convert_element_type(leaf, new_dtype), operand)
    return lax.convert_element_type(operand.materialise(), new_dtype)


@quax.register(remat_p)
def _(*operands: ArrayLike | LowRank, jaxpr: Any, policy: Any, prevent_cse: Any, **_: Any) -> Any:
    function = quax.quaxify(jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(jaxpr, ())))
    return jax.checkpoint(function, policy=policy, prevent_cse=prevent_cse)(*operands)
