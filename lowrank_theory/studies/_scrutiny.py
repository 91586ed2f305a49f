"""One compressed network under scrutiny: certificates of its layers, how their errors compose, and
what time it takes.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from lowrank_theory._engine.compressed import Compressed
from lowrank_theory._engine.held_out import unit_errors
from lowrank_theory._engine.replace import replace
from lowrank_theory._numerics import float64
from lowrank_theory.approximations import Affine, LowRank
from lowrank_theory.certification import certify_losses
from lowrank_theory.models.catalogue import Function, Loaded
from lowrank_theory.models.perceptron import Perceptron
from lowrank_theory.studies import FAILURE_PROBABILITY
from lowrank_theory.studies._sizes import (
    Factors,
    factors_of,
    low_rank,
    matrices_of,
)
from lowrank_theory.studies.transfer_rows import (
    Composition,
    HalfSize,
    LayerCertificate,
    Timing,
)
from lowrank_theory.theorems import network_composition
from lowrank_theory.theorems.network_composition import Network

BATCH_SIZES = (1, 32)  # at which times are measured
SECONDS = 2.0  # for which each is


def scrutinised(loaded: Loaded, compressed: Compressed, budget: float) -> HalfSize:
    """The network compressed to this budget."""
    return HalfSize(
        budget=budget,
        certificates=tuple(_certificates(loaded, compressed)),
        composition=_composition(loaded, compressed),
        times=tuple(times(loaded, (compressed.function, compressed.parameters))),
    )


def _certificates(loaded: Loaded, compressed: Compressed) -> Iterator[LayerCertificate]:
    losses = unit_errors(loaded.function, loaded.parameters, compressed, loaded.units)
    for path, layer in compressed.layers.items():
        loss = bound = None
        if path in losses:
            certificate = certify_losses(losses[path], failure_probability=FAILURE_PROBABILITY)
            loss, bound = float(certificate.mean), float(certificate.bound)
        yield LayerCertificate(
            layer=path,
            shape=layer.view.matrix_shape,
            rank=layer.rank,
            size=layer.size,
            remark=layer.remark,
            parameters=layer.parameters,
            dense_parameters=layer.dense_parameters,
            bytes=layer.bytes,
            dense_bytes=layer.dense_bytes,
            loss=loss,
            certificate=bound,
        )


def _composition(loaded: Loaded, compressed: Compressed) -> Composition:
    """Each layer is run as two factors, one of them the identity where it is dense: one program."""
    batch = loaded.held_out[0]
    factors, matrices = factors_of(compressed), matrices_of(compressed, loaded)
    dense = {path: _as_factors(matrices[path], None) for path in factors}
    replaced = {
        path: _as_factors(np.asarray(low_rank(each).materialise()), each)
        for path, each in factors.items()
    }
    function, parameters = replace(loaded.function, loaded.parameters, dense)
    run = jax.jit(function)
    original = np.asarray(run(parameters, batch), float)
    norm = float(np.linalg.norm(original))

    def outputs(chosen: Mapping[str, Affine]) -> np.ndarray:
        swapped = replace(loaded.function, loaded.parameters, {**dense, **chosen})[1]
        return np.asarray(run(swapped, batch), float)

    alone, steps, before = [], [], original
    for index, path in enumerate(factors):
        alone.append(float(np.linalg.norm(original - outputs({path: replaced[path]}))) / norm)
        after = outputs(dict(itertools.islice(replaced.items(), index + 1)))
        steps.append(float(np.linalg.norm(before - after)) / norm)
        before = after
    bounds = None, None
    if isinstance(loaded.parameters, Perceptron):
        bounds = _perceptron_bounds(loaded.parameters, replaced, batch, norm)
    return Composition(
        layers=tuple(factors),
        measured=float(np.linalg.norm(original - before)) / norm,
        alone=tuple(alone),
        sum=float(sum(alone)),
        root_of_squares=math.hypot(*alone),
        steps=tuple(steps),
        telescoping=float(sum(steps)),
        telescoping_bound=bounds[0],
        residuals_bound=bounds[1],
    )


def _as_factors(matrix: np.ndarray, like: Factors | None) -> Affine:
    """A matrix (*stack, inputs, outputs) times the identity on its smaller side, with the shift of
    the other or none.
    """
    *stack, inputs, outputs = matrix.shape
    shift = np.zeros((*stack, outputs), matrix.dtype)
    if isinstance(like, Affine):
        shift = np.asarray(like.shift, matrix.dtype)
    smaller = np.eye(min(inputs, outputs), dtype=matrix.dtype)
    identity = np.broadcast_to(smaller, (*stack, *smaller.shape))
    sides = (matrix, identity) if inputs >= outputs else (identity, matrix)
    return Affine(LowRank(*map(jnp.asarray, sides)), jnp.asarray(shift))


def _perceptron_bounds(
    network: Perceptron, replaced: Mapping[str, Affine], images: np.ndarray, norm: float
) -> tuple[float, float]:
    """`telescoping` and `residuals` of `network_composition`. A bias is a row of weights, fed by a
    constant input.
    """
    weights, compressed = [], []
    for index, (dense, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        last = index == len(network.weights) - 1
        new = replaced.get(f".weights[{index}]")
        pairs = [(np.asarray(dense), np.asarray(bias))] * 2
        if new is not None:
            matrix = np.asarray(new.factors.materialise())
            pairs[1] = (matrix, np.asarray(bias) + np.asarray(new.shift))
        for kept, (matrix, row) in zip((weights, compressed), pairs, strict=True):
            layer = np.vstack([matrix, row]).astype(float)
            constant = np.zeros((len(layer), 0 if last else 1))
            constant[-1:] = 1
            kept.append(np.hstack([layer, constant]))
    inputs = np.hstack([images, np.ones((len(images), 1))]).astype(float)
    with float64():
        chain = Network(tuple(weights), tuple(compressed), inputs, 1)
        telescoping, residuals = (
            float(statement.formula(chain, chain.compressed))
            for statement in (network_composition.telescoping, network_composition.residuals)
        )
    return telescoping / norm, math.sqrt(residuals) / norm


def times(
    loaded: Loaded, other: tuple[Function, PyTree], *, seconds: float | None = None
) -> Iterator[Timing]:
    """Seconds of a call, of the dense network and of another in turn, so that both meet the same
    machine; measured for `seconds`, by default `SECONDS`.
    """
    seconds = SECONDS if seconds is None else seconds
    for size in BATCH_SIZES:
        batch = _joined(loaded.units, size)
        runs = [
            functools.partial(jax.jit(loaded.function), loaded.parameters, batch),
            functools.partial(jax.jit(other[0]), other[1], batch),
        ]
        taken: list[tuple[float, ...]] = []
        for run in runs:  # compiled, and warm
            jax.block_until_ready(run())
        start = time.perf_counter()
        while len(taken) < 5 or (time.perf_counter() - start < seconds and len(taken) < 1_000):
            taken.append(tuple(map(_seconds, runs)))
        dense, factored = np.transpose(taken)
        yield Timing(
            batch=len(jax.tree.leaves(batch)[0]),
            repetitions=len(taken),
            dense=float(np.median(dense)),
            factored=float(np.median(factored)),
            speedup=float(np.median(dense / factored)),
        )


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def _joined(units: Sequence[PyTree], size: int) -> PyTree:
    """One batch of up to so many units, of the shape that most of them have."""

    def shape(unit: PyTree) -> tuple:
        return tuple(np.shape(leaf) for leaf in jax.tree.leaves(unit))

    shapes = [shape(unit) for unit in units]
    commonest = max(shapes, key=shapes.count)
    chosen = [unit for unit, its in zip(units, shapes, strict=True) if its == commonest][:size]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *chosen)
