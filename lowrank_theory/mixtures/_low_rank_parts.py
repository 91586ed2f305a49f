"""What mixtures and factors of few bits share: ranks, low rank by any method, rounded factors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lowrank_theory.approximations import LowRank, Product, Quantised
from lowrank_theory.calibration import Calibration
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import round_to_nearest
from lowrank_theory.recovery import (
    AbstractLadder,
    AbstractMethod,
    AbstractNestedMethod,
    Need,
    WeightedTarget,
    dense_float64,
    every_rank,
    recover,
)


def ranks_of(shares: Sequence[float], shape: tuple[int, int]) -> list[int]:
    """Of factors with these shares of the numbers of a matrix, each rank once."""
    inputs, outputs = shape
    ranks = (int(share * inputs * outputs / (inputs + outputs)) for share in shares)
    return sorted({min(max(1, rank), *shape) for rank in ranks})


def needs_of(method: AbstractMethod) -> frozenset[Need]:
    """What it must know of the data: second moments, unless it says something else."""
    return method.needs if isinstance(method, AbstractLadder) else frozenset({Need.MOMENTS})


def check_method(name: str, value: Any) -> AbstractMethod:
    """A method of recovery, or a `ValueError`."""
    if not isinstance(value, AbstractMethod):
        raise ValueError(
            f"`{name}` must be a method such as `ActivationWeighted()`; got {value!r}."
        )
    return value


def low_rank_part(
    rest: Float[np.ndarray, "inputs outputs"],
    problem: WeightedTarget | None,
    rank: int,
    method: AbstractMethod,
) -> LowRank:
    """What the method makes of this rest, where the layer sees what the problem weighs errors
    by.
    """
    seen = None
    if problem is not None:
        gram = np.asarray(problem.gram, np.float64)
        seen = Calibration(problem.seen.count, np.zeros(len(gram)), gram)
    observed = Observed(weights=rest, calibration=seen)
    if isinstance(method, AbstractNestedMethod):  # one program for all ranks
        return every_rank(observed, method).at(rank).factors
    return recover(observed, rank, method).factors


def rounded_factors(
    factors: LowRank,
    target: Float[np.ndarray, "inputs outputs"],
    gram: Float[np.ndarray, "inputs inputs"] | None,
    bits: int,
    dtype: Any,
) -> Product:
    r"""Factors of a matrix near the target, in so many bits, with scales of this dtype: one for
    each direction in either factor.

    The first is rounded, $\hat L$. The second makes up for it: it is the least-squares one, $(\hat
    L^\top H\hat L)^+\hat L^\top HT$, and rounded in turn. Without a gram $H$ is the identity.
    """
    full = min(target.shape)
    left = _rounded(np.asarray(factors.left, np.float64).astype(dtype), bits, full, axis=0)
    basis = dense_float64(left)
    sizes = np.linalg.norm(basis, axis=0)
    basis = basis / np.where(sizes > 0, sizes, 1)
    weighed = basis if gram is None else at_scale_of(gram, gram) @ basis
    right = np.linalg.lstsq(basis.T @ weighed, weighed.T @ target)[0]
    right = right / np.where(sizes > 0, sizes, 1)[:, None]
    return Product(left, _rounded(right.astype(dtype), bits, full, axis=1))


def _rounded(factor: np.ndarray, bits: int, full: int, axis: int) -> Quantised:
    """One grid for each direction, by one program for all ranks: that of factors of full rank."""
    rank = factor.shape[1 - axis]
    padding = [(0, 0), (0, 0)]
    padding[1 - axis] = (0, full - rank)
    found = round_to_nearest(np.pad(factor, padding), bits, axis=axis)
    cut = (slice(None), slice(rank)) if axis == 0 else (slice(rank), slice(None))
    return Quantised.of(
        np.asarray(found.unpacked())[cut], np.asarray(found.scales)[cut], bits=bits, axis=axis
    )


def at_scale_of(like: np.ndarray, array: np.ndarray) -> np.ndarray:
    """An array divided by the power of two above all entries of another."""
    return np.ldexp(array, -int(np.frexp(np.abs(like).max())[1]))
