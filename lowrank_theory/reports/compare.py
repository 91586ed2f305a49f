"""Write what the comparison of methods on a network found: JSON for a program, and a figure.

Every file is a function of the `Comparison` alone, and replaces its predecessor in one step.
"""

import shlex
from pathlib import Path
from typing import Any

from lowrank_theory import plotting
from lowrank_theory._files import to_json, write_atomically
from lowrank_theory.reports._page import number, percent, svg, versions
from lowrank_theory.studies.compare import FAMILIES, FAMILY, Comparison
from lowrank_theory.studies.compare_rows import NetworkAtBudget

FILES = ("report.json", "compare.svg")


def write(found: Comparison, folder: Path) -> None:
    """Write `report.json` and `compare.svg` into an existing folder. Raises `OSError` where that
    fails.
    """
    figure = plotting.compare(
        statistics=found.statistics,
        layers=found.layers,
        networks=found.networks,
        metric=found.metric,
        times=found.times,
    )
    picture = svg(figure)
    write_atomically(folder / "report.json", to_json(record(found)))
    write_atomically(folder / "compare.svg", picture)


def record(found: Comparison) -> dict[str, Any]:
    """All that was found, and how to repeat it, in what JSON has."""
    return found.everything() | {"command": command(found), "versions": versions()}


def command(found: Comparison) -> str:
    """The command that repeats the comparison."""
    budgets = " ".join(f"{share}" for share in found.budgets)
    there = {FAMILY[row.method] for row in (*found.networks, *found.unmet)}
    asked = [family for family in FAMILIES if family in there]
    some = f" --families {' '.join(map(shlex.quote, asked))}" if len(asked) < len(FAMILIES) else ""
    network = shlex.quote(found.source or found.network)
    return f"lowrank-theory compare {network} --budget {budgets}{some} --seed {found.seed}"


def sentences(found: Comparison) -> list[str]:
    """What was found, in words: the best method at each budget, and how errors order the rest."""
    said = []
    for budget in found.budgets:
        rows = [row for row in found.networks if row.budget == budget]
        if rows:
            best = _best(rows, found.metric.larger_is_better)
            said.append(
                f"With {percent(budget)} of the bits the {found.metric.name} is best by "
                f"{best.method}: {number(best.metric, 4)} with {percent(best.ideal)} of them "
                f"(dense {number(found.metric.value, 4)})."
            )
    for row in found.proxies:
        if row.family is None:
            name = row.error.replace("_", " ")
            said.append(
                f"Over all {row.networks} networks the {name} has a rank correlation of "
                f"{number(row.correlation)} ({number(row.low)} to {number(row.high)}) with what "
                f"they lose; of {row.pairs:,} pairs {row.inverted:,} are inverted, "
                f"{row.clearly:,} clearly."
            )
    return said


def _best(rows: list[NetworkAtBudget], larger_is_better: bool) -> NetworkAtBudget:
    return max(rows, key=lambda row: row.metric if larger_is_better else -row.metric)
