"""How well an error says which of two networks does worse, and where it says the opposite."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from lowrank_theory.studies.compare_rows import InvertedPair, NetworkAtBudget, Proxy
from lowrank_theory.studies.transfer_rows import DenseMetric

ERRORS = ("weight_error", "layer_error", "output_error")
RESAMPLES = 999
CONFIDENCE = 0.95


def rank_correlation(
    errors: Float[np.ndarray, " networks"], losses: Float[np.ndarray, " networks"], seed: int
) -> tuple[float | None, float | None, float | None]:
    """Spearman's, and the ends of a percentile bootstrap interval over the networks; `None` where
    all errors or all losses are equal, and the ends for fewer than four networks.
    """
    if len(np.unique(errors)) < 2 or len(np.unique(losses)) < 2:
        return None, None, None
    every = np.arange(len(errors))[None]
    whole = float(_spearman(errors[every], losses[every])[0])
    if len(errors) < 4:
        return whole, None, None
    rows = np.random.default_rng(seed).integers(0, len(errors), (RESAMPLES, len(errors)))
    found = _spearman(errors[rows], losses[rows])
    ends = np.nanquantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return whole, float(ends[0]), float(ends[1])


def proxies(
    networks: Sequence[NetworkAtBudget],
    families: dict[str, str],
    metric: DenseMetric,
    seed: int,
) -> list[Proxy]:
    """Each error, within each family and of all networks together. `families` has that of each
    method; the networks without the error are left out.
    """
    found = []
    for error in ERRORS:
        there = [row for row in networks if getattr(row, error) is not None]
        for family in (*dict.fromkeys(families.values()), None):
            rows = [row for row in there if family in (None, families[row.method])]
            if len(rows) >= 2:
                found.append(_proxy(error, family, rows, metric, seed))
    return found


def inverted(
    networks: Sequence[NetworkAtBudget], error: str, metric: DenseMetric
) -> list[InvertedPair]:
    """The pairs of networks that are clearly inverted by this error: the intervals of their changes
    do not overlap. The largest difference of the metric is first.
    """
    rows = [row for row in networks if getattr(row, error) is not None]
    pairs = [pair for pair in _inverted(rows, error, metric) if _clear(*pair)]
    pairs.sort(key=lambda pair: -abs(pair[0].metric - pair[1].metric))
    return [
        InvertedPair(
            error=error,
            nearer=nearer.method,
            nearer_budget=nearer.budget,
            nearer_error=getattr(nearer, error),
            nearer_metric=nearer.metric,
            better=better.method,
            better_budget=better.budget,
            better_error=getattr(better, error),
            better_metric=better.metric,
        )
        for nearer, better in pairs
    ]


def _spearman(
    errors: Float[np.ndarray, "samples networks"], losses: Float[np.ndarray, "samples networks"]
) -> Float[np.ndarray, " samples"]:
    """Of each row; NaN where all are equal."""
    ranks = [stats.rankdata(each, axis=1) for each in (errors, losses)]
    one, other = (each - each.mean(axis=1, keepdims=True) for each in ranks)
    with np.errstate(invalid="ignore"):
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        return np.sum(one * other, axis=1) / norms


def _proxy(
    error: str, family: str | None, rows: list[NetworkAtBudget], metric: DenseMetric, seed: int
) -> Proxy:
    errors = np.array([getattr(row, error) for row in rows], float)
    correlation, low, high = rank_correlation(errors, _losses(rows, metric), seed)
    against = list(_inverted(rows, error, metric))
    return Proxy(
        error=error,
        family=family,
        networks=len(rows),
        correlation=correlation,
        low=low,
        high=high,
        pairs=sum(
            one.metric != other.metric and getattr(one, error) != getattr(other, error)
            for one, other in itertools.combinations(rows, 2)
        ),
        inverted=len(against),
        clearly=sum(_clear(*pair) for pair in against),
    )


def _losses(rows: Sequence[NetworkAtBudget], metric: DenseMetric) -> Float[np.ndarray, " networks"]:
    sign = -1 if metric.larger_is_better else 1
    return np.array([sign * row.difference for row in rows], float)


def _inverted(
    rows: Sequence[NetworkAtBudget], error: str, metric: DenseMetric
) -> Iterator[tuple[NetworkAtBudget, NetworkAtBudget]]:
    """The one of the smaller error and worse metric, and the other."""
    losses = dict(zip(map(id, rows), _losses(rows, metric), strict=True))
    for pair in itertools.combinations(rows, 2):
        nearer, better = sorted(pair, key=lambda row: getattr(row, error))
        gap = losses[id(nearer)] - losses[id(better)]
        if getattr(nearer, error) < getattr(better, error) and gap > 0 and math.isfinite(gap):
            yield nearer, better


def _clear(one: NetworkAtBudget, other: NetworkAtBudget) -> bool:
    return one.high < other.low or other.high < one.low
