"""The law of two spectra: exact cases, symmetries, and random rotations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_theory.free_product import tail_shares

N = 40
RANKS = np.arange(N + 1)


def power_law(exponent: float, size: int = N, rank: int | None = None) -> np.ndarray:
    index = np.arange(1.0, size + 1)
    return np.where(index <= (rank or size), index**-exponent, 0)


SPECTRA = {
    "slow": power_law(0.5),
    "fast": power_law(3.0),
    "deficient": power_law(1.0, rank=12),
    "two values": np.repeat([100.0, 1.0], [4, N - 4]),
    "three values": np.repeat([1.0, 1e-4, 0.0], [10, 20, 10]),
    "random": np.random.default_rng(0).exponential(size=N) ** 2,
}
pairs = st.tuples(st.sampled_from(sorted(SPECTRA)), st.sampled_from(sorted(SPECTRA)))


def sampled(first: np.ndarray, second: np.ndarray, draws: int) -> np.ndarray:
    """What is beyond each rank for random rotations; a row for each."""
    size, found = len(first), []
    for seed in range(draws):
        normal = np.random.default_rng(seed).standard_normal((size, size))
        rotation, triangle = np.linalg.qr(normal)
        rotation *= np.sign(np.diag(triangle))
        product = np.sqrt(first)[:, None] * rotation * np.sqrt(second)
        values = np.linalg.svd(product, compute_uv=False) ** 2
        found.append(np.append(np.cumsum(values[::-1])[::-1], 0) / values.sum())
    return np.array(found)


def test_two_projections_of_trace_one_half_give_the_arcsine_law():
    halves = np.repeat([1.0, 0.0], [100, 100])
    ranks = np.arange(0, 201, 5)
    share = np.maximum(1 - ranks / 100, 0)  # of the arcsine law
    exact = share - np.sin(np.pi * share) / np.pi
    np.testing.assert_allclose(tail_shares(halves, halves, ranks), exact, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(("one", "other"), [(150, 150), (180, 60), (40, 40), (200, 70)])
def test_two_projections_have_a_density_and_atoms(one, other):
    """At 1 where their traces are together above one, and at 0: of traces $a$ and $b$ the share of
    each eigenvalue is in closed form (Voiculescu, Dykema and Nica 1992).
    """
    size = 200
    a, b = one / size, other / size
    middle, half = a + b - 2 * a * b, np.sqrt(4 * a * b * (1 - a) * (1 - b))
    nodes, weights = np.polynomial.legendre.leggauss(400)
    angle = (nodes + 1) * np.pi / 2
    x = middle - half * np.cos(angle)  # rising, and all in one place where one of them is all
    density = half * np.sin(angle) ** 2 * half / (2 * np.pi * x * (1 - x)) if half else 0 * x
    masses = np.append(weights * np.pi / 2 * density, max(a + b - 1, 0))
    places, sums = np.cumsum(masses[::-1]), np.cumsum((masses * np.append(x, 1))[::-1])
    rank_share = min(a, b)
    assert places[-1] == pytest.approx(rank_share if half else max(a + b - 1, 0), rel=1e-6)
    ranks = np.array([0, 5, 20, 35, 38])
    top = np.interp(ranks / size, np.append(0, places), np.append(0, sums))
    found = tail_shares(
        np.repeat([1.0, 0.0], [one, size - one]),
        np.repeat([1.0, 0.0], [other, size - other]),
        ranks,
    )
    np.testing.assert_allclose(found, 1 - top / (a * b), rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_two_spectra_of_one_value_each_leave_an_equal_share_to_each(size):
    found = tail_shares(np.full(size, 2.0), np.full(size, 1e-9), np.arange(size + 1))
    np.testing.assert_allclose(found, 1 - np.arange(size + 1) / size, rtol=1e-6, atol=1e-12)


def test_gaussian_weights_give_the_law_of_marchenko_and_pastur():
    # A projection of trace 1/2 seen through Gaussian weights: B is a Wishart matrix of the law
    # whose S-transform is 1/(1+z); the product is a Wishart matrix of half the size.
    random, size = np.random.default_rng(0), 600
    wishart = np.linalg.svd(random.standard_normal((size, size)), compute_uv=False) ** 2
    smaller = np.linalg.svd(random.standard_normal((size // 2, size)), compute_uv=False) ** 2
    ranks = np.array([10, 50, 100, 200])
    found = tail_shares(np.repeat([1.0, 0.0], [size // 2] * 2), wishart, ranks)
    wanted = [np.sum(np.sort(smaller)[: size // 2 - r]) / smaller.sum() for r in ranks]
    np.testing.assert_allclose(found, wanted, rtol=0.02)


@pytest.mark.parametrize("name", sorted(SPECTRA))
def test_a_spectrum_of_one_value_changes_nothing(name):
    values = np.sort(SPECTRA[name])[::-1]
    wanted = np.append(np.cumsum(values[::-1])[::-1], 0) / values.sum()
    found = tail_shares(np.full(N, 3.0), SPECTRA[name], RANKS)
    # Between atoms the sum has kinks, which are met to within the steps of the grid.
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=1e-12)


@given(pairs, st.sampled_from([-40, -3, 0, 25]), st.sampled_from([-40, 0, 7]))
def test_the_law_is_symmetric_and_knows_no_units(names, one, other):
    first, second = (SPECTRA[name] for name in names)
    found = np.asarray(tail_shares(first, second, RANKS))
    again = tail_shares(second[::-1] * 2.0**other, first * 2.0**one, RANKS)
    np.testing.assert_allclose(found, again, rtol=1e-6, atol=1e-12)
    assert found[0] == pytest.approx(1) and found[-1] == 0
    assert np.all(np.diff(found) <= 0) and np.all(np.diff(found, 2) >= -1e-9)
    rank = min(np.count_nonzero(first), np.count_nonzero(second))
    assert np.all(found[rank:] == 0) and np.all(found[:rank] > 0)


@pytest.mark.parametrize("names", [("slow", "fast"), ("slow", "deficient"), ("fast", "two values")])
def test_random_rotations_come_near_the_law(names):
    first, second = (np.repeat(SPECTRA[name], 12) for name in names)  # 480 of each
    ranks = np.array([12, 48, 120])
    found = sampled(first, second, draws=8)[:, ranks]
    law = tail_shares(first, second, ranks)
    np.testing.assert_allclose(found.mean(axis=0), law, rtol=0.03)


def test_half_precision_and_nothing_at_all():
    assert np.asarray(tail_shares(np.ones(3, np.float32), np.ones(3, np.float32), [1])).dtype == (
        np.float32
    )
    np.testing.assert_array_equal(tail_shares(np.zeros(5), np.ones(5), [0, 1, 5, 9]), 0)


@pytest.mark.parametrize(
    ("first", "ranks", "words"),
    [
        (np.ones(4), [1], "`first` and `second` must have the same size"),
        (-np.ones(5), [1], "`first` must hold eigenvalues >= 0"),
        (np.full(5, np.nan), [1], "`first`"),
        (np.full(5, np.inf), [1], "`first`"),
        (np.ones(5), [-1], "`ranks` must be a sequence of integers >= 0; got"),
        (np.ones(5), [0.5], "`ranks` must be"),
        (np.ones((5, 1)), [1], "`first`"),
    ],
)
def test_what_is_no_spectrum_is_refused(first, ranks, words):
    with pytest.raises(ValueError, match=words):
        tail_shares(first, np.ones(5), ranks)
