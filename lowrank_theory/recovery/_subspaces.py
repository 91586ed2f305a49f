r"""Leading singular and eigenvectors, differentiable wherever their span is.

Both functions return orthonormal vectors $V_r$ whose derivative is taken in the gauge $V_r^\top
\mathrm dV_r = 0$: with $M$ the symmetric matrix, $l_i$ its eigenvalues and $v_i$ its eigenvectors,

$$\mathrm dV_r e_i = \sum_{j>r} v_j\,\frac{v_j^\top\,\mathrm dM\,v_i}{l_i - l_j} .$$

It is exact for every function of the span, $V_rV_r^\top$ above all, needs only $l_r > l_{r+1}$
(ties inside either group are harmless), and is infinite or NaN at $l_r = l_{r+1}$, where the span
has no derivative.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import matmul


def _all_right_vectors(matrix: Array) -> tuple[Array, Array]:
    """All right singular vectors (columns) and squared singular values (padded with zeros)."""
    rows, columns = matrix.shape
    core = jnp.linalg.qr(matrix, mode="r") if rows > columns else matrix
    _, values, vectors = jnp.linalg.svd(core, full_matrices=True)
    energies = jnp.zeros(columns, matrix.dtype).at[: values.size].set(values**2)
    return vectors.T, energies


def _all_eigenvectors(matrix: Array) -> tuple[Array, Array]:
    """All eigenvectors (columns) and eigenvalues, largest first."""
    values, vectors = jnp.linalg.eigh(matrix)
    return vectors[:, ::-1], values[::-1]


def _tangents(vectors: Array, energies: Array, change: Array, rank: int) -> tuple[Array, Array]:
    """Derivatives of the leading vectors, in the gauge above, and of all eigenvalues."""
    rotated = matmul(vectors.T, change, vectors)
    gaps = energies[None, :rank] - energies[rank:, None]
    return matmul(vectors[:, rank:], rotated[rank:, :rank] / gaps), jnp.diagonal(rotated)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def leading_right_vectors(
    matrix: Float[Array, "rows columns"], rank: int
) -> tuple[Float[Array, "columns rank"], Float[Array, " columns"]]:
    """The `rank` leading right singular vectors, and all squared singular values in decreasing
    order.
    """
    vectors, energies = _all_right_vectors(matrix)
    return vectors[:, :rank], energies


@leading_right_vectors.defjvp
def _(rank: int, primals: tuple[Array], tangents: tuple[Array]):
    (matrix,), (change,) = primals, tangents
    vectors, energies = _all_right_vectors(matrix)
    half = matmul(matrix.T, change)
    return (vectors[:, :rank], energies), _tangents(vectors, energies, half + half.T, rank)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def leading_eigenvectors(
    matrix: Float[Array, "size size"], rank: int
) -> tuple[Float[Array, "size rank"], Float[Array, " size"]]:
    """The `rank` leading eigenvectors of a symmetric matrix, and all eigenvalues in decreasing
    order.
    """
    vectors, energies = _all_eigenvectors(matrix)
    return vectors[:, :rank], energies


@leading_eigenvectors.defjvp
def _(rank: int, primals: tuple[Array], tangents: tuple[Array]):
    (matrix,), (change,) = primals, tangents
    vectors, energies = _all_eigenvectors(matrix)
    return (vectors[:, :rank], energies), _tangents(vectors, energies, change, rank)
