"""The sure statements on other compressions, on weights that were trained and what they see."""

import functools
from typing import Any

import numpy as np
import pytest

from lowrank_theory import theorems
from lowrank_theory._numerics import float64, rounding_allowance
from lowrank_theory.networks import digits_data, digits_network
from lowrank_theory.theorems import AbstractStatement, Certainty, Direction
from lowrank_theory.theorems._joined import JoinedLayers
from lowrank_theory.theorems._normal_channels import NormalChannels
from lowrank_theory.theorems._pruned import PrunedSet, Thinned
from lowrank_theory.theorems._stepped import SteppedLayer
from lowrank_theory.theorems.low_rank_plus_sparse import TangentMatrix
from lowrank_theory.theorems.quantised_factors import FactoredLayer
from lowrank_theory.theorems.rate_distortion import Allocation
from lowrank_theory.theorems.rounding import RoundedLayer

pytestmark = pytest.mark.thinned(6)

ROWS, RANK = 60, 3


@functools.cache
def layer(number: int) -> tuple[np.ndarray, np.ndarray]:
    """What a layer of the digits network sees, and its weights: at most 32 of either side."""
    network = digits_network()
    rows = np.asarray(digits_data().training_images[:ROWS], float)
    weights = [np.asarray(each, float) for each in network.weights]
    for before, bias in zip(weights[:number], network.biases, strict=False):
        rows = np.maximum(rows @ before + np.asarray(bias, float), 0)
    seen = np.argsort(-rows.std(axis=0), kind="stable")[:32]
    return rows[:, seen], weights[number][seen, :32]


def rounded(number: int, bits: int) -> RoundedLayer:
    rows, weights = layer(number)
    return RoundedLayer(weights, bits, activations=rows)


def stepped(number: int) -> SteppedLayer:
    rows, weights = layer(number)
    return SteppedLayer(weights, rows, np.abs(weights).max() / 7)


def of_few_inputs(number: int) -> SteppedLayer:
    rows, weights = layer(number)
    return SteppedLayer(weights[:8], rows[:, :8], np.abs(weights).max() / 7)


def joined(number: int) -> JoinedLayers:
    """With the weights behind it, or before it; as they were trained."""
    number = min(number, len(digits_network().weights) - 2)
    rows, first = layer(number)
    second = np.asarray(digits_network().weights[number + 1], float)[: first.shape[1]]
    return JoinedLayers(first, second, rows)


def equalised(number: int) -> JoinedLayers:
    layers = joined(number)
    with float64():
        factors = np.asarray(layers.equalising())
    return JoinedLayers(layers.first, layers.second, layers.activations, factors)


def shifted(number: int) -> NormalChannels:
    rows, weights = layer(number)
    ones = np.ones(rows.shape[1])
    return NormalChannels(rows, ones, ones, weights, weights[0])


def thinned(number: int) -> Thinned:
    _, weights = layer(number)
    return Thinned(weights, weights.size // 2)


def two_of_four(number: int) -> Thinned:
    return Thinned(layer(number)[1], 2, group=4)


def few_values(number: int) -> Thinned:
    _, weights = layer(number)
    return Thinned(weights, RANK)


def removed(number: int) -> PrunedSet:
    rows, weights = layer(number)
    return PrunedSet(rows, weights[:8])


def factored(number: int) -> FactoredLayer:
    rows, weights = layer(number)
    left, values, right = np.linalg.svd(weights, full_matrices=False)
    root = np.sqrt(values[:RANK])
    left, right = left[:, :RANK] * root, root[:, None] * right[:RANK]
    step = np.abs(left).max() / 7
    return FactoredLayer(SteppedLayer(left, rows, step), SteppedLayer(right, rows @ left, step))


def allocated(number: int) -> Allocation:
    rows, weights = layer(number)
    variances = np.linalg.eigvalsh(rows.T @ rows).clip(min=0) * np.var(weights)
    return Allocation(variances, np.abs(weights).mean(axis=1))


def tangent(number: int) -> TangentMatrix:
    _, weights = layer(number)
    left, values, right = np.linalg.svd(weights, full_matrices=False)
    right = values[:RANK, None] * right[:RANK]
    largest = np.abs(weights) >= np.sort(np.abs(weights), axis=None)[-4]
    return TangentMatrix(left[:, :RANK], right, right, left[:, :RANK], largest)


INSTANCES = {
    "rounding.absmax": [functools.partial(rounded, bits=bits) for bits in (2, 4)],
    "rounding.peak": [functools.partial(rounded, bits=3)],
    "rounding.outputs": [functools.partial(rounded, bits=3)],
    "rounding.one_bit": [functools.partial(rounded, bits=1)],
    "rounding.one_bit_worst": [functools.partial(rounded, bits=1)],
    "rounding.one_step": [of_few_inputs],
    "rounding.one_step_norm": [stepped],
    "equalisation.same_function": [equalised],
    "equalisation.ranges": [joined, equalised],
    "equalisation.outputs": [joined, equalised],
    "equalisation.best_factors": [joined, equalised],
    "equalisation.equalised": [joined],
    "equalisation.any_shift": [shifted],
    "second_order_rounding.cost": [stepped],
    "second_order_rounding.worst": [stepped],
    "second_order_rounding.moments": [stepped],
    "second_order_rounding.any_order": [stepped],
    "pruning.refitted": [removed],
    "pruning.as_they_are": [removed],
    "pruning.entries": [thinned],
    "pruning.singular_values": [few_values],
    "pruning.pattern": [two_of_four],
    "quantised_factors.any_factors": [factored],
    "quantised_factors.balanced": [factored],
    "rate_distortion.allocation": [allocated],
    "low_rank_plus_sparse.largest_entry": [tangent],
    "low_rank_plus_sparse.few_entries": [tangent],
    "low_rank_plus_sparse.apart": [tangent],
}
FILES = {name.partition(".")[0] for name in INSTANCES}


def excess(statement: AbstractStatement, instance: Any) -> float:
    """How far the realised quantity is on the wrong side of its bound, beyond rounding."""
    bound, realised = statement.bound(instance), float(statement.realised(instance))
    assert bound.holds, [each.name for each in bound.hypotheses if not each.holds]
    with float64():
        allowed = float(rounding_allowance(statement.magnitude(instance), *instance.sizes))
    gap = realised - float(bound.value)
    signs = {Direction.UPPER: gap, Direction.LOWER: -gap, Direction.EQUALITY: abs(gap)}
    return signs[statement.kind.direction] - allowed


@pytest.mark.parametrize("number", [2, 0])
@pytest.mark.parametrize("name", INSTANCES)
def test_it_holds_on_a_trained_layer(name, number):
    for instance in INSTANCES[name]:
        assert excess(theorems.STATEMENTS[name], instance(number)) <= 0


def test_none_is_left_out():
    sure = {
        name
        for name, statement in theorems.STATEMENTS.items()
        if name.partition(".")[0] in FILES and statement.kind.certainty is Certainty.SURE
    }
    assert sure - INSTANCES.keys() == {"pruning.least_variance"}  # coins, of which one is free
