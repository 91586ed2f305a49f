"""What is pruned in other units is the same matrix in these units, exactly for powers of two."""

import numpy as np
import pytest

import laws
from lowrank_theory.mixtures import low_rank_and_sparse, rounded_entries
from lowrank_theory.sparsification import (
    fewer_inputs,
    largest_entries,
    sparse_gpt,
    sparse_gpt_n_of_m,
    wanda,
    wanda_n_of_m,
)

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.standard_normal((12, 8))
ROWS = RANDOM.standard_normal((40, 12)) @ RANDOM.standard_normal((12, 12))
GRAM = ROWS.T @ ROWS


def norms(gram: np.ndarray) -> np.ndarray:
    return np.sqrt(np.diagonal(gram))


METHODS = {
    "magnitude": lambda weights, gram: largest_entries(weights, 30),
    "wanda": lambda weights, gram: wanda(weights, norms(gram), 5),
    "wanda, n of m": lambda weights, gram: wanda_n_of_m(weights, norms(gram), 2, 4),
    "sparse gpt": lambda weights, gram: sparse_gpt(weights, gram, 0.4, block=5),
    "sparse gpt, n of m": lambda weights, gram: sparse_gpt_n_of_m(weights, gram, 2, 4),
    "fewer inputs": lambda weights, gram: fewer_inputs(weights, gram, 7),
    "rounded": lambda weights, gram: rounded_entries(largest_entries(weights, 30), 4, 8),
    "low rank and sparse": lambda weights, gram: low_rank_and_sparse(weights, gram, 2, 20, steps=5),
}


@pytest.mark.parametrize("name", METHODS)
def test_units_of_weights_and_of_rows(name):
    method, condition = METHODS[name], float(np.linalg.cond(GRAM))

    def of_weights(unit: float) -> np.ndarray:
        return np.asarray(method(unit * WEIGHTS, GRAM).materialise())

    def of_rows(unit: float) -> np.ndarray:
        return np.asarray(method(WEIGHTS, unit**2 * GRAM).materialise())

    laws.scales(of_weights, 1, condition=condition, scale=1)
    laws.scales(of_rows, 0, condition=condition, scale=1)
