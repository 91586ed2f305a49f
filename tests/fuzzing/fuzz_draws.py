"""Kinds of hostile input, how a kind is judged, and the layers that they are drawn from.

- *Right*: the numbers agree with an oracle in extended precision, and every promise made of them
  (certificates, finiteness, errors, ranks, saved bits, shares) is true of what is returned.
- *Honest*: not accurate, and the result says so: not certified, not finite, an infinite bound, a
  vacuous certificate.
- *Refused*: one `ValueError` (or the documented `FileNotFoundError`) from the library's own code,
  whose message names the argument in backticks, or the file.
- *Defect*: all else. Foreign exceptions, a false promise, silent NaN, a wrong number, a refusal of
  what is documented as accepted, something accepted that must be refused, a crash, a hang.
"""

import contextlib
import dataclasses
import enum
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import lowrank_theory as lrt
from fuzz_oracle import Layer, Lie

Generator = np.random.Generator
PACKAGE = Path(lrt.__file__).parent


class Verdict(enum.StrEnum):
    RIGHT = "right"
    HONEST = "honest"
    REFUSED = "refused"
    DEFECT = "defect"


RIGHT, HONEST = Verdict.RIGHT, Verdict.HONEST

# --- kinds ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to make hostile inputs: `try_one` draws one, calls the library, and judges."""

    name: str
    share: float
    try_one: Callable[[Generator], Verdict]


KINDS: dict[str, Kind] = {}


def kind(name: str, share: float = 1.0) -> Callable[[Any], Any]:
    """Add a kind, drawn in proportion to its share."""

    def added(function: Callable[[Generator], Verdict]) -> Callable[[Generator], Verdict]:
        assert name not in KINDS
        KINDS[name] = Kind(name, share, function)
        return function

    return added


def kind_of(seed: int, index: int) -> tuple[Kind, Generator]:
    """The kind of an input, and the generator that draws the rest of it."""
    rng = np.random.default_rng([seed, index])
    kinds = list(KINDS.values())
    shares = np.cumsum([each.share for each in kinds])
    return kinds[int(np.searchsorted(shares, rng.random() * shares[-1]))], rng


def judged(kind: Kind, rng: Generator) -> tuple[Verdict, str]:
    """The verdict, and why if it is none of the good ones; for a refusal, the message."""
    try:
        return kind.try_one(rng), ""
    except Lie as lie:
        return Verdict.DEFECT, str(lie)
    except Exception as error:  # noqa: BLE001
        why = f"{type(error).__name__}: {error}"
        if refuses(error):
            return Verdict.REFUSED, why
        return Verdict.DEFECT, f"{why}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"


def refuses(error: Exception) -> bool:
    """Whether it is a refusal in the library's own words."""
    if type(error) not in (ValueError, FileNotFoundError):
        return False
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    names = "`" in str(error) or "file" in str(error)
    return raised_in.is_relative_to(PACKAGE) and names


@contextlib.contextmanager
def documented(accepted: bool = True) -> Iterator[None]:
    """What is done within is documented to work, and must not be refused."""
    try:
        yield
    except Exception as error:
        if accepted and refuses(error):
            raise Lie(f"refused, and is documented to work: {error}") from error
        raise


def must_refuse(what: str, call: Callable[[], Any]) -> Any:
    """Call, and lie if it goes through."""
    call()
    raise Lie(f"accepted: {what}")


def pick(rng: Generator, options: Any, weights: Any = None) -> Any:
    """One of the options, which may be anything."""
    options = list(options)
    shares = None if weights is None else np.array(list(weights)) / sum(weights)
    return options[int(rng.choice(len(options), p=shares))]


# --- matrices -------------------------------------------------------------------------------------

SHAPES = {(40, 12, 9): 3, (14, 6, 5): 6, (9, 12, 6): 3}  # (samples, inputs, outputs), and how often
SMALL = ((1, 6, 5), (14, 1, 5), (14, 6, 1))


def orthogonal(rng: Generator, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def with_values(rng: Generator, rows: int, columns: int, values: Any) -> np.ndarray:
    values = np.asarray(values, float)
    return (orthogonal(rng, rows, len(values)) * values) @ orthogonal(rng, columns, len(values)).T


def conditioned(rng: Generator, rows: int, columns: int) -> np.ndarray:
    count = min(rows, columns)
    return with_values(rng, rows, columns, np.logspace(0, -rng.uniform(0, 12), count))


def low_rank(rng: Generator, rows: int, columns: int) -> np.ndarray:
    rank = int(rng.integers(1, min(rows, columns) + 1))
    return rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))


def low_rank_of_integers(rng: Generator, rows: int, columns: int) -> np.ndarray:
    return np.outer(rng.integers(-3, 4, rows), rng.integers(-2, 3, columns)).astype(float)


def nearly_low_rank(rng: Generator, rows: int, columns: int) -> np.ndarray:
    matrix = low_rank(rng, rows, columns)
    return matrix + 10.0 ** rng.integers(-9, -1) * rng.standard_normal(matrix.shape)


def outlier_channels(rng: Generator, rows: int, columns: int) -> np.ndarray:
    matrix = rng.standard_normal((rows, columns))
    chosen = rng.choice(columns, min(2, columns), replace=False)
    matrix[:, chosen] *= 10.0 ** rng.uniform(1, 8)
    return matrix


def large_means(rng: Generator, rows: int, columns: int) -> np.ndarray:
    means = 10.0 ** rng.uniform(0, 7) * rng.standard_normal(columns)
    return rng.standard_normal((rows, columns)) + means


def constant_columns(rng: Generator, rows: int, columns: int) -> np.ndarray:
    matrix = rng.standard_normal((rows, columns))
    matrix[:, : max(1, columns // 3)] = rng.integers(-2, 3)
    return matrix


def duplicate_rows(rng: Generator, rows: int, columns: int) -> np.ndarray:
    return rng.standard_normal((rows, columns))[rng.integers(0, max(1, rows // 4), rows)]


def tied(rng: Generator, rows: int, columns: int) -> np.ndarray:
    return with_values(rng, rows, columns, np.ones(min(rows, columns)))


def dead_channels(rng: Generator, rows: int, columns: int) -> np.ndarray:
    return rng.standard_normal((rows, columns)) * (rng.random(columns) < 0.6)


MATRICES: dict[str, tuple[Callable[[Generator, int, int], np.ndarray], float]] = {
    "plain": (lambda rng, *shape: rng.standard_normal(shape), 4),
    "conditioned": (conditioned, 3),
    "low rank": (low_rank, 1.5),
    "low rank of integers": (low_rank_of_integers, 1),
    "nearly low rank": (nearly_low_rank, 1.5),
    "outlier channels": (outlier_channels, 2),
    "large means": (large_means, 2),
    "constant columns": (constant_columns, 1),
    "duplicate rows": (duplicate_rows, 1),
    "tied": (tied, 1),
    "dead channels": (dead_channels, 1),
    "zero": (lambda _, *shape: np.zeros(shape), 0.6),
}


def matrix(rng: Generator, rows: int, columns: int) -> tuple[np.ndarray, bool]:
    """A hostile matrix, and whether it is a plain one."""
    name = pick(rng, MATRICES, [weight for _, weight in MATRICES.values()])
    return MATRICES[name][0](rng, rows, columns), name == "plain"


# --- dtypes and scales ----------------------------------------------------------------------------

DTYPES: dict[Any, tuple[float, int]] = {  # how often, and the largest power of two to scale by
    np.float64: (8, 1000),
    np.float32: (6, 120),
    ml_dtypes.bfloat16: (2, 120),
    np.float16: (2, 12),
    ml_dtypes.float8_e4m3fn: (0.7, 4),
    ml_dtypes.float8_e5m2: (0.7, 8),
}


def dtype_of(rng: Generator) -> Any:
    return pick(rng, DTYPES, [weight for weight, _ in DTYPES.values()])


def scale_of(rng: Generator, dtype: Any) -> int:
    """A power of two: mostly one, sometimes as far as the dtype goes."""
    largest = DTYPES[dtype][1]
    where = rng.random()
    if where < 0.65:
        return 0
    reach = min(largest, 40) if where < 0.85 else largest
    return int(rng.integers(-reach, reach + 1))


def stored(rng: Generator, array: np.ndarray, dtype: Any, scale: int = 0) -> Any:
    """The array times 2^scale (less where that would overflow), in NumPy or JAX."""
    biggest = float(np.max(np.abs(array), initial=0))
    if biggest > 0:
        room = np.log2(float(jnp.finfo(dtype).max)) - 2 - np.log2(biggest)
        scale = min(scale, int(np.floor(room)))
    with np.errstate(under="ignore", over="ignore"):
        kept = np.ldexp(array, scale).astype(dtype)
    if rng.random() < 0.7:
        return kept
    with jax.enable_x64(True):
        return jnp.asarray(kept)


def rank_cutoff(side: int, *arrays: Any) -> float:
    """The documented cut-off, 8 eps sqrt(side), for what is stored like these arrays."""
    coarsest = max(float(jnp.finfo(array.dtype).eps) for array in arrays if array is not None)
    return 8 * min(coarsest, 2.0**-23) * side**0.5


# --- layers ---------------------------------------------------------------------------------------

ROUTES = {
    "rows": 5,
    "rows bias": 2,
    "outputs": 2,
    "outputs bias": 1,
    "compressed": 2,
    "compressed bias": 1,
    "compressed outputs": 1,
    "calibration": 3,
    "calibration bias": 2,
    "calibration compressed": 2,
    "triangular": 3,
    "triangular bias": 2,
    "triangular compressed": 2,
}


@dataclasses.dataclass
class Drawn:
    """A layer as the caller holds it, and how it is observed."""

    route: str
    weights: Any
    activations: Any
    compressed: Any
    outputs: Any
    bias: Any
    rank: int
    ordinary: bool

    @property
    def full(self) -> int:
        return min(self.weights.shape)

    @property
    def streamed(self) -> bool:
        return "calibration" in self.route or "triangular" in self.route

    @property
    def changed(self) -> bool:
        return not (self.compressed is None and self.outputs is None)

    def observed(self) -> lrt.Observed:
        """The layer, by its route. Refuses where the library does."""
        given: dict[str, Any] = {"weights": self.weights, "bias": self.bias}
        if self.streamed:
            start = lrt.Calibration if "calibration" in self.route else lrt.TriangularCalibration
            start = start.empty(self.weights.shape[0], compressed=self.compressed is not None)
            half = max(1, len(self.activations) // 2)
            for part in (slice(None, half), slice(half, None)):
                rows = (self.activations[part], self.compressed)
                if len(rows[0]):
                    other = None if self.compressed is None else self.compressed[part]
                    start = start.update(rows[0], other)
            return lrt.Observed(**given, calibration=start)
        return lrt.Observed(
            **given,
            activations=self.activations,
            compressed_activations=self.compressed,
            outputs=self.outputs,
        )

    def truth(self, *, penalty: float = 0.0, projected: bool = False, **options: Any) -> Layer:
        """The layer in extended precision; `projected` where the method needs an inverse."""
        seen = (self.activations, self.compressed)
        if self.streamed:
            seen = (np.zeros(1),)
        compressed = self.compressed
        if projected and not self.changed:
            compressed = self.activations
        side = min(len(self.activations) + (self.weights.shape[0] if penalty else 0),
                   self.weights.shape[0])  # fmt: skip
        return Layer.of(
            self.weights,
            self.activations,
            compressed,
            self.outputs,
            self.bias,
            penalty=penalty,
            cutoff=rank_cutoff(side, *seen),
            **options,
        )


def draw_layer(rng: Generator, routes: Any = ROUTES, *, small: float = 0.03) -> Drawn:
    """A layer of hostile numbers, by one of the routes."""
    route = pick(rng, routes, [ROUTES[name] for name in routes])
    shape = pick(rng, SHAPES, SHAPES.values())
    if rng.random() < small:
        shape = pick(rng, SMALL)
    samples, inputs, outputs = shape
    rows, plain_rows = matrix(rng, samples, inputs)
    weights, plain_weights = matrix(rng, inputs, outputs)
    if rng.random() < 0.15:  # as its transpose: outlier inputs, strong ones met by weak weights
        weights = matrix(rng, outputs, inputs)[0].T
        plain_weights = False
    dtype = dtype_of(rng)
    other = dtype_of(rng) if rng.random() < 0.15 else dtype
    scales = scale_of(rng, dtype), scale_of(rng, other)
    noise = 10.0 ** rng.uniform(-6, 0.5)

    def noisy(array: np.ndarray) -> np.ndarray:
        size = np.sqrt(np.mean(array**2))
        return array + noise * size * rng.standard_normal(array.shape)

    x = stored(rng, rows, dtype, scales[0])
    w = stored(rng, weights, other, scales[1])
    compressed = target = bias = None
    if "compressed" in route:
        compressed = stored(rng, noisy(rows), dtype, scales[0])
    product = np.asarray(rows) @ weights
    if "outputs" in route:
        with np.errstate(over="ignore"):
            target = stored(rng, noisy(product), dtype, min(sum(scales), DTYPES[dtype][1]))
    if "bias" in route:
        bias = stored(rng, rng.standard_normal(outputs), other, scales[1])
    full = min(inputs, outputs)
    rank = pick(rng, (max(1, full // 3), full), (4, 1))
    wide = dtype in (np.float64, np.float32) and other in (np.float64, np.float32)
    ordinary = plain_rows and plain_weights and wide and scales == (0, 0)
    return Drawn(route, w, x, compressed, target, bias, rank, ordinary)
