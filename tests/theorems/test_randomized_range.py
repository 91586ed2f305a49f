"""Random sketches: every bound against an oracle in NumPy, constants against sampling."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy import stats

from laws import scales, turns, vmap_is_a_loop
from lowrank_theory.theorems._sketches import (
    inverse_moment,
    inverse_norm,
    mean_inverse_norm,
    sketch_tails,
)
from lowrank_theory.theorems.randomized_range import (
    Probed,
    ProbeSetting,
    Sketched,
    SketchSetting,
    randomized_range,
    range_basis,
)
from lowrank_theory.verification import Verdict, attack, verify
from statements import by_name, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

A_POSTERIORI = randomized_range.a_posteriori
STATEMENTS = by_name(randomized_range)
del STATEMENTS["a_posteriori"]  # of another kind of instance, and below
SURE = ("structural", "truncation", "truncation_spectral")
SPECTRAL = ("spectral", "spectral_tail")
every_statement = pytest.mark.parametrize("name", STATEMENTS)
SIZE, RANK, OVERSAMPLING = 8, 2, 3
VALUES = 1 / np.arange(1.0, SIZE + 1)
DELTA = 0.05


def drawn(
    power_iterations: int = 0,
    values: np.ndarray = VALUES,
    seed: int = 0,
    oversampling: int = OVERSAMPLING,
) -> Sketched:
    setting = SketchSetting(values, RANK, oversampling, power_iterations)
    return setting.draw(key=jax.random.key(seed))


def deviations(rank: int, p: int, *, together: bool) -> tuple[float, float, float]:
    """Of the Frobenius norm of the inverse over the root of the rank, of its norm, and of what the
    other rows add: three events, or two of which the second serves for the first.
    """
    events = 2 if together else 3
    largest = inverse_norm(rank, p) * (events / DELTA) ** (1 / (p + 1))
    moved = math.sqrt(2 * math.log(events / DELTA))
    if together:
        return largest, largest, moved
    mu = float(stats.chi2(p + 1).expect(lambda x: x ** (-p / 2))) ** (2 / p)
    return (3 / DELTA) ** (1 / p) * math.sqrt(mu), largest, moved


def oracle(name: str, instance: Sketched) -> tuple[float, float]:
    matrix, sketch = np.asarray(instance.matrix), np.asarray(instance.sketch)
    q, rank, width = int(instance.power_iterations), instance.rank, sketch.shape[1]
    p = width - rank
    _, s, right = np.linalg.svd(matrix)
    basis = np.linalg.qr(np.linalg.matrix_power(matrix @ matrix.T, q) @ matrix @ sketch)[0]
    whole = matrix - basis @ (basis.T @ matrix)
    u, values, v = np.linalg.svd(basis.T @ matrix)
    truncated = matrix - basis @ (u[:, :rank] * values[:rank]) @ v[:rank]
    tail = np.sum(s[rank:] ** 2)
    choices = [deviations(rank, p, together=True)]
    if p >= 2:
        choices.append(deviations(rank, p, together=False))
    others = s[rank:] ** (2 * q + 1)

    def mean(k: int) -> float:
        pairs = itertools.product(s[:k], s[k:])
        excess = sum(b**2 * (b / a) ** (4 * q) for a, b in pairs)
        return float(np.sum(s[k:] ** 2) + excess / (width - k - 1))

    def frobenius(residual: np.ndarray) -> float:
        return float(np.sum(residual**2))

    def operator(residual: np.ndarray) -> float:
        return float(scipy.linalg.svdvals(residual)[0])

    if name == "structural":
        first, second = np.split(right @ sketch, [rank])
        missed = others[:, None] * second @ np.linalg.pinv(first) * s[:rank] ** (-2.0 * q)
        return frobenius(truncated), tail + frobenius(missed)
    if name == "truncation":
        return frobenius(truncated), tail + frobenius(whole)
    if name == "truncation_spectral":
        return operator(truncated) ** 2, s[rank] ** 2 + operator(whole) ** 2
    if name == "frobenius":
        return frobenius(whole), min(mean(k) for k in range(width - 1))
    if name == "truncated":
        return frobenius(truncated), mean(rank)
    if name == "frobenius_tail":
        inverse = s[:rank] ** (-2.0 * q)
        missed = min(
            w * np.linalg.norm(inverse) * np.linalg.norm(others) + u * c * inverse[-1] * others[0]
            for w, c, u in choices
        )
        return frobenius(truncated), tail + missed**2
    if name == "spectral":
        total = (1 + math.sqrt(rank / (p - 1))) * others[0]
        total += mean_inverse_norm(rank, p) * np.linalg.norm(others)
    else:
        total = min(
            (1 + w * math.sqrt(rank) + u * c) * others[0] + c * np.linalg.norm(others)
            for w, c, u in choices
        )
    return operator(whole), total ** (1 / (2 * q + 1))


@every_statement
@pytest.mark.parametrize("power_iterations", [0, 2])
def test_both_sides_against_numpy(name, power_iterations):
    instance = drawn(power_iterations)
    assert sides(STATEMENTS[name], instance) == approx(oracle(name, instance))


@pytest.mark.parametrize("name", ["frobenius_tail", "spectral_tail"])
@pytest.mark.parametrize("oversampling", [0, 1, 2])
def test_tails_of_narrow_sketches(name, oversampling):
    instance = drawn(1, oversampling=oversampling)
    bound = STATEMENTS[name].bound(instance, failure_probability=DELTA)
    assert bool(bound.holds)
    assert sides(STATEMENTS[name], instance) == approx(oracle(name, instance), condition=100)


def test_two_events_are_better_for_few_columns_and_three_for_many():
    exact = stats.chi2(3).ppf(DELTA / 2) ** -0.5
    with jax.enable_x64(True):
        for rank, p, fewer in ((1, 2, True), (3, 2, True), (3, 5, True), (10, 5, False)):
            three, two = sketch_tails(rank, p, DELTA)
            assert (two.whole < three.whole) == fewer
            assert two.largest < three.largest
        three, two = sketch_tails(1, 2, DELTA)
        assert exact < two.whole < 1.03 * exact < 0.3 * three.whole


@every_statement
def test_units_of_the_matrix(name):
    def at(unit):
        scaled = drawn(1, unit * VALUES)
        with jax.enable_x64(True):
            magnitude = float(STATEMENTS[name].magnitude(scaled))
        return *sides(STATEMENTS[name], scaled), magnitude

    scales(at, 1 if name in SPECTRAL else 2)


@every_statement
def test_turning_the_matrix_turns_the_sketch(name):
    one = drawn(1)
    turns(
        lambda matrix, sketch: sides(
            STATEMENTS[name], Sketched(matrix, sketch, 1, True, RANK, independent=True)
        ),
        "ab,b-->",
        np.asarray(one.matrix),
        np.asarray(one.sketch),
    )


def test_range_is_that_of_the_powers_however_steep():
    steep = drawn(4, 10.0 ** -np.arange(SIZE))
    with jax.enable_x64(True):
        basis = np.asarray(range_basis(steep))
    assert_close(basis.T @ basis, np.eye(RANK + OVERSAMPLING), scale=1)
    np.testing.assert_allclose(np.abs(basis[:5, :5]), np.eye(5), atol=1e-6)


@pytest.mark.parametrize("name", SURE)
def test_attack_reaches_the_sure_bounds(name):
    assert STATEMENTS[name].sharp
    witness = attack(STATEMENTS[name], key=jax.random.key(0), restarts=3, steps=400)
    assert 0.99 <= witness.ratio <= 1


def test_structural_is_nearly_attained_by_a_strong_signal():
    random = np.random.default_rng(0)
    sketch = random.standard_normal((SIZE, RANK))
    values = np.where(np.arange(SIZE) < RANK, 1e4, 1.0)
    instance = Sketched(np.diag(values), sketch, 0, True, RANK)
    realised, bound = sides(randomized_range.structural, instance)
    assert realised == pytest.approx(bound, rel=1e-5)
    assert realised > 2 * (SIZE - RANK)  # far from the optimum


def test_truncation_is_attained_by_hand():
    phi = 0.1
    range_found = np.array([[0, math.cos(phi)], [1, 0], [0, math.sin(phi)]])
    matrix = np.diag([5.0, 1.0, 0.0])
    instance = Sketched(matrix, np.eye(3)[:, :2], 0, False, 1)
    statement = randomized_range.truncation
    with jax.enable_x64(True):
        basis = jnp.asarray(range_found)
        loss = float(statement.loss(instance, basis))
        bound = float(statement.formula(instance, basis))
    assert loss == approx(1 + 25 * math.sin(phi) ** 2)
    assert bound == approx(loss)


@pytest.mark.parametrize("name", ["frobenius", "truncated", "spectral", "frobenius_tail"])
def test_gaussian_statements_hold_in_a_few_regimes(name):
    settings = {label: SketchSetting(VALUES, RANK, 4, q) for label, q in (("none", 0), ("one", 1))}
    report = verify(STATEMENTS[name], trials=1000, key=jax.random.key(0), settings=settings)
    assert report.verdict is Verdict.CONSISTENT


def test_power_iterations_bring_the_mean_bound_to_the_optimum():
    optimum = np.sum(VALUES[RANK:] ** 2)
    excess = [sides(randomized_range.truncated, drawn(q))[1] / optimum - 1 for q in (0, 1, 2, 8)]
    assert excess[0] == approx(RANK / (OVERSAMPLING - 1))
    assert excess == sorted(excess, reverse=True)
    assert excess[-1] < 1e-3


def test_constants_are_no_larger_than_those_of_the_literature():
    for rank, p in itertools.product((1, 2, 10, 100), (2, 4, 10, 50)):
        assert inverse_norm(rank, p) <= math.e * math.sqrt(rank + p) / (p + 1)
        assert mean_inverse_norm(rank, p) <= math.e * math.sqrt(rank + p) / p
        assert mean_inverse_norm(rank, p) <= math.sqrt(rank / (p - 1))
        if p >= 4:
            assert inverse_moment(p) < 3 / (p + 1)
    exact = stats.chi2(5).expect(lambda x: x**-2.0) ** 0.5
    assert inverse_moment(4) == approx(exact)
    # One row: the norm of the inverse is one over the root of a chi-square variable.
    t = 1e3
    assert stats.chi2(5).cdf(t**-2) == pytest.approx((inverse_norm(1, 4) / t) ** 5, rel=1e-4)


@pytest.mark.parametrize(("rank", "p"), [(3, 2), (5, 4)])
def test_inverse_of_a_gaussian_matrix(rank, p):
    random = np.random.default_rng(0)
    samples = random.standard_normal((40_000, rank, rank + p))
    smallest = np.linalg.svd(samples, compute_uv=False)[:, -1]
    assert np.mean(1 / smallest) <= mean_inverse_norm(rank, p)
    assert np.mean(1 / smallest) >= 0.6 * mean_inverse_norm(rank, p)
    for quantile in (0.01, 0.001):
        t = 1 / np.quantile(smallest, quantile)
        bound = (inverse_norm(rank, p) / t) ** (p + 1)
        assert 0.6 * quantile <= bound <= 2.5 * quantile


def test_hypotheses_and_what_their_failure_does():
    one = drawn()
    known = Sketched(one.matrix, one.sketch, 0, False, RANK)
    for name in set(STATEMENTS) - set(SURE):
        bound = STATEMENTS[name].bound(known)
        assert float(bound.value) == math.inf
        with pytest.raises(RuntimeError, match=r"i\.i\.d\. Gaussian' does not hold"):
            jax.block_until_ready(bound.require())
    columns = np.asarray(one.sketch)[:, : RANK + 1]
    narrow = Sketched(one.matrix, columns, 0, True, RANK, independent=True)
    failing = [h.name for h in randomized_range.truncated.bound(narrow).hypotheses if not h.holds]
    assert failing == ["the sketch has at least two columns more than the rank"]
    blind = np.asarray(one.sketch).copy()
    blind[0] = 0
    bound = randomized_range.structural.bound(Sketched(one.matrix, blind, 0, True, RANK))
    assert [h.name for h in bound.hypotheses if not h.holds] == [
        "the sketch meets every leading singular vector"
    ]
    assert float(bound.value) == math.inf
    poor = np.where(np.arange(SIZE) < 1, 1.0, 0.0)
    for name in ("structural", "frobenius_tail"):
        assert float(STATEMENTS[name].bound(drawn(1, poor)).value) == math.inf
        assert math.isfinite(float(STATEMENTS[name].bound(drawn(0, poor)).value))


def test_vmap_is_a_loop():
    setting = SketchSetting(VALUES, RANK, OVERSAMPLING, 1)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(3), 3)
        instances = jax.lax.map(lambda key: setting.draw(key=key), keys)
    vmap_is_a_loop(randomized_range.truncated.realised, instances)


GOOD: dict[str, Any] = {
    "matrix": np.eye(4),
    "sketch": np.ones((4, 2)),
    "power_iterations": 0,
    "gaussian": True,
    "rank": 2,
}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"rank": 3}, "`rank` must be an integer from 1 to 2 .*the sketch find"),
    "rank zero": ({"rank": 0}, "`rank` must be an integer from 1"),
    "sketch": ({"sketch": np.ones((3, 2))}, "`sketch` has 3 columns of the matrix"),
    "integers": ({"matrix": np.eye(4, dtype=int)}, "`matrix` must be floating point"),
    "power": ({"power_iterations": -1}, "`power_iterations` must be an integer >= 0; got -1"),
    "NaN": ({"sketch": np.full((4, 2), np.nan)}, "`sketch` has 8 non-finite entries"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_instances_are_refused(name):
    change, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        Sketched(**{**GOOD, **change})


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="`oversampling` must be an integer from 0 to 6"):
        SketchSetting(VALUES, RANK, 7)
    with pytest.raises(ValueError, match="`rank` must be an integer from 1 to 8"):
        SketchSetting(VALUES, 9, 0)
    with pytest.raises(ValueError, match="`power_iterations` must be an integer >= 0"):
        SketchSetting(VALUES, RANK, 2, -1)
    with pytest.raises(ValueError, match="must be a `Sketched`; got ndarray"):
        randomized_range.truncated.bound(np.eye(3))
    assert drawn().sizes == (SIZE, SIZE)


def probed(seed: int = 0, values: np.ndarray = VALUES, **more: int) -> Probed:
    setting = ProbeSetting(values, RANK, RANK + 2, **{"probes": 6, **more})
    return setting.draw(key=jax.random.key(seed))


def a_posteriori_oracle(instance: Probed) -> tuple[float, float]:
    """The excess, and the least bound over a fine grid, in NumPy and SciPy."""
    matrix, rank = np.asarray(instance.matrix), instance.rank
    moment, columns = matrix.T @ matrix, matrix.shape[1]
    basis = scipy.linalg.orth(np.asarray(instance.directions))
    other = scipy.linalg.null_space(basis.T)
    values, turn = np.linalg.eigh(basis.T @ moment @ basis)
    vectors = basis @ turn[:, ::-1][:, :rank]
    captured = np.trace(vectors.T @ moment @ vectors)
    excess = np.sum(np.linalg.eigvalsh(moment)[::-1][:rank]) - captured

    degree, cut = int(instance.degree), values[0]
    unseen = other @ other.T
    shifted = 2 * unseen @ moment @ unseen / cut - np.eye(columns)
    spectrum, frame = np.linalg.eigh((shifted + shifted.T) / 2)
    filtered = frame * np.polynomial.Chebyshev.basis(degree)(spectrum) @ frame.T
    probes = unseen @ np.asarray(instance.probes)
    count = probes.shape[1]
    quantile = 2 * (DELTA * math.gamma(count / 2 + 1)) ** (2 / count)
    assert quantile < stats.chi2.ppf(DELTA, count)
    ratio = max(1.0, float(np.linalg.norm(filtered @ probes, 2)) / math.sqrt(quantile))
    outside = cut * (1 + math.cosh(math.acosh(ratio) / degree)) / 2

    coupling = other.T @ moment @ basis
    least = math.inf
    for spread in np.geomspace(1e-4, 1e3, 4000) * outside:
        inside = basis.T @ moment @ basis + coupling.T @ coupling / spread
        copies = np.full(other.shape[1], outside + spread)
        both = np.sort(np.concatenate([np.linalg.eigvalsh(inside), copies]))
        least = min(least, float(np.sum(both[::-1][:rank])))
    return float(excess), least - float(captured)


@pytest.mark.parametrize("missed", [0, 1])
def test_a_posteriori_against_numpy(missed):
    for seed in range(3):
        instance = probed(seed, missed=missed)
        excess, least = a_posteriori_oracle(instance)
        assert float(A_POSTERIORI.realised(instance)) == approx(excess, condition=100)
        bound = float(A_POSTERIORI.bound(instance).value)
        assert excess < least * (1 + 1e-9) <= bound * (1 + 1e-8)
        assert bound <= 1.25 * least  # of the one spread that is tried


def test_a_posteriori_sees_a_direction_that_the_subspace_misses():
    for values in (VALUES, np.where(np.arange(SIZE) < 1, 1e6, 1.0)):
        seen, blind = probed(values=values, degree=8), probed(values=values, degree=8, missed=1)
        excess = float(A_POSTERIORI.realised(blind))
        assert excess > 0.9 * (values[0] ** 2 - values[RANK] ** 2)
        assert excess <= float(A_POSTERIORI.bound(blind).value) < math.inf
        assert float(A_POSTERIORI.bound(seen).value) < excess


def test_a_posteriori_in_other_units():
    scales(lambda unit: sides(A_POSTERIORI, probed(values=unit * VALUES)), 2)


def test_a_posteriori_at_the_edges():
    whole = ProbeSetting(VALUES, RANK, SIZE, 6, power_iterations=0).draw(key=jax.random.key(0))
    assert float(A_POSTERIORI.bound(whole).value) == approx(0, scale=1)
    nothing = probed(values=np.zeros(SIZE))
    assert float(A_POSTERIORI.realised(nothing)) == 0
    assert float(A_POSTERIORI.bound(nothing).value) >= 0
    low = probed(values=np.where(np.arange(SIZE) < RANK, 1.0, 0.0))
    assert float(A_POSTERIORI.bound(low).value) == approx(0, scale=1)


def test_a_posteriori_needs_probes_that_know_nothing():
    one = probed()
    used = Probed(one.matrix, one.directions, one.directions, 4, False, RANK)
    bound = A_POSTERIORI.bound(used)
    assert float(bound.value) == math.inf
    assert [h.name for h in bound.hypotheses if not h.holds] == [
        "the probes are i.i.d. Gaussian and independent of the subspace"
    ]
    values = [float(A_POSTERIORI.bound(one, failure_probability=d).value) for d in (0.3, 1e-6)]
    assert values[0] < values[1]
    with pytest.raises(ValueError, match="`probes` has 3 columns of the matrix"):
        Probed(np.eye(4), np.ones((4, 2)), np.ones((3, 2)), 1, True, 2)
    with pytest.raises(ValueError, match="`rank` must be an integer from 1 to 2"):
        Probed(np.eye(4), np.ones((4, 2)), np.ones((4, 2)), 1, True, 3)
    with pytest.raises(ValueError, match="`width` must be an integer from 2 to 8"):
        ProbeSetting(VALUES, RANK, 1)


@pytest.mark.slow
def test_a_posteriori_holds():
    settings = {"missed": ProbeSetting(VALUES, RANK, RANK + 2, missed=1)}
    report = verify(A_POSTERIORI, trials=1000, key=jax.random.key(0), settings=settings)
    assert report.verdict is Verdict.CONSISTENT
