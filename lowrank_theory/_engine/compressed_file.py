"""The file of a compressed network: safetensors, with a description and a digest of the whole.

The arrays are named by `jax.tree_util.keystr`. The description says of what network they are, and
what was done to each weight.
"""

import dataclasses
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError

from lowrank_theory._engine.follow import is_array
from lowrank_theory._engine.nested import Nested, packed, unpacked
from lowrank_theory._engine.views import Convolution, MatrixView, Piece
from lowrank_theory._files import check_writable, write_atomically
from lowrank_theory._numerics import float64
from lowrank_theory._store import ArrayFile
from lowrank_theory.approximations import (
    AbstractApproximation,
    Affine,
    LowRank,
    described,
    restored,
)

_FILE = ArrayFile("compressed", 2, "a compressed network", "compress again")

Given = dict[str, AbstractApproximation]
Entry = dict[str, Any]  # the fields of a layer


def write(
    parameters: PyTree,
    layers: Mapping[str, Any],
    provenance: Mapping[str, Any],
    nested: Nested | None,
    path: str | os.PathLike[str],
) -> None:
    """Write the parameters of a compressed network and what is known of its layers, in one step.

    Raises `ValueError` for a dtype that safetensors does not have, and `OSError` where the file
    cannot be written.
    """
    path = Path(path)
    check_writable(path)
    views = {name: each.view for name, each in layers.items() if each.size is not None}
    network = _named(parameters, views)
    leaves = {name: leaf for name, leaf in _named(parameters).items() if is_array(leaf)}
    arrays = {name: _stored(leaf) for name, leaf in leaves.items()}
    sizes, beside = (None, {}) if nested is None else packed(nested)
    arrays |= beside
    what = {
        "network": {
            name: _array(leaf.dtype, views[name].shape) if name in views else _described(leaf)
            for name, leaf in network.items()
        },
        "dtypes": {name: array.dtype.name for name, array in arrays.items()},
        "keys": {name: str(jax.random.key_impl(k)) for name, k in leaves.items() if _is_key(k)},
        "layers": {name: dataclasses.asdict(each) for name, each in layers.items()},
        "approximations": {name: described(network[name]) for name in views},
        "provenance": provenance,
        "nested": sizes,
    }
    try:
        content = _FILE.pack(arrays, **what)
    except SafetensorError as problem:
        raise ValueError(f"`parameters` has a leaf that cannot be saved: {problem}") from None
    write_atomically(path, content)


def read(
    path: Path, parameters: PyTree
) -> tuple[PyTree, dict[str, Entry], Given, Any, Nested | None]:
    """The parameters with what was kept of them, what the file says of each layer, what stands for
    those that were replaced, the provenance, and what smaller sizes it holds. Refuses as
    `load_compressed` does.
    """
    header, arrays, entries, given = _read(path)
    leaves, tree = jax.tree_util.tree_flatten_with_path(parameters)
    named = {jax.tree_util.keystr(place): leaf for place, leaf in leaves}
    _check_network(
        path,
        header["network"],
        {
            # A leaf that is replaced takes the dtype in which JAX would compute with it.
            name: _array(jax.dtypes.canonicalize_dtype(leaf.dtype), leaf.shape)
            if name in given and is_array(leaf)
            else _described(leaf)
            for name, leaf in named.items()
        },
    )
    filled = [
        _restored(arrays[name], leaf, header["keys"].get(name)) if name in arrays else leaf
        for name, leaf in named.items()
    ]
    whole = jax.tree.unflatten(tree, filled)
    return whole, entries, given, header["provenance"], header["nested"]


def _read(path: Path) -> tuple[Any, dict[str, np.ndarray], dict[str, Entry], Given]:
    """The description, the arrays, the layers and what stands for them in a whole file, or a clear
    refusal.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r} of a compressed network.")
    header, stored, sealed = _FILE.unpack(path)
    if not sealed:
        raise _FILE.refusal(path, "is damaged: it states no SHA-256")
    try:
        found = {name: header[name] for name in ("network", "keys", "provenance")}
        dtypes = {name: jnp.dtype(dtype) for name, dtype in header["dtypes"].items()}
        arrays = {
            name: np.frombuffer(each["data"], dtypes[name]).reshape(each["shape"])
            for name, each in stored
        }
        entries, kinds = header["layers"], header.get("approximations", {})
        if header["version"] == 1:
            entries = {name: _of_first(header, name, entry) for name, entry in entries.items()}
        layers = {name: {**entry, "view": _view(entry["view"])} for name, entry in entries.items()}
        replaced = [name for name, layer in layers.items() if layer["size"] is not None]
        given: Given
        if header["version"] == 1:
            given = {name: _first_version(name, arrays) for name in replaced}
        else:
            given = {name: restored(kinds[name], arrays.__getitem__, name) for name in replaced}
        sizes = header.get("nested")  # files of before have none
        found["nested"] = None if sizes is None else unpacked(sizes, arrays)
    except (AttributeError, LookupError, TypeError, ValueError) as problem:
        raise _FILE.refusal(path, f"is damaged ({problem!r})") from None
    return found, arrays, layers, given


def _check_network(path: Path, wanted: dict[str, str], given: dict[str, str]) -> None:
    """The same leaves, or a refusal that shows three that differ."""
    missing = "nothing"
    differing = [
        f"{name} is {wanted.get(name, missing)} there, and {given.get(name, missing)} here"
        for name in wanted | given
        if wanted.get(name) != given.get(name)
    ]
    if differing:
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(
            f"The file {str(path)!r} is of a network with other leaves than `parameters`: "
            f"{'; '.join(differing[:3])}{more}. Give the network that was compressed."
        )


# --- leaves --------------------------------------------------------------------------------------


def _named(tree: PyTree, leaves: Container[str] = ()) -> dict[str, Any]:
    """The leaves by path; what stands at the paths in `leaves` is one."""

    def is_leaf(path: Any, _: Any) -> bool:
        return jax.tree_util.keystr(path) in leaves

    found, _ = jax.tree.flatten_with_path(tree, is_leaf, is_leaf_takes_path=True)
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}


def _array(dtype: Any, shape: tuple[int, ...]) -> str:
    return f"{dtype}{list(shape)}"


def _described(leaf: Any) -> str:
    if is_array(leaf):
        return _array(leaf.dtype, leaf.shape)
    return repr(leaf) if isinstance(leaf, bool | int | float | complex | str) else "no array"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any) -> np.ndarray:
    """The leaf in the order in which safetensors copies memory."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")


def _restored(array: np.ndarray, given: Any, key: str | None) -> Any:
    """The leaf of the file, NumPy's or JAX's as the one that it stands for."""
    if key is not None:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=key)
    if isinstance(given, np.ndarray | np.generic):
        return array
    with float64():
        return jnp.asarray(array)


def _first_version(name: str, arrays: dict[str, np.ndarray]) -> LowRank | Affine:
    """Files of the first version hold factors, with a shift or without, and do not say which."""
    if f"{name}.left" in arrays:
        return LowRank(arrays[f"{name}.left"], arrays[f"{name}.right"])
    factors = LowRank(arrays[f"{name}.factors.left"], arrays[f"{name}.factors.right"])
    return Affine(factors, arrays[f"{name}.shift"])


def _of_first(header: dict[str, Any], name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """What the first version says of a layer, and what it left out as all sizes were ranks."""
    rank, itemsize = entry["rank"], jnp.dtype(header["network"][name].split("[")[0]).itemsize
    return {
        **entry,
        "size": None if rank is None else f"rank {rank}",
        "method": None if rank is None else header["provenance"]["method"].split("(")[0],
        "bytes": itemsize * entry["parameters"],
        "dense_bytes": itemsize * entry["dense_parameters"],
    }


def _view(view: dict[str, Any]) -> MatrixView:
    sides = ("stack", "inputs", "outputs")
    stack, inputs, outputs = (tuple(Piece(*piece) for piece in view[side]) for side in sides)
    convolution = view["convolution"] and Convolution(*_tuples(view["convolution"]))
    return MatrixView(tuple(view["shape"]), stack, inputs, outputs, convolution)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
