"""What two networks do on the same items, item by item."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def paired(
    differences: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Student's interval for the mean."""
    values = np.asarray(differences, float)
    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = spread * float(stats.t.ppf((1 + confidence) / 2, len(values) - 1))
    return float(np.mean(values)) - half, float(np.mean(values)) + half
