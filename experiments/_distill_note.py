"""The tables of `paper_notes/without_labels.md`, from the numbers of the figures."""

import functools
from collections.abc import Mapping
from pathlib import Path

from _transfer_note import Row, Tables, filled, table
from lowrank_theory._files import write_atomically

NOTE = Path(__file__).resolve().parents[1] / "paper_notes" / "without_labels.md"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _mean(found: Mapping[str, Row], name: str) -> str:
    """In per cent, with half of its interval."""
    each = found[name]
    return f"{100 * each['mean']:.1f} ± {50 * (each['high'] - each['low']):.1f} %"


def _students(numbers: Row) -> str:
    rows = [
        [
            f"64-{row['hidden']}-10, random weights",
            f"{row['parameters'] / numbers['parameters']:.3f}",
            "",
            *(_mean(row, name) for name in ("accuracy", "agreement")),
        ]
        for row in numbers["perceptrons"]
    ]
    for row in numbers["factors"]:
        after = row["after"]["digits"]
        rows.append(
            [
                f"low rank, {row['method']}",
                f"{row['parameters'] / numbers['parameters']:.3f}",
                _percent(row["before"]["accuracy"]),
                *(_mean(after, name) for name in ("accuracy", "agreement")),
            ]
        )
    header = ["student", "share of parameters", "before", "distilled", "agrees with the teacher"]
    return table(header, rows)


def _images(numbers: Row) -> str:
    (tenth,) = (row for row in numbers["factors"] if len(row["after"]) > 1)
    small = numbers["small"]
    rows = [
        [name, *(_mean(each[name], "accuracy") for each in (small["images"], tenth["after"]))]
        for name in small["images"]
    ]
    hidden = f"64-{small['hidden']}-10, random weights"
    return table(["images", hidden, f"low rank at {tenth['share']}"], rows)


def _said(numbers: Row) -> str:
    words = {
        "soft": "soft labels",
        "decisions": "the teacher's decisions",
        "true": "true labels",
        "few": f"true labels of {numbers['few']} images",
    }
    found = numbers["small"]["said"]
    names = ("accuracy", "agreement")
    rows = [[words[name], *(_mean(found[name], each) for each in names)] for name in words]
    return table(["learned from", *names], rows)


def _generations(numbers: Row) -> str:
    names = ("accuracy", "agreement")
    rows = [
        [str(number), *(_mean(found, each) for each in names)]
        for number, found in enumerate(numbers["generations"], start=1)
    ]
    return table(["generation", "accuracy", "agreement with the first teacher"], rows)


def _networks(title: str, numbers: Row) -> str:
    teacher = numbers["teacher"]["accuracy"]
    rows = []
    for name, row in numbers["students"].items():
        before, after = (row[when]["accuracy"] for when in ("before", "after"))
        recovered = _percent((after - before) / (teacher - before))
        rows.append(
            [
                name,
                f"{row['share']:.3f}",
                *map(_percent, (before, after)),
                "" if "random" in name else recovered,
                _percent(row["after"]["agreement"]),
                f"{row['steps']} x {numbers['plan']['batch']}",
                f"{row['seconds_per_step']:.2f}",
            ]
        )
    header = [f"student of {title}, {_percent(teacher)}", "share", "before", "distilled"]
    return table([*header, "recovered", "agrees", "steps x images", "seconds a step"], rows)


TABLES: Tables = {
    "ResNet-20": ("distill_resnet20", functools.partial(_networks, "ResNet-20")),
    "AlexNet": ("distill_alexnet", functools.partial(_networks, "AlexNet")),
    "students": ("distill_digits", _students),
    "transfer images": ("distill_digits", _images),
    "what is said": ("distill_digits", _said),
    "generations": ("distill_digits", _generations),
}


def write_tables() -> None:
    """Set those of the note anew."""
    write_atomically(NOTE, filled(NOTE.read_text(), NOTE.parents[1] / "figures", TABLES).encode())
