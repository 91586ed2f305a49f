"""Laws that many functions obey, each written once and asked of a function and what it is given.

Trees agree where structure, shapes and dtypes are the same, floats are equal up to rounding, and
whatever else they hold is equal. `allowed` is what `assert_close` takes: the `condition` and `side`
of a problem, and a `scale`, here in norms of each array, for what cancels.
"""

import contextlib
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tolerance import assert_close

EXACT = (2.0**-20, 2.0**20)
ROUNDED = (1e-6, 1e6)
DTYPES = ("float64", "float32", "bfloat16", "float16")


def agree(found: Any, wanted: Any, scale: float = 0.0, **allowed: Any) -> None:
    """Two trees, up to rounding."""
    for one, other in _pairs(found, wanted):
        if jnp.issubdtype(other.dtype, jnp.inexact):
            size = np.linalg.norm(np.asarray(other, np.float64))
            assert_close(one, other, scale=scale * float(size), **allowed)
        else:
            np.testing.assert_array_equal(one, other)


def same(found: Any, wanted: Any) -> None:
    """Two trees, bit for bit."""
    for one, other in _pairs(found, wanted):
        np.testing.assert_array_equal(one, other)


def jit_is_eager(function: Callable[..., Any], *arguments: Any, **allowed: Any) -> None:
    """A compiled program computes what the plain call does."""
    with _wide(arguments):
        agree(jax.jit(function)(*arguments), function(*arguments), **allowed)


def vmap_is_a_loop(function: Callable[..., Any], *stacks: Any, **allowed: Any) -> None:
    """A compiled program for a stack, along the first axes, computes what single calls do."""
    _is_a_loop(jax.vmap(function), function, stacks, allowed)


def map_is_a_loop(function: Callable[..., Any], *stacks: Any, **allowed: Any) -> None:
    """The same of a program that takes one after the other, as verification does."""
    many = lambda *stacks: jax.lax.map(lambda lane: function(*lane), stacks)  # noqa: E731
    _is_a_loop(many, function, stacks, allowed)


def scales(
    at: Callable[[float], Any], degrees: Any = 1, *, exact: bool = True, **allowed: Any
) -> None:
    """What `at(unit)` returns, of the same things measured in another unit, is `at(1.0)` times a
    power of the unit: exactly for powers of two unless `exact` is false, up to rounding for others.

    `degrees` are the powers: a number, or a tree of numbers for parts of the result.
    """
    once = at(1.0)
    for unit in (*EXACT, *ROUNDED):
        wanted = _in_units(unit, degrees, once)
        if exact and unit in EXACT:
            same(at(unit), wanted)
        else:
            agree(at(unit), wanted, **allowed)


def turns(function: Callable[..., Any], axes: str, *arguments: Any, **allowed: Any) -> None:
    """Rotations of the axes of matrices turn those of the result.

    `turns(product, "si,io->so", rows, weights)`: one rotation for each letter, none for a dash. A
    result without letters, which may be any tree, stays as it is.
    """
    before, after = axes.split("->")
    random, rotations = np.random.default_rng(0), {}
    for letters, array in zip(before.split(","), arguments, strict=True):
        for letter, size in zip(letters, np.shape(array), strict=True):
            rotations.setdefault(letter, np.eye(size) if letter == "-" else rotation(random, size))

    def turned(array: Any, letters: str) -> Any:
        for axis, letter in enumerate(letters):
            if letter != "-":
                array = np.moveaxis(np.tensordot(rotations[letter], array, (1, axis)), 0, axis)
        return array

    given = [turned(array, axis) for array, axis in zip(arguments, before.split(","), strict=True)]
    wanted = function(*arguments)
    agree(function(*given), turned(wanted, after) if after else wanted, **allowed)


def keeps_dtypes(function: Callable[..., Any], *arguments: Any) -> None:
    """The floats of the result are of the dtype of the arguments."""
    for dtype in map(jnp.dtype, DTYPES):
        found = jax.tree.leaves(function(*(np.asarray(each).astype(dtype) for each in arguments)))
        floats = {leaf.dtype for leaf in found if jnp.issubdtype(leaf.dtype, jnp.inexact)}
        assert floats == {dtype}


def comes_back(value: Any) -> None:
    """From a pickle, and from its own leaves."""
    leaves, structure = jax.tree.flatten(value)
    for again in (pickle.loads(pickle.dumps(value)), jax.tree.unflatten(structure, leaves)):
        assert type(again) is type(value)
        same(again, value)
        with contextlib.suppress(TypeError):  # arrays have no hash
            assert hash(again) == hash(value)


def rotation(random: np.random.Generator, size: int) -> np.ndarray:
    """An orthogonal matrix."""
    return np.linalg.qr(random.standard_normal((size, size)))[0]


def _pairs(found: Any, wanted: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    pairs = [(np.asarray(one), np.asarray(other)) for one, other in leaves]
    for one, other in pairs:
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    return pairs


def _is_a_loop(many: Callable[..., Any], one: Callable[..., Any], stacks: Any, allowed: Any):
    with _wide(stacks):
        together = jax.jit(many)(*stacks)
        count = len(jax.tree.leaves(stacks)[0])
        for lane in range(count):
            wanted = one(*(jax.tree.map(lambda leaf, k=lane: leaf[k], stacks)))
            found = jax.tree.map(lambda leaf, k=lane: np.asarray(leaf)[k], together)
            agree(found, wanted, **allowed)


def _wide(arguments: Any) -> contextlib.AbstractContextManager[Any]:
    """Where JAX holds float64, if any was given."""
    given = {getattr(leaf, "dtype", None) for leaf in jax.tree.leaves(arguments)}
    return jax.enable_x64(True) if np.dtype(float) in given else contextlib.nullcontext()


def _in_units(unit: float, degrees: Any, tree: Any) -> Any:
    def times(leaf: Any, degree: int) -> Any:
        return np.asarray(leaf) * unit**degree if degree else leaf

    return jax.tree.map(
        lambda degree, part: jax.tree.map(lambda leaf: times(leaf, degree), part), degrees, tree
    )
