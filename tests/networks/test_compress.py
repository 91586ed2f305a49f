"""Laws of compressing a network: targets met, means kept, losses true, sequences as by hand."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import unhooked
from lowrank_theory._engine import passes as _passes
from lowrank_theory.networks import (
    Bytes,
    Compressed,
    IdealBits,
    LayerError,
    MultiplyAdds,
    Parameters,
    RankRule,
    compress,
    survey,
)
from lowrank_theory.problems import Observed
from lowrank_theory.rank_choice import energy
from lowrank_theory.recovery import COALA, ActivationWeighted, TruncatedSVD
from routes import normal
from small_networks import NETWORKS, Network, mlp, rows, run, stored
from tolerance import approx

pytestmark = pytest.mark.thinned(5)


TARGETS = {
    "parameters": (Parameters, lambda c: (c.parameter_count, c.dense_parameter_count)),
    "bytes": (Bytes, lambda c: (c.storage_bytes, c.dense_storage_bytes)),
    "ideal bits": (IdealBits, lambda c: (c.storage_bytes, c.dense_storage_bytes)),
    "multiply-adds": (MultiplyAdds, lambda c: (c.multiply_adds, c.dense_multiply_adds)),
}
METHODS = {"data-driven": ActivationWeighted(), "data-agnostic": TruncatedSVD()}


def compressed_to(name, target, **options) -> tuple[Network, Compressed]:
    network = NETWORKS[name]()
    arguments = network.function, network.parameters, network.batches
    return network, compress(*arguments, target, **options)


@functools.cache
def at_rank_three(name, method, sequential=False):
    target = RankRule(lambda _: 3)
    return compressed_to(name, target, method=METHODS[method], sequential=sequential)


# --- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_budget_is_met_by_the_arrays_themselves(name, kind, method):
    target, counted = TARGETS[kind]
    network, compressed = compressed_to(name, target(0.6), method=METHODS[method])
    spent, dense = counted(compressed)
    assert 0.5 * dense < spent <= 0.6 * dense
    arrays = [leaf for leaves in stored(compressed).values() for leaf in leaves]
    assert compressed.parameter_count == sum(leaf.size for leaf in arrays)
    assert compressed.storage_bytes == sum(leaf.nbytes for leaf in arrays)
    smaller = survey(compressed.function, compressed.parameters, network.batches[0])
    assert compressed.multiply_adds == sum(site.multiply_adds for site in smaller.values())
    dense = survey(network.function, network.parameters, network.batches[0])
    assert compressed.dense_multiply_adds == sum(site.multiply_adds for site in dense.values())
    assert compressed.provenance["lower_bound"] <= compressed.provenance["planned"]
    assert compressed.provenance["planned"] == approx(
        sum(layer.relative_error**2 for layer in compressed.layers.values())
    )


def test_an_error_is_met_by_the_smallest_ranks():
    _, compressed = compressed_to("mlp", LayerError(0.2))
    below = {each.view.matrix_shape: (each.rank or 4) - 1 for each in compressed.layers.values()}
    _, other = compressed_to("mlp", RankRule(lambda observed: below[observed.shape]))
    assert any(layer.rank for layer in compressed.layers.values())
    for path, layer in compressed.layers.items():
        assert layer.relative_error <= 0.2
        if layer.rank is not None:
            assert other.layers[path].relative_error > 0.2


def test_where_nothing_is_accurate_enough_all_stays_as_it_is():
    network, compressed = compressed_to("mlp", LayerError(1e-6))
    assert compressed.function is network.function
    assert compressed.parameters is network.parameters
    assert all(layer.rank is None for layer in compressed.layers.values())
    assert compressed.parameter_count == compressed.dense_parameter_count
    assert "would save nothing" in repr(compressed)


def test_a_rule_reads_what_rows_would_say():
    network = mlp()
    parameters, x = network.parameters[0]["w"], np.concatenate(network.batches)
    asked: list[Observed] = []

    def rule(observed):
        asked.append(observed)
        return energy(observed, 0.9)

    compressed = compress(lambda w, x: x @ w, parameters, network.batches, RankRule(rule))
    wanted = energy(Observed(weights=parameters, activations=x - x.mean(0)), 0.9)
    assert compressed.layers[""].rank == wanted > 1
    agnostic = compress(lambda w, x: x @ w, parameters, [x], RankRule(rule), method=TruncatedSVD())
    assert asked[1].activations is None
    assert agnostic.layers[""].rank is None  # too large a rank to save anything
    assert "would save nothing" in agnostic.layers[""].remark


# --- layers --------------------------------------------------------------------------------------


def test_the_mean_output_does_not_move():
    network, compressed = at_rank_three("products", "data-driven")
    dense, other = run(network), run(network, compressed)
    axes = {"plain": 0, "twin": 0, "stack": 1, "kernel": (0, 1, 2), "half": 0}
    for name, axis in axes.items():
        pairs = [dense[name], other[name]]
        if name == "stack":  # of both batches: (batches * slices, samples, outputs)
            pairs = [np.concatenate([y[:3], y[3:]], 1) for y in pairs]
        means = [y.mean(axis) for y in pairs]
        rounding = (2e-2 if name == "half" else 1e-5) * np.abs(pairs[0]).max()
        np.testing.assert_allclose(means[1], means[0], rtol=0, atol=rounding)
    assert all(layer.rank == 3 for layer in compressed.layers.values())


@pytest.mark.parametrize("method", METHODS)
def test_the_stated_error_is_that_of_the_outputs_or_the_weights(method):
    network, compressed = at_rank_three("products", method)
    if method == "data-driven":
        dense, other = run(network), run(network, compressed)
    else:
        dense = {name: np.asarray(leaf, float) for name, leaf in network.parameters.items()}
        factors, other = compressed.parameters, {}
        for name in dense:
            layer = compressed.layers[f"['{name}']"]
            other[name] = np.asarray(layer.view.leaf(factors[name].materialise()), float)
    for name, original in dense.items():
        measured = np.linalg.norm(original - other[name]) / np.linalg.norm(original)
        stated = compressed.layers[f"['{name}']"].relative_error
        assert stated == pytest.approx(measured, rel=0.02 if name == "half" else 1e-4)


def test_at_equal_ranks_data_never_hurt():
    network, driven = at_rank_three("products", "data-driven")
    _, agnostic = at_rank_three("products", "data-agnostic")
    dense, one, other = run(network), run(network, driven), run(network, agnostic)
    for name in dense:
        assert np.linalg.norm(dense[name] - one[name]) < np.linalg.norm(dense[name] - other[name])


def test_each_layer_alone_is_the_best_affine_map():
    network, compressed = at_rank_three("mlp", "data-driven")
    seen = list(by_hand(network, sequential=False))
    for (path, layer), (_, error) in zip(compressed.layers.items(), seen, strict=True):
        assert layer.relative_error == pytest.approx(error, rel=1e-4), path


def by_hand(network, *, sequential):
    """In float64 with NumPy: (what replaces the layer, its relative error), layer after layer."""
    x = compressed = np.concatenate(network.batches).astype(float)
    for layer in network.parameters:
        outputs = x @ layer["w"].astype(float)
        mean, inputs = outputs.mean(0), compressed - compressed.mean(0)
        solution = np.linalg.lstsq(inputs, outputs - mean, rcond=None)[0]
        right = np.linalg.svd(inputs @ solution, full_matrices=False)[2][:3]
        fitted = inputs @ solution @ right.T @ right + mean
        yield fitted, np.linalg.norm(outputs - fitted) / np.linalg.norm(outputs)
        x = np.tanh(outputs + layer["b"])
        compressed = np.tanh(fitted + layer["b"]) if sequential else x


@pytest.mark.slow
def test_in_sequence_each_layer_repairs_what_it_can():
    network, compressed = at_rank_three("mlp", "data-driven", sequential=True)
    (*_, (fitted, _)) = seen = list(by_hand(network, sequential=True))
    for layer, (_, error) in zip(compressed.layers.values(), seen, strict=True):
        assert layer.relative_error == pytest.approx(error, rel=1e-3)
    outputs = run(network, compressed) - network.parameters[-1]["b"]
    np.testing.assert_allclose(outputs, fitted, atol=1e-3 * np.abs(fitted).max())


def test_in_sequence_the_last_layer_is_no_worse():
    network, independent = at_rank_three("mlp", "data-driven")
    _, sequential = at_rank_three("mlp", "data-driven", sequential=True)
    dense = run(network)
    errors = [np.linalg.norm(run(network, each) - dense) for each in (sequential, independent)]
    assert errors[0] < errors[1]


def test_a_loop_is_compressed_in_sequence():
    def function(p, x):
        x = jnp.tanh(x @ p["first"])
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["loop"])[0] @ p["last"]

    shapes = {"first": (12, 12), "loop": (3, 12, 12), "last": (12, 9)}
    parameters = {name: normal(k, *shape) / 4 for k, (name, shape) in enumerate(shapes.items())}
    batches = [rows(50, 80, 12)]
    target = RankRule(lambda _: 4)
    compressed = compress(function, parameters, batches, target, sequential=True)
    assert compressed.parameters["loop"].approximation.shape == (3, 12, 12)
    network = Network(function, parameters, batches)
    dense, other = run(network), run(network, compressed)
    measured = np.linalg.norm(dense - other) / np.linalg.norm(dense)
    stated = compressed.layers["['last']"].relative_error
    assert stated == pytest.approx(measured, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_do_not_matter(scale):
    def function(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    parameters = {"a": normal(0, 12, 14), "b": normal(1, 14, 9)}
    batches = [rows(60, 80, 12)]
    scaled = [batch * np.float32(scale) for batch in batches]
    one, other = (
        compress(function, parameters, each, Parameters(0.6), sequential=True)
        for each in (batches, scaled)
    )
    for layer, again in zip(one.layers.values(), other.layers.values(), strict=True):
        assert layer.rank == again.rank
        assert layer.relative_error == pytest.approx(again.relative_error, rel=1e-3)


def test_what_cannot_be_replaced_stays_dense_and_says_why():
    def function(p, tokens):
        embedded = p["table"][tokens]
        return jnp.tanh(embedded @ p["w"]) @ p["thin"], embedded @ p["table"].T

    shapes = {"table": (20, 8), "w": (8, 10), "thin": (10, 1)}
    parameters = {name: normal(k, *shape) for k, (name, shape) in enumerate(shapes.items())}
    tokens = np.arange(40).reshape(2, 20) % 20
    compressed = compress(function, parameters, [tokens], Parameters(0.95))
    table, thin = compressed.layers["['table']"], compressed.layers["['thin']"]
    assert table.rank is thin.rank is None
    assert "cannot be replaced: its rows are looked up" in table.remark
    assert thin.remark == "no rank saves anything"
    assert compressed.layers["['w']"].rank is not None
    assert (table.relative_error, table.certified) == (0.0, True)
    assert "looked up" in repr(compressed)


@pytest.mark.parametrize("sequential", [False, True])
def test_where_no_weight_can_be_replaced_all_stays_as_it_is(sequential):
    def function(p, x):
        return x @ p["w"] + jnp.sum(p["w"])

    arguments = function, {"w": normal(0, 6, 5)}, [rows(0, 8, 6)]
    compressed = compress(*arguments, LayerError(0.5), sequential=sequential)
    assert compressed.function is function
    assert "its entries are used by" in compressed.layers["['w']"].remark
    with pytest.raises(ValueError, match=r"cannot be met.* stays as it is: it cannot be replaced"):
        compress(*arguments, Parameters(0.5), sequential=sequential)


def test_a_branch_that_no_batch_takes_stays_dense():
    def function(p, x):
        return lax.cond(jnp.sum(x) > 1e9, lambda: x @ p["a"], lambda: x @ p["b"])

    parameters = {"a": normal(0, 12, 10), "b": normal(1, 12, 10)}
    compressed = compress(function, parameters, [rows(0, 30, 12)], Parameters(0.8))
    assert "no batch took the branch" in compressed.layers["['a']"].remark
    assert compressed.layers["['b']"].rank is not None


def test_what_moments_do_not_resolve_is_said():
    x = rows(0, 60, 12) * np.logspace(0, -12, 12, dtype=np.float32)
    w = np.diag(np.logspace(0, 12, 12)).astype(np.float32)
    compressed = compress(lambda w, x: x @ w, w, [x], RankRule(lambda _: 3))
    assert not compressed.layers[""].certified
    assert "not certified" in repr(compressed)
    _, fine = at_rank_three("mlp", "data-driven")
    assert all(layer.certified for layer in fine.layers.values())
    assert "not certified" not in repr(fine)
    assert "[0]['w']  12 x 16  rank 3  error" in repr(fine)


# --- passes over the data, and memory ------------------------------------------------------------


class Counted:
    """Batches that count how often they are gone through."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        yield self.batches[0]  # only looked at
        self.passes += 1
        yield from self.batches[1:]


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 1),
        ({"method": TruncatedSVD()}, 0),
        ({"sequential": True}, 1 + 3),
        ({"sequential": True, "passes": 2}, 1 + 2),
        ({"sequential": True, "passes": 9}, 1 + 3),
    ],
)
def test_goes_through_the_batches_as_often_as_it_says(options, passes):
    network = mlp()
    batches, steps = Counted(network.batches), []
    few = pytest.warns(UserWarning, match="`passes` is 2, and the weights see 3 inputs")
    with few if options.get("passes") == 2 else contextlib.nullcontext():
        compressed = compress(
            network.function,
            network.parameters,
            batches,
            RankRule(lambda _: 3),
            progress=lambda *step: steps.append(step),
            **options,
        )
    assert batches.passes == passes
    assert all(layer.rank == 3 for layer in compressed.layers.values())
    total = 6 if "sequential" in options else 3
    assert [step[1:] for step in steps] == [(k + 1, total) for k in range(total)]
    assert [step[0] for step in steps][:3] == list(compressed.layers)


def test_all_passes_are_the_default():
    _, compressed = at_rank_three("mlp", "data-driven", sequential=True)
    _, other = compressed_to("mlp", RankRule(lambda _: 3), sequential=True, passes=3)
    for one, same in zip(
        *map(jax.tree.leaves, (compressed.parameters, other.parameters)), strict=True
    ):
        np.testing.assert_array_equal(one, same)


def test_little_memory_takes_more_passes(monkeypatch):
    network, batches = mlp(), Counted(mlp().batches)
    monkeypatch.setattr(_passes, "available_memory", lambda: 2.5e4)
    compressed = compress(network.function, network.parameters, batches, Parameters(0.6))
    assert batches.passes == 3
    monkeypatch.undo()
    _, whole = compressed_to("mlp", Parameters(0.6))
    for one, same in zip(
        *map(jax.tree.leaves, (compressed.parameters, whole.parameters)), strict=True
    ):
        np.testing.assert_array_equal(one, same)


def test_statistics_that_do_not_fit_are_estimated_before_starting(monkeypatch):
    network, batches = mlp(), Counted(mlp().batches)
    monkeypatch.setattr(_passes, "available_memory", lambda: 1e4)
    with pytest.raises(ValueError, match=r"statistics of what \[0\]\['w'\] .* take about .* GiB"):
        compress(network.function, network.parameters, batches, Parameters(0.6))
    assert batches.passes == 0


def test_the_system_says_what_is_free():
    assert _passes.available_memory() > 1e6


# --- bad input -----------------------------------------------------------------------------------


def layer(w, x):
    return x @ w


W, X = normal(0, 12, 10), rows(1, 30, 12)
HALF = Parameters(0.5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((layer, W, [], HALF), {}, "`batches` is empty: give at least one batch"),
        ((layer, W, iter([X]), HALF), {}, "`batches` must be a list, .*; got list_iterator"),
        ((layer, W, [np.where(X > 1, np.nan, X)], HALF), {}, r"`batches\[0\]` has entries .* NaN"),
        ((layer, W, [X, X[:, 1:]], HALF), {}, r"batch of \(30, 11\) \(batches before it, of"),
        ((lambda w, x: np.asarray(x) @ w, W, [X], HALF), {}, "cannot be traced by JAX"),
        (
            (lambda w, x: x, {"w": W}, [X], HALF),
            {},
            r"No leaf .* was followed .*\['w'\]: it is not",
        ),
        ((layer, W * np.nan, [X], HALF), {}, "`parameters`: `weights` has 120 non-finite"),
        (
            (layer, W, [X], Parameters(0.1)),
            {},
            "It cannot be met: with the .* a share of 0.26",
        ),
        (
            (layer, W, [X], HALF),
            {"method": TruncatedSVD(), "sequential": True},
            "`TruncatedSVD` does not look at the data: leave `sequential` out",
        ),
        ((layer, W, [X], HALF), {"passes": 0}, "`passes` must be an integer >= 1; got 0"),
        ((layer, W, [X], HALF), {"passes": 2}, "`passes` is for `sequential=True`"),
        ((layer, W, [X], HALF), {"select": lambda _: False}, "whose path `select` accepts"),
    ],
)
def test_says_what_is_wrong(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        compress(*arguments, **options)


@pytest.mark.parametrize("kind", [Parameters, Bytes, MultiplyAdds, LayerError])
@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_share_is_between_none_and_all(kind, share):
    with pytest.raises(ValueError, match=r"must lie strictly between 0 and 1; got"):
        kind(share)


WRONG_TYPES: list[tuple[Any, str]] = [
    (lambda: compress(layer, W, 3, HALF), "`batches` must be a list, .*; got int"),  # pyright: ignore[reportArgumentType]
    (lambda: compress(layer, W, [X], 0.5), "`target` must be a budget such as .*; got 0.5"),  # pyright: ignore[reportArgumentType]
    (
        lambda: compress(layer, W, [X], HALF, method="svd"),  # pyright: ignore[reportArgumentType]
        "`method` must be a ladder, such as .* got 'svd'",
    ),
    (
        lambda: compress(layer, W, [X], HALF, method=COALA()),  # pyright: ignore[reportArgumentType]
        "`method` must be a ladder, such as .* got COALA",
    ),
    (lambda: Parameters("half"), "`share` must lie strictly between 0 and 1; got 'half'"),  # pyright: ignore[reportArgumentType]
]


def test_wrong_types():
    unhooked.check("networks.test_compress")


def check_wrong_types():
    for call, message in WRONG_TYPES:
        with pytest.raises(ValueError, match=message):
            call()
