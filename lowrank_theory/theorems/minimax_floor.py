r"""What no estimator can do: a floor beneath the error of every recovery.

**Model.** $Y = \tilde XM + E$, $\operatorname{rank}(\tilde XM) \le r$, $E_{ij}$ i.i.d. $N(0,
\sigma^2)$; $q = \operatorname{rank}\tilde X$, $K$ outputs, $d = r(q+K-r)$, the dimension of the
matrices of rank r.

**Claim** (in expectation; van Trees' inequality, Gill and Levit 1995, proved in
paper_notes/minimax_floor.md). $\inf_{\hat M}\sup_M\mathbb E\lVert\tilde X(\hat M -
M)\rVert_F^2 \ge \sigma^2d$ over all estimators (`risk_floor`). A floor for the worst $M$ is proved
by a random one, drawn so that every estimator suffers on average: around a strong matrix of rank r,

$$ F = \begin{pmatrix} I \\ C/t \end{pmatrix} (tI + A) \begin{pmatrix} I & B/t \end{pmatrix},
   \qquad A, B, C \text{ with i.i.d. } N(0, \rho^2) \text{ entries}, $$

in orthonormal coordinates of the column space of $\tilde X$. For it, every estimator has

$$ \mathbb E\lVert\tilde X(\hat M - M)\rVert_F^2 \ge \frac{d^2}{T/\sigma^2 + d/\rho^2}, $$

where $T$ is a polynomial in $\rho/t$ with $T(0) = d$ (`bayes_floor`); this tends to $\sigma^2d$ as
$t\to\infty$ and then $\rho\to\infty$.

- `truncation`, `soft_threshold`, `shrinkage`: the last line, for the truncated decomposition at the
  true rank, soft thresholding at the edge of the noise, and the shrinkage of singular values that
  is optimal in large layers.

In the limit $t\to\infty$ the floor of this prior is attained: by the posterior mean.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank_theory._arrays import Drawn, Key, matmul, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    check_count,
    check_positive,
    check_rank,
    keep,
    settle,
)
from lowrank_theory._random import normal, split
from lowrank_theory.problems import Observed, Problem, Truth
from lowrank_theory.recovery import (
    ActivationWeighted,
    LowRank,
    recover,
    shrinkage,
    singular_value_threshold,
)
from lowrank_theory.theorems._quantities import (
    coarseness,
    column_rank,
    gaussian_noise_hypotheses,
    output_error,
    planted_hypothesis,
    rounded_outputs,
    squared,
)
from lowrank_theory.theorems._theorem import (
    LOWER_IN_EXPECTATION,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)


def risk_floor(rank: int, q: int, outputs: int, noise_scale: float) -> float:
    r"""No estimator has $\sup_M\mathbb E\lVert\tilde X(\hat M - M)\rVert_F^2$ below $\sigma^2r(q +
    K - r)$, with $\min(q, K)$ in the place of a larger $r$: outputs have no higher rank.
    """
    rank = min(rank, q, outputs)
    return noise_scale**2 * rank * (q + outputs - rank)


def bayes_floor(
    rank: int,
    q: Float[Array, ""] | int,
    outputs: int,
    noise_scale: Float[AnyArray, ""] | float,
    strength: Float[AnyArray, ""] | float,
    spread: Float[AnyArray, ""] | float,
) -> Float[AnyArray, ""] | float:
    r"""$d^2/(T/\sigma^2 + d/\rho^2)$: no estimator has a smaller mean squared error over the prior.

    With $p = q-r$, $s = K-r$ and $u = (\rho/t)^2$, the mean squared norm of the derivative of $F$
    with respect to $A$, $B$ and $C$ is $T = r^2(1 + (p+s)u + psu^2) + r(1+ru)(p+s+2psu)$. Raises
    `ValueError` for a rank that $q\times K$ coordinates cannot have.
    """
    if isinstance(q, int):
        check_rank(rank, q, outputs)
    r, p, s = rank, q - rank, outputs - rank
    u = (spread / strength) ** 2
    dimension = r * (q + outputs - r)
    change = r**2 * (1 + (p + s) * u + p * s * u**2) + r * (1 + r * u) * (p + s + 2 * p * s * u)
    return dimension**2 / (change / noise_scale**2 + dimension / spread**2)


class PriorDraw(eqx.Module):
    r"""A layer whose target was drawn from the prior of strength $t$ and spread $\rho$."""

    problem: Problem
    strength: Float[AnyArray, ""]
    spread: Float[AnyArray, ""]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sides of the weights."""
        return self.problem.sizes


class LeastFavourable(eqx.Module):
    r"""Standard normal activations, a target from the prior, and Gaussian noise.

    `strength` $t$, `spread` $\rho$ and `noise_scale` $\sigma$ are in the units of the outputs.
    """

    samples: int
    inputs: int
    outputs: int
    rank: int
    strength: Float[AnyArray, ""] = eqx.field(converter=np.asarray)
    spread: Float[AnyArray, ""] = eqx.field(converter=np.asarray)
    noise_scale: Float[AnyArray, ""] = eqx.field(converter=np.asarray)

    def __check_init__(self) -> None:
        for name in ("samples", "inputs", "outputs"):
            settle(self, name, check_count, 1)
        keep(self, "rank", check_rank(self.rank, min(self.samples, self.inputs), self.outputs))
        for name in ("strength", "spread", "noise_scale"):
            settle(self, name, check_positive)

    @of_either_key
    def draw(self, *, key: Key) -> PriorDraw:
        """A layer, in float64."""
        xp, (activations_key, target_key, noise_key) = namespace(key), split(key, 3)
        activations = normal(activations_key, (self.samples, self.inputs))
        left, values, right = xp.linalg.svd(activations, full_matrices=False)
        clean = self._around_the_strong(left.shape[1], key=target_key)
        target = matmul(right.T / values, clean)
        scale, strength, spread = (
            xp.asarray(number, float) for number in (self.noise_scale, self.strength, self.spread)
        )
        noise = scale * normal(noise_key, (self.samples, self.outputs))
        outputs, true = matmul(left, clean) + noise, xp.asarray(True)
        truth = Truth(
            target,
            noise,
            activations,
            noise_scale=scale,
            gaussian_noise=true,
            gaussian_rows=true,
            independent_noise=true,
        )
        problem = Problem(Observed(activations=activations, outputs=outputs), truth, self.rank)
        return PriorDraw(problem, strength, spread)

    def _around_the_strong(self, q: int, *, key: Key) -> Float[Drawn, "q outputs"]:
        """$F$ of the prior, in coordinates."""
        rank = self.rank
        shapes = ((rank, rank), (rank, self.outputs - rank), (q - rank, rank))
        core, right, left = (
            self.spread * normal(k, shape) for k, shape in zip(split(key, 3), shapes, strict=True)
        )
        return strong_low_rank(core, right, left, self.strength)


def strong_low_rank(
    core: Float[Drawn, "rank rank"],
    right: Float[Drawn, "rank rest"],
    left: Float[Drawn, "others rank"],
    strength: Float[AnyArray, ""] | float,
) -> Float[Drawn, "q outputs"]:
    r"""$\begin{pmatrix} I \\ C/t\end{pmatrix}(tI + A)\begin{pmatrix} I & B/t\end{pmatrix}$ from
    $A$, $B$, $C$ and $t$: a chart of the matrices of rank r.
    """
    xp = namespace(core)
    identity = xp.eye(core.shape[0])
    columns = xp.concatenate([identity, left / strength])
    rows = xp.concatenate([identity, right / strength], axis=1)
    return matmul(columns, strength * identity + core, rows)


def _prior(
    strength: float, spread: float, noise_scale: float = 1.0, *, rank: int = 3
) -> LeastFavourable:
    return LeastFavourable(60, 24, 20, rank, strength, spread, noise_scale)


_REGIMES = {
    "strong": _prior(1e4, 3.0),
    "less strong": _prior(100.0, 3.0),
    "near the noise": _prior(20.0, 3.0),
    "concentrated": _prior(1e3, 0.5),
    "other units": _prior(1e-3, 3e-6, 1e-6),
    "rank one": _prior(1e4, 2.0, rank=1),
    "full rank": _prior(1e4, 4.0, rank=20),
}


class AbstractFloor(AbstractStatement):
    r"""$\mathbb E\lVert\tilde X(\hat M - M)\rVert_F^2 \ge d^2/(T/\sigma^2 + d/\rho^2)$ over the
    prior, for one estimator. Squared.
    """

    kind = LOWER_IN_EXPECTATION
    needs = PriorDraw
    regimes = _REGIMES
    control = _REGIMES["strong"]

    def hypotheses(self, instance: PriorDraw) -> tuple[Hypothesis, ...]:
        """i.i.d. Gaussian noise, and room for the rank; the prior is that of the instance."""
        problem = instance.problem
        room = column_rank(problem.truth.layer_inputs) - problem.rank
        prior = jnp.minimum(jnp.asarray(instance.strength), jnp.asarray(instance.spread))
        return (
            planted_hypothesis(problem),
            *gaussian_noise_hypotheses(problem.truth),
            Hypothesis("the activations have at least the rank of the prior", room),
            Hypothesis("the prior has a strength and a spread", jnp.where(prior > 0, prior, -1.0)),
        )

    def broken_estimate(self, instance: PriorDraw) -> Array:
        """The estimate, moved half of the way to the truth: it has seen what no estimator may."""
        estimate = self.estimate(instance)
        return (matmul(estimate.left, estimate.right) + instance.problem.truth.target_weights) / 2

    @abc.abstractmethod
    def estimate(self, instance: PriorDraw) -> LowRank:
        """The estimator."""

    def formula(self, instance: PriorDraw, estimate: LowRank) -> Float[Array, ""]:
        r"""$d^2/(T/\sigma^2 + d/\rho^2)$."""
        problem = instance.problem
        floor = bayes_floor(
            problem.rank,
            column_rank(problem.truth.layer_inputs),
            problem.observed.shape[1],
            problem.truth.noise_scale,
            instance.strength,
            instance.spread,
        )
        return jnp.asarray(floor)

    def loss(self, instance: PriorDraw, estimate: LowRank | Array) -> Float[Array, ""]:
        r"""$\lVert\tilde X(\hat M - M)\rVert_F^2$."""
        return output_error(estimate, instance.problem.truth) ** 2

    def magnitude(self, instance: PriorDraw) -> Float[Array, ""]:
        r"""$\lVert Y\rVert_F^2$, of which the error is a difference."""
        return coarseness(instance.problem.observed) * squared(rounded_outputs(instance.problem))


_STRONG = Refuted(1.0, "strong signals with a wide prior: only noise in the tangent space is left")


class Truncation(AbstractFloor):
    r"""$\mathbb E\lVert\tilde X(\hat M - M)\rVert_F^2 \ge d^2/(T/\sigma^2 + d/\rho^2)$ for the
    truncated decomposition of $PY$ at the true rank.
    """

    refuted_below = _STRONG

    def estimate(self, instance: PriorDraw) -> LowRank:
        """The data-driven recovery at the true rank."""
        problem = instance.problem
        return recover(problem.observed, problem.rank, ActivationWeighted()).factors


class SoftThreshold(AbstractFloor):
    r"""$\mathbb E\lVert\tilde X(\hat M - M)\rVert_F^2 \ge d^2/(T/\sigma^2 + d/\rho^2)$ for the
    singular values of $PY$ lowered by $\sigma(\sqrt q+\sqrt K)$.
    """

    refuted_below = Refuted(
        1.0,
        "full rank and a prior far below the noise: zero is the best guess",
    )

    def estimate(self, instance: PriorDraw) -> LowRank:
        r"""Soft thresholding at $\sigma(\sqrt q+\sqrt K)$."""
        problem = instance.problem
        q, outputs = min(problem.truth.layer_inputs.shape), problem.observed.shape[1]
        factors, _ = singular_value_threshold(
            problem.truth.layer_inputs,
            problem.observed.target_outputs,
            problem.truth.noise_scale * (q**0.5 + outputs**0.5),
            rank=min(problem.observed.shape),
        )
        return factors


class Shrinkage(AbstractFloor):
    r"""$\mathbb E\lVert\tilde X(\hat M - M)\rVert_F^2 \ge d^2/(T/\sigma^2 + d/\rho^2)$ for the
    shrinkage of singular values that is optimal in large layers (Gavish and Donoho 2017).
    """

    refuted_below = _STRONG

    def estimate(self, instance: PriorDraw) -> LowRank:
        """Optimal shrinkage in Frobenius norm, with the noise level known."""
        problem = instance.problem
        factors, _ = shrinkage.optimal_shrinkage(
            problem.truth.layer_inputs,
            problem.observed.target_outputs,
            problem.truth.noise_scale,
            shrinker=shrinkage.Frobenius(),
            rank=min(problem.observed.shape),
        )
        return factors


class MinimaxFloor(AbstractTheorem):
    r"""No estimator has a smaller worst-case error than $\sigma^2$ times the number of parameters
    of a layer of rank $r$.
    """

    truncation: Truncation = Truncation()
    soft_threshold: SoftThreshold = SoftThreshold()
    shrinkage: Shrinkage = Shrinkage()


minimax_floor = MinimaxFloor()
