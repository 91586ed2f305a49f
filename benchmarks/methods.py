"""What each method loses of held-out outputs, where inputs are more or less alike, beside what is
expected of it.

python benchmarks/methods.py [--write]

prints a table for each family of methods: the relative error of the outputs of rows that were not
seen, the mean over seeds, and in brackets what was measured or published elsewhere. With `--write`
the tables go to `paper_notes/methods.md`, between `<!-- measured -->` and `<!-- end -->`.
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lowrank_theory._files import write_atomically
from lowrank_theory.approximations import AbstractMatrix
from lowrank_theory.mixtures import (
    LowRankAndQuantised,
    LowRankAndSparse,
    LowRankBesides,
    PrincipalComponentPursuit,
    PrunedAndRounded,
    QuantisedFactors,
)
from lowrank_theory.problems import Observed
from lowrank_theory.quantisation import GPTQ, ActivationAware, HalfQuadratic, RoundToNearest
from lowrank_theory.recovery import (
    AbstractLadder,
    ActivationWeighted,
    DiagonalQERA,
    TruncatedSVD,
    dense_float64,
)
from lowrank_theory.sparsification import (
    GroupedMagnitude,
    Magnitude,
    SparseGPT,
    Structured,
    Wanda,
)

NOTE = Path(__file__).parents[1] / "paper_notes" / "methods.md"
SIDE, SEEDS = 256, 3
SAMPLES = 8  # rows for each input, as many again held out


@dataclasses.dataclass(frozen=True)
class Layer:
    """Weights, the rows that a method sees, and others of the same law."""

    weights: np.ndarray
    seen: np.ndarray
    held_out: np.ndarray

    def error(self, ladder: AbstractLadder) -> float:
        """Of the first size, on held-out rows."""
        observed = Observed(weights=self.weights, activations=self.seen)
        found = ladder.sweep(observed).at(0).approximation
        assert isinstance(found, AbstractMatrix)
        missed = self.held_out @ (self.weights - dense_float64(found))
        return float(np.linalg.norm(missed) / np.linalg.norm(self.held_out @ self.weights))


Law = Callable[[int, int], Layer]


def layer_law(
    decay: float, *, loud: Sequence[int] = (), ratio: float = 1.0, freedom: float = 5
) -> Law:
    """Square weights with the law of Student, and Gaussian rows whose covariance has the
    eigenvalues $i^{-d}$ in random directions; some channels are `ratio` times as large.
    """

    def draw(side: int, seed: int) -> Layer:
        random = np.random.default_rng(seed)
        weights = random.standard_t(freedom, (side, side))
        basis, _ = np.linalg.qr(random.standard_normal((side, side)))
        root = np.arange(1, side + 1.0)[:, None] ** (-decay / 2) * basis.T
        root[:, [k for k in loud if k < side]] *= ratio
        seen, held_out = random.standard_normal((2, SAMPLES * side, side)) @ root
        return Layer(weights, seen, held_out)

    return draw


def weights_alone(side: int, seed: int) -> Layer:
    """Heavy tails, and each entry counts alike."""
    weights = np.random.default_rng(seed).standard_t(3, (side, side))
    return Layer(weights, np.eye(side), np.eye(side))


def gaussian_weights_alone(side: int, seed: int) -> Layer:
    """Each entry counts alike."""
    weights = np.random.default_rng(seed).standard_normal((side, side))
    return Layer(weights, np.eye(side), np.eye(side))


def planted_sum(side: int, seed: int) -> Layer:
    """Low rank (8 of 256), 5 % of the entries five times as large, and a tenth of noise."""
    random = np.random.default_rng(seed)
    rank = side // 32
    left, right = random.standard_normal((2, side, rank)) / rank**0.25
    entries = 5 * random.standard_normal((side, side)) * (random.random((side, side)) < 0.05)
    weights = left @ right.T + entries + 0.1 * random.standard_normal((side, side))
    return Layer(weights, np.eye(side), np.eye(side))


COVARIANCES: Mapping[str, Law] = {
    "isotropic": layer_law(0),
    "1/i": layer_law(1),
    "1/i²": layer_law(2),
    "1/i, 6 channels × 20": layer_law(1, loud=range(0, 48, 8), ratio=20),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """Methods that are compared on the same layers: of each a ladder, and what is expected of it
    on each of these, where that is known.
    """

    title: str
    laws: Mapping[str, Law]
    methods: Mapping[str, tuple[AbstractLadder, Sequence[float]]]

    def measured(self, side: int, seeds: int) -> dict[str, list[float]]:
        """The mean error of each method on each law."""
        layers = [[law(side, seed) for seed in range(seeds)] for law in self.laws.values()]
        return {
            name: [float(np.mean([layer.error(ladder) for layer in drawn])) for drawn in layers]
            for name, (ladder, _) in self.methods.items()
        }

    def table(self, side: int, seeds: int) -> str:
        """In Markdown."""
        lines = [f"| {self.title} | {' | '.join(self.laws)} |", "|---" * (1 + len(self.laws)) + "|"]
        for name, errors in self.measured(side, seeds).items():
            known = [*self.methods[name][1], *[np.nan] * len(errors)]
            cells = [
                f"{error:.3g}" + ("" if np.isnan(other) else f" ({other:.3g})")
                for error, other in zip(errors, known, strict=False)
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)


def _few_bits() -> Family:
    clipped = RoundToNearest((3,))
    return Family(
        "3 bits",
        COVARIANCES,
        {
            "one grid, absmax": (
                RoundToNearest((3,), axis=None, clipped=False),
                (0.971, 0.830, 0.804, 0.890),
            ),
            "each output, absmax": (
                RoundToNearest((3,), clipped=False),
                (0.439, 0.454, 0.414, 0.433),
            ),
            "each output": (clipped, (0.281, 0.277, 0.270, 0.290)),
            "groups of 64": (RoundToNearest((3,), group=64), (0.248, 0.253, 0.246, 0.236)),
            "each output, weighted grids": (RoundToNearest((3,), weighted=True), ()),
            "GPTQ in the order given": (
                GPTQ(clipped, ordered=False),
                (0.289, 0.195, 0.052, 0.197),
            ),
            "GPTQ, ordered": (GPTQ(clipped), (np.nan, 0.195, 0.046, 0.171)),
            "GPTQ, ordered, weighted grids": (GPTQ(RoundToNearest((3,), weighted=True)), ()),
            "GPTQ, ordered, groups of 64": (GPTQ(RoundToNearest((3,), group=64)), ()),
        },
    )


def _two_bits() -> Family:
    levels, share = RoundToNearest((2,)), (0.1251,)  # rank 16 of 256

    def beside(quantiser, low_rank, steps=1, factor_bits=None):
        return LowRankAndQuantised(quantiser, share, low_rank, factor_bits, steps)

    return Family(
        "2 bits, and rank 16",
        COVARIANCES,
        {
            "2 bits alone": (levels, (0.464, 0.459, 0.457, 0.460)),
            "LoRC": (beside(levels, TruncatedSVD()), (0.401, 0.401, 0.394, 0.387)),
            "LQER": (beside(levels, DiagonalQERA()), (0.401, 0.400, 0.342, 0.111)),
            "QERA": (beside(levels, ActivationWeighted()), (0.404, 0.298, 0.081, 0.084)),
            "GPTQ and low rank, in turn": (
                beside(GPTQ(levels), ActivationWeighted(), 10),
                (0.337, 0.228, 0.054, 0.066),
            ),
            "the same, factors of 8 bits": (beside(GPTQ(levels), ActivationWeighted(), 10, 8), ()),
            "the same, factors of 4 bits": (beside(GPTQ(levels), ActivationWeighted(), 10, 4), ()),
            "rank 64 in factors of 8 bits alone": (QuantisedFactors((8,), (0.5,)), ()),
        },
    )


def _scaled() -> Family:
    plain, weighted = (RoundToNearest((3,), group=64, weighted=each) for each in (False, True))
    return Family(
        "3 bits, groups of 64",
        {"isotropic, 3 channels × 30": layer_law(0, loud=range(3), ratio=30)},
        {
            "nearest": (plain, (0.249,)),
            "nearest, weighted grids": (weighted, ()),
            "AWQ, grids that are not weighted": (ActivationAware(plain), ()),
            "AWQ": (ActivationAware(weighted), (0.122,)),
        },
    )


def _sparse_errors() -> Family:
    expected = {2: (0.513, 0.510), 3: (0.267, 0.259), 4: (0.132, 0.125)}
    methods: dict[str, tuple[AbstractLadder, Sequence[float]]] = {}
    for bits, (nearest, half_quadratic) in expected.items():
        absmax = RoundToNearest((bits,), group=64, symmetric=False, clipped=False)
        methods[f"{bits} bits, nearest, absmax"] = absmax, (nearest,)
        methods[f"{bits} bits, HQQ"] = HalfQuadratic((bits,)), (half_quadratic,)
        methods[f"{bits} bits, nearest, clipped"] = (
            RoundToNearest((bits,), group=64, symmetric=False),
            (),
        )
    return Family("with zeros, groups of 64", {"weights alone, t(3)": weights_alone}, methods)


def _half() -> Family:
    pattern = ((2, 4),)
    return Family(
        "half of the weights",
        COVARIANCES,
        {
            "magnitude": (Magnitude((0.5,)), (0.221, 0.226, 0.226, 0.213)),
            "Wanda": (Wanda((0.5,), ()), (0.223, 0.219, 0.189, 0.061)),
            "SparseGPT": (SparseGPT((0.5,), ()), (0.227, 0.163, 0.049, 0.045)),
            "2 of 4, magnitude": (GroupedMagnitude(pattern), ()),
            "2 of 4, Wanda": (Wanda((), pattern), ()),
            "2 of 4, SparseGPT": (SparseGPT((), pattern), ()),
            "whole inputs, by weights": (Structured((0.5,), data_driven=False), ()),
            "whole inputs, by data": (Structured((0.5,)), ()),
        },
    )


def _sums() -> Family:
    def mixed(low_rank_share: float) -> LowRankAndSparse:
        return LowRankAndSparse((0.25,), low_rank_share, 80, diagonal=True, per_output=True)

    return Family(
        "a quarter of the numbers",
        {"a sum of both": planted_sum, "Gaussian": gaussian_weights_alone},
        {
            "entries alone": (Magnitude((0.25,), per_output=True), ()),
            "OATS, a quarter of it in low rank": (mixed(0.25), ()),
            "OATS, half of it in low rank": (mixed(0.5), ()),
            "OATS, nearly all of it in low rank": (mixed(0.99), ()),
            "robust principal components, a quarter of it": (
                PrincipalComponentPursuit((0.25,), 0.25),
                (),
            ),
        },
    )


def _bits_and_entries() -> Family:
    def rounded(bits: int) -> PrunedAndRounded:
        return PrunedAndRounded(Magnitude((1 / (bits + 0.5),)), bits)  # a scale for each 64

    return Family(
        "2 bits for each weight, the places included",
        {"Gaussian": gaussian_weights_alone, "t(3)": weights_alone},
        {
            "all, in 2 bits": (RoundToNearest((2,)), (0.149**0.5,)),
            "3 %, in 32 bits": (Magnitude((1 / 32,)), (0.800**0.5,)),
            "12 %, in 8 bits": (rounded(8), ()),
            "22 %, in 4 bits": (rounded(4), ()),
            "40 %, in 2 bits": (rounded(2), ()),
        },
    )


def _besides() -> Family:
    pruned = PrunedAndRounded(Wanda((), ((2, 4),)))
    return Family(
        "2 of 4, in 4 bits",
        COVARIANCES,
        {
            "Wanda": (Wanda((), ((2, 4),)), ()),
            "Wanda, rounded": (pruned, ()),
            "Wanda, rounded, and rank 26 (SLiM)": (LowRankBesides(pruned), ()),
            "SparseGPT, rounded, and rank 26": (
                LowRankBesides(PrunedAndRounded(SparseGPT((), ((2, 4),)))),
                (),
            ),
        },
    )


FAMILIES: Mapping[str, Family] = {
    "Few bits": _few_bits(),
    "Low rank beside few bits": _two_bits(),
    "Scaled inputs": _scaled(),
    "Sparse errors": _sparse_errors(),
    "Few entries": _half(),
    "Low rank and few entries": _sums(),
    "Few bits of few entries": _bits_and_entries(),
    "Low rank beside few entries": _besides(),
}


def main() -> None:
    """Print all tables, and write them if asked to."""
    parts = []
    for title, family in FAMILIES.items():
        parts.append(f"### {title}\n\n{family.table(SIDE, SEEDS)}\n")
        print(parts[-1], flush=True)
    if "--write" in sys.argv[1:]:
        place = re.compile(r"(<!-- measured -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text = place.sub(
            lambda found: found.group(1) + "\n" + "\n".join(parts) + found.group(2),
            NOTE.read_text(encoding="utf-8"),
        )
        write_atomically(NOTE, text.encode())


if __name__ == "__main__":
    main()
