"""One tolerance: how far rounding may move what a test compares.

What is compared to fewer digits says so with `pytest.approx(..., rel=...)`: a limit, a sample, an
iteration that stops, a published figure.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_theory._numerics import rounding_allowance

SIDE = 64  # about the largest side of matrices in tests


def rounding(scale: float = 1.0, side: int = SIDE, dtype: Any = np.float64) -> float:
    """`rounding_allowance` for a quantity of this scale that is computed in this dtype."""
    return rounding_allowance(scale, side) * float(jnp.finfo(dtype).eps / np.finfo(float).eps)


def approx(wanted: Any, condition: float = 1.0, scale: float = 0.0, side: int = SIDE) -> Any:
    """Equal to float64 numbers up to their rounding, and to that of what has this `scale` and
    cancels; times `condition`, by how much the problem magnifies it.
    """
    allowed = rounding(condition, side)
    return pytest.approx(wanted, rel=allowed, abs=allowed * scale)


def assert_close(
    found: Any, wanted: Any, condition: float = 1.0, scale: float = 0.0, side: int = SIDE
) -> None:
    """The same of arrays, entry by entry, in the coarser of their dtypes."""
    dtypes = [array.dtype for array in (found, wanted) if hasattr(array, "dtype")]
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    coarsest = max(floats, key=lambda dtype: jnp.finfo(dtype).eps, default=np.dtype(float))
    allowed = rounding(condition, side, coarsest)
    np.testing.assert_allclose(found, wanted, rtol=allowed, atol=allowed * scale)
