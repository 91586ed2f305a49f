"""Where weights multiply, and what multiplied them."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from lowrank_theory._engine.views import MatrixView
from lowrank_theory.calibration import AbstractCalibration


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a weight multiplies.

    - `view`: how the leaf is a matrix, or a stack of them;
    - `rows`: how many rows each matrix meets in one batch, over all its uses;
    - `group`: a number that weights which see the same input have in common. It grows in the order
      of execution;
    - `complex_inputs`: whether what it meets is complex at some place. Real and imaginary parts are
      rows of their own there.
    """

    view: MatrixView
    rows: int
    group: int
    complex_inputs: bool = False

    @property
    def parameters(self) -> int:
        """How many numbers the leaf holds."""
        return math.prod(self.view.shape)

    @property
    def multiply_adds(self) -> int:
        """What its products cost for one batch: rows times inputs times outputs, of each matrix."""
        return self.rows * self.parameters


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Survey(Mapping[str, Site]):
    """Where each weight multiplies, by its path and in the order of execution.

    - `remarks`: uses of a weight besides those products;
    - `not_followed`: why each other leaf is no weight.
    """

    sites: Mapping[str, Site]
    remarks: Mapping[str, tuple[str, ...]]
    not_followed: Mapping[str, tuple[str, ...]]

    def __getitem__(self, path: str) -> Site:
        if path not in self.sites:
            raise _not_followed(path, self.not_followed)
        return self.sites[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __repr__(self) -> str:
        lines = [f"{len(self)} weights followed"]
        for path, site in self.items():
            size = " x ".join(map(str, site.view.matrix_shape))
            parts = " (real and imaginary parts)" if site.complex_inputs else ""
            lines.append(f"  {path}: {size}, {site.rows:,} rows{parts}, input {site.group}")
            lines.extend(f"    {remark}" for remark in self.remarks.get(path, ()))
        return "\n".join([*lines, *by_reason(self.not_followed)])


def _not_followed(path: str, reasons: Mapping[str, tuple[str, ...]]) -> KeyError:
    why = "; ".join(reasons.get(path, ("there is no such leaf",)))
    return KeyError(f"{path} was not followed: {why}.")


def by_reason(not_followed: Mapping[str, tuple[str, ...]]) -> list[str]:
    """How many leaves there are, and which share which reasons."""
    by_reason: dict[tuple[str, ...], list[str]] = {}
    for path, reasons in not_followed.items():
        by_reason.setdefault(reasons, []).append(path)
    listed = (f"  {', '.join(paths)}: {'; '.join(why)}" for why, paths in by_reason.items())
    return [f"{len(not_followed)} not followed", *listed]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Observation(Mapping[str, AbstractCalibration | tuple[AbstractCalibration, ...]]):
    """The calibration of each weight that was followed into a product, by its path.

    A path is `jax.tree_util.keystr` of the leaf. A stack of matrices (the slices of a loop, the
    groups of a convolution) has a tuple of calibrations, in the order of `views[path].stack`.
    Weights that see the same input hold the same object.

    - `views`: how each leaf is a matrix.
    - `remarks`: what else is to be known of a weight that was followed: that it is used more than
      once, and uses which its calibration does not count.
    - `not_followed`: why each other leaf has no calibration.
    """

    calibrations: Mapping[str, AbstractCalibration | tuple[AbstractCalibration, ...]]
    views: Mapping[str, MatrixView]
    remarks: Mapping[str, tuple[str, ...]]
    not_followed: Mapping[str, tuple[str, ...]]

    def __getitem__(self, path: str) -> AbstractCalibration | tuple[AbstractCalibration, ...]:
        if path not in self.calibrations:
            raise _not_followed(path, self.not_followed)
        return self.calibrations[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.calibrations)

    def __len__(self) -> int:
        return len(self.calibrations)

    def slices(self, path: str) -> tuple[AbstractCalibration, ...]:
        """The calibrations of a stack, or the one of a matrix."""
        seen = self[path]
        return seen if isinstance(seen, tuple) else (seen,)

    @property
    def shared(self) -> tuple[tuple[str, ...], ...]:
        """The groups of weights that see the same input."""
        groups: dict[Any, list[str]] = {}
        for path in self:
            groups.setdefault(tuple(map(id, self.slices(path))), []).append(path)
        return tuple(tuple(paths) for paths in groups.values() if len(paths) > 1)

    def __repr__(self) -> str:
        lines = [f"{len(self)} weights followed"]
        for path in self:
            view = self.views[path]
            counts = sorted({int(calibration.count) for calibration in self.slices(path)})
            rows = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
            size = " x ".join(map(str, view.matrix_shape))
            lines.append(f"  {path}: {view.shape} as {size}, {rows} rows")
            lines.extend(f"    {remark}" for remark in self.remarks.get(path, ()))
        lines.extend(f"  one input: {', '.join(paths)}" for paths in self.shared)
        return "\n".join([*lines, *by_reason(self.not_followed)])
