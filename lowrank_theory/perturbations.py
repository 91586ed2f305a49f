r"""A matrix and what disturbs it: the instances of perturbation theory.

`PerturbationSetting(...).draw(key=...)` gives a `Perturbation`: $A$, $Z$ and a rank. Theorems speak
of $A + Z$: of its singular values, of its leading singular vectors, of its truncation.
"""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Drawn, Key, after, matmul, namespace, of_either_key
from lowrank_theory._numerics import AnyArray, check_array, check_count, check_same, float64
from lowrank_theory._random import normal, split
from lowrank_theory.generators.activations import haar, orthonormal


class Perturbation(eqx.Module):
    """A matrix $A$, the `noise` $Z$ that is added to it, and the rank at which to look; all in
    float64.

    Raises `ValueError` for shapes that differ, integer dtypes, empty or non-finite arrays, and for
    a rank that the matrix cannot have.
    """

    matrix: Float[AnyArray, "rows columns"]
    noise: Float[AnyArray, "rows columns"]
    rank: int = eqx.field(static=True)

    def __init__(self, matrix: ArrayLike, noise: ArrayLike, rank: int) -> None:
        self.matrix = _stored("matrix", matrix)
        self.noise = _stored("noise", noise)
        for axis, name in enumerate(("rows", "columns")):
            check_same("noise", self.noise.shape[axis], "matrix", self.matrix.shape[axis], name)
        self.rank = _check_rank(rank, *self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """(rows, columns), the lengths with which rounding grows."""
        return self.matrix.shape

    @property
    def perturbed(self) -> Float[Array, "rows columns"]:
        """$A + Z$."""
        with float64():
            return jnp.add(self.matrix, self.noise)


def _stored(name: str, value: ArrayLike) -> Float[AnyArray, "rows columns"]:
    """In float64, whether or not JAX's x64 flag is on."""
    array = check_array(name, value, "rows", "columns")
    with float64():
        return (jnp if isinstance(array, Tracer) else np).asarray(array, float)


def _check_rank(rank: int, rows: int, columns: int) -> int:
    why = f" (the smaller side of a {rows} x {columns} matrix)"
    return check_count("rank", rank, 1, min(rows, columns), why)


class PerturbationSetting(eqx.Module):
    r"""A frozen description of a random perturbation.

    $A = \sum_i a_iu_iv_i^\top$ and $Z = \sum_i z_ix_iy_i^\top$, with $u_i, v_i$ uniformly
    distributed. The lists `signal` $a$ and `noise` $z$ have min(rows, columns) entries each, of any
    sign and in any order: $x_i, y_i$ are paired with $u_i, v_i$ by index.

    - `alignment`: 1 for $x_i = u_i$ and $y_i = v_i$; 0 for vectors independent of those of the
      signal; between, orthonormalised mixtures.
    - `symmetric`: $v_i = u_i$ and $y_i = x_i$, for square matrices.

    All but the sizes are arrays: settings of one size share one compilation. Raises `ValueError`
    for lists of the wrong length, an alignment outside [0, 1], and for symmetry of a matrix that
    is not square.
    """

    rows: int
    columns: int
    rank: int
    signal: Float[AnyArray, " count"]
    noise: Float[AnyArray, " count"]
    alignment: Float[AnyArray, ""]
    symmetric: Bool[AnyArray, ""]

    def __init__(
        self,
        rows: int,
        columns: int,
        rank: int,
        *,
        signal: ArrayLike,
        noise: ArrayLike,
        alignment: float | Float[AnyArray, ""] = 0.0,
        symmetric: bool | Bool[AnyArray, ""] = False,
    ) -> None:
        self.rows, self.columns = check_count("rows", rows, 1), check_count("columns", columns, 1)
        self.rank = _check_rank(rank, rows, columns)
        self.signal = check_array("signal", signal, "count")
        self.noise = check_array("noise", noise, "count")
        for name in ("signal", "noise"):
            count = min(rows, columns)
            check_same(name, getattr(self, name).size, "a matrix of that size", count, "values")
        self.alignment = np.asarray(alignment, float)
        if not 0 <= float(self.alignment) <= 1:
            raise ValueError(f"`alignment` must lie between 0 and 1; got {alignment!r}.")
        self.symmetric = np.asarray(symmetric, bool)
        if self.symmetric and rows != columns:
            raise ValueError(
                f"`symmetric` needs a square matrix; got {rows} rows and {columns} columns."
            )

    @of_either_key
    def draw(self, *, key: Key) -> Perturbation:
        """A random instance, in float64, with a key of JAX or a generator of NumPy."""
        xp, keys = namespace(key), split(key, 4)
        count = min(self.rows, self.columns)
        u = haar(self.rows, count, key=keys[0])
        v = haar(self.columns, count, key=after(u, keys[1]))
        x = _turned(u, self.alignment, key=after(v, keys[2]))
        y = _turned(v, self.alignment, key=after(x, keys[3]))
        if self.rows == self.columns:
            v, y = (xp.where(self.symmetric, left, right) for left, right in ((u, v), (x, y)))
        return Perturbation(matmul(u * self.signal, v.T), matmul(x * self.noise, y.T), self.rank)


def _turned(
    basis: Float[Drawn, "length count"], alignment: Float[AnyArray, ""], *, key: Key
) -> Float[Drawn, "length count"]:
    """Orthonormal vectors that mix those of the basis with random ones."""
    random = normal(key, basis.shape) / math.sqrt(len(basis))
    return orthonormal(alignment * basis + (1 - alignment) * random)
