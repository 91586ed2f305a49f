r"""One layer under the theorems, from the second moments of what it saw.

Every method projects the outputs, $Z = WV_rV_r^\top$, and one orthonormal $V$ serves all ranks. So,
with $c = 0$ for a linear map and $c$ the mean calibration input for an affine one,

$$\lVert Y - \hat Y\rVert_F^2 = \sum_{j>r} v_j^\top W^\top\Bigl(\sum_t(x_t - c)(x_t - c)^\top\Bigr)
Wv_j,$$

a sum of squares, in which nothing cancels. All is NumPy, in float64.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float
from scipy import stats

from lowrank_theory._numerics import float64, relative_rank_cutoff, rounding_allowance
from lowrank_theory.calibration import Calibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import ActivationWeighted, every_rank
from lowrank_theory.studies._residual import FALSE_ALARM, POINTS, Residual
from lowrank_theory.studies.layer_rows import (
    LayerAtRank,
    LayerData,
    LayerHypothesis,
    Spectrum,
    half_rank,
)
from lowrank_theory.theorems.calibration_size import INDEPENDENT_WEIGHTS
from lowrank_theory.theorems.gaussian_noise import lower_edge
from lowrank_theory.theorems.planted_rank import INDEPENDENT_NOISE

EXCESS = 0.01  # over the least squared error, for which calibration sizes are told
FAILURE_PROBABILITY = 0.05


@dataclasses.dataclass(frozen=True)
class Moments:
    r"""How many rows, their mean, and $\sum_t(x_t-\bar x)(x_t-\bar x)^\top$."""

    count: float
    mean: Float[np.ndarray, " size"]
    scatter: Float[np.ndarray, "size size"]

    @staticmethod
    def of(seen: Calibration) -> "Moments":
        """Those of a calibration."""
        return Moments(float(seen.count), np.asarray(seen.mean), np.asarray(seen.scatter))

    def through(self, matrix: Float[np.ndarray, "size outputs"]) -> "Moments":
        """Of the rows times the matrix."""
        scatter = matrix.T @ self.scatter @ matrix
        return Moments(self.count, self.mean @ matrix, (scatter + scatter.T) / 2)

    def about(self, centre: Float[np.ndarray, " size"] | float) -> Float[np.ndarray, "size size"]:
        r"""$\sum_t(x_t-c)(x_t-c)^\top$."""
        shift = self.mean - centre
        return self.scatter + self.count * np.outer(shift, shift)


@dataclasses.dataclass(frozen=True)
class Layer:
    r"""A matrix $W$ and what it multiplied: the two halves of the calibration, and held-out rows.

    The outputs are told in the coordinates of the smaller side: $W = CF^\top$ with the `core` $C$
    (inputs, side) and the orthonormal `frame` $F$ (outputs, side), so norms are those of $XC$.

    - `inputs`: the held-out rows, and `energies`: the eigenvalues of $X^\top X$, largest first;
    - `dimension`: $q$, the rank of the inputs of half B;
    - `outputs_a`, `outputs_b`, `outputs`: those of the halves and of the held-out rows;
    - `output_mean`: that of the whole calibration.
    """

    path: str
    slice: int | None
    weights: Float[np.ndarray, "inputs outputs"]
    core: Float[np.ndarray, "inputs side"]
    frame: Float[np.ndarray, "outputs side"]
    training: Calibration
    inputs: Moments
    energies: Float[np.ndarray, " inputs"]
    dimension: int
    outputs_a: Moments
    outputs_b: Moments
    outputs: Moments
    output_mean: Float[np.ndarray, " side"]

    @staticmethod
    def of(
        path: str,
        number: int | None,
        weights: Float[np.ndarray, "inputs outputs"],
        seen: tuple[Calibration, Calibration, Calibration],
        energies: Callable[[Calibration], Float[np.ndarray, " inputs"]],
    ) -> "Layer":
        r"""The layer that has seen these: half A, half B, held-out rows. `energies` gives the
        eigenvalues of $X^\top X$.
        """
        core, frame = weights, np.eye(weights.shape[1])
        if weights.shape[1] > weights.shape[0]:
            frame, triangle = np.linalg.qr(weights.T)
            core = triangle.T
        half_a, half_b, held_out = seen
        training = half_a.merge(half_b)
        outputs_a, outputs_b, outputs = (Moments.of(each).through(core) for each in seen)
        return Layer(
            path,
            number,
            weights,
            core,
            frame,
            training,
            Moments.of(held_out),
            energies(held_out),
            dimension(energies(half_b)),
            outputs_a,
            outputs_b,
            outputs,
            np.asarray(training.mean) @ core,
        )

    @property
    def name(self) -> str:
        """The path, with the number of the slice."""
        return self.path if self.slice is None else f"{self.path} #{self.slice}"

    @property
    def half_rank(self) -> int:
        """Half the full rank."""
        return half_rank(*self.weights.shape)

    @functools.cached_property
    def stated(self) -> "Stated":
        """What half A says of half B."""
        a, b = self.outputs_a.about(0.0), self.outputs_b.about(0.0)
        truth, fit = (np.linalg.eigh(each)[1][:, ::-1] for each in (a, b))
        return Stated(b, truth, fit)

    @property
    def rounding(self) -> float:
        """What rounding may add to a squared norm of held-out outputs."""
        scale = np.sum(self.core**2) * np.sum(self.energies)
        return float(rounding_allowance(scale, *self.core.shape))


def energies_of(seen: Calibration) -> Float[np.ndarray, " inputs"]:
    r"""The eigenvalues of $X^\top X$, largest first."""
    return np.maximum(_eigenvalues(Moments.of(seen).about(0.0)), 0)


def dimension(energies: Float[np.ndarray, " size"]) -> int:
    """How many eigenvalues of a Gram are not rounding."""
    return int(np.sum(energies > _gram_cutoff(energies.size) * energies[0]))


def _gram_cutoff(size: int) -> float:
    """The ratio to the largest below which an eigenvalue of a Gram is rounding."""
    return relative_rank_cutoff((size, size)) * size


def _eigenvalues(matrix: Float[np.ndarray, "size size"]) -> Float[np.ndarray, " size"]:
    """Largest first."""
    return np.linalg.eigvalsh(matrix)[::-1]


# --- errors at a sweep of ranks -------------------------------------------------------------------


def at_ranks(network: str, layer: Layer, count: int) -> Iterator[LayerAtRank]:
    """The layer at about `count` ranks."""
    bias = np.zeros(layer.weights.shape[1])
    fitted = every_rank(
        Observed(weights=layer.weights, bias=bias, calibration=layer.training),
        ActivationWeighted(),
    )
    certified = np.asarray(fitted.certificates.certified)
    errors = _errors(layer, layer.frame.T @ np.asarray(fitted.factors.right).T)
    values = np.maximum(_eigenvalues(layer.outputs.scatter), 0)
    inputs, outputs = layer.weights.shape
    for rank in _ranks(inputs, outputs, count):
        recovery_error, recovery_bound = layer.stated.recovery(rank)
        needed, sufficient = _calibration_sizes(values, rank, layer.rounding)
        yield LayerAtRank(
            network=network,
            layer=layer.name,
            shape=(inputs, outputs),
            rank=rank,
            samples=int(layer.training.count),
            **{name: None if each is None else each[rank] for name, each in errors.items()},
            recovery_error=recovery_error,
            recovery_bound=recovery_bound,
            samples_needed=needed,
            samples_sufficient=sufficient,
            certified=bool(certified[rank]),
        )


def _ranks(inputs: int, outputs: int, count: int) -> list[int]:
    """A geometric sweep from one to the largest rank that saves storage, and half the full one."""
    largest = max(1, math.ceil(inputs * outputs / (inputs + outputs)) - 1)
    half = half_rank(inputs, outputs)
    sweep = np.geomspace(1, max(largest, half), count).round().astype(int).tolist()
    return sorted({*sweep, half})


def _errors(layer: Layer, driven: np.ndarray) -> dict[str, list[float] | None]:
    """The relative errors on held-out rows at each rank from zero to full, and the bound on the
    first of them. `driven` are the directions of the data-driven fit, strongest first.
    """
    _, values, agnostic = np.linalg.svd(layer.core, full_matrices=False)
    scale = np.sqrt(np.diagonal(Moments.of(layer.training).about(0.0)))
    diagonal = np.linalg.svd(scale[:, None] * layer.core, full_matrices=False)[2]
    plain, shifted = layer.outputs.about(0.0), layer.outputs.about(layer.output_mean)
    squares = {
        "data_agnostic_error": _left_over(plain, agnostic.T),
        "data_agnostic_new_bias_error": _left_over(shifted, agnostic.T),
        "diagonal_error": _left_over(plain, diagonal.T),
        "data_driven_error": _left_over(shifted, driven),
        "optimal_error": _tails(_eigenvalues(layer.outputs.scatter)),
        "price_bound": _most(layer.energies, values**2),
    }
    total = np.trace(plain)
    return {
        name: np.sqrt(np.maximum(each, 0) / total).tolist() if total > 0 else None
        for name, each in squares.items()
    }


def _left_over(moments: np.ndarray, directions: np.ndarray) -> np.ndarray:
    r"""$\sum_{j>r}v_j^\top Mv_j$ for each r from zero on."""
    return _tails(np.sum(directions * (moments @ directions), axis=0))


def _tails(values: np.ndarray) -> np.ndarray:
    """The sums of all, of all but the first, ..., of none."""
    return np.append(np.cumsum(values[::-1])[::-1], 0.0)


def _most(inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    r"""$\sum_ks_k(X)^2s_{r+k}(W)^2$ for each r from zero on: `orientation.upper`."""
    count = weights.size
    return np.array([inputs[: count - rank] @ weights[rank:] for rank in range(count + 1)])


def _calibration_sizes(
    values: np.ndarray, rank: int, rounding: float
) -> tuple[int | None, int | None]:
    r"""Rows at which the squared loss exceeds the least by 1 %, given the spectrum of the outputs,
    for weights that do not depend on the rows.

    To first order the excess is $\frac1m\sum_{j\le r<k}\frac{l_jl_k}{l_j-l_k}$. The bound
    $\bigl(\frac{1+a/\sqrt m}{1-b/\sqrt m}\bigr)^2L^*$ of `calibration_size.relative`, $a =
    t\sqrt{l_{r+1}/L^*}$, is $1.01\,L^*$ at $\sqrt m = \frac{a+\sqrt{1.01}\,b}{\sqrt{1.01}-1}$, in
    which $b$ hardly depends on $m$: the iteration gains three digits a step.
    """
    kept, dropped = values[:rank, None], values[rank:]
    least = float(np.sum(dropped))
    if least <= rounding:
        return None, None
    needed = None
    if values[rank - 1] - values[rank] > relative_rank_cutoff((values.size,)) * values[0]:
        first_order = float(np.sum(kept * dropped / (kept - dropped)))
        needed = math.ceil(first_order / (EXCESS * least))
    root = math.sqrt(1 + EXCESS)
    slack = math.sqrt(2 * math.log(2 / FAILURE_PROBABILITY) * values[rank] / least)
    sufficient, outputs = 0.0, dimension(values)
    missing = math.sqrt(outputs)
    for _ in range(8):
        sufficient = ((slack + root * missing) / (root - 1)) ** 2
        missing = _shortfall(outputs, sufficient)
    return needed, math.ceil(sufficient)


def _shortfall(outputs: int, samples: float) -> float:
    r"""$b$: by how much the edge of a Gaussian matrix is below $\sqrt m$."""
    with float64():
        return math.sqrt(samples) - float(lower_edge(samples, outputs, FAILURE_PROBABILITY / 2))


# --- what one half says of the other --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stated:
    r"""The linear fit of half $A$, stated to be the truth for half $B$.

    - `outputs`: $M_B = (X_BC)^\top X_BC$;
    - `truth`, `fit`: the eigenvectors of $M_A$ and of $M_B$ (columns), strongest first.
    """

    outputs: Float[np.ndarray, "side side"]
    truth: Float[np.ndarray, "side side"]
    fit: Float[np.ndarray, "side side"]

    def noise(self, rank: int) -> Float[np.ndarray, "rest rest"]:
        r"""$E^\top E$ for $E = X_BW - X_BM$, in the coordinates that $M$ leaves. Its columns are
        combinations of those of $X_B$: $PE = E$.
        """
        rest = self.truth[:, rank:]
        return rest.T @ self.outputs @ rest

    def recovery(self, rank: int) -> tuple[float | None, float | None]:
        """Both sides of `planted_rank.any_noise`, relative to the outputs."""
        total = float(np.trace(self.outputs))
        if total <= 0:
            return None, None
        truth, fit = self.truth[:, :rank], self.fit[:, :rank]
        turned = fit @ fit.T - truth @ truth.T
        error = max(float(np.sum(turned * (self.outputs @ turned))), 0.0)
        leading = np.maximum(_eigenvalues(self.noise(rank))[:rank], 0)
        return math.sqrt(error / total), math.sqrt(5 * float(np.sum(leading)) / total)


def _deviation_of_halves(a: Moments, b: Moments) -> float | None:
    r"""How far the covariances of the halves differ, in units of what independent Gaussian rows
    make of it.

    For those $\mathbb E\lVert\hat\Sigma_A - \hat\Sigma_B\rVert_F^2 = \bigl(\frac1{m_A-1} +
    \frac1{m_B-1}\bigr)\bigl((\operatorname{tr}\Sigma)^2 + \lVert\Sigma\rVert_F^2\bigr)$.
    """
    if min(a.count, b.count) < 2:
        return None
    free_a, free_b = a.count - 1, b.count - 1
    pooled = (a.scatter + b.scatter) / (free_a + free_b)
    expected = (1 / free_a + 1 / free_b) * (np.trace(pooled) ** 2 + np.sum(pooled**2))
    if expected <= 0:
        return None
    return float(np.linalg.norm(a.scatter / free_a - b.scatter / free_b) / math.sqrt(expected))


def _residual(layer: Layer) -> Residual | None:
    """At half the full rank."""
    noise = layer.stated.noise(layer.half_rank)
    return Residual.of(noise, layer.dimension, layer.weights.shape[1], layer.half_rank)


# --- the layer as a whole -------------------------------------------------------------------------


def described(network: str, layer: Layer) -> LayerData:
    """The layer as a whole."""
    values, seen, moments = layer.energies, layer.inputs, layer.outputs.about(0.0)
    energy, total = float(np.sum(values)), float(np.trace(moments))
    deviation = _deviation_of_halves(layer.outputs_a, layer.outputs_b)
    residual = _residual(layer)
    return LayerData(
        network=network,
        layer=layer.name,
        shape=layer.weights.shape,
        samples=int(layer.training.count),
        path=layer.path,
        slice=layer.slice,
        held_out_samples=int(seen.count),
        activations=_spectrum(values),
        preactivations=_spectrum(np.maximum(_eigenvalues(moments), 0)),
        mean_share=float(seen.count * np.sum(seen.mean**2)) / energy if energy else None,
        condition_number=(
            math.sqrt(values[0] / values[-1]) if dimension(values) == values.size else None
        ),
        resolution=math.sqrt(layer.rounding / total) if total > 0 else None,
        effective_samples=(
            None if deviation is None else float(layer.training.count) / max(1.0, deviation**2)
        ),
        residual=None if residual is None else residual.spectrum(),
    )


def _spectrum(values: np.ndarray) -> Spectrum:
    total = float(np.sum(values))
    index = np.unique(np.geomspace(1, values.size, POINTS).round().astype(int))
    shares = values / total if total > 0 else values
    return Spectrum(
        index=tuple(index.tolist()),
        share=tuple(shares[index - 1].tolist()),
        participation_ratio=1 / float(np.sum(shares**2)) if total > 0 else None,
    )


# --- which hypotheses hold ------------------------------------------------------------------------


def hypotheses(layer: Layer) -> list[LayerHypothesis]:
    """Which hypotheses hold of the layer."""
    residual = _residual(layer)
    noise = () if residual is None else residual.hypotheses(layer.name)
    return [*_resolved(layer), *_gaussian_rows(layer), *noise, *_independence(layer)]


def _resolved(layer: Layer) -> Iterator[LayerHypothesis]:
    """What can be computed: ranks, gaps, numbers of rows."""
    inputs = layer.energies
    if inputs[0] > 0:
        yield LayerHypothesis.checked(
            layer.name,
            "price_of_ignoring_data.condition_number",
            "the activations have full column rank",
            math.sqrt(inputs[-1] / inputs[0]) - math.sqrt(_gram_cutoff(inputs.size)),
        )
    outputs = np.maximum(_eigenvalues(layer.outputs.scatter), 0)
    if outputs[0] > 0:
        samples = float(layer.training.count)
        yield LayerHypothesis.checked(
            layer.name,
            "calibration_size.relative",
            "there are enough samples for the dimension of the outputs",
            1 - _shortfall(dimension(outputs), samples) / math.sqrt(samples),
        )
        above, below = np.append(outputs, 0.0)[layer.half_rank - 1 :][:2]
        yield LayerHypothesis.checked(
            layer.name,
            "calibration_size.leading_constant",
            "the output covariance has a gap at the rank",
            (above - below) / outputs[0] - relative_rank_cutoff((outputs.size,)),
        )


def _gaussian_rows(layer: Layer) -> Iterator[LayerHypothesis]:
    r"""What independent Gaussian rows would make of the deviation between the halves.

    Its square tends to $\sum w_ig_i^2$ with $\sum w_i = 1$ and independent $g_i \sim N(0, 1)$,
    which exceeds any $x \ge 1.54$ with at most the probability that $g^2$ does (Székely and Bakirov
    2003).
    """
    deviation = _deviation_of_halves(layer.outputs_a, layer.outputs_b)
    if deviation is not None:
        yield LayerHypothesis.refutable(
            layer.name,
            "calibration_size.relative",
            "the rows are independent and Gaussian: how far the halves differ",
            deviation,
            float(stats.norm.isf(FALSE_ALARM / 2)),
        )


def _independence(layer: Layer) -> Iterator[LayerHypothesis]:
    r"""What only whoever trained the network could say, and which is not taken to hold: that the
    weights came about without regard to the calibration rows. The noise $X_B(W - M)$ of the stated
    truth does depend on the inputs.
    """
    yield LayerHypothesis.trusted(layer.name, "calibration_size.relative", INDEPENDENT_WEIGHTS)
    yield LayerHypothesis.trusted(
        layer.name, "calibration_size.leading_constant", INDEPENDENT_WEIGHTS
    )
    yield LayerHypothesis.trusted(layer.name, "planted_rank.gaussian", INDEPENDENT_NOISE)
