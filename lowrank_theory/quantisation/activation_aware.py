r"""Inputs scaled before they are rounded, so that those with large activations lose less.

$$\hat W = \operatorname{diag}(s)^{-1}Q(\operatorname{diag}(s)W),\qquad
  s_i = \bigl(\operatorname{mean}_t\lvert\tilde x_{ti}\rvert\bigr)^a,$$

divided by the root of the largest times the least; a dead input is not scaled. Of several
exponents $a$, zero among them, the one of least output error on the second moments is taken (Lin,
Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan and Han 2024, AWQ, arXiv 2306.00978). So the error on
the calibration is never above that of Q alone.

The paper folds $s^{-1}$ into the layer before. Here it is kept, one number for each input, and is
charged.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lowrank_theory._numerics import (
    check_array,
    check_positive,
    check_same,
    keep,
    settle_each,
)
from lowrank_theory.approximations import Quantised
from lowrank_theory.quantisation._quantiser import AbstractQuantiser, check_quantiser
from lowrank_theory.quantisation.round_to_nearest import RoundToNearest
from lowrank_theory.recovery import Need, WeightedTarget, dense_float64

EXPONENTS = tuple(k / 20 for k in range(1, 20))


class ActivationAware(AbstractQuantiser):
    """Another `quantiser`, of inputs scaled by powers of their mean sizes: of these `exponents`,
    and of zero, the best for the outputs. Grids that are not weighted would be clipped where the
    inputs matter most.
    """

    quantiser: AbstractQuantiser = RoundToNearest(weighted=True)
    exponents: tuple[float, ...] = EXPONENTS

    def __check_init__(self) -> None:
        keep(self, "quantiser", check_quantiser("quantiser", self.quantiser))
        settle_each(self, "exponents", check_positive)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of bits."""
        return self.quantiser.sizes

    @property
    def needs(self) -> frozenset[Need]:
        """Second moments and absolute means."""
        return self.quantiser.needs | {Need.MOMENTS, Need.ABSOLUTE_MEANS}

    def quantise(self, weights: Any, problem: WeightedTarget | None, bits: int) -> Quantised:
        """The best of all exponents. Raises `ValueError` where mean sizes are not known."""
        assert problem is not None
        means = problem.seen.absolute_mean
        if means is None:
            raise ValueError(
                "`ActivationAware` needs the mean sizes of inputs, which this calibration does not "
                "know: make one by `Calibration.empty(inputs)` and its `update`."
            )
        return activation_aware(
            weights,
            problem.gram,
            means,
            lambda scaled, gram: self.quantiser.quantise(scaled, problem._replace(gram=gram), bits),
            exponents=self.exponents,
        )


def activation_aware(
    weights: ArrayLike,
    gram: ArrayLike,
    means: ArrayLike,
    quantise: Callable[[Any, Any], Quantised],
    *,
    exponents: Sequence[float] = EXPONENTS,
) -> Quantised:
    r"""The function beneath `ActivationAware`, from $H$ = `gram` and the mean sizes of inputs;
    `quantise` gets scaled weights and $\operatorname{diag}(s)^{-1}H\operatorname{diag}(s)^{-1}$,
    and scales no inputs by itself.

    On the host, and so not under `jit`. Raises `ValueError` for what are no finite arrays of floats
    that fit.
    """
    weights = np.asarray(check_array("weights", weights, "inputs", "outputs"))
    gram = np.asarray(check_array("gram", gram, "inputs", "inputs"), np.float64)
    means = np.asarray(check_array("means", means, "inputs"), np.float64)
    if gram.shape != (len(weights),) * 2:
        raise ValueError(f"`gram` must be {(len(weights),) * 2}; got {gram.shape}.")
    check_same("means", len(means), "weights", len(weights), "inputs")
    exact, gram = weights.astype(np.float64), np.ldexp(gram, -_power(gram))

    def error(found: Quantised) -> float:
        missed = np.ldexp(exact - dense_float64(found), -_power(exact))
        return float(np.vdot(missed, gram @ missed))

    best, least = None, np.inf
    for exponent in (0.0, *exponents):
        inverse = (1 / input_scales(means, exponent)).astype(weights.dtype)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            scales = 1 / inverse.astype(np.float64)
            scaled = (scales[:, None] * exact).astype(weights.dtype)
        if not (np.isfinite(scales) & np.isfinite(scaled).all(axis=1)).all():
            continue  # beyond the dtype
        found = quantise(scaled, gram * np.outer(1 / scales, 1 / scales))
        found = Quantised(
            found.codes,
            found.scales,
            found.zeros,
            inverse,
            bits=found.bits,
            inputs=found.inputs,
            outputs=found.outputs,
            group=found.group,
            axis=found.axis,
        )
        if best is None or error(found) < least:
            best, least = found, error(found)
    assert best is not None
    return best


def input_scales(
    means: Float[np.ndarray, " inputs"], exponent: float
) -> Float[np.ndarray, " inputs"]:
    """The factors s of inputs of these mean sizes."""
    alive = means > 0
    logarithms = np.log2(np.where(alive, np.ldexp(means, -_power(means)), 1))
    among = logarithms[alive] if alive.any() else np.zeros(1)
    middle = (among.max() + among.min()) / 2
    return np.where(alive, np.exp2(exponent * (logarithms - middle)), 1)


def _power(array: np.ndarray) -> int:
    """The power of two above all entries."""
    return int(np.frexp(np.abs(array).max())[1])
