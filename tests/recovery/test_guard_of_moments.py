"""Recoveries are certified only where they are accurate, from moments and from rows."""

import numpy as np
import pytest

from lowrank_theory import Calibration
from lowrank_theory.recovery import activation_weighted, activation_weighted_from_moments
from oracle import Question, norm, objective, product, svd
from regimes import NEGLIGIBLE, orthonormal

pytestmark = pytest.mark.thinned(6)


def _hard_layers(count: int, largest: float = 9.0):
    """Dominant spread directions, weights nearly orthogonal to them, exactly low rank."""
    random = np.random.default_rng(7)
    for index in range(count):
        kind, rank = index % 5, 2
        ratio = 10 ** random.uniform(0, largest)
        massive = random.integers(1, 3)
        values = np.where(np.arange(8) < massive, ratio, np.geomspace(1, 0.1, 8))
        frame = orthonormal(random, 8, 8)
        activations = (random.standard_normal((12, 8)) * values) @ frame.T
        weights = random.standard_normal((8, 6))
        away = 10 ** random.uniform(-10, 0)
        dominant = frame[:, :massive]
        if kind in (1, 3):  # nearly orthogonal to the dominant directions
            weights -= (1 - away) * dominant @ (dominant.T @ weights)
        if kind in (2, 3):  # of the rank asked for, or nearly
            left, sizes, right = np.linalg.svd(weights, full_matrices=False)
            tail = 10 ** random.uniform(-12, 0) if index % 2 else 0.0
            weights = (left * np.where(np.arange(6) < rank, sizes, tail * sizes)) @ right
        if kind == 4:  # the dominant part is what a mean does
            activations = random.standard_normal((12, 8)) + ratio * random.standard_normal(8)
        yield kind, ratio, activations, weights


def _true_errors(question_: Question, weights, rank: int) -> tuple[float, float]:
    """The error and the optimum, with the outputs formed in extended precision."""
    values = svd(attainable_outputs(question_))[1]
    outside = norm(question_.outputs - attainable_outputs(question_))
    optimum = np.hypot(outside, np.sqrt(np.sum(values[rank:] ** 2)))
    return objective(question_, weights), float(optimum)


def attainable_outputs(asked: Question):
    left, values, _ = svd(asked.inputs)
    basis = left[:, values > 1e-13 * values[0]]
    return product(basis, product(basis.T, asked.outputs))


@pytest.mark.parametrize("mismatch", [False, True])
def test_moments_are_certified_only_where_they_are_accurate(mismatch):
    random = np.random.default_rng(11)
    bad = certified = benign = 0
    for _, ratio, activations, weights in _hard_layers(300, 5.0 if mismatch else 9.0):
        outputs = product(activations, weights)
        inputs = activations
        calibration = Calibration.empty(8, compressed=mismatch)
        if mismatch:
            inputs = activations + 10 ** random.uniform(-9, 0) * random.standard_normal((12, 8))
            calibration = calibration.update(activations, inputs)
        else:
            calibration = calibration.update(activations)
        factors, _, certificate = activation_weighted_from_moments(weights, calibration, rank=2)
        found = product(np.asarray(factors.left), np.asarray(factors.right))
        if mismatch:
            error, optimum = _true_errors(Question(inputs, outputs), found, 2)
        else:  # without projecting: the outputs are attainable as they are
            values = svd(outputs)[1]
            error, optimum = norm(outputs - product(inputs, found)), norm(values[2:])
        size = norm(outputs)
        is_bad = error > optimum + max(1e-3 * optimum, NEGLIGIBLE * size) + 1e-14 * size
        is_certified = bool(certificate.certified)
        assert not (is_bad and is_certified), (ratio, error, optimum, size)
        bad, certified = bad + is_bad, certified + is_certified
        benign += ratio < 30 and optimum > 1e-3 * size and not mismatch and not is_certified
    assert bad >= 20  # else nothing was tested
    assert certified >= 50
    assert benign == 0


@pytest.mark.slow
@pytest.mark.parametrize("from_rows", [False, True], ids=["moments", "rows"])
def test_affine_recoveries_are_certified_only_where_they_are_accurate(from_rows):
    """A large mean leaves rounding of its own size, which must not be certified away."""
    random = np.random.default_rng(12)
    bad = certified = 0
    for index, (kind, _, activations, full) in enumerate(_hard_layers(1500)):
        if kind != 4:
            continue
        left, values, right = np.linalg.svd(full, full_matrices=False)
        graded = np.array([1e-6, 1e-7, 1e-8, 1e-9])
        tail = graded if index < 400 else 10 ** random.uniform(-5, 0) * np.ones(4)
        weights = (left * values * np.concatenate([np.ones(2), tail])) @ right
        bias = np.zeros(6)
        if from_rows:
            answer = activation_weighted(weights, activations, None, None, bias, rank=2)
        else:
            calibration = Calibration.empty(8)
            for batch in np.split(activations, 3):
                calibration = calibration.update(batch)
            answer = activation_weighted_from_moments(weights, calibration, bias, rank=2)
        factors, new_bias, certificate = answer
        found = product(np.asarray(factors.left), np.asarray(factors.right))
        outputs = product(activations, weights)
        error = norm(outputs - product(activations, found) - np.asarray(new_bias))
        target = outputs - outputs.mean(axis=0)
        optimum, size = norm(svd(target)[1][2:]), norm(target)
        is_bad = error > optimum + max(1e-3 * optimum, NEGLIGIBLE * size) + 1e-14 * size
        assert not (is_bad and bool(certificate.certified)), (error, optimum, size)
        bad, certified = bad + is_bad, certified + bool(certificate.certified)
    assert bad >= 4  # else nothing was tested
    assert certified >= 10


def test_moments_do_not_certify_what_a_dropped_direction_may_hide():
    """A direction of the inputs that the Gram cannot see, and which carries the outputs."""
    random = np.random.default_rng(5)
    left, right = orthonormal(random, 12, 8), orthonormal(random, 8, 8)
    for size in (1e-5, 1e-7, 1e-9):
        inputs = (left * np.array([1, 1, 1, 1, 1, 1, 1, size])) @ right.T
        frame = orthonormal(random, 6, 6)
        activations = left @ right.T
        weights = right[:, 5:8] * np.array([1e-3, 1e-2, 1]) @ frame[:, :3].T
        calibration = Calibration.empty(8, compressed=True).update(activations, inputs)
        factors, _, certificate = activation_weighted_from_moments(weights, calibration, rank=2)
        found = product(np.asarray(factors.left), np.asarray(factors.right))
        error, optimum = _true_errors(Question(inputs, activations @ weights), found, 2)
        assert not certificate.certified or error <= 1.001 * optimum + 1e-10
