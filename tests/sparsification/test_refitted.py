"""Entries that stay, fitted anew, against least squares on rows."""

import numpy as np
import pytest

from lowrank_theory.approximations import CompressedRows, NOfM, Sparse
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import TruncatedSVD
from lowrank_theory.sparsification import Magnitude, Refitted, SparseGPT, Wanda, refitted

RANDOM = np.random.default_rng(0)
INPUTS, OUTPUTS = 12, 5
ROWS = RANDOM.standard_normal((40, INPUTS)) @ RANDOM.standard_normal((INPUTS, INPUTS))
GRAM = ROWS.T @ ROWS
WEIGHTS = RANDOM.standard_t(3, (INPUTS, OUTPUTS))
SEEN = Observed(weights=WEIGHTS, activations=ROWS)
MASK = RANDOM.random((INPUTS, OUTPUTS)) < 0.4
MASK[:, 1] = False
SPARSE = {
    "bitmap": Sparse.of(WEIGHTS, MASK),
    "compressed rows": Sparse.of(WEIGHTS, MASK, CompressedRows),
    "n of m": Sparse.n_of_m(WEIGHTS, 2, 4),
}


def dense(found) -> np.ndarray:
    return np.asarray(found.materialise(), float)


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_each_output_is_that_of_least_squares(kind, damping):
    """Damping is rows of their own: one for each input."""
    start = SPARSE[kind]
    ridge = np.sqrt(damping * np.diagonal(GRAM).mean()) * np.eye(INPUTS)
    rows = np.concatenate([ROWS, ridge])
    found = refitted(WEIGHTS, GRAM, start, damping=damping)
    kept = dense(start) != 0
    wanted = np.zeros_like(WEIGHTS)
    for j, stay in enumerate(kept.T):
        wanted[stay, j] = np.linalg.lstsq(rows[:, stay], rows @ WEIGHTS[:, j], rcond=None)[0]
    np.testing.assert_allclose(dense(found), wanted, rtol=1e-8, atol=1e-8)
    assert found.pattern is start.pattern or found.storage == start.storage
    assert isinstance(found.pattern, NOfM) == (kind == "n of m")


@pytest.mark.parametrize("pruning", [Magnitude((0.3, 0.5)), Wanda((0.5,)), SparseGPT((0.3,))])
def test_nothing_loses_more_than_what_was_kept(pruning):
    found, before = Refitted(pruning, damping=0.0).sweep(SEEN), pruning.sweep(SEEN)
    for size in range(len(found.storages)):
        lost = [
            np.linalg.norm(ROWS @ (WEIGHTS - dense(each.at(size).approximation)))
            for each in (found, before)
        ]
        assert lost[0] <= lost[1]
        assert lost[0] < 0.9 * lost[1] or not isinstance(pruning, Magnitude)
        assert found.name(size) == f"{before.name(size)}, refitted"


def test_where_inputs_are_uncorrelated_nothing_changes():
    for gram in (np.diag(RANDOM.random(INPUTS)), np.zeros((INPUTS, INPUTS))):
        found = refitted(WEIGHTS, gram, SPARSE["bitmap"])
        np.testing.assert_array_equal(found.values, SPARSE["bitmap"].values)


def test_units_scale_the_values():
    once = refitted(WEIGHTS, GRAM, SPARSE["bitmap"])
    again = refitted(2.0**300 * WEIGHTS, 2.0**-200 * GRAM, SPARSE["bitmap"])
    np.testing.assert_array_equal(2.0**300 * np.asarray(once.values), again.values)


def test_a_free_bias_keeps_the_mean_output():
    rows = ROWS + 3
    observed = Observed(weights=WEIGHTS, activations=rows, bias=np.zeros(OUTPUTS))
    found = Refitted(Magnitude((0.4,))).sweep(observed).at(0)
    assert found.bias is not None
    missed = rows @ WEIGHTS - rows @ dense(found.approximation) - np.asarray(found.bias)
    np.testing.assert_allclose(missed.mean(axis=0), 0, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Refitted(damping=-1.0), "`damping` must be a non-negative finite number"),
        (lambda: refitted(WEIGHTS, ROWS, SPARSE["bitmap"]), r"`gram` must be \(12, 12\)"),
        (lambda: refitted(WEIGHTS[1:], GRAM[1:, 1:], SPARSE["bitmap"]), r"`sparse` must be \(11"),
        (lambda: Refitted(TruncatedSVD()).sweep(SEEN), "`TruncatedSVD` gave a `LowRank`"),
        (lambda: Refitted().sweep(Observed(weights=WEIGHTS)), "`Refitted` needs what the layer"),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
