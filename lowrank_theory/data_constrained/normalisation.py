r"""Batch normalisation as a source of knowledge: what a network keeps of its training data.

With $z = s\,(y - \mu)/\sqrt{v + \epsilon} + t$, where $\mu$ and $v$ are the mean and the variance
of a channel of $y$ over the data, the outputs have mean $t$ and standard deviation $|s|\sqrt{v/(v
+ \epsilon)}$. Layer and group normalisation keep no such numbers.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import PyTree

from lowrank_theory._engine.drawn import ChannelStatistics as ChannelStatistics
from lowrank_theory._numerics import check_positive
from lowrank_theory.data_constrained._leaves import Leaves


@dataclasses.dataclass(frozen=True)
class BatchNormalisation:
    """The leaves of one batch normalisation, each a path as `jax.tree_util.keystr` writes it.

    - `kernel`: the weight whose products are normalised; its last axis is that of the channels;
    - `shift`, `scale`, `mean`, `variance`: (channels,) each, as in the formula of this module;
    - `epsilon`: what is added to the variances.

    Raises `ValueError` for a missing name: what has no stored mean and variance is not batch
    normalisation.
    """

    kernel: str
    shift: str
    scale: str
    mean: str = ""
    variance: str = ""
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon, zero=True)
        for field in ("shift", "scale", "mean", "variance", "kernel"):
            if not getattr(self, field):
                reason = ""
                if field in ("mean", "variance"):
                    reason = (
                        " Layer, group and instance normalisation keep no statistics of the data, "
                        "so nothing is known without data."
                    )
                raise ValueError(f"`{field}` must be the path of a leaf; got none.{reason}")


def channel_statistics(
    parameters: PyTree, normalisations: Iterable[BatchNormalisation]
) -> dict[str, ChannelStatistics]:
    r"""The mean $t$ and the deviation $|s|\sqrt{v/(v + \epsilon)}$ of the normalised outputs, by
    the path of the shift, which is added last.

    Raises `ValueError` for paths that there are not, arrays that do not fit one another, numbers
    that are not finite, and negative variances.
    """
    leaves = Leaves.of(parameters)
    statistics = {}
    for each in _some(normalisations):
        shift, scale, _, variance = _arrays(leaves, each)
        share = variance / np.maximum(variance + each.epsilon, np.finfo(float).tiny)
        statistics[each.shift] = ChannelStatistics(shift, np.abs(scale) * np.sqrt(share))
    return statistics


def folded(parameters: PyTree, normalisations: Iterable[BatchNormalisation]) -> PyTree:
    r"""The same tree for the same function, whose normalisations only add a shift.

    The kernel takes $s/\sqrt{v + \epsilon}$, the shift becomes $t - s\mu/\sqrt{v + \epsilon}$, and
    $s = 1$, $\mu = 0$, $v = 1 - \epsilon$. In exact arithmetic the function is unchanged, and so
    are the statistics of its normalised outputs: take `channel_statistics` before.

    Raises `ValueError` as `channel_statistics` does.
    """
    leaves = Leaves.of(parameters)
    changed: dict[str, Any] = {}
    for each in _some(normalisations):
        shift, scale, mean, variance = _arrays(leaves, each)
        if not (variance + each.epsilon > 0).all():
            raise ValueError(f"`parameters{each.variance}` has zeros, and `epsilon` is zero.")
        factor = scale / np.sqrt(variance + each.epsilon)
        kernel = leaves[each.kernel]
        if np.shape(kernel)[-1:] != shift.shape:
            raise ValueError(
                f"`parameters{each.kernel}` is {np.shape(kernel)}: its last axis must be that of "
                f"the {len(shift)} channels of {each.shift}."
            )
        changed |= {
            each.kernel: np.asarray(kernel, np.float64) * factor,
            each.shift: shift - mean * factor,
            each.scale: np.ones_like(scale),
            each.mean: np.zeros_like(mean),
            each.variance: np.full_like(variance, 1 - each.epsilon),
        }
    return leaves.replaced(changed)


def _some(normalisations: Iterable[BatchNormalisation]) -> list[BatchNormalisation]:
    found = list(normalisations)
    if not found:
        raise ValueError(
            "`normalisations` is empty: name the leaves of at least one `BatchNormalisation`. A "
            "network without any keeps no statistics of its data."
        )
    return found


def _arrays(leaves: Leaves, each: BatchNormalisation) -> list[np.ndarray]:
    """The shift, the scale, the mean and the variance, in float64."""
    names = (each.shift, each.scale, each.mean, each.variance)
    arrays = [np.asarray(leaves[name], np.float64) for name in names]
    for name, array in zip(names, arrays, strict=True):
        if array.shape != arrays[0].shape or array.ndim != 1:
            raise ValueError(
                f"`parameters{name}` must have one number for each channel of {each.shift}; got "
                f"{array.shape} beside {arrays[0].shape}."
            )
        if not np.isfinite(array).all():
            raise ValueError(f"`parameters{name}` has entries that are not finite.")
    if (arrays[3] < 0).any():
        raise ValueError(
            f"`parameters{each.variance}` must not be negative; got {arrays[3].min():.3g}."
        )
    return arrays
