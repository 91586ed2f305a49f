"""From layer errors to the network's: laws, an oracle in NumPy, and where bounds are attained."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from laws import scales
from lowrank_theory.theorems.network_composition import (
    Fitted,
    Network,
    Random,
    compressed_by_layers,
    network_composition,
)
from lowrank_theory.verification.attack import replay
from oracle import norm, operator_norm, tail
from statements import by_name, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

STATEMENTS = by_name(network_composition)
every_statement = pytest.mark.parametrize("name", STATEMENTS)
SETTING = Random(samples=9, widths=(4, 5, 3, 3), rank=2)
SETTINGS = {"any": SETTING, "fitted": Fitted(SETTING)}


def drawn(law: str = "any", seed: int = 0) -> Any:
    return jax.tree.map(np.asarray, SETTINGS[law].draw(key=jax.random.key(seed)))


def forward(weights, inputs):
    """What every layer sees, and the outputs."""
    seen = [inputs]
    for layer in weights[:-1]:
        seen.append(np.maximum(seen[-1] @ layer, 0))
    return seen, seen[-1] @ weights[-1]


def test_gain_and_damage_are_relative_to_the_inputs():
    network = Random(widths=(400, 100, 6), gain=3.0, damage=0.2).draw(key=jax.random.key(0))
    for weights, compressed in zip(network.weights, network.compressed, strict=True):
        moved = norm(np.asarray(compressed) - np.asarray(weights))
        size = norm(np.asarray(weights))
        assert size / math.sqrt(weights.shape[1]) == pytest.approx(3.0, rel=0.1)
        assert moved / size == pytest.approx(0.2, rel=0.1)


@every_statement
@pytest.mark.parametrize("law", SETTINGS)
@pytest.mark.parametrize("seed", range(2))
def test_values_against_numpy(name, law, seed):
    network = drawn(law, seed)
    weights, compressed, rank = network.weights, list(network.compressed), network.rank
    original, outputs = forward(weights, network.inputs)
    replaced, _ = forward(compressed, network.inputs)
    projectors = [x @ np.linalg.pinv(x) for x in replaced]
    if name == "last_layer":
        target = projectors[-1] @ outputs
        left, values, right = np.linalg.svd(target, full_matrices=False)
        compressed[-1] = np.linalg.pinv(replaced[-1]) @ (
            left[:, :rank] * values[:rank] @ right[:rank]
        )
    error = norm(outputs - forward(compressed, network.inputs)[1])
    product = [math.prod(operator_norm(w) for w in weights[i + 1 :]) for i in range(3)]
    steps = list(zip(product, original, replaced, projectors, weights, compressed, strict=True))
    expected = {
        "telescoping": (error, sum(p * norm(t @ (w - m)) for p, _, t, _, w, m in steps)),
        "residuals": (
            error**2,
            sum(p**2 * norm(q @ x @ w - t @ m) ** 2 for p, x, t, q, w, m in steps),
        ),
        "last_layer": (
            error**2,
            norm(outputs - projectors[-1] @ outputs) ** 2
            + tail(projectors[-1] @ outputs, rank) ** 2,
        ),
    }[name]
    assert_close(sides(STATEMENTS[name], network), expected)
    assert expected[0] <= expected[1] * (1 + 1e-12)


@every_statement
def test_both_sides_scale_with_the_units_of_the_inputs(name):
    given = drawn()

    def at(unit):
        network = Network(given.weights, given.compressed, unit * given.inputs, given.rank)
        return sides(STATEMENTS[name], network)

    scales(at, 1 if name == "telescoping" else 2)


@every_statement
def test_no_compression_is_no_error(name):
    network = drawn()
    same = Network(network.weights, network.weights, network.inputs, 3)
    realised, bound = sides(STATEMENTS[name], same)
    assert realised == approx(0, scale=1)
    assert bound == approx(0, scale=1)


@every_statement
def test_order_of_hidden_units_and_rotated_outputs_do_not_matter(name):
    network = drawn()
    order = np.random.default_rng(0).permutation(5)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]

    def turned(weights):
        first, second, last = weights
        return first[:, order], second[order], last @ turn

    other = Network(turned(network.weights), turned(network.compressed), network.inputs, 2)
    assert_close(sides(STATEMENTS[name], other), sides(STATEMENTS[name], network))


def test_layers_are_fitted_one_after_the_other():
    network = drawn("fitted")
    original, outputs = forward(network.weights, network.inputs)
    replaced, _ = forward(network.compressed, network.inputs)
    for x, seen, layer, fitted in zip(
        original, replaced, network.weights, network.compressed, strict=True
    ):
        assert np.linalg.matrix_rank(fitted, tol=1e-9) <= 2
        projected = seen @ np.linalg.pinv(seen) @ x @ layer
        assert norm(projected - seen @ fitted) == approx(tail(projected, 2), scale=norm(projected))
    with jax.enable_x64(True):
        again = compressed_by_layers(network.weights, network.inputs, 2)
    assert_close(again[-1], network.compressed[-1])
    # A fitted network is charged for the truncations alone, which add in squares.
    lost = norm(outputs - replaced[-1] @ network.compressed[-1]) ** 2
    assert sides(network_composition.last_layer, network)[0] == approx(lost)


def test_telescoping_is_attained_by_positive_scalars():
    one = np.ones((1, 1))
    network = Network((one, 2 * one, 3 * one), (0.5 * one, one, one), one, 1)
    assert sides(network_composition.telescoping, network) == approx((5.5, 5.5))


def test_residuals_are_attained_where_errors_are_orthogonal():
    """X_1 = (1, 1), X~_1 = (1, 0): what is lost is orthogonal to what is left."""
    column = np.array([[1.0], [1.0]])
    network = Network(
        (column, np.full((1, 1), 2.0)),
        (np.array([[1.0], [0.0]]), np.full((1, 1), 0.5)),
        np.eye(2),
        1,
    )
    realised, bound = sides(network_composition.residuals, network)
    assert realised == approx(2**2 * 1 + 1.5**2)
    assert bound == approx(realised)


def test_which_bound_is_smaller_depends_on_the_compression():
    fitted, damaged = drawn("fitted"), drawn("any")
    ratios = [
        sides(network_composition.residuals, network)[1]
        / sides(network_composition.telescoping, network)[1] ** 2
        for network in (fitted, damaged)
    ]
    assert ratios[0] < 1


def test_one_layer_is_its_own_residual():
    random = np.random.default_rng(0)
    weights, compressed, inputs = (random.standard_normal(s) for s in ((4, 3), (4, 3), (6, 4)))
    network = Network((weights,), (compressed,), inputs, 1)
    error = norm(inputs @ (weights - compressed))
    assert sides(network_composition.telescoping, network) == approx((error, error))
    assert sides(network_composition.residuals, network) == approx((error**2, error**2))


def test_broken_estimate_of_the_last_layer_ignores_data():
    network = drawn()
    statement = network_composition.last_layer
    with jax.enable_x64(True):
        found = np.asarray(statement.broken_estimate(network).materialise())
    left, values, right = np.linalg.svd(network.weights[-1], full_matrices=False)
    rank = network.rank
    assert_close(found, left[:, :rank] * values[:rank] @ right[:rank])


@pytest.mark.parametrize("name", ["telescoping", "residuals"])
def test_adversary_plays_any_network(name):
    statement: Any = STATEMENTS[name]
    for seed in range(3):
        with jax.enable_x64(True):
            free = statement.adversary.start(key=jax.random.key(seed))
            network, estimate = statement.adversary.play(free)
        assert estimate is None
        assert isinstance(network, Network)
        inputs, *matrices = free
        played = [network.inputs, *network.weights, *network.compressed]
        for mine, theirs in zip(played, [inputs, *matrices], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert 0 <= replay(statement, free) <= 1
    assert statement.sharp


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": ()}, "must hold one matrix per layer, and at least one; got 0 and 2"),
        ({"weights": (np.eye(3),)}, "got 1 and 2"),
        ({"weights": (np.eye(3), np.eye(4))}, r"`weights\[1\]` has 4 inputs"),
        ({"compressed": (np.eye(3), np.ones((3, 2)))}, r"`compressed\[1\]` has 2 outputs"),
        ({"compressed": (np.ones((2, 3)), np.eye(3))}, r"`compressed\[0\]` has 2 inputs"),
        ({"inputs": np.ones((5, 2))}, r"`weights\[0\]` has 3 inputs"),
        ({"inputs": np.full((5, 3), np.nan)}, "`inputs` has 15 non-finite entries"),
        ({"weights": (np.eye(3, dtype=int), np.eye(3))}, r"`weights\[0\]` must be floating"),
        ({"rank": 4}, "`rank` must be an integer from 1 to 3"),
    ],
)
def test_refusals(changes, message):
    sound: dict[str, Any] = {
        "weights": (np.eye(3), np.eye(3)),
        "compressed": (np.eye(3), np.eye(3)),
        "inputs": np.ones((5, 3)),
        "rank": 1,
    }
    with pytest.raises(ValueError, match=message):
        Network(**(sound | changes))


def test_statements_refuse_other_instances():
    for statement in STATEMENTS.values():
        with pytest.raises(ValueError, match="`instance` must be a `Network`; got ndarray"):
            statement.bound(np.eye(3))
