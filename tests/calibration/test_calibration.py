"""Streamed statistics: any split, any order, one answer."""

import dataclasses
import functools
import importlib
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowrank_theory as lrt
from lowrank_theory._numerics import symmetric_product
from lowrank_theory._subspaces import lapack_leading_eigenvectors
from lowrank_theory.calibration import (
    AbstractCalibration,
    Calibration,
    TriangularCalibration,
    calibrate,
)
from lowrank_theory.calibration._row_sample import SIZE
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import (
    Certificate,
    Randomized,
    activation_weighted_from_moments,
)
from oracle import centred, norm, product
from tolerance import approx, assert_close

pytestmark = pytest.mark.thinned(4)

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((40, 8)) * np.geomspace(10, 0.1, 8) + RANDOM.standard_normal(8)
T = X + 0.3 * RANDOM.standard_normal((40, 8))
SIZES = (1, 4, 8)  # of batches: few, so that compilations are shared
KINDS = (Calibration, TriangularCalibration)
each_kind = pytest.mark.parametrize("kind", KINDS)


def leaves(calibration: AbstractCalibration) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(calibration)]


def streamed(kind, batches, compressed=None):
    calibration = kind.empty(8, compressed=compressed is not None)
    if compressed is None:
        return functools.reduce(lambda seen, batch: seen.update(batch), batches, calibration)
    return functools.reduce(
        lambda seen, pair: seen.update(*pair), zip(batches, compressed, strict=True), calibration
    )


def agree(one: Any, other: Any, tolerance: float = 1e-12) -> None:
    """As second moments, which are one also where a triangular factor is not."""
    for left, right in zip(leaves(one.moments()), leaves(other.moments()), strict=True):
        assert norm(left - right) <= tolerance * norm(right)


def batches(array: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(array, np.cumsum(sizes)[:-1])


@st.composite
def splits(draw):
    sizes = []
    while sum(sizes) < 40:
        sizes.append(draw(st.sampled_from([s for s in SIZES if s <= 40 - sum(sizes)])))
    return sizes


@each_kind
@given(splits(), st.integers(0, 1000))
def test_any_split_in_any_order(kind, sizes, seed):
    order = np.random.default_rng(seed).permutation(40)
    agree(streamed(kind, batches(X[order], sizes)), streamed(kind, [X]))
    both = streamed(kind, batches(X[order], sizes), batches(T[order], sizes))
    agree(both, streamed(kind, [X], [T]))


@each_kind
def test_moments_are_those_of_the_definition(kind):
    calibration = streamed(kind, np.split(X, 5), np.split(T, 5))
    moments = {
        "gram": (X, X),
        "compressed_gram": (T, T),
        "cross_gram": (T, X),
    }
    assert float(np.asarray(calibration.count)) == 40
    assert_close(calibration.mean, X.mean(0))
    assert_close(calibration.layer_input_mean, T.mean(0))
    for name, (left, right) in moments.items():
        plain = product(left.T, right)
        assert norm(np.asarray(getattr(calibration, name)()) - plain) <= 3e-15 * norm(plain)
        about_mean = product(centred(left).T, centred(right))
        found = np.asarray(getattr(calibration, name)(centred=True))
        assert norm(found - about_mean) <= 3e-15 * norm(about_mean)


@each_kind
def test_without_compressed_activations_all_moments_are_one(kind):
    calibration = streamed(kind, [X])
    for is_centred in (False, True):
        gram = np.asarray(calibration.gram(centred=is_centred))
        np.testing.assert_array_equal(calibration.compressed_gram(centred=is_centred), gram)
        np.testing.assert_array_equal(calibration.cross_gram(centred=is_centred), gram)
    assert calibration.rows()[0] is None if kind is TriangularCalibration else True


@pytest.mark.parametrize("compressed", [False, True])
@each_kind
def test_merge_is_commutative_and_associative(kind, compressed):
    thirds = [X[:8], X[8:24], X[24:]]
    others = [T[:8], T[8:24], T[24:]] if compressed else [None] * 3
    one, two, three = (
        streamed(kind, [a], None if b is None else [b]) for a, b in zip(thirds, others, strict=True)
    )
    agree(one.merge(two), two.merge(one), 3e-15)
    agree(one.merge(two).merge(three), one.merge(two.merge(three)), 1e-14)
    agree(one.merge(two).merge(three), streamed(kind, [X], [T] if compressed else None))
    empty = kind.empty(8, compressed=compressed)
    exact = 0 if kind is Calibration else 3e-15
    agree(one.merge(empty), one, exact)
    agree(empty.merge(one), one, exact)
    agree(empty.merge(empty), empty, 0)


@each_kind
def test_merge_is_traceable(kind):
    one, two = (streamed(kind, [rows]) for rows in (X[:8], X[8:]))
    agree(jax.jit(lambda a, b: a.merge(b))(one, two), one.merge(two), 1e-14)


def test_kinds_do_not_merge():
    other: Any = streamed(Calibration, [X])
    with pytest.raises(ValueError, match=r"`other` is a `Calibration`, but `self` is a `Triang"):
        streamed(TriangularCalibration, [X]).merge(other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each_kind
def test_coarse_batches_accumulate_in_float64(kind, dtype):
    coarse = X.astype(dtype)  # JAX has registered bfloat16 with NumPy
    for batch in (coarse, jnp.asarray(coarse)):
        calibration = streamed(kind, [batch[:8], batch[8:16], batch[16:]])
        assert all(leaf.dtype == np.float64 for leaf in leaves(calibration))
        agree(calibration, streamed(kind, [coarse.astype(np.float64)]), 1e-14)
    # The dtype itself would lose a second batch that is this much smaller.
    tiny = (1e-5 * coarse.astype(float)).astype(dtype)
    gram = np.asarray(streamed(kind, [coarse, tiny]).gram())
    both = np.concatenate([coarse, tiny]).astype(float)
    exact = product(both.T, both)
    assert norm(gram - exact) <= 1e-14 * norm(exact)


@pytest.mark.parametrize("mean", [1e6, -1e6])
@each_kind
def test_a_huge_mean_does_not_cancel(kind, mean):
    shifted = X + mean  # stored with an error of 1e-10
    calibration = streamed(kind, np.split(shifted, 5), np.split(T + mean, 5))
    about_mean = product(centred(X).T, centred(X))
    assert norm(np.asarray(calibration.gram(centred=True)) - about_mean) <= 1e-9 * norm(about_mean)
    cross = product(centred(T).T, centred(X))
    found = np.asarray(calibration.cross_gram(centred=True))
    assert norm(found - cross) <= 1e-9 * norm(cross)
    plain = product(shifted.T, shifted)
    assert norm(np.asarray(calibration.gram()) - plain) <= 1e-14 * norm(plain)


@pytest.mark.parametrize(
    ("kind", "numbers"), [(Calibration, 1 + 3 * 8 + 3 * 64), (TriangularCalibration, 25 + 16**2)]
)
def test_memory_does_not_grow(kind, numbers):
    calibration = kind.empty(8, compressed=True)
    sizes = [sum(leaf.nbytes for leaf in leaves(calibration))]
    for _ in range(3):
        calibration = calibration.update(X, T)
        sizes.append(sum(leaf.nbytes for leaf in leaves(calibration)))
    assert sizes == [8 * (numbers + 2 * SIZE)] * 4


@each_kind
def test_works_under_jit_scan_and_vmap(kind):
    stacked = jnp.asarray(np.stack(np.split(X, 5)), jnp.float32)
    plain = streamed(kind, list(np.asarray(stacked)))

    @jax.jit
    def scanned(stacked):
        start = jax.tree.map(jnp.asarray, streamed(kind, [stacked[0]]))
        return jax.lax.scan(lambda seen, batch: (seen.update(batch), None), start, stacked[1:])[0]

    agree(scanned(stacked), plain, 1e-12)
    mapped = jax.jit(jax.vmap(lambda batch: kind.empty(8).update(batch)))(stacked)
    for index, batch in enumerate(stacked):
        one = jax.tree.map(operator.itemgetter(index), mapped)
        agree(one, streamed(kind, [batch]), 1e-12)


@each_kind
def test_an_update_leaves_the_earlier_statistics_alone(kind):
    one = streamed(kind, [X])
    before = leaves(one)
    one.update(T)
    with pytest.raises(ValueError, match="non-finite"):
        one.update(np.full((4, 8), np.nan))
    for left, right in zip(before, leaves(one), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("inputs", [255, 257, 1030])
def test_the_gram_by_blocks_is_the_gram(inputs):
    rows = np.random.default_rng(inputs).integers(-9, 9, (5, inputs)).astype(np.float32)
    found = np.asarray(symmetric_product(*2 * [jnp.asarray(rows)]))  # of integers: no rounding
    np.testing.assert_array_equal(found, rows.T @ rows)


def test_the_triangle_is_the_one_with_a_non_negative_diagonal():
    for rows in (X, np.hstack([T, X])):
        compressed = [rows[:, :8]] if rows.shape[1] == 16 else None
        found = np.asarray(streamed(TriangularCalibration, [rows[:, -8:]], compressed).triangle)
        triangle = np.linalg.qr(centred(rows))[1]
        triangle *= np.sign(np.diagonal(triangle))[:, None]
        assert norm(found - triangle) <= 1e-13 * norm(triangle)
        assert (np.diagonal(found) >= 0).all()
        np.testing.assert_array_equal(np.tril(found, -1), 0)
        again = np.asarray(streamed(TriangularCalibration, [X[:4], X[4:]]).triangle)
        assert norm(again - np.asarray(streamed(TriangularCalibration, [X]).triangle)) <= 1e-12


def test_rows_stand_for_all_rows():
    seen = streamed(TriangularCalibration, np.split(X, 5), np.split(T, 5))
    compressed, rows = (np.asarray(part) for part in seen.rows())
    assert len(rows) == 17
    assert_close(rows[0], np.sqrt(40) * X.mean(0))
    assert_close(compressed[0], np.sqrt(40) * T.mean(0))
    for left, right, a, b in ((compressed, rows, T, X), (rows, rows, X, X)):
        assert norm(left.T @ right - a.T @ b) <= 1e-14 * norm(a.T @ b)
        assert norm(left[1:].T @ right[1:] - centred(a).T @ centred(b)) <= 1e-13 * norm(a.T @ b)


def test_a_triangle_keeps_what_squares_lose():
    left, right = (np.linalg.qr(RANDOM.standard_normal(s))[0] for s in ((40, 8), (8, 8)))
    values = np.geomspace(1, 1e-12, 8)
    rows = (left - left.mean(0)) * values @ right.T
    exact = np.linalg.svd(centred(rows), compute_uv=False)
    triangle = streamed(TriangularCalibration, np.split(rows, 5)).triangle
    found = np.linalg.svd(np.asarray(triangle), compute_uv=False)
    assert np.abs(found - exact).max() <= 1e-15
    eigenvalues = np.linalg.eigvalsh(np.asarray(streamed(Calibration, [rows]).gram(centred=True)))
    assert eigenvalues[0] < 0 or np.sqrt(eigenvalues[0]) > 10 * exact[-1]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("mismatch", [False, True])
@each_kind
def test_calibration_and_rows_recover_the_same_layer(kind, mismatch, affine):
    random = np.random.default_rng(1)
    weights, bias = random.standard_normal((8, 6)), random.standard_normal(6) if affine else None
    seen = streamed(kind, [X], [T] if mismatch else None)
    rows = Observed(
        weights=weights,
        activations=X,
        compressed_activations=T if mismatch else None,
        bias=bias,
    )
    kept = Observed(weights=weights, calibration=seen, bias=bias)
    one, other = (lrt.recover(layer, 3, lrt.ActivationWeighted()) for layer in (rows, kept))
    difference = np.asarray(one.factors.materialise()) - np.asarray(other.factors.materialise())
    precise = kind is TriangularCalibration
    assert norm(product(T, difference)) <= (1e-13 if precise else 1e-9) * norm(product(X, weights))
    for name in ("optimal_error", "target_norm"):
        values = [float(np.asarray(getattr(r.certificate, name))) for r in (one, other)]
        assert values[0] == approx(values[1])
    assert bool(other.certificate.certified)
    if one.bias is not None and other.bias is not None:
        np.testing.assert_allclose(one.bias, other.bias, rtol=1e-9, atol=1e-9)


@pytest.fixture
def partial(monkeypatch) -> list[int]:
    """The ranks for which leading eigenvectors alone were computed, also of small layers."""
    if jax.default_backend() != "cpu":
        pytest.skip("leading eigenvectors alone are LAPACK's, on a processor")
    module = importlib.import_module("lowrank_theory.recovery._from_moments")
    ranks, solver = [], module.lapack_leading_eigenvectors

    def counting(matrix, rank):
        ranks.append(rank)
        return solver(matrix, rank)

    monkeypatch.setattr(module, "lapack_leading_eigenvectors", counting)
    monkeypatch.setattr(module, "PARTIAL_FROM", 1)
    return ranks


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("mismatch", [False, True])
@pytest.mark.parametrize("outputs", [8, 12])
def test_leading_eigenvectors_alone_give_the_same_layer(partial, outputs, mismatch, affine, scale):
    random = np.random.default_rng(7)
    weights = random.standard_normal((8, outputs)).astype(np.float32)
    bias = random.standard_normal(outputs).astype(np.float32) if affine else None
    seen = streamed(Calibration, [scale * X], [scale * T] if mismatch else None)
    found = lrt.recover(
        Observed(weights=weights, calibration=seen, bias=bias), 2, lrt.ActivationWeighted()
    )
    assert partial == [2]
    factors, new_bias, certificate = activation_weighted_from_moments(
        weights.astype(float), seen, bias, rank=2, dtype=np.float32
    )
    assert found.factors.dtype == factors.dtype == jnp.float32
    size = norm(product(X, weights))
    difference = product(*map(np.asarray, (found.factors.left, found.factors.right)))
    difference -= product(*map(np.asarray, (factors.left, factors.right)))
    assert norm(product(X, difference)) <= 1e-6 * size
    if found.bias is not None and new_bias is not None:
        np.testing.assert_allclose(found.bias, new_bias, rtol=1e-5, atol=1e-6 * scale * size)
    for name in ("optimal_error", "excess_bound", "target_norm"):
        one, other = (float(getattr(c, name)) for c in (found.certificate, certificate))
        assert np.isclose(one, other, rtol=1e-3 if name == "excess_bound" else 1e-6)
    assert bool(found.certificate.certified) and bool(certificate.certified)


def test_what_is_not_finite_is_no_exception(partial):
    seen = dataclasses.replace(streamed(Calibration, [X]), scatter=np.full((8, 8), np.nan))
    layer = Observed(weights=np.ones((8, 8)), calibration=seen)
    certificate = lrt.recover(layer, 2, lrt.ActivationWeighted()).certificate
    assert partial == [2]
    assert not bool(certificate.finite) and not bool(certificate.certified)


@pytest.mark.parametrize("rank", [1, 5, 8])
@pytest.mark.parametrize("count", [0, 3, 5, 8])
def test_leading_eigenvectors_at_ties(count, rank):
    """A projector of rank `count`: its equal eigenvalues are cut anywhere."""
    basis = np.linalg.qr(np.random.default_rng(8).standard_normal((8, 8)))[0][:, :count]
    with jax.enable_x64(True):
        vectors, eigenvalues = lapack_leading_eigenvectors(jnp.asarray(basis @ basis.T), rank)
    assert_close(vectors.T @ vectors, np.eye(rank), side=2, scale=1)
    assert_close(eigenvalues, np.arange(rank) < count, side=2, scale=1)
    kept = vectors[:, :count]
    assert_close(basis @ (basis.T @ kept), kept, side=2, scale=1)


@pytest.mark.parametrize(
    "method",
    [lrt.Ridge(0.3), Randomized(key=jax.random.key(0))],
    ids=["ridge", "sketch"],
)
def test_other_methods_square_the_triangle(method):
    weights = np.random.default_rng(2).standard_normal((8, 6))
    one, other = (
        lrt.recover(Observed(weights=weights, calibration=streamed(kind, [X])), 2, method).factors
        for kind in KINDS
    )
    difference = np.asarray(one.materialise()) - np.asarray(other.materialise())
    assert norm(difference) <= 1e-12 * norm(weights)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("mismatch", [False, True])
def test_certified_where_second_moments_are_not(mismatch, affine):
    """Four massive directions, spread over all inputs, in float32."""
    random = np.random.default_rng(3)
    basis = np.linalg.qr(random.standard_normal((32, 32)))[0]
    scales = np.r_[np.full(4, 1e5), np.geomspace(1, 0.1, 28)]
    rows = random.standard_normal((400, 32)) * scales @ basis + affine * random.uniform(0, 1e4, 32)
    inputs = rows + 0.1 * random.standard_normal(rows.shape) if mismatch else rows
    rows, inputs = rows.astype(np.float32), inputs.astype(np.float32)
    weights, bias = random.standard_normal((32, 24)), np.zeros(24) if affine else None

    outputs, seen_inputs = rows.astype(float) @ weights, inputs.astype(float)
    if affine:
        outputs, seen_inputs = centred(outputs), centred(seen_inputs)
    basis = np.linalg.svd(seen_inputs, full_matrices=False)[0]
    unattainable = norm(outputs - basis @ (basis.T @ outputs))
    tail = np.linalg.svd(basis.T @ outputs, compute_uv=False)[8:]
    optimum = np.hypot(unattainable, norm(tail))

    pairs = [(rows[i : i + 100], inputs[i : i + 100]) for i in range(0, 400, 100)]
    batches = pairs if mismatch else [pair[0] for pair in pairs]
    certified = {}
    for kind in KINDS:
        seen = calibrate(batches, kind.empty(32, compressed=mismatch))
        layer = Observed(weights=weights, calibration=seen, bias=bias)
        recovery = lrt.recover(layer, 8, lrt.ActivationWeighted())
        error = norm(outputs - product(seen_inputs, np.asarray(recovery.factors.materialise())))
        certificate = recovery.certificate
        assert isinstance(certificate, Certificate)
        bound = optimum + float(np.asarray(certificate.excess_bound))
        assert optimum * (1 - 1e-9) <= error <= bound
        certified[kind] = bool(recovery.certificate.certified)
        if kind is TriangularCalibration:
            assert error <= (1 + 1e-6) * optimum
            assert np.isclose(float(np.asarray(certificate.optimal_error)), optimum)
    assert certified == {Calibration: False, TriangularCalibration: True}
