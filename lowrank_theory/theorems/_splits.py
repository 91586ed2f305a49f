"""What the Gram and the spectra of a layer say of the gain of data, without any rows."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    check_array,
    check_ranks,
    check_same,
    in_float64,
    matmul,
    safe_divide,
)
from lowrank_theory._subspaces import all_eigenvectors, all_right_vectors
from lowrank_theory.theorems._quantities import singular_values


def split_bounds(gram: ArrayLike, weights: ArrayLike) -> Float[Array, " ranks"]:
    r"""$\min_{i+j=r}\lVert(X-[X]_i)(W-[W]_j)\rVert_F^2$, at least $\mathrm{opt}^2$, for every rank
    r from zero to $\min(N, K)$.

    `gram` $X^\top X$ (N, N), `weights` (N, K). Squared; what is below the rounding of the Gram is
    lost. Raises `ValueError` for shapes that do not match.
    """
    return _split_bounds(*_checked(gram, weights))


def excess_bounds(
    gram: ArrayLike, weights: ArrayLike, ranks: Any
) -> tuple[Float[Array, " ranks"], Float[Array, " ranks"]]:
    r"""The least and the largest $\mathrm{da}^2 - \mathrm{opt}^2$ that the angles between $W$ and
    $XW$ allow, at each of the `ranks`: `excess_below` and `excess_above`.

    `gram` $X^\top X$ (N, N), `weights` (N, K). Squared. Raises `ValueError` for shapes that do not
    match and for ranks other than integers from zero to $\min(N, K)$.
    """
    seen, applied = _checked(gram, weights)
    return _excess_bounds(seen, applied, check_ranks(ranks, min(applied.shape)))


def spectral_bounds(input_values: ArrayLike, values: ArrayLike) -> Float[Array, " ranks"]:
    r"""$\min_{i+j=r}\sum_{k\le d-r}s_{i+k}(X)^2s_{j+k}(W)^2$, at least $\mathrm{opt}^2$ whatever
    the orientation, for every rank r from zero to $d = \min(N, K)$.

    `input_values` $s_j(X)$ and `values` $s_i(W)$, one for each input and $d$ of the weights, in any
    order.
    Squared. Raises `ValueError` for other than two vectors.
    """
    return _spectral_bounds(*_checked_spectra(input_values, values))


def expected_gains(input_values: ArrayLike, values: ArrayLike) -> Float[Array, " ranks"]:
    r"""$\max_{i+j=r}\frac{\lVert X\rVert_F^2}{\operatorname{tail}_i(X)^2}
    \frac{\operatorname{tail}_r(W)^2}{\operatorname{tail}_j(W)^2}$, which $\mathbb E\,
    \mathrm{da}^2/\mathbb E\,\mathrm{opt}^2$ is at least under a random orientation, for every rank
    r from zero to $\min(N, K)$.

    `input_values` $s_j(X)$ and `values` $s_i(W)$, one for each input and $d$ of the weights, in any
    order.
    Infinite where data lose nothing and weights alone do; one where neither do. Raises `ValueError`
    for other than two vectors.
    """
    return _expected_gains(*_checked_spectra(input_values, values))


def _checked(gram: ArrayLike, weights: ArrayLike) -> tuple[Any, Any]:
    gram = check_array("gram", gram, "inputs", "inputs")
    weights = check_array("weights", weights, "inputs", "outputs")
    for axis in range(2):
        check_same("gram", gram.shape[axis], "weights", weights.shape[0], "inputs")
    return gram, weights


def _checked_spectra(input_values: ArrayLike, values: ArrayLike) -> tuple[Any, Any]:
    inputs = check_array("input_values", input_values, "inputs")
    return inputs, check_array("values", values, "count")


def narrowed(weights: Float[Array, "inputs outputs"]) -> Float[Array, "inputs side"]:
    r"""$W$ in orthonormal coordinates of at most N outputs, which change no loss."""
    inputs, outputs = weights.shape
    return weights if outputs <= inputs else jnp.linalg.qr(weights.T, mode="r").T


@in_float64
def _split_bounds(
    gram: Float[Array, "inputs inputs"], weights: Float[Array, "inputs outputs"]
) -> Float[Array, " ranks"]:
    vectors, eigenvalues = all_eigenvectors(gram)
    return best_splits(jnp.maximum(eigenvalues, 0), vectors.T, weights)


@in_float64
def _excess_bounds(
    gram: Float[Array, "inputs inputs"],
    weights: Float[Array, "inputs outputs"],
    ranks: Int[Array, " ranks"],
) -> tuple[Float[Array, " ranks"], Float[Array, " ranks"]]:
    weights = narrowed(weights)
    outputs = matmul(weights.T, gram, weights)
    vectors, eigenvalues = all_eigenvectors((outputs + outputs.T) / 2)
    kept, _ = all_right_vectors(weights)
    cosines, place = matmul(vectors.T, kept), jnp.arange(eigenvalues.size)

    def sides(rank: Array) -> tuple[Array, Array]:
        crossed = (place[:, None] >= rank) & (place < rank)  # what weights keep and data do not
        sines = singular_values(jnp.where(crossed, cosines, 0)) ** 2
        return excess_sides(jnp.maximum(eigenvalues, 0), sines, rank)

    return jax.lax.map(sides, ranks)


@in_float64
def _spectral_bounds(
    input_values: Float[Array, " inputs"], values: Float[Array, " count"]
) -> Float[Array, " ranks"]:
    return least_of_splits(aligned_losses(_energies(input_values), _energies(values)))


@in_float64
def _expected_gains(
    input_values: Float[Array, " inputs"], values: Float[Array, " count"]
) -> Float[Array, " ranks"]:
    of_inputs, of_weights = tails(_energies(input_values)), tails(_energies(values))
    optimum = least_of_splits(jnp.outer(of_inputs, of_weights))
    agnostic = of_inputs[0] * of_weights[: optimum.size]
    infinite = jnp.where(agnostic > 0, jnp.inf, 1.0)
    return jnp.where(optimum > 0, safe_divide(agnostic, optimum), infinite)


def _energies(values: Float[Array, " count"]) -> Float[Array, " count"]:
    """Their squares, largest first."""
    return jnp.sort(values**2)[::-1]


def tails(values: Float[Array, "... count"]) -> Float[Array, "... ends"]:
    """The sums of all, of all but the first, ..., of none."""
    sums = jnp.flip(jnp.cumsum(jnp.flip(values, -1), -1), -1)
    return jnp.concatenate([sums, jnp.zeros((*values.shape[:-1], 1))], axis=-1)


def aligned_losses(
    inputs: Float[Array, " inputs"], weights: Float[Array, " outputs"]
) -> Float[Array, "starts ends"]:
    r"""$\sum_{k\le d-i-j}a_{i+k}b_{j+k}$ for all $i + j \le d$, the smaller of both lengths."""
    count = min(inputs.size, weights.size)
    products = jnp.outer(inputs[:count], weights[:count])

    def above(below: Array, row: Array) -> tuple[Array, Array]:
        sums = row + jnp.append(below[1:], 0.0)
        return sums, sums

    padded = jnp.pad(products, ((0, 1), (0, 1)))
    _, sums = jax.lax.scan(above, jnp.zeros(count + 1), padded, reverse=True)
    return sums - sums[::-1, ::-1].T  # along the diagonal, to its end and from its (d - i - j)-th


def least_of_splits(losses: Float[Array, "starts ends"]) -> Float[Array, " ranks"]:
    """The least over $i + j = r$ of what is lost by the split (i, j), for every rank."""
    count = min(losses.shape)
    i, rank = jnp.arange(count)[:, None], jnp.arange(count)[None, :]
    return jnp.min(jnp.where(i <= rank, losses[i, rank - i], jnp.inf), axis=0)


def best_splits(
    squares: Float[Array, " count"],
    directions: Float[Array, "count inputs"],
    weights: Float[Array, "inputs outputs"],
) -> Float[Array, " ranks"]:
    r"""The losses of the best splits, given squared singular values and right singular vectors
    (rows) of $X$.

    $$\lVert(X-[X]_i)(W-[W]_j)\rVert_F^2 = \sum_{a>i,\,b>j}s_a(X)^2\langle x_a, u_b\rangle^2
    s_b(W)^2.$$
    """
    left, values, _ = jnp.linalg.svd(weights, full_matrices=False)
    parts = squares[:, None] * (matmul(directions, left) * values) ** 2
    return least_of_splits(tails(tails(parts).T).T)


def excess_sides(
    eigenvalues: Float[Array, " side"], sines: Float[Array, " angles"], rank: Int[Array, ""] | int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""Both bounds on the excess, given all $l_j$ and the $\sin^2\theta_t$, largest first."""
    count, place = eigenvalues.size, jnp.arange(eigenvalues.size)
    sines = jnp.pad(sines, (0, count - sines.size))
    sines = jnp.where(place < jnp.minimum(rank, count - rank), sines, 0)
    strong, weak = (
        eigenvalues[jnp.clip(at, 0, count - 1)] for at in (rank - 1 - place, rank + place)
    )
    return jnp.sum((strong - weak) * sines), jnp.sum((eigenvalues - eigenvalues[::-1]) * sines)
