"""What a compressed network says of itself is true of the numbers that it returns."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory._engine.fits import balanced
from lowrank_theory._engine.weights import stored_dtype
from lowrank_theory.calibration import Calibration
from lowrank_theory.calibration.measured import measured_errors
from lowrank_theory.networks import LayerError, Parameters, RankRule, compress
from routes import normal
from tolerance import approx

pytestmark = pytest.mark.thinned(4)

TOPS = {
    "float32": 1e30,
    "bfloat16": 1e30,
    "float16": 6e4,
    "float8_e4m3fn": 440.0,
    "float8_e5m2": 5e4,
}


def exactly(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)


def norm(array: np.ndarray) -> float:
    """Without a square that overflows."""
    largest = np.abs(array).max()
    return float(largest * np.linalg.norm(array / largest)) if largest else 0.0


# --- one layer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "power"), [*((dtype, 0) for dtype in TOPS), ("float64", -600), ("float64", 600)]
)
def test_errors_at_all_ranks_are_those_of_the_rows(dtype, power):
    """Two slices, with and without other inputs in the compressed network, and shifts that are
    none too good; W is so large, or small, that its square is none, and the rows are the opposite.
    """
    kind = np.dtype(jnp.dtype(dtype))
    inverse = -4 * power // 5
    weights = np.ldexp(exactly(normal(0, 2, 9, 7).astype(kind)), power)
    halves = [np.linalg.svd(w, full_matrices=False) for w in np.ldexp(weights, -power)]
    left = np.stack([u * s for u, s, _ in halves])[..., :5]
    right = np.stack([v for *_, v in halves])[:, :5]
    left, right = balanced(np.ldexp(left, power), right, kind)
    shifts = np.ldexp(exactly(normal(1, 2, 6, 7).astype(kind)) / 4, power + inverse)
    rows = np.ldexp(3 + exactly(normal(2, 2, 40, 9)), inverse)
    others = rows + np.ldexp(exactly(normal(3, 2, 40, 9)) / 8, inverse)
    for seen, shift in [*itertools.product((rows, others), (shifts, None)), (None, None)]:
        calibrations = [None, None]
        if seen is not None:
            changed = (None, None) if seen is rows else others
            calibrations = [
                Calibration.empty(9, compressed=seen is others).update(x, other)
                for x, other in zip(rows, changed, strict=True)
            ]
        inputs, outputs = seen, rows @ weights
        if inputs is None:
            inputs, outputs = np.stack([np.eye(9)] * 2), weights
        measured = measured_errors(weights, left, right, shift, calibrations)
        for rank in range(6):
            made = inputs @ exactly(left[..., :rank]) @ exactly(right[:, :rank])
            made = made if shift is None else made + exactly(shift)[:, None, rank]
            true = norm(outputs - made) / norm(outputs)
            assert np.sqrt(measured.squares[rank]) == approx(true)
            assert true <= measured.upper[rank] <= true * (1 + 1e-6) + 1e-6
        assert measured.norm == approx(norm(outputs))


@pytest.mark.parametrize("dtype", TOPS)
def test_balanced_factors_do_not_leave_the_range(dtype):
    """Matrices as large, and as small, as the dtype holds: the same products, to its precision."""
    kind = jnp.finfo(jnp.dtype(dtype))
    weights = normal(0, 12, 10)
    u, s, v = np.linalg.svd(exactly(weights), full_matrices=False)
    for size in (TOPS[dtype] / np.abs(weights).max(), 32 * float(kind.smallest_normal)):
        left, right = balanced(u * s * size, v, jnp.dtype(dtype))
        product = exactly(left) @ exactly(right)
        assert norm(product / size - weights) <= 8 * float(kind.eps) * norm(weights)


# --- networks: one chain of two layers for each dtype --------------------------------------------


def chains(p, x):
    def product(x, layer):
        return x @ layer["w"].astype(jnp.float32) + layer["b"].astype(jnp.float32)

    found = {}
    for name, (one, other) in p.items():
        first = product(x, one)
        found[name] = first, product(jnp.tanh(first / 2), other)
    return found


def matrix(seed, dtype, size, *shape):
    """Singular values that fall by halves, and as exact a low rank as the dtype allows."""
    inputs, outputs = shape
    halves = 0.5 ** np.arange(5)
    low = normal(seed, inputs, 5) * halves @ normal(seed + 1, 5, outputs) / 3
    top = TOPS[dtype]
    return jnp.asarray((low * size).clip(-top, top), dtype)


FEW = ("float32", "bfloat16", "float8_e5m2")


@functools.cache
def network(dtypes) -> tuple[Any, Any]:
    parameters = {}
    for k, dtype in enumerate(dtypes):
        pair = [matrix(10 * k, dtype, 1, 16, 16), matrix(10 * k + 5, dtype, 8, 16, 16)]
        b = jnp.asarray(normal(k, 16), dtype)
        parameters[dtype] = [{"w": w, "b": b} for w in pair]
    return parameters, (0.3 + normal(99, 120, 16)).astype(np.float32)


TARGETS = {
    "a share": Parameters(0.6),
    "an error": LayerError(0.04),
    "ranks": RankRule(lambda _: 3),
}


@functools.cache
def made(target, sequential=False, dtypes=tuple(TOPS)):
    parameters, x = network(dtypes)
    return compress(chains, parameters, [x[:60], x[60:]], TARGETS[target], sequential=sequential)


def layers_of(compressed, parameters, x):
    """The name, what is said of it, and the true relative error of each layer, by the rows that it
    sees in float64.
    """
    for dtype, pair in parameters.items():
        original = replaced = exactly(x)
        for k, layer in enumerate(pair):
            name = f"['{dtype}'][{k}]['w']"
            said, stored = compressed.layers[name], compressed.parameters[dtype][k]["w"]
            outputs = original @ exactly(layer["w"])
            given = replaced if compressed.provenance["sequential"] else original
            results = given @ exactly(layer["w"])
            if said.rank is not None:
                factors = stored.approximation
                assert factors.dtype == stored.dtype == layer["w"].dtype
                results = given @ exactly(factors.left) @ exactly(factors.right)
                results = results + exactly(stored.shift)
            yield name, said, norm(outputs - results) / norm(outputs)
            bias = exactly(layer["b"])
            original, replaced = np.tanh((outputs + bias) / 2), np.tanh((results + bias) / 2)


@pytest.mark.parametrize(
    ("target", "sequential", "dtypes"),
    [
        *((target, False, tuple(TOPS)) for target in TARGETS),
        ("an error", True, FEW),
        *(pytest.param(target, True, tuple(TOPS), marks=pytest.mark.slow) for target in TARGETS),
    ],
)
def test_the_stated_error_is_that_of_the_returned_numbers(target, sequential, dtypes):
    parameters, x = network(dtypes)
    compressed = made(target, sequential, dtypes)
    replaced = [layer for layer in compressed.layers.values() if layer.rank is not None]
    assert len(replaced) >= 2
    for name, layer, true in layers_of(compressed, parameters, x):
        if layer.rank is None:
            assert layer.remark, name
            continue
        assert layer.relative_error == pytest.approx(true, rel=1e-5, abs=1e-6), name
        if target == "an error":
            assert true <= 0.04, name
    if not sequential and target == "a share":
        planned = sum(layer.relative_error**2 for layer in replaced)
        assert compressed.provenance["planned"] == approx(planned)


def test_a_certificate_is_about_the_returned_numbers():
    """In units of the best error: no layer that is certified is more than 0.1 % above it."""
    parameters, x = network(tuple(TOPS))
    compressed, certified = made("ranks"), {}
    for name, layer, true in layers_of(compressed, parameters, x):
        dtype, k = name.split("'")[1], int(name[name.index("[", 2) + 1])
        first = exactly(x) @ exactly(parameters[dtype][0]["w"])
        inputs = exactly(x)
        if k:
            inputs = np.tanh((first + exactly(parameters[dtype][0]["b"])) / 2)
        outputs = inputs @ exactly(parameters[dtype][k]["w"])
        values = np.linalg.svd(outputs - outputs.mean(0), compute_uv=False)
        best = norm(values[3:]) / norm(outputs)
        assert true >= best * (1 - 1e-6)
        if layer.certified:
            assert true <= 1.001 * best
        certified.setdefault(dtype, []).append(layer.certified)
    assert all(certified["float32"]) and not any(certified["float8_e5m2"])


def test_rounding_raises_the_rank_or_leaves_dense_and_says_so():
    compressed = made("an error")
    layers = {name: layer for name, layer in compressed.layers.items() if name.endswith("[0]['w']")}
    (fine, coarse) = (layers[f"['{kind}'][0]['w']"] for kind in ("float32", "float8_e5m2"))
    assert fine.rank is not None
    assert coarse.rank is None and "rounded to float8_e5m2, rank" in coarse.remark
    assert coarse.remark in repr(compressed)


@pytest.mark.parametrize("sequential", [False, True])
def test_what_is_not_finite_stays_dense_and_says_so(sequential):
    """The mean output is beyond the largest number of the dtype, and so would the shift be."""

    def function(p, x):
        return jnp.tanh(x @ p["e4m3"].astype(jnp.float32) / 1e5) @ p["plain"]

    parameters = {
        "e4m3": jnp.asarray(normal(0, 12, 10), jnp.float8_e4m3fn), "plain": normal(1, 10, 10)
    }  # fmt: skip
    x = (1e4 + normal(2, 60, 12)).astype(np.float32)
    compressed = compress(function, parameters, [x], RankRule(lambda _: 3), sequential=sequential)
    layer = compressed.layers["['e4m3']"]
    assert layer.rank is None and "not finite in float8_e4m3fn" in layer.remark
    assert compressed.layers["['plain']"].rank == 3
    assert np.all(np.isfinite(compressed.function(compressed.parameters, x)))
    with pytest.raises(ValueError, match=r"cannot be met.*\['e4m3'\] stays as it is: its factors"):
        compress(function, parameters, [x], Parameters(0.55))


def test_nothing_is_certified_of_outputs_that_are_nothing():
    x = np.zeros((30, 12), np.float32)
    compressed = compress(lambda w, x: x @ w, normal(0, 12, 10), [x], RankRule(lambda _: 2))
    assert (compressed.layers[""].relative_error, compressed.layers[""].certified) == (0.0, False)


def test_factors_take_the_dtype_that_jax_has():
    assert stored_dtype(np.zeros(1)) == jax.dtypes.canonicalize_dtype(np.float64)
    assert stored_dtype(jnp.zeros(1, jnp.float8_e5m2)) == jnp.float8_e5m2
