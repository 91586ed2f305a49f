"""Each measure of error, once. Norms are Frobenius; whether a measure is squared or relative is in
its name.

They are of the numbers as they are stored, computed in float64 at scale one, and leave in the
common dtype of what they compare, in float32 if that is narrower.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lowrank_theory._numerics import float_dtype, in_float64, matmul
from lowrank_theory._scale import norm, times_power, unit
from lowrank_theory.approximations import AbstractMatrix
from lowrank_theory.problems import Observed, Truth
from lowrank_theory.recovery import Recovery

Term = tuple[Any, ...]  # matrices to be multiplied
Recovered = Recovery | AbstractMatrix | Array | np.ndarray


def output_error(recovered: Recovered, truth: Truth) -> Float[Array, ""]:
    r"""$\lVert\tilde X(Z - M)\rVert_F$: how far the recovered outputs are from the clean ones."""
    inputs = truth.layer_inputs
    found = tuple((inputs, *chain) for chain in _chains(recovered))
    return _distance(((inputs, truth.target_weights),), found)


def weight_error(recovered: Recovered, truth: Truth) -> Float[Array, ""]:
    r"""$\lVert Z - M\rVert_F$."""
    return _distance(((truth.target_weights,),), _chains(recovered))


def fitting_error(recovered: Recovered, observed: Observed) -> Float[Array, ""]:
    r"""$\lVert Y - \tilde XZ\rVert_F$: how far the recovered outputs are from the observed ones (a
    new bias included).
    """
    return _distance(*_outputs(recovered, observed))


def relative_fitting_error(recovered: Recovered, observed: Observed) -> Float[Array, ""]:
    r"""$\lVert Y - \tilde XZ\rVert_F / \lVert Y\rVert_F$; zero where both vanish."""
    return _measured(_relative, *_outputs(recovered, observed))


def _chains(recovered: Recovered) -> tuple[Term, ...]:
    """The matrix as a sum of products."""
    given = recovered.approximation if isinstance(recovered, Recovery) else recovered
    if isinstance(given, AbstractMatrix):
        return given.chains()
    if not isinstance(given, Array | np.ndarray):
        raise ValueError(
            "`recovered` must be a recovery, an approximation that is a matrix, or an array; got "
            f"{type(given).__name__}."
        )
    return ((given,),)


def _outputs(recovered: Recovered, observed: Observed) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """Those of the layer, and those of the recovered one, as sums of products."""
    inputs = observed.layer_inputs
    bias = recovered.bias if isinstance(recovered, Recovery) else None
    found = [(inputs, *chain) for chain in _chains(recovered)]
    found += [] if bias is None else [(bias,)]
    if observed.outputs is not None:
        return ((observed.outputs,),), tuple(found)
    kept = [] if observed.bias is None else [(observed.bias,)]
    return ((observed.activations, observed.weights), *kept), tuple(found)


def _distance(wanted: tuple[Term, ...], found: tuple[Term, ...]) -> Float[Array, ""]:
    return _measured(_absolute, wanted, found)


def _measured(measure: Any, wanted: tuple[Term, ...], found: tuple[Term, ...]) -> Array:
    dtype = float_dtype(wanted, found, np.zeros((), np.float32))
    return measure(wanted, found, dtype=dtype)


@in_float64
def _absolute(wanted: tuple[Term, ...], found: tuple[Term, ...], *, dtype: np.dtype) -> Array:
    missing, _, power = _compared(wanted, found)
    return times_power(norm(missing), power)


@in_float64
def _relative(wanted: tuple[Term, ...], found: tuple[Term, ...], *, dtype: np.dtype) -> Array:
    missing, target, power = _compared(wanted, found)
    size, error = norm(target), norm(missing)
    ratio = error / jnp.where(size > 0, size, 1)
    return jnp.where(size > 0, ratio, times_power(error, power))


def _compared(
    wanted: tuple[Term, ...], found: tuple[Term, ...]
) -> tuple[Array, Array, Int[Array, ""]]:
    """What is missing, and what is wanted, both divided by one power of two."""
    terms = [_product(term) for term in (*wanted, *found)]
    power = jnp.max(jnp.stack([jnp.where(jnp.any(t != 0), p, -5000) for t, p in terms]))
    scaled = [times_power(term, each - power) for term, each in terms]
    target = functools.reduce(jnp.add, scaled[: len(wanted)])
    return target - functools.reduce(jnp.add, scaled[len(wanted) :]), target, power


def _product(matrices: Any) -> tuple[Array, Int[Array, ""]]:
    """A product at scale one, and its power of two."""
    scaled, powers = zip(*(unit(matrix) for matrix in matrices), strict=True)
    return matmul(*scaled), functools.reduce(jnp.add, powers)
