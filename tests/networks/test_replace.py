"""Laws of replacing: the function runs on factors as on their product, which it never forms."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from kinds import KINDS, MATRICES
from lowrank_theory.approximations import Affine, LowRank
from lowrank_theory.networks import observe, replace
from on_factors import assert_close, forms_matrix, model_on_factors, named
from routes import INPUTS, MODELS, OUTPUTS, ROUTES, SAMPLES, normal

pytestmark = [pytest.mark.thinned(7), pytest.mark.usefixtures("full_precision")]


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_function_of_the_products_and_so_does_its_gradient(name):
    model, function, parameters, dense, views = model_on_factors(name)
    assert set(views) == set(model.rows(model.parameters, model.batch))

    def loss(run, parameters):
        results = run(parameters, model.batch)
        smooth = {k: v for k, v in results.items() if k != "half precision"}
        return sum(jnp.sum(jnp.sin(out)) for out in smooth.values()), results

    by_factor, actual = jax.jit(jax.grad(functools.partial(loss, function), has_aux=True))(
        parameters
    )
    by_entry, desired = jax.jit(jax.grad(functools.partial(loss, model.function), has_aux=True))(
        dense
    )
    assert_close(actual, desired)
    assert set(named(by_factor)) == set(named(by_entry))
    for path, gradient in named(by_factor).items():
        entry, factors = named(by_entry)[path], named(parameters)[path]
        if not isinstance(factors, LowRank):
            assert_close(gradient, entry, 2000)
            continue
        matrix = views[path].matrix(entry)
        assert_close(gradient.left, matrix @ factors.right.swapaxes(-1, -2), 2000)
        assert_close(gradient.right, factors.left.swapaxes(-1, -2) @ matrix, 2000)


@functools.cache
def views_of(name):
    model = MODELS[name]()
    return model, observe(model.function, model.parameters, [model.batch]).views


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", MATRICES)
def test_every_kind_of_matrix_takes_every_route(kind, name):
    (model, views), random = views_of(name), np.random.default_rng(0)
    given = {}
    for path, view in views.items():
        *stack, inputs, outputs = view.matrix_shape
        given[path] = KINDS[kind](random, tuple(stack), inputs, outputs)

    def dense(path, leaf):
        found = given.get(jax.tree_util.keystr(path))
        if found is None:
            return leaf
        view = views[jax.tree_util.keystr(path)]
        return jnp.asarray(view.leaf(np.asarray(found.materialise())))

    function, smaller = replace(model.function, model.parameters, given)
    actual = jax.jit(function)(smaller, model.batch)
    desired = model.function(jax.tree_util.tree_map_with_path(dense, model.parameters), model.batch)
    rounded = "half precision"  # where a matrix is rounded part by part
    assert_close([actual.pop(rounded, ())], [desired.pop(rounded, ())], 2**18)
    assert_close(actual, desired, 1000)


TABLE_ROUTES = {
    "matmul": (lambda w, x: x @ w, lambda w: w),
    "stored transposed": (lambda w, x: x @ w.T, lambda w: w.T),
    "vmap": (lambda w, x: jax.vmap(lambda row: w @ row)(x), lambda w: w.T),
    "loop": (lambda w, x: lax.map(lambda row: row @ w, x), lambda w: w),
    "einsum": (lambda w, x: jnp.einsum("oi,si->os", w, x).T, lambda w: w.T),
    "two input axes": (
        lambda w, x: jnp.einsum("sab,aob->so", x.reshape(SAMPLES, 2, 3), w),
        lambda w: w.reshape(2, 3, OUTPUTS).transpose(0, 2, 1),
    ),
}


@pytest.mark.parametrize("route", TABLE_ROUTES)
@pytest.mark.parametrize("kind", ["table", "table of bytes", "table with a shift"])
def test_a_table_takes_the_rows_of_a_product(kind, route):
    function, stored = TABLE_ROUTES[route]
    given = KINDS[kind](np.random.default_rng(0), (), INPUTS, OUTPUTS)
    x = 3 * normal(1, SAMPLES, INPUTS)
    run, smaller = replace(function, stored(normal(0, INPUTS, OUTPUTS)), {"": given})
    np.testing.assert_array_equal(jax.jit(run)(smaller, x), given.apply(x))


@pytest.mark.parametrize(
    "kind", ["table", "table of bytes", "low rank with a shift", "table with a shift"]
)
def test_a_table_takes_the_patches_of_a_convolution(kind):
    """Two groups, strides, padding and dilation: patches by NumPy."""
    x, kernel = 3 * normal(0, 2, 7, 6, 4), normal(1, 3, 2, 2, 6)

    def function(p, x):
        return lax.conv_general_dilated(
            x, p, (2, 1), ((1, 0), (0, 2)), rhs_dilation=(1, 2), feature_group_count=2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    given = KINDS[kind](np.random.default_rng(0), (2,), 12, 3)
    run, smaller = replace(function, kernel, {"": given})
    padded = np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)))
    found = np.asarray(jax.jit(run)(smaller, x))
    for image, row, column in np.ndindex(found.shape[:3]):
        patch = padded[image, 2 * row : 2 * row + 3, column : column + 3 : 2]
        sides = np.stack([patch[..., :2].reshape(1, -1), patch[..., 2:].reshape(1, -1)])
        wanted = np.asarray(given.apply(sides)).ravel()
        np.testing.assert_allclose(found[image, row, column], wanted, rtol=1e-5, atol=1e-4)


def test_a_table_is_refused_where_it_is_multiplied_transposed():
    given = KINDS["table"](np.random.default_rng(0), (), 6, 4)
    run, smaller = replace(lambda p, x: x @ p @ p.T, normal(0, 6, 4), {"": given})
    with pytest.raises(ValueError, match="no table is a matrix"):
        run(smaller, normal(1, 5, 6))


@pytest.mark.parametrize("route", ROUTES)
def test_never_forms_the_matrix(route):
    function, stored = ROUTES[route]
    w, x = normal(0, INPUTS, OUTPUTS), normal(1, SAMPLES, INPUTS)
    factors = LowRank(normal(2, INPUTS, 2), normal(3, 2, OUTPUTS))
    smaller, parameters = replace(function, stored(w), {"": factors})
    assert not forms_matrix(smaller, parameters, x)
    assert forms_matrix(lambda p, x: function(stored(p.left @ p.right), x), factors, x)
    if route not in ("branch", "carried"):  # whose derivatives exist, but cost what they cost

        def loss(parameters):
            return sum(jnp.sum(out**2) for out in jax.tree.leaves(smaller(parameters, x)))

        assert not forms_matrix(jax.grad(loss), parameters)


def test_parameters_are_a_tree_of_factors():
    model, _, parameters, _, _ = model_on_factors("attention")
    assert isinstance(parameters["q"], LowRank)
    assert parameters["q"].rank == 2
    assert parameters["bias"] is model.parameters["bias"]
    assert len(jax.tree.leaves(parameters)) == 9


def test_vmap_is_a_loop():
    model, function, parameters, _, _ = model_on_factors("convolutions")
    batches = jnp.stack([model.batch, 2 * model.batch])
    many = jax.jit(jax.vmap(function, (None, 0)))(parameters, batches)
    one = jax.jit(function)(parameters, batches[1])
    assert_close(jax.tree.map(lambda leaf: leaf[1], many), one)


def test_more_can_be_replaced():
    def function(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    parameters, x = {"a": normal(0, 6, 5), "b": normal(1, 5, 4)}, normal(2, 7, 6)
    a, b = LowRank(normal(3, 6, 2), normal(4, 2, 5)), LowRank(normal(5, 5, 2), normal(6, 2, 4))
    together, both = replace(function, parameters, {"['a']": a, "['b']": b})
    first, one = replace(function, parameters, {"['a']": a})
    second, two = replace(first, one, {"['b']": b})
    assert jax.tree.structure(two) == jax.tree.structure(both)
    assert_close(second(two, x), together(both, x))


def test_numpy_doubles_are_what_jax_makes_of_them():
    w, x = normal(0, 6, 4).astype(float), normal(1, 5, 6).astype(float)
    factors = LowRank(normal(2, 6, 2), normal(3, 2, 4))
    (seen,) = observe(lambda w, x: x @ w, w, [x]).slices("")
    assert int(seen.count) == 5
    function, parameters = replace(lambda w, x: x @ w, w, {"": factors})
    assert_close(
        function(parameters, x), jnp.asarray(x @ factors.left @ factors.right, jnp.float32)
    )


def test_a_checkpoint_remains_one():
    function = jax.checkpoint(lambda w, x: jnp.tanh(x @ w))
    factors = LowRank(normal(0, 6, 2), normal(1, 2, 4))
    smaller, parameters = replace(function, normal(2, 6, 4), {"": factors})
    assert "remat" in str(jax.make_jaxpr(smaller)(parameters, normal(3, 5, 6)))


def test_a_while_loop_runs_on_factors():
    def function(w, x):
        return lax.while_loop(lambda x: jnp.sum(x**2) > 1, lambda x: 0.01 * x @ w, x)

    left, right, x = normal(0, 6, 2), normal(1, 2, 6), normal(2, 5, 6)
    smaller, parameters = replace(function, left @ right, {"": LowRank(left, right)})
    assert_close(smaller(parameters, x), function(left @ right, x))


def test_a_tied_weight_multiplies_from_both_sides():
    def function(w, x):
        return jax.nn.relu(x @ w) @ w.T @ w

    left, right, x = normal(0, 6, 2), normal(1, 2, 4), normal(2, 5, 6)
    smaller, parameters = replace(function, left @ right, {"": LowRank(left, right)})
    assert_close(smaller(parameters, x), function(left @ right, x))


def test_equinox_and_optax():
    """Fine-tuning: the factors of a network learn what the dense one does."""
    network = eqx.nn.MLP(6, 3, 8, 1, key=jax.random.key(0))
    x = normal(1, 30, 6)
    desired = jax.vmap(network)(x)
    factors = {
        ".layers[0].weight": LowRank(0.3 * normal(2, 6, 4), 0.3 * normal(3, 4, 8)),
        ".layers[1].weight": LowRank(0.3 * normal(4, 8, 2), 0.3 * normal(5, 2, 3)),
    }
    function, parameters = replace(lambda network, x: jax.vmap(network)(x), network, factors)
    dense = eqx.tree_at(
        lambda n: [layer.weight for layer in n.layers],
        network,
        [(w.left @ w.right).T for w in factors.values()],
    )
    assert_close(function(parameters, x), jax.vmap(dense)(x))

    learnt, fixed = eqx.partition(parameters, eqx.is_array)
    optimiser = optax.adam(0.03)

    def loss(learnt):
        return jnp.mean((function(eqx.combine(learnt, fixed), x) - desired) ** 2)

    def step(carry, _):
        learnt, state = carry
        value, gradient = jax.value_and_grad(loss)(learnt)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(learnt, updates), state), value

    _, losses = jax.jit(lambda c: lax.scan(step, c, length=60))((learnt, optimiser.init(learnt)))
    assert losses[-1] < 0.2 * losses[0]


# --- bad input -----------------------------------------------------------------------------------


def layer(p, x):
    return x @ p["w"]


W, X = {"w": normal(0, 6, 4), "epoch": 3}, normal(1, 5, 6)
FACTORS = LowRank(normal(2, 6, 2), normal(3, 2, 4))


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (
            {"['v']": FACTORS},
            r"has \['v'\], which is no leaf of `parameters`: \['epoch'\], \['w'\]",
        ),
        ({"['w']": normal(0, 6, 4)}, r"must be an approximation such as a `LowRank`; got ndarray"),
        ({"['epoch']": FACTORS}, r"\['epoch'\] is int, not an array of floats"),
        (
            {"['w']": LowRank(normal(2, 5, 2), normal(3, 2, 4))},
            r"is \(5, 4\), of 20 entries, but the leaf is \(6, 4\)",
        ),
    ],
)
def test_says_what_does_not_fit(factors, message):
    with pytest.raises(ValueError, match=message):
        replace(layer, W, factors)


def test_says_what_the_product_needs():
    function, parameters = replace(layer, W, {"['w']": FACTORS.T})
    with pytest.raises(ValueError, match=r"for \['w'\] must be \(6, 4\).* is \(4, 6\)"):
        function(parameters, X)
    with pytest.raises(ValueError, match=r"like those that `replace` returned: .*epoch"):
        function({"w": FACTORS}, X)
    flat = LowRank(normal(0, 18, 2), normal(1, 2, 4))
    function, parameters = replace(
        lambda w, x: lax.scan(turn, x, w), normal(0, 3, 6, 4), {"": flat}
    )
    with pytest.raises(ValueError, match="must be a stack of 3 matrices"):
        function(parameters, X)


def turn(x, w):
    return x, x @ w


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda p, x: x @ jnp.abs(p["w"]), "its entries are used by `abs`"),
        (lambda p, x: p["w"][jnp.arange(3)], "its rows are looked up"),
        (lambda p, x: p["w"].T, "the function returns it"),
        (lambda p, x: x @ p["w"].T.reshape(6, 4), "its entries are used by `reshape`"),
        (
            lambda p, x: (x @ p["w"], jnp.einsum("a,abc->bc", x[0, :2], p["w"].reshape(2, 3, 4))),
            "different axes at different places",
        ),
    ],
)
def test_a_use_of_entries_is_refused(function, reason):
    smaller, parameters = replace(function, W, {"['w']": FACTORS})
    with pytest.raises(ValueError, match=rf"\['w'\] cannot be replaced by factors: .*{reason}"):
        smaller(parameters, X)


@pytest.mark.parametrize(
    ("factors", "shift", "message"),
    [
        (
            normal(0, 6, 4),
            normal(1, 4),
            "`approximation` must be one without a shift, .*; got ndarray",
        ),
        (FACTORS, normal(1, 6), r"must be an array \(4,\) of float32.* got \(6,\) of float32"),
        (FACTORS, normal(1, 4).astype(float), r"got \(4,\) of float64"),
        (FACTORS, [0.0] * 4, "got list"),
    ],
)
def test_says_what_is_no_map(factors, shift, message):
    with pytest.raises(ValueError, match=message):
        Affine(factors, shift)
