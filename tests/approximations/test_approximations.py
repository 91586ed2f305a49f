"""Laws of everything that stands in the place of a matrix, asked of each kind in one table."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quax
from hypothesis import given
from hypothesis import strategies as st

import lowrank_theory as lrt
from kinds import KINDS, MATRICES, numbers
from laws import comes_back
from lowrank_theory.approximations import (
    AbstractApproximation,
    AbstractMatrix,
    Bitmap,
    CompressedRows,
    Dense,
    LowRank,
    NOfM,
    Product,
    Quantised,
    RoundedTable,
    Sparse,
    Storage,
    Sum,
    Table,
    WholeRows,
)
from lowrank_theory.approximations._packing import pack, unpack
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import Certificate

pytestmark = [pytest.mark.thinned(3), pytest.mark.usefixtures("full_precision")]

SAMPLES, INPUTS, OUTPUTS = 5, 12, 7

kinds = pytest.mark.parametrize("kind", KINDS)
matrices = pytest.mark.parametrize("kind", MATRICES)


def drawn(kind: str, stack: tuple[int, ...] = (), seed: int = 0) -> Any:
    return KINDS[kind](np.random.default_rng(seed), stack, INPUTS, OUTPUTS)


def rows(*stack: int) -> np.ndarray:
    return numbers(np.random.default_rng(9), *stack, SAMPLES, INPUTS)


def by_hand(given: Any) -> Any:
    """The map of one approximation in NumPy: its function of rows."""
    if isinstance(given, Table | RoundedTable):
        step, shift = 1.0, 0.0
        if isinstance(given, RoundedTable):
            step, shift = np.asarray(given.step, float), np.asarray(given.shift, float)

        def look_up(x: np.ndarray) -> np.ndarray:
            total = np.zeros((len(x), given.shape[-1]))
            for k, row in enumerate(x):
                for split, threshold, entries in zip(
                    given.splits, given.thresholds, given.entries, strict=True
                ):
                    node = 0
                    for which in split:
                        node = 2 * node + 1 + int(row[which] >= threshold[node])
                    total[k] += entries[node - len(threshold)]
            return step * total + shift

        return look_up
    if isinstance(given, AbstractMatrix):
        return lambda x: x @ matrix_by_hand(given)
    inner = by_hand(given.approximation)
    return lambda x: inner(x) + np.asarray(given.shift, float)


def matrix_by_hand(given: Any) -> np.ndarray:
    """Entry by entry, from what is stored."""
    inputs, outputs = given.shape
    if isinstance(given, LowRank):
        return np.asarray(given.left, float) @ np.asarray(given.right, float)
    if isinstance(given, Sum):
        return sum((matrix_by_hand(part) for part in given.parts), np.zeros((inputs, outputs)))
    if isinstance(given, Product):
        return matrix_by_hand(given.left) @ matrix_by_hand(given.right)
    if isinstance(given, Quantised):
        return rounded_by_hand(given)
    if isinstance(given, Sparse):
        return scattered_by_hand(given)
    inner = given.matrix
    return np.asarray(inner, float) if isinstance(inner, np.ndarray) else matrix_by_hand(inner).T


def bits_by_hand(packed: Any, count: int, bits: int) -> list[int]:
    stream = int.from_bytes(bytes(np.asarray(packed)), "little")
    return [(stream >> (k * bits)) % 2**bits for k in range(count)]


def rounded_by_hand(given: Quantised) -> np.ndarray:
    inputs, outputs = given.shape
    codes = bits_by_hand(given.codes, inputs * outputs, given.bits)
    matrix = np.zeros((inputs, outputs))
    for i in range(inputs):
        k = i if given.order is None else int(given.order[i])
        for j in range(outputs):
            place = [0, 0] if given.axis is None else [k, j]
            if given.axis is not None:
                place[given.axis] = 0 if given.group is None else place[given.axis] // given.group
            zero: Any = 2 ** (given.bits - 1) if given.bits > 1 else 0.5
            zero = zero if given.zeros is None else float(given.zeros[tuple(place)])
            matrix[i, j] = float(given.scales[tuple(place)]) * (codes[k * outputs + j] - zero)
        if given.input_scales is not None:
            matrix[i] *= float(given.input_scales[i])
    return matrix


def scattered_by_hand(given: Sparse) -> np.ndarray:
    (inputs, outputs), pattern, matrix = given.shape, given.pattern, np.zeros(given.shape)
    column = isinstance(given.values, AbstractMatrix)
    held = matrix_by_hand(given.values)[:, 0] if column else np.asarray(given.values, float)
    values = iter(held)
    if isinstance(pattern, Bitmap):
        for k, bit in enumerate(bits_by_hand(pattern.bits, inputs * outputs, 1)):
            if bit:
                matrix[divmod(k, outputs)] = next(values)
    elif isinstance(pattern, CompressedRows):
        for i in range(inputs):
            for k in range(int(pattern.starts[i]), int(pattern.starts[i + 1])):
                matrix[i, int(pattern.columns[k])] = next(values)
    elif isinstance(pattern, WholeRows):
        for i, bit in enumerate(bits_by_hand(pattern.bits, inputs, 1)):
            if bit:
                matrix[i] = [next(values) for _ in range(outputs)]
    else:
        assert isinstance(pattern, NOfM)
        bits = max(1, (pattern.group - 1).bit_length())
        places = iter(bits_by_hand(pattern.places, len(held), bits))
        for group in range(inputs // pattern.group):
            for j in range(outputs):
                for _ in range(pattern.kept):
                    matrix[group * pattern.group + next(places), j] = next(values)
    return matrix


@kinds
def test_rows_go_through_as_by_hand(kind):
    given = drawn(kind)
    assert given.shape == (INPUTS, OUTPUTS)
    np.testing.assert_array_equal(given.apply(rows()), by_hand(given)(rows().astype(float)))


@matrices
def test_the_matrix_is_the_one_that_is_applied(kind):
    given, x = drawn(kind), rows()
    dense = np.asarray(given.materialise(), float)
    np.testing.assert_array_equal(dense, matrix_by_hand(given))
    np.testing.assert_array_equal(x @ given, x @ dense)
    np.testing.assert_array_equal(x[0] @ given, x[0] @ dense)
    columns = numbers(np.random.default_rng(3), OUTPUTS, 4)
    np.testing.assert_array_equal(given @ columns, dense @ columns)
    np.testing.assert_array_equal(given @ columns[:, 0], dense @ columns[:, 0])
    np.testing.assert_array_equal(given.T.materialise(), dense.T)
    np.testing.assert_array_equal(given.T.T.materialise(), dense)
    assert given.T.storage.bytes == given.storage.bytes


@matrices
def test_models_run_on_it(kind):
    """Contractions on either side, transposes, casts and `jit`, by `quaxify`."""
    given, x = drawn(kind), jnp.asarray(rows())
    dense = jnp.asarray(given.materialise())
    for function in (
        lambda a, x: x @ a,
        lambda a, x: a.T @ x.T,
        lambda a, x: jnp.einsum("io,si->os", a, x),
        jax.jit(lambda a, x: (x.astype(jnp.float16) @ a.astype(jnp.float16)).astype(x.dtype)),
        jax.checkpoint(lambda a, x: x @ a),
        lambda a, x: a * 2 + jnp.sum(x),
    ):
        np.testing.assert_array_equal(quax.quaxify(function)(given, x), function(dense, x))


@kinds
def test_a_stack_is_a_loop(kind):
    given, x = drawn(kind, (2, 3)), rows(2, 3)
    found = np.asarray(given.apply(x))
    mapped = jax.jit(jax.vmap(jax.vmap(lambda one, x: one.apply(x))))(given, jnp.asarray(x))
    assert given.shape == (2, 3, INPUTS, OUTPUTS)
    for k in np.ndindex(2, 3):
        one = jax.tree.map(lambda leaf, k=k: leaf[k], given)
        assert one.shape == (INPUTS, OUTPUTS)
        expected = by_hand(one)(x[k].astype(float))
        np.testing.assert_array_equal(found[k], expected)
        np.testing.assert_array_equal(mapped[k], expected)


@kinds
def test_it_comes_back_from_a_pickle_and_from_its_leaves(kind):
    for each in (drawn(kind), drawn(kind, (3,))):
        comes_back(each)


@kinds
def test_storage_counts_what_is_held(kind):
    """Bytes are those of the arrays, bits no more; a stack takes what its matrices do, padded."""
    one, many = drawn(kind), drawn(kind, (3,))
    for each in (one, many):
        assert each.storage.bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(each))
        assert 0 < each.storage.ideal_bits <= 8 * each.storage.bytes
    slices = [jax.tree.map(lambda leaf, k=k: leaf[k], many) for k in range(3)]
    assert sum((each.storage for each in slices), Storage()) == many.storage
    assert one.storage.multiply_adds >= 0
    assert one.storage + Storage() == one.storage


@kinds
def test_casts_leave_codes_alone(kind):
    given = drawn(kind)
    cast = given.map_floats(lambda leaf: jnp.asarray(leaf, jnp.bfloat16))
    assert cast.dtype == jnp.bfloat16
    assert jax.tree.structure(cast) == jax.tree.structure(given)
    for before, after in zip(jax.tree.leaves(given), jax.tree.leaves(cast), strict=True):
        floats = jnp.issubdtype(before.dtype, jnp.floating)
        assert after.dtype == (jnp.bfloat16 if floats else before.dtype)
        np.testing.assert_array_equal(np.asarray(after, float), np.asarray(before, float))
    exact = given.map_floats(lambda leaf: np.asarray(leaf, np.float64))
    assert exact.apply(rows().astype(float)).dtype == np.float64


@kinds
def test_floats_can_be_trained(kind):
    given, x = jax.tree.map(jnp.asarray, drawn(kind)), jnp.asarray(rows())
    slope = eqx.filter_grad(lambda given: jnp.sum(given.apply(x) ** 2))(given)
    assert isinstance(slope, type(given))
    leaves, changes = (
        jax.tree.leaves(each, is_leaf=lambda leaf: leaf is None) for each in (given, slope)
    )
    for leaf, change in zip(leaves, changes, strict=True):
        trained = leaf is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
        assert (change is not None) == trained
        if leaf is not None and change is not None:
            assert change.shape == leaf.shape


@matrices
@pytest.mark.parametrize("power", [-60, 60])
def test_outputs_scale_with_the_rows(kind, power):
    given = drawn(kind)
    x = rows()
    np.testing.assert_array_equal(
        given.apply(np.ldexp(x, power)), np.ldexp(np.asarray(given.apply(x)), power)
    )


@given(
    bits=st.integers(1, 8), count=st.integers(1, 40), stack=st.integers(0, 3), seed=st.integers(0)
)
def test_packing_keeps_every_code_in_as_few_bytes(bits, count, stack, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (*([stack] if stack else []), count))
    packed = pack(codes, bits)
    assert packed.nbytes == max(stack, 1) * math.ceil(count * bits / 8)
    np.testing.assert_array_equal(unpack(packed, count, bits), codes)


def test_a_matrix_of_four_bits_takes_an_eighth():
    codes = np.zeros((64, 32), int)
    scales = np.ones((1, 32), np.float32)
    storage = Quantised.of(codes, scales, bits=4).storage
    assert storage == Storage(64 * 32 + 32, 4 * 64 * 32 + 32 * 32, 32 * 32 + 4 * 32, 64 * 32)


def test_a_recovery_that_is_not_low_rank_has_no_factors():
    one, nothing = jnp.ones(()), jnp.zeros(())
    certificate = Certificate(one, nothing, one, jnp.asarray(True))
    rounded = lrt.Recovery(drawn("4 bits"), None, certificate, lrt.TruncatedSVD())
    with pytest.raises(ValueError, match="gives a `Quantised`, which has no factors"):
        print(rounded.factors)


def compressed_rows(columns: list[int], starts: list[int]) -> CompressedRows:
    return CompressedRows(
        columns=np.array(columns, np.uint8),
        starts=np.array(starts, np.int32),
        inputs=len(starts) - 1,
        outputs=2,
    )


MISFITS: list[tuple[Any, str]] = [
    (lambda: Quantised.of(np.full((2, 2), 4), np.ones((1, 2)), bits=2), "`codes` of 2 bits are 0"),
    (lambda: Quantised.of(np.zeros((2, 2)), np.ones((1, 2)), bits=2), "`codes` must be integers"),
    (lambda: Quantised.of(np.zeros((2, 2), int), np.ones((2, 2)), bits=2), "`scales` must be"),
    (lambda: Quantised.of(np.zeros((2, 2), int), np.ones((1, 2)), bits=9), "`bits` must be"),
    (
        lambda: Quantised(np.zeros(5, np.uint8), np.ones((1, 2)), bits=2, inputs=2, outputs=2),
        "`codes` must be 1 bytes",
    ),
    (lambda: Sparse.of(np.ones((2, 2)), np.ones((2, 3), bool)), "`mask` must be"),
    (
        lambda: Sparse(Dense(np.ones((2, 2))), NOfM.of(np.zeros((1, 2, 1), int), 2)),
        r"`values` must be \(2, 1\)",
    ),
    (lambda: Sparse(np.ones(3), NOfM.of(np.zeros((1, 2, 1), int), 2)), "`values` must be"),
    (lambda: compressed_rows([2], [0, 1]), "`columns` must be from 0 to 1; got 2 to 2"),
    (lambda: compressed_rows([1], [0, 2]), "`starts` must be from 0 to 1; got 0 to 2"),
    (lambda: compressed_rows([1], [0, 1, 0]), "`starts` must not fall"),
    (lambda: NOfM.of(np.full((1, 2, 1), 3), 3), "`places` must be from 0 to 2; got 3 to 3"),
    (lambda: Sparse.n_of_m(np.ones((3, 2)), 1, 2), "a multiple of 2 inputs"),
    (lambda: Sparse.n_of_m(np.ones((4, 2)), 1, 2, np.ones((2, 4))), "`scores` must be"),
    (lambda: Sparse.of(np.eye(2), np.eye(2), WholeRows), "`mask` must keep each row whole"),
    (lambda: Sum(()), "`parts` must be"),
    (lambda: Sum((LowRank(np.ones((2, 1)), np.ones((1, 2))), np.ones((2, 2)))), "`parts` must be"),
    (lambda: Product(np.ones((2, 2)), np.ones((2, 2))), "`left` must be an approximation"),
    (
        lambda: Table(np.zeros((1, 2), int), np.ones((1, 2)), np.ones((1, 4, 3)), inputs=2),
        "`thresholds` must be",
    ),
]


@pytest.mark.parametrize(("make", "message"), MISFITS, ids=[m for _, m in MISFITS])
def test_says_what_does_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@matrices
def test_is_not_made_an_array_unasked(kind):
    given = drawn(kind)
    with pytest.raises(TypeError, match="materialise"):
        np.asarray(given)
    with pytest.raises(ValueError, match="not a stack"):
        _ = rows() @ drawn(kind, (2,))
    assert isinstance(given, AbstractApproximation)


@matrices
def test_errors_are_those_of_the_dense_matrix(kind):
    given, x = drawn(kind), rows()
    random = np.random.default_rng(5)
    observed = Observed(weights=numbers(random, INPUTS, OUTPUTS), activations=x)
    for measure in (lrt.fitting_error, lrt.relative_fitting_error):
        found, dense = measure(given, observed), measure(given.materialise(), observed)
        np.testing.assert_allclose(found, dense, rtol=1e-6)
