"""The tables of `paper_notes/look_up.md`, from the numbers of the figures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from _look_up_trends import EXPECTED
from _transfer_note import Row, Tables, filled, table
from lowrank_theory._files import write_atomically

NOTE = Path(__file__).resolve().parents[1] / "paper_notes" / "look_up.md"


def _shares(values: Sequence[float]) -> list[str]:
    """Shares and accuracies, in thousandths."""
    return [f"{value:.3f}".removeprefix("0") for value in values]


def _means(rows: Sequence[Row], name: str) -> list[str]:
    return _shares([row[name]["mean"] for row in rows])


def _rows(numbers: Row) -> str:
    columns = {
        "published": "published",
        "ours": "ours",
        "bucket means": "means",
        "nearest centres": "centres",
        "the same, fitted": "centres_fitted",
        "no code of $4C$ bits": "floor",
    }
    rows = numbers["low_rank"]["tables"]
    cells = [[str(row["codebooks"]) for row in rows], *(_means(rows, n) for n in columns.values())]
    return table(["codebooks", *columns], zip(*cells, strict=True))


def _trends(numbers: Row) -> str:
    rows = []
    for trend, (codebooks, expected) in EXPECTED.items():
        where = f"{trend} ({', '.join(map(str, codebooks))})"
        for name, values in numbers["trends"][trend].items():
            given = " ".join(_shares(expected.get(name, ())))
            measured = " ".join(_shares(values[-len(codebooks) :]))
            rows.append([where, name, given, measured])
            where = ""
    return table(["rows (codebooks)", "method", "expected", "measured"], rows)


def _networks(name: str, expected: Mapping[str, Sequence[str]]) -> Callable[[Row], str]:
    def made(numbers: Row) -> str:
        found, published = numbers[name], numbers[name]["published"]
        rows = [[words, *values] for words, values in expected.items()]
        rows += [
            ["all layers, trained in between", *_means(published, "trained_between")],
            ["all layers", *_means(published, "all")],
            ["all layers, trees that know the weights", *_means(found["weighted"], "all")],
            ["all layers, clustered inputs as well", *_means(found["ours"], "all")],
            ["first layer alone", *_means(published, "layer_0")],
            [
                "first layer alone, trees that know the weights",
                *_means(found["weighted"], "layer_0"),
            ],
            ["last layer alone", *_means(published, "layer_3")],
        ]
        exact = _shares([found["exact"]["mean"]])[0]
        rows = [row + [""] * (6 - len(row)) for row in rows]
        header = [f"codebooks; exact layers {exact}", *(str(r["codebooks"]) for r in published)]
        return table(header, [row[:6] for row in rows])

    return made


def _alexnet(numbers: Row) -> str:
    found = numbers["alexnet"]
    header = ["bytes of the convolutions", "method", "accuracy", "output loss ≤ certificate"]
    rows = [
        [
            f"{100 * row['bytes']:.0f} %",
            row["method"],
            f"{row['accuracy']:.3f}",
            f"{row['loss']:.3f} ≤ {row['certificate']:.3f}",
        ]
        for row in found["rows"]
    ]
    exact = ["100 %", "exact", f"{found['exact']:.3f}", ""]
    return table(header, [exact, *rows])


def _last(numbers: Row) -> str:
    rows = []
    for name, found in numbers["last"].items():
        inputs, outputs = found["shape"]
        rows.append([f"{name}, {inputs} × {outputs}", "exact", "100 %", f"{found['exact']:.3f}"])
        for kind in ("tables", "low_rank"):
            rows += [
                ["", row["size"], f"{100 * row['bytes']:.1f} %", f"{row['accuracy']:.3f}"]
                for row in found[kind]
            ]
    return table(["last layer", "size", "bytes", "accuracy"], rows)


_PUBLISHED = {
    "all layers, as published": (".361", ".363", ".520", ".705", ".849"),
    "first layer alone, as published": (".362", ".453", ".632", ".760", ".844"),
    "last layer alone, as published": (".646", ".885", ".936", ".955", ".965"),
}
_INDEPENDENT = {
    "all layers, independent experiment": (".50–.55", ".54–.63", ".68", ".84–.87", ".93–.94"),
    "the same, trained in between": (".51–.55", ".61–.62", ".68–.73", ".85", ".94"),
    "first layer alone, independent experiment": (".55", ".74", ".86", ".93", ".96"),
    "last layer alone, independent experiment": (".63", ".83", ".91", ".97", ".98"),
}

# The name of each table in the note, the figure that its numbers are of, and how it is made.
TABLES: Tables = {
    "rows": ("look_up", _rows),
    "trends": ("look_up", _trends),
    "mnist": ("look_up_networks", _networks("mnist", _PUBLISHED)),
    "digits": ("look_up_networks", _networks("digits", _INDEPENDENT)),
    "alexnet": ("look_up_networks", _alexnet),
    "last": ("look_up_networks", _last),
}


def write_tables() -> None:
    """Set those of the note anew."""
    write_atomically(NOTE, filled(NOTE.read_text(), NOTE.parents[1] / "figures", TABLES).encode())
