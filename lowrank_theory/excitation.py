r"""How strongly inputs excite the directions of weights, and what that makes of truncation.

$W = \sum_is_iu_iv_i^\top$ (N x K) truncated to rank r loses $\sum_{i>r}s_i^2\lVert Xu_i\rVert^2$ of
its outputs. Between which limits this lies for the two spectra, what it is where the $u_i$ have
nothing to do with the inputs, and by how much a real layer differs from that. Proved in
paper_notes/orientation.md. All needs no more of the inputs than their Gram $G = X^\top X$, and
tells all ranks at once.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    AnyArray,
    check_array,
    check_count,
    check_key,
    check_ranks,
    check_same,
    in_float64,
    matmul,
    rounding_allowance,
    safe_divide,
)
from lowrank_theory.generators.activations import haar


class PValues(eqx.Module):
    """How probable a loss at least as large (`above`), or as small (`below`), is where orientation
    is chance: one-sided, at each rank. Those of several ranks are dependent.
    """

    above: Float[AnyArray, " ranks"]
    below: Float[AnyArray, " ranks"]


class Excitation(eqx.Module):
    r"""Weights and how strongly their inputs excite them, $n = \min(N, K)$.

    - `input_values` $s_j(X)$ (N,), `values` $s_i(W)$ (n,), `output_values` $s_j(XW)$ (n,), each in
      decreasing order;
    - `lengths` $\lVert Xu_i\rVert$ (n,), in the order of the `values`.

    The methods take `ranks` from 0 to n, and give one number for each, *squared*, in the units of
    the squared outputs; a rank of 0 stands for outputs that are lost whole. They raise `ValueError`
    for other ranks.
    """

    input_values: Float[AnyArray, " inputs"]
    values: Float[AnyArray, " count"]
    output_values: Float[AnyArray, " count"]
    lengths: Float[AnyArray, " count"]

    @staticmethod
    def of(gram: ArrayLike, weights: ArrayLike) -> "Excitation":
        r"""That of `weights` (inputs, outputs) by inputs of the `gram` $X^\top X$, or of a multiple
        of it, in which unit all that is squared then is told. In float64.

        Raises `ValueError` for arrays that do not fit, integer dtypes, empty or non-finite ones.
        """
        gram = check_array("gram", gram, "inputs", "inputs")
        weights = check_array("weights", weights, "inputs", "outputs")
        for side in gram.shape:
            check_same("gram", side, "weights", weights.shape[0], "inputs")
        return Excitation(*_excited(gram, weights, dtype=np.float64))

    @property
    def scale(self) -> Float[Array, ""]:
        r"""$\lVert X\rVert_F^2\lVert W\rVert_F^2/N$, what $\lVert XW\rVert_F^2$ is on average over
        orientations; all losses are told in this unit where layers are compared.
        """
        return self.expected([0])[0]

    def loss(self, ranks: Any) -> Float[Array, " ranks"]:
        r"""$\lVert X(W-[W]_r)\rVert_F^2$."""
        return _losses(self.values, self.lengths, self._checked(ranks))

    def optimum(self, ranks: Any) -> Float[Array, " ranks"]:
        r"""$\min_{\operatorname{rank}Z\le r}\lVert X(W-Z)\rVert_F^2$."""
        ones = np.ones(self.output_values.shape)
        return _losses(self.output_values, ones, self._checked(ranks))

    def least(self, ranks: Any) -> Float[Array, " ranks"]:
        r"""$\sum_ks_{N+1-k}(X)^2s_{r+k}(W)^2$, the least `loss` over all orientations."""
        return paired_losses(self.input_values[::-1], self.values, self._checked(ranks))

    def most(self, ranks: Any) -> Float[Array, " ranks"]:
        r"""$\sum_ks_k(X)^2s_{r+k}(W)^2$, the largest `loss` over all orientations."""
        return paired_losses(self.input_values, self.values, self._checked(ranks))

    def expected(self, ranks: Any) -> Float[Array, " ranks"]:
        r"""$\lVert X\rVert_F^2\sum_{i>r}s_i(W)^2/N$, the mean `loss` over all orientations."""
        return _moments(self.input_values, self.values, self._checked(ranks))[0]

    def deviation(self, ranks: Any) -> Float[Array, " ranks"]:
        """The standard deviation of the `loss` over all orientations."""
        return _moments(self.input_values, self.values, self._checked(ranks))[1]

    def p_values(self, ranks: Any, *, references: int, key: PRNGKeyArray) -> PValues:
        """The ranks of the `loss` among those of `references` random orientations, from
        1/(references + 1) to one. Valid at every size, also where the law is far from normal.
        """
        count = check_count("references", references, 1)
        parts = self.input_values, self.values, self.lengths, self._checked(ranks)
        return PValues(*_p_values(*parts, check_key("key", key), references=count))

    def _checked(self, ranks: Any) -> Int[np.ndarray, " ranks"]:
        return check_ranks(ranks, self.values.shape[0])


@in_float64
def _excited(
    gram: Float[Array, "inputs inputs"], weights: Float[Array, "inputs outputs"], *, dtype: Any
) -> tuple[Array, Array, Array, Array]:
    gram = (gram + gram.T) / 2
    left, values, _ = jnp.linalg.svd(weights, full_matrices=False)
    seen = matmul(left.T, gram, left)
    inputs, outputs = (
        jnp.linalg.eigvalsh(each)[::-1] for each in (gram, values[:, None] * seen * values)
    )
    squares = inputs, outputs, jnp.diagonal(seen)
    inputs, outputs, lengths = (jnp.sqrt(jnp.maximum(each, 0)) for each in squares)
    return inputs, values, outputs, lengths


def dropped(
    parts: Float[Array, " count"], ranks: Int[AnyArray, " ranks"]
) -> Float[Array, "ranks count"]:
    """The parts, a row for each rank, with zeros for those that it keeps."""
    return jnp.where(jnp.arange(parts.size) < jnp.asarray(ranks)[:, None], 0, parts)


def pairs(
    input_values: Float[Array, " inputs"],
    values: Float[Array, " count"],
    ranks: Int[AnyArray, " ranks"],
) -> Float[Array, "ranks count"]:
    """$s_k(X)s_{r+k}(W)$ at the place $r+k$, a row for each rank r; zero for what it keeps."""
    place = jnp.arange(values.size) - jnp.asarray(ranks)[:, None]
    return dropped(values, ranks) * input_values[jnp.maximum(place, 0)]


def losses(
    values: Float[Array, " count"],
    lengths: Float[Array, " count"],
    ranks: Int[AnyArray, " ranks"],
) -> Float[Array, " ranks"]:
    r"""$\sum_{i>r}s_i^2\lVert Xu_i\rVert^2$."""
    return jnp.sum(dropped(values * lengths, ranks) ** 2, axis=1)


def moments(
    input_values: Float[Array, " inputs"],
    values: Float[Array, " count"],
    ranks: Int[AnyArray, " ranks"],
) -> tuple[Float[Array, " ranks"], Float[Array, " ranks"]]:
    r"""Mean and standard deviation of the loss, over uniformly random $u_i$."""
    size = input_values.size
    squares = jnp.pad(dropped(values**2, ranks), ((0, 0), (0, size - values.size)))
    inputs, mean = input_values**2, jnp.mean(squares, axis=1)
    spread = jnp.sum((inputs - jnp.mean(inputs)) ** 2)
    spreads = spread * jnp.sum((squares - mean[:, None]) ** 2, axis=1)
    freedom = max((size - 1) * (size + 2), 1)
    return jnp.sum(inputs) * mean, jnp.sqrt(2 * spreads / freedom)


def lengths_in(
    basis: Float[AnyArray, "inputs count"], input_values: Float[AnyArray, " inputs"]
) -> Float[Array, " count"]:
    r"""$\lVert Xu_i\rVert$ for the columns of a basis, in coordinates in which $X$ is diagonal."""
    return jnp.sqrt(matmul(jnp.asarray(input_values) ** 2, jnp.asarray(basis) ** 2))


def ranked(
    loss: Float[Array, " ranks"],
    references: Float[Array, "references ranks"],
    near: Float[Array, "..."],
) -> tuple[Float[Array, " ranks"], Float[Array, " ranks"]]:
    """The shares of all losses, this one among them, that are no smaller and no larger, where what
    is `near` counts as equal.
    """
    total = references.shape[0] + 1
    above = (1 + jnp.sum(references >= loss - near, axis=0)) / total
    below = (1 + jnp.sum(references <= loss + near, axis=0)) / total
    return above, below


_losses, _moments = in_float64(losses), in_float64(moments)


@in_float64
def paired_losses(
    input_values: Float[Array, " inputs"],
    values: Float[Array, " count"],
    ranks: Int[Array, " ranks"],
) -> Float[Array, " ranks"]:
    r"""$\sum_ks_k(X)^2s_{r+k}(W)^2$: the loss where the truncated $u_i$ are the right singular
    vectors of $X$ in the order of the values given.
    """
    return jnp.sum(pairs(input_values, values, ranks) ** 2, axis=1)


@in_float64
def _p_values(
    input_values: Array, values: Array, lengths: Array, ranks: Array, key: Array, *, references: int
) -> tuple[Array, Array]:
    size, count = input_values.size, values.size
    lengths = safe_divide(lengths, input_values[0])
    input_values, values = (safe_divide(each, each[0]) for each in (input_values, values))

    def reference(key: Array) -> Array:
        return losses(values, lengths_in(haar(size, count, key=key), input_values), ranks)

    drawn = jax.lax.map(reference, jax.random.split(key, references))
    near = rounding_allowance(losses(values, jnp.ones(count), ranks), size)
    return ranked(losses(values, lengths, ranks), drawn, near)
