"""What one half of the calibration says of the other."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from lowrank_theory._numerics import float64
from lowrank_theory.studies._moments import Moments, descending_eigenvalues
from lowrank_theory.theorems.planted_rank import worst_error
from lowrank_theory.theorems.projected_truth import Blocks


@dataclasses.dataclass(frozen=True)
class StatedRecovery:
    """How far half $B$ misses the stated truth, the `bound` of `planted_rank.any_noise`, and the
    least of this and of both of `projected_truth`; relative to the outputs, `None` without any.
    """

    error: float | None = None
    bound: float | None = None
    projected_bound: float | None = None


@dataclasses.dataclass(frozen=True)
class Stated:
    r"""The linear fit of half $A$, stated to be the truth for half $B$.

    - `outputs`: $M_B = (X_BC)^\top X_BC$;
    - `truth`, `fit`: the eigenvectors of $M_A$ and of $M_B$ (columns), strongest first;
    - `shorter`: $\min(q, K)$.
    """

    outputs: Float[np.ndarray, "side side"]
    truth: Float[np.ndarray, "side side"]
    fit: Float[np.ndarray, "side side"]
    shorter: int

    @staticmethod
    def of(
        outputs_a: Float[np.ndarray, "side side"],
        outputs_b: Float[np.ndarray, "side side"],
        shorter: int,
    ) -> "Stated":
        """From $M_A$ and $M_B$."""
        truth, fit = (np.linalg.eigh(each)[1][:, ::-1] for each in (outputs_a, outputs_b))
        return Stated(outputs_b, truth, fit, shorter)

    def noise(self, rank: int) -> Float[np.ndarray, "rest rest"]:
        r"""$E^\top E$ for $E = X_BW - X_BM$, in the coordinates that $M$ leaves. Its columns are
        combinations of those of $X_B$: $PE = E$.
        """
        rest = self.truth[:, rank:]
        return rest.T @ self.outputs @ rest

    def recoveries(self, ranks: Sequence[int]) -> list[StatedRecovery]:
        """What is missed at each rank, and what it is at most."""
        total = float(np.trace(self.outputs))
        if total <= 0:
            return [StatedRecovery()] * len(ranks)
        errors = [math.sqrt(self._squared_error(rank) / total) for rank in ranks]
        noise = np.zeros((len(ranks), len(self.outputs)))
        for row, rank in zip(noise, ranks, strict=True):
            squares = np.maximum(descending_eigenvalues(self.noise(rank)), 0)
            row[: squares.size] = np.sqrt(squares / total)
        with float64():
            bounds = np.asarray(_worst_errors(noise, np.asarray(ranks), float(self.shorter)))
        blocks = (Blocks.of_moments(self.outputs / total, self.truth, rank) for rank in ranks)
        projected = [
            float(min(bound, each.without_gap(), each.with_gap()))
            for bound, each in zip(bounds, blocks, strict=True)
        ]
        return list(map(StatedRecovery, errors, bounds.tolist(), projected))

    def _squared_error(self, rank: int) -> float:
        truth, fit = self.truth[:, :rank], self.fit[:, :rank]
        turned = fit @ fit.T - truth @ truth.T
        return max(float(np.sum(turned * (self.outputs @ turned))), 0.0)


@jax.jit
def _worst_errors(
    noise: Float[Array, "ranks side"], ranks: Int[Array, " ranks"], shorter: Float[Array, ""]
) -> Float[Array, " ranks"]:
    return jax.vmap(worst_error, in_axes=(0, 0, None))(noise, ranks, shorter)


def deviation_of_halves(a: Moments, b: Moments) -> float | None:
    r"""How far the covariances of the halves differ, in units of what independent Gaussian rows
    make of it.

    For those $\mathbb E\lVert\hat\Sigma_A - \hat\Sigma_B\rVert_F^2 = \bigl(\frac1{m_A-1} +
    \frac1{m_B-1}\bigr)\bigl((\operatorname{tr}\Sigma)^2 + \lVert\Sigma\rVert_F^2\bigr)$.
    """
    if min(a.count, b.count) < 2:
        return None
    free_a, free_b = a.count - 1, b.count - 1
    pooled = (a.scatter + b.scatter) / (free_a + free_b)
    expected = (1 / free_a + 1 / free_b) * (np.trace(pooled) ** 2 + np.sum(pooled**2))
    if expected <= 0:
        return None
    return float(np.linalg.norm(a.scatter / free_a - b.scatter / free_b) / math.sqrt(expected))
