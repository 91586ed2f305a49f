r"""How far a perturbation moves singular values.

**Model.** $B = A + Z$, any matrices of one shape; $s_1 \ge s_2 \ge \dots$ are singular values,
continued by zeros.

**Claims** (sure; proved in paper_notes/singular_values.md):

- `weyl`: $|s_i(A+Z) - s_i(A)| \le \lVert Z\rVert$ for every $i$ (Weyl 1912).
- `weyl_sum`: $s_{i+j-1}(A+Z) \le s_i(A) + s_j(Z)$ (Fan 1951); here with $i = r+1$, so that
  $s_{r+j}(A+Z) \le s_j(Z)$ if $\operatorname{rank}A \le r$.
- `mirsky`: $\bigl(\sum_i|s_i(A+Z) - s_i(A)|^p\bigr)^{1/p} \le \lVert Z\rVert_{S_p}$ for $p \ge 1$
  (Mirsky 1960); $p = 2$, and $p = 1$ in `mirsky_nuclear`. $p = \infty$ is `weyl`.

All are attained, by $Z$ with the singular vectors of $A$.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._numerics import check_count, settle
from lowrank_theory._random import normal
from lowrank_theory.perturbations import Perturbation
from lowrank_theory.theorems._quantities import check_exponent, schatten_norm, total_norm
from lowrank_theory.theorems._quantities import singular_values as values_of
from lowrank_theory.theorems._regimes import LOW_RANK_PERTURBED, PERTURBED, perturbed
from lowrank_theory.theorems._theorem import (
    UPPER,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)

_REGIMES = {
    name: (LOW_RANK_PERTURBED | PERTURBED)[name]
    for name in (
        "independent noise",
        "strong noise",
        "no noise",
        "opposing noise",
        "power law",
        "flat with flat noise",
        "decaying, nearly aligned noise",
    )
}


class AnyPair(AbstractAdversary):
    """Every entry of $A$ and of $Z$ is free."""

    rows: int = 4
    columns: int = 3
    rank: int = 1

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Two Gaussian matrices."""
        matrix, noise = normal(key, (2, self.rows, self.columns))
        return matrix, noise

    def play(self, free: tuple[Array, Array]) -> tuple[Perturbation, None]:
        """The two matrices."""
        return Perturbation(*free, self.rank), None


class AbstractSpectral(AbstractStatement):
    """A statement about the singular values of $A + Z$, without hypotheses; attained."""

    kind = UPPER
    needs = Perturbation
    regimes = _REGIMES
    control = perturbed([1.0] * 9, [0.5] * 9, 1.0)
    adversary = AnyPair()
    sharp = True

    def hypotheses(self, instance: Perturbation) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def estimate(self, instance: Perturbation) -> Float[Array, " count"]:
        """The singular values of $A + Z$."""
        return values_of(instance.perturbed)

    def broken_estimate(self, instance: Perturbation) -> Float[Array, " count"]:
        """Those of $A + 3Z$."""
        return values_of(instance.perturbed + 2 * jnp.asarray(instance.noise))


class Mirsky(AbstractSpectral):
    r"""$\bigl(\sum_i|s_i(A+Z) - s_i(A)|^p\bigr)^{1/p} \le \lVert Z\rVert_{S_p}$, with $p$ the
    `exponent`, at least one; for $p = \infty$ the largest difference and the operator norm.
    """

    exponent: float = 2.0

    def __check_init__(self) -> None:
        settle(self, "exponent", check_exponent)

    def formula(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert Z\rVert_{S_p}$."""
        return schatten_norm(values_of(jnp.asarray(instance.noise)), self.exponent)

    def loss(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        """The norm of the differences."""
        differences = estimate - values_of(jnp.asarray(instance.matrix))
        return schatten_norm(jnp.abs(differences), self.exponent)

    def magnitude(self, instance: Perturbation) -> Float[Array, ""]:
        r"""$\lVert A\rVert_F + \lVert Z\rVert_F$ for each value, in the norm of the statement."""
        return total_norm(instance) * min(instance.sizes) ** (1 / self.exponent)


class WeylSum(AbstractSpectral):
    r"""$s_{r+j}(A+Z) \le s_{r+1}(A) + s_j(Z)$, with $j$ the `index`, at least one, and $r$ the rank
    of the instance.
    """

    index: int = 2

    def __check_init__(self) -> None:
        settle(self, "index", check_count, 1)

    def formula(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        """$s_{r+1}(A) + s_j(Z)$."""
        signal = values_of(jnp.asarray(instance.matrix))
        noise = values_of(jnp.asarray(instance.noise))
        return _at(signal, instance.rank + 1) + _at(noise, self.index)

    def loss(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        """$s_{r+j}(A+Z)$."""
        return _at(estimate, instance.rank + self.index)

    def magnitude(self, instance: Perturbation) -> Float[Array, ""]:
        r"""$\lVert A\rVert_F + \lVert Z\rVert_F$."""
        return total_norm(instance)


def _at(values: Float[Array, " count"], index: int) -> Float[Array, ""]:
    """The value of that index, counted from one; zero after the last."""
    return values[index - 1] if index <= values.size else jnp.zeros(())


class SingularValues(AbstractTheorem):
    """Noise moves no singular value by more than its own norm, and all of them together by no more
    than its own values.
    """

    weyl: Mirsky = Mirsky(math.inf)
    weyl_sum: WeylSum = WeylSum()
    mirsky: Mirsky = Mirsky(2.0)
    mirsky_nuclear: Mirsky = Mirsky(1.0)


singular_values = SingularValues()
