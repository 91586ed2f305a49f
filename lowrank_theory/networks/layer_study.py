r"""What the theorems say of the layers of a trained network.

Each layer $Y = XW + \mathbf 1b^\top$ is compressed alone, at a sweep of ranks, twice: by the
truncated weights with the bias kept, and by the data-driven affine fit. Whatever is fitted is
fitted on training rows, whatever is reported is measured on held-out rows.

Both compressions project the outputs, $Z = WV_rV_r^\top$, so one orthonormal $V$ serves all ranks,
and one triangular factor of the outputs serves all norms:

$$\lVert Y - \hat Y\rVert_F = \lVert(Y - \mathbf 1c^\top)(I - V_rV_r^\top)\rVert_F,$$

with $c = b$ for the truncated weights and $c$ the mean training output for the affine fit. Errors
are relative to $\lVert Y\rVert_F$, the bias included.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray
from scipy import stats

from lowrank_theory._numerics import check_count, relative_rank_cutoff
from lowrank_theory.calibration import Calibration
from lowrank_theory.networks.perceptron import Perceptron, Split
from lowrank_theory.problems import Layer, Observed, Problem
from lowrank_theory.recovery import ActivationWeighted, LowRank, TruncatedSVD, recover
from lowrank_theory.theorems import planted_rank, price_of_ignoring_data

BATCH = 4_000
STATED_ROWS = 4_000
FALSE_ALARM = 0.01

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LayerStudy:
    r"""The layers of one network under the theorems. Everything is ready for JSON; `None` stands
    for what is infinite or does not apply.

    `rows` has one entry for each layer and rank:

    - `network`, `layer`, `shape` (inputs, outputs), `rank`, `samples` (training rows);
    - `data_agnostic_error`, `data_driven_error`, `optimal_error`: $\lVert Y - \hat
      Y\rVert_F/\lVert Y\rVert_F$ on held-out rows, for the truncated weights, the data-driven fit,
      and the best affine map of that rank, which is fitted to the held-out rows themselves;
    - `price_bound`: the bound of `price_of_ignoring_data` on `data_agnostic_error`;
    - `recovery_error` and `recovery_bound`: both sides of `planted_rank.any_noise`, relative to
      $\lVert X_BW\rVert_F$. The training rows (4,000 of them if there are more) are split at random
      in halves $A$ and $B$. What is *stated* to be the truth is $M$, the data-driven fit of half
      $A$, without a bias; the fit of half $B$ is then to recover it from $X_BW = X_BM + E$;
    - `accuracy_dense`, `accuracy_data_agnostic`, `accuracy`: held-out accuracy of the network as it
      is, with this layer alone truncated, and with this layer alone replaced by the data-driven
      fit.

    `hypotheses` says, for each layer at half its full rank, which hypotheses of the theorems hold:
    `layer`, `name`, `standing`, `holds` and `margin`. For hypotheses on laws, which data can only
    refute, the margin is `allowed - statistic`, where `allowed` is exceeded with probability about
    0.01 if they are true; elsewhere these two are `None`.
    """

    rows: tuple[Row, ...]
    hypotheses: tuple[Row, ...]

    def summary(self) -> list[Row]:
        """For each layer at half its full rank, what ignoring the data costs, and how much of that
        cost the bound explains.

        - `gain`: how many times smaller the data-driven error is than the data-agnostic one;
        - `price`: how many times the optimal error the data-agnostic one is;
        - `looseness`: how many times the data-agnostic error `price_bound` is;
        - `sentence`: the same in words.
        """
        halves = [row for row in self.rows if row["rank"] == _half(*row["shape"])]
        return [_summarised(row) for row in halves]


def study(
    name: str,
    network: Perceptron,
    split: Split,
    *,
    key: PRNGKeyArray,
    ranks: int = 8,
    progress: Callable[[str, int, int], None] | None = None,
) -> LayerStudy:
    """Compress each layer of a trained network alone, and hold the theorems against it.

    About `ranks` ranks per layer: a geometric sweep from one to the largest rank whose factors are
    smaller than the matrix, and half the full rank. `key` splits the training rows in halves (see
    `LayerStudy`); nothing else is random. `progress(name, done, total)` is called after every
    layer.

    Raises `ValueError` for images that do not fit the network, layers that are factors already,
    fewer than four training rows, or `ranks` below one.
    """
    check_count("ranks", ranks, 1)
    check_count("the number of training rows", len(split.training_images), 4)
    for index, weights in enumerate(network.weights):
        if isinstance(weights, LowRank):
            raise ValueError(
                f"`network.weights[{index}]` is low rank already; give the network with dense "
                "weights."
            )
    training = network.layer_inputs(split.training_images)
    held_out = network.layer_inputs(split.held_out_images)
    layers = len(network.weights)
    rows: list[Row] = []
    hypotheses: list[Row] = []
    for index, layer_key in enumerate(jax.random.split(key, layers)):
        rest = Perceptron(network.weights[index:], network.biases[index:])
        layer = _StudiedLayer(
            weights=np.asarray(network.weights[index], np.float64),
            bias=np.asarray(network.biases[index], np.float64),
            training=np.asarray(training[index]),
            held_out=np.asarray(held_out[index], np.float64),
        )
        shape = layer.weights.shape
        swept = _ranks(*shape, ranks)
        columns = {
            **_fitted(layer, swept),
            **_recovered(layer, swept, hypotheses, index, layer_key),
        }
        ...
        if progress is not None:
            progress(name, index + 1, layers)
    return LayerStudy(tuple(rows), tuple(hypotheses))
