"""A run of training that is kept after every epoch, and goes on from there to the same bits."""

import dataclasses
import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from lowrank_theory._store import COLUMNS, Results


@dataclasses.dataclass(frozen=True)
class Run:
    """The file of a run."""

    results: Results
    identity: str

    @staticmethod
    def of(folder: Path, kind: str, program: str, arguments: PyTree, epochs: int) -> "Run":
        """Named by a hash of all that it depends on: the compiled step, its arguments, and the
        number of epochs.
        """
        digest = hashlib.sha256(program.encode())
        digest.update(f"{jax.__version__} {jax.default_backend()} {epochs}".encode())
        for leaf in jax.tree.leaves(arguments):
            if eqx.is_array_like(leaf):
                array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
                digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return Run(Results(folder, kind, COLUMNS), digest.hexdigest())

    def load(self, begun: PyTree, *names: str) -> tuple[PyTree, list[list[float]], int]:
        """The state, the series of these names, and the number of epochs that are done; as begun
        without a file.
        """
        columns = self.results.load(self.identity, functools.partial(_fits, names))
        if columns is None:
            return begun, [[] for _ in names], 0
        content = io.BytesIO(columns["state"].tobytes())
        state = eqx.tree_deserialise_leaves(content, begun)
        return state, [columns[name].tolist() for name in names], int(columns["epochs"])

    def save(self, state: PyTree, epochs: int, **series: Sequence[float]) -> None:
        """A number of each series for each step."""
        content = io.BytesIO()
        eqx.tree_serialise_leaves(content, state)
        columns = {
            "state": np.frombuffer(content.getvalue(), np.uint8),
            "epochs": np.array(epochs),
            **{name: np.array(numbers, np.float64) for name, numbers in series.items()},
        }
        self.results.save(self.identity, columns)


def _fits(names: Sequence[str], columns: Mapping[str, np.ndarray]) -> bool:
    steps = {columns[name].shape for name in names}
    return len(steps) == 1 and len(*steps) == 1 and columns["epochs"].shape == ()


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
