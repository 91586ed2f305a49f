"""Settings that several theorems share: the shapes and situations in which linear algebra likes to
go wrong.
"""

from typing import Any

from lowrank_theory.generators import activations, noise, spectra, targets
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
NOT_TRUNCATED = Setting(samples=64, inputs=64, outputs=64, rank=1, noise=noise.Gaussian(1.0))
