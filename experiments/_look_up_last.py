"""The last layer of trained networks by a table: what codebooks cost, beside low rank.

Rows are what the layer sees in the network as it is, of training images; the accuracy is that of
the whole network on test images, of which only the last layer is another.
"""

import sys
from typing import Any

import numpy as np

from lowrank_theory import networks
from lowrank_theory.lookup import LookUp
from lowrank_theory.models import catalogue
from lowrank_theory.networks import Bytes, Sizes
from lowrank_theory.recovery import ActivationWeighted

NETWORKS = ("alexnet", "resnet20")
CODEBOOKS = (1, 2, 4, 8, 16)
SIZES = Sizes(calibration=2000, held_out=2, units=2, items=1000, batch=250)
NEARLY = 0.999  # of the bytes: the size is the one that is given


def last_layers() -> dict[str, Any]:
    """Accuracy on the first 1,000 test images, at every number of codebooks that saves bytes."""
    return {name: _of(name) for name in NETWORKS if catalogue.available(name) is None}


def _of(name: str) -> dict[str, Any]:
    loaded = catalogue.find(name).load(SIZES)
    network = loaded.function, loaded.parameters
    sites = networks.survey(*network, loaded.calibration[0])
    last = list(sites)[-1]

    def accuracy(method: Any, share: float) -> dict[str, Any] | None:
        try:
            made = networks.compress(
                *network,
                loaded.calibration,
                Bytes(share),
                method=method,
                select=lambda path: path == last,
            )
        except ValueError:  # no such size saves anything
            return None
        layer = made.layers[last]
        scores = loaded.metric.scores(made.function, made.parameters)
        print(f"{name}: {layer.size}", file=sys.stderr, flush=True)
        return {
            "size": layer.size,
            "bytes": layer.bytes / layer.dense_bytes,
            "accuracy": loaded.metric.value(scores),
            "error": layer.relative_error,
        }

    rows = [accuracy(LookUp((codebooks,)), NEARLY) for codebooks in CODEBOOKS]
    tables = [row for row in rows if row is not None]
    factors = [accuracy(ActivationWeighted(), row["bytes"]) for row in tables]
    by_size = {row["size"]: row for row in factors if row is not None}
    exact = np.asarray(loaded.metric.scores(*network))
    return {
        "shape": list(sites[last].view.matrix_shape),
        "exact": loaded.metric.value(exact),
        "tables": tables,
        "low_rank": list(by_size.values()),
    }
