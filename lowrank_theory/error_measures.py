"""Each measure of error, once. Norms are Frobenius; whether a measure is squared or relative is in
its name.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank_theory._numerics import in_float64, matmul
from lowrank_theory.problems import Observed, Truth
from lowrank_theory.recovery._low_rank import LowRank
from lowrank_theory.recovery._recover import Recovery


def output_error(recovered: Recovery | LowRank | Array, truth: Truth) -> Float[Array, ""]:
    r"""$\lVert\tilde X(Z - M)\rVert_F$: how far the recovered outputs are from the clean ones."""
    return _distance(_weights(recovered), truth.layer_inputs, truth.clean_outputs)


def weight_error(recovered: Recovery | LowRank | Array, truth: Truth) -> Float[Array, ""]:
    r"""$\lVert Z - M\rVert_F$."""
    return _difference(_weights(recovered), truth.target_weights)


def fitting_error(recovered: Recovery | LowRank | Array, observed: Observed) -> Float[Array, ""]:
    r"""$\lVert Y - \tilde XZ\rVert_F$: how far the recovered outputs are from the observed ones (a
    new bias included).
    """
    bias = recovered.bias if isinstance(recovered, Recovery) else None
    return _distance(_weights(recovered), observed.layer_inputs, observed.target_outputs, bias)


def relative_fitting_error(
    recovered: Recovery | LowRank | Array, observed: Observed
) -> Float[Array, ""]:
    r"""$\lVert Y - \tilde XZ\rVert_F / \lVert Y\rVert_F$; zero where both vanish."""
    return _relative(fitting_error(recovered, observed), observed.target_outputs)


def _weights(recovered: Recovery | LowRank | Array) -> Any:
    factors = recovered.factors if isinstance(recovered, Recovery) else recovered
    return (factors.left, factors.right) if isinstance(factors, LowRank) else (factors,)


@in_float64
def _distance(weights: Any, inputs: Array, outputs: Array, bias: Array | None = None) -> Array:
    recovered = matmul(inputs, *weights)
    return jnp.linalg.norm(outputs - (recovered if bias is None else recovered + bias))


@in_float64
def _difference(weights: Any, target: Array) -> Array:
    return jnp.linalg.norm((matmul(*weights) if len(weights) == 2 else weights[0]) - target)


@in_float64
def _relative(error: Array, outputs: Array) -> Array:
    norm = jnp.linalg.norm(outputs)
    return jnp.where(norm > 0, error / jnp.where(norm > 0, norm, 1), error)
