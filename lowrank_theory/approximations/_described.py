"""How an approximation is written down: what it is, and under which names its arrays stand."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from lowrank_theory.approximations._approximation import AbstractApproximation
from lowrank_theory.approximations._combined import Product, Sum, Transposed
from lowrank_theory.approximations.affine import Affine
from lowrank_theory.approximations.dense import Dense
from lowrank_theory.approximations.low_rank import LowRank
from lowrank_theory.approximations.quantised import Quantised
from lowrank_theory.approximations.sparse import (
    AbstractPattern,
    Bitmap,
    CompressedRows,
    NOfM,
    Sparse,
    WholeRows,
)
from lowrank_theory.approximations.table import RoundedTable, Table

# What a file may name.
KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        LowRank,
        Dense,
        Quantised,
        Sparse,
        Bitmap,
        CompressedRows,
        NOfM,
        WholeRows,
        Sum,
        Product,
        Transposed,
        Affine,
        Table,
        RoundedTable,
    )
}


def register(kind: Any) -> None:
    """Enter a kind of approximation of your own, so that files may hold it. Its `__init__` takes
    its fields by name; each is an array, a number, an approximation or a tuple of these.

    Raises `ValueError` for a name that another kind has.
    """
    if KINDS.setdefault(kind.__name__, kind) is not kind:
        raise ValueError(f"`{kind.__name__}` is entered already, by another kind: rename it.")


def described(given: Any) -> dict[str, Any]:
    """Its kind, and of each field what it is: a number, `"array"`, a kind or a list of kinds. Ready
    for JSON.
    """
    if type(given) not in KINDS.values():
        raise ValueError(
            f"A `{type(given).__name__}` cannot be saved: enter its kind by "
            "`lowrank_theory.approximations.register`."
        )
    fields = {each.name: _entry(getattr(given, each.name)) for each in dataclasses.fields(given)}
    return {"kind": type(given).__name__, **fields}


def _entry(value: Any) -> Any:
    if isinstance(value, AbstractApproximation | AbstractPattern):
        return described(value)
    if isinstance(value, tuple):
        return [described(part) for part in value]
    return "array" if isinstance(value, Array | np.ndarray) else value


def restored(entry: Mapping[str, Any], array: Callable[[str], np.ndarray], name: str) -> Any:
    """The approximation of a description, with the array of each name: the leaf `['w']` has arrays
    such as `['w'].left` and `['w'].parts[0].codes`, as `jax.tree_util.keystr` names them.

    Raises `LookupError` for a kind that there is not, and `ValueError` for arrays that do not fit.
    """
    fields = {}
    for field, value in entry.items():
        place = f"{name}.{field}"
        if field == "kind":
            continue
        if value == "array":
            fields[field] = array(place)
        elif isinstance(value, dict):
            fields[field] = restored(value, array, place)
        elif isinstance(value, list):
            parts = [restored(part, array, f"{place}[{k}]") for k, part in enumerate(value)]
            fields[field] = tuple(parts)
        else:
            fields[field] = value
    return KINDS[entry["kind"]](**fields)
