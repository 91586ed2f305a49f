"""A layer of a network, and the second moments of what it saw. All is NumPy, in float64."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lowrank_theory._engine.observation import Observation
from lowrank_theory._numerics import relative_rank_cutoff, rounding_allowance
from lowrank_theory.calibration import Calibration
from lowrank_theory.studies._halves import Stated
from lowrank_theory.studies._moments import Moments, descending_eigenvalues
from lowrank_theory.studies._residual import Residual
from lowrank_theory.studies.layer_rows import half_rank


@dataclasses.dataclass(frozen=True)
class ObservedLayer:
    r"""A matrix $W$ and what it multiplied: the two halves of the calibration, and held-out rows.

    The outputs are told in the coordinates of the smaller side: $W = CF^\top$ with the `core` $C$
    (inputs, side) and the orthonormal `frame` $F$ (outputs, side), so norms are those of $XC$.

    - `inputs`: the held-out rows, and `eigenvalues`: those of $X^\top X$, largest first;
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
    eigenvalues: Float[np.ndarray, " inputs"]
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
        eigenvalues: Callable[[Calibration], Float[np.ndarray, " inputs"]],
    ) -> "ObservedLayer":
        r"""The layer that has seen these: half A, half B, held-out rows. `eigenvalues` gives those
        of $X^\top X$.
        """
        core, frame = weights, np.eye(weights.shape[1])
        if weights.shape[1] > weights.shape[0]:
            frame, triangle = np.linalg.qr(weights.T)
            core = triangle.T
        half_a, half_b, held_out = seen
        training = half_a.merge(half_b)
        outputs_a, outputs_b, outputs = (Moments.of(each).through(core) for each in seen)
        return ObservedLayer(
            path,
            number,
            weights,
            core,
            frame,
            training,
            Moments.of(held_out),
            eigenvalues(held_out),
            resolved_dimension(eigenvalues(half_b)),
            outputs_a,
            outputs_b,
            outputs,
            np.asarray(training.mean) @ core,
        )

    @property
    def name(self) -> str:
        """The path, with the number of the slice."""
        return label(self.path, self.slice)

    @property
    def half_rank(self) -> int:
        """Half the full rank."""
        return half_rank(*self.weights.shape)

    @property
    def samples(self) -> int:
        """Rows of the calibration."""
        return int(self.training.count)

    @functools.cached_property
    def output_eigenvalues(self) -> Float[np.ndarray, " side"]:
        """Those of the scatter of the held-out outputs about their mean, largest first."""
        return np.maximum(descending_eigenvalues(self.outputs.scatter), 0)

    @functools.cached_property
    def stated(self) -> Stated:
        """What half A says of half B."""
        shorter = min(self.dimension, self.weights.shape[1])
        return Stated.of(self.outputs_a.about(0.0), self.outputs_b.about(0.0), shorter)

    @functools.cached_property
    def residual(self) -> Residual | None:
        """What the truth that half A states leaves of half B, at half the full rank."""
        noise = self.stated.noise(self.half_rank)
        return Residual.of(noise, self.dimension, self.weights.shape[1], self.half_rank)

    @property
    def rounding(self) -> float:
        """What rounding may add to a squared norm of held-out outputs."""
        scale = np.sum(self.core**2) * np.sum(self.eigenvalues)
        return float(rounding_allowance(scale, *self.core.shape))


def label(path: str, number: int | None) -> str:
    """The path of a leaf, with the number of the slice."""
    return path if number is None else f"{path} #{number}"


def matrices(
    path: str, leaf: Any, seen: Sequence[Observation]
) -> Iterator[tuple[int | None, Float[np.ndarray, "inputs outputs"], tuple[Any, ...]]]:
    """The matrices of a leaf, with their numbers where it is a stack, and what each saw in these
    passes.
    """
    view = seen[0].views[path]
    stack = view.matrix(np.asarray(leaf, np.float64))
    slices = zip(
        stack.reshape(-1, *stack.shape[-2:]), *(each.slices(path) for each in seen), strict=True
    )
    for number, (weights, *saw) in enumerate(slices):
        yield number if view.stack else None, weights, tuple(saw)


def gram_eigenvalues(seen: Calibration) -> Float[np.ndarray, " inputs"]:
    r"""The eigenvalues of $X^\top X$, largest first."""
    return np.maximum(descending_eigenvalues(Moments.of(seen).about(0.0)), 0)


def resolved_dimension(eigenvalues: Float[np.ndarray, " size"]) -> int:
    """How many eigenvalues of a Gram are not rounding."""
    return int(np.sum(eigenvalues > gram_cutoff(eigenvalues.size) * eigenvalues[0]))


def gram_cutoff(size: int) -> float:
    """The ratio to the largest below which an eigenvalue of a Gram is rounding."""
    return relative_rank_cutoff((size, size)) * size
