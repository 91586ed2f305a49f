"""Derivatives of recoveries: against finite differences, and at ties."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory import Calibration
from lowrank_theory.recovery import (
    activation_weighted,
    activation_weighted_from_moments,
    singular_value_threshold,
    truncated_svd,
)
from oracle import norm
from regimes import SINGLE

pytestmark = pytest.mark.thinned(6)


def _sum_of_product(result, direction):
    """A smooth function of the recovered layer."""
    factors = result[0]
    value = jnp.sum((factors.left @ factors.right) * direction)
    if len(result) == 3 and result[1] is not None:
        value = value + jnp.sum(jnp.sin(result[1]))
    return value


def _calibration(activations, compressed=None) -> Calibration:
    empty = Calibration.empty(8, compressed=compressed is not None)
    return (
        empty.update(activations) if compressed is None else empty.update(activations, compressed)
    )


DIRECTION = np.random.default_rng(4).standard_normal((8, 6)).astype(np.float32)
DIFFERENTIABLE: dict[str, Any] = {
    "truncated svd": lambda W, X, T, Y, b: truncated_svd(W, rank=2),
    "weighted": lambda W, X, T, Y, b: activation_weighted(W, X, rank=2),
    "mismatch": lambda W, X, T, Y, b: activation_weighted(W, X, T, rank=2),
    "affine": lambda W, X, T, Y, b: activation_weighted(W, X, T, None, b, rank=2),
    "outputs": lambda W, X, T, Y, b: activation_weighted(None, X, T, Y, rank=2),
    "moments": lambda W, X, T, Y, b: activation_weighted_from_moments(W, _calibration(X), rank=2),
    "moments: affine, mismatch": lambda W, X, T, Y, b: activation_weighted_from_moments(
        W, _calibration(X, T), b, rank=2
    ),
    "threshold": lambda W, X, T, Y, b: singular_value_threshold(T, Y, 1.5, rank=2),
}


@pytest.mark.parametrize("recovered", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE.keys())
def test_derivatives_against_finite_differences(recovered):
    def loss(arguments):
        return _sum_of_product(recovered(*arguments), DIRECTION)

    leaves = SINGLE.arrays()  # stored in float32, so that both modes see the same layer
    random = np.random.default_rng(6)
    with jax.enable_x64(True):
        point = [jnp.asarray(leaf, jnp.float64) for leaf in leaves]
        value = jax.jit(jax.value_and_grad(loss))
        _, exact = value(point)
        for _ in range(3):
            change = [jnp.asarray(random.standard_normal(leaf.shape)) for leaf in leaves]
            step = 1e-5
            above, below = (
                value([p + sign * step * c for p, c in zip(point, change, strict=True)])[0]
                for sign in (1, -1)
            )
            slope = sum(jnp.sum(g * c) for g, c in zip(exact, change, strict=True))
            size = sum(norm(np.asarray(g)) for g in exact)
            assert float((above - below) / (2 * step)) == pytest.approx(
                float(slope), abs=1e-6 * size
            )
    single = jax.jit(jax.grad(loss))([jnp.asarray(leaf) for leaf in leaves])
    for found, wanted in zip(single, exact, strict=True):
        assert found.dtype == np.float32
        size = max(norm(np.asarray(wanted)), 1e-3)
        assert norm(np.asarray(found, np.float64) - np.asarray(wanted)) <= 1e-5 * size


@pytest.mark.parametrize(
    ("values", "finite"),
    [((3, 3, 1, 1, 1, 0.5), True), ((3, 3, 0, 0, 0, 0), True), ((3, 2, 2, 1, 0.5, 0.1), False)],
    ids=["ties on either side of the cut", "exact rank", "tie at the cut"],
)
@pytest.mark.parametrize("name", ["truncated svd", "weighted", "mismatch", "moments"])
def test_derivatives_at_ties(name, values, finite):
    """They exist at ties inside either group, and not at a tie of the cut."""
    if name == "moments" and not finite:
        pytest.skip("rounding in the Gram breaks the tie")
    signs = np.diag(np.array(values, np.float32))  # ties that rounding does not break
    weights = np.concatenate([signs, np.zeros((2, 6), np.float32)])
    activations = np.eye(20, 8, dtype=np.float32)

    def loss(weights):
        arguments = weights, activations, activations, activations @ weights, weights[0]
        return _sum_of_product(DIFFERENTIABLE[name](*arguments), DIRECTION)

    gradient = np.asarray(jax.jit(jax.grad(loss))(weights))
    assert np.isfinite(gradient).all() == finite
