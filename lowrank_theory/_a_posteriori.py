r"""How far the best directions within a subspace are from the best of all, judged afterwards.

$M$ is symmetric and positive semidefinite, known by its products with vectors; $Q$ is any matrix
with orthonormal columns, $H = Q^\top MQ$, $R = (I - QQ^\top)MQ$ the residual and $B = (I -
QQ^\top)M(I - QQ^\top)$ what $Q$ does not see. For every $\theta \ge \lambda_1(B)$ and
$\varepsilon > 0$

$$ M \preceq \begin{pmatrix} H + R^\top R/\varepsilon & 0 \\ 0 & (\theta + \varepsilon)I
   \end{pmatrix} , $$

so that the sum of the r largest eigenvalues on the right bounds that of $M$; and Gaussian probes
that know nothing of $Q$ bound $\lambda_1(B)$. Proved in paper_notes/randomized_range.md.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, Float, Int

from lowrank_theory._numerics import matmul, safe_divide

Apply = Callable[[Array], Array]

_EPSILONS = 200  # values of epsilon tried: neighbours differ by a few per cent


class Ritz(eqx.Module):
    """Ritz vectors and values of M in the range of `basis`, largest first; the residual of each
    vector, orthogonal to the basis.
    """

    vectors: Float[Array, "size width"]
    values: Float[Array, " width"]
    residuals: Float[Array, "size width"]


def ritz(
    apply: Apply, basis: Float[Array, "size width"]
) -> tuple[Ritz, Float[Array, "size width"]]:
    """What the product of M with an orthonormal basis shows, and that product."""
    image = apply(basis)
    inside = matmul(basis.T, image)
    values, rotation = jnp.linalg.eigh(inside)
    values, rotation = values[::-1], rotation[:, ::-1]
    outside = image - matmul(basis, inside)
    return Ritz(matmul(basis, rotation), values, matmul(outside, rotation)), image


def outside_norm_bound(
    apply: Apply,
    basis: Float[Array, "size width"],
    probes: Float[Array, "size count"],
    cut: Float[Array, ""],
    degree: Int[Array, ""] | int,
    failure_probability: Any,
) -> Float[Array, ""]:
    r"""$\theta$, at least $\lambda_1(B)$ with probability 1 - `failure_probability` over Gaussian
    probes $\Omega$ ($n \times j$).

    $\theta = \tfrac c2\bigl(1 + \cosh(\tfrac1d\operatorname{arcosh} L)\bigr)$ with $L =
    \max(1, \lVert T_d(2B/c - I)(I - QQ^\top)\Omega\rVert/\sqrt t)$, $T_d$ the Chebyshev polynomial
    of the given `degree`, $t = 2\bigl(\delta\,\Gamma(\tfrac j2+1)\bigr)^{2/j}$ below the
    $\delta$-quantile of $\chi^2_j$, and any `cut` $c > 0$ that does not depend on the probes.
    """
    half = jnp.where(cut > 0, cut, 1) / 2

    def project(columns: Array) -> Array:
        return columns - matmul(basis, matmul(basis.T, columns))

    def shifted(columns: Array) -> Array:
        return project(apply(columns)) / half - columns

    def recur(_: Any, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        before, now = pair
        return now, 2 * shifted(now) - before

    start = project(probes)
    _, last = jax.lax.fori_loop(1, degree, recur, (start, shifted(start)))
    unit = jnp.max(jnp.abs(last))
    last = safe_divide(last, unit)
    largest = unit * jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(matmul(last.T, last))[-1], 0))
    count = probes.shape[1]
    quantile = 2 * jnp.exp((jnp.log(failure_probability) + gammaln(count / 2 + 1)) * 2 / count)
    ratio = jnp.maximum(largest / jnp.sqrt(quantile), 1)
    return half * (1 + jnp.cosh(jnp.arccosh(ratio) / degree))


def leading_sum_bound(found: Ritz, outside: Float[Array, ""], rank: int) -> Float[Array, ""]:
    r"""An upper bound of $\lambda_1(M) + \dots + \lambda_r(M)$, given $\theta \ge \lambda_1(B)$.

    Valid for every $\varepsilon$; the one taken is that at which `leading_sum_estimate` is least.
    """
    size, width = found.vectors.shape
    epsilon, _ = _best_epsilon(found, outside, rank)
    gram = matmul(found.residuals.T, found.residuals)
    inside = jnp.linalg.eigvalsh(jnp.diag(found.values) + safe_divide(gram, epsilon))
    elsewhere = jnp.full(min(rank, size - width), outside + epsilon)
    total = jnp.sum(jnp.sort(jnp.concatenate([inside, elsewhere]))[::-1][:rank])
    return jnp.where(jnp.isfinite(total), total, jnp.inf)


def leading_sum_estimate(found: Ritz, outside: Float[Array, ""], rank: int) -> Float[Array, ""]:
    r"""A lower bound of `leading_sum_bound` up to its choice of $\varepsilon$ (a sum of leading
    eigenvalues is no less than one of diagonal entries): without a decomposition, it tells whether
    probing is worth its price.
    """
    return _best_epsilon(found, outside, rank)[1]


def _best_epsilon(found: Ritz, outside: Array, rank: int) -> tuple[Array, Array]:
    leading = found.values[:rank]
    squares = jnp.sum(found.residuals[:, :rank] ** 2, axis=0)
    largest = jnp.maximum(leading[0], outside)
    largest = jnp.where(largest > 0, largest, 1)
    low = jnp.maximum(1e-3 * outside, np.finfo(np.float64).eps * largest)
    high = 10 * jnp.maximum(jnp.maximum(leading[-1], outside), low)
    epsilons = low * (high / low) ** np.linspace(0, 1, _EPSILONS)
    inside = leading + squares / epsilons[:, None]
    if found.values.size < found.vectors.shape[0]:
        inside = jnp.maximum(inside, (outside + epsilons)[:, None])
    totals = jnp.sum(inside, axis=1)
    least = jnp.min(totals)
    return jnp.max(jnp.where(totals == least, epsilons, 0)), least
