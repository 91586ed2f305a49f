"""Perturbations, and the random ones of prescribed spectra and alignment."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory.perturbations import Perturbation, PerturbationSetting
from oracle import singular_values
from tolerance import assert_close

SIGNAL, NOISE = np.array([3.0, 2.0, 1.0]), np.array([-0.5, 0.25, 0.125])
SETTING = PerturbationSetting(5, 3, 2, signal=SIGNAL, noise=NOISE)
SQUARE = PerturbationSetting(3, 3, 2, signal=SIGNAL, noise=NOISE)


def drawn(setting: PerturbationSetting, seed: int = 0, **changes: object) -> Perturbation:
    return dataclasses.replace(setting, **changes).draw(key=jax.random.key(seed))


@pytest.mark.parametrize("alignment", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("setting", [SETTING, SQUARE, dataclasses.replace(SQUARE, symmetric=True)])
def test_spectra_are_as_prescribed(setting, alignment):
    perturbation = drawn(setting, alignment=alignment)
    assert perturbation.sizes == (setting.rows, setting.columns)
    assert perturbation.rank == 2
    assert_close(singular_values(perturbation.matrix), [3, 2, 1])
    assert_close(singular_values(perturbation.noise), [0.5, 0.25, 0.125])


@pytest.mark.parametrize("setting", [SETTING, SQUARE])
def test_aligned_noise_shares_the_singular_vectors_by_index(setting):
    perturbation = drawn(setting, alignment=1.0)
    assert_close(singular_values(perturbation.perturbed), [2.5, 2.25, 1.125])


def overlap(alignment: float) -> float:
    """How much of the noise lies on its partner among the signal's components."""
    flat = dataclasses.replace(SETTING, noise=np.array([1.0, 0.0, 0.0]), alignment=alignment)
    overlaps = []
    for seed in range(30):
        perturbation = flat.draw(key=jax.random.key(seed))
        left, _, right = np.linalg.svd(np.asarray(perturbation.matrix))
        overlaps.append(left[:, 0] @ np.asarray(perturbation.noise) @ right[0])
    return float(np.mean(np.abs(overlaps)))


def test_alignment_turns_the_noise_towards_the_signal():
    independent, half, nearly = overlap(0.0), overlap(0.5), overlap(0.9)
    assert independent < 0.4 < half < nearly
    assert nearly == pytest.approx(1, abs=0.05)


def test_symmetric_settings_draw_symmetric_matrices():
    perturbation = drawn(SQUARE, symmetric=True)
    for part in (perturbation.matrix, perturbation.noise):
        np.testing.assert_allclose(part, np.asarray(part).T, atol=1e-15)
    assert np.linalg.eigvalsh(np.asarray(perturbation.noise)).min() == pytest.approx(-0.5)
    skew = np.asarray(drawn(SQUARE).matrix)
    assert np.abs(skew - skew.T).max() > 0.1


def test_keys_decide():
    np.testing.assert_array_equal(drawn(SETTING).matrix, drawn(SETTING).matrix)
    assert not np.allclose(drawn(SETTING).matrix, drawn(SETTING, 1).matrix)


def test_the_four_bases_are_independent():
    flat = dataclasses.replace(SQUARE, signal=np.ones(3), noise=np.ones(3))
    perturbation = flat.draw(key=jax.random.key(0))  # two products of two bases each
    products = [np.asarray(perturbation.matrix), np.asarray(perturbation.noise), np.eye(3)]
    for one, other in itertools.combinations(products, 2):
        assert not np.allclose(one, other)


def test_drawing_works_under_jit_and_map():
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.jit(lambda keys: jax.lax.map(lambda key: SETTING.draw(key=key), keys))(keys)
    alone = SETTING.draw(key=keys[2])
    assert stacked.matrix.shape == (3, 5, 3)
    assert_close(stacked.matrix[2], alone.matrix)
    assert_close(stacked.noise[2], alone.noise)


def test_perturbation_is_stored_in_float64():
    single = np.ones((3, 2), np.float32)
    perturbation = Perturbation(single, jnp.asarray(single) / 3, 1)
    assert perturbation.matrix.dtype == perturbation.noise.dtype == np.float64
    assert perturbation.perturbed.dtype == np.float64
    np.testing.assert_array_equal(perturbation.perturbed, 1 + np.float64(np.float32(1) / 3))
    assert perturbation.sizes == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(3), np.ones((3, 2)), 1), r"`matrix` must have shape \(rows, columns\)"),
        ((np.ones((3, 2)), np.ones((3, 2), int), 1), "`noise` must be floating point"),
        ((np.ones((3, 2)), np.ones((2, 2)), 1), "`noise` has 2 rows, but `matrix` has 3"),
        ((np.ones((3, 2)), np.ones((3, 1)), 1), "`noise` has 1 columns, but `matrix` has 2"),
        ((np.ones((3, 2)), np.full((3, 2), np.nan), 1), "`noise` has 6 non-finite entries"),
        ((np.ones((3, 2)), np.ones((3, 2)), 0), "`rank` must be an integer from 1 to 2"),
        ((np.ones((3, 2)), np.ones((3, 2)), 3), r"the smaller side of a 3 x 2 matrix.*got 3"),
    ],
)
def test_bad_perturbations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Perturbation(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "`rows` must be an integer >= 1; got 0"),
        ({"columns": 0}, "`columns` must be an integer >= 1; got 0"),
        ({"rank": 4}, "`rank` must be an integer from 1 to 3"),
        ({"signal": np.ones(4)}, "`signal` has 4 values, but `a matrix of that size` has 3"),
        ({"noise": np.ones(2)}, "`noise` has 2 values"),
        ({"signal": np.array([1, 2, 3])}, "`signal` must be floating point"),
        ({"alignment": 1.5}, "`alignment` must lie between 0 and 1; got 1.5"),
        ({"alignment": -0.1}, "`alignment` must lie between 0 and 1"),
        ({"alignment": math.nan}, "`alignment` must lie between 0 and 1; got nan"),
        ({"symmetric": True}, "`symmetric` needs a square matrix; got 5 rows and 3 columns"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTING, **changes)
