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

from typing import Any

from lowrank_theory._numerics import resolution
from lowrank_theory.calibration import TriangularCalibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._checks import check_calibration
from lowrank_theory.recovery._every_rank import AbstractNestedMethod, EveryRank
from lowrank_theory.recovery._from_moments import by_leading_eigenvectors, every_rank_from_moments
from lowrank_theory.recovery._from_rows import activation_weighted, every_rank_from_rows
from lowrank_theory.recovery._from_triangle import (
    activation_weighted_from_triangle,
    every_rank_from_triangle,
)
from lowrank_theory.recovery._ladder import Need
from lowrank_theory.recovery._recover import Recovery


class ActivationWeighted(AbstractNestedMethod):
    r"""The minimiser of $\lVert Y - \tilde XZ\rVert_F^2$ over matrices $Z$ of rank r.

    With a `bias`, activations and outputs are centred and the new bias is exact: the best rank-r
    *affine* map. Where few samples leave directions open, `Ridge` decides them.

    Where the rows or a `TriangularCalibration` are given, orthogonal decompositions are used,
    accurate to rounding. A `Calibration` is used through its float64 Gram, whose certificate says
    whether the squared condition number did harm.
    """

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Fit the layer to what it sees. Raises `ValueError` where nothing says what that is."""
        factors, bias, certificate = _by_route(
            observed,
            activation_weighted,
            activation_weighted_from_triangle,
            by_leading_eigenvectors,
            rank=rank,
        )
        return Recovery(factors, bias, certificate, self)

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments, or rows."""
        return frozenset({Need.MOMENTS})

    def fit_every_rank(self, observed: Observed) -> EveryRank:
        """The same at all ranks."""
        factors, means, certificates = _by_route(
            observed, every_rank_from_rows, every_rank_from_triangle, every_rank_from_moments
        )
        if means is None:
            return EveryRank(factors, certificates, None, None, None, self)
        return EveryRank(factors, certificates, means.output, means.inputs, means.samples, self)


def _by_route(
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
    calibration = check_calibration("ActivationWeighted", observed)
    triangular = isinstance(calibration, TriangularCalibration)
    route = from_triangle if triangular else from_moments
    return route(observed.weights, calibration, observed.bias, **static)
