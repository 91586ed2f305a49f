"""Entries removed in turn, against a loop with inverses."""

import numpy as np
import pytest

from lowrank_theory.problems import Observed
from lowrank_theory.sparsification import SparseGPT, sparse_gpt, sparse_gpt_n_of_m
from tolerance import assert_close

RANDOM = np.random.default_rng(0)
INPUTS, OUTPUTS = 12, 5
ROWS = RANDOM.standard_normal((40, INPUTS)) @ RANDOM.standard_normal((INPUTS, INPUTS))
GRAM = ROWS.T @ ROWS
WEIGHTS = RANDOM.standard_t(3, (INPUTS, OUTPUTS))


def dense(found) -> np.ndarray:
    return np.asarray(found.materialise(), float)


def by_hand(kept: int, block: int, damping: float, per_output: bool) -> np.ndarray:
    """The optimal brain surgeon with an inverse at each input, one output after the other."""
    damped = GRAM + damping * np.diagonal(GRAM).mean() * np.eye(INPUTS)
    weights = WEIGHTS.copy()
    for start in range(0, INPUTS, block):
        places = range(start, min(start + block, INPUTS))
        inverses = {i: np.linalg.inv(damped[i:, i:]) for i in places}
        scores = {
            (i, j): weights[i, j] ** 2 / inverses[i][0, 0] for i in places for j in range(OUTPUTS)
        }
        groups = [[j] for j in range(OUTPUTS)] if per_output else [range(OUTPUTS)]
        stay = set()
        for outputs in groups:
            among = [(i, j) for i in places for j in outputs]
            stay |= set(sorted(among, key=lambda place: -scores[place])[:kept])
        for i in places:
            for j in range(OUTPUTS):
                if (i, j) not in stay:
                    weights[i:, j] -= weights[i, j] / inverses[i][0, 0] * inverses[i][0]
                    weights[i, j] = 0
    return weights


@pytest.mark.parametrize("block", [1, 4, 5, 128])
@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_a_share_is_that_of_the_loop(block, damping):
    size = min(block, INPUTS) * OUTPUTS
    found = dense(sparse_gpt(WEIGHTS, GRAM, 0.4, block=block, damping=damping))
    if INPUTS % block and block < INPUTS:
        assert np.count_nonzero(found) == 2 * round(0.4 * size) + round(0.4 * (INPUTS % block) * 5)
        return
    wanted = by_hand(round(0.4 * size), block, damping, per_output=False)
    assert_close(found, wanted, condition=1e4, scale=1)


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (1, 3)])
def test_a_pattern_is_that_of_the_loop(kept, group):
    found = sparse_gpt_n_of_m(WEIGHTS, GRAM, kept, group)
    assert_close(dense(found), by_hand(kept, group, 0.01, True), condition=1e4, scale=1)


def test_one_removed_weight_costs_what_the_inverse_says():
    """The first input goes, and all others answer: w^2 over its entry of the inverse."""
    weights = np.concatenate([[[1e-3]], WEIGHTS[1:, :1]])
    found = dense(sparse_gpt(weights, GRAM, 11 / 12, damping=0.0))
    change = weights - found
    lost = np.sum((ROWS @ change) ** 2)
    assert found[0] == 0 and np.count_nonzero(found) == 11
    assert_close(lost, weights[0, 0] ** 2 / np.linalg.inv(GRAM)[0, 0], condition=1e6)


@pytest.mark.parametrize("block", [3, 12])
def test_uncorrelated_inputs_answer_for_none(block):
    norms = RANDOM.gamma(2, size=INPUTS)
    found = dense(sparse_gpt(WEIGHTS, np.diag(norms**2), 0.4, block=block, damping=0.0))
    np.testing.assert_array_equal(found[found != 0], WEIGHTS[found != 0])
    for start in range(0, INPUTS, block):
        scores = np.abs(WEIGHTS * norms[:, None])[start : start + block]
        stays = found[start : start + block] != 0
        assert scores[stays].min() >= scores[~stays].max()


def test_without_a_look_at_all_weights_of_dead_inputs_go_first():
    alive = np.arange(INPUTS) >= 4
    gram = GRAM * np.outer(alive, alive)
    found = dense(sparse_gpt(WEIGHTS, gram, 0.5))
    assert not found[:4].any() and np.count_nonzero(found) == INPUTS * OUTPUTS // 2
    again = dense(sparse_gpt(WEIGHTS[4:], gram[4:, 4:], 30 / 40, damping=0.01 * 12 / 8))
    assert np.count_nonzero(again) == 30


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseGPT(damping=-1.0), "`damping` must be a non-negative finite number"),
        (lambda: SparseGPT(block=0), "`block` must be an integer >= 1; got 0"),
        (lambda: sparse_gpt(WEIGHTS, GRAM, 0.0), "`share` must lie strictly between 0 and 1"),
        (lambda: sparse_gpt(WEIGHTS, GRAM[1:, 1:], 0.5), r"`gram` must be \(12, 12\)"),
        (lambda: sparse_gpt(WEIGHTS, GRAM * np.nan, 0.5), "`gram` has 144 non-finite entries"),
        (lambda: sparse_gpt_n_of_m(WEIGHTS, GRAM, 5, 4), "`kept` must be an integer from 1 to 4"),
        (lambda: sparse_gpt_n_of_m(WEIGHTS, GRAM, 2, 5), "a multiple of 5 inputs"),
        (lambda: SparseGPT().sweep(Observed(weights=WEIGHTS)), "`SparseGPT` needs what the layer"),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
