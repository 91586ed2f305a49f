"""One float64 border, one rank cut-off, one rounding allowance; and what `_door` checks."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from lowrank_theory._compilation import SMALL, entries, soon
from lowrank_theory._door import check_array as check_array
from lowrank_theory._door import check_count as check_count
from lowrank_theory._door import check_fraction as check_fraction
from lowrank_theory._door import check_group as check_group
from lowrank_theory._door import check_key as check_key
from lowrank_theory._door import check_number as check_number
from lowrank_theory._door import check_positive as check_positive
from lowrank_theory._door import check_rank as check_rank
from lowrank_theory._door import check_ranks as check_ranks
from lowrank_theory._door import check_same as check_same
from lowrank_theory._door import keep as keep
from lowrank_theory._door import ours as ours
from lowrank_theory._door import owned as owned
from lowrank_theory._door import settle as settle
from lowrank_theory._door import settle_each as settle_each
from lowrank_theory._door import together as together
from lowrank_theory._scale import widened
from lowrank_theory._settings import float64 as float64
from lowrank_theory._settings import is_tracing as is_tracing
from lowrank_theory._settings import own_settings as own_settings

Tree = TypeVar("Tree")
AnyArray = Array | np.ndarray
Number = Float[AnyArray, ""] | float | int


class InFloat64(eqx.Module):
    """What is said of a result, not part of it: it crosses the border in float64, whatever the
    dtype of the result.
    """


def _stays(leaf: Any) -> bool:
    return isinstance(leaf, InFloat64)


def is_float(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def cast(tree: Tree, dtype: Any) -> Tree:
    """Cast the floating leaves of a tree, but for what is `InFloat64`; call it inside
    `float64`.
    """
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype) if is_float(leaf) else leaf, tree, is_leaf=_stays
    )


@jax.jit
def _promoted(leaf: Any) -> Array:
    leaf = widened(leaf)
    return jnp.where(jnp.isinf(leaf), jnp.nan, leaf)


def promote(tree: Tree) -> Tree:
    """Floating leaves in float64; infinities become NaN, which LAPACK passes on (on an infinity its
    SVD never returns).
    """
    return jax.tree.map(
        lambda leaf: _promoted(leaf) if is_float(leaf) else leaf, tree, is_leaf=_stays
    )


def in_float64(function: Callable[..., Any], *, like: int | None = None) -> Callable[..., Any]:
    """Let a pure function of arrays compute in float64 wherever it is called from.

    Positional arguments are trees of arrays; keyword-only arguments are static. Floating inputs are
    promoted to float64 on entry, and floating results leave in the common float dtype of the inputs
    (float64 NumPy arrays therefore stay float64 even where JAX's x64 flag is off), or in that of
    the one argument at position `like`. A static argument `dtype` asks for another; the function is
    told the dtype in which its results will leave. What is `InFloat64` stays so.

    The function is compiled once per shape and per value of its static arguments. It works under
    `jit` and `vmap`, and under reverse-mode `grad`: both passes enter float64 by themselves.
    Forward-mode and second derivatives need the x64 flag switched on by the caller.
    """
    parameters = inspect.signature(function).parameters.values()
    static_names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    compiled = jax.jit(function, static_argnames=static_names)
    is_told = "dtype" in static_names

    def whole(*arrays: Any, leaving: np.dtype, **static: Any) -> Any:
        return cast(function(*promote(arrays), **static), leaving)

    @functools.cache
    def program(small: bool) -> Callable[..., Any]:
        options = soon(1) if small else {}
        return jax.jit(
            whole, static_argnames=[*static_names, "leaving"], compiler_options=options or None
        )

    @functools.wraps(function)
    def at_the_border(*arrays: Any, **static: Any) -> Any:
        dtype = static.get("dtype")
        if dtype is None:
            dtype = float_dtype(*(arrays if like is None else arrays[like : like + 1]))
        dtype = np.dtype(dtype)
        if is_told:
            static["dtype"] = dtype
        leaves = jax.tree.leaves(arrays)
        if not (is_tracing() or any(isinstance(leaf, Tracer) for leaf in leaves)):
            with float64():
                return program(entries(leaves) <= SMALL)(*together(arrays), leaving=dtype, **static)
        inner = functools.partial(compiled, **static)
        if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
            with float64():
                return cast(inner(*promote(together(arrays))), dtype)

        def forward(*arrays: Any) -> Any:
            with float64():
                return cast(inner(*promote(arrays)), dtype)

        def forward_pass(*arrays: Any) -> Any:
            with float64():
                results, pullback = jax.vjp(inner, *promote(arrays))
                return cast(results, dtype), (pullback, _like(results), _like(arrays))

        def backward_pass(residuals: Any, cotangents: Any) -> Any:
            pullback, results_like, arrays_like = residuals
            with float64():
                gradients = pullback(_cast_like(cotangents, results_like))
                return _cast_like(gradients, arrays_like)

        differentiable = jax.custom_vjp(forward)
        differentiable.defvjp(forward_pass, backward_pass)
        with float64():  # so that NumPy's float64 is not truncated at the call
            return differentiable(*jax.tree.map(jnp.asarray, together(arrays)))

    return at_the_border


def _like(arrays: Any) -> Any:
    """Empty arrays that remember dtypes through the backward pass."""
    return jax.tree.map(lambda leaf: jnp.zeros((0,), leaf.dtype), arrays)


def _cast_like(tree: Any, like: Any) -> Any:
    return jax.tree.map(
        lambda leaf, x: leaf.astype(x.dtype) if is_float(leaf) else leaf, tree, like
    )


def float_dtype(*trees: Any) -> np.dtype:
    """The common float dtype of the floating leaves of the trees."""
    with float64():
        leaves = [leaf.dtype for leaf in jax.tree.leaves(trees) if is_float(leaf)]
        return functools.reduce(jnp.promote_types, leaves)


def resolution(*arrays: Any) -> float:
    """Machine epsilon of the coarsest float dtype among the arrays, at most that of float32: what
    their stored values can tell apart.

    Half precision counts as float32: by its own epsilon, a matrix of a few hundred columns would
    have no rank left at all.
    """
    coarsest = max(float(jnp.finfo(a.dtype).eps) for a in arrays if a is not None)
    return min(coarsest, float(np.finfo(np.float32).eps))


def relative_rank_cutoff(
    shape: tuple[int, ...], resolution: float = float(np.finfo(np.float64).eps)
) -> float:
    r"""The ratio $s_i/s_1$ below which a stored matrix, whose columns are alike in size, has no
    rank: $8\,\epsilon\sqrt{\min(m, n)}$.

    Storing $A$ with machine epsilon $\epsilon$ moves it by at most $\tfrac{\epsilon}{2}\lVert
    A\rVert_F \le \tfrac{\epsilon}{2}\sqrt{\min(m,n)}\,s_1$, hence each singular value by no more
    (Mirsky); the rest of the factor is room for the backward error of the decomposition.
    """
    return 8 * resolution * math.sqrt(min(shape))


def rounding_allowance(scale: Any, *sizes: int) -> Any:
    r"""How far rounding alone may move a quantity of magnitude `scale` computed in float64.

    $32\,\epsilon\,\sqrt{\max_i n_i}\,\cdot$ `scale`, for a chain of products and one orthogonal
    decomposition of matrices with sides $n_i$. The factor 32 is an empirical margin (the property
    tests meet it at 1 to 10), the growth is that of random rounding errors.
    """
    return 32 * float(np.finfo(np.float64).eps) * math.sqrt(max(sizes)) * scale


def matmul(*matrices: Array | np.ndarray) -> Array:
    """The product of the matrices from left to right, at the highest precision the device has."""
    first, *others = matrices
    return functools.reduce(
        functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST),
        others,
        jnp.asarray(first),
    )


def symmetric_product(left: Array, right: Array) -> Array:
    """`left.T @ right` where that is symmetric, and then exactly so. Of a large one only blocks on
    and above the diagonal, ten of sixteen, are multiplied.
    """
    size = left.shape[1]
    width = max(256, -(-size // 4))
    upper = [
        jnp.pad(matmul(left[:, i : i + width].T, right[:, i:]), ((0, 0), (i, 0)))
        for i in range(0, size, width)
    ]
    upper = jnp.triu(jnp.concatenate(upper))
    return upper + jnp.triu(upper, 1).T


def safe_divide(numerator: Array, denominator: Array) -> Array:
    """`numerator / denominator`, zero where the denominator is zero, with zero derivative there."""
    zero = denominator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))


def safe_sqrt(square: Array) -> Array:
    """The square root, with zero derivative at zero: an exact fit has gradients."""
    zero = square == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def after(finished: Any, waiting: Tree) -> Tree:
    """The same array or key, to be used only once `finished` is computed.

    Two independent batched decompositions in one program can wait for each other's threads for
    ever. Only data that one needs from the other keeps them apart: `jax.lax.optimization_barrier`
    is gone before XLA schedules. So the result depends on whether the first number is NaN.
    """
    failed = jnp.isnan(jnp.ravel(finished)[0])

    def late(leaf: Any) -> Any:
        if is_float(leaf):
            return jnp.where(failed, jnp.nan, leaf)
        return jnp.where(failed, jax.random.fold_in(leaf, 1), leaf)

    return jax.tree.map(late, waiting)
