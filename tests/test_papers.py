"""Notes on papers name only what there is, and their numbers are those of figures."""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lowrank_theory as lrt
from lowrank_theory.cli import main
from lowrank_theory.theorems import CONTENTS, STATEMENTS

ROOT = Path(__file__).parents[1]
NOTES = {note.stem: note for note in (ROOT / "paper_notes" / "papers").glob("*.md")}
_BIB = (ROOT / "paper_notes/references.bib").read_text()
SOURCES = set(re.findall(r"^@\w+\{(\w+),", _BIB, re.MULTILINE))
ROWS = {row for name in STATEMENTS for row in (name, name.split(".")[1])}
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
MODULES = [lrt, *(found for _, found in inspect.getmembers(lrt, inspect.ismodule))]


def options() -> Iterator[str]:
    """The names of all parameters of what is public."""
    for module in MODULES:
        for name, found in vars(module).items():
            if callable(found) and not name.startswith("_"):
                try:
                    yield from inspect.signature(found).parameters
                except ValueError:  # of a built-in type
                    continue


OPTIONS = set(options())


def is_there(name: str) -> bool:
    """A command, a target, a file, a source, a theorem, one of its statements, a public name, or an
    option, with a value or without.
    """
    command, _, rest = name.partition(" ")
    if command == "lowrank-theory":
        return main([*rest.split(), "--help"]) == 0
    if command == "make":
        return rest in TARGETS
    if "/" in name or name.endswith(".py"):
        return (ROOT / name).exists() or (ROOT / "lowrank_theory" / name).exists()
    if name in SOURCES | ROWS | {theorem.name for theorem in CONTENTS}:
        return True
    first, *others = name.split(".")
    for module in MODULES:
        found = getattr(module, first, None)
        for part in others:
            found = getattr(found, part, None)
        if found is not None:
            return True
    return name.partition("=")[0] in OPTIONS


@pytest.mark.parametrize("note", NOTES)
def test_a_note_names_what_there_is(note):
    text = NOTES[note].read_text()
    names = set(re.findall(r"`([^`]+)`", text))
    assert len(names) >= 15
    assert [name for name in sorted(names) if not is_there(name)] == []
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (NOTES[note].parent / link).exists(), link


@pytest.mark.parametrize(
    "name",
    [
        *("lookup.Missing", "look_up.missing", "Missing", "missing=True", "make missing"),
        *("experiments/missing.py", "missing.py"),
        *("lowrank-theory missing", "lowrank-theory constrained missing"),
    ],
)
def test_a_name_that_is_not_there_would_be_found(name):
    assert not is_there(name)


# --- the numbers of a note ------------------------------------------------------------------------


def figure(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "figures" / f"{name}.json").read_text())


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def horton_2022() -> Iterator[str]:
    """What it says was found, from the numbers of the figures."""
    alexnet = figure("distill_alexnet")["students"]
    tenth, wide = (
        alexnet[name]
        for name in ("10% of the parameters, rate 0.001", "half as wide, random weights")
    )
    for each in (*figure("distill_resnet20")["students"].values(), tenth):
        before, after = (percent(each[when]["accuracy"]) for when in ("before", "after"))
        yield f"from {before} % to {after} %"
    yield f"({percent(figure('distill_resnet20')['teacher']['accuracy'])} % uncompressed)"
    fitted = percent(alexnet["25% of the parameters, rate 0.001"]["before"]["accuracy"])
    yield f"half as wide learns {percent(wide['after']['accuracy'])} % where factors"
    yield f"only fitted, have {fitted} %"
    digits = figure("distill_digits")
    small = digits["small"]
    soft, true, few = (
        percent(small["said"][name]["accuracy"]["mean"]) for name in ("soft", "true", "few")
    )
    yield f"{soft} % against {true} % of true labels and {few} % of a hundred"
    yield f"a perceptron reaches {percent(small['images']['MNIST']['accuracy']['mean'])} %"
    chain = [percent(each["accuracy"]["mean"]) for each in digits["generations"]]
    yield f"({', '.join(chain[:-1])} and {chain[-1]} %)"

    free = figure("data_free")
    columns = free["digits"]["rounded"]["columns"]

    def rounded(column: str, bits: int) -> str:
        cells = {cell["size"]: cell["accuracy"]["mean"] for cell in columns[column]}
        return percent(cells[bits])

    yield f"has {rounded('raw, one grid', 4)} % at 4 bits"
    yield f"equalised {rounded('equalised', 4)} %"
    yield f"normalisation {rounded('equalised, independent', 4)} %"
    two = [rounded(name, 2) for name in ("equalised", "equalised, independent")]
    yield f"from {two[0]} to {two[1]} %"
    yield f"reaches {rounded('equalised, real, second order', 2)} %"
    two = [
        percent(
            free["resnet20"]["rounded"]["columns"][f"correlated, {name}"][-1]["accuracy"]["mean"]
        )
        for name in ("second order", "all learned")
    ]
    yield f"at 2 bits, from {two[0]} to {two[1]} %"
    removed = free["digits"]["removed"]
    shares = [
        removed[name]
        for name in (
            "equalised, correlated, refitted",
            "raw",
            "as trained",
            "as trained, correlated, refitted, allocated",
        )
    ]
    first, second, third, fourth = (f"{100 * each:.0f} %" for each in shares)
    yield f"{first} of the entries can go where one point of accuracy may, against {second} of"
    yield f"Of the network as it was trained {third} can, and {fourth} where"
    low_rank = free["resnet20"]["low_rank"]
    weights, independent, correlated, real = (
        percent(low_rank[name]["accuracy"]["mean"])
        for name in ("none", "independent", "correlated", "real")
    )
    yield f"low rank: {weights} % by the weights alone, {independent} % with"
    yield f"independent inputs, {correlated} % with correlated ones, {real} % with real ones"
    price = {row["condition_number"]: row for row in figure("price_of_ignoring_data")["rows"]}
    yield f"a factor of {price[10]['random_median']:.1f} for"
    yield f"and of {price[100]['random_median']:.0f} at $\\kappa = 100$"

    kinds = figure("compressible_subspaces")["kinds"]
    line, point, slow, dense = (
        kinds[name]["mean"] for name in ("line", "point", "point, schedule of the line", "dense")
    )
    yield f"the line has {percent(line[0])} % at 2.5 % of the entries"
    yield f"pruned, has {percent(dense[0])} %, and the point as published {percent(point[0])} %"
    yield f"dense, {percent(line[-1])} and {percent(dense[-1])} %"
    yield f"with it the point has {percent(slow[0])} %"
    sizes = figure("every_size")["networks"]
    digits, alexnet = (
        next(row["accuracy"]["mean"] for row in sizes[name]["rows"] if row["share"] == 0.25)
        for name in ("digits", "alexnet")
    )
    whole = percent(sizes["alexnet"]["dense"]["mean"])
    yield f"has {percent(digits)} % as before, AlexNet {percent(alexnet)} % of {whole} %"


def test_the_numbers_of_horton_are_those_of_the_figures():
    text = " ".join(NOTES["horton_2022"].read_text().split())
    assert [said for said in horton_2022() if said not in text] == []
