r"""Low rank behind a ReLU that came after the noise: the censored likelihood.

Outputs $Y = \rho(F_* + \sigma G)$ are seen after the ReLU $\rho$, which the noise, too, has passed:
where $Y_{ij} = 0$ only the sign of a noisy pre-activation is known (Tobin 1958). With $\Phi$ the
normal distribution function, the negative log-likelihood, times $\sigma^2$, is convex:

$$ f(F) = \sum_{Y_{ij} > 0} \tfrac12 (Y_{ij} - F_{ij})^2
        - \sum_{Y_{ij} = 0} \sigma^2 \ln\Phi(-F_{ij}/\sigma) . $$
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real

from lowrank_theory._numerics import (
    AnyArray,
    check_array,
    check_count,
    check_positive,
    check_rank,
    check_same,
    in_float64,
    matmul,
    resolution,
    safe_divide,
    safe_sqrt,
    settle,
)
from lowrank_theory._scale import norm, widened
from lowrank_theory._subspaces import ColumnSpace, column_space, leading_right_vectors
from lowrank_theory.problems import Observed
from lowrank_theory.recovery._checks import check_rectified
from lowrank_theory.recovery._convex import Convergence, ConvexFit, leading_part
from lowrank_theory.recovery._recover import AbstractMethod, Recovery, is_finite

_FAR = 5.0  # from here on the continued fraction has converged ...
_TERMS = 24  # ... after so many terms


def _excess(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$h(x) - x$ for large $x$, by Laplace's continued fraction $1/(x + 2/(x + 3/(x + \dots)))$
    of the normal tail, from the inside out; what is left off is taken to repeat its first term.
    """
    far = jnp.where(x < _FAR, _FAR, x)
    value = (far + jnp.sqrt(far**2 + 4 * (_TERMS + 1))) / 2
    for n in range(_TERMS, 1, -1):
        value = far + n / value
    return 1 / value


def hazard(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""The normal hazard rate $h(x) = \varphi(x)/\Phi(-x)$, the inverse of Mills' ratio.

    Increasing, convex, between $\max(x, 0)$ and $\max(x, 0) + \sqrt{2/\pi}$; $-h(x)$ is the mean of
    a standard normal variable, given that it is below $-x$. In float64, within $10^{-12}$ of itself
    for $|x| \le 30$. Call it inside `float64`.
    """
    near = jnp.where(x < _FAR, x, 0)  # not a minimum, whose derivative is half at a tie
    density = jnp.exp(-(near**2) / 2) * math.sqrt(2 / math.pi)
    direct = density / jax.lax.erfc(near / math.sqrt(2))
    return jnp.where(x < _FAR, direct, x + _excess(x))


def hazard_slope(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$h'(x) = h(x)(h(x) - x)$, the curvature of $-\ln\Phi(-x)$: increasing, between 0 and 1."""
    value = hazard(x)
    return value * jnp.where(x < _FAR, value - x, _excess(x))


def negative_log_survival(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$-\ln\Phi(-x)$, convex, with derivative $h(x)$; as precise as `hazard`."""
    negative, middle = x < 0, (x >= 0) & (x < _FAR)
    below = -jnp.log1p(-jax.lax.erfc(-jnp.where(negative, x, 0) / math.sqrt(2)) / 2)
    between = -jnp.log(jax.lax.erfc(jnp.where(middle, x, 0) / math.sqrt(2)) / 2)
    far = jnp.where(x < _FAR, _FAR, x)
    above = far**2 / 2 + math.log(2 * math.pi) / 2 + jnp.log(far + _excess(far))
    return jnp.where(negative, below, jnp.where(middle, between, above))


def censored_loss(
    preactivations: Float[Array, "samples outputs"],
    outputs: Float[AnyArray, "samples outputs"],
    noise_scale: Float[Array, ""],
) -> Float[Array, ""]:
    r"""$f(F)$, in the squared units of the outputs. Call it inside `float64`."""
    hidden = noise_scale**2 * negative_log_survival(preactivations / noise_scale)
    return jnp.sum(jnp.where(outputs > 0, (outputs - preactivations) ** 2 / 2, hidden))


def censored_gradient(
    preactivations: Float[Array, "samples outputs"],
    outputs: Float[AnyArray, "samples outputs"],
    noise_scale: Float[Array, ""],
) -> Float[Array, "samples outputs"]:
    r"""$\nabla f(F)$: $F_{ij} - Y_{ij}$ where $Y_{ij} > 0$, else $\sigma h(F_{ij}/\sigma)$. Call it
    inside `float64`.
    """
    hidden = noise_scale * hazard(preactivations / noise_scale)
    return jnp.where(outputs > 0, preactivations - outputs, hidden)


class CensoredLikelihood(AbstractMethod):
    r"""The minimiser of the censored likelihood plus `penalty` times $\lVert\tilde XZ\rVert_*$,
    over $|\tilde XZ| \le$ `bound`.

    See `censored_likelihood` for the problem, the `tolerance` on the duality gap, and what it
    guarantees. The convex problem has no rank constraint: `rank` keeps that many leading components
    of the fitted pre-activations, and the guarantee is that of `min(inputs, outputs)`, where all
    are kept.
    """

    noise_scale: float
    bound: float
    penalty: float
    tolerance: float = 1e-6
    max_steps: int = 2000

    def __check_init__(self) -> None:
        settle(self, "noise_scale", check_positive)
        settle(self, "bound", check_positive)
        settle(self, "penalty", check_positive, zero=True)
        settle(self, "tolerance", check_positive)
        settle(self, "max_steps", check_count, 1)

    def fit(self, observed: Observed, rank: int) -> Recovery:
        """Fit outputs seen after a ReLU. Raises `ValueError` if there are none, or with a bias."""
        fit = censored_likelihood(
            observed.layer_inputs,
            check_rectified(self, observed),
            noise_scale=self.noise_scale,
            bound=self.bound,
            penalty=self.penalty,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
        )
        return leading_part(self, observed, fit, rank)


def censored_likelihood(
    activations: ArrayLike,
    outputs: ArrayLike,
    *,
    noise_scale: ArrayLike,
    bound: ArrayLike,
    penalty: ArrayLike,
    tolerance: float = 1e-6,
    max_steps: int = 2000,
) -> ConvexFit:
    r"""Fit rectified noisy outputs by pre-activations that are bounded and of small nuclear norm.

    With activations $\tilde X$ (samples, inputs), outputs $Y \ge 0$ (samples, outputs), noise scale
    $\sigma$, bound $\alpha$ and penalty $\lambda$, minimise over $F = \tilde XZ$

    $$ f(F) + \lambda\lVert F\rVert_* \quad\text{subject to}\quad |F_{ij}| \le \alpha , $$

    which is the `objective`.

    **Guarantee.** Let $B$ be any matrix with $-P(\nabla f(F) + B) \in \lambda\,\partial\lVert
    F\rVert_*$, $P$ the projector on the columns of $\tilde X$. Then every $F'$ of the same columns
    and box satisfies

    $$ \langle\nabla f(F), F - F'\rangle + \lambda\lVert F\rVert_* - \lambda\lVert F'\rVert_*
       \le \sum_{ij} \alpha|B_{ij}| - B_{ij}F_{ij} = g , $$

    so that the objective at $F$ exceeds its minimum by at most the duality gap $g$, every term of
    which is non-negative. *Proof.* With $V = -P(\nabla f(F) + B)$ the left side is $\langle B, F' -
    F\rangle + \langle V, F' - F\rangle + \lambda\lVert F\rVert_* - \lambda\lVert F'\rVert_*$. The
    terms with $V$ are at most zero together, and $\langle B, F'\rangle \le \alpha\sum|B_{ij}|$. ∎

    **Scale.** The iteration stops when $g \le$ `tolerance` $\cdot\,\alpha\sum_{ij}|\nabla
    f(0)_{ij}|$, which is the gap of $F = 0$ with $B = -\nabla f(0)$. Multiplying $Y$, $\sigma$,
    $\alpha$ and $\lambda$ by $c$ multiplies $F$ by $c$, and $f$, $g$ and this scale by $c^2$;
    multiplying $\tilde X$ changes `weights` only.

    Runs under `jit`, `vmap` and `lax.map`, where noise scale, bound and penalty may be traced too;
    a batch takes the steps of its slowest member. Not differentiable in reverse mode: JAX raises
    its `ValueError` about `while_loop`.

    Raises `ValueError` if the arrays are not floating matrices with the same number of samples, or
    have non-finite entries, if outputs are negative, if `noise_scale` or `bound` is not one
    positive number or `penalty` one non-negative number, `tolerance` not positive or `max_steps`
    not a positive integer. Of traced values only shape and dtype are checked: where they make no
    sense the result is NaN and `converged` false.
    """
    x, y, scale, box = _checked(activations, outputs, noise_scale, bound)
    return _solve(
        x,
        y,
        scale,
        box,
        _scalar("penalty", penalty, zero=True),
        check_positive("tolerance", tolerance),
        check_count("max_steps", max_steps, 1),
        resolution=resolution(x),
    )


def censored_low_rank(
    activations: ArrayLike,
    outputs: ArrayLike,
    *,
    noise_scale: ArrayLike,
    bound: ArrayLike,
    rank: int,
    steps: int = 100,
) -> Float[Array, "inputs outputs"]:
    r"""Weights $Z$ of the given rank with $|\tilde XZ| \le$ `bound` and a small censored loss.

    The likeliest such weights solve a problem that is not convex; these are the best of `steps`
    points of a local search, feasible up to rounding and without a certificate. In the units of the
    outputs over those of the activations. Raises `ValueError` as `censored_likelihood` does, and
    for a rank that weights cannot have.
    """
    x, y, scale, box = _checked(activations, outputs, noise_scale, bound)
    rank = check_rank(rank, x.shape[1], y.shape[1])
    steps = check_count("steps", steps, 1)
    return _search(x, y, scale, box, rank=rank, steps=steps, resolution=resolution(x))


def _checked(activations: Any, outputs: Any, noise_scale: Any, bound: Any) -> tuple[Any, ...]:
    x: Any = check_array("activations", activations, "samples", "inputs")
    y: Any = check_array("outputs", outputs, "samples", "outputs")
    check_same("outputs", y.shape[0], "activations", x.shape[0], "samples")
    if not isinstance(y, Tracer) and np.min(np.asarray(y)) < 0:
        raise ValueError(
            "`outputs` has negative entries, which no ReLU lets through. Give the outputs after "
            "the ReLU; for noise added after it, use `nuclear_norm_relu`."
        )
    return x, y, _scalar("noise_scale", noise_scale), _scalar("bound", bound)


def _scalar(name: str, value: Any, *, zero: bool = False) -> Any:
    if np.ndim(value) != 0:
        raise ValueError(f"`{name}` must be one number; got shape {np.shape(value)}.")
    number = value if isinstance(value, Tracer) else check_positive(name, value, zero=zero)
    return value if hasattr(value, "dtype") else number


class _Scaled(eqx.Module):
    """The problem in units of the noise; NaN throughout for numbers that make no sense."""

    space: ColumnSpace
    outputs: Float[Array, "samples outputs"]
    box: Float[Array, ""]
    penalty: Float[Array, ""]

    @property
    def basis(self) -> Float[Array, "samples width"]:
        """Of the columns."""
        return self.space.basis

    @property
    def origin(self) -> Float[Array, "width outputs"]:
        """The coordinates of zero."""
        return 0 * matmul(self.basis.T, self.outputs)

    def gradient(self, point: Float[Array, "samples outputs"]) -> Float[Array, "samples outputs"]:
        """The gradient of the loss."""
        return censored_gradient(point, self.outputs, jnp.ones(()))

    def loss(self, point: Float[Array, "samples outputs"]) -> Float[Array, ""]:
        """The loss."""
        return censored_loss(point, self.outputs, jnp.ones(()))

    def split(
        self, place: Float[Array, "samples outputs"]
    ) -> tuple[Float[Array, "samples outputs"], Float[Array, "width outputs"]]:
        """The nearest point of the box, and where the other operator of the splitting starts."""
        inside = jnp.clip(place, -self.box, self.box)
        return inside, matmul(self.basis.T, 2 * inside - place - self.gradient(inside))

    def shrunk(self, coordinates: Float[Array, "width outputs"]) -> Float[Array, "width outputs"]:
        """The coordinates, shrunk until the point lies in the box: rank and columns stay."""
        largest = jnp.max(jnp.abs(matmul(self.basis, coordinates)))
        return coordinates * jnp.minimum(1, safe_divide(self.box, largest) + (largest == 0))


def _scaled(
    activations: Array,
    outputs: Array,
    noise_scale: Array,
    bound: Array,
    penalty: Array,
    eps: float,
) -> _Scaled:
    sound = is_finite(activations, outputs, noise_scale, bound, penalty) & jnp.all(outputs >= 0)
    sound &= (noise_scale > 0) & (bound >= 0) & (penalty >= 0)
    # LAPACK's SVD answers NaN with NaN, but never returns from an infinity.
    activations, outputs, noise_scale = (
        jnp.where(sound, a, jnp.nan) for a in (activations, outputs, noise_scale)
    )
    outputs, box, weight = (n / noise_scale for n in (outputs, bound, penalty))
    return _Scaled(column_space(activations, eps), outputs, box, weight)


@in_float64
def _solve(
    activations: Float[Array, "samples inputs"],
    outputs: Float[Array, "samples outputs"],
    noise_scale: Real[Array, ""],
    bound: Real[Array, ""],
    penalty: Real[Array, ""],
    tolerance: Float[Array, ""],
    max_steps: Int[Array, ""],
    *,
    resolution: float,
    dtype: Any = None,
) -> ConvexFit:
    r"""Three-operator splitting (Davis and Yin 2017) of loss, box and nuclear norm, of step one.

    From $z$ the box gives $b = \Pi(z)$, with $B = z - b$ normal to it, and the nuclear norm, in the
    coordinates $T$ of the column space, $T = \operatorname{prox}(A)$, $A = Q^T(2b - z - \nabla
    f(b))$, with $A - T = V \in \lambda\,\partial\lVert T\rVert_*$; then $z$ moves by $QT - b$. The
    loss has a gradient of Lipschitz constant one, so any step below two converges. $QT$, shrunk
    into the box, is $F$. As $-Q^T(\nabla f(F) + B)$ is $V$ in the limit only, $B$ is corrected
    by the difference, and the certificate costs no decomposition.
    """
    scaled = _scaled(activations, outputs, noise_scale, bound, penalty, resolution)
    basis, box, weight = scaled.basis, scaled.box, scaled.penalty
    allowed = tolerance * box * jnp.sum(jnp.abs(scaled.gradient(jnp.zeros_like(outputs))))

    def unfinished(state: Any) -> Bool[Array, ""]:
        step, _, _, gap = state
        return (step < max_steps) & (gap > allowed)

    def advance(state: Any) -> Any:
        step, place, _, _ = state
        inside, target = scaled.split(place)
        left, values, right = jnp.linalg.svd(target, full_matrices=False)
        coordinates = matmul(left * jnp.maximum(values - weight, 0), right)
        subgradient = matmul(left * jnp.minimum(values, weight), right)
        feasible = scaled.shrunk(coordinates)
        point = matmul(basis, feasible)
        normal = place - inside
        mismatch = matmul(basis.T, scaled.gradient(point) + normal) + subgradient
        normal = normal - matmul(basis, mismatch)
        gap = jnp.sum(box * jnp.abs(normal) - normal * point)
        return step + 1, place + matmul(basis, coordinates) - inside, feasible, gap

    start = scaled.origin
    state = (jnp.int32(0), matmul(basis, start), start, jnp.asarray(jnp.inf))
    steps, _, coordinates, gap = jax.lax.while_loop(unfinished, advance, state)
    point = matmul(basis, coordinates)
    nuclear = jnp.sum(jnp.linalg.svd(coordinates, compute_uv=False))
    slope = safe_sqrt(jnp.sum(scaled.gradient(point) ** 2))
    slope = slope + weight * math.sqrt(min(coordinates.shape))
    convergence = Convergence(
        gap=noise_scale**2 * gap,
        allowed_gap=noise_scale**2 * allowed,
        closed=gap <= allowed,
        output_slope=noise_scale * slope,
        weight_slope=jnp.zeros(()),
        output_margin=noise_scale * tolerance * box,
        weight_margin=jnp.asarray(jnp.inf),
    )
    weights = scaled.space.weights(noise_scale * coordinates).astype(dtype)
    stored = (noise_scale * point).astype(dtype)
    moved = noise_scale * norm(widened(stored) / noise_scale - point)
    return ConvexFit(
        weights=weights,
        preactivations=stored,
        objective=noise_scale**2 * (scaled.loss(point) + weight * nuclear),
        steps=steps,
        convergence=convergence.after(moved, jnp.zeros(())),
    )


@in_float64
def _search(
    activations: Float[Array, "samples inputs"],
    outputs: Float[Array, "samples outputs"],
    noise_scale: Real[Array, ""],
    bound: Real[Array, ""],
    *,
    rank: int,
    steps: int,
    resolution: float,
) -> Float[Array, "inputs outputs"]:
    """The splitting of `_solve` with truncation in the place of soft thresholding; of its points,
    shrunk into the box, the likeliest.
    """
    scaled = _scaled(activations, outputs, noise_scale, bound, jnp.zeros(()), resolution)
    basis = scaled.basis

    def advance(_: Any, state: Any) -> Any:
        place, best, least = state
        inside, target = scaled.split(place)
        vectors, _ = leading_right_vectors(target, rank)
        coordinates = matmul(target, vectors, vectors.T)
        feasible = scaled.shrunk(coordinates)
        loss = scaled.loss(matmul(basis, feasible))
        best = jnp.where(loss < least, feasible, best)
        return place + matmul(basis, coordinates) - inside, best, jnp.minimum(loss, least)

    start = scaled.origin
    state = (matmul(basis, start), start, jnp.asarray(jnp.inf))
    _, best, _ = jax.lax.fori_loop(0, steps, advance, state)
    return scaled.space.weights(noise_scale * best)
