"""Losses on held-out units, and laws that draw them."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from lowrank_theory._arrays import Key, namespace, of_either_key
from lowrank_theory._numerics import (
    AnyArray,
    after,
    check_array,
    check_count,
    check_positive,
    float64,
    matmul,
    settle,
)
from lowrank_theory._random import split, uniform
from lowrank_theory.generators import activations, noise, spectra
from lowrank_theory.problems import AbstractParts, Parts, Setting
from lowrank_theory.recovery import ActivationWeighted, recover


class HeldOut(eqx.Module):
    r"""Losses of held-out units, and what is known of their law.

    - `losses` $Z_i$ (units,), and `range_bound` $B$, infinite where there is none;
    - `moment_ratio` $\kappa$ with $\mathbb EZ^2 \le \kappa(\mathbb EZ)^2$, infinite where there is
      none;
    - `independent`: whether the units are independent draws of one law that the compression has not
      seen;
    - `mean` $\mu$, which only the maker of a synthetic law knows: no certificate uses it.
    """

    losses: Float[AnyArray, " units"]
    range_bound: Float[AnyArray, ""]
    moment_ratio: Float[AnyArray, ""]
    independent: Bool[AnyArray, ""]
    mean: Float[AnyArray, ""]

    @staticmethod
    def stated(
        losses: ArrayLike, *, range_bound: float = math.inf, moment_ratio: float = math.inf
    ) -> "HeldOut":
        """Losses of one's own, stated to be independent and of the given range or moment ratio.

        Raises `ValueError` for fewer than two losses, for NaN, infinite or negative ones, and for a
        range that is not positive or a ratio below one, which no law has.
        """
        array = np.asarray(check_array("losses", losses, "units"), float)
        if array.size < 2:
            raise ValueError("`losses` must have at least two units; got 1. Hold out more.")
        if array.min() < 0:
            raise ValueError(
                f"`losses` must not be negative; got {array.min():.3g}. Give squared errors."
            )
        if range_bound != math.inf:
            range_bound = check_positive("range_bound", range_bound)
        if moment_ratio != math.inf:
            moment_ratio = check_positive("moment_ratio", moment_ratio)
        if moment_ratio < 1:
            raise ValueError(
                f"`moment_ratio` must be at least 1, as of every law; got {moment_ratio!r}."
            )
        known = np.asarray(True)
        numbers = (np.asarray(x, float) for x in (range_bound, moment_ratio, math.nan))
        range_array, ratio_array, mean = numbers
        return HeldOut(array, range_array, ratio_array, known, mean)

    @property
    def sizes(self) -> tuple[int, ...]:
        """(units,)."""
        return self.losses.shape


class LossLaw(eqx.Module):
    """Independent losses with finitely many values, of which everything is known.

    `probabilities` (atoms,) are normalised; `range_bound` is the largest of the `values` (atoms,)
    or more. Raises `ValueError` for fewer than two units.
    """

    values: Float[np.ndarray, " atoms"] = eqx.field(converter=np.asarray)
    probabilities: Float[np.ndarray, " atoms"] = eqx.field(converter=np.asarray)
    range_bound: Float[np.ndarray, ""] = eqx.field(converter=np.asarray)
    units: int

    def __check_init__(self) -> None:
        settle(self, "units", check_count, 2)

    @of_either_key
    def draw(self, *, key: Key) -> HeldOut:
        """The losses of `units` draws."""
        xp = namespace(key)
        values = xp.asarray(self.values, float)
        shares = self.probabilities / xp.sum(self.probabilities)
        below = xp.cumsum(shares)[:-1]
        losses = values[xp.searchsorted(below, uniform(key, (self.units,)), side="right")]
        mean, square = xp.sum(shares * values), xp.sum(shares * values**2)
        ratio = xp.where(mean > 0, square / xp.where(mean > 0, mean, 1) ** 2, 1.0)
        # A constant has ratio one, below which rounding must not take it.
        ratio = xp.maximum(ratio, 1.0)
        bound, ratio, mean = (xp.asarray(n, float) for n in (self.range_bound, ratio, mean))
        return HeldOut(losses, bound, ratio, xp.asarray(True), mean)


class LayerLossLaw(eqx.Module):
    r"""The squared output errors of a compressed layer on `units` fresh rows.

    The layer is drawn from `setting`, with a law of its activations that has a second moment $C$,
    and recovered from its own rows alone. Fresh rows are $x = C^{1/2}u$ with independent $u_j$
    uniform on $[-\sqrt3, \sqrt3]$: bounded, with the same second moment. So with $A =
    C^{1/2}(W - \hat M)$ of N rows, $Z = \lVert A^\top u\rVert^2$ has mean $\lVert A\rVert_F^2$,
    range $3N\lVert A\rVert^2$ and moment ratio at most 3. Raises `ValueError` for fewer than two
    units.
    """

    setting: Setting
    units: int

    def __check_init__(self) -> None:
        settle(self, "units", check_count, 2)

    @of_either_key
    def draw(self, *, key: Key) -> HeldOut:
        """A layer, its recovery, which is JAX's in any case, and its losses on fresh rows."""
        return self.draw_parts(key=key).instance()

    def draw_parts(self, *, key: Key) -> "LayerLosses":
        """What is random of the same losses; call it inside `float64`."""
        problem_key, row_key = split(key)
        problem = self.setting.draw_parts(key=problem_key)
        rows = 2 * uniform(row_key, (self.units, self.setting.inputs)) - 1
        return LayerLosses(problem, math.sqrt(3) * rows)


class LayerLosses(AbstractParts):
    """A layer, and the $u$ of fresh rows, of which the losses follow."""

    problem: Parts
    rows: Float[AnyArray, "units inputs"]

    def instance(self) -> HeldOut:
        """The losses."""
        with float64():
            problem = self.problem.instance()
            recovered = recover(problem.observed, problem.rank, ActivationWeighted()).factors
            weights, second_moment = problem.observed.weights, problem.truth.second_moment
            assert weights is not None
            assert second_moment is not None
            difference = weights - matmul(recovered.left, recovered.right)
            values, vectors = jnp.linalg.eigh(after(difference, jnp.asarray(second_moment)))
            half = jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T
            residual = matmul(vectors, half, difference)
            largest = jnp.linalg.norm(residual, 2)
            return HeldOut(
                jnp.sum(matmul(self.rows, residual) ** 2, axis=1),
                3 * residual.shape[0] * largest**2,
                jnp.asarray(3.0),
                jnp.asarray(True),
                jnp.sum(residual**2),
            )


_UNITS = 100


def _law(
    values: tuple[float, ...], probabilities: tuple[float, ...], units: int = _UNITS
) -> LossLaw:
    """A law of range one on eight atoms: one shape for all."""
    padding = (0.0,) * (8 - len(values))
    return LossLaw(np.array(values + padding), np.array(probabilities + padding), 1.0, units)


def _two_point(probability: float) -> LossLaw:
    return _law((0.0, 1.0), (1 - probability, probability))


_LAYER = Setting(
    samples=40,
    inputs=12,
    outputs=8,
    rank=3,
    activations=activations.GaussianRows(spectra.PowerLaw(0.5)),
    noise=noise.Gaussian(0.3),
)
UNIFORM = _law(tuple(np.linspace(0, 1, 8)), (1.0,) * 8)
# On these every certificate is finite.
_SEEN = {
    "compressed layer": LayerLossLaw(_LAYER, _UNITS),
    "uniform": UNIFORM,
    "geometric": _law(tuple(2.0 ** -np.arange(8)), tuple(1.5 ** np.arange(8))),
    "rare large losses": _law((0.01, 1.0), (0.999, 0.001)),
    "all equal": _law((0.3,), (1.0,)),
    "zero": _law((0.0,), (1.0,)),
    "fair coin at the range": _two_point(0.5),
}
BOUNDED = {
    **_SEEN,
    # Above 1 - 0.05^(1/100) = 0.02951 a sample of zeros makes the exact limit fail, at a rate just
    # below 0.05.
    "rare events at the range": _two_point(0.0296),
    "rarer than the units can show": _law((0.0, 0.001, 1.0), (0.5, 0.499, 0.001)),
    "two units": _law((0.1, 1.0), (0.8, 0.2), units=2),
}
OF_KNOWN_RATIO = {**_SEEN, "biased coin at the range": _two_point(0.2)}
COINS = {
    "rare": _two_point(0.0296),
    "common": _two_point(0.2),
    "fair": _two_point(0.5),
    "usual": _two_point(0.97),
    "never": _two_point(0.0),
    "always": _two_point(1.0),
}
