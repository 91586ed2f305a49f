r"""When a sum of a low-rank and a sparse matrix has these two parts and no others nearby.

**Model.** $L = UDV^\top$ (N, K) has rank r, with orthonormal $U$ and $V$; its tangent space $T$ are
the $UA^\top + BV^\top$. $\Omega$ is a set of places, at most $p$ of them in a row and $q$ in a
column, and $M_\Omega$ is $M$ there and zero elsewhere. $\lVert\cdot\rVert$ is the operator norm.

**Claims** (sure; proved in paper_notes/low_rank_plus_sparse.md):

- `largest_entry`: $\max|M_{ij}| \le \xi\lVert M\rVert$ for $M \in T$, $\xi =
  \max_{ij}\sin\min(\theta_i + \varphi_j, \pi/2)$, where $\sin\theta_i$ and $\sin\varphi_j$ are the
  norms of row $i$ of $U$ and row $j$ of $V$. No smaller $\xi$ will do for any $L$ with rows and
  columns to spare; it is at most twice the larger sine (Chandrasekaran, Sanghavi, Parrilo and
  Willsky 2011).
- `few_entries`: $\lVert M_\Omega\rVert \le \sqrt{pq}\max|M_{ij}|$, attained by blocks of equal
  entries.
- `apart`: $\lVert M - M_\Omega\rVert \ge (1 - \xi\sqrt{pq})\lVert M\rVert$ for $M \in T$: so if
  $\xi\sqrt{pq} \lt 1$ nothing but zero is in both, and no small change of one part is one of the
  other.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Key, matmul, namespace, of_either_key
from lowrank_theory._numerics import AnyArray, check_array, check_count, settle
from lowrank_theory._random import normal, split
from lowrank_theory.theorems._quantities import frobenius, singular_values
from lowrank_theory.theorems._theorem import (
    LOWER,
    UPPER,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
    Refuted,
)


class TangentMatrix(eqx.Module):
    r"""Factors of $L$, `left` (inputs, rank) and `right` (rank, outputs); `across` $A^\top$ (rank,
    outputs) and `down` $B$ (inputs, rank) of a matrix of its tangent space; and `places` $\Omega$
    (inputs, outputs), true or false.

    Raises `ValueError` for arrays that do not fit, and where the rank is more than the sides.
    """

    left: Float[AnyArray, "inputs rank"]
    right: Float[AnyArray, "rank outputs"]
    across: Float[AnyArray, "rank outputs"]
    down: Float[AnyArray, "inputs rank"]
    places: Bool[AnyArray, "inputs outputs"]

    def __init__(
        self,
        left: ArrayLike,
        right: ArrayLike,
        across: ArrayLike,
        down: ArrayLike,
        places: Any,
    ) -> None:
        self.left = check_array("left", left, "inputs", "rank")
        self.right = check_array("right", right, "rank", "outputs")
        self.across = check_array("across", across, "rank", "outputs")
        self.down = check_array("down", down, "inputs", "rank")
        (inputs, rank), outputs = self.left.shape, self.right.shape[1]
        wanted = {
            "right": (rank, outputs),
            "across": (rank, outputs),
            "down": (inputs, rank),
            "places": (inputs, outputs),
        }
        self.places = places if isinstance(places, jax.Array) else np.asarray(places, bool)
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"`{name}` must be {shape}; got {getattr(self, name).shape}.")
        check_count("rank", rank, 1, min(inputs, outputs))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.places.shape

    def bases(self) -> tuple[Float[Array, "inputs rank"], Float[Array, "outputs rank"]]:
        """$U$, $V$."""
        left, right = jnp.asarray(self.left, float), jnp.asarray(self.right, float)
        return jnp.linalg.qr(left)[0], jnp.linalg.qr(right.T)[0]

    def matrix(self) -> Float[Array, "inputs outputs"]:
        r"""$M = UA^\top + BV^\top$."""
        first, second = self.bases()
        return matmul(first, self.across) + matmul(jnp.asarray(self.down, float), second.T)

    def coherence(self) -> Float[Array, ""]:
        r"""$\xi$."""
        return tangent_coherence(*self.bases())

    def crowd(self) -> Float[Array, ""]:
        r"""$\sqrt{pq}$."""
        places = jnp.asarray(self.places).astype(float)
        rows, columns = (jnp.max(jnp.sum(places, axis=axis)) for axis in (1, 0))
        return jnp.sqrt(rows * columns)

    def in_places(self, matrix: Array) -> Float[Array, "inputs outputs"]:
        r"""$M_\Omega$."""
        return jnp.where(jnp.asarray(self.places), matrix, 0)


def tangent_coherence(
    left: Float[Array, "inputs rank"], right: Float[Array, "outputs rank"]
) -> Float[Array, ""]:
    r"""$\max_{ij}\sin\min(\theta_i + \varphi_j, \pi/2)$ for orthonormal columns. Call it inside
    `float64`.
    """
    sine, other = (jnp.max(jnp.sum(basis**2, axis=1)) for basis in (left, right))
    sine, other = (jnp.sqrt(jnp.minimum(each, 1 - 1e-15)) for each in (sine, other))
    cosine, beside = jnp.sqrt(1 - sine**2), jnp.sqrt(1 - other**2)
    acute = cosine * beside > sine * other
    return jnp.where(acute, sine * beside + cosine * other, 1.0)


class TangentSetting(eqx.Module):
    """Gaussian factors, whose first entries are `first` times as large, or of signs (`flat`); a
    Gaussian matrix of the tangent space; and `crowd` places in each row and column, side by side.
    """

    size: int
    rank: int
    flat: bool | np.ndarray = eqx.field(default=False, converter=np.asarray)
    first: float | np.ndarray = eqx.field(default=1.0, converter=np.asarray)
    crowd: int | np.ndarray = eqx.field(default=1, converter=np.asarray)

    def __check_init__(self) -> None:
        settle(self, "size", check_count, 1)
        settle(self, "rank", check_count, 1, self.size)

    @of_either_key
    def draw(self, *, key: Key) -> TangentMatrix:
        """A random matrix, in float64."""
        xp, keys = namespace(key), split(key, 4)
        left, right, across, down = (normal(each, (self.size, self.rank)) for each in keys)
        place = xp.arange(self.size)
        first = xp.where(place == 0, self.first, 1.0)[:, None]
        left, right = (
            first * xp.where(self.flat, xp.sign(factor), factor) for factor in (left, right)
        )
        places = (place[None, :] - place[:, None]) % self.size < self.crowd
        return TangentMatrix(left, right.T, across.T, down, places)


_SIZE: dict[str, Any] = {"size": 32, "rank": 1}
_REGIMES = {
    "flat": TangentSetting(**_SIZE, flat=True, crowd=2),
    "Gaussian": TangentSetting(**_SIZE),
    "a spike": TangentSetting(**_SIZE, first=20.0),
    "many places": TangentSetting(**_SIZE, crowd=20),
}


class FreeTangent(AbstractAdversary):
    """Any factors of a matrix of four rows and columns and of rank one, and any matrix of its
    tangent space; the places have no derivative and are given, two in each row and column.
    """

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array, Array, Array]:
        """The factors, and the coordinates in the tangent space."""
        keys = jax.random.split(key, 4)
        left, right, across, down = (normal(each, (4, 1)) for each in keys)
        return left, right, across, down

    def play(self, free: tuple[Array, Array, Array, Array]) -> tuple[TangentMatrix, None]:
        """The matrix."""
        left, right, across, down = free
        places = np.kron(np.eye(2), np.ones((2, 2))) > 0
        return TangentMatrix(left, right.T, across.T, down, places), None


class MildTangent(AbstractAdversary):
    """The same of five rows and columns and one place in each, with factors of positive entries,
    whose signs are of no account.
    """

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array, Array, Array]:
        """Logarithms of the factors, and the coordinates."""
        keys = jax.random.split(key, 4)
        left, right, across, down = (normal(each, (5, 1)) for each in keys)
        return left / 10, right / 10, across, down

    def play(self, free: tuple[Array, Array, Array, Array]) -> tuple[TangentMatrix, None]:
        """The matrix."""
        left, right, across, down = free
        places = np.eye(5) > 0
        return TangentMatrix(jnp.exp(left), jnp.exp(right).T, across.T, down, places), None


class FlatTangent(AbstractAdversary):
    """A multiple of $L$ itself, of rank one: so that its entries in the places can be alike."""

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array]:
        """The factors."""
        left, right = jax.random.split(key)
        return normal(left, (4, 1)), normal(right, (4, 1))

    def play(self, free: tuple[Array, Array]) -> tuple[TangentMatrix, None]:
        """The matrix."""
        left, right = free
        places = np.kron(np.eye(2), np.ones((2, 2))) > 0
        return TangentMatrix(left, right.T, right.T, jnp.zeros((4, 1)), places), None


class AbstractTangent(AbstractStatement):
    """A statement about a matrix of a tangent space, in the units of its entries."""

    needs = TangentMatrix
    regimes = _REGIMES
    control = _REGIMES["flat"]

    def hypotheses(self, instance: TangentMatrix) -> tuple[Hypothesis, ...]:
        """None."""
        return ()

    def estimate(self, instance: TangentMatrix) -> Float[Array, "inputs outputs"]:
        """$M$."""
        return instance.matrix()

    def broken_estimate(self, instance: TangentMatrix) -> Float[Array, "inputs outputs"]:
        """A hundred times as much."""
        return 100 * instance.matrix()

    def magnitude(self, instance: TangentMatrix) -> Float[Array, ""]:
        r"""$\lVert A\rVert_F + \lVert B\rVert_F$."""
        return frobenius(instance.across) + frobenius(instance.down)


class LargestEntry(AbstractTangent):
    r"""$\max|M_{ij}| \le \xi\lVert M\rVert$."""

    kind = UPPER
    adversary = FreeTangent()
    sharp = True

    def formula(self, instance: TangentMatrix, estimate: Array) -> Float[Array, ""]:
        r"""$\xi\lVert M\rVert$."""
        return instance.coherence() * singular_values(estimate)[0]

    def loss(self, instance: TangentMatrix, estimate: Array) -> Float[Array, ""]:
        r"""$\max|M_{ij}|$."""
        return jnp.max(jnp.abs(estimate))


class FewEntries(AbstractTangent):
    r"""$\lVert M_\Omega\rVert \le \sqrt{pq}\max|M_{ij}|$."""

    kind = UPPER
    adversary = FlatTangent()
    sharp = True

    def formula(self, instance: TangentMatrix, estimate: Array) -> Float[Array, ""]:
        r"""$\sqrt{pq}\max|M_{ij}|$, in the places."""
        return instance.crowd() * jnp.max(jnp.abs(instance.in_places(estimate)))

    def loss(self, instance: TangentMatrix, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert M_\Omega\rVert$."""
        return singular_values(instance.in_places(estimate))[0]


class Apart(AbstractTangent):
    r"""$\lVert M - M_\Omega\rVert \ge (1 - \xi\sqrt{pq})\lVert M\rVert$."""

    kind = LOWER
    adversary = MildTangent()
    refuted_below = Refuted(1.0, "large flat matrices, few places: both sides tend to the norm")

    def broken_estimate(self, instance: TangentMatrix) -> Float[Array, "inputs outputs"]:
        """What is in the places, which is in no tangent space."""
        return instance.in_places(instance.matrix())

    def formula(self, instance: TangentMatrix, estimate: Array) -> Float[Array, ""]:
        r"""$(1 - \xi\sqrt{pq})\lVert M\rVert$, zero where this is negative."""
        left = 1 - instance.coherence() * instance.crowd()
        return jnp.maximum(left, 0) * singular_values(estimate)[0]

    def loss(self, instance: TangentMatrix, estimate: Array) -> Float[Array, ""]:
        r"""$\lVert M - M_\Omega\rVert$."""
        return singular_values(estimate - instance.in_places(estimate))[0]


class LowRankPlusSparse(AbstractTheorem):
    r"""A matrix of the tangent space of $L$ has no entry above $\xi$ times its norm, and few places
    hold at most $\sqrt{pq}$ times the largest entry: if $\xi\sqrt{pq} \lt 1$ a low-rank and a
    sparse part cannot be exchanged.
    """

    largest_entry: LargestEntry = LargestEntry()
    few_entries: FewEntries = FewEntries()
    apart: Apart = Apart()


low_rank_plus_sparse = LowRankPlusSparse()
