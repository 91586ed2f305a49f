"""Low rank beside what another method found, against the truncation of what it leaves."""

import numpy as np
import pytest

from lowrank_theory.mixtures import LowRankAndQuantised, LowRankBesides, PrunedAndRounded
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import RoundToNearest
from lowrank_theory.sparsification import Magnitude, Wanda

RANDOM = np.random.default_rng(0)
INPUTS, OUTPUTS = 20, 12
ROWS = RANDOM.standard_normal((60, INPUTS)) / 1.3 ** np.arange(INPUTS)
WEIGHTS = RANDOM.standard_t(4, (INPUTS, OUTPUTS))
BIAS = RANDOM.standard_normal(OUTPUTS)


def tail(outputs: np.ndarray, rank: int) -> float:
    return float(np.linalg.norm(np.linalg.svd(outputs, compute_uv=False)[rank:]))


@pytest.mark.parametrize("method", [Magnitude((0.3,)), Wanda((0.3,), ((2, 4),))], ids=str)
@pytest.mark.parametrize("layer", ["plain", "affine", "compressed"])
def test_it_loses_the_tail_of_what_is_left(method, layer):
    inside = ROWS + RANDOM.standard_normal(ROWS.shape) / 10 if layer == "compressed" else ROWS
    observed = Observed(
        weights=WEIGHTS,
        activations=ROWS,
        compressed_activations=inside if layer == "compressed" else None,
        bias=BIAS if layer == "affine" else None,
    )
    sweep, alone = LowRankBesides(method, 0.2).sweep(observed), method.sweep(observed)
    for size in range(len(sweep.storages)):
        matrix = np.asarray(alone.at(size).approximation.materialise())
        left = ROWS @ WEIGHTS - inside @ matrix
        if layer == "affine":
            left = left - left.mean(axis=0)
        basis = np.linalg.qr(inside)[0]
        attainable = basis @ (basis.T @ left) if layer == "compressed" else left
        missed = np.linalg.norm(left - attainable)
        wanted = np.hypot(tail(attainable, round(0.2 * OUTPUTS)), missed)
        assert np.sqrt(sweep.squared_errors[size]) == pytest.approx(wanted, rel=1e-6)
        assert sweep.squared_errors[size] < alone.squared_errors[size]
        assert sweep.name(size) == f"{alone.name(size)}, and rank 2"


def test_besides_few_bits_it_is_one_step_of_the_mixture():
    quantiser, observed = RoundToNearest((3,)), Observed(weights=WEIGHTS, activations=ROWS)
    mixture = LowRankAndQuantised(quantiser, (0.3,), factor_bits=None, steps=1).sweep(observed)
    besides = LowRankBesides(quantiser, 0.2).sweep(observed)
    assert "rank 2" in mixture.name(0) and "rank 2" in besides.name(0)
    one, other = (each.at(0).approximation.apply(np.eye(INPUTS)) for each in (mixture, besides))
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_bytes_are_those_of_both():
    method = PrunedAndRounded(Wanda((0.3,), ()))
    observed = Observed(weights=WEIGHTS, activations=ROWS)
    both, alone = (each.sweep(observed).storages[0] for each in (LowRankBesides(method), method))
    assert both.bytes == alone.bytes + 8 * (INPUTS + OUTPUTS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankBesides(Wanda(), 0.0), "`rank_share` must lie strictly between 0 and 1"),
        (lambda: LowRankBesides(Magnitude()).sweep(Observed(weights=WEIGHTS)), "needs what the"),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
