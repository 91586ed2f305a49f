r"""The largest entries of the weights, each times the norm of its input.

$$\text{score of entry }(i, j) = \lvert W_{ij}\rvert\,\lVert\tilde x_i\rVert,$$

compared within each output, since outputs are of different scale; what stays, stays as it was (Sun,
Liu, Bair and Kolter 2024). It is magnitude pruning of $\operatorname{diag}(\lVert\tilde
x_i\rVert)W$, output by output, and so the best choice where inputs are uncorrelated: there the
squared error is the sum of the squared scores that go.
"""

import numpy as np
from numpy.typing import ArrayLike

from lowrank_theory._numerics import check_array, check_count, check_same
from lowrank_theory.approximations import Sparse
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, Need, Sweep, WeightedTarget
from lowrank_theory.sparsification.masks import largest, of_mask, settle_sizes, sizes_of


class Wanda(AbstractLadder):
    """Of each output the entries of largest size times norm of input stay: at several `shares` of
    them, and for several `patterns` (n, m), n of each m successive inputs.

    Norms are about the mean where the layer has a bias, which then keeps the mean output. Of
    compressed activations, entries are those of the least-squares layer. A pattern whose m does not
    divide the inputs is no size of the layer.
    """

    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
    patterns: tuple[tuple[int, int], ...] = ((1, 4), (2, 4))

    def __check_init__(self) -> None:
        settle_sizes(self)

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments, of which it looks at the diagonal."""
        return frozenset({Need.MOMENTS})

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each share and each pattern that divides the inputs. Raises `ValueError`
        without weights, or where nothing was seen.
        """
        target, gram, _ = WeightedTarget.of(self, observed)
        norms = np.sqrt(np.maximum(np.diagonal(np.asarray(gram)), 0))
        inputs = len(norms)
        sizes = sizes_of(
            inputs,
            self.shares,
            self.patterns,
            lambda share: wanda(target, norms, max(1, round(share * inputs))),
            lambda kept, group: wanda_n_of_m(target, norms, kept, group),
        )
        return Sweep.of(self, observed, sizes)


def wanda(weights: ArrayLike, norms: ArrayLike, kept: int) -> Sparse:
    """The pure function beneath `Wanda`: so many entries of each output, of those that are equal
    the first; `norms`, (inputs,), are those of the inputs.

    On the host, in NumPy, and so not under `jit`. Raises `ValueError` for what are no finite arrays
    of floats that fit, and for a number of entries that there are not.
    """
    weights, scores = _scored(weights, norms)
    return of_mask(weights, largest(scores, check_count("kept", kept, 1, len(weights))))


def wanda_n_of_m(weights: ArrayLike, norms: ArrayLike, kept: int, group: int) -> Sparse:
    """The same of each `group` successive inputs of an output."""
    weights, scores = _scored(weights, norms)
    return Sparse.n_of_m(weights, kept, group, scores)


def _scored(weights: ArrayLike, norms: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    weights = np.asarray(check_array("weights", weights, "inputs", "outputs"))
    norms = np.asarray(check_array("norms", norms, "inputs"), np.float64)
    check_same("norms", len(norms), "weights", len(weights), "inputs")
    return weights, np.abs(weights.astype(np.float64)) * norms[:, None]
