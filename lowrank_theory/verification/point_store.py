"""Finished points of a sweep, kept in a folder, so that the same again goes on from there."""

import hashlib
import inspect
import pickle
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

import lowrank_theory
from lowrank_theory._fingerprint import fingerprint
from lowrank_theory._store import COLUMNS, Results
from lowrank_theory.verification.sampling import Point, Sample, by_name, name_of

_COLUMNS = ("realised", "bound", "allowance")
_WORDS = 2_000  # characters of a setting


class PointStore:
    """A folder of finished points, each in a file named by the hash of its description, of the
    sources of this package, and of the versions of what it computes with.

    So what other sources have found is never taken for an answer, nor is what another point has, or
    a file that is damaged. Raises `OSError` where the folder cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self._results = Results(folder, "point", COLUMNS)

    @property
    def found(self) -> int:
        """How many points were taken from their files."""
        return self._results.found

    def file(self, point: Point) -> Path:
        """Where a point is kept. Raises `ValueError` for one that cannot be described."""
        return self._results.file(_identity(point))

    def load(self, point: Point) -> Sample | None:
        """What was found for a point; `None`, with a warning, where its file is corrupt."""
        trials = point.stop - point.start

        def fits(columns: Mapping[str, np.ndarray]) -> bool:
            shapes = {columns[name].shape for name in _COLUMNS}
            floats = all(columns[name].dtype == np.float64 for name in _COLUMNS)
            return floats and len(shapes) == 1 and shapes <= {(n,) for n in range(trials + 1)}

        columns = self._results.load(_identity(point), fits)
        if columns is None:
            return None
        direction = by_name(point.statement).kind.direction
        return Sample(direction, trials, *(columns[name] for name in _COLUMNS))

    def save(self, point: Point, sample: Sample) -> None:
        """Write the file of a point in one step, with the point in words."""
        columns = {name: getattr(sample, name) for name in _COLUMNS}
        words = {
            "statement": name_of(by_name(point.statement)),
            "label": point.label,
            "setting": repr(point.setting)[:_WORDS],
            "number": point.number,
            "key": jax.random.key_data(point.key),
            "failure_probability": point.failure_probability,
            "broken": point.broken,
            "trials": [point.start, point.stop],
            "sources": fingerprint(),
        }
        self._results.save(_identity(point), columns, **words)

    def prune(self) -> None:
        """Remove what this run neither found nor wrote: points of other sources or settings."""
        self._results.prune()


def _identity(point: Point) -> str:
    try:
        described = pickle.dumps((fingerprint(), _own_sources(point), point), protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError, OSError) as error:
        raise ValueError(
            "A point can be kept in a folder only if its statement and setting are classes of "
            f"a module with a file: {error}. Define them in one, or leave out the folder."
        ) from None
    return hashlib.sha256(described).hexdigest()


def _own_sources(point: Point) -> list[bytes]:
    """The modules of a statement and a setting that are not of this package."""
    package = lowrank_theory.__name__ + "."
    classes = [type(thing) for thing in (by_name(point.statement), point.setting)]
    return [
        Path(inspect.getfile(kind)).read_bytes()
        for kind in classes
        if not kind.__module__.startswith(package)
    ]
