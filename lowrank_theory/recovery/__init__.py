"""Recover low-rank weights: one verb, `recover`, and one file for each method."""

from lowrank_theory.recovery._low_rank import LowRank as LowRank
from lowrank_theory.recovery._recover import AbstractMethod as AbstractMethod
from lowrank_theory.recovery._recover import Certificate as Certificate
from lowrank_theory.recovery._recover import DualityGap as DualityGap
from lowrank_theory.recovery._recover import Recovery as Recovery
from lowrank_theory.recovery._recover import recover as recover
from lowrank_theory.recovery.activation_weighted import ActivationWeighted as ActivationWeighted
from lowrank_theory.recovery.activation_weighted import activation_weighted as activation_weighted
from lowrank_theory.recovery.activation_weighted import (
    activation_weighted_from_moments as activation_weighted_from_moments,
)
from lowrank_theory.recovery.relu import NuclearNormRelu as NuclearNormRelu
from lowrank_theory.recovery.relu import nuclear_norm_relu as nuclear_norm_relu
from lowrank_theory.recovery.singular_value_threshold import (
    SingularValueThreshold as SingularValueThreshold,
)
from lowrank_theory.recovery.singular_value_threshold import (
    singular_value_threshold as singular_value_threshold,
)
from lowrank_theory.recovery.truncated_svd import TruncatedSVD as TruncatedSVD
from lowrank_theory.recovery.truncated_svd import truncated_svd as truncated_svd
