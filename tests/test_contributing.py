"""The worked examples of CONTRIBUTING.md are like any other: the laws hold for them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kinds
import ladders
from approximations import test_approximations as laws
from lowrank_theory.approximations import _described
from networks.test_compressed_file import test_every_kind_is_loaded_bit_for_bit as is_loaded
from recovery import test_ladders as of_ladders

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.setattr(_described, "KINDS", dict(_described.KINDS))
    namespace: dict[str, Any] = {}
    for block in BLOCKS[1:]:
        exec(block, namespace)
    monkeypatch.setitem(kinds.KINDS, "shared values", namespace["shared"])
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


EXPERIMENT = '''"""The outputs against the bound.

They stay below it.

python experiments/largest_outputs.py [--quick]
"""
'''
CHECK = """
import jax, lowrank_theory as lrt
report = lrt.verify(lrt.theorems.largest_outputs, trials=20, key=jax.random.key(0))
assert report.verdict.value == "consistent", report
assert all(control.caught for s in report.statements for control in s.controls)
assert "largest_outputs.frobenius" in lrt.theorems.STATEMENTS
"""


def test_a_theorem_is_added_by_its_own_files_and_one_line(tmp_path):
    for name in ("lowrank_theory", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    lists = ["README.md", "paper_notes/README.md", "figures/README.md"]
    for name in [*lists, "paper_notes/references.bib", "figures/attack/table.json"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    theorems = tmp_path / "lowrank_theory" / "theorems"
    (theorems / "largest_outputs.py").write_text(BLOCKS[0])
    (tmp_path / "experiments" / "largest_outputs.py").write_text(EXPERIMENT)
    contents = theorems / "_contents.py"
    first = '        "best_possible",\n'
    contents.write_text(contents.read_text().replace(first, f'{first}        "largest_outputs",\n'))

    def run(*arguments: str | Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        subprocess.run(
            [sys.executable, *arguments], check=True, env=environment, cwd=tmp_path, timeout=200
        )

    run(tmp_path / "experiments" / "_indices.py")
    run("-c", CHECK)
    claim = r"The outputs of a layer are at most $\lVert X\rVert$ times its weights."
    links = ["paper_notes/largest_outputs.md", claim, "(largest_outputs.svg)"]
    for name, link in zip(lists, links, strict=True):
        assert link in (tmp_path / name).read_text()
    assert "import largest_outputs as largest_outputs" in (theorems / "__init__.py").read_text()
