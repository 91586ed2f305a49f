"""What is expected of methods, where inputs are correlated and where they are not: the tables of
`benchmarks/methods.py` on small layers.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SIDE, SEEDS = 96, 2
ISOTROPIC, MILD, STEEP, LOUD = range(4)  # the columns
CORRELATED = slice(1, None)

Table = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def methods() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("methods")
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("methods", None)


def measured(methods: ModuleType, family: str) -> Table:
    found = methods.FAMILIES[family].measured(SIDE, SEEDS)
    return {name: np.array(errors) for name, errors in found.items()}


@pytest.mark.slow
def test_few_bits(methods):
    table = measured(methods, "Few bits")
    clipped = table["each output"]
    for worse, better, factor in (
        ("one grid, absmax", "each output, absmax", 0.75),
        ("each output, absmax", "each output", 0.8),
        ("each output", "groups of 64", 1.0),
        ("GPTQ, ordered", "GPTQ, ordered, groups of 64", 1.0),
    ):
        assert np.all(table[better] < factor * table[worse]), (worse, better)
    for swept in ("GPTQ in the order given", "GPTQ, ordered"):
        assert np.all(table[swept][CORRELATED] < 0.85 * clipped[CORRELATED])
        assert clipped[ISOTROPIC] < table[swept][ISOTROPIC] < 1.1 * clipped[ISOTROPIC]
    assert table["GPTQ, ordered"][STEEP] < table["GPTQ in the order given"][STEEP]
    weighted = table["each output, weighted grids"] / clipped
    assert weighted[LOUD] < 0.85 and weighted[ISOTROPIC] == pytest.approx(1, abs=0.03)


@pytest.mark.slow
def test_low_rank_beside_few_bits(methods):
    table = measured(methods, "Low rank beside few bits")
    none, plain, diagonal, exact, alternated = list(table.values())[:5]
    assert np.all(plain < none)
    assert np.all(exact[CORRELATED] < 0.9 * plain[CORRELATED])
    assert plain[ISOTROPIC] < exact[ISOTROPIC] < 1.05 * plain[ISOTROPIC]
    assert exact[STEEP] < 0.9 * diagonal[STEEP] and diagonal[STEEP] < plain[STEEP]
    assert diagonal[LOUD] < 0.7 * plain[LOUD]
    assert np.all(alternated < exact)
    eight, four = (table[f"the same, factors of {bits} bits"] for bits in (8, 4))
    np.testing.assert_allclose(eight, alternated, rtol=0.03)
    assert np.all(four[CORRELATED] < 1.5 * alternated[CORRELATED])
    assert table["rank 64 in factors of 8 bits alone"][ISOTROPIC] > 1.2 * none[ISOTROPIC]


def test_scaled_inputs(methods):
    table = measured(methods, "Scaled inputs")
    nearest, weighted, _, scaled = (float(errors[0]) for errors in table.values())
    assert scaled < 0.7 * nearest
    assert scaled < 1.02 * weighted < nearest


def test_sparse_errors(methods):
    table = measured(methods, "Sparse errors")
    for bits in (2, 3, 4):
        split, nearest = (
            float(table[f"{bits} bits, {name}"][0]) for name in ("HQQ", "nearest, absmax")
        )
        assert 0.9 * nearest < split <= nearest


@pytest.mark.slow
def test_few_entries(methods):
    table = measured(methods, "Few entries")
    for by_size, by_score, swept in (
        ("magnitude", "Wanda", "SparseGPT"),
        ("2 of 4, magnitude", "2 of 4, Wanda", "2 of 4, SparseGPT"),
    ):
        plain, scored, best = table[by_size], table[by_score], table[swept]
        assert plain[ISOTROPIC] < min(scored[ISOTROPIC], best[ISOTROPIC])
        assert max(scored[ISOTROPIC], best[ISOTROPIC]) < 1.1 * plain[ISOTROPIC]
        assert np.all(best[CORRELATED] < scored[CORRELATED])
        assert np.all(scored[STEEP:] < plain[STEEP:])
        assert best[STEEP] < scored[STEEP] / 2 and scored[LOUD] < plain[LOUD] / 2
    by_weights, by_data = table["whole inputs, by weights"], table["whole inputs, by data"]
    assert by_weights[ISOTROPIC] < by_data[ISOTROPIC] < 1.1 * by_weights[ISOTROPIC]
    assert np.all(by_data[CORRELATED] < 0.8 * by_weights[CORRELATED])
    assert np.all(table["SparseGPT"] < by_data)


@pytest.mark.slow
def test_low_rank_and_few_entries(methods):
    """A mixture is best where the weights are one, and elsewhere not."""
    table = measured(methods, "Low rank and few entries")
    none, quarter, half, nearly, robust = table.values()
    assert max(quarter[0], half[0], robust[0]) < min(none[0], nearly[0]) / 2
    assert none[1] < quarter[1] < half[1] < nearly[1]


@pytest.mark.slow
def test_few_bits_of_few_entries(methods):
    """Few exact entries lose to more rounded ones; with heavy tails, all in few bits do too."""
    table = measured(methods, "Few bits of few entries")
    every, exact, eight, four, two = table.values()
    assert np.all(four < eight) and np.all(eight < exact)
    assert every[0] < two[0] < four[0]
    assert four[1] < two[1] and four[1] < every[1]


@pytest.mark.slow
def test_low_rank_beside_few_entries(methods):
    table = measured(methods, "Low rank beside few entries")
    exact, rounded, besides, swept = table.values()
    assert np.all(exact < rounded) and np.all(besides < rounded)
    assert np.all(besides[CORRELATED] < exact[CORRELATED])
    assert swept[STEEP] < besides[STEEP]
