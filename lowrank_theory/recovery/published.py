r"""Published recipes for low-rank layers, by their formulas: baselines for `ActivationWeighted`.

All but `ESPACE` truncate the weights in a *metric* $T$ made of what the layer has seen:
$Z = T^{-1}[TW]_r$, with $[\cdot]_r$ the truncated singular value decomposition.

| recipe | metric | what it minimises |
|---|---|---|
| `ASVD` | diagonal, of mean $\lvert x_j\rvert^\alpha$ | $\lVert T(W-Z)\rVert_F$ |
| `DiagonalQERA` | diagonal, root mean squares of $x_j$ | the outputs', if inputs are uncorrelated |
| `CorDA` | the second moment $C = X^\top X/m$ itself, damped | $\lVert T(W-Z)\rVert_F$ |
| `DRONE` | $\Sigma V^\top$ of $X = U\Sigma V^\top$ | the error of the outputs |
| `SVDLLM` | Cholesky factor of $X^\top X$ | the error of the outputs |
| `QERA` | symmetric root of the second moment | the error of the outputs |
| `COALA` | R of the QR decomposition of $X$ | the error of the outputs |
| `ESPACE` | (projects the activations) | $\lVert X - XPP^\top\rVert_F$ |

**One map.** If $T^\top T = X^\top X$, then $\lVert T(W-Z)\rVert_F = \lVert X(W-Z)\rVert_F$, and two
such metrics differ by an orthogonal matrix from the left, which the truncation passes on and the
inverse takes back. So `DRONE`, `SVDLLM`, `QERA` and `COALA` are one estimator, that of
`ActivationWeighted`, wherever $X^\top X$ is well conditioned; they differ in what rounding and rank
deficiency do to them. The others are never better (what they can lose: `price_of_ignoring_data`
among the theorems).

Here everything is computed in float64, and decompositions are exact: what is compared is formulas
and their safeguards, not the precision or the random sketches of somebody's code. Absolute
constants among the safeguards (`ASVD.floor`, `SVDLLM.shift`) are kept as published; they are the
reason why those two depend on units.
"""

import abc
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank_theory._numerics import (
    after,
    check_positive,
    in_float64,
    matmul,
    relative_rank_cutoff,
    rounding_allowance,
    safe_sqrt,
    settle,
)
from lowrank_theory._scale import at_scale_one, times_power, unit
from lowrank_theory._subspaces import leading_eigenvectors, leading_right_vectors
from lowrank_theory.approximations import LowRank
from lowrank_theory.calibration import AbstractCalibration, Calibration, TriangularCalibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._checks import check_original
from lowrank_theory.recovery._from_moments import (
    calibration_at_scale_one,
    eigenproblem,
    scatter_power,
)
from lowrank_theory.recovery._from_rows import problem_of_rows
from lowrank_theory.recovery._from_triangle import problem_of_triangle, triangle_power
from lowrank_theory.recovery._least_squares import least_squares
from lowrank_theory.recovery._recover import (
    NEAR_OPTIMAL,
    AbstractMethod,
    Certificate,
    Recovery,
    is_finite,
)
from lowrank_theory.recovery._returned import Fit, scaled_certificate, stored

Seen = Array | AbstractCalibration


class AbstractRecipe(AbstractMethod):
    r"""A published recipe: it compresses trained weights for what the layer has seen.

    None of them comes with a certificate, so they are measured: `optimal_error` is the optimum
    $\min_{\operatorname{rank}Z\le r}\lVert X(W-Z)\rVert_F$, computed from the same rows or moments,
    and `excess_bound` the measured error of the recipe minus that optimum, plus what rounding may
    have done to either. So `certificate.certified` says whether the recipe is within 0.1 % of the
    optimum on this layer. Where a factorisation fails, `finite` is false and the excess infinite.

    A bias is kept as it is, and nothing is centred.
    """

    @abc.abstractmethod
    def factors(self, weights: Float[Array, "inputs outputs"], seen: Seen, rank: int) -> LowRank:
        """The formula, from activations (samples, inputs) or their calibration, in the precision of
        what it is given. Works under `jit` and `vmap`.
        """

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Follow the recipe, and measure what came of it.

        Raises `ValueError` without weights, without activations or a calibration, where the
        compressed layer sees or should give something else, or where the recipe needs what the
        calibration at hand did not keep.
        """
        name = type(self).__name__
        if observed.weights is None:
            raise ValueError(
                f"`{name}` compresses trained weights: give "
                "`Observed(weights=..., activations=...)`."
            )
        seen = check_original(name, observed)
        factors, certificate = _measured(observed.weights, seen, rank=rank, recipe=self)
        return Recovery(factors, observed.bias, certificate, self)


class ASVD(AbstractRecipe):
    r"""Channels weighted by how large they are on average: $T = \operatorname{diag}(
    \operatorname{mean}_t\lvert x_{tj}\rvert)^\alpha + \epsilon I$ (Yuan et al. 2023, arXiv
    2312.05821, "absolute mean value"; $\alpha =$ `exponent`, and $\epsilon =$ `floor` as in the
    authors' code).

    A heuristic: the outputs' optimum where the inputs are uncorrelated and $T$ happens to be
    proportional to their root mean squares, as for white ones. It needs the activations
    themselves. It commutes neither with rotations of the inputs nor, because of $\epsilon$, with
    their units.
    """

    exponent: float = 0.5
    floor: float = 1e-6

    def __check_init__(self) -> None:
        settle(self, "exponent", check_positive)
        settle(self, "floor", check_positive, zero=True)

    def factors(self, weights: Float[Array, "inputs outputs"], seen: Seen, rank: int) -> LowRank:
        """Scale the inputs, truncate, scale back."""
        if isinstance(seen, AbstractCalibration):
            raise ValueError("`ASVD` needs mean absolute values: give `activations` themselves.")
        size = jnp.mean(jnp.abs(seen), axis=0)
        return _scaled(size**self.exponent + self.floor, weights, rank)


class DiagonalQERA(AbstractRecipe):
    r"""The approximate form of QERA: $T = \operatorname{diag}(\operatorname{mean}_tx_{tj}^2)^{1/2}$
    (Zhang et al. 2024, arXiv 2410.06040, theorem 2), zeros replaced by the machine epsilon.

    Optimal where the inputs are uncorrelated, $\operatorname{mean}_tx_{ti}x_{tj} = 0$. The paper
    approximates the error of a quantised layer; here it is the layer itself that is approximated.
    """

    def factors(self, weights: Float[Array, "inputs outputs"], seen: Seen, rank: int) -> LowRank:
        """Scale the inputs, truncate, scale back."""
        scale = safe_sqrt(jnp.diagonal(_second_moment(seen)))
        return _scaled(_positive(scale), weights, rank)


class CorDA(AbstractRecipe):
    r"""Weighted by the second moment itself, not by its root: $T = C + \delta cI$, where $c$ is the
    mean of the diagonal of $C$ (Yang et al. 2024, arXiv 2406.05223; the damping is that of the
    authors' code, which also divides each batch by its largest entry: here all samples count
    alike).

    $\delta$ starts at `damping` and is doubled until $\lVert TT^{-1} - I\rVert_F <$ `tolerance`.
    Strong directions count twice: optimal for $\lVert T(W-Z)\rVert_F$, and for the outputs where
    the inputs are white. The paper trains some of the components as an adapter and keeps the rest;
    here the first r are the layer.
    """

    damping: float = 0.01
    tolerance: float = 0.05

    def __check_init__(self) -> None:
        settle(self, "damping", check_positive)
        settle(self, "tolerance", check_positive)

    def factors(self, weights: Float[Array, "inputs outputs"], seen: Seen, rank: int) -> LowRank:
        """Damp until the inverse is accurate, weight, truncate, apply the inverse."""
        moment = _second_moment(seen)
        identity = jnp.eye(moment.shape[0], dtype=moment.dtype)
        unit = jnp.mean(jnp.diagonal(moment)) * identity

        def inaccuracy(damping: Array) -> Array:
            metric = moment + damping * unit
            return jnp.linalg.norm(matmul(metric, jnp.linalg.inv(metric)) - identity)

        def doubled(state: tuple[Array, Array]) -> tuple[Array, Array]:
            return 2 * state[0], inaccuracy(2 * state[0])

        start = jnp.asarray(self.damping, moment.dtype)
        damping, _ = jax.lax.while_loop(  # which ends on NaN, unlike the published one
            lambda state: state[1] >= self.tolerance, doubled, (start, inaccuracy(start))
        )
        metric = moment + damping * unit
        return _truncated(
            metric, weights, rank, lambda part: matmul(jnp.linalg.inv(after(part, metric)), part)
        )


class DRONE(AbstractRecipe):
    r"""$Z = V\Sigma^{-1}[\Sigma V^\top W]_r$ with the compact decomposition $X = U\Sigma V^\top$
    (Chen et al. 2021, NeurIPS; the paper decomposes the weights too, which changes the cost and not
    the map).

    The error of the outputs is optimal for every $X$, and of the minimisers this is the one without
    a component that the activations do not show. From second moments, $V$ and $\Sigma^2$ are
    eigenvectors and eigenvalues of $X^\top X$, and directions below the square root of the machine
    epsilon are lost.
    """

    def factors(self, weights: Float[Array, "inputs outputs"], seen: Seen, rank: int) -> LowRank:
        """Truncate in the coordinates of the singular vectors that exist."""
        rows = _rows(seen)
        if rows is None:
            gram = _gram(seen)
            vectors, eigenvalues = leading_eigenvectors(gram, gram.shape[0])
            values = safe_sqrt(jnp.maximum(eigenvalues, 0))
            cutoff = jnp.sqrt(relative_rank_cutoff(gram.shape) * gram.shape[0])
        else:
            _, values, right = jnp.linalg.svd(rows, full_matrices=False)
            vectors, cutoff = right.T, relative_rank_cutoff(rows.shape)
        kept = values > cutoff * values[0]
        metric = jnp.where(kept, values, 0)[:, None] * vectors.T
        inverse = vectors * jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
        return _truncated(metric, weights, rank, lambda part: matmul(inverse, part))


class SVDLLM(AbstractRecipe):
    r"""$T = L^\top$ with the Cholesky factor $X^\top X = LL^\top$ (Wang et al. 2024, arXiv
    2403.07378, theorem 3.2 and corollary 3.3).

    Optimal for the outputs where $X^\top X$ is positive definite to rounding. Where the Cholesky
    factorisation breaks down, $(\epsilon - \lambda_{\min})I$ is added, $\epsilon =$ `shift`, and it
    is tried once more (the authors' code, where $\epsilon = 10^{-6}$ in the squared units of the
    activations summed over samples). Where $\epsilon$ is below the rounding of
    $\lambda_{\max}$ this fails too: then nothing is finite.
    """

    shift: float = 1e-6

    def __check_init__(self) -> None:
        settle(self, "shift", check_positive, zero=True)

    def factors(self, weights: Float[Array, "inputs outputs"], seen: Seen, rank: int) -> LowRank:
        """Whiten, truncate, undo the whitening."""
        gram = _gram(seen)
        factor = jnp.linalg.cholesky(gram)
        failed = ~is_finite(factor)
        gram = after(failed.astype(gram.dtype), gram)
        shift = jnp.where(failed, self.shift - jnp.linalg.eigvalsh(gram)[0], 0)
        again = jnp.linalg.cholesky(gram + shift * jnp.eye(gram.shape[0], dtype=gram.dtype))
        triangle = jnp.where(failed, again, factor).T
        return _truncated(
            triangle,
            weights,
            rank,
            lambda part: jax.scipy.linalg.solve_triangular(triangle, part),
        )


class QERA(AbstractRecipe):
    r"""$T = C^{1/2}$, the symmetric root of the second moment (Zhang et al. 2024, arXiv 2410.06040,
    theorem 1).

    Optimal for the outputs where $C$ is invertible. Singular values of $T$ that are not positive
    are replaced by the machine epsilon (the authors' code). Where $C$ is nearly singular, the error
    of the outputs stays near the optimum, but the weights may grow in directions without data. The
    paper approximates the error of a quantised layer; here it is the layer itself.
    """

    def factors(self, weights: Float[Array, "inputs outputs"], seen: Seen, rank: int) -> LowRank:
        """Weight by the root, truncate, apply its inverse."""
        moment = _second_moment(seen)
        vectors, eigenvalues = leading_eigenvectors(moment, moment.shape[0])
        values = _positive(safe_sqrt(jnp.maximum(eigenvalues, 0)))
        root = matmul(vectors * values, vectors.T)
        return _truncated(
            root,
            weights,
            rank,
            lambda part: matmul(vectors / values, matmul(vectors.T, part)),
        )


class COALA(AbstractRecipe):
    r"""$Z = WV_rV_r^\top$ with $V_r$ the leading right singular vectors of $RW$, $X = QR$ (Parkina
    and Rakhuba 2025, arXiv 2507.07580): neither a Gram nor an inverse.

    Optimal for the outputs, whatever $X$. With `penalty` $\mu$, $R$ is that of $X$ with the rows of
    $\sqrt\mu\,I$ added, and $Z$ the minimiser of $\lVert X(W-Z)\rVert_F^2 + \mu\lVert
    W-Z\rVert_F^2$, as in `Ridge`. It needs rows, or the R of a `TriangularCalibration`.
    """

    penalty: float = 0.0

    def __check_init__(self) -> None:
        settle(self, "penalty", check_positive, zero=True)

    def factors(self, weights: Float[Array, "inputs outputs"], seen: Seen, rank: int) -> LowRank:
        """Project the outputs on their leading directions."""
        rows = _rows(seen)
        if rows is None:
            raise ValueError(
                "`COALA` needs rows, not second moments: give `activations`, or a "
                "`TriangularCalibration`."
            )
        if self.penalty:
            root = self.penalty**0.5 * jnp.eye(rows.shape[1], dtype=rows.dtype)
            rows = jnp.concatenate([rows, root])
        triangle = jnp.linalg.qr(rows, mode="r")
        vectors, _ = leading_right_vectors(matmul(triangle, weights), rank)
        return LowRank(matmul(weights, vectors), vectors.T)


class ESPACE(AbstractRecipe):
    r"""$Z = P_rP_r^\top W$ with $P_r$ the leading eigenvectors of the second moment $C$ (Sakr and
    Khailany 2024, arXiv 2410.05437): the activations are projected, whatever the weights.

    Of the criteria of that paper, the plain one: $P_r$ minimises the error of the activations,
    $\lVert X - XPP^\top\rVert_F^2 = m\sum_{i>r}\lambda_i(C)$, hence $\lVert X(W-Z)\rVert_F^2 \le
    \lVert W\rVert^2\,m\sum_{i>r}\lambda_i(C)$. Optimal for the outputs where $WW^\top$
    is a multiple of the identity.
    """

    def factors(self, weights: Float[Array, "inputs outputs"], seen: Seen, rank: int) -> LowRank:
        """Project the inputs on their leading directions."""
        vectors, _ = leading_eigenvectors(_second_moment(seen), rank)
        return LowRank(vectors, matmul(vectors.T, weights))


def _truncated(
    metric: Float[Array, "rows inputs"],
    weights: Float[Array, "inputs outputs"],
    rank: int,
    undo: Callable[[Array], Array],
) -> LowRank:
    r"""$T^{-1}[TW]_r$, with $[TW]_r = (TWV_r)V_r^\top$."""
    seen = matmul(metric, weights)
    vectors, _ = leading_right_vectors(seen, rank)
    return LowRank(undo(matmul(seen, vectors)), vectors.T)


def _scaled(scale: Float[Array, " inputs"], weights: Array, rank: int) -> LowRank:
    """The same for a diagonal metric."""
    vectors, _ = leading_right_vectors(scale[:, None] * weights, rank)
    return LowRank(matmul(scale[:, None] * weights, vectors) / scale[:, None], vectors.T)


def _positive(values: Array) -> Array:
    return jnp.where(values <= 0, jnp.finfo(values.dtype).eps, values)  # NaN stays NaN


def _rows(seen: Seen) -> Float[Array, "samples inputs"] | None:
    """The rows, or others with the same products, where there are any."""
    if isinstance(seen, TriangularCalibration):
        return seen.rows()[1]
    return None if isinstance(seen, AbstractCalibration) else seen


def _gram(seen: Seen) -> Float[Array, "inputs inputs"]:
    if isinstance(seen, AbstractCalibration):
        return jnp.asarray(seen.gram())
    return matmul(seen.T, seen)


def _second_moment(seen: Seen) -> Float[Array, "inputs inputs"]:
    return _gram(seen) / (seen.count if isinstance(seen, AbstractCalibration) else seen.shape[0])


# --- what came of it ------------------------------------------------------------------------------


@functools.partial(in_float64, like=0)
def _measured(
    weights: Array, seen: Seen, *, rank: int, recipe: AbstractRecipe, dtype: np.dtype | None = None
) -> tuple[LowRank, Certificate]:
    """The recipe's factors as they are returned, held against those of `ActivationWeighted`.

    The latter exceed the optimum by at most what is known of their fit, so no more than that is
    missing where their measured error stands for it. The recipe is followed in the units given, on
    which some depend; errors are measured at scale one.
    """
    assert dtype is not None  # the border gives it
    best = _best(weights, seen, rank)
    found = recipe.factors(weights, after(best.optimum, seen), rank)
    factors = stored(found.left, found.right, 0, dtype).factors
    finite = is_finite(factors.left, factors.right)

    (left, left_power), (right, right_power) = unit(factors.left), unit(factors.right)
    power = left_power + right_power - best.left_power
    lower, _ = _error(weights, seen, best.left, best.right, jnp.zeros_like(power))
    _, upper = _error(weights, seen, left, right, power)
    rounding = safe_sqrt(best.upper) - safe_sqrt(best.lower) + best.rounding
    excess = jnp.where(finite, upper - lower + rounding, jnp.inf)
    certificate = scaled_certificate(
        safe_sqrt(best.optimum), excess, best.target_norm, finite, best.power, NEAR_OPTIMAL
    )
    return factors, certificate


def _best(weights: Array, seen: Seen, rank: int) -> Fit:
    """The best layer, by the route for what was seen."""
    if isinstance(seen, Calibration):
        return eigenproblem(weights, seen, None).of_rank(rank)
    if isinstance(seen, TriangularCalibration):
        return least_squares(problem_of_triangle(weights, seen, None)).of_rank(rank)
    assert not isinstance(seen, AbstractCalibration)
    return least_squares(problem_of_rows(weights, seen, None, None, None)).of_rank(rank)


def _error(
    weights: Array, seen: Seen, left: Array, right: Array, power: Array
) -> tuple[Array, Array]:
    r"""Between which two numbers $\lVert X(W-2^pLR)\rVert_F$ lies, all at scale one."""
    weights, _ = unit(weights)
    layer = times_power(matmul(left, right), power)
    sizes = times_power(jnp.linalg.norm(left) * jnp.linalg.norm(right), power)
    size, missing = jnp.linalg.norm(weights) + sizes, weights - layer
    if isinstance(seen, Calibration):
        seen_power = scatter_power(seen.scatter, seen.mean)
        gram = jnp.asarray(calibration_at_scale_one(seen, seen_power, seen_power).gram())
        square = jnp.sum(missing * matmul(gram, missing))
        rounding = rounding_allowance(jnp.trace(gram) * size**2, *weights.shape)
        return (
            safe_sqrt(jnp.maximum(square - rounding, 0)),
            safe_sqrt(jnp.maximum(square, 0) + rounding),
        )
    if isinstance(seen, TriangularCalibration):
        rows = at_scale_one(_rows(seen), triangle_power(seen))
    else:
        rows, _ = unit(seen)
    error = safe_sqrt(jnp.sum(matmul(rows, missing) ** 2))
    rounding = rounding_allowance(jnp.linalg.norm(rows) * size, *rows.shape, weights.shape[1])
    return jnp.maximum(error - rounding, 0), error + rounding
