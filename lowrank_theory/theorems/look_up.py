r"""What look-up tables can do, and what their parts cost.

**Model.** C codebooks of k codes give each of m rows one code each; $G$ (m, Ck) are the indicators,
$T$ (Ck, K) the entries, $GT$ the outputs, to be $Y$. $T_\lambda(Y) = (G^\top G + \lambda
I)^{-1}G^\top Y$ are ridge entries. $\lVert\cdot\rVert$ is the Frobenius norm.

**Claims** (proved in paper_notes/look_up.md):

- `low_rank` (sure): $\lVert Y - GT\rVert \ge (\sum_{i\gt C(k-1)+1}s_i(Y)^2)^{1/2}$ for any entries,
  since $G$ has at most that rank: a table of C codebooks is no better than low rank.
- `knowing_the_weights` (sure, equality): the outputs of entries fitted to $Y = AB$ err as those of
  prototypes fitted to $A$, times $B$, do: $\lVert AB - GT_\lambda(AB)\rVert = \lVert(A -
  GT_\lambda(A))B\rVert$, as $T_\lambda(AB) = T_\lambda(A)B$.
- `two_parts` (sure, equality): $\lVert Y - GT_\lambda(Y)\rVert^2 = \lVert(I-P)Y\rVert^2 +
  \sum_i(\frac\lambda{s_i^2+\lambda})^2\lVert u_i^\top Y\rVert^2$, with $s_i \gt 0$ and $u_i$ the
  singular values and left vectors of $G$: what the codes do not tell, and what the ridge takes.
- `size` (sure): $\lVert T_\lambda(Y)\rVert \le \lVert Y\rVert/(2\sqrt\lambda)$.
- `bytes` (sure): with one byte for each entry and a step $\Delta$, no output moves by more than
  $C\Delta/2$.
- `average` (in expectation, equality): C = $2^t$ independent bytes, uniform, averaged in pairs and
  rounded up at each level, and multiplied by C, exceed their sum by $Ct/4$ in the mean.
- `average_worst` (sure): by $Ct/2$ at most.
- `rows_to_come` (with probability $1-\delta$): for all entries $t$ of one output and all of $N$
  encoders that were fixed before the m rows, independent, with outputs $\lvert y\rvert \le Y$:
  $\mathbb E\min(\lvert y - f\rvert, b)$ is at most its mean over the rows plus $2r\sqrt{C/m} +
  b\sqrt{\ln(N(j+1)(j+2)/\delta)/(2m)}$, $r = 2^jY \ge \lVert t\rVert$ with the least $j \ge 0$.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Drawn, Key, after, matmul, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    check_array,
    check_count,
    check_positive,
    check_same,
    settle,
)
from lowrank_theory._random import normal, split
from lowrank_theory.theorems._byte_tables import Average, AverageWorst, Bytes, check_codes
from lowrank_theory.theorems._coded_rows import RowsToCome, indicators, ridge_entries
from lowrank_theory.theorems._quantities import frobenius, singular_values, squared, tail_norm
from lowrank_theory.theorems._theorem import (
    EQUALITY,
    LOWER,
    UPPER,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)


class CodedLayer(eqx.Module):
    r"""A layer whose rows have codes.

    - `activations` $A$ (samples, inputs), `weights` $B$ (inputs, outputs);
    - `codes` (samples, codebooks), integers from 0 to `count` - 1;
    - `ridge` $\lambda$, in rows.

    Raises `ValueError` for arrays that do not fit, empty or non-finite arrays, codes that there are
    not, and a ridge that is not positive.
    """

    activations: Float[AnyArray, "samples inputs"]
    weights: Float[AnyArray, "inputs outputs"]
    codes: Integer[AnyArray, "samples codebooks"]
    ridge: Float[AnyArray, ""] | float
    count: int = eqx.field(static=True)

    def __init__(
        self,
        activations: ArrayLike,
        weights: ArrayLike,
        codes: Any,
        *,
        count: int = 16,
        ridge: Any = 1.0,
    ) -> None:
        self.activations = check_array("activations", activations, "samples", "inputs")
        self.weights = check_array("weights", weights, "inputs", "outputs")
        check_same(
            "activations", self.activations.shape[1], "weights", self.weights.shape[0], "inputs"
        )
        self.count, self.ridge = count, ridge
        settle(self, "count", check_count, 1)
        self.codes = check_codes(codes, self.count)
        check_same("codes", self.codes.shape[0], "activations", self.activations.shape[0], "rows")
        if not isinstance(ridge, Tracer | jax.Array | np.ndarray):
            settle(self, "ridge", check_positive)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return (*self.activations.shape, self.weights.shape[1], self.count * self.codes.shape[1])

    def indicators(self) -> Float[Array, "samples codes"]:
        """$G$."""
        return indicators(self.codes, self.count)

    def outputs(self) -> Float[Array, "samples outputs"]:
        """$Y = AB$."""
        return matmul(jnp.asarray(self.activations, float), jnp.asarray(self.weights, float))


class CodedSetting(eqx.Module):
    r"""Gaussian rows of `rank` many hidden ones and noise, Gaussian weights, and codes by signs: a
    codebook of $2^d$ codes looks at d inputs, the next one at the next d, and so on in turn.
    """

    samples: int
    inputs: int
    outputs: int
    codebooks: int
    levels: int = 4
    ridge: float = 1.0
    rank: int = 4
    noise: float = 0.1

    def __check_init__(self) -> None:
        for name in ("samples", "inputs", "outputs", "codebooks", "levels", "rank"):
            settle(self, name, check_count, 1)
        settle(self, "ridge", check_positive)
        settle(self, "noise", check_positive, zero=True)

    @of_either_key
    def draw(self, *, key: Key) -> CodedLayer:
        """A random layer, in float64."""
        hidden_key, mixing_key, noise_key, weight_key = split(key, 4)
        hidden = normal(hidden_key, (self.samples, self.rank))
        mixing = normal(mixing_key, (self.rank, self.inputs))
        rows = matmul(hidden, mixing)
        rows = rows + self.noise * normal(noise_key, (self.samples, self.inputs))
        weights = normal(weight_key, (self.inputs, self.outputs))
        codes = _signs(rows, self.codebooks, self.levels)
        return CodedLayer(rows, weights, codes, count=2**self.levels, ridge=self.ridge)


def _signs(
    rows: Float[Drawn, "samples inputs"], codebooks: int, levels: int
) -> Int[Drawn, "samples codebooks"]:
    """Trees whose thresholds are all zero."""
    places = np.arange(codebooks * levels).reshape(codebooks, levels) % rows.shape[1]
    powers = 2 ** np.arange(levels)
    return namespace(rows).sum((rows[:, places] >= 0) * powers, axis=-1)


_SHAPE: dict[str, Any] = {"samples": 60, "inputs": 12, "outputs": 8, "codebooks": 2, "levels": 2}
_CODED: dict[str, CodedSetting] = {
    "low rank": CodedSetting(**_SHAPE),
    "white": CodedSetting(**{**_SHAPE, "rank": 12, "noise": 0.0}),
    "one codebook": CodedSetting(**{**_SHAPE, "codebooks": 1}),
    "two codes": CodedSetting(**{**_SHAPE, "levels": 1, "codebooks": 3}),
    "sixteen codes": CodedSetting(**{**_SHAPE, "levels": 4, "samples": 200}),
    "fewer rows than codes": CodedSetting(**{**_SHAPE, "levels": 4, "samples": 20}),
    "large ridge": CodedSetting(**{**_SHAPE, "ridge": 30.0}),
    "one output": CodedSetting(**{**_SHAPE, "outputs": 1}),
}


class FreeOutputs(AbstractAdversary):
    """Any outputs of six rows; codes have no derivative and are given, two codebooks of two codes
    that are met in all ways.
    """

    ridge: float = 1e-6

    def start(self, *, key: PRNGKeyArray) -> Array:
        """The outputs."""
        return normal(key, (6, 5))

    def play(self, free: Array) -> tuple[CodedLayer, None]:
        """The layer, whose rows are its outputs."""
        codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0, 1], [1, 0]])
        return CodedLayer(free, jnp.eye(5), codes, count=2, ridge=jnp.asarray(self.ridge)), None


class AlikeCodes(AbstractAdversary):
    r"""Any outputs of four rows, two of each code of one codebook, and any ridge."""

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array]:
        """The outputs, and the logarithm of the ridge."""
        row_key, ridge_key = jax.random.split(key)
        return normal(row_key, (4, 2)), normal(ridge_key, ())

    def play(self, free: tuple[Array, Array]) -> tuple[CodedLayer, None]:
        """The layer, whose rows are its outputs."""
        outputs, power = free
        codes = np.array([[0], [0], [1], [1]])
        return CodedLayer(outputs, jnp.eye(2), codes, count=2, ridge=jnp.exp(power)), None


class AbstractCoded(AbstractStatement):
    """A statement about codes and ridge entries, in the units of the outputs or their squares."""

    needs = CodedLayer
    regimes = _CODED
    control = _CODED["low rank"]

    def hypotheses(self, instance: CodedLayer) -> tuple[Hypothesis, ...]:
        """None."""
        return (Hypothesis("the ridge is positive", jnp.asarray(instance.ridge, float) - 1e-300),)

    def estimate(self, instance: CodedLayer) -> Float[Array, "rows columns"]:
        r"""$GT_\lambda(Y)$."""
        return _fitted(instance, instance.outputs())

    def broken_estimate(self, instance: CodedLayer) -> Float[Array, "rows columns"]:
        r"""$GT_{9\lambda}(Y)$."""
        return _fitted(instance, instance.outputs(), 9.0)


def _fitted(layer: CodedLayer, wanted: Array, factor: float = 1.0) -> Array:
    """What the entries for these outputs give."""
    design = layer.indicators()
    return matmul(design, ridge_entries(design, wanted, factor * jnp.asarray(layer.ridge, float)))


def _size(layer: CodedLayer) -> Float[Array, ""]:
    r"""$\lVert A\rVert\lVert B\rVert$."""
    return frobenius(layer.activations) * frobenius(layer.weights)


def _magnified(layer: CodedLayer) -> Float[Array, ""]:
    """The same, times what a small ridge magnifies."""
    samples, codebooks = layer.codes.shape
    return _size(layer) * (1 + samples * codebooks / jnp.asarray(layer.ridge, float))


class LowRank(AbstractCoded):
    r"""$\lVert Y - GT\rVert \ge (\sum_{i\gt C(k-1)+1}s_i(Y)^2)^{1/2}$."""

    kind = LOWER
    adversary = FreeOutputs()
    sharp = True

    def broken_estimate(self, instance: CodedLayer) -> Float[Array, "rows columns"]:
        """$Y$ itself."""
        return instance.outputs()

    def formula(self, instance: CodedLayer, estimate: Array) -> Float[Array, ""]:
        """The tail of the singular values."""
        rank = instance.codes.shape[1] * (instance.count - 1) + 1
        return tail_norm(singular_values(after(estimate, instance.outputs())), rank)

    def loss(self, instance: CodedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert Y - GT\rVert$."""
        return frobenius(instance.outputs() - estimate)

    def magnitude(self, instance: CodedLayer) -> Float[Array, ""]:
        r"""$\lVert A\rVert\lVert B\rVert$."""
        return _size(instance)


class KnowingTheWeights(AbstractCoded):
    r"""$\lVert AB - GT_\lambda(AB)\rVert = \lVert(A - GT_\lambda(A))B\rVert$."""

    kind = EQUALITY

    def formula(self, instance: CodedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert(A - GT_\lambda(A))B\rVert$."""
        rows = after(estimate, jnp.asarray(instance.activations, float))
        return frobenius(matmul(rows - _fitted(instance, rows), instance.weights))

    def loss(self, instance: CodedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert AB - GT_\lambda(AB)\rVert$."""
        return frobenius(instance.outputs() - estimate)

    def magnitude(self, instance: CodedLayer) -> Float[Array, ""]:
        r"""$\lVert A\rVert\lVert B\rVert(1 + mC/\lambda)$."""
        return _magnified(instance)


class TwoParts(AbstractCoded):
    r"""$\lVert Y - GT_\lambda\rVert^2 = \lVert(I-P)Y\rVert^2 + \sum_i(\frac\lambda{s_i^2 +
    \lambda})^2\lVert u_i^\top Y\rVert^2$.
    """

    kind = EQUALITY

    def formula(self, instance: CodedLayer, estimate: Array) -> Float[Array, ""]:
        """What the codes do not tell, and what the ridge takes."""
        outputs, design = instance.outputs(), after(estimate, instance.indicators())
        vectors, values, _ = jnp.linalg.svd(design, full_matrices=False)
        there = values > 1e-9 * values[0]
        seen = matmul((vectors * there).T, outputs)
        ridge = jnp.asarray(instance.ridge, float)
        taken = jnp.where(there, ridge / (values**2 + ridge), 0)
        missed = frobenius(outputs - matmul(vectors, seen))
        return squared(missed) + squared(frobenius(taken[:, None] * seen))

    def loss(self, instance: CodedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert Y - GT_\lambda\rVert^2$."""
        return squared(frobenius(instance.outputs() - estimate))

    def magnitude(self, instance: CodedLayer) -> Float[Array, ""]:
        r"""$(\lVert A\rVert\lVert B\rVert)^2(1 + mC/\lambda)$."""
        return _size(instance) * _magnified(instance)


class Size(AbstractCoded):
    r"""$\lVert T_\lambda(Y)\rVert \le \lVert Y\rVert/(2\sqrt\lambda)$."""

    kind = UPPER
    adversary = AlikeCodes()
    sharp = True

    def estimate(self, instance: CodedLayer) -> Float[Array, "rows columns"]:
        r"""$T_\lambda(Y)$."""
        return ridge_entries(instance.indicators(), instance.outputs(), instance.ridge)

    def broken_estimate(self, instance: CodedLayer) -> Float[Array, "rows columns"]:
        r"""$9T_\lambda(Y)$."""
        return 9 * self.estimate(instance)

    def formula(self, instance: CodedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert Y\rVert/(2\sqrt\lambda)$."""
        return frobenius(instance.outputs()) / (2 * jnp.sqrt(jnp.asarray(instance.ridge, float)))

    def loss(self, instance: CodedLayer, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert T_\lambda(Y)\rVert$."""
        return frobenius(estimate)

    def magnitude(self, instance: CodedLayer) -> Float[Array, ""]:
        r"""$\lVert A\rVert\lVert B\rVert(1 + mC/\lambda)/\sqrt\lambda$."""
        return _magnified(instance) / jnp.sqrt(jnp.asarray(instance.ridge, float))


class LookUp(AbstractTheorem):
    r"""Tables of $C$ codebooks of $k$ codes are no better than rank $C(k-1)+1$; entries that know
    the weights are prototypes times weights; a byte for each entry costs $C\Delta/2$, and averages
    in the place of sums $\tfrac14C\log_2C$ in the mean; what is lost on rows to come
    exceeds what is lost on those that were seen by the size of the entries over $\sqrt m$.
    """

    low_rank: LowRank = LowRank()
    knowing_the_weights: KnowingTheWeights = KnowingTheWeights()
    two_parts: TwoParts = TwoParts()
    size: Size = Size()
    bytes: Bytes = Bytes()
    average: Average = Average()
    average_worst: AverageWorst = AverageWorst()
    rows_to_come: RowsToCome = RowsToCome()


look_up = LookUp()
