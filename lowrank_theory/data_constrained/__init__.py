"""Compression where the data cannot be used: calibration without data.

What a batch normalisation keeps of its data is named (`BatchNormalisation`, `channel_statistics`),
and `Synthetic` makes batches of it that `networks.observe` and `networks.compress` take as they
take data. `folded`, `equalise` and `absorb_high_means` give the same function weights that lose
less, `keeping_mean` corrects a bias, and `rectified` and its kin are moments in closed form.
"""

from lowrank_theory.data_constrained.closed_forms import added as added
from lowrank_theory.data_constrained.closed_forms import averaged as averaged
from lowrank_theory.data_constrained.closed_forms import largest_rectified as largest_rectified
from lowrank_theory.data_constrained.closed_forms import rectified as rectified
from lowrank_theory.data_constrained.equalisation import Pair as Pair
from lowrank_theory.data_constrained.equalisation import Preconditioned as Preconditioned
from lowrank_theory.data_constrained.equalisation import absorb_high_means as absorb_high_means
from lowrank_theory.data_constrained.equalisation import equalise as equalise
from lowrank_theory.data_constrained.equalisation import equalising_factors as equalising_factors
from lowrank_theory.data_constrained.equalisation import find_pairs as find_pairs
from lowrank_theory.data_constrained.equalisation import rescaled as rescaled
from lowrank_theory.data_constrained.normalisation import BatchNormalisation as BatchNormalisation
from lowrank_theory.data_constrained.normalisation import ChannelStatistics as ChannelStatistics
from lowrank_theory.data_constrained.normalisation import channel_statistics as channel_statistics
from lowrank_theory.data_constrained.normalisation import folded as folded
from lowrank_theory.data_constrained.synthetic import Synthetic as Synthetic
from lowrank_theory.data_constrained.synthetic import keeping_mean as keeping_mean
from lowrank_theory.data_constrained.synthetic import natural_noise as natural_noise
