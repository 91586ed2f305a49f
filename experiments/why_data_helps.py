"""Why data help on the layers of all networks: gain measured, certified, and explained.

What two spectra would make of the gain, if orientation were chance (left), and what a split of the
rank and the angles certify of it (right).

python experiments/why_data_helps.py [--quick]
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from _save import run
from _transfer import QUICK, SKIPPED, rounded
from _transfer_note import filled
from lowrank_theory import plotting
from lowrank_theory._files import write_atomically
from lowrank_theory._rows import typed
from lowrank_theory.models import catalogue
from lowrank_theory.studies import gains
from lowrank_theory.studies.layer_rows import LayerGain

SEED = 0
NOTE = Path(__file__).resolve().parents[1] / "paper_notes" / "why_data_helps.md"
WITHIN = 1.25  # the factor up to which the law is said to explain a gain


def summary(rows: Sequence[LayerGain], *, centred: bool) -> dict[str, Any]:
    """What is quoted of one network, at a quarter of full rank, and of its bounds at every rank."""
    every = [row for row in rows if row.centred == centred]
    known = [row for row in every if row.is_at_quarter_rank and row.gain is not None]
    found = [row for row in known if row.explained is not None and row.certified is not None]
    gain = np.array([row.gain for row in found])
    law = gain / np.array([row.explained for row in found])
    certified = np.array([row.certified for row in found]) / gain
    extreme = [row for row in found if min(row.above or 1.0, row.below or 1.0) <= 0.01]
    return {
        "centred": centred,
        "layers": len(found),
        "gain": _middle(gain),
        "alignment": _middle(law),
        "law_within": float(np.mean((law <= WITHIN) & (law >= 1 / WITHIN))),
        "law_above": float(np.mean(law < 1 / WITHIN)),
        "certified_share": _middle(certified),
        "not_by_chance": len(extreme),
        "excited_more": float(np.mean([(row.excitation or 0) > 1 for row in found])),
        "pairs": len(every),
        "bound_below_outputs": float(np.mean([row.orientation_bound < 1 for row in every])),
        "weight_tail_below_outputs": float(np.mean([row.weight_tail_bound < 1 for row in every])),
        "bound_over_error": _middle(
            np.array([row.orientation_bound / row.error for row in every if row.error > 1e-6])
        ),
        "weight_tail_over_error": _middle(
            np.array([row.weight_tail_bound / row.error for row in every if row.error > 1e-6])
        ),
    }


def _middle(values: np.ndarray) -> list[float]:
    """The least, the median and the largest."""
    return [float(each) for each in (values.min(), np.median(values), values.max())]


def measure(*, quick: bool) -> dict[str, Any]:
    names = ["digits"] if quick else [case.name for case in catalogue.CASES.values()]
    networks: dict[str, Any] = {}
    kept: list[LayerGain] = []
    everything: list[LayerGain] = []
    for name in names:
        missing = catalogue.available(name)
        if missing is not None:
            print(f"{name} cannot be studied: {missing}", file=sys.stderr)
            continue
        case = catalogue.find(name)
        loaded = case.load(QUICK if quick else case.sizes)
        found = gains.study(
            name,
            loaded.function,
            loaded.parameters,
            loaded.held_out,
            select=loaded.select,
            key=jax.random.key(SEED),
            progress=lambda name, done, total: print(f"{name}: {done} of {total}", flush=True),
        )
        everything += found
        networks[name] = [summary(found, centred=centred) for centred in (False, True)]
        kept += [row for row in found if row.is_at_quarter_rank]
    if not networks:
        sys.exit(SKIPPED)
    together = [summary(everything, centred=centred) for centred in (False, True)]
    return rounded({"networks": networks, "together": together, "rows": kept})


def draw(numbers: dict[str, Any]) -> Figure:
    return plotting.gains([typed(LayerGain, row) for row in numbers["rows"]])


def write_table() -> None:
    """Set that of the note anew."""
    write_atomically(NOTE, filled(NOTE.read_text(), NOTE.parents[1] / "figures").encode())


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
    if "--quick" not in sys.argv:
        write_table()
