"""Write the lists of theorems that stand in documents, from the one in `theorems/_contents.py`, and
the table of their constants, from `_constants.py` and what the attack found.

python experiments/_indices.py

A theorem says in one sentence, its docstring, what it claims; its experiment says in its own what
the figure shows. What is written stands between `<!-- theorems -->` and `<!-- end -->`, or
`<!-- constants -->` and `<!-- end -->`, and in `theorems/__init__.py` between two such comments.
"""

import ast
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

from _constants import constants
from lowrank_theory.theorems import CONTENTS, PARTS, STATEMENTS, Direction

ROOT = Path(__file__).resolve().parents[1]
THEOREMS = {theorem.name: theorem for theorem in CONTENTS}


def caption(name: str) -> tuple[str, str]:
    """What a figure is, in words, and what it shows."""
    script = (ROOT / "experiments" / f"{name}.py").read_text()
    title, *shown, _ = (ast.get_docstring(ast.parse(script)) or "").split("\n\n")
    shown = [textwrap.fill(part, 100) for part in shown]
    return " ".join(title.split()).rstrip("."), "\n\n".join(shown)


def imports() -> str:
    """The lines by which the objects are made public."""

    def line(name: str) -> str:
        start, public = f"from lowrank_theory.theorems.{name} import ", f"{name} as {name}"
        return start + (public if len(start + public) <= 100 else f"(\n    {public},\n)")

    return "\n".join(line(name) for name in sorted(sum(PARTS.values(), ())))


def readme() -> str:
    """A table of the parts."""
    rows = [
        f"| {part.lower()} | {', '.join(f'[{n}](paper_notes/{n}.md)' for n in names)} |"
        for part, names in PARTS.items()
    ]
    return "\n".join(["| part | theorems |", "|---|---|", *rows])


def notes() -> str:
    """A table for each part: what each theorem claims, and its rows."""

    def row(name: str) -> str:
        rows = ", ".join(f"`{full.split('.')[1]}`" for full in THEOREMS[name].statements)
        sentence = " ".join((type(THEOREMS[name]).__doc__ or "").split())
        return f"| [{name}]({name}.md) | {sentence} | {rows} |"

    def part(title: str, names: tuple[str, ...]) -> str:
        header = ["| note | in one sentence | rows |", "|---|---|---|"]
        return "\n".join([f"## {title}", "", *header, *map(row, names)])

    return "\n\n".join(part(*each) for each in PARTS.items())


def gallery() -> str:
    """The figures of each part, with what they show."""

    def figure(name: str) -> str:
        title, shown = caption(name)
        return f"### [{name}](../paper_notes/{name}.md)\n\n{shown}\n\n![{title}]({name}.svg)"

    return "\n\n".join(
        "\n\n".join([f"## {title}", *map(figure, names)]) for title, names in PARTS.items()
    )


def cited(key: str) -> str:
    """The authors and the year of a source in references.bib."""
    entry = (ROOT / "paper_notes" / "references.bib").read_text().split(f"{{{key},")[1]
    authors, year = (
        re.findall(rf"\b{field}\s*=\s*{{(.*?)}},?\n", entry)[0] for field in ("author", "year")
    )
    *others, last = [author.split(",")[0] for author in authors.split(" and ")]
    return f"{', '.join(others)} & {last} {year}" if others else f"{last} {year}"


def table_of_constants() -> str:
    """Of every statement but equalities: its constant here and as published, and how far it can be
    lowered.
    """
    known = constants()
    attacks = json.loads((ROOT / "figures" / "attack" / "table.json").read_text())
    reached = {each["name"]: f"{each['best_ratio']:.4f}" for each in attacks}

    def row(name: str) -> str:
        constant, refutation = known.get(name), STATEMENTS[name].refutation
        of = here = published = refuted = ""
        if constant:
            of, here = constant.of, f"{constant.here:.4g}"
        if constant and constant.published and constant.source:
            ratio = f"{constant.published / constant.here:.3g}"
            much = (
                "the same" if ratio == "1" else f"{constant.published:.4g}, {ratio} times as much"
            )
            published = f"{much}: {cited(constant.source)}"
        if refutation:
            refuted = f"{refutation.factor:.3g}: {refutation.by}"
        cells = (f"`{name}`", of, here, published, refuted, reached.get(name, ""))
        return f"| {' | '.join(cells)} |"

    header = [
        "| statement | factor of | here | best published | refuted below | attack |",
        "|---|---|---|---|---|---|",
    ]
    bounds = [
        name for name, each in STATEMENTS.items() if each.kind.direction is not Direction.EQUALITY
    ]
    return "\n".join([*header, *map(row, bounds)])


PLACES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"theorems": readme},
    "paper_notes/README.md": {"theorems": notes, "constants": table_of_constants},
    "figures/README.md": {"theorems": gallery},
    "lowrank_theory/theorems/__init__.py": {"theorems": imports},
}


def filled(file: str) -> str:
    """A file as it should be."""
    text = (ROOT / file).read_text()
    for name, make in PLACES[file].items():
        if file.endswith(".py"):
            place, made = rf"(\n# {name}\n).*?(\n# end\n)", f"{make()}\n"
        else:
            place, made = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", f"\n{make()}\n"
        text, count = re.subn(place, lambda m, made=made: m[1] + made + m[2], text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{file} must have one place for the {name}; it has {count}")
    return text


if __name__ == "__main__":
    for file in PLACES:
        (ROOT / file).write_text(filled(file))
