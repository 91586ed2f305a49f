r"""Leading singular and eigenvectors, differentiable wherever their span is.

The functions return orthonormal vectors $V_r$ whose derivative is taken in the gauge $V_r^\top
\mathrm dV_r = 0$: with $M$ the symmetric matrix, $l_i$ its eigenvalues and $v_i$ its eigenvectors,

$$\mathrm dV_r e_i = \sum_{j>r} v_j\,\frac{v_j^\top\,\mathrm dM\,v_i}{l_i - l_j} .$$

It is exact for every function of the span, $V_rV_r^\top$ above all, needs only $l_r > l_{r+1}$
(ties inside either group are harmless), and is infinite or NaN at $l_r = l_{r+1}$, where the span
has no derivative.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Bool, Float, Int

from lowrank_theory._numerics import AnyArray, after, matmul, relative_rank_cutoff, safe_divide
from lowrank_theory._scale import equilibrated, times_power, unit


def all_right_vectors(
    matrix: Float[Array, "rows columns"],
) -> tuple[Float[Array, "columns columns"], Float[Array, " columns"]]:
    """All right singular vectors (columns) and squared singular values (padded with zeros).

    Not differentiable: JAX says so.
    """
    rows, columns = matrix.shape
    core = jnp.linalg.qr(matrix, mode="r") if rows > columns else matrix
    _, values, vectors = jnp.linalg.svd(core, full_matrices=True)
    eigenvalues = jnp.zeros(columns, matrix.dtype).at[: values.size].set(values**2)
    return vectors.T, eigenvalues


def all_eigenvectors(
    matrix: Float[Array, "size size"],
) -> tuple[Float[Array, "size size"], Float[Array, " size"]]:
    """All eigenvectors (columns) and eigenvalues, largest first.

    Differentiable where no two eigenvalues are equal.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    return vectors[:, ::-1], values[::-1]


def leading_sums(
    values: Float[AnyArray, " count"], ranks: Int[Array, "*ranks"]
) -> Float[Array, "*ranks"]:
    """The sum of the first r values, for each r."""
    first = jnp.arange(values.size) < ranks[..., None]
    return jnp.sum(jnp.where(first, values, 0), axis=-1)


def tail_sums(
    values: Float[AnyArray, " count"], ranks: Int[Array, "*ranks"]
) -> Float[Array, "*ranks"]:
    """The sum of the values after the first r, for each r."""
    first = jnp.arange(values.size) < ranks[..., None]
    return jnp.sum(jnp.where(first, 0, values), axis=-1)


def _tangents(vectors: Array, eigenvalues: Array, change: Array, rank: int) -> tuple[Array, Array]:
    """Derivatives of the leading vectors, in the gauge above, and of all eigenvalues."""
    rotated = matmul(vectors.T, change, vectors)
    gaps = eigenvalues[None, :rank] - eigenvalues[rank:, None]
    return matmul(vectors[:, rank:], rotated[rank:, :rank] / gaps), jnp.diagonal(rotated)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def leading_right_vectors(
    matrix: Float[Array, "rows columns"], rank: int
) -> tuple[Float[Array, "columns rank"], Float[Array, " columns"]]:
    """The `rank` leading right singular vectors, and all squared singular values in decreasing
    order.
    """
    vectors, eigenvalues = all_right_vectors(matrix)
    return vectors[:, :rank], eigenvalues


@leading_right_vectors.defjvp
def _(rank: int, primals: tuple[Array], tangents: tuple[Array]):
    (matrix,), (change,) = primals, tangents
    vectors, eigenvalues = all_right_vectors(matrix)
    product = matmul(matrix.T, change)
    return (vectors[:, :rank], eigenvalues), _tangents(
        vectors, eigenvalues, product + product.T, rank
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def leading_eigenvectors(
    matrix: Float[Array, "size size"], rank: int
) -> tuple[Float[Array, "size rank"], Float[Array, " size"]]:
    """The `rank` leading eigenvectors of a symmetric matrix, and all eigenvalues in decreasing
    order.
    """
    vectors, eigenvalues = all_eigenvectors(matrix)
    return vectors[:, :rank], eigenvalues


@leading_eigenvectors.defjvp
def _(rank: int, primals: tuple[Array], tangents: tuple[Array]):
    (matrix,), (change,) = primals, tangents
    vectors, eigenvalues = all_eigenvectors(matrix)
    return (vectors[:, :rank], eigenvalues), _tangents(vectors, eigenvalues, change, rank)


def lapack_leading_eigenvectors(
    matrix: Float[Array, "size size"], rank: int
) -> tuple[Float[AnyArray, "size rank"], Float[AnyArray, " rank"]]:
    """The `rank` leading eigenvectors of a symmetric matrix on this computer's processor, and their
    eigenvalues. LAPACK finds no others, which under JAX it must.
    """
    size = matrix.shape[0]
    try:
        eigenvalues, vectors = scipy.linalg.eigh(
            np.asarray(matrix), subset_by_index=(size - rank, size - 1), driver="evr"
        )
    except ValueError:  # not finite, or a `LinAlgError`: JAX would rather answer NaN
        vectors, eigenvalues = leading_eigenvectors(matrix, rank)
        return vectors, eigenvalues[:rank]
    return vectors[:, ::-1], eigenvalues[::-1]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def pseudo_inverse(
    matrix: Float[Array, "rows columns"], cutoff: float
) -> tuple[Float[Array, "columns rows"], Float[Array, "rows count"]]:
    r"""$X^+$ of the singular values above `cutoff` times the largest, and a basis of the columns
    that float64 tells apart from these and the cut-off leaves out (in columns of zeros).

    The inverse has a derivative where the rank is locally constant; the basis counts as constant.
    """
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    kept = values > cutoff * values[0]
    resolved = values > relative_rank_cutoff(matrix.shape) * values[0]
    inverse = matmul(right.T, left.T / jnp.where(kept, values, jnp.inf)[:, None])
    return inverse, left * (resolved & ~kept)


@pseudo_inverse.defjvp
def _(cutoff: float, primals: tuple[Array], tangents: tuple[Array]):
    (matrix,), (change,) = primals, tangents
    inverse, dropped = pseudo_inverse(matrix, cutoff)
    # Golub and Pereyra 1973.
    outside = change.T - matmul(change.T, matrix, inverse)
    beside = change.T - matmul(inverse, matrix, change.T)
    vectors_tangent = matmul(inverse, inverse.T, outside) + matmul(beside, inverse.T, inverse)
    vectors_tangent = vectors_tangent - matmul(inverse, change, inverse)
    return (inverse, dropped), (vectors_tangent, jnp.zeros_like(dropped))


class ColumnSpace(eqx.Module):
    r"""The columns of $\tilde X$ as far as its entries tell them from none: singular vectors and
    values of $A = \tilde XD^{-1}$, whose columns are alike in size by the `powers` of two in D.
    """

    left: Float[Array, "samples width"]
    values: Float[Array, " width"]
    right: Float[Array, "width inputs"]
    kept: Bool[Array, " width"]
    powers: Int[Array, " inputs"]

    @property
    def basis(self) -> Float[Array, "samples width"]:
        """Orthonormal columns, masked by zeros and not sliced: any rank has one shape."""
        return jnp.where(self.kept, self.left, 0)

    def weights(
        self, coordinates: Float[Array, "width outputs"], power: Int[Array, ""] | int = 0
    ) -> Float[Array, "inputs outputs"]:
        r"""The Z with $\tilde XZ = 2^p$ basis T, the smallest as far as float64 tells.

        First the one whose DZ is smallest, projected on the rows of $\tilde X$; what that misses of
        T, where weak rows are lost beside strong ones, is added.
        """
        powers, right = self.powers[:, None], jnp.where(self.kept[:, None], self.right, 0)
        values = jnp.where(self.kept, self.values, 0)[:, None]

        def least_squares(target: Array) -> Array:
            return times_power(matmul(right.T, safe_divide(target, values)), -powers)

        rows, _ = unit(times_power(after(coordinates, right).T, powers))
        vectors, row_values, _ = jnp.linalg.svd(rows, full_matrices=False)
        span = vectors * (row_values > relative_rank_cutoff(rows.shape) * row_values[0])
        first, first_power = unit(least_squares(coordinates))
        first = times_power(matmul(span, span.T, first), first_power)
        residual = coordinates - values * matmul(right, times_power(first, powers))
        return times_power(first + least_squares(residual), power)


def column_space(layer_inputs: Float[Array, "samples inputs"], resolution: float) -> ColumnSpace:
    """The columns of inputs that were stored with this machine epsilon."""
    alike, powers = equilibrated(layer_inputs)
    left, values, right = jnp.linalg.svd(alike, full_matrices=False)
    kept = values > relative_rank_cutoff(alike.shape, resolution) * values[0]
    return ColumnSpace(left, values, right, kept, powers)


def _soft_threshold(eigenvalues: Array, threshold: Array) -> tuple[Array, Array]:
    """Which eigenvalues survive soft-thresholding of their roots, and what share they keep."""
    values = jnp.sqrt(eigenvalues)
    kept = values > threshold
    return kept, jnp.where(kept, 1 - safe_divide(threshold, values), 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def thresholded_right_vectors(
    matrix: Float[Array, "rows columns"], threshold: Float[Array, ""], rank: int
) -> tuple[Float[Array, "columns rank"], Float[Array, "columns rank"], Float[Array, " columns"]]:
    r"""Factors of soft-thresholding: $HV_r$, $V_r$ and all squared singular values.

    $A H$ is $A$ with its singular values lowered by the threshold $\tau$, $H = \sum_i h_i
    v_iv_i^\top$ with $h_i = (1 - \tau/s_i)_+$; $AHV_rV_r^\top$ keeps the first r. Its derivative is
    that of a spectral function (Daleckii and Krein 1965),

    $$ v_i^\top\,\mathrm dH\,v_j = \frac{h_i - h_j}{l_i - l_j}\,v_i^\top\,\mathrm dM\,v_j,
       \qquad\text{and } \frac{\tau}{s_is_j(s_i + s_j)} \text{ for the quotient if both survive,} $$

    without a trace of ties: it needs $s_i \ne \tau$, and $s_r > s_{r+1}$ where more than r survive.
    """
    vectors, eigenvalues = all_right_vectors(matrix)
    _, shrinkage = _soft_threshold(eigenvalues, threshold)
    leading = vectors[:, :rank]
    return leading * shrinkage[:rank], leading, eigenvalues


@thresholded_right_vectors.defjvp
def _(rank: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    (matrix, threshold), (change, threshold_change) = primals, tangents
    vectors, eigenvalues = all_right_vectors(matrix)
    kept, shrinkage = _soft_threshold(eigenvalues, threshold)
    leading, values = vectors[:, :rank], jnp.sqrt(eigenvalues)
    product = matmul(matrix.T, change)
    rotated = matmul(vectors.T, product + product.T, vectors)

    both = kept[:, None] & kept[None, :]
    one = kept[:, None] != kept[None, :]
    total = values[:, None] * values[None, :] * (values[:, None] + values[None, :])
    gaps = jnp.where(one, eigenvalues[:, None] - eigenvalues[None, :], 1)
    quotients = jnp.where(both, threshold / jnp.where(both, total, 1), 0) + jnp.where(
        one, (shrinkage[:, None] - shrinkage[None, :]) / gaps, 0
    )
    lowered = jnp.where(kept, threshold_change / jnp.where(kept, values, 1), 0)
    spectral_tangent = quotients * rotated - jnp.diag(lowered)

    # The span moves only where something of it survives; the rest is multiplied by zero.
    gaps = jnp.where(kept[None, :rank], eigenvalues[None, :rank] - eigenvalues[rank:, None], 1)
    coefficients = jnp.where(kept[None, :rank], rotated[rank:, :rank] / gaps, 0)
    vectors_tangent = matmul(vectors[:, rank:], coefficients)
    product_tangent = matmul(vectors, spectral_tangent[:, :rank]) + matmul(
        vectors[:, rank:], shrinkage[rank:, None] * coefficients
    )
    primal = leading * shrinkage[:rank], leading, eigenvalues
    return primal, (product_tangent, vectors_tangent, jnp.diagonal(rotated))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def kept_right_vectors(
    matrix: Float[Array, "rows columns"], penalty: Float[Array, ""], rank: int
) -> tuple[Float[Array, "columns rank"], Float[Array, " columns"]]:
    """The right singular vectors with squared singular value above the penalty, at most `rank`,
    padded with zero columns; and all squared singular values.

    Their span has a derivative where none is at the penalty, and $s_r > s_{r+1}$ where more than
    `rank` are above it.
    """
    vectors, eigenvalues = all_right_vectors(matrix)
    return jnp.where(eigenvalues[:rank] > penalty, vectors[:, :rank], 0), eigenvalues


@kept_right_vectors.defjvp
def _(rank: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    (matrix, penalty), (change, _) = primals, tangents
    vectors, eigenvalues = all_right_vectors(matrix)
    kept = (eigenvalues > penalty) & (jnp.arange(eigenvalues.size) < rank)
    product = matmul(matrix.T, change)
    rotated = matmul(vectors.T, product + product.T, vectors)
    turns = kept[None, :rank] & ~kept[:, None]
    gaps = jnp.where(turns, eigenvalues[None, :rank] - eigenvalues[:, None], 1)
    vectors_tangent = matmul(vectors, jnp.where(turns, rotated[:, :rank] / gaps, 0))
    primal = jnp.where(kept[:rank], vectors[:, :rank], 0), eigenvalues
    return primal, (vectors_tangent, jnp.diagonal(rotated))
