r"""The entries that another method keeps, fitted anew to what the layer sees.

Where $S$ are the inputs that output $j$ keeps, and $R$ the others, $\operatorname{tr}(E^\top\tilde
HE)$, $\tilde H = H + \lambda I$, is least at

$$z_S = w_S + \tilde H_{SS}^{-1}\tilde H_{SR}w_R,$$

for each output on its own: all that stay answer for all that go. `SparseGPT` answers for an input
by those after it alone. Where inputs are uncorrelated nothing changes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from lowrank_theory._numerics import check_array, check_positive, settle
from lowrank_theory._second_order import damped
from lowrank_theory.approximations import Sparse
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, Need, Sweep, WeightedTarget
from lowrank_theory.sparsification.magnitude import Magnitude


class Refitted(AbstractLadder):
    r"""The sizes of a `pruning` ladder, with the entries that stay the best for what the layer
    sees. `damping` is $\lambda$ over the mean of the diagonal of $H$.

    Moments are about the mean where the layer has a bias, which then keeps the mean output.
    """

    pruning: AbstractLadder = Magnitude()
    damping: float = 0.01

    def __check_init__(self) -> None:
        if not isinstance(self.pruning, AbstractLadder):
            raise ValueError(
                f"`pruning` must be a ladder such as `Magnitude()`; got {self.pruning!r}."
            )
        settle(self, "damping", check_positive, zero=True)

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments, and what pruning needs."""
        return self.pruning.needs | {Need.MOMENTS}

    def sweep(self, observed: Observed) -> Sweep:
        """One size for each of pruning. Raises `ValueError` where that does, where nothing was
        seen, and where pruning leaves anything but a sparse matrix.
        """
        target, gram, _ = WeightedTarget.of(self, observed)
        pruned, sizes = self.pruning.sweep(observed), []
        for size in range(len(pruned.storages)):
            found = pruned.at(size).approximation
            if not isinstance(found, Sparse):
                raise ValueError(
                    "`pruning` must give sparse matrices, whose entries can be refitted; "
                    f"`{type(self.pruning).__name__}` gave a `{type(found).__name__}`."
                )
            fitted = refitted(target, gram, found, damping=self.damping)
            sizes.append((f"{pruned.name(size)}, refitted", fitted))
        return Sweep.of(self, observed, sizes)


def refitted(
    weights: ArrayLike, gram: ArrayLike, sparse: Sparse, *, damping: float = 0.01
) -> Sparse:
    r"""The pure function beneath `Refitted`: other values in the pattern of `sparse`, for $H$ =
    `gram`, of any scale. It takes a system of as many equations as an output keeps entries, for
    each.

    On the host, in NumPy, and so not under `jit`. Raises `ValueError` for what are no finite
    matrices of floats that fit, for a stack, and for a negative damping.
    """
    weights = np.asarray(check_array("weights", weights, "inputs", "outputs"))
    gram = np.asarray(check_array("gram", gram, "inputs", "inputs"), np.float64)
    damping = check_positive("damping", damping, zero=True)
    if gram.shape != (len(weights),) * 2:
        raise ValueError(f"`gram` must be {(len(weights),) * 2}; got {gram.shape}.")
    if sparse.shape != weights.shape:
        raise ValueError(f"`sparse` must be {weights.shape}, as `weights`; got {sparse.shape}.")
    with jax.enable_x64(True):
        second = np.asarray(damped(jnp.asarray(gram), damping))
    target, places = weights.astype(np.float64), _places(sparse)
    values = np.zeros(sparse.values.shape[-1], np.float64)
    for column, place in zip(target.T, places.T, strict=True):
        stay = place > 0
        answer = second[np.ix_(stay, ~stay)] @ column[~stay]
        change = scipy.linalg.solve(second[np.ix_(stay, stay)], answer, assume_a="pos")
        values[place[stay] - 1] = column[stay] + change
    return Sparse(values.astype(weights.dtype), sparse.pattern)


def _places(sparse: Sparse) -> np.ndarray:
    """Of each entry the number of its value, from one; zero where there is none."""
    with jax.enable_x64(True):
        count = sparse.values.shape[-1]
        numbered: Any = Sparse(np.arange(1, count + 1, dtype=np.float64), sparse.pattern)
        return np.asarray(numbered.materialise()).astype(int)
