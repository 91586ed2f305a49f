"""One layer, seen in every way that a ladder may meet."""

from typing import Any

import numpy as np

from lowrank_theory.calibration import Calibration, TriangularCalibration
from lowrank_theory.problems import Observed
from routes import normal

INPUTS, OUTPUTS, SAMPLES = 12, 8, 40
X = 0.5 + normal(1, SAMPLES, INPUTS) / 1.5 ** np.arange(INPUTS, dtype=np.float32)
T = X + normal(2, SAMPLES, INPUTS) / 8
W = normal(3, INPUTS, OUTPUTS)
B = normal(4, OUTPUTS)


def calibrated(kind: Any, **options: Any) -> Observed:
    return Observed(weights=W, calibration=kind.empty(INPUTS).update(X), **options)


LAYERS = {
    "weights": lambda: Observed(weights=W),
    "rows": lambda: Observed(weights=W, activations=X),
    "rows, affine": lambda: Observed(weights=W, activations=X, bias=B),
    "compressed rows": lambda: Observed(weights=W, activations=X, compressed_activations=T),
    "compressed rows, affine": lambda: Observed(
        weights=W, activations=X, compressed_activations=T, bias=B
    ),
    "moments": lambda: calibrated(Calibration),
    "triangle, affine": lambda: calibrated(TriangularCalibration, bias=B),
}
