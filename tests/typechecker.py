"""`beartype`, once for all functions of one signature.

jaxtyping asks it about functions that do nothing but have a signature: anew for every function
within a function, each time that this one is made.
"""

import typing
from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray

_checked: dict[Hashable, Callable[..., Any]] = {}


def checked(function: FunctionType) -> Callable[..., Any]:
    """The function, with its arguments and what it returns checked."""
    signature = _signature(function)
    try:
        found = _checked.get(signature)
    except TypeError:  # a type that has no hash
        return beartype(function)
    if found is None:
        found = _checked[signature] = beartype(function)
    return found


def _signature(function: FunctionType) -> Hashable:
    """Defaults are not checked, but an argument may be left out that has one."""
    optional = len(function.__defaults__ or ()), frozenset(function.__kwdefaults__ or ())
    kinds = tuple((name, _alike(kind)) for name, kind in function.__annotations__.items())
    return function.__code__, optional, kinds


def _alike(kind: Any) -> Hashable:
    """Equal for types that say the same: each `Float[Array, "rows"]` is a class of its own."""
    if isinstance(kind, type) and issubclass(kind, AbstractArray):
        shaped: Any = kind
        return shaped.dtype, shaped.array_type, shaped.dim_str
    if isinstance(kind, list):
        return tuple(map(_alike, kind))
    arguments = typing.get_args(kind)
    return (typing.get_origin(kind), *map(_alike, arguments)) if arguments else kind
