"""The Monte-Carlo check that one would write without the library: NumPy, float64, a plain loop."""

import math

import numpy as np

FAILURE_PROBABILITY = 0.05


def trial(random: np.random.Generator, sizes: tuple[int, int, int, int], *, cut: bool) -> float:
    r"""Realised / bound of $\lVert X(\hat M - M)\rVert_F^2 \le 5r\sigma^2(\sqrt q + \sqrt K + t)^2$
    on one random layer; without `cut`, of least squares that forgets to truncate.
    """
    samples, inputs, outputs, rank = sizes
    noise_scale = 0.1 if cut else 1.0
    activations = random.standard_normal((samples, inputs))
    left, _ = np.linalg.qr(random.standard_normal((inputs, rank)))
    right, _ = np.linalg.qr(random.standard_normal((outputs, rank)))
    target = math.sqrt(outputs / rank) * left @ right.T
    observed = activations @ target + noise_scale * random.standard_normal((samples, outputs))

    weights = np.linalg.pinv(activations) @ observed
    recovered = weights
    if cut:
        _, _, vectors = np.linalg.svd(activations @ weights, full_matrices=False)
        recovered = weights @ vectors[:rank].T @ vectors[:rank]

    q = np.linalg.matrix_rank(activations)
    t = math.sqrt(2 * math.log(1 / FAILURE_PROBABILITY))
    bound = 5 * rank * noise_scale**2 * (math.sqrt(q) + math.sqrt(outputs) + t) ** 2
    return float(np.sum((activations @ (recovered - target)) ** 2)) / bound


def trials(count: int, controls: int, seed: int) -> list[int]:
    """Violations among `count` trials, among `controls` fresh ones of a bound that is too small,
    and among as many of a broken estimator: the three samples that `verify` draws.
    """
    random = np.random.default_rng(seed)
    layer, square = (128, 64, 48, 4), (64, 64, 64, 1)
    ratios = np.array([trial(random, layer, cut=True) for _ in range(count)])
    fresh = np.array([trial(random, layer, cut=True) for _ in range(controls)])
    broken = np.array([trial(random, square, cut=False) for _ in range(controls)])
    shrunk = np.median(ratios)
    return [int(np.sum(ratios > 1)), int(np.sum(fresh > shrunk)), int(np.sum(broken > 1))]
