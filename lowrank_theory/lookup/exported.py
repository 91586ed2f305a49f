r"""Tables in a file that hardware and other languages read.

The file is a `.npz` archive without compression, and its members are arrays in C order, little
endian. With C codebooks of D levels, and K outputs:

- `layout`: 1, the version of what is said here (int64);
- `inputs`: how many numbers a row has (int64);
- `splits` (C, D): which input is compared at each level, from 0 (uint16, or int32 where there are
  more than 65,536 inputs);
- `thresholds` (C, $2^D - 1$): of the nodes of each tree, level by level from the root (floats of
  16, 32 or 64 bits; bfloat16 is widened to 32);
- `entries` (C, $2^D$, K): uint8, or floats of the dtype of the thresholds;
- with bytes, `step` (K,) or (1,), and `shift` (K,): floats of that dtype.

A row $x$ finds in codebook c the code $k$ by $k \leftarrow 0$ and, for each level $d$,
$k \leftarrow 2k + [x_{s_{cd}} \ge v_{c,\,2^d-1+k}]$. Output $j$ is $\sum_cT_{ckj}$; with bytes,
$b_j + \Delta_j\sum_cT_{ckj}$, for which a sum of integers of 32 bits is enough.
"""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_theory._files import write_atomically
from lowrank_theory.approximations import AbstractTable, RoundedTable, Table

LAYOUT = 1


def export_table(path: str | os.PathLike[str], table: AbstractTable) -> None:
    """Write one table. Raises `ValueError` for a stack of them, and `OSError`."""
    if table.splits.ndim != 2:
        raise ValueError(f"`table` must be one table, not a stack {table.shape}.")
    places = "<u2" if table.inputs <= 2**16 else "<i4"
    members: dict[str, Any] = {
        "layout": np.asarray(LAYOUT, "<i8"),
        "inputs": np.asarray(table.inputs, "<i8"),
        "splits": np.asarray(table.splits).astype(places),
        "thresholds": _plain(table.thresholds),
        "entries": _plain(table.entries),
    }
    if isinstance(table, RoundedTable):
        members |= {"step": _plain(table.step), "shift": _plain(table.shift)}
    file = io.BytesIO()
    np.savez(file, **members)
    write_atomically(Path(path), file.getvalue())


def import_table(path: str | os.PathLike[str]) -> Table | RoundedTable:
    """The table of such a file. Raises `ValueError` for another file, and `OSError`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            members = {name: file[name] for name in file.files}
        layout, inputs = (int(members.pop(name)) for name in ("layout", "inputs"))
    except (ValueError, zipfile.BadZipFile, KeyError, AttributeError, EOFError) as error:
        raise ValueError(f"{path} is no table that `export_table` has written.") from error
    kind = RoundedTable if "step" in members else Table
    if layout != LAYOUT or set(members) != _MEMBERS[kind]:
        raise ValueError(f"{path} has layout {layout} with {sorted(members)}: not that of a table.")
    return kind(**members, inputs=inputs)


_MEMBERS: dict[Any, set[str]] = {
    Table: {"splits", "thresholds", "entries"},
    RoundedTable: {"splits", "thresholds", "entries", "step", "shift"},
}


def _plain(array: Any) -> np.ndarray:
    """Little endian, of a dtype that NumPy has."""
    array = np.ascontiguousarray(array)
    dtype = array.dtype if array.dtype.kind in "fu" else np.dtype(np.float32)
    return array.astype(dtype.newbyteorder("<"))
