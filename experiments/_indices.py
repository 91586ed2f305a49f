"""Write the lists of theorems that stand in documents, from the one in `theorems/_contents.py`.

python experiments/_indices.py

A theorem says in one sentence, its docstring, what it claims; its experiment says in its own what
the figure shows. What is written stands between `<!-- theorems -->` and `<!-- end -->`, and in
`theorems/__init__.py` between two such comments.
"""

import ast
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

from lowrank_theory.theorems import CONTENTS, PARTS

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


PLACES: dict[str, Callable[[], str]] = {
    "README.md": readme,
    "paper_notes/README.md": notes,
    "figures/README.md": gallery,
    "lowrank_theory/theorems/__init__.py": imports,
}


def filled(file: str) -> str:
    """A file as it should be."""
    text, made = (ROOT / file).read_text(), PLACES[file]()
    if file.endswith(".py"):
        place, made = r"(\n# theorems\n).*?(\n# end\n)", f"{made}\n"
    else:
        place, made = r"(<!-- theorems -->\n).*?(\n<!-- end -->)", f"\n{made}\n"
    new, count = re.subn(place, lambda m: m[1] + made + m[2], text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{file} must have one place for the theorems; it has {count}")
    return new


if __name__ == "__main__":
    for file in PLACES:
        (ROOT / file).write_text(filled(file))
