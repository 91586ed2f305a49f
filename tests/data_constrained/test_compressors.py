"""Laws of compressors: what is removed, counted; what is kept, bit for bit; and gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory.approximations import Affine, LowRank
from lowrank_theory.data_constrained import (
    KeepAll,
    Narrowed,
    Pruned,
    Rounded,
    Truncated,
    rounded,
)
from routes import normal

pytestmark = pytest.mark.thinned(3)

LEVELS = (0.025, 0.1, 0.5, 0.9, 1.0)
PARAMETERS = {"w": normal(0, 6, 8), "b": normal(1, 8)}
FACTORS = LowRank(normal(2, 6, 5), normal(3, 5, 8))


@pytest.mark.parametrize("level", LEVELS)
def test_pruning_removes_exactly_the_least(level):
    found = np.asarray(Pruned(("['w']",))(PARAMETERS, level)["w"])
    zeros = found == 0
    assert zeros.sum() == int(np.floor(np.float32(1 - level) * found.size))
    np.testing.assert_array_equal(found[~zeros], PARAMETERS["w"][~zeros])
    if zeros.any():
        assert np.abs(PARAMETERS["w"][zeros]).max() <= np.abs(found[~zeros]).min()


def test_no_gradient_passes_where_an_entry_is_removed():
    def loss(parameters):
        return jnp.sum(jnp.sin(Pruned(("['w']",))(parameters, 0.5)["w"]))

    gradient = np.asarray(jax.grad(loss)(PARAMETERS)["w"])
    kept = np.asarray(Pruned(("['w']",))(PARAMETERS, 0.5)["w"]) != 0
    assert np.all((gradient != 0) == kept)


@pytest.mark.parametrize("bits", range(3, 9))
def test_rounding_is_to_the_nearest_value_of_a_grid_with_zero(bits):
    """An oracle in NumPy: the grid from the least to the largest entry, moved to hold zero."""
    level, compressor = (bits - 2) / 6, Rounded(("['w']",))
    assert compressor.size(level) == bits
    found = np.asarray(compressor(PARAMETERS, level)["w"], np.float64)
    least, largest = PARAMETERS["w"].min(), PARAMETERS["w"].max()
    step = (largest - least) / (2**bits - 1)
    codes = found / step
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4 * 2**bits)  # of float32
    assert len(np.unique(np.round(codes))) <= 2**bits
    # the move costs up to half a step at one end of the range, beside half of one for rounding
    assert np.abs(found - PARAMETERS["w"]).max() <= 1.001 * step
    inner = (PARAMETERS["w"] > least + step) & (PARAMETERS["w"] < largest - step)
    assert np.abs(found - PARAMETERS["w"])[inner].max() <= 0.501 * step


def test_rounding_passes_gradients_and_zeros():
    gradient = jax.grad(lambda p: jnp.sum(Rounded(("['w']",))(p, 0.3)["w"] * PARAMETERS["w"]))
    np.testing.assert_allclose(gradient(PARAMETERS)["w"], PARAMETERS["w"], rtol=1e-6)
    nothing = {"w": np.zeros((3, 4), np.float32)}
    np.testing.assert_array_equal(Rounded(("['w']",))(nothing, 0.3)["w"], nothing["w"])


def test_what_lies_beyond_the_range_is_at_its_end():
    """Two bits from 0 to 3: the grid is 0, 1, 2, 3; a range above zero is widened to hold it."""
    values = np.array([-5.0, -0.2, 0.4, 1.6, 2.9, 40.0], np.float32)
    expected = [0, 0, 0, 2, 3, 3]
    for least in (0.0, 0.7):
        np.testing.assert_array_equal(rounded(values, 2, least, 3.0), expected)
    gradient = jax.grad(lambda v: jnp.sum(rounded(v, 2, 0.0, 3.0)))(values)
    np.testing.assert_array_equal(gradient, np.ones(6))


@pytest.mark.parametrize("level", [0.0, *LEVELS])
def test_what_is_narrowed_is_cut(level):
    found = Narrowed(("['w']", "['b']"))(PARAMETERS, level)
    kept = max(1, round((0.25 + 0.75 * level) * 8))
    for name, array in PARAMETERS.items():
        np.testing.assert_array_equal(np.asarray(found[name])[..., :kept], array[..., :kept])
        assert not np.any(np.asarray(found[name])[..., kept:])


@pytest.mark.parametrize("level", [0.0, *LEVELS])
@pytest.mark.parametrize("given", [FACTORS, Affine(FACTORS, normal(4, 8))], ids=["plain", "affine"])
def test_what_is_truncated_is_a_slice_of_factors(given, level):
    found = Truncated(("['w']",))({"w": given}, level)["w"]
    rank = max(1, round(level * 5))
    smaller = LowRank(FACTORS.left[:, :rank], FACTORS.right[:rank])
    expected = Affine(smaller, given.shift) if isinstance(given, Affine) else smaller
    rows = normal(5, 4, 6)
    np.testing.assert_allclose(found.apply(rows), expected.apply(rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [KeepAll, Pruned, Narrowed])
def test_level_one_is_all(kind):
    compressor = kind(("['w']",)) if kind is not KeepAll else kind()
    found = compressor(PARAMETERS, 1.0)
    assert all(np.array_equal(found[name], PARAMETERS[name]) for name in PARAMETERS)


@pytest.mark.parametrize("kind", [Pruned, Rounded, Narrowed])
def test_a_compiled_program_serves_all_levels(kind):
    compressor = kind(("['w']",))
    compiled: Any = jax.jit(compressor)
    for level in LEVELS:
        np.testing.assert_allclose(
            compiled(PARAMETERS, level)["w"], compressor(PARAMETERS, level)["w"], rtol=1e-5
        )
    assert compiled._cache_size() == 1


def test_each_path_may_have_a_level_of_its_own():
    found = Pruned(("['w']", "['b']"))(PARAMETERS, jnp.array([0.5, 1.0]))
    assert (np.asarray(found["w"]) == 0).sum() == 24
    np.testing.assert_array_equal(found["b"], PARAMETERS["b"])


def test_other_paths_leaves_and_widths_are_refused():
    with pytest.raises(ValueError, match=r"`paths` has \['v'\], which is no leaf of .*\['w'\]"):
        Pruned(("['v']",))(PARAMETERS, 0.5)
    with pytest.raises(ValueError, match=r"`Truncated` is for factors.*networks\.replace"):
        Truncated(("['w']",))(PARAMETERS, 0.5)
    with pytest.raises(ValueError, match="`least` must lie strictly between 0 and 1; got 2"):
        Narrowed(("['w']",), least=2.0)
    for grid in ((0.5, 0.0, 1.0), (3, 1.0, 0.0)):
        with pytest.raises(ValueError, match="`bits` must be one or more, and `least` no larger"):
            rounded(normal(0, 3), *grid)
