"""What the studies of trained networks say together, for `paper_notes/transfer.md`.

It reads `figures/transfer_<network>.json` of the networks that have been studied, and sets the
tables of the note, that of `transfer_calibration.py` among them.

python experiments/transfer_summary.py [--quick]
"""

import json
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

import _transfer
from _save import run
from _summary import (
    Bounded,
    Certificates,
    Comparison,
    Failing,
    Following,
    Misfit,
    Plotted,
    Predictions,
    Sequential,
    Size,
    Spread,
    Summary,
)
from _transfer_note import AGNOSTIC, DRIVEN, SAME, SEQUENTIAL, at, filled
from lowrank_theory._files import plain, write_atomically
from lowrank_theory._rows import typed
from lowrank_theory.models.catalogue import CASES
from lowrank_theory.plotting import LIMIT, SERIES, legend_above, panels
from lowrank_theory.studies.layer_rows import LayerAtRank, at_half_rank
from lowrank_theory.studies.transfer_rows import Composition, DenseMetric, NetworkAtSize
from lowrank_theory.studies.ways import OTHERS

SEED = 0  # that of the studies; nothing is drawn here
STANDARD = (AGNOSTIC, SAME, DRIVEN, SEQUENTIAL)
ROOT = Path(__file__).resolve().parents[1]
NOTE = ROOT / "paper_notes" / "transfer.md"
RESOLVED = 1e-6  # a relative error below which there may be but rounding
TOLERANCE = 1e-4  # the studies keep five digits

Value = Callable[[LayerAtRank], float | None]


# --- what is said of one network ------------------------------------------------------------------


def spread(values: Iterable[float | None]) -> Spread | None:
    """The least, the middle and the largest of those that exist."""
    found = np.array([value for value in values if value is not None], float)
    if not found.size:
        return None
    return Spread(float(found.min()), float(np.median(found)), float(found.max()))


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """`None` where there is nothing to be compared; what is rounding counts as `RESOLVED`."""
    if numerator is None or denominator is None or max(numerator, denominator) <= RESOLVED:
        return None
    return max(numerator, RESOLVED) / max(denominator, RESOLVED)


def ratios(rows: Iterable[LayerAtRank], numerator: Value, denominator: Value) -> list[float | None]:
    return [ratio(numerator(row), denominator(row)) for row in rows]


def compared(rows: Sequence[LayerAtRank], better: Value, worse: Value) -> Comparison:
    """How many times smaller one error is than another, and where it is not smaller."""
    found = ratios(rows, worse, better)
    return Comparison(
        pairs=sum(each is not None for each in found),
        gain=spread(found),
        gain_at_half_rank=spread(ratios(at_half_rank(rows), worse, better)),
        exceptions=tuple(
            Misfit(row.layer, row.rank, each)
            for row, each in zip(rows, ratios(rows, better, worse), strict=True)
            if each is not None and each > 1 + TOLERANCE
        ),
    )


def bounded(rows: Sequence[LayerAtRank], error: Value, bound: Value) -> Bounded:
    """How many times the error its bound is, and how often the bound says nothing."""
    found = ratios(rows, bound, error)
    return Bounded(
        looseness=spread(found),
        looseness_at_half_rank=spread(ratios(at_half_rank(rows), bound, error)),
        pairs=sum(each is not None for each in found),
        violated=sum(each is not None and each < 1 - TOLERANCE for each in found),
        above_the_outputs=sum((bound(row) or 0) >= 1 for row in rows),
    )


def failing(study: _transfer.Kept) -> Iterable[Failing]:
    """Each hypothesis that fails somewhere."""
    for statement, name in dict.fromkeys((row.statement, row.name) for row in study.failing):
        group = [row for row in study.failing if (row.statement, row.name) == (statement, name)]
        times = spread(ratio(row.statistic, row.allowed) for row in group)
        yield Failing(statement, name, len(group), len(study.layers), times)


def size(row: NetworkAtSize, metric: DenseMetric) -> Size:
    sign = 1 if metric.larger_is_better else -1
    return Size(
        budget=row.budget,
        method=row.method,
        share=row.share,
        multiply_adds=row.share_of_multiply_adds,
        error_held_out=row.error_held_out,
        error_calibration=row.error_calibration,
        output_loss=row.output_loss,
        certificate=row.certificate,
        metric=row.metric,
        difference=row.difference,
        low=row.low,
        high=row.high,
        relative_change=sign * row.difference / abs(metric.value),
    )


def sizes(study: _transfer.Kept, methods: Collection[str]) -> tuple[Size, ...]:
    """The network at each size, by these methods."""
    return tuple(size(row, study.metric) for row in study.networks if row.method in methods)


def sequential(rows: Sequence[NetworkAtSize]) -> Iterable[Sequential]:
    """What fitting one layer after the other gains at each size."""
    one_by_one = at(rows, SEQUENTIAL)
    for budget, alone in at(rows, DRIVEN).items():
        after = one_by_one[budget]
        calibration = after.error_calibration / alone.error_calibration
        yield Sequential(budget, calibration, after.error_held_out / alone.error_held_out)


def following(rows: Sequence[Size]) -> Following:
    """How the metric follows the output error."""
    error = np.array([row.error_held_out for row in rows])
    change = np.array([row.relative_change for row in rows])
    open_ended = np.array([row.low <= 0 <= row.high for row in rows])
    constant = min(np.ptp(error), np.ptp(change)) == 0
    correlation: Any = None if constant else stats.spearmanr(error, -change)
    return Following(
        correlation=None if constant else float(correlation.statistic),
        largest_without_loss=max(error[open_ended].tolist(), default=None),
        smallest_with_loss=min(error[~open_ended & (change < 0)].tolist(), default=None),
        gains=int(np.sum(~open_ended & (change > 0))),
    )


def summary(study: _transfer.Kept) -> Summary:
    """What is quoted of one network."""
    rows = study.rows
    residuals = [layer.residual for layer in study.layers if layer.residual is not None]
    shares = [ratio(layer.effective_samples, layer.samples) for layer in study.layers]
    certified = [
        (row.certificate, row.loss) for row in study.certificates if row.certificate is not None
    ]
    return Summary(
        title=study.title,
        metric=study.metric,
        layers=len(study.layers),
        driven_and_agnostic=compared(rows, driven_error, agnostic_error),
        driven_and_diagonal=compared(rows, driven_error, lambda row: row.diagonal_error),
        driven_over_optimum=spread(ratios(rows, driven_error, lambda row: row.optimal_error)),
        price=bounded(rows, agnostic_error, lambda row: row.price_bound),
        recovery=bounded(rows, lambda row: row.recovery_error, lambda row: row.recovery_bound),
        projected=bounded(rows, lambda row: row.recovery_error, lambda row: row.projected_bound),
        edge_ratio=spread(each.edge_ratio for each in residuals),
        distance=spread(each.distance for each in residuals),
        effective_share=spread(shares),
        failing=tuple(failing(study)),
        sizes=sizes(study, STANDARD),
        others=sizes(study, [way.name for way in OTHERS]),
        sequential=tuple(sequential(study.networks)),
        following=following(sizes(study, STANDARD)),
        certificates=Certificates(
            layers=spread(bound for bound, _ in certified),
            over_loss=spread(ratio(bound, loss) for bound, loss in certified),
            vacuous=sum(bound >= 1 for bound, _ in certified),
            of=len(certified),
        ),
        composition=predicted(study.composition),
        times=study.times,
        plotted=Plotted(
            data_agnostic_error=tuple(map(agnostic_error, rows)),
            price_bound=tuple(row.price_bound for row in rows),
            recovery_error=tuple(row.recovery_error for row in rows),
            projected_bound=tuple(row.projected_bound for row in rows),
        ),
    )


def driven_error(row: LayerAtRank) -> float | None:
    return row.data_driven_error


def agnostic_error(row: LayerAtRank) -> float | None:
    return row.data_agnostic_error


def predicted(found: Composition) -> Predictions:
    """What the errors of layers predict of the network's."""
    return Predictions(
        measured=found.measured,
        sum=ratio(found.sum, found.measured),
        root_of_squares=ratio(found.root_of_squares, found.measured),
        telescoping=ratio(found.telescoping, found.measured),
        telescoping_bound=ratio(found.telescoping_bound, found.measured),
        residuals_bound=ratio(found.residuals_bound, found.measured),
    )


def measure(*, quick: bool) -> dict[str, Any]:
    folder = ROOT / "out" / "figures" if quick else ROOT / "figures"
    files = {name: folder / f"transfer_{name}.json" for name in CASES}
    there = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
    if not there:
        sys.exit(f"{folder} has no transfer_<network>.json: run experiments/transfer_digits.py")
    missing = [name for name in CASES if name not in there]
    if missing:
        print(f"not studied yet: {', '.join(missing)}")
    networks = {name: summary(_transfer.kept(numbers)) for name, numbers in there.items()}
    return plain({"missing": missing, "networks": networks})


# --- figure ---------------------------------------------------------------------------------------


def draw(numbers: dict[str, Any]) -> Figure:
    networks = {name: typed(Summary, found) for name, found in numbers["networks"].items()}
    figure, axes = panels(6, width=4.2, height=3.6)
    for style, (name, found) in zip(SERIES, networks.items(), strict=False):
        driven, agnostic, after = (
            list(at(found.sizes, method).values()) for method in (DRIVEN, AGNOSTIC, SEQUENTIAL)
        )
        filled_in = {**style, "linestyle": "-"}
        hollow = {**style, "linestyle": ":", "markerfacecolor": "none"}
        for rows, kind, label in ((driven, filled_in, name), (agnostic, hollow, None)):
            shares = [100 * row.share for row in rows]
            errors = [row.error_held_out for row in rows]
            changes = [100 * row.relative_change for row in rows]
            axes[0].plot(shares, errors, **kind, markersize=5, label=label)
            axes[1].plot(shares, changes, **kind, markersize=5, label=label)
        shares = [100 * row.share for row in after]
        axes[2].plot(shares, [pair.held_out for pair in found.sequential], **filled_in, label=name)
        axes[2].plot(shares, [pair.calibration for pair in found.sequential], **hollow)
        plotted = found.plotted
        _scatter(axes[3], plotted.data_agnostic_error, plotted.price_bound, style)
        _scatter(axes[4], plotted.recovery_error, plotted.projected_bound, style)
        for rows, inside in ((driven, style["color"]), (agnostic, "none")):
            kind = {**style, "linestyle": "", "markerfacecolor": inside}
            lost = [-100 * row.relative_change for row in rows]
            axes[5].plot([row.error_held_out for row in rows], lost, **kind)
    _finish(axes)
    legend_above(figure, axes[0], 7)
    return figure


def _scatter(panel: Axes, error: Sequence[Any], bound: Sequence[Any], style: Any) -> None:
    pairs = zip(error, bound, strict=True)
    drawn = [(x, y) for x, y in pairs if x is not None and y is not None and x > RESOLVED]
    kind = {**style, "linestyle": "", "markersize": 2.5, "alpha": 0.6, "rasterized": True}
    panel.plot(*np.array(drawn, float).reshape(-1, 2).T, **kind)


def _finish(axes: Sequence[Axes]) -> None:
    words = (
        ("bytes / dense (%)", "output error / outputs", "filled: fitted; hollow: truncated"),
        ("bytes / dense (%)", "change of the metric (%)", "filled: fitted; hollow: truncated"),
        (
            "bytes / dense (%)",
            "output error, sequential / alone",
            "filled: held out; hollow: calibration",
        ),
        ("error / outputs", "bound", "price of ignoring the data"),
        ("error / outputs", "bound", "recovery from the other half"),
        ("output error / outputs", "loss of the metric (%)", "metric and output error"),
    )
    for panel, (x, y, title) in zip(axes, words, strict=True):
        panel.set_xlabel(x)
        panel.set_ylabel(y)
        panel.set_title(title, fontsize=10)
    for index in (0, 3, 4):
        axes[index].set_yscale("log")
    for index in (3, 4, 5):
        axes[index].set_xscale("log")
    axes[1].set_yscale("symlog", linthresh=1)
    axes[5].set_yscale("symlog", linthresh=0.1)
    axes[1].axhline(0, **LIMIT)
    axes[2].axhline(1, **LIMIT)
    axes[5].axhline(0, **LIMIT)
    for panel in axes[3:5]:
        low, high = panel.get_xlim()
        panel.plot([low, high], [low, high], **LIMIT)


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
    if "--quick" not in sys.argv:
        write_atomically(NOTE, filled(NOTE.read_text(), ROOT / "figures").encode())
        print(f"filled the tables of {NOTE}")
