"""The layers of trained networks under the theorems."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory import ActivationWeighted, LowRank, Observed, Problem, TruncatedSVD, recover
from lowrank_theory import relative_fitting_error as relative_error
from lowrank_theory._numerics import rounding_allowance
from lowrank_theory.networks import (
    Perceptron,
    Split,
    digits_data,
    digits_network,
    layer_study,
    mnist_data,
    mnist_network,
)
from lowrank_theory.networks.layer_study import LayerStudy, study
from lowrank_theory.theorems import planted_rank
from lowrank_theory.theorems.price_of_ignoring_data import price_bound

KEYS = {
    "network",
    "layer",
    "shape",
    "rank",
    "samples",
    "data_agnostic_error",
    "data_agnostic_new_bias_error",
    "data_driven_error",
    "optimal_error",
    "price_bound",
    "recovery_error",
    "recovery_bound",
    "accuracy_dense",
    "accuracy_data_agnostic",
    "accuracy",
}
ERRORS = ("data_agnostic_error", "data_driven_error", "optimal_error", "price_bound")
FLOAT32 = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def digits() -> LayerStudy:
    return study("digits", digits_network(), digits_data(), key=jax.random.key(0))


def a_split(samples: int = 12, pixels: int = 5, classes: int = 3) -> Split:
    def part(seed: int) -> tuple:
        rng = np.random.default_rng(seed)
        images = rng.uniform(size=(samples, pixels)).astype(np.float32)
        return jnp.asarray(images), jnp.asarray(rng.integers(0, classes, samples), jnp.int32)

    return Split(*part(0), *part(1))


def a_network(*sizes: int, scale: float = 1.0) -> Perceptron:
    rng = np.random.default_rng(2)
    weights = [
        jnp.asarray(scale * rng.normal(size=pair), jnp.float32)
        for pair in itertools.pairwise(sizes)
    ]
    biases = [jnp.asarray(scale * rng.normal(size=size), jnp.float32) for size in sizes[1:]]
    return Perceptron(weights, biases)


def check_theorems(studied: LayerStudy) -> None:
    """What must hold of every layer of every network."""
    for row in studied.rows:
        allowance = rounding_allowance(1.0, row["samples"], *row["shape"])
        assert row["optimal_error"] <= row["data_driven_error"] + allowance
        assert row["optimal_error"] <= row["data_agnostic_error"] + allowance
        assert row["data_agnostic_error"] <= row["price_bound"] + allowance
        assert row["recovery_error"] <= row["recovery_bound"] + allowance
    for layer in {row["layer"] for row in studied.rows}:
        of_layer = [row for row in studied.rows if row["layer"] == layer]
        assert of_layer == sorted(of_layer, key=lambda row: row["rank"])
        for name in ERRORS:
            values = np.array([row[name] for row in of_layer])
            assert np.all(np.diff(values) <= rounding_allowance(values[0], 1))


# --- the embedded network -----------------------------------------------------------------------


def test_rows_are_complete_and_ready_for_json(digits):
    rows = json.loads(json.dumps(digits.rows, allow_nan=False))
    assert rows == list(digits.rows)
    assert all(set(row) == KEYS for row in rows)
    assert all(row["network"] == "digits" and row["samples"] == 1_200 for row in rows)
    for layer, (inputs, outputs) in enumerate([(64, 256), (256, 128), (128, 10)]):
        ranks = [row["rank"] for row in rows if row["layer"] == layer]
        assert ranks[0] == 1 and min(inputs, outputs) // 2 in ranks and 7 <= len(ranks) <= 9
        assert ranks[-1] * (inputs + outputs) < inputs * outputs
        assert all(row["shape"] == [inputs, outputs] for row in rows if row["layer"] == layer)


def test_the_theorems_hold_on_the_digits(digits):
    check_theorems(digits)


def test_data_driven_beats_data_agnostic_at_every_rank(digits):
    """Measured: 1.1 times (last layer, rank 1) to 34 times (first layer, rank 51) smaller."""
    gains = [row["data_agnostic_error"] / row["data_driven_error"] for row in digits.rows]
    assert 1.1 < min(gains) < 1.2 and 30 < max(gains) < 40
    assert all(row["accuracy_data_agnostic"] <= row["accuracy"] for row in digits.rows)


def test_only_part_of_the_gain_is_the_new_bias(digits):
    """Measured at half rank: truncated weights with the affine fit's bias, whose only datum is the
    mean input, are 1.1 to 2.0 times better than with their own; the fit is 1.6 to 3.9 times better
    than that.
    """
    network, data = digits_network(), digits_data()
    training = network.layer_inputs(data.training_images)
    held_out = network.layer_inputs(data.held_out_images)
    halves = [row for row in digits.rows if row["rank"] == min(row["shape"]) // 2]
    for row, seen, new, w, b in zip(
        halves, training, held_out, network.weights, network.biases, strict=True
    ):
        weights = np.asarray(w, np.float64)
        _, _, vt = np.linalg.svd(weights)
        lost = vt[row["rank"] :]
        centred = np.asarray(new, np.float64) - np.mean(np.asarray(seen), axis=0, dtype=np.float64)
        norm = np.linalg.norm(np.asarray(new, np.float64) @ weights + np.asarray(b))
        error = np.linalg.norm(centred @ weights @ lost.T) / norm
        assert row["data_agnostic_new_bias_error"] == pytest.approx(error)
        assert 1.1 < row["data_agnostic_error"] / error < 2.0
        assert 1.5 < error / row["data_driven_error"] < 4.0


def test_the_held_out_error_is_near_the_best_possible(digits):
    """Measured: at most 1.20 times the best affine map of the held-out rows themselves."""
    assert max(row["data_driven_error"] / row["optimal_error"] for row in digits.rows) < 1.25


def test_the_price_bound_is_loose(digits):
    """It holds, and exceeds the outputs themselves at every rank: it does not explain the gain."""
    assert min(row["price_bound"] for row in digits.rows) > 1
    looseness = [summary["looseness"] for summary in digits.summary()]
    assert 5 < min(looseness) < max(looseness) < 25


def test_errors_are_those_of_an_independent_computation(digits):
    network, data = digits_network(), digits_data()
    training, held_out = (
        np.asarray(network.layer_inputs(images)[1], np.float64)
        for images in (data.training_images, data.held_out_images)
    )
    weights, bias = (np.asarray(a[1], np.float64) for a in (network.weights, network.biases))
    row = next(row for row in digits.rows if row["layer"] == 1 and row["rank"] == 24)
    outputs = held_out @ weights + bias
    norm = np.linalg.norm(outputs)

    u, s, vt = np.linalg.svd(weights)
    truncated = (u[:, :24] * s[:24]) @ vt[:24]
    agnostic = np.linalg.norm(outputs - held_out @ truncated - bias) / norm
    np.testing.assert_allclose(row["data_agnostic_error"], agnostic, rtol=1e-10)
    bound = np.linalg.norm(held_out, 2) * np.linalg.norm(s[24:]) / norm
    np.testing.assert_allclose(row["price_bound"], bound, rtol=1e-10)

    mean = training.mean(axis=0)
    _, _, vt = np.linalg.svd((training - mean) @ weights)
    projected = (held_out - mean) @ weights @ vt[:24].T @ vt[:24] + mean @ weights + bias
    driven = np.linalg.norm(outputs - projected) / norm
    np.testing.assert_allclose(row["data_driven_error"], driven, rtol=1e-8)

    best = np.linalg.svd(outputs - outputs.mean(axis=0), compute_uv=False)
    optimal = np.linalg.norm(best[24:]) / norm
    np.testing.assert_allclose(row["optimal_error"], optimal, rtol=1e-10)


def test_errors_are_those_of_the_library(digits):
    network, data = digits_network(), digits_data()
    seen = network.layer_inputs(data.training_images)[2]
    weights = np.asarray(network.weights[2])
    held_out = Observed(
        weights=weights,
        activations=network.layer_inputs(data.held_out_images)[2],
        bias=network.biases[2],
    )
    trained = Observed(weights=weights, activations=seen, bias=network.biases[2])
    row = next(row for row in digits.rows if row["layer"] == 2 and row["rank"] == 5)
    for method, error_name, accuracy_name in (
        (TruncatedSVD(), "data_agnostic_error", "accuracy_data_agnostic"),
        (ActivationWeighted(), "data_driven_error", "accuracy"),
    ):
        recovery = recover(trained, 5, method)
        expected = float(relative_error(recovery, held_out))
        assert row[error_name] == pytest.approx(expected, rel=100 * FLOAT32)
        assert recovery.bias is not None
        compressed = network.with_layer(2, recovery.factors, recovery.bias)
        accuracy = float(compressed.accuracy(data.held_out_images, data.held_out_labels))
        assert row[accuracy_name] == pytest.approx(accuracy, abs=1.5 / 597)
    norm = np.linalg.norm(np.asarray(held_out.target_outputs))
    linear = Observed(weights=held_out.weights, activations=held_out.activations)
    bound = float(price_bound(linear, 5)) / norm
    assert row["price_bound"] == pytest.approx(bound, rel=100 * FLOAT32)


def test_the_recovery_is_that_of_the_theorem(digits):
    network, data = digits_network(), digits_data()
    weights = np.asarray(network.weights[2], np.float64)
    seen = np.asarray(network.layer_inputs(data.training_images)[2], np.float64)
    order = np.asarray(jax.random.permutation(jax.random.split(jax.random.key(0), 3)[2], 1_200))
    first, second = seen[order[:600]], seen[order[600:]]
    stated = recover(Observed(weights=weights, activations=first), 5, ActivationWeighted())
    observed = Observed(weights=weights, activations=second, outputs=second @ weights)
    problem = Problem.stated(observed, stated.factors.materialise(), 5)
    row = next(row for row in digits.rows if row["layer"] == 2 and row["rank"] == 5)
    norm = np.linalg.norm(second @ weights)
    bound = planted_rank.any_noise.bound(problem)
    assert bool(bound.holds)
    np.testing.assert_allclose(row["recovery_bound"], float(bound.value) / norm, rtol=1e-8)
    realised = float(planted_rank.any_noise.realised(problem))
    np.testing.assert_allclose(row["recovery_error"], realised / norm, rtol=1e-8)


def test_which_hypotheses_hold(digits):
    table = json.loads(json.dumps(digits.hypotheses, allow_nan=False))
    for layer in range(3):
        holds = {
            (row["statement"], row["name"]): row["holds"] for row in table if row["layer"] == layer
        }
        condition = "price_of_ignoring_data.condition_number"
        assert not holds[condition, "the activations have full column rank"]
        assert all(h for (statement, _), h in holds.items() if statement.endswith("any_noise"))
        refutable = [row for row in table if row["layer"] == layer and row["allowed"] is not None]
        assert len(refutable) == 3
        for row in refutable:
            assert row["standing"] == "refutable" and not row["holds"]
            assert row["margin"] == row["allowed"] - row["statistic"]


def test_the_summary_is_of_half_rank(digits):
    summary = json.loads(json.dumps(digits.summary(), allow_nan=False))
    assert [(each["layer"], each["rank"]) for each in summary] == [(0, 32), (1, 64), (2, 5)]
    for each in summary:
        assert 1.7 < each["gain"] <= each["price"] < 7
        assert f"is {each['gain']:.3g} times smaller" in each["sentence"]
        assert "larger than the outputs themselves" in each["sentence"]


# --- small networks -----------------------------------------------------------------------------


def test_hypotheses_that_are_true_are_not_refuted():
    rng = np.random.default_rng(3)
    images = jnp.asarray(rng.normal(size=(2_000, 8)), jnp.float32)
    labels = jnp.zeros(1_000, jnp.int32)
    split = Split(images[:1_000], labels, images[1_000:], labels)
    table = study("small", a_network(8, 6), split, key=jax.random.key(0), ranks=2).hypotheses
    holds = {row["name"]: row["holds"] for row in table}
    assert holds["the rows are Gaussian: the kurtosis of the inputs"]
    assert holds["the activations have full column rank"]


def noise_hypotheses(noise: np.ndarray) -> list[bool]:
    q, outputs = noise.shape
    nothing = (np.zeros((q, 1)), np.zeros((1, outputs)))
    stated = layer_study._Stated(np.eye(q), noise, nothing, nothing[1])
    return [row["holds"] for row in layer_study._gaussian_noise(stated, 1)]


def test_gaussian_noise_is_seldom_refuted_and_other_noise_is():
    rng = np.random.default_rng(4)
    draws = [noise_hypotheses(rng.normal(size=(60, 40))) for _ in range(300)]
    assert np.all(np.mean(draws, axis=0) >= 0.97)
    noise = rng.normal(size=(60, 40))
    assert noise_hypotheses(noise * np.linspace(0.5, 1.5, 40))[1] is False
    assert noise_hypotheses(noise + np.outer(np.ones(60), np.ones(40)))[0] is False


def test_fewer_rows_than_inputs_and_a_single_output():
    calls = []
    studied = study(
        "small",
        a_network(5, 4, 1),
        a_split(4, classes=1),
        key=jax.random.key(0),
        ranks=3,
        progress=lambda *call: calls.append(call),
    )
    check_theorems(studied)
    assert calls == [("small", 1, 2), ("small", 2, 2)]
    assert [row["rank"] for row in studied.rows] == [1, 2, 1]
    assert math.isclose(studied.rows[-1]["data_agnostic_error"], 0, abs_tol=1e-12)


def test_the_key_decides_the_halves_and_nothing_else():
    network, split = a_network(5, 4, 3), a_split()
    one, same, other = (study("small", network, split, key=jax.random.key(i)) for i in (0, 0, 1))
    assert one == same
    for row, another in zip(one.rows, other.rows, strict=True):
        differing = {name for name in row if row[name] != another[name]}
        assert differing <= {"recovery_error", "recovery_bound"}
    assert one != other


def test_a_layer_of_zeros_has_no_relative_errors():
    studied = study("zeros", a_network(5, 4, scale=0.0), a_split(), key=jax.random.key(0))
    json.dumps([studied.rows, studied.hypotheses, studied.summary()], allow_nan=False)
    assert all(row[name] is None for row in studied.rows for name in (*ERRORS, "recovery_error"))
    assert "nothing to compare" in studied.summary()[0]["sentence"]


def test_what_cannot_be_studied_is_refused():
    network, split, key = a_network(5, 4, 3), a_split(), jax.random.key(0)
    factors = LowRank(jnp.ones((5, 1)), jnp.ones((1, 4)))
    with pytest.raises(ValueError, match=r"`network\.weights\[0\]` is `LowRank` already\. Give"):
        study("low rank", network.with_layer(0, factors, network.biases[0]), split, key=key)
    with pytest.raises(ValueError, match=r"`split\.training_images` has 3 rows.*at least 4"):
        study("few", network, a_split(3), key=key)
    with pytest.raises(ValueError, match="`ranks` must be an integer >= 1; got 0"):
        study("none", network, split, key=key, ranks=0)
    with pytest.raises(ValueError, match=r"`images` has 6 inputs, but `weights\[0\]` has 5"):
        study("other", network, a_split(pixels=6), key=key)


# --- the supplied network -----------------------------------------------------------------------


def test_the_theorems_hold_on_mnist(data_folder):
    for needed in ("mnist", "mnist_mlp"):
        if not (data_folder / needed).is_dir():
            pytest.skip(f"{data_folder} has no folder {needed}/")
    data = mnist_data()
    part = Split(
        data.training_images[:1_000],
        data.training_labels[:1_000],
        data.held_out_images[:500],
        data.held_out_labels[:500],
    )
    studied = study("mnist", mnist_network(), part, key=jax.random.key(0), ranks=3)
    check_theorems(studied)
    assert all(row["data_driven_error"] < row["data_agnostic_error"] for row in studied.rows)
