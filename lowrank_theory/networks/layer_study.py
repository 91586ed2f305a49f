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

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray
from scipy import stats

from lowrank_theory._numerics import check_count, relative_rank_cutoff
from lowrank_theory.calibration import Calibration
from lowrank_theory.networks.perceptron import Perceptron, Split
from lowrank_theory.problems import Layer, Observed, Problem
from lowrank_theory.recovery import (
    ActivationWeighted,
    EveryRank,
    LowRank,
    TruncatedSVD,
    every_rank,
    recover,
)
from lowrank_theory.theorems import Hypothesis, Standing, planted_rank, price_of_ignoring_data

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
    - `data_agnostic_new_bias_error`: the truncated weights with the bias that suits the data. Part
      of what the data-driven fit gains, it gains by its new bias alone;
    - `price_bound`: the bound of `price_of_ignoring_data` on `data_agnostic_error`;
    - `recovery_error` and `recovery_bound`: both sides of `planted_rank.any_noise`, relative to
      $\lVert X_BW\rVert_F$. The training rows (4,000 of them if there are more) are split at random
      in halves $A$ and $B$. What is *stated* to be the truth is $M$, the data-driven fit of half
      $A$, without a bias; the fit of half $B$ is then to recover it from $X_BW = X_BM + E$;
    - `accuracy_dense`, `accuracy_data_agnostic`, `accuracy`: held-out accuracy of the network as it
      is, with this layer alone truncated, and with this layer alone replaced by the data-driven
      fit.

    `hypotheses` says, for each layer at half its full rank, which hypotheses of the theorems hold:
    `layer`, `statement`, `name`, `standing`, `holds` and `margin`. For hypotheses on laws, which
    data can only refute, the margin is `allowed - statistic`, where `allowed` is exceeded with
    probability about 0.01 if they are true; elsewhere these two are `None`.
    """

    rows: tuple[Row, ...]
    hypotheses: tuple[Row, ...]

    def summary(self) -> list[Row]:
        """For each layer at half its full rank, what ignoring the data costs, and how much of that
        cost the bound explains.

        - `gain`: how many times smaller the data-driven error is than the data-agnostic one, and
          `gain_of_bias`: how much of that a new bias alone gives to the truncated weights;
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
    if len(split.training_images) < 4:
        raise ValueError(
            f"`split.training_images` has {len(split.training_images)} rows, to be split in "
            "halves. Give at least 4."
        )
    for index, weights in enumerate(network.weights):
        if isinstance(weights, LowRank):
            raise ValueError(
                f"`network.weights[{index}]` is `LowRank` already. Give the network as it was "
                "before compression."
            )
    training = network.layer_inputs(split.training_images)
    held_out = network.layer_inputs(split.held_out_images)
    dense = float(network.accuracy(split.held_out_images, split.held_out_labels))
    rows: list[Row] = []
    hypotheses: list[Row] = []
    for index, layer_key in enumerate(jax.random.split(key, len(network.weights))):
        layer = _StudiedLayer(
            weights=np.asarray(network.weights[index], np.float64),
            bias=np.asarray(network.biases[index], np.float64),
            training=np.asarray(training[index]),
            held_out=np.asarray(held_out[index], np.float64),
        )
        inputs, outputs = layer.weights.shape
        swept = _ranks(inputs, outputs, ranks)
        agnostic = every_rank(Observed(weights=layer.weights, bias=layer.bias), TruncatedSVD())
        driven = _data_driven(layer, swept[-1])
        stated = _stated(layer, swept[-1], layer_key)
        errors = _errors(layer, agnostic, driven, swept)
        rest = Perceptron(network.weights[index:], network.biases[index:])
        seen, labels = held_out[index], split.held_out_labels
        for rank in swept:
            truncated = _with_first(rest, agnostic, rank)
            refitted = _with_first(rest, driven, rank)
            rows.append(
                {
                    "network": name,
                    "layer": index,
                    "shape": [inputs, outputs],
                    "rank": rank,
                    "samples": len(layer.training),
                    **errors[rank],
                    **stated.recovery(rank),
                    "accuracy_dense": dense,
                    "accuracy_data_agnostic": float(truncated.accuracy(seen, labels)),
                    "accuracy": float(refitted.accuracy(seen, labels)),
                }
            )
        hypotheses += [{"layer": index} | each for each in _hypotheses(layer, stated)]
        if progress is not None:
            progress(name, index + 1, len(network.weights))
    return LayerStudy(tuple(rows), tuple(hypotheses))


@dataclasses.dataclass(frozen=True)
class _StudiedLayer:
    """A dense layer and the rows that it saw; NumPy, in float64 but for the training rows."""

    weights: Float[np.ndarray, "inputs outputs"]
    bias: Float[np.ndarray, " outputs"]
    training: Float[np.ndarray, "training inputs"]
    held_out: Float[np.ndarray, "held_out inputs"]


def _with_first(network: Perceptron, layers: EveryRank, rank: int) -> Perceptron:
    """The network with the layer of this rank in the place of its first, in its own dtype."""
    recovery = layers.at(rank)
    left, right, bias = recovery.factors.left, recovery.factors.right, recovery.bias
    dtype = network.biases[0].dtype
    factors = LowRank(np.asarray(left, dtype), np.asarray(right, dtype))
    return network.with_layer(0, factors, np.asarray(bias, dtype))


def _ranks(inputs: int, outputs: int, count: int) -> list[int]:
    """A geometric sweep from one to the largest rank that saves storage, and half the full one."""
    largest = max(1, math.ceil(inputs * outputs / (inputs + outputs)) - 1)
    half = _half(inputs, outputs)
    sweep = np.geomspace(1, max(largest, half), count).round().astype(int).tolist()
    return sorted({*sweep, half})


def _half(inputs: int, outputs: int) -> int:
    return max(1, min(inputs, outputs) // 2)


def _data_driven(layer: _StudiedLayer, rank: int) -> EveryRank:
    """The affine fit to the training rows: from their streamed moments where these resolve it up to
    this rank.
    """
    seen = Calibration.empty(layer.training.shape[1])
    for start in range(0, len(layer.training), BATCH):
        seen = seen.update(layer.training[start : start + BATCH])
    observed = Observed(weights=layer.weights, bias=layer.bias, calibration=seen)
    layers = every_rank(observed, ActivationWeighted())
    if bool(layers.certificates.certified[rank]):
        return layers
    rows = Observed(weights=layer.weights, bias=layer.bias, activations=layer.training)
    return every_rank(rows, ActivationWeighted())


def _errors(
    layer: _StudiedLayer, agnostic: EveryRank, driven: EveryRank, ranks: list[int]
) -> dict[int, Row]:
    r"""The errors on held-out rows, and the bound on the first of them.

    The bound is that of `weight_tail`, $\lVert X\rVert\,(\sum_{i>r}s_i(W)^2)^{1/2}$: of the two
    statements it is never the larger (paper_notes/price_of_ignoring_data.md).
    """
    linear = layer.held_out @ layer.weights
    outputs = linear + layer.bias
    norm = float(np.linalg.norm(outputs))
    agnostic_right, driven_right = (
        np.asarray(each.factors.right, np.float64) for each in (agnostic, driven)
    )
    driven_triangle = _triangle(outputs - np.asarray(driven.bias))
    agnostic_triangle = _triangle(linear)
    best = _singular_values(outputs - outputs.mean(axis=0))
    activations_norm = _singular_values(layer.held_out)[0]
    weights = _singular_values(layer.weights)

    def relative(values: np.ndarray) -> float | None:
        return float(np.linalg.norm(values)) / norm if norm > 0 else None

    return {
        rank: {
            "data_agnostic_error": relative(
                _projected_out(agnostic_triangle, agnostic_right[:rank])
            ),
            "data_agnostic_new_bias_error": relative(
                _projected_out(driven_triangle, agnostic_right[:rank])
            ),
            "data_driven_error": relative(_projected_out(driven_triangle, driven_right[:rank])),
            "optimal_error": relative(best[rank:]),
            "price_bound": relative(activations_norm * weights[rank:]),
        }
        for rank in ranks
    }


@dataclasses.dataclass(frozen=True)
class _Stated:
    r"""What the fit of half A is stated to be for half B.

    A triangular factor stands for the rows of $X_B$: it leaves both sides of the theorem as they
    are. `truth` is $WV$ and $V^\top$ of half A, `fit` is $V^\top$ of half B.
    """

    activations: Float[np.ndarray, "rows inputs"]
    outputs: Float[np.ndarray, "rows outputs"]
    truth: tuple[Float[np.ndarray, "inputs rank"], Float[np.ndarray, "rank outputs"]]
    fit: Float[np.ndarray, "rank outputs"]

    def noise(self, rank: int) -> Float[np.ndarray, "rows outputs"]:
        """$E = X_BW - X_BM$, which lies in the columns of $X_B$: $PE = E$."""
        return _projected_out(self.outputs, self.truth[1][:rank])

    def recovery(self, rank: int) -> Row:
        """Both sides of `planted_rank.any_noise`, relative to the outputs."""
        norm = float(np.linalg.norm(self.outputs))
        noise = self.noise(rank)
        error = np.linalg.norm(noise - _projected_out(self.outputs, self.fit[:rank]))
        bound = math.sqrt(5) * np.linalg.norm(_singular_values(noise)[:rank])
        return {
            "recovery_error": float(error) / norm if norm > 0 else None,
            "recovery_bound": float(bound) / norm if norm > 0 else None,
        }

    def problem(self, weights: np.ndarray, rank: int) -> Problem:
        """The statement as a problem, of which the theorems can be asked."""
        left, right = self.truth
        observed = Observed(weights=weights, activations=self.activations, outputs=self.outputs)
        return Problem.stated(observed, left[:, :rank] @ right[:rank], rank)


def _stated(layer: _StudiedLayer, rank: int, key: PRNGKeyArray) -> _Stated:
    drawn = np.asarray(jax.random.permutation(key, len(layer.training)))[:STATED_ROWS]
    halves = np.split(layer.training[drawn[: len(drawn) // 2 * 2]].astype(np.float64), 2)
    triangles = [_triangle(half) for half in halves]
    truth, fit = (
        recover(Observed(weights=layer.weights, activations=each), rank, ActivationWeighted())
        for each in triangles
    )
    return _Stated(
        triangles[1],
        triangles[1] @ layer.weights,
        (np.asarray(truth.factors.left), np.asarray(truth.factors.right)),
        np.asarray(fit.factors.right),
    )


def _triangle(rows: np.ndarray) -> np.ndarray:
    r"""$T$ with $T^\top T = A^\top A$: the norms and singular values of $AB$ are those of $TB$."""
    return np.asarray(np.linalg.qr(rows, mode="r"))


def _singular_values(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.svd(_triangle(matrix), compute_uv=False)


def _projected_out(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    r"""$A(I - V_rV_r^\top)$ for orthonormal rows $V_r^\top$."""
    return matrix - (matrix @ right.T) @ right


# --- which hypotheses hold ------------------------------------------------------------------------


def _hypotheses(layer: _StudiedLayer, stated: _Stated) -> list[Row]:
    """What `LayerStudy.hypotheses` says of one layer."""
    rank = _half(*layer.weights.shape)
    seen = Layer(Observed(weights=layer.weights, activations=_triangle(layer.held_out)), rank)
    bounds = {
        "price_of_ignoring_data.condition_number": (
            price_of_ignoring_data.condition_number.bound(seen)
        ),
        "planted_rank.any_noise": planted_rank.any_noise.bound(stated.problem(layer.weights, rank)),
    }
    checked = [_checked(name, each) for name, bound in bounds.items() for each in bound.hypotheses]
    return checked + _gaussian_noise(stated, rank) + _gaussian_rows(layer.held_out)


def _gaussian_noise(stated: _Stated, rank: int) -> list[Row]:
    r"""What i.i.d. Gaussian noise would make of the $q \times K$ coordinates of $PE$.

    With $\hat\sigma = \lVert PE\rVert_F/\sqrt{qK}$ and $t = \sqrt{2\ln(1/\delta)}$: the largest
    singular value is at most $\hat\sigma(\sqrt q + \sqrt K + t)$ (Davidson and Szarek 2001), and
    the norms of the columns, each about normal with relative deviation $1/\sqrt{2q}$, spread by at
    most $(1 + t/\sqrt{K-1})/\sqrt{2q}$. Both to first order in $1/q$.
    """
    noise = stated.noise(rank)
    values = _singular_values(stated.activations)
    q = int(np.sum(values > relative_rank_cutoff(stated.activations.shape) * values[0]))
    outputs = noise.shape[1]
    t = math.sqrt(2 * math.log(1 / FALSE_ALARM))
    scale = float(np.linalg.norm(noise)) / math.sqrt(max(q, 1) * outputs)
    if scale == 0 or outputs == 1:
        return []
    edge = math.sqrt(q) + math.sqrt(outputs)
    columns = np.linalg.norm(noise, axis=0)
    return [
        _refutable(
            "planted_rank.gaussian",
            "the noise is i.i.d. Gaussian: its largest singular value",
            float(_singular_values(noise)[0]) / (scale * edge),
            1 + t / edge,
        ),
        _refutable(
            "planted_rank.gaussian",
            "the noise is i.i.d. Gaussian: the spread of its columns",
            float(np.std(columns, ddof=1) / np.mean(columns)),
            (1 + t / math.sqrt(outputs - 1)) / math.sqrt(2 * q),
        ),
    ]


def _gaussian_rows(rows: np.ndarray) -> list[Row]:
    r"""What Gaussian rows would make of the median $|$excess kurtosis$|$ of the inputs that vary.

    Each is about normal with variance $24/m$. If half of $|g_i|$, $g_i \sim N(0, 1)$, exceed $x$,
    however they depend on one another, then with probability at most $2P(|g| > x)$ (Markov).
    """
    varying = rows[:, np.ptp(rows, axis=0) > 0]
    if not varying.size:
        return []
    return [
        _refutable(
            "calibration_size.relative",
            "the rows are Gaussian: the kurtosis of the inputs",
            float(np.median(np.abs(stats.kurtosis(varying, axis=0)))),
            float(stats.norm.isf(FALSE_ALARM / 4)) * math.sqrt(24 / len(rows)),
        )
    ]


def _checked(statement: str, hypothesis: Hypothesis) -> Row:
    return {
        "statement": statement,
        "name": hypothesis.name,
        "standing": hypothesis.standing.value,
        "holds": bool(hypothesis.holds),
        "margin": float(hypothesis.margin),
        "statistic": None,
        "allowed": None,
    }


def _refutable(statement: str, name: str, statistic: float, allowed: float) -> Row:
    return {
        "statement": statement,
        "name": name,
        "standing": Standing.REFUTABLE.value,
        "holds": statistic <= allowed,
        "margin": allowed - statistic,
        "statistic": statistic,
        "allowed": allowed,
    }


# --- in one sentence ------------------------------------------------------------------------------


def _summarised(row: Row) -> Row:
    agnostic, driven = row["data_agnostic_error"], row["data_driven_error"]
    gain, price = _ratio(agnostic, driven), _ratio(agnostic, row["optimal_error"])
    gain_of_bias = _ratio(agnostic, row["data_agnostic_new_bias_error"])
    looseness = _ratio(row["price_bound"], agnostic)
    inputs, outputs = row["shape"]
    sentence = f"Layer {row['layer']} ({inputs} x {outputs}) at rank {row['rank']}: "
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
