"""What the theorems say of the layers of a trained network.

Each layer multiplies by a matrix, and is compressed alone, at a sweep of ranks. What is fitted is
fitted on calibration batches, what is reported is measured on held-out ones, and all of it follows
from second moments, of which no row is kept.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, PyTree

from lowrank_theory._engine.listener import Listener
from lowrank_theory._engine.observation import Observation
from lowrank_theory._engine.replace import leaves_by_path
from lowrank_theory._numerics import check_count
from lowrank_theory.calibration import Calibration
from lowrank_theory.studies import _layer
from lowrank_theory.studies._layer import Layer, Row
from lowrank_theory.studies._layer import half_rank as half_rank


@dataclasses.dataclass(frozen=True)
class LayerStudy:
    r"""The layers of one network under the theorems. Everything is ready for JSON; `None` stands
    for what is infinite or does not apply.

    A layer $Y = XW$ is the matrix of one leaf, or one of the stack that a leaf is: `layer` is its
    path, with the number of the slice behind it. Layers come in the order of execution. A bias
    counts nowhere.

    `rows` has one entry for each layer and rank:

    - `network`, `layer`, `shape` (inputs, outputs), `rank`, `samples` (calibration rows);
    - `data_agnostic_error`, `diagonal_error`, `data_driven_error`, `optimal_error`: $\lVert Y -
      \hat Y\rVert_F/\lVert Y\rVert_F$ on held-out rows, for the truncated weights, the same with
      inputs scaled by their root mean squares (the formula of `published.DiagonalQERA`), the
      data-driven affine fit, and the best affine map of that rank, which is fitted to the held-out
      rows themselves (where these are few, more than they can tell);
    - `data_agnostic_new_bias_error`: the truncated weights with the shift that suits the data. Part
      of what the data-driven fit gains, it gains by its shift alone;
    - `price_bound`: $\lVert X\rVert(\sum_{i>r}s_i(W)^2)^{1/2}$, which bounds `data_agnostic_error`
      (`price_of_ignoring_data.weight_tail`, of the two forms never the larger);
    - `recovery_error` and `recovery_bound`: both sides of `planted_rank.any_noise` on half $B$ of
      the calibration, relative to $\lVert X_BW\rVert_F$. What is *stated* to be the truth is $M$,
      the data-driven linear fit of half $A$; that of half $B$ is then to recover it from $X_BW =
      X_BM + E$;
    - `samples_needed` and `samples_sufficient`: the rows after which the squared error exceeds the
      least by 1 % to first order (`calibration_size.leading_constant`), and by at most 1 % with
      probability 0.95 (`calibration_size.relative`), if rows are independent and Gaussian with the
      held-out covariance, and if the weights do not depend on them: those of training rows do, and
      for these the numbers promise nothing;
    - `certified`: whether the numerical certificate of the data-driven fit holds.

    `layers` has one entry for each layer:

    - `network`, `layer`, `path`, `slice`, `shape`, `samples`, `held_out_samples`;
    - `activations` and `preactivations`: `index` and `share`, the eigenvalues of $X^\top X$ and
      $W^\top X^\top XW$ (held out) over their sum, at up to 60 indices that start at 1, and
      `participation_ratio`, $(\operatorname{tr}G)^2/\operatorname{tr}G^2$; `mean_share`: the share
      of $\lVert X\rVert_F^2$ that is due to the mean input;
    - `condition_number` of the held-out $X$;
    - `resolution`: the relative error below which there is but rounding;
    - `effective_samples`: how many independent Gaussian rows would let the covariances of the
      outputs differ between the halves as much as they do; a rough estimate, at most `samples`;
    - `residual`: the singular values of $E$ at half rank, beside the law of Marchenko and Pastur
      (1967) of a white one. `edge_ratio`: the largest over the edge of the law; `distance` of
      Kolmogorov and Smirnov; `position`, `singular_value`, `marchenko_pastur`: up to 60 of them by
      their place among all, 0 for the largest to 1, and what the law has there. `None` where
      nothing is left.

    `hypotheses` says, for each layer at half its full rank, which hypotheses of the theorems hold:
    `layer`, `statement`, `name`, `standing`, `holds` and `margin`. For hypotheses on laws, which
    data can only refute, the margin is `allowed - statistic`, where `allowed` is exceeded with
    probability about 0.01 if they are true; elsewhere these two are `None`. Those of independence
    are *trusted*: no number shows them, nobody states them of a trained layer, and they are listed
    as not holding.

    `not_followed` says of every other leaf that was selected why it was not studied.
    """

    rows: tuple[Row, ...]
    layers: tuple[Row, ...]
    hypotheses: tuple[Row, ...]
    not_followed: Mapping[str, tuple[str, ...]]

    def summary(self) -> list[Row]:
        """For each layer at half its full rank, what ignoring the data costs, and how much of that
        cost the bound explains.

        - `gain`: how many times smaller the data-driven error is than the data-agnostic one, and
          `gain_of_bias`: how much of that a new bias alone gives to the truncated weights;
        - `price`: how many times the optimal error the data-agnostic one is;
        - `looseness`: how many times the data-agnostic error `price_bound` is;
        - `sentence`: the same in words.
        """
        halves = [row for row in self.rows if row["rank"] == half_rank(*row["shape"])]
        return [_summarised(row) for row in halves]


def study(
    name: str,
    function: Callable[[Any, Any], Any],
    parameters: PyTree,
    calibration_batches: Iterable[PyTree],
    held_out_batches: Iterable[PyTree],
    *,
    ranks: int = 8,
    select: Callable[[str], bool] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> LayerStudy:
    """Compress each layer of a trained network alone, and hold the theorems against it.

    The network is `function(parameters, batch)`; `observe` finds its layers, of which those are
    studied whose path `select` accepts. Of the calibration batches every second, from the first on,
    is half A, the others are half B: each should be a fair sample.

    About `ranks` ranks per layer: a geometric sweep from one to the largest rank whose factors are
    smaller than the matrix, and half the full rank. `progress(name, done, total)` is called after
    every layer.

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
    listener = Listener(function, parameters, select)
    order = tuple(listener.survey(calibration_batches[0]))
    seen = [
        _observed(listener, source, batches)
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
    rows: list[Row] = []
    found: list[Row] = []
    hypotheses: list[Row] = []
    for done, layer in enumerate(_layers(studied, seen), start=1):
        here = {"network": name, "layer": layer.name, "shape": list(layer.weights.shape)}
        here["samples"] = int(layer.training.count)
        rows += [here | row for row in _layer.at_ranks(layer, ranks)]
        found.append(here | _layer.described(layer))
        hypotheses += [{"layer": layer.name} | row for row in _layer.hypotheses(layer)]
        if progress is not None:
            progress(name, done, total)
    return LayerStudy(tuple(rows), tuple(found), tuple(hypotheses), not_followed)


def _observed(listener: Listener, source: str, batches: Iterable[PyTree]) -> Observation:
    try:
        return listener.observe(batches)
    except ValueError as error:
        raise ValueError(f"In `{source}`: {error}") from error


def _layers(leaves: dict[str, Any], seen: Sequence[Observation]) -> Iterator[Layer]:
    """The matrices of these leaves, and what each saw in the three passes."""
    known: dict[int, Float[np.ndarray, " inputs"]] = {}

    def energies(calibration: Calibration) -> Float[np.ndarray, " inputs"]:
        """Computed once for all weights that share their inputs."""
        if id(calibration) not in known:
            known[id(calibration)] = _layer.energies_of(calibration)
        return known[id(calibration)]

    for path, leaf in leaves.items():
        view = seen[0].views[path]
        matrices = view.matrix(np.asarray(leaf, np.float64))
        slices = zip(
            matrices.reshape(-1, *matrices.shape[-2:]),
            *(each.slices(path) for each in seen),
            strict=True,
        )
        for number, (weights, half_a, half_b, held_out) in enumerate(slices):
            place = number if view.stack else None
            yield Layer.of(path, place, weights, (half_a, half_b, held_out), energies)


# --- in one sentence ------------------------------------------------------------------------------


def _summarised(row: Row) -> Row:
    agnostic, driven = row["data_agnostic_error"], row["data_driven_error"]
    gain, price = _ratio(agnostic, driven), _ratio(agnostic, row["optimal_error"])
    gain_of_bias = _ratio(agnostic, row["data_agnostic_new_bias_error"])
    looseness = _ratio(row["price_bound"], agnostic)
    inputs, outputs = row["shape"]
    sentence = f"{row['layer']} ({inputs} x {outputs}) at rank {row['rank']}: "
    if gain is None or gain_of_bias is None or looseness is None:
        sentence += "an error vanishes, so there is nothing to compare."
    else:
        vacuous = ", larger than the outputs themselves" if row["price_bound"] > 1 else ""
        sentence += (
            f"the data-driven error {driven:.3g} is {gain:.3g} times smaller than the "
            f"data-agnostic {agnostic:.3g} (a new bias alone gives {gain_of_bias:.3g} times); the "
            "bound on the data-agnostic error, "
            f"{row['price_bound']:.3g}{vacuous}, is {looseness:.3g} times what is realised."
        )
    return {
        "network": row["network"],
        "layer": row["layer"],
        "rank": row["rank"],
        "gain": gain,
        "gain_of_bias": gain_of_bias,
        "price": price,
        "looseness": looseness,
        "sentence": sentence,
    }


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None
