"""Entries that stay and are rounded: the same levels, and bytes as they are counted."""

import numpy as np
import pytest

from lowrank_theory.approximations import Bitmap, Sparse, Sum
from lowrank_theory.mixtures import LowRankAndSparse, PrunedAndRounded, rounded_entries
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import RoundToNearest, round_to_nearest
from lowrank_theory.sparsification import Magnitude, Structured, largest_entries

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.standard_normal((30, 20)).astype(np.float32)


def dense(found) -> np.ndarray:
    return np.asarray(found.materialise(), float)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("kept", "group"), [(137, 16), (64, 64), (1, 64)])
def test_values_are_rounded_in_the_order_in_which_they_are_kept(bits, kept, group):
    sparse = largest_entries(WEIGHTS, kept)
    found = rounded_entries(sparse, bits, group)
    values = np.asarray(sparse.values)[:, None]
    wanted = round_to_nearest(values, bits, group=group)
    np.testing.assert_array_equal(dense(found.values), dense(wanted))
    stays = dense(sparse) != 0
    np.testing.assert_array_equal(dense(found)[stays], dense(wanted)[:, 0])
    assert not dense(found)[~stays].any()


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("kept", [100, 133])
def test_it_takes_codes_scales_and_places(bits, kept):
    found = rounded_entries(
        Sparse.of(WEIGHTS, dense(largest_entries(WEIGHTS, kept)) != 0), bits, 16
    )
    assert isinstance(found.pattern, Bitmap)
    scales = -(-kept // 16)
    assert found.storage.bytes == -(-kept * bits // 8) + 4 * scales + 600 // 8
    assert found.storage.ideal_bits == kept * bits + 32 * scales + 600
    assert found.storage.numbers == kept + scales
    assert found.storage.multiply_adds == kept


@pytest.mark.slow
def test_rounded_entries_beat_fewer_exact_ones_at_equal_bytes():
    """Of Gaussian weights: many in four bits lose less than few in thirty-two."""
    weights = RANDOM.standard_normal((128, 128)).astype(np.float32)
    exact, rounded = (
        ladder.sweep(Observed(weights=weights))
        for ladder in (Magnitude((0.05,)), PrunedAndRounded(Magnitude((0.2,))))
    )
    assert rounded.storages[0].bytes <= exact.storages[0].bytes
    assert rounded.squared_errors[0] < exact.squared_errors[0] / 2


def test_of_a_sum_the_sparse_part_is_rounded():
    observed = Observed(weights=WEIGHTS, activations=WEIGHTS.T)
    ladder = LowRankAndSparse((0.5,))
    exact, rounded = (
        each.sweep(observed).at(0).approximation for each in (ladder, PrunedAndRounded(ladder))
    )
    assert isinstance(exact, Sum) and isinstance(rounded, Sum)
    (low_rank, entries), (same, fewer) = exact.parts, rounded.parts
    np.testing.assert_array_equal(dense(same), dense(low_rank))
    assert isinstance(entries, Sparse)
    np.testing.assert_array_equal(dense(fewer), dense(rounded_entries(entries, 4)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrunedAndRounded(bits=1), "`bits` must be an integer from 2 to 8; got 1"),
        (lambda: PrunedAndRounded(group=0), "`group` must be an integer >= 1; got 0"),
        (
            lambda: PrunedAndRounded(RoundToNearest()).sweep(Observed(weights=WEIGHTS)),
            "`RoundToNearest` gave a `Quantised`",
        ),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_whole_outputs_are_rounded_through_their_transpose():
    pruning = Structured((0.5,), axis=1, data_driven=False)
    exact, rounded = (
        ladder.sweep(Observed(weights=WEIGHTS)).at(0).approximation
        for ladder in (pruning, PrunedAndRounded(pruning, bits=8))
    )
    np.testing.assert_allclose(dense(rounded), dense(exact), atol=0.02)
