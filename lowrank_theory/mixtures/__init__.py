"""Sums and products of approximations of different kinds: one file for each method."""

from lowrank_theory.mixtures.low_rank_and_quantised import (
    LowRankAndQuantised as LowRankAndQuantised,
)
from lowrank_theory.mixtures.low_rank_and_quantised import (
    low_rank_and_quantised as low_rank_and_quantised,
)
from lowrank_theory.mixtures.low_rank_and_sparse import LowRankAndSparse as LowRankAndSparse
from lowrank_theory.mixtures.low_rank_and_sparse import low_rank_and_sparse as low_rank_and_sparse
from lowrank_theory.mixtures.low_rank_besides import LowRankBesides as LowRankBesides
from lowrank_theory.mixtures.principal_component_pursuit import (
    PrincipalComponentPursuit as PrincipalComponentPursuit,
)
from lowrank_theory.mixtures.principal_component_pursuit import (
    principal_component_pursuit as principal_component_pursuit,
)
from lowrank_theory.mixtures.pruned_and_rounded import PrunedAndRounded as PrunedAndRounded
from lowrank_theory.mixtures.pruned_and_rounded import rounded_entries as rounded_entries
from lowrank_theory.mixtures.quantised_factors import QuantisedFactors as QuantisedFactors
