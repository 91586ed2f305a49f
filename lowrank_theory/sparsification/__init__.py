"""Matrices of few entries: one file for each method."""

from lowrank_theory.sparsification.grouped_magnitude import GroupedMagnitude as GroupedMagnitude
from lowrank_theory.sparsification.magnitude import Magnitude as Magnitude
from lowrank_theory.sparsification.magnitude import largest_entries as largest_entries
from lowrank_theory.sparsification.refitted import Refitted as Refitted
from lowrank_theory.sparsification.refitted import refitted as refitted
from lowrank_theory.sparsification.sparse_gpt import SparseGPT as SparseGPT
from lowrank_theory.sparsification.sparse_gpt import sparse_gpt as sparse_gpt
from lowrank_theory.sparsification.sparse_gpt import sparse_gpt_n_of_m as sparse_gpt_n_of_m
from lowrank_theory.sparsification.structured import Structured as Structured
from lowrank_theory.sparsification.structured import fewer_inputs as fewer_inputs
from lowrank_theory.sparsification.wanda import Wanda as Wanda
from lowrank_theory.sparsification.wanda import wanda as wanda
from lowrank_theory.sparsification.wanda import wanda_n_of_m as wanda_n_of_m
