r"""Least squares under a nuclear norm: of the outputs, in closed form, or of the weights, by an
accelerated gradient method that knows how far it is from the minimum.

On the outputs $F = \tilde XZ$ the penalised problem is `SingularValueThreshold`, and the
constrained one lowers the singular values of $PY$ by a common amount until their sum is the radius.
On the weights $Z$ themselves neither has a closed form.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lowrank_theory._numerics import (
    after,
    check_count,
    check_positive,
    in_float64,
    matmul,
    relative_rank_cutoff,
    safe_divide,
    safe_sqrt,
    settle,
)
from lowrank_theory._scale import at_scale_one, norm, times_power, unit, widened
from lowrank_theory._subspaces import column_space
from lowrank_theory.approximations import LowRank
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._attainable import fit_outputs
from lowrank_theory.recovery._checks import check_no_bias
from lowrank_theory.recovery._convex import Convergence, ConvexFit, leading_part
from lowrank_theory.recovery._recover import AbstractMethod, Certificate, Recovery
from lowrank_theory.recovery._singular_value_threshold import singular_value_threshold


class NuclearNormBall(AbstractMethod):
    r"""The minimiser of $\lVert Y-\tilde XZ\rVert_F$ over $\lVert\tilde XZ\rVert_* \le$ `radius`.

    The convex problem has no rank constraint: `rank` only sets how many components the factors can
    hold, and `min(inputs, outputs)` is the estimator of the theory
    (paper_notes/approximate_rank.md). Where $\lVert PY\rVert_*$ is within the radius the fit is
    least squares.
    """

    radius: float

    def __check_init__(self) -> None:
        settle(self, "radius", check_positive, zero=True)

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Project what the layer can express on the ball. Raises `ValueError` without activations,
        or with a bias.
        """
        return fit_outputs(self, observed, rank, nuclear_norm_ball, self.radius)


@in_float64
def nuclear_norm_ball(
    layer_inputs: Float[Array, "samples inputs"],
    outputs: Float[Array, "samples outputs"],
    radius: Float[Array, ""] | float,
    *,
    rank: int,
    resolution: float = float(np.finfo(np.float64).eps),
    dtype: Any = None,
) -> tuple[LowRank, Certificate]:
    r"""The pure function beneath `NuclearNormBall`: `singular_value_threshold` at the threshold of
    `ball_threshold`.

    Works under `jit`, `vmap` and `grad`, where that does.
    """
    layer_inputs = after(outputs, layer_inputs)
    basis = column_space(layer_inputs, resolution).basis
    attainable = jnp.linalg.svd(matmul(basis.T, outputs), compute_uv=False)
    return singular_value_threshold(
        after(attainable, layer_inputs),
        outputs,
        ball_threshold(attainable, radius),
        rank=rank,
        resolution=resolution,
        dtype=dtype,
    )


def ball_threshold(
    values: Float[Array, " count"], radius: Float[Array, ""] | float
) -> Float[Array, ""]:
    r"""How far decreasing singular values must be lowered for their positive parts to sum to at
    most the radius.

    $\theta = \max(0, \max_k (s_1 + \dots + s_k - R)/k)$: the quotient rises while $s_{k+1}$ exceeds
    it and falls from then on. The lowered matrix is the nearest one in the ball.
    """
    counts = jnp.arange(1, values.size + 1)
    return jnp.maximum(0, jnp.max((jnp.cumsum(values) - radius) / counts))


class WeightNuclearNormPenalty(AbstractMethod):
    r"""The minimiser of $\tfrac12\lVert Y-\tilde XZ\rVert_F^2 + \tau\lVert Z\rVert_*$, $\tau$ =
    `penalty`.

    Unlike `SingularValueThreshold` it prices the weights and not the outputs, and so prefers strong
    directions of the activations. See `weight_nuclear_norm_penalty` for the `tolerance`. The convex
    problem has no rank constraint: `rank` keeps that many leading components of the fitted outputs,
    and `min(inputs, outputs)` keeps all.
    """

    penalty: float
    tolerance: float = 1e-6
    max_steps: int = 2000

    def __check_init__(self) -> None:
        settle(self, "penalty", check_positive, zero=True)
        settle(self, "tolerance", check_positive)
        settle(self, "max_steps", check_count, 1)

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Fit the outputs. Raises `ValueError` without activations, or with a bias."""
        return _fit(self, observed, rank, weight_nuclear_norm_penalty, self.penalty)


class WeightNuclearNormBall(AbstractMethod):
    r"""The minimiser of $\lVert Y-\tilde XZ\rVert_F$ over $\lVert Z\rVert_* \le$ `radius`.

    Unlike `NuclearNormBall` it bounds the weights and not the outputs. See
    `weight_nuclear_norm_ball` for the `tolerance`. `rank` keeps that many leading components of the
    fitted outputs, and `min(inputs, outputs)` keeps all.
    """

    radius: float
    tolerance: float = 1e-6
    max_steps: int = 2000

    def __check_init__(self) -> None:
        settle(self, "radius", check_positive, zero=True)
        settle(self, "tolerance", check_positive)
        settle(self, "max_steps", check_count, 1)

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Fit the outputs. Raises `ValueError` without activations, or with a bias."""
        return _fit(self, observed, rank, weight_nuclear_norm_ball, self.radius)


def _fit(
    method: WeightNuclearNormPenalty | WeightNuclearNormBall,
    observed: Observed,
    rank: int,
    solve: Callable[..., ConvexFit],
    parameter: float,
) -> Recovery:
    check_no_bias(method, observed)
    fit = solve(
        observed.layer_inputs,
        observed.exact_outputs,
        parameter,
        tolerance=method.tolerance,
        max_steps=method.max_steps,
        dtype=observed.dtype,
    )
    return leading_part(method, observed, fit, rank)


@in_float64
def weight_nuclear_norm_penalty(
    layer_inputs: Float[Array, "samples inputs"],
    outputs: Float[Array, "samples outputs"],
    penalty: Float[Array, ""] | float,
    *,
    tolerance: float = 1e-6,
    max_steps: int = 2000,
    dtype: Any = None,
) -> ConvexFit:
    r"""Minimise $\tfrac12\lVert Y-\tilde XZ\rVert_F^2 + \tau\lVert Z\rVert_*$ over $Z$.

    With $\rho = P(Y - \tilde XZ)$ and any $0 \le c \le \min(1, \tau/\lVert\tilde X^\top\rho\rVert)$
    the matrix $c\rho$ is feasible for the dual problem, so the objective exceeds its minimum by at
    most

    $$ g = \tfrac12\lVert\rho\rVert_F^2 + \tau\lVert Z\rVert_* - c\langle PY, \rho\rangle
       + \tfrac12c^2\lVert\rho\rVert_F^2 . $$

    The iteration stops when $g \le$ `tolerance` $\cdot\,\tfrac12\lVert PY\rVert_F^2$. Where
    $\tau \ge \lVert\tilde X^\top Y\rVert$ the fit is zero. Runs under `jit` and `vmap`; not
    differentiable in reverse mode.
    """
    outputs, power = unit(outputs)
    problem = _in_coordinates(layer_inputs, outputs)
    threshold = at_scale_one(safe_divide(jnp.asarray(penalty), problem.largest), power)
    missed, slope = problem.missed(threshold / 2)
    room = threshold - slope

    def proximal(matrix: Array) -> tuple[Array, Array]:
        return _lowered(matrix, lambda _: threshold)

    def gap(point: Array, nuclear: Array) -> Array:
        residual = problem.residual(point)
        slope_norm = _operator_norm(problem.values * residual)
        scale = jnp.where(slope_norm > room, safe_divide(room, slope_norm), 1)
        energy, fitted = jnp.sum(residual**2), jnp.sum(residual * problem.target)
        return (1 + scale**2) * energy / 2 + threshold * nuclear - scale * fitted + missed

    origin = gap(jnp.zeros_like(problem.target), jnp.zeros(()))
    allowed = tolerance * jnp.sum(problem.target**2) / 2
    last = _accelerated(problem, proximal, gap, origin, allowed, max_steps)
    objective = problem.objective(last.point) + threshold * last.nuclear
    return _weight_fit(layer_inputs, problem, last, objective, allowed, power, dtype, price=penalty)


@in_float64
def weight_nuclear_norm_ball(
    layer_inputs: Float[Array, "samples inputs"],
    outputs: Float[Array, "samples outputs"],
    radius: Float[Array, ""] | float,
    *,
    tolerance: float = 1e-6,
    max_steps: int = 2000,
    dtype: Any = None,
) -> ConvexFit:
    r"""Minimise $\tfrac12\lVert Y-\tilde XZ\rVert_F^2$ over $\lVert Z\rVert_* \le R$.

    The objective of a feasible $Z$ exceeds the minimum by at most

    $$ g = \max_{\lVert Z'\rVert_*\le R}\langle S, Z - Z'\rangle
         = \langle S, Z\rangle + R\lVert S\rVert, \qquad S = \tilde X^\top(\tilde XZ - Y). $$

    The iteration stops when $g \le$ `tolerance` $\cdot\,R\lVert\tilde X^\top Y\rVert$, that part of
    the gap of $Z = 0$. Whatever $g$ is, every feasible $M$ satisfies, with $E = Y - \tilde XM$,
    $\lVert\tilde X(Z-M)\rVert_F^2 \le \langle E, \tilde X(Z-M)\rangle + g \le 2R\lVert\tilde
    X^\top E\rVert + g$ (put $Z' = M$). Runs under `jit` and `vmap`; not differentiable in reverse
    mode.
    """
    outputs, power = unit(outputs)
    problem = _in_coordinates(layer_inputs, outputs)
    scaled_radius = at_scale_one(radius * problem.largest, power)
    missed = jnp.minimum(scaled_radius * problem.weak, problem.hidden)

    def proximal(matrix: Array) -> tuple[Array, Array]:
        return _lowered(matrix, lambda values: ball_threshold(values, scaled_radius))

    def gap(point: Array, _: Array) -> Array:
        slope = -problem.values * problem.residual(point)
        return jnp.sum(slope * point) + scaled_radius * _operator_norm(slope) + missed

    origin = gap(jnp.zeros_like(problem.target), jnp.zeros(()))
    allowed = tolerance * (origin - missed)
    last = _accelerated(problem, proximal, gap, origin, allowed, max_steps)
    objective, leeway = problem.objective(last.point), tolerance * radius
    return _weight_fit(layer_inputs, problem, last, objective, allowed, power, dtype, leeway=leeway)


def _weight_fit(
    layer_inputs: Array,
    problem: "_Coordinates",
    last: "_Iterate",
    objective: Array,
    allowed: Array,
    power: Array,
    dtype: np.dtype | None,
    *,
    price: Array | float = 0.0,
    leeway: Array | float = jnp.inf,
) -> ConvexFit:
    """The fit whose outputs are $2^p$ times those of the problem; `price` is that of the nuclear
    norm of the weights, and `leeway` how much too large it may be.
    """
    residual = safe_sqrt(jnp.sum(problem.residual(last.point) ** 2) + 2 * problem.unattainable)
    root_rank = math.sqrt(
        min(last.point.shape)
    )  # a nuclear norm is at most so many Frobenius norms
    convergence = Convergence(
        gap=times_power(last.gap, 2 * power),
        allowed_gap=times_power(allowed, 2 * power),
        closed=last.gap <= allowed,
        output_slope=times_power(residual, power),
        weight_slope=jnp.asarray(price * root_rank),
        output_margin=jnp.asarray(jnp.inf),
        weight_margin=jnp.asarray(leeway / root_rank),
    )
    weights = problem.weights(last.point)
    stored = times_power(weights, power).astype(dtype)
    change = at_scale_one(widened(stored), power) - weights
    moved = norm(problem.values * matmul(problem.right, change)) * problem.largest
    (rows, rows_power), (layer, layer_power) = unit(layer_inputs), unit(widened(stored))
    return ConvexFit(
        weights=stored,
        preactivations=times_power(matmul(rows, layer), rows_power + layer_power),
        objective=times_power(objective, 2 * power),
        steps=last.steps,
        convergence=convergence.after(times_power(moved, power), times_power(norm(change), power)),
    )


class _Coordinates(eqx.Module):
    r"""The problem in the singular vectors of $\tilde X = U\operatorname{diag}(s)V^\top$.

    Unknown is $T = s_1V^\top Z$, with the nuclear norm of $s_1Z$. `values` are the $s_i/s_1$ in a
    column, zero where they are negligible, so that the gradient is 1-Lipschitz; `target` is
    $U^\top Y$, and `unattainable` the rest of $\tfrac12\lVert Y\rVert_F^2$. In directions that
    are negligible there are `hidden` $= \tfrac12\lVert Y'\rVert_F^2$ of it, of which a point can
    reach at most `weak` $\lVert T\rVert_*$.
    """

    values: Float[Array, "count 1"]
    largest: Float[Array, ""]
    right: Float[Array, "count inputs"]
    target: Float[Array, "count outputs"]
    unattainable: Float[Array, ""]
    hidden: Float[Array, ""]
    weak: Float[Array, ""]

    def missed(self, price: Array) -> tuple[Array, Array]:
        r"""An (m, p) such that $\tfrac12\lVert Y' - A'T\rVert_F^2 + p\lVert T\rVert_* \ge
        \tfrac12\lVert Y'\rVert_F^2 - m$ for every T, with p at most the price: the least m.

        The left side is at least $(c - \tfrac12c^2)\lVert Y'\rVert_F^2 + (p - cw)\lVert
        T\rVert_*$ for every c.
        """
        part = jnp.where(self.weak > price, safe_divide(price, self.weak), 1)
        return (1 - part) ** 2 * self.hidden, part * self.weak

    def residual(self, point: Float[Array, "count outputs"]) -> Float[Array, "count outputs"]:
        return self.target - self.values * point

    def objective(self, point: Float[Array, "count outputs"]) -> Float[Array, ""]:
        return self.unattainable + jnp.sum(self.residual(point) ** 2) / 2

    def weights(self, point: Float[Array, "count outputs"]) -> Float[Array, "inputs outputs"]:
        return safe_divide(matmul(self.right.T, point), self.largest)


def _in_coordinates(
    layer_inputs: Float[Array, "samples inputs"], outputs: Float[Array, "samples outputs"]
) -> _Coordinates:
    left, values, right = jnp.linalg.svd(layer_inputs, full_matrices=False)
    values, largest = safe_divide(values, values[0]), values[0]
    kept = values > relative_rank_cutoff(layer_inputs.shape)
    basis = left * kept
    others = matmul((left * ~kept).T, outputs)
    target = matmul(basis.T, outputs)
    return _Coordinates(
        values=jnp.where(kept, values, 0)[:, None],
        largest=largest,
        right=right,
        target=target,
        unattainable=jnp.sum((outputs - matmul(basis, target)) ** 2) / 2,
        hidden=jnp.sum(others**2) / 2,
        weak=jnp.max(jnp.where(kept, 0, values)) * safe_sqrt(jnp.sum(others**2)),
    )


def _lowered(
    matrix: Float[Array, "rows columns"], threshold: Callable[[Array], Array]
) -> tuple[Float[Array, "rows columns"], Float[Array, ""]]:
    """The matrix with its singular values lowered by the threshold made from them, and its nuclear
    norm then.
    """
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    lowered = jnp.maximum(values - threshold(values), 0)
    return matmul(left * lowered, right), jnp.sum(lowered)


def _operator_norm(matrix: Float[Array, "rows columns"]) -> Float[Array, ""]:
    return jnp.linalg.svd(matrix, compute_uv=False)[0]


class _Iterate(eqx.Module):
    """A point, its nuclear norm, its gap, and the number of steps to it."""

    point: Float[Array, "count outputs"]
    nuclear: Float[Array, ""]
    gap: Float[Array, ""]
    steps: Int[Array, ""]


def _accelerated(
    problem: _Coordinates,
    proximal: Callable[[Array], tuple[Array, Array]],
    gap: Callable[[Array, Array], Array],
    origin_gap: Float[Array, ""],
    allowed: Float[Array, ""],
    max_steps: int,
) -> _Iterate:
    """The last point of proximal gradient with momentum (Beck and Teboulle 2009), dropped whenever
    it points uphill (O'Donoghue and Candès 2015, gradient scheme), from zero until the gap is
    allowed.
    """

    def unfinished(state: Any) -> Bool[Array, ""]:
        step, *_, last_gap = state
        return (step < max_steps) & (last_gap > allowed)

    def advance(state: Any) -> Any:
        step, previous, ahead, momentum, _, _ = state
        point, nuclear = proximal(ahead + problem.values * problem.residual(ahead))
        uphill = jnp.sum((ahead - point) * (point - previous)) > 0
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        weight = jnp.where(uphill, 0, (momentum - 1) / following)
        momentum = jnp.where(uphill, 1, following)
        ahead = point + weight * (point - previous)
        return step + 1, point, ahead, momentum, nuclear, gap(point, nuclear)

    origin = jnp.zeros_like(problem.target)
    state = (jnp.int32(0), origin, origin, jnp.ones(()), jnp.zeros(()), origin_gap)
    steps, point, _, _, nuclear, last_gap = jax.lax.while_loop(unfinished, advance, state)
    return _Iterate(point, nuclear, last_gap, steps)
