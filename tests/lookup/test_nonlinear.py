"""Entries behind a nonlinearity: against the definition, the closed form, and another optimiser."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from lowrank_theory.lookup import (
    AsTheyCome,
    LookUp,
    Rectified,
    Softmax,
    bucket_means,
    grown,
    look_up,
    nonlinear_entries,
    ridge_entries,
)
from lowrank_theory.lookup.orders import subspaces
from lowrank_theory.problems import Observed
from tolerance import assert_close

pytestmark = pytest.mark.thinned(3)

RANDOM = np.random.default_rng(3)
ROWS = RANDOM.standard_normal((300, 4)) @ RANDOM.standard_normal((4, 12))
WEIGHTS = RANDOM.standard_normal((12, 5)) / 4
OUTPUTS, BIAS = ROWS @ WEIGHTS, np.linspace(-0.6, 0.4, 5)


def losses(kind: str, wanted: Any, found: Any) -> Any:
    """Of each row, in JAX, from the definition."""
    if kind == "rectified":
        return jnp.sum((jax.nn.relu(wanted) - jax.nn.relu(found)) ** 2, axis=1)
    p, q = jax.nn.softmax(wanted), jax.nn.softmax(found)
    if kind == "published":
        return 1 - jnp.sum(p * q, axis=1)
    return jnp.sum(p * (jnp.log(p) - jnp.log(q)), axis=1)


def kinds(bias: np.ndarray | None = BIAS) -> dict[str, Any]:
    published = Softmax(bias, published=True)
    return {"rectified": Rectified(bias), "softmax": Softmax(bias), "published": published}


@pytest.mark.parametrize("kind", kinds())
def test_losses_and_slopes_are_those_of_the_definition(kind):
    wanted, found = RANDOM.standard_normal((2, 20, 5))
    with jax.enable_x64(True):
        values = losses(kind, wanted, found)
        slopes = jax.grad(lambda z: jnp.sum(losses(kind, wanted, z)))(jnp.asarray(found))
    mine = kinds()[kind].losses(wanted, found)
    assert_close(mine[0], np.asarray(values), scale=1)
    assert_close(mine[1], np.asarray(slopes), scale=1)
    assert kinds()[kind].losses(1e4 * wanted, -1e4 * found)[0].max() < np.inf


def coded(codebooks: int, rows: np.ndarray = ROWS) -> tuple[np.ndarray, np.ndarray]:
    parts = subspaces(np.arange(12), codebooks)
    codes = grown(rows, parts, levels=2).codes
    return codes, bucket_means(codes, rows, parts, 4) @ WEIGHTS


def objective(kind: str, codes: Any, entries: Any, anchor: Any, ridge: float) -> float:
    design = (codes[:, :, None] == np.arange(4)).reshape(len(codes), -1).astype(float)
    with jax.enable_x64(True):
        found = design @ entries.reshape(-1, 5) + BIAS
        total = float(jnp.sum(losses(kind, OUTPUTS + BIAS, found)))
    return total + ridge * float(np.sum((entries - anchor) ** 2))


@given(st.integers(1, 6), st.sampled_from([0.0, 0.1, 10.0]), st.sampled_from(list(kinds())))
def test_training_ends_no_higher_than_the_linear_fit(codebooks, ridge, kind):
    codes, anchor = coded(codebooks)
    start = ridge_entries(codes, OUTPUTS, anchor, ridge=ridge)
    found = nonlinear_entries(codes, OUTPUTS, anchor, kinds()[kind], ridge=ridge)
    before, after = (objective(kind, codes, each, anchor, ridge) for each in (start, found))
    assert after < before


def test_the_cross_entropy_is_at_its_minimum():
    """It is convex: another optimiser, from another start, with slopes by differences."""
    codes, anchor = coded(1)
    found = nonlinear_entries(codes, OUTPUTS, anchor, Softmax(BIAS), ridge=0.3)
    least = scipy.optimize.minimize(
        lambda flat: objective("softmax", codes, flat.reshape(anchor.shape), anchor, 0.3),
        np.zeros(anchor.size),
        method="BFGS",
    )
    value = objective("softmax", codes, found, anchor, 0.3)
    assert value == pytest.approx(least.fun, rel=1e-6)  # an iteration that stops
    np.testing.assert_allclose(found.ravel(), least.x, atol=1e-2)


@pytest.mark.parametrize("ridge", [0.0, 2.0])
def test_where_no_output_is_cut_off_entries_are_those_of_the_linear_fit(ridge):
    codes, anchor = coded(3)
    found = nonlinear_entries(codes, OUTPUTS, anchor, Rectified(np.full(5, 100.0)), ridge=ridge)
    wanted = ridge_entries(codes, OUTPUTS, anchor, ridge=ridge)
    assert_close(found, wanted, condition=1e4, scale=100)


@pytest.mark.parametrize("power", [-200, 0, 200])
def test_units_do_not_matter_behind_a_relu(power):
    codes, anchor = coded(3)
    once = nonlinear_entries(codes, OUTPUTS, anchor, Rectified(BIAS))
    scaled, start, bias = (np.ldexp(each, power) for each in (OUTPUTS, anchor, BIAS))
    again = nonlinear_entries(codes, scaled, start, Rectified(bias))
    np.testing.assert_array_equal(again, np.ldexp(once, power))


@pytest.mark.parametrize("kind", kinds())
def test_counts_are_rows_that_come_again(kind):
    counts = np.random.default_rng(0).integers(1, 4, len(ROWS))
    codes, anchor = coded(2)
    once = nonlinear_entries(codes, OUTPUTS, anchor, kinds()[kind], counts=counts.astype(float))
    again, outputs = (np.repeat(each, counts, axis=0) for each in (codes, OUTPUTS))
    other = nonlinear_entries(again, outputs, anchor, kinds()[kind])
    np.testing.assert_allclose(once, other, atol=1e-3)  # an iteration that stops


def test_a_table_is_fitted_through_what_follows():
    """Judged after a ReLU it errs less, before it more."""
    plain, through = (
        look_up(
            ROWS, WEIGHTS, 2, method=LookUp(order=AsTheyCome(), rounded=False, through=nonlinearity)
        )
        for nonlinearity in (None, Rectified(BIAS))
    )
    np.testing.assert_array_equal(plain.splits, through.splits)
    errors = []
    for table in (plain, through):
        found = np.asarray(table.apply(ROWS))
        rectified = (np.maximum(each + BIAS, 0) for each in (found, OUTPUTS))
        errors.append((np.linalg.norm(np.subtract(*rectified)), np.linalg.norm(found - OUTPUTS)))
    assert errors[1][0] < 0.97 * errors[0][0] and errors[1][1] > errors[0][1]
    method = LookUp((2,), rounded=False, through=Rectified(BIAS))
    swept = method.sweep(Observed(weights=WEIGHTS, activations=ROWS)).at(0).approximation
    trees = look_up(ROWS, WEIGHTS, 2, method=method)
    np.testing.assert_array_equal(swept.apply(ROWS), trees.apply(ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rectified", "softmax"])
def test_what_is_constant_or_zero_stays_so(kind):
    """Constant inputs, one row, weights of zeros: all outputs alike, and nothing to gain."""
    for rows, weights in ((np.ones((9, 12)), WEIGHTS), (ROWS[:1], WEIGHTS), (ROWS, 0 * WEIGHTS)):
        table = look_up(rows, weights, 3, method=LookUp(through=kinds()[kind], rounded=False))
        assert_close(table.apply(rows), rows @ weights, condition=100, scale=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rectified(np.ones((2, 2))), "`bias`"),
        (lambda: Softmax(np.array([np.nan])), "`bias` has 1 non-finite"),
        (
            lambda: look_up(ROWS, WEIGHTS, 2, method=LookUp(through=Rectified(np.ones(4)))),
            "`bias` has 4 outputs",
        ),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
