"""What the measurements without data share: a network by layers, each compressed by a ladder."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from _save import interval
from lowrank_theory._engine.replace import leaves_by_path, with_leaves
from lowrank_theory.data_constrained import (
    ChannelStatistics,
    Pair,
    Preconditioned,
    channel_statistics,
    equalise,
    find_pairs,
    folded,
)
from lowrank_theory.networks import (
    Observation,
    Parameters,
    batch_normalisations,
    compress,
    survey,
)
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import AbstractLadder, dense_float64

Arrays = dict[str, Any]
Logits = list[np.ndarray]  # at each size
Piece = Callable[[str, Callable[[], Any]], Any]  # what was made before, or is made now


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


def compressed(
    network: Network,
    method: AbstractLadder,
    seen: Observation | None,
    *,
    corrected: bool = False,
) -> Logits:
    """The logits at each size of a method, one size for all layers. What the method has to know is
    in `seen`; `corrected`, the mean output is kept where the method does not do so itself.
    """
    leaves = leaves_by_path(network.parameters)
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
    return [network.logits(with_leaves(network.parameters, each)) for each in sizes]


def allocated(
    network: Network, method: AbstractLadder, batches: Any, shares: Sequence[float]
) -> Logits:
    """The logits at shares of the numbers, which `compress` spends where they are needed most."""
    found = []
    for share in shares:
        made = compress(
            network.function, network.parameters, batches, Parameters(share), method=method,
            select=lambda path: path in network.shifts,
        )  # fmt: skip
        small = dataclasses.replace(network, function=jax.jit(made.function))
        found.append(small.logits(made.parameters))
    return found


def table(
    columns: Mapping[str, list[Logits]],
    network: Network,
    exact: np.ndarray,
    sizes: Sequence[Any],
    against: Mapping[str, str],
) -> dict[str, Any]:
    """Each column at each size, judged; and the images that some get right and those they are
    `against` do not, less the others. A column has several networks that stand for one function.
    """
    right = {
        name: [np.mean([each[size].argmax(axis=1) == network.labels for each in made], axis=0)
               for size in range(len(sizes))]
        for name, made in columns.items()
    }  # fmt: skip
    return {
        "sizes": list(sizes),
        "columns": {
            name: [
                {"size": size, **judged([each[k] for each in made], exact, network.labels)}
                for k, size in enumerate(sizes)
            ]
            for name, made in columns.items()
        },
        "gains": [
            {
                "learned": one,
                "over": other,
                "points": [interval(a - b) for a, b in zip(right[one], right[other], strict=True)],
            }
            for one, other in against.items()
        ],
    }


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
