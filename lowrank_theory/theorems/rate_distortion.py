r"""What so many bits must lose, whatever the code, and low rank beside it.

**Model.** $W$ (N, K) are weights of i.i.d. $N(0, \sigma^2)$ entries, independent of the activations
$X$ and of the code; $\lambda_i$ are the eigenvalues of $X^\top X$. A code of $B$ bits makes $\hat
W$ of one of $2^B$ codewords; it may know $X$.

**Claims** (proved in paper_notes/rate_distortion.md):

- `allocation` (sure): if component $i$ of variance $l_i$ gets $b_i \ge 0$ bits, $\sum_il_i4^{-b_i}
  \ge \sum_i\min(\theta, l_i)$ with $\tfrac12\sum_i\log_2^+(l_i/\theta) = \sum_ib_i$; attained by
  reverse water-filling, $b_i = \tfrac12\log_2^+(l_i/\theta)$.
- `floor` (in expectation): $\mathbb E\lVert X(W - \hat W)\rVert_F^2 \ge K\sum_i\min(\theta,
  \lambda_i\sigma^2)$ with $\tfrac K2\sum_i\log_2^+(\lambda_i\sigma^2/\theta) = B$, for every code
  and all sizes (Shannon 1959). `lowrank_theory.rate_distortion` computes it.
- `low_rank` (in expectation): $\mathbb E\lVert W - [W]_r\rVert_F^2 \ge (1 - 2\rho)NK\sigma^2$,
  where the factors have the share $\rho = r(N + K)/(NK)$ of the numbers. With 16 bits for each of
  these, codes could reach $4^{-16\rho}$ where inputs are white too.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Key, matmul, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    check_array,
    check_count,
    check_rank,
    check_same,
    keep,
    settle,
)
from lowrank_theory._random import normal, split
from lowrank_theory.approximations import Quantised
from lowrank_theory.quantisation import gptq
from lowrank_theory.rate_distortion import distortion_floor
from lowrank_theory.recovery import truncated_svd
from lowrank_theory.theorems._quantities import (
    as_floats,
    as_known,
    frobenius,
    law_hypothesis,
    squared,
)
from lowrank_theory.theorems._stepped import correlated_rows, damped_moments
from lowrank_theory.theorems._theorem import (
    LOWER,
    LOWER_IN_EXPECTATION,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)

# Of the best uniform quantiser of a standard normal number (Max 1960), for one to eight bits.
STEPS = (1.596, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0568, 0.0308)


class Allocation(eqx.Module):
    """Variances (components,), and the bits that each gets.

    Raises `ValueError` for arrays that do not fit, and for negative ones.
    """

    variances: Float[AnyArray, " components"]
    bits: Float[AnyArray, " components"]

    def __init__(self, variances: ArrayLike, bits: ArrayLike) -> None:
        self.variances = check_array("variances", variances, "components")
        self.bits = check_array("bits", bits, "components")
        check_same("bits", self.bits.size, "variances", self.variances.size, "components")
        for name in ("variances", "bits"):
            array = getattr(self, name)
            if isinstance(array, np.ndarray) and array.min() < 0:
                raise ValueError(f"`{name}` must not be negative; got {array.min():.3g}.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.variances.shape


class AllocationSetting(eqx.Module):
    """Log-normal variances of a `spread`, and exponential bits of a `mean`."""

    components: int
    spread: float | np.ndarray = eqx.field(default=1.0, converter=as_floats)
    mean: float | np.ndarray = eqx.field(default=1.0, converter=as_floats)

    def __check_init__(self) -> None:
        settle(self, "components", check_count, 1)

    @of_either_key
    def draw(self, *, key: Key) -> Allocation:
        """Random variances and bits, in float64."""
        size, bits = split(key)
        variances = namespace(key).exp(self.spread * normal(size, (self.components,)))
        return Allocation(variances, self.mean * normal(bits, (self.components,)) ** 2)


_ALLOCATED = {
    "alike": AllocationSetting(10, spread=0.1),
    "spread": AllocationSetting(10, spread=3.0),
    "few bits": AllocationSetting(10, mean=0.05),
    "many bits": AllocationSetting(10, mean=10.0),
}


class CodedWeights(eqx.Module):
    r"""Weights $W$ (inputs, outputs) seen through `activations` $X$ (samples, inputs), of which a
    code keeps `bits` bits each, and low rank the `rank`.

    `scale` $\sigma$, where the weights are independent Gaussian numbers of this standard deviation
    that look at nothing, which `gaussian` says. Raises `ValueError` for arrays that do not fit, and
    for bits or a rank that there are not.
    """

    weights: Float[AnyArray, "inputs outputs"]
    activations: Float[AnyArray, "samples inputs"]
    scale: Float[AnyArray, ""] | float
    gaussian: Bool[AnyArray, ""]
    bits: int = eqx.field(static=True)
    rank: int = eqx.field(static=True)

    def __init__(
        self,
        weights: ArrayLike,
        activations: ArrayLike,
        bits: int,
        *,
        scale: Any = 1.0,
        rank: int = 1,
        gaussian: Any = False,
    ) -> None:
        self.weights = check_array("weights", weights, "inputs", "outputs")
        self.activations = check_array("activations", activations, "samples", "inputs")
        inputs = self.weights.shape[0]
        check_same("activations", self.activations.shape[1], "weights", inputs, "inputs")
        self.bits, self.rank, self.scale = bits, rank, scale
        self.gaussian = as_known(gaussian)
        settle(self, "bits", check_count, 0, 8)
        settle(self, "rank", check_count, 1, min(self.weights.shape))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return (*self.activations.shape, self.weights.shape[1])

    def rows(self) -> Float[Array, "samples inputs"]:
        """$X$."""
        return jnp.asarray(self.activations, float)

    def exact(self) -> Float[Array, "inputs outputs"]:
        """$W$."""
        return jnp.asarray(self.weights, float)


class CodedWeightsSetting(eqx.Module):
    """Correlated rows and Gaussian weights of a `scale`."""

    samples: int
    inputs: int
    outputs: int
    bits: int
    rank: int = 1
    scale: float | np.ndarray = eqx.field(default=1.0, converter=as_floats)
    decay: float | np.ndarray = eqx.field(default=0.0, converter=as_floats)
    correlated: float | np.ndarray = eqx.field(default=1.0, converter=as_floats)

    def __check_init__(self) -> None:
        for name in ("samples", "inputs", "outputs"):
            settle(self, name, check_count, 1)
        settle(self, "bits", check_count, 0, 8)
        keep(self, "rank", check_rank(self.rank, self.inputs, self.outputs))

    @of_either_key
    def draw(self, *, key: Key) -> CodedWeights:
        """A random layer, in float64."""
        xp, (row_key, weight_key) = namespace(key), split(key)
        rows = correlated_rows(row_key, (self.samples, self.inputs), self.decay, self.correlated)
        scale, known = xp.asarray(self.scale), xp.asarray(True)
        weights = scale * normal(weight_key, (self.inputs, self.outputs))
        return CodedWeights(weights, rows, self.bits, scale=scale, rank=self.rank, gaussian=known)


_SHAPE: dict[str, Any] = {"samples": 32, "inputs": 16, "outputs": 16}
_WEIGHTS = {
    "one bit": CodedWeightsSetting(**_SHAPE, bits=1),
    "two bits, inputs that decay": CodedWeightsSetting(**_SHAPE, bits=2, decay=1.0, scale=1e-3),
    "four bits": CodedWeightsSetting(**_SHAPE, bits=4),
}
_RANKS = {
    "rank one": CodedWeightsSetting(**_SHAPE, bits=1),
    "rank three": CodedWeightsSetting(**_SHAPE, bits=1, rank=3, scale=1e3),
}


class FreeAllocation(AbstractAdversary):
    """Any variances of four components and any bits."""

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Logarithms of variances, and roots of bits."""
        size, bits = jax.random.split(key)
        return normal(size, (4,)), normal(bits, (4,))

    def play(self, free: tuple[Array, Array]) -> tuple[Allocation, None]:
        """The allocation."""
        logarithms, roots = free
        return Allocation(jnp.exp(logarithms), roots**2), None


class AllocationIsWorse(AbstractStatement):
    r"""$\sum_il_i4^{-b_i} \ge \sum_i\min(\theta, l_i)$. In units of a variance."""

    kind = LOWER
    needs = Allocation
    regimes = _ALLOCATED
    control = _ALLOCATED["alike"]
    adversary = FreeAllocation()
    sharp = True

    def hypotheses(self, instance: Allocation) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def estimate(self, instance: Allocation) -> Float[Array, " components"]:
        """What is left of each component."""
        return jnp.asarray(instance.variances, float) * 4.0 ** -jnp.asarray(instance.bits, float)

    def broken_estimate(self, instance: Allocation) -> Float[Array, " components"]:
        """With two bits more than each was given."""
        return self.estimate(instance) / 16

    def formula(self, instance: Allocation, estimate: Array) -> Float[Array, ""]:
        r"""$\sum_i\min(\theta, l_i)$."""
        return distortion_floor(
            jnp.asarray(instance.variances, float), jnp.sum(jnp.asarray(instance.bits, float))
        )

    def loss(self, instance: Allocation, estimate: Array) -> Float[Array, ""]:
        r"""$\sum_il_i4^{-b_i}$."""
        return jnp.sum(estimate)

    def magnitude(self, instance: Allocation) -> Float[Array, ""]:
        r"""$\sum_il_i$ times one more than the bits, of which a rounding moves the power."""
        bits = jnp.sum(jnp.asarray(instance.bits, float))
        return jnp.sum(jnp.asarray(instance.variances, float)) * (1 + bits)


class AbstractCode(AbstractStatement):
    """A mean over Gaussian weights, squared."""

    kind = LOWER_IN_EXPECTATION
    needs = CodedWeights

    def hypotheses(self, instance: CodedWeights) -> tuple[Hypothesis, ...]:
        """A law of the weights."""
        name = "the weights are i.i.d. Gaussian of known size, and depend on nothing"
        return (law_hypothesis(name, instance.gaussian),)


class Floor(AbstractCode):
    r"""$\mathbb E\lVert X(W - \hat W)\rVert_F^2 \ge K\sum_i\min(\theta, \lambda_i\sigma^2)$."""

    regimes = _WEIGHTS
    control = _WEIGHTS["two bits, inputs that decay"]
    refuted_below = Refuted(1.0, "no bits: zero is the best code, and loses all")

    def estimate(self, instance: CodedWeights) -> Float[Array, "inputs outputs"]:
        """Rounded in turn to the levels that are best for a normal number, which take no bits."""
        shape = instance.weights.shape
        if not instance.bits:
            return jnp.zeros(shape)
        step = jnp.asarray(instance.scale, float) * STEPS[instance.bits - 1]
        middle = 2.0 ** (instance.bits - 1) - 0.5
        levels = Quantised.of(
            np.zeros(shape, np.uint8),
            jnp.full((1, shape[1]), step),
            jnp.full((1, shape[1]), middle),
            bits=instance.bits,
        )
        moments = damped_moments(instance.rows(), 0.01)
        found = gptq(instance.exact(), moments, levels, ordered=False, damping=0.0)
        return jnp.asarray(found.materialise(), float)

    def broken_estimate(self, instance: CodedWeights) -> Float[Array, "inputs outputs"]:
        """Weights as they are, up to a hundredth: in more bits than there are."""
        return 0.99 * instance.exact()

    def formula(self, instance: CodedWeights, estimate: Array) -> Float[Array, ""]:
        r"""$K\sum_i\min(\theta, \lambda_i\sigma^2)$."""
        rows, (inputs, outputs) = instance.rows(), instance.weights.shape
        return distortion_floor(
            jnp.linalg.eigvalsh(matmul(rows.T, rows)),
            float(instance.bits * inputs * outputs),
            outputs=outputs,
            weight_scale=jnp.asarray(instance.scale, float),
        )

    def loss(self, instance: CodedWeights, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert X(W - \hat W)\rVert_F^2$."""
        return squared(frobenius(matmul(instance.rows(), instance.exact() - estimate)))

    def magnitude(self, instance: CodedWeights) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F^2\lVert W\rVert_F^2$."""
        return squared(frobenius(instance.activations)) * squared(frobenius(instance.weights))


class LowRank(AbstractCode):
    r"""$\mathbb E\lVert W - [W]_r\rVert_F^2 \ge (1 - 2\rho)NK\sigma^2$, $\rho = r(N +
    K)/(NK)$.
    """

    regimes = _RANKS
    control = _RANKS["rank one"]
    refuted_below = Refuted(1.0, "large weights of low rank, of which nearly all is lost")

    def estimate(self, instance: CodedWeights) -> Float[Array, "inputs outputs"]:
        """$[W]_r$."""
        factors, _ = truncated_svd(instance.exact(), rank=instance.rank)
        return matmul(factors.left, factors.right)

    def broken_estimate(self, instance: CodedWeights) -> Float[Array, "inputs outputs"]:
        """Weights as they are, up to a hundredth."""
        return 0.99 * instance.exact()

    def formula(self, instance: CodedWeights, estimate: Array) -> Float[Array, ""]:
        r"""$(1 - 2\rho)NK\sigma^2$."""
        inputs, outputs = instance.weights.shape
        left = inputs * outputs - 2.0 * instance.rank * (inputs + outputs)
        return squared(jnp.asarray(instance.scale, float)) * left

    def loss(self, instance: CodedWeights, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert W - [W]_r\rVert_F^2$."""
        return squared(frobenius(instance.exact() - estimate))

    def magnitude(self, instance: CodedWeights) -> Float[Array, ""]:
        r"""$\lVert W\rVert_F^2$."""
        return squared(frobenius(instance.weights))


class RateDistortion(AbstractTheorem):
    r"""No code of $B$ bits, of Gaussian weights, is better than reverse water-filling over the
    eigenvalues of $X^\top X$; of white weights low rank leaves at least the share $1 - 2\rho$.
    """

    allocation: AllocationIsWorse = AllocationIsWorse()
    floor: Floor = Floor()
    low_rank: LowRank = LowRank()


rate_distortion = RateDistortion()
