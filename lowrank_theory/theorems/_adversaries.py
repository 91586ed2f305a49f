"""What an attacker of statements about a layer chooses: target, noise, and how they are drawn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._numerics import matmul
from lowrank_theory._random import normal
from lowrank_theory.problems import Observed, Problem
from lowrank_theory.recovery import LowRank
from lowrank_theory.theorems._theorem import AbstractAdversary

SEPARATION = 1e-5  # between singular values of the outputs, so that a truncation is unique


def seen_through_identity(
    outputs: Float[Array, "samples outputs"], target: Float[Array, "samples outputs"], rank: int
) -> Problem:
    """Outputs of a layer whose activations are the identity, with this target."""
    observed = Observed(activations=np.eye(outputs.shape[0]), outputs=outputs)
    return Problem.stated(observed, target, rank)


class TargetAndNoise(AbstractAdversary):
    """A target of rank `target_rank` and any noise, `rows` x `columns`, seen through the
    identity.
    """

    rows: int
    columns: int
    rank: int
    target_rank: int

    def start(self, *, key: PRNGKeyArray) -> Any:
        """Factors of the target, and the noise."""
        left_key, right_key, noise_key = jax.random.split(key, 3)
        return (
            normal(left_key, (self.rows, self.target_rank)),
            normal(right_key, (self.target_rank, self.columns)),
            normal(noise_key, (self.rows, self.columns)),
        )

    def play(self, free: Any) -> tuple[Problem, None]:
        """The layer; its estimate is that of the statement."""
        left, right, noise = free
        target = matmul(left, right)
        return seen_through_identity(target + noise, target, self.rank), None


class TargetAndSpectrum(AbstractAdversary):
    """A target of rank `target_rank`, and outputs that are diagonal, seen through the identity.

    By orthogonal invariance this is every such layer. Truncation keeps the first diagonal entries,
    which has a derivative where they are tied; they are kept a little apart.
    """

    rows: int
    columns: int
    rank: int
    target_rank: int

    def start(self, *, key: PRNGKeyArray) -> Any:
        """Factors of the target, and the square roots of the steps of the spectrum."""
        left_key, right_key, spectrum_key = jax.random.split(key, 3)
        return (
            normal(left_key, (self.rows, self.target_rank)),
            normal(right_key, (self.target_rank, self.columns)),
            normal(spectrum_key, (min(self.rows, self.columns),)),
        )

    def play(self, free: Any) -> tuple[Problem, LowRank]:
        """The layer, and the truncation of its outputs."""
        left, right, roots = free
        values = jnp.cumsum(roots**2 + SEPARATION)[::-1]
        count = values.size
        outputs = jnp.zeros((self.rows, self.columns)).at[:count, :count].set(jnp.diag(values))
        problem = seen_through_identity(outputs, matmul(left, right), self.rank)
        return problem, LowRank(outputs[:, : self.rank], jnp.eye(self.rank, self.columns))
