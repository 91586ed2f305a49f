"""The ways of compressing a network that a study compares: one table of them."""

import dataclasses

from lowrank_theory.lookup import LookUp
from lowrank_theory.mixtures import (
    LowRankAndQuantised,
    LowRankAndSparse,
    LowRankBesides,
    PrincipalComponentPursuit,
    PrunedAndRounded,
    QuantisedFactors,
)
from lowrank_theory.quantisation import GPTQ, ActivationAware, HalfQuadratic, RoundToNearest
from lowrank_theory.recovery import AbstractLadder, ActivationWeighted, TruncatedSVD
from lowrank_theory.sparsification import GroupedMagnitude, Magnitude, SparseGPT, Structured, Wanda


@dataclasses.dataclass(frozen=True)
class Way:
    """A ladder, whether layer after layer is fitted, and what it does to a layer `in_words`."""

    name: str
    in_words: str
    method: AbstractLadder
    sequential: bool = False


DRIVEN = Way(
    "data-driven",
    "fitting it at low rank to the inputs that it sees in the original network",
    ActivationWeighted(),
)
AGNOSTIC = Way("data-agnostic", "truncating its singular values", TruncatedSVD())
SEQUENTIAL = Way(
    "sequential",
    "fitting it at low rank to what it sees in the network compressed so far",
    ActivationWeighted(),
    sequential=True,
)
SAME_RANKS = Way(
    "data-agnostic, same ranks", "truncating it at the data-driven rank", TruncatedSVD()
)
ROUNDED = Way("rounded", "rounding its entries to few bits", RoundToNearest())
SWEPT = Way(
    "gptq",
    "rounding input after input, each to make up for those before it",
    GPTQ(),
)
AWARE = Way(
    "activation aware",
    "rounding its entries, inputs scaled by their mean sizes",
    ActivationAware(RoundToNearest((2, 3, 4, 8), weighted=True)),
)
HALF_QUADRATIC = Way(
    "half-quadratic", "rounding its entries, with zeros that make errors sparse", HalfQuadratic()
)
SPARSE = Way("sparse", "keeping its largest entries", Magnitude())
N_OF_M = Way("n of m", "keeping the largest of each few entries", GroupedMagnitude())
WANDA = Way("wanda", "keeping entries by their size and that of their input", Wanda())
SPARSE_GPT = Way(
    "sparse gpt", "removing entries in turn, with the later inputs making up for it", SparseGPT()
)
FEWER_INPUTS = Way(
    "fewer inputs", "removing whole inputs and fitting the others to what all gave", Structured()
)
MIXED = Way(
    "low rank and sparse",
    "fitting low rank and a few entries besides to the inputs that it sees",
    LowRankAndSparse(),
)
LOOK_UP = Way("look-up", "looking its outputs up in tables, by comparisons of its inputs", LookUp())
QUANTISED_MIX = Way(
    "low rank and gptq",
    "rounding it in turn with fitting the rest at low rank, in factors of few bits",
    LowRankAndQuantised(),
)
FEW_BITS = Way(
    "factors of few bits",
    "fitting it at low rank to the inputs that it sees, in factors of few bits",
    QuantisedFactors(),
)

OATS = Way(
    "oats",
    "fitting low rank and a few entries of each output besides to the sizes of its inputs",
    LowRankAndSparse(low_rank_share=0.25, steps=80, diagonal=True, per_output=True),
)
ROBUST = Way(
    "robust principal components",
    "splitting it into low rank and a few entries without a look at the data",
    PrincipalComponentPursuit(),
)
PRUNED_AND_ROUNDED = Way(
    "pruned and rounded",
    "rounding the largest of its entries, and leaving out the others",
    PrunedAndRounded(),
)
SLIM = Way(
    "slim",
    "pruning it by Wanda, rounding what stays, and fitting what is left at low rank",
    LowRankBesides(PrunedAndRounded(Wanda((0.1, 0.3, 0.5, 0.7), ((1, 4), (2, 4))))),
)

STANDARD = (AGNOSTIC, DRIVEN, SEQUENTIAL)  # what every study compares, and SAME_RANKS
# What one compares if it is asked to.
OTHERS = (
    ROUNDED,
    SWEPT,
    AWARE,
    HALF_QUADRATIC,
    SPARSE,
    N_OF_M,
    WANDA,
    SPARSE_GPT,
    FEWER_INPUTS,
    MIXED,
    OATS,
    ROBUST,
    PRUNED_AND_ROUNDED,
    SLIM,
    LOOK_UP,
    QUANTISED_MIX,
    FEW_BITS,
)
WAYS = {way.name: way for way in (DRIVEN, AGNOSTIC, SEQUENTIAL, SAME_RANKS, *OTHERS)}
