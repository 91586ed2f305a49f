"""The note on the comparison of methods says what the numbers beside the figures say."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def read(name: str):
    file = ROOT / "figures" / f"{name}.json"
    return json.loads(file.read_text())


def test_its_tables_are_as_they_are_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    tables = importlib.import_module("_compare_note")
    note = tables.NOTE.read_text()
    assert tables.filled(note) == note, "`python experiments/_compare_note.py` makes them anew"
    for name in tables.TABLES:
        assert f"<!-- table: {name} -->" in note


@pytest.mark.parametrize("name", ["compare_shapes", "compare_statistics", "compare_sweeps"])
def test_the_committed_numbers_can_be_drawn(name, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    made = read(name)
    assert made["quick"] is False
    figure = importlib.import_module(name).draw(made)
    assert all(panel.get_xlabel() and panel.get_ylabel() for panel in figure.axes)
    assert (ROOT / "figures" / f"{name}.svg").stat().st_size < 250_000
    assert f"({name}.svg)" in (ROOT / "figures" / "README.md").read_text()


def test_layers_of_given_spectra_lose_what_theory_says():
    """Of random weights: rounding, pruning and truncation as in the tables of a normal law."""
    rows = read("compare_shapes")["rows"]
    white = [row for row in rows if (row["spectrum"], row["inputs"]) == ("random", "white")]
    assert white
    for row in white:
        assert row["output_error"] == pytest.approx(row["weight_error"], rel=1e-3)
    four_bits = [r for r in white if (r["method"], r["share"]) == ("rounded", 1 / 8)]
    for row in four_bits:
        assert row["weight_error"] ** 2 == pytest.approx(0.0119, rel=0.05)
    for row in rows:
        if row["method"] == "data-driven":
            (other,) = (
                o for o in rows
                if o["method"] == "data-agnostic"
                and all(o[k] == row[k] for k in ("layer", "spectrum", "inputs", "share"))
            )  # fmt: skip
            assert row["output_error"] <= other["output_error"] * (1 + 1e-9)
            assert row["weight_error"] >= other["weight_error"] * (1 - 1e-9)


def test_few_dimensions_turn_the_order_around():
    rows = read("compare_statistics")["few_dimensions"]
    named = {row["method"].split(",")[0]: row for row in rows}
    driven, agnostic, rounded = (
        named[method] for method in ("data-driven", "data-agnostic", "rounded")
    )
    assert driven["output_error"] < 1e-12 < rounded["output_error"] < agnostic["output_error"]
    assert driven["weight_error"] > agnostic["weight_error"] > rounded["weight_error"]
