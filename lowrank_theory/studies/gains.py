r"""Why data help on the layers of a trained network: the gain measured, certified, and explained by
two spectra.

All of it follows from what a layer's inputs were, $X^\top X$, and its weights; see
`paper_notes/why_data_helps.md`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray, PyTree

from lowrank_theory._engine.observer import Observer
from lowrank_theory._engine.replace import leaves_by_path
from lowrank_theory._numerics import check_count, rounding_allowance
from lowrank_theory._progress import Progress
from lowrank_theory.excitation import Excitation
from lowrank_theory.free_product import tail_shares
from lowrank_theory.studies._moments import Moments, tails
from lowrank_theory.studies._observed_layer import label, matrices
from lowrank_theory.studies.layer_rows import LayerGain, half_rank, quarter_rank, ranks_up_to
from lowrank_theory.theorems.gain_of_data import excess_bounds, split_bounds

REFERENCES = 99  # random orientations, beside which that of a layer is held


def study(
    name: str,
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    batches: Iterable[PyTree],
    *,
    ranks: int = 6,
    select: Callable[[str], bool] | None = None,
    key: PRNGKeyArray | None = None,
    progress: Progress | None = None,
) -> tuple[LayerGain, ...]:
    """What data gain at each layer of the network `function(parameters, batch)`, on these batches.

    About `ranks` ranks per layer, from one to half the full rank, and a quarter of it. With a `key`
    the orientation of each layer is held beside random ones. `progress(name, done, total)` is
    called after every leaf. Raises `ValueError` for `ranks` below one, and whatever `observe`
    raises it for.
    """
    ranks = check_count("ranks", ranks, 1)
    seen = Observer(function, parameters, select).observe(batches)
    leaves = leaves_by_path(parameters)
    paths = [path for path in seen.views if path not in seen.not_followed]
    rows: list[LayerGain] = []
    for done, path in enumerate(paths, start=1):
        for number, weights, (inputs,) in matrices(path, leaves[path], [seen]):
            one = None if key is None else jax.random.fold_in(key, len(rows))
            at = sweep(weights.shape, ranks)
            rows += layer_gains(name, label(path, number), weights, Moments.of(inputs), at, one)
        if progress is not None:
            progress(name, done, len(paths))
    return tuple(rows)


def sweep(shape: tuple[int, ...], count: int) -> list[int]:
    """About `count` ranks from one to half the full rank, and a quarter of it."""
    return ranks_up_to(half_rank(*shape), count, quarter_rank(*shape))


def layer_gains(
    network: str,
    layer: str,
    weights: Float[np.ndarray, "inputs outputs"],
    inputs: Moments,
    ranks: list[int],
    key: PRNGKeyArray | None,
) -> Iterator[LayerGain]:
    """One layer at each of the ranks, uncentred and centred."""
    for centred, gram in ((False, inputs.about(0.0)), (True, inputs.scatter)):
        yield from _gains(network, layer, weights, gram, ranks, key, centred=centred)


def _gains(
    network: str,
    layer: str,
    weights: Float[np.ndarray, "inputs outputs"],
    gram: Float[np.ndarray, "inputs inputs"],
    ranks: list[int],
    key: PRNGKeyArray | None,
    *,
    centred: bool,
) -> Iterator[LayerGain]:
    excited = Excitation.of(gram, weights)
    total, size = float(excited.optimum([0])[0]), weights.shape[0]
    near = float(rounding_allowance(np.sum(weights**2) * np.trace(gram), *weights.shape))
    if total <= near:
        return  # a layer that gives nothing
    squares = np.asarray(excited.values, np.float64) ** 2
    spectrum = np.pad(squares, (0, size - squares.size))
    law = np.asarray(tail_shares(np.asarray(excited.input_values) ** 2, spectrum, ranks))
    rest, largest = tails(squares), float(excited.input_values[0]) ** 2
    splits = np.asarray(split_bounds(gram, weights))
    excess = np.asarray(excess_bounds(gram, weights, ranks)[0], np.float64)
    loss, optimum, most, expected = (
        np.asarray(each(ranks), np.float64)
        for each in (excited.loss, excited.optimum, excited.most, excited.expected)
    )
    chance = None
    if key is not None:
        chance = excited.p_values(ranks, references=REFERENCES, key=key)
    for place, rank in enumerate(ranks):
        attainable = max(float(optimum[place]), 0.0)
        resolved = attainable > near
        gain = float(loss[place]) / attainable if resolved else None
        explained = float(rest[rank] / rest[0] / law[place]) if law[place] > 0 else None
        yield LayerGain(
            network=network,
            layer=layer,
            shape=(weights.shape[0], weights.shape[1]),
            rank=rank,
            centred=centred,
            gain=gain,
            certified_by_split=_least_gain(loss[place], splits[rank], near),
            certified_by_angles=_least_gain(loss[place], loss[place] - excess[place], near),
            explained=explained,
            alignment=gain / explained if gain is not None and explained else None,
            output_excitation=total / float(excited.scale),
            excitation=float(loss[place] / expected[place]) if expected[place] > 0 else None,
            above=None if chance is None else float(chance.above[place]),
            below=None if chance is None else float(chance.below[place]),
            error=float(np.sqrt(loss[place] / total)),
            orientation_bound=float(np.sqrt(most[place] / total)),
            weight_tail_bound=float(np.sqrt(largest * rest[rank] / total)),
        )


def _least_gain(loss: float, optimum: float, near: float) -> float | None:
    """What the gain is at least, given what the optimum is at most."""
    return max(1.0, float(loss / optimum)) if optimum > near else None
