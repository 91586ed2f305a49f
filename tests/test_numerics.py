"""The float64 border, cut-offs and allowances: each does what its docstring derives."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lowrank_theory import _random
from lowrank_theory._numerics import (
    check_array,
    check_count,
    check_fraction,
    check_positive,
    float_dtype,
    in_float64,
    matmul,
    relative_rank_cutoff,
    resolution,
    rounding_allowance,
    safe_divide,
    safe_sqrt,
)

X = np.random.default_rng(0).standard_normal((5, 3))


@in_float64
def gram(matrix, offset=None, *, power=1):
    product = matmul(matrix.T, matrix) ** power
    return product if offset is None else product + offset


# --- the border -----------------------------------------------------------------------------------


def test_dtypes_at_the_border():
    assert gram(X).dtype == np.float64
    assert gram(X.astype(np.float32)).dtype == np.float32
    assert gram(jnp.asarray(X, jnp.bfloat16)).dtype == jnp.bfloat16
    assert gram(X.astype(np.float32), 1.0 + np.zeros(())).dtype == np.float64
    assert float_dtype(X.astype(np.float16), {"a": X.astype(np.float32), "b": 3}) == np.float32


def test_like_chooses_the_argument_that_gives_the_dtype():
    second = in_float64(lambda one, two: one + two, like=1)
    assert second(X, X.astype(np.float32)).dtype == np.float32
    assert second(X.astype(np.float32), X).dtype == np.float64


def test_float32_is_computed_in_float64():
    single = (1000 + X).astype(np.float32)
    exact = (single.astype(float).T @ single.astype(float)).astype(np.float32)
    np.testing.assert_array_equal(gram(single), exact)


@pytest.mark.parametrize("flag", [False, True])
def test_the_flag_is_as_it_was(flag):
    with jax.enable_x64(flag):
        np.testing.assert_allclose(gram(X), X.T @ X, rtol=1e-14)
        assert jax.config.read("jax_enable_x64") == flag


@pytest.mark.parametrize("flag", [False, True])
def test_reverse_mode_under_jit_and_vmap(flag):
    single = X.astype(np.float32)

    def loss(matrix):
        return jnp.sum(gram(matrix, power=3))

    with jax.enable_x64(flag):
        gradient = jax.grad(loss)(single)
        jitted = jax.jit(jax.grad(loss))(single)
        mapped = jax.vmap(jax.grad(loss))(np.stack([single, 2 * single]))
    exact = 6 * single.astype(float) @ (single.astype(float).T @ single.astype(float)) ** 2
    for found in (gradient, jitted, mapped[0], mapped[1] / 32):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_static_arguments_are_static_and_compiled_once():
    count = 0

    @in_float64
    def counted(matrix, *, power):
        nonlocal count
        count += 1
        return matrix**power

    for _ in range(3):
        counted(X, power=2)
    assert count == 1
    counted(X, power=3)
    assert count == 2


def test_infinities_enter_as_nan():
    """LAPACK's SVD does not return from an infinity; on NaN it does."""
    bad = X.copy()
    bad[0, 0] = np.inf
    assert np.isnan(in_float64(lambda matrix: matrix)(bad)[0, 0])


def test_no_warning_about_truncated_float64():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gram(X)
        jax.jit(gram)(X.astype(np.float32))


# --- allowances -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(20, 8), (8, 20), (60, 50)])
def test_cutoff_separates_rounding_from_rank(dtype, shape):
    random = np.random.default_rng(1)
    epsilon = float(np.finfo(dtype).eps)
    cutoff = relative_rank_cutoff(shape, epsilon)
    for _ in range(50):
        low_rank = random.standard_normal((shape[0], 3)) @ random.standard_normal((3, shape[1]))
        stored = low_rank.astype(dtype).astype(np.float64)
        values = np.linalg.svd(stored, compute_uv=False)
        assert np.count_nonzero(values > cutoff * values[0]) == 3
    assert cutoff <= 100 * epsilon  # what is well above rounding counts


def test_resolution_is_the_coarsest():
    single = X.astype(np.float32)
    assert resolution(X) == np.finfo(np.float64).eps
    assert resolution(X, None, single) == np.finfo(np.float32).eps


def test_allowance_scales_and_covers_a_chain_of_products():
    assert rounding_allowance(3.0, 4, 9) == 3 * rounding_allowance(1.0, 9, 2)
    random = np.random.default_rng(2)
    for size in (8, 32, 128):
        one, two = random.standard_normal((2, size, size))
        exact = np.asarray(one, np.longdouble) @ np.asarray(two, np.longdouble)
        scale = np.linalg.norm(one) * np.linalg.norm(two)
        error = float(np.sqrt(np.sum((one @ two - exact) ** 2)))
        assert error <= rounding_allowance(scale, size)
        left, values, right = np.linalg.svd(one)
        back = np.linalg.norm((left * values) @ right - one)
        assert back <= rounding_allowance(np.linalg.norm(one), size)


# --- division and roots ---------------------------------------------------------------------------


def test_safe_functions_and_their_derivatives():
    with jax.enable_x64(True):
        zeros, ones = jnp.zeros(2), jnp.array([2.0, 4.0])
        np.testing.assert_array_equal(safe_divide(ones, jnp.array([0.0, 2.0])), [0, 2])
        np.testing.assert_array_equal(safe_sqrt(jnp.array([0.0, 4.0])), [0, 2])
        assert np.isnan(safe_sqrt(jnp.asarray(jnp.nan)))
        assert np.isnan(safe_divide(jnp.asarray(jnp.nan), jnp.asarray(1.0)))
        for function in (
            lambda x: jnp.sum(safe_sqrt(x)),
            lambda x: jnp.sum(safe_divide(ones, x)),
            lambda x: jnp.sum(safe_divide(x, x)),
        ):
            np.testing.assert_array_equal(jax.grad(function)(zeros), 0)
        assert jax.grad(safe_sqrt)(4.0) == pytest.approx(0.25)


# --- random numbers from 32-bit words -------------------------------------------------------------


def test_random_numbers_are_open_and_fine():
    with jax.enable_x64(True):
        numbers = np.asarray(_random.uniform(jax.random.key(0), (100_000,)))
        assert numbers.dtype == np.float64
        assert numbers.min() > 0
        assert numbers.max() < 1
        assert len(np.unique(numbers)) == numbers.size  # 32 bits alone would repeat one or two
        assert (np.round(numbers * 2**32) != numbers * 2**32).mean() > 0.99
        assert stats.kstest(numbers, "uniform").pvalue > 1e-4
        normal = np.asarray(_random.normal(jax.random.key(1), (100_000,)))
        assert np.isfinite(normal).all()
        assert stats.kstest(normal, "norm").pvalue > 1e-4


def test_random_numbers_inside_a_jit_of_the_default_mode():
    @jax.jit
    def draw(key):
        with jax.enable_x64(True):
            return _random.normal(key, (3,)).astype(jnp.float32)

    assert draw(jax.random.key(0)).dtype == np.float32


# --- checks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: check_array("a", np.ones(3), "rows", "columns"),
            r"`a` .* \(rows, columns\); got shape \(3,\)",
        ),
        (lambda: check_array("a", np.ones((3, 0)), "rows", "columns"), "`a` is empty"),
        (lambda: check_array("a", [[1, 2]], "rows", "columns"), "`a` must be floating .* int"),
        (
            lambda: check_array("a", np.array([1.0, np.inf]), "n"),
            "`a` has 1 non-finite entries .* of 2",
        ),
        (lambda: check_array("a", np.array(["x"]), "n"), "`a` must be floating point"),
        (lambda: check_count("n", 0, 1), "`n` must be an integer >= 1; got 0"),
        (lambda: check_count("n", 9, 1, 4), "`n` must be an integer from 1 to 4; got 9"),
        (lambda: check_count("n", True, 1), "`n` must be an integer >= 1; got True"),
        (lambda: check_count("n", 2.0, 1), "`n` must be an integer >= 1; got 2.0"),
        (lambda: check_count("n", "2", 1), "`n` must be an integer >= 1; got '2'"),
        (lambda: check_positive("p", 0.0), "`p` must be a positive finite number; got 0.0"),
        (lambda: check_positive("p", -1.0, zero=True), "`p` must be a non-negative finite number"),
        (lambda: check_positive("p", np.nan), "`p` must be a positive finite number; got nan"),
        (lambda: check_positive("p", "x"), "`p` must be a positive finite number; got 'x'"),
        (lambda: check_positive("p", None), "`p` must be a positive finite number; got None"),
        (lambda: check_fraction("f", 1.0), "`f` must lie strictly between 0 and 1; got 1.0"),
        (lambda: check_fraction("f", "x"), "`f` must lie strictly between 0 and 1; got 'x'"),
        (lambda: check_fraction("f", np.nan), "`f` must lie strictly between 0 and 1; got nan"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_checks_let_the_right_things_pass():
    array = jnp.ones((2, 3))
    assert check_array("a", array, "rows", "columns", lent=True) is array
    np.testing.assert_array_equal(check_array("a", array, "rows", "columns"), array)
    assert check_array("a", [[1.0]], "rows", "columns").dtype == np.float64
    assert check_count("n", np.int64(3), 1, 3) == 3
    assert check_positive("p", 0, zero=True) == 0
