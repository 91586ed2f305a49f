"""Recover low-rank weights: one verb, `recover`, and one file for each method."""

from lowrank_theory.approximations import LowRank as LowRank
from lowrank_theory.recovery._activation_weighted import ActivationWeighted as ActivationWeighted
from lowrank_theory.recovery._convex import Convergence as Convergence
from lowrank_theory.recovery._convex import ConvexFit as ConvexFit
from lowrank_theory.recovery._every_rank import AbstractNestedMethod as AbstractNestedMethod
from lowrank_theory.recovery._every_rank import EveryRank as EveryRank
from lowrank_theory.recovery._every_rank import every_rank as every_rank
from lowrank_theory.recovery._from_moments import (
    activation_weighted_from_moments as activation_weighted_from_moments,
)
from lowrank_theory.recovery._from_rows import activation_weighted as activation_weighted
from lowrank_theory.recovery._from_triangle import (
    activation_weighted_from_triangle as activation_weighted_from_triangle,
)
from lowrank_theory.recovery._ladder import AbstractLadder as AbstractLadder
from lowrank_theory.recovery._ladder import AbstractSweep as AbstractSweep
from lowrank_theory.recovery._ladder import Need as Need
from lowrank_theory.recovery._ladder import Sweep as Sweep
from lowrank_theory.recovery._ladder import as_calibration as as_calibration
from lowrank_theory.recovery._ladder import dense_float64 as dense_float64
from lowrank_theory.recovery._ladder import outputs_of_both as outputs_of_both
from lowrank_theory.recovery._ladder import rows_of as rows_of
from lowrank_theory.recovery._ladder import trained_weights as trained_weights
from lowrank_theory.recovery._randomized import Randomized as Randomized
from lowrank_theory.recovery._randomized import randomized as randomized
from lowrank_theory.recovery._rank_penalised import RankPenalised as RankPenalised
from lowrank_theory.recovery._rank_penalised import rank_penalised as rank_penalised
from lowrank_theory.recovery._recover import NEAR_OPTIMAL as NEAR_OPTIMAL
from lowrank_theory.recovery._recover import NEGLIGIBLE as NEGLIGIBLE
from lowrank_theory.recovery._recover import AbstractMethod as AbstractMethod
from lowrank_theory.recovery._recover import Certificate as Certificate
from lowrank_theory.recovery._recover import DualityGap as DualityGap
from lowrank_theory.recovery._recover import MeasuredError as MeasuredError
from lowrank_theory.recovery._recover import Recovery as Recovery
from lowrank_theory.recovery._recover import recover as recover
from lowrank_theory.recovery._ridge import Ridge as Ridge
from lowrank_theory.recovery._ridge import ridge as ridge
from lowrank_theory.recovery._ridge import ridge_from_moments as ridge_from_moments
from lowrank_theory.recovery._singular_value_threshold import (
    SingularValueThreshold as SingularValueThreshold,
)
from lowrank_theory.recovery._singular_value_threshold import (
    singular_value_threshold as singular_value_threshold,
)
from lowrank_theory.recovery._truncated_svd import TruncatedSVD as TruncatedSVD
from lowrank_theory.recovery._truncated_svd import truncated_svd as truncated_svd
from lowrank_theory.recovery._weighted_target import WeightedTarget as WeightedTarget
from lowrank_theory.recovery._weighted_target import gram_root as gram_root
from lowrank_theory.recovery.censored import CensoredLikelihood as CensoredLikelihood
from lowrank_theory.recovery.censored import censored_likelihood as censored_likelihood
from lowrank_theory.recovery.nuclear_norm import NuclearNormBall as NuclearNormBall
from lowrank_theory.recovery.nuclear_norm import WeightNuclearNormBall as WeightNuclearNormBall
from lowrank_theory.recovery.nuclear_norm import (
    WeightNuclearNormPenalty as WeightNuclearNormPenalty,
)
from lowrank_theory.recovery.nuclear_norm import nuclear_norm_ball as nuclear_norm_ball
from lowrank_theory.recovery.nuclear_norm import (
    weight_nuclear_norm_ball as weight_nuclear_norm_ball,
)
from lowrank_theory.recovery.nuclear_norm import (
    weight_nuclear_norm_penalty as weight_nuclear_norm_penalty,
)
from lowrank_theory.recovery.published import ASVD as ASVD
from lowrank_theory.recovery.published import COALA as COALA
from lowrank_theory.recovery.published import DRONE as DRONE
from lowrank_theory.recovery.published import ESPACE as ESPACE
from lowrank_theory.recovery.published import QERA as QERA
from lowrank_theory.recovery.published import SVDLLM as SVDLLM
from lowrank_theory.recovery.published import CorDA as CorDA
from lowrank_theory.recovery.published import DiagonalQERA as DiagonalQERA
from lowrank_theory.recovery.relu import NuclearNormRelu as NuclearNormRelu
from lowrank_theory.recovery.relu import nuclear_norm_relu as nuclear_norm_relu
from lowrank_theory.recovery.shrinkage import OptimalShrinkage as OptimalShrinkage
from lowrank_theory.recovery.shrinkage import optimal_shrinkage as optimal_shrinkage
from lowrank_theory.recovery.shrinkage import shrink_singular_values as shrink_singular_values
