"""The theorems, in the order of a paper. Each file states one; each object here is one.

`CONTENTS` is the tuple of all, `PARTS` their names by part, and `STATEMENTS` holds every statement
by its full name, such as `planted_rank.gaussian`. A theorem's fields are its statements:
`planted_rank.gaussian.bound(problem)`.
"""

import importlib

from lowrank_theory.theorems._contents import PARTS as PARTS
from lowrank_theory.theorems._theorem import ASYMPTOTIC_EQUALITY as ASYMPTOTIC_EQUALITY
from lowrank_theory.theorems._theorem import ASYMPTOTIC_UPPER as ASYMPTOTIC_UPPER
from lowrank_theory.theorems._theorem import EQUALITY as EQUALITY
from lowrank_theory.theorems._theorem import EQUALITY_IN_EXPECTATION as EQUALITY_IN_EXPECTATION
from lowrank_theory.theorems._theorem import LOWER as LOWER
from lowrank_theory.theorems._theorem import LOWER_IN_EXPECTATION as LOWER_IN_EXPECTATION
from lowrank_theory.theorems._theorem import LOWER_WITH_PROBABILITY as LOWER_WITH_PROBABILITY
from lowrank_theory.theorems._theorem import UPPER as UPPER
from lowrank_theory.theorems._theorem import UPPER_IN_EXPECTATION as UPPER_IN_EXPECTATION
from lowrank_theory.theorems._theorem import UPPER_WITH_PROBABILITY as UPPER_WITH_PROBABILITY
from lowrank_theory.theorems._theorem import AbstractAdversary as AbstractAdversary
from lowrank_theory.theorems._theorem import AbstractStatement as AbstractStatement
from lowrank_theory.theorems._theorem import AbstractTheorem as AbstractTheorem
from lowrank_theory.theorems._theorem import Bound as Bound
from lowrank_theory.theorems._theorem import Certainty as Certainty
from lowrank_theory.theorems._theorem import Direction as Direction
from lowrank_theory.theorems._theorem import Hypothesis as Hypothesis
from lowrank_theory.theorems._theorem import Kind as Kind
from lowrank_theory.theorems._theorem import Rate as Rate
from lowrank_theory.theorems._theorem import Refuted as Refuted
from lowrank_theory.theorems._theorem import Standing as Standing
from lowrank_theory.theorems._theorem import assess as assess

# theorems
from lowrank_theory.theorems.approximate_rank import approximate_rank as approximate_rank
from lowrank_theory.theorems.best_possible import best_possible as best_possible
from lowrank_theory.theorems.calibration_excess import calibration_excess as calibration_excess
from lowrank_theory.theorems.calibration_size import calibration_size as calibration_size
from lowrank_theory.theorems.equalisation import equalisation as equalisation
from lowrank_theory.theorems.gain_of_data import gain_of_data as gain_of_data
from lowrank_theory.theorems.gaussian_noise import gaussian_noise as gaussian_noise
from lowrank_theory.theorems.held_out_certificate import (
    held_out_certificate as held_out_certificate,
)
from lowrank_theory.theorems.heteroskedastic_noise import (
    heteroskedastic_noise as heteroskedastic_noise,
)
from lowrank_theory.theorems.look_up import look_up as look_up
from lowrank_theory.theorems.low_rank_plus_sparse import (
    low_rank_plus_sparse as low_rank_plus_sparse,
)
from lowrank_theory.theorems.minimax_floor import minimax_floor as minimax_floor
from lowrank_theory.theorems.network_composition import network_composition as network_composition
from lowrank_theory.theorems.numerical_route import numerical_route as numerical_route
from lowrank_theory.theorems.orientation import orientation as orientation
from lowrank_theory.theorems.planted_rank import planted_rank as planted_rank
from lowrank_theory.theorems.price_of_ignoring_data import (
    price_of_ignoring_data as price_of_ignoring_data,
)
from lowrank_theory.theorems.projected_truth import projected_truth as projected_truth
from lowrank_theory.theorems.pruning import pruning as pruning
from lowrank_theory.theorems.quantised_factors import quantised_factors as quantised_factors
from lowrank_theory.theorems.randomized_range import randomized_range as randomized_range
from lowrank_theory.theorems.rank_penalty import rank_penalty as rank_penalty
from lowrank_theory.theorems.rate_distortion import rate_distortion as rate_distortion
from lowrank_theory.theorems.relu_noise_after import relu_noise_after as relu_noise_after
from lowrank_theory.theorems.relu_noise_before import relu_noise_before as relu_noise_before
from lowrank_theory.theorems.ridge_limit import ridge_limit as ridge_limit
from lowrank_theory.theorems.rounding import rounding as rounding
from lowrank_theory.theorems.second_moment import second_moment as second_moment
from lowrank_theory.theorems.second_order_rounding import (
    second_order_rounding as second_order_rounding,
)
from lowrank_theory.theorems.singular_subspaces import singular_subspaces as singular_subspaces
from lowrank_theory.theorems.singular_values import singular_values as singular_values
from lowrank_theory.theorems.spiked_limit import spiked_limit as spiked_limit
from lowrank_theory.theorems.strong_signal import strong_signal as strong_signal
from lowrank_theory.theorems.subgaussian_noise import subgaussian_noise as subgaussian_noise
from lowrank_theory.theorems.truncation_stability import (
    truncation_stability as truncation_stability,
)
from lowrank_theory.theorems.unequal_noise import unequal_noise as unequal_noise
from lowrank_theory.theorems.white_residual import white_residual as white_residual

# end

CONTENTS: tuple[AbstractTheorem, ...] = tuple(
    getattr(importlib.import_module(f"{__name__}.{name}"), name)
    for names in PARTS.values()
    for name in names
)
STATEMENTS: dict[str, AbstractStatement] = {
    name: statement for theorem in CONTENTS for name, statement in theorem.statements.items()
}
