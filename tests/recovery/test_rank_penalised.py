"""Rank-penalised least squares against all ranks in turn, and its laws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laws import keeps_dtypes, scales, turns, vmap_is_a_loop
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import Certificate, RankPenalised, rank_penalised, recover
from oracle import norm
from tolerance import assert_close

pytestmark = pytest.mark.thinned(5)


def instance(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((7, 4)) * np.array([3.0, 1.0, 0.5, 0.2])
    return rows, random.standard_normal((7, 3))


def truncations(rows: np.ndarray, outputs: np.ndarray) -> list[np.ndarray]:
    """The best fits of every rank."""
    attainable = rows @ np.linalg.pinv(rows) @ outputs
    left, values, right = np.linalg.svd(attainable, full_matrices=False)
    return [left[:, :k] * values[:k] @ right[:k] for k in range(len(values) + 1)]


@pytest.mark.parametrize("penalty", [0.0, 0.3, 1.0, 3.0, 1e3])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_it_is_the_best_of_all_ranks(penalty, most):
    rows, outputs = instance()
    recovery = recover(
        Observed(activations=rows, outputs=outputs), most, RankPenalised(penalty)
    ).require()
    assert isinstance(recovery.certificate, Certificate)
    fits = truncations(rows, outputs)[: most + 1]
    prices = [np.sum((outputs - fit) ** 2) + penalty * k for k, fit in enumerate(fits)]
    best = fits[int(np.argmin(prices))]
    assert_close(rows @ recovery.factors, best, scale=norm(best))
    residual = np.linalg.norm(outputs - best)
    assert_close(recovery.certificate.optimal_error, residual)
    kept = np.any(np.asarray(recovery.factors.left) != 0, axis=0)
    assert kept.sum() == int(np.argmin(prices))


def test_a_component_at_the_penalty_is_not_kept():
    observed = Observed(activations=np.eye(2), outputs=np.diag([2.0, 1.0]))
    np.testing.assert_array_equal(
        recover(observed, 2, RankPenalised(1.0)).factors.materialise(), np.diag([2.0, 0.0])
    )
    assert not np.any(recover(observed, 2, RankPenalised(4.0)).factors.materialise())


def test_it_scales():
    rows, outputs = instance()

    def at(unit):
        layer = Observed(activations=rows, outputs=unit * outputs)
        return recover(layer, 3, RankPenalised(unit**2)).factors.materialise()

    scales(at, condition=10)


def test_rotations_of_samples_and_outputs_turn_the_fit():
    turns(lambda x, y: np.asarray(fitted(x, y).materialise()), "s-,so->-o", *instance(), scale=1)


def test_a_batch_is_a_loop():
    layers = zip(*(instance(seed) for seed in (6, 7, 8)), strict=True)
    vmap_is_a_loop(
        lambda x, y: fitted(x, y).materialise(),
        *(np.stack(part).astype("float32") for part in layers),
        side=4,
    )


def fitted(rows: Any, outputs: Any) -> Any:
    return rank_penalised(rows, outputs, 1.0, rank=3)[0]


def test_the_fit_is_in_the_dtype_of_the_layer():
    keeps_dtypes(fitted, *instance())


@pytest.mark.parametrize("most", [1, 2, 3])
def test_it_has_the_derivative_of_differences(most):
    rows, outputs = instance()
    direction = np.random.default_rng(5).standard_normal(outputs.shape)
    penalty = 1.0

    def fitted(size: Any) -> Any:
        factors, certificate = rank_penalised(rows, outputs + size * direction, penalty, rank=most)
        fit = jnp.asarray(rows) @ (factors.left @ factors.right)
        return jnp.sum(fit * direction) + certificate.optimal_error

    values = np.linalg.svd(truncations(rows, outputs)[-1], compute_uv=False)
    assert values[0] ** 2 > values[1] ** 2 > penalty > values[2] ** 2
    with jax.enable_x64(True):
        slope = float(jax.grad(fitted)(0.0))
        difference = float(fitted(1e-5) - fitted(-1e-5)) / 2e-5
    assert slope == pytest.approx(difference, rel=1e-6)


def test_ties_among_the_kept_do_no_harm():
    def size(outputs: Any) -> Any:
        factors, _ = rank_penalised(np.eye(3), outputs, 1.0, rank=3)
        return jnp.sum((factors.left @ factors.right) ** 2)

    with jax.enable_x64(True):
        slope = np.asarray(jax.grad(size)(np.diag([2.0, 2.0, 0.5])))
    assert_close(slope, np.diag([4.0, 4.0, 0.0]))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`penalty` must be a non-negative finite number"):
        RankPenalised(-1.0)
    rows, outputs = instance()
    biased = Observed(activations=rows, outputs=outputs, bias=np.zeros(3))
    with pytest.raises(ValueError, match="`RankPenalised` has no affine version"):
        recover(biased, 1, RankPenalised(1.0))
