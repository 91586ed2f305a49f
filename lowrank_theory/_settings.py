"""The settings of JAX that the library computes under, whatever the caller has set.

Users set JAX globally to find their own mistakes (rank promotion, dtype promotion, NaN, leaked
tracers, keys used twice), to trade precision for speed, or to spread arrays over a mesh. Our
programs are written under the defaults and checked otherwise: here NaN is data, results leave in
the dtype of the inputs, and an array lies where it lies.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, get_abstract_mesh, use_abstract_mesh

_NO_MESH = AbstractMesh((), ())
_OWN: tuple[tuple[str, Any, Any], ...] = (
    ("jax_numpy_rank_promotion", "allow", jax.numpy_rank_promotion),
    ("jax_numpy_dtype_promotion", "standard", jax.numpy_dtype_promotion),
    ("jax_debug_nans", False, jax.debug_nans),
    ("jax_debug_infs", False, jax.debug_infs),
    ("jax_check_tracer_leaks", False, jax.check_tracer_leaks),
    ("jax_debug_key_reuse", False, jax.debug_key_reuse),
)
_X64 = ("jax_enable_x64", True, jax.enable_x64)
_PRECISION = ("jax_default_matmul_precision", None, jax.default_matmul_precision)


@contextlib.contextmanager
def own_settings(settings: tuple[tuple[str, Any, Any], ...] = _OWN) -> Iterator[None]:
    """JAX as our programs are written for it; also a decorator, for what users call."""
    with contextlib.ExitStack() as stack:
        for name, value, context in settings:
            if getattr(jax.config, name) != value:
                stack.enter_context(context(value))
        # Within a program of the user's, its arrays belong to the mesh.
        if not get_abstract_mesh().empty and not is_tracing():
            stack.enter_context(use_abstract_mesh(_NO_MESH))
        yield


def is_tracing() -> bool:
    """Whether what is computed now becomes part of a program."""
    return isinstance(jax.lax.add(np.float32(0), np.float32(0)), Tracer)


def float64() -> contextlib.AbstractContextManager[None]:
    """`own_settings`, with float64 at hand and products in the precision that we ask for."""
    return own_settings((*_OWN, _X64, _PRECISION))


def all_floats() -> contextlib.AbstractContextManager[None]:
    """`own_settings`, with float64 at hand: for products of the user's own arrays, in the
    precision that the user asks for.
    """
    return own_settings((*_OWN, _X64))
