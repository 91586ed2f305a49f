"""Orders of inputs: permutations of any rows, what they are by definition, and what they gain."""

import numpy as np
import pytest
from scipy.sparse import csgraph, csr_array

from lowrank_theory import networks
from lowrank_theory.lookup import AsTheyCome, Correlated, LookUp, Rotated, look_up
from tolerance import assert_close

pytestmark = pytest.mark.thinned(3)

RANDOM = np.random.default_rng(6)
ROWS = RANDOM.standard_normal((300, 6)) @ RANDOM.standard_normal((6, 24))
ROWS += 0.1 * RANDOM.standard_normal(ROWS.shape)
ONES = np.ones(len(ROWS))


def share(outputs: np.ndarray, found: object) -> float:
    """The squared error as a share of the squares about the mean."""
    away = outputs - np.asarray(found)
    return float(np.sum(away**2) / np.sum((outputs - outputs.mean(axis=0)) ** 2))


@pytest.mark.parametrize(
    "order", [AsTheyCome(), Correlated(), Correlated(squared=False), Rotated(steps=3)]
)
@pytest.mark.parametrize("inputs", [1, 2, 24])
def test_an_order_is_a_permutation(order, inputs):
    rows = ROWS[:, :inputs].copy()
    rows[:, 0] = 3.0
    for some in (rows, rows[:1], 0 * rows, rows[:0], np.ldexp(rows, 400)):
        found = order.of(some, np.ones(len(some)))
        assert sorted(found.tolist()) == list(range(inputs))


def grouped(signs: bool):
    """Six groups of four inputs that are alike up to noise, and up to signs, shuffled."""
    random = np.random.default_rng(8)
    hidden = np.repeat(random.standard_normal((3000, 6)), 4, axis=1)
    rows = hidden + 0.3 * random.standard_normal((3000, 24))
    if signs:
        rows *= random.choice([-1, 1], 24)
    return rows[:, random.permutation(24)], random.standard_normal((24, 12))


@pytest.mark.slow
@pytest.mark.parametrize("signs", [False, True])
def test_inputs_that_tell_of_each_other_belong_together(signs):
    rows, weights = grouped(signs)
    losses = {}
    for order in (AsTheyCome(), Correlated(squared=False), Correlated()):
        table = look_up(rows[:1500], weights, 6, method=LookUp(order=order))
        losses[str(order)] = share(rows[1500:] @ weights, table.apply(rows[1500:]))
    plain, linear, squared = losses.values()
    assert squared < 0.7 * plain and squared <= linear * 1.02
    if signs:
        assert squared < 0.9 * linear


@pytest.mark.slow
@pytest.mark.parametrize("codebooks", [8, 16])
def test_pixels_are_best_left_where_they_are(codebooks):
    """.17 against .19 and .08 against .11, in the first layer of the digits."""
    split, weights = networks.digits_data(), networks.digits_network().weights[0]
    seen, new = np.asarray(split.training_images), np.asarray(split.held_out_images)
    in_place, clustered = (
        share(
            new @ np.asarray(weights),
            look_up(seen, weights, codebooks, method=LookUp(order=order)).apply(new),
        )
        for order in (AsTheyCome(), Correlated())
    )
    assert in_place < 0.95 * clustered


# --- orders from rotations ------------------------------------------------------------------------


def lost(rows: np.ndarray, rotation: np.ndarray) -> float:
    """Squares that Lloyd's algorithm leaves of rotated rows in two halves, from one start."""
    total = 0.0
    for part in np.array_split((rows - rows.mean(axis=0)) @ rotation, 2, axis=1):
        centres = part[:16]
        for _ in range(30):
            code = np.argmin(np.sum((part[:, None] - centres) ** 2, axis=2), axis=1)
            there = [np.flatnonzero(code == k) for k in range(16)]
            centres = np.array(
                [part[b].mean(axis=0) if len(b) else c for b, c in zip(there, centres, strict=True)]
            )
        total += np.min(np.sum((part[:, None] - centres) ** 2, axis=2), axis=1).sum()
    return total


def test_a_rotation_is_one_and_leaves_less():
    rotation = Rotated(steps=30).rotation(ROWS, ONES)
    assert_close(rotation @ rotation.T, np.eye(24), scale=1)
    assert lost(ROWS, rotation) < 0.9 * lost(ROWS, np.eye(24))
    np.testing.assert_array_equal(Rotated(steps=0).of(ROWS, ONES), np.arange(24))


def test_the_permutation_is_the_nearest_to_the_rotation():
    order = Rotated(steps=10)
    rotation = order.rotation(ROWS, ONES)
    inputs, places = csgraph.min_weight_full_bipartite_matching(csr_array(2 - rotation))
    best, found = np.zeros(24, int), order.of(ROWS, ONES)
    best[places] = inputs
    np.testing.assert_array_equal(found, best)
    assert np.any(found != np.arange(24)) and np.any(found[found] != np.arange(24))


def test_units_shifts_and_counts_do_not_matter_to_a_rotation():
    counts = np.random.default_rng(0).integers(1, 4, len(ROWS))
    order = Rotated(steps=2)
    once = order.rotation(ROWS, ONES)
    np.testing.assert_array_equal(order.rotation(np.ldexp(ROWS, 300), ONES), once)
    assert_close(order.rotation(ROWS + 3, ONES), once, condition=1e4, scale=1)
    again = order.rotation(np.repeat(ROWS, counts, axis=0), np.ones(counts.sum()))
    assert_close(order.rotation(ROWS, counts.astype(float)), again, condition=1e4, scale=1)
