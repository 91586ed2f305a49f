"""The laws from which synthetic layers are drawn: spectra, activations, targets and noise."""

from lowrank_theory.generators import activations as activations
from lowrank_theory.generators import noise as noise
from lowrank_theory.generators import spectra as spectra
from lowrank_theory.generators import targets as targets
