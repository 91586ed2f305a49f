"""The network of convolutions for digits without data: bits and entries, before and after
equalisation.

As in a network whose channels were trained to different sizes, the channels between convolutions
are multiplied by random factors from 1/6 to 6, which keeps the function, and equalisation undoes
it.
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from _data_free import Network, compressed, judged, leaves_of
from lowrank_theory.data_constrained import Synthetic, rescaled
from lowrank_theory.networks import Observation, digits_cnn_network, digits_data, observe
from lowrank_theory.quantisation import GPTQ, RoundToNearest
from lowrank_theory.sparsification import Magnitude, SparseGPT, Wanda

BITS = (8, 6, 4, 3, 2)
SHARES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.2, 0.1)
FACTOR = 6.0
SEEDS = 4
SYNTHETIC = {"independent": False, "correlated": True}
ALLOWED = 0.01  # accuracy that may be lost where sparsity is compared


def measure(*, quick: bool) -> dict[str, Any]:
    exact_network, parameters = digits_cnn_network()
    data = digits_data()
    network = Network.of(
        exact_network, parameters, data.held_out_images, data.held_out_labels, batch=597
    )
    exact = network.logits(network.parameters)
    pairs = network.pairs()
    random = np.random.default_rng(0)
    spread = []
    for _ in range(1 if quick else SEEDS):
        factors = [
            FACTOR ** random.uniform(-1, 1, len(network.statistics[str(pair.shift)].mean))
            for pair in pairs
        ]
        spread.append(
            network.with_parameters(
                rescaled(network.parameters, pairs, factors, network.statistics)
            )
        )
    even = network.equalised(pairs)
    again = spread[0].equalised(pairs)
    seen, seconds = observed(even, data.training_images, exact_network)
    known = {"even": even, "spread": spread, "seen": seen, "exact": exact}
    unequal = [
        observe(each.function, each.parameters, synthetic(each, exact_network, "independent"))
        for each in spread
    ]
    return {
        "exact": judged([exact], exact, network.labels),
        "seconds": seconds,
        "equalised_apart": _apart(even.parameters, again.parameters),
        "rounded": rounded(**known, unequal=unequal, bits=BITS[:2] if quick else BITS),
        "pruned": pruned(**known, original=network, shares=SHARES[9:12:2] if quick else SHARES),
    }


def synthetic(network: Network, exact_network: Any, kind: str) -> Synthetic:
    return Synthetic(
        network.statistics,
        lambda key: exact_network.noise(300, key=key),
        key=jax.random.key(0),
        batches=4,
        correlated=SYNTHETIC[kind],
    )


def observed(
    network: Network, images: Any, exact_network: Any
) -> tuple[dict[str, Observation], dict[str, float]]:
    """What the layers see of 1,200 images, real or drawn, and the processor seconds it takes."""
    batches = {kind: synthetic(network, exact_network, kind) for kind in SYNTHETIC}
    found, seconds = {}, {}
    for kind, given in {"real": np.split(np.asarray(images), 4), **batches}.items():
        start = time.process_time()
        found[kind] = observe(network.function, network.parameters, given)
        seconds[kind] = time.process_time() - start
    return found, seconds


def rounded(
    *,
    even: Network,
    spread: list[Network],
    seen: Mapping[str, Observation],
    exact: np.ndarray,
    unequal: list[Observation],
    bits: tuple[int, ...],
) -> dict[str, Any]:
    """Each column of the table, at each number of bits."""
    one_grid, grids = RoundToNearest(bits, axis=None), RoundToNearest(bits)
    columns = {
        "raw, one grid": [compressed(each, one_grid, None) for each in spread],
        "raw, a grid for each output": [compressed(each, grids, None) for each in spread],
        "raw, independent": [
            compressed(each, one_grid, known, corrected=True)
            for each, known in zip(spread, unequal, strict=True)
        ],
        "equalised": [compressed(even, one_grid, None)],
        "equalised, independent": [compressed(even, one_grid, seen["independent"], corrected=True)],
    }
    for kind in ("independent", "correlated", "real"):
        columns[f"equalised, {kind}, second order"] = [compressed(even, GPTQ(one_grid), seen[kind])]
    return _table(columns, even, exact, bits)


def pruned(
    *,
    even: Network,
    original: Network,
    spread: list[Network],
    seen: Mapping[str, Observation],
    exact: np.ndarray,
    shares: tuple[float, ...],
) -> dict[str, Any]:
    """The same of shares of the entries, and how many each may remove."""
    largest = Magnitude(shares)
    columns = {
        "raw": [compressed(each, largest, None) for each in spread],
        "as trained": [compressed(original, largest, None)],
        "equalised": [compressed(even, largest, None)],
        "equalised, independent": [compressed(even, largest, seen["independent"], corrected=True)],
        "equalised, independent, scored": [compressed(even, Wanda(shares), seen["independent"])],
    }
    for kind in ("independent", "correlated", "real"):
        columns[f"equalised, {kind}, refitted"] = [compressed(even, SparseGPT(shares), seen[kind])]
    table = _table(columns, even, exact, shares)
    return table | {
        "removed": {
            name: max(
                [1 - each["size"] for each in rows if each["lost"]["mean"] <= ALLOWED], default=0.0
            )
            for name, rows in table["columns"].items()
        }
    }


def _table(
    columns: Mapping[str, list[Any]], network: Network, exact: np.ndarray, sizes: tuple[Any, ...]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, made in columns.items():
        found[name] = []
        for number, size in enumerate(sizes):
            logits = [network.logits(each[number]) for each in made]
            found[name].append({"size": size, **judged(logits, exact, network.labels)})
    return {"sizes": list(sizes), "columns": found}


def _apart(one: Any, other: Any) -> float:
    """The largest difference of two sets of kernels, over the largest entry of each."""
    first, second = leaves_of(one), leaves_of(other)
    return max(
        float(np.abs(first[path] - second[path]).max() / np.abs(first[path]).max())
        for path in first
        if path.endswith("['kernel']")
    )
