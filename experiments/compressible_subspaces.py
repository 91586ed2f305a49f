"""One network trained for every level: digits, by sparsity, bits, width and rank.

    python experiments/compressible_subspaces.py [--quick]

The network of `digits_cnn` with group normalisation in the place of batch normalisation (instance
normalisation for width). The line and the point (Nunez et al. 2021), their baselines, and rank as
the level. Batch normalisation, slimmable networks and rounded inputs are those of
`_subspaces_averaged`. Left, accuracy against the share of entries that is kept; right, the levels
on one axis, numbers kept in the compressed convolutions. Two seeds, of sixty epochs for sparsity
and thirty for the others. Every run is kept in `out/subspaces` and goes on from there. A seed is
another start and another order; bands go from the lower to the higher one.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from matplotlib.figure import Figure

import _subspaces_averaged as averaged
from _save import run
from _transfer_note import Row, Tables, filled, table
from lowrank_theory._files import write_atomically
from lowrank_theory.data_constrained import (
    AbstractCompressor,
    Fixed,
    KeepAll,
    Pruned,
    Rounded,
    Sampled,
    Trained,
)
from lowrank_theory.networks import Bytes, compress, digits_data
from lowrank_theory.plotting import LIMIT, SERIES, panels
from lowrank_theory.studies.subspaces import (
    KERNELS,
    LEVELS,
    RATE,
    Way,
    fit,
    numbers_kept,
    warm_up,
    way,
)

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "out" / "subspaces"
NOTE = ROOT / "paper_notes" / "after_deployment.md"
SEED, SEEDS = 0, 2
LONG, SHORT = 60, 30  # epochs
WARM_UP = warm_up(LONG)
EXPECTED = {
    "line": (0.884, 0.889, 0.951, 0.974, 0.989, 0.991),
    "point": (0.157, 0.297, 0.607, 0.946, 0.988, 0.991),
    "point, schedule of the line": (0.641, 0.494, 0.678, 0.930, 0.980, 0.992),
    "trained for 0.025": (0.933, 0.894, 0.939, 0.962, 0.972, 0.973),
    "trained for 0.1": (0.159, 0.520, 0.985, 0.978, 0.984, 0.983),
    "dense": (0.122, 0.155, 0.432, 0.743, 0.978, 0.992),
    "point, batch normalisation": (0.098, 0.131, 0.147, 0.250, 0.944, 0.915),
    "line, batch normalisation": (0.214, 0.179, 0.178, 0.309, 0.755, 0.636),
    "dense, batch normalisation": (0.098, 0.096, 0.103, 0.095, 0.809, 0.991),
}

UNSEEN = ("dense, batch normalisation",)  # for which the figure has no room
DIGITS = digits_data()


def accuracy(function: Callable[..., Array], parameters: PyTree) -> float:
    found = function(parameters, DIGITS.held_out_images).argmax(axis=1)
    return float((found == DIGITS.held_out_labels).mean())


@dataclasses.dataclass(frozen=True)
class Kind(Way):
    """A way to train, and at which levels the network is measured, if another is cut as `shown`."""

    measured: tuple[float, ...] = LEVELS["sparsity"]
    shown: AbstractCompressor | None = None
    epochs: int = LONG


def of_level(level: str, kind: str, epochs: int = SHORT) -> Kind:
    """The line or the point of a level."""
    chosen = way(level, kind, epochs)
    return Kind(**vars(chosen), measured=LEVELS[level], epochs=epochs)


PRUNED = Pruned(KERNELS)
KINDS: dict[str, Kind] = {
    "line": of_level("sparsity", "line", LONG),
    "point": Kind(PRUNED, Sampled(ends=0.0, warm_up=WARM_UP, gradual=False)),
    "point, schedule of the line": of_level("sparsity", "point", LONG),
    "trained for 0.025": Kind(PRUNED, Fixed(0.025, WARM_UP)),
    "trained for 0.1": Kind(PRUNED, Fixed(0.1, WARM_UP)),
    "dense": Kind(KeepAll(), Fixed(1.0), shown=PRUNED),
    "width, line": of_level("width", "line"),
    "width, point": of_level("width", "point"),
    "bits, line": of_level("bits", "line"),
    "bits, point": of_level("bits", "point"),
    "bits, each its own": Kind(
        Rounded(KERNELS), Sampled(values=6, apart=True), measured=LEVELS["bits"], epochs=SHORT
    ),
    "rank, point": of_level("rank", "point"),
    "rank, line": of_level("rank", "line"),
}  # fmt: skip


def trained(kind: Kind, seed: int, *, quick: bool) -> tuple[Any, Trained]:
    """A run, and the function of its parameters."""
    key = jax.random.fold_in(jax.random.key(SEED), seed)
    return fit(kind, 1 if quick else kind.epochs, key=key, folder=FOLDER)


def of_kind(name: str, *, quick: bool) -> dict[str, Any]:
    kind, found = KINDS[name], []
    for seed in range(1 if quick else SEEDS):
        function, run_of = trained(kind, seed, quick=quick)

        @eqx.filter_jit
        def at(pair: Any, images: Array, run_of: Trained = run_of, function: Any = function) -> Any:
            subspace, level = pair
            if kind.shown is not None:
                return function(kind.shown(subspace.at(1.0), level), images)
            return function(run_of.compressor(subspace.at(level), level), images)

        levels = [jnp.asarray(level) for level in kind.measured]
        found.append(
            {
                "accuracies": [accuracy(at, (run_of.subspace, each)) for each in levels],
                "squared_cosine": float(run_of.subspace.squared_cosine),
                "numbers": sum(
                    leaf.size for leaf in jax.tree.leaves(run_of.subspace) if leaf is not None
                ),
            }
        )
        print(name, seed, found[-1], flush=True)
    return {
        "levels": list(kind.measured),
        "numbers_kept": [numbers_kept(kind.compressor, level) for level in kind.measured],
        **averaged.over_seeds([each["accuracies"] for each in found]),
        "squared_cosine": float(np.mean([each["squared_cosine"] for each in found])),
        "numbers": found[0]["numbers"],
    }


def without_training(*, quick: bool) -> dict[str, Any]:
    """The dense networks, compressed by ranks once and cut: `Compressed.at`."""
    shares, found, kind = (0.06, 0.1, 0.15, 0.2, 0.35, 0.5), [], KINDS["dense"]
    for seed in range(1 if quick else SEEDS):
        function, run_of = trained(kind, seed, quick=quick)
        largest = compress(
            function, run_of.at(1.0), np.array_split(DIGITS.training_images, 4),
            Bytes(shares[-1]), select=KERNELS.__contains__, every_size=True,
        )  # fmt: skip
        cuts = [largest.at(share) for share in shares]
        found.append([accuracy(jax.jit(cut.function), cut.parameters) for cut in cuts])
    return {
        "levels": list(shares),
        "numbers_kept": list(shares),
        **averaged.over_seeds(found),
    }


def measure(*, quick: bool) -> dict[str, Any]:
    names = ("line", "dense", "bits, line", "rank, point") if quick else KINDS
    found = {name: of_kind(name, quick=quick) for name in names}
    found["rank, without training"] = without_training(quick=quick)
    key = jax.random.key(SEED)
    for name in ("width, slimmable",) if quick else averaged.KINDS:
        found[name] = averaged.of_kind(
            name, seeds=1 if quick else SEEDS, quick=quick, key=key, folder=FOLDER
        )
    epochs = {name: kind.epochs for name, kind in (KINDS | averaged.KINDS).items()}
    return {
        "seeds": 1 if quick else SEEDS,
        "epochs": {name: epochs[name] for name in found if name in epochs},
        "rate": RATE,
        "held_out_images": len(DIGITS.held_out_labels),
        "kinds": found,
    }


def draw(numbers: dict[str, Any]) -> Figure:
    kinds = numbers["kinds"]
    figure, (left, right) = panels(2, columns=2, width=5.2, height=4.0)
    sparse = [name for name in EXPECTED if name in kinds and name not in UNSEEN]
    for name, style in zip(sparse, SERIES, strict=False):
        _curve(left, kinds[name], name, style)
    left.set_xlabel("entries kept (%)")
    left.set_title("sparsity")
    both = ("line", "width, line", "width, point", "rank, line", "rank, point",
            "rank, without training", "dense", "width, universally slimmable")  # fmt: skip
    labels = {"line": "sparsity, line", "dense": "sparsity, without training"}
    for name, style in zip((n for n in both if n in kinds), SERIES, strict=False):
        _curve(right, kinds[name], labels.get(name, name), style)
    right.set_xlabel("numbers kept in three convolutions (%)")
    right.set_title("three levels")
    for panel in (left, right):
        panel.set_xscale("log")
        ticks = [2.5, 5, 10, 20, 50, 100]
        panel.set_xticks(ticks, [f"{each:g}" for each in ticks])
        panel.set_xticks([], minor=True)
        panel.set_ylabel("held-out accuracy (%)")
        panel.axhline(10, **LIMIT)
        panel.legend(fontsize=7)
    return figure


def _curve(panel: Any, row: dict[str, Any], label: str, style: Any) -> None:
    shares = 100 * np.array(row["numbers_kept"], float)
    panel.plot(shares, 100 * np.array(row["mean"]), **style, markersize=4, label=label)
    low, high = (100 * np.array(row[part]) for part in ("low", "high"))
    panel.fill_between(shares, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _sparsity(numbers: Row) -> str:
    kinds = numbers["kinds"]
    rows = [
        [name, *(f"{100 * a:.1f} ({100 * b:.1f})" for a, b in zip(kinds[name]["mean"], wanted,
                                                                  strict=True))]
        for name, wanted in EXPECTED.items()
        if name in kinds
    ]  # fmt: skip
    return table(["entries kept", *(f"{100 * level:g} %" for level in LEVELS["sparsity"])], rows)


def _others(numbers: Row) -> str:
    kinds = numbers["kinds"]

    def cells(name: str) -> str:
        row = kinds[name]
        sizes = [
            f"{round(2 + 6 * level)} bits" if kept is None else f"{100 * kept:.1f} %"
            for level, kept in zip(row["levels"], row["numbers_kept"], strict=True)
        ]
        pairs = zip(sizes, row["mean"], strict=True)
        return ", ".join(f"{size}: {100 * mean:.1f}" for size, mean in pairs)

    return table(
        ["", "size: accuracy"], [[name, cells(name)] for name in kinds if name not in EXPECTED]
    )


TABLES: Tables = {
    "sparsity": ("compressible_subspaces", _sparsity),
    "others": ("compressible_subspaces", _others),
}


if __name__ == "__main__":
    run(__file__, measure, draw, seed=SEED)
    if "--quick" not in sys.argv:
        text = filled(NOTE.read_text(), NOTE.parents[1] / "figures", TABLES)
        write_atomically(NOTE, text.encode())
