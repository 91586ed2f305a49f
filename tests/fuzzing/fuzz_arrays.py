"""Kinds of hostile arrays: at every entry, in calibrations, and in the files of these."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import scipy.sparse

import fuzz_oracle as oracle
import lowrank_theory as lrt
from fuzz_draws import (
    HONEST,
    RIGHT,
    Generator,
    Verdict,
    documented,
    dtype_of,
    kind,
    matrix,
    must_refuse,
    pick,
    scale_of,
    stored,
)
from fuzz_oracle import Lie, exact
from lowrank_theory import rank_choice, recovery
from lowrank_theory.certification import unit_losses

# --- arrays as callers hold them ------------------------------------------------------------------


def memory_mapped(array: np.ndarray) -> np.ndarray:
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file.name, array)
        return np.load(file.name, mmap_mode="r")


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def strided(array: np.ndarray) -> np.ndarray:
    wide = np.zeros((2 * array.shape[0], 3 * array.shape[1]), array.dtype)
    wide[::2, ::3] = array
    return wide[::2, ::3]


def unaligned(array: np.ndarray) -> np.ndarray:
    buffer = bytearray(array.nbytes + 1)
    view = np.frombuffer(buffer, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def deleted(array: np.ndarray) -> jax.Array:
    given = jnp.asarray(array)
    given.delete()
    return given


class ArrayLike:
    """Something with `__array__` alone."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array if dtype is None else self.array.astype(dtype)


class OnlyDtype:
    """Something that has a dtype, and is no array."""

    dtype = np.dtype("f4")


FAITHFUL: dict[str, Callable[[np.ndarray], Any]] = {  # must go through, and be read as they are
    "as it is": np.asarray,
    "Fortran order": np.asfortranarray,
    "strided": strided,
    "negative strides": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": read_only,
    "memory map": memory_mapped,
    "unaligned": unaligned,
    "transpose of a copy": lambda a: a.T.copy().T,
    "jax array": jnp.asarray,
    "float32 jax array": lambda a: jnp.asarray(a, jnp.float32),
    "bfloat16": lambda a: a.astype(ml_dtypes.bfloat16),
    "float16": lambda a: a.astype(np.float16),
    "lists": lambda a: a.tolist(),
    "tuple of rows": tuple,
}
DOUBTFUL: dict[str, Callable[[np.ndarray], Any]] = {  # as `np.asarray` reads them, or refused
    "big-endian": lambda a: a.astype(">f8"),
    "big-endian float32": lambda a: a.astype(">f4"),
    "longdouble": lambda a: a.astype(np.longdouble),
    "float8_e4m3fn": lambda a: a.astype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": lambda a: a.astype(ml_dtypes.float8_e5m2),
    "float4_e2m1fn": lambda a: a.astype(ml_dtypes.float4_e2m1fn),
    "array-like": ArrayLike,
    "np.matrix": np.asmatrix,
    "masked, nothing masked": np.ma.masked_array,
    "LowRank": lambda a: recovery.LowRank(a.copy(), np.eye(a.shape[1])),
    "objects": lambda a: a.astype(object),
    "ints": lambda a: np.round(4 * a).astype(int),
    "list of jax rows": lambda a: [jnp.asarray(row) for row in a],
}
FOREIGN: dict[str, Callable[[np.ndarray], Any]] = {  # must be refused
    "masked": lambda a: np.ma.masked_array(a, mask=np.abs(a) > np.median(np.abs(a))),
    "sparse": scipy.sparse.csr_matrix,
    "sparse array": scipy.sparse.coo_array,
    "ragged": lambda a: [list(row[: i % 3 + 1]) for i, row in enumerate(a)],
    "ShapeDtypeStruct": lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32),
    "only a dtype": lambda _: OnlyDtype(),
    "complex": lambda a: a + 1j,
    "bool": lambda a: a > 0,
    "strings": lambda a: a.astype(str),
    "a string": lambda _: "activations",
    "bytes": lambda a: a.tobytes(),
    "dict": lambda a: {"activations": a},
    "dates": lambda a: a.astype("datetime64[s]"),
    "structured": lambda a: np.zeros(a.shape, [("x", "f8")]),
    "NaN": lambda a: np.where(a == a.max(), np.nan, a),
    "infinity": lambda a: np.where(a == a.max(), np.inf, a),
    "jax NaN": lambda a: jnp.asarray(np.where(a == a.max(), np.nan, a)),
    "scalar": lambda a: a[0, 0],
    "vector": lambda a: a[0],
    "stack": lambda a: a[None, None],
    "no rows": lambda a: a[:0],
    "no columns": lambda a: a[:, :0],
    "set": lambda a: set(a[0]),
    "generator": lambda a: (row for row in a),
    "key": lambda _: jax.random.key(0),
    "deleted": deleted,
}
ARRAYS = {**FAITHFUL, **DOUBTFUL, **FOREIGN}


def as_numbers(value: Any) -> np.ndarray:
    """What the array says, in extended precision."""
    if isinstance(value, recovery.LowRank):
        return exact(value.left) @ exact(value.right)
    if isinstance(value, list):
        return exact(np.asarray([np.asarray(row) for row in value]))
    return exact(value)


def array_of(rng: Generator, rows: np.ndarray) -> tuple[str, Any]:
    table = pick(rng, (FAITHFUL, DOUBTFUL, FOREIGN), (2, 2, 2))
    name = pick(rng, table)
    return name, ARRAYS[name](rows)


ENTRIES: dict[str, Callable[[Any, np.ndarray], Any]] = {  # what takes (14, 6) rows; and weights
    "Observed.activations": lambda a, w: lrt.recover(
        lrt.Observed(weights=w, activations=a), 2, lrt.ActivationWeighted()
    ),
    "Observed.weights": lambda a, _: lrt.recover(lrt.Observed(weights=a), 2, lrt.TruncatedSVD()),
    "Observed.outputs": lambda a, _: lrt.Observed(activations=np.ones((14, 3)), outputs=a),
    "Observed.compressed": lambda a, w: lrt.Observed(
        weights=w, activations=np.ones((14, 6)), compressed_activations=a
    ),
    "Calibration.update": lambda a, _: lrt.Calibration.empty(6).update(a),
    "TriangularCalibration.update": lambda a, _: lrt.TriangularCalibration.empty(6).update(a),
    "update compressed": lambda a, _: lrt.Calibration.empty(6, compressed=True).update(
        np.ones((14, 6)), a
    ),
    "calibrate": lambda a, _: lrt.calibrate([a, a], lrt.Calibration.empty(6)),
    "energy": lambda a, w: rank_choice.energy(lrt.Observed(weights=w, activations=a), 0.9),
    "certify": lambda a, w: lrt.certify(
        lrt.Observed(weights=w),
        lrt.recover(lrt.Observed(weights=w), 2, lrt.TruncatedSVD()),
        held_out=a,
        failure_probability=0.05,
    ),
    "unit_losses": lambda a, _: unit_losses(a, np.ones((14, 6))),
    "unit_losses compressed": lambda a, _: unit_losses(np.ones((14, 6)), a),
    "LowRank": lambda a, _: recovery.LowRank(a, np.eye(6)),
    "Problem.stated": lambda a, w: lrt.Problem.stated(
        lrt.Observed(activations=np.ones((5, 14)), outputs=np.ones((5, 6))), a, 1
    ),
    "nuclear_norm_relu": lambda a, _: recovery.nuclear_norm_relu(a, np.ones((14, 5)), 1.0),
}
OTHER_DTYPES = ("lists", "tuple of rows", "jax array", "float32 jax array", "bfloat16", "float16")
MAY_BE_REFUSED = {  # factors are of one dtype; a tuple is a pair of activations
    *(("LowRank", name) for name in OTHER_DTYPES),
    ("calibrate", "tuple of rows"),
}
RANK_FREE = {"unit_losses", "unit_losses compressed"}  # take arrays of any number of axes
ROWS_OF_ROWS = {"certify"}  # and of three


@kind("foreign arrays", 12)
def foreign_arrays(rng: Generator) -> Verdict:
    """Every array at every entry: taken where documented, refused where it is none."""
    rows, weights = rng.standard_normal((14, 6)), rng.standard_normal((6, 5))
    name, array = array_of(rng, rows)
    entry = pick(rng, ENTRIES)
    with documented(name in FAITHFUL and (entry, name) not in MAY_BE_REFUSED):
        ENTRIES[entry](array, weights)
    shapely = name in ("scalar", "vector", "stack", "no columns")
    if name in FOREIGN and not (shapely and entry in RANK_FREE | ROWS_OF_ROWS):
        if entry == "LowRank" and name in ("NaN", "infinity", "jax NaN", "deleted", "no rows"):
            return RIGHT  # factors are what they are
        raise Lie(f"accepted {name} at {entry}")
    return RIGHT


# --- calibrations ---------------------------------------------------------------------------------


def moments(batches: list[np.ndarray]) -> tuple[Any, np.ndarray, np.ndarray]:
    """Count, mean and centred scatter of all rows, in extended precision."""
    rows = np.concatenate(batches)
    mean = rows.mean(axis=0)
    return np.longdouble(len(rows)), mean, (rows - mean).T @ (rows - mean)


def check_moments(seen: Any, batches: list[np.ndarray]) -> Verdict:
    count, mean, scatter = moments(batches)
    got = seen.moments()
    numbers = [got.count, got.mean, got.scatter]
    size = np.max(np.abs(np.concatenate(batches)), initial=0)
    if not oracle.representable(size**2 * count * 1e4):
        finite = all(np.isfinite(exact(each)).all() for each in numbers)
        if not finite:
            raise Lie("NaN or infinity is kept in the statistics")
        if size**2 * count * 1e4 < 1:
            return HONEST  # squares underflow, which a certificate has to notice
    oracle.check_close("count", float(got.count), count, 0)
    for name, array, true, scale in (
        ("mean", got.mean, mean, size),
        ("scatter", got.scatter, scatter, size**2 * count),
    ):
        off = np.max(np.abs(exact(array) - true))
        if not off <= 1e-12 * scale:
            raise Lie(f"`{name}` is off by {float(off):.3g} of {float(scale):.3g}")
    return RIGHT


def start_of(rng: Generator) -> Any:
    return pick(rng, (lrt.Calibration, lrt.TriangularCalibration)).empty(6)


def hostile_batches(rng: Generator, scale: bool = True) -> list[Any]:
    """Batches of one layer, of one dtype and scale."""
    dtype = dtype_of(rng)
    by = scale_of(rng, dtype) if scale else 0
    sizes = pick(rng, ((14,), (14, 9), (1, 14, 9), (9, 9, 9, 9, 9)))
    return [stored(rng, matrix(rng, size, 6)[0], dtype, by) for size in sizes]


@kind("calibration of arrays", 6)
def calibration_of_arrays(rng: Generator) -> Verdict:
    """Statistics of arrays as callers hold them are those of their numbers."""
    seen, batches = start_of(rng), []
    for size in (14, 9, 14):
        name, array = array_of(rng, rng.standard_normal((size, 6)))
        if name in FOREIGN:
            must_refuse(name, lambda seen=seen, array=array: seen.update(array))
        with documented(name in FAITHFUL):
            seen = seen.update(array)
        batches.append(as_numbers(array))
    return check_moments(seen, batches)


@kind("calibration of hostile rows", 8)
def calibration_of_rows(rng: Generator) -> Verdict:
    """Updates, merges and streams of the same batches agree with the truth."""
    batches, how = hostile_batches(rng), pick(rng, ("update", "merge", "calibrate", "sharded"))
    start = start_of(rng)
    if how == "update":
        seen = start
        for batch in batches:
            seen = seen.update(batch)
    elif how == "merge":
        seen = start
        for batch in batches:
            seen = pick(rng, (seen, seen.merge(start))).merge(start.update(batch))
    elif how == "calibrate":
        seen = lrt.calibrate(batches, start)
    else:
        sharded = lrt.ShardedCalibration(start, jax.make_mesh((1,), ("rows",)), "rows")
        for batch in batches:
            sharded = sharded.update(batch)
        seen = sharded.combined()
    return check_moments(seen, [exact(batch) for batch in batches])


@kind("refilled buffers", 5)
def refilled_buffers(rng: Generator) -> Verdict:
    """The caller's memory is the caller's: it is refilled, or donated, right after each call."""
    how, start = pick(rng, ("buffer", "donated")), start_of(rng)
    size = int(pick(rng, (14, 40, 4000)))
    batches = [rng.standard_normal((size, 6)).astype(np.float32) for _ in range(6)]
    buffer = np.empty((size, 6), np.float32)

    def lent() -> Iterator[Any]:
        for batch in batches:
            if how == "buffer":
                buffer[...] = batch
                yield buffer
            else:
                given = jnp.asarray(batch) + 0
                yield given
                given.delete()

    if rng.random() < 0.5:
        seen = lrt.calibrate(lent(), start)
    else:
        seen = start
        for batch in lent():
            seen = seen.update(batch)
    return check_moments(seen, [exact(batch) for batch in batches])


# --- files ----------------------------------------------------------------------------------------


def flipped(rng: Generator, content: bytes) -> bytes:
    array = bytearray(content)
    for _ in range(int(pick(rng, (1, 1, 1, 8)))):
        array[int(rng.integers(len(array)))] ^= 1 << int(rng.integers(8))
    return bytes(array)


def spliced(rng: Generator, content: bytes) -> bytes:
    middle, size = len(content) // 2, int(rng.integers(1, 64))
    return content[:middle] + content[middle + size :] + content[middle : middle + size]


DAMAGES: dict[str, Callable[[Generator, bytes], bytes]] = {
    "intact": lambda _, content: content,
    "flipped": flipped,
    "flipped in the numbers": lambda rng, c: c[: len(c) // 2] + flipped(rng, c[len(c) // 2 :]),
    "truncated": lambda rng, content: content[: int(rng.integers(len(content)))],
    "spliced": spliced,
    "longer": lambda rng, content: content + rng.bytes(9),
    "zeroed": lambda _, content: bytes(len(content)),
    "foreign": lambda rng, _: rng.bytes(300),
    "text": lambda *_: b'{"format": "lowrank_theory.calibration"}',
    "absurd header": lambda _, c: b"\xff" * 7 + b"\x7f" + c[8:],
    "deep json": lambda *_: (10**5).to_bytes(8, "little") + b"[" * 10**5,
}


def same_bits(one: Any, other: Any) -> bool:
    first, second = jax.tree.leaves(one), jax.tree.leaves(other)
    return type(one) is type(other) and all(
        np.asarray(a, float).tobytes() == np.asarray(b, float).tobytes()
        for a, b in zip(first, second, strict=True)
    )


@kind("files of calibrations", 8)
def files_of_calibrations(rng: Generator) -> Verdict:
    """What is loaded has the bits that were saved, or is refused."""
    seen = start_of(rng)
    for batch in hostile_batches(rng, scale=False):
        seen = seen.update(batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.safetensors"
        with documented():
            seen.save(path)
        damage = pick(rng, DAMAGES, [4] + [1] * (len(DAMAGES) - 1))
        path.write_bytes(DAMAGES[damage](rng, path.read_bytes()))
        if rng.random() < 0.05:
            path.unlink()
        with documented(damage == "intact" and path.exists()):
            loaded = lrt.load_calibration(path)
    if not same_bits(seen, loaded):
        raise Lie(f"{damage}: loaded other numbers than were saved")
    return RIGHT


@kind("resumed streams", 3)
def resumed_streams(rng: Generator) -> Verdict:
    """A run that goes on from its file ends as one that was not cut; a file of another stream or
    a damaged one is refused.
    """
    batches = [rng.standard_normal((9, 6)) for _ in range(4)]
    start, cut = start_of(rng), int(rng.integers(1, 4))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.safetensors"
        lrt.calibrate(batches[:cut], start, file=path, save_every=1)
        damage = pick(rng, ("intact", "flipped", "truncated"), (2, 1, 1))
        path.write_bytes(DAMAGES[damage](rng, path.read_bytes()))
        with documented(damage == "intact"):
            seen = lrt.calibrate(batches, start, file=path, save_every=1)
    return check_moments(seen, [exact(batch) for batch in batches])
