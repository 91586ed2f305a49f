"""Laws of the survey: where each weight multiplies, in order, without computing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowrank_theory.networks import observe, survey
from routes import MODELS, normal


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("name", MODELS)
def test_counts_the_rows_that_are_multiplied(name):
    model = MODELS[name]()
    found = survey(model.function, model.parameters, model.batch)
    rows = model.rows(model.parameters, model.batch)
    assert set(found) == set(rows)
    for path, seen in rows.items():
        site, met = found[path], np.asarray(seen)
        assert site.rows == met.shape[-2]
        assert site.parameters == np.prod(site.view.shape)
        assert site.multiply_adds == met.size * site.view.matrix_shape[-1]


@pytest.mark.parametrize("name", MODELS)
def test_shapes_are_enough(name):
    model = MODELS[name]()
    arrays = survey(model.function, model.parameters, model.batch)
    shapes = survey(model.function, abstract(model.parameters), abstract(model.batch))
    assert list(arrays.items()) == list(shapes.items())
    assert (arrays.remarks, arrays.not_followed) == (shapes.remarks, shapes.not_followed)


def test_agrees_with_what_is_observed():
    model = MODELS["attention"]()
    found = survey(model.function, model.parameters, model.batch)
    seen = observe(model.function, model.parameters, [model.batch])
    assert {path: site.view for path, site in found.items()} == seen.views
    assert found.not_followed == seen.not_followed


def test_is_in_the_order_of_execution():
    model = MODELS["attention"]()
    found = survey(model.function, model.parameters, model.batch)
    assert list(found) == ["['q']", "['k']", "['v']", "['o']"]
    assert [site.group for site in found.values()] == [0, 0, 0, 1]


def test_weights_of_one_input_stand_together():
    def function(p, x):
        hidden = jnp.tanh(x @ p["first"])
        return hidden @ p["second"] + x @ p["around"]

    parameters = {"around": normal(0, 6, 3), "first": normal(1, 6, 4), "second": normal(2, 4, 3)}
    found = survey(function, parameters, normal(3, 5, 6))
    assert list(found) == ["['first']", "['around']", "['second']"]
    assert found["['first']"].group == found["['around']"].group != found["['second']"].group


def test_a_weight_that_is_used_twice_meets_the_rows_of_both_uses():
    def function(p, x):
        return jnp.tanh(x @ p["twice"]) @ p["twice"] @ p["last"]

    parameters = {"last": normal(0, 6, 3), "twice": normal(1, 6, 6)}
    found = survey(function, parameters, normal(2, 5, 6))
    assert [(path, site.rows) for path, site in found.items()] == [
        ("['twice']", 10),
        ("['last']", 5),
    ]
    assert found["['twice']"].multiply_adds == 10 * 6 * 6


def test_computes_nothing():
    def never(_):
        raise AssertionError

    def function(p, x):
        return jax.pure_callback(never, jax.ShapeDtypeStruct((5, 6), jnp.float32), x) @ p

    assert survey(function, normal(0, 6, 3), normal(1, 5, 6))[""].rows == 5


def test_other_uses_are_said():
    def function(p, x):
        hidden = lax.cond(x[0, 0] > 0, lambda: x @ p["a"], lambda: x[:, :3])
        return hidden @ p["b"] + p["b"][0], p["c"][jnp.argmax(x, 1)]

    parameters = {"a": normal(0, 6, 3), "b": normal(1, 3, 4), "c": normal(2, 6, 2)}
    found = survey(function, parameters, normal(3, 5, 6))
    assert found["['a']"].rows == 5  # as if the branch were taken
    assert found.remarks == {"['b']": ("it is cut into parts",)}
    assert "looked up" in found.not_followed["['c']"][0]
    assert "['a']: 6 x 3, 5 rows, input 0" in repr(found)
    assert "it is cut into parts" in repr(found)
    with pytest.raises(KeyError, match="was not followed: its rows are looked up"):
        _ = found["['c']"]


W, X = normal(0, 6, 4), normal(1, 5, 6)


@pytest.mark.parametrize(
    ("function", "parameters", "message"),
    [
        (lambda w, x: np.asarray(x) @ w, W, r"cannot be traced by JAX on a batch of \(5, 6\)"),
        (lambda w, x: x[:, 1:] @ w, W, r"cannot be traced by JAX on a batch of \(5, 6\)"),
        (lambda w, x: x[:, :4] + w[0], W, "No leaf of `parameters` was followed .* cut into"),
        (lambda w, x: x, {"n": 3}, "`parameters` has no floating-point array with an axis"),
    ],
)
def test_says_what_is_wrong(function, parameters, message):
    with pytest.raises(ValueError, match=message):
        survey(function, parameters, X)
