"""One array that is several leaves."""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from lowrank_theory._engine.observation import Survey

Tied = Mapping[str, Sequence[str]]


def tied_leaves(parameters: PyTree, select: Callable[[str], bool]) -> Tied:
    """The first selected path of each array that is several leaves, and the others."""
    places: dict[int, list[str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        if isinstance(leaf, jax.Array | np.ndarray):
            places.setdefault(id(leaf), []).append(jax.tree_util.keystr(path))
    tied = {}
    for paths in places.values():
        first = next(filter(select, paths), None)
        if first is not None and len(paths) > 1:
            tied[first] = [path for path in paths if path != first]
    return tied


def settled(survey: Survey, tied: Tied, select: Callable[[str], bool]) -> Survey:
    """The survey without arrays that cannot be replaced at all of their leaves: replaced at some,
    they would be kept beside their factors.
    """
    sites, not_followed = dict(survey.sites), dict(survey.not_followed)
    for path, others in tied.items():
        group = [each for each in (path, *others) if select(each)]
        if path not in sites:
            not_followed |= dict.fromkeys(group, not_followed[path])
            continue
        reasons = [f"{each} is not selected" for each in others if not select(each)]
        reasons += survey.remarks.get(path, ())
        if reasons:
            del sites[path]
            for each in group:
                rest = ", ".join(other for other in (path, *others) if other != each)
                not_followed[each] = (f"it is tied, one array with {rest}", *reasons)
    remarks = {path: why for path, why in survey.remarks.items() if path in sites}
    return Survey(sites, remarks, not_followed)
