"""A network compressed without data, beside the same from data."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lowrank_theory._engine.compress import compress
from lowrank_theory._engine.targets import Parameters
from lowrank_theory._numerics import check_fraction
from lowrank_theory._progress import Progress
from lowrank_theory._rows import AbstractRow, column
from lowrank_theory.data_constrained import Synthetic, channel_statistics, folded
from lowrank_theory.models.catalogue import Sizes, find
from lowrank_theory.models.digits_cnn import digits_cnn_network
from lowrank_theory.models.normalised import batch_normalisations
from lowrank_theory.models.resnet import resnet_network
from lowrank_theory.recovery import AbstractLadder, ActivationWeighted, TruncatedSVD
from lowrank_theory.studies._paired import paired

NETWORKS: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "digits_cnn": digits_cnn_network,
    "resnet20": lambda: resnet_network(20, folded=False),
    "resnet56": lambda: resnet_network(56, folded=False),
}
"""Those of the catalogue of this kind."""
KIND = "whose normalisation is kept apart"

KINDS = ("none", "independent", "correlated", "real")


class DataFreeRow(AbstractRow):
    """The network compressed from one calibration."""

    calibration: str = column(
        "calibration",
        "none, drawn with independent or with correlated channels, or real training data",
    )
    accuracy: float = column("accuracy", "the share of the held-out items that are recognised")
    low: float = column("lost from", "of the dense network's accuracy, paired (95 %)")
    high: float = column("to", "its upper end")
    seconds: float = column("seconds", "of the processor, for calibration and fit")


def data_free(
    name: str,
    share: float = 0.75,
    *,
    seed: int = 0,
    sizes: Sizes | None = None,
    progress: Progress | None = None,
) -> tuple[float, tuple[DataFreeRow, ...]]:
    """The accuracy of a network of `NETWORKS` and, of each of `KINDS`, that after all of its layers
    were made low rank: with a `share` of their parameters, and ranks that `compress` allots.

    No data but for the last row are used for anything but to judge. Raises `ValueError` for an
    unknown network and a share that is none, and what the readers of the network raise.
    """
    share = check_fraction("share", share)
    if name not in NETWORKS:
        raise ValueError(
            f"`name` must be a network {KIND}, of {', '.join(NETWORKS)}; got {name!r}."
        )
    network, trained = NETWORKS[name]()
    sizes = sizes or find(name).sizes
    loaded = find(name).load(sizes)
    named = batch_normalisations(trained)
    parameters, statistics = folded(trained, named), channel_statistics(trained, named)
    exact = loaded.metric.scores(network.apply, parameters)

    def batches(kind: str) -> Any:
        if kind in ("none", "real"):
            return loaded.calibration
        return Synthetic(
            statistics,
            lambda key: network.noise(sizes.batch, key=key),
            key=jax.random.key(seed),
            batches=len(loaded.calibration),
            correlated=kind == "correlated",
        )

    rows = []
    for number, kind in enumerate(KINDS, start=1):
        method: AbstractLadder = TruncatedSVD() if kind == "none" else ActivationWeighted()
        start = time.process_time()
        made = compress(network.apply, parameters, batches(kind), Parameters(share), method=method)
        seconds = time.process_time() - start
        right = loaded.metric.scores(made.function, made.parameters)
        low, high = paired(np.asarray(exact, float) - np.asarray(right, float))
        rows.append(
            DataFreeRow(
                calibration=kind,
                accuracy=float(np.mean(right)),
                low=low,
                high=high,
                seconds=seconds,
            )
        )
        if progress is not None:
            progress(kind, number, len(KINDS))
    return float(np.mean(exact)), tuple(rows)
