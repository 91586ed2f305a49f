"""Laws of two factors that stand for a matrix: the dense product, without the dense matrix."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quax
from hypothesis import given
from hypothesis import strategies as st

from lowrank_theory.approximations import LowRank

pytestmark = [pytest.mark.thinned(4), pytest.mark.usefixtures("full_precision")]

# (inputs, outputs, rank): tall, wide, square, rank 1, rank 0, full, more than full, one number
REGIMES = [(9, 4, 3), (4, 9, 2), (6, 6, 3), (7, 5, 1), (5, 7, 0), (4, 6, 4), (3, 2, 5), (1, 1, 1)]
INPUTS, OUTPUTS, RANK = 11, 13, 3

seeds = st.integers(0, 2**32 - 1)
regimes = st.sampled_from(REGIMES)


@pytest.fixture
def never_dense(monkeypatch):
    def refuse(self):
        raise AssertionError("the dense matrix was formed")

    monkeypatch.setattr(LowRank, "materialise", refuse)


def draw(seed, *shapes, dtype: Any = np.float32):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape).astype(dtype) for shape in shapes]


def in_jax(*arrays):
    with jax.enable_x64(True):
        return [jnp.asarray(array) for array in arrays]


def factors_and_dense(seed=0, *, stack=()):
    left, right = draw(seed, (*stack, INPUTS, RANK), (*stack, RANK, OUTPUTS))
    return LowRank(*in_jax(left, right)), jnp.asarray(left @ right)


def assert_chain(actual, *matrices, eps=None, roundings=None):
    """`actual` is the product of the matrices up to the rounding of its dtype, entry by entry.

    The computed product differs from A B C ... by at most gamma |A| |B| |C| ..., where
    gamma = n u / (1 - n u) for n roundings (Higham, Accuracy and Stability of Numerical Algorithms,
    section 3.5).
    """
    exact = matrices[0].astype(np.longdouble)
    size = np.abs(exact)
    for matrix in matrices[1:]:
        exact, size = exact @ matrix.astype(np.longdouble), size @ np.abs(matrix)
    eps = float(eps or jnp.finfo(actual.dtype).eps)
    roundings = roundings or sum(matrix.shape[-1] for matrix in matrices)
    gamma = roundings * eps / (1 - roundings * eps)
    assert actual.shape == exact.shape
    assert np.all(np.abs(np.asarray(actual, np.longdouble) - exact) <= gamma * size)


def assert_close(actual, desired):
    """Trees of equal structure, shapes and dtypes, equal up to the rounding of float32."""
    eps = float(np.finfo(np.float32).eps)
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        scale = float(jnp.max(jnp.abs(b), initial=0))
        np.testing.assert_allclose(a, b, rtol=0, atol=4 * (INPUTS + OUTPUTS) * eps * scale)


# --- by itself ----------------------------------------------------------------------------------


@given(regimes, seeds, st.sampled_from([(), (5,), (2, 3)]), st.booleans(), st.booleans())
def test_multiplies_like_the_dense_matrix(regime, seed, leading, double, numpy):
    inputs, outputs, rank = regime
    shapes = (inputs, rank), (rank, outputs), (*leading, inputs), (*leading, outputs)
    left, right, x, y = draw(seed, *shapes, dtype=np.float64 if double else np.float32)
    y = np.moveaxis(y, -1, -2) if leading else y
    arrays = (left, right, x, y) if numpy else in_jax(left, right, x, y)
    factors = LowRank(*arrays[:2])
    assert_chain(arrays[2] @ factors, x, left, right)
    assert_chain(factors @ arrays[3], left, right, y)
    assert_chain(factors.materialise(), left, right)
    assert_chain(factors.T.materialise(), right.T, left.T)
    for product in (arrays[2] @ factors, factors @ arrays[3], factors.materialise()):
        assert isinstance(product, np.ndarray if numpy else jax.Array)
        assert product.dtype == factors.dtype == left.dtype


@given(regimes, seeds)
def test_float64_stays_whatever_the_flag(regime, seed):
    inputs, outputs, rank = regime
    left, right, x = draw(seed, (inputs, rank), (rank, outputs), (4, inputs), dtype=np.float64)
    stored = LowRank(*in_jax(left, right))
    assert stored.dtype == np.float64
    assert_chain(x @ stored, x, left, right)
    assert_chain(in_jax(x)[0] @ LowRank(left, right), x, left, right)


def test_in_a_transformation_the_flag_decides():
    left, right = draw(0, (INPUTS, RANK), (RANK, OUTPUTS), dtype=np.float64)
    x = jnp.ones((2, INPUTS), jnp.float32)
    factors, dense = LowRank(left, right), left @ right
    gradient = jax.grad(lambda x: jnp.sum(x @ factors).astype(jnp.float32))(x)
    assert_close(gradient, jnp.tile(dense.sum(1).astype(np.float32), (2, 1)))
    for run in (quax.quaxify(lambda w: x @ w), jax.jit(lambda w: x @ w)):
        assert run(factors).dtype == (x @ dense).dtype


@given(regimes)
def test_counts_what_it_stores(regime):
    inputs, outputs, rank = regime
    for dtype in (np.float64, np.float32, jnp.bfloat16):
        factors = LowRank(np.ones((inputs, rank), dtype), np.ones((rank, outputs), dtype))
        assert (factors.shape, factors.rank) == ((inputs, outputs), rank)
        assert factors.parameter_count == rank * (inputs + outputs)
        assert factors.storage_bytes == factors.left.nbytes + factors.right.nbytes


def test_product_of_two_is_low_rank(never_dense):
    a, b, c, d = draw(0, (6, 2), (2, 5), (5, 3), (3, 7))
    for first, second in ((a, b), (a.astype(float), b.astype(float))):
        product = LowRank(first, second) @ LowRank(c, d)
        assert (product.shape, product.rank, product.dtype) == ((6, 7), 2, first.dtype)
        assert_chain(np.eye(6, dtype=first.dtype) @ product, first, second, c, d)


FLOATS = np.ones((4, 2), np.float32)


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ([[1.0]], FLOATS, "`left` must be a NumPy or JAX array of floats; got list"),
        (FLOATS, 1.0, "`right` must be a NumPy or JAX array of floats; got float"),
        (FLOATS.astype(int), FLOATS.T, "`left` .* got int64"),
        (FLOATS, FLOATS.T + 1j, "`right` .* got complex64"),
        (FLOATS, FLOATS, r"must be \(inputs, rank\) and \(rank, outputs\) .* got \(4, 2\) of"),
        (FLOATS[0], FLOATS.T, r"got \(2,\) of float32 and \(2, 4\) of float32"),
        (np.stack([FLOATS]), FLOATS.T, r"got \(1, 4, 2\) of float32 and \(2, 4\)"),
        (FLOATS, FLOATS.T.astype(float), "of one dtype; got .* float32 and .* float64"),
    ],
)
def test_says_what_is_wrong_with_the_factors(left, right, message):
    with pytest.raises(ValueError, match=message):
        LowRank(left, right)


@pytest.mark.parametrize(
    "operation",
    [
        lambda factors, dense: factors + dense,
        lambda factors, dense: dense + factors,
        lambda factors, dense: factors - dense,
        lambda factors, dense: dense - factors,
        lambda factors, _: np.sum(factors),
        lambda factors, _: np.linalg.norm(factors),
        lambda factors, dense: np.concatenate([factors, dense]),
    ],
)
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_what_needs_the_matrix_says_how_to_get_it(operation, kind):
    left, right = draw(1, (6, 2), (2, 5))
    factors = LowRank(kind(left), kind(right))
    with pytest.raises(TypeError, match=r"`factors\.materialise\(\)` is the dense matrix"):
        operation(factors, factors.materialise())


def test_a_stack_is_for_vmap():
    stack, _ = factors_and_dense(stack=(2,))
    x = jnp.ones(INPUTS)
    assert stack.shape == (2, INPUTS, OUTPUTS)
    with pytest.raises(ValueError, match=r"not a stack \(2, 11, 13\): use `jax.vmap`"):
        _ = x @ stack
    with pytest.raises(ValueError, match="not a stack"):
        _ = stack @ jnp.ones(OUTPUTS)
    assert jax.vmap(lambda factors: x @ factors)(stack).shape == (2, OUTPUTS)


def test_is_a_tree():
    factors, dense = factors_and_dense()
    axes = jax.tree.map(lambda _: None, factors)  # leaves that are not arrays
    doubled = jax.vmap(lambda f, s: eqx.tree_at(lambda f: f.left, f, s * f.left), (axes, 0))
    assert_close(
        doubled(factors, jnp.arange(3.0)).materialise(), jnp.arange(3.0)[:, None, None] * dense
    )
    assert jax.eval_shape(lambda f: f.T, factors).shape == (OUTPUTS, INPUTS)


# --- inside a JAX function -----------------------------------------------------------------------

# name: a function of the weights (inputs, outputs) and an array, and the shape of the array
ROUTES = {
    "matmul": (lambda w, x: x @ w, (2, 5, INPUTS)),
    "vector": (lambda w, x: x @ w, (INPUTS,)),
    "from the right": (lambda w, y: w @ y, (OUTPUTS, 4)),
    "transposed": (lambda w, x: w.T @ x, (INPUTS, 4)),
    "transposed twice": (lambda w, x: x @ w.T.T, (2, INPUTS)),
    "dot": (lambda w, x: jnp.dot(x, w), (2, 5, INPUTS)),
    "tensordot": (lambda w, x: jnp.tensordot(x, w, 1), (2, 5, INPUTS)),
    "trace": (lambda w, y: jnp.tensordot(w, y, 2), (INPUTS, OUTPUTS)),
    "trace of many": (lambda w, y: jnp.einsum("io,obi->b", w, y), (OUTPUTS, 4, INPUTS)),
    "einsum": (lambda w, x: jnp.einsum("bti,io->bto", x, w), (2, 5, INPUTS)),
    "einsum, outputs first": (lambda w, x: jnp.einsum("io,bti->obt", w, x), (2, 5, INPUTS)),
    "einsum, from the right": (lambda w, y: jnp.einsum("bot,io->tib", y, w), (2, OUTPUTS, 5)),
    "linear layer": (lambda w, x: eqx.nn.Linear.__call__(linear(w.T), x), (INPUTS,)),
    "integers": (lambda w, x: jnp.round(8 * x).astype(int) @ w, (2, INPUTS)),
    "gram": (lambda w, x: (x @ (w @ w.T), w.T @ w @ jnp.ones(OUTPUTS)), (2, INPUTS)),
    "gram, contracted": (lambda w, y: y @ jnp.einsum("io,ip->op", w, w), (OUTPUTS,)),
    "jit": (jax.jit(lambda w, x: jax.nn.relu(x @ w)), (2, INPUTS)),
    "vmap": (lambda w, x: jax.vmap(lambda row: row @ w)(x), (4, INPUTS)),
    "vmap of a layer": (lambda w, x: jax.vmap(linear(w.T))(x), (4, INPUTS)),
    "checkpoint": (jax.checkpoint(lambda w, x: jnp.tanh(x @ w)), (2, INPUTS)),
    "scan": (lambda w, x: jax.lax.scan(lambda c, row: (c, row @ w), 0.0, x)[1], (4, INPUTS)),
    "cond": (lambda w, x: jax.lax.cond(x[0] > 0, lambda: x @ w, lambda: -x @ w), (INPUTS,)),
}

# what needs the entries of the matrix: right, but dense
DENSE_ROUTES = {
    "entries": (lambda w, x: w[0] + x, (OUTPUTS,)),
    "elementwise": (lambda w, x: x @ jnp.abs(w), (2, INPUTS)),
    "outer": (lambda w, x: jnp.einsum("io,b->bio", w, x), (2,)),
    "outer, matrix first": (lambda w, x: jnp.tensordot(w, x, 0), (2,)),
    "row by row": (lambda w, x: jnp.einsum("io,bi->ibo", w, x), (2, INPUTS)),
    "cast to integers": (lambda w, x: x @ w.astype(int), (2, INPUTS)),
    "inner product": (lambda w, x: jnp.einsum("io,io->", w, w) * x, ()),
}


def linear(weight):
    bias = jnp.linspace(-1, 1, OUTPUTS)
    layer = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (weight, bias))


@pytest.mark.parametrize("name", ROUTES)
def test_route_never_forms_the_matrix(name, never_dense):
    function, shape = ROUTES[name]
    factors, dense = factors_and_dense()
    x = jnp.asarray(draw(1, shape)[0])
    desired = function(dense, x)
    for run in (quax.quaxify(function), jax.jit(quax.quaxify(function))):
        assert_close(run(factors, x), desired)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_half_precision_rounds_the_factors(dtype, never_dense):
    def function(w, x):
        x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
        return jnp.matmul(x, w, preferred_element_type=dtype), w.T @ w

    factors, _ = factors_and_dense()
    left, right = np.asarray(factors.left), np.asarray(factors.right)
    (x,) = draw(1, (2, INPUTS))
    actual, gram = quax.quaxify(function)(factors, x)
    assert (actual.dtype, gram.dtype) == (dtype, jnp.bfloat16)
    # three operands and two products, each rounded once
    assert_chain(actual, x, left, right, eps=jnp.finfo(jnp.bfloat16).eps, roundings=5)


def dense_buffers(function, *arguments):
    """Is an array of the shape of the matrix, or of its transpose, computed on the way?"""
    program = jax.jit(function).lower(*arguments).as_text()
    return any(f"<{shape}x" in program for shape in (f"{INPUTS}x{OUTPUTS}", f"{OUTPUTS}x{INPUTS}"))


@pytest.mark.parametrize("name", [name for name in ROUTES if not name.startswith("trace")])
def test_compiled_program_holds_no_dense_matrix(name):
    function, shape = ROUTES[name]
    factors, dense = factors_and_dense()
    x = jnp.ones(shape)
    assert dense_buffers(function, dense, x)
    assert not dense_buffers(quax.quaxify(function), factors, x)


@pytest.mark.parametrize("name", DENSE_ROUTES)
def test_what_needs_entries_is_materialised(name):
    function, shape = DENSE_ROUTES[name]
    factors, dense = factors_and_dense()
    x = jnp.asarray(draw(1, shape)[0])
    assert_close(quax.quaxify(function)(factors, x), function(dense, x))
    assert dense_buffers(quax.quaxify(function), factors, x)


STACKED = {
    "matmul": lambda w, x: x[:, None] @ w,
    "vmap": jax.vmap(lambda w, x: x @ w),
    "vmap, transposed": jax.vmap(lambda w, x: w.T @ x),
    "vmap, trace": jax.vmap(lambda w, x: jnp.tensordot(w, jnp.outer(x, jnp.arange(OUTPUTS)), 2)),
    "scan": lambda w, x: jax.lax.scan(lambda c, wx: (c, wx[1] @ wx[0]), 0.0, (w, x))[1],
}


@pytest.mark.parametrize("name", STACKED)
def test_stack_is_a_loop(name, never_dense):
    function = STACKED[name]
    factors, dense = factors_and_dense(stack=(4,))
    x = jnp.asarray(draw(1, (4, INPUTS))[0])
    assert_close(quax.quaxify(function)(factors, x), function(dense, x))


def test_vmap_is_a_loop():
    factors, _ = factors_and_dense(stack=(4,))
    x = jnp.asarray(draw(1, (4, INPUTS))[0])
    apply = quax.quaxify(lambda w, x: jnp.tanh(x @ w))
    loop = [apply(jax.tree.map(lambda leaf, i=i: leaf[i], factors), x[i]) for i in range(4)]
    assert_close(jax.vmap(apply)(factors, x), jnp.stack(loop))


# --- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["matmul", "linear layer", "checkpoint", "jit", "scan", "gram"])
def test_gradient_is_the_chain_rule(name):
    function, shape = ROUTES[name]
    factors, dense = factors_and_dense()
    x = jnp.asarray(draw(1, shape)[0])

    def loss(function, w):
        return sum(jnp.sum(out**2) for out in jax.tree.leaves(function(w, x)))

    by_entry = jax.grad(lambda w: loss(function, w))(dense)
    desired = LowRank(by_entry @ factors.right.T, factors.left.T @ by_entry)
    gradient = jax.grad(lambda w: loss(quax.quaxify(function), w))
    assert_close(gradient(factors), desired)
    assert_close(jax.jit(gradient)(factors), desired)
    assert not dense_buffers(gradient, factors)


def test_network_runs_with_factors(never_dense):
    network = eqx.nn.MLP(INPUTS, OUTPUTS, width_size=8, depth=2, key=jax.random.key(0))
    left, right = draw(0, (8, 2), (2, 8))
    dense = eqx.tree_at(lambda n: n.layers[1].weight, network, jnp.asarray((left @ right).T))
    weights = LowRank(*in_jax(left, right)).T
    compressed = eqx.tree_at(lambda n: n.layers[1].weight, network, weights)
    x = jnp.asarray(draw(1, (5, INPUTS))[0])
    assert_close(jax.vmap(quax.quaxify(compressed))(x), jax.vmap(dense)(x))
    assert_close(eqx.filter_jit(quax.quaxify(compressed))(x[0]), dense(x[0]))
