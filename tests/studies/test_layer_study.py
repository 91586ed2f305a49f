"""The layers of trained networks under the theorems."""

import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import routes
from lowrank_theory import ActivationWeighted, LowRank, Observed, Problem, Truth, recover
from lowrank_theory._files import plain
from lowrank_theory._numerics import rounding_allowance
from lowrank_theory._rows import AbstractRow, typed
from lowrank_theory.calibration import Calibration
from lowrank_theory.networks import LayerStudy, Perceptron, digits_data, digits_network, study
from lowrank_theory.problems import Layer
from lowrank_theory.recovery.published import DiagonalQERA
from lowrank_theory.studies.layer_rows import half_rank
from lowrank_theory.theorems import (
    STATEMENTS,
    Standing,
    calibration_size,
    orientation,
    planted_rank,
)
from lowrank_theory.theorems.calibration_size import INDEPENDENT_WEIGHTS, first_order_excess
from lowrank_theory.theorems.planted_rank import INDEPENDENT_NOISE
from lowrank_theory.theorems.projected_truth import Projected, projected_truth
from studied import batches_of, digits_study

pytestmark = pytest.mark.thinned(3)

NESTED = (
    "data_agnostic_error", "data_agnostic_new_bias_error", "diagonal_error", "data_driven_error",
    "optimal_error", "price_bound",
)  # fmt: skip


@pytest.fixture
def digits() -> LayerStudy:
    return digits_study()


def affine(parameters, batch):
    return batch @ parameters["weights"] + parameters["bias"]


def dense(inputs: int = 7, outputs: int = 5, scale: float = 1.0) -> dict[str, np.ndarray]:
    return {
        "weights": scale * routes.normal(0, inputs, outputs),
        "bias": routes.normal(1, outputs),
    }


def some_batches(count: int, *shape: int, seed: int = 2) -> list[np.ndarray]:
    """Of correlated rows with a mean."""
    mixing = np.eye(shape[-1]) + 0.5 * routes.normal(seed, shape[-1], shape[-1])
    drawn = routes.normal(seed + 1, count, *shape)
    return list((drawn @ mixing + 0.5).astype(np.float32))


def check_theorems(studied: Any) -> None:
    """What must hold of every layer of every network."""
    resolution = {each.layer: each.resolution for each in studied.layers}
    for row in studied.rows:
        allowance = resolution[row.layer]
        assert row.optimal_error <= row.data_driven_error + allowance
        assert row.optimal_error <= row.data_agnostic_error + allowance
        assert row.optimal_error <= row.diagonal_error + allowance
        assert row.data_agnostic_error <= row.price_bound + allowance
        assert row.recovery_error <= row.projected_bound + 10 * allowance
        assert row.projected_bound <= row.recovery_bound
    for layer in resolution:
        of_layer = [row for row in studied.rows if row.layer == layer]
        assert of_layer == sorted(of_layer, key=lambda row: row.rank)
        for name in NESTED:
            values = np.array([getattr(row, name) for row in of_layer])
            assert np.all(np.diff(values) <= rounding_allowance(values[0], 1))


def row_of(studied: LayerStudy, layer: str, rank: int) -> Any:
    (row,) = (row for row in studied.rows if (row.layer, row.rank) == (layer, rank))
    return row


# --- the embedded network -------------------------------------------------------------------------


def test_everything_is_complete_and_ready_for_json(digits):
    content = json.loads(json.dumps(plain(digits), allow_nan=False))
    assert content == plain(digits) and typed(LayerStudy, content) == digits
    assert content["rows"] == [row.row() for row in digits.rows]
    assert None not in content["rows"][0].values()
    rows, layers = digits.rows, digits.layers
    assert all(row.network == "digits" and row.samples == 1_200 for row in rows)
    shapes = [(64, 256), (256, 128), (128, 10)]
    for number, (layer, (inputs, outputs)) in enumerate(zip(layers, shapes, strict=True)):
        assert layer.layer == layer.path == f".weights[{number}]" and layer.slice is None
        assert layer.shape == (inputs, outputs) and layer.held_out_samples == 597
        ranks = [row.rank for row in rows if row.layer == layer.layer]
        assert ranks[0] == 1 and min(inputs, outputs) // 2 in ranks and 7 <= len(ranks) <= 9
        assert ranks[-1] * (inputs + outputs) < inputs * outputs
        for spectrum, size in (
            (layer.activations, inputs),
            (layer.preactivations, min(inputs, outputs)),
        ):
            assert spectrum.index[0] == 1 and spectrum.index[-1] == size
            assert len(spectrum.index) == len(spectrum.share) <= 60
            assert 1 <= spectrum.participation_ratio <= size
    assert set(digits.not_followed) == {f".biases[{number}]" for number in range(3)}


@pytest.mark.parametrize("kind", AbstractRow.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_column_is_told_once(kind):
    columns = kind.columns()
    assert len({column.heading for column in columns}) == len(columns)
    for column in columns:
        assert column.heading and column.description
        assert "None" not in column.description  # pages show it
        assert f"- `{column.name}`: {column.sentence}" in kind.__doc__


def test_the_theorems_hold_on_the_digits(digits):
    check_theorems(digits)
    assert all(row.certified for row in digits.rows)


def test_data_driven_beats_data_agnostic_at_every_rank(digits):
    gains = [row.data_agnostic_error / row.data_driven_error for row in digits.rows]
    assert min(gains) > 1


def test_the_held_out_error_is_near_the_best_possible(digits):
    assert max(row.data_driven_error / row.optimal_error for row in digits.rows) < 1.3


def test_the_price_bound_is_that_of_the_worst_orientation(digits):
    """The norms of inputs and weights alone exceed the outputs at every rank; this does not."""
    tails = [row.weight_tail_bound for row in digits.gains if not row.centred]
    assert min(tails) > 1
    assert min(row.price_bound for row in digits.rows) < 1


def test_errors_are_those_of_the_library(digits):
    network, data = digits_network(), digits_data()
    training, held_out = (
        np.asarray(network.layer_inputs(images)[2], np.float64)
        for images in (data.training_images, data.held_out_images)
    )
    weights = np.asarray(network.weights[2], np.float64)
    outputs = held_out @ weights
    norm = np.linalg.norm(outputs)
    row = row_of(digits, ".weights[2]", 5)

    fitted = Observed(weights=weights, activations=training, bias=np.zeros(10))
    recovery = recover(fitted, 5, ActivationWeighted())
    predicted = held_out @ np.asarray(recovery.factors.materialise()) + np.asarray(recovery.bias)
    assert row.data_driven_error == pytest.approx(np.linalg.norm(outputs - predicted) / norm)

    linear = Observed(weights=weights, activations=training)
    scaled = np.asarray(recover(linear, 5, DiagonalQERA()).factors.materialise())
    error = np.linalg.norm(outputs - held_out @ scaled) / norm
    assert row.diagonal_error == pytest.approx(error)

    layer = Layer(Observed(weights=weights, activations=held_out), 5)
    bound = float(orientation.upper.bound(layer).value) / norm
    assert row.price_bound == pytest.approx(bound)


def test_the_recovery_is_that_of_the_theorem(digits):
    network, data = digits_network(), digits_data()
    weights = np.asarray(network.weights[2], np.float64)
    first, second = (
        np.concatenate(
            [
                np.asarray(network.layer_inputs(batch)[2], np.float64)
                for batch in batches_of(data.training_images)[half::2]
            ]
        )
        for half in (0, 1)
    )
    stated = recover(Observed(weights=weights, activations=first), 5, ActivationWeighted())
    observed = Observed(weights=weights, activations=second, outputs=second @ weights)
    problem = Problem.stated(observed, stated.factors.materialise(), 5)
    row = row_of(digits, ".weights[2]", 5)
    norm = np.linalg.norm(second @ weights)
    bound = planted_rank.any_noise.bound(problem)
    assert bool(bound.holds)
    assert row.recovery_bound == pytest.approx(float(bound.value) / norm, rel=1e-6)
    basis = np.linalg.svd(first @ weights)[2].T
    projected = Projected(Layer(Observed(weights=weights, activations=second), 5), basis)
    bounds = projected_truth.no_gap.bound(projected), projected_truth.gap.bound(projected)
    least = min(float(each.value) for each in (bound, *bounds))
    assert row.projected_bound == pytest.approx(least / norm, rel=1e-6)
    realised = float(planted_rank.any_noise.realised(problem))
    assert row.recovery_error == pytest.approx(realised / norm, rel=1e-6)


def test_calibration_sizes_are_those_of_the_theorem(digits):
    """Inserted into the statement they give 1 %; one row less gives more."""
    network, data = digits_network(), digits_data()
    weights = np.asarray(network.weights[2], np.float64)
    seen = np.asarray(network.layer_inputs(data.held_out_images)[2], np.float64)
    moment = np.cov(seen, rowvar=False, bias=True)
    row = row_of(digits, ".weights[2]", 5)
    values = np.linalg.eigvalsh(weights.T @ moment @ weights)[::-1]
    least = np.sum(values[5:])
    unused = LowRank(np.zeros((128, 1)), np.zeros((1, 10)))
    with jax.enable_x64(True):
        excess = float(first_order_excess(jnp.asarray(values), 5))
        assert row.samples_needed == math.ceil(excess / (0.01 * least))
        bounds = [
            float(calibration_size.relative.formula(with_rows(m, weights, moment), unused))
            for m in (row.samples_sufficient - 1, row.samples_sufficient)
        ]
    assert bounds[1] <= 1.01 * least < bounds[0]


def with_rows(samples: int, weights, moment) -> Problem:
    inputs = len(weights)
    seen = Calibration(np.asarray(float(samples)), np.zeros(inputs), samples * moment)
    nothing, true = np.zeros((1, inputs)), np.asarray(True)
    truth = Truth(weights, nothing[:, :10], nothing, np.zeros(()), true, true, moment)
    return Problem(Observed(weights=weights, calibration=seen), truth, 5)


def test_which_hypotheses_hold(digits):
    table = digits.hypotheses
    assert {row.statement for row in table} <= STATEMENTS.keys()
    for layer in range(3):
        of_layer = [row for row in table if row.layer == f".weights[{layer}]"]
        holds = {(row.statement, row.name): row.holds for row in of_layer}
        assert len(holds) == len(of_layer) == (8 if layer == 0 else 9)  # more outputs than inputs
        trusted = {
            ("calibration_size.relative", INDEPENDENT_WEIGHTS),
            ("calibration_size.leading_constant", INDEPENDENT_WEIGHTS),
            ("planted_rank.gaussian", INDEPENDENT_NOISE),
        }
        assert {key for key in holds if not holds[key]} >= trusted
        standing = {(row.statement, row.name): row.standing for row in of_layer}
        assert {key for key in standing if standing[key] is Standing.TRUSTED} == trusted
        condition = "price_of_ignoring_data.condition_number"
        assert not holds[condition, "the activations have full column rank"]
        for row in of_layer:
            refutable = row.standing is Standing.REFUTABLE
            assert refutable == (row.allowed is not None)
            assert row.holds == (row.margin >= 0)
            if refutable:
                assert row.margin == row.allowed - row.statistic


def test_the_summary_is_of_half_rank(digits):
    summary = digits.summary()
    assert [each.rank for each in summary] == [32, 64, 5]
    for each in summary:
        assert 1 < each.gain <= each.price
        assert f"is {each.gain:.3g} times smaller" in each.sentence
        vacuous = row_of(digits, each.layer, each.rank).price_bound > 1
        assert ("larger than the outputs themselves" in each.sentence) == vacuous


# --- every kind of layer, against rows ------------------------------------------------------------


def most(inputs, weights, rank: int) -> float:
    """What truncated weights may lose, however they lie towards the inputs."""
    strong, weak = (np.linalg.svd(each, compute_uv=False) for each in (inputs, weights))
    return float(np.linalg.norm([a * b for a, b in zip(strong, weak[rank:], strict=False)]))


def slow_errors(weights, first, second, held_out, rank: int) -> dict[str, Any]:
    """By NumPy, from rows."""
    norm = np.linalg.norm(held_out @ weights)

    def truncated(matrix):
        return np.linalg.svd(matrix, full_matrices=False)[2][:rank].T

    def error(basis, centre):
        moved = (held_out - centre) @ weights
        return np.linalg.norm(moved - moved @ basis @ basis.T) / norm

    training = np.concatenate([first, second])
    mean = training.mean(axis=0)
    scale = np.sqrt(np.mean(training**2, axis=0))
    centred = (held_out - held_out.mean(axis=0)) @ weights
    target, fit = (weights @ v @ v.T for v in map(truncated, (first @ weights, second @ weights)))
    noise = np.linalg.svd(second @ (weights - target), compute_uv=False)[:rank]
    other = np.linalg.norm(second @ weights)
    return {
        "data_agnostic_error": error(truncated(weights), 0),
        "data_agnostic_new_bias_error": error(truncated(weights), mean),
        "diagonal_error": error(truncated(scale[:, None] * weights), 0),
        "data_driven_error": error(truncated((training - mean) @ weights), mean),
        "optimal_error": np.linalg.norm(np.linalg.svd(centred, compute_uv=False)[rank:]) / norm,
        "price_bound": most(held_out, weights, rank) / norm,
        "recovery_error": np.linalg.norm(second @ (fit - target)) / other,
        "recovery_bound": math.sqrt(5) * np.linalg.norm(noise) / other,
    }


def dense_model() -> routes.Model:
    return routes.Model(affine, dense(), routes.normal(4, 9, 7), lambda p, x: {"['weights']": x})


def matrices_of(path: str, leaf: np.ndarray) -> np.ndarray:
    """The stack of matrices that a leaf of the models is, by hand."""
    if path == "['image']":  # two groups of five outputs
        return np.stack([leaf[..., :5].reshape(-1, 5), leaf[..., 5:].reshape(-1, 5)])
    if path == "['line']":
        return leaf.reshape(len(leaf), -1).T[None]
    if path.endswith("['experts']"):
        return leaf.swapaxes(0, 1).reshape(-1, 6, 6)
    return leaf.reshape(-1, *leaf.shape[-2:])


@pytest.mark.parametrize(
    "make",
    [dense_model, routes.convolutions, routes.stacked_layers],
    ids=lambda make: make.__name__,
)
def test_errors_are_those_of_the_rows(make):
    model = make()
    batches = some_batches(6, *model.batch.shape, seed=5)
    studied = study("model", model.function, model.parameters, batches[:4], batches[4:], ranks=2)
    check_theorems(studied)
    leaves = {
        jax.tree_util.keystr(path): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.parameters)
    }
    inputs = [model.rows(model.parameters, batch) for batch in batches]
    names = []
    for path in inputs[0]:
        stack = matrices_of(path, leaves[path])
        rows = [np.asarray(each[path], np.float64) for each in inputs]
        rows = [each.reshape(len(stack), -1, each.shape[-1]) for each in rows]
        for number, weights in enumerate(stack):
            seen = [each[number] for each in rows]
            halves = np.concatenate(seen[:4:2]), np.concatenate(seen[1:4:2])
            label = path if len(stack) == 1 else f"{path} #{number}"
            names.append(label)
            for row in studied.rows:
                if row.layer == label:
                    assert row.shape == weights.shape
                    assert row.samples == sum(map(len, halves))
                    expected = slow_errors(weights, *halves, np.concatenate(seen[4:]), row.rank)
                    for name, value in expected.items():
                        found = getattr(row, name)
                        assert found == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert sorted(names) == sorted(each.layer for each in studied.layers)


@pytest.mark.slow
def test_fewer_rows_than_inputs_and_a_single_output():
    calls = []
    studied = study(
        "small",
        Perceptron.__call__,
        Perceptron(
            [routes.normal(0, 5, 4), routes.normal(1, 4, 1)],
            [routes.normal(2, 4), routes.normal(3, 1)],
        ),
        some_batches(2, 2, 5),
        some_batches(1, 3, 5),
        ranks=3,
        progress=lambda *call: calls.append(call),
    )
    check_theorems(studied)
    assert calls == [("small", 1, 2), ("small", 2, 2)]
    assert [row.rank for row in studied.rows] == [1, 2, 1]
    assert studied.rows[-1].data_agnostic_error == 0
    json.dumps(plain(studied), allow_nan=False)


# --- laws -----------------------------------------------------------------------------------------


def the_same(one: LayerStudy, other: LayerStudy, but: tuple[str, ...] = ()) -> None:
    for row, another in zip(one.rows, other.rows, strict=True):
        for name in row.row().keys() - {"network", "layer", *but}:
            found, expected = getattr(row, name), getattr(another, name)
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-7), name
    for layer, another in zip(one.layers, other.layers, strict=True):
        for name in ("mean_share", "condition_number", "effective_samples"):
            if name not in but:
                assert getattr(layer, name) == pytest.approx(getattr(another, name), rel=1e-5), name


@pytest.mark.parametrize(("weights_scale", "inputs_scale"), [(2.0**20, 1.0), (1.0, 2.0**-20)])
def test_scales_of_weights_and_activations_do_not_matter(weights_scale, inputs_scale):
    batches = some_batches(6, 9, 7)
    scaled = [inputs_scale * batch for batch in batches]
    one = study("a", affine, dense(), batches[:4], batches[4:])
    other = study("a", affine, dense(scale=weights_scale), scaled[:4], scaled[4:])
    the_same(one, other)
    assert [row.holds for row in one.hypotheses] == [row.holds for row in other.hypotheses]


def test_the_order_of_batches_decides_the_halves_and_nothing_else():
    batches = some_batches(6, 9, 7)
    halves = [batches[i] for i in (2, 3, 0, 1)]  # the same in each half
    one = study("a", affine, dense(), batches[:4], batches[4:])
    the_same(one, study("a", affine, dense(), halves, batches[4:]))
    moved = [batches[i] for i in (0, 2, 1, 3)]
    other = study("a", affine, dense(), moved, batches[4:])
    of_halves = "recovery_error", "recovery_bound", "projected_bound", "effective_samples"
    the_same(one, other, but=of_halves)
    assert one.rows[0].recovery_error != pytest.approx(other.rows[0].recovery_error)


def test_a_layer_of_zeros_has_no_relative_errors():
    batches = some_batches(3, 9, 7)
    studied = study("zeros", affine, dense(scale=0.0), batches[:2], batches[2:])
    json.dumps(plain([studied, studied.summary()]), allow_nan=False)
    for name in (*NESTED, "recovery_error", "recovery_bound", "projected_bound", "samples_needed"):
        assert all(getattr(row, name) is None for row in studied.rows), name
    assert studied.layers[0].residual is None
    assert "nothing to compare" in studied.summary()[0].sentence


# --- bad input ------------------------------------------------------------------------------------


def test_what_cannot_be_studied_is_refused():
    batches = some_batches(3, 9, 7)

    def refused(calibration, held_out, match, **options):
        with pytest.raises(ValueError, match=match):
            study("bad", affine, dense(), calibration, held_out, **options)

    refused(
        batches[:1], batches, r"`calibration_batches` must be a list of at least two.*list of 1"
    )
    refused(iter(batches), batches, r"`calibration_batches` must be a list.*got list_iterator")
    refused(batches, [], r"In `held_out_batches`: `batches` is empty")
    refused(batches, batches, "`ranks` must be an integer >= 1; got 0", ranks=0)
    refused(batches, batches, "`select` accepts", select=lambda path: False)
    broken = [*batches[:1], np.full_like(batches[0], np.nan)]
    refused(broken, batches, r"In `calibration_batches\[1::2\]`: `batches\[0\]` has .* NaN")


# --- a supplied network ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_theorems_hold_on_mnist(data_folder):
    from lowrank_theory.networks import mnist_data, mnist_network

    for needed in ("mnist", "mnist_mlp"):
        if not (data_folder / needed).is_dir():
            pytest.skip(f"{data_folder} has no folder {needed}/")
    data = mnist_data()
    studied = study(
        "mnist",
        Perceptron.__call__,
        mnist_network(),
        batches_of(data.training_images[:1_000], 2),
        [np.asarray(data.held_out_images[:500])],
        ranks=3,
    )
    check_theorems(studied)
    errors = [(row.data_driven_error or 0, row.data_agnostic_error or 0) for row in studied.rows]
    assert all(driven < agnostic for driven, agnostic in errors)
    assert half_rank(784, 500) == 250
