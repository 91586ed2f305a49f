"""A network compressed to one size by each way, and held against the dense one."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import PyTree
from scipy import stats

from lowrank_theory._engine.compress import Bytes, compress
from lowrank_theory._engine.compressed import Compressed
from lowrank_theory._engine.held_out import output_errors
from lowrank_theory._engine.replace import leaves_by_path, replace
from lowrank_theory._numerics import check_fraction
from lowrank_theory.approximations import Affine
from lowrank_theory.certification import certify_losses
from lowrank_theory.models.catalogue import Function, Loaded, Metric
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import LowRank, TruncatedSVD, every_rank
from lowrank_theory.studies import FAILURE_PROBABILITY
from lowrank_theory.studies.transfer_rows import DenseMetric, NetworkAtSize
from lowrank_theory.studies.ways import DRIVEN, SAME_RANKS, SEQUENTIAL, STANDARD, Way

CONFIDENCE = 0.95  # of the bootstrap intervals
RESAMPLES = 999

Factors = LowRank | Affine


def check_budgets(budgets: Sequence[float]) -> tuple[float, ...]:
    """The shares, in order and each once. Raises `ValueError` where there is none, and for one that
    is not between 0 and 1.
    """
    shares = {check_fraction("budgets", share) for share in budgets}
    if not shares:
        raise ValueError("`budgets` is empty: give at least one share, such as 0.25.")
    return tuple(sorted(shares))


def dense_metric(metric: Metric, scores: np.ndarray) -> DenseMetric:
    """What the scores of the dense network come to."""
    return DenseMetric(
        name=metric.name,
        larger_is_better=metric.larger_is_better,
        value=float(metric.value(scores)),
        scored=len(scores),
    )


def by_each_way(
    loaded: Loaded, budget: float, passes: int | None
) -> tuple[dict[str, Compressed], dict[str, float]]:
    """The compressed networks by standard way, and the seconds that each took."""
    found: dict[str, Compressed] = {}
    seconds: dict[str, float] = {}
    for way in STANDARD:
        start = time.monotonic()
        found[way.name] = by_way(way, loaded, budget, passes)
        seconds[way.name] = time.monotonic() - start
    driven = found[DRIVEN.name]
    found[SEQUENTIAL.name] = _run_by(driven, found[SEQUENTIAL.name])
    return found | {SAME_RANKS.name: _truncated_like(driven, loaded)}, seconds


def by_way(way: Way, loaded: Loaded, budget: float, passes: int | None) -> Compressed:
    """The network compressed to a share of its bytes."""
    return compress(
        loaded.function,
        loaded.parameters,
        loaded.calibration,
        Bytes(budget),
        method=way.method,
        sequential=way.sequential,
        select=loaded.select,
        passes=passes if way.sequential else None,
    )


def compared(
    loaded: Loaded,
    compressed: Compressed,
    dense: np.ndarray,
    seed: int,
    *,
    budget: float,
    method: str,
    seconds: float | None,
) -> NetworkAtSize:
    """What a compressed network takes and loses, `dense` being the scores of the dense one."""
    layers = compressed.layers.values()
    losses = np.asarray(
        output_errors(loaded.function, loaded.parameters, compressed, loaded.units), float
    )
    certificate = certify_losses(losses, failure_probability=FAILURE_PROBABILITY)
    other = compressed.function, compressed.parameters
    scores, value = loaded.metric.scores(*other), loaded.metric.value
    low, high = paired_interval(value, dense, scores, seed)
    return NetworkAtSize(
        budget=budget,
        method=method,
        parameters=compressed.parameter_count,
        dense_parameters=compressed.dense_parameter_count,
        bytes=compressed.storage_bytes,
        dense_bytes=compressed.dense_storage_bytes,
        multiply_adds=compressed.multiply_adds,
        dense_multiply_adds=compressed.dense_multiply_adds,
        left_dense=sum(layer.size is None for layer in layers),
        output_loss=float(np.mean(losses)),
        quantiles=tuple(np.quantile(losses, [0.1, 0.5, 0.9]).tolist()),
        certificate=float(certificate.bound),
        error_calibration=relative_error(loaded, other, loaded.calibration),
        error_held_out=relative_error(loaded, other, loaded.held_out),
        metric=float(value(scores)),
        difference=float(value(scores) - value(dense)),
        low=low,
        high=high,
        seconds=seconds,
    )


def _run_by(driven: Compressed, other: Compressed) -> Compressed:
    """Equal sizes run by one function, so that they are compiled once."""
    sizes = [{path: layer.size for path, layer in each.layers.items()} for each in (driven, other)]
    if sizes[0] != sizes[1]:
        return other
    return dataclasses.replace(other, function=driven.function)


def _truncated_like(driven: Compressed, loaded: Loaded) -> Compressed:
    """Truncated weights at the ranks of another compression."""
    matrices, truncated = matrices_of(driven, loaded), {}
    for path, fitted in factors_of(driven).items():
        *stack, inputs, outputs = matrices[path].shape
        rank = low_rank(fitted).rank
        found = [
            every_rank(Observed(weights=each), TruncatedSVD()).at(rank).factors
            for each in matrices[path].reshape(-1, inputs, outputs)
        ]
        left = np.stack([each.left for each in found]).reshape(*stack, inputs, rank)
        right = np.stack([each.right for each in found]).reshape(*stack, rank, outputs)
        truncated[path] = LowRank(left, right)
        if isinstance(fitted, Affine):  # with a shift too: of the same form
            shift = np.zeros_like(left, shape=(*stack, outputs))
            truncated[path] = Affine(truncated[path], shift)
    _, parameters = replace(loaded.function, loaded.parameters, truncated)
    return dataclasses.replace(driven, parameters=parameters)


def low_rank(factors: Factors) -> LowRank:
    """The factors without their shift."""
    return factors.factors if isinstance(factors, Affine) else factors


def factors_of(compressed: Compressed) -> dict[str, Factors]:
    """The factors of each compressed layer, in the order of execution."""
    by_path = leaves_by_path(compressed.parameters)
    return {path: by_path[path] for path in compressed.layers if isinstance(by_path[path], Factors)}


def matrices_of(compressed: Compressed, loaded: Loaded) -> dict[str, np.ndarray]:
    """The original matrix, or stack of matrices, of each layer."""
    by_path = leaves_by_path(loaded.parameters)
    return {
        path: np.asarray(layer.view.matrix(by_path[path]))
        for path, layer in compressed.layers.items()
    }


def relative_error(
    loaded: Loaded, other: tuple[Function, PyTree], batches: Sequence[PyTree]
) -> float:
    r"""$\lVert Y - \hat Y\rVert_F/\lVert Y\rVert_F$ over all batches."""
    lost = total = 0.0
    run, run_other = jax.jit(loaded.function), jax.jit(other[0])
    for batch in batches:
        outputs = np.asarray(run(loaded.parameters, batch), float)
        lost += float(np.sum((outputs - np.asarray(run_other(other[1], batch), float)) ** 2))
        total += float(np.sum(outputs**2))
    return math.sqrt(lost / total)


def paired_interval(
    value: Callable[[np.ndarray], float], dense: np.ndarray, scores: np.ndarray, seed: int
) -> tuple[float, float]:
    """The ends of a bootstrap interval for the difference of the metric on the same items."""

    def difference(items: np.ndarray) -> float:
        return value(scores[items]) - value(dense[items])

    found = stats.bootstrap(
        (np.arange(len(dense)),),
        difference,
        vectorized=False,
        method="percentile",
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
