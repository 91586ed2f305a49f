"""One layer as a whole: what it saw, and what of the hypotheses of the theorems holds of it."""

import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import stats

from lowrank_theory._numerics import float64
from lowrank_theory.studies import FAILURE_PROBABILITY
from lowrank_theory.studies._halves import deviation_of_halves
from lowrank_theory.studies._moments import descending_eigenvalues
from lowrank_theory.studies._observed_layer import ObservedLayer, gram_cutoff, resolved_dimension
from lowrank_theory.studies._residual import FALSE_ALARM, POINTS
from lowrank_theory.studies.layer_rows import LayerData, LayerHypothesis, Spectrum
from lowrank_theory.theorems import (
    AbstractStatement,
    Hypothesis,
    Standing,
    calibration_size,
    planted_rank,
    price_of_ignoring_data,
)
from lowrank_theory.theorems.calibration_size import (
    INDEPENDENT_WEIGHTS,
    enough_samples_hypothesis,
    gap_hypothesis,
)
from lowrank_theory.theorems.planted_rank import INDEPENDENT_NOISE
from lowrank_theory.theorems.price_of_ignoring_data import full_column_rank_hypothesis


def described(network: str, layer: ObservedLayer) -> LayerData:
    """The layer as a whole."""
    values, seen, moments = layer.eigenvalues, layer.inputs, layer.outputs.about(0.0)
    energy, total = float(np.sum(values)), float(np.trace(moments))
    deviation = deviation_of_halves(layer.outputs_a, layer.outputs_b)
    return LayerData(
        network=network,
        layer=layer.name,
        shape=layer.weights.shape,
        samples=layer.samples,
        path=layer.path,
        slice=layer.slice,
        held_out_samples=int(seen.count),
        activations=_spectrum(values),
        preactivations=_spectrum(np.maximum(descending_eigenvalues(moments), 0)),
        mean_share=float(seen.count * np.sum(seen.mean**2)) / energy if energy else None,
        condition_number=(
            math.sqrt(values[0] / values[-1]) if resolved_dimension(values) == values.size else None
        ),
        resolution=math.sqrt(layer.rounding / total) if total > 0 else None,
        effective_samples=(
            None if deviation is None else float(layer.training.count) / max(1.0, deviation**2)
        ),
        residual=None if layer.residual is None else layer.residual.spectrum(),
    )


def _spectrum(values: Float[np.ndarray, " size"]) -> Spectrum:
    total = float(np.sum(values))
    index = np.unique(np.geomspace(1, values.size, POINTS).round().astype(int))
    shares = values / total if total > 0 else values
    return Spectrum(
        index=tuple(index.tolist()),
        share=tuple(shares[index - 1].tolist()),
        participation_ratio=1 / float(np.sum(shares**2)) if total > 0 else None,
    )


def hypotheses(layer: ObservedLayer) -> Iterator[LayerHypothesis]:
    """Which hypotheses hold of the layer: what can be computed, what data can refute, and what only
    whoever trained the network could say.
    """
    with float64():
        checked = [*_resolved(layer)]
    for statement, hypothesis in checked:
        yield LayerHypothesis.of(layer.name, statement, hypothesis)
    yield from _gaussian_rows(layer)
    if layer.residual is not None:
        yield from layer.residual.hypotheses(layer.name)
    for statement, name in _TRUSTED:
        hypothesis = Hypothesis(name, -1.0, Standing.TRUSTED)
        yield LayerHypothesis.of(layer.name, statement, hypothesis)


# Not taken to hold: that the weights came about without regard to the calibration rows; and the
# noise X_B (W - M) of the stated truth does depend on the inputs.
_TRUSTED = (
    (calibration_size.relative, INDEPENDENT_WEIGHTS),
    (calibration_size.leading_constant, INDEPENDENT_WEIGHTS),
    (planted_rank.gaussian, INDEPENDENT_NOISE),
)


def _resolved(layer: ObservedLayer) -> Iterator[tuple[AbstractStatement, Hypothesis]]:
    """What can be computed: ranks, gaps, numbers of rows; inside `float64`."""
    inputs, outputs = layer.eigenvalues, layer.output_eigenvalues
    if inputs[0] > 0:
        ratio, cutoff = math.sqrt(inputs[-1] / inputs[0]), math.sqrt(gram_cutoff(inputs.size))
        full = full_column_rank_hypothesis("the activations have", ratio, cutoff)
        yield price_of_ignoring_data.condition_number, full
    if outputs[0] > 0:
        dimension, samples = resolved_dimension(outputs), float(layer.training.count)
        enough = enough_samples_hypothesis(float(dimension), samples, FAILURE_PROBABILITY)
        yield calibration_size.relative, enough
        gap = gap_hypothesis(jnp.asarray(outputs), layer.half_rank)
        yield calibration_size.leading_constant, gap


def _gaussian_rows(layer: ObservedLayer) -> Iterator[LayerHypothesis]:
    r"""What independent Gaussian rows would make of the deviation between the halves.

    Its square tends to $\sum w_ig_i^2$ with $\sum w_i = 1$ and independent $g_i \sim N(0, 1)$,
    which exceeds any $x \ge 1.54$ with at most the probability that $g^2$ does (Székely and Bakirov
    2003).
    """
    deviation = deviation_of_halves(layer.outputs_a, layer.outputs_b)
    if deviation is not None:
        yield LayerHypothesis.refutable(
            layer.name,
            calibration_size.relative,
            "the rows are independent and Gaussian: how far the halves differ",
            deviation,
            float(stats.norm.isf(FALSE_ALARM / 2)),
        )
