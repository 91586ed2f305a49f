"""The house: what imports what."""

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lowrank_theory"

# From the ground up: each may import what stands before it, and all may import the ground, the
# modules beside these whose names begin with an underscore.
ROOMS = (
    "calibration", "approximations", "free_product", "rate_distortion", "generators",
    "excitation", "problems", "perturbations", "recovery", "error_measures",
    "rank_choice", "devices", "strategies",
    "quantisation", "sparsification", "mixtures", "lookup", "theorems", "certification",
    "verification", "_engine", "data_constrained", "models", "studies", "networks", "plotting",
    "reports", "cli",
)  # fmt: skip
ON_TOP = {"plotting", "reports", "cli"}  # the rest of the package does without them


def modules() -> dict[str, Path]:
    """By dotted name, without the package itself."""
    found = {}
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:
            found[".".join(parts)] = file
    return found


MODULES = modules()


def imported(module: str) -> Iterator[str]:
    """The modules of the package that one imports, inside functions and for types too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            while rest and rest not in MODULES:
                rest = rest.rpartition(".")[0]
            if package == "lowrank_theory" and rest:
                yield rest


def room(module: str) -> str:
    return module.partition(".")[0]


PAIRS = sorted({(one, other) for one in MODULES for other in imported(one)})


def ground(module: str) -> bool:
    return room(module) not in ROOMS


def test_every_module_has_its_room():
    assert {room(module) for module in MODULES if not room(module).startswith("_")} <= set(ROOMS)
    assert all(any(room(module) == each for module in MODULES) for each in ROOMS)
    assert len(PAIRS) > 500


def test_imports_point_down():
    wrong = []
    for one, other in PAIRS:
        if ground(other) or room(one) == room(other):
            continue
        if ground(one) or ROOMS.index(room(other)) > ROOMS.index(room(one)):
            wrong.append(f"{one} imports {other}")
    assert wrong == []


def test_what_is_private_stays_in_its_room():
    wrong = [
        f"{one} imports {other}"
        for one, other in PAIRS
        if room(one) != room(other) and any(part.startswith("_") for part in other.split(".")[1:])
    ]
    assert wrong == []


def test_pages_and_pictures_are_on_top():
    below = [pair for pair in PAIRS if room(pair[0]) not in ON_TOP and room(pair[1]) in ON_TOP]
    assert below == []


def circles(pairs: list[tuple[str, str]]) -> list[str]:
    """Modules from which a way of imports leads back."""
    next_to: dict[str, set[str]] = {}
    for one, other in pairs:
        if one != other:
            next_to.setdefault(one, set()).add(other)

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for other in next_to.get(waiting.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    return [module for module in next_to if module in reached(module)]


def test_there_is_no_circle():
    packages = {module for module, file in MODULES.items() if file.name == "__init__.py"}
    assert circles([pair for pair in PAIRS if not packages & set(pair)]) == []
    rooms = [(room(one), room(other)) for one, other in PAIRS if room(one) != room(other)]
    assert circles(rooms) == []


def test_a_circle_and_an_upward_import_would_be_found():
    assert circles([("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]) == ["a", "b", "c"]
    assert "recovery._recover" in set(imported("recovery._ladder"))


@pytest.mark.parametrize("limit", [500])
def test_no_file_is_long(limit):
    lengths = {name: len(file.read_text().splitlines()) for name, file in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > limit} == {}


def test_every_room_says_what_it_is_for():
    files = [MODULES[each] for each in ROOMS]
    for file in itertools.chain(files, [ROOT / "__init__.py"]):
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), file
