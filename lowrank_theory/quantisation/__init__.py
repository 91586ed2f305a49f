"""Matrices of few levels: one file for each method."""

from lowrank_theory.quantisation._quantiser import AbstractQuantiser as AbstractQuantiser
from lowrank_theory.quantisation.gptq import GPTQ as GPTQ
from lowrank_theory.quantisation.gptq import gptq as gptq
from lowrank_theory.quantisation.round_to_nearest import RoundToNearest as RoundToNearest
from lowrank_theory.quantisation.round_to_nearest import round_to_nearest as round_to_nearest
