"""Perturbed singular subspaces against NumPy, by hand, and under their laws."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory.perturbations import Perturbation
from lowrank_theory.theorems.singular_subspaces import (
    BothSides,
    Eigenvectors,
    Gap,
    Wedin,
    WedinFrobenius,
    leading_vectors,
    singular_subspaces,
)
from perturbed import (
    SQUARE,
    TALL,
    adversary_keeps_its_word,
    at_once,
    compiles_for_many,
    control_is_broken,
    diagonal,
    drawn,
    obeys_the_laws,
)
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(5)

STATEMENTS = singular_subspaces.statements
SINGULAR = [name for name in STATEMENTS if "eigen" not in name]
SYMMETRIC = [name for name in STATEMENTS if "eigen" in name]
EXPONENTS = (1.0, 2.0, 4.0, math.inf)
INSTANCES = {
    "tall": drawn(TALL, width=4),
    "square, low rank": drawn(SQUARE, noise=1.0),
    "wide": drawn((3, 5), width=3),
    "rank one": drawn(TALL, rank=1, width=4),
    "full rank": drawn(TALL, rank=4, width=4),
}


def decomposition(matrix: object, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    left, values, right = np.linalg.svd(np.asarray(matrix), full_matrices=False)
    return left[:, :rank], np.pad(values, (0, rank)), right[:rank].T


def sines(basis: np.ndarray, other: np.ndarray) -> np.ndarray:
    """From the cosines of the principal angles, not from residuals: half the digits of no angle."""
    cosines = np.linalg.svd(basis.T @ other, compute_uv=False)
    return np.sqrt(np.maximum(1 - cosines**2, 0))


def oracle(instance: Perturbation) -> tuple[np.ndarray, ...]:
    """Sines on both sides, both lists of singular values, and those of the noise."""
    left, signal, right = decomposition(instance.matrix, instance.rank)
    other_left, values, other_right = decomposition(instance.perturbed, instance.rank)
    noise = np.linalg.svd(np.asarray(instance.noise), compute_uv=False)
    return sines(left, other_left), sines(right, other_right), signal, values, noise


def test_names():
    names = ["wedin", "wedin_frobenius", "gap", "gap_operator_norm", "both_sides"]
    names += ["eigenvectors", "eigenvectors_operator_norm"]
    assert list(STATEMENTS) == [f"singular_subspaces.{name}" for name in names]
    found = [s.exponent for s in STATEMENTS.values() if isinstance(s, Gap | Eigenvectors)]
    assert found == [2, math.inf, 2, math.inf]
    assert all(s.sharp for s in STATEMENTS.values())


@pytest.mark.parametrize("name", SINGULAR)
def test_laws(name):
    obeys_the_laws(STATEMENTS[name], INSTANCES["tall"], degree=0)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_laws_of_symmetric_matrices(name):
    instance = drawn(SQUARE, width=4, symmetric=True)
    obeys_the_laws(STATEMENTS[name], instance, degree=0, symmetric=True)


@pytest.mark.parametrize("name", STATEMENTS)
def test_adversary_and_control(name):
    adversary_keeps_its_word(STATEMENTS[name])
    control_is_broken(STATEMENTS[name])


def test_many_at_once():
    compiles_for_many(Gap(), INSTANCES["tall"])


@pytest.mark.parametrize("instance", INSTANCES.values(), ids=INSTANCES)
def test_gap_against_numpy(instance):
    left, right, signal, _, noise = oracle(instance)
    gap, rank = signal[instance.rank - 1] - signal[instance.rank], instance.rank
    for p in EXPONENTS:
        realised = max(np.linalg.norm(left, p), np.linalg.norm(right, p))
        bound = 2 * np.linalg.norm(noise[:rank], p) / gap
        assert at_once(Gap(p), instance) == pytest.approx((realised, bound), rel=1e-7)
    realised = math.hypot(np.linalg.norm(left), np.linalg.norm(right))
    bound = 2 * np.linalg.norm(noise[: 2 * rank]) / gap
    assert at_once(BothSides(), instance) == approx((realised, bound))


@pytest.mark.parametrize("instance", INSTANCES.values(), ids=INSTANCES)
def test_wedin_against_numpy(instance):
    left, right, signal, values, _ = oracle(instance)
    rank, count = instance.rank, min(instance.sizes)
    u, _, v = decomposition(instance.matrix, rank)
    sides = instance.noise @ v, instance.noise.T @ u
    realised = max(np.max(left), np.max(right))
    strength = max(np.linalg.norm(side, 2) for side in sides)
    bound = strength / (signal[rank - 1] - values[rank])
    assert at_once(Wedin(), instance) == approx((realised, bound))
    realised = math.hypot(np.linalg.norm(left), np.linalg.norm(right))
    distances = [abs(s - t) for s in signal[:rank] for t in (*values[rank:count], 0)]
    bound = math.hypot(*map(np.linalg.norm, sides)) / min(distances)
    assert at_once(WedinFrobenius(), instance) == approx((realised, bound))


@pytest.mark.parametrize("rank", [1, 3])
def test_eigenvectors_against_numpy(rank):
    instance = drawn(SQUARE, width=4, rank=rank, symmetric=True)
    spectra = [np.linalg.eigh(np.asarray(m)) for m in (instance.matrix, instance.perturbed)]
    angles = sines(*(vectors[:, -rank:] for _, vectors in spectra))
    values = spectra[0][0][::-1]
    assert values[-1] < 0
    noise = np.linalg.svd(np.asarray(instance.noise), compute_uv=False)[:rank]
    for p in EXPONENTS:
        bound = 2 * np.linalg.norm(noise, p) / (values[rank - 1] - values[rank])
        expected = np.linalg.norm(angles, p), bound
        assert at_once(Eigenvectors(p), instance) == approx(expected, condition=100)


@pytest.mark.parametrize("angle", [0.1, 1.0, 1.5])
def test_wedin_is_attained_at_every_angle(angle):
    vector = np.array([math.cos(angle), math.sin(angle)])
    matrix = np.diag([1.0, 0.0])
    instance = Perturbation(matrix, np.outer(vector, vector) - matrix, 1)
    sine = math.sin(angle)
    assert at_once(Wedin(), instance) == approx((sine, sine))
    assert at_once(WedinFrobenius(), instance) == approx((2**0.5 * sine,) * 2)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("below", [0.0, 0.5])
def test_gap_is_attained(copies, below):
    half = (1 - below) / 2
    noise = [-half - 1e-9] * copies + [half] * copies
    instance = diagonal([1.0] * copies + [below] * copies, noise, copies)
    for p in EXPONENTS:
        expected = (copies ** (1 / p),) * 2
        assert at_once(Gap(p), instance) == pytest.approx(expected, rel=1e-7)
        assert at_once(Eigenvectors(p), instance) == pytest.approx(expected, rel=1e-7)
    expected = ((2 * copies) ** 0.5,) * 2
    assert at_once(BothSides(), instance) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_gap_is_below_the_bound_of_yu_wang_and_samworth(seed):
    instance = drawn(TALL, width=4, noise=0.5, seed=seed)
    *_, signal, _, noise = oracle(instance)
    total = 2 * (2 * signal[0] + noise[0]) * min(2**0.5 * noise[0], np.linalg.norm(noise))
    theirs = total / (signal[1] ** 2 - signal[2] ** 2)
    assert float(Gap().bound(instance).value) <= theirs


def test_bases_belong_together_at_a_tie():
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    with jax.enable_x64(True):
        vectors = leading_vectors(jnp.asarray(rotation), 2)
        assert_close(rotation @ vectors.right, vectors.left)


@pytest.mark.parametrize("name", [name for name in STATEMENTS if "wedin" not in name])
def test_without_a_gap_there_is_no_bound(name):
    bound = STATEMENTS[name].bound(diagonal([1, 1, 1], [0.1, 0.2, 0.1]))
    failing = [h.name for h in bound.hypotheses if not h.holds]
    kind = "eigenvalues" if name in SYMMETRIC else "singular values"
    assert failing == [f"there is a gap of {kind} at the rank"]
    assert float(bound.value) == math.inf
    with pytest.raises(RuntimeError, match=f"'{failing[0]}' does not hold"):
        jax.block_until_ready(bound.require())


@pytest.mark.parametrize("statement", [Wedin(), WedinFrobenius()])
def test_wedin_needs_its_separation(statement):
    bound = statement.bound(diagonal([2, 1], [-0.5, 0.5]))
    assert [bool(h.holds) for h in bound.hypotheses] == [True]
    bound = statement.bound(diagonal([2, 1], [0, 1]))  # the second value becomes 2
    assert [bool(h.holds) for h in bound.hypotheses] == [False]
    assert float(bound.value) == math.inf


def test_frobenius_separation_lets_the_others_lie_above():
    instance = diagonal([2, 1], [1, 3])  # the first becomes the second, at distance 1 from 2
    assert float(WedinFrobenius().bound(instance).value) == approx(math.hypot(1, 1))
    assert float(Wedin().bound(instance).value) == math.inf


def test_zero_has_no_gap():
    instance = Perturbation(np.zeros((3, 2)), np.zeros((3, 2)), 1)
    for statement in (Wedin(), WedinFrobenius(), Gap(), BothSides()):
        assert float(statement.bound(instance).value) == math.inf


def test_eigenvectors_are_those_of_symmetric_matrices():
    bound = Eigenvectors().bound(drawn(SQUARE, width=4))
    assert not bool(bound.hypotheses[0].holds)
    assert bound.hypotheses[0].name == "both matrices are symmetric"
    for instance in (drawn(TALL), drawn(SQUARE, rank=4, width=4, symmetric=True)):
        with pytest.raises(ValueError, match="square matrix with more rows than its rank; got"):
            Eigenvectors().bound(instance)


@pytest.mark.parametrize("statement", [Gap, Eigenvectors])
def test_exponent_of_no_norm_is_refused(statement):
    with pytest.raises(ValueError, match="`exponent` must be at least 1"):
        statement(0.5)


def test_rounding_scales_with_all_that_is_added_over_the_gap():
    instance = diagonal([4, 3], [0, -5])  # with noise 4, 2
    doubled, single = (Gap(), BothSides(), Eigenvectors()), (Wedin(), WedinFrobenius())
    expected = [(statement, 10) for statement in doubled] + [(statement, 5) for statement in single]
    with jax.enable_x64(True):
        for statement, magnitude in expected:
            assert float(statement.magnitude(instance)) == approx(magnitude)
