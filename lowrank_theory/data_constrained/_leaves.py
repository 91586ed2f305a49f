"""The arrays of a tree by their paths."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from lowrank_theory._engine.follow import is_array


@dataclasses.dataclass(frozen=True)
class Leaves:
    """The leaves of a tree of parameters, by path."""

    tree: Any
    by_path: Mapping[str, Any]

    @staticmethod
    def of(parameters: PyTree) -> "Leaves":
        """All of them."""
        leaves, tree = jax.tree_util.tree_flatten_with_path(parameters)
        return Leaves(tree, {jax.tree_util.keystr(path): leaf for path, leaf in leaves})

    def __getitem__(self, path: str) -> Any:
        leaf = self.by_path.get(path)
        if leaf is None or not is_array(leaf):
            arrays = ", ".join(name for name, each in self.by_path.items() if is_array(each))
            raise ValueError(f"`parameters` has no array at {path}. Its arrays are: {arrays}.")
        return leaf

    def replaced(self, changed: Mapping[str, Any]) -> PyTree:
        """The tree with other numbers at some paths, in the dtypes of before."""
        leaves = [
            jnp.asarray(changed[path], leaf.dtype) if path in changed else leaf
            for path, leaf in self.by_path.items()
        ]
        return jax.tree.unflatten(self.tree, leaves)
