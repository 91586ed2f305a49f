"""Why data help on layers: rows against NumPy, laws, and what must never happen."""

import jax
import numpy as np
import pytest

import routes
from lowrank_theory import theorems
from lowrank_theory.free_product import tail_shares
from lowrank_theory.problems import Layer, Observed
from lowrank_theory.studies import gains
from lowrank_theory.studies._moments import Moments
from lowrank_theory.studies.layer_rows import LayerGain

INPUTS, OUTPUTS, RANKS = 8, 6, [1, 2, 4]
RANDOM = np.random.default_rng(0)
ROWS = RANDOM.standard_normal((30, INPUTS)) * 2.0 ** -np.arange(INPUTS) + 0.5
WEIGHTS = RANDOM.standard_normal((INPUTS, OUTPUTS)) * 1.5 ** -np.arange(OUTPUTS)


def rows_of(rows: np.ndarray, weights: np.ndarray) -> list[LayerGain]:
    centred = rows - rows.mean(0)
    seen = Moments(float(len(rows)), rows.mean(0), centred.T @ centred)
    return list(gains.layer_gains("net", "layer", weights, seen, RANKS, jax.random.key(0)))


@pytest.fixture(scope="module")
def found() -> list[LayerGain]:
    return rows_of(ROWS, WEIGHTS)


@pytest.mark.parametrize("number", range(6))
def test_a_row_is_that_of_the_layer(found, number):
    row = found[number]
    rows = ROWS - ROWS.mean(0) if row.centred else ROWS
    left, values, right = np.linalg.svd(WEIGHTS, full_matrices=False)
    truncated = left[:, : row.rank] * values[: row.rank] @ right[: row.rank]
    loss = np.sum((rows @ (WEIGHTS - truncated)) ** 2)
    optimum = np.sum(np.linalg.svd(rows @ WEIGHTS, compute_uv=False)[row.rank :] ** 2)
    total = np.sum((rows @ WEIGHTS) ** 2)
    assert (row.rank, row.centred) == (RANKS[number % 3], number >= 3)
    assert row.gain == pytest.approx(loss / optimum)
    assert row.error == pytest.approx(np.sqrt(loss / total))
    layer = Layer(Observed(weights=WEIGHTS, activations=rows), row.rank)
    statements = theorems.gain_of_data
    split = float(statements.split.bound(layer).value)
    assert row.certified_by_split == pytest.approx(max(1, loss / split))
    excess = float(statements.excess_below.bound(layer).value)
    assert row.certified_by_angles == pytest.approx(loss / (loss - excess))
    upper = float(theorems.orientation.upper.bound(layer).value)
    assert row.orientation_bound == pytest.approx(upper / np.sqrt(total))
    spectra = (np.linalg.svd(rows, compute_uv=False) ** 2, np.pad(values**2, (0, 2)))
    share = np.sum(values[row.rank :] ** 2) / np.sum(values**2)
    assert row.explained == pytest.approx(share / float(tail_shares(*spectra, [row.rank])[0]))
    assert row.alignment == pytest.approx(row.gain / row.explained)


def test_what_is_certified_is_never_above_what_is_measured(found):
    for row in found:
        assert 1 <= row.certified <= row.gain * (1 + 1e-9)
        assert row.error <= row.orientation_bound <= row.weight_tail_bound * (1 + 1e-9)
        assert row.above + row.below >= 1


@pytest.mark.parametrize(("of_rows", "of_weights"), [(1e6, 1.0), (1.0, 1e-6)])
def test_units_do_not_matter(found, of_rows, of_weights):
    for row, scaled in zip(found, rows_of(of_rows * ROWS, of_weights * WEIGHTS), strict=True):
        for name, value in row.row().items():
            expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-6)
            assert getattr(scaled, name) == expected, name


def test_a_layer_that_gives_nothing_has_no_gain():
    assert rows_of(ROWS, np.zeros((INPUTS, OUTPUTS))) == []


def test_a_layer_that_data_describe_exactly_has_no_finite_gain():
    """Inputs of rank two: at rank two and beyond, data lose nothing."""
    rows = rows_of(ROWS[:, :2] @ RANDOM.standard_normal((2, INPUTS)), WEIGHTS)
    assert [row.gain is None for row in rows if not row.centred] == [False, True, True]


@pytest.mark.slow
def test_a_network_is_studied_matrix_by_matrix():
    model = routes.stacked_layers()
    seen: list[tuple[str, int, int]] = []
    rows = gains.study(
        "model", model.function, model.parameters, [model.batch], ranks=2,
        progress=lambda *call: seen.append(call),
    )  # fmt: skip
    assert {row.centred for row in rows} == {True, False}
    assert all(row.above is None for row in rows)
    assert seen[-1][1] == seen[-1][2] == len(seen)
    assert len({row.layer for row in rows}) > len(seen)  # a stack has many
