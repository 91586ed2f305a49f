"""Tables in the convolutions of AlexNet, layer after layer, beside low rank and rounding.

A convolution has more inputs, and more rows, than a perceptron's layer: its tables are fitted to
the patches of 96 images. All convolutions together take a share of their bytes; affine layers stay.
"""

import sys
from typing import Any

import numpy as np

from lowrank_theory import certify_losses, networks
from lowrank_theory.lookup import LookUp
from lowrank_theory.networks import Bytes
from lowrank_theory.quantisation import RoundToNearest
from lowrank_theory.recovery import ActivationWeighted

SHARES, FITTED, HELD_OUT, CERTIFIED = (0.25, 0.5), 96, 1000, 200
FAILURE_PROBABILITY = 0.05
METHODS: dict[str, Any] = {
    "tables": LookUp((16, 64), weighted=False),
    "low rank": ActivationWeighted(),
    "rounding to nearest": RoundToNearest(),
}


def alexnet(seed: int, *, quick: bool) -> dict[str, Any]:
    """Accuracy on the first 1,000 test images, and the loss of the outputs with its certificate,
    from 200 others.
    """
    network, parameters = networks.alexnet_network()
    data = networks.cifar10_data(2000)
    chosen = np.random.default_rng(seed).permutation(2000)[: 8 if quick else FITTED]
    batches = [np.asarray(data.training_images[chosen])]
    held_out = data.held_out_images[:HELD_OUT], data.held_out_labels[:HELD_OUT]
    units = [image[None] for image in data.training_images[-CERTIFIED:]]
    rows: list[dict[str, Any]] = []
    for share in SHARES[:1] if quick else SHARES:
        for name, method in METHODS.items():
            found = networks.compress(
                network.apply,
                parameters,
                batches,
                Bytes(share),
                method=method,
                select=lambda path: "conv" in path,
                sequential=name != "rounding to nearest",  # which looks at no data
            )
            losses = networks.output_errors(network.apply, parameters, found, units)
            certified = certify_losses(losses, FAILURE_PROBABILITY)
            right = networks.correct(found.function, found.parameters, *held_out)
            rows.append(
                {
                    "share": share,
                    "method": name,
                    "bytes": found.storage_bytes / found.dense_storage_bytes,
                    "sizes": [layer.size for layer in found.layers.values()],
                    "accuracy": float(right.mean()),
                    "loss": certified.mean,
                    "certificate": certified.bound,
                }
            )
            print(f"AlexNet: {name} at {share}", file=sys.stderr, flush=True)
    exact = float(networks.correct(network.apply, parameters, *held_out).mean())
    return {"exact": exact, "fitted": len(chosen), "held_out": HELD_OUT, "rows": rows}
