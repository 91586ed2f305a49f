r"""Low rank behind a ReLU: the matching loss over a nuclear-norm ball.

Outputs $Y = \rho(F_*) + E$ are seen after the ReLU $\rho$, with noise; the pre-activations
$F_* = \tilde X M$ have small nuclear norm. Least squares in $\rho(\tilde X Z)$ is not convex. The
*matching loss* is: its derivative at $F$ is $\rho(F) - Y$, monotone, and zero on average at $F_*$.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real

from lowrank_theory._numerics import (
    check_array,
    check_count,
    check_positive,
    check_same,
    in_float64,
    matmul,
    resolution,
    safe_sqrt,
    settle,
)
from lowrank_theory._scale import at_scale_one, norm, times_power, unit, widened
from lowrank_theory._subspaces import column_space
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._checks import check_rectified
from lowrank_theory.recovery._convex import Convergence, ConvexFit, leading_part
from lowrank_theory.recovery._recover import AbstractMethod, Recovery, is_finite
from lowrank_theory.recovery.nuclear_norm import ball_threshold


class NuclearNormRelu(AbstractMethod):
    r"""The minimiser of the matching loss over $\lVert\tilde XZ\rVert_* \le$ `radius`.

    See `nuclear_norm_relu` for the problem, the `tolerance` on the duality gap, and what it
    guarantees. The convex problem has no rank constraint: `rank` keeps that many leading components
    of the fitted pre-activations, and the guarantee is that of `min(inputs, outputs)`, where all
    are kept.
    """

    radius: float
    tolerance: float = 1e-4
    max_steps: int = 2000

    def __check_init__(self) -> None:
        settle(self, "radius", check_positive, zero=True)
        settle(self, "tolerance", check_positive)
        settle(self, "max_steps", check_count, 1)

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Fit outputs seen after a ReLU. Raises `ValueError` if there are none, or with a bias."""
        fit = nuclear_norm_relu(
            observed.layer_inputs,
            check_rectified(self, observed),
            self.radius,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
        )
        return leading_part(self, observed, fit, rank)


def nuclear_norm_relu(
    activations: ArrayLike,
    outputs: ArrayLike,
    radius: ArrayLike,
    *,
    tolerance: float = 1e-4,
    max_steps: int = 2000,
) -> ConvexFit:
    r"""Fit outputs seen after a ReLU by pre-activations of bounded nuclear norm.

    With activations $\tilde X$ (samples, inputs), outputs $Y$ (samples, outputs) and radius $R$,
    minimise over $F = \tilde X Z$

    $$ f(F) = \sum_{ij} \tfrac12 \rho(F_{ij})^2 - Y_{ij} F_{ij}
       \quad\text{subject to}\quad \lVert F \rVert_* \le R. $$

    **Guarantee.** The duality gap of a feasible $F$ is
    $g = \max_{F'} \langle \nabla f(F), F - F' \rangle$ over the feasible $F'$. Whatever it is,
    every feasible $F_*$ satisfies, with $E = Y - \rho(F_*)$,

    $$ \lVert \rho(F) - \rho(F_*) \rVert_F^2 \le \langle E, F - F_* \rangle + g. $$

    *Proof.* As $\nabla f(F) = \rho(F) - Y = \rho(F) - \rho(F_*) - E$, taking $F' = F_*$ gives
    $\langle \rho(F) - \rho(F_*), F - F_* \rangle \le \langle E, F - F_* \rangle + g$. And
    $(\rho(a) - \rho(b))^2 \le (\rho(a) - \rho(b))(a - b)$: $\rho$ is monotone and 1-Lipschitz. ∎

    In the same way $\lVert \rho(F) - \rho(\hat F) \rVert_F^2 \le g$ for every minimiser
    $\hat F$: $\rho(\hat F)$ is unique; $\hat F$ need not be where it is negative.

    **Scale.** The iteration stops when $g \le$ `tolerance` $\cdot\, R \lVert P Y \rVert$ (operator
    norm, $P$ projects on the columns of $\tilde X$). That product is the gap of $F = 0$, so the
    tolerance is the part of it which may be left. Multiplying $Y$ and $R$ by $c$ multiplies $F$ by
    $c$, and $f$, $g$ and this scale by $c^2$; multiplying $\tilde X$ changes `weights` only. Like
    the bound $2 R \lVert P E \rVert$ on $\langle E, F - F_* \rangle$, the scale is proportional to
    $R$: with a radius far larger than needed, ask for a smaller tolerance.

    `objective` is $f(F)$, and what the layer is fitted to give is $\rho(F)$. `weights` reproduce
    `preactivations` up to rounding times the condition number of $\tilde X$.

    Runs under `jit`, `vmap` and `lax.map`, where the radius may be traced too; a batch takes the
    steps of its slowest member. Not differentiable in reverse mode: JAX raises its `ValueError`
    about `while_loop`.

    Raises `ValueError` if the arrays are not floating matrices with the same number of samples, or
    have non-finite entries, if `radius` is not one finite number >= 0, `tolerance` not positive or
    `max_steps` not a positive integer. Of traced values only shape and dtype are checked: where
    they are not finite, or the radius is negative, the result is NaN and `converged` false.
    """
    x: Any = check_array("activations", activations, "samples", "inputs")
    y: Any = check_array("outputs", outputs, "samples", "outputs")
    check_same("outputs", y.shape[0], "activations", x.shape[0], "samples")
    if np.ndim(radius) != 0:
        raise ValueError(f"`radius` must be one number; got shape {np.shape(radius)}.")
    number = radius if isinstance(radius, Tracer) else check_positive("radius", radius, zero=True)
    return _solve(
        x,
        y,
        radius if hasattr(radius, "dtype") else number,
        check_positive("tolerance", tolerance),
        check_count("max_steps", max_steps, 1),
        resolution=resolution(x),
    )


@in_float64
def _solve(
    activations: Float[Array, "samples inputs"],
    outputs: Float[Array, "samples outputs"],
    radius: Real[Array, ""],
    tolerance: Float[Array, ""],
    max_steps: Int[Array, ""],
    *,
    resolution: float,
    dtype: Any = None,
) -> ConvexFit:
    r"""Accelerated projected gradient in the coordinates of the column space of $\tilde X$.

    With $F = Q T$, $Q$ an orthonormal basis, $\lVert F \rVert_* = \lVert T \rVert_*$ and the
    gradient $\gamma(T) = Q^T(\rho(QT) - Y)$ is 1-Lipschitz. So the step from a point $S$, ahead of
    the last one, is $T = \Pi(S - \gamma(S))$ with $\Pi$ the projection on the ball. Momentum is
    dropped whenever it points uphill (O'Donoghue and Candès 2015, gradient scheme).

    The gap costs no second decomposition. $V = S - \gamma(S) - T$ is normal to the ball at $T$:
    $\langle V, T - T' \rangle \ge 0$ on the ball. As $\gamma(T) = D - V$ with
    $D = \gamma(T) - \gamma(S) - (T - S)$, the gap is at most
    $\max_{T'} \langle D, T - T' \rangle \le \langle D, T \rangle + R \lVert D \rVert_F$, and
    $D \to 0$. The loop stops on this bound; the gap itself is computed once, at the end.
    """
    sound = is_finite(activations, outputs, radius) & (radius >= 0)
    # LAPACK's SVD answers NaN with NaN, but never returns from an infinity.
    activations, outputs = (jnp.where(sound, a, jnp.nan) for a in (activations, outputs))
    outputs, power = unit(outputs)
    radius = at_scale_one(radius, power)

    space = column_space(activations, resolution)
    basis = space.basis
    target = matmul(basis.T, outputs)

    def gradient(point: Float[Array, "rank outputs"]) -> Float[Array, "rank outputs"]:
        return matmul(basis.T, jax.nn.relu(matmul(basis, point))) - target

    start, largest = _project(target, radius)
    allowed = tolerance * radius * largest  # times the gap of the origin

    def unfinished(state: Any) -> Bool[Array, ""]:
        step, _, _, _, gap_bound = state
        return (step < max_steps) & (gap_bound > allowed)

    def advance(state: Any) -> Any:
        step, previous, ahead, momentum, _ = state
        slope = gradient(ahead)
        point, _ = _project(ahead - slope, radius)
        change = gradient(point) - slope - (point - ahead)
        gap_bound = jnp.sum(change * point) + radius * jnp.linalg.norm(change)
        uphill = jnp.sum((ahead - point) * (point - previous)) > 0
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        weight = jnp.where(uphill, 0, (momentum - 1) / following)
        momentum = jnp.where(uphill, 1, following)
        return step + 1, point, point + weight * (point - previous), momentum, gap_bound

    state = (jnp.int32(0), start, start, jnp.ones(()), jnp.asarray(jnp.inf))
    steps, point, _, _, _ = jax.lax.while_loop(unfinished, advance, state)

    slope = gradient(point)
    gap = jnp.sum(slope * point) + radius * jnp.linalg.svd(slope, compute_uv=False)[0]
    preactivations = matmul(basis, point)
    slope_norm = safe_sqrt(jnp.sum((jax.nn.relu(preactivations) - outputs) ** 2))
    leeway = tolerance * radius / math.sqrt(min(point.shape))
    convergence = Convergence(
        gap=times_power(gap, 2 * power),
        allowed_gap=times_power(allowed, 2 * power),
        closed=gap <= allowed,
        output_slope=times_power(slope_norm, power),
        weight_slope=jnp.zeros(()),
        output_margin=times_power(leeway, power),
        weight_margin=jnp.asarray(jnp.inf),
    )
    objective = jnp.sum(jax.nn.relu(preactivations) ** 2 / 2 - outputs * preactivations)
    weights = space.weights(point, power).astype(dtype)
    stored = times_power(preactivations, power).astype(dtype)
    moved = norm(at_scale_one(widened(stored), power) - preactivations)
    return ConvexFit(
        weights=weights,
        preactivations=stored,
        objective=times_power(objective, 2 * power),
        steps=steps,
        convergence=convergence.after(times_power(moved, power), jnp.zeros(())),
    )


def _project(
    matrix: Float[Array, "rows columns"], radius: Real[Array, ""]
) -> tuple[Float[Array, "rows columns"], Float[Array, ""]]:
    """The nearest matrix of nuclear norm at most the radius, and the operator norm before."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    lowered = jnp.maximum(values - ball_threshold(values, radius), 0)
    return matmul(left * lowered, right), values[0]
