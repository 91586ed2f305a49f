r"""What an inexact computation of the data-driven layer costs, by the route that it took.

**Model.** The best rank-r layer projects on the leading right singular vectors $V_0$ of the outputs
$A = XW$ (paper_notes/best_possible.md). A computation finds those of something near by:

- the *Gram route* decomposes $A^\top A + \Delta$ with $\Delta$ symmetric (the rounding of
  $X^\top X$ and of the product with the weights, or a ridge);
- the *triangular route* decomposes $A + E$ (the rounding of an orthogonal decomposition is such a
  perturbation, up to a rotation from the left).

With $V$ the r leading vectors found, the error is $\lVert A(I - VV^\top)\rVert_F$; the optimum is
$\mathrm{tail}_r(A) = (\sum_{i>r}s_i(A)^2)^{1/2}$.

**Claims** (sure, in the realised perturbation; proved in paper_notes/numerical_route.md), with $K$
outputs and eigenvalues $\lambda_1(\Delta) \ge \dots \ge \lambda_K(\Delta)$:

- `gram` (squared): $\lVert A(I-VV^\top)\rVert_F^2 - \mathrm{tail}_r(A)^2 \le
  \sum_{i\le\min(r,K-r)}(\lambda_i(\Delta) - \lambda_{K+1-i}(\Delta)) \le
  2\min(r,K-r)\lVert\Delta\rVert$.
- `triangular`: $\lVert A(I-VV^\top)\rVert_F - \mathrm{tail}_r(A) \le
  \sqrt2\,\lVert E\rVert_{F,2r}$, the norm of the $2r$ largest singular values; so at most
  $\sqrt2\,\lVert E\rVert_F$, and at most $2\sqrt r\,\lVert E\rVert$.

All constants are attained, and no gap between singular values is asked for. The first bound is on a
square: rounding that moves the Gram by $u\lVert A\rVert^2$ may cost $\sqrt{2ru}\,\lVert A\rVert$,
rounding that moves the outputs by $u\lVert A\rVert$ no more than $2\sqrt r\,u\,\lVert A\rVert$.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Drawn, Key, after, matmul, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    check_array,
    check_count,
    check_rank,
    keep,
    rounding_allowance,
    safe_divide,
    settle,
)
from lowrank_theory._random import normal, split
from lowrank_theory._subspaces import leading_eigenvectors, leading_right_vectors
from lowrank_theory.generators.activations import haar
from lowrank_theory.theorems._quantities import frobenius, singular_values, squared, tail_norm
from lowrank_theory.theorems._theorem import (
    UPPER,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)


class Perturbed(eqx.Module):
    r"""Outputs $A$, a perturbation $\Delta$ of their Gram $A^\top A$, and a perturbation $E$ of
    themselves.

    Raises `ValueError` for wrong or mismatched shapes, integer dtypes, non-finite entries, or a
    rank that the outputs cannot have.
    """

    outputs: Float[AnyArray, "samples outputs"]
    gram_change: Float[AnyArray, "outputs outputs"]
    outputs_change: Float[AnyArray, "samples outputs"]
    rank: int = eqx.field(static=True)

    def __init__(
        self, outputs: ArrayLike, gram_change: ArrayLike, outputs_change: ArrayLike, rank: int
    ) -> None:
        self.outputs = check_array("outputs", outputs, "samples", "outputs")
        self.gram_change = check_array("gram_change", gram_change, "outputs", "outputs")
        self.outputs_change = check_array("outputs_change", outputs_change, "samples", "outputs")
        self.rank = check_rank(rank, *self.outputs.shape)
        count = self.outputs.shape[1]
        for name, wanted in (("gram_change", (count, count)), ("outputs_change", self.sizes)):
            got = tuple(getattr(self, name).shape)
            if got != wanted:
                raise ValueError(
                    f"`{name}` must have shape {wanted}, for `outputs` of shape {self.sizes}; "
                    f"got {got}."
                )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return tuple(self.outputs.shape)


def _number(value: Any) -> Array | np.ndarray:
    """An array, so that one compilation serves all its values."""
    return value if isinstance(value, Array) else np.asarray(value, float)


class RouteSetting(eqx.Module):
    r"""Outputs with the given singular values, and three sources of perturbation.

    Both perturbations are sums of three parts: independent Gaussian entries of standard deviation
    `strength` times the largest singular value of what is decomposed; rounding of every entry of it
    to `bits` significant bits; and `aim` times the perturbation that just makes the leading
    directions trade places with the next ones, each half way.
    """

    values: Float[AnyArray, " outputs"]
    samples: int
    rank: int
    strength: Float[AnyArray, ""] = eqx.field(converter=_number, default=0.0)
    bits: Float[AnyArray, ""] = eqx.field(converter=_number, default=52.0)
    aim: Float[AnyArray, ""] = eqx.field(converter=_number, default=0.0)

    def __check_init__(self) -> None:
        settle(self, "samples", check_count, np.shape(self.values)[0])
        keep(self, "rank", check_rank(self.rank, self.samples, np.shape(self.values)[0]))

    @of_either_key
    def draw(self, *, key: Key) -> Perturbed:
        """A random instance, in float64."""
        left_key, right_key, gram_key, outputs_key = split(key, 4)
        values = namespace(key).asarray(self.values, float)
        count = values.size
        left = haar(self.samples, count, key=left_key)
        right = haar(count, count, key=after(left, right_key))
        outputs = matmul(left * values, right.T)
        gram = matmul(outputs.T, outputs)

        wild = normal(gram_key, (count, count))
        gram_change = self.strength * values[0] ** 2 * (wild + wild.T) / math.sqrt(2)
        gram_change += matmul(right * _trade(values**2, self.rank, self.aim), right.T)
        gram_change += _rounded(gram, self.bits) - gram

        outputs_change = self.strength * values[0] * normal(outputs_key, outputs.shape)
        outputs_change += matmul(left * _trade(values, self.rank, self.aim), right.T)
        outputs_change += _rounded(outputs, self.bits) - outputs
        return Perturbed(outputs, (gram_change + gram_change.T) / 2, outputs_change, self.rank)


def _trade(values: Float[Drawn, " count"], rank: int, aim: Any) -> Float[Drawn, " count"]:
    """Half of what the leading numbers have more than the next ones, taken from them and given."""
    xp, pairs = namespace(values), min(rank, values.size - rank)
    half = aim * (values[:pairs] - values[rank : rank + pairs]) / 2
    between, rest = xp.zeros(rank - pairs), xp.zeros(values.size - rank - pairs)
    return xp.concatenate([-half, between, half, rest])


def _rounded(matrix: Float[Drawn, "..."], bits: Any) -> Float[Drawn, "..."]:
    """The entries with `bits` significant bits."""
    xp = namespace(matrix)
    mantissa, exponent = xp.frexp(matrix)
    scale = 2.0 ** xp.asarray(bits, float)
    return xp.ldexp(xp.round(mantissa * scale) / scale, exponent)


_SAMPLES, _SIZE, _RANK = 16, 10, 3
_INDEX = np.arange(1.0, _SIZE + 1)
_POWER_LAW = 1 / _INDEX
_TWO_LEVELS = np.where(_INDEX <= _RANK, 2.0, 1.0)
_STEEP = 10.0 ** -(_INDEX - 1)
_EXACT = np.where(_INDEX <= _RANK, 1.0, 0.0)


def _regime(values: np.ndarray, **sources: float) -> RouteSetting:
    return RouteSetting(values, _SAMPLES, _RANK, **sources)


_REGIMES = {
    "random perturbation": _regime(_POWER_LAW, strength=0.03),
    "large random perturbation": _regime(_POWER_LAW, strength=1.0),
    "eight bits": _regime(_POWER_LAW, bits=8.0),
    "ties": _regime(np.ones(_SIZE), strength=0.01),
    "massive direction, 24 bits": _regime(np.where(_INDEX == 1, 1e4, _POWER_LAW), bits=24.0),
    "steep decay, 24 bits": _regime(_STEEP, bits=24.0),
    "exactly low rank": _regime(_EXACT, strength=1e-4),
    "aimed, two levels": _regime(_TWO_LEVELS, aim=1.001),
    "aimed, exactly low rank": _regime(_EXACT, aim=1.001),
}
_SMALL = _regime(_POWER_LAW, strength=1e-3)


def _error(instance: Perturbed, vectors: Array) -> Array:
    """$A(I - VV^T)$."""
    outputs = jnp.asarray(instance.outputs, float)
    return outputs - matmul(outputs, vectors, vectors.T)


_APART = 1e-6  # a tie is approached, so that the estimator decides as the adversary does


class RouteAdversary(AbstractAdversary):
    r"""All instances up to rotations: what is decomposed is block diagonal, its first block the
    larger, so that the vectors found are known; $A$ and the perturbation are then anything.
    """

    samples: int = 3
    outputs: int = 3
    rank: int = 1

    def start(self, *, key: PRNGKeyArray) -> dict[str, Array]:
        """Outputs, what the first block has more than the other, and the other block."""
        keys = jax.random.split(key, 3)
        rest = self.outputs - self.rank
        return {
            "outputs": normal(keys[0], (self.samples, self.outputs)),
            "leading": normal(keys[1], (self.rank,)),
            "rest": normal(keys[2], (rest,)),
        }

    def play(self, free: dict[str, Array]) -> tuple[Perturbed, Array]:
        """The instance, and the first unit vectors."""
        outputs, rest = free["outputs"], free["rest"]
        leading = (1 + _APART) * jnp.max(jnp.abs(rest)) + free["leading"] ** 2
        decomposed = jnp.zeros_like(outputs)
        diagonal = jnp.concatenate([leading, rest])
        decomposed = decomposed.at[jnp.arange(self.outputs), jnp.arange(self.outputs)].set(diagonal)
        gram = matmul(outputs.T, outputs)
        found = Perturbed(outputs, jnp.diag(diagonal) - gram, decomposed - outputs, self.rank)
        return found, jnp.eye(self.outputs)[:, : self.rank]


class Gram(AbstractStatement):
    r"""$\lVert A(I-VV^\top)\rVert_F^2 - \sum_{i>r}s_i(A)^2 \le
    \sum_{i\le\min(r,K-r)}(\lambda_i(\Delta) - \lambda_{K+1-i}(\Delta))$. Squared.
    """

    kind = UPPER
    needs = Perturbed
    regimes = _REGIMES
    control = _SMALL
    adversary = RouteAdversary()
    sharp = True

    def hypotheses(self, instance: Perturbed) -> tuple[Hypothesis, ...]:
        """A symmetric perturbation, up to rounding."""
        change = jnp.asarray(instance.gram_change, float)
        size = frobenius(change)
        odd = frobenius(change - change.T)
        allowed = rounding_allowance(size, *instance.sizes)
        name = "the perturbation of the Gram is symmetric"
        return (Hypothesis(name, safe_divide(allowed - odd, size)),)

    def estimate(self, instance: Perturbed) -> Array:
        r"""The r leading eigenvectors of $A^\top A + \Delta$, as columns."""
        return leading_eigenvectors(_perturbed_gram(instance), instance.rank)[0]

    def broken_estimate(self, instance: Perturbed) -> Array:
        """The r last ones."""
        return leading_eigenvectors(-_perturbed_gram(instance), instance.rank)[0]

    def formula(self, instance: Perturbed, estimate: Array) -> Float[Array, ""]:
        r"""$\sum_{i\le\min(r,K-r)}(\lambda_i(\Delta) - \lambda_{K+1-i}(\Delta))$."""
        _, values = leading_eigenvectors(jnp.asarray(instance.gram_change, float), instance.rank)
        pairs = min(instance.rank, values.size - instance.rank)
        return jnp.sum(values[:pairs] - values[::-1][:pairs])

    def loss(self, instance: Perturbed, estimate: Array) -> Float[Array, ""]:
        """The excess of the squared error over the squared optimum."""
        squares = singular_values(jnp.asarray(instance.outputs, float)) ** 2
        return jnp.sum(_error(instance, estimate) ** 2) - jnp.sum(squares[instance.rank :])

    def magnitude(self, instance: Perturbed) -> Float[Array, ""]:
        r"""$\lVert A\rVert_F^2 + \lVert\Delta\rVert_F$."""
        change = jnp.asarray(instance.gram_change, float)
        return squared(frobenius(instance.outputs)) + frobenius(change)


def _perturbed_gram(instance: Perturbed) -> Array:
    outputs = jnp.asarray(instance.outputs, float)
    return matmul(outputs.T, outputs) + jnp.asarray(instance.gram_change, float)


class Triangular(AbstractStatement):
    r"""$\lVert A(I-VV^\top)\rVert_F - \bigl(\sum_{i>r}s_i(A)^2\bigr)^{1/2} \le \sqrt2\,\lVert
    E\rVert_{F,2r}$. Not squared.
    """

    kind = UPPER
    needs = Perturbed
    regimes = _REGIMES
    control = _SMALL
    adversary = RouteAdversary()
    sharp = True

    def hypotheses(self, instance: Perturbed) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def estimate(self, instance: Perturbed) -> Array:
        """The r leading right singular vectors of $A + E$, as columns."""
        return leading_right_vectors(_perturbed_outputs(instance), instance.rank)[0]

    def broken_estimate(self, instance: Perturbed) -> Array:
        """The r last ones."""
        matrix = _perturbed_outputs(instance)
        return leading_right_vectors(matrix, matrix.shape[1])[0][:, -instance.rank :]

    def formula(self, instance: Perturbed, estimate: Array) -> Float[Array, ""]:
        r"""$\sqrt2\,\lVert E\rVert_{F,2r}$."""
        values = singular_values(jnp.asarray(instance.outputs_change, float))
        return math.sqrt(2) * frobenius(values[: 2 * instance.rank])

    def loss(self, instance: Perturbed, estimate: Array) -> Float[Array, ""]:
        """The excess of the error over the optimum."""
        values = singular_values(jnp.asarray(instance.outputs, float))
        return frobenius(_error(instance, estimate)) - tail_norm(values, instance.rank)

    def magnitude(self, instance: Perturbed) -> Float[Array, ""]:
        r"""$\lVert A\rVert_F + \lVert E\rVert_F$."""
        parts = (instance.outputs, instance.outputs_change)
        return sum((frobenius(part) for part in parts), jnp.zeros(()))


def _perturbed_outputs(instance: Perturbed) -> Array:
    return jnp.asarray(instance.outputs, float) + jnp.asarray(instance.outputs_change, float)


class NumericalRoute(AbstractTheorem):
    """What rounding may cost the data-driven layer through the Gram matrix (on the square of the
    error) and through a triangular factor (on the error itself, with the sharp constant √2).
    """

    gram: Gram = Gram()
    triangular: Triangular = Triangular()


numerical_route = NumericalRoute()
