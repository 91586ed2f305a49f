"""Streams of batches, and files from which they resume."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowrank_theory._files import check_writable
from lowrank_theory._float64_range import check_range
from lowrank_theory._numerics import AnyArray, check_count, float64, owned, together
from lowrank_theory.calibration._file import read, write
from lowrank_theory.calibration._moments import (
    AbstractCalibration,
    Batch,
    Calibration,
    State,
    check_alike,
    check_batch,
)
from lowrank_theory.calibration._triangular import TriangularCalibration

STATISTICS_WITH_GATHERED = "The statistics with this batch and those gathered with it"

_KINDS = {kind.__name__: kind for kind in (Calibration, TriangularCalibration)}


def load_calibration(path: str | os.PathLike[str]) -> AbstractCalibration:
    """The calibration that `save` or `calibrate` wrote, of the kind that it was.

    Raises `FileNotFoundError` if there is none, and `ValueError` if the file is truncated or
    damaged, holds something else, or was written by a newer version of this library. A file without
    a digest, as the first versions wrote it, is loaded with a warning.
    """
    return read(Path(path), _KINDS)[0]


def calibrate(
    batches: Iterable[Any],
    start: State,
    *,
    file: str | os.PathLike[str] | None = None,
    save_every: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> State:
    r"""The statistics of all batches of an iterator.

    ```python
    seen = calibrate(batches, Calibration.empty(inputs), file="layer.safetensors")
    ```

    `start` says of which kind. A batch is an array (samples, inputs) of any floating dtype or, if
    `start` is for compressed activations, a pair (activations, compressed activations). Small
    batches are gathered into blocks of `start.block` rows and large ones cut, so that speed and
    memory do not depend on their size.

    With a `file`, the statistics are saved every `save_every` batches and at the end; if it exists,
    the run goes on from it, passing over as many batches as it has seen, so that `batches` must
    begin where they began. A run that was killed has lost what it had not saved, and ends with the
    same numbers as one that was not, bit for bit. `progress(batches, samples)` is called after each
    batch with the numbers seen so far.

    Every batch is read, or copied, before the iterator is asked for the next: it may fill one
    buffer again and again, or donate what it gave.

    Raises `ValueError` if there are no batches; for a batch of a wrong shape, with entries that are
    not finite or of an integer dtype, and where the statistics would not fit into float64, naming
    its number, counted from one; and for a file that is damaged or holds something else. What was
    saved stays. Raises `OSError`, before the first batch is asked for, where the file
    cannot be written.
    """
    save_every = check_count("save_every", save_every, 1)
    path = None if file is None else Path(file)
    seen, saved, number = start, 0, 0
    if path is not None:
        check_writable(path)
    if path is not None and path.exists():
        seen, saved = read(path, _KINDS)
        try:
            check_alike(str(path), seen, "start", start)
        except ValueError as problem:
            raise ValueError(f"{problem} Give another file, or start as it did.") from None
    samples = int(seen.count)
    pending: list[Batch] = []
    for number, batch in enumerate(batches, 1):
        if number <= saved:
            continue
        saving = path is not None and number % save_every == 0
        try:
            rows = check_batch(seen, *_pair(batch))
            seen, pending = _with_whole_blocks(seen, [*pending, rows], everything=saving)
        except ValueError as problem:
            raise ValueError(f"Batch {number}: {problem}") from None
        if path is not None and saving:
            write(seen, path, batches=number)
        samples += rows[0].shape[0]
        if progress is not None:
            progress(number, samples)
    if number == 0:
        raise ValueError("`batches` is empty. An iterator can be used only once: make a new one.")
    if number < saved:
        raise ValueError(
            f"The file {str(path)!r} has seen {saved} batches, but `batches` has only {number}: it "
            "belongs to another stream. Give another file."
        )
    try:
        seen, _ = _with_whole_blocks(seen, pending, everything=True)
    except ValueError as problem:
        raise ValueError(f"Batch {number}: {problem}") from None
    if path is not None and number > saved and number % save_every:
        write(seen, path, batches=number)
    return seen


def _pair(batch: Any) -> tuple[Any, ...]:
    if not isinstance(batch, tuple):
        return (batch,)
    if not 1 <= len(batch) <= 2:
        raise ValueError(
            "A batch is `activations`, or a pair of `activations` and `compressed_activations`; "
            f"got a tuple of {len(batch)}. Stack rows into an array."
        )
    return batch


def _with_whole_blocks(
    seen: State, pending: list[Batch], *, everything: bool
) -> tuple[State, list[Batch]]:
    """The statistics with all whole blocks of the pending rows, and what is left of these."""
    rows, block = sum(batch[0].shape[0] for batch in pending), seen.block
    if rows == 0 or (rows < block and not everything):
        return seen, [*pending[:-1], *(jax.tree.map(owned, last) for last in pending[-1:])]
    stacked = jax.tree.map(_concatenated, *pending) if len(pending) > 1 else pending[0]
    for first in range(0, rows, block):
        part = _slice_of(stacked, slice(first, first + block))
        if rows - first < block and not everything:
            return seen, [jax.tree.map(owned, part)]
        seen = check_range(
            STATISTICS_WITH_GATHERED, seen.absorb(*part)
        )  # waits, or blocks would fill the memory
    return seen, []


def _slice_of(rows: Batch, which: slice) -> Batch:
    return jax.tree.map(lambda array: array[which], rows)


def _concatenated(*parts: AnyArray) -> AnyArray:
    """One array, on the device if the parts are."""
    if not all(isinstance(part, Array) for part in parts):
        return np.concatenate(parts)
    with float64():
        return jnp.concatenate(together(parts))
