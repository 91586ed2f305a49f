r"""What rounding the factors of a layer costs, and which factors to round.

**Model.** A layer that sees $X$ (m, N) is $LR$, with $L$ (N, r) and $R$ (r, K). The entries of the
factors get independent errors of mean zero and variances $a$ and $b$, those of a subtractive dither
on grids of steps $\Delta_L$, $\Delta_R$: $a = \Delta_L^2/12$, $b = \Delta_R^2/12$. The layer is the
same for the factors $LA$, $A^{-1}R$, $A$ any invertible matrix.

**Claims** (proved in paper_notes/quantised_factors.md):

- `cost` (in expectation, equality): $\mathbb E\lVert X(\hat L\hat R - LR)\rVert_F^2 = c(L, R) =
  a\lVert X\rVert_F^2\lVert R\rVert_F^2 + bK\lVert XL\rVert_F^2 + abrK\lVert X\rVert_F^2$.
- `any_factors` (sure): $c(L, R) \ge 2\sqrt{abK}\,\lVert X\rVert_F\lVert XLR\rVert_\ast +
  abrK\lVert X\rVert_F^2$, the nuclear norm of the outputs, for all factors of the layer.
- `balanced` (sure, equality): which is the cost of $XL = tP\Sigma^{1/2}$, $R =
  t^{-1}\Sigma^{1/2}Q^\top$ with $XLR = P\Sigma Q^\top$ and $t^2 = \lVert X\rVert_F\sqrt{a/(bK)}$.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._arrays import Key, matmul, namespace, of_either_key
from lowrank_theory._numerics import check_count, safe_divide, settle
from lowrank_theory._random import normal, split, uniform
from lowrank_theory.generators import noise
from lowrank_theory.theorems._quantities import frobenius, singular_values, squared
from lowrank_theory.theorems._stepped import SteppedLayer, correlated_rows, independent_weights
from lowrank_theory.theorems._theorem import (
    EQUALITY,
    EQUALITY_IN_EXPECTATION,
    LOWER,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)


class FactoredLayer(eqx.Module):
    """Two layers to be rounded, one after the other: the second sees the outputs of the first.

    Raises `ValueError` where the first has not as many outputs as the second has inputs.
    """

    first: SteppedLayer
    second: SteppedLayer

    def __init__(self, first: SteppedLayer, second: SteppedLayer) -> None:
        if first.weights.shape[1] != second.weights.shape[0]:
            raise ValueError(
                f"`second` must have an input for each output of `first`, "
                f"{first.weights.shape[1]}; got {second.weights.shape[0]}."
            )
        self.first, self.second = first, second

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return (*self.first.sizes, self.second.weights.shape[1])

    def factors(self) -> tuple[Float[Array, "inputs rank"], Float[Array, "rank outputs"]]:
        """$L$, $R$."""
        return self.first.exact(), self.second.exact()

    def variances(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """$a$, $b$."""
        steps = (jnp.asarray(each.step, float) for each in (self.first, self.second))
        a, b = (squared(step) / 12 for step in steps)
        return a, b

    def cost(self, left: Array, right: Array) -> Float[Array, ""]:
        """$c(L, R)$ of such factors."""
        (a, b), rows = self.variances(), self.first.rows()
        energy, (rank, outputs) = squared(frobenius(rows)), right.shape
        first = a * energy * squared(frobenius(right))
        second = b * outputs * squared(frobenius(matmul(rows, left)))
        return first + second + self.both(rank, outputs)

    def both(self, rank: int, outputs: int) -> Float[Array, ""]:
        r"""$abrK\lVert X\rVert_F^2$."""
        a, b = self.variances()
        return a * b * rank * outputs * squared(frobenius(self.first.activations))

    def least(self) -> Float[Array, ""]:
        """The least cost of all factors of the layer."""
        (a, b), rows, (left, right) = self.variances(), self.first.rows(), self.factors()
        rank, outputs = right.shape
        nuclear = jnp.sum(singular_values(matmul(rows, left, right))[:rank])
        leading = 2 * jnp.sqrt(a * b * outputs) * frobenius(rows) * nuclear
        return leading + self.both(rank, outputs)

    def balanced(self) -> tuple[Float[Array, "inputs rank"], Float[Array, "rank outputs"]]:
        """The factors of least cost."""
        (a, b), rows, (left, right) = self.variances(), self.first.rows(), self.factors()
        rank, outputs = right.shape
        _, values, vectors = jnp.linalg.svd(matmul(rows, left, right), full_matrices=False)
        roots = jnp.sqrt(values[:rank])
        turn = jnp.sqrt(frobenius(rows) * jnp.sqrt(a / (b * outputs)))
        found = safe_divide(roots, turn)[:, None] * vectors[:rank]
        inverse = vectors[:rank].T * safe_divide(turn, roots)
        return matmul(left, matmul(right, inverse)), found


class FactoredSetting(eqx.Module):
    """Correlated rows, and factors of independent entries, rounded to steps of which `first` and
    `second` make their largest entries.
    """

    samples: int
    inputs: int
    outputs: int
    rank: int
    law: noise.AbstractNoise = noise.Gaussian(1.0)
    decay: float | np.ndarray = eqx.field(default=0.0, converter=np.asarray)
    first: float | np.ndarray = eqx.field(default=8.0, converter=np.asarray)
    second: float | np.ndarray = eqx.field(default=8.0, converter=np.asarray)

    def __check_init__(self) -> None:
        for name in ("samples", "inputs", "outputs", "rank"):
            settle(self, name, check_count, 1)

    @of_either_key
    def draw(self, *, key: Key) -> FactoredLayer:
        """A random layer, in float64."""
        xp, (row_key, *keys) = namespace(key), split(key, 5)
        rows = correlated_rows(row_key, (self.samples, self.inputs), self.decay, 0.5)
        shapes = (self.inputs, self.rank), (self.rank, self.outputs)
        left, right = (
            independent_weights(self.law, each, shape)
            for shape, each in zip(shapes, keys[:2], strict=True)
        )
        sees, layers = rows, []
        for factor, reach, each in zip(
            (left, right), (self.first, self.second), keys[2:], strict=True
        ):
            step, dither = xp.max(xp.abs(factor)) / reach, uniform(each, factor.shape)
            step, known = xp.asarray(step), xp.asarray(True)
            layers.append(SteppedLayer(factor, sees, step, dither=dither, uniform=known))
            sees = matmul(rows, left)
        return FactoredLayer(*layers)


def _regimes(**shape: int) -> dict[str, FactoredSetting]:
    sizes: dict[str, Any] = shape
    return {
        "Gaussian": FactoredSetting(**sizes),
        "Laplace, inputs that decay": FactoredSetting(**sizes, law=noise.Laplace(1.0), decay=0.25),
        "few levels on the left": FactoredSetting(**sizes, first=1.5, second=20.0),
        "few levels on the right": FactoredSetting(**sizes, first=20.0, second=1.5),
    }


_REGIMES = _regimes(samples=24, inputs=12, outputs=8, rank=3)
_LARGE = _regimes(samples=96, inputs=48, outputs=48, rank=6)  # whose means are known sooner


class FreeFactors(AbstractAdversary):
    """Any factors of rank two, seen through the identity, and the ratio of steps."""

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array, Array]:
        """The factors, and the logarithm of the second step, the first of them one."""
        left_key, right_key, step_key = jax.random.split(key, 3)
        return normal(left_key, (3, 2)), normal(right_key, (2, 3)), normal(step_key, ())

    def play(self, free: tuple[Array, Array, Array]) -> tuple[FactoredLayer, None]:
        """The layer."""
        left, right, power = free
        first = SteppedLayer(left, jnp.eye(3), jnp.full((), 0.1))
        return FactoredLayer(first, SteppedLayer(right, left, 0.1 * jnp.exp(power))), None


class AbstractFactored(AbstractStatement):
    """A statement about rounded factors, in squared units of the outputs."""

    needs = FactoredLayer
    regimes = _REGIMES
    control = _REGIMES["few levels on the left"]

    def hypotheses(self, instance: FactoredLayer) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def magnitude(self, instance: FactoredLayer) -> Float[Array, ""]:
        """$c(L, R)$ and what it is computed from."""
        return _size(instance)


class Cost(AbstractFactored):
    r"""$\mathbb E\lVert X(\hat L\hat R - LR)\rVert_F^2 = c(L, R)$."""

    kind = EQUALITY_IN_EXPECTATION
    regimes = _LARGE
    control = _LARGE["few levels on the left"]

    def hypotheses(self, instance: FactoredLayer) -> tuple[Hypothesis, ...]:
        """Uniform dithers, and nothing is clipped."""
        layers = instance.first, instance.second
        return tuple(
            each
            for layer in layers
            for each in (layer.uniform_dither(), layer.within(layer.exact()))
        )

    def estimate(self, instance: FactoredLayer) -> Float[Array, "inputs outputs"]:
        r"""$\hat L\hat R$."""
        return matmul(instance.first.subtractively(), instance.second.subtractively())

    def broken_estimate(self, instance: FactoredLayer) -> Float[Array, "inputs outputs"]:
        """By a decoder that knows nothing of the dithers."""
        first, second = (
            layer.nearest(layer.exact() + layer.dithered())
            for layer in (instance.first, instance.second)
        )
        return matmul(first, second)

    def formula(self, instance: FactoredLayer, estimate: Array) -> Float[Array, ""]:
        """$c(L, R)$."""
        return instance.cost(*instance.factors())

    def loss(self, instance: FactoredLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert X(\hat L\hat R - LR)\rVert_F^2$."""
        error = estimate - matmul(*instance.factors())
        return squared(frobenius(matmul(instance.first.rows(), error)))


class AnyFactors(AbstractFactored):
    r"""$c(L, R) \ge 2\sqrt{abK}\,\lVert X\rVert_F\lVert XLR\rVert_\ast + abrK\lVert
    X\rVert_F^2$.
    """

    kind = LOWER
    adversary = FreeFactors()
    sharp = True

    def estimate(self, instance: FactoredLayer) -> tuple[Array, Array]:
        """The factors as they are."""
        return instance.factors()

    def broken_estimate(self, instance: FactoredLayer) -> tuple[Array, Array]:
        """Factors of a thousandth of the layer."""
        left, right = instance.factors()
        return left / 1000, right / 1000

    def formula(self, instance: FactoredLayer, estimate: Any) -> Float[Array, ""]:
        """The least cost."""
        return instance.least()

    def loss(self, instance: FactoredLayer, estimate: Any) -> Float[Array, ""]:
        """$c(L, R)$."""
        return instance.cost(*estimate)


class Balanced(AbstractFactored):
    r"""The cost of balanced factors is $2\sqrt{abK}\,\lVert X\rVert_F\lVert XLR\rVert_\ast +
    abrK\lVert X\rVert_F^2$.
    """

    kind = EQUALITY

    def estimate(self, instance: FactoredLayer) -> tuple[Array, Array]:
        """Balanced factors of the same layer."""
        return instance.balanced()

    def broken_estimate(self, instance: FactoredLayer) -> tuple[Array, Array]:
        """The factors as they are."""
        return instance.factors()

    def formula(self, instance: FactoredLayer, estimate: Any) -> Float[Array, ""]:
        """The least cost."""
        return instance.least()

    def loss(self, instance: FactoredLayer, estimate: Any) -> Float[Array, ""]:
        """$c(L, R)$ of these factors, and how far their product is from the layer."""
        missed = matmul(*estimate) - matmul(*instance.factors())
        away = squared(frobenius(matmul(instance.first.rows(), missed)))
        return instance.cost(*estimate) + away

    def magnitude(self, instance: FactoredLayer) -> Float[Array, ""]:
        """The same, times the condition of the factors, which are inverted."""
        left, right = instance.factors()
        seen = singular_values(matmul(instance.first.rows(), left))
        across = singular_values(right)
        condition = seen[0] * across[0] / jnp.maximum(seen[-1] * across[-1], 1e-300)
        return _size(instance) * condition


def _size(layer: FactoredLayer) -> Float[Array, ""]:
    r"""$c(L, R) + \lVert X\rVert_F^2\lVert L\rVert_F^2\lVert R\rVert_F^2$."""
    left, right = layer.factors()
    sizes = frobenius(layer.first.activations) * frobenius(left) * frobenius(right)
    return layer.cost(left, right) + squared(sizes)


class QuantisedFactors(AbstractTheorem):
    r"""Rounded factors cost $a\lVert X\rVert_F^2\lVert R\rVert_F^2 + bK\lVert XL\rVert_F^2 +
    abrK\lVert X\rVert_F^2$ in the mean; of all factors of a layer balanced ones cost least, by the
    nuclear norm of its outputs.
    """

    cost: Cost = Cost()
    any_factors: AnyFactors = AnyFactors()
    balanced: Balanced = Balanced()


quantised_factors = QuantisedFactors()
