"""Long studies of a network in pieces, of which those that are finished are kept."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lowrank_theory._files import plain
from lowrank_theory._fingerprint import fingerprint
from lowrank_theory._store import ENTRIES, Results
from lowrank_theory.models.catalogue import Loaded
from lowrank_theory.studies.transfer_rows import Machine


def machine() -> Machine:
    """Where times were measured."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cores=cores,
        device=jax.devices()[0].device_kind,
        jax=jax.__version__,
    )


def digest(loaded: Loaded) -> str:
    """The hash of a network and of the units that it is given: files of the same name may hold
    others.
    """
    digest = hashlib.sha256()
    given = (loaded.parameters, loaded.calibration, loaded.held_out, loaded.units)
    for path, leaf in jax.tree_util.tree_leaves_with_path(given):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class Pieces:
    """What is finished, each piece in a file named by the hash of what it is, of the sources of
    this package, and of the versions of what it computes with; nowhere without a folder.
    """

    def __init__(self, folder: Path | None, setting: Any) -> None:
        self.setting = setting
        self._results = None if folder is None else Results(folder, "piece", ENTRIES)

    def get(self, name: str, make: Callable[[], Any]) -> dict[str, Any]:
        """`{"found": ..., "seconds": ...}`, what `make` returns and what it took."""
        words = {"piece": name, "of": plain(self.setting), "sources": fingerprint()}
        identity = hashlib.sha256(json.dumps(words).encode()).hexdigest()
        kept = self._results and self._results.load(identity, {"found", "seconds"}.issubset)
        if kept is not None:
            return {entry: kept[entry] for entry in ("found", "seconds")}
        start = time.monotonic()
        piece = plain({"found": make(), "seconds": time.monotonic() - start})
        if self._results is not None:
            self._results.save(identity, piece, **words)
        return piece

    def prune(self) -> None:
        """Remove what this run neither found nor wrote: pieces of other sources or settings."""
        if self._results is not None:
            self._results.prune()
