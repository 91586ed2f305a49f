r"""Optimal shrinkage of singular values: the signal that noise leaves, component by component.

Where $PY = F + \text{noise}$ with i.i.d. noise of standard deviation $\sigma$ on $q\times K$
orthonormal coordinates ($q = \operatorname{rank}\tilde X$), let $L = \max(q, K)$ and $\beta =
\min(q, K)/L$. In the limit of large $L$ a singular value $x\sigma\sqrt L$ of $F$ is seen as
$y\sigma\sqrt L$, $y^2 = (x+1/x)(x+\beta/x)$, if $x > \beta^{1/4}$, and not at all below
(paper_notes/spiked_limit.md). The rules of this file put $\eta(y)\,\sigma\sqrt L$ in its place:

- `Frobenius`: $\eta = \sqrt{(y^2-\beta-1)^2-4\beta}\,/\,y$;
- `Nuclear`: $\eta = (x^4-\beta-\sqrt\beta\,xy)_+/(x^2y)$;
- `Operator`: $\eta = x\sqrt{(x^2+\beta)/(x^2+1)}$ (Leeb 2022; the rule $\eta = x$ of 2017 is
  optimal for $\beta = 1$ only);
- `HardThreshold`: $\eta = y$ where $y > \lambda_*(\beta)$,

and zero for $y \le 1+\sqrt\beta$, the edge of the noise (Gavish and Donoho 2014, 2017). They
are the best of the rules that are zero there.
"""

import abc
import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank_theory._numerics import (
    after,
    check_positive,
    float64,
    in_float64,
    matmul,
    safe_divide,
    safe_sqrt,
    settle,
)
from lowrank_theory._scale import at_scale_one
from lowrank_theory._subspaces import all_right_vectors
from lowrank_theory.approximations import LowRank
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._attainable import attainable, fit_outputs
from lowrank_theory.recovery._recover import AbstractMethod, Certificate, Recovery

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_NEWTON_STEPS = 8


def hard_threshold_constant(aspect: float | Float[Array, ""]) -> Float[Array, ""]:
    r"""$\lambda_*(\beta)$: the best place to cut singular values, in units of $\sigma\sqrt L$.

    $\lambda_*^2 = 2(\beta+1) + 8\beta/\bigl(\beta+1+\sqrt{\beta^2+14\beta+1}\bigr)$, for $\beta$ =
    `aspect` in (0, 1] (Gavish and Donoho 2014); $4/\sqrt3$ for square matrices.
    """
    with float64():
        beta = jnp.asarray(aspect, float)
        root = jnp.sqrt(beta**2 + 14 * beta + 1)
        return jnp.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + root))


def marchenko_pastur_median(aspect: float | Float[Array, ""]) -> Float[Array, ""]:
    r"""The median $\mu_\beta$ of the squared singular values of pure noise, in units of
    $\sigma^2L$, for $\beta$ = `aspect` in (0, 1].

    With $t = 1+\beta+2\sqrt\beta\cos\theta$ the law of Marchenko and Pastur has the density
    $\tfrac2\pi\sin^2\theta/t$ in $\theta\in(0,\pi)$, smooth for every $\beta$. Its median is found
    by Newton's method and Gauss quadrature, to about $10^{-14}$.
    """
    with float64():
        beta = jnp.asarray(aspect, float)

        def density(angle: Array) -> Array:
            place = 1 + beta + 2 * jnp.sqrt(beta) * jnp.cos(angle)
            return 2 / math.pi * jnp.sin(angle) ** 2 / place

        def improved(_: Any, angle: Array) -> Array:
            half = angle / 2
            mass = half * jnp.sum(_WEIGHTS * density(half * (1 + _NODES)))
            return angle - (mass - 0.5) / density(angle)

        angle = jax.lax.fori_loop(0, _NEWTON_STEPS, improved, jnp.asarray(math.pi / 2))
        return 1 + beta + 2 * jnp.sqrt(beta) * jnp.cos(angle)


class AbstractShrinker(eqx.Module):
    r"""A rule $\eta$ for the singular values $y$ of signal plus noise, in units of $\sigma\sqrt
    L$.
    """

    @abc.abstractmethod
    def shrink(
        self, values: Float[Array, "*count"], aspect: Float[Array, ""]
    ) -> Float[Array, "*count"]:
        r"""$\eta(y)$ for each of the values, at $\beta$ = `aspect` in (0, 1]."""


class Frobenius(AbstractShrinker):
    r"""The rule of least squared Frobenius error, $\eta = x\,c\,\tilde c$."""

    def shrink(
        self, values: Float[Array, "*count"], aspect: Float[Array, ""]
    ) -> Float[Array, "*count"]:
        r"""$\sqrt{(y^2-\beta-1)^2-4\beta}\,/\,y$."""
        detected, y, root, _ = _signal_terms(values, aspect)
        return jnp.where(detected, root / y, 0)


class Nuclear(AbstractShrinker):
    r"""The rule of least nuclear norm of the error, $\eta = x\,(c\,\tilde c - s\,\tilde s)_+$."""

    def shrink(
        self, values: Float[Array, "*count"], aspect: Float[Array, ""]
    ) -> Float[Array, "*count"]:
        r"""$(x^4-\beta-\sqrt\beta\,xy)_+/(x^2y)$."""
        detected, y, root, square = _signal_terms(values, aspect)
        # x^4 - beta = x^2 sqrt((y^2 - beta - 1)^2 - 4 beta), without its cancellation at the edge
        kept = (root - jnp.sqrt(aspect / square) * y) / y
        return jnp.where(detected, jnp.maximum(kept, 0), 0)


class Operator(AbstractShrinker):
    r"""The rule of least operator norm of the error, $\eta = x\min(c,\tilde c)/\max(c,\tilde
    c)$.
    """

    def shrink(
        self, values: Float[Array, "*count"], aspect: Float[Array, ""]
    ) -> Float[Array, "*count"]:
        r"""$x\sqrt{(x^2+\beta)/(x^2+1)}$."""
        detected, _, _, square = _signal_terms(values, aspect)
        return jnp.where(detected, jnp.sqrt(square * (square + aspect) / (square + 1)), 0)


class HardThreshold(AbstractShrinker):
    r"""The best rule, in squared Frobenius error, of those that keep a singular value or drop
    it.
    """

    def shrink(
        self, values: Float[Array, "*count"], aspect: Float[Array, ""]
    ) -> Float[Array, "*count"]:
        r"""$y$ above $\lambda_*(\beta)$, zero below."""
        return jnp.where(values > hard_threshold_constant(aspect), values, 0)


def signal_strength(
    values: Float[Array, "*count"], aspect: Float[Array, ""]
) -> Float[Array, "*count"]:
    r"""The strength $x$ that is seen as $y$, in units of $\sigma\sqrt L$; zero where $y\le1+
    \sqrt\beta$.
    """
    detected, _, _, square = _signal_terms(values, aspect)
    return jnp.where(detected, jnp.sqrt(square), 0)


def _signal_terms(values: Array, aspect: Array) -> tuple[Array, Array, Array, Array]:
    r"""Whether $y > 1+\sqrt\beta$; $y$; $\sqrt{(y^2-\beta-1)^2-4\beta} = x^2-\beta/x^2$; $x^2$.

    The last three are harmless numbers where nothing is detected, so that derivatives are zero.
    """
    upper, lower = 1 + jnp.sqrt(aspect), 1 - jnp.sqrt(aspect)
    detected = values > upper
    y = jnp.where(detected, values, 2 * upper)
    root = jnp.sqrt((y - upper) * (y + upper) * (y - lower) * (y + lower))
    return detected, y, root, (y**2 - aspect - 1 + root) / 2


class OptimalShrinkage(AbstractMethod):
    r"""Singular values of $PY$ shrunk by the rule that is optimal for i.i.d. noise in large layers.

    `noise_scale` is the standard deviation $\sigma$ of the noise; without it, it is read off the
    median singular value, that of pure noise if the signal has small rank. There is no rank
    constraint: `rank` only sets how many components the factors can hold, and components at the
    level of the noise are zero.
    """

    shrinker: AbstractShrinker = Frobenius()
    noise_scale: float | None = None

    def __check_init__(self) -> None:
        if self.noise_scale is not None:
            settle(self, "noise_scale", check_positive, zero=True)

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Shrink what the layer can express. Raises `ValueError` without activations, or with a
        bias.
        """
        solve = functools.partial(optimal_shrinkage, shrinker=self.shrinker)
        return fit_outputs(self, observed, rank, solve, self.noise_scale)


@in_float64
def optimal_shrinkage(
    layer_inputs: Float[Array, "samples inputs"],
    outputs: Float[Array, "samples outputs"],
    noise_scale: Float[Array, ""] | float | None = None,
    *,
    shrinker: AbstractShrinker,
    rank: int,
    resolution: float = float(np.finfo(np.float64).eps),
    dtype: Any = None,
) -> tuple[LowRank, Certificate]:
    r"""The pure function beneath `OptimalShrinkage`.

    Works under `jit`, `vmap` and `grad`. The product of the factors is differentiable where no
    singular value is where the rule has a jump or a kink, if those that it keeps are at most
    `rank`; ties do no harm.
    """
    found = attainable(layer_inputs, outputs, resolution)
    if noise_scale is not None:
        noise_scale = at_scale_one(noise_scale, found.power)
    unit, aspect = _noise_unit(found.fitted, found.rank, noise_scale)
    shrunk_vectors, vectors, eigenvalues = _shrunk_right_vectors(
        shrinker, after(unit, found.fitted), unit, aspect, rank
    )
    kept = jnp.where(
        jnp.arange(eigenvalues.size) < rank, _multipliers(shrinker, eigenvalues, unit, aspect), 0
    )
    discarded = jnp.sum((1 - kept) ** 2 * eigenvalues)
    return found.returned(shrunk_vectors, vectors, discarded, dtype)


@in_float64
def shrink_singular_values(
    matrix: Float[Array, "rows columns"],
    noise_scale: Float[Array, ""] | float | None = None,
    *,
    shrinker: AbstractShrinker,
    rank: int,
) -> LowRank:
    """The same for a matrix by itself, whose noise fills all of its rows and columns."""
    rows, columns = matrix.shape
    tall = matrix if rows >= columns else matrix.T
    unit, aspect = _noise_unit(tall, jnp.asarray(float(tall.shape[0])), noise_scale)
    shrunk_vectors, vectors, _ = _shrunk_right_vectors(
        shrinker, after(unit, tall), unit, aspect, rank
    )
    factors = LowRank(matmul(tall, shrunk_vectors), vectors.T)
    return factors if rows >= columns else factors.T


def median_noise_unit(
    values: Float[Array, " count"], dimensions: Float[Array, ""], aspect: Float[Array, ""]
) -> Float[Array, ""]:
    r"""$\sigma\sqrt L$ from the median of the `dimensions` largest of the decreasing `values`,
    $\operatorname{med}/\sqrt{\mu_\beta}$.
    """
    last = jnp.maximum(dimensions, 1).astype(int) - 1
    median = (values[last // 2] + values[(last + 1) // 2]) / 2
    return median / jnp.sqrt(marchenko_pastur_median(aspect))


def _noise_unit(
    attainable: Array, q: Array, noise_scale: Array | float | None
) -> tuple[Array, Array]:
    r"""$\sigma\sqrt L$ and $\beta$, of noise that fills q of the rows."""
    columns = attainable.shape[1]
    longer, shorter = jnp.maximum(q, columns), jnp.minimum(jnp.maximum(q, 1), columns)
    aspect = shorter / longer
    if noise_scale is not None:
        return noise_scale * jnp.sqrt(longer), aspect
    values = jnp.linalg.svd(attainable, compute_uv=False)
    return median_noise_unit(values, shorter, aspect), aspect


def _multipliers(
    shrinker: AbstractShrinker, eigenvalues: Array, unit: Array, aspect: Array
) -> Array:
    r"""$\eta(y)/y$ for squared singular values; one where there is no noise."""
    values = safe_sqrt(eigenvalues)
    y = values / jnp.where(unit > 0, unit, 1)
    kept = safe_divide(shrinker.shrink(y, aspect), y)
    return jnp.where(unit > 0, kept, 1.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 4))
def _shrunk_right_vectors(
    shrinker: AbstractShrinker,
    matrix: Float[Array, "rows columns"],
    unit: Float[Array, ""],
    aspect: Float[Array, ""],
    rank: int,
) -> tuple[Float[Array, "columns rank"], Float[Array, "columns rank"], Float[Array, " columns"]]:
    r"""Factors of shrinkage: $HV_r$, $V_r$ and all squared singular values.

    $AH$ is $A$ with shrunk singular values, $H = \sum_ih_iv_iv_i^\top$ with $h = \eta(y)/y$ a
    function of $l_i = s_i^2$; $AHV_rV_r^\top$ keeps the first r. Its derivative is that of a
    spectral function (Daleckii and Krein 1965),

    $$ v_i^\top\,\mathrm dH\,v_j = \frac{h_i-h_j}{l_i-l_j}\,v_i^\top\,\mathrm d(A^\top A)\,v_j, $$

    with $h'$ for the quotient where $l_i$ and $l_j$ (almost) agree: ties leave no trace.
    """
    vectors, eigenvalues = all_right_vectors(matrix)
    leading = vectors[:, :rank]
    return leading * _multipliers(shrinker, eigenvalues, unit, aspect)[:rank], leading, eigenvalues


@_shrunk_right_vectors.defjvp
def _(shrinker: AbstractShrinker, rank: int, primals: tuple, tangents: tuple):
    (matrix, unit, aspect), (tangent, unit_change, _) = primals, tangents
    vectors, eigenvalues = all_right_vectors(matrix)
    h, slopes = jax.jvp(
        lambda e: _multipliers(shrinker, e, unit, aspect),
        (eigenvalues,),
        (jnp.ones_like(eigenvalues),),
    )
    _, unit_tangent = jax.jvp(
        lambda u: _multipliers(shrinker, eigenvalues, u, aspect), (unit,), (unit_change,)
    )
    product = matmul(matrix.T, tangent)
    rotated = matmul(vectors.T, product + product.T, vectors)

    gaps = eigenvalues[:, None] - eigenvalues[None, :]
    # Across a smaller gap the mean slope is the more accurate: the errors are gap^2 and eps / gap.
    near = jnp.finfo(eigenvalues.dtype).eps ** (1 / 3) * (
        eigenvalues[:, None] + eigenvalues[None, :]
    )
    tied = jnp.abs(gaps) <= near
    quotients = jnp.where(
        tied,
        (slopes[:, None] + slopes[None, :]) / 2,
        (h[:, None] - h[None, :]) / jnp.where(tied, 1, gaps),
    )
    spectral_tangent = quotients * rotated + jnp.diag(unit_tangent)

    # The span moves only where something of it is kept; the rest is multiplied by zero.
    kept = h[None, :rank] != 0
    gaps = jnp.where(kept, eigenvalues[None, :rank] - eigenvalues[rank:, None], 1)
    coefficients = jnp.where(kept, rotated[rank:, :rank] / gaps, 0)
    vectors_tangent = matmul(vectors[:, rank:], coefficients)
    product_tangent = matmul(vectors, spectral_tangent[:, :rank]) + matmul(
        vectors[:, rank:], h[rank:, None] * coefficients
    )
    leading = vectors[:, :rank]
    return (leading * h[:rank], leading, eigenvalues), (
        product_tangent,
        vectors_tangent,
        jnp.diagonal(rotated),
    )
