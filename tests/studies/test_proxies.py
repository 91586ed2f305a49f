"""How errors order what networks lose: rank correlations, inverted pairs, and the construction in
which the error of the weights orders methods exactly backwards.
"""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import RoundToNearest
from lowrank_theory.recovery import ActivationWeighted, TruncatedSVD, dense_float64, recover
from lowrank_theory.studies.compare_rows import NetworkAtBudget
from lowrank_theory.studies.proxies import inverted, proxies, rank_correlation
from lowrank_theory.studies.transfer_rows import DenseMetric

ACCURACY = DenseMetric(name="accuracy", larger_is_better=True, value=0.9, scored=100)
LOSS = DenseMetric(name="nats", larger_is_better=False, value=1.0, scored=100)


def network(method: str, error: float, metric: float, dense: float = 0.9) -> NetworkAtBudget:
    change = metric - dense
    return NetworkAtBudget(
        budget=0.25, method=method, values=0.2, ideal=0.25, real=0.25, left_dense=0,
        weight_error=None if method == "table" else error, layer_error=error, output_error=error,
        metric=metric, difference=change, low=change - 0.05, high=change + 0.05,
    )  # fmt: skip


ROWS = [
    network("a", 0.1, 0.88), network("a", 0.2, 0.80), network("a", 0.4, 0.50),
    network("b", 0.3, 0.86), network("b", 0.5, 0.85), network("table", 0.6, 0.2),
]  # fmt: skip
FAMILIES = {"a": "one", "b": "other", "table": "tables"}


def test_correlations_are_of_each_family_and_of_all():
    found = {(row.error, row.family): row for row in proxies(ROWS, FAMILIES, ACCURACY, 0)}
    assert set(found) == {
        (error, family)
        for error in ("weight_error", "layer_error", "output_error")
        for family in ("one", "other", None)
    }
    assert found["weight_error", None].networks == 5  # a table has no matrix
    whole = found["output_error", None]
    errors, metrics = zip(*((row.output_error, row.metric) for row in ROWS), strict=True)
    expected: Any = stats.spearmanr(errors, metrics)
    assert whole.correlation == pytest.approx(-expected.statistic)
    low, high = whole.low, whole.high
    assert low is not None and high is not None and low <= -expected.statistic <= high
    assert found["output_error", "one"].correlation == pytest.approx(1)
    assert found["output_error", "one"].low is None  # of three networks


def test_pairs_are_counted():
    (row,) = [
        r
        for r in proxies(ROWS, FAMILIES, ACCURACY, 0)
        if (r.error, r.family) == ("output_error", None)
    ]
    # (a, .2) with both of b, and (a, .4) with (b, .5); the first two differ by less than the ends.
    assert (row.pairs, row.inverted, row.clearly) == (15, 3, 1)
    (pair,) = inverted(ROWS, "output_error", ACCURACY)
    assert (pair.nearer, pair.better) == ("a", "b")
    assert (pair.nearer_error, pair.better_error) == (0.4, 0.5)
    assert (pair.nearer_metric, pair.better_metric) == (0.5, 0.85)


def test_a_metric_that_is_small_when_good_is_turned_around():
    turned = [network(r.method, r.output_error, 1 + (0.9 - r.metric), dense=1.0) for r in ROWS]
    for one, other in zip(
        proxies(ROWS, FAMILIES, ACCURACY, 0), proxies(turned, FAMILIES, LOSS, 0), strict=True
    ):
        assert one.correlation == pytest.approx(other.correlation)
        assert (one.pairs, one.inverted) == (other.pairs, other.inverted)


def test_equal_numbers_have_no_order():
    assert rank_correlation(np.ones(5), np.arange(5.0), 0) == (None, None, None)
    assert rank_correlation(np.arange(5.0), np.ones(5), 0) == (None, None, None)
    errors = np.arange(12.0)
    assert rank_correlation(errors, errors**3, 0) == pytest.approx((1, 1, 1))
    assert rank_correlation(errors, np.sin(errors), 3) == rank_correlation(
        errors, np.sin(errors), 3
    )


# --- inputs of few directions ---------------------------------------------------------------------


def test_the_error_of_the_weights_orders_methods_backwards_where_inputs_have_few_directions():
    """Gaussian weights 256 x 256, inputs in a random subspace of 32 dimensions: the layer of rank
    32 that is fitted to them is exact, four bits err by a tenth, and truncated singular values at
    rank 32 by four fifths; of the weights the first is the worst.
    """
    random = np.random.default_rng(0)
    size, dimension = 256, 32
    weights = random.standard_normal((size, size))
    inputs = random.standard_normal((1_000, dimension)) @ random.standard_normal((dimension, size))
    observed = Observed(weights=weights, activations=inputs)
    rounded = RoundToNearest((4,)).sweep(observed).at(0)
    fitted, truncated = (
        recover(observed, rank=dimension, method=method)
        for method in (ActivationWeighted(), TruncatedSVD())
    )

    def errors(recovery) -> tuple[float, float]:
        missing = weights - dense_float64(recovery.approximation)
        return (
            float(np.linalg.norm(missing) / np.linalg.norm(weights)),
            float(np.linalg.norm(inputs @ missing) / np.linalg.norm(inputs @ weights)),
        )

    of_fitted, of_rounded, of_truncated = map(errors, (fitted, rounded, truncated))
    assert of_fitted[0] == pytest.approx(1 - dimension / size, abs=0.01)  # both sides are projected
    assert of_fitted[1] < 1e-12
    assert of_rounded == pytest.approx((0.105, 0.105), abs=0.01)
    assert of_truncated == pytest.approx((0.789, 0.80), abs=0.03)
    assert of_rounded[0] < of_truncated[0] < of_fitted[0]
    assert of_fitted[1] < of_rounded[1] < of_truncated[1]
