"""Sketches of a matrix: instances, settings, the range that is found and what is left outside."""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Key, matmul, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    Number,
    check_array,
    check_count,
    check_rank,
    check_same,
    keep,
    safe_divide,
    settle,
)
from lowrank_theory._random import normal, split
from lowrank_theory._subspaces import leading_right_vectors
from lowrank_theory.theorems._quantities import as_known, deviation, singular_values
from lowrank_theory.theorems._theorem import (
    AbstractAdversary,
)


def _whole(name: str, value: Any) -> Int[AnyArray, ""]:
    """A count as an array, so that one compilation serves all."""
    if isinstance(value, Array):
        return value
    return np.asarray(check_count(name, np.asarray(value).item(), 0))


class Sketched(eqx.Module):
    r"""A matrix $A$, the sketch $\Omega$ that meets it, the rank asked for and the number of power
    iterations.

    `gaussian` says whether the entries of the sketch are i.i.d. $N(0, 1)$, and `independent`
    whether they know nothing of the matrix, which no number shows. Raises `ValueError` for
    wrong or mismatched shapes, integer dtypes, non-finite entries, a rank that the matrix cannot
    have, or a sketch with fewer columns than the rank.
    """

    matrix: Float[AnyArray, "rows columns"]
    sketch: Float[AnyArray, "columns width"]
    power_iterations: Int[AnyArray, ""]
    gaussian: Bool[AnyArray, ""]
    rank: int = eqx.field(static=True)
    independent: Bool[AnyArray, ""]

    def __init__(
        self,
        matrix: ArrayLike,
        sketch: ArrayLike,
        power_iterations: Any,
        gaussian: Any,
        rank: int,
        *,
        independent: Any = False,
    ) -> None:
        self.matrix = check_array("matrix", matrix, "rows", "columns")
        self.sketch = check_array("sketch", sketch, "columns", "width")
        rows, columns = self.matrix.shape
        check_same("sketch", self.sketch.shape[0], "matrix", columns, "columns of the matrix")
        why = " (which the matrix can have, and the sketch find)"
        self.rank = check_count("rank", rank, 1, min(rows, *self.sketch.shape), why)
        self.power_iterations = _whole("power_iterations", power_iterations)
        self.gaussian, self.independent = as_known(gaussian), as_known(independent)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return tuple(self.matrix.shape)

    @property
    def oversampling(self) -> int:
        """$p$, by how many columns the sketch is wider than the rank."""
        return self.sketch.shape[1] - self.rank

    @property
    def values(self) -> Float[Array, " count"]:
        """The singular values of the matrix."""
        return singular_values(jnp.asarray(self.matrix, float))


class SketchSetting(eqx.Module):
    r"""A matrix with the given singular values, and a Gaussian sketch of it.

    The matrix is diagonal, which loses nothing: turning its singular vectors turns a Gaussian
    sketch into another one.
    """

    values: Float[AnyArray, " size"]
    rank: int
    oversampling: int
    power_iterations: Int[AnyArray, ""] = eqx.field(
        converter=functools.partial(_whole, "power_iterations"), default=0
    )

    def __check_init__(self) -> None:
        size = np.shape(self.values)[0]
        keep(self, "rank", check_rank(self.rank, size, size))
        settle(self, "oversampling", check_count, 0, size - self.rank)

    @of_either_key
    def draw(self, *, key: Key) -> Sketched:
        """A random instance, in float64."""
        xp = namespace(key)
        matrix, powers = xp.diag(xp.asarray(self.values, float)), xp.asarray(self.power_iterations)
        sketch = normal(key, (len(matrix), self.rank + self.oversampling))
        return Sketched(matrix, sketch, powers, True, self.rank, independent=True)


class Probed(eqx.Module):
    r"""A matrix $A$, directions whose span $Q$ is judged, Gaussian probes that judge it through a
    Chebyshev filter of the given degree, and the rank asked for.

    `independent` says whether the entries of the probes are i.i.d. $N(0, 1)$ and know nothing of
    the directions. Raises `ValueError` for wrong or mismatched shapes, integer dtypes, non-finite
    entries, or a rank above what the matrix or the directions can have.
    """

    matrix: Float[AnyArray, "rows columns"]
    directions: Float[AnyArray, "columns width"]
    probes: Float[AnyArray, "columns count"]
    degree: Int[AnyArray, ""]
    independent: Bool[AnyArray, ""]
    rank: int = eqx.field(static=True)

    def __init__(
        self,
        matrix: ArrayLike,
        directions: ArrayLike,
        probes: ArrayLike,
        degree: Any,
        independent: Any,
        rank: int,
    ) -> None:
        self.matrix = check_array("matrix", matrix, "rows", "columns")
        self.directions = check_array("directions", directions, "columns", "width")
        self.probes = check_array("probes", probes, "columns", "count")
        rows, columns = self.matrix.shape
        for name in ("directions", "probes"):
            got = getattr(self, name).shape[0]
            check_same(name, got, "matrix", columns, "columns of the matrix")
        why = " (which the matrix and the directions can have)"
        self.rank = check_count("rank", rank, 1, min(rows, *self.directions.shape), why)
        self.degree = _whole("degree", degree)
        self.independent = as_known(independent)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return tuple(self.matrix.shape)


class ProbeSetting(eqx.Module):
    r"""A diagonal matrix with the given singular values, and the range of $(A^\top
    A)^{q+1}\Omega$ that knows nothing of the `missed` leading directions: exactly orthogonal to
    them, as no sketch is.
    """

    values: Float[AnyArray, " size"]
    rank: int
    width: int
    probes: int = 4
    degree: Int[AnyArray, ""] = eqx.field(converter=functools.partial(_whole, "degree"), default=4)
    power_iterations: Int[AnyArray, ""] = eqx.field(
        converter=functools.partial(_whole, "power_iterations"), default=1
    )
    missed: Int[AnyArray, ""] = eqx.field(converter=functools.partial(_whole, "missed"), default=0)

    def __check_init__(self) -> None:
        size = np.shape(self.values)[0]
        keep(self, "rank", check_rank(self.rank, size, size))
        settle(self, "width", check_count, self.rank, size)
        settle(self, "probes", check_count, 1)

    @of_either_key
    def draw(self, *, key: Key) -> Probed:
        """A random instance, in float64."""
        xp, (sketch_key, probes_key) = namespace(key), split(key)
        values = xp.asarray(self.values, float)
        unit = xp.where(values[0] > 0, values[0], 1)
        powers = (values / unit) ** (2.0 * self.power_iterations)
        seen = xp.arange(values.size) >= self.missed
        directions = normal(sketch_key, (values.size, self.width))
        directions = xp.where(seen, powers, 0)[:, None] * directions
        probes = normal(probes_key, (values.size, self.probes))
        return Probed(xp.diag(values), directions, probes, self.degree, True, self.rank)


def range_basis(instance: Sketched) -> Float[Array, "rows width"]:
    r"""$Q$: an orthonormal basis of the columns of $(AA^\top)^qA\Omega$, orthonormalised after
    every product, as rounding demands.
    """
    matrix = jnp.asarray(instance.matrix, float)

    def orthonormal(columns: Array) -> Array:
        return jnp.linalg.qr(columns)[0]

    def iterate(_: Any, basis: Array) -> Array:
        return orthonormal(matmul(matrix, orthonormal(matmul(matrix.T, basis))))

    start = orthonormal(matmul(matrix, jnp.asarray(instance.sketch, float)))
    return jax.lax.fori_loop(0, jnp.asarray(instance.power_iterations), iterate, start)


class SketchAdversary(AbstractAdversary):
    """Any singular values and any sketch, without power iterations: the matrix is diagonal, which
    loses nothing.
    """

    size: int
    rank: int
    oversampling: int

    def start(self, *, key: PRNGKeyArray) -> dict[str, Array]:
        """Logarithms of the decrements of the singular values, and the sketch."""
        values_key, sketch_key = jax.random.split(key)
        width = self.rank + self.oversampling
        return {
            "decrements": normal(values_key, (self.size,)),
            "sketch": normal(sketch_key, (self.size, width)),
        }

    def play(self, free: dict[str, Array]) -> tuple[Sketched, Array]:
        """The instance, and the range of the sketch."""
        values = jnp.cumsum(jnp.exp(free["decrements"]))[::-1]
        matrix, sketch = jnp.diag(values), free["sketch"]
        instance = Sketched(matrix, sketch, 0, False, self.rank)
        return instance, jnp.linalg.qr(matmul(matrix, sketch))[0]


def outside(instance: Sketched, basis: Array) -> Array:
    """$A - QQ^TA$."""
    matrix = jnp.asarray(instance.matrix, float)
    return matrix - matmul(basis, matmul(basis.T, matrix))


def outside_truncated(instance: Sketched, basis: Array) -> Array:
    """$A - Q[Q^TA]_r$."""
    matrix = jnp.asarray(instance.matrix, float)
    coordinates = matmul(basis.T, matrix)
    vectors, _ = leading_right_vectors(coordinates, instance.rank)
    return matrix - matmul(basis, coordinates, vectors, vectors.T)


def powers(instance: Sketched) -> tuple[Array, Array]:
    r"""$s_i^{-2q}$ of the leading singular values and $s_j^{2q+1}$ of the others, with $s_r$ for
    the unit of the powers: nothing overflows.
    """
    values, rank = instance.values, instance.rank
    twice, unit = 2.0 * jnp.asarray(instance.power_iterations), values[rank - 1]
    leading = safe_divide(unit, values[:rank]) ** twice
    return leading, values[rank:] * safe_divide(values[rank:], unit) ** twice


def parts(instance: Sketched) -> tuple[Array, Array]:
    r"""$\Omega_1$ and $\Omega_2$: the sketch in the right singular vectors."""
    _, _, right = jnp.linalg.svd(jnp.asarray(instance.matrix, float), full_matrices=True)
    turned = matmul(right, jnp.asarray(instance.sketch, float))
    return turned[: instance.rank], turned[instance.rank :]


def inverse_moment(oversampling: int) -> float:
    r"""$\mu_p = (\mathbb E\chi_{p+1}^{-p})^{2/p} =
    \tfrac12\bigl(\Gamma(\tfrac12)/\Gamma(\tfrac{p+1}2)\bigr)^{2/p}$, with which
    $\mathbb P(\lVert\Omega_1^+\rVert_F^2\ge t^2\mu_pr) \le t^{-p}$ for an r x (r+p) Gaussian
    matrix; below $3/(p+1)$ for $p \ge 3$.
    """
    p = oversampling
    return 0.5 * math.exp((math.lgamma(0.5) - math.lgamma((p + 1) / 2)) * 2 / p)


def inverse_norm(rank: int, oversampling: int) -> float:
    r"""$C$ with $\mathbb P(\lVert\Omega_1^+\rVert\ge t) \le (C/t)^{p+1}$ for an r x (r+p) Gaussian
    matrix $\Omega_1$.

    $C^{p+1} = 2^{(p+1)/2}\,\Gamma(\tfrac{r+p+1}2) / (\Gamma(\tfrac r2)\,\Gamma(p+2))$; at most
    $e\sqrt{r+p}/(p+1)$, the constant of Halko, Martinsson and Tropp.
    """
    p = oversampling
    logarithm = math.lgamma((rank + p + 1) / 2) - math.lgamma(rank / 2) - math.lgamma(p + 2)
    return math.sqrt(2) * math.exp(logarithm / (p + 1))


def mean_inverse_norm(rank: int, oversampling: int) -> float:
    r"""$\min\{C(p+1)/p, \sqrt{r/(p-1)}\} \ge \mathbb E\lVert\Omega_1^+\rVert$."""
    p = oversampling
    return min(inverse_norm(rank, p) * (p + 1) / p, math.sqrt(rank / (p - 1)))


class SketchTails(eqx.Module):
    r"""With probability $1-\delta$ at once: $\lVert\Omega_1^+S\rVert_F \le$ `whole` $\lVert
    S\rVert_F$ for a diagonal $S$, $\lVert\Omega_1^+\rVert \le$ `largest`, and a function of
    $\Omega_2$ with Lipschitz constant one exceeds its mean by `moved` at most.
    """

    whole: Float[Array, ""]
    largest: Float[Array, ""]
    moved: Float[Array, ""]


def sketch_tails(
    rank: int, oversampling: int, failure_probability: Number
) -> tuple[SketchTails, ...]:
    r"""Two such triples: of three events, for $p \ge 2$; and of two, because $\lVert\Omega_1^+
    S\rVert_F \le \lVert\Omega_1^+\rVert\lVert S\rVert_F$.
    """
    p = oversampling
    constant, share = inverse_norm(rank, p), 1 / jnp.asarray(failure_probability)

    def largest(events: int) -> Array:
        return constant * (events * share) ** (1 / (p + 1))

    def moved(events: int) -> Array:
        return deviation(failure_probability, sides=events)

    two = SketchTails(largest(2), largest(2), moved(2))
    if p < 2:
        return (two,)
    whole = math.sqrt(inverse_moment(p)) * (3 * share) ** (1 / p)
    return (SketchTails(whole, largest(3), moved(3)), two)


SIZE, RANK, OVERSAMPLING = 16, 3, 5
