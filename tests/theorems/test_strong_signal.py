"""Truncation far above the noise, against plain formulas and by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory.generators import noise, targets
from lowrank_theory.problems import Setting
from lowrank_theory.theorems.gaussian_noise import upper_edge
from lowrank_theory.theorems.strong_signal import likely_error, strong_signal, tangent_part
from perturbed import (
    SQUARE,
    TALL,
    adversary_keeps_its_word,
    at_once,
    control_is_broken,
    diagonal,
    drawn,
    obeys_the_laws,
)
from tolerance import approx

pytestmark = pytest.mark.thinned(2)

TANGENT = strong_signal.tangent
INSTANCES = {
    "tall": drawn(TALL),
    "square, strong noise": drawn(SQUARE, noise=2.0),
    "rank one": drawn(TALL, rank=1, width=1),
    "three of four": drawn(SQUARE, rank=3, width=3),
}


def test_laws():
    obeys_the_laws(TANGENT, INSTANCES["tall"], degree=1)


def test_adversary_and_control():
    adversary_keeps_its_word(TANGENT)
    control_is_broken(TANGENT)


@pytest.mark.parametrize("name", INSTANCES)
def test_tangent_against_numpy(name):
    instance = INSTANCES[name]
    matrix, z, rank = np.asarray(instance.matrix), np.asarray(instance.noise), instance.rank
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    onto_columns = left[:, :rank] @ left[:, :rank].T
    onto_rows = right[:rank].T @ right[:rank]
    first_order = onto_columns @ z + z @ onto_rows - onto_columns @ z @ onto_rows
    u, s, v = np.linalg.svd(matrix + z, full_matrices=False)
    error = u[:, :rank] * s[:rank] @ v[:rank] - matrix - first_order
    noise_values = np.linalg.svd(z, compute_uv=False)
    hidden = min(rank, min(matrix.shape) - rank)
    parts = np.sum(noise_values[: 2 * rank] ** 2) + np.sum(noise_values[:hidden] ** 2)
    bound = 2 * noise_values[0] / values[rank - 1] * math.sqrt(parts)
    expected = np.linalg.norm(error), bound
    assert at_once(TANGENT, instance) == approx(expected)


def test_what_cuts_nothing_has_no_second_order():
    realised, bound = at_once(TANGENT, drawn(SQUARE, rank=4, width=4))
    assert bound == 0
    assert realised <= 1e-14


def test_the_tangent_space_has_the_dimension_of_rank_r():
    random = np.random.default_rng(0)
    matrix = random.standard_normal((5, 2)) @ random.standard_normal((2, 7))
    with jax.enable_x64(True):
        images = [
            np.asarray(
                tangent_part(jnp.asarray(matrix), jnp.asarray(unit.reshape(5, 7)), 2)
            ).ravel()
            for unit in np.eye(35)
        ]
    projector = np.array(images)
    assert projector @ projector == approx(projector, condition=10)
    assert np.trace(projector) == approx(2 * (5 + 7 - 2))


def test_the_second_order_is_seen():
    """$A = se_1e_1^T$ and off-diagonal noise $z$: what is left over is $z^2/s$ to leading order."""
    instance = diagonal([100.0, 0.0], [0.0, 0.0], 1)
    turned = type(instance)(instance.matrix, np.array([[0, 1.0], [1.0, 0]]), 1)
    realised, bound = at_once(TANGENT, turned)
    assert realised == pytest.approx(0.01, rel=0.5)
    assert bound == approx(2 / 100 * math.sqrt(3))


def test_a_matrix_of_lower_rank_is_outside():
    bound = TANGENT.bound(diagonal([1.0, 0.0, 0.0], [0.1, 0.1, 0.1], 2))
    assert float(bound.value) == math.inf


@pytest.mark.parametrize(("rank", "count"), [(2, 6), (8, 12), (10, 0)])
def test_likely_error_by_hand(rank, count):
    with jax.enable_x64(True):
        edge = float(upper_edge(10.0, 12.0, 0.05))
        found = float(likely_error(10.0, 12.0, rank, 0.5, 7.0, 0.1))
    first = math.sqrt(rank * (22 - rank)) + math.sqrt(2 * math.log(20))
    assert found == approx(0.5 * first + 2 * 0.25 * edge**2 * math.sqrt(count) / 7)


def test_the_bound_is_of_the_layer():
    target = targets.ExactOutputRank(scale=300.0)
    setting = Setting(30, 12, 10, 2, target=target, noise=noise.Gaussian(0.5))
    problem = setting.draw(key=jax.random.key(0))
    with jax.enable_x64(True):
        expected = float(likely_error(12.0, 10.0, 2, 0.5, 300.0, 0.05)) ** 2
    assert float(strong_signal.gaussian.bound(problem).require()) == approx(expected)
    assert float(strong_signal.gaussian.realised(problem)) < expected
