"""Settings that several theorems share: the shapes and situations in which linear algebra likes to
go wrong.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowrank_theory.generators import activations, noise, spectra, targets
from lowrank_theory.perturbations import PerturbationSetting
from lowrank_theory.problems import Setting

BASE: dict[str, Any] = {"samples": 60, "inputs": 24, "outputs": 20, "rank": 3}

WELL_POSED = {
    "square": Setting(samples=40, inputs=20, outputs=20, rank=3),
    "tall": Setting(samples=120, inputs=10, outputs=40, rank=3),
    "wide": Setting(samples=60, inputs=40, outputs=10, rank=3),
    "rank one": Setting(**{**BASE, "rank": 1}),
    "ill-conditioned activations": Setting(
        **BASE, activations=activations.FixedSpectrum(spectra.PowerLaw(3.0))
    ),
    "low-rank activations plus noise": Setting(**BASE, activations=activations.LowRankPlusNoise(5)),
}
SINGULAR = {
    "fewer samples than inputs": Setting(samples=15, inputs=30, outputs=20, rank=3),
    "rank-deficient activations": Setting(**BASE, activations=activations.RankDeficient(8)),
}
MISMATCHED = {"compressed activations": Setting(**BASE, mismatch=activations.Perturbed(0.3))}
FULL_RANK = {"full rank": Setting(samples=40, inputs=12, outputs=16, rank=12)}
UNUSUAL_ACTIVATIONS = {
    "outputs of a ReLU layer": Setting(**BASE, activations=activations.ReluOutputs()),
    "massive directions": Setting(**BASE, activations=activations.MassiveDirections(2, 100.0)),
}
POWER_LAW = {"power law": Setting(**BASE, target=targets.ApproximateRank(spectra.PowerLaw(1.0)))}
SUB_GAUSSIAN = {
    "Rademacher noise": Setting(**BASE, noise=noise.Rademacher(0.5)),
    "uniform noise": Setting(**BASE, noise=noise.Uniform(0.5)),
    "noise unequal by row": Setting(**BASE, noise=noise.Heteroskedastic(0.5)),
    "noise unequal by column": Setting(**BASE, noise=noise.Heteroskedastic(0.5, by_column=True)),
    "sparse outliers": Setting(**BASE, noise=noise.SparseOutliers(0.1)),
}
HEAVY_TAILS = {
    "Student t noise": Setting(**BASE, target=targets.ApproximateRank(), noise=noise.StudentT(0.5))
}
QUANTISED = {
    "quantised weights": Setting(
        **BASE, target=targets.ExactOutputRank(scale=10.0), noise=noise.QuantiserResidual(3)
    )
}
WORST_NOISE = {
    "worst case": Setting(
        **BASE, target=targets.ExactOutputRank(scale=2.0), noise=noise.Opposing(1.0, rank=3)
    )
}
ISOTROPIC = Setting(
    samples=200,
    inputs=16,
    outputs=16,
    rank=4,
    target=targets.ApproximateRank(spectra.PowerLaw(2.0)),
    noise=noise.Gaussian(0.0),
)
NOT_TRUNCATED = Setting(samples=64, inputs=64, outputs=64, rank=1, noise=noise.Gaussian(1.0))


def perturbed(
    signal: ArrayLike,
    noise: ArrayLike,
    alignment: float = 0.0,
    *,
    rows: int = 12,
    rank: int = 3,
    symmetric: bool = False,
) -> PerturbationSetting:
    """A perturbed matrix with 9 columns; values not given are zero."""
    values = [np.asarray(given, float) for given in (signal, noise)]
    padded = [np.pad(given, (0, 9 - given.size)) for given in values]
    return PerturbationSetting(
        rows, 9, rank, signal=padded[0], noise=padded[1], alignment=alignment, symmetric=symmetric
    )


_FLAT, _DECAYING = np.ones(9), 0.6 ** np.arange(9)
_OPPOSING = np.r_[[-1.001] * 3, [1.0] * 6]  # of both signs about the rank
LOW_RANK_PERTURBED = {
    "independent noise": perturbed([3, 2, 1], np.linspace(0.5, 0.1, 9)),
    "strong noise": perturbed([3, 2, 1], 30 * _FLAT),
    "weak noise": perturbed([3, 2, 1], 1e-3 * _DECAYING),
    "no noise": perturbed([3, 2, 1], 0 * _FLAT),
    "ties": perturbed([1, 1, 1], 0.3 * _FLAT),
    "opposing noise": perturbed([2, 2, 2], _OPPOSING, 1.0),
    "nearly opposing noise": perturbed([2, 2, 2], _OPPOSING, 0.95),
    "rank one": perturbed([2], _OPPOSING[2:], 0.95, rank=1),
    "more than half the full rank": perturbed([5, 5, 5, 2, 2, 2], -_OPPOSING[::-1], 1.0, rank=6),
    "full rank": perturbed(_DECAYING, 0.3 * _FLAT, rank=9),
}
PERTURBED = {
    "power law": perturbed(1 / np.arange(1, 10), 0.1 * _FLAT),
    "power law, strong noise": perturbed(1 / np.arange(1, 10), 10 * _DECAYING),
    "flat with flat noise": perturbed(_FLAT, 0.5 * _FLAT, 1.0),
    "small gap": perturbed([1, 1, 1, 0.99, 0.99, 0.99], 0.1 * _DECAYING),
    "opposing noise within the gap": perturbed([2, 2, 2, 1, 1, 1], 0.5 * _OPPOSING, 1.0),
    "decaying, nearly aligned noise": perturbed(_DECAYING, 0.5 * _DECAYING, 0.9),
}
