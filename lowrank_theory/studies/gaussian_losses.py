r"""What methods lose of weights that are independent and normal: the curves beside which trained
weights are held.

Each is $\mathbb E\lVert W - \hat W\rVert_F^2/\mathbb E\lVert W\rVert_F^2$ in the limit of many
entries. White inputs lose the same of the outputs.
"""

import functools

import numpy as np
from scipy import optimize, special, stats

from lowrank_theory._numerics import check_count, check_fraction, check_rank
from lowrank_theory.theorems.white_residual import share_limit


@functools.cache
def rounded_loss(bits: int) -> float:
    r"""With $2^b$ levels $(k + \frac12)\Delta$, symmetric about zero, at the best step $\Delta$
    (Max 1960): 0.363, 0.119, 0.0374, 0.0115 at one to four bits.

    Raises `ValueError` for fewer than one bit or more than 16.
    """
    levels = 2 ** (check_count("bits", bits, 1, 16) - 1)  # of each sign
    edges = np.arange(levels)

    def loss(logarithm: float) -> float:
        step = float(np.exp(logarithm))
        low, high = edges * step, np.append(edges[1:] * step, np.inf)
        middle = (edges + 0.5) * step
        mass = stats.norm.sf(low) - stats.norm.sf(high)
        first = stats.norm.pdf(low) - stats.norm.pdf(high)
        second = mass + low * stats.norm.pdf(low) - _times_density(high)
        return 2 * float(np.sum(second - 2 * middle * first + middle**2 * mass))

    found = optimize.minimize_scalar(
        loss, bounds=(np.log(2.0 / levels / 4), np.log(16.0 / levels)), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    return float(found.fun)  # pyright: ignore[reportAttributeAccessIssue]


def _times_density(ends: np.ndarray) -> np.ndarray:
    finite = np.where(np.isfinite(ends), ends, 0.0)
    return finite * stats.norm.pdf(ends)


def pruned_loss(kept: float) -> float:
    r"""With this share of the entries kept, the largest: $1 - 2(t\varphi(t) + Q(t))$, where $2Q(t)$
    is the share.

    Raises `ValueError` for what is no share between 0 and 1.
    """
    kept = check_fraction("kept", kept)
    threshold = float(special.ndtri(1 - kept / 2))
    return 1 - (2 * threshold * float(stats.norm.pdf(threshold)) + kept)


def truncated_loss(inputs: int, outputs: int, rank: int) -> float:
    """With the leading `rank` singular values, by the law of Marchenko and Pastur.

    Raises `ValueError` for a rank that such a matrix cannot have.
    """
    return 1 - share_limit(inputs, outputs, check_rank(rank, inputs, outputs))
