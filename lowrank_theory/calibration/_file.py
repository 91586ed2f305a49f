"""The file of a calibration: safetensors, with a description and a digest of the whole."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lowrank_theory._files import check_writable, write_atomically
from lowrank_theory._store import ArrayFile
from lowrank_theory.calibration._row_sample import keeps_rows

_FILE = ArrayFile("calibration", 1, "a calibration", "delete this one and calibrate again")
_ENTRIES = {"format", "version", "kind", "inputs", "compressed", "count", "batches"}
_LATER = {"rows", "sha256"}  # entries that the first files do not have


def _named(seen: Any) -> dict[str, Any]:
    """The arrays of the state, by the path of their fields."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(seen)
    return {".".join(field.name for field in path): leaf for path, leaf in leaves}


def _array(stored: Mapping[str, Any]) -> np.ndarray:
    letter, bits = stored["dtype"][0], int(stored["dtype"][1:])
    dtype = np.dtype(f"<{letter.lower()}{bits // 8}")
    return np.frombuffer(stored["data"], dtype).reshape(stored["shape"])


def write(seen: Any, path: Path, *, batches: int) -> None:
    """Write a calibration, and of how many batches of its stream it is.

    Raises `ValueError` for numbers that are not finite, and `OSError` where the file cannot be
    written.
    """
    check_writable(path)
    rows = keeps_rows(seen.rows_seen)
    wanted = _named(type(seen).empty(seen.inputs, compressed=seen.has_compressed, rows=rows))
    arrays = {name: np.asarray(leaf, wanted[name].dtype) for name, leaf in _named(seen).items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(
                f"`{name}` of the calibration has entries that are not finite: it is not saved."
            )
    what = {
        "kind": type(seen).__name__,
        "inputs": seen.inputs,
        "compressed": seen.has_compressed,
        "count": float(arrays["count"]),
        "batches": batches,
        "rows": rows,
    }
    write_atomically(path, _FILE.pack(arrays, **what))


def read(path: Path, kinds: Mapping[str, Any]) -> tuple[Any, int]:
    """The calibration of one of the kinds, and of how many batches it is; or a clear refusal."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no calibration file {str(path)!r}.")
    header, stored, sealed = _FILE.unpack(path)
    sizes = {name: math.prod(each["shape"]) for name, each in stored}
    try:
        kind, inputs, batches = kinds[header["kind"]], sizes["mean"], header["batches"]
        # Each kind has a matrix of the inputs: no memory is asked for one that is not in the file.
        plausible = 0 < inputs**2 <= max(sizes.values()) and type(batches) is int and batches >= 0
        empty = kind.empty(
            inputs if plausible else 1,
            compressed=header["compressed"],
            rows=plausible and header.get("rows", False),
        )
        # It may be older than these.
        if not any(name.startswith("sample.") for name in sizes):
            empty = dataclasses.replace(empty, sample=None)
        if "sizes" not in sizes:
            empty = dataclasses.replace(empty, sizes=None)
        wanted, arrays = _named(empty), {name: _array(each) for name, each in stored}
        got = [arrays[name] for name in wanted]
        agree = [
            plausible,
            set(header) - _LATER == _ENTRIES,
            set(arrays) == set(wanted),
            header["inputs"] == empty.inputs,
            header["count"] == float(arrays["count"]),
            *(
                a.shape == b.shape and a.dtype == b.dtype and bool(np.isfinite(a).all())
                for a, b in zip(got, wanted.values(), strict=True)
            ),
        ]
    except (KeyError, TypeError, ValueError) as problem:
        raise _FILE.refusal(path, f"is damaged ({problem!r})") from None
    if not all(agree):
        raise _FILE.refusal(path, "is damaged: its header and its arrays do not agree")
    if not sealed:
        warnings.warn(
            f"The calibration file {str(path)!r} was written without a digest, so that damage to "
            "its numbers would not be found. Save it again to give it one.",
            stacklevel=3,
        )
    return jax.tree.unflatten(jax.tree.structure(empty), got), batches
