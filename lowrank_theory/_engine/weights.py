"""The weights that a compression is asked for: each an array, where it multiplies, and the leaves
that it is.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from lowrank_theory._engine.observation import Site, Survey
from lowrank_theory._engine.views import MatrixView
from lowrank_theory.approximations import Storage
from lowrank_theory.calibration import AbstractCalibration
from lowrank_theory.problems import Observed

Tied = Mapping[str, Sequence[str]]  # the first path of an array that is several leaves: the others


@dataclasses.dataclass(frozen=True)
class Weight:
    """A followed weight: the array `leaf` at `path` and at those `tied` to it, which multiplies at
    `site`.
    """

    path: str
    leaf: Any
    site: Site
    tied: tuple[str, ...]

    @property
    def view(self) -> MatrixView:
        """How the leaf is a matrix, or a stack of them."""
        return self.site.view

    @property
    def dtype(self) -> np.dtype:
        """That in which what replaces it is stored."""
        return stored_dtype(self.leaf)

    @property
    def dense(self) -> Storage:
        """What it takes as it is."""
        numbers = self.site.parameters
        return Storage.of_floats(numbers, self.dtype.itemsize, multiply_adds=numbers)

    def observed(self, seen: Sequence[AbstractCalibration] | None) -> list[Observed]:
        """Its matrices, with what they saw if a method looks at it: then errors are those of the
        outputs. With a bias the layer is affine, and its mean output does not move; but real and
        imaginary parts have a mean each, which one real shift cannot keep.
        """
        dtype = np.float64 if self.leaf.dtype == np.float64 else np.float32
        inputs, outputs = self.view.matrix_shape[-2:]
        weights = self.view.matrix(np.asarray(self.leaf)).astype(dtype).reshape(-1, inputs, outputs)
        affine = seen is not None and not self.site.complex_inputs
        bias = np.zeros(outputs, dtype) if affine else None
        try:
            return [
                Observed(weights=each, bias=bias, calibration=calibration)
                for each, calibration in zip(weights, seen or [None] * len(weights), strict=True)
            ]
        except ValueError as error:
            raise ValueError(f"`parameters{self.path}`: {error}") from error


def weights_of(parameters: PyTree, survey: Survey, tied: Tied) -> dict[str, Weight]:
    """The followed weights by path, in the order of execution."""
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return {
        path: Weight(path, arrays[path], site, tuple(tied.get(path, ())))
        for path, site in survey.items()
    }


def stored_dtype(leaf: Any) -> np.dtype:
    """The dtype of what replaces a leaf: its own, as far as JAX has it."""
    return np.dtype(jax.dtypes.canonicalize_dtype(leaf.dtype))


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


def replaceable(survey: Survey, tied: Tied, select: Callable[[str], bool]) -> Survey:
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
