"""Programs compiled soon, where little is computed, or well."""

import functools
import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
from jax.core import Tracer

SMALL = 100_000  # numbers, which even the plainest program works through in milliseconds

# Half the time to compile, or less, at either level: programs as small as these run no slower
# without MLIR, and are compiled in one piece.
_SOONER = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


@functools.cache
def soon(level: int) -> dict[str, Any]:
    """Options of the compiler, at an optimisation level of XLA: level 0 compiles soonest; level 1
    takes twice as long, and its programs are up to four times as fast. What `XLA_FLAGS` states is
    left to it.
    """
    wanted = {"xla_backend_optimization_level": level} | {
        name: value for name, value in _SOONER.items() if _is_option(name, value)
    }
    stated = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in wanted.items() if f"--{name}=" not in stated}


def _is_option(name: str, value: Any) -> bool:
    """Whether this version of XLA has it."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def entries(*arguments: Any) -> int:
    """How many numbers the arrays of the arguments hold."""
    return sum(getattr(leaf, "size", 1) for leaf in jax.tree.leaves(arguments))


def jit_by_size(size: Callable[..., int] = entries) -> Callable[[Any], Any]:
    """`equinox.filter_jit` that compiles soon where no more than `SMALL` numbers are at stake, as
    `size` of the arguments says. Within another program it is a part of that one.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        well = eqx.filter_jit(function)

        @functools.cache
        def small() -> Callable[..., Any]:
            return eqx.filter_jit(function, compiler_options=soon(0))  # pyright: ignore[reportCallIssue]

        @functools.wraps(function)
        def called(*arguments: Any) -> Any:
            traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments))
            if traced or size(*arguments) > SMALL:
                return well(*arguments)
            with jax.core.eval_context():  # options are for programs of their own
                return small()(*arguments)

        return called

    return decorate
