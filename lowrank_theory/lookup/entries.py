r"""What stands in the tables: the entries of codes that are known.

With $G$ (samples, codebooks × codes) the indicators of the codes, entries $T$ give the outputs
$GT$. *Ridge entries* minimise

$$\lVert Y - GT\rVert_F^2 + \lambda\lVert T - T_0\rVert_F^2,\qquad T = T_0 +
  (G^\top G + \lambda I)^{-1}G^\top(Y - GT_0),$$

where $T_0$ are bucket means. $G$ has no unit, so $\lambda$ is counted in rows: a code that one row
has found counts as much as the penalty at $\lambda = 1$, the published value (Blalock and Guttag
2021). The solution is linear in $Y$ and $T_0$: for outputs $Y = AB$ of a layer, and $T_0 = P_0B$,
it is that for the inputs $A$ themselves, the *prototypes*, times $B$. All codebooks are fitted
together, and every prototype reaches over all inputs.
"""

from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Float, Int

from lowrank_theory._numerics import relative_rank_cutoff

Entries = Float[np.ndarray, "codebooks codes outputs"]


def indicators(codes: Int[np.ndarray, "samples codebooks"], count: int) -> scipy.sparse.csr_array:
    """$G$, where each codebook has so many codes."""
    samples, codebooks = codes.shape
    places = (codes + count * np.arange(codebooks)).ravel()
    starts = np.arange(0, codes.size + 1, codebooks)
    return scipy.sparse.csr_array(
        (np.ones(codes.size), places, starts), shape=(samples, codebooks * count)
    )


def summed_entries(codes: Int[np.ndarray, "samples codebooks"], entries: Entries) -> np.ndarray:
    """$GT$."""
    return indicators(codes, entries.shape[1]) @ entries.reshape(-1, entries.shape[2])


def bucket_means(
    codes: Int[np.ndarray, "samples codebooks"],
    rows: Float[np.ndarray, "samples inputs"],
    parts: Sequence[Int[np.ndarray, " _inputs"]],
    count: int,
    counts: Float[np.ndarray, " samples"] | None = None,
) -> Float[np.ndarray, "codebooks codes inputs"]:
    r"""$P_0$: the mean of the inputs of each subspace over the rows of each code, zero in all other
    inputs.

    Of a code that no row has found, the mean over the nearest node above it in the tree that some
    row has passed, where codes are numbered as leaves; the published method has zero there.
    """
    weights = np.ones(len(rows)) if counts is None else counts
    found = indicators(codes, count).T
    sums = (found @ (weights[:, None] * rows)).reshape(len(parts), count, -1)
    totals = (found @ weights).reshape(len(parts), count)
    means = np.zeros_like(sums)
    for place, part in enumerate(parts):
        means[place][:, part] = _means(sums[place][:, part], totals[place])
    return means


def _means(sums: np.ndarray, totals: np.ndarray) -> np.ndarray:
    above = np.zeros_like(sums)
    if len(sums) % 2 == 0:
        pairs = sums.reshape(-1, 2, sums.shape[1]).sum(axis=1), totals.reshape(-1, 2).sum(axis=1)
        above = np.repeat(_means(*pairs), 2, axis=0)
    there = totals[:, None] > 0
    return np.where(there, sums / np.where(there, totals[:, None], 1), above)


def ridge_entries(
    codes: Int[np.ndarray, "samples codebooks"],
    wanted: Float[np.ndarray, "samples outputs"],
    anchor: Entries,
    *,
    counts: Float[np.ndarray, " samples"] | None = None,
    ridge: float = 1.0,
) -> Entries:
    r"""The entries for `wanted` rows, of outputs or of inputs, with $\lambda$ = `ridge` in rows and
    $T_0$ = `anchor`. At $\lambda = 0$ those of least squares that are nearest to it.
    """
    weights = np.ones(len(wanted)) if counts is None else counts
    codebooks, count, outputs = anchor.shape
    design = indicators(codes, count)
    flat = anchor.reshape(-1, outputs)
    weighted = design.multiply(weights[:, None]).tocsr()
    right = weighted.T @ (wanted - design @ flat)
    gram = (weighted.T @ design).toarray()
    return (flat + _solved(gram, right, ridge)).reshape(codebooks, count, outputs)


def _solved(gram: np.ndarray, right: np.ndarray, ridge: float) -> np.ndarray:
    """Where the ridge is lost beside the rows, by the pseudo-inverse."""
    negligible = relative_rank_cutoff(gram.shape) * max(float(np.trace(gram)), 1.0)
    if ridge > negligible:
        return scipy.linalg.solve(gram + ridge * np.eye(len(gram)), right, assume_a="pos")
    values, vectors = np.linalg.eigh(gram)
    kept = values > negligible
    return (vectors[:, kept] / (values[kept] + ridge)) @ (vectors[:, kept].T @ right)
