r"""Entries are removed input by input, and the inputs to come make up for it.

The inputs go in blocks. What is best for the weights of a block, beside the errors made before it,
is known (`_second_order`), and so is the price $p_i$ of a squared error in input $i$, where the
inputs after it answer. Of the entries of the block those stay whose $\sqrt{p_i}\,\lvert
w_{ij}\rvert$ is largest, $w$ the best so far: of a share, the largest of the whole block, all
outputs together; of a pattern n of m, the n largest of each output, in blocks of m (Frantar and
Alistarh 2023, where $p_i = 1/U_{ii}^2$).

Where inputs are uncorrelated no input answers for another, and all that is left of it is
`Wanda`'s score, compared in other groups.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    check_array,
    check_count,
    check_fraction,
    check_positive,
    in_float64,
    settle,
)
from lowrank_theory._second_order import elimination
from lowrank_theory.approximations import Sparse
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, Need, Sweep, WeightedTarget
from lowrank_theory.sparsification.masks import largest, of_mask, settle_sizes, sizes_of

_eliminated = in_float64(elimination)


class SparseGPT(AbstractLadder):
    """Entries removed block by block of inputs, with an update of those to come: at several
    `shares` of them that stay, and for several `patterns` (n, m), n of each m successive inputs.

    `damping` times the mean second moment is added to all, and `block` inputs are chosen from
    together. Moments are about the mean where the layer has a bias, which then keeps the mean
    output. A pattern whose m does not divide the inputs is no size of the layer.
    """

    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
    patterns: tuple[tuple[int, int], ...] = ((1, 4), (2, 4))
    block: int = 128
    damping: float = 0.01

    def __check_init__(self) -> None:
        settle_sizes(self)
        settle(self, "block", check_count, 1)
        settle(self, "damping", check_positive, zero=True)

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments."""
        return frozenset({Need.MOMENTS})

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each share and each pattern that divides the inputs. Raises `ValueError`
        without weights, or where nothing was seen.
        """
        target, gram, _ = WeightedTarget.of(self, observed)
        options = {"block": self.block, "damping": self.damping}
        sizes = sizes_of(
            len(gram),
            self.shares,
            self.patterns,
            lambda share: sparse_gpt(target, gram, share, **options),
            lambda kept, group: sparse_gpt_n_of_m(target, gram, kept, group, damping=self.damping),
        )
        return Sweep.of(self, observed, sizes)


def sparse_gpt(
    weights: ArrayLike, gram: ArrayLike, share: float, *, block: int = 128, damping: float = 0.01
) -> Sparse:
    r"""The pure function beneath `SparseGPT`, from $B$ and $\tilde X^\top\tilde X$: this share of
    the entries of each block, at least one.

    On the host, in NumPy, and so not under `jit`. Raises `ValueError` for what are no finite
    matrices of floats that fit, and for options that there are not.
    """
    share = check_fraction("share", share)

    def choose(scores: np.ndarray) -> np.ndarray:
        kept = max(1, round(share * scores.size))
        return largest(scores.reshape(-1, 1), kept).reshape(scores.shape)

    return of_mask(*_swept(weights, gram, choose, check_count("block", block, 1), damping))


def sparse_gpt_n_of_m(
    weights: ArrayLike, gram: ArrayLike, kept: int, group: int, *, damping: float = 0.01
) -> Sparse:
    """The same, of each `group` successive inputs of an output so many entries."""
    group = check_count("group", group, 1, 256)
    kept = check_count("kept", kept, 1, group)
    values, mask = _swept(weights, gram, lambda scores: largest(scores, kept), group, damping)
    return Sparse.n_of_m(values, kept, group, mask)


def _swept(
    weights: ArrayLike,
    gram: ArrayLike,
    choose: Callable[[Float[np.ndarray, "block outputs"]], Any],
    block: int,
    damping: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What stays of the weights, and where."""
    weights = np.asarray(check_array("weights", weights, "inputs", "outputs"))
    gram = np.asarray(check_array("gram", gram, "inputs", "inputs"), np.float64)
    inputs = len(weights)
    if gram.shape != (inputs, inputs):
        raise ValueError(f"`gram` must be {(inputs, inputs)}; got {gram.shape}.")
    damping = check_positive("damping", damping, zero=True)
    prices, feedback = map(np.asarray, _eliminated(gram, np.float64(damping)))
    prices = np.where(np.diagonal(gram) > 0, prices, 0)  # of a dead input, without the damping
    target = weights.astype(np.float64)
    kept, mask = np.zeros_like(target), np.zeros(target.shape, bool)
    errors = np.zeros_like(target)
    for start in range(0, inputs, block):
        rows = slice(start, start + block)
        passed_on = feedback[:start, rows].T @ errors[:start]
        triangle = feedback[rows, rows]
        # The block answers as a whole before any of it is removed.
        answers = scipy.linalg.solve_triangular(triangle, passed_on, trans=1, unit_diagonal=True)
        mask[rows] = choose(np.abs(target[rows] + answers) * np.sqrt(prices[rows])[:, None])
        for k in range(start, min(start + block, inputs)):
            answer = passed_on[k - start] + feedback[start:k, k] @ errors[start:k]
            kept[k] = np.where(mask[k], target[k] + answer, 0)
            errors[k] = target[k] - kept[k]
    return kept.astype(weights.dtype), mask
