"""Small layers that are hard on rounding: prescribed spectra, outlier channels, large means.

`draw` makes them in float64, `stored` rounds them to a dtype: that is the layer then.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

SEED = 20
DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "bfloat16": jnp.bfloat16,
    "float16": np.float16,
    "float8_e4m3fn": jnp.float8_e4m3fn,
    "float8_e5m2": jnp.float8_e5m2,
}
# (samples, inputs, outputs, rank, affine): a third is affine, one has full rank.
GROUPS = (
    (40, 12, 9, 3, False),
    (9, 12, 6, 2, False),
    (30, 8, 14, 4, True),
    (40, 12, 9, 9, False),
    (30, 8, 14, 3, False),
    (9, 12, 6, 4, True),
)


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def _spectrum(rng: np.random.Generator, size: int) -> np.ndarray:
    """From 1 to 1/condition, 1 to 1e12: geometric, a cliff, a few strong ones, or exact rank."""
    smallest = 10.0 ** -rng.uniform(0, 12)
    kind = rng.integers(5)
    if kind <= 1:
        return np.geomspace(1, smallest, size)
    if kind == 2:
        values = np.geomspace(1, 10.0 ** -rng.uniform(0, 1), size)
        values[rng.integers(1, size) :] *= smallest
        return values
    if kind == 3:
        return np.maximum(smallest, rng.permutation(10.0 ** -rng.uniform(0, 12, size)))
    values = np.geomspace(1, 10.0 ** -rng.uniform(0, 2), size)
    values[rng.integers(1, size) :] = 0
    return values


def _prescribed(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    size = min(rows, columns)
    left, right = _orthonormal(rng, rows, size), _orthonormal(rng, columns, size)
    return (left * _spectrum(rng, size)) @ right.T * np.sqrt(rows)


def draw(case: int) -> dict[str, np.ndarray]:
    """One hostile layer in float64, a function of the number of the case alone."""
    samples, inputs, outputs, rank, affine = GROUPS[case % len(GROUPS)]
    rng = np.random.default_rng([SEED, case])
    activations = _prescribed(rng, samples, inputs)
    channels = np.ones(inputs)
    if rng.random() < 0.4:
        outliers = rng.choice(inputs, rng.integers(1, 4), replace=False)
        channels[outliers] = 10.0 ** rng.uniform(0, 8, len(outliers))
        activations = activations * channels
    if rng.random() < 0.4:
        activations = activations + rng.standard_normal(inputs) * 10.0 ** rng.uniform(-1, 7)
    kind = rng.integers(4)
    if kind == 0:
        weights = _prescribed(rng, inputs, outputs)
    elif kind == 1:
        core = rng.standard_normal((inputs, rank)) @ rng.standard_normal((rank, outputs))
        noise = 10.0 ** -rng.uniform(0, 12) * (rng.random() < 0.7)
        weights = core + noise * rng.standard_normal((inputs, outputs))
    else:
        weights = rng.standard_normal((inputs, outputs))
    if rng.random() < 0.3:  # trained beside its outliers
        weights = weights / channels[:, None]
    weights = weights * 10.0 ** rng.uniform(-3, 3)
    bias = rng.standard_normal(outputs) * 10.0 ** rng.uniform(-3, 3)
    spread = 10.0 ** -rng.uniform(0, 8)
    compressed = activations * (1 + spread * rng.standard_normal((samples, inputs)))
    given = activations @ weights + (bias if affine else 0)
    given = given + 10.0 ** -rng.uniform(0, 10) * np.std(given) * rng.standard_normal(given.shape)
    penalty = 10.0 ** -rng.uniform(0, 8) * np.sum(activations**2) / inputs
    return {
        "weights": weights,
        "activations": activations,
        "compressed": compressed,
        "outputs": given,
        "bias": bias,
        "penalty": np.asarray(penalty),
    }


def stored(layer: dict[str, np.ndarray], dtype: Any) -> dict[str, np.ndarray]:
    """Rounded to the dtype. What is too large for it is made small enough by a power of two, each
    kind of numbers by its own; outputs follow the rest.
    """
    limit = float(jnp.finfo(dtype).max) / 4

    def fitting(*names: str) -> float:
        largest = max(float(np.max(np.abs(layer[name]))) for name in names)
        return 1.0 if largest <= limit else 2.0 ** np.floor(np.log2(limit / largest))

    seen = fitting("activations", "compressed")
    scales = {"activations": seen, "compressed": seen}
    for name in ("weights", "outputs", "bias"):
        scales[name] = fitting(name)
    rounded = {
        name: np.asarray(value * scales.get(name, 1.0)).astype(dtype)
        for name, value in layer.items()
        if name != "penalty"
    }
    return {**rounded, "penalty": layer["penalty"] * seen**2}


def stack(cases: list[int], dtype: Any) -> dict[str, np.ndarray]:
    layers = [stored(draw(case), dtype) for case in cases]
    return {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}
