"""What a user gives: arrays and numbers of every kind, and memory that goes on being the user's."""

import decimal
import fractions
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from jax.sharding import NamedSharding, PartitionSpec

import lowrank_theory as lrt
import unhooked
from lowrank_theory import rank_choice
from lowrank_theory._door import (
    check_array,
    check_count,
    check_fraction,
    check_key,
    check_positive,
    native,
    ours,
    together,
)
from lowrank_theory.calibration import Calibration, TriangularCalibration
from lowrank_theory.certification import unit_losses
from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.recovery import LowRank

pytestmark = pytest.mark.thinned(4)

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((14, 6))
W = RANDOM.standard_normal((6, 5))
KINDS = (Calibration, TriangularCalibration)


class Bad:
    dtype = np.dtype("f4")


# --- arrays ---------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, str]] = {
    "masked": (np.ma.masked_array(X, mask=X > 1), "`given` is a masked array"),
    "nothing masked": (np.ma.masked_array(X), "`given` is a masked array"),
    "a list of masked rows": ([np.ma.masked_array(row, row > 1) for row in X], "masked array"),
    "sparse": (scipy.sparse.csr_matrix(X), "`given` must be .* got scipy's csr_matrix"),
    "shape alone": (jax.ShapeDtypeStruct((14, 6), np.float32), "`given` must be .* ShapeDtype"),
    "factors": (LowRank(X, np.eye(6)), "`given` must be .* LowRank"),
    "dtype alone": (Bad(), "`given` must be .* Bad"),
    "ragged": ([[1.0, 2.0], [3.0]], "`given` must be .* got list"),
    "objects": (X.astype(object), "`given` must be .* ndarray"),
    "nothing": (None, "`given` must be .* NoneType"),
    "text": (X.astype(str), "`given` must be floating point; got dtype <U"),
    "dates": (X.astype(int).astype("M8[s]"), "`given` must be floating point; got dtype datetime"),
    "records": (np.zeros((2, 2), [("a", "f8")]), "`given` must be floating point"),
    "integers": (X.astype(int), "`given` must be floating point; got dtype int64"),
    "complex": (X + 1j, r"`given` must be .* real; got dtype complex128.*given\.imag"),
    "complex on a device": (jnp.asarray(X + 1j), r"`given` must be .* real; .*given\.imag"),
    "long double": (X.astype(np.longdouble), "`given` has dtype .*128.*astype.'float64'"),
    "float8": (X.astype(ml_dtypes.float8_e4m3fn), "`given` has dtype float8_e4m3fn: .*codes"),
    "float8 on a device": (jnp.asarray(X, jnp.float8_e5m2), "`given` has dtype float8_e5m2: "),
    "float4": (X.astype(ml_dtypes.float4_e2m1fn), "`given` has dtype float4_e2m1fn: .*codes"),
    "keys": (jax.random.split(jax.random.key(0), (14, 6)), "`given` must be floating point"),
    "not finite": (np.where(X > 1, np.inf, X), "`given` has .* non-finite entries"),
}
TAKEN: dict[str, Any] = {
    "big-endian": X.astype(">f8"),
    "big-endian float32": X.astype(">f4"),
    "big-endian float16": X.astype(">f2"),
    "backwards": X[::-1, ::-1],
    "by columns": np.asfortranarray(X),
    "a matrix": np.asmatrix(X),
    "a list": X.tolist(),
    "a list of arrays": list(X),
    "repeated in place": np.broadcast_to(X[:1], X.shape),
    "read-only": np.frombuffer(X.tobytes()).reshape(X.shape),
    "bfloat16": X.astype(ml_dtypes.bfloat16),
    "on a device": jnp.asarray(X),
}
ENTRIES: dict[str, Any] = {
    "recover": lambda a: lrt.recover(
        lrt.Observed(weights=W, activations=a), 3, lrt.ActivationWeighted()
    ).factors.materialise(),
    "update": lambda a: Calibration.empty(6).update(a).gram(),
    "update triangle": lambda a: TriangularCalibration.empty(6).update(a).gram(),
    "calibrate": lambda a: lrt.calibrate([a, a], TriangularCalibration.empty(6)).gram(),
    "energy": lambda a: rank_choice.energy(lrt.Observed(weights=W, activations=a), 0.9),
    "unit_losses": lambda a: unit_losses(a, X),
    "certify": lambda a: (
        lrt.certify(lrt.Observed(weights=W), FOUND, held_out=a, failure_probability=0.05).bound
    ),
}
SETTING = lrt.Setting(samples=20, inputs=8, outputs=6, rank=2)
WRONG_KEYS = (3, None, "0", np.zeros(3), np.zeros(3, np.uint32))
KEYED = (
    lambda key: SETTING.draw(key=key),
    lambda key: lrt.verify(lrt.theorems.best_possible, trials=1, key=key),
    lambda key: lrt.Randomized(key=key),
)
FOUND = lrt.recover(lrt.Observed(weights=W), 3, lrt.TruncatedSVD())


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_plain_array_gets_one_error(given, message):
    with pytest.raises(ValueError, match=message):
        check_array("given", given, "rows", "columns")


def test_no_entry_lets_it_pass():
    unhooked.check("test_door")


def check_wrong_types():
    check_fields()
    for wrong in WRONG_KEYS:
        for call in KEYED:
            with pytest.raises(ValueError, match=r"`key` must be .*jax\.random\.key"):
                call(wrong)
    for name, (given, _) in REFUSED.items():
        for entry, call in ENTRIES.items() if given is not None else ():
            print(name, entry)
            with pytest.raises(ValueError, match="`"):
                call(given)


@pytest.mark.parametrize("given", TAKEN.values(), ids=TAKEN.keys())
def test_a_plain_array_is_taken_by_value(given):
    dtype = getattr(given, "dtype", np.dtype(float)).newbyteorder("=")
    plain = np.array(given, dtype=dtype, order="C")
    for lent in (False, True):
        found = check_array("given", given, "rows", "columns", lent=lent)
        assert found.dtype == dtype and type(found) in (np.ndarray, type(jnp.zeros(1)))
        np.testing.assert_array_equal(np.asarray(found), plain)
    for entry in ("update", "update triangle", "unit_losses"):
        ENTRIES[entry](plain)  # a program of this shape is at hand, which does not look at bytes
        np.testing.assert_array_equal(ENTRIES[entry](given), ENTRIES[entry](plain))


# --- memory ---------------------------------------------------------------------------------------


def test_what_is_kept_is_a_copy_that_programs_read_in_place():
    given = X.copy()
    kept = check_array("given", given, "rows", "columns")
    assert isinstance(kept, np.ndarray) and not np.shares_memory(kept, given)
    assert not kept.flags.writeable and kept.ctypes.data % 64 == 0
    assert np.shares_memory(check_array("given", given, "rows", "columns", lent=True), given)
    assert ours(kept) is kept and not np.shares_memory(ours(given), given)


def test_an_observed_layer_does_not_follow_its_buffers():
    weights, rows = W.copy(), X.copy()
    donated = jnp.array(X, jnp.float32)
    observed = lrt.Observed(weights=weights, activations=rows)
    on_device = lrt.Observed(weights=weights, activations=donated)
    factors = LowRank(rows, weights)
    weights[:], rows[:] = 0, np.nan
    donated.delete()
    np.testing.assert_array_equal(observed.weights, W)
    np.testing.assert_array_equal(observed.activations, X)
    np.testing.assert_array_equal(on_device.activations, X.astype(np.float32))
    np.testing.assert_array_equal(factors.left, X)
    with pytest.raises(ValueError, match="`activations` is a JAX array that was donated"):
        lrt.Observed(weights=W, activations=donated)


def one_buffer(parts, donate):
    """As iterators do that read files, or feed a training step."""
    buffer = np.empty_like(parts[0])
    for part in parts:
        if donate:
            batch = jnp.array(part)
            yield batch
            batch.delete()
        else:
            buffer[:] = part
            yield buffer
            buffer[:] = np.nan


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_may_share_one_buffer(kind, donate):
    rows = RANDOM.standard_normal((6 * 512, 32)).astype(np.float32)
    for height in (512, 128, 96, 7):  # whole blocks of a triangle, one, less, hardly anything
        parts = np.split(rows[: len(rows) // height * height], len(rows) // height)[:12]
        both = np.concatenate(parts).astype(float)
        exact = both.T @ both
        streams = [lrt.calibrate(one_buffer(parts, donate), kind.empty(32))]
        seen = kind.empty(32)
        for batch in one_buffer(parts, donate):
            seen = seen.update(batch)
        mesh = jax.make_mesh((1,), ("rows",))
        sharded = lrt.ShardedCalibration(kind.empty(32), mesh, "rows")
        for batch in one_buffer(parts[:3], donate):
            sharded = sharded.update(batch)
        few = np.concatenate(parts[:3]).astype(float)
        for found, wanted in (
            *((each, exact) for each in (*streams, seen)),
            (sharded.combined(), few.T @ few),
        ):
            error = np.linalg.norm(np.asarray(found.gram()) - wanted)
            assert error <= 1e-12 * np.linalg.norm(wanted)


def test_products_do_not_follow_the_buffer():
    rows = RANDOM.standard_normal((2048, 64)).astype(np.float32)
    left, right = (RANDOM.standard_normal(s).astype(np.float32) for s in ((64, 48), (48, 64)))
    factors = LowRank(jnp.asarray(left), jnp.asarray(right))
    buffer = rows.copy()
    outputs = buffer @ factors
    buffer[:] = np.nan
    np.testing.assert_allclose(outputs, (rows @ left) @ right, rtol=1e-3, atol=1e-3)


def test_arrays_of_explicit_meshes_lie_where_programs_read_them():
    mesh = jax.make_mesh((1,), ("rows",))
    rows = jax.device_put(X.astype(np.float32), NamedSharding(mesh, PartitionSpec("rows")))
    for found in (native(rows), ours(rows), together((rows, 1.0))[0]):
        assert not set(found.sharding.mesh.axis_types) & {jax.sharding.AxisType.Explicit}
        np.testing.assert_array_equal(found, rows)
    for call in ENTRIES.values():
        np.testing.assert_allclose(call(rows), call(np.asarray(rows)), rtol=1e-5, atol=1e-5)


# --- factors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("put", [np.asarray, jnp.asarray])
def test_multiples_and_sums_of_factors(put, dtype):
    with jax.enable_x64(True):
        one, two = (
            LowRank(put(np.asarray(a[:, :3], dtype)), put(np.asarray(b[:3], dtype)))
            for a, b in ((X, W), (RANDOM.standard_normal((14, 3)), RANDOM.standard_normal((3, 5))))
        )

    def dense(factors):
        assert isinstance(factors, LowRank) and factors.dtype == dtype
        return np.asarray(factors.left, float) @ np.asarray(factors.right, float)

    a, b = dense(one), dense(two)
    close = {"rtol": 1e-12 if dtype == "float64" else 2e-2, "atol": 1e-12 * (dtype != "bfloat16")}
    for number in (2, 0.5, np.float64(2), np.float32(0.5), jnp.asarray(0.5), np.asarray(2)):
        np.testing.assert_array_equal(dense(number * one), float(number) * a)
        np.testing.assert_array_equal(dense(one * number), float(number) * a)
        np.testing.assert_array_equal(dense(one / number), a / float(number))
    np.testing.assert_array_equal(dense(-one), -a)
    np.testing.assert_allclose(dense(one + two), a + b, **close)
    np.testing.assert_allclose(dense(one - two), a - b, **close)
    assert (one + two).rank == 6
    with jax.enable_x64(dtype == "float64"):
        np.testing.assert_allclose(dense(jax.jit(lambda f: 2 * f - f)(one)), a, **close)


def test_what_factors_are_not():
    factors: Any = LowRank(X, W[:, :5])
    for call in (
        lambda: np.asarray(factors),
        lambda: jnp.asarray(factors),
        lambda: factors + X @ W,
        lambda: X @ W - factors,
        lambda: factors * X,
        lambda: factors * 1j,
        lambda: factors * "2",
        lambda: 1 / factors,
        lambda: factors + 1,
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(TypeError, match="materialise"):
        np.asarray(factors)
    with pytest.raises(ValueError, match="one shape and dtype"):
        factors + factors.T
    for wrong in (np.ma.masked_array(X), X.astype(np.longdouble)):
        with pytest.raises(ValueError, match="`left` must be"):
            LowRank(wrong, W)


# --- numbers --------------------------------------------------------------------------------------

HALVES = (0.5, np.float32(0.5), np.float16(0.5), decimal.Decimal("0.5"), fractions.Fraction(1, 2))
HALVES = (*HALVES, np.asarray(0.5), jnp.asarray(0.5))
THREES = (3, np.int64(3), np.uint8(3), np.asarray(3), jnp.asarray(3))
NO_NUMBERS = ("0.5", b"3", True, np.True_, None, [0.5], np.asarray([0.5]), 0.5j, np.complex64(0.5))
NO_NUMBERS = (*NO_NUMBERS, math.nan, math.inf, 10**400, 10**5000, -(10**400), jax.random.key(0))


def test_checked_numbers_are_python_numbers():
    for half in HALVES:
        for found in (check_positive("x", half), check_fraction("x", half)):
            assert found == 0.5 and type(found) is float
    for three in THREES:
        found = check_count("x", three, 1)
        assert found == 3 and type(found) is int
    for wrong in NO_NUMBERS:
        for check in (
            check_positive,
            check_fraction,
            functools.partial(check_count, low=1),
        ):
            with pytest.raises(ValueError, match=r"`x` must .* got ") as error:
                check("x", wrong)
            assert len(str(error.value)) < 200
    with pytest.raises(ValueError, match="`x` must be a positive"):
        check_positive("x", decimal.Decimal("1e-400"))


FIELDS: dict[str, Any] = {
    "noise": lambda half, three: noise.Gaussian(half),
    "student": noise.StudentT,
    "correlated": lambda half, three: noise.Correlated(half, half),
    "outliers": lambda half, three: noise.SparseOutliers(half, half),
    "bits": lambda half, three: noise.QuantiserResidual(three),
    "spectrum": lambda half, three: spectra.Given((three, half)),
    "decay": lambda half, three: spectra.PowerLaw(half),
    "activations": lambda half, three: activations.LowRankPlusNoise(three, half),
    "target": lambda half, three: targets.SchattenBall(half, half),
    "ridge": lambda half, three: lrt.Ridge(half),
    "randomized": lambda half, three: lrt.Randomized(half, half, three, key=jax.random.key(0)),
    "setting": lambda half, three: lrt.Setting(three, three, three, three),
    "budget": lambda half, three: lrt.networks.Parameters(half),
}


def check_fields():
    for name, make in FIELDS.items():
        plain = make(0.5, 3)
        for half, three in zip(HALVES, (*THREES, 3, 3), strict=True):
            made = make(half, three)
            assert made == plain, name
            for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(plain), strict=True):
                assert type(one) is type(other), name
        for wrong in ("0.5", 10**400):
            with pytest.raises(ValueError, match="`"):
                make(wrong, wrong)


def test_a_key_is_a_key():
    key = jax.random.key(3)
    assert check_key("key", key) is key
    old = jax.random.key_data(key)
    for given in (old, np.asarray(old)):
        np.testing.assert_array_equal(jax.random.key_data(check_key("key", given)), old)
    wrong: Any
    for wrong in WRONG_KEYS:
        with pytest.raises(ValueError, match=r"`key` must be one key .*jax\.random\.key"):
            check_key("key", wrong)
