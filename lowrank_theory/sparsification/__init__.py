"""Matrices of few entries: one file for each method."""

from lowrank_theory.sparsification.grouped_magnitude import GroupedMagnitude as GroupedMagnitude
from lowrank_theory.sparsification.magnitude import Magnitude as Magnitude
from lowrank_theory.sparsification.magnitude import largest_entries as largest_entries
