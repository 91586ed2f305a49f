"""One text of the laws, for JAX and for NumPy.

The kind of its `key` decides where a law is drawn: a JAX key draws with JAX, under `jit` and `vmap`
too; a `numpy.random.Generator` draws with NumPy, which compiles nothing. A law asks `namespace` for
the module to compute with; here is the little that the two modules do not share, and
`of_either_key`, which lets a setting be drawn by one text.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import PRNGKeyArray

from lowrank_theory import _numerics

Key: TypeAlias = PRNGKeyArray | np.random.Generator
Text = TypeVar("Text", bound=Callable[..., Any])

if TYPE_CHECKING:
    Drawn: TypeAlias = Any  # a JAX array or a NumPy array, as the key says
else:
    Drawn = _numerics.AnyArray


def namespace(*of: Any) -> ModuleType:
    """`numpy` for generators and NumPy arrays alone, else `jax.numpy`."""
    host = all(isinstance(one, np.random.Generator | np.ndarray) for one in of)
    return np if host else jnp


def matmul(*matrices: Any) -> Any:
    """The product of the matrices from left to right, at the highest precision the device has."""
    if namespace(*matrices) is np:
        return functools.reduce(np.matmul, matrices)
    return _numerics.matmul(*matrices)


def solve_triangular(triangle: Any, right: Any) -> Any:
    """The solution of an upper triangular system."""
    library = scipy if namespace(triangle, right) is np else jax.scipy
    return library.linalg.solve_triangular(triangle, right, lower=False)


def after(finished: Any, waiting: Any) -> Any:
    """The same array or key, to be used only once `finished` is computed, as NumPy does."""
    return waiting if namespace(waiting) is np else _numerics.after(finished, waiting)


def of_either_key(text: Text, *, jit: Callable[[Any], Any] = eqx.filter_jit) -> Text:
    """The `draw(self, *, key)` of a setting, from its text: with a JAX key compiled by `jit`, in
    float64, under `jit` and `vmap` too; with a `numpy.random.Generator` as it stands, with NumPy.

    Both draw of the same laws, though other numbers. Raises `ValueError` for any other key.
    """

    @jit
    def compiled(setting: Any, key: PRNGKeyArray) -> Any:
        return text(setting, key=key)

    @functools.wraps(text)
    def draw(self: Any, *, key: Key) -> Any:
        if isinstance(key, np.random.Generator):
            with np.errstate(all="ignore"):  # what comes out is checked
                return text(jax.tree.map(_at_hand, self), key=key)
        key = _numerics.check_key("key", key)
        with _numerics.float64():
            return compiled(self, key)

    return draw  # pyright: ignore[reportReturnType]


def _at_hand(leaf: Any) -> Any:
    return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf
