"""Laws of observing: moments of what each weight multiplies, whatever the way to the product."""

import functools
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from lowrank_theory.approximations import LowRank
from lowrank_theory.networks import observe, replace
from routes import MODELS, OUTPUTS, ROUTES, SAMPLES, normal

pytestmark = pytest.mark.thinned(4)


def assert_moments(calibrations: Any, rows: Any):
    """One calibration per slice has the moments of its rows."""
    calibrations = calibrations if isinstance(calibrations, tuple) else (calibrations,)
    slices = np.asarray(rows, np.float64)
    slices = slices if slices.ndim == 3 else slices[None]
    for calibration, x in zip(calibrations, slices, strict=True):
        assert int(calibration.count) == len(x)
        scale = float(np.sum(x**2))
        np.testing.assert_allclose(calibration.gram(), x.T @ x, rtol=0, atol=1e-6 * scale)
        np.testing.assert_allclose(calibration.mean, x.mean(0), rtol=0, atol=1e-6 * scale**0.5)


def leaf(tree, path):
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}[path]


@functools.cache
def observed(name):
    model = MODELS[name]()
    return model, observe(model.function, model.parameters, [model.batch])


@pytest.mark.parametrize("name", MODELS)
def test_moments_are_those_of_what_is_multiplied(name):
    model, observation = observed(name)
    rows = model.rows(model.parameters, model.batch)
    assert set(observation) == set(rows)
    for path, seen in rows.items():
        assert_moments(observation[path], seen)
    assert set(observation.not_followed) == ({"['bias']"} if name == "attention" else set())


@pytest.mark.parametrize("name", MODELS)
def test_a_view_can_be_undone(name):
    model, observation = observed(name)
    for path, view in observation.views.items():
        stored = leaf(model.parameters, path)
        matrix = view.matrix(stored)
        assert matrix.shape == view.matrix_shape
        np.testing.assert_array_equal(view.leaf(matrix), stored)


def test_the_view_is_the_matrix_that_multiplies():
    _, observation = observed("routes")
    for name, (_, stored) in ROUTES.items():
        matrix = normal(3, 6, OUTPUTS)
        view = observation.views[f"['{name}']"]
        np.testing.assert_array_equal(view.matrix(stored(matrix)), matrix)


def test_a_stack_is_in_the_order_of_its_slices():
    views = observed("stacked layers")[1].views
    assert views["['layers']['down']"].matrix_shape == (3, 6, 5)
    view = observed("convolutions")[1].views["['image']"]
    kernel = normal(0, 3, 2, 2, 10)
    np.testing.assert_array_equal(view.matrix(kernel)[1], kernel[..., 5:].reshape(12, 5))
    assert view.convolution is not None
    assert (view.convolution.groups, view.convolution.window) == (2, (3, 2))


def test_shared_inputs_are_accumulated_once():
    _, observation = observed("attention")
    assert observation["['q']"] is observation["['k']"] is observation["['v']"]
    assert observation["['q']"] is not observation["['o']"]
    assert observation.shared == (("['k']", "['q']", "['v']"),)


def test_what_is_repeated_in_half_precision_is_still_shared():
    def function(p, x):
        return [x.astype(jnp.bfloat16).T.T @ w.astype(jnp.bfloat16) for w in p]

    observation = observe(function, [normal(0, 6, 3), normal(1, 6, 2)], [normal(2, 5, 6)])
    assert observation.shared == (("[0]", "[1]"),)


def test_batches_are_one_large_batch():
    model, _ = observed("attention")
    x, traced = normal(5, 7, 3, 6), []

    def function(p, x):
        traced.append(x.shape)
        return model.function(p, x)

    parts = observe(function, model.parameters, iter([x[:2], x[2:4], x[4:]]))
    assert traced == [(2, 3, 6), (3, 3, 6)]
    whole = observe(model.function, model.parameters, [x])
    for path in whole:
        part, full = parts.slices(path)[0], whole.slices(path)[0]
        np.testing.assert_allclose(part.gram(), full.gram(), rtol=1e-5, atol=1e-4)
    assert len(parts.shared[0]) == 3


def test_a_tied_weight_counts_all_its_uses():
    def function(w, x):
        return jax.nn.relu(x @ w) @ w + w[0]

    w, x = normal(0, 6, 6), normal(1, 5, 6)
    observation = observe(function, w, [x])
    assert_moments(observation[""], np.concatenate([x, np.maximum(x @ w, 0)]))
    assert observation.remarks[""] == (
        "used 2 times, all of them counted",
        "it is cut into parts",
    )
    assert "used 2 times" in repr(observation)


def test_a_use_from_the_other_side_is_said_but_not_counted():
    w, x = normal(0, 6, 4), normal(1, 5, 6)
    observation = observe(lambda p, x: x @ p["w"] @ p["w"].T, {"w": w}, [x])
    assert_moments(observation["['w']"], x)
    (remark,) = observation.remarks["['w']"]
    assert "other axes" in remark


def test_a_branch_counts_when_it_is_taken():
    def function(p, x):
        return lax.cond(jnp.sum(x) > 0, lambda: x @ p["a"], lambda: x @ p["b"])

    parameters = {"a": normal(0, 6, 3), "b": normal(1, 6, 3)}
    x = np.abs(normal(2, 5, 6))
    observation = observe(function, parameters, [x, -2 * x, 3 * x])
    assert_moments(observation["['a']"], np.concatenate([x, 3 * x]))
    assert_moments(observation["['b']"], -2 * x)
    never = observe(function, parameters, [x])
    assert list(never) == ["['a']"]
    assert "no batch took the branch" in never.not_followed["['b']"][0]


def test_a_branch_inside_a_loop_counts_by_turn():
    def function(p, x):
        def turn(carry, row):
            return carry, lax.cond(row[0] > 0, lambda: row @ p["a"], lambda: row @ p["b"])

        return lax.scan(turn, 0.0, x)

    x = normal(2, 9, 6)
    observation = observe(function, {"a": normal(0, 6, 3), "b": normal(1, 6, 3)}, [x])
    assert_moments(observation["['a']"], x[x[:, 0] > 0])
    assert_moments(observation["['b']"], x[x[:, 0] <= 0])


NOT_FOLLOWED = {
    "gather": (lambda w, x: w[jnp.argmax(x, 1)], "looked up"),
    "add": (lambda w, x: x[0, 0] + w, "added"),
    "mul": (lambda w, x: x[0, 0] * w, "multiplies entry by entry"),
    "outer": (lambda w, x: jnp.einsum("i,ab->iab", x[0], w), "without a sum"),
    "weights": (lambda w, x: w @ w.T, "product with another weight"),
    "while": (
        lambda w, x: lax.while_loop(lambda r: jnp.sum(r) < 9, lambda r: r @ (w @ w.T), x),
        "product with another weight",
    ),
    "turns": (
        lambda w, x: lax.while_loop(
            lambda r: jnp.sum(r) < 9, lambda r: r.at[:, 0].add((r @ w)[:, 0]), x
        ),
        "while` loop, whose number of turns",
    ),
    "integers": (lambda w, x: x @ w.astype(int), "convert_element_type"),
    "broadcast": (lambda w, x: jnp.broadcast_to(w, (2, *w.shape)) + x[0, 0], "broadcast_in_dim"),
    "returned": (lambda w, x: w.T, "returns it"),
    "changed": (lambda w, x: lax.scan(lambda w, row: (2 * w, row), w, x)[0], "a loop changes it"),
    "cut": (lambda w, x: x @ jnp.split(w, 2, 1)[0], "cut into parts"),
    "sorted": (lambda w, x: jnp.sort(w), "used by `sort`"),
    "unused": (lambda w, x: x, "not used"),
}


def test_what_cannot_be_followed_is_said():
    def function(p, x):
        return [x @ p["weight"], *(use(p[name], x) for name, (use, _) in NOT_FOLLOWED.items())]

    weights = {name: normal(0, 6, 4) for name in NOT_FOLLOWED}
    parameters = {"weight": normal(1, 6, 3), "epoch": np.array(3), **weights}
    observation = observe(function, parameters, [normal(2, SAMPLES, 6)])
    assert list(observation) == ["['weight']"]
    assert set(observation.not_followed) == {f"['{name}']" for name in (*NOT_FOLLOWED, "epoch")}
    assert "int64" in observation.not_followed["['epoch']"][0]
    for name, (_, reason) in NOT_FOLLOWED.items():
        assert any(reason in said for said in observation.not_followed[f"['{name}']"]), name
    assert "['unused']: it is not used" in repr(observation)
    with pytest.raises(KeyError, match="was not followed: its rows are looked up"):
        _ = observation["['gather']"]


def test_the_compressed_network_is_heard_beside_the_other():
    def function(p, x):
        hidden = jnp.tanh(x @ p["first"])
        return hidden @ p["second"], hidden @ p["third"]

    first, x = LowRank(normal(0, 6, 2), normal(1, 2, 5)), normal(2, 7, 6)
    parameters = {"first": normal(3, 6, 5), "second": normal(4, 5, 3), "third": normal(5, 5, 3)}
    compressed = replace(function, parameters, {"['first']": first})
    observation = observe(
        function,
        parameters,
        [x[:3], x[3:]],
        select=lambda p: "first" not in p,
        compressed=compressed,
    )
    seen, met = np.tanh(x @ parameters["first"]), np.tanh(x @ first.left @ first.right)
    (calibration,) = observation.slices("['second']")
    assert calibration is observation["['third']"]
    np.testing.assert_allclose(calibration.gram(), seen.T @ seen, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(calibration.cross_gram(), met.T @ seen, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(calibration.compressed_gram(), met.T @ met, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"does not multiply by \['first'\] as `function` does"):
        observe(function, parameters, [x], compressed=compressed)


def test_only_what_is_selected_is_observed():
    model, _ = observed("attention")
    seen = observe(model.function, model.parameters, [model.batch], select=lambda p: p == "['o']")
    assert list(seen) == ["['o']"]
    assert seen.not_followed == {}


def test_integers_are_counted_as_numbers():
    x = np.arange(12).reshape(4, 3)
    observation = observe(lambda p, x: x @ p[0].astype(float), [normal(0, 3, 2)], [x])
    assert_moments(observation["[0]"], x)


def test_equinox():
    network = eqx.nn.MLP(6, 3, 5, 1, key=jax.random.key(0))
    x = normal(1, 7, 6)
    observation = observe(lambda network, x: jax.vmap(network)(x), network, [x])
    assert set(observation) == {".layers[0].weight", ".layers[1].weight"}
    assert observation.views[".layers[0].weight"].matrix_shape == (6, 5)
    assert_moments(observation[".layers[0].weight"], x)
    hidden = jax.nn.relu(x @ network.layers[0].weight.T + network.layers[0].bias)
    assert_moments(observation[".layers[1].weight"], hidden)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=10)(x)
        return nn.Conv(8, (3,), feature_group_count=2)(nn.Embed(9, 6)(jnp.arange(3)) + x)


def test_linen():
    x = normal(1, 2, 3, 6)
    parameters = Linen().init(jax.random.key(0), x)
    observation = observe(Linen().apply, parameters, [x])
    prefix = "['params']['MultiHeadDotProductAttention_0']"
    heads = [f"{prefix}['{name}']['kernel']" for name in ("key", "query", "value")]
    assert observation.shared == (tuple(heads),)
    assert_moments(observation[heads[0]], x.reshape(-1, 6))
    assert observation.views[f"{prefix}['out']['kernel']"].matrix_shape == (10, 6)
    assert observation.views["['params']['Conv_0']['kernel']"].matrix_shape == (2, 9, 4)
    assert len(observation) == 5
    assert "looked up" in observation.not_followed["['params']['Embed_0']['embedding']"][0]


def test_nnx():
    model = nnx.Sequential(
        nnx.Linear(6, 5, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(5, 3, rngs=nnx.Rngs(1))
    )
    definition, state = nnx.split(model)
    x = normal(1, 7, 6)
    observation = observe(lambda state, x: nnx.merge(definition, state)(x), state, [x])
    first, second = (path for path in observation)
    assert_moments(observation[first], x)
    assert_moments(observation[second], jnp.tanh(model.layers[0](x)))


# --- bad input -----------------------------------------------------------------------------------


def layer(w, x):
    return x @ w


W, X = normal(0, 6, 4), normal(1, 5, 6)


@pytest.mark.parametrize(
    ("function", "parameters", "batches", "message"),
    [
        (layer, W, [], "`batches` is empty: give at least one batch"),
        (layer, W, [np.where(X > 1, np.nan, X)], r"`batches\[0\]` has entries that are NaN"),
        (layer, W, [X, {"x": np.full((5, 6), np.nan)}], r"`batches\[1\]\['x'\]` has entries"),
        (layer, W, [np.where(X > 1, np.inf, X)], r"In `batches\[0\]`, what .* multiplies: .*infin"),
        (lambda w, x: jnp.log(x) @ w, W, [-np.abs(X)], r"In `batches\[0\]`, what .* multiplies"),
        (lambda w, x: np.asarray(x) @ w, W, [X], "cannot be traced by JAX on a batch of .5, 6."),
        (layer, W, [X, X[:, 1:]], r"batch of \(5, 5\) \(batches before it, of \(5, 6\), could\)"),
        (lambda w, x: x + w[0], W, [X[:, :4]], "No leaf of `parameters` was followed .* cut into"),
        (lambda w, x: x, {}, [X], "`parameters` has no floating-point array with an axis.*: none"),
        (layer, {"w": 3}, [X], r"has no floating-point array .*: \['w'\]"),
    ],
)
def test_says_what_is_wrong(function, parameters, batches, message):
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(ValueError, match=message):
        observe(function, parameters, batches)


def test_says_when_nothing_is_selected():
    with pytest.raises(ValueError, match=r"whose path `select` accepts. .*: \['w'\]"):
        observe(layer, {"w": W}, [X], select=lambda path: False)
