"""Residual networks on CIFAR-10 without data: ResNet-20 at numbers of bits and at three quarters of
the parameters, and what theory says of each layer of it and of ResNet-56.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from _data_free import Network, compressed, judged, leaves_of
from _save import interval
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
from lowrank_theory.quantisation import GPTQ, RoundToNearest
from lowrank_theory.recovery import ActivationWeighted, TruncatedSVD
from lowrank_theory.theorems import price_of_ignoring_data

DEPTH, DEEPER = 20, 56
BITS = (8, 6, 4, 3, 2)
SHARE = 0.75  # of the parameters
CALIBRATION, DEEPER_CALIBRATION, SCORED, BATCH = 256, 64, 1_000, 64
DEAD = 1e-12  # of the largest second moment of an input: none of the images excites it
KINDS = ("independent", "correlated", "real")


def measure(*, quick: bool) -> dict[str, Any]:
    scored = 100 if quick else SCORED
    network, batches = loaded(DEPTH, BATCH if quick else CALIBRATION, scored)
    exact = network.logits(network.parameters)
    seen, seconds = observed(network, batches)
    return {
        "exact": judged([exact], exact, network.labels),
        "seconds": seconds,
        "rounded": rounded(network, seen, exact, BITS[:1] if quick else BITS),
        "low_rank": low_rank(network, batches, exact),
        "layers": layers(network, seen, limit=2 if quick else None),
    }


def measure_deeper(*, quick: bool) -> list[dict[str, Any]]:
    """The layers of the deeper network."""
    network, batches = loaded(DEEPER, DEEPER_CALIBRATION, 4)
    return layers(network, observed(network, batches)[0], limit=2 if quick else None)


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


def rounded(
    network: Network, seen: Mapping[str, Observation], exact: np.ndarray, bits: tuple[int, ...]
) -> dict[str, Any]:
    """A grid for each output, at each number of bits."""
    grids = RoundToNearest(bits)
    columns = {
        "none": compressed(network, grids, None),
        "independent": compressed(network, grids, seen["independent"], corrected=True),
        "correlated": compressed(network, GPTQ(grids), seen["correlated"]),
        "real": compressed(network, GPTQ(grids), seen["real"]),
    }
    print("rounded", flush=True)
    found = {
        name: [
            {"size": size, **judged([network.logits(each)], exact, network.labels)}
            for size, each in zip(bits, made, strict=True)
        ]
        for name, made in columns.items()
    }
    return {"sizes": list(bits), "columns": found}


def low_rank(network: Network, batches: Mapping[str, Any], exact: np.ndarray) -> dict[str, Any]:
    """By `compress`, from nothing and from each calibration; the images that one calibration gets
    right and real data do not, less the others.
    """
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
        found[name] = {**judged([logits], exact, network.labels), "seconds": seconds}
        print(f"low rank, {name}", flush=True)
    for name, right in answers.items():
        found[name]["behind_real"] = interval(answers["real"].astype(float) - right)
    return found


def layers(
    network: Network, seen: Mapping[str, Observation], limit: int | None
) -> list[dict[str, Any]]:
    """Of each layer at three quarters of its parameters: what the best layer for drawn inputs loses
    on real ones, over the least, and what `stale_calibration` says that this is at most. Inputs
    that no real image excites are left out: for them there is no bound.
    """
    leaves, found = leaves_of(network.parameters), []
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
