"""Every ladder, each registered once: what the laws are asked of."""

from lowrank_theory.lookup import AsTheyCome, LookUp
from lowrank_theory.mixtures import (
    LowRankAndQuantised,
    LowRankAndSparse,
    LowRankBesides,
    PrincipalComponentPursuit,
    PrunedAndRounded,
    QuantisedFactors,
)
from lowrank_theory.quantisation import (
    GPTQ,
    ActivationAware,
    CoordinateDescent,
    HalfQuadratic,
    RoundToNearest,
)
from lowrank_theory.recovery import AbstractLadder, ActivationWeighted, TruncatedSVD
from lowrank_theory.sparsification import (
    GroupedMagnitude,
    Magnitude,
    Refitted,
    SparseGPT,
    Structured,
    Wanda,
)

LADDERS: dict[str, AbstractLadder] = {
    "truncated svd": TruncatedSVD(),
    "activation weighted": ActivationWeighted(),
    "rounded": RoundToNearest((1, 3, 8)),
    "rounded, groups of inputs": RoundToNearest((2, 4), group=5),
    "rounded, groups of outputs, with zeros": RoundToNearest((1, 4), 4, axis=1, symmetric=False),
    "rounded, absmax": RoundToNearest((4,), clipped=False),
    "rounded, one grid": RoundToNearest((4,), axis=None),
    "rounded, weighted": RoundToNearest((3,), group=5, weighted=True),
    "gptq": GPTQ(RoundToNearest((1, 3), group=5)),
    "gptq, with zeros, in order": GPTQ(RoundToNearest((2, 8), symmetric=False), ordered=False),
    "coordinate descent": CoordinateDescent(RoundToNearest((1, 3), group=5), 2),
    "coordinate descent, with zeros": CoordinateDescent(
        RoundToNearest((2,), 4, axis=1, symmetric=False), 2
    ),
    "activation aware": ActivationAware(RoundToNearest((2, 4), group=5), (0.3, 0.8)),
    "half-quadratic": HalfQuadratic((2, 4), group=5),
    "magnitude": Magnitude((0.1, 0.5)),
    "magnitude, per output": Magnitude((0.25,), per_output=True),
    "n of m": GroupedMagnitude(((1, 4), (2, 4))),
    "wanda": Wanda((0.5,), ((1, 4),)),
    "refitted": Refitted(Magnitude((0.3, 0.5))),
    "sparse gpt": SparseGPT((0.5,), ((1, 4),), block=5),
    "fewer inputs": Structured((0.25, 0.5)),
    "fewer outputs": Structured((0.3, 0.6), axis=1),
    "fewer inputs, by weights": Structured((0.5,), data_driven=False),
    "look-up": LookUp((1, 3), levels=2),
    "look-up, published": LookUp(
        (1, 2), levels=2, order=AsTheyCome(), weighted=False, rounded=False
    ),
    "low rank and rounded": LowRankAndQuantised(
        RoundToNearest((2, 4)), (0.3,), TruncatedSVD(), None, steps=1
    ),
    "low rank and gptq": LowRankAndQuantised(GPTQ(RoundToNearest((2,))), (0.2, 0.5), steps=3),
    "factors of few bits": QuantisedFactors((4, 8), (0.3, 2.0)),
    "low rank and sparse": LowRankAndSparse((0.3, 0.6)),
    "oats": LowRankAndSparse((0.3, 0.6), 0.25, diagonal=True, per_output=True),
    "robust principal components": PrincipalComponentPursuit((0.3, 0.6)),
    "pruned and rounded": PrunedAndRounded(Magnitude((0.1, 0.5)), group=5),
    "slim": LowRankBesides(PrunedAndRounded(Wanda((0.4,), ((2, 4),)))),
}
