r"""Entries that are judged after what follows the layer.

With outputs $Y$ of the layer, a *bias* $b$, and the indicators $G$ of the codes, entries minimise

$$\sum_i \ell(y_i + b,\ G_iT + b) + \lambda\lVert T - T_0\rVert_F^2,$$

where $T_0$ are bucket means. Without a nonlinearity, $\ell(y, z) = \lVert y - z\rVert^2$, these
are the ridge entries of `ridge_entries`, and to know the weights changes nothing. Behind one it
does (McCarter and Dronen 2022). The start is the ridge entries, and every step of the optimiser
(L-BFGS, `scipy.optimize`) lowers the sum: it ends no higher than there. For a ReLU that is no more
than a local minimum; the cross-entropy is convex. Errors *before* the nonlinearity grow.
"""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float, Int

from lowrank_theory._numerics import check_array, check_same
from lowrank_theory.lookup.entries import Entries, indicators, ridge_entries

if TYPE_CHECKING:  # which knows no more of it than that
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar

Rows = Float[np.ndarray, "samples outputs"]


class AbstractNonlinearity(eqx.Module):
    """What the outputs of a layer go through after its bias has been added, and how two outcomes
    are compared.
    """

    bias: eqx.AbstractVar[tuple[float, ...] | None]
    homogeneous: AbstractClassVar[bool]  # outputs twice as large count four times as much

    @abc.abstractmethod
    def losses(self, wanted: Rows, found: Rows) -> tuple[Float[np.ndarray, " samples"], Rows]:
        r"""$\ell$ of each row of outputs, bias included, and its slope in what was found."""


class Rectified(AbstractNonlinearity):
    r"""A ReLU $\rho$, by squares: $\lVert\rho(y) - \rho(z)\rVert^2$."""

    bias: tuple[float, ...] | None
    homogeneous: ClassVar[bool] = True

    def __init__(self, bias: Any = None):
        self.bias = _checked(bias)

    def losses(self, wanted: Rows, found: Rows) -> tuple[Float[np.ndarray, " samples"], Rows]:
        r"""With the slope $2(\rho(z) - \rho(y))[z > 0]$."""
        away = np.maximum(found, 0) - np.maximum(wanted, 0)
        return np.sum(away**2, axis=1), 2 * away * (found > 0)


class Softmax(AbstractNonlinearity):
    r"""Class probabilities $p$ of $y$ and $q$ of $z$, by the relative entropy
    $\sum_kp_k\log(p_k/q_k)$ in nats; as `published`, by $1 - p^\top q$, which the code of the paper
    minimises instead: it takes probabilities for their logarithms.
    """

    bias: tuple[float, ...] | None
    published: bool = eqx.field(static=True)
    homogeneous: ClassVar[bool] = False

    def __init__(self, bias: Any = None, *, published: bool = False):
        self.bias, self.published = _checked(bias), bool(published)

    def losses(self, wanted: Rows, found: Rows) -> tuple[Float[np.ndarray, " samples"], Rows]:
        r"""With the slope $q - p$, or $-q\odot(p - p^\top q)$."""
        p, q = (scipy.special.softmax(rows, axis=1) for rows in (wanted, found))
        if self.published:
            alike = np.sum(p * q, axis=1)
            return 1 - alike, -q * (p - alike[:, None])
        logs = [scipy.special.log_softmax(rows, axis=1) for rows in (wanted, found)]
        return np.sum(p * (logs[0] - logs[1]), axis=1), q - p


def nonlinear_entries(
    codes: Int[np.ndarray, "samples codebooks"],
    wanted: Rows,
    anchor: Entries,
    through: AbstractNonlinearity,
    *,
    counts: Float[np.ndarray, " samples"] | None = None,
    ridge: float = 1.0,
    steps: int = 100,
) -> Entries:
    r"""The entries for `wanted` outputs of the layer, without its bias, as they count `through`
    what follows; `anchor` is $T_0$, $\lambda$ = `ridge` in rows for a ReLU, in nats for each
    squared logit for a softmax. Raises `ValueError` for a bias of other outputs.
    """
    weights = np.ones(len(wanted)) if counts is None else counts
    outputs = wanted.shape[1]
    bias = np.zeros(outputs) if through.bias is None else np.array(through.bias)
    check_same("bias", len(bias), "outputs", outputs, "outputs")
    start = ridge_entries(codes, wanted, anchor, counts=counts, ridge=ridge)
    largest = max(np.abs(each).max(initial=0) for each in (wanted, start, bias))
    power = int(np.frexp(largest)[1]) if through.homogeneous else 0
    wanted, start, anchor, bias = (np.ldexp(a, -power) for a in (wanted, start, anchor, bias))
    design = indicators(codes, anchor.shape[1])

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        entries = flat.reshape(-1, outputs)
        losses, slopes = through.losses(wanted + bias, design @ entries + bias)
        away = entries - anchor.reshape(-1, outputs)
        slope = design.T @ (weights[:, None] * slopes) + 2 * ridge * away
        return float(weights @ losses + ridge * np.sum(away**2)), slope.ravel()

    first = objective(start.ravel())[0]
    if not first > 0:
        return np.ldexp(start, power)
    options: Any = {"maxiter": steps, "ftol": 1e-10, "gtol": 0.0}
    found = scipy.optimize.minimize(
        lambda flat: tuple(part / first for part in objective(flat)),
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options=options,
    )
    return np.ldexp(found.x.reshape(anchor.shape), power)


def _checked(bias: Any) -> tuple[float, ...] | None:
    """As numbers, for a method is known by its fields."""
    return (
        None
        if bias is None
        else tuple(np.asarray(check_array("bias", bias, "outputs"), float).tolist())
    )
