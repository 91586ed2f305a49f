"""Matrices of few levels: one file for each method."""

from lowrank_theory.quantisation._grids import Grid as Grid
from lowrank_theory.quantisation._quantiser import AbstractQuantiser as AbstractQuantiser
from lowrank_theory.quantisation._quantiser import check_quantiser as check_quantiser
from lowrank_theory.quantisation._quantiser import size_of as size_of
from lowrank_theory.quantisation.activation_aware import ActivationAware as ActivationAware
from lowrank_theory.quantisation.activation_aware import activation_aware as activation_aware
from lowrank_theory.quantisation.coordinate_descent import CoordinateDescent as CoordinateDescent
from lowrank_theory.quantisation.coordinate_descent import coordinate_descent as coordinate_descent
from lowrank_theory.quantisation.gptq import GPTQ as GPTQ
from lowrank_theory.quantisation.gptq import gptq as gptq
from lowrank_theory.quantisation.half_quadratic import HalfQuadratic as HalfQuadratic
from lowrank_theory.quantisation.half_quadratic import half_quadratic as half_quadratic
from lowrank_theory.quantisation.round_to_nearest import RoundToNearest as RoundToNearest
from lowrank_theory.quantisation.round_to_nearest import round_to_nearest as round_to_nearest
