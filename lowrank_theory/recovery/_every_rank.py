r"""All ranks of a layer from one factorisation.

The best layers of ranks 1, 2, ... of one problem are nested: $Z_r = BV_rV_r^\top$, with $V_r$ the
first r columns of one orthonormal $V$. So one decomposition gives them all, and their errors.
"""

import abc
import dataclasses
import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from lowrank_theory._numerics import AnyArray, check_count, float64, in_float64, matmul
from lowrank_theory._scale import norm, widened
from lowrank_theory.approximations import LowRank, Storage
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._ladder import AbstractLadder, AbstractSweep
from lowrank_theory.recovery._recover import (
    AbstractMethod,
    Certificate,
    Means,
    Recovery,
    is_finite,
)


class EveryRank(AbstractSweep):
    r"""What a method recovers at each rank from 0 to full, the smaller side of the weights: a sweep
    whose sizes are ranks.

    - `factors`: those of full rank; columns of the left and rows of the right come in order, and
      the first r of them are the factors of rank r;
    - `certificates`: one certificate whose entries are arrays, with one number for each rank;
    - `bias`, `input_mean` and `samples`: of an affine layer $x \mapsto b + (x - \bar x)Z_r$ that
      was fitted to so many, in float64 (a bias that is kept has no mean). The bias of one rank, and
      what rounding it costs, comes with `at`.
    """

    factors: LowRank
    certificates: Certificate
    bias: Float[AnyArray, "*stack outputs"] | None
    input_mean: Float[AnyArray, "*stack inputs"] | None
    samples: Float[AnyArray, "*stack"] | None
    method: AbstractMethod = eqx.field(static=True)

    @property
    def errors(self) -> Float[Array, "*stack ranks"]:
        """The optimal error at each rank from 0 to full: what the layer of that rank attains."""
        return self.certificates.optimal_error

    @property
    def squared_errors(self) -> Float[Array, "*stack ranks"]:
        """Their squares."""
        with float64():
            return jnp.asarray(self.errors) ** 2

    @property
    def squared_norm(self) -> Float[Array, "*stack"]:
        """That of the target."""
        with float64():
            return jnp.asarray(self.certificates.target_norm)[..., 0] ** 2

    @property
    def storages(self) -> tuple[Storage, ...]:
        """Of the factors of each rank, in their dtype."""
        *stack, inputs, outputs = self.factors.shape
        each = math.prod(stack) * (inputs + outputs)
        itemsize = self.factors.dtype.itemsize
        return tuple(
            Storage.of_floats(rank * each, itemsize, multiply_adds=rank * each)
            for rank in range(self.factors.rank + 1)
        )

    def name(self, size: int) -> str:
        """The rank."""
        return f"rank {size}"

    def at(self, rank: int | Int[Array, ""]) -> Recovery:
        """The recovery of this rank, as `recover` gives it.

        An integer cuts the factors. A traced one (`jit`, `vmap`, `lax.map`) cannot: it sets to zero
        what is beyond it. Either way one program serves all ranks. Raises `ValueError` for an
        integer outside 0 to full; a traced one is clipped.
        """
        full = width = self.factors.rank
        if not isinstance(rank, Tracer):
            rank = width = check_count("rank", rank, 0, full)
        concrete = not isinstance(self.factors.left, Tracer)
        means = None
        if self.input_mean is not None:
            assert self.bias is not None
            assert self.samples is not None
            means = Means(self.bias, self.input_mean, self.samples)
        factors, bias, certificate = _at(
            self.factors,
            self.certificates,
            means,
            jnp.asarray(rank),
            width=full if concrete else width,
        )
        if width < factors.rank:
            factors = _cut(factors, width)
        return Recovery(factors, self.bias if means is None else bias, certificate, self.method)


@functools.partial(in_float64, like=0)
def _at(
    factors: LowRank,
    certificates: Certificate,
    means: Means | None,
    rank: Int[Array, ""],
    *,
    width: int,
    dtype: Any = None,
) -> tuple[LowRank, Float[Array, " outputs"] | None, Certificate]:
    kept = jnp.arange(width) < rank
    left = jnp.where(kept, factors.left[:, :width], 0)
    right = jnp.where(kept[:, None], factors.right[:width], 0)
    index = jnp.clip(rank, 0, factors.rank)
    certificate = jax.tree.map(lambda each: each[index], certificates)
    if means is None:
        return LowRank(left, right), None, certificate
    shift = matmul(means.inputs, left, right)
    bias = jax.lax.optimization_barrier((means.output - shift).astype(dtype))
    # The error is that of the exact bias and, at right angles to it, what rounding made of this.
    rounding = float(np.finfo(np.float64).eps) * norm(means.output)
    missed = norm(widened(bias) - means.output + shift) + rounding
    optimum, excess = certificate.optimal_error, certificate.excess_bound
    lower = jnp.maximum(optimum - excess, 0)
    excess = jnp.hypot(lower + excess, jnp.sqrt(means.samples) * missed) - lower
    finite = certificate.finite & is_finite(bias)
    certificate = dataclasses.replace(certificate, excess_bound=excess, finite=finite)
    return LowRank(left, right), bias, certificate


def _cut(factors: LowRank, width: int) -> LowRank:
    """The leading part of concrete factors, cut by NumPy: JAX would compile each width anew."""
    with float64():
        left, right = np.asarray(factors.left), np.asarray(factors.right)
        return LowRank(jax.device_put(left[:, :width]), jax.device_put(right[:width]))


class AbstractNestedMethod(AbstractMethod, AbstractLadder):
    """A method whose layers of all ranks come from one factorisation: a ladder of ranks."""

    @abc.abstractmethod
    def fit_every_rank(self, observed: Observed) -> EveryRank:
        """The recoveries of all ranks."""

    def sweep(self, observed: Observed) -> EveryRank:
        """The same."""
        return self.fit_every_rank(observed)


def every_rank(observed: Observed, method: AbstractMethod) -> EveryRank:
    """Recover a layer at all ranks, for the price of one.

    ```python
    sweep = every_rank(Observed(weights=W, activations=X), ActivationWeighted())
    rank = int(np.argmax(sweep.errors <= tolerance))
    recovery = sweep.at(rank).require()
    ```

    For `TruncatedSVD` and `ActivationWeighted`. Under `jit`, `vmap` and `lax.map` one program
    serves all ranks; many layers of one shape are a stack, as in `recover`. It is differentiable
    where no two singular values are equal (`recover`, where those at the cut are not), unless there
    are fewer samples, or inputs, than outputs: there JAX refuses.

    Raises `ValueError` for another method, or where the method needs something that was not
    observed.
    """
    if not isinstance(observed, Observed):
        raise ValueError(f"`observed` must be an `Observed`; got {type(observed).__name__}.")
    if not isinstance(method, AbstractNestedMethod):
        raise ValueError(
            "`method` must be one whose ranks are nested, `TruncatedSVD()` or "
            f"`ActivationWeighted()`; got {method!r}. Call `recover` for each rank."
        )
    return method.fit_every_rank(observed)
