"""What the measurements without data share: a network by layers, each compressed by a ladder."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from _save import interval
from lowrank_theory.data_constrained import (
    ChannelStatistics,
    Pair,
    Preconditioned,
    channel_statistics,
    equalise,
    find_pairs,
    folded,
)
from lowrank_theory.networks import Observation, batch_normalisations, survey
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, dense_float64

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """A function with folded parameters, the statistics of its channels, and held-out data."""

    function: Callable[[Any, Any], Any]
    parameters: Any
    statistics: Mapping[str, ChannelStatistics]
    shifts: Mapping[str, str]  # of each kernel
    images: np.ndarray
    labels: np.ndarray
    batch: int

    @staticmethod
    def of(network: Any, parameters: Any, images: Any, labels: Any, batch: int) -> "Network":
        named = batch_normalisations(parameters)
        shifts = {each.kernel: each.shift for each in named}
        shifts["['head']['kernel']"] = "['head']['bias']"
        return Network(
            jax.jit(network.apply),
            folded(parameters, named),
            channel_statistics(parameters, named),
            shifts,
            np.asarray(images),
            np.asarray(labels),
            batch,
        )

    def with_parameters(self, made: Preconditioned) -> "Network":
        return dataclasses.replace(self, parameters=made.parameters, statistics=made.statistics)

    def pairs(self) -> tuple[Pair, ...]:
        return find_pairs(self.function, self.parameters, self.images[:4], dict(self.shifts))

    def equalised(self, pairs: Sequence[Pair]) -> "Network":
        arguments = self.function, self.parameters, self.images[:4], pairs, self.statistics
        return self.with_parameters(equalise(*arguments))

    def logits(self, parameters: Any) -> np.ndarray:
        parts = [
            np.asarray(self.function(parameters, self.images[start : start + self.batch]))
            for start in range(0, len(self.images), self.batch)
        ]
        return np.concatenate(parts).astype(np.float64)


def leaves_of(parameters: Any) -> Arrays:
    paths = jax.tree_util.tree_leaves_with_path(parameters)
    return {jax.tree_util.keystr(path): leaf for path, leaf in paths}


def compressed(
    network: Network,
    method: AbstractLadder,
    seen: Observation | None,
    *,
    corrected: bool = False,
) -> list[Any]:
    """The parameters at each size of a method, one size for all layers. What the method has to know
    is in `seen`; `corrected`, the mean output is kept where the method does not do so itself.
    """
    leaves = leaves_of(network.parameters)
    sizes: list[Arrays] = []
    sites = survey(network.function, network.parameters, network.images[:2])
    for path, shift in network.shifts.items():
        view = sites[path].view
        weights = np.asarray(view.matrix(np.asarray(leaves[path])), np.float32)
        calibration: Any = None if seen is None else seen[path]
        bias = None if seen is None else np.zeros(weights.shape[1], np.float32)
        observed = Observed(weights=weights, bias=bias, calibration=calibration)
        sweep = method.sweep(observed)
        for size in range(len(sweep.storages)):
            if len(sizes) == size:
                sizes.append(dict(leaves))
            recovery = sweep.at(size)
            made: Any = recovery.approximation
            dense = dense_float64(made)
            step = np.zeros(weights.shape[1])
            if method.needs:
                step = np.asarray(recovery.bias, np.float64)
            elif corrected and calibration is not None:
                step = np.asarray(calibration.mean) @ (np.asarray(weights, np.float64) - dense)
            sizes[size][path] = np.asarray(view.leaf(dense.astype(np.float32)))
            sizes[size][shift] = np.asarray(leaves[shift] + step, np.float32)
    tree = jax.tree.structure(network.parameters)
    return [jax.tree.unflatten(tree, list(each.values())) for each in sizes]


def judged(made: Sequence[np.ndarray], exact: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Of the logits of networks that stand for one function: accuracy, what is lost of that of the
    exact logits, and the squared error over their squared norm. Means over the networks, with
    intervals over images.
    """
    known = np.mean([logits.argmax(axis=1) == labels for logits in made], axis=0)
    errors = np.mean([np.sum((logits - exact) ** 2, axis=1) for logits in made], axis=0)
    return {
        "accuracy": interval(known),
        "lost": interval((exact.argmax(axis=1) == labels) - known),
        "loss": interval(errors / np.mean(np.sum(exact**2, axis=1))),
    }
