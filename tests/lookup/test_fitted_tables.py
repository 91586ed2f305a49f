"""Trees, entries and whole tables: identities, an oracle in loops, and the published trends."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_theory.approximations import Table
from lowrank_theory.calibration import Calibration
from lowrank_theory.lookup import (
    AsTheyCome,
    LookUp,
    averaged_sums,
    bucket_means,
    grown,
    in_bytes,
    k_means,
    look_up,
    ridge_entries,
    summed_entries,
)
from lowrank_theory.lookup.orders import subspaces
from lowrank_theory.problems import Observed
from tolerance import assert_close, rounding

pytestmark = pytest.mark.thinned(3)

PUBLISHED: dict[str, Any] = {"order": AsTheyCome(), "weighted": False}


def layer(rank: int, noise: float, *, samples: int = 1500, inputs: int = 24, outputs: int = 10):
    """Rows of low rank beside noise, rows to come, and weights."""
    random = np.random.default_rng(rank)
    mixing = random.standard_normal((rank, inputs)) / np.sqrt(rank)
    rows = random.standard_normal((2 * samples, rank)) @ mixing
    rows += noise * random.standard_normal(rows.shape)
    return *np.split(rows, 2), random.standard_normal((inputs, outputs)) / np.sqrt(inputs)


ROWS, HELD_OUT, WEIGHTS = layer(6, 0.1)
OUTPUTS = ROWS @ WEIGHTS


def share(outputs: np.ndarray, found: Any) -> float:
    """The squared error as a share of the squares about the mean."""
    return float(
        np.sum((outputs - np.asarray(found)) ** 2) / np.sum((outputs - outputs.mean(0)) ** 2)
    )


# --- trees ----------------------------------------------------------------------------------------


def squares(rows: np.ndarray) -> np.ndarray:
    return np.sum((rows - rows.mean(axis=0)) ** 2, axis=0)


def grown_by_hand(rows: np.ndarray, root: np.ndarray, levels: int, candidates: int):
    """One tree over all columns, in loops; squares of each part from their definition."""
    code, splits, thresholds = np.zeros(len(rows), int), [], []
    for _ in range(levels):
        buckets = [np.flatnonzero(code == k) for k in range(2 ** len(splits))]
        total = sum(squares(rows[b]) for b in buckets if len(b)) * np.sum(root**2, axis=1)
        best: Any = (np.inf, None, None)
        for place in np.argsort(-total, kind="stable")[:candidates]:
            loss, limits = 0.0, []
            for b in buckets:
                values, seen = rows[b, place], rows[b] @ root
                options = [
                    (squares(seen).sum() if len(b) else 0.0, values.min() if len(b) else 0.0)
                ]
                ordered = np.unique(values)
                for low, high in itertools.pairwise(ordered):
                    limit = low / 2 + high / 2
                    right = values >= limit
                    left = squares(seen[~right]).sum() + squares(seen[right]).sum()
                    options.append((left, limit))
                least = min(options[1:] or options, key=lambda option: option[0])
                loss += least[0]
                limits.append(least[1])
            if loss < best[0] * (1 - 1e-12):
                best = loss, place, limits
        splits.append(best[1])
        thresholds += best[2]
        code = 2 * code + (rows[:, best[1]] >= np.array(best[2])[code])
    return splits, thresholds, code


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("outputs", [1, 3, 9])
def test_trees_grow_as_in_loops(weighted, outputs):
    random = np.random.default_rng(outputs)
    rows = random.standard_normal((40, 6))
    rows[:, 2] = np.maximum(rows[:, 2], 0)
    weights = random.standard_normal((6, outputs))
    found = grown(
        rows, [np.arange(6)], weights=weights if weighted else None, levels=3, dtype=np.float64
    )
    root = weights if weighted else np.eye(6)
    splits, thresholds, codes = grown_by_hand(rows, root, 3, 4)
    np.testing.assert_array_equal(found.splits[0], splits)
    assert_close(found.thresholds[0], np.array(thresholds), scale=1)
    np.testing.assert_array_equal(found.codes[:, 0], codes)


def test_equal_values_are_not_told_apart():
    rows = np.repeat([[0.0], [1.0], [5.0]], 4, axis=0)
    found = grown(rows, [np.arange(1)], levels=2)
    assert len(set(map(tuple, found.codes.tolist()))) == 3
    for value in (0.0, 1.0, 5.0):
        assert len(set(found.codes[rows[:, 0] == value, 0].tolist())) == 1


def test_neighbours_in_the_dtype_are_told_apart_by_the_upper():
    low = np.float32(1)
    high = np.nextafter(low, np.float32(2))
    found = grown(np.array([[low], [high]], float), [np.arange(1)], levels=1)
    assert found.thresholds[0, 0] == high and found.codes.tolist() == [[0], [1]]
    beyond = np.array([[1.0], [1 + 1e-12]])  # equal in float32
    assert len(set(grown(beyond, [np.arange(1)], levels=1).codes.ravel().tolist())) == 1


@pytest.mark.slow
def test_counts_are_rows_that_come_again():
    counts = np.random.default_rng(0).integers(1, 4, 200)
    rows = ROWS[:200]
    again = np.repeat(rows, counts, axis=0)
    parts = subspaces(np.arange(24), 5)
    one, other = grown(rows, parts, counts=counts.astype(float)), grown(again, parts)
    np.testing.assert_array_equal(one.thresholds, other.thresholds)
    np.testing.assert_array_equal(np.repeat(one.codes, counts, axis=0), other.codes)
    for method in (LookUp(), LookUp(ridge=0.0, rounded=False, **PUBLISHED)):
        one = look_up(rows, WEIGHTS, 5, counts=counts.astype(float), method=method)
        other = look_up(again, WEIGHTS, 5, method=method)
        assert_close(one.apply(HELD_OUT), other.apply(HELD_OUT), condition=1e6, scale=1)


# --- entries --------------------------------------------------------------------------------------


def fitted(codebooks: int, rows: np.ndarray = ROWS):
    parts = subspaces(np.arange(rows.shape[1]), codebooks)
    codes = grown(rows, parts).codes
    return codes, bucket_means(codes, rows, parts, 16), parts


@given(
    codebooks=st.integers(1, 24),
    ridge=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    seed=st.integers(0, 50),
)
def test_to_know_the_weights_changes_nothing_where_outputs_are_linear(codebooks, ridge, seed):
    """The entries that are best for the outputs are the best prototypes times the weights."""
    weights = np.random.default_rng(seed).standard_normal((24, 4))
    codes, anchor, _ = fitted(codebooks, ROWS[:300])
    prototypes = ridge_entries(codes, ROWS[:300], anchor, ridge=ridge)
    entries = ridge_entries(codes, ROWS[:300] @ weights, anchor @ weights, ridge=ridge)
    assert_close(entries, prototypes @ weights, condition=1e4, scale=1)


def dense_indicators(codes: np.ndarray) -> np.ndarray:
    return (codes[:, :, None] == np.arange(16)).reshape(len(codes), -1).astype(float)


@pytest.mark.parametrize("ridge", [0.0, 1.0, 30.0])
def test_entries_are_those_of_the_definition(ridge):
    codes, anchor, _ = fitted(4)
    design, flat = dense_indicators(codes), (anchor @ WEIGHTS).reshape(-1, 10)
    rows = np.concatenate([design, np.sqrt(ridge) * np.eye(64)])
    wanted = np.concatenate([OUTPUTS - design @ flat, np.zeros((64, 10))])
    best = flat + np.linalg.lstsq(rows, wanted, rcond=1e-12)[0]
    found = ridge_entries(codes, OUTPUTS, anchor @ WEIGHTS, ridge=ridge)
    assert_close(found.reshape(-1, 10), best, condition=1e4, scale=1)
    assert_close(summed_entries(codes, found), design @ best, condition=1e4, scale=1)


def test_means_are_those_of_each_code_and_of_the_node_above_an_empty_one():
    codes, means, parts = fitted(3)
    for place, part in enumerate(parts):
        others = np.setdiff1d(np.arange(24), part)
        assert not means[place][:, others].any()
        for code in set(codes[:, place].tolist()):
            wanted = ROWS[codes[:, place] == code][:, part].mean(axis=0)
            assert_close(means[place, code, part], wanted, scale=1)
    few = np.array([[0], [0], [3]])
    values = np.array([[1.0], [3.0], [8.0]])
    found = bucket_means(few, values, [np.arange(1)], 8)[0, :, 0]
    assert found.tolist() == [2, 2, 8, 8, 4, 4, 4, 4]


@pytest.mark.parametrize("codebooks", [1, 2, 5, 8])
def test_the_indicators_have_rank_fifteen_each_and_one(codebooks):
    rows = np.random.default_rng(5).standard_normal((4000, 24))
    codes, _, _ = fitted(codebooks, rows)
    gram = dense_indicators(codes).T @ dense_indicators(codes)
    assert np.linalg.matrix_rank(gram) == 15 * codebooks + 1


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_prototypes_are_bounded_by_the_ridge(ridge):
    codes, anchor, _ = fitted(6)
    found = ridge_entries(codes, ROWS, 0 * anchor, ridge=ridge).reshape(-1, 24)
    for norm in (2, "fro"):
        most = np.linalg.norm(ROWS, norm) / (2 * np.sqrt(ridge))
        assert np.linalg.norm(found, norm) <= most * (1 + rounding())


def test_least_squares_lose_least():
    for codebooks in (1, 3, 8):
        codes, anchor, _ = fitted(codebooks)
        start = anchor @ WEIGHTS
        losses = [
            share(OUTPUTS, summed_entries(codes, entries))
            for entries in (
                ridge_entries(codes, OUTPUTS, start, ridge=0.0),
                ridge_entries(codes, OUTPUTS, start, ridge=1.0),
                ridge_entries(codes, OUTPUTS, start, ridge=100.0),
                start,
            )
        ]
        assert losses == sorted(losses)


# --- whole tables ---------------------------------------------------------------------------------


def test_what_a_tree_can_tell_apart_is_exact():
    """Each subspace takes 16 values, in four inputs of two values each."""
    random = np.random.default_rng(6)
    rows = random.choice([-1.0, 1.0], (3000, 12))
    weights = random.standard_normal((12, 7))
    method = LookUp(rounded=False, ridge=0.0, **PUBLISHED)
    table = look_up(rows, weights, 3, method=method)
    new = random.choice([-1.0, 1.0], (500, 12))
    assert_close(table.apply(new), new @ weights, condition=1e3, scale=1)
    rounded = look_up(rows, weights, 3)
    assert share(new @ weights, rounded.apply(new)) < 1e-4


@pytest.mark.parametrize("method", [LookUp(), LookUp(rounded=False, **PUBLISHED)])
def test_inputs_and_outputs_may_be_permuted(method):
    """Where nothing is cut by the order of the inputs, all of them in one codebook."""
    random = np.random.default_rng(7)
    inputs, outputs = random.permutation(24), random.permutation(10)
    table = look_up(ROWS, WEIGHTS, 1, method=method)
    turned = look_up(ROWS[:, inputs], WEIGHTS[inputs][:, outputs], 1, method=method)
    np.testing.assert_array_equal(inputs[turned.splits], table.splits)
    np.testing.assert_array_equal(turned.thresholds, table.thresholds)
    found = np.asarray(turned.apply(HELD_OUT[:, inputs]))
    assert_close(found, np.asarray(table.apply(HELD_OUT))[:, outputs], condition=1e3, scale=1)


@pytest.mark.parametrize(("of_rows", "of_weights"), [(300, -300), (-300, 300), (20, 0)])
def test_units_do_not_matter(of_rows, of_weights):
    rows, weights = ROWS[:200], WEIGHTS
    for method in (LookUp(), LookUp(rounded=False, **PUBLISHED)):
        table = look_up(rows, weights, 3, method=method)
        scaled = np.ldexp(rows, of_rows), np.ldexp(weights, of_weights)
        other = look_up(*scaled, 3, method=method)
        np.testing.assert_array_equal(other.thresholds, np.ldexp(table.thresholds, of_rows))
        found = np.ldexp(np.asarray(other.apply(scaled[0])), -of_rows - of_weights)
        assert_close(found, table.apply(rows), scale=1)


@pytest.mark.parametrize("inputs", [1, 2, 7, 24])
@pytest.mark.parametrize("codebooks", [1, 3, 24])
def test_any_numbers_fit(inputs, codebooks):
    rows = ROWS[:30, :inputs]
    if codebooks > inputs:
        with pytest.raises(ValueError, match=f"`codebooks` must be an integer from 1 to {inputs}"):
            look_up(rows, WEIGHTS[:inputs], codebooks)
        return
    table = look_up(rows, WEIGHTS[:inputs], codebooks)
    assert table.entries.shape == (codebooks, 16, 10)
    assert np.isfinite(np.asarray(table.apply(1e6 * HELD_OUT[:, :inputs]))).all()


def test_sizes_beyond_the_inputs_are_left_out():
    observed = Observed(weights=WEIGHTS[:3], activations=ROWS[:, :3])
    sweep = LookUp((1, 2, 4)).sweep(observed)
    assert [sweep.name(k) for k in range(2)] == ["1 codebook", "2 codebooks"]
    assert len(sweep.storages) == 2


def test_a_table_is_fitted_to_what_it_sees():
    """Codes of the rows inside the compressed network, outputs of those of the original."""
    inside = ROWS + 0.3 * np.tanh(ROWS[:, ::-1])
    sequential = look_up(inside, WEIGHTS, 4, original=ROWS)
    apart = look_up(ROWS, WEIGHTS, 4)
    better, worse = (share(OUTPUTS, table.apply(inside)) for table in (sequential, apart))
    assert better < worse
    observed = Observed(weights=WEIGHTS, activations=ROWS, compressed_activations=inside)
    sweep = LookUp((4,)).sweep(observed)
    np.testing.assert_array_equal(sweep.at(0).approximation.apply(inside), sequential.apply(inside))


def test_a_calibration_of_kept_rows_serves():
    rows = ROWS[:300].astype(np.float32)
    kept = Calibration.empty(24, rows=True).update(np.concatenate([rows, rows]))
    one = LookUp((4,)).sweep(Observed(weights=WEIGHTS, calibration=kept)).at(0).approximation
    both = np.concatenate([rows, rows])
    other = LookUp((4,)).sweep(Observed(weights=WEIGHTS, activations=both)).at(0).approximation
    assert_close(one.apply(HELD_OUT), other.apply(HELD_OUT), condition=1e6, scale=1)


# --- trends ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fitted_entries_gain_most_where_rows_are_of_low_rank():
    """Errors on rows to come: entries fitted together against k-means and bucket means."""
    gains = []
    for rank, noise in ((4, 0.1), (64, 0.0)):
        rows, new, weights = layer(rank, noise, samples=2000, inputs=64, outputs=16)
        outputs, parts = new @ weights, subspaces(np.arange(64), 16)
        centres = k_means(rows[:1000], parts, steps=8, key=jax.random.key(0))
        means = bucket_means(centres.codes(rows), rows, parts, 16) @ weights
        nearest = share(outputs, summed_entries(centres.codes(new), means))
        codes = grown(rows, parts).codes
        plain, clustered = (
            share(
                rows @ weights, summed_entries(each, bucket_means(each, rows, parts, 16) @ weights)
            )
            for each in (codes, centres.codes(rows))
        )
        errors = {}
        for count in (2, 4, 16):
            method = LookUp(rounded=False, **PUBLISHED)
            errors[count] = share(outputs, look_up(rows, weights, count, method=method).apply(new))
        assert errors[2] > errors[4] > errors[16]
        assert clustered < plain  # trees buy speed, not accuracy
        gains.append(nearest / errors[16])
    assert gains[0] > 4 > gains[1]


@pytest.mark.slow
def test_trees_that_know_the_weights_gain_where_few_outputs_count():
    rows, new, weights = layer(16, 0.1, samples=2000, inputs=64, outputs=10)
    sparse = weights * np.where(np.arange(64) % 4 == 0, 1, 0.05)[:, None]
    for seen, factor in ((weights, 1.03), (sparse, 0.85), (weights[:, :1], 0.85)):
        losses = []
        for weighted in (False, True):
            method = LookUp(order=AsTheyCome(), weighted=weighted, rounded=False)
            losses.append(share(new @ seen, look_up(rows, seen, 8, method=method).apply(new)))
        assert losses[1] < factor * losses[0]


@pytest.mark.slow
def test_bytes_cost_little_and_averages_need_their_correction():
    rows, new, weights = layer(4, 0.1, samples=2000, inputs=64, outputs=16)
    table = look_up(rows, weights, 32, method=LookUp(rounded=False, **PUBLISHED))
    assert isinstance(table, Table)
    exact = share(new @ weights, table.apply(new))
    rounded = in_bytes(table, per_output=False)
    assert share(new @ weights, rounded.apply(new)) < 1.03 * exact
    codes = np.asarray(rounded.codes(new))
    found = np.asarray(rounded.entries)[np.arange(32), codes].transpose(0, 2, 1)
    step, shift = np.asarray(rounded.step), np.asarray(rounded.shift)
    corrected, biased = (
        share(new @ weights, averaged_sums(found, unbiased=unbiased) * step + shift)
        for unbiased in (True, False)
    )
    assert exact < corrected < biased


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LookUp(()), "`codebooks` is empty"),
        (lambda: LookUp((0,)), "`codebooks` must be an integer >= 1; got 0"),
        (lambda: LookUp(levels=9), "`levels` must be an integer from 1 to 8; got 9"),
        (lambda: LookUp(ridge=-1.0), "`ridge` must be a non-negative finite number"),
        (lambda: look_up(ROWS, WEIGHTS[1:], 2), "`rows` has 24 inputs, but `weights` has 23"),
        (lambda: look_up(ROWS * np.nan, WEIGHTS, 2), "`rows` has 36000 non-finite entries"),
        (lambda: look_up(ROWS, WEIGHTS, 2, original=ROWS[1:]), "`original` has 1499 samples"),
        (lambda: look_up(ROWS, WEIGHTS, 2, counts=np.ones(3)), "`counts` has 3 samples"),
        (lambda: LookUp().sweep(Observed(weights=WEIGHTS)), "`LookUp` needs what the layer sees"),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
