"""Streamed statistics: any split, any order, one answer."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowrank_theory as lrt
from lowrank_theory import Calibration
from oracle import centred, norm, product

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((40, 8)) * np.geomspace(10, 0.1, 8) + RANDOM.standard_normal(8)
T = X + 0.3 * RANDOM.standard_normal((40, 8))
SIZES = (1, 4, 8)  # of batches: few, so that compilations are shared


def leaves(calibration: Calibration) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(calibration)]


def streamed(batches, compressed=None) -> Calibration:
    calibration = Calibration.empty(8, compressed=compressed is not None)
    if compressed is None:
        return functools.reduce(lambda seen, batch: seen.update(batch), batches, calibration)
    return functools.reduce(
        lambda seen, pair: seen.update(*pair), zip(batches, compressed, strict=True), calibration
    )


def agree(one: Calibration, other: Calibration, tolerance: float = 1e-12) -> None:
    for left, right in zip(leaves(one), leaves(other), strict=True):
        assert norm(left - right) <= tolerance * norm(right)


def batches(array: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(array, np.cumsum(sizes)[:-1])


@st.composite
def splits(draw):
    sizes = []
    while sum(sizes) < 40:
        sizes.append(draw(st.sampled_from([s for s in SIZES if s <= 40 - sum(sizes)])))
    return sizes


@given(splits(), st.integers(0, 1000))
def test_any_split_in_any_order(sizes, seed):
    order = np.random.default_rng(seed).permutation(40)
    agree(streamed(batches(X[order], sizes)), streamed([X]))
    both = streamed(batches(X[order], sizes), batches(T[order], sizes))
    agree(both, streamed([X], [T]))


def test_moments_are_those_of_the_definition():
    calibration = streamed(np.split(X, 5), np.split(T, 5))
    moments = {
        "gram": (X, X),
        "compressed_gram": (T, T),
        "cross_gram": (T, X),
    }
    assert float(np.asarray(calibration.count)) == 40
    for name, (left, right) in moments.items():
        plain = product(left.T, right)
        assert norm(np.asarray(getattr(calibration, name)()) - plain) <= 1e-14 * norm(plain)
        about_mean = product(centred(left).T, centred(right))
        found = np.asarray(getattr(calibration, name)(centred=True))
        assert norm(found - about_mean) <= 1e-14 * norm(about_mean)


def test_without_compressed_activations_all_moments_are_one():
    calibration = streamed([X])
    for is_centred in (False, True):
        gram = np.asarray(calibration.gram(centred=is_centred))
        np.testing.assert_array_equal(calibration.compressed_gram(centred=is_centred), gram)
        np.testing.assert_array_equal(calibration.cross_gram(centred=is_centred), gram)


@pytest.mark.parametrize("compressed", [False, True])
def test_merge_is_commutative_and_associative(compressed):
    thirds = [X[:8], X[8:24], X[24:]]
    others = [T[:8], T[8:24], T[24:]] if compressed else [None] * 3
    one, two, three = (
        streamed([a], None if b is None else [b]) for a, b in zip(thirds, others, strict=True)
    )
    agree(one.merge(two), two.merge(one), 1e-14)
    agree(one.merge(two).merge(three), one.merge(two.merge(three)), 1e-14)
    agree(one.merge(two).merge(three), streamed([X], [T] if compressed else None))
    empty = Calibration.empty(8, compressed=compressed)
    agree(one.merge(empty), one, 0)
    agree(empty.merge(one), one, 0)
    agree(empty.merge(empty), empty, 0)


def test_float32_batches_accumulate_in_float64():
    single = X.astype(np.float32)
    calibration = streamed(np.split(single, 5))
    assert all(leaf.dtype == np.float64 for leaf in leaves(calibration))
    agree(calibration, streamed([single.astype(np.float64)]))
    # Float32 itself would lose a second batch that is this much smaller.
    tiny = np.float32(1e-5) * single
    gram = np.asarray(streamed([single, tiny]).gram())
    exact = product(single.astype(float).T, single.astype(float)) * (1 + 0.0) + product(
        tiny.astype(float).T, tiny.astype(float)
    )
    assert norm(gram - exact) <= 1e-14 * norm(exact)


@pytest.mark.parametrize("mean", [1e6, -1e6])
def test_a_huge_mean_does_not_cancel(mean):
    shifted = X + mean  # stored with an error of 1e-10
    calibration = streamed(np.split(shifted, 5), np.split(T + mean, 5))
    about_mean = product(centred(X).T, centred(X))
    assert norm(np.asarray(calibration.gram(centred=True)) - about_mean) <= 1e-9 * norm(about_mean)
    cross = product(centred(T).T, centred(X))
    found = np.asarray(calibration.cross_gram(centred=True))
    assert norm(found - cross) <= 1e-9 * norm(cross)
    plain = product(shifted.T, shifted)
    assert norm(np.asarray(calibration.gram()) - plain) <= 1e-14 * norm(plain)


def test_memory_does_not_grow():
    calibration = Calibration.empty(8, compressed=True)
    sizes = [sum(leaf.nbytes for leaf in leaves(calibration))]
    for _ in range(3):
        calibration = calibration.update(X, T)
        sizes.append(sum(leaf.nbytes for leaf in leaves(calibration)))
    assert sizes == [8 * (1 + 2 * 8 + 3 * 64)] * 4


def test_works_under_jit_scan_and_vmap():
    stacked = jnp.asarray(np.stack(np.split(X, 5)), jnp.float32)
    plain = streamed(list(np.asarray(stacked)))

    @jax.jit
    def scanned(stacked):
        start = jax.tree.map(jnp.asarray, streamed([stacked[0]]))
        return jax.lax.scan(lambda seen, batch: (seen.update(batch), None), start, stacked[1:])[0]

    agree(scanned(stacked), plain, 1e-12)
    mapped = jax.jit(jax.vmap(lambda batch: Calibration.empty(8).update(batch)))(stacked)
    for index, batch in enumerate(stacked):
        one = jax.tree.map(operator.itemgetter(index), mapped)
        agree(one, streamed([batch]), 1e-12)


def test_an_update_leaves_the_earlier_statistics_alone():
    one = streamed([X])
    before = leaves(one)
    one.update(T)
    with pytest.raises(ValueError, match="non-finite"):
        one.update(np.full((4, 8), np.nan))
    for left, right in zip(before, leaves(one), strict=True):
        np.testing.assert_array_equal(left, right)


def test_calibration_and_rows_recover_the_same_layer():
    weights = RANDOM.standard_normal((8, 6))
    bias = RANDOM.standard_normal(6)
    for affine in (None, bias):
        rows = lrt.recover(
            lrt.Observed(weights=weights, activations=X, compressed_activations=T, bias=affine),
            rank=3,
            method=lrt.ActivationWeighted(),
        )
        moments = lrt.recover(
            lrt.Observed(weights=weights, calibration=streamed([X], [T]), bias=affine),
            rank=3,
            method=lrt.ActivationWeighted(),
        )
        one, other = (np.asarray(r.factors.materialise()) for r in (rows, moments))
        assert norm(product(T, one - other)) <= 1e-9 * norm(product(X, weights))
        assert bool(moments.certificate.certified)
