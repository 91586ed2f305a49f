"""The list of regimes and the table of methods: register once, be tested everywhere.

A regime prescribes the singular values of the inputs and of the attainable outputs, so that ties,
gaps and conditioning are known. Three shapes serve all, so that compilations are shared.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lowrank_theory import (
    ActivationWeighted,
    Calibration,
    Observed,
    Ridge,
    SingularValueThreshold,
    TruncatedSVD,
)
from oracle import Question

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Case:
    """Everything that a method may ask of one layer, in float64."""

    weights: Array
    activations: Array
    compressed: Array
    outputs: Array  # attainable from `compressed` up to a part orthogonal to it
    bias: Array

    @property
    def samples(self) -> int:
        return self.activations.shape[0]

    def map(self, **changes: Callable[[Array], Array]) -> "Case":
        return dataclasses.replace(
            self, **{name: change(getattr(self, name)) for name, change in changes.items()}
        )

    def cast(self, dtype: Any) -> "Case":
        names = (field.name for field in dataclasses.fields(self))
        return self.map(**dict.fromkeys(names, lambda array: array.astype(dtype)))

    def arrays(self) -> list[Array]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


@dataclasses.dataclass(frozen=True)
class Regime:
    shape: tuple[int, int, int] = (20, 8, 6)
    rank: int = 2
    inputs: tuple[float, ...] = (5, 4, 3, 2.5, 2, 1.5, 1, 0.5)  # singular values
    outputs: tuple[float, ...] = (6, 5, 3, 2, 1, 0.5)
    unattainable: float = 1.0  # its norm

    def draw(self, seed: int = 0) -> Case:
        random = np.random.default_rng(seed)
        samples, inputs, outputs = self.shape
        count = min(samples, inputs)
        values = np.array(self.inputs[:count])
        left = orthonormal(random, samples, count)
        right = orthonormal(random, inputs, count)
        activations = (left * values) @ right.T
        alive = values > 0
        rank = min(int(alive.sum()), outputs)
        sizes = np.array(self.outputs[:rank])
        inside = orthonormal(random, int(alive.sum()), rank)
        frame = orthonormal(random, outputs, rank)
        coordinates = (inside * sizes) @ frame.T
        weights = (right[:, alive] / values[alive]) @ coordinates
        # The compressed network sees the same singular values in turned spaces.
        turned = orthonormal(random, samples, samples, small=0.3) @ left
        compressed = (turned * values) @ right.T @ orthonormal(random, inputs, inputs, small=0.3)
        basis = turned[:, alive]
        attained = basis @ coordinates
        rest = random.standard_normal(attained.shape)
        rest -= basis @ (basis.T @ rest)
        size = np.linalg.norm(rest)
        if size > 1e-8:
            attained = attained + rest * (self.unattainable / size)
        return Case(weights, activations, compressed, attained, random.standard_normal(outputs))


def orthonormal(random: Any, rows: int, columns: int, small: float | None = None) -> Array:
    """Orthonormal columns: uniform, or for a `small` angle near the identity."""
    gaussian = random.standard_normal((rows, columns))
    if small is not None:
        gaussian = np.eye(rows) + small * gaussian / np.sqrt(rows)
    q, r = np.linalg.qr(gaussian)
    return q * np.where(np.diagonal(r) < 0, -1, 1)


REGIMES = {
    "more inputs than outputs": Regime(),
    "more outputs than inputs": Regime(shape=(20, 6, 8)),
    "fewer samples than inputs": Regime(shape=(5, 8, 6)),
    "rank one": Regime(rank=1),
    "full rank": Regime(rank=6),
    "ties among the kept": Regime(outputs=(5, 5, 3, 2, 1, 0.5)),
    "ties among the discarded": Regime(outputs=(6, 5, 3, 3, 3, 3)),
    "tie at the cut": Regime(outputs=(6, 5, 5, 2, 1, 0.5)),
    "all tied": Regime(outputs=(1,) * 6),
    "almost a tie": Regime(outputs=(6, 5, 5 - 1e-7, 2, 1, 0.5)),
    "smallest gap": Regime(outputs=(6, 5, 5 - 6e-3, 2, 1, 0.5)),
    "white activations": Regime(inputs=(2,) * 8),
    "rank-deficient activations": Regime(inputs=(5, 4, 3, 2, 0, 0, 0, 0)),
    "activations of rank below the rank asked for": Regime(inputs=(5, 0, 0, 0, 0, 0, 0, 0)),
    "ill-conditioned activations": Regime(inputs=(1e4, 3e3, 1e3, 300, 100, 30, 10, 1)),
    "exact rank": Regime(outputs=(6, 5, 0, 0, 0, 0)),
    "wide range of outputs": Regime(outputs=(1e4, 1e2, 1, 1e-2, 1e-4, 1e-6)),
    "mostly out of reach": Regime(unattainable=1e3),
    "nothing out of reach": Regime(unattainable=0.0),
}
CASE = REGIMES["more inputs than outputs"].draw()
SINGLE = CASE.cast(np.float32)
NEGLIGIBLE = 1e-10  # of the outputs; what a method in float64 promises


@dataclasses.dataclass(frozen=True)
class Method:
    """A method, what it observes of a case, and the question it answers.

    `unit` is the scale of the outputs and `inputs` that of the activations, for fields in their
    units.
    """

    make: Callable[[float, float], Any]
    observe: Callable[[Case], Observed]
    question: Callable[[Case, float], Question]
    from_rows: bool = True


def _calibrated(case: Case, *, compressed: bool) -> Calibration:
    empty = Calibration.empty(case.activations.shape[1], compressed=compressed)
    if compressed:
        return empty.update(case.activations, case.compressed)
    return empty.update(case.activations)


def _outputs(case: Case, affine: bool) -> Array:
    outputs = case.activations @ case.weights
    return outputs + case.bias if affine else outputs


def _weighted(*, mismatch: bool, affine: bool, penalty: float = 0.0, moments: bool) -> Method:
    def make(unit: float, inputs: float) -> Any:
        return Ridge(penalty * inputs**2) if penalty else ActivationWeighted()

    def observe(case: Case) -> Observed:
        bias = case.bias if affine else None
        if moments:
            calibration = _calibrated(case, compressed=mismatch)
            return Observed(weights=case.weights, bias=bias, calibration=calibration)
        return Observed(
            weights=case.weights,
            activations=case.activations,
            compressed_activations=case.compressed if mismatch else None,
            bias=bias,
        )

    def question(case: Case, unit: float) -> Question:
        return Question(
            case.compressed if mismatch else case.activations,
            _outputs(case, affine),
            case.weights,
            penalty,
            affine,
        )

    return Method(make, observe, question, not moments)


METHODS = {
    "truncated svd": Method(
        lambda unit, inputs: TruncatedSVD(),
        lambda case: Observed(weights=case.weights),
        lambda case, unit: Question(np.eye(case.weights.shape[0]), case.weights),
    ),
    "singular value threshold": Method(
        lambda unit, inputs: SingularValueThreshold(1.5 * unit),
        lambda case: Observed(activations=case.compressed, outputs=case.outputs),
        lambda case, unit: Question(case.compressed, case.outputs, threshold=1.5 * unit),
    ),
    "outputs": Method(
        lambda unit, inputs: ActivationWeighted(),
        lambda case: Observed(activations=case.compressed, outputs=case.outputs),
        lambda case, unit: Question(case.compressed, case.outputs),
    ),
    "weighted": _weighted(mismatch=False, affine=False, moments=False),
    "mismatch": _weighted(mismatch=True, affine=False, moments=False),
    "affine": _weighted(mismatch=False, affine=True, moments=False),
    "affine, mismatch": _weighted(mismatch=True, affine=True, moments=False),
    "ridge": _weighted(mismatch=False, affine=False, penalty=1.0, moments=False),
    "affine, ridge": _weighted(mismatch=True, affine=True, penalty=1.0, moments=False),
    "moments: weighted": _weighted(mismatch=False, affine=False, moments=True),
    "moments: mismatch": _weighted(mismatch=True, affine=False, moments=True),
    "moments: affine": _weighted(mismatch=False, affine=True, moments=True),
    "moments: affine, mismatch": _weighted(mismatch=True, affine=True, moments=True),
    "moments: affine, ridge": _weighted(mismatch=True, affine=True, penalty=1.0, moments=True),
}
