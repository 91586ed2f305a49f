"""The verb `recover`, what a method is, and what comes out."""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lowrank_theory._numerics import AnyArray, InFloat64, check_rank, float64
from lowrank_theory.approximations import AbstractApproximation, LowRank
from lowrank_theory.problems import Observed

NEAR_OPTIMAL = 1e-3
NEGLIGIBLE = 1e-10

_NOT_FINITE = (
    "The recovered factors are not finite: the input had NaN or infinite entries, or a "
    "decomposition failed."
)
_NOT_CERTIFIED = (
    "The result is not certified. Either rounding may have cost more than 0.1 % of the optimal "
    "error (second moments cannot resolve this layer: calibrate again with "
    "`TriangularCalibration`, or recover from the activations themselves), or an iteration stopped "
    "before its gap was closed (allow it more steps). See `certificate`."
)


class Certificate(InFloat64):
    r"""What is known of the factors and the bias as they are returned, in the dtype of the layer,
    from computed quantities only. Its numbers are float64.

    The *error* of a layer is $\lVert Y - \tilde XZ\rVert_F$, in the units of the outputs;
    $\lVert W - Z\rVert_F$ for methods that see weights alone; of `Ridge` the root of its whole
    objective. The *optimum* is the least error of any layer of rank r, affine where the method
    makes a new bias. Where a method lowers singular values, it is the least among layers whose
    outputs have none larger than those that it keeps.

    - `optimal_error`: the optimum as it is known: within `excess_bound` of the true one, and no
      more than the error of the returned factors, but for rounding in float64;
    - `excess_bound`: the error of the returned factors exceeds the true optimum by at most this
      much: what rounding them added, as measured, and the rounding analysis of the route taken. Of
      a published recipe, most of it is what it loses;
    - `target_norm`: the Frobenius norm of what is approximated;
    - `finite`: every returned number is finite;
    - `tolerance`: what share of `optimal_error` the excess may be, to be certified.

    Each is one number, or a stack of them: of several layers, or several ranks.
    """

    optimal_error: Float[Array, "*stack"]
    excess_bound: Float[Array, "*stack"]
    target_norm: Float[Array, "*stack"]
    finite: Bool[Array, "*stack"]
    tolerance: float = eqx.field(static=True, default=NEAR_OPTIMAL)

    @property
    def certified(self) -> Bool[Array, "*stack"]:
        r"""Whether the error is surely within the tolerance (0.1 %, unless the method was asked for
        another) of the optimum, or within $10^{-10}$ of the target's norm of it. Never where one of
        these numbers is not finite, because it left float64.
        """
        with float64():
            negligible = NEGLIGIBLE * self.target_norm
            allowed = jnp.maximum(self.tolerance * self.optimal_error, negligible)
            return self.finite & jnp.isfinite(allowed) & (self.excess_bound <= allowed)


class DualityGap(InFloat64):
    r"""How far an iterative convex method may be from its minimum, by its own duality gap.

    - `gap`: the objective exceeds its minimum by at most this much, in the units of the objective,
      what rounding the factors may have added included;
    - `closed`: the gap is within the tolerance that was asked for;
    - `finite`: every returned number is finite.
    """

    gap: Float[Array, "*stack"]
    closed: Bool[Array, "*stack"]
    finite: Bool[Array, "*stack"]

    @property
    def certified(self) -> Bool[Array, "*stack"]:
        """Whether the gap was closed."""
        return self.finite & self.closed


class MeasuredError(InFloat64):
    r"""The error of a method of which no optimum is known, as it was measured in float64.

    - `error`: a Frobenius norm in the units of the outputs on the calibration (of the weights,
      where nothing was seen), of the numbers as they are returned;
    - `rounding`: the true error is at most this much larger;
    - `target_norm`: the norm of what is approximated;
    - `finite`: every returned number is finite.
    """

    error: Float[Array | np.ndarray, "*stack"]
    rounding: Float[Array | np.ndarray, "*stack"]
    target_norm: Float[Array | np.ndarray, "*stack"]
    finite: Bool[Array | np.ndarray, "*stack"]

    @property
    def certified(self) -> Bool[Array, "*stack"]:
        """Whether the error is known: of finite numbers, and to 0.1 % or $10^{-10}$ of the
        target's norm.
        """
        with float64():
            allowed = jnp.maximum(NEAR_OPTIMAL * self.error, NEGLIGIBLE * self.target_norm)
            return jnp.asarray(self.finite) & jnp.isfinite(allowed) & (self.rounding <= allowed)


class Means(InFloat64):
    r"""Of the affine layer $x \mapsto$ `output` $+ (x -$ `inputs`$)Z$, seen on so many samples."""

    output: Float[AnyArray, "*stack outputs"]
    inputs: Float[AnyArray, "*stack inputs"]
    samples: Float[AnyArray, "*stack"]


class Recovery(eqx.Module):
    """What a method recovered: an `approximation` of the weights, the new `bias` of an affine
    layer, the method, and a certificate.
    """

    approximation: AbstractApproximation
    bias: Float[AnyArray, " outputs"] | None
    certificate: Certificate | DualityGap | MeasuredError
    method: eqx.Module = eqx.field(static=True)

    @property
    def factors(self) -> LowRank:
        """The approximation of a method that gives low rank. Raises `ValueError` for another."""
        if not isinstance(self.approximation, LowRank):
            raise ValueError(
                f"`{type(self.method).__name__}` gives a `{type(self.approximation).__name__}`, "
                "which has no factors: use `recovery.approximation`."
            )
        return self.approximation

    def require(self) -> "Recovery":
        """This recovery, or a runtime error (under `jit` too) where its certificate does not hold.
        Use what it returns.
        """
        with float64():
            checked = eqx.error_if(self.approximation, ~self.certificate.finite, _NOT_FINITE)
            checked = eqx.error_if(checked, ~self.certificate.certified, _NOT_CERTIFIED)
        return Recovery(checked, self.bias, self.certificate, self.method)


class AbstractMethod(eqx.Module):
    """A way to recover a low-rank layer; its fields are its only options."""

    @abc.abstractmethod
    def fit(self, observed: Observed, rank: int) -> Recovery:
        """The recovery of the given rank; `recover` has checked the rank."""


def recover(observed: Observed, rank: int, method: AbstractMethod) -> Recovery:
    """Recover rank-`rank` weights of an observed layer.

    ```python
    recovery = recover(Observed(weights=W, activations=X), rank=8, method=ActivationWeighted())
    outputs = X @ recovery.factors
    ```

    Many layers of one shape are a stack, and go through one program:

    ```python
    stack = jax.tree.map(lambda *each: jnp.stack(each), *layers)  # of `Observed`
    recoveries = jax.vmap(lambda layer: recover(layer, rank=8, method=ActivationWeighted()))(stack)
    ```

    Raises `ValueError` if the rank is not an integer from 1 to min(inputs, outputs), or if the
    method needs something that was not observed. Numerical trouble is no exception but data, in
    `recovery.certificate`; `recovery.require()` raises on it.
    """
    if not isinstance(observed, Observed):
        raise ValueError(f"`observed` must be an `Observed`; got {type(observed).__name__}.")
    if not isinstance(method, AbstractMethod):
        raise ValueError(
            f"`method` must be a method such as `ActivationWeighted()`; got {method!r}."
        )
    return method.fit(observed, check_rank(rank, *observed.shape))


def is_finite(*arrays: Array | np.ndarray) -> Bool[Array, ""]:
    """Whether all entries of all arrays are finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays]))
