"""Compression where the data cannot be used: without data, without labels, after deployment.

What a batch normalisation keeps of its data is named (`BatchNormalisation`, `channel_statistics`),
and `Synthetic` makes batches of it that `networks.observe` and `networks.compress` take as they
take data. `folded`, `equalise` and `absorb_high_means` give the same function weights that lose
less, `keeping_mean` corrects a bias, and `rectified` and its kin are moments in closed form.

`train` makes one network of every size: a `Subspace` that is compressed while it is trained, to
levels that a schedule (`Sampled`, `Sandwich`, `Together`, `Fixed`) draws, by `Pruned`, `Rounded`,
`Narrowed` or `Truncated`.

`distill` trains a student, such as a compressed network, on a teacher's answers to unlabelled data
(`kl_divergence`); `agreement` says how alike two networks decide, and `decision_margin` up to which
divergence they do.
"""

from lowrank_theory.data_constrained.closed_forms import added as added
from lowrank_theory.data_constrained.closed_forms import averaged as averaged
from lowrank_theory.data_constrained.closed_forms import largest_rectified as largest_rectified
from lowrank_theory.data_constrained.closed_forms import rectified as rectified
from lowrank_theory.data_constrained.compressors import AbstractCompressor as AbstractCompressor
from lowrank_theory.data_constrained.compressors import KeepAll as KeepAll
from lowrank_theory.data_constrained.compressors import Narrowed as Narrowed
from lowrank_theory.data_constrained.compressors import Pruned as Pruned
from lowrank_theory.data_constrained.compressors import Rounded as Rounded
from lowrank_theory.data_constrained.compressors import Truncated as Truncated
from lowrank_theory.data_constrained.compressors import rounded as rounded
from lowrank_theory.data_constrained.distillation import Distilled as Distilled
from lowrank_theory.data_constrained.distillation import Shuffled as Shuffled
from lowrank_theory.data_constrained.distillation import distill as distill
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
from lowrank_theory.data_constrained.soft_labels import Agreement as Agreement
from lowrank_theory.data_constrained.soft_labels import agreement as agreement
from lowrank_theory.data_constrained.soft_labels import decision_margin as decision_margin
from lowrank_theory.data_constrained.soft_labels import kl_divergence as kl_divergence
from lowrank_theory.data_constrained.subspaces import AbstractSchedule as AbstractSchedule
from lowrank_theory.data_constrained.subspaces import Fixed as Fixed
from lowrank_theory.data_constrained.subspaces import Moment as Moment
from lowrank_theory.data_constrained.subspaces import Sampled as Sampled
from lowrank_theory.data_constrained.subspaces import Sandwich as Sandwich
from lowrank_theory.data_constrained.subspaces import Subspace as Subspace
from lowrank_theory.data_constrained.subspaces import Together as Together
from lowrank_theory.data_constrained.subspaces import Trained as Trained
from lowrank_theory.data_constrained.subspaces import train as train
from lowrank_theory.data_constrained.synthetic import Synthetic as Synthetic
from lowrank_theory.data_constrained.synthetic import keeping_mean as keeping_mean
from lowrank_theory.data_constrained.synthetic import natural_noise as natural_noise
