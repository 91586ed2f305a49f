"""Residual networks on CIFAR-10 without data: ResNet-20 at numbers of bits and at three quarters of
the parameters, and what theory says of each layer of it and of ResNet-56.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from _data_free import Network, Piece, compressed, judged, table
from _data_free_scales import ways
from _save import interval
from lowrank_theory._engine.replace import leaves_by_path
from lowrank_theory.data_constrained import Synthetic
from lowrank_theory.networks import (
    Observation,
    Parameters,
    cifar10_data,
    compress,
    observe,
    resnet_network,
    survey,
)
from lowrank_theory.problems import Layer, Observed
from lowrank_theory.quantisation import GPTQ, CoordinateDescent, RoundToNearest
from lowrank_theory.recovery import ActivationWeighted, TruncatedSVD
from lowrank_theory.theorems import price_of_ignoring_data

DEPTH, DEEPER = 20, 56
BITS = (8, 6, 4, 3, 2)
SHARE = 0.75  # of the parameters
CALIBRATION, DEEPER_CALIBRATION, SCORED, BATCH = 256, 64, 1_000, 64
CALIBRATIONS = (64, 256)  # images of each, where sizes are compared
DEAD = 1e-12  # of the largest second moment of an input: none of the images excites it
KINDS = ("independent", "correlated", "real")


class Known(NamedTuple):
    """The network, its calibrations as batches, and what its layers see of each."""

    network: Network
    batches: dict[str, Any]
    exact: np.ndarray
    seen: dict[str, Observation]
    seconds: dict[str, float]


def measure(piece: Piece, *, quick: bool) -> dict[str, Any]:
    scored, images = 100 if quick else SCORED, BATCH if quick else CALIBRATION
    known = functools.cache(functools.partial(_known, DEPTH, images, scored))
    bits, limit = BITS[-1:] if quick else BITS, 2 if quick else None
    ranks = piece("low rank", lambda: low_rank(known()))

    def at(calibration: int) -> dict[str, Any]:
        if calibration == CALIBRATION:
            return at_size(known(), ranks)
        other = _known(DEPTH, calibration, scored)
        return at_size(other, low_rank(other))

    sizes = () if quick else CALIBRATIONS
    return {
        "exact": piece("exact", lambda: judged([known().exact], known().exact, _labels(known()))),
        "seconds": piece("seconds", lambda: known().seconds),
        "rounded": piece("rounded", lambda: rounded(known(), bits)),
        "ways": piece("ways", lambda: ways(known().network, known().seen["real"], limit=limit)),
        "low_rank": ranks,
        "sizes": {
            str(each): piece(f"{each} images", functools.partial(at, each)) for each in sizes
        },
        "layers": piece("layers", lambda: layers(known(), limit)),
    }


def measure_deeper(piece: Piece, *, quick: bool) -> dict[str, Any]:
    """The layers of the deeper network."""
    limit = 2 if quick else None
    found = lambda: layers(_known(DEEPER, DEEPER_CALIBRATION, 4), limit)  # noqa: E731
    return {"layers": piece("layers", found)}


def _labels(known: Known) -> np.ndarray:
    return known.network.labels


def _known(depth: int, calibration: int, scored: int) -> Known:
    network, batches = loaded(depth, calibration, scored)
    exact = network.logits(network.parameters)
    return Known(network, batches, exact, *observed(network, batches))


def loaded(depth: int, calibration: int, scored: int) -> tuple[Network, dict[str, Any]]:
    """A network, and each of its calibrations as batches, of so many images."""
    exact_network, parameters = resnet_network(depth, folded=False)
    data = cifar10_data(calibration)
    images, labels = data.held_out_images[:scored], data.held_out_labels[:scored]
    network = Network.of(exact_network, parameters, images, labels, batch=min(scored, 250))
    batches: dict[str, Any] = {
        kind: Synthetic(
            network.statistics,
            lambda key: exact_network.noise(BATCH, key=key),
            key=jax.random.key(0),
            batches=calibration // BATCH,
            correlated=kind == "correlated",
        )
        for kind in KINDS[:2]
    }
    parts = range(0, calibration, BATCH)
    batches["real"] = [data.training_images[start : start + BATCH] for start in parts]
    return network, batches


def observed(
    network: Network, batches: Mapping[str, Any]
) -> tuple[dict[str, Observation], dict[str, float]]:
    """What the layers see of each calibration, and the processor seconds it takes."""
    seen, seconds = {}, {}
    for kind, given in batches.items():
        start = time.process_time()
        seen[kind] = observe(network.function, network.parameters, given)
        seconds[kind] = time.process_time() - start
        print(f"observed, {kind}", flush=True)
    return seen, seconds


def rounded(known: Known, bits: tuple[int, ...]) -> dict[str, Any]:
    """A grid for each output, at each number of bits."""
    network, seen = known.network, known.seen
    grids, learned = RoundToNearest(bits), RoundToNearest(bits, weighted=True)
    columns = {
        "none": compressed(network, grids, None),
        "independent": compressed(network, grids, seen["independent"], corrected=True),
        "independent, scales learned": compressed(network, learned, seen["independent"]),
    }
    against = {"independent, scales learned": "independent"}
    for kind in KINDS:
        second, both = f"{kind}, second order", f"{kind}, all learned"
        columns[second] = compressed(network, GPTQ(grids), seen[kind])
        columns[both] = compressed(network, CoordinateDescent(learned), seen[kind])
        against[both] = second
        print(f"rounded, {kind}", flush=True)
    of_one = {name: [logits] for name, logits in columns.items()}
    return table(of_one, network, known.exact, bits, against)


def at_size(known: Known, ranks: Mapping[str, Any]) -> dict[str, Any]:
    """At two bits, all learned, and at low rank."""
    method = CoordinateDescent(RoundToNearest(BITS[-1:], weighted=True))
    columns = {kind: [compressed(known.network, method, known.seen[kind])] for kind in KINDS}
    rounded = table(columns, known.network, known.exact, BITS[-1:], {})
    return {
        kind: {
            "rounded": rounded["columns"][kind][0],
            "low_rank": ranks[kind],
            "seconds": known.seconds[kind],
        }
        for kind in KINDS
    }


def low_rank(known: Known) -> dict[str, Any]:
    """By `compress`, from nothing and from each calibration; the images that one calibration gets
    right and real data do not, less the others.
    """
    network, batches = known.network, known.batches
    found: dict[str, Any] = {}
    answers: dict[str, np.ndarray] = {}
    ways = {"none": (TruncatedSVD(), batches["real"][:1])}
    ways |= {kind: (ActivationWeighted(), given) for kind, given in batches.items()}
    for name, (method, given) in ways.items():
        start = time.process_time()
        made = compress(
            network.function, network.parameters, given, Parameters(SHARE), method=method,
            select=lambda path: path in network.shifts,
        )  # fmt: skip
        seconds = time.process_time() - start
        small = dataclasses.replace(network, function=jax.jit(made.function))
        logits = small.logits(made.parameters)
        answers[name] = logits.argmax(axis=1) == network.labels
        found[name] = {**judged([logits], known.exact, network.labels), "seconds": seconds}
        print(f"low rank, {name}", flush=True)
    for name, right in answers.items():
        found[name]["behind_real"] = interval(answers["real"].astype(float) - right)
    return found


def layers(known: Known, limit: int | None) -> list[dict[str, Any]]:
    """Of each layer at three quarters of its parameters: what the best layer for drawn inputs loses
    on real ones, over the least, and what `stale_calibration` says that this is at most. Inputs
    that no real image excites are left out: for them there is no bound.
    """
    network, seen = known.network, known.seen
    leaves, found = leaves_by_path(network.parameters), []
    sites = survey(network.function, network.parameters, network.images[:2])
    for path in [path for path in sites if path in network.shifts][:limit]:
        weights = np.asarray(sites[path].view.matrix(np.asarray(leaves[path])), np.float64)
        inputs, outputs = weights.shape
        rank = max(1, int(SHARE * inputs * outputs / (inputs + outputs)))
        row: dict[str, Any] = {"layer": path, "inputs": inputs, "outputs": outputs, "rank": rank}
        calibration: Any = seen["real"][path]
        squares = np.diagonal(np.asarray(calibration.gram()))
        live = squares > DEAD * squares.max()
        row["live"], weights = int(live.sum()), weights[live]
        real = _root(calibration, live)
        for kind in KINDS[:2]:
            drawn = _root(seen[kind][path], live)
            instance = Layer(
                Observed(weights=weights, activations=np.concatenate([drawn, real])), rank
            )
            row[kind] = _ratios(instance, price_of_ignoring_data.stale_calibration, real @ weights)
        none = Layer(Observed(weights=weights, activations=real), rank)
        row["none"] = _ratios(none, price_of_ignoring_data.condition_number, real @ weights)
        found.append(row)
    return found


def _ratios(instance: Layer, statement: Any, outputs: np.ndarray) -> dict[str, float | None]:
    with jax.enable_x64(True):
        values = np.linalg.svd(outputs, compute_uv=False)
        least = float(np.sqrt(np.sum(values[instance.rank :] ** 2)))
        realised = float(statement.loss(instance, statement.estimate(instance)))
        bound = float(statement.bound(instance).value)
    return {
        "realised": realised / least,
        "bound": bound / least if np.isfinite(bound) else None,
    }


def _root(calibration: Any, live: np.ndarray) -> np.ndarray:
    """A square matrix with the second moment of a row, of these inputs."""
    moment = np.asarray(calibration.gram(), np.float64) / float(calibration.count)
    moment = moment[live][:, live]
    values, vectors = np.linalg.eigh(moment)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
