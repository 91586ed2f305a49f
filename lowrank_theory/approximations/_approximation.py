"""What stands in the place of a matrix: two interfaces, and the ledger of what it takes."""

import abc
import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import quax
from jax import lax
from jax.core import ShapedArray, Tracer
from jax.extend.core.primitives import remat_p
from jaxtyping import Array, ArrayLike, Float

from lowrank_theory._door import native
from lowrank_theory._numerics import AnyArray, is_float, ours
from lowrank_theory._settings import all_floats

DENSE = "`factors.materialise()` is the dense matrix."


@dataclasses.dataclass(frozen=True)
class Storage:
    """What an approximation takes, all matrices of a stack together; the sum of two is that of
    both.

    - `numbers`: values, codes and scales; not where they stand;
    - `ideal_bits`: of all that is written down, each entry in as many bits as it needs;
    - `bytes`: of the arrays as they are held in memory and in a file, padding included;
    - `multiply_adds`, `additions`, `comparisons`: for one row through each matrix.
    """

    numbers: int = 0
    ideal_bits: int = 0
    bytes: int = 0
    multiply_adds: int = 0
    additions: int = 0
    comparisons: int = 0

    def __add__(self, other: "Storage") -> "Storage":
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return Storage(*map(operator.add, mine, others))

    @staticmethod
    def of_floats(numbers: int, itemsize: int, *, multiply_adds: int = 0) -> "Storage":
        """Of so many floats of so many bytes each."""
        return Storage(numbers, 8 * itemsize * numbers, itemsize * numbers, multiply_adds)

    @staticmethod
    def of(*arrays: Any, multiply_adds: int = 0, additions: int = 0) -> "Storage":
        """Of numbers that are stored as they are."""
        held = sum(size_in_bytes(array) for array in arrays)
        numbers = sum(array.size for array in arrays)
        return Storage(numbers, 8 * held, held, multiply_adds, additions)


def size_in_bytes(array: Any) -> int:
    """Of an array at hand, or of one that is traced."""
    return array.size * array.dtype.itemsize


class AbstractApproximation(eqx.Module):
    """What stands for a matrix, or for a stack of them: a map from rows of inputs to rows of
    outputs.

    Every array in it has the axes of the stack first, so that `jax.tree.map(lambda a: a[k], ...)`
    is one of the stack, and `jax.vmap` gives and takes stacks.
    """

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(*stack, inputs, outputs)."""

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """That of the numbers in floating point."""

    @property
    @abc.abstractmethod
    def storage(self) -> Storage:
        """What it takes."""

    @abc.abstractmethod
    def apply(
        self, rows: Float[AnyArray, "*stack samples inputs"]
    ) -> Float[AnyArray, "*stack samples outputs"]:
        """The outputs of these rows."""

    def map_floats(self, function: Callable[[Any], Any]) -> Any:
        """The same with a function, such as a cast, of each array in floating point. Codes and
        places stay.
        """
        return jax.tree.map(lambda leaf: function(leaf) if is_float(leaf) else leaf, self)


def check_places(name: str, places: Any, count: int) -> None:
    """Places of a file or of a user, if they are at hand, are some of so many."""
    if not isinstance(places, np.ndarray) or not places.size:
        return
    least, most = places.min(), places.max()
    if least < 0 or most >= count:
        raise ValueError(f"`{name}` must be from 0 to {count - 1}; got {least} to {most}.")


def check_floats(name: str, array: Any, *axes: str) -> None:
    """A `ValueError` unless it is an array of floats, of these axes at least."""
    kind = getattr(array, "dtype", type(array).__name__)
    plain = isinstance(array, Array | np.ndarray) and not np.ma.isMaskedArray(array)
    if not (plain and jnp.issubdtype(kind, jnp.floating) and array.dtype.itemsize <= 8):
        raise ValueError(
            f"`{name}` must be a NumPy or JAX array of floats; got {kind}. "
            "Convert it, for example with `numpy.asarray(..., dtype='float32')`."
        )
    if array.ndim < len(axes):
        raise ValueError(f"`{name}` must be ({', '.join(axes)}); got shape {array.shape}.")


class AbstractMatrix(quax.ArrayValue, AbstractApproximation):
    r"""An approximation that is a matrix $A$, known by its *chains*: a sum of products of one or
    two factors.

    `activations @ matrix`, `matrix @ columns` and, by `quax.quaxify`, whatever a JAX model
    multiplies by it, go through the chains: two factors one after the other, so that their product
    is never formed; a single factor as it is.

    Inside `quaxify`, contractions, transposes and casts between float dtypes act on the parts, also
    under `jit`, `vmap`, `scan` and `checkpoint`; whatever else needs the entries of $A$ calls
    `materialise`. Differentiate outside: the gradient with respect to the matrix has its structure.
    Where it holds codes, which have no derivative, use `equinox.filter_grad`.

    Arrays at hand multiply in the precision in which they are stored, NumPy's float64 included;
    under a JAX transformation the x64 flag decides, as it does for any array.
    """

    __array_ufunc__ = None  # or NumPy, on the left of `@`, would not leave the product to us

    @abc.abstractmethod
    def chains(self) -> tuple[tuple[AnyArray, ...], ...]:
        """Factors, (*stack, inputs, outputs) or (*stack, inputs, rank) and (*stack, rank, outputs);
        the matrix is the sum over chains of their products.
        """

    @abc.abstractmethod
    def transpose(self) -> "AbstractMatrix":
        """$A^T$, (*stack, outputs, inputs); also `T`."""

    @property
    def T(self) -> Any:
        """The transpose."""
        return self.transpose()

    def materialise(self) -> Any:
        """The dense matrix, (*stack, inputs, outputs)."""
        with as_stored(self):
            return _sum(_onto(chain[:-1], chain[-1]) for chain in readable(self.chains()))

    def apply(
        self, rows: Float[AnyArray, "*stack samples inputs"]
    ) -> Float[AnyArray, "*stack samples outputs"]:
        """$XA$."""
        return self._through(rows)

    def __rmatmul__(self, other: Any) -> Any:
        """$XA$, from (..., inputs) to (..., outputs)."""
        return self._one()._through(other)

    def __matmul__(self, other: Any) -> Any:
        """$AY$, from (..., outputs, columns) to (..., inputs, columns); a vector to a vector. The
        product of two approximations is what the first of them makes of the second.
        """
        with as_stored(self._one(), other):
            if isinstance(other, AbstractMatrix):
                return _matmul(self, other._one())
            other = ours(other)
            return _sum(_onto(chain, other) for chain in readable(self.chains()))

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        name = type(self).__name__
        raise TypeError(f"A `{name}` is no array, and is not made one unasked: {DENSE}")

    def __array_function__(self, function: Any, *_: Any) -> Any:
        name = type(self).__name__
        raise TypeError(f"`numpy.{function.__name__}` takes arrays, and no `{name}`: {DENSE}")

    def _through(self, rows: Any) -> Any:
        with as_stored(rows, self):
            rows, chains = ours(rows), readable(self.chains())
            return _sum(functools.reduce(operator.matmul, chain, rows) for chain in chains)

    def _one(self) -> "AbstractMatrix":
        if self.ndim != 2:
            raise ValueError(f"`@` takes one matrix, not a stack {self.shape}: use `jax.vmap`.")
        return self


def as_stored(*arrays: Any) -> contextlib.AbstractContextManager[Any]:
    """Keep float64 at hand; a traced array follows the x64 flag, as its backward pass will."""
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arrays))
    return contextlib.nullcontext() if traced else all_floats()


def readable(arrays: Any) -> Any:
    """The arrays where a program of ours can read them, which came out of one of the user's."""
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, Tracer) else native(leaf), arrays)


def seen_by_jax(shape: tuple[int, ...], floats: Any) -> ShapedArray:
    """The array that JAX sees, whose numbers are those of `floats`."""
    return ShapedArray(shape, jax.typeof(floats).dtype)


def _onto(chain: tuple[Any, ...], columns: Any) -> Any:
    """The product of the factors and these columns, from the right."""
    for factor in reversed(chain):
        columns = factor @ columns
    return columns


def _sum(terms: Any) -> Any:
    return functools.reduce(operator.add, terms)


# --- what JAX's primitives do with a matrix inside `quax.quaxify` ---------------------------------

_matmul: Any = quax.quaxify(jnp.matmul)
_dot_general: Any = quax.quaxify(lax.dot_general)


@quax.register(lax.dot_general_p)
def _(lhs: ArrayLike, rhs: AbstractMatrix, *, dimension_numbers: Any, **options: Any) -> Any:
    (_, axes), (_, batch) = dimension_numbers
    if not axes or batch != tuple(range(rhs.ndim - 2)):
        return lax.dot_general(lhs, rhs.materialise(), dimension_numbers, **options)
    return _sum(_contracted(lhs, chain, dimension_numbers, options) for chain in rhs.chains())


def _contracted(lhs: Any, chain: Any, dimension_numbers: Any, options: Any) -> Any:
    """By the factors of one chain, one after the other."""
    if len(chain) == 1:
        return lax.dot_general(lhs, chain[0], dimension_numbers, **options)
    (lhs_axes, axes), (lhs_batch, batch) = dimension_numbers
    left, right = chain
    # `lhs` meets the factor that has the first contracted axis. The rank then stands last, and in
    # the other factor at that same axis; a second contracted axis is met there as it is.
    near, far = (left, right) if axes[0] == left.ndim - 2 else (right, left)
    numbers = ((lhs_axes[:1], axes[:1]), (lhs_batch, batch))
    partial = lax.dot_general(lhs, near, numbers, **{**options, "out_sharding": None})
    free = [axis for axis in range(jnp.ndim(lhs)) if axis not in (*lhs_batch, lhs_axes[0])]
    second = [len(batch) + free.index(axis) for axis in lhs_axes[1:]]
    numbers = (((partial.ndim - 1, *second), axes), (batch, batch))
    return lax.dot_general(partial, far.astype(partial.dtype), numbers, **options)


@quax.register(lax.dot_general_p)
def _(lhs: AbstractMatrix, rhs: ArrayLike, *, dimension_numbers: Any, **options: Any) -> Any:
    (axes, rhs_axes), (batch, rhs_batch) = dimension_numbers
    flipped = ((rhs_axes, axes), (rhs_batch, batch))
    result = _dot_general(rhs, lhs, flipped, **{**options, "out_sharding": None})
    free = lhs.ndim - len(axes) - len(batch)
    return jnp.moveaxis(result, range(-free, 0), range(len(batch), len(batch) + free))


@quax.register(lax.dot_general_p)
def _(lhs: AbstractMatrix, rhs: AbstractMatrix, *, dimension_numbers: Any, **options: Any) -> Any:
    return _dot_general(lhs.materialise(), rhs, dimension_numbers, **options)


@quax.register(lax.transpose_p)
def _(operand: AbstractMatrix, *, permutation: tuple[int, ...]) -> Any:
    if permutation == (*range(operand.ndim - 2), operand.ndim - 1, operand.ndim - 2):
        return operand.T
    return lax.transpose(operand.materialise(), permutation)


@quax.register(lax.convert_element_type_p)
def _(operand: AbstractMatrix, *, new_dtype: Any, **_: Any) -> Any:
    if jnp.issubdtype(new_dtype, jnp.floating):
        return operand.map_floats(lambda leaf: lax.convert_element_type(leaf, new_dtype))
    return lax.convert_element_type(operand.materialise(), new_dtype)


@quax.register(remat_p)
def _(
    *operands: ArrayLike | AbstractMatrix, jaxpr: Any, policy: Any, prevent_cse: Any, **_: Any
) -> Any:
    function = quax.quaxify(jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(jaxpr, ())))
    return jax.checkpoint(function, policy=policy, prevent_cse=prevent_cse)(*operands)
