"""Notes on papers name only what there is."""

import re
from pathlib import Path

import pytest

import lowrank_theory as lrt
from lowrank_theory.theorems import CONTENTS, STATEMENTS

ROOT = Path(__file__).parents[1]
NOTES = ROOT / "paper_notes" / "papers"
_BIB = (ROOT / "paper_notes/references.bib").read_text()
SOURCES = set(re.findall(r"^@\w+\{(\w+),", _BIB, re.MULTILINE))


def is_there(name: str) -> bool:
    """A file, a source, a theorem, one of its statements, or a public name."""
    if "/" in name:
        return (ROOT / name).exists() or (ROOT / "lowrank_theory" / name).exists()
    if name in SOURCES | set(STATEMENTS) | {theorem.name for theorem in CONTENTS}:
        return True
    found = lrt
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None


@pytest.mark.parametrize("note", ["li_2025", "mccarter_dronen_2022"])
def test_a_note_names_what_there_is(note):
    text = (NOTES / f"{note}.md").read_text()
    names = [name for name in re.findall(r"`([^`]+)`", text) if re.fullmatch(r"[\w./]+", name)]
    names = [name for name in names if "." in name or "_" in name or "/" in name]
    assert len(names) >= 15
    assert [name for name in names if not is_there(name)] == []
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (NOTES / link).exists(), link


def test_a_name_that_is_not_there_would_be_found():
    assert not any(map(is_there, ["lookup.Missing", "look_up.missing", "experiments/missing.py"]))
