r"""Data-driven recovery: the best rank-r layer for the activations that it really sees.

$$\min_{\operatorname{rank} Z\le r} \lVert Y - \tilde XZ\rVert_F^2
  = \lVert(I-P)Y\rVert_F^2 + \sum_{i>r}s_i(PY)^2,
  \qquad Z = \tilde X^+[PY]_r = BV_rV_r^\top,$$

with $P$ the projector on the columns of $\tilde X$, $B = \tilde X^+Y$ the least-squares layer and
$V_r$ the leading right singular vectors of $PY$ (reduced-rank regression: Anderson 1951; Izenman
1975; proved in paper_notes/best_possible.md). Where the layer sees what it always saw, $\tilde X =
X$ and $Y = XW$, then $B = W$ solves the least-squares problem and no inverse is needed at all: it
works for rank-deficient activations and for fewer samples than inputs.

Where an inverse is needed, the columns of $\tilde X$ are first scaled alike, so that an outlier
channel hides no other, and directions that float64 does not tell from none count for none: the
optimum is that of layers which use no such direction.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from lowrank_theory._numerics import AnyArray, cast, float64, in_float64, promote, resolution
from lowrank_theory._subspaces import (
    all_eigenvectors,
    lapack_leading_eigenvectors,
    leading_eigenvectors,
)
from lowrank_theory.approximations import LowRank
from lowrank_theory.calibration import AbstractCalibration, Calibration, TriangularCalibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._every_rank import AbstractNestedMethod, EveryRank
from lowrank_theory.recovery._from_moments import Eigenproblem, eigenproblem, solved
from lowrank_theory.recovery._from_rows import (
    fitted_to_rows,
    problem_of_rows,
    problem_of_triangle,
)
from lowrank_theory.recovery._ladder import Need
from lowrank_theory.recovery._recover import Certificate, Means, Recovery
from lowrank_theory.recovery._returned import Returned, finished, is_rounded, unfinished

PARTIAL_FROM = 512  # the smaller side from which a quarter of the eigenvectors costs less than all


class ActivationWeighted(AbstractNestedMethod):
    r"""The minimiser of $\lVert Y - \tilde XZ\rVert_F^2$ over matrices $Z$ of rank r.

    With a `bias`, activations and outputs are centred and the new bias is exact: the best rank-r
    *affine* map. Where few samples leave directions open, `Ridge` decides them.

    Where the rows or a `TriangularCalibration` are at hand, orthogonal decompositions are used,
    accurate to rounding. A `Calibration` is used through its float64 Gram, whose certificate says
    whether the squared condition number did harm.
    """

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Fit the layer to what it sees. Raises `ValueError` where nothing says what that is."""
        factors, bias, certificate = _fit(
            observed,
            activation_weighted,
            activation_weighted_from_triangle,
            _from_moments_at_hand,
            rank=rank,
        )
        return Recovery(factors, bias, certificate, self)

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments, or rows."""
        return frozenset({Need.MOMENTS})

    def fit_every_rank(self, observed: Observed) -> EveryRank:
        """The same at all ranks."""
        factors, means, certificates = _fit(
            observed, _rows_at_every_rank, _triangle_at_every_rank, _moments_at_every_rank
        )
        if means is None:
            return EveryRank(factors, certificates, None, None, None, self)
        return EveryRank(factors, certificates, means.output, means.inputs, means.samples, self)


def _fit(
    observed: Observed, from_rows: Any, from_triangle: Any, from_moments: Any, **static: int
) -> Any:
    """By the route for what was observed."""
    if observed.activations is not None:
        return from_rows(
            observed.weights,
            observed.activations,
            observed.compressed_activations,
            observed.outputs,
            observed.bias,
            resolution=resolution(observed.activations, observed.compressed_activations),
            **static,
        )
    seen = check_seen("ActivationWeighted", observed)
    route = from_triangle if isinstance(seen, TriangularCalibration) else from_moments
    return route(observed.weights, seen, observed.bias, **static)


def check_calibrated(method: str, observed: Observed) -> Calibration:
    """The second moments of what a layer without rows at hand has seen, or a `ValueError` where
    that is nothing.
    """
    return check_seen(method, observed).moments()


def check_seen(method: str, observed: Observed) -> AbstractCalibration:
    """What a layer without rows at hand has seen, or a `ValueError` where that is nothing."""
    seen = observed.calibration
    if seen is None:
        raise ValueError(
            f"`{method}` needs what the layer sees: give `Observed(activations=...)` "
            "or `Observed(calibration=...)`."
        )
    if not isinstance(seen.count, Tracer) and float(seen.count) == 0:
        raise ValueError("`calibration` has seen no samples yet: call `update` first.")
    return seen


def check_unchanged(method: str, observed: Observed) -> AnyArray | AbstractCalibration:
    """What a layer sees that sees what it always saw and keeps its own outputs, or a `ValueError`
    for another layer.
    """
    seen = observed.activations
    if seen is None:
        seen = check_seen(method, observed)
    compressed = isinstance(seen, AbstractCalibration) and seen.has_compressed
    if compressed or not (observed.compressed_activations is observed.outputs is None):
        raise ValueError(
            f"`{method}` is for layers that see what they always saw, and keep their own "
            "outputs: use `ActivationWeighted` with `compressed_activations` or `outputs`."
        )
    return seen


@in_float64
def activation_weighted(
    weights: Float[Array, "inputs outputs"] | None,
    activations: Float[Array, "samples inputs"],
    compressed_activations: Float[Array, "samples inputs"] | None = None,
    outputs: Float[Array, "samples outputs"] | None = None,
    bias: Float[Array, " outputs"] | None = None,
    *,
    rank: int,
    resolution: float = float(np.finfo(np.float64).eps),
    dtype: Any = None,
) -> Returned:
    r"""The pure function beneath `ActivationWeighted`, from rows: factors, new bias, certificate.

    Works under `jit`, `vmap` and `grad`. The product of the factors is differentiable where
    $s_r(PY) > s_{r+1}(PY)$ and, if $\tilde X \ne X$, where the rank of $\tilde X$ is locally
    constant. `resolution` is the machine epsilon with which the activations were stored; it sets
    the one rank cut-off of the pseudo-inverse. Factors and bias have the common dtype of the
    inputs, or the `dtype` asked for.
    """
    rows = problem_of_rows(weights, activations, compressed_activations, outputs, bias)
    fit, seen = fitted_to_rows(rows, rank=rank, resolution=resolution)
    return finished(fit, seen, rows.affine, dtype)


@in_float64
def _rows_at_every_rank(
    weights: Array | None,
    activations: Array,
    compressed_activations: Array | None,
    outputs: Array | None,
    bias: Array | None,
    *,
    resolution: float,
    dtype: Any = None,
) -> tuple[LowRank, Means | None, Certificate]:
    rows = problem_of_rows(weights, activations, compressed_activations, outputs, bias)
    fit, seen = fitted_to_rows(rows, rank=None, resolution=resolution)
    return unfinished(fit, seen, rows.affine, dtype)


@functools.partial(in_float64, like=0)
def activation_weighted_from_triangle(
    weights: Float[Array, "inputs outputs"],
    calibration: TriangularCalibration,
    bias: Float[Array, " outputs"] | None = None,
    *,
    rank: int,
    dtype: Any = None,
) -> Returned:
    r"""The pure function beneath `ActivationWeighted`, from a triangular factor: factors, new bias,
    certificate.

    The factor stands for the rows, so the route is theirs. How precisely these were stored is not
    known, and all directions of $\tilde X$ that they tell apart in float64 count. Factors and bias
    have the dtype of the weights, or the `dtype` asked for.
    """
    rows = problem_of_triangle(weights, calibration, bias)
    fit, seen = fitted_to_rows(rows, rank=rank)
    return finished(fit, seen, rows.affine, dtype)


@functools.partial(in_float64, like=0)
def _triangle_at_every_rank(
    weights: Array, calibration: TriangularCalibration, bias: Array | None, *, dtype: Any = None
) -> tuple[LowRank, Means | None, Certificate]:
    rows = problem_of_triangle(weights, calibration, bias)
    return unfinished(*fitted_to_rows(rows, rank=None), rows.affine, dtype)


@functools.partial(in_float64, like=0)
def activation_weighted_from_moments(
    weights: Float[Array, "inputs outputs"],
    calibration: Calibration,
    bias: Float[Array, " outputs"] | None = None,
    *,
    rank: int,
    dtype: Any = None,
) -> Returned:
    r"""The pure function beneath `ActivationWeighted`, from second moments: factors, new bias,
    certificate.

    Eigenvectors of $B^\top\tilde X^\top\tilde XB$ on the smaller side of $B$. A symmetric
    perturbation $\Delta$ of that n x n matrix costs at most $2\min(r, n-r)\lVert\Delta\rVert$ in
    squared error (paper_notes/numerical_route.md), and rounding perturbs it on the scale of $\lVert
    W\rVert^2\lVert X\rVert^2$, not of its own norm: the certificate compares the two with the
    least that the optimum can be, which is computed with the same rounding.
    Directions of $\tilde X$ too weak for the Gram may hold as much of the outputs as is left: where
    some were dropped, the certificate counts on that. Factors and bias have the dtype of the
    weights, or the `dtype` asked for.
    """
    asked = eigenproblem(weights, calibration, bias)
    fit = solved(asked, *leading_eigenvectors(asked.matrix, rank), rank=rank)
    return finished(fit, asked.seen, asked.affine, dtype)


@functools.partial(in_float64, like=0)
def _moments_at_every_rank(
    weights: Array, calibration: Calibration, bias: Array | None, *, dtype: Any = None
) -> tuple[LowRank, Means | None, Certificate]:
    asked = eigenproblem(weights, calibration, bias)
    fit = solved(asked, *all_eigenvectors(asked.matrix), rank=None)
    return unfinished(fit, asked.seen, asked.affine, dtype)


def _from_moments_at_hand(
    weights: AnyArray, calibration: Calibration, bias: AnyArray | None, *, rank: int
) -> Returned:
    """`activation_weighted_from_moments`, but where fewer eigenvectors pay, in two programs with
    the leading ones between them: within a program, JAX finds all.
    """
    arrays = weights, calibration, bias
    size = min(weights.shape)
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arrays))
    if traced or jax.default_backend() != "cpu" or size < PARTIAL_FROM or 4 * rank > size:
        return activation_weighted_from_moments(weights, calibration, bias, rank=rank)
    with float64():
        dtype = np.dtype(weights.dtype)
        asked = _eigenproblem_at_hand(*arrays)
        if not is_rounded(dtype):
            asked = dataclasses.replace(asked, seen=None)  # and its memory is free
        leading = lapack_leading_eigenvectors(asked.matrix, rank)
        return cast(_solved_at_hand(asked, *leading, rank=rank, dtype=dtype), dtype)


@jax.jit
def _eigenproblem_at_hand(*arrays: Any) -> Eigenproblem:
    return eigenproblem(*promote(arrays))


@functools.partial(jax.jit, static_argnames=("rank", "dtype"))
def _solved_at_hand(
    asked: Eigenproblem, vectors: Array, energies: Array, *, rank: int, dtype: np.dtype
) -> Returned:
    return finished(solved(asked, vectors, energies, rank=rank), asked.seen, asked.affine, dtype)
