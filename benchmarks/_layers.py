"""The layers that are compressed: weights and activations, as stored in float32."""

import functools

import numpy as np
import scipy.fft

SAMPLES = 4  # rows for each input


@functools.lru_cache(maxsize=1)
def power_law(inputs: int, decay: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian square weights, and activations whose scales decay as `i ** -decay` along directions
    spread over all inputs: cosines of random signs.
    """
    random = np.random.default_rng(seed)
    scales = np.arange(1, inputs + 1, dtype=np.float32) ** -decay
    activations = random.standard_normal((SAMPLES * inputs, inputs), np.float32)
    activations = np.asarray(scipy.fft.dct(activations * scales, axis=1, norm="ortho"))
    activations *= random.choice(np.array([-1, 1], np.float32), inputs)
    return random.standard_normal((inputs, inputs), np.float32), activations


def outliers(ratio: float, seed: int, *, blind: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Weights 256 x 192 and 1,024 activations with four massive directions, `ratio` times the bulk,
    spread over all inputs; the bulk decays from one to 0.1. A `blind` layer hardly answers to the
    massive directions.
    """
    random = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(random.standard_normal((256, 256)))
    scales = np.concatenate([np.full(4, ratio), np.linspace(1, 0.1, 252)])
    activations = (random.standard_normal((1024, 256)) * scales) @ basis.T
    weights = random.standard_normal((256, 192)) / 16
    if blind:
        weights -= basis[:, :4] @ (basis[:, :4].T @ weights)
    return weights.astype(np.float32), activations.astype(np.float32)
