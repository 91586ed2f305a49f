"""The door: what a user gives is checked, in our words, and becomes ours, in one place.

An array that passes is a plain one that nobody else can write to or donate. Programs of JAX read
host memory later than they are called, and may read it in place, so what is kept or still to be
read must not be the caller's: it is copied, once, to where JAX takes it as it lies.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Array, PRNGKeyArray

Tree = TypeVar("Tree")

_ALIGNMENT = 64  # bytes: where an array must begin for JAX to read it in place
_LARGEST = 2**53  # every integer up to here is a float64


def check_array(name: str, value: Any, *axes: str, lent: bool = False) -> Array | np.ndarray:
    """A floating, non-empty, finite array with the named axes, or one clear `ValueError`; a last
    axis "..." stands for any others.

    It is the caller's no longer: a copy that cannot be written to or donated, unless it is `lent`,
    to be used up before the caller goes on. Host arrays are of the base class, in native byte
    order. Finiteness is checked where the values are at hand; of a traced array it cannot be, and
    there the results carry it (see `Certificate.finite`).
    """
    array = _plain(name, value)
    named = axes[:-1] if axes[-1] == "..." else axes
    wanted = f"({', '.join(named)})"
    if array.ndim < len(named) or (named == axes and array.ndim > len(named)):
        raise ValueError(f"`{name}` must have shape {wanted}; got shape {tuple(array.shape)}.")
    _check_floating(name, array.dtype)
    if 0 in array.shape:
        raise ValueError(
            f"`{name}` is empty: got shape {tuple(array.shape)} for {wanted}. "
            "Give at least one of each."
        )
    if isinstance(array, Tracer):
        return array
    array = native(array) if lent else owned(array)
    finite = np.isfinite(np.asarray(array))
    if not finite.all():
        bad = int(finite.size - np.count_nonzero(finite))
        raise ValueError(
            f"`{name}` has {bad} non-finite entries (NaN or infinity) of {finite.size}. "
            "Remove or repair them first."
        )
    return array


def _plain(name: str, value: Any) -> Any:
    """A JAX array that is at hand, or an array of NumPy's base class."""
    if isinstance(value, Tracer):
        return value
    if isinstance(value, Array):
        if value.is_deleted():
            raise ValueError(
                f"`{name}` is a JAX array that was donated or deleted. Give a copy, made before: "
                f"`jax.numpy.array({name})`."
            )
        if not value.is_fully_addressable:
            raise ValueError(
                f"`{name}` lies on devices of several processes. Give each process its own rows, "
                "or stream them into a `ShardedCalibration`."
            )
        return value
    if any(isinstance(part, np.ma.MaskedArray) for part in _parts(value)):
        raise ValueError(
            f"`{name}` is a masked array, whose mask would be ignored. Leave out what is masked, "
            f"or fill it: `{name}.filled(0.0)`."
        )
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, AttributeError):  # of a foreign class
        array = None
    if array is None or array.dtype == object:
        kind = type(value)
        kind = kind.__qualname__ if kind.__module__ == "builtins" else _dotted(kind)
        raise ValueError(
            f"`{name}` must be a NumPy or JAX array of floats, or what `numpy.asarray` makes one "
            f"of; got {kind}. Ragged, sparse, symbolic and factored ones must be made dense first."
        )
    return array


def _parts(value: Any) -> tuple[Any, ...]:
    return (value, *value) if isinstance(value, list | tuple) else (value,)


def _dotted(kind: type) -> str:
    return f"{kind.__module__.split('.')[0]}'s {kind.__qualname__}"


def _check_floating(name: str, dtype: Any) -> None:
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"`{name}` must be floating point and real; got dtype {dtype}. Of complex samples, "
            "real and imaginary parts are two real ones: "
            f"`numpy.concatenate([{name}.real, {name}.imag])`."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"`{name}` must be floating point; got dtype {dtype}. "
            f"Convert it, for example with `{name}.astype('float32')`."
        )
    if dtype.itemsize > 8:
        raise ValueError(
            f"`{name}` has dtype {dtype}, which JAX does not compute with. "
            f"Round it: `{name}.astype('float64')`."
        )
    if dtype.itemsize < 2:
        raise ValueError(
            f"`{name}` has dtype {dtype}: such numbers are codes, whose scale is kept elsewhere, "
            f"and results could not be stored in them. Multiply by the scale in float32: "
            f"`{name}.astype('float32') * scale`."
        )


def native(array: Any) -> Any:
    """The same numbers where a program of ours can read them: in native byte order, and without
    axes that ask for explicit sharding, which decompositions refuse.
    """
    if isinstance(array, np.ndarray):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    sharding = array.sharding
    if not isinstance(sharding, NamedSharding) or AxisType.Explicit not in sharding.mesh.axis_types:
        return array
    mesh = Mesh(np.asarray(sharding.mesh.devices), sharding.mesh.axis_names)
    return jax.device_put(array, NamedSharding(mesh, sharding.spec))


def owned(array: Any) -> Any:
    """A copy that nobody else can write to or donate."""
    if isinstance(array, Tracer):
        return array
    if not isinstance(array, np.ndarray):
        with jax.enable_x64(True):  # or float64 would be cut
            return jnp.array(native(array), copy=True)
    dtype = array.dtype.newbyteorder("=")
    room = np.empty(array.size * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -room.__array_interface__["data"][0] % _ALIGNMENT
    copy = room[start : room.size - _ALIGNMENT + start].view(dtype).reshape(array.shape)
    copy[...] = array
    copy.flags.writeable = False
    return copy


def together(tree: Tree) -> Tree:
    """The arrays of a tree where one program can read them: on the same devices, and not in memory
    that the caller may write to before it is read.
    """
    leaves, structure = jax.tree.flatten(tree)
    leaves = [ours(leaf) for leaf in leaves]
    held = [leaf for leaf in leaves if _is_concrete(leaf) and leaf.committed]
    if len({frozenset(leaf.sharding.device_set) for leaf in held}) > 1:
        first = min(held[0].sharding.device_set, key=lambda device: device.id)
        leaves = [jax.device_put(leaf, first) if _is_concrete(leaf) else leaf for leaf in leaves]
    return jax.tree.unflatten(structure, leaves)


def _is_concrete(leaf: Any) -> bool:
    return isinstance(leaf, Array) and not isinstance(leaf, Tracer)


def ours(leaf: Any) -> Any:
    """An array that a program of ours may read at any time; whatever else it is, as it came."""
    if isinstance(leaf, np.ndarray) and leaf.flags.writeable:
        return owned(leaf)
    return native(leaf) if isinstance(leaf, np.ndarray) or _is_concrete(leaf) else leaf


def check_same(name: str, got: int, other: str, wanted: int, axis: str) -> None:
    """Two arrays must agree along an axis."""
    if got != wanted:
        raise ValueError(
            f"`{name}` has {got} {axis}, but `{other}` has {wanted}. They must be the same."
        )


# --- numbers: what these return is what is used -------------------------------------------------


def check_count(name: str, value: Any, low: int, high: int | None = None, why: str = "") -> int:
    """An integer of the closed range, or a `ValueError` that says which range and why."""
    allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is not None and high is None and count > _LARGEST:
        allowed = f"an integer from {low} to {_LARGEST}"
    most = _LARGEST if high is None else high
    if count is None or isinstance(value, bool) or not low <= count <= most:
        raise ValueError(f"`{name}` must be {allowed}{why}; got {_shown(value)}.")
    return count


def check_rank(rank: Any, inputs: int, outputs: int) -> int:
    """A rank that an (inputs, outputs) matrix can have."""
    why = f" (the smaller side of the {inputs} x {outputs} weights)"
    return check_count("rank", rank, 1, min(inputs, outputs), why)


def check_ranks(ranks: Any, full: int | None = None) -> np.ndarray:
    """A sequence of ranks, at least one; none above the full rank, where that is a limit."""
    limits = ">= 0" if full is None else f"from 0 to {full}, the full rank"
    try:
        found = np.asarray(ranks)
    except ValueError:  # of rows of different lengths
        found = np.empty(0)
    integers = found.ndim == 1 and found.size > 0 and found.dtype.kind in "iu"
    if not integers or found.min() < 0 or (full is not None and found.max() > full):
        raise ValueError(f"`ranks` must be a sequence of integers {limits}; got {_shown(ranks)}.")
    return found


def check_group(group: Any, axis: Any) -> tuple[int | None, int | None]:
    """How many successive entries along an axis, 0 or 1, share a grid: all, where `group` is
    `None`. Without an axis all entries of the matrix do.
    """
    axis = None if axis is None else check_count("axis", axis, 0, 1)
    if group is None:
        return None, axis
    if axis is None:
        raise ValueError(
            f"`group` is {_shown(group)}, but with `axis=None` all entries share one grid: give an "
            "axis, or no group."
        )
    return check_count("group", group, 1), axis


def check_number(value: Any) -> float:
    """The value as a float: NaN if it is no real number, or beyond float64. Text is none."""
    if isinstance(value, str | bytes | bool | np.bool_) or np.ndim(value) or np.iscomplexobj(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def check_positive(name: str, value: Any, *, zero: bool = False) -> float:
    """A positive (or, with `zero`, non-negative) finite number."""
    number = check_number(value)
    if not (math.isfinite(number) and (number > 0 or (zero and number == 0))):
        kind = "non-negative" if zero else "positive"
        raise ValueError(f"`{name}` must be a {kind} finite number; got {_shown(value)}.")
    return number


def check_fraction(name: str, value: Any) -> float:
    """A number strictly between zero and one."""
    number = check_number(value)
    if not 0 < number < 1:
        raise ValueError(f"`{name}` must lie strictly between 0 and 1; got {_shown(value)}.")
    return number


def check_key(name: str, value: Any) -> PRNGKeyArray:
    """One key of `jax.random`; of the old kind, the same as one of the new."""
    if isinstance(value, Array) and value.shape == ():
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return value
    elif isinstance(value, Array | np.ndarray) and value.dtype == np.uint32 and value.ndim == 1:
        try:
            return jax.random.wrap_key_data(jnp.asarray(value))
        except (TypeError, ValueError):
            pass
    raise ValueError(
        f"`{name}` must be one key of JAX such as `jax.random.key(0)`; got {_shown(value)}."
    )


def settle(module: Any, name: str, check: Callable[..., Any], *limits: Any, **options: Any) -> Any:
    """Check a field of a frozen module as it is made, and keep what the check returns."""
    return keep(module, name, check(name, getattr(module, name), *limits, **options))


def settle_each(module: Any, name: str, check: Callable[..., Any], *limits: Any) -> None:
    """The same of a field that holds several, at least one; a single one may stand for itself."""
    given = getattr(module, name)
    several = given if isinstance(given, tuple | list) else (given,)
    if not several:
        raise ValueError(f"`{name}` is empty: give at least one.")
    keep(module, name, tuple(check(name, each, *limits) for each in several))


def keep(module: Any, name: str, value: Any) -> Any:
    """Put a checked value in the place of what a frozen module was given, as it is made."""
    object.__setattr__(module, name, value)
    return value


def _shown(value: Any) -> str:
    """The value in a message, however long it is."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4,300 digits has none
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:60]}..."
