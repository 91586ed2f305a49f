"""Sums and products of approximations of different kinds: one file for each method."""

from lowrank_theory.mixtures.low_rank_and_sparse import LowRankAndSparse as LowRankAndSparse
from lowrank_theory.mixtures.low_rank_and_sparse import low_rank_and_sparse as low_rank_and_sparse
