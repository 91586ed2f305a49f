"""Statistics of weights and inputs obey their laws, and Gaussian losses are those of the tables."""

import numpy as np
import pytest
from scipy import stats

from lowrank_theory.networks import kurtosis, outlier_ratio, participation_ratio, stable_rank
from lowrank_theory.studies.gaussian_losses import pruned_loss, rounded_loss, truncated_loss
from tolerance import approx


def matrix(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def rotation(seed: int, size: int) -> np.ndarray:
    return np.linalg.qr(matrix(seed, size, size))[0]


@pytest.mark.parametrize("scale", [1.0, -3.0, 2.0**-400, 2.0**300])
def test_scales_do_not_count(scale):
    weights = matrix(0, 12, 9)
    gram = weights.T @ weights
    assert kurtosis(scale * weights) == approx(kurtosis(weights))
    assert stable_rank(scale * weights) == approx(stable_rank(weights))
    assert participation_ratio(abs(scale) * gram) == approx(participation_ratio(gram))
    squares = np.sum(weights**2, axis=1)
    assert outlier_ratio(abs(scale) * squares) == approx(outlier_ratio(squares))


def test_rotations_do_not_count():
    weights, turn = matrix(1, 10, 7), rotation(2, 10)
    assert stable_rank(turn @ weights) == approx(stable_rank(weights))
    assert stable_rank(weights.T) == approx(stable_rank(weights))
    gram = weights @ weights.T
    assert participation_ratio(turn @ gram @ turn.T) == approx(participation_ratio(gram))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_equal_parts_are_counted(count):
    parts = np.repeat([2.5, 0.0], [count, 8 - count])
    turn = rotation(3, 8)
    assert stable_rank(turn * parts) == approx(count)
    assert participation_ratio((turn * parts) @ turn.T) == approx(count)
    assert outlier_ratio(parts) == approx(8 / count)


def test_the_participation_is_that_of_the_stable_rank_between_one_and_the_rank():
    weights = matrix(4, 30, 6) * np.geomspace(1, 0.01, 6)
    gram = weights.T @ weights
    shares = np.linalg.eigvalsh(gram) / np.trace(gram)
    assert participation_ratio(gram) == approx(1 / np.sum(shares**2), condition=1e4)
    assert 1 <= stable_rank(weights) <= participation_ratio(gram) <= 6


def test_kurtosis_of_known_laws():
    signs = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert kurtosis(signs) == approx(1) and kurtosis(signs + 5) == approx(1)
    draw = np.random.default_rng(5)
    for values, expected in (
        (draw.standard_normal((1_000, 1_000)), 3.0),
        (draw.uniform(size=(1_000, 1_000)), 1.8),
        (draw.laplace(size=(1_000, 1_000)), 6.0),
    ):
        assert kurtosis(values) == pytest.approx(expected, rel=0.02)
    weights = matrix(6, 20, 20)
    assert kurtosis(weights) == approx(float(stats.kurtosis(weights.ravel(), fisher=False)))


def test_nothing_is_not_a_number():
    zeros = np.zeros((3, 3))
    found = (
        kurtosis(zeros),
        stable_rank(zeros),
        participation_ratio(zeros),
        outlier_ratio(zeros[0]),
    )
    assert np.isnan(found).all()
    assert np.isnan(kurtosis(np.ones((2, 2))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kurtosis(np.ones(3)), "`weights` must have shape"),
        (lambda: stable_rank(np.array([[np.nan]])), "`weights`"),
        (lambda: participation_ratio(np.ones((2, 3))), "`second_moment` must be square"),
        (lambda: outlier_ratio(np.array([1.0, -1.0])), "`squares` must not be negative"),
        (lambda: rounded_loss(0), "`bits` must be an integer from 1 to 16"),
        (lambda: pruned_loss(1.5), "`kept`"),
        (lambda: truncated_loss(4, 3, 5), "`rank`"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- Gaussian weights -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "expected"), [(1, 0.3634), (2, 0.1188), (3, 0.03744), (4, 0.01154), (8, 8.8e-5)]
)
def test_rounding_as_in_the_tables_of_max(bits, expected):
    assert rounded_loss(bits) == pytest.approx(expected, rel=0.02 if bits == 8 else 1e-3)


@pytest.mark.parametrize(
    ("kept", "expected"), [(0.25, 0.276), (0.125, 0.498), (0.0625, 0.675), (0.03125, 0.800)]
)
def test_few_entries(kept, expected):
    assert pruned_loss(kept) == pytest.approx(expected, abs=6e-4)
    weights = np.sort(np.abs(matrix(7, 400_000)))[::-1] ** 2
    assert 1 - weights[: round(kept * weights.size)].sum() / weights.sum() == pytest.approx(
        expected, abs=5e-3
    )


@pytest.mark.parametrize(("share", "expected"), [(4, 0.624), (8, 0.791), (16, 0.890), (32, 0.942)])
def test_low_rank_of_a_square_matrix_at_equal_numbers(share, expected):
    size = 3_200
    assert truncated_loss(size, size, size // 2 // share) == pytest.approx(expected, abs=5e-3)


def test_few_bits_beat_few_entries_beat_low_rank():
    for bits in (2, 4, 8):
        share = bits / 32
        rank = round(share * 1_024 / 2)
        assert rounded_loss(bits) < pruned_loss(share) < truncated_loss(1_024, 1_024, rank)
