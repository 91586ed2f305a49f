"""A run of training that is kept after every epoch, and goes on from there to the same bits."""

import dataclasses
import functools
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from lowrank_theory._store import COLUMNS, Results

Batches = Iterable[PyTree] | Callable[[PRNGKeyArray], Iterable[PyTree]]


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


def keys_of_epoch(key: PRNGKeyArray, epoch: int) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Of the order of an epoch, and of its steps."""
    order, steps = jax.random.split(jax.random.fold_in(key, epoch))
    return order, steps


def of_epoch(batches: Batches, key: PRNGKeyArray) -> Iterator[PyTree]:
    """The batches of an epoch, at least one, each of some rows."""
    if callable(batches):
        given = batches(key)
    elif isinstance(batches, Iterable) and not isinstance(batches, Iterator):
        given = batches
    else:
        raise ValueError(
            "`batches` must be a list, or anything else that can be gone through more than once, "
            "or a function of a key that gives the batches of an epoch; got "
            f"{type(batches).__name__}."
        )
    empty = True
    for batch in given:
        if any(0 in np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)):
            raise ValueError("`batches` has a batch without rows: leave it out.")
        empty = False
        yield batch
    if empty:
        raise ValueError("`batches` is empty: give at least one batch for each epoch.")


def _fits(names: Sequence[str], columns: Mapping[str, np.ndarray]) -> bool:
    steps = {columns[name].shape for name in names}
    return len(steps) == 1 and len(*steps) == 1 and columns["epochs"].shape == ()


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
