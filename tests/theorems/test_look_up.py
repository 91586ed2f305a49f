"""Look-up tables against NumPy, exact counts, and the instances at which bounds are attained."""

import itertools
import math
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_theory.lookup import ridge_entries
from lowrank_theory.theorems._byte_tables import ByteRows, ByteSetting, CodedTable, TableSetting
from lowrank_theory.theorems.look_up import CodedLayer, CodedSetting, look_up
from lowrank_theory.verification.attack import replay
from statements import by_name, drawn, sides
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(3)

STATEMENTS = by_name(look_up)
CODED = ("low_rank", "knowing_the_weights", "two_parts", "size")


def layer(seed: int, codebooks: int, count: int, ridge: float, samples: int = 30) -> CodedLayer:
    random = np.random.default_rng(seed)
    codes = random.integers(0, count, (samples, codebooks))
    rows, weights = random.standard_normal((samples, 7)), random.standard_normal((7, 9))
    return CodedLayer(rows, weights, codes, count=count, ridge=ridge)


def oracle(instance: CodedLayer) -> dict[str, tuple[float, float]]:
    """Both sides of the statements about codes, by stacked least squares."""
    rows, weights = np.asarray(instance.activations), np.asarray(instance.weights)
    outputs, codes, ridge = rows @ weights, np.asarray(instance.codes), float(instance.ridge)
    width = codes.shape[1] * instance.count
    design = np.zeros((len(rows), width))
    for i, c in itertools.product(range(len(rows)), range(codes.shape[1])):
        design[i, c * instance.count + codes[i, c]] = 1

    def entries(wanted: np.ndarray) -> np.ndarray:
        stacked = np.concatenate([design, math.sqrt(ridge) * np.eye(width)])
        padded = np.concatenate([wanted, np.zeros((width, wanted.shape[1]))])
        return np.linalg.lstsq(stacked, padded, rcond=None)[0]

    error = float(np.linalg.norm(outputs - design @ entries(outputs)))
    free = np.linalg.lstsq(design, outputs, rcond=1e-9)[0]
    missed = outputs - design @ free
    taken = design @ (free - entries(outputs))
    rank = codes.shape[1] * (instance.count - 1) + 1
    tail = np.linalg.svd(outputs, compute_uv=False)[rank:]
    size = float(np.linalg.norm(entries(outputs)))
    return {
        "low_rank": (error, float(np.linalg.norm(tail))),
        "knowing_the_weights": (
            error,
            float(np.linalg.norm((rows - design @ entries(rows)) @ weights)),
        ),
        "two_parts": (error**2, float(np.sum(missed**2) + np.sum(taken**2))),
        "size": (size, float(np.linalg.norm(outputs) / 2 / math.sqrt(ridge))),
    }


@given(
    st.sampled_from([(1, 3), (2, 4)]),
    st.sampled_from([0.01, 1.0, 50.0]),
    st.integers(0, 50),
)
def test_values_against_numpy(shape, ridge, seed):
    codebooks, count = shape
    instance = layer(seed, codebooks, count, ridge)
    for name, values in oracle(instance).items():
        assert sides(STATEMENTS[name], instance) == approx(values, condition=1e5, scale=10), name


@pytest.mark.parametrize("ridge", [0.5, 2.0])
def test_entries_are_those_of_the_library(ridge):
    instance = layer(3, 2, 4, ridge)
    outputs = np.asarray(instance.activations) @ np.asarray(instance.weights)
    found = ridge_entries(np.asarray(instance.codes), outputs, np.zeros((2, 4, 9)), ridge=ridge)
    with jax.enable_x64(True):
        wanted = np.asarray(STATEMENTS["size"].estimate(instance))
    assert_close(found.reshape(8, 9), wanted, condition=100, scale=1)


def test_one_codebook_is_the_scatter_within_it():
    instance = layer(4, 1, 3, 1e-9)
    outputs = np.asarray(instance.activations) @ np.asarray(instance.weights)
    codes = np.asarray(instance.codes)[:, 0]
    scatter = sum(
        np.sum((outputs[codes == k] - outputs[codes == k].mean(axis=0)) ** 2) for k in range(3)
    )
    assert sides(STATEMENTS["two_parts"], instance) == pytest.approx((scatter, scatter), rel=1e-8)


@pytest.mark.parametrize("levels", [(2, 2), (3, 3), (2, 4)])
def test_low_rank_is_attained_by_what_no_code_tells(levels):
    """Outputs of the rank of the codes, and weak ones beside that are orthogonal to all codes."""
    codebooks, count = levels
    codes = np.array(list(itertools.product(range(count), repeat=codebooks)) * 2)
    design = (codes[:, :, None] == np.arange(count)).reshape(len(codes), -1).astype(float)
    rank = codebooks * (count - 1) + 1
    assert np.linalg.matrix_rank(design) == rank
    random = np.random.default_rng(0)
    basis = np.linalg.qr(design @ random.standard_normal((codebooks * count, rank)))[0]
    beside = random.standard_normal((len(codes), 2))
    beside = np.linalg.qr(beside - basis @ (basis.T @ beside))[0]
    outputs = np.concatenate([basis, 0.25 * beside], axis=1)
    instance = CodedLayer(outputs, np.eye(rank + 2), codes, count=count, ridge=1e-9)
    realised, bound = sides(STATEMENTS["low_rank"], instance)
    assert realised == pytest.approx(bound, rel=1e-8) == pytest.approx(0.25 * math.sqrt(2))


def test_the_size_is_attained_where_each_code_has_as_many_rows_as_the_ridge():
    rows = np.repeat([[1.0, 2.0], [-3.0, 0.5]], 4, axis=0)
    codes = np.repeat([[0], [1]], 4, axis=0)
    instance = CodedLayer(rows, np.eye(2), codes, count=2, ridge=4.0)
    realised, bound = sides(STATEMENTS["size"], instance)
    assert realised == approx(bound)


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("half_way", [False, True])
def test_bytes_by_hand(half_way):
    table = drawn(TableSetting(100, 3, 16, 4, half_way=half_way))
    entries, codes = np.asarray(table.entries), np.asarray(table.codes)
    step = max(np.ptp(each) for each in entries) / 255
    rounded = np.stack([m.min() + step * np.floor((m - m.min()) / step + 0.5) for m in entries])
    worst = 0.0
    for row in codes:
        change = sum(rounded[c, k] - entries[c, k] for c, k in enumerate(row))
        worst = max(worst, float(np.abs(change).max()))
    realised, bound = sides(STATEMENTS["bytes"], table)
    assert (realised, bound) == approx((worst, 3 * step / 2), scale=200)
    assert realised <= bound * (1 + 1e-9)
    if half_way:
        assert step == 1 and realised == bound


def test_a_constant_table_is_exact():
    table = CodedTable(np.full((2, 3, 4), 0.7), np.zeros((5, 2), int))
    realised, bound = sides(STATEMENTS["bytes"], table)
    assert bound == 0 and realised == approx(0.0, scale=2)


# --- averages -------------------------------------------------------------------------------------


def averaged(law: dict[int, Fraction]) -> dict[int, Fraction]:
    """The law of the average of two, rounded up."""
    found: dict[int, Fraction] = {}
    for (one, p), (other, q) in itertools.product(law.items(), repeat=2):
        value = (one + other + 1) // 2
        found[value] = found.get(value, Fraction(0)) + p * q
    return found


def mean(law: dict[int, Fraction]) -> Fraction:
    return sum((value * p for value, p in law.items()), Fraction(0))


@pytest.mark.parametrize("bits", [3, 5])
def test_the_mean_excess_is_exact_as_far_as_there_are_bits(bits):
    """In fractions: uniform numbers of few bits, and one level more than bits."""
    start = law = {value: Fraction(1, 2**bits) for value in range(2**bits)}
    for level in range(1, bits + 2):
        law = averaged(law)
        excess = 2**level * (mean(law) - mean(start))
        assert (excess == Fraction(2**level * level, 4)) == (level <= bits)


def test_even_and_odd_alike_is_not_enough():
    start = {0: Fraction(1, 2), 1: Fraction(1, 2)}
    assert 4 * (mean(averaged(averaged(start))) - mean(start)) == Fraction(7, 4)


@pytest.mark.parametrize("levels", range(7))
def test_the_worst_bytes_count_ones(levels):
    rows = drawn(ByteSetting(3, levels, counted=True))
    realised, bound = sides(STATEMENTS["average_worst"], rows)
    assert realised == bound == 2**levels * levels / 2
    assert float(STATEMENTS["average"].bound(rows).value) == math.inf  # not uniform


@given(st.integers(0, 5), st.integers(0, 100))
def test_averages_by_a_loop(levels, seed):
    values = np.random.default_rng(seed).integers(0, 256, (4, 2**levels))
    excess = []
    for row in values:
        numbers = [int(value) for value in row]
        while len(numbers) > 1:
            numbers = [-(-sum(pair) // 2) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
        excess.append(2**levels * numbers[0] - int(row.sum()))
    rows = ByteRows(values.astype(float), uniform=True)
    assert sides(STATEMENTS["average"], rows)[0] == approx(float(np.mean(excess)))
    assert sides(STATEMENTS["average_worst"], rows)[0] == max(excess)


# --- settings, adversaries, refusals --------------------------------------------------------------


def test_settings_say_what_is_drawn():
    instance = drawn(CodedSetting(50, 6, 3, 2, levels=2, rank=6, noise=0.0))
    rows, codes = np.asarray(instance.activations), np.asarray(instance.codes)
    signs = rows >= 0
    np.testing.assert_array_equal(codes[:, 0], signs[:, 0] + 2 * signs[:, 1])
    np.testing.assert_array_equal(codes[:, 1], signs[:, 2] + 2 * signs[:, 3])
    assert instance.count == 4 and float(instance.ridge) == 1
    bytes_ = np.asarray(drawn(ByteSetting(1000, 3)).values)
    assert bytes_.min() >= 0 and bytes_.max() <= 255 and bytes_.shape == (1000, 8)


@pytest.mark.parametrize("name", [name for name, s in STATEMENTS.items() if s.adversary])
def test_adversaries_stay_inside(name):
    statement: Any = STATEMENTS[name]
    for seed in range(3):
        with jax.enable_x64(True):
            free = statement.adversary.start(key=jax.random.key(seed))
        assert 0 < replay(statement, free) <= 1 + 1e-9


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_broken_estimate_breaks_the_statement(name):
    statement = STATEMENTS[name]
    with jax.enable_x64(True):
        instance = drawn(statement.control)
        bound = float(statement.formula(instance, statement.estimate(instance)))
        wrong = float(statement.loss(instance, statement.broken_estimate(instance)))
    above = {"equality": abs(wrong - bound), "lower bound": bound - wrong}
    assert above.get(statement.kind.direction.value, wrong - bound) > 0.01 * bound


def test_names():
    assert list(STATEMENTS) == [*CODED, "bytes", "average", "average_worst", "rows_to_come"]


SOUND: dict[str, Any] = {
    "activations": np.ones((5, 3)),
    "weights": np.ones((3, 2)),
    "codes": np.zeros((5, 2), int),
    "count": 4,
}


def coded(**changes: Any) -> CodedLayer:
    return CodedLayer(**(SOUND | changes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: coded(weights=np.ones((4, 2))), "`activations` has 3 inputs"),
        (lambda: coded(codes=np.zeros((5, 2))), "`codes` must be integers"),
        (lambda: coded(codes=np.zeros((4, 2), int)), "`codes` has 4 rows"),
        (lambda: coded(codes=np.full((5, 2), 4)), "from 0 to 3; got 4 to 4"),
        (lambda: coded(ridge=0.0), "`ridge` must be a positive finite number"),
        (lambda: coded(count=0), "`count` must be an integer >= 1"),
        (lambda: CodedTable(np.ones((2, 3, 4)), np.zeros((5, 1), int)), "`codes` has 1 codebooks"),
        (lambda: CodedTable(np.ones((2, 3)), np.zeros((5, 2), int)), "`entries` must have shape"),
        (lambda: ByteRows(np.ones((2, 3))), "1, 2, 4, 8, ... codebooks; got 3"),
        (lambda: ByteSetting(2, 9), "`levels` must be an integer from 0 to 8; got 9"),
        (lambda: CodedSetting(0, 1, 1, 1), "`samples` must be an integer >= 1; got 0"),
        (lambda: TableSetting(1, 1, 0, 1), "`count` must be an integer >= 1; got 0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nothing_is_said_of_numbers_that_are_not_whole():
    rows = ByteRows(np.full((2, 4), 0.5))
    assert float(STATEMENTS["average_worst"].bound(rows).value) == math.inf
