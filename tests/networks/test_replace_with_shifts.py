"""Laws of replacing by a matrix and a shift, which acts as the bias of a layer."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from kinds import KINDS
from lowrank_theory.approximations import Affine, LowRank
from lowrank_theory.networks import observe, replace
from on_factors import assert_close, forms_matrix, model_on_factors, named, with_products
from routes import OUTPUTS, ROUTES, SAMPLES, factors_of, normal

pytestmark = [pytest.mark.thinned(4), pytest.mark.usefixtures("full_precision")]

W, X = {"w": normal(0, 6, 4)}, normal(1, 5, 6)
FACTORS = LowRank(normal(2, 6, 2), normal(3, 2, 4))


def affine(views, rank=2):
    """Random factors and shifts for each view: quarters, whose products half precision holds."""
    factors = {path: factors_of(view, k, rank) for k, (path, view) in enumerate(views.items())}
    maps = {
        path: Affine(given, np.round(normal(50 + k, *given.shape[:-2], given.shape[-1])))
        for k, (path, given) in enumerate(factors.items())
    }
    return jax.tree.map(lambda leaf: leaf / 4, maps)


def shifted(name):
    """A model with a shift after each product: the function, what it runs on, and the maps by the
    last part of their paths, in float64 for NumPy.
    """
    model, _, _, _, views = model_on_factors(name)
    factors = affine(views)
    function, parameters = replace(model.function, model.parameters, factors)
    exact = {path.split("'")[-2]: given for path, given in factors.items()}
    return model, function, parameters, jax.tree.map(lambda leaf: leaf.astype(float), exact)


def by_hand(x, given, *index):
    """The product and the shift, of one slice of a stack."""
    left, right = given.approximation.left, given.approximation.right
    return x @ left[index] @ right[index] + given.shift[index]


def test_a_shift_follows_the_product_on_every_route():
    model, function, parameters, maps = shifted("routes")
    afterwards = {"jit": lambda y: np.maximum(y, 0), "checkpoint": np.tanh}
    outputs = jax.jit(function)(parameters, model.batch)
    assert set(outputs) == set(ROUTES)
    for name, output in outputs.items():
        product = by_hand(model.batch.astype(float), maps[name])
        desired = afterwards.get(name, np.asarray)(product).astype(np.float32)
        actual = output.T if output.shape == (OUTPUTS, SAMPLES) else output
        assert_close(actual, np.broadcast_to(desired, actual.shape))
    assert not forms_matrix(function, parameters, model.batch)


def test_a_shift_follows_every_patch_of_every_group():
    model, function, parameters, maps = shifted("convolutions")
    rows = model.rows(model.parameters, model.batch)["['image']"].astype(float)
    image = np.stack([by_hand(rows[group], maps["image"], group) for group in range(2)], 1)
    line = np.maximum(image.reshape(2, -1, 10), 0).swapaxes(1, 2)
    windows = np.stack([line[:, :, t : t + 5 : 2] for t in range(line.shape[2] - 4)], 1)
    out = by_hand(windows.reshape(2, -1, 30), maps["line"]).swapaxes(1, 2)
    desired = jax.tree.map(lambda leaf: leaf.astype(np.float32), {"line": line, "out": out})
    assert_close(jax.jit(function)(parameters, model.batch), desired)


def test_a_shift_of_each_slice_follows_its_loop():
    model, function, parameters, maps = shifted("stacked layers")
    x = model.batch.astype(float)
    for layer in range(3):
        for _ in range(2):
            x = np.tanh(by_hand(x, maps["inner"], layer))
        experts = [by_hand(np.tanh(k * x), maps["experts"], layer, k - 1) for k in (1, 2)]
        x = by_hand(by_hand(sum(experts), maps["down"], layer), maps["up"], layer)
    assert_close(jax.jit(function)(parameters, model.batch), {"out": x.astype(np.float32)})


def test_a_shift_follows_a_weight_whose_axes_were_sorted_anew():
    """Stored as outputs, two axes of a batch, outputs, inputs; the weight comes first."""

    def function(w, x):
        return lax.dot_general(w.transpose(3, 2, 1, 0, 4), x, (((4,), (3,)), ((1, 2), (0, 1))))

    w, x = normal(0, 2, 3, 2, 4, 5), normal(1, 2, 3, 7, 5)
    factors = LowRank(normal(2, 3, 2, 5, 2), normal(3, 3, 2, 2, 8))
    given = Affine(factors, normal(4, 3, 2, 8))
    smaller, parameters = replace(function, w, {"": given})
    desired = np.zeros((2, 3, 4, 2, 7), np.float32)
    for k in np.ndindex(2, 3):
        desired[k] = by_hand(x[k], given, *k[::-1]).T.reshape(2, 4, 7).swapaxes(0, 1)
    assert_close(smaller(parameters, x), jnp.asarray(desired))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=10)(x)
        return nn.Conv(8, (3,), feature_group_count=2)(x)


def linen():
    x = normal(1, 2, 3, 6)
    return Linen().apply, Linen().init(jax.random.key(0), x), x, 5


def sequential_nnx():
    layers = nnx.Linear(6, 5, rngs=nnx.Rngs(0)), nnx.Linear(5, 3, rngs=nnx.Rngs(1))
    definition, state = nnx.split(nnx.Sequential(layers[0], jnp.tanh, layers[1]))
    return lambda state, x: nnx.merge(definition, state)(x), state, normal(1, 7, 6), 2


def scanned_equinox():
    keys = jax.random.split(jax.random.key(0), 3)
    layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(6, 6, key=key))(keys)

    def function(layers, x):
        def layer(x, linear):
            return jnp.tanh(jax.vmap(linear)(x)), None

        return lax.scan(jax.checkpoint(layer), x, layers)[0]

    return function, layers, normal(1, 7, 6), 1


@pytest.mark.parametrize("library", [linen, sequential_nnx, scanned_equinox])
def test_a_shift_acts_as_the_bias_of_a_layer_and_is_trained_as_one(library):
    function, parameters, x, count = library()
    views = observe(function, parameters, [x]).views
    assert len(views) == count
    factors = affine(views)
    by_bias = {path.replace("kernel", "bias").replace("weight", "bias"): path for path in views}

    def with_shift(path, leaf):
        weight = by_bias.get(jax.tree_util.keystr(path))
        return leaf if weight is None else leaf + factors[weight].shift.reshape(leaf.shape)

    dense = with_products(
        parameters, {p: given.approximation for p, given in factors.items()}, views
    )
    dense = jax.tree_util.tree_map_with_path(with_shift, dense)
    smaller, parameters = replace(function, parameters, factors)

    def loss(run, parameters):
        out = run(parameters, x)
        return jnp.sum(jnp.sin(out)), out

    by_map, actual = jax.jit(jax.grad(functools.partial(loss, smaller), has_aux=True))(parameters)
    by_entry, desired = jax.jit(jax.grad(functools.partial(loss, function), has_aux=True))(dense)
    assert_close(actual, desired)
    by_map, by_entry = named(by_map), named(by_entry)
    assert set(by_bias) < set(by_entry)
    # All at once: that of the keys of attention is zero, but for rounding.
    shifts, biases = (
        jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])
        for leaves in ([by_map[w].shift for w in by_bias.values()], [by_entry[b] for b in by_bias])
    )
    assert_close(shifts, biases, 2000)


def test_vmap_over_maps_is_a_loop():
    def function(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    x, p = normal(2, 7, 6), {"a": normal(0, 6, 5), "b": normal(1, 5, 4)}
    function, parameters = replace(function, p, affine(observe(function, p, [x]).views))
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2]), parameters)
    for k, out in enumerate(jax.jit(jax.vmap(function, (0, None)))(many, x)):
        assert_close(out, function(jax.tree.map(lambda leaf, k=k: leaf[k], many), x))


def test_a_shift_has_no_place_where_a_weight_is_transposed():
    given = Affine(FACTORS, normal(4, 4))
    function, parameters = replace(lambda p, x: x @ p["w"] @ p["w"].T, W, {"['w']": given})
    message = r"\['w'\] is also multiplied transposed, where a shift .* without a shift"
    with pytest.raises(ValueError, match=message):
        function(parameters, X)


def test_a_map_knows_its_size():
    given = Affine(LowRank(normal(0, 3, 6, 2), normal(1, 3, 2, 4)), normal(2, 3, 4))
    assert (given.shape, given.dtype) == ((3, 6, 4), np.float32)
    assert given.storage.numbers == sum(leaf.size for leaf in jax.tree.leaves(given)) == 72
    assert given.storage.bytes == 288
    assert given.factors is given.approximation
    rounded = Affine(KINDS["4 bits"](np.random.default_rng(0), (), 6, 4), normal(0, 4))
    with pytest.raises(ValueError, match="a `Quantised`, which has no factors"):
        print(rounded.factors)
