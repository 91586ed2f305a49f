"""Laws of replacing: the function runs on factors as on their product, which it never forms."""

import functools
import math

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from kinds import KINDS, MATRICES
from lowrank_theory.approximations import AbstractApproximation, Affine, LowRank
from lowrank_theory.networks import observe, replace
from routes import INPUTS, MODELS, OUTPUTS, ROUTES, SAMPLES, factors_of, normal

pytestmark = [pytest.mark.thinned(4), pytest.mark.usefixtures("full_precision")]


def replaced(function, parameters, batch, *, rank=2):
    """All that can be followed on random factors, and the same function on their products."""
    views = observe(function, parameters, [batch]).views
    factors = {path: factors_of(view, k, rank) for k, (path, view) in enumerate(views.items())}
    dense = with_products(parameters, factors, views)
    return *replace(function, parameters, factors), dense, views


def with_products(parameters, factors, views):
    def product(path, leaf):
        name = jax.tree_util.keystr(path)
        if name not in factors:
            return leaf
        return jnp.asarray(views[name].leaf(factors[name].left @ factors[name].right))

    return jax.tree_util.tree_map_with_path(product, parameters)


@functools.cache
def model_on_factors(name):
    model = MODELS[name]()
    return model, *replaced(model.function, model.parameters, model.batch)


def assert_close(actual, desired, roundings=200):
    """Trees of equal structure, shapes and dtypes, equal up to the rounding of float32."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        tolerance = roundings * float(np.finfo(np.float32).eps) * float(jnp.max(jnp.abs(b)))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def sizes(jaxpr):
    """How many entries each array has that a program computes, its loops and branches included."""
    for equation in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) for v in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from sizes(getattr(inner, "jaxpr", inner))


def forms_matrix(function, *arguments):
    return INPUTS * OUTPUTS in sizes(jax.make_jaxpr(function)(*arguments).jaxpr)


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


def named(tree):
    """The leaves of a tree by path, factors taken for leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, lambda leaf: isinstance(leaf, AbstractApproximation)
    )
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


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
@pytest.mark.parametrize("kind", ["table", "table with a shift"])
def test_a_table_takes_the_rows_of_a_product(kind, route):
    function, stored = TABLE_ROUTES[route]
    given = KINDS[kind](np.random.default_rng(0), (), INPUTS, OUTPUTS)
    x = 3 * normal(1, SAMPLES, INPUTS)
    run, smaller = replace(function, stored(normal(0, INPUTS, OUTPUTS)), {"": given})
    np.testing.assert_array_equal(jax.jit(run)(smaller, x), given.apply(x))


@pytest.mark.parametrize("kind", ["table", "low rank with a shift", "table with a shift"])
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


# --- with a shift --------------------------------------------------------------------------------


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
