r"""Recovery of a truth that is a projection of the layer itself, such as a fit to other rows.

**Model.** A layer $W$ sees $X$, and the stated truth is $M = WQ$ with an orthogonal projector $Q$
of rank $r$ on its outputs: so is every best layer of rank r for other rows. The recovery is $\hat M
= WP$, $P$ the projector on the $r$ leading right singular vectors of $B = XW$, and what it takes
for noise is $E = B(I-Q)$. $H = B^\top B$ has two blocks by $Q$, with eigenvalues $a_1 \ge \dots \ge
a_r$ (kept) and $b_1 \ge b_2 \ge \dots$ (dropped), and in their eigenbases entries $H_{jk}$ beside
them. $k_0 = \min(r, K-r)$.

**Claims** (sure; proved in paper_notes/projected_truth.md):

- `no_gap`: $\lVert X(\hat M - M)\rVert_F \le \sqrt2\,\bigl(\sum_{i\le k_0}b_i\bigr)^{1/2}$, the
  leading singular values of $E$. With any truth of rank r it is $\sqrt5$
  (`planted_rank.any_noise`). Attained in the limit: $B = \operatorname{diag}(1+, 1)$, $Q =
  e_2e_2^\top$.
- `gap`, if $a_r > b_1$: $\lVert X(\hat M - M)\rVert_F^2 \le R^2 + \sum_iy_ib_i$ with $R^2 =
  \sum_{jk}\frac{H_{jk}^2}{a_j-b_k}$, where $y_1, y_2, \dots \in [0, 1]$ are filled in this order
  until $\sum_iy_i(a_r-b_i) = 2R^2$ or $k_0$ of them are one. At most
  $\frac{a_r+b_1}{a_r-b_1}R^2$, and at most $R^2 + \sum_{i\le k_0}b_i$. Attained to first order in
  $H_{jk}$.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lowrank_theory._arrays import Key, after, matmul, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    check_rank,
    check_same,
    keep,
    relative_rank_cutoff,
    rounding_allowance,
    safe_divide,
)
from lowrank_theory._random import normal, split
from lowrank_theory.generators.activations import haar
from lowrank_theory.problems import Layer, Observed
from lowrank_theory.recovery import ActivationWeighted, LowRank, recover
from lowrank_theory.theorems._adversaries import SEPARATION
from lowrank_theory.theorems._quantities import (
    coarseness,
    frobenius,
    in_double,
    no_bias_hypothesis,
    rows_and_weights,
)
from lowrank_theory.theorems._theorem import (
    UPPER,
    AbstractAdversary,
    AbstractStatement,
    AbstractTheorem,
    Hypothesis,
)


class Blocks(eqx.Module):
    r"""$H$ by a projector: `kept` $\sqrt{a_j}$ and `dropped` $\sqrt{b_k}$, decreasing, and the
    cosines $H_{jk}/\sqrt{a_jb_k}$ between their outputs.

    Of NumPy or of JAX arrays; the bounds are of the same kind, in the units of the outputs.
    """

    kept: Float[AnyArray, " rank"]
    dropped: Float[AnyArray, " rest"]
    cosines: Float[AnyArray, "rank rest"]

    @staticmethod
    def of_outputs(
        outputs: Float[AnyArray, "samples outputs"],
        basis: Float[AnyArray, "outputs outputs"],
        rank: int,
    ) -> "Blocks":
        """By outputs $B$, and the projector on the first `rank` columns of an orthonormal basis."""
        xp, (samples, size) = namespace(outputs, basis), outputs.shape
        seen = xp.pad(matmul(outputs, basis), ((0, max(0, size - samples)), (0, 0)))
        kept, dropped = seen[:, :rank], seen[:, rank:]
        if rank == size:  # nothing is dropped
            dropped = xp.zeros_like(seen[:, :1])
        left, a, _ = xp.linalg.svd(kept, full_matrices=False)
        right, b, _ = xp.linalg.svd(dropped, full_matrices=False)
        return Blocks(a, b, matmul(left.T, right))

    @staticmethod
    def of_moments(
        moments: Float[AnyArray, "outputs outputs"],
        basis: Float[AnyArray, "outputs outputs"],
        rank: int,
    ) -> "Blocks":
        """By $H$ alone, which has half the digits."""
        xp = namespace(moments, basis)
        seen = matmul(basis.T, moments, basis)
        if rank == len(basis):  # nothing is dropped
            seen = xp.pad(seen, ((0, 1), (0, 1)))
        a, left = xp.linalg.eigh(seen[:rank, :rank])
        b, right = xp.linalg.eigh(seen[rank:, rank:])
        kept, dropped = (xp.sqrt(xp.maximum(each[::-1], 0)) for each in (a, b))
        beside = matmul(left[:, ::-1].T, seen[:rank, rank:], right[:, ::-1])
        sizes = kept[:, None] * dropped
        return Blocks(kept, dropped, xp.where(sizes > 0, beside / xp.where(sizes > 0, sizes, 1), 0))

    def without_gap(self) -> Float[AnyArray, ""]:
        r"""$\sqrt2\,\bigl(\sum_{i\le k_0}b_i\bigr)^{1/2}$."""
        xp, unit = namespace(self.kept), self._unit()
        leading = self.dropped[: self.kept.shape[0]] / unit
        return xp.asarray(unit * xp.sqrt(2 * xp.sum(leading**2)))

    def with_gap(self) -> Float[AnyArray, ""]:
        r"""$\bigl(R^2 + \sum_iy_ib_i\bigr)^{1/2}$; infinite unless $a_r > b_1$."""
        xp, unit = namespace(self.kept), self._unit()
        a, b = ((each / unit) ** 2 for each in (self.kept, self.dropped))
        apart = a[-1] > b[0]
        gaps = xp.where(apart, a[:, None] - b, 1.0)
        excess = xp.sum(a[:, None] * b * self.cosines**2 / gaps)
        room = gaps[-1, : self.kept.shape[0]]
        filled = xp.clip((2 * excess - (xp.cumsum(room) - room)) / room, 0, 1)
        total = excess + xp.sum(filled * b[: self.kept.shape[0]])
        return xp.where(apart, unit * xp.sqrt(total), xp.inf)

    def _unit(self) -> Float[AnyArray, ""]:
        xp = namespace(self.kept)
        largest = xp.maximum(self.kept[0], self.dropped[0])
        return xp.where(largest > 0, largest, 1.0)


class Projected(eqx.Module):
    r"""A layer, and a projection of it that is stated to be the truth, $M = WQ$: the first r
    columns of the orthonormal `basis` (outputs, outputs) span the range of $Q$.
    """

    layer: Layer
    basis: Float[AnyArray, "outputs outputs"]

    def __check_init__(self) -> None:
        check_same("basis", self.basis.shape[0], "weights", self.layer.observed.shape[1], "outputs")

    @property
    def observed(self) -> Observed:
        """The layer."""
        return self.layer.observed

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths with which rounding grows."""
        return self.layer.sizes

    @property
    def truth(self) -> Float[Array, "inputs outputs"]:
        """$M$; call it inside `float64`."""
        _, weights = rows_and_weights(self.layer)
        kept = jnp.asarray(self.basis)[:, : self.layer.rank]
        return matmul(weights, kept, kept.T)

    @property
    def blocks(self) -> Blocks:
        """$H$ by $Q$; call it inside `float64`."""
        outputs = matmul(*rows_and_weights(self.layer))
        return Blocks.of_outputs(outputs, jnp.asarray(self.basis), self.layer.rank)


class ProjectedSetting(eqx.Module):
    r"""A random layer and a projector that is near its recovery.

    $X$ has orthogonal columns of the given lengths (or rows, if there are fewer), $W$ the given
    singular `values` and uniform bases. The r leading right singular vectors of $XW$ are turned by
    the angle `turn` towards the r next ones, and moved by `blur` times a Gaussian matrix.
    """

    samples: int
    outputs: int
    rank: int
    lengths: Float[AnyArray, " inputs"] = eqx.field(converter=np.asarray)
    values: Float[AnyArray, " count"] = eqx.field(converter=np.asarray)
    turn: Float[AnyArray, ""] = eqx.field(default=0.0, converter=np.asarray)
    blur: Float[AnyArray, ""] = eqx.field(default=0.0, converter=np.asarray)

    def __check_init__(self) -> None:
        keep(self, "rank", check_rank(self.rank, self.lengths.size, self.outputs))

    @of_either_key
    def draw(self, *, key: Key) -> Projected:
        """A random layer with its stated truth, in float64."""
        xp, (row_key, left_key, right_key, blur_key) = namespace(key), split(key, 4)
        inputs, size, rank = self.lengths.size, self.outputs, self.rank
        longer, shorter = max(self.samples, inputs), min(self.samples, inputs)
        rows = haar(longer, shorter, key=row_key)
        rows = (rows if self.samples == longer else rows.T) * self.lengths
        left = haar(inputs, self.values.size, key=after(rows, left_key))
        right = haar(size, self.values.size, key=after(left, right_key))
        weights = matmul(left * self.values, right.T)
        _, _, vectors = xp.linalg.svd(matmul(rows, after(right, weights)), full_matrices=True)
        turned = xp.cos(self.turn) * vectors + xp.sin(self.turn) * xp.roll(vectors, -rank, 0)
        turned = turned[:rank].T + self.blur * normal(blur_key, (size, rank))
        basis, _ = xp.linalg.qr(after(vectors, turned), mode="complete")
        return Projected(Layer(Observed(weights=weights, activations=rows), rank), basis)


def _setting(lengths: Any, values: Any, **changes: Any) -> ProjectedSetting:
    shape: dict[str, Any] = {"samples": 16, "outputs": 6, "rank": 2, **changes}
    lengths, values = (np.asarray(each, float) for each in (lengths, values))
    return ProjectedSetting(lengths=lengths, values=values, **shape)


_I, _J = np.arange(1.0, 9), np.arange(1.0, 7)
_GAPS = {
    "small turn": _setting(_I**-0.5, 0.5**_J, turn=0.03),
    "a turn of half": _setting(_I**0.0, np.r_[2, 2, 1, 1, 1, 1], turn=0.5),
    "blurred": _setting(_I**-0.5, 0.7**_J, blur=0.03),
    "ill-conditioned activations": _setting(_I**-4.0, 0.9**_J, blur=0.01),
    "rank one": _setting(_I**-0.5, 0.7**_J, rank=1, blur=0.05),
    "nothing is dropped": _setting(_I**-0.5, 0.7**_J, rank=6, blur=1.0),
    "the truth is found": _setting(_I**-0.5, 0.7**_J),
}
_ANY = {
    **_GAPS,
    "any projector": _setting(_I**-0.5, 0.7**_J, blur=1e3),
    "other directions": _setting(_I**0.0, np.r_[1.001, 1.001, 1, 1, 1, 1], turn=np.pi / 2),
    "ties": _setting(_I**0.0, np.ones(6), blur=1.0),
    "fewer samples than inputs": _setting(_I**-0.5, _J**-0.5, samples=5, blur=0.3),
}
_FLAT_REST = _setting(np.ones(8), np.r_[2, 1, 1, 1, 1, 1], rank=1, turn=0.03)


class KnownRecovery(AbstractAdversary):
    """Any singular values of the outputs, and any basis: rotations of samples and outputs change
    nothing, so that the outputs are diagonal and the recovery keeps the first of them.
    """

    size: int = 3
    rank: int = 1

    def start(self, *, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Roots of the steps between the singular values, and the basis before it is made one."""
        step_key, basis_key = jax.random.split(key)
        return normal(step_key, (self.size,)), normal(basis_key, (self.size, self.size))

    def play(self, free: tuple[Array, Array]) -> tuple[Projected, LowRank]:
        """The layer with its stated truth, and its recovery."""
        roots, directions = free
        values = jnp.cumsum(roots**2 + SEPARATION)[::-1]
        identity = jnp.eye(self.size)
        layer = Layer(Observed(weights=identity, activations=jnp.diag(values)), self.rank)
        basis, _ = jnp.linalg.qr(directions)
        return Projected(layer, basis), LowRank(identity[:, : self.rank], identity[: self.rank])


def _stated(instance: Projected) -> tuple[Hypothesis, ...]:
    """A layer that sees and gives what it always did, and a projector."""
    observed, basis = instance.observed, jnp.asarray(instance.basis)
    plain = observed.compressed_activations is observed.outputs is None
    size = basis.shape[0]
    off = frobenius(matmul(basis.T, basis) - jnp.eye(size))
    return (
        no_bias_hypothesis(instance.layer),
        Hypothesis("the layer sees and gives what it always did", 0.0 if plain else -1.0),
        Hypothesis("the basis is orthonormal", rounding_allowance(size**0.5, size) - off),
    )


def _size(instance: Projected) -> Float[Array, ""]:
    r"""$\lVert X\rVert_F\lVert W\rVert_F$."""
    rows, weights = rows_and_weights(instance.layer)
    return frobenius(rows) * frobenius(weights)


class AbstractProjected(AbstractStatement):
    r"""A bound on $\lVert X(\hat M - M)\rVert_F$. Not squared; in the units of the outputs."""

    kind = UPPER
    needs = Projected
    control = _FLAT_REST
    adversary = KnownRecovery()
    sharp = True

    def estimate(self, instance: Projected) -> LowRank:
        r"""$\hat M$."""
        return recover(instance.observed, instance.layer.rank, ActivationWeighted()).factors

    def broken_estimate(self, instance: Projected) -> LowRank:
        """The weights themselves, noise and all."""
        _, weights = rows_and_weights(instance.layer)
        return LowRank(weights, jnp.eye(weights.shape[1]))

    def loss(self, instance: Projected, estimate: LowRank) -> Float[Array, ""]:
        r"""$\lVert X(\hat M - M)\rVert_F$."""
        rows, _ = rows_and_weights(instance.layer)
        found = in_double(estimate)
        return frobenius(matmul(rows, matmul(found.left, found.right) - instance.truth))


class NoGap(AbstractProjected):
    r"""$\lVert X(\hat M - M)\rVert_F \le \sqrt2\,\bigl(\sum_{i\le k_0}b_i\bigr)^{1/2}$ for $M =
    WQ$.
    """

    regimes = _ANY

    def hypotheses(self, instance: Projected) -> tuple[Hypothesis, ...]:
        """A projector; nothing else on the layer."""
        return _stated(instance)

    def formula(self, instance: Projected, estimate: LowRank) -> Float[Array, ""]:
        r"""$\sqrt2\,\bigl(\sum_{i\le k_0}b_i\bigr)^{1/2}$."""
        return jnp.asarray(instance.blocks.without_gap())

    def magnitude(self, instance: Projected) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F\lVert W\rVert_F$, in the precision in which factors are returned."""
        return coarseness(instance.observed) * _size(instance)


class Gap(AbstractProjected):
    r"""$\lVert X(\hat M - M)\rVert_F^2 \le R^2 + \sum_iy_ib_i \le \frac{a_r+b_1}{a_r-b_1}R^2$, $R^2
    = \sum_{jk}H_{jk}^2/(a_j-b_k)$, for $M = WQ$ and $a_r > b_1$. Roots of both sides.
    """

    regimes = _GAPS

    def hypotheses(self, instance: Projected) -> tuple[Hypothesis, ...]:
        """What is kept is stronger than what is dropped, beyond rounding."""
        blocks = instance.blocks
        gap = safe_divide(blocks.kept[-1] - blocks.dropped[0], blocks.kept[0])
        name = "the outputs kept are stronger than those dropped"
        cutoff = relative_rank_cutoff(instance.sizes)
        return (*_stated(instance), Hypothesis(name, gap - cutoff))

    def formula(self, instance: Projected, estimate: LowRank) -> Float[Array, ""]:
        r"""$\bigl(R^2 + \sum_iy_ib_i\bigr)^{1/2}$."""
        return jnp.asarray(instance.blocks.with_gap())

    def magnitude(self, instance: Projected) -> Float[Array, ""]:
        r"""The same, or $\lVert X\rVert_F^2\lVert W\rVert_F^2/(\sqrt{a_r} - \sqrt{b_1})$ if that is
        more: rounding turns the recovery.
        """
        size, blocks = _size(instance), instance.blocks
        turned = size * safe_divide(size, blocks.kept[-1] - blocks.dropped[0])
        return jnp.maximum(coarseness(instance.observed) * size, turned)


class ProjectedTruth(AbstractTheorem):
    r"""If the truth is a projection of the layer itself, the recovery finds it up to $\sqrt2$ times
    the leading noise, and where there is a gap up to what stands beside it in the second moments.
    """

    no_gap: NoGap = NoGap()
    gap: Gap = Gap()


projected_truth = ProjectedTruth()
