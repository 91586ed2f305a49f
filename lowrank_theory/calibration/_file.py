"""The file of a calibration: safetensors, with a header in JSON."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lowrank_theory._files import write_atomically

_FORMAT, _VERSION = "lowrank_theory.calibration", 1


def _named(seen: Any) -> dict[str, Any]:
    """The arrays of the state, by the path of their fields."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(seen)
    return {".".join(field.name for field in path): leaf for path, leaf in leaves}


def write(seen: Any, path: Path, *, batches: int) -> None:
    """Write a calibration, and of how many batches of its stream it is."""
    arrays = {name: np.asarray(leaf, np.float64) for name, leaf in _named(seen).items()}
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "kind": type(seen).__name__,
        "inputs": seen.inputs,
        "compressed": seen.has_compressed,
        "count": float(arrays["count"]),
        "batches": batches,
    }
    write_atomically(path, save(arrays, {"calibration": json.dumps(header)}))


def read(path: Path, kinds: Mapping[str, Any]) -> tuple[Any, int]:
    """The calibration of one of the kinds, and of how many batches it is; or a clear refusal."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no calibration file {str(path)!r}.")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("calibration", "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as problem:
        raise _refusal(path, f"is truncated or no safetensors file ({problem})") from None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise _refusal(path, "holds something else than a calibration")
    if header.get("version") != _VERSION:
        raise ValueError(
            f"The calibration file {str(path)!r} has version {header.get('version')!r}; this "
            f"library reads version {_VERSION}. Update `lowrank_theory`, or calibrate again."
        )
    try:
        empty = kinds[header["kind"]].empty(arrays["mean"].size, compressed=header["compressed"])
        if not any(name.startswith("sample.") for name in arrays):  # it is older than samples
            empty = dataclasses.replace(empty, sample=None)
        wanted, got = _named(empty), [arrays[name] for name in _named(empty)]
        agree = [
            set(arrays) == set(wanted),
            header["inputs"] == empty.inputs,
            header["count"] == float(arrays["count"]),
            header["batches"] == int(header["batches"]) >= 0,
            *(a.shape == b.shape for a, b in zip(got, wanted.values(), strict=True)),
            *(a.dtype == np.float64 and bool(np.isfinite(a).all()) for a in got),
        ]
    except (KeyError, TypeError, ValueError) as problem:
        raise _refusal(path, f"is damaged ({problem!r})") from None
    if not all(agree):
        raise _refusal(path, "is damaged: its header and its arrays do not agree")
    return jax.tree.unflatten(jax.tree.structure(empty), got), int(header["batches"])


def _refusal(path: Path, why: str) -> ValueError:
    return ValueError(
        f"The file {str(path)!r} {why}. Give another file, or delete this one and calibrate again."
    )
