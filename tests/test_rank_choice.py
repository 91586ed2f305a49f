"""Rules that choose a rank: laws, regressions on pure noise, and oracles in NumPy."""

import functools
from typing import Any

import numpy as np
import pytest
from scipy import optimize

from laws import jit_is_eager, scales, turns, vmap_is_a_loop
from lowrank_theory import rank_choice
from lowrank_theory.calibration import Calibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import shrinkage

pytestmark = pytest.mark.thinned(6)

SHAPES = [(100, 200), (100, 400), (100, 1600), (200, 100), (400, 100), (1600, 100)]
SMALL = (30, 40)


def noise(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def planted(shape: tuple[int, int], *multiples: float, seed: int = 0) -> np.ndarray:
    """Spikes in multiples of the detection threshold, in noise of variance one."""
    random = np.random.default_rng(seed + 100)
    left, _ = np.linalg.qr(random.standard_normal((shape[0], len(multiples))))
    right, _ = np.linalg.qr(random.standard_normal((shape[1], len(multiples))))
    values = (shape[0] * shape[1]) ** 0.25 * np.array(multiples)
    return left * values @ right.T + noise(shape, seed)


def weights(matrix: np.ndarray) -> Observed:
    return Observed(weights=matrix)


RULES: dict[str, Any] = {
    "energy": functools.partial(rank_choice.energy, fraction=0.6),
    "hard_threshold": rank_choice.hard_threshold,
    "screenot": functools.partial(rank_choice.screenot, at_most=6),
}
every_rule = pytest.mark.parametrize("name", RULES)


# --- laws ----------------------------------------------------------------------------------------


@every_rule
def test_rank_is_an_int_that_no_units_change(name):
    matrix = planted(SMALL, 6.0, 4.0)
    rank = RULES[name](weights(matrix))
    assert type(rank) is int
    assert rank == (2 if name != "energy" else energy_oracle(matrix, 0.6))
    scales(lambda unit: RULES[name](weights(unit * matrix)), 0)


@every_rule
def test_transposes_and_rotations_change_no_rank(name):
    matrix = planted(SMALL, 6.0, 4.0)
    assert RULES[name](weights(matrix.T)) == RULES[name](weights(matrix))
    turns(lambda matrix: RULES[name](weights(matrix)), "ab->", matrix)


@every_rule
def test_rank_is_data_under_jit_and_vmap(name):
    def rank(matrix: Any) -> Any:
        return np.int32(found) if type(found := RULES[name](weights(matrix))) is int else found

    stack = [planted(SMALL, 6.0, 4.0), noise(SMALL), planted(SMALL, 5.0)]
    vmap_is_a_loop(rank, np.stack(stack).astype(np.float32))
    for matrix in stack:
        jit_is_eager(rank, matrix.astype(np.float32))


@every_rule
def test_zero_has_rank_zero_and_what_has_no_noise_its_own(name):
    assert RULES[name](weights(np.zeros(SMALL))) == 0
    if name != "energy":
        clean = planted(SMALL, 6.0, 4.0, 1.0) - noise(SMALL)
        assert RULES[name](weights(clean)) == 3
        assert RULES[name](weights(clean.astype(np.float32))) == 3
        assert rank_choice.hard_threshold(weights(clean), 0.0) == 3


# --- what is read of a layer ---------------------------------------------------------------------


def energy_oracle(matrix: np.ndarray, fraction: float) -> int:
    energies = np.linalg.svd(matrix, compute_uv=False) ** 2
    return 1 + int(np.sum(np.cumsum(energies) < fraction * np.sum(energies)))


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9, 0.999])
def test_energy_against_oracle(fraction):
    random = np.random.default_rng(3)
    inputs, outputs = random.standard_normal((50, 6)), random.standard_normal((50, 8))
    attainable = inputs @ np.linalg.lstsq(inputs, outputs)[0]
    observed = Observed(activations=inputs, outputs=outputs)
    assert rank_choice.energy(observed, fraction) == energy_oracle(attainable, fraction)
    inside = Observed(activations=noise((50, 6), 4), compressed_activations=inputs, outputs=outputs)
    assert rank_choice.energy(inside, fraction) == energy_oracle(attainable, fraction)
    layer = Observed(weights=outputs[:6], activations=inputs)
    expected = energy_oracle(inputs @ outputs[:6], fraction)
    assert rank_choice.energy(layer, fraction) == expected
    biased = Observed(weights=outputs[:6], activations=inputs + 5, bias=outputs[7])
    centred = inputs - inputs.mean(axis=0)
    assert rank_choice.energy(biased, fraction) == energy_oracle(centred @ outputs[:6], fraction)


def test_energy_of_equal_values():
    assert [rank_choice.energy(weights(np.eye(4)), f) for f in (0.2, 0.25, 0.3, 0.99)] == [
        1,
        1,
        2,
        4,
    ]


@pytest.mark.parametrize("known", [True, False])
def test_noise_fills_only_the_column_space_of_the_activations(known):
    """A rank of 40 in 100 inputs: the threshold is that of a 40 x 60 matrix."""
    random = np.random.default_rng(5)
    inputs = random.standard_normal((150, 40)) @ random.standard_normal((40, 100))
    basis, _ = np.linalg.qr(inputs)
    outputs = random.standard_normal((150, 60))
    values = np.linalg.svd(basis[:, :40].T @ outputs, compute_uv=False)
    constant = float(np.asarray(shrinkage.hard_threshold_constant(2 / 3)))
    median = float(np.asarray(shrinkage.marchenko_pastur_median(2 / 3)))
    unit = np.sqrt(60) if known else np.median(values) / np.sqrt(median)
    left, _, right = np.linalg.svd(basis[:, :40] @ basis[:, :40].T @ outputs, full_matrices=False)
    for factor, expected in ((0.98, 0), (1.02, 1)):
        strength = factor * constant * unit - values[0]
        raised = outputs + strength * np.outer(left[:, 0], right[0])
        observed = Observed(activations=inputs, outputs=raised)
        assert rank_choice.hard_threshold(observed, 1.0 if known else None) == expected


# --- hard threshold ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_pure_noise_has_rank_zero(shape):
    matrix = weights(noise(shape))
    assert rank_choice.hard_threshold(matrix) == 0
    assert rank_choice.hard_threshold(matrix, 1.0) == 0
    assert rank_choice.screenot(matrix, 10) == 0


@pytest.mark.parametrize("shape", [(100, 200), (400, 100)])
def test_spikes_above_the_threshold_are_counted(shape):
    matrix = weights(planted(shape, 5.0, 4.0, 3.0, 0.5))
    assert rank_choice.hard_threshold(matrix) == 3
    assert rank_choice.hard_threshold(matrix, 1.0) == 3
    assert rank_choice.screenot(matrix, 10) == 3


# --- correlated noise ----------------------------------------------------------------------------


def correlated(shape: tuple[int, int], correlation: float, seed: int) -> np.ndarray:
    lags = np.abs(np.subtract.outer(np.arange(shape[0]), np.arange(shape[0])))
    return np.linalg.cholesky(correlation**lags) @ noise(shape, seed)


@pytest.mark.parametrize("turn", [np.asarray, np.transpose])
@pytest.mark.parametrize("seed", range(3))
def test_correlated_noise_needs_its_own_rule(turn, seed):
    shape = 100, 200
    signal = planted(shape, 1.0, seed=seed) - noise(shape, seed)
    matrix = correlated(shape, 0.6, seed) + 10 * signal
    observed = weights(turn(matrix))
    assert rank_choice.hard_threshold(observed) > 5
    assert rank_choice.hard_threshold(observed, 1.0) > 1
    assert rank_choice.screenot(observed, 10) == 1


@pytest.mark.parametrize("at_most", [1, 4, 9])
def test_screenot_against_its_equation(at_most):
    """The threshold by root finding on numerical derivatives, at a loose and at a tight bound."""
    matrix = planted((24, 60), 4.0, 3.0, 2.2, seed=7)
    values = np.linalg.svd(matrix, compute_uv=False)
    noise_values = values.copy()
    k, beta = at_most, 24 / 60
    for i in range(k):
        share = (1 - (i / k) ** (2 / 3)) / (2 ** (2 / 3) - 1)
        noise_values[i] = values[k] + share * (values[k] - values[2 * k])

    def slope(y: float) -> float:
        def log_transform(log_y: float) -> float:
            y = np.exp(log_y)
            phi = np.mean(y / (y**2 - noise_values**2))
            return np.log(phi * (beta * phi + (1 - beta) / y))

        step = 1e-6
        return (log_transform(np.log(y) + step) - log_transform(np.log(y) - step)) / (2 * step)

    threshold: Any = optimize.brentq(
        lambda y: slope(y) + 4, noise_values[0] * 1.001, 10 * values[0]
    )
    for factor, extra in ((1 - 1e-6, 0), (1 + 1e-6, 1)):
        # A component moved to either side of the threshold, from among the replaced ones.
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        moved = values.copy()
        moved[0] = factor * threshold
        moved[1:k] = np.minimum(moved[1:k], values[k])
        expected = int(np.sum(moved > threshold))
        assert expected == extra
        assert rank_choice.screenot(weights(left * moved @ right), k) == expected


def test_screenot_agrees_with_the_hard_threshold_for_white_noise():
    shape = 200, 400
    constant = float(np.asarray(shrinkage.hard_threshold_constant(0.5))) * 20
    left, values, right = np.linalg.svd(noise(shape), full_matrices=False)
    for factor, expected in ((0.97, 0), (1.03, 1)):
        values[0] = factor * constant
        assert rank_choice.screenot(weights(left * values @ right), 8) == expected


def test_screenot_for_noise_of_equal_singular_values():
    """There the threshold of a square matrix is the root of 3 times that value."""
    for factor, expected in ((0.999, 0), (1.001, 1)):
        values = np.ones(9)
        values[0] = factor * 3**0.5
        assert rank_choice.screenot(weights(np.diag(values)), 2) == expected


# --- bad input -----------------------------------------------------------------------------------


def test_bad_input_is_refused():
    layer = weights(noise((5, 9)))
    for wrong in (0.0, 1.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="`fraction` must lie strictly between 0 and 1"):
            rank_choice.energy(layer, wrong)
    with pytest.raises(ValueError, match="`noise_scale` must be a non-negative finite number"):
        rank_choice.hard_threshold(layer, -1.0)
    for wrong in (0, 3):
        with pytest.raises(ValueError, match=r"`at_most` must be an integer from 1 to 2 \(so that"):
            rank_choice.screenot(layer, wrong)
    moments = Calibration.empty(5).update(np.ones((3, 5)))
    for rule in RULES.values():
        with pytest.raises(ValueError, match=r"from rows: give `Observed\(activations="):
            rule(Observed(weights=noise((5, 9)), calibration=moments))
