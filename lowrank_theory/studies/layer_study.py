"""What the theorems say of the layers of a trained network.

Each layer multiplies by a matrix, and is compressed alone, at a sweep of ranks. What is fitted is
fitted on calibration batches, what is reported is measured on held-out ones, and all of it follows
from second moments, of which no row is kept.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray, PyTree

from lowrank_theory._engine.observation import Observation
from lowrank_theory._engine.observer import Observer
from lowrank_theory._engine.replace import leaves_by_path
from lowrank_theory._numerics import check_count
from lowrank_theory._progress import Progress
from lowrank_theory.calibration import Calibration
from lowrank_theory.studies._at_ranks import at_ranks
from lowrank_theory.studies._layer_data import described
from lowrank_theory.studies._layer_data import hypotheses as hypotheses_of
from lowrank_theory.studies._observed_layer import ObservedLayer, gram_eigenvalues, matrices
from lowrank_theory.studies.gains import layer_gains, sweep
from lowrank_theory.studies.layer_rows import (
    LayerAtRank,
    LayerData,
    LayerGain,
    LayerHypothesis,
    LayerSummary,
    at_half_rank,
)


@dataclasses.dataclass(frozen=True)
class LayerStudy:
    """The layers of one network under the theorems, in the order of execution; what their columns
    mean is said in `layer_rows`. `plain` makes it ready for JSON.

    - `rows`: one for each layer and rank;
    - `layers`: one for each layer;
    - `gains`: for each layer and rank, why data help there;
    - `hypotheses`: for each layer at half its full rank, which hypotheses of the theorems hold;
    - `not_followed`: of every other leaf that was selected, why it was not studied.
    """

    rows: tuple[LayerAtRank, ...]
    layers: tuple[LayerData, ...]
    gains: tuple[LayerGain, ...]
    hypotheses: tuple[LayerHypothesis, ...]
    not_followed: Mapping[str, tuple[str, ...]]

    def summary(self) -> list[LayerSummary]:
        """Each layer at half its full rank."""
        return [_summarised(row) for row in at_half_rank(self.rows)]


def study(
    name: str,
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    calibration_batches: Iterable[PyTree],
    held_out_batches: Iterable[PyTree],
    *,
    ranks: int = 8,
    select: Callable[[str], bool] | None = None,
    gains: bool = True,
    key: PRNGKeyArray | None = None,
    progress: Progress | None = None,
) -> LayerStudy:
    """Compress each layer of a trained network alone, and hold the theorems against it.

    The network is `function(parameters, batch)`; `observe` finds its layers, of which those are
    studied whose path `select` accepts. Of the calibration batches every second, from the first on,
    is half A, the others are half B: each should be a fair sample.

    About `ranks` ranks per layer: a geometric sweep from one to the largest rank whose factors are
    smaller than the matrix, and half the full rank. Why data help is said unless `gains` is false,
    and with a `key` the orientation of each layer is held beside random ones. `progress(name, done,
    total)` is called after every layer.

    Raises `ValueError` for fewer than two calibration batches, `ranks` below one, and whatever
    `observe` raises it for.
    """
    ranks = check_count("ranks", ranks, 1)
    if not isinstance(calibration_batches, Sequence) or len(calibration_batches) < 2:
        got = type(calibration_batches).__name__
        if isinstance(calibration_batches, Sequence):
            got += f" of {len(calibration_batches)}"
        raise ValueError(
            f"`calibration_batches` must be a list of at least two batches, to be halved; got {got}"
        )
    observer = Observer(function, parameters, select)
    order = tuple(observer.survey(calibration_batches[0]))
    seen = [
        _observed(observer, source, batches)
        for source, batches in (
            ("calibration_batches[::2]", calibration_batches[::2]),
            ("calibration_batches[1::2]", calibration_batches[1::2]),
            ("held_out_batches", held_out_batches),
        )
    ]
    not_followed = {path: why for each in seen for path, why in each.not_followed.items()}
    leaves = leaves_by_path(parameters)
    studied = {path: leaves[path] for path in order if path not in not_followed}
    total = sum(len(seen[0].slices(path)) for path in studied)
    rows: list[LayerAtRank] = []
    found: list[LayerData] = []
    gained: list[LayerGain] = []
    hypotheses: list[LayerHypothesis] = []
    for done, layer in enumerate(_layers(studied, seen), start=1):
        rows += at_ranks(name, layer, ranks)
        found.append(described(name, layer))
        hypotheses += hypotheses_of(layer)
        if gains:
            one = None if key is None else jax.random.fold_in(key, done)
            at = sweep(layer.weights.shape, ranks)
            gained += layer_gains(name, layer.name, layer.weights, layer.inputs, at, one)
        if progress is not None:
            progress(name, done, total)
    return LayerStudy(tuple(rows), tuple(found), tuple(gained), tuple(hypotheses), not_followed)


def _observed(observer: Observer, source: str, batches: Iterable[PyTree]) -> Observation:
    try:
        return observer.observe(batches)
    except ValueError as error:
        raise ValueError(f"In `{source}`: {error}") from error


def _layers(leaves: dict[str, Any], seen: Sequence[Observation]) -> Iterator[ObservedLayer]:
    """The matrices of these leaves, and what each saw in the three passes."""
    known: dict[int, Float[np.ndarray, " inputs"]] = {}

    def eigenvalues(calibration: Calibration) -> Float[np.ndarray, " inputs"]:
        """Computed once for all weights that share their inputs."""
        if id(calibration) not in known:
            known[id(calibration)] = gram_eigenvalues(calibration)
        return known[id(calibration)]

    for path, leaf in leaves.items():
        for number, weights, saw in matrices(path, leaf, seen):
            yield ObservedLayer.of(path, number, weights, saw, eigenvalues)


# --- in one sentence ------------------------------------------------------------------------------


def _summarised(row: LayerAtRank) -> LayerSummary:
    agnostic, driven, bound = row.data_agnostic_error, row.data_driven_error, row.price_bound
    gain, price = _ratio(agnostic, driven), _ratio(agnostic, row.optimal_error)
    gain_of_bias = _ratio(agnostic, row.data_agnostic_new_bias_error)
    looseness = _ratio(bound, agnostic)
    inputs, outputs = row.shape
    sentence = f"{row.layer} ({inputs} x {outputs}) at rank {row.rank}: "
    if gain is None or gain_of_bias is None or looseness is None or bound is None:
        sentence += "an error vanishes, so there is nothing to compare."
    else:
        vacuous = ", larger than the outputs themselves" if bound > 1 else ""
        sentence += (
            f"the data-driven error {driven:.3g} is {gain:.3g} times smaller than the "
            f"data-agnostic {agnostic:.3g} (a new bias alone gives {gain_of_bias:.3g} times); the "
            f"bound on the data-agnostic error, {bound:.3g}{vacuous}, is {looseness:.3g} times "
            "what is realised."
        )
    return LayerSummary(
        network=row.network,
        layer=row.layer,
        rank=row.rank,
        gain=gain,
        gain_of_bias=gain_of_bias,
        price=price,
        looseness=looseness,
        sentence=sentence,
    )


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None
