r"""Errors of the inputs in turn, each made up for by the inputs to come.

With $\tilde H = H + \lambda I = RR^\top$, $R$ upper triangular, an error $E$ of the weights costs

$$\operatorname{tr}(E^\top\tilde HE) = \lVert R^\top E\rVert_F^2
  = \sum_kR_{kk}^2\Bigl\lVert e_k + \sum_{j<k}\frac{R_{jk}}{R_{kk}}e_j\Bigr\rVert^2.$$

So where the inputs before k have errors $e_j$, what is best for input k is $w_k +
\sum_{j<k}(R_{jk}/R_{kk})e_j$, and what misses this by $\delta$ costs $R_{kk}^2\lVert
\delta\rVert^2$. It is the update of the optimal brain surgeon, without an inverse: $R_{kk}^{-2} =
[\tilde H_{k:,k:}^{-1}]_{kk}$ (Hassibi and Stork 1993; Frantar and Alistarh 2022; Chee, Cai,
Kuleshov and De Sa 2023, theorem 6).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank_theory._scale import unit


class Elimination(NamedTuple):
    r"""What errors cost, in the order of the inputs.

    - `prices` $R_{kk}^2$ of a squared error, in units of the mean second moment;
    - `feedback` $R_{jk}/R_{kk}$, strictly upper triangular: `feedback.T @ errors` is what is added.
    """

    prices: Float[Array, " inputs"]
    feedback: Float[Array, "inputs inputs"]


def damped(
    gram: Float[Array, "inputs inputs"], damping: float | Array
) -> Float[Array, "inputs inputs"]:
    r"""$\tilde H$: $H$ divided by the mean of its diagonal, with $\lambda$ = `damping`, or what
    float64 needs to tell a singular $H + \lambda I$ from one that is not, where that is more. Of
    zero $H$, that of the identity. NaN only where $H$ has some. Works under `jit` and `vmap`.
    """
    size = gram.shape[0]
    scaled, _ = unit(gram)
    mean = jnp.trace(scaled) / size
    scaled = jnp.where(mean > 0, scaled / jnp.where(mean > 0, mean, 1), 0)
    least = 4 * size**2 * np.finfo(np.float64).eps  # of Cholesky's backward error, size * trace
    return scaled + jnp.maximum(damping, least) * jnp.eye(size)


def elimination(gram: Float[Array, "inputs inputs"], damping: float | Array) -> Elimination:
    """Of the `damped` gram."""
    lower = jnp.linalg.cholesky(damped(gram, damping)[::-1, ::-1])
    triangle = lower[::-1, ::-1]
    diagonal = jnp.diagonal(triangle)
    return Elimination(diagonal**2, jnp.triu(triangle / diagonal, 1))
