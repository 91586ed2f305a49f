"""Truncation of perturbed matrices against NumPy, by hand, and under its laws."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory import theorems
from lowrank_theory.perturbations import Perturbation
from lowrank_theory.problems import Observed, Problem
from lowrank_theory.theorems.truncation_stability import (
    GOLDEN_RATIO,
    ApproximateRank,
    GoldenRatio,
    KnownTruncation,
    KyFan,
    Schatten,
    truncation_stability,
)
from oracle import singular_values, truncated
from perturbed import (
    SQUARE,
    TALL,
    adversary_keeps_its_word,
    at_once,
    compiles_for_many,
    control_is_broken,
    diagonal,
    drawn,
    mapped,
    obeys_the_laws,
)
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

STATEMENTS = truncation_stability.statements
LOW_RANK = [name for name in STATEMENTS if not name.endswith("approximate_rank")]
every_statement = pytest.mark.parametrize("name", STATEMENTS)
INSTANCES = {
    "tall": drawn(TALL),
    "square, strong noise": drawn(SQUARE, noise=2.0),
    "rank one": drawn(TALL, rank=1, width=1),
    "full rank": drawn(SQUARE, rank=4, width=4),
}


def test_names():
    names = ["frobenius", "nuclear", "schatten_4", "operator_norm"]
    names += ["ky_fan", "golden_ratio", "approximate_rank"]
    assert list(STATEMENTS) == [f"truncation_stability.{name}" for name in names]
    found = [s.exponent for s in STATEMENTS.values() if isinstance(s, Schatten)]
    assert found == [2, 1, 4, math.inf]
    assert Schatten().exponent == 2
    assert all(s.sharp for s in STATEMENTS.values())


@every_statement
def test_laws(name):
    obeys_the_laws(STATEMENTS[name], INSTANCES["tall"], degree=1)


@every_statement
def test_adversary_and_control(name):
    adversary_keeps_its_word(STATEMENTS[name])
    control_is_broken(STATEMENTS[name])


def test_adversary_reaches_every_target():
    """Any matrix of the width, any singular values: the parametrisation leaves nothing out."""
    adversary = KnownTruncation()
    left, right = np.zeros((2, 2, 4))
    left[0, :2], left[1, 2], right[0, ::3], right[1, 1] = (1, 2), 1, 1, 3
    values = np.array([[1.0, 2.0, -0.5, 0.25]])
    with jax.enable_x64(True):
        instance, estimate = adversary.play(tuple(map(jnp.asarray, (left, right, values))))
    assert_close(instance.matrix, left.T @ right)
    assert_close(np.diagonal(instance.perturbed), [1.500005, 4.500005, 0.5, 0.25])
    assert_close(estimate, np.diag([1.500005, 4.500005, 0, 0]))


def worst(noise, rank):
    """One value at a time: hidden signal, noise in its own place, noise taken for signal."""
    hidden = min(rank, len(noise) - rank)
    return [*(2 * noise[:hidden]), *noise[hidden:rank], *noise[:hidden]]


@pytest.mark.parametrize("instance", INSTANCES.values(), ids=INSTANCES)
@pytest.mark.parametrize("exponent", [1.0, 2.0, 4.0, math.inf])
def test_schatten_against_numpy(instance, exponent):
    error = truncated(instance.perturbed, instance.rank) - instance.matrix
    caps = worst(singular_values(instance.noise), instance.rank)
    expected = np.linalg.norm(singular_values(error), exponent), np.linalg.norm(caps, exponent)
    assert at_once(Schatten(exponent), instance) == approx(expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_ky_fan_against_numpy(count):
    instance = INSTANCES["tall"]
    error = truncated(instance.perturbed, 2) - instance.matrix
    first, second, *_ = singular_values(instance.noise)
    caps = [2 * first, 2 * second, first, second]
    expected = sum(singular_values(error)[:count]), sum(caps[:count])
    assert at_once(KyFan(count), instance) == approx(expected)


@pytest.mark.parametrize("instance", INSTANCES.values(), ids=INSTANCES)
def test_golden_ratio_against_numpy(instance):
    error = truncated(instance.perturbed, instance.rank) - instance.matrix
    noise = np.linalg.norm(singular_values(instance.noise)[: 2 * instance.rank])
    expected = np.linalg.norm(error), (1 + math.sqrt(5)) / 2 * noise
    assert at_once(GoldenRatio(), instance) == approx(expected)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_approximate_rank_against_numpy(rank):
    instance = drawn(SQUARE, rank=rank, width=4)
    error = truncated(instance.perturbed, rank) - truncated(instance.matrix, rank)
    tau = np.linalg.norm(singular_values(instance.matrix)[rank : 2 * rank])
    noise, hidden = singular_values(instance.noise), min(rank, 4 - rank)
    zeta, twice = np.linalg.norm(noise[:rank]), 2 * np.linalg.norm(noise[:hidden])
    expected = np.linalg.norm(error), math.hypot(tau + zeta, tau + twice)
    assert at_once(ApproximateRank(), instance) == approx(expected)


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 3.0, 4.0, 10.0, math.inf])
@pytest.mark.parametrize("copies", [1, 2])
def test_schatten_is_attained(exponent, copies):
    instance = diagonal([2] * copies + [0] * copies, [-1.000001] * copies + [1] * copies, copies)
    realised, bound = at_once(Schatten(exponent), instance)
    total = copies ** (1 / exponent)
    expected = 2 if exponent == math.inf else (1 + 2**exponent) ** (1 / exponent)
    assert realised == approx(expected * total)
    assert bound == pytest.approx(expected * total, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_every_norm_is_attained_at_every_rank(rank):
    """By noise that hides $k$ parts of the signal and stands in the place of the others."""
    hidden = min(rank, 5 - rank)
    signal = [2] * hidden + [0.1] * (rank - hidden) + [0] * (5 - rank)
    noise = [-1 - 1e-9] * hidden + [1] * (5 - hidden)
    if hidden < 5 - rank:
        noise[-1] = 0  # one direction more than the noise needs
    instance = diagonal(signal, noise, rank)
    for statement in (Schatten(1.0), Schatten(2.0), Schatten(4.0), KyFan(2), KyFan(5)):
        realised, bound = at_once(statement, instance)
        assert realised == pytest.approx(bound, rel=1e-8)
    largest = Schatten(math.inf)
    assert at_once(largest, instance)[1] == pytest.approx(2 if hidden else 1)


@pytest.mark.parametrize(("count", "expected"), [(1, 2), (2, 4), (3, 5), (4, 6)])
def test_ky_fan_is_attained(count, expected):
    instance = diagonal([2, 2, 0, 0], [-1.000001, -1.000001, 1, 1], 2)
    assert at_once(KyFan(count), instance) == pytest.approx((expected, expected), rel=1e-5)


def test_ky_fan_takes_the_caps_in_their_order():
    """Not the largest first: $2z_1 + 2z_2$ is less than $2z_1 + z_1$ here."""
    instance = diagonal([3, 3, 0, 0], [1, 0.1, 0, 0], 2)
    bounds = [at_once(KyFan(count), instance)[1] for count in (1, 2, 3, 4, 5)]
    assert_close(bounds, [2, 2.2, 3.2, 3.3, 3.3])


def test_golden_ratio_is_attained():
    assert approx(GOLDEN_RATIO**2) == GOLDEN_RATIO + 1
    instance = diagonal([GOLDEN_RATIO, 0], [1 - GOLDEN_RATIO - 1e-9, 1])
    expected = math.hypot(GOLDEN_RATIO, 1)
    assert at_once(GoldenRatio(), instance) == pytest.approx((expected, expected), rel=1e-8)


@pytest.mark.parametrize(("tau", "zeta"), [(0.0, 1.0), (1.0, 1.0), (3.0, 0.5), (1.0, 1e-6)])
def test_approximate_rank_is_attained(tau, zeta):
    instance = diagonal([tau + 2 * zeta, tau], [-zeta - 1e-9, zeta])
    expected = math.hypot(tau + 2 * zeta, tau + zeta)
    assert at_once(ApproximateRank(), instance) == pytest.approx((expected, expected), rel=1e-6)


def test_frobenius_is_the_theorem_on_planted_layers():
    instance = INSTANCES["tall"]
    observed = Observed(activations=np.eye(6), outputs=np.asarray(instance.perturbed))
    problem = Problem.stated(observed, instance.matrix, instance.rank)
    planted = theorems.planted_rank.any_noise
    expected = float(planted.realised(problem)), float(planted.bound(problem).value)
    assert at_once(Schatten(2.0), instance) == approx(expected)


@pytest.mark.parametrize("name", LOW_RANK)
def test_a_matrix_of_larger_rank_has_no_bound(name):
    instance = drawn(rank=1, width=2)
    bound = STATEMENTS[name].bound(instance)
    assert [h.name for h in bound.hypotheses if not h.holds] == ["the matrix has rank at most r"]
    assert float(bound.value) == math.inf
    with pytest.raises(RuntimeError, match="'the matrix has rank at most r' does not hold"):
        jax.block_until_ready(bound.require())


def test_rank_is_judged_up_to_rounding_and_not_beyond():
    def holds(rest: float) -> bool:
        instance = diagonal([1, 0, 0], [0.1, 0.2, 0.1])
        with_rest = mapped(instance, lambda part: part + np.diag([0, rest, 0]))
        return bool(GoldenRatio().bound(with_rest).holds)

    assert holds(0) and holds(1e-15)
    assert not holds(1e-12)


def test_many_at_once():
    compiles_for_many(Schatten(4.0), INSTANCES["tall"])


def test_nothing_is_bounded_by_nothing():
    instance = Perturbation(np.zeros((3, 2)), np.zeros((3, 2)), 1)
    for statement in STATEMENTS.values():
        assert at_once(statement, instance) == (0, 0)


@pytest.mark.parametrize("exponent", [0.5, math.nan])
def test_exponent_of_no_norm_is_refused(exponent):
    with pytest.raises(ValueError, match="`exponent` must be at least 1"):
        Schatten(exponent)


@pytest.mark.parametrize("count", [0, True])
def test_count_of_no_norm_is_refused(count):
    with pytest.raises(ValueError, match="`count` must be an integer >= 1"):
        KyFan(count)


def test_rounding_scales_with_all_that_is_added():
    instance = Perturbation(np.full((3, 2), 1.0), np.full((3, 2), 2.0), 1)
    with jax.enable_x64(True):
        expected = 3 * math.sqrt(6) * math.sqrt(2)
        assert float(GoldenRatio().magnitude(instance)) == approx(expected)
