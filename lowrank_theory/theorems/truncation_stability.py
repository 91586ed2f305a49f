r"""How far noise moves the truncated singular value decomposition of a low-rank matrix.

**Model.** $\operatorname{rank}A \le r$, $B = A + Z$ with any $Z$, and $[B]_r$ the best rank-r
approximation of $B$. Nothing is asked of gaps. $Z_{(r)}$ stands for the $r$ largest singular values
$z_i$ of $Z$; $d$ is the smaller side, and $k = \min(r, d-r)$.

**Claims** (sure; proved in paper_notes/truncation_stability.md):

- `frobenius`, `nuclear`, `schatten_4`, `operator_norm`: $\lVert[B]_r - A\rVert_{S_p}^p \le
  2^p\lVert Z_{(k)}\rVert_{S_p}^p + \lVert Z_{(r)}\rVert_{S_p}^p$ for every $p \ge 1$. So
  $\lVert[B]_r - A\rVert_{S_p} \le (1 + 2^p)^{1/p}\lVert Z_{(r)}\rVert_{S_p}$: $\sqrt5$, 3,
  $17^{1/4}$ and 2 (compare Luo, Han and Zhang 2021; for $p > 2$ orthogonality alone gives
  $\sqrt5$), which cannot be lowered for $r \le d/2$.
- `ky_fan`: the $j$ largest singular values of $[B]_r - A$ have at most the sum of the first $j$ of
  $2z_1, \dots, 2z_k, z_{k+1}, \dots, z_r, z_1, \dots, z_k$, for each $j$. So every unitarily
  invariant norm of $[B]_r - A$ is at most that of these numbers.
- `golden_ratio`: $\lVert[B]_r - A\rVert_F \le \tfrac{1+\sqrt5}2\lVert Z_{(2r)}\rVert_F$.
- `approximate_rank`, $A$ any matrix: $\lVert[B]_r - [A]_r\rVert_F^2 \le (\tau + \zeta_r)^2 + (\tau
  + 2\zeta_k)^2$ with $\zeta_j = \lVert Z_{(j)}\rVert_F$, $\tau = \lVert(A -
  [A]_r)_{(r)}\rVert_F$.

All are attained: $A = \operatorname{diag}(2I_k, cI_{r-k}, 0_k)$, $Z = \operatorname{diag}(-I_k,
I_{r-k}, I_k)$ for the first two, for every $r$ and $c > 0$, $A = \operatorname{diag}(\varphi, 0)$,
$Z = \operatorname{diag}(1 - \varphi, 1)$ for the golden ratio $\varphi$, $A =
\operatorname{diag}(\tau + 2\zeta, \tau)$, $Z = \operatorname{diag}(-\zeta, \zeta)$ for the last.
`planted_rank.any_noise` is `frobenius` for $A = \tilde XM$, $Z = PE$.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._numerics import (
    Number,
    check_count,
    matmul,
    rounding_allowance,
    safe_divide,
    settle,
)
from lowrank_theory._random import normal
from lowrank_theory._subspaces import leading_right_vectors
from lowrank_theory.perturbations import Perturbation
from lowrank_theory.theorems._quantities import (
    check_exponent,
    frobenius,
    schatten_norm,
    singular_values,
    total_norm,
)
from lowrank_theory.theorems._regimes import LOW_RANK_PERTURBED, PERTURBED, perturbed
from lowrank_theory.theorems._theorem import (
    UPPER,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2

_GOLDEN = {
    "golden noise": perturbed([GOLDEN_RATIO] * 3, [0.999 - GOLDEN_RATIO] * 3 + [1.0] * 3, 1.0)
}


def worst_values(
    noise: Float[Array, " count"], rank: int, shorter: Number
) -> Float[Array, " twice_rank"]:
    r"""$2z_1, \dots, 2z_k, z_{k+1}, \dots, z_r, z_1, \dots, z_k$ and zeros: the largest singular
    values that $[A+Z]_r - A$ may have, given the decreasing ones of $Z$; call it inside `float64`.

    $k = \min(r, d-r)$, with $d$ the `shorter` side of the matrices.
    """
    leading = noise[:rank]
    hiding = jnp.arange(leading.size) < shorter - rank
    return jnp.concatenate([jnp.where(hiding, 2 * leading, leading), jnp.where(hiding, leading, 0)])


def hidden_rank(rank: Number, shorter: Number) -> Float[Array, ""]:
    r"""$k = \min(r, d-r)$, at least zero: how many parts of a signal of rank r noise can hide, with
    $d$ the `shorter` side of the matrices; call it inside `float64`.
    """
    return jnp.clip(jnp.asarray(shorter - rank, float), 0, rank)


def low_rank_hypothesis(instance: Perturbation) -> Hypothesis:
    r"""$\operatorname{rank}A \le r$, up to rounding."""
    values = singular_values(jnp.asarray(instance.matrix))
    scale = total_norm(instance)
    allowed = rounding_allowance(scale, *instance.sizes)
    rest = jnp.max(values[instance.rank :], initial=0.0)
    return Hypothesis("the matrix has rank at most r", safe_divide(allowed - rest, scale))


def truncated(matrix: Float[Array, "rows columns"], rank: int) -> Float[Array, "rows columns"]:
    """$[B]_r$, differentiable where $s_r > s_{r+1}$."""
    vectors, _ = leading_right_vectors(matrix, rank)
    return matmul(matrix, vectors, vectors.T)


class KnownTruncation(AbstractAdversary):
    r"""$A = LR$ is free, and so are the singular values of $B$, which is diagonal; $Z = B - A$.

    Without loss, as all is invariant to rotations. `width`, the number of columns of $L$, bounds
    the rank of $A$. The singular values of $B$ have a gap of at least $10^{-5}$ (relative) at the
    rank, so that rounding cannot mistake its truncation.
    """

    width: int = 2
    size: int = 4
    rank: int = 2

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, ...]:
        """Gaussian factors of $A$, and numbers from which the singular values of $B$ come."""
        numbers = normal(key, (2 * self.width + 1, self.size))
        return tuple(jnp.split(numbers, (self.width, 2 * self.width)))

    def play(self, free: tuple[Array, ...]) -> tuple[Perturbation, Array]:
        """The perturbation, and $[B]_r$."""
        left, right, (values,) = free
        rest = jnp.abs(values[self.rank :])
        leading = (1 + 1e-5) * jnp.max(rest) + values[: self.rank] ** 2
        matrix = matmul(left.T, right)
        noise = jnp.diag(jnp.concatenate([leading, rest])) - matrix
        estimate = jnp.diag(jnp.concatenate([leading, 0 * rest]))
        return Perturbation(matrix, noise, self.rank), estimate


class AbstractPerturbed(AbstractStatement):
    """A bound on what $[A + Z]_r$ is about."""

    kind = UPPER
    needs = Perturbation
    control = perturbed([3, 2, 1], [0.01, 0.006, 0.003])

    def estimate(self, instance: Perturbation) -> Float[Array, "rows columns"]:
        """$[A + Z]_r$."""
        return truncated(instance.perturbed, instance.rank)

    def broken_estimate(self, instance: Perturbation) -> Float[Array, "rows columns"]:
        """One rank too few."""
        return truncated(instance.perturbed, instance.rank - 1)


class AbstractTruncation(AbstractPerturbed):
    """One on $[A + Z]_r$ itself; attained."""

    sharp = True

    def magnitude(self, instance: Perturbation) -> Float[Array, ""]:
        r"""$\lVert A\rVert_F + \lVert Z\rVert_F$, for as many singular values as the nuclear norm
        adds.
        """
        return total_norm(instance) * math.sqrt(min(instance.sizes))


class AbstractLowRank(AbstractTruncation):
    r"""A bound on $[A + Z]_r - A$ for $\operatorname{rank}A \le r$, by singular values of both."""

    regimes = LOW_RANK_PERTURBED | _GOLDEN
    adversary = KnownTruncation()

    def hypotheses(self, instance: Perturbation) -> tuple[Hypothesis, ...]:
        r"""$\operatorname{rank}A \le r$, up to rounding."""
        return (low_rank_hypothesis(instance),)


def _worst_values(instance: Perturbation) -> Float[Array, " twice_rank"]:
    noise = singular_values(jnp.asarray(instance.noise))
    return worst_values(noise, instance.rank, min(instance.sizes))


class Schatten(AbstractLowRank):
    r"""$\lVert[A+Z]_r - A\rVert_{S_p}^p \le 2^p\lVert Z_{(k)}\rVert_{S_p}^p + \lVert
    Z_{(r)}\rVert_{S_p}^p$ for $\operatorname{rank}A \le r$, $k = \min(r, d-r)$, with $p$ the
    `exponent`, at least one; $2\lVert Z\rVert$ for $p = \infty$, $k > 0$. Not to the power $p$
    here.
    """

    exponent: float = 2.0

    def __check_init__(self) -> None:
        settle(self, "exponent", check_exponent)

    def formula(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        r"""$\bigl(2^p\lVert Z_{(k)}\rVert_{S_p}^p + \lVert Z_{(r)}\rVert_{S_p}^p\bigr)^{1/p}$."""
        return schatten_norm(_worst_values(instance), self.exponent)

    def loss(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert[A+Z]_r - A\rVert_{S_p}$."""
        return schatten_norm(singular_values(estimate - instance.matrix), self.exponent)


class KyFan(AbstractLowRank):
    r"""$\sum_{i\le j}s_i([A+Z]_r - A)$ is at most the sum of the first $j$ of $2z_1, \dots, 2z_k,
    z_{k+1}, \dots, z_r, z_1, \dots, z_k$ for $\operatorname{rank}A \le r$, $k = \min(r, d-r)$, with
    $j$ the `count`, at least one.
    """

    count: int = 3

    def __check_init__(self) -> None:
        settle(self, "count", check_count, 1)

    def formula(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        """The sum of these."""
        return jnp.sum(_worst_values(instance)[: self.count])

    def loss(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        """The sum of the largest singular values of the error."""
        return jnp.sum(singular_values(estimate - instance.matrix)[: self.count])


class GoldenRatio(AbstractLowRank):
    r"""$\lVert[A+Z]_r - A\rVert_F \le \tfrac{1+\sqrt5}2\lVert Z_{(2r)}\rVert_F$ for
    $\operatorname{rank}A \le r$.
    """

    def formula(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        r"""$\varphi\lVert Z_{(2r)}\rVert_F$."""
        noise = singular_values(jnp.asarray(instance.noise))[: 2 * instance.rank]
        return GOLDEN_RATIO * frobenius(noise)

    def loss(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert[A+Z]_r - A\rVert_F$."""
        return frobenius(estimate - instance.matrix)


class ApproximateRank(AbstractTruncation):
    r"""$\lVert[A+Z]_r - [A]_r\rVert_F^2 \le (\tau+\zeta_r)^2 + (\tau+2\zeta_k)^2$ for any $A$, $k =
    \min(r, d-r)$. Not squared here; in the units of the matrix.
    """

    regimes = PERTURBED | {
        name: LOW_RANK_PERTURBED[name] for name in ("opposing noise", "rank one", "full rank")
    }
    adversary = KnownTruncation(width=4)

    def hypotheses(self, instance: Perturbation) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def formula(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        r"""$\sqrt{(\tau+\zeta_r)^2 + (\tau+2\zeta_k)^2}$."""
        rank, hidden = instance.rank, min(instance.rank, min(instance.sizes) - instance.rank)
        tail = singular_values(jnp.asarray(instance.matrix))[rank : 2 * rank]
        noise = singular_values(jnp.asarray(instance.noise))
        tau = frobenius(tail)
        return jnp.hypot(
            tau + frobenius(noise[:rank]), tau + 2 * frobenius(noise[: max(hidden, 0)])
        )

    def loss(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert[A+Z]_r - [A]_r\rVert_F$."""
        signal = truncated(jnp.asarray(instance.matrix), instance.rank)
        return frobenius(estimate - signal)


class TruncationStability(AbstractTheorem):
    """The truncation of a low-rank matrix plus noise is within $(1 + 2^p)^{1/p}$ times the $r$
    largest values of the noise in every Schatten norm, and no constant is smaller.
    """

    frobenius: Schatten = Schatten(2.0)
    nuclear: Schatten = Schatten(1.0)
    schatten_4: Schatten = Schatten(4.0)
    operator_norm: Schatten = Schatten(math.inf)
    ky_fan: KyFan = KyFan()
    golden_ratio: GoldenRatio = GoldenRatio()
    approximate_rank: ApproximateRank = ApproximateRank()


truncation_stability = TruncationStability()
