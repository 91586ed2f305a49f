r"""How far noise moves the truncated singular value decomposition of a low-rank matrix.

**Model.** $\operatorname{rank}A \le r$, $B = A + Z$ with any $Z$, and $[B]_r$ the best rank-r
approximation of $B$. Nothing is asked of gaps. $Z_{(r)}$ stands for the $r$ largest singular values
$z_i$ of $Z$.

**Claims** (sure; proved in paper_notes/truncation_stability.md):

- `frobenius`, `nuclear`, `schatten_4`, `operator_norm`: $\lVert[B]_r - A\rVert_{S_p} \le (1 +
  2^p)^{1/p}\lVert Z_{(r)}\rVert_{S_p}$ for every $p \ge 1$: $\sqrt5$, 3, $17^{1/4}$ and 2 (compare
  Luo, Han and Zhang 2021; for $p > 2$ orthogonality alone gives $\sqrt5$).
- `ky_fan`: the $k$ largest singular values of $[B]_r - A$ have at most the sum of the first $k$ of
  $2z_1, \dots, 2z_r, z_1, \dots, z_r$, for each $k$. So every unitarily invariant norm of $[B]_r -
  A$ is at most that of these numbers.
- `golden_ratio`: $\lVert[B]_r - A\rVert_F \le \tfrac{1+\sqrt5}2\lVert Z_{(2r)}\rVert_F$.
- `approximate_rank`, $A$ any matrix: $\lVert[B]_r - [A]_r\rVert_F^2 \le (\tau + \zeta)^2 + (\tau +
  2\zeta)^2$ with $\zeta = \lVert Z_{(r)}\rVert_F$ and $\tau = \lVert(A - [A]_r)_{(r)}\rVert_F$.

All are attained: $A = \operatorname{diag}(2, 0)$, $Z = \operatorname{diag}(-1, 1)$ for the first
two, $A = \operatorname{diag}(\varphi, 0)$, $Z = \operatorname{diag}(1 - \varphi, 1)$ for the golden
ratio $\varphi$, $A = \operatorname{diag}(\tau + 2\zeta, \tau)$, $Z = \operatorname{diag}(-\zeta,
\zeta)$ for the last. `planted_rank.any_noise` is `frobenius` for $A = \tilde XM$, $Z = PE$.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._numerics import check_count, matmul, rounding_allowance, safe_divide, settle
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


class AbstractTruncation(AbstractStatement):
    """A statement about $[A + Z]_r$; attained."""

    kind = UPPER
    needs = Perturbation
    control = perturbed([3, 2, 1], [0.01, 0.006, 0.003])
    sharp = True

    def estimate(self, instance: Perturbation) -> Float[Array, "rows columns"]:
        """$[A + Z]_r$."""
        return truncated(instance.perturbed, instance.rank)

    def broken_estimate(self, instance: Perturbation) -> Float[Array, "rows columns"]:
        """One rank too few."""
        return truncated(instance.perturbed, instance.rank - 1)

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
        values = singular_values(jnp.asarray(instance.matrix))
        scale = total_norm(instance)
        allowed = rounding_allowance(scale, *instance.sizes)
        rest = jnp.max(values[instance.rank :], initial=0.0)
        return (Hypothesis("the matrix has rank at most r", safe_divide(allowed - rest, scale)),)


class Schatten(AbstractLowRank):
    r"""$\lVert[A+Z]_r - A\rVert_{S_p} \le (1 + 2^p)^{1/p}\lVert Z_{(r)}\rVert_{S_p}$ for
    $\operatorname{rank}A \le r$, with $p$ the `exponent`, at least one; $2\lVert Z\rVert$ for $p =
    \infty$.
    """

    exponent: float = 2.0

    def __check_init__(self) -> None:
        settle(self, "exponent", check_exponent)

    def formula(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        r"""$(1 + 2^p)^{1/p}\lVert Z_{(r)}\rVert_{S_p}$."""
        noise = singular_values(jnp.asarray(instance.noise))[: instance.rank]
        constant = 2 * (1 + 2**-self.exponent) ** (1 / self.exponent)
        return constant * schatten_norm(noise, self.exponent)

    def loss(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert[A+Z]_r - A\rVert_{S_p}$."""
        return schatten_norm(singular_values(estimate - instance.matrix), self.exponent)


class KyFan(AbstractLowRank):
    r"""$\sum_{i\le k}s_i([A+Z]_r - A)$ is at most the sum of the first $k$ of $2z_1, \dots, 2z_r,
    z_1, \dots, z_r$ for $\operatorname{rank}A \le r$, with $k$ the `count`, at least one.
    """

    count: int = 3

    def __check_init__(self) -> None:
        settle(self, "count", check_count, 1)

    def formula(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        """The sum of these."""
        noise = singular_values(jnp.asarray(instance.noise))[: instance.rank]
        return jnp.sum(jnp.concatenate([2 * noise, noise])[: self.count])

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
    r"""$\lVert[A+Z]_r - [A]_r\rVert_F^2 \le (\tau+\zeta)^2 + (\tau+2\zeta)^2$ for any $A$. Not
    squared here; in the units of the matrix.
    """

    regimes = PERTURBED | {
        name: LOW_RANK_PERTURBED[name] for name in ("opposing noise", "rank one", "full rank")
    }
    adversary = KnownTruncation(width=4)

    def hypotheses(self, instance: Perturbation) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def formula(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        r"""$\sqrt{(\tau+\zeta)^2 + (\tau+2\zeta)^2}$."""
        rank = instance.rank
        tau = frobenius(singular_values(jnp.asarray(instance.matrix))[rank : 2 * rank])
        zeta = frobenius(singular_values(jnp.asarray(instance.noise))[:rank])
        return jnp.hypot(tau + zeta, tau + 2 * zeta)

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
