r"""Whole inputs or whole outputs are removed: a smaller dense matrix is left.

**Inputs, by data.** With all other inputs refitted by least squares, to remove input $q$ adds
$\lVert w_q\rVert^2/[H^{-1}]_{qq}$ to the squared error, $w_q$ its weights and $H$ the second
moments (optimal brain surgeon of a group: Hassibi and Stork 1993; Kurtic, Frantar and Alistarh
2023). The cheapest goes, the others answer, and so on. Those that stay are then fitted anew,

$$Z_S = B_S + H_{SS}^+H_{SR}B_R,$$

which is the best layer of these inputs $S$, $R$ the removed ones. **Outputs, by data**, do not
depend on each other: those of least norm go. **By weights alone** those inputs or outputs go whose
weights have the least norm, and nothing is refitted.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    check_array,
    check_count,
    check_fraction,
    relative_rank_cutoff,
    settle,
    settle_each,
)
from lowrank_theory.approximations import AbstractMatrix, Sparse, Transposed, WholeRows
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, Need, Sweep, WeightedTarget, trained_weights

DAMPING = 1e-6  # of correlations, while inputs are chosen: of two that are equal one goes for free


class Structured(AbstractLadder):
    """Whole inputs stay or go, at several `shares` that stay; with `axis=1`, whole outputs.

    `data_driven`, the inputs that stay are fitted to the outputs of all, and moments are about the
    mean where the layer has a bias, which then keeps the mean output. Else weights alone decide.
    """

    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)
    axis: int = 0
    data_driven: bool = True

    def __check_init__(self) -> None:
        settle_each(self, "shares", check_fraction)
        settle(self, "axis", check_count, 0, 1)

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments, or nothing but weights."""
        return frozenset({Need.MOMENTS} if self.data_driven else ())

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each share. Raises `ValueError` without weights, or where nothing was seen
        by which to decide.
        """
        if self.data_driven:
            target, gram, _ = WeightedTarget.of(self, observed)
            weights, gram = np.asarray(target), np.asarray(gram)
        else:
            weights, gram = np.asarray(trained_weights(self, observed)), None
        order = _order(weights, gram, self.axis)
        count, word = len(order), ("inputs", "outputs")[self.axis]
        sizes = []
        for share in self.shares:
            kept = max(1, round(share * count))
            found = _kept(weights, gram, order[-kept:], self.axis)
            sizes.append((f"{share:.3g} kept, {kept:,} of {count:,} {word}", found))
        return Sweep.of(self, observed, sizes)


def fewer_inputs(weights: ArrayLike, gram: ArrayLike, kept: int) -> AbstractMatrix:
    r"""The pure function beneath `Structured`, from $B$ and $\tilde X^\top\tilde X$: so many
    inputs, fitted to the outputs of all, in the dtype of the weights.

    On the host, in NumPy, and so not under `jit`. Raises `ValueError` for what are no finite
    matrices of floats that fit, and for a number of inputs that there are not.
    """
    weights = np.asarray(check_array("weights", weights, "inputs", "outputs"))
    gram = np.asarray(check_array("gram", gram, "inputs", "inputs"))
    if gram.shape != (len(weights),) * 2:
        raise ValueError(f"`gram` must be {(len(weights),) * 2}; got {gram.shape}.")
    kept = check_count("kept", kept, 1, len(weights))
    return _kept(weights, gram, _order(weights, gram, 0)[-kept:], 0)


def _order(weights: np.ndarray, gram: np.ndarray | None, axis: int) -> Int[np.ndarray, " lines"]:
    """Inputs or outputs, what is least needed first."""
    wide = weights.astype(np.float64)
    if gram is not None and axis == 0:
        return _eliminated(wide, gram)
    squares = wide**2 if gram is None else wide * (gram @ wide)
    return np.argsort(np.sum(squares, axis=1 - axis), kind="stable")


def _eliminated(weights: np.ndarray, gram: np.ndarray) -> Int[np.ndarray, " inputs"]:
    """The order in which inputs go, each time the cheapest, while all others answer."""
    norms, correlations = _correlated(gram)
    rest = norms[:, None] * weights
    inverse = np.linalg.inv(correlations + DAMPING * np.eye(len(norms)))
    order, stays = [], np.ones(len(norms), bool)
    for _ in norms:
        diagonal = np.where(stays, np.diagonal(inverse), 1)
        cost = np.where(stays, np.sum(rest**2, axis=1) / diagonal, np.inf)
        gone = int(np.argmin(cost))
        column = inverse[:, gone] / diagonal[gone]
        rest = rest - np.outer(column, rest[gone])
        inverse = inverse - np.outer(column, inverse[gone])
        stays[gone] = False
        order.append(gone)
    return np.array(order)


def _kept(
    weights: np.ndarray, gram: np.ndarray | None, lines: np.ndarray, axis: int
) -> AbstractMatrix:
    mask = np.zeros(weights.shape, bool)
    if axis == 1:
        mask[:, lines] = True
        return Transposed(Sparse.of(weights.T, mask.T, WholeRows))
    mask[lines] = True
    if gram is not None:
        weights = _refitted(weights, gram, mask[:, 0])
    return Sparse.of(weights, mask, WholeRows)


def _refitted(weights: np.ndarray, gram: np.ndarray, stays: np.ndarray) -> np.ndarray:
    """The weights of the inputs that stay, of least squares for the outputs of all."""
    norms, correlations = _correlated(gram)
    wide = norms[:, None] * weights.astype(np.float64)
    lost = correlations[np.ix_(stays, ~stays)] @ wide[~stays]
    among = correlations[np.ix_(stays, stays)]
    answer = np.linalg.lstsq(among, lost, rcond=relative_rank_cutoff(among.shape))[0]
    refitted = weights.astype(np.float64)
    refitted[stays] += _over(answer, norms[stays, None])
    return refitted.astype(weights.dtype)


def _correlated(
    gram: np.ndarray,
) -> tuple[Float[np.ndarray, " inputs"], Float[np.ndarray, "inputs inputs"]]:
    """The norms of the inputs, and their correlations, which are none of a dead one."""
    norms = np.sqrt(np.maximum(np.diagonal(gram), 0))
    return norms, _over(_over(gram, norms[:, None]), norms)


def _over(array: np.ndarray, norms: np.ndarray) -> np.ndarray:
    return np.where(norms > 0, array / np.where(norms > 0, norms, 1), 0)
