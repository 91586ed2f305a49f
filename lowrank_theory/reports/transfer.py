"""Write what the study of a trained network found: a page for a reader, JSON for a program.

The page needs nothing but its own file. Every file is a function of the `Transfer` alone, and
replaces its predecessor in one step.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank_theory import plotting
from lowrank_theory._files import to_json, write_atomically
from lowrank_theory.reports._page import headings, number, percent, render, svg, versions
from lowrank_theory.studies import FAILURE_PROBABILITY
from lowrank_theory.studies.layer_rows import (
    LayerAtRank,
    LayerData,
    LayerGain,
    LayerHypothesis,
    Spectrum,
    at_half_rank,
)
from lowrank_theory.studies.transfer import CONFIDENCE, Transfer
from lowrank_theory.studies.transfer_rows import LayerCertificate, NetworkAtSize, Timing
from lowrank_theory.studies.ways import AGNOSTIC, DRIVEN, OTHERS, SAME_RANKS, SEQUENTIAL, WAYS

FIGURES = (
    "network",
    "layer_errors",
    "gains",
    "layer_spectra",
    "calibration_sizes",
    "residual_spectra",
)
FILES = ("report.json", "report.html", *(f"{name}.svg" for name in FIGURES))


def write(found: Transfer, folder: Path) -> None:
    """Write `report.json`, `report.html` and the figures into an existing folder.

    Everything is rendered before the first file is written. Raises `OSError` where that fails.
    """
    rows, layers = found.layers.rows, found.layers.layers
    residuals = [layer.residual for layer in layers if layer.residual is not None]
    drawn = {
        "network": plotting.transfer(
            networks=found.networks,
            metric=found.metric,
            rows=rows,
            residuals=residuals,
            composition=found.half.composition,
        ),
        "layer_errors": plotting.layer_errors(rows),
        "layer_spectra": plotting.layer_spectra(layers),
        "calibration_sizes": plotting.calibration_sizes(rows, layers),
    }
    if found.layers.gains:
        drawn["gains"] = plotting.gains(found.layers.gains)
    if residuals:
        drawn["residual_spectra"] = plotting.residual_spectra(layers)
    figures = {name: svg(figure) for name, figure in drawn.items()}
    page = render(
        Path(__file__).with_name("transfer.html.jinja"),
        figures,
        found=found,
        command=command(found),
        versions=versions(),
        halves=at_half_rank(rows),
        sentences=sentences(found),
        ways=ways(found),
        columns=[each for each in LayerAtRank.columns() if each.name != "network"],
        network_columns=NetworkAtSize.columns(),
        gains=[row for row in found.layers.gains if row.is_at_quarter_rank],
        gain_columns=[each for each in LayerGain.columns() if each.name != "network"],
        hypothesis_columns=LayerHypothesis.columns(),
        of_network=headings(NetworkAtSize),
        of_layer=headings(LayerData),
        of_spectrum=headings(Spectrum),
        of_certificate=headings(LayerCertificate),
        of_time=headings(Timing),
        confidence=CONFIDENCE,
        failure_probability=FAILURE_PROBABILITY,
    )
    write_atomically(folder / "report.json", to_json(record(found)))
    for name, picture in figures.items():
        write_atomically(folder / f"{name}.svg", picture)
    write_atomically(folder / "report.html", page.encode(errors="backslashreplace"))


def record(found: Transfer) -> dict[str, Any]:
    """All that was found, and how to repeat it, in what JSON has."""
    return found.everything() | {"command": command(found), "versions": versions()}


def command(found: Transfer) -> str:
    """The command that repeats the study."""
    budgets = " ".join(f"{share}" for share in found.budgets)
    asked = {row.method for row in (*found.networks, *found.unmet)}
    others = " ".join(shlex.quote(way.name) for way in OTHERS if way.name in asked)
    more = f" --ways {others}" if others else ""
    network = shlex.quote(found.source or found.network)
    return f"lowrank-theory transfer {network} --budget {budgets}{more} --seed {found.seed}"


def sentences(found: Transfer) -> list[str]:
    """What the study found, in words: at half size the network, then its layers."""
    rows = {row.method: row for row in found.networks if row.budget == found.half.budget}
    driven, agnostic = rows[DRIVEN.name], rows[AGNOSTIC.name]
    same, sequential = rows[SAME_RANKS.name], rows[SEQUENTIAL.name]
    metric, composed = found.metric, found.half.composition
    said = [
        (
            f"With {percent(driven.share)} of the compressed weights' bytes the {metric.name} is "
            f"{number(driven.metric, 4)} data-driven and {number(agnostic.metric, 4)} "
            f"data-agnostic; that of the dense network is {number(metric.value, 4)}."
        ),
        (
            "The output error on held-out data, over the norm of the outputs, is "
            f"{number(driven.error_held_out)} data-driven and {number(agnostic.error_held_out)} "
            f"data-agnostic ({number(same.error_held_out)} at the same ranks)."
        ),
        *_of_others(rows),
        (
            f"Fitted one layer after the other it is {number(sequential.error_held_out)} (on the "
            f"calibration data {number(sequential.error_calibration)} against "
            f"{number(driven.error_calibration)})."
        ),
        (
            f"With probability {percent(1 - FAILURE_PROBABILITY)} the mean squared relative output "
            f"error of new units is at most {number(driven.certificate)}; that of the held-out "
            f"ones is {number(driven.output_loss)}."
        ),
        (
            f"Errors of the network with one layer compressed add up to {number(composed.sum)}, "
            f"their squares to the square of {number(composed.root_of_squares)}; with all layers "
            f"compressed it is {number(composed.measured)}."
        ),
    ]
    pairs = [(row.data_driven_error, row.data_agnostic_error) for row in found.layers.rows]
    compared = [(driven, agnostic) for driven, agnostic in pairs if agnostic is not None]
    better = sum(driven is not None and driven <= agnostic for driven, agnostic in compared)
    said.append(
        f"Layer by layer, the data-driven error is at most the data-agnostic one in {better:,} of "
        f"{len(compared):,} layers and ranks."
    )
    for timed in found.half.times:
        faster = "faster" if timed.speedup >= 1 else "as fast"
        said.append(
            f"On batches of {timed.batch} units it is {number(timed.speedup)} times {faster}."
        )
    return said


def ways(found: Transfer) -> list[str]:
    """In words, the ways that were compared, in the order of the table."""
    compared = {row.method for row in found.networks}
    return [f"{name}, by {way.in_words}" for name, way in WAYS.items() if name in compared]


def _of_others(rows: Mapping[str, NetworkAtSize]) -> list[str]:
    there = [rows[way.name] for way in OTHERS if way.name in rows]
    if not there:
        return []
    said = [
        f"{row.method} {number(row.error_held_out)} ({percent(row.share)} of the bytes)"
        for row in there
    ]
    return [f"With other matrices in the place of the weights it is {', '.join(said)}."]
