r"""What removing weights costs: by size, in patterns, at random, and with the others refitted.

**Model.** $W$ (N, K) are weights and $X$ (m, N) what they see; $H = X^\top X + \lambda I$, $\lambda
\gt 0$, and $\operatorname{tr}E^\top HE$ is the cost of changing them by $E$. $\lVert W\rVert_p$ is
$(\sum|W_{ij}|^p)^{1/p}$, and $\lVert W\rVert_{S_p}$ the same of its singular values.

**Claims** (proved in paper_notes/pruning.md):

- `refitted` (sure, equality): moving the weights of some inputs $S$ by $D$, the others refitted,
  costs $\operatorname{tr}D^\top([H^{-1}]_{SS})^{-1}D$ (Hassibi and Stork 1993, for sets).
- `as_they_are` (sure): which is at most $\operatorname{tr}D^\top H_{SS}D$, what it costs without;
  attained where $S$ is uncorrelated with the others.
- `entries` (sure), $0 \lt p \lt 2$: without its $k$ largest entries, $W$ has a norm of at most
  $c_p\lVert W\rVert_pk^{1/2-1/p}$, $c_p^p = (p/2)^{p/2}(1 - p/2)^{1-p/2}$; $\lVert
  W\rVert_1/(2\sqrt k)$ for $p = 1$. Attained by $2k/(2 - p)$ equal entries.
- `singular_values` (sure): the same of the truncation $[W]_k$ and $\lVert W\rVert_{S_p}$.
- `pattern` (sure): of the n largest of each m entries, $\lVert W - Q\rVert_F^2 \le (1 -
  n/m)\lVert W\rVert_F^2$; attained by equal entries.
- `gaussian_pattern` (in expectation, equality): of independent Gaussian weights this share is
  $\mathbb E[g^2; \operatorname{Bin}(m-1, \mathbb P(|g'| \gt |g|)) \ge n]$; 0.1324 for 2 of 4.
- `unbiased` (in expectation, equality): weights kept with probabilities $p_{ij}$, independently,
  and then divided by these, cost $\lVert X(W - Q)\rVert_F^2 = \sum c_{ij}^2(1/p_{ij} - 1)$,
  $c_{ij} = |W_{ij}|\lVert x_i\rVert$, $x_i$ column $i$ of $X$.
- `least_variance` (sure): $\sum c_{ij}^2(1/p_{ij} - 1) \ge (\sum c_{ij})^2/\sum p_{ij} - \sum
  c_{ij}^2$, attained where the probabilities are proportional to $c$.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import matmul
from lowrank_theory._second_order import elimination
from lowrank_theory.recovery import truncated_svd
from lowrank_theory.sparsification.masks import largest_traced
from lowrank_theory.theorems._pruned import (
    COINS,
    FREE,
    GAUSSIAN_PATTERNS,
    PATTERNS,
    SETS,
    FreeCoins,
    FreeSet,
    FreeValues,
    FreeWeights,
    PrunedSet,
    Sampled,
    Thinned,
)
from lowrank_theory.theorems._quantities import frobenius, singular_values, squared
from lowrank_theory.theorems._theorem import (
    EQUALITY,
    EQUALITY_IN_EXPECTATION,
    LOWER,
    UPPER,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)

# --- the others refitted --------------------------------------------------------------------------


class AbstractSet(AbstractStatement):
    """A statement about the inputs of a set, in squared units of the outputs."""

    needs = PrunedSet
    regimes = SETS
    control = SETS["correlated"]

    def hypotheses(self, instance: PrunedSet) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def estimate(self, instance: PrunedSet) -> Float[Array, "inputs outputs"]:
        """The change of all weights, the others answering in turn."""
        moved = jnp.asarray(instance.moved, float)
        removed, inputs = len(moved), instance.activations.shape[1]
        triangle = jnp.eye(inputs) + elimination(instance.moments(), 0.0).feedback.T
        pushed = -matmul(triangle[removed:, :removed], moved)
        answers = jax.scipy.linalg.solve_triangular(
            triangle[removed:, removed:], pushed, lower=True, unit_diagonal=True
        )
        return jnp.concatenate([moved, answers])

    def broken_estimate(self, instance: PrunedSet) -> Float[Array, "inputs outputs"]:
        """Answers of the wrong sign."""
        found = self.estimate(instance)
        removed = len(instance.moved)
        return jnp.concatenate([found[:removed], -found[removed:]])

    def loss(self, instance: PrunedSet, estimate: Array) -> Float[Array, ""]:
        r"""$\operatorname{tr}E^\top HE$."""
        return jnp.sum(estimate * matmul(instance.moments(), estimate))

    def magnitude(self, instance: PrunedSet) -> Float[Array, ""]:
        r"""$\lVert H\rVert_F^2\lVert H^{-1}\rVert_F\lVert D\rVert_F^2$."""
        moments = instance.moments()
        condition = frobenius(moments) * frobenius(jnp.linalg.inv(moments))
        return condition * frobenius(moments) * squared(frobenius(instance.moved))


class Refitted(AbstractSet):
    r"""$\min\operatorname{tr}E^\top HE = \operatorname{tr}D^\top([H^{-1}]_{SS})^{-1}D$."""

    kind = EQUALITY

    def formula(self, instance: PrunedSet, estimate: Array) -> Float[Array, ""]:
        r"""$\operatorname{tr}D^\top([H^{-1}]_{SS})^{-1}D$."""
        moved = jnp.asarray(instance.moved, float)
        inverse = jnp.linalg.inv(instance.moments())[: len(moved), : len(moved)]
        return jnp.sum(moved * jnp.linalg.solve(inverse, moved))


class AsTheyAre(AbstractSet):
    r"""$\min\operatorname{tr}E^\top HE \le \operatorname{tr}D^\top H_{SS}D$."""

    kind = UPPER
    adversary = FreeSet()
    sharp = True

    def formula(self, instance: PrunedSet, estimate: Array) -> Float[Array, ""]:
        r"""$\operatorname{tr}D^\top H_{SS}D$."""
        moved = jnp.asarray(instance.moved, float)
        among = instance.moments()[: len(moved), : len(moved)]
        return jnp.sum(moved * matmul(among, moved))


# --- by size --------------------------------------------------------------------------------------


class AbstractThinned(AbstractStatement):
    """A statement about the largest entries of weights, not squared, in units of the weights."""

    needs = Thinned

    def hypotheses(self, instance: Thinned) -> tuple[Hypothesis, ...]:
        """None but an exponent between zero and two."""
        exponent = jnp.asarray(instance.exponent, float)
        margin = jnp.minimum(exponent, 2 - exponent) - 1e-6
        return (Hypothesis("the exponent lies between 0 and 2", margin),)

    def loss(self, instance: Thinned, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert W - Q\rVert_F$."""
        return frobenius(instance.exact() - estimate)

    def magnitude(self, instance: Thinned) -> Float[Array, ""]:
        r"""$\lVert W\rVert_F$."""
        return frobenius(instance.weights)


def tail_bound(values: Float[Array, " count"], kept: int, exponent: Array) -> Float[Array, ""]:
    r"""$c_p\lVert v\rVert_pk^{1/2-1/p}$ of values that are not negative."""
    half = exponent / 2
    constant = (half**half * (1 - half) ** (1 - half)) ** (1 / exponent)
    largest = jnp.max(values, initial=0.0)
    there = values > 0
    shares = jnp.where(there, values, 1) / jnp.where(largest > 0, largest, 1)
    norm = largest * jnp.sum(jnp.where(there, shares**exponent, 0)) ** (1 / exponent)
    return constant * norm * kept ** (0.5 - 1 / exponent)


class Entries(AbstractThinned):
    r"""$\lVert W - Q\rVert_F \le c_p\lVert W\rVert_pk^{1/2-1/p}$ of the $k$ largest entries."""

    kind = UPPER
    regimes = FREE
    control = FREE["equal entries"]
    adversary = FreeWeights()
    sharp = True

    def estimate(self, instance: Thinned) -> Float[Array, "inputs outputs"]:
        """The $k$ largest entries."""
        weights = instance.exact()
        mask = largest_traced(jnp.abs(weights).reshape(-1, 1), instance.kept)
        return jnp.where(mask.reshape(weights.shape), weights, 0)

    def broken_estimate(self, instance: Thinned) -> Float[Array, "inputs outputs"]:
        """Nothing."""
        return jnp.zeros(instance.weights.shape)

    def formula(self, instance: Thinned, estimate: Array) -> Float[Array, ""]:
        r"""$c_p\lVert W\rVert_pk^{1/2-1/p}$."""
        sizes = jnp.abs(instance.exact()).reshape(-1)
        return tail_bound(sizes, instance.kept, jnp.asarray(instance.exponent, float))


class SingularValues(AbstractThinned):
    r"""$\lVert W - [W]_k\rVert_F \le c_p\lVert W\rVert_{S_p}k^{1/2-1/p}$."""

    kind = UPPER
    regimes = FREE
    control = FREE["equal singular values"]
    adversary = FreeValues()
    sharp = True

    def estimate(self, instance: Thinned) -> Float[Array, "inputs outputs"]:
        """$[W]_k$."""
        factors, _ = truncated_svd(instance.exact(), rank=instance.kept)
        return matmul(factors.left, factors.right)

    def broken_estimate(self, instance: Thinned) -> Float[Array, "inputs outputs"]:
        """Nothing."""
        return jnp.zeros(instance.weights.shape)

    def formula(self, instance: Thinned, estimate: Array) -> Float[Array, ""]:
        r"""$c_p\lVert W\rVert_{S_p}k^{1/2-1/p}$."""
        values = singular_values(instance.exact())
        return tail_bound(values, instance.kept, jnp.asarray(instance.exponent, float))


# --- in patterns ----------------------------------------------------------------------------------


class AbstractPattern(AbstractThinned):
    """A statement about n of m, squared, with n the number of entries that stay."""

    regimes = PATTERNS
    control = PATTERNS["Gaussian"]

    def estimate(self, instance: Thinned) -> Float[Array, "inputs outputs"]:
        """The n largest of each m successive inputs of an output."""
        return instance.in_groups(instance.kept)

    def broken_estimate(self, instance: Thinned) -> Float[Array, "inputs outputs"]:
        """Nothing."""
        return jnp.zeros(instance.weights.shape)

    def loss(self, instance: Thinned, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert W - Q\rVert_F^2$."""
        return squared(frobenius(instance.exact() - estimate))

    def magnitude(self, instance: Thinned) -> Float[Array, ""]:
        r"""$\lVert W\rVert_F^2$."""
        return squared(frobenius(instance.weights))


class Pattern(AbstractPattern):
    r"""$\lVert W - Q\rVert_F^2 \le (1 - n/m)\lVert W\rVert_F^2$."""

    kind = UPPER
    adversary = FreeWeights()
    sharp = True

    def hypotheses(self, instance: Thinned) -> tuple[Hypothesis, ...]:
        """A pattern."""
        return (instance.some_removed(),)

    def formula(self, instance: Thinned, estimate: Array) -> Float[Array, ""]:
        r"""$(1 - n/m)\lVert W\rVert_F^2$."""
        energy = squared(frobenius(instance.weights))
        return (1 - instance.kept / instance.group) * energy


class GaussianPattern(AbstractPattern):
    r"""$\mathbb E\lVert W - Q\rVert_F^2 = NK\sigma^2\,\mathbb E[g^2; \operatorname{Bin}(m-1,
    \mathbb P(|g'| \gt |g|)) \ge n]$.
    """

    kind = EQUALITY_IN_EXPECTATION
    regimes = GAUSSIAN_PATTERNS

    def hypotheses(self, instance: Thinned) -> tuple[Hypothesis, ...]:
        """Independent Gaussian weights of one known size."""
        return (instance.gaussian_weights(), instance.some_removed())

    def formula(self, instance: Thinned, estimate: Array) -> Float[Array, ""]:
        r"""$NK\sigma^2$ times the share."""
        share = gaussian_share(instance.kept, instance.group)
        return instance.weights.size * jnp.asarray(instance.scale, float) ** 2 * share


def gaussian_share(kept: int, group: int) -> Float[Array, ""]:
    r"""$\mathbb E[g^2; \operatorname{Bin}(m-1, \mathbb P(|g'| \gt |g|)) \ge n]$, by quadrature."""
    places = jnp.linspace(0.0, 12.0, 2049)
    above = jax.scipy.special.erfc(places / jnp.sqrt(2.0))
    smaller = jax.scipy.special.betainc(float(kept), float(group - kept), above)
    density = jnp.sqrt(2 / jnp.pi) * jnp.exp(-(places**2) / 2)
    return jnp.trapezoid(places**2 * density * smaller, places)


# --- at random ------------------------------------------------------------------------------------


class AbstractSampled(AbstractStatement):
    """A statement about weights that are kept at random, in squared units of the outputs."""

    needs = Sampled
    regimes = COINS
    control = COINS["proportional"]

    def magnitude(self, instance: Sampled) -> Float[Array, ""]:
        r"""$\sum c_{ij}^2/p_{ij}$."""
        return jnp.sum(instance.costs() ** 2 / jnp.asarray(instance.probabilities, float))


class Unbiased(AbstractSampled):
    r"""$\mathbb E\lVert X(W - Q)\rVert_F^2 = \sum c_{ij}^2(1/p_{ij} - 1)$."""

    kind = EQUALITY_IN_EXPECTATION

    def hypotheses(self, instance: Sampled) -> tuple[Hypothesis, ...]:
        """Independent coins."""
        return (instance.independent_coins(),)

    def estimate(self, instance: Sampled) -> Float[Array, "inputs outputs"]:
        """What is kept, over its probability."""
        return instance.kept() / jnp.asarray(instance.probabilities, float)

    def broken_estimate(self, instance: Sampled) -> Float[Array, "inputs outputs"]:
        """What is kept, as it is."""
        return instance.kept()

    def formula(self, instance: Sampled, estimate: Array) -> Float[Array, ""]:
        r"""$\sum c_{ij}^2(1/p_{ij} - 1)$."""
        return _variance(instance)

    def loss(self, instance: Sampled, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert X(W - Q)\rVert_F^2$."""
        change = jnp.asarray(instance.weights, float) - estimate
        return squared(frobenius(matmul(jnp.asarray(instance.activations, float), change)))


class LeastVariance(AbstractSampled):
    r"""$\sum c_{ij}^2(1/p_{ij} - 1) \ge (\sum c_{ij})^2/\sum p_{ij} - \sum c_{ij}^2$."""

    kind = LOWER
    adversary = FreeCoins()
    sharp = True

    def hypotheses(self, instance: Sampled) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def estimate(self, instance: Sampled) -> Float[Array, ""]:
        """The variance."""
        return _variance(instance)

    def broken_estimate(self, instance: Sampled) -> Float[Array, ""]:
        """A half of it."""
        return _variance(instance) / 2

    def formula(self, instance: Sampled, estimate: Array) -> Float[Array, ""]:
        r"""$(\sum c_{ij})^2/\sum p_{ij} - \sum c_{ij}^2$."""
        costs, number = instance.costs(), jnp.sum(jnp.asarray(instance.probabilities, float))
        return jnp.sum(costs) ** 2 / number - jnp.sum(costs**2)

    def loss(self, instance: Sampled, estimate: Array) -> Float[Array, ""]:
        """The variance."""
        return estimate


def _variance(sampled: Sampled) -> Float[Array, ""]:
    r"""$\sum c_{ij}^2(1/p_{ij} - 1)$."""
    return jnp.sum(sampled.costs() ** 2 * (1 / jnp.asarray(sampled.probabilities, float) - 1))


class Pruning(AbstractTheorem):
    r"""Removed weights cost the inverse of a block of $H^{-1}$ once the others are refitted;
    without the $k$ largest entries at most $\lVert W\rVert_1/(2\sqrt k)$ is left; a pattern of n
    in m loses the share $1 - n/m$ at most; and no unbiased choice at random beats one by cost.
    """

    refitted: Refitted = Refitted()
    as_they_are: AsTheyAre = AsTheyAre()
    entries: Entries = Entries()
    singular_values: SingularValues = SingularValues()
    pattern: Pattern = Pattern()
    gaussian_pattern: GaussianPattern = GaussianPattern()
    unbiased: Unbiased = Unbiased()
    least_variance: LeastVariance = LeastVariance()


pruning = Pruning()
