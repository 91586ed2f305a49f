"""What the figures and the note on trained networks are made of."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

from lowrank_theory.calibration import Calibration
from lowrank_theory.problems import Observed
from lowrank_theory.recovery import ActivationWeighted, recover
from made_rows import layer_at_rank
from tolerance import approx

ROOT = Path(__file__).parents[1]
RANK = 3


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return module


def skewed_units(*, seed: int) -> list[np.ndarray]:
    """Dependent rows of no Gaussian law, with a mean, in units of one to five rows."""
    draw = np.random.default_rng(seed)
    mix = draw.standard_normal((8, 8)) * np.arange(1, 9) ** -0.7
    return [
        (np.exp(draw.standard_normal((rows, 8)) / 2) + draw.standard_normal(8)) @ mix + 3
        for rows in draw.integers(1, 6, 200)
    ]


def test_a_population_stands_in_its_eigenbasis(imported):
    seen = imported("transfer_calibration").Population.of(skewed_units(seed=0))
    rows = len(seen.outputs)
    assert np.allclose(seen.outputs.mean(axis=0), 0)
    assert np.allclose(seen.outputs.T @ seen.outputs / rows, np.diag(seen.values))
    assert seen.lengths.sum() == rows and np.all(np.diff(seen.values) <= 0)


def test_the_excess_is_that_of_the_library(imported):
    seen = imported("transfer_calibration").Population.of(skewed_units(seed=1))
    mean, covariance = seen.drawn(60, np.random.default_rng(0))
    with jax.enable_x64(True):
        observed = Observed(
            weights=np.eye(8),
            bias=np.zeros(8),
            calibration=Calibration(np.asarray(60.0), mean, 60 * covariance),
        )
        fit = recover(observed, rank=RANK, method=ActivationWeighted())
        outputs = seen.outputs @ np.asarray(fit.factors.materialise()) + np.asarray(fit.bias)
    lost = np.sum((seen.outputs - outputs) ** 2) / len(seen.outputs)
    expected = lost / np.sum(seen.values[RANK:]) - 1
    assert seen.excess(mean, covariance, RANK) == approx(expected, condition=1e3)


def test_copies_of_a_row_count_as_one(imported):
    rows = np.concatenate(skewed_units(seed=2))
    once = imported("transfer_calibration").Population.of([row[None] for row in rows])
    often = imported("transfer_calibration").Population.of([np.tile(row, (4, 1)) for row in rows])
    assert often.constant(RANK) == approx(4 * once.constant(RANK))
    assert often.row_by_row.constant(RANK) == approx(once.constant(RANK))


def test_first_order_is_met(imported):
    seen = imported("transfer_calibration").Population.of(skewed_units(seed=3))
    units = 20_000
    for population in (seen, seen.row_by_row):
        draw = np.random.default_rng(4)
        found = [population.excess(*population.drawn(units, draw), RANK) for _ in range(300)]
        expected = population.constant(RANK) / (units * population.lengths.mean())
        deviation = 4 * np.std(found) / len(found) ** 0.5
        assert abs(np.mean(found) - expected) <= deviation + 0.02 * expected


def test_gaussian_rows_have_the_constant_of_the_theorem(imported):
    draw = np.random.default_rng(5)
    rows = draw.standard_normal((40_000, 6)) * np.arange(1, 7) ** -0.5
    seen = imported("transfer_calibration").Population.of([row[None] for row in rows])
    assert seen.constant(RANK) == pytest.approx(seen.gaussian_constant(RANK), rel=0.03)


def test_the_excess_falls_to_the_line_where_it_is_said_to(imported):
    points = [{"rows": 10.0**k, "excess": {"mean": 3 * 10.0**-k}} for k in range(1, 5)]
    assert imported("transfer_calibration").rows_for(points, 0.01) == pytest.approx(300)
    assert imported("transfer_calibration").rows_for(points, 1e-6) is None


def test_exceptions_are_listed(imported):
    pairs = ((1, 0.5, 1.0), (2, 0.2, 0.1), (4, 1e-9, 2e-9), (5, 1e-3, 0.0))
    rows = [
        layer_at_rank(shape=(8, 8), rank=rank, data_driven_error=better, data_agnostic_error=worse)
        for rank, better, worse in pairs
    ]
    summary = imported("transfer_summary")
    found = summary.compared(rows, summary.driven_error, summary.agnostic_error)
    assert found.pairs == 3 and found.gain.largest == pytest.approx(2)
    assert [each.rank for each in found.exceptions] == [2, 5]
    assert found.exceptions[0].times == pytest.approx(2)


def test_the_summary_is_that_of_the_committed_studies(imported):
    made = json.loads((ROOT / "figures" / "transfer_summary.json").read_text())
    found = imported("transfer_summary").measure(quick=False)
    assert found["networks"] == made["networks"]


@pytest.mark.parametrize("name", ["transfer_summary", "transfer_calibration"])
def test_committed_numbers_can_be_drawn(imported, name: str):
    made = json.loads((ROOT / "figures" / f"{name}.json").read_text())
    assert made["seed"] == imported(name).SEED and made["quick"] is False
    figure = imported(name).draw(made)
    assert all(panel.get_xlabel() and panel.get_ylabel() for panel in figure.axes)
    assert f"({name}.svg)" in (ROOT / "figures" / "README.md").read_text()


def test_the_tables_of_the_note_are_those_of_the_numbers(imported):
    notes = [ROOT / "paper_notes" / f"{name}.md" for name in ("transfer", "why_data_helps")]
    texts = [note.read_text() for note in notes]
    tables = imported("_transfer_note")
    assert all(f"<!-- table: {name} -->" in "".join(texts) for name in tables.TABLES)
    assert [tables.filled(text, ROOT / "figures") for text in texts] == texts
