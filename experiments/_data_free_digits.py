"""The network of convolutions for digits without data: bits and entries, before and after
equalisation.

As in a network whose channels were trained to different sizes, the channels between convolutions
are multiplied by random factors from 1/6 to 6, which keeps the function, and equalisation undoes
it.
"""

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from _data_free import Network, Piece, allocated, compressed, judged, table
from lowrank_theory._engine.replace import leaves_by_path
from lowrank_theory.data_constrained import Synthetic, rescaled
from lowrank_theory.networks import Observation, digits_cnn_network, digits_data, observe
from lowrank_theory.quantisation import GPTQ, CoordinateDescent, RoundToNearest
from lowrank_theory.sparsification import Magnitude, Refitted, SparseGPT, Wanda

BITS = (8, 6, 4, 3, 2)
SHARES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.2, 0.1)
ALLOCATED = (0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2)
FACTOR = 6.0
SEEDS = 4
SYNTHETIC = {"independent": False, "correlated": True}
ALLOWED = 0.01  # accuracy that may be lost where sparsity is compared


class Known(NamedTuple):
    """The network as it was trained, with unequal channels and equalised, and what each sees."""

    original: Network
    spread: list[Network]
    even: Network
    exact: np.ndarray
    seen: dict[str, Observation]
    seen_by_original: dict[str, Observation]
    unequal: list[Observation]  # of independent samples
    batches: dict[str, Any]  # of the original
    seconds: dict[str, float]
    apart: float  # the equalised networks of two draws


def measure(piece: Piece, *, quick: bool) -> dict[str, Any]:
    known = functools.cache(functools.partial(_known, 1 if quick else SEEDS))
    shares = SHARES[9:12:2] if quick else SHARES
    uniform = piece("pruned", lambda: pruned(known(), shares))
    chosen = piece("allocated", lambda: spent(known(), ALLOCATED[:1] if quick else ALLOCATED))
    return {
        "exact": piece("exact", lambda: _exact(known())),
        "seconds": piece("seconds", lambda: known().seconds),
        "equalised_apart": piece("apart", lambda: known().apart),
        "rounded": piece("rounded", lambda: rounded(known(), BITS[:2] if quick else BITS)),
        "pruned": uniform,
        "allocated": chosen,
        "removed": removed(uniform, chosen),
    }


def _exact(known: Known) -> dict[str, Any]:
    return judged([known.exact], known.exact, known.even.labels)


def _known(seeds: int) -> Known:
    exact_network, parameters = digits_cnn_network()
    data = digits_data()
    network = Network.of(
        exact_network, parameters, data.held_out_images, data.held_out_labels, batch=597
    )
    pairs = network.pairs()
    random = np.random.default_rng(0)
    spread = []
    for _ in range(seeds):
        factors = [
            FACTOR ** random.uniform(-1, 1, len(network.statistics[str(pair.shift)].mean))
            for pair in pairs
        ]
        made = rescaled(network.parameters, pairs, factors, network.statistics)
        spread.append(network.with_parameters(made))
    even, again = network.equalised(pairs), spread[0].equalised(pairs)
    seen, seconds = observed(even, _batches(even, data.training_images, exact_network))
    batches = _batches(network, data.training_images, exact_network)
    return Known(
        network,
        spread,
        even,
        network.logits(network.parameters),
        seen,
        observed(network, batches)[0],
        [
            observe(each.function, each.parameters, synthetic(each, exact_network, "independent"))
            for each in spread
        ],
        batches,
        seconds,
        _apart(even.parameters, again.parameters),
    )


def synthetic(network: Network, exact_network: Any, kind: str) -> Synthetic:
    return Synthetic(
        network.statistics,
        lambda key: exact_network.noise(300, key=key),
        key=jax.random.key(0),
        batches=4,
        correlated=SYNTHETIC[kind],
    )


def _batches(network: Network, images: Any, exact_network: Any) -> dict[str, Any]:
    drawn = {kind: synthetic(network, exact_network, kind) for kind in SYNTHETIC}
    return {"real": np.split(np.asarray(images), 4), **drawn}


def observed(
    network: Network, batches: Mapping[str, Any]
) -> tuple[dict[str, Observation], dict[str, float]]:
    """What the layers see of 1,200 images, real or drawn, and the processor seconds it takes."""
    found, seconds = {}, {}
    for kind, given in batches.items():
        start = time.process_time()
        found[kind] = observe(network.function, network.parameters, given)
        seconds[kind] = time.process_time() - start
    return found, seconds


def rounded(known: Known, bits: tuple[int, ...]) -> dict[str, Any]:
    """Each column of the table, at each number of bits."""
    even, spread, seen = known.even, known.spread, known.seen
    one_grid, grids = RoundToNearest(bits, axis=None), RoundToNearest(bits)
    learned = RoundToNearest(bits, axis=None, weighted=True)
    columns = {
        "raw, one grid": [compressed(each, one_grid, None) for each in spread],
        "raw, a grid for each output": [compressed(each, grids, None) for each in spread],
        "raw, independent": [
            compressed(each, one_grid, seen, corrected=True)
            for each, seen in zip(spread, known.unequal, strict=True)
        ],
        "equalised": [compressed(even, one_grid, None)],
        "equalised, independent": [compressed(even, one_grid, seen["independent"], corrected=True)],
        "equalised, independent, scales learned": [compressed(even, learned, seen["independent"])],
    }
    against = {"equalised, independent, scales learned": "equalised, independent"}
    for kind in ("independent", "correlated", "real"):
        second, both = f"equalised, {kind}, second order", f"equalised, {kind}, all learned"
        columns[second] = [compressed(even, GPTQ(one_grid), seen[kind])]
        columns[both] = [compressed(even, CoordinateDescent(learned), seen[kind])]
        against[both] = second
    return table(columns, even, known.exact, bits, against)


def pruned(known: Known, shares: tuple[float, ...]) -> dict[str, Any]:
    """The same of shares of the entries, and how many each may remove."""
    original, even, seen = known.original, known.even, known.seen
    largest = Magnitude(shares)
    columns = {
        "raw": [compressed(each, largest, None) for each in known.spread],
        "as trained": [compressed(original, largest, None)],
        "equalised": [compressed(even, largest, None)],
        "equalised, independent": [compressed(even, largest, seen["independent"], corrected=True)],
        "equalised, independent, scored": [compressed(even, Wanda(shares), seen["independent"])],
    }
    for kind in ("independent", "correlated", "real"):
        name = f"equalised, {kind}, "
        columns[f"{name}eliminated"] = [compressed(even, SparseGPT(shares), seen[kind])]
        columns[f"{name}refitted"] = [compressed(even, Refitted(largest), seen[kind])]
    for kind in ("correlated", "real"):
        seen = known.seen_by_original[kind]
        columns[f"as trained, {kind}, refitted"] = [compressed(original, Refitted(largest), seen)]
    return table(columns, even, known.exact, shares, {})


def spent(known: Known, shares: tuple[float, ...]) -> dict[str, Any]:
    """The same of the network as it was trained, where `compress` spends entries on layers."""
    original, sizes = known.original, SHARES if len(shares) > 1 else SHARES[9:12]
    columns = {
        "as trained, allocated": [
            allocated(original, Magnitude(sizes), known.batches["real"][:1], shares)
        ]
    }
    for kind in ("correlated", "real"):
        for word, pruning in {"": Magnitude(sizes), "eliminated, ": SparseGPT(sizes, ())}.items():
            columns[f"as trained, {kind}, {word}refitted, allocated"] = [
                allocated(original, Refitted(pruning), known.batches[kind], shares)
            ]
    return table(columns, original, known.exact, shares, {})


def removed(*tables: Mapping[str, Any]) -> dict[str, float]:
    """The largest share of the entries that can be removed before more is lost than is allowed."""
    return {
        name: max([1 - row["size"] for row in rows if row["lost"]["mean"] <= ALLOWED], default=0.0)
        for table in tables
        for name, rows in table["columns"].items()
    }


def _apart(one: Any, other: Any) -> float:
    """The largest difference of two sets of kernels, over the largest entry of each."""
    first, second = leaves_by_path(one), leaves_by_path(other)
    return max(
        float(np.abs(first[path] - second[path]).max() / np.abs(first[path]).max())
        for path in first
        if path.endswith("['kernel']")
    )
