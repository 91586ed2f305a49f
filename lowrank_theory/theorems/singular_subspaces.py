r"""How far a perturbation turns the leading singular vectors.

**Model.** $B = A + Z$; $U, V$ are $r$ leading left and right singular vectors of $A$, $\hat U, \hat
V$ those of $B$, and $\sin\Theta(U, \hat U) = (I - UU^\top)\hat U$. $Z_{(k)}$ stands for the $k$
largest singular values of $Z$.

**Claims** (sure; proved in paper_notes/singular_subspaces.md):

- `wedin`, $\delta = s_r(A) - s_{r+1}(B) > 0$: $\max(\lVert\sin\Theta(U, \hat U)\rVert,
  \lVert\sin\Theta(V, \hat V)\rVert) \le \max(\lVert ZV\rVert, \lVert Z^\top U\rVert)/\delta$, and
  `wedin_frobenius`, the same with root sums of squares of Frobenius norms, where $\delta > 0$ is
  the least of $s_r(A)$ and $|s_i(A) - s_j(B)|$, $i \le r < j$ (Wedin 1972).
- `gap`, `gap_operator_norm`, $g = s_r(A) - s_{r+1}(A) > 0$, a gap of $A$ alone, and $p = 2,
  \infty$: $\max(\lVert\sin\Theta(U, \hat U)\rVert_{S_p}, \lVert\sin\Theta(V, \hat V)\rVert_{S_p})
  \le 2\lVert Z_{(r)}\rVert_{S_p}/g$, this project's own for finite $p$; for $\lVert Z\rVert \le
  g/2$, and for $p = \infty$, it follows from Wedin and Weyl. It implies Theorem 4 of Yu, Wang and
  Samworth 2015, which has $2(2s_1(A) + \lVert Z\rVert)/(s_r(A) + s_{r+1}(A))$ in place of the 2,
  and, where $\operatorname{rank}A = r$, the bound of Luo, Han and Zhang 2021.
- `both_sides`: $\bigl(\lVert\sin\Theta(U, \hat U)\rVert_F^2 + \lVert\sin\Theta(V, \hat
  V)\rVert_F^2\bigr)^{1/2} \le 2\lVert Z_{(2r)}\rVert_F/g$.
- `eigenvectors`, `eigenvectors_operator_norm`, $A$ and $Z$ symmetric, $g = l_r(A) - l_{r+1}(A) >
  0$: $\lVert\sin\Theta(V, \hat V)\rVert_{S_p} \le 2\lVert Z_{(r)}\rVert_{S_p}/g$ (Yu, Wang and
  Samworth 2015, Theorem 2; Davis and Kahan 1970).

All are attained: the first two by every $A = uv^\top$ and $B = \hat u\hat v^\top$ of equal angles,
the others by $A = \operatorname{diag}(1, 0)$, $Z = \operatorname{diag}(-\tfrac12, \tfrac12)$.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._numerics import matmul, rounding_allowance, safe_divide, settle
from lowrank_theory._random import normal
from lowrank_theory._subspaces import leading_eigenvectors, leading_right_vectors
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

_WEAK = {
    name: (LOW_RANK_PERTURBED | PERTURBED)[name]
    for name in (
        "independent noise",
        "weak noise",
        "no noise",
        "ties",
        "power law",
        "small gap",
        "full rank",
    )
} | {"rank one": perturbed([2], [1.0] * 9, 0.5, rank=1)}
_ANY = _WEAK | {
    name: (LOW_RANK_PERTURBED | PERTURBED)[name]
    for name in ("strong noise", "opposing noise within the gap", "nearly opposing noise")
}
_SYMMETRIC = {
    name: perturbed(signal, noise, alignment, rows=9, symmetric=True)
    for name, signal, noise, alignment in (
        ("semidefinite", [3, 2, 1], [0.1, 0.1, 0.1], 0.0),
        ("eigenvalues of both signs", [3, 2, 1, 0, 0, 0, -1, -2, -3], [0.3, -0.3] * 4, 0.0),
        ("strong noise", [3, 2, 1, 0, 0, 0, -1, -2, -3], [10, -10] * 4, 0.0),
        ("no noise", [3, 2, 1], [0.0], 0.0),
        ("ties", [1, 1, 1, -1, -1, -1], [0.9] * 4, 0.5),
        ("opposing noise", [1, 1, 1], [-0.501] * 3 + [0.5] * 6, 1.0),
        ("nearly opposing noise", [1, 1, 1], [-0.501] * 3 + [0.5] * 6, 0.95),
    )
}


class SingularVectors(eqx.Module):
    """Orthonormal bases of the leading left and right singular subspaces of one matrix."""

    left: Float[Array, "rows rank"]
    right: Float[Array, "columns rank"]


def leading_vectors(matrix: Float[Array, "rows columns"], rank: int) -> SingularVectors:
    """Both bases from one decomposition, so that they belong together at ties too; the spans are
    differentiable where they are determined.
    """
    right, _ = leading_right_vectors(matrix, rank)
    left, triangle = jnp.linalg.qr(matmul(matrix, right))
    left = left * jnp.where(jnp.diagonal(triangle) < 0, -1, 1)  # or a pair points apart
    return SingularVectors(left, right)


def sines(
    basis: Float[Array, "length rank"], other: Float[Array, "length rank"]
) -> Float[Array, " count"]:
    """The sines of the principal angles between the spans of two orthonormal bases."""
    return singular_values(other - matmul(basis, basis.T, other))


def _sines(instance: Perturbation, estimate: SingularVectors) -> tuple[Array, Array]:
    """Sines on the left and on the right."""
    truth = leading_vectors(jnp.asarray(instance.matrix), instance.rank)
    return sines(truth.left, estimate.left), sines(truth.right, estimate.right)


def _value(values: Float[Array, " count"], index: int) -> Float[Array, ""]:
    return values[index] if index < values.size else jnp.zeros(())


def _gap(instance: Perturbation) -> Float[Array, ""]:
    """$s_r(A) - s_{r+1}(A)$."""
    values = singular_values(jnp.asarray(instance.matrix))
    return _value(values, instance.rank - 1) - _value(values, instance.rank)


def positive_hypothesis(name: str, instance: Perturbation, gap: Float[Array, ""]) -> Hypothesis:
    """A gap beyond rounding."""
    scale = total_norm(instance)
    allowed = rounding_allowance(scale, *instance.sizes)
    return Hypothesis(name, safe_divide(gap - allowed, scale) - jnp.where(scale > 0, 0, 1))


class KnownVectors(AbstractAdversary):
    r"""$A$ is diagonal with a gap; the singular value decomposition of $B$ is free, so that its
    vectors are known; $Z = B - A$.

    $s_r(A) = 1$ or more, and $s_{r+1}(A), s_{r+1}(B)$ are below one. Without loss: all is
    invariant to scale and rotations, and where $s_{r+1}(B) \ge s_r(A)$ no bound is near. The
    singular values of $B$ have a gap of at least $10^{-5}$ (relative) at the rank, so that rounding
    cannot mistake it.
    """

    size: int = 4
    rank: int = 2
    symmetric: bool = False

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, ...]:
        """Matrices that are made orthogonal, and numbers from which both lists of values come."""
        numbers = normal(key, (2 * self.size + 2, self.size))
        return tuple(jnp.split(numbers, (self.size, 2 * self.size)))

    def play(self, free: tuple[Array, ...]) -> tuple[Perturbation, SingularVectors | Array]:
        """The perturbation, and the leading vectors of $B$."""
        u, v, (ours, theirs) = free
        below = jax.nn.sigmoid(jnp.stack([ours, theirs])[:, self.rank :])
        signal = jnp.concatenate([1 + ours[: self.rank] ** 2, below[0]])
        leading = (1 + 1e-5) * jnp.max(below[1]) + theirs[: self.rank] ** 2
        values = jnp.concatenate([leading, below[1]])
        u, v = jnp.linalg.qr(u)[0], jnp.linalg.qr(v)[0]
        v = u if self.symmetric else v
        matrix = jnp.diag(signal)
        instance = Perturbation(matrix, matmul(u * values, v.T) - matrix, self.rank)
        right = v[:, : self.rank]
        return instance, right if self.symmetric else SingularVectors(u[:, : self.rank], right)


class AbstractSubspaces(AbstractStatement):
    """A statement about the leading singular vectors of $A + Z$; attained."""

    kind = UPPER
    needs = Perturbation
    control = perturbed([3, 2, 1], [0.01, 0.006, 0.003])
    adversary = KnownVectors()
    sharp = True

    @abc.abstractmethod
    def separation(self, instance: Perturbation) -> Float[Array, ""]:
        """What must be positive, and divides."""

    @abc.abstractmethod
    def strength(self, instance: Perturbation) -> Float[Array, ""]:
        """What it divides: a norm of the noise."""

    def hypotheses(self, instance: Perturbation) -> tuple[Hypothesis, ...]:
        """A gap at the rank."""
        name = "there is a gap of singular values at the rank"
        return (positive_hypothesis(name, instance, self.separation(instance)),)

    def estimate(self, instance: Perturbation) -> SingularVectors:
        """The leading singular vectors of $A + Z$."""
        return leading_vectors(instance.perturbed, instance.rank)

    def broken_estimate(self, instance: Perturbation) -> SingularVectors:
        """Those of $Z$."""
        return leading_vectors(jnp.asarray(instance.noise), instance.rank)

    def formula(self, instance: Perturbation, estimate: SingularVectors) -> Float[Array, ""]:
        """The strength of the noise over the separation."""
        return self.strength(instance) / self.separation(instance)

    def magnitude(self, instance: Perturbation) -> Float[Array, ""]:
        r"""$(\lVert A\rVert_F + \lVert Z\rVert_F)$ over the separation: rounding turns the vectors
        by the epsilon of it.
        """
        return safe_divide(total_norm(instance), self.separation(instance))


class Wedin(AbstractSubspaces):
    r"""$\max(\lVert\sin\Theta(U, \hat U)\rVert, \lVert\sin\Theta(V, \hat V)\rVert) \le \max(\lVert
    ZV\rVert, \lVert Z^\top U\rVert)/\delta$ if $\delta = s_r(A) - s_{r+1}(B) > 0$.
    """

    regimes = _WEAK

    def separation(self, instance: Perturbation) -> Float[Array, ""]:
        """$s_r(A) - s_{r+1}(B)$."""
        signal, values = _both_values(instance)
        return signal[instance.rank - 1] - _value(values, instance.rank)

    def strength(self, instance: Perturbation) -> Float[Array, ""]:
        r"""$\max(\lVert ZV\rVert, \lVert Z^\top U\rVert)$."""
        return jnp.maximum(*(jnp.max(singular_values(side)) for side in _residuals(instance)))

    def loss(self, instance: Perturbation, estimate: SingularVectors) -> Float[Array, ""]:
        """The largest sine of either side."""
        left, right = _sines(instance, estimate)
        return jnp.maximum(jnp.max(left), jnp.max(right))


class WedinFrobenius(AbstractSubspaces):
    r"""$\bigl(\lVert\sin\Theta(U, \hat U)\rVert_F^2 + \lVert\sin\Theta(V, \hat
    V)\rVert_F^2\bigr)^{1/2} \le (\lVert ZV\rVert_F^2 + \lVert Z^\top U\rVert_F^2)^{1/2}/\delta$
    where the $r$ leading singular values of $A$ are at least $\delta > 0$ away from zero and from
    all but the $r$ leading ones of $B$.
    """

    regimes = _WEAK

    def separation(self, instance: Perturbation) -> Float[Array, ""]:
        r"""The least of $s_r(A)$ and $|s_i(A) - s_j(B)|$ with $i \le r < j$."""
        signal, values = _both_values(instance)
        signal = signal[: instance.rank, None]
        distances = jnp.abs(signal - values[None, instance.rank :])
        return jnp.minimum(jnp.min(signal), jnp.min(distances, initial=jnp.inf))

    def strength(self, instance: Perturbation) -> Float[Array, ""]:
        r"""$(\lVert ZV\rVert_F^2 + \lVert Z^\top U\rVert_F^2)^{1/2}$."""
        return jnp.hypot(*(frobenius(side) for side in _residuals(instance)))

    def loss(self, instance: Perturbation, estimate: SingularVectors) -> Float[Array, ""]:
        """The root of the sum of squared sines of both sides."""
        return jnp.hypot(*(frobenius(side) for side in _sines(instance, estimate)))


def _both_values(instance: Perturbation) -> tuple[Array, Array]:
    """The singular values of $A$ and of $B$."""
    return singular_values(jnp.asarray(instance.matrix)), singular_values(instance.perturbed)


def _residuals(instance: Perturbation) -> tuple[Array, Array]:
    r"""$ZV$ and $Z^\top U$."""
    truth = leading_vectors(jnp.asarray(instance.matrix), instance.rank)
    noise = jnp.asarray(instance.noise)
    return matmul(noise, truth.right), matmul(noise.T, truth.left)


class Gap(AbstractSubspaces):
    r"""$\max(\lVert\sin\Theta(U, \hat U)\rVert_{S_p}, \lVert\sin\Theta(V, \hat V)\rVert_{S_p}) \le
    2\lVert Z_{(r)}\rVert_{S_p}/g$ if $g = s_r(A) - s_{r+1}(A) > 0$, with $p$ the `exponent`, at
    least one or infinite.
    """

    regimes = _ANY

    exponent: float = 2.0

    def __check_init__(self) -> None:
        settle(self, "exponent", check_exponent)

    def separation(self, instance: Perturbation) -> Float[Array, ""]:
        """$s_r(A) - s_{r+1}(A)$."""
        return _gap(instance)

    def strength(self, instance: Perturbation) -> Float[Array, ""]:
        r"""$2\lVert Z_{(r)}\rVert_{S_p}$."""
        return _twice_noise(instance, instance.rank, self.exponent)

    def loss(self, instance: Perturbation, estimate: SingularVectors) -> Float[Array, ""]:
        """The norm of the sines, on the side where it is larger."""
        sides = _sines(instance, estimate)
        return jnp.maximum(*(schatten_norm(side, self.exponent) for side in sides))


class BothSides(AbstractSubspaces):
    r"""$\bigl(\lVert\sin\Theta(U, \hat U)\rVert_F^2 + \lVert\sin\Theta(V, \hat
    V)\rVert_F^2\bigr)^{1/2} \le 2\lVert Z_{(2r)}\rVert_F/g$ if $g = s_r(A) - s_{r+1}(A) > 0$.
    """

    regimes = _ANY

    def separation(self, instance: Perturbation) -> Float[Array, ""]:
        """$s_r(A) - s_{r+1}(A)$."""
        return _gap(instance)

    def strength(self, instance: Perturbation) -> Float[Array, ""]:
        r"""$2\lVert Z_{(2r)}\rVert_F$."""
        return _twice_noise(instance, 2 * instance.rank, 2.0)

    def loss(self, instance: Perturbation, estimate: SingularVectors) -> Float[Array, ""]:
        """The root of the sum of squared sines of both sides."""
        return jnp.hypot(*(frobenius(side) for side in _sines(instance, estimate)))


def _twice_noise(instance: Perturbation, count: int, exponent: float) -> Float[Array, ""]:
    return 2 * schatten_norm(singular_values(jnp.asarray(instance.noise))[:count], exponent)


class Eigenvectors(AbstractStatement):
    r"""$\lVert\sin\Theta(V, \hat V)\rVert_{S_p} \le 2\lVert Z_{(r)}\rVert_{S_p}/g$ for symmetric
    $A$ and $Z$ if $g = l_r(A) - l_{r+1}(A) > 0$, with $p$ the `exponent`, at least one or infinite.
    """

    kind = UPPER
    needs = Perturbation
    regimes = _SYMMETRIC
    control = perturbed([3, 2, 1], [0.01, 0.006, 0.003], rows=9, symmetric=True)
    adversary = KnownVectors(symmetric=True)
    sharp = True

    exponent: float = 2.0

    def __check_init__(self) -> None:
        settle(self, "exponent", check_exponent)

    def hypotheses(self, instance: Perturbation) -> tuple[Hypothesis, ...]:
        """Symmetry, and a gap at the rank. Raises `ValueError` for matrices that are not square, or
        a rank that leaves no other eigenvalue.
        """
        rows, columns = instance.sizes
        if rows != columns or instance.rank == rows:
            raise ValueError(
                "This statement needs a square matrix with more rows than its rank; got shape "
                f"{instance.sizes} and rank {instance.rank}."
            )
        matrix, noise = jnp.asarray(instance.matrix), jnp.asarray(instance.noise)
        scale = total_norm(instance)
        skew = frobenius(matrix - matrix.T) + frobenius(noise - noise.T)
        allowed = rounding_allowance(scale, *instance.sizes)
        name = "there is a gap of eigenvalues at the rank"
        return (
            Hypothesis("both matrices are symmetric", safe_divide(allowed - skew, scale)),
            positive_hypothesis(name, instance, self._gap(instance)),
        )

    def estimate(self, instance: Perturbation) -> Float[Array, "size rank"]:
        """The leading eigenvectors of $A + Z$."""
        return leading_eigenvectors(instance.perturbed, instance.rank)[0]

    def broken_estimate(self, instance: Perturbation) -> Float[Array, "size rank"]:
        """Those of $Z$."""
        return leading_eigenvectors(jnp.asarray(instance.noise), instance.rank)[0]

    def formula(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        r"""$2\lVert Z_{(r)}\rVert_{S_p}/g$."""
        return _twice_noise(instance, instance.rank, self.exponent) / self._gap(instance)

    def loss(self, instance: Perturbation, estimate: Array) -> Float[Array, ""]:
        """The norm of the sines."""
        truth, _ = leading_eigenvectors(jnp.asarray(instance.matrix), instance.rank)
        return schatten_norm(sines(truth, estimate), self.exponent)

    def magnitude(self, instance: Perturbation) -> Float[Array, ""]:
        r"""$(\lVert A\rVert_F + \lVert Z\rVert_F)/g$."""
        return safe_divide(total_norm(instance), self._gap(instance))

    def _gap(self, instance: Perturbation) -> Float[Array, ""]:
        """$l_r(A) - l_{r+1}(A)$."""
        _, values = leading_eigenvectors(jnp.asarray(instance.matrix), instance.rank)
        return values[instance.rank - 1] - values[instance.rank]


class SingularSubspaces(AbstractTheorem):
    """Noise turns the leading singular vectors by at most twice its norm over the gap of the
    undisturbed matrix, in every Schatten norm; 2 is sharp.
    """

    wedin: Wedin = Wedin()
    wedin_frobenius: WedinFrobenius = WedinFrobenius()
    gap: Gap = Gap(2.0)
    gap_operator_norm: Gap = Gap(math.inf)
    both_sides: BothSides = BothSides()
    eigenvectors: Eigenvectors = Eigenvectors(2.0)
    eigenvectors_operator_norm: Eigenvectors = Eigenvectors(math.inf)


singular_subspaces = SingularSubspaces()
