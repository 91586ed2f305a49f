"""Laws of frontiers: what `compress` would return at each budget, and what no code goes below."""

import functools
import inspect
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from lowrank_theory import plotting
from lowrank_theory._files import plain
from lowrank_theory._rows import typed
from lowrank_theory.networks import Bytes, Frontier, IdealBits, Metric, compress, frontier
from lowrank_theory.quantisation import GPTQ, RoundToNearest
from lowrank_theory.rate_distortion import distortion_floor
from lowrank_theory.recovery import ActivationWeighted
from routes import normal
from small_networks import mlp, rows
from tolerance import approx

METHODS = [ActivationWeighted(), RoundToNearest((2, 4, 8)), GPTQ()]
BUDGETS = (0.2, 0.35, 0.6)
HELD_OUT = [rows(50 + 2 * k, 20, 12) for k in range(4)]


def outputs(function, parameters):
    return np.concatenate([np.asarray(function(parameters, batch), float) for batch in HELD_OUT])


def deviations(function, parameters):
    network = mlp()
    return np.mean(
        (outputs(network.function, network.parameters) - outputs(function, parameters)) ** 2, axis=1
    )


METRIC = Metric("mean square", False, deviations, lambda scores: float(np.mean(scores)))


@functools.cache
def found(order=(0, 1, 2)) -> Frontier:
    network, methods = mlp(), [METHODS[k] for k in order]
    given = network.function, network.parameters, network.batches
    return frontier(*given, method=methods, held_out=HELD_OUT, budgets=BUDGETS, metric=METRIC)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.2, 0.6])
def test_it_is_what_compress_returns(budget):
    network = mlp()
    given = network.function, network.parameters, network.batches
    alone = compress(*given, Bytes(budget), method=METHODS)
    points = {point.kind: point for point in found().points if point.budget == budget}
    candidates = alone.candidates
    assert {name for name, each in candidates.items() if each.unmet is None} == set(points)
    for name, point in points.items():
        assert point.planned == candidates[name].planned
        assert point.choice_loss == approx(candidates[name].output_loss)
        assert point.lower_bound == alone.provenance["lower_bound"] <= point.planned
    (returned,) = (point for point in points.values() if point.returned)
    assert returned.layers == tuple(
        "dense" if each.size is None else f"{each.method}, {each.size}"
        for each in alone.layers.values()
    )
    assert returned.bytes == alone.storage_bytes <= budget * alone.dense_storage_bytes
    assert returned.dense_bytes == alone.dense_storage_bytes
    original = outputs(network.function, network.parameters)
    lost = original - outputs(alone.function, alone.parameters)
    error = np.linalg.norm(lost) / np.linalg.norm(original)
    assert returned.output_error == pytest.approx(error, rel=1e-3)
    assert returned.metric == pytest.approx(np.mean(lost**2), rel=2e-3)


def test_more_budget_and_more_kinds_are_never_planned_to_lose_more():
    planned = [point.planned for point in found().of("mixture")]
    assert planned == sorted(planned, reverse=True)
    for point in found().points:
        (mixture,) = (p for p in found().of("mixture") if p.budget == point.budget)
        assert mixture.planned <= point.planned
    assert {row.method for row in found().unmet} <= set(found().kinds)
    met = {(point.kind, point.budget) for point in found().points}
    unmet = {(row.method, row.budget) for row in found().unmet}
    assert met | unmet == {(k, b) for k in ("mixture", *found().kinds) for b in BUDGETS}
    assert not met & unmet


def test_networks_are_compared_in_pairs():
    for budget in BUDGETS:
        points = {point.kind: point for point in found().points if point.budget == budget}
        compared = found().compared(budget)
        assert {row.other for row in compared} == set(points) - {"mixture"}
        for row in compared:
            (returned,) = (point for point in points.values() if point.returned)
            first = points["mixture"] if row.first == "mixture" else returned
            differences = np.array(first.losses) - np.array(points[row.other].losses)
            assert row.difference == approx(np.mean(differences))
            assert row.low <= row.difference <= row.high
            # Student's 99.5 % point of three degrees of freedom
            half = 5.840909 * np.std(differences, ddof=1) / np.sqrt(len(HELD_OUT))
            assert row.high - row.low == pytest.approx(2 * half, rel=1e-6, abs=1e-15)
            assert row.equal == (first.layers == points[row.other].layers)
            assert not row.equal or row.difference == 0


def test_the_floor_is_that_of_the_layers_together():
    """Of the second half of the batches; one layer is that of its inputs."""

    def layer(w, x):
        return x @ w

    weights, batches = normal(0, 12, 20), [rows(3, 30, 12), rows(5, 40, 12)]
    made = frontier(
        layer, weights, batches, method=METHODS[:2], held_out=HELD_OUT, budgets=[0.5],
        currency=IdealBits,
    )  # fmt: skip
    values, scale = np.linalg.eigvalsh(np.float64(batches[1].T @ batches[1])), np.std(weights)
    scale = np.sqrt(np.mean(np.float32(weights) ** 2))
    total = 20 * scale**2 * np.sum(values)
    for point in made.floor:
        assert point.ideal_bits == point.share * 32 * weights.size
        given: dict[str, Any] = {"outputs": 20, "weight_scale": scale}
        least = float(distortion_floor(values, point.ideal_bits, **given))
        assert point.loss == pytest.approx(least / total, rel=1e-3)
    floor = found().floor
    losses = [point.loss for point in floor]
    assert losses == sorted(losses, reverse=True) and losses[0] < len(found().paths)
    for point in (*found().points, *made.points):  # normal weights, as the floor has them
        of = floor if point in found().points else made.floor
        least = max(each.loss for each in of if each.ideal_bits >= point.ideal_bits)
        assert point.planned > least


def test_the_order_of_the_methods_does_not_matter():
    one, other = (
        sorted(each.points, key=lambda point: (point.budget, point.kind))
        for each in (found(), found((2, 1, 0)))
    )
    assert one == other


def test_it_is_written_read_and_drawn():
    read = typed(Frontier, plain(found()))
    assert read == found()
    figure = plotting.frontier(read)
    assert isinstance(figure, Figure) and len(figure.axes) == 3
    assert all(panel.get_ylabel() for panel in figure.axes) and figure.axes[-1].get_xlabel()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {"mixture", *found().kinds} < set(texts)
    without = typed(Frontier, plain(found()) | {"metric": None})
    assert len(plotting.frontier(without).axes) == 2
    with pytest.raises(ValueError, match="no points to draw"):
        plotting.frontier(typed(Frontier, plain(found()) | {"points": []}))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"method": METHODS[:1]}, "`method` must hold two methods or more"),
        ({"method": []}, "`method` must be a ladder"),
        ({"method": [METHODS[0], *METHODS]}, r"holds ActivationWeighted\(\) more than once"),
        ({"budgets": ()}, "`budgets` is empty"),
        ({"budgets": (0.5, 1.0)}, "`budgets` must lie strictly between 0 and 1"),
        ({"budgets": (0.001,)}, "No budget can be met"),
        ({"held_out": HELD_OUT[:1]}, "`held_out` must be two batches or more; got 1"),
        ({"currency": 0.5}, "`currency` must be a budget such as `Bytes`; got 0.5"),
        ({"batches": [rows(3, 30, 12)]}, "`batches` holds one batch"),
    ],
)
def test_says_what_is_wrong(said, message):
    given: dict[str, Any] = {"method": METHODS, "held_out": HELD_OUT, "budgets": (0.5,)}
    weights, batches = normal(0, 12, 20), [rows(3, 30, 12), rows(5, 40, 12)]
    options = given | {"batches": batches} | said
    with pytest.raises(ValueError, match=message):
        # without the types, of which the tests are stricter than the library
        inspect.unwrap(frontier)(lambda w, x: x @ w, weights, options.pop("batches"), **options)
