"""The worked example of CONTRIBUTING.md is a kind like any other: the laws hold for it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import approximations
import ladders
import test_approximations as laws
import test_ladders as of_ladders
from lowrank_theory.approximations import _described
from networks.test_compressed_file import test_every_kind_is_loaded_bit_for_bit as is_loaded

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.setattr(_described, "KINDS", dict(_described.KINDS))
    namespace: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        exec(block, namespace)
    monkeypatch.setitem(approximations.KINDS, "shared values", namespace["shared"])
    return namespace


def test_the_example_keeps_the_laws(shared, tmp_path):
    for law in (
        laws.test_models_run_on_it,
        laws.test_storage_counts_what_is_held,
        laws.test_casts_leave_codes_alone,
        laws.test_floats_can_be_trained,
        laws.test_is_not_made_an_array_unasked,
    ):
        law("shared values")
    is_loaded("shared values", tmp_path)
    given = laws.drawn("shared values")
    codes = np.random.default_rng(0).integers(0, 5, given.shape)
    np.testing.assert_array_equal(given.materialise(), given.values[codes])


def test_a_name_is_entered_once(shared):
    with pytest.raises(ValueError, match="`Shared` is entered already"):
        shared["register"](type("Shared", (shared["Shared"],), {}))


def test_the_ladder_keeps_the_laws(shared, monkeypatch, tmp_path):
    monkeypatch.setitem(ladders.LADDERS, "shared values", shared["SharedValues"]())
    of_ladders.compressed.cache_clear()
    for layer in ("weights", "rows, affine", "compressed rows"):
        of_ladders.test_errors_are_those_of_what_is_returned("shared values", layer)
    of_ladders.test_units_do_not_matter("shared values", 20, -20)
    for where in ("zero weights", "one of each", "one row"):
        of_ladders.test_hostile_layers_are_approximated_by_finite_numbers("shared values", where)
    of_ladders.test_outputs_alone_are_refused("shared values")
    of_ladders.test_a_network_keeps_the_budget_by_its_arrays("shared values")
    of_ladders.test_the_stated_errors_are_those_of_the_network("shared values")
    of_ladders.test_what_is_saved_is_loaded("shared values", tmp_path)
    of_ladders.test_without_a_look_at_the_data_there_is_no_sequence("shared values")
